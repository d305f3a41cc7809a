"""Local interpolation of degree 7, shared by pairs and panels."""

import math
from collections.abc import Iterable
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["CHUNK", "MEAN_RANGE", "ORDER", "PAD", "TINY_CV", "lagrange_basis", "sum_terms"]

ORDER = 8
"""Points of the local interpolation: degree 7."""

PAD = ORDER // 2 - 1
"""Nodes below the cell that is interpolated in."""

TINY_CV = 1e-6
"""Stands for a cv of zero, from which log-likelihoods differ in its square, by 1e-12 a choice."""

MEAN_RANGE = (1e-30, 1e30)
"""Means beyond are taken for these: leapfrog steps may overshoot that far."""

CHUNK = 1_000_000
"""Pairs, or table cells, that are held as temporaries at once."""


def lagrange_basis(
    x: Float[Tensor, "*points"], order: int = ORDER
) -> list[Float[Tensor, "*points"]]:
    """Lagrange basis through the nodes 0, 1, ..., order - 1, at `x`."""
    nodes = range(order)
    difference = [x - m for m in nodes]
    return [
        reduce(torch.mul, (difference[m] for m in nodes if m != k))
        / math.prod(k - m for m in nodes if m != k)
        for k in nodes
    ]


def sum_terms(terms: Iterable[Tensor]) -> Tensor:
    """Sum of an iterable of tensors."""
    return reduce(torch.add, terms)
