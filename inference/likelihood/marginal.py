"""The marginal likelihood of a dataset: per pair, or per annotator where annotators repeat."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mixdpo_pyro.inference.choices import Choices, without_ids
from mixdpo_pyro.inference.likelihood.observed import OneStrength, with_lapses
from mixdpo_pyro.inference.likelihood.pairs import compress
from mixdpo_pyro.inference.likelihood.panels import tabulate
from mixdpo_pyro.models import Family

__all__ = ["Likelihood", "build_likelihood"]


@runtime_checkable
class Likelihood(Protocol):
    """Total log-likelihood in nats, at many parameters at once."""

    def __call__(
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of the whole dataset at each point, in nats; float64, differentiable."""
        ...


def build_likelihood(
    choices: Choices, family: Family, flip_probability: float = 0.0
) -> Likelihood:
    """The marginal likelihood of a dataset: per choice, or per annotator where annotators repeat.

    Under one strength for everybody the choices of an annotator are like those of many.
    """
    if choices.outcomes is not None:
        if family == "fixed":
            return OneStrength.of(with_lapses(choices, flip_probability))
        units = choices if choices.has_panels else without_ids(choices)
        return tabulate(units, family, flip_probability)
    if choices.has_panels and family != "fixed":
        return tabulate(choices, family, flip_probability)
    return compress(choices.margin, family, flip_probability)
