"""Is this preference data heterogeneous, for whom, and how sure are we?

Everything that a verdict rests on: the fits of all families, their predictions of what was left
out, and each explanation other than differences between people, with what it does to the evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from mixdpo_pyro.inference.choices import Choices, read_choices
from mixdpo_pyro.inference.criticism import HOMOGENEOUS_BELOW, Verdict, assess_heterogeneity
from mixdpo_pyro.inference.explanations import (
    PermutationTest,
    anchor_strength,
    compare_priors,
    contraction,
    fit_covariate,
    margin_evidence,
    margin_reliability,
    permute_annotators,
    profile_label_noise,
)
from mixdpo_pyro.inference.fit import Fit, fit
from mixdpo_pyro.inference.laplace import LogJoint, explore, maximise
from mixdpo_pyro.inference.likelihood import likelihood
from mixdpo_pyro.inference.loo import (
    LeaveOneOut,
    LooDifference,
    compare_loo,
    draw_equal_strength,
    leave_one_out,
    people_of,
)
from mixdpo_pyro.models import Family

__all__ = ["Check", "Diagnosis", "diagnose_choices"]

_LEVEL = 0.05

_WHO_LEVEL = 0.02
"""Level of the permutation test, which alone stands where the link is not logistic."""

_MAX_PEOPLE = 2000
"""People whose choices tell label noise from differences; of more, the first of a random order."""

CheckStatus = Literal["stands", "contradicts", "not checked", "information"]


@dataclass(frozen=True)
class Check:
    """One explanation other than differences between people, and what it does to the evidence.

    Attributes:
        name: The explanation.
        sentence: What was found, in plain English.
        status: Whether the answer of the main fit stands, is contradicted, could not be checked,
            or is information only.
        p_value: P-value of equal strengths with the explanation allowed for, if there is one.
        cv_interval: 5% and 95% quantiles of cv with the explanation allowed for, if there are.
        numbers: What else was measured.
    """

    name: str
    sentence: str
    status: CheckStatus
    p_value: float | None = None
    cv_interval: tuple[float, float] | None = None
    numbers: dict[str, float] = field(default_factory=dict)


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
        checks: Explanations other than differences between people.
        contraction: How much the data narrowed the priors, see `contraction`.
        margin_p_value: P-value of "the margins say nothing about the choices".
        share_not_positive: Probability of a strength at or below zero under the normal family,
            5%, 50% and 95% posterior quantiles; None where that family was not fitted.
    """

    verdict: Verdict
    error_rate: str
    largest_p_value: float
    probability_not_small: float
    result: Fit
    fits: dict[str, Fit]
    loo: dict[str, LeaveOneOut]
    differences: dict[str, LooDifference]
    checks: list[Check]
    contraction: dict[str, float]
    margin_p_value: float
    share_not_positive: tuple[float, float, float] | None

    @property
    def choices(self) -> Choices:
        """The data."""
        return self.result.choices


def diagnose_choices(
    margins: Any,
    annotator: Sequence[Any] | np.ndarray | None = None,
    family: Family = "lognormal",
    families: Sequence[Family] = ("lognormal", "gamma", "normal"),
    *,
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
) -> Diagnosis:
    """Fit, compare, look for other explanations, and answer.

    The prior of the mean stands around the strength that fits everybody best, since margins of
    another model have another scale; the answer is about cv.

    Heterogeneous needs repeated choices of people, equal strengths rejected at 5% by the
    likelihood ratio, by the permutation test of who chose (at 2%), and with every other
    explanation allowed for, and better predictions of people left out. Homogeneous needs a 95%
    upper bound of cv below 0.25 in every fit. Anything else is inconclusive.

    Args:
        margins: Margins in nats, chosen minus rejected, shape `(pairs,)`.
        annotator: Annotator ids, one per margin, or None.
        family: The law that the verdict rests on.
        families: Laws that are fitted and compared.
        length: Difference in length, chosen minus rejected, in any unit.
        normalised: Margins of length-normalised log-ratios.
        second: Margins of another policy for the same pairs, for the errors of the first.
        stratum: Strata, such as topics, in which who chose is permuted.
        beta: Median of the mean's prior; default, the one strength that fits best.
        num_samples: Posterior draws.
        max_units: Pairs, or people, left out one by one; of more, a random subset.
        num_permutations: Permutations of who chose.
        seed: Seed of everything that is drawn.
        thorough: Compare all families, draw annotators' strengths, and look at other explanations
            too where they cannot change the answer.

    Raises:
        ValueError: If the data or an argument cannot be used; the message says which and why.

    Example:
        >>> from mixdpo_pyro.inference import Design, simulate_choices
        >>> rng = np.random.default_rng(0)
        >>> margin, person, _ = simulate_choices(0.1, 0.8, "gamma", Design(60, 20), rng)
        >>> diagnose_choices(margin, person, families=("lognormal",)).verdict.value
        'heterogeneous'
    """
    choices = read_choices(margins, annotator)
    median = anchor_strength(choices) if beta is None else beta
    problem = _Problem(choices, median, seed, num_samples)
    result = problem.fit_with_strengths(family) if thorough else problem.fit(family)
    fits: dict[str, Fit] = {family: result}
    fits |= {name: problem.fit(name) for name in families if name not in (family, "fixed")}
    fits["fixed"] = draw_equal_strength(result, seed)
    compared = fits if thorough else {name: fits[name] for name in (family, "fixed")}
    loo = {name: leave_one_out(each, max_units, seed) for name, each in compared.items()}
    differences = {
        name: compare_loo(each, loo["fixed"]) for name, each in loo.items() if name != "fixed"
    }
    main = assess_heterogeneity(result)
    checks = [_check_prediction(main, differences[family], loo[family], choices)]
    further = (
        lambda: _check_who_chose(main, choices, stratum, num_permutations, seed),
        lambda: _check_priors(main, result),
        lambda: _check_families(main, fits, family),
        lambda: _check_length(main, problem, family, length),
        lambda: _check_normalised(main, problem, family, normalised),
        lambda: _check_margin_noise(main, problem, family, second),
        lambda: _check_label_noise(main, result),
    )
    for check in further:
        if thorough or (main.value != "inconclusive" and checks[-1].status != "contradicts"):
            checks.append(check())
    answer = _Answer.of(result, main).including(checks)
    margin_p_value = margin_evidence(choices)
    verdict = _judge(main, answer, checks, choices, margin_p_value)
    return Diagnosis(
        verdict=verdict,
        error_rate=_error_rate(verdict.value, answer),
        largest_p_value=answer.p_value,
        probability_not_small=answer.probability_not_small,
        result=result,
        fits=fits,
        loo=loo,
        differences=differences,
        checks=checks,
        contraction=contraction(result.posterior, result.mean),
        margin_p_value=margin_p_value,
        share_not_positive=_share_not_positive(fits.get("normal")),
    )


@dataclass(frozen=True)
class _Problem:
    """What every fit of one diagnosis shares."""

    choices: Choices
    beta: float
    seed: int
    num_samples: int

    def fit(self, family: Family, margin: np.ndarray | None = None) -> Fit:
        """Fit these choices, or other margins of the same choices with a prior of their own.

        As :func:`fit`, without strengths of annotators, which a verdict does not need.
        """
        choices, beta = self.choices, self.beta
        if margin is not None:
            choices = Choices(margin, choices.annotator, choices.labels)
            beta = anchor_strength(choices)
        joint = LogJoint(likelihood(choices, family), "prior", beta)
        maximum, null = maximise(joint)
        return Fit(
            posterior=explore(joint).draw(self.num_samples, np.random.default_rng(self.seed)),
            choices=choices,
            family=family,
            mean="prior",
            beta=beta,
            method="laplace",
            flip_probability=0.0,
            seed=self.seed,
            maximum=maximum,
            null=null,
        )

    def fit_with_strengths(self, family: Family) -> Fit:
        """The same draws, and strengths of annotators."""
        choices = self.choices
        ids = None if choices.annotator is None else np.array(choices.labels)[choices.annotator]
        return fit(
            choices.margin, ids, family, beta=self.beta, seed=self.seed,
            num_samples=self.num_samples,
        )  # fmt: skip


@dataclass(frozen=True)
class _Answer:
    """The weakest evidence over all fits: for differences, and for equality."""

    p_value: float
    lower: float
    upper: float
    probability_not_small: float

    @classmethod
    def of(cls, result: Fit, verdict: Verdict) -> "_Answer":
        cv = result.posterior["cv"]
        return cls(verdict.p_value, *verdict.cv_interval, float((cv >= HOMOGENEOUS_BELOW).mean()))

    def including(self, checks: Sequence[Check]) -> "_Answer":
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
    checks: Sequence[Check],
    choices: Choices,
    margin_p_value: float,
) -> Verdict:
    against = [c for c in checks if c.status == "contradicts"]
    value: Literal["heterogeneous", "homogeneous", "inconclusive"] = "inconclusive"
    low, high = main.cv_interval
    interval = f"cv is between {low:.2f} and {high:.2f} (90%)"
    if margin_p_value >= _LEVEL:
        reason = (
            f"The margins do not predict the choices (p = {margin_p_value:.2g}), and a strength "
            "is relative to margins that do."
        )
    elif main.value == "homogeneous" and answer.upper < HOMOGENEOUS_BELOW:
        value = "homogeneous"
        reason = (
            f"Strengths differ little, if at all: {interval}, and below {answer.upper:.2f} with "
            "every other explanation allowed for."
        )
    elif main.value == "heterogeneous" and not against:
        value = "heterogeneous"
        reason = (
            f"People differ in strength: {interval}, or between {answer.lower:.2f} and "
            f"{answer.upper:.2f} with other explanations allowed for, p <= {answer.p_value:.2g} "
            "against equal strengths; no explanation that was checked removes this."
        )
    elif main.value == "inconclusive" or not against:
        reason = main.reason
    else:
        would = "would differ" if main.value == "heterogeneous" else "look equal"
        reason = f"Strengths {would} ({interval}), but {_lower_first(against[0].sentence)}"
    return Verdict(value, main.cv_interval, main.likelihood_ratio, main.p_value, reason)


def _error_rate(value: str, answer: _Answer) -> str:
    if value == "heterogeneous":
        return (
            "Data of people who are alike are called heterogeneous at most 5 times in 100: each "
            "of several tests has to reject at 5%, that of who chose at 2%; here the largest p is "
            f"{answer.p_value:.2g}."
        )
    if value == "homogeneous":
        return (
            f"The probability that cv is {HOMOGENEOUS_BELOW} or more, given these data, is "
            f"{answer.probability_not_small:.2g} at most, over all fits; below 0.05 is required."
        )
    reached = answer.p_value < _LEVEL or answer.probability_not_small < _LEVEL
    lead = "No answer is given" if reached else "Neither answer reaches its bound"
    return (
        f"{lead}: the largest p against equal strengths is {answer.p_value:.2g} and the "
        f"probability that cv is {HOMOGENEOUS_BELOW} or more is "
        f"{answer.probability_not_small:.2g}; an answer needs one of them below 0.05."
    )


# The checks


def _check_prediction(
    main: Verdict, difference: LooDifference, loo: LeaveOneOut, choices: Choices
) -> Check:
    unit = "people" if choices.has_panels else "pairs"
    sentence = (
        f"Different strengths predict {unit} left out better than one strength by "
        f"{difference.elpd:.1f} nats (se {difference.se:.1f})."
    )
    if difference.elpd <= 0:
        sentence = (
            f"One strength predicts {unit} left out as well as different ones: the difference is "
            f"{difference.elpd:.1f} nats (se {difference.se:.1f})."
        )
    if not loo.is_reliable:
        sentence += f" The estimate is unreliable (Pareto k = {loo.worst_k:.2f})."
    return Check(
        "prediction of what was left out",
        sentence,
        _evidence_status(main, difference.elpd > 0),
        numbers={"elpd_difference": difference.elpd, "se": difference.se},
    )


def _check_who_chose(
    main: Verdict,
    choices: Choices,
    stratum: np.ndarray | None,
    num_permutations: int,
    seed: int,
) -> Check:
    name = "another link, label noise or errors in the margins, whatever their form"
    if not choices.has_panels:
        return Check(
            name,
            "Without repeated choices per annotator, people cannot be told from the link: give "
            "annotator ids.",
            "not checked",
        )
    test = permute_annotators(choices, stratum, num_permutations, seed)
    stands = test.p_value < _WHO_LEVEL
    sentence = (
        f"Given the size of the margin it {'matters' if stands else 'does not show'} who chose: "
        f"people's agreement spreads {_excess(test)} (p = {test.p_value:.2g}, "
        f"{test.num_permutations} permutations)."
    )
    numbers = {
        "statistic": test.statistic, "null_mean": test.null_mean, "null_sd": test.null_sd
    }  # fmt: skip
    return Check(name, sentence, _evidence_status(main, stands), test.p_value, numbers=numbers)


def _excess(test: PermutationTest) -> str:
    if test.null_sd == 0:
        return "as it would by chance"
    z = (test.statistic - test.null_mean) / test.null_sd
    return f"{abs(z):.1f} standard deviations {'more' if z > 0 else 'less'} than by chance"


def _check_label_noise(main: Verdict, result: Fit) -> Check:
    noise = profile_label_noise(replace(result, choices=_some_people(result.choices)))
    low, high = noise.cv_interval
    flip_low, flip_high = noise.flip_interval
    sentence = (
        f"With flipped labels estimated too ({100 * flip_low:.1f} to {100 * flip_high:.1f}% of "
        f"them, 90%; likeliest {100 * noise.flip_probability:.1f}%), cv is between {low:.2f} and "
        f"{high:.2f}, p = {noise.p_value:.2g} against equal strengths."
    )
    if result.choices.num_annotators > _MAX_PEOPLE:
        sentence += f" (From {_MAX_PEOPLE:,} people drawn at random.)"
    return Check(
        "label noise",
        sentence,
        _status(main, noise.p_value, high),
        noise.p_value,
        noise.cv_interval,
        {"flip_probability": noise.flip_probability, "likelihood_ratio": noise.likelihood_ratio},
    )


def _some_people(choices: Choices, seed: int = 0) -> Choices:
    """All choices of at most `_MAX_PEOPLE` random people; pairs without people as they are."""
    if not choices.has_panels or choices.num_annotators <= _MAX_PEOPLE:
        return choices
    order = np.random.default_rng((seed, 13)).permutation(choices.num_annotators)
    return people_of(choices, np.sort(order[:_MAX_PEOPLE]))


def _check_priors(main: Verdict, result: Fit) -> Check:
    answers = compare_priors(result)
    low = min(answers, key=lambda a: a.cv_interval[1])
    high = max(answers, key=lambda a: a.cv_interval[1])
    sentence = (
        f"Over {len(answers)} priors the 95% bound of cv moves from {low.cv_interval[1]:.2f} "
        f"({low.name}) to {high.cv_interval[1]:.2f} ({high.name})."
    )
    interval = (min(a.cv_interval[0] for a in answers), high.cv_interval[1])
    return Check(
        "the prior",
        sentence,
        _status(main, 0.0, interval[1]),
        cv_interval=interval,
        numbers={
            "probability_not_small": max(1 - a.probability_small for a in answers),
            **{f"upper bound, {a.name}": a.cv_interval[1] for a in answers},
        },
    )


def _check_families(main: Verdict, fits: dict[str, Fit], family: str) -> Check:
    """The verdict under the other positive families; the weakest of them counts."""
    others = {
        name: assess_heterogeneity(each)
        for name, each in fits.items()
        if name not in (family, "fixed", "normal")
    }
    if not others:
        return Check("the law of the strength", "Only one law was fitted.", "not checked")
    parts = [
        f"{name}: cv between {v.cv_interval[0]:.2f} and {v.cv_interval[1]:.2f}, "
        f"p = {v.p_value:.2g}"
        for name, v in others.items()
    ]
    p_value = max(v.p_value for v in others.values())
    weakest = max(others.values(), key=lambda v: v.cv_interval[1])
    return Check(
        "the law of the strength",
        f"Under another law, {'; '.join(parts)}.",
        _status(main, p_value, weakest.cv_interval[1]),
        p_value,
        weakest.cv_interval,
    )


def _check_length(
    main: Verdict, problem: _Problem, family: Family, length: np.ndarray | None
) -> Check:
    name = "length"
    if length is None:
        sentence = "The data have no columns chosen_tokens and rejected_tokens."
        return Check(name, sentence, "not checked")
    try:
        covariate = fit_covariate(problem.choices, length)
    except ValueError as error:
        return Check(name, f"{error}.", "not checked")
    adjusted = problem.fit(family, covariate.adjusted)
    check = _refitted(main, name, adjusted)
    sentence = (
        f"Beside the margin, length has a coefficient of {covariate.coefficient:.3g} per unit "
        f"(z = {covariate.z:.1f}); with its effect taken into the margins, {check.sentence}"
    )
    numbers = {"coefficient": covariate.coefficient, "z": covariate.z, **check.numbers}
    return Check(name, sentence, check.status, check.p_value, check.cv_interval, numbers)


def _check_normalised(
    main: Verdict, problem: _Problem, family: Family, normalised: np.ndarray | None
) -> Check:
    name = "length normalisation"
    if normalised is None:
        sentence = "This needs log-probabilities and numbers of tokens."
        return Check(name, sentence, "not checked")
    check = _refitted(main, name, problem.fit(family, normalised))
    return replace(check, sentence=f"With log-ratios per token, {check.sentence}")


def _check_margin_noise(
    main: Verdict, problem: _Problem, family: Family, second: np.ndarray | None
) -> Check:
    name = "errors in the margins"
    if second is None:
        sentence = "Give the margins of a second policy for the same pairs."
        return Check(name, sentence, "not checked")
    first = problem.choices.margin
    reliability = margin_reliability(first, second)
    numbers = {"reliability": reliability}
    if reliability <= 0:
        sentence = f"The two policies' margins do not agree (correlation {reliability:.2f})."
        return Check(name, sentence, "contradicts", 1.0, numbers=numbers)
    average = first / np.sqrt(first @ first) + second / np.sqrt(second @ second)
    check = _refitted(main, name, problem.fit(family, average))
    sentence = (
        f"The two policies' margins correlate with {reliability:.2f}, so that about "
        f"{100 * (1 - reliability):.0f}% of the variance of one is error; with their average, "
        f"which has half of it, {check.sentence}"
    )
    numbers |= check.numbers
    return Check(name, sentence, check.status, check.p_value, check.cv_interval, numbers)


def _refitted(main: Verdict, name: str, refit: Fit) -> Check:
    verdict = assess_heterogeneity(refit)
    low, high = verdict.cv_interval
    return Check(
        name,
        f"cv is between {low:.2f} and {high:.2f}, p = {verdict.p_value:.2g}.",
        _status(main, verdict.p_value, high),
        verdict.p_value,
        verdict.cv_interval,
        {"probability_not_small": float((refit.posterior["cv"] >= HOMOGENEOUS_BELOW).mean())},
    )


def _status(main: Verdict, p_value: float, upper: float) -> CheckStatus:
    """Whether the main fit's answer stands with this p-value and upper bound of cv."""
    if main.value == "homogeneous":
        return "stands" if upper < HOMOGENEOUS_BELOW else "contradicts"
    return _evidence_status(main, p_value < _LEVEL)


def _evidence_status(main: Verdict, differ: bool) -> CheckStatus:
    """What further evidence for differences, or its lack, means for the main fit's answer."""
    if main.value != "heterogeneous":
        return "information"
    return "stands" if differ else "contradicts"


def _share_not_positive(result: Fit | None) -> tuple[float, float, float] | None:
    if result is None:
        return None
    low, middle, high = np.quantile(ndtr(-1 / result.posterior["cv"]), [0.05, 0.5, 0.95])
    return float(low), float(middle), float(high)


def _lower_first(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
