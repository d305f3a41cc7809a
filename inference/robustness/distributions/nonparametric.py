"""The distribution of the strength without a family, by nonparametric maximum likelihood."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar, nnls

from mixdpo_pyro.inference.choices import Choices, random_people, select_annotators
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.likelihood.observed import LARGEST_INFORMATION
from mixdpo_pyro.inference.likelihood.panels import log_likelihood_at, panel_sizes
from mixdpo_pyro.inference.methods.log_joint import MAX_CV

__all__ = ["NonparametricStrength", "maximise_weights", "nonparametric_strength"]

_MAX_ANNOTATORS = 500
"""Annotators whose choices are looked at by default."""

_LOG_RANGE = (-3.5, 3.0)
"""Log strengths of the grid, around the one strength that fits best."""

_NONE = 1e-6
"""Strength that stands for none, relative to the best one."""

_COARSEST = 0.1
"""Largest step of the grid; finer where a likelihood is narrower than five steps."""

_FINEST = 0.025
"""Smallest step, 2.5% of a strength, which bounds the time where somebody chose very often."""

_PRIOR_SD = 1.5
"""Standard deviation of a log strength in the estimates of individuals that bound the grid."""

_DROP = 1.353
"""Half of the 90% quantile of a chi-squared variable with one degree of freedom."""

_STEEPEST = 1e3
"""Multiplier, per annotator, at which a linear function outweighs every likelihood."""

_MAX_STEPS = 200


@dataclass(frozen=True)
class NonparametricStrength:
    r"""The distribution of the strength that makes the choices most likely, of any form.

    Attributes:
        strength: Support in ascending order; the first point may be next to no strength.
        weight: Share of people at each of them.
        log_likelihood: Log-likelihood of all choices, in nats.
        largest_gradient: Largest of :math:`\sum_g L_g(\beta) / L_g(F) - n` over all strengths of
            the grid, per annotator; zero where the maximum is reached.
        cv_interval: Smallest and largest cv of distributions within 1.35 nats of the maximum, a
            90% likelihood ratio interval.
        num_annotators: Number n of people whose choices were looked at.
    """

    strength: Float[np.ndarray, " support"]
    weight: Float[np.ndarray, " support"]
    log_likelihood: float
    largest_gradient: float
    cv_interval: tuple[float, float]
    num_annotators: int

    @property
    def mean(self) -> float:
        """Mean strength."""
        return float(self.weight @ self.strength)

    @property
    def cv(self) -> float:
        """Coefficient of variation of the strength."""
        return _cv(self.weight, self.strength)


def nonparametric_strength(
    result: Fit, seed: int = 0, max_annotators: int = _MAX_ANNOTATORS
) -> NonparametricStrength:
    r"""Estimate the distribution of the strength without assuming its form.

    .. math:: \hat F = \arg\max_F \sum_g \log \int \prod_t p(y_{gt} \mid \beta)\, dF(\beta)

    (Kiefer and Wolfowitz, Annals of Mathematical Statistics 27, 1956). On a grid of strengths the
    problem is convex in the weights, and solved by Newton steps with weights that are not
    negative (Wang, JRSS B 69, 2007). F is the maximum if and only if the gradient
    :math:`\sum_g L_g(\beta) / L_g(F)` is at most n everywhere, and n on the support (Lindsay,
    Annals of Statistics 11, 1983).

    The estimate is discrete, with few points, whatever the truth; its mean, its cv and the cv's
    interval are what to use. The interval holds the cv of every distribution that is less likely
    by at most 1.35 nats. Strengths beyond the largest estimate of an individual (the mode under a
    lognormal prior whose log has sd 1.5) are not considered: a few people who were not met may
    have any.

    Args:
        result: A fit with annotator ids.
        seed: Seed of the subset of annotators.
        max_annotators: Annotators whose choices are looked at; of more, a random subset.

    Raises:
        ValueError: If there are no repeated choices of annotators.

    Example:
        >>> from mixdpo_pyro.inference import Design, fit, simulate_choices
        >>> rng = np.random.default_rng(0)
        >>> margin, annotator, _ = simulate_choices(0.1, 0.8, "gamma", Design(60, 20), rng)
        >>> found = nonparametric_strength(fit(margin, annotator=annotator))
        >>> found.cv_interval[0] < 0.8 < found.cv_interval[1]
        True
    """
    choices, rng = result.choices, np.random.default_rng((seed, 53))
    if not choices.has_panels:
        raise ValueError("Expected repeated choices of annotators, whose strengths can differ")
    kept = random_people(choices, rng, max_people=max_annotators)
    if kept is not None:
        choices = select_annotators(choices, kept)
    strength, likelihood, top = _tabulate(choices, result.null.mean)
    weight = maximise_weights(likelihood)
    gradient = (likelihood / (likelihood @ weight)[:, None]).sum(0) / len(likelihood) - 1
    bounds = (_bound_cv(likelihood, strength, weight, sign) for sign in (-1, 1))
    on_support = weight > 1e-6
    return NonparametricStrength(
        strength=strength[on_support],
        weight=weight[on_support] / weight[on_support].sum(),
        log_likelihood=_log_likelihood(likelihood, weight) + top,
        largest_gradient=float(gradient.max()),
        cv_interval=(next(bounds), next(bounds)),
        num_annotators=len(likelihood),
    )


def maximise_weights(
    likelihood: Float[np.ndarray, "annotators strengths"],
    slope: Float[np.ndarray, " strengths"] | None = None,
    start: Float[np.ndarray, " strengths"] | None = None,
    tolerance: float = 1e-7,
) -> Float[np.ndarray, " strengths"]:
    r"""Weights that maximise :math:`\sum_g \log \sum_k w_k L_{gk} + \sum_k h_k w_k`.

    With :math:`S_{gk} = L_{gk} / \sum_j w_j L_{gj}` a Newton step minimises
    :math:`\|S w' - 2\|^2 / 2 - h^\top w'` over weights that are not negative, which is a least
    squares problem once h and :math:`\sum_k w'_k = 1` are rows of it; a step that is too long is
    halved.

    Args:
        likelihood: Likelihood of each annotator's choices at each strength, at most one.
        slope: Coefficients h of a linear term; default, none.
        start: Weights to start from, all positive; default, equal ones.
        tolerance: How far the value may lie below the maximum, in nats per annotator.
    """
    num_people, size = likelihood.shape
    linear = np.zeros(size) if slope is None else slope
    weight = np.full(size, 1 / size) if start is None else start
    far = 1e3 * math.sqrt(num_people)
    target = np.concatenate([np.full(num_people, 2.0), [far, far]])
    for _ in range(_MAX_STEPS):
        relative = likelihood / (likelihood @ weight)[:, None]
        gradient = relative.sum(0) + linear
        if gradient.max() - gradient @ weight <= tolerance * num_people:
            break
        rows = np.vstack([relative, np.full(size, far), linear / far])
        proposed = nnls(rows, target)[0]
        if not proposed.any():  # the linear term leaves nothing of the rest
            break
        move = proposed / proposed.sum() - weight
        step, value = 1.0, _log_likelihood(likelihood, weight) + linear @ weight
        while step > 1e-8:
            moved = weight + step * move
            gain = _log_likelihood(likelihood, moved) + linear @ moved - value
            if gain >= 1e-4 * step * (gradient @ move):
                break
            step /= 2
        weight = np.maximum(moved, 0) / np.maximum(moved, 0).sum()
    return weight


def _tabulate(
    choices: Choices, centre: float
) -> tuple[np.ndarray, Float[np.ndarray, "annotators strengths"], float]:
    """Strengths, each annotator's likelihood there over its largest, and the log of the latter."""
    information = LARGEST_INFORMATION * float(panel_sizes(choices).max())
    step = float(np.clip(0.2 / math.sqrt(information), _FINEST, _COARSEST))
    offset = np.arange(_LOG_RANGE[0], _LOG_RANGE[1], step)
    strength = centre * np.append(_NONE, np.exp(offset))
    value = log_likelihood_at(torch.from_numpy(strength), choices).numpy()
    mode = (value[:, 1:] - 0.5 * (offset / _PRIOR_SD) ** 2).argmax(1)
    kept = np.s_[: max(int(mode.max()) + 2, 3)]
    strength, value = strength[kept], value[:, kept]
    top = value.max(1)
    return strength, np.exp(value - top[:, None]), float(top.sum())


def _bound_cv(
    likelihood: np.ndarray, strength: np.ndarray, weight: np.ndarray, sign: int
) -> float:
    r"""Smallest (sign -1) or largest cv within 1.35 nats of the maximum.

    .. math:: \frac{cv^2}{1 + cv^2} = \min_t \mathbb{E}_F (1 - t \beta)^2

    is linear in F for every t, so that the best F for it comes with a multiplier, and t by a
    search in one dimension.
    """
    centre = (weight @ strength) / (weight @ strength**2)

    def extreme(log_t: float) -> float:
        square = (1 - math.exp(log_t) * strength) ** 2
        return float(square @ _at_bound(likelihood, weight, sign * square))

    around = math.log(centre) + np.array([-1.0, 1.0])
    share = minimize_scalar(extreme, bounds=around, method="bounded", options={"xatol": 0.01}).fun
    # As far as families look: beyond, all strength is with next to nobody.
    share = min(max(share, 0.0), MAX_CV**2 / (1 + MAX_CV**2))
    return math.sqrt(share / (1 - share))


def _at_bound(likelihood: np.ndarray, weight: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Weights, 1.35 nats below the maximum, at which a linear function of them is largest."""
    slope = slope / np.abs(slope).max()
    best, size = _log_likelihood(likelihood, weight), len(weight)
    low, high, multiplier = 0.0, math.inf, 3.0
    for _ in range(30):
        start = 0.999 * weight + 0.001 / size
        found = maximise_weights(likelihood, multiplier * slope, start, 3e-5)
        drop = best - _log_likelihood(likelihood, found)
        # Where even the most extreme distribution is as likely as that, no multiplier will do.
        if abs(drop - _DROP) < 0.02 or (drop < _DROP and multiplier > _STEEPEST * len(likelihood)):
            break
        low, high = (multiplier, high) if drop < _DROP else (low, multiplier)
        guess = multiplier * math.sqrt(_DROP / max(drop, _DROP / 16))
        multiplier = guess if low < guess < high else (low + high) / 2
    return found


def _log_likelihood(likelihood: np.ndarray, weight: np.ndarray) -> float:
    return float(np.log(likelihood @ weight).sum())


def _cv(weight: np.ndarray, strength: np.ndarray) -> float:
    mean = weight @ strength
    return float(np.sqrt(max(weight @ strength**2 / mean**2 - 1, 0.0)))
