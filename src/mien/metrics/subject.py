"""What an evaluation looks at: the model's faces, the reference, the floor, and their features, each made once and only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.data.store import FaceStore
from mien.errors import UserError
from mien.metrics import face_sets
from mien.metrics.cache import cached, content_key
from mien.metrics.face_sets import FaceSet
from mien.metrics.features import Extractor, build_extractor, extract

if TYPE_CHECKING:
    from mien.explore.load import LoadedGenerator
    from mien.metrics.judge import Judge

Progress = Callable[[str, int, int], None]  # stage, images done, images in all
MAX_HELD_OUT = 5000
ENOUGH = 0.9  # of the reference's size: a floor set this large is used as it is
FEATURES_VERSION = 1  # raise it when what an extractor computes changes with the same weights


class Subject:
    """One model, one reference, one feature space. Attributes are read-only; features are computed on first use."""

    def __init__(self, *, store: FaceStore, split: str, reference: np.ndarray, fake: FaceSet, generator: LoadedGenerator | None, name: str,
                 meta: dict[str, Any], conditions: str, extractor: Extractor, seed: int, truncation: float, latents: int, cache: bool,
                 progress: Progress | None, notes: list[str]):
        self.store, self.split, self.reference = store, split, reference
        self.fake, self.generator, self.name, self.meta, self.conditions = fake, generator, name, meta, conditions
        self.extractor, self.seed, self.truncation, self.latents = extractor, seed, truncation, latents
        self.cache, self.progress, self.notes = cache, progress, notes
        self.from_cache = True  # whether all features of reals were found in the cache; False once some were not

    @property
    def attribute_names(self) -> tuple[str, ...]:
        return self.fake.attribute_names

    @cached_property
    def real(self) -> FaceSet:
        return face_sets.real_faces(self.store, self.reference, self.attribute_names)

    @cached_property
    def real_features(self) -> np.ndarray:
        """[N, F] of the reference."""
        return self._of_reals(self.reference, "reference images")

    @cached_property
    def fake_features(self) -> np.ndarray:
        """[M, F] of the model's faces."""
        return extract(self.extractor, self.fake.read(), progress=self._counter("the model's faces", len(self.fake)))

    # --- the floor: reals in the model's place ------------------------------------------------------------------------

    @cached_property
    def _floor_indices(self) -> np.ndarray:
        return face_sets.floor_indices(self.store, self.reference, self.attribute_names, self.split, self.seed)

    @property
    def floor_is_whole(self) -> bool:
        """Whether there are enough other reals to stand in the model's place; if not, halves of the reference are compared."""
        return len(self._floor_indices) >= ENOUGH * len(self.reference)

    @cached_property
    def _halves(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng([self.seed, 2]).permutation(len(self.reference))
        return np.sort(order[::2]), np.sort(order[1::2])

    @cached_property
    def floor_reference(self) -> np.ndarray:
        """Features of the reals that the floor is measured against."""
        return self.real_features if self.floor_is_whole else self.real_features[self._halves[0]]

    @cached_property
    def floor_features(self) -> np.ndarray:
        return self._of_reals(self._floor_indices, "reals for the floor") if self.floor_is_whole else self.real_features[self._halves[1]]

    @cached_property
    def floor(self) -> FaceSet:
        indices = self._floor_indices if self.floor_is_whole else self.reference[self._halves[1]]
        return face_sets.real_faces(self.store, indices, self.attribute_names)

    @property
    def floor_attributes(self) -> np.ndarray:
        return self.floor.attributes

    @property
    def floor_scale(self) -> float:
        """What a Frechet distance between the floor's sets is multiplied by to stand for the score's N: it goes as 1/N + 1/M there."""
        here = 1 / len(self.floor_reference) + 1 / len(self.floor)
        return (1 / len(self.reference) + 1 / len(self.fake)) / here

    @property
    def floor_note(self) -> str:
        if self.floor_is_whole:
            return f"{len(self.floor):,} reals outside the reference, same combinations of attributes"
        return f"two halves of the reference, {len(self.floor_reference):,} v {len(self.floor):,}: there are too few other reals"

    # --- for memorisation and control ---------------------------------------------------------------------------------

    @cached_property
    def _training(self) -> np.ndarray:
        return self.store.indices("train")

    @cached_property
    def training_features(self) -> np.ndarray:
        if not len(self._training):
            raise UserError(f"The store {self.store.path} has no training images to look for copies of.")
        return self._of_reals(self._training, "training images")

    @property
    def training_names(self) -> list[str]:
        return [self.store.names[i] for i in self._training]

    @cached_property
    def held_out(self) -> np.ndarray:
        """Features of up to MAX_HELD_OUT reals that are not training images: the reference, if it is none, else of val and test."""
        if self.split != "train":
            return self.real_features[:MAX_HELD_OUT]
        there = np.concatenate([self.store.indices("val"), self.store.indices("test")])
        if not len(there):
            raise UserError("The memorisation test needs real images outside the training split, and the store has none.")
        return self._of_reals(np.sort(np.random.default_rng(self.seed).permutation(there)[:MAX_HELD_OUT]), "held-out images")

    @cached_property
    def judge(self) -> Judge:
        from mien.metrics.judge import load_judge

        return load_judge(device=self.extractor.device)

    @cached_property
    def real_probabilities(self) -> np.ndarray:
        """[N, J]: the judge's probabilities of the reference."""
        key = content_key("probabilities", FEATURES_VERSION, self.store.digest, self.reference, self.judge.weights_sha256)
        array, found = cached(key, lambda: self.judged(self.real, "judging reals"), use=self.cache)
        self.from_cache &= found
        return array

    def judged(self, faces: FaceSet, stage: str) -> np.ndarray:
        return extract(self.judge.probabilities, faces.read(), progress=self._counter(stage, len(faces)))

    def _of_reals(self, indices: np.ndarray, stage: str) -> np.ndarray:
        faces = face_sets.real_faces(self.store, indices, ())
        key = content_key(self.extractor.name, FEATURES_VERSION, self.extractor.weights_sha256, self.store.digest, indices)
        array, found = cached(key, lambda: extract(self.extractor, faces.read(), progress=self._counter(stage, len(faces))), use=self.cache)
        self.from_cache &= found
        return array

    def _counter(self, stage: str, total: int) -> Callable[[int], None] | None:
        if self.progress is None:
            return None
        report, done = self.progress, 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            report(stage, done, total)

        return advance


def open_subject(model: LoadedGenerator | FaceStore | Path, store: FaceStore, *, features: str, count: int, split: str, seed: int,
                 truncation: float, device: str, weights: str | Path | None, latents: int, cache: bool, name: str | None,
                 progress: Progress | None) -> Subject:
    """Put model and reference side by side; nothing is computed yet. Raises UserError when they do not fit."""
    if count < 1:
        raise UserError("--count must be at least 1.")
    notes: list[str] = []
    there = len(store.indices(split))
    if 0 < there < count:
        notes.append(f"{split} has {there:,} images, so {there:,} are compared with as many, not {count:,}")
    reference = face_sets.reference_indices(store, split, count, seed)
    generator, meta = None, {}
    if isinstance(model, Path):
        fake = face_sets.folder_faces(model, store.size, limit=len(reference), seed=seed)
        shown, law = model.resolve().name, "as the folder has them"
        store.columns(fake.attribute_names)
    elif isinstance(model, FaceStore):
        _same_size(model.size, store, "The store to score")
        rows = face_sets.reference_indices(model, split, len(reference), seed)
        fake, shown, law = face_sets.real_faces(model, rows, model.attribute_names), model.path.resolve().name, "as the store has them"
        fake = fake if set(fake.attribute_names) <= set(store.attribute_names) else face_sets.real_faces(model, rows, ())
    else:
        _same_size(model.size, store, "The model")
        generator, meta = model, model.meta
        asked = store.attributes[reference][:, store.columns(model.attribute_names)]
        fake = face_sets.generated_faces(model, asked, seed=seed, truncation=truncation)
        shown = f"{model.path.parent.parent.name}/{model.path.stem}" if model.path.parent.name == "snapshots" else model.path.stem
        law = "the reals' own" if model.attribute_names else "none"
        notes += _other_data(meta, store)
    extractor = build_extractor(features, device=device, weights=weights)
    return Subject(store=store, split=split, reference=reference, fake=fake, generator=generator, name=name or shown, meta=meta,
                   conditions=law, extractor=extractor, seed=seed, truncation=truncation, latents=latents, cache=cache, progress=progress,
                   notes=notes)


def _same_size(size: int, store: FaceStore, what: str) -> None:
    if size != store.size:
        raise UserError(f"{what} has {size} px images, the store {store.path} {store.size} px: "
                        f"prepare the data again with --size {size}.")


def _other_data(meta: dict[str, Any], store: FaceStore) -> list[str]:
    """Words about a model trained on other data than it is scored with, or on the very features."""
    trained = meta.get("store") or {}
    notes = []
    if trained.get("crop") not in (None, store.crop):
        notes.append(f"the model was trained with crop {trained['crop']}, the reference has {store.crop}: this alone costs much")
    if trained.get("digest") not in (None, store.digest):
        notes.append("the model was trained on another store: memorisation is measured against this one's training images")
    if "face" in meta.get("trained_on", ()):
        notes.append("the model was trained on the face features themselves (loss.perceptual): scores in them, and control, flatter it; "
                     "judge it by --features inception-768")
    return notes
