"""Win rates against numbers counted by hand, and planted effects of length."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from mixdpo_pyro.winrates.rates import (
    compare_scores,
    length_controlled,
    match_divergence,
    over_seeds,
)


def test_counts_are_those_of_a_hand():
    """Prompt 0: win, loss; prompt 1: tie; prompt 2: win. Means 1/2, 1/2, 1: two thirds."""
    found = compare_scores(
        np.array([3.0, 1, 2, 5]), np.array([2.0, 2, 2, 4]), np.array([0, 0, 1, 2])
    )
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.rate == pytest.approx(200 / 3)
    half = stats.t.ppf(0.975, 2) * np.std([50, 50, 100], ddof=1) / np.sqrt(3)
    assert found.high - found.rate == pytest.approx(half)


def test_policies_changing_places_mirror_the_rate():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, size=(2, 60)).astype(float)
    prompt = np.arange(60) // 3
    one, other = compare_scores(a, b, prompt), compare_scores(b, a, prompt)
    assert one.rate + other.rate == pytest.approx(100)
    assert (one.wins, one.ties) == (other.losses, other.ties)


def test_what_the_judge_did_not_score_is_left_out():
    found = compare_scores(np.array([1.0, np.nan]), np.array([0.0, 0.0]), np.arange(2))
    assert found.rate == 100 and np.isnan(found.low)
    with pytest.raises(ValueError, match="at least one comparison"):
        compare_scores(np.array([np.nan]), np.array([1.0]), np.arange(1))


def test_intervals_over_prompts_hold_the_truth():
    """Of 400 sets of 40 prompts of four comparisons each, 95%: 92 to 98 in all but 1 in 400."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        easy = np.repeat(rng.normal(0.4, 1.0, 40), 4)
        win = (rng.random(160) < expit(easy)).astype(float)
        found = compare_scores(win, 1 - win, np.repeat(np.arange(40), 4))
        truth = 100 * expit(np.random.default_rng(2).normal(0.4, 1.0, 200_000)).mean()
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize("effect", [0.0, 1.5])
def test_length_control_recovers_a_planted_effect(effect):
    """The judge likes long responses; at equal lengths the policy would win 60%."""
    rng = np.random.default_rng(3)
    length, other = rng.normal(130, 30, 20_000), rng.normal(100, 30, 20_000)
    difference = length - other
    logit = np.log(0.6 / 0.4) + effect * np.tanh(difference / difference.std())
    win = (rng.random(20_000) < expit(logit)).astype(float)
    assert length_controlled(win, 1 - win, length, other) == pytest.approx(60, abs=1.5)
    raw = compare_scores(win, 1 - win, np.arange(20_000)).rate
    assert (raw > 70) == (effect > 0)


def test_rates_are_matched_seed_by_seed_and_not_beyond_their_runs():
    divergence = np.array([1.0, 9.0, 1.0, 9.0, 0.2, 0.9])
    rate = np.array([50.0, 60.0, 54.0, 58.0, 70.0, 90.0])
    found = match_divergence(divergence, rate, ["0", "0", "1", "1", "2", "2"], 4.0)
    assert (found.rate, found.seeds) == (pytest.approx(55.5), 2)
    assert found.low == pytest.approx(over_seeds([55.0, 56.0])[1])
    assert match_divergence(divergence, rate, list("001122"), 9.5).seeds == 0
    # Where rewards grow with the weight, and KL with its square, distant points tell all.
    weight = np.array([0.1, 2.0])
    assert match_divergence(weight**2, 50 + 10 * weight, [0, 0], 0.81).rate == pytest.approx(59)
    alone = match_divergence(divergence[:2], rate[:2], ["0", "0"], 1.0)
    assert alone.rate == 50 and np.isnan(alone.low)
