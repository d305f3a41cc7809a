"""Configuration of `mixdpo train`: flat keys, a YAML file below the command line."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from trl import ModelConfig, TrlParser

from mixdpo_pyro.data.splitting import SplitBy
from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.training.config import MixDPOConfig

__all__ = ["RunConfig", "TrainPlan", "parse_train_arguments", "plan_from_values"]


@dataclass
class RunConfig:
    """What is trained on, and where results go; the names are those of `trl.ScriptArguments`.

    Args:
        dataset_name: Local file (json, jsonl, csv, parquet), saved dataset folder or hub name.
        dataset_config: Configuration name of a hub dataset.
        reader: Shape of the source: `hh-rlhf`, `prism`, `multipref` or `ultrafeedback`.
        dataset_train_split: Split that is trained on.
        dataset_test_split: Split the verdict is drawn from; default, a part of the train split.
        test_fraction: Size of that part, as a fraction of the pairs; it holds whole prompts.
        test_split_by: What is held out as a whole: `prompt`, or `annotator`, all their pairs.
        max_pairs: Random subset of at most this many rows.
        overwrite: Replace an earlier run in `output_dir`.
        resume: Go on from the last checkpoint of an interrupted run in `output_dir`.
    """

    dataset_name: str = field(metadata={"help": "Local file, saved dataset folder or hub name."})
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration name of a hub dataset."}
    )
    reader: str | None = field(
        default=None,
        metadata={"help": "Shape of the source: hh-rlhf, prism, multipref or ultrafeedback."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(
        default=None,
        metadata={"help": "Held-out split. Default: a random part of the train split."},
    )
    test_fraction: float = field(
        default=0.1, metadata={"help": "Held-out part, as a fraction of the pairs."}
    )
    test_split_by: SplitBy = field(
        default="prompt",
        metadata={"help": "What is held out as a whole: prompt, or annotator (all their pairs)."},
    )
    max_pairs: int | None = field(
        default=None, metadata={"help": "Random subset of at most this many rows."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace an earlier run in output_dir."}
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Go on from the last checkpoint of an interrupted run."},
    )

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"test_fraction: expected 0 < value < 1, got {self.test_fraction}")
        if self.test_split_by not in get_args(SplitBy):
            words = " or ".join(get_args(SplitBy))
            raise ConfigError(f"test_split_by: expected {words}, got {self.test_split_by}")
        if self.max_pairs is not None and self.max_pairs < 2:
            raise ConfigError(f"max_pairs: expected at least 2, got {self.max_pairs}")


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
    training: MixDPOConfig
    model: ModelConfig
    given: dict[str, Any]


class _Parser(TrlParser):
    """TRL's parser with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def known_keys(self) -> list[str]:
        return [action.dest for action in self._actions if action.dest != "help"]


def parse_train_arguments(arguments: Sequence[str]) -> TrainPlan:
    """Parse `--config run.yaml --key value ...`; the command line wins over the file.

    Keys are the fields of :class:`RunConfig`, :class:`~mixdpo_pyro.trainer.MixDPOConfig` (all of
    `trl.DPOConfig`) and `trl.ModelConfig`.

    Raises:
        ConfigError: Naming the file and the key.
    """
    arguments = list(arguments)
    path = _pop_option(arguments, "--config")
    return _plan({} if path is None else _read_config(path), path or "", arguments)


def plan_from_values(values: dict[str, Any]) -> TrainPlan:
    """The plan of `mixdpo train` for a dictionary of keys, checked like a file.

    Raises:
        ConfigError: Naming the key.
    """
    return _plan(values, "configuration", [])


def _plan(values: dict[str, Any], source: str, arguments: list[str]) -> TrainPlan:
    parser = _Parser(
        (RunConfig, MixDPOConfig, ModelConfig), prog="mixdpo train", allow_abbrev=False
    )
    known = parser.known_keys()
    for key in values:
        if key not in known:
            raise ConfigError(f"{source}: unknown key '{key}'{_hint(str(key), known)}")
    parser.set_defaults_with_config(**values)
    try:
        parts = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    run, training, model, unknown = parts
    for word in unknown:
        key = word.removeprefix("--").split("=")[0]
        raise ConfigError(f"command line: unknown option '{word}'{_hint(key, known)}")
    _require(model.model_name_or_path, "model_name_or_path: the policy's name or path is missing")
    given = _given(values, arguments, (run, training, model))
    _require(given.get("output_dir"), "output_dir: the folder for the results is missing")
    return TrainPlan(run, training, model, given)


def _given(values: dict[str, Any], arguments: list[str], parts: tuple) -> dict[str, Any]:
    words = [word.removeprefix("--").split("=")[0] for word in arguments if word.startswith("--")]
    typed = [word.replace("-", "_") for word in words]
    found = {key: part.__dict__[key] for key in typed for part in parts if key in part.__dict__}
    return {**values, **{key: _plain(found[key]) for key in typed if key in found}}


def _plain(value: Any) -> Any:
    """The value as a YAML file holds it; transformers turns some options into enums."""
    return value.value if isinstance(value, Enum) else value


def _require(value: object, message: str) -> None:
    if not value:
        raise ConfigError(message)


def _pop_option(arguments: list[str], option: str) -> str | None:
    for index, word in enumerate(arguments):
        if word == option:
            if index + 1 == len(arguments):
                raise ConfigError(f"command line: {option} needs a value")
            value = arguments[index + 1]
            del arguments[index : index + 2]
            return value
        if word.startswith(f"{option}="):
            del arguments[index]
            return word.partition("=")[2]
    return None


def _read_config(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).expanduser().read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, got {type(values).__name__}")
    return values


def _hint(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
