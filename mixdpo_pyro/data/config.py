"""Options of `mixdpo doctor` and `mixdpo simulate`."""

from dataclasses import dataclass
from typing import Literal

from mixdpo_pyro.config_fields import (
    PSEUDONYMISE,
    check_kind,
    check_positive,
    check_range,
    check_seed,
    explained,
    option,
)
from mixdpo_pyro.errors import ConfigError

__all__ = ["CHOICE_SET_HELP", "READER_HELP", "DoctorConfig", "SimulateConfig", "check_world"]

CHOICE_SET_HELP = (
    "Column of choice sets: rows of one set are one choice among several responses. Default: "
    "`choice_set` where there is one, or what the rows look like; `none` keeps rows apart."
)

READER_HELP = (
    "Reader of a public dataset, NAME or NAME:option,option; NAME is one of hh-rlhf, prism, "
    "multipref, ultrafeedback, community-alignment, coval, helpsteer3, chatbot-arena, webgpt, "
    "summarize-from-feedback."
)

_MOST_PAIRS = 10_000_000

_LARGEST_MEAN = 1e100

_LARGEST_CV = 1_000.0


@explained
@dataclass(frozen=True)
class DoctorConfig:
    """Check preference pairs before training: columns, rows, repeats, lengths, truncation."""

    split: str = option("Split to take where the source has several.", "train")
    dataset_config: str | None = option("Configuration name of a hub dataset.", None)
    reader: str | None = option(READER_HELP, None)
    annotator: str | None = option(
        "Column with annotator ids; a column `annotator` is found by itself.", None
    )
    choice_set: str | None = option(CHOICE_SET_HELP, None)
    prompt: str | None = option("Column that holds the prompt, if not `prompt`.", None)
    chosen: str | None = option("Column that holds the chosen response, if not `chosen`.", None)
    rejected: str | None = option(
        "Column that holds the rejected response, if not `rejected`.", None
    )
    model: str | None = option(
        "Model whose tokenizer counts tokens; without it lengths are in characters.", None
    )
    max_length: int = option(
        "Longest sequence in tokens, prompt and response, as in training.", 512
    )
    pseudonymise: str | None = option(PSEUDONYMISE, None)
    examples: int = option("Number of pairs to show.", 3)
    seed: int = option("Seed of their choice.", 0)
    json: str | None = option("File to write the numbers to.", None)
    overwrite: bool = option("Replace that file where something else wrote it.", False)

    def __post_init__(self) -> None:
        check_range("max_length", self.max_length, 2)
        check_range("examples", self.examples, 0)
        check_seed(self.seed)


@explained
@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Write a simulated preference dataset and the truth it was drawn from."""

    output_dir: str = option("Folder for dataset and truth.", short="-o")
    overwrite: bool = option("Replace an earlier simulated dataset.", False)
    num_annotators: int = option("Annotators of the world.", 200)
    pairs_per_annotator: int = option("Choices of each annotator.", 40)
    family: Literal["lognormal", "gamma"] = option("Distribution of the strengths.", "lognormal")
    mean: float = option("Mean strength per unit of reward.", 1.0)
    cv: float = option("Coefficient of variation of the strengths.", 0.6)
    kind: str = option(
        "What is asked of annotators: `pairs`, `ties`, `grades:5`, `best-of:4` or `ranking:4`, "
        "other numbers likewise.",
        "pairs",
    )
    judges_per_pair: int = option(
        "How many annotators judge the same prompt and responses; a divisor of num_annotators.", 1
    )
    seed: int = option("Seed of everything that is drawn.", 0)

    def __post_init__(self) -> None:
        check_kind("kind", self.kind)
        check_world(
            self.num_annotators, self.pairs_per_annotator, self.mean, self.cv, self.seed,
            self.judges_per_pair,
        )  # fmt: skip


def check_world(
    num_annotators: int,
    pairs_per_annotator: int,
    mean: float,
    cv: float,
    seed: int,
    judges_per_pair: int = 1,
) -> None:
    """Refuse a world that cannot be simulated.

    Raises:
        ConfigError: Naming the key.
    """
    reason = f"a world of {_MOST_PAIRS:,} pairs fills the memory"
    check_range("num_annotators", num_annotators, 1, _MOST_PAIRS, reason)
    most = _MOST_PAIRS // num_annotators
    check_range("pairs_per_annotator", pairs_per_annotator, 1, most, reason)
    check_range("judges_per_pair", judges_per_pair, 1)
    if num_annotators % judges_per_pair:
        raise ConfigError(
            f"judges_per_pair: expected a divisor of num_annotators ({num_annotators:,}), "
            f"got {judges_per_pair}"
        )
    check_positive("mean", mean)
    if not 1 / _LARGEST_MEAN <= mean <= _LARGEST_MEAN:
        raise ConfigError(
            f"mean: expected {1 / _LARGEST_MEAN:g} to {_LARGEST_MEAN:g} (strengths are finite "
            f"numbers), got {mean:g}"
        )
    if not 0 <= cv <= _LARGEST_CV:
        raise ConfigError(
            f"cv: expected 0 to {_LARGEST_CV:g} (beyond, nearly every strength is 0), got {cv}"
        )
    check_seed(seed)
