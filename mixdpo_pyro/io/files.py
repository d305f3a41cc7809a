"""Files that are written whole or not at all, and survive a loss of power once they are there."""

import errno
import glob
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mixdpo_pyro.errors import MixDPOError, OutputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "disk_errors_named",
    "flush_folder",
    "flush_names",
    "remove_leftovers",
    "resolved",
    "write_csv",
    "write_errors_named",
    "write_json",
    "written_whole",
]

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What only writing can raise: a full disk or quota, a limit on file sizes, a read-only disk."""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` once the block has ended well.

    The name is this call's own, so that several writers of one file do not meet. The content is on
    the disk before the file has its name. A symbolic link is followed.

    Raises:
        OutputError: If `path` is no regular file, such as a device, or cannot be written.
    """
    target = resolved(path)
    if target.exists() and not target.is_file():
        raise OutputError(f"{path}: expected a regular file to write to, found something else")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    with write_errors_named(path):
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    flush_names(target.parent)


def write_csv(table: "pd.DataFrame", path: str | Path) -> None:
    """Write a table as CSV without its index, numbers to six digits, whole or not at all."""
    with written_whole(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


def write_json(value: object, path: str | Path) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def write_errors_named(path: str | Path) -> Iterator[None]:
    """Turn an error of the system into one line that names `path`; the block only writes."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or f"{error}\n".splitlines()[0]
        raise OutputError(f"{path}: cannot be written ({reason})") from error


@contextmanager
def disk_errors_named(folder: Path) -> Iterator[None]:
    """Name what is wrong with the disk under `folder`; other errors of the block stay as they are.

    Libraries that write into the folder have errors of their own for a full disk.
    """
    try:
        yield
    except MixDPOError:
        raise
    except Exception as error:
        if reason := _disk_trouble(error):
            place = getattr(error, "filename", None) or folder
            raise OutputError(f"{place}: cannot be written ({reason})") from error
        raise


def resolved(path: str | Path) -> Path:
    """The absolute path, `~` and symbolic links followed."""
    try:
        return Path(os.path.realpath(Path(path).expanduser()))
    except (ValueError, RuntimeError) as error:  # a NUL; a user's home that is unknown
        raise OutputError(f"{str(path)!r}: is no path ({error})") from error


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left of the file `name`, or of all files below a folder.

    Nobody else may be writing there.
    """
    ending = ".????????.partial"
    found = (
        folder.rglob(f".*{ending}")
        if name is None
        else folder.glob(f".{glob.escape(name)}{ending}")
    )
    for path in found:
        path.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Have everything in a folder on the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            if (path := Path(root, name)).is_file():
                _flush(path)
        flush_names(Path(root))


def flush_names(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that."""
    with suppress(OSError):
        _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_trouble(error: BaseException) -> str | None:
    """What an error, or one behind it, says about the disk; None where it is about another thing.

    safetensors tells the number of the system's error in words; torch tells only that a file did
    not grow.
    """
    number = re.search(r"os error (\d+)", str(error))
    code = int(number[1]) if number else getattr(error, "errno", None)
    if code in _DISK_ERRORS:
        return os.strerror(code)
    if "inline_container.cc" in str(error):
        return "torch could not write all of a file; is the disk full?"
    cause = error.__cause__ or error.__context__
    return _disk_trouble(cause) if cause else None
