r"""The log-likelihood of (mean, cv) made cheap: data compressed once, evaluated often.

Pairs: :math:`\log P(\Delta; m, cv)` is a smooth function of one margin, so the sum over pairs is a
weighted sum over a few hundred nodes (the transpose of local polynomial interpolation).
Panels: an annotator's likelihood is a smooth function of one strength, so it is tabulated over the
strength once, and its expectation under any law is a matrix product.
Both are differentiable in mean and cv, and none of their costs grows with the number of pairs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import wrightomega
from torch import Tensor

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

_NARROW = torch.linspace(-16, 16, 65, dtype=torch.float64)
"""Nodes of a law that is narrow beside the grid of a panel table, in its standard deviations.

The law times a likelihood has at least 0.8 of the law's standard deviation, since the grid
resolves the likelihood; a trapezoid rule with half a deviation between nodes is then off by
exp(-50). Its centre lies off the law's by the likelihood's slope over the log strength times the
law's deviation: 7 deviations for 740 choices under a mean of five times theirs, 400 nats below
the maximum. Farther out mass is lost, which makes an impossible parameter look less likely still.
"""

_LAW_NATS = 60.0
"""Strengths whose law lies further below its top are left out where draws allow it."""

_OUTLYING = 1e-12
"""Share of the largest possible weight below which draws look at every strength after all."""

_TINY = 1e-6
"""Stands for a cv of zero, from which log-likelihoods differ in its square, by 1e-12 a choice."""

_EXTREME = (1e-30, 1e30)
"""Means beyond are taken for these: leapfrog steps may overshoot that far."""

_CHUNK = 1_000_000
"""Pairs, or table cells, that are held as temporaries at once."""


@runtime_checkable
class Likelihood(Protocol):
    """Total log-likelihood in nats, at many parameters at once."""

    def __call__(
        self, mean: Float[Tensor, "*points"], cv: Float[Tensor, "*points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of the whole dataset at each point, in nats; float64, differentiable."""
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
    weight: Float[Tensor, " nodes"]
    count: Float[Tensor, " cells"]

    def __call__(
        self, mean: Float[Tensor, "*points"], cv: Float[Tensor, "*points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of all pairs at each point, in nats."""
        return self._at_nodes(mean, cv) @ self.weight

    def per_pair(
        self,
        margin: Float[Tensor, " pairs"],
        mean: Float[Tensor, "*points"],
        cv: Float[Tensor, "*points"],
    ) -> Float[Tensor, "*points pairs"]:
        """Log-probability of single pairs, whose margins lie within those that were compressed."""
        at_nodes = self._at_nodes(mean, cv)
        cell, basis = _locate(margin, self.scale, self.low, len(self.count))
        return _total(at_nodes[..., cell + k] * basis[k] for k in range(_ORDER))

    def error_bound(self, mean: float, cv: float) -> float:
        r"""What compression changes in the log-likelihood at most, in nats.

        The interpolation error in a cell is :math:`f^{(8)}(\xi) \prod_k (t - t_k) / 8!`, whose
        product is largest at the centre of the cell; it is measured there and summed with the
        number of margins in each cell (exact where :math:`f^{(8)}` is constant over eight nodes).
        """
        point = torch.tensor([mean, cv], dtype=torch.float64)
        steps = torch.arange(len(self.count), dtype=torch.float64) + 0.5
        centre = self.scale * torch.sinh(self.low + _STEP * steps)
        exact = _log_prob(centre, point[0], point[1], self.family, self.flip_probability)
        error = self.per_pair(centre, point[0], point[1]) - exact
        return float(error.abs() @ self.count)

    def _at_nodes(self, mean: Tensor, cv: Tensor) -> Float[Tensor, "*points nodes"]:
        steps = torch.arange(len(self.weight), dtype=torch.float64) - _PAD
        node = self.scale * torch.sinh(self.low + _STEP * steps)
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
    weight = torch.zeros(num_cells + _ORDER - 1, dtype=torch.float64)
    count = torch.zeros(num_cells, dtype=torch.float64)
    for part in torch.from_numpy(margin).split(_CHUNK):
        cell, basis = _locate(part, scale, low, num_cells)
        count += torch.bincount(cell, minlength=num_cells)
        for k in range(_ORDER):
            weight += torch.bincount(cell + k, basis[k], minlength=len(weight))
    return CompressedMargins(family, flip_probability, scale, low, weight, count)


def pair_log_prob(
    margin: Float[np.ndarray, " pairs"],
    mean: Float[np.ndarray, " points"],
    cv: Float[np.ndarray, " points"],
    family: Family,
    flip_probability: float = 0.0,
) -> Float[np.ndarray, "points pairs"]:
    """Log-probability of each pair at each point, interpolated where pairs are many."""
    point = torch.from_numpy(mean), torch.from_numpy(cv)
    distinct, index = np.unique(margin, return_inverse=True)
    if len(distinct) > _MANY:
        compressed = compress(distinct, family, flip_probability)
        return compressed.per_pair(torch.from_numpy(margin), *point).numpy()
    value = _log_prob(torch.from_numpy(distinct), *point, family, flip_probability)
    return value.numpy()[:, index]


def _log_prob(
    margin: Float[Tensor, " margins"],
    mean: Float[Tensor, "*points"],
    cv: Float[Tensor, "*points"],
    family: Family,
    flip_probability: float,
) -> Float[Tensor, "*points margins"]:
    """Log-probability of each margin at each point, in slices; cv may be 0."""
    points = torch.broadcast_tensors(mean.clamp(*_EXTREME), cv.clamp(_TINY, 1 / _TINY))
    rows = max(1, _CHUNK // (64 * len(margin)))
    chunks = zip(*(x.reshape(-1, 1).split(rows) for x in points), strict=True)
    parts = [
        mixed_logit_log_prob(
            margin,
            mean_part,
            cv_part,
            family,
            flip_probability=flip_probability,
        )
        for mean_part, cv_part in chunks
    ]
    return torch.cat(parts).reshape(*points[0].shape, len(margin))


def _locate(
    margin: Float[Tensor, " pairs"], scale: float, low: float, num_cells: int
) -> tuple[Int[Tensor, " pairs"], list[Float[Tensor, " pairs"]]]:
    """Cell of each margin, which is also its first node, and the basis through its eight nodes."""
    position = (torch.asinh(margin / scale) - low) / _STEP
    cell = position.detach().long().clamp(0, num_cells - 1)
    return cell, _lagrange(position - cell + _PAD)


def _lagrange(x: Float[Tensor, "*points"]) -> list[Float[Tensor, "*points"]]:
    """Lagrange basis through the nodes 0, 1, ..., 7, at `x`."""
    nodes = range(_ORDER)
    difference = [x - m for m in nodes]
    return [
        reduce(torch.mul, (difference[m] for m in nodes if m != k))
        / math.prod(k - m for m in nodes if m != k)
        for k in nodes
    ]


def _total(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


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
    z: Float[Tensor, " grid"]
    origin: float
    log_likelihood: Float[Tensor, "annotators grid"]

    def __call__(
        self, mean: Float[Tensor, "*points"], cv: Float[Tensor, "*points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of all annotators at each point, in nats."""
        return self.per_annotator(mean, cv).sum(0)

    def per_annotator(
        self, mean: Float[Tensor, "*points"], cv: Float[Tensor, "*points"]
    ) -> Float[Tensor, " annotators *points"]:
        """Log-likelihood of each annotator's choices, their strength integrated out."""
        mean, cv = torch.broadcast_tensors(mean.clamp(*_EXTREME), cv.clamp(_TINY, 1 / _TINY))
        flat_mean, flat_cv = mean.reshape(-1), cv.reshape(-1)
        wide = self._is_wide(flat_cv).nonzero()[:, 0]
        narrow = (~self._is_wide(flat_cv)).nonzero()[:, 0]
        parts = [
            self._wide(flat_mean[wide], flat_cv[wide]),
            *(
                self._narrow(flat_mean[part], flat_cv[part])
                for part in narrow.split(
                    max(1, _CHUNK // (len(_NARROW) * len(self.log_likelihood)))
                )
            ),
        ]
        order = torch.cat([wide, narrow]).argsort()
        return torch.cat(parts, dim=1)[:, order].reshape(-1, *mean.shape)

    @torch.no_grad()
    def draw_strengths(
        self,
        mean: Float[Tensor, " samples"],
        cv: Float[Tensor, " samples"],
        rng: np.random.Generator,
    ) -> Float[Tensor, "samples annotators"]:
        """One strength per annotator given their choices, for each draw of (mean, cv)."""
        value = torch.empty(len(mean), len(self.log_likelihood), dtype=torch.float64)
        wide = self._is_wide(cv)
        for k in range(len(mean)):
            point = mean[k : k + 1], cv[k : k + 1]
            uniform = torch.from_numpy(1 - rng.random((len(self.log_likelihood), 1)))
            if wide[k]:
                value[k] = self._draw_from_grid(self._log_law(*point)[:, 0], uniform)
            else:
                beta, log_mass = (x[0] for x in self._narrow_rule(*point))
                value[k] = _draw_rows(beta, _density(self._at(beta) + log_mass), uniform)
        return value

    def _draw_from_grid(
        self, log_law: Float[Tensor, " grid"], uniform: Float[Tensor, "annotators 1"]
    ) -> Float[Tensor, " annotators"]:
        """One strength per annotator under a law that is wide beside the grid."""
        log_law = log_law - log_law.max()
        kept = (log_law > -_LAW_NATS).nonzero()[:, 0]
        near = slice(int(kept[0]), int(kept[-1]) + 1)
        density = self._relative_likelihood[:, near] * log_law[near].exp()
        value = _draw_rows(self._strength[near], density, uniform)
        rare = (density.amax(1) < _OUTLYING).nonzero()[:, 0]
        if len(rare):
            whole = _density(self.log_likelihood[rare] + log_law)
            value[rare] = _draw_rows(self._strength, whole, uniform[rare])
        return value

    @property
    def step(self) -> float:
        """Distance of grid points."""
        return float(self.z[1] - self.z[0])

    def _is_wide(self, cv: Tensor) -> Tensor:
        """Whether the law's standard deviation, on the log scale, exceeds 1.5 grid steps."""
        return cv.square().log1p() > (1.5 * self.step) ** 2

    def _wide(self, mean: Tensor, cv: Tensor) -> Float[Tensor, "annotators points"]:
        """The law is wide beside the grid: the grid is the rule."""
        expected = self._relative_likelihood @ self._log_law(mean, cv).exp()
        return expected.log() + self._peak[:, None]

    def _log_law(self, mean: Tensor, cv: Tensor) -> Float[Tensor, "grid points"]:
        """Log of the law's mass per grid step."""
        density = _log_density(self._strength[:, None], mean, cv, self.family)
        return density + self._log_jacobian[:, None] + math.log(self.step)

    @cached_property
    def _strength(self) -> Tensor:
        return _strength_at(self.z, self.origin, self.family)

    @cached_property
    def _log_jacobian(self) -> Tensor:
        """Log of d strength / d z."""
        if self.family == "normal":
            return self.origin + self.z.cosh().log()
        decay = torch.exp(-self.z)
        return self.origin + self.z - decay + decay.log1p()

    @cached_property
    def _peak(self) -> Tensor:
        return self.log_likelihood.amax(1)

    @cached_property
    def _relative_likelihood(self) -> Tensor:
        return torch.exp(self.log_likelihood - self._peak[:, None])

    def _narrow(self, mean: Tensor, cv: Tensor) -> Float[Tensor, "annotators points"]:
        """The law is narrow beside the grid: interpolate the log-likelihood at its nodes."""
        beta, log_mass = self._narrow_rule(mean, cv)
        return (self._at(beta) + log_mass).logsumexp(-1)

    def _narrow_rule(self, mean: Tensor, cv: Tensor) -> tuple[Tensor, Tensor]:
        """Strengths at the nodes of the law and the log of its mass there, `(points, nodes)`."""
        mean, cv = mean[:, None], cv[:, None]
        offset = cv * _NARROW
        if self.family == "normal":
            beta, log_mass = mean * (1 + offset), -_NARROW.square().expand_as(offset) / 2
        else:
            beta = mean * offset.exp()
            log_mass = _log_density(beta, mean, cv, self.family) + offset
        return beta, log_mass - log_mass.logsumexp(1, keepdim=True)

    def _at(self, beta: Float[Tensor, "*points"]) -> Float[Tensor, " annotators *points"]:
        """Log-likelihood at any strength inside the table, by interpolation of degree 7."""
        position = (self._coordinate(beta) - self.z[0]) / self.step
        first = (position.detach().long() - _PAD).clamp(0, len(self.z) - _ORDER)
        basis = _lagrange(position - first)
        terms = (self._by_strength[first + k] * basis[k][..., None] for k in range(_ORDER))
        return _total(terms).movedim(-1, 0)

    @cached_property
    def _by_strength(self) -> Float[Tensor, "grid annotators"]:
        """The table with a row per strength, which makes gathering fast."""
        return self.log_likelihood.T.contiguous()

    def _coordinate(self, beta: Tensor) -> Tensor:
        """The coordinate z of a strength."""
        if self.family == "normal":
            return torch.asinh(beta / math.exp(self.origin))
        t = beta.log() - self.origin
        z = (t + torch.from_numpy(wrightomega(-t.detach().numpy()))).detach()
        decay = torch.exp(-z)
        return z + (t - (z - decay)) / (
            1 + decay
        )  # a Newton step of size zero, for the derivative


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
        half = np.arange(step / 2, math.asinh(math.exp(high - 3 - origin)), step)
        grid = np.concatenate([-half[::-1], half])
    else:
        origin = math.log(0.3 / energy)
        grid = np.arange(-6.5, high - origin, step)
    z = torch.from_numpy(grid)
    beta = _strength_at(z, origin, family)
    return PanelTable(family, z, origin, _log_likelihood_at(beta, choices, flip_probability))


def _strength_at(z: Tensor, origin: float, family: Family) -> Tensor:
    if family == "normal":
        return math.exp(origin) * z.sinh()
    return torch.exp(origin + z - torch.exp(-z))


def _log_likelihood_at(
    beta: Float[Tensor, " strengths"], choices: Choices, flip_probability: float
) -> Float[Tensor, "annotators strengths"]:
    """Log-likelihood of every annotator at each strength; a negative one mirrors the margins."""
    margin, annotator = torch.from_numpy(choices.margin), torch.from_numpy(choices.annotator)
    value = torch.empty(len(beta), choices.num_annotators, dtype=torch.float64)
    rows = max(1, _CHUNK // choices.num_pairs)
    for sign in (1, -1):
        for chunk in (sign * beta > 0).nonzero()[:, 0].split(rows):
            value[chunk] = mixed_logit_log_prob(
                sign * margin,
                sign * beta[chunk, None],
                0.0,
                "fixed",
                annotator=annotator,
                flip_probability=flip_probability,
            )
    return value.T.contiguous()


def _log_density(beta: Tensor, mean: Tensor, cv: Tensor, family: Family) -> Tensor:
    return strength_distribution(mean, cv, family).log_prob(beta)


def _density(log_density: Float[Tensor, "rows nodes"]) -> Float[Tensor, "rows nodes"]:
    """Densities, each row relative to its largest."""
    return torch.exp(log_density - log_density.amax(1, keepdim=True))


def _draw_rows(
    value: Float[Tensor, " nodes"],
    density: Float[Tensor, "rows nodes"],
    uniform: Float[Tensor, "rows 1"],
) -> Float[Tensor, " rows"]:
    """Inverse distribution functions of densities tabulated on equally spaced nodes."""
    cumulative = (density[:, 1:] + density[:, :-1]).cumsum(1)
    target = uniform * cumulative[:, -1:]
    cell = torch.searchsorted(cumulative, target).clamp(max=cumulative.shape[1] - 1)
    below = torch.where(cell > 0, cumulative.gather(1, (cell - 1).clamp(min=0)), 0.0)
    fraction = (target - below) / (cumulative.gather(1, cell) - below)
    return (value[cell] + fraction * (value[cell + 1] - value[cell]))[:, 0]
