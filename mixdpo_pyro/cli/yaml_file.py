"""A flat YAML file of options, each value read as its key means it.

YAML guesses types: `no` is false, `1e-5` is text, `010` is 8. Here a value is the text that stands
in the file until the type of its key says what it is, as on the command line.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from mixdpo_pyro.errors import ConfigError

__all__ = ["FileValue", "convert", "read_yaml"]

_EVERY = "*"
"""In place of a key: every key."""

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class FileValue:
    """A value of the file.

    Attributes:
        place: File and line, for messages.
        value: Text as it stands there, None for `null`, a list of these, or a dictionary, whose
            values are again of this kind where it is nested.
    """

    place: str
    value: Any


def read_yaml(path: str | Path, nested: Mapping[str, int] | None = None) -> dict[str, FileValue]:
    """Read `key: value` lines.

    Args:
        path: The file.
        nested: Key -> how many levels of lines below it are read likewise.

    Raises:
        ConfigError: Naming the file, and the line and key where it has some.
    """
    try:
        loader = yaml.SafeLoader(Path(path).expanduser().read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            kind = type(None if node is None else loader.construct_object(node)).__name__
            raise ConfigError(f"{path}: expected 'key: value' lines, got {kind}")
        return _read_keys(path, node, loader, nested or {})
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error


def convert(value: Any, kind: Any) -> Any:
    """The value as a type says it is read; of several types, the narrowest that fits.

    Args:
        value: Text, None, a list, or a dictionary.
        kind: Annotation of the key.

    Raises:
        ValueError: Saying what was expected, if no type fits.
    """
    is_union = get_origin(kind) in (Union, types.UnionType)
    members = get_args(kind) if is_union else (kind,)
    for member in sorted(members, key=lambda m: _rank(get_origin(m) or m)):
        name = get_origin(member) or member
        try:
            return _CONVERTERS[name](value, get_args(member))
        except (KeyError, TypeError, ValueError):
            continue
    known = [_KINDS.get(get_origin(m) or m, "") or _choices(get_args(m)) for m in members]
    expected = " or ".join(word for word in dict.fromkeys(known) if word)
    raise ValueError(f"expected {expected}, got {_shown(value)}")


def _read_keys(
    path: str | Path, node: yaml.MappingNode, loader: yaml.SafeLoader, nested: Mapping[str, int]
) -> dict[str, FileValue]:
    found: dict[str, FileValue] = {}
    for key, value in node.value:
        place = f"{path}: line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{place}: expected 'key: value'")
        if key.value in found:
            earlier = found[key.value].place.rpartition(" ")[2]
            raise ConfigError(f"{place}: key '{key.value}' stands in line {earlier} too")
        levels = nested.get(key.value, nested.get(_EVERY, 0))
        if levels and isinstance(value, yaml.MappingNode):
            below = _read_keys(path, value, loader, {_EVERY: levels - 1})
            found[key.value] = FileValue(place, below)
        else:
            found[key.value] = FileValue(place, _read_value(value, loader))
    return found


def _read_value(node: yaml.Node, loader: yaml.SafeLoader) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_read_value(item, loader) for item in node.value]
    if isinstance(node, yaml.MappingNode):  # arguments of another library: its types are YAML's
        return loader.construct_object(node, deep=True)
    return None if node.tag == "tag:yaml.org,2002:null" else node.value


def _to_none(value: Any, _: tuple) -> None:
    if value is not None:
        raise ValueError


def _to_bool(value: Any, _: tuple) -> bool:
    return _WORDS[value.lower()] if isinstance(value, str) else _WORDS[value]


def _to_text(value: Any, _: tuple) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _to_choice(value: Any, choices: tuple) -> Any:
    return {str(choice): choice for choice in choices}[value]


def _to_list(value: Any, element: tuple) -> list:
    if value is None or isinstance(value, dict):
        raise ValueError
    kind = element[0] if element else str
    return [convert(item, kind) for item in (value if isinstance(value, list) else [value])]


def _to_dict(value: Any, _: tuple) -> dict:
    if not isinstance(value, dict):
        raise ValueError
    return value


_CONVERTERS: dict[Any, Callable[[Any, tuple], Any]] = {
    types.NoneType: _to_none,
    dict: _to_dict,
    bool: _to_bool,
    int: lambda value, _: int(value),
    float: lambda value, _: float(value),
    Literal: _to_choice,
    str: _to_text,
    list: _to_list,
}
"""Type -> reader of a value, the narrowest first."""

_KINDS = {dict: "'key: value' lines", bool: "true or false", int: "a whole number",
          float: "a number", str: "text", list: "a list"}  # fmt: skip


def _rank(name: Any) -> int:
    return list(_CONVERTERS).index(name) if name in _CONVERTERS else len(_CONVERTERS)


def _choices(values: tuple) -> str:
    return f"one of {', '.join(map(str, values))}" if values else ""


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"'{value}'" if isinstance(value, str) else str(value)
