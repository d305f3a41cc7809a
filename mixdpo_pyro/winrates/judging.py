"""Judges: from completions to scores, or from pairs of completions to winners."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mixdpo_pyro.data.tokenization import first_line
from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.winrates.oracle import total_reward

__all__ = ["ORACLE", "Judge", "PairJudgement", "judge_pairs", "load_judge"]

ORACLE = "oracle"

Judge = Callable[[Sequence[Any], Sequence[str]], Sequence[float | None]]
"""A reward function in TRL's form: `judge(prompts, completions)` gives a score, or None."""

_BATCH = 32

_LENGTH = 2048


@dataclass(frozen=True)
class PairJudgement:
    """Verdicts of a judge who sees two completions at once, asked in both orders.

    Attributes:
        sign: 1 where the first policy won in both orders, -1 where the other did, else 0.
        first_wins: Share of judgements that the completion shown first won: 0.5 without a bias.
    """

    sign: Float[np.ndarray, " comparisons"]
    first_wins: float


def judge_pairs(
    judge: Callable[[Any, str, str], float],
    prompts: Sequence[Any],
    completions: Sequence[str],
    others: Sequence[str],
) -> PairJudgement:
    """Ask a pairwise judge in both orders; where they disagree, it is a tie.

    Args:
        judge: `judge(prompt, first, second)` gives 1 where the first is better, 0 where the second
            is, and 0.5 for a tie.
        prompts: Prompts.
        completions: One policy's completions.
        others: The other's.
    """
    rows = list(zip(prompts, completions, others, strict=True))
    as_first = np.array([judge(p, a, b) for p, a, b in rows])
    as_second = np.array([judge(p, b, a) for p, a, b in rows])
    sign = np.sign(as_first - 0.5) + np.sign(0.5 - as_second)
    return PairJudgement(
        np.where(np.abs(sign) == 2, sign / 2, 0.0), float((as_first + as_second).mean() / 2)
    )


def load_judge(name: str, device: torch.device) -> Judge:
    """The judge of a name: the oracle of the simulated world, or a reward model.

    Raises:
        ConfigError: If there is no such model, or it has several labels.
    """
    if name == ORACLE:
        return lambda prompts, completions: [total_reward(text) for text in completions]
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        what = "" if Path(name).exists() else f"; '{ORACLE}' judges simulated worlds"
        raise ConfigError(
            f"judge: '{name}' cannot be loaded ({first_line(error)}){what}"
        ) from error
    if model.config.num_labels != 1:
        raise ConfigError(f"judge: '{name}' has {model.config.num_labels} labels, expected one")
    model = model.to(device).eval()

    def judge(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        texts = [_whole_text(tokenizer, *pair) for pair in zip(prompts, completions, strict=True)]
        parts = [texts[k : k + _BATCH] for k in range(0, len(texts), _BATCH)]
        return [score for part in parts for score in _rewards(model, tokenizer, part)]

    return judge


def _whole_text(tokenizer: Any, prompt: Any, completion: str) -> str:
    if isinstance(prompt, str):
        return prompt + completion
    messages = [*prompt, {"role": "assistant", "content": completion}]
    return tokenizer.apply_chat_template(messages, tokenize=False)


@torch.no_grad()
def _rewards(model: Any, tokenizer: Any, texts: list[str]) -> list[float]:
    inputs = tokenizer(
        texts, return_tensors="pt", padding=len(texts) > 1, truncation=True, max_length=_LENGTH
    )
    logits = model(**{name: value.to(model.device) for name, value in inputs.items()}).logits
    return logits[:, 0].float().tolist()
