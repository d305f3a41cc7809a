r"""Deterministic quadrature of the mixed logit over the strength, for single pairs and for panels.

.. math:: \log \int p(\beta \mid m, cv) \prod_t \sigma(\beta \Delta_t) \, d\beta

A trapezoid rule with equal steps converges geometrically for integrands that are analytic and
decay fast at both ends (Trefethen and Weideman, The exponentially convergent trapezoidal rule,
SIAM Review 56:3, 2014). Each family brings a coordinate in which its integrand is such, and the
window that matters of the coordinate is found by repeated scanning, so that sharp or two-humped
posteriors of long panels are covered too. Nodes are constants when differentiating.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixdpo_pyro.models.families import lognormal_parameters

__all__ = [
    "Integrand",
    "Nodes",
    "Panel",
    "choice_log_prob",
    "default_num_nodes",
    "piece_lengths",
    "posterior_nodes",
    "quadrature_log_prob",
]

_REFINEMENT = 8

_SCAN_STEPS = 16

_MAX_SCANS = 60


# Pairs times nodes handled at once; bounds the memory of the intermediate results.
_CHUNK = 1 << 18


# Up to so many pairs a bracket not much wider than the usual window of 13 is taken as it is: no
# utility is then above some 7 nats, where the integrand would be sharper.
_FEW_PAIRS = 256

_NARROW_BRACKET = 16.0


# Narrowest kink of a Normal integrand that is resolved, in standard deviations of the strength.
_SHARPEST_KINK = 1e-6


# In log strength. A heavy tail spans hundreds of nats where utilities are beyond 1e15, and the
# default number of nodes would step over either end of it.
_WIDEST_GAMMA_STEP = 0.45


@runtime_checkable
class Integrand(Protocol):
    """Choices by groups that share a strength each: what is integrated over the strength.

    Attributes:
        mean: Mean strength of each group.
        cv: Coefficient of variation of each group.
        group: Group of each choice, ascending; None where every choice is its own group.
        leaves: Tensors that the value is differentiated by.
        leaf_groups: Group of each entry of each leaf; None where there is one entry per group.
        window_nats: Depth below its peak at which the integrand is cut.
        slope_nats: Depth at which the integrand times the strength is cut.
    """

    @property
    def mean(self) -> Tensor: ...  # noqa: D102

    @property
    def cv(self) -> Tensor: ...  # noqa: D102

    @property
    def group(self) -> Tensor | None: ...  # noqa: D102

    @property
    def leaves(self) -> tuple[Tensor, ...]: ...  # noqa: D102

    @property
    def leaf_groups(self) -> tuple[Tensor | None, ...]: ...  # noqa: D102

    @property
    def window_nats(self) -> float: ...  # noqa: D102

    @property
    def slope_nats(self) -> float: ...  # noqa: D102

    def with_leaves(self, leaves: tuple[Tensor, ...]) -> "Integrand":
        """The same choices with other leaves."""

    def log_likelihood(self, beta: Float[Tensor, "nodes groups"]) -> Float[Tensor, "nodes groups"]:
        """Log-probability of all choices of each group at given strengths, at most zero."""

    def largest_utility(self) -> Float[Tensor, " groups"]:
        """Largest margin of each group in absolute value, times the mean strength."""

    def pieces(self, num_nodes: int) -> Iterator["Integrand"]:
        """Consecutive runs of whole groups, each of about 2^18 pairs times nodes."""


class Panel(NamedTuple):
    """Choices sorted by group, one strength per group; without `group` every pair is its own."""

    margin: Float[Tensor, " pairs"]
    mean: Float[Tensor, " groups"]
    cv: Float[Tensor, " groups"]
    group: Int[Tensor, " pairs"] | None = None
    flip_probability: float = 0.0

    @property
    def window_nats(self) -> float:
        """Cut where it is exp(-21) = 8e-10 of the peak: the wider, the coarser the steps."""
        return 21.0

    @property
    def slope_nats(self) -> float:
        """The derivative by a margin is cut at exp(-19) = 6e-9 of its own peak."""
        return 19.0

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Margins, means and cvs."""
        return self.margin, self.mean, self.cv

    @property
    def leaf_groups(self) -> tuple[Tensor | None, ...]:
        """Groups of the margins; the others are one per group."""
        return self.group, None, None

    def with_leaves(self, leaves: tuple[Tensor, ...]) -> "Panel":
        """The same choices with other margins, means and cvs."""
        return Panel(leaves[0], leaves[1], leaves[2], self.group, self.flip_probability)

    def log_likelihood(self, beta: Float[Tensor, "nodes groups"]) -> Float[Tensor, "nodes groups"]:
        """Log-probability of all choices of each group at given strengths."""
        if self.group is None:
            return choice_log_prob(beta * self.margin, self.flip_probability)
        choices = choice_log_prob(beta[:, self.group] * self.margin, self.flip_probability)
        return torch.zeros_like(beta).index_add(1, self.group, choices)

    def largest_utility(self) -> Float[Tensor, " groups"]:
        """Largest margin of each group in absolute value, times the mean strength."""
        if self.group is None:
            return self.margin.abs() * self.mean
        zeros = torch.zeros_like(self.mean)
        return zeros.scatter_reduce(0, self.group, self.margin.abs(), "amax") * self.mean

    def pieces(self, num_nodes: int) -> Iterator["Panel"]:
        """Consecutive runs of whole groups, each of about 2^18 pairs times nodes."""
        if len(self.margin) * num_nodes <= _CHUNK:
            yield self
            return
        if self.group is None:
            sizes = torch.ones_like(self.mean, dtype=torch.long)
        else:
            sizes = self.group.bincount(minlength=len(self.mean))
        first, offset = 0, 0
        for count in piece_lengths(sizes, num_nodes):
            pairs = int(sizes[first : first + count].sum())
            inside = slice(offset, offset + pairs)
            group = None if self.group is None else self.group[inside] - first
            mean, cv = (value[first : first + count] for value in (self.mean, self.cv))
            yield Panel(self.margin[inside], mean, cv, group, self.flip_probability)
            first, offset = first + count, offset + pairs


def piece_lengths(sizes: Int[Tensor, " groups"], num_nodes: int) -> list[int]:
    """Numbers of consecutive groups, of these sizes, whose pairs times nodes are about 2^18."""
    start = sizes.cumsum(0) - sizes
    _, groups = (start * num_nodes // _CHUNK).unique_consecutive(return_counts=True)
    return groups.tolist()


class Nodes(NamedTuple):
    """Strengths, nodes first, and the log of the integrand times the step of the coordinate."""

    beta: Float[Tensor, "nodes groups"]
    log_weight: Float[Tensor, "nodes groups"]


def choice_log_prob(
    utility: Float[Tensor, "*batch"], flip_probability: float = 0.0
) -> Float[Tensor, "*batch"]:
    r"""Log-probability of a choice given its utility, the label flipped with a probability.

    .. math:: \log [(1 - \epsilon) \, \sigma(u) + \epsilon \, \sigma(-u)]

    Args:
        utility: Strength times margin.
        flip_probability: Probability :math:`\epsilon` in [0, 1/2) that the label was flipped.

    Returns:
        Log-probability in nats, same shape.

    Example:
        >>> choice_log_prob(torch.zeros(1), 0.1)
        tensor([-0.6931])
    """
    if flip_probability == 0.0:
        return logsigmoid(utility)
    kept = math.log1p(-flip_probability) + logsigmoid(utility)
    return torch.logaddexp(kept, math.log(flip_probability) + logsigmoid(-utility))


def default_num_nodes(family: str, cv: Tensor, pair: bool = False) -> int:
    """Number of nodes for errors below 1e-8 nats.

    Wider distributions need more: the steps are at a log scale sqrt(log(1 + cv^2)) of 1.5 (cv
    2.9) and of 3 (cv 90). A single disagreeing choice under a LogNormal strength, whose
    integrand is log-concave, needs fewest; Normal strengths, for the kink at zero, most.

    Args:
        family: Family of the strength.
        cv: Coefficients of variation; the largest one counts.
        pair: Whether every group is one choice against its margin.

    Returns:
        32, 64 or 96 nodes for a LogNormal pair, 128 for Normal strengths, otherwise 64, 96 or 128.
    """
    if family == "normal":
        return 128
    scale = math.sqrt(math.log1p(cv.max().item() ** 2))
    level = 0 if scale <= 1.5 else 1 if scale <= 3 else 2
    return 32 * (level + (1 if pair and family == "lognormal" else 2))


def quadrature_log_prob(panel: Integrand, family: str, num_nodes: int) -> Float[Tensor, " groups"]:
    """Log-probability of all choices of each group, its strength integrated out.

    Memory is of the order of the number of pairs, for backward too: the first derivatives are
    taken together with the value, a piece of groups at a time. Only double backward keeps the
    nodes.

    Args:
        panel: Choices sorted by group, float64.
        family: `"gamma"`, `"lognormal"` or `"normal"`.
        num_nodes: Number of nodes.

    Returns:
        Log-probabilities in nats, shape `(groups,)`.
    """
    if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in panel.leaves):
        return _Streamed.apply(panel, family, num_nodes, *panel.leaves)
    return torch.cat(
        [_log_integral(piece, family, num_nodes) for piece in panel.pieces(num_nodes)]
    )


def posterior_nodes(panel: Integrand, family: str, num_nodes: int) -> Nodes:
    """Nodes over the strength whose log weights are those of its posterior given the choices."""
    coordinate = _COORDINATES[family]
    with torch.no_grad():
        low, high = coordinate.bracket(panel)
        is_few = family == "lognormal" and panel.group is None and len(low) <= _FEW_PAIRS
        if is_few and bool((high - low).max() <= _NARROW_BRACKET):
            num_nodes *= 2  # cheaper than the search for a narrower window
        else:
            low, high = _window(panel, coordinate, low, high)
        if family == "gamma":
            width = ((high - low) * panel.cv.clamp(max=1.0)).max().item()
            num_nodes = max(num_nodes, int(width / _WIDEST_GAMMA_STEP))
        t = _grid(low, high, num_nodes)
        log_step = ((high - low) / (num_nodes - 1)).log()
    beta, log_density = coordinate.nodes(panel)(t)
    return Nodes(beta, panel.log_likelihood(beta) + log_density + log_step)


class _Streamed(torch.autograd.Function):
    """The log integral, differentiated piece by piece while it is computed."""

    @staticmethod
    def forward(
        ctx: Any, panel: Integrand, family: str, num_nodes: int, *leaves: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*leaves)
        ctx.options = panel, family, num_nodes
        values, slopes = [], []
        for piece in panel.with_leaves(leaves).pieces(num_nodes):
            inputs = tuple(leaf.detach().requires_grad_() for leaf in piece.leaves)
            with torch.enable_grad():
                value = _log_integral(piece.with_leaves(inputs), family, num_nodes)
                slopes.append(torch.autograd.grad(value.sum(), inputs))
            values.append(value.detach())
        ctx.slopes = [torch.cat(parts) for parts in zip(*slopes, strict=True)]
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        panel, family, num_nodes = ctx.options
        leaves, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # double backward: differentiate the sum over nodes itself
            value = _log_integral(panel.with_leaves(leaves), family, num_nodes)
            wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
            slopes = iter(torch.autograd.grad(value, wanted, grad, create_graph=True))
            return None, None, None, *(next(slopes) if need else None for need in needed)
        by_leaf = (
            slope * (grad if group is None else grad[group])
            for slope, group in zip(ctx.slopes, panel.leaf_groups, strict=True)
        )
        return None, None, None, *by_leaf


def _log_integral(panel: Integrand, family: str, num_nodes: int) -> Float[Tensor, " groups"]:
    return posterior_nodes(panel, family, num_nodes).log_weight.logsumexp(0)


def _grid(low: Tensor, high: Tensor, num_points: int) -> Float[Tensor, "nodes groups"]:
    fraction = torch.linspace(0, 1, num_points, dtype=low.dtype, device=low.device).unsqueeze(-1)
    return low + (high - low) * fraction


def _window(
    panel: Integrand, coordinate: "_Coordinate", low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The part of the bracket `low` to `high` where the integrand matters, per group.

    Starts from bounds that hold for certain and shrinks to the points that matter and one step
    around them, until most of them do; a peak between two points is next to the best of them. The
    step at each end is then scanned on its own. What happens to one group does not depend on the
    others.
    """
    nodes = coordinate.nodes(panel)
    index = torch.arange(_SCAN_STEPS + 1, device=low.device).unsqueeze(-1)
    for _ in range(_MAX_SCANS):
        heights = _heights(_grid(low, high, _SCAN_STEPS + 1), panel, nodes)
        peaks = heights.amax(1, keepdim=True)
        inside = _matters(heights, peaks, panel)
        first = (torch.where(inside, index, _SCAN_STEPS).amin(0) - 1).clamp(min=0)
        last = (torch.where(inside, index, 0).amax(0) + 1).clamp(max=_SCAN_STEPS)
        step = (high - low) / _SCAN_STEPS
        resolved = last - first >= 0.7 * _SCAN_STEPS
        if bool(resolved.all()):
            break
        low, high = (
            torch.where(resolved, low, low + step * first),
            torch.where(resolved, high, low + step * last),
        )
    # At both ends, from the outermost point, which does not matter, to the first one that does.
    start, inward = low + step * torch.stack([first, last]), step * index.new_tensor([[1], [-1]])
    fraction = torch.arange(1, _REFINEMENT, device=low.device, dtype=low.dtype) / _REFINEMENT
    points = start + fraction.view(-1, 1, 1) * inward
    inside = _matters(_heights(points.flatten(0, 1), panel, nodes), peaks, panel).view(
        points.shape
    )
    beyond = torch.where(inside, fraction.view(-1, 1, 1), 1.0).amin(0) - 1 / _REFINEMENT
    outer = start + beyond * inward
    return outer[0], outer[1]


def _heights(t: Tensor, panel: Integrand, nodes: "_NodesAt") -> Float[Tensor, "2 nodes groups"]:
    """Log integrands of the likelihood and of its slope by a margin, which has a factor beta."""
    beta, log_density = nodes(t)
    value = panel.log_likelihood(beta) + log_density
    return torch.stack([value, value + beta.abs().log()])


def _matters(heights: Tensor, peaks: Tensor, panel: Integrand) -> Tensor:
    """Whether either integrand is within its depth of its peak."""
    value, slope = heights - peaks
    return (value >= -panel.window_nats) | (slope >= -panel.slope_nats)


_NodesAt: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


class _Coordinate(NamedTuple):
    """A family's coordinate: strengths and log density at its points, and certain bounds."""

    nodes: Callable[[Integrand], _NodesAt]
    bracket: Callable[[Integrand], tuple[Tensor, Tensor]]


def _lognormal_nodes(panel: Integrand) -> _NodesAt:
    """Coordinate z with log beta = mu + sigma z."""
    location, scale = lognormal_parameters(panel.mean, panel.cv)

    def at(z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp((location + scale * z).clamp(max=600.0)), _standard_normal_log_density(z)

    return at


def _lognormal_bracket(panel: Integrand) -> tuple[Tensor, Tensor]:
    """The prior costs z^2 / 2 and the likelihood gains at most what it lacks at some z.

    A factor beta moves the prior's peak by sigma.
    """
    location, scale = lognormal_parameters(panel.mean, panel.cv)
    z = torch.stack([torch.zeros_like(scale), scale / 2 + _log_mild_strength(panel) / scale])
    lacking = panel.window_nats - panel.log_likelihood(
        (location + scale * z).clamp(max=600.0).exp()
    )
    low, high = (
        (2 * lacking + (z - peak).square()).amin(0).sqrt()
        for peak in (torch.zeros_like(scale), scale)
    )
    return -low, high + scale


def _normal_nodes(panel: Integrand) -> _NodesAt:
    """Coordinate t with beta = m cv sinh(t) / kappa: nodes crowd around the kink at beta = 0.

    The standardised strength z is held fixed when differentiating. Where the window stays clear
    of beta = 0 the coordinate is z itself, which keeps all digits of a narrow distribution.
    """
    with torch.no_grad():
        kappa, clear = _normal_sharpness(panel), _normal_reach(panel) * panel.cv < 1

    @torch.no_grad()
    def standardised(t: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.where(clear, t, t.clamp(-80, 80).sinh() / kappa - 1 / panel.cv)
        log_cosh = t.abs() + torch.log1p(torch.exp(-2 * t.abs())) - math.log(2)
        return z, torch.where(clear, 0.0, log_cosh - kappa.log())

    def at(t: Tensor) -> tuple[Tensor, Tensor]:
        z, log_slope = standardised(t)
        return panel.mean * (1 + panel.cv * z), _standard_normal_log_density(z) + log_slope

    return at


def _normal_bracket(panel: Integrand) -> tuple[Tensor, Tensor]:
    reach, kappa = _normal_reach(panel), _normal_sharpness(panel)
    clear = reach * panel.cv < 1
    low, high = (torch.asinh(kappa * (1 / panel.cv + z)) for z in (-reach, reach))
    return torch.where(clear, -reach, low), torch.where(clear, reach, high)


def _normal_reach(panel: Integrand) -> Tensor:
    """Bound of z: the likelihood gains at most what it lacks at beta = m, or else at beta = 0."""
    at_mean = panel.log_likelihood(panel.mean.unsqueeze(0)).squeeze(0)
    at_zero = panel.log_likelihood(torch.zeros_like(panel.mean).unsqueeze(0)).squeeze(0)
    gain = torch.minimum(-at_mean, panel.cv.square().reciprocal() / 2 - at_zero)
    return (2 * (panel.window_nats + 5.0 + gain)).sqrt()  # 5 nats for a factor beta


def _normal_sharpness(panel: Integrand) -> Tensor:
    """Kinks per standard deviation of the strength."""
    return (panel.largest_utility() * panel.cv).clamp(0.1, 1 / _SHARPEST_KINK)


def _log_mild_strength(panel: Integrand) -> Tensor:
    """Log of the largest strength, in units of the mean and at most one, with no utility above 1.

    Whatever the margins, a choice is not improbable there.
    """
    return -panel.largest_utility().clamp(min=1.0).log()


def _gamma_nodes(panel: Integrand) -> _NodesAt:
    """Coordinate t with log(beta / m) = s = u + kappa (1 - exp(-u)), u = t min(1, cv).

    The lower tail exp(a s) of a heavy-tailed distribution becomes doubly exponential (Takahasi and
    Mori, Double exponential formulas for numerical integration, 1974), but only where every
    utility is small: kappa is small enough for the choices to be smooth in u.
    """
    with torch.no_grad():
        scale, kappa = panel.cv.clamp(max=1.0), _gamma_onset(panel)
    a = panel.cv.square().reciprocal()
    normaliser = _log_gamma_normaliser(a)

    @torch.no_grad()
    def logs(t: Tensor) -> tuple[Tensor, Tensor]:
        u = t * scale
        tail = kappa * torch.exp(-u / 2)  # kappa exp(-u) in two halves: exp(-u) may overflow
        log_slope = torch.log1p(tail * torch.exp(-u / 2)) + scale.log()
        return u + 2 * tail * torch.sinh(u / 2), log_slope

    def at(t: Tensor) -> tuple[Tensor, Tensor]:
        s, log_slope = logs(t)
        return panel.mean * s.exp(), a * (s - s.expm1()) + normaliser + log_slope

    return at


def _gamma_bracket(panel: Integrand) -> tuple[Tensor, Tensor]:
    """The prior costs a (e^s - 1 - s), the likelihood gains at most what it lacks at some s.

    From e^s - 1 - s <= r follows that s is between -(r + sqrt(2r)) and log(1 + r + sqrt(2r)).
    """
    s = torch.stack([torch.zeros_like(panel.cv), _log_mild_strength(panel)])
    # Less s for a factor beta, and 30 nats more for it and for the coordinate's slope where the
    # distribution is heavy-tailed.
    lacking = panel.window_nats + 30.0 - s - panel.log_likelihood(panel.mean * s.exp())
    excess = ((s.expm1() - s).clamp(min=0.0) + panel.cv.square() * lacking).amin(0)
    reach, onset = excess + (2 * excess).sqrt(), _gamma_onset(panel)
    low = torch.minimum(reach, (onset + reach).log() - onset.log())
    scale = panel.cv.clamp(max=1.0)
    return -low / scale, torch.log1p(reach) / scale


def _gamma_onset(panel: Integrand) -> Tensor:
    return 1 / (1 + panel.largest_utility())


def _log_gamma_normaliser(a: Tensor) -> Tensor:
    """`a log a - a - lgamma(a)`, by Stirling's series where it would cancel."""
    large = a > 16
    v = torch.where(large, a, 16.0).reciprocal()
    v2 = v.square()
    correction = v * (1 / 12 - v2 * (1 / 360 - v2 * (1 / 1260 - v2 * (1 / 1680 - v2 / 1188))))
    b = torch.where(large, 16.0, a)
    return torch.where(
        large, -(2 * math.pi * v).log() / 2 - correction, b * b.log() - b - b.lgamma()
    )


def _standard_normal_log_density(z: Tensor) -> Tensor:
    return -z.square() / 2 - math.log(2 * math.pi) / 2


_COORDINATES = {
    "gamma": _Coordinate(_gamma_nodes, _gamma_bracket),
    "lognormal": _Coordinate(_lognormal_nodes, _lognormal_bracket),
    "normal": _Coordinate(_normal_nodes, _normal_bracket),
}
