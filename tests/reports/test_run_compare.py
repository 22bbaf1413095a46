"""The comparison: what may be ranked is, what may not is said, and the same facts stand in the page, the Markdown and the JSON."""

import html
import json
import re

import pytest
from fake_run import make_run, write_jsonl
from test_run_report import Tree

from mien.apps.cli import report as cli
from mien.errors import UserError
from mien.reports.compare import as_json, compare, markdown, markdown_table, render
from mien.runs import Run


def rescore(path, **fields):
    """Rewrite every fd-face line with `fields`; protocol={...} changes only those entries."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["metric"] == "fd-face":
            line["protocol"] |= fields.get("protocol", {})
            line |= {key: value for key, value in fields.items() if key != "protocol"}
    write_jsonl(path / "metrics.jsonl", lines)


def two_runs(folder, pictures):
    first = make_run(folder / "first", seed=0, total=20_000, tick=1_000, samples=4, pictures=pictures)
    return [first, make_run(folder / "second", seed=1, total=16_000, tick=1_000, samples=4, pictures=pictures, optimizer__lr_g=1e-4)]


@pytest.fixture
def pair(tmp_path):
    return two_runs(tmp_path, pictures=False)


@pytest.fixture
def drawn_pair(tmp_path):
    return two_runs(tmp_path, pictures=True)


def opened(paths):
    return compare([Run.open(path) for path in paths])


def fd(comparison):
    return next(column for column in comparison.columns if column.metric == "fd-face")


def test_the_better_of_two_wins(pair):
    rescore(pair[0], value=20.0, low=19.0, high=21.0)
    rescore(pair[1], value=12.0, low=11.0, high=13.0)
    comparison = opened(pair)
    assert fd(comparison).winners == ("second",)
    assert "second has the best fd-face 12.0 (11.0 to 13.0; real against real 2.90)." in Tree(render(comparison)).text
    assert "**12.0** (11.0 to 13.0)" in markdown(comparison) and "| 20.0 (19.0 to 21.0)" in markdown(comparison)


def test_overlapping_intervals_are_not_told_apart(pair):
    rescore(pair[0], value=12.5, low=11.5, high=13.5)
    rescore(pair[1], value=12.0, low=11.0, high=13.0)
    comparison = opened(pair)
    assert fd(comparison).winners == ("second", "first")
    assert "but its interval overlaps first's." in html.unescape(render(comparison))
    assert "≈ 12.5" in markdown(comparison)


def test_higher_is_better_where_it_is(pair):
    for path, value in zip(pair, (0.3, 0.5)):
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        write_jsonl(
            path / "metrics.jsonl", [{**line, "value": value, "low": value, "high": value} for line in lines if line["metric"] == "recall"]
        )
    column = opened(pair).columns[0]
    assert (column.metric, column.winners) == ("recall", ("second",))


@pytest.mark.parametrize(
    "change",
    [
        {"split": "train"},
        {"n_fake": 50_000},
        {"crop": "center140"},
        {"store": "0" * 64},
        {"weights_sha256": "f" * 64},
        {"precision": "bf16"},
    ],
)
def test_different_protocols_are_flagged_and_not_ranked(pair, change):
    rescore(pair[1], value=1.0, protocol=change)
    comparison = opened(pair)
    assert not fd(comparison).ranked and fd(comparison).winners == ()
    assert any("different protocols" in warning and "must not be compared" in warning for warning in comparison.warnings)
    text = Tree(render(comparison)).text
    assert "These runs cannot be ranked" in text and "must not be compared" in text
    assert "**Warning:**" in markdown(comparison) and "**1.00**" not in markdown(comparison)
    assert as_json(comparison)["ranking"]["fd-face"] == {"ranked": False, "best": [], "overlapping": []}


def test_a_protocol_that_all_share_is_found(pair):
    """A second, stricter score of one run must not keep the runs from being compared under the protocol both have."""
    line = json.loads((pair[0] / "metrics.jsonl").read_text().splitlines()[0])
    with open(pair[0] / "metrics.jsonl", "a") as file:
        file.write(json.dumps({**line, "value": 0.5, "protocol": {**line["protocol"], "n_fake": 50_000}}) + "\n")
    comparison = opened(pair)
    assert fd(comparison).ranked and not comparison.warnings
    assert fd(comparison).scores["first"].protocol["n_fake"] == 2000


def test_model_and_date_do_not_keep_scores_apart(pair):
    rescore(pair[1], protocol={"model": "another", "date": "2031-01-01", "nimg": 5, "device": "cuda", "seed": 3})
    assert fd(opened(pair)).ranked


def test_only_what_differs_is_listed(pair):
    differences = opened(pair).differences
    assert set(differences) == {"optimizer.lr_g", "train.seed"}
    assert differences["optimizer.lr_g"] == {"first": 2e-4, "second": 1e-4}


def test_samples_stand_at_equal_images(drawn_pair):
    text = Tree(render(opened(drawn_pair))).text
    assert "first, 15,000 images" in text and "second, 16,000 images" in text  # grids at 5k and 4k: the nearest to 16k


def test_a_run_with_no_grid_past_its_start_is_not_shown_beside_noise(drawn_pair):
    for path in sorted((drawn_pair[1] / "samples").glob("*kimg.png"))[1:]:
        path.unlink()
    next((drawn_pair[1] / "samples").glob("*kimg.png")).rename(drawn_pair[1] / "samples" / "000000kimg.png")
    text = Tree(render(opened(drawn_pair))).text
    assert "first, 20,000 images" in text and "second, 0 images" in text and "The newest of each" in text


def test_json_can_be_read_back(pair, capsys):
    cli.compare(pair, out=None, markdown=None, json=True, show=False)
    said = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in said["runs"]] == ["first", "second"]
    assert said["runs"][0]["scores"]["fd-face"]["protocol"]["crop"] == "center178"


def test_json_without_any_number(pair):
    for path in pair:
        write_jsonl(path / "metrics.jsonl", [{"nimg": 1, "metric": "fid", "value": float("nan")}])
        (path / "scalars.jsonl").unlink()
    comparison = opened(pair)
    json.dumps(as_json(comparison), allow_nan=False)
    Tree(render(comparison))
    assert "none can be called the best" in markdown(comparison)


def test_markdown_tables_are_well_formed(pair, tmp_path):
    strange = make_run(tmp_path / "a|b", total=8_000, tick=1_000, pictures=False)
    for block in markdown(opened([*pair, strange])).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(widths) <= 1, rows
        assert not rows or re.fullmatch(r"\|(---\|)+", rows[1])
    assert markdown_table(["a"], [["x|y\nz"]]) == "| a |\n|---|\n| x\\|y z |"


def test_page_needs_nothing_else(drawn_pair):
    page = render(opened(drawn_pair))
    tree = Tree(page)
    assert all(link.startswith(("#", "data:image/")) for link in tree.links)
    assert page.count('<figure class="chart">') > 12 and len(page) < 3_000_000


def test_two_runs_of_one_name(tmp_path):
    paths = [make_run(tmp_path / parent / "run", total=4_000, tick=1_000, pictures=False) for parent in ("a", "b")]
    assert list(opened(paths).runs) == ["a/run", "b/run"]


def test_mistakes_are_told(pair):
    with pytest.raises(UserError, match="at least two"):
        opened(pair[:1])
    with pytest.raises(UserError, match="named twice"):
        opened([pair[0], pair[0]])
    with pytest.raises(UserError, match="No such folder"):
        cli.compare(pair, out=pair[0] / "no" / "page.html", markdown=None, json=False, show=False)


def test_the_command_writes_what_is_asked(pair, tmp_path, capsys):
    page, tables = tmp_path / "page.html", tmp_path / "tables.md"
    cli.compare(pair, out=page, markdown=tables, json=False, show=False)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>") and "| first |" in tables.read_text(encoding="utf-8")
    assert capsys.readouterr().out == ""  # files were asked for: stdout stays free


def test_nothing_is_chosen_by_the_test_split(pair):
    """Every snapshot was scored on val and afterwards on test, which likes another one best."""
    for path in pair:
        line = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
        said = [("val", 1000, 5.0), ("val", 2000, 4.0), ("test", 1000, 30.0), ("test", 2000, 60.0)]
        write_jsonl(path / "metrics.jsonl", [
            {**line, "nimg": nimg, "value": value, "protocol": {**line["protocol"], "split": split}} for split, nimg, value in said
        ])  # fmt: skip
    assert [(top.nimg, top.value) for top in fd(opened(pair)).scores.values()] == [(2000, 4.0)] * 2


def test_the_snapshot_of_a_comparison_is_the_runs_own(pair):
    """Where the test split alone covers both runs they are ranked by it, at the snapshot that val chose."""
    line = json.loads((pair[0] / "metrics.jsonl").read_text().splitlines()[0])
    for i, path in enumerate(pair):
        said = [(f"val {i}", 1000, 5.0), (f"val {i}", 2000, 4.0), ("test", 1000, 30.0), ("test", 2000, 60.0)]
        write_jsonl(path / "metrics.jsonl", [
            {**line, "nimg": nimg, "value": value, "protocol": {**line["protocol"], "split": split}} for split, nimg, value in said
        ])  # fmt: skip
    assert [(top.nimg, top.value) for top in fd(opened(pair)).scores.values()] == [(2000, 60.0)] * 2


def test_a_run_is_judged_as_one_snapshot(pair):
    """Precision at one time and Frechet distance at another would be a model that never was."""
    lines = [json.loads(line) for line in (pair[0] / "metrics.jsonl").read_text().splitlines()]
    template = {metric: next(line for line in lines if line["metric"] == metric) for metric in ("fd-face", "precision")}
    values = {2_000: {"fd-face": 10.0, "precision": 0.5}, 4_000: {"fd-face": 20.0, "precision": 0.9}}
    write_jsonl(pair[0] / "metrics.jsonl", [{**template[m], "nimg": n, "value": v} for n, said in values.items() for m, v in said.items()])
    comparison = opened(pair)
    assert {column.metric: column.scores["first"].value for column in comparison.columns[:2]} == {"fd-face": 10.0, "precision": 0.5}
