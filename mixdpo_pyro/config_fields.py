"""The options of the commands: dataclass fields with their help, and checks of their values."""

import math
import re
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

from mixdpo_pyro.errors import ConfigError

__all__ = [
    "PSEUDONYMISE",
    "PSEUDONYMISE_COLUMNS",
    "SCHEDULER",
    "SHOW_ANNOTATORS",
    "check_kind",
    "check_positive",
    "check_range",
    "check_seed",
    "explained",
    "option",
]

PSEUDONYMISE = (
    "File of 16 bytes or more that you keep; annotators and groups are written as hashes keyed by "
    "it, equal ids as equal ones."
)
"""Help of the option `pseudonymise` of every command that writes ids."""

PSEUDONYMISE_COLUMNS = (
    "Further columns of people that --pseudonymise hashes; other columns are written as they are."
)
"""Help of the option `pseudonymise_columns` of the commands that write other columns too."""

SHOW_ANNOTATORS = (
    "Annotators whom figures and tables of the page show, by name; by their pseudonyms where they "
    "have any. Default: of many, a selection from weakest to strongest."
)
"""Help of the option `show_annotators` of the commands that write a page of annotators."""

SCHEDULER = "Address of a dask scheduler, whose workers do the work: tcp://HOST:8786."
"""Help of the option `scheduler` of the commands whose work can be spread over machines."""

_Config = TypeVar("_Config", bound=type)

_KIND = re.compile("pairs|ties|grades:([3-9]|1[01])|(best-of|ranking):([2-9]|1[0-9]|2[0-6])")
"""Those of `parse_kind` in `inference.calibration.simulation`, without its imports."""

_LARGEST_SEED = 2**32 - 1
"""What NumPy's and transformers' global generators take."""


def option(text: str, default: Any = MISSING, short: str | None = None) -> Any:
    """A dataclass field that the command line knows.

    Args:
        text: Its help.
        default: Its default; without one the option is required.
        short: A short form, such as `-o`.
    """
    metadata = {"help": text, **({"aliases": [short]} if short else {})}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def explained(config: _Config) -> _Config:
    """Append the help of a dataclass's options to its docstring."""
    lines = [f"    {each.name}: {each.metadata['help']}" for each in fields(config)]
    config.__doc__ = "\n".join([f"{config.__doc__}\n", "Args:", *lines])
    return config


def check_kind(name: str, kind: str) -> None:
    """Refuse what is no kind of choice.

    Raises:
        ConfigError: Naming the key.
    """
    if not _KIND.fullmatch(kind):
        raise ConfigError(
            f"{name}: expected pairs, ties, grades:G (3 to 11 grades), best-of:K or ranking:K (2 "
            f"to 26 responses), got {kind!r}"
        )


def check_range(
    name: str, value: float | None, least: int, most: int | None = None, reason: str = ""
) -> None:
    """Refuse a number outside its bounds; None stands for a default.

    Args:
        name: The key that the user typed.
        value: Its value.
        least: The smallest one.
        most: The largest one, or None.
        reason: Why there is a largest one.

    Raises:
        ConfigError: Naming the key.
    """
    if value is None:
        return
    if value < least:
        raise ConfigError(f"{name}: expected at least {least}, got {value}")
    if most is not None and value > most:
        raise ConfigError(f"{name}: expected at most {most:,} ({reason}), got {value}")


def check_positive(name: str, value: float | None) -> None:
    """Refuse a number that is not finite and > 0; None stands for a default.

    Raises:
        ConfigError: Naming the key.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}: expected a finite value > 0, got {value}")


def check_seed(value: int, name: str = "seed") -> None:
    """Refuse a seed that NumPy's global generator does not take.

    Raises:
        ConfigError: Naming the key.
    """
    check_range(name, value, 0, _LARGEST_SEED, "32 bits")
