"""The parser of every command: options are fields of dataclasses, errors are one line."""

import argparse
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.workflows.run_config import did_you_mean

__all__ = ["CommandParser"]

_BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), False),
}


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


class CommandParser(argparse.ArgumentParser):
    """Parser of one command; options are dataclass fields, taken with `_` and with `-`.

    It makes of a dataclass what `trl.TrlParser` makes of it, and needs neither trl nor
    transformers.

    Args:
        command: Name of the command.
        summary: What it does.
        configs: Dataclasses whose fields are its options, with their help as metadata.
        positional: Further arguments without a flag, name -> help; a name that ends in `+` takes
            one value or more, one that ends in `?` may be left away.
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
        names = {name: name.rstrip("+?").upper() for name in positional or ()}
        words = [f"[{word}]" if name.endswith("?") else word for name, word in names.items()]
        super().__init__(
            prog=f"mixdpo {command}",
            usage=" ".join(["%(prog)s", *words, "[options]"]),
            description=summary,
            formatter_class=_TidyHelp,
            allow_abbrev=False,
        )
        self._configs = tuple(configs)
        for config in configs:
            self._add_options(config)
        self._has_positional = bool(positional)
        for name, text in (positional or {}).items():
            count = name[-1] if name[-1] in "+?" else None
            self.add_argument(name.rstrip("+?"), nargs=count, metavar=names[name], help=text)
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
        # Intermixed: an argument that may be left away else counts as left away behind an option.
        namespace, unknown = self.parse_known_intermixed_args(self._close_switches(words))
        self.refuse(unknown)
        values = vars(namespace)
        found: list[Any] = [
            config(**{each.name: values.pop(each.name) for each in fields(config) if each.init})
            for config in self._configs
        ]
        return [*found, namespace] if values else found

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

    def _add_options(self, config: type) -> None:
        title = getattr(config, "_argument_group_name", None)
        group = self.add_argument_group(title) if title else self
        kinds = get_type_hints(config)
        for each in fields(config):
            if each.init:
                _add_option(group, each, kinds[each.name])

    def _close_switches(self, words: Sequence[str]) -> list[str]:
        """`--overwrite FILE` is a switch and a file, not a switch with a value."""
        if not self._has_positional:
            return list(words)
        switches = {s for a in self._actions if a.const is True for s in a.option_strings}
        return [f"{word}=true" if word in switches else word for word in words]


def _add_option(group: argparse._ActionsContainer, option: Field, kind: Any) -> None:
    """Add what a field is on the command line; its metadata are arguments of `add_argument`."""
    metadata = dict(option.metadata)
    aliases = metadata.pop("aliases", ())
    aliases = [aliases] if isinstance(aliases, str) else aliases
    default = option.default
    if option.default_factory is not MISSING:
        default = option.default_factory()
    known: dict[str, Any] = {"required": True} if default is MISSING else {"default": default}
    known |= _reading(kind, default) | metadata
    group.add_argument(*_flags(option.name), *aliases, **known)
    if default is True:
        flags, text = _flags(f"no_{option.name}"), metadata.get("help")
        group.add_argument(
            *flags, action="store_false", dest=option.name, default=False, help=text
        )


def _flags(name: str) -> list[str]:
    return [f"--{flag}" for flag in dict.fromkeys([name, name.replace("_", "-")])]


def _reading(kind: Any, default: Any) -> dict[str, Any]:
    """How the words of an option become a value of its type."""
    is_union = get_origin(kind) in (Union, types.UnionType)
    members = [k for k in (get_args(kind) if is_union else (kind,)) if k is not types.NoneType]
    if bool in members:
        known = {} if default is None else {"nargs": "?", "const": True}
        return {"type": _to_bool if members == [bool] else _to_bool_or_text, **known}
    if str in members:
        return {"type": str}
    (member,) = members
    if get_origin(member) is list:
        (element,) = get_args(member)
        return {"type": element if element in (int, float) else str, "nargs": "+"}
    if get_origin(member) is Literal:
        choices = {str(choice): choice for choice in get_args(member)}
        return {"type": lambda word: choices.get(word, word), "choices": get_args(member)}
    read = get_origin(member) or member
    return {"type": _or_none(read) if is_union else read}


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Read `none` too, of an option that may be None and is no text."""

    def read_or_none(word: str) -> Any:
        return None if word.lower() in ("none", "null") else read(word)

    read_or_none.__name__ = read.__name__  # argparse names it: invalid int value
    return read_or_none


def _to_bool_or_text(word: str) -> bool | str:
    return _BOOLEANS.get(word.lower(), word)


def _to_bool(word: str) -> bool:
    try:
        return _BOOLEANS[word.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected true or false, got '{word}'") from None
