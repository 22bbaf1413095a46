"""`mien ablate`: the channels that draw a part of the face or an attribute, silenced, scaled or inserted, with what that did."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien.apps.cli.console import note, print_json, print_table, progress, say
from mien.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mien.explore.ablate import Choice, Judge, Outcome, Ranking, Target
    from mien.explore.edit import Edit
    from mien.explore.load import LoadedGenerator

ACTIONS = ("silence", "scale", "insert")
PARTS_PLACES = "mouth, eyes, glasses, nose, hair, skin, background"
FILES = ("before-after.png", "channels.csv", "ablation.json", "edit.json")
RANK_FACES, RANK_FACES_ATTRIBUTE, CHOICE_FACES, MEASURE_FACES = 128, 512, 48, 128
FIRST_RANK, FIRST_CHOICE, FIRST_MEASURE = 1_000_000, 2_000_000, 3_000_000  # beyond --seed: never the faces that are shown
MOST_SHOWN = 32
COLUMNS = ("gain", "drop", "weight", "inside", "outside", "value")  # of channels.csv, explained in explore.ablate.Ranking


def ablate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a snapshot file, a bundled name or hf:user/repo.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write: picture, channels, effects, and the edit to use again.")],
    target: Annotated[str, typer.Option(metavar="NAME", help=f"{PARTS_PLACES}; or an attribute: Eyeglasses, Smiling, ...")] = "mouth",
    layer: Annotated[str, typer.Option(metavar="NAME", help="8x8, 16x16, ...; auto tries all but the first and takes the best.")] = "auto",
    action: Annotated[str, typer.Option(metavar="NAME", help="silence, scale, or insert (force the channels on).")] = "silence",
    value: Annotated[float | None, typer.Option(help="Of scale: the factor (0.5); of insert: the activation (the usual one).")] = None,
    channels: Annotated[str | None, typer.Option(metavar="3,7,9", help="These channels of --layer, instead of those found.")] = None,
    at: Annotated[str | None, typer.Option(metavar="PART", help="Do it at this part of the face; by default where the target is.")] = None,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="Change the whole map, not only the target's place.")] = False,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Faces in the picture.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Number of the first face in the picture.")] = 0,
    where: Annotated[str | None, typer.Option(metavar="A=1,B=0", help="Hold attributes at 0, 1 or between; others as in the data.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an ablation that is in the folder already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was found and measured, as JSON.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
) -> None:
    """Find the channels that draw a part of the face, and switch them off.

    mien ablate runs/demo --target mouth --out no-mouth

    Channels are ranked by logistic regression and by silencing each; how many are taken, and by which ranking, is what measured best.
    All effects are measured on faces that had no part in the choice. `mien edit` applies the folder's edit.json to other faces.
    """
    if action not in ACTIONS:
        raise UserError(f"--action {action}: say silence, scale or insert.{did_you_mean(action, ACTIONS)}")
    if count > MOST_SHOWN:
        raise UserError(f"--count {count}: the picture shows at most {MOST_SHOWN} faces.")
    if channels is not None and layer == "auto":
        raise UserError("--channels are those of a layer: name it with --layer.")
    if value is not None and (action == "silence" or not abs(value) <= 1e4):
        raise UserError(f"--value {value:g}: it goes with --action scale or insert, from -10000 to 10000.")
    given = None if channels is None else parse_channels(channels)
    check_replaceable(out, force)

    from mien.engine.build import choose_device
    from mien.explore.activations import find_layer, layer_names
    from mien.explore.load import load_generator
    from mien.explore.sample import parse_where
    from mien.metrics.judge import load_judge

    generator = load_generator(model, device=choose_device(device))
    if layer != "auto":
        find_layer(generator.net, layer)
    work = Work(generator, load_judge(device=generator.device), target, at, everywhere, parse_where(where, generator.attribute_names), seed)
    ranking, choice = work.best(layer_names(generator.net)[1:] if layer == "auto" else (layer,), given)
    edit = work.edit(ranking, choice.channels if choice else given or (), action, value)
    found = work.report(ranking, choice, edit, action)
    write(out, found, ranking, edit, work.picture(edit, count, action), attributes=work.judge.attribute_names)
    if as_json:
        print_json(found)
    else:
        tell(out, found)


class Work:
    """One ablation's inputs: the model, the judge, what is to be found, where it is changed, and which faces are drawn."""

    def __init__(self, generator: LoadedGenerator, judge: Judge, target: str, at: str | None, everywhere: bool,
                 held: dict[str, float], seed: int):
        from mien.explore.ablate import find_target
        from mien.explore.regions import boxes

        self.generator, self.judge, self.held, self.seed = generator, judge, held, seed
        self.target: Target = find_target(target, generator.crop, judge)
        self.everywhere = everywhere or (self.target.part is None and at is None)
        self.at = at
        self.where = boxes(at, generator.crop) if at else () if self.everywhere else self.target.boxes()
        if at and not self.where:
            raise UserError(f"The crop {generator.crop} of this model's pictures shows no {at}: give another --at.")

    def faces(self, first: int, count: int) -> tuple[Any, Any]:
        """(z [N, Z], attributes [N, A]) of the faces from number `first` on, counted from the seed."""
        from mien.explore.latents import latents
        from mien.explore.sample import attribute_rows

        start = self.seed + first
        return latents(range(start, start + count), self.generator.z_dim), attribute_rows(self.generator, self.held, count, start)

    def best(self, layers: tuple[str, ...], given: list[int] | None) -> tuple[Ranking, Choice | None]:
        """The ranking and the choice of the layer whose choice gains most; no choice when the channels are given."""
        from mien.explore import ablate as ablation

        many = RANK_FACES if self.target.is_part else RANK_FACES_ATTRIBUTE
        found: list[tuple[Ranking, Choice | None]] = []
        trouble: UserError | None = None
        with progress("looking through", len(layers), unit="layers") as advance:
            for layer in layers:
                try:
                    ranking = ablation.rank(self.generator, *self.faces(FIRST_RANK, many), layer, self.target, judge=self.judge,
                                            everywhere=self.everywhere)
                    choice = None if given is not None else ablation.choose(
                        self.generator, *self.faces(FIRST_CHOICE, CHOICE_FACES), ranking, self.target,
                        judge=None if self.target.is_part else self.judge, everywhere=self.everywhere)
                    found.append((ranking, choice))
                except UserError as error:
                    trouble = error
                advance(1)
        if not found:
            raise trouble or UserError("This model has no layer to look through.")
        return max(found, key=lambda each: each[1].outcome.gain(self.target) if each[1] else 0.0)

    def edit(self, ranking: Ranking, channels: tuple[int, ...] | list[int], action: str, value: float | None) -> Edit:
        """The edit, made for this model. UserError for a channel that the layer has not."""
        from mien.explore.ablate import steps
        from mien.explore.edit import Edit

        for channel in channels:
            if channel not in ranking.channels:
                raise UserError(f"Layer {ranking.layer} has channels 0 to {len(ranking.channels) - 1}, not {channel}.")
        usual = {channel: float(ranking.value[ranking.channels.index(channel)]) for channel in channels}
        put = usual if action == "insert" and value is None else {"silence": 0.0, "scale": 0.5}.get(action, 0.0) if value is None else value
        name = f"{action} {self.target.name}{f' at {self.at}' if self.at else ''}"
        return Edit(name, self.generator.meta.get("sha256"), steps(ranking.layer, channels, action, self.where, put))

    def report(self, ranking: Ranking, choice: Choice | None, edit: Edit, action: str) -> dict[str, Any]:
        """What ablation.json says: the choice, the effects on fresh faces, the attributes that moved most, the trials."""
        from mien.explore.ablate import compare, look
        from mien.explore.edit import apply
        from mien.explore.sample import generate

        faces = self.faces(FIRST_MEASURE, MEASURE_FACES)
        before = look(generate(self.generator, *faces), self.target, self.judge)
        outcome = compare(before, look(apply(self.generator, *faces, edit), self.target, self.judge), self.target)
        moved = sorted(zip(self.judge.attribute_names, outcome.logits.tolist()), key=lambda each: -abs(each[1]))
        used = sorted({channel for step in edit.steps for channel in step.channels})  # type: ignore[union-attr]
        trials = [{"order": order, "count": number, **effects(each)} for order, number, each in choice.tried] if choice else []
        return {"format": "mien-ablation/1", "model": str(self.generator.path), "sha256": self.generator.meta.get("sha256"),
                "target": asdict(self.target), "action": action, "layer": ranking.layer, "channels": used,
                "order": choice.order if choice else None, "place": self.at or ("everywhere" if self.everywhere else self.target.part),
                "measured_on": {"faces": MEASURE_FACES, "first": self.seed + FIRST_MEASURE},
                "presence_before": {name: float(each.mean()) for name, each in before.presence.items()},
                **effects(outcome), "logits": {name: round(change, 4) for name, change in moved}, "trials": trials}  # fmt: skip

    def picture(self, edit: Edit, count: int, action: str) -> Any:
        """The faces before and after, a row each."""
        import torch

        from mien.explore.edit import apply
        from mien.explore.sample import generate, labelled_grid
        from mien.models.pictures import to_uint8

        faces = self.faces(0, count)
        images = torch.cat([generate(self.generator, *faces), apply(self.generator, *faces, edit)])
        done = {"silence": "off", "scale": "scaled", "insert": "forced on"}[action]
        return labelled_grid(to_uint8(enlarged(images)), ["before", f"{self.target.name}\nchannels\n{done}"])


def enlarged(images: Any, least_px: int = 128) -> Any:
    """Images [N, 3, R, R] repeated pixel by pixel to at least `least_px`, so that a viewer sees them."""
    times = max(1, least_px // images.shape[-1])
    return images.repeat_interleave(times, 2).repeat_interleave(times, 3)


def effects(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON, without the judge's logits."""
    rounded = {name: {key: round(number, 4) for key, number in getattr(outcome, name).items()} for name in ("fell", "error")}
    same = None if outcome.identity is None else round(outcome.identity, 4)
    return {**rounded, "identity": same, "inside": round(outcome.inside, 5), "outside": round(outcome.outside, 5)}


def parse_channels(text: str) -> list[int]:
    """'3,7,9' -> [3, 7, 9]. UserError for anything else."""
    parts = text.replace(" ", "").split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise UserError(f"--channels {text}: write channel numbers, for example 3,7,9.")
    return sorted({int(part) for part in parts})


def check_replaceable(folder: Path, force: bool) -> None:
    """Raises UserError when `folder` is there, unless --force was given and it holds nothing but an ablation."""
    if not folder.exists():
        return
    if not force:
        raise UserError(f"{folder} is there already: give another --out, or --force to replace it.")
    if not folder.is_dir() or any(each.name not in FILES for each in folder.iterdir()):
        raise UserError(f"{folder} holds more than an ablation: --force will not delete it. Give another --out.")


def write(folder: Path, found: dict[str, Any], ranking: Ranking, edit: Edit, picture: Any, *,
          attributes: Sequence[str]) -> None:
    """The folder with its four files, there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        picture.save(temporary / "before-after.png")
        (temporary / "ablation.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (temporary / "edit.json").write_text(edit.to_json() + "\n", encoding="utf-8")
        with open(temporary / "channels.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["channel", "used", *COLUMNS, *(f"logit_{name}" for name in attributes)])
            for i, channel in enumerate(ranking.channels):
                numbers = [f"{float(getattr(ranking, name)[i]):.5g}" for name in COLUMNS]
                logits = [f"{each:.4f}" for each in ranking.logits[i].tolist()]
                table.writerow([channel, int(channel in found["channels"]), *numbers, *logits])
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def tell(out: Path, found: dict[str, Any]) -> None:
    """The result in a few lines."""
    used = ", ".join(map(str, found["channels"]))
    say(f"{out}: {found['action']} {len(found['channels'])} channels of {found['layer']} ({used}), place: {found['place']}.")
    print_table(["presence of", "before", "fell by", "+-"], [
        [name, found["presence_before"][name], f"{fell:.1%}", f"{found['error'][name]:.1%}"] for name, fell in found["fell"].items()])
    top = ", ".join(f"{name} {change:+.2f}" for name, change in list(found["logits"].items())[:5])
    say(f"identity kept {found['identity']:.2f}; pixels changed {found['inside']:.3f} in its place, {found['outside']:.3f} elsewhere; "
        f"attributes that moved most (logits): {top}.")
    if found["fell"][found["target"]["name"]] <= 0 and found["action"] == "silence":
        note("The target did not get less: this model draws it by channels that draw the rest as well.")
