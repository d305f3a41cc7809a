"""Figures of ratings, and of the judges behind them."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mixdpo_pyro.progress import abridged
from mixdpo_pyro.reporting.figures.style import HELD_OUT, PRIOR, SMALL, TRUTH, literal, make_figure

__all__ = ["plot_judges", "plot_ratings"]

_MAX_ITEMS = 40


def plot_ratings(ratings: pd.DataFrame) -> Figure:
    """Ratings in logits with 90% intervals, the best on top, at most forty.

    Args:
        ratings: Columns `item`, `rating`, `q05`, `q95`, sorted.
    """
    shown = ratings.head(_MAX_ITEMS)
    rows = np.arange(len(shown))[::-1]
    figure, axes = make_figure(height=1.2 + 0.22 * len(shown))
    axes.hlines(rows, shown["q05"], shown["q95"], color=HELD_OUT, linewidth=3)
    axes.plot(shown["rating"], rows, "o", color=TRUTH, markersize=4)
    axes.axvline(0, color=PRIOR, linewidth=1)
    axes.set(
        yticks=rows, yticklabels=[literal(abridged(item)) for item in shown["item"]],
        ylim=(-0.7, len(rows) - 0.3), xlabel="rating in logits, 90% interval",
    )  # fmt: skip
    axes.tick_params(axis="y", labelsize=SMALL)
    return figure


def plot_judges(judges: pd.DataFrame) -> Figure:
    """Each judge's strength over their bias to the left.

    Args:
        judges: Columns `strength`, `side_bias`, `votes`.
    """
    figure, axes = make_figure(height=3.4)
    size = 8 + 40 * np.sqrt(judges["votes"] / judges["votes"].max())
    axes.scatter(judges["side_bias"], judges["strength"], s=size, color=HELD_OUT, alpha=0.5)
    axes.axvline(0, color=PRIOR, linewidth=1)
    axes.axhline(1, color=PRIOR, linewidth=1)
    axes.set(yscale="log", xlabel="bias to the left, logits", ylabel="strength, 1 is average")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:.1g}")
    axes.tick_params(axis="y", which="minor", labelsize=SMALL)
    return figure
