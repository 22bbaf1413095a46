"""A run directory as training leaves it, with plausible numbers and drawn faces: for tests, and for a look at a report.

python tests/reports/fake_run.py FOLDER [SEED]
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROWS = [{"Male": 0, "Smiling": 0}, {"Male": 0, "Smiling": 1}, {"Male": 1, "Smiling": 0}, {"Male": 1, "Smiling": 1}]
CELL, PADDING, COLUMNS = 64, 2, 8
START_S = 1_750_000_000.0


def face(person: int, male: int, smiling: int, sharpness: float, size: int = CELL) -> np.ndarray:
    """A drawn face [size, size, 3] uint8; with sharpness 0 it is noise."""
    rng = np.random.default_rng(person)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    skin, hair, ground = rng.uniform([0.6, 0.4, 0.3], [1, 0.8, 0.65]), rng.uniform(0.05, 0.5, 3), rng.uniform(0.2, 0.9, 3)
    wide, tall = 0.27 + 0.03 * male + rng.uniform(-0.02, 0.02), 0.37
    picture = np.broadcast_to(ground, (size, size, 3)).copy()
    picture[(x / (wide + 0.07)) ** 2 + ((y + 0.06) / (tall + 0.02 + 0.1 * (1 - male))) ** 2 < 1] = hair
    picture[(x / wide) ** 2 + ((y - 0.04) / tall) ** 2 < 1] = skin
    for side in (-0.11, 0.11):
        picture[((x - side) / 0.05) ** 2 + ((y + 0.05) / 0.03) ** 2 < 1] = 0.95
        picture[((x - side) / 0.02) ** 2 + ((y + 0.05) / 0.025) ** 2 < 1] = 0.1
    curve = 0.2 - (1.6 if smiling else -0.2) * x**2 * (1 if smiling else -1)
    picture[(np.abs(y - curve) < 0.018 + 0.01 * smiling) & (np.abs(x) < 0.12)] = (0.7, 0.2, 0.25)
    noise = np.random.default_rng(person + 7).uniform(0, 1, picture.shape)
    return (255 * np.clip(sharpness * picture + (1 - sharpness) * noise + rng.normal(0, 0.015, picture.shape), 0, 1)).astype(np.uint8)


def grid(sharpness: float) -> np.ndarray:
    step = CELL + PADDING
    out = np.zeros((len(ROWS) * step + PADDING, COLUMNS * step + PADDING, 3), np.uint8)
    for r, row in enumerate(ROWS):
        for c in range(COLUMNS):
            top, left = PADDING + r * step, PADDING + c * step
            out[top : top + CELL, left : left + CELL] = face(c, row["Male"], row["Smiling"], sharpness)
    return out


def write_jsonl(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def scalars(total: int, tick: int, seed: int) -> list[dict]:
    rng, out = np.random.default_rng(seed), []
    wave = rng.uniform(0.8, 1.2)
    for i, nimg in enumerate(range(tick, total + 1, tick)):
        t = nimg / total
        gap = 0.5 + 2.2 * math.exp(-4 * t) + 0.25 * math.sin(9 * t * wave) + rng.normal(0, 0.12)
        out.append(
            {
                "nimg": nimg,
                "time_s": START_S + 30 + i * 11.5 + (7230 if t > 0.5 else 0),
                "loss_d": 1.55 - 0.5 * gap / 2 + rng.normal(0, 0.06),
                "loss_g": 0.4 + 0.35 * gap + rng.normal(0, 0.12),
                "accuracy_real": 0.62 + 0.09 * gap + rng.normal(0, 0.03),
                "accuracy_fake": min(0.65 + 0.1 * gap + rng.normal(0, 0.03), 1),
                "fooling_rate": max(0.31 - 0.07 * gap + rng.normal(0, 0.03), 0),
                "logit_gap": gap,
                "sign_real": 0.2 + 0.15 * gap + rng.normal(0, 0.04),
                "grad_norm_d": math.exp(0.3 * gap + rng.normal(0, 0.3)),
                "grad_norm_g": math.exp(-1 + 0.4 * gap + rng.normal(0, 0.35)),
                "weight_change_d": 3e-3 * math.exp(-t + rng.normal(0, 0.1)),
                "weight_change_g": 2e-3 * math.exp(-1.4 * t + rng.normal(0, 0.1)),
                "lr_d": 2e-4 if t < 0.7 else 1e-4,
                "lr_g": 2e-4,
                "augment_p": min(0.3, 0.5 * t),
                "r1_penalty": 0.3 + 0.1 * rng.random(),
                "r1_gamma": 0.2 + 0.9 * (1 + math.cos(math.pi * t)),
                "ema_half_life_kimg": min(10, 50 * t),
                "d_steps": 1,
                "g_steps": 1,
                "images_per_s": 178 + rng.normal(0, 5) - (60 if 0.3 < t < 0.33 else 0),
                "memory_mb": 812.0,
                "progress": t,
            }
        )
    return out


def score_lines(total: int, every: int, seed: int, store: str = "5e1f" * 16, count: int = 2000) -> list[dict]:
    rng, out = np.random.default_rng(seed + 99), []
    protocol = {
        "store": store,
        "data": "celeba64",
        "crop": "center178",
        "size": 64,
        "split": "val",
        "n_real": count,
        "n_fake": count,
        "features": "face",
        "weights_sha256": "ab12" * 16,
        "model": "run",
        "ema": True,
        "truncation": 1.0,
        "seed": 0,
        "conditions": "as the reals",
        "mien": "0.1.0",
    }

    def line(nimg: int, metric: str, value: float, half: float, floor: float | None, **details: object) -> dict:
        return {
            "nimg": nimg,
            "time_s": START_S + nimg / 170,
            "metric": metric,
            "value": value,
            "low": value - half,
            "high": value + half,
            "floor": floor,
            "protocol": {**protocol, "nimg": nimg},
            "details": {"interval": "95 %, jackknife", **details},
        }

    for nimg in range(every, total + 1, every):
        t, wobble = nimg / total, rng.uniform(0.9, 1.1)
        distance = 11 + 60 * math.exp(-4 * t) + rng.normal(0, 0.7)
        parts = {
            name: {
                "n_real": n,
                "n_fake": n,
                "value": distance * (1 + 200 / n),
                "low": distance * (1 + 200 / n) - 2,
                "high": distance * (1 + 200 / n) + 2,
                "floor": 2.9 * (1 + 400 / n),
            }
            for name, n in (("Male=0,Smiling=1", 640), ("Male=0,Smiling=0", 540), ("Male=1,Smiling=0", 460))
        }
        out += [
            line(nimg, "fd-face", distance, 0.8, 2.9, by_combination=parts),
            line(nimg, "kid-face", (0.012 + 0.08 * math.exp(-4 * t)) * wobble, 0.002, 1e-4),
            line(nimg, "precision", 0.7 * wobble - 0.3 * math.exp(-5 * t), 0.02, 0.81),
            line(nimg, "recall", 0.42 * wobble - 0.38 * math.exp(-3 * t), 0.02, 0.79),
        ]
    return [*out, line(total, "memorization", 0.011, 0.004, 0.01, verdict="no sign of copying"), *control_lines(total, line)]


MOVED = ["Male", "Smiling", "Eyeglasses", "Young", "Wearing_Lipstick", "No_Beard", "Blond_Hair", "Attractive"]
JUDGED = [*MOVED, "Bald", "Bangs", "Big_Nose", "Chubby", "Goatee", "Mustache"]
STILL = [0.0] * 6
EFFECT = [[0.93, -0.06, 0.07, -0.19, -0.81, -0.52, -0.19, -0.2, *STILL], [0.02, 0.88, -0.01, 0.03, 0.08, 0.02, 0.01, 0.1, *STILL]]
EXPLAINED = [[0.95, -0.02, 0.02, -0.08, -0.43, -0.31, -0.1, -0.15, *STILL], [0.0, 0.86, 0.0, 0.0, 0.02, 0.01, 0.01, 0.1, *STILL]]


def control_lines(nimg: int, line: Callable[..., dict]) -> list[dict]:
    leakage = [[round(e - x, 4) for e, x in zip(*rows)] for rows in zip(EFFECT, EXPLAINED)]
    leak = {
        "asked": "Male",
        "judged": "Wearing_Lipstick",
        "leakage": -0.38,
        "low": -0.41,
        "high": -0.35,
        "effect": -0.81,
        "explained": -0.43,
    }
    each = {
        name: {"accuracy": a, "low": a - 0.01, "high": a + 0.01, "asked_1": a + 0.01, "asked_0": a - 0.01, "reals": r,
               "confusion": {"asked 0": [960, 40], "asked 1": [40, 960]}}
        for name, a, r in (("Male", 0.964, 0.978), ("Smiling", 0.918, 0.924))
    }
    names = [f"Male={m},Smiling={s}" for m in (0, 1) for s in (0, 1)]
    combinations = {name: {other: 0.88 if name == other else 0.04 for other in names} for name in names}
    sweep = {
        "Male": [[0.0, 0.03], [0.25, 0.2], [0.5, 0.52], [0.75, 0.83], [1.0, 0.96]],
        "Smiling": [[0.0, 0.07], [0.25, 0.3], [0.5, 0.55], [0.75, 0.8], [1.0, 0.91]],
    }
    return [
        line(
            nimg,
            "control",
            0.941,
            0.005,
            0.951,
            attributes=list(each),
            accuracy={name: row["accuracy"] for name, row in each.items()},
            ceiling={name: row["reals"] for name, row in each.items()},
            per_attribute=each,
            combinations=combinations,
            sweep=sweep,
            latents=1000,
            rare_combinations=[
                {"combination": "Male=1,Smiling=1", "share_of_reals": 0.006, "all_right": 0.71, "each": {"Male": 0.8, "Smiling": 0.9}}
            ],
        ),
        line(
            nimg,
            "leakage",
            0.052,
            0.004,
            0.006,
            attributes=["Male", "Smiling"],
            judged=JUDGED,
            leakage=leakage,
            standard_error=[[0.01] * len(JUDGED)] * 2,
            effect=EFFECT,
            explained_by_data=EXPLAINED,
            leaks=[leak],
        ),
        line(nimg, "identity", 0.36, 0.02, None, per_attribute={"Male": 0.51, "Smiling": 0.21}),
    ]


def events(total: int) -> list[dict]:
    def at(share: float, kind: str, message: str, **more: object) -> dict:
        return {
            "nimg": int(total * share),
            "time_s": START_S + share * total / 170 + (7200 if share > 0.5 else 0),
            "kind": kind,
            "message": message,
            **more,
        }

    return [
        at(0, "start", "Training begins: 27,040 images at 64 px, 2 attributes."),
        at(0.1, "checkpoint", "Saved checkpoint."),
        at(0.1, "snapshot", "Saved snapshot."),
        at(0.22, "diagnosis", "D overpowers G: D calls 96 % of fakes fake and G fools it with 2 %.", diagnosis="D overpowers G"),
        at(0.25, "diagnosis", "D overpowers G no longer.", diagnosis="D overpowers G", over=True),
        at(0.22, "decision", "Two G updates for each D update until the fooling rate is back above 10 %.", g_steps=2),
        at(0.31, "rollback", "Gradients of D were not finite; back to the checkpoint at 0.30 with lr_d halved.", to_nimg=int(0.3 * total)),
        at(0.5, "stop", "Stopped by Ctrl-C; the same command goes on."),
        {**at(0.5, "resume", "Resumed from the checkpoint."), "time_s": START_S + 0.5 * total / 170 + 7200},
        at(0.7, "control", "lr_d 0.0002 -> 0.0001, at once.", lr_d=1e-4),
        at(1, "finish", "Finished."),
    ]


def layer(name: str, kind: str, output: list[int], parameters: int, macs: int) -> dict:
    return {"name": name, "kind": kind, "output": output, "parameters": parameters, "macs": macs}


def architecture(size: int = 64, width: int = 736) -> dict:
    g = [layer("stem", "Linear", [width, 4, 4], 102 * width * 16, 102 * width * 16)]
    d, channels, side = [], width, 4
    while side < size // 2:
        channels, side, before = channels // 2, side * 2, channels
        g += [
            layer(
                f"block{side}", "ConvTranspose2d", [channels, side, side], 16 * before * channels, 16 * before * channels * (side // 2) ** 2
            ),
            layer(f"block{side}.norm", "BatchNorm2d", [channels, side, side], 2 * channels, 0),
            layer(f"block{side}.act", "ReLU", [channels, side, side], 0, 0),
        ]
        d.insert(
            0,
            layer(
                f"block{side // 2}",
                "Conv2d",
                [before, side // 2, side // 2],
                16 * before * channels,
                16 * before * channels * (side // 2) ** 2,
            ),
        )
    g.append(layer("head", "ConvTranspose2d", [3, size, size], 48 * channels, 48 * channels * side**2))
    d.insert(0, layer(f"block{side}", "Conv2d", [channels, side, side], 48 * channels, 48 * channels * side**2))
    d += [layer("pool", "SumPool", [width], 0, 0), layer("head", "Linear", [1], width + 1, width)]
    return {"generator": g, "discriminator": d}


def config(seed: int, **changes: object) -> dict:
    settings = {
        "data": {"attributes": ["Male", "Smiling"], "flip": True},
        "model": {"family": "dcgan", "generator": {"width": 736, "z_dim": 100}, "discriminator": {"width": 512}},
        "loss": {"name": "hinge"},
        "optimizer": {"lr_g": 2e-4, "lr_d": 2e-4, "beta1": 0.0},
        "augment": {"ops": ["color", "translation"], "p": 0.3},
        "train": {"batch": 64, "images": 600_000, "seed": seed},
    }
    origin = {
        "model.generator.width": "preset projection",
        "loss.name": "preset projection",
        "optimizer.beta1": "preset projection",
        "augment.p": "preset watched",
        "augment.ops": "preset watched",
        "train.images": "command line",
        "train.seed": "command line",
    }
    for key, value in changes.items():
        section, name = key.split("__")
        settings[section][name] = value
        origin[f"{section}.{name}"] = "command line"
    provenance = {key: origin.get(key, "default") for key in _flat(settings)}
    store = {
        "path": "data/celeba64",
        "digest": "5e1f" * 16,
        "size": 64,
        "crop": "center178",
        "attributes": ["Male", "Smiling"],
        "splits": {"train": 21940, "val": 2600, "test": 2500},
    }
    return {
        "format": "mien-run/1",
        "mien": "0.1.0",
        "preset": "watched",
        "command": ["mien", "train", "data/celeba64", "--preset", "watched", "--images", "600k", "--seed", str(seed)],
        "config": settings,
        "provenance": provenance,
        "store": store,
        "machine": {"system": "Linux 6.1 x86_64", "python": "3.11.2", "torch": "2.15.0", "device": "cpu", "cpu_cores": 2, "memory_gb": 7.8},
    }


def _flat(tree: dict, prefix: str = "") -> list[str]:
    return [
        key for name, value in tree.items() for key in (_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name])
    ]


def make_run(
    path: Path, *, seed: int = 0, total: int = 600_000, tick: int = 2_000, samples: int = 16, pictures: bool = True, **changes: object
) -> Path:
    """Write a finished run of `total` images to `path` and return it. `changes`: settings as section__name=value."""
    (path / "samples").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config(seed, **changes)))
    (path / "architecture.json").write_text(json.dumps(architecture()))
    (path / "status.json").write_text(
        json.dumps({"state": "finished", "pid": 1, "nimg": total, "total_nimg": total, "images_per_s": 178.2, "updated_s": time.time()})
    )
    write_jsonl(path / "scalars.jsonl", scalars(total, tick, seed))
    write_jsonl(path / "events.jsonl", events(total))
    write_jsonl(path / "metrics.jsonl", score_lines(total, total // 10, seed))
    if pictures:
        rows = [" ".join(f"{name}={value}" for name, value in row.items()) for row in ROWS]
        (path / "samples" / "grid.json").write_text(json.dumps({"rows": rows, "columns": COLUMNS, "cell_px": CELL, "padding_px": PADDING}))
        for i in range(1, samples + 1):
            nimg = total * i // samples // 1000 * 1000
            Image.fromarray(grid(1 - math.exp(-3.5 * i / samples))).save(path / "samples" / f"{nimg // 1000:06d}kimg.png")
        rows = [np.concatenate([face(100 + 10 * r + c, c % 2, r % 2, 0.97) for c in range(10)], axis=1) for r in range(10)]
        Image.fromarray(np.concatenate(rows)).save(path / "samples" / "mosaic.png")
    return path


if __name__ == "__main__":
    make_run(Path(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
