"""Our training loop against plain PyTorch loops of the same networks, batch and data, on this machine.

    python benchmarks/train_loop.py --width 256 --preset seed3 [--threads 2] [--steps 12] [--rounds 5] [--device cpu]

(a) tutorial: a DataLoader over PNG files with torchvision transforms, eager, NCHW, one optimiser step each, two losses read with .item().
(b) careful:  the same loop with the data in memory as uint8, channels-last, no .item() in the loop.
All are timed in turn within each round, so that a machine that slows down slows all; the ratios are medians over the rounds, of the
clock and of processor time, which other work disturbs less (the tutorial loop's workers decode in processes of their own, which only
the clock sees). `--modes` adds rows of mien: networks, graphs (train.compile), bf16 (train.precision) or several, as networks+bf16.
The share of the matrix peak counts the multiply-adds of convolutions and products alone, against large products measured here.
`--json FILE` keeps every round.
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
from mien.data.writer import write_store
from mien.engine import build
from mien.engine.schedules import knobs_at
from mien.engine.signals import SignalMeter
from mien.engine.step import train_step

YARDSTICKS = ("careful", "tutorial")
Rates = dict[str, dict[str, list[float]]]


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


def seconds(step: Callable[[], None], steps: int, device: torch.device) -> tuple[float, float]:
    """By the clock, and of this process's processor time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start, before = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - before


def variant(config: Config, mode: str) -> Config:
    """The recipe of a row of mien: "eager", or what is to be switched on, as "networks+bf16"."""
    parts = mode.split("+")
    compiling = next((part for part in parts if part in ("networks", "graphs")), "off")
    precision = "bf16" if "bf16" in parts else config.train.precision
    return config.model_copy(update={"train": config.train.model_copy(update={"compile": compiling, "precision": precision})})


def matrix_peak(device: torch.device) -> float:
    """Multiply-adds a second of large matrix products: bf16 on a GPU, fp32 on a CPU."""
    n, kind = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in "ab")
    seconds(lambda: a @ b, 3, device)
    return max(20 * n**3 / seconds(lambda: a @ b, 20, device)[0] for _ in range(3))


def multiply_adds(config: Config, size: int) -> int:
    """Multiply-adds that one image costs in a step: forward passes, and backward ones by what is asked for (twice a pass, once by half)."""
    state = build.build_state(config, size=size, attributes=0, device=torch.device("cpu"))
    told = build.describe_architecture(state, size=size, attributes=0, device=torch.device("cpu"))
    G, D = (sum(row["macs"] for row in told[role]) for role in ("generator", "discriminator"))
    return 3 * G + 2 * 3 * D + 2 * D  # G and back; D on a real and a fake and back; D on the fake and back to its pixels alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="seed3")
    parser.add_argument("--width", type=int, default=256, help="0: the preset's own")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="steps of each loop in one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--modes", default="eager", help="rows of mien, by commas: eager,networks,graphs,bf16,networks+bf16,...")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    overrides = [f"train.batch={options.batch}", "data.attributes=none"]
    if options.width:
        overrides += [f"model.{role}.width={options.width}" for role in ("generator", "discriminator")]
    config = resolve(options.preset, overrides).config
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(config, Path(folder), device, options)
    peak = matrix_peak(device)
    shares = {mode: statistics.median(each["clock"]) * multiply_adds(config, 64) / peak for mode, each in rates.items()}
    print(table(rates, shares, peak, options))
    if options.json is not None:
        machine = build.describe_machine(device)
        settings = {name: str(value) for name, value in vars(options).items()}
        record = {"machine": machine, "settings": settings, "images_per_s": rates, "matrix_peak": peak, "share_of_peak": shares}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def measure(config: Config, folder: Path, device: torch.device, options: argparse.Namespace) -> Rates:
    """{loop: {"clock" or "processor": images a second in each round}}."""
    images, attributes = draw_faces(1024, size=64)
    names = [f"{i}.png" for i in range(len(images))]
    splits, source = np.zeros(len(images), np.uint8), [{"name": "drawn", "count": len(images)}]
    store = write_store(folder / "store", images=images, attributes=attributes, attribute_names=TOY_ATTRIBUTES, splits=splits,
                        names=names, crop="square", source=source)  # fmt: skip
    (folder / "png" / "all").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "png" / "all" / f"{i}.png")
    steps = {mode: mien_loop(variant(config, mode), store, device) for mode in options.modes.split(",")}
    steps["careful"] = plain_loop(config, careful_batches(images, options.batch), size=64, device=device, careful=True)
    steps["tutorial"] = plain_loop(config, tutorial_batches(folder / "png", options.batch), size=64, device=device, careful=False)
    for step in steps.values():
        seconds(step, 3, device)  # warm-up, and compiling
    rates: Rates = {name: {"clock": [], "processor": []} for name in steps}
    for turn in range(options.rounds):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            for kind, took in zip(("clock", "processor"), seconds(steps[name], options.steps, device)):
                rates[name][kind].append(options.steps * options.batch / took)
    return rates


def table(rates: Rates, shares: dict[str, float], peak: float, options: argparse.Namespace) -> str:
    """Markdown: a row for each loop, its ratios to the yardsticks with their ranges."""
    title = f"{options.preset}, width {options.width}, batch {options.batch}, 64 px, {options.device}, {options.threads} threads, "
    head = ["loop", "images/s", "share of matrix peak", *(f"v {name}, {kind}" for name in YARDSTICKS for kind in ("clock", "processor"))]
    lines = [f"{title}{options.rounds} rounds; matrix peak {peak / 1e12:.2f}e12 multiply-adds/s", "", f"| {' | '.join(head)} |",
             f"|{'---|' * len(head)}"]  # fmt: skip
    for name, own in rates.items():
        spread = f"({min(own['clock']):,.1f} to {max(own['clock']):,.1f})"
        cells = [name, f"{statistics.median(own['clock']):,.1f} {spread}", f"{shares[name]:.1%}"]
        for yardstick in YARDSTICKS:
            for kind in ("clock", "processor"):
                ratios = sorted(ours / theirs for ours, theirs in zip(own[kind], rates[yardstick][kind]))
                cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
