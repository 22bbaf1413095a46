"""Style mixing: one face's content, another's look at some layers. A DCGAN has no style input; its activations are transplanted instead.

- statistics: each channel of the content's map gets the mean and standard deviation over positions of the style's (adaptive instance
  normalisation, Huang & Belongie 2017, eq. 8): where things are stays, how strongly a channel speaks comes from the style.
  StyleGAN (Karras et al. 2019, section 3.1) mixes by the same statistics.
- whole: the style's activations themselves. All that follows sees only them, so without a place one such layer gives the style's
  face whatever the content was; with one (the mouth's, the eyes'), only that is transplanted, into the content's face.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mien.errors import UserError, did_you_mean
from mien.explore.activations import changed, find_layer, layer_names, record
from mien.explore.load import LoadedGenerator
from mien.explore.regions import Box, mask_of
from mien.explore.sample import generate

MODES = ("statistics", "whole")
GROUPS = ("coarse", "middle", "fine", "all")
COARSE_PX = 8


def choose_layers(net: torch.nn.Module, text: str) -> tuple[str, ...]:
    """'16x16,32x32', or a group: coarse (up to 8x8), middle and fine (the first and second half of the rest), all -> names of layers.

    At 64 px: 4x4 and 8x8, 16x16, 32x32. Raises UserError for anything else.
    """
    known = layer_names(net)
    rest = [name for name in known if int(name.split("x")[0]) > COARSE_PX]
    half = (len(rest) + 1) // 2
    coarse = [name for name in known if name not in rest]
    groups = {"coarse": coarse, "middle": rest[:half], "fine": rest[half:] or rest, "all": list(known)}
    names = [name for part in text.replace(" ", "").split(",") if part for name in groups.get(part, [part])]
    for name in names:
        if name not in known:
            near = did_you_mean(name, [*GROUPS, *known])
            raise UserError(f"No layer {name!r}: this model has {', '.join(known)}, or say {', '.join(GROUPS)}.{near}")
    if not names:
        raise UserError(f"Name at least one layer: {', '.join(known)}, or {', '.join(GROUPS)}.")
    return tuple(dict.fromkeys(names))


def with_statistics(content: Tensor, style: Tensor) -> Tensor:
    """Content [N, C, H, W] with the mean and standard deviation over H, W of each of style's channels (AdaIN).

    Below 0 is cut off where the content has nothing below 0: after a ReLU the next layer knows no such values. A channel that is the same
    everywhere in the content has no pattern to scale: it becomes the style's mean.
    """
    mean, spread = content.mean((2, 3), keepdim=True), content.std((2, 3), keepdim=True)
    new = (content - mean) / spread.clamp(min=1e-5) * style.std((2, 3), keepdim=True) + style.mean((2, 3), keepdim=True)
    return new.clamp(min=0) if content.min() >= 0 else new


def replaced(content: Tensor, style: Tensor, *, mode: str, strength: float, where: Sequence[Box]) -> Tensor:
    """Content [N, C, H, W] on its way to style's statistics or values, by strength and in the boxes `where` (shares; none: everywhere)."""
    new = with_statistics(content, style) if mode == "statistics" else style
    place = mask_of(where, content.shape[-1]).to(content)
    return torch.lerp(content, new, strength * place)


@torch.no_grad()
def mix(generator: LoadedGenerator, content: tuple[Tensor, Tensor], style: tuple[Tensor, Tensor], layers: Sequence[str], *,
        mode: str = "statistics", strength: float = 1.0, where: Sequence[Box] = (), batch: int = 64) -> Tensor:
    """Content's faces with style's look at `layers`, pair by pair: float32 [N, 3, R, R] in -1..1 on the CPU.

    content, style: (z [N, Z], attributes [N, A]) each. strength: 0 is the content's face, 1 all of it. where: boxes as shares of
    the picture, for example `regions.boxes("mouth", crop)`. With several layers each takes after the style's own activations there.
    Raises UserError for an unknown layer, a mode that is none of MODES or a strength outside 0..2.
    """
    if mode not in MODES:
        raise UserError(f"No way of mixing is called {mode!r}; there are {', '.join(MODES)}.{did_you_mean(mode, MODES)}")
    if not 0 <= strength <= 2:
        raise UserError(f"Strength {strength:g} is outside 0..2: 0 is the content's face, 1 the whole change.")
    for name in layers:
        find_layer(generator.net, name)
    images = [torch.empty(0, 3, generator.size, generator.size)]
    for start in range(0, len(content[0]), batch):
        own_z, own_rows, style_z, style_rows = (each[start : start + batch] for each in (*content, *style))
        with record(generator.net, layers) as seen:
            generate(generator, style_z, style_rows, batch=len(style_z))
        changes = {name: partial(replaced, style=seen[name], mode=mode, strength=strength, where=where) for name in layers}
        with changed(generator.net, changes):
            images.append(generate(generator, own_z, own_rows, batch=len(own_z)))
    return torch.cat(images)


def table(generator: LoadedGenerator, content: tuple[Tensor, Tensor], style: tuple[Tensor, Tensor], layers: Sequence[str], *,
          mode: str = "statistics", strength: float = 1.0, where: Sequence[Box] = ()) -> Tensor:
    """Every content [M] with every style [K]: [M, K, 3, R, R]; arguments as `mix`."""
    many, few = len(content[0]), len(style[0])
    left = tuple(each.repeat_interleave(few, 0) for each in content)
    top = tuple(each.repeat(many, 1) for each in style)
    return mix(generator, (left[0], left[1]), (top[0], top[1]), layers, mode=mode, strength=strength, where=where).unflatten(0, (many, few))
