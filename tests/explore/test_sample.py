"""Pixels, conditions and grids."""

import dataclasses

import numpy as np
import pytest
import torch

from mien.errors import UserError
from mien.explore.latents import latents
from mien.explore.sample import attribute_rows, balanced_rows, captions, combinations, labelled_grid, parse_where, render


def with_table(generator, table, names=("Male", "Smiling")):
    return dataclasses.replace(generator, attribute_names=tuple(names), meta={**generator.meta, "attribute_table": table})


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_face_does_not_depend_on_its_neighbours(tiny_generator, batch):
    z, rows = latents(range(10), 8), attribute_rows(tiny_generator, {}, 10, 0)
    together = render(tiny_generator, z, rows, batch=batch)
    assert together.shape == (10, 3, 32, 32) and together.dtype == torch.uint8
    assert torch.equal(render(tiny_generator, z[7:8], rows[7:8], batch=batch)[0], together[7])
    backwards = render(tiny_generator, z.flip(0), rows.flip(0), batch=batch).flip(0)
    assert torch.equal(backwards, together)
    difference = together.int() - render(tiny_generator, z, rows, batch=5).int()  # another batch may round another way, by one level
    assert difference.abs().max() <= 1
    assert together.float().std() > 10  # the faces are no flat grey


def test_rendering_nothing_gives_nothing(tiny_generator):
    assert render(tiny_generator, torch.zeros(0, 8), torch.zeros(0, 2)).shape == (0, 3, 32, 32)


def test_conditions_follow_the_table(tiny_generator):
    rows = attribute_rows(tiny_generator, {}, 4000, 0)
    shares = {tuple(row): float((rows == torch.tensor(row)).all(1).float().mean()) for row in ([0.0, 0], [0, 1], [1, 0], [1, 1])}
    assert shares[(0, 0)] == pytest.approx(0.2, abs=0.03) and shares[(0, 1)] == pytest.approx(0.3, abs=0.03)
    assert shares[(1, 0)] == pytest.approx(0.5, abs=0.03) and shares[(1, 1)] == 0


def test_a_faces_condition_is_a_function_of_its_number(tiny_generator):
    assert torch.equal(attribute_rows(tiny_generator, {}, 50, 0)[20:30], attribute_rows(tiny_generator, {}, 10, 20))


def test_where_restricts_the_table(tiny_generator):
    rows = attribute_rows(tiny_generator, {"Male": 0.0}, 4000, 0)
    assert (rows[:, 0] == 0).all()
    assert float(rows[:, 1].mean()) == pytest.approx(0.6, abs=0.03)  # 0.3 of the 0.5 who are not Male


def test_where_may_ask_for_what_the_data_never_had(tiny_generator):
    assert (attribute_rows(tiny_generator, {"Male": 1.0, "Smiling": 1.0}, 20, 0) == 1).all()
    between = attribute_rows(tiny_generator, {"Smiling": 0.5}, 400, 0)
    assert (between[:, 1] == 0.5).all() and float(between[:, 0].mean()) == pytest.approx(0.5, abs=0.08)


def test_a_model_without_attributes(tiny_generator):
    plain = with_table(tiny_generator, [[[], 1.0]], names=())
    assert attribute_rows(plain, {}, 5, 0).shape == (5, 0)
    assert combinations(plain, {}).shape == (1, 0)
    assert captions(combinations(plain, {}), ()) == [""]
    with pytest.raises(UserError, match="trained without attributes"):
        parse_where("Male=1", ())


def test_where_is_parsed():
    assert parse_where("Male=1, Smiling=0.5", ["Male", "Smiling"]) == {"Male": 1.0, "Smiling": 0.5}
    assert parse_where("Male=-2,Smiling=1.75", ["Male", "Smiling"]) == {"Male": -2.0, "Smiling": 1.75}  # extrapolation is allowed
    assert parse_where(None, ["Male"]) == {} == parse_where("", ["Male"])


@pytest.mark.parametrize("text, message", [
    ("Smilin=1", "Did you mean Smiling"), ("Male", "write Male=1"), ("Male=3.01", "from -2 to 3"), ("Male=-2.1", "write Male=1"),
    ("Male=yes", "write Male=1"),
    ("=1", "No attribute"), ("Male=nan", "write Male=1"),
])  # fmt: skip
def test_a_wrong_where_is_told(text, message):
    with pytest.raises(UserError, match=message):
        parse_where(text, ["Male", "Smiling"])


def test_beyond_the_range_the_face_goes_on_changing(tiny_generator):
    """A value of 2 is no other name for 1."""
    z = latents(range(4), 8) * 0.05  # an untrained net saturates: near the centre it is calm
    one, two = (render(tiny_generator, z, attribute_rows(tiny_generator, {"Male": value, "Smiling": 0}, 4, 0)) for value in (1.0, 2.0))
    assert (one.float() - two.float()).abs().mean() > 1


def counts(rows):
    values, number = np.unique(rows.numpy(), axis=0, return_counts=True)
    return dict(zip(map(tuple, values.tolist()), number.tolist()))


def test_uniform_balance_gives_equal_counts_at_every_length(tiny_generator):
    rows = balanced_rows(tiny_generator, {}, range(1001), balance="uniform")
    for length in (4, 10, 999, 1001):
        there = counts(rows[:length])
        assert len(there) == 4 and max(there.values()) - min(there.values()) <= 1
    assert counts(balanced_rows(tiny_generator, {"Male": 1.0}, range(10), balance="uniform")) == {(1, 0): 5, (1, 1): 5}
    assert set(counts(balanced_rows(tiny_generator, {"Male": 1.5}, range(10), balance="uniform"))) == {(1.5, 0), (1.5, 1)}


def test_data_balance_keeps_the_shares_far_closer_than_chance(tiny_generator):
    rows = balanced_rows(tiny_generator, {}, range(10_000), balance="data")
    for length in (100, 1000, 10_000):
        there = counts(rows[:length])
        for combination, share in {(0, 0): 0.2, (0, 1): 0.3, (1, 0): 0.5}.items():
            assert abs(there[combination] - share * length) <= np.log2(length)
    assert sum(counts(rows).values()) == 10_000 and (1, 1) not in counts(rows)


@pytest.mark.parametrize("balance", ["uniform", "data"])
def test_a_balanced_condition_is_a_function_of_its_place(tiny_generator, balance):
    rows = balanced_rows(tiny_generator, {}, range(50), balance=balance)
    assert torch.equal(balanced_rows(tiny_generator, {}, range(17, 31), balance=balance), rows[17:31])


def test_an_unknown_balance_is_told(tiny_generator):
    with pytest.raises(UserError, match="none, data, uniform"):
        balanced_rows(tiny_generator, {}, range(3), balance="even")


def test_combinations_are_all_or_the_commonest(tiny_generator):
    assert combinations(tiny_generator, {}).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert combinations(tiny_generator, {"Smiling": 0.5}).tolist() == [[0, 0.5], [1, 0.5]]
    assert combinations(tiny_generator, {}, limit=2).tolist() == [[1, 0], [0, 1]]


def test_captions_name_what_differs():
    assert captions(torch.tensor([[0, 1], [1, 0.5]]), ("Male", "Smiling")) == ["Male 0\nSmiling 1", "Male 1\nSmiling 0.5"]
    many = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]])
    assert captions(many, ("A", "B", "C", "D")) == ["D 0", "D 1"]


def test_a_labelled_grid_holds_the_faces_and_their_labels():
    faces = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    sheet = np.asarray(labelled_grid(faces, ["Male 0", "Male 1"]))
    margin = sheet.shape[1] - (3 * 34 + 2)
    assert sheet.shape[0] == 2 * 34 + 2 and margin > 20
    second_row_third = sheet[36:68, margin + 70 : margin + 102]
    assert np.array_equal(second_row_third, faces[5].permute(1, 2, 0).numpy())
    assert all(sheet[top : top + 34, :margin].min() < 128 for top in (2, 36))  # each row has ink beside it
