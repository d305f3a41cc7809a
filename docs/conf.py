"""Sphinx configuration: `sphinx-build -W docs docs/_build/html`."""

import argparse
import importlib.metadata
import inspect
import os
import re
from pathlib import Path
from typing import Any

from mixdpo_pyro.cli.commands import COMMANDS

project = "mixdpo-pyro"
author = "the mixdpo-pyro developers"
release = importlib.metadata.version("mixdpo-pyro")
extensions = [
    "myst_nb",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "api/modules.rst"]
html_theme = "furo"
myst_enable_extensions = ["dollarmath", "substitution"]
myst_heading_anchors = 2
nb_execution_mode = "off"
# A reference to a public name of this package must be found; other libraries are not looked up.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!mixdpo_pyro\.).*|.*\._.*"),
    ("py:class", r"mixdpo_pyro\.reporting\.records\.Value"),  # a type variable
]

# One page per folder, generated at every build; a new module needs no line here. A name is
# documented where it is defined, not where a package hands it on.
os.environ["SPHINX_APIDOC_OPTIONS"] = "members,show-inheritance,ignore-module-all"
apidoc_modules = [{"path": "../mixdpo_pyro", "destination": "api"}]
apidoc_follow_links = True
apidoc_module_first = True
autodoc_member_order = "bysource"
napoleon_use_ivar = True  # autodoc already lists the attributes that a class annotates


def public_names(package: str) -> str:
    """List what a package exports; each name links to the page of its module."""
    face = importlib.import_module(package)
    return "\n".join(public_name(name, getattr(face, name)) for name in sorted(face.__all__))


def public_name(name: str, value: object) -> str:
    """Name and first line of the documentation; a constant has neither module nor text."""
    if not hasattr(value, "__qualname__"):
        return f"- `{name}`"
    first_line = (inspect.getdoc(value) or "").partition("\n")[0]
    summary = re.sub(r":(\w+):`", r"{\1}`", first_line)  # a role as Markdown writes it
    return f"- {{py:obj}}`{name} <{value.__module__}.{name}>`: {summary}"


myst_substitutions = {
    "application_names": public_names("mixdpo_pyro"),
    "inference_names": public_names("mixdpo_pyro.inference"),
    "models_names": public_names("mixdpo_pyro.models"),
}


# One page of all commands, from their parsers, generated at every build.


def write_commands(app: Any) -> None:
    """Write `api/commands.md`."""
    page = Path(app.srcdir) / "api" / "commands.md"
    page.parent.mkdir(exist_ok=True)
    more = "`--verbose` shows bars and warnings of libraries, `--debug` tracebacks too."
    parts = [f"# Commands\n\n{more}"]
    parts += [describe_command(name) for name in COMMANDS]
    page.write_text("\n\n".join(parts) + "\n")


def describe_command(name: str) -> str:
    """Heading, usage and tables of options; of TRL's own options there is a link."""
    command = COMMANDS[name]
    parser = command.parser()
    lines = [f"## mixdpo {name}", "", f"{command.summary[0].upper()}{command.summary[1:]}."]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.dest not in ("help", "help_all")]
        if group.title == "training, by TRL":
            lines += ["", "All options of TRL's `DPOConfig` besides: `mixdpo train --help_all`."]
        elif actions:
            lines += ["", "| | default | |", "| --- | --- | --- |", *map(option_row, actions)]
    return "\n".join(lines)


def option_row(action: argparse.Action) -> str:
    """A row of the table: the first spelling and the short one, default, help."""
    names = [action.option_strings[0]] if action.option_strings else [action.dest.upper()]
    names += [o for o in action.option_strings[1:] if not o.startswith("--")]
    default = action.default
    if action.required or not action.option_strings:
        shown = "required"
    else:
        shown = "" if default in (None, argparse.SUPPRESS) else f"`{default}`"
    text = " ".join((action.help or "").split()).replace("%%", "%").partition(" (default:")[0]
    choices = f" One of {', '.join(map(str, action.choices))}." if action.choices else ""
    cells = (f"`{', '.join(names)}`", shown, text + choices)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_commands)
