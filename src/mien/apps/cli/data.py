"""`mien data`: make, look at and check data stores."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli import console
from mien.errors import UserError

if TYPE_CHECKING:
    from mien.data.store import FaceStore

app = typer.Typer(help="Make, look at and check data stores.", no_args_is_help=True, rich_markup_mode=None)

Out = Annotated[Path, typer.Option("--out", help="The folder to make.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the store that is there already.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AT_A_TIME = 1024     # toy faces drawn before they are written: memory stays small, and the bar moves
Store = Annotated[Path, typer.Argument(metavar="DIR", help="A prepared store.")]


@app.command()
def prepare(
    source: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Folder or zip of images, CelebA's root, kaggle:owner/name, "
                                                "hf:name.")],
    out: Out,
    size: Annotated[int, typer.Option(help="Side of the stored images in pixels: a power of two, 32 to 1024.")] = 64,
    crop: Annotated[str | None, typer.Option(help="center178, center148, center140, box128 or center108, squares of so many pixels "
                                             "in CelebA's frame (178x218); whole, the picture squeezed; square, the largest in its middle. "
                                             "Unless told: center178 for pictures of that frame, square for others.")] = None,
    attributes: Annotated[str, typer.Option(metavar="A,B", help="Which to keep, in which order: Male,Smiling; or all, or none.")] = "all",
    limit: Annotated[str | None, typer.Option(metavar="N", help="Take only so many images, evenly spread: 5000, 20k.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one per core")] = None,
    force: Force = False,
    allow_upscale: Annotated[bool, typer.Option("--allow-upscale", help="Enlarge images that are smaller than --size.")] = False,
    max_skipped: Annotated[float | None, typer.Option(help="The share of files that may be left out, unreadable or too small: 0.05. "
                                                      "Unless told: 0.01, unreadable ones only.")] = None,
) -> None:
    """Crop and resample pictures into a store.

    CelebA is known by its layout, any part of it will do; so are folders and zips of images with a CSV of attributes, folders of class
    folders, and CIFAR-10. Several sources are joined.

    mien data prepare celeba --out faces

    mien data prepare photos.zip --out mine --size 128 --crop square
    """
    from mien.config import parse_count
    from mien.data.prepare import prepare as make

    with stoppable():
        store, made = make(source, out, size=size, crop=crop, attributes=attribute_list(attributes),
                           limit=None if limit is None else parse_count(limit), workers=workers, force=force,
                           allow_upscale=allow_upscale, max_skipped=max_skipped, note=console.note, progress=console.progress)
    if not made:
        console.say(f"{out} is already the store of these files; left as it is (--force makes it again)")
    tell(store)


@app.command()
def synth(
    out: Out,
    count: Annotated[str, typer.Option(metavar="N", help="How many faces: 4096, 10k.")] = "4096",
    size: Annotated[int, typer.Option(help="Side in pixels: 32, 64, 128 or 256.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed, other faces.")] = 0,
    force: Force = False,
) -> None:
    """Draw toy faces whose attributes are known exactly.

    mien data synth --out faces --count 4096
    """
    import numpy as np

    import mien
    from mien.config import parse_count
    from mien.data.formats import check_size
    from mien.data.sources import hash_splits
    from mien.data.store import open_store
    from mien.data.synthetic import TOY_ATTRIBUTES, draw_faces
    from mien.data.writer import StoreWriter

    check_size(size)
    number = parse_count(count)
    if number < 1:
        raise UserError(f"--count {count} is not possible; draw at least 1")
    inputs = f"synth count={number} size={size} seed={seed} mien={mien.__version__}"
    if not force and (out / "manifest.json").is_file() and open_store(out).manifest.get("inputs") == inputs:
        console.say(f"{out} holds these faces already; left as it is (--force draws them again)")
        tell(open_store(out))
        return
    draw_faces(0, size=size, seed=seed)     # says what is wrong before anything is made
    source = [{"name": "drawn toy faces", "count": number, "path": None, "kind": "synth", "listed": None}]
    with stoppable(), StoreWriter(out, count=number, size=size, crop="drawn", force=force) as writer:
        tables = []
        with console.progress("draw", number) as advance:
            for start in range(0, number, AT_A_TIME):
                images, table = draw_faces(min(AT_A_TIME, number - start), size=size, seed=seed, start=start)
                writer.add(images)
                tables.append(table)
                advance(len(table))
        names = [f"toy-{seed}-{index:06d}" for index in range(number)]
        tell(writer.finish(attributes=np.concatenate(tables), attribute_names=TOY_ATTRIBUTES, splits=hash_splits(names), names=names,
                           source=source, extra={"skipped": [], "inputs": inputs}))


@app.command()
def subset(
    folder: Store,
    out: Out,
    where: Annotated[str | None, typer.Option(metavar="A=1,B=0", help="Only the faces of this group.")] = None,
    limit: Annotated[str | None, typer.Option(metavar="N", help="So many training images, evenly spread; held-out ones stay.")] = None,
    rest_held_out: Annotated[bool, typer.Option("--rest-held-out", help="The group's other training images join the validation.")] = False,
    attributes: Annotated[str, typer.Option(metavar="A,B", help="Which to keep, in which order: Male,Smiling; or all, or none.")] = "all",
    force: Force = False,
) -> None:
    """Take a group of a store's faces as a store of its own.

    mien data subset faces --where Eyeglasses=1 --limit 500 --out glasses
    """
    from mien.config import parse_count
    from mien.data.store import open_store
    from mien.data.subset import parse_group, write_subset

    with stoppable():
        tell(write_subset(open_store(folder), out, where=parse_group(where), limit=None if limit is None else parse_count(limit),
                          attributes=attribute_list(attributes), rest_held_out=rest_held_out, force=force))


@app.command()
def inspect(
    folder: Store,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet, a row per attribute combination, to this .png.")] = None,
    attributes: Annotated[str | None, typer.Option(help="Attributes whose combinations are the sheet's rows. Unless told: "
                                                   "Male,Smiling, or the first two.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show splits, attribute counts and correlations of a store.

    mien data inspect faces --sheet sheet.png
    """
    from mien.data.store import open_store

    store = open_store(folder)
    if sheet is None and attributes is not None:
        raise UserError("--attributes chooses the rows of the contact sheet; name a file for it too: --sheet sheet.png")
    if sheet is not None:
        write_sheet(store, sheet, attributes)
    facts = describe(store)
    if as_json:
        console.print_json(facts)
        return
    tell(store)
    console.say(f"crop {store.crop}, digest {store.digest[:16]}, made by {store.manifest.get('made_by', 'hand')}")
    for source in store.manifest.get("source", []):
        of = f" of {source['listed']:,}" if source.get("listed") else ""
        console.say(f"source {source['name']}: {source['count']:,}{of} images")
    if facts["attributes"]:
        console.say()
        splits = [split for split, count in facts["splits"].items() if count]
        rows = [[row["name"], row["count"], percent(row["share"]), *(percent(row["splits"][split]["share"]) for split in splits)]
                for row in facts["attributes"]]
        console.print_table(["attribute", "images", "of all", *(f"of {split}" for split in splits)], rows)
    if facts["pairs"]:
        console.say("\nstrongest correlations (all of them with --json)")
        console.print_table(["attribute", "with", "r"], [[pair["a"], pair["b"], f"{pair['r']:+.3f}"] for pair in facts["pairs"][:10]])


@app.command()
def verify(folder: Store, as_json: AsJson = False) -> None:
    """Check a store byte by byte; exit code 1 when it is damaged.

    mien data verify faces
    """
    from mien.data.store import problems, read_manifest

    found = list(problems(folder))
    if as_json:
        console.print_json({"path": str(folder), "whole": not found, "problems": found})
    else:
        for line in found:
            console.say(line)
        console.say(f"{folder} is damaged: prepare it again with --force" if found else
                    f"{folder} is whole: {read_manifest(folder)['count']:,} images, every sha256 as written")
    if found:
        raise typer.Exit(1)


def attribute_list(text: str) -> list[str] | None:
    """['Male', 'Smiling'] from 'Male,Smiling'; None for 'all', [] for 'none'. UserError when nothing is named."""
    if text in ("all", "none"):
        return None if text == "all" else []
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--attributes names nothing; write Male,Smiling, or all, or none")
    return names


def tell(store: FaceStore) -> None:
    """What a store holds, in a line."""
    from mien.data.annotations import counted
    from mien.data.store import SPLITS

    counts = {split: int((store.splits == code).sum()) for split, code in SPLITS.items()}
    splits = ", ".join(f"{split} {count:,}" for split, count in counts.items() if count)
    skipped = store.manifest.get("skipped") or []
    left_out = f", {counted(len(skipped), 'file')} skipped (listed in its manifest.json)" if skipped else ""
    console.say(f"{store.path}: {counted(len(store), 'image')}, {store.size}x{store.size} px, "
                f"{counted(len(store.attribute_names), 'attribute')} ({splits}){left_out}")


def describe(store: FaceStore) -> dict[str, Any]:
    """All that `inspect --json` says; correlations that are not defined (an attribute that never changes) are null."""
    from mien.data.attributes import correlation, strongest_pairs
    from mien.data.store import SPLITS

    rows = {split: store.attributes[store.indices(split)] for split in SPLITS}
    matrix = correlation(store.attributes)
    return {
        "path": str(store.path), "format": store.manifest["format"], "digest": store.digest, "count": len(store), "size": store.size,
        "crop": store.crop, "source": store.manifest.get("source", []), "skipped": store.manifest.get("skipped", []),
        "splits": {split: len(table) for split, table in rows.items()},
        "attributes": [
            {"name": name, "count": int(store.attributes[:, column].sum()), "share": float(store.attributes[:, column].mean()),
             "splits": {split: {"count": int(table[:, column].sum()), "share": float(table[:, column].mean()) if len(table) else None}
                        for split, table in rows.items()}}
            for column, name in enumerate(store.attribute_names)],
        "pairs": [{"a": a, "b": b, "r": r} for a, b, r in strongest_pairs(store.attribute_names, store.attributes)],
        "correlation": {"names": list(store.attribute_names),
                        "matrix": [[None if value != value else value for value in row] for row in matrix.tolist()]},
    }


def write_sheet(store: FaceStore, path: Path, attributes: str | None) -> None:
    """A contact sheet as .png. UserError for another ending, or a folder that is not there."""
    from mien.data.sheet import contact_sheet

    if path.suffix.lower() != ".png":
        raise UserError(f"--sheet {path} should end in .png")
    if not path.absolute().parent.is_dir():
        raise UserError(f"no such folder: {path.parent}; make it first, or choose another --sheet")
    if attributes is None:
        usual = [name for name in ("Male", "Smiling") if name in store.attribute_names]
        names = usual if len(usual) == 2 else list(store.attribute_names[:2])
    else:
        names = attribute_list(attributes) or []
    contact_sheet(store, names).save(path)
    console.note(f"wrote {path}")


def percent(share: float) -> str:
    """' 4.8 %', as wide as '100.0 %', so that a column of them lines up."""
    return f"{100 * share:5.1f} %"


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does, with nothing left half-written."""
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
