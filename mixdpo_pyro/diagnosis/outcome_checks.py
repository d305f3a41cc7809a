"""Posterior predictive checks of ties, grades and choices among several responses.

The unit is the choice, not the row. Outcomes of two responses are those of the one that the margin
favours, whichever the file names first; of a set what counts is the place of the chosen response
among the utilities. Neither depends on how a file orders its responses.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float

from mixdpo_pyro.diagnosis.check_statistics import (
    BINS,
    MAX_CURVES,
    SPREAD,
    PredictiveCheck,
    Question,
    calibrate_predictions,
    owners,
    rate_groups,
    spread_between,
    summarise,
)
from mixdpo_pyro.inference.choices import Choices, number_ids
from mixdpo_pyro.inference.likelihood.observed import with_lapses
from mixdpo_pyro.inference.outcomes import Outcomes, describe_observation
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.predictive import replicate_outcomes, sample_new_strengths
from mixdpo_pyro.reporting.outcome_shares import (
    fold_judgements,
    name_outcomes,
    sizes_of_choices,
    tabulate_shares,
)

__all__ = ["SPREAD_OF_TIES", "check_outcomes"]

SPREAD_OF_TIES = "spread of annotators' ties (sd)"
"""Of the share of ties minus what is expected of the annotator's margins under one threshold."""

_NUM_EXPECTED = 200
"""Draws of a new annotator that expectations are averaged over."""

_SHOWN_PLACES = 4
"""Places of the chosen response whose shares are statistics of their own."""


def check_outcomes(
    choices: Choices,
    groups: dict[str, np.ndarray],
    annotator_column: str,
    posterior: Posterior,
    num_replications: int,
    rng: np.random.Generator,
) -> PredictiveCheck:
    """Compare choices that are not plain pairs with replications of a posterior.

    Args:
        choices: Choices with outcomes.
        groups: Column -> group of each choice.
        annotator_column: Name of the column of annotator ids.
        posterior: A posterior of such choices.
        num_replications: Number of replications.
        rng: Source of everything that is drawn.
    """
    choices = fold_judgements(choices, rng)
    outcomes = with_lapses(choices, posterior.flip_probability).outcomes
    assert outcomes is not None
    draws = posterior.take(np.arange(num_replications) % posterior.num_samples)
    seeds = rng.integers(2**31, size=3).tolist()
    known = replicate_outcomes(draws, choices, seed=seeds[0])
    new = replicate_outcomes(draws, choices, seed=seeds[1], are_new=True)
    observed = outcomes.seen(choices.margin)
    expected = _expected(outcomes, choices.margin, posterior.first(_NUM_EXPECTED), seeds[2])
    statistics, replicated = summarise(_questions(choices, expected), observed, known, new)
    # One outcome of each choice, drawn at random: was it predicted as often as it happened?
    asked = rng.integers(_num_outcomes(choices))
    probability = np.take_along_axis(expected, asked[:, None], 1)[:, 0]
    score = _score(choices)
    rows = [
        rate_groups(column, *number_ids(label), score(observed), score(known))
        for column, label in groups.items()
    ]
    if choices.labels:
        rows.append(
            rate_groups(
                annotator_column, choices.labels, owners(choices), score(observed), score(new)
            )
        )
    return PredictiveCheck(
        kind=describe_observation(choices.outcomes),
        description=choices.describe(),
        event="an outcome of the choice, drawn at random, is the one that happened",
        statistics=statistics,
        replicated=replicated,
        calibration=calibrate_predictions(
            probability, observed == asked, new[:MAX_CURVES] == asked
        ),
        probability=probability,
        happened=observed == asked,
        shares=tabulate_shares(choices, observed, known),
        groups=pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(),
        num_choices=choices.num_choices,
        num_known=int((posterior.columns(choices.labels) >= 0).sum()),
        num_annotators=choices.num_annotators,
    )


def _expected(
    outcomes: Outcomes, margin: np.ndarray, posterior: Posterior, seed: int
) -> Float[np.ndarray, "choices outcomes"]:
    """Probability of every outcome for a new annotator."""
    strength = sample_new_strengths(posterior, seed)
    owner = np.zeros(outcomes.num_choices, dtype=int)
    total = outcomes.probabilities(margin, strength[owner]) * 0
    for k in range(len(strength)):
        model = outcomes.at(posterior.thresholds, k) if posterior.thresholds else outcomes
        total += model.probabilities(margin, strength[owner + k])
    return total / len(strength)


def _num_outcomes(choices: Choices) -> np.ndarray:
    """Number of outcomes that each choice could have had; of a set, its responses."""
    outcomes = choices.outcomes
    assert outcomes is not None
    if outcomes.are_sets:
        return outcomes.sizes
    return np.full(choices.num_choices, len(outcomes.observation.support()))


def _score(choices: Choices) -> Callable[[np.ndarray], np.ndarray]:
    """How far an outcome agrees with the margin, from 0 to 1."""
    assert choices.outcomes is not None
    if choices.outcomes.are_sets:
        return lambda done: (done == 0).astype(float)
    last = len(choices.outcomes.observation.support()) - 1
    return lambda done: done / last


def _questions(choices: Choices, expected: np.ndarray) -> list[Question]:
    """Statistics of what was done."""
    assert choices.outcomes is not None
    are_sets, names = choices.outcomes.are_sets, name_outcomes(choices)
    size = "leads" if are_sets else "margins"
    order = np.argsort(sizes_of_choices(choices), kind="stable")
    fifths, tenths = np.array_split(order, 5), np.array_split(order, BINS)
    shown = range(_SHOWN_PLACES if are_sets else len(names))
    found = [Question(f"share, {names[k]}", _share(k)) for k in shown[: len(names)]]
    # Of a set what matters is the first place, of a judgement that it is no tie.
    key = 0 if are_sets else names.index("tie") if "tie" in names else None
    if key is not None:
        found += [
            Question(f"{names[key]}, {which} fifth of {size}", _share(key, part))
            for which, part in (("smallest", fifths[0]), ("largest", fifths[-1]))
        ]
    found.append(
        Question(
            f"misfit over {BINS} bins of {size} (chi-square)",
            _misfit(expected, tenths),
            is_misfit=True,
        )
    )
    log_prob = np.log(np.maximum(expected, 1e-300))
    row = np.arange(len(expected))
    found.append(Question("mean log-probability", lambda done: log_prob[row, done].mean(1)))
    if choices.has_panels:
        score, annotator = _score(choices), owners(choices)
        mean = expected @ score(np.arange(expected.shape[1]))
        found.append(Question(SPREAD, spread_between(score, mean, annotator), are_new=True))
        if not are_sets and key is not None:
            ties = spread_between(lambda done: done == key, expected[:, key], annotator)
            found.append(Question(SPREAD_OF_TIES, ties, are_new=True))
    return found


def _share(
    outcome: int, part: np.ndarray | slice = slice(None)
) -> Callable[[np.ndarray], np.ndarray]:
    return lambda done: (done[:, part] == outcome).mean(1)


def _misfit(
    expected: Float[np.ndarray, "choices outcomes"], bins: list[np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Sum over bins and outcomes of (observed - expected)^2 / expected, in counts."""
    total = np.stack([expected[part].sum(0) for part in bins])

    def misfit(done: np.ndarray) -> np.ndarray:
        value = np.zeros(len(done))
        for part, count in zip(bins, total, strict=True):
            for k, each in enumerate(count):
                seen = (done[:, part] == k).sum(1)
                value += (seen - each) ** 2 / max(each, 0.5)
        return value

    return misfit
