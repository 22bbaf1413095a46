"""What a network is made of: its layers, their outputs, parameters and multiply-adds."""

from typing import Any

import torch
from torch import Tensor, nn


def summarize(net: nn.Module, *inputs: Tensor) -> list[dict[str, Any]]:
    """A row per layer in the order in which they run, from one pass of `inputs` (each [N, ...]) through `net`.

    name        the layer's name in the network
    kind        its class
    output      dimensions of what it gives, without N
    parameters  trained numbers; one shared by two layers is counted at the first
    macs        multiply-adds per sample (below); 0 for layers that are neither convolution nor linear

    A layer is a module without children, or one with parameters of its own. The rows' parameters sum to the network's.
    The network is left as it was: the pass runs in evaluation mode without gradients, and each module's mode is put back.
    """
    calls: list[tuple[nn.Module, list[int], int]] = []

    def record(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((layer, list(output.shape[1:]), multiply_adds(layer, args[0], output)))

    named = {name: layer for name, layer in net.named_modules() if not list(layer.children()) or list(layer.parameters(recurse=False))}
    modes = {layer: layer.training for layer in net.modules()}
    hooks = [layer.register_forward_hook(record) for layer in named.values()]
    try:
        with torch.no_grad():
            net.eval()(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes.items():
            layer.training = training
    return rows(named, calls)


def rows(named: dict[str, nn.Module], calls: list[tuple[nn.Module, list[int], int]]) -> list[dict[str, Any]]:
    """One row per layer, in the order of the first calls; a layer called twice has the sum of both calls' multiply-adds."""
    names = {layer: name for name, layer in named.items()}
    counted: set[nn.Parameter] = set()
    table: dict[nn.Module, dict[str, Any]] = {}
    for layer, output, macs in calls:
        if layer in table:
            table[layer]["macs"] += macs
            continue
        new = set(layer.parameters(recurse=False)) - counted
        counted |= new
        parameters = sum(parameter.numel() for parameter in new)
        table[layer] = {
            "name": names[layer], "kind": type(layer).__name__, "output": output, "parameters": parameters, "macs": macs,
        }  # fmt: skip
    return list(table.values())


def multiply_adds(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    """Multiply-adds of one sample, padding counted as pixels, biases not counted:

    convolution             output values * (input channels / groups) * kernel area (the layer's `taps`, where it has them)
    transposed convolution  input values * (output channels / groups) * kernel area (cropped taps counted)
    linear                  input values * output features
    """
    if isinstance(layer, nn.Conv2d):
        return output[0].numel() * layer.weight.shape[1] * getattr(layer, "taps", layer.weight[0, 0].numel())
    if isinstance(layer, nn.ConvTranspose2d):
        return x[0].numel() * layer.weight[0].numel()
    if isinstance(layer, nn.Linear):
        return x[0].numel() * layer.out_features
    return 0
