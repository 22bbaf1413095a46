"""Does a long run keep its pace and its memory? Trains a recipe for some minutes, as `mien train` does, and looks once in a while.

    python benchmarks/soak.py 20 [--preset seed0-cpu] [--data STORE] [--every 60] [--warm-up 3] [--out soak]
    python benchmarks/soak.py 20 --attach runs/long    # a training that goes on already, and is let go on

Images/s and resident memory are read from outside the training process, with its open files and threads. After the warm-up a line is
laid through each; its slope comes with a 95 % interval. Memory is flat when its slope is below 1 % an hour, or cannot be told from that.
A shared machine's own speed drifts, so a slope of images/s says little about a program. The pace is judged otherwise: in the end the same
training is begun anew, and the old process and the new one run by turns, the other stopped. It is slowing when old / new (images for the
processor time, geometric mean of the turns) is below .98, and 1 above its interval; else flat. Short soaks cannot tell a small slope of
memory from none, and say so. Writes OUT.json and OUT.png. In a training of its own everything that a run does falls due every few
thousand images: samples, snapshots, checkpoints, the probe. Linux (reads /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mien.runs import read_json

OFTEN = ("train.tick_kimg=0.1", "sample.every_kimg=2", "train.snapshot_kimg=4", "train.checkpoint_kimg=4", "train.keep_snapshots=2",
         "balance.probe_kimg=2")  # fmt: skip
FLAT_AN_HOUR, FLAT_RATE = 0.01, 0.02


def look(pid: int, run: Path) -> dict[str, float]:
    """What can be seen of a process and its run now."""
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
    }


def slope(hours: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Change an hour as a share of the mean, with a 95 % interval, and the mean."""
    fit = stats.linregress(hours, values)
    half = stats.t.ppf(0.975, len(hours) - 2) * fit.stderr
    mean = float(values.mean())
    return {"mean": mean, "slope_share_an_hour": fit.slope / mean, "low": (fit.slope - half) / mean, "high": (fit.slope + half) / mean}


def paces(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Between each look and the next: images a second by the clock, from tick to tick, and images a second of processor time."""
    by_clock = np.diff(columns["nimg"]) / np.diff(columns["updated_s"])
    return {"images_per_s": by_clock, "images_per_cpu_s": by_clock / (np.diff(columns["cpu_s"]) / np.diff(columns["time_s"]))}


def by_turns(old: int, old_run: Path, options: argparse.Namespace) -> list[float]:
    """Pace of the old process over that of a new one of the same training, turn by turn."""
    command = read_json(old_run / "config.json")["command"]  # type: ignore[index]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = [str(run) if before == "--run" else word for before, word in zip(command, command[1:])]
        os.kill(old, signal.SIGSTOP)  # until the new one has warmed up
        new = subprocess.Popen([sys.executable, "-m", "mien", *words], stderr=subprocess.DEVNULL)
        try:
            while new.poll() is None and (read_json(run / "status.json") or {}).get("nimg", 0) < options.warm_images:
                time.sleep(0.5)
            if new.poll() is not None:
                raise SystemExit(f"The new training ended by itself: mien {shlex.join(words)}")
            os.kill(new.pid, signal.SIGSTOP)
            found = []
            for _ in range(options.turns):
                rates = [turn(pid, path, options.turn_s) for pid, path in ((old, old_run), (new.pid, run))]
                found.append(rates[0] / rates[1])
            return found
        finally:
            new.kill()
            new.wait()
            os.kill(old, signal.SIGCONT)


def turn(pid: int, run: Path, seconds: float) -> float:
    """Images for a second of processor time of a process that is stopped before and after, from its first tick to its last."""
    ticks = []
    os.kill(pid, signal.SIGCONT)
    begun, seen = time.monotonic(), look(pid, run)["nimg"]
    while time.monotonic() - begun < seconds:
        time.sleep(0.05)
        now = look(pid, run)
        if now["nimg"] != seen:
            seen = now["nimg"]
            ticks.append(now)
    os.kill(pid, signal.SIGSTOP)
    if len(ticks) < 3:
        raise SystemExit(f"Only {len(ticks)} ticks in a turn of {seconds:g} s: train with a shorter train.tick_kimg, or give longer turns.")
    return (ticks[-1]["nimg"] - ticks[0]["nimg"]) / (ticks[-1]["cpu_s"] - ticks[0]["cpu_s"])


def compare(ratios: list[float]) -> dict[str, float]:
    """Geometric mean of old / new and its 95 % interval."""
    logs = np.log(ratios)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    mean = logs.mean()
    return {"mean": float(np.exp(mean)), "low": float(np.exp(mean - half)), "high": float(np.exp(mean + half))}


def judge(rows: list[dict[str, float]], ratios: list[float], warm_up_min: float) -> dict[str, Any]:
    """Slopes after the warm-up, old over new, and what they say."""
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
    memory, pace = found["anonymous_mb"], compare(ratios)
    words = {
        "memory": "growing" if memory["low"] > FLAT_AN_HOUR else "flat" if memory["high"] < FLAT_AN_HOUR else "too short to tell",
        "pace": "slowing" if pace["high"] < 1 and pace["mean"] < 1 - FLAT_RATE else "flat",
        "files": "flat" if rows[-1]["files"] <= rows[int(kept.argmax())]["files"] + 2 else "growing",
    }
    return {**found, "old_over_new": pace, "turns": ratios, "minutes_judged": span_h * 60, "verdict": words}


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


def soak(options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, float]], list[float]]:
    """Train in a process of its own, look, and set a new one beside it."""
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
        return watch(training.pid, run, options), by_turns(training.pid, run, options)
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
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two looks")
    parser.add_argument("--warm-up", type=float, default=3.0, help="minutes that do not count")
    parser.add_argument("--turns", type=int, default=8, help="of the old and the new process, at the end")
    parser.add_argument("--turn-s", type=float, default=20.0, help="seconds of each")
    parser.add_argument("--warm-images", type=int, default=4000, help="what the new process sees before the first turn")
    parser.add_argument("--out", type=Path, default=Path("soak"))
    options = parser.parse_args()
    if options.attach:
        pid = int((read_json(options.attach / "status.json") or {})["pid"])
        rows, ratios = watch(pid, options.attach, options), by_turns(pid, options.attach, options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows, ratios = soak(options, Path(folder))
    found = judge(rows, ratios, options.warm_up)
    record = {"preset": options.preset, "attached": bool(options.attach), "minutes": options.minutes, **found, "rows": rows}
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=1))
    chart(rows, found, options.out, options.warm_up)
    for name in ("resident_mb", "anonymous_mb", "images_per_s", "images_per_cpu_s"):
        each = found[name]
        interval = f"({each['low']:+.2%} to {each['high']:+.2%})"
        print(f"{name:20} mean {each['mean']:9.1f}   {each['slope_share_an_hour']:+8.2%} an hour {interval}")
    pace = found["old_over_new"]
    print(f"old / new pace, {len(ratios)} turns: {pace['mean']:.3f} ({pace['low']:.3f} to {pace['high']:.3f})")
    print(f"files {found['files'][0]:.0f} to {found['files'][1]:.0f}, threads {found['threads'][0]:.0f} to {found['threads'][1]:.0f}")
    print("verdict: " + ", ".join(f"{name} {word}" for name, word in found["verdict"].items()))


if __name__ == "__main__":
    main()
