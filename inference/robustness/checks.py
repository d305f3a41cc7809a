"""Explanations other than differences between annotators, and what each does to the evidence."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from mixdpo_pyro.inference.choices import (
    Choices,
    random_people,
    select_annotators,
    with_margins,
)
from mixdpo_pyro.inference.fitting import Fit, StrengthDraws, fit
from mixdpo_pyro.inference.loo import LeaveOneOut, LooDifference
from mixdpo_pyro.inference.robustness.covariates import fit_covariate, margin_reliability
from mixdpo_pyro.inference.robustness.label_noise import profile_label_noise
from mixdpo_pyro.inference.robustness.own_thresholds import fit_own_thresholds, reduce_grades
from mixdpo_pyro.inference.robustness.permutation import PermutationTest, permute_annotators
from mixdpo_pyro.inference.robustness.priors import compare_priors
from mixdpo_pyro.inference.robustness.scale import anchor_strength
from mixdpo_pyro.inference.verdict import ROPE, Verdict, assess_heterogeneity
from mixdpo_pyro.models import Family

__all__ = [
    "LEVEL",
    "PREDICTION",
    "DiagnosisFits",
    "RobustnessCheck",
    "RobustnessStatus",
    "check_families",
    "check_label_noise",
    "check_length",
    "check_margin_noise",
    "check_normalised",
    "check_prediction",
    "check_priors",
    "check_thresholds",
    "check_who_chose",
    "evidence_status",
    "some_people",
]

LEVEL = 0.05

PREDICTION = "prediction of left-out choices"
"""Name of the check of how well choices are predicted that were left out."""

_WHO_LEVEL = 0.02
"""Level of the permutation test, which alone stands where the link is not logistic."""

_COMPARED = 0.2
"""Share of the choices that have to be comparable with those of other people."""

_MAX_ANNOTATORS = 2000
"""Annotators whose choices tell label noise from differences; of more, a random subset."""


_MAX_JUDGEMENTS = 10_000
"""Judgements from which differences of thresholds are told from those of strengths."""


class RobustnessStatus(StrEnum):
    """What an explanation does to the answer of the main fit."""

    STANDS = "stands"
    CONTRADICTS = "contradicts"
    NOT_CHECKED = "not checked"
    INFORMATION = "information"


@dataclass(frozen=True)
class RobustnessCheck:
    """One explanation other than differences between annotators, and what it does to the evidence.

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
    status: RobustnessStatus
    p_value: float | None = None
    cv_interval: tuple[float, float] | None = None
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DiagnosisFits:
    """What every fit of one diagnosis shares."""

    choices: Choices
    beta: float
    seed: int
    num_samples: int

    def fit(
        self,
        family: Family,
        margin: np.ndarray | None = None,
        draw_strengths: StrengthDraws = False,
    ) -> Fit:
        """Fit these choices, or other margins of the same choices with a prior of their own."""
        choices, beta = self.choices, self.beta
        if margin is not None:
            choices = with_margins(choices, margin)
            beta = anchor_strength(choices)
        return fit(
            choices, family=family, beta=beta, seed=self.seed, num_samples=self.num_samples,
            draw_strengths=draw_strengths,
        )  # fmt: skip


def check_prediction(
    main: Verdict, difference: LooDifference, loo: LeaveOneOut, choices: Choices
) -> RobustnessCheck:
    """Do different strengths predict left-out units better than one strength?"""
    unit = "annotators" if choices.has_panels else "choices"
    sentence = (
        f"Different strengths predict left-out {unit} better than one strength by "
        f"{difference.elpd:.1f} nats (se {difference.se:.1f})."
    )
    if difference.elpd <= 0:
        sentence = (
            f"One strength predicts left-out {unit} as well as different ones: the difference is "
            f"{difference.elpd:.1f} nats (se {difference.se:.1f})."
        )
    if not loo.is_reliable:
        sentence += f" The estimate is unreliable (Pareto k = {loo.worst_k:.2f})."
    return RobustnessCheck(
        PREDICTION,
        sentence,
        evidence_status(main, difference.elpd > 0),
        numbers={
            "elpd_difference": difference.elpd,
            "se": difference.se,
            "is_reliable": float(loo.is_reliable),
        },
    )


def check_who_chose(
    main: Verdict,
    choices: Choices,
    stratum: np.ndarray | None,
    num_permutations: int,
    seed: int,
) -> RobustnessCheck:
    """Does it matter who chose, given the margin?"""
    name = "another link, label noise or errors in the margins, whatever their form"
    if not choices.has_panels:
        advice = "hold out several pairs of each" if choices.labels else "give annotator ids"
        lead = "Without repeated choices per annotator, annotators cannot be told from the link"
        return RobustnessCheck(name, f"{lead}: {advice}.", RobustnessStatus.NOT_CHECKED)
    test = permute_annotators(choices, stratum, num_permutations, seed)
    if test.share_compared < _COMPARED:
        sentence = (
            f"{100 * test.share_compared:.0f}% of the choices can be compared with choices of "
            "other people: within the strata that were given, or with margins of one size, there "
            "are too few. Strata that determine the person leave nothing to compare."
        )
        return RobustnessCheck(name, sentence, evidence_status(main, False))
    stands = test.p_value < _WHO_LEVEL
    given = "Within pairs" if test.share_within_pairs > 0.5 else "Given the size of the margin"
    sentence = (
        f"{given} it {'matters' if stands else 'does not show'} who chose: "
        f"annotators' agreement spreads {_excess(test)} (p = {test.p_value:.2g}, "
        f"{test.num_permutations} permutations)."
    )
    numbers = {
        "statistic": test.statistic, "null_mean": test.null_mean, "null_sd": test.null_sd
    }  # fmt: skip
    return RobustnessCheck(
        name, sentence, evidence_status(main, stands), test.p_value, numbers=numbers
    )


def _excess(test: PermutationTest) -> str:
    if test.null_sd == 0:
        return "as it would by chance"
    z = (test.statistic - test.null_mean) / test.null_sd
    return f"{abs(z):.1f} standard deviations {'more' if z > 0 else 'less'} than by chance"


def check_label_noise(main: Verdict, result: Fit) -> RobustnessCheck:
    """Flipped labels, or careless choices, estimated together with cv."""
    noise = profile_label_noise(replace(result, choices=some_people(result.choices)))
    low, high = noise.cv_interval
    flip_low, flip_high = noise.flip_interval
    are_pairs = result.choices.outcomes is None
    what = "flipped labels" if are_pairs else "careless choices"
    middle = f"{'likeliest' if are_pairs else 'median'} {100 * noise.flip_probability:.1f}%"
    sentence = (
        f"With {what} estimated too ({100 * flip_low:.1f} to {100 * flip_high:.1f}% of "
        f"them, 90%; {middle}), cv is between {low:.2f} and "
        f"{high:.2f}, p = {noise.p_value:.2g} against equal strengths."
    )
    if result.choices.num_annotators > _MAX_ANNOTATORS:
        sentence += f" (From {_MAX_ANNOTATORS:,} annotators drawn at random.)"
    return RobustnessCheck(
        "label noise",
        sentence,
        _status(main, noise.p_value, high),
        noise.p_value,
        noise.cv_interval,
        {"flip_probability": noise.flip_probability, "likelihood_ratio": noise.likelihood_ratio},
    )


def check_thresholds(main: Verdict, result: Fit) -> RobustnessCheck:
    """Ties or grades whose lines annotators draw at different places, the strengths being equal.

    The evidence for different strengths has to stand without the belief that thresholds are
    common; equal strengths are judged with that belief.
    """
    name = "thresholds of annotators' own"
    if not result.choices.has_panels:
        sentence = "Without repeated choices per annotator they cannot be told from strengths."
        return RobustnessCheck(name, sentence, RobustnessStatus.NOT_CHECKED)
    reduced = reduce_grades(result.choices)
    if reduced.outcomes is None:
        return _check_signs(main, name, result, reduced)
    some = some_people(reduced, _MAX_JUDGEMENTS)
    own = fit_own_thresholds(result, some, LEVEL)
    low, high = own.cv_interval
    are_grades = result.choices.outcomes is not reduced.outcomes
    sentence = (
        f"{'With grades taken as win, tie or loss and' if are_grades else 'With'} a threshold of "
        f"ties for each annotator, whose log has a standard deviation of {own.threshold_sd:.2f}, "
        f"cv is between {low:.2f} and {high:.2f}, p = {own.p_value:.2g} against equal strengths."
    )
    if some.num_annotators < reduced.num_annotators:
        sentence += f" (From {some.num_annotators:,} annotators drawn at random.)"
    return RobustnessCheck(
        name,
        sentence,
        evidence_status(main, own.p_value < LEVEL),
        own.p_value,
        own.cv_interval if main.value == "heterogeneous" else None,
        {"threshold_log_sd": own.threshold_sd, "likelihood_ratio": own.likelihood_ratio},
    )


def _check_signs(main: Verdict, name: str, result: Fit, pairs: Choices) -> RobustnessCheck:
    """The same for grades without a tie: which response was preferred, and not how clearly."""
    posterior = result.posterior
    refit = fit(
        pairs, family=posterior.family, mean_anchor=posterior.mean_anchor, beta=posterior.beta,
        seed=posterior.seed, num_samples=posterior.num_samples, draw_strengths=False,
    )  # fmt: skip
    verdict = assess_heterogeneity(refit)
    low, high = verdict.cv_interval
    return RobustnessCheck(
        name,
        f"From the signs of the grades alone, cv is between {low:.2f} and {high:.2f}, "
        f"p = {verdict.p_value:.2g} against equal strengths.",
        evidence_status(main, verdict.p_value < LEVEL),
        verdict.p_value,
        verdict.cv_interval if main.value == "heterogeneous" else None,
    )


def some_people(choices: Choices, max_choices: int | None = None, seed: int = 0) -> Choices:
    """All choices of random annotators: at most `_MAX_ANNOTATORS`, or with that many choices."""
    if not choices.has_panels:
        return choices
    people = random_people(
        choices, np.random.default_rng((seed, 13)), max_people=_MAX_ANNOTATORS,
        max_choices=max_choices,
    )  # fmt: skip
    return choices if people is None else select_annotators(choices, people)


def check_priors(main: Verdict, result: Fit) -> RobustnessCheck:
    """The answer under other priors of cv."""
    answers = compare_priors(result)
    low = min(answers, key=lambda a: a.cv_interval[1])
    high = max(answers, key=lambda a: a.cv_interval[1])
    sentence = (
        f"Over {len(answers)} priors the 95% bound of cv moves from {low.cv_interval[1]:.2f} "
        f"({low.name}) to {high.cv_interval[1]:.2f} ({high.name})."
    )
    interval = (min(a.cv_interval[0] for a in answers), high.cv_interval[1])
    return RobustnessCheck(
        "the prior",
        sentence,
        _status(main, 0.0, interval[1]),
        cv_interval=interval,
        numbers={
            "probability_not_small": max(1 - a.probability_small for a in answers),
            **{f"upper bound, {a.name}": a.cv_interval[1] for a in answers},
        },
    )


def check_families(main: Verdict, fits: dict[str, Fit], family: str) -> RobustnessCheck:
    """The verdict under the other positive families; the weakest of them counts."""
    others = {
        name: assess_heterogeneity(each)
        for name, each in fits.items()
        if name not in (family, "fixed", "normal")
    }
    if not others:
        return RobustnessCheck(
            "the family of the strength",
            "Only one family was fitted.",
            RobustnessStatus.NOT_CHECKED,
        )
    parts = [
        f"{name}: cv between {v.cv_interval[0]:.2f} and {v.cv_interval[1]:.2f}, "
        f"p = {v.p_value:.2g}"
        for name, v in others.items()
    ]
    p_value = max(v.p_value for v in others.values())
    weakest = max(others.values(), key=lambda v: v.cv_interval[1])
    return RobustnessCheck(
        "the family of the strength",
        f"Under another family, {'; '.join(parts)}.",
        _status(main, p_value, weakest.cv_interval[1]),
        p_value,
        weakest.cv_interval,
    )


def check_length(
    main: Verdict, problem: DiagnosisFits, family: Family, length: np.ndarray | None
) -> RobustnessCheck:
    """Length beside the margin."""
    name = "length"
    if length is None:
        sentence = "The data have no columns chosen_tokens and rejected_tokens."
        return RobustnessCheck(name, sentence, RobustnessStatus.NOT_CHECKED)
    try:
        covariate = fit_covariate(problem.choices, length)
    except ValueError as error:
        return RobustnessCheck(name, f"{error}.", RobustnessStatus.NOT_CHECKED)
    adjusted = problem.fit(family, covariate.adjusted)
    check = _refitted(main, name, adjusted)
    sentence = (
        f"Beside the margin, length has a coefficient of {covariate.coefficient:.3g} per unit "
        f"(z = {covariate.z:.1f}); with its effect taken into the margins, {check.sentence}"
    )
    numbers = {"coefficient": covariate.coefficient, "z": covariate.z, **check.numbers}
    return RobustnessCheck(name, sentence, check.status, check.p_value, check.cv_interval, numbers)


def check_normalised(
    main: Verdict, problem: DiagnosisFits, family: Family, normalised: np.ndarray | None
) -> RobustnessCheck:
    """Log-ratios per token in place of sums."""
    name = "length normalisation"
    if normalised is None or not np.isfinite(normalised).any():
        sentence = "This needs log-probabilities and numbers of tokens."
        return RobustnessCheck(name, sentence, RobustnessStatus.NOT_CHECKED)
    check = _refitted(main, name, problem.fit(family, normalised))
    sentence = f"With log-ratios per token, {check.sentence}"
    if empty := int(np.isnan(normalised).sum()):
        sentence += f" ({empty:,} pairs with an empty response, which has none, are dropped here.)"
    return replace(check, sentence=sentence)


def check_margin_noise(
    main: Verdict, problem: DiagnosisFits, family: Family, second: np.ndarray | None
) -> RobustnessCheck:
    """Errors of the margins, by a second policy's margins of the same pairs."""
    name = "errors in the margins"
    if second is None:
        sentence = "Give the margins of a second policy for the same pairs."
        return RobustnessCheck(name, sentence, RobustnessStatus.NOT_CHECKED)
    first = problem.choices.margin
    reliability = margin_reliability(first, second)
    numbers = {"reliability": reliability}
    if reliability <= 0:
        sentence = f"The two policies' margins do not agree (correlation {reliability:.2f})."
        return RobustnessCheck(name, sentence, RobustnessStatus.CONTRADICTS, 1.0, numbers=numbers)
    average = first / np.sqrt(first @ first) + second / np.sqrt(second @ second)
    check = _refitted(main, name, problem.fit(family, average))
    sentence = (
        f"The two policies' margins correlate with {reliability:.2f}, so that at least about "
        f"{100 * (1 - reliability):.0f}% of the variance of one is error (errors that both share "
        f"do not show); with their average, which has half of it, {check.sentence}"
    )
    numbers |= check.numbers
    return RobustnessCheck(name, sentence, check.status, check.p_value, check.cv_interval, numbers)


def _refitted(main: Verdict, name: str, refit: Fit) -> RobustnessCheck:
    verdict = assess_heterogeneity(refit)
    low, high = verdict.cv_interval
    return RobustnessCheck(
        name,
        f"cv is between {low:.2f} and {high:.2f}, p = {verdict.p_value:.2g}.",
        _status(main, verdict.p_value, high),
        verdict.p_value,
        verdict.cv_interval,
        {"probability_not_small": float((refit.posterior.cv >= ROPE).mean())},
    )


def _status(main: Verdict, p_value: float, upper: float) -> RobustnessStatus:
    """Whether the main fit's answer stands with this p-value and upper bound of cv."""
    if main.value == "homogeneous":
        return RobustnessStatus.STANDS if upper < ROPE else RobustnessStatus.CONTRADICTS
    return evidence_status(main, p_value < LEVEL)


def evidence_status(main: Verdict, differ: bool) -> RobustnessStatus:
    """What further evidence for differences, or its lack, means for the main fit's answer."""
    if main.value != "heterogeneous":
        return RobustnessStatus.INFORMATION
    return RobustnessStatus.STANDS if differ else RobustnessStatus.CONTRADICTS
