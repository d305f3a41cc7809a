"""The Pyro model of one dataset, evaluated through its compressed likelihood."""

import pyro
import torch
from torch import Tensor

from mixdpo_pyro.inference.likelihood import Likelihood
from mixdpo_pyro.models import Family, PreferenceModel
from mixdpo_pyro.models.preference import MeanAnchor

__all__ = ["DatasetModel"]


class DatasetModel(PreferenceModel):
    """A `PreferenceModel` that holds its data: same sites `mean` and `cv`, one factor `choices`.

    Args:
        likelihood: Likelihood of the whole dataset.
        family: Law of the strength.
        mean: Anchoring of the mean.
        beta: Median of the mean's prior, or its fixed value.
    """

    def __init__(
        self, likelihood: Likelihood, family: Family, mean: MeanAnchor, beta: float
    ) -> None:
        """Keep the likelihood; the model has no parameters."""
        super().__init__(family, mean, beta)
        self.likelihood = likelihood

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Score the whole dataset; arguments that describe a batch are ignored."""
        mean, cv = self.sample_parameters(torch.zeros((), dtype=torch.float64))
        value = self.likelihood(mean, cv)
        pyro.factor("choices", value)
        return value
