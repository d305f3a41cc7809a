import numpy as np
import pytest
import torch

from mixdpo_pyro.inference.choices import read_choices
from mixdpo_pyro.inference.likelihood.marginal import build_likelihood
from mixdpo_pyro.inference.methods.chebyshev import InterpolatedLikelihood, interpolate
from mixdpo_pyro.inference.methods.laplace import explore
from mixdpo_pyro.inference.methods.log_joint import LogJoint


def _both(simulate, family, panels, anchor="prior", cv=0.6):
    """The exact likelihood, its polynomial, and draws from the posterior."""
    margin, annotator, _ = simulate(*((100, 40) if panels else (10_000, 1)), cv, family)
    exact = build_likelihood(read_choices(margin, annotator if panels else None), family)
    lattice = explore(LogJoint(exact, anchor, 0.1))
    draws = lattice.draw(300, np.random.default_rng(1))
    return exact, interpolate(exact, lattice), {k: torch.from_numpy(v) for k, v in draws.items()}


@pytest.mark.parametrize("cv", [0.0, 0.6])
@pytest.mark.parametrize("panels", [False, True])
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_polynomial_is_the_likelihood_where_the_posterior_lives(simulate, family, panels, cv):
    exact, cheap, draws = _both(simulate, family, panels, cv=cv)
    assert isinstance(cheap, InterpolatedLikelihood) and cheap.error < 1e-5
    error = cheap(**draws) - exact(**draws)
    assert error.abs().max() < 3e-5  # at 300 points, where `error` looked at 100 others


def test_derivatives_are_those_of_the_likelihood(simulate):
    exact, cheap, _ = _both(simulate, "gamma", False)
    point = torch.tensor([0.1, 0.6], dtype=torch.float64, requires_grad=True)
    slopes = [torch.autograd.grad(f(point[0], point[1]), point)[0] for f in (cheap, exact)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-6, atol=1e-4)


def test_far_from_the_posterior_it_is_exact(simulate):
    exact, cheap, _ = _both(simulate, "gamma", False)
    mean = torch.tensor([1e-3, 0.1, 5.0], dtype=torch.float64, requires_grad=True)
    cv = torch.tensor([0.6, 9.0, 0.6], dtype=torch.float64)
    value = cheap(mean, cv)
    assert torch.equal(value, exact(mean, cv))
    value.sum().backward()
    assert torch.isfinite(mean.grad).all()
    mixed = cheap(mean[[2, 1]], cv[[0, 2]])
    assert mixed[0] == value[2]
    assert mixed[1].item() == pytest.approx(exact(mean[1], cv[0]).item(), abs=1e-5)


def test_fixed_mean_leaves_a_polynomial_in_cv_alone(simulate):
    exact, cheap, draws = _both(simulate, "lognormal", True, "fixed")
    assert cheap.coefficients.shape[1] == 1
    torch.testing.assert_close(cheap(**draws), exact(**draws), rtol=0, atol=3e-5)
    elsewhere = torch.tensor(0.11, dtype=torch.float64), draws["cv"][0]
    assert cheap(*elsewhere) == exact(*elsewhere)


def test_few_data_are_not_interpolated(simulate):
    """Twenty choices leave cv anywhere up to 3, where no polynomial tried is close enough."""
    margin, annotator, _ = simulate(4, 5, 1.0)
    exact = build_likelihood(read_choices(margin, annotator), "lognormal")
    assert interpolate(exact, explore(LogJoint(exact, "prior", 0.1))) is exact
