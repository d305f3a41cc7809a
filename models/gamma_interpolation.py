r"""The Gamma mixed logit of many float32 pairs that share one mean and cv, by interpolation.

For fixed cv the smooth part of the series, as a function of :math:`t = 1 / (1 + \alpha y)` with
:math:`\alpha = \max(c, 0.3)`, is a polynomial of degree 15 up to 2e-7, whatever the cv. So the
series is summed at 16 Chebyshev nodes only, and a pair costs one logarithm, one exponential and
three polynomials. The leading factor, whose digits decide the small probabilities, is float64.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mixdpo_pyro.models.lerch import log1p_excess, series_terms

__all__ = ["first_order_interpolated"]

_NUM_NODES = 16
_ALPHA = 0.3
# Pairs handled at once: few calls of many threads, and a few vectors of them stay in cache.
_CHUNK = 1 << 17


class _Table(NamedTuple):
    """Coefficients of the polynomials in v = slope t + offset, in [-1, 1], highest power first."""

    alpha: float
    slope: float
    offset: float
    coefficients: Float[Tensor, "3 powers"]


def first_order_interpolated(
    margin: Float[Tensor, " pairs"], mean: Float[Tensor, ""], cv: Float[Tensor, ""]
) -> tuple[Tensor, Tensor, Tensor]:
    """Log P and its derivatives by utility and by log c, as `gamma_logit` needs them.

    Args:
        margin: Log-ratio margins in nats, float32, contiguous, finite.
        mean: Mean strength.
        cv: Coefficient of variation.

    Returns:
        Three float32 vectors; relative error of log P about 1e-6.
    """
    c = min(max(float(cv), 1e-50), 1e50) ** 2
    table = _table(c, margin.device)
    value, by_utility, by_log_c = (torch.empty_like(margin) for _ in range(3))
    for start in range(0, len(margin), _CHUNK):
        part = slice(start, start + _CHUNK)
        out = value[part], by_utility[part], by_log_c[part]
        _interpolate(margin[part], float(mean), c, table, out)
    return value, by_utility, by_log_c


def _table(c: float, device: torch.device) -> _Table:
    """Sum the series at the nodes and solve for the coefficients."""
    alpha = max(_ALPHA, c)
    low = 1 / (1 + alpha * _last_utility(c))
    v = torch.cos(math.pi * (torch.arange(_NUM_NODES, dtype=torch.float64) + 0.5) / _NUM_NODES)
    t = low + (1 - low) * (v + 1) / 2
    terms = series_terms((1 / t - 1) / alpha, torch.tensor(c, dtype=torch.float64))
    share = (1 + terms.z[0]) / (1 + terms.z)
    excess = log1p_excess(terms.z)
    smooth = torch.stack(
        [terms.log_total, terms.mean(terms.k * share), terms.mean(excess - excess[0]) / c**2]
    )
    powers = v.unsqueeze(-1) ** torch.arange(_NUM_NODES - 1, -1, -1)
    coefficients = torch.linalg.solve(powers, smooth.T).T.to(device, torch.float32).contiguous()
    return _Table(alpha, 2 / (1 - low), -(1 + low) / (1 - low), coefficients)


def _last_utility(c: float) -> float:
    """Where the second term is 1e-9 of the first; beyond it the smooth part is constant."""
    w = math.expm1(9 * math.log(10) * c) if c < 1 else math.inf
    return w / (1 - w) / c if w < 1 else math.inf


def _interpolate(
    margin: Tensor, mean: float, c: float, table: _Table, out: tuple[Tensor, ...]
) -> None:
    """One chunk, written into `out`. In place throughout: every pass over memory counts here."""
    y = margin.double().abs_().mul_(mean)
    v = y.float().mul_(table.alpha / table.slope).add_(1 / table.slope).reciprocal_()
    v.add_(table.offset).clamp_(min=-1)
    log_total, by_y, curvature = (_horner(row, v) for row in table.coefficients)
    x = y * c
    lead = x.log1p().mul_(1 / c)
    shrink = x.add_(1).reciprocal_()
    minus_by_log_c = y.mul_(shrink).sub_(lead).float().sub_(curvature, alpha=c)
    log_q = log_total.double().sub_(lead)
    q = log_q.exp().float()
    # Weights of the disagreeing side: 0, 1/2, 1 for margins above, at and below zero.
    sign = margin.sign()
    weight = sign.mul(-0.5).add_(0.5)
    torch.lerp(torch.log1p(-q), log_q.float(), weight, out=out[0])
    factor = q.div_(1 - q).lerp_(weight.new_ones(()).expand_as(weight), weight)
    torch.mul(by_y.mul_(shrink.float()), factor, out=out[1])
    torch.mul(minus_by_log_c, factor.mul_(sign), out=out[2])


def _horner(coefficients: Float[Tensor, " powers"], v: Tensor) -> Tensor:
    """The polynomial with these coefficients, highest power first."""
    first, second, *others = coefficients.unbind()
    value = torch.addcmul(second, first, v)
    for coefficient in others:
        torch.addcmul(coefficient, value, v, out=value)
    return value
