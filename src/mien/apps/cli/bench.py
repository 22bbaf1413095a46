"""`mien bench`: how fast this machine trains, serves data, scores and samples, and how near that is to its limits."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import duration, note, print_json, print_table, say
from mien.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

    from mien.config import Config
    from mien.data.store import FaceStore

SUBJECTS = ("train", "data", "eval", "sample")
FACES = 512  # drawn where no store is given


def bench(
    words: Annotated[list[str] | None, typer.Argument(metavar="[SUBJECT] [STORE]", help="train (the default), data, eval, sample or all; "
                     "and the store to work on. [default: drawn faces]")] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="The recipe. [default: the default recipe]")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps. [default: the best there is]")] = None,
    profile: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a trace of three training steps there, and list what took "
                       "longest.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast this machine trains a recipe, and where the time goes.

    mien bench --preset seed0-cpu

    mien bench all stores/celeba64 --preset seed0 --profile traces

    Nothing is kept but the trace. docs/benchmarks.md says how to read the numbers.
    """
    subjects, path = understand(words or [])
    if profile is not None and "train" not in subjects:
        raise UserError("--profile is of training steps: name train or all.")
    if profile is not None and profile.exists() and not profile.is_dir():
        raise UserError(f"{profile} is a file; --profile names a folder.")
    from mien.config import resolve
    from mien.engine import build, session

    recipe = resolve(preset, set_ or [])
    chosen = build.choose_device(device)
    with contextlib.ExitStack() as stack:
        store = opened(path, stack)
        try:
            found = measure(subjects, preset, recipe.config, store, chosen, profile)
        except (RuntimeError, MemoryError) as error:
            if not session.is_out_of_memory(error):
                raise
            found = None
        if found is None:
            raise session.out_of_memory(recipe, store, chosen)
    if json:
        print_json(found)
    else:
        show(found)


def understand(words: list[str]) -> tuple[tuple[str, ...], Path | None]:
    """Which subjects, and the store if one is named. Raises UserError for words that are neither."""
    subject = words[0] if words and words[0] in (*SUBJECTS, "all") else None
    rest = words[1:] if subject else words
    if len(rest) > 1:
        raise UserError(f"mien bench takes one subject and one store, not {' '.join(words)}.")
    if rest and not Path(rest[0]).exists():
        hint = did_you_mean(rest[0], (*SUBJECTS, "all"))
        raise UserError(f"{rest[0]} is no store, nor one of {', '.join(SUBJECTS)}, all.{hint}")
    return (SUBJECTS if subject == "all" else (subject or "train",)), (Path(rest[0]) if rest else None)


def opened(path: Path | None, stack: contextlib.ExitStack) -> FaceStore:
    """The store named, or one of toy faces that goes away with the stack."""
    import numpy as np

    from mien.data.store import open_store

    if path is not None:
        return open_store(path)
    from mien.data.synthetic import TOY_ATTRIBUTES, draw_faces
    from mien.data.writer import write_store

    images, attributes = draw_faces(FACES, size=64, seed=0)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "faces"
    names, source = [f"{i}.png" for i in range(FACES)], [{"name": "drawn", "count": FACES}]
    return write_store(folder, images=images, attributes=attributes, attribute_names=TOY_ATTRIBUTES, splits=np.zeros(FACES, np.uint8),
                       names=names, crop="square", source=source)  # fmt: skip


def measure(
    subjects: tuple[str, ...], preset: str | None, config: Config, store: FaceStore, device: torch.device, profile: Path | None
) -> dict[str, Any]:
    from mien.apps.bench import others, timing, train
    from mien.rules import settle

    config, _ = settle(config, store.size)
    note("Measuring the machine's own rates.")
    found: dict[str, Any] = {"format": "mien-bench/1", "preset": preset, "size_px": store.size, "machine": timing.describe(device)}
    for subject in subjects:
        note(f"Measuring {subject}.")
        if subject == "train":
            found["train"] = train.measure_training(config, store, device, found["machine"], profile=profile)
        else:
            work = {"data": others.measure_data, "eval": others.measure_eval, "sample": others.measure_sampling}[subject]
            found[subject] = work(config, store, device)
    return found


# --- for people -------------------------------------------------------------------------------------------------------


def show(found: dict[str, Any]) -> None:
    machine = found["machine"]
    say(f"{machine.get('gpu', machine['device'])}, {machine['threads']} threads, torch {machine['torch']}; {found['size_px']} px, "
        f"{found['preset'] or 'the default recipe'}")
    rows: list[list[str]] = [["machine", "matrix products, fp32", f"{machine['matmul_fp32_gmacs_per_s']:,.0f} G multiply-adds/s", ""],
                             ["", "matrix products, bf16", f"{machine['matmul_bf16_gmacs_per_s']:,.0f} G multiply-adds/s", ""]]  # fmt: skip
    makers = {"train": train_rows, "data": data_rows, "eval": eval_rows, "sample": sample_rows}
    for subject, make in makers.items():
        if subject in found:
            made = make(found[subject])
            rows += [[subject if i == 0 else "", *row] for i, row in enumerate(made)]
    print_table(["subject", "what", "measured", "range, or how"], rows)
    if "profile" in found.get("train", {}):
        show_profile(found["train"]["profile"])


def train_rows(t: dict[str, Any]) -> list[list[str]]:
    rate, predicted = t["images_per_s"], t["memory_predicted"]
    spread = f"{rate['min']:,.1f} to {rate['max']:,.1f} in {t['rounds']} rounds of {t['steps_per_round']} steps of {t['batch']}"
    whole = sum(t["ms_per_step_by_part"].values())
    return [
        ["speed", f"{rate['median']:,.1f} images/s", spread],
        ["", f"{t['s_per_kimg']:,.2f} s a kimg", f"1M images in {duration(1000 * t['s_per_kimg'])}"],
        ["arithmetic", f"{t['macs_per_image'] / 1e9:,.3f} G multiply-adds an image", "all passes of G and D, counted"],
        ["share of the peak", f"{t['share_of_fp32_peak']:.0%} of fp32's, {t['share_of_bf16_peak']:.0%} of bf16's", f"in {t['precision']}"],
        ["idle", f"{t['idle_share']:.0%}", "of the device's time"],
        *[[f"time, {name}", f"{ms:,.1f} ms a step", f"{ms / whole:.0%}"] for name, ms in t["ms_per_step_by_part"].items()],
        ["first step", f"{t['first_step_s']:.2f} s", "sets things up"],
        ["memory", f"{t['memory_peak_mb']:,.0f} MB at the peak", f"predicted {predicted['total_mb']:,.0f} MB"],
    ]


def data_rows(d: dict[str, Any]) -> list[list[str]]:
    rows = [[f"preparing, {workers} process{'es' if workers != '1' else ''}", f"{rate:,.0f} images/s", "drawn JPEGs of 178 x 218"]
            for workers, rate in d["prepare_images_per_s_by_workers"].items()]  # fmt: skip
    serve = d["loader_images_per_s"]
    return [*rows, ["serving batches", f"{serve['median']:,.0f} images/s", f"{serve['min']:,.0f} to {serve['max']:,.0f}, by {d['batch']}"]]


def eval_rows(e: dict[str, Any]) -> list[list[str]]:
    rate = e["features_images_per_s"]
    return [[f"{e['features']} features", f"{rate['median']:,.0f} images/s", f"{rate['min']:,.0f} to {rate['max']:,.0f}"],
            ["a score", f"{e['score_s']:.1f} s", f"kid and prdc, {e['score_images']} images a side"]]  # fmt: skip


def sample_rows(s: dict[str, Any]) -> list[list[str]]:
    one = s["one_face_ms"]
    return [["one face", f"{one['median']:,.1f} ms", f"95 % within {one['p95']:,.1f} ms, {one['faces']} faces"],
            *[[f"batches of {count}", f"{rate:,.1f} images/s", ""] for count, rate in s["images_per_s_by_batch"].items()]]  # fmt: skip


def show_profile(profile: dict[str, Any]) -> None:
    say()
    rows = [[row["operation"][:48], row["calls_per_step"], row["ms_per_step"], f"{row['share']:.0%}"] for row in profile["top"]]
    print_table(["operation", "calls a step", "ms a step", "share"], rows)
    say(f"The trace is {profile['trace']}: open it in chrome://tracing or ui.perfetto.dev.")
