r"""The log-likelihood of (mean, cv) made cheap: data compressed once, evaluated often.

Pairs: :math:`\log P(\Delta; m, cv)` is a smooth function of one margin, so the sum over pairs is a
weighted sum over a few hundred nodes (the transpose of local polynomial interpolation). Pairs that
are fewer than the nodes are summed as they are.
Panels: an annotator's likelihood is a smooth function of one strength, so it is tabulated over the
strength once, and its expectation under any distribution is a matrix product.
Both are differentiable in mean and cv, and none of their costs grows with the number of pairs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixdpo_pyro.inference.likelihood.interpolation import (
    CHUNK,
    MEAN_RANGE,
    ORDER,
    PAD,
    TINY_CV,
    lagrange_basis,
    sum_terms,
)
from mixdpo_pyro.models import Family, mixed_logit_log_prob

__all__ = ["CompressedMargins", "FewMargins", "compress", "pair_log_prob"]

_STEP = 0.07
"""Node distance in asinh units; `error_bound` measures the error, of order eight in it."""


@dataclass(frozen=True)
class FewMargins:
    """Margins that are fewer than the nodes that would stand for them: the sum itself.

    Attributes:
        family: Family of the strength.
        flip_probability: Probability that a label was flipped.
        margin: The margins, in nats.
    """

    family: Family
    flip_probability: float
    margin: Float[Tensor, " pairs"]

    def __call__(
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of all pairs at each point, in nats."""
        return self.per_pair(self.margin, mean, cv).sum(-1)

    def per_pair(
        self,
        margin: Float[Tensor, " pairs"],
        mean: Float[Tensor, "*#points"],
        cv: Float[Tensor, "*#points"],
    ) -> Float[Tensor, "*points pairs"]:
        """Log-probability of single pairs."""
        return _log_prob(margin, mean, cv, self.family, self.flip_probability)


@dataclass(frozen=True)
class CompressedMargins:
    r"""Margins as weighted nodes: :math:`\sum_i f(\Delta_i) \approx \sum_j w_j f(x_j)`, f smooth.

    Nodes are equally spaced in :math:`t = \operatorname{asinh}(\Delta / s)`; the weights are those
    of Lagrange interpolation of degree 7 through the eight nodes around each margin.

    Attributes:
        family: Family of the strength.
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
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of all pairs at each point, in nats."""
        return self._at_nodes(mean, cv) @ self.weight

    def per_pair(
        self,
        margin: Float[Tensor, " pairs"],
        mean: Float[Tensor, "*#points"],
        cv: Float[Tensor, "*#points"],
    ) -> Float[Tensor, "*points pairs"]:
        """Log-probability of single pairs, whose margins lie within those that were compressed."""
        at_nodes = self._at_nodes(mean, cv)
        cell, basis = _locate(margin, self.scale, self.low, len(self.count))
        return sum_terms(at_nodes[..., cell + k] * basis[k] for k in range(ORDER))

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
        steps = torch.arange(len(self.weight), dtype=torch.float64) - PAD
        node = self.scale * torch.sinh(self.low + _STEP * steps)
        return _log_prob(node, mean, cv, self.family, self.flip_probability)


def compress(
    margin: Float[np.ndarray, " pairs"], family: Family, flip_probability: float = 0.0
) -> CompressedMargins | FewMargins:
    """Replace margins by weighted nodes, a few hundred for any number of pairs.

    Args:
        margin: Finite margins.
        family: Family of the strength.
        flip_probability: Probability that a label was flipped.

    Returns:
        The nodes, or the margins themselves where they are fewer.
    """
    # One thirtieth of the median resolves margins that are small beside the typical one.
    scale = float(np.median(np.abs(margin)) or np.abs(margin).mean() or 1.0) / 30
    low, high = np.arcsinh(np.array([margin.min(), margin.max()]) / scale).tolist()
    num_cells = int((high - low) / _STEP) + 1
    if len(margin) < num_cells + ORDER:
        return FewMargins(family, flip_probability, torch.from_numpy(margin))
    weight = torch.zeros(num_cells + ORDER - 1, dtype=torch.float64)
    count = torch.zeros(num_cells, dtype=torch.float64)
    for part in torch.from_numpy(margin).split(CHUNK):
        cell, basis = _locate(part, scale, low, num_cells)
        count += torch.bincount(cell, minlength=num_cells)
        for k in range(ORDER):
            weight += torch.bincount(cell + k, basis[k], minlength=len(weight))
    return CompressedMargins(family, flip_probability, scale, low, weight, count)


def pair_log_prob(
    margin: Float[np.ndarray, " pairs"],
    mean: Float[np.ndarray, " points"],
    cv: Float[np.ndarray, " points"],
    family: Family,
    flip_probability: float = 0.0,
) -> Float[np.ndarray, "points pairs"]:
    """Log-probability of each pair at each point, interpolated where distinct margins are many."""
    point = torch.from_numpy(mean), torch.from_numpy(cv)
    distinct, index = np.unique(margin, return_inverse=True)
    compressed = compress(distinct, family, flip_probability)
    return compressed.per_pair(torch.from_numpy(distinct), *point).numpy()[:, index]


def _log_prob(
    margin: Float[Tensor, " margins"],
    mean: Float[Tensor, "*#points"],
    cv: Float[Tensor, "*#points"],
    family: Family,
    flip_probability: float,
) -> Float[Tensor, "*points margins"]:
    """Log-probability of each margin at each point, in slices; cv may be 0."""
    points = torch.broadcast_tensors(mean.clamp(*MEAN_RANGE), cv.clamp(TINY_CV, 1 / TINY_CV))
    rows = max(1, CHUNK // (64 * len(margin)))
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
    return cell, lagrange_basis(position - cell + PAD)
