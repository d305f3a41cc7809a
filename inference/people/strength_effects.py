"""For whom, and on what, is the strength of preference larger? Effects of columns on it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import fdtrc, logsumexp, stdtr

from mixdpo_pyro.inference.choices import Choices, random_people, select_annotators
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.people.columns import Column, design_matrix, read_columns
from mixdpo_pyro.inference.people.expansion import Expansion, ShiftedPanels

__all__ = [
    "ColumnEffect",
    "LevelEffect",
    "StrengthEffects",
    "VarianceShare",
    "fit_strength_effects",
]

_MAX_CHOICES = 50_000
"""Choices that are looked at; of more, those of a random subset of people."""

_NUMBER_SD = 1.0
"""Of the normal prior of the effect of a standard deviation of a column of numbers."""

_SPREAD_SD = 0.5
"""Of the half normal prior of the standard deviation of the effects of levels."""

_SPREADS = np.array([0.01, 0.04, 0.08, 0.12, 0.17, 0.23, 0.3, 0.4, 0.52, 0.7, 0.95, 1.3])
"""Lattice of that standard deviation."""

_SMALLEST = 0.02
"""Standard deviation of the log strength between people that stands for none."""

_NUM_COARSE, _NUM_FINE = 7, 9
"""Points of it at first, and where its posterior is."""

_MEAN_PRIOR_SD = 0.5
"""Of the log mean strength, as in `fit`."""


@dataclass(frozen=True)
class LevelEffect:
    """How strength goes with one level of a column, or with its numbers.

    Attributes:
        column: Name of the column.
        level: The level; `"per sd"` where the column holds numbers.
        choices: Choices with this level.
        annotators: Annotators with such choices.
        ratio: Strength there over its weighted geometric mean over levels (of numbers: one
            standard deviation further over here), posterior median after partial pooling.
        q05: Its 5% posterior quantile.
        q95: Its 95% posterior quantile.
        p_sign: Posterior probability that the effect has the sign of its median.
        p_value: Of no difference from the mean over levels, without pooling.
        p_adjusted: The same adjusted for all rows of the table (Holm).
    """

    column: str
    level: str
    choices: int
    annotators: int
    ratio: float
    q05: float
    q95: float
    p_sign: float
    p_value: float
    p_adjusted: float


@dataclass(frozen=True)
class ColumnEffect:
    """How strength goes with a column as a whole.

    Attributes:
        column: Its name.
        belongs_to: `"annotators"` where it is constant within them, otherwise `"choices"`.
        levels: Number of levels; 0 where it holds numbers.
        centre: Mean of the numbers.
        scale: Their standard deviation.
        sd: Standard deviation of the log strength that goes with it: posterior median, 5% and 95%
            quantiles.
        p_value: Of no effect at all (F test).
        inflation: Factor of its variances: how much more the slopes of annotators, and of pairs
            that are known, spread than the model says; at least 1.
    """

    column: str
    belongs_to: str
    levels: int
    centre: float
    scale: float
    sd: tuple[float, float, float]
    p_value: float
    inflation: float


@dataclass(frozen=True)
class VarianceShare:
    """A part of the variance of log strengths: posterior median, 5% and 95% quantiles."""

    name: str
    share: float
    q05: float
    q95: float


@dataclass(frozen=True)
class StrengthEffects:
    """How strength goes with columns.

    Attributes:
        levels: A row for every level, and every column of numbers.
        columns: A row for every column.
        shares: Parts of the variance of log strengths: each column, and what columns leave
            unexplained between annotators.
        cv: Coefficient of variation of the strength beside the columns: posterior median, 5% and
            95% quantiles.
        log_likelihood: At the best effects and spread, in nats.
        num_drawn: Where annotators are a random part of all, how many.
    """

    levels: list[LevelEffect]
    columns: list[ColumnEffect]
    shares: list[VarianceShare]
    cv: tuple[float, float, float]
    log_likelihood: float
    num_drawn: int | None


def fit_strength_effects(
    result: Fit, columns: Mapping[str, Any], *, num_samples: int = 2000, seed: int = 0
) -> StrengthEffects:
    r"""Let the log strength go with columns of annotators or of choices.

    .. math:: \log\beta_{gi} = \log m - s^2/2 + x_{gi}^\top \gamma + s z_g, \qquad
              z_g \sim \mathrm{Normal}(0, 1)

    Levels of a column are partially pooled, :math:`\gamma_{k} \sim \mathrm{Normal}(0, \tau^2)`
    with :math:`\tau \sim \mathrm{HalfNormal}(0.5)` for each column; the effect of a standard
    deviation of numbers is Normal(0, 1). Mean and s have the priors of :func:`fit`. Given s the
    likelihood, z integrated out, is expanded to second order in :math:`(\log m, \gamma)` around
    its maximum under the prior; s and all :math:`\tau` are summed over a lattice. Choices of one
    annotator on one level may hang together in ways that the model lacks (a taste for a topic),
    and so may those on one pair (an error of its margin): variances of a column's effects are
    multiplied by what the slopes of annotators and of pairs spread beyond the model (sandwich),
    where that is more than one.

    A difference between levels whose margins differ in scale or in error, such as topics, is one
    of margins and strength together: choices cannot tell.

    Args:
        result: A fit with annotator ids.
        columns: Name -> one value per row: floats are numbers, anything else labels of levels.
        num_samples: Posterior draws behind the quantiles.
        seed: Seed of the draws.

    Raises:
        ValueError: If nobody chose repeatedly, or a column cannot be used; the message names it.
    """
    choices = result.choices
    if not choices.has_panels:
        raise ValueError("Expected annotators with several choices each")
    parts = read_columns(choices, columns)
    rng = np.random.default_rng((seed, 43))
    kept = random_people(choices, rng, max_choices=_MAX_CHOICES)
    if kept is not None:
        assert choices.annotator is not None
        rows = np.isin(choices.annotator, kept)
        choices = select_annotators(choices, kept)
        parts = read_columns(choices, {name: np.asarray(v)[rows] for name, v in columns.items()})
    posterior = _Posterior.of(result, choices, parts)
    effects = posterior.draw(num_samples, rng)
    drawn = None if kept is None else len(kept)
    return _summarise(choices, parts, posterior, effects, drawn)


# The posterior


@dataclass(frozen=True)
class _Prior:
    """Normal priors of log mean and effects, given s and the spreads of levels."""

    columns: list[Column]
    log_beta: float

    def mean(self, spread: float) -> np.ndarray:
        """Of the log median, and zero for effects."""
        size = 1 + sum(column.size for column in self.columns)
        return np.concatenate([[self.log_beta - spread**2 / 2], np.zeros(size - 1)])

    def precision(self, taus: Mapping[str, float]) -> np.ndarray:
        """Of each parameter."""
        parts = [
            np.full(column.size, (taus[column.name] if column.levels else _NUMBER_SD) ** -2)
            for column in self.columns
        ]
        return np.concatenate([[_MEAN_PRIOR_SD**-2], *parts])

    def lattice(self) -> tuple[list[dict[str, float]], Float[np.ndarray, " points"]]:
        """Combinations of the spreads of levels, and the log of their prior mass."""
        grouped = [column.name for column in self.columns if column.levels]
        log_mass = -0.5 * (_SPREADS / _SPREAD_SD) ** 2 + np.log(np.gradient(_SPREADS))
        number = len(_SPREADS) ** len(grouped)
        index = np.indices((len(_SPREADS),) * len(grouped)).reshape(len(grouped), number).T
        points = [dict(zip(grouped, _SPREADS[row].tolist(), strict=True)) for row in index]
        return points, log_mass[index].sum(1)


@dataclass(frozen=True)
class _Posterior:
    """Expansions at several s, and the posterior mass of each of them and of spreads of levels."""

    prior: _Prior
    expansions: list[Expansion]
    inflation: dict[str, float]
    scale: Float[np.ndarray, " parameters"]
    mass: Float[np.ndarray, "spreads points"]

    @classmethod
    def of(cls, result: Fit, choices: Choices, columns: list[Column]) -> "_Posterior":
        """Expand coarsely, then where the mass is."""
        panels = ShiftedPanels.of(choices, design_matrix(choices, columns))
        prior = _Prior(columns, math.log(result.posterior.beta))
        # Columns leave at most what is there without them.
        most = math.sqrt(math.log1p(float(np.quantile(result.posterior.cv, 0.995)) ** 2))
        spreads = np.linspace(_SMALLEST, max(1.2 * most, 0.2), _NUM_COARSE)
        taus = {column.name: _SPREAD_SD for column in columns}
        first = cls._at(panels, prior, spreads, taus)
        mean, sd, taus = first._located()
        ends = max(_SMALLEST, mean - 3.5 * sd), mean + 3.5 * sd
        return cls._at(panels, prior, np.linspace(*ends, _NUM_FINE), taus)

    @classmethod
    def _at(
        cls,
        panels: ShiftedPanels,
        prior: _Prior,
        spreads: np.ndarray,
        taus: Mapping[str, float],
    ) -> "_Posterior":
        expansions: list[Expansion] = []
        precision = prior.precision(taus)
        for spread in spreads:
            mean = prior.mean(float(spread))
            start = expansions[-1].best if expansions else mean
            expansions.append(panels.expand(float(spread), start, mean, precision))
        best = expansions[int(np.argmax([each.value for each in expansions]))]
        inflation = _inflation(best, prior.columns)
        factors = [np.full(c.size, inflation[c.name]) for c in prior.columns]
        scale = np.sqrt(np.concatenate([[1.0], *factors]))
        log_mass = np.stack([_log_evidence(each, prior, scale) for each in expansions])
        log_mass += _log_prior_of_spread(spreads)[:, None] + prior.lattice()[1]
        mass = np.exp(log_mass - logsumexp(log_mass))
        return cls(prior, expansions, inflation, scale, mass)

    @property
    def spreads(self) -> Float[np.ndarray, " spreads"]:
        """Standard deviations of the log strength between people, beside columns."""
        return np.array([each.spread for each in self.expansions])

    @property
    def best(self) -> Expansion:
        """The expansion with the largest mass."""
        return self.expansions[int(self.mass.sum(1).argmax())]

    def _located(self) -> tuple[float, float, dict[str, float]]:
        """Mean and standard deviation of s, and the means of the spreads of levels."""
        share, spreads = self.mass.sum(1), self.spreads
        mean = float(share @ spreads)
        step = spreads[1] - spreads[0]
        sd = math.sqrt(float(share @ (spreads - mean) ** 2) + step**2 / 12)
        points, weight = self.prior.lattice()[0], self.mass.sum(0)
        names = points[0].keys()
        taus = {
            n: sum(w * point[n] for w, point in zip(weight, points, strict=True)) for n in names
        }
        return mean, sd, {name: float(value) for name, value in taus.items()}

    def draw(
        self, num_samples: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, " samples"], Float[np.ndarray, "samples parameters"]]:
        """Draws of s, and of log median and effects."""
        points = self.prior.lattice()[0]
        cell = rng.choice(self.mass.size, num_samples, p=self.mass.ravel())
        spread, theta = np.empty(num_samples), np.empty((num_samples, len(self.scale)))
        step = self.spreads[1] - self.spreads[0]
        for each in np.unique(cell):
            rows = np.flatnonzero(cell == each)
            at, point = np.unravel_index(each, self.mass.shape)
            expansion = self.expansions[at]
            mean, root = _conditional(expansion, self.prior, self.scale, points[point])
            theta[rows] = mean + rng.normal(size=(len(rows), len(mean))) @ root.T
            spread[rows] = expansion.spread + step * (rng.random(len(rows)) - 0.5)
        return np.abs(spread), theta

    def covariance(self) -> Float[np.ndarray, "parameters parameters"]:
        """Of the effects without a prior, where s is most likely."""
        information = _scaled(self.best, self.scale)
        return np.linalg.pinv(information, rcond=1e-9, hermitian=True)


def _scaled(expansion: Expansion, scale: np.ndarray) -> np.ndarray:
    return expansion.information / np.outer(scale, scale)


def _log_prior_of_spread(spread: np.ndarray) -> np.ndarray:
    """Log density of s whose cv is half normal."""
    square = np.expm1(spread**2)
    return -0.5 * square + spread**2 + np.log(spread) - 0.5 * np.log(square)


def _log_evidence(
    expansion: Expansion, prior: _Prior, scale: np.ndarray
) -> Float[np.ndarray, " points"]:
    """Log evidence at one s and all spreads of levels, effects integrated out."""
    points = prior.lattice()[0]
    precision = np.stack([prior.precision(point) for point in points])
    information, mean = _scaled(expansion, scale), prior.mean(expansion.spread)
    total = information + precision[:, :, None] * np.eye(len(mean))
    pull = information @ expansion.centre + precision * mean
    solved = np.linalg.solve(total, pull[:, :, None])[:, :, 0]
    quadratic = (pull * solved).sum(1) - (precision * mean**2).sum(1)
    constant = expansion.value - 0.5 * expansion.centre @ information @ expansion.centre
    log_det = np.log(precision).sum(1) - np.linalg.slogdet(total)[1]
    return constant + 0.5 * (quadratic + log_det)


def _conditional(
    expansion: Expansion, prior: _Prior, scale: np.ndarray, point: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the effects at one s and these spreads, and a root of their covariance."""
    precision, mean = prior.precision(point), prior.mean(expansion.spread)
    information = _scaled(expansion, scale)
    covariance = np.linalg.inv(information + np.diag(precision))
    best = covariance @ (information @ expansion.centre + precision * mean)
    return best, np.linalg.cholesky(covariance)


def _inflation(expansion: Expansion, columns: list[Column]) -> dict[str, float]:
    """Sandwich over model variance of each column's effects, at least 1.

    Slopes are clustered by annotator and, where pairs are known, by pair too (Cameron, Gelbach and
    Miller, Journal of Business & Economic Statistics 29, 2011).
    """
    model = np.linalg.pinv(expansion.information, rcond=1e-9, hermitian=True)
    found, first = {}, 1
    for column in columns:
        part = slice(first, first + column.size)
        clusters = [expansion.scores, expansion.pair_scores]
        found[column.name] = 1 + sum(
            max(0.0, _excess(each, model, part, column)) for each in clusters if each is not None
        )
        first += column.size
    return found


def _excess(
    scores: Float[np.ndarray, "clusters parameters"],
    model: np.ndarray,
    part: slice,
    column: Column,
) -> float:
    """How much larger a column's variances are by the slopes of clusters, as a share of them."""
    contrast, number = column.contrasts(), len(scores)
    effect = (scores - scores.mean(0)) @ model[:, part] @ contrast.T
    robust = (effect**2).sum(0) * number / max(1, number - column.size)
    plain = np.diag(contrast @ model[part, part] @ contrast.T)
    return float((robust / np.maximum(plain, 1e-300)).mean()) - 1


# The tables


def _summarise(
    choices: Choices,
    columns: list[Column],
    posterior: _Posterior,
    draws: tuple[np.ndarray, np.ndarray],
    num_drawn: int | None,
) -> StrengthEffects:
    spread, theta = draws
    covariance, centre = posterior.covariance(), posterior.best.centre
    levels: list[LevelEffect] = []
    rows: list[ColumnEffect] = []
    variances: dict[str, np.ndarray] = {}
    first = 1
    for column in columns:
        part, contrast = slice(first, first + column.size), column.contrasts()
        effect = theta[:, part] @ contrast.T
        test = _Wald.of(contrast, centre[part], covariance[part, part], choices, column)
        levels += _level_rows(choices, column, effect, test)
        variances[column.name] = (effect**2 * column.weight).sum(1)
        rows.append(_column_row(column, variances[column.name], test, posterior.inflation))
        first += column.size
    adjusted = _holm(np.array([each.p_value for each in levels]))
    levels = [replace(each, p_adjusted=float(p)) for each, p in zip(levels, adjusted, strict=True)]
    variances["unexplained, between annotators"] = spread**2
    best = posterior.best
    return StrengthEffects(
        levels=levels,
        columns=rows,
        shares=_shares(variances),
        cv=_quantiles(np.sqrt(np.expm1(spread**2))),
        log_likelihood=best.value,
        num_drawn=num_drawn,
    )


@dataclass(frozen=True)
class _Wald:
    """Tests of effects without pooling: differences from the mean, and all of them at once."""

    p_values: Float[np.ndarray, " effects"]
    joint: float

    @classmethod
    def of(
        cls,
        contrast: np.ndarray,
        centre: np.ndarray,
        covariance: np.ndarray,
        choices: Choices,
        column: Column,
    ) -> "_Wald":
        estimate, variance = contrast @ centre, contrast @ covariance @ contrast.T
        se = np.sqrt(np.maximum(np.diag(variance), 1e-300))
        rank = max(1, column.size - 1)
        freedom = max(1, choices.num_annotators - 1 - (rank if column.is_of_annotator else 0))
        if choices.pair is not None and not column.is_of_annotator:
            freedom = min(freedom, max(1, len(np.unique(choices.pair)) - 1 - rank))
        p_values = 2 * stdtr(freedom, -np.abs(estimate / se))
        inverse = np.linalg.pinv(variance, rcond=1e-9, hermitian=True)
        joint = fdtrc(rank, freedom, max(0.0, float(estimate @ inverse @ estimate)) / rank)
        return cls(p_values, float(joint))


def _level_rows(
    choices: Choices, column: Column, effect: Float[np.ndarray, "samples levels"], test: _Wald
) -> list[LevelEffect]:
    assert choices.annotator is not None
    person = choices.by_choice(choices.annotator)
    names = column.levels or ("per sd",)
    code = column.value if column.levels else np.zeros(len(person), dtype=int)
    low, middle, high = np.exp(np.quantile(effect, [0.05, 0.5, 0.95], axis=0))
    positive = (effect > 0).mean(0)
    return [
        LevelEffect(
            column=column.name,
            level=name,
            choices=int((code == k).sum()),
            annotators=len(np.unique(person[code == k])),
            ratio=float(middle[k]),
            q05=float(low[k]),
            q95=float(high[k]),
            p_sign=float(max(positive[k], 1 - positive[k])),
            p_value=float(test.p_values[k]),
            p_adjusted=math.nan,
        )
        for k, name in enumerate(names)
    ]


def _column_row(
    column: Column, variance: np.ndarray, test: _Wald, inflation: Mapping[str, float]
) -> ColumnEffect:
    return ColumnEffect(
        column=column.name,
        belongs_to="annotators" if column.is_of_annotator else "choices",
        levels=len(column.levels),
        centre=column.centre,
        scale=column.scale,
        sd=_quantiles(np.sqrt(variance)),
        p_value=test.joint,
        inflation=inflation[column.name],
    )


def _shares(variances: Mapping[str, np.ndarray]) -> list[VarianceShare]:
    total = np.sum(list(variances.values()), axis=0)
    return [VarianceShare(name, *_quantiles(each / total)) for name, each in variances.items()]


def _quantiles(draws: np.ndarray) -> tuple[float, float, float]:
    """Median, 5% and 95% quantile."""
    middle, low, high = np.quantile(draws, [0.5, 0.05, 0.95])
    return float(middle), float(low), float(high)


def _holm(p_values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """P-values adjusted for all of them (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = p_values.argsort()
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted
