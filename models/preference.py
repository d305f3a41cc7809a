"""The Pyro models of preference: marginal over the strength, and with the strength as an explicit latent."""

from typing import Literal

import pyro
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor

from mixdpo_pyro.models.estimators import Estimator, resolve_estimator
from mixdpo_pyro.models.mixed_logit import mixed_logit_log_prob
from mixdpo_pyro.models.strength import Family, check_family, cv_prior, mean_prior

__all__ = ["PreferenceModel"]


class PreferenceModel(PyroModule):
    """Marginal model of observed choices: latent `mean` and `cv`, the strength integrated out.

    Args:
        family: Law of the strength.
        mean: `"prior"` (log mean ~ Normal(log beta, 0.5)), `"fixed"` (mean = beta) or `"free"` (the paper: mean and cv
            without a prior).
        beta: Median of the prior of the mean, or its fixed value.
        estimator: See `mixed_logit_log_prob`.
        flip_probability: Probability that a label was flipped.
    """

    def __init__(
        self,
        family: Family = "gamma",
        mean: Literal["prior", "fixed", "free"] = "prior",
        beta: float = 0.1,
        estimator: str | Estimator = "auto",
        flip_probability: float = 0.0,
    ) -> None:
        """Check and keep the choices; no parameters are made."""
        super().__init__()
        check_family(family)
        if mean not in ("prior", "fixed", "free"):
            raise ValueError(f"Expected mean to be one of prior, fixed, free, got {mean!r}")
        if not beta > 0:
            raise ValueError(f"Expected 0 < beta, got {beta}")
        resolve_estimator(estimator, family, panel=False)
        self.family: Family = family
        self.mean = mean
        self.beta = beta
        self.estimator = estimator
        self.flip_probability = flip_probability

    def forward(
        self,
        margin: Float[Tensor, " pairs"],
        annotator: Int[Tensor, " pairs"] | None = None,
        num_total: int | None = None,
    ) -> Tensor:
        """Score the choices of a (mini)batch; site `choice` inside one plate, scaled to `num_total`.

        Args:
            margin: Log-ratio margins in nats, chosen minus rejected, shape `(pairs,)`.
            annotator: Annotator ids; choices of one annotator share the strength.
            num_total: Number of pairs (of annotators with ids) in the whole data set; default: this batch.

        Returns:
            Log-probabilities in nats, unscaled, one per pair or per annotator.
        """
        mean, cv = self.sample_parameters(margin)
        log_prob = self.log_prob(margin, mean, cv, annotator)
        size = log_prob.shape[-1]
        name = "pairs" if annotator is None else "annotators"
        with pyro.plate(name, num_total or size, subsample=torch.arange(size), dim=-1):
            pyro.factor("choice", log_prob)
        return log_prob

    def sample_parameters(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the sites `mean` and `cv`, or return their constants."""
        beta = margin.new_tensor(self.beta)
        if self.family == "fixed":
            return beta, margin.new_tensor(0.0)
        if self.mean == "free":
            # Masked priors: density one everywhere, yet they can be drawn from, as guides need to initialise.
            return pyro.sample("mean", mean_prior(self.beta).mask(False)), pyro.sample(
                "cv", cv_prior().mask(False)
            )
        mean = beta if self.mean == "fixed" else pyro.sample("mean", mean_prior(self.beta))
        return mean, pyro.sample("cv", cv_prior())

    def log_prob(
        self, margin: Tensor, mean: Tensor, cv: Tensor, annotator: Tensor | None = None
    ) -> Tensor:
        """Log-probability in nats per pair (per annotator with ids) at given parameters."""
        return mixed_logit_log_prob(
            margin,
            mean,
            cv,
            self.family,
            self.estimator,
            annotator,
            flip_probability=self.flip_probability,
        )
