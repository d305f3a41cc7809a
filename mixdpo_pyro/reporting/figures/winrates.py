"""Figure of win rates and rewards over the distance to the reference."""

import pandas as pd
from matplotlib.figure import Figure

from mixdpo_pyro.reporting.figures.style import PRIOR, literal, make_figure

__all__ = ["plot_frontier"]

_COLOURS = ("#1f55a5", "#c4532d", "#3a8a4d", "#7d4ba0", "#8c7a14", "#444444")


def plot_frontier(runs: pd.DataFrame, target: float | None) -> Figure:
    """Win rate against the reference over the KL to it, a colour an arm, a line a seed.

    Args:
        runs: Columns `arm`, `seed`, `kl`, `win_rate`, `win_rate_low`, `win_rate_high`.
        target: KL at which arms are compared, or None.
    """
    figure, axes = make_figure(height=3.8)
    for k, (arm, members) in enumerate(runs.groupby("arm", sort=False)):
        colour = _COLOURS[k % len(_COLOURS)]
        for number, (_, points) in enumerate(members.groupby("seed")):
            points = points.sort_values("kl")
            label = literal(str(arm)) if number == 0 else None
            axes.plot(points["kl"], points["win_rate"], "o-", color=colour, label=label, alpha=0.8)
            axes.vlines(
                points["kl"], points["win_rate_low"], points["win_rate_high"], color=colour,
                alpha=0.4,
            )  # fmt: skip
    if target is not None:
        axes.axvline(target, color=PRIOR, linewidth=1, linestyle="--")
    axes.axhline(50, color=PRIOR, linewidth=1)
    axes.set(
        xlabel="KL to the reference, nats per response", ylabel="win rate against it, %",
        xlim=(0, None),
    )  # fmt: skip
    axes.legend(frameon=False)
    return figure
