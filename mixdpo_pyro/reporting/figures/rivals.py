"""Figure of rival models beside one strength."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mixdpo_pyro.reporting.figures.style import (
    HELD_OUT,
    PRIOR,
    TRAINING,
    TRUTH,
    literal,
    make_figure,
)

__all__ = ["plot_gains"]


def plot_gains(
    models: Sequence[str],
    gains: Sequence[tuple[float, float, float]],
    use_embeddings: Sequence[bool],
) -> Figure:
    """Gain of each model over one strength, in nats per held-out choice.

    Args:
        models: Their names, from top to bottom.
        gains: The gain and the ends of its 90% interval.
        use_embeddings: Whether a model sees embeddings beside margins.
    """
    middle, low, high = np.array(gains, dtype=float).reshape(-1, 3).T
    sees = np.array(use_embeddings, dtype=bool)
    rows = np.arange(len(models))[::-1]
    figure, axes = make_figure(height=1.3 + 0.3 * len(models))
    axes.axvline(0, color=PRIOR, linewidth=1, linestyle="--")
    for part, colour, label in (
        (~sees, HELD_OUT, "margins"),
        (sees, TRAINING, "margins and embeddings"),
    ):
        if part.any():
            axes.hlines(rows[part], low[part], high[part], color=colour, linewidth=3, label=label)
    axes.plot(middle, rows, "o", color=TRUTH, markersize=4)
    axes.set(
        yticks=rows, yticklabels=[literal(name) for name in models],
        ylim=(-0.7, len(rows) - 0.3),
        xlabel="gain over one strength, nats per held-out choice, 90% interval",
    )  # fmt: skip
    if sees.any():
        axes.legend(frameon=False, loc="best")
    return figure
