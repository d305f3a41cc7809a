"""Densities of posterior draws, and the figure of the posterior of cv."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy import stats

from mixdpo_pyro.inference.verdict import ROPE
from mixdpo_pyro.reporting.figures.style import HELD_OUT, PRIOR, TRUTH, make_figure

__all__ = ["plot_cv", "smooth_density"]

_MAX_CENTRES = 1_000
"""Kernels of a density; of more draws, their quantiles stand for them."""


def smooth_density(
    draws: Float[np.ndarray, " draws"], grid: Float[np.ndarray, " points"]
) -> Float[np.ndarray, " points"]:
    r"""Density of positive draws: normal kernels, reflected at zero.

    .. math:: \hat f(x) = \frac{1}{n h} \sum_i \phi\big(\tfrac{x - x_i}{h}\big)
              + \phi\big(\tfrac{x + x_i}{h}\big), \qquad
              h = 0.9\, \min(s, \text{IQR} / 1.34)\, n^{-1/5}

    with :math:`n` at most 1,000. Without the reflection half of the mass of draws near zero would
    lie below it.

    Args:
        draws: Draws, zero or more, not all equal.
        grid: Where the density is wanted, zero or more.

    References:
        | Density Estimation for Statistics and Data Analysis (Silverman, 1986), 3.4.2
    """
    if len(draws) > _MAX_CENTRES:
        draws = np.quantile(draws, (np.arange(_MAX_CENTRES) + 0.5) / _MAX_CENTRES)
    low, high = np.quantile(draws, [0.25, 0.75])
    width = min(draws.std(), (high - low) / 1.34) or draws.std()
    width = max(0.9 * width * len(draws) ** -0.2, 1e-3 * float(draws.max()))
    kernels = stats.norm.pdf(grid[:, None], draws, width)
    return (kernels + stats.norm.pdf(grid[:, None], -draws, width)).mean(axis=1)


def plot_cv(
    draws: Float[np.ndarray, " draws"],
    interval: tuple[float, float] | None = None,
    true_cv: float | None = None,
) -> Figure:
    """The posterior of cv beside its prior, and the interval that the verdict gives.

    Args:
        draws: Posterior draws of cv.
        interval: 5% and 95% quantiles of cv that the verdict gives, everything considered.
        true_cv: True cv of a simulated world.
    """
    tops = [1.0, 1.1 * float(np.quantile(draws, 0.995))]
    tops += [1.1 * x for x in (true_cv, interval and interval[1]) if x is not None]
    grid = np.linspace(0, max(tops), 400)
    density = smooth_density(draws, grid)
    figure, axes = make_figure(height=3.0)
    axes.axvspan(0, ROPE, color=PRIOR, alpha=0.15, linewidth=0, label=f"below {ROPE:g}: equal")
    axes.plot(grid, stats.halfnorm.pdf(grid), color=PRIOR, label="before the data")
    axes.fill_between(grid, density, color=HELD_OUT, alpha=0.25, linewidth=0)
    axes.plot(grid, density, color=HELD_OUT, label="given the choices")
    height = 1.45 * max(float(density.max()), 0.8)
    if interval is not None:
        label = "verdict's 90% interval"
        axes.hlines(0.04 * height, *interval, color=TRUTH, linewidth=4, label=label)
    if true_cv is not None:
        axes.axvline(true_cv, color=TRUTH, linestyle="--", label="truth")
    axes.set(
        xlabel="cv of the strength (0: one strength for all)", ylabel="density",
        xlim=(0, grid[-1]), ylim=(0, height),
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=9)
    return figure
