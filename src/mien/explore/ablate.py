"""Which channels of a layer draw a part of the face or an attribute, and what happens when they are silenced, scaled or inserted.

Two readings, as effect sizes, and a rule:
- *weight*: logistic regression of a layer's activations, standardised, against where the part is; every cell of every face is an
  example. Radford, Metz & Chintala 2016 (DCGAN), section 6.3.2, found the channels of windows so and dropped them;
- *gain*: silence one channel at a time and see how much less of the part there is, beyond what other parts lost (Bau et al. 2019, GAN
  dissection, call it the causal effect);
- which order (by weight, by gain, by both) and how many channels: what measured best on other faces than those that gave the order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from mien.errors import UserError, did_you_mean
from mien.explore import regions
from mien.explore.activations import changed, find_layer, record
from mien.explore.edit import ChannelsStep, Edit, apply
from mien.explore.edit_effects import Judge
from mien.explore.load import LoadedGenerator
from mien.explore.sample import generate
from mien.models.pictures import to_uint8

ORDERS = ("gain", "both", "weight")
WATCHED = ("eyes", "mouth", "hair")  # parts that a side effect is measured on, beside the target
ROWS = 256  # faces in one pass
POSITIONS = 60_000  # that a regression takes
PLACES = {  # where a judged attribute shows; the others show in no one place
    **dict.fromkeys(("Eyeglasses", "Bags_Under_Eyes", "Arched_Eyebrows", "Bushy_Eyebrows"), "glasses"), "Narrow_Eyes": "eyes",
    **dict.fromkeys(("Smiling", "Mouth_Slightly_Open", "Wearing_Lipstick", "Big_Lips", "Mustache", "Goatee"), "mouth"),
    **dict.fromkeys(("Bangs", "Bald", "Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Wearing_Hat", "Receding_Hairline"), "hair"),
    **dict.fromkeys(("Big_Nose", "Pointy_Nose"), "nose"), "Rosy_Cheeks": "skin", "Pale_Skin": "skin",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What is to be found: a part of the face (regions.PARTS) or one of the judge's attributes; part: where it shows, None: anywhere."""

    name: str
    part: str | None
    crop: str

    def boxes(self) -> tuple[regions.Box, ...]:
        """Shares of the picture where it is; empty for no one place."""
        return regions.boxes(self.part, self.crop) if self.part else ()

    @property
    def is_part(self) -> bool:
        return self.name in regions.PARTS


def find_target(name: str, crop: str | None, judge: Judge | None = None) -> Target:
    """The part or attribute of that name. UserError when there is none, or the crop does not show it."""
    attributes = judge.attribute_names if judge else ()
    if name not in (*regions.PARTS, *attributes):
        near = did_you_mean(name, (*regions.PARTS, *attributes))
        raise UserError(f"Nothing to find is called {name!r}.{near} The parts: {', '.join(regions.PARTS)}; or any attribute of the judge.")
    part = name if name in regions.PARTS else PLACES.get(name)
    if part and not regions.boxes(part, crop):
        raise UserError(f"The crop {crop} of this model's pictures shows no {part}.")
    regions.crop_frame(crop)
    assert crop is not None
    return Target(name, part, crop)


@dataclass(frozen=True)
class Look:
    """Faces as measured: images float [N, 3, R, R] in -1..1, presence [N] 0..1 by name, the judge's logits [N, A] and features."""

    images: Tensor
    presence: dict[str, Tensor]
    logits: Tensor
    features: Tensor | None


@torch.no_grad()
def look(images: Tensor, target: Target, judge: Judge | None) -> Look:
    """Measures the target's presence, the watched parts' (those the crop shows) and, with a judge, the attributes.

    A part's presence is `regions.presences`', an attribute's the judge's probability. Raises ValueError for an attribute without a judge.
    """
    parts = [part for part in dict.fromkeys([target.name, *WATCHED]) if part in regions.PARTS and regions.boxes(part, target.crop)]
    presence = regions.presences(images, parts, target.crop)
    if judge is None:
        if not target.is_part:
            raise ValueError(f"{target.name} is an attribute: it takes a judge")
        return Look(images, presence, torch.zeros(len(images), 0), None)
    features, probabilities = judge.features_and_probabilities(to_uint8(images))
    judged = torch.from_numpy(probabilities)
    if not target.is_part:
        presence[target.name] = judged[:, judge.attribute_names.index(target.name)]
    return Look(images, presence, judged.logit(1e-6), torch.from_numpy(features))


@dataclass(frozen=True)
class Ranking:
    """The channels of a layer by how much they draw a target, by gain, best first; every tensor is in that order, [C].

    weight   log-odds of being in the part per standard deviation of the activation
    drop     share of the target's presence that goes when the channel is silenced (0.1: a tenth; below 0: more of it)
    gain     drop less the largest share of another watched part's presence that goes meanwhile
    inside, outside   mean absolute change of pixels in and out of the part's place, 0..1
    value    mean activation where the target is, what `insert` puts there
    logits   change of each judged attribute's logit, [C, A]; A is 0 without a judge
    """

    layer: str
    channels: tuple[int, ...]
    weight: Tensor
    drop: Tensor
    gain: Tensor
    inside: Tensor
    outside: Tensor
    value: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Outcome:
    """What an edit did to faces, means over them.

    fell      share of the presence that went, by name: the target's and each watched part's (1: all; below 0: more than before)
    error     its standard error over faces, by name
    logits    change of each judged attribute's logit, [A]
    identity  cosine of the judge's features before and after; None without a judge
    inside, outside   mean absolute change of pixels in and out of the target's place, 0..1
    """

    fell: dict[str, float]
    error: dict[str, float]
    logits: Tensor
    identity: float | None
    inside: float
    outside: float

    def gain(self, target: Target) -> float:
        """How much more of the target went than of any other watched part. The part that an attribute shows in is no other."""
        others = [value for name, value in self.fell.items() if name not in (target.name, target.part)]
        return self.fell[target.name] - max([0.0, *others])


# ------------------------------------------------------------------------------------------------------------------------------
# Ranking


def logistic_weights(activation: Tensor, masks: Tensor) -> Tensor:
    """[C]: the weights of a logistic regression of positions' standardised activations [N, C, H, W] against masks [N, H, W] in 0..1.

    Both classes weigh the same; ridge penalty 1e-3; at most POSITIONS, drawn at random. Raises UserError when all positions are inside, or
    all outside.
    """
    x, y = activation.movedim(1, -1).flatten(0, -2), masks.flatten()
    if len(x) > POSITIONS:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:POSITIONS].to(x.device)
        x, y = x[rows], y[rows]
    if not 0 < y.mean() < 1:
        raise UserError("The faces drawn all have it, or none has: nothing tells its channels apart. Draw more, or hold no attribute.")
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    balance = torch.where(y > 0.5, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    weight, bias = x.new_zeros(x.shape[1], requires_grad=True), x.new_zeros(1, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = binary_cross_entropy_with_logits(x @ weight + bias, y, weight=balance) + 1e-3 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    return weight.detach()


@torch.no_grad()
def silenced(generator: LoadedGenerator, z: Tensor, attributes: Tensor, layer: str, *,
             where: Sequence[regions.Box] = ()) -> Iterator[Tensor]:
    """For each channel of a layer in turn the faces [N, 3, R, R] without it, several channels to a pass. `where`: only there."""
    net, device = generator.net.eval(), generator.device
    count, done = len(z), 0
    with record(net, [layer]) as seen:
        net(z.to(device), attributes.to(device))
    channels, side = seen[layer].shape[1], seen[layer].shape[-1]
    gone = regions.mask_of(where, side).to(device)
    together = max(1, ROWS // count)
    while done < channels:
        block = torch.arange(done, min(done + together, channels), device=device)
        keep = torch.ones(len(block), channels, side, side, device=device)
        keep[torch.arange(len(block)), block] = 1 - gone
        mask = keep.repeat_interleave(count, 0)
        with changed(net, {layer: lambda x, mask=mask: x * mask}):  # type: ignore[misc]
            images = net(z.to(device).repeat(len(block), 1), attributes.to(device).repeat(len(block), 1))
        yield from images.float().cpu().split(count)
        done += len(block)


def rank(generator: LoadedGenerator, z: Tensor, attributes: Tensor, layer: str, target: Target, *, judge: Judge | None = None,
         everywhere: bool = False, effect_faces: int = 16) -> Ranking:
    """Ranks the channels of a layer by z [N, Z], attributes [N, A]: all N faces for the regression, the first few for silencing.

    everywhere: silence in the whole map; otherwise only where the target is. judge: needed for an attribute, else for side effects.
    Raises UserError for an unknown layer, and when no face, or every face, has the target.
    """
    find_layer(generator.net, layer)
    with record(generator.net, [layer]) as seen:
        images = generate(generator, z, attributes, batch=len(z))
    weight, value = _weights(seen[layer].float().cpu(), look(images, target, None if target.is_part else judge), target)
    before = look(images[:effect_faces], target, judge)
    rows, where = (z[:effect_faces], attributes[:effect_faces]), () if everywhere else target.boxes()
    outcomes = [compare(before, look(after, target, judge), target) for after in silenced(generator, *rows, layer, where=where)]
    drop = torch.tensor([each.fell[target.name] for each in outcomes])
    gain = torch.tensor([each.gain(target) for each in outcomes])
    order = gain.argsort(descending=True)
    inside, outside = (torch.tensor([getattr(each, name) for each in outcomes]) for name in ("inside", "outside"))
    logits = torch.stack([each.logits for each in outcomes])
    return Ranking(layer, tuple(order.tolist()), *(x[order] for x in (weight, drop, gain, inside, outside, value, logits)))


def _weights(activation: Tensor, faces: Look, target: Target) -> tuple[Tensor, Tensor]:
    """(regression weights, mean activation where the target is), each [C]."""
    side = activation.shape[-1]
    if target.is_part:
        masks = regions.resized(regions.part_masks(faces.images, target.name, target.crop), side)
    else:  # faces are the examples: the mean over the attribute's place against the judge's word
        place = regions.mask_of(target.boxes(), side)
        masks = (faces.presence[target.name] > 0.5).float()[:, None, None]
        activation = ((activation * place).sum((2, 3)) / place.sum())[..., None, None]
    inside = (masks > 0.5).float()[:, None]
    return logistic_weights(activation, masks), (activation * inside).sum((0, 2, 3)) / inside.sum().clamp(min=1)


# ------------------------------------------------------------------------------------------------------------------------------
# Doing it


def steps(ranking_layer: str, channels: Sequence[int], action: str, where: Sequence[regions.Box],
          value: float | Mapping[int, float] = 0.0) -> tuple[ChannelsStep, ...]:
    """The edit's steps, one for each box of `where` (none: everywhere); with a value for each channel, one for each of them too."""
    places: list[regions.Box | None] = list(where) or [None]
    groups = [((channel,), value[channel]) for channel in channels] if isinstance(value, Mapping) else [(tuple(channels), value)]
    return tuple(ChannelsStep(ranking_layer, chosen, action, float(number), place) for chosen, number in groups for place in places)


@torch.no_grad()
def compare(before: Look, after: Look, target: Target) -> Outcome:
    """What happened from one look at some faces to another at the same faces."""
    fell, error = {}, {}
    for name, had in before.presence.items():
        share = after.presence[name] / had.mean().clamp(min=1e-6)
        fell[name] = 1 - float(share.mean())
        paired = share - had / had.mean().clamp(min=1e-6)
        error[name] = float(paired.std() / len(had) ** 0.5) if len(had) > 1 else 0.0
    change = (after.images - before.images).abs().mean(1) / 2  # [N, R, R]
    place = regions.mask_of(target.boxes(), change.shape[-1])
    same = None if before.features is None or after.features is None else float(cosine_similarity(before.features, after.features).mean())
    inside = float((change * place).sum() / place.sum() / len(change))
    outside = float((change * (1 - place)).sum() / (1 - place).sum().clamp(min=1) / len(change))
    return Outcome(fell, error, (after.logits - before.logits).mean(0), same, inside, outside)


@dataclass(frozen=True)
class Choice:
    """Which channels to silence, in what order they were taken (ORDERS), what that did, and every (order, number, outcome) tried."""

    order: str
    channels: tuple[int, ...]
    outcome: Outcome
    tried: tuple[tuple[str, int, Outcome], ...]


def ordered(ranking: Ranking, order: str) -> tuple[int, ...]:
    """The channels that speak for the target, best first: by gain, by weight, or by both, each divided by its largest."""
    both = ranking.gain / ranking.gain.abs().max().clamp(min=1e-6) + ranking.weight / ranking.weight.abs().max().clamp(min=1e-6)
    key = {"gain": ranking.gain, "weight": ranking.weight, "both": both}[order]
    return tuple(ranking.channels[i] for i in key.argsort(descending=True).tolist() if key[i] > 0)


def choose(generator: LoadedGenerator, z: Tensor, attributes: Tensor, ranking: Ranking, target: Target, *, judge: Judge | None = None,
           everywhere: bool = False) -> Choice:
    """Which of the ranked channels to silence, by trying on these faces, z [N, Z] and attributes [N, A].

    Tried are 1, 2, 3, 4, 6, 8, 12, ... channels of each order. The rule: of the trials whose gain (how much more of the target went than
    of any other watched part) is within one standard error of the best, the one with the fewest channels. The faces should not be those
    of the ranking, nor those that the result is then measured on.
    """
    before = look(generate(generator, z, attributes), target, judge)
    where = () if everywhere else target.boxes()
    tried: dict[tuple[int, ...], tuple[str, int, Outcome]] = {}
    for order in ORDERS:
        channels = ordered(ranking, order)
        for count in _numbers(len(channels)):
            chosen = channels[:count]
            if chosen not in tried:
                edit = Edit("silence", None, steps(ranking.layer, chosen, "silence", where))
                tried[chosen] = order, count, compare(before, look(apply(generator, z, attributes, edit), target, judge), target)
    if not tried:
        raise UserError(f"No channel of {ranking.layer} speaks for {target.name}: try another --layer.")
    best = max((outcome for _, _, outcome in tried.values()), key=lambda each: each.gain(target))
    enough = best.gain(target) - best.error[target.name]
    good = [(chosen, trial) for chosen, trial in tried.items() if trial[2].gain(target) >= enough]
    channels, (order, _, outcome) = min(good, key=lambda each: (len(each[0]), -each[1][2].gain(target)))
    return Choice(order, channels, outcome, tuple(tried.values()))


def _numbers(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ... up to `most`, which is among them."""
    if not most:
        return []
    found = sorted({1, most, *(2**k for k in range(12)), *(3 * 2**k for k in range(11))})
    return [number for number in found if number <= most]


@torch.no_grad()
def channels_at(generator: LoadedGenerator, z: Tensor, attributes: Tensor, layer: str, x: float, y: float, *,
                radius: float = 0.06) -> list[tuple[int, float, float]]:
    """The channels that draw a point of one face (z [1, Z], attributes [1, A]), strongest first: (channel, inside, outside).

    x, y: the point as shares of the picture. Each channel is silenced in the map's cells around the point; `inside` is the mean change of
    pixels, 0..1, within `radius` (share of the side) of it, `outside` that of the other pixels. Order: by inside.
    """
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UserError(f"The point ({x:g}, {y:g}) is outside the picture: both are shares from 0 to 1.")
    box = (max(x - radius, 0.0), max(y - radius, 0.0), min(x + radius, 1.0), min(y + radius, 1.0))
    before = generate(generator, z, attributes, batch=1)
    mask = regions.box_mask((box,), generator.size)
    found = []
    for channel, after in enumerate(silenced(generator, z, attributes, layer, where=(box,))):
        change = (after - before).abs().mean((0, 1)) / 2
        found.append((channel, float((change * mask).sum() / mask.sum()), float((change * (1 - mask)).sum() / (1 - mask).sum())))
    return sorted(found, key=lambda each: -each[1])
