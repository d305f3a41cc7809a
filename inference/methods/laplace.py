r"""The posterior of (mean, cv): Laplace along the ridge of the mean, quadrature for the rest.

For every cv on a grid the conditional posterior of the log mean is centred by Newton's method and
scaled by its curvature; the log joint is then evaluated on a lattice in these coordinates. Skewed
posteriors, such as those that pile up at cv = 0, come out right, since the lattice carries the
exact log joint. The idea is that of nested Laplace approximations (Rue, Martino and Chopin, JRSS-B
71:2, 2009).
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.special import logsumexp

from mixdpo_pyro.inference.methods.log_joint import (
    LOG_CV_RANGE,
    WINDOW_NATS,
    LogJoint,
    at_rows,
    climb_ridge,
    maximum_at,
)

__all__ = ["Moments", "RidgeLattice", "explore", "follow_ridge"]

_RIDGE_POINTS = 32

_SCALED = np.linspace(-7, 7, 21)
"""Lattice across the ridge, in standard deviations."""


_DEEPEST = 700.0
"""Nats below the top at which the density is cut: zero in float64, but still fit for a spline."""


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


def explore(log_joint: LogJoint) -> RidgeLattice:
    """Find where the posterior lives and evaluate the log joint there."""
    return _lattice(log_joint, *follow_ridge(log_joint))


def follow_ridge(log_joint: LogJoint) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid of log cv over the posterior, and modes and deviations of the log mean on it.

    The window of log cv is narrowed until its interior fills a third of the grid.
    """
    low, high = LOG_CV_RANGE
    null = maximum_at(log_joint, 0.0, np.log(log_joint.beta))
    start = np.full(_RIDGE_POINTS, np.log(null.mean))
    while True:
        log_cv = np.linspace(low, high, _RIDGE_POINTS)
        centre, scale = climb_ridge(
            partial(at_rows, log_joint, log_cv), start, log_joint.mean_anchor
        )
        height = log_joint(centre, log_cv) + np.log(np.where(scale > 0, scale, 1))
        inside = np.flatnonzero(height > height.max() - WINDOW_NATS)
        if len(inside) >= _RIDGE_POINTS / 3:
            break
        low = log_cv[max(inside[0] - 1, 0)]
        high = log_cv[min(inside[-1] + 1, _RIDGE_POINTS - 1)]
        start = np.interp(np.linspace(low, high, _RIDGE_POINTS), log_cv, centre)
    return log_cv, centre, scale


def _lattice(
    log_joint: LogJoint, log_cv: np.ndarray, centre: np.ndarray, scale: np.ndarray
) -> RidgeLattice:
    scaled = _SCALED if scale.any() else np.zeros(1)
    log_mean = centre[:, None] + scale[:, None] * scaled
    repeated = np.repeat(log_cv, len(scaled))
    value = log_joint(log_mean.ravel(), repeated).reshape(log_mean.shape)
    if scale.any():
        value = value + np.log(scale)[:, None]
    value = np.maximum(value, value.max() - _DEEPEST)
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
