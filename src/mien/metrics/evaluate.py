"""Score a model against a store: the one way for the command line, for snapshots during training and for tests."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mien.combinations import combination_name
from mien.data.store import FaceStore
from mien.errors import UserError, did_you_mean
from mien.metrics import attribute_control as control
from mien.metrics import latent_quality as latent
from mien.metrics.face_sets import combinations_of
from mien.metrics.fid import bias_curve, fd_from_features, metric_name
from mien.metrics.groups import group_shares
from mien.metrics.kid import kid_from_features, kid_over_subsets
from mien.metrics.memorization import memorization_from_features
from mien.metrics.precision_recall import prdc_from_features
from mien.metrics.protocol import Estimate, Protocol, Score
from mien.metrics.subject import MAX_HELD_OUT, Progress, Ranks, Subject, open_subject

if TYPE_CHECKING:
    from pathlib import Path

    from mien.explore.load import LoadedGenerator

Found = list[tuple[str, Estimate, float | None]]  # metric, estimate, floor
MOST_CROSSED = 4  # attributes whose combinations are scored one by one
LEAST_OF_COMBINATION = 30
PATHS = 256


def evaluate(model: LoadedGenerator | FaceStore | Path, store: FaceStore, *, metrics: Sequence[str] | None = None, features: str = "face",
             count: int = 10_000, split: str = "val", seed: int = 0, truncation: float = 1.0, device: str = "cpu",
             weights: str | Path | None = None, latents: int = 1000, with_bias_curve: bool = False, cache: bool = True,
             name: str | None = None, progress: Progress | None = None, on_problem: Callable[[str], None] | None = None,
             precision: str = "fp32", ranks: Ranks | None = None) -> list[Score]:
    """Scores of `model` (a loaded generator, a folder of pictures, or another store) against `count` images of a split of `store`.

    metrics: names from METRICS; None takes all that apply. As many faces are made as there are reference images (at most the split's), and
    asked for exactly the reals' attributes, so that no score measures a shift of labels. `latents`: faces that attributes are asked with.
    precision: of the features and the judge, fp32 or bf16; the faces are made in fp32 all the same.
    progress(stage, done, total) is called as images go by. Raises UserError for what cannot be measured; with on_problem, the word goes
    there instead and the other metrics are scored all the same. `ranks`: processes that measure together; the first gets the scores, the
    others none.
    """
    unknown = [metric for metric in metrics or () if metric not in METRICS]
    if unknown:
        raise UserError(f"No metric is named {unknown[0]}.{did_you_mean(unknown[0], METRICS)} There are: {', '.join(METRICS)}.")
    subject = open_subject(model, store, features=features, count=count, split=split, seed=seed, truncation=truncation, device=device,
                           weights=weights, latents=latents, cache=cache, name=name, progress=progress, precision=precision, ranks=ranks)
    if ranks is not None and ranks.rank > 0:
        subject.help()
        return []
    try:
        return _scores(subject, metrics, with_bias_curve=with_bias_curve, on_problem=on_problem)
    finally:
        if ranks is not None and ranks.size > 1:
            ranks.tell(None)


def _scores(subject: Subject, metrics: Sequence[str] | None, *, with_bias_curve: bool,
            on_problem: Callable[[str], None] | None) -> list[Score]:
    scores = []
    for metric in DEFAULT if metrics is None else metrics:
        began = time.monotonic()
        why_not = None if metrics is not None else _unfit(metric, subject)
        if why_not:
            continue
        try:
            found = METRICS[metric](subject)
        except UserError as problem:
            if on_problem is None:
                raise
            on_problem(f"{metric}: {problem}")
            continue
        if metric == "fd" and with_bias_curve:
            found += _bias_curve(subject, on_problem)
        seconds = round(time.monotonic() - began, 2)
        scores += [Score.of(metric_name, estimate, protocol=_protocol(subject), floor=floor, seconds=seconds,
                            reals_from_cache=subject.from_cache, **({"notes": subject.notes} if subject.notes else {}))
                   for metric_name, estimate, floor in found]
    return scores


def _bias_curve(subject: Subject, on_problem: Callable[[str], None] | None) -> Found:
    """It needs more images than the distance at this N, which stands without it."""
    try:
        at_infinity = bias_curve(real=subject.real_features, fake=subject.fake_features)
    except UserError as problem:
        if on_problem is None:
            raise
        on_problem(f"fd-infinite: {problem}")
        return []
    return [(metric_name("fd-infinite", subject.extractor.name), at_infinity, 0.0)]


def _unfit(metric: str, subject: Subject) -> str | None:
    """Why a metric does not apply to this model, or None."""
    if metric == "control" and not subject.fake.attribute_names:
        return "the model takes no attributes"
    if metric == "memorization" and not len(subject.store.indices("train")):
        return "the store has no training images"
    return None


def _protocol(subject: Subject) -> Protocol:
    store, meta = subject.store, subject.meta
    return Protocol.now(store=store.digest, data=store.path.resolve().name, crop=store.crop, size=store.size, split=subject.split,
                        n_real=len(subject.real), n_fake=len(subject.fake), features=subject.extractor.name,
                        weights_sha256=subject.extractor.weights_sha256, model=subject.name, nimg=meta.get("nimg"),
                        ema=None if "ema" not in meta else bool(meta["ema"]), truncation=subject.truncation, seed=subject.seed,
                        conditions=subject.conditions, device=subject.extractor.device,
                        trained_on=subject.extractor.name if subject.extractor.name in meta.get("trained_on", ()) else None,
                        precision=subject.extractor.precision)


def _compared(subject: Subject, function: Callable[..., dict[str, Estimate]], names: dict[str, str]) -> Found:
    """A score of features overall, with its floor, and for each combination of attributes in details['by_combination'].

    names: {what `function` calls it: metric}. The floor is what reals that are not in the reference get, in the model's place.
    """
    overall = function(real=subject.real_features, fake=subject.fake_features)
    floors = _floors(function, subject.floor_reference, subject.floor_features)
    by_combination: dict[str, dict[str, Any]] = {key: {} for key in names}
    for label, reals, fakes, others in _combinations(subject):
        try:
            inside = function(real=subject.real_features[reals], fake=subject.fake_features[fakes])
        except UserError as problem:
            for key in names:
                by_combination[key][label] = {"n_real": len(reals), "n_fake": len(fakes), "value": None, "why": str(problem)}
            continue
        floor = _floors(function, subject.real_features[reals], subject.floor_features[others]) if subject.floor_is_whole else {}
        for key in names:
            part = inside[key]
            by_combination[key][label] = {"n_real": len(reals), "n_fake": len(fakes), "value": part.value, "low": part.low,
                                          "high": part.high, "floor": floor.get(key)}
    return [(metric, _with(overall[key], by_combination=by_combination[key], floor_from=subject.floor_note), floors.get(key))
            for key, metric in names.items()]


def _floors(function: Callable[..., dict[str, Estimate]], real: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The values of reals against other reals; empty when there are too few for the function."""
    try:
        return {key: estimate.value for key, estimate in function(real=real, fake=other).items()}
    except UserError:
        return {}


def _combinations(subject: Subject) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """[(name, rows of the reals, of the fakes, of the floor)] of the combinations that both sides have enough of, the commonest first.

    With more attributes than can be crossed, of each value of each: of 2^8 combinations hardly one has enough images for a score.
    """
    names = subject.fake.attribute_names
    if not names:
        return []
    if len(names) <= MOST_CROSSED:
        groups = [(combination_name(names, row), list(range(len(names))), row) for row, _ in combinations_of(subject.real.attributes)]
    else:
        groups = [(f"{name}={value}", [column], np.array([value])) for column, name in enumerate(names) for value in (1, 0)]
    found = []
    for label, columns, asked in groups:
        reals, fakes, others = (np.flatnonzero((rows[:, columns] == asked).all(axis=1))
                                for rows in (subject.real.attributes, subject.fake.attributes, subject.floor_attributes))  # fmt: skip
        if min(len(reals), len(fakes)) >= LEAST_OF_COMBINATION:
            found.append((label, reals, fakes, others))
    return found if len(found) > 1 else []


def _with(estimate: Estimate, **details: Any) -> Estimate:
    return dataclasses.replace(estimate, details={**estimate.details, **details})


def _names(subject: Subject, *keys: str) -> dict[str, str]:
    return {key: metric_name(key, subject.extractor.name) for key in keys}


def _fd(subject: Subject) -> Found:
    (metric, estimate, floor), = _compared(subject, fd_from_features, _names(subject, "fd"))
    return [(metric, estimate, None if floor is None else floor * subject.floor_scale)]


def _kid(subject: Subject) -> Found:
    (metric, estimate, floor), = _compared(subject, kid_from_features, _names(subject, "kid"))
    if subject.extractor.name == "inception" and min(len(subject.real), len(subject.fake)) >= 1000:
        usual = kid_over_subsets(real=subject.real_features, fake=subject.fake_features)
        estimate = _with(estimate, over_subsets={"value": usual.value, **usual.details})
    return [(metric, estimate, floor)]


def _prdc(subject: Subject) -> Found:
    return _compared(subject, prdc_from_features, _names(subject, "precision", "recall", "density", "coverage"))


def _control(subject: Subject) -> Found:
    judge, names = subject.judge, subject.fake.attribute_names
    which = [i for i, name in enumerate(names) if name in judge.attribute_names]
    asked = [names[i] for i in which]
    if not asked:
        raise UserError(f"The judge knows none of the model's attributes ({', '.join(names) or 'it has none'}): control cannot be judged.")
    columns = [judge.attribute_names.index(name) for name in asked]
    generator = subject.generator
    if generator is None:
        labelled = ((subject.fake_probabilities, subject.fake), (subject.real_probabilities, subject.real))
        of_fake, of_real = (control.label_accuracy(probabilities=probabilities, attributes=faces.attributes[:, which], asked=asked,
                                                   judged=judge.attribute_names) for probabilities, faces in labelled)
        return [("control", of_fake, of_real.value)]
    rows = subject.fake.attributes
    drawn = np.random.default_rng(subject.seed).permutation(len(rows))[:control.latents_for(len(asked), subject.latents)]
    answers = control.ask(generator, judge, rows[drawn], which, seed=subject.seed, truncation=subject.truncation, see=subject.look)
    scores = control.control_scores(answers, asked=asked, judged=judge.attribute_names, real_probabilities=subject.real_probabilities,
                                    real_attributes=subject.real.attributes)
    accuracy, floor = scores["control"]
    leakage, identity = scores["leakage"][0].details, scores["identity"][0].details
    more: dict[str, Any] = {"judge": judge.weights_sha256, "judged": leakage["judged"], "leakage": leakage["leakage"],
                            "leaks": leakage["leaks"], "identity": identity["per_attribute"],
                            "sweep": control.sweep(generator, judge, rows[drawn], which, columns, asked, seed=subject.seed,
                                                   truncation=subject.truncation, see=subject.look),
                            "rare_combinations": control.rare_combinations(generator, judge, subject.real.attributes, which, columns, asked,
                                                                           seed=subject.seed, truncation=subject.truncation,
                                                                           see=subject.look)}
    if len(asked) <= 4:
        more["combinations"] = control.combination_confusion(answers.base, rows[drawn][:, which], columns, asked)
    scores["control"] = _with(accuracy, **more), floor
    return [(metric, estimate, at_best) for metric, (estimate, at_best) in scores.items()]


def _memorization(subject: Subject) -> Found:
    held_out = subject.held_out
    estimate = memorization_from_features(fake=subject.fake_features, training=subject.training_features, held_out=held_out,
                                          fake_names=subject.fake.names, training_names=subject.training_names, seed=subject.seed)
    return [("memorization", _with(estimate, held_out_at_most=MAX_HELD_OUT), estimate.details["expected"])]


def _groups(subject: Subject) -> Found:
    estimate = group_shares(real=subject.real_probabilities, fake=subject.fake_probabilities,
                            names=subject.judge.attribute_names, asked=subject.fake.attribute_names)
    return [("groups", estimate, estimate.details["expected"])]


def _latent(subject: Subject) -> Found:
    (_, diversity, _), = _compared(subject, latent.diversity_from_features, {"diversity": "diversity"})
    twins = latent.twins(real=subject.real_features, fake=subject.fake_features)
    parts = {label: Estimate(value=part["value"], low=part["low"], high=part["high"])
             for label, part in diversity.details["by_combination"].items() if part["value"] is not None}
    verdict = latent.collapse_verdict(diversity=diversity, twin_share=twins, by_combination=parts)
    found: Found = [("diversity", _with(diversity, verdict=verdict), 1.0), ("twins", twins, twins.details["expected"])]
    if subject.generator is not None:
        scale, _ = latent.mean_distance(subject.real_features)
        found.append(("path-length", latent.path_length(subject.generator, subject.fake.attributes[:PATHS], subject.extractor, scale=scale,
                                                        seed=subject.seed, truncation=subject.truncation), None))
    return found


def _torcheval(subject: Subject) -> Found:
    """Seed 0's number: torcheval's own FrechetInceptionDistance, float32 and all. Comparable with nothing else, hence never called FID."""
    from mien.metrics.backbones import torcheval_distance

    if subject.extractor.name != "torchvision-inception":
        raise UserError("The protocol torcheval is made with --features torchvision-inception.")
    net, device = subject.extractor.float_net, subject.extractor.device
    assert net is not None
    value = torcheval_distance(real=subject.real.read(), fake=subject.fake.read(), net=net, dimensions=2048, device=device)
    floor = torcheval_distance(real=subject.real.read(), fake=subject.floor.read(), net=net, dimensions=2048, device=device)
    return [("fd-torcheval", Estimate(value=value), floor)]


METRICS: dict[str, Callable[[Subject], Found]] = {
    "fd": _fd,
    "kid": _kid,
    "prdc": _prdc,
    "control": _control,
    "memorization": _memorization,
    "latent": _latent,
    "groups": _groups,
    "torcheval": _torcheval,
}
DEFAULT = ("fd", "kid", "prdc", "control", "memorization", "latent")
