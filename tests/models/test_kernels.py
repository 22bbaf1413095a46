"""Layers that take another route on a CPU are torch's layers: values and first and second derivatives, to rounding."""

import pytest
import torch
from torch import Tensor, nn

from mien.models.layers import Conv2d, Stem, ToImage

CASES = {
    "to the image": (lambda: ToImage(20, 3), lambda: nn.ConvTranspose2d(20, 3, 4, 2, 1), (5, 20, 16, 16)),
    "from the image": (lambda: Conv2d(5, 24, 4, 2, 1), lambda: nn.Conv2d(5, 24, 4, 2, 1), (5, 5, 32, 32)),
    "stem": (lambda: Stem(12, 24, bias=True), lambda: nn.ConvTranspose2d(12, 24, 4), (5, 12, 1, 1)),
    "stem without bias": (lambda: Stem(12, 24, bias=False), lambda: nn.ConvTranspose2d(12, 24, 4, bias=False), (5, 12, 1, 1)),
    "another kernel": (lambda: Conv2d(3, 24, 3, 1, 1), lambda: nn.Conv2d(3, 24, 3, 1, 1), (5, 3, 16, 16)),
}


def derivatives(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The layer's values, the gradient by all that goes in, and that gradient's square's gradient by the weight."""
    x = x.clone().requires_grad_()
    y = net(x)
    first = torch.autograd.grad(y.sin().sum(), [x, *net.parameters()], create_graph=True)
    (second,) = torch.autograd.grad(first[0].square().sum(), [net.weight])
    return [y, *first, second]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CASES)
def test_the_other_route_leads_to_the_same_place(case, layout):
    torch.manual_seed(0)
    ours, theirs, shape = CASES[case]
    net, plain = ours(), theirs()
    plain.load_state_dict(net.state_dict())  # the same names and shapes
    net, plain = net.to(memory_format=layout), plain.to(memory_format=layout)
    x = torch.randn(shape).contiguous(memory_format=layout)
    for mine, reference in zip(derivatives(net, x), derivatives(plain, x), strict=True):
        assert mine.shape == reference.shape
        assert (mine - reference).norm() <= 1e-5 * reference.norm()


def test_the_routes_differ_only_where_the_picture_is():
    """Were the detour always taken, or never, the test above could not tell."""
    calls: list[tuple[int, ...]] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in (torch.conv2d, torch.nn.functional.conv2d):
                calls.append(tuple(args[1].shape))
            return func(*args, **(kwargs or {}))

    image, x = torch.randn(2, 3, 16, 16), torch.randn(2, 20, 16, 16)
    with Watch():
        Conv2d(3, 8, 4, 2, 1)(image)
        Conv2d(3, 8, 4, 2, 1)(image.requires_grad_())
        Conv2d(20, 8, 4, 2, 1)(x.requires_grad_())
        ToImage(20, 3)(x)
    assert calls == [(8, 3, 4, 4), (8, 12, 2, 2), (8, 20, 4, 4), (12, 20, 2, 2)]
