"""Simulation-based calibration: are posteriors as wide as they claim?

Parameters are drawn from the prior, data from the parameters, a posterior from the data; the rank
of the truth among the draws is uniform if, and only if, the posterior is right on average (Talts,
Betancourt, Simpson, Vehtari, Gelman 2018, arXiv 1804.06788).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from mixdpo_pyro.inference.calibration.simulation import Design, SimulatedChoices, simulate
from mixdpo_pyro.inference.fitting import Method, fit
from mixdpo_pyro.models import Family
from mixdpo_pyro.progress import Engine, run_tasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SBCResult", "Sampler", "calibrate", "plot_calibration"]

Sampler = Callable[[np.ndarray, np.ndarray, int], dict[str, np.ndarray]]

_PARAMETERS = ("mean", "cv")


@dataclass(frozen=True)
class SBCResult:
    """Ranks of the truth among posterior draws.

    Attributes:
        label: What was calibrated.
        ranks: Per parameter, the number of draws below the truth, shape `(datasets,)`.
        num_draws: Draws per posterior.
    """

    label: str
    ranks: dict[str, Int[np.ndarray, " datasets"]]
    num_draws: int

    def uniform(self, name: str) -> Float[np.ndarray, " datasets"]:
        """Ranks scaled to (0, 1)."""
        return (self.ranks[name] + 0.5) / (self.num_draws + 1)

    def coverage(self, name: str, level: float = 0.9) -> float:
        """Share of central intervals of this level that cover the truth."""
        return float((np.abs(2 * self.uniform(name) - 1) <= level).mean())

    def p_value(self, name: str) -> float:
        """P-value of uniform ranks, by the smaller of two Kolmogorov-Smirnov tests, doubled.

        One test looks at the ranks, which a biased posterior shifts, the other at their distance
        from the middle, which one too narrow or too wide stretches or shrinks.
        """
        from scipy.stats import kstest

        uniform = self.uniform(name)
        tests = (kstest(x, "uniform").pvalue for x in (uniform, np.abs(2 * uniform - 1)))
        return min(1.0, 2 * float(min(tests)))


def calibrate(
    family: Family = "lognormal",
    method: Method = "laplace",
    num_datasets: int = 100,
    num_draws: int = 99,
    design: Design | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    progress: bool = False,
    engine: Engine | None = None,
    **options: Any,
) -> SBCResult:
    """Rank the truth in posteriors of simulated datasets, under the default priors.

    Args:
        family: Family of the strength.
        method: Method of :func:`fit`.
        num_datasets: Number of simulated datasets.
        num_draws: Posterior draws per dataset that the truth is ranked among.
        design: Shape and kind of the data; default, 20 annotators with 10 pairs each. Thresholds
            of ties and grades stand at fixed values that the fit does not know.
        sampler: Takes margins, annotators and a seed, and returns draws of `mean` and `cv`;
            default, `fit`. With another one the calibration of anything can be looked at.
        seed: Seed of everything.
        progress: Show a progress bar.
        engine: Where datasets are fitted; default, one after the other in this process. The ranks
            do not depend on it.
        options: Further arguments of :func:`fit`.

    Raises:
        ValueError: If there is no dataset.
    """
    if num_datasets < 1:
        raise ValueError(f"Expected num_datasets >= 1, got {num_datasets}")
    shape = design or Design()
    # Neighbours of a Markov chain are alike: every fourth draw is ranked.
    num_samples = 4 * num_draws if method == "nuts" else num_draws

    def sample(world: SimulatedChoices, seed: int) -> dict[str, np.ndarray]:
        if sampler is not None:
            return sampler(world.margin, world.annotator, seed)
        arguments = {"beta": shape.beta, "seed": seed, "num_samples": num_samples, **options}
        arguments.setdefault("draw_strengths", False)
        result = fit(
            world.margin, annotator=world.annotator, family=family, method=method, **world.done,
            **arguments,
        )  # fmt: skip
        return result.posterior.draws

    def rank(number: int) -> dict[str, int]:
        rng = np.random.default_rng((seed, number))
        truth = {
            "mean": shape.beta * np.exp(0.5 * rng.standard_normal()),
            "cv": abs(rng.standard_normal()),
        }
        world = simulate(**truth, family=family, design=shape, rng=rng)
        draws = sample(world, int(rng.integers(2**31)))
        apart = np.linspace(0, len(draws["cv"]) - 1, num_draws).astype(int)
        return {name: int((draws[name][apart] < truth[name]).sum()) for name in _PARAMETERS}

    title = f"{method} {family}" if progress else None
    ranks = run_tasks(rank, range(num_datasets), engine, title)
    by_name = {name: np.array([each[name] for each in ranks]) for name in _PARAMETERS}
    return SBCResult(f"{method}, {family}", by_name, num_draws)


def plot_calibration(calibrations: Sequence[SBCResult]) -> "Figure":
    """Distribution of the ranks minus the uniform one, with 95% bands, a row per calibration."""
    from matplotlib.figure import Figure
    from scipy.stats import kstwo

    figure = Figure(figsize=(8, 2.2 * len(calibrations)), layout="constrained")
    axes = figure.subplots(len(calibrations), 2, sharex=True, sharey=True, squeeze=False)
    for row, calibration in zip(axes, calibrations, strict=True):
        for axis, name in zip(row, _PARAMETERS, strict=True):
            uniform = np.sort(calibration.uniform(name))
            band = kstwo.ppf(0.95, len(uniform))
            axis.axhspan(-band, band, color="0.9")
            axis.step(uniform, np.arange(1, len(uniform) + 1) / len(uniform) - uniform)
            axis.set_title(f"{calibration.label}: {name}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("rank of the truth")
    return figure
