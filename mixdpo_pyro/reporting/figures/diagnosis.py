"""Figures of a diagnosis."""

from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from mixdpo_pyro.reporting.figures.posterior import smooth_density
from mixdpo_pyro.reporting.figures.style import (
    HELD_OUT,
    PRIOR,
    SMALL,
    TRAINING,
    TRUTH,
    literal,
    make_figure,
)

__all__ = ["plot_agreement", "plot_cv_by_family", "plot_cv_intervals"]


def plot_agreement(
    margin: np.ndarray, curves: dict[str, tuple[np.ndarray, np.ndarray]], bins: int = 12
) -> Figure:
    """Share of choices that agree with the sign of their margin, by the size of the margin.

    Args:
        margin: Margins, chosen minus rejected, in nats; zeros are dropped.
        curves: Name -> sizes of the margin, and the probability of agreement there.
        bins: Number of bins with equal numbers of pairs.
    """
    margin = margin[margin != 0]
    groups = [g for g in np.array_split(np.argsort(np.abs(margin)), bins) if len(g)]
    size = np.array([np.abs(margin[g]).mean() for g in groups])
    agrees = np.array([(margin[g] > 0).sum() for g in groups])
    count = np.array([len(g) for g in groups])
    # Jeffreys interval of a proportion
    low = stats.beta.ppf(0.05, agrees + 0.5, count - agrees + 0.5)
    high = stats.beta.ppf(0.95, agrees + 0.5, count - agrees + 0.5)
    figure, axes = make_figure()
    axes.vlines(size, low, high, color=TRUTH, alpha=0.6)
    axes.plot(size, agrees / count, "o", color=TRUTH, markersize=4, label="observed, 90%")
    for (name, (x, y)), color in zip(curves.items(), (HELD_OUT, TRAINING), strict=False):
        style = "-" if color == HELD_OUT else "--"
        axes.plot(x, y, color=color, linestyle=style, label=name)
    axes.axhline(0.5, color=PRIOR, linewidth=1)
    axes.set(xlabel="size of the margin (nats)", ylabel="choices that agree with the margin")
    axes.set_xlim(0, 1.1 * float(size.max()))
    axes.legend(frameon=False, loc="lower right")
    return figure


def plot_cv_intervals(intervals: dict[str, tuple[float, float]], small: float = 0.25) -> Figure:
    """The 90% interval of cv in the main fit and with every other explanation allowed for.

    Args:
        intervals: What was allowed for -> 5% and 95% quantiles of cv.
        small: Below this, strengths count as equal.
    """
    figure, axes = make_figure(height=1.1 + 0.38 * len(intervals))
    rows = np.arange(len(intervals))[::-1]
    low, high = np.array(list(intervals.values())).T
    axes.axvspan(0, small, color=PRIOR, alpha=0.15, linewidth=0, label=f"below {small:g}: equal")
    axes.hlines(rows, low, high, color=HELD_OUT, linewidth=3)
    upper = 1.05 * max(float(high.max()), 2 * small)
    axes.set(
        yticks=rows, yticklabels=[literal(fill(name, 24)) for name in intervals],
        xlabel="cv of the strength, 90% interval", xlim=(0, upper), ylim=(-0.7, len(rows) - 0.3),
    )  # fmt: skip
    axes.legend(frameon=False, loc="upper right", fontsize=SMALL)
    return figure


def plot_cv_by_family(draws: dict[str, np.ndarray]) -> Figure:
    """Posterior of cv under each distribution of the strength, beside the half-normal prior.

    Args:
        draws: Family -> posterior draws of cv.
    """
    upper = max(1.0, *(1.1 * float(np.quantile(d, 0.995)) for d in draws.values()))
    grid = np.linspace(0, upper, 400)
    figure, axes = make_figure()
    colors = (HELD_OUT, TRAINING, "#3b7d3b")
    for (name, values), color in zip(draws.items(), colors, strict=False):
        axes.plot(grid, smooth_density(values, grid), color=color, linewidth=1.6, label=name)
    axes.plot(grid, stats.halfnorm.pdf(grid), color=PRIOR, label="prior")
    axes.set(xlabel="cv of the strength (0: one strength for all)", ylabel="density")
    axes.set(xlim=(0, upper), ylim=(0, None))
    axes.legend(frameon=False)
    return figure
