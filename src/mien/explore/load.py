"""A generator by the name a person gives it: a run, a snapshot file, a bundled model, or a repository on the Hugging Face hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien.errors import UserError, did_you_mean
from mien.runs import Run

if TYPE_CHECKING:
    import torch

FORMAT = "mien-generator/1"
HUB = "hf:"


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator in eval mode and what is known of it. `net(z [N, z_dim], attributes [N, A]) -> [N, 3, size, size]` in [-1, 1]."""

    net: torch.nn.Module
    attribute_names: tuple[str, ...]
    size: int
    z_dim: int
    meta: dict[str, Any]
    path: Path

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def crop(self) -> str | None:
        """How the pictures that it learnt from were cropped (data.formats.CROPS); None when its snapshot does not say."""
        return (self.meta.get("store") or {}).get("crop")


def load_generator(model: str | Path, *, device: str | torch.device = "cpu") -> LoadedGenerator:
    """The generator that `model` names. Raises UserError when there is none or it is damaged."""
    from mien.engine.checkpoint import load_snapshot

    path = find_snapshot(model)
    net, meta = load_snapshot(path, device)
    z_dim = int(net.z_dim)  # type: ignore[arg-type]
    return LoadedGenerator(net=net, attribute_names=tuple(meta["attributes"]), size=meta["size"], z_dim=z_dim, meta=meta, path=path)


def find_snapshot(model: str | Path) -> Path:
    """The .safetensors that `model` stands for: a run's best snapshot, a file, a folder with one snapshot, a bundled name, hf:user/repo."""
    name = str(model)
    if name.startswith(HUB):
        return _only_snapshot(_download(name.removeprefix(HUB)), name)
    path = Path(model)
    if path.is_dir():
        return _of_run(path) if (path / "config.json").is_file() else _only_snapshot(path, name)
    if path.is_file():
        if path.suffix not in (".safetensors", ".json"):
            raise UserError(f"{name} is not a snapshot: give a run, a .safetensors file with its .json beside it, or a bundled name.")
        return path.with_suffix(".safetensors")
    bundled = bundled_models()
    if name in bundled:
        return bundled[name].with_suffix(".safetensors")
    known = did_you_mean(name, bundled) or " Give a run, a snapshot file, a name from 'mien models', or hf:user/repo."
    raise UserError(f"No model or run is named {name}.{known}")


def bundled_models() -> dict[str, Path]:
    """Name -> .json of each generator that came with the package, sorted."""
    folder = Path(str(resources.files("mien"))) / "weights"
    return {path.stem: path for path in sorted(folder.glob("*.json")) if is_generator(path)}


def is_generator(note: Path) -> bool:
    """Whether a .json file describes a generator snapshot."""
    try:
        meta = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(meta, dict) and meta.get("format") == FORMAT


def _of_run(path: Path) -> Path:
    best = Run.open(path).best_snapshot()
    if best is None:
        raise UserError(f"{path} has no snapshot yet: let it train on, or lower train.snapshot_kimg.")
    return best


def _only_snapshot(folder: Path, name: str) -> Path:
    found = [note.with_suffix(".safetensors") for note in sorted(folder.glob("*.json")) if is_generator(note)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{name} holds {len(found)} snapshots: name one, for example {folder / found[-1].name}.")
    raise UserError(f"{name} is neither a run directory (no config.json) nor a folder with a generator snapshot.")


def _download(repository: str) -> Path:
    """The local copy of a hub repository's snapshot files."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{HUB}{repository} needs huggingface_hub: pip install 'mien[hub]'.") from None
    if repository.count("/") != 1:
        raise UserError(f"{HUB}{repository} is not a hub name: write {HUB}user/repo.")
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the library's errors are many and change: each means that there is no model to use
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{HUB}{repository} could not be fetched: {first_line}") from error
