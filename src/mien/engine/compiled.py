"""Compiled networks, with the plain ones to fall back on; and the one switch for determinism.

`train.compile` names how G and D are run while they train:

off        as written
networks   each by torch.compile
graphs     the same, its kernels replayed as CUDA graphs; on a CPU this is `networks`
auto       networks on an NVIDIA GPU, off elsewhere

What is compiled is G's forward and D's features, in training mode. All else (losses, penalties, optimisers, the average) runs as
written, so rates and gammas stay plain numbers, D:G ratios and lazy penalties need no variants of their own, and a resume needs no word of
it. A gradient penalty differentiates twice, which compiled functions cannot: within it the networks run as written. They do so too where a
number of theirs changes at each step (a growing network's alpha, D's input noise), since each change would compile anew, and with several
processes. Whatever fails to compile runs as written from then on, with the same random numbers, and one line in the log says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mien.config import Config
from mien.engine.state import TrainState
from mien.engine.task import Task
from mien.models.convolution import TwiceDifferentiable
from mien.models.growth import FadingDiscriminator, FadingGenerator
from mien.models.layers import Spectral

log = logging.getLogger(__name__)


class Compiled:
    """A method of a network, compiled: called as the method is. `plain` is the method itself."""

    def __init__(self, net: nn.Module, method: str, *, graphs: bool):
        self.plain: Callable[..., Tensor] = getattr(net, method)
        self.failed = False
        self._tried: set[tuple[Any, ...]] = set()
        self._net, self._name = net, f"{type(net).__name__}.{method}"
        # The same random numbers as eager ones; the modes of torch.compile by name leave no room to say so.
        options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": graphs}
        self._compiled = torch.compile(self.plain, dynamic=False, options=options)

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.failed or not self._net.training or TwiceDifferentiable.active:
            return self.plain(*inputs)
        modes = torch.is_grad_enabled(), torch.is_autocast_enabled(inputs[0].device.type)
        wanted = (*(p.requires_grad for p in self._net.parameters()), *((x.shape, x.requires_grad) for x in inputs))
        kind = (*modes, *wanted)
        if kind not in self._tried and not self._works(inputs):
            return self.plain(*inputs)
        self._tried.add(kind)
        return self._compiled(*inputs)

    def _works(self, inputs: tuple[Tensor, ...]) -> bool:
        """Go there and back once, and leave no trace: torch compiles the way back only when it is first taken, too late to turn round."""
        device = inputs[0].device
        draws = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        buffers = {name: buffer.clone() for name, buffer in self._net.named_buffers()}
        try:
            trial = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
            result = self._compiled(*trial)
            if result.requires_grad:
                ends = [*(p for p in self._net.parameters() if p.requires_grad), *(x for x in trial if x.requires_grad)]
                torch.autograd.grad(result.float().sum(), ends, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a missing compiler, an operation that it does not know: many classes, all of them private
            self.failed = True
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            log.warning("%s runs as written, not compiled (%s).", self._name, reason[:200])
        finally:
            torch.set_rng_state(draws[0])
            if draws[1] is not None:
                torch.cuda.set_rng_state(draws[1], device)
            for name, buffer in self._net.named_buffers():
                buffer.data.copy_(buffers[name])  # of no concern to autograd: an earlier pass may hold this very tensor, with these values
        return not self.failed


def chosen(config: Config, device: torch.device) -> str:
    """off, networks or graphs: what `train.compile` comes to on this device."""
    asked = config.train.compile
    if asked == "auto":
        return "networks" if device.type == "cuda" else "off"
    return "networks" if asked == "graphs" and device.type != "cuda" else asked


def compile_networks(s: TrainState, task: Task) -> None:
    """Compile those of the networks that are not yet, at the beginning of a step: a growth or a rollback may have brought new ones."""
    how = chosen(task.config, task.device)
    if how == "off" or task.piece < task.config.train.batch:  # cut among processes or in pieces: engine.rows must see every draw
        return
    if how == "graphs":
        torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs gave may be overwritten
    for net, method in ((s.G, "forward"), (s.D, "features")):
        if method in vars(net) or isinstance(net, FadingGenerator | FadingDiscriminator):
            continue
        if net is s.D and task.config.model.discriminator.input_noise:
            continue
        # A spectral norm keeps its vectors from step to step, and a graph would overwrite them.
        graphs = how == "graphs" and not any(isinstance(layer, Spectral) for layer in net.modules())
        setattr(net, method, Compiled(net, method, graphs=graphs))


def set_numerics(config: Config, device: torch.device) -> None:
    """Determinism, and what speed may cost in precision; called once, before anything is computed.

    `train.deterministic`: the same numbers from every run on the same GPU. On a CPU they are that anyway. Costs speed; operations that have
    no deterministic version are named in a warning. Else cuDNN tries its kernels and keeps the fastest. TF32 is as torch has it from the
    start, in convolutions but not in matrix products; with `train.deterministic` in neither.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not config.train.deterministic
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
