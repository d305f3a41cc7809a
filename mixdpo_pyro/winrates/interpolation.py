"""Decoding between the reference and the policy: the strength as a knob."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

__all__ = ["InterpolatedLogits"]


class InterpolatedLogits(LogitsProcessor):
    r"""Sample from logits between those of the reference and the policy, or beyond the policy.

    .. math:: z = z_{\text{ref}} + \lambda (z_\pi - z_{\text{ref}})

    At :math:`\lambda = 1` this is the policy, at 0 the reference. A policy of DPO's form with
    strength :math:`\beta` that is decoded at :math:`\lambda` approximates, token by token, one
    trained with :math:`\beta / \lambda` (Liu et al. 2024, arXiv 2402.02992). With
    :math:`\lambda_g = \mathbb{E}[\beta_g \mid \text{choices}] / m` it is the policy of annotator
    g, if strength is how much they care.

    One object serves one call of `generate`, by sampling or greedily; beam search reorders rows,
    which the reference's cache does not follow.

    Args:
        reference: The reference, with the policy's vocabulary.
        weight: :math:`\lambda`, finite; one number, or one for each row.
        attention_mask: Mask of the prompts, padded on the left; default, nothing is padded.

    Example:
        >>> processor = InterpolatedLogits(reference, 0.5)  # doctest: +SKIP
        >>> policy.generate(**prompt, logits_processor=[processor])  # doctest: +SKIP
    """

    def __init__(
        self,
        reference: Any,
        weight: float | Float[Tensor, " rows"],
        attention_mask: Int[Tensor, "rows prompt"] | None = None,
    ) -> None:
        """Begin with an empty cache."""
        weight = torch.as_tensor(weight, dtype=torch.float32)
        if not weight.isfinite().all():
            raise ValueError(f"Expected finite weights, got {weight.tolist()}")
        self.reference = reference
        self.weight = weight.reshape(-1, 1)
        self._mask = attention_mask
        self._cache: dict[str, Any] = {}

    @torch.no_grad()
    def __call__(
        self, input_ids: Int[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the next token."""
        mask = torch.ones_like(input_ids)
        if self._mask is not None:
            mask[:, : self._mask.shape[1]] = self._mask.to(mask)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        new = slice(-1, None) if self._cache else slice(None)
        found = self.reference(
            input_ids=input_ids[:, new],
            attention_mask=mask,
            position_ids=position[:, new],
            use_cache=True,
            **self._cache,
        )
        name = "cache" if "cache" in found else "past_key_values"  # before transformers 5.24
        self._cache = {name: found[name]}
        reference = found.logits[:, -1].to(scores)
        return reference + self.weight.to(scores) * (scores - reference)
