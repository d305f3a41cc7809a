"""Figures of posterior predictive checks."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mixdpo_pyro.reporting.figures.style import HELD_OUT, PRIOR, SMALL, TRUTH, literal, make_figure

__all__ = ["plot_calibration_curve", "plot_separation", "plot_shares", "plot_statistic"]

_MAX_POINTS = 2_000


def plot_calibration_curve(
    predicted: np.ndarray,
    calibrated: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    event: str = "the first response",
) -> Figure:
    """Observed frequency of an event by its predicted probability, isotonic (PAV).

    Args:
        predicted: Predicted probabilities in ascending order.
        calibrated: Isotonic fit to the choices.
        low: Lower edge of the 90% band in which the fit of a right prediction lies.
        high: Upper edge.
        event: What is predicted of each choice, such as "the first response".
    """
    predicted, calibrated, low, high = (
        value[_spread_rows(len(value))] for value in (predicted, calibrated, low, high)
    )
    figure, axes = make_figure(height=4.4)
    axes.plot([0, 1], [0, 1], color=PRIOR, linewidth=1)
    axes.fill_between(
        predicted, low, high, color=HELD_OUT, alpha=0.2, linewidth=0,
        label="where a right prediction lies, 90%",
    )  # fmt: skip
    axes.step(predicted, calibrated, color=HELD_OUT, where="mid", label="observed (PAV)")
    axes.set(
        xlabel=f"predicted probability of {event}", ylabel="observed frequency",
        xlim=(0, 1), ylim=(0, 1), aspect="equal",
    )  # fmt: skip
    axes.legend(frameon=False, loc="upper left", fontsize=SMALL)
    return figure


def plot_separation(
    probability: np.ndarray, happened: np.ndarray, event: str = "the first response"
) -> Figure:
    """Choices in the order of a predicted probability; dark where the event happened.

    Args:
        probability: Predicted probability of an event of each choice.
        happened: Whether it happened.
        event: What is predicted.
    """
    order = np.argsort(probability)
    figure, axes = make_figure(height=2.4)
    # An image of one row: averages of neighbours where there are more choices than pixels.
    columns = np.array_split(happened[order].astype(float), min(len(order), 900))
    share = np.array([part.mean() for part in columns])
    axes.imshow(
        share[None], aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=(0, len(order), 0, 1)
    )
    rows = _spread_rows(len(order))
    axes.plot(rows + 0.5, probability[order][rows], color=TRUTH, linewidth=1.2)
    axes.set(
        xlabel=f"choices, by predicted probability of {event}", ylabel="probability",
        xlim=(0, len(order)), ylim=(0, 1),
    )  # fmt: skip
    return figure


def plot_shares(shares: pd.DataFrame) -> Figure:
    """Share of each outcome by the size of the margin: bands of 90% predictions, dots observed.

    Args:
        shares: Columns `margin`, `outcome`, `observed`, `q05`, `q95`; a row per bin and outcome.
    """
    figure, axes = make_figure()
    for k, (name, rows) in enumerate(shares.groupby("outcome", sort=False)):
        color = f"C{k % 10}"
        axes.fill_between(rows["margin"], rows["q05"], rows["q95"], color=color, alpha=0.25)
        axes.plot(rows["margin"], rows["observed"], "o", color=color, markersize=3, label=name)
    axes.set(xlabel="size of the margin, nats, mean of bin", ylabel="share", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=SMALL, title="band: predicted, 90%", title_fontsize=SMALL)
    return figure


def plot_statistic(replicated: np.ndarray, observed: float, label: str) -> Figure:
    """A statistic of replicated choices, and of the observed ones.

    Args:
        replicated: Its values in posterior predictive replications.
        observed: Its value in the data.
        label: What it is.
    """
    figure, axes = make_figure(height=2.8)
    axes.hist(replicated, bins=30, color=HELD_OUT, alpha=0.45, label="replicated")
    axes.axvline(observed, color=TRUTH, linestyle="--", label="observed")
    axes.set(xlabel=literal(label), ylabel="replications")
    axes.legend(frameon=False)
    return figure


def _spread_rows(number: int) -> np.ndarray:
    """Rows of a curve, evenly spread and no more than a figure can show."""
    return np.unique(np.linspace(0, number - 1, min(number, _MAX_POINTS)).round().astype(int))
