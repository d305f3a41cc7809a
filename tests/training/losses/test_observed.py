"""The loss of observed choices: thresholds in closed form, pairs to the digit, mirrored sides."""

import math

import numpy as np
import pytest
import torch

from mixdpo_pyro.training.learned_strength import StrengthConfig
from mixdpo_pyro.training.losses.observed import Done, build_observation, signs

MARGIN = torch.tensor([3.0, -1.0, 0.5, 8.0, -4.0, 0.0])


def objective(kind, num_outcomes=0, family="fixed", **settings):
    config = StrengthConfig(
        family=family, observation=kind, num_outcomes=num_outcomes, mean_anchor="free", **settings
    )
    return config.build()


def fitted(kind, num_outcomes, code):
    """The objective with thresholds fitted to judgements whose margins say nothing."""
    found, done = objective(kind, num_outcomes).double(), Done(code=torch.tensor(code))
    optimizer = torch.optim.LBFGS(
        found.parameters(), max_iter=200, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = sum(found.terms(torch.zeros(len(code)).double(), num_total=10**9, done=done))
        loss.backward()
        return loss

    optimizer.step(closure)
    return found.named_thresholds()


def test_thresholds_fit_the_shares_of_outcomes_in_closed_form():
    """At margin 0 Rao-Kupper has P(tie) = tanh(tau / 2), Davidson nu / (2 + nu)."""
    code = [0] * 3 + [1] * 4 + [2] * 3
    assert fitted("rao-kupper", 3, code) == pytest.approx({"threshold": 2 * math.atanh(0.4)}, 1e-4)
    assert fitted("davidson", 3, code) == pytest.approx({"nu": 4 / 3}, rel=1e-4)
    grades = fitted("grades", 5, [0] + [1] * 2 + [2] * 4 + [3] * 2 + [4])
    logit = {f"cut_point_{k}": math.log(p / (1 - p)) for k, p in ((1, 0.7), (2, 0.9))}
    assert grades == pytest.approx(logit, rel=1e-4)
    halves = fitted("grades", 4, [0] + [1] * 4 + [2] * 4 + [3])
    assert halves == pytest.approx({"cut_point_1": math.log(9)}, rel=1e-4)


def test_prior_of_the_thresholds_counts_once_among_all_choices():
    found = objective("grades", 5)
    with torch.no_grad():
        found.thresholds.add_(torch.tensor([0.3, -0.4]))
    done = Done(code=torch.tensor([0, 1, 2, 3, 4, 4]))
    _, divergence = found.terms(MARGIN, num_total=50, done=done)
    assert divergence.item() == pytest.approx(0.25 / 2 / 50, rel=1e-5)


@pytest.mark.parametrize("family", ["fixed", "lognormal", "gamma"])
def test_sets_of_two_take_the_path_of_pairs(family):
    pairs, sets = objective("pairs", 2, family), objective("sets", 0, family)
    done = Done(torch.tensor([4, 1, 0, 9, 2, 3]), torch.zeros(6).long())
    assert torch.equal(sets.terms(MARGIN, done=done)[0], pairs.terms(MARGIN)[0])
    assert torch.equal(sets.log_prob(MARGIN, done), pairs.log_prob(MARGIN))


def test_a_set_of_three_beside_one_of_two_is_as_by_hand():
    done = Done(torch.tensor([5, 2, 5]), torch.zeros(3).long())
    found = objective("sets", beta=0.7).log_prob(torch.tensor([1.0, -2.0, 3.0]), done)
    expected = [-np.log1p(np.exp(1.4)), -np.log1p(np.exp(-0.7) + np.exp(-2.1))]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "number"), [("rao-kupper", 3), ("davidson", 3), ("grades", 4), ("grades", 7)]
)
def test_swapping_the_responses_mirrors_what_was_said(kind, number):
    found = objective(kind, number, "lognormal")
    code = torch.arange(6) % number
    there = found.log_prob(MARGIN, Done(code=code))
    back = found.log_prob(-MARGIN, Done(code=number - 1 - code))
    torch.testing.assert_close(there, back)
    assert torch.equal(signs(code, number), -signs(number - 1 - code, number))


def test_signs_say_which_response_was_the_better_one():
    assert signs(torch.arange(5), 5).tolist() == [-1, -1, 0, 1, 1]
    assert signs(torch.arange(4), 4).tolist() == [-1, -1, 1, 1]
    assert build_observation("pairs", 2) is None
