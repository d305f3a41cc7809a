"""Figures of annotators' strengths, and of how well those of the same annotator agree."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.progress import abridged
from mixdpo_pyro.reporting.figures.style import (
    HELD_OUT,
    PRIOR,
    SMALL,
    TRUTH,
    literal,
    make_figure,
)

__all__ = [
    "check_shown", "plot_annotator_intervals", "plot_annotators", "plot_correlations",
    "who_is_shown",
]  # fmt: skip

_MAX_ANNOTATORS = 40


def plot_annotators(
    strengths: np.ndarray,
    labels: Sequence[str],
    truth: dict[str, float] | None = None,
    show_annotators: Sequence[str] = (),
) -> Figure:
    """Strength of each annotator relative to the mean over annotators, with 90% interval.

    Args:
        strengths: Posterior draws, shape `(samples, annotators)`.
        labels: Annotator labels.
        truth: True strengths by label; shown relative to the mean over all of them.
        show_annotators: Labels of those to show; default, all, and of more than forty a selection
            that is evenly spread from weakest to strongest. The mean is that of all.

    Raises:
        ConfigError: If one of those to show is none of the labels.
    """
    relative = strengths / strengths.mean(axis=1, keepdims=True)
    low, middle, high = np.quantile(relative, [0.05, 0.5, 0.95], axis=0)
    return plot_annotator_intervals(low, middle, high, labels, truth, show_annotators)


def plot_annotator_intervals(
    low: np.ndarray,
    middle: np.ndarray,
    high: np.ndarray,
    labels: Sequence[str],
    truth: dict[str, float] | None = None,
    show_annotators: Sequence[str] = (),
) -> Figure:
    """The same from the 5%, 50% and 95% quantiles of relative strengths."""
    check_shown(show_annotators, labels)
    order = np.argsort(middle)
    if show_annotators:
        order = order[np.isin(np.asarray(labels)[order], list(show_annotators))]
    elif len(order) > _MAX_ANNOTATORS:
        order = order[np.linspace(0, len(order) - 1, _MAX_ANNOTATORS).round().astype(int)]
    rows = np.arange(len(order))
    figure, axes = make_figure(height=1.2 + 0.18 * len(order))
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
        yticks=rows, yticklabels=[literal(abridged(labels[i], 24)) for i in order],
        xlabel="strength / mean strength", xlim=(0, None), ylim=(-1, len(rows)),
    )  # fmt: skip
    axes.tick_params(axis="y", labelsize=SMALL)
    axes.legend(frameon=False, loc="lower right")
    return figure


def check_shown(show_annotators: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse a name that no annotator has.

    Raises:
        ConfigError: Naming the first of them.
    """
    known = set(labels)
    for name in show_annotators:
        if name not in known:
            some = f" of {len(known):,}, such as '{abridged(labels[0])}'" if known else ""
            raise ConfigError(f"show_annotators: '{name}' is no annotator{some}")


def who_is_shown(number: int, show_annotators: Sequence[str] = ()) -> str:
    """Which of so many annotators the figures show, as a sentence."""
    if show_annotators:
        return f"{len(set(show_annotators)):,} of {number:,} annotators, those that were named."
    if number <= _MAX_ANNOTATORS:
        return f"All {number:,} annotators."
    return f"{_MAX_ANNOTATORS} of {number:,} annotators, evenly spread from weakest to strongest."


def plot_correlations(values: dict[str, tuple[float, float, float]], half: float = 0.5) -> Figure:
    """Correlation of the strengths of one annotator in two parts of their choices.

    Args:
        values: What the parts are -> the correlation and the ends of its 90% interval.
        half: Above this, strength counts as stable.
    """
    figure, axes = make_figure(height=1.3 + 0.45 * len(values))
    rows = np.arange(len(values))[::-1]
    middle, low, high = np.array(list(values.values())).T
    axes.axvline(half, color=PRIOR, linewidth=1, linestyle="--")
    axes.hlines(rows, low, high, color=HELD_OUT, linewidth=3)
    axes.plot(middle, rows, "o", color=TRUTH, markersize=5)
    axes.set(
        yticks=rows, yticklabels=[literal(abridged(name)) for name in values], xlim=(0, 1),
        ylim=(-0.7, len(rows) - 0.3),
        xlabel="correlation of log strengths of one annotator, 90% interval",
    )  # fmt: skip
    return figure
