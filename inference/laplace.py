r"""The posterior of (mean, cv): Laplace along the ridge of the mean, quadrature for the rest.

For every cv on a grid the conditional posterior of the log mean is centred by Newton's method and
scaled by its curvature; the log joint is then evaluated on a lattice in these coordinates. Skewed
posteriors, such as those that pile up at cv = 0, come out right, since the lattice carries the
exact log joint. The idea is that of nested Laplace approximations (Rue, Martino and Chopin, JRSS-B
71:2, 2009).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from mixdpo_pyro.inference.likelihood import Likelihood
from mixdpo_pyro.models import cv_prior, mean_prior
from mixdpo_pyro.models.preference import MeanAnchor

__all__ = ["MAX_CV", "LogJoint", "Maximum", "Moments", "RidgeLattice", "explore", "maximise"]

MAX_CV = 10.0
"""Larger cv are not looked at: HalfNormal(1) is down by 50 nats."""

_LOG_CV_RANGE = (-9.0, math.log(MAX_CV))
"""cv from 1e-4, where every family is DPO."""

_REACH = 8.0
"""Log means further from the start are not looked at: a factor of 3000."""

_WINDOW_NATS = 14.0
"""Points of the ridge further below its top are left out: exp(-14) = 1e-6."""

_RIDGE_POINTS = 32

_SCALED = np.linspace(-7, 7, 21)
"""Lattice across the ridge, in standard deviations."""


@dataclass(frozen=True)
class LogJoint:
    r"""Log joint density of the data and of :math:`(\log m, \log cv)`, in nats.

    Attributes:
        likelihood: Log-likelihood of the data.
        anchor: `"prior"`, `"fixed"` or `"free"` (flat in mean and cv).
        beta: Median of the mean's prior, or its fixed value.
    """

    likelihood: Likelihood
    anchor: MeanAnchor
    beta: float

    def __call__(
        self, log_mean: Float[np.ndarray, " points"], log_cv: Float[np.ndarray, " points"]
    ) -> Float[np.ndarray, " points"]:
        """Log joint at each point of the unconstrained space, Jacobians included."""
        cv = np.exp(log_cv)
        value = self.penalised(log_mean, cv) + log_cv
        if self.anchor == "free":
            return value + log_mean
        return value + cv_prior().log_prob(torch.from_numpy(cv)).numpy()

    def penalised(
        self, log_mean: Float[np.ndarray, " points"], cv: Float[np.ndarray, " points"]
    ) -> Float[np.ndarray, " points"]:
        """Log-likelihood plus the prior log density of the log mean, if any; cv may be zero."""
        with torch.no_grad():
            point = torch.from_numpy(np.exp(log_mean)), torch.from_numpy(np.atleast_1d(cv))
            value = self.likelihood(*point).numpy()
        if self.anchor != "prior":
            return value
        log_mean_prior = mean_prior(self.beta).base_dist
        return value + log_mean_prior.log_prob(torch.from_numpy(log_mean)).numpy()


@dataclass(frozen=True)
class Moments:
    """Location and scale of a posterior.

    Attributes:
        log_mean: Mean of the log mean.
        log_mean_scale: Its standard deviation at given cv; 0 for a fixed mean.
        cv: Mean of cv.
        cv_scale: Standard deviation of cv.
        slope: Slope of the log mean over log(1 + cv^2).
    """

    log_mean: float
    log_mean_scale: float
    cv: float
    cv_scale: float
    slope: float


@dataclass(frozen=True)
class RidgeLattice:
    """Log joint on a lattice along the ridge.

    Attributes:
        log_cv: Grid of log cv, equally spaced.
        centre: Conditional mode of the log mean at each cv.
        scale: Conditional standard deviation of the log mean at each cv; 0 for a fixed mean.
        scaled: Lattice across the ridge, in units of `scale`.
        log_density: Log joint in the coordinates (log cv, scaled), shape `(cv, scaled)`.
    """

    log_cv: Float[np.ndarray, " cv"]
    centre: Float[np.ndarray, " cv"]
    scale: Float[np.ndarray, " cv"]
    scaled: Float[np.ndarray, " scaled"]
    log_density: Float[np.ndarray, "cv scaled"]

    def moments(self) -> "Moments":
        """Locations and scales, roughly, and how the ridge leans."""
        weight = np.exp(logsumexp(self.log_density, axis=1) - logsumexp(self.log_density))
        cv = np.exp(self.log_cv)
        curve = np.log1p(cv**2)
        centred = weight * (curve - weight @ curve)
        cv_location = float(weight @ cv)
        return Moments(
            log_mean=float(weight @ self.centre),
            log_mean_scale=float(weight @ self.scale),
            cv=cv_location,
            cv_scale=math.sqrt(weight @ (cv - cv_location) ** 2),
            slope=float(centred @ self.centre / (centred @ curve)),
        )

    def draw(self, num_samples: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Independent draws of `mean` and `cv`.

        Log cv is drawn from its marginal by inversion (a spline through the log marginal); the
        scaled log mean from the conditional of one of the two neighbouring grid points, chosen
        with the probability of linear interpolation.
        """
        log_cv = self._draw_log_cv(num_samples, rng)
        position = (log_cv - self.log_cv[0]) / (self.log_cv[1] - self.log_cv[0])
        row = np.floor(position + rng.random(num_samples)).astype(int)
        row = row.clip(0, len(self.log_cv) - 1)
        scaled = self._draw_scaled(row, rng)
        centre = CubicSpline(self.log_cv, self.centre)(log_cv)
        scale = CubicSpline(self.log_cv, self.scale)(log_cv)
        return {"mean": np.exp(centre + scale * scaled), "cv": np.exp(log_cv)}

    def _draw_log_cv(self, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        log_marginal = logsumexp(self.log_density, axis=1)
        fine = np.linspace(self.log_cv[0], self.log_cv[-1], 4001)
        density = np.exp(CubicSpline(self.log_cv, log_marginal - log_marginal.max())(fine))
        return _invert(fine, density[None], rng.random(num_samples), np.zeros(num_samples, int))

    def _draw_scaled(self, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if len(self.scaled) == 1:
            return np.zeros(len(row))
        fine = np.linspace(self.scaled[0], self.scaled[-1], 561)
        relative = self.log_density - self.log_density.max(1, keepdims=True)
        density = np.exp(CubicSpline(self.scaled, relative, axis=1)(fine))
        return _invert(fine, density, rng.random(len(row)), row)


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


def explore(log_joint: LogJoint) -> RidgeLattice:
    """Find where the posterior lives and evaluate the log joint there.

    The window of log cv is narrowed until its interior fills a third of the grid.
    """
    low, high = _LOG_CV_RANGE
    null = _maximum_at(log_joint, 0.0, np.log(log_joint.beta))
    start = np.full(_RIDGE_POINTS, np.log(null.mean))
    while True:
        log_cv = np.linspace(low, high, _RIDGE_POINTS)
        centre, scale = _ridge(partial(_at_rows, log_joint, log_cv), start, log_joint.anchor)
        height = log_joint(centre, log_cv) + np.log(np.where(scale > 0, scale, 1))
        inside = np.flatnonzero(height > height.max() - _WINDOW_NATS)
        if len(inside) >= _RIDGE_POINTS / 3:
            break
        low = log_cv[max(inside[0] - 1, 0)]
        high = log_cv[min(inside[-1] + 1, _RIDGE_POINTS - 1)]
        start = np.interp(np.linspace(low, high, _RIDGE_POINTS), log_cv, centre)
    return _lattice(log_joint, log_cv, centre, scale)


def maximise(log_joint: LogJoint) -> tuple[Maximum, Maximum]:
    """Maximum over (mean, cv >= 0), and that of the null hypothesis cv = 0."""
    null = _maximum_at(log_joint, 0.0, np.log(log_joint.beta))
    grid = np.linspace(np.log(0.01), _LOG_CV_RANGE[1], 28)
    start = np.full(len(grid), np.log(null.mean))
    cv = np.exp(grid)
    centre, _ = _ridge(partial(_at_rows, log_joint.penalised, cv), start, log_joint.anchor)
    best = int(np.argmax(log_joint.penalised(centre, cv)))

    def descent(log_cv: float) -> float:
        return -_maximum_at(log_joint, np.exp(log_cv), centre[best]).penalised

    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    log_cv = minimize_scalar(descent, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
    interior = _maximum_at(log_joint, float(np.exp(log_cv)), centre[best])
    return (interior if interior.penalised > null.penalised else null), null


def _maximum_at(log_joint: LogJoint, cv: float, start: float) -> Maximum:
    """The best mean at this cv."""
    at = np.array([cv])
    objective = partial(_at_rows, log_joint.penalised, at)
    log_mean, _ = _ridge(objective, np.array([start]), log_joint.anchor)
    penalised = log_joint.penalised(log_mean, at)[0]
    value = replace(log_joint, anchor="free").penalised(log_mean, at)[0]
    return Maximum(float(np.exp(log_mean[0])), cv, float(value), float(penalised))


def _at_rows(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    second: np.ndarray,
    first: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """A function of two arguments at some rows of the second."""
    return function(first, second[rows])


def _ridge(
    objective: Callable[[np.ndarray, np.ndarray], np.ndarray], start: np.ndarray, anchor: str
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method in many log means at once: modes, and standard deviations by curvature.

    Derivatives are central differences: with a step of 1e-3 the mode moves by less than 1e-6,
    and rounding of a log-likelihood of 1e7 nats changes the curvature by less than 1%.
    """
    if anchor == "fixed":
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
        if not (height[rows] > height.max() - 4 * _WINDOW_NATS).any():
            break
    return x, np.minimum(curvature**-0.5, 1.0)


def _lattice(
    log_joint: LogJoint, log_cv: np.ndarray, centre: np.ndarray, scale: np.ndarray
) -> RidgeLattice:
    scaled = _SCALED if scale.any() else np.zeros(1)
    log_mean = centre[:, None] + scale[:, None] * scaled
    repeated = np.repeat(log_cv, len(scaled))
    value = log_joint(log_mean.ravel(), repeated).reshape(log_mean.shape)
    if scale.any():
        value = value + np.log(scale)[:, None]
    return RidgeLattice(log_cv, centre, scale, scaled, value)


def _invert(
    grid: np.ndarray, density: np.ndarray, uniform: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Inverse distribution function of tabulated densities, one row of `density` per draw."""
    middle = (density[:, 1:] + density[:, :-1]) / 2
    cumulative = np.concatenate([np.zeros((len(density), 1)), middle.cumsum(1)], axis=1)
    cumulative /= cumulative[:, -1:]
    value = np.empty_like(uniform)
    for k in np.unique(row):
        value[row == k] = np.interp(uniform[row == k], cumulative[k], grid)
    return value
