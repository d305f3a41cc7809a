"""Differences between arms, paired over seeds and prompts, and what would show smaller ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float
from scipy import special

from mixdpo_pyro.winrates.rates import t_quantile

__all__ = ["MOST_SEEDS", "MOST_TIMES", "WORTHWHILE", "ArmDifference", "compare_seeds"]

WORTHWHILE = 1.0
"""Percentage points: what MixDPO gained where it gained at all, in simulated worlds, is more."""

_POWER = 0.8

MOST_SEEDS = 100
"""So many seeds of each arm are looked at."""

_USUAL_SEEDS = 20
"""Beyond that, more prompts are cheaper than more seeds."""

MOST_TIMES = 16
"""So many times the prompts are looked at."""


@dataclass(frozen=True)
class ArmDifference:
    """Win rate of an arm beyond that of another at equal KL, in percentage points.

    Attributes:
        arm: What was trained.
        against: The other arm.
        difference: Mean over the seeds that both have.
        low: End of the interval over seeds and prompts.
        high: The other end.
        seeds: Number of these seeds.
        needed_seeds: Seeds, one more at least, that would show a difference of `WORTHWHILE` with
            a probability of 80%; None where `MOST_SEEDS` on `MOST_TIMES` the prompts would not.
        needed_prompts: Prompts that it would take with so many seeds.
    """

    arm: str
    against: str
    difference: float
    low: float
    high: float
    seeds: int
    needed_seeds: int | None
    needed_prompts: int | None

    @property
    def is_clear(self) -> bool:
        """Whether zero is outside of the interval."""
        return self.low > 0 or self.high < 0

    @property
    def is_small(self) -> bool:
        """Whether the whole interval is nearer to zero than `WORTHWHILE`."""
        return -WORTHWHILE < self.low and self.high < WORTHWHILE


@dataclass(frozen=True)
class _Variance:
    """Variance of a difference in a world of crossed seeds and prompts.

    Attributes:
        seed: Of what a seed adds on every prompt.
        prompt: Of what a prompt adds at every seed.
        rest: Of a single cell beyond both.
    """

    seed: float
    prompt: float
    rest: float

    def error(self, seeds: int, prompts: int) -> tuple[float, float]:
        """Standard error of the mean, at least one comparison, and its degrees of freedom."""
        rest = self.rest / (seeds * prompts)
        by_seed, by_prompt = self.seed / seeds + rest, self.prompt / prompts + rest
        variance = by_seed + by_prompt - rest
        squares = by_seed**2 / (seeds - 1) + by_prompt**2 / (prompts - 1)
        squares += rest**2 / ((seeds - 1) * (prompts - 1))
        # Two seeds can agree by chance: the seeds' part is not to be measured by them then.
        few = seeds == 2 or squares == 0
        degrees = seeds - 1 if few else variance**2 / squares
        return max(math.sqrt(variance), 100 / (seeds * prompts)), degrees


def compare_seeds(
    arm: str,
    against: str,
    rates: Mapping[str, Float[np.ndarray, " prompts"]],
    others: Mapping[str, Float[np.ndarray, " prompts"]],
    comparisons: int = 1,
) -> ArmDifference | None:
    r"""The difference of two arms, paired over seeds and prompts; None for fewer than two seeds.

    Seeds and prompts are both samples, crossed: with :math:`d_{sp}` the difference of seed s on
    prompt p, its row means :math:`\bar d_s` and its column means :math:`\bar d_p`,

    .. math:: \mathrm{se}^2 = \frac{\mathrm{var}(\bar d_s)}{S} + \frac{\mathrm{var}(\bar d_p)}{P}
              - \frac{\sum_{sp} (d_{sp} - \bar d_s - \bar d_p + \bar d)^2}{S P (S - 1)(P - 1)},

    at least the larger of the first two, and at least one comparison, 100 / (S P): cells that are
    all equal are so by chance. The interval is that of Student's t with Satterthwaite's degrees of
    freedom for this sum, and with one for two seeds, which may agree by chance.

    Args:
        arm: Name of the arm.
        against: Name of the other.
        rates: Seed -> win rate in percent on each prompt, NaN where nothing was judged.
        others: The other's.
        comparisons: How many differences are looked at: their 95% intervals hold together
            (Bonferroni).
    """
    shared = sorted(set(rates) & set(others))
    if len(shared) < 2:
        return None
    cells = np.array([rates[seed] - others[seed] for seed in shared])
    cells = cells[:, np.isfinite(cells).all(0)]
    seeds, prompts = cells.shape
    if prompts < 2:
        return None
    found = _variance(cells)
    error, degrees = found.error(seeds, prompts)
    mean, half = float(cells.mean()), t_quantile(degrees, comparisons) * error
    needed, on = _needed(found, seeds, prompts, comparisons)
    return ArmDifference(arm, against, mean, mean - half, mean + half, seeds, needed, on)


def _variance(cells: Float[np.ndarray, "seeds prompts"]) -> _Variance:
    """Of a two-way table without replicates, by its mean squares; none is below zero."""
    seeds, prompts = cells.shape
    rows, columns = cells.mean(1, keepdims=True), cells.mean(0, keepdims=True)
    beyond = cells - rows - columns + cells.mean()
    rest = float((beyond**2).sum() / ((seeds - 1) * (prompts - 1)))
    by_seed, by_prompt = float(rows.var(ddof=1)), float(columns.var(ddof=1))
    # Both means hold the rest: it must not make the sum smaller than either of them alone.
    rest = min(rest, seeds * by_prompt, prompts * by_seed)
    return _Variance(by_seed - rest / prompts, by_prompt - rest / seeds, rest)


def _needed(
    variance: _Variance, seeds: int, prompts: int, comparisons: int
) -> tuple[int, int] | tuple[None, None]:
    """Seeds, and prompts where these alone do not do it, that show a difference worth having."""
    for most, times in product((_USUAL_SEEDS, MOST_SEEDS), (1, 4, MOST_TIMES)):
        for number in range(seeds + 1, max(seeds + 1, most) + 1):
            error, degrees = variance.error(number, times * prompts)
            width = t_quantile(degrees, comparisons) + float(special.stdtrit(degrees, _POWER))
            if width * error <= WORTHWHILE:
                return number, times * prompts
    return None, None
