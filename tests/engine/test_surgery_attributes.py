"""--from with other attributes, in every family and by every way that attributes enter: columns go by name, not by place."""

import copy

import pytest
import torch

from engine.conftest import tiny_recipe
from mien.engine import build, surgery
from mien.engine.surgery import Source
from mien.models.layers import Spectral

RESNET = ("model.family=resnet", "model.discriminator.head=sum", "model.discriminator.norm=none", "model.generator.norm=batch")
CASES = {
    "style": ("model.family=style", "model.generator.w_dim=8", "model.generator.mapping=2", "model.generator.condition=concat",
              "model.discriminator.condition=projection", "model.discriminator.minibatch_stddev=4"),
    "r3": ("model.family=r3", "model.generator.condition=concat", "model.discriminator.condition=projection"),
    "resnet-norm-projection": (*RESNET, "model.generator.condition=norm", "model.discriminator.condition=projection"),
    "resnet-concat-channels": (*RESNET, "model.generator.condition=concat", "model.discriminator.condition=channels"),
    "resnet-spectral": (*RESNET, "model.generator.condition=concat", "model.generator.spectral=true",
                        "model.discriminator.condition=projection", "model.discriminator.norm=spectral"),
    "resnet-spectral-channels": (*RESNET, "model.generator.condition=norm", "model.generator.spectral=true",
                                 "model.discriminator.condition=channels", "model.discriminator.norm=spectral"),
    "dcgan-projection": ("model.generator.condition=concat", "model.discriminator.condition=projection", "model.discriminator.norm=none"),
    "dcgan-channels": ("model.generator.condition=concat", "model.discriminator.condition=channels", "model.discriminator.norm=spectral"),
}  # fmt: skip
SPECTRAL = ("resnet-spectral", "resnet-spectral-channels", "dcgan-channels")
EXACT = [name for name in CASES if name not in SPECTRAL]  # spectral norm divides by what all inputs weigh together
NORMS = [f"G.blocks.{side}.norm{n}.{part}.weight" for side in ("8x8", "16x16", "32x32") for n in (1, 2) for part in ("gain", "shift")]
FIRST = ["D.trunk.16x16.conv1.weight", "D.trunk.16x16.shortcut.weight"]
HEAR = {  # the parameters that have a column for each attribute
    "style": ["G.mapping.embedding.weight", "D.embedding.weight"],
    "r3": ["G.embedding.weight", "D.embedding.weight"],
    "resnet-norm-projection": [*NORMS, "D.embedding.weight"],
    "resnet-concat-channels": ["G.stem.weight", *FIRST],
    "resnet-spectral": ["G.stem.weight", "D.embedding.weight"],
    "resnet-spectral-channels": [*NORMS, *FIRST],
    "dcgan-projection": ["G.blocks.4x4.conv.weight", "D.embedding.weight"],
    "dcgan-channels": ["G.blocks.4x4.conv.weight", "D.trunk.16x16.conv.weight"],
}


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def fresh(overrides, count):
    config = tiny_recipe(*overrides, preset=None).config
    return build.build_state(config, size=32, attributes=count, device=torch.device("cpu"))


@torch.no_grad()
def trained(overrides, names, seed=3):
    """A model whose every parameter counts; its average is another than its G."""
    state = fresh(overrides, len(names))
    torch.manual_seed(seed)
    for net in (state.G, state.ema, state.D):
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.2)
        for parameter in net.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        for layer in net.modules():
            if isinstance(layer, Spectral):
                layer.iterate(30)
    return Source(path="old", sha256="0", nimg=100, size=32, attributes=names, G=state.G, ema=state.ema, D=state.D)


def begun(source, overrides, names):
    """(the networks that `source` became for other attributes, the fates of their parameters)."""
    state = fresh(overrides, len(names))
    return state, surgery.transplant(source, state, names)


@torch.no_grad()
def outputs(model, names, **values):
    """Images of G and of the average, logits of D, at named attributes; those not named are unknown."""
    torch.manual_seed(1)
    z, images = torch.randn(3, 8), torch.rand(3, 3, 32, 32) * 2 - 1
    rows = torch.tensor([[values.get(name, 0.5) for name in names]]).expand(3, -1)
    nets = [copy.deepcopy(net).eval() for net in (model.G, model.ema, model.D)]
    return {"G": nets[0](z, rows), "ema": nets[1](z, rows), "D": nets[2](images, rows)}


def assert_same(one, other, roles=("G", "ema", "D")):
    for role in roles:
        gap, size = (one[role] - other[role]).abs().max(), other[role].abs().max()
        assert gap <= 2e-5 * (1 + size), f"{role}: {float(gap)} of {float(size)}"


def assert_unlike(one, other):
    for role in one:
        assert (one[role] - other[role]).abs().max() > 1e-3 * (1 + other[role].abs().max()), role


def told(fates, what):
    return {fate.name: fate.note for fate in fates if fate.what == what}


def named(state):
    return {f"{role}.{name}": p for role in "GD" for name, p in getattr(state, role).named_parameters()}


FACES = ({"Male": 1.0, "Smiling": 0.0, "Young": 0.0}, {"Male": 0.0, "Smiling": 1.0, "Young": 1.0})


def test_in_another_order_each_attribute_does_what_it_did(case):
    old, new = ("Male", "Smiling", "Young"), ("Young", "Male", "Smiling")  # no swap: back and forth differ
    source = trained(CASES[case], old)
    state, fates = begun(source, CASES[case], new)
    for face in FACES:
        assert_same(outputs(state, new, **face), outputs(source, old, **face))
    assert_unlike(outputs(source, old, **FACES[0]), outputs(source, old, **FACES[1]))
    changed = told(fates, "re-shaped")
    assert list(changed) == HEAR[case] and all(note.endswith(": in another order") for note in changed.values())
    assert {fate.what for fate in fates} == {"loaded", "re-shaped"} and set(state.warming) == set(HEAR[case])


def test_a_new_attribute_beside_old_ones_makes_no_difference_yet(case):
    old, new = ("Male", "Smiling"), ("Hat", "Male", "Smiling")
    source = trained(CASES[case], old)
    state, fates = begun(source, CASES[case], new)
    for hat in (0.0, 1.0):
        assert_same(outputs(state, new, Male=1.0, Smiling=0.0, Hat=hat), outputs(source, old, Male=1.0, Smiling=0.0))
    changed = told(fates, "re-shaped")
    assert list(changed) == HEAR[case] and all(note.endswith(": + 1 input (Hat)") for note in changed.values())
    assert {fate.what for fate in fates} == {"loaded", "re-shaped"}


@pytest.mark.parametrize("case", EXACT)
def test_without_an_attribute_it_counts_as_unknown(case):
    old, new = ("Male", "Smiling", "Young"), ("Young", "Male")
    source = trained(CASES[case], old)
    state, fates = begun(source, CASES[case], new)
    assert_same(outputs(state, new, Male=1.0, Young=0.0), outputs(source, old, Male=1.0, Young=0.0))
    changed = told(fates, "re-shaped")
    assert list(changed) == HEAR[case] and all(note.endswith(": - 1 input (Smiling)") for note in changed.values())


def test_none_of_the_old_attributes_none_of_their_weights(case):
    """Male's column is not what Eyeglasses begin with: nothing is heard of what is new, but where spectral norm wants a weight."""
    old, new = ("Male", "Smiling"), ("Eyeglasses", "Bald")
    source = trained(CASES[case], old)
    state, fates = begun(source, CASES[case], new)
    one, other = outputs(state, new, Eyeglasses=1.0, Bald=0.0), outputs(state, new, Eyeglasses=0.0, Bald=1.0)
    if case in EXACT:
        assert_same(one, outputs(source, old))
        assert_same(one, other)
    elif case == "resnet-spectral":  # D's embedding is fresh, with the norm that it always has
        assert torch.isfinite(one["D"]).all() and told(fates, "new") == {"D.embedding.weight": "[16, 2]"}
        assert torch.equal(state.D.embedding.weight, fresh(CASES[case], 2).D.embedding.weight)
        assert_same(one, other, ("G", "ema"))
    else:
        assert_same(one, other)
    changed, begins = told(fates, "re-shaped"), told(fates, "new")
    assert set(changed) | set(begins) == set(HEAR[case])
    assert all(note.endswith(": + 2 inputs (Eyeglasses, Bald), - 2 inputs (Male, Smiling)") for note in changed.values())
    assert all(note.endswith(": 0 at first") for name, note in begins.items() if case != "resnet-spectral")
    logits = state.D(state.G(torch.randn(4, 8), torch.eye(2).repeat(2, 1)), torch.eye(2).repeat(2, 1))
    logits.square().sum().backward()
    parameters = named(state)
    for name in HEAR[case]:  # what begins at 0 learns
        gradient = parameters[name].grad
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0, name


@pytest.mark.parametrize("case", EXACT)
def test_from_a_model_without_attributes(case):
    """It draws what it drew, whatever is asked for, and can learn to listen."""
    source = trained(CASES[case], ())
    state, fates = begun(source, CASES[case], ("Male", "Smiling"))
    assert_same(outputs(state, ("Male", "Smiling"), Male=1.0, Smiling=0.0), outputs(source, ()))
    rows = torch.eye(2).repeat(2, 1)
    state.D(state.G(torch.randn(4, 8), rows), rows).square().sum().backward()
    learns = {"style": "G.mapping.layers.0.weight", "r3": "G.blocks.4x4.basis.amounts.weight"}.get(case, HEAR[case][0])
    if learns != HEAR[case][0]:  # it listens first to the embedding behind the latent, which therefore must not be 0 as well
        assert told(fates, "re-shaped")[learns].endswith(": + 8 inputs")
        assert named(state)[learns].grad[:, 8:].abs().max() > 0 and named(state)[HEAR[case][0]].abs().max() > 0
    assert named(state)[learns].grad.abs().max() > 0


@pytest.mark.parametrize("family", ["style", "r3", "resnet", "dcgan"])
def test_networks_that_take_no_attributes_are_loaded_whole(family):
    deaf = (f"model.family={family}", "model.generator.condition=none", "model.discriminator.condition=none")
    if family == "resnet":
        deaf += ("model.discriminator.norm=none",)
    source = trained(deaf, ("Male", "Smiling"))
    state, fates = begun(source, deaf, ("Eyeglasses", "Bald", "Young"))
    assert {fate.what for fate in fates} == {"loaded"}
    assert_same(outputs(state, ("Eyeglasses", "Bald", "Young")), outputs(source, ("Male", "Smiling")))


def test_minibatch_stddev_put_into_a_trained_style_d_changes_no_logit_at_first():
    """Nor does taking it out where nobody listens to it yet. Style's weights count by how many inputs there are."""
    plain, crowd = (f"model.discriminator.minibatch_stddev={group}" for group in (0, 4))
    source = trained((*CASES["style"], plain), ("Male",))
    images, rows = torch.rand(4, 3, 32, 32) * 2 - 1, torch.ones(4, 1)
    state, fates = begun(source, (*CASES["style"], crowd), ("Male",))
    assert told(fates, "re-shaped") == {"D.conv.weight": "[16, 16, 3, 3] -> [16, 17, 3, 3]: + 1 input (stddev)"}
    with torch.no_grad():
        assert torch.allclose(state.D(images, rows), source.D(images, rows), atol=1e-5)
        again = Source(path="old", sha256="0", nimg=100, size=32, attributes=("Male",), G=state.G, ema=state.ema, D=state.D)
        assert torch.allclose(begun(again, (*CASES["style"], plain), ("Male",))[0].D(images, rows), source.D(images, rows), atol=1e-5)


def test_the_table_names_what_moved():
    source = trained(CASES["r3"], ("Male", "Smiling"))
    _, fates = begun(source, CASES["r3"], ("Smiling", "Hat"))
    lines = surgery.table(source, fates)
    assert [line.split()[2:] for line in lines[2:4]] == [["1", "0", "0"], ["1", "0", "0"]]
    assert "  re-shaped  G.embedding.weight  [8, 2] -> [8, 2]: + 1 input (Hat), - 1 input (Male)" in lines
