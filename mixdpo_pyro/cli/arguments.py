"""The parser of every command: TRL's parser of dataclasses, with errors of one line."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from trl import TrlParser

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.workflows.run_config import did_you_mean

__all__ = ["CommandParser"]


class _TidyHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Every option once, although it is taken with hyphens too, and no empty defaults."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = action.option_strings
        shown = [n for n in names if "-" not in n.lstrip("-") or n.replace("-", "_") == n]
        shown = sorted(shown or names, key=len)
        takes_value = action.nargs not in (0, "?")
        value = self._format_args(action, action.dest.upper()) if takes_value else ""
        return f"{', '.join(shown)} {value}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default in (None, False, []) or action.required:
            return action.help or ""
        return super()._get_help_string(action) or ""


class CommandParser(TrlParser):
    """Parser of one command; options are dataclass fields, taken with `_` and with `-`.

    Args:
        command: Name of the command.
        summary: What it does.
        configs: Dataclasses whose fields are its options, with their help as metadata.
        positional: Further arguments without a flag, name -> help; a name that ends in `+` takes
            one value or more.
        file: Help of `--config FILE`, for a command that takes a file of its own kind.
    """

    def __init__(
        self,
        command: str,
        summary: str,
        configs: Sequence[type],
        positional: dict[str, str] | None = None,
        file: str | None = None,
    ) -> None:
        words = [name.rstrip("+").upper() for name in positional or ()]
        super().__init__(
            configs,
            prog=f"mixdpo {command}",
            usage=" ".join(["%(prog)s", *words, "[options]"]),
            description=summary,
            formatter_class=_TidyHelp,
            allow_abbrev=False,
        )
        self._has_positional = bool(positional)
        for name, text in (positional or {}).items():
            count = "+" if name.endswith("+") else None
            self.add_argument(name.rstrip("+"), nargs=count, metavar=words.pop(0), help=text)
        if file is not None:
            self.add_argument("--config", metavar="FILE", required=True, help=file)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `ConfigError`."""
        raise ConfigError(f"{message}; see {self.prog} --help")

    def read(self, words: Sequence[str]) -> Any:
        """The dataclasses, and after them a namespace of what has no dataclass, if there is any.

        Raises:
            ConfigError: Naming the option that is wrong.
        """
        *found, unknown = self.parse_args_into_dataclasses(
            self._close_switches(words), return_remaining_strings=True, look_for_args_file=False
        )
        self.refuse(unknown)
        return found

    def options(self) -> dict[str, argparse.Action]:
        """Key -> what the parser knows of it."""
        return {a.dest: a for a in self._actions if a.option_strings and a.dest != "help"}

    def refuse(self, unknown: Sequence[str]) -> None:
        """Refuse words that no option takes.

        Raises:
            ConfigError: Naming the first of them.
        """
        for word in unknown:
            name = word.partition("=")[0]
            if not word.startswith("-"):
                raise ConfigError(f"command line: unexpected '{word}'; see {self.prog} --help")
            hint = did_you_mean(name.lstrip("-"), self.options())
            raise ConfigError(f"command line: unknown option '{name}'{hint}")

    def _close_switches(self, words: Sequence[str]) -> list[str]:
        """`--overwrite FILE` is a switch and a file, where TRL takes the file for its value."""
        if not self._has_positional:
            return list(words)
        switches = {s for a in self._actions if a.const is True for s in a.option_strings}
        return [f"{word}=true" if word in switches else word for word in words]
