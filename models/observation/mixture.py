r"""One rule that mixes any observation model over the strength, per choice or per annotator.

.. math:: \log \int p(\beta \mid m, cv) \prod_t P(y_t \mid \beta) \, d\beta

Each log-probability is at most zero and a smooth function of log beta, which is all that the rule
of `mixdpo_pyro.models.quadrature` asks for.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixdpo_pyro.models.devices import in_float64
from mixdpo_pyro.models.estimators import Draws, Estimator, Quadrature, Series, resolve_estimator
from mixdpo_pyro.models.families import Family, check_family, check_parameters
from mixdpo_pyro.models.monte_carlo import draw_strengths, segment_sum
from mixdpo_pyro.models.observation.base import Observation, Terms
from mixdpo_pyro.models.quadrature import piece_lengths, quadrature_log_prob

__all__ = ["observed_log_prob"]

# The window spans about 15 standard deviations of the log strength where choices say little. Steps
# of 0.68 of them are fine enough for a normal density. In log strength the error is of the order
# of exp(-2 pi w / step), w being the half-width of the strip in which the choices are analytic.
_NORMAL_STEPS = 22

_STEPS_PER_SCALE = 72

_NARROWEST_STRIP = 0.05


@in_float64
def observed_log_prob(
    observation: Observation,
    margin: Float[Tensor, " rows"],
    mean: Float[Tensor, "..."] | float,
    cv: Float[Tensor, "..."] | float,
    family: Family = "lognormal",
    estimator: str | Estimator = "auto",
    *,
    outcome: Int[Tensor, " rows"] | None = None,
    choice_set: Int[Tensor, " rows"] | None = None,
    annotator: Int[Tensor, " rows"] | None = None,
) -> Float[Tensor, "..."]:
    """Log-probability in nats of what was observed, the strength integrated out.

    Errors are below 1e-8 of max(1, abs), for the value and its derivatives, up to a cv of 2.
    Differentiable twice in margins, mean, cv and the parameters of the observation model.

    Args:
        observation: What annotators did.
        margin: Margins, or utilities of the responses where the model `takes_sets`; finite.
        mean: Mean strength, positive; a scalar, or on the last axis one per choice or annotator in
            ascending order of ids. Leading axes are kept.
        cv: Coefficient of variation, positive, shaped as `mean`; not used by `"fixed"`.
        family: `"gamma"`, `"lognormal"` or `"fixed"`: strengths are positive.
        estimator: `"auto"`, `"quadrature"`, `"draws"`, or a `Quadrature` or `Draws`.
        outcome: What was done, per row; see the class of the observation.
        choice_set: Ids of the sets, per row, where the model `takes_sets`.
        annotator: Ids of the annotators, per row; their choices share the strength.

    Returns:
        Log-probabilities, one per choice (rows, or sets in ascending order of their ids), or one
        per annotator in ascending order of their ids.

    Raises:
        ValueError: If strengths may be negative, an argument is outside its domain, or the rows of
            a set have several annotators.

    Example:
        >>> from mixdpo_pyro.models.observation import RaoKupper
        >>> outcome = torch.tensor([2, 1, 0])
        >>> observed_log_prob(RaoKupper(0.5), torch.ones(3), 1.0, 0.5, outcome=outcome)
        tensor([-0.4875, -1.6460, -1.6448])
    """
    check_family(family)
    if family == "normal":
        raise ValueError("Expected a family of positive strengths, got 'normal'")
    rule = resolve_estimator("quadrature" if estimator == "auto" else estimator, family, False)
    if isinstance(rule, Series):
        raise ValueError(f"Expected quadrature or draws for {observation}, got the series")
    dtype = torch.promote_types(margin.dtype, torch.float32)
    mean, cv = check_parameters(margin, mean, cv, family)
    rows, group = _by_annotator(margin.double(), outcome, choice_set, annotator)
    terms = observation.encode(*rows)
    num_groups = len(terms.tensors[0]) if group is None else int(group[-1]) + 1
    shape = torch.broadcast_shapes(mean.shape, cv.shape, (num_groups,))
    values = [
        _mixed(_Observed(terms, one_mean, one_cv, group), family, rule)
        for one_mean, one_cv in zip(
            mean.expand(shape).reshape(-1, num_groups),
            cv.expand(shape).reshape(-1, num_groups),
            strict=True,
        )
    ]
    return torch.stack(values).view(shape).to(dtype)


class _Observed(NamedTuple):
    """Choices sorted by group; an `Integrand`."""

    terms: Terms
    mean: Float[Tensor, " groups"]
    cv: Float[Tensor, " groups"]
    group: Int[Tensor, " choices"] | None = None

    @property
    def window_nats(self) -> float:
        """Derivatives by cv have a factor z^2 = 54 at the ends: 50 exp(-27) = 1e-10."""
        return 27.0

    @property
    def slope_nats(self) -> float:
        """As deep below the peak of the derivative by a margin, less its factor beta."""
        return 25.0

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """Tensors of the choices, means and cvs."""
        return *self.terms.tensors, self.mean, self.cv

    @property
    def leaf_groups(self) -> tuple[Tensor | None, ...]:
        """Groups of the entries of each leaf."""
        if self.group is None:
            return *self.terms.owners, None, None
        own = (self.group if owner is None else self.group[owner] for owner in self.terms.owners)
        return *own, None, None

    def with_leaves(self, leaves: tuple[Tensor, ...]) -> "_Observed":
        """The same choices with other leaves."""
        return _Observed(self.terms.with_tensors(leaves[:-2]), leaves[-2], leaves[-1], self.group)

    def log_likelihood(self, beta: Tensor) -> Tensor:
        """Log-probability of all choices of each group; groups on the last axis."""
        if self.group is None:
            return self.terms.log_prob(beta)
        choices = self.terms.log_prob(beta[..., self.group])
        return torch.zeros_like(beta).scatter_add(-1, self.group.expand(choices.shape), choices)

    def largest_utility(self) -> Tensor:
        """Largest difference of utilities within a choice of each group, times the mean."""
        reach = self.terms.reach()
        if self.group is not None:
            reach = torch.zeros_like(self.mean).scatter_reduce(0, self.group, reach, "amax")
        return reach * self.mean

    def pieces(self, num_nodes: int) -> Iterator["_Observed"]:
        """Consecutive runs of whole groups, each of about 2^18 terms times nodes."""
        sizes = self.terms.sizes()
        counts = torch.ones_like(sizes) if self.group is None else self.group.bincount()
        if self.group is not None:
            sizes = segment_sum(sizes, self.group, len(self.mean))
        last_choice = counts.cumsum(0).tolist()
        first = begin = 0
        for count in piece_lengths(sizes, num_nodes):
            last, end = first + count, last_choice[first + count - 1]
            group = None if self.group is None else self.group[begin:end] - first
            mean, cv = self.mean[first:last], self.cv[first:last]
            yield _Observed(self.terms.part(begin, end), mean, cv, group)
            first, begin = last, end


def _mixed(observed: _Observed, family: Family, rule: Estimator) -> Float[Tensor, " groups"]:
    if family == "fixed":
        return observed.log_likelihood(observed.mean)
    if isinstance(rule, Draws):
        beta = draw_strengths(observed.mean, observed.cv, family, rule, observed.mean.shape)
        beta = beta.expand(-1, len(observed.mean))
        return observed.log_likelihood(beta).logsumexp(0) - math.log(len(beta))
    assert isinstance(rule, Quadrature)
    num_nodes = rule.num_nodes or _num_nodes(observed, family)
    return quadrature_log_prob(observed, family, num_nodes)


def _num_nodes(observed: _Observed, family: Family) -> int:
    """Number of nodes for errors below 1e-8; more for the sharper integrands of panels."""
    scale = math.sqrt(math.log1p(observed.cv.max().item() ** 2))
    strip = max(observed.terms.strip(), _NARROWEST_STRIP)
    number = max(_NORMAL_STEPS, math.ceil(_STEPS_PER_SCALE * scale / strip))
    if family == "gamma":
        number *= 2
    return number if observed.group is None else max(64, 2 * number)


def _by_annotator(
    margin: Tensor, outcome: Tensor | None, choice_set: Tensor | None, annotator: Tensor | None
) -> tuple[tuple[Tensor, Tensor | None, Tensor | None], Tensor | None]:
    """Rows sorted by annotator and then by set, sets numbered in this order, and their groups."""
    if annotator is None:
        return (margin, outcome, choice_set), None
    if annotator.shape != margin.shape:
        raise ValueError(
            f"Expected one annotator per row, got {tuple(annotator.shape)} for "
            f"{tuple(margin.shape)}"
        )
    if choice_set is None:
        order = annotator.argsort(stable=True)
    else:
        order = choice_set.argsort(stable=True)
        order = order[annotator[order].argsort(stable=True)]
    group = annotator[order].unique_consecutive(return_inverse=True)[1]
    outcome = None if outcome is None else outcome[order]
    if choice_set is None:
        return (margin[order], outcome, None), group
    runs = torch.stack([group, choice_set[order]]).unique_consecutive(return_inverse=True, dim=1)
    if runs[0].shape[1] > len(choice_set.unique()):
        raise ValueError("Expected one annotator per choice set, got several in one")
    return (margin[order], outcome, runs[1]), runs[0][0]
