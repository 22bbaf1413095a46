"""Which channels of a layer draw a part of the face or an attribute, and what happens when they are silenced, scaled or inserted.

Two readings, as effect sizes, and a rule:
- *weight*: logistic regression of a layer's activations, standardised, against where the part is; every cell of every face is an example.
  Radford, Metz & Chintala 2016 (DCGAN), section 6.3.2, found the channels of windows so and dropped them;
- *drop*: silence one channel at a time and see how much less of the part there is (Bau et al. 2019, GAN dissection, call it the causal effect);
- channels are taken in the order of both together, as many as measured best on other faces than those that gave the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from mien.errors import UserError
from mien.explore import regions
from mien.explore.activations import changed, find_layer, record
from mien.explore.edit import ChannelsStep, Edit, apply, generate
from mien.explore.load import LoadedGenerator

WATCHED = ("eyes", "mouth", "hair")  # parts that a side effect is measured on, beside the target
ROWS = 256  # faces in one pass
Judged = Callable[[Tensor], Tensor]  # images float [N, 3, R, R] in -1..1 -> the judge's logits [N, A]


@dataclass(frozen=True)
class Target:
    """What is to be found: a part of the face in a crop, or a judged attribute (then `column` is its place in the judge's logits).

    name: as the user calls it; part: where it is (regions.PARTS), None for an attribute that has no one place.
    """

    name: str
    part: str | None
    crop: str
    column: int | None = None

    def presence(self, images: Tensor, judged: Judged | None) -> Tensor:
        """[N], 0..1: how much of it is to be seen: `regions.presence`, or the judge's probability."""
        if self.column is None:
            assert self.part is not None
            return regions.presence(images, self.part, self.crop)
        assert judged is not None
        return judged(images)[:, self.column].sigmoid()

    def boxes(self) -> tuple[regions.Box, ...]:
        """Shares of the picture where it is; empty for no one place."""
        return regions.boxes(self.part, self.crop) if self.part else ()


@dataclass(frozen=True)
class Ranking:
    """The channels of a layer by how much they draw a target, best first; every tensor is in that order, [C].

    weight   log-odds of being in the part per standard deviation of the activation
    drop     share of the target's presence that goes when the channel is silenced (0.1: a tenth; below 0: more of it)
    other    the largest share of another watched part's presence that goes meanwhile
    inside, outside   mean absolute change of pixels in and out of the part's place, 0..1
    score    (weight / largest + (drop - other) / largest) / 2
    value    mean activation where the target is, what `insert` puts there
    logits   change of each judged attribute's logit, [C, A]; A is 0 without a judge
    """

    layer: str
    channels: tuple[int, ...]
    weight: Tensor
    drop: Tensor
    other: Tensor
    inside: Tensor
    outside: Tensor
    score: Tensor
    value: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Outcome:
    """What an edit did to faces, means over them.

    target    share of the target's presence that went, and each watched part's, by name (1: all; below 0: more of it than before)
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

    def gain(self, target: str) -> float:
        """How much more of the target went than of any other watched part."""
        return self.fell[target] - max([0.0, *(value for name, value in self.fell.items() if name != target)])


# ------------------------------------------------------------------------------------------------------------------------------
# Ranking


def logistic_weights(activation: Tensor, masks: Tensor, *, most: int = 60_000, seed: int = 0) -> Tensor:
    """[C]: the weights of a logistic regression of positions' standardised activations [N, C, H, W] against masks [N, H, W] in 0..1.

    Both classes weigh the same; ridge penalty 1e-3; at most `most` positions, drawn by `seed`. Raises UserError when all positions are
    inside, or all outside.
    """
    x, y = activation.movedim(1, -1).flatten(0, -2), masks.flatten()
    if len(x) > most:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:most].to(x.device)
        x, y = x[rows], y[rows]
    if not 0 < y.mean() < 1:
        raise UserError("The faces drawn have it everywhere or nowhere: nothing tells its channels apart. Draw more faces, or hold no attribute.")
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
def silenced(generator: LoadedGenerator, z: Tensor, attributes: Tensor, layer: str, *, where: Sequence[regions.Box] = ()) -> Iterator[Tensor]:
    """For each channel of a layer in turn the faces [N, 3, R, R] without it, several channels to a pass. `where`: only there."""
    net, device = generator.net.eval(), generator.device
    count, done = len(z), 0
    with record(net, [layer]) as seen:
        net(z.to(device), attributes.to(device))
    channels, side = seen[layer].shape[1], seen[layer].shape[-1]
    gone = regions.box_mask(tuple(where), side).to(device) if where else torch.ones(side, side, device=device)
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


def rank(generator: LoadedGenerator, z: Tensor, attributes: Tensor, layer: str, target: Target, *, judged: Judged | None = None,
         everywhere: bool = False, effect_faces: int = 32) -> Ranking:
    """Ranks the channels of a layer by z [N, Z], attributes [N, A]: all N faces for the regression, the first few for silencing.

    everywhere: silence in the whole map; otherwise only where the target is. judged: needed for an attribute, else for side effects.
    Raises UserError for an unknown layer, and when no face, or every face, has the target.
    """
    find_layer(generator.net, layer)
    with record(generator.net, [layer]) as seen, torch.no_grad():
        images = generator.net.eval()(z.to(generator.device), attributes.to(generator.device)).float().cpu()
    activation = seen[layer].float().cpu()
    weight, value = _weights(activation, images, target, judged)
    few, before = slice(effect_faces), images[:effect_faces]
    where = () if everywhere else target.boxes()
    outcomes = [measure(before, after, target, judged=judged)
                for after in silenced(generator, z[few], attributes[few], layer, where=where)]  # fmt: skip
    drop = torch.tensor([each.fell[target.name] for each in outcomes])
    other = torch.tensor([each.fell[target.name] - each.gain(target.name) for each in outcomes])
    selective = drop - other
    score = (weight / weight.abs().max().clamp(min=1e-6) + selective / selective.abs().max().clamp(min=1e-6)) / 2
    order = score.argsort(descending=True)
    inside, outside = (torch.tensor([getattr(each, name) for each in outcomes]) for name in ("inside", "outside"))
    logits = torch.stack([each.logits for each in outcomes])
    return Ranking(layer, tuple(order.tolist()), *(x[order] for x in (weight, drop, other, inside, outside, score, value, logits)))


def _weights(activation: Tensor, images: Tensor, target: Target, judged: Judged | None) -> tuple[Tensor, Tensor]:
    """(regression weights, mean activation where the target is), each [C]."""
    side = activation.shape[-1]
    if target.column is None:
        assert target.part is not None
        masks = regions.resized(regions.part_masks(images, target.part, target.crop), side)
    else:  # faces are the examples: the mean over the attribute's place against the judge's word
        place = regions.box_mask(target.boxes(), side) if target.part else torch.ones(side, side)
        has = (target.presence(images, judged) > 0.5).float()
        masks = has[:, None, None]
        activation = ((activation * place).sum((2, 3)) / place.sum())[..., None, None]
    inside = (masks > 0.5).float()[:, None]
    return logistic_weights(activation, masks), (activation * inside).sum((0, 2, 3)) / inside.sum().clamp(min=1)


# ------------------------------------------------------------------------------------------------------------------------------
# Doing it


def steps(ranking_layer: str, channels: Sequence[int], action: str, where: Sequence[regions.Box],
          value: float | Mapping[int, float] = 0.0) -> tuple[ChannelsStep, ...]:
    """The edit's steps: one for each box of `where` (none: everywhere); of an `insert` with a value for each channel, one for each of them."""
    places: list[regions.Box | None] = list(where) or [None]
    groups = [((channel,), value[channel]) for channel in channels] if isinstance(value, Mapping) else [(tuple(channels), value)]
    return tuple(ChannelsStep(ranking_layer, chosen, action, float(number), place) for chosen, number in groups for place in places)


@torch.no_grad()
def measure(before: Tensor, after: Tensor, target: Target, *, judged: Judged | None = None,
            features: Callable[[Tensor], Tensor] | None = None) -> Outcome:
    """What happened from `before` to `after`, float [N, 3, R, R] in -1..1. features: images -> [N, F], for the identity."""
    fell, error = {}, {}
    watched = [Target(part, part, target.crop) for part in WATCHED if part != target.name and regions.boxes(part, target.crop)]
    for each in (target, *watched):
        had, has = each.presence(before, judged), each.presence(after, judged)
        fell[each.name] = 1 - float(has.mean() / had.mean().clamp(min=1e-6))
        error[each.name] = float((has / had.mean().clamp(min=1e-6)).std() / len(before) ** 0.5) if len(before) > 1 else 0.0
    change = (after - before).abs().mean(1) / 2  # [N, R, R]
    place = regions.box_mask(target.boxes(), before.shape[-1]) if target.part else torch.ones_like(change[0])
    logits = (judged(after) - judged(before)).mean(0) if judged else torch.zeros(0)
    same = float(cosine_similarity(features(before), features(after)).mean()) if features else None
    inside = float((change * place).sum() / place.sum() / len(change))
    outside = float((change * (1 - place)).sum() / (1 - place).sum().clamp(min=1) / len(change))
    return Outcome(fell, error, logits, same, inside, outside)


def choose_count(generator: LoadedGenerator, z: Tensor, attributes: Tensor, ranking: Ranking, target: Target, *,
                 judged: Judged | None = None, everywhere: bool = False) -> tuple[int, dict[int, Outcome]]:
    """How many of the ranked channels to silence: (that number, what each number tried did to these faces).

    Tried are 1, 2, 3, 4, 6, 8, 12, ... channels of positive score. The rule: of the numbers whose gain (how much more of the target went than
    of any other watched part) is within one standard error of the best, the smallest. The faces should not be those of the ranking.
    """
    before = generate(generator, z, attributes)
    useful = max(1, int((ranking.score > 0).sum()))
    where = () if everywhere else target.boxes()
    tried = {}
    for count in _numbers(useful):
        edit = Edit("silence", None, steps(ranking.layer, ranking.channels[:count], "silence", where))
        tried[count] = measure(before, apply(generator, z, attributes, edit), target, judged=judged)
    best = max(tried.values(), key=lambda each: each.gain(target.name))
    enough = best.gain(target.name) - best.error[target.name]
    return min(count for count, each in tried.items() if each.gain(target.name) >= enough), tried


def _numbers(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ... up to `most`, which is among them."""
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
    before = generator.net.eval()(z.to(generator.device), attributes.to(generator.device)).float().cpu()
    mask = regions.box_mask((box,), generator.size)
    found = []
    for channel, after in enumerate(silenced(generator, z, attributes, layer, where=(box,))):
        change = (after - before).abs().mean((0, 1)) / 2
        found.append((channel, float((change * mask).sum() / mask.sum()), float((change * (1 - mask)).sum() / (1 - mask).sum())))
    return sorted(found, key=lambda each: -each[1])
