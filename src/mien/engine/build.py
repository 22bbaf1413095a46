"""From a recipe and a store to what a run needs: networks, optimisers, data, objective. The one place where all parts meet."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

import mien
from mien.augment.policy import Augment
from mien.config import Config
from mien.data.loader import FaceLoader, Weights
from mien.data.pyramid import Pyramid, PyramidLoader
from mien.data.store import FaceStore
from mien.engine.batch import check_cut
from mien.engine.compiled import set_numerics
from mien.engine.distributed import ALONE, Ranks
from mien.engine.growth import follow, grow, phase_of, plan_of
from mien.engine.probe import Probe
from mien.engine.signals import FREE_OFFSET
from mien.engine.state import TrainState
from mien.engine.task import Features, Task
from mien.engine.warmup import regroup
from mien.errors import UserError
from mien.losses.catalogue import build_adversarial
from mien.losses.regularizers import dragan, gradient_penalty, r1, r2
from mien.models.catalogue import build_discriminator, build_generator
from mien.models.classifier import load_classifier, prepare_images
from mien.models.summary import summarize
from mien.rules import settle
from mien.sections import number


def choose_device(name: str | None) -> torch.device:
    """The device asked for, or the best there is. Raises UserError for one that this machine lacks."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, colon, index = name.partition(":")
    if kind not in there or (colon and not index.isdecimal()):
        raise UserError(f"No device is called {name}: choose cpu, cuda (or one of several, as cuda:1) or mps.")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not there[kind] or (colon and int(index) >= count):
        raise UserError(f"This machine has no {name} device that torch can use; 'mien doctor' says what it has.")
    return torch.device(name)


def attribute_names(config: Config, store: FaceStore) -> tuple[str, ...]:
    """The condition: the attributes the recipe picks, or all that the store has."""
    names = store.attribute_names if config.data.attributes is None else tuple(config.data.attributes)
    store.columns(names)  # raises UserError for one that the store lacks
    return tuple(names)


def check_batch(config: Config, store: FaceStore) -> None:
    """Raises UserError when a batch would hold an image twice."""
    if config.train.batch > (count := len(store.indices("train"))):
        raise UserError(f"train.batch is {config.train.batch}, but {store.path} has {count} training images: lower the batch.")


def build_task(
    config: Config, store: FaceStore, device: torch.device, *, smaller: Sequence[FaceStore] = (), ranks: Ranks = ALONE
) -> Task:
    """`store` has images of the run's last size; `smaller`: the same faces in sizes that it grows through.

    Raises UserError when the recipe does not fit the stores, or its batch cannot be divided among `ranks`.
    """
    check_cut(config, ranks.size)
    set_numerics(config, device)
    config, _ = settle(config, store.size)
    names, plan, faces = attribute_names(config, store), plan_of(config, store.size), Pyramid([*smaller, store])
    if faces.largest is not store:
        raise UserError(f"{faces.largest.path} has larger images than {store.path}: name the largest last.")
    if unused := [smaller for smaller in faces.stores if smaller.size not in plan.sizes]:
        sizes = " to ".join(str(size) for size in plan.sizes)
        raise UserError(f"{unused[0].path} has images of {unused[0].size} px, but the run trains at {sizes} px: leave it out, "
                        "or say when to grow, for example --set growth.at_kimg=300.")  # fmt: skip
    faces.size = plan.first.size
    data = serve(config, faces, "train", names, device, weights=config.data.balance)
    check_batch(config, store)
    loss, regularizer = config.loss, config.regularizer
    settings = (("r1", r1, regularizer.r1), ("r2", r2, regularizer.r2), ("gp", gradient_penalty, regularizer.gp),
                ("dragan", dragan, regularizer.dragan))  # fmt: skip
    penalties = [(name, penalty, setting.every) for name, penalty, setting in settings if number(setting.gamma) > 0]
    augment = Augment(config.augment.ops)
    task = Task(
        config=config,
        faces=faces,
        plan=plan,
        data=data,
        adversarial=build_adversarial(loss.name, real_label=loss.real_label, label_noise=loss.label_noise, label_flip=loss.label_flip),
        penalties=tuple(penalties),
        augment=augment,
        device=device,
        probe=build_probe(config, faces, data, augment) if config.balance.probe_kimg > 0 and ranks.leads else None,
        jitter=Augment(regularizer.consistency.ops),
        face=face_features(device) if loss.perceptual > 0 else None,
        ranks=ranks,
    )
    put_at_hand(task, smoothing=config.balance.mode == "on", augmentation=config.balance.mode == "on")
    return task


def put_at_hand(task: Task, *, smoothing: bool, augmentation: bool) -> None:
    """R1 and DiffAugment, where the recipe has none, for the controller to turn on; with gamma 0 and p 0 they cost nothing."""
    if smoothing and "r1" not in [name for name, _, _ in task.penalties]:
        task.penalties = (*task.penalties, ("r1", r1, LAZY))
    if augmentation and not task.augment.names:
        task.augment.names = Augment(["diffaugment"]).names  # the probe looks through the same object


def keep_at_hand(task: Task, turned: Collection[str]) -> None:
    """What the knobs in `turned` act on: they were turned when it was there."""
    put_at_hand(task, smoothing="r1_gamma" in turned, augmentation="augment_p" in turned)


def face_features(device: torch.device) -> Features:
    """The bundled judge's features of images as networks have them; frozen, but gradients pass through to the images."""
    net = load_classifier()[0].to(device).to(memory_format=torch.channels_last)
    return lambda images: net.features(prepare_images((images.float() + 1) * 127.5))


LAZY = 16  # updates between two penalties, as in Karras et al. 2020


def serve(
    config: Config, faces: Pyramid, split: str, names: tuple[str, ...], device: torch.device, *, weights: Weights = "none"
) -> FaceLoader | PyramidLoader:
    """The loader of one split: of the one store, or one that follows the size in use."""
    seed, flip = config.train.seed, config.data.flip
    if not config.growth.at_kimg:
        return FaceLoader(faces.largest, split=split, attributes=names, seed=seed, flip=flip, device=device, weights=weights)
    return PyramidLoader(faces, split=split, attributes=names, seed=seed, flip=flip, device=device, weights=weights)


def build_probe(config: Config, faces: Pyramid, data: FaceLoader | PyramidLoader, augment: Augment) -> Probe:
    there = len(faces.largest.indices("val")) > 0
    held_out = serve(config, faces, "val", data.attribute_names, data.device) if there else None
    group = config.model.discriminator.minibatch_stddev
    free = config.loss.name in FREE_OFFSET
    return Probe(data, held_out, augment, z_dim=config.model.generator.z_dim, group=max(1, group), free_offset=free)


def build_state(config: Config, *, size: int, attributes: int, device: torch.device) -> TrainState:
    """Fresh networks and optimisers, a function of the seed."""
    torch.manual_seed(config.train.seed)
    model = config.model
    G = build_generator(model.family, size=size, attributes=attributes, options=model.generator_options())
    D = build_discriminator(model.family, size=size, attributes=attributes, options=model.discriminator_options())
    G, D = G.to(device).to(memory_format=torch.channels_last), D.to(device).to(memory_format=torch.channels_last)
    ema = copy.deepcopy(G).eval().requires_grad_(False)
    posthoc = {str(sigma): copy.deepcopy(ema) for sigma in config.ema.posthoc}
    o = config.optimizer
    opt_g, opt_d = build_optimizer(config, G, o.lr_g), build_optimizer(config, D, o.lr_d)
    return TrainState(G=G, D=D, ema=ema, posthoc=posthoc, opt_g=opt_g, opt_d=opt_d)


def build_optimizer(config: Config, net: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """Weight decay holds kernels only: a bias has nothing to shrink for, and a norm's scale is the layer's whole amplitude."""
    o = config.optimizer
    groups = [{"params": [p for p in net.parameters() if p.ndim > 1]},
              {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[o.name]
    fused = next(net.parameters()).device.type in ("cpu", "cuda")
    return kind(groups, lr=lr, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay, fused=fused)


def restore(state: TrainState, task: Task, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> None:
    """Load a checkpoint, whatever structure the networks of `state` have now: its image count names the one they must have."""
    phase = task.plan.at(int(plain["nimg"]))
    if not phase_of(state).same_structure(phase):
        size = phase.size // 2 if phase.fading else phase.size
        fresh = build_state(task.config, size=size, attributes=state.G.attributes, device=task.device)
        state.G, state.D, state.ema, state.opt_g, state.opt_d = fresh.G, fresh.D, fresh.ema, fresh.opt_g, fresh.opt_d
        if phase.fading:
            grow(state, task.config)
    state.load(tensors, plain)
    keep_at_hand(task, {**state.steering.controller, **state.steering.by_hand})  # perhaps of a controller now off: it still holds
    regroup(state, task.config)
    follow(state, task)


# --- what a run writes down about itself ------------------------------------------------------------------------------


def describe_architecture(state: TrainState, *, size: int, attributes: int, device: torch.device) -> dict[str, Any]:
    """architecture.json: a row per layer of both networks, for one image."""
    condition = torch.zeros(1, attributes, device=device)
    image = torch.zeros(1, 3, size, size, device=device)
    return {
        "generator": summarize(state.G, torch.zeros(1, state.G.z_dim, device=device), condition),
        "discriminator": summarize(state.D, image, condition),
    }


def describe_machine(device: torch.device, processes: int = 1) -> dict[str, Any]:
    machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    machine |= {"device": str(device), "threads": torch.get_num_threads()}
    if processes > 1:
        machine["processes"] = processes
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return machine


def describe_store(store: FaceStore, names: tuple[str, ...]) -> dict[str, Any]:
    path = str(store.path)
    splits = {split: len(store.indices(split)) for split in ("train", "val", "test")}
    return {"path": path, "digest": store.digest, "size": store.size, "crop": store.crop, "attributes": list(names), "splits": splits}


def snapshot_meta(config: Config, store: FaceStore, names: tuple[str, ...], *, preset: str | None) -> dict[str, Any]:
    """What every snapshot of a run says beside its weights, but for nimg."""
    return {
        "family": config.model.family,
        "options": config.model.generator_options(),
        "size": store.size,
        "attributes": list(names),
        "attribute_table": [[list(row), share] for row, share in store.attribute_table(names, "train")],
        "ema": True,
        "preset": preset,
        "trained_on": ["face"] if config.loss.perceptual > 0 else [],
        "store": {"digest": store.digest, "crop": store.crop, "size": store.size},
        "mien": mien.__version__,
    }
