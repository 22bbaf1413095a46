"""`mien directions`: find directions of the latent space that change one thing, and measure what they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, print_json, print_table, progress, say
from mien.combinations import parse_facts
from mien.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mien.explore.direction_set import Direction, DirectionSet
    from mien.explore.directions import Sample
    from mien.explore.edit_effects import Judge
    from mien.explore.load import LoadedGenerator

USUAL = ("Smiling", "Male", "Young", "Eyeglasses", "Bangs", "Blond_Hair", "Heavy_Makeup", "Mouth_Slightly_Open")
MOST_COUNT, MOST_FACES = 100_000, 10_000
MEASURED_FROM = 1_000_000  # number of the first face effects are measured on: not one of those a direction was learned from
SHEET_STRENGTHS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


def directions(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file, a bundled name or hf:user/repo.")],
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="The directions, for 'mien edit --directions'.")],
    method: Annotated[str, typer.Option(metavar="NAME", help="probe, svm, arithmetic (by the judge); pca, sefa (by the model).")] = "probe",
    attributes: Annotated[str | None, typer.Option(metavar="A,B", help="Judged attributes to find directions for.")] = None,
    against: Annotated[str | None, typer.Option(metavar="A,B", help="Make them orthogonal to the directions of these.")] = None,
    components: Annotated[int, typer.Option(min=1, help="How many, with pca and sefa.")] = 8,
    count: Annotated[str, typer.Option(metavar="N", help="Faces to learn from: 4000, 10k.")] = "4000",
    faces: Annotated[int, typer.Option(min=2, metavar="N", help="Other faces that effects are measured on.")] = 256,
    sum_: Annotated[str | None, typer.Option("--sum", metavar="TEXT", help="Mean faces added: 'A=1,B=0 - A=0,B=0 + A=0,B=1'.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Number of the first face learned from, and of the one on the sheet.")] = 0,
    sheet: Annotated[Path | None, typer.Option(metavar="PATH.png", help="A picture: a row per direction, a column per strength.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All that was measured, as JSON.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Find directions of a model's latents that change one thing, and measure what they change.

    mien directions runs/demo --attributes Young,Eyeglasses --against Male --out directions.json --sheet sheet.png

    One step of strength is one standard deviation of the latents. Columns: auc: how well a direction ranks faces it never saw (0.5 is
    chance); halves: cosine of the directions from each half of the faces; then, per step, the target's judged probability, the mean change
    of the other attributes and the one changed most, the cosine of face features (1: same face), and the change of pixels.
    """
    from mien.config import parse_count

    number = parse_count(count)
    _check(method, out, sheet, number, faces, sum_)

    from mien.engine.build import choose_device
    from mien.explore.direction_set import JUDGED, DirectionSet, attribute_directions, unsupervised_directions
    from mien.explore.directions import judged_sample
    from mien.explore.load import load_generator
    from mien.metrics.judge import load_judge

    generator = load_generator(model, device=choose_device(device))
    judge = load_judge(device=generator.device)
    if method in JUDGED:
        asked = _names(attributes, judge.attribute_names, "--attributes") or [name for name in USUAL if name in judge.attribute_names]
        beside = _names(against, judge.attribute_names, "--against")
        with progress("Judging", number, unit="faces") as advance:
            sample = judged_sample(generator, judge, number, seed=seed, progress=advance)
        if sum_ is not None:
            _add_up(generator, judge, sample, sum_, out, as_json)
            return
        found = attribute_directions(sample, method, asked if attributes else _learnable(sample, asked), against=beside)
    elif attributes or against:
        raise UserError(f"--method {method} looks at no attributes: leave out --attributes and --against, or use --method probe.")
    else:
        found = unsupervised_directions(generator, method, components, faces=number, seed=seed)
    done = _measure(generator, judge, found, faces)
    made = {"count": number, "seed": seed, "judge": judge.weights_sha256, "faces": faces, "model": str(generator.path)}
    result = DirectionSet(generator.meta["sha256"], tuple(done), made)
    _write(result, generator, out, sheet, seed)
    if as_json:
        print_json({"out": out, "made": made, "directions": [_summary(each) for each in done]})
    else:
        _show(result)
        say(f"{out}: {len(done)} directions of {generator.path}. To use one: mien edit MODEL --directions {out} --along {done[0].name}=1.5")


def _check(method: str, out: Path, sheet: Path | None, count: int, faces: int, terms: str | None) -> None:
    from mien.apps.cli.sample import is_picture

    methods = ("probe", "svm", "arithmetic", "pca", "sefa")
    if method not in methods:
        raise UserError(f"No method is named {method}.{did_you_mean(method, methods)} There are {', '.join(methods)}.")
    if terms is not None:
        if not is_picture(out) or method in ("pca", "sefa"):
            raise UserError("--sum draws mean faces: give --out a name that ends in .png, and no --method pca or sefa.")
    elif out.suffix.lower() != ".json":
        raise UserError(f"--out {out}: directions are written as .json. The picture goes to --sheet.")
    if sheet is not None and not is_picture(sheet):
        raise UserError(f"--sheet {sheet}: a picture ends in .png.")
    for path in filter(None, (out, sheet)):
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a file in it.")
    if not 100 <= count <= MOST_COUNT:
        raise UserError(f"--count {count:,}: from 100 to {MOST_COUNT:,} faces, please; 4,000 are enough for most attributes.")
    if faces > MOST_FACES:
        raise UserError(f"--faces {faces:,}: at most {MOST_FACES:,}; 256 give intervals of about 0.03.")


def _names(text: str | None, known: Sequence[str], option: str) -> list[str]:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(f"{option}: the judge knows no attribute {name!r}.{did_you_mean(name, known)}")
    return names


def _learnable(sample: Sample, names: Sequence[str]) -> list[str]:
    """The usual attributes that enough of the sample's faces have and have not; the others are told."""
    from mien.explore.directions import LEAST

    found = []
    for name in names:
        has = int((sample.probabilities[:, sample.names.index(name)] >= 0.5).sum())
        if LEAST <= has <= len(sample.z) - LEAST:
            found.append(name)
        else:
            note(f"{name} left out: {has:,} of {len(sample.z):,} faces are judged to have it.")
    if not found:
        raise UserError("None of the usual attributes varies enough in this model's faces: name others with --attributes, or --method pca.")
    return found


def _measure(generator: LoadedGenerator, judge: Judge, found: Sequence[Direction], faces: int) -> list[Direction]:
    from mien.explore.direction_set import STRENGTHS, measured
    from mien.explore.edit_effects import look_at, population

    z, rows = population(generator, faces, seed=MEASURED_FROM)
    before = look_at(generator, judge, z, rows)
    with progress("Measuring", faces * len(STRENGTHS) * len(found), unit="faces") as advance:
        return measured(generator, judge, found, z, rows, before, progress=advance)


def _write(result: DirectionSet, generator: LoadedGenerator, out: Path, sheet: Path | None, seed: int) -> None:
    from mien.apps.cli.strips import captioned_sheet, save_picture, save_text

    save_text(result.to_json(), out)
    if sheet is None:
        return
    import torch

    from mien.explore.edit import apply
    from mien.explore.edit_effects import population
    from mien.models.pictures import to_uint8

    z, rows = population(generator, 1, seed=seed)
    images = [to_uint8(apply(generator, z, rows, each.edit(strength))) for each in result.directions for strength in SHEET_STRENGTHS]
    labels = [each.name if each.target in (None, each.name) else f"{each.name}\n({each.target})" for each in result.directions]
    save_picture(captioned_sheet(torch.cat(images), rows=labels, columns=[f"{strength:g}" for strength in SHEET_STRENGTHS]), sheet)


def _summary(direction: Direction) -> dict[str, Any]:
    """All but the vector."""
    from dataclasses import asdict

    return {key: value for key, value in asdict(direction).items() if key != "vector"}


def _show(result: DirectionSet) -> None:
    """A line per direction, with what one step does."""
    judged = any("auc" in each.fit for each in result.directions)
    table = []
    for each in result.directions:
        step, last = each.step, each.effects[-1]
        most = next(iter(step["leaks"].items()), None)
        turned = "-" if last["turned"] is None else f"{last['turned']['value']:.0%} of {last['to_turn']}"
        target = each.name if each.name == each.target else f"{each.name}: {each.target}"
        fit = (each.fit.get("auc"), each.fit.get("agreement")) if judged else (each.fit.get("explained"),)
        shown = [None if value is None else f"{value:.2f}" for value in fit]
        table.append([target, *shown, _plus_minus(step["target"]), _plus_minus(step["leaked"]),
                      f"{most[0]} {most[1]['value']:+.2f}" if most else None, f"{step['identity']['value']:.2f}",
                      f"{step['pixels']['value']:.1%}", turned])  # fmt: skip
    known = ("auc", "halves") if judged else ("variance",)
    print_table(["direction", *known, "target/step", "leaked/step", "most beside", "identity", "pixels", "turned at 3"], table)
    strangers = result.directions[0].step["strangers"]
    kept = [f"{each.name} {each.fit['kept']:.2f}" for each in result.directions if "kept" in each.fit]
    if kept:
        say(f"Made orthogonal to {', '.join(result.directions[0].against)}; cosine with the direction before: {', '.join(kept)}.")
    say(f"Measured on {result.made['faces']:,} faces, ± is the 95 % interval; leaked by noise alone: "
        f"{result.directions[0].step['leak_floor']:.3f}; identity of different faces: {strangers:.2f}.")  # fmt: skip


def _plus_minus(each: dict[str, float | None]) -> str:
    value, low, high = each["value"] or 0.0, each["low"], each["high"]
    return f"{value:+.3f}" if low is None or high is None else f"{value:+.3f} ±{(high - low) / 2:.3f}"


# ------------------------------------------------------------------------------------------------------------------------------
# Sums of mean faces


def parse_sum(text: str) -> list[tuple[int, dict[str, int]]]:
    """'A=1,B=0 - A=0,B=0 + A=0,B=1' -> [(1, {'A': 1, 'B': 0}), (-1, ...), (1, ...)]. UserError for anything else."""
    sign, terms = 1, []
    for part in text.replace("+", " + ").replace(" - ", " \N{MINUS SIGN} ").split():
        if part in ("+", "\N{MINUS SIGN}"):
            sign = 1 if part == "+" else -1
            continue
        facts = parse_facts(part)
        if any(value not in ("0", "1") or not name for name, value in facts.items()):
            raise UserError(f"--sum {part}: write attributes as A=1,B=0, terms with ' + ' and ' - ' between.")
        terms.append((sign, {name: int(value) for name, value in facts.items()}))
    if not 2 <= len(terms) <= 8 or sum(sign for sign, _ in terms) != 1:
        raise UserError("--sum adds 2 to 8 mean faces, one more plus than minus, for example 'A=1,B=0 - A=0,B=0 + A=0,B=1'.")
    return terms


def _add_up(generator: LoadedGenerator, judge: Judge, sample: Sample, text: str, out: Path, as_json: bool) -> None:
    """The mean faces and what they add up to, in latent and in condition, with what the judge says of each."""
    import numpy as np
    import torch

    from mien.apps.cli.strips import captioned_sheet, save_picture
    from mien.explore.directions import mean_inputs
    from mien.explore.edit_effects import look_at

    terms = parse_sum(text)
    means = [mean_inputs(sample, where) for _, where in terms]
    inputs = [(z, c) for z, c, _ in means]
    inputs.append(tuple(sum(sign * mean[i] for (sign, _), mean in zip(terms, means)) for i in (0, 1)))  # type: ignore[arg-type, misc]
    z, rows = (torch.from_numpy(np.stack([each[i] for each in inputs])).float() for i in (0, 1))
    seen = look_at(generator, judge, z, rows)
    asked = list(dict.fromkeys(name for _, where in terms for name in where))
    names = [("+ " if sign > 0 else "- ") + "\n".join(f"{name}={value}" for name, value in where.items()) for sign, where in terms]
    names.append("= sum")
    judged = [{name: round(float(row[judge.attribute_names.index(name)]), 4) for name in asked} for row in seen.probabilities]
    save_picture(captioned_sheet(seen.images, rows=[""], columns=names), out)
    if as_json:
        print_json({"out": out, "terms": [{"sign": sign, "where": where, "faces": mean[2], "judged": each}
                                          for (sign, where), mean, each in zip(terms, means, judged)], "sum": judged[-1]})  # fmt: skip
        return
    counts = [mean[2] for mean in means] + [None]
    rows_ = [[name.replace("\n", ","), number, *each.values()] for name, number, each in zip(names, counts, judged)]
    print_table(["mean face", "faces", *asked], rows_)
    say(f"{out}: the mean faces and their sum; numbers are the judge's probabilities.")
