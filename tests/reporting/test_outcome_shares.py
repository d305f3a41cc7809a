"""Counts of outcomes, and their shares by the size of the margin."""

import numpy as np
import pytest
import torch

from mixdpo_pyro.inference import Posterior, read_choices
from mixdpo_pyro.models.observation import RaoKupper
from mixdpo_pyro.reporting.outcome_shares import (
    fold_judgements,
    name_outcomes,
    replicate_shares,
    sizes_of_choices,
)


def test_outcomes_are_counted_by_the_names_of_their_kind():
    margin = [1.0, -2.0, 0.5, 3.0]
    ties = read_choices(margin, outcome=["win", "tie", "tie", "loss"])
    assert ties.outcomes.count() == {"loss": 1, "tie": 2, "win": 1}
    odd = read_choices(margin, outcome=[2, -1, 0, 1])
    assert odd.outcomes.count() == {
        "grade -2": 0, "grade -1": 1, "tie": 1, "grade +1": 1, "grade +2": 1
    }  # fmt: skip
    even = read_choices(margin, outcome=[2, -1, -1, 1])
    assert even.outcomes.count() == {
        "grade -2": 0, "grade -1": 2, "grade +1": 1, "grade +2": 1
    }  # fmt: skip
    sets = read_choices(margin, choice_set=[0, 1, 1, 2])
    assert sets.outcomes.count() == {"among 2 responses": 2, "among 3 responses": 1}


def test_judgements_are_seen_from_the_response_that_the_margin_favours():
    choices = read_choices([1.0, -2.0, -0.5], outcome=[2, 2, -1])
    folded = fold_judgements(choices, np.random.default_rng(0))
    np.testing.assert_array_equal(folded.margin, [1.0, 2.0, 0.5])
    names = np.array(name_outcomes(folded))[folded.outcomes.code]
    assert names.tolist() == ["grade +2", "grade -2", "grade +1"]


def test_sets_are_put_into_bins_by_the_lead_of_their_best_response():
    """Utilities 0, -1, -3 and 0, 2, 1: the best of the second set was not chosen."""
    choices = read_choices([1.0, 3.0, -2.0, -1.0], choice_set=[0, 0, 1, 1])
    np.testing.assert_array_equal(sizes_of_choices(choices), [1.0, 1.0])
    assert name_outcomes(choices)[0] == "best response chosen"


def test_replicated_shares_are_those_of_the_model():
    """One strength, margins of one size: the bands are binomial around known probabilities."""
    rng = np.random.default_rng(0)
    margin = np.where(np.arange(2_000) % 2, 1.0, -1.0) + 1e-6 * rng.random(2_000)
    choices = read_choices(margin, outcome=rng.integers(-1, 2, 2_000))
    posterior = Posterior(
        mean=np.full(200, 0.8), cv=np.zeros(200), family="lognormal", observation="rao-kupper",
        parameters={"threshold": np.full(200, 0.4)},
    )  # fmt: skip
    shares = replicate_shares(posterior, choices)
    expected = RaoKupper(0.4).probabilities(torch.tensor([1.0]), 0.8)[0]
    for k, (_, rows) in enumerate(shares.groupby("outcome", sort=False)):
        assert len(rows) == 10 and (rows["choices"] == 200).all()
        assert rows["q50"].mean() == pytest.approx(expected[k].item(), abs=0.01)
        assert ((rows["q05"] < expected[k].item()) & (rows["q95"] > expected[k].item())).all()
    assert shares.groupby("margin")["observed"].sum().to_numpy() == pytest.approx(1.0)
