"""The posterior of the strength: draws, and everything needed to use them."""

from collections.abc import Mapping

import numpy as np

from mixdpo_pyro.models import mean_prior
from mixdpo_pyro.models.pyro_models import MeanAnchor

__all__ = ["contraction"]


def contraction(posterior: Mapping[str, np.ndarray], mean: MeanAnchor) -> dict[str, float]:
    r"""How much the data narrowed the prior: :math:`1 - \mathrm{Var} / \mathrm{Var}_{prior}`.

    Of `cv`, whose half-normal prior has variance :math:`1 - 2/\pi`, and of `log_mean`, where it
    has a prior. Near 1 the data decide; at 0 or below the answer is the prior's. Not a number
    where a draw is not finite.

    Args:
        posterior: Draws of `cv` and, unless the mean is fixed, of `mean`.
        mean: Anchoring of the mean.
    """
    with np.errstate(invalid="ignore"):
        value = {"cv": 1 - float(posterior["cv"].var()) / (1 - 2 / np.pi)}
        if mean == "prior":
            prior = float(mean_prior().base_dist.scale) ** 2
            value["log_mean"] = 1 - float(np.log(posterior["mean"]).var()) / prior
    return value
