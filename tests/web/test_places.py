"""Names are looked up, never joined to a path."""

import os

import pytest

from mien.apps.web.places import Places
from mien.errors import UserError

ESCAPES = ["../two", "..", ".", "", "/etc", "one/../two", "one/", "./one", "one\x00", "~", "one/snapshots", "ONE",
           None, 3, ["one"], {"a": 1}]  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
def test_only_listed_runs(runs_folder, name):
    with pytest.raises(UserError, match="no run named"):
        Places(runs_folder).run(name)


@pytest.mark.parametrize("name", [*ESCAPES, "/etc/passwd", "hf:someone/something"])
def test_only_listed_models(runs_folder, name):
    with pytest.raises(UserError, match="no model named"):
        Places(runs_folder).snapshot(name)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "a\\b", ".hidden", "-rf", "", " ", "x" * 65, "a b", "é", "a\n", "con:", None])
def test_a_new_runs_name_is_no_path(runs_folder, name):
    if name == "a\n":  # spaces around a name are dropped
        assert Places(runs_folder).new_run(name).name == "a"
        return
    with pytest.raises(UserError, match="letters, digits"):
        Places(runs_folder).new_run(name)


def test_a_new_run_is_new(runs_folder, tmp_path):
    assert Places(runs_folder).new_run("three.v-2_x") == runs_folder / "three.v-2_x"
    with pytest.raises(UserError, match="already"):
        Places(runs_folder).new_run("one")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    with pytest.raises(UserError, match="already"):
        Places(tmp_path).new_run("dangling")


def test_a_link_out_of_the_folder_is_no_run(runs_folder, tmp_path):
    os.symlink(runs_folder / "one", tmp_path / "linked")
    os.symlink(runs_folder, tmp_path / "all")
    assert Places(tmp_path).runs() == {} and Places(tmp_path).models() == Places(tmp_path / "none").models()


def test_a_picture_that_is_a_link_out_of_its_run_is_not_shown(serve, tmp_path):
    from reports.fake_run import make_run

    make_run(tmp_path / "runs" / "run", total=4_000, samples=2)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"private")
    (tmp_path / "runs" / "run" / "samples" / "000009kimg.png").symlink_to(secret)
    mosaic = tmp_path / "runs" / "run" / "samples" / "mosaic.png"
    mosaic.unlink()
    mosaic.symlink_to(secret)
    app = serve(None, runs=tmp_path / "runs")
    for query in ("run=run&nimg=9000", "run=run"):
        status, _, content = app.raw(f"api/picture?{query}&key={app.key}")
        assert status == 400 and b"leads out" in content and b"private" not in content
    assert app.raw(f"api/picture?run=run&nimg=2000&key={app.key}")[2].startswith(b"\x89PNG")
    for query in ("run=run&nimg=../../../secret", "run=../runs/run&nimg=2000", "run=run&nimg="):
        assert app.raw(f"api/picture?{query}&key={app.key}")[0] == 400


def test_models_are_the_given_one_and_runs_with_a_snapshot(runs_folder, model):
    assert Places(runs_folder, "some/model").models() | {} == {"some/model": "given", model: "run", **_bundled()}
    assert Places(runs_folder, model).models() == {model: "given", **_bundled()}


def _bundled():
    from mien.explore.load import bundled_models

    return dict.fromkeys(bundled_models(), "bundled")


def test_a_run_whose_config_is_damaged_does_not_hide_the_others(runs_folder, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    assert Places(tmp_path).runs() == {} and Places(tmp_path).stores() is not None


def test_stores_are_found_by_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"format": "another"}')
    assert Places(tmp_path / "runs").stores() == {}
    (tmp_path / "deep" / "er" / "manifest.json").write_text('{"format": "mien-faces/1"}')
    assert list(Places(tmp_path / "runs").stores()) == ["deep/er"]
    with pytest.raises(UserError, match="mien data prepare"):
        Places(tmp_path / "runs").store("../anything")
