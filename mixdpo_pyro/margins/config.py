"""Options of `mixdpo margins`."""

from dataclasses import dataclass
from typing import Literal

from mixdpo_pyro.errors import ConfigError

__all__ = ["MarginsConfig"]


@dataclass(frozen=True)
class MarginsConfig:
    """Write the margins of a policy and a reference on preference pairs to a parquet file.

    Args:
        batch_size: Pairs a forward pass.
        max_length: Longest sequence in tokens, prompt and response, as in training.
        dtype: Precision of the weights: float32 or bfloat16; sums are float32 or better.
        device: Device, or auto: an accelerator where there is one.
        split: Split to take where the source has several.
        config: Configuration name of a hub dataset.
        reader: Reader of a public dataset, NAME or NAME:option,option.
        annotator: Column with annotator ids that must be there.
        prompt: Column that holds the prompt, if not `prompt`.
        chosen: Column that holds the chosen response, if not `chosen`.
        rejected: Column that holds the rejected response, if not `rejected`.
        resume: Go on from what an interrupted run with the same inputs left.
        overwrite: Replace the file where it exists.
    """

    batch_size: int = 16
    max_length: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    split: str = "train"
    config: str | None = None
    reader: str | None = None
    annotator: str | None = None
    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.max_length < 2:
            raise ConfigError(f"max_length: expected at least 2, got {self.max_length}")
