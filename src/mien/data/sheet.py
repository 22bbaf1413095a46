"""A contact sheet: real images of a store, a titled row per combination of attributes."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mien.combinations import combination_name
from mien.data.attributes import combination_table
from mien.data.order import permutation
from mien.data.store import FaceStore

TILE_PX = (64, 128)     # smallest and largest side of an image on the sheet
GAP_PX, TITLE_PX = 4, 24
MAX_ROWS = 16
INK, PAPER = (34, 34, 34), (255, 255, 255)


def contact_sheet(store: FaceStore, attributes: Sequence[str], *, per_row: int = 12, seed: int = 0) -> Image.Image:
    """RGB picture: for each combination of these attributes that occurs (the commonest 16), a title with its count and `per_row` images
    drawn by `seed`. UserError for an attribute the store has not."""
    chosen = store.attributes[:, store.columns(attributes)]
    rows = combination_table(chosen)
    if len(rows) > MAX_ROWS:
        rows = sorted(sorted(rows, key=lambda row: -row[1])[:MAX_ROWS])
    side = min(max(store.size, TILE_PX[0]), TILE_PX[1])
    height = TITLE_PX + side + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + per_row * (side + GAP_PX), GAP_PX + len(rows) * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for line, (combination, count) in enumerate(rows):
        members = np.flatnonzero((chosen == np.array(combination, np.uint8)).all(axis=1))
        top = GAP_PX + line * height
        title = f"{combination_name(attributes, combination, between=' ') or 'all'}    {count:,} images, {count / len(store):.1%}"
        draw.text((GAP_PX, top + TITLE_PX // 2), title, fill=INK, font=font, anchor="lm")
        for place, member in enumerate(members[permutation(seed, line, len(members))[:per_row]]):
            tile = Image.fromarray(np.asarray(store.images[member]))
            tile = tile if side == store.size else tile.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(tile, (GAP_PX + place * (side + GAP_PX), top + TITLE_PX))
    return sheet
