r"""The paper's estimator: the log of the mean over K reparameterised draws of the strength.

.. math:: \log \frac{1}{K} \sum_{k=1}^{K} \sigma(\beta_k \Delta)

Biased downwards for finite K (Jensen). Source: MixDPO (Imai et al., arXiv 2601.06180).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mixdpo_pyro.models.estimators import Draws
from mixdpo_pyro.models.families import (
    Family,
    gamma_parameters,
    lognormal_parameters,
    normal_parameters,
)
from mixdpo_pyro.models.quadrature import choice_log_prob

__all__ = ["draw_strengths", "draws_log_prob", "segment_sum"]


def draw_strengths(
    mean: Float[Tensor, "*#batch"],
    cv: Float[Tensor, "*#batch"],
    family: Family,
    draws: Draws,
    shape: torch.Size,
) -> Float[Tensor, "draws ..."]:
    """Draws of the strength, differentiable in mean and cv (implicitly for the Gamma family).

    Args:
        mean: Mean strength, positive.
        cv: Coefficient of variation, positive.
        family: `"gamma"`, `"lognormal"` or `"normal"`.
        draws: Number and kind of the draws.
        shape: Shape of the pairs (annotators) that each have their own draws, unless shared.

    Returns:
        Strengths, draws on the first axis.
    """
    shape = torch.broadcast_shapes(mean.shape, cv.shape, (1,) if draws.shared else shape)
    generator = None
    if draws.seed is not None:
        generator = torch.Generator(mean.device).manual_seed(draws.seed)
    if family == "gamma":
        concentration, rate = gamma_parameters(mean, cv)
        concentration = concentration.expand(draws.num_draws, *shape).contiguous()
        return torch._standard_gamma(concentration, generator=generator) / rate
    z = _normal_draws(draws, shape, generator, mean)
    if family == "normal":
        location, scale = normal_parameters(mean, cv)
        return location + scale * z
    location, scale = lognormal_parameters(mean, cv)
    return torch.exp(location + scale * z)


def draws_log_prob(
    beta: Tensor,
    margin: Tensor,
    group: Tensor | None = None,
    num_groups: int = 0,
    flip_probability: float = 0.0,
) -> Tensor:
    r"""The estimate, of the likelihood of each pair or of each group.

    Args:
        beta: Strengths, draws on the first axis; with groups, groups on the last.
        margin: Log-ratio margins in nats, last axis the pairs.
        group: Group of each pair, in 0, ..., `num_groups` - 1.
        num_groups: Number of groups.
        flip_probability: Probability in [0, 1/2) that a label was flipped.

    Returns:
        Log-probabilities in nats, one per pair or group.

    Example:
        >>> draws_log_prob(torch.tensor([[0.1], [0.3]]), torch.tensor([10.0]))
        tensor([-0.1722])
    """
    if group is None:
        value = choice_log_prob(beta * margin, flip_probability)
    else:
        beta = beta.expand(*beta.shape[:-1], num_groups)
        choices = choice_log_prob(beta[..., group] * margin, flip_probability)
        value = segment_sum(choices, group, num_groups)
    return value.logsumexp(0) - math.log(len(value))


def segment_sum(values: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum the last axis by segment."""
    zeros = values.new_zeros((*values.shape[:-1], num_segments))
    return zeros.index_add(-1, segment, values)


def _normal_draws(
    draws: Draws, shape: torch.Size, generator: torch.Generator | None, like: Tensor
) -> Tensor:
    if draws.kind == "sobol":
        return _sobol_draws(draws.num_draws, shape, generator, like)
    antithetic = draws.kind == "antithetic"
    fresh = (draws.num_draws + 1) // 2 if antithetic else draws.num_draws
    z = torch.randn(fresh, *shape, generator=generator, dtype=like.dtype, device=like.device)
    return torch.cat([z, -z])[: draws.num_draws] if antithetic else z


def _sobol_draws(
    num_draws: int, shape: torch.Size, generator: torch.Generator | None, like: Tensor
) -> Tensor:
    """One Sobol sequence, for every entry shifted at random modulo one (Cranley and Patterson)."""
    engine = torch.quasirandom.SobolEngine(1)
    points = engine.draw(num_draws, dtype=like.dtype).to(like.device)
    shift = torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)
    uniform = (points.view(-1, *[1] * len(shape)) + shift).remainder(1.0)
    return torch.special.ndtri(uniform.clamp(1e-16, 1 - 1e-16))
