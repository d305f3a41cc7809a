"""The Pyro model of one dataset, evaluated through its compressed likelihood."""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from mixdpo_pyro.inference.likelihood.marginal import Likelihood
from mixdpo_pyro.inference.methods.log_joint import MAX_CV
from mixdpo_pyro.models import Family, PreferenceModel
from mixdpo_pyro.models.pyro_models import MeanAnchor

__all__ = ["DatasetModel"]


class DatasetModel(PreferenceModel):
    """A `PreferenceModel` that holds its data: same sites `mean` and `cv`, one factor `choices`.

    Args:
        likelihood: Likelihood of the whole dataset.
        num_units: Number of pairs, or of annotators where they share strengths.
        family: Family of the strength.
        mean_anchor: Anchoring of the mean.
        beta: Median of the mean's prior, or its fixed value.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        num_units: int,
        family: Family,
        mean_anchor: MeanAnchor,
        beta: float,
    ) -> None:
        """Keep the likelihood; the model has no parameters."""
        super().__init__(family, mean_anchor=mean_anchor, beta=beta)
        self.likelihood = likelihood
        self.num_units = num_units

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Score the whole dataset; arguments that describe a batch are ignored."""
        mean, cv = self.sample_parameters(torch.zeros((), dtype=torch.float64))
        value = self.likelihood(mean, cv)
        pyro.factor("choices", value)
        return value

    def log_prob(
        self, margin: Tensor, mean: Tensor, cv: Tensor, annotator: Tensor | None = None
    ) -> Float[Tensor, "*particles 1"]:
        """Mean log-likelihood of a unit of the whole dataset, in nats, as a batch of one unit."""
        value = self.likelihood(mean, cv) / self.num_units
        return value if value.dim() else value[None]

    def potential(self, unbounded: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Minus the log joint in nats where latents live on the whole line, see `bounded`."""
        latents = self.bounded(unbounded)
        point = {"mean": torch.tensor(self.beta, dtype=torch.float64), **latents}
        log_joint = self.likelihood(**point) + self.log_prior(latents)
        return -log_joint - unbounded.get("mean", torch.zeros(()))

    def bounded(self, unbounded: dict[str, Tensor]) -> dict[str, Tensor]:
        """The latents: mean = exp of the first, cv = absolute value of the second coordinate.

        The likelihood is smooth in cv squared, so the density over the second coordinate is
        smooth through zero, where one over log cv would have an endless tail. Without a prior, cv
        is reflected at the limit of :class:`LogJoint` as well.
        """
        latents = dict(unbounded)
        if "mean" in latents:
            latents["mean"] = latents["mean"].exp()
        cv = latents["cv"]
        if self.mean_anchor == "free":
            cv = (cv + MAX_CV).remainder(2 * MAX_CV) - MAX_CV
        return latents | {"cv": cv.abs()}
