"""The summary against counts by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mien.models.catalogue import build_discriminator, build_generator
from mien.models.summary import summarize


def test_rows_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 5, 4, 2, 1), nn.Flatten())
    net.append(nn.Linear(5 * 16 * 16, 2))
    rows = summarize(net, torch.randn(3, 3, 16, 16))
    assert rows == [
        {"name": "0", "kind": "Conv2d", "output": [8, 8, 8], "parameters": 8 * 3 * 16, "macs": 8 * 8 * 8 * 3 * 16},
        {"name": "1", "kind": "BatchNorm2d", "output": [8, 8, 8], "parameters": 16, "macs": 0},
        {"name": "2", "kind": "ConvTranspose2d", "output": [5, 16, 16], "parameters": 8 * 5 * 16 + 5, "macs": 8 * 8 * 8 * 5 * 16},
        {"name": "3", "kind": "Flatten", "output": [5 * 16 * 16], "parameters": 0, "macs": 0},
        {"name": "4", "kind": "Linear", "output": [2], "parameters": 2 * 5 * 16 * 16 + 2, "macs": 2 * 5 * 16 * 16},
    ]


def test_groups_and_shared_layers():
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    rows = summarize(nn.Sequential(conv, nn.ReLU(), conv), torch.randn(1, 4, 6, 6))
    assert [row["name"] for row in rows] == ["0", "1"]
    assert rows[0]["parameters"] == 4 * 2 * 9 + 4 and rows[0]["macs"] == 2 * (4 * 36 * 2 * 9)


def test_multiply_adds_of_folded_convolutions_are_those_that_run():
    """resnet folds a change of size into a convolution; torch counts what reaches its kernels, two for a multiply-add."""
    critic, net = (build("resnet", size=32, attributes=2, options={"width": 32}) for build in (build_discriminator, build_generator))
    for made, inputs in ((net, torch.randn(4, net.z_dim)), (critic, torch.randn(4, 3, 32, 32))):
        made.eval()
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            made(inputs, torch.zeros(4, 2))
        mine = 2 * 4 * sum(row["macs"] for row in summarize(made, inputs, torch.zeros(4, 2)))
        assert mine == pytest.approx(counted.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_totals_agree_and_the_networks_stay_as_they_were(norm):
    options = {"width": 32, "norm": norm, "condition": "projection", "minibatch_discrimination": 4, "dropout": 0.5, "input_noise": 0.1}
    net = build_generator("dcgan", size=32, attributes=2, options={"width": 32, "condition": "concat"})
    critic = build_discriminator("dcgan", size=32, attributes=2, options=options)
    critic.trunk.get_submodule("8x8").eval()  # one part already in evaluation
    images, attributes = torch.randn(4, 3, 32, 32), torch.zeros(4, 2)
    for made, inputs in ((net, (torch.randn(4, 100), attributes)), (critic, (images, attributes))):
        before = {name: value.clone() for name, value in made.state_dict().items()}
        modes = [layer.training for layer in made.modules()]
        random = torch.get_rng_state()
        rows = summarize(made, *inputs)
        assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in made.parameters())
        assert [layer.training for layer in made.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
        assert not any(layer._forward_hooks for layer in made.modules())
    assert rows[0] | {"parameters": 0} == {
        "name": "trunk.16x16.conv", "kind": type(critic.trunk[0].conv).__name__, "output": [16, 16, 16], "parameters": 0,
        "macs": 16 * 16 * 16 * 3 * 16,
    }  # fmt: skip
