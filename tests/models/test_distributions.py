import pyro
import pytest
import torch
from pyro.distributions import constraints

from mixdpo_pyro.models import (
    Draws,
    GammaLogit,
    LogNormalLogit,
    MixedLogit,
    NormalLogit,
    mixed_logit_log_prob,
)

DISTRIBUTIONS = [GammaLogit, LogNormalLogit, NormalLogit]


def example(distribution):
    return distribution(torch.tensor([[-3.0], [5.0]]), torch.tensor([0.1, 0.5, 2.0]), 0.7)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_shapes_follow_the_parameters(distribution):
    choice = example(distribution)
    assert choice.batch_shape == (2, 3) and choice.event_shape == ()
    assert choice.sample().shape == (2, 3)
    assert choice.sample((4, 5)).shape == (4, 5, 2, 3)
    assert choice.log_prob(torch.ones(4, 2, 3)).shape == (4, 2, 3)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_probabilities_of_the_support_add_up_to_one(distribution):
    choice = example(distribution)
    values = choice.enumerate_support()
    assert values.shape == (2, 2, 3)
    torch.testing.assert_close(choice.log_prob(values).exp().sum(0), torch.ones(2, 3))
    assert choice.enumerate_support(expand=False).shape == (2, 1, 1)


@pytest.mark.untyped
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_moments_are_those_of_the_probability(distribution):
    choice = example(distribution)
    torch.testing.assert_close(choice.mean, choice.log_prob(torch.ones(2, 3)).exp())
    torch.testing.assert_close(choice.variance, choice.mean * (1 - choice.mean))
    draws = choice.sample((20_000,))
    # Five standard errors of a frequency.
    assert (
        (draws.mean(0) - choice.mean).abs() < 5 * (choice.variance / 20_000).sqrt() + 1e-6
    ).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_expand_keeps_the_distribution(distribution):
    choice = distribution(torch.tensor(3.0), 0.4, 0.7)
    wide = choice.expand((4, 2))
    assert wide.batch_shape == (4, 2)
    torch.testing.assert_close(
        wide.log_prob(torch.ones(4, 2)), choice.log_prob(torch.tensor(1.0)).expand(4, 2)
    )
    assert wide.expand((3, 4, 2)).sample().shape == (3, 4, 2)
    assert (wide.family, wide.flip_probability) == (choice.family, choice.flip_probability)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_constraints_are_declared_and_checked(distribution):
    choice = example(distribution)
    assert choice.support is constraints.boolean
    for name, constraint in choice.arg_constraints.items():
        assert constraint.check(getattr(choice, name)).all()
    with pytest.raises(ValueError, match="strength_cv"):
        distribution(torch.ones(2), 0.1, torch.tensor([0.5, -1.0]))
    with pytest.raises(ValueError, match="support"):
        choice.log_prob(torch.full((2, 3), 0.5))


def test_log_prob_is_that_of_the_entry_point():
    margin = torch.tensor([-3.0, 5.0])
    choice = MixedLogit(margin, 0.1, 0.7, "lognormal", Draws(8, seed=0), flip_probability=0.1)
    expected = mixed_logit_log_prob(
        margin, 0.1, 0.7, "lognormal", Draws(8, seed=0), flip_probability=0.1
    )
    torch.testing.assert_close(choice.log_prob(torch.ones(2)), expected)


def test_a_model_of_someone_else_can_observe_it():
    def model(margin, choice):
        cv = pyro.sample("cv", pyro.distributions.HalfNormal(1.0))
        with pyro.plate("pairs", len(margin)):
            return pyro.sample("choice", GammaLogit(margin, 0.1, cv), obs=choice)

    margin, choice = torch.tensor([3.0, -8.0]), torch.tensor([1.0, 0.0])
    trace = pyro.poutine.trace(pyro.condition(model, {"cv": torch.tensor(0.5)})).get_trace(
        margin, choice
    )
    trace.compute_log_prob()
    expected = mixed_logit_log_prob(torch.tensor([3.0, 8.0]), 0.1, 0.5, family="gamma")
    torch.testing.assert_close(trace.nodes["choice"]["log_prob"], expected)


def test_gradients_reach_all_parameters():
    inputs = [torch.tensor(v, requires_grad=True) for v in (3.0, 0.1, 0.5)]
    LogNormalLogit(*inputs).log_prob(torch.tensor(0.0)).backward()
    assert all(v.grad.abs() > 0 for v in inputs)
