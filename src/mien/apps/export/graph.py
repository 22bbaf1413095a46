"""A generator as an ONNX file that anybody's runtime can draw with, checked against PyTorch before it is handed out.

The graph: `latent` float32 [N, Z] and one input float32 [N] for each attribute, under its own name, so that a feed reads as what it
asks for, an attribute cannot land in another's place, and a misspelt one is refused by the runtime. Out comes `images` float32
[N, 3, R, R], -1..1. N is free. What a program needs to know beyond that is in the file's metadata.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mien.errors import UserError
from mien.explore.load import LoadedGenerator
from mien.explore.sample import combinations
from mien.models.latents import latents

OPSET = 18  # of ai.onnx: what torch's exporter writes without converting, and every runtime since 2023 reads
LATENT, IMAGES = "latent", "images"
FORMAT = "mien-onnx/1"
TOLERANCE = 1e-3  # of a pixel in -1..1: an eighth of one of the 256 levels
LATENTS, MAX_COMBINATIONS = 64, 256  # that parity is checked on


class Named(nn.Module):
    """A generator that takes its attributes one by one: forward(latent [N, Z], value [N], value [N], ...) -> [N, 3, R, R]."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, latent: Tensor, *values: Tensor) -> Tensor:
        rows = torch.stack(values, dim=1) if values else latent.new_zeros((latent.shape[0], 0))  # [N, A]
        return self.net(latent, rows)


def need_onnx() -> None:
    """Raises UserError unless the extra that writes and checks ONNX files is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX files need {error.name}: pip install 'mien[export]'.") from None


def write_onnx(generator: LoadedGenerator, path: Path, *, half: bool = False) -> float:
    """Write `path` and check it by onnxruntime; returns the largest difference of a pixel (-1..1) from PyTorch.

    `half`: the weights, which must already be numbers of fp16 (`weights.rounded`), are stored as such and cast back:
    half the file, the same pixels.
    Raises UserError when the exporter cannot express the network, or when the file draws anything else than PyTorch does.
    """
    need_onnx()
    for name in generator.attribute_names:
        if name in (LATENT, IMAGES):
            raise UserError(f"The attribute {name!r} has the name of the graph's own input or output: it cannot be exported to ONNX.")
    import onnx

    model = _traced(generator, optimize=not half)
    if half:
        _store_halved(model)
    _describe(model, generator)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    worst = parity(generator, path)
    if not worst <= TOLERANCE:
        path.unlink()
        raise UserError(f"The ONNX file would not draw what PyTorch draws: a pixel differs by {worst:.2g}, allowed is {TOLERANCE:g}. "
                        "Nothing was exported.")  # fmt: skip
    return worst


def _traced(generator: LoadedGenerator, *, optimize: bool) -> Any:
    """The onnx.ModelProto of a generator. `optimize` merges layers, which gives weights that are no longer numbers of fp16."""
    names = generator.attribute_names
    net = Named(generator.net).cpu()
    args = (torch.randn(3, generator.z_dim), *(torch.rand(3) for _ in names))
    batch = torch.export.Dim("N")
    free = ({0: batch}, tuple({0: batch} for _ in names)) if names else ({0: batch},)
    try:
        with _quiet():
            program = torch.onnx.export(net, args, dynamo=True, input_names=[LATENT, *names], output_names=[IMAGES], dynamic_shapes=free,
                                        opset_version=OPSET, optimize=optimize, verbose=False)  # fmt: skip
    except Exception as error:  # the exporter's errors are many; each means that there is no file
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"This {type(generator.net).__name__} has no form in ONNX: {first_line}") from error
    assert program is not None  # it is None only for the older exporter
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's talk kept from the user."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _store_halved(model: Any) -> None:
    """Each fp32 weight of two and more dimensions as fp16 and a Cast, which runtimes carry out once, at loading."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _describe(model: Any, generator: LoadedGenerator) -> None:
    """Name, words and metadata_props of the model."""
    from onnx import helper

    meta = generator.meta
    model.producer_name, model.doc_string = "mien", "Latents and attributes to faces of nobody; images are -1..1, channels first, RGB."
    facts: dict[str, str] = {
        "format": FORMAT,
        "attributes": json.dumps(list(generator.attribute_names)),
        "attribute_table": json.dumps(meta.get("attribute_table", [])),
        "size": str(generator.size),
        "z_dim": str(generator.z_dim),
        "latent": "N(0, 1); face number n has the latent of mien.models.latents.latents([n], z_dim)",
        "attribute_values": "0 absent, 1 present; between and a little beyond also",
        **{key: str(meta[key]) for key in ("family", "preset", "nimg", "mien", "precision") if key in meta},
    }
    helper.set_model_props(model, facts)


def parity(generator: LoadedGenerator, path: Path) -> float:
    """The largest difference of a pixel (-1..1) between onnxruntime on the CPU and PyTorch: 64 latents x every combination of attributes.

    Of more than 256 combinations, the commonest 256 in the training data. inf when a picture has a NaN.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    z = latents(range(LATENTS), generator.z_dim)
    net = generator.net.float()
    worst = 0.0
    rows = combinations(generator, {}, limit=MAX_COMBINATIONS)
    for i, row in enumerate(rows):
        for part in (z[:1], z[1:]) if i == 0 else (z,):  # N is free: one face is drawn as sixty-three are
            attributes = row.expand(len(part), -1)
            with torch.inference_mode():
                own = net(part.to(generator.device), attributes.to(generator.device)).float().cpu().numpy()
            feed: dict[str, np.ndarray] = {LATENT: part.numpy()}
            feed.update((name, attributes[:, j].numpy()) for j, name in enumerate(generator.attribute_names))
            difference = np.abs(session.run([IMAGES], feed)[0] - own).max()
            worst = max(worst, float(difference) if np.isfinite(difference) else float("inf"))
    return worst
