"""Edits as data: JSON, composition, strength, and what each kind of step does."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from mien.errors import UserError
from mien.explore.edit import (
    ChannelsStep,
    ConditionStep,
    DirectionStep,
    Edit,
    apply,
    compose,
    condition_edit,
    edited_inputs,
)
from mien.explore.latents import latents
from mien.explore.regions import mask_of
from mien.explore.sample import attribute_rows, generate, render
from mien.models.pictures import to_uint8


@pytest.fixture()
def faces(tiny_generator):
    return latents(range(6), 8), attribute_rows(tiny_generator, {}, 6, 0)


@pytest.fixture()
def everything(tiny_generator):
    """An edit with every kind of step and every action."""
    steps = (
        ConditionStep("Smiling", 1.0, 1.5), DirectionStep("older", tuple(i / 10 for i in range(8)), -0.5),
        ChannelsStep("4x4", (0, 3), "scale", 1.5), ChannelsStep("8x8", (1,), "silence", region=(0.0, 0.5, 1.0, 1.0)),
        ChannelsStep("8x8", (1, 2), "insert", 4.0, (0.1, 0.1, 0.45, 0.45)),
    )  # fmt: skip
    return Edit("all at once", tiny_generator.meta["sha256"], steps)


def test_generate_gives_the_pixels_of_render(tiny_generator, faces):
    assert torch.equal(to_uint8(generate(tiny_generator, *faces)), render(tiny_generator, *faces))


def test_strength_0_is_the_identity_bit_for_bit(tiny_generator, faces, everything):
    plain = generate(tiny_generator, *faces)
    assert torch.equal(apply(tiny_generator, *faces, everything, strength=0), plain)
    assert not torch.equal(apply(tiny_generator, *faces, everything), plain)
    still = dataclasses.replace(everything, steps=tuple(dataclasses.replace(step, strength=0.0) for step in everything.steps[:2]))
    assert torch.equal(apply(tiny_generator, *faces, still, strength=3), plain)


def test_an_edit_survives_json(tiny_generator, faces, everything):
    again = Edit.from_json(everything.to_json())
    assert again == everything
    assert torch.equal(apply(tiny_generator, *faces, again), apply(tiny_generator, *faces, everything))
    assert json.loads(everything.to_json())["steps"][0] == {"kind": "condition", "attribute": "Smiling", "to": 1.0, "strength": 1.5}


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_composed_edit_is_one_after_the_other(tiny_generator, faces, everything, cut):
    first, second = (dataclasses.replace(everything, steps=steps) for steps in (everything.steps[:cut], everything.steps[cut:]))
    composed = compose(first, second)
    assert composed.steps == everything.steps and composed.model == everything.model
    names = tiny_generator.attribute_names
    z, rows = edited_inputs(*edited_inputs(*faces, first, names), second, names)
    together = edited_inputs(*faces, composed, names)
    assert torch.equal(z, together[0]) and torch.equal(rows, together[1])


def test_channel_edits_compose_in_order(tiny_generator, faces):
    """Inserting, then scaling gives twice the inserted; scaling, then inserting gives the inserted."""
    insert, double = (Edit(action, None, (ChannelsStep("8x8", (1,), action, 3.0),)) for action in ("insert", "scale"))
    seen = [apply(tiny_generator, *faces, edit) for edit in (compose(insert, double), compose(double, insert))]
    assert torch.equal(seen[0], apply(tiny_generator, *faces, Edit("9", None, (ChannelsStep("8x8", (1,), "insert", 9.0),))))
    assert torch.equal(seen[1], apply(tiny_generator, *faces, insert))


def test_edits_of_different_models_do_not_compose(everything):
    with pytest.raises(UserError, match="different models"):
        compose(everything, dataclasses.replace(everything, model="0" * 64))
    assert compose(everything, condition_edit({"Male": 0})).model == everything.model


@pytest.mark.parametrize("to, strength, expected", [
    (1.0, 1.0, [1.0, 1.0]), (1.0, 0.25, [0.25, 1.0]), (1.0, 2.0, [2.0, 2.0]), (1.0, -1.0, [-1.0, 0.0]),
    (0.0, 1.0, [0.0, 0.0]), (0.0, 2.0, [-1.0, -1.0]), (0.0, -1.0, [1.0, 2.0]), (0.5, 3.0, [0.5, 0.5]),
    (2.0, 1.0, [2.0, 2.0]), (2.0, 2.0, [3.0, 3.0]), (2.0, 0.5, [1.0, 1.5]),
])  # fmt: skip
def test_conditions_go_to_their_value_and_beyond_it_on_its_side(to, strength, expected):
    """Of a face that does not smile and one that does."""
    _, rows = edited_inputs(torch.zeros(2, 8), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), condition_edit({"Smiling": to}), ("Male", "Smiling"),
                            strength=strength)  # fmt: skip
    assert rows[:, 1].tolist() == expected and rows[:, 0].tolist() == [1.0, 1.0]


def test_inputs_are_not_written_to(tiny_generator, faces, everything):
    before = [each.clone() for each in faces]
    apply(tiny_generator, *faces, everything)
    assert all(torch.equal(now, then) for now, then in zip(faces, before))
    assert not any(module._forward_hooks for module in tiny_generator.net.modules())


def test_a_silenced_region_changes_the_picture_there_alone(tiny_generator, faces):
    """The last map reaches 2 px around: far from the region nothing may change."""
    edit = Edit("left", None, (ChannelsStep("16x16", tuple(range(16)), "silence", region=(0.0, 0.0, 0.5, 1.0)),))
    change = (apply(tiny_generator, *faces, edit) - generate(tiny_generator, *faces)).abs().amax((0, 1, 2))
    assert change[:14].min() > 0.01 and change[18:].max() == 0


def test_a_region_covers_shares_of_cells():
    assert torch.equal(mask_of((), 2), torch.ones(2, 2))
    assert torch.equal(mask_of([(0.0, 0.0, 0.25, 1.0)], 2), torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    assert mask_of([(0.6, 0.6, 0.7, 0.8)], 4).sum().item() == pytest.approx(0.1 * 0.2 * 16)


def test_strength_is_even_for_channels(tiny_generator, faces):
    silence = Edit("off", None, (ChannelsStep("8x8", (2,), "silence"),))
    halve = Edit("half", None, (ChannelsStep("8x8", (2,), "scale", 0.5),))
    assert torch.allclose(apply(tiny_generator, *faces, silence, strength=0.5), apply(tiny_generator, *faces, halve), atol=1e-6)


def test_an_edit_of_another_model_is_refused(tiny_generator, faces, everything):
    other = dataclasses.replace(everything, model="f" * 64)
    with pytest.raises(UserError, match="another model .ffffffffffff, not"):
        apply(tiny_generator, *faces, other)
    apply(tiny_generator, *faces, dataclasses.replace(other, model=None))
    apply(tiny_generator, *faces, dataclasses.replace(other, steps=other.steps[:1]))  # a condition goes by its name


@pytest.mark.parametrize("step, message", [
    (ConditionStep("Smilin", 1.0), "Did you mean Smiling"), (DirectionStep("x", (1.0,)), "has 1 numbers; this model's latents have 8"),
    (ChannelsStep("7x7", (0,)), "this model has 4x4, 8x8, 16x16"), (ChannelsStep("4x4", (99,)), "channels 0 to 15, not 99"),
])  # fmt: skip
def test_what_the_model_has_not_is_told(tiny_generator, faces, step, message):
    with pytest.raises(UserError, match=message):
        apply(tiny_generator, *faces, Edit("wrong", None, (step,)))


def test_strength_must_be_a_number(tiny_generator, faces, everything):
    for strength in (float("nan"), float("inf"), 101):
        with pytest.raises(UserError, match="Strength"):
            apply(tiny_generator, *faces, everything, strength=strength)


@pytest.mark.parametrize("change, message", [
    ({"format": "mien-edit/9"}, "not mien-edit/1"), ({"name": 3}, '"name"'), ({"steps": {}}, "list of"),
    ({"steps": [{"kind": "magic"}]}, "Step 1 .*condition, direction, channels"), ({"steps": [3]}, "Step 1"),
    ({"steps": [{"kind": []}]}, "Step 1 .*condition, direction, channels"), ({"steps": [{}]}, "Step 1"),
    ({"steps": [{"kind": "condition", "attribute": "Male", "to": 1, "strength": 10**400}]}, "not a number"),
    ({"steps": [{"kind": "condition", "attribute": "Male", "to": 1, "strength": float("nan")}]}, "not a number"),
    ({"steps": [{"kind": "condition", "attribute": "Male"}]}, 'needs "to"'),
    ({"steps": [{"kind": "condition", "attribute": "Male", "to": 4}]}, "4 is outside -2..3"),
    ({"steps": [{"kind": "condition", "attribute": "Male", "to": True}]}, "not a number"),
    ({"steps": [{"kind": "condition", "attribute": "Male", "to": 1, "strenght": 1}]}, "no field 'strenght'"),
    ({"steps": [{"kind": "direction", "name": "a", "vector": ["x"]}]}, "not a number"),
    ({"steps": [{"kind": "direction", "name": "a", "vector": [1e99]}]}, "not a number"),
    ({"steps": [{"kind": "channels", "layer": "4x4", "channels": [-1]}]}, "channel numbers"),
    ({"steps": [{"kind": "channels", "layer": "4x4", "channels": [0], "action": "explode"}]}, "silence, scale, insert"),
    ({"steps": [{"kind": "channels", "layer": "4x4", "channels": [0], "region": [0.5, 0, 0.5, 1]}]}, "x0 < x1"),
    ({"steps": [{"kind": "channels", "layer": ["4x4"], "channels": [0]}]}, "texts"),
])  # fmt: skip
def test_json_that_is_no_edit_is_told_in_one_line(everything, change, message):
    with pytest.raises(UserError, match=message) as caught:
        Edit.from_json(json.dumps({**json.loads(everything.to_json()), **change}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"format": "mien-directions/1"}', "[" * 100_000])
def test_other_texts_are_no_edits(text):
    with pytest.raises(UserError, match="not an edit"):
        Edit.from_json(text)


def test_intervals_of_shares_are_wilsons():
    """Of 4 of 4 the normal interval is 0 wide, of 19 of 20 it ends above 1; Wilson's are neither."""
    from mien.explore.edit_effects import Look, compare

    def seen(values):
        count = len(values)
        return Look(torch.zeros(count, 3, 4, 4, dtype=torch.uint8), np.array(values)[:, None], np.ones((count, 2)))

    for turned, low, high in (([0.9] * 4, 0.5101, 1.0), ([0.9] * 19 + [0.1], 0.7639, 0.9911)):
        effect = compare(seen([0.2] * len(turned)), seen(turned), ("Smiling",), target="Smiling")
        for each in (effect.after, effect.turned):
            assert (each.low, each.high) == pytest.approx((low, high), abs=1e-4)
    assert compare(seen([0.2]), seen([0.9]), ("Smiling",), target="Smiling").after.low is None
