"""Options of `mixdpo train` and `mixdpo demo`, and the plan of a run that is made of them."""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from mixdpo_pyro.config_fields import (
    PSEUDONYMISE,
    PSEUDONYMISE_COLUMNS,
    check_positive,
    check_range,
    explained,
    option,
)
from mixdpo_pyro.data.config import READER_HELP, check_world
from mixdpo_pyro.errors import ConfigError

if TYPE_CHECKING:
    from trl import ModelConfig

    from mixdpo_pyro.training.config import MixDPOConfig

__all__ = [
    "DemoConfig",
    "RunConfig",
    "TrainPlan",
    "did_you_mean",
    "named_sources",
    "plan_from_values",
    "read_part",
]

_PART_KEYS = ("path", "name", "data_dir", "data_files", "split", "columns", "fraction")
"""Keys of a part of a mixture: those of `trl.scripts.utils.DatasetConfig`."""


@explained
@dataclass
class RunConfig:
    """What is trained on, and where results go.

    The names are those of `trl.ScriptArguments` and `trl.DatasetMixtureConfig`.
    """

    dataset_name: str | None = option("Local file, saved dataset folder or hub name.", None)
    datasets: list[str] = option(
        "A mixture in place of dataset_name: paths, or objects with the keys of TRL's datasets "
        "(path, name, data_dir, data_files, split, columns, fraction); in a file, a list of them.",
        [],
    )
    dataset_streaming: bool = option(
        "Read the training pairs while training; needs max_steps.", False
    )
    streaming: bool = option("The same; TRL's name of it beside a mixture.", False)
    dataset_config: str | None = option("Configuration name of a hub dataset.", None)
    reader: str | None = option(READER_HELP, None)
    dataset_train_split: str = option("Split to train on.", "train")
    dataset_test_split: str | None = option(
        "Held-out split. Default: a random part of the train split.", None
    )
    test_fraction: float = option("Held-out part, as a fraction of the pairs.", 0.1)
    test_pairs: int | None = option("Of a stream, hold out its first so many pairs.", None)
    test_split_by: Literal["prompt", "annotator"] = option(
        "What is held out as a whole: prompt, or annotator (all their pairs).", "prompt"
    )
    max_pairs: int | None = option("Random subset of at most this many rows.", None)
    pseudonymise: str | None = option(PSEUDONYMISE, None)
    pseudonymise_columns: list[str] = option(PSEUDONYMISE_COLUMNS, [])
    overwrite: bool = option("Replace an earlier run in output_dir.", False)
    resume: bool = option("Go on from the last checkpoint of an interrupted run.", False)

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"test_fraction: expected 0 < value < 1, got {self.test_fraction}")
        if self.test_split_by not in ("prompt", "annotator"):
            raise ConfigError(
                f"test_split_by: expected prompt or annotator, got {self.test_split_by}"
            )
        check_range("max_pairs", self.max_pairs, 2)
        check_range("test_pairs", self.test_pairs, 2)
        for part in self.datasets:
            read_part(part)

    @property
    def is_streamed(self) -> bool:
        """Whether the training pairs are read while training."""
        return self.dataset_streaming or self.streaming

    @property
    def source(self) -> str:
        """What is trained on, in words."""
        if self.dataset_name is not None:
            return self.dataset_name
        return " + ".join(str(read_part(part)["path"]) for part in self.datasets)


@explained
@dataclass(frozen=True)
class DemoConfig:
    """A simulated world with known truth, from text to report: no network, no GPU."""

    family: Literal["lognormal", "gamma"] = option(
        "Distribution of the strengths, in the world and in the model.", "lognormal"
    )
    mean: float = option("True mean strength per unit of reward.", 1.0)
    cv: float = option("True coefficient of variation of the strengths.", 0.8)
    num_annotators: int = option("Annotators of the world.", 200)
    pairs_per_annotator: int = option("Choices of each annotator.", 40)
    judges_per_pair: int = option("Annotators who judge the same pair.", 4)
    seed: int = option("Seed of everything.", 0)
    output_dir: str = option("Folder for the results.", "mixdpo-demo", short="-o")
    overwrite: bool = option("Replace an earlier demo there.", False)

    def __post_init__(self) -> None:
        check_world(
            self.num_annotators, self.pairs_per_annotator, self.mean, self.cv, self.seed,
            self.judges_per_pair,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainPlan:
    """Everything `mixdpo train` was asked for.

    Attributes:
        run: What is trained on.
        training: How it is trained.
        model: The policy that training starts from.
        given: The keys that were given, in the file or on the command line.
    """

    run: RunConfig
    training: "MixDPOConfig"
    model: "ModelConfig"
    given: dict[str, Any]


def read_part(part: str | Mapping[str, Any]) -> dict[str, Any]:
    """A part of a mixture as keys and values.

    Args:
        part: A path, a JSON object, or keys and values.

    Raises:
        ConfigError: If it has no path, or a key that is none.
    """
    found: Any = part
    if isinstance(part, str):
        try:
            found = json.loads(part) if part.lstrip().startswith("{") else {"path": part}
        except ValueError as error:
            raise ConfigError(f"datasets: not a JSON object ({error}): {part}") from error
    for key in found:
        if key not in _PART_KEYS:
            raise ConfigError(f"datasets: unknown key '{key}'{did_you_mean(key, _PART_KEYS)}")
    if not isinstance(found.get("path"), str):
        raise ConfigError("datasets: expected a path in every part")
    fraction = found.get("fraction")
    if fraction is not None:
        try:
            found = {**found, "fraction": float(fraction)}
        except (TypeError, ValueError):
            raise ConfigError(f"datasets: fraction: expected a number, got {fraction!r}") from None
        check_positive("datasets: fraction", found["fraction"])
    return dict(found)


def named_sources(values: Mapping[str, Any]) -> list[str]:
    """Every file, folder or hub name of pairs that the keys of a training name."""
    names = [values["dataset_name"]] if values.get("dataset_name") else []
    for part in map(read_part, values.get("datasets") or ()):
        files = part.get("data_files") or part["path"]
        if isinstance(files, Mapping):
            files = list(files.values())
        names += [files] if isinstance(files, str) else [str(file) for file in files]
    return names


def plan_from_values(values: dict[str, Any]) -> TrainPlan:
    """The plan of `mixdpo train` for a dictionary of keys.

    Keys are the fields of :class:`RunConfig`, :class:`~mixdpo_pyro.training.config.MixDPOConfig`
    (all of `trl.DPOConfig`) and `trl.ModelConfig`. What can be checked without loading torch is
    checked first.

    Raises:
        ConfigError: Naming the key.
    """
    from mixdpo_pyro.workflows.training_values import check_training_values  # loads numpy

    check_training_values(values)
    run = RunConfig(**_values_of(RunConfig, values))
    from trl import ModelConfig

    from mixdpo_pyro.training.config import MixDPOConfig

    known = [
        field.name for part in (RunConfig, MixDPOConfig, ModelConfig) for field in fields(part)
    ]
    for key in values:
        if key not in known:
            raise ConfigError(f"configuration: unknown key '{key}'{did_you_mean(key, known)}")
    try:
        training = MixDPOConfig(**_values_of(MixDPOConfig, values))
        model = ModelConfig(**_values_of(ModelConfig, values))
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return TrainPlan(run, training, model, dict(values))


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """A hint at the known key that is most like this one, or nothing."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _values_of(part: type, values: dict[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(part) if field.name in values}
