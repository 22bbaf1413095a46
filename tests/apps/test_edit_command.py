"""`mien edit` on an untrained generator, with a judge that reads brightness."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mien.errors import UserError
from mien.explore.latents import latents
from mien.explore.sample import attribute_rows, render


class BrightnessJudge:
    """Smiling: whether the lower half is brighter than the generator's usual; Male: the upper half. Young: nobody."""

    attribute_names = ("Smiling", "Male", "Young")
    weights_sha256 = "0" * 64

    def __init__(self, generator):
        faces = render(generator, latents(range(200), 8), attribute_rows(generator, {}, 200, 0))
        self.usual = self.halves(faces).median(dim=0).values

    def halves(self, images):
        return torch.stack([images[:, :, 16:].float().mean((1, 2, 3)), images[:, :, :16].float().mean((1, 2, 3))], dim=1) / 127.5

    def features_and_probabilities(self, images):
        two = torch.sigmoid(20 * (self.halves(images) - self.usual))
        return images.float().flatten(1)[:, ::97].numpy() - 127.5, torch.cat([two, torch.zeros(len(two), 1)], dim=1).numpy()


@pytest.fixture(autouse=True)
def plain_judge(monkeypatch, tiny_generator):
    monkeypatch.setattr("mien.metrics.judge.load_judge", lambda *_, **__: BrightnessJudge(tiny_generator))


def run(function, *arguments):
    import typer

    app = typer.Typer()
    app.command()(function)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture()
def mien_edit(tiny_snapshot):
    from mien.apps.cli.edit import edit

    return lambda *arguments: run(edit, tiny_snapshot, "--device", "cpu", *arguments)


@pytest.fixture()
def directions_file(tiny_generator, tmp_path):
    from mien.explore.direction_set import Direction, DirectionSet

    path = tmp_path / "directions.json"
    path.write_text(DirectionSet(tiny_generator.meta["sha256"], (Direction("brighter", "probe", (1.0,) + (0.0,) * 7),)).to_json())
    return path


def test_a_face_is_edited_measured_and_the_edit_saved(mien_edit, tmp_path):
    out, saved = tmp_path / "new" / "face.png", tmp_path / "edit.json"
    said = mien_edit("--out", out, "--seed", 7, "--where", "Smiling=0", "--to", "Smiling=1", "--measure", 16, "--save", saved)
    assert said.exit_code == 0, said.output
    assert "face 7, Smiling=1" in said.stdout and "Smiling: judged probability" in said.stdout
    assert "Over 16 faces with Smiling=0" in said.stdout and "different faces:" in said.stdout
    picture = np.asarray(Image.open(out))
    assert picture.shape[1] > 2 * 130 and picture.shape[0] > 130  # two faces of 32 px, enlarged to 128, and captions
    again = mien_edit("--out", tmp_path / "again.png", "--seed", 7, "--where", "Smiling=0", "--edit", saved, "--measure", 0)
    assert again.exit_code == 0 and out.read_bytes() == (tmp_path / "again.png").read_bytes()
    assert "Over" not in again.stdout


def test_before_and_after_are_the_faces_themselves(mien_edit, tmp_path, tiny_generator):
    said = mien_edit("--out", tmp_path / "x.png", "--seed", 3, "--where", "Male=1,Smiling=0", "--to", "Smiling=1", "--measure", 0)
    assert said.exit_code == 0, said.output
    picture = np.asarray(Image.open(tmp_path / "x.png")).astype(float)
    shown = [picture[-130:-2, left : left + 128].reshape(32, 4, 32, 4, 3).mean((1, 3)) for left in (-260, -130)]
    faces = render(tiny_generator, latents([3, 3], 8), torch.tensor([[1.0, 0.0], [1.0, 1.0]])).permute(0, 2, 3, 1).numpy()
    off = [[abs(each - face).mean() for face in faces] for each in shown]
    assert off[0][0] < off[0][1] and off[1][1] < off[1][0]


def test_json_tells_the_same(mien_edit, tmp_path):
    said = mien_edit("--out", tmp_path / "x.png", "--seed", 7, "--where", "Smiling=0", "--to", "Smiling=1", "--measure", 8, "--json")
    told = json.loads(said.stdout)
    effect, this = told["many_faces"][0], told["this_face"][0]
    assert told["many_faces_had"] == {"Smiling": 0} and effect["target"] == "Smiling" and effect["count"] == 8
    assert this["now"] - this["was"] == pytest.approx(this["moved"]["Smiling"]["value"], abs=2e-4)
    assert told["edit"]["steps"] == [{"kind": "condition", "attribute": "Smiling", "to": 1.0, "strength": 1.0}]


def test_a_strip_has_a_column_for_each_strength(mien_edit, tmp_path):
    said = mien_edit("--out", tmp_path / "x.png", "--seed", 1, "--to", "Smiling=1,Male=0", "--strengths", "-1,0,1,2", "--measure", 0)
    assert said.exit_code == 0, said.output
    width, height = Image.open(tmp_path / "x.png").size
    assert width > 4 * 130 and height < 200 and "Smiling:" in said.stdout and "Male:" in said.stdout


def test_directions_and_edits_add_up(mien_edit, tmp_path, directions_file):
    saved = tmp_path / "edit.json"
    said = mien_edit("--out", tmp_path / "x.png", "--seed", 1, "--to", "Male=1", "--directions", directions_file,
                     "--along", "brighter=-1.5", "--measure", 4, "--save", saved)  # fmt: skip
    assert said.exit_code == 0, said.output
    steps = json.loads(saved.read_text())["steps"]
    assert [step["kind"] for step in steps] == ["condition", "direction"] and steps[1]["strength"] == -1.5


def test_strength_beyond_is_said_to_be_extrapolation(mien_edit, tmp_path):
    assert "extrapolation" in mien_edit("--out", tmp_path / "x.png", "--seed", 1, "--to", "Male=1", "--strength", 2, "--measure", 0).stderr
    assert "extrapolation" not in mien_edit("--out", tmp_path / "x.png", "--seed", 1, "--to", "Male=1", "--measure", 0).stderr


@pytest.mark.parametrize("asked, beyond", [
    ("--to Smiling=2", "Smiling"), ("--to Smiling=2 --strength 0.5 --where Smiling=0", ""), ("--to Smiling=1 --strengths 0,1,3", "Smiling"),
    ("--to Smiling=1 --strengths 0,0.5,1", ""), ("--to Smiling=1,Male=-1", "Male"), ("--to Smiling=1 --strength -1 --where Smiling=1", ""),
    ("--to Smiling=1 --strength -1 --where Smiling=0", "Smiling"),
    ("--to Smiling=1 --strength -1 --where Smiling=1 --measure 4", "Smiling"),
])  # fmt: skip
def test_what_is_said_to_be_extrapolation_is_what_the_model_was_asked_for(mien_edit, tmp_path, asked, beyond):
    """Of the values that result, in any column or face that is measured: not of the strength alone."""
    words = asked.split() + ([] if "--measure" in asked else ["--measure", "0"])
    said = mien_edit("--out", tmp_path / "x.png", "--seed", 1, *words)
    assert said.exit_code == 0, said.output
    assert [line for line in said.stderr.splitlines() if "extrapolation" in line] == (
        [f"Note: {beyond} beyond 0..1 is extrapolation; training showed the model only 0 and 1."] if beyond else [])


@pytest.mark.parametrize("arguments, message", [
    ("--to Smiling=1", "either --seed N"), ("--seed 1", "Nothing to do"), ("--seed 1 --to Smilin=1", "Did you mean Smiling"),
    ("--seed 1 --to Smiling=9", "from -2 to 3"), ("--seed 1 --to Smiling=1 --strengths 1,x", "numbers with commas"),
    ("--seed 1 --to Smiling=1 --strength 1000", "Strength 1000"), ("--seed 1 --along a=1", "go together"),
    ("--seed 1 --edit missing.json", "missing.json cannot be read"), ("--seed 1 --edit FILE", "is not an edit"),
    ("--seed 1 --directions FILE --along brigter=1", "Did you mean brighter"),
    ("--seed 1 --directions FILE --along brighter=lots", "write NAME=1.5"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line_and_leave_nothing(mien_edit, tmp_path, directions_file, arguments, message):
    out = tmp_path / "x.png"
    said = mien_edit("--out", out, *arguments.replace("FILE", str(directions_file)).split())
    assert isinstance(said.exception, UserError) and message in str(said.exception) and "\n" not in str(said.exception)
    assert not out.exists()


def test_only_a_picture_is_written(mien_edit, tmp_path):
    for out in ("x.jpg", "x"):
        assert isinstance(mien_edit("--out", tmp_path / out, "--seed", 1, "--to", "Male=1").exception, UserError)


def test_a_place_that_takes_no_file_is_told_before_the_work(mien_edit, tmp_path, monkeypatch):
    monkeypatch.setattr("mien.explore.load.load_generator", None)
    (tmp_path / "file").write_text("x")
    ask = ["--seed", 1, "--to", "Male=1"]
    for more, word in ((["--out", tmp_path / "x.png", "--save", tmp_path], "is a folder"),
                       (["--out", tmp_path / "x.png", "--save", tmp_path / "file"], "ends in .json"),
                       (["--out", tmp_path / "file" / "x.png"], "file is a file, where a folder is needed")):  # fmt: skip
        said = mien_edit(*more, *ask)
        assert isinstance(said.exception, UserError) and word in str(said.exception), said.output
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_photo_is_not_written_over(mien_edit, tmp_path, monkeypatch):
    monkeypatch.setattr("mien.explore.load.load_generator", None)
    photo, latent = tmp_path / "me.png", tmp_path / "me.json"
    for path in (photo, latent):
        path.write_text("mine")
    for image, more in ((photo, []), (latent, ["--save", latent])):
        out = photo if image == photo else tmp_path / "x.png"
        said = mien_edit("--out", out, "--image", image, "--to", "Male=1", *more)
        assert isinstance(said.exception, UserError) and "is the file that is read" in str(said.exception), said.output
    from mien.apps.cli.invert import _check

    with pytest.raises(UserError, match="is the file that is read"):
        _check(photo, photo)


def test_names_of_directions_may_hold_spaces_and_come_once():
    from mien.apps.cli.edit import parse_along

    assert parse_along("wide smile=1.5, pca-1 = -2") == {"wide smile": 1.5, "pca-1": -2.0}
    with pytest.raises(UserError, match="twice"):
        parse_along("a=1,a=2")


def test_an_edit_of_another_model_is_refused(mien_edit, tmp_path, directions_file):
    text = directions_file.read_text()
    directions_file.write_text(text.replace(json.loads(text)["model"], "f" * 64))
    said = mien_edit("--out", tmp_path / "x.png", "--seed", 1, "--directions", directions_file, "--along", "brighter=1")
    assert isinstance(said.exception, UserError) and "another model" in str(said.exception)


# ------------------------------------------------------------------------------------------------------------------------------
# Photos


def test_a_kept_latent_is_edited_with_its_offsets(mien_edit, tmp_path, tiny_generator):
    """At strength 0 the picture is what the inversion draws, offsets and all."""
    from mien.explore.invert import Inversion, draw, zero_offsets
    from mien.models.pictures import to_uint8

    z, rows = latents([5], 8), torch.tensor([[1.0, 0.0]])
    offsets = {name: each - torch.tensor([[0.95], [0.0]]) for name, each in zero_offsets(tiny_generator, z, rows).items()}  # to grey
    image = draw(tiny_generator, z, rows, offsets)
    found = Inversion(z=z, attributes=rows, offsets=offsets, image=image, errors={}, condition="given",
                      model=tiny_generator.meta["sha256"], attribute_names=("Male", "Smiling"))  # fmt: skip
    (tmp_path / "me.json").write_text(found.to_json())
    ask = ["--to", "Smiling=1", "--strengths", "0,1", "--measure", 0]
    said = mien_edit("--out", tmp_path / "x.png", "--image", tmp_path / "me.json", *ask)
    assert said.exit_code == 0 and "me.json, Smiling=1" in said.stdout, said.output
    picture = np.asarray(Image.open(tmp_path / "x.png")).astype(float)
    first = picture[-130:-2, -260:-132].reshape(32, 4, 32, 4, 3).mean((1, 3))
    right, wrong = (to_uint8(each)[0].permute(1, 2, 0).numpy() for each in (image, draw(tiny_generator, z, rows)))
    assert abs(first - right).mean() < abs(first - wrong).mean() / 2 and abs(1.0 * right - wrong).mean() > 20
    assert not any(module._forward_hooks for module in tiny_generator.net.modules())


def test_a_photo_is_found_in_the_model_first(mien_edit, tmp_path, monkeypatch, tiny_generator):
    from mien.explore.invert import Settings
    from mien.metrics.judge import Judge
    from mien.models.classifier import load_classifier

    net, meta = load_classifier(None)
    real = Judge(net=net, attribute_names=tuple(meta["attributes"]), weights_sha256="", meta=meta)
    monkeypatch.setattr("mien.metrics.judge.load_judge", lambda *_, **__: real)
    monkeypatch.setattr("mien.explore.invert.Settings", lambda: Settings(steps=8, starts=1))
    face = render(tiny_generator, latents([5], 8), torch.tensor([[1.0, 0.0]]))[0].permute(1, 2, 0).numpy()
    Image.fromarray(face).save(tmp_path / "me.png")
    said = mien_edit("--out", tmp_path / "x.png", "--image", tmp_path / "me.png", "--to", "Smiling=1", "--measure", 0)
    assert said.exit_code == 0, said.output
    assert "of 255 levels of error, identity distance" in said.stderr and "Smiling: judged probability" in said.stdout
    picture = np.asarray(Image.open(tmp_path / "x.png")).astype(float)
    shown = picture[-130:-2, -390:-262].reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert ((shown > 127) == (face > 127)).mean() > 0.95  # photo, before, after: the first is the photo itself


@pytest.mark.parametrize("content, message", [(b"hello", "hello.png"), (b"", "hello.png")])
def test_what_is_no_photo_is_told(mien_edit, tmp_path, content, message):
    (tmp_path / "hello.png").write_bytes(content)
    said = mien_edit("--out", tmp_path / "x.png", "--image", tmp_path / "hello.png", "--to", "Smiling=1")
    assert isinstance(said.exception, UserError) and message in str(said.exception) and not (tmp_path / "x.png").exists()
    said = mien_edit("--out", tmp_path / "x.png", "--image", tmp_path / "hello.png", "--to", "Smiling=1", "--where", "Male=1")
    assert isinstance(said.exception, UserError) and "--where" in str(said.exception)
