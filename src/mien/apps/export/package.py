"""What `mien export` and `mien push` write: a folder that appears whole or not at all, with the model's card beside the model."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mien.apps.export.card import gather, render, run_of
from mien.apps.export.weights import moved_levels, rounded, write_weights
from mien.errors import UserError, did_you_mean
from mien.explore.load import LoadedGenerator, find_snapshot

FORMATS = ("safetensors", "onnx", "web")
MAX_BUNDLED_BYTES = 16_000_000
USES = {
    "safetensors": """```sh
mien sample {name}.safetensors --out faces.png --grid
```

```python
from mien.explore.load import load_generator
from mien.explore.sample import render
from mien.models.latents import latents
import torch

generator = load_generator("{name}.safetensors")
z = latents(range(16), generator.z_dim)
faces = render(generator, z, torch.tensor([{values}]).expand(16, {count}))   # uint8 [16, 3, {size}, {size}]
```""",
    "bundled": """```sh
mien sample {name} --out faces.png --grid
```

It came with mien: its name is a MODEL wherever one is asked for.""",
    "onnx": """```python
import numpy, onnxruntime

session = onnxruntime.InferenceSession("{name}.onnx")
latent = numpy.random.randn(16, {z_dim}).astype("float32")
(images,) = session.run(["images"], {{"latent": latent{feeds}}})   # float32 [16, 3, {size}, {size}], -1..1
pixels = numpy.rint((images + 1) * 127.5).clip(0, 255).astype("uint8")
```

Opset 18; any number of faces at once; {inputs}. The file's `metadata_props` tell the rest.""",
    "web": """```sh
python -m http.server
```

in this folder, then open the address it prints. Any web server will do; the page runs the network itself, in the browser, and asks for
nothing outside this folder.""",
}


@dataclass(frozen=True)
class Exported:
    """What an export made: its files' bytes, and what was measured on the way (None: not a matter of this format)."""

    folder: Path
    name: str
    bytes: int
    parity: float | None  # largest difference of a pixel in -1..1 between onnxruntime and PyTorch
    moved_levels: tuple[int, float] | None  # (largest, mean) difference by fp16 weights, in levels of 0..255


def export(
    generator: LoadedGenerator, out: Path, *, form: str, half: bool = False, name: str | None = None, force: bool = False
) -> Exported:
    """Write the folder `out`: the model as `form`, and README.md, its card. The model's `name`: by default the run's or the file's.

    Raises UserError for another form, a folder that is there already (without `force`), and whatever keeps the form from holding the model.
    """
    if form not in FORMATS:
        raise UserError(f"No format is named {form!r}: there are {', '.join(FORMATS)}.{did_you_mean(form, FORMATS)}")
    check_place(out, force=force)
    name = name or own_name(generator.path)
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UserError(f"A model's name is letters, digits, '-', '_' and '.', not {name!r}: give --name.")
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.resolve().parent))
    try:
        parity, moved = _write(generator, temporary, form=form, half=half, name=name)
        size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
        temporary.chmod(0o755)  # mkdtemp's is for the owner only
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(out, name, size, parity, moved)


def own_name(snapshot: Path) -> str:
    """What a model is called: by its run where the file is in one (snapshots/000320kimg says little), else by the file."""
    run = run_of(snapshot)
    return run.name if run else snapshot.stem


def bundle(generator: LoadedGenerator, name: str, *, weights: Path, cards: Path) -> Exported:
    """Put a model among those that come with the package: NAME.safetensors (fp16) and NAME.json into `weights`, NAME.md into `cards`.

    One of the same name is replaced. Raises UserError when the file is larger than a package should hold.
    """
    with tempfile.TemporaryDirectory(dir=weights) as folder:
        done = export(generator, Path(folder) / "new", form="safetensors", half=True, name=name)
        stem = done.folder / name
        size = stem.with_name(f"{name}.safetensors").stat().st_size
        if size > MAX_BUNDLED_BYTES:
            raise UserError(f"{name} takes {size / 1e6:.1f} MB: a bundled model has at most {MAX_BUNDLED_BYTES / 1e6:.0f} MB.")
        for suffix in (".json", ".safetensors"):
            os.replace(stem.with_name(name + suffix), weights / (name + suffix))
    bundle_critic(generator, weights / f"{name}.safetensors")
    meta = {**generator.meta, "precision": "fp16"}
    use = how_to_use(generator, form="bundled", name=name)
    (cards / f"{name}.md").write_text(render(name, meta, gather(generator), use=use, front_matter=False), encoding="utf-8")
    return done


def bundle_critic(generator: LoadedGenerator, weights: Path) -> Path | None:
    """The discriminator of the run that `generator` is of, beside its snapshot `weights`: for --from. None, and none there, without one."""
    from mien.config import validate
    from mien.engine import surgery
    from mien.engine.checkpoint import critic_stem, save_critic

    for suffix in (".json", ".safetensors"):
        critic_stem(weights).with_name(critic_stem(weights).name + suffix).unlink(missing_ok=True)
    run = run_of(generator.path)
    source = None if run is None else surgery.read(surgery.Origin(str(run.path), find_snapshot))
    if run is None or source is None or source.D is None:
        return None
    model = validate(run.config["config"]).model
    return save_critic(weights, source.D, family=model.family, options=model.discriminator_options(), attributes=source.attributes,
                       nimg=source.nimg)  # fmt: skip


def check_place(out: Path, *, force: bool) -> None:
    """Raises UserError when `out` is something that an export must not replace."""
    if out.is_file():
        raise UserError(f"{out} is a file: an export is a folder, give --out another name.")
    if not out.exists() or not any(out.iterdir()):
        return
    card = out / "README.md"
    ours = card.is_file() and "library_name: mien" in card.read_text(encoding="utf-8", errors="replace")
    if not force:
        raise UserError(f"{out} is there already: give --out another name" + (", or --force to replace it." if ours else "."))
    if not ours:
        raise UserError(f"{out} was not written by mien export, so it is not replaced: give --out another name.")


def _write(generator: LoadedGenerator, folder: Path, *, form: str, half: bool, name: str) -> tuple[float | None, tuple[int, float] | None]:
    """The files of one form; (parity, moved levels)."""
    from mien.apps.export.graph import need_onnx, write_onnx
    from mien.apps.export.web import write_web

    if form != "safetensors":
        need_onnx()
    card = gather(generator)
    used = rounded(generator) if half else generator
    moved = moved_levels(generator, used) if half else None
    parity = None
    if form == "safetensors":
        write_weights(generator, folder / name, card=card, half=half)
    elif form == "onnx":
        parity = write_onnx(used, folder / f"{name}.onnx", half=half)
    else:
        parity = write_web(used, folder, name=name, card=card, half=half)
    (folder / "README.md").write_text(render(name, used.meta, card, use=how_to_use(used, form=form, name=name)), encoding="utf-8")
    return parity, moved


def how_to_use(generator: LoadedGenerator, *, form: str, name: str) -> str:
    """The paragraph of the card on using the files of a form."""
    names = generator.attribute_names
    values = ", ".join("1." if i == 0 else "0." for i in range(len(names)))
    ones = [f'"{attribute}": numpy.{"ones" if i == 0 else "zeros"}(16, "float32")' for i, attribute in enumerate(names)]
    inputs = f"one input for each attribute, `{names[0]}` and so on, 0 to 1" if names else "no attributes"
    return USES[form].format(name=name, size=generator.size, z_dim=generator.z_dim, count=len(names), values=values,
                             feeds="".join(f", {one}" for one in ones), inputs=inputs)  # fmt: skip
