r"""The Gamma mixed logit of many float32 pairs that share one mean and cv, by interpolation.

For fixed cv the smooth part of the series, as a function of :math:`t = 1 / (1 + \alpha y)` with
:math:`\alpha = \max(c, 0.3)`, is a polynomial of degree 15 up to 2e-7, whatever the cv, and of
degree 12 or so when no utility exceeds 5 nats. So the series is summed at 16 Chebyshev nodes
only, the polynomials lose their negligible last terms, and a pair costs one logarithm, one
exponential and three polynomials. The leading factor, whose digits decide the small
probabilities, is float64.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mixdpo_pyro.models.gamma.lerch import log1p_excess, series_terms

__all__ = ["first_order_interpolated"]

_NUM_NODES = 16

_ALPHA = 0.3


# Last Chebyshev terms that add up to less, relative to the polynomial's size, are dropped.
_NEGLIGIBLE = 5e-8


# Up to this utility the leading factor is float32: the few roundings of its exponent, each at most
# 6e-8 of it, stay below 2e-6. Below this range of c its products underflow, and above it the slope
# by log c grows so slowly that a polynomial times y^2 cannot hold it.
_FLOAT32_UTILITY = 8.0

_FLOAT32_C = 1e-12, 1.0


# Pairs handled at once: few calls of many threads, and a few vectors of them stay in cache.
_CHUNK = 1 << 17


class _Table(NamedTuple):
    """Three polynomials in v = slope t + offset, in [-1, 1]."""

    alpha: float
    slope: float
    offset: float
    coefficients: Float[Tensor, "powers 3 1"]  # highest power first
    near: bool  # utilities so small that float32 suffices


def first_order_interpolated(
    margin: Float[Tensor, " pairs"],
    mean: Float[Tensor, ""],
    cv: Float[Tensor, ""],
    largest: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log P and its derivatives by utility and by log c, as `gamma_logit` needs them.

    Args:
        margin: Log-ratio margins in nats, float32, contiguous, finite.
        mean: Mean strength.
        cv: Coefficient of variation.
        largest: The largest absolute margin.

    Returns:
        Three float32 vectors; relative error of log P about 1e-6.
    """
    c = min(max(float(cv), 1e-50), 1e50) ** 2
    table = _table(c, largest * float(mean), margin.device)
    # One block: freed in three, its pages go back to the system and the next call faults them in.
    results = margin.new_empty(3, len(margin))
    for start in range(0, len(margin), _CHUNK):
        part = slice(start, start + _CHUNK)
        _interpolate(margin[part], float(mean), c, table, results[:, part])
    value, by_utility, by_log_c = results
    return value, by_utility, by_log_c


def _table(c: float, largest_utility: float, device: torch.device) -> _Table:
    """Sum the series at the nodes and fit the polynomials."""
    alpha = max(_ALPHA, c)
    low = 1 / (1 + alpha * min(_last_utility(c), max(largest_utility, 1e-3)))
    angles = math.pi * (torch.arange(_NUM_NODES, dtype=torch.float64) + 0.5) / _NUM_NODES
    t = low + (1 - low) * (angles.cos() + 1) / 2
    y = (1 / t - 1) / alpha
    terms = series_terms(y, torch.tensor(c, dtype=torch.float64))
    share = (1 + terms.z[0]) / (1 + terms.z)
    excess = log1p_excess(terms.z)
    near = largest_utility <= _FLOAT32_UTILITY and _FLOAT32_C[0] <= c <= _FLOAT32_C[1]
    if near:
        slope = -terms.mean(excess) / (c * y).square()
    else:  # the first excess grows without bound: it is left to `_interpolate`
        slope = -terms.mean(excess - excess[0]) / c**2
    smooth = torch.stack([terms.log_total, terms.mean(terms.k * share), slope], -1)
    powers = _power_coefficients(angles, smooth).to(device, torch.float32)
    return _Table(alpha, 2 / (1 - low), -(1 + low) / (1 - low), powers.unsqueeze(-1), near)


def _power_coefficients(angles: Tensor, values: Float[Tensor, "nodes 3"]) -> Tensor:
    """Coefficients, highest power first, of the polynomials through values at the nodes."""
    degree = torch.arange(_NUM_NODES, dtype=torch.float64)
    series = 2 / _NUM_NODES * torch.cos(degree.unsqueeze(-1) * angles) @ values
    series[0] /= 2
    ends = series.abs().flip(0).cumsum(0).flip(0)
    kept = max(int((ends > _NEGLIGIBLE * values.abs().amax(0)).any(1).sum()), 2)
    return (_chebyshev_powers()[:kept, :kept].T @ series[:kept]).flip(0)


@lru_cache
def _chebyshev_powers() -> Float[Tensor, "polynomials powers"]:
    """Power coefficients of the Chebyshev polynomials, by T_n+1 = 2 v T_n - T_n-1."""
    table = torch.zeros(_NUM_NODES, _NUM_NODES, dtype=torch.float64)
    table[0, 0] = table[1, 1] = 1.0
    for n in range(1, _NUM_NODES - 1):
        table[n + 1, 1:] = 2 * table[n, :-1]
        table[n + 1] -= table[n - 1]
    return table


def _last_utility(c: float) -> float:
    """Where the second term is 1e-9 of the first; beyond it the smooth part is constant."""
    w = math.expm1(9 * math.log(10) * c) if c < 1 else math.inf
    return w / (1 - w) / c if w < 1 else math.inf


def _interpolate(
    margin: Tensor, mean: float, c: float, table: _Table, out: Float[Tensor, "3 pairs"]
) -> None:
    """One chunk, written into `out`. In place where it can be: every pass over memory counts."""
    y = margin.abs().to(torch.float32 if table.near else torch.float64).mul_(mean)
    v = torch.mul(y, table.alpha / table.slope, out=torch.empty_like(margin))
    v.add_(1 / table.slope).reciprocal_().add_(table.offset).clamp_(min=-1)
    log_total, by_y, by_log_c = _horner(table.coefficients, v)
    x = y * c
    lead = x.log1p().mul_(1 / c)
    if table.near:
        by_log_c.mul_(y).mul_(x)
        shrink = x.add_(1).reciprocal_()
    else:
        shrink = x.add_(1).reciprocal_()
        by_log_c.mul_(c).add_(y.mul_(shrink).sub_(lead))
    log_q = lead.neg_().add_(log_total)
    q = log_q.exp().float()
    # Weights of the disagreeing side: 0, 1/2, 1 for margins above, at and below zero.
    sign = margin.sign()
    weight = sign.mul(-0.5).add_(0.5)
    torch.lerp(torch.log1p(-q), log_q.float(), weight, out=out[0])
    factor = q.div_(1 - q).lerp_(weight.new_ones(()).expand_as(weight), weight)
    torch.mul(by_y.mul_(shrink.float()), factor, out=out[1])
    torch.mul(by_log_c, factor.mul_(sign), out=out[2])


def _horner(coefficients: Float[Tensor, "powers 3 1"], v: Tensor) -> Float[Tensor, "3 pairs"]:
    """The polynomials, together: one call of many threads for each power."""
    first, second, *others = coefficients.unbind()
    values = torch.addcmul(second, first, v)
    for coefficient in others:
        torch.addcmul(coefficient, values, v, out=values)
    return values
