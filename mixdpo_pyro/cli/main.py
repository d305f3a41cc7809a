"""The command line. Heavy libraries are imported by the command that needs them."""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from mixdpo_pyro.cli.arguments import OneLineParser, parse_fields
from mixdpo_pyro.errors import ConfigError, MixDPOError

__all__ = ["main"]

_USAGE = """\
usage: mixdpo COMMAND [options]

commands:
  demo        a simulated world with known truth, from text to report (no network, no GPU)
  doctor      check preference pairs before training: mixdpo doctor DATA
  train       train a policy and the strength distribution: mixdpo train --config run.yaml
  margins     margins of a policy: mixdpo margins MODEL REFERENCE DATA -o FILE
  compare     finished runs side by side: mixdpo compare RUN RUN
  diagnose    is this preference data heterogeneous: mixdpo diagnose MARGINS [-o FOLDER]
  check       does a posterior predict the choices: mixdpo check MARGINS POSTERIOR
  power       how much data would settle it: mixdpo power --pairs 10000 --annotators 200
  init        build a small Llama and its tokenizer from the text of a dataset
  simulate    write a simulated preference dataset with known truth
  report      write the report of a finished run again

mixdpo COMMAND --help shows a command's options. --debug shows tracebacks and library warnings.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 2 for a wrong command line or configuration, 1 for any other failure, 130 when
        interrupted. A failure is one line on standard error, or a traceback with `--debug`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    if not debug:
        _quiet_libraries()
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("mixdpo: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        print(f"mixdpo: error: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def _run(arguments: list[str]) -> int:
    commands = {
        "demo": _demo, "doctor": _doctor, "train": _train, "margins": _margins,
        "compare": _compare, "init": _init, "simulate": _simulate, "report": _report,
        "diagnose": _diagnose, "check": _check, "power": _power,
    }  # fmt: skip
    match arguments:
        case []:
            print(_USAGE, end="", file=sys.stderr)
            return 2
        case ["-h" | "--help", *_]:
            print(_USAGE, end="")
        case ["--version", *_]:
            from importlib.metadata import version

            print(version("mixdpo-pyro"))
        case [name, *rest] if name in commands:
            commands[name](rest)
        case [name, *_]:
            raise ConfigError(f"unknown command '{name}'; see mixdpo --help")
    return 0


def _demo(arguments: list[str]) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything the demo needs is made on the spot
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small are slower on more
    from mixdpo_pyro.workflows.demo import DemoConfig, run_demo

    config = DemoConfig(**parse_fields(DemoConfig, "mixdpo demo", arguments))
    _show_result(run_demo(config, _command_line("demo", arguments)))


def _doctor(arguments: list[str]) -> None:
    from rich.console import Console

    from mixdpo_pyro.data.audit import DoctorConfig, examine
    from mixdpo_pyro.data.audit_view import show_examination
    from mixdpo_pyro.errors import DataError
    from mixdpo_pyro.io import write_json

    positional = {"data": "local file, saved dataset folder or hub name"}
    values = parse_fields(DoctorConfig, "mixdpo doctor", arguments, positional=positional)
    name = values.pop("data")
    config = DoctorConfig(**values)
    found = examine(name, config)
    show_examination(found, Console(highlight=False))
    if config.json is not None:
        write_json(found.to_dict(), config.json)
    if not found.is_ready:
        raise DataError(f"{name}: not ready to train: {'; '.join(found.obstacles)}")


def _train(arguments: list[str]) -> None:
    from mixdpo_pyro.io import shared_staged_folder
    from mixdpo_pyro.workflows.results import raise_failures
    from mixdpo_pyro.workflows.run_config import parse_train_arguments
    from mixdpo_pyro.workflows.train import execute_run

    plan = parse_train_arguments(arguments)
    output = Path(plan.training.output_dir)
    with shared_staged_folder(output, plan.run.overwrite, plan.run.resume) as folder:
        failures = execute_run(plan, folder, _command_line("train", arguments))
    if plan.training.process_index == 0:
        _show_result(output)
        raise_failures(failures, output)


def _margins(arguments: list[str]) -> None:
    from mixdpo_pyro.margins.compute import write_margins
    from mixdpo_pyro.margins.config import MarginsConfig

    values = parse_fields(
        MarginsConfig,
        "mixdpo margins",
        arguments,
        {"output": "parquet file to write"},
        {"model": "policy: hub name, folder, adapter folder, or a run",
         "reference": "reference, likewise, or 'base': the policy without its adapter",
         "data": "local file, saved dataset folder or hub name"},
    )  # fmt: skip
    named = {name: values.pop(name) for name in ("model", "reference", "data", "output")}
    summary = write_margins(**named, config=MarginsConfig(**values))
    for reason, count in summary.dropped.items():
        print(f"left out {count:,} pairs: {reason}")
    print(f"truncated {summary.truncated:,} of {summary.num_pairs:,} pairs")
    print(f"share of positive margins {summary.accuracy:.3f}")
    print(f"wrote {summary.path} ({summary.pairs_per_second:.1f} pairs/s)")


def _compare(arguments: list[str]) -> None:
    from rich.console import Console

    from mixdpo_pyro.reporting.comparison import load_summaries, show_comparison, write_comparison

    parser = OneLineParser(prog="mixdpo compare", description="Finished runs side by side.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument("-o", "--output", help="HTML file to write")
    values = parser.parse_args(arguments)
    runs = load_summaries(values.runs)
    show_comparison(runs, Console(highlight=False))
    if values.output is not None:
        print(f"wrote {write_comparison(runs, values.output)}")


def _diagnose(arguments: list[str]) -> None:
    from mixdpo_pyro.diagnosis.diagnosing import (
        DIAGNOSIS_FILE,
        DiagnoseConfig,
        diagnose,
        summary_lines,
        write_diagnosis,
    )
    from mixdpo_pyro.io import staged_folder

    positional = {"margins": "parquet, csv or jsonl file with a column 'margin'"}
    values = parse_fields(DiagnoseConfig, "mixdpo diagnose", arguments, positional=positional)
    path = values.pop("margins")
    config = DiagnoseConfig(**values)
    if config.output is None:
        print(*summary_lines(*diagnose(path, config)), sep="\n")
        return
    with staged_folder(config.output, config.overwrite, marker=DIAGNOSIS_FILE) as folder:
        diagnosis, data = diagnose(path, config)
        command = _command_line("diagnose", arguments)
        write_diagnosis(diagnosis, data, folder, config, command)
    print(*summary_lines(diagnosis, data), sep="\n")
    print(f"\nreport  {Path(config.output) / 'report.html'}")


def _check(arguments: list[str]) -> None:
    from mixdpo_pyro.diagnosis.predictive_checks import (
        CHECK_FILE,
        CheckConfig,
        check,
        summary_lines,
        write_check,
    )
    from mixdpo_pyro.io import staged_folder

    positional = {
        "margins": "parquet, csv or jsonl file with a column 'margin'",
        "posterior": "posterior.nc of a diagnosis or a run",
    }
    values = parse_fields(CheckConfig, "mixdpo check", arguments, positional=positional)
    paths = values.pop("margins"), values.pop("posterior")
    config = CheckConfig(**values)
    found = check(*paths, config)
    if config.output is not None:
        with staged_folder(config.output, config.overwrite, marker=CHECK_FILE) as folder:
            write_check(found, folder, config, paths)
    print(*summary_lines(found, config.seed), sep="\n")
    if config.output is not None:
        print(f"\nwrote {config.output}")


def _power(arguments: list[str]) -> None:
    from mixdpo_pyro.diagnosis.power import PowerConfig, power, summary_lines

    config = PowerConfig(**parse_fields(PowerConfig, "mixdpo power", arguments))
    print(*summary_lines(power(config), config), sep="\n")


def _init(arguments: list[str]) -> None:
    from mixdpo_pyro.data.loading import load_preferences
    from mixdpo_pyro.io import staged_folder, write_json
    from mixdpo_pyro.training.tiny_llama import ReferenceConfig, build_reference

    values = parse_fields(
        ReferenceConfig,
        "mixdpo init",
        arguments,
        {"dataset_name": "local file, saved dataset folder or hub name",
         "output_dir": "folder for model and tokenizer"},
        switches={"overwrite": "replace what an earlier `mixdpo init` wrote"},
    )  # fmt: skip
    dataset_name, output_dir = values.pop("dataset_name"), values.pop("output_dir")
    overwrite = values.pop("overwrite")
    data = load_preferences(dataset_name)
    with staged_folder(output_dir, overwrite, marker="init.json") as folder:
        build_reference(data.pairs, ReferenceConfig(**values), folder)
        write_json({"dataset_name": dataset_name, **values}, folder / "init.json")
    print(f"wrote {output_dir}")


def _simulate(arguments: list[str]) -> None:
    from inspect import signature

    from mixdpo_pyro.data.simulation import simulate_preferences
    from mixdpo_pyro.io import staged_folder

    parser = OneLineParser(prog="mixdpo simulate", description="Write a simulated dataset.")
    parser.add_argument("--output_dir", required=True, help="folder for dataset and truth")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier dataset")
    for name, parameter in signature(simulate_preferences).parameters.items():
        default = parameter.default
        parser.add_argument(f"--{name}", type=type(default), default=default)
    values = vars(parser.parse_args(arguments))
    output_dir, overwrite = values.pop("output_dir"), values.pop("overwrite")
    with staged_folder(output_dir, overwrite, marker="truth.json") as folder:
        simulate_preferences(**values).save(folder)
    print(f"wrote {output_dir}/dataset and {output_dir}/truth.json")


def _report(arguments: list[str]) -> None:
    from mixdpo_pyro.reporting.run_report import write_report

    parser = OneLineParser(prog="mixdpo report", description="Write a run's report again.")
    parser.add_argument("run", help="folder of a finished run")
    print(f"wrote {write_report(parser.parse_args(arguments).run)}")


def _show_result(output: Path) -> None:
    from mixdpo_pyro.reporting.run_report import summary_lines

    for line in summary_lines(output):
        print(line)


def _command_line(command: str, arguments: list[str]) -> str:
    return shlex.join(["mixdpo", command, *arguments])


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, MixDPOError):
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


def _quiet_libraries() -> None:
    """Leave a person's screen to stages, bars and results; set before the libraries load."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    logging.getLogger("mixdpo_pyro").addHandler(logging.StreamHandler())
