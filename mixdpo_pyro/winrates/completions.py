"""What policies write: completions of prompts, with the distance to the reference they are at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from mixdpo_pyro.margins.language_models import LanguageModels
from mixdpo_pyro.winrates.config import WinrateConfig
from mixdpo_pyro.winrates.interpolation import InterpolatedLogits

__all__ = ["Sampled", "complete_prompts"]


@dataclass(frozen=True)
class Sampled:
    """One batch of completions.

    Attributes:
        text: The completions, without special tokens.
        tokens: Number of tokens of each, the end token included.
        is_finished: Whether each ended by itself.
        divergence: KL of policy and reference along each completion, in nats.
    """

    text: list[str]
    tokens: np.ndarray
    is_finished: np.ndarray
    divergence: np.ndarray


def complete_prompts(
    models: LanguageModels,
    prompts: Sequence[Any],
    config: WinrateConfig,
    name: str,
    weight: float = 1.0,
) -> pd.DataFrame:
    r"""Completions of every prompt by a policy, `num_completions` of each.

    Every batch has a seed of its own, of `seed` and its place. The distance of a completion is

    .. math:: \sum_t \mathrm{KL}\big(\pi(\cdot \mid x, y_{<t}) \,\|\,
              \pi_{\text{ref}}(\cdot \mid x, y_{<t})\big),

    whose mean over completions is the KL of whole responses in nats, with less noise than the mean
    of their log-ratios.

    Args:
        models: Policy and reference, each a model of its own.
        prompts: Texts, or lists of messages.
        config: Options.
        name: What to call the policy on the progress bar.
        weight: Decode at so much of the way from the reference to the policy; see
            :class:`~mixdpo_pyro.winrates.interpolation.InterpolatedLogits`.

    Returns:
        Columns `prompt` (its number), `sample`, `completion`, `tokens`, `finished`, `kl`.
    """
    rows = [(p, s) for p in range(len(prompts)) for s in range(config.num_completions)]
    parts = []
    for start in tqdm(range(0, len(rows), config.batch_size), desc=name, unit="batch"):
        batch = rows[start : start + config.batch_size]
        torch.manual_seed((config.seed * 1_000_003 + start) % 2**63)
        found = _sample(models, [prompts[p] for p, _ in batch], config, weight)
        parts.append(
            pd.DataFrame(
                {
                    "prompt": [p for p, _ in batch],
                    "sample": [s for _, s in batch],
                    "completion": found.text,
                    "tokens": found.tokens,
                    "finished": found.is_finished,
                    "kl": found.divergence,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


@torch.no_grad()
def _sample(
    models: LanguageModels, prompts: list[Any], config: WinrateConfig, weight: float
) -> Sampled:
    ids, mask = _encode(models, prompts)
    tokenizer = models.tokenizer
    end = tokenizer.eos_token_id
    is_reference = models.policy is models.reference
    between = [] if weight == 1 else [InterpolatedLogits(models.reference, weight, mask)]
    generated = models.policy.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        temperature=config.temperature or None,
        top_k=0,
        top_p=1.0,
        logits_processor=between,
        pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        eos_token_id=end,
        return_dict_in_generate=True,
        output_logits=not is_reference,
    )
    written = generated.sequences[:, ids.shape[1] :]
    ends = (written == end).int()
    is_before = ends.cumsum(1) - ends == 0  # the end token itself counts
    divergence = torch.zeros(len(ids))
    if not is_reference:
        divergence = _divergence(models, generated.logits, (ids, mask), written, is_before, weight)
    text = tokenizer.batch_decode(
        [row[kept] for row, kept in zip(written, is_before, strict=True)], skip_special_tokens=True
    )
    return Sampled(
        text,
        is_before.sum(1).cpu().numpy(),
        ends.any(1).cpu().numpy().astype(bool),
        divergence.cpu().numpy(),
    )


def _encode(models: LanguageModels, prompts: list[Any]) -> tuple[Tensor, Tensor]:
    """Tokens of the prompts, padded on the left; messages through the chat template."""
    tokenizer = models.tokenizer
    rows = [
        tokenizer(prompt, add_special_tokens=True)["input_ids"]
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in prompts
    ]
    rows = [_without_end(row, tokenizer.eos_token_id) for row in rows]
    length = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids.to(models.device), mask.to(models.device)


def _without_end(row: list[int], end: int | None) -> list[int]:
    """A prompt goes on: some tokenizers end every text."""
    return row[:-1] if len(row) > 1 and row[-1] == end else row


def _divergence(
    models: LanguageModels,
    policy: Sequence[Float[Tensor, "batch vocabulary"]],
    prompts: tuple[Tensor, Tensor],
    written: Int[Tensor, "batch tokens"],
    kept: Bool[Tensor, "batch tokens"],
    weight: float,
) -> Float[Tensor, " batch"]:
    """Sum over the completion of the KL of both next tokens; the policy's logits are known.

    Token by token, so that no second copy of all logits is needed.
    """
    ids, mask = prompts
    seen = torch.cat([mask, kept.long()], 1)
    assert models.reference is not None
    reference = models.reference(
        input_ids=torch.cat([ids, written], 1),
        attention_mask=seen,
        position_ids=(seen.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).logits[:, ids.shape[1] - 1 : -1]
    total = torch.zeros(len(ids), device=ids.device)
    for place, logits in enumerate(policy):
        base = reference[:, place].float()
        mixed = (base + weight * (logits.float() - base)).log_softmax(-1)
        total += kept[:, place] * (mixed.exp() * (mixed - base.log_softmax(-1))).sum(-1)
    return total
