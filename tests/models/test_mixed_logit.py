import math

import likelihood_oracle as oracle
import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from mixdpo_pyro.models import FAMILIES, Draws, mixed_logit_log_prob

float64 = torch.float64
RANDOM = ("gamma", "lognormal", "normal")


@given(margin=st.floats(-(2.0**100), 2.0**100, width=32))
def test_fixed_family_is_exactly_dpo(margin):
    margin = torch.tensor([margin])
    assert torch.equal(mixed_logit_log_prob(margin, 0.1, 0.5, "fixed"), logsigmoid(0.1 * margin))


@pytest.mark.parametrize("family", RANDOM)
@given(margin=st.floats(-500.0, 500.0))
def test_every_family_tends_to_dpo_as_cv_vanishes(family, margin):
    margin = torch.tensor([margin], dtype=float64)
    value = mixed_logit_log_prob(margin, 0.1, 1e-8, family)
    torch.testing.assert_close(value, logsigmoid(0.1 * margin), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", RANDOM)
def test_the_limit_is_reached_smoothly(family):
    """The difference from DPO is of order cv^2, with its derivative."""
    margin = torch.tensor([-20.0, 7.0], dtype=float64)
    differences = []
    for cv in (1e-2, 1e-3):
        cv = torch.tensor(cv, dtype=float64, requires_grad=True)
        value = mixed_logit_log_prob(margin, 0.1, cv, family)
        (slope,) = torch.autograd.grad(value.sum(), cv)
        gap = (value - logsigmoid(0.1 * margin)).sum()
        differences.append(torch.stack([gap / cv**2, slope / cv]).detach())
    torch.testing.assert_close(*differences, rtol=1e-2, atol=0)


@pytest.mark.parametrize("family", RANDOM)
@given(margin=st.floats(-200.0, 200.0), cv=st.floats(0.01, 5.0), flip=st.sampled_from([0.0, 0.1]))
def test_both_answers_add_up_to_one(family, margin, cv, flip):
    margin = torch.tensor([margin, -margin], dtype=float64)
    total = mixed_logit_log_prob(margin, 0.3, cv, family, flip_probability=flip).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("family", RANDOM)
@given(margin=st.floats(-100.0, 100.0), cv=st.floats(0.01, 5.0))
def test_one_choice_per_annotator_equals_the_pair(family, margin, cv):
    margin = torch.tensor([margin, 1.0], dtype=float64)
    pair = mixed_logit_log_prob(margin, 0.3, cv, family)
    panel = mixed_logit_log_prob(margin, 0.3, cv, family, annotator=torch.tensor([0, 1]))
    torch.testing.assert_close(panel, pair, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_order_of_pairs_and_names_of_annotators_do_not_matter(family):
    margin = torch.randn(60, dtype=float64) * 10
    annotator = torch.randint(0, 9, (60,))
    value = mixed_logit_log_prob(margin, 0.1, 0.5, family, annotator=annotator)
    order = torch.randperm(60)
    shuffled = mixed_logit_log_prob(
        margin[order], 0.1, 0.5, family, annotator=1000 - 7 * annotator[order]
    )
    torch.testing.assert_close(shuffled, value.flip(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("panel", [False, True], ids=["pairs", "panel"])
def test_a_particle_axis_is_a_loop_over_parameters(family, panel):
    margin = torch.randn(12, dtype=float64) * 10
    annotator = torch.randint(0, 4, (12,)) if panel else None
    mean = torch.tensor([[0.1], [0.3], [1.0]], dtype=float64)
    cv = torch.tensor([[0.5], [1.0], [0.2]], dtype=float64)
    together = mixed_logit_log_prob(margin, mean, cv, family, annotator=annotator)
    for i in range(3):
        alone = mixed_logit_log_prob(margin, mean[i, 0], cv[i, 0], family, annotator=annotator)
        torch.testing.assert_close(together[i], alone, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_margins_are_computed_in_float32(family, dtype):
    margin = torch.tensor([-3.0, 0.25, 40.0], dtype=dtype, requires_grad=True)
    value = mixed_logit_log_prob(margin, 0.1, 0.5, family)
    assert value.dtype == torch.float32
    assert torch.equal(value, mixed_logit_log_prob(margin.detach().float(), 0.1, 0.5, family))
    value.sum().backward()
    assert margin.grad.dtype == dtype and margin.grad.isfinite().all()


@pytest.mark.parametrize("family", RANDOM)
@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("cv", [1e-8, 1e-3, 1.0, 30.0, 1e3])
def test_extremes_give_no_nan(family, dtype, cv):
    values = [0.0, 1e-30, -1e-30, 1e30, -1e30, math.inf, -math.inf]
    margin = torch.tensor(values, dtype=dtype, requires_grad=True)
    inputs = margin, *(torch.tensor(v, dtype=dtype, requires_grad=True) for v in (0.1, cv))
    value = mixed_logit_log_prob(*inputs, family)
    assert not value.isnan().any()
    assert value[0].item() == pytest.approx(-math.log(2), abs=1e-6)
    for entry in value:
        slopes = torch.autograd.grad(entry, inputs, retain_graph=True)
        assert not any(slope.isnan().any() for slope in slopes)


@pytest.mark.parametrize("family", ["gamma", "lognormal", "fixed"])
def test_infinite_margins_give_certainty_for_positive_strengths(family):
    value = mixed_logit_log_prob(torch.tensor([math.inf, -math.inf]), 0.1, 0.5, family)
    assert value.tolist() == [0.0, -math.inf]


def test_infinite_margins_give_the_sign_of_a_normal_strength():
    margin = torch.tensor([math.inf, -math.inf], dtype=float64)
    value = mixed_logit_log_prob(margin, 0.1, 0.5, "normal")
    expected = torch.special.log_ndtr(torch.tensor([2.0, -2.0], dtype=float64))
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flip", [0.0, 0.1])
def test_infinite_margins_have_the_same_limits_in_a_panel(family, flip):
    """Alone, and beside another choice of the annotator; normal strengths tell their sign."""
    margin = torch.tensor([math.inf, -math.inf, -math.inf, 2.0], dtype=float64, requires_grad=True)
    inputs = margin, *(torch.tensor(v, dtype=float64, requires_grad=True) for v in (0.1, 0.5))
    pairs = mixed_logit_log_prob(*inputs, family, flip_probability=flip)
    value = mixed_logit_log_prob(
        *inputs, family, annotator=torch.tensor([0, 1, 2, 2]), flip_probability=flip
    )
    torch.testing.assert_close(value[:2], pairs[:2], rtol=2e-6, atol=1e-8)
    if family != "normal":
        torch.testing.assert_close(value[2], pairs[2] + pairs[3], rtol=1e-8, atol=1e-8)
    slopes = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
    assert not any(slope.isnan().any() for slope in slopes if slope is not None)
    assert slopes[0][:3].abs().max() == 0


ENORMOUS = [1e15, -1e15, 1e20, -1e20, 1e100, -1e100, 1e300, -1e300]


@pytest.mark.parametrize("cv", [1e-8, 1e-3, 0.5, 3.0, 30.0, 1e3])
@pytest.mark.parametrize("flip", [0.0, 0.1])
def test_enormous_margins_have_the_value_of_the_closed_form(cv, flip):
    """Series and quadrature of a Gamma pair, and of an annotator with one choice."""
    margin = torch.tensor(ENORMOUS, dtype=float64)
    kept, flipped = (
        [mpmath.exp(oracle.gamma_log_prob(sign * m, 0.1, cv)) for m in ENORMOUS]
        for sign in (1, -1)
    )
    exact = [mpmath.log((1 - flip) * k + flip * f) for k, f in zip(kept, flipped, strict=True)]
    exact = torch.tensor([float(v) for v in exact], dtype=float64)
    for options in ({}, {"estimator": "quadrature"}, {"annotator": torch.arange(len(margin))}):
        value = mixed_logit_log_prob(margin, 0.1, cv, "gamma", flip_probability=flip, **options)
        torch.testing.assert_close(value, exact, rtol=1e-8, atol=1e-8)


@pytest.mark.untyped
@pytest.mark.parametrize("cv", [1e-3, 0.5, 3.0])
@pytest.mark.parametrize("margins", [[-1e300], [1e300, -1e300], [-1e30, 2.0], [1e20, 5.0, -1.0]])
def test_enormous_margins_of_a_lognormal_panel_equal_mpmath(margins, cv):
    margin = torch.tensor(margins, dtype=float64, requires_grad=True)
    inputs = margin, *(torch.tensor(v, dtype=float64, requires_grad=True) for v in (0.1, cv))
    value = mixed_logit_log_prob(*inputs, annotator=torch.zeros(len(margins), dtype=torch.long))
    exact = float(oracle.panel_log_prob(margins, 0.1, cv, "lognormal"))
    assert value.item() == pytest.approx(exact, rel=1e-8, abs=1e-8)
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_contradicting_enormous_margins_give_finite_values_and_slopes(family):
    """Twice differentiated too: nothing overflows on the way."""
    margin = torch.tensor([1e300, -1e300, 1.0], dtype=float64, requires_grad=True)
    inputs = margin, *(torch.tensor(v, dtype=float64, requires_grad=True) for v in (0.1, 0.5))
    for annotator in (None, torch.zeros(3, dtype=torch.long)):
        value = mixed_logit_log_prob(*inputs, family, annotator=annotator).sum()
        slopes = torch.autograd.grad(value, inputs[1:], create_graph=True, allow_unused=True)
        assert value.isfinite() and all(s.isfinite() for s in slopes if s is not None)
        (second,) = torch.autograd.grad(slopes[0], inputs[1])
        assert second.isfinite()


def test_label_noise_bounds_the_loss():
    value = mixed_logit_log_prob(
        torch.tensor([-1e6]), 0.1, 0.5, flip_probability=0.1, family="gamma"
    )
    assert value.exp().item() == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"family": "weibull"},
            "family to be one of gamma, lognormal, normal, fixed, got 'weibull'",
        ),
        (
            {"estimator": "exact"},
            "estimator to be one of auto, series, quadrature, draws, got 'exact'",
        ),
        (
            {"family": "lognormal", "estimator": "series"},
            "a gamma pair for the series, got a lognormal pair",
        ),
        (
            {"estimator": "series", "annotator": torch.zeros(3, dtype=torch.long)},
            "got a gamma panel",
        ),
        ({"estimator": Draws(4, "sobol")}, "plain draws of a gamma strength, got 'sobol'"),
        ({"mean": -0.1}, "mean to be positive and finite, got -0.1"),
        ({"cv": 0.0}, "cv to be positive and finite, got 0.0"),
        ({"cv": math.nan}, "cv to be positive and finite, got nan"),
        ({"flip_probability": 0.5}, "0 <= flip_probability < 0.5, got 0.5"),
        ({"annotator": torch.zeros(2, dtype=torch.long)}, "one annotator per pair"),
    ],
)
@pytest.mark.wrong_types
def test_wrong_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        mixed_logit_log_prob(
            torch.ones(3), **{"mean": 0.1, "cv": 0.5, "family": "gamma", **options}
        )
