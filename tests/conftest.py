"""Fixtures that several folders of tests share."""

import pytest


@pytest.fixture(scope="session")
def tiny_snapshot(tmp_path_factory):
    """The .safetensors of an untrained generator: 32 px, width 16, attributes Male and Smiling; big final weights, so that faces differ."""
    import torch

    from mien.engine.checkpoint import save_snapshot
    from mien.models.catalogue import build_generator

    options = {"width": 16, "z_dim": 8, "condition": "concat"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_generator("dcgan", size=32, attributes=2, options=options)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(8)
    table = [[[0, 0], 0.2], [[0, 1], 0.3], [[1, 0], 0.5]]  # no smiling men
    meta = {"family": "dcgan", "options": options, "size": 32, "attributes": ["Male", "Smiling"], "attribute_table": table,
            "nimg": 1000, "ema": True, "preset": "demo", "store": {"digest": "0", "crop": "whole", "size": 32}, "mien": "0"}  # fmt: skip
    return save_snapshot(tmp_path_factory.mktemp("tiny") / "tiny", net, meta)


@pytest.fixture(scope="session")
def tiny_generator(tiny_snapshot):
    """`tiny_snapshot`, loaded."""
    from mien.explore.load import load_generator

    return load_generator(tiny_snapshot)
