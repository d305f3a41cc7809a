"""Errors of the margins: how large are they, and what is cv without them?"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline

from mixdpo_pyro.inference.choices import (
    Choices,
    random_people,
    select_annotators,
    typical_size,
)
from mixdpo_pyro.inference.fitting import Fit, fit
from mixdpo_pyro.inference.likelihood.panels import log_likelihood_at
from mixdpo_pyro.inference.verdict import boundary_p_value

__all__ = ["PairErrors", "estimate_pair_errors", "margin_scale"]

_COARSE = np.array([0.0, 0.25, 0.5, 0.8, 1.15, 1.6])
"""Standard deviation of the errors over that of the margins, at first."""

_RATIOS = np.array([0.0, 0.25, 0.5, 0.8, 1.2, 1.8])
"""The same where nothing but the shape of the likelihood says how large errors are."""

_MAX_CHOICES = 100_000
"""Choices that are looked at; of more, those of a random subset of people."""

_SMALLEST_SE = 0.03
"""Of the ratio; the fine grid reaches four of them to either side."""

_PRIOR_SD = 0.7
"""Of the half normal prior of that ratio."""

_MAX_SHARED = 20_000
"""Choices on shared pairs that are looked at; of more, those of random pairs."""

_MEDIAN = 0.6745
"""Median size of a standard normal variable."""

_FLATTENING = 0.35
"""16 sqrt(3) / (15 pi) squared, of the logistic link as a normal one."""

_PART = 2_000
"""Choices that are held at once."""

_ERRORS = torch.linspace(-4.5, 4.5, 31, dtype=torch.float64)

_STRENGTHS = torch.linspace(-4, 4, 61, dtype=torch.float64)
"""Nodes of a log strength, in standard deviations of its distribution."""


@dataclass(frozen=True)
class PairErrors:
    """The posterior of mean and cv with errors of the margins integrated out.

    Attributes:
        ratio: Draws of the errors' standard deviation over that of the margins (by their median).
        mean: Draws of the mean strength.
        cv: Draws of cv.
        p_value: P-value of equal strengths, averaged over the draws of the errors' size.
        num_shared: Choices on pairs that somebody else judged too, which give the errors' size.
    """

    ratio: Float[np.ndarray, " samples"]
    mean: Float[np.ndarray, " samples"]
    cv: Float[np.ndarray, " samples"]
    p_value: float
    num_shared: int


def estimate_pair_errors(result: Fit) -> PairErrors:
    r"""Let the margin of every pair have an error, the same for all who judge it.

    .. math:: \text{logit} P = \beta_g (\Delta_p + e_p), \qquad
              e_p \sim \mathrm{Normal}(0, \omega^2)

    Within one person pairs differ, so that errors are independent given the strength and enter the
    likelihood of a person as :math:`\mathbb{E}_e \sigma(\beta(\Delta + e))`. Their size comes from
    pairs that several people judged, by the pseudo-likelihood (Besag, JRSS B 36, 1974)

    .. math:: \sum_p \log \mathbb{E}_{e} \prod_{g \in p} \mathbb{E}_{\beta_g \mid y_{g,-p}}
              \, \sigma\big(\pm\beta_g (\Delta_p + e)\big)

    each person's strength given their other choices, at the best mean and cv for every
    :math:`\omega`. Its curvature is put right by Godambe's sandwich, clustered by pair (Ribatet,
    Cooley and Davison, Statistica Sinica 22, 2012). Mean and cv then follow given
    :math:`\omega`, from the likelihood of the people alone. Without shared pairs the likelihood of
    the people and the prior, :math:`\omega / \text{sd}(\Delta) \sim \mathrm{HalfNormal}(0.7)`,
    are all there is.

    Args:
        result: A fit of pairs with annotator ids, without errors.
    """
    kept = random_people(result.choices, np.random.default_rng(31), max_choices=_MAX_CHOICES)
    if kept is not None:
        result = replace(result, choices=select_annotators(result.choices, kept))
    shared = _shared_choices(result.choices)
    if len(shared):
        ratios, fits, log_weight = _from_shared_pairs(result, shared)
    else:
        ratios, fits = _RATIOS, _fit_with_errors(result, _RATIOS)
        log_weight = np.array([_log_evidence(each) for each in fits])
    log_weight = log_weight - 0.5 * (ratios / _PRIOR_SD) ** 2
    ratio = _draw_ratios(ratios, log_weight, result.posterior.num_samples, result.posterior.seed)
    return _mix(ratios, fits, ratio, len(shared))


def margin_scale(choices: Choices) -> float:
    """Standard deviation of normal margins with the same median size, in nats."""
    return typical_size(choices.margin) / _MEDIAN


def _from_shared_pairs(
    result: Fit, shared: np.ndarray
) -> tuple[np.ndarray, list[Fit], np.ndarray]:
    """Ratios around the best one, the fits there, and the calibrated log pseudo-likelihood."""
    _, profile = _profile(result, _COARSE, shared)
    best, error, _ = _calibrate(_COARSE, profile)
    half = 4 * max(error, _SMALLEST_SE)
    ratios = np.linspace(max(0.0, best - half), best + half, len(_COARSE))
    fits, profile = _profile(result, ratios, shared)
    factor = _calibrate(ratios, profile)[2]
    return ratios, fits, factor * (profile.sum(0) - profile.sum(0).max())


def _profile(
    result: Fit, ratios: np.ndarray, shared: np.ndarray
) -> tuple[list[Fit], Float[np.ndarray, "pairs ratios"]]:
    """Fits with errors of these sizes, and the log pseudo-likelihood of every shared pair."""
    fits = _fit_with_errors(result, ratios)
    return fits, np.stack([_pseudo_likelihood(each, shared) for each in fits], axis=1)


def _fit_with_errors(result: Fit, ratios: np.ndarray) -> list[Fit]:
    """Fits with errors of these sizes; the mean's prior stands where errors put the strength."""
    posterior = result.posterior
    scale = margin_scale(result.choices)
    fits: list[Fit] = []
    for ratio in ratios:
        choices = replace(result.choices, margin_error=float(ratio * scale))
        # Errors of this size flatten the link of one strength to about this one.
        factor = np.sqrt(1 + _FLATTENING * (posterior.beta * choices.margin_error) ** 2)
        beta = max(posterior.beta * factor, fits[-1].maximum.mean if fits else 0.0)
        each = fit(
            choices, family=posterior.family, mean_anchor=posterior.mean_anchor, beta=beta,
            seed=posterior.seed, num_samples=posterior.num_samples, draw_strengths=False,
        )  # fmt: skip
        fits.append(each)
    return fits


def _shared_choices(choices: Choices, seed: int = 0) -> np.ndarray:
    """Rows on pairs that several people judged; of many, those of random pairs."""
    if choices.pair is None:
        return np.array([], dtype=int)
    assert choices.annotator is not None
    cells = np.unique(np.stack([choices.pair, choices.annotator], 1), axis=0)
    num_judges = np.bincount(cells[:, 0])
    pairs = np.random.default_rng((seed, 19)).permutation(np.flatnonzero(num_judges > 1))
    kept = pairs[: max(1, int((num_judges[pairs].cumsum() <= _MAX_SHARED).sum()))]
    # At margin zero nothing says which response was chosen.
    return np.flatnonzero(np.isin(choices.pair, kept) & (choices.margin != 0))


@torch.no_grad()
def _pseudo_likelihood(result: Fit, rows: np.ndarray) -> Float[np.ndarray, " pairs"]:
    """Log-likelihood of each shared pair, given all else, at the best mean and cv."""
    choices, best = result.choices, result.maximum
    assert choices.annotator is not None and choices.pair is not None
    spread = np.sqrt(np.log1p(max(best.cv, 1e-3) ** 2))
    beta = best.mean * torch.exp(spread * (_STRENGTHS - spread / 2))
    log_prior = -_STRENGTHS.square() / 2
    log_mass = (-_ERRORS.square() / 2).log_softmax(0)
    likelihood = log_likelihood_at(beta, choices)
    parts = []
    for part in np.array_split(rows, len(rows) // _PART + 1):
        person = torch.from_numpy(choices.annotator[part])
        margin = torch.from_numpy(choices.margin[part])
        size, sign = margin.abs(), torch.where(margin >= 0, 1.0, -1.0).double()
        moved = sign[:, None] * (size[:, None] + choices.margin_error * _ERRORS)
        chosen = torch.sigmoid(moved[:, :, None] * beta)
        own = torch.einsum("cek,e->ck", chosen, log_mass.exp())
        others = (likelihood[person] + log_prior - own.log()).softmax(1)
        parts.append(torch.einsum("cek,ck->ec", chosen, others))
    each = torch.cat(parts, 1)
    number = torch.from_numpy(np.unique(choices.pair[rows], return_inverse=True)[1])
    total = torch.zeros(len(_ERRORS), int(number.max()) + 1, dtype=torch.float64)
    total.index_add_(1, number, each.clamp(min=1e-300).log())
    return (total + log_mass[:, None]).logsumexp(0).numpy()


def _calibrate(
    ratios: np.ndarray, profile: Float[np.ndarray, "pairs ratios"]
) -> tuple[float, float, float]:
    """The best ratio, its standard error by Godambe's sandwich, and the factor of curvature."""
    spline = CubicSpline(ratios, profile, axis=1)
    fine = np.linspace(ratios[0], ratios[-1], 401)
    best = float(fine[spline(fine).sum(0).argmax()])
    at = min(max(best, 0.1), ratios[-1])  # at zero the slope vanishes by symmetry
    curvature = -spline(at, 2).sum()
    variance = np.square(spline(at, 1)).sum()
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
    log_density = CubicSpline(ratios, log_weight)(fine)
    cumulative = np.exp(log_density - log_density.max()).cumsum()
    uniform = (np.arange(num_samples) + 0.5) / num_samples
    ratio = np.interp(uniform * cumulative[-1], cumulative, fine)
    return np.random.default_rng((seed, 23)).permutation(ratio)


def _mix(ratios: np.ndarray, fits: list[Fit], ratio: np.ndarray, num_shared: int) -> PairErrors:
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
    return PairErrors(ratio, np.exp(between(log_mean)), between(cv), p_value, num_shared)
