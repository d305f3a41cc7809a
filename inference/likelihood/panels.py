"""The likelihood of panels: each annotator's log-likelihood, tabulated over the strength."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import wrightomega
from torch import Tensor

from mixdpo_pyro.inference.choices import Choices, select_annotators, select_units
from mixdpo_pyro.inference.likelihood.interpolation import (
    CHUNK,
    MEAN_RANGE,
    ORDER,
    PAD,
    TINY_CV,
    lagrange_basis,
    sum_terms,
)
from mixdpo_pyro.inference.likelihood.margin_errors import erring_log_prob
from mixdpo_pyro.inference.likelihood.observed import (
    LARGEST_INFORMATION,
    information_bound,
    observed_log_likelihood,
    with_lapses,
)
from mixdpo_pyro.models import Family, mixed_logit_log_prob
from mixdpo_pyro.models.families import strength_log_density
from mixdpo_pyro.models.quadrature import choice_log_prob

__all__ = [
    "PanelGrid",
    "PanelTable",
    "describe_draws",
    "log_likelihood_at",
    "panel_sizes",
    "strength_grid",
    "tabulate",
]

_COARSEST = 0.1
"""Largest grid step; the log of a strength's density bends on a scale of one."""

_SMOOTH = 0.2
"""Grid step of smooth likelihoods in the width that information gives them: see the tests."""

_STEEP = 0.05
"""Likelihoods below this share of their largest fall too fast to be polynomials themselves."""

_SIZE_RATIO = 16
"""Numbers of choices that share a grid differ by this at most; its step by the root, four."""

_MANY = 32
"""Choices per annotator from which on weighted nodes are cheaper than the choices themselves."""

_MARGIN_STEP = 0.05
r"""Distance of nodes in the log margin, in which :math:`\log\sigma(\pm\beta e^t)` is analytic
within :math:`\pi/2` of the real line: twelve of them are off by 3e-14 nats a choice."""

_MARGIN_ORDER = 12
"""Points of the interpolation between margins."""

_PART = 200_000
"""Choices whose weights on nodes are held at once, with twelve temporaries each."""

_QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
"""Quantiles that describe a strength."""

_NUM_DRAWN = 200
"""Draws that describe strengths whose distribution is narrower than the grid."""

_UNDERFLOW = 1e-250
"""Evidence, relative to the largest likelihood, below which sums are taken in logs."""

_NARROW = torch.linspace(-16, 16, 65, dtype=torch.float64)
"""Nodes of a distribution that is narrow beside the grid, in its standard deviations.

The distribution times a likelihood has at least 0.8 of the distribution's standard deviation,
since the grid resolves the likelihood; a trapezoid rule with half a deviation between nodes is
then off by exp(-50). Its centre lies off the distribution's by the likelihood's slope over the log
strength times the distribution's deviation: 7 deviations for 740 choices under a mean of five
times theirs, 400 nats below the maximum. Farther out mass is lost, which makes an impossible
parameter look less likely still.
"""

_MASS_NATS = 60.0
"""Strengths whose distribution lies further below its top are left out where draws allow it."""

_NEAR = 96
"""Grid points that strengths span at most for their interpolation to be one product."""

_OUTLYING = 1e-12
"""Share of the largest possible weight below which draws look at every strength after all."""


# Panels


@dataclass(frozen=True)
class PanelTable:
    """Each annotator's log-likelihood tabulated over the strength, on grids by number of choices.

    More choices need a finer grid; were it one for all, one diligent annotator would make it as
    fine for everybody.

    Attributes:
        grids: Tables of annotators with about equally many choices.
        members: Indices of the annotators of each grid.
    """

    grids: tuple["PanelGrid", ...]
    members: tuple[Int[Tensor, " _"], ...]

    def __call__(
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of all annotators at each point, in nats."""
        return sum_terms(grid(mean, cv) for grid in self.grids)

    @property
    def num_annotators(self) -> int:
        """Number of annotators."""
        return sum(map(len, self.members))

    @property
    def num_cells(self) -> int:
        """Numbers that are held: annotators times strengths."""
        return sum(grid.log_likelihood.numel() for grid in self.grids)

    def per_annotator(
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, " annotators *points"]:
        """Log-likelihood of each annotator's choices, their strength integrated out."""
        return torch.cat([grid.per_annotator(mean, cv) for grid in self.grids])[self._place]

    def draw_strengths(
        self,
        mean: Float[Tensor, " samples"],
        cv: Float[Tensor, " samples"],
        rng: np.random.Generator,
    ) -> Float[Tensor, "samples annotators"]:
        """One strength per annotator given their choices, for each draw of (mean, cv)."""
        value = torch.empty(len(mean), self.num_annotators, dtype=torch.float64)
        for k in range(len(mean)):
            uniform = torch.from_numpy(1 - rng.random((self.num_annotators, 1)))
            for grid, member in zip(self.grids, self.members, strict=True):
                point = mean[k : k + 1], cv[k : k + 1]
                value[k, member] = grid.draw_strengths(*point, uniform[member])
        return value

    def summarise_strengths(
        self, mean: Float[np.ndarray, " samples"], cv: Float[np.ndarray, " samples"]
    ) -> dict[str, Float[np.ndarray, " annotators"]]:
        """Posterior of each annotator's strength, averaged over draws of (mean, cv).

        Returns:
            `mean`, `sd`, the quantiles `q05`, `q50` and `q95`, `log_sd` (NaN where strengths may
            be negative) and `p_not_positive`.
        """
        point = torch.from_numpy(mean), torch.from_numpy(cv)
        parts = [grid.summarise_strengths(*point) for grid in self.grids]
        return {k: torch.cat([part[k] for part in parts])[self._place].numpy() for k in parts[0]}

    @cached_property
    def _place(self) -> Tensor:
        """Where each annotator stands in the grids, one after another."""
        return torch.cat(self.members).argsort()


@dataclass(frozen=True)
class PanelGrid:
    r"""Each annotator's log-likelihood tabulated over the strength.

    The strength is :math:`\beta(z)` on an equally spaced grid of z: for a positive family
    :math:`\log\beta = c + z - e^{-z}`, which reaches the smallest strengths in few steps where
    likelihoods are flat; for the normal family :math:`\beta = b \sinh z`. A trapezoid rule over z
    then gives every annotator's marginal likelihood under any (mean, cv).

    Attributes:
        family: Family of the strength.
        z: Grid, equally spaced.
        origin: Constant c (positive families) or log b (normal).
        log_likelihood: Shape `(annotators, grid)`, in nats.
        is_smooth: Whether the likelihoods themselves, and not only their logs, are polynomials
            between grid points, which spares a pass over all of them for narrow distributions.
    """

    family: Family
    z: Float[Tensor, " grid"]
    origin: float
    log_likelihood: Float[Tensor, "annotators grid"]
    is_smooth: bool = False

    def __call__(
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of all its annotators at each point, in nats."""
        return self._evaluate(mean, cv, lambda part: part.sum(0))

    def per_annotator(
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, " annotators *points"]:
        """Log-likelihood of each annotator's choices, their strength integrated out.

        Sums that underflow, far from all that an annotator's choices allow, are taken in logs.
        """
        value = self._evaluate(mean, cv, lambda part: part)
        flat = value.reshape(len(value), -1)
        row, point = flat.isneginf().nonzero(as_tuple=True)
        if len(row) == 0:
            return value
        flat, (mean, cv) = flat.clone(), torch.broadcast_tensors(mean, cv)
        for k in point.unique():
            at = (x.reshape(-1)[k].reshape(1) for x in (mean, cv))
            rows, log_mass = row[point == k], self._log_mass(*at)[:, 0]
            flat[rows, k] = (self.log_likelihood[rows] + log_mass).logsumexp(1)
        return flat.reshape(value.shape)

    def _evaluate(self, mean: Tensor, cv: Tensor, summed: Callable[[Tensor], Tensor]) -> Tensor:
        """Part by part of the points, so that few are held for all annotators at once."""
        mean, cv = torch.broadcast_tensors(mean.clamp(*MEAN_RANGE), cv.clamp(TINY_CV, 1 / TINY_CV))
        flat_mean, flat_cv = mean.reshape(-1), cv.reshape(-1)
        wide = self._is_wide(flat_cv).nonzero()[:, 0]
        narrow = (~self._is_wide(flat_cv)).nonzero()[:, 0]
        num_wide = max(1, CHUNK // max(self.log_likelihood.shape))
        num_narrow = max(1, CHUNK // (len(_NARROW) * len(self.log_likelihood)))
        parts = [
            *(summed(self._wide(flat_mean[p], flat_cv[p])) for p in wide.split(num_wide)),
            *(summed(self._narrow(flat_mean[p], flat_cv[p])) for p in narrow.split(num_narrow)),
        ]
        order = torch.cat([wide, narrow]).argsort()
        found = torch.cat(parts, dim=-1)[..., order]
        return found.reshape((*found.shape[:-1], *mean.shape))

    @torch.no_grad()
    def draw_strengths(
        self,
        mean: Float[Tensor, " 1"],
        cv: Float[Tensor, " 1"],
        uniform: Float[Tensor, "annotators 1"],
    ) -> Float[Tensor, " annotators"]:
        """One strength per annotator given their choices and (mean, cv), by inversion."""
        if self._is_wide(cv):
            return self._draw_from_grid(self._log_mass(mean, cv)[:, 0], uniform)
        beta, log_mass = (x[0] for x in self._narrow_rule(mean, cv))
        return _draw_rows(beta, _density(self._at(beta) + log_mass), uniform)

    @torch.no_grad()
    def summarise_strengths(
        self, mean: Float[Tensor, " samples"], cv: Float[Tensor, " samples"]
    ) -> dict[str, Float[Tensor, " annotators"]]:
        """See :meth:`PanelTable.summarise_strengths`.

        The nodes of a narrow distribution are its own, so that strengths are drawn there.
        """
        if self._is_wide(cv).all():
            return _describe(self.strength, self._mixture(mean, cv))
        rng, shape = np.random.default_rng(0), (len(self.log_likelihood), 1)
        points = zip(mean[:_NUM_DRAWN].split(1), cv[:_NUM_DRAWN].split(1), strict=True)
        draws = [
            self.draw_strengths(*point, torch.from_numpy(1 - rng.random(shape)))
            for point in points
        ]
        described = describe_draws(torch.stack(draws).numpy())
        return {name: torch.from_numpy(value) for name, value in described.items()}

    @torch.no_grad()
    def posterior_nodes(
        self, mean: Float[Tensor, " 1"], cv: Float[Tensor, " 1"]
    ) -> tuple[Float[Tensor, " nodes"], Float[Tensor, "annotators nodes"]]:
        """Strengths, and the log posterior mass of each annotator's strength there."""
        if self._is_wide(cv):
            log_weight = self.log_likelihood + self._log_mass(mean, cv)[:, 0]
            return self.strength, log_weight.log_softmax(1)
        beta, log_mass = (x[0] for x in self._narrow_rule(mean, cv))
        return beta, (self._at(beta) + log_mass).log_softmax(1)

    def _mixture(self, mean: Tensor, cv: Tensor) -> Float[Tensor, "annotators grid"]:
        """Each annotator's posterior density over the grid, summed over draws of (mean, cv)."""
        factor, likelihood = torch.zeros_like(self.log_likelihood), self._relative_likelihood
        is_rare = torch.zeros(len(factor), dtype=torch.bool)
        size = max(1, CHUNK // max(likelihood.shape))
        for part in zip(mean.split(size), cv.split(size), strict=True):
            mass = self._log_mass(*part).exp()
            evidence = likelihood @ mass
            is_rare |= (evidence < _UNDERFLOW).any(1)
            factor += evidence.clamp(min=_UNDERFLOW).reciprocal() @ mass.T
        factor *= likelihood
        for row in is_rare.nonzero()[:, 0]:
            factor[row] = self._rare_mixture(row, mean, cv)
        return factor

    def _rare_mixture(self, row: Tensor, mean: Tensor, cv: Tensor) -> Float[Tensor, " grid"]:
        """The same for an annotator so far out that the likelihood underflows."""
        size = max(1, CHUNK // len(self.z))
        return sum_terms(
            (self.log_likelihood[row, :, None] + self._log_mass(*part)).softmax(0).sum(1)
            for part in zip(mean.split(size), cv.split(size), strict=True)
        )

    def _draw_from_grid(
        self, log_mass: Float[Tensor, " grid"], uniform: Float[Tensor, "annotators 1"]
    ) -> Float[Tensor, " annotators"]:
        """One strength per annotator under a distribution that is wide beside the grid."""
        log_mass = log_mass - log_mass.max()
        kept = (log_mass > -_MASS_NATS).nonzero()[:, 0]
        near = slice(max(int(kept[0]) - 1, 0), int(kept[-1]) + 2)  # two nodes at least
        density = self._relative_likelihood[:, near] * log_mass[near].exp()
        value = _draw_rows(self.strength[near], density, uniform)
        rare = (density.amax(1) < _OUTLYING).nonzero()[:, 0]
        if len(rare):
            whole = _density(self.log_likelihood[rare] + log_mass)
            value[rare] = _draw_rows(self.strength, whole, uniform[rare])
        return value

    @property
    def step(self) -> float:
        """Distance of grid points."""
        return float(self.z[1] - self.z[0])

    def _is_wide(self, cv: Tensor) -> Tensor:
        """Whether the standard deviation of the log strength exceeds 1.5 grid steps."""
        return cv.square().log1p() > (1.5 * self.step) ** 2

    def _wide(self, mean: Tensor, cv: Tensor) -> Float[Tensor, "annotators points"]:
        """The distribution is wide: the grid is the rule."""
        expected = self._relative_likelihood @ self._log_mass(mean, cv).exp()
        return expected.log() + self._peak[:, None]

    def _log_mass(self, mean: Tensor, cv: Tensor) -> Float[Tensor, "grid points"]:
        """Log of the distribution's mass per grid step."""
        density = strength_log_density(self.strength[:, None], mean, cv, self.family)
        return density + self._log_jacobian[:, None] + math.log(self.step)

    @cached_property
    def strength(self) -> Float[Tensor, " grid"]:
        """The strength at each point of the grid."""
        return strength_grid(self.z, self.origin, self.family)

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
        """The distribution is narrow: interpolate the log-likelihood at its nodes."""
        beta, log_mass = self._narrow_rule(mean, cv)
        if self.is_smooth:
            return self._smooth(beta, log_mass)
        value = self._by_node(beta)
        expected = torch.bmm(log_mass.exp()[:, None], (value - self._peak).exp())[:, 0]
        if (expected < _UNDERFLOW).any():
            return (value + log_mass[..., None]).logsumexp(1).T
        return (expected.log() + self._peak).T

    def _smooth(
        self, beta: Float[Tensor, "points nodes"], log_mass: Float[Tensor, "points nodes"]
    ) -> Float[Tensor, "annotators points"]:
        """Interpolate the likelihoods: the mass of the nodes goes to the grid points beside."""
        first, basis = self._interpolation(beta)
        mass, column = log_mass.exp(), torch.arange(ORDER)
        share = torch.stack(basis, -1) * mass[..., None]
        at_grid = beta.new_zeros(len(beta), len(self.z)).scatter_add(
            1, (first[..., None] + column).flatten(1), share.flatten(1)
        )
        expected = self._relative_likelihood @ at_grid.T
        value = expected.clamp(min=_UNDERFLOW).log() + self._peak[:, None]
        is_steep = expected < _STEEP
        parts = list(value.unbind(1))
        for k in is_steep.any(0).nonzero()[:, 0]:
            rows = is_steep[:, k].nonzero()[:, 0]
            steep = replace(self, log_likelihood=self.log_likelihood[rows])
            exact = (steep._at(beta[k]) + log_mass[k]).logsumexp(-1)
            parts[k] = parts[k].index_copy(0, rows, exact)
        return torch.stack(parts, 1) if parts else value

    def _narrow_rule(self, mean: Tensor, cv: Tensor) -> tuple[Tensor, Tensor]:
        """Strengths at the distribution's nodes and its log mass there, `(points, nodes)`."""
        mean, cv = mean[:, None], cv[:, None]
        offset = cv * _NARROW
        if self.family == "normal":
            beta, log_mass = mean * (1 + offset), -_NARROW.square().expand_as(offset) / 2
        else:
            beta = mean * offset.exp()
            log_mass = strength_log_density(beta, mean, cv, self.family) + offset
        return beta, log_mass - log_mass.logsumexp(1, keepdim=True)

    def _at(self, beta: Float[Tensor, "*points"]) -> Float[Tensor, " annotators *points"]:
        """Log-likelihood at any strength inside the table, by interpolation of degree 7."""
        return self._by_node(beta).movedim(-1, 0)

    def _by_node(self, beta: Float[Tensor, "*points"]) -> Float[Tensor, "*points annotators"]:
        """The same, a row per strength."""
        first, basis = self._interpolation(beta)
        low, high = (int(first.min()), int(first.max())) if len(first) else (0, 0)
        if high - low < _NEAR:  # as a product, several times as fast
            column = (first - low).reshape(-1, 1) + torch.arange(ORDER)
            weight = torch.zeros(len(column), high - low + ORDER, dtype=beta.dtype)
            weight = weight.scatter(1, column, torch.stack(basis, -1).reshape(-1, ORDER))
            value = weight @ self._by_strength[low : high + ORDER]
            return value.reshape(*beta.shape, value.shape[1])
        return sum_terms(self._by_strength[first + k] * basis[k][..., None] for k in range(ORDER))

    def _interpolation(self, beta: Tensor) -> tuple[Tensor, list[Tensor]]:
        """First of the grid points beside each strength, and the weights of all of them."""
        position = (self._coordinate(beta) - self.z[0]) / self.step
        first = (position.detach().long() - PAD).clamp(0, len(self.z) - ORDER)
        return first, lagrange_basis(position - first)

    @cached_property
    def _by_strength(self) -> Float[Tensor, "grid annotators"]:
        """The table with a row per strength, which makes gathering fast."""
        return self.log_likelihood.T.contiguous()

    def _coordinate(self, beta: Tensor) -> Tensor:
        """The coordinate z of a strength."""
        if self.family == "normal":
            return torch.asinh(beta / math.exp(self.origin))
        return _coordinate_at(beta, self.origin)


def tabulate(
    choices: Choices,
    family: Family,
    flip_probability: float = 0.0,
    sizes: Float[np.ndarray, " annotators"] | None = None,
) -> PanelTable:
    r"""Tabulate every annotator's log-likelihood over the strength.

    Annotators with at least a sixteenth of the largest n choices share a grid, whose step is half
    of :math:`(0.44\,n)^{-1/2}`, the narrowest that n choices can make a likelihood of the log
    strength (:math:`x^2 \sigma(x) \sigma(-x) \le 0.44`), at most 0.1; the others do the same
    among themselves. Cells grow with the sum of the roots of n, not with the largest.

    Args:
        choices: Data with annotator ids. Without them every choice, which must not be a plain
            pair, is taken for another annotator's.
        family: Family of the strength, positive or normal.
        flip_probability: Probability that a label was flipped.
        sizes: Pairs that say as much as each annotator's choices can at most, where grids are to
            be those of other thresholds; default, by :func:`panel_sizes`.

    Raises:
        ValueError: If there are no ids of plain pairs.
    """
    choices = with_lapses(choices, flip_probability)
    sizes = panel_sizes(choices) if sizes is None else sizes
    members = _size_classes(sizes)
    # Right end: thirteen e-folds above 1 / median margin, where choices have long been certain.
    high = 13 - math.log(np.median(np.abs(choices.margin[choices.margin != 0])))
    # Left end: where even the most that anybody's choices say hardly depends on the strength.
    energy = math.sqrt(np.bincount(_unit(choices), choices.margin**2).max())
    select = select_units if choices.annotator is None else select_annotators
    alike = (choices if len(members) == 1 else select(choices, m) for m in members)
    flip_probability = flip_probability if choices.outcomes is None else 0.0
    grids = (
        _tabulate_alike(c, family, flip_probability, energy, high, float(sizes[m].max()))
        for c, m in zip(alike, members, strict=True)
    )
    return PanelTable(tuple(grids), tuple(torch.from_numpy(m) for m in members))


def log_likelihood_at(
    beta: Float[Tensor, " strengths"], choices: Choices, flip_probability: float = 0.0
) -> Float[Tensor, "annotators strengths"]:
    """Log-likelihood of every annotator's choices at each strength, which may be negative.

    Many pairs are replaced by weighted nodes, so that the cost is that of reading them once.
    """
    if choices.outcomes is not None:
        choices = with_lapses(choices, flip_probability)
        return observed_log_likelihood(beta, choices, _unit(choices))
    is_short = choices.num_pairs < _MANY * choices.num_annotators and not choices.margin_error
    if is_short or not choices.margin.any():
        return _plain_log_likelihood(beta, choices, flip_probability)
    return _compressed_log_likelihood(beta, choices, flip_probability)


def _unit(choices: Choices) -> Int[np.ndarray, " rows"]:
    """Row of the table that each pair belongs to."""
    if choices.annotator is not None:
        return choices.annotator
    if choices.outcomes is None:
        raise ValueError("Expected choices with annotator ids")
    return choices.choice


def panel_sizes(choices: Choices) -> Float[np.ndarray, " annotators"]:
    """Pairs that say as much about the strength as each annotator's choices can at most."""
    weight = None if choices.outcomes is None else information_bound(choices)
    return np.bincount(_unit(choices), weight).astype(np.float64)


def _size_classes(size: Float[np.ndarray, " annotators"]) -> list[Int[np.ndarray, " members"]]:
    """Annotators in classes of similar numbers of choices; those of the coarsest grid are one."""
    size = np.maximum(size, 0.25 / LARGEST_INFORMATION / _COARSEST**2)
    level = np.floor(np.log(size.max() / size) / math.log(_SIZE_RATIO))
    return [np.flatnonzero(level == each) for each in np.unique(level)]


def _tabulate_alike(
    choices: Choices,
    family: Family,
    flip_probability: float,
    energy: float,
    high: float,
    size: float,
) -> PanelGrid:
    """One grid for annotators with at most `size` choices, up to the log strength `high`."""
    is_smooth = choices.annotator is None
    width = (_SMOOTH if is_smooth else 0.5) / math.sqrt(LARGEST_INFORMATION * size)
    step = min(_COARSEST, width)
    if family == "normal":
        origin = math.log(1 / energy)
        half = np.arange(step / 2, math.asinh(math.exp(high - 3 - origin)), step)
        grid = np.concatenate([-half[::-1], half])
    else:
        origin = math.log(0.3 / energy)
        grid = np.arange(-6.5, high - origin, step)
    z = torch.from_numpy(grid)
    beta = strength_grid(z, origin, family)
    log_likelihood = log_likelihood_at(beta, choices, flip_probability)
    return PanelGrid(family, z, origin, log_likelihood, is_smooth)


def strength_grid(z: Float[Tensor, " grid"], origin: float, family: Family) -> Tensor:
    """The strength at each coordinate, see :class:`PanelGrid`."""
    if family == "normal":
        return math.exp(origin) * z.sinh()
    return torch.exp(origin + z - torch.exp(-z))


def _coordinate_at(strength: Tensor, origin: float) -> Tensor:
    """The coordinate z of a positive strength, differentiable."""
    t = strength.log() - origin
    z = (t + torch.from_numpy(wrightomega(-t.detach().numpy()))).detach()
    decay = torch.exp(-z)
    # A Newton step of size zero, for the derivative.
    return z + (t - (z - decay)) / (1 + decay)


def _plain_log_likelihood(
    beta: Float[Tensor, " strengths"], choices: Choices, flip_probability: float
) -> Float[Tensor, "annotators strengths"]:
    """Choice by choice; a negative strength mirrors the margins."""
    margin, annotator = torch.from_numpy(choices.margin), torch.from_numpy(choices.annotator)
    value = torch.empty(len(beta), choices.num_annotators, dtype=torch.float64)
    rows = max(1, CHUNK // choices.num_pairs)
    for sign in (1, -1):
        same_sign = (sign * beta > 0).nonzero()[:, 0]
        for chunk in same_sign.split(rows) if len(same_sign) else ():
            value[chunk] = mixed_logit_log_prob(
                sign * margin,
                sign * beta[chunk, None],
                0.0,
                "fixed",
                annotator=annotator,
                flip_probability=flip_probability,
            )
    return value.T.contiguous()


def _compressed_log_likelihood(
    beta: Float[Tensor, " strengths"], choices: Choices, flip_probability: float
) -> Float[Tensor, "annotators strengths"]:
    r"""Through weighted nodes, those of :class:`CompressedMargins` with another coordinate.

    Nodes are equally spaced in the coordinate z of the strengths' grid, with :math:`|\Delta|` in
    place of the strength, so that :math:`\log\sigma(\pm\beta|\Delta(z)|)` is as smooth at the
    largest strength as at the smallest; margins of either sign have nodes of their own.
    """
    assert choices.annotator is not None
    order = np.argsort(choices.annotator, kind="stable")
    margin, annotator = (torch.from_numpy(x[order]) for x in (choices.margin, choices.annotator))
    origin = math.log(0.3 / beta.abs().max())
    tiny = math.exp(origin - 200)  # at every strength a coin flip
    position = _coordinate_at(margin.abs().clamp(min=tiny), origin) / _MARGIN_STEP
    low, pad = float(position.min()), _MARGIN_ORDER // 2 - 1
    steps = torch.arange(int(position.max() - low) + _MARGIN_ORDER, dtype=torch.float64) - pad
    node = strength_grid((low + steps) * _MARGIN_STEP, origin, "lognormal")
    node = torch.cat([node, -node])
    at_nodes = torch.empty(len(node), len(beta), dtype=torch.float64)
    for part in torch.arange(len(beta)).split(max(1, CHUNK // len(node))):
        logit = node[:, None] * beta[part]
        if choices.margin_error:
            erring = erring_log_prob(logit, beta[part].abs() * choices.margin_error)
            at_nodes[:, part] = _flipped(erring, flip_probability)
        else:
            at_nodes[:, part] = choice_log_prob(logit, flip_probability)
    value = torch.zeros(choices.num_annotators, len(beta), dtype=torch.float64)
    for part in torch.arange(len(margin)).split(_PART):
        who = annotator[part]
        cell = (position[part] - low).long()
        basis = lagrange_basis(position[part] - low - cell + pad, _MARGIN_ORDER)
        column = cell + (who - who[0]) * len(node) + (margin[part] < 0) * len(steps)
        weight = torch.zeros(int(who[-1] - who[0] + 1) * len(node), dtype=torch.float64)
        for k in range(_MARGIN_ORDER):
            weight += torch.bincount(column + k, basis[k], minlength=len(weight))
        value[who[0] : who[-1] + 1] += weight.view(-1, len(node)) @ at_nodes
    return value


def _flipped(log_prob: Tensor, flip_probability: float) -> Tensor:
    """Log-probabilities of labels that were flipped with this probability."""
    if not flip_probability:
        return log_prob
    return (flip_probability + (1 - 2 * flip_probability) * log_prob.exp()).log()


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


def _describe(
    strength: Float[Tensor, " grid"], density: Float[Tensor, "annotators grid"]
) -> dict[str, Float[Tensor, " annotators"]]:
    """Moments and quantiles of densities over an equally spaced grid of z."""
    share = density / density.sum(1, keepdim=True)
    level = torch.ones(len(density), 1, dtype=torch.float64)
    log = strength.log()  # NaN below zero
    mean, log_mean = share @ strength, share @ log
    return {
        "mean": mean,
        "sd": (share @ strength.square() - mean.square()).clamp(min=0).sqrt(),
        **{k: _draw_rows(strength, density, q * level) for k, q in _QUANTILES.items()},
        "log_sd": (share @ log.square() - log_mean.square()).clamp(min=0).sqrt(),
        "p_not_positive": share @ (strength <= 0).double(),
    }


def describe_draws(
    draws: Float[np.ndarray, "samples annotators"],
) -> dict[str, Float[np.ndarray, " annotators"]]:
    """Each annotator's strength by its draws, as :meth:`PanelTable.summarise_strengths` does."""
    with np.errstate(invalid="ignore", divide="ignore"):  # strengths below zero have no log
        log_sd = np.log(draws).std(0, ddof=1)
    quantiles = np.quantile(draws, list(_QUANTILES.values()), axis=0)
    return {
        "mean": draws.mean(0),
        "sd": draws.std(0, ddof=1),
        **dict(zip(_QUANTILES, quantiles, strict=True)),
        "log_sd": log_sd,
        "p_not_positive": (draws <= 0).mean(0),
    }
