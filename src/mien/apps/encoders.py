"""The encoder of a generator and what held-out faces give, made once and kept in the user's cache folder.

A file is named by all it depends on: the snapshot's sha256, the judge's, the store's digest (or none) and the recipe.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mien.data.store import FaceStore
from mien.errors import UserError
from mien.explore.anomaly import SMALLEST, Calibration, calibrate, redraw
from mien.explore.encoder import Encoder, EncoderRecipe, train_encoder
from mien.explore.latents import latents
from mien.explore.load import LoadedGenerator
from mien.explore.sample import attribute_rows, render
from mien.metrics.cache import cache_folder, content_key
from mien.metrics.judge import Judge
from mien.models.pictures import one_picture
from mien.whole import whole_file

TRAIN_FACES = 8000  # reals an encoder learns from
HELD_OUT = 400  # faces a calibration takes
FIRST_HELD_OUT = 2_000_000  # number of the first generated face that stands in for a real one
# Percentiles of the score at which a picture is refused: with the detector's word against it, and without. On CelebA (seed0-cpu) the
# detector misses 3 % of faces (half are over 50); it sees 28 % of faces upside down, 2 % of those on their side, and no noise or shapes.
DOUBTFUL, REFUSED = 50.0, 99.9
GENERATED = "generated faces"


@dataclass(frozen=True)
class Witness:
    """What knows a generator's faces: its encoder, and the calibration of scores; `source` says on which faces."""

    encoder: Encoder
    calibration: Calibration
    source: str


def witness(
    generator: LoadedGenerator,
    judge: Judge,
    *,
    store: FaceStore | None = None,
    recipe: EncoderRecipe | None = None,
    progress: Callable[[str, int], Any] | None = None,
) -> Witness:
    """The encoder and calibration of a generator, from the cache or made now (minutes on one core).

    store: of the generator's size; its training split teaches the encoder, its val split (test, or faces of the training split that the
    encoder did not see, where there is none) calibrates. None: the generator's own faces do both, and real photos score higher than they
    should. progress(label, total) gives a context that yields advance(n). UserError for a store of another size.
    """
    recipe = recipe or EncoderRecipe()
    if store is not None and store.size != generator.size:
        raise UserError(f"The store {store.path} has faces of {store.size} px, the model draws {generator.size} px: give one of that size.")
    key = content_key("witness/2", generator.meta["sha256"], judge.weights_sha256, store.digest if store else None, asdict(recipe))
    path = cache_folder() / "encoders" / f"{key}.safetensors"
    found = _load(path, generator)
    if found is not None:
        return found
    reals, labels, held_out, source = _faces(generator, store)
    with _bar(progress, "Training the model's encoder (once)", recipe.steps) as advance:
        encoder = train_encoder(generator, reals=reals, real_attributes=labels, recipe=recipe, on_step=lambda *_: advance(1))
    with _bar(progress, "Calibrating on held-out faces (once)", len(held_out)) as advance:
        calibration = calibrate(redraw(generator, encoder, judge.net, held_out, on_batch=advance))
    made = Witness(encoder, calibration, source)
    _save(path, made)
    return made


def _bar(progress: Callable[[str, int], Any] | None, label: str, total: int) -> Any:
    from contextlib import nullcontext

    return progress(label, total) if progress else nullcontext(lambda n: None)


def _faces(generator: LoadedGenerator, store: FaceStore | None) -> tuple[Tensor | None, Tensor | None, Tensor, str]:
    """(reals uint8 or None, their labels or None, held-out faces uint8 [M, 3, R, R], what these are)."""
    if store is None:
        z = latents(range(FIRST_HELD_OUT, FIRST_HELD_OUT + HELD_OUT), generator.z_dim)
        return None, None, render(generator, z, attribute_rows(generator, {}, HELD_OUT, FIRST_HELD_OUT)), GENERATED
    draw = np.random.default_rng(0)
    order = draw.permutation(store.indices("train"))
    split = next((name for name in ("val", "test") if len(store.indices(name)) >= SMALLEST), "train")
    held = draw.permutation(store.indices(split))[:HELD_OUT] if split != "train" else order[: min(HELD_OUT, len(order) // 2)]
    if len(held) < SMALLEST:
        raise UserError(f"The store {store.path} has too few faces to calibrate on: {SMALLEST} held-out ones are needed.")
    learn = np.sort(np.setdiff1d(order, held, assume_unique=True)[:TRAIN_FACES] if split == "train" else order[:TRAIN_FACES])
    if not len(learn):
        raise UserError(f"The store {store.path} has no training faces: an encoder has nothing to learn from. Give another --data.")
    known = all(name in store.attribute_names for name in generator.attribute_names) and len(generator.attribute_names) > 0
    labels = torch.from_numpy(store.attributes[learn][:, store.columns(generator.attribute_names)]) if known else None
    source = f"{len(held)} {split} faces of {store.path}"
    return _pixels(store, learn), labels, _pixels(store, np.sort(held)), source


def _pixels(store: FaceStore, indices: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(store.images[indices].transpose(0, 3, 1, 2)))


def _save(path: Path, made: Witness) -> None:
    """Kept for the next time; a folder that cannot be written to is done without."""
    tensors = {f"encoder.{name}": value for name, value in made.encoder.state_dict().items()}
    tensors |= {f"calibration.{name}": value for name, value in made.calibration.tensors().items()}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with contextlib.suppress(OSError), whole_file(path) as temporary:
        save_file(plain, temporary, metadata={"options": json.dumps(made.encoder.options), "source": made.source})


def _load(path: Path, generator: LoadedGenerator) -> Witness | None:
    """What was kept; None when there is none or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        options = json.loads(about["options"])
        encoder = Encoder(options["size"], options["z_dim"], options["attributes"], width=options["width"])
        encoder.load_state_dict(_part(tensors, "encoder."))
        calibration = Calibration(**_part(tensors, "calibration."))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return Witness(encoder.to(generator.device).eval().requires_grad_(False), calibration, about["source"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def store_of(generator: LoadedGenerator, named: str | Path | None) -> FaceStore | None:
    """The store named; else the one the generator's run was trained on, if it is still there and the same; else None."""
    from mien.data.store import open_store

    if named is not None:
        return open_store(named)
    try:
        record = json.loads((generator.path.parent.parent / "config.json").read_text(encoding="utf-8"))["store"]
        store = open_store(record["path"])
        return store if store.digest == generator.meta["store"]["digest"] and store.size == generator.size else None
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def check_face(known: Witness, generator: LoadedGenerator, judge: Judge, image: np.ndarray) -> float:
    """The percentile of an aligned picture's anomaly score (uint8 [R, R, 3]) among held-out faces.

    UserError when it is no plausible face: over REFUSED, or over DOUBTFUL when the face detector sees none either. Next to generated faces
    every photo is strange: calibrated on them, the detector must agree.
    """
    from mien.apps.photos import face_seen

    again = redraw(generator, known.encoder, judge.net, one_picture(image))
    percentile = float(known.calibration.percentiles(known.calibration.scores(again))[0])
    try:
        seen = face_seen(image) if percentile > DOUBTFUL else True
    except UserError:  # no detector: the score alone decides
        seen = True
    if not seen or percentile >= REFUSED and known.source != GENERATED:
        raise UserError(f"This does not look like a face: it is stranger than {percentile:.1f} % of {known.source}"
                        f"{'' if seen else ', and no face is detected in it'}. Give an upright face, or --anyway.")  # fmt: skip
    return percentile
