r"""Bounds with the strengths as explicit latents and an amortised guide over each of them.

Both bounds are formed per pair, or per annotator, before the sum over units and before the factor
N/B of a minibatch; Pyro's `RenyiELBO` scales the weights first, which is no bound at all.
Source of the importance-weighted bound: Burda, Grosse, Salakhutdinov, ICLR 2016.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixdpo_pyro.models import (
    Family,
    PreferenceModel,
    gamma_parameters,
    lognormal_parameters,
    mixed_logit_log_prob,
    strength_distribution,
)
from mixdpo_pyro.models.pyro_models import MeanAnchor

__all__ = ["Bound", "BoundedModel", "LocalGuide"]

Bound = Literal["importance", "elbo"]


class LocalGuide(nn.Module):
    r"""Amortised normal guide over the log strength of every pair or annotator.

    .. math:: q(\log\beta_g) = \mathrm{Normal}\big(\mu + \sigma s(h_g),\; \sigma e^{t(h_g)}\big)

    with :math:`\mu, \sigma` the moments of :math:`\log\beta` under the distribution, and s, t a
    network of the unit's summary :math:`h_g`: sum and sum of squares of its margins in units of 1
    / mean, their number, and cv. The network starts at zero: the guide is then the distribution
    itself for the lognormal family, and the importance bound the estimator of the paper.

    Args:
        family: Family of the strength, positive.
        width: Width of the two hidden layers.
    """

    def __init__(self, family: Family, width: int = 16) -> None:
        """Make the network."""
        super().__init__()
        if family not in ("gamma", "lognormal"):
            raise ValueError(f"Expected family gamma or lognormal, got {family!r}")
        self.family = family
        last = nn.Linear(width, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), last
        )

    def forward(
        self, margin: Tensor, unit: Int[Tensor, " pairs"], num_units: int, mean: Tensor, cv: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Location and scale of the log strength, shape `(*particles, units)` each."""
        scaled = mean * margin
        empty = scaled.new_zeros(*scaled.shape[:-1], num_units)
        total = empty.index_add(-1, unit, scaled)
        squares = empty.index_add(-1, unit, scaled.square())
        number = empty.index_add(-1, unit, torch.ones_like(scaled))
        log_cv = cv.log().expand_as(total)
        features = torch.stack([total.asinh(), squares.log1p(), number.log(), log_cv], dim=-1)
        dtype = next(self.network.parameters()).dtype
        shift, log_scale = self.network(features.to(dtype)).unbind(-1)
        location, scale = self._log_moments(mean, cv)
        return location + scale * shift, scale * log_scale.exp()

    def _log_moments(self, mean: Tensor, cv: Tensor) -> tuple[Tensor, Tensor]:
        if self.family == "lognormal":
            return lognormal_parameters(mean, cv)
        concentration, rate = gamma_parameters(mean, cv)
        location = torch.digamma(concentration) - rate.log()
        return location, torch.polygamma(1, concentration).sqrt()


class BoundedModel(PreferenceModel):
    r"""A `PreferenceModel` whose log-probabilities are lower bounds over explicit strengths.

    .. math:: \log \tfrac1K \sum_k w_k \;\text{(importance)}, \quad
              \tfrac1K \sum_k \log w_k \;\text{(elbo)}, \qquad
              w_k = \frac{p(\beta_k \mid m, cv)}{q(\beta_k)} \prod_t \sigma(\beta_k \Delta_t)

    Its parameters are those of the local guide. Draws come from torch's global generator.

    Args:
        family: Family of the strength, `"gamma"` or `"lognormal"`.
        mean_anchor: Anchoring of the mean.
        beta: Median of the mean's prior, or its fixed value.
        bound: `"importance"` or `"elbo"`.
        num_draws: Draws K of each strength.
        flip_probability: Probability that a label was flipped.

    Raises:
        ValueError: If an argument is none of the above.
    """

    def __init__(
        self,
        family: Family = "lognormal",
        *,
        mean_anchor: MeanAnchor = "prior",
        beta: float = 0.1,
        bound: Bound = "importance",
        num_draws: int = 16,
        flip_probability: float = 0.0,
    ) -> None:
        """Make the local guide."""
        super().__init__(
            family, mean_anchor=mean_anchor, beta=beta, flip_probability=flip_probability
        )
        if bound not in get_args(Bound):
            raise ValueError(f"Expected bound to be importance or elbo, got {bound!r}")
        if num_draws < 1:
            raise ValueError(f"Expected num_draws >= 1, got {num_draws}")
        self.bound = bound
        self.num_draws = num_draws
        self.local_guide = LocalGuide(family)

    def log_prob(
        self,
        margin: Float[Tensor, " pairs"],
        mean: Tensor,
        cv: Tensor,
        annotator: Int[Tensor, " pairs"] | None = None,
    ) -> Float[Tensor, "*particles units"]:
        """The bound in nats, one value per pair, or per annotator with ids."""
        unit = torch.arange(len(margin)) if annotator is None else _ranks(annotator)
        num_units = int(unit.max()) + 1
        # Not by attribute: PyroModule would put its parameters into the global store.
        guide_network = self._modules["local_guide"]
        location, scale = guide_network(margin, unit, num_units, mean, cv)
        guide = torch.distributions.Normal(location, scale)
        log_beta = guide.rsample((self.num_draws,))
        beta = log_beta.exp()
        log_likelihood = mixed_logit_log_prob(
            margin,
            beta[..., unit],
            0.0,
            "fixed",
            annotator=annotator,
            flip_probability=self.flip_probability,
        )
        log_mass = strength_distribution(mean, cv, self.family).log_prob(beta) + log_beta
        log_weight = log_likelihood + log_mass - guide.log_prob(log_beta)
        if self.bound == "elbo":
            return log_weight.mean(0)
        return log_weight.logsumexp(0) - math.log(self.num_draws)


def _ranks(annotator: Int[Tensor, " pairs"]) -> Int[Tensor, " pairs"]:
    return annotator.unique(return_inverse=True)[1]
