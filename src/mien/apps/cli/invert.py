"""`mien invert`: the latent that draws a photo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, print_json, progress, say
from mien.apps.cli.strips import check_apart, check_file
from mien.errors import UserError

if TYPE_CHECKING:
    from mien.explore.invert import Inversion, Settings
    from mien.explore.load import LoadedGenerator
    from mien.metrics.judge import Judge

STAGES = {"encoder": "encoder", "optimised": "optimised", "offsets": "with offsets"}


def invert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file, a bundled name or hf:user/repo.")],
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="A picture of one face.")],
    out: Annotated[Path, typer.Option(metavar="PATH.png", help="The strip; PATH.json beside it holds the latent.")],
    steps: Annotated[int, typer.Option(min=0, max=10_000, metavar="N", help="Steps of the search.")] = 200,
    offsets: Annotated[bool, typer.Option("--offsets", help="Afterwards shift the generator's channels for this face.")] = False,
    crop: Annotated[str, typer.Option(metavar="NAME", help="auto (the face is looked for), square, whole.")] = "auto",
    data: Annotated[Path | None, typer.Option(metavar="STORE", help="Real faces for the encoder; by default the run's own.")] = None,
    free: Annotated[bool, typer.Option("--free-condition", help="Search the attributes too, instead of taking the judge's.")] = False,
    compare: Annotated[int, typer.Option(min=0, max=16, metavar="N", help="Faces the errors are set beside; 0: none.")] = 4,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also for a picture that does not look like a face.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the search's further starts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The errors, as JSON.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Find the latent that draws a photo, and say how near it comes.

    mien invert runs/demo photo.jpg --out me.png --offsets

    The first call for a model trains its encoder, for minutes, and keeps it. 'mien edit MODEL --image me.json' goes on from here.
    """
    _check(out, photo)

    from mien.apps.photos import align, read_photo, trained_crop

    pixels = read_photo(photo)

    from mien.apps.encoders import GENERATED, check_face, store_of, witness
    from mien.engine.build import choose_device
    from mien.explore.invert import Settings
    from mien.explore.load import load_generator
    from mien.metrics.judge import load_judge

    generator = load_generator(model, device=choose_device(device))
    aligned = align(pixels, crop=trained_crop(generator), size=generator.size, method=crop)
    judge = load_judge(device=generator.device)
    known = witness(generator, judge, store=store_of(generator, data), progress=lambda label, n: progress(label, n, unit="steps"))
    if known.source == GENERATED:
        note("No store of real faces was found: the scores are calibrated on the model's own, beside which every photo is strange. "
             "Name one: --data STORE.")  # fmt: skip
    percentile = None if anyway else check_face(known, generator, judge, aligned.image)
    settings = Settings(steps=steps, offset_steps=max(1, steps // 2) if offsets else 0, free_condition=free, seed=seed)
    found, beside = _search(generator, judge, known.encoder, aligned.image, settings, compare)
    _write(found, aligned.image, out, {"photo": photo.name, "aligned": aligned.how, "beside": {k: vars(v) for k, v in beside.items()}})
    report = {"out": out, "latent": out.with_suffix(".json"), "model": generator.path, "aligned": aligned.how, "condition": found.condition,
              "attributes": dict(zip(found.attribute_names, found.attributes[0].tolist())), "stranger_than_percent": percentile,
              "errors": {k: vars(v) for k, v in found.errors.items()}, "beside": {k: vars(v) for k, v in beside.items()},
              "steps": found.steps, "seconds": round(found.seconds, 2)}  # fmt: skip
    if as_json:
        print_json(report)
        return
    say(f"{out}: {aligned.how}; condition from the {found.condition}; {found.steps} steps in {found.seconds:.0f} s.")
    for stage, each in {**found.errors, **beside}.items():
        identity = "" if each.identity is None else f", identity distance {each.identity:.3f}"
        words = {"floor": "floor (the model's own faces)", "ceiling": "ceiling (other faces)"}.get(stage, STAGES.get(stage, stage))
        say(f"  {words:30} pixels {each.pixel_rmse:5.1f} of 255, over scales {each.multi_scale:5.1f}{identity}")
    say(f"{out.with_suffix('.json')}: the latent.")


def _check(out: Path, photo: Path) -> None:
    from mien.apps.cli.sample import is_picture

    if not is_picture(out):
        raise UserError(f"--out {out}: invert draws one picture; give it a name that ends in .png.")
    for path in (out, out.with_suffix(".json")):
        check_file(path)
        check_apart(path, photo)


def _search(generator: LoadedGenerator, judge: Judge, encoder: Any, image: Any, settings: Settings, compare: int) -> tuple[Inversion, dict]:
    """The inversion with the judge's condition (where it knows all attributes), and the errors it is set beside."""
    from mien.apps.photos import judged
    from mien.explore.invert import invert as search
    from mien.explore.invert import references
    from mien.models.pictures import one_picture

    target = one_picture(image)
    names = generator.attribute_names
    given = judged(judge, target, names)
    total = settings.steps + settings.offset_steps + (settings.steps if compare else 0)
    with progress("Searching the latent", total, unit="steps") as advance:
        found = search(generator, target, encoder=encoder, classifier=judge.net, attributes=given, condition="judge", settings=settings,
                       on_step=lambda: advance(1))  # fmt: skip
        beside = references(generator, target, encoder=encoder, classifier=judge.net, settings=settings, count=compare,
                            on_step=lambda: advance(1)) if compare else {}  # fmt: skip
    if names and given is None:
        note("The judge does not know all of the model's attributes: the condition is the encoder's.")
    return found, beside


def _write(found: Inversion, photo: Any, out: Path, about: dict[str, Any]) -> None:
    """The strip photo | encoder | optimised | with offsets, and the latent beside it."""
    import torch

    from mien.apps.cli.strips import captioned_sheet, save_picture, save_text
    from mien.models.pictures import one_picture, to_uint8

    pictures = [one_picture(photo), *(to_uint8(each) for each in found.pictures.values())]
    names = ["photo", *(STAGES[stage] for stage in found.pictures)]
    save_picture(captioned_sheet(torch.cat(pictures), rows=[""], columns=names), out)
    save_text(found.to_json(about), out.with_suffix(".json"))
