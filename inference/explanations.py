"""What else could make equal people look different, and does the evidence survive it?

A strength that differs between people leaves two traces: the link flattens, and some people agree
with the margins more than others. The first trace is shared by label noise, errors in the margins,
omitted covariates and any other link; the second is not, and the permutation test looks at it
alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp, ndtr

from mixdpo_pyro.inference.choices import Choices, agreement
from mixdpo_pyro.inference.criticism import boundary_p_value
from mixdpo_pyro.inference.fit import Fit
from mixdpo_pyro.inference.laplace import LogJoint, _at_rows, _ridge, explore
from mixdpo_pyro.inference.likelihood import Likelihood, compress, likelihood
from mixdpo_pyro.inference.loo import people_of
from mixdpo_pyro.models import mean_prior
from mixdpo_pyro.models.preference import MeanAnchor

__all__ = [
    "CovariateFit", "LabelNoise", "PermutationTest", "PriorAnswer", "anchor_strength",
    "compare_priors", "contraction", "fit_covariate", "margin_evidence",
    "margin_reliability", "permute_annotators", "profile_label_noise",
]  # fmt: skip

_MAX_PERMUTED = 1_000_000
"""Pairs that the permutation test looks at; of more, those of a random subset of people."""

_BIN_SIZE, _MAX_BINS = 25, 200
"""Pairs per bin of equal margins, at least, and number of bins, at most."""

_MAX_FLIP = 0.4
"""The prior of the flip probability is uniform up to here."""

_PRIORS = {
    "half-normal, scale 0.5": lambda cv: -0.5 * (cv / 0.5) ** 2,
    "half-normal, scale 1": lambda cv: -0.5 * cv**2,
    "half-normal, scale 2": lambda cv: -0.5 * (cv / 2) ** 2,
    "exponential, mean 0.5": lambda cv: -2 * cv,
    "uniform on [0, 3]": lambda cv: np.where(cv < 3, 0.0, -np.inf),
}


# The scale of the margins


def anchor_strength(choices: Choices) -> float:
    r"""One strength for everybody, in units of the margins: where the mean's prior is put.

    The maximum over m of :math:`\sum_i \log\sigma(m\Delta_i)` with a weak prior,
    :math:`\log m \sim \mathrm{Normal}(-\log \text{median}|\Delta|, 2)`, so that it exists where
    every choice agrees with its margin.
    """
    size = np.abs(choices.margin)
    typical = float(np.median(size) or size.mean())
    compressed = compress(choices.margin, "fixed")
    grid = np.linspace(-10, 10, 801)
    with torch.no_grad():
        mean = torch.from_numpy(np.exp(grid) / typical)
        value = compressed(mean, torch.ones_like(mean)).numpy() - 0.5 * (grid / 2) ** 2
    return float(np.exp(grid[np.argmax(value)]) / typical)


def margin_evidence(choices: Choices) -> float:
    r"""P-value against "the margins say nothing about the choices", one-sided.

    The score test of m = 0 in :math:`\sigma(m\Delta)`:
    :math:`z = \sum_i \Delta_i / \sqrt{\sum_i \Delta_i^2}`; with ids the variance is summed over
    people, whose choices need not be independent.
    """
    margin = choices.margin
    total = margin if choices.annotator is None else np.bincount(choices.annotator, margin)
    return float(ndtr(-total.sum() / np.sqrt((total**2).sum())))


# Who chose


@dataclass(frozen=True)
class PermutationTest:
    """Does it matter who chose, given the margin?

    Attributes:
        statistic: Spread of people's agreement with the margins, see `permute_annotators`.
        null_mean: Its mean over permutations.
        null_sd: Its standard deviation over permutations.
        p_value: One-sided.
        num_permutations: Number of permutations.
        num_pairs: Pairs that were permuted.
    """

    statistic: float
    null_mean: float
    null_sd: float
    p_value: float
    num_permutations: int
    num_pairs: int


def permute_annotators(
    choices: Choices,
    stratum: Int[np.ndarray, " pairs"] | None = None,
    num_permutations: int = 999,
    seed: int = 0,
) -> PermutationTest:
    r"""Test that people differ, whatever the link, by permuting who agreed.

    If people are alike, a choice agrees with the sign of its margin with a probability that
    depends on the size of the margin only: through the link, label noise, errors of the margins,
    all of them unknown. Among pairs with margins of (nearly) the same size, agreement is then
    exchangeable between people. The statistic

    .. math:: S = \sum_g \Big( \sum_{t \in g} w_t (y_t - \bar y_{b(t)}) \Big)^2

    with y the agreement, :math:`\bar y_b` its mean in the bin of the margin, and w the locally
    best weight, the slope of agreement in the log strength under one strength and label noise,
    grows where some people agree more than others. It is compared with its values after
    permuting y within bins. Where most margins occur several times, as when several people judge
    a pair, a bin is the margins of exactly one size: what is particular to a pair is then shared
    by all who are compared.

    Args:
        choices: Data with annotator ids.
        stratum: Index per pair; agreement is permuted within strata, such as topics.
        num_permutations: Number of permutations.
        seed: Seed of the permutations.

    Returns:
        The test; its p-value is :math:`(1 + \#\{S^* \ge S\}) / (1 + \text{permutations})`.

    Raises:
        ValueError: If there are no ids, or fewer than 19 permutations.
    """
    if choices.annotator is None:
        raise ValueError("Expected choices with annotator ids")
    if num_permutations < 19:
        raise ValueError(f"Expected num_permutations >= 19, got {num_permutations}")
    rng = np.random.default_rng((seed, 11))
    choices, stratum = _limit(choices, stratum, rng)
    assert choices.annotator is not None
    size = np.abs(choices.margin)
    agrees = agreement(choices.margin)
    bins = _bins(size, stratum)
    order = np.argsort(bins, kind="stable")
    bins, agrees, person = bins[order], agrees[order], choices.annotator[order]
    count = np.bincount(bins)
    residual = agrees - (np.bincount(bins, agrees) / count)[bins]
    weight = _score_weight(size[order], agrees)
    num_people = choices.num_annotators

    def statistic(value: np.ndarray) -> float:
        return float((np.bincount(person, weight * value, num_people) ** 2).sum())

    observed = statistic(residual)
    draws = np.empty(num_permutations)
    for k in range(num_permutations):
        draws[k] = statistic(residual[np.argsort(bins + rng.random(len(bins)))])
    exceeding = int((draws >= observed * (1 - 1e-12)).sum())
    return PermutationTest(
        observed, float(draws.mean()), float(draws.std()),
        (1 + exceeding) / (1 + num_permutations), num_permutations, len(bins),
    )  # fmt: skip


def _limit(
    choices: Choices, stratum: np.ndarray | None, rng: np.random.Generator
) -> tuple[Choices, np.ndarray | None]:
    """All pairs of as many people, in random order, as fit the limit; at least two."""
    if choices.num_pairs <= _MAX_PERMUTED:
        return choices, stratum
    assert choices.annotator is not None
    order = rng.permutation(choices.num_annotators)
    total = np.bincount(choices.annotator)[order].cumsum()
    person = np.sort(order[: max(2, int((total <= _MAX_PERMUTED).sum()))])
    kept = np.isin(choices.annotator, person)
    return people_of(choices, person), None if stratum is None else stratum[kept]


def _bins(size: np.ndarray, stratum: np.ndarray | None) -> np.ndarray:
    """Bins of equal, or nearly equal, margins within strata, as indices from 0."""
    if stratum is None:
        stratum = np.zeros(len(size), dtype=int)
    tied = np.unique(np.stack([stratum, size]), axis=1, return_inverse=True)[1].reshape(-1)
    if (np.bincount(tied)[tied] > 1).mean() > 0.5:
        return tied
    stratum = np.unique(stratum, return_inverse=True)[1]
    order = np.lexsort((size, stratum))
    count = np.bincount(stratum)
    rank = np.arange(len(size)) - np.repeat(count.cumsum() - count, count)
    num_bins = np.clip(count // _BIN_SIZE, 1, _MAX_BINS)
    offset = num_bins.cumsum() - num_bins
    bins = np.empty(len(size), dtype=int)
    sorted_stratum = stratum[order]
    bins[order] = offset[sorted_stratum] + rank * num_bins[sorted_stratum] // count[sorted_stratum]
    return bins


def _score_weight(size: np.ndarray, agrees: np.ndarray) -> np.ndarray:
    r"""Slope of the log-likelihood's mean in the log strength over :math:`P(1-P)`.

    :math:`P = \epsilon + (1-2\epsilon) \sigma(m\Delta)` with the best m and epsilon of a grid.
    """
    typical = float(np.median(size) or size.mean() or 1.0)
    stride = max(1, len(size) // 20_000)
    x, y = size[::stride], agrees[::stride]
    best, chosen = -np.inf, (1 / typical, 0.0)
    for strength in np.geomspace(0.02, 50, 60) / typical:
        probability = expit(strength * x)
        for flip in (1e-4, 0.02, 0.05, 0.1, 0.2, 0.3):
            p = flip + (1 - 2 * flip) * probability
            value = float(y @ np.log(p) + (1 - y) @ np.log1p(-p))
            if value > best:
                best, chosen = value, (strength, flip)
    strength, flip = chosen
    u = expit(strength * size)
    p = flip + (1 - 2 * flip) * u
    return (1 - 2 * flip) * strength * size * u * expit(-strength * size) / (p * (1 - p))


# Label noise


@dataclass(frozen=True)
class LabelNoise:
    """Heterogeneity and label noise, estimated together.

    Attributes:
        flip_probability: Where the likelihood is largest.
        flip_interval: 90% posterior interval under a uniform prior on [0, 0.4].
        cv_interval: 5% and 95% posterior quantiles of cv, label noise integrated out.
        likelihood_ratio: Twice the gain over cv = 0, each with its own best flip probability.
        p_value: Of cv = 0.
    """

    flip_probability: float
    flip_interval: tuple[float, float]
    cv_interval: tuple[float, float]
    likelihood_ratio: float
    p_value: float


def profile_label_noise(result: Fit) -> LabelNoise:
    r"""Let labels be flipped with an unknown probability :math:`\epsilon`, the same for all.

    .. math:: P(\text{choice}) = (1-\epsilon)\,\sigma(\beta\Delta) + \epsilon\,\sigma(-\beta\Delta)

    For every (epsilon, cv) on a lattice the likelihood is maximised, and integrated by Laplace's
    method, over the mean; the lattice is narrowed until it resolves the posterior, and then
    interpolated by cubic splines.

    Args:
        result: A fit without label noise.
    """
    lattice = _NoiseLattice.whole(result)
    while (narrowed := lattice.narrowed()) is not None:
        lattice = narrowed
    flip, cv = (np.linspace(axis[0], axis[-1], 161) for axis in (lattice.flip, lattice.cv))
    profile = lattice.refine(lattice.profile, flip, cv)
    density = profile + lattice.refine(lattice.log_area, flip, cv) - 0.5 * cv**2
    mass = np.exp(density - density.max())
    ratio = max(0.0, 2 * float(profile.max() - lattice.best_null()))
    return LabelNoise(
        float(flip[np.unravel_index(profile.argmax(), profile.shape)[0]]),
        _interval(flip, mass.sum(1)),
        _interval(cv, mass.sum(0)),
        ratio,
        boundary_p_value(ratio),
    )


@dataclass(frozen=True)
class _NoiseLattice:
    """Likelihood maximised over the mean, at flip probabilities times cv."""

    result: Fit
    root_flip: Float[np.ndarray, " flips"]
    log_cv: Float[np.ndarray, " cvs"]
    profile: Float[np.ndarray, "flips cvs"]
    log_area: Float[np.ndarray, "flips cvs"]

    @classmethod
    def whole(cls, result: Fit) -> Self:
        return cls.evaluate(
            result, np.linspace(0, np.sqrt(_MAX_FLIP), 7), np.linspace(0, np.log1p(30), 10)
        )

    @classmethod
    def evaluate(cls, result: Fit, root_flip: np.ndarray, log_cv: np.ndarray) -> Self:
        start = np.full(len(log_cv), np.log(result.null.mean))
        profile, log_area = np.empty((2, len(root_flip), len(log_cv)))
        for k, flip in enumerate(root_flip**2):
            law = likelihood(result.choices, result.family, float(flip))
            start, scale, profile[k] = _best_means(result, law, np.expm1(log_cv) / 10, start)
            log_area[k] = np.log(np.where(scale > 0, scale, 1.0))
        return cls(result, root_flip, log_cv, profile, log_area)

    @property
    def flip(self) -> np.ndarray:
        return self.root_flip**2

    @property
    def cv(self) -> np.ndarray:
        return np.expm1(self.log_cv) / 10

    def narrowed(self) -> "_NoiseLattice | None":
        """The lattice around what is within 14 nats of the best, or None if it is fine enough."""
        inside = self.profile > self.profile.max() - 14
        flips, cvs = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        if len(flips) >= 4 and len(cvs) >= 4:
            return None
        axes = [
            np.linspace(axis[max(at[0] - 1, 0)], axis[min(at[-1] + 1, len(axis) - 1)], len(axis))
            for axis, at in ((self.root_flip, flips), (self.log_cv, cvs))
        ]
        return self.evaluate(self.result, *axes)

    def refine(self, value: np.ndarray, flip: np.ndarray, cv: np.ndarray) -> np.ndarray:
        """Spline through the lattice; the likelihood is even in cv, so its slope at 0 is 0."""
        is_even = self.log_cv[0] == 0
        ends = ((1, np.zeros(len(value))), "not-a-knot") if is_even else "not-a-knot"
        along_cv = CubicSpline(self.log_cv, value, axis=1, bc_type=ends)(np.log1p(10 * cv))
        return CubicSpline(self.root_flip, along_cv, axis=0)(np.sqrt(flip))

    def best_null(self) -> float:
        """The largest likelihood at cv = 0, over flip probability and mean."""
        start = np.array([np.log(self.result.null.mean)])

        def loss(root_flip: float) -> float:
            # With one strength for all, an annotator's choices are like those of many.
            law = compress(self.result.choices.margin, "fixed", root_flip**2)
            return -_best_means(self.result, law, np.zeros(1), start)[2][0]

        bounds = 0.0, np.sqrt(_MAX_FLIP)
        inner = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
        return -min(loss(0.0), inner.fun)


def _best_means(
    result: Fit, law: Likelihood, cv: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best log mean at each cv, its standard deviation, and the penalised likelihood there."""
    joint = LogJoint(law, result.mean, result.beta)
    best, scale = _ridge(partial(_at_rows, joint.penalised, cv), start, joint.anchor)
    return best, scale, joint.penalised(best, cv)


def _interval(grid: np.ndarray, mass: np.ndarray) -> tuple[float, float]:
    """5% and 95% quantiles of a density on an equally spaced grid, by the trapezoid rule."""
    cumulative = np.concatenate([[0.0], (mass[1:] + mass[:-1]).cumsum()])
    low, high = np.interp([0.05, 0.95], cumulative / cumulative[-1], grid)
    return float(low), float(high)


# Covariates and errors of the margins


@dataclass(frozen=True)
class CovariateFit:
    r"""A covariate beside the margin, such as the difference in length.

    Attributes:
        coefficient: Gamma in :math:`\sigma(m\Delta + \gamma x)`, per unit of the covariate.
        strength: The m fitted with it.
        z: Coefficient over its standard error.
        adjusted: Margins with the covariate's effect folded in, :math:`\Delta + (\gamma/m) x`.
    """

    coefficient: float
    strength: float
    z: float
    adjusted: Float[np.ndarray, " pairs"]


def fit_covariate(choices: Choices, covariate: Float[np.ndarray, " pairs"]) -> CovariateFit:
    r"""Logistic regression of the choice on margin and covariate, both chosen minus rejected.

    Newton's method on :math:`\sum_i \log\sigma(m\Delta_i + \gamma x_i)`, with a penalty of
    1e-3 / 2 times the squared coefficients of standardised columns, so that it converges where
    choices are separated.

    Args:
        choices: The data.
        covariate: Difference of the covariate, chosen minus rejected, finite.

    Raises:
        ValueError: If the covariate has another shape, is not finite, is constant zero, or if the
            margins lose all predictive value beside it.
    """
    x = np.asarray(covariate, dtype=np.float64)
    if x.shape != choices.margin.shape or not np.isfinite(x).all() or not x.any():
        raise ValueError("Expected one finite covariate per pair, not all of them zero")
    scale = np.array([np.sqrt((v**2).mean()) for v in (choices.margin, x)])
    columns = np.stack([choices.margin / scale[0], x / scale[1]])
    coefficient = np.zeros(2)
    for _ in range(100):
        logit = coefficient @ columns
        gradient = columns @ expit(-logit) - 1e-3 * coefficient
        information = (columns * (expit(logit) * expit(-logit))) @ columns.T + 1e-3 * np.eye(2)
        move = np.linalg.solve(information, gradient)
        coefficient = coefficient + move * min(1.0, 2.0 / np.abs(move).max())
        if np.abs(move).max() < 1e-9:
            break
    se = np.sqrt(np.linalg.inv(information)[1, 1])
    strength, gamma = coefficient / scale
    if strength <= 0:
        raise ValueError("Expected margins that predict choices beside the covariate; they do not")
    adjusted = choices.margin + gamma / strength * x
    return CovariateFit(float(gamma), float(strength), float(coefficient[1] / se), adjusted)


def margin_reliability(
    first: Float[np.ndarray, " pairs"], second: Float[np.ndarray, " pairs"]
) -> float:
    r"""Share of the variance of the first margins that is not noise.

    Two policies' margins for the same pairs are the truth plus independent errors; then
    :math:`\sum \Delta_1\Delta_2 / \sqrt{\sum\Delta_1^2 \sum\Delta_2^2}` estimates that share if
    both are equally good. It is about zero, not about the mean, since the orientation of a pair
    is arbitrary.
    """
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


# Priors


@dataclass(frozen=True)
class PriorAnswer:
    """The posterior of cv under one prior.

    Attributes:
        name: The prior of cv.
        cv_interval: 5% and 95% quantiles.
        probability_small: Posterior probability of cv < 0.25.
    """

    name: str
    cv_interval: tuple[float, float]
    probability_small: float


def compare_priors(result: Fit, small: float = 0.25) -> list[PriorAnswer]:
    r"""Posterior of cv under several priors, on a lattice of the log joint.

    Each prior of cv is combined with the mean's prior of the fit, and the uniform one also with
    a standard deviation of 2 of the log mean.

    Args:
        result: A fit.
        small: The cv below which strengths count as equal.
    """
    lattice = explore(
        LogJoint(
            likelihood(result.choices, result.family, result.flip_probability),
            result.mean,
            result.beta,
        )
    )
    cv = np.exp(lattice.log_cv)
    # The lattice holds the half-normal prior of scale 1, unless the mean is free.
    base = lattice.log_density + (0.0 if result.mean == "free" else 0.5 * cv[:, None] ** 2)
    answers = [
        _prior_answer(name, lattice.log_cv, logsumexp(base + log_prior(cv)[:, None], 1), small)
        for name, log_prior in _PRIORS.items()
    ]
    if result.mean == "prior":
        log_mean = lattice.centre[:, None] + lattice.scale[:, None] * lattice.scaled
        distance = log_mean - np.log(result.beta)
        wide = base + 0.5 * (distance / 0.5) ** 2 - 0.5 * (distance / 2) ** 2
        wide = wide + _PRIORS["uniform on [0, 3]"](cv)[:, None]
        name = "uniform on [0, 3], and a mean that is free within a factor of 50"
        answers.append(_prior_answer(name, lattice.log_cv, logsumexp(wide, 1), small))
    return answers


def _prior_answer(
    name: str, log_cv: np.ndarray, log_density: np.ndarray, small: float
) -> PriorAnswer:
    fine = np.linspace(log_cv[0], log_cv[-1], 2001)
    height = np.maximum(log_density - log_density.max(), -60.0)
    mass = np.exp(PchipInterpolator(log_cv, height)(fine))
    cumulative = np.concatenate([[0.0], (mass[1:] + mass[:-1]).cumsum()])
    low, high = _interval(fine, mass)
    below = np.interp(np.log(small), fine, cumulative / cumulative[-1])
    return PriorAnswer(name, (float(np.exp(low)), float(np.exp(high))), float(below))


def contraction(posterior: Mapping[str, np.ndarray], mean: MeanAnchor) -> dict[str, float]:
    r"""How much the data narrowed the prior: :math:`1 - \mathrm{Var} / \mathrm{Var}_{prior}`.

    Of `cv`, whose half-normal prior has variance :math:`1 - 2/\pi`, and of `log_mean`, where it
    has a prior. Near 1 the data decide; at 0 or below the answer is the prior's. Not a number
    where a draw is not finite.

    Args:
        posterior: Draws of `cv` and, unless the mean is fixed, of `mean`.
        mean: Anchoring of the mean.
    """
    with np.errstate(invalid="ignore"):
        value = {"cv": 1 - float(posterior["cv"].var()) / (1 - 2 / np.pi)}
        if mean == "prior":
            prior = float(mean_prior().base_dist.scale) ** 2
            value["log_mean"] = 1 - float(np.log(posterior["mean"]).var()) / prior
    return value
