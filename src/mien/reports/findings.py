"""What a run directory says, for the report and the comparison: verdict, best scores, time, recipe. Numbers and words, no markup."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from mien.config import flatten
from mien.errors import UserError
from mien.reports.charts import EVENTS, Mark
from mien.reports.page import duration, images, number
from mien.runs import Run, best_distance, is_frechet, score_key

TITLES = {
    "fd": "Fréchet distance",
    "fd-infinite": "Fréchet distance at infinite N",
    "fd-torcheval": "Fréchet distance as torcheval's",
    "fid": "FID",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "control": "Attribute accuracy",
    "leakage": "Attribute leakage",
    "identity": "Identity moved",
    "memorization": "Memorisation",
    "diversity": "Diversity",
    "twins": "Twins among samples",
    "path-length": "Path length",
    "groups": "Groups drawn too rarely or too often",
}
LOWER_IS_BETTER = ("fd-", "fid", "kid", "path-length", "leakage", "identity")
HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage", "control")

STATES = {
    "finished": "Finished",
    "running": "Still running",
    "stopped": "Stopped",
    "failed": "Failed",
    "interrupted": "Interrupted (its process is gone)",
}


@dataclass(frozen=True)
class Score:
    """One line of metrics.jsonl. low, high, floor: None where the line gives none."""

    nimg: int
    metric: str
    value: float
    low: float | None
    high: float | None
    floor: float | None
    protocol: Mapping[str, Any]
    details: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Scores with the same key may be compared."""
        return score_key(self.metric, self.protocol)


def finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def scores(run: Run) -> list[Score]:
    """Every readable line of metrics.jsonl, oldest first; a line without a number or a metric's name is passed over."""
    return [found for line in run.metrics() if (found := _score(line))]


def _score(line: Mapping[str, Any]) -> Score | None:
    value, nimg = finite(line.get("value")), finite(line.get("nimg"))
    if value is None or nimg is None or not line.get("metric"):
        return None
    low, high, floor = (finite(line.get(name)) for name in ("low", "high", "floor"))
    return Score(int(nimg), str(line["metric"]), value, low, high, floor, as_object(line.get("protocol")), as_object(line.get("details")))


def title(metric: str) -> str:
    """'FID'; 'Recall, face features' of recall-face; a metric that is not known by its own name."""
    name = max((known for known in TITLES if f"{metric}-".startswith(f"{known}-")), key=len, default=metric)
    features = metric[len(name) + 1 :]
    return TITLES.get(name, name) + (f", {features} features" if features else "")


def direction(metric: str) -> int:
    """-1: lower is better, 1: higher is better, 0: not a matter of better."""
    return -1 if metric.startswith(LOWER_IS_BETTER) else 1 if metric.startswith(HIGHER_IS_BETTER) else 0


def best(some: Sequence[Score]) -> Score | None:
    """The best of scores that share a key (the newest where neither way is better)."""
    if not some:
        return None
    sign = direction(some[0].metric)
    return max(some, key=lambda score: (sign * score.value, score.nimg)) if sign else some[-1]


def headline(run: Run) -> Score | None:
    """The score a run is named by: its `best_score`, without snapshots the best distance, without distances the newest metric's best."""
    line = run.best_score() or best_distance(run.metrics())
    if line:
        return _score(line)
    all_scores = scores(run)
    some = [score for score in all_scores if is_frechet(score.metric)] or all_scores
    return best([score for score in some if score.key == some[-1].key])


def standing(group: Sequence[Score], at_nimg: int | None) -> Score | None:
    """The score of the snapshot at `at_nimg` if there is one, else the best: a run is judged as one snapshot, not metric by metric."""
    return next((score for score in reversed(group) if score.nimg == at_nimg), None) or best(group)


def score_in_words(score: Score) -> str:
    """'fd-face 21.4 (20.8 to 22.1; real against real 3.1)'."""
    span = f"{number(score.low)} to {number(score.high)}" if score.low is not None and score.high is not None else ""
    floor = f"real against real {number(score.floor)}" if score.floor is not None else ""
    inside = "; ".join(filter(None, (span, floor)))
    return f"{score.metric} {number(score.value)}" + (f" ({inside})" if inside else "")


Columns = dict[str, tuple[np.ndarray, np.ndarray]]


def columns(scalars: Sequence[Mapping[str, Any]]) -> Columns:
    """{scalar: (thousands of images, values)} over the ticks that have it; null and text become NaN."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in scalars:
        at = finite(row.get("nimg"))
        if at is None:
            continue
        for name, value in row.items():
            x, y = found.setdefault(name, ([], []))
            x.append(at / 1000)
            y.append(math.nan if (given := finite(value)) is None else given)
    return {name: (np.array(x), np.array(y)) for name, (x, y) in found.items()}


def time_s(run: Run) -> float | None:
    """Seconds the run was at work: the pauses between a stop or crash and its resume are left out. None when nothing was logged."""
    events = [event for event in run.events() if finite(event.get("time_s")) is not None]
    starts = sorted(event["time_s"] for event in events if event.get("kind") in ("start", "resume"))
    said = sorted(value for row in (*run.scalars(), *events) if (value := finite(row.get("time_s"))) is not None)
    if not said:
        return None
    total = 0.0
    edges = [*(starts or said[:1]), math.inf]
    for begin, end in zip(edges, edges[1:]):
        inside = [moment for moment in said if begin <= moment < end]
        total += inside[-1] - begin if inside else 0.0
    return total


def status(run: Run) -> Mapping[str, Any]:
    """status.json; empty when it is damaged, for the rest of the run can still be told."""
    try:
        return run.status
    except UserError:
        return {}


def nimg(run: Run) -> int:
    """Real images shown to D: what status.json says, else the last line that says it."""
    told = finite(status(run).get("nimg"))
    return int(told if told is not None else max((finite(row.get("nimg")) or 0 for row in (*run.scalars(), *run.events())), default=0))


def marks(run: Run) -> list[Mark]:
    """The events that belong on a chart."""
    out = [
        Mark(event["nimg"] / 1000, str(event.get("kind")), str(event.get("message", "")))
        for event in run.events()
        if event.get("kind") in EVENTS and event["kind"] != "score" and finite(event.get("nimg")) is not None
    ]
    first: dict[int, str] = {}
    for score in scores(run):
        first[score.nimg] = (first[score.nimg] + ", " if score.nimg in first else "") + f"{score.metric} {number(score.value)}"
    return out + [Mark(at / 1000, "score", text) for at, text in first.items()]


def verdict(run: Run) -> str:
    """The run in one sentence: state, images, time, best score with interval and floor, diagnoses."""
    state, seen, spent = status(run), nimg(run), time_s(run)
    total = finite(state.get("total_nimg"))
    began = seen > 0 or bool(run.scalars())
    said = STATES.get(str(state.get("state")), "Of unknown state" if began else "Not begun")
    of = f" of {images(total)}" if total and total > seen else ""
    reached = f"{said} after {images(seen)}{of} real images" + (f" in {duration(spent)}" if spent else "")
    parts = [reached if began else f"{said}: nothing was logged yet"]
    score = headline(run)
    if score:
        parts.append(f"best {score_in_words(score)} at {images(score.nimg)} images")
    elif began:
        parts.append("not scored yet")
    return "; ".join([*parts, *_alarms(scores(run)), *_troubles(run.events())]) + "."


def in_words(all_scores: Sequence[Score]) -> dict[str, str]:
    """{metric: what the newest such score says of itself in words}: copying, collapse, and what makes a number doubtful."""
    said: dict[str, str] = {}
    for score in all_scores:
        words = [score.details.get("verdict"), *(score.details.get("warnings") or [])]
        said.pop(score.metric, None)
        if any(words):
            said[score.metric] = "; ".join(str(word) for word in words if word)
    return said


def _alarms(all_scores: Sequence[Score]) -> list[str]:
    """What belongs in the first sentence: samples that copy the training set or hardly vary."""
    return [words.split(";")[0] for words in in_words(all_scores).values() if words.startswith(("copying", "collapsed", "narrow"))]


def _troubles(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Diagnoses by name and how often, rollbacks, the last error."""
    named = Counter(_short(event) for event in events if event.get("kind") == "diagnosis" and not event.get("over"))
    out = []
    if named:
        shown = [f"{name}" + (f" ({count} times)" if count > 1 else "") for name, count in named.most_common(3)]
        out.append("diagnosed: " + ", ".join(shown) + (f" and {len(named) - 3} more" if len(named) > 3 else ""))
    back = sum(event.get("kind") == "rollback" for event in events)
    if back:
        out.append(f"rolled back {'once' if back == 1 else 'twice' if back == 2 else f'{back} times'}")
    errors = [event for event in events if event.get("kind") == "error"]
    if errors:
        out.append(f"error: {_short(errors[-1])}")
    return out


def _short(event: Mapping[str, Any]) -> str:
    """A diagnosis' title where the event has one, else the first clause of its message."""
    text = str(event.get("diagnosis") or event.get("message") or "unnamed").strip()
    for stop in (". ", ": ", "; "):
        text = text.split(stop)[0]
    return (text if len(text) <= 90 else text[:88].rsplit(" ", 1)[0] + " …").rstrip(".")


def recipe(run: Run) -> dict[str, Any]:
    """Its settings under the keys that provenance names: {'train.seed': 0}."""
    return flatten(as_object(run.config.get("config")))


def setting(value: Any) -> str:
    """A setting as a person would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {setting(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return "[" + ", ".join(setting(item) for item in value) + "]"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def command(run: Run) -> str | None:
    """The command that made the run, ready for a shell: 'mien ...' wherever mien was installed."""
    given = run.config.get("command")
    if not isinstance(given, list):
        return str(given) if given else None
    words = [str(word) for word in given]
    if words and PurePath(words[0]).stem in ("mien", "__main__"):
        words[0] = "mien"
    return shlex.join(words) or None


def as_object(value: Any) -> Mapping[str, Any]:
    """`value` if it is an object, else an empty one: files of another version must not break a page."""
    return value if isinstance(value, dict) else {}
