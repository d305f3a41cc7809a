"""NUTS over the global latents of a dataset: the yardstick."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from mixdpo_pyro.inference.methods.dataset_model import DatasetModel

__all__ = ["NUTSRun", "run_nuts"]


@dataclass(frozen=True)
class NUTSRun:
    """Draws and diagnostics, chains one after another.

    Attributes:
        draws: Per latent, shape `(chains * draws,)`.
        diverging: Whether a transition diverged, same shape.
        r_hat: Split R-hat per latent.
        ess: Effective sample size per latent.
        num_chains: Number of chains.
    """

    draws: dict[str, np.ndarray]
    diverging: np.ndarray
    r_hat: dict[str, float]
    ess: dict[str, float]
    num_chains: int


@torch.inference_mode(False)
def run_nuts(
    model: DatasetModel,
    num_samples: int = 1000,
    *,
    num_chains: int = 4,
    num_warmup: int = 300,
    seed: int = 0,
    progress: bool = False,
) -> NUTSRun:
    """Sample the latents of a model, chain after chain in this process.

    Chains start at draws around (beta, 1/2), apart by factors of about two. The global generator
    is left as it was.

    Args:
        model: Model of a dataset.
        num_samples: Draws in all, at least four per chain; rounded up to a multiple of the chains.
        num_chains: Number of chains, at least two, so that R-hat means something.
        num_warmup: Warm-up transitions of each chain, which are dropped.
        seed: Seed of everything.
        progress: Show a progress bar.

    Raises:
        ValueError: If there are fewer than two chains, or too few draws for R-hat.
    """
    if num_chains < 2:
        raise ValueError(f"Expected num_chains >= 2, got {num_chains}")
    if (length := -(-num_samples // num_chains)) < 4:
        raise ValueError(f"Expected num_samples >= 4 per chain, got {num_samples}")
    chains, divergences = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(num_chains):
            kernel = NUTS(potential_fn=model.potential, full_mass=True)
            mcmc = MCMC(
                kernel,
                length,
                num_warmup,
                initial_params=_start(model),
                disable_progbar=not progress,
            )
            mcmc.run()
            chains.append(model.bounded(mcmc.get_samples()))
            divergences.append(mcmc.diagnostics()["divergences"]["chain 0"])
    stacked = {name: torch.stack([chain[name] for chain in chains]) for name in chains[0]}
    diverging = np.zeros((num_chains, length), dtype=bool)
    for row, steps in zip(diverging, divergences, strict=True):
        row[steps] = True
    return NUTSRun(
        draws={name: value.flatten().numpy() for name, value in stacked.items()},
        diverging=diverging.ravel(),
        r_hat={name: split_gelman_rubin(v, 0, 1).item() for name, v in stacked.items()},
        ess={name: effective_sample_size(v, 0, 1).item() for name, v in stacked.items()},
        num_chains=num_chains,
    )


def _start(model: DatasetModel) -> dict[str, Tensor]:
    """A draw around (beta, 1/2) in the coordinates of the potential, of what is latent."""
    noise = torch.randn(2, dtype=torch.float64)
    cv = 0.5 * (0.5 * noise[1]).exp()
    return (
        {"cv": cv}
        if model.mean_anchor == "fixed"
        else {"mean": math.log(model.beta) + 0.3 * noise[0], "cv": cv}
    )
