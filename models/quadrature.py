r"""Deterministic quadrature of the mixed logit: a trapezoid rule on the part of the strength's axis that matters.

The integrand is analytic and decays at least like a Gaussian (for the Gamma family after a double exponential change of
variable), so equal steps converge geometrically (Trefethen and Weideman, The exponentially convergent trapezoidal
rule, SIAM Review 56:3, 2014). The window is found by repeated scanning, so that sharp and two-humped posteriors of long
panels are covered too. Nodes are constants when differentiating.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["pair_log_prob", "panel_log_prob"]

# Truncation: exp(-25) = 1e-11 of the integrand's peak is left out on either side.
_WINDOW_NATS = 25.0
_SCAN_POINTS = 16
_MAX_SCANS = 60


class Rule(NamedTuple):
    """Strengths at the nodes (nodes first) and the log of prior density times step."""

    beta: Tensor
    log_weight: Tensor


def pair_log_prob(margin: Tensor, mean: Tensor, cv: Tensor, family: str, num_nodes: int) -> Tensor:
    """Log-probability of each pair's choice, strength integrated out."""
    margin, mean, cv = torch.broadcast_tensors(margin, mean, cv)
    if family == "normal":
        return _log_integral(
            lambda beta: logsigmoid(beta * margin), margin, mean, cv, family, num_nodes
        )
    distance = -margin.abs()
    log_q = _log_integral(
        lambda beta: logsigmoid(beta * distance), distance, mean, cv, family, num_nodes
    )
    return torch.where(margin < 0, log_q, torch.log1p(-log_q.exp()))


def panel_log_prob(
    margin: Tensor,
    annotator: Int[Tensor, " pairs"],
    num_annotators: int,
    mean: Tensor,
    cv: Tensor,
    family: str,
    num_nodes: int,
    flip_probability: float = 0.0,
) -> Tensor:
    """Log-probability of all choices of each annotator, their common strength integrated out."""

    def log_likelihood(beta: Tensor) -> Tensor:
        return segment_sum(
            choice_log_prob(beta[..., annotator] * margin, flip_probability),
            annotator,
            num_annotators,
        )

    batch = torch.broadcast_shapes(mean.shape, cv.shape, (num_annotators,))
    return _log_integral(
        log_likelihood, None, mean.expand(batch), cv.expand(batch), family, num_nodes
    )


def choice_log_prob(utility: Tensor, flip_probability: float) -> Tensor:
    """Log-probability of a choice given its utility, the label flipped with this probability."""
    if flip_probability == 0.0:
        return logsigmoid(utility)
    kept = math.log1p(-flip_probability) + logsigmoid(utility)
    return torch.logaddexp(kept, math.log(flip_probability) + logsigmoid(-utility))


def segment_sum(values: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum the last axis by segment."""
    return values.new_zeros((*values.shape[:-1], num_segments)).index_add(-1, segment, values)


def _log_integral(
    log_likelihood: Callable[[Tensor], Tensor],
    margin: Tensor | None,
    mean: Tensor,
    cv: Tensor,
    family: str,
    num_nodes: int,
) -> Tensor:
    coordinate = _COORDINATES[family]

    def log_integrand(z: Tensor, mean: Tensor, cv: Tensor) -> Tensor:
        beta, log_weight = coordinate(z, mean, cv)
        return log_likelihood(beta) + log_weight

    with torch.no_grad():
        low, high = _window(lambda z: log_integrand(z, mean, cv), log_likelihood, mean, cv, family)
        z = _grid(low, high, num_nodes)
        log_step = ((high - low) / (num_nodes - 1)).log()
    return log_integrand(z, mean, cv).logsumexp(0) + log_step


def _grid(low: Tensor, high: Tensor, num_points: int) -> Tensor:
    fraction = torch.linspace(0, 1, num_points, dtype=low.dtype, device=low.device)
    return low + (high - low) * fraction.view(-1, *[1] * low.dim())


def _window(
    log_integrand: Callable[[Tensor], Tensor],
    log_likelihood: Callable[[Tensor], Tensor],
    mean: Tensor,
    cv: Tensor,
    family: str,
) -> tuple[Tensor, Tensor]:
    low, high = _BRACKETS[family](log_likelihood(mean.unsqueeze(0)).squeeze(0), cv)
    for _ in range(_MAX_SCANS):
        value = log_integrand(_grid(low, high, _SCAN_POINTS + 1))
        inside = value >= value.amax(0) - _WINDOW_NATS
        index = torch.arange(_SCAN_POINTS + 1, device=low.device).view(-1, *[1] * low.dim())
        first = torch.where(inside, index, _SCAN_POINTS).amin(0) - 1
        last = torch.where(inside, index, 0).amax(0) + 1
        step = (high - low) / _SCAN_POINTS
        low, high = (
            low + step * first.clamp(min=0),
            high - step * (_SCAN_POINTS - last).clamp(min=0),
        )
        if not bool((last - first < _SCAN_POINTS * 0.6).any()):
            break
    return low, high


def _lognormal_coordinate(z: Tensor, mean: Tensor, cv: Tensor) -> Rule:
    variance = cv.square().log1p()
    return Rule(mean * torch.exp(variance.sqrt() * z - variance / 2), _standard_normal(z))


def _normal_coordinate(z: Tensor, mean: Tensor, cv: Tensor) -> Rule:
    return Rule(mean * (1 + cv * z), _standard_normal(z))


def _gamma_coordinate(z: Tensor, mean: Tensor, cv: Tensor) -> Rule:
    scaled = z * cv.detach().clamp(max=1.0)
    s = (scaled - torch.expm1(-scaled)) / 2
    jacobian = torch.log1p(torch.exp(-scaled)) + (cv.detach().clamp(max=1.0) / 2).log()
    a = cv.square().reciprocal()
    return Rule(mean * s.exp(), a * (s - s.expm1()) + _log_gamma_normaliser(a) + jacobian)


def _standard_normal(z: Tensor) -> Tensor:
    return -z.square() / 2 - math.log(2 * math.pi) / 2


def _log_gamma_normaliser(a: Tensor) -> Tensor:
    """`a log a - a - lgamma(a)`, by Stirling's series where the direct form cancels."""
    large = a > 16
    v = torch.where(large, a, 16.0).reciprocal()
    v2 = v.square()
    stirling = -(v / (2 * math.pi)).log() / 2 - math.log(2 * math.pi)
    stirling = -0.5 * (v * 2 * math.pi).log() - v * (
        1 / 12 - v2 * (1 / 360 - v2 * (1 / 1260 - v2 / 1680))
    )
    b = torch.where(large, 1.0, a)
    return torch.where(large, stirling, b * b.log() - b - b.lgamma())


def _lognormal_bracket(log_likelihood: Tensor, cv: Tensor) -> tuple[Tensor, Tensor]:
    reach = (2 * (_WINDOW_NATS - log_likelihood)).sqrt()
    return -reach, reach


def _normal_bracket(log_likelihood: Tensor, cv: Tensor) -> tuple[Tensor, Tensor]:
    reach = (2 * (_WINDOW_NATS - log_likelihood)).sqrt()
    return -reach, reach


def _gamma_bracket(log_likelihood: Tensor, cv: Tensor) -> tuple[Tensor, Tensor]:
    excess = (_WINDOW_NATS + 15 - log_likelihood) * cv.square()
    reach = excess + (2 * excess).sqrt()
    scale = cv.clamp(max=1.0)
    return -torch.log1p(2 * reach) / scale, 2 * torch.log1p(reach) / scale


_COORDINATES = {
    "gamma": _gamma_coordinate,
    "lognormal": _lognormal_coordinate,
    "normal": _normal_coordinate,
}
_BRACKETS = {"gamma": _gamma_bracket, "lognormal": _lognormal_bracket, "normal": _normal_bracket}
