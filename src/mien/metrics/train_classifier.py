"""Training of the face-attribute classifier on a prepared store: recorded, and resumable bit for bit.

OUT/config.json (recipe, data, machine), OUT/log.jsonl (a line an epoch), OUT/state.json + state-STEP.safetensors (the newest full state),
and at the end OUT/face.safetensors + face.json: the averaged weights in fp16, their calibration and what was measured on the validation
split, with OUT/reliability.png. Everything random is a function of (seed, step), so the state holds no random stream.
"""

import copy
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from mien import __version__
from mien.data.store import FaceStore, open_store
from mien.errors import UserError
from mien.metrics.calibration import fit_platt
from mien.metrics.classifier_scores import reliability_figure, validation_scores
from mien.metrics.classifier_views import STRESSES, random_views
from mien.models.classifier import INPUT_PX, FaceClassifier, load_classifier, prepare_images, save_classifier
from mien.whole import write_bytes

WATCHED = ("Male", "Smiling", "Eyeglasses")
SEEDS = 2**64  # torch takes no larger ones


@dataclass
class Recipe:
    """phases: (side in px, epochs), in order. Rates follow one cosine over all of them after a short linear warm-up."""

    phases: list[list[int]] = field(default_factory=lambda: [[32, 10], [48, 10], [64, 14]])
    batch: int = 128
    lr: float = 3e-3
    warmup: float = 0.05                # of all steps
    weight_decay: float = 0.05          # AdamW's, on convolutions and the head only
    ema_decay: float = 0.998            # a step
    precision: str = "bf16"             # of the convolutions; master weights, norms, features and loss are fp32
    seed: int = 0

    def epochs(self) -> int:
        return sum(epochs for _, epochs in self.phases)

    def size_px(self, epoch: int) -> int:
        for size, epochs in self.phases:
            if epoch < epochs:
                return size
            epoch -= epochs
        return self.phases[-1][0]

    def rate(self, step: int, total: int) -> float:
        progress = (step + 1) / total
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


class Faces:
    """The part of a store that training reads: batches in the network's form, and labels as floats."""

    def __init__(self, store: FaceStore):
        if store.size < INPUT_PX:
            raise UserError(f"the store {store.path} is {store.size} px; the classifier needs {INPUT_PX} or more: prepare the data again")
        if not store.attribute_names:
            raise UserError(f"the store {store.path} has no attributes to learn: prepare it with --attributes all")
        self.store = store
        self.names = store.attribute_names
        self.attributes = torch.from_numpy(store.attributes).float()     # [N, A]
        self.train, self.val = store.indices("train"), store.indices("val")

    def batch(self, indices: np.ndarray, size_px: int) -> Tensor:
        """float [N, 3, S, S] in -1..1."""
        return prepare_images(torch.from_numpy(self.store.images[indices]).permute(0, 3, 1, 2), size_px)


class Training:
    """All that changes: the network, its average, the optimiser's moments, the step, and the running loss of the epoch."""

    def __init__(self, recipe: Recipe, attributes: int, device: str = "cpu"):
        torch.manual_seed(recipe.seed % SEEDS)
        self.recipe, self.device = recipe, torch.device(device)
        self.net = FaceClassifier(attributes).to(self.device, memory_format=torch.channels_last)    # type: ignore[call-overload]
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        decayed = [p for p in self.net.parameters() if p.ndim == 4 or p.ndim == 2]
        others = [p for p in self.net.parameters() if not (p.ndim == 4 or p.ndim == 2)]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
        self.step = 0
        self.loss_sum = 0.0
        self.whole = True               # False in the middle of a step: such a state is not worth saving

    def update(self, images: Tensor, attributes: Tensor, trusted: Tensor, rate: float) -> None:
        """One step. images: float [N, 3, S, S] in -1..1. trusted: [N, A], 1 where a label may be learned from."""
        self.whole = False
        images, attributes, trusted = (tensor.to(self.device) for tensor in (images, attributes, trusted))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.net.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits = self.net(images.contiguous(memory_format=torch.channels_last)).float()
        loss = (F.binary_cross_entropy_with_logits(logits, attributes, reduction="none") * trusted).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        decay = min(self.recipe.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.state_dict().values(), self.net.state_dict().values()):
                if mean.is_floating_point():
                    mean.lerp_(now, 1 - decay)
        self.loss_sum += loss.item()
        self.whole = True

    def tensors(self) -> dict[str, Tensor]:
        """Names and copies of every tensor of the state; contiguous, as safetensors wants them."""
        named = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        named |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return {name: value.detach().clone().contiguous() for name, value in named.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        groups: dict[str, dict[str, Tensor]] = {"net": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            owner, _, rest = name.partition(".")
            groups[owner][rest] = value
        self.net.load_state_dict(groups["net"])
        self.average.load_state_dict(groups["average"])
        state = self.optimizer.state_dict()
        for name, value in groups["optimizer"].items():
            index, _, moment = name.partition(".")
            state["state"].setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict(state)


def save_state(training: Training, out: Path) -> None:
    """The tensors under a name of their own, then state.json that points at them: a kill in between leaves the older state."""
    name = f"state-{training.step:08d}.safetensors"
    content = save(training.tensors())
    write_bytes(out / name, content)
    record = {"step": training.step, "loss_sum": training.loss_sum, "file": name, "sha256": hashlib.sha256(content).hexdigest()}
    write_bytes(out / "state.json", json.dumps(record).encode())
    for old in out.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_state(training: Training, out: Path) -> bool:
    """True when a state was there. Raises UserError for a damaged one."""
    if not (out / "state.json").exists():
        return False
    record = json.loads((out / "state.json").read_text())
    file = out / record["file"]
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != record["sha256"]:
        raise UserError(f"{file} is missing or damaged: delete {out / 'state.json'} to start again")
    training.load(load_file(file))
    training.step, training.loss_sum = record["step"], record["loss_sum"]
    return True


@torch.no_grad()
def predict(net: FaceClassifier, faces: Faces, indices: np.ndarray, *, size_px: int = INPUT_PX, stress: str = "none") -> Tensor:
    """fp32 logits [N, A] on the CPU, of the images as they are or after one of STRESSES."""
    net.eval()
    parts = (STRESSES[stress](faces.batch(indices[i:i + 256], size_px)).to(net.head.weight.device) for i in range(0, len(indices), 256))
    return torch.cat([net(part.contiguous(memory_format=torch.channels_last)).cpu() for part in parts])


def stress_scores(net: FaceClassifier, faces: Faces) -> dict[str, dict[str, float]]:
    """Accuracy on the validation split after each of STRESSES: the mean over attributes, and of the watched ones."""
    labels = faces.store.attributes[faces.val] > 0
    scores: dict[str, dict[str, float]] = {}
    for name in STRESSES:
        right = ((predict(net, faces, faces.val, stress=name).numpy() > 0) == labels).mean(axis=0)
        watched = {each: round(float(right[faces.names.index(each)]), 4) for each in WATCHED if each in faces.names}
        scores[name] = {"accuracy": round(float(right.mean()), 4), **watched}
    return scores


def epoch_record(training: Training, faces: Faces, epoch: int, steps: int, started_s: float) -> dict[str, Any]:
    """A line of log.jsonl. Validation is at the phase's image size, by the averaged weights."""
    size = training.recipe.size_px(epoch)
    record: dict[str, Any] = {"epoch": epoch + 1, "step": training.step, "size_px": size, "loss": round(training.loss_sum / steps, 5),
                              "seconds": round(time.time() - started_s, 1), "time_s": round(time.time(), 1)}
    if len(faces.val):
        truth = faces.attributes[torch.from_numpy(faces.val)]
        logits = predict(training.average, faces, faces.val, size_px=size)
        right = ((logits > 0) == (truth > 0.5)).float().mean(dim=0)
        loss = F.binary_cross_entropy_with_logits(logits, truth).item()
        record |= {"val_loss": round(loss, 5), "val_accuracy": round(right.mean().item(), 5)}
        record |= {name: round(right[faces.names.index(name)].item(), 5) for name in WATCHED if name in faces.names}
    return record


def train_classifier(data: Path, out: Path, recipe: Recipe, *, initial: Path | None = None, device: str = "cpu", save_every_s: float = 180,
                     stop_after_steps: int | None = None, stopping: Callable[[], bool] = lambda: False,
                     on_step: Callable[[int, int], None] = lambda step, total: None, report: Callable[[str], None] = print) -> Path | None:
    """Train on the store's training split, watch the validation split. The same call again resumes.

    initial: weights (.safetensors with its .json) to start from. stop_after_steps: stop, state saved, after that many steps of this call.
    stopping: asked after each step; once it says True the state is saved and the call returns. on_step: told (steps done, of how many)
    after each. report: told a line an epoch.
    Returns the path of the finished weights, or None when stopped before.
    Raises UserError for a store, weights or OUT that do not fit.
    """
    faces = Faces(open_store(data))
    steps = len(faces.train) // recipe.batch
    if steps == 0:
        raise UserError(f"{data} has {len(faces.train)} training images, under one batch of {recipe.batch}: give more, or a smaller batch")
    training = Training(recipe, len(faces.names), device)
    if initial is not None:
        start_from(training, initial, faces)
    begin(out, faces, recipe, initial, device)
    if load_state(training, out):
        report(f"resuming {out} at step {training.step:,} of {steps * recipe.epochs():,}")
    last = steps * recipe.epochs()
    if stop_after_steps is not None:
        last = min(last, training.step + stop_after_steps)
    try:
        run_steps(training, faces, out, steps=steps, last=last, save_every_s=save_every_s, stopping=stopping, on_step=on_step,
                  report=report)
    finally:                                                        # after an error too, unless it broke a step: then the last save stands
        if training.whole:
            save_state(training, out)
    return finish(training, faces, out) if training.step == steps * recipe.epochs() else None


def run_steps(training: Training, faces: Faces, out: Path, *, steps: int, last: int, save_every_s: float, stopping: Callable[[], bool],
              on_step: Callable[[int, int], None], report: Callable[[str], None]) -> None:
    """Train up to step `last`, or until `stopping`; `steps` make an epoch."""
    recipe, total = training.recipe, steps * training.recipe.epochs()
    blurry = [faces.names.index("Blurry")] if "Blurry" in faces.names else []
    started_s = saved_s = time.time()
    while training.step < last and not stopping():
        epoch, place = divmod(training.step, steps)
        order = np.random.default_rng([recipe.seed, epoch]).permutation(faces.train)
        chosen = np.sort(order[place * recipe.batch:(place + 1) * recipe.batch])
        seed = (recipe.seed * 1_000_003 + training.step) % SEEDS
        views, softened = random_views(faces.batch(chosen, recipe.size_px(epoch)), seed=seed)
        torch.manual_seed(seed)                                     # dropout
        labels = faces.attributes[torch.from_numpy(chosen)]
        trusted = torch.ones_like(labels)
        trusted[:, blurry] = (~softened).float()[:, None]           # a view blurred by us says nothing of the photograph's blur
        training.update(views, labels, trusted, recipe.rate(training.step, total))
        on_step(training.step, total)
        if training.step % steps == 0:
            record = epoch_record(training, faces, epoch, steps, started_s)
            training.loss_sum, started_s = 0.0, time.time()
            with open(out / "log.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
            report("  ".join(f"{name} {value}" for name, value in record.items() if name != "time_s"))
        if time.time() - saved_s > save_every_s:
            save_state(training, out)
            saved_s = time.time()


def start_from(training: Training, initial: Path, faces: Faces) -> None:
    """Copy other weights into the network and its average."""
    net, meta = load_classifier(initial)
    if tuple(meta["attributes"]) != faces.names:
        raise UserError(f"{initial} was trained on other attributes than the store {faces.store.path} has, or in another order")
    training.net.load_state_dict(net.state_dict())
    training.average.load_state_dict(net.state_dict())


def begin(out: Path, faces: Faces, recipe: Recipe, initial: Path | None, device: str) -> None:
    """Make OUT and its config.json; refuse an OUT made by another recipe or from other data."""
    out.mkdir(parents=True, exist_ok=True)
    fixed = {"recipe": asdict(recipe), "attributes": list(faces.names), "data_digest": faces.store.digest,
             "initial_sha256": hashlib.sha256(initial.read_bytes()).hexdigest() if initial else None}
    if (out / "config.json").exists():
        held = json.loads((out / "config.json").read_text())
        different = [name for name in fixed if held.get(name) != fixed[name]]
        if different:
            raise UserError(f"{out} holds a training that differs in {', '.join(different)}: choose another --out")
        return
    machine = {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.machine(),
               "torch": str(torch.__version__)}
    record = {"format": "mien-classifier-training/1", **fixed, "data": faces.store.path.name, "machine": machine}
    write_bytes(out / "config.json", json.dumps(record, indent=1).encode())


def finish(training: Training, faces: Faces, out: Path) -> Path:
    """Write the averaged weights, measure them as they will be loaded, and write what was measured beside them."""
    path = out / "face.safetensors"
    held = json.loads((out / "config.json").read_text())
    log = out / "log.jsonl"
    seconds = sum(json.loads(line)["seconds"] for line in log.read_text().splitlines()) if log.exists() else 0
    store = faces.store
    meta: dict[str, Any] = {
        "name": "face", "mien": __version__, "attributes": list(faces.names), "size_px": INPUT_PX,
        "feature_size": training.average.feature_size,
        "training": {"recipe": held["recipe"], "images": len(faces.train), "epochs": training.recipe.epochs(), "steps": training.step,
                     "seconds": round(seconds), "machine": held["machine"], "initial_sha256": held["initial_sha256"],
                     "store": {"digest": store.digest, "crop": store.crop, "size": store.size}},
        "calibration": None, "validation": None,
    }
    save_classifier(training.average, meta, path)
    if len(faces.val) > 1:                                          # of one image nothing is left to fit on when it is set aside
        net, _ = load_classifier(path)
        logits, labels = predict(net, faces, faces.val).numpy(), store.attributes[faces.val]
        scale, bias = fit_platt(logits, labels)
        meta["calibration"] = {"method": "platt", "count": len(labels), "scale": scale.round(6).tolist(), "bias": bias.round(6).tolist()}
        meta["validation"] = {**validation_scores(logits, labels, faces.names), "stress": stress_scores(net, faces)}
        save_classifier(net, meta, path)
        reliability_figure(logits, labels, faces.names, out / "reliability.png")
    return path
