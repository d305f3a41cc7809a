import gc
import math
import random

import likelihood_oracle as oracle
import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixdpo_pyro.models import Quadrature, mixed_logit_log_prob
from mixdpo_pyro.models.quadrature import (
    Panel,
    choice_log_prob,
    default_num_nodes,
    quadrature_log_prob,
)

float64 = torch.float64


def relative_to_one(value, exact):
    return float(abs(value - exact) / max(1, abs(exact)))


def lognormal_errors(max_scale, num_nodes, number, seed):
    """Errors of log P and of its gradients, relative to max(1, size), at random points."""
    generator = random.Random(seed)
    errors = []
    for i in range(number):
        scale = max_scale if i % 2 else generator.uniform(0.01, max_scale)
        utility = generator.choice([-1, 1]) * 10 ** generator.uniform(-6, 4)
        mean, cv = 10 ** generator.uniform(-3, 2), math.sqrt(math.expm1(scale**2))
        point = utility / mean, mean, cv
        inputs = [torch.tensor(v, dtype=float64, requires_grad=True) for v in point]
        value = mixed_logit_log_prob(*inputs, "lognormal", Quadrature(num_nodes))
        value.backward()

        def exact(margin, mean, cv):
            return oracle.pair_log_prob(margin, mean, cv, "lognormal")

        slopes = oracle.gradient(exact, point, 1e-10)
        by_input = [relative_to_one(v.grad.item(), s) for v, s in zip(inputs, slopes, strict=True)]
        errors.append([relative_to_one(value.item(), exact(*point)), max(by_input)])
    return torch.tensor(errors).amax(0)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("max_scale", "num_nodes"), [pytest.param(1.5, 32, marks=pytest.mark.slow), (3.0, 64)]
)
def test_lognormal_pair_equals_mpmath(max_scale, num_nodes):
    value, gradient = lognormal_errors(max_scale, num_nodes, number=5, seed=0)
    assert value <= 1e-8
    assert gradient <= 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(("max_scale", "num_nodes"), [(1.5, 32), (3.0, 64)])
def test_lognormal_pair_equals_mpmath_at_many_points(max_scale, num_nodes):
    value, gradient = lognormal_errors(max_scale, num_nodes, number=60, seed=1)
    assert value <= 1e-8
    assert gradient <= 1e-7


def panel_errors(family, number, seed):
    generator = random.Random(seed)
    errors = []
    for i in range(number):
        size, flip = generator.choice([1, 2, 3, 5]), generator.choice([0.0, 0.1])
        mean, cv = 10 ** generator.uniform(-2, 1), 10 ** generator.uniform(-2, 1)
        spread = 10 ** generator.uniform(-1, 2) / mean
        margins = [generator.gauss(0.3, 1) * spread for _ in range(size)]
        value = mixed_logit_log_prob(
            torch.tensor(margins, dtype=float64),
            mean,
            cv,
            family,
            annotator=torch.full((size,), i),
            flip_probability=flip,
        )
        exact = oracle.panel_log_prob(margins, mean, cv, family, flip)
        errors.append(relative_to_one(value.item(), exact))
    return max(errors)


@pytest.mark.untyped
@pytest.mark.parametrize(
    "family", ["lognormal", "normal", pytest.param("gamma", marks=pytest.mark.slow)]
)
def test_panel_equals_brute_force_integration(family):
    assert panel_errors(family, number=6, seed=0) <= 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_panel_equals_brute_force_integration_at_many_points(family):
    assert panel_errors(family, number=100, seed=1) <= 1e-8


@given(utility=st.floats(-1e4, 1e4), cv=st.floats(1e-3, 30.0))
def test_gamma_quadrature_equals_the_series(utility, cv):
    """Two unrelated methods for the same integral."""
    margin = torch.tensor([utility], dtype=float64)
    series = mixed_logit_log_prob(margin, 1.0, cv, family="gamma")
    panel = mixed_logit_log_prob(
        margin, 1.0, cv, annotator=torch.zeros(1, dtype=torch.long), family="gamma"
    )
    torch.testing.assert_close(panel, series, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
@pytest.mark.parametrize("cv", [1e-8, 1e-3, 0.5, 3.0, 1e3])
def test_a_two_humped_or_sharp_posterior_is_integrated(family, cv):
    """Many choices, easy and hard: against 1500 nodes, which leave no window unresolved."""
    torch.manual_seed(1)
    sizes = torch.tensor([1, 3, 30, 300, 1000])
    annotator = torch.arange(len(sizes)).repeat_interleave(sizes)
    margin = (
        torch.randn(len(annotator), dtype=float64) * torch.tensor([0.1, 1.0, 30.0])[annotator % 3]
    )
    value = mixed_logit_log_prob(margin, 1.0, cv, family, annotator=annotator)
    fine = mixed_logit_log_prob(margin, 1.0, cv, family, Quadrature(1500), annotator=annotator)
    torch.testing.assert_close(value, fine, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "family",
    ["lognormal", *(pytest.param(f, marks=pytest.mark.slow) for f in ("gamma", "normal"))],
)
def test_two_far_humps_are_both_seen(family):
    """Thirty choices gained by a large strength that the prior thinks unlikely."""
    margin = torch.full((30,), 1.0, dtype=float64)
    annotator = torch.zeros(30, dtype=torch.long)
    value = mixed_logit_log_prob(margin, 0.1, 0.6, family, annotator=annotator)
    exact = oracle.panel_log_prob(margin.tolist(), 0.1, 0.6, family)
    assert relative_to_one(value.item(), exact) <= 1e-8


@pytest.mark.untyped
@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
@pytest.mark.parametrize("panel", [False, True], ids=["pairs", "panel"])
def test_derivatives_pass_gradcheck_and_gradgradcheck(family, panel):
    margin = torch.tensor([-3.0, 0.5, 2.0, -0.4, 6.0], dtype=float64, requires_grad=True)
    mean, cv = (torch.tensor(v, dtype=float64, requires_grad=True) for v in (0.7, 0.6))
    annotator = torch.tensor([4, 1, 4, 4, 1]) if panel else None

    def log_prob(margin, mean, cv):
        return mixed_logit_log_prob(margin, mean, cv, family, "quadrature", annotator)

    assert torch.autograd.gradcheck(log_prob, (margin, mean, cv))
    assert torch.autograd.gradgradcheck(log_prob, (margin, mean, cv), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_pieces_do_not_change_values_or_gradients(family, monkeypatch):
    annotator = torch.randint(0, 40, (300,))
    outcomes = []
    for size in (1 << 18, 64):
        monkeypatch.setattr("mixdpo_pyro.models.quadrature._CHUNK", size)
        torch.manual_seed(0)
        margin = torch.randn(300, dtype=float64, requires_grad=True)
        cv = torch.tensor(0.6, dtype=float64, requires_grad=True)
        value = mixed_logit_log_prob(margin, 0.5, cv, family, annotator=annotator)
        outcomes.append([value, *torch.autograd.grad(value.square().sum(), (margin, cv))])
    for whole, pieced in zip(*outcomes, strict=True):
        torch.testing.assert_close(pieced, whole, rtol=1e-12, atol=1e-12)


def live_elements():
    """Elements of all tensors alive, attributes of autograd nodes included."""
    gc.collect()
    return sum(v.numel() for v in gc.get_objects() if issubclass(type(v), torch.Tensor))


def test_memory_kept_for_backward_is_of_the_order_of_the_pairs():
    """Nothing of the size pairs times nodes survives the forward pass."""
    sizes = torch.tensor([10_000, 5_000, 1, 1])
    annotator = torch.arange(4).repeat_interleave(sizes)
    margin = torch.randn(len(annotator), dtype=float64, requires_grad=True)
    before = live_elements()
    value = mixed_logit_log_prob(margin, 0.5, 0.5, "lognormal", annotator=annotator)
    assert value.requires_grad
    assert live_elements() - before < 10 * len(annotator)


def test_normal_integrand_with_a_kink_is_integrated():
    """Margins so large that the choice is the sign of the strength: P -> Phi(1 / cv)."""
    margin = torch.tensor([1e3, 1e8, 1e30, -1e30], dtype=float64)
    value = mixed_logit_log_prob(margin, 1.0, 0.8, "normal")
    ends = torch.special.log_ndtr(torch.tensor([1.25, 1.25, 1.25, -1.25], dtype=float64))
    exact = [oracle.panel_log_prob([1e3], 1.0, 0.8, "normal")]
    assert relative_to_one(value[0].item(), exact[0]) <= 1e-8
    torch.testing.assert_close(value[1:], ends[1:], rtol=1e-5, atol=0)


@given(utility=st.floats(-500.0, 500.0), flip=st.floats(1e-6, 0.49))
def test_a_noisy_choice_is_a_mixture_of_both_labels(utility, flip):
    u = mpmath.mpf(utility)
    exact = mpmath.log(
        (1 - mpmath.mpf(flip)) * mpmath.exp(oracle.log_logistic(u))
        + flip * mpmath.exp(oracle.log_logistic(-u))
    )
    value = choice_log_prob(torch.tensor(utility, dtype=float64), flip)
    assert relative_to_one(value.item(), exact) <= 1e-14


def test_number_of_nodes_grows_with_the_width_of_the_distribution():
    cv = [torch.tensor([1.0, v]) for v in (2.0, 20.0, 1e3)]
    assert [default_num_nodes("lognormal", v, pair=True) for v in cv] == [32, 64, 96]
    assert [default_num_nodes("gamma", v) for v in cv] == [64, 96, 128]
    assert [default_num_nodes("normal", v) for v in cv] == [128, 128, 128]


def test_groups_without_ids_are_single_pairs():
    margin = torch.randn(7, dtype=float64)
    mean, cv = torch.full((7,), 0.5, dtype=float64), torch.full((7,), 0.8, dtype=float64)
    alone = quadrature_log_prob(Panel(margin, mean, cv), "lognormal", 64)
    grouped = quadrature_log_prob(Panel(margin, mean, cv, torch.arange(7)), "lognormal", 64)
    torch.testing.assert_close(alone, grouped)


@pytest.mark.parametrize("cv", [0.05, 0.6, 2.5, 40.0])
def test_few_pairs_have_the_integral_of_many(cv):
    """Few pairs take more nodes on a certain bracket, many take fewer on a searched window.

    Each is promised to 1e-8 nats, relative to the log-probability where that is larger than one,
    and its slopes to 1e-7.
    """
    magnitude = torch.logspace(-5, 3, 200, dtype=torch.float64)
    margin = torch.cat([magnitude, -magnitude])
    slopes, values = [], []
    for size in (len(margin), 50):
        inputs = margin.clone().requires_grad_(), torch.tensor(float(cv)).double().requires_grad_()
        parts = [
            mixed_logit_log_prob(part, 1.0, inputs[1], "lognormal")
            for part in inputs[0].split(size)
        ]
        values.append(torch.cat(parts))
        slopes.append(torch.autograd.grad(values[-1].sum(), inputs))
    torch.testing.assert_close(values[1], values[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(slopes[1][0], slopes[0][0], rtol=0, atol=1e-7)
    torch.testing.assert_close(slopes[1][1], slopes[0][1], rtol=1e-7, atol=1e-7)
