"""`mien eval`: score a model against real faces. Every number comes with an interval, a floor and its protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, print_json, progress, say
from mien.errors import UserError, did_you_mean
from mien.runs import Run

if TYPE_CHECKING:
    from mien.data.store import FaceStore
    from mien.explore.load import LoadedGenerator
    from mien.metrics.protocol import Score
    from mien.sections import Eval

TORCHEVAL = "torcheval"


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, snapshot, bundled name, hf:user/repo, folder of PNGs, or store.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="The store of real faces to compare with.")],
    metrics: Annotated[str | None, typer.Option(metavar="A,B", help="fd, kid, prdc, control, memorization, latent: these "
                                         "unless told; and groups: who is drawn less often than there is.")] = None,
    features: Annotated[str, typer.Option(metavar="NAME", help="face, imagenet, inception, inception-768, torchvision-inception")] = "face",
    count: Annotated[str, typer.Option(metavar="N", help="Images on each side: 2000, 10k; at most what the split has.")] = "10k",
    split: Annotated[str, typer.Option(metavar="NAME", help="train, val or test, of the reals; of a store of generated "
                                       "faces in the model's place all are taken.")] = "val",
    seed: Annotated[int, typer.Option(min=0, help="Draws the faces and the reference.")] = 0,
    truncation: Annotated[float, typer.Option(help="Scale of the latents.")] = 1.0,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Weights of the features, in place of the usual ones.")] = None,
    precision: Annotated[str, typer.Option(metavar="fp32|bf16", help="Of the convolutions that see the faces. bf16: with --features "
                                           "face; never ranked with fp32.")] = "fp32",
    protocol: Annotated[str | None, typer.Option(metavar="NAME", help="torcheval: its own distance, with torchvision-inception.")] = None,
    latents: Annotated[int, typer.Option(min=32, help="How many faces the control test asks for each attribute.")] = 1000,
    bias_curve: Annotated[bool, typer.Option("--bias-curve", help="Also the distance at infinite N.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure the real images anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Scores with protocol and details, as JSON.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Score a model: distances, precision and recall, control and leakage, memorisation, variety.

    mien eval runs/demo --data faces --count 2000

    Scores of a run are also written to its metrics.jsonl. The floor is what other real images get in the model's place.
    """
    from mien.config import parse_count
    from mien.data.store import open_store
    from mien.engine.build import choose_device
    from mien.engine.distributed import joined, local_device
    from mien.metrics import evaluate as scoring

    chosen: list[str] | None = [name.strip() for name in metrics.split(",") if name.strip()] if metrics else None
    if protocol is not None:
        chosen, features = _protocol(protocol, chosen, features)
    store = open_store(data)
    where = choose_device(local_device(device))
    subject = _open_model(model, str(where))
    with joined(where, shared=device == str(where)) as ranks, _Bar() if ranks.leads else contextlib.nullcontext() as bar:
        scores = scoring.evaluate(
            subject, store, metrics=chosen, features=features, count=parse_count(count), split=split, seed=seed, truncation=truncation,
            device=str(where), weights=weights, latents=latents, with_bias_curve=bias_curve, cache=not no_cache, progress=bar,
            on_problem=note, precision=precision, ranks=ranks)  # fmt: skip
    if not ranks.leads:
        return
    if not scores:
        raise UserError("Nothing could be scored; the lines above say why.")
    if as_json:
        print_json([score.line() for score in scores])
    else:
        _show(scores)
    try:
        record(model, subject, scores)
    except UserError as problem:  # a config.json of something else beside the model, say: the scores stand all the same
        note(f"The scores were not written to a run: {problem}")


def check_settings(settings: Eval, store: FaceStore) -> None:
    """Raises UserError when snapshots could not be scored as a recipe's [eval] asks: before the run, not at the first score."""
    from mien.metrics.evaluate import METRICS
    from mien.metrics.features import build_extractor

    unknown = [metric for metric in settings.metrics if metric not in METRICS]
    if unknown:
        known = ", ".join(METRICS)
        raise UserError(f"eval.metrics: no metric is named {unknown[0]}.{did_you_mean(unknown[0], METRICS)} There are: {known}.")
    if not len(store.indices(settings.split)):
        raise UserError(f"eval.split: {store.path} has no {settings.split} images to score against; set another, or eval.every_kimg=0.")
    build_extractor(settings.features)


def score_snapshot(run: Run, path: Path, store: FaceStore, settings: Eval, *, nimg: int) -> str:
    """Score a snapshot of a run in progress, write the scores to its metrics.jsonl, and return a line for the log.

    A snapshot that cannot be scored (a collapsed or diverged generator) does not end the run: the line, and an event, say why.
    """
    from mien.engine.build import choose_device
    from mien.explore.load import load_generator
    from mien.metrics import evaluate as scoring

    problems: list[str] = []
    try:
        device = str(choose_device(None))
        scores = scoring.evaluate(load_generator(path, device=device), store, metrics=settings.metrics, features=settings.features,
                                  count=settings.count, split=settings.split, device=device, on_problem=problems.append)  # fmt: skip
    except UserError as problem:
        scores, problems = [], [str(problem)]
    for score in scores:
        run.append("metrics", nimg, **score.record())
    told = ", ".join(_brief(score) for score in scores)
    seconds = sum(score.details["seconds"] for score in scores if "seconds" in score.details)
    line = f"scored {path.stem}: " + "; ".join(filter(None, [told, *problems])) + (f" ({seconds:.0f} s)" if scores else "")
    run.event(nimg, "score", line)
    return line


def _protocol(name: str, metrics: list[str] | None, features: str) -> tuple[list[str], str]:
    if name != TORCHEVAL:
        raise UserError(f"No protocol is named {name}; there is {TORCHEVAL}, and without --protocol mien's own.")
    if metrics is not None or features not in ("face", "torchvision-inception"):
        raise UserError("--protocol torcheval chooses metric and features itself: leave out --metrics and --features.")
    return [TORCHEVAL], "torchvision-inception"


def _open_model(model: str, device: str) -> LoadedGenerator | FaceStore | Path:
    """What MODEL stands for: a store, a folder of pictures, or whatever `load_generator` knows."""
    from mien.data.store import open_store
    from mien.explore.load import is_generator, load_generator

    path = Path(model)
    if path.is_dir() and not (path / "config.json").exists():
        if (path / "manifest.json").exists():
            return open_store(path)
        if not any(is_generator(file) for file in path.glob("*.json")):
            return path
    return load_generator(model, device=device)


def record(model: str, subject: Any, scores: list[Score]) -> None:
    """Into metrics.jsonl, when the model is of a run; into that of its folder ema, when `mien ema` made it: the run is not judged by it."""
    from mien.explore.load import LoadedGenerator

    if not Path(model).exists() or not isinstance(subject, LoadedGenerator):
        return
    folder = next((parent for parent in (Path(model), *Path(model).resolve().parents[:2]) if (parent / "config.json").exists()), None)
    if folder is None:
        return
    run = Run.open(folder)
    made = subject.path.parent.name == "ema"
    file, more = ("ema/metrics", {"snapshot": subject.path.stem}) if made else ("metrics", {})
    for score in scores:
        run.append(file, score.protocol.nimg or 0, **more, **score.record())
    note(f"{len(scores)} scores written to {run.path / file}.jsonl.")


def _show(scores: list[Score]) -> None:
    """A table, what it cannot hold in sentences, and the protocol."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", header_style="bold")
    for column in ("value", "95 % interval", "reals get", "s"):
        table.add_column(column, justify="right")
    for score in scores:
        interval = "-" if score.low is None or score.high is None else f"{score.low:.4g} .. {score.high:.4g}"
        floor = "-" if score.floor is None else f"{score.floor:.4g}"
        table.add_row(score.metric, f"{score.value:.4g}", interval, floor, f"{score.details.get('seconds', 0):.1f}")
    Console().print(table)
    for sentence in _sentences(scores):
        say(sentence)
    say(f"Protocol: {scores[0].protocol.line()}.")


def _sentences(scores: list[Score]) -> list[str]:
    found: list[str] = []
    for score in scores:
        details = score.details
        found += [f"{score.metric}: {word}." for word in details.get("warnings") or []]
        if details.get("verdict"):
            found.append(f"{score.metric}: {details['verdict']}.")
        if score.metric == "control":
            found.append("control: " + ", ".join(f"{name} {value:.1%} (reals {_percent(details.get('ceiling', {}).get(name))})"
                                                 for name, value in details["accuracy"].items()) + ".")
        if score.metric == "leakage":
            found += [f"leakage: asking for {leak['asked']} moves {leak['judged']} by {leak['leakage']:+.2f} "
                      f"({leak['low']:+.2f} .. {leak['high']:+.2f}) beyond the {leak['explained']:+.2f} that the data explain."
                      for leak in details["leaks"][:5]]
    first = scores[0].details
    found += [f"Note: {word}." for word in first.get("notes", [])]
    if first.get("floor_from"):
        found.append(f"'reals get': {first['floor_from']}.")
    if scores[-1].details.get("reals_from_cache"):
        found.append("Features of the real images came from the cache.")
    return found


def _brief(score: Score) -> str:
    floor = "" if score.floor is None else f", reals {score.floor:.4g}"
    half = "" if score.low is None or score.high is None else f" [{score.low:.4g}, {score.high:.4g}{floor}]"
    return f"{score.metric} {score.value:.4g}{half}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


class _Bar:
    """One progress bar after another, as stages come: called with (stage, images done, images in all)."""

    def __init__(self) -> None:
        self.stage: str | None = None
        self.done = 0
        self.advance: Callable[[int], None] | None = None
        self.context: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.close()
            self.stage, self.done = stage, 0
            self.context = progress(f"Measuring {stage}", total)
            self.advance = self.context.__enter__()
        if self.advance:
            self.advance(done - self.done)
        self.done = done

    def close(self) -> None:
        if self.context is not None:
            self.context.__exit__(None, None, None)
        self.context = self.advance = self.stage = None
