"""Records of results: dataclasses that are written as JSON with a format number and read back."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io import written_whole

__all__ = ["FORMAT", "Value", "read_json", "read_record", "write_record"]

FORMAT = 2
"""Number of the format of `run.json`, `diagnosis.json` and `check.json`."""

Value = TypeVar("Value")


def write_record(record: Any, path: str | Path) -> None:
    """Write a dataclass as indented JSON; numbers that are not finite become null."""
    plain = TypeAdapter(type(record)).dump_python(record, mode="json")
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **plain}, indent=2) + "\n")


def read_record(kind: type[Value], path: str | Path) -> Value:
    """Read a dataclass that :func:`write_record` wrote.

    Raises:
        OutputError: Naming the file, and the key that is missing, unknown or of a wrong type, or
            the format that this version does not read.
    """
    value = read_json(path, dict[str, Any])
    found = value.pop("format", None)
    if found != FORMAT:
        raise OutputError(
            f"{path}: expected format {FORMAT}, got {found}; it was not written by this version"
        )
    return _validate(value, kind, path)


def read_json(path: str | Path, kind: type[Value]) -> Value:
    """The content of a JSON file, checked against a type.

    Raises:
        OutputError: Naming the file, if it is missing or damaged, and the key of a wrong value.
    """
    path = Path(path)
    if not path.is_file():
        raise OutputError(f"{path}: missing; is '{path.parent}' the folder of a finished run?")
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return _validate(value, kind, path)


def _validate(value: Any, kind: type[Value], path: str | Path) -> Value:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f"key '{key}': " if key else ""
        raise OutputError(f"{path}: {where}{first['msg']}") from error
