"""Begin with another model's weights, though the architecture may differ: load what fits, re-shape what has a meaning, name the rest.

Every input and output of a layer has a label: an attribute's name, a latent's number, a channel of a map of some size, "stddev". Weights
are copied where the labels agree. Old outputs get weight 0 for inputs they did not have, so that they compute what they did; new outputs
keep their fresh weights, and nobody listens to them yet (as the wider networks of Chen et al. 2016, "Net2Net", without copies of units).
So a projection or another layer of attributes only begins at 0 where it is new or knows none of them; not under spectral norm, 0 / 0 there.
Attributes are signed, so dropping one leaves the network where it is undecided about it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mien.config import validate
from mien.engine import checkpoint
from mien.engine.growth import plan_of
from mien.engine.state import TrainState
from mien.errors import UserError
from mien.models.catalogue import Discriminator, Generator, build_discriminator, build_generator
from mien.models.dcgan import DCGANDiscriminator, DCGANGenerator
from mien.models.layers import Project, Spectral
from mien.models.r3 import R3Generator
from mien.models.resnet import ConditionalBatchNorm2d, ResNetDiscriminator, ResNetGenerator
from mien.models.style import Conv as ScaledConv
from mien.models.style import Linear as ScaledLinear
from mien.models.style import StyleDiscriminator
from mien.runs import Run

Labels = list[Hashable]
Side = tuple[Labels, Labels]  # of a layer: what its outputs are, what its inputs are


@dataclass(frozen=True)
class Origin:
    """What --from names: a run, or whatever `find_snapshot` resolves to a snapshot. Read only when a new run begins."""

    name: str
    find_snapshot: Callable[[str], Path]


@dataclass(frozen=True)
class Source:
    """A model to begin from. A snapshot's G is the average, it has a D only where one lies beside it, and no optimiser state."""

    path: Path
    sha256: str
    nimg: int
    size: int
    attributes: tuple[str, ...]
    G: Generator
    ema: Generator
    D: Discriminator | None = None
    origin_nimg: int = 0
    """Images seen before `nimg` began to count, where it was begun from another."""
    moments: Mapping[str, torch.Tensor] | None = None
    """'opt_g.NAME.exp_avg' and so on."""
    critic_sha256: str | None = None
    """Of the file that a snapshot's D came from."""

    def describe(self) -> dict[str, object]:
        critic = {"critic_sha256": self.critic_sha256} if self.critic_sha256 else {}
        return {"path": str(self.path), "sha256": self.sha256, "nimg": self.nimg, **critic}


@dataclass(frozen=True)
class Fate:
    """What became of one parameter."""

    name: str
    what: str
    """"loaded", "re-shaped", "new" or "dropped"."""
    note: str = ""


COLOURS = ("red", "green", "blue")
WHAT = ("loaded", "re-shaped", "new", "dropped")


# --- reading ----------------------------------------------------------------------------------------------------------


def read(origin: Origin) -> Source:
    """The newest whole checkpoint of a run; of anything else, and of a run without one, the snapshot, with the D beside it if there is one.

    UserError when there is neither.
    """
    path = Path(origin.name)
    if (path / "config.json").is_file():
        run = Run.open(path)
        newest, _ = checkpoint.newest_valid(run.checkpoints())
        if newest is not None:
            return _read_checkpoint(run, newest)
    net, meta = checkpoint.load_snapshot(found := origin.find_snapshot(origin.name))
    if meta.get("alpha") is not None:
        raise _is_growing(origin.name, meta["size"])
    D, critic_sha256 = checkpoint.load_critic(found)
    return Source(path=found, sha256=meta["sha256"], nimg=int(meta.get("nimg", 0)), size=meta["size"], attributes=tuple(meta["attributes"]),
                  G=net, ema=net, D=D, critic_sha256=critic_sha256)  # fmt: skip


def _read_checkpoint(run: Run, path: Path) -> Source:
    said = run.config
    if not {"size", "attributes"} <= said.get("store", {}).keys() or "config" not in said:
        raise UserError(f"{run.path} does not say with what it was begun (its config.json lacks it); name one of its snapshots.")
    config, names = validate(said["config"]), tuple(said["store"]["attributes"])
    tensors, plain = checkpoint.load_checkpoint(path)
    phase = plan_of(config, said["store"]["size"]).at(int(plain["nimg"]))
    if phase.fading:
        raise _is_growing(str(run.path), phase.size)
    family, g, d = config.model.family, config.model.generator_options(), config.model.discriminator_options()
    G, ema = (build_generator(family, size=phase.size, attributes=len(names), options=g) for _ in range(2))
    D = build_discriminator(family, size=phase.size, attributes=len(names), options=d)
    for role, net in (("G", G), ("ema", ema), ("D", D)):
        net.load_state_dict({name.removeprefix(f"{role}."): value for name, value in tensors.items() if name.startswith(f"{role}.")})
    sha256 = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["sha256"]["state.safetensors"]
    return Source(path=path, sha256=sha256, nimg=int(plain["nimg"]), size=phase.size, attributes=names, G=G, ema=ema, D=D,
                  origin_nimg=int(plain.get("origin_nimg", 0)), moments=tensors)  # fmt: skip


def _is_growing(name: str, size: int) -> UserError:
    return UserError(f"{name} is in the middle of growing to {size} px: let it finish, or begin from an earlier snapshot.")


# --- transplanting ----------------------------------------------------------------------------------------------------


def transplant(source: Source, state: TrainState, names: Sequence[str]) -> list[Fate]:
    """Put what fits of `source` into a fresh `state` for the attributes `names`, and mark what is new for warming up.

    Optimiser moments come along for the parameters that fit exactly. Without a D in the source the new D learns at its full rate, and all
    of G warms up instead: what a new D says at first is not worth following. Raises UserError when nothing fits.
    """
    g, fates = _into(state.G, generator_labels(state.G, names), source.G, generator_labels(source.G, source.attributes)), []
    state.ema.load_state_dict(state.G.state_dict())
    _into(state.ema, generator_labels(state.ema, names), source.ema, generator_labels(source.ema, source.attributes))
    fates += [Fate(f"G.{fate.name}", fate.what, fate.note) for fate in g]
    if source.D is None:
        fates += [Fate(f"D.{name}", "new", _shape(p)) for name, p in state.D.named_parameters()]
    else:
        d = _into(state.D, discriminator_labels(state.D, names), source.D, discriminator_labels(source.D, source.attributes))
        fates += [Fate(f"D.{fate.name}", fate.what, fate.note) for fate in d]
    if not any(fate.what in ("loaded", "re-shaped") and fate.name.endswith("weight") for fate in fates):
        raise UserError(f"Nothing of {source.path} fits this recipe: its networks are of another kind. Leave --from away, or choose a "
                        "--preset like the one it was trained with.")  # fmt: skip
    exact = {fate.name for fate in fates if fate.what == "loaded"}
    moments = source.moments or {}
    state.load_moments({key: value for key, value in moments.items() if _owner(key) in exact})
    fresh = [fate.name for fate in fates if fate.what in ("re-shaped", "new")]
    state.warming = dict.fromkeys(fresh if source.D else [f"G.{name}" for name, _ in state.G.named_parameters()], 0)
    state.origin_nimg = source.nimg + source.origin_nimg
    return fates


def _owner(key: str) -> str:
    """'opt_d.trunk.4x4.conv.weight.exp_avg' -> 'D.trunk.4x4.conv.weight'."""
    role, _, rest = key.partition(".")
    return f"{role.removeprefix('opt_').upper()}.{rest.rpartition('.')[0]}" if role.startswith("opt_") else ""


@torch.no_grad()
def _into(net: nn.Module, labels: Mapping[str, Side], old: nn.Module, old_labels: Mapping[str, Side]) -> list[Fate]:
    """Copy `old` into `net`, layer by layer; what became of each parameter."""
    fates, before = [], dict(old.named_modules())
    there = {label for side in old_labels.values() for labels_of in side for label in labels_of}
    for name, layer in net.named_modules():
        if name not in labels:
            continue
        was = before[name] if name in old_labels else None
        theirs = {} if was is None else _tensors(was)
        estimate_holds = True  # spectral norm's: inputs of weight 0 do not move it
        for slot, tensor in _tensors(layer).items():
            if was is None or slot not in theirs:
                what, note, same_norm = "new", _shape(tensor), False
            else:
                past = theirs[slot] if slot != "weight" else theirs[slot] * (_scale(was) / _scale(layer))
                what, note, same_norm = _copy(tensor, _dims(layer, slot, labels[name]), past, _dims(was, slot, old_labels[name]))
            if what == "new" and slot == "weight" and _begins_silent(layer, labels[name], there):
                tensor.zero_()
                note += ": 0 at first"
            if isinstance(tensor, nn.Parameter):
                fates.append(Fate(f"{name}.{slot}", what, note))
                estimate_holds &= same_norm or slot == "bias"
        if isinstance(layer, Spectral) and not estimate_holds:
            layer.iterate(15)
    mine = {name for name, _ in net.named_parameters()}
    return fates + [Fate(name, "dropped", _shape(p)) for name, p in old.named_parameters() if name not in mine]


def _tensors(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}


def _scale(layer: nn.Module) -> float:
    """What a weight counts times: in style's layers that depends on how many inputs there are."""
    return layer.scale if isinstance(layer, (ScaledLinear, ScaledConv)) else 1.0


def _begins_silent(layer: nn.Module, side: Side, there: set[Hashable]) -> bool:
    """Whether a new layer speaks of attributes only, and to outputs that were there; spectral norm would divide 0 by 0."""
    attributes_only = bool(side[1]) and all(isinstance(label, str) and label not in COLOURS for label in side[1])
    return attributes_only and not there.isdisjoint(side[0]) and not isinstance(layer, Spectral)


def _dims(layer: nn.Module, slot: str, side: Side) -> list[tuple[str, Labels] | None]:
    """For each dimension of one of a layer's tensors: ("output" or "input", labels), or None for a kernel's."""
    tensor = _tensors(layer)[slot]
    outs, ins = ("output", side[0]), ("input", side[1])
    if slot == "v":  # spectral norm's, shaped as one output's weights
        return [None, ins, *[None] * (tensor.ndim - 2)]
    if tensor.ndim < 2:
        return [outs] * tensor.ndim
    return [*((ins, outs) if isinstance(layer, nn.ConvTranspose2d) else (outs, ins)), *[None] * (tensor.ndim - 2)]


def _copy(new: torch.Tensor, dims: list, old: torch.Tensor, old_dims: list) -> tuple[str, str, bool]:
    """Copy the part of `old` whose labels `new` has too; `new` stays fresh where nothing fits.

    What became of `new`, a note, and whether it is `old` but for inputs of weight 0.
    """
    if dims == old_dims and new.shape == old.shape:
        new.copy_(old)
        return "loaded", "", True
    fits = new.ndim == old.ndim and all(
        n == o if mine is None else len(mine[1]) == n and len(theirs[1]) == o and bool(set(mine[1]) & set(theirs[1]))
        for mine, theirs, n, o in zip(dims, old_dims, new.shape, old.shape)
    )
    if not fits:
        return "new", _shape(new), False
    work, old = new.detach().cpu().clone(), old.detach().cpu()
    to: list[torch.Tensor] = []
    frm: list[torch.Tensor] = []
    for mine, theirs, length in zip(dims, old_dims, new.shape):
        common = [(i, i) for i in range(length)] if mine is None else _common(mine[1], theirs[1])
        to.append(torch.tensor([i for i, _ in common]))
        frm.append(torch.tensor([j for _, j in common]))
    for d, mine in enumerate(dims):
        if mine is not None and mine[0] == "input":  # what an old output did not hear of, it does not hear
            places = list(to)
            places[d] = torch.tensor(sorted(set(range(new.shape[d])) - set(to[d].tolist())), dtype=torch.long)
            work[torch.meshgrid(*places, indexing="ij")] = 0.0
    work[torch.meshgrid(*to, indexing="ij")] = old[torch.meshgrid(*frm, indexing="ij")]
    new.copy_(work)
    more_inputs = all(mine is None or (set(theirs[1]) <= set(mine[1]) if mine[0] == "input" else mine == theirs)
                      for mine, theirs in zip(dims, old_dims))  # fmt: skip
    return "re-shaped", f"{_shape(old)} -> {_shape(new)}: {', '.join(_changes(dims, old_dims))}", more_inputs


def _common(mine: Labels, theirs: Labels) -> list[tuple[int, int]]:
    where = {label: j for j, label in enumerate(theirs)}
    return [(i, where[label]) for i, label in enumerate(mine) if label in where]


def _changes(dims: list, old_dims: list) -> Iterator[str]:
    """'+ 1 input (stddev)', '- 2 outputs'."""
    for mine, theirs in zip(dims, old_dims):
        if mine is None:
            continue
        for sign, some, rest in (("+", mine[1], set(theirs[1])), ("-", theirs[1], set(mine[1]))):
            extra = [label for label in some if label not in rest]
            named = [label for label in extra if isinstance(label, str)]
            if extra:
                yield f"{sign} {len(extra)} {mine[0]}{'s' * (len(extra) > 1)}" + (f" ({', '.join(named[:4])})" if named else "")
    if all(mine is None or set(mine[1]) == set(theirs[1]) for mine, theirs in zip(dims, old_dims)):
        yield "in another order"


def _shape(tensor: torch.Tensor) -> str:
    return str(list(tensor.shape))


# --- labels -----------------------------------------------------------------------------------------------------------


def by_shape(net: nn.Module) -> dict[str, Side]:
    """Labels that agree only where a layer has the same name, and as many outputs and inputs: for layers of which no more is known."""
    labels: dict[str, Side] = {}
    for name, layer in net.named_modules():
        tensors = _tensors(layer).values()
        if tensors:
            shape = max((tuple(tensor.shape) for tensor in tensors), key=len)
            sides: list[Labels] = [[(name, length, i) for i in range(length)] for length in (*shape, 0, 0)[:2]]
            labels[name] = (sides[1], sides[0]) if isinstance(layer, nn.ConvTranspose2d) else (sides[0], sides[1])
    return labels


def generator_labels(net: Generator, names: Sequence[str]) -> dict[str, Side]:
    """Layer name -> what its outputs and inputs are."""
    z: Labels = [("z", i) for i in range(net.z_dim)]
    labels: dict[str, Side] = {}
    last: Labels = [*z, *(names if net.condition == "concat" else [])]
    if isinstance(net, ResNetGenerator):
        labels = by_shape(net)
        labels["stem"] = (labels["stem"][0], last)
        for name, layer in net.named_modules():
            if isinstance(layer, ConditionalBatchNorm2d) and layer.gain is not None:
                labels[f"{name}.gain"] = labels[f"{name}.shift"] = (labels[name][0], list(names))
        return labels
    if not isinstance(net, DCGANGenerator):  # style and r3: an embedding of the attributes beside the latent
        labels, told = by_shape(net), list[Hashable]()
        first, where = "mapping.layers.0", "mapping.embedding"
        if isinstance(net, R3Generator):
            first, where = "blocks.4x4.basis.amounts", "embedding"
        if where in labels:
            told, _ = labels[where]
            labels[where] = (told, list(names))
        labels[first] = (labels[first][0], [*z, *told])
        return labels
    for block, layers in net.blocks.named_children():
        for kind, layer in layers.named_children():
            name = f"blocks.{block}.{kind}"
            if kind == "conv":
                channels = _outputs(layer)
                outs: Labels = [*COLOURS] if block == "image" else [(block, c) for c in range(channels)]
                labels[name] = (outs, last)
                if isinstance(layer, Project):  # 16 places of a 4x4 map for each channel
                    outs = outs[: channels // 16]
                last = outs
            elif kind == "norm":
                labels[name] = (last, [])
    return labels


def discriminator_labels(net: Discriminator, names: Sequence[str]) -> dict[str, Side]:
    labels: dict[str, Side] = {}
    last: Labels = [*COLOURS, *(names if net.condition == "channels" else [])]
    if not isinstance(net, DCGANDiscriminator):
        labels = by_shape(net)
        if isinstance(net, ResNetDiscriminator):
            block = next(name for name, _ in net.trunk.named_children())
            for name in (f"trunk.{block}.conv1", f"trunk.{block}.shortcut"):
                labels[name] = (labels[name][0], last)
        if isinstance(net, StyleDiscriminator):
            heard: Labels = [("conv", c) for c in range(net.conv.out_channels)]
            labels["conv"] = (labels["conv"][0], [*heard, "stddev"] if net.crowd else heard)
        if net.embedding is not None:
            labels["embedding"] = (labels["logit"][1], list(names))
        return labels
    for block, layers in net.trunk.named_children():
        for kind, layer in layers.named_children():
            name = f"trunk.{block}.{kind}"
            if kind == "stddev":
                last = [*last, "stddev"]
            elif kind == "conv":
                outs: Labels = [(block, c) for c in range(_outputs(layer))]
                labels[name], last = (outs, last), outs
            elif kind == "norm":
                labels[name] = (last, [])
    features: Labels = last if net.pool == "sum" else [(label, place) for label in last for place in range(16)]
    if net.crowd is not None:
        labels["crowd.tensor"] = ([("distance", i) for i in range(_outputs(net.crowd.tensor))], features)
        features = [*features, *(("kernel", i) for i in range(net.crowd.kernels))]
    labels["logit"] = (["logit"], features)
    if net.embedding is not None:
        labels["embedding"] = (features, list(names))
    return labels


def _outputs(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


# --- telling ----------------------------------------------------------------------------------------------------------


def sentence(source: Source, fates: Sequence[Fate]) -> str:
    """'Began with the weights of X (80,000 images): parameters 25 loaded, 1 re-shaped.'"""
    counts = [(sum(fate.what == what for fate in fates), what) for what in WHAT]
    told = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f"Began with the weights of {source.path} ({source.nimg:,} images): parameters {told}."


def table(source: Source, fates: Sequence[Fate]) -> list[str]:
    """Lines for a person: how many parameters of each network fit, and which did not."""
    lines = [f"From {source.path} ({source.nimg:,} images):", f"     {''.join(f'{what:>11}' for what in WHAT)}"]
    for role in ("G", "D"):
        counts = [sum(fate.what == what and fate.name.startswith(f"{role}.") for fate in fates) for what in WHAT]
        lines.append(f"  {role}  {''.join(f'{count:>11}' for count in counts)}")
    for what in WHAT[1:]:
        there = [fate for fate in fates if fate.what == what]
        if what == "new" and source.D is None:
            there = [fate for fate in there if not fate.name.startswith("D.")]
            lines.append("  new        all of D: a snapshot has none; G waits for it, at a low rate")
        lines += [f"  {what:<10} {fate.name}  {fate.note}" for fate in there]
    return lines
