"""Does it matter who chose? A permutation test that holds for any link."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Int
from scipy.special import expit

from mixdpo_pyro.inference.choices import Choices, agreement, select_annotators

__all__ = ["PermutationTest", "permute_annotators"]

_MAX_PERMUTED = 1_000_000
"""Pairs that the permutation test looks at; of more, those of a random subset of annotators."""

_BIN_SIZE, _MAX_BINS = 25, 200
"""Pairs per bin of equal margins, at least, and number of bins, at most."""

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
        num_pairs: Pairs that were permuted.
    """

    statistic: float
    null_mean: float
    null_sd: float
    p_value: float
    num_permutations: int
    num_pairs: int


def permute_annotators(
    choices: Choices,
    stratum: Int[np.ndarray, " pairs"] | None = None,
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
    permuting y within bins. Where most margins occur several times, as when several annotators
    judge a pair, a bin is the margins of exactly one size: what is particular to a pair is then
    shared by all who are compared.

    Args:
        choices: Data with annotator ids.
        stratum: Index per pair; agreement is permuted within strata, such as topics.
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
    choices, stratum = _limit(choices, stratum, rng)
    assert choices.annotator is not None
    size = np.abs(choices.margin)
    agrees = agreement(choices.margin)
    bins = _bins(size, stratum)
    are_large = len(bins) > _LARGE_BIN * len(np.unique(bins))
    order = (
        np.lexsort((rng.random(len(bins)), bins)) if are_large else np.argsort(bins, kind="stable")
    )
    bins, agrees, annotator = bins[order], agrees[order], choices.annotator[order]
    count = np.bincount(bins)
    residual = agrees - (np.bincount(bins, agrees) / count)[bins]
    weight = _score_weight(size[order], agrees)
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
        (1 + exceeding) / (1 + num_permutations), num_permutations, len(bins),
    )  # fmt: skip


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
    """All pairs of as many annotators, in random order, as fit the limit; at least two."""
    if choices.num_pairs <= _MAX_PERMUTED:
        return choices, stratum
    assert choices.annotator is not None
    order = rng.permutation(choices.num_annotators)
    total = np.bincount(choices.annotator)[order].cumsum()
    annotator = np.sort(order[: max(2, int((total <= _MAX_PERMUTED).sum()))])
    kept = np.isin(choices.annotator, annotator)
    return select_annotators(choices, annotator), None if stratum is None else stratum[kept]


def _bins(size: np.ndarray, stratum: np.ndarray | None) -> np.ndarray:
    """Bins of equal, or nearly equal, margins within strata, as indices from 0."""
    if stratum is None:
        stratum = np.zeros(len(size), dtype=int)
    tied = np.unique(np.stack([stratum, size]), axis=1, return_inverse=True)[1].reshape(-1)
    if (np.bincount(tied)[tied] > 1).mean() > 0.5:
        return tied
    stratum = np.unique(stratum, return_inverse=True)[1]
    order = np.lexsort((size, stratum))
    count = np.bincount(stratum)
    rank = np.arange(len(size)) - np.repeat(count.cumsum() - count, count)
    num_bins = np.clip(count // _BIN_SIZE, 1, _MAX_BINS)
    offset = num_bins.cumsum() - num_bins
    bins = np.empty(len(size), dtype=int)
    sorted_stratum = stratum[order]
    bins[order] = offset[sorted_stratum] + rank * num_bins[sorted_stratum] // count[sorted_stratum]
    return bins


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
