"""Win rates from scores: ties, intervals over prompts and seeds, length, and equal KL."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

__all__ = [
    "MatchedRate",
    "WinRate",
    "compare_scores",
    "length_controlled",
    "match_divergence",
    "match_seeds",
    "over_seeds",
    "rate_prompts",
    "t_quantile",
]

_LEVEL = 0.95

_RIDGE = 1e-3
"""Of the length coefficient's square: it only keeps separated data finite."""


@dataclass(frozen=True)
class WinRate:
    """A win rate in percent, ties as one half.

    Attributes:
        rate: The estimate.
        low: End of the 95% interval; NaN where there is none.
        high: The other end.
        wins: Comparisons won.
        losses: Comparisons lost.
        ties: Comparisons without a winner.
    """

    rate: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int

    @property
    def standard_error(self) -> float:
        """In percent, half of the interval over 1.96."""
        return (self.high - self.low) / 2 / 1.96


def compare_scores(
    score: Float[np.ndarray, " comparisons"],
    other: Float[np.ndarray, " comparisons"],
    prompt: Int[np.ndarray, " comparisons"],
) -> WinRate:
    r"""How often one score is above the other, clustered by prompt.

    .. math:: \hat p = \frac1P \sum_{p} \bar w_p, \qquad
              \mathrm{se}^2 = \frac{1}{P (P - 1)} \sum_p (\bar w_p - \hat p)^2

    with :math:`\bar w_p` the mean over the comparisons of prompt p, 1 for a win and 1/2 for a tie;
    the interval is that of Student's t with P - 1 degrees of freedom.

    Args:
        score: Scores of one policy's responses; NaN where the judge failed, which is left out.
        other: Scores of the other's, for the same prompts.
        prompt: Number of each comparison's prompt.

    Raises:
        ValueError: If no comparison is left.

    Example:
        >>> compare_scores(np.array([1.0, 2.0]), np.array([0.0, 2.0]), np.arange(2)).rate
        75.0
    """
    known = np.isfinite(score) & np.isfinite(other)
    if not known.any():
        raise ValueError("Expected at least one comparison that was judged")
    sign = np.sign(score[known] - other[known])
    return _clustered(sign, prompt[known])


def rate_prompts(
    score: Float[np.ndarray, " comparisons"],
    other: Float[np.ndarray, " comparisons"],
    prompt: Int[np.ndarray, " comparisons"],
    num_prompts: int,
) -> Float[np.ndarray, " prompts"]:
    """Win rate in percent on each prompt, ties as one half; NaN where nothing was judged.

    Args:
        score: Scores of one policy's responses; NaN where the judge failed.
        other: Scores of the other's, for the same prompts.
        prompt: Number of each comparison's prompt.
        num_prompts: Number of prompts.

    Example:
        >>> rate_prompts(np.array([1.0, 2.0]), np.array([0.0, 2.0]), np.array([0, 2]), 3)
        array([100.,  nan,  50.])
    """
    known = np.isfinite(score) & np.isfinite(other)
    won = (np.sign(score - other)[known] + 1) / 2
    total = np.bincount(prompt[known], won, minlength=num_prompts)
    count = np.bincount(prompt[known], minlength=num_prompts)
    return 100 * np.divide(total, count, out=np.full(num_prompts, np.nan), where=count > 0)


def _clustered(sign: np.ndarray, prompt: np.ndarray) -> WinRate:
    _, place = np.unique(prompt, return_inverse=True)
    mean = np.bincount(place, (sign + 1) / 2) / np.bincount(place)
    rate, half = _t_interval(100 * mean)
    counts = [int((sign == value).sum()) for value in (1, -1, 0)]
    return WinRate(rate, rate - half, rate + half, *counts)


def over_seeds(rates: Sequence[float], comparisons: int = 1) -> tuple[float, float, float]:
    """Mean over training seeds and its 95% interval by Student's t; NaN ends for one seed.

    Args:
        rates: A value a seed.
        comparisons: So many such intervals hold together with 95% (Bonferroni).

    Example:
        >>> over_seeds([50.0, 54.0, 52.0])[0]
        52.0
    """
    rate, half = _t_interval(np.asarray(rates, dtype=float), comparisons)
    return rate, rate - half, rate + half


def t_quantile(degrees: float, comparisons: int = 1) -> float:
    """Half width of a 95% interval of Student's t, in standard errors.

    Args:
        degrees: Degrees of freedom.
        comparisons: So many such intervals hold together with 95% (Bonferroni).
    """
    return float(special.stdtrit(degrees, 1 - (1 - _LEVEL) / 2 / comparisons))


def _t_interval(values: Float[np.ndarray, " values"], comparisons: int = 1) -> tuple[float, float]:
    if len(values) < 2:
        return float(values.mean()), np.nan
    width = t_quantile(len(values) - 1, comparisons) * values.std(ddof=1)
    return float(values.mean()), float(width / np.sqrt(len(values)))


def length_controlled(
    score: Float[np.ndarray, " comparisons"],
    other: Float[np.ndarray, " comparisons"],
    length: Float[np.ndarray, " comparisons"],
    other_length: Float[np.ndarray, " comparisons"],
) -> float:
    r"""The win rate in percent that would be seen at equal lengths.

    .. math:: P(\text{win}) = \sigma\big(\theta + \varphi \tanh(\Delta / s)\big), \qquad
              100\, \sigma(\theta)

    with the difference of the lengths :math:`\Delta` and its standard deviation s: the logistic
    regression of AlpacaEval 2 without its term of the prompts' difficulty (Dubois et al. 2024,
    arXiv 2404.04475). Ties count one half.

    Args:
        score: Scores of one policy's responses.
        other: Scores of the other's.
        length: Lengths of the responses, in any unit.
        other_length: Those of the other's.
    """
    known = np.isfinite(score) & np.isfinite(other)
    won = (np.sign(score - other)[known] + 1) / 2
    difference = (length - other_length)[known].astype(float)
    spread = difference.std() or 1.0
    design = np.tanh(difference / spread)

    def loss(unknown: np.ndarray) -> float:
        logit = unknown[0] + unknown[1] * design
        misfit = np.logaddexp(0, logit) - won * logit
        return float(misfit.sum() + _RIDGE * (unknown**2).sum())

    best = optimize.minimize(loss, np.zeros(2)).x
    return float(100 * special.expit(best[0]))


@dataclass(frozen=True)
class MatchedRate:
    """Win rate of an arm at a distance that all arms reach.

    Attributes:
        rate: In percent, mean over seeds; NaN where the arm does not reach the distance.
        low: End of the 95% interval over seeds; NaN for one seed.
        high: The other end.
        seeds: Seeds that reach it.
    """

    rate: float
    low: float
    high: float
    seeds: int


def match_divergence(
    divergence: Float[np.ndarray, " runs"],
    rate: Float[np.ndarray, " runs"],
    seed: Sequence[object],
    target: float,
) -> MatchedRate:
    """Win rate at a KL to the reference, the mean over seeds; see `match_seeds`.

    Args:
        divergence: KL to the reference of each run, in nats per response.
        rate: Its win rate against the same opponent, in percent.
        seed: Training seed of each run.
        target: KL in nats per response.
    """
    found = [float(value) for value in match_seeds(divergence, rate, seed, target).values()]
    if not found:
        return MatchedRate(np.nan, np.nan, np.nan, 0)
    return MatchedRate(*over_seeds(found), len(found))


def match_seeds(
    divergence: Float[np.ndarray, " runs"],
    rate: Float[np.ndarray, "runs ..."],
    seed: Sequence[object],
    target: float,
) -> dict[str, Float[np.ndarray, "..."]]:
    """Win rates at a KL to the reference, interpolated between an arm's runs, by seed.

    Runs of one seed at several betas or decoding weights are points of a curve, linear in the root
    of the KL between neighbours: near the reference a policy at weight w has gained w and is at a
    KL of w squared, so that a curve over the KL itself would lie too low between distant points. A
    seed whose points do not reach the target on both sides is not extrapolated, and left out.

    Args:
        divergence: KL to the reference of each run, in nats per response.
        rate: Its win rates against the same opponent, in percent: one, or one a prompt.
        seed: Training seed of each run.
        target: KL in nats per response.
    """
    found = {}
    labels, place = np.array([str(each) for each in seed]), math.sqrt(target)
    for label in np.unique(labels):
        of_seed = labels == label
        order = np.argsort(divergence[of_seed])
        x = np.sqrt(divergence[of_seed].clip(0))[order]
        if x[0] <= place <= x[-1]:
            weights = [np.interp(place, x, unit) for unit in np.eye(len(x))]
            found[str(label)] = np.asarray(weights @ rate[of_seed][order])
    return found
