"""`mien report`: one self-contained HTML page about a run, made from the run directory alone, without torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mien import __version__
from mien.errors import UserError
from mien.reports import control, curves, drawings, findings, pictures, scores
from mien.reports.findings import Score, as_object
from mien.reports.page import Html, document, duration, esc, facts, folded, heading, images, join, kimg, number, paragraph, table
from mien.runs import Run

STRIP_TIMES, STRIP_FACES = 10, 4
LONGEST_LOG = 400  # events listed in full; of a longer log the two ends


def write_report(run: Run, out: Path, *, with_reals: bool = False) -> Path:
    """Write the page about `run` to `out` (parent folders must exist) and return it. `with_reals` adds a strip of the training images."""
    out.write_text(render(run, with_reals=with_reals), encoding="utf-8")
    return out


def render(run: Run, *, with_reals: bool = False) -> str:
    """The page as text. A part the run has nothing for is left out; a damaged file costs its part only."""
    scalars, events, all_scores = run.scalars(), run.events(), findings.scores(run)
    marks = findings.marks(run)
    reached = findings.nimg(run)
    sections = [
        ("Samples", "Samples", join([_samples(run), _reals(run) if with_reals else ""])),
        ("Scores", "Scores", scores.of_run(all_scores, findings.headline(run))),
        ("Control", "Attribute control", control.control(all_scores)),
        ("Curves", "Training curves", curves.one_run(scalars, marks, reached / 1000 if reached else None)),
        ("Progress", "Progress of fixed latents", _progress(run)),
        ("Networks", "Networks", _networks(run)),
        ("Recipe", "Recipe", _recipe(run)),
        ("Reproduce", "Machine and how to reproduce", _reproduce(run)),
        ("Events", "Event log", _events(events)),
    ]
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return document(
        run.name,
        kind="mien report on a training run",
        lead=_lead(run, all_scores),
        sections=sections,
        foot=f"Made {made} by mien {__version__} from the run directory alone. Every face on this page is generated"
        + (", except the strip marked as real." if with_reals else "."),
    )


# --- the head of the page ---------------------------------------------------------------------------------------------


def _lead(run: Run, all_scores: Sequence[Score]) -> Html:
    config, recipe = run.config, findings.recipe(run)
    store = as_object(config.get("store"))
    spent, controlled = findings.time_s(run), [score for score in all_scores if score.metric == "control"]
    best = findings.headline(run)
    speed = findings.finite(findings.status(run).get("images_per_s"))
    pairs = [
        ("Preset", config.get("preset") or "none"),
        ("Real images seen", images(findings.nimg(run))),
        ("Time at work", duration(spent) if spent else None),
        ("Speed", f"{number(speed)} images/s" if speed else None),
        (f"Best {best.metric}" if best else "Best score", number(best.value) if best else None),
        ("Attribute accuracy", f"{controlled[-1].value:.1%}" if controlled else None),
        ("Image size", f"{store['size']} px" if store.get("size") else None),
        ("Seed", recipe.get("train.seed")),
    ]
    return join([paragraph(findings.verdict(run), css="verdict"), facts((name, value) for name, value in pairs if value is not None)])


# --- pictures ---------------------------------------------------------------------------------------------------------


def _samples(run: Run) -> Html:
    """The newest grid, a row per attribute combination, and the mosaic of 100."""
    grid, mosaic = Html(""), pictures.read(run.path / "samples" / "mosaic.png")
    newest = next(((nimg, picture) for nimg, path in reversed(run.samples()) if (picture := pictures.read(path))), None)
    if newest:
        nimg, picture = newest
        grid = join(
            [
                heading(f"The same latents under each combination of attributes, after {images(nimg)} images"),
                combinations(picture, pictures.layout(run.path / "samples")),
            ]
        )
    whole = Html("")
    if mosaic:
        where = pictures.layout(run.path / "samples")
        hundred = pictures.Layout([""] * 10, 10, where.cell_px, where.padding_px) if where else None
        faces = pictures.cells(mosaic, hundred, [(i // 10, i % 10) for i in range(100)], across=10) if hundred else None
        image = pictures.image_tag(faces or mosaic, "100 generated faces, 10 by 10, not selected", most_bytes=600_000, css="mosaic")
        whole = join([heading("One hundred faces, not selected"), image])
    if not grid and not whole:
        return paragraph("No samples were drawn yet.", css="soft")
    return join([grid, whole])


def combinations(picture: Any, where: pictures.Layout | None, columns: int | None = None, *, most_bytes: int = 90_000) -> Html:
    """A sample grid as rows with their names beside them; the grid as it is when its layout is unknown."""
    if where:
        shown = range(min(columns or where.columns, where.columns))
        strips = [pictures.cells(picture, where, [(row, column) for column in shown], across=len(shown)) for row in range(len(where.rows))]
        if all(strips):
            return Html(
                '<div class="rows">'
                + join(
                    Html(f"<span>{esc(name)}</span>" + pictures.image_tag(strip, f"Generated faces: {name}", most_bytes=most_bytes))
                    for name, strip in zip(where.rows, strips)
                    if strip
                )
                + "</div>"
            )
    return pictures.image_tag(picture, "Grid of generated faces", most_bytes=500_000)


def _progress(run: Run) -> Html:
    """The same few cells cut from grids through training, early ones closer together, as a face changes most at the start."""
    grids, where = run.samples(), pictures.layout(run.path / "samples")
    if len(grids) < 2 or not where:
        return Html("")
    rows, columns = len(where.rows), where.columns
    places = [(i % rows, i % columns) for i in range(min(STRIP_FACES, rows * columns))]
    picked = sorted({round((len(grids) - 1) * (i / (STRIP_TIMES - 1)) ** 2) for i in range(STRIP_TIMES)})
    out = []
    for nimg, path in (grids[i] for i in picked):
        whole = pictures.read(path)
        cut = pictures.cells(whole, where, places, across=1) if whole else None
        if cut:
            picture = pictures.image_tag(cut, f"The same {len(places)} latents after {images(nimg)} images", most_bytes=45_000)
            out.append(Html(f"<figure>{picture}<figcaption>{esc(kimg(nimg))}</figcaption></figure>"))
    names = list(dict.fromkeys(where.rows[row] for row, _ in places))
    return (
        join(
            [
                paragraph(
                    f"The same latents through training, from top to bottom: {'; '.join(names)}. Below: real images seen by then.",
                    css="soft",
                ),
                Html(f'<div class="strip">{join(out)}</div>'),
            ]
        )
        if out
        else Html("")
    )


def _reals(run: Run) -> Html:
    said = as_object(run.config.get("store")).get("path")
    strip = pictures.reals(Path(str(said)), 12) if said else None
    if not strip:
        return paragraph(
            f"Real images were asked for, but the store this run was trained on ({said or 'not recorded'}) is not there.", css="warn"
        )
    return join(
        [
            heading("Real training images, for comparison"),
            pictures.image_tag(strip, "Real images of the training data, not generated", most_bytes=200_000),
        ]
    )


# --- what was trained, with what, how ---------------------------------------------------------------------------------


def _networks(run: Run) -> Html:
    try:
        architecture = run.architecture or {}
    except UserError as error:
        return paragraph(str(error), css="warn")
    recipe = findings.recipe(run)
    attributes = as_object(run.config.get("store")).get("attributes")
    chosen = recipe.get("data.attributes")
    conditions = len(chosen if isinstance(chosen, list) else attributes or [])
    z_dim, size = recipe.get("model.generator.z_dim"), as_object(run.config.get("store")).get("size")
    latent = (
        drawings.Stage([z_dim + conditions], ["latent and attributes"], label="z, attributes" if conditions else "z") if z_dim else None
    )
    image = drawings.Stage([3, size, size], ["image"]) if size else None
    drawn = [
        drawings.network(name.capitalize(), rows, start=begin)
        for name, begin in (("generator", latent), ("discriminator", image))
        if isinstance(rows := architecture.get(name), list) and rows
    ]
    if not drawn:
        return Html("")
    return join(
        [
            *drawn,
            paragraph(
                "Each box is an output. Its height goes with the square root of the resolution, its length with that of the channels. "
                "Below: channels, then height × width.",
                css="soft",
            ),
        ]
    )


def _recipe(run: Run) -> Html:
    """Differences from the defaults first, with where each comes from; every key folded away."""
    recipe, origin = findings.recipe(run), as_object(run.config.get("provenance"))
    if not recipe:
        return Html("")
    rows = [[Html(f"<code>{esc(key)}</code>"), findings.setting(value), origin.get(key, "not recorded")] for key, value in recipe.items()]
    changed = [row for row, key in zip(rows, recipe) if origin.get(key) != "default"]
    head = ["Key", "Value", "Where it comes from"]
    first = (
        table(head, changed, caption="Settings that differ from the defaults") if changed else paragraph("Every setting is the default.")
    )
    return join([first, folded(f"All {len(rows)} settings", table(head, rows, caption="All settings"))])


def _reproduce(run: Run) -> Html:
    config = run.config
    command, store, machine = findings.command(run), as_object(config.get("store")), config.get("machine")
    data = [
        ("Data", store.get("path")),
        ("Images", f"{store['size']} px, crop {store.get('crop', 'unknown')}" if store.get("size") else None),
        ("Attributes", ", ".join(map(str, store.get("attributes") or [])) or "none"),
        ("Splits", findings.setting(store["splits"]) if store.get("splits") else None),
        ("Digest of the data", store.get("digest")),
        ("mien", config.get("mien")),
    ]
    described = machine.items() if isinstance(machine, dict) else [("Machine", machine)]
    steps = (
        [
            paragraph("With a store of the same digest, this command makes the same run again; on a CPU bit for bit."),
            Html(f"<pre>{esc(command)}</pre>"),
        ]
        if command
        else [paragraph("The run directory does not record its command.", css="soft")]
    )
    return join(
        [
            *steps,
            heading("Data") if store else "",
            facts(((k, v) for k, v in data if v is not None), "facts small") if store else "",
            heading("Machine") if machine else "",
            facts(((str(k).replace("_", " "), findings.setting(v)) for k, v in described if v is not None), "facts small")
            if machine
            else "",
        ]
    )


def _events(events: Sequence[Mapping[str, Any]]) -> Html:
    if not events:
        return Html("")
    start = next((moment for event in events if (moment := findings.finite(event.get("time_s"))) is not None), None)
    known = {"nimg", "time_s", "kind", "message"}
    rows = []
    for event in events:
        moment, nimg = findings.finite(event.get("time_s")), findings.finite(event.get("nimg"))
        extra = ", ".join(
            f"{key} {findings.setting(value)}" for key, value in event.items() if key not in known and not isinstance(value, (dict, list))
        )
        since = f"+{duration(moment - start)}" if moment is not None and start is not None else None
        rows.append(
            [
                images(nimg),
                since,
                event.get("kind"),
                join([event.get("message") or "", Html(f" <small class=soft>{esc(extra)}</small>") if extra else ""]),
            ]
        )
    head = ["Images", "Since start", "Kind", "What happened"]
    left_out = len(rows) - LONGEST_LOG
    if left_out > 0:
        rows = [
            *rows[: LONGEST_LOG // 2],
            ["…", None, None, f"{left_out} events left out; events.jsonl has them"],
            *rows[-LONGEST_LOG // 2 :],
        ]
    routine = [row for row in rows if row[2] in ("checkpoint", "snapshot")]
    telling = [row for row in rows if row[2] not in ("checkpoint", "snapshot")]
    return join(
        [
            table(head, telling, caption="Events", row_heads=False, numeric=(0,)),
            folded(
                f"Checkpoints and snapshots ({len(routine)})",
                table(head, routine, caption="Checkpoints and snapshots", row_heads=False, numeric=(0,)),
            )
            if routine
            else "",
        ]
    )
