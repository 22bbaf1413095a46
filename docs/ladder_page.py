"""What docs/make_ladder.py writes: the page, its tables, its pictures. Everything is read from the run directories."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mien.config import MAY_CHANGE_ON_RESUME, differences, parse_count, resolve
from mien.data.store import FaceStore
from mien.reports import findings
from mien.reports.compare import markdown_table
from mien.reports.findings import Score
from mien.reports.page import number
from mien.rules import settle
from mien.runs import Run

ALL = ("fd", "kid", "prdc", "control", "memorization")
SPLIT = "val"
DASH = "–"


@dataclass(frozen=True)
class Rung:
    name: str
    title: str
    preset: str
    images: str
    seeds: tuple[int, ...]
    set: tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """store, runs: as the printed commands name them; note: of the machine; against: the rungs that the others are compared with."""

    note: str
    store: str
    runs: str
    against: tuple[str, ...]
    rungs: tuple[Rung, ...]


@dataclass(frozen=True)
class Attempt:
    """A run of a rung. snapshots: (nimg, file), oldest first."""

    rung: Rung
    seed: int
    run: Run
    snapshots: list[tuple[int, Path]]

    @property
    def last_nimg(self) -> int:
        return self.snapshots[-1][0]


def train_command(rung: Rung, seed: int | str, *, store: str, runs: str, device: str | None = None) -> list[str]:
    command = ["mien", "train", store, "--preset", rung.preset, "--images", rung.images, "--seed", str(seed)]
    command += ["--run", f"{runs}/{rung.name}-s{seed}"]
    command += [word for setting in rung.set for word in ("--set", setting)]
    return command + (["--device", device] if device else [])


def deviations(attempt: Attempt) -> list[str]:
    """What the run did otherwise than the command that the page prints for it."""
    rung, said = attempt.rung, attempt.run.config
    overrides = [*rung.set, ("train.images", parse_count(rung.images)), ("train.seed", attempt.seed)]
    asked, _ = settle(resolve(rung.preset, overrides).config, said["store"]["size"])
    changed = differences(asked.model_dump(mode="json"), said["config"])
    return [change for change in changed if not change.startswith(tuple(set(MAY_CHANGE_ON_RESUME) - {"train.images"}))]


def eval_command(model: str, metrics: Sequence[str], *, store: str, features: str = "face", weights: str | None = None) -> list[str]:
    command = ["mien", "eval", model, "--data", store, "--split", SPLIT, "--metrics", ",".join(metrics)]
    return command + ([] if features == "face" else ["--features", features]) + (["--weights", weights] if weights else [])


def score_of(run: Run, metric: str, nimg: int, store: FaceStore) -> Score | None:
    """The newest score of a snapshot under this page's protocol: the whole validation split of `store`, seed 0, no truncation."""
    asked = {"store": store.digest, "split": SPLIT, "n_real": len(store.indices(SPLIT)), "truncation": 1.0, "seed": 0}
    fits = [score for score in findings.scores(run) if score.metric == metric and score.nimg == nimg
            and "precision" not in score.protocol and all(score.protocol.get(key) == value for key, value in asked.items())]  # fmt: skip
    return fits[-1] if fits else None


# --- what the runs say ------------------------------------------------------------------------------------------------


def hours_at(run: Run, nimg: int) -> float:
    """Time at work up to `nimg`, without pauses: each tick's images by its own speed."""
    total, before = 0.0, 0
    for row in run.scalars():
        speed = findings.finite(row.get("images_per_s"))
        if speed and before < nimg:
            total += (min(int(row["nimg"]), nimg) - before) / speed
        before = int(row["nimg"])
    return total / 3600


def images_per_s(run: Run) -> float | None:
    speeds = [speed for row in run.scalars() if (speed := findings.finite(row.get("images_per_s")))]
    return statistics.median(speeds) if speeds else None


def parameters(run: Run) -> tuple[int, int]:
    """Of G and of D."""
    told = run.architecture or {}
    g, d = (sum(int(row.get("parameters") or 0) for row in told.get(role, ())) for role in ("generator", "discriminator"))
    return g, d


def curve(attempt: Attempt, store: FaceStore, *, over: str) -> list[tuple[float, float]]:
    """(thousands of images or hours, fd-face) of each scored snapshot."""
    found = [(nimg, score) for nimg, _ in attempt.snapshots if (score := score_of(attempt.run, "fd-face", nimg, store))]
    return [(nimg / 1000 if over == "images" else hours_at(attempt.run, nimg), score.value) for nimg, score in found]


def at(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """A curve between its points, straight in logarithms; None outside of them."""
    if not points or not points[0][0] <= x <= points[-1][0] * (1 + 1e-9):
        return None
    xs, ys = np.log([point[0] for point in points]), np.log([point[1] for point in points])
    return float(np.exp(np.interp(np.log(x), xs, ys)))


def ratio(mine: Sequence[Attempt], theirs: Sequence[Attempt], store: FaceStore, *, over: str) -> tuple[float, float] | None:
    """(mean distance of `mine` / that of `theirs`, where): at the most images, or hours, that every one of them reached."""
    curves = [[curve(each, store, over=over) for each in group] for group in (mine, theirs)]
    ends = [points[-1][0] for group in curves for points in group if points]
    if not ends:
        return None
    x = min(ends)
    means = [[value for points in group if (value := at(points, x)) is not None] for group in curves]
    if any(len(found) < len(group) for found, group in zip(means, curves)):
        return None
    return statistics.fmean(means[0]) / statistics.fmean(means[1]), x


# --- the page ---------------------------------------------------------------------------------------------------------

COLUMNS = {
    "fd-face": "FD face", "fd-inception-768": "FD inception-768", "kid-face": "KID face", "precision-face": "precision",
    "recall-face": "recall", "control": "as asked", "leakage": "leakage", "memorization": "nearer to training",
}  # fmt: skip


def cell(attempts: Sequence[Attempt], metric: str, store: FaceStore) -> str:
    """A run's score with its interval; of several seeds the mean and the range."""
    scores = [score for each in attempts if (score := score_of(each.run, metric, each.last_nimg, store))]
    if not scores:
        return DASH
    values = [score.value for score in scores]
    if len(values) > 1:
        return f"{number(statistics.fmean(values))} ({number(min(values))} to {number(max(values))}, {len(values)} seeds)"
    low, high = scores[0].low, scores[0].high
    return number(values[0]) + (f" ({number(low)} to {number(high)})" if low is not None and high is not None else "")


def floors(attempts: Sequence[Attempt], store: FaceStore) -> list[str]:
    """What real faces get, metric by metric."""
    found = []
    for metric in COLUMNS:
        scores = [score_of(each.run, metric, each.last_nimg, store) for each in attempts]
        told = [score.floor for score in scores if score and score.floor is not None]
        found.append(number(told[0]) if told else DASH)
    return found


def scores_table(rungs: dict[str, list[Attempt]], store: FaceStore) -> str:
    head = ["rung", "images", *COLUMNS.values()]
    rows = []
    for attempts in rungs.values():
        seen = ", ".join(sorted({f"{each.last_nimg:,}" for each in attempts}))
        rows.append([attempts[0].rung.title, seen, *(cell(attempts, metric, store) for metric in COLUMNS)])
    rows.append(["real against real", DASH, *floors([each for attempts in rungs.values() for each in attempts], store)])
    return markdown_table(head, rows)


def digest(rungs: dict[str, list[Attempt]], store: FaceStore) -> str:
    """The table that the README shows: each rung's main scores without their intervals."""
    metrics = ("fd-face", "precision-face", "recall-face", "control")
    rows = []
    for attempts in rungs.values():
        hours = statistics.fmean(hours_at(each.run, each.last_nimg) for each in attempts)
        cells = [cell(attempts, metric, store).split(" (")[0] for metric in metrics]
        rows.append([attempts[0].rung.title, f"{attempts[0].last_nimg:,}", f"{60 * hours:.0f}", *cells])
    named = [f"{COLUMNS[metric]} \N{UPWARDS ARROW}" for metric in metrics[1:]]
    return markdown_table(["recipe", "images", "minutes", f"{COLUMNS['fd-face']} \N{DOWNWARDS ARROW}", *named], rows)


BEGIN, END = "<!-- written by docs/make_ladder.py -->", "<!-- end -->"


def write_digest(readme: Path, table: str) -> None:
    """Put the table between the two comments of the README."""
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN, 1)
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def costs_table(rungs: dict[str, list[Attempt]]) -> str:
    rows = []
    for attempts in rungs.values():
        g, d = parameters(attempts[0].run)
        speeds = [speed for each in attempts if (speed := images_per_s(each.run))]
        hours = [hours_at(each.run, each.last_nimg) for each in attempts]
        machines = sorted({machine(each.run) for each in attempts})
        rows.append([attempts[0].rung.title, f"{g:,}", f"{d:,}", number(statistics.fmean(speeds)) if speeds else DASH,
                     f"{statistics.fmean(hours):.2f}", "; ".join(machines)])  # fmt: skip
    return markdown_table(["rung", "parameters of G", "of D", "images/s", "hours", "on"], rows)


def machine(run: Run) -> str:
    told = run.config.get("machine", {})
    return str(told.get("gpu") or f"{told.get('threads')} thread(s) of {told.get('cores')} CPU cores")


def ratios_table(spec: Spec, rungs: dict[str, list[Attempt]], store: FaceStore) -> str:
    bases = [name for name in spec.against if name in rungs]
    head = ["rung", *(f"to {base}, equal {what}" for base in bases for what in ("images", "time"))]
    rows = []
    for name, attempts in rungs.items():
        cells = []
        for base in bases:
            for over, unit in (("images", "k images"), ("hours", " h")):
                found = None if name == base else ratio(attempts, rungs[base], store, over=over)
                cells.append(DASH if found is None else f"{found[0]:.2f} (at {found[1]:.{0 if over == 'images' else 2}f}{unit})")
        rows.append([attempts[0].rung.title, *cells])
    return markdown_table(head, rows)


def commands(spec: Spec, rungs: dict[str, list[Attempt]], *, weights: bool) -> str:
    lines = []
    for attempts in rungs.values():
        for each in attempts:
            lines.append(shlex.join(train_command(each.rung, each.seed, store=spec.store, runs=spec.runs)))
    first = next(iter(rungs.values()))[0]
    model = f"{spec.runs}/{first.rung.name}-s{first.seed}/snapshots/{first.snapshots[-1][1].name}"
    lines.append(shlex.join(eval_command(model, ALL, store=spec.store)))
    if weights:
        lines.append(shlex.join(eval_command(model, ["fd", "kid"], store=spec.store, features="inception-768", weights="FILE")))
    return "\n".join(lines)


TEXT = """# The quality ladder

Written by `docs/make_ladder.py` from the runs that [{spec}]({spec}) names; nothing here was typed in. The faces are generated;
the data are CelebA (store `{data}`: {train:,} training and {val:,} validation images, {size} px, crop `{crop}`), for research only.

Each rung is judged by its **last** snapshot, not its best: choosing one by the split that it is judged by would flatter it. Every score
is against the whole validation split; nobody looked at the test split, and no recipe was chosen by it.

{scores}

FD: Frechet distance, lower is better; `face`: the bundled judge's features, `inception-768`: the FID Inception up to Mixed_6e (not FID).
Precision and recall by nearest neighbours in `face`. As asked: how often the judge sees the attributes that were asked for. Leakage: how
far the others move with them. Nearer to training: the share of faces nearer to a training image than all but 1 % of held-out ones are;
.01 is what no copying gives. In brackets: the 95 % interval of one run's faces, or, of several seeds, the range. Another seed of one
recipe moves its distance by more than that interval ([experiments.md](experiments.md)).

{costs}

Images/s: the median tick. Hours: time at work up to the last snapshot, samples and snapshots included. {note}

## Against the plain recipes

FD face, divided by that of the rung named; below 1 is better. Equal images, or time: at the most that both reached, between snapshots
straight in logarithms.

{ratios}

![FD face over images and over hours](images/{stem}-curves.png)

## Faces

Faces number 0 to 47 of each rung, nothing picked out, under conditions as frequent as in the data.

![48 uncurated faces of each rung](images/{stem}-faces.jpg)

## Commands

```sh
{commands}
```

Each snapshot is scored as the last lines show for one of them. `python docs/make_ladder.py {store} --spec docs/{spec} --train`
does all of it, and goes on where it was interrupted.
{remarks}"""


def write_page(spec: Spec, rungs: dict[str, list[Attempt]], store: FaceStore, *, out: Path, weights: bool, name: str) -> None:
    """`name`: of the file that the spec was read from."""
    missing = [rung.title for rung in spec.rungs if rung.name not in rungs]
    remarks = [f"Not run yet: {', '.join(missing)}."] if missing else []
    remarks += [f"`{each.run.name}` was trained with another recipe than its command says: {'; '.join(found)}."
                for attempts in rungs.values() for each in attempts if (found := deviations(each))]  # fmt: skip
    text = TEXT.format(
        data=Path(spec.store).name, train=len(store.indices("train")), val=len(store.indices(SPLIT)), size=store.size, crop=store.crop,
        scores=scores_table(rungs, store), costs=costs_table(rungs), ratios=ratios_table(spec, rungs, store),
        commands=commands(spec, rungs, weights=weights), store=spec.store,
        note=spec.note, spec=name, stem=out.stem, remarks="".join(f"\n{remark}\n" for remark in remarks),
    )  # fmt: skip
    out.write_text(text, encoding="utf-8")


# --- pictures ---------------------------------------------------------------------------------------------------------


TICKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300)


def draw_curves(rungs: dict[str, list[Attempt]], store: FaceStore, path: Path) -> None:
    """fd-face of every run, over images and over hours; a colour a rung, a line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ends = [score_of(each.run, "fd-face", each.last_nimg, store) for attempts in rungs.values() for each in attempts]
    floor = next((score.floor for score in ends if score and score.floor), None)
    heights = [floor] if floor else []
    figure, panels = pyplot.subplots(1, 2, figsize=(9.5, 5), sharey=True, layout="constrained")
    for panel, over, label in zip(panels, ("images", "hours"), ("thousands of images", "hours at work")):
        for i, attempts in enumerate(rungs.values()):
            for k, each in enumerate(attempts):
                points = curve(each, store, over=over)
                heights += [value for _, value in points]
                x, y = [x for x, _ in points], [y for _, y in points]
                panel.plot(x, y, color=f"C{i}", marker="o", markersize=3, label=attempts[0].rung.title if k == 0 else None)
        if floor:
            panel.axhline(floor, color="0.6", linestyle="--", linewidth=1, label="real against real")
        panel.set(xlabel=label, yscale="log", xlim=(0, None), yticks=TICKS, yticklabels=[f"{tick:g}" for tick in TICKS])
        panel.minorticks_off()
        panel.grid(alpha=0.25)
    if heights:
        panels[0].set_ylim(min(heights) * 0.85, max(heights) * 1.15)
    panels[0].set_ylabel("Frechet distance, face features (lower is better)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_faces(rungs: dict[str, list[Attempt]], path: Path, *, across: int = 2) -> None:
    """48 uncurated faces of each rung's first run, side by side with their titles."""
    from PIL import Image, ImageDraw, ImageFont

    from mien.explore.latents import latents
    from mien.explore.load import load_generator
    from mien.explore.sample import attribute_rows, render
    from mien.models.pictures import grid

    tiles = []
    for attempts in rungs.values():
        generator = load_generator(attempts[0].snapshots[-1][1])
        images = render(generator, latents(range(48), generator.z_dim), attribute_rows(generator, {}, 48, 0))
        tiles.append((f"{attempts[0].rung.title}, {attempts[0].last_nimg:,} images", grid(images, columns=8)))
    margin, head = 14, 30
    width, height = max(tile.width for _, tile in tiles), max(tile.height for _, tile in tiles)
    across = min(across, len(tiles))
    down = -(-len(tiles) // across)
    sheet = Image.new("RGB", (across * (width + margin) + margin, down * (height + head + margin) + margin), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for i, (title, tile) in enumerate(tiles):
        left, top = margin + i % across * (width + margin), margin + i // across * (height + head + margin)
        pen.text((left + 2, top + 4), title, fill="black", font=font)
        sheet.paste(tile, (left, top + head))
    sheet.save(path, quality=93, subsampling=0)  # a fifth of a PNG, and no difference that an eye finds
