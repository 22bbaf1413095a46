"""`mien ema`: averages of other lengths, made after training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, print_json, print_table
from mien.errors import UserError
from mien.runs import Run, kimg_name

if TYPE_CHECKING:
    from mien.metrics.protocol import Score

FAR = 0.1  # a profile that is missed by more than this is not the average that was asked for


def ema(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run that was trained with ema.posthoc.")],
    half_life: Annotated[str | None, typer.Option(metavar="N,N", help="Half-lives in images: 5k,20k,80k.")] = None,
    sigma: Annotated[str | None, typer.Option(metavar="S,S", help="Widths relative to the run, of power functions: 0.05,0.15.")] = None,
    at: Annotated[str | None, typer.Option(metavar="N", help="Up to which image count. [default: the newest saved average]")] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Score each against this store, and name the best.")] = None,
    features: Annotated[str, typer.Option(metavar="NAME", help="As mien eval's.")] = "face",
    count: Annotated[str, typer.Option(metavar="N", help="Images on each side.")] = "10k",
    split: Annotated[str, typer.Option(metavar="NAME", help="train, val or test.")] = "val",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Make averaged generators of any length from a run, after training.

    mien train faces --preset demo --run runs/demo --set ema.posthoc=[0.05,0.1]

    mien ema runs/demo --half-life 2k,10k --data faces

    They are written to RUN/ema, each a MODEL. With --data each gets its Frechet distance, as does the run's own average.
    """
    from mien.config import parse_count
    from mien.engine.build import choose_device

    there = Run.open(run)
    lengths = [("half_life_nimg", word.strip(), float(parse_count(word))) for word in (half_life or "").split(",") if word.strip()]
    lengths += [("sigma_rel", word.strip(), _sigma(word)) for word in (sigma or "").split(",") if word.strip()]
    if not lengths:
        raise UserError("Say how long the averages should be: --half-life 5k,20k or --sigma 0.05,0.15.")
    if not there.posthoc():
        raise UserError(f"{run} kept no averages to make others from: train with --set ema.posthoc=[0.05,0.1].")
    at_nimg = parse_count(at) if at else there.posthoc()[-1][0]
    where = str(choose_device(device))
    made = [_make(there, kind, word, value, at_nimg=at_nimg, device=where) for kind, word, value in lengths]
    own = dict(there.snapshots()).get(at_nimg)
    if data is not None:
        scored = [{"path": own}, *made] if own else made
        for row in scored:
            row["score"] = _score(row["path"], data, features=features, count=parse_count(count), split=split, device=where)
        made = scored
    if json:
        print_json([{**row, "score": row["score"].line() if row.get("score") else None} for row in made])
        return
    print_table(["average", "off its profile", "score"], [[row["path"], _share(row.get("profile_error")), _said(row.get("score"))]
                                                          for row in made])  # fmt: skip
    if data is not None:
        best = min(made, key=lambda row: row["score"].value)
        note(f"The best: {best['path']}.")


def _sigma(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < 0.28:
        raise UserError(f"--sigma {word.strip()}: a width lies between 0 and 0.28 of the run.")
    return value


def _make(run: Run, kind: str, word: str, value: float, *, at_nimg: int, device: str) -> dict[str, Any]:
    """Write one average; its file and how far its profile is from the one asked for."""
    from mien.engine import posthoc
    from mien.engine.checkpoint import load_snapshot, save_snapshot

    snapshots = run.snapshots()
    if not snapshots:
        raise UserError(f"{run.path} has no snapshot to say what its generator is.")
    net, meta = load_snapshot(snapshots[-1][1], device)
    wanted = {"sigma_rel": value} if kind == "sigma_rel" else {"half_life_nimg": value}
    left = posthoc.rebuild(net, run, at_nimg=at_nimg, meta=meta, **wanted)
    if left > FAR:
        note(f"{word} is {left:.0%} off its profile: too short or too long for what {run.path} saved (train.snapshot_kimg).")
    (folder := run.path / "ema").mkdir(exist_ok=True)
    stem = folder / f"{kimg_name(at_nimg)}-{'sigma' if kind == 'sigma_rel' else 'half-life'}-{word}"
    told = {key: item for key, item in meta.items() if key not in ("format", "sha256")}
    path = save_snapshot(stem, net, {**told, "nimg": at_nimg, "averaging": {**wanted, "profile_error": left}})
    return {"path": path, **wanted, "profile_error": left}


def _score(path: Path, data: Path, *, features: str, count: int, split: str, device: str) -> Score:
    """The Frechet distance of one, written where `mien eval` writes it."""
    from mien.apps.cli.evaluate import record
    from mien.data.store import open_store
    from mien.explore.load import load_generator
    from mien.metrics.evaluate import evaluate

    generator = load_generator(path, device=device)
    (score,) = evaluate(generator, open_store(data), metrics=["fd"], features=features, count=count, split=split, device=device)
    record(str(path), generator, [score])
    return score


def _share(value: float | None) -> str:
    return "the run's own" if value is None else f"{value:.1%}"


def _said(score: Score | None) -> str | None:
    return None if score is None else f"{score.metric} {score.value:.4g}"
