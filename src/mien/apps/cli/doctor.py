"""`mien doctor`: what this machine has, what is missing, and what a recipe would cost here."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mien import __version__
from mien.apps.cli.console import duration, print_json, print_table, say
from mien.errors import UserError

if TYPE_CHECKING:
    from mien.config import Recipe
    from mien.data.store import FaceStore

STEPS = 3  # measured, after one that warms up
MEASURE_S = 30.0  # no further step is begun after this long
EXTRA = re.compile(r"^([A-Za-z0-9._-]+)[^;]*(?:;.*extra\s*==\s*['\"]([^'\"]+)['\"])?")


def doctor(
    model: Annotated[str | None, typer.Option(metavar="PRESET", help="Show a recipe's networks and what training it costs here.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The store it would train on; without one, noise of --size.")] = None,
    size: Annotated[int, typer.Option(metavar="PX", help="Size of the images when no store is given.")] = 64,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda or mps; by default a GPU when there is one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine has and lacks, and what a recipe would cost on it.

    mien doctor --model seed0 --size 64

    Time and memory come from a few real training steps on this machine: estimates, made before anything is begun.
    """
    if model is None and (set_ or data):
        raise UserError("--data and --set belong to a recipe: name it with --model PRESET.")
    found: dict[str, Any] = {"machine": machine(), "packages": packages()}
    if model is not None:
        from mien.config import resolve
        from mien.data.store import open_store
        from mien.engine import memory

        recipe = resolve(model, set_ or [])
        names = recipe.config.data.attributes
        noise = memory.noise_store(["Male", "Smiling"] if names is None else names, size_px=size, count=recipe.config.train.batch)
        found |= examine(recipe, open_store(data) if data else noise, device)
    if json:
        print_json(found)
        return
    _show_machine(found)
    if model is not None:
        _show_networks(found["networks"])
        _show_cost(found["cost"])


# --- the machine ------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Versions, cores, memory, disk and GPUs. What the system does not say is None."""
    import shutil

    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        gpus.append({"name": properties.name, "memory_gb": round(total / 2**30, 1), "free_gb": round(free / 2**30, 1)})
    return {
        "mien": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores,
        "memory_gb": _memory_gb(),
        "disk_free_gb": round(shutil.disk_usage(".").free / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "mps": torch.backends.mps.is_available(),
    }


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def packages() -> list[dict[str, Any]]:
    """Each package that mien can use: name, extra (None: always needed), version (None: missing), install (how to get a missing one)."""
    import importlib.metadata

    rows = []
    for requirement in _requirements():
        match = EXTRA.match(requirement)
        name, extra = (match.group(1), match.group(2)) if match else (requirement, None)
        if extra == "dev":
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        install = None if version else f"pip install 'mien[{extra}]'" if extra else f"pip install {name}"
        rows.append({"name": name, "extra": extra, "version": version, "install": install})
    return rows


def _requirements() -> list[str]:
    import importlib.metadata

    try:
        return importlib.metadata.requires("mien") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source folder, not installed
        return ["torch", "torchvision", "numpy", "pillow", "safetensors", "pydantic", "typer", "rich"]


def _show_machine(found: dict[str, Any]) -> None:
    m = found["machine"]
    memory = f"{m['memory_gb']} GB of memory" if m["memory_gb"] else "memory unknown"
    say(f"mien {m['mien']}, Python {m['python']}, {m['platform']}")
    say(f"{m['cores']} cores ({m['torch_threads']} used by torch), {memory}, {m['disk_free_gb']} GB free on this disk")
    for gpu in m["gpus"]:
        say(f"GPU: {gpu['name']}, {gpu['memory_gb']} GB, {gpu['free_gb']} GB free")
    if not m["gpus"]:
        why = "this torch is built without CUDA" if m["cuda"] is None else "torch sees no CUDA device"
        say("GPU: Apple's, through mps" if m["mps"] else f"GPU: none ({why}); training goes on the CPU")
    say()
    cells = [[row["name"], row["version"] or "missing", row["extra"], row["install"] or ""] for row in found["packages"]]
    print_table(["package", "version", "extra", "to get it"], cells)


# --- a recipe's networks and cost -------------------------------------------------------------------------------------


def examine(recipe: Recipe, store: FaceStore, device_name: str | None) -> dict[str, Any]:
    """{"networks": architecture.json's tables, "cost": what training the recipe takes here, measured on a few steps}."""
    from mien.engine import build, session

    device, config = build.choose_device(device_name), recipe.config
    names = build.attribute_names(config, store)
    try:
        state = build.build_state(config, size=store.size, attributes=len(names), device=device)
        networks = build.describe_architecture(state, size=store.size, attributes=len(names), device=device)
        return {"networks": networks, "cost": _measure(recipe, store, device, state)}
    except (RuntimeError, MemoryError) as error:
        if not session.is_out_of_memory(error):
            raise
        state = None  # type: ignore[assignment]  # its memory must go before anything smaller is tried
    raise session.out_of_memory(recipe, store, device)


def _measure(recipe: Recipe, store: FaceStore, device: Any, state: Any) -> dict[str, Any]:
    import torch

    from mien.engine import build, memory
    from mien.engine.schedules import knobs_at
    from mien.engine.signals import peak_memory_mb
    from mien.engine.step import train_step
    from mien.sections import Growth

    config = recipe.config
    at_last = config.model_copy(update={"growth": Growth()})  # the size that costs the most
    task = build.build_task(at_last, store, device)
    foreseen = memory.forecast(task.config, store, device=device).memory
    times_s: list[float] = []
    begun = time.monotonic()
    while len(times_s) <= STEPS and (len(times_s) < 2 or time.monotonic() - begun < MEASURE_S):
        start = time.perf_counter()
        train_step(state, task, knobs_at(task.config, state.nimg))
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()
        times_s.append(time.perf_counter() - start)
    measured = sorted(times_s[1:])  # the first step also sets things up
    images_per_s = config.train.batch * config.balance.d_steps / measured[len(measured) // 2]
    return {
        "device": str(device),
        "batch": config.train.batch,
        "images": config.train.images,
        "measured_steps": len(measured),
        "images_per_s": images_per_s,
        "hours": config.train.images / images_per_s / 3600,
        "memory_mb": round(peak_memory_mb(device)),
        "memory_predicted": foreseen.plain(),
    }


def _show_networks(networks: dict[str, list[dict[str, Any]]]) -> None:
    for role, rows in networks.items():
        parameters, macs = (sum(row[key] for row in rows) for key in ("parameters", "macs"))
        say(f"\n{role.capitalize()}: {parameters:,} parameters, {_si(macs)} multiply-adds an image")
        cells = [[row["name"], row["kind"], " x ".join(map(str, row["output"])), row["parameters"], row["macs"]] for row in rows]
        print_table(["layer", "kind", "output", "parameters", "multiply-adds"], cells)


def _show_cost(cost: dict[str, Any]) -> None:
    say(f"\nTraining it here, estimated from {cost['measured_steps']} measured steps of {cost['batch']} images on {cost['device']}:")
    say(f"  {cost['images_per_s']:,.0f} images/s, so {duration(cost['hours'] * 3600)} for {cost['images']:,} images")
    say(f"  {cost['memory_mb'] / 1024:.1f} GB of memory at the peak{' (of the whole process)' if cost['device'] == 'cpu' else ''}; "
        f"{cost['memory_predicted']['total_mb'] / 1000:.1f} GB were predicted")


def _si(value: float) -> str:
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g} {suffix}"
    return f"{value:g}"
