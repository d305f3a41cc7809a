"""`mixdpo sweep`: every run that is not finished, on this machine or on a cluster."""

import os
import queue
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mixdpo_pyro.errors import ConfigError, OutputError
from mixdpo_pyro.io import RUN_FILE, locked_output, write_errors_named
from mixdpo_pyro.progress import Engine, printable, run_tasks
from mixdpo_pyro.progress.screen import show_stage
from mixdpo_pyro.reporting.sweep_record import SweptRun
from mixdpo_pyro.workflows.sweep.folder import SweepFolder
from mixdpo_pyro.workflows.sweep.plan import PlannedRun, SweepConfig, SweepPlan
from mixdpo_pyro.workflows.sweep.processes import ProcessEnd, ProcessTask, claimed, run_process

__all__ = ["list_runs", "run_sweep", "sweep_lines"]


def run_sweep(plan: SweepPlan, config: SweepConfig) -> list[SweptRun]:
    """Train every run that is not finished; go on with those that were interrupted.

    `runs/ARM/beta-BETA/seed-SEED/` is the folder of a `mixdpo train`. A run that fails leaves the
    others as they are.

    Returns:
        How each run stands.

    Raises:
        ConfigError: If a run that was begun, or an input, has changed.
        OutputError: If the folder holds anything else than a sweep.
    """
    folder = _open_folder(config)
    groups = [] if config.scheduler is not None else _device_groups(plan)
    engine = Engine(config.jobs or max(1, len(groups)), config.scheduler, threads=True)
    with write_errors_named(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    with locked_output(folder.path):
        folder.settle(plan)
        waiting = [run for run in plan.runs if not folder.is_finished(run.name)]
        where = f"on {config.scheduler}" if config.scheduler else f"{engine.jobs} at a time"
        done = len(plan.runs) - len(waiting)
        show_stage(f"{len(plan.runs)} runs: {done} finished, {len(waiting)} to train, {where}")
        if waiting:
            show_stage(f"What each says: {folder.log('ARM/beta-BETA/seed-SEED')}")
            _train(plan, waiting, folder, engine, groups)
        found = folder.read()
    return [found[run.name] for run in plan.runs]


def list_runs(plan: SweepPlan, config: SweepConfig) -> list[str]:
    """The runs, and how far each is, a line each."""
    folder = _open_folder(config)
    states = {run.name: folder.state(run.name) for run in plan.runs}
    width = 2 + max(map(len, states))
    left = sum(state != "finished" for state in states.values())
    lines = [f"{name:{width}}{state}" for name, state in states.items()]
    return [*lines, "", f"{len(lines)} runs, {left} to train"]


def sweep_lines(runs: Sequence[SweptRun], config: SweepConfig) -> list[str]:
    """What was done, and what reads it.

    Raises:
        OutputError: If runs failed, naming them and their logs.
    """
    folder = _open_folder(config)
    failed = [run for run in runs if run.status != "finished"]
    if failed:
        named = "; ".join(f"{run.name}: {run.message} ({folder.log(run.name)})" for run in failed)
        raise OutputError(
            f"{len(failed)} of {len(runs)} runs failed, and the same command tries again what has "
            f"no result: {named}"
        )
    return [f"{len(runs)} runs are finished", f"compare  mixdpo compare {config.output_dir}"]


def _open_folder(config: SweepConfig) -> SweepFolder:
    folder = SweepFolder(Path(os.path.abspath(Path(config.output_dir).expanduser())))
    folder.check()
    return folder


def _device_groups(plan: SweepPlan) -> list[str]:
    """This machine's GPUs in groups of as many as a run takes, as CUDA_VISIBLE_DEVICES has them.

    Raises:
        ConfigError: If there are GPUs, but fewer than that.
    """
    if all(run.values.get("use_cpu") for run in plan.runs):
        return []
    names, size = _visible_devices(), plan.devices
    if 0 < len(names) < size:
        raise ConfigError(
            f"{plan.source}: devices: {size} for each run, and this machine has {len(names)}"
        )
    return [",".join(names[k : k + size]) for k in range(0, len(names) - size + 1, size)]


def _visible_devices() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _train(
    plan: SweepPlan,
    waiting: Sequence[PlannedRun],
    folder: SweepFolder,
    engine: Engine,
    groups: Sequence[str],
) -> None:
    from tqdm import tqdm

    failed: list[str] = []

    def note(number: int, end: ProcessEnd) -> str:
        run = folder.look_at(waiting[number], end.seconds, end.message)
        folder.update(run)
        if run.status != "finished":
            failed.append(run.name)
        tqdm.write(printable(_line(run)), file=sys.stderr)
        return f"{len(failed)} failed" if failed else ""

    function = run_process if engine.scheduler else _Places(engine.jobs, groups).run
    try:
        with claimed(folder.path) as claim:
            tasks = [_task(plan, run, folder, claim) for run in waiting]
            run_tasks(function, tasks, engine, "runs", note, _not_started)
    except KeyboardInterrupt:
        show_stage("Stopped; the same command goes on from what is done")
        raise


def _line(run: SweptRun) -> str:
    if run.status != "finished":
        return f"{run.name}: FAILED, {run.message}"
    minutes, seconds = divmod(round(run.seconds), 60)
    return f"{run.name}: finished in {f'{minutes} min ' if minutes else ''}{seconds} s"


def _task(plan: SweepPlan, run: PlannedRun, folder: SweepFolder, claim: str) -> ProcessTask:
    launcher = ("accelerate.commands.launch", *(plan.accelerate or ()), "-m")
    config, output = folder.config(run.name), folder.run(run.name)
    return ProcessTask(
        words=(
            "-m", *(() if plan.accelerate is None else launcher), "mixdpo_pyro", "train",
            "--config", str(config), "--output_dir", str(output), "--resume",
        ),
        output=str(output),
        result=str(output / RUN_FILE),
        log=str(folder.log(run.name)),
        folder=str(folder.path),
        claim=claim,
    )  # fmt: skip


def _not_started(_: ProcessTask, error: Exception) -> ProcessEnd:
    return ProcessEnd(1, message=" ".join(str(error).split()) or type(error).__name__)


class _Places:
    """The places of this machine: each has GPUs and its share of the cores.

    Args:
        jobs: Number of places.
        groups: Groups of GPUs, which several places share where there are fewer of them.
    """

    def __init__(self, jobs: int, groups: Sequence[str]) -> None:
        self._free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for number in range(jobs):
            place = {"CUDA_VISIBLE_DEVICES": groups[number % len(groups)]} if groups else {}
            if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
                place["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
            self._free.put(place)

    def run(self, task: ProcessTask) -> ProcessEnd:
        """Run a task in a free place."""
        place = self._free.get()
        try:
            return run_process(replace(task, environment=place))
        finally:
            self._free.put(place)
