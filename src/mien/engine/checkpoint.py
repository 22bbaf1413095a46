"""Checkpoints (full state) and snapshots (a generator): tensors in safetensors, the rest in JSON, never code.

A checkpoint is a folder that appears whole or not at all: written under a temporary name, every file fsynced, then renamed. Its manifest
holds the sha256 of each file; `newest_valid` names and skips a damaged one.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from mien.data.store import file_sha256
from mien.errors import UserError
from mien.models.catalogue import Discriminator, Generator, build_discriminator, build_generator
from mien.models.growth import grown_generator
from mien.runs import Run, write_json
from mien.whole import replace

CHECKPOINT_FORMAT = "mien-checkpoint/1"
SNAPSHOT_FORMAT = "mien-generator/1"
CRITIC_FORMAT = "mien-discriminator/1"
FILES = ("state.safetensors", "state.json")  # of a checkpoint, beside its manifest


def _sync(path: Path) -> None:
    """fsync a file, or a folder's list of names. Windows has no fsync for folders and needs none."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs only what is open for writing
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """A safetensors file from tensors anywhere, in any memory format. (The library's own save_file makes it readable to its owner only.)"""
    path.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    _sync(path)


def _disk_error(error: OSError, where: Path) -> UserError | None:
    """A full disk as a word to the user; None for any other failure."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    free_mb = shutil.disk_usage(where).free / 2**20
    return UserError(f"The disk is full ({free_mb:.0f} MB free) at {where}; older checkpoints are whole. Free some space and go on.")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, *, nimg: int, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> Path:
    """Write `folder`/NNNNNNNNNN (nimg, ten digits), replacing one of the same name. Raises UserError when the disk is full.

    One of the same name is set aside before it is deleted, so that a kill costs at most a copy of what is being written.
    """
    final = folder / f"{nimg:010d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_tensors(tensors, temporary / "state.safetensors")
        write_json(temporary / "state.json", {"nimg": nimg, **plain})
        hashes = {name: file_sha256(temporary / name) for name in FILES}
        write_json(temporary / "manifest.json", {"format": CHECKPOINT_FORMAT, "sha256": hashes})
        _sync(temporary)
        aside = folder / f".{final.name}.{os.getpid()}.old.tmp"
        if final.exists():
            os.replace(final, aside)
        os.replace(temporary, final)
        _sync(folder)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
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
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sha256"), dict):
        return "its manifest is damaged"
    if manifest.get("format") != CHECKPOINT_FORMAT:
        return f"its format is {manifest.get('format')!r}, not {CHECKPOINT_FORMAT}"
    for name in FILES:
        if not (path / name).is_file():
            return f"{name} is missing"
        try:
            whole = file_sha256(path / name) == manifest["sha256"].get(name)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if not whole:
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


def newest_healthy(checkpoints: Iterable[tuple[int, Path]]) -> Path | None:
    """The newest whole checkpoint that was not suspected of anything when it was made."""
    for _, path in sorted(checkpoints, reverse=True):
        if is_healthy(path) and check(path) is None:
            return path
    return None


def is_healthy(path: Path) -> bool:
    """What state.json says of it; one that does not say was made when nobody looked."""
    try:
        return bool(json.loads((path / "state.json").read_text(encoding="utf-8")).get("healthy", True))
    except (OSError, ValueError):
        return False


def discard_after(checkpoints: Iterable[tuple[int, Path]], nimg: int) -> None:
    """Delete the checkpoints past `nimg`: those of a way that the run did not go."""
    for at_nimg, path in checkpoints:
        if at_nimg > nimg:
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors on the CPU, plain data) of a whole checkpoint."""
    return load_file(path / "state.safetensors"), json.loads((path / "state.json").read_text(encoding="utf-8"))


def prune(checkpoints: list[tuple[int, Path]], *, keep: int, keep_every_nimg: int | None) -> None:
    """Delete all but the newest `keep` checkpoints, the newest healthy one and those that crossed a multiple of `keep_every_nimg` first."""
    surplus = _surplus(checkpoints, keep, keep_every_nimg)
    healthy = next((path for _, path in reversed(checkpoints) if is_healthy(path)), None) if surplus else None
    for path in surplus:
        if path != healthy:
            shutil.rmtree(path, ignore_errors=True)


def prune_snapshots(run: Run, *, keep: int, keep_every_nimg: int | None) -> None:
    """As `prune`, for snapshots; the best by its score (`Run.best_snapshot`) stays too."""
    best = run.best_snapshot()
    for weights in _surplus(run.snapshots(), keep, keep_every_nimg):
        if weights != best:
            weights.with_suffix(".json").unlink(missing_ok=True)
            weights.unlink(missing_ok=True)  # last: what is still listed after a kill is pruned the next time


def _surplus(files: list[tuple[int, Path]], keep: int, keep_every_nimg: int | None) -> list[Path]:
    """All but the newest `keep` of (nimg, path), oldest first, and those that crossed a multiple of `keep_every_nimg` first."""
    surplus, before = [], 0
    for nimg, path in files[:-keep]:
        if not keep_every_nimg or nimg // keep_every_nimg == before // keep_every_nimg:
            surplus.append(path)
        before = nimg
    return surplus


def sweep(run: Run) -> None:
    """Delete the half-written files that a killed process left. Only for who holds the run's lock.

    A checkpoint that had been set aside for one of the same name, which then did not come, goes back to its place.
    """
    for aside in (run.path / "checkpoints").glob(".*.old.tmp"):
        final = aside.with_name(aside.name.split(".")[1])
        if not final.exists() and check(aside) is None:
            os.replace(aside, final)
    for folder in (run.path, *(run.path / name for name in ("checkpoints", "snapshots", "posthoc", "samples"))):
        for path in folder.glob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


# --- snapshots --------------------------------------------------------------------------------------------------------


def save_snapshot(stem: Path, net: torch.nn.Module, meta: Mapping[str, Any]) -> Path:
    """Write `stem`.safetensors and `stem`.json (docs/architecture.md, "A snapshot"); the .safetensors comes last and makes it seen."""
    weights, note = stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
    new_weights, new_note = (path.with_name(f".{path.name}.tmp") for path in (weights, note))
    try:
        _write_tensors(net.state_dict(), new_weights)
        write_json(new_note, {"format": SNAPSHOT_FORMAT, **meta, "sha256": file_sha256(new_weights)})
        replace(new_note, note)
        replace(new_weights, weights)
        _sync(stem.parent)
    except OSError as error:
        for path in (new_weights, new_note):
            path.unlink(missing_ok=True)
        word = _disk_error(error, stem.parent)
        if word is None:
            raise
        raise word from error
    return weights


def _generator(meta: Mapping[str, Any]) -> Generator:
    """The network that a snapshot's meta describes: a plain one, or one in the middle of growing."""
    family, options, attributes, alpha = meta["family"], meta["options"], len(meta["attributes"]), meta.get("alpha")
    if alpha is None:
        return build_generator(family, size=meta["size"], attributes=attributes, options=options)
    half = build_generator(family, size=meta["size"] // 2, attributes=attributes, options=options)
    fading = grown_generator(half, family=family, options=options)
    fading.alpha = float(alpha)
    return fading


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
    if file_sha256(weights) != meta.get("sha256"):
        raise UserError(f"{weights} was cut short or altered (its sha256 is not the one in {note.name}).")
    net = _generator(meta)
    net.load_state_dict(_tensors_of(weights))
    return net.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False), meta


def _tensors_of(weights: Path) -> dict[str, torch.Tensor]:
    """In fp32, however they were stored."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(weights).items()}


# --- a snapshot's discriminator ---------------------------------------------------------------------------------------


def critic_stem(weights: Path) -> Path:
    """NAME.critic, for a snapshot NAME.safetensors: where the discriminator lies that some snapshots bring, for fine-tuning."""
    return weights.with_name(weights.name.removesuffix(".safetensors") + ".critic")


def save_critic(
    weights: Path, net: Discriminator, *, family: str, options: Mapping[str, Any], attributes: Iterable[str], nimg: int
) -> Path:
    """Write the discriminator beside the snapshot `weights`, kernels in half the bits. Raises UserError as save_snapshot."""
    net = copy.deepcopy(net)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()
    meta = {"format": CRITIC_FORMAT, "family": family, "options": dict(options), "size": net.size, "attributes": list(attributes)}
    return save_snapshot(critic_stem(weights), net, {**meta, "nimg": nimg})


def load_critic(weights: Path) -> tuple[Discriminator | None, str | None]:
    """(the discriminator beside the snapshot `weights`, its sha256), or (None, None). Raises UserError when it is damaged."""
    stem = critic_stem(weights)
    note, tensors = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".safetensors")
    if not note.is_file() or not tensors.is_file():
        return None, None
    meta = json.loads(note.read_text(encoding="utf-8"))
    if meta.get("format") != CRITIC_FORMAT or file_sha256(tensors) != meta.get("sha256"):
        raise UserError(f"{tensors} was cut short or altered, or is of another version: remove it and its .json to go without.")
    net = build_discriminator(meta["family"], size=meta["size"], attributes=len(meta["attributes"]), options=meta["options"])
    net.load_state_dict(_tensors_of(tensors))
    return net, meta["sha256"]
