"""Arms at one KL to the reference: their win rates, their differences, and how to get there."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mixdpo_pyro.winrates.config import LARGEST_WEIGHT
from mixdpo_pyro.winrates.differences import ArmDifference, compare_seeds
from mixdpo_pyro.winrates.rates import match_divergence, match_seeds
from mixdpo_pyro.winrates.record import ArmRate, RunRate

__all__ = ["common_divergence", "match_arms", "ways_to_reach"]

_MARGIN = 1.1
"""Beyond what should do: KL grows with the square of the weight near the reference only."""

_Curves = dict[tuple[str, int], list[RunRate]]
"""Arm and seed -> its runs, from the least KL to the largest."""


def match_arms(
    rates: Sequence[RunRate], by_prompt: Float[np.ndarray, "runs prompts"], target: float | None
) -> tuple[list[ArmRate], list[ArmDifference]]:
    """Every arm at one KL, and the others against the first of them.

    Args:
        rates: The runs, once for each decoding weight.
        by_prompt: Win rate of each on every prompt, in percent; NaN where nothing was judged.
        target: KL in nats per response; None where there is none.
    """
    rows: dict[str, list[int]] = {}
    for place, rate in enumerate(rates):
        rows.setdefault(rate.arm, []).append(place)
    if target is None:
        return [ArmRate(arm, len(of), None, None, None, 0) for arm, of in rows.items()], []
    found, curves = [], {}
    for arm, places in rows.items():
        members = [rates[k] for k in places]
        divergence, seeds = np.array([r.kl for r in members]), [r.seed for r in members]
        at = match_divergence(divergence, np.array([r.win_rate for r in members]), seeds, target)
        middle, low, high = (None if np.isnan(v) else v for v in (at.rate, at.low, at.high))
        found.append(ArmRate(arm, len(members), middle, low, high, at.seeds))
        curves[arm] = match_seeds(divergence, by_prompt[places], seeds, target)
    first, *others = curves
    differences = [
        compare_seeds(arm, first, curves[arm], curves[first], comparisons=len(others))
        for arm in others
    ]
    return found, [each for each in differences if each is not None]


def common_divergence(rates: Sequence[RunRate]) -> float | None:
    """The largest KL that every seed of every arm with several runs a seed reaches."""
    curves = [members for members in _curves(rates).values() if len(members) > 1]
    if not curves:
        return None
    target = min(members[-1].kl for members in curves)
    return target if all(members[0].kl <= target for members in curves) else None


def ways_to_reach(rates: Sequence[RunRate], target: float | None) -> str:
    r"""What to do so that every seed of every arm reaches a KL on both sides, in words.

    Near the reference the KL grows with the square of the decoding weight, and weight w is about
    the policy of :math:`\beta / w`; what is proposed goes a tenth further.

    Args:
        rates: The runs, once for each decoding weight.
        target: KL in nats per response; None for the least of the largest of every curve.
    """
    curves = _curves(rates)
    aim = min(members[-1].kl for members in curves.values()) if target is None else target
    weights = {rate.weight for rate in rates}
    betas: dict[str, set[float]] = {}
    for (arm, _), members in curves.items():
        low, high = members[0], members[-1]
        if low.kl <= aim <= high.kl:
            continue
        if min(aim, high.kl) <= 0:
            return "train for longer, since some policies do not leave the reference"
        run, margin = (high, _MARGIN) if high.kl < aim else (low, 1 / _MARGIN)
        weight = run.weight * math.sqrt(aim / run.kl) * margin
        weights.add(float(f"{weight:.2g}"))
        betas.setdefault(arm, set()).add(float(f"{run.beta / weight:.2g}"))
    trained = ", ".join(f"{arm} at beta {_listed(of, ' and ')}" for arm, of in betas.items())
    if max(weights) > LARGEST_WEIGHT:
        return f"train {trained} or so"
    weighted = f"decode at more weights (--decoding_weights {_listed(weights)})"
    return f"{weighted}, or train {trained} or so"


def _listed(numbers: set[float], between: str = " ") -> str:
    return between.join(f"{number:g}" for number in sorted(numbers))


def _curves(rates: Sequence[RunRate]) -> _Curves:
    found: _Curves = {}
    for rate in sorted(rates, key=lambda rate: rate.kl):
        found.setdefault((rate.arm, rate.seed), []).append(rate)
    return found
