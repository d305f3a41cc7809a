"""Sphinx configuration: `sphinx-build docs docs/_build`."""

import importlib.metadata

project = "mixdpo-pyro"
author = "the mixdpo-pyro developers"
release = importlib.metadata.version("mixdpo-pyro")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"
autodoc_member_order = "bysource"
html_theme = "furo"
exclude_patterns = ["_build"]
