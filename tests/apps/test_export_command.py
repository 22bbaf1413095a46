"""`mien export`: what comes out draws what mien draws, says what it is, and nothing half-made is left behind."""

import copy
import dataclasses
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mien.apps.cli.main import app
from mien.apps.export import card as cards
from mien.apps.export import graph, package, weights
from mien.errors import UserError
from mien.explore.load import LoadedGenerator, load_generator
from mien.models.catalogue import build_generator
from mien.models.latents import latents
from mien.runs import Run

PROTOCOL = {"data": "celeba", "crop": "center178", "size": 32, "split": "val", "n_real": 2000, "n_fake": 2000, "features": "face",
            "truncation": 1.0, "seed": 0, "conditions": "the reals' own"}  # fmt: skip
GROUPS = {"Male=0,Smiling=0": {"value": 14.0, "floor": 5.0}, "Male=1,Smiling=0": {"value": 40.0, "floor": 8.0}}
ACCURACY = {"accuracy": {"Male": 0.95, "Smiling": 0.9}, "ceiling": {"Male": 0.98, "Smiling": 0.93},
            "combinations": {"Male=1,Smiling=0": {"Male=1,Smiling=0": 0.71}}}  # fmt: skip
LEAKS = {"leaks": [{"asked": "Smiling", "judged": "Heavy_Makeup", "leakage": 0.067, "low": 0.04, "high": 0.09}]}
MEMORY = {"verdict": "no sign of copying", "median_distance": 6.0, "median_distance_held_out": 6.1, "n_training": 24996,
          "worst": [{"training": "003702.jpg"}]}  # fmt: skip


@pytest.fixture(scope="module")
def scored_run(tmp_path_factory, tiny_snapshot):
    """A run of the tiny generator with scores of two snapshots; those at 1,000 images are its snapshot's."""
    config = {"preset": "demo", "machine": {"device": "cpu"},
              "config": {"model": {"generator": {"width": 16}}, "train": {"batch": 4, "seed": 0}, "data": {"balance": {"Male=1": 2.0}}},
              "provenance": {"data.balance": "command line",
                             "model.generator.width": "preset demo", "train.batch": "--set", "train.seed": "default"},
              "store": {"path": "some/celeba", "crop": "center178", "splits": {"train": 24996, "val": 2044}}}  # fmt: skip
    run = Run.create(tmp_path_factory.mktemp("runs") / "run", config=config, architecture={})
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_snapshot.with_suffix(suffix), run.path / "snapshots" / f"000001kimg{suffix}")
    for nimg, metric, value, floor, details in [
        (1000, "fd-face", 99.0, 2.0, {}), (500, "fd-face", 77.0, 2.0, {}), (1000, "fd-face", 14.3, 2.0, {"by_combination": GROUPS}),
        (1000, "control", 0.928, 0.955, ACCURACY), (1000, "leakage", 0.0092, 0.0039, LEAKS), (1000, "memorization", 0.0055, 0.01, MEMORY),
        (1000, "recall-face", 0.32, 0.95, {}),
    ]:  # fmt: skip
        interval = {"low": value * 0.9, "high": value * 1.1}
        run.append("metrics", nimg, metric=metric, value=value, floor=floor, protocol=PROTOCOL, details=details, **interval)
    return run.path


def mien(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words):
    """The one line with which a command line is refused."""
    result = mien(*words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


# ---- safetensors and the card


def test_half_weights_are_a_model_that_draws_the_same(scored_run, tmp_path, tiny_generator):
    out = tmp_path / "small"
    result = mien("export", scored_run, "--out", out, "--half")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "run.json", "run.safetensors"]  # named by the run
    assert re.search(r"at most (\d+) of 255 levels", result.stderr)
    full, half = (scored_run / "snapshots" / "000001kimg.safetensors").stat().st_size, (out / "run.safetensors").stat().st_size
    assert half < 0.62 * full
    model = load_generator(out)
    assert (model.attribute_names, model.size, model.meta["precision"]) == (("Male", "Smiling"), 32, "fp16")
    assert all(parameter.dtype == torch.float32 for parameter in model.net.parameters())
    largest, mean = weights.moved_levels(tiny_generator, model)
    assert (largest, mean) == weights.moved_levels(tiny_generator, weights.rounded(tiny_generator)) and 0 < mean < 1


def test_the_card_tells_what_was_measured_and_nothing_else(scored_run, tmp_path):
    out = tmp_path / "card"
    mien("export", scored_run, "--out", out)
    text = (out / "README.md").read_text(encoding="utf-8")
    for said in ("license: other", "non-commercial research only", "24,996 training images", "`train.batch = 4`",
                 "`data.balance = {'Male=1': 2.0}`", "| `fd-face` | 14.3 |",
                 "2,000 real images of the val split", "| Male | 95.0% | 98.0% |", "| Smiling | Heavy_Makeup | +0.067 |",
                 "**no sign of copying**",
                 "| Male=1, Smiling=0 | 50.0% | 40 | 8 | 71.0% |", "Farthest above its floor: Male=1, Smiling=0 (by 32)"):  # fmt: skip
        assert said in text, said
    assert "99" not in text.split("How good")[1].split("Protocol")[0] and "77" not in text.split("How good")[1].split("Protocol")[0]
    assert "train.seed" not in text and "003702" not in text  # neither defaults nor the names of training pictures
    note = json.loads((out / "run.json").read_text())
    assert "003702" not in json.dumps(note) and str(scored_run.parent) not in json.dumps(note)
    assert cards.gather(load_generator(out)) == note["card"]  # an exported model still knows its scores
    result = mien("export", out, "--out", tmp_path / "again")
    assert result.exit_code == 0 and (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == text


def test_a_card_tells_of_each_attribute_where_their_combinations_are_too_many():
    meta = {"attributes": ["Male", "Hat"], "attribute_table": [[[0, 0], 0.5], [[1, 0], 0.3], [[1, 1], 0.2]]}
    parts = {"Male=1": {"value": 12.0, "floor": 6.0}, "Male=0": {"value": 10.0, "floor": 5.0}, "Hat=1": {"value": 40.0, "floor": 8.0}}
    table, notes = cards._about_groups(meta, [{"metric": "fd-face", "details": {"by_combination": parts}}])
    assert table.splitlines()[2:] == ["| Male=1 | 50.0% | 12 | 6 |", "| Male=0 | 50.0% | 10 | 5 |", "| Hat=1 | 20.0% | 40 | 8 |"]
    assert "Rarest in training: Hat=1. Farthest above its floor: Hat=1 (by 32)." in notes


def test_a_card_says_what_was_not_measured(tiny_generator):
    card = cards.gather(tiny_generator)
    text = cards.render("x", tiny_generator.meta, card, use="")
    assert card["scores"] == [] and "Not measured" in text
    assert "Control was not measured" in text and "copies training images was not measured" in text
    assert "does not know them" in text  # the licence of unknown data
    drawn = {**card, "data": {**card["data"], "kind": "drawn"}}
    assert "license: apache-2.0" in cards.render("x", tiny_generator.meta, drawn, use="")


def test_weights_too_large_for_half_are_refused(tiny_generator):
    net = copy.deepcopy(tiny_generator.net)
    next(parameter for parameter in net.parameters() if parameter.ndim > 1).data.fill_(1e5)
    with pytest.raises(UserError, match="65,504"):
        weights.halved(dataclasses.replace(tiny_generator, net=net))


def test_bundling_writes_the_model_and_its_card(scored_run, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    (tmp_path / "cards").mkdir()
    places = {"weights": tmp_path / "weights", "cards": tmp_path / "cards"}
    generator = load_generator(scored_run)
    package.bundle(generator, "tiny32", **places)
    assert sorted(path.name for path in places["weights"].iterdir()) == ["tiny32.json", "tiny32.safetensors"]
    assert load_generator(places["weights"] / "tiny32.safetensors").size == 32
    text = (places["cards"] / "tiny32.md").read_text(encoding="utf-8")
    assert text.startswith("# Model card: `tiny32`") and "mien sample tiny32 --out" in text
    monkeypatch.setattr(package, "MAX_BUNDLED_BYTES", 1000)
    with pytest.raises(UserError, match="at most 0 MB"):
        package.bundle(generator, "other", **places)
    assert len(list(places["weights"].iterdir())) == 2  # nothing half-made is left


# ---- ONNX


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory, tiny_generator):
    pytest.importorskip("onnxscript", reason="the export needs mien[export]")
    out = tmp_path_factory.mktemp("onnx") / "tiny"
    done = package.export(tiny_generator, out, form="onnx")
    assert done.parity is not None and done.parity <= graph.TOLERANCE
    return out


def test_an_onnx_file_says_what_it_takes(onnx_folder):
    import onnx

    assert sorted(path.name for path in onnx_folder.iterdir()) == ["README.md", "tiny.onnx"]
    model = onnx.load(onnx_folder / "tiny.onnx")
    shapes = {value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
              for value in (*model.graph.input, *model.graph.output)}  # fmt: skip
    assert shapes == {"latent": ["N", 8], "Male": ["N"], "Smiling": ["N"], "images": ["N", 3, 32, 32]}
    assert [(each.domain, each.version) for each in model.opset_import] == [("", graph.OPSET)]
    facts = {each.key: each.value for each in model.metadata_props}
    assert facts["format"] == "mien-onnx/1" and json.loads(facts["attributes"]) == ["Male", "Smiling"] and facts["z_dim"] == "8"


def test_the_cards_example_runs_as_it_stands(onnx_folder, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (onnx_folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(onnx_folder)
    scope: dict = {}
    exec(code, scope)
    assert scope["pixels"].shape == (16, 3, 32, 32) and scope["pixels"].dtype == np.uint8


def test_onnx_draws_the_same_at_any_count_and_each_input_is_its_own(onnx_folder, tiny_generator):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_folder / "tiny.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        z, rows = latents(range(40, 40 + count), 8), torch.rand(count, 2, generator=torch.Generator().manual_seed(count)) * 2
        feed = {"latent": z.numpy(), "Smiling": rows[:, 1].numpy(), "Male": rows[:, 0].numpy()}
        (images,) = session.run(["images"], feed)
        with torch.inference_mode():
            own = tiny_generator.net(z, rows).numpy()
            swapped = tiny_generator.net(z, rows.flip(1)).numpy()
        assert np.abs(images - own).max() < 1e-3 < np.abs(images - swapped).max()


def test_a_file_that_draws_something_else_is_not_handed_out(onnx_folder, tiny_generator, tmp_path, monkeypatch):
    import onnx

    net = copy.deepcopy(tiny_generator.net)
    with torch.no_grad():
        next(parameter for parameter in reversed(list(net.parameters()))).add_(0.01)  # a bias of the last layer
    other = dataclasses.replace(tiny_generator, net=net)
    assert graph.parity(other, onnx_folder / "tiny.onnx") > graph.TOLERANCE
    wrong = onnx.load(onnx_folder / "tiny.onnx")
    monkeypatch.setattr(graph, "_traced", lambda generator, **_: wrong)
    with pytest.raises(UserError, match=r"would not draw what PyTorch draws: a pixel differs by 0\.0\d+"):
        package.export(other, tmp_path / "wrong", form="onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_attributes_and_in_half(tmp_path):
    pytest.importorskip("onnxscript", reason="the export needs mien[export]")
    import onnx

    options = {"width": 16, "z_dim": 4}
    net = build_generator("dcgan", size=32, attributes=0, options=options).eval().requires_grad_(False)
    meta = {"family": "dcgan", "options": options, "size": 32, "attributes": [], "attribute_table": [[[], 1.0]], "nimg": 0,
            "store": {"crop": "whole"}}  # fmt: skip
    plain = LoadedGenerator(net, (), 32, 4, meta, tmp_path / "none.safetensors")
    done = package.export(plain, tmp_path / "plain", form="onnx", half=True)
    assert done.parity is not None and done.parity <= 1e-5  # the very weights that fp16 holds
    model = onnx.load(tmp_path / "plain" / "none.onnx")
    assert [value.name for value in model.graph.input] == ["latent"]
    large = [each for each in model.graph.initializer if len(each.dims) > 1 and np.prod(each.dims) > 64]
    assert large and all(each.data_type == onnx.TensorProto.FLOAT16 for each in large)


# ---- Refusals


def test_mistakes_are_told_in_one_line(tiny_snapshot, tmp_path, monkeypatch):
    assert "Did you mean onnx" in refusal("export", tiny_snapshot, "--out", tmp_path / "a", "--format", "onxx")
    assert "not 'a b'" in refusal("export", tiny_snapshot, "--out", tmp_path / "a", "--name", "a b")
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal("export", tiny_snapshot, "--out", tmp_path / "file")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'mien[export]'" in refusal("export", tiny_snapshot, "--out", tmp_path / "a", "--format", "web")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_an_export_is_replaced_and_only_when_asked(tiny_snapshot, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for words in ((), ("--force",)):
        assert "give --out another name" in refusal("export", tiny_snapshot, "--out", mine, *words)
    assert (mine / "thesis.txt").read_text() == "years of work"
    out = tmp_path / "out"
    assert mien("export", tiny_snapshot, "--out", out).exit_code == 0
    assert "--force to replace it" in refusal("export", tiny_snapshot, "--out", out)
    assert mien("export", tiny_snapshot, "--out", out, "--force").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_an_attribute_named_as_the_graphs_input_is_refused(tiny_generator, tmp_path):
    pytest.importorskip("onnxscript", reason="the export needs mien[export]")
    named = dataclasses.replace(tiny_generator, attribute_names=("latent", "Smiling"))
    with pytest.raises(UserError, match="cannot be exported to ONNX"):
        package.export(named, tmp_path / "x", form="onnx")


def test_a_terminated_export_leaves_nothing(tiny_snapshot, tmp_path, monkeypatch):
    import os
    import signal

    from mien.apps.cli.export import export as command

    monkeypatch.setattr("mien.apps.export.package._write", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda *_: None)     # if nothing catches it, this test fails and no more
    try:
        with pytest.raises(KeyboardInterrupt):
            command(str(tiny_snapshot), tmp_path / "x" / "out", form="safetensors", half=False, name=None, force=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list((tmp_path / "x").iterdir()) == []
