"""Carelessness: now and then an outcome that has nothing to do with the responses."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixdpo_pyro.models.observation.base import Observation, Terms, as_tensor

__all__ = ["Lapse"]


@dataclass(frozen=True)
class _LapseTerms(Terms):
    """Other terms, and the logs of the probabilities of attention and of each careless outcome."""

    inner: Terms
    log_attention: Float[Tensor, " choices"]
    log_careless: Float[Tensor, " choices"]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those of the inner terms, then its own."""
        return *self.inner.tensors, self.log_attention, self.log_careless

    @property
    def owners(self) -> tuple[Tensor | None, ...]:
        """Those of the inner terms; its own have one entry per choice."""
        return *self.inner.owners, None, None

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "_LapseTerms":
        """The same choices with other tensors."""
        return type(self)(self.inner.with_tensors(tensors[:-2]), *tensors[-2:])

    def part(self, first: int, last: int) -> "_LapseTerms":
        """The choices `first`, ..., `last` - 1."""
        own = (self.log_attention[first:last], self.log_careless[first:last])
        return type(self)(self.inner.part(first, last), *own)

    def sizes(self) -> Tensor:
        """Those of the inner terms."""
        return self.inner.sizes()

    def log_prob(self, strength: Tensor) -> Tensor:
        """Log of the mixture."""
        attentive = self.log_attention + self.inner.log_prob(strength)
        return torch.logaddexp(attentive, self.log_careless)

    def reach(self) -> Tensor:
        """That of the inner terms."""
        return self.inner.reach()

    def strip(self) -> float:
        """That of the inner terms."""
        return self.inner.strip()


@dataclass(frozen=True)
class Lapse(Observation):
    r"""Any observation, made carelessly at a certain rate.

    .. math:: (1 - \epsilon) P + \epsilon / \text{number of outcomes}

    A pair with rate :math:`2 \epsilon` is a pair with flip probability :math:`\epsilon`.

    Args:
        observation: The observation model of an attentive annotator.
        rate: Probability :math:`\epsilon` of a lapse, in [0, 1). At 0 the model is the attentive
            one, and not differentiable in the rate.

    Raises:
        ValueError: If the rate is outside its range.

    Example:
        >>> from mixdpo_pyro.models.observation import Pair
        >>> Lapse(Pair(), 0.2).probabilities(torch.tensor([100.0]))
        tensor([[0.1000, 0.9000]])
    """

    observation: Observation
    rate: Tensor | float

    def __post_init__(self) -> None:
        """Check the rate."""
        rate = as_tensor(self.rate).item()
        if not 0 <= rate < 1:
            raise ValueError(f"Expected 0 <= rate < 1, got {rate}")

    @property
    def takes_sets(self) -> bool:  # type: ignore[override]
        """Whether the attentive model does."""
        return self.observation.takes_sets

    def encode(
        self, margin: Tensor, outcome: Tensor | None = None, choice_set: Tensor | None = None
    ) -> Terms:
        """The terms of the attentive model, mixed with carelessness."""
        inner = self.observation.encode(margin, outcome, choice_set)
        if as_tensor(self.rate).item() == 0:
            return inner
        rate = as_tensor(self.rate).to(margin)
        log_count = self.observation.log_num_outcomes(margin, outcome, choice_set).to(margin)
        return _LapseTerms(inner, (-rate).log1p().expand(len(log_count)), rate.log() - log_count)

    def sample(
        self,
        margin: Tensor,
        strength: Tensor | float,
        choice_set: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " rows"]:
        """Draw an outcome of each choice."""
        attentive = self.observation.sample(margin, strength, choice_set, generator=generator)
        careless = self.sample_uniformly(margin, choice_set, generator=generator)
        if choice_set is None:
            choice, number = torch.arange(len(margin), device=margin.device), len(margin)
        else:
            ids, choice = choice_set.unique(return_inverse=True)
            number = len(ids)
        uniform = torch.rand(number, generator=generator, device=margin.device)
        return torch.where((uniform < as_tensor(self.rate).item())[choice], careless, attentive)

    def sample_uniformly(
        self,
        margin: Tensor,
        choice_set: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " rows"]:
        """Draw outcomes that do not depend on the margins."""
        return self.observation.sample_uniformly(margin, choice_set, generator=generator)

    def support(self, size: int = 2) -> Int[Tensor, "outcomes ..."]:
        """That of the attentive model."""
        return self.observation.support(size)

    def log_num_outcomes(
        self, margin: Tensor, outcome: Tensor | None = None, choice_set: Tensor | None = None
    ) -> Float[Tensor, " choices"]:
        """That of the attentive model."""
        return self.observation.log_num_outcomes(margin, outcome, choice_set)

    def unconstrained(self) -> Tensor:
        """Parameters of the attentive model, then the logit of the rate."""
        inner = self.observation.unconstrained()
        rate = as_tensor(self.rate).double().reshape(1)
        return torch.cat([inner.to(rate.dtype), rate.logit()])

    def constrained(self, vector: Tensor) -> "Lapse":
        """The model of these parameters."""
        return Lapse(self.observation.constrained(vector[:-1]), vector[-1].sigmoid())
