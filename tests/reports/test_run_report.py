"""The report: one file that needs nothing else, made without torch, sensible for whatever a run left behind."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_run import CELL, face, make_run, write_jsonl
from PIL import Image

from mien.errors import UserError
from mien.reports.findings import command, headline, recipe, time_s, title, verdict
from mien.reports.report import render
from mien.runs import Run

VOID = {"meta", "img", "br", "wbr", "hr"}


class Tree(HTMLParser):
    """Checks that tags nest, and keeps the text outside style and script, the links and the ids."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.text, self.links, self.ids, self.tags = "", [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "action", "srcset", "poster")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "finished", total=100_000, tick=1_000, samples=6)


@pytest.fixture(scope="module")
def page(finished) -> str:
    return render(Run.open(finished))


def test_made_without_torch(finished, tmp_path):
    blocker = ("import sys, pathlib\n"
               "class Block:\n"
               "    def find_spec(self, name, path=None, target=None):\n"
               "        if name.split('.')[0] in ('torch', 'torchvision', 'scipy', 'sklearn'):\n"
               "            raise ImportError(name)\n"
               "sys.meta_path.insert(0, Block())\n"
               "from mien.apps.cli.report import report, compare\n"
               "assert not {'numpy', 'PIL', 'pandas', 'matplotlib'} & set(sys.modules), 'heavy at load time'\n"
               "report(pathlib.Path(sys.argv[1]), out=pathlib.Path(sys.argv[2]), show=False, with_reals=False)\n")  # fmt: skip
    out = tmp_path / "report.html"
    done = subprocess.run([sys.executable, "-c", blocker, str(finished), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    assert "<!doctype html>" in out.read_text(encoding="utf-8")


def test_nothing_outside_the_file_is_needed(page):
    tree = Tree(page)
    assert all(link.startswith(("#", "data:image/")) for link in tree.links)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]*", "", page))
    assert {link[1:] for link in tree.links if link.startswith("#")} <= set(tree.ids)
    assert len(tree.ids) == len(set(tree.ids))
    assert len(page) < 3_000_000


def test_every_picture_is_described_and_every_heading_in_order(page):
    tree = Tree(page)
    assert all(attrs.get("alt") for tag, attrs in tree.tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in tree.tags if tag == "svg" and attrs.get("role") == "img")
    levels = [int(tag[1]) for tag, _ in tree.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:]))


def test_all_the_parts_are_there(page):
    text = Tree(page).text
    for part in (
        "Samples",
        "Scores",
        "Attribute control",
        "Training curves",
        "Progress",
        "Networks",
        "Recipe",
        "How to reproduce",
        "Event log",
    ):
        assert part.lower() in text.lower()
    assert "mien train data/celeba64 --preset watched --images 600k --seed 0" in text
    assert "−0.38" in text and "no sign of copying" in text


def test_events_are_marked_on_the_curves(page, finished):
    titles = re.findall(r'<g class="event (\w+)"><title>([^<]*)</title>', page)
    kinds = {kind for kind, _ in titles}
    assert {"diagnosis", "rollback", "control"} <= kinds
    assert "22k: D overpowers G: D calls 96 % of fakes fake and G fools it with 2 %." in "\n".join(text for _, text in titles)
    assert all("Saved checkpoint" not in text for _, text in titles)  # routine is not marked
    charts = page.count('<figure class="chart">')
    assert charts > 10 and page.count('class="scored"') > 10


def test_a_mark_stands_at_its_place(page):
    chart = next(part for part in page.split("<figure") if "<h3>Losses</h3>" in part)
    x0, x1, left, right = (float(v) for v in re.search(r'data-x="([^"]*)"', chart)[1].split())
    place = float(re.search(r'<g class="event control">.*?<circle cx="([\d.]+)"', chart)[1])
    assert (x0, x1) == (0, 100)
    assert place == pytest.approx(left + 0.7 * (right - left), abs=0.1)


def test_names_and_messages_are_escaped(tmp_path):
    bad = "<script>alert('x')</script>&\""
    path = make_run(tmp_path / "a<b>&c", total=20_000, tick=1_000, samples=2)
    config = json.loads((path / "config.json").read_text())
    config |= {"preset": bad, "command": ["mien", bad], "machine": {bad: bad}}
    config["store"] |= {"attributes": [bad], "path": bad}
    config["config"]["data"]["attributes"] = [bad]
    (path / "config.json").write_text(json.dumps(config))
    layout = json.loads((path / "samples" / "grid.json").read_text())
    (path / "samples" / "grid.json").write_text(json.dumps({**layout, "rows": [bad] * 4}))
    write_jsonl(
        path / "events.jsonl", [{"nimg": 5_000, "time_s": 1.0, "kind": kind, "message": bad, bad: bad} for kind in ("diagnosis", bad)]
    )
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        line["protocol"] = {bad: bad}
        line["details"] |= {
            "verdict": bad,
            "warnings": [bad],
            "interval": bad,
            "leaks": [{"asked": bad, "judged": bad}],
            "sweep": {bad: [[0.0, 1.0]]},
            "by_combination": {bad: {"why": bad}},
            "combinations": {bad: {bad: 1.0}},
            "rare_combinations": [{"combination": bad}],
        }
    metrics[-3]["details"]["per_attribute"] = metrics[-1]["details"]["per_attribute"] = {bad: {"accuracy": 1.0}}
    metrics[-2]["details"] |= {"attributes": [bad, "b"], "judged": [bad, *metrics[-2]["details"]["judged"][1:]]}
    write_jsonl(path / "metrics.jsonl", [*metrics, {**metrics[0], "metric": bad}])
    architecture = json.loads((path / "architecture.json").read_text())
    architecture["generator"][0] |= {"name": bad, "kind": bad}
    (path / "architecture.json").write_text(json.dumps(architecture))
    page = render(Run.open(path), with_reals=True)
    assert page.count("<script>") == 1 and "alert('x')" not in page
    tree = Tree(page)
    assert bad in tree.text and "a<b>&c" in tree.text


def strip(path: Path, *names: str) -> None:
    for name in names:
        for file in path.glob(name):
            file.unlink()


BROKEN = {
    "just begun": lambda path: strip(path, "*.jsonl", "status.json", "samples/*", "architecture.json"),
    "two ticks": lambda path: (strip(path, "metrics.jsonl", "samples/*"), cut_to(path / "scalars.jsonl", 2)),
    "one tick": lambda path: (strip(path, "metrics.jsonl", "events.jsonl"), cut_to(path / "scalars.jsonl", 1)),
    "cut lines": lambda path: [cut_short(path / f"{name}.jsonl") for name in ("scalars", "events", "metrics")],
    "nothing is a number": lambda path: spoil(path, float("nan")),
    "nulls": lambda path: spoil(path, None),
    "text for numbers": lambda path: spoil(path, "soon"),
    "damaged pictures": lambda path: [cut_short(file) for file in path.glob("samples/*.png")],
    "no layout": lambda path: strip(path, "samples/grid.json"),
    "another layout": lambda path: (path / "samples" / "grid.json").write_text('{"rows": 4, "columns": "x"}'),
    "layout beyond the picture": lambda path: (path / "samples" / "grid.json").write_text(
        '{"rows": ["a", "b"], "columns": 99, "cell_px": 64, "padding_px": 2}'
    ),
    "damaged architecture": lambda path: (path / "architecture.json").write_text("{"),
    "damaged status": lambda path: cut_short(path / "status.json"),
    "strange architecture": lambda path: (path / "architecture.json").write_text('{"generator": [{"name": "a"}], "discriminator": []}'),
    "bare config": lambda path: (path / "config.json").write_text('{"format": "mien-run/1"}'),
    "strange control": lambda path: write_jsonl(
        path / "metrics.jsonl",
        [
            {
                "nimg": 1,
                "metric": "leakage",
                "value": 0.5,
                "details": {"attributes": ["a"], "judged": ["b"], "leakage": [[1], 2], "leaks": [3]},
            },
            {
                "nimg": 1,
                "metric": "control",
                "value": 0.5,
                "details": {"per_attribute": ["a"], "combinations": {"a": 3}, "sweep": {"a": [[1], 2]}},
            },
            {"nimg": 1, "metric": "identity", "value": 0.5, "details": 3},
            {"metric": "fid"},
            {"nimg": 1, "metric": "fid", "value": 1, "protocol": 3},
        ],
    ),
}


def cut_to(path: Path, lines: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-37])


def spoil(path: Path, value: object) -> None:
    for name in ("scalars", "metrics"):
        lines = [json.loads(line) for line in (path / f"{name}.jsonl").read_text().splitlines()]
        spoilt = [{key: value if isinstance(given, float) and key != "time_s" else given for key, given in line.items()} for line in lines]
        write_jsonl(path / f"{name}.jsonl", spoilt)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_or_early_run_still_has_a_page(what, tmp_path):
    path = make_run(tmp_path / "run", total=20_000, tick=1_000, samples=2)
    BROKEN[what](path)
    tree = Tree(render(Run.open(path)))
    assert "nan" not in re.findall(r"[a-z]+", tree.text.lower())
    assert not any("nan" in (attrs.get("d") or "") or "nan" in (attrs.get("cy") or "") for _, attrs in tree.tags)


def test_not_a_run(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        Run.open(tmp_path)


def test_verdict_says_what_matters(finished, tmp_path):
    best = headline(Run.open(finished))
    said = verdict(Run.open(finished))
    assert said.startswith("Finished after 100,000 real images in ")
    assert f"best fd-face {best.value:.1f} (" in said and "real against real 2.90" in said and f"at {best.nimg:,} images" in said
    assert "diagnosed: D overpowers G; " in said and "rolled back once" in said
    early = make_run(tmp_path / "early", total=4_000, tick=1_000, pictures=False)
    strip(early, "metrics.jsonl", "events.jsonl")
    (early / "status.json").write_text(
        json.dumps({"state": "running", "pid": 2**22 + 1, "nimg": 4_000, "total_nimg": 2_000_000, "updated_s": 0})
    )
    assert verdict(Run.open(early)).startswith("Interrupted (its process is gone) after 4,000 of 2 million real images")
    assert "not scored yet" in verdict(Run.open(early))


def test_best_is_within_one_protocol(tmp_path):
    """A low score under an easier protocol must not win over those of the newest one."""
    path = make_run(tmp_path / "run", total=20_000, tick=1_000, pictures=False)
    line = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    easy = {**line, "value": 0.1, "protocol": {**line["protocol"], "n_fake": 50_000}}
    write_jsonl(
        path / "metrics.jsonl",
        [easy, {**line, "value": 30.0}, {**line, "value": 20.0, "nimg": 3_000}, {**line, "value": 25.0, "nimg": 4_000}],
    )
    best = headline(Run.open(path))
    assert (best.value, best.nimg) == (20.0, 3_000)


def test_a_run_is_named_by_the_score_of_its_best_snapshot(tmp_path):
    """By no distance of a snapshot that is gone, and by none of the test split."""
    path = make_run(tmp_path / "run", total=20_000, tick=1_000, pictures=False)
    line = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    said = [(2_000, 5.0, "val"), (3_000, 20.0, "val"), (4_000, 25.0, "val"), (3_000, 1.0, "test")]
    write_jsonl(path / "metrics.jsonl", [{**line, "nimg": nimg, "value": value, "protocol": {**line["protocol"], "split": split}}
                                         for nimg, value, split in said])  # fmt: skip
    assert headline(Run.open(path)).value == 5.0  # without any snapshot, the best that was scored
    (path / "snapshots").mkdir()
    for nimg in (3_000, 4_000):
        (path / "snapshots" / f"{nimg // 1000:06d}kimg.safetensors").touch()
    assert headline(Run.open(path)).value == Run.open(path).best_score()["value"] == 20.0
    write_jsonl(path / "metrics.jsonl", [{**line, "nimg": 3_000, "value": 1.0, "protocol": {"split": "test"}}, {**line, "metric": "twins"}])
    assert headline(Run.open(path)).value == 1.0  # there is no other distance


def test_a_setting_that_is_a_table_is_one_setting(tmp_path):
    path = make_run(tmp_path / "run", total=4_000, tick=1_000, pictures=False)
    config = json.loads((path / "config.json").read_text())
    config["config"]["data"]["balance"] = {"Male=1": 2.0}
    config["provenance"]["data.balance"] = "preset balanced"
    (path / "config.json").write_text(json.dumps(config))
    assert recipe(Run.open(path))["data.balance"] == {"Male=1": 2.0}
    text = Tree(render(Run.open(path))).text
    assert "data.balanceMale=1: 2preset balanced" in text and "not recorded" not in text


def test_pauses_are_not_work(tmp_path):
    path = make_run(tmp_path / "run", total=20_000, tick=1_000, pictures=False)
    strip(path, "metrics.jsonl")
    write_jsonl(
        path / "scalars.jsonl", [{"nimg": 1_000 * i, "time_s": 10.0 * i + (5_000 if i > 3 else 0), "loss_d": 1.0} for i in range(1, 7)]
    )
    write_jsonl(path / "events.jsonl", [{"nimg": 0, "time_s": 0.0, "kind": "start", "message": ""},
                                        {"nimg": 3_000, "time_s": 5_030.0, "kind": "resume", "message": ""}])  # fmt: skip
    assert time_s(Run.open(path)) == 30 + 30


def test_the_command_is_said_without_this_machines_paths(tmp_path):
    path = make_run(tmp_path / "run", total=4_000, tick=1_000, pictures=False)
    config = json.loads((path / "config.json").read_text())
    for program in ("/home/someone/env/bin/mien", "/usr/lib/python3/mien/__main__.py"):
        (path / "config.json").write_text(json.dumps({**config, "command": [program, "train", "my faces"]}))
        assert command(Run.open(path)) == "mien train 'my faces'"


def test_reals_only_when_asked(finished, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    real = np.stack([face(500 + i, 0, 0, 1.0) for i in range(20)])
    real[:, :4, :4] = (255, 0, 255)  # a corner that no generated face here has
    np.save(store / "images.npy", real)
    path = make_run(tmp_path / "run", total=20_000, tick=1_000, samples=2)
    config = json.loads((path / "config.json").read_text())
    config["store"]["path"] = str(store)
    (path / "config.json").write_text(json.dumps(config))
    assert not any(shows_the_corner(picture) for picture in shown(render(Run.open(path))))
    assert any(shows_the_corner(picture) for picture in shown(render(Run.open(path), with_reals=True)))
    assert "is not there" in render(Run.open(finished), with_reals=True)


def shown(page: str) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", page)
    ]


def shows_the_corner(picture: np.ndarray) -> bool:
    return bool(np.abs(picture[1:3, 1:3].astype(int) - (255, 0, 255)).max() < 40)


def test_cells_are_cut_where_they_are(finished, page):
    """The first row of the page's newest grid is, pixel for pixel, the first row of the PNG."""
    grid = np.asarray(Image.open(sorted((finished / "samples").glob("*kimg.png"))[-1]))
    strip_shown = next(picture for picture in shown(page) if picture.shape == (CELL, 8 * (CELL + 2) - 2, 3))
    assert np.array_equal(strip_shown[:, :CELL], grid[2 : 2 + CELL, 2 : 2 + CELL])
    assert np.array_equal(strip_shown[:, CELL + 2 : 2 * CELL + 2], grid[2 : 2 + CELL, 4 + CELL : 4 + 2 * CELL])


def test_what_the_metrics_write_of_control_is_what_the_page_reads(tmp_path):
    """Real scores, not drawn ones: each of their tables is on the page, and the drawn run's lines have their keys."""
    from mien.metrics.attribute_control import Answers, control_scores

    rng, names = np.random.default_rng(0), ["Male", "Smiling"]
    conditions = rng.integers(0, 2, (60, 2))
    on, off = np.full((2, 60, 3), 0.1), np.full((2, 60, 3), 0.1)
    on[[0, 1], :, [0, 1]] = 0.9
    on[0, :15, 0] = 0.2  # a quarter of the men asked for are not seen
    answers = Answers((0, 1), on[0], off, on, np.stack([np.full(60, 0.7), np.full(60, 0.3)]), 1.0, conditions)
    real = {"real_attributes": conditions, "real_probabilities": np.column_stack([conditions, 1 - conditions[:, :1]]).astype(float)}
    measured = control_scores(answers, asked=names, judged=[*names, "Young"], **real)
    path = make_run(tmp_path / "run", total=20_000, tick=1_000, pictures=False)
    drawn = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in drawn:
        if line["metric"] in measured:
            assert set(line["details"]) >= {"interval", *measured[line["metric"]][0].details}
    lines = [
        {"nimg": 20_000, "metric": metric, "value": estimate.value, "low": estimate.low, "high": estimate.high, "floor": floor,
         "details": estimate.details} for metric, (estimate, floor) in measured.items()
    ]  # fmt: skip
    write_jsonl(path / "metrics.jsonl", lines)
    text = "".join(Tree(render(Run.open(path))).text.split())
    assert "Accuracyofeachattributeaskedfor" in text and "Male87.5%75.0%100.0%100.0%" in text
    assert "Identitybyattribute" in text and "Male0.700Smiling0.300" in text
    assert "Outlined:theattributeitself" in text  # the leakage matrix


@pytest.mark.parametrize(("metric", "said"), [("fid", "FID"), ("recall", "Recall"), ("recall-face", "Recall, face features"),
                                              ("fd-inception-768", "Fréchet distance, inception-768 features"),
                                              ("fd-infinite-face", "Fréchet distance at infinite N, face features"),
                                              ("path-length", "Path length"), ("another-face", "another-face")])  # fmt: skip
def test_a_metric_is_titled_with_the_features_it_was_measured_in(metric, said):
    assert title(metric) == said
