"""Runs of a sweep by arm and beta: means over seeds, with their intervals."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from mixdpo_pyro.reporting.sweep_record import SweptRun
from mixdpo_pyro.winrates.rates import over_seeds
from mixdpo_pyro.winrates.recommendation import FEW_SEEDS, join_words

__all__ = ["ARM_HEADINGS", "ARM_TABLES", "ArmResult", "advise_arms", "arm_notes", "arm_rows"]

ARM_HEADINGS = (
    "arm", "beta", "seeds", "accuracy", "log-probability", "against first arm", "cv", "verdicts",
    "health",
)  # fmt: skip

ARM_TABLES = (
    ("accuracy", "log-probability"),
    ("against first arm", "cv"),
    ("verdicts", "health"),
)
"""Columns beside arm, beta and seeds that fit a terminal."""


@dataclass(frozen=True)
class ArmResult:
    """What a run adds to its arm.

    Attributes:
        swept: Its place in the sweep.
        sweep: Name of the sweep's folder.
        accuracy: Share of held-out pairs with a positive margin.
        num_pairs: Number of held-out pairs.
        log_prob: Mean log-probability of the held-out choices in nats.
        cv: Median of cv given the held-out pairs.
        verdict: heterogeneous, homogeneous, inconclusive, or no verdict.
        health: PASS, REVIEW or FAIL.
    """

    swept: SweptRun
    sweep: str
    accuracy: float
    num_pairs: int
    log_prob: float
    cv: float
    verdict: str
    health: str


def arm_rows(results: Sequence[ArmResult]) -> list[list[str]]:
    """A row for each arm and beta, as `ARM_HEADINGS` names its cells."""
    return [
        [
            name, f"{beta:g}", f"{len(members)}",
            _cell([r.accuracy for r in members], 3, 0, 1, _sampling_error(members)),
            _cell([r.log_prob for r in members], 3, high=0), _against_first(members, results),
            _cell([r.cv for r in members], 2, 0), _counts(r.verdict for r in members),
            _counts(r.health for r in members),
        ]
        for (name, beta), members in _by_arm(results).items()
    ]  # fmt: skip


def _against_first(members: Sequence[ArmResult], results: Sequence[ArmResult]) -> str:
    found = _beyond_first(members, results)
    return _cell(found, 3) if found else "-"


def _beyond_first(members: Sequence[ArmResult], results: Sequence[ArmResult]) -> list[float]:
    """Log-probabilities beyond those of the first arm, seed by seed; none for itself."""
    control = results[0].swept.arm
    of = {(r.sweep, r.swept.beta, r.swept.seed): r for r in results if r.swept.arm == control}
    twins = [(r, of.get((r.sweep, r.swept.beta, r.swept.seed))) for r in members]
    if members[0].swept.arm == control:
        return []
    return [one.log_prob - other.log_prob for one, other in twins if other is not None]


def advise_arms(results: Sequence[ArmResult]) -> str:
    """What the differences from the first arm say, in one sentence.

    Intervals are those of 95% by Student's t over seeds, which hold together (Bonferroni). A gain
    in log-probability is no win rate: responses are judged by `mixdpo winrate`.

    Args:
        results: Runs of sweeps; none for runs by themselves.
    """
    arms = _by_arm(results)
    pairs = {key: _beyond_first(members, results) for key, members in arms.items()}
    pairs = {key: found for key, found in pairs.items() if len(found) > 1}
    if not pairs:
        return (
            f"Cannot tell which arm is better: {FEW_SEEDS}, and compare their responses at equal "
            "KL (mixdpo winrate)."
        )
    control, clauses = results[0].swept.arm, []
    for (arm, beta), values in pairs.items():
        mean, low, high = over_seeds(values, len(pairs))
        if low > 0 or high < 0:
            word = "better" if low > 0 else "worse"
            clauses.append(
                f"{arm} at beta {beta:g} predicts held-out choices {word} than {control}, by "
                f"{abs(mean):.4f} nats [{low:+.4f}, {high:+.4f}] over {len(values)} seeds"
            )
    shown = "; ".join(clauses) or (
        f"No arm is shown to predict held-out choices better or worse than {control}, over "
        f"{join_words([str(n) for n in sorted({len(v) for v in pairs.values()})])} seeds"
    )
    return f"{shown}; whose responses win is another question (mixdpo winrate)."


def _sampling_error(members: Sequence[ArmResult]) -> float:
    """Of an accuracy, by its held-out pairs: seeds cannot agree better but by chance."""
    share = float(np.mean([r.accuracy for r in members]))
    return math.sqrt(share * (1 - share) / min(max(r.num_pairs, 1) for r in members))


def arm_notes(results: Sequence[ArmResult]) -> list[str]:
    """How to read the rows."""
    if not results:
        return []
    sizes = {len(members) for members in _by_arm(results).values()}
    notes = [
        "Arms: mean over seeds and its 95% interval by Student's t, of accuracy, log-probability "
        "and the median of cv. Other seeds hold out other pairs, which the interval counts too.",
        f"Against first arm: log-probability beyond that of '{results[0].swept.arm}' at the same "
        "beta and seed, which held out the same pairs.",
    ]
    if 1 in sizes:
        notes.append("One seed has no interval: it supports no claim that arms differ.")
    return notes


def _by_arm(results: Sequence[ArmResult]) -> dict[tuple[str, float], list[ArmResult]]:
    several = len({result.sweep for result in results}) > 1
    found: dict[tuple[str, float], list[ArmResult]] = {}
    for result in results:
        arm = f"{result.sweep}/{result.swept.arm}" if several else result.swept.arm
        found.setdefault((arm, result.swept.beta), []).append(result)
    return dict(sorted(found.items(), key=lambda item: _first_of(found, item[0])))


def _first_of(
    found: dict[tuple[str, float], list[ArmResult]], key: tuple[str, float]
) -> tuple[int, float]:
    """Arms in their order, and of each the betas as they grow."""
    arms = list(dict.fromkeys(arm for arm, _ in found))
    return arms.index(key[0]), key[1]


def _cell(
    values: Sequence[float],
    digits: int,
    low: float = -math.inf,
    high: float = math.inf,
    least_spread: float = 0.0,
) -> str:
    """Mean and interval over seeds.

    Args:
        values: A value for each seed.
        digits: Digits that are shown.
        low: The smallest value there can be.
        high: The largest one.
        least_spread: What the standard deviation over seeds is at least.
    """
    mean, least, most = over_seeds(values)
    if not np.isfinite(mean):
        return "not finite"
    if len(values) == 1:
        return f"{mean:.{digits}f}, one seed"
    floor = t.ppf(0.975, len(values) - 1) * least_spread / math.sqrt(len(values))
    half = max(mean - least, most - mean, floor)
    least, most = max(mean - half, low), min(mean + half, high)
    return f"{mean:.{digits}f} [{least:.{digits}f}, {most:.{digits}f}]"


def _counts(words: Iterable[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())
