import math

import likelihood_oracle as oracle
import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixdpo_pyro.models.gamma.lerch import lerch_phi_minus_one, log1p_excess

float64 = torch.float64


@given(s=st.floats(0.0, 60.0), a=st.floats(0.05, 200.0))
def test_lerch_satisfies_its_recurrence(s, a):
    """Phi(-1, s, a) + Phi(-1, s, a + 1) = a^-s."""
    s, a = torch.tensor(s, dtype=float64), torch.tensor(a, dtype=float64)
    both = lerch_phi_minus_one(s, a) + lerch_phi_minus_one(s, a + 1)
    torch.testing.assert_close(both, a.pow(-s), rtol=1e-13, atol=0)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("s", "a"), [(0.0, 2.0), (0.3, 0.7), (1.0, 1.0), (2.0, 0.5), (17.5, 30.0)]
)
def test_lerch_equals_mpmath(s, a):
    value = lerch_phi_minus_one(torch.tensor(s, dtype=float64), torch.tensor(a, dtype=float64))
    assert float(abs(value.item() / mpmath.lerchphi(-1, s, a) - 1)) < 1e-14


def test_lerch_knows_log_two_and_catalan():
    s = torch.tensor([1.0, 2.0], dtype=float64)
    a = torch.tensor([1.0, 0.5], dtype=float64)
    expected = torch.tensor([math.log(2), 4 * float(mpmath.catalan)], dtype=float64)
    torch.testing.assert_close(lerch_phi_minus_one(s, a), expected, rtol=1e-15, atol=0)


def test_lerch_is_differentiable_in_both():
    s = torch.tensor([0.4, 3.0], dtype=float64, requires_grad=True)
    a = torch.tensor([0.6, 8.0], dtype=float64, requires_grad=True)
    assert torch.autograd.gradcheck(lerch_phi_minus_one, (s, a))


@pytest.mark.parametrize(
    ("s", "a", "match"), [(-0.5, 1.0, "0 <= s, got -0.5"), (1.0, 0.0, "0 < a, got 0.0")]
)
def test_lerch_refuses_values_outside_its_domain(s, a, match):
    with pytest.raises(ValueError, match=match):
        lerch_phi_minus_one(torch.tensor(s), torch.tensor(a))


@given(z=st.floats(1e-12, 1e6))
def test_log1p_excess_keeps_its_digits_at_both_ends(z):
    exact = mpmath.log1p(z) - mpmath.mpf(z) / (1 + mpmath.mpf(z))
    value = log1p_excess(torch.tensor(z, dtype=float64)).item()
    assert float(abs(value / exact - 1)) < 1e-14


@pytest.mark.untyped
@pytest.mark.parametrize(("y", "c"), [(0.3, 0.25), (5.0, 1.7), (0.01, 40.0), (30.0, 0.4)])
def test_the_oracle_agrees_with_hurwitz_zeta(y, c):
    """The series at 40 digits, on which the other tests rest, against an unrelated formula."""
    series = oracle.gamma_log_q(mpmath.mpf(y), mpmath.mpf(c))
    assert abs(series - oracle.gamma_log_q_by_zeta(y, c)) < mpmath.mpf(10) ** -25
