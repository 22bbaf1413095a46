"""The diagnosis: each rule by name, when it is named and when it is over; from histories made by hand."""

import copy
import json
import math

import pytest

from mien.engine.diagnosis import BY_KEY, RULES, WATCHED, Alarm, History, observe

PATIENCE = 1000  # images
HEALTHY = {
    "accuracy_real": 0.75, "accuracy_fake": 0.75, "fooling_rate": 0.15, "grad_norm_d": 8.0, "grad_norm_g": 5.0, "weight_change_d": 0.02,
    "weight_change_g": 0.01, "diversity_pixels": 1.0, "diversity/Male": 0.9, "diversity/none": 1.0, "nearest": 0.9, "response/Male": 0.3,
    "response/Smiling": 0.18, "movement": 0.05, "logit_train": 1.0, "logit_val": 0.9, "logit_fake": -1.0, "progress": 0.1,
}  # fmt: skip
SICK = {
    "D too strong": {"accuracy_real": 0.99, "accuracy_fake": 0.99, "fooling_rate": 0.0},
    "G too strong": {"accuracy_real": 0.52, "accuracy_fake": 0.5, "fooling_rate": 0.5},
    "D memorising": {"accuracy_real": 0.9, "accuracy_fake": 0.9, "logit_val": -0.8},
    "mode collapse": {"diversity_pixels": 0.1, "diversity/Male": 0.8, "nearest": 0.9},
    "mode collapse (Male)": {"diversity/Male": 0.05},
    "condition ignored (Smiling)": {"response/Smiling": 0.001},
    "exploding (D)": {"grad_norm_d": 8000.0},
    "exploding (G)": {"weight_change_g": 0.6},
    "vanishing (G)": {"grad_norm_g": 1e-6},
    "vanishing (D)": {"grad_norm_d": 0.2, "accuracy_real": 0.62, "accuracy_fake": 0.62},
    "stalled": {"movement": 0.0001},
}


def fold(history, *stretches, step=100):
    """(history, [(nimg, title or 'over: title')]) after stretches of (images, signals or function of nimg)."""
    told, begun = [], max(history.seen_nimg.values(), default=0)
    for images, signals in stretches:
        begun += images
        for nimg in range(begun - images + step, begun + step, step):
            before = {alarm.title for alarm in history.named}
            history = observe(history, nimg, signals(nimg) if callable(signals) else signals, patience_nimg=PATIENCE)
            after = {alarm.title for alarm in history.named}
            told += [(nimg, title) for title in sorted(after - before)] + [(nimg, f"over: {title}") for title in sorted(before - after)]
    return history, told


def test_a_healthy_run_raises_no_alarm_however_long():
    def trembling(nimg):
        return {name: value * (1 + 0.1 * math.sin(nimg * (3 + index))) for index, (name, value) in enumerate(HEALTHY.items())}

    history, told = fold(History(), (100_000, trembling))
    assert told == [] and history.alarms == ()


@pytest.mark.parametrize("title", SICK)
def test_each_sickness_is_named_within_its_patience_and_its_end_told(title):
    """Named no later than its own patience and two and a half for the averages' lag; over when health is back; evidence as seen."""
    history, told = fold(History(), (10_000, HEALTHY), (4 * PATIENCE, {**HEALTHY, **SICK[title]}))
    assert [name for _, name in told] == [title]
    alarm = history.named[0]
    rule = BY_KEY[alarm.rule]
    assert rule.patience * PATIENCE <= told[0][0] - 10_000 <= (rule.patience + 2.5) * PATIENCE
    assert all(f"{signal} {value:.3g} (limit {threshold:g})" in alarm.sentence() for signal, value, threshold in alarm.evidence)
    assert all(limit.crossed(value) for limit, (_, value, _) in zip(rule.limits, alarm.evidence))
    _, told = fold(history, (12 * PATIENCE, HEALTHY))
    assert [name for _, name in told] == [f"over: {title}"]


def test_a_run_near_its_end_may_stand_still():
    """Its rate has fallen by then: what stalled before .9 is over."""
    still = {**HEALTHY, **SICK["stalled"]}
    history, told = fold(History(), (10_000, HEALTHY), (4000, still))
    assert told[-1][1] == "stalled" and fold(history, (6000, still))[1] == []
    assert [title for _, title in fold(history, (6000, {**still, "progress": 0.95}))[1]] == ["over: stalled"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.key)
def test_every_rule_can_ring_and_without_it_nothing_does(rule, monkeypatch):
    """Each rule is met by one of the sick signals, and is the only one that sees it."""
    if rule.limits[0].signal in ("weight_change_d", "grad_norm_g", "grad_norm_d", "nearest"):
        norm = 5000.0 if rule.name == "exploding" else 0.01
        sick = {rule.limits[0].signal: {"weight_change_d": 0.5, "nearest": 0.02}.get(rule.limits[0].signal, norm)}
        sick |= SICK["vanishing (D)"] if rule.key == "vanishing: grad_norm_d" else {}
    else:
        sick = next(signals for title, signals in SICK.items() if title.startswith(rule.name) and rule.limits[0].signal.split("/")[0].split(
            "_smooth")[0] in {name.split("/")[0] for name in signals} | {"accuracy_d", "holdout_gap"})  # fmt: skip
        if rule.limits[0].signal == "diversity/*":
            sick = SICK["mode collapse (Male)"]
    _, told = fold(History(), (10_000, HEALTHY), (4000, {**HEALTHY, **sick}))
    assert [title.split(" (")[0] for _, title in told] == [rule.name]
    monkeypatch.setattr("mien.engine.diagnosis.RULES", tuple(other for other in RULES if other != rule))
    assert fold(History(), (10_000, HEALTHY), (4000, {**HEALTHY, **sick}))[1] == []


def test_a_gradient_that_only_comes_down_from_a_steep_start_is_not_vanishing():
    """As D of best64-cpu without spectral norm, begun by He et al.: its gradient falls thirtyfold, and it tells reals from fakes."""
    def settling(nimg):
        return {**HEALTHY, "grad_norm_d": 40 + 1255 * math.exp(-nimg / 310), "accuracy_real": 0.63, "accuracy_fake": 0.77}

    assert fold(History(), (40 * PATIENCE, settling))[1] == []
    _, told = fold(History(), (10 * PATIENCE, lambda nimg: {**settling(nimg), "accuracy_real": 0.5, "accuracy_fake": 0.5}))
    assert "vanishing (D)" in {title for _, title in told}


def test_a_signal_that_trembles_about_its_limit_rings_once_and_does_not_fall_silent():
    def trembling(nimg):
        return {**HEALTHY, "diversity/Male": 0.33 + 0.06 * math.sin(nimg / 700)}

    _, told = fold(History(), (10_000, HEALTHY), (40_000, trembling))
    assert [title for _, title in told] == ["mode collapse (Male)"]


def test_a_short_trouble_is_not_named():
    _, told = fold(History(), (10_000, HEALTHY), (700, {**HEALTHY, **SICK["D too strong"]}), (10_000, HEALTHY))
    assert told == []


def test_one_enormous_gradient_is_no_explosion_and_a_rise_that_stays_is():
    spike = {**HEALTHY, "grad_norm_d": 1e6}
    assert fold(History(), (10_000, HEALTHY), (100, spike), (5000, HEALTHY))[1] == []
    _, told = fold(History(), (10_000, HEALTHY), (2000, {**HEALTHY, "grad_norm_d": 8 * 100.0}))
    assert [title for _, title in told] == ["exploding (D)"]


def test_early_sickness_has_grace():
    """Every generator begins with one face, every discriminator by winning: that is no news until the grace has passed."""
    sick = {**HEALTHY, **SICK["mode collapse"], **SICK["D too strong"]}
    assert fold(History(), (2000, sick), (8000, HEALTHY))[1] == []
    _, told = fold(History(), (8000, sick))
    assert {title for _, title in told} >= {"mode collapse", "D too strong"} and told[0][0] >= 2 * PATIENCE


def test_two_ills_are_told_apart():
    history, told = fold(History(), (10_000, HEALTHY), (4000, {**HEALTHY, **SICK["G too strong"], "response/Male": 0.0}))
    assert {title for _, title in told} == {"G too strong", "condition ignored (Male)"} and len(history.named) == 2


def test_what_cannot_be_told_without_a_probe_is_not_told():
    seen = {name: HEALTHY[name] for name in ("accuracy_real", "accuracy_fake", "fooling_rate", "grad_norm_g")}
    assert fold(History(), (20_000, seen))[1] == []


def test_a_hold_out_gap_means_nothing_while_d_tells_nothing_apart():
    """Logits of training reals and fakes that nearly agree: their ratio is noise, whatever it is."""
    def undecided(nimg):
        unsure = {"accuracy_real": 0.64, "accuracy_fake": 0.64, "logit_train": 0.02, "logit_fake": 0.0}
        return {**HEALTHY, **unsure, "logit_val": 0.05 * math.sin(nimg)}

    assert fold(History(), (40_000, undecided))[1] == []


def test_numbers_that_are_not_finite_are_passed_over():
    history, told = fold(History(), (10_000, {**HEALTHY, "accuracy_real": float("nan"), "movement": float("inf")}))
    assert told == [] and all(math.isfinite(value) for value in history.smooth.values())


def test_the_fold_is_pure_and_goes_on_from_a_checkpoint_as_if_nothing_had_been():
    stretches = ((10_000, HEALTHY), (2300, {**HEALTHY, **SICK["D too strong"], **SICK["exploding (D)"]}))
    history, _ = fold(History(), *stretches)
    plain = history.plain()
    before = copy.deepcopy(plain)
    again = History.from_plain(json.loads(json.dumps(plain)))
    rest = (6000, HEALTHY)
    assert fold(again, rest) == fold(history, rest)
    assert history.plain() == before  # an observation makes a new history and leaves the old one alone


def test_a_checkpoint_holds_no_clock_and_its_size_no_run_length():
    told = {**HEALTHY, "images_per_s": 123.0, "memory_mb": 456.0, "loss_d": 1.0}
    short, long = fold(History(), (5000, told))[0], fold(History(), (50_000, told))[0]
    assert "images_per_s" not in short.smooth and "memory_mb" not in short.smooth
    assert short.smooth.keys() == long.smooth.keys() and {"accuracy_d", "progress"} <= WATCHED


def test_a_rule_that_a_later_version_dropped_is_passed_over():
    plain = History(alarms=(Alarm("gone: signal", "", since_nimg=0),)).plain()
    assert History.from_plain(json.loads(json.dumps(plain))).alarms == ()
