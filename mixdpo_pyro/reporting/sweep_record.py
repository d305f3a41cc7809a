"""The record of a sweep: which runs it has, and where they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io import RUN_FILE

__all__ = [
    "SWEEP_FILE", "SweepRecord", "SweptRun", "expand_sweeps", "find_swept", "run_folder",
    "short_names", "unfinished_runs",
]  # fmt: skip

SWEEP_FILE = "sweep.json"
"""The file that makes a folder one of a sweep."""


@dataclass(frozen=True)
class SweptRun:
    """A run of a sweep.

    Attributes:
        name: Its folder below `runs/`: ARM/beta-BETA/seed-SEED.
        arm: Name of its arm.
        beta: DPO's beta.
        seed: Seed of the training.
        status: `waiting`, `finished` or `failed`.
        seconds: Wall time of the try that ended it.
        message: Why it failed.
    """

    name: str
    arm: str
    beta: float
    seed: int
    status: str = "waiting"
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class SweepRecord:
    """Content of `sweep.json`.

    Attributes:
        runs: The runs, also those of earlier calls that the file no longer asks for.
        inputs: Local file or folder of data or model -> hash of its content.
        versions: Package -> version.
    """

    runs: list[SweptRun]
    inputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def run_folder(sweep: str | Path, name: str) -> Path:
    """The folder of a run."""
    return Path(sweep) / "runs" / name


def expand_sweeps(paths: Iterable[str]) -> list[str]:
    """Folders of runs, a sweep standing for its finished ones, in its order.

    Raises:
        OutputError: If a sweep has no finished run.
    """
    found = []
    for path in paths:
        folder = Path(path).expanduser()
        if not (folder / SWEEP_FILE).is_file():
            found.append(path)
            continue
        runs = _read(folder).runs
        finished = [run.name for run in runs if _is_finished(folder, run)]
        if not finished:
            raise OutputError(f"{path}: none of its {len(runs)} runs is finished")
        found += [str(run_folder(folder, name)) for name in finished]
    return found


def unfinished_runs(sweep: Path) -> list[str]:
    """Names of the runs of a sweep that have no result."""
    return [run.name for run in _read(sweep).runs if not _is_finished(sweep, run)]


def find_swept(run: str | Path) -> SweptRun | None:
    """What a folder is in the sweep that it belongs to; None for a run by itself."""
    parts = Path(run).expanduser().resolve().parts
    if len(parts) < 5 or parts[-4] != "runs":
        return None
    folder, name = Path(*parts[:-4]), "/".join(parts[-3:])
    if not (folder / SWEEP_FILE).is_file():
        return None
    return next((each for each in _read(folder).runs if each.name == name), None)


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart; of runs of sweeps those of arms."""
    least = 3 if any(find_swept(path) for path in paths) else 1
    for count in range(least, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _is_finished(sweep: Path, run: SweptRun) -> bool:
    return (run_folder(sweep, run.name) / RUN_FILE).is_file()


def _read(folder: Path) -> SweepRecord:
    from mixdpo_pyro.reporting.records import read_record

    return read_record(SweepRecord, folder / SWEEP_FILE)
