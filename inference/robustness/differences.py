"""In what do people differ: strength, taste or care? And can these ids tell?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.robustness.care import (
    Agreement,
    Care,
    LapseRates,
    agreement_beyond_margins,
    compare_care,
)
from mixdpo_pyro.inference.robustness.checks import (
    LEVEL,
    RobustnessCheck,
    RobustnessStatus,
    evidence_status,
    some_people,
)
from mixdpo_pyro.inference.robustness.distributions.nonparametric import (
    NonparametricStrength,
    nonparametric_strength,
)
from mixdpo_pyro.inference.robustness.distributions.two_groups import (
    TwoGroups,
    fit_two_groups,
    information_criterion,
)
from mixdpo_pyro.inference.robustness.errors.pair_errors import (
    PairErrors,
    estimate_pair_errors,
    fit_with_errors,
    margin_scale,
    maximum_with_errors,
)
from mixdpo_pyro.inference.robustness.errors.second_policy import UnrelatedMarginsError
from mixdpo_pyro.inference.robustness.nesting import Nesting, examine_nesting
from mixdpo_pyro.inference.robustness.permutation import permute_annotators
from mixdpo_pyro.inference.robustness.shared_taste import SharedTaste, compare_agreement
from mixdpo_pyro.inference.robustness.taste import Taste, compare_taste
from mixdpo_pyro.inference.verdict import ROPE, Verdict

__all__ = [
    "PAIR_ERRORS",
    "Differences",
    "Kind",
    "check_distribution",
    "check_nesting",
    "check_pair_errors",
    "compare_differences",
    "estimate_lapse_rates",
    "known_error",
]

Kind = Literal["strength", "taste", "care", "undetermined"]

PAIR_ERRORS = "an error of each pair's margin"

_JUDGED = "what each person judged"

_TO_TELL = "to tell, let several people judge the same pairs"

_STRENGTH_LEVEL = 0.02
"""Level at which strength has to differ beside care, and beside taste."""

_OTHER_LEVEL = 0.01
"""Level at which care, or taste, has to differ beside strength."""

_STRONGER = 3
"""How much smaller the log p-value against equal tastes has to be than that against equal
strengths, for tastes to be what differs."""

_BY_ANY_FORM = 8.0
"""Nats by which strengths of any distribution may explain choices better than lapses do where
people are careless: freedom of form gains up to six, two groups of strengths 18 or more."""

_AS_WELL = 2.0
"""Nats within which a distribution predicts about as well as the best one."""

_COMMON = {
    "pairs": "pairs that several people judged, errors",
    "responses": "responses that several people met, in pairs that few had in common, errors, "
    "taken as those of responses,",
}
"""Where the size of errors comes from."""


@dataclass(frozen=True)
class Differences:
    """Strength, care and taste, each beside the others.

    Attributes:
        care: Strength and care.
        taste: Strength and taste, of pairs whose attributes are given.
        agreement: How people who seem careless agree with each other on a pair, of pairs that
            several judged.
        num_drawn: Annotators whose care was looked at, where they are a random part of all.
        margin_error: Standard deviation of the errors of the margins that was allowed for.
        shared_taste: Whether people who agreed with each other agree again, of pairs that several
            judged.
        strength_of_any_form: Nats by which strengths of any distribution explain the choices
            better than lapses and equal strengths; None where lapses and answers by chance are
            not the best explanation so far.
    """

    care: Care
    taste: Taste | None
    agreement: Agreement | None
    num_drawn: int | None = None
    margin_error: float = 0.0
    shared_taste: SharedTaste | None = None
    strength_of_any_form: float | None = None

    @property
    def kind(self) -> Kind:
        """In what people differ, if they do."""
        kind = self._kind_without_camps
        return "undetermined" if self.has_camps and kind != "taste" else kind

    @property
    def has_camps(self) -> bool:
        """Whether people fall into camps of different taste."""
        return self.shared_taste is not None and self.shared_taste.are_seen

    @property
    def _kind_without_camps(self) -> Kind:
        """The same by attributes and care alone."""
        care, taste = self.care, self.taste
        beside_care = care.strength_p_value < _STRENGTH_LEVEL
        if taste is not None and taste.taste_p_value < _OTHER_LEVEL:
            # What is left to strength beside tastes of another shape than normal is small.
            is_taste = taste.taste_p_value < taste.strength_p_value**_STRONGER
            return (
                "taste" if is_taste and taste.taste_p_value < care.care_p_value else "undetermined"
            )
        if beside_care:
            beside_taste = taste is None or taste.strength_p_value < _STRENGTH_LEVEL
            return "strength" if beside_taste else "undetermined"
        gain = self.strength_of_any_form
        return "care" if gain is not None and gain < _BY_ANY_FORM else "undetermined"

    def sentence(self) -> str:
        """What was found, in plain English."""
        care = self.care
        parts = [
            f"Where each annotator has a lapse rate (mean {100 * care.mean_rate:.0f}%), "
            f"p = {care.strength_p_value:.2g} against equal strengths; where strengths "
            f"differ, p = {care.care_p_value:.2g} against no lapses"
        ]
        if self.agreement is not None and self.agreement.is_known:
            how = "perhaps more often than by chance"
            if self.agreement.is_by_chance:
                how = "by chance"
            elif self.agreement.is_beyond_chance:
                how = "more often than by chance"
            parts.append(
                f"annotators who seem careless agree with each other on the same pair {how} "
                f"(correlation {self.agreement.correlation:.2f}, at most "
                f"{self.agreement.upper:.2f})"
            )
        if self.strength_of_any_form is not None:
            gain = self.strength_of_any_form
            parts.append(
                f"strengths of any distribution explain the choices by {abs(gain):.1f} nats "
                f"{'better' if gain > 0 else 'worse'} than lapses ({_BY_ANY_FORM:g} better would "
                "not be for their freedom of form alone)"
            )
        parts += [self._sentence_of_taste(), self._sentence_of_camps()]
        drawn = self.num_drawn
        of = "" if drawn is None else f" (Care is that of {drawn:,} annotators drawn at random.)"
        return "; ".join(parts) + f".{of}"

    def _sentence_of_taste(self) -> str:
        taste = self.taste
        if taste is None:
            return "tastes for attributes were not looked at, which needs pairs and attributes"
        spreads = ", ".join(
            f"{name} {sd:.2g}" for name, sd in zip(taste.attributes, taste.sd, strict=True)
        )
        return (
            f"where each annotator has tastes (sd between annotators: {spreads}), p = "
            f"{taste.strength_p_value:.2g} against equal strengths; where strengths "
            f"differ, p = {taste.taste_p_value:.2g} against equal tastes"
        )

    def _sentence_of_camps(self) -> str:
        camps = self.shared_taste
        if camps is None:
            return (
                "camps of different taste were not looked for, which needs several pairs that the "
                "same people judged"
            )
        if camps.are_seen:
            agree, so = "agree", ", so that tastes differ"
        elif camps.p_value < LEVEL:
            agree, so = "may agree", f"; p < {camps.level:g} would say that tastes differ"
        else:
            agree, so = "do not agree", ""
        return (
            f"annotators who agreed on other pairs {agree} more than one ordering of the "
            f"responses and their strengths explain (p = {camps.p_value:.2g}, {camps.gain:.1f} "
            f"nats over {camps.num_choices:,} choices){so}"
        )

    def check(self) -> RobustnessCheck:
        """The same as a check, which decides the kind and not the value of the verdict."""
        numbers = {
            "strength beside care, p": self.care.strength_p_value,
            "care beside strength, p": self.care.care_p_value,
            "mean lapse rate": self.care.mean_rate,
        }
        if self.agreement is not None:
            numbers["correlation of the careless on the same pair"] = self.agreement.correlation
            numbers["its standard error"] = self.agreement.error
        if self.taste is not None:
            numbers |= {
                "strength beside taste, p": self.taste.strength_p_value,
                "taste beside strength, p": self.taste.taste_p_value,
            }
        if self.shared_taste is not None:
            numbers |= {
                "camps, p": self.shared_taste.p_value,
                "camps, nats gained": self.shared_taste.gain,
            }
        return RobustnessCheck(
            "care and taste", self.sentence(), RobustnessStatus.INFORMATION, numbers=numbers
        )


def compare_differences(
    result: Fit, attributes: Mapping[str, Float[np.ndarray, " pairs"]], margin_error: float = 0.0
) -> Differences:
    """Compare strength with care, and with taste where attributes, or shared pairs, show it.

    Args:
        result: A fit with annotator ids.
        attributes: Name -> difference of the attribute, chosen minus rejected, one per pair.
        margin_error: Standard deviation of the errors of the margins, in nats: those of strong
            people cap their agreement as lapses do.

    Raises:
        ValueError: If an attribute is 0 everywhere, or not finite; the message names it.
    """
    choices, mean = result.choices, result.maximum.mean
    some = some_people(choices)  # a lattice of rates, means and cv for each takes memory
    erring = replace(some, margin_error=margin_error)
    care = compare_care(erring, result.posterior.family, mean)
    taste = None
    if attributes and choices.outcomes is None:
        taste = compare_taste(choices, attributes, mean)
    camps = None
    if choices.outcomes is None and choices.pair is not None:
        at_best = choices, result.maximum
        if margin_error:
            at_best = maximum_with_errors(result, margin_error / margin_scale(choices))
        camps = compare_agreement(*at_best)
    agreement = agreement_beyond_margins(erring, care.rates, result.posterior.family)
    any_form = None
    if _may_be_care(care, agreement):
        free = nonparametric_strength(
            replace(result, choices=erring), max_annotators=some.num_annotators
        )
        any_form = free.log_likelihood - care.log_likelihood
    num_drawn = some.num_annotators if some.num_annotators < choices.num_annotators else None
    return Differences(care, taste, agreement, num_drawn, margin_error, camps, any_form)


def _may_be_care(care: Care, agreement: Agreement | None) -> bool:
    """Whether lapses explain the choices, and those who lapse answer at random."""
    are_random = agreement is not None and agreement.is_by_chance
    is_strength = care.strength_p_value < _STRENGTH_LEVEL
    return are_random and care.care_p_value < _OTHER_LEVEL and not is_strength


def estimate_lapse_rates(
    result: Fit, found: Differences | None = None, margin_error: float = 0.0
) -> LapseRates:
    """How carelessly each annotator chose, whatever people turned out to differ in.

    Args:
        result: A fit with annotator ids.
        found: What was compared already; default, care is compared with strength here.
        margin_error: As for `compare_differences`, where it was not called.
    """
    family = result.posterior.family
    if found is not None:
        rates, margin_error = found.care.rates, found.margin_error
    else:
        some = replace(some_people(result.choices), margin_error=margin_error)
        rates = compare_care(some, family, result.maximum.mean).rates
    if len(rates.careless) == result.choices.num_annotators:
        return rates
    return rates.of_others(replace(result.choices, margin_error=margin_error), family)


def check_nesting(
    main: Verdict,
    choices: Choices,
    groups: Mapping[str, np.ndarray],
    num_permutations: int,
    seed: int,
) -> RobustnessCheck:
    """Can people be told apart from what they judged?"""
    name = _JUDGED
    if not choices.has_panels:
        sentence = f"Everybody chose once, or there are no ids: {_TO_TELL}."
        return RobustnessCheck(name, sentence, RobustnessStatus.NOT_CHECKED)
    nesting = examine_nesting(choices, groups)
    numbers = {
        "share of choices whose response its judge met again": nesting.share_recurring,
        "share of choices with a response that others met": nesting.share_met_by_others,
    }
    if nesting.share_shared is not None:
        numbers["share of choices on pairs that others judged"] = nesting.share_shared
    if nesting.is_nested:
        sentence = (
            f"{100 * nesting.share_recurring:.0f}% of the choices have a response that their "
            "annotator met again, and few of these responses were met by others. An error of such "
            f"a response makes its annotator look strong or weak; {_TO_TELL}."
        )
        return RobustnessCheck(name, sentence, evidence_status(main, False), numbers=numbers)
    share_shared = nesting.share_shared or 0.0
    if share_shared > 0.5:
        sentence = (
            f"{100 * share_shared:.0f}% of the choices are on pairs that others judged "
            "too, so that annotators can be compared pair by pair."
        )
        return RobustnessCheck(name, sentence, evidence_status(main, True), numbers=numbers)
    return _within_groups(main, choices, groups, nesting, numbers, num_permutations, seed)


def _within_groups(
    main: Verdict,
    choices: Choices,
    groups: Mapping[str, np.ndarray],
    nesting: Nesting,
    numbers: dict[str, float],
    num_permutations: int,
    seed: int,
) -> RobustnessCheck:
    """Do people differ from others of their group, where everybody stands in one?"""
    name = _JUDGED
    p_values = {
        group: permute_annotators(choices, groups[group], num_permutations, seed).p_value
        for group in nesting.groups
    }
    if p_values and max(p_values.values()) >= _STRENGTH_LEVEL:
        group = max(p_values, key=lambda each: p_values[each])
        sentence = (
            f"Every annotator judged one {group} only, and within a {group} they do not show "
            f"differences (p = {p_values[group]:.2g}). Differences between annotators cannot be "
            f"told from differences between the margins of each {group}; {_TO_TELL}."
        )
        return RobustnessCheck(
            name, sentence, evidence_status(main, False), p_values[group], numbers=numbers
        )
    if p_values:
        sentence = f"Annotators differ within {', '.join(p_values)}, in which they are nested."
    elif choices.pair is None:
        sentence = "The data do not say which pairs were judged by several people (column pair)."
    else:
        sentence = f"Few pairs were judged by several people; {_TO_TELL}."
    return RobustnessCheck(name, sentence, RobustnessStatus.INFORMATION, numbers=numbers)


def check_distribution(
    main: Verdict, fits: Mapping[str, Fit], family: str, checks: Sequence[RobustnessCheck] = ()
) -> RobustnessCheck:
    """Cv where strengths come in two groups, are zero for some, or have any distribution.

    Errors of the margins are those that an earlier check found, where one did.
    """
    name = "the distribution of the strength"
    if not fits[family].choices.has_panels:
        sentence = "This needs repeated choices of annotators."
        return RobustnessCheck(name, sentence, RobustnessStatus.NOT_CHECKED)
    errors = _known_errors(checks)
    groups, free, gain, intervals = _compare_distributions(fits, family, errors)
    low, high = min(i[0] for i in intervals), max(i[1] for i in intervals)
    than = "better" if gain > 0 else "worse"
    weak, strong = groups.means
    sentence = (
        f"Two groups of annotators ({100 * groups.share:.0f}% around {weak:.2g}, the others "
        f"around {strong:.2g}) predict {than} than a smooth distribution by {abs(gain):.1f} nats"
        f"{'' if gain > -_AS_WELL else ' and do not count'}. {_describe_free(free)} Over all that "
        f"count{'' if errors is None else ', errors of the margins allowed for'}, cv is between "
        f"{low:.2f} and {high:.2f}."
    )
    numbers = {
        "elpd_gain": gain, "cv, 5%": low, "cv, 95%": high, "nonparametric cv": free.cv,
        "nonparametric cv, 5%": free.cv_interval[0], "nonparametric cv, 95%": free.cv_interval[1],
    }  # fmt: skip
    interval = (low, high) if main.value == "heterogeneous" else None
    return RobustnessCheck(
        name, sentence, RobustnessStatus.INFORMATION, cv_interval=interval, numbers=numbers
    )


def _compare_distributions(
    fits: Mapping[str, Fit], family: str, errors: RobustnessCheck | None
) -> tuple[TwoGroups, NonparametricStrength, float, list[tuple[float, float]]]:
    """Two groups, any distribution, what the former gain over smooth ones, and intervals of cv.

    The intervals are those of the distributions that predict about as well as the best one, of
    any distribution, and with the errors of the margins, where they are known.
    """
    smooth = {n: fits[n] for n in ("lognormal", "gamma") if n in fits} or {family: fits[family]}
    if errors is not None:
        size = errors.numbers["error over margin, median"]
        smooth = {n: fit_with_errors(each, [size])[0] for n, each in smooth.items()}
    any_smooth = smooth.get(family, next(iter(smooth.values())))
    groups, free = fit_two_groups(any_smooth), nonparametric_strength(any_smooth)
    elpd = {n: information_criterion(each, groups.annotators) for n, each in smooth.items()}
    best = max(*elpd.values(), groups.elpd)
    intervals = [free.cv_interval]
    intervals += [smooth[n].posterior.interval("cv") for n in smooth if elpd[n] > best - _AS_WELL]
    if groups.elpd > best - _AS_WELL:
        intervals.append(groups.cv_interval)
    if errors is not None and errors.cv_interval is not None:
        intervals.append(errors.cv_interval)
    return groups, free, groups.elpd - max(elpd.values()), intervals


def _describe_free(free: NonparametricStrength) -> str:
    return (
        f"With no form assumed, the likeliest distribution has cv {free.cv:.2f}, and those that "
        f"the choices make nearly as likely between {free.cv_interval[0]:.2f} and "
        f"{free.cv_interval[1]:.2f}."
    )


def check_pair_errors(
    main: Verdict, result: Fit, second: Float[np.ndarray, " pairs"] | None = None
) -> tuple[RobustnessCheck, PairErrors | None]:
    """The answer with errors of the margins, the same for all who judge a pair or response.

    Returns:
        The check, and the errors where it could be made.
    """
    name = PAIR_ERRORS
    choices = result.choices
    if choices.outcomes is not None or not choices.has_panels:
        sentence = "This needs pairs, and annotators who judged several."
        return RobustnessCheck(name, sentence, RobustnessStatus.NOT_CHECKED), None
    try:
        errors = estimate_pair_errors(result, second)
    except UnrelatedMarginsError as error:
        return RobustnessCheck(name, f"{error}.", RobustnessStatus.NOT_CHECKED), None
    if errors.source is not None:
        return _known_size_check(main, result, errors), errors
    lead = "No pair or response is known to have been judged by several people"
    if choices.pair is None:
        lead = "The data do not say which pairs several people judged"
    low, high = errors.cv_interval
    sentence = (
        f"{lead}, so that only the shape of the likelihood and a prior say how large errors are: "
        f"{_size(errors)}. Allowing for that, were strengths {result.posterior.family}, cv is "
        f"between {low:.2f} and {high:.2f}; with exact margins in {_interval(main)}."
    )
    numbers = _numbers(errors) | {"cv, 5%": low, "cv, 95%": high}
    check = RobustnessCheck(name, sentence, RobustnessStatus.INFORMATION, numbers=numbers)
    return check, errors


def known_error(checks: Sequence[RobustnessCheck], choices: Choices) -> float:
    """The errors' median size in nats, where shared pairs or a second policy say it; else zero."""
    found = _known_errors(checks)
    if found is None:
        return 0.0
    return found.numbers["error over margin, median"] * margin_scale(choices)


def _known_errors(checks: Sequence[RobustnessCheck]) -> RobustnessCheck | None:
    for check in checks:
        if check.name == PAIR_ERRORS and check.cv_interval is not None:
            return check
    return None


def _known_size_check(main: Verdict, result: Fit, errors: PairErrors) -> RobustnessCheck:
    low, high = errors.cv_interval
    middle = float(np.median(errors.cv))
    if errors.source == "second policy":
        sentence = (
            "By the second policy, and nothing that several people judged, errors are at least "
            f"{_size(errors)}, since those that both policies share do not show; without them cv "
            f"is between {low:.2f} and {high:.2f} (median {middle:.2f}), itself a lower bound, in "
            f"place of the more attenuated {_interval(main)}."
        )
    else:
        assert errors.source is not None
        sentence = (
            f"By {errors.num_shared:,} choices on {_COMMON[errors.source]} are {_size(errors)}; "
            f"without them cv is between {low:.2f} and {high:.2f}, in place of the attenuated "
            f"{_interval(main)}."
        )
    if main.value == "homogeneous":
        status = RobustnessStatus.STANDS if high < ROPE else RobustnessStatus.CONTRADICTS
    else:
        status = evidence_status(main, errors.p_value < LEVEL)
    ends = {"5%": 0.05, "median": 0.5, "95%": 0.95}
    numbers = _numbers(errors) | {"probability_not_small": float((errors.cv >= ROPE).mean())}
    for name, level in ends.items():
        numbers[f"attenuated cv, {name}"] = float(np.quantile(result.posterior.cv, level))
    return RobustnessCheck(PAIR_ERRORS, sentence, status, errors.p_value, (low, high), numbers)


def _numbers(errors: PairErrors) -> dict[str, float]:
    low, middle, high = map(float, np.quantile(errors.ratio, [0.05, 0.5, 0.95]))
    return {
        "error over margin, 5%": low,
        "error over margin, median": middle,
        "error over margin, 95%": high,
        "cv, median": float(np.median(errors.cv)),
    }


def _size(errors: PairErrors) -> str:
    low, high = 100 * np.quantile(errors.ratio, [0.05, 0.95])
    return f"{low:.0f} to {high:.0f}% of the margins' size (90%)"


def _interval(main: Verdict) -> str:
    return f"[{main.cv_interval[0]:.2f}, {main.cv_interval[1]:.2f}]"
