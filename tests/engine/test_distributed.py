"""Several processes train one run as one process would; one that dies ends it, and nothing is lost."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cut import RECIPES, STEPS, steps

TESTS = Path(__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")]), **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def two(store, tmp_path_factory) -> list[dict]:
    """What each of two processes found in each recipe."""
    out = tmp_path_factory.mktemp("two") / "found"
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "engine.cut", str(store.path), str(out)]
    children = [subprocess.Popen(command, env=environment(RANK=str(rank), **meeting)) for rank in (0, 1)]
    assert [child.wait(timeout=280) for child in children] == [0, 0]
    return [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in (0, 1)]


def assert_close(found: list[dict], expected: list[dict], rel: float) -> None:
    for step in range(STEPS):
        assert found[step].keys() == expected[step].keys()
        for name, value in expected[step].items():
            assert found[step][name] == pytest.approx(value, rel=rel, abs=rel), f"{name} of step {step}"


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_do_what_one_does(store, two, name):
    assert_close(two[0][name]["signals"], steps(name, store)["signals"], rel=2e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_weights_and_signals_are_the_same_bits_in_both(two, name):
    assert two[0][name] == two[1][name]
