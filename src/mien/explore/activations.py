"""Reading and changing what a generator's layers put out, by forward hooks that leave no trace.

A layer is named by the side of its feature map, coarse to fine: "4x4", "8x8", ... Its output is the map after the block's activation.
Where a family keeps them:
- a network whose blocks are the children of `net.blocks`, named "4x4", "8x8", ... (dcgan): a layer is the block of that name;
- any other network says so itself: `net.feature_layers() -> dict[str, nn.Module]`, names coarse to fine, each module's output one
  tensor [N, C, H, W] that the rest of the network uses.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mien.errors import UserError, did_you_mean

Change = Callable[[Tensor], Tensor]  # activation [N, C, H, W] -> one of the same shape
SIDES = re.compile(r"(\d+)x(\d+)")


def layer_names(net: nn.Module) -> tuple[str, ...]:
    """The layers that can be read or changed, coarse to fine: ("4x4", "8x8", ...). UserError for a network that shows none."""
    return tuple(layers(net))


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of each layer, coarse to fine. UserError for a network that shows none."""
    own: Any = getattr(net, "feature_layers", None)
    blocks = getattr(net, "blocks", None)
    if own is not None:
        found = dict(own())
    else:
        found = {name: block for name, block in blocks.named_children() if SIDES.fullmatch(name)} if isinstance(blocks, nn.Module) else {}
    if not found:
        kind = type(net).__name__
        raise UserError(f"The layers of a {kind} cannot be reached: it has neither blocks named 4x4, 8x8, ... nor feature_layers().")
    return found


def find_layer(net: nn.Module, name: str) -> nn.Module:
    """The module of a layer. UserError with the nearest name when there is none of that name."""
    known = layers(net)
    if name not in known:
        raise UserError(f"No layer {name!r}: this model has {', '.join(known)}.{did_you_mean(name, known)}")
    return known[name]


@contextmanager
def record(net: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Within it, each forward pass puts the output [N, C, H, W] of the named layers into the dict that it yields (name -> activation).

    The tensors are the network's own: in the graph when gradients are on, not to be written to. A `changed` entered before `record` is
    seen, one entered after it is not. The dict outlives the with-block, the hooks do not. UserError for an unknown layer.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    modules = {name: find_layer(net, name) for name in names}
    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(keep(name)).remove)
        yield seen


@contextmanager
def changed(net: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Within it, each named layer puts out `function(activation)` instead of its activation [N, C, H, W]; only what follows is affected.

    The function gives a new tensor of the same shape (it must not write into its argument: ValueError for another shape). Several blocks
    nest: the one entered first is applied first. Hooks are removed at the end, after an error as well. UserError for an unknown layer.
    """

    def replace(name: str, function: Change) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            new = function(output)
            if new.shape != output.shape:
                raise ValueError(f"the change of layer {name} gives {list(new.shape)}, its activation is {list(output.shape)}")
            return new

        return hook

    modules = {name: find_layer(net, name) for name in changes}
    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(replace(name, changes[name])).remove)
        yield
