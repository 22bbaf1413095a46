"""Checkpoints (full state) and snapshots (a generator): tensors in safetensors, the rest in JSON, never code.

A checkpoint is a folder that appears whole or not at all: written under a temporary name, every file fsynced, then renamed. Its manifest
holds the sha256 of each file; `newest_valid` names and skips a damaged one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mien.errors import UserError
from mien.models.catalogue import Generator, build_generator

CHECKPOINT_FORMAT = "mien-checkpoint/1"
SNAPSHOT_FORMAT = "mien-generator/1"


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """fsync a file, or a folder's list of names. Windows has no fsync for folders and needs none."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """A safetensors file from tensors anywhere, in any memory format."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    _sync(path)


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    _sync(path)


def _disk_error(error: Exception, where: Path) -> UserError | None:
    """A full disk as a word to the user; None for any other failure (safetensors wraps the system's error in its text)."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or "os error 28" in str(error)
    if not full:
        return None
    free_mb = shutil.disk_usage(where).free / 2**20
    return UserError(f"The disk is full ({free_mb:.0f} MB free) at {where}; older checkpoints are whole. Free some space and go on.")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, *, nimg: int, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> Path:
    """Write `folder`/NNNNNNNNNN (nimg, ten digits), replacing one of the same name. Raises UserError when the disk is full."""
    final = folder / f"{nimg:010d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_tensors(tensors, temporary / "state.safetensors")
        _write_json({"nimg": nimg, **plain}, temporary / "state.json")
        hashes = {name: sha256(temporary / name) for name in ("state.safetensors", "state.json")}
        _write_json({"format": CHECKPOINT_FORMAT, "sha256": hashes}, temporary / "manifest.json")
        _sync(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        word = _disk_error(error, folder)
        if word is None:
            raise
        raise word from error
    return final


def check(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, in a few words; None when it is whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "its manifest is missing or damaged"
    if manifest.get("format") != CHECKPOINT_FORMAT:
        return f"its format is {manifest.get('format')!r}, not {CHECKPOINT_FORMAT}"
    for name, expected in manifest.get("sha256", {}).items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256(path / name) != expected:
            return f"{name} was cut short or altered"
    return None


def newest_valid(checkpoints: Iterable[tuple[int, Path]]) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of `runs.Run.checkpoints()`, and a sentence for each damaged one that is newer."""
    skipped: list[str] = []
    for _, path in sorted(checkpoints, reverse=True):
        wrong = check(path)
        if wrong is None:
            return path, skipped
        skipped.append(f"Checkpoint {path.name} is damaged ({wrong}); skipped.")
    return None, skipped


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors on the CPU, plain data) of a whole checkpoint."""
    return load_file(path / "state.safetensors"), json.loads((path / "state.json").read_text(encoding="utf-8"))


def prune(checkpoints: list[tuple[int, Path]], *, keep: int, keep_every_nimg: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and those that crossed a multiple of `keep_every_nimg` first."""
    kept = {path for _, path in checkpoints[-keep:]}
    if keep_every_nimg:
        before = 0
        for nimg, path in checkpoints:
            if nimg // keep_every_nimg > before // keep_every_nimg:
                kept.add(path)
            before = nimg
    for _, path in checkpoints:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


# --- snapshots --------------------------------------------------------------------------------------------------------


def save_snapshot(stem: Path, net: torch.nn.Module, meta: Mapping[str, Any]) -> Path:
    """Write `stem`.safetensors and `stem`.json (docs/architecture.md, "A snapshot"); the .json comes last and makes it readable."""
    weights, note = stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
    temporary = weights.with_name(f".{weights.name}.tmp")
    try:
        _write_tensors(net.state_dict(), temporary)
        digest = sha256(temporary)
        os.replace(temporary, weights)
        temporary = note.with_name(f".{note.name}.tmp")
        _write_json({"format": SNAPSHOT_FORMAT, **meta, "sha256": digest}, temporary)
        os.replace(temporary, note)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        word = _disk_error(error, stem.parent)
        if word is None:
            raise
        raise word from error
    return weights


def load_snapshot(path: str | Path, device: str | torch.device = "cpu") -> tuple[Generator, dict[str, Any]]:
    """(generator in eval mode, fp32, channels-last; its meta) from a .safetensors path. Raises UserError when it is absent or damaged."""
    weights = Path(path)
    note = weights.with_name(weights.name.removesuffix(".safetensors") + ".json")
    if not weights.is_file() or not note.is_file():
        raise UserError(f"No such snapshot: {path} (a .safetensors file with its .json beside it).")
    try:
        meta = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{note} is not valid JSON; the snapshot is damaged.") from None
    if meta.get("format") != SNAPSHOT_FORMAT:
        raise UserError(f"{note} has format {meta.get('format')!r}; this version of mien reads {SNAPSHOT_FORMAT}.")
    if sha256(weights) != meta.get("sha256"):
        raise UserError(f"{weights} was cut short or altered (its sha256 is not the one in {note.name}).")
    net = build_generator(meta["family"], size=meta["size"], attributes=len(meta["attributes"]), options=meta["options"])
    tensors = load_file(weights)
    net.load_state_dict({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()})
    return net.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False), meta
