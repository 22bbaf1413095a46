"""The same steps with a batch cut in several ways; run by itself, one of the processes among which it is cut."""

import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path

import torch

from engine.conftest import tiny_recipe
from mien.apps.dataset import Order, write_dataset
from mien.apps.together import drawing, help_drawing
from mien.data.store import open_store
from mien.engine import build, distributed, following
from mien.engine.schedules import knobs_at
from mien.engine.session import open_session
from mien.engine.step import train_step
from mien.engine.supervisor import Collapsed
from mien.explore.load import load_generator
from mien.metrics.evaluate import evaluate

CPU = torch.device("cpu")
STEPS = 3
STYLE = ("model.family=style", "model.generator.w_dim=8", "model.generator.mapping=2", "model.discriminator.norm=batch",
         "regularizer.path_length.gamma=2", "regularizer.path_length.every=2", "model.discriminator.minibatch_stddev=4")  # fmt: skip
RECIPES = {  # name: (preset, overrides)
    "batch norm in both, noisy labels, dropout, feature matching": ("seed2", (
        "loss.label_noise=0.2", "loss.label_flip=0.1", "model.discriminator.dropout=0.3", "loss.feature_matching=0.5",
        "regularizer.lecam.gamma=0.3", "regularizer.dragan.gamma=1", "regularizer.r1.gamma=1", "regularizer.r1.every=2")),
    "spectral norm, hinge, lazy R1, augmentation, projection": ("seed0", (
        "augment.p=0.6", "augment.ops=full", "regularizer.r1.every=2", "model.discriminator.minibatch_stddev=2",
        "regularizer.consistency.real=1", "balance.g_steps=2")),
    "wgan-gp": ("wgan-gp", ()),
    "style, path lengths, mixing, stddev": ("style64-cpu", (
        "regularizer.path_length.gamma=2", "regularizer.path_length.every=2", "model.discriminator.minibatch_stddev=2",
        "model.generator.w_dim=8", "augment.ops=light", "augment.p=0.5")),
    "relativistic, R1 and R2": ("r3-64-cpu", ("model.generator.group=4", "model.discriminator.group=4")),
}  # fmt: skip


def steps(name: str, store, *overrides: str, ranks=distributed.ALONE) -> dict:
    """{"signals": those of each step, "weights": the hash of all tensors of the state}."""
    preset, own = RECIPES[name]
    task = build.build_task(tiny_recipe(*own, *overrides, preset=preset).config, store, CPU, ranks=ranks)
    state = build.build_state(task.config, size=store.size, attributes=len(task.data.attribute_names), device=CPU)
    signals = []
    for _ in range(STEPS):
        found = train_step(state, task, knobs_at(task.config, state.nimg), measure=True)
        signals.append({key: float(value) for key, value in found.items()})
    return {"signals": signals, "weights": digest(state.tensors())}


def scores(model: Path, store, ranks=distributed.ALONE) -> dict[str, list[float]]:
    """{metric: [value, low, high, floor]} of a snapshot; empty but in the first process."""
    found = evaluate(load_generator(model), store, metrics=["fd", "kid", "prdc", "control"], features="random", count=150,
                     split="train", latents=70, cache=False, ranks=ranks)  # fmt: skip
    return {score.metric: [value or 0.0 for value in (score.value, score.low, score.high, score.floor)] for score in found}


def draw(model: Path, out: Path, ranks=distributed.ALONE) -> None:
    """150 faces as PNGs."""
    generator, order = load_generator(model), Order(150, 7, {}, balance="uniform")
    if ranks.leads:
        write_dataset(generator, out, order, model="tiny", draw=drawing(partial(order.draw, generator), ranks))
        ranks.tell(None)
    else:
        help_drawing(partial(order.draw, generator), ranks)


def gone_back(path: Path, store, ranks=distributed.ALONE) -> dict[str, float]:
    """A whole run of 64 images whose supervisor finds it collapsed at 40: where it ends, after how many rollbacks, with what weights."""
    if ranks.leads:
        begun = open_session(path, tiny_recipe("balance.mode=on", "train.images=64", "sample.every_kimg=0"), store, device=CPU, ranks=ranks,
                             say=lambda message: None)  # fmt: skip
        loop = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None, say=lambda message: None)
        consider, state = loop.supervisor.consider, begun.state

        def collapse(values, knobs, images):
            if state.nimg == 40 and state.rollbacks == 0:
                raise Collapsed("planted")
            consider(values, knobs, images)

        loop.supervisor.consider = collapse
        loop.train()
    else:
        follower = following.follow(store, smaller=(), device=CPU, ranks=ranks)
        follower.train()
        state = follower.state
    return {"nimg": state.nimg, "rollbacks": state.rollbacks, "weights": following.checksum(state)}


def stopped(path: Path, store, stop_at: int | None, ranks=distributed.ALONE) -> str:
    """A run of 64 images, begun or gone on with, until `stop_at` or its end: the hash of all tensors of its state."""
    if ranks.leads:
        recipe = tiny_recipe("train.images=64", "sample.every_kimg=0", "augment.p=0.5", "model.discriminator.dropout=0.2")
        begun = open_session(path, recipe, store, device=CPU, ranks=ranks, say=lambda message: None)
        loop = begun.loop(on_tick=lambda nimg, values: None, on_snapshot=lambda path, nimg: None, say=lambda message: None)
        if stop_at is not None:
            loop.on_tick = lambda nimg, values: setattr(loop, "should_stop", nimg >= stop_at)
        state = begun.state
        loop.train()
        assert state.nimg == (stop_at or 64)
    else:
        follower = following.follow(store, smaller=(), device=CPU, ranks=ranks)
        follower.train()
        state = follower.state
    return digest(state.tensors())


def digest(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for _, tensor in sorted(tensors.items()))).hexdigest()


def main() -> None:
    torch.set_num_threads(1)
    store, large, model, out = open_store(Path(sys.argv[1])), open_store(Path(sys.argv[2])), Path(sys.argv[3]), Path(sys.argv[4])
    with distributed.joined(CPU) as ranks:
        found = {name: steps(name, store, ranks=ranks) for name in RECIPES}
        found["gone back"] = gone_back(out.with_name("run"), store, ranks)
        found["whole"] = stopped(out.with_name("whole"), store, None, ranks)
        found["in parts"] = [stopped(out.with_name("parts"), store, stop_at, ranks) for stop_at in (24, None)]
        found["scores"] = scores(model, large, ranks)
        draw(model, out.with_name("faces"), ranks)
        out.with_suffix(f".{os.environ['RANK']}").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
