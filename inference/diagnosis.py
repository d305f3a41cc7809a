"""Is this preference data heterogeneous, for whom, and how sure are we?

Everything that a verdict rests on: the fits of all families, their predictions of what was left
out, and each explanation other than differences between annotators, with what it does to the
evidence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from mixdpo_pyro.inference.choices import Choices, read_choices
from mixdpo_pyro.inference.fitting import Fit, StrengthDraws
from mixdpo_pyro.inference.loo import (
    LeaveOneOut,
    LooDifference,
    compare_loo,
    leave_one_out,
)
from mixdpo_pyro.inference.outcomes import Ties
from mixdpo_pyro.inference.people.strength_effects import StrengthEffects
from mixdpo_pyro.inference.robustness.checks import (
    LEVEL,
    DiagnosisFits,
    RobustnessCheck,
    check_families,
    check_label_noise,
    check_length,
    check_margin_noise,
    check_normalised,
    check_prediction,
    check_priors,
    check_thresholds,
    check_who_chose,
)
from mixdpo_pyro.inference.robustness.differences import (
    PAIR_ERRORS,
    Differences,
    check_distribution,
    check_nesting,
    check_pair_errors,
    compare_differences,
    known_error,
)
from mixdpo_pyro.inference.robustness.errors.allowed_for import allow_for_errors
from mixdpo_pyro.inference.robustness.errors.pair_errors import PairErrors
from mixdpo_pyro.inference.robustness.scale import anchor_strength, margin_evidence
from mixdpo_pyro.inference.robustness.taste import standardise
from mixdpo_pyro.inference.verdict import ROPE, Verdict, assess_heterogeneity
from mixdpo_pyro.models import Family

__all__ = ["MAX_STRENGTHS", "Diagnosis", "diagnose_choices"]

MAX_STRENGTHS = 2_000_000
"""Draws times annotators that are kept unasked: 16 MB, 1,000 draws of 2,000 annotators."""


@dataclass(frozen=True)
class Diagnosis:
    """The verdict and all that it rests on.

    Attributes:
        verdict: The answer, every check considered.
        error_rate: What the answer's error rate is, in plain English.
        largest_p_value: The largest p-value of equal strengths over the main fit and the checks.
        probability_not_small: The largest posterior probability of cv >= 0.25 over the same.
        result: The main fit.
        fits: All fits by family, the main one included; `"fixed"` has one strength for all.
        loo: Leave-one-out predictions by family.
        differences: Family -> how much better it predicts than one strength for all.
        checks: Explanations other than differences between annotators.
        contraction: How much the data narrowed the priors, see `contraction`.
        margin_p_value: P-value of "the margins say nothing about the choices".
        share_not_positive: Probability of a strength at or below zero under the normal family,
            5%, 50% and 95% posterior quantiles; None where that family was not fitted.
        beside: Strength, care and taste, each beside the others; None where people were not found
            to differ.
        effects: How strength goes with columns; None where none were given.
        errors: Errors of the margins, where they were looked at.
    """

    verdict: Verdict
    error_rate: str
    largest_p_value: float
    probability_not_small: float
    result: Fit
    fits: dict[str, Fit]
    loo: dict[str, LeaveOneOut]
    differences: dict[str, LooDifference]
    checks: list[RobustnessCheck]
    contraction: dict[str, float]
    margin_p_value: float
    share_not_positive: tuple[float, float, float] | None
    beside: Differences | None = None
    effects: StrengthEffects | None = None
    errors: PairErrors | None = None

    @cached_property
    def allowing_for_errors(self) -> Fit:
        """The main fit, with errors of the margins where more than a prior says their size."""
        if self.errors is None or self.errors.source is None:
            return self.result
        return allow_for_errors(self.result, self.errors)

    @property
    def choices(self) -> Choices:
        """The data."""
        return self.result.choices


def diagnose_choices(
    margin: Any,
    *,
    annotator: Sequence[Any] | np.ndarray | None = None,
    choice_set: Sequence[Any] | np.ndarray | None = None,
    rank: Any = None,
    outcome: Any = None,
    ties: Ties = "rao-kupper",
    pair: Sequence[Any] | np.ndarray | None = None,
    response_a: Sequence[Any] | np.ndarray | None = None,
    response_b: Sequence[Any] | np.ndarray | None = None,
    attributes: Mapping[str, Float[np.ndarray, " pairs"]] | None = None,
    groups: Mapping[str, Any] | None = None,
    family: Family = "lognormal",
    families: Sequence[Family] = ("lognormal", "gamma", "normal"),
    length: Float[np.ndarray, " pairs"] | None = None,
    normalised: Float[np.ndarray, " pairs"] | None = None,
    second: Float[np.ndarray, " pairs"] | None = None,
    stratum: np.ndarray | None = None,
    beta: float | None = None,
    num_samples: int = 1000,
    max_units: int = 2000,
    num_permutations: int = 999,
    seed: int = 0,
    thorough: bool = True,
    draw_strengths: bool = False,
) -> Diagnosis:
    """Fit, compare, look for other explanations, and answer.

    The prior of the mean stands around the strength that fits everybody best, since margins of
    another model have another scale; the answer is about cv.

    Heterogeneous needs repeated choices of annotators, equal strengths rejected at 5% by the
    likelihood ratio, by the permutation test of who chose (at 2%), and with every other
    explanation allowed for, and better predictions of annotators held out. Homogeneous needs a 95%
    upper bound of cv below 0.25 in every fit. Anything else is inconclusive.

    Args:
        margin: Margins in nats, chosen minus rejected, shape `(pairs,)`; or checked `Choices`.
        annotator: Annotator ids, one per margin, or None.
        choice_set: Ids of choice sets: rows of one set are one choice, see
            `read_choices`, as for the next three.
        rank: Ranks of the rejected responses in their set.
        outcome: `"win"`, `"tie"` or `"loss"`, or grades.
        ties: Model of ties.
        pair: Ids of what was judged, see `read_choices`, as for the next two. Pairs that several
            people judged say how large the errors of the margins are, and what taste is not.
        response_a: Ids of one response of each row.
        response_b: Ids of the other one.
        attributes: Name -> difference of an attribute, chosen minus rejected, such as a position
            or a count of lists: what people may want besides what the margins say.
        groups: Name -> group of each row, such as a topic, in which people may be nested.
        family: Family that the verdict rests on.
        families: Families that are fitted and compared.
        length: Difference in length, chosen minus rejected, in any unit.
        normalised: Margins of length-normalised log-ratios.
        second: Margins of another policy for the same pairs, for the errors of the first.
        stratum: Strata, such as topics, in which who chose is permuted.
        beta: Median of the mean's prior; default, the one strength that fits best.
        num_samples: Posterior draws.
        max_units: Choices, or annotators, left out one by one; of more, a random subset.
        num_permutations: Permutations of who chose.
        seed: Seed of everything that is drawn.
        thorough: Compare all families, draw annotators' strengths, and look at other explanations
            too where they cannot change the answer.
        draw_strengths: Keep up to 50 million draws of the annotators' strengths, in place of two
            million; more are replaced by mean, sd and quantiles.

    Raises:
        ValueError: If the data or an argument cannot be used; the message says which and why.

    Example:
        >>> from mixdpo_pyro.inference import Design, simulate_choices
        >>> rng = np.random.default_rng(0)
        >>> margin, annotator, _ = simulate_choices(0.1, 0.8, "gamma", Design(60, 20), rng)
        >>> diagnose_choices(margin, annotator=annotator, families=("lognormal",)).verdict.value
        'heterogeneous'
    """
    choices = read_choices(
        margin, annotator, choice_set=choice_set, rank=rank, outcome=outcome, ties=ties,
        pair=pair, response_a=response_a, response_b=response_b,
    )  # fmt: skip
    strata = {} if stratum is None else {"stratum": stratum}
    _check_columns(choices, attributes or {}, {**(groups or {}), **strata})
    median = anchor_strength(choices) if beta is None else beta
    shared = DiagnosisFits(choices, median, seed, num_samples)
    are_few = num_samples * choices.num_annotators <= MAX_STRENGTHS
    strengths: StrengthDraws = True if draw_strengths or are_few else "summary"
    fits = _fit_families(shared, family, families, thorough and strengths)
    result = fits[family]
    compared = fits if thorough else {name: fits[name] for name in (family, "fixed")}
    loo = {name: leave_one_out(each, max_units, seed) for name, each in compared.items()}
    differences = {
        name: compare_loo(each, loo["fixed"]) for name, each in loo.items() if name != "fixed"
    }
    main = assess_heterogeneity(result)
    known = _Known(
        length, normalised, second, stratum, attributes or {}, groups or {}, num_permutations
    )
    checks = [check_prediction(main, differences[family], loo[family], choices)]
    errors = _ErrorsOfMargins(main, result, second)
    for check in _further_checks(main, shared, fits, family, known, errors, thorough):
        if thorough or (main.value != "inconclusive" and checks[-1].status != "contradicts"):
            checks.append(check())
    answer = _Answer.of(result, main).including(checks)
    margin_p_value = margin_evidence(choices)
    verdict = _judge(main, answer, checks, choices, margin_p_value)
    beside = None
    if verdict.value == "heterogeneous":
        if thorough:
            verdict, beside = _find_kind(verdict, main, fits, family, known, checks)
            verdict = _over_distributions(verdict, checks, errors.found)
        else:
            lead = "Annotators differ; in what was not looked at: if in strength,"
            verdict = replace(verdict, reason=f"{lead} {verdict.reason}")
    elif verdict.value == "inconclusive" and thorough and margin_p_value < LEVEL:
        checks.append(check_distribution(main, fits, family, checks))
        verdict = _over_distributions(verdict, checks, errors.found)
    return Diagnosis(
        verdict=verdict,
        error_rate=_error_rate(verdict.value, answer, choices),
        largest_p_value=answer.p_value,
        probability_not_small=answer.probability_not_small,
        result=result,
        fits=fits,
        loo=loo,
        differences=differences,
        checks=checks,
        contraction=result.posterior.contraction(),
        margin_p_value=margin_p_value,
        share_not_positive=_share_not_positive(fits.get("normal")),
        beside=beside,
        errors=errors.found,
    )


def _fit_families(
    shared: DiagnosisFits, family: Family, families: Sequence[Family], strengths: StrengthDraws
) -> dict[str, Fit]:
    """The main family with the strengths of annotators, the others, and one strength for all."""
    fits: dict[str, Fit] = {family: shared.fit(family, draw_strengths=strengths)}
    fits |= {name: shared.fit(name) for name in families if name not in (family, "fixed")}
    fits["fixed"] = shared.fit("fixed")
    return fits


def _find_kind(
    verdict: Verdict,
    main: Verdict,
    fits: dict[str, Fit],
    family: Family,
    known: "_Known",
    checks: list[RobustnessCheck],
) -> tuple[Verdict, Differences]:
    """In what people differ, and cv over distributions; both become checks."""
    result = fits[family]
    found = compare_differences(result, known.wanted, known_error(checks, result.choices))
    checks += [found.check(), check_distribution(main, fits, family, checks)]
    return _with_kind(verdict, found), found


def _check_columns(
    choices: Choices, attributes: Mapping[str, np.ndarray], groups: Mapping[str, Any]
) -> None:
    """Refuse early what would end in an error after all fits."""
    for name, value in (*attributes.items(), *groups.items()):
        if len(value) != choices.num_pairs:
            raise ValueError(
                f"Expected one value of {name!r} per margin ({choices.num_pairs}), "
                f"got {len(value)}"
            )
    for name, value in attributes.items():
        standardise(name, value)


@dataclass(frozen=True)
class _Known:
    """What is known beside margins, ids and choices, and how often people are permuted."""

    length: np.ndarray | None
    normalised: np.ndarray | None
    second: np.ndarray | None
    stratum: np.ndarray | None
    attributes: Mapping[str, np.ndarray]
    groups: Mapping[str, Any]
    num_permutations: int

    @property
    def wanted(self) -> dict[str, np.ndarray]:
        """Attributes that people may want, length among them where it differs."""
        if self.length is None or not np.isfinite(self.length).all() or not np.any(self.length):
            return dict(self.attributes)
        return {**self.attributes, "length": self.length}


def _further_checks(
    main: Verdict,
    shared: DiagnosisFits,
    fits: dict[str, Fit],
    family: Family,
    known: _Known,
    errors: "_ErrorsOfMargins",
    thorough: bool,
) -> list[Callable[[], RobustnessCheck]]:
    """Explanations other than differences between annotators, the cheapest first."""
    result, number, seed = fits[family], known.num_permutations, shared.seed
    checks: list[Callable[[], RobustnessCheck]] = [
        lambda: check_nesting(main, result.choices, known.groups, number, seed),
        lambda: check_who_chose(main, result.choices, known.stratum, number, seed),
        lambda: check_priors(main, result),
        lambda: check_families(main, fits, family),
        lambda: check_length(main, shared, family, known.length),
        lambda: check_normalised(main, shared, family, known.normalised),
        lambda: check_margin_noise(main, shared, family, known.second),
        lambda: check_label_noise(main, result),
    ]
    outcomes = result.choices.outcomes
    if outcomes is not None and not outcomes.are_sets:
        checks.insert(1, lambda: check_thresholds(main, result))
    if thorough or result.choices.pair is not None or known.second is not None:
        checks.append(errors)
    return checks


@dataclass
class _ErrorsOfMargins:
    """The check of errors of the margins, which keeps what it found."""

    main: Verdict
    result: Fit
    second: np.ndarray | None
    found: PairErrors | None = None

    def __call__(self) -> RobustnessCheck:
        check, self.found = check_pair_errors(self.main, self.result, self.second)
        return check


@dataclass(frozen=True)
class _Answer:
    """The weakest evidence over all fits: for differences, and for equality."""

    p_value: float
    lower: float
    upper: float
    probability_not_small: float

    @classmethod
    def of(cls, result: Fit, verdict: Verdict) -> "_Answer":
        cv = result.posterior.cv
        return cls(verdict.p_value, *verdict.cv_interval, float((cv >= ROPE).mean()))

    def including(self, checks: Sequence[RobustnessCheck]) -> "_Answer":
        p_values = [c.p_value for c in checks if c.p_value is not None]
        lowers = [c.cv_interval[0] for c in checks if c.cv_interval is not None]
        uppers = [c.cv_interval[1] for c in checks if c.cv_interval is not None]
        probabilities = [c.numbers.get("probability_not_small", 0.0) for c in checks]
        return _Answer(
            max([self.p_value, *p_values]),
            min([self.lower, *lowers]),
            max([self.upper, *uppers]),
            max([self.probability_not_small, *probabilities]),
        )


def _judge(
    main: Verdict,
    answer: _Answer,
    checks: Sequence[RobustnessCheck],
    choices: Choices,
    margin_p_value: float,
) -> Verdict:
    against = [c for c in checks if c.status == "contradicts"]
    value: Literal["heterogeneous", "homogeneous", "inconclusive"] = "inconclusive"
    low, high = main.cv_interval
    interval = f"cv is between {low:.2f} and {high:.2f} (90%)"
    if margin_p_value >= LEVEL:
        reason = (
            f"The margins do not predict the choices (p = {margin_p_value:.2g}), and a strength "
            "is relative to margins that do."
        )
    elif main.value == "homogeneous" and answer.upper < ROPE:
        value = "homogeneous"
        reason = (
            f"Strengths differ little, if at all: {interval}, and below {answer.upper:.2f} with "
            f"the explanations that were checked allowed for.{_taken_as_exact(checks)}"
        )
    elif main.value == "heterogeneous" and not against:
        value = "heterogeneous"
        reason = (
            f"{interval}, or between {answer.lower:.2f} and {answer.upper:.2f} with other "
            f"explanations allowed for, p <= {answer.p_value:.2g} against equal strengths."
        )
    elif main.value == "inconclusive" or not against:
        reason = main.reason
    else:
        would = "would differ" if main.value == "heterogeneous" else "look equal"
        reason = f"Strengths {would} ({interval}), but {_lower_first(against[0].sentence)}"
    return Verdict(value, main.cv_interval, main.likelihood_ratio, main.p_value, reason)


def _taken_as_exact(checks: Sequence[RobustnessCheck]) -> str:
    """What no pair that several annotators judged could show."""
    if any(c.name == PAIR_ERRORS and c.cv_interval is not None for c in checks):
        return ""
    return " The margins are taken as free of errors, which hide differences."


_KINDS = {
    "strength": "Annotators differ in strength, beyond what differences in care{taste}",
    "taste": "Annotators differ in taste, and not shown in strength",
    "care": "Annotators differ in care: some answer at random, and the others are not shown to "
    "differ in strength",
    "undetermined": "Annotators differ, and these data do not say whether in strength, in taste "
    "or in care; attributes of responses, or several people who judge the same pairs, may tell",
}


_IN_CAMPS = (
    "Annotators differ in taste, since those who agreed on some pairs agree on others too; "
    "whether they differ in strength or in care besides, these data do not say"
)


def _with_kind(verdict: Verdict, differences: Differences) -> Verdict:
    """The verdict with the kind of the differences, its name first."""
    kind = differences.kind
    taste = " and in the tastes that were given explain"
    if differences.taste is None:
        camps = "no camps of different taste are seen; no attributes were given"
        looked_at = "tastes were not looked at" if differences.shared_taste is None else camps
        taste = f" explain ({looked_at})"
    lead = _KINDS[kind].format(taste=taste)
    if kind == "undetermined" and differences.has_camps:
        lead = _IN_CAMPS
    condition = "" if kind == "strength" else "if in strength, "
    return replace(verdict, kind=kind, reason=f"{lead}: {condition}{verdict.reason}")


def _over_distributions(
    verdict: Verdict, checks: Sequence[RobustnessCheck], errors: PairErrors | None
) -> Verdict:
    """The verdict with cv over distributions, which the last check looked at, and over errors."""
    numbers = checks[-1].numbers
    if "cv, 5%" not in numbers:
        return verdict
    low, high = interval = numbers["cv, 5%"], numbers["cv, 95%"]
    allowed = more = ""
    if errors is None:
        more = ", or larger where margins have errors"
    elif errors.source is None:
        below, above = errors.cv_interval
        interval = min(low, below), max(high, above)
        more = (
            " if margins are exact; if they may have errors, whose size only the shape of the "
            f"likelihood and a prior say, between {interval[0]:.2f} and {interval[1]:.2f}"
        )
    else:
        allowed = ", with the errors of the margins allowed for, which attenuate it"
        if errors.source == "second policy":
            more = ", or larger, since errors that both policies share do not show"
    words = (
        f"Over all distributions that explain the choices about as well{allowed}, cv is between "
        f"{low:.2f} and {high:.2f}{more}."
    )
    return replace(verdict, cv_interval=interval, reason=f"{verdict.reason} {words}")


def _error_rate(value: str, answer: _Answer, choices: Choices) -> str:
    if value == "heterogeneous":
        return (
            "Annotators who are alike are called heterogeneous at most 5 times in 100: each "
            "of several tests has to reject at 5%, the permutation test at 2%; here the largest p "
            f"is {answer.p_value:.2g}.{_not_measured(choices)}"
        )
    if value == "homogeneous":
        return (
            f"The probability that cv is {ROPE} or more, given these data, is "
            f"{answer.probability_not_small:.2g} at most, over all fits; below 0.05 is required."
        )
    reached = answer.p_value < LEVEL or answer.probability_not_small < LEVEL
    lead = "No answer is given" if reached else "Neither answer reaches its bound"
    return (
        f"{lead}: the largest p against equal strengths is {answer.p_value:.2g} and the "
        f"probability that cv is {ROPE} or more is "
        f"{answer.probability_not_small:.2g}; an answer needs one of them below 0.05."
    )


def _not_measured(choices: Choices) -> str:
    """Where the error rate is that of the tests' levels, but was not measured."""
    if choices.outcomes is None:
        return ""
    if choices.outcomes.are_sets:
        return (
            " In simulations of the best of four, 5 of 200 datasets of 150 alike annotators with "
            "10 choices each were called heterogeneous; rankings were not simulated."
        )
    return (
        " This rate was measured for pairs; of 100 simulated sets of ties and grades by equally "
        "strong annotators who draw the lines at different places, none was called heterogeneous."
    )


def _share_not_positive(result: Fit | None) -> tuple[float, float, float] | None:
    if result is None:
        return None
    low, middle, high = np.quantile(ndtr(-1 / result.posterior.cv), [0.05, 0.5, 0.95])
    return float(low), float(middle), float(high)


def _lower_first(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
