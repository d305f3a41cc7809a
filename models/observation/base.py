r"""What an observation model is: what an annotator did, given utilities and a strength.

Two layouts of the data, both flat. A judgement of two responses is one margin. A choice from a
set is one row per response, and rows of equal `choice_set` are one choice.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Observation", "Terms", "as_tensor", "check_finite", "dense_rows"]


@dataclass(frozen=True)
class Terms(ABC):
    """Observed choices made ready for many strengths: tensors with one entry per choice.

    Subclasses hold what their `log_prob` needs as fields; what differs is overridden.
    """

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors that the log-probability is differentiated by."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def owners(self) -> tuple[Tensor | None, ...]:
        """Choice of each entry of each tensor; None where there is one entry per choice."""
        return (None,) * len(self.tensors)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "Terms":
        """The same choices with other tensors."""
        return type(self)(*tensors)

    def part(self, first: int, last: int) -> "Terms":
        """The choices `first`, ..., `last` - 1."""
        return self.with_tensors(tuple(tensor[first:last] for tensor in self.tensors))

    def sizes(self) -> Int[Tensor, " choices"]:
        """Terms to be evaluated per choice."""
        return torch.ones_like(self.tensors[0], dtype=torch.long)

    @abstractmethod
    def log_prob(self, strength: Float[Tensor, "*#nodes"]) -> Float[Tensor, "*nodes"]:
        """Log-probability in nats of each choice, last axis the choices, at given strengths."""

    @abstractmethod
    def reach(self) -> Float[Tensor, " choices"]:
        """Largest difference of utilities within each choice, in nats at strength one."""

    @abstractmethod
    def strip(self) -> float:
        r"""Half-width of the strip in which the log-probabilities are analytic in log strength.

        A sum of odds :math:`1 + c e^{-\beta d}` vanishes at :math:`\beta d = \log c \pm i \pi`, so
        that the half-width is :math:`\arctan(\pi / \log c)`; quadrature takes steps of its size.
        """


class Observation(ABC):
    r"""What an annotator did, given the utilities of the responses and the strength.

    Subclasses are small frozen dataclasses whose attributes are numbers or tensors; a tensor is
    differentiated by. With `takes_sets` the data are `utilities` v, one row per response, in nats
    per unit of strength (log-ratios; a constant per set cancels), otherwise `margins`
    :math:`\Delta = v_1 - v_0` of a first response over a second, one row per choice.

    Attributes:
        takes_sets: Whether rows are the responses of choice sets.
    """

    takes_sets: ClassVar[bool] = False

    @abstractmethod
    def encode(
        self, margin: Tensor, outcome: Tensor | None = None, choice_set: Tensor | None = None
    ) -> Terms:
        """Check the data and make them ready for many strengths; arguments as for `log_prob`."""

    @abstractmethod
    def sample(
        self,
        margin: Tensor,
        strength: Tensor | float,
        choice_set: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " rows"]:
        """Draw an outcome of each choice; arguments as for `log_prob`, one strength per choice."""

    @abstractmethod
    def sample_uniformly(
        self,
        margin: Tensor,
        choice_set: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " rows"]:
        """Draw outcomes that do not depend on the margins, all of them equally probable."""

    @abstractmethod
    def support(self, size: int = 2) -> Int[Tensor, "outcomes ..."]:
        """Every outcome of a choice among `size` responses; for sets one row of ranks each."""

    @abstractmethod
    def log_num_outcomes(
        self, margin: Tensor, outcome: Tensor | None = None, choice_set: Tensor | None = None
    ) -> Float[Tensor, " choices"]:
        """Log of the number of outcomes that each choice could have had, float64."""

    @abstractmethod
    def unconstrained(self) -> Float[Tensor, " parameters"]:
        """The model's own parameters (thresholds, tie propensity, lapse rate) as real numbers."""

    @abstractmethod
    def constrained(self, vector: Float[Tensor, " parameters"]) -> "Observation":
        """The model of these parameters: the inverse of `unconstrained`, differentiable."""

    def log_prob(
        self,
        margin: Float[Tensor, " rows"],
        outcome: Int[Tensor, " rows"] | None = None,
        strength: Float[Tensor, "..."] | float = 1.0,
        choice_set: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Log-probability in nats of what was observed, differentiable twice in all but ids.

        Args:
            margin: Margins, or utilities of the responses where the model `takes_sets`; finite.
            outcome: What was done, per row; its coding is that of the class.
            strength: Strength beta >= 0, a scalar or with the choices on the last axis.
            choice_set: Ids of the sets, in any order; where the model `takes_sets` only.

        Returns:
            Log-probabilities, last axis the choices: the rows, or sets in ascending order of ids.

        Raises:
            ValueError: If a margin is not finite, or an outcome is impossible.
        """
        dtype = torch.promote_types(margin.dtype, torch.float32)
        terms = self.encode(margin.to(dtype), outcome, choice_set)
        return terms.log_prob(torch.as_tensor(strength, dtype=dtype, device=margin.device))

    def probabilities(
        self, margin: Float[Tensor, "..."], strength: Float[Tensor, "..."] | float = 1.0
    ) -> Float[Tensor, "... outcomes"]:
        """Probability of each outcome, in the order of `support`.

        Args:
            margin: Margins, one choice each, or utilities `(..., K)`, one set of K on each row.
            strength: Strength, broadcastable with the choices.

        Returns:
            Shape `(..., outcomes)`, adding up to one.
        """
        size = margin.shape[-1] if self.takes_sets else 2
        outcome = self.support(size).to(margin.device)
        choices = margin.shape[:-1] if self.takes_sets else margin.shape
        strength = torch.as_tensor(strength, dtype=margin.dtype, device=margin.device)
        shape = torch.broadcast_shapes(choices, strength.shape)
        wide = margin.unsqueeze(len(choices)).expand(*shape, *outcome.shape)
        rows = dense_rows(self, wide, outcome.expand(wide.shape))
        beta = strength.unsqueeze(-1).expand(*shape, len(outcome)).reshape(-1)
        value = self.log_prob(rows[0], rows[1], beta, rows[2])
        return value.exp().view(*shape, len(outcome))


def dense_rows(
    observation: Observation, margin: Tensor, outcome: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Flat margins, outcomes and set ids of dense data: sets of equal size on the last axis."""
    rows = None
    if observation.takes_sets:
        num_sets, size = margin.shape[:-1].numel(), margin.shape[-1]
        rows = torch.arange(num_sets, device=margin.device).repeat_interleave(size)
    return margin.reshape(-1), None if outcome is None else outcome.reshape(-1), rows


def check_finite(name: str, margin: Tensor) -> None:
    """Raise a `ValueError` unless margins are one-dimensional and finite."""
    if margin.dim() != 1:
        raise ValueError(f"Expected {name} of shape (rows,), got {tuple(margin.shape)}")
    wrong = (~margin.isfinite()).nonzero()
    if len(wrong):
        raise ValueError(
            f"Expected finite {name}, got {margin[wrong[0]].item()} at row {wrong[0].item()}"
        )


def as_tensor(value: Tensor | float) -> Tensor:
    """A parameter of a model as a tensor, plain numbers in float64."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
