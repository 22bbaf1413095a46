"""Where the parts of a face lie in an aligned picture, and how much of a part is to be seen there.

Places are stated in the 178 x 218 frame of aligned CelebA images (eyes on y = 111, the middle of the mouth on y = 152) and mapped
to the crop. The crops are those of the data store; `whole` squeezes the frame into a square. `square` is the middle square: of a
CelebA image it is center178, of other people's pictures it is assumed to show the face as large and as high as that. Drawn toy faces
(`drawn`) stand alike: eyes and hair within 1 px of 64, the mouth 2 to 3 px higher, still inside its box.

Eyes, mouth and nose are fixed places. Hair, background and skin are told apart by colour, picture by picture: where the skin's colour
ends hair or background begins, and background is what looks like the nearer upper side of the picture. Black hair before a black wall
is therefore not seen.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from mien.errors import UserError, did_you_mean

Box = tuple[float, float, float, float]  # left, top, right, bottom, from the upper left

FRAME = (178, 218)
CROPS: dict[str, Box] = {
    "center178": (0, 20, 178, 198),
    "center148": (15, 35, 163, 183),
    "center140": (19, 39, 159, 179),
    "box128": (25, 57, 153, 185),
    "center108": (35, 55, 143, 163),
    "whole": (0, 0, 178, 218),
    "square": (0, 20, 178, 198),
    "drawn": (0, 20, 178, 198),
}
BOXES: dict[str, tuple[Box, ...]] = {
    "eyes": ((52, 98, 126, 122),),
    "glasses": ((46, 94, 132, 130),),
    "nose": ((76, 118, 102, 141),),
    "mouth": ((63, 139, 115, 166),),
    "skin": ((56, 123, 74, 139), (104, 123, 122, 139), (66, 78, 112, 92)),  # cheeks and the middle of the forehead
    "hair": ((22, 20, 156, 74), (22, 74, 46, 130), (132, 74, 156, 130)),  # above the forehead and beside the temples
    "background": ((0, 20, 22, 120), (156, 20, 178, 120)),
}
PARTS = tuple(BOXES)
FACE = (89.0, 122.0, 41.0, 60.0)  # ellipse: centre x, y, half-axes; hairline to chin
HEAD = (89.0, 106.0, 64.0, 86.0)  # the same with the hair
SKIN_SPREAD = 5.3  # frame pixels


def crop_frame(crop: str | None) -> Box:
    """The box of the frame that a crop shows, frame pixels. UserError for a crop that has no known place in it."""
    if crop is None:
        raise UserError("The model does not say how its pictures were cropped, so where a face lies in them is not known.")
    if crop not in CROPS:
        known = ", ".join(CROPS)
        raise UserError(f"Where a face lies in a picture of crop {crop!r} is not known.{did_you_mean(crop, CROPS)} Known: {known}.")
    return CROPS[crop]


def check_part(part: str) -> str:
    """`part` if it is the name of a part of the face. UserError with the nearest name otherwise."""
    if part not in BOXES:
        raise UserError(f"No part of the face is called {part!r}.{did_you_mean(part, PARTS)} The parts: {', '.join(PARTS)}.")
    return part


def boxes(part: str, crop: str | None) -> tuple[Box, ...]:
    """The part's boxes as shares of the picture, 0..1, cut to it; empty when the crop shows nothing of it."""
    left, top, right, bottom = crop_frame(crop)
    across, down = right - left, bottom - top
    in_frame = BOXES[check_part(part)]
    shares = [((x0 - left) / across, (y0 - top) / down, (x1 - left) / across, (y1 - top) / down) for x0, y0, x1, y1 in in_frame]
    cut = [(max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0)) for x0, y0, x1, y1 in shares]
    return tuple(box for box in cut if box[0] < box[2] and box[1] < box[3])


def box_mask(shares: Sequence[Box], side: int) -> Tensor:
    """float32 [side, side]: the share of each cell of a side x side grid that the union of the boxes (disjoint) covers, 0..1."""
    edges = torch.arange(side + 1, dtype=torch.float32) / side
    mask = torch.zeros(side, side)
    for x0, y0, x1, y1 in shares:
        across = (edges[1:].clamp(max=x1) - edges[:-1].clamp(min=x0)).clamp(min=0) * side
        down = (edges[1:].clamp(max=y1) - edges[:-1].clamp(min=y0)).clamp(min=0) * side
        mask += down[:, None] * across
    return mask.clamp(max=1)


def mask_of(where: Sequence[Box], side: int) -> Tensor:
    """As `box_mask`, but no boxes are everywhere: ones."""
    return box_mask(where, side) if where else torch.ones(side, side)


def ellipse_mask(ellipse: tuple[float, float, float, float], crop: str, side: int) -> Tensor:
    """float32 [side, side], 1 where a cell's centre is inside an ellipse of the frame (centre x, y, half-axes)."""
    left, top, right, bottom = crop_frame(crop)
    centres = (torch.arange(side) + 0.5) / side
    x, y = left + centres * (right - left), top + centres * (bottom - top)
    cx, cy, rx, ry = ellipse
    return (((x - cx) / rx).square() + ((y - cy) / ry).square()[:, None] <= 1).float()


# ------------------------------------------------------------------------------------------------------------------------------
# What a picture shows


def skin_fill(images: Tensor, crop: str) -> Tensor:
    """The picture with its face smoothed over: each pixel a Gaussian mean of the face's skin near it, [N, 3, R, R] like `images`.

    Skin is the face's ellipse without eyes, nose and mouth; the mean is normalised by the skin's own weight (normalised convolution,
    Knutsson & Westin 1993), with a standard deviation of SKIN_SPREAD: little enough to follow the light on a face, so that bare real
    skin is at a mean distance of 0.04 from it, real mouths at 0.09 and real eyes at 0.16.
    """
    side = images.shape[-1]
    skin = (ellipse_mask(FACE, crop, side) * (1 - _features(crop, side, "glasses"))).to(images)
    sigma = SKIN_SPREAD / (CROPS[crop][2] - CROPS[crop][0]) * side
    weight = _blurred(skin[None, None], sigma)
    return _blurred(images * skin, sigma) / weight.clamp(min=1e-6)


def distance_to_skin(images: Tensor, crop: str) -> Tensor:
    """[N, R, R], 0..1: how far each pixel is from the skin around it, the mean over colours of |picture - skin_fill| / 2."""
    return (images - skin_fill(images, crop)).abs().mean(1) / 2


def distance_to_hairless(images: Tensor, crop: str) -> Tensor:
    """[N, R, R], 0..1: how far each pixel is from both the face's skin and the background, the nearer of the two, as distance_to_skin.

    The skin's colour is the median of cheeks and forehead; the background's the median of the upper side strip on the pixel's own side.
    """
    side = images.shape[-1]
    skin = _median(images, box_mask(boxes("skin", crop), side))
    near = (images - skin).abs().mean(1) / 2
    strips = boxes("background", crop)
    for half, strip in zip((slice(None, side // 2), slice(side // 2, None)), strips):
        background = _median(images, box_mask((strip,), side))
        near[..., half] = torch.minimum(near[..., half], (images - background)[..., half].abs().mean(1) / 2)
    return near


def presences(images: Tensor, parts: Iterable[str], crop: str) -> dict[str, Tensor]:
    """Part -> [N], 0..1: how much of each part is to be seen in its place, images float [N, 3, R, R] in -1..1.

    eyes, glasses, mouth, nose: the mean distance from the skin around (`distance_to_skin`) over the part's box. A face bare there has 0.04.
    hair: the mean over its zone of the distance from both skin and background: 0 on a bald head before a wall.
    skin: 1 minus the distance to its own smooth fill; background: that distance over the upper side strips.
    Raises UserError for a part that the crop does not show.
    """
    found, skin, hairless = {}, None, None
    for part in parts:
        mask = box_mask(boxes(part, crop), images.shape[-1]).to(images)
        if not mask.any():
            raise UserError(f"The crop {crop} shows no {part}: nothing can be measured there.")
        if part == "hair":
            distance = hairless = distance_to_hairless(images, crop) if hairless is None else hairless
        else:
            distance = skin = distance_to_skin(images, crop) if skin is None else skin
        value = (distance * mask).sum((1, 2)) / mask.sum()
        found[part] = 1 - value if part == "skin" else value
    return found


def part_masks(images: Tensor, part: str, crop: str) -> Tensor:
    """float32 [N, R, R], 0..1: where the part is in each picture. Fixed boxes, but for hair, background and skin, told by colour.

    Hair: the head's ellipse without the face's middle, where the colour is far from skin and background (over 0.08 of the full range);
    background: outside that ellipse and near the background's colour; skin: inside the face's ellipse and near the smooth fill.
    """
    side = images.shape[-1]
    mask = box_mask(boxes(part, crop), side).to(images)
    if part not in ("hair", "background", "skin"):
        return mask.expand(len(images), side, side)
    head, face = ellipse_mask(HEAD, crop, side).to(images), ellipse_mask(FACE, crop, side).to(images)
    if part == "skin":
        return face * (1 - _features(crop, side).to(images)) * (distance_to_skin(images, crop) < 0.08)
    hairless = distance_to_hairless(images, crop) < 0.08
    if part == "hair":
        kept = (1 - _features(crop, side)) * _above_chin(crop, side) * (1 - _inner_face(crop, side))
        return head * ~hairless * kept.to(images)
    return (1 - head) * hairless * _above_chin(crop, side).to(images)


def resized(masks: Tensor, side: int) -> Tensor:
    """Masks [N, R, R] as shares of the cells of a coarser grid, [N, side, side]."""
    return interpolate(masks[:, None], size=(side, side), mode="area")[:, 0]


def _features(crop: str, side: int, around_eyes: str = "eyes") -> Tensor:
    """[side, side]: eyes, nose and mouth, what stands out of the skin."""
    return torch.stack([box_mask(boxes(part, crop), side) for part in (around_eyes, "nose", "mouth")]).amax(0)


def _inner_face(crop: str, side: int) -> Tensor:
    cx, cy, rx, ry = FACE
    return ellipse_mask((cx, cy + 8, rx * 0.85, ry * 0.85), crop, side)


def _above_chin(crop: str, side: int) -> Tensor:
    """[side, 1]: rows above the chin, y < 172 of the frame, below which clothes begin."""
    _, top, _, bottom = crop_frame(crop)
    return (top + (torch.arange(side) + 0.5) / side * (bottom - top) < 172).float()[:, None]


def _median(images: Tensor, mask: Tensor) -> Tensor:
    """[N, 3, 1, 1]: the median colour of the pixels at least half inside a mask [R, R]; mid-grey where there is none."""
    chosen = images[:, :, mask >= 0.5]
    return chosen.median(-1).values[..., None, None] if chosen.shape[-1] else images.new_zeros(len(images), 3, 1, 1)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [N, C, R, R], zeros beyond the border, standard deviation in pixels."""
    reach = int(4 * sigma) + 1
    taps = torch.exp(-torch.arange(-reach, reach + 1, dtype=torch.float32).square() / (2 * sigma**2)).to(images)
    kernel, channels = taps / taps.sum(), images.shape[1]
    rows = conv2d(images, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, reach), groups=channels)
    return conv2d(rows, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(reach, 0), groups=channels)
