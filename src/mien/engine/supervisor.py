"""Between two ticks a run trains; at a tick the supervisor looks: probe, diagnosis, adaptive augmentation, controller, requests by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mien.engine import build
from mien.engine.balance import adapted_augment_p
from mien.engine.diagnosis import Alarm, History, observe
from mien.engine.schedules import Knobs, knobs_at
from mien.engine.state import TrainState
from mien.engine.steering import RATES, check_change
from mien.engine.step import Task
from mien.errors import UserError
from mien.models.style import StyleGenerator
from mien.runs import Run

Say = Callable[[str], None]
UNHEALTHY = ("exploding", "vanishing", "mode collapse")  # what a checkpoint to go back to must be free of, suspicions included
BEYOND_KNOBS = ("mode collapse", "vanishing (D)")  # neither G nor D comes back from it


class Collapsed(Exception):
    """The run is so sick that it should go back to its last healthy checkpoint."""


class Supervisor:
    def __init__(self, run: Run, state: TrainState, task: Task, say: Say):
        self.run, self.state, self.task, self.say = run, state, task, say
        self.patience_nimg = round(1000 * task.config.balance.patience_kimg)
        self._requests: list[tuple[Path, dict[str, Any]]] = []
        self._listed: list[str] = []
        self._doubted_nimg: int | None = None

    # --- knobs --------------------------------------------------------------------------------------------------------

    def knobs(self) -> Knobs:
        """The knobs of the next step: the recipe's, as turned by hand, controller and rollback. Takes up requests that wait."""
        for path, request in self._waiting():
            self._take_up(path, request)
        return self.turned()

    def turned(self) -> Knobs:
        """As `knobs`, without the requests that wait."""
        state = self.state
        return state.steering.apply(knobs_at(self.task.config, state.nimg), state.nimg)

    def _waiting(self) -> list[tuple[Path, dict[str, Any]]]:
        """Requests not yet in the state. One that was met before a kill or a rollback is met again where it was: at its `at_nimg`."""
        names = self.run.control_names()
        if names != self._listed:
            self._requests = self.run.control_requests()
            for name in sorted(set(names) - {path.name for path, _ in self._requests} - set(self._listed)):
                self._tell("error", f"Left out a change by hand: control/{name} is damaged.")
            self._listed = names
        met = self.state.steering.requests
        return [(path, ask) for path, ask in self._requests if path.name not in met and ask.get("at_nimg", 0) <= self.state.nimg]

    def _take_up(self, path: Path, request: dict[str, Any]) -> None:
        state, steering = self.state, self.state.steering
        steering.requests.append(path.name)
        newer: set[str] = set()
        if "at_nimg" in request:  # met again: perhaps after one that was asked for later, and under another balance.mode
            newer = {name for each, ask in self._requests if path.name < each.name in steering.requests for name in ask["changes"]}
            turned = request.get("turned")  # an older version noted none
            build.keep_at_hand(self.task, turned if isinstance(turned, list) else [])
        else:  # before it does anything: a kill must not let it be met again elsewhere
            turned = [name for name in request["changes"] if self._why_not(name) is None]
            request |= {"at_nimg": state.nimg, "calm": steering.calm, "turned": turned}
            self.run.note_control(path, request)
        now = steering.apply(knobs_at(self.task.config, state.nimg), state.nimg)
        over_nimg, calm = request["over_nimg"], request.get("calm")
        asked_calm = calm if isinstance(calm, float) and 0 < calm <= 1 else 1.0  # an older version noted none
        for name, word in request["changes"].items():
            if name in newer:
                self._tell("control", f"Left {name} as it is: a later change by hand has turned it.")
                continue
            try:
                value = check_change(name, str(word).lower())
                if why := self._why_not(name):
                    raise UserError(why)
            except UserError as error:
                self._tell("error", f"Left out a change by hand: {error}")
                continue
            if value == "recipe":
                steering.release(name)
                self._tell("control", f"Gave {name} back to the recipe.", knob=name, old=getattr(now, name))
                continue
            steering.set_by_hand(name, value, now=now, nimg=state.nimg, over_nimg=over_nimg,  # type: ignore[arg-type]
                                 asked_calm=asked_calm)  # fmt: skip
            glide = f" over {over_nimg:,} images" if steering.by_hand[name].over_nimg else ""
            old, least = getattr(now, name), steering.calm_clip_norm
            if name == "clip_norm" and least is not None and (value is None or value > least):  # type: ignore[operator]
                glide += f"; gradients stay clipped at {least:.3g}, as since the rollback"
            self._tell("control", f"By hand: {name} from {old} to {value}{glide}.", knob=name, old=old, new=value, over_nimg=over_nimg)

    def _why_not(self, name: str) -> str | None:
        """Why a knob cannot be turned, which this run's recipe has nothing to turn with; None where it can."""
        penalties = [f"{penalty}_gamma" for penalty, _, _ in self.task.penalties]
        if self.task.config.regularizer.path_length.gamma > 0 and isinstance(self.state.G, StyleGenerator):
            penalties.append("path_gamma")
        if name.endswith("_gamma") and name not in (*penalties, "lecam_gamma"):
            return f"{name} cannot be turned: the run began without that penalty ({', '.join(penalties) or 'it has none'})."
        if name == "augment_p" and not self.task.augment.names:
            return "augment_p cannot be turned: the run began without augmentations."
        config = self.task.config
        if name.startswith("consistency_") and config.model.batch_norm_in_d and not config.train.separate_batches:
            return f"{name} cannot be turned: with batch norm in D it needs train.separate_batches=true from the run's beginning."
        return None

    # --- a tick -------------------------------------------------------------------------------------------------------

    def look(self, knobs: Knobs) -> dict[str, float]:
        """What the probe sees, when it is due."""
        every_nimg = round(1000 * self.task.config.balance.probe_kimg)
        if self.task.probe is None or every_nimg == 0 or self.state.nimg - self.state.probe_nimg < every_nimg:
            return {}
        return self.task.probe.look(self.state, knobs.augment_p)

    def consider(self, values: dict[str, float], knobs: Knobs, images: int) -> None:
        """Diagnose, adapt, decide. `images` since the last tick. Raises Collapsed when the run should go back."""
        state, balance = self.state, self.task.config.balance
        self._adapt(values, images)
        if balance.mode == "off":
            return
        before = {alarm.title for alarm in state.history.named}
        state.history = observe(state.history, state.nimg, values, patience_nimg=self.patience_nimg)
        for alarm in state.history.named:
            if alarm.title not in before:
                facts = [{"signal": signal, "value": value, "threshold": limit} for signal, value, limit in alarm.evidence]
                self._tell("diagnosis", alarm.sentence(), diagnosis=alarm.title, evidence=facts, since_nimg=alarm.since_nimg)
        for title in sorted(before - {alarm.title for alarm in state.history.named}):
            self._tell("diagnosis", f"{title}: over.", diagnosis=title, over=True)
        if balance.mode == "on":
            for alarm in state.history.named:
                if self._beyond_knobs(alarm, knobs):
                    raise Collapsed(alarm.title)
        self._decide(knobs, advice=balance.mode == "watch")

    def _beyond_knobs(self, alarm: Alarm, knobs: Knobs) -> bool:
        """Whether the run should go back. Not from a collapse that never was anything else: there is no health to go back to, so knobs are
        tried as long as there is one to turn."""
        state = self.state
        if alarm.name == "mode collapse" and not state.history.varied:
            can_augment = bool(self.task.augment.names)
            return state.controller.remedy_for(alarm, state.history, state.steering, knobs, can_augment=can_augment) is None
        return alarm.title.startswith(BEYOND_KNOBS)

    def _adapt(self, values: dict[str, float], images: int) -> None:
        augment = self.task.config.augment
        if augment.mode != "adaptive" or "sign_real" not in values or "augment_p" in self.state.steering.by_hand:
            return
        steering = self.state.steering
        p = augment.p if steering.augment_p is None else steering.augment_p
        steering.augment_p = adapted_augment_p(p, values["sign_real"], images=images, target=augment.target,
                                               speed_kimg=augment.speed_kimg, most=augment.most)  # fmt: skip

    def _decide(self, knobs: Knobs, *, advice: bool) -> None:
        state, can_augment = self.state, bool(self.task.augment.names)
        if advice:
            decision = state.controller.advise(state.history, state.steering, knobs, can_augment=can_augment)
        else:
            recipe = knobs_at(self.task.config, state.nimg)
            decision = state.controller.decide(state.history, state.steering, knobs, recipe=recipe, nimg=state.nimg,
                                               patience_nimg=self.patience_nimg, can_augment=can_augment)  # fmt: skip
        if decision is not None:
            facts = {key: getattr(decision, key) for key in ("knob", "old", "new", "diagnosis", "signal", "value", "threshold")}
            self._tell("advice" if advice else "decision", decision.sentence(advice=advice), **facts)

    def healthy(self) -> bool:
        """Whether a checkpoint made now is one to go back to."""
        return self._doubted_nimg != self.state.nimg and not any(alarm.name in UNHEALTHY for alarm in self.state.history.alarms)

    def begin_anew(self) -> None:
        """Networks that have just changed are given the grace of young ones; what was suspected of them still holds for this step."""
        self._doubted_nimg = None if self.healthy() else self.state.nimg
        self.state.history = History(begun_nimg=self.state.nimg)

    def calm_down(self, *, rollbacks: int, calm: float, salt: int, clip_norm: float) -> str:
        """After a checkpoint was loaded: quieter knobs, another noise stream, and a diagnosis that begins anew."""
        state = self.state
        state.rollbacks, state.noise_salt = rollbacks, salt
        state.controller.take_back(state.steering, recipe=knobs_at(self.task.config, state.nimg))  # it may be what failed
        state.steering.calm, state.steering.calm_clip_norm = calm, clip_norm
        state.history = type(state.history)(begun_nimg=state.nimg, usual=state.history.usual)
        knobs = self.knobs()
        rates = ", ".join(f"{name} {getattr(knobs, name):.3g}" for name in RATES)
        return f"{rates}, gradients clipped at {clip_norm:.3g}, noise stream {salt}"

    def _tell(self, kind: str, message: str, **facts: Any) -> None:
        self.run.event(self.state.nimg, kind, message, **facts)
        self.say(message)

