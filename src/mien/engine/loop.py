"""The training loop: steps, and between them what falls due. All periods are counted in images."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mien.engine import build, checkpoint, growth, posthoc
from mien.engine.distributed import BACK, GO, LEAVE, STEER, STOP, RankLost
from mien.engine.following import checksum, share_state
from mien.engine.recording import SampleGrid, Scalars
from mien.engine.schedules import Knobs, due
from mien.engine.signals import peak_memory_mb
from mien.engine.state import TrainState
from mien.engine.step import train_step
from mien.engine.supervisor import Collapsed, Supervisor
from mien.engine.task import Task
from mien.errors import UserError
from mien.runs import Run, kimg_name, write_json

Say = Callable[[str], None]
OnSnapshot = Callable[[Path, int], None]
OnTick = Callable[[int, dict[str, float]], None]


class TrainingFailed(UserError):
    """Training cannot go on: the numbers are no longer finite."""


class NotFinite(Exception):
    """A NaN or an infinity where there must be a number."""


class ProcessLost(UserError):
    """One of several processes ended before the run did."""


MUST_BE_FINITE = ("loss_d", "loss_g", "grad_norm_d", "grad_norm_g")


class Loop:
    """Work on a run; of several processes, the first one's. `train()` returns True when the run is finished, False when it was asked to
    stop."""

    def __init__(
        self, run: Run, state: TrainState, task: Task, *, meta: dict[str, Any], on_tick: OnTick, on_snapshot: OnSnapshot, say: Say
    ):
        self.run, self.state, self.task, self.meta, self.say = run, state, task, meta, say
        self.supervisor = Supervisor(run, state, task, say)
        self.on_tick, self.on_snapshot = on_tick, on_snapshot
        self.should_stop = False
        self.ranks = task.ranks
        self._told: dict[str, Any] | None = None  # the steering that the other processes know of
        config = task.config
        table = [(tuple(row), share) for row, share in meta["attribute_table"]]
        self.grid = SampleGrid(run, z_dim=state.G.z_dim, names=meta["attributes"], table=table, columns=config.sample.columns)
        self._checkpoint_nimg = state.nimg if state.nimg in dict(run.checkpoints()) else -1  # what is on disk already is not written again
        self._snapshot_nimg = state.nimg if state.nimg in dict(run.snapshots()) else -1
        self._tick_started_s, self._tick_started_nimg = time.monotonic(), state.nimg

    def train(self) -> bool:
        state, config = self.state, self.task.config
        total = config.train.images
        self._stop_request.unlink(missing_ok=True)  # one left from before is not meant for this process
        self.write_status("running")  # before the first step: 'mien runs' and 'mien stop' see it
        self.scalars = Scalars(self.run, after_nimg=state.nimg)
        try:
            if state.nimg == 0 and config.sample.every_kimg > 0:
                self.grid.draw(state.ema, 0, self.task.device)
            if config.balance.mode == "on" and not self.run.checkpoints():
                self.save_checkpoint()  # something to go back to, from the first image on
            while True:
                try:
                    if state.nimg >= total or self._consult():
                        self._last_things(finished=state.nimg >= total)
                        self.ranks.agree(LEAVE)
                        return state.nimg >= total
                    self._advance(total)
                except (NotFinite, Collapsed) as sickness:
                    self._roll_back(sickness)
        except RankLost:
            lost = self._orphaned()
            self._note_end(lost)
            raise lost from None
        except BaseException as error:
            self._note_end(error)
            raise
        finally:
            with contextlib.suppress(OSError):  # a full disk has been told of by now
                self.scalars.close()
            self.run.unlock()

    def _advance(self, total: int) -> None:
        """One step, and what falls due after it."""
        state, config = self.state, self.task.config
        # Several processes agreed on their knobs in `_consult`: a request that came since waits for the next step.
        knobs = self.supervisor.knobs() if self.ranks.size == 1 else self.supervisor.turned()
        before, after = state.nimg, state.nimg + config.train.batch * knobs.d_steps
        tick = due(config.train.tick_kimg, before, after)
        last = after >= total
        state.meter.add(train_step(state, self.task, knobs, measure=tick))  # a last tick off the beat leaves no trace in the meter
        self._grow()
        if self.ranks.size > 1 and due(config.train.checkpoint_kimg, before, state.nimg):
            self.ranks.alike(checksum(state))  # before anything that may end this turn early: the others do the same
        if tick or last:
            self._tick(knobs, forget=tick)
        self._fall_due(before, state.nimg)

    def _grow(self) -> None:
        """To the size that this image count asks for: before anything of the step is kept, so that what is on disk has that size."""
        told = growth.follow(self.state, self.task)
        if told is not None:
            self.supervisor.begin_anew()
            note_growth(self.run, self.state, self.task, told)
            self.say(told)

    def _fall_due(self, before: int, after: int) -> None:
        train, sample = self.task.config.train, self.task.config.sample
        if due(sample.every_kimg, before, after):
            self.grid.draw(self.state.ema, after, self.task.device)
        if due(train.snapshot_kimg, before, after) or due(self.task.config.eval.every_kimg, before, after):
            self.save_snapshot()
        if due(train.checkpoint_kimg, before, after):
            self.save_checkpoint()

    def _tick(self, knobs: Knobs, *, forget: bool) -> None:
        """Read, write down and weigh the signals. A last tick off the beat only reads: a longer run must not differ for having paused."""
        state, now = self.state, time.monotonic()
        values = state.meter.read(forget=forget)
        values |= {"lr_d": knobs.lr_d, "lr_g": knobs.lr_g, "d_steps": knobs.d_steps, "g_steps": knobs.g_steps}
        if self.task.augment.names:
            values["augment_p"] = knobs.augment_p
        values |= {f"{name}_gamma": getattr(knobs, f"{name}_gamma") for name, _, _ in self.task.penalties}
        used = ("lecam_gamma", "consistency_real", "consistency_fake", "path_gamma", "input_noise")
        values |= {name: getattr(knobs, name) for name in used if getattr(knobs, name) > 0}
        values["ema_half_life_kimg"] = knobs.ema_half_life_kimg
        values["images_per_s"] = (state.nimg - self._tick_started_nimg) / max(now - self._tick_started_s, 1e-9)
        values["memory_mb"] = self.ranks.agree(GO, peak_memory_mb(self.task.device))[1]
        values["progress"] = min(1.0, state.nimg / self.task.config.train.images)
        passed_nimg, self._tick_started_s, self._tick_started_nimg = state.nimg - state.tick_nimg, now, state.nimg
        if forget:
            state.tick_nimg = state.nimg
        wrong = [name for name in MUST_BE_FINITE if not math.isfinite(values.get(name, 0.0))]
        if not wrong and forget:
            values |= self.supervisor.look(knobs)
        self.scalars.write(state.nimg, values)
        self.write_status("running", images_per_s=values["images_per_s"])
        self.on_tick(state.nimg, values)
        if wrong:
            raise NotFinite(f"{', '.join(wrong)} became NaN or infinite")
        if forget:
            self.supervisor.consider(values, knobs, images=passed_nimg)

    def _roll_back(self, sickness: Exception) -> None:
        """Back to the last healthy checkpoint, calmer. Raises TrainingFailed where that is unwanted, impossible or was tried enough."""
        state, balance = self.state, self.task.config.balance
        path = self._refuge()
        if balance.mode != "on" or path is None or state.rollbacks >= balance.max_rollbacks:
            tried = f" after {state.rollbacks} rollback{'s' if state.rollbacks > 1 else ''}" if state.rollbacks else ""
            raise TrainingFailed(self._farewell(f"{sickness}{tried}")) from None
        failed_nimg, usual = state.nimg, state.history.usual
        rollbacks, calm, salt = state.rollbacks + 1, state.steering.calm / 2, state.noise_salt + 1
        build.restore(state, self.task, *checkpoint.load_checkpoint(path))
        note_networks(self.run, state, self.task)
        clip = 4 * max(usual.get("grad_norm_d", 2.5), usual.get("grad_norm_g", 2.5)) * 0.5**rollbacks
        quieter = self.supervisor.calm_down(rollbacks=rollbacks, calm=calm, salt=salt, clip_norm=clip)
        self.run.rewind(state.nimg, scores=True)
        self.scalars.close()
        self.scalars = Scalars(self.run, after_nimg=state.nimg)
        self._checkpoint_nimg = self._snapshot_nimg = -1
        self._tick_started_s, self._tick_started_nimg = time.monotonic(), state.nimg
        checkpoint.discard_after(self.run.checkpoints(), state.nimg)  # first: a kill must not leave the sick ones as the newest
        self.save_checkpoint()  # the calmer state takes the place of the one it came from: a kill must not undo this
        message = f"Rolled back from {failed_nimg:,} to {state.nimg:,} images ({rollbacks} of {balance.max_rollbacks}): {sickness}. " \
                  f"Going on with {quieter}."  # fmt: skip
        self.ranks.agree(BACK)
        share_state(state, self.task)
        self.run.event(state.nimg, "rollback", message, failed_nimg=failed_nimg, reason=str(sickness), rollbacks=rollbacks)
        self.say(message)

    def _refuge(self) -> Path | None:
        """The newest healthy checkpoint; if it is the one gone back to last time, an older one: it may be sicker than it looks."""
        there = self.run.checkpoints()
        newest = checkpoint.newest_healthy(there)
        if newest is None or not self.state.rollbacks or int(newest.name) > self.state.history.begun_nimg:
            return newest
        return checkpoint.newest_healthy([(nimg, path) for nimg, path in there if path != newest]) or newest

    def _farewell(self, what: str) -> str:
        newest = checkpoint.newest_healthy(self.run.checkpoints())
        back = f"the last healthy checkpoint is {newest.name} ({int(newest.name):,} images)" if newest else "there is no healthy checkpoint"
        on = self.task.config.balance.mode == "on"
        more = "Go on with --set balance.mode=on, which rolls back by itself, or begin" if not on and newest else "Begin"
        return f"{what} at {self.state.nimg:,} images; {back}. {more} another run (--run) with lower optimizer.lr_d and lr_g, " \
               "or with optimizer.clip_norm."  # fmt: skip

    def _note_end(self, error: BaseException) -> None:
        """Write down why the run ended, as far as that can still be done: the disk may be what failed."""
        stopped = isinstance(error, KeyboardInterrupt)
        message = "Interrupted." if stopped else " ".join(str(error).split())[:500] or type(error).__name__
        with contextlib.suppress(OSError):
            self.run.event(self.state.nimg, "stop" if stopped else "error", message)
            self.write_status("interrupted" if stopped else "failed")

    @property
    def _stop_request(self) -> Path:
        return self.run.path / "control" / "stop"

    def _consult(self) -> bool:
        """Whether to stop here. Several processes agree on it before each step, and hear from this one how knobs were turned."""
        asked = self._asked_to_stop()
        if self.ranks.size == 1:
            return asked
        if not asked:
            self.supervisor.knobs()  # takes up requests
        steering = self.state.steering.plain()
        word, _ = self.ranks.agree(STOP if asked else STEER if steering != self._told else GO)
        if word == STEER:
            self._told = self.ranks.tell(steering)
        self.should_stop = word == STOP
        return self.should_stop

    def _orphaned(self) -> ProcessLost:
        why = self.ranks.confession() or "killed, or its machine or network failed"
        there = self.run.checkpoints()
        back = f"the newest checkpoint is at {there[-1][0]:,} images" if there else "there is no checkpoint yet"
        return ProcessLost(f"One of the {self.ranks.size} processes is gone ({why}) at {self.state.nimg:,} images; {back}. "
                           "The same command goes on from there, also with another number of processes.")  # fmt: skip

    def _asked_to_stop(self) -> bool:
        if self._stop_request.exists():
            self._stop_request.unlink(missing_ok=True)
            self.should_stop = True
        return self.should_stop

    def _last_things(self, finished: bool) -> None:
        """A stop loses nothing: the state on disk is the state in memory."""
        if self._checkpoint_nimg != self.state.nimg:
            self.save_checkpoint()
        if finished and self._snapshot_nimg != self.state.nimg:
            self.save_snapshot()
            self.grid.draw(self.state.ema, self.state.nimg, self.task.device)
        state, word = ("finished", "Finished") if finished else ("stopped", "Stopped")
        self.run.event(self.state.nimg, "finish" if finished else "stop", f"{word} at {self.state.nimg:,} images.")
        self.write_status(state)

    def save_checkpoint(self) -> None:
        """Raises NotFinite rather than save a state with a NaN in it: a healthy checkpoint must stay the newest."""
        tensors, nimg = self.state.tensors(), self.state.nimg
        self._check_health(tensors)
        plain = {"healthy": self.supervisor.healthy(), **self.state.plain()}
        checkpoint.save_checkpoint(self.run.path / "checkpoints", nimg=nimg, tensors=tensors, plain=plain)
        # A later one, that was passed over as damaged, must not count among the newest that stay.
        until_now = [(at, path) for at, path in self.run.checkpoints() if at <= nimg]
        checkpoint.prune(until_now, keep=self.task.config.train.keep, keep_every_nimg=self._keep_every_nimg)
        self._checkpoint_nimg = nimg
        self.run.event(nimg, "checkpoint", f"Checkpoint at {nimg:,} images.")

    @property
    def _keep_every_nimg(self) -> int | None:
        every_kimg = self.task.config.train.keep_every_kimg
        return None if every_kimg is None else round(1000 * every_kimg)

    def _check_health(self, tensors: Mapping[str, torch.Tensor]) -> None:
        sick = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]
        if sick:
            raise NotFinite(f"{sick[0]} holds NaN or infinite numbers")

    def save_snapshot(self) -> None:
        """Raises NotFinite rather than save a generator with a NaN in it."""
        nimg = self.state.nimg
        self._check_health({f"ema.{name}": tensor for name, tensor in self.state.ema.state_dict().items()})
        path = checkpoint.save_snapshot(self.run.path / "snapshots" / kimg_name(nimg), self.state.ema,
                                        {**self.meta, **growth.describe(self.state.ema), "nimg": nimg})  # fmt: skip
        if self.state.posthoc:
            posthoc.save(self.run, self.state.posthoc, nimg)
        self.grid.draw_mosaic(self.state.ema, self.task.device)
        self._snapshot_nimg = nimg
        self.run.event(nimg, "snapshot", f"Snapshot {path.name}.")
        self.on_snapshot(path, nimg)
        keep = self.task.config.train.keep_snapshots
        checkpoint.prune_snapshots(self.run, keep=keep, keep_every_nimg=self._keep_every_nimg)  # now that this one may have its score

    def write_status(self, state: str, images_per_s: float | None = None) -> None:
        fields = {"images_per_s": images_per_s} if images_per_s is not None else {}
        self.run.write_status(state=state, nimg=self.state.nimg, total_nimg=self.task.config.train.images, **fields)


def note_networks(run: Run, state: TrainState, task: Task) -> None:
    """In architecture.json, what the networks are now; only a run that grows has more than the one it began with."""
    if task.plan.at_nimg:
        architecture = build.describe_architecture(state, size=state.G.size, attributes=state.G.attributes, device=task.device)
        write_json(run.path / "architecture.json", architecture)


def note_growth(run: Run, state: TrainState, task: Task, told: str) -> None:
    """What a change of size leaves in the run directory."""
    note_networks(run, state, task)
    run.event(state.nimg, "growth", told, size=state.G.size)


def resume(run: Run, state: TrainState, task: Task, say: Say, *, past_end_nimg: int | None) -> bool:
    """Load the newest whole checkpoint into `state`; False when there is none. Damaged ones are named and skipped.

    Raises UserError, with nothing changed, when that checkpoint is at or beyond `past_end_nimg`: the run asked for is shorter.
    """
    path, skipped = checkpoint.newest_valid(run.checkpoints())
    if path is not None and past_end_nimg is not None and int(path.name) >= past_end_nimg:
        raise UserError(f"{run.path} has seen {int(path.name):,} images already: ask for more with --images, or name another --run.")
    for message in skipped:
        run.event(state.nimg, "error", message)
        say(message)
    if path is None:
        run.rewind(0)
        return False
    build.restore(state, task, *checkpoint.load_checkpoint(path))
    note_networks(run, state, task)
    run.rewind(state.nimg)
    run.event(state.nimg, "resume", f"Resumed from checkpoint {path.name} at {state.nimg:,} images.")
    return True
