"""The probability of a choice whose margin has an unknown error."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["ERRORS", "erring_log_prob", "expect_over_errors", "log_error_mass"]

ERRORS = torch.linspace(-4.5, 4.5, 31, dtype=torch.float64)
"""Nodes of a standard normal error, where its joint probability with other things is needed."""

_SCALES = (0.0, 1.5, 3.0, 6.0, 12.0)
"""Scales of the error between which one rule over the error serves; beyond the last, one over the
logistic variable."""

_ERROR_STEP = 0.9
"""Step of the rule over the error times the scale: the trapezoid rule is then off by exp(-22)."""

_ERROR_REACH = 7.5
"""How far the rule goes beyond the error that a contradicted margin makes likely, the scale."""

_LOGISTIC_STEP, _LOGISTIC_REACH = 0.9, 32.0

_LARGEST = 300.0
"""Scale beyond which two terms of a series serve: the third is below 19 / s^4."""

_FAR = -1e4
"""Normal variables below have a hazard of their size, to 1e-8; the difference of logs cancels."""

_LOWEST = -690.0
"""Logits are not looked at below: exp of minus them is still a number."""


def erring_log_prob(
    logit: Float[Tensor, "rows columns"], scale: Float[Tensor, " columns"]
) -> Float[Tensor, "rows columns"]:
    r"""Log-probability of a choice, the error of its margin integrated out.

    .. math:: \log \mathbb{E}_{e \sim \mathrm{Normal}(0, 1)}\, \sigma(x + s e)
              = \log \mathbb{E}_{l \sim \mathrm{Logistic}}\, \Phi\big((x - l) / s\big)

    by the trapezoid rule over e, whose integrand is analytic within :math:`\pi / s` of the real
    line, over l where s exceeds 12, and by the variance of l where s exceeds 300; off by less than
    1e-8 of the probability for :math:`|x| \le 25`.

    Args:
        logit: The strength times the margin, x, a column per strength.
        scale: The strength times the standard deviation of the margin's error, s >= 0.
    """
    value = torch.empty_like(logit)
    for low, high in pairwise((-1.0, *_SCALES[1:], _LARGEST, math.inf)):
        column = ((scale > low) & (scale <= high)).nonzero()[:, 0]
        if len(column):
            part = logit[:, column], scale[column]
            if high == math.inf:
                value[:, column] = _nearly_normal(*part)
            elif high == _LARGEST:
                value[:, column] = _over_logistic(*part)
            else:
                value[:, column] = _over_errors(*part, high)
    # Errors to the right side have half of the mass: a floor where a rule reaches too little far.
    return torch.maximum(value, logsigmoid(logit) - math.log(2)).clamp(max=0.0)


def log_error_mass() -> Float[Tensor, " errors"]:
    """Log mass of a standard normal error at each node."""
    return (-ERRORS.square() / 2).log_softmax(0)


def expect_over_errors(
    probability: Callable[[np.ndarray], np.ndarray],
    margin: Float[np.ndarray, " pairs"],
    error: Float[np.ndarray, " samples"],
) -> Float[np.ndarray, "samples pairs"]:
    r"""Mean of a probability over errors of the margin, :math:`\mathbb{E}_e\, P(\Delta + s e)`.

    Args:
        probability: From margins of shape `(samples, pairs)` to probabilities.
        margin: Margins, in nats.
        error: Standard deviation of the errors, in nats, of each sample.
    """
    total = np.zeros((len(error), len(margin)))
    for node, mass in zip(ERRORS.tolist(), log_error_mass().exp().tolist(), strict=True):
        total += mass * probability(margin + node * error[:, None])
    return total


def _over_errors(logit: Tensor, scale: Tensor, largest: float) -> Tensor:
    step = _ERROR_STEP / largest
    reach = math.ceil((_ERROR_REACH + largest) / step)
    error = step * torch.arange(-reach, reach + 1, dtype=torch.float64)
    mass = (-error.square() / 2).softmax(0)
    # sigma(x + s e) / sigma(x) = (1 + a) / (1 + a c) with a = exp(-x), c = exp(-s e).
    a = torch.exp(-logit.clamp(min=_LOWEST))
    ratio = torch.zeros_like(logit)
    for each, weight in zip(error, mass, strict=True):
        ratio += weight / (1 + a * torch.exp(-scale * each))
    return ratio.log() + a.log1p() + logsigmoid(logit)


def _over_logistic(logit: Tensor, scale: Tensor) -> Tensor:
    reach = math.ceil(_LOGISTIC_REACH / _LOGISTIC_STEP)
    node = _LOGISTIC_STEP * torch.arange(-reach, reach + 1, dtype=torch.float64)
    log_mass = (logsigmoid(node) + logsigmoid(-node)).log_softmax(0)
    value = torch.full_like(logit, -math.inf)
    for each, mass in zip(node, log_mass, strict=True):
        value = torch.logaddexp(value, torch.special.log_ndtr((logit - each) / scale) + mass)
    return value


def _nearly_normal(logit: Tensor, scale: Tensor) -> Tensor:
    r""":math:`\log[\Phi(z) + \pi^2 \phi'(z) / (6 s^2)]` at :math:`z = x / s`."""
    z = logit / scale
    log_phi = -z.square() / 2 - math.log(2 * math.pi) / 2
    normal = torch.special.log_ndtr(z)
    hazard = torch.where(z < _FAR, -z, (log_phi - normal).exp())  # phi / Phi
    return normal + torch.log1p(-z * hazard * (math.pi**2 / 6) / scale.square())
