"""What a run writes while it goes."""

import subprocess
import sys

from mien.engine.recording import Scalars
from mien.runs import Run


def test_tensorboard_waits_for_the_first_scalars(tmp_path):
    run = Run(tmp_path)
    Scalars(run).close()
    assert not (tmp_path / "tensorboard").exists()
    scalars = Scalars(run, after_nimg=64)
    scalars.write(128, {"loss_d": 1.0})
    scalars.close()
    assert [path.name.split(".")[0] for path in (tmp_path / "tensorboard").iterdir()] == ["events"]
    assert run.scalars()[-1]["loss_d"] == 1.0


def test_the_loop_is_loaded_without_tensorboard():
    code = "import sys, mien.engine.session; sys.exit('tensorboard' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
