r"""Conditional strengths: what a pair, or an annotator, tells about its own preference strength.

.. math:: p(\beta \mid \text{choices}) \propto p(\beta \mid m, cv) \prod_t \sigma(\beta \Delta_t)

the "individual-level parameters" of mixed logit (Train, *Discrete Choice Methods with Simulation*,
2009, chapter 11).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixdpo_pyro.models.devices import in_float64
from mixdpo_pyro.models.families import Family, check_family, check_parameters
from mixdpo_pyro.models.gamma.series import gamma_conditional_moments
from mixdpo_pyro.models.mixed_logit import bounded_margin, flat_panel
from mixdpo_pyro.models.quadrature import Nodes, Panel, posterior_nodes

__all__ = ["ConditionalStrength", "conditional_strength"]

# Quantiles take the density as linear between nodes: errors below 2e-5 standard deviations.
_NUM_NODES = 2049


class ConditionalStrength(NamedTuple):
    """Posterior mean, variance and quantiles (on the last axis) of the strength, one per unit."""

    mean: Float[Tensor, "..."]
    variance: Float[Tensor, "..."]
    quantiles: Float[Tensor, "... probabilities"]


@in_float64
@torch.no_grad()
def conditional_strength(
    margin: Float[Tensor, "..."],
    mean: Float[Tensor, "..."] | float,
    cv: Float[Tensor, "..."] | float,
    family: Family = "lognormal",
    annotator: Int[Tensor, " pairs"] | None = None,
    *,
    probabilities: Sequence[float] = (0.05, 0.5, 0.95),
    flip_probability: float = 0.0,
) -> ConditionalStrength:
    r"""Posterior of the strength of each pair, or of each annotator, given the observed choices.

    Mean and variance of a Gamma pair are closed, see `gamma_conditional_moments`; everything else
    is quadrature. Not differentiable.

    Args:
        margin: Log-ratio margins in nats, chosen minus rejected, last axis the pairs; finite.
        mean: Mean strength, positive, as for `mixed_logit_log_prob`.
        cv: Coefficient of variation, positive.
        family: `"gamma"`, `"lognormal"`, `"normal"` or `"fixed"`.
        annotator: Ids of the annotators, shape `(pairs,)`, in any order.
        probabilities: Probabilities of the quantiles, in (0, 1).
        flip_probability: Probability in [0, 1/2) that a label was flipped.

    Returns:
        Mean, variance and quantiles in units of the strength (per nat), one per pair, or one per
        annotator in ascending order of the ids; dtype of `margin`.

    Raises:
        ValueError: If the family is unknown, a margin is not finite, a parameter not positive or a
            probability outside (0, 1).

    Example:
        >>> conditional_strength(torch.tensor([0.0]), 0.1, 0.5).mean  # nothing learned
        tensor([0.1000])
    """
    check_family(family)
    wrong = (~margin.isfinite()).nonzero()
    if len(wrong):
        index = tuple(wrong[0].tolist())
        raise ValueError(f"Expected finite margins, got {margin[index]} at index {list(index)}")
    for probability in probabilities:
        if not 0 < probability < 1:
            raise ValueError(f"Expected 0 < probability < 1, got {probability}")
    dtype = torch.promote_types(margin.dtype, torch.float32)
    mean, cv = check_parameters(margin, mean, cv, family)
    margin = bounded_margin(margin.double(), mean)
    if annotator is None:
        shape = torch.broadcast_shapes(margin.shape, mean.shape, cv.shape)
        margin, mean, cv = (value.expand(shape).reshape(-1) for value in (margin, mean, cv))
        panel = Panel(margin, mean, cv, flip_probability=flip_probability)
    else:
        ids, group = annotator.unique(return_inverse=True)
        panel, shape = flat_panel(margin, mean, cv, group, len(ids), flip_probability)
    levels = torch.tensor(list(probabilities), dtype=torch.float64, device=margin.device)
    result = _fixed(panel, levels) if family == "fixed" else _by_pieces(panel, family, levels)
    if family == "gamma" and annotator is None and flip_probability == 0.0:
        result = ConditionalStrength(
            *gamma_conditional_moments(panel.margin, panel.mean, panel.cv), result.quantiles
        )
    return ConditionalStrength(*(v.reshape(*shape, *v.shape[1:]).to(dtype) for v in result))


def _fixed(panel: Panel, levels: Tensor) -> ConditionalStrength:
    quantiles = panel.mean.unsqueeze(-1).expand(-1, len(levels))
    return ConditionalStrength(panel.mean, torch.zeros_like(panel.mean), quantiles)


def _by_pieces(panel: Panel, family: str, levels: Tensor) -> ConditionalStrength:
    pieces = [
        _summarise(posterior_nodes(piece, family, _NUM_NODES), levels)
        for piece in panel.pieces(_NUM_NODES)
    ]
    return ConditionalStrength(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def _summarise(nodes: Nodes, levels: Tensor) -> ConditionalStrength:
    weight = torch.softmax(nodes.log_weight, 0)
    mean = (weight * nodes.beta).sum(0)
    variance = (weight * (nodes.beta - mean).square()).sum(0)
    return ConditionalStrength(mean, variance, _quantiles(nodes.beta, weight, levels))


def _quantiles(beta: Tensor, weight: Tensor, levels: Tensor) -> Float[Tensor, "groups levels"]:
    """Invert the distribution function of a density that is linear between the nodes."""
    beta, weight = beta.T.contiguous(), weight.T.contiguous()
    cells = (weight[:, 1:] + weight[:, :-1]) / 2
    below = torch.cat([torch.zeros_like(cells[:, :1]), cells.cumsum(1)], 1)
    target = levels * below[:, -1:]
    cell = (torch.searchsorted(below, target) - 1).clamp(0, cells.shape[1] - 1)
    missing = target - below.gather(1, cell)
    left, right = weight.gather(1, cell), weight.gather(1, cell + 1)
    # The smaller root of left * f + (right - left) * f^2 / 2 = missing, without cancellation.
    root = (left.square() + 2 * (right - left) * missing).clamp(min=0).sqrt()
    fraction = (2 * missing / (left + root).clamp(min=1e-300)).clamp(0, 1)
    return torch.lerp(beta.gather(1, cell), beta.gather(1, cell + 1), fraction)
