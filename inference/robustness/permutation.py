"""Does it matter who chose? A permutation test that holds for any link."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.special import expit

from mixdpo_pyro.inference.choices import (
    Choices,
    agreement,
    number_labels,
    random_people,
    select_annotators,
    select_choices,
)
from mixdpo_pyro.inference.likelihood.observed import with_lapses
from mixdpo_pyro.inference.robustness.errors.responses import rows_without_recurring
from mixdpo_pyro.inference.robustness.scale import anchor_strength
from mixdpo_pyro.models.observation import Terms

__all__ = ["PermutationTest", "permute_annotators"]

_MAX_PERMUTED = 1_000_000
"""Choices that the permutation test looks at; of more, those of random annotators."""

_BIN_SIZE, _MAX_BINS = 25, 200
"""Pairs per bin of equal margins, at least, and number of bins, at most."""

_SMALLEST_STRATUM = 100
"""Choices of a stratum from which on four bins at least tell margins of different size apart."""

_STEP = 1e-3
"""Step of differences in the log strength."""

_MAX_GRID = 20_000
"""Choices that the one strength for everybody is looked for among."""

_LARGE_BIN = 1000
"""Pairs per bin from which on bins are rotated, which is nine times faster than sorting."""


# Who chose


@dataclass(frozen=True)
class PermutationTest:
    """Does it matter who chose, given the margin?

    Attributes:
        statistic: Spread of annotators' agreement with the margins, see `permute_annotators`.
        null_mean: Its mean over permutations.
        null_sd: Its standard deviation over permutations.
        p_value: One-sided.
        num_permutations: Number of permutations.
        num_choices: Choices that were permuted.
        share_compared: Share of the choices that could be compared with those of other people.
        share_within_pairs: Share of the permuted ones that were compared within one pair.
    """

    statistic: float
    null_mean: float
    null_sd: float
    p_value: float
    num_permutations: int
    num_choices: int
    share_compared: float = 1.0
    share_within_pairs: float = 0.0


def permute_annotators(
    choices: Choices,
    stratum: Any = None,
    num_permutations: int = 999,
    seed: int = 0,
) -> PermutationTest:
    r"""Test that annotators differ, whatever the link, by permuting who agreed.

    If annotators are alike, a choice agrees with the sign of its margin with a probability that
    depends on the size of the margin only: through the link, label noise, errors of the margins,
    all of them unknown. Among pairs with margins of (nearly) the same size, agreement is then
    exchangeable between annotators. The statistic

    .. math:: S = \sum_g \Big( \sum_{t \in g} w_t (y_t - \bar y_{b(t)}) \Big)^2

    with y the agreement, :math:`\bar y_b` its mean in the bin of the margin, and w the locally
    best weight, the slope of agreement in the log strength under one strength and label noise,
    grows where some annotators agree more than others. It is compared with its values after
    permuting y within bins. A pair that several annotators judged is a bin of its own, known by
    its id or, without ids where most margins occur several times, by the size of its margin: what
    is particular to a pair, an error of its margin included, is then shared by all who are
    compared, and the test is exact. Choices are left out where all of their bin are one person's,
    and where a stratum has too few pairs to compare margins of one size. Where pairs are not
    shared, but a response recurs within a person, one choice with it is kept: errors of responses
    would make the person's choices depend on each other.

    Of choices that are not plain pairs y is the slope of their log-probability in the log strength
    at the one strength and rate of lapses that fit everybody, w is 1, and the size is that of the
    margin, or for sets the standard deviation that the slope of the first choice has. What is
    permuted are whole choices.

    Args:
        choices: Data with annotator ids.
        stratum: Label per pair; agreement is permuted within strata, such as topics.
        num_permutations: Number of permutations.
        seed: Seed of the permutations.

    Returns:
        The test; its p-value is :math:`(1 + \#\{S^* \ge S\}) / (1 + \text{permutations})`.

    Raises:
        ValueError: If there are no ids, or fewer than 19 permutations.
    """
    if choices.annotator is None:
        raise ValueError("Expected choices with annotator ids")
    if num_permutations < 19:
        raise ValueError(f"Expected num_permutations >= 19, got {num_permutations}")
    rng = np.random.default_rng((seed, 11))
    stratum = None if stratum is None else number_labels(stratum)
    choices, stratum = _limit(choices, stratum, rng)
    assert choices.annotator is not None
    annotator = choices.by_choice(choices.annotator)
    stratum = None if stratum is None else choices.by_choice(stratum)
    size, agrees = _sizes_and_values(choices)
    bins, is_exact, is_shared = _bins(size, annotator, stratum, _pairs_of_choices(choices))
    compared = is_exact & _has_several_people(bins, annotator)
    share_compared = float(compared.mean())
    compared &= is_shared | _stand_alone(choices, ~is_shared, seed)
    if not compared.any():
        return PermutationTest(0.0, 0.0, 0.0, 1.0, num_permutations, 0, 0.0)
    size, agrees, annotator = size[compared], agrees[compared], annotator[compared]
    bins = np.unique(bins[compared], return_inverse=True)[1]
    are_large = len(bins) > _LARGE_BIN * len(np.unique(bins))
    order = (
        np.lexsort((rng.random(len(bins)), bins)) if are_large else np.argsort(bins, kind="stable")
    )
    bins, agrees, annotator = bins[order], agrees[order], annotator[order]
    count = np.bincount(bins)
    residual = agrees - (np.bincount(bins, agrees) / count)[bins]
    are_pairs = choices.outcomes is None
    weight = _score_weight(size[order], agrees) if are_pairs else np.ones(len(agrees))
    num_annotators = choices.num_annotators

    def statistic(value: np.ndarray) -> float:
        return float((np.bincount(annotator, weight * value, num_annotators) ** 2).sum())

    observed = statistic(residual)
    draws = np.empty(num_permutations)
    permute = _rotate if are_large else _shuffle
    for k in range(num_permutations):
        draws[k] = statistic(permute(residual, bins, rng))
    exceeding = int((draws >= observed * (1 - 1e-12)).sum())
    return PermutationTest(
        observed, float(draws.mean()), float(draws.std()),
        (1 + exceeding) / (1 + num_permutations), num_permutations, len(bins), share_compared,
        float(is_shared[compared].mean()),
    )  # fmt: skip


def _pairs_of_choices(choices: Choices) -> Int[np.ndarray, " choices"] | None:
    return None if choices.pair is None else choices.by_choice(choices.pair)


def _has_several_people(bins: np.ndarray, annotator: np.ndarray) -> np.ndarray:
    """Whether somebody else has a choice in the same bin."""
    low, high = (np.full(bins.max() + 1, start) for start in (annotator.max(), -1))
    np.minimum.at(low, bins, annotator)
    np.maximum.at(high, bins, annotator)
    return (low < high)[bins]


def _sizes_and_values(choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """What choices are compared by, and what is permuted among those of equal size."""
    outcomes = choices.outcomes
    if outcomes is None:
        return np.abs(choices.margin), agreement(choices.margin)
    strength, rate = _best_strength(choices)
    terms = _with_rate(choices, rate)
    near = strength * torch.exp(_STEP * torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    above, below = terms.log_prob(near).numpy()
    value = (above - below) / (2 * _STEP)
    if not outcomes.are_sets:
        return np.abs(choices.margin), value
    return _first_stage_spread(choices, strength), value


def _with_rate(choices: Choices, rate: float) -> Terms:
    outcomes = with_lapses(choices, rate / 2).outcomes
    assert outcomes is not None
    return outcomes.terms(choices.margin)


def _best_strength(choices: Choices) -> tuple[float, float]:
    """The best strength and rate of lapses for everybody, of a grid; lapses bound the slope."""
    if choices.num_choices > _MAX_GRID:
        choices = select_choices(
            choices, np.arange(0, choices.num_choices, choices.num_choices // _MAX_GRID)
        )
    strengths = anchor_strength(choices) * torch.logspace(-0.6, 0.9, 16, dtype=torch.float64)
    best, chosen = -np.inf, (float(strengths[0]), 0.0)
    for rate in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
        value = _with_rate(choices, rate).log_prob(strengths[:, None]).sum(1)
        if value.max() > best:
            best, chosen = float(value.max()), (float(strengths[value.argmax()]), rate)
    return chosen


def _first_stage_spread(choices: Choices, strength: float) -> np.ndarray:
    """Standard deviation of the scaled utility of the response that is chosen first, per set."""
    assert choices.outcomes is not None
    utility, _, choice = (x.numpy() for x in choices.outcomes.utilities(choices.margin))
    utility = strength * utility
    top = np.full(choices.num_choices, -np.inf)
    np.maximum.at(top, choice, utility)
    weight = np.exp(utility - top[choice])
    moments = (np.bincount(choice, weight * utility**k) for k in range(3))
    total, first, second = moments
    return np.sqrt(np.maximum(second / total - (first / total) ** 2, 0.0))


def _shuffle(value: np.ndarray, bins: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values permuted within bins, which are in ascending order."""
    return value[np.argsort(bins + rng.random(len(bins)))]


def _rotate(value: np.ndarray, bins: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values rotated within bins, each by a random number of places.

    Rotations are a group, so that a test by them is exact as well; the order within a bin is
    random, and they are as many as the product of the bins' sizes.
    """
    parts = np.split(value, np.flatnonzero(np.diff(bins)) + 1)
    places = rng.integers([len(part) for part in parts])
    halves = ((part[k:], part[:k]) for part, k in zip(parts, places, strict=True))
    return np.concatenate(list(chain.from_iterable(halves)))


def _limit(
    choices: Choices, stratum: np.ndarray | None, rng: np.random.Generator
) -> tuple[Choices, np.ndarray | None]:
    """All choices of random annotators, as many as fit the limit, at least two."""
    annotator = random_people(choices, rng, max_choices=_MAX_PERMUTED)
    if annotator is None:
        return choices, stratum
    assert choices.annotator is not None
    kept = np.isin(choices.annotator, annotator)
    return select_annotators(choices, annotator), None if stratum is None else stratum[kept]


def _stand_alone(choices: Choices, rows: np.ndarray, seed: int) -> np.ndarray:
    """Whether a choice, of some, shares no response with another one by the same person."""
    if choices.responses is None or (choices.outcomes is not None and choices.outcomes.are_sets):
        return np.ones(len(rows), dtype=bool)
    alone = np.zeros(len(rows), dtype=bool)
    if rows.any():
        alone[rows] = rows_without_recurring(select_choices(choices, np.flatnonzero(rows)), seed)
    return alone


def _bins(
    size: np.ndarray, annotator: np.ndarray, stratum: np.ndarray | None, pair: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bins within strata as indices from 0, and whether a bin's margins are nearly equal, or one.

    A pair, or a margin, that several people judged is a bin; others share bins of 25 or more.
    """
    if stratum is None:
        stratum = np.zeros(len(size), dtype=int)
    stratum = np.unique(stratum, return_inverse=True)[1]
    again = _numbered(stratum, size if pair is None else pair)
    is_shared = _has_several_people(again, annotator)
    if pair is None and is_shared.mean() <= 0.5:
        is_shared = np.zeros(len(size), dtype=bool)
    bins, is_exact = again.copy(), np.ones(len(size), dtype=bool)
    other = ~is_shared
    if other.any():
        near, is_exact[other] = _bins_of_sizes(size[other], stratum[other])
        bins[other] = again.max() + 1 + near
    return bins, is_exact, is_shared


def _numbered(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number of each combination of two columns."""
    return np.unique(np.stack([first, second]), axis=1, return_inverse=True)[1].reshape(-1)


def _bins_of_sizes(size: np.ndarray, stratum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bins of nearly equal margins within strata, and whether a stratum has enough for one."""
    order = np.lexsort((size, stratum))
    count = np.bincount(stratum)
    rank = np.arange(len(size)) - np.repeat(count.cumsum() - count, count)
    num_bins = np.clip(count // _BIN_SIZE, 1, _MAX_BINS)
    offset = num_bins.cumsum() - num_bins
    bins = np.empty(len(size), dtype=int)
    sorted_stratum = stratum[order]
    bins[order] = offset[sorted_stratum] + rank * num_bins[sorted_stratum] // count[sorted_stratum]
    is_whole = stratum.max() == 0
    return bins, (count[stratum] >= _SMALLEST_STRATUM) | is_whole


def _score_weight(size: np.ndarray, agrees: np.ndarray) -> np.ndarray:
    r"""Slope of the log-likelihood's mean in the log strength over :math:`P(1-P)`.

    :math:`P = \epsilon + (1-2\epsilon) \sigma(m\Delta)` with the best m and epsilon of a grid.
    """
    typical = float(np.median(size) or size.mean() or 1.0)
    stride = max(1, len(size) // 20_000)
    x, y = size[::stride], agrees[::stride]
    best, chosen = -np.inf, (1 / typical, 0.0)
    for strength in np.geomspace(0.02, 50, 60) / typical:
        probability = expit(strength * x)
        for flip in (1e-4, 0.02, 0.05, 0.1, 0.2, 0.3):
            p = flip + (1 - 2 * flip) * probability
            value = float(y @ np.log(p) + (1 - y) @ np.log1p(-p))
            if value > best:
                best, chosen = value, (strength, flip)
    strength, flip = chosen
    u = expit(strength * size)
    p = flip + (1 - 2 * flip) * u
    return (1 - 2 * flip) * strength * size * u * expit(-strength * size) / (p * (1 - p))
