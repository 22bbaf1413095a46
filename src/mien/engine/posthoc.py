"""Averages of any length, made after training (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
section 3 and appendix C).

While a run goes, it keeps two or more averages of G by power functions of the images seen: the weights after tau of t images count in
proportion to tau^gamma, so that an average is as long as its run is old. They are saved every so often, and any other average of the run
is a sum of what was saved: the coefficients are those whose sum of profiles comes nearest to the profile wanted, by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mien.errors import UserError
from mien.models.catalogue import Generator
from mien.models.latents import chosen, latents
from mien.models.layers import Spectral
from mien.runs import Run, kimg_name
from mien.whole import whole_file

MOST = 48  # saved averages that a run keeps: the thinnest spread that still resolves a twentieth of it
BINS = 4096  # a run is cut into so many stretches for the least squares
FACES, AT_A_TIME = 2048, 64  # that batch norm's statistics are measured on


@cache
def exponent(sigma_rel: float) -> float:
    """gamma of the power function whose standard deviation is `sigma_rel` of the run: appendix C, equation 126 of the paper, solved.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), which falls from 1/12 at gamma 0; by bisection.
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        too_wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > sigma_rel**2
        low, high = (middle, high) if too_wide else (low, middle)
    return (low + high) / 2


def decay(sigma_rel: float, *, images: int, nimg: int) -> float:
    """The factor that the average keeps in a step of `images` that ends at `nimg`: (1 - images / nimg)^(gamma + 1), exact for such steps.

    0 in the first step: an average has no memory of initial weights.
    """
    return (1 - images / nimg) ** (exponent(sigma_rel) + 1)


# --- profiles ---------------------------------------------------------------------------------------------------------


def power_profile(sigma_rel: float, at_nimg: int, edges: np.ndarray) -> np.ndarray:
    """[K] share of each stretch between `edges` [K + 1] (images) in the power-function average at `at_nimg`; sums to 1."""
    return np.diff(np.minimum(edges / at_nimg, 1.0) ** (exponent(sigma_rel) + 1))


def half_life_profile(half_life_nimg: float, at_nimg: int, edges: np.ndarray) -> np.ndarray:
    """[K] as `power_profile`, of an exponential average; what would lie before the first image is spread over the rest."""
    shares = np.diff(0.5 ** (np.maximum(at_nimg - edges, 0.0) / half_life_nimg))
    return shares / shares.sum()


def coefficients(profiles: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, float]:
    """([S] coefficients of sum 1 for `profiles` [S, K] that come nearest to `wanted` [K]; the distance left, relative to `wanted`)."""
    scale = 1e3 * float(np.abs(profiles).max())  # a row that says "the sum is 1" louder than any other
    rows = np.concatenate([profiles.T, np.full((1, len(profiles)), scale)])
    found, *_ = np.linalg.lstsq(rows, np.append(wanted, scale), rcond=1e-9)
    found = found / found.sum()
    return found, float(np.linalg.norm(found @ profiles - wanted) / np.linalg.norm(wanted))


# --- saved averages ---------------------------------------------------------------------------------------------------


def save(run: Run, averages: Mapping[str, Generator], nimg: int) -> None:
    """RUN/posthoc/NNNNNNkimg.safetensors: every average, as 'SIGMA/NAME'; kernels in half the bits. Keeps the run within MOST files."""
    tensors = {}
    for sigma, net in averages.items():
        for name, tensor in net.state_dict().items():
            small = tensor.is_floating_point() and tensor.ndim > 1
            tensors[f"{sigma}/{name}"] = (tensor.half() if small else tensor).detach().cpu().contiguous()
    path = run.path / "posthoc" / f"{kimg_name(nimg)}.safetensors"
    with whole_file(path) as temporary:
        save_file(tensors, temporary)
    there = run.posthoc()
    while len(there) > MOST:  # the one whose neighbours are nearest to each other is missed least
        gaps = [there[i + 1][0] - there[i - 1][0] for i in range(1, len(there) - 1)]
        there.pop(1 + gaps.index(min(gaps)))[1].unlink(missing_ok=True)


def rebuild(net: Generator, run: Run, *, at_nimg: int, sigma_rel: float | None = None, half_life_nimg: float | None = None,
            meta: Mapping[str, Any]) -> float:  # fmt: skip
    """Make `net` the average of the run up to `at_nimg` of one width or half-life; returns the distance of its profile from the one wanted.

    Batch norm's running statistics do not average: those of a sum of weights are measured anew, on the run's own mixture of conditions.
    Spectral norm's vectors follow the new weights. Raises UserError when the run has nothing saved up to there.
    """
    files = [(nimg, path) for nimg, path in run.posthoc() if nimg <= at_nimg]
    if not files:
        raise UserError(f"{run.path} kept no averages up to {at_nimg:,} images: train it with --set ema.posthoc=[0.05,0.1].")
    edges = np.linspace(0, at_nimg, BINS + 1)
    saved = [(nimg, path, sigma) for nimg, path in files for sigma in _sigmas(run)]
    profiles = np.stack([power_profile(float(sigma), nimg, edges) for nimg, _, sigma in saved])
    if sigma_rel is not None:
        wanted = power_profile(sigma_rel, at_nimg, edges)
    else:
        assert half_life_nimg is not None
        wanted = half_life_profile(half_life_nimg, at_nimg, edges)
    weights, left = coefficients(profiles, wanted)
    net.load_state_dict(_summed(saved, weights))
    for layer in net.modules():
        if isinstance(layer, Spectral):
            layer.iterate(15)
    measure_statistics(net, meta)
    return left


def _sigmas(run: Run) -> list[str]:
    return [str(sigma) for sigma in run.config["config"]["ema"]["posthoc"]]


def _summed(saved: Sequence[tuple[int, Path, str]], weights: np.ndarray) -> dict[str, torch.Tensor]:
    """sum_i weights[i] x saved[i], in double precision; whole numbers (batch norm's count) are the last one's."""
    total: dict[str, torch.Tensor] = {}
    for path in dict.fromkeys(path for _, path, _ in saved):
        tensors = load_file(path)
        for (_, where, sigma), weight in zip(saved, weights.tolist()):
            if where != path:
                continue
            for key, tensor in tensors.items():
                if key.startswith(f"{sigma}/"):
                    name = key.removeprefix(f"{sigma}/")
                    if not tensor.is_floating_point():
                        total[name] = tensor
                    else:
                        total[name] = total.get(name, 0.0) + weight * tensor.double()
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in total.items()}


@torch.no_grad()
def measure_statistics(net: Generator, meta: Mapping[str, Any]) -> None:
    """Set batch norm's running mean and variance to those of FACES faces, drawn under conditions as frequent as in the data."""
    norms = [layer for layer in net.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    if not norms:
        return
    momenta, training = [layer.momentum for layer in norms], net.training
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
    entries = meta.get("attribute_table") or [([], 1.0)]
    rows, shares = zip(*entries)
    table = torch.tensor([list(row) for row in rows], dtype=torch.float32).reshape(len(rows), -1)[:, : net.attributes]
    attributes, z = table[torch.from_numpy(chosen(range(FACES), shares))], latents(range(FACES), net.z_dim)
    device = next(net.parameters()).device
    net.train()
    for part_z, part_a in zip(z.split(AT_A_TIME), attributes.split(AT_A_TIME)):
        net(part_z.to(device), part_a.to(device))
    net.train(training)
    for layer, momentum in zip(norms, momenta):
        layer.momentum = momentum
