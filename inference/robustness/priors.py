"""The posterior of cv under other priors."""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import logsumexp

from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.likelihood.marginal import build_likelihood
from mixdpo_pyro.inference.methods.laplace import explore
from mixdpo_pyro.inference.methods.log_joint import LogJoint

__all__ = ["PriorAnswer", "compare_priors", "density_interval"]

_PRIORS = {
    "half-normal, scale 0.5": lambda cv: -0.5 * (cv / 0.5) ** 2,
    "half-normal, scale 1": lambda cv: -0.5 * cv**2,
    "half-normal, scale 2": lambda cv: -0.5 * (cv / 2) ** 2,
    "exponential, mean 0.5": lambda cv: -2 * cv,
    "uniform on [0, 3]": lambda cv: np.where(cv < 3, 0.0, -np.inf),
}


def density_interval(grid: np.ndarray, mass: np.ndarray) -> tuple[float, float]:
    """5% and 95% quantiles of a density on an equally spaced grid, by the trapezoid rule."""
    cumulative = np.concatenate([[0.0], (mass[1:] + mass[:-1]).cumsum()])
    low, high = np.interp([0.05, 0.95], cumulative / cumulative[-1], grid)
    return float(low), float(high)


# Priors


@dataclass(frozen=True)
class PriorAnswer:
    """The posterior of cv under one prior.

    Attributes:
        name: The prior of cv.
        cv_interval: 5% and 95% quantiles.
        probability_small: Posterior probability of cv < 0.25.
    """

    name: str
    cv_interval: tuple[float, float]
    probability_small: float


def compare_priors(result: Fit, small: float = 0.25) -> list[PriorAnswer]:
    r"""Posterior of cv under several priors, on a lattice of the log joint.

    Each prior of cv is combined with the mean's prior of the fit, and the uniform one also with
    a standard deviation of 2 of the log mean.

    Args:
        result: A fit.
        small: The cv below which strengths count as equal.
    """
    posterior = result.posterior
    likelihood = build_likelihood(result.choices, posterior.family, posterior.flip_probability)
    lattice = explore(LogJoint(likelihood, posterior.mean_anchor, posterior.beta))
    cv = np.exp(lattice.log_cv)
    # The lattice holds the half-normal prior of scale 1, unless the mean is free.
    base = lattice.log_density + (
        0.0 if posterior.mean_anchor == "free" else 0.5 * cv[:, None] ** 2
    )
    answers = [
        _prior_answer(name, lattice.log_cv, logsumexp(base + log_prior(cv)[:, None], 1), small)
        for name, log_prior in _PRIORS.items()
    ]
    if posterior.mean_anchor == "prior":
        log_mean = lattice.centre[:, None] + lattice.scale[:, None] * lattice.scaled
        distance = log_mean - np.log(posterior.beta)
        wide = base + 0.5 * (distance / 0.5) ** 2 - 0.5 * (distance / 2) ** 2
        wide = wide + _PRIORS["uniform on [0, 3]"](cv)[:, None]
        name = "uniform on [0, 3], and a mean that is free within a factor of 50"
        answers.append(_prior_answer(name, lattice.log_cv, logsumexp(wide, 1), small))
    return answers


def _prior_answer(
    name: str, log_cv: np.ndarray, log_density: np.ndarray, small: float
) -> PriorAnswer:
    fine = np.linspace(log_cv[0], log_cv[-1], 2001)
    height = np.maximum(log_density - log_density.max(), -60.0)
    mass = np.exp(PchipInterpolator(log_cv, height)(fine))
    cumulative = np.concatenate([[0.0], (mass[1:] + mass[:-1]).cumsum()])
    low, high = density_interval(fine, mass)
    below = np.interp(np.log(small), fine, cumulative / cumulative[-1])
    return PriorAnswer(name, (float(np.exp(low)), float(np.exp(high))), float(below))
