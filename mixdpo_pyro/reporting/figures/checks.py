"""Figures of posterior predictive checks."""

import numpy as np
from matplotlib.figure import Figure

from mixdpo_pyro.reporting.figures.style import HELD_OUT, PRIOR, TRUTH, literal, make_figure

__all__ = ["plot_calibration_curve", "plot_separation", "plot_statistic"]


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
    figure, axes = make_figure(width=5.2)
    axes.plot([0, 1], [0, 1], color=PRIOR, linewidth=1)
    axes.fill_between(
        predicted, low, high, color=HELD_OUT, alpha=0.2, linewidth=0,
        label="where a right prediction lies, 90%",
    )  # fmt: skip
    axes.step(predicted, calibrated, color=HELD_OUT, where="mid", label="observed (PAV)")
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
    figure, axes = make_figure(height=2.4)
    # An image of one row: averages of neighbouring pairs where there are more pairs than pixels.
    columns = np.array_split(is_first[order].astype(float), min(len(order), 900))
    share = np.array([part.mean() for part in columns])
    axes.imshow(
        share[None], aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=(0, len(order), 0, 1)
    )
    axes.plot(np.arange(len(order)) + 0.5, probability[order], color=TRUTH, linewidth=1.2)
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
    figure, axes = make_figure(height=2.8)
    axes.hist(replicated, bins=30, color=HELD_OUT, alpha=0.45, label="replicated")
    axes.axvline(observed, color=TRUTH, linestyle="--", label="observed")
    axes.set(xlabel=literal(label), ylabel="replications")
    axes.legend(frameon=False)
    return figure
