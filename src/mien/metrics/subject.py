"""What an evaluation looks at: the model's faces, the reference, the floor, and their features, each made once and only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from mien.data.store import FaceStore
from mien.errors import UserError
from mien.metrics import face_sets
from mien.metrics.attribute_control import asked_latents, look
from mien.metrics.cache import cached, content_key
from mien.metrics.face_sets import FaceSet
from mien.metrics.features import Extractor, build_extractor, check_features, extract

if TYPE_CHECKING:
    from mien.explore.load import LoadedGenerator
    from mien.metrics.judge import Judge

Progress = Callable[[str, int, int], None]  # stage, images done, images in all
MAX_HELD_OUT = 5000
ENOUGH = 0.9  # of the reference's size: a floor set this large is used as it is
FEATURES_VERSION = 1  # raise it when what an extractor computes changes with the same weights


class Ranks(Protocol):
    """The processes that measure together (engine.distributed)."""

    rank: int
    size: int

    def tell(self, words: Any = None) -> Any: ...

    def collect(self, words: Any) -> list[Any]: ...


class Subject:
    """One model, one reference, one feature space. Attributes are read-only; features are computed on first use.

    Of several processes the first asks for features and the others `help`: each looks at every P-th batch.
    """

    def __init__(self, *, store: FaceStore, split: str, reference: np.ndarray, fake: FaceSet, generator: LoadedGenerator | None, name: str,
                 meta: dict[str, Any], conditions: str, extractor: Extractor, seed: int, truncation: float, latents: int, cache: bool,
                 progress: Progress | None, notes: list[str], wider: np.ndarray, ranks: Ranks | None = None):
        self.ranks = ranks
        self.store, self.split, self.reference = store, split, reference
        self.wider = wider  # what the reference would be for a model with more faces
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
        return self._measured("features", None, "the model's faces")

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
        """Features of up to MAX_HELD_OUT reals that are not training images: the reference, if it is none, else of val and test.

        Few faces to score are no reason for few held-out images: the test needs no equal sizes.
        """
        if self.split != "train":
            if len(self.wider) == len(self.reference):
                return self.real_features[self._some(np.arange(len(self.wider)))]
            return self._of_reals(self._some(self.wider), "held-out images")
        there = np.concatenate([self.store.indices("val"), self.store.indices("test")])
        if not len(there):
            raise UserError("The memorisation test needs real images outside the training split, and the store has none.")
        return self._of_reals(self._some(there), "held-out images")

    def _some(self, indices: np.ndarray) -> np.ndarray:
        """At most MAX_HELD_OUT of them, drawn by the seed (a store lies source after source), in rising order."""
        return np.sort(np.random.default_rng(self.seed).permutation(indices)[:MAX_HELD_OUT])

    @cached_property
    def judge(self) -> Judge:
        from mien.metrics.judge import load_judge

        return load_judge(device=self.extractor.device, precision=self.extractor.precision)

    @cached_property
    def real_probabilities(self) -> np.ndarray:
        """[N, J]: the judge's probabilities of the reference."""
        key = self._key("probabilities", FEATURES_VERSION, self.store.digest, self.reference, self.judge.weights_sha256)
        array, found = cached(key, lambda: self._measured("probabilities", self.reference, "judging reals"), use=self.cache)
        self.from_cache &= found
        return array

    @cached_property
    def fake_probabilities(self) -> np.ndarray:
        """[N, J]: the judge's probabilities of the model's faces."""
        return self._measured("probabilities", None, "judging the model's faces")

    def look(self, generator: LoadedGenerator, judge: Judge, z: Tensor, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `attribute_control.look`, of latents z that are the first of `seed`; every process makes its share."""
        if self.ranks is None or self.ranks.size == 1:
            return look(generator, judge, z, conditions)
        both = self._measured("answers", conditions, "answers to attributes")
        known = len(judge.attribute_names)
        return both[:, :known].astype(np.float64), both[:, known:].astype(np.float64)

    def _of_reals(self, indices: np.ndarray, stage: str) -> np.ndarray:
        key = self._key(self.extractor.name, FEATURES_VERSION, self.extractor.weights_sha256, self.store.digest, indices)
        array, found = cached(key, lambda: self._measured("features", indices, stage), use=self.cache)
        self.from_cache &= found
        return array

    def _key(self, *parts: Any) -> str:
        """Of an entry of the cache. fp32 adds nothing to it: entries from before there was another precision still stand."""
        precision = self.extractor.precision
        return content_key(*parts) if precision == "fp32" else content_key(*parts, precision)

    # --- the work itself, in one process or several ---------------------------------------------------------------------

    def _measured(self, kind: str, what: np.ndarray | None, stage: str) -> np.ndarray:
        """[N, F]: 'features' or the judge's 'probabilities' of reals `what`, or of the model's faces (None); 'answers' to conditions."""
        count, read, measure = self._work(kind, what)
        if self.ranks is None or self.ranks.size == 1:
            return extract(measure, read(), progress=self._counter(stage, count))
        self.ranks.tell((kind, what))
        shares = self.ranks.collect(self._share(read, measure, self._counter(stage, -(-count // self.ranks.size))))
        owner = np.arange(count) // face_sets.BATCH % self.ranks.size
        features = np.empty((count, shares[0].shape[1]), np.float32)
        for rank, share in enumerate(shares):
            if len(share):
                features[owner == rank] = share
        check_features(features, least=1)
        return features

    def help(self) -> None:
        """What the other processes do while the first measures, until it says that it is done."""
        assert self.ranks is not None
        while (asked := self.ranks.tell()) is not None:
            _, read, measure = self._work(*asked)
            self.ranks.collect(self._share(read, measure, None))

    def _work(self, kind: str, what: np.ndarray | None) -> tuple[int, Callable[..., Iterator[Any]], Callable[[Any], Any]]:
        """(how many, a reader of batches as a FaceSet's, what to do with a batch)."""
        if kind == "answers":
            assert what is not None and self.generator is not None
            generator, z = asked_latents(self.generator, len(what), self.seed, self.truncation)

            def read(first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, np.ndarray]]:
                for start in range(first * face_sets.BATCH, len(what), every * face_sets.BATCH):
                    yield z[start:start + face_sets.BATCH], what[start:start + face_sets.BATCH]

            return len(what), read, lambda part: np.concatenate(look(generator, self.judge, *part), axis=1)
        faces = self.fake if what is None else face_sets.real_faces(self.store, what, ())
        return len(faces), faces.read, self.extractor if kind == "features" else self.judge.probabilities

    def _share(
        self, read: Callable[..., Iterator[Any]], measure: Callable[[Any], Any], counter: Callable[[int], None] | None
    ) -> np.ndarray:
        assert self.ranks is not None
        parts = []
        for batch in read(self.ranks.rank, self.ranks.size):
            parts.append(np.asarray(measure(batch), dtype=np.float32))
            if counter:
                counter(len(parts[-1]))
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

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
                 progress: Progress | None, precision: str = "fp32", ranks: Ranks | None = None) -> Subject:
    """Put model and reference side by side; nothing is computed yet. Raises UserError when they do not fit."""
    if count < 1:
        raise UserError("--count must be at least 1.")
    face_sets.check_split(split)
    wider = face_sets.reference_indices(store, split, count, seed)
    count, notes = _as_many(model, store, split, count)
    reference = face_sets.reference_indices(store, split, count, seed)
    generator, meta = None, {}
    if isinstance(model, Path):
        fake = face_sets.folder_faces(model, store.size, limit=len(reference), seed=seed)
        shown, law = model.resolve().name, "as the folder has them"
        store.columns(fake.attribute_names)
    elif isinstance(model, FaceStore):
        _same_size(model.size, store, "The store to score")
        rows = face_sets.drawn(face_sets.scored_of(model, split), len(reference), seed)
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
    extractor = build_extractor(features, device=device, weights=weights, precision=precision)
    return Subject(store=store, split=split, reference=reference, fake=fake, generator=generator, name=name or shown, meta=meta,
                   conditions=law, extractor=extractor, seed=seed, truncation=truncation, latents=latents, cache=cache, progress=progress,
                   notes=notes, wider=wider, ranks=ranks)


def _as_many(model: LoadedGenerator | FaceStore | Path, store: FaceStore, split: str, count: int) -> tuple[int, list[str]]:
    """(how many images there can be on each side, a note when they are fewer than `count`)."""
    sides = [(len(store.indices(split)), split)]
    if isinstance(model, Path):
        sides.append((len(face_sets.pictures_of(model)), f"the folder {model.resolve().name}"))
    elif isinstance(model, FaceStore):
        sides.append((len(face_sets.scored_of(model, split)), f"{model.path.resolve().name}, the store to score,"))
    there, where = min(sides)
    if not 0 < there < count:
        return count, []
    return there, [f"{where} has {there:,} images, so {there:,} are compared with as many, not {count:,}"]


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
