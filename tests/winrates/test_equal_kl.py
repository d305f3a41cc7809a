"""Arms at one KL, and what would bring them there."""

import numpy as np
import pytest
from scenarios import run_rate

from mixdpo_pyro.winrates.equal_kl import common_divergence, match_arms, ways_to_reach

RATES = [
    run_rate("dpo", 0, 0.5, 60), run_rate("dpo", 0, 4.5, 80), run_rate("dpo", 1, 0.5, 62),
    run_rate("dpo", 1, 4.5, 84), run_rate("gamma", 0, 1.5, 66), run_rate("gamma", 0, 2.0, 72),
    run_rate("alone", 0, 2.0, 99),
]  # fmt: skip


def on_prompts(rates, num_prompts=4):
    """Every prompt at the rate of its run, apart from a part of its own."""
    parts = np.linspace(-9, 9, num_prompts)
    return np.array([rate.win_rate + parts for rate in rates])


def test_arms_are_compared_at_the_largest_kl_that_all_reach():
    assert common_divergence(RATES) == 2.0
    (dpo, gamma, alone), _ = match_arms(RATES, on_prompts(RATES), 2.0)
    assert dpo.rate == pytest.approx(71.5) and dpo.seeds == 2 and dpo.low < 71.5 < dpo.high
    assert (gamma.rate, gamma.seeds, gamma.low, gamma.runs) == (72, 1, None, 2)
    assert alone.rate == 99  # one run that stands there exactly
    beyond, _ = match_arms(RATES, on_prompts(RATES), 2.5)
    assert [arm.rate is None for arm in beyond] == [False, True, True]
    nowhere, differences = match_arms(RATES, on_prompts(RATES), None)
    assert [arm.rate for arm in nowhere] == [None, None, None] and differences == []
    assert common_divergence([RATES[-1]]) is None
    assert common_divergence([*RATES, run_rate("far", 0, 3.0), run_rate("far", 0, 4.0)]) is None


def test_differences_are_taken_where_both_arms_have_the_seed():
    """At a KL of 1, a third of the way from root 0.5 to root 2, arms are apart by 3 and 5."""
    rates = [
        run_rate(arm, seed, kl, 10 * seed + kl + more)
        for arm, of in {"dpo": {}, "mix": {0: 3, 1: 5, 2: 99}}.items()
        for seed, more in (of or {0: 0, 1: 0, 7: 50}).items()
        for kl in (0.25, 4.0)
    ]
    _, (found,) = match_arms(rates, on_prompts(rates), 1.0)
    assert (found.arm, found.against, found.seeds) == ("mix", "dpo", 2)
    assert found.difference == pytest.approx(4)


def test_what_is_asked_for_reaches_the_kl_of_a_policy_of_known_divergence():
    """KL is 2 w squared for one arm and 0.5 w squared for the other, at beta 0.1 over w."""
    rates = [run_rate("near", 0, 0.5), run_rate("far", 0, 2.0), run_rate("far", 1, 3.0)]
    words = ways_to_reach(rates, None)  # the nearest arm's: the others go back
    assert words == (
        "decode at more weights (--decoding_weights 0.37 0.45 1), or train far at beta 0.22 and "
        "0.27 or so"
    )
    assert 2.0 * 0.45**2 < 0.5 and 3.0 * 0.37**2 < 0.5
    assert "--decoding_weights 0.9 1 2.2)" in ways_to_reach(rates[:2], 2.0 * 0.99**2)
    assert ways_to_reach(rates[:1], 0.5 * 40**2) == "train near at beta 0.0023 or so"
    still = ways_to_reach([run_rate("still", 0, 0.0)], 1.0)
    assert still.startswith("train for longer")
