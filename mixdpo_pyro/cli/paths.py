"""Paths on the command line, looked at before anything heavy is imported."""

import re
from pathlib import Path

from mixdpo_pyro.errors import ConfigError, DataError, OutputError
from mixdpo_pyro.io import RUN_FILE

__all__ = [
    "check_columns",
    "check_file",
    "check_model",
    "check_pairs",
    "check_result",
    "check_run",
    "check_salt_file",
    "check_source",
    "check_vote_columns",
]

_DATA_FILE = re.compile(r"\.(jsonl?|csv|parquet)(\.(gz|bz2|xz))?$", re.IGNORECASE)

_OTHER_FILE = re.compile(
    r"\.(txt|tsv|xlsx?|ya?ml|arrow|zip|tar|gz|safetensors|bin|gguf|pth?|ckpt)$", re.IGNORECASE
)

_PATH = re.compile(r"^[.~]{0,2}/|/.*/|^~")
"""No hub has such names: absolute, from here or from home, or with more than one slash."""


def check_file(path: str) -> None:
    """Refuse a file that is not there.

    Raises:
        DataError: Naming it.
    """
    if not Path(path).expanduser().is_file():
        raise DataError(f"{path}: no such file")


def check_columns(path: str, *columns: str | None) -> None:
    """Refuse a file of margins that is no table, or lacks a column, where its first bytes say so.

    Args:
        path: The file.
        columns: Columns beside the margins; None for one that was not asked for.

    Raises:
        DataError: Naming the file and the column.
    """
    from mixdpo_pyro.data.choice_kinds import NO_SETS
    from mixdpo_pyro.data.tables import check_table, peek_names
    from mixdpo_pyro.margins.table import check_names

    check_table(Path(path))
    names = peek_names(Path(path))
    if names is not None:
        check_names(names, [name for name in columns if name not in (None, NO_SETS)], path)


def check_vote_columns(path: str, *columns: str | None) -> None:
    """The same of a file of votes, which needs no margins."""
    from mixdpo_pyro.data.tables import check_has_columns, check_table, peek_names

    check_table(Path(path))
    names = peek_names(Path(path))
    if names is not None:
        check_has_columns(names, filter(None, columns), path)


def check_pairs(name: str, reader: str | None, *columns: str | None) -> None:
    """Refuse preference pairs that are not there, an unknown reader, and a column that lacks.

    Args:
        name: File, folder or hub name.
        reader: `NAME` or `NAME:option,option`; its source has columns of its own.
        columns: Columns that must be there; None for one that was not asked for.

    Raises:
        ConfigError: Naming the readers and options that there are.
        DataError: Naming the file and the column.
    """
    check_source(name)
    if reader is not None:
        from mixdpo_pyro.data.readers.registry import find_reader

        find_reader(reader)
        return
    path = Path(name).expanduser()
    if _DATA_FILE.search(name) and path.is_file():
        from mixdpo_pyro.data.choice_kinds import NO_SETS
        from mixdpo_pyro.data.tables import check_has_columns, check_table, peek_names

        check_table(path)
        if names := peek_names(path):
            asked = [column for column in columns if column not in (None, NO_SETS)]
            check_has_columns(names, asked, name)


def check_salt_file(path: str | None) -> None:
    """Refuse a salt file that cannot be used; None is none.

    Raises:
        DataError: Naming it.
    """
    if path is not None:
        from mixdpo_pyro.io.pseudonyms import check_salt

        check_salt(path)


def check_source(name: str) -> None:
    """Refuse preference pairs that can only be a file or folder, where there is none.

    Raises:
        DataError: Naming it.
    """
    if Path(name).expanduser().exists():
        return
    is_file = bool(_DATA_FILE.search(name) or _OTHER_FILE.search(name))
    if is_file or _is_local(name):
        raise DataError(f"{name}: no such file{'' if is_file else ' or folder'}{_why(name)}")


def check_model(name: str, key: str, may_be_adapter: bool = True) -> None:
    """Refuse a model that can only be a folder, where there is none.

    Args:
        name: Folder or hub name.
        key: The key that the user typed.
        may_be_adapter: Whether it may be the folder of an adapter, which is nothing to start a
            training from: its reference would be the base model without it.

    Raises:
        ConfigError: Naming the key.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and (_is_local(name) or _OTHER_FILE.search(name)):
        raise ConfigError(f"{key}: there is no folder '{name}'{_why(name)}")
    if not may_be_adapter and (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{key}: '{name}' holds an adapter, which the reference would lose; merge it into its "
            "base model first (peft's merge_and_unload)"
        )


def _is_local(name: str) -> bool:
    """Whether a name is a path by its form, or by the folder that it would stand in."""
    return bool(_PATH.search(name)) or _has_parent(name)


def _has_parent(name: str) -> bool:
    parent = Path(name).parent
    return parent != Path() and parent.is_dir()


def _why(name: str) -> str:
    """Why a name that a hub could have is not looked up there."""
    if _PATH.search(name) or not _has_parent(name):
        return ""
    return f"; no hub is asked for it, since the folder '{Path(name).parent}' is here"


def check_result(path: str) -> None:
    """Refuse a folder that is neither that of a finished run nor that of a diagnosis.

    Raises:
        OutputError: Naming it.
    """
    from mixdpo_pyro.diagnosis.config import DIAGNOSIS_FILE

    _check_folder(path, (RUN_FILE, DIAGNOSIS_FILE), "a finished run or a diagnosis")


def check_run(path: str) -> None:
    """Refuse a folder that is not that of a finished run.

    Raises:
        OutputError: Naming it.
    """
    _check_folder(path, (RUN_FILE,), "a finished run")


def _check_folder(path: str, markers: tuple[str, ...], what: str) -> None:
    """Refuse a folder that has none of the files that make it a result."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise OutputError(f"{path}: no such folder")
    if not any((folder / name).is_file() for name in markers):
        named = " and no ".join(markers)
        raise OutputError(f"{path}: holds no {named}; is it {what}?")
