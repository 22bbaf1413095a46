"""From what a generator gives to pixels and sheets of faces, and back."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PADDING_PX = 2


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] -> uint8, rounded to the nearest level: what a saved file holds."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]: what networks see."""
    return images.float() / 127.5 - 1


def one_picture(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [1, 3, H, W], a copy."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]


def grid(images: Tensor, columns: int) -> Image.Image:
    """uint8 [N, 3, R, R] row by row on white, a gap of PADDING_PX around each."""
    count, _, _, size = images.shape
    rows, step = -(-count // columns), size + PADDING_PX
    sheet = np.full((rows * step + PADDING_PX, columns * step + PADDING_PX, 3), 255, dtype=np.uint8)
    for i, face in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = PADDING_PX + i // columns * step, PADDING_PX + i % columns * step
        sheet[top : top + size, left : left + size] = face
    return Image.fromarray(sheet)
