import math

import pytest
import torch
from scipy import integrate, optimize, stats

from mixdpo_pyro.models import conditional_strength, mixed_logit_log_prob, strength_distribution

float64 = torch.float64
RANDOM = ("gamma", "lognormal", "normal")


def brute_force(family, margins, mean, cv, probabilities):
    """Mean, variance and quantiles of the posterior by scipy's adaptive quadrature."""
    distribution = strength_distribution(
        torch.tensor(mean, dtype=float64), torch.tensor(cv, dtype=float64), family
    )
    low = mean * (1 - 12 * cv) if family == "normal" else 1e-12

    def density(beta):
        utilities = beta * torch.tensor(margins, dtype=float64)
        return (
            (
                distribution.log_prob(torch.tensor(beta, dtype=float64))
                + torch.nn.functional.logsigmoid(utilities).sum()
            )
            .exp()
            .item()
        )

    def moment(function, high=mean * 60):
        points = [mean * v for v in (0.01, 0.1, 0.5, 1, 2, 5, 20) if low < mean * v < high]
        return integrate.quad(
            lambda b: function(b) * density(b),
            low,
            high,
            points=points,
            epsabs=0,
            epsrel=1e-10,
            limit=400,
        )[0]

    total = moment(lambda b: 1.0)
    first = moment(lambda b: b) / total
    second = moment(lambda b: (b - first) ** 2) / total
    quantiles = [
        optimize.brentq(lambda h, p=p: moment(lambda b: 1.0, h) / total - p, low + 1e-9, mean * 30)
        for p in probabilities
    ]
    return first, second, quantiles


@pytest.mark.untyped
@pytest.mark.parametrize("family", RANDOM)
@pytest.mark.parametrize("margins", [[-8.0], [12.0], [3.0, -2.0, 20.0]])
def test_moments_and_quantiles_equal_brute_force(family, margins):
    probabilities = (0.1, 0.5, 0.9)
    first, second, quantiles = brute_force(family, margins, 0.2, 0.6, probabilities)
    annotator = torch.zeros(3, dtype=torch.long) if len(margins) == 3 else None
    posterior = conditional_strength(
        torch.tensor(margins, dtype=float64),
        0.2,
        0.6,
        family,
        annotator,
        probabilities=probabilities,
    )
    assert posterior.mean.item() == pytest.approx(first, rel=1e-7)
    assert posterior.variance.item() == pytest.approx(second, rel=1e-6)
    assert posterior.quantiles[0].tolist() == pytest.approx(quantiles, rel=1e-5)


@pytest.mark.untyped
@pytest.mark.parametrize("cv", [1e-6, 0.05, 0.6, 5.0])
def test_closed_gamma_moments_equal_quadrature(cv):
    margin = torch.tensor([-300.0, -4.0, -1e-3, 1e-3, 4.0, 300.0], dtype=float64)
    closed = conditional_strength(margin, 0.1, cv, family="gamma")
    panel = conditional_strength(margin, 0.1, cv, annotator=torch.arange(6), family="gamma")
    torch.testing.assert_close(closed.mean, panel.mean, rtol=1e-8, atol=0)
    torch.testing.assert_close(closed.variance, panel.variance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", RANDOM)
def test_prior_is_the_mixture_of_both_answers(family):
    """E[beta] = P E[beta | chosen] + (1 - P) E[beta | rejected]."""
    margin = torch.tensor([7.0, -7.0], dtype=float64)
    probability = mixed_logit_log_prob(margin, 0.2, 0.7, family).exp()
    posterior = conditional_strength(margin, 0.2, 0.7, family)
    assert (probability * posterior.mean).sum().item() == pytest.approx(0.2, rel=1e-8)


@pytest.mark.parametrize("family", RANDOM)
def test_an_uninformative_choice_leaves_the_prior(family):
    distribution = strength_distribution(
        torch.tensor(0.2, dtype=float64), torch.tensor(0.7, dtype=float64), family
    )
    posterior = conditional_strength(torch.zeros(1, dtype=float64), 0.2, 0.7, family)
    assert posterior.mean.item() == pytest.approx(0.2, rel=1e-8)
    assert posterior.variance.item() == pytest.approx(0.14**2, rel=1e-6)
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=float64)
    if family == "gamma":
        expected = torch.tensor(stats.gamma(1 / 0.49, scale=0.2 * 0.49).ppf(levels))
    else:
        expected = distribution.icdf(levels)
    torch.testing.assert_close(posterior.quantiles[0], expected, rtol=0, atol=2e-5 * 0.14)


@pytest.mark.untyped
def test_agreeing_annotators_are_stronger_and_many_choices_narrow_the_posterior():
    margin = torch.tensor([5.0] * 20 + [-5.0] * 20)
    annotator = torch.arange(2).repeat_interleave(20)
    posterior = conditional_strength(margin, 0.2, 1.0, annotator=annotator, family="gamma")
    assert posterior.mean[0] > 0.2 > posterior.mean[1]
    few = conditional_strength(margin[:2], 0.2, 1.0, annotator=annotator[:2], family="gamma")
    assert posterior.variance[0].sqrt() / posterior.mean[0] < few.variance[0].sqrt() / few.mean[0]


def test_label_noise_weakens_what_a_choice_tells():
    margin = torch.tensor([-20.0], dtype=float64)
    sure = conditional_strength(margin, 0.2, 0.7, family="gamma")
    noisy = conditional_strength(margin, 0.2, 0.7, flip_probability=0.2, family="gamma")
    assert sure.mean < noisy.mean < 0.2


def test_fixed_strength_is_known():
    posterior = conditional_strength(torch.ones(3), 0.2, 0.5, "fixed")
    assert posterior.mean.tolist() == pytest.approx([0.2] * 3)
    assert posterior.variance.tolist() == [0.0] * 3
    assert posterior.quantiles.shape == (3, 3)


@pytest.mark.parametrize("family", RANDOM)
@pytest.mark.parametrize("panel", [False, True], ids=["pairs", "panel"])
def test_enormous_margins_leave_what_is_possible(family, panel):
    """A positive strength that agrees learns nothing, one that disagrees is next to zero."""
    margin = torch.tensor([1e300, -1e300], dtype=float64)
    annotator = torch.arange(2) if panel else None
    posterior = conditional_strength(margin, 0.2, 0.7, family, annotator)
    assert all(value.isfinite().all() for value in posterior)
    if family == "normal":  # the halves of the distribution above and below zero
        above, below = (stats.truncnorm(*e, 0.2, 0.14) for e in ((-1 / 0.7, 99), (-99, -1 / 0.7)))
        expected = [above.mean(), below.mean()]
    else:
        expected = [0.2, 0.0]
    assert posterior.mean.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-250)


@pytest.mark.parametrize(
    ("margin", "probability", "match"),
    [
        (math.inf, 0.5, r"finite margins, got inf at index \[0\]"),
        (1.0, 1.0, "0 < probability < 1, got 1.0"),
    ],
)
def test_wrong_arguments_are_refused(margin, probability, match):
    with pytest.raises(ValueError, match=match):
        conditional_strength(
            torch.tensor([margin]), 0.1, 0.5, probabilities=[probability], family="gamma"
        )
