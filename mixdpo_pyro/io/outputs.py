"""Where a command may write: never over an input, another's file, or another command's output."""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io.files import remove_leftovers, resolved, write_errors_named

__all__ = ["check_output", "locked_output", "refuse_inputs"]

_PATIENCE = 0.2
"""Seconds; a command that is just ending holds its lock for less."""


def check_output(
    output: str | Path,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
    signature: str | None = None,
) -> Path:
    """Make sure that a command may write the file `output`, before it reads or computes anything.

    Args:
        output: The file.
        inputs: What the command reads; those that are no local paths are passed over.
        overwrite: Whether the user asked to replace a file that is there.
        signature: Text near the beginning of all files that this command writes; a file that holds
            it is replaced unasked.

    Returns:
        The path, `~` expanded.

    Raises:
        OutputError: If `output` is an input or part of one, is there already, is no regular file,
            or its folder is missing or cannot be written to.
    """
    path = Path(output).expanduser()
    refuse_inputs(path, inputs)
    if path.is_dir():
        raise OutputError(f"{output}: expected a file to write to, found a folder")
    if path.exists() and not path.is_file():
        raise OutputError(f"{output}: expected a regular file to write to, found a device or pipe")
    if path.exists() and not overwrite and not (signature and _begins_with(path, signature)):
        raise OutputError(f"{output}: exists; add --overwrite to replace it")
    folder = resolved(path).parent
    if not folder.is_dir():
        raise OutputError(f"{output}: there is no folder '{path.parent}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: the folder '{path.parent}' cannot be written to")
    return path


def refuse_inputs(output: Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise an error where writing `output` would take away an input.

    Raises:
        OutputError: If `output` is an input, a folder around one, or a file that is there inside
            of one.
    """
    target = resolved(output)
    for name in inputs:
        if name is None or not os.path.exists(Path(name).expanduser()):
            continue
        source = resolved(name)
        if target == source or (target.exists() and target.samefile(source)):
            raise OutputError(f"{output}: is an input of this command; write to another place")
        if target in source.parents:
            raise OutputError(f"{output}: holds the input '{name}'; write to another place")
        if target.is_file() and source in target.parents:
            raise OutputError(f"{output}: is part of the input '{name}'; write to another place")


@contextmanager
def locked_output(output: str | Path) -> Iterator[None]:
    """Keep other commands away from an output until the block, or this process, ends.

    Raises:
        OutputError: If another process holds it, or its folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    target = resolved(output)
    path = target.with_name(f".{target.name}.lock")
    lock = FileLock(path)
    with write_errors_named(output):
        try:
            lock.acquire(timeout=_PATIENCE, poll_interval=_PATIENCE / 10)
        except Timeout:
            raise OutputError(
                f"{output}: is being written by {_holder(path)}; wait until it ends, or write "
                "to another place"
            ) from None
        path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
        remove_leftovers(target.parent, target.name)
    try:
        yield
    finally:
        with suppress(OSError):  # before the release: who has opened it sees that it lost its name
            path.unlink()
        lock.release()


def _holder(path: Path) -> str:
    try:
        number, host = path.read_text().split()
    except (OSError, ValueError):
        return "another process"
    return f"process {number}" + ("" if host == socket.gethostname() else f" on {host}")


def _begins_with(path: Path, signature: str) -> bool:
    with path.open("rb") as file:
        return signature.encode() in file.read(4096)
