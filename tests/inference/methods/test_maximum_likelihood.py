import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp
from scipy.stats import gamma as gamma_distribution
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
        log_distribution = (
            gamma_distribution.logpdf(np.exp(log_beta), cv**-2, scale=cv**2) + log_beta
        )
    else:
        sigma = math.sqrt(math.log1p(cv**2))
        log_beta = np.linspace(-8, 8, num_points) * sigma - sigma**2 / 2
        log_distribution = norm.logpdf(log_beta, -(sigma**2) / 2, sigma)
    log_choice = log_expit(np.exp(log_beta) * (x @ np.array(theta))[:, None])
    by_person = np.stack([np.bincount(person, column) for column in log_choice.T], axis=1)
    return (
        logsumexp(by_person + log_distribution, axis=1) + np.log(log_beta[1] - log_beta[0])
    ).sum()


def _linear(size=3):
    module = torch.nn.Linear(size, 1, bias=False)
    torch.nn.init.constant_(module.weight, 0.1)
    return module


@pytest.mark.untyped
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_linear_utility_reaches_the_maximum_of_a_quadrature_likelihood(family):
    x, person = _simulate(family, 60, 10)
    result = fit_joint(_linear(), torch.from_numpy(x), annotator=person, family=family)
    found = minimize(
        lambda p: -_quadrature_log_likelihood([*p[:-1], math.exp(p[-1])], x, person, family),
        [*result.estimates[:-1] + 0.1, math.log(result.cv) - 0.2],
        method="BFGS",
    )
    assert result.log_likelihood == pytest.approx(-found.fun, abs=0.01)
    assert result.is_converged
    np.testing.assert_allclose(result.estimates[:-1], found.x[:-1], atol=0.01)


@pytest.mark.untyped
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_estimates_lie_within_their_standard_errors_of_the_truth(family):
    x, person = _simulate(family, 300, 12, seed=3)
    table = fit_joint(_linear(), torch.from_numpy(x), annotator=person, family=family).table()
    assert list(table.index) == ["weight[0, 0]", "weight[0, 1]", "weight[0, 2]", "cv"]
    z = (table["estimate"] - [*TRUTH, 0.6]) / table["std_error"]
    assert (z.abs() < 4.5).all()  # each fails once in 1e5
    assert (table["std_error"] < 0.15).all() and (table["p_value"][:3] < 1e-4).all()


@pytest.mark.untyped
def test_strengths_that_spread_without_end_stand_at_a_bound():
    """Half of the people follow the utility always, half answer at random."""
    rng = np.random.default_rng(0)
    person, x = np.repeat(np.arange(40), 15), rng.normal(size=(600, 2))
    follows = person % 2 == 0
    is_first = np.where(follows, x @ [1.0, -0.7] > 0, rng.random(600) < 0.5)
    chosen = torch.from_numpy(np.where(is_first[:, None], x, -x))
    with pytest.warns(UserWarning, match="cv stands at a bound, 10: the likelihood rises"):
        result = fit_joint(_linear(2), chosen, annotator=person)
    assert result.at_bound == ("cv",) and result.cv == pytest.approx(10)
    log_likelihood = _quadrature_log_likelihood(
        result.estimates, chosen.numpy(), person, "lognormal"
    )
    assert result.log_likelihood == pytest.approx(log_likelihood, abs=0.05)
    # Held at the bound, cv has no standard error, and the coefficients keep theirs.
    error = result.table()["std_error"]
    assert np.isnan(error["cv"]) and np.isfinite(error[:2]).all()


@pytest.mark.untyped
def test_equal_strengths_stand_at_the_lower_bound_without_a_warning():
    x, person = _simulate("lognormal", 60, 10, cv=1e-3, seed=4)
    result = fit_joint(_linear(), torch.from_numpy(x), annotator=person)
    assert (result.at_bound, result.cv) == (("cv",), pytest.approx(1e-3))
    x, person = _simulate("lognormal", 60, 10)
    assert fit_joint(_linear(), torch.from_numpy(x), annotator=person).at_bound == ()


@pytest.mark.untyped
def test_output_of_a_choice_model_is_consistent():
    x, person = _simulate("lognormal", 60, 10)
    result = fit_joint(_linear(), torch.from_numpy(x), annotator=person)
    assert result.null_log_likelihood == pytest.approx(600 * math.log(0.5))
    assert result.aic == pytest.approx(8 - 2 * result.log_likelihood)
    assert result.bic == pytest.approx(4 * math.log(600) - 2 * result.log_likelihood)
    assert result.mcfadden == pytest.approx(1 - result.log_likelihood / -415.888, abs=1e-5)
    with torch.no_grad():
        margin = result.module(torch.from_numpy(x)).squeeze(-1)
    np.testing.assert_allclose(margin, x @ result.estimates[:-1])


@pytest.mark.untyped
def test_network_is_fitted_to_a_critical_point_and_the_original_stays():
    x, person = _simulate("lognormal", 100, 10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)
        )
    before = [p.clone() for p in network.parameters()]
    result = fit_joint(network, torch.from_numpy(x), annotator=person)
    assert len(result.names) == 12
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    margin = result.module(torch.from_numpy(x)).squeeze(-1)
    log_prob = mixed_logit_log_prob(
        margin, 1.0, result.cv, "lognormal", annotator=torch.from_numpy(person)
    )
    assert log_prob.sum().item() == pytest.approx(result.log_likelihood, abs=1e-8)
    gradients = torch.autograd.grad(log_prob.mean(), list(result.module.parameters()))
    assert max(g.abs().max().item() for g in gradients) < 1e-3  # per person; at the start, 1


class _Offset(torch.nn.Module):
    """Margins of known scale, x0 + theta x1, so that the mean of the strength is identified."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x):
        return x[:, 0] + self.theta * x[:, 1]


@pytest.mark.untyped
@pytest.mark.parametrize("anchor", ["prior", "free"])
def test_estimated_mean_reaches_the_maximum_of_a_quadrature_likelihood(anchor):
    """The margins are scaled so that the mean strength is 2, away from its prior's median."""
    x, person = _simulate("gamma", 100, 15, truth=np.array([2.0, -1.0]))
    result = fit_joint(
        _Offset(), torch.from_numpy(x), annotator=person, family="gamma", mean_anchor=anchor
    )

    def log_joint(point):
        theta, log_mean, log_cv = point
        parameters = [math.exp(log_mean), theta * math.exp(log_mean), math.exp(log_cv)]
        prior = norm.logpdf(log_mean, 0, 0.5) if anchor == "prior" else 0.0
        return _quadrature_log_likelihood(parameters, x, person, "gamma") + prior

    found = minimize(lambda p: -log_joint(p), [-0.3, 0.5, -0.8], method="BFGS")
    assert result.names == ("theta", "mean", "cv")
    assert result.mean == result.estimates[1]
    estimates = [result.estimates[0], *np.log(result.estimates[1:])]
    assert log_joint(estimates) == pytest.approx(-found.fun, abs=0.001)
    np.testing.assert_allclose(estimates, found.x, atol=0.01)
    prior = norm.logpdf(found.x[1], 0, 0.5) if anchor == "prior" else 0.0
    assert result.log_likelihood == pytest.approx(-found.fun - prior, abs=0.001)
    z = (result.table()["estimate"] - [-0.5, 2.0, 0.6]) / result.table()["std_error"]
    assert (z.abs()[["theta", "cv"]] < 4.5).all()  # the prior pulls the mean towards 1


@pytest.mark.untyped
def test_free_mean_of_a_module_that_rescales_has_no_standard_error():
    x, person = _simulate("lognormal", 60, 10)
    result = fit_joint(_linear(), torch.from_numpy(x), annotator=person, mean_anchor="free")
    error = np.sqrt(np.diag(result.covariance))[3]
    assert np.isnan(error) or error > 100 * result.mean


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("objective", "options", "tolerance"),
    [
        ("marginal", {"batch_size": 20, "window": 50}, 0.1),
        pytest.param("importance", {"num_draws": 16, "window": 50}, 0.3, marks=pytest.mark.slow),
        ("importance", {"num_draws": 64, "batch_size": 20}, 0.3),
        ("elbo", {"batch_size": 20, "window": 50}, 1.3),
    ],
)
def test_bounds_and_minibatches_find_the_maximum_of_all_data(objective, options, tolerance):
    """Estimates within so many standard errors of those of the full marginal likelihood.

    Adam ends at a sixty-fourth of its first rate, 0.0005, where a standard error is 0.1 or more.
    The importance bound is loose by about var(w) / 2K, which moves estimates by 0.1 (K = 16) and
    0.03 standard errors (K = 64) here. The ELBO with a normal guide is biased whatever its guide
    and draws: it pulls cv down by 0.7 standard errors (measured with whole data, long windows and
    64 draws), so a bound near one is what can be asked of it.
    """
    x, person = _simulate("lognormal", 80, 12)
    exact = fit_joint(_linear(), torch.from_numpy(x), annotator=person)
    result = fit_joint(
        _linear(), torch.from_numpy(x), annotator=person, objective=objective, **options
    )
    error = np.sqrt(np.diag(exact.covariance))
    assert (np.abs(result.estimates - exact.estimates) < tolerance * error).all()
    # A quadratic at this distance in the worst direction of four correlated estimates.
    assert -1e-6 <= exact.log_likelihood - result.log_likelihood < 4 * tolerance**2 / 2
    assert result.is_converged


@pytest.mark.untyped
def test_minibatches_hold_all_choices_of_a_respondent(monkeypatch):
    """Every evaluation of the likelihood sees 12 choices of each of 20 respondents."""
    from mixdpo_pyro.inference.methods import maximum_likelihood

    x, person = _simulate("lognormal", 80, 12)
    shuffle = np.random.default_rng(0).permutation(len(person))
    seen = []

    class Spy(maximum_likelihood.PreferenceModel):
        def log_prob(self, margin, mean, cv, annotator=None):
            seen.append(annotator.bincount())
            return super().log_prob(margin, mean, cv, annotator)

    monkeypatch.setattr(maximum_likelihood, "PreferenceModel", Spy)
    fit_joint(
        _linear(),
        torch.from_numpy(x[shuffle]),
        annotator=person[shuffle],
        batch_size=20,
        max_steps=8,
    )
    assert len(seen) == 8
    for counts in seen:
        assert sorted(counts[counts > 0].tolist()) == [12] * 20
    assert (sum(counts for counts in torch.nn.utils.rnn.pad_sequence(seen).T) == 24).all()


@pytest.mark.untyped
def test_equal_seeds_give_equal_estimates():
    x, person = _simulate("lognormal", 40, 5)
    options = {"objective": "importance", "batch_size": 10, "max_steps": 20}
    first, second, other = (
        fit_joint(_linear(), torch.from_numpy(x), annotator=person, seed=seed, **options)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.estimates, second.estimates)
    assert not np.array_equal(first.estimates, other.estimates)


@pytest.mark.untyped
def test_respondents_alike_have_a_small_cv():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3_000, 3))
    x = np.where((rng.random(3_000) < expit(x @ TRUTH))[:, None], x, -x)
    result = fit_joint(_linear(), torch.from_numpy(x), annotator=np.repeat(np.arange(100), 30))
    assert result.cv < 0.25
    np.testing.assert_allclose(result.estimates[:3], TRUTH, atol=0.3)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "fixed"}, "family to be one of gamma, lognormal, got 'fixed'"),
        ({"mean_anchor": "none"}, "mean_anchor to be one of prior, fixed, free, got 'none'"),
        ({"objective": "renyi"}, "objective to be one of marginal, importance, elbo, got 'renyi'"),
        ({"batch_size": 3}, "batch_size <= 2, got 3"),
        ({"beta": -1.0}, "beta > 0, got -1.0"),
        ({"initial_cv": 0.0}, "initial_cv > 0, got 0.0"),
        ({"annotator": [1, 1]}, "at least two annotators"),
    ],
)
@pytest.mark.wrong_types
def test_unusable_arguments_raise(arguments, message):
    inputs = torch.tensor([[1.0], [-0.5]])
    with pytest.raises(ValueError, match=message):
        fit_joint(torch.nn.Linear(1, 1), inputs, **arguments)


@pytest.mark.untyped
def test_too_many_parameters_have_no_table():
    x, person = _simulate("lognormal", 20, 5)
    network = torch.nn.Sequential(torch.nn.Linear(3, 80), torch.nn.Linear(80, 1))
    result = fit_joint(network, torch.from_numpy(x), annotator=person, max_steps=3)
    assert result.covariance is None
    with pytest.raises(ValueError, match="at most 300 parameters, got 402"):
        result.table()


@pytest.mark.untyped
def test_linear_module_that_starts_at_zero_reaches_the_same_maximum():
    x, person = _simulate("gamma", 40, 8)
    zero = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.zeros_(zero.weight)
    found, expected = (
        fit_joint(module, torch.from_numpy(x), annotator=person, family="gamma")
        for module in (zero, _linear())
    )
    assert found.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-5)
    np.testing.assert_allclose(found.estimates, expected.estimates, rtol=1e-3)


@pytest.mark.untyped
def test_network_that_starts_at_zero_leaves_the_saddle():
    x, person = _simulate("gamma", 40, 8)
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 4, bias=False), torch.nn.Tanh(), torch.nn.Linear(4, 1, bias=False)
    )
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    result = fit_joint(network, torch.from_numpy(x), annotator=person, max_steps=200)
    assert result.log_likelihood > result.null_log_likelihood + 20


@pytest.mark.untyped
def test_module_whose_margins_cannot_differ_is_refused():
    x = torch.zeros(20, 2)
    with pytest.raises(ValueError, match="Expected margins that differ"):
        fit_joint(torch.nn.Linear(2, 1), x)


@pytest.mark.untyped
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("objective", ["marginal", "elbo"])
def test_joint_fit_works_in_whatever_mode_the_caller_is(mode, objective):
    x, person = _simulate("gamma", 20, 5)
    options = {"annotator": person, "objective": objective, "max_steps": 5}
    outside = fit_joint(_linear(), torch.from_numpy(x), **options)
    with mode():
        inside = fit_joint(_linear(), torch.from_numpy(x).clone(), **options)
    np.testing.assert_array_equal(inside.estimates, outside.estimates)
