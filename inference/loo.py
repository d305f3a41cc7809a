"""Leave-one-out comparison of the families, the strengths integrated out.

The unit that is left out is a choice, or an annotator where annotators chose repeatedly: what is
predicted is then a new annotator. The posterior without a unit is reached from the full one by
Pareto-smoothed importance sampling (Vehtari, Gelman and Gabry, Statistics and Computing 27, 2017);
many units are subsampled with the difference estimator (Magnusson et al., AISTATS 2020).
Thresholds of ties and grades stand at their posterior medians: their uncertainty is no part of the
comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import logsumexp

from mixdpo_pyro.inference.choices import Choices, random_subset, select_units, without_ids
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.likelihood.marginal import build_likelihood
from mixdpo_pyro.inference.likelihood.pairs import pair_log_prob
from mixdpo_pyro.inference.likelihood.panels import log_likelihood_at, tabulate
from mixdpo_pyro.inference.posterior import Posterior

__all__ = [
    "LeaveOneOut",
    "LooDifference",
    "compare_loo",
    "leave_one_out",
]

_RELIABLE_K = 0.7
"""Shape of the importance ratios' tail above which their mean cannot be trusted."""


@dataclass(frozen=True)
class LeaveOneOut:
    r"""Expected log predictive density :math:`\sum_i \log p(y_i \mid y_{-i})`, in nats.

    Attributes:
        elpd: Its estimate over all units.
        se: Standard error: sampling of the units, and of the subsample where there is one.
        effective_parameters: Log-likelihood at the posterior minus `elpd`.
        worst_k: Largest Pareto shape of the importance ratios; above 0.7 `elpd` is unreliable.
        num_units: Choices, or annotators where they repeat.
        unit: Indices of the units that were evaluated.
        pointwise: Log predictive density of each of them.
        surrogate: Log-likelihood of each of them at the posterior mean.
        surrogate_total: The same summed over all units.
    """

    elpd: float
    se: float
    effective_parameters: float
    worst_k: float
    num_units: int
    unit: Int[np.ndarray, " evaluated"]
    pointwise: Float[np.ndarray, " evaluated"]
    surrogate: Float[np.ndarray, " evaluated"]
    surrogate_total: float

    @property
    def is_reliable(self) -> bool:
        """Whether all importance ratios had a mean that can be estimated."""
        return self.worst_k <= _RELIABLE_K


@dataclass(frozen=True)
class LooDifference:
    """How much better one model predicts than another, in nats.

    Attributes:
        elpd: Difference of the expected log predictive densities.
        se: Its standard error, units paired.
    """

    elpd: float
    se: float


def leave_one_out(result: Fit, max_units: int = 2000, seed: int = 0) -> LeaveOneOut:
    r"""Leave out each choice, or each annotator, and predict it.

    .. math:: \widehat{\text{elpd}} = \sum_i s_i + \frac{n}{|S|} \sum_{i \in S}
              (\log p(y_i \mid y_{-i}) - s_i)

    with :math:`s_i` the log-likelihood at the posterior mean, whose sum over all units is known,
    and S the units evaluated; without subsampling it is the plain sum.

    Args:
        result: A fit.
        max_units: Units that are evaluated; of more, a random subset is.
        seed: Seed of the subset. Equal seeds give equal subsets, as `compare_loo` needs.

    Raises:
        ValueError: If `max_units` is below 2.
    """
    if max_units < 2:
        raise ValueError(f"Expected max_units >= 2, got {max_units}")
    size = result.choices.num_units
    unit = random_subset(size, max_units, np.random.default_rng((seed, 3)))
    value = _pointwise(result.posterior, result.choices, unit)
    log_weight, worst = _smoothed_weights(value)
    pointwise = logsumexp(log_weight + value, axis=0)
    posterior = result.posterior
    centre = posterior.at(float(posterior.mean.mean()), float(posterior.cv.mean()))
    surrogate = _pointwise(centre, result.choices, unit)[0]
    total = _total(centre, result.choices)
    elpd, se = _estimate(pointwise, surrogate, total, size)
    in_sample = logsumexp(value, axis=0) - np.log(len(value))
    lppd, _ = _estimate(in_sample, surrogate, total, size)
    return LeaveOneOut(elpd, se, lppd - elpd, worst, size, unit, pointwise, surrogate, total)


def compare_loo(better: LeaveOneOut, worse: LeaveOneOut) -> LooDifference:
    """Difference of two models of the same data, with the standard error of paired units.

    Raises:
        ValueError: If they do not evaluate the same units.
    """
    if better.num_units != worse.num_units or not np.array_equal(better.unit, worse.unit):
        raise ValueError("Expected two results for the same units of the same data")
    elpd, se = _estimate(
        better.pointwise - worse.pointwise,
        better.surrogate - worse.surrogate,
        better.surrogate_total - worse.surrogate_total,
        better.num_units,
    )
    return LooDifference(elpd, se)


def _smoothed_weights(
    value: Float[np.ndarray, "samples evaluated"],
) -> tuple[Float[np.ndarray, "samples evaluated"], float]:
    """Log weights of the draws without each unit, smoothed, and the worst Pareto shape.

    Where many draws give a unit the same probability, such as 1, their tail has no shape, and
    needs none: the plain ratios are taken.
    """
    from arviz_stats.base import array_stats

    plain = -value - logsumexp(-value, axis=0)
    smoothed, shape = _pareto_smoothed(value, array_stats.psislw)
    is_smooth = np.isfinite(smoothed).all(0) & np.isfinite(shape)
    return np.where(is_smooth, smoothed, plain), float(shape[is_smooth].max(initial=-np.inf))


def _pareto_smoothed(
    value: Float[np.ndarray, "samples evaluated"], smooth: Callable[..., tuple]
) -> tuple[Float[np.ndarray, "samples evaluated"], Float[np.ndarray, " evaluated"]]:
    """Smoothed log weights and shapes; NaN where the tail of a unit has no shape."""
    with np.errstate(divide="ignore", invalid="ignore"):
        try:
            smoothed, shape = smooth(value, axis=0)  # it takes the sign off itself
            return np.moveaxis(smoothed, -1, 0), shape
        except ValueError:  # a tail of equal weights in any unit fails all of them
            if value.shape[1] == 1:
                return np.full_like(value, np.nan), np.array([np.nan])
            parts = [_pareto_smoothed(column[:, None], smooth) for column in value.T]
            return np.hstack([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _estimate(
    value: np.ndarray, surrogate: np.ndarray, total: float, size: int
) -> tuple[float, float]:
    """Sum over all units and its standard error, by the difference estimator."""
    error = value - surrogate
    estimate = total + size * error.mean()
    sampling = size * value.var(ddof=1)
    subsampling = size**2 * (1 - len(value) / size) * error.var(ddof=1) / len(value)
    return float(estimate), float(np.sqrt(sampling + subsampling))


def _total(centre: Posterior, choices: Choices) -> float:
    """Log-likelihood of all units."""
    likelihood = build_likelihood(choices, centre.family, centre.flip_probability)
    with torch.no_grad():
        return float(likelihood(torch.from_numpy(centre.mean), torch.from_numpy(centre.cv)))


def _pointwise(
    posterior: Posterior, choices: Choices, unit: np.ndarray
) -> Float[np.ndarray, "samples evaluated"]:
    mean, cv, flip = posterior.mean, posterior.cv, posterior.flip_probability
    if not choices.has_panels:
        if choices.outcomes is None:
            return pair_log_prob(choices.margin[unit], mean, cv, posterior.family, flip)
        choices = without_ids(choices)
    units = select_units(choices, unit)
    if posterior.family == "fixed":
        return log_likelihood_at(torch.from_numpy(mean), units, flip).T.numpy()
    table = tabulate(units, posterior.family, flip)
    with torch.no_grad():
        return table.per_annotator(torch.from_numpy(mean), torch.from_numpy(cv)).T.numpy()
