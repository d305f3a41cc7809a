"""The folder of a sweep: `sweep.json`, and `runs/`, `configs/`, `logs/` with one entry a run."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mixdpo_pyro.errors import ConfigError, OutputError
from mixdpo_pyro.io import RUN_FILE, written_whole
from mixdpo_pyro.io.environment import package_versions
from mixdpo_pyro.io.integrity import hash_files
from mixdpo_pyro.io.outputs import refuse_inputs
from mixdpo_pyro.reporting.records import read_record, write_record
from mixdpo_pyro.reporting.sweep_record import SWEEP_FILE, SweepRecord, SweptRun, run_folder
from mixdpo_pyro.workflows.run_config import named_sources
from mixdpo_pyro.workflows.sweep.plan import PlannedRun, SweepPlan

__all__ = ["SweepFolder"]


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep is.

    Attributes:
        path: Its folder.
    """

    path: Path

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return run_folder(self.path, name)

    def config(self, name: str) -> Path:
        """The file of options of a run."""
        return self.path / "configs" / f"{name}.yaml"

    def log(self, name: str) -> Path:
        """What the processes of a run said."""
        return self.path / "logs" / f"{name}.log"

    def is_finished(self, name: str) -> bool:
        """Whether the folder of a run has its name."""
        return (self.run(name) / RUN_FILE).is_file()

    def state(self, name: str) -> str:
        """How far a run is, in words."""
        if self.is_finished(name):
            return "finished"
        partial = self.run(name).with_name(f"{self.run(name).name}.partial")
        if any(partial.glob("checkpoint-*")):
            return "goes on from its last checkpoint"
        return "starts again" if partial.exists() else "new"

    def check(self) -> None:
        """Refuse a folder that holds anything else.

        Raises:
            OutputError: Naming it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path}: expected a folder to write to, found a file")
        is_sweep = (self.path / SWEEP_FILE).is_file()
        if self.path.is_dir() and any(self.path.iterdir()) and not is_sweep:
            raise OutputError(
                f"{self.path}: the folder holds other files than a sweep; choose another one"
            )

    def settle(self, plan: SweepPlan) -> None:
        """Write down what is asked for; what was begun has to be what it was begun with.

        Raises:
            ConfigError: Naming the run and the keys, or the input, that have changed.
            OutputError: If the folder is, or holds, an input.
        """
        inputs = self._hash_inputs(plan)
        for run in plan.runs:
            self._settle_config(run, plan.source)
        earlier = SweepRecord([])
        if (self.path / SWEEP_FILE).is_file():
            earlier = read_record(SweepRecord, self.path / SWEEP_FILE)
        for name, digest in inputs.items():
            if earlier.inputs.get(name, digest) != digest:
                raise ConfigError(
                    f"{name}: has changed since the sweep in {self.path} was begun, and its runs "
                    "would not compare; write to another folder"
                )
        runs = {run.name: run for run in earlier.runs}
        for run in plan.runs:
            known = runs.get(run.name)
            seconds = 0.0 if known is None else known.seconds
            runs[run.name] = self.look_at(run, seconds)
        self._write(SweepRecord([*runs.values()], earlier.inputs | inputs, package_versions()))

    def look_at(self, run: PlannedRun, seconds: float = 0.0, message: str = "") -> SweptRun:
        """How a run stands, as its folder says, and where there is none, its message.

        Args:
            run: The run.
            seconds: Time that its process took.
            message: Why its process failed.
        """
        found = SweptRun(run.name, run.arm, run.beta, run.seed, seconds=round(seconds, 1))
        if not self.is_finished(run.name):
            return replace(found, status="failed" if message else "waiting", message=message)
        failures = json.loads((self.run(run.name) / RUN_FILE).read_text()).get("failures", [])
        status = "failed" if failures else "finished"
        return replace(found, status=status, message=" ".join(failures))

    def update(self, run: SweptRun) -> None:
        """Write down how a run stands."""
        record = read_record(SweepRecord, self.path / SWEEP_FILE)
        runs = [run if each.name == run.name else each for each in record.runs]
        self._write(replace(record, runs=runs))

    def read(self) -> dict[str, SweptRun]:
        """Name -> how the run stands."""
        record = read_record(SweepRecord, self.path / SWEEP_FILE)
        return {run.name: run for run in record.runs}

    def _write(self, record: SweepRecord) -> None:
        write_record(record, self.path / SWEEP_FILE)

    def _hash_inputs(self, plan: SweepPlan) -> dict[str, str]:
        found = {}
        named = (
            str(name)
            for run in plan.runs
            for name in (*named_sources(run.values), run.values["model_name_or_path"])
        )
        for name in dict.fromkeys(named):
            refuse_inputs(self.path, [name])
            if (path := Path(name).expanduser()).exists():
                found[name] = _digest(path)
        return found

    def _settle_config(self, run: PlannedRun, source: str) -> None:
        path = self.config(run.name)
        if path.is_file() and self.state(run.name) != "new":
            if changed := _differences(yaml.safe_load(path.read_text()), run.values):
                raise ConfigError(
                    f"{source}: {run.name} was begun with something else: {'; '.join(changed)}. "
                    f"Give the arm another name, write to another folder, or remove "
                    f"{self.run(run.name)}*"
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(yaml.safe_dump(run.values, sort_keys=False))


def _differences(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{key} was {earlier.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*earlier, *now})
        if earlier.get(key) != now.get(key)
    ]


def _digest(path: Path) -> str:
    if path.is_file():
        return hash_files([path])
    beside = (".", "cache-")  # what `datasets` leaves in a saved dataset that somebody reads
    return hash_files(
        each for each in path.rglob("*") if each.is_file() and not each.name.startswith(beside)
    )
