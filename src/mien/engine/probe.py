"""Signals that a step does not give by itself: how varied G's faces are, how they answer to the condition, how D sees held-out reals.

A probe looks at the same latents each time, and changes nothing: networks are read in eval mode, and every step seeds its own randomness.
It costs as much as about 50 images of training, every `balance.probe_kimg` thousand.

Distances between faces are taken between their thumbnails of 16 x 16, which noise and fine texture do not move. "Spread" of a set is
the root of the mean squared distance between two of its members.

- `diversity_pixels`, `diversity_features`: spread of the fixed faces over that of reals, in thumbnails and in D's features. Near 1 when
  varied, 0 when all are one face.
- `diversity/NAMES`: spread within one attribute combination over that of its reals. NAMES are the attributes that are 1.
- `nearest`: mean distance to the nearest other fixed face over the same of as many reals. It falls when faces come in copies, also where
  the copies are of several faces and the spread is still large.
- `response/NAME`: root mean squared change of a face when attribute NAME alone is flipped, over the spread of the faces; 0 when ignored.
- `movement`: root mean squared change of the fixed faces since the last look, over the reals' spread, per thousand images.
- `logit_train`, `logit_val`, `logit_fake`: E[D] on training reals, held-out reals, fixed faces. `accuracy_val`, `sign_val`: share of
  held-out reals called real, and E[sign D]; where D's offset is free, about the middle of `logit_train` and `logit_fake`.
  `holdout_gap` = (logit_train - logit_val) / (logit_train - logit_fake): 0 when D treats both kinds of reals alike, 1 when held-out reals
  look to it like fakes (r_v of Karras et al. 2020, eq. 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from mien.augment.policy import Augment
from mien.data.loader import FaceLoader
from mien.data.pyramid import PyramidLoader
from mien.engine.state import TrainState, step_seed
from mien.models.latents import latents

FACES = 64
REALS = 128
THUMBNAIL_PX = 16
MOST_COMBINATIONS = 8
MOST_ATTRIBUTES = 16
LATENTS_FLIPPED = 8


class Probe:
    """`look(state, augment_p) -> {signal: value}`."""

    def __init__(self, train: FaceLoader | PyramidLoader, held_out: FaceLoader | PyramidLoader | None, augment: Augment, *, z_dim: int,
                 group: int = 1, free_offset: bool = False):
        """`held_out`: the validation split, where there is one. `group`: D takes batches that are multiples of this. `free_offset`: D's
        logits mean something only beside one another."""
        self._train, self._held_out, self._augment, self._group, self._free = train, held_out, augment, group, free_offset
        names, device = train.attribute_names, train.device
        rows = [row for row, _ in sorted(train.combinations(), key=lambda entry: -entry[1])][:MOST_COMBINATIONS]
        each = max(8, FACES // len(rows) // 8 * 8)
        self.labels = [combination_label(names, row) for row in rows]
        self._z = latents(range(each * len(rows)), z_dim).to(device)  # [K x M, Z]
        self._conditions = torch.tensor(rows, dtype=torch.float32, device=device).reshape(len(rows), len(names)).repeat_interleave(each, 0)
        values = [set(column) for column in zip(*(row for row, _ in train.combinations()))]
        # An attribute that never varies cannot be learnt, and is not asked about.
        self._flipped = [(j, name) for j, name in enumerate(names) if len(values[j]) > 1][:MOST_ATTRIBUTES]
        self._measure_reals(rows, each)

    def _measure_reals(self, rows: Sequence[tuple[int, ...]], each: int) -> None:
        """The reals' spread, over all and by combination, and how near their neighbours are: from the head of the training stream."""
        images, attributes = self._train.batch(0, min(1024, self._train.count))
        small = thumbnails(images)
        self._real_spread = spread(small)
        self._real_nearest = nearest(small[: len(self._z)])
        self._spread_by_row = []
        for row in rows:
            members = small[(attributes == torch.tensor(row, dtype=torch.float32, device=small.device)).all(dim=1)]
            self._spread_by_row.append(spread(members) if len(members) >= 8 else self._real_spread)
        self._each = each

    @torch.no_grad()
    def look(self, state: TrainState, augment_p: float) -> dict[str, float]:
        """Reads `state`, but for `state.seen_faces` and `state.probe_nimg`, which it renews."""
        torch.manual_seed(step_seed(0, state.nimg, -1))  # for augmentation and D's input noise; the next step seeds anew
        with evaluating(state.G, state.D):
            faces = state.G(self._z, self._conditions).float()
            signals = self._variety(faces, state) | self._response(faces, state) | self._critic(faces, state, augment_p)
        names = list(signals)
        return dict(zip(names, torch.stack([signals[name].float() for name in names]).tolist()))

    def _variety(self, faces: Tensor, state: TrainState) -> dict[str, Tensor]:
        small = thumbnails(faces)
        signals = {"diversity_pixels": spread(small) / self._real_spread, "nearest": nearest(small) / self._real_nearest}
        if len(self.labels) > 1:
            for label, members, real_spread in zip(self.labels, small.split(self._each), self._spread_by_row):
                signals[f"diversity/{label}"] = spread(members) / real_spread
        if state.seen_faces is not None and state.seen_faces.shape == small.shape and state.nimg > state.probe_nimg:
            moved = (small - state.seen_faces.to(small.device)).square().sum(1).mean().sqrt()
            signals["movement"] = moved / self._real_spread * (1000 / (state.nimg - state.probe_nimg))
        state.seen_faces, state.probe_nimg = small.clone(), state.nimg
        return signals

    def _response(self, faces: Tensor, state: TrainState) -> dict[str, Tensor]:
        """Latent i under combination i, then with each attribute flipped in turn."""
        if not self._flipped:
            return {}
        combinations = len(self.labels)
        chosen = torch.arange(LATENTS_FLIPPED, device=faces.device) % self._each + (torch.arange(LATENTS_FLIPPED, device=faces.device)
                                                                                  % combinations) * self._each  # fmt: skip
        z, conditions = self._z[chosen], self._conditions[chosen]
        flips = []
        for j, _ in self._flipped:
            flipped = conditions.clone()
            flipped[:, j] = 1 - flipped[:, j]
            flips.append(flipped)
        plain = thumbnails(faces[chosen])
        changed = thumbnails(state.G(z.repeat(len(flips), 1), torch.cat(flips)).float()).split(LATENTS_FLIPPED)
        among = spread(thumbnails(faces)).clamp_min(1e-6)
        sizes = [(other - plain).square().sum(1).mean().sqrt() / among for other in changed]
        return {f"response/{name}": size for (_, name), size in zip(self._flipped, sizes)}

    def _critic(self, faces: Tensor, state: TrainState, augment_p: float) -> dict[str, Tensor]:
        """D's features and logits on fixed faces, training reals and held-out reals, all through the same augmentation."""

        def see(images: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
            short = -len(images) % self._group
            if short:  # the minibatch layer wants whole groups
                images, attributes = torch.cat([images, images[:short]]), torch.cat([attributes, attributes[:short]])
            features = state.D.features(self._augment(images, augment_p), attributes)
            return features.float(), state.D.head(features, attributes).float()

        fake_features, fake_logits = see(faces, self._conditions)
        real_features, train_logits = see(*self._train.batch(state.nimg, min(REALS, self._train.count)))
        fake, train = fake_logits.mean(), train_logits.mean()
        varied = spread(fake_features) / spread(real_features).clamp_min(1e-6)
        signals = {"diversity_features": varied, "logit_train": train, "logit_fake": fake}
        if self._held_out is not None:
            _, held_out_logits = see(*self._held_out.batch(state.nimg, min(REALS, self._held_out.count)))
            held_out, above = held_out_logits.mean(), held_out_logits - (train + fake) / 2 if self._free else held_out_logits
            signals |= {"logit_val": held_out, "accuracy_val": (above > 0).float().mean()}
            signals |= {"sign_val": above.sign().mean(), "holdout_gap": (train - held_out) / (train - fake).abs().clamp_min(1e-3)}
        return signals


@contextmanager
def evaluating(*nets: torch.nn.Module) -> Iterator[None]:
    """Networks in eval mode inside, as they were after: running statistics and power iterations stand still."""
    before = [net.training for net in nets]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for net, mode in zip(nets, before):
            net.train(mode)


def thumbnails(images: Tensor) -> Tensor:
    """[N, 3, R, R] -> [N, 3 x 16 x 16], by averaging."""
    return F.adaptive_avg_pool2d(images, min(THUMBNAIL_PX, images.shape[-1])).flatten(1)


def spread(points: Tensor) -> Tensor:
    """Root of the mean squared distance between two different rows of [N, F], 0-d: twice the trace of their covariance, under the root."""
    return (2 * points.var(dim=0).sum()).sqrt()


def nearest(points: Tensor) -> Tensor:
    """Mean distance from each row of [N, F] to the nearest other, 0-d."""
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")  # by products, twins would not be at 0
    return distances.fill_diagonal_(float("inf")).amin(dim=1).mean()


def combination_label(names: Sequence[str], row: Sequence[int]) -> str:
    """'Male+Smiling' for the attributes that are 1; 'none' when none is."""
    return "+".join(name for name, value in zip(names, row) if value) or "none"
