"""Ratings from votes: closed forms, an integral on a dense grid, symmetry, and planted truth."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from scipy.stats import norm

from mixdpo_pyro.inference.people import judges as module
from mixdpo_pyro.inference.people.judges import fit_judges


def world(seed, items=8, judges=30, votes=40, cv=0.6, side=0.5, lapse=0.0, threshold=0.0):
    """Votes of judges with planted strengths and biases; every stream has its own generator."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    rating = streams[0].normal(size=items)
    rating -= rating.mean()
    scale = np.sqrt(np.log1p(cv**2))
    strength = np.exp(scale * streams[1].normal(size=judges) - scale**2 / 2)
    bias = side * streams[2].normal(size=judges)
    judge = np.repeat(np.arange(judges), votes)
    left = streams[3].integers(items, size=len(judge))
    right = (left + streams[3].integers(1, items, size=len(judge))) % items
    logit = strength[judge] * (rating[left] - rating[right]) + bias[judge]
    uniform = streams[4].random(len(judge))
    winner = np.where(
        uniform < expit(logit - threshold), "left",
        np.where(uniform > 1 - expit(-logit - threshold), "right", "tie"),
    )  # fmt: skip
    is_random = streams[5].random(len(judge)) < lapse
    winner[is_random] = np.array(["left", "right"])[streams[5].integers(2, size=is_random.sum())]
    return {"left": left, "right": right, "winner": list(winner), "judge": judge}, rating, strength


def test_two_items_have_the_log_odds_of_their_votes():
    """With a normal prior of sd 5 on each, which moves 30 to 10 by less than a hundredth."""
    fit = fit_judges(["a"] * 40, ["b"] * 40, ["left"] * 30 + ["right"] * 10)
    difference = fit.rating[0] - fit.rating[1]
    assert difference == pytest.approx(np.log(3), abs=0.01)
    variance = fit.covariance[0, 0] + fit.covariance[1, 1] - 2 * fit.covariance[0, 1]
    assert variance == pytest.approx(1 / 40 / (0.75 * 0.25), rel=0.02)


def test_equal_judges_are_bradley_and_terry():
    data, *_ = world(1)
    fit = fit_judges(**data, equal_judges=True)
    sign = np.where(np.array(data["winner"]) == "left", 1, -1)

    def loss(u):
        logit = sign * (u[data["left"]] - u[data["right"]])
        return np.logaddexp(0, -logit).sum() + (u**2).sum() / 50

    expected = minimize(loss, np.zeros(8)).x
    np.testing.assert_allclose(fit.rating, expected - expected.mean(), atol=1e-4)
    assert fit.judges == () and fit.parameters == {}


@pytest.mark.untyped
def test_marginal_likelihood_is_that_of_a_dense_grid():
    """Strength, bias and lapse of every judge summed over a million points."""
    data, *_ = world(2, judges=6, votes=25, threshold=0.4)
    fit = fit_judges(**data)
    cv, side, threshold = (fit.parameters[n][0] for n in ("cv", "side", "threshold"))
    z = np.linspace(-6, 6, 101)
    scale = np.sqrt(np.log1p(cv**2))
    strength = np.exp(scale * z - scale**2 / 2)[:, None, None]
    bias = (side * np.sinh(z))[:, None]
    rate = expit(np.log(0.03 / 0.97) + np.sinh(z))
    mass = norm.logpdf(z) + np.log(z[1] - z[0])
    log_mass = mass[:, None, None] + mass[:, None] + mass
    rating = dict(zip(fit.items, fit.rating, strict=True))
    total = 0.0
    for judge in range(6):
        log_prob = log_mass.copy()
        for k in np.flatnonzero(data["judge"] == judge):
            difference = rating[str(data["left"][k])] - rating[str(data["right"][k])]
            logit = strength * difference + bias
            parts = {"left": expit(logit - threshold), "right": expit(-logit - threshold)}
            parts["tie"] = np.expm1(2 * threshold) * parts["left"] * parts["right"]
            log_prob += np.log((1 - rate) * parts[data["winner"][k]] + rate / 3)
        total += logsumexp(log_prob)
    assert fit.log_likelihood == pytest.approx(total, abs=6 * 0.02)  # six judges


def test_sides_may_be_swapped():
    data, *_ = world(3, threshold=0.3)
    fit = fit_judges(**data)
    other = {"left": "right", "right": "left", "tie": "tie"}
    swapped = fit_judges(
        data["right"], data["left"], [other[w] for w in data["winner"]], data["judge"]
    )
    np.testing.assert_allclose(fit.rating, swapped.rating, atol=2e-4)
    np.testing.assert_allclose(fit.side, -swapped.side[:, ::-1], atol=2e-3)
    np.testing.assert_allclose(fit.strength, swapped.strength, rtol=2e-3)


@pytest.mark.untyped
def test_a_judge_who_always_says_left_does_not_take_over():
    data, *_ = world(4, items=10)
    without = fit_judges(**data)
    rng = np.random.default_rng(5)
    left = rng.integers(10, size=300)  # a quarter of the votes of all others
    right = (left + rng.integers(1, 10, size=300)) % 10
    with_it = {
        "left": [*data["left"], *left], "right": [*data["right"], *right],
        "winner": [*data["winner"], *["left"] * 300], "judge": [*data["judge"], *[99] * 300],
    }  # fmt: skip
    found = fit_judges(**with_it)
    assert np.abs(found.rating - without.rating).max() < 0.1
    place = found.judges.index("99")
    assert found.side[place, 0] > 2
    naive = fit_judges(**with_it, equal_judges=True)
    assert np.abs(naive.rating - without.rating).max() > 0.3


@pytest.mark.untyped
def test_planted_ratings_and_strengths_are_covered():
    """Of 8 x 96 ratings and 8 x 240 strengths, 90%: outside these bounds once in a thousand."""
    inside, strong = [], []
    for seed in range(8):
        data, rating, strength = world(
            100 + seed, items=12, lapse=0.05, threshold=0.4 * (seed % 2)
        )
        fit = fit_judges(**data)
        low, high = fit.interval().T
        truth = rating[[int(k) for k in fit.items]]
        inside.append((low <= truth) & (truth <= high))
        planted = strength[[int(k) for k in fit.judges]]
        strong.append((fit.strength[:, 0] <= planted) & (planted <= fit.strength[:, 2]))
    assert 0.80 < np.mean(inside) < 0.99
    assert 0.80 < np.mean(strong) < 0.97


def test_ranks_hold_the_order_of_certain_ratings():
    data = {"left": ["a", "b"] * 200, "right": ["b", "c"] * 200, "winner": ["left"] * 400}
    fit = fit_judges(**data)
    assert fit.rank_interval().tolist() == [[1, 1], [2, 2], [3, 3]]
    assert fit.unbeaten == ("a", "c")


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        (([], [], []), "Expected votes, got none"),
        ((["a"], ["b"], ["a"]), "Expected left, right or tie, got 'a' at index 0"),
        ((["a"], ["a"], ["tie"]), "Expected two items, got 'a' twice at index 0"),
        ((["a", "c"], ["b", "d"], ["left"] * 2), "nothing says how 'a' compares with 'c'"),
        ((["a"], ["b"], ["tie", "tie"]), "as many left and right items"),
    ],
)
def test_votes_that_cannot_be_used_are_refused(votes, message):
    with pytest.raises(ValueError, match=message):
        fit_judges(*votes)


def test_objective_is_finite_wherever_a_line_search_looks():
    data, *_ = world(6, items=4, judges=5, votes=20, threshold=0.4)
    votes, *_ = module._read_votes(*data.values(), False)
    start = torch.zeros(votes.size, dtype=torch.float64)
    nodes = module._Nodes.at(start, votes)
    for far in (-60.0, 60.0):
        vector = start.clone()
        vector[votes.num_items :] = far
        assert module._objective(vector, votes, nodes).isfinite()
        assert module._Nodes.at(vector, votes).deviate.isfinite().all()


def test_ties_keep_their_probability_far_out():
    logit = torch.tensor([-40.0, 0.0, 40.0], dtype=torch.float64)
    found = module._log_tie(logit, torch.tensor(0.5, dtype=torch.float64))
    middle = np.log(1 - 2 * expit(-0.5))
    edge = np.log(np.exp(1.0) - 1) - 40 - 0.5
    np.testing.assert_allclose(found, [edge, middle, edge], atol=1e-9)
