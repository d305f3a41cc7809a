import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp
from scipy.stats import gamma as gamma_law
from scipy.stats import norm

from mixdpo_pyro.inference import fit_joint
from mixdpo_pyro.models import mixed_logit_log_prob

TRUTH = np.array([1.0, -0.7, 0.4])


def _simulate(family, num_people, choices_each, cv=0.6, truth=TRUTH, seed=0):
    """Attribute differences of the chosen over the rejected alternative, and respondents."""
    rng = np.random.default_rng(seed)
    if family == "gamma":
        scale = rng.gamma(cv**-2, cv**2, num_people)
    else:
        sigma = math.sqrt(math.log1p(cv**2))
        scale = rng.lognormal(-(sigma**2) / 2, sigma, num_people)
    person = np.repeat(np.arange(num_people), choices_each)
    x = rng.normal(size=(len(person), len(truth)))
    prefers_first = rng.random(len(x)) < expit(scale[person] * (x @ truth))
    return np.where(prefers_first[:, None], x, -x), person


def _quadrature_log_likelihood(parameters, x, person, family, num_points=201):
    """The panel likelihood by an independent 201-point trapezoid rule."""
    *theta, cv = parameters
    if family == "gamma":
        log_beta = np.linspace(-12, 3.5, num_points)
        log_law = gamma_law.logpdf(np.exp(log_beta), cv**-2, scale=cv**2) + log_beta
    else:
        sigma = math.sqrt(math.log1p(cv**2))
        log_beta = np.linspace(-8, 8, num_points) * sigma - sigma**2 / 2
        log_law = norm.logpdf(log_beta, -(sigma**2) / 2, sigma)
    log_choice = log_expit(np.exp(log_beta) * (x @ np.array(theta))[:, None])
    by_person = np.stack([np.bincount(person, column) for column in log_choice.T], axis=1)
    return (logsumexp(by_person + log_law, axis=1) + np.log(log_beta[1] - log_beta[0])).sum()


def _linear(size=3):
    module = torch.nn.Linear(size, 1, bias=False)
    torch.nn.init.constant_(module.weight, 0.1)
    return module


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_linear_utility_reaches_the_maximum_of_a_quadrature_likelihood(family):
    x, person = _simulate(family, 60, 10)
    result = fit_joint(_linear(), torch.from_numpy(x), person, family)
    found = minimize(
        lambda p: -_quadrature_log_likelihood([*p[:-1], math.exp(p[-1])], x, person, family),
        [*result.estimates[:-1] + 0.1, math.log(result.cv) - 0.2],
        method="BFGS",
    )
    assert result.log_likelihood == pytest.approx(-found.fun, abs=0.01)
    assert result.is_converged
    np.testing.assert_allclose(result.estimates[:-1], found.x[:-1], atol=0.01)


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_estimates_lie_within_their_standard_errors_of_the_truth(family):
    x, person = _simulate(family, 300, 12, seed=3)
    table = fit_joint(_linear(), torch.from_numpy(x), person, family).table()
    assert list(table.index) == ["weight[0, 0]", "weight[0, 1]", "weight[0, 2]", "cv"]
    z = (table["estimate"] - [*TRUTH, 0.6]) / table["std_error"]
    assert (z.abs() < 4.5).all()  # each fails once in 1e5
    assert (table["std_error"] < 0.15).all() and (table["p_value"][:3] < 1e-4).all()


def test_output_of_a_choice_model_is_consistent():
    x, person = _simulate("lognormal", 60, 10)
    result = fit_joint(_linear(), torch.from_numpy(x), person)
    assert result.null_log_likelihood == pytest.approx(600 * math.log(0.5))
    assert result.aic == pytest.approx(8 - 2 * result.log_likelihood)
    assert result.bic == pytest.approx(4 * math.log(600) - 2 * result.log_likelihood)
    assert result.mcfadden == pytest.approx(1 - result.log_likelihood / -415.888, abs=1e-5)
    with torch.no_grad():
        margin = result.module(torch.from_numpy(x)).squeeze(-1)
    np.testing.assert_allclose(margin, x @ result.estimates[:-1])


def test_network_is_fitted_to_a_critical_point_and_the_original_stays():
    x, person = _simulate("lognormal", 100, 10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)
        )
    before = [p.clone() for p in network.parameters()]
    result = fit_joint(network, torch.from_numpy(x), person)
    assert len(result.names) == 12
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    margin = result.module(torch.from_numpy(x)).squeeze(-1)
    log_prob = mixed_logit_log_prob(
        margin, 1.0, result.cv, "lognormal", annotator=torch.from_numpy(person)
    )
    assert log_prob.sum().item() == pytest.approx(result.log_likelihood, abs=1e-8)
    gradients = torch.autograd.grad(log_prob.mean(), list(result.module.parameters()))
    assert max(g.abs().max().item() for g in gradients) < 1e-3  # per person; at the start, 1


def test_respondents_alike_have_a_small_cv():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3_000, 3))
    x = np.where((rng.random(3_000) < expit(x @ TRUTH))[:, None], x, -x)
    result = fit_joint(_linear(), torch.from_numpy(x), np.repeat(np.arange(100), 30))
    assert result.cv < 0.25
    np.testing.assert_allclose(result.estimates[:3], TRUTH, atol=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "fixed"}, "family gamma or lognormal, got 'fixed'"),
        ({"mean": "free"}, "mean='fixed', got 'free'"),
        ({"beta": -1.0}, "beta > 0, got -1.0"),
        ({"initial_cv": 0.0}, "initial_cv > 0, got 0.0"),
        ({"annotator": [1, 1]}, "at least two annotators"),
    ],
)
def test_unusable_arguments_raise(arguments, message):
    inputs = torch.tensor([[1.0], [-0.5]])
    with pytest.raises(ValueError, match=message):
        fit_joint(torch.nn.Linear(1, 1), inputs, **arguments)


def test_too_many_parameters_have_no_table():
    x, person = _simulate("lognormal", 20, 5)
    network = torch.nn.Sequential(torch.nn.Linear(3, 80), torch.nn.Linear(80, 1))
    result = fit_joint(network, torch.from_numpy(x), person, max_steps=3)
    assert result.covariance is None
    with pytest.raises(ValueError, match="at most 300 parameters, got 402"):
        result.table()
