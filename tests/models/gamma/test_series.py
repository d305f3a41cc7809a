import math

import likelihood_oracle as oracle
import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixdpo_pyro.models.gamma.series import gamma_log_prob

float64 = torch.float64


def tensors(*values, requires_grad=False):
    return [torch.tensor(v, dtype=float64, requires_grad=requires_grad) for v in values]


def errors_against_mpmath(number, seed):
    """Relative errors of log P and of its three derivatives."""
    errors = []
    with mpmath.workdps(50):
        for point in oracle.gamma_points(number, seed):
            inputs = tensors(*point, requires_grad=True)
            value = gamma_log_prob(*inputs)
            value.backward()
            exact = [oracle.gamma_log_prob(*point)]
            with mpmath.workdps(75):
                exact += oracle.gradient(oracle.gamma_log_prob, point, 1e-20)
            got = [value.item(), *(v.grad.item() for v in inputs)]
            # Below the smallest normal number no relative accuracy exists.
            pairs = zip(got, exact, strict=True)
            errors.append([float(abs(g / e - 1)) if abs(e) > 1e-290 else 0.0 for g, e in pairs])
    return torch.tensor(errors, dtype=float64).amax(0)


@pytest.mark.untyped
def test_value_and_gradients_equal_mpmath_over_the_whole_range():
    worst = errors_against_mpmath(60, seed=0)
    assert worst[0] <= 1e-13
    assert worst[1:].max() <= 1e-11


@pytest.mark.slow
def test_value_and_gradients_equal_mpmath_at_many_points():
    worst = errors_against_mpmath(2000, seed=1)
    assert worst[0] <= 1e-13
    assert worst[1:].max() <= 1e-11


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("utility", [0.01, 0.065, 0.067, 0.15, 0.199, 0.201, 1.0])
@pytest.mark.parametrize("cv", [1e-3, 0.1, 1.0, 30.0])
def test_cv_derivative_is_smooth_across_the_small_utility_branches(utility, cv, sign):
    point = (sign * utility / (1 + cv**2), 1.0, cv)
    inputs = tensors(*point, requires_grad=True)
    gamma_log_prob(*inputs).backward()
    with mpmath.workdps(75):
        exact = oracle.gradient(oracle.gamma_log_prob, point, 1e-20)[2]
    assert float(abs(inputs[2].grad.item() / exact - 1)) <= 1e-11


@given(margin=st.floats(-1e4, 1e4), mean=st.floats(1e-3, 10.0), cv=st.floats(1e-3, 30.0))
def test_probabilities_of_both_sides_add_up_to_one(margin, mean, cv):
    margin, mean, cv = tensors(margin, mean, cv)
    total = gamma_log_prob(margin, mean, cv).exp() + gamma_log_prob(-margin, mean, cv).exp()
    torch.testing.assert_close(total.item(), 1.0, rtol=1e-14, atol=0)


@given(margin=st.floats(-1e3, 1e3), scale=st.floats(0.1, 10.0), cv=st.floats(0.01, 10.0))
def test_only_the_product_of_mean_and_margin_matters(margin, scale, cv):
    margin, scale, cv = tensors(margin, scale, cv)
    one = torch.ones_like(scale)
    torch.testing.assert_close(
        gamma_log_prob(margin, scale, cv),
        gamma_log_prob(margin * scale, one, cv),
        rtol=1e-12,
        atol=0,
    )


@given(margin=st.floats(-300.0, 300.0), cv=st.floats(1e-3, 10.0))
def test_log_prob_increases_with_the_margin_and_is_at_most_zero(margin, cv):
    margin, mean, cv = tensors(margin, 0.1, cv)
    lower, upper = gamma_log_prob(torch.stack([margin, margin + 1.0]), mean, cv)
    assert lower < upper <= 0


@given(margin=st.floats(-1e3, 1e3))
def test_gamma_loss_equals_dpo_when_cv_vanishes(margin):
    margin, mean, cv = tensors(margin, 0.1, 1e-8)
    dpo = torch.nn.functional.logsigmoid(mean * margin)
    torch.testing.assert_close(gamma_log_prob(margin, mean, cv), dpo, rtol=1e-12, atol=0)


@pytest.mark.untyped
@pytest.mark.parametrize(("mean", "cv"), [(0.1, 0.5), (1.0, 0.01), (0.3, 3.0)])
@pytest.mark.parametrize("per_pair", [False, True], ids=["shared", "per_pair"])
def test_derivatives_pass_gradcheck_and_gradgradcheck(mean, cv, per_pair):
    margin = torch.tensor([-30.0, -3.0, -0.01, 1e-3, 4.0, 60.0], dtype=float64, requires_grad=True)
    shape = margin.shape if per_pair else ()
    inputs = margin, *(torch.full(shape, v, dtype=float64, requires_grad=True) for v in (mean, cv))
    step = min(1e-6, cv * 1e-3)
    assert torch.autograd.gradcheck(gamma_log_prob, inputs, eps=step, atol=1e-6, rtol=1e-4)
    assert torch.autograd.gradgradcheck(gamma_log_prob, inputs, eps=step, atol=1e-6, rtol=1e-4)


@pytest.mark.untyped
def test_hessian_of_mean_and_cv_equals_finite_differences_of_mpmath():
    """What Laplace's approximation needs, with several margins summed."""
    margins, point = [-12.0, 3.0, 25.0], (0.1, 0.7)
    margin = torch.tensor(margins, dtype=float64)
    hessian = torch.autograd.functional.hessian(
        lambda v: gamma_log_prob(margin, v[0], v[1]).sum(), torch.tensor(point, dtype=float64)
    )

    def slopes(mean, cv):
        total = lambda m, c: sum(oracle.gamma_log_prob(d, m, c) for d in margins)  # noqa: E731
        return oracle.gradient(total, (mean, cv), 1e-12)

    with mpmath.workdps(60):
        for i in range(2):
            step = mpmath.mpf(10) ** -8
            shifted = [mpmath.mpf(v) for v in point], [mpmath.mpf(v) for v in point]
            shifted[0][i] += step
            shifted[1][i] -= step
            exact = [
                (u - d) / (2 * step) for u, d in zip(*(slopes(*s) for s in shifted), strict=True)
            ]
            assert hessian[i].tolist() == pytest.approx([float(e) for e in exact], rel=1e-9)


EXTREMES = [0.0, 1e-30, -1e-30, 1e30, -1e30, 3e38, -3e38, 1e-40]


@pytest.mark.parametrize("dtype", [torch.float32, float64])
@pytest.mark.parametrize("mean", [1e-3, 0.1, 100.0])
@pytest.mark.parametrize("cv", [1e-8, 1e-3, 1.0, 30.0, 1e3])
def test_values_and_gradients_are_finite_for_finite_margins(dtype, mean, cv):
    for margin in EXTREMES:
        inputs = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in (margin, mean, cv)]
        value = gamma_log_prob(*inputs)
        value.backward()
        assert value.isfinite()
        assert all(v.grad.isfinite() for v in inputs)


@pytest.mark.parametrize("spread", [0.5, 10.0])  # of the latter many strengths are almost zero
def test_infinite_margins_give_the_limits_and_no_gradient(spread):
    margin = torch.tensor([math.inf, -math.inf], requires_grad=True)
    mean, cv = torch.tensor(0.1, requires_grad=True), torch.tensor(spread, requires_grad=True)
    value = gamma_log_prob(margin, mean, cv)
    assert value.tolist() == [0.0, -math.inf]
    value.sum().backward()
    assert margin.grad.abs().max() == 0 and mean.grad == 0 and cv.grad == 0


def test_nan_margin_gives_nan():
    assert gamma_log_prob(*tensors(math.nan, 0.1, 0.5)).isnan()


@pytest.mark.untyped
@pytest.mark.parametrize("cv", [1e-8, 0.01, 0.3, 1.0, 30.0])
@pytest.mark.parametrize("largest", [79.0, 1e8], ids=["near", "far"])
def test_float32_values_are_within_two_millionths(largest, cv):
    magnitude = torch.logspace(-8, 8, 5000).clamp(max=largest)
    margin = torch.cat([magnitude, -magnitude])
    mean, cv = torch.tensor(0.1), torch.tensor(cv)
    exact = gamma_log_prob(margin.double(), mean.double(), cv.double())
    error = (gamma_log_prob(margin, mean, cv).double() - exact).abs() / exact.abs()
    assert error[exact.abs() > 1e-37].max() <= 2e-6


def test_broadcasting_follows_torch():
    margin = torch.linspace(-3, 3, 5, dtype=float64)
    mean, cv = torch.rand(4, 1, dtype=float64) + 0.1, torch.rand(2, 1, 1, dtype=float64) + 0.1
    inputs = [v.requires_grad_() for v in (margin, mean, cv)]
    value = gamma_log_prob(*inputs)
    assert value.shape == (2, 4, 5)
    value.sum().backward()
    assert [v.grad.shape for v in inputs] == [(5,), (4, 1), (2, 1, 1)]
    single = gamma_log_prob(margin[2], mean[1, 0], cv[1, 0, 0])
    torch.testing.assert_close(value[1, 1, 2], single)


def test_only_vectors_are_kept_for_backward():
    number, kept = 20_000, []
    margin = torch.randn(number, requires_grad=True)
    mean, cv = torch.tensor(0.1, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda v: kept.append(v.numel()) or v, lambda v: v
    ):
        gamma_log_prob(margin, mean, cv)
    assert sum(kept) <= 3 * number + 2
