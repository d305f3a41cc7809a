"""Losses of other papers with a fixed or scheduled beta, in the same trainer, to compare with."""

import math
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixdpo_pyro.inference.methods.objectives import Objective

__all__ = [
    "Baseline", "BaselineName", "BetaDPO", "ConservativeDPO", "RobustDPO", "build_baseline",
]  # fmt: skip

BaselineName: TypeAlias = Literal["robust", "conservative", "beta-dpo"]


def build_baseline(name: BaselineName, beta: float, flip_probability: float) -> Objective:
    """Build the objective of another paper; it takes margins as the others do.

    Args:
        name: `robust`, `conservative` or `beta-dpo`.
        beta: DPO's beta.
        flip_probability: Share of flipped labels, for the first two.
    """
    if name == "beta-dpo":
        return BetaDPO(beta)
    return {"robust": RobustDPO, "conservative": ConservativeDPO}[name](beta, flip_probability)


class Baseline(Objective):
    """A loss on margins with one strength that is not learned."""

    def __init__(self, beta: float) -> None:
        """Keep the strength."""
        super().__init__()
        self.beta = beta

    def forward(
        self,
        margin: Float[Tensor, " batch"],
        annotator: Tensor | None = None,
        num_total: int | None = None,
    ) -> Float[Tensor, ""]:
        """The loss; who chose and how many pairs there are do not enter."""
        return self.loss(margin)

    def location(self) -> dict[str, Tensor]:
        """The strength, and cv = 0."""
        beta = torch.tensor(self.beta, dtype=torch.float64)
        return {"mean": beta, "cv": torch.zeros_like(beta)}

    def log_prob(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Log-probability in nats of each choice under DPO."""
        return logsigmoid(self.beta * margin)

    def loss(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Mean loss of a batch in nats."""
        raise NotImplementedError


class RobustDPO(Baseline):
    r"""An estimate of DPO's loss on clean labels that is unbiased under flips (rDPO).

    .. math:: \frac{-(1-\epsilon) \log \sigma(\beta\Delta) + \epsilon \log \sigma(-\beta\Delta)}
              {1 - 2\epsilon}

    Args:
        beta: Strength.
        flip_probability: Probability :math:`\epsilon` in [0, 1/2) of a flipped label.

    References:
        | Provably Robust DPO (Ray Chowdhury et al., 2024), https://arxiv.org/abs/2403.00409
    """

    def __init__(self, beta: float, flip_probability: float) -> None:
        """Keep strength and noise."""
        super().__init__(beta)
        self.flip_probability = flip_probability

    def loss(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Mean loss of a batch in nats."""
        kept, flipped = self._terms(margin)
        return ((kept - flipped) / (1 - 2 * self.flip_probability)).mean()

    def _terms(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        utility, noise = self.beta * margin, self.flip_probability
        return -(1 - noise) * logsigmoid(utility), -noise * logsigmoid(-utility)


class ConservativeDPO(RobustDPO):
    r"""DPO with smoothed labels (cDPO).

    .. math:: -(1-\epsilon) \log \sigma(\beta\Delta) - \epsilon \log \sigma(-\beta\Delta)

    References:
        | A note on DPO with noisy preferences (Mitchell, 2023)
    """

    def loss(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Mean loss of a batch in nats."""
        kept, flipped = self._terms(margin)
        return (kept + flipped).mean()


class BetaDPO(Baseline):
    r"""DPO whose beta follows the margins of the batch, on the likelier part of it.

    .. math:: \beta_t = \max\big(\beta\,[1 + \alpha (\overline{\Delta} - M_0)],\, 10^{-3}\big)

    with :math:`\overline{\Delta}` the mean margin of the pairs kept and :math:`M_0` a moving
    average of the batches' mean margins. A share :math:`\rho` of the pairs is kept, drawn without
    replacement with weights :math:`\exp(-(\Delta_i - M_0)^2 / 2 s^2)`, s the moving average of
    the batches' standard deviations. Both averages start at zero and take in the batch first, as
    in the authors' code. Over several processes statistics are those of all, and each process
    draws from its own pairs.

    Args:
        beta: :math:`\beta`.
        sensitivity: :math:`\alpha`.
        kept: :math:`\rho`.
        momentum: Weight of the past in the moving averages.

    References:
        | beta-DPO: Direct Preference Optimization with Dynamic beta (Wu et al., 2024),
          https://arxiv.org/abs/2407.08639
    """

    margin_mean: Tensor
    margin_scale: Tensor

    def __init__(
        self, beta: float, sensitivity: float = 0.6, kept: float = 0.8, momentum: float = 0.9
    ) -> None:
        """Start both averages at zero."""
        super().__init__(beta)
        self.sensitivity = sensitivity
        self.kept = kept
        self.momentum = momentum
        self.register_buffer("margin_mean", torch.zeros(()))
        self.register_buffer("margin_scale", torch.zeros(()))

    def loss(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Mean loss of the pairs that are kept, in nats; updates the averages."""
        from accelerate.utils import gather, reduce  # a strength is read without it

        fixed = margin.detach()
        everyones = gather(fixed)
        self.margin_mean.lerp_(everyones.mean(), 1 - self.momentum)
        if len(everyones) > 1:  # one margin has no spread
            self.margin_scale.lerp_(everyones.std(), 1 - self.momentum)
        chosen = self._draw(fixed)
        average = reduce(fixed[chosen].mean(), reduction="mean")
        beta = self.beta * (1 + self.sensitivity * (average - self.margin_mean))
        return -logsigmoid(beta.clamp(min=1e-3) * margin[chosen]).mean()

    def _draw(self, margin: Tensor) -> Tensor:
        """Indices of the pairs that are kept: Gumbel's way to draw without replacement."""
        scale = self.margin_scale.clamp(min=torch.finfo(margin.dtype).tiny ** 0.25)
        log_weight = -((margin - self.margin_mean) / scale).square() / 2
        uniform = torch.rand_like(log_weight).clamp(min=torch.finfo(margin.dtype).tiny)
        gumbel = -(-uniform.log()).log()
        return (log_weight + gumbel).topk(max(math.floor(self.kept * len(margin)), 1)).indices
