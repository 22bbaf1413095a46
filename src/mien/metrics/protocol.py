"""What a score is: an estimate with an interval, and the protocol without which it can be neither printed nor written."""

from __future__ import annotations

import dataclasses
import datetime
import math
import time
from dataclasses import dataclass, field
from typing import Any

import mien


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval, as the pure functions of metrics return it: not yet a score, for it has no protocol.

    low, high: None where no interval can be given. interval: how it was made, in a few words.
    """

    value: float
    low: float | None = None
    high: float | None = None
    interval: str = "none"
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"an estimate must be a finite number, not {self.value}")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a score was made: all that must agree before two scores may be compared, and what names the model scored.

    store: digest of the reference data; data: its folder's name. n_real, n_fake: images on either side. features and weights_sha256: the
    feature space. ema: whether the generator is the averaged one (None: unknown, or no generator). truncation: scale of the latents.
    conditions: the law of the attributes asked for. nimg: images the model was trained on. trained_on: `features`, when the model's own
    loss looked at them, so that a score in them is no measure of faces; None otherwise.
    precision: in which the features were extracted, fp32 or bf16.
    """

    store: str
    data: str
    crop: str
    size: int
    split: str
    n_real: int
    n_fake: int
    features: str
    weights_sha256: str | None
    model: str
    nimg: int | None
    ema: bool | None
    truncation: float
    seed: int
    conditions: str
    device: str
    trained_on: str | None = None
    precision: str = "fp32"
    mien: str = mien.__version__
    torch: str = ""
    date: str = ""

    @classmethod
    def now(cls, **fields: Any) -> Protocol:
        """A protocol with this moment's date (UTC) and this torch's version."""
        import torch

        return cls(torch=torch.__version__, date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), **fields)

    def record(self) -> dict[str, Any]:
        """Plain data. `precision` is absent when it is fp32, as in all scores from before there was another."""
        return {name: value for name, value in dataclasses.asdict(self).items() if (name, value) != ("precision", "fp32")}

    def line(self) -> str:
        """One line for people: reference, numbers, features, model, versions."""
        weights = f" {self.weights_sha256[:8]}" if self.weights_sha256 else ""
        ema = {True: "EMA weights", False: "raw weights", None: "as given"}[self.ema]
        truncation = "" if self.truncation == 1 else f", truncation {self.truncation:g}"
        features = self.features + weights + ("" if self.precision == "fp32" else f" in {self.precision}")
        told = " (the model was TRAINED on them)" if self.trained_on else ""
        return (f"{self.n_fake:,} of {self.model} ({ema}{truncation}, seed {self.seed}, attributes {self.conditions}) v {self.n_real:,} of "
                f"{self.data} {self.split} ({self.store[:8]}, {self.crop}, {self.size} px); features {features}{told}; "
                f"mien {self.mien}, torch {self.torch}, {self.device}, {self.date}")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A named estimate with its protocol and floor: what real images get in the model's place (None where that has no meaning)."""

    metric: str
    value: float
    low: float | None
    high: float | None
    interval: str
    floor: float | None
    protocol: Protocol
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.protocol, Protocol):
            raise TypeError(f"the score {self.metric} has no protocol: a number without one cannot be compared with anything")

    @classmethod
    def of(cls, metric: str, estimate: Estimate, *, protocol: Protocol, floor: float | None = None, **details: Any) -> Score:
        return cls(metric=metric, value=estimate.value, low=estimate.low, high=estimate.high, interval=estimate.interval, floor=floor,
                   protocol=protocol, details={**estimate.details, **details})

    def record(self) -> dict[str, Any]:
        """The fields of a line in metrics.jsonl beyond `nimg` and `time_s`; plain data only."""
        details = {"interval": self.interval, **self.details}
        return {"metric": self.metric, "value": self.value, "low": self.low, "high": self.high, "floor": self.floor,
                "protocol": self.protocol.record(), "details": details}

    def line(self) -> dict[str, Any]:
        """A whole line of metrics.jsonl."""
        return {"nimg": self.protocol.nimg or 0, "time_s": round(time.time(), 3), **self.record()}

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        floor = "" if self.floor is None else f", reals {self.floor:.4g}"
        return f"{self.metric} {self.value:.4g}{interval}{floor}: {self.protocol.line()}"
