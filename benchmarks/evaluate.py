"""What an evaluation costs: every score of a conditional generator, cold and with the real images' features cached; and each distance
beside torch-fidelity's on the same features.

    python benchmarks/evaluate.py [--data STORE] [--count 2000] [--features face] [--threads 2]

Without --data the reference is noise of the right shape: times do not depend on what the images show. The mark set for 2 CPU cores is
60 s for 2,000 v 2,000. Processor time is printed too, because a machine that does other work makes the clock's time worthless.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mien.data.store import FaceStore, open_store
from mien.explore.load import LoadedGenerator
from mien.metrics.evaluate import evaluate
from mien.metrics.fid import fd_from_features
from mien.metrics.kid import kid_from_features, kid_over_subsets
from mien.metrics.precision_recall import prdc_from_features

SIZE = 64


def noise_store(folder: Path, count: int) -> FaceStore:
    """`count` training images, as many for validation, as many for the floor."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    np.save(folder / "images.npy", draw.integers(0, 256, (3 * count, SIZE, SIZE, 3), dtype=np.uint8))
    np.save(folder / "attributes.npy", draw.integers(0, 2, (3 * count, 2), dtype=np.uint8))
    np.save(folder / "splits.npy", np.repeat(np.array([0, 1, 2], dtype=np.uint8), count))
    (folder / "names.txt").write_text("".join(f"{i}.png\n" for i in range(3 * count)))
    manifest = {"format": "mien-faces/1", "count": 3 * count, "size": SIZE, "crop": "whole", "attributes": ["Male", "Smiling"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_store(folder)


def untrained(width: int = 512) -> LoadedGenerator:
    """DCGAN's usual size; weights do not change the time."""
    from mien.models.catalogue import build_generator

    net = build_generator("dcgan", size=SIZE, attributes=2, options={"width": width, "z_dim": 100})
    return LoadedGenerator(net=net.eval(), attribute_names=("Male", "Smiling"), size=SIZE, z_dim=100, meta={}, path=Path("untrained"))


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def scores_table(store: FaceStore, count: int, features: str) -> None:
    generator, metrics = untrained(), ("fd", "kid", "prdc", "control", "memorization", "latent")
    print(f"{count:,} v {count:,}, {features} features, all scores of a conditional DCGAN at {SIZE} px (s)\n")
    print(f"{'':14}{'cold':>8}{'cached':>8}")
    runs, totals = [], []
    for _ in range(2):
        start, worked = time.perf_counter(), time.process_time()
        scores = evaluate(generator, store, metrics=metrics, features=features, count=count, on_problem=print)
        runs.append({score.metric: score.details["seconds"] for score in scores})
        totals.append((time.perf_counter() - start, time.process_time() - worked))
    for name in runs[0]:
        print(f"{name:14.14}{runs[0][name]:8.1f}{runs[1][name]:8.1f}")
    for label, column in (("in all", 0), ("processor", 1)):
        print(f"{label:14}{totals[0][column]:8.1f}{totals[1][column]:8.1f}")
    print("Scores made together share a time; features count with the first score that needs them.")


def peers_table(count: int, dimensions: int) -> None:
    """Our functions and torch-fidelity's on the same features; ours give intervals, density and coverage besides."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    draw = np.random.default_rng(0)
    real, fake = (draw.normal(size=(count, dimensions)).astype(np.float32) for _ in range(2))
    a, b = torch.from_numpy(fake), torch.from_numpy(real)
    subset = min(1000, count)
    rows = {
        "frechet": (lambda: fd_from_features(real=real, fake=fake),
                    lambda: fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)),
        "KID, 100 subsets": (lambda: kid_over_subsets(real=real, fake=fake, subsets=100, size=subset),
                             lambda: kid_features_to_metric(a, b, kid_subsets=100, kid_subset_size=subset, verbose=False)),
        "KID, all pairs": (lambda: kid_from_features(real=real, fake=fake), None),
        "precision, recall": (lambda: prdc_from_features(real=real, fake=fake), lambda: prc_features_to_metric(a, b, verbose=False)),
    }  # fmt: skip
    print(f"\n{count:,} v {count:,}, {dimensions} features (s)\n\n{'':20}{'mien':>8}{'torch-fidelity':>16}{'ratio':>8}")
    for name, (ours, theirs) in rows.items():
        mine, other = timed(ours), timed(theirs) if theirs else None
        print(f"{name:20}{mine:8.2f}" + (f"{other:16.2f}{mine / other:8.2f}" if other else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--features", default="face")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MIEN_CACHE"] = str(Path(folder) / "cache")
        store = open_store(options.data) if options.data else noise_store(Path(folder) / "noise", options.count)
        scores_table(store, options.count, options.features)
        peers_table(options.count, 256)


if __name__ == "__main__":
    main()
