"""Convolutions that are differentiated twice: the same numbers as torch's own, to any order."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import conv2d, conv_transpose2d

from mien.models.convolution import TwiceDifferentiable

CASES = [
    (conv2d, (2, 4, 5, 5), (6, 2, 3, 3), {"stride": 2, "padding": 1, "groups": 2}),
    (conv2d, (2, 3, 6, 5), (4, 3, 4, 4), {"stride": 2, "padding": 1}),
    (conv2d, (2, 3, 4, 4), (2, 3, 1, 1), {}),
    (conv_transpose2d, (2, 4, 3, 3), (4, 2, 4, 4), {"stride": 2, "padding": 1}),
    (conv_transpose2d, (2, 4, 3, 3), (4, 1, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
]


@pytest.mark.parametrize(("theirs", "image", "kernel", "settings"), CASES)
def test_values_and_both_derivatives(theirs, image, kernel, settings):
    torch.manual_seed(0)
    x, w = torch.randn(image, dtype=torch.double, requires_grad=True), torch.randn(kernel, dtype=torch.double, requires_grad=True)
    b = torch.randn(theirs(x, w, **settings).shape[1], dtype=torch.double, requires_grad=True)

    def ours(x, w, b):
        with TwiceDifferentiable():
            return theirs(x, w, b, **settings)

    assert torch.allclose(ours(x, w, b), theirs(x, w, b, **settings))
    assert gradcheck(ours, (x, w, b))
    assert gradgradcheck(ours, (x, w, b))


def test_layers_are_caught_inside_only():
    layer, x = torch.nn.Conv2d(2, 3, 3), torch.randn(1, 2, 5, 5)
    with TwiceDifferentiable():
        caught = layer(x).grad_fn
    assert "Convolve" in str(caught.next_functions)
    assert "Convolution" in str(layer(x).grad_fn)
