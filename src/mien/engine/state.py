"""TrainState: all that changes in a run, and nothing else. What is not here is a function of the recipe and of nimg."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mien.engine.balance import Controller
from mien.engine.diagnosis import History
from mien.engine.signals import SignalMeter
from mien.engine.steering import Steering
from mien.errors import UserError
from mien.models.catalogue import Discriminator, Generator


@dataclass
class TrainState:
    """Networks, average, optimisers and the count of real images shown to D. Saved and loaded as one."""

    G: Generator
    D: Discriminator
    ema: Generator
    opt_g: torch.optim.Optimizer
    opt_d: torch.optim.Optimizer
    nimg: int = 0
    noise_salt: int = 0
    """Changes the noise stream: a run that was rolled back must not meet the draws that failed it."""
    rollbacks: int = 0
    steering: Steering = field(default_factory=Steering)
    history: History = field(default_factory=History)
    controller: Controller = field(default_factory=Controller)
    meter: SignalMeter = field(default_factory=SignalMeter)
    """Signals since the last tick, which was at `tick_nimg`; a checkpoint may come between two."""
    tick_nimg: int = 0
    seen_faces: torch.Tensor | None = None
    """Thumbnails [N, F] of the fixed faces when the probe last looked, at `probe_nimg`."""
    probe_nimg: int = 0
    anchors: torch.Tensor | None = None
    """LeCam's moving averages of D's logits of reals and of fakes, [2]; None until LeCam is first in use."""
    warming: dict[str, int] = field(default_factory=dict)
    """{'D.trunk.4x4.conv.weight': nimg when it was born}: parameters that came to trained ones later; their rates rise, and
    they are never frozen (engine.warmup). They stay in here for good."""
    grown_nimg: int = 0
    """When the networks last grew."""
    posthoc: dict[str, Generator] = field(default_factory=dict)
    """{'0.05': average}: by power functions, from which others are made after training (engine.posthoc)."""
    origin_nimg: int = 0
    """How many images the weights had seen before this run, under another: the average is as old as that."""

    def networks(self) -> dict[str, torch.nn.Module]:
        return {"G": self.G, "D": self.D, "ema": self.ema, **{f"posthoc-{sigma}": net for sigma, net in self.posthoc.items()}}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor under a readable name: 'G.4x4.weight', 'opt_g.4x4.weight.exp_avg'."""
        named: dict[str, torch.Tensor] = {}
        for role, net in self.networks().items():
            named |= {f"{role}.{name}": tensor for name, tensor in net.state_dict().items()}
        for role, net, optimizer in (("opt_g", self.G, self.opt_g), ("opt_d", self.D, self.opt_d)):
            for name, parameter in net.named_parameters():
                for slot, tensor in optimizer.state.get(parameter, {}).items():
                    named[f"{role}.{name}.{slot}"] = tensor
        named |= {f"meter.{name}": total for name, total in self.meter.sums.items()}
        named |= {name: tensor for name in ("seen_faces", "anchors") if (tensor := getattr(self, name)) is not None}
        return named

    def plain(self) -> dict[str, Any]:
        """The rest, as JSON holds it."""
        return {
            "noise_salt": self.noise_salt,
            "rollbacks": self.rollbacks,
            "steering": self.steering.plain(),
            "history": self.history.plain(),
            "controller": self.controller.plain(),
            "meter": self.meter.counts,
            "tick_nimg": self.tick_nimg,
            "probe_nimg": self.probe_nimg,
            "warming": self.warming,
            "grown_nimg": self.grown_nimg,
            "origin_nimg": self.origin_nimg,
        }

    def load(self, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> None:
        """Take over what `tensors()` and `plain()` gave. Raises UserError when the tensors are another architecture's."""
        for role, net in self.networks().items():
            part = {name.removeprefix(f"{role}."): tensor for name, tensor in tensors.items() if name.startswith(f"{role}.")}
            try:
                net.load_state_dict(part)
            except RuntimeError as error:
                raise UserError(f"The checkpoint's {role} does not fit this recipe: {' '.join(str(error).split())[:300]}") from None
        self.load_moments(tensors)
        self.nimg = int(plain["nimg"])
        self.noise_salt, self.rollbacks = int(plain["noise_salt"]), int(plain.get("rollbacks", 0))
        self.steering = Steering.from_plain(plain.get("steering", {}))
        self.history = History.from_plain(plain.get("history", {}))
        self.controller = Controller.from_plain(plain.get("controller", {}))
        sums = {name.removeprefix("meter."): tensor for name, tensor in tensors.items() if name.startswith("meter.")}
        self.meter, self.tick_nimg = SignalMeter(sums, dict(plain.get("meter", {}))), int(plain.get("tick_nimg", self.nimg))
        self.seen_faces, self.probe_nimg = tensors.get("seen_faces"), int(plain.get("probe_nimg", 0))
        anchors = tensors.get("anchors")
        self.anchors = None if anchors is None else anchors.to(next(self.D.parameters()).device)
        self.warming, self.grown_nimg = dict(plain.get("warming", {})), int(plain.get("grown_nimg", 0))
        self.origin_nimg = int(plain.get("origin_nimg", 0))

    def load_moments(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The optimisers' state from what `tensors()` names 'opt_g.4x4.weight.exp_avg'; parameters that it lacks begin afresh."""
        self._load_optimizer("opt_g", self.G, self.opt_g, tensors)
        self._load_optimizer("opt_d", self.D, self.opt_d, tensors)

    @staticmethod
    def _load_optimizer(role: str, net: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
        slots: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"{role}."):
                name, _, slot = key.removeprefix(f"{role}.").rpartition(".")
                slots.setdefault(name, {})[slot] = tensor
        optimizer.state.clear()
        for name, parameter in net.named_parameters():
            for slot, tensor in slots.get(name, {}).items():
                like = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor, device=parameter.device)
                if slot == "step":  # the optimisers keep their counter where they made it: on the CPU unless fused on a GPU
                    like = torch.empty_like(tensor, device=parameter.device if optimizer.defaults.get("fused") else "cpu")
                optimizer.state[parameter][slot] = like.copy_(tensor)


def step_seed(seed: int, nimg: int, salt: int = 0) -> int:
    """A 63-bit seed for the step that begins after `nimg` images: unrelated for neighbouring steps, the same on every machine."""
    digest = hashlib.blake2b(f"mien step {seed} {nimg} {salt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
