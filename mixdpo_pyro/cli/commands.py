"""The commands. Each looks at its arguments and files, then imports what it needs, then runs."""

import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mixdpo_pyro.cli.options import (
    CompareOptions,
    EnvOptions,
    InitOptions,
    MarginsOptions,
    ReportOptions,
)
from mixdpo_pyro.cli.paths import (
    check_columns,
    check_file,
    check_model,
    check_pairs,
    check_result,
    check_run,
    check_salt_file,
    check_vote_columns,
)
from mixdpo_pyro.data.config import DoctorConfig, SimulateConfig
from mixdpo_pyro.diagnosis.config import (
    CHECK_FILE,
    DIAGNOSIS_FILE,
    JUDGES_FILE,
    RELIABILITY_FILE,
    RIVALS_FILE,
    CheckConfig,
    DiagnoseConfig,
    JudgesConfig,
    PowerConfig,
    ReliabilityConfig,
    RivalsConfig,
    split_formula,
)
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.io import (
    added_to_result,
    check_output,
    check_replaceable,
    staged_folder,
    write_json,
)
from mixdpo_pyro.margins.config import NOT_TRAINED_ON
from mixdpo_pyro.winrates.config import WINRATE_FILE, WinrateConfig
from mixdpo_pyro.workflows.export_config import EXPORT_FILE, ExportConfig
from mixdpo_pyro.workflows.run_config import DemoConfig
from mixdpo_pyro.workflows.sweep.plan import SweepConfig

if TYPE_CHECKING:
    from mixdpo_pyro.cli.arguments import CommandParser

__all__ = ["COMMANDS", "Command", "Words", "usage"]

_DATA = "local file, saved dataset folder or hub name"

_MARGINS = "parquet, csv or jsonl file with a column 'margin'"

_RUNS = "folder of a finished run, or of a sweep"

Words = list[str]
"""What stands behind the name of a command."""


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: Its name.
        summary: What it does.
        run: Takes the parser and the words; gives the lines of its result.
        config: Its options.
        positional: Its arguments without a flag, name -> help; with `+` one or more, with `?` one
            or none.
        example: How it is called, for the overview.
        can_resume: Whether `--resume` goes on where it was interrupted.
        file: Help of its `--config FILE`, if it takes a file of its own kind.
    """

    name: str
    summary: str
    run: Callable[["CommandParser", Words], Iterable[str]]
    config: type | None = None
    positional: dict[str, str] = field(default_factory=dict)
    example: str = ""
    can_resume: bool = False
    file: str | None = None

    def parser(self) -> "CommandParser":
        """The parser of its arguments."""
        from mixdpo_pyro.cli.arguments import CommandParser

        if self.config is None and not self.positional:
            from mixdpo_pyro.cli.train_arguments import TrainParser

            return TrainParser(self.name, self.summary)
        configs = [] if self.config is None else [self.config]
        return CommandParser(self.name, self.summary, configs, self.positional, self.file)


def usage() -> str:
    """The overview of all commands."""
    lines = ["usage: mixdpo COMMAND [options]", "", "commands:"]
    for command in COMMANDS.values():
        example = f": mixdpo {command.name} {command.example}" if command.example else ""
        lines.append(f"  {command.name:11} {command.summary}{example}")
    lines += ["", "mixdpo COMMAND --help shows a command's options."]
    lines += ["--verbose shows bars and warnings of libraries, --debug tracebacks too."]
    return "\n".join(lines)


def _demo(parser: "CommandParser", words: Words) -> Iterable[str]:
    (config,) = parser.read(words)
    check_replaceable(config.output_dir, config.overwrite)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything the demo needs is made on the spot
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small are slower on more
    from mixdpo_pyro.workflows.demo import run_demo

    return _result(run_demo(config, _command_line("demo", words)))


def _doctor(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    check_pairs(named.data, config.reader, *_columns(config))
    if config.model is not None:
        check_model(config.model, "model")
    check_salt_file(config.pseudonymise)
    if config.json is not None:
        inputs = (named.data, config.model, config.pseudonymise)
        check_output(config.json, inputs, config.overwrite, '"ready_to_train"')
    from mixdpo_pyro.data.audit import examine
    from mixdpo_pyro.data.audit_view import show_examination
    from mixdpo_pyro.progress.screen import Screen

    found = examine(named.data, config)
    show_examination(found, Screen())
    if config.json is not None:
        write_json(found.to_dict(), config.json)
    if not found.is_ready:
        raise DataError(f"{named.data}: not ready to train: {'; '.join(found.obstacles)}")
    return []


def _train(parser: "CommandParser", words: Words) -> Iterable[str]:
    from mixdpo_pyro.cli.train_arguments import TrainParser, named_inputs, parse_train_arguments
    from mixdpo_pyro.io import shared_staged_folder

    assert isinstance(parser, TrainParser)
    plan = parse_train_arguments(parser, words)
    from mixdpo_pyro.progress import show_lines
    from mixdpo_pyro.workflows.hub import claim_repository, push_policy
    from mixdpo_pyro.workflows.results import raise_failures
    from mixdpo_pyro.workflows.train import execute_run

    output = Path(str(plan.training.output_dir))
    inputs = named_inputs(plan.given)
    with shared_staged_folder(output, plan.run.overwrite, plan.run.resume, inputs) as folder:
        repository = claim_repository(plan)
        failures = execute_run(plan, folder, _command_line("train", words))
    if plan.training.process_index != 0:
        return []
    pushed = []
    if repository is not None:
        pushed = [f"pushed  {push_policy(output, repository, plan.training)}"]
    lines = [*_result(output), *pushed]
    if failures:
        show_lines(lines)
        raise_failures(failures, output)
    return lines


def _sweep(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    from mixdpo_pyro.cli.sweep_file import read_sweep

    plan = read_sweep(named.config)
    from mixdpo_pyro.workflows.sweep.running import list_runs, run_sweep, sweep_lines

    if config.dry_run:
        return list_runs(plan, config)
    return sweep_lines(run_sweep(plan, config), config)


def _margins(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    check_model(named.model, "model")
    check_model(named.reference, "reference")
    check_pairs(named.data, config.reader, *_columns(config), *config.pseudonymise_columns)
    trained_on = None if config.trained_on == NOT_TRAINED_ON else config.trained_on
    if trained_on is not None:
        check_pairs(trained_on, config.reader, config.prompt, config.chosen, config.rejected)
    check_salt_file(config.pseudonymise)
    inputs = (named.model, named.reference, named.data, trained_on, config.pseudonymise)
    check_output(config.output, inputs, config.overwrite)
    from mixdpo_pyro.margins.compute import write_margins

    summary = write_margins(named.model, named.reference, named.data, config.output, config)
    dropped = [f"dropped {count:,} pairs: {why}" for why, count in summary.dropped.items()]
    marked = summary.num_trained_on
    return [
        *dropped,
        *([] if marked is None else [f"trained on {marked:,} of {summary.num_pairs:,} pairs"]),
        f"truncated {summary.truncated:,} of {summary.num_pairs:,} pairs",
        f"share of positive margins {summary.accuracy:.3f}",
        f"wrote {summary.path} ({summary.pairs_per_second:.1f} pairs/s)",
    ]


def _compare(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    runs = _runs_of(named.runs)
    if config.output is not None:
        check_output(config.output, named.runs, config.overwrite, "runs compared</title>")
    from mixdpo_pyro.progress.screen import Screen
    from mixdpo_pyro.reporting.comparison import load_summaries, show_comparison, write_comparison

    found = load_summaries(runs)
    show_comparison(found, Screen())
    return [] if config.output is None else [f"wrote {write_comparison(found, config.output)}"]


def _diagnose(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    strength = split_formula(config.strength)
    columns = (*config.group, *config.stratum, *config.attribute, *strength)
    check_columns(named.margins, config.annotator, config.choice_set, *columns)
    if config.second is not None:
        check_columns(config.second)
    check_salt_file(config.pseudonymise)
    if config.output_dir is None:
        if config.show_annotators:
            raise ConfigError("show_annotators: needs --output_dir, where the page is written")
        from mixdpo_pyro.diagnosis.diagnosing import diagnose_margins, diagnosis_lines

        return diagnosis_lines(*diagnose_margins(named.margins, config))
    inputs = (named.margins, config.second, config.pseudonymise)
    with staged_folder(
        config.output_dir, config.overwrite, marker=DIAGNOSIS_FILE, inputs=inputs
    ) as folder:
        from mixdpo_pyro.diagnosis.diagnosing import (
            diagnose_margins,
            diagnosis_lines,
            write_diagnosis,
        )

        diagnosis, data = diagnose_margins(named.margins, config)
        write_diagnosis(diagnosis, data, folder, config, _command_line("diagnose", words))
    report = Path(config.output_dir) / "report.html"
    return [*diagnosis_lines(diagnosis, data), "", f"report  {report}"]


def _check(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    check_columns(named.margins, config.annotator, config.choice_set, *config.group)
    check_file(named.posterior)
    check_salt_file(config.pseudonymise)
    paths = named.margins, named.posterior
    if config.output_dir is None:
        from mixdpo_pyro.diagnosis.predictive_checks import check_lines, check_predictions

        return check_lines(check_predictions(*paths, config), config.seed)
    with staged_folder(
        config.output_dir,
        config.overwrite,
        marker=CHECK_FILE,
        inputs=(*paths, config.pseudonymise),
    ) as folder:
        from mixdpo_pyro.diagnosis.predictive_checks import (
            check_lines,
            check_predictions,
            write_check,
        )

        found = check_predictions(*paths, config)
        write_check(found, folder, config, paths)
    return [*check_lines(found, config.seed), "", f"wrote {config.output_dir}"]


def _reliability(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    check_columns(named.margins, config.annotator, config.choice_set, *config.group)
    if config.output_dir is None:
        from mixdpo_pyro.diagnosis.reliability import measure_reliability, reliability_lines

        return reliability_lines(measure_reliability(named.margins, config))
    with staged_folder(
        config.output_dir, config.overwrite, marker=RELIABILITY_FILE, inputs=(named.margins,)
    ) as folder:
        from mixdpo_pyro.diagnosis.reliability import (
            measure_reliability,
            reliability_lines,
            write_reliability,
        )

        found = measure_reliability(named.margins, config)
        write_reliability(found, folder)
    return [*reliability_lines(found), "", f"wrote {config.output_dir}"]


def _rivals(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    check_columns(named.margins, config.annotator, config.holdout, config.group)
    if config.embeddings is not None:
        check_file(config.embeddings)
    check_salt_file(config.pseudonymise)
    if config.output_dir is None:
        from mixdpo_pyro.diagnosis.rivals import judge_rivals, rivals_lines

        return rivals_lines(judge_rivals(named.margins, config, progress=True)[0])
    inputs = (named.margins, config.embeddings, config.pseudonymise)
    with staged_folder(
        config.output_dir, config.overwrite, marker=RIVALS_FILE, inputs=inputs
    ) as folder:
        from mixdpo_pyro.diagnosis.rivals import judge_rivals, rivals_lines, write_rivals

        record, people = judge_rivals(named.margins, config, progress=True)
        write_rivals(record, people, folder)
    return [*rivals_lines(record), "", f"wrote {config.output_dir}"]


def _judges(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    check_vote_columns(named.votes, config.left, config.right, config.winner, config.judge)
    if config.output_dir is None:
        from mixdpo_pyro.diagnosis.judges import judges_lines, rate_votes

        return judges_lines(*rate_votes(named.votes, config))
    with staged_folder(
        config.output_dir, config.overwrite, marker=JUDGES_FILE, inputs=(named.votes,)
    ) as folder:
        from mixdpo_pyro.diagnosis.judges import judges_lines, rate_votes, write_judges

        found = rate_votes(named.votes, config)
        write_judges(*found, folder)
    return [*judges_lines(*found), "", f"wrote {config.output_dir}"]


def _winrate(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    runs = _runs_of(named.runs)
    check_vote_columns(config.prompts, "prompt")
    if config.judge != "oracle":
        check_model(config.judge, "judge", may_be_adapter=False)
    if config.reference is not None:
        check_model(config.reference, "reference")
    with staged_folder(
        config.output_dir, config.overwrite, config.resume, WINRATE_FILE,
        (*runs, config.prompts, config.reference),
    ) as folder:  # fmt: skip
        from mixdpo_pyro.workflows.winrates import compare_runs, winrate_lines

        found = compare_runs(runs, config, folder)
    return [*winrate_lines(found), "", f"wrote {config.output_dir}"]


def _env(parser: "CommandParser", words: Words) -> Iterable[str]:
    parser.read(words)
    from mixdpo_pyro.io.environment import environment_lines

    return environment_lines()


def _power(parser: "CommandParser", words: Words) -> Iterable[str]:
    (config,) = parser.read(words)
    from mixdpo_pyro.diagnosis.power import power_lines, simulate_power

    return power_lines(simulate_power(config), config)


def _init(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    if (named.data is None) == (config.dataset_name is None):
        raise ConfigError("dataset_name: expected one dataset, as DATA or as --dataset_name")
    data = named.data or config.dataset_name
    check_pairs(data, None, "chosen", "rejected")
    with staged_folder(
        config.output_dir, config.overwrite, marker="init.json", inputs=(data,)
    ) as folder:
        from mixdpo_pyro.data.loading import load_preferences
        from mixdpo_pyro.training.tiny_llama import build_reference

        build_reference(load_preferences(data).pairs, config, folder)
        facts = asdict(config) | {"dataset_name": data}
        del facts["output_dir"], facts["overwrite"]
        write_json(facts, folder / "init.json")
    return [f"wrote {config.output_dir}"]


def _simulate(parser: "CommandParser", words: Words) -> Iterable[str]:
    (config,) = parser.read(words)
    with staged_folder(config.output_dir, config.overwrite, marker="truth.json") as folder:
        from mixdpo_pyro.data.simulation import simulate_preferences

        world = {f.name: getattr(config, f.name) for f in fields(config)}
        del world["output_dir"], world["overwrite"]
        simulate_preferences(**world).save(folder)
    files = ("pairs.parquet", "margins.parquet", "truth.json")
    return [f"wrote {config.output_dir}/{name}" for name in files]


def _report(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    check_run(named.run)
    with added_to_result(named.run):
        from mixdpo_pyro.reporting.run_report import write_report

        return [f"wrote {write_report(named.run, config.show_annotators)}"]


def _export(parser: "CommandParser", words: Words) -> Iterable[str]:
    config, named = parser.read(words)
    check_result(named.result)
    with staged_folder(
        config.output_dir, config.overwrite, marker=EXPORT_FILE, inputs=(named.result,)
    ) as folder:
        from mixdpo_pyro.workflows.export import export_lines, export_result

        record = export_result(named.result, config, folder)
    return export_lines(record, config.output_dir)


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "demo", "a simulated world with known truth, from text to report (no network, no GPU)",
            _demo, DemoConfig,
        ),
        Command(
            "doctor", "check preference pairs before training", _doctor, DoctorConfig,
            {"data": _DATA}, "DATA",
        ),
        Command(
            "train", "train a policy and the strength distribution", _train,
            example="--config run.yaml", can_resume=True,
        ),
        Command(
            "sweep", "train arms at betas and seeds, on one machine or a cluster", _sweep,
            SweepConfig, example="--config sweep.yaml -o FOLDER",
            file="YAML file: base, arms, betas, seeds, devices, accelerate.",
        ),
        Command(
            "margins", "margins of a policy", _margins, MarginsOptions,
            {"model": "policy: hub name, folder, adapter folder, or a run",
             "reference": "reference, likewise, or 'base': the policy without its adapter",
             "data": _DATA},
            "MODEL REFERENCE DATA -o FILE", can_resume=True,
        ),
        Command(
            "compare", "finished runs side by side", _compare, CompareOptions,
            {"runs+": _RUNS}, "RUN RUN",
        ),
        Command(
            "diagnose", "is this preference data heterogeneous", _diagnose, DiagnoseConfig,
            {"margins": _MARGINS}, "MARGINS [-o FOLDER]",
        ),
        Command(
            "check", "does a posterior predict the choices", _check, CheckConfig,
            {"margins": _MARGINS, "posterior": "posterior.nc of a diagnosis or a run"},
            "MARGINS POSTERIOR",
        ),
        Command(
            "reliability", "is a person's strength a trait", _reliability, ReliabilityConfig,
            {"margins": _MARGINS}, "MARGINS [--group topic]",
        ),
        Command(
            "rivals", "does any model of how people differ beat one strength", _rivals,
            RivalsConfig, {"margins": _MARGINS}, "MARGINS [--embeddings FILE] -o FOLDER",
        ),
        Command(
            "judges", "ratings from votes, and what each judge is like", _judges, JudgesConfig,
            {"votes": "parquet, csv or jsonl file, a vote a row"},
            "VOTES --left model_a --right model_b --winner winner --judge judge",
        ),
        Command(
            "winrate", "whose responses win, at equal KL", _winrate, WinrateConfig,
            {"runs+": _RUNS},
            "RUN RUN --prompts FILE --judge JUDGE -o FOLDER", can_resume=True,
        ),
        Command(
            "export", "a whole model without adapter, decoding weights of annotators", _export,
            ExportConfig, {"result": "folder of a finished run or diagnosis"},
            "RUN --merged --weights -o FOLDER",
        ),
        Command(
            "power", "how much data would settle it", _power, PowerConfig,
            example="--pairs 10000 --annotators 200",
        ),
        Command(
            "init", "build a small Llama and its tokenizer from the text of a dataset", _init,
            InitOptions, {"data?": _DATA}, "DATA -o FOLDER",
        ),
        Command(
            "simulate", "write a simulated preference dataset with known truth", _simulate,
            SimulateConfig,
        ),
        Command(
            "report", "write the report of a finished run again", _report, ReportOptions,
            {"run": "folder of a finished run"}, "RUN [--show_annotators ID ID]",
        ),
        Command("env", "versions and machine, for a bug report", _env, EnvOptions),
    )
}  # fmt: skip


def _runs_of(paths: Iterable[str]) -> list[str]:
    """Folders of finished runs; a sweep stands for its own."""
    from mixdpo_pyro.reporting.sweep_record import expand_sweeps

    runs = expand_sweeps(paths)
    for run in runs:
        check_run(run)
    return runs


def _columns(config: DoctorConfig | MarginsOptions) -> list[str | None]:
    """The columns of pairs that must be there."""
    texts = config.chosen or "chosen", config.rejected or "rejected"
    return [*texts, config.prompt, config.annotator, config.choice_set]


def _result(output: Path) -> Iterable[str]:
    from mixdpo_pyro.reporting.run_report import run_lines

    return run_lines(output)


def _command_line(command: str, words: Words) -> str:
    line = shlex.join(["mixdpo", command, *words])
    return re.sub(r"(--hub[_-]token[ =])\S+", r"\1***", line)
