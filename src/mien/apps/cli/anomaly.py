"""`mien anomaly`: which pictures of a folder are least like the faces a model knows."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, print_json, progress, say
from mien.apps.cli.strips import check_file
from mien.errors import UserError

if TYPE_CHECKING:
    from mien.apps.encoders import Witness
    from mien.explore.load import LoadedGenerator

CHUNK = 256  # pictures in memory at a time
SHOWN = 24  # on the sheet


def anomaly(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file, a bundled name or hf:user/repo.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, cropped as the training faces or of CelebA's shape.")],
    out: Annotated[Path, typer.Option(metavar="SCORES.csv", help="One line per picture, strangest first.")],
    data: Annotated[Path | None, typer.Option(metavar="STORE", help="Held-out faces to calibrate on; by default the run's own.")] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="WORST.png", help=f"The {SHOWN} strangest, each above what was redrawn.")] = None,
    crop: Annotated[str, typer.Option(metavar="NAME", help="auto (a face is looked for where the shape is not CelebA's), square, whole.")]
    = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The scores, as JSON.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Score how unlike a face each picture of a folder is.

    mien anomaly runs/demo crops/ --out scores.csv --sheet worst.png

    The percentile is the share of held-out faces that score lower. Five measures are z values of held-out faces (pixels and features that
    the model cannot redraw, the worst place, strange features, a strange layout); the score is the mean of the two highest.
    The first call for a model trains its encoder, for minutes.
    """
    from mien.apps.cli.classifier import find_pictures

    if out.suffix.lower() != ".csv":
        raise UserError(f"--out {out}: give a name that ends in .csv.")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet {sheet}: give a name that ends in .png.")
    check_file(out)
    if sheet is not None:
        check_file(sheet, "--sheet")
    files = find_pictures([folder])

    from mien.apps.cli.strips import save_picture, save_text
    from mien.apps.encoders import GENERATED, store_of, witness
    from mien.engine.build import choose_device
    from mien.explore.load import load_generator
    from mien.metrics.judge import load_judge

    generator = load_generator(model, device=choose_device(device))
    judge = load_judge(device=generator.device)
    known = witness(generator, judge, store=store_of(generator, data), progress=lambda label, n: progress(label, n, unit="steps"))
    if known.source == GENERATED:
        note("No store of real faces was found: the scores are calibrated on the model's own, beside which every photo is strange. "
             "Name one: --data STORE.")  # fmt: skip
    rows, skipped = _score(generator, judge, known, files, crop)
    for file, reason in skipped:
        note(f"skipped {file}: {reason}")
    if not rows:
        raise UserError(f"None of the {len(files):,} pictures could be read; the first: {skipped[0][1]}")
    rows.sort(key=lambda row: -row["score"])
    plain = [{key: value for key, value in row.items() if key != "pictures"} for row in rows]
    save_text(_table(plain), out)
    if sheet is not None:
        save_picture(_sheet(rows[:SHOWN]), sheet)
    if as_json:
        left_out = [{"file": file, "reason": reason} for file, reason in skipped]
        print_json({"out": out, "calibrated_on": known.source, "pictures": plain, "skipped": left_out})
        return
    strange = sum(row["percentile"] >= 99 for row in rows)
    say(f"{out}: {len(rows):,} pictures, {strange:,} stranger than 99 % of {known.source}; the strangest is {rows[0]['file']!r}.")


def _score(generator: LoadedGenerator, judge: Any, known: Witness, files: list[Path],
           crop: str) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:  # fmt: skip
    """A row a readable picture (file, score, percentile, measures, both pictures of the strangest), and (file, reason) of the others."""
    import torch

    from mien.apps.photos import align, read_photo, trained_crop
    from mien.explore.anomaly import MEASURES, redraw
    from mien.models.pictures import one_picture

    rows: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    with progress("Scoring", len(files), unit="pictures") as advance:
        for first in range(0, len(files), CHUNK):
            images, names = [], []
            for path in files[first : first + CHUNK]:
                try:
                    aligned = align(read_photo(path), crop=trained_crop(generator), size=generator.size, method=crop)
                    images.append(one_picture(aligned.image))
                    names.append(path.name)
                except UserError as error:
                    skipped.append((path.name, str(error)))
            if images:
                batch = torch.cat(images)
                again = redraw(generator, known.encoder, judge.net, batch)
                scores = known.calibration.scores(again)
                measures, percentiles = known.calibration.z_values(again).tolist(), known.calibration.percentiles(scores).tolist()
                for i, name in enumerate(names):
                    rows.append({"file": name, "score": round(scores[i].item(), 4), "percentile": round(percentiles[i], 2),
                                 **{key: round(value, 3) for key, value in zip(MEASURES, measures[i])},
                                 "pictures": (batch[i], again.images[i])})  # fmt: skip
                for row in sorted(rows, key=lambda row: -row["score"])[SHOWN:]:
                    row["pictures"] = None  # memory does not grow with the folder
            advance(len(files[first : first + CHUNK]))
    return rows, skipped


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().rstrip("\n")


def _sheet(rows: list[dict[str, Any]]) -> Any:
    """A row of eight: each picture above what was redrawn of it, and its percentile above both."""
    import torch
    from PIL import Image

    from mien.apps.cli.strips import captioned_sheet

    parts = []
    for first in range(0, len(rows), 8):
        part = rows[first : first + 8]
        images = torch.stack([row["pictures"][0] for row in part] + [row["pictures"][1] for row in part])
        parts.append(captioned_sheet(images, rows=["picture", "redrawn"], columns=[f"score {row['score']:.1f}" for row in part]))
    whole = Image.new("RGB", (max(each.width for each in parts), sum(each.height for each in parts)), "white")
    top = 0
    for each in parts:
        whole.paste(each, (0, top))
        top += each.height
    return whole
