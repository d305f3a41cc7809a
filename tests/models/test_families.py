import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixdpo_pyro.models.families import (
    FAMILIES,
    cv_prior,
    lognormal_parameters,
    mean_prior,
    strength_distribution,
    strength_log_density,
)


@given(mean=st.floats(1e-3, 100.0), cv=st.floats(1e-6, 20.0))
@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_the_distribution_has_the_stated_mean_and_cv(family, mean, cv):
    mean, cv = torch.tensor(mean, dtype=torch.float64), torch.tensor(cv, dtype=torch.float64)
    distribution = strength_distribution(mean, cv, family)
    torch.testing.assert_close(distribution.mean, mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(distribution.variance, (mean * cv).square(), rtol=1e-6, atol=0)


@given(mean=st.floats(1e-3, 100.0), cv=st.floats(1e-6, 20.0), z=st.floats(-5, 5))
@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_density_without_a_distribution_is_the_distributions(family, mean, cv, z):
    mean, cv = torch.tensor([mean, cv], dtype=torch.float64)
    strength = mean * (cv.clamp(max=1.0) * z).exp()
    expected = strength_distribution(mean, cv, family).log_prob(strength)
    found = strength_log_density(strength, mean, cv, family)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)


def test_fixed_strength_is_a_point():
    distribution = strength_distribution(torch.tensor(0.1), torch.tensor(0.5), "fixed")
    assert distribution.sample() == 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lognormal_scale_and_its_derivative_survive_a_tiny_cv(dtype):
    cv = torch.tensor([1e-30, 1e-13, 1e-11, 1e-4], dtype=dtype, requires_grad=True)
    scale = lognormal_parameters(torch.ones_like(cv), cv)[1]
    torch.testing.assert_close(scale, cv, rtol=1e-7, atol=0)
    (slope,) = torch.autograd.grad(scale.sum(), cv)
    torch.testing.assert_close(slope, torch.ones_like(cv), rtol=1e-6, atol=0)


def test_batch_shape_is_the_broadcast_shape():
    for family in FAMILIES:
        distribution = strength_distribution(torch.ones(3, 1), torch.full((4,), 0.5), family)
        assert distribution.batch_shape == (3, 4)


def test_priors_are_centred_on_dpo():
    assert mean_prior(0.2).icdf(torch.tensor(0.5)).item() == pytest.approx(0.2)
    assert cv_prior().log_prob(torch.tensor(1e-6)) > cv_prior().log_prob(torch.tensor(1.0))


@pytest.mark.wrong_types
def test_wrong_arguments_are_refused():
    with pytest.raises(
        ValueError, match="family to be one of gamma, lognormal, normal, fixed, got 'beta'"
    ):
        strength_distribution(torch.tensor(1.0), torch.tensor(1.0), "beta")
    with pytest.raises(ValueError, match="0 < beta, got 0"):
        mean_prior(0)
