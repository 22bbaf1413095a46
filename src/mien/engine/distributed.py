"""Several processes that train one run, started by torchrun or the like: how they meet, add up, agree and part. docs/scaling.md.

Rank 0 leads: it alone writes, decides and speaks. The others do the same steps on their rows of each batch and hear from it at the
beginning of each step. Numbers of a step go over nccl on GPUs and gloo on CPUs; words always over gloo, on the CPU.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mien.errors import UserError

GO, STEER, STOP, BACK, LEAVE = range(5)
"""Words before a step, the greatest counts: step on; new knobs follow; end after what is done; an earlier state follows; it is over."""
STEP_TIMEOUT_S = 600  # a process that is there but does not come; one that dies is noticed at once, since its connections close
LEADER_TIMEOUT_S = 4 * 3600  # the others wait this long while rank 0 writes and scores
AWAKE_S = 0.02  # on a CPU a process waits this long for a sum without falling asleep: to be woken up takes longer than most sums
BUCKET = 2**22  # numbers added up at once, 16 MiB


class RankLost(Exception):
    """Another process of the run is gone, or does not answer."""


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankLost(" ".join(str(error).split())[:300]) from error


class Ranks:
    """The processes of one run, and which of them this is. Alone, every method is free and gives back what it was given."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None):
        """`group`: over which words go. Numbers go over torch's default group."""
        self.rank, self.size, self._group = rank, size, group

    @property
    def leads(self) -> bool:
        return self.rank == 0

    # --- numbers, in every process the same ----------------------------------------------------------------------------

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each of `tensors` becomes its sum over the processes, in place; small ones travel together."""
        for bucket in _buckets(tensors) if self.size > 1 else ():
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            _all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
                tensor.copy_(part.view(tensor.shape))

    def pool(self, net: torch.nn.Module, signals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add up the gradients of `net`, in place, and take the mean of `signals` along."""
        if self.size == 1:
            return signals
        means = torch.stack([value.detach().float() for value in signals.values()]) / self.size
        self.add_up([means, *(p.grad for p in net.parameters() if p.grad is not None)])
        return dict(zip(signals, means.unbind()))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes, without a gradient."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        _all_reduce(total)
        return total / self.size

    def pooled(self, features: Tensor) -> Tensor:
        """Rows [N, F] of this process -> [1, F]: their mean over all, differentiable. Alone: the rows."""
        return features if self.size == 1 else Sum.apply(features.float().mean(0, keepdim=True)) / self.size

    def gathered(self, value: Tensor) -> Tensor:
        """[...] of this process -> [P, ...] of all, differentiable any number of times."""
        places = torch.zeros(self.size, *[1] * value.ndim, device=value.device, dtype=value.dtype)
        places[self.rank] = 1
        return Sum.apply(places * value)

    # --- words ---------------------------------------------------------------------------------------------------------

    def agree(self, word: int, memory_mb: float = 0.0) -> tuple[int, float]:
        """The greatest word and the greatest memory that any process says. Every process calls this before each step."""
        if self.size == 1:
            return word, memory_mb
        said = torch.tensor([word, memory_mb], dtype=torch.float64)
        with _reaching():
            dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._group)
        return int(said[0]), float(said[1])

    def alike(self, value: float) -> None:
        """Raises UserError when `value` is not the same number in every process."""
        if self.size > 1:
            said = torch.tensor([value, -value], dtype=torch.float64)
            with _reaching():
                dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._group)
            if float(said[0]) != -float(said[1]) and value == value:
                raise UserError("The weights of the processes have come apart, as on machines or versions of torch that differ. The newest "
                                "checkpoint is whole: go on from it on machines that are alike.")  # fmt: skip

    def tell(self, words: Any = None) -> Any:
        """What rank 0 says here, in every process: plain data and tensors on the CPU."""
        if self.size == 1:
            return words
        box = [words]
        with _reaching():
            dist.broadcast_object_list(box, src=0, group=self._group, device=torch.device("cpu"))
        return box[0]

    def tell_tensor(self, tensor: Tensor) -> Tensor:
        """A large tensor on the CPU: rank 0's takes the place of the others'."""
        with _reaching():
            dist.broadcast(tensor, src=0, group=self._group)
        return tensor

    def collect(self, words: Any) -> list[Any]:
        """What each process says here, by rank, in rank 0; [] in the others."""
        if self.size == 1:
            return [words]
        box = [None] * self.size if self.leads else None
        with _reaching():
            dist.gather_object(words, box, dst=0, group=self._group)
        return box or []

    # --- the end -------------------------------------------------------------------------------------------------------

    def confess(self, why: str) -> None:
        """Leave word of why this process fails, for rank 0 to tell."""
        with contextlib.suppress(Exception):
            dist.distributed_c10d._get_default_store().set("mien/end", f"process {self.rank} on {socket.gethostname()}: {why}")

    def confession(self) -> str | None:
        with contextlib.suppress(Exception):
            store = dist.distributed_c10d._get_default_store()
            time.sleep(0.5)  # connections close before the word of a failing process is in
            if store.check(["mien/end"]):
                return bytes(store.get("mien/end")).decode()
        return None


ALONE = Ranks()


class Sum(torch.autograd.Function):
    """The sum over the processes of tensors of one shape. What each does with it adds up in the loss, so its gradient is a sum as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        _all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Sum.apply(gradient)


_step_aside = getattr(os, "sched_yield", lambda: time.sleep(0))  # lets the thread that does the sum go first


def _all_reduce(tensor: Tensor) -> None:
    with _reaching():
        work = dist.all_reduce(tensor, async_op=True)
        if tensor.device.type == "cpu":
            end_s = time.perf_counter() + AWAKE_S
            while not work.is_completed() and time.perf_counter() < end_s:
                _step_aside()
        work.wait()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


# --- meeting ----------------------------------------------------------------------------------------------------------


def processes() -> int:
    """How many processes there are, by what torchrun says; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_device(name: str | None) -> str | None:
    """The device of this process where `name` was asked for: each process of a machine has its own GPU. `cuda:0` is one for them all.

    Raises UserError for a device that processes cannot work on together, or more of them than GPUs.
    """
    if processes() == 1:
        return name
    if name == "mps":
        raise UserError("Several processes cannot train on mps; start one, or give --device cpu.")
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if name != "cuda":
        return name
    if here > torch.cuda.device_count():
        raise UserError(f"{here} processes on {torch.cuda.device_count()} GPUs of {socket.gethostname()}: start as many processes as GPUs, "
                        "with --nproc-per-node.")  # fmt: skip
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextlib.contextmanager
def joined(device: torch.device, *, shared: bool = False) -> Iterator[Ranks]:
    """The processes, met; parted at the end. `shared`: they share one GPU, on which nccl refuses to work.

    Raises UserError when they do not find one another, and in the first when another is lost; the others then exit in silence.
    """
    if processes() == 1:
        yield ALONE
        return
    share_cores()
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu and not shared else "gloo", timeout=datetime.timedelta(seconds=STEP_TIMEOUT_S))
        words = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=LEADER_TIMEOUT_S))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        why = " ".join(str(error).split())[:200]
        raise UserError(f"The {processes()} processes did not find one another at {where} ({why}).") from None
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), words)
    try:
        yield ranks
    except RankLost as lost:
        if not ranks.leads:
            sys.exit(1)  # the first process says why
        raise UserError(f"One of the {ranks.size} processes is gone ({ranks.confession() or lost}).") from None
    except UserError as error:
        if ranks.leads:
            raise
        ranks.confess(str(error))
        sys.exit(1)
    except BaseException as error:
        ranks.confess(" ".join(str(error).split())[:300] or type(error).__name__)
        raise
    finally:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def share_cores() -> None:
    """Each process of a machine takes its share of the cores, unless OMP_NUM_THREADS says how many threads."""
    if _threads_asked_for():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", processes()))))


def _threads_asked_for() -> bool:
    """Whether a person set OMP_NUM_THREADS. torchrun sets it to 1 by itself, so its own environment, as it was started, is asked."""
    if "OMP_NUM_THREADS" not in os.environ:
        return False
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with contextlib.suppress(OSError):
            return b"\0OMP_NUM_THREADS=" in b"\0" + Path(f"/proc/{os.getppid()}/environ").read_bytes()
    return True
