"""Control and leakage on toy faces, where a judge cannot err: a planted leak is found, and nothing where nothing was planted."""

import numpy as np
import pytest

from mien.metrics import attribute_control as control


def measure(toys, generator, *, real_rows=None, count=200):
    """The three scores of a toy generator against reals with the attributes real_rows [N, 3]."""
    real_rows = toys.rows(1500, 11) if real_rows is None else real_rows
    names = generator.attribute_names
    columns = [toys.judged.index(name) for name in names]
    conditions = real_rows[:count][:, columns]
    answers = control.ask(generator, toys.judge, conditions, range(len(names)), seed=3)
    return control.control_scores(answers, asked=names, judged=toys.judged, real_attributes=real_rows[:, columns],
                                  real_probabilities=toys.judge.probabilities(toys.draw(real_rows, 12)))  # fmt: skip


def leaks(scores):
    return {(leak["asked"], leak["judged"]) for leak in scores["leakage"][0].details["leaks"]}


def test_a_perfect_generator_has_control_and_no_leak(toys):
    scores = measure(toys, toys.generator())
    (accuracy, ceiling), (leakage, _) = scores["control"], scores["leakage"]
    assert accuracy.value == 1 and ceiling == 1
    assert 0.97 < accuracy.low < 0.99 and accuracy.high == 1  # of 200 latents: that all were right does not make it certain
    assert all((row["low"], row["high"]) == (accuracy.low, 1) for row in accuracy.details["per_attribute"].values())
    assert leaks(scores) == set() and leakage.value < 0.02
    matrix = np.array(leakage.details["leakage"])
    assert matrix[0, 0] == pytest.approx(0.96, abs=0.01) and matrix[1, 1] == pytest.approx(0.96, abs=0.01)
    assert 0 < scores["identity"][0].value < 0.6


def test_a_planted_leak_is_found(toys):
    """Male implies Eyeglasses in the generator, and not in the data."""
    scores = measure(toys, toys.generator(leak=True))
    assert leaks(scores) == {("Male", "Eyeglasses")}
    leak = scores["leakage"][0].details["leaks"][0]
    assert leak["low"] > 0.4 and leak["effect"] > 0.5 and abs(leak["explained"]) < 0.1
    assert scores["control"][0].value == 1 and scores["leakage"][0].low > scores["leakage"][1]


def test_a_leak_into_another_condition_is_found(toys):
    """Eyeglasses are asked for too: holding them at 0 does not keep a leaking generator from drawing them."""
    scores = measure(toys, toys.generator(asked=toys.judged, leak=True))
    assert leaks(scores) == {("Male", "Eyeglasses")}
    assert scores["control"][0].details["accuracy"]["Eyeglasses"] < 0.9
    assert leaks(measure(toys, toys.generator(asked=toys.judged))) == set()


def test_what_the_data_explain_is_no_leak(toys):
    """In the data every man wears glasses: a generator that draws them so follows the data; the effect is told all the same."""
    rows = toys.rows(1500, 11, male_brings_glasses=True)
    scores = measure(toys, toys.generator(leak=True), real_rows=rows)
    details = scores["leakage"][0].details
    assert leaks(scores) == set()
    assert details["effect"][0][2] > 0.5 and details["explained_by_data"][0][2] == pytest.approx(details["effect"][0][2], abs=0.1)
    untouched = measure(toys, toys.generator(leak=False), real_rows=rows)  # moves Male alone: less than the data, so no leak either
    assert leaks(untouched) == set()


def test_a_generator_that_does_not_listen_has_no_control_and_no_leak(toys):
    class Deaf(type(toys.generator().net)):
        def forward(self, z, attributes):
            return super().forward(z, (z[:, :2] > 0).float())

    scores = measure(toys, toys.generator(net=Deaf(("Male", "Smiling"))))
    assert scores["control"][0].value == pytest.approx(0.5) and leaks(scores) == set()
    assert scores["identity"][0].value == 0  # asking changes nothing at all


def test_swapped_conditions_show_in_the_confusion(toys):
    class Swapped(type(toys.generator().net)):
        def forward(self, z, attributes):
            return super().forward(z, attributes.flip(1))

    scores = measure(toys, toys.generator(net=Swapped(("Male", "Smiling"))))
    assert scores["control"][0].low < scores["control"][0].value < 0.65
    assert {("Male", "Smiling"), ("Smiling", "Male")} <= leaks(scores)


def test_data_effect_is_the_difference_within_strata():
    """With one other attribute: the difference between strata's means, averaged with the law's shares."""
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 2, (4000, 2))
    p = 0.1 + 0.5 * rows[:, 0] * rows[:, 1] + 0.2 * rows[:, 0] + draw.normal(size=4000) * 0.1
    law = np.stack([draw.integers(0, 2, 500), (draw.random(500) < 0.25).astype(int)], 1)
    effect, error = control.data_effect(probabilities=p[:, None], attributes=rows, column=0, law=law)
    within = [p[(rows == (1, v)).all(1)].mean() - p[(rows == (0, v)).all(1)].mean() for v in (0, 1)]
    share = law[:, 1].mean()
    assert effect[0] == pytest.approx((1 - share) * within[0] + share * within[1], abs=1e-9)
    assert 0.002 < error[0] < 0.006
    nothing, _ = control.data_effect(probabilities=p[:, None], attributes=np.ones_like(rows), column=0, law=law)
    assert nothing[0] == 0


def test_beyond_is_signed_and_zero_inside():
    effect, explained = np.array([0.5, 0.2, -0.1, -0.5, 0.1, 0.0]), np.array([0.3, 0.3, 0.3, -0.3, 0.0, -0.4])
    np.testing.assert_allclose(control.beyond(effect, explained), [0.2, 0, -0.1, -0.2, 0.1, 0], atol=1e-12)


def test_sweep_and_rare_combinations(toys):
    generator, rows = toys.generator(), toys.rows(400, 2)[:, :2]
    rows = rows[~((rows[:, 0] == 1) & (rows[:, 1] == 1))]  # no smiling men in the data
    curves = control.sweep(generator, toys.judge, rows, [0, 1], [0, 1], ("Male", "Smiling"))
    for curve in curves.values():
        assert [value for value, _ in curve] == [0, 0.25, 0.5, 0.75, 1]
        assert curve[0][1] < 0.05 and curve[-1][1] > 0.95 and all(a[1] <= b[1] for a, b in zip(curve, curve[1:]))
    rare = control.rare_combinations(generator, toys.judge, rows, [0, 1], [0, 1], ("Male", "Smiling"))
    assert [(r["combination"], r["share_of_reals"], r["all_right"]) for r in rare] == [("Male=1,Smiling=1", 0.0, 1.0)]


@pytest.mark.parametrize("attributes", [1, 6])
@pytest.mark.parametrize("share", [0.5, 0.02])
def test_the_interval_of_labels_counts_the_few_that_have_an_attribute(attributes, share):
    """Of pictures whose attributes are judged right together, as of one face."""
    draw, names, held = np.random.default_rng(0), [f"a{i}" for i in range(attributes)], []
    for _ in range(200):
        rows, luck = (draw.random((1000, attributes)) < share).astype(np.uint8), draw.random((1000, 1))
        said = np.where(rows == 1, luck < 0.75, luck >= 0.98).astype(float)
        found = control.label_accuracy(probabilities=said, attributes=rows, asked=names, judged=names)
        held.append(found.low <= (0.75 + 0.98) / 2 <= found.high)
    assert 0.88 <= np.mean(held) <= 0.995
    perfect = control.label_accuracy(probabilities=rows.astype(float), attributes=rows, asked=names, judged=names)
    assert perfect.value == perfect.high == 1 and 0.9 < perfect.low < 1


def test_many_attributes_do_not_make_hours():
    assert control.latents_for(2, 1000) == 1000 and control.latents_for(40, 1000) == 487 and control.latents_for(400, 1000) == 128
