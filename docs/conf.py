"""Sphinx configuration: `sphinx-build -W docs docs/_build/html`."""

import importlib.metadata
import inspect
import os
import re

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
