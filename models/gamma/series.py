r"""The Gamma mixed logit in closed form, with its first and second derivatives.

With Q of `lerch`, the probability that a random strength disagrees with its margin,

.. math:: \log P = \log Q \quad (\Delta < 0), \qquad \log P = \log(1 - Q) \quad (\Delta \ge 0).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixdpo_pyro.models.devices import in_float64
from mixdpo_pyro.models.gamma.lerch import SeriesTerms, log1p_excess, series_terms

__all__ = ["gamma_conditional_moments", "gamma_log_prob"]

# Pairs handled at once: with 30 terms each, enough for torch's threads, few enough for the cache.
_CHUNK = 2048


# Below this y (1 + c) the derivative by c is taken from moments, see `_q_by_log_c_small`.
_SMALL_UTILITY = 0.2


@in_float64
def gamma_log_prob(
    margin: Float[Tensor, "*#batch"],
    mean: Float[Tensor, "*#batch"],
    cv: Float[Tensor, "*#batch"],
) -> Float[Tensor, "*batch"]:
    r"""Log-probability of the observed choice, the Gamma strength integrated out.

    .. math:: \log P = \log Q \quad (\Delta < 0), \qquad \log P = \log(1 - Q) \quad (\Delta \ge 0)

    with Q of the module's docstring. One pass of the series gives the value and all first
    derivatives, and only vectors of the batch's length are kept for backward; second derivatives
    take a second pass. At an infinite margin the value is zero or minus infinity and every
    derivative zero.

    Args:
        margin: Log-ratio margins in nats, any sign.
        mean: Mean strength, positive.
        cv: Coefficient of variation, positive. Outside [1e-50, 1e50] it is taken at the bound.

    Returns:
        Log-probabilities in nats, of the broadcast shape and the dtype of `margin`.

    References:
        | Convergence acceleration of alternating series (Cohen, Rodriguez Villegas, Zagier, 2000)

    Example:
        >>> gamma_log_prob(torch.tensor([0.0, 10.0]), torch.tensor(0.1), torch.tensor(0.5))
        tensor([-0.6931, -0.3284])
    """
    return _GammaLogProb.apply(margin, mean, cv)


@in_float64
@torch.no_grad()
def gamma_conditional_moments(
    margin: Float[Tensor, "*#batch"],
    mean: Float[Tensor, "*#batch"],
    cv: Float[Tensor, "*#batch"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    r"""Mean and variance of a Gamma strength given the choice it made.

    With weights proportional to the terms of Q and :math:`s_k = 1 / (1 + kx)`, a strength that
    went against its margin has mean :math:`m \, \overline{s}` and second moment
    :math:`m^2 (1 + c) \, \overline{s^2}`; the prior is the mixture of both sides.

    Args:
        margin: Log-ratio margins in nats, any sign, finite.
        mean: Mean strength, positive.
        cv: Coefficient of variation, positive.

    Returns:
        Conditional mean and variance, float64, broadcast shape.

    Example:
        >>> ones = torch.ones(1, dtype=torch.float64)
        >>> gamma_conditional_moments(-30 * ones, 0.1 * ones, 0.5 * ones)[0]
        tensor([0.0604], dtype=torch.float64)
    """
    margin, mean, cv = torch.broadcast_tensors(margin.double(), mean.double(), cv.double())
    shape = margin.shape
    y, c = (value.reshape(-1) for value in _scaled(margin, mean, cv))
    terms = series_terms(y, c)
    share = 1 / (1 + terms.z)
    # In units of the mean; `against`: the strength disagreed with the margin, `along`: it agreed.
    against = terms.mean(share)
    against_variance = c * terms.mean(share.square()) + terms.mean((share - against).square())
    q, _ = _probability(terms, y, c)
    p = 1 - q
    along = 1 + q / p * terms.mean(terms.z * share)
    between = p * q * (along - against).square()
    along_variance = (c - q * against_variance - between) / p
    negative = margin.reshape(-1) < 0
    first = torch.where(negative, against, along).view(shape)
    variance = torch.where(negative, against_variance, along_variance).view(shape)
    return mean * first, mean.square() * variance


class _GammaLogProb(torch.autograd.Function):
    """Value and first derivatives in one pass; only vectors are kept for backward."""

    @staticmethod
    def forward(ctx: Any, margin: Tensor, mean: Tensor, cv: Tensor) -> Tensor:
        value, by_utility, by_log_c = _by_chunks(_first_order, (margin, mean, cv))
        ctx.save_for_backward(margin, mean, cv, by_utility, by_log_c)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        margin, mean, cv, by_utility, by_log_c = ctx.saved_tensors
        if (
            torch.is_grad_enabled()
        ):  # double backward: the slopes must be differentiable themselves
            by_utility, by_log_c = _GammaSlopes.apply(margin, mean, cv)
        return _chain(ctx, (margin, mean, cv), by_utility, by_log_c, grad)


class _GammaSlopes(torch.autograd.Function):
    """First derivatives by utility and by log c; their backward is a pass for the second ones."""

    @staticmethod
    def forward(ctx: Any, margin: Tensor, mean: Tensor, cv: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(margin, mean, cv)
        _, by_utility, by_log_c = _by_chunks(_first_order, (margin, mean, cv))
        return by_utility, by_log_c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_utility: Tensor, grad_log_c: Tensor) -> tuple[Tensor | None, ...]:
        uu, ul, ll = _by_chunks(_second_order, ctx.saved_tensors)
        by_utility = grad_utility * uu + grad_log_c * ul
        by_log_c = grad_utility * ul + grad_log_c * ll
        return _chain(ctx, ctx.saved_tensors, by_utility, by_log_c, by_utility.new_ones(()))


def _chain(
    ctx: Any, inputs: tuple[Tensor, ...], by_utility: Tensor, by_log_c: Tensor, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Turn slopes by utility (margin times mean) and log c, times grad, into those by inputs."""
    margin, mean, cv = inputs
    by_margin = by_mean = by_cv = None
    if ctx.needs_input_grad[2]:
        by_cv = _inner(by_log_c, grad, cv.shape).to(cv.dtype) * (2 / cv)
    by_utility = by_utility * grad
    if ctx.needs_input_grad[1]:
        by_mean = _inner(by_utility, margin, mean.shape).to(mean.dtype)
    if ctx.needs_input_grad[0]:
        by_margin = (by_utility * mean).sum_to_size(margin.shape).to(margin.dtype)
    return by_margin, by_mean, by_cv


def _inner(slope: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Products, summed to a shape; an infinite weight, whose slope is zero, adds nothing."""
    largest = torch.finfo(weight.dtype).max
    return (slope * weight.clamp(-largest, largest)).sum_to_size(shape)


def _by_chunks(
    function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]], inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Apply a function of float64 (margin, mean, cv) to `_CHUNK` broadcast pairs at a time."""
    shape = torch.broadcast_shapes(*(value.shape for value in inputs))
    margin, mean, cv = (
        value.reshape(()) if value.numel() == 1 else value.expand(shape).reshape(-1)
        for value in inputs
    )
    margin = margin.expand(math.prod(shape))
    results = tuple(
        torch.empty_like(margin, memory_format=torch.contiguous_format) for _ in range(3)
    )
    for start in range(0, len(margin), _CHUNK):
        part = slice(start, start + _CHUNK)
        chunk = (
            value.double() if value.dim() == 0 else value[part].double()
            for value in (margin, mean, cv)
        )
        for target, result in zip(results, function(*chunk), strict=True):
            target[part] = result
    return tuple(result.view(shape) for result in results)


def _scaled(margin: Tensor, mean: Tensor, cv: Tensor) -> tuple[Tensor, Tensor]:
    """The series' variables y and c, kept where no product of them overflows."""
    c = cv.clamp(1e-50, 1e50).square()
    return torch.minimum(margin.abs() * mean, 1e306 / c.clamp(min=1.0)), c


def _side(margin: Tensor, q: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Log P of the observed side, and the factor from a derivative of log Q to one of log P."""
    positive = margin >= 0
    value = torch.where(positive, torch.log1p(-q), log_q)
    return value, torch.where(positive, -q / (1 - q), 1.0)


def _probability(terms: SeriesTerms, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Q and log Q from the series.

    The first term is exp(-lead) with lead up to 745, so each rounding of `lead` costs Q as many
    units: for small x it is y less a correction, which avoids the roundings of c and x.
    """
    x = c * y
    correction = (x.square() / (1 + x) - log1p_excess(x)) / c  # (x - log1p(x)) / c
    lead = torch.where(x < 0.1, y - correction, x.log1p() / c)
    return terms.log_total.exp() * torch.exp(-lead), terms.log_total - lead


def _first_order(margin: Tensor, mean: Tensor, cv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log P and its derivatives by utility and by log c."""
    y, c = _scaled(margin, mean, cv)
    terms = series_terms(y, c)
    q, log_q = _probability(terms, y, c)
    value, odds = _side(margin, q, log_q)
    by_y = terms.mean(-terms.k / (1 + terms.z))
    by_log_c = terms.mean(log1p_excess(terms.z)) / c
    small = y * (1 + c) < _SMALL_UTILITY
    by_log_c = torch.where(small, _q_by_log_c_small(y, c) / q, by_log_c)
    infinite = margin.isinf()
    value = torch.where(infinite, torch.where(margin < 0, -math.inf, 0.0), value)
    by_utility = (odds.abs() * -by_y).masked_fill(infinite, 0.0)
    return value, by_utility, (odds * by_log_c).masked_fill(infinite, 0.0)


def _second_order(margin: Tensor, mean: Tensor, cv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Second derivatives of log P: by utility twice, by utility and log c, by log c twice."""
    y, c = _scaled(margin, mean, cv)
    terms = series_terms(y, c)
    _, odds = _side(margin, *_probability(terms, y, c))
    share = terms.z / (1 + terms.z)
    excess = log1p_excess(terms.z)
    e_y, e_l = -terms.k / (1 + terms.z), excess / c
    q_y, q_l = terms.mean(e_y), terms.mean(e_l)
    q_yy = terms.mean((1 + c) * e_y.square())
    q_yl = terms.mean(e_y * (e_l - share))
    q_ll = terms.mean((share.square() - excess) / c + e_l.square())
    sign = torch.where(margin < 0, -1.0, 1.0)
    squared = odds.square()
    second = (
        odds * q_yy - squared * q_y.square(),
        sign * (odds * q_yl - squared * q_y * q_l),
        odds * q_ll - squared * q_l.square(),
    )
    infinite = margin.isinf()
    uu, ul, ll = (value.masked_fill(infinite, 0.0) for value in second)
    return uu, ul, ll


def _q_by_log_c_small(y: Tensor, c: Tensor) -> Tensor:
    r"""The derivative of Q by log c at small utilities, from tilted moments of the strength.

    With v the random utility, N terms are summed and the rest is expanded,

    .. math:: Q = \sum_{k=1}^{N-1} (-1)^{k+1} \mathbb{E}[e^{-kv}]
                + (-1)^{N+1} \, \mathbb{E}[e^{-Nv} (1/2 + \tau_0 v + \tau_1 v^3 + \dots)],
              \qquad \mathbb{E}[e^{-Nv} v^j] = y^j (1 + Nx)^{-a-j} \prod_{i<j} (1 + ic),

    which is Boole's summation. N = 0 (plain moments, up to a constant) serves the smallest
    utilities. Relative error of the derivative about 5e-12, where the accelerated series loses
    digits because its terms grow like k^2 and nearly cancel.
    """
    first = torch.where(y * (1 + c) < _SMALL_UTILITY / 3, 0.0, 6.0)
    x = c * y
    k = torch.arange(1, 6, dtype=y.dtype, device=y.device).unsqueeze(-1)
    summand = torch.exp(-(k * x).log1p() / c) * log1p_excess(k * x) / c
    alternating = torch.where(k % 2 == 0, -1.0, 1.0).masked_fill(k >= first, 0.0)
    z = first * x
    share, log_slope = z / (1 + z), log1p_excess(z) / c
    moment = torch.exp(-z.log1p() / c)
    # Moments of order 1 to 29 and their slopes by log c, of which the odd ones are needed.
    coefficient = _logistic_coefficients(y.device)
    growth = c * torch.arange(2 * len(coefficient) - 1, device=y.device).unsqueeze(-1)
    moments = moment * (y / (1 + z) * (1 + growth)).cumprod(0)
    log_slopes = log_slope + (growth / (1 + growth) - share).cumsum(0)
    rest = moment * log_slope / 2 + coefficient @ (moments * log_slopes)[::2]
    return (alternating * summand).sum(0) - rest  # N is even


@lru_cache
def _logistic_coefficients(device: torch.device) -> Float[Tensor, " odd"]:
    """Odd Taylor coefficients of the sigmoid at zero, from sigmoid' = 1/4 - (sigmoid - 1/2)^2."""
    tau = [0.25]
    for n in range(1, 15):
        tau.append(-sum(tau[i] * tau[n - 1 - i] for i in range(n)) / (2 * n + 1))
    return torch.tensor(tau, dtype=torch.float64, device=device)
