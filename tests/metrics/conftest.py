"""Drawn toy faces whose attributes can be read off exactly: a store of them, a generator that draws them, and a judge that reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

SIZE = 32
JUDGED = ("Male", "Smiling", "Eyeglasses")
Z = 10


class ToyNet(nn.Module):
    """A face: a disc of skin on a plain ground, a cap of hair (dark if Male), a mouth (red if Smiling), a bar over the eyes (Eyeglasses).

    Conditions that are not asked for are drawn from the latent. leak: Male brings eyeglasses with it.
    """

    z_dim = Z

    def __init__(self, asked, leak=False):
        super().__init__()
        self.asked, self.leak = tuple(asked), leak
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, z, attributes):
        has = {name: (z[:, 7 + i] > 0.84).float() for i, name in enumerate(JUDGED)}
        has |= {name: attributes[:, i] for i, name in enumerate(self.asked)}
        if self.leak:
            has["Eyeglasses"] = torch.maximum(has["Eyeglasses"], has["Male"])
        at = torch.arange(SIZE, dtype=torch.float32)
        y, x = at.view(1, -1, 1), at.view(1, 1, -1)
        u = z[:, :7].sigmoid()
        images = (u[:, :3] * 0.8).view(-1, 3, 1, 1).expand(-1, -1, SIZE, SIZE).clone()
        cx, cy, r = 15.5 + (u[:, 3] - 0.5) * 4, 16 + (u[:, 4] - 0.5) * 4, 9 + u[:, 5] * 3
        skin = torch.stack([0.5 + 0.4 * u[:, 6], 0.35 + 0.3 * u[:, 6], 0.3 + 0.2 * u[:, 6]], 1).view(-1, 3, 1, 1)
        inside = ((x - cx.view(-1, 1, 1)) ** 2 + (y - cy.view(-1, 1, 1)) ** 2 < r.view(-1, 1, 1) ** 2).float().unsqueeze(1)
        images = images * (1 - inside) + skin * inside

        def paint(images, amount, rows, columns, colour):
            mask = torch.zeros(1, 1, SIZE, SIZE)
            mask[..., rows, columns] = 1
            mask = mask * amount.view(-1, 1, 1, 1)
            return images * (1 - mask) + torch.tensor(colour).view(1, 3, 1, 1) * mask

        images = paint(images, torch.ones(len(z)), slice(0, 5), slice(4, 28), (0.8, 0.7, 0.2))
        images = paint(images, has["Male"], slice(0, 5), slice(4, 28), (0.1, 0.05, 0.05))
        images = paint(images, has["Smiling"], slice(21, 24), slice(11, 21), (0.9, 0.05, 0.05))
        images = paint(images, has["Eyeglasses"], slice(12, 15), slice(8, 24), (0.0, 0.0, 0.1))
        return images * 2 - 1 + 0 * self.unused


class ToyJudge:
    """Reads the painted places; certain to 0.98."""

    attribute_names = JUDGED
    weights_sha256 = "toy"
    feature_size = 192

    def probabilities(self, images, batch=256):
        x = images.float() / 255
        male = x[:, 0, 0:5, 4:28].mean(dim=(1, 2)) < 0.45
        mouth = x[:, :, 21:24, 11:21].mean(dim=(2, 3))
        smiling = mouth[:, 0] - mouth[:, 1] > 0.45
        glasses = x[:, :, 12:15, 8:24].mean(dim=(1, 2, 3)) < 0.18
        return (torch.stack([male, smiling, glasses], 1).float() * 0.96 + 0.02).numpy()

    def features(self, images, batch=256):
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1).numpy()

    def features_and_probabilities(self, images, batch=256):
        return self.features(images), self.probabilities(images)


def toy_rows(count, seed, *, male_brings_glasses=False):
    """uint8 [N, 3]: Male and Smiling somewhat correlated, Eyeglasses apart from both (or on every man)."""
    draw = np.random.default_rng(seed)
    male = draw.random(count) < 0.4
    smiling = draw.random(count) < np.where(male, 0.4, 0.55)
    glasses = draw.random(count) < 0.2
    if male_brings_glasses:
        glasses |= male
    return np.stack([male, smiling, glasses], 1).astype(np.uint8)


def draw_toys(rows, seed):
    """uint8 [N, 3, 32, 32] of rows [N, 3]."""
    z = torch.randn(len(rows), Z, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        images = ToyNet(JUDGED)(z, torch.from_numpy(rows.astype(np.float32)))
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def write_store(path: Path, images, rows, splits, names=None):
    """A store by hand, without the writer: the metrics must not depend on it."""
    path.mkdir(parents=True)
    np.save(path / "images.npy", np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1)))
    np.save(path / "attributes.npy", rows)
    np.save(path / "splits.npy", splits.astype(np.uint8))
    (path / "names.txt").write_text("".join(f"{name}\n" for name in names or [f"{i:05d}.png" for i in range(len(rows))]))
    manifest = {"format": "mien-faces/1", "count": len(rows), "size": SIZE, "crop": "whole", "attributes": list(JUDGED)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    from mien.data.store import open_store

    return open_store(path)


class Toys:
    size = SIZE
    judged = JUDGED
    rows = staticmethod(toy_rows)
    draw = staticmethod(draw_toys)
    store = staticmethod(write_store)
    judge = ToyJudge()

    @staticmethod
    def generator(asked=("Male", "Smiling"), leak=False, net=None):
        from mien.explore.load import LoadedGenerator

        net = net or ToyNet(asked, leak)
        meta = {"nimg": 5000, "ema": True, "attributes": list(asked)}
        return LoadedGenerator(net=net.eval(), attribute_names=tuple(asked), size=SIZE, z_dim=Z, meta=meta, path=Path("toy.safetensors"))


@pytest.fixture(scope="session")
def toys():
    return Toys


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory):
    """2,400 toy faces: 1,200 train, 800 val, 400 test."""
    rows = toy_rows(2400, 1)
    splits = np.repeat([0, 1, 2], [1200, 800, 400])
    return write_store(tmp_path_factory.mktemp("toys") / "toys", draw_toys(rows, 1), rows, splits)


@pytest.fixture()
def toy_judge(monkeypatch):
    """The judge that evaluation loads is the one that reads toy faces."""
    import mien.metrics.judge as judge

    monkeypatch.setattr(judge, "load_judge", lambda *_, **__: Toys.judge)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIEN_CACHE", str(tmp_path / "cache"))
