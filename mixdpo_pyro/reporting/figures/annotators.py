"""The figure of annotators' strengths."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mixdpo_pyro.progress import abridged
from mixdpo_pyro.reporting.figures.style import (
    HELD_OUT,
    PRIOR,
    RUN_WIDTH,
    TRUTH,
    literal,
    make_figure,
)

__all__ = ["plot_annotator_intervals", "plot_annotators"]

_MAX_ANNOTATORS = 40


def plot_annotators(
    strengths: np.ndarray, labels: Sequence[str], truth: dict[str, float] | None = None
) -> Figure:
    """Strength of each annotator relative to the mean over annotators, with 90% interval.

    Args:
        strengths: Posterior draws, shape `(samples, annotators)`.
        labels: Annotator labels.
        truth: True strengths by label; shown relative to the mean over all of them.
    """
    relative = strengths / strengths.mean(axis=1, keepdims=True)
    low, middle, high = np.quantile(relative, [0.05, 0.5, 0.95], axis=0)
    return plot_annotator_intervals(low, middle, high, labels, truth)


def plot_annotator_intervals(
    low: np.ndarray,
    middle: np.ndarray,
    high: np.ndarray,
    labels: Sequence[str],
    truth: dict[str, float] | None = None,
) -> Figure:
    """The same from the 5%, 50% and 95% quantiles of relative strengths."""
    order = np.argsort(middle)
    if len(order) > _MAX_ANNOTATORS:
        order = order[np.linspace(0, len(order) - 1, _MAX_ANNOTATORS).round().astype(int)]
    rows = np.arange(len(order))
    figure, axes = make_figure(RUN_WIDTH, 1.2 + 0.17 * len(order))
    axes.hlines(rows, low[order], high[order], color=HELD_OUT, alpha=0.5)
    axes.plot(middle[order], rows, "o", color=HELD_OUT, markersize=4, label="posterior, 90%")
    if truth is not None:
        mean = np.mean(list(truth.values()))
        axes.plot(
            [truth[labels[i]] / mean for i in order], rows, "x", color=TRUTH, markersize=4,
            label="truth",
        )  # fmt: skip
    axes.axvline(1, color=PRIOR, linewidth=1)
    axes.set(
        yticks=rows, yticklabels=[literal(abridged(labels[i])) for i in order],
        xlabel="strength / mean strength", xlim=(0, None), ylim=(-1, len(rows)),
    )  # fmt: skip
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(frameon=False, loc="lower right")
    return figure
