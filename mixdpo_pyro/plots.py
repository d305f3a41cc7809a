"""Figures of a run. Each function returns a matplotlib figure and touches no global state."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

__all__ = [
    "plot_agreement", "plot_annotators", "plot_calibration_curve", "plot_cv_by_law",
    "plot_cv_intervals", "plot_prior_to_posterior", "plot_reliability", "plot_separation",
    "plot_statistic", "plot_strength_law", "plot_training",
]  # fmt: skip

_HELD_OUT, _TRAINING, _TRUTH, _PRIOR = "#2456a6", "#c8691c", "#111111", "#8a8a8a"
_MAX_LAWS = 300
_MAX_MARKERS = 40
_RUN_WIDTH = 5.2  # inches; text stays legible when the page is as wide as a phone
_MAX_ANNOTATORS = 40


def plot_strength_law(
    cv_draws: np.ndarray,
    family: str,
    training_cv: float,
    truth: dict | None = None,
    show_prior: bool = False,
) -> Figure:
    """Density of the strength relative to its mean: posterior median and 90% band.

    Args:
        cv_draws: Posterior draws of cv.
        family: Law of the strength, `lognormal` or `gamma`.
        training_cv: The cv that training learned; 0 for plain DPO.
        truth: Truth of a simulated world, with `family` and `cv`.
        show_prior: Show the pointwise median over the half-normal prior of cv as well.
    """
    relative = np.linspace(0.01, 4, 400)
    laws = np.stack([_relative_density(relative, cv, family) for cv in cv_draws[:_MAX_LAWS]])
    low, middle, high = np.quantile(laws, [0.05, 0.5, 0.95], axis=0)
    figure, axes = _figure(_RUN_WIDTH, 3.6)
    if show_prior:
        prior = stats.halfnorm.ppf((np.arange(_MAX_LAWS) + 0.5) / _MAX_LAWS)
        laws = np.stack([_relative_density(relative, cv, family) for cv in prior])
        density = np.median(laws, axis=0)
        axes.plot(relative, density, color=_PRIOR, linewidth=1.2, label="prior, median")
    axes.fill_between(relative, low, high, color=_HELD_OUT, alpha=0.2, linewidth=0)
    axes.plot(relative, middle, color=_HELD_OUT, label="held-out pairs, with 90% band")
    if training_cv > 0:
        density = _relative_density(relative, training_cv, family)
        axes.plot(relative, density, color=_TRAINING, linestyle=":", label="learned in training")
    if truth is not None and truth["cv"] > 0:
        density = _relative_density(relative, truth["cv"], truth["family"])
        axes.plot(relative, density, color=_TRUTH, linestyle="--", label="truth")
    axes.axvline(1, color=_PRIOR, linewidth=1)
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
    figure = Figure(figsize=(_RUN_WIDTH, 3.4 if prior_median is None else 6.2), dpi=110)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1 if prior_median is None else 2, squeeze=False).ravel()
    _plot_draws(panels[0], draws["cv"], training["cv"], stats.halfnorm(), 2.0)
    if true_cv is not None:
        panels[0].axvline(true_cv, color=_TRUTH, linestyle="--", label="truth")
    panels[0].set_xlabel("cv of the strength (0: plain DPO)")
    if prior_median is not None:
        law = stats.lognorm(0.5, scale=prior_median)
        _plot_draws(panels[1], draws["mean"], training["mean"], law, float(law.ppf(0.99)))
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
    """Histograms of both posteriors from zero, beside the density of the prior."""
    upper = max(upper, *(1.1 * float(np.quantile(d, 0.995)) for d in (draws, training)))
    grid, bins = np.linspace(0, upper, 400), np.linspace(0, upper, 60).tolist()
    axes.hist(draws, bins=bins, density=True, color=_HELD_OUT, alpha=0.45, label="held-out pairs")
    if np.ptp(training) > 0:
        axes.hist(
            training, bins=bins, density=True, color=_TRAINING, histtype="step",
            label="learned in training",
        )  # fmt: skip
    else:
        label = "learned in training (a point)"
        axes.axvline(training[0], color=_TRAINING, linestyle=":", label=label)
    axes.plot(grid, prior.pdf(grid), color=_PRIOR, label="prior")
    axes.set(ylabel="density", xlim=(0, upper))
    _tidy(axes)


def plot_training(
    history: Sequence[dict],
    tail_from: float | None = None,
    cv_interval: tuple[float, float] | None = None,
    loss_label: str = "loss (nats a pair)",
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
    figure = Figure(figsize=(_RUN_WIDTH, 0.5 + 1.5 * len(panels)), layout="constrained", dpi=110)
    rows = figure.subplots(len(panels), sharex=True, squeeze=False).ravel()
    marker = "o" if len(table) <= _MAX_MARKERS else None
    for axes, (name, label) in zip(rows, panels.items(), strict=True):
        axes.plot(
            table["step"], table[name].astype(float), color=_TRAINING, marker=marker, markersize=3
        )
        axes.set_ylabel(label)
        if tail_from is not None:
            axes.axvspan(tail_from, table["step"].max(), color=_PRIOR, alpha=0.12, linewidth=0)
        if name == "strength/cv" and cv_interval is not None:
            axes.axhspan(*cv_interval, color=_HELD_OUT, alpha=0.12, linewidth=0)
        _tidy(axes)
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
    figure, axes = _figure(_RUN_WIDTH, 4.6)
    axes.plot([0, 1], [0, 1], color=_PRIOR, linewidth=1)
    axes.vlines(predicted, low, high, color=_HELD_OUT, alpha=0.5)
    axes.plot(predicted, chosen / count, "o", color=_HELD_OUT)
    axes.set(
        xlabel="predicted probability of the first response", ylabel="observed frequency, 90%",
        xlim=(0, 1), ylim=(0, 1), aspect="equal",
    )  # fmt: skip
    return figure


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
    order = np.argsort(middle)
    if len(order) > _MAX_ANNOTATORS:
        order = order[np.linspace(0, len(order) - 1, _MAX_ANNOTATORS).round().astype(int)]
    rows = np.arange(len(order))
    figure, axes = _figure(_RUN_WIDTH, 1.2 + 0.17 * len(order))
    axes.hlines(rows, low[order], high[order], color=_HELD_OUT, alpha=0.5)
    axes.plot(middle[order], rows, "o", color=_HELD_OUT, markersize=4, label="posterior, 90%")
    if truth is not None:
        mean = np.mean(list(truth.values()))
        axes.plot(
            [truth[labels[i]] / mean for i in order], rows, "x", color=_TRUTH, markersize=4,
            label="truth",
        )  # fmt: skip
    axes.axvline(1, color=_PRIOR, linewidth=1)
    axes.set(
        yticks=rows, yticklabels=[labels[i] for i in order], xlabel="strength / mean strength",
        xlim=(0, None), ylim=(-1, len(rows)),
    )  # fmt: skip
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _relative_density(relative: np.ndarray, cv: float, family: str) -> np.ndarray:
    """Density of strength / mean under a law of mean 1."""
    if family == "gamma":
        return stats.gamma.pdf(relative, cv**-2, scale=cv**2)
    scale = np.sqrt(np.log1p(cv**2))
    return stats.lognorm.pdf(relative, scale, scale=np.exp(-(scale**2) / 2))


def _figure(width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    axes = figure.subplots()
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


# Figures of a diagnosis


def plot_agreement(
    margin: np.ndarray, curves: dict[str, tuple[np.ndarray, np.ndarray]], bins: int = 12
) -> Figure:
    """Share of choices that agree with the sign of their margin, by the size of the margin.

    Args:
        margin: Margins, chosen minus rejected, in nats; zeros are left out.
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
    figure, axes = _figure()
    axes.vlines(size, low, high, color=_TRUTH, alpha=0.6)
    axes.plot(size, agrees / count, "o", color=_TRUTH, markersize=4, label="observed, 90%")
    for (name, (x, y)), color in zip(curves.items(), (_HELD_OUT, _TRAINING), strict=False):
        style = "-" if color == _HELD_OUT else "--"
        axes.plot(x, y, color=color, linestyle=style, label=name)
    axes.axhline(0.5, color=_PRIOR, linewidth=1)
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
    figure, axes = _figure(height=1.1 + 0.38 * len(intervals))
    rows = np.arange(len(intervals))[::-1]
    low, high = np.array(list(intervals.values())).T
    axes.axvspan(0, small, color=_PRIOR, alpha=0.15, linewidth=0, label=f"below {small:g}: equal")
    axes.hlines(rows, low, high, color=_HELD_OUT, linewidth=3)
    upper = 1.05 * max(float(high.max()), 2 * small)
    axes.set(
        yticks=rows, yticklabels=list(intervals), xlabel="cv of the strength, 90% interval",
        xlim=(0, upper), ylim=(-0.7, len(rows) - 0.3),
    )  # fmt: skip
    axes.legend(frameon=False, loc="upper right", fontsize=8)
    return figure


def plot_cv_by_law(draws: dict[str, np.ndarray]) -> Figure:
    """Posterior of cv under each law of the strength, beside the half-normal prior.

    Args:
        draws: Law -> posterior draws of cv.
    """
    upper = max(1.0, *(1.1 * float(np.quantile(d, 0.995)) for d in draws.values()))
    grid, bins = np.linspace(0, upper, 400), np.linspace(0, upper, 80).tolist()
    figure, axes = _figure()
    colors = (_HELD_OUT, _TRAINING, "#3b7d3b")
    for (name, values), color in zip(draws.items(), colors, strict=False):
        axes.hist(
            values, bins=bins, density=True, histtype="step", linewidth=1.6, color=color,
            label=name,
        )  # fmt: skip
    axes.plot(grid, stats.halfnorm.pdf(grid), color=_PRIOR, label="prior")
    axes.set(xlabel="cv of the strength (0: one strength for all)", ylabel="density")
    axes.set_xlim(0, upper)
    axes.legend(frameon=False)
    return figure


def plot_calibration_curve(
    predicted: np.ndarray, calibrated: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Figure:
    """Observed frequency of the first response by predicted probability, isotonic (PAV).

    Args:
        predicted: Predicted probabilities in ascending order.
        calibrated: Isotonic fit to the choices.
        low: Lower edge of the 90% band in which the fit of a right prediction lies.
        high: Upper edge.
    """
    figure, axes = _figure(width=5.2)
    axes.plot([0, 1], [0, 1], color=_PRIOR, linewidth=1)
    axes.fill_between(
        predicted, low, high, color=_HELD_OUT, alpha=0.2, linewidth=0,
        label="where a right prediction lies, 90%",
    )  # fmt: skip
    axes.step(predicted, calibrated, color=_HELD_OUT, where="mid", label="observed (PAV)")
    axes.set(
        xlabel="predicted probability of the first response", ylabel="observed frequency",
        xlim=(0, 1), ylim=(0, 1), aspect="equal",
    )  # fmt: skip
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def plot_separation(probability: np.ndarray, is_first: np.ndarray) -> Figure:
    """Pairs in the order of their predicted probability; dark where the first was chosen.

    Args:
        probability: Predicted probability that the first response is chosen.
        is_first: Whether it was.
    """
    order = np.argsort(probability)
    figure, axes = _figure(height=2.4)
    # An image of one row: averages of neighbouring pairs where there are more pairs than pixels.
    columns = np.array_split(is_first[order].astype(float), min(len(order), 900))
    share = np.array([part.mean() for part in columns])
    axes.imshow(
        share[None], aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=(0, len(order), 0, 1)
    )
    axes.plot(np.arange(len(order)) + 0.5, probability[order], color=_TRUTH, linewidth=1.2)
    axes.set(
        xlabel="pairs, by predicted probability of the first response", ylabel="probability",
        xlim=(0, len(order)), ylim=(0, 1),
    )  # fmt: skip
    return figure


def plot_statistic(replicated: np.ndarray, observed: float, label: str) -> Figure:
    """A statistic of replicated choices, and of the observed ones.

    Args:
        replicated: Its values in posterior predictive replications.
        observed: Its value in the data.
        label: What it is.
    """
    figure, axes = _figure(height=2.8)
    axes.hist(replicated, bins=30, color=_HELD_OUT, alpha=0.45, label="replicated")
    axes.axvline(observed, color=_TRUTH, linestyle="--", label="observed")
    axes.set(xlabel=label, ylabel="replications")
    axes.legend(frameon=False)
    return figure
