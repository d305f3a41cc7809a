"""Options of `mixdpo margins`."""

from dataclasses import dataclass
from typing import Literal

from mixdpo_pyro.config_fields import (
    PSEUDONYMISE,
    PSEUDONYMISE_COLUMNS,
    check_range,
    explained,
    option,
)
from mixdpo_pyro.data.config import CHOICE_SET_HELP, READER_HELP

__all__ = ["NOT_TRAINED_ON", "MarginsConfig"]

NOT_TRAINED_ON = "none"
"""Value of `trained_on` for a policy that was trained on none of the pairs."""


@explained
@dataclass(frozen=True)
class MarginsConfig:
    """Write the margins of a policy and a reference on preference pairs to a parquet file."""

    batch_size: int = option("Pairs per forward pass.", 16)
    max_length: int = option(
        "Longest sequence in tokens, prompt and response, as in training.", 512
    )
    dtype: Literal["float32", "bfloat16"] = option(
        "Precision of the weights: float32 or bfloat16; sums are float32 or better.", "float32"
    )
    device: str = option("Device, or auto: an accelerator where there is one.", "auto")
    split: str = option("Split to take where the source has several.", "train")
    dataset_config: str | None = option("Configuration name of a hub dataset.", None)
    reader: str | None = option(READER_HELP, None)
    annotator: str | None = option("Column with annotator ids that must be there.", None)
    choice_set: str | None = option(CHOICE_SET_HELP, None)
    trained_on: str | None = option(
        "Pairs that the policy was trained on, with texts as the data have them, or `none` for a "
        "policy that has seen none of the data: a column `trained_on` marks rows with their "
        "responses, and mixdpo diagnose leaves these out. Of a folder of mixdpo train it is "
        "known.",
        None,
    )
    pseudonymise: str | None = option(PSEUDONYMISE, None)
    pseudonymise_columns: list[str] = option(PSEUDONYMISE_COLUMNS, [])
    prompt: str | None = option("Column that holds the prompt, if not `prompt`.", None)
    chosen: str | None = option("Column that holds the chosen response, if not `chosen`.", None)
    rejected: str | None = option(
        "Column that holds the rejected response, if not `rejected`.", None
    )
    resume: bool = option("Go on from what an interrupted run with the same inputs left.", False)
    overwrite: bool = option("Replace the file where it exists.", False)

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, 1)
        check_range("max_length", self.max_length, 2)
