"""Folders that appear whole: written as `NAME.partial`, then given their name.

A folder goes through four steps, and a file in it says which one it has reached:

1. `begun`: `NAME.partial` is being written.
2. `whole`: it is complete and flushed; an earlier `NAME` becomes `NAME.previous`.
3. `NAME.partial` becomes `NAME`; `NAME.previous` is removed.
4. `done`.

Whoever comes after a kill at any of them finds out from the files which one it was, and goes on.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io.files import (
    disk_errors_named,
    flush_folder,
    flush_names,
    remove_leftovers,
    resolved,
    write_errors_named,
    write_json,
)
from mixdpo_pyro.io.outputs import locked_output, refuse_inputs

__all__ = [
    "RUN_FILE",
    "added_to_result",
    "check_replaceable",
    "claim_folder",
    "is_claimed",
    "remove_claimed",
    "shared_staged_folder",
    "staged_folder",
]

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""The file that makes a folder a run folder."""

_RECORD = ".mixdpo.json"
"""The file that tells a folder of this program from others: its step, and the files it wrote."""


@contextmanager
def staged_folder(
    folder: str | Path,
    overwrite: bool = False,
    keep: bool = False,
    marker: str = RUN_FILE,
    inputs: Iterable[str | Path | None] = (),
) -> Iterator[Path]:
    """Give an empty folder `NAME.partial`; rename it to `folder` once the block has ended well.

    An earlier run in `folder` stays untouched until then, and stays for good where the block
    fails. The partial folder of a failed block is kept, unless it is empty; the next try removes
    it, but for checkpoints, which only `keep` or `overwrite` touches. What a killed try had
    completed gets its name first. A symbolic link is followed. Until the block ends, other
    processes are refused.

    Args:
        folder: The final folder.
        overwrite: Replace an earlier run, if no file in it is anybody else's.
        keep: Start from what an interrupted try left in the partial folder.
        marker: The file that tells an earlier result of this kind from other folders.
        inputs: What the block reads; those that are no local paths are passed over.

    Raises:
        OutputError: If `folder` holds a run and `overwrite` is not set, or holds anything else,
            such as an input; if an interrupted try left checkpoints and neither `keep` nor
            `overwrite` is set; if `NAME.partial` or `NAME.previous` are somebody else's; if
            another process writes to it; if the disk is full or read-only.
    """
    stage = _Stage(resolved(folder), marker, overwrite)
    refuse_inputs(stage.folder, inputs)
    with write_errors_named(folder):
        stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with locked_output(stage.folder):
        with write_errors_named(stage.folder):
            stage.recover(keep)
            check_replaceable(stage.folder, overwrite, marker)
            stage.begin(keep)
        try:
            with disk_errors_named(stage.partial):
                yield stage.partial
        except BaseException:
            stage.drop_if_empty()
            raise
        with write_errors_named(stage.folder):
            stage.finish()


@contextmanager
def shared_staged_folder(
    folder: str | Path,
    overwrite: bool = False,
    keep: bool = False,
    inputs: Iterable[str | Path | None] = (),
) -> Iterator[Path]:
    """`staged_folder` for all processes of a launch: the main one makes it and renames it."""
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process:
        with staged_folder(folder, overwrite, keep, inputs=inputs) as partial:
            state.wait_for_everyone()
            yield partial
            state.wait_for_everyone()
    else:
        state.wait_for_everyone()
        yield _Stage(resolved(folder)).partial
        state.wait_for_everyone()


@contextmanager
def added_to_result(folder: str | Path) -> Iterator[None]:
    """Note the files that the block adds to a finished result as this program's.

    Other processes are kept away from the result meanwhile. Where nothing can be written beside
    it, no command can replace it either, and there is no lock.

    Raises:
        OutputError: If another process holds it.
    """
    folder = resolved(folder)
    can_lock = os.access(folder.parent, os.W_OK)
    with locked_output(folder) if can_lock else nullcontext():
        before = set(_files(folder))
        yield
        if record := _read_record(folder):
            added = set(_files(folder)) - before
            files = sorted({*_recorded_files(folder), *added})
            _write_record(folder, **{**record, "files": files})


def claim_folder(folder: Path) -> None:
    """Make a folder, if need be, and mark it as this program's to remove."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_record(folder, step="begun")


def is_claimed(folder: Path) -> bool:
    """Whether a folder is marked as this program's and unfinished, or holds nothing."""
    entries = (path.name for path in folder.iterdir())
    return _step(folder) in ("begun", "whole") or all(
        name.startswith(f".{_RECORD}.") for name in entries
    )


def remove_claimed(folder: Path) -> None:
    """Remove a folder, its mark last: half removed, it is still this program's."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _RECORD:
            path.unlink()
    shutil.rmtree(folder)


@dataclass(frozen=True)
class _Stage:
    """The three names of a staged folder."""

    folder: Path
    marker: str = RUN_FILE
    overwrite: bool = False

    @property
    def partial(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.partial")

    @property
    def previous(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.previous")

    def recover(self, keep: bool) -> None:
        """Go on where an earlier try was killed while it gave the folder its name."""
        if _step(self.partial) == "whole":
            if not keep:
                self._publish()
                logger.warning("%s: holds now what an interrupted command left whole", self.folder)
            elif self._is_replaced(self.partial) and not self.folder.exists():
                self.previous.rename(self.folder)
        elif _step(self.folder) == "whole":
            self._tidy()

    def begin(self, keep: bool) -> None:
        """Have a partial folder that is this program's: empty, or as it was left."""
        if self.previous.exists():
            raise OutputError(
                f"{self.previous}: exists, and blocks replacing '{self.folder}'; move it"
            )
        if self.partial.exists():
            self._check_partial(keep)
            if not keep:
                remove_claimed(self.partial)
        claim_folder(self.partial)

    def drop_if_empty(self) -> None:
        """Leave nothing where nothing was written."""
        if [path.name for path in self.partial.iterdir()] == [_RECORD]:
            remove_claimed(self.partial)

    def finish(self) -> None:
        """Give the partial folder its name; from here on, whoever comes next can do the same."""
        remove_leftovers(self.partial)
        flush_folder(self.partial)
        _write_record(
            self.partial,
            step="whole",
            marker=self.marker,
            overwrite=self.overwrite,
            files=_files(self.partial),
        )
        self._publish()

    def _publish(self) -> None:
        record = _read_record(self.partial) or {}
        overwrite, marker = record.get("overwrite", False), record.get("marker", RUN_FILE)
        try:
            check_replaceable(self.folder, overwrite, marker)
        except OutputError as error:
            raise OutputError(f"{error}; the new result is whole in '{self.partial}'") from error
        if self.folder.exists():
            _write_record(self.partial, **{**record, "replaces": self.folder.stat().st_ino})
            self.folder.rename(self.previous)
        self.partial.rename(self.folder)
        flush_names(self.folder.parent)
        self._tidy()

    def _tidy(self) -> None:
        """Remove the result that was replaced."""
        if self._is_replaced(self.folder):
            try:
                remove_claimed(self.previous)
            except OSError as error:
                logger.warning("%s: cannot be removed (%s)", self.previous, error.strerror)
                return
        remove_leftovers(self.folder, _RECORD)
        _write_record(self.folder, step="done", files=_recorded_files(self.folder))

    def _is_replaced(self, whole: Path) -> bool:
        """Whether `NAME.previous` is the very folder that `whole` was to replace."""
        replaced = (_read_record(whole) or {}).get("replaces")
        return self.previous.exists() and self.previous.stat().st_ino == replaced

    def _check_partial(self, keep: bool) -> None:
        checkpoints = list(self.partial.glob("checkpoint-*"))
        if not self.partial.is_dir() or not (
            is_claimed(self.partial) or (keep and set(self.partial.iterdir()) == set(checkpoints))
        ):
            raise OutputError(f"{self.partial}: exists, and mixdpo did not write it; move it")
        if checkpoints and not (keep or self.overwrite):
            raise OutputError(
                f"{self.partial}: holds checkpoints of an interrupted run; add --resume to go on, "
                "or --overwrite to start again"
            )


def check_replaceable(folder: str | Path, overwrite: bool, marker: str = RUN_FILE) -> None:
    """Refuse a folder that holds an earlier result, unless it may be overwritten, or other files.

    Raises:
        OutputError: Naming it.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: expected a folder to write to, found a file")
    if os.path.ismount(folder):
        raise OutputError(f"{folder}: is where a disk is mounted; choose a folder inside of it")
    if not folder.exists() or not any(folder.iterdir()):
        return
    is_run = marker == RUN_FILE
    if not (folder / marker).is_file():
        kind = "a run" if is_run else "an earlier result"
        raise OutputError(
            f"{folder}: the folder holds other files than {kind}; choose another one"
        )
    if not overwrite:
        kind = "run" if is_run else "result"
        raise OutputError(f"{folder}: holds an earlier {kind}; add --overwrite to replace it")
    if foreign := _foreign_file(folder, marker):
        raise OutputError(f"{folder}: holds '{foreign}', which mixdpo did not write; move it")


def _foreign_file(folder: Path, marker: str) -> str | None:
    """A file that is not in the folder's record, such as the user's notes."""
    known = {marker, *_recorded_files(folder)}
    return next((name for name in _files(folder) if name not in known), None)


def _files(folder: Path) -> list[str]:
    """Names of all files below a folder, but the record."""
    paths = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if name != _RECORD)


def _recorded_files(folder: Path) -> list[str]:
    """The files that this program wrote into a finished folder, as far as its record says so."""
    files = (_read_record(folder) or {}).get("files", [])
    return [str(name) for name in files] if isinstance(files, list) else []


def _step(folder: Path) -> str | None:
    return (_read_record(folder) or {}).get("step")


def _write_record(folder: Path, **record: Any) -> None:
    write_json(record, folder / _RECORD)


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "step" in record else None
