import math

import pytest
import torch

from mixdpo_pyro.models import Draws, mixed_logit_log_prob
from mixdpo_pyro.models.monte_carlo import draw_strengths, draws_log_prob

float64 = torch.float64
KINDS = [("gamma", "plain")] + [
    (family, kind)
    for family in ("lognormal", "normal")
    for kind in ("plain", "antithetic", "sobol")
]


def strengths(family, draws, number=1, mean=0.2, cv=0.7):
    mean, cv = torch.tensor(mean, dtype=float64), torch.tensor(cv, dtype=float64)
    return draw_strengths(mean, cv, family, draws, torch.Size([number]))


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_draws_have_the_mean_and_cv_of_the_distribution(family, kind):
    """200,000 draws; 5 standard errors of a plain mean, whose tail is below 1e-6."""
    beta = strengths(family, Draws(200_000, kind, seed=3))
    error = 0.2 * 0.7 / math.sqrt(200_000)
    assert abs(beta.mean() - 0.2) < 5 * error
    assert abs(beta.std() / 0.14 - 1) < 0.05


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_many_draws_approach_the_exact_likelihood(family, kind):
    margin = torch.tensor([-4.0, 2.0, 9.0], dtype=float64)
    exact = mixed_logit_log_prob(margin, 0.2, 0.7, family)
    estimate = mixed_logit_log_prob(margin, 0.2, 0.7, family, Draws(50_000, kind, seed=1))
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.02)


def test_better_draws_have_smaller_errors():
    margin = torch.full((2_000,), -3.0, dtype=float64)
    exact = mixed_logit_log_prob(margin[:1], 0.5, 0.8, "lognormal")
    variance = {}
    for kind in ("plain", "antithetic", "sobol"):
        estimate = mixed_logit_log_prob(margin, 0.5, 0.8, "lognormal", Draws(16, kind, seed=0))
        variance[kind] = (estimate - exact).square().mean().item()
    assert variance["antithetic"] < variance["plain"] / 10
    assert variance["sobol"] < variance["plain"] / 10


def test_antithetic_draws_mirror_each_other():
    beta = strengths("normal", Draws(6, "antithetic", seed=0), number=4)
    torch.testing.assert_close(beta[:3] + beta[3:], torch.full_like(beta[:3], 0.4))


def test_shared_draws_are_the_same_for_all_pairs_and_fresh_ones_differ():
    margin = torch.ones(5, dtype=float64)
    shared = mixed_logit_log_prob(margin, 0.2, 0.7, "gamma", Draws(4, shared=True))
    fresh = mixed_logit_log_prob(margin, 0.2, 0.7, "gamma", Draws(4))
    assert len(shared.unique()) == 1
    assert len(fresh.unique()) == 5


def test_a_seed_repeats_the_draws_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second = (strengths("lognormal", Draws(8, seed=5), number=3) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(strengths("lognormal", Draws(8)), strengths("lognormal", Draws(8)))


def test_the_estimate_is_the_log_of_the_mean_probability():
    beta = torch.tensor([[0.1], [0.5], [2.0]], dtype=float64)
    margin = torch.tensor([3.0], dtype=float64)
    by_hand = (1 / (1 + torch.exp(-beta * margin))).mean().log()
    torch.testing.assert_close(draws_log_prob(beta, margin).squeeze(), by_hand)


def test_panel_draws_share_the_strength_within_an_annotator():
    margin = torch.tensor([3.0, -1.0, 2.0], dtype=float64)
    annotator = torch.tensor([1, 1, 0])
    exact = mixed_logit_log_prob(margin, 0.5, 0.7, "gamma", annotator=annotator)
    draws = Draws(50_000, seed=0)
    estimate = mixed_logit_log_prob(margin, 0.5, 0.7, "gamma", draws, annotator)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.01)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_draws_are_differentiable_in_mean_and_cv(family, kind):
    """The gradient of an average over many draws approaches that of the exact likelihood."""
    gradients = []
    for estimator in (Draws(50_000, kind, seed=2), "auto"):
        mean, cv = (torch.tensor(v, dtype=float64, requires_grad=True) for v in (0.5, 0.7))
        margin = torch.tensor([-2.0, 3.0], dtype=float64)
        mixed_logit_log_prob(margin, mean, cv, family, estimator).sum().backward()
        gradients.append(torch.stack([mean.grad, cv.grad]))
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.01)
