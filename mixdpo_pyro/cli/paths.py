"""Paths on the command line, looked at before anything heavy is imported."""

import re
from pathlib import Path

from mixdpo_pyro.errors import ConfigError, DataError, OutputError
from mixdpo_pyro.io import RUN_FILE

__all__ = ["check_file", "check_model", "check_run", "check_source"]

_DATA_FILE = re.compile(r"\.(jsonl?|csv|parquet)(\.gz)?$", re.IGNORECASE)

_PATH = re.compile(r"^[.~]{0,2}/|/.*/|^~")
"""No hub has such names: absolute, from here or from home, or with more than one slash."""


def check_file(path: str) -> None:
    """Refuse a file that is not there.

    Raises:
        DataError: Naming it.
    """
    if not Path(path).expanduser().is_file():
        raise DataError(f"{path}: no such file")


def check_source(name: str) -> None:
    """Refuse preference pairs that can only be a file or folder, where there is none.

    Raises:
        DataError: Naming it.
    """
    is_file = bool(_DATA_FILE.search(name))
    if (is_file or _PATH.search(name)) and not Path(name).expanduser().exists():
        raise DataError(f"{name}: no such file{'' if is_file else ' or folder'}")


def check_model(name: str, key: str) -> None:
    """Refuse a model that can only be a folder, where there is none.

    Raises:
        ConfigError: Naming the key.
    """
    if _PATH.search(name) and not Path(name).expanduser().is_dir():
        raise ConfigError(f"{key}: there is no folder '{name}'")


def check_run(path: str) -> None:
    """Refuse a folder that is not that of a finished run.

    Raises:
        OutputError: Naming it.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise OutputError(f"{path}: no such folder")
    if not (folder / RUN_FILE).is_file():
        raise OutputError(f"{path}: holds no {RUN_FILE}; is it a finished run?")
