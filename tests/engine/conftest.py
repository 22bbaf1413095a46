"""A tiny store of noise-free patterns and a tiny recipe: enough for every rule of the engine, milliseconds a step."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mien.config import Recipe, resolve
from mien.data.store import FaceStore, open_store

TINY = ("model.generator.width=16", "model.discriminator.width=16", "model.generator.min_width=8", "model.discriminator.min_width=8",
        "model.generator.z_dim=8", "train.batch=8", "train.images=96", "train.checkpoint_kimg=0.016", "train.snapshot_kimg=0.048",
        "train.tick_kimg=0.008", "sample.every_kimg=0.048", "sample.columns=2")  # fmt: skip


def write_tiny_store(path: Path, *, count: int = 40, size: int = 32, attributes: tuple[str, ...] = ("Male", "Smiling")) -> Path:
    """A store whose images' colours follow their attributes."""
    rng = np.random.default_rng(7)
    path.mkdir(parents=True)
    values = rng.integers(0, 2, (count, len(attributes)), dtype=np.uint8)
    ramp = np.linspace(0, 120, size, dtype=np.float32)
    images = np.zeros((count, size, size, 3), np.float32) + ramp[None, :, None, None] + rng.integers(0, 60, (count, 1, 1, 3))
    images[..., : len(attributes)] += 60.0 * values[:, None, None, :3]
    np.save(path / "images.npy", images.clip(0, 255).astype(np.uint8))
    np.save(path / "attributes.npy", values)
    np.save(path / "splits.npy", (np.arange(count) % 10 == 9).astype(np.uint8))
    (path / "names.txt").write_text("".join(f"{i:06d}.png\n" for i in range(count)))
    manifest = {"format": "mien-faces/1", "count": count, "size": size, "crop": "square", "attributes": list(attributes)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> FaceStore:
    return open_store(write_tiny_store(tmp_path_factory.mktemp("data") / "tiny"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_recipe(*overrides: str, preset: str | None = "seed0") -> Recipe:
    return resolve(preset, [*TINY, *overrides])
