"""Our training loop against plain PyTorch loops of the same networks, batch and data, on this machine.

    python benchmarks/train_loop.py --width 256 --preset seed3 [--threads 2] [--steps 12] [--rounds 5] [--device cpu]

(a) tutorial: a DataLoader over PNG files with torchvision transforms, eager, NCHW, one optimiser step each, two losses read with .item().
(b) careful:  the same loop with the data in memory as uint8, channels-last, no .item() in the loop.
The three are timed in turn within each round, so that a machine that slows down slows all; the ratios are medians over the rounds.
Networks, loss and batch come from the preset; R1, augmentation, EMA and logging are mien's alone, so a preset without them (seed3)
compares like with like but for the average, which mien keeps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mien.config import Config, resolve
from mien.data.store import FaceStore
from mien.data.synthetic import TOY_ATTRIBUTES, draw_faces
from mien.data.writer import StoreWriter
from mien.engine import build
from mien.engine.schedules import knobs_at
from mien.engine.signals import SignalMeter
from mien.engine.step import train_step

LOOPS = ("mien", "careful", "tutorial")


def tutorial_batches(folder: Path, batch: int) -> Iterator[torch.Tensor]:
    """A DataLoader of PNG files as in every tutorial: two workers, ToTensor, Normalize."""
    from torchvision import datasets, transforms

    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    data = datasets.ImageFolder(str(folder), transform=steps)
    loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
    while True:
        for images, _ in loader:
            yield images


def careful_batches(pixels: np.ndarray, batch: int) -> Iterator[torch.Tensor]:
    data = torch.from_numpy(pixels)  # uint8 [N, R, R, 3]
    while True:
        for rows in torch.randperm(len(data)).split(batch):
            if len(rows) == batch:
                yield data[rows].float().div_(127.5).sub_(1).permute(0, 3, 1, 2)


def with_torch_layers(net: torch.nn.Module) -> torch.nn.Module:
    """The same network of torch's own layers, as one would write it by hand: mien's take another route where a CPU's kernels are slow."""
    for layer in net.modules():
        for own in (torch.nn.Conv2d, torch.nn.ConvTranspose2d):
            if isinstance(layer, own) and type(layer).__module__ == "mien.models.layers" and not hasattr(layer, "normalized"):
                layer.__class__ = own
    return net


def plain_loop(config: Config, batches: Iterator[torch.Tensor], *, size: int, device: torch.device, careful: bool) -> Callable[[], None]:
    """One step of a hand-written BCE loop: D on reals and fakes apart, then G on the same fakes."""
    state = build.build_state(config, size=size, attributes=0, device=device)
    layout = torch.channels_last if careful else torch.contiguous_format
    G, D = (with_torch_layers(net).to(memory_format=layout) for net in (state.G, state.D))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    o, batch = config.optimizer, config.train.batch
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), lr=o.lr_g, betas=(o.beta1, o.beta2)) for net in (G, D))
    none, losses = torch.zeros(batch, 0, device=device), []

    def step() -> None:
        real = next(batches).to(device)
        ones, zeros = torch.ones(batch, device=device), torch.zeros(batch, device=device)
        fake = G(torch.randn(batch, G.z_dim, device=device), none)
        D.zero_grad()
        loss_d = bce(D(real, none), ones * config.loss.real_label) + bce(D(fake.detach(), none), zeros)
        loss_d.backward()
        opt_d.step()
        G.zero_grad()
        loss_g = bce(D(fake, none), ones)
        loss_g.backward()
        opt_g.step()
        losses.append((loss_d.detach(), loss_g.detach()) if careful else (loss_d.item(), loss_g.item()))

    return step


def mien_loop(config: Config, store: FaceStore, device: torch.device) -> Callable[[], None]:
    task = build.build_task(config, store, device)
    state = build.build_state(config, size=store.size, attributes=0, device=device)
    meter = SignalMeter()
    return lambda: meter.add(train_step(state, task, knobs_at(config, state.nimg)))


def seconds(step: Callable[[], None], steps: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="seed3")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="steps of each loop in one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    width = f"width={options.width}"
    overrides = [f"model.generator.{width}", f"model.discriminator.{width}", f"train.batch={options.batch}", "data.attributes=none"]
    config = resolve(options.preset, overrides).config
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(config, Path(folder), device, options)
    print(json.dumps(rates) if options.json else table(rates, options))


def measure(config: Config, folder: Path, device: torch.device, options: argparse.Namespace) -> dict[str, list[float]]:
    """{loop: images a second in each round}."""
    images, attributes = draw_faces(1024, size=64)
    with StoreWriter(folder / "store", count=len(images), size=64, crop="square") as writer:
        writer.add(images)
        names = [f"{i}.png" for i in range(len(images))]
        splits, source = np.zeros(len(images), np.uint8), [{"name": "drawn", "count": len(images)}]
        store = writer.finish(attributes=attributes, attribute_names=TOY_ATTRIBUTES, splits=splits, names=names, source=source)
    (folder / "png" / "all").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "png" / "all" / f"{i}.png")
    steps = {
        "mien": mien_loop(config, store, device),
        "careful": plain_loop(config, careful_batches(images, options.batch), size=64, device=device, careful=True),
        "tutorial": plain_loop(config, tutorial_batches(folder / "png", options.batch), size=64, device=device, careful=False),
    }
    for step in steps.values():
        seconds(step, 2, device)  # warm-up
    rates: dict[str, list[float]] = {name: [] for name in LOOPS}
    for _ in range(options.rounds):
        for name in LOOPS:
            rates[name].append(options.steps * options.batch / seconds(steps[name], options.steps, device))
    return rates


def table(rates: dict[str, list[float]], options: argparse.Namespace) -> str:
    lines = [f"{options.preset}, width {options.width}, batch {options.batch}, 64 px, {options.device}, {options.threads} threads"]
    for name in LOOPS:
        each = rates[name]
        lines.append(f"  {name:9s} {statistics.median(each):8.1f} images/s  (min {min(each):.1f}, max {max(each):.1f})")
    for name in LOOPS[1:]:
        ratios = sorted(ours / theirs for ours, theirs in zip(rates["mien"], rates[name]))
        lines.append(f"  mien / {name:9s} {statistics.median(ratios):.2f}  (min {ratios[0]:.2f}, max {ratios[-1]:.2f})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
