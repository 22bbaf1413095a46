"""A folder with one page that runs a generator in the browser: an ONNX file, ONNX Runtime Web and a page of ours. No server code."""

from __future__ import annotations

import html
import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from mien import __version__
from mien.apps.export.graph import IMAGES, LATENT, write_onnx
from mien.explore.load import LoadedGenerator

PAGE = ("style.css", "page.js", "latents.js")
ABOUT = {
    "celeba": "Trained on CelebA, so for non-commercial research only.",
    "drawn": "Trained on drawn toy faces.",
    "other": "The terms of the data that it was trained on hold.",
}


def page_folder() -> Path:
    """Where the page and the vendored runtime lie in the package."""
    return Path(str(resources.files("mien"))) / "apps" / "export" / "page"


def write_web(generator: LoadedGenerator, folder: Path, *, name: str, card: dict[str, Any], half: bool) -> float:
    """index.html and all that it needs in `folder`, an existing one; returns the ONNX file's largest difference from PyTorch (-1..1)."""
    worst = write_onnx(generator, folder / "model.onnx", half=half)
    source = page_folder()
    for file in PAGE:
        shutil.copyfile(source / file, folder / file)
    shutil.copytree(source / "onnxruntime", folder / "onnxruntime")
    page = (source / "index.html").read_text(encoding="utf-8")
    for key, value in {"name": name, "about": ABOUT[card["data"]["kind"]], "version": __version__}.items():
        page = page.replace("{{" + key + "}}", html.escape(value))
    (folder / "index.html").write_text(page, encoding="utf-8")
    facts = {
        "name": name,
        "file": "model.onnx",
        "size": generator.size,
        "z_dim": generator.z_dim,
        "attributes": list(generator.attribute_names),
        "attribute_table": generator.meta.get("attribute_table") or [[[0] * len(generator.attribute_names), 1.0]],
        "latent": LATENT,
        "inputs": list(generator.attribute_names),
        "output": IMAGES,
    }
    (folder / "model.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return worst
