"""What TRL computes of a batch: the margin, its other losses, and the weights of the pairs.

TRL has no hook for the loss. Its sigmoid loss multiplies `beta` with the margin first of all, so a
float that remembers the first tensor it multiplies sees the margin, and by answering with infinity
makes TRL's own loss of choices zero: what is left of the total are the other losses.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["FirstOutputs", "MarginTap", "TRLBatch", "pair_weights"]


@dataclass(frozen=True)
class TRLBatch:
    """TRL's part of a loss.

    Attributes:
        margin: Margins in nats, float32, shape `(batch,)`.
        other: All losses but that of the choices, weighted as configured: sft, load balancing.
        weight: WPO's weights of the pairs, or None.
        outputs: Outputs of the policy, where the configuration needs them.
    """

    margin: Tensor
    other: Tensor
    weight: Tensor | None = None
    outputs: Any = None


class MarginTap(float):
    """A beta that keeps the first tensor it multiplies; the product there is infinite."""

    margin: Tensor | None = None

    def __mul__(self, other: Any) -> Any:
        if self.margin is None and isinstance(other, Tensor):
            self.margin = other
            return torch.full_like(other, torch.inf)
        return float(self) * other


class FirstOutputs:
    """A model that keeps what its first call returned."""

    outputs: Any = None

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        outputs = self._model(*args, **kwargs)
        self.outputs = outputs if self.outputs is None else self.outputs
        return outputs


@torch.no_grad()
def pair_weights(outputs: Any, completion_mask: Tensor) -> Tensor:
    r"""Weights of off-policy pairs: how likely the policy itself would write both responses.

    .. math:: \prod_{y \in \{y_w, y_l\}} \exp \Big( \frac{1}{|y|} \sum_t \log
              \frac{\pi(y_t)}{\sum_v \pi(v)^2} \Big)

    Args:
        outputs: Outputs of the policy, as TRL's fused head gives them.
        completion_mask: 1 for tokens of a response, chosen ones first, shape `(2 B, tokens)`.

    Returns:
        Weights, shape `(batch,)`.

    References:
        | WPO (Zhou et al., 2024), equation 2, https://arxiv.org/abs/2406.11827
    """
    mask = completion_mask[:, 1:]
    size = mask.shape[1]  # prompt adapters prepend virtual tokens to the outputs
    aligned = (outputs.log_probs[:, -size:] - outputs.log_sum_sq_probs[:, -size:]) * mask
    weight = (aligned.sum(1) / mask.sum(1).clamp_min(1)).exp()
    return weight.chunk(2)[0] * weight.chunk(2)[1]
