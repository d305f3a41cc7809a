"""Errors of the margins: how large are they, and what is cv without them?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline, PchipInterpolator

from mixdpo_pyro.inference.choices import (
    Choices,
    random_people,
    select_annotators,
    typical_size,
)
from mixdpo_pyro.inference.fitting import Fit, fit
from mixdpo_pyro.inference.likelihood.marginal import build_likelihood
from mixdpo_pyro.inference.methods.log_joint import LogJoint, Maximum, maximise
from mixdpo_pyro.inference.robustness.errors.responses import without_recurring
from mixdpo_pyro.inference.robustness.errors.second_policy import implied_ratio
from mixdpo_pyro.inference.robustness.errors.shared import (
    Evidence,
    find_evidence,
    sandwich_variance,
)
from mixdpo_pyro.inference.verdict import boundary_p_value

__all__ = [
    "PRIOR_SD",
    "PairErrors",
    "estimate_pair_errors",
    "fit_with_errors",
    "margin_scale",
    "maximum_with_errors",
]

_COARSE = np.array([0.0, 0.25, 0.5, 0.8, 1.15, 1.6])
"""Standard deviation of the errors over that of the margins, at first."""

_HOPELESS = 30.0
"""Nats below the best size of errors at which larger ones are not looked at: there mean and cv run
away, and a curve through such points swings between the others."""

_RATIOS = np.array([0.0, 0.25, 0.5, 0.8, 1.2, 1.8])
"""The same where nothing but the shape of the likelihood says how large errors are."""

_FEWEST_SIZES, _MAX_ROUNDS = 4, 4
"""A curve through fewer sizes of errors is too coarse; rounds of finer sizes at most."""

_MAX_CHOICES = 100_000
"""Choices that are looked at; of more, those of a random subset of people."""

_SMALLEST_SE = 0.03
"""Of the ratio; the fine grid reaches four of them to either side."""

_INFLATION = 1.5
"""Of that standard error: terms depend on each other through people too, and mean and cv are
estimated. In simulations estimates spread 1.4 to 1.8 times as widely as the sandwich says."""

PRIOR_SD = 0.7
"""Of the half normal prior of that ratio."""

_MEDIAN = 0.6745
"""Median size of a standard normal variable."""

_FLATTENING = 0.35
"""16 sqrt(3) / (15 pi) squared, of the logistic link as a normal one."""


Source = Literal["pairs", "responses", "second policy"]


@dataclass(frozen=True)
class PairErrors:
    """The posterior of mean and cv with errors of the margins integrated out.

    Attributes:
        ratio: Draws of the errors' standard deviation over that of the margins (by their median).
        mean: Draws of the mean strength.
        cv: Draws of cv.
        p_value: P-value of equal strengths, averaged over the draws of the errors' size.
        num_shared: Choices on pairs, or responses, that somebody else judged too, which give the
            errors' size.
        source: What says how large errors are: `"pairs"` or `"responses"` that people have in
            common, a `"second policy"`, or the likelihood's shape and a prior (None).
    """

    ratio: Float[np.ndarray, " samples"]
    mean: Float[np.ndarray, " samples"]
    cv: Float[np.ndarray, " samples"]
    p_value: float
    num_shared: int = 0
    source: Source | None = None

    @property
    def cv_interval(self) -> tuple[float, float]:
        """5% and 95% quantiles of cv."""
        low, high = np.quantile(self.cv, [0.05, 0.95])
        return float(low), float(high)


def estimate_pair_errors(
    result: Fit, second: Float[np.ndarray, " pairs"] | None = None
) -> PairErrors:
    r"""Let the margin of every pair have an error, the same for all who judge it.

    .. math:: \text{logit} P = \beta_g (\Delta_p + e_p), \qquad
              e_p \sim \mathrm{Normal}(0, \omega^2)

    Within one person pairs differ, so that errors are independent given the strength and enter the
    likelihood of a person as :math:`\mathbb{E}_e \sigma(\beta(\Delta + e))`; where responses recur
    within a person and errors add up, choices that share one with another are dropped. The size
    comes from pairs that several people judged, by the pseudo-likelihood (Besag, JRSS B 36, 1974)

    .. math:: \sum_p \log \mathbb{E}_{e} \prod_{g \in p} \mathbb{E}_{\beta_g \mid y_{g,-p}}
              \, \sigma\big(\pm\beta_g (\Delta_p + e)\big)

    each person's strength given their other choices, at the best mean and cv for every
    :math:`\omega`. Where people have responses in common, but few pairs, errors are taken as those
    of responses, :math:`e_{ij} = e_i - e_j`, each with half of the variance, and the
    pseudo-likelihood is that of two choices at a time whose errors have correlation 1/2 or -1/2.
    Its curvature is put right by Godambe's sandwich, clustered by connected responses (Ribatet,
    Cooley and Davison, Statistica Sinica 22, 2012). Mean and cv then follow given
    :math:`\omega`, from the likelihood of the people alone. Where nothing is shared, a second
    policy's margins say how large errors are at least, see :func:`implied_ratio`; without them
    that likelihood and the prior, :math:`\omega / \text{sd}(\Delta) \sim
    \mathrm{HalfNormal}(0.7)`, are all there is.

    Args:
        result: A fit of pairs with annotator ids, without errors.
        second: Margins of another policy for the same pairs.

    Raises:
        UnrelatedMarginsError: If nothing is shared, and the second margins do not agree with the
            first or do not predict the choices.
    """
    choices, draws = result.choices, (result.posterior.num_samples, result.posterior.seed)
    kept = random_people(result.choices, np.random.default_rng(31), max_choices=_MAX_CHOICES)
    if kept is not None:
        result = replace(result, choices=select_annotators(result.choices, kept))
    result = replace(result, choices=without_recurring(result.choices))
    evidence = find_evidence(result.choices)
    source: Source | None = None
    if evidence is not None:
        source = evidence.source
        ratios, fits, log_weight = _from_evidence(result, evidence)
    elif second is not None:
        source = "second policy"
        ratios, fits, log_weight = _from_second(result, choices, second)
    else:
        ratios, fits = _RATIOS, fit_with_errors(result, _RATIOS)
        log_weight = np.array([_log_evidence(each) for each in fits])
    log_weight = log_weight - 0.5 * (ratios / PRIOR_SD) ** 2
    found = _mix(ratios, fits, _draw_ratios(ratios, log_weight, *draws))
    num_shared = 0 if evidence is None else evidence.num_choices
    return replace(found, num_shared=num_shared, source=source)


def margin_scale(choices: Choices) -> float:
    """Standard deviation of normal margins with the same median size, in nats."""
    return typical_size(choices.margin) / _MEDIAN


def _from_evidence(result: Fit, evidence: Evidence) -> tuple[np.ndarray, list[Fit], np.ndarray]:
    """Ratios around the best one, the fits there, and the calibrated log pseudo-likelihood."""
    coarse, profile = _coarse_profile(result, evidence)
    best, error, _ = _calibrate(coarse, profile, evidence)
    half = 4 * max(error, _SMALLEST_SE)
    ratios = np.linspace(max(0.0, best - half), min(best + half, coarse[-1]), len(_COARSE))
    fits = fit_with_errors(result, ratios)
    profile = np.stack([evidence.terms(each.choices, each.maximum) for each in fits], axis=1)
    factor = _calibrate(ratios, profile, evidence)[2]
    return ratios, fits, factor * (profile.sum(0) - profile.sum(0).max())


def _from_second(
    result: Fit, choices: Choices, second: np.ndarray
) -> tuple[np.ndarray, list[Fit], np.ndarray]:
    """The same by a second policy's margins of all choices."""
    assert choices.annotator is not None
    best, error = implied_ratio(choices.margin, second, choices.annotator)
    error = max(error, _SMALLEST_SE)
    ratios = np.linspace(max(0.0, best - 4 * error), best + 4 * error, len(_COARSE))
    # Without the prior, which is put on top of it.
    log_weight = -0.5 * ((ratios - best) / error) ** 2 + 0.5 * (ratios / PRIOR_SD) ** 2
    return ratios, fit_with_errors(result, ratios), log_weight


def _coarse_profile(
    result: Fit, evidence: Evidence
) -> tuple[Float[np.ndarray, " ratios"], Float[np.ndarray, "terms ratios"]]:
    """Sizes of errors from zero to the first hopeless one, and the terms at the best mean and cv.

    Where that one is far too large, or comes early, finer sizes below it take their place.
    """
    ratios = _COARSE
    for _ in range(_MAX_ROUNDS):
        profile = _terms_until_hopeless(result, evidence, ratios)
        ratios, total = ratios[: profile.shape[1]], profile.sum(0)
        if len(ratios) >= _FEWEST_SIZES and total[-1] > total.max() - 3 * _HOPELESS:
            break
        ratios = np.linspace(0.0, ratios[-1], len(_COARSE))
    return ratios[: profile.shape[1]], profile


def _terms_until_hopeless(
    result: Fit, evidence: Evidence, ratios: Float[np.ndarray, " ratios"]
) -> Float[np.ndarray, "terms looked_at"]:
    """Terms for ascending sizes of errors, which need no draws."""
    terms, least, largest = list[np.ndarray](), 0.0, -np.inf
    for ratio in ratios:
        choices, best = maximum_with_errors(result, ratio, least)
        terms.append(evidence.terms(choices, best))
        least, total = best.mean, terms[-1].sum()
        largest = max(largest, total)
        if total < largest - _HOPELESS:
            break
    return np.stack(terms, axis=1)


def maximum_with_errors(result: Fit, ratio: float, least: float = 0.0) -> tuple[Choices, Maximum]:
    """Choices with errors of this size, relative to the margins', and the best mean and cv.

    Args:
        result: A fit of these choices without errors.
        ratio: Standard deviation of the errors over that of the margins.
        least: What the prior's median of the mean is not to fall below.
    """
    posterior = result.posterior
    choices, beta = _erring(result, ratio, least)
    likelihood = build_likelihood(choices, posterior.family)
    return choices, maximise(LogJoint(likelihood, posterior.mean_anchor, beta))[0]


def fit_with_errors(result: Fit, ratios: Sequence[float] | np.ndarray) -> list[Fit]:
    """Fits with errors of these sizes, relative to the margins', in ascending order."""
    posterior, fits = result.posterior, list[Fit]()
    for ratio in ratios:
        choices, beta = _erring(result, ratio, fits[-1].maximum.mean if fits else 0.0)
        each = fit(
            choices, family=posterior.family, mean_anchor=posterior.mean_anchor, beta=beta,
            seed=posterior.seed, num_samples=posterior.num_samples, draw_strengths=False,
        )  # fmt: skip
        fits.append(each)
    return fits


def _erring(result: Fit, ratio: float, least: float) -> tuple[Choices, float]:
    """Choices with errors of this size, and the mean's prior where these put the strength."""
    choices = replace(result.choices, margin_error=float(ratio * margin_scale(result.choices)))
    beta = result.posterior.beta
    # Errors of this size flatten the link of one strength to about this one.
    factor = np.sqrt(1 + _FLATTENING * (beta * choices.margin_error) ** 2)
    return choices, max(beta * factor, least)


def _calibrate(
    ratios: np.ndarray, profile: Float[np.ndarray, "terms ratios"], evidence: Evidence
) -> tuple[float, float, float]:
    """The best ratio, its standard error by Godambe's sandwich, and the factor of curvature."""
    spline = CubicSpline(ratios, profile, axis=1)
    fine = np.linspace(ratios[0], ratios[-1], 401)
    best = float(fine[spline(fine).sum(0).argmax()])
    at = min(max(best, 0.1), ratios[-1])  # at zero the slope vanishes by symmetry
    curvature = -spline(at, 2).sum()
    variance = _INFLATION**2 * sandwich_variance(spline(at, 1), evidence.responses)
    if curvature <= 0:
        return best, 0.3, 0.1
    error = float(np.sqrt(variance) / curvature)
    return best, error, float(np.clip(curvature / variance, 0.1, 1.0))


def _log_evidence(result: Fit) -> float:
    """Log evidence of the people's choices, by Laplace's method over (log mean, cv)."""
    log_mean, cv = np.log(result.posterior.mean), result.posterior.cv
    covariance = np.cov(np.stack([log_mean, cv]))
    return float(result.maximum.penalised + 0.5 * np.linalg.slogdet(covariance)[1])


def _draw_ratios(
    ratios: np.ndarray, log_weight: np.ndarray, num_samples: int, seed: int
) -> np.ndarray:
    """Draws from the density that passes through the weights."""
    fine = np.linspace(ratios[0], ratios[-1], 1041)
    log_density = PchipInterpolator(ratios, log_weight)(fine)
    cumulative = np.exp(log_density - log_density.max()).cumsum()
    uniform = (np.arange(num_samples) + 0.5) / num_samples
    ratio = np.interp(uniform * cumulative[-1], cumulative, fine)
    return np.random.default_rng((seed, 23)).permutation(ratio)


def _mix(ratios: np.ndarray, fits: list[Fit], ratio: np.ndarray) -> PairErrors:
    """Draws between those of the fits with the next smaller and the next larger errors.

    Draws are paired by the rank of their cv, which moves little between the two.
    """
    orders = [each.posterior.cv.argsort() for each in fits]
    cv = np.stack([f.posterior.cv[order] for f, order in zip(fits, orders, strict=True)])
    log_mean = np.log([f.posterior.mean[order] for f, order in zip(fits, orders, strict=True)])
    rank = np.random.default_rng(29).permutation(len(ratio))
    right = np.searchsorted(ratios, ratio).clip(1)
    share = (ratio - ratios[right - 1]) / (ratios[right] - ratios[right - 1])

    def between(value: np.ndarray) -> np.ndarray:
        return (1 - share) * value[right - 1, rank] + share * value[right, rank]

    p_values = [
        boundary_p_value(2 * max(0.0, f.maximum.penalised - f.null.penalised)) for f in fits
    ]
    p_value = float(np.interp(ratio, ratios, p_values).mean())
    return PairErrors(ratio, np.exp(between(log_mean)), between(cv), p_value)
