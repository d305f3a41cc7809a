"""The style of all figures."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "HELD_OUT", "PRIOR", "SMALL", "TRAINING", "TRUTH", "WIDTH", "literal", "make_figure", "tidy",
]  # fmt: skip

HELD_OUT, TRAINING, TRUTH, PRIOR = "#2456a6", "#c8691c", "#111111", "#8a8a8a"

WIDTH = 4.8
"""Inches; on a phone, 358 pixels wide, text of 10 points is then 10 pixels high."""

SMALL = 8.5
"""Points of the smallest text."""


def make_figure(width: float = WIDTH, height: float = 3.4) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    axes = figure.subplots()
    tidy(axes)
    return figure, axes


def literal(text: str) -> str:
    """A text that matplotlib shows letter by letter: no formula between two dollars."""
    return text.replace("$", r"\$")


def tidy(axes: Axes) -> None:
    """Remove the frame's upper and right side."""
    axes.spines[["top", "right"]].set_visible(False)
