"""Metrics of margins against hand-made numbers and simulated coverage."""

import numpy as np
import pytest

from mixdpo_pyro.training.group_metrics import decisive_rows, evaluate_groups

MARGIN = np.array([1.0, 2.0, -1.0, 0.0, 3.0, -2.0])
GROUP = np.array(["a", "a", "a", "b", "b", "c"])


def test_micro_macro_and_worst_are_those_of_the_groups():
    result = evaluate_groups(MARGIN, GROUP)
    assert result.groups["a"] == {"pairs": 3, "accuracy": 2 / 3, "margin": 2 / 3}
    assert result.groups["b"] == {"pairs": 2, "accuracy": 0.75, "margin": 1.5}
    assert result.groups["c"] == {"pairs": 1, "accuracy": 0.0, "margin": -2.0}
    values = result.values
    assert values["micro/accuracy"] == pytest.approx(3.5 / 6)
    assert values["micro/margin"] == pytest.approx(0.5)
    assert values["macro/accuracy"] == pytest.approx((2 / 3 + 0.75) / 3)
    assert values["worst_group/accuracy"] == 0.0
    assert values["worst_group/margin"] == -2.0


def test_order_of_the_pairs_does_not_matter():
    shuffled = np.random.default_rng(0).permutation(len(MARGIN))
    first, second = (evaluate_groups(MARGIN[k], GROUP[k]) for k in (slice(None), shuffled))
    for name in ("micro/accuracy", "macro/margin", "worst_group/margin"):
        assert first.values[name] == pytest.approx(second.values[name])


def test_without_groups_only_micro_is_given():
    assert {name.split("/")[0] for name in evaluate_groups(MARGIN).values} == {"micro"}


def test_same_seed_same_intervals():
    assert evaluate_groups(MARGIN, GROUP, seed=3) == evaluate_groups(MARGIN, GROUP, seed=3)


def test_intervals_cover_the_truth():
    """Of 200 intervals of nominal 90%, 160 to 195 cover: a failure rate of 2e-5."""
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        margin = np.where(rng.random(300) < 0.7, 1.0, -1.0)
        values = evaluate_groups(margin, num_resamples=300, seed=seed).values
        covered += values["micro/accuracy_q05"] <= 0.7 <= values["micro/accuracy_q95"]
    assert 160 <= covered <= 195


def test_long_groups_are_resampled_in_parts(monkeypatch):
    margin = np.random.default_rng(0).normal(0.5, 1, 1000)
    whole = evaluate_groups(margin, num_resamples=50).values
    monkeypatch.setattr("mixdpo_pyro.training.group_metrics._CHUNK", 3000)
    assert evaluate_groups(margin, num_resamples=50).values == pytest.approx(whole)


@pytest.mark.parametrize(
    ("margin", "group", "message"),
    [
        ([], None, "Expected at least one margin, got none"),
        ([1.0], ["a", "b"], "Expected one group a margin, got 2 for 1"),
    ],
)
def test_bad_input_is_named(margin, group, message):
    with pytest.raises(ValueError, match=message):
        evaluate_groups(np.array(margin), group and np.array(group))


def test_a_choice_is_decided_by_its_strongest_other_response_and_a_tie_by_none():
    margin, rows = decisive_rows(MARGIN, choice=np.array([7, 2, 7, 2, 7, 5]))
    assert margin.tolist() == [0.0, -2.0, -1.0] and rows.tolist() == [3, 5, 2]
    margin, rows = decisive_rows(MARGIN, sign=np.array([1, -1, 0, 0, 1, -1]))
    assert margin.tolist() == [1.0, -2.0, 3.0, 2.0] and rows.tolist() == [0, 1, 4, 5]
    assert decisive_rows(MARGIN)[0] is MARGIN
