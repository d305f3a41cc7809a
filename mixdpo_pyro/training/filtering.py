"""What can go wrong quietly in training: pairs without a signal, and a mean that runs away."""

import logging
from collections import Counter

import numpy as np
from datasets import Dataset

from mixdpo_pyro.errors import DataError

__all__ = ["drop_unusable"]

logger = logging.getLogger(__name__)


def drop_unusable(
    dataset: Dataset,
    name: str,
    max_length: int | None,
    truncation_mode: str,
    strict: bool = False,
) -> tuple[Dataset, dict[str, int]]:
    """Drop tokenized pairs that hold no preference, and count them.

    A completion that is empty (but for the end-of-text token), two completions with the same
    tokens, and two that are the same once they are cut to `max_length` have the margin 0 or that
    of a padding: they teach nothing and bias the strength.

    Args:
        dataset: Pairs with `prompt_ids`, `chosen_ids` and `rejected_ids`, as TRL prepares them.
        name: Name of the dataset, for messages.
        max_length: Longest sequence in tokens, or None.
        truncation_mode: `keep_start` or `keep_end`, as in `trl.DPOConfig`.
        strict: Raise instead.

    Returns:
        The pairs that are left, and reason -> count.

    Raises:
        DataError: If `strict` and there is such a pair, naming the first rows; if none is left.
    """
    reasons = [
        _why_unusable(*ids, max_length, truncation_mode)
        for ids in zip(
            dataset["prompt_ids"], dataset["chosen_ids"], dataset["rejected_ids"], strict=True
        )
    ]
    rows = [index for index, reason in enumerate(reasons) if reason]
    if not rows:
        return dataset, {}
    dropped = dict(Counter(reason for reason in reasons if reason))
    words = ", ".join(f"{count} pairs with {reason}" for reason, count in sorted(dropped.items()))
    if strict:
        raise DataError(f"{name} dataset: {words}; the first rows are {rows[:5]} (strict)")
    if len(rows) == len(dataset):
        raise DataError(f"{name} dataset: no usable pair is left ({words})")
    logger.warning("%s dataset: dropped %s", name, words)
    return dataset.select(np.setdiff1d(np.arange(len(dataset)), rows)), dropped


def _why_unusable(
    prompt: list[int],
    chosen: list[int],
    rejected: list[int],
    max_length: int | None,
    truncation_mode: str,
) -> str | None:
    if min(len(chosen), len(rejected)) <= 1:  # the end-of-text token alone, or not even that
        return "an empty completion"
    if chosen == rejected:
        return "identical completions"
    if max_length is None:
        return None
    left = [_truncated(prompt, c, max_length, truncation_mode) for c in (chosen, rejected)]
    if not all(left):
        return "a fully truncated completion"
    return "completions that are identical once truncated" if left[0] == left[1] else None


def _truncated(prompt: list[int], completion: list[int], length: int, mode: str) -> list[int]:
    """What is left of a completion in a sequence of at most `length` tokens."""
    if mode == "keep_end":
        return completion[-length:]
    return completion[: max(length - len(prompt), 0)]
