"""`fit_joint` of choices that are not plain pairs: sets, rankings, ties and grades."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_expit, logsumexp
from scipy.stats import norm

from mixdpo_pyro.inference import fit_joint
from mixdpo_pyro.inference.likelihood.observed import marginal_log_prob
from mixdpo_pyro.inference.methods import maximum_likelihood
from mixdpo_pyro.inference.outcomes import Outcomes
from mixdpo_pyro.models.observation import Ranking

TRUTH = np.array([1.0, -0.7])


def draw_people(num_people, each, cv, rng):
    sigma = math.sqrt(math.log1p(cv**2))
    return np.repeat(rng.lognormal(-(sigma**2) / 2, sigma, num_people), each)


def best_of(size, num_people=60, each=8, cv=0.6, seed=0):
    """Differences of attributes, the chosen response against each other one, and their ids."""
    rng = np.random.default_rng((3, seed))
    strength = draw_people(num_people, each, cv, rng)
    x = rng.normal(size=(len(strength), size, 2))
    utility = strength[:, None] * (x @ TRUTH) + rng.gumbel(size=(len(strength), size))
    order = np.argsort(-utility, axis=1)
    x = np.take_along_axis(x, order[:, :, None], 1)
    rows = (x[:, :1] - x[:, 1:]).reshape(-1, 2)
    choice = np.repeat(np.arange(len(strength)), size - 1)
    rank = np.tile(np.arange(2, size + 1), len(strength))
    return rows, choice // each, {"choice_set": choice, "rank": rank}


def graded(cut_points, num_people=60, each=8, cv=0.6, seed=0):
    rng = np.random.default_rng((4, seed))
    strength = draw_people(num_people, each, cv, rng)
    x = rng.normal(size=(len(strength), 2)) * 1.5
    latent = strength * (x @ TRUTH) + rng.logistic(size=len(x))
    grade = np.sign(latent) * (np.abs(latent)[:, None] > cut_points).sum(1)
    return x, np.arange(len(x)) // each, {"outcome": grade.astype(int)}


def linear():
    module = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(module.weight, 0.1)
    return module


def mixed(log_choice_at, person, cv):
    """Independent trapezoid rule over the log strength, lognormal with mean one."""
    sigma = math.sqrt(math.log1p(cv**2))
    z = np.linspace(-8, 8, 161)
    beta = np.exp(sigma * z - sigma**2 / 2)
    value = np.stack([np.bincount(person, log_choice_at(b)) for b in beta], axis=1)
    return (logsumexp(value + norm.logpdf(z), axis=1) + math.log(z[1] - z[0])).sum()


def log_likelihood_of_sets(estimates, x, person, done, depth):
    """Plackett and Luce, stage by stage; rows are in the order of their ranks."""
    size = done["rank"].max()
    gap = (x @ estimates[:2]).reshape(-1, size - 1)
    utility = np.concatenate([np.zeros((len(gap), 1)), -gap], axis=1)
    first = person.reshape(-1, size - 1)[:, 0]

    def log_choice(beta):
        stages = range(depth or size - 1)
        return sum(beta * utility[:, k] - logsumexp(beta * utility[:, k:], axis=1) for k in stages)

    return mixed(log_choice, first, estimates[-1])


def log_likelihood_of_grades(estimates, x, person, done):
    points = estimates[2:-1]
    edges = np.concatenate([[-np.inf], -points[::-1], points, [np.inf]])
    low, high = (edges[done["outcome"] + len(points) + k] for k in (0, 1))
    margin = x @ estimates[:2]

    def log_choice(beta):
        difference = np.log(-np.expm1(low - high))
        return log_expit(high - beta * margin) + log_expit(beta * margin - low) + difference

    return mixed(log_choice, person, estimates[-1])


def is_critical(function, estimates, errors, tolerance=0.02):
    """No move of one standard error up or down along an axis has a slope at its middle."""
    for k, step in enumerate(1e-3 * errors):
        move = step * np.eye(len(estimates))[k]
        slope = (function(estimates + move) - function(estimates - move)) / 2e-3
        assert abs(slope) < tolerance, k


@pytest.mark.untyped
@pytest.mark.parametrize("is_ranked", [False, True])
def test_sets_reach_the_maximum_of_an_independent_likelihood(is_ranked):
    x, person, done = best_of(3)
    given = done if is_ranked else {"choice_set": done["choice_set"]}
    result = fit_joint(linear(), torch.from_numpy(x), annotator=person, **given)

    def log_likelihood(estimates):
        return log_likelihood_of_sets(estimates, x, person, done, None if is_ranked else 1)

    assert result.log_likelihood == pytest.approx(log_likelihood(result.estimates), abs=1e-6)
    errors = result.table()["std_error"].to_numpy()
    is_critical(log_likelihood, result.estimates, errors)
    assert (np.abs(result.estimates - [*TRUTH, 0.6]) < 4.5 * errors).all()
    assert result.num_choices == 480
    outcomes = 6 if is_ranked else 3
    assert result.null_log_likelihood == pytest.approx(-480 * math.log(outcomes))


@pytest.mark.parametrize("cut_points", [[0.7], [0.7, 2.0]])
def test_thresholds_are_learned_with_the_module(cut_points):
    x, person, done = graded(np.array(cut_points))
    result = fit_joint(linear(), torch.from_numpy(x), annotator=person, **done)

    def log_likelihood(estimates):
        return log_likelihood_of_grades(estimates, x, person, done)

    names = ["threshold"] if len(cut_points) == 1 else ["cut_points[1]", "cut_points[2]"]
    assert result.names[2:] == (*names, "cv")
    assert result.log_likelihood == pytest.approx(log_likelihood(result.estimates), abs=1e-6)
    errors = result.table()["std_error"].to_numpy()
    is_critical(log_likelihood, result.estimates, errors)
    assert (np.abs(result.estimates - [*TRUTH, *cut_points, 0.6]) < 4.5 * errors).all()
    assert result.null_log_likelihood == pytest.approx(-480 * math.log(2 * len(cut_points) + 1))


def test_two_responses_without_ties_are_pairs_to_the_last_bit():
    x, person, _ = best_of(2, 20, 6)
    plain = fit_joint(linear(), torch.from_numpy(x), annotator=person)
    sets = fit_joint(linear(), torch.from_numpy(x), annotator=person, choice_set=np.arange(len(x)))
    np.testing.assert_array_equal(plain.estimates, sets.estimates)
    turned = np.arange(len(x)) % 2 == 0
    wins = fit_joint(
        linear(), torch.from_numpy(np.where(turned[:, None], -x, x)), annotator=person,
        outcome=np.where(turned, "loss", "win"),
    )  # fmt: skip
    np.testing.assert_array_equal(plain.estimates, wins.estimates)
    assert plain.log_likelihood == wins.log_likelihood == sets.log_likelihood


def test_the_likelihood_of_sets_of_two_is_that_of_pairs():
    """One strength for all: no quadrature stands between them; gradients too."""
    x, _, _ = best_of(2, 20, 6)
    outcomes = Outcomes.of(Ranking(1), np.arange(len(x)), np.zeros(len(x), dtype=np.int64))
    margin = torch.from_numpy(x @ TRUTH).requires_grad_()
    mean, cv = torch.tensor([0.8, 0.5]).double()
    value = marginal_log_prob(outcomes, margin, mean, cv, "fixed", torch.zeros(0))
    pairs = torch.nn.functional.logsigmoid(mean * margin)
    torch.testing.assert_close(value, pairs, rtol=0, atol=1e-12)
    (found,), (expected,) = (torch.autograd.grad(v.sum(), margin) for v in (value, pairs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("has_ids", [True, False])
def test_minibatches_hold_whole_sets(has_ids, monkeypatch):
    x, person, done = best_of(3, 20, 4)
    shuffle = np.random.default_rng(0).permutation(len(x))
    seen = []
    likelihood = maximum_likelihood.marginal_log_prob

    def spy(outcomes, margin, *rest):
        seen.append((len(margin), outcomes.num_choices, set(outcomes.sizes)))
        return likelihood(outcomes, margin, *rest)

    monkeypatch.setattr(maximum_likelihood, "marginal_log_prob", spy)
    fit_joint(
        linear(), torch.from_numpy(x[shuffle]), annotator=person[shuffle] if has_ids else None,
        choice_set=done["choice_set"][shuffle], batch_size=5, max_steps=4,
    )  # fmt: skip
    number = 20 if has_ids else 5
    assert seen[:4] == [(2 * number, number, {3})] * 4


@pytest.mark.untyped
def test_minibatches_climb_to_the_maximum_of_all_sets():
    """Within a standard error of the estimates of all data."""
    x, person, done = best_of(3, 40, 5)
    exact, batches = (
        fit_joint(linear(), torch.from_numpy(x), annotator=person, **done, **options)
        for options in ({}, {"batch_size": 20, "max_steps": 100})
    )
    error = np.sqrt(np.diag(exact.covariance))
    assert (np.abs(batches.estimates - exact.estimates) < error).all()


@pytest.mark.parametrize("objective", ["importance", "elbo"])
def test_bounds_are_for_pairs(objective):
    x, person, done = best_of(3, 5, 3)
    with pytest.raises(ValueError, match="objective='marginal' for choices that are not plain"):
        fit_joint(linear(), torch.from_numpy(x), annotator=person, objective=objective, **done)
