"""Ways between faces: through latents along a line, great arcs or a smooth curve on the sphere, with attributes gliding meanwhile.

A latent z ~ N(0, I) of Z numbers lies near the sphere of radius sqrt(Z), and the generator has seen nothing else. The middle of the
straight line between two latents is 0.71 as long, which is what truncation 0.7 does: faces turn average half-way. On the great arc the
direction stays uniform over the sphere and the norm goes evenly from one end's to the other's, so every frame is as likely as its ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mien.errors import UserError, did_you_mean
from mien.explore.load import LoadedGenerator
from mien.explore.sample import render

MODES = ("slerp", "lerp", "spline")
ROUNDS = 6  # of making steps even: the best one counts, the first three do most
TINY = 1e-9


# ------------------------------------------------------------------------------------------------------------------------------
# Curves


def slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """The point at t [N, 1] on the great arc from start to end [N, Z] (Shoemake 1985), the norm going evenly from one's to the other's.

    Exactly `start` at 0 and `end` at 1. Between opposite latents one of the many arcs; a latent of 0 has the other's direction.
    """
    return _between(start, end, t, _arc(*_directions(start, end), t.double()), t)


def lerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """The point at t [N, 1] on the straight line from start to end [N, Z]; exact at both ends."""
    return torch.where(t == 1, end, start + t.to(start.dtype) * (end - start))


def along(keys: Tensor, times: Tensor, *, mode: str = "slerp", closed: bool = False) -> Tensor:
    """[N, Z]: the points at `times` [N] on the way through keys [K, Z]: key i at time i, and, when closed, key 0 again at time K.

    mode 'slerp': great arcs, with a corner in each key. 'lerp': straight lines. 'spline': a curve on the sphere without corners (squad,
    Shoemake 1987: in each key it runs as from the key before to the one after; in an open way's ends as the arc does).
    UserError for another mode.
    """
    if mode not in MODES:
        raise UserError(f"No way is named {mode!r}: there are {', '.join(MODES)}.{did_you_mean(mode, MODES)}")
    count = len(keys)
    segments = count if closed else count - 1
    if segments == 0:
        return keys.expand(len(times), -1)
    first = times.floor().long().clamp(0, segments - 1)
    t = (times - first)[:, None]
    second = (first + 1) % count
    start, end = keys[first], keys[second]
    if mode != "spline":
        return (lerp if mode == "lerp" else slerp)(start, end, t)
    t = t.double()
    a, b = _directions(start, end)
    inner = _inner_points(keys, closed)
    direction = _arc(_arc(a, b, t), _arc(inner[first], inner[second], t), 2 * t * (1 - t))
    return _between(start, end, t, direction, t * t * (3 - 2 * t))  # the norm rests in each key, so that its way has no corners either


def _inner_points(keys: Tensor, closed: bool) -> Tensor:
    """float64 [K, Z]: squad's control point of each key: back from the mean of its neighbours by half, as seen from the key."""
    before, after = keys.roll(1, dims=0), keys.roll(-1, dims=0)
    here = _directions(keys, keys)[0]
    pull = _log(here, _directions(before, keys)[0]) + _log(here, _directions(after, keys)[0])
    if not closed:
        pull[[0, -1]] = 0
    return _exp(here, -pull / 4)


def _between(start: Tensor, end: Tensor, t: Tensor, direction: Tensor, share: Tensor) -> Tensor:
    """Unit vectors [N, Z] in their norm, `share` [N, 1] of the way from |start| to |end|; start and end themselves at t = 0 and 1."""
    norms = start.double().norm(dim=1, keepdim=True), end.double().norm(dim=1, keepdim=True)
    way = (direction * ((1 - share.double()) * norms[0] + share.double() * norms[1])).to(start.dtype)
    return torch.where(t == 0, start, torch.where(t == 1, end, way))


def _directions(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 unit vectors [N, Z]; one of norm 0 gets the other's direction, two of them the first axis's."""
    a, b = start.double(), end.double()
    axis = torch.zeros_like(a)
    axis[:, 0] = 1
    a = torch.where(a.norm(dim=1, keepdim=True) > TINY, a, torch.where(b.norm(dim=1, keepdim=True) > TINY, b, axis))
    b = torch.where(b.norm(dim=1, keepdim=True) > TINY, b, a)
    return a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)


def _arc(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The unit vector at t [N, 1] of the way from unit vectors a to b [N, Z]."""
    return _exp(a, t * _log(a, b))


def _log(a: Tensor, b: Tensor) -> Tensor:
    """[N, Z]: the tangent at a that leads to b, as long as the angle between them. Opposite points: towards the axis a is least along."""
    cosine = (a * b).sum(dim=1, keepdim=True)
    across = b - cosine * a
    sine = across.norm(dim=1, keepdim=True)
    axis = torch.nn.functional.one_hot(a.abs().argmin(dim=1), a.shape[1]).to(a.dtype)
    other = axis - (axis * a).sum(dim=1, keepdim=True) * a
    opposite = (sine < TINY) & (cosine < 0)
    unit = torch.where(opposite, other / other.norm(dim=1, keepdim=True).clamp(min=TINY), across / sine.clamp(min=TINY))
    return unit * torch.atan2(sine, cosine)


def _exp(a: Tensor, tangent: Tensor) -> Tensor:
    """[N, Z]: where the great circle from unit vector a leads along a tangent as long as the angle to go."""
    angle = tangent.norm(dim=1, keepdim=True)
    return angle.cos() * a + angle.sin() * tangent / angle.clamp(min=1e-300)


# ------------------------------------------------------------------------------------------------------------------------------
# Morphs


@dataclass(frozen=True, eq=False)
class Morph:
    """A film to be: through latents keys [K, Z], each with its conditions attributes [K, A].

    Conditions go in straight lines from key to key. `glides` {column: (from, to)} go their own way, evenly over the whole film; in a closed
    one there and back (as a cosine), so that it closes.
    """

    keys: Tensor
    attributes: Tensor
    mode: str = "slerp"
    closed: bool = False
    glides: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    def at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(z [N, Z], attributes [N, A]), float32, at u [N], float64: 0 is the beginning, 1 the end (when closed, the beginning again)."""
        times = u.double() * (len(self.keys) if self.closed else len(self.keys) - 1)
        z = along(self.keys, times, mode=self.mode, closed=self.closed)
        rows = along(self.attributes, times, mode="lerp", closed=self.closed).clone()
        share = (1 - torch.cos(2 * torch.pi * u)) / 2 if self.closed else u
        for column, (first, last) in self.glides.items():
            rows[:, column] = (first + share * (last - first)).to(rows.dtype)
        return z, rows


def moments(count: int, *, closed: bool = False) -> Tensor:
    """float64 [count]: even moments of a film, 0 to 1; of a closed one without the 1, so that the last frame is followed by the first."""
    return torch.arange(count, dtype=torch.float64) / max(1, count if closed else count - 1)


def frames(generator: LoadedGenerator, morph: Morph, u: Tensor, *, batch: int = 64) -> Iterator[np.ndarray]:
    """The film's pictures at moments u [N], uint8 [R, R, 3] one by one; `batch` are drawn at a time."""
    for part in u.split(batch):
        yield from render(generator, *morph.at(part), batch=batch).permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True, eq=False)
class EvenMoments:
    """Moments u [N] at which a film moves evenly, and how far its steps stray from their mean: standard deviation over mean."""

    u: Tensor
    before: float  # of evenly spaced moments
    after: float


def even_moments(generator: LoadedGenerator, morph: Morph, count: int, *, features: Callable[[Tensor], np.ndarray]) -> EvenMoments:
    """Moments [count] between which the picture changes by equal steps, the distance in `features` (uint8 [N, 3, R, R] -> [N, F])."""
    def seen(u: Tensor) -> np.ndarray:
        return np.asarray(features(render(generator, *morph.at(u))), dtype=np.float64)

    return equidistant(seen, count, closed=morph.closed)


def equidistant(seen: Callable[[Tensor], np.ndarray], count: int, *, closed: bool = False, rounds: int = ROUNDS) -> EvenMoments:
    """Moments [count] in 0..1 whose `seen` (u [N] -> [N, F]) are equally far from their neighbours, the first and last kept.

    Equidistribution of a mesh (de Boor 1973): measure the steps, move the moments to where their sum is even, and again. The best of all
    rounds is given, the even spacing among them, so it never gets worse. A jump of the generator stays a jump.
    """
    u = moments(count, closed=closed)
    best, first = EvenMoments(u, np.inf, np.inf), None
    for _ in range(rounds + 1):
        points = seen(u)
        ends = np.append(u.numpy(), 1.0) if closed else u.numpy()
        steps = np.linalg.norm(np.diff(np.concatenate([points, points[:1]]) if closed else points, axis=0), axis=1)
        if len(steps) < 2 or not steps.sum() > 0:
            return EvenMoments(u, 0.0, 0.0)
        spread = float(steps.std() / steps.mean())
        first = spread if first is None else first
        if spread < best.after:
            best = EvenMoments(u, first, spread)
        way = np.append(0.0, steps.cumsum())
        u = torch.from_numpy(np.interp(np.linspace(0, 1, len(ends)), way / way[-1], ends)[:count])
    return best
