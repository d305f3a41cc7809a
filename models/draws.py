r"""The paper's estimator: the log of the mean over K reparameterised draws of the strength.

.. math:: \log \frac{1}{K} \sum_{k=1}^{K} \sigma(\beta_k \Delta)

Biased downwards for finite K (Jensen). Source: MixDPO (Imai et al., arXiv 2601.06180).
"""

import math

import torch
from torch import Tensor

from mixdpo_pyro.models.quadrature import choice_log_prob, segment_sum
from mixdpo_pyro.models.strength import gamma_parameters, lognormal_parameters, normal_parameters

__all__ = ["draw_strengths", "draws_log_prob"]


def draw_strengths(
    mean: Tensor,
    cv: Tensor,
    family: str,
    num_draws: int,
    shape: torch.Size,
    kind: str = "plain",
    seed: int | None = None,
) -> Tensor:
    """Reparameterised draws of the strength, shape `(num_draws, *shape)`."""
    generator = None if seed is None else torch.Generator(mean.device).manual_seed(seed)
    if family == "gamma":
        concentration, rate = gamma_parameters(mean, cv)
        sample = torch._standard_gamma(
            concentration.expand(num_draws, *shape).contiguous(), generator=generator
        )
        return sample / rate
    z = _normal_draws(num_draws, shape, kind, generator, mean)
    if family == "normal":
        location, scale = normal_parameters(mean, cv)
        return location + scale * z
    location, scale = lognormal_parameters(mean, cv)
    return torch.exp(location + scale * z)


def draws_log_prob(
    margin: Tensor,
    beta: Tensor,
    annotator: Tensor | None = None,
    num_annotators: int = 0,
    flip: float = 0.0,
) -> Tensor:
    """Log of the mean over draws (first axis of `beta`) of the likelihood of a pair, or of an annotator."""
    if annotator is None:
        value = choice_log_prob(beta * margin, flip)
    else:
        value = segment_sum(
            choice_log_prob(beta[..., annotator] * margin, flip), annotator, num_annotators
        )
    return value.logsumexp(0) - math.log(len(value))


def _normal_draws(
    num_draws: int, shape: torch.Size, kind: str, generator: torch.Generator | None, like: Tensor
) -> Tensor:
    if kind == "sobol":
        return _sobol_draws(num_draws, shape, generator, like)
    if kind == "plain":
        return torch.randn(
            num_draws, *shape, generator=generator, dtype=like.dtype, device=like.device
        )
    half = torch.randn(
        (num_draws + 1) // 2, *shape, generator=generator, dtype=like.dtype, device=like.device
    )
    return torch.cat([half, -half])[:num_draws]


def _sobol_draws(
    num_draws: int, shape: torch.Size, generator: torch.Generator | None, like: Tensor
) -> Tensor:
    """One scrambled sequence, shifted at random (Cranley and Patterson) for every entry of `shape`."""
    engine = torch.quasirandom.SobolEngine(1, scramble=False)
    points = (
        engine.draw(num_draws, dtype=torch.float64).to(like.device).view(-1, *[1] * len(shape))
    )
    shift = torch.rand(shape, generator=generator, dtype=torch.float64, device=like.device)
    uniform = (points + shift).remainder(1.0).clamp(1e-16, 1 - 1e-16)
    return torch.special.ndtri(uniform).to(like.dtype)
