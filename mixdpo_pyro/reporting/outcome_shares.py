"""What was done by the size of the margin, where choices are not plain pairs."""

from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mixdpo_pyro.inference.choices import Choices, random_subset, select_choices
from mixdpo_pyro.inference.outcomes import name_grades
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.predictive import replicate_outcomes

__all__ = [
    "fold_judgements", "name_outcomes", "replicate_shares", "sizes_of_choices", "tabulate_shares",
]  # fmt: skip

_BINS = 10

_MAX_CHOICES = 5_000
"""Choices that the shares of a report are taken from; of more, a random subset."""

_NUM_REPLICATIONS = 200


def replicate_shares(posterior: Posterior, choices: Choices, seed: int = 0) -> pd.DataFrame:
    """Shares of outcomes in bins of the margins, beside what new annotators would do.

    Args:
        posterior: The posterior of these choices.
        choices: Choices with outcomes.
        seed: Seed of the replications.

    Returns:
        See :func:`tabulate_shares`.
    """
    rng = np.random.default_rng((seed, 23))
    kept = random_subset(choices.num_choices, _MAX_CHOICES, rng)
    choices = fold_judgements(select_choices(choices, kept), rng)
    assert choices.outcomes is not None
    draws = posterior.first(_NUM_REPLICATIONS)
    replicated = replicate_outcomes(draws, choices, seed=seed, are_new=True)
    return tabulate_shares(choices, choices.outcomes.seen(choices.margin), replicated)


def fold_judgements(choices: Choices, rng: np.random.Generator) -> Choices:
    """Judgements of the response that the margin favours, or of either one where it is zero."""
    outcomes, margin = choices.outcomes, choices.margin
    assert outcomes is not None
    if outcomes.are_sets:
        return choices
    is_turned = (margin < 0) | ((margin == 0) & (rng.random(len(margin)) < 0.5))
    last = len(outcomes.observation.support()) - 1
    code = np.where(is_turned, last - outcomes.code, outcomes.code)
    return replace(choices, margin=np.abs(margin), outcomes=replace(outcomes, code=code))


def name_outcomes(choices: Choices) -> list[str]:
    """What each outcome is called."""
    outcomes = choices.outcomes
    assert outcomes is not None
    if outcomes.are_sets:
        largest = int(outcomes.sizes.max())
        others = (f"response {k + 1} by utility chosen" for k in range(1, largest))
        return ["best response chosen", *others]
    number = len(outcomes.observation.support())
    if number == 3:
        return ["worse response preferred", "tie", "better response preferred"]
    return name_grades(number)


def sizes_of_choices(choices: Choices) -> Float[np.ndarray, " choices"]:
    """What choices are put into bins by: the margin, or the lead of the largest utility."""
    outcomes = choices.outcomes
    assert outcomes is not None
    if not outcomes.are_sets:
        return np.abs(choices.margin)
    by_place = outcomes.by_place(choices.margin)
    return by_place[:, 0] - by_place[:, 1]


def tabulate_shares(
    choices: Choices,
    observed: Int[np.ndarray, " choices"],
    replicated: Int[np.ndarray, "replications choices"],
) -> pd.DataFrame:
    """Share of each outcome in bins of the margins: observed, and its 90% in replications.

    Args:
        choices: Choices, judgements as :func:`fold_judgements` gives them.
        observed: What was done in each choice.
        replicated: The same in replications.

    Returns:
        A row per bin and outcome: `margin`, `choices`, `outcome`, `observed`, `q05`, `q50`, `q95`.
    """
    size = sizes_of_choices(choices)
    rows = []
    for part in np.array_split(np.argsort(size, kind="stable"), _BINS):
        for k, name in enumerate(name_outcomes(choices)):
            low, middle, high = np.quantile((replicated[:, part] == k).mean(1), [0.05, 0.5, 0.95])
            rows.append(
                {"margin": size[part].mean(), "choices": len(part), "outcome": name,
                 "observed": (observed[part] == k).mean(), "q05": low, "q50": middle, "q95": high}
            )  # fmt: skip
    return pd.DataFrame(rows)
