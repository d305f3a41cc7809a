"""Posterior predictive checks of plain pairs.

The chosen response of every pair is known, so that "the chosen one was chosen" can be predicted
without fail; pairs are oriented at random before anything is computed from them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from mixdpo_pyro.diagnosis.check_statistics import (
    BINS,
    MAX_CURVES,
    OWN_STRENGTH,
    SAME_PAIR,
    SPREAD,
    PredictiveCheck,
    Question,
    agreement_on_pairs,
    calibrate_predictions,
    excess_over_own_strength,
    owners,
    rate_groups,
    spread_between,
    summarise,
)
from mixdpo_pyro.inference.choices import Choices, agreement, number_ids, orient_at_random
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.predictive import (
    choice_probabilities,
    draw_choice_probabilities,
    draw_margin_errors,
)

__all__ = ["check_pairs"]


def check_pairs(
    choices: Choices,
    groups: dict[str, np.ndarray],
    annotator_column: str,
    posterior: Posterior,
    num_replications: int,
    rng: np.random.Generator,
) -> PredictiveCheck:
    """Compare pairs with replications of a posterior.

    Args:
        choices: Pairs.
        groups: Column -> group of each pair.
        annotator_column: Name of the column of annotator ids.
        posterior: A posterior.
        num_replications: Number of replications.
        rng: Source of orientation and replications.
    """
    margin, annotator = choices.margin, owners(choices)
    size, agrees = np.abs(margin), agreement(margin)
    labels = choices.labels
    ids = np.array(labels, dtype=object)[annotator] if labels else None
    draws = posterior.take(np.arange(num_replications) % posterior.num_samples)
    known, new = (
        draw_choice_probabilities(
            draws, size, rng, annotator=ids, are_new=are_new,
            error=draw_margin_errors(draws, choices, rng),
        )
        for are_new in (False, True)
    )  # fmt: skip
    known_choices, new_choices = rng.random(known.shape) < known, rng.random(new.shape) < new
    expected = choice_probabilities(posterior.first(200), size).mean(0)
    questions = [*_questions(size, expected), *_questions_of_people(choices, expected, annotator)]
    statistics, replicated = summarise(questions, agrees, known_choices, new_choices)
    oriented, is_first = orient_at_random(margin, rng)
    # Of new annotators: what the posterior knows about these ones came from these choices.
    probability = np.where(oriented > 0, expected, 1 - expected)
    first_again = np.where(oriented > 0, new_choices, ~new_choices)[:MAX_CURVES]
    rows = [
        rate_groups(column, *number_ids(g), agrees, known_choices) for column, g in groups.items()
    ]
    if labels:
        rows.append(rate_groups(annotator_column, labels, annotator, agrees, new_choices))
    return PredictiveCheck(
        kind="pairs",
        description=choices.describe(),
        event="the first response, drawn at random, is chosen",
        statistics=statistics,
        replicated=replicated,
        calibration=calibrate_predictions(probability, is_first, first_again),
        probability=probability,
        happened=is_first,
        shares=pd.DataFrame(),
        groups=pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(),
        num_choices=choices.num_choices,
        num_known=int((posterior.columns(labels) >= 0).sum()),
        num_annotators=choices.num_annotators,
        margin_error=_quantiles(posterior.margin_error),
    )


def _quantiles(draws: np.ndarray | None) -> tuple[float, float, float] | None:
    if draws is None:
        return None
    low, middle, high = map(float, np.quantile(draws, [0.05, 0.5, 0.95]))
    return low, middle, high


def _questions(size: np.ndarray, probability: np.ndarray) -> Sequence[Question]:
    """Statistics of agreements, whoever chose."""
    order = np.argsort(size)
    fifths, tenths = np.array_split(order, 5), np.array_split(order, BINS)
    expected = np.array([probability[g].mean() for g in tenths])
    variance = np.array([(probability[g] * (1 - probability[g])).mean() / len(g) for g in tenths])

    def misfit(agrees: np.ndarray) -> np.ndarray:
        rates = np.stack([agrees[:, g].mean(1) for g in tenths], axis=1)
        return ((rates - expected) ** 2 / np.maximum(variance, 1e-12)).sum(1)

    return [
        Question("agreement with the margin", lambda a: a.mean(1)),
        Question("agreement, smallest fifth of margins", lambda a: a[:, fifths[0]].mean(1)),
        Question("agreement, largest fifth of margins", lambda a: a[:, fifths[-1]].mean(1)),
        Question(f"misfit over {BINS} bins of margins (chi-square)", misfit, is_misfit=True),
    ]


def _questions_of_people(
    choices: Choices, probability: np.ndarray, annotator: np.ndarray
) -> Iterator[Question]:
    """Statistics of agreements by annotator, and of annotators on the same pair."""
    if choices.has_panels:
        spread = spread_between(lambda a: a, probability, annotator)
        yield Question(SPREAD, spread, are_new=True)
        own = excess_over_own_strength(np.abs(choices.margin), annotator)
        yield Question(OWN_STRENGTH, own, are_new=True)
    if choices.pair is not None and choices.labels:
        alike = agreement_on_pairs(choices.pair, annotator, choices.margin)
        if alike is not None:
            yield Question(SAME_PAIR, alike, are_new=True)
