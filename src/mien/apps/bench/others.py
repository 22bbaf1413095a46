"""Data, evaluation and sampling: rates and waits."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mien.apps.bench.timing import seconds, spread
from mien.config import Config
from mien.data.loader import FaceLoader
from mien.data.store import FaceStore
from mien.engine import build
from mien.engine.build import attribute_names
from mien.explore.load import LoadedGenerator

JPEGS = 2000  # enough that starting the processes weighs little
SCORED = 200  # images a side
FOR_S = 2.0
ROUNDS = 5
BATCHES = (1, 8, 64)


def measure_data(config: Config, store: FaceStore, device: torch.device) -> dict[str, Any]:
    """Preparing JPEGs of CelebA's frame (drawn ones, without noise, so quicker to decode than photos), and serving batches."""
    from PIL import Image

    from mien.data.prepare import prepare
    from mien.data.synthetic import draw_faces

    by_workers = {}
    with tempfile.TemporaryDirectory() as folder:
        images, _ = draw_faces(64, size=256, seed=0)
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        for number in range(JPEGS):
            Image.fromarray(images[number % 64]).crop((39, 19, 217, 237)).save(pictures / f"{number:06d}.jpg", quality=92)
        for workers in sorted({1, torch.get_num_threads()}):
            start = time.perf_counter()
            prepare([str(pictures)], Path(folder) / f"store{workers}", size=store.size, crop="center178", workers=workers)
            by_workers[str(workers)] = JPEGS / (time.perf_counter() - start)
    loader = FaceLoader(store, attributes=attribute_names(config, store), flip=config.data.flip, device=device)
    batch, rates, position = config.train.batch, [], 0
    for _ in range(ROUNDS):  # each long enough that what was served ahead of time is paid for
        begun, first = time.perf_counter(), position
        while position == first or time.perf_counter() - begun < FOR_S / ROUNDS:
            seconds(partial(loader.batch, position, batch), device)
            position += batch
        rates.append((position - first) / (time.perf_counter() - begun))
    return {"prepare_images_per_s_by_workers": by_workers, "loader_images_per_s": spread(rates), "batch": batch}


def untrained(config: Config, store: FaceStore, device: torch.device) -> LoadedGenerator:
    """The recipe's generator; weights do not change the time."""
    names = attribute_names(config, store)
    net = build.build_state(config, size=store.size, attributes=len(names), device=device).ema
    return LoadedGenerator(net=net, attribute_names=names, size=store.size, z_dim=net.z_dim, meta={}, path=Path("untrained"))


def measure_eval(config: Config, store: FaceStore, device: torch.device) -> dict[str, Any]:
    """The default features' rate, and two scores of an untrained generator (of too few faces for fd), timed, nothing from the cache."""
    from mien.metrics.evaluate import evaluate
    from mien.metrics.features import BATCH, build_extractor

    extractor = build_extractor("face", device=str(device))
    images = torch.from_numpy(np.ascontiguousarray(store.images[:BATCH].transpose(0, 3, 1, 2)))
    extractor(images)
    rates, begun = [], time.perf_counter()
    while time.perf_counter() - begun < FOR_S:
        rates.append(len(images) / seconds(lambda: extractor(images), device))
    start = time.perf_counter()
    scores = evaluate(untrained(config, store, device), store, metrics=("kid", "prdc"), count=SCORED, split="train", device=str(device),
                      cache=False)  # fmt: skip
    return {"features": "face", "features_images_per_s": spread(rates), "score_images": SCORED, "score_metrics": [s.metric for s in scores],
            "score_s": time.perf_counter() - start}  # fmt: skip


def measure_sampling(config: Config, store: FaceStore, device: torch.device) -> dict[str, Any]:
    """How long one face takes, and how many a second come in batches."""
    from mien.explore.sample import render

    generator = untrained(config, store, device)
    attributes = len(generator.attribute_names)

    def draw(count: int) -> None:
        render(generator, torch.randn(count, generator.z_dim), torch.zeros(count, attributes), batch=count)

    found: dict[str, Any] = {"images_per_s_by_batch": {}}
    for count in BATCHES:
        draw(count)
        times_s: list[float] = []
        begun = time.perf_counter()
        while len(times_s) < 3 or time.perf_counter() - begun < FOR_S:
            times_s.append(seconds(partial(draw, count), device))
        if count == 1:
            median, p95 = np.quantile(times_s, [0.5, 0.95])
            found["one_face_ms"] = {"median": 1000 * float(median), "p95": 1000 * float(p95), "faces": len(times_s)}
        found["images_per_s_by_batch"][str(count)] = count / float(np.median(times_s))
    return found
