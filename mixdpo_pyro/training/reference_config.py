"""Options of `mixdpo init`: the small policy that is built from text."""

from dataclasses import dataclass

from mixdpo_pyro.config_fields import check_positive, check_range, check_seed, explained, option
from mixdpo_pyro.errors import ConfigError

__all__ = ["ReferenceConfig"]


@explained
@dataclass(frozen=True)
class ReferenceConfig:
    """Sizes of a small Llama built from text, and its short supervised stage."""

    vocab_size: int = option("Largest vocabulary size, at least 300.", 1024)
    hidden_size: int = option("Width; a multiple of `2 * num_heads`.", 128)
    num_layers: int = option("Number of decoder layers.", 2)
    num_heads: int = option("Number of attention heads.", 4)
    max_length: int = option("Longest sequence in tokens.", 512)
    sft_steps: int = option("Optimiser steps of the supervised stage.", 300)
    sft_batch_size: int = option("Responses per step.", 32)
    sft_learning_rate: float = option("Learning rate of the supervised stage.", 3e-3)
    seed: int = option("Seed of weights and order.", 0)

    def __post_init__(self) -> None:
        reason = "this builds small models; take a larger one from a hub"
        check_range("vocab_size", self.vocab_size, 300, 1_000_000, reason)
        check_range("num_layers", self.num_layers, 1, 1_000, reason)
        check_range("num_heads", self.num_heads, 1)
        check_range("hidden_size", self.hidden_size, 2 * self.num_heads, 65_536, reason)
        if self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                f"hidden_size: expected a multiple of 2 * num_heads = {2 * self.num_heads}, "
                f"got {self.hidden_size}"
            )
        check_range("max_length", self.max_length, 2)
        check_range("sft_steps", self.sft_steps, 1)
        check_range("sft_batch_size", self.sft_batch_size, 1)
        check_positive("sft_learning_rate", self.sft_learning_rate)
        check_seed(self.seed)
