"""Faces drawn by several processes: each draws its share of every piece, the first puts them together and alone writes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mien.engine.distributed import Ranks
from mien.explore.select import Faces

Draw = Callable[[range], Faces]


def drawing(draw: Draw, ranks: Ranks) -> Draw:
    """`draw` at some places, done by all processes; for the first of them, while the others `help`."""

    def together(places: range) -> Faces:
        ranks.tell(places)
        shares = [share for share in ranks.collect(_share(draw, places, ranks)) if share is not None]
        return Faces(torch.cat([share.images for share in shares]), torch.cat([share.attributes for share in shares]),
                     [number for share in shares for number in share.numbers])  # fmt: skip

    return draw if ranks.size == 1 else together


def help_drawing(draw: Draw, ranks: Ranks) -> None:
    """What the others do until the first says that it is done."""
    while (places := ranks.tell()) is not None:
        ranks.collect(_share(draw, places, ranks))


def _share(draw: Draw, places: range, ranks: Ranks) -> Faces | None:
    mine = places[len(places) * ranks.rank // ranks.size : len(places) * (ranks.rank + 1) // ranks.size]
    return draw(mine) if mine else None
