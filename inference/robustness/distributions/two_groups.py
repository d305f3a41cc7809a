"""Strengths in two groups, or at zero for some: cv where no smooth family holds."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import logsumexp

from mixdpo_pyro.inference.choices import random_people, select_annotators
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.likelihood.panels import PanelTable, tabulate

__all__ = ["TwoGroups", "fit_two_groups", "information_criterion"]

_MAX_ANNOTATORS = 500
"""Annotators whose choices are looked at; of more, a random subset."""

_SPREADS = np.array([0.02, 0.1, 0.2, 0.35, 0.55, 0.8])
"""cv within a group."""

_OFFSETS = np.append(-7.0, np.linspace(-3.0, 1.6, 24))
"""Log means of the groups, around the one strength that fits best; the first is no strength."""

_SHARES = np.array([0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96])
"""Share of the weaker group."""

_NUM_FINE = 13
"""Points of each axis of the second lattice, which spans the mass of the first."""

_NUM_DRAWS = 300

_MEAN_SD, _SPREAD_SD = 1.5, 0.4
"""Priors: log means Normal(best, 1.5), cv within a group HalfNormal(0.4), share uniform."""


@dataclass(frozen=True)
class TwoGroups:
    """Posterior of a mixture of two lognormal groups of people.

    Attributes:
        cv_interval: 5% and 95% posterior quantiles of the strength's cv over all people.
        share: Posterior mean of the share of the weaker group.
        means: Posterior means of both groups' mean strength, the weaker one first.
        elpd: Expected log predictive density of an annotator's choices, summed over annotators, by
            the widely applicable information criterion, in nats.
        annotators: Indices of the annotators that were looked at; None for all.
    """

    cv_interval: tuple[float, float]
    share: float
    means: tuple[float, float]
    elpd: float
    annotators: np.ndarray | None


def fit_two_groups(result: Fit, seed: int = 0) -> TwoGroups:
    r"""Let strengths come from two lognormal groups with means and shares of their own.

    .. math:: \beta_g \sim \pi\, \mathrm{LogNormal}(m_1, c)
              + (1 - \pi)\, \mathrm{LogNormal}(m_2, c)

    with m the mean and c the cv within a group. A group may have next to no strength. The
    posterior is summed over a lattice of :math:`(\pi, \log m_1, \log m_2, c)`, laid twice, the
    second time where the first one has its mass. The elpd is that of Watanabe (JMLR 11, 2010).

    Args:
        result: A fit with annotator ids.
        seed: Seed of the subset of annotators.
    """
    choices, rng = result.choices, np.random.default_rng((seed, 37))
    kept = random_people(choices, rng, max_people=_MAX_ANNOTATORS)
    if kept is not None:
        choices = select_annotators(choices, kept)
    table = tabulate(choices, "lognormal")
    centre = np.log(result.null.mean)
    shares, spreads = _SHARES, _SPREADS
    low = high = centre + _OFFSETS
    lattice = _Lattice.evaluate(table, centre, shares, low, high, spreads)
    shares = _around(lattice, 0, 0.01, 0.99)
    low, high = _around(lattice, 1), _around(lattice, 2)
    lattice = _Lattice.evaluate(table, centre, shares, low, high, spreads)
    share, mean_low, mean_high, _ = (np.sum(lattice.mass * x) for x in lattice.natural)
    return TwoGroups(
        lattice.interval(), float(share), (float(mean_low), float(mean_high)), lattice.elpd, kept
    )


@torch.no_grad()
def information_criterion(result: Fit, annotators: np.ndarray | None) -> float:
    """Expected log predictive density of some annotators' choices under a fit, as above."""
    choices, posterior = result.choices, result.posterior
    if annotators is not None:
        choices = select_annotators(choices, annotators)
    draws = slice(0, _NUM_DRAWS)
    point = torch.from_numpy(posterior.mean[draws]), torch.from_numpy(posterior.cv[draws])
    value = tabulate(choices, posterior.family).per_annotator(*point).numpy()
    density = logsumexp(value, axis=1) - np.log(value.shape[1])
    return float((density - value.var(axis=1)).sum())


@dataclass(frozen=True)
class _Lattice:
    """Posterior mass of shares, log means and spreads, and predictions of every annotator."""

    axes: tuple[np.ndarray, ...]
    mass: Float[np.ndarray, "shares low high spreads"]
    elpd: float

    @classmethod
    @torch.no_grad()
    def evaluate(
        cls,
        table: PanelTable,
        centre: float,
        shares: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        spreads: np.ndarray,
    ) -> "_Lattice":
        first, second = (_group_likelihood(table, means, spreads) for means in (low, high))
        top = np.maximum(first.max((1, 2)), second.max((1, 2)))
        first, second = (np.exp(x - top[:, None, None]) for x in (first, second))
        log_prior = (
            -0.5 * ((low[:, None, None] - centre) / _MEAN_SD) ** 2
            - 0.5 * ((high[None, :, None] - centre) / _MEAN_SD) ** 2
            - 0.5 * (spreads / _SPREAD_SD) ** 2
            + np.log(np.gradient(low))[:, None, None]
            + np.log(np.gradient(high))[None, :, None]
            + np.log(np.gradient(spreads))
        )
        log_prior = np.where(low[:, None, None] < high[None, :, None], log_prior, -np.inf)
        widths = np.gradient(shares)
        log_mass, pointwise = [], []
        for share, width in zip(shares, widths, strict=True):
            each = share * first[:, :, None, :] + (1 - share) * second[:, None, :, :]
            log_each = np.log(each + 1e-300)
            log_mass.append(log_each.sum(0) + log_prior + np.log(width))
            pointwise.append(log_each)
        total = logsumexp(np.stack(log_mass))
        mass = np.exp(np.stack(log_mass) - total)
        density = sum(np.tensordot(np.exp(p), m, 3) for p, m in zip(pointwise, mass, strict=True))
        mean = sum(np.tensordot(p, m, 3) for p, m in zip(pointwise, mass, strict=True))
        square = sum(np.tensordot(p**2, m, 3) for p, m in zip(pointwise, mass, strict=True))
        elpd = float((np.log(density) + top - (square - mean**2)).sum())
        return cls((shares, low, high, spreads), mass, elpd)

    @property
    def natural(self) -> list[np.ndarray]:
        """Shares, means of both groups and spreads on the whole lattice."""
        shares, low, high, spreads = np.meshgrid(*self.axes, indexing="ij")
        return [shares, np.exp(low), np.exp(high), spreads]

    def interval(self) -> tuple[float, float]:
        """5% and 95% quantiles of the cv of all strengths."""
        share, low, high, spread = self.natural
        mean = share * low + (1 - share) * high
        square = (1 + spread**2) * (share * low**2 + (1 - share) * high**2)
        cv = np.sqrt(np.maximum(square / mean**2 - 1, 0)).ravel()
        order = cv.argsort()
        cumulative = self.mass.ravel()[order].cumsum()
        quantiles = np.interp([0.05, 0.95], cumulative / cumulative[-1], cv[order])
        return float(quantiles[0]), float(quantiles[1])


def _group_likelihood(
    table: PanelTable, log_mean: np.ndarray, spreads: np.ndarray
) -> Float[np.ndarray, "annotators means spreads"]:
    """Log-likelihood of each annotator, were they of a group with this mean and cv."""
    mean = torch.from_numpy(np.exp(log_mean))[:, None]
    return table.per_annotator(mean, torch.from_numpy(spreads)[None, :]).numpy()


def _around(
    lattice: _Lattice, axis: int, low: float = -np.inf, high: float = np.inf
) -> np.ndarray:
    """Points of an axis that span its mass, but for a thousandth at either end."""
    marginal = lattice.mass.sum(tuple(k for k in range(4) if k != axis))
    points = lattice.axes[axis]
    cumulative = marginal.cumsum()
    first = max(int(np.searchsorted(cumulative, 1e-3)) - 1, 0)
    last = min(int(np.searchsorted(cumulative, 1 - 1e-3)) + 1, len(points) - 1)
    start, stop = max(points[first], low), min(points[last], high)
    return np.linspace(start, stop, _NUM_FINE)
