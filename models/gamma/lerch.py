r"""Lerch's transcendent at -1 and the series behind the Gamma mixed logit.

With the scaled margin :math:`y = m |\Delta|`, the squared coefficient of variation :math:`c`, the
concentration :math:`a = 1/c` and :math:`x = cy`,

.. math:: Q = \mathbb{E}[\sigma(-\beta |\Delta|)] = \sum_{k \ge 1} (-1)^{k+1} (1 + kx)^{-a}
            = x^{-a} \, \Phi(-1, a, 1 + 1/x).

The terms are totally monotone in k, so fixed weights sum the series (Cohen, Rodriguez Villegas,
Zagier: Convergence acceleration of alternating series, Experimental Mathematics 9:1, 2000,
Algorithm 1). The arithmetic is float64.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mixdpo_pyro.models.devices import in_float64

__all__ = ["SeriesTerms", "lerch_phi_minus_one", "log1p_excess", "series_terms"]

# As y -> 0 terms like k^p do not decay; n weights sum them to n^(2p) 5.83^-n, 1e-17 at p = 2.
_NUM_TERMS = 30


@in_float64
def lerch_phi_minus_one(
    s: Float[Tensor, "*#batch"], a: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    r"""Lerch's transcendent at -1.

    .. math:: \Phi(-1, s, a) = \sum_{k \ge 0} \frac{(-1)^k}{(a + k)^s}

    Args:
        s: Exponent, :math:`s \ge 0` (at 0 the sum is Abel's, one half).
        a: Offset, :math:`a > 0`, broadcastable with `s`.

    Returns:
        The transcendent, in the promoted dtype of the inputs; differentiable in both.

    Raises:
        ValueError: If an `s` is negative or an `a` is not positive.

    References:
        | Digital Library of Mathematical Functions, section 25.14

    Example:
        >>> lerch_phi_minus_one(torch.tensor(1.0), torch.tensor(1.0))  # log 2
        tensor(0.6931)
    """
    if not bool((s >= 0).all()):
        raise ValueError(f"Expected 0 <= s, got {s.min().item()}")
    if not bool((a > 0).all()):
        raise ValueError(f"Expected 0 < a, got {a.min().item()}")
    dtype = torch.promote_types(s.dtype, a.dtype)
    s, a = torch.broadcast_tensors(s.double(), a.double())
    k = torch.arange(_NUM_TERMS, dtype=torch.float64, device=s.device)
    terms = torch.exp(-s.unsqueeze(-1) * torch.log1p(k / a.unsqueeze(-1)))
    return (a.pow(-s) * (terms @ _series_weights(s.device))).to(dtype)


class SeriesTerms(NamedTuple):
    """The series of Q, terms on the first axis.

    Attributes:
        log_total: Log of the sum over its first term, :math:`(1 + x)^{-a}`.
        weight: Signed share of each term in the sum; they add up to one.
        k: Numbers of the terms, 1, 2, ...
        z: The products kx.
    """

    log_total: Float[Tensor, " pairs"]
    weight: Float[Tensor, "terms pairs"]
    k: Float[Tensor, "terms 1"]
    z: Float[Tensor, "terms pairs"]

    def mean(self, value: Float[Tensor, "terms pairs"]) -> Float[Tensor, " pairs"]:
        """Mean of a quantity over the terms by their weights."""
        return (self.weight * value).sum(0)


def series_terms(y: Float[Tensor, " pairs"], c: Float[Tensor, "*pairs"]) -> SeriesTerms:
    """Terms of the series at scaled margins y >= 0 and squared coefficients of variation c > 0."""
    x = c * y
    weights = _series_weights(x.device).unsqueeze(-1)
    k = torch.arange(1, _NUM_TERMS + 1, dtype=x.dtype, device=x.device).unsqueeze(-1)
    terms = weights * torch.exp(torch.log1p((k - 1) * (x / (1 + x))) / -c)
    total = terms.sum(0)
    return SeriesTerms(total.log(), terms / total, k, k * x)


def log1p_excess(z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """`log1p(z) - z / (1 + z)`, z^2 / 2 near zero, by the series of atanh for small z >= 0."""
    q = z / (2 + z)
    q2 = q.square()
    atanh_excess = q * q2 * (1 / 3 + q2 * (1 / 5 + q2 * (1 / 7 + q2 * (1 / 9 + q2 / 11))))
    return torch.where(z < 0.1, 2 * (q2 / (1 + q) + atanh_excess), z.log1p() - z / (1 + z))


@lru_cache
def _series_weights(device: torch.device) -> Float[Tensor, " terms"]:
    """Signed weights of the first `_NUM_TERMS` terms (Algorithm 1), the first one positive."""
    scale = math.cosh(_NUM_TERMS * math.log(3 + math.sqrt(8)))
    b, c, weights = -1.0, -scale, []
    for k in range(_NUM_TERMS):
        c = b - c
        weights.append(c / scale)
        b *= (k + _NUM_TERMS) * (k - _NUM_TERMS) / ((k + 0.5) * (k + 1))
    return torch.tensor(weights, dtype=torch.float64, device=device)
