"""`mien edit`: change a generated face or a photo, see before and after, and learn what moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, print_json, progress, say
from mien.apps.cli.strips import check_apart, check_file
from mien.errors import UserError

if TYPE_CHECKING:
    from mien.explore.edit import Edit
    from mien.explore.edit_effects import Effect, Judge
    from mien.explore.load import LoadedGenerator
    from mien.metrics.judge import Judge as FaceJudge

MAX_FILE_BYTES = 64 * 2**20  # of an edit or directions: thousands of steps
FIRST_MEASURED = 1_000_000  # number of the first face an edit is measured on


def edit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file, a bundled name or hf:user/repo.")],
    out: Annotated[Path, typer.Option(metavar="PATH.png", help="The picture: before, after, or a column per strength.")],
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Edit face number N.")] = None,
    image: Annotated[Path | None, typer.Option(metavar="PHOTO", help="Edit a photo, or a .json of 'mien invert'.")] = None,
    crop: Annotated[str, typer.Option(metavar="NAME", help="Of the photo: auto (the face is looked for), square, whole.")] = "auto",
    where: Annotated[str | None, typer.Option(metavar="A=1,B=0", help="Conditions of face N before; else as in the data.")] = None,
    to: Annotated[str | None, typer.Option(metavar="A=1,B=0", help="Set attributes the model was trained with.")] = None,
    directions: Annotated[Path | None, typer.Option(metavar="FILE", help="Directions, as 'mien directions' writes them.")] = None,
    along: Annotated[str | None, typer.Option(metavar="NAME=1.5,...", help="Go along its directions, in standard deviations.")] = None,
    edits: Annotated[list[Path] | None, typer.Option("--edit", metavar="FILE", help="An edit saved before; may be repeated.")] = None,
    strength: Annotated[float, typer.Option(help="Scales the whole edit: 0 nothing, 1 as asked, 2 beyond, -1 the other way.")] = 1.0,
    strengths: Annotated[str | None, typer.Option(metavar="-1,0,1,2", help="A column for each of these strengths instead.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Keep the edit, to use it again.")] = None,
    measure: Annotated[int, typer.Option(min=0, metavar="N", help="Faces that the edit's effect is measured on; 0: only this one.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="What moved, as JSON.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Change a face by attributes, directions and saved edits, and say what moved.

    mien edit runs/demo --out smile.png --seed 7 --to Smiling=1

    Saved edits come first, then --to, then --along. At strengths outside 0..1 an attribute goes beyond its value on the same side: --to
    Smiling=1 at strength 2 asks for 2, more of a smile than training ever showed.
    """
    _check(out, save, seed, image, where)
    columns = [] if strengths is None else parse_strengths(strengths)

    from mien.apps.cli.strips import save_text
    from mien.engine.build import choose_device
    from mien.explore.activations import changed
    from mien.explore.edit import check_fits, check_strength
    from mien.explore.edit_effects import not_there_yet, population
    from mien.explore.invert import offset_changes
    from mien.explore.load import load_generator
    from mien.metrics.judge import load_judge

    generator = load_generator(model, device=choose_device(device))
    made = build_edit(generator, edits or [], to, directions, along)
    for each in [strength, *columns]:
        check_strength(each)
    check_fits(generator, made)
    judge, held = load_judge(device=generator.device), not_there_yet(made)
    source = _face(generator, seed or 0, where) if image is None else _photo(generator, judge, image, crop)
    with changed(generator.net, offset_changes(source["offsets"] or {})):
        _draw(generator, made, source, columns, strength, out)
        this = _effects(generator, judge, made, source["inputs"], strength)
    if save is not None:
        save_text(made.to_json(), save)
    faces = population(generator, measure, seed=FIRST_MEASURED, where=held) if measure else None
    many = _effects(generator, judge, made, faces, strength) if faces else []
    if as_json:
        effects = {"this_face": [each.plain() for each in this], "many_faces_had": held, "many_faces": [each.plain() for each in many]}
        print_json({"out": out, "model": generator.path, "face": source["name"], "strength": strength, "edit": made.plain(), **effects})
        return
    say(f"{out}: {source['name']}, {made.name}{'' if strength == 1 else f', strength {strength:g}'}.")
    for line in (*_about_one(this), *_about_many(many, held)):
        say(line)
    asked = [(source["inputs"], each) for each in columns or [strength]] + ([(faces, strength)] if faces else [])
    _warn(made, generator.attribute_names, asked)


def _check(out: Path, save: Path | None, seed: int | None, image: Path | None, where: str | None) -> None:
    from mien.apps.cli.sample import is_picture

    if not is_picture(out):
        raise UserError(f"--out {out}: edit draws one picture; give it a name that ends in .png.")
    check_file(out)
    check_apart(out, image)
    if save is not None:
        check_file(save, "--save")
        if save.suffix.lower() != ".json":
            raise UserError(f"--save {save}: an edit is kept as JSON; give it a name that ends in .json.")
        check_apart(save, image, "--save")
    if (seed is None) == (image is None):
        raise UserError("Give either --seed N (a face of the model) or --image PHOTO.")
    if image is not None and where is not None:
        raise UserError("--where sets the conditions of a generated face; a photo's are found in it. Leave it out.")


def parse_strengths(text: str) -> list[float]:
    """'-1,0,1,2' -> numbers, one to sixteen of them. UserError for anything else."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 16:
        raise UserError(f"--strengths {text}: write one to sixteen numbers with commas between, for example -1,0,1,2.")
    return values


def parse_along(text: str) -> dict[str, float]:
    """'Young=1.5,pca-1=-2' -> {'Young': 1.5, 'pca-1': -2.0}. UserError for anything else."""
    from mien.combinations import parse_facts
    from mien.explore.edit import MAX_STRENGTH

    along: dict[str, float] = {}
    for name, value in parse_facts(text).items():
        try:
            along[name] = float(value)
        except ValueError:
            along[name] = float("nan")
        if not name or not abs(along[name]) <= MAX_STRENGTH:
            raise UserError(f"--along {name}={value}: write NAME=1.5, the direction's name and how far to go.")
    return along


def build_edit(generator: LoadedGenerator, files: Sequence[Path], to: str | None, directions: Path | None, along: str | None) -> Edit:
    """The edit that the options ask for. UserError when they ask for none, or for one that cannot be."""
    from functools import reduce

    from mien.explore.direction_set import DirectionSet
    from mien.explore.edit import Edit, compose, condition_edit
    from mien.explore.sample import parse_where

    if (directions is None) != (along is None):
        raise UserError("--directions FILE and --along NAME=1.5 go together.")
    parts = [_of_file(file, Edit.from_json) for file in files]
    if to:
        parts.append(condition_edit(parse_where(to, generator.attribute_names)))
    if directions is not None and along is not None:
        parts.append(_of_file(directions, DirectionSet.from_json).edit(parse_along(along)))
    if not parts:
        raise UserError("Nothing to do: give --to Smiling=1, --directions FILE --along NAME=1.5, or --edit FILE.")
    return reduce(compose, parts)


def _of_file(path: Path, read: Any) -> Any:
    """What `read` makes of the text of a file. UserError naming the file."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than {MAX_FILE_BYTES // 2**20} MB: no such file is written here.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}.") from None
    try:
        return read(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _face(generator: LoadedGenerator, seed: int, where: str | None) -> dict[str, Any]:
    from mien.explore.latents import latents
    from mien.explore.sample import attribute_rows, parse_where

    rows = attribute_rows(generator, parse_where(where, generator.attribute_names), 1, seed)
    return {"name": f"face {seed}", "inputs": (latents([seed], generator.z_dim), rows), "offsets": None}


def _photo(generator: LoadedGenerator, judge: FaceJudge, path: Path, crop: str) -> dict[str, Any]:
    """The latent that draws a photo best, with the photo as it was cropped; or the latent of a file that 'mien invert' wrote."""
    from mien.explore.invert import Settings, invert, read_inversion

    name = path.name if len(path.name) <= 18 else f"{path.name[:14]}..."
    if path.suffix.lower() == ".json":
        latent = _of_file(path, lambda text: read_inversion(text, generator))
        return {"name": name, "inputs": (latent.z, latent.attributes), "offsets": latent.offsets}
    from mien.apps.photos import align, judged, read_photo, trained_crop
    from mien.models.pictures import one_picture

    aligned = align(read_photo(path), crop=trained_crop(generator), size=generator.size, method=crop)
    target = one_picture(aligned.image)
    seen, settings = judged(judge, target, generator.attribute_names), Settings()
    given = None if seen is None else (seen >= 0.5).float()  # has it or has it not: the caption says so, and an edit starts from there
    with progress("Finding the photo in the model", settings.steps, unit="steps") as advance:
        found = invert(generator, target, encoder=None, classifier=judge.net, attributes=given, condition="judge", settings=settings,
                       on_step=lambda: advance(1))  # fmt: skip
    error = found.errors["optimised"]
    note(f"{path}: {aligned.how}; found again with {error.pixel_rmse:.0f} of 255 levels of error, identity distance {error.identity:.2f}. "
         "'mien invert' searches longer and keeps the latent.")  # fmt: skip
    return {"name": name, "inputs": (found.z, found.attributes), "offsets": found.offsets, "photo": target}


def _draw(generator: LoadedGenerator, made: Edit, source: dict[str, Any], columns: Sequence[float], strength: float, out: Path) -> None:
    """Before and after, or a column for each of several strengths."""
    import torch

    from mien.apps.cli.strips import captioned_sheet, save_picture
    from mien.explore.edit import apply
    from mien.explore.sample import captions
    from mien.models.pictures import to_uint8

    z, rows = source["inputs"]
    shown = list(columns) or [0.0, strength]
    images = torch.cat([to_uint8(apply(generator, z, rows, made, strength=each)) for each in shown])
    if "photo" in source:
        images = torch.cat([source["photo"], images])
    after = made.name if strength == 1 else f"{made.name} x {strength:g}"
    names = [f"{each:g}" for each in columns] or ["before", _folded(after)]
    names = ["photo", *names] if "photo" in source else names
    own = captions(rows, generator.attribute_names)[0]
    label = source["name"] + (f"\n{own}" if own else "") + ("" if not columns else f"\nedit: {_folded(made.name)}")
    save_picture(captioned_sheet(images, rows=[label], columns=names), out)


def _folded(name: str, width: int = 18) -> str:
    """A name over at most four lines of `width`."""
    import textwrap

    return "\n".join(textwrap.wrap(name, width, max_lines=4, placeholder=" ..."))


def _effects(generator: LoadedGenerator, judge: Judge, made: Edit, inputs: tuple[Any, Any], strength: float) -> list[Effect]:
    """One for each attribute the edit means to move; one without a target when it means none that the judge knows."""
    from mien.explore.edit import apply
    from mien.explore.edit_effects import compare, look, look_at, targets_of

    before = look_at(generator, judge, *inputs)
    names = judge.attribute_names
    after = look(apply(generator, *inputs, made, strength=strength), judge)
    meant = targets_of(made, names)
    if not meant:
        return [compare(before, after, names, strength=strength)]
    return [compare(before, after, names, strength=strength, target=name, side=side if strength >= 0 else 1 - side, meant=meant)
            for name, side in meant.items()]  # fmt: skip


def _about_one(effects: Sequence[Effect]) -> list[str]:
    lines = ["This face:"]
    for each in effects:
        if each.target is not None:
            assert each.before is not None
            lines.append(f"  {each.target}: judged probability {each.was:.2f} -> {each.now:.2f}")
    first, meant = effects[0], {each.target for each in effects}
    others = sorted(((name, each.value) for name, each in first.moved.items() if name not in meant), key=lambda item: -abs(item[1]))[:5]
    lines.append("  others moved most: " + ", ".join(f"{name} {value:+.2f}" for name, value in others))
    lines.append(f"  identity {first.identity.value:.2f} (cosine of face features, 1 is the same), pixels changed by "
                 f"{first.pixels.value:.1%} of their range")  # fmt: skip
    return lines


def _about_many(effects: Sequence[Effect], held: dict[str, float]) -> list[str]:
    if not effects:
        return []
    began = f" with {', '.join(f'{name}={value:g}' for name, value in held.items())}" if held else " drawn as in training"
    lines = [f"Over {effects[0].count:,} faces{began} (95 % intervals):"]
    for each in effects:
        if each.target is None or each.toward is None:
            continue
        end, moved = f"{each.target} = {each.side}", each.moved[each.target]
        lines.append(f"  {each.target}: probability {span(moved, '+.3f')} on average; {span(each.toward, '.1%')} moved towards {end}")
        if each.turned is not None:
            lines.append(f"    of {each.to_turn:,} judged otherwise before, {span(each.turned, '.1%')} are judged {end} after")
    first, meant = effects[0], {each.target for each in effects}
    leaks = [(name, value) for name, value in first.leaks(8) if name not in meant][:5]
    lines.append(f"  others: {span(first.leaked, '.3f')} mean change (noise alone: {first.leak_floor:.3f})"
                 + (", most: " + ", ".join(f"{name} {value.value:+.2f}" for name, value in leaks) if leaks else ""))  # fmt: skip
    strangers = "" if first.strangers is None else f" (different faces: {first.strangers:.2f})"
    lines.append(f"  identity: {span(first.identity, '.3f')}{strangers}; pixels: {span(first.pixels, '.1%')} of their range")
    return lines


def span(each: Any, spec: str) -> str:
    """'0.75 (0.73 .. 0.77)' of a Measured."""
    if each.low is None:
        return format(each.value, spec)
    return f"{each.value:{spec}} ({each.low:{spec}} .. {each.high:{spec}})"


def _warn(made: Edit, names: tuple[str, ...], asked: Sequence[tuple[tuple[Any, Any], float]]) -> None:
    """A note on the attributes that are asked for beyond 0..1: of faces (z [N, Z], attributes [N, A]), each with a strength."""
    import torch

    from mien.explore.edit import edited_inputs

    rows = torch.cat([edited_inputs(*inputs, made, names, strength=each)[1] for inputs, each in asked])
    beyond = [name for name, column in zip(names, rows.T) if bool(((column < -1e-6) | (column > 1 + 1e-6)).any())]
    if beyond:
        note(f"Note: {', '.join(beyond)} beyond 0..1 is extrapolation; training showed the model only 0 and 1.")
