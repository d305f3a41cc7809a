r"""The log-likelihood of (mean, cv) made cheap: data compressed once, evaluated often.

Pairs: :math:`\log P(\Delta; m, cv)` is a smooth function of one margin, so the sum over pairs is a
weighted sum over a few hundred nodes (the transpose of local polynomial interpolation).
Panels: an annotator's likelihood is a smooth function of one strength, so it is tabulated over the
strength once, and its expectation under any law is a matrix product.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import wrightomega

from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.models import Family, mixed_logit_log_prob, strength_distribution

__all__ = [
    "CompressedMargins",
    "Likelihood",
    "PanelTable",
    "compress",
    "likelihood",
    "pair_log_prob",
    "tabulate",
]

_ORDER = 8
"""Points of the local interpolation: degree 7."""

_STEP = 0.07
"""Node distance in asinh units; `error_bound` measures the error, of order eight in it."""

_PAD = _ORDER // 2 - 1
"""Nodes below the cell that is interpolated in."""

_MANY = 500
"""Distinct margins from which on interpolation is cheaper than the likelihood itself."""

_NARROW = np.linspace(-10, 10, 81)
"""Nodes of a law that is narrow beside the grid of a panel table, in its standard deviations."""

_CHUNK = 1_000_000
"""Pairs, or table cells, that are held as temporaries at once."""


class Likelihood(Protocol):
    """Total log-likelihood in nats at many parameters."""

    def __call__(
        self, mean: Float[np.ndarray, " points"], cv: Float[np.ndarray, " points"]
    ) -> Float[np.ndarray, " points"]:
        """Log-likelihood of the whole dataset, one value per parameter point."""
        ...


def likelihood(choices: Choices, family: Family, flip_probability: float = 0.0) -> Likelihood:
    """The marginal likelihood of a dataset: by pair, or by person where people repeat."""
    if choices.has_panels:
        return tabulate(choices, family, flip_probability)
    return compress(choices.margin, family, flip_probability)


# Pairs


@dataclass(frozen=True)
class CompressedMargins:
    r"""Margins as weighted nodes: :math:`\sum_i f(\Delta_i) \approx \sum_j w_j f(x_j)`, f smooth.

    Nodes are equally spaced in :math:`t = \operatorname{asinh}(\Delta / s)`; the weights are those
    of Lagrange interpolation of degree 7 through the eight nodes around each margin.

    Attributes:
        family: Law of the strength.
        flip_probability: Probability that a label was flipped.
        scale: The scale :math:`s`, in nats.
        low: Smallest margin in units of t, where the first cell begins.
        weight: Weights :math:`w_j`, of either sign; they sum to the number of pairs.
        count: Margins per cell between neighbouring nodes.
    """

    family: Family
    flip_probability: float
    scale: float
    low: float
    weight: Float[np.ndarray, " nodes"]
    count: Float[np.ndarray, " cells"]

    def __call__(
        self, mean: Float[np.ndarray, " points"], cv: Float[np.ndarray, " points"]
    ) -> Float[np.ndarray, " points"]:
        """Log-likelihood of all pairs at each parameter point, in nats."""
        return self._at_nodes(mean, cv) @ self.weight

    def per_pair(
        self,
        margin: Float[np.ndarray, " pairs"],
        mean: Float[np.ndarray, " points"],
        cv: Float[np.ndarray, " points"],
    ) -> Float[np.ndarray, "points pairs"]:
        """Log-probability of single pairs, whose margins lie within those that were compressed."""
        at_nodes = self._at_nodes(mean, cv)
        cell, basis = _locate(margin, self.scale, self.low, len(self.count))
        return sum(at_nodes[:, cell + k] * basis[k] for k in range(_ORDER))

    def error_bound(self, mean: float, cv: float) -> float:
        r"""What compression changes in the log-likelihood at most, in nats.

        The interpolation error in a cell is :math:`f^{(8)}(\xi) \prod_k (t - t_k) / 8!`, whose
        product is largest at the centre of the cell; it is measured there and summed with the
        number of margins in each cell (exact where :math:`f^{(8)}` is constant over eight nodes).
        """
        point = np.array([mean]), np.array([cv])
        centre = self.scale * np.sinh(self.low + _STEP * (np.arange(len(self.count)) + 0.5))
        exact = _log_prob(centre, *point, self.family, self.flip_probability)
        error = self.per_pair(centre, *point) - exact
        return float(np.abs(error[0]) @ self.count)

    def _at_nodes(self, mean: np.ndarray, cv: np.ndarray) -> Float[np.ndarray, "points nodes"]:
        t = self.low + _STEP * (np.arange(len(self.weight)) - _PAD)
        node = self.scale * np.sinh(t)
        return _log_prob(node, mean, cv, self.family, self.flip_probability)


def compress(
    margin: Float[np.ndarray, " pairs"], family: Family, flip_probability: float = 0.0
) -> CompressedMargins:
    """Replace margins by weighted nodes, a few hundred for any number of pairs.

    Args:
        margin: Finite margins that are not all zero.
        family: Law of the strength.
        flip_probability: Probability that a label was flipped.
    """
    # One thirtieth of the median resolves margins that are small beside the typical one.
    scale = float(np.median(np.abs(margin)) or np.abs(margin).mean()) / 30
    low, high = np.arcsinh(np.array([margin.min(), margin.max()]) / scale).tolist()
    num_cells = int((high - low) / _STEP) + 1
    weight, count = np.zeros(num_cells + _ORDER - 1), np.zeros(num_cells)
    for k in range(0, len(margin), _CHUNK):
        cell, basis = _locate(margin[k : k + _CHUNK], scale, low, num_cells)
        count += np.bincount(cell, minlength=num_cells)
        for j in range(_ORDER):
            weight += np.bincount(cell + j, basis[j], minlength=len(weight))
    return CompressedMargins(family, flip_probability, scale, low, weight, count)


def pair_log_prob(
    margin: Float[np.ndarray, " pairs"],
    mean: Float[np.ndarray, " points"],
    cv: Float[np.ndarray, " points"],
    family: Family,
    flip_probability: float = 0.0,
) -> Float[np.ndarray, "points pairs"]:
    """Log-probability of each pair at each parameter point, interpolated where pairs are many."""
    distinct, index = np.unique(margin, return_inverse=True)
    if len(distinct) <= _MANY:
        return _log_prob(distinct, mean, cv, family, flip_probability)[:, index]
    return compress(distinct, family, flip_probability).per_pair(margin, mean, cv)


def _log_prob(
    margin: np.ndarray, mean: np.ndarray, cv: np.ndarray, family: Family, flip_probability: float
) -> Float[np.ndarray, "points margins"]:
    value = np.empty((len(mean), len(margin)))
    rows = max(1, _CHUNK // (64 * len(margin)))
    for law, points in ((family, np.flatnonzero(cv)), ("fixed", np.flatnonzero(cv == 0))):
        for k in range(0, len(points), rows):
            chunk = points[k : k + rows]
            value[chunk] = mixed_logit_log_prob(
                torch.from_numpy(margin),
                torch.from_numpy(mean[chunk, None]),
                torch.from_numpy(cv[chunk, None]),
                law,
                flip_probability=flip_probability,
            ).numpy()
    return value


def _locate(
    margin: np.ndarray, scale: float, low: float, num_cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cell of each margin, which is also its first node, and the basis through its eight nodes."""
    position = (np.arcsinh(margin / scale) - low) / _STEP
    cell = np.clip(position.astype(np.int64), 0, num_cells - 1)
    return cell, _lagrange(position - cell + _PAD)


def _lagrange(x: Float[np.ndarray, " points"]) -> Float[np.ndarray, "order points"]:
    """Lagrange basis through the nodes 0, 1, ..., 7, at `x`."""
    nodes = range(_ORDER)
    return np.stack(
        [
            np.prod([x - m for m in nodes if m != k], axis=0)
            / math.prod(k - m for m in nodes if m != k)
            for k in nodes
        ]
    )


# Panels


@dataclass(frozen=True)
class PanelTable:
    r"""Each annotator's log-likelihood tabulated over the strength.

    The strength is :math:`\beta(z)` on an equally spaced grid of z: for a positive family
    :math:`\log\beta = c + z - e^{-z}`, which reaches the smallest strengths in few steps where
    likelihoods are flat; for the normal family :math:`\beta = b \sinh z`. A trapezoid rule over z
    then gives every annotator's marginal likelihood under any (mean, cv).

    Attributes:
        family: Law of the strength.
        z: Grid, equally spaced.
        origin: Constant c (positive families) or log b (normal).
        log_likelihood: Shape `(annotators, grid)`, in nats.
    """

    family: Family
    z: Float[np.ndarray, " grid"]
    origin: float
    log_likelihood: Float[np.ndarray, "annotators grid"]

    def __call__(
        self, mean: Float[np.ndarray, " points"], cv: Float[np.ndarray, " points"]
    ) -> Float[np.ndarray, " points"]:
        """Log-likelihood of all annotators at each parameter point, in nats."""
        return self.per_annotator(mean, cv).sum(0)

    def per_annotator(
        self, mean: Float[np.ndarray, " points"], cv: Float[np.ndarray, " points"]
    ) -> Float[np.ndarray, "annotators points"]:
        """Log-likelihood of each annotator's choices, their strength integrated out."""
        is_wide = self._is_wide(cv)
        value = np.empty((len(self.log_likelihood), len(mean)))
        if is_wide.any():
            value[:, is_wide] = self._wide(mean[is_wide], cv[is_wide])
        value[:, ~is_wide] = self._narrow(mean[~is_wide], cv[~is_wide])
        return value

    def draw_strengths(
        self,
        mean: Float[np.ndarray, " samples"],
        cv: Float[np.ndarray, " samples"],
        rng: np.random.Generator,
    ) -> Float[np.ndarray, "samples annotators"]:
        """One strength per annotator given their choices, for each draw of (mean, cv)."""
        value = np.empty((len(mean), len(self.log_likelihood)))
        wide = self._is_wide(cv)
        for k in range(len(mean)):
            if wide[k]:
                beta = self.strength
                log_mass = self.log_law(mean[k : k + 1], cv[k : k + 1])[:, 0]
                log_likelihood = self.log_likelihood
            else:
                rule = self._narrow_rule(mean[k : k + 1], cv[k : k + 1])
                beta, log_mass = rule[0][0], rule[1][0]
                log_likelihood = self._at(beta)
            value[k] = _draw_rows(beta, log_likelihood + log_mass, rng)
        return value

    def _is_wide(self, cv: np.ndarray) -> np.ndarray:
        """Whether the law's standard deviation, on the log scale, exceeds 1.5 grid steps."""
        return np.log1p(cv**2) > (1.5 * self.step) ** 2

    @property
    def step(self) -> float:
        """Distance of grid points."""
        return float(self.z[1] - self.z[0])

    @cached_property
    def strength(self) -> Float[np.ndarray, " grid"]:
        """Strengths at the grid points."""
        return _strength_at(self.z, self.origin, self.family)

    def log_law(
        self, mean: Float[np.ndarray, " points"], cv: Float[np.ndarray, " points"]
    ) -> Float[np.ndarray, "grid points"]:
        """Log of the law's mass per grid step."""
        density = _log_density(self.strength[:, None], mean, cv, self.family)
        return density + self._log_jacobian[:, None] + math.log(self.step)

    @cached_property
    def _log_jacobian(self) -> np.ndarray:
        """Log of d strength / d z."""
        if self.family == "normal":
            return self.origin + np.log(np.cosh(self.z))
        return self.origin + self.z - np.exp(-self.z) + np.log1p(np.exp(-self.z))

    @cached_property
    def _peak(self) -> np.ndarray:
        return self.log_likelihood.max(1)

    @cached_property
    def _relative_likelihood(self) -> np.ndarray:
        return np.exp(self.log_likelihood - self._peak[:, None])

    def _wide(self, mean: np.ndarray, cv: np.ndarray) -> np.ndarray:
        """The law is wide beside the grid: the grid is the rule."""
        with np.errstate(divide="ignore"):  # beyond 700 nats below the peak the value is -inf
            value = np.log(self._relative_likelihood @ np.exp(self.log_law(mean, cv)))
        return value + self._peak[:, None]

    def _narrow(self, mean: np.ndarray, cv: np.ndarray) -> np.ndarray:
        """The law is narrow beside the grid: interpolate the log-likelihood at its nodes."""
        value = np.empty((len(self.log_likelihood), len(mean)))
        rows = max(1, _CHUNK // (len(_NARROW) * len(value)))
        for k in range(0, len(mean), rows):
            beta, log_mass = self._narrow_rule(mean[k : k + rows], cv[k : k + rows])
            terms = self._at(beta.ravel()).reshape(-1, *beta.shape) + log_mass
            peak = terms.max(2)
            value[:, k : k + rows] = np.log(np.exp(terms - peak[..., None]).sum(2)) + peak
        return value

    def _narrow_rule(
        self, mean: np.ndarray, cv: np.ndarray
    ) -> tuple[Float[np.ndarray, "points nodes"], Float[np.ndarray, "points nodes"]]:
        """Strengths within ten standard deviations of the law, and the log of its mass at each."""
        mean, cv = mean[:, None], np.maximum(cv, 1e-9)[:, None]
        if self.family == "normal":
            beta, log_jacobian = mean * (1 + cv * _NARROW), np.zeros(1)
        else:
            beta, log_jacobian = mean * np.exp(cv * _NARROW), cv * _NARROW
        log_mass = _log_density(beta, mean, cv, self.family) + log_jacobian
        return beta, log_mass - np.logaddexp.reduce(log_mass, axis=1, keepdims=True)

    def _at(self, beta: np.ndarray) -> Float[np.ndarray, "annotators strengths"]:
        """Log-likelihood at any strength inside the table, by interpolation of degree 7."""
        if self.family == "normal":
            z = np.arcsinh(beta / math.exp(self.origin))
        else:
            t = np.log(beta) - self.origin
            z = t + wrightomega(-t)
        position = (z - self.z[0]) / self.step
        first = np.clip(position.astype(int) - _ORDER // 2 + 1, 0, len(self.z) - _ORDER)
        basis = _lagrange(position - first)
        return sum(self.log_likelihood[:, first + k] * basis[k] for k in range(_ORDER))


def tabulate(choices: Choices, family: Family, flip_probability: float = 0.0) -> PanelTable:
    r"""Tabulate every annotator's log-likelihood over the strength.

    The grid step is half of :math:`(0.44 \max_g n_g)^{-1/2}`, the narrowest that n choices can
    make a likelihood of the log strength (:math:`x^2 \sigma(x) \sigma(-x) \le 0.44`), at most 0.1.

    Args:
        choices: Data with annotator ids.
        family: Law of the strength, positive or normal.
        flip_probability: Probability that a label was flipped.

    Raises:
        ValueError: If there are no ids.
    """
    if choices.annotator is None:
        raise ValueError("Expected choices with annotator ids")
    size = np.bincount(choices.annotator)
    energy = np.sqrt(np.bincount(choices.annotator, choices.margin**2).max())
    step = min(0.1, 0.5 / math.sqrt(0.44 * size.max()))
    typical = 1 / np.median(np.abs(choices.margin[choices.margin != 0]))
    # Right end: thirteen e-folds above 1 / median margin, where choices have long been certain.
    high = math.log(typical) + 13
    if family == "normal":
        origin = math.log(1 / energy)
        reach = math.asinh(math.exp(high - 3 - origin))
        half = np.arange(step / 2, reach, step)
        z = np.concatenate([-half[::-1], half])
    else:
        origin = math.log(0.3 / energy)
        z = np.arange(-6.5, high - origin, step)
    beta = _strength_at(z, origin, family)
    return PanelTable(family, z, origin, _log_likelihood_at(beta, choices, flip_probability))


def _strength_at(z: np.ndarray, origin: float, family: Family) -> np.ndarray:
    if family == "normal":
        return math.exp(origin) * np.sinh(z)
    return np.exp(origin + z - np.exp(-z))


def _log_likelihood_at(
    beta: np.ndarray, choices: Choices, flip_probability: float
) -> Float[np.ndarray, "annotators strengths"]:
    """Log-likelihood of every annotator at each strength; a negative one mirrors the margins."""
    margin, annotator = torch.from_numpy(choices.margin), torch.from_numpy(choices.annotator)
    value = np.empty((len(beta), choices.num_annotators))
    rows = max(1, _CHUNK // choices.num_pairs)
    for sign, points in ((1, np.flatnonzero(beta > 0)), (-1, np.flatnonzero(beta < 0))):
        for k in range(0, len(points), rows):
            chunk = points[k : k + rows]
            value[chunk] = mixed_logit_log_prob(
                sign * margin,
                torch.from_numpy(sign * beta[chunk, None]),
                0.0,
                "fixed",
                annotator=annotator,
                flip_probability=flip_probability,
            ).numpy()
    return np.ascontiguousarray(value.T)


def _log_density(beta: np.ndarray, mean: np.ndarray, cv: np.ndarray, family: Family) -> np.ndarray:
    law = strength_distribution(torch.as_tensor(mean), torch.as_tensor(cv), family)
    return law.log_prob(torch.from_numpy(beta)).numpy()


def _draw_rows(
    value: Float[np.ndarray, " nodes"],
    log_density: Float[np.ndarray, "rows nodes"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " rows"]:
    """One draw per row from densities tabulated on equally spaced nodes."""
    density = np.exp(log_density - log_density.max(1, keepdims=True))
    cumulative = (density[:, 1:] + density[:, :-1]).cumsum(1)
    target = rng.random((len(density), 1)) * cumulative[:, -1:]
    cell = (cumulative < target).sum(1)
    rows = np.arange(len(density))
    below = np.where(cell > 0, cumulative[rows, cell - 1], 0.0)
    fraction = (target[:, 0] - below) / (cumulative[rows, cell] - below)
    return value[cell] + fraction * (value[cell + 1] - value[cell])
