"""Policies: a small Llama and its tokenizer built from text, and a short supervised stage.

Real runs load a policy by its Hugging Face name or path. This module serves the runs that start
from nothing: the demo, the tests, and machines without access to a hub.
"""

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer, extract_prompt

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.training.progress import train_with_progress
from mixdpo_pyro.training.reference_config import ReferenceConfig

__all__ = ["build_llama", "build_reference", "supervised_fine_tune", "train_tokenizer"]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 1024, show_progress: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on `texts`.

    Args:
        texts: Training text; every byte stays representable, whatever it holds.
        vocab_size: Largest vocabulary size, at least 300 (256 bytes, specials, some merges).
        show_progress: Show a progress bar.

    Returns:
        A tokenizer with `<s>`, `</s>` and `<pad>`; it adds none of them by itself.

    Raises:
        ConfigError: If `vocab_size` is too small.
    """
    if vocab_size < 300:
        raise ConfigError(f"Expected vocab_size >= 300, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def build_llama(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int = 128,
    num_layers: int = 2,
    num_heads: int = 4,
    max_length: int = 512,
    seed: int = 0,
) -> LlamaForCausalLM:
    """Build a randomly initialised Llama for `tokenizer`, float32.

    Args:
        tokenizer: Tokenizer whose vocabulary and special tokens the model takes.
        hidden_size: Width; a multiple of `2 * num_heads`.
        num_layers: Number of decoder layers.
        num_heads: Number of attention heads.
        max_length: Longest sequence in tokens.
        seed: Seed of the initialisation; the global generator is left as it was.

    Raises:
        ConfigError: If the width does not fit the heads.
    """
    if hidden_size % (2 * num_heads):
        raise ConfigError(
            f"Expected hidden_size a multiple of 2 * num_heads = {2 * num_heads}, "
            f"got {hidden_size}"
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=math.ceil(8 * hidden_size / 3 / 32) * 32,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def supervised_fine_tune(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Dataset,
    args: SFTConfig,
) -> float:
    """Fit `model` to both responses of every pair, so that the reference is not noise.

    Args:
        model: Policy to train in place.
        tokenizer: Its tokenizer.
        pairs: Plain-text pairs, columns `prompt`, `chosen`, `rejected`.
        args: TRL's configuration of the supervised stage.

    Returns:
        Mean training loss in nats per completion token.
    """
    both = [*zip(pairs["prompt"], pairs["chosen"], strict=True)]
    both += zip(pairs["prompt"], pairs["rejected"], strict=True)
    prompts, completions = zip(*dict.fromkeys(both), strict=True)  # many judge one response
    responses = Dataset.from_dict({"prompt": prompts, "completion": completions})
    trainer = SFTTrainer(model, args, train_dataset=responses, processing_class=tokenizer)
    return train_with_progress(trainer).training_loss


def build_reference(pairs: Dataset, config: ReferenceConfig, folder: str | Path) -> None:
    """Build a tokenizer and a small Llama from the text of `pairs`, fit it, save both.

    Args:
        pairs: Plain-text preference pairs; an implicit prompt is taken out first.
        config: Sizes and lengths.
        folder: Folder to save to.

    Raises:
        ConfigError: If the pairs are conversational; a model from nothing has no chat template.
    """
    if not isinstance(pairs[0]["chosen"], str):
        raise ConfigError("a model built from text needs plain-text pairs, got messages")
    if "prompt" not in pairs.column_names:
        pairs = pairs.map(extract_prompt, desc="Extracting prompts")
    texts = [text for name in ("prompt", "chosen", "rejected") for text in pairs[name]]
    tokenizer = train_tokenizer(dict.fromkeys(texts), config.vocab_size)
    model = build_llama(
        tokenizer,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        max_length=config.max_length,
        seed=config.seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        supervised_fine_tune(model, tokenizer, pairs, _sft_config(config, scratch))
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _sft_config(config: ReferenceConfig, output_dir: str) -> SFTConfig:
    """TRL's configuration of the supervised stage."""
    return SFTConfig(
        output_dir=output_dir,
        max_steps=config.sft_steps,
        per_device_train_batch_size=config.sft_batch_size,
        learning_rate=config.sft_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, config.sft_steps),
        max_length=config.max_length,
        bf16=torch.accelerator.is_available(),
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=False,
        logging_steps=10,
        seed=config.seed,
    )
