import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mien.errors import UserError
from mien.models.classifier import FaceClassifier, load_classifier, prepare_images, save_classifier


def small(attributes: int = 3) -> FaceClassifier:
    torch.manual_seed(0)
    return FaceClassifier(attributes, widths=(4, 8, 8, 16), depths=(1, 1, 1, 1))


def multiply_adds(net: FaceClassifier) -> int:
    """Of one 64 px image: convolutions and the head."""
    counted = []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        weight = module.weight
        counted.append(output[0].numel() * weight[0].numel() if isinstance(module, nn.Conv2d) else weight.numel())

    hooks = [module.register_forward_hook(count) for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    net.eval()(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    return sum(counted)


@pytest.mark.parametrize("size", [32, 48, 64])
def test_shapes_at_every_size_of_training(size):
    net = small().eval()
    images = torch.randn(2, 3, size, size)
    assert net(images).shape == (2, 3)
    assert net.features(images).shape == (2, 16) and net.feature_size == 16


def test_every_parameter_gets_a_gradient():
    net = small().train()
    for block in net.blocks:                                    # its second norm starts at 0 and hides what lies before it
        nn.init.normal_(block.norm2.weight)
    net(torch.randn(8, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_the_head_sees_the_features():
    net = small().eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net.head(net.features(images)), net(images))


def test_a_feature_starts_as_the_mean_of_its_channel():
    net = small().eval()
    images = torch.randn(2, 3, 64, 64)
    mean = net.blocks(net.stem(images)).mean(dim=(2, 3))
    torch.testing.assert_close(net.features(images), mean / (1 + net.norm.eps) ** 0.5)


def test_where_a_thing_is_seen_can_matter():
    """The window tells the same patch at the top from the one at the bottom; a plain mean could not."""
    net = small().eval()
    with torch.no_grad():
        net.window[:, :2] = 0
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, :8] = 1
    images[1, :, -8:] = 1
    blank = net.features(torch.zeros(1, 3, 64, 64))
    top, bottom = (net.features(images) - blank).abs().sum(dim=1)
    assert bottom > 3 * top


def test_the_usual_network_is_cheap():
    net = FaceClassifier()
    assert multiply_adds(net) <= 0.11e9
    assert net.feature_size <= 512                              # fewer numbers than images in a 2,000-image score, by far


def test_images_of_the_right_size_pass_unaltered():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(prepare_images(images), images.float() / 127.5 - 1)


@pytest.mark.parametrize("size", [32, 100, 256])
def test_other_sizes_are_resized_without_aliasing(size):
    """As Pillow's antialiased bicubic, but for its rounding (and clipping, hence greyish noise) on the way."""
    noise = np.random.default_rng(0).integers(64, 192, (size, size, 3), np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)).astype(np.float32)
    got = (prepare_images(torch.from_numpy(noise).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(got - expected).max() < 2.5 and got.min() > -1e-3 and got.max() < 255.001


def test_saved_weights_come_back_rounded_to_half_and_no_more(tmp_path):
    net = small()
    save_classifier(net, {"attributes": ["a", "b", "c"]}, tmp_path / "x.safetensors")
    back, meta = load_classifier(tmp_path / "x.safetensors")
    assert meta["attributes"] == ["a", "b", "c"] and not back.training
    for name, value in net.state_dict().items():
        expected = value.half().float() if value.ndim in (2, 4) else value
        assert torch.equal(back.state_dict()[name], expected), name


def test_altered_weights_are_refused(tmp_path):
    save_classifier(small(), {}, tmp_path / "x.safetensors")
    content = bytearray((tmp_path / "x.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_classifier(tmp_path / "x.safetensors")


def test_what_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_classifier(tmp_path / "none.safetensors")
    save_classifier(small(), {}, tmp_path / "x.safetensors")
    meta = json.loads((tmp_path / "x.json").read_text())
    (tmp_path / "x.json").write_text(json.dumps({**meta, "format": "mien-generator/1"}))
    with pytest.raises(UserError, match="format"):
        load_classifier(tmp_path / "x.safetensors")
    (tmp_path / "x.json").write_text(json.dumps({**meta, "options": {**meta["options"], "attributes": 4}}))
    with pytest.raises(UserError, match="does not fit"):
        load_classifier(tmp_path / "x.safetensors")
