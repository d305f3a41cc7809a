"""The log joint of data, mean and cv, and where it is largest."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from scipy.optimize import minimize_scalar

from mixdpo_pyro.inference.likelihood.marginal import Likelihood
from mixdpo_pyro.models import cv_prior, mean_prior
from mixdpo_pyro.models.pyro_models import MeanAnchor

__all__ = [
    "LOG_CV_RANGE",
    "MAX_CV",
    "WINDOW_NATS",
    "LogJoint",
    "Maximum",
    "at_rows",
    "climb_ridge",
    "maximise",
    "maximum_at",
]

MAX_CV = 10.0
"""Larger cv are not looked at: HalfNormal(1) is down by 50 nats."""

LOG_CV_RANGE = (-9.0, math.log(MAX_CV))
"""cv from 1e-4, where every family is DPO."""

_REACH = 8.0
"""Log means further from the start are not looked at: a factor of 3000."""

WINDOW_NATS = 14.0
"""Points of the ridge further below its top are left out: exp(-14) = 1e-6."""


@dataclass(frozen=True)
class LogJoint:
    r"""Log joint density of the data and of :math:`(\log m, \log cv)`, in nats.

    Attributes:
        likelihood: Log-likelihood of the data.
        mean_anchor: `"prior"`, `"fixed"` or `"free"` (flat in mean and cv).
        beta: Median of the mean's prior, or its fixed value.
    """

    likelihood: Likelihood
    mean_anchor: MeanAnchor
    beta: float

    def __call__(
        self, log_mean: Float[np.ndarray, "*#points"], log_cv: Float[np.ndarray, "*#points"]
    ) -> Float[np.ndarray, "*points"]:
        """Log joint at each point of the unconstrained space, Jacobians included."""
        cv = np.exp(log_cv)
        value = self.penalised(log_mean, cv) + log_cv
        if self.mean_anchor == "free":
            return value + log_mean
        return value + cv_prior().log_prob(torch.from_numpy(cv)).numpy()

    def penalised(
        self, log_mean: Float[np.ndarray, "*#points"], cv: Float[np.ndarray, "*#points"]
    ) -> Float[np.ndarray, "*points"]:
        """Log-likelihood plus the prior log density of the log mean, if any; cv may be zero."""
        with torch.no_grad():
            point = torch.from_numpy(np.exp(log_mean)), torch.from_numpy(np.atleast_1d(cv))
            value = self.likelihood(*point).numpy()
        if self.mean_anchor != "prior":
            return value
        return value + self._log_mean_prior.log_prob(torch.from_numpy(log_mean)).numpy()

    @cached_property
    def _log_mean_prior(self) -> TorchDistributionMixin:
        return mean_prior(self.beta).base_dist


@dataclass(frozen=True)
class Maximum:
    """Where the likelihood (times the prior of the mean, if any) is largest, and its value there.

    Attributes:
        mean: Mean strength.
        cv: Coefficient of variation, zero at the boundary.
        log_likelihood: Log-likelihood in nats.
        penalised: Log-likelihood plus the log prior of the mean.
    """

    mean: float
    cv: float
    log_likelihood: float
    penalised: float


def maximise(log_joint: LogJoint) -> tuple[Maximum, Maximum]:
    """Maximum over (mean, cv >= 0), and that of the null hypothesis cv = 0."""
    null = maximum_at(log_joint, 0.0, np.log(log_joint.beta))
    grid = np.linspace(np.log(0.01), LOG_CV_RANGE[1], 28)
    start = np.full(len(grid), np.log(null.mean))
    cv = np.exp(grid)
    centre, _ = climb_ridge(
        partial(at_rows, log_joint.penalised, cv), start, log_joint.mean_anchor
    )
    best = int(np.argmax(log_joint.penalised(centre, cv)))
    near = float(centre[best])

    def descent(log_cv: float) -> float:
        nonlocal near
        found = maximum_at(log_joint, math.exp(log_cv), near)
        near = math.log(found.mean)
        return -found.penalised

    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    log_cv = minimize_scalar(descent, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
    interior = maximum_at(log_joint, math.exp(log_cv), near)
    return (interior if interior.penalised > null.penalised else null), null


def maximum_at(log_joint: LogJoint, cv: float, start: float) -> Maximum:
    """The best mean at this cv."""
    at = np.array([cv])
    objective = partial(at_rows, log_joint.penalised, at)
    log_mean, _ = climb_ridge(objective, np.array([start]), log_joint.mean_anchor)
    penalised = log_joint.penalised(log_mean, at)[0]
    value = replace(log_joint, mean_anchor="free").penalised(log_mean, at)[0]
    return Maximum(float(np.exp(log_mean[0])), cv, float(value), float(penalised))


def at_rows(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    second: np.ndarray,
    first: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """A function of two arguments at some rows of the second."""
    return function(first, second[rows])


def climb_ridge(
    objective: Callable[[np.ndarray, np.ndarray], np.ndarray], start: np.ndarray, mean_anchor: str
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method in many log means at once: modes, and standard deviations by curvature.

    Derivatives are central differences: with a step of 1e-3 the mode moves by less than 1e-6,
    and rounding of a log-likelihood of 1e7 nats changes the curvature by less than 1%.
    """
    if mean_anchor == "fixed":
        return start, np.zeros_like(start)
    x, step_size = start.copy(), 1e-3
    curvature, height = np.ones_like(start), np.full_like(start, -np.inf)
    rows = np.arange(len(start))
    for _ in range(100):
        at = x[rows]
        up, middle, down = objective(at + step_size * np.array([[1], [0], [-1]]), rows)
        gradient = (up - down) / (2 * step_size)
        curvature[rows] = np.maximum((2 * middle - up - down) / step_size**2, 1e-6)
        move = np.clip(gradient / curvature[rows], -0.5, 0.5)
        x[rows] = np.clip(at + move, start[rows] - _REACH, start[rows] + _REACH)
        move = x[rows] - at
        height[rows] = middle + gradient * move
        # Those that have arrived are not looked at again, which spares most of the grid.
        rows = rows[move**2 * curvature[rows] >= 1e-9]
        if not (height[rows] > height.max() - 4 * WINDOW_NATS).any():
            break
    return x, np.minimum(curvature**-0.5, 1.0)
