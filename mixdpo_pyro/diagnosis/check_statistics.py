"""Statistics of choices, observed and replicated, and the reliability of predicted probabilities.

Choices are replicated from the posterior (Gelman, Meng and Stern, Statistica Sinica 6, 1996). The
reliability diagram is that of Dimitriadis, Gneiting and Jordan (PNAS 118, 2021).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.optimize import isotonic_regression
from scipy.special import expit

from mixdpo_pyro.inference.choices import Choices

__all__ = [
    "BINS",
    "MAX_CURVES",
    "OWN_STRENGTH",
    "SAME_PAIR",
    "SPREAD",
    "CalibrationCurve",
    "PredictiveCheck",
    "Question",
    "Statistic",
    "agreement_on_pairs",
    "calibrate_predictions",
    "excess_over_own_strength",
    "owners",
    "rate_groups",
    "spread_between",
    "summarise",
]

SPREAD = "spread of annotators' agreement (sd)"
"""Of agreement minus what the distribution expects of the annotator's margins."""

SAME_PAIR = "agreement of annotators on the same pair"
"""Share of two judgements of one pair, by different annotators, that are alike."""

OWN_STRENGTH = "agreements beyond annotators' own strength (mean)"
"""Of each annotator: what is left of their agreements by the one strength that fits them best."""

BINS = 10
"""Bins of margins in which misfit is summed."""

MAX_CURVES = 300
"""Replications whose isotonic fits make the band."""


@dataclass(frozen=True)
class Statistic:
    """A statistic of the choices, observed and replicated.

    Attributes:
        name: What it is.
        observed: Its value.
        low: 5% quantile of the replications.
        high: 95% quantile of the replications.
        p_value: Predictive p-value: twice the smaller share of replications at or beyond the
            observed value, ties counted half; of a misfit, the share of those as large.
    """

    name: str
    observed: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class CalibrationCurve:
    """Isotonic calibration of predicted probabilities, with a band for right predictions.

    Attributes:
        predicted: Predicted probabilities in ascending order.
        calibrated: Isotonic fit to the choices (pool adjacent violators).
        low: 5% quantile of that fit where predictions are right.
        high: 95% quantile.
    """

    predicted: Float[np.ndarray, " choices"]
    calibrated: Float[np.ndarray, " choices"]
    low: Float[np.ndarray, " choices"]
    high: Float[np.ndarray, " choices"]

    @property
    def outside(self) -> float:
        """Share of choices where the fit leaves the band, near 0.1 where predictions are right."""
        return float(((self.calibrated < self.low) | (self.calibrated > self.high)).mean())


@dataclass(frozen=True)
class PredictiveCheck:
    """What was checked.

    Attributes:
        kind: What was observed, as a posterior names it: `"pairs"`, `"sets"`, `"grades"`, ...
        description: The choices that were looked at, in words.
        event: What `probability` is about, one event of each choice.
        statistics: Statistics with predictive p-values.
        replicated: Name -> values of the statistic in the replications.
        calibration: Reliability of the predictions.
        probability: The distribution's prediction of each choice's event.
        happened: Whether the event happened.
        shares: Of choices that are not plain pairs, the share of each outcome by margin.
        groups: Rows by group and annotator: observed and predicted agreement, and p-value.
        num_choices: Choices in the data.
        num_known: Annotators of the data that the posterior knows.
        num_annotators: Annotators of the data.
        margin_error: 5%, 50% and 95% quantiles of the standard deviation of the margins' errors
            that the posterior has, in nats; None where it takes margins as exact.
    """

    kind: str
    description: str
    event: str
    statistics: list[Statistic]
    replicated: dict[str, np.ndarray]
    calibration: CalibrationCurve
    probability: np.ndarray
    happened: np.ndarray
    shares: pd.DataFrame
    groups: pd.DataFrame
    num_choices: int
    num_known: int
    num_annotators: int
    margin_error: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Question:
    """A statistic, before it is evaluated.

    Attributes:
        name: What it is.
        function: From what was done in each choice, shape `(replications, choices)`, to a value
            per replication.
        are_new: Whether annotators' strengths are drawn anew in the replications: what the
            posterior knows about these annotators came from these choices (Marshall and
            Spiegelhalter, Bayesian Analysis 2, 2007).
        is_misfit: Whether only larger values than those of the replications count: a posterior
            that was fitted to these choices fits them better than its replications.
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray]
    are_new: bool = False
    is_misfit: bool = False


def summarise(
    questions: Sequence[Question], observed: np.ndarray, known: np.ndarray, new: np.ndarray
) -> tuple[list[Statistic], dict[str, np.ndarray]]:
    """Evaluate statistics of what was done, and of its replications.

    Args:
        questions: The statistics.
        observed: What was done in each choice.
        known: Replications with the strengths that the posterior knows, first axis the draws.
        new: Replications with new strengths.
    """
    statistics, replicated = [], {}
    for question in questions:
        values = question.function(new if question.are_new else known)
        value = float(question.function(observed[None])[0])
        low, high = np.quantile(values, [0.05, 0.95])
        p_value = (_upper if question.is_misfit else _two_sided)(value, values)
        statistics.append(Statistic(question.name, value, float(low), float(high), p_value))
        replicated[question.name] = values
    return statistics, replicated


def _two_sided(observed: float, values: np.ndarray) -> float:
    above = _upper(observed, values)
    return float(min(1.0, 2 * max(min(above, 1 - above), 0.5 / len(values))))


def _upper(observed: float, values: np.ndarray) -> float:
    above = (values > observed).mean() + 0.5 * (values == observed).mean()
    return float(max(above, 0.5 / len(values)))


def spread_between(
    score: Callable[[np.ndarray], np.ndarray],
    expected: Float[np.ndarray, " choices"],
    annotator: Int[np.ndarray, " choices"],
) -> Callable[[np.ndarray], np.ndarray]:
    """Standard deviation over annotators, who chose repeatedly, of a score less what is expected.

    Args:
        score: From what was done to the scores.
        expected: Expected score of each choice.
        annotator: Index of the annotator of each choice.
    """
    count = np.bincount(annotator)
    repeated = count >= 2

    def spread(done: np.ndarray) -> np.ndarray:
        excess = score(done) - expected
        rates = np.stack([np.bincount(annotator, e, len(count)) / count for e in excess])
        return rates[:, repeated].std(axis=1)

    return spread


_STRENGTHS = np.concatenate([[0.0], np.geomspace(0.01, 100.0, 81)])
"""Strengths at which the agreements of an annotator are known, at margins of size one."""

_FEWEST_COMPARED = 20
"""Judgements of one pair, two by two, below which their agreement says nothing."""


def agreement_on_pairs(
    pair: Int[np.ndarray, " choices"],
    annotator: Int[np.ndarray, " choices"],
    margin: Float[np.ndarray, " choices"],
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Share of two judgements of the same pair, by different annotators, that are alike.

    Given strengths they are independent where margins are right. An error of the margin, which all
    who judge the pair share, makes them alike more often than that.

    Args:
        pair: Number of what was judged.
        annotator: Index of who judged; of several judgements of one pair the first one counts.
        margin: Margins, of either orientation. At zero nothing says who agreed with whom.

    Returns:
        A function of the agreements with the margin, or None where few pairs have several judges.
    """
    rows = np.flatnonzero(margin != 0)
    judged = np.stack([pair[rows], annotator[rows]], axis=1)
    rows = rows[np.sort(np.unique(judged, axis=0, return_index=True)[1])]
    number = np.unique(pair[rows], return_inverse=True)[1]
    count = np.bincount(number)
    compared = (count * (count - 1)).sum() / 2
    if compared < _FEWEST_COMPARED:
        return None

    def alike(agrees: np.ndarray) -> np.ndarray:
        kept = np.stack([np.bincount(number, each[rows], len(count)) for each in agrees])
        against = count - kept
        return (kept * (kept - 1) + against * (against - 1)).sum(1) / 2 / compared

    return alike


def excess_over_own_strength(
    size: Float[np.ndarray, " choices"], annotator: Int[np.ndarray, " choices"]
) -> Callable[[np.ndarray], np.ndarray]:
    r"""Agreements of an annotator less those that their own best strength explains, on average.

    The strength with :math:`\sum_t |\Delta_t| (y_t - \sigma(\beta|\Delta_t|)) = 0` fits the
    annotator best, in which a choice against a large margin weighs more than one against a small
    one. Whoever answers some questions at random, or by another margin, chooses against large ones
    too often for the number of their agreements.

    Args:
        size: Sizes of the margins.
        annotator: Index of the annotator of each choice; whoever chose once is not looked at.
    """
    unit = float(np.median(size[size > 0])) if (size > 0).any() else 1.0
    size, count = size / unit, np.bincount(annotator)
    repeated = np.flatnonzero(count >= 2)
    chance = [expit(strength * size) for strength in _STRENGTHS]
    score, number = (
        np.stack([np.bincount(annotator, weight * p, len(count)) for p in chance], axis=1)
        for weight in (size, np.ones(len(size)))
    )

    def excess(agrees: np.ndarray) -> np.ndarray:
        found = np.zeros(len(agrees))
        scores = np.stack([np.bincount(annotator, size * a, len(count)) for a in agrees])
        numbers = np.stack([np.bincount(annotator, a, len(count)) for a in agrees])
        for k in repeated:
            found += numbers[:, k] - np.interp(scores[:, k], score[k], number[k])
        return found / len(repeated)

    return excess


def owners(choices: Choices) -> Int[np.ndarray, " choices"]:
    """Annotator of each choice; without ids everybody chose once."""
    if choices.annotator is None:
        return np.arange(choices.num_choices)
    return choices.by_choice(choices.annotator)


def rate_groups(
    column: str,
    labels: Sequence[str],
    index: Int[np.ndarray, " choices"],
    observed: Float[np.ndarray, " choices"],
    replicated: np.ndarray,
) -> pd.DataFrame:
    """Observed and replicated agreement of groups.

    Args:
        column: Name of the column that holds the groups.
        labels: Names of the groups.
        index: Group of each choice.
        observed: Agreement of each choice.
        replicated: The same in replications, shape `(replications, choices)`.
    """
    count = np.bincount(index)
    rate = np.bincount(index, observed) / count
    rates = np.stack([np.bincount(index, c, len(count)) / count for c in replicated])
    low, high = np.quantile(rates, [0.05, 0.95], axis=0)
    p_value = [_two_sided(o, r) for o, r in zip(rate, rates.T, strict=True)]
    return pd.DataFrame(
        {"column": column, "group": labels, "choices": count, "agreement": rate,
         "predicted": rates.mean(0), "q05": low, "q95": high, "p_value": p_value}
    )  # fmt: skip


def calibrate_predictions(
    probability: Float[np.ndarray, " choices"],
    happened: np.ndarray,
    replicated: np.ndarray,
) -> CalibrationCurve:
    """Isotonic regression of events on their predicted probabilities.

    Args:
        probability: Predicted probability of an event of each choice, such as that the first
            response is chosen.
        happened: Whether it happened.
        replicated: The same in replications, shape `(replications, choices)`; they make the band.
    """
    order = np.argsort(probability, kind="stable")
    fits = np.stack([_isotonic(events[order]) for events in replicated])
    low, high = np.quantile(fits, [0.05, 0.95], axis=0)
    return CalibrationCurve(probability[order], _isotonic(happened[order]), low, high)


def _isotonic(events: np.ndarray) -> np.ndarray:
    return isotonic_regression(events.astype(float)).x
