"""Does a long run keep its pace and its memory? Trains a recipe for some minutes, as `mien train` does, and looks once in a while.

    python benchmarks/soak.py 20 [--preset seed0-cpu] [--data STORE] [--every 30] [--warm-up 3] [--out soak]
    python benchmarks/soak.py 20 --attach runs/long     # looks at a training that goes on already, and lets it go on

Images/s and resident memory are read from outside the training process, with its open files and threads. A shared machine's own speed
drifts; so at every look the training is stopped for a second and a fixed piece of work is timed in its place: the yardstick. After the
warm-up a line is laid through each; its slope comes with a 95 % interval. Verdict: memory is flat when its slope is below 1 % an hour, or
cannot be told from that; the pace, images for each yardstick of processor time, is flat when 0 lies in the interval, or the drift over the
soak is under 2 %. Short soaks cannot tell a small slope from none, and say so. Writes OUT.json and OUT.png. In a training of its own
everything that a run does falls due every few thousand images: samples, snapshots, checkpoints, the probe. Linux (reads /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from mien.runs import read_json

OFTEN = ("train.tick_kimg=0.1", "sample.every_kimg=2", "train.snapshot_kimg=4", "train.checkpoint_kimg=4", "train.keep_snapshots=2",
         "balance.probe_kimg=2")  # fmt: skip
FLAT_AN_HOUR, FLAT_RATE = 0.01, 0.02


def yardstick(seconds: float = 1.0) -> float:
    """How often a second of this processor's time does a fixed piece of work: a convolution there and back, on one thread."""
    torch.set_num_threads(1)
    x, w = torch.ones(8, 64, 32, 32, requires_grad=True), torch.ones(64, 64, 3, 3, requires_grad=True)
    begun, count = time.process_time(), 0
    while time.process_time() - begun < seconds:
        torch.autograd.grad(torch.conv2d(x, w, padding=1).relu().mean(), (x, w))
        count += 1
    return count / (time.process_time() - begun)


def look(pid: int, run: Path) -> dict[str, float]:
    """What can be seen of a process and its run now, and the machine's speed while the process is stopped."""
    os.kill(pid, signal.SIGSTOP)
    try:
        measured = yardstick()
    finally:
        os.kill(pid, signal.SIGCONT)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "RssAnon", "Threads"))}
    ticks = os.sysconf("SC_CLK_TCK")
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    status = read_json(run / "status.json") or {}
    return {
        "time_s": time.time(),
        "nimg": status.get("nimg", 0),
        "updated_s": status.get("updated_s", 0.0),  # when it had seen so many
        "resident_mb": int(fields["VmRSS"]) / 1e3,
        "anonymous_mb": int(fields["RssAnon"]) / 1e3,
        "threads": int(fields["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "cpu_s": (int(user) + int(system)) / ticks,
        "yardsticks_per_cpu_s": measured,
    }


def slope(hours: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Change an hour as a share of the mean, with a 95 % interval, and the mean."""
    fit = stats.linregress(hours, values)
    half = stats.t.ppf(0.975, len(hours) - 2) * fit.stderr
    mean = float(values.mean())
    return {"mean": mean, "slope_share_an_hour": fit.slope / mean, "low": (fit.slope - half) / mean, "high": (fit.slope + half) / mean}


def paces(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Between each look and the next: images a second, and the other speeds."""
    by_clock = np.diff(columns["nimg"]) / np.diff(columns["updated_s"])  # from tick to tick, which looks fall between
    by_processor = by_clock / (np.diff(columns["cpu_s"]) / np.diff(columns["time_s"]))
    speed = columns["yardsticks_per_cpu_s"]
    machine = (speed[1:] + speed[:-1]) / 2
    return {
        "images_per_s": by_clock,
        "images_per_cpu_s": by_processor,
        "yardsticks_per_cpu_s": machine,
        "images_per_yardstick": by_processor / machine,
    }


def judge(rows: list[dict[str, float]], warm_up_min: float) -> dict[str, Any]:
    """Slopes after the warm-up, and what they say."""
    times = np.array([row["time_s"] for row in rows])
    hours = (times - times[0]) / 3600
    kept = hours >= warm_up_min / 60
    if kept.sum() < 4:
        raise SystemExit("Too few looks after the warm-up: soak longer, or look more often (--every).")
    columns = {name: np.array([row[name] for row in rows])[kept] for name in rows[0]}
    found: dict[str, Any] = {name: slope(hours[kept], columns[name]) for name in ("resident_mb", "anonymous_mb")}
    middles = (hours[kept][1:] + hours[kept][:-1]) / 2
    found |= {name: slope(middles, values) for name, values in paces(columns).items()}
    found["files"], found["threads"] = ([min(column), max(column)] for column in ([row[n] for row in rows] for n in ("files", "threads")))
    span_h = float(hours[-1] - hours[kept][0])
    memory, rate = found["anonymous_mb"], found["images_per_yardstick"]
    words = {
        "memory": "growing" if memory["low"] > FLAT_AN_HOUR else "flat" if memory["high"] < FLAT_AN_HOUR else "too short to tell",
        "pace": "flat" if rate["low"] <= 0 <= rate["high"] or abs(rate["slope_share_an_hour"]) * span_h < FLAT_RATE else "drifting",
        "files": "flat" if rows[-1]["files"] <= rows[int(kept.argmax())]["files"] + 2 else "growing",
    }
    return {**found, "minutes_judged": span_h * 60, "verdict": words}


def chart(rows: list[dict[str, float]], found: dict[str, Any], out: Path, warm_up_min: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    minutes = np.array([row["time_s"] - rows[0]["time_s"] for row in rows]) / 60
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5.5), sharex=True, layout="constrained")
    for name, label in (("resident_mb", "resident"), ("anonymous_mb", "its own, without mapped files")):
        top.plot(minutes, [row[name] for row in rows], marker=".", label=label)
    top.set(ylabel="memory, MB", ylim=(0, None), title=f"memory: {found['verdict']['memory']}")
    middles, columns = (minutes[1:] + minutes[:-1]) / 2, {name: np.array([row[name] for row in rows]) for name in rows[0]}
    for name, values in paces(columns).items():
        bottom.plot(middles, values / values.mean(), marker=".", label=f"{name.replace('_', ' ')}, mean {values.mean():.3g}")
    bottom.set(ylabel="pace, as a share of its mean", xlabel="minutes", ylim=(0, None), title=f"pace: {found['verdict']['pace']}")
    for axes in (top, bottom):
        axes.axvspan(0, warm_up_min, color="0.92", zorder=0)
        axes.legend(frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out.with_suffix(".png"), dpi=120)


def soak(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Train in a process of its own, and look."""
    mien, data, run = [sys.executable, "-m", "mien"], options.data, folder / "run"
    if data is None:
        data = folder / "faces"
        subprocess.run([*mien, "data", "synth", "--out", str(data), "--count", "2048"], check=True)
    settings = [word for setting in (*OFTEN, *options.set) for word in ("--set", setting)]
    command = [*mien, "train", str(data), "--preset", options.preset, "--run", str(run), "--images", "1000M", *settings]
    with open(folder / "log", "w") as log:
        training = subprocess.Popen(command, stderr=log)
    try:
        while not (read_json(run / "status.json") or {}).get("nimg"):
            if training.poll() is not None:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.5)
        return watch(training.pid, run, options)
    finally:
        training.send_signal(signal.SIGTERM)
        training.wait()


def watch(pid: int, run: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    begun, rows = time.monotonic(), []
    while time.monotonic() - begun < options.minutes * 60:
        rows.append(look(pid, run))
        time.sleep(options.every)
    return [*rows, look(pid, run)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--preset", default="seed0-cpu")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--attach", type=Path, metavar="RUN", help="look at this run, which is being trained, instead of training")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two looks")
    parser.add_argument("--warm-up", type=float, default=3.0, help="minutes that do not count")
    parser.add_argument("--out", type=Path, default=Path("soak"))
    options = parser.parse_args()
    if options.attach:
        rows = watch(int((read_json(options.attach / "status.json") or {})["pid"]), options.attach, options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = soak(options, Path(folder))
    found = judge(rows, options.warm_up)
    record = {"preset": options.preset, "attached": bool(options.attach), "minutes": options.minutes, **found, "rows": rows}
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=1))
    chart(rows, found, options.out, options.warm_up)
    for name in ("resident_mb", "anonymous_mb", "images_per_s", "images_per_cpu_s", "yardsticks_per_cpu_s", "images_per_yardstick"):
        each = found[name]
        interval = f"({each['low']:+.2%} to {each['high']:+.2%})"
        print(f"{name:20} mean {each['mean']:9.1f}   {each['slope_share_an_hour']:+8.2%} an hour {interval}")
    print(f"files {found['files'][0]:.0f} to {found['files'][1]:.0f}, threads {found['threads'][0]:.0f} to {found['threads'][1]:.0f}")
    print("verdict: " + ", ".join(f"{name} {word}" for name, word in found["verdict"].items()))


if __name__ == "__main__":
    main()
