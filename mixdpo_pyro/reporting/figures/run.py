"""Figures of a run. Each function returns a matplotlib figure and touches no global state."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from mixdpo_pyro.data.simulation import Truth
from mixdpo_pyro.reporting.figures.posterior import smooth_density
from mixdpo_pyro.reporting.figures.style import (
    HELD_OUT,
    PRIOR,
    TRAINING,
    TRUTH,
    WIDTH,
    make_figure,
    tidy,
)

__all__ = [
    "plot_prior_to_posterior",
    "plot_reliability",
    "plot_strength_distribution",
    "plot_training",
]

_MAX_CURVES = 300

_MAX_MARKERS = 40


def plot_strength_distribution(
    cv_draws: np.ndarray,
    family: str,
    training_cv: float,
    truth: Truth | None = None,
    show_prior: bool = False,
) -> Figure:
    """Density of the strength relative to its mean: posterior median and 90% band.

    Args:
        cv_draws: Posterior draws of cv.
        family: Family of the strength, `lognormal` or `gamma`.
        training_cv: The cv that training learned; 0 for plain DPO.
        truth: Truth of a simulated world.
        show_prior: Show the pointwise median over the half-normal prior of cv as well.
    """
    relative = np.linspace(0.01, 4, 400)
    densities = np.stack(
        [_relative_density(relative, cv, family) for cv in cv_draws[:_MAX_CURVES]]
    )
    low, middle, high = np.quantile(densities, [0.05, 0.5, 0.95], axis=0)
    figure, axes = make_figure(WIDTH, 3.6)
    if show_prior:
        prior = stats.halfnorm.ppf((np.arange(_MAX_CURVES) + 0.5) / _MAX_CURVES)
        densities = np.stack([_relative_density(relative, cv, family) for cv in prior])
        density = np.median(densities, axis=0)
        axes.plot(relative, density, color=PRIOR, linewidth=1.2, label="prior, median")
    axes.fill_between(relative, low, high, color=HELD_OUT, alpha=0.2, linewidth=0)
    axes.plot(relative, middle, color=HELD_OUT, label="held-out pairs, with 90% band")
    if training_cv > 0:
        density = _relative_density(relative, training_cv, family)
        axes.plot(relative, density, color=TRAINING, linestyle=":", label="learned in training")
    if truth is not None and truth.cv > 0:
        density = _relative_density(relative, truth.cv, truth.family)
        axes.plot(relative, density, color=TRUTH, linestyle="--", label="truth")
    axes.axvline(1, color=PRIOR, linewidth=1)
    axes.set(
        xlabel="strength / mean strength (plain DPO: all at 1)", ylabel="density",
        xlim=(0, 4), ylim=(0, min(1.3 * middle.max(), 8)),
    )  # fmt: skip
    axes.legend(frameon=False)
    return figure


def plot_prior_to_posterior(
    draws: dict[str, np.ndarray],
    training: dict[str, np.ndarray],
    contraction: dict[str, float],
    prior_median: float | None,
    true_cv: float | None = None,
) -> Figure:
    """Prior and posterior of cv and of the mean, and how much of the prior's variance is gone.

    Args:
        draws: `cv` and `mean` given the held-out pairs.
        training: The same from the guide that training learned; all equal where it is a point.
        contraction: Of `cv` and, where the mean has a prior, of `log_mean`.
        prior_median: Median of the log-normal prior of the mean, or None for a fixed mean, which
            is not shown.
        true_cv: True cv of a simulated world.
    """
    figure = Figure(figsize=(WIDTH, 3.4 if prior_median is None else 6.2), dpi=110)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1 if prior_median is None else 2, squeeze=False).ravel()
    _plot_draws(panels[0], draws["cv"], training["cv"], stats.halfnorm(), 2.0)
    if true_cv is not None:
        panels[0].axvline(true_cv, color=TRUTH, linestyle="--", label="truth")
    panels[0].set_xlabel("cv of the strength (0: plain DPO)")
    if prior_median is not None:
        prior = stats.lognorm(0.5, scale=prior_median)
        _plot_draws(panels[1], draws["mean"], training["mean"], prior, float(prior.ppf(0.99)))
        panels[1].set_xlabel("mean strength")
    for axes, name in zip(panels, ("cv", "log_mean"), strict=False):
        if np.isfinite(contraction.get(name, np.nan)):
            what = "variance" if name == "cv" else "variance (of the log)"
            cut = max(contraction[name], 0)
            axes.set_title(f"{what} narrowed by {cut:.0%}", fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=9)
    return figure


def _plot_draws(
    axes: Axes, draws: np.ndarray, training: np.ndarray, prior: Any, upper: float
) -> None:
    """Densities of both posteriors from zero, beside that of the prior."""
    upper = max(upper, *(1.1 * float(np.quantile(d, 0.995)) for d in (draws, training)))
    grid = np.linspace(0, upper, 400)
    density = smooth_density(draws, grid)
    axes.fill_between(grid, density, color=HELD_OUT, alpha=0.25, linewidth=0)
    axes.plot(grid, density, color=HELD_OUT, label="held-out pairs")
    if np.ptp(training) > 0:
        density = smooth_density(training, grid)
        axes.plot(grid, density, color=TRAINING, label="learned in training")
    else:
        label = "learned in training (a point)"
        axes.axvline(training[0], color=TRAINING, linestyle=":", label=label)
    axes.plot(grid, prior.pdf(grid), color=PRIOR, label="prior")
    axes.set(ylabel="density", xlim=(0, upper), ylim=(0, None))
    tidy(axes)


def plot_training(
    history: Sequence[dict],
    tail_from: float | None = None,
    cv_interval: tuple[float, float] | None = None,
    loss_label: str = "loss (nats per pair)",
) -> Figure:
    """Loss, accuracy and strength over the steps of training; those that were logged.

    Args:
        history: The Trainer's log history.
        tail_from: First step of the part that convergence is judged by, which is shaded.
        cv_interval: 90% interval of cv under the guide at the end.
        loss_label: What the loss is.
    """
    table = pd.DataFrame([entry for entry in history if "loss" in entry])
    panels = {
        "loss": loss_label,
        "rewards/accuracies": "accuracy",
        "strength/mean": "mean strength",
        "strength/cv": "cv of strength",
    }
    if "strength/cv" in table and not (table["strength/cv"].astype(float) != 0).any():
        panels = {k: v for k, v in panels.items() if not k.startswith("strength/")}  # plain DPO
    panels = {k: v for k, v in panels.items() if k in table}
    figure = Figure(figsize=(WIDTH, 0.5 + 1.5 * len(panels)), layout="constrained", dpi=110)
    rows = figure.subplots(len(panels), sharex=True, squeeze=False).ravel()
    marker = "o" if len(table) <= _MAX_MARKERS else None
    for axes, (name, label) in zip(rows, panels.items(), strict=True):
        axes.plot(
            table["step"], table[name].astype(float), color=TRAINING, marker=marker, markersize=3
        )
        axes.set_ylabel(label)
        if tail_from is not None:
            axes.axvspan(tail_from, table["step"].max(), color=PRIOR, alpha=0.12, linewidth=0)
        if name == "strength/cv" and cv_interval is not None:
            axes.axhspan(*cv_interval, color=HELD_OUT, alpha=0.12, linewidth=0)
        tidy(axes)
    rows[-1].set_xlabel("step")
    return figure


def plot_reliability(probability: np.ndarray, is_first: np.ndarray, bins: int = 10) -> Figure:
    """Predicted against observed choice of the first response, pairs in random order.

    Args:
        probability: Predicted probability that the first response of the pair is chosen.
        is_first: Whether it was.
        bins: Number of bins with equal numbers of pairs.
    """
    order = np.argsort(probability)
    groups = [g for g in np.array_split(order, bins) if len(g)]
    predicted = np.array([probability[g].mean() for g in groups])
    chosen = np.array([is_first[g].sum() for g in groups])
    count = np.array([len(g) for g in groups])
    # Jeffreys interval of a proportion
    low = stats.beta.ppf(0.05, chosen + 0.5, count - chosen + 0.5)
    high = stats.beta.ppf(0.95, chosen + 0.5, count - chosen + 0.5)
    figure, axes = make_figure(WIDTH, 4.6)
    axes.plot([0, 1], [0, 1], color=PRIOR, linewidth=1)
    axes.vlines(predicted, low, high, color=HELD_OUT, alpha=0.5)
    axes.plot(predicted, chosen / count, "o", color=HELD_OUT)
    axes.set(
        xlabel="predicted probability of the first response", ylabel="observed frequency, 90%",
        xlim=(0, 1), ylim=(0, 1), aspect="equal",
    )  # fmt: skip
    return figure


def _relative_density(relative: np.ndarray, cv: float, family: str) -> np.ndarray:
    """Density of strength / mean under a distribution of mean 1."""
    if family == "gamma":
        return stats.gamma.pdf(relative, cv**-2, scale=cv**2)
    scale = np.sqrt(np.log1p(cv**2))
    return stats.lognorm.pdf(relative, scale, scale=np.exp(-(scale**2) / 2))
