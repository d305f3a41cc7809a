"""The record of a diagnosis: what was found, as data."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixdpo_pyro.inference.people.strength_effects import StrengthEffects
from mixdpo_pyro.inference.robustness.checks import RobustnessCheck
from mixdpo_pyro.inference.verdict import Verdict
from mixdpo_pyro.reporting.recommendation import Advice

__all__ = ["DiagnosisData", "DiagnosisRecord", "FamilySummary", "Quantiles"]


@dataclass(frozen=True)
class Quantiles:
    """Summary of posterior draws."""

    mean: float | None
    sd: float | None
    q05: float | None
    q50: float | None
    q95: float | None

    @classmethod
    def of(cls, draws: np.ndarray) -> "Quantiles":
        """Summarise draws."""
        low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
        return cls(float(draws.mean()), float(draws.std()), float(low), float(middle), float(high))


@dataclass(frozen=True)
class FamilySummary:
    """The fit of one family and how well it predicts left-out units, in nats.

    Attributes:
        cv: Posterior of cv.
        mean: Posterior of the mean.
        log_likelihood: At its maximum.
        elpd: Expected log predictive density of the units, left out one by one, summed.
        elpd_se: Its standard error.
        effective_parameters: Effective number of parameters.
        worst_k: Largest Pareto shape of the importance ratios.
        units_left_out: Units that were evaluated.
        elpd_gain: Gain over one strength for everybody; None for that family itself.
        elpd_gain_se: Its standard error.
    """

    cv: Quantiles
    mean: Quantiles
    log_likelihood: float | None
    elpd: float | None
    elpd_se: float | None
    effective_parameters: float | None
    worst_k: float | None
    units_left_out: int
    elpd_gain: float | None = None
    elpd_gain_se: float | None = None


@dataclass(frozen=True)
class DiagnosisData:
    """What was diagnosed.

    Attributes:
        source: Name of the file.
        pairs: Number of rows: pairs of the chosen and another response.
        choices: What the choices are, in words.
        counts: How often each outcome was seen, or choices among so many responses; of pairs
            nothing.
        annotators: Number of annotators; None without ids.
        annotator_column: Column of annotator ids, or None.
        has_panels: Whether annotators chose repeatedly.
        groups: Columns of groups.
        agreement: Share of choices that agree with the sign of their margin.
        margin_sd: Root mean square of the margins, in nats.
        margin_p_value: P-value of "the margins say nothing about the choices".
    """

    source: str
    pairs: int
    choices: str
    counts: dict[str, int]
    annotators: int | None
    annotator_column: str | None
    has_panels: bool
    groups: list[str]
    agreement: float
    margin_sd: float
    margin_p_value: float


@dataclass(frozen=True)
class DiagnosisRecord:
    """Content of `diagnosis.json`; see :class:`~mixdpo_pyro.inference.diagnosis.Diagnosis`.

    Attributes:
        verdict: The answer, every check considered.
        error_rate: Its error rate, in plain English.
        largest_p_value: Largest p-value of equal strengths over all fits.
        probability_not_small: Largest posterior probability of a cv above the ROPE.
        data: What was diagnosed.
        notes: What a reader should know about the data, one sentence each.
        families: Family -> its fit and predictions.
        checks: Explanations other than differences between annotators.
        contraction: How much the data narrowed the priors.
        parameters: Thresholds of ties or grades, in units of strength times margin.
        share_not_positive: Share of strengths at or below zero under the normal family.
        effects: How strength goes with the columns of `--strength`; None without any.
        beta: Median of the mean's prior.
        advice: What to do, and what different strengths gain.
        config: Options of the command.
        command: The command line.
    """

    verdict: Verdict
    error_rate: str
    largest_p_value: float
    probability_not_small: float
    data: DiagnosisData
    notes: list[str]
    families: dict[str, FamilySummary]
    checks: list[RobustnessCheck]
    contraction: dict[str, float | None]
    parameters: dict[str, Quantiles]
    share_not_positive: tuple[float, float, float] | None
    effects: StrengthEffects | None
    beta: float
    advice: Advice | None = None
    config: dict[str, Any] = field(default_factory=dict)
    command: str = ""
