"""The resnet family: its layers and blocks are what the papers say, and its options do what they say."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mien.errors import UserError
from mien.models.layers import Spectral
from mien.models.resnet import (
    ConditionalBatchNorm2d,
    DownBlock,
    DownConv2d,
    ResNetDiscriminator,
    ResNetGenerator,
    SelfAttention,
    SpectralDownConv2d,
    SpectralUpConv2d,
    UpBlock,
    UpConv2d,
)


def near(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("up", "down"), [(UpConv2d, DownConv2d), (SpectralUpConv2d, SpectralDownConv2d)])
def test_resampling_convolutions_are_a_convolution_and_a_plain_resampling(up, down):
    x = torch.randn(2, 5, 8, 6)
    up, down = up(5, 7).eval(), down(5, 7).eval()
    near(up(x), F.conv2d(F.interpolate(x, scale_factor=2.0), up.kernel(), up.bias, padding=1))
    near(down(x), F.avg_pool2d(F.conv2d(x, down.kernel(), down.bias, padding=1), 2))


def test_spectral_resampling_divides_by_the_largest_singular_value():
    layer = SpectralDownConv2d(6, 8)
    layer.iterate(50)
    assert torch.linalg.svdvals(layer.eval().kernel().flatten(1))[0].item() == pytest.approx(1, abs=1e-3)


def test_blocks_are_those_of_the_paper():
    """Gulrajani et al. 2017, appendix F, written out: resample first, then the shortcut's 1x1 (up); 1x1, then the mean (down)."""
    x, a = torch.randn(4, 6, 8, 8), torch.zeros(4, 0)
    block = UpBlock(6, 5, 0, spectral=False, attention=False)
    y = F.interpolate(F.relu(F.batch_norm(x, None, None, training=True)), scale_factor=2.0)
    y = F.relu(F.batch_norm(F.conv2d(y, block.conv1.weight, block.conv1.bias, padding=1), None, None, training=True))
    y = F.conv2d(y, block.conv2.weight, block.conv2.bias, padding=1)
    near(block(x, a), y + F.conv2d(F.interpolate(x, scale_factor=2.0), block.shortcut.weight))

    for first in (False, True):
        down = DownBlock(6, 5, spectral=False, first=first)
        y = F.conv2d(x if first else F.relu(x), down.conv1.weight, down.conv1.bias, padding=1)
        y = F.conv2d(F.relu(y), down.conv2.weight, down.conv2.bias, padding=1)
        near(down(x), F.avg_pool2d(y + F.conv2d(x, down.shortcut.weight), 2))
    last = DownBlock(6, 6, spectral=False, down=False)
    assert last.shortcut is None and last(x).shape == x.shape


def test_conditional_norm_adds_each_attributes_part():
    norm, x = ConditionalBatchNorm2d(6, 2), torch.randn(8, 6, 4, 4)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    plain = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)

    def out(*values: float) -> torch.Tensor:
        return norm(x, torch.tensor([values]).expand(8, 2))

    near(out(0.5, 0.5), plain)  # undecided
    gain, shift = norm.gain.weight[:, 0] - norm.gain.weight[:, 1], norm.shift.weight[:, 0] - norm.shift.weight[:, 1]  # s = +1, -1
    near(out(1.0, 0.0), plain * (1 + gain[:, None, None]) + shift[:, None, None])
    near(out(1.0, 1.0) - plain, (out(1.0, 0.5) - plain) + (out(0.5, 1.0) - plain))
    near(out(2.0, 0.5) - plain, 3 * (out(1.0, 0.5) - plain))  # beyond: 2 is three times as far from one half as 1

    bare = ConditionalBatchNorm2d(6, 0)
    assert {name for name, _ in bare.named_parameters()} == {"weight", "bias"}
    assert torch.equal(bare(x, torch.zeros(8, 0)), nn.BatchNorm2d(6)(x))


def test_each_sample_has_its_own_condition():
    net = ResNetGenerator(32, 2, width=16, z_dim=8).eval()
    z, a = torch.randn(4, 8), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    near(net(z, a), torch.cat([net(z[i : i + 1], a[i : i + 1]) for i in range(4)]))


def test_attention_by_hand_and_at_the_start():
    layer, x = SelfAttention(16, spectral=False), torch.randn(2, 16, 4, 4)
    assert torch.equal(layer(x), x)
    nn.init.constant_(layer.scale, 0.7)
    query, key, value = (part(x[0:1])[0] for part in (layer.query, layer.key, layer.value))
    key, value = (F.max_pool2d(part, 2).reshape(len(part), 4) for part in (key, value))
    for i, j in ((0, 0), (3, 1)):
        weights = torch.softmax(torch.stack([query[:, i, j] @ key[:, k] for k in range(4)]), 0)
        seen = sum(weights[k] * value[:, k] for k in range(4))
        near(layer(x)[0, :, i, j], x[0, :, i, j] + 0.7 * layer.out.weight[:, :, 0, 0] @ seen)


def test_attention_carries_far():
    """What a corner shows reaches the opposite corner of the 16x16 map; without attention two 3x3 convolutions do not carry it."""
    for side, reached in ((16, True), (0, False)):
        critic = ResNetDiscriminator(32, 0, width=32, attention=side).eval()
        block, images = critic.trunk[0], torch.zeros(1, 3, 32, 32)
        if side:
            nn.init.ones_(block.attention.scale)
        dotted = images.index_put((torch.tensor(0), torch.tensor(0), torch.tensor(0), torch.tensor(0)), torch.tensor(5.0))
        assert ((block(dotted) - block(images))[0, :, -1, -1].abs().max() > 1e-7) == reached


def test_parameters_of_the_papers_networks():
    """SNGAN's blocks counted by hand at a sixteenth of the width of the recipe resnet64."""

    def up(i: int, o: int) -> int:
        return 9 * i * o + o + 9 * o * o + o + i * o + 2 * i + 2 * o

    net = ResNetGenerator(64, 0, width=64, z_dim=128, min_width=4)
    assert sum(p.numel() for p in net.parameters()) == 129 * 64 * 16 + up(64, 32) + up(32, 16) + up(16, 8) + up(8, 4) + 8 + 9 * 4 * 3 + 3

    def down(i: int, o: int, hidden: int) -> int:
        return 9 * i * hidden + hidden + 9 * hidden * o + o + i * o

    critic = ResNetDiscriminator(64, 3, width=32, min_width=4)
    trunk = down(3, 4, 4) + down(4, 8, 4) + down(8, 16, 8) + down(16, 32, 16) + 2 * (9 * 32 * 32 + 32)
    assert sum(p.numel() for p in critic.parameters()) == trunk + 33 + 3 * 32


def test_projection_by_hand():
    """D(x, c) = h(f) + f . e(c), f the sum over the last map, c signed (Miyato & Koyama 2018, equation 4)."""
    images, a = torch.rand(4, 3, 32, 32), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.3]])
    critic = ResNetDiscriminator(32, 2, width=32, norm="none")
    f = F.relu(critic.trunk(images)).sum((2, 3))
    near(critic(images, a), critic.logit(f)[:, 0] + (f * ((2 * a - 1) @ critic.embedding.weight.T)).sum(1))


def test_spectral_means_every_weight_and_d_has_no_batch_norm():
    critic = ResNetDiscriminator(32, 2, width=32, attention=8)
    net = ResNetGenerator(32, 2, width=32, attention=8, spectral=True)
    for each in (critic, net):
        conditions = {id(m) for norm in each.modules() if isinstance(norm, ConditionalBatchNorm2d) for m in norm.children()}
        weighted = [m for m in each.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and id(m) not in conditions]
        assert len(weighted) > 10 and all(isinstance(m, Spectral) for m in weighted)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in critic.modules())
    assert not any(isinstance(m, Spectral) for m in ResNetGenerator(32, 2, width=32, attention=8).modules())


def test_an_averaged_spectral_norm_is_not_misled_by_short_vectors():
    """The average of unit vectors that turn is shorter than 1; the estimate must not shrink with it."""
    net = ResNetGenerator(32, 0, width=16, z_dim=8, spectral=True).eval()
    z, a = torch.randn(2, 8), torch.zeros(2, 0)
    before = net(z, a)
    for layer in net.modules():
        if isinstance(layer, Spectral):
            layer.u *= 0.8
            layer.v *= 0.9
    near(net(z, a), before)


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        (ResNetGenerator, {"attention": 48}, "attention = 48 is no map's side: choose one of 8, 16, 32"),
        (ResNetDiscriminator, {"attention": 32}, "choose one of 16, 8, 4"),
        (ResNetGenerator, {"condition": "norm", "norm": "none"}, "needs generator norm = 'batch'"),
        (ResNetDiscriminator, {"norm": "batch"}, "is not one of spectral, none"),
        (ResNetGenerator, {"condition": "channels"}, "is not one of none, concat, norm"),
    ],
)
def test_wrong_options_are_refused_in_words(network, options, words):
    with pytest.raises(UserError, match=words):
        network(32, 2, width=16, **options)
