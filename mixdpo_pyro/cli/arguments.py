"""Command-line arguments from the fields of a dataclass."""

import argparse
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from mixdpo_pyro.errors import ConfigError

__all__ = ["OneLineParser", "parse_fields"]


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `ConfigError`."""
        raise ConfigError(f"{self.prog}: {message}")


def parse_fields(
    config: type,
    prog: str,
    arguments: list[str],
    extra: dict[str, str] | None = None,
    positional: dict[str, str] | None = None,
    switches: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Values for the fields of a flat dataclass; its docstring's Args section is the help.

    `positional` and `extra` are further required arguments, name -> help, without and with a flag;
    `switches` are off unless they are given.
    """
    doc = config.__doc__ or ""
    parser = OneLineParser(
        prog=prog,
        description=doc.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, text in (positional or {}).items():
        parser.add_argument(name, help=text)
    for name, text in (extra or {}).items():
        flags = ["-o", "--output"] if name == "output" else [f"--{name}"]
        parser.add_argument(*flags, required=True, help=text)
    for name, text in (switches or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    hints = get_type_hints(config)
    for field in fields(config):
        options: dict[str, Any] = {
            "help": _argument_help(doc, field.name),
            "default": field.default,
        }
        kinds = [kind for kind in get_args(hints[field.name]) if kind is not NoneType]
        if isinstance(field.default, bool):
            parser.add_argument(f"--{field.name}", action="store_true", **options)
        elif isinstance(field.default, tuple):
            metavar = field.name.upper()
            parser.add_argument(f"--{field.name}", nargs="+", metavar=metavar, **options)
        elif field.name == "output":
            parser.add_argument("-o", "--output", **options)
        elif get_origin(hints[field.name]) is Literal:
            parser.add_argument(f"--{field.name}", choices=kinds, **options)
        else:
            kind = kinds[0] if kinds else hints[field.name]
            parser.add_argument(f"--{field.name}", type=kind, **options)
    return vars(parser.parse_args(arguments))


def _argument_help(doc: str, name: str) -> str:
    lines = [line.strip() for line in doc.splitlines()]
    found = next((line for line in lines if line.startswith(f"{name}: ")), f"{name}: ")
    return found.partition(": ")[2]
