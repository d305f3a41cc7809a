"""The likelihood of panels: each annotator's log-likelihood, tabulated over the strength."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import wrightomega
from torch import Tensor

from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.likelihood.interpolation import (
    CHUNK,
    MEAN_RANGE,
    ORDER,
    PAD,
    TINY_CV,
    lagrange_basis,
    sum_terms,
)
from mixdpo_pyro.models import Family, mixed_logit_log_prob, strength_distribution

__all__ = ["PanelTable", "tabulate"]

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

_OUTLYING = 1e-12
"""Share of the largest possible weight below which draws look at every strength after all."""


# Panels


@dataclass(frozen=True)
class PanelTable:
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
    """

    family: Family
    z: Float[Tensor, " grid"]
    origin: float
    log_likelihood: Float[Tensor, "annotators grid"]

    def __call__(
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of all annotators at each point, in nats."""
        return self.per_annotator(mean, cv).sum(0)

    def per_annotator(
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, " annotators *points"]:
        """Log-likelihood of each annotator's choices, their strength integrated out."""
        mean, cv = torch.broadcast_tensors(mean.clamp(*MEAN_RANGE), cv.clamp(TINY_CV, 1 / TINY_CV))
        flat_mean, flat_cv = mean.reshape(-1), cv.reshape(-1)
        wide = self._is_wide(flat_cv).nonzero()[:, 0]
        narrow = (~self._is_wide(flat_cv)).nonzero()[:, 0]
        parts = [
            self._wide(flat_mean[wide], flat_cv[wide]),
            *(
                self._narrow(flat_mean[part], flat_cv[part])
                for part in narrow.split(
                    max(1, CHUNK // (len(_NARROW) * len(self.log_likelihood)))
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
                value[k] = self._draw_from_grid(self._log_mass(*point)[:, 0], uniform)
            else:
                beta, log_mass = (x[0] for x in self._narrow_rule(*point))
                value[k] = _draw_rows(beta, _density(self._at(beta) + log_mass), uniform)
        return value

    def _draw_from_grid(
        self, log_mass: Float[Tensor, " grid"], uniform: Float[Tensor, "annotators 1"]
    ) -> Float[Tensor, " annotators"]:
        """One strength per annotator under a distribution that is wide beside the grid."""
        log_mass = log_mass - log_mass.max()
        kept = (log_mass > -_MASS_NATS).nonzero()[:, 0]
        near = slice(max(int(kept[0]) - 1, 0), int(kept[-1]) + 2)  # two nodes at least
        density = self._relative_likelihood[:, near] * log_mass[near].exp()
        value = _draw_rows(self._strength[near], density, uniform)
        rare = (density.amax(1) < _OUTLYING).nonzero()[:, 0]
        if len(rare):
            whole = _density(self.log_likelihood[rare] + log_mass)
            value[rare] = _draw_rows(self._strength, whole, uniform[rare])
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
        """The distribution is narrow: interpolate the log-likelihood at its nodes."""
        beta, log_mass = self._narrow_rule(mean, cv)
        return (self._at(beta) + log_mass).logsumexp(-1)

    def _narrow_rule(self, mean: Tensor, cv: Tensor) -> tuple[Tensor, Tensor]:
        """Strengths at the distribution's nodes and its log mass there, `(points, nodes)`."""
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
        first = (position.detach().long() - PAD).clamp(0, len(self.z) - ORDER)
        basis = lagrange_basis(position - first)
        terms = (self._by_strength[first + k] * basis[k][..., None] for k in range(ORDER))
        return sum_terms(terms).movedim(-1, 0)

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
        family: Family of the strength, positive or normal.
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
