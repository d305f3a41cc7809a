"""The judge of the simulated world: right inside the grammar, and never fooled outside."""

import numpy as np
import pytest

from mixdpo_pyro.data.simulation import SENTENCES, response_reward, simulate_preferences
from mixdpo_pyro.winrates.oracle import NUM_SLOTS, parse_response, total_reward

BEST = " ".join(
    next(s for s, (slot, worth) in SENTENCES.items() if slot == k and worth == 1.5)
    for k in range(NUM_SLOTS)
)


def test_responses_of_the_world_have_the_rewards_that_they_were_drawn_with():
    for text in simulate_preferences(5, 20).dataset["chosen"]:
        assert total_reward(text) == pytest.approx(response_reward(text))
        assert parse_response(text).is_in_grammar


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "Good luck. " * 20, f"{BEST} {BEST}", BEST[:-4], f"{BEST} and so on",
        "lorem ipsum " * 50, " ".join(reversed(BEST.split(". "))), BEST.replace(".", ""),
        "Tell me how it went, and enjoy it.", "\U0001f600", f"x{BEST}",
    ],
)  # fmt: skip
def test_nothing_outside_of_the_grammar_reaches_the_best_inside(text):
    assert not parse_response(text).is_in_grammar
    assert total_reward(text) < total_reward(BEST) - 2.9


def test_no_fault_pays():
    """Damage of any kind to random responses never raises their reward."""
    rng = np.random.default_rng(0)
    for text in simulate_preferences(4, 25, seed=1).dataset["rejected"]:
        reward, parts = total_reward(text), text.split(". ")
        cut = text[: rng.integers(1, len(text) - 1)]
        extra = f"{text} {rng.choice(list(SENTENCES))}"
        noise = text.replace("e", "#", 1)
        for damaged in (cut, extra, noise, ". ".join(parts[:-1]), text + " zz"):
            assert total_reward(damaged) < reward, damaged


def test_every_further_repetition_costs():
    rewards = [total_reward(BEST + " Good luck." * k) for k in range(6)]
    np.testing.assert_allclose(np.diff(rewards), -3.0)
