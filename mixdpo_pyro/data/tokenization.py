"""Tokens of preference pairs as `trl.DPOTrainer` makes them."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import DPOTrainer

from mixdpo_pyro.errors import ConfigError

__all__ = [
    "count_merged_prompts", "find_policy", "first_line", "is_adapter", "load_tokenizer",
    "tokenize_pairs",
]  # fmt: skip

logger = logging.getLogger(__name__)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token as `trl.DPOTrainer` chooses it.

    Raises:
        ConfigError: If there is none, or it has no token that ends a text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(find_policy(name))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: no tokenizer in '{name}' ({first_line(error)})") from error
    if tokenizer.eos_token is None:
        raise ConfigError(f"model: the tokenizer of '{name}' has no end-of-text token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenize_pairs(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Add `prompt_ids`, `chosen_ids` and `rejected_ids`, whole, as `trl.DPOTrainer` makes them.

    TRL's method is called on a stand-in, since it needs no more of a trainer than the tokenizer;
    margins therefore follow the installed version of TRL.

    Raises:
        ConfigError: If conversational pairs meet a tokenizer without a chat template.
    """
    if isinstance(pairs[0]["chosen"], list) and tokenizer.chat_template is None:
        raise ConfigError("model: the pairs are messages, and the tokenizer has no chat template")
    PartialState()  # TRL's logger asks for it
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer, args=args)
    logger = logging.getLogger(DPOTrainer.__module__)
    logger.addFilter(_is_not_about_merged_tokens)
    try:
        return DPOTrainer._prepare_dataset(trainer, pairs, tokenizer, args, "preference")
    finally:
        logger.removeFilter(_is_not_about_merged_tokens)


def count_merged_prompts(
    pairs: Dataset, tokenized: Dataset, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Number of text pairs whose last prompt token merges with what follows.

    There TRL lets the responses begin with the tokens that differ, before the prompt ends.

    Args:
        pairs: Pairs with a `prompt` column.
        tokenized: What :func:`tokenize_pairs` made of them.
        tokenizer: The tokenizer.
    """
    texts = pairs["prompt"][:]
    if not isinstance(texts[0], str):
        return 0
    whole = tokenizer(texts)["input_ids"]
    return sum(
        len(ids) > len(kept) for ids, kept in zip(whole, tokenized["prompt_ids"], strict=True)
    )


def _is_not_about_merged_tokens(record: logging.LogRecord) -> bool:
    """TRL says it for every pair that differs; :func:`count_merged_prompts` counts them."""
    return "tokenized prompt is not a prefix" not in record.getMessage()


def find_policy(name: str) -> str:
    """The policy in a run folder; any other name as it is."""
    policy = Path(name).expanduser() / "policy"
    return str(policy) if (policy / "config.json").is_file() or is_adapter(policy) else name


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA adapter."""
    return (folder / "adapter_config.json").is_file()


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return f"{error}\n".splitlines()[0]
