"""A split into training and held-out pairs that keeps equal pairs together."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
from datasets import Dataset

from mixdpo_pyro.errors import DataError

__all__ = ["keys_of_pairs", "pair_keys", "split_pairs"]


def split_pairs(pairs: Dataset, test_fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split at random into train and test; rows about the same two responses stay together.

    Several annotators often judge one pair. Were its rows on both sides, the test margins would
    come from a policy that has seen the answer.

    Raises:
        DataError: If there are fewer than two different pairs.
    """
    keys = pair_keys(pairs)
    unique = sorted(set(keys))
    if len(unique) < 2:
        raise DataError(f"Expected at least 2 different pairs to split, got {len(unique)}")
    num_test = min(max(round(test_fraction * len(unique)), 1), len(unique) - 1)
    order = np.random.default_rng(seed).permutation(len(unique))
    test_keys = {unique[i] for i in order[:num_test]}
    is_test = np.array([key in test_keys for key in keys])
    return pairs.select(np.flatnonzero(~is_test)), pairs.select(np.flatnonzero(is_test))


def pair_keys(pairs: Dataset) -> list[str]:
    """One key a row; equal for rows with the same prompt and the same two answers."""
    prompts = pairs["prompt"] if "prompt" in pairs.column_names else [""] * len(pairs)
    return keys_of_pairs(prompts, pairs["chosen"], pairs["rejected"])


def keys_of_pairs(prompts: Iterable, chosen: Iterable, rejected: Iterable) -> list[str]:
    """The keys of :func:`pair_keys` for columns of texts or messages."""
    keys = []
    for prompt, *answers in zip(prompts, chosen, rejected, strict=True):
        both = sorted(json.dumps(answer, sort_keys=True) for answer in answers)
        text = "\0".join([json.dumps(prompt, sort_keys=True), *both])
        keys.append(hashlib.sha256(text.encode()).hexdigest())
    return keys
