"""Files that are written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixdpo_pyro.errors import OutputError

__all__ = [
    "RUN_FILE",
    "check_output_file",
    "check_replaceable",
    "shared_staged_folder",
    "staged_folder",
    "write_json",
    "written_whole",
]

RUN_FILE = "run.json"
"""The file that makes a folder a run folder."""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` once the block has ended well."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(value: object, path: str | Path) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def staged_folder(
    folder: str | Path, overwrite: bool = False, keep: bool = False, marker: str = RUN_FILE
) -> Iterator[Path]:
    """Give an empty folder `NAME.partial`; rename it to `folder` once the block has ended well.

    An earlier run in `folder` stays untouched until then, and stays for good where the block
    fails. The partial folder of a failed block is kept, unless it is empty; the next try removes
    it, but for checkpoints, which only `keep` or `overwrite` touches.

    Args:
        folder: The final folder.
        overwrite: Replace an earlier run.
        keep: Start from what an interrupted try left in the partial folder.
        marker: The file that tells an earlier result of this kind from other folders.

    Raises:
        OutputError: If `folder` holds a run and `overwrite` is not set, or holds anything else; if
            an interrupted try left checkpoints and neither `keep` nor `overwrite` is set.
    """
    folder = Path(folder).expanduser()
    check_replaceable(folder, overwrite, marker)
    partial = folder.with_name(f"{folder.name}.partial")
    previous = folder.with_name(f"{folder.name}.previous")
    if previous.exists():
        raise OutputError(f"{previous}: is in the way of replacing '{folder}'; move it")
    if any(partial.glob("checkpoint-*")) and not (keep or overwrite):
        raise OutputError(
            f"{partial}: holds checkpoints of an interrupted run; add --resume to go on, or "
            "--overwrite to start again"
        )
    if partial.exists() and not keep:
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    except BaseException:
        if not any(partial.iterdir()):
            partial.rmdir()
        raise
    if folder.exists():
        folder.rename(previous)
    partial.rename(folder)
    if previous.exists():
        shutil.rmtree(previous, ignore_errors=True)


@contextmanager
def shared_staged_folder(
    folder: str | Path, overwrite: bool = False, keep: bool = False
) -> Iterator[Path]:
    """`staged_folder` for all processes of a launch: the main one makes it and renames it."""
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process:
        with staged_folder(folder, overwrite, keep) as partial:
            state.wait_for_everyone()
            yield partial
            state.wait_for_everyone()
    else:
        state.wait_for_everyone()
        folder = Path(folder).expanduser()
        yield folder.with_name(f"{folder.name}.partial")
        state.wait_for_everyone()


def check_output_file(path: str | Path, overwrite: bool) -> None:
    """Refuse a name to which no file can be written, or where one stands.

    Raises:
        OutputError: Naming it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise OutputError(f"{path}: expected a file to write to, found a folder")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists; add --overwrite to replace it")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder '{path.parent}'")


def check_replaceable(folder: str | Path, overwrite: bool, marker: str = RUN_FILE) -> None:
    """Refuse a folder that holds an earlier result, unless it may be overwritten, or other files.

    Raises:
        OutputError: Naming it.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise OutputError(f"{folder}: expected a folder to write to, found a file")
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
