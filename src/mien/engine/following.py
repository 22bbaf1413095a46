"""What the processes other than the first do in a run: the same steps on their own rows of each batch, without a word or a file."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import torch

from mien.config import Config
from mien.data.store import FaceStore
from mien.engine import build, growth
from mien.engine.distributed import BACK, GO, LEAVE, STEER, STOP, Ranks
from mien.engine.schedules import due, knobs_at
from mien.engine.signals import peak_memory_mb
from mien.engine.state import TrainState
from mien.engine.steering import Steering
from mien.engine.step import train_step
from mien.engine.task import Task
from mien.errors import UserError


class Follower:
    """`train()` returns when rank 0 says that the run, or its part of it, is over. Raises RankLost when rank 0 is gone."""

    def __init__(self, state: TrainState, task: Task):
        self.state, self.task, self.should_stop = state, task, False

    def train(self) -> None:
        state, task, ranks, train = self.state, self.task, self.task.ranks, self.task.config.train
        while True:
            word, _ = ranks.agree(STOP if self.should_stop else GO)
            if word == LEAVE:
                return
            if word == BACK:
                share_state(state, task)
            elif word == STOP:  # rank 0 may yet find that it must go back
                self.should_stop = True
            else:
                if word == STEER:
                    state.steering = Steering.from_plain(ranks.tell())
                    build.keep_at_hand(task, state.steering.by_hand)
                before = state.nimg
                train_step(state, task, state.steering.apply(knobs_at(task.config, before), before))
                growth.follow(state, task)
                if due(train.checkpoint_kimg, before, state.nimg):
                    ranks.alike(checksum(state))
                if due(train.tick_kimg, before, state.nimg) or state.nimg >= train.images:
                    ranks.agree(GO, peak_memory_mb(task.device))


def introduce(task: Task, store: FaceStore, state: TrainState) -> None:
    """Rank 0, before the first step: what the others build, and the state that they begin with."""
    if task.ranks.size == 1:
        return
    task.ranks.tell({"config": task.config.model_dump(mode="json"), "digest": store.digest})
    share_state(state, task)


def follow(store: FaceStore, *, smaller: Sequence[FaceStore], device: torch.device, ranks: Ranks) -> Follower:
    """The others' side of `introduce`. Raises UserError where this machine's data are not rank 0's."""
    told = ranks.tell()
    if told["digest"] != store.digest:
        raise UserError(f"{store.path} on {socket.gethostname()} is not the data that the first process trains on; copy that here.")
    task = build.build_task(Config.model_validate(told["config"]), store, device, smaller=smaller, ranks=ranks)
    state = build.build_state(task.config, size=task.plan.first.size, attributes=len(task.data.attribute_names), device=device)
    share_state(state, task)
    return Follower(state, task)


def share_state(state: TrainState, task: Task) -> None:
    """Rank 0's state, structure of the networks and all, becomes everybody's."""
    ranks = task.ranks
    if ranks.size == 1:
        return
    mine = state.tensors() if ranks.leads else {}
    kinds = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in mine.items()}
    kinds, plain = ranks.tell((kinds, {"nimg": state.nimg, **state.plain()}))
    tensors = {}
    for name, (shape, dtype) in kinds.items():
        sent = mine[name].detach().cpu().contiguous() if ranks.leads else torch.empty(shape, dtype=dtype)
        tensors[name] = ranks.tell_tensor(sent)
    if not ranks.leads:
        build.restore(state, task, tensors, plain)


def checksum(state: TrainState) -> float:
    """A number that differs, but by great chance, when a weight of G or D does."""
    with torch.no_grad():
        return float(torch.stack([p.double().sum() for net in (state.G, state.D) for p in net.parameters()]).sum())
