r"""The Gamma mixed logit in closed form: Lerch's transcendent at -1 by an accelerated alternating series.

With the scaled margin :math:`y = m |\Delta|`, the squared coefficient of variation :math:`c`, the concentration
:math:`a = 1/c` and :math:`x = cy`,

.. math:: Q = \mathbb{E}[\sigma(-\beta |\Delta|)] = \sum_{k \ge 1} (-1)^{k+1} (1 + kx)^{-a}
            = x^{-a} \, \Phi(-1, a, 1 + 1/x).

The terms are totally monotone in k, so fixed weights sum the series (Cohen, Rodriguez Villegas, Zagier: Convergence
acceleration of alternating series, Experimental Mathematics 9:1, 2000, Algorithm 1).
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["gamma_log_prob"]


def gamma_log_prob(
    margin: Float[Tensor, "*batch"], mean: Float[Tensor, "*batch"], cv: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Log-probability in nats of the observed choice, Gamma strength integrated out."""
    dtype = margin.dtype
    margin, mean, cv = margin.double(), mean.double(), cv.double().clamp(min=1e-10)
    y = margin.abs() * mean
    c = cv.square()
    a = 1 / c
    x = y * c
    w = x / (1 + x)
    weights = series_weights(24).to(x.device)
    j = torch.arange(24, dtype=torch.float64, device=x.device)
    shape = (-1,) + (1,) * torch.broadcast_shapes(y.shape, c.shape).__len__()
    s = torch.exp(-a * torch.log1p(j.view(shape) * w))
    log_q = -a * torch.log1p(x) + (weights.view(shape) * s).sum(0).log()
    return torch.where(margin < 0, log_q, torch.log1p(-log_q.exp())).to(dtype)


@lru_cache
def series_weights(num_terms: int) -> Float[Tensor, " terms"]:
    """Signed weights that sum an alternating series of totally monotone terms, relative error about 5.83^-n."""
    d = (3 + math.sqrt(8)) ** num_terms
    d = (d + 1 / d) / 2
    b, c, weights = -1.0, -d, []
    for k in range(num_terms):
        c = b - c
        weights.append(c / d)
        b *= (k + num_terms) * (k - num_terms) / ((k + 0.5) * (k + 1))
    return torch.tensor(weights, dtype=torch.float64)
