"""Arguments of `mixdpo train`: flat keys, a YAML file below the command line."""

import argparse
from argparse import SUPPRESS, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from trl import ModelConfig

from mixdpo_pyro.cli.arguments import CommandParser
from mixdpo_pyro.cli.paths import check_model, check_pairs, check_salt_file, check_source
from mixdpo_pyro.cli.training_options import read_training_options
from mixdpo_pyro.cli.yaml_file import FileValue, convert, read_yaml
from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.io import check_replaceable
from mixdpo_pyro.io.outputs import refuse_inputs
from mixdpo_pyro.workflows.run_config import (
    RunConfig,
    TrainPlan,
    did_you_mean,
    named_sources,
    plan_from_values,
)

__all__ = ["TrainParser", "check_inputs", "named_inputs", "parse_train_arguments"]

_SHOWN = frozenset(
    "model_name_or_path output_dir learning_rate num_train_epochs max_steps seed beta max_length "
    "per_device_train_batch_size gradient_accumulation_steps bf16 precompute_ref_log_probs "
    "save_steps logging_steps report_to use_peft lora_r lora_alpha".split()
)
"""The options of TRL that `mixdpo train --help` shows."""

_ABSENT = object()


class _HelpAll(argparse.Action):
    """Show the help with the options that are hidden otherwise."""

    def __call__(self, parser: Any, *_: Any, **__: Any) -> None:
        for action, text in parser.hidden.items():
            action.help = text
        parser.print_help()
        parser.exit()


class TrainParser(CommandParser):
    """Parser of `mixdpo train`.

    Attributes:
        hidden: Option -> its help, for the options that only `--help-all` shows.
        kinds: Key -> type of its value.
    """

    def __init__(self, command: str, summary: str) -> None:
        own, theirs = read_training_options()
        parts = (RunConfig, own, theirs, ModelConfig)
        self.kinds = {key: kind for part in parts for key, kind in get_type_hints(part).items()}
        self.kinds["datasets"] = list[dict[str, Any] | str]
        super().__init__(command, summary, parts)
        shown = _SHOWN.union(f.name for part in (RunConfig, own) for f in fields(part))
        self.hidden: dict[argparse.Action, str | None] = {}
        for action in self._actions:
            action.required = False  # a file may hold it
            if action.dest not in (*shown, "help"):
                self.hidden[action], action.help = action.help, SUPPRESS
        self.add_argument("--config", metavar="FILE", help="YAML file of these keys.")
        self.add_argument(
            "--help-all",
            action=_HelpAll,
            nargs=0,
            default=SUPPRESS,
            help="Show TRL's options too.",
        )

    def given(self, words: Sequence[str]) -> dict[str, Any]:
        """The keys that are on the command line, with their values.

        Raises:
            ConfigError: Naming the option that is wrong.
        """
        absent = Namespace(**dict.fromkeys([*self.kinds, "config"], _ABSENT))
        found, unknown = self.parse_known_args(list(words), absent)
        self.refuse(unknown)
        return {key: value for key, value in vars(found).items() if value is not _ABSENT}

    def from_file(self, values: dict[str, FileValue]) -> dict[str, Any]:
        """The keys of a file, with values of their types.

        Raises:
            ConfigError: Naming file, line and key.
        """
        found = {}
        for key, entry in values.items():
            if key not in self.kinds:
                hint = did_you_mean(key, self.kinds)
                raise ConfigError(f"{entry.place}: unknown key '{key}'{hint}")
            try:
                found[key] = convert(entry.value, self.kinds[key])
            except ValueError as error:
                raise ConfigError(f"{entry.place}: {key}: {error}") from None
        return found


_COLUMNS = ("annotator", "group", "choice_set", "rank", "outcome", "grade")
"""Options NAME_column that name columns of the pairs."""


def parse_train_arguments(parser: TrainParser, words: Sequence[str]) -> TrainPlan:
    """Parse `--config run.yaml --key value ...`; the command line wins over the file.

    Files and values are looked at before torch is imported.

    Raises:
        ConfigError: Naming the file and the key.
        DataError: If the pairs are not there.
        OutputError: If the output folder may not be replaced.
    """
    typed = parser.given(words)
    path = typed.pop("config", None)
    values = {} if path is None else parser.from_file(read_yaml(path))
    values |= typed
    if output := values.get("output_dir"):
        check_replaceable(output, values.get("overwrite", False))
        refuse_inputs(Path(output), named_inputs(values))
    check_inputs(values)
    return plan_from_values(values)


def named_inputs(values: Mapping[str, Any]) -> list[str | None]:
    """Pairs, model and salt file that a training names."""
    others = [values.get(key) for key in ("model_name_or_path", "pseudonymise")]
    return [*named_sources(values), *others]


def check_inputs(values: Mapping[str, Any]) -> None:
    """Look at the files that a training reads, as far as they are local.

    Raises:
        ConfigError: Naming the key.
        DataError: Naming the file, and the column that it lacks.
    """
    data, model = values.get("dataset_name"), values.get("model_name_or_path")
    check_salt_file(values.get("pseudonymise"))
    for name in named_sources(values):
        check_source(name)
    if data:
        columns = [values.get(f"{name}_column") for name in _COLUMNS]
        columns += values.get("pseudonymise_columns") or []
        check_pairs(data, values.get("reader"), "chosen", "rejected", *columns)
    if model:
        check_model(model, "model_name_or_path", may_be_adapter=False)
