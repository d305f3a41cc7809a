r"""Judgements of two responses: a preference, perhaps a tie, perhaps a grade.

References:
    | Ties in paired-comparison experiments (Rao and Kupper, JASA 62, 1967)
    | On extending the Bradley-Terry model to accommodate ties (Davidson, JASA 65, 1970)
    | Regression models for ordinal data (McCullagh, JRSS B 42, 1980)
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixdpo_pyro.models.observation.base import Observation, Terms, as_tensor, check_finite

__all__ = ["Davidson", "Graded", "Pair", "RaoKupper"]


class _Judgement(Observation):
    """Outcomes 0, 1, ..., one per margin, from the first response's defeat to its victory."""

    @property
    @abstractmethod
    def num_outcomes(self) -> int:
        """Number of outcomes."""

    @abstractmethod
    def _terms(self, margin: Tensor, outcome: Tensor) -> Terms: ...

    def encode(
        self, margin: Tensor, outcome: Tensor | None = None, choice_set: Tensor | None = None
    ) -> Terms:
        """Check the data and make them ready; without outcomes the first response has won."""
        check_finite("margins", margin)
        if choice_set is not None:
            raise ValueError(f"Expected no choice_set, a margin being a choice, got {choice_set}")
        last = self.num_outcomes - 1
        outcome = torch.full_like(margin, last) if outcome is None else outcome
        if outcome.shape != margin.shape:
            raise ValueError(
                f"Expected one outcome per margin, got {len(outcome)} for {len(margin)}"
            )
        wrong = outcome[(outcome < 0) | (outcome > last) | (outcome != outcome.round())]
        if len(wrong):
            raise ValueError(f"Expected outcomes in 0, ..., {last}, got {wrong[0].item()}")
        return self._terms(margin, outcome.long())

    def sample(
        self,
        margin: Tensor,
        strength: Tensor | float,
        choice_set: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " rows"]:
        """Draw an outcome of each choice."""
        weight = self.probabilities(margin.detach(), strength)
        return weight.multinomial(1, generator=generator).squeeze(-1)

    def sample_uniformly(
        self,
        margin: Tensor,
        choice_set: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " rows"]:
        """Draw outcomes that do not depend on the margins, all of them equally probable."""
        return torch.randint(
            self.num_outcomes, margin.shape, generator=generator, device=margin.device
        )

    def support(self, size: int = 2) -> Int[Tensor, " outcomes"]:
        """Every outcome, in ascending order."""
        return torch.arange(self.num_outcomes)

    def log_num_outcomes(
        self, margin: Tensor, outcome: Tensor | None = None, choice_set: Tensor | None = None
    ) -> Float[Tensor, " choices"]:
        """Log of the number of outcomes."""
        return torch.full_like(margin, math.log(self.num_outcomes), dtype=torch.float64)


@dataclass(frozen=True)
class _OrderedTerms(Terms):
    """Judgements whose latent utility fell between two cut points, perhaps infinite ones."""

    margin: Float[Tensor, " choices"]
    lower: Float[Tensor, " choices"]
    upper: Float[Tensor, " choices"]

    def log_prob(self, strength: Tensor) -> Tensor:
        """Three stable factors: s(u - x) - s(l - x) = s(u - x) s(x - l) (1 - exp(l - u))."""
        utility = strength * self.margin
        between = (-(self.lower - self.upper).expm1()).log()
        return logsigmoid(self.upper - utility) + logsigmoid(utility - self.lower) + between

    def reach(self) -> Tensor:
        """Absolute margins."""
        return self.margin.abs()

    def strip(self) -> float:
        """That of the outermost cut point in use."""
        edges = torch.cat([self.lower, self.upper]).abs()
        return math.atan2(math.pi, torch.where(edges.isinf(), 0.0, edges).max().item())


@dataclass(frozen=True)
class Graded(_Judgement):
    r"""One of G grades: the ordered logit, its cut points mirrored around zero.

    .. math:: P(y \le j) = \sigma(c_j - \beta \Delta)

    with the cut points :math:`\pm t_1, \pm t_2, \dots`, and 0 where there is no middle grade, so
    that swapping the responses mirrors the grades. Grade 0 is the strongest preference against the
    first response, G - 1 the strongest for it. Cut points are in the units of
    :math:`\beta \Delta`.

    Args:
        cut_points: The positive cut points :math:`0 < t_1 < t_2 < \dots`, shape `(k,)`.
        middle: Whether the middle grade is a tie: G = 2k + 1, otherwise 2k + 2.

    Raises:
        ValueError: If the cut points are not positive and ascending.

    References:
        | Regression models for ordinal data (McCullagh, JRSS B 42, 1980)

    Example:
        >>> Graded(torch.tensor([0.5, 2.0])).probabilities(torch.tensor([0.0]))
        tensor([[0.1192, 0.2583, 0.2449, 0.2583, 0.1192]])
    """

    cut_points: Float[Tensor, " positive"]
    middle: bool = True

    def __post_init__(self) -> None:
        """Check the cut points."""
        points = self.cut_points.detach()
        steps = points.diff(prepend=points.new_zeros(1))
        if points.dim() != 1 or not bool(((steps > 0) & points.isfinite()).all()):
            raise ValueError(f"Expected positive, ascending cut points, got {points.tolist()}")

    @property
    def num_outcomes(self) -> int:
        """Number of grades G."""
        return 2 * len(self.cut_points) + (1 if self.middle else 2)

    def unconstrained(self) -> Tensor:
        """Logs of the steps from each cut point to the next, beginning at zero."""
        return self.cut_points.diff(prepend=self.cut_points.new_zeros(1)).log()

    def constrained(self, vector: Tensor) -> "Graded":
        """The model whose steps from cut point to cut point are exp(`vector`)."""
        return Graded(vector.exp().cumsum(0), self.middle)

    def _terms(self, margin: Tensor, outcome: Tensor) -> _OrderedTerms:
        points = self.cut_points.to(margin)
        bound, zero = margin.new_tensor([math.inf]), margin.new_zeros(0 if self.middle else 1)
        edges = torch.cat([-bound, -points.flip(0), zero, points, bound])
        return _OrderedTerms(margin, edges[outcome], edges[outcome + 1])


class Pair(Graded):
    r"""The binary choice, 1 for the first response and 0 for the second (McFadden, 1974).

    .. math:: P(1) = \sigma(\beta \Delta)

    Example:
        >>> Pair().log_prob(torch.tensor([10.0, -10.0]), strength=0.1)
        tensor([-0.3133, -1.3133])
    """

    def __init__(self) -> None:
        """No parameters."""
        super().__init__(torch.zeros(0), middle=False)

    def constrained(self, vector: Tensor) -> "Pair":
        """The same model, which has no parameters."""
        return self

    def __repr__(self) -> str:
        """Without the parameters that it does not have."""
        return "Pair()"


class RaoKupper(Graded):
    r"""Loss (0), tie (1) or win (2): who sees a difference below a threshold calls it a tie.

    .. math:: P(2) = \sigma(\beta \Delta - \tau), \quad P(0) = \sigma(-\beta \Delta - \tau)

    which is `Graded` with the one positive cut point :math:`\tau`.

    Args:
        threshold: Threshold :math:`\tau > 0` in units of :math:`\beta \Delta`.

    Raises:
        ValueError: If the threshold is not positive.

    References:
        | Ties in paired-comparison experiments (Rao and Kupper, JASA 62, 1967)

    Example:
        >>> RaoKupper(0.5).probabilities(torch.tensor([0.0, 2.0]))
        tensor([[0.3775, 0.2449, 0.3775],
                [0.0759, 0.1066, 0.8176]])
    """

    def __init__(self, threshold: Tensor | float) -> None:
        """Keep the threshold as the only cut point."""
        super().__init__(as_tensor(threshold).reshape(1))

    def constrained(self, vector: Tensor) -> "RaoKupper":
        """The model of threshold exp(`vector`)."""
        return RaoKupper(vector.exp())


@dataclass(frozen=True)
class _DavidsonTerms(Terms):
    """Judgements as outcomes less the middle one, over two, and the log of the tie propensity."""

    margin: Float[Tensor, " choices"]
    log_nu: Float[Tensor, " choices"]
    side: Float[Tensor, " choices"]

    def log_prob(self, strength: Tensor) -> Tensor:
        """The sum of 1, nu exp(-x/2), exp(-x) for x >= 0; for x < 0 the responses swapped."""
        utility = strength * self.margin
        # Not abs: its derivative at 0 is 0, and training starts at margin 0.
        size = torch.where(utility < 0, -utility, utility)
        rest = torch.exp(self.log_nu - size / 2) + torch.exp(-size)
        tie = torch.where(self.side == 0, self.log_nu, 0.0)
        return tie + (self.side * utility - size / 2) - rest.log1p()

    def reach(self) -> Tensor:
        """Absolute margins."""
        return self.margin.abs()

    def strip(self) -> float:
        """That of the largest tie propensity."""
        return math.atan2(math.pi, max(self.log_nu.max().item(), 0.0))


@dataclass(frozen=True)
class Davidson(_Judgement):
    r"""Loss (0), tie (1) or win (2), a tie as probable as the geometric mean of the others.

    .. math:: P(2) : P(1) : P(0) = 1 : \nu e^{-\beta \Delta / 2} : e^{-\beta \Delta}

    Args:
        nu: Tie propensity :math:`\nu > 0`.

    Raises:
        ValueError: If it is not positive and finite.

    References:
        | On extending the Bradley-Terry model to accommodate ties (Davidson, JASA 65, 1970)

    Example:
        >>> Davidson(1.0).probabilities(torch.tensor([0.0, 2.0]))
        tensor([[0.3333, 0.3333, 0.3333],
                [0.0900, 0.2447, 0.6652]])
    """

    nu: Tensor | float

    def __post_init__(self) -> None:
        """Check the tie propensity."""
        nu = as_tensor(self.nu).item()
        if not 0 < nu < math.inf:
            raise ValueError(f"Expected 0 < nu < inf, got {nu}")

    @property
    def num_outcomes(self) -> int:
        """Three."""
        return 3

    def unconstrained(self) -> Tensor:
        """Log of the tie propensity, shape `(1,)`."""
        return as_tensor(self.nu).log().reshape(1)

    def constrained(self, vector: Tensor) -> "Davidson":
        """The model of tie propensity exp(`vector`)."""
        return Davidson(vector.exp().squeeze(0))

    def _terms(self, margin: Tensor, outcome: Tensor) -> _DavidsonTerms:
        log_nu = as_tensor(self.nu).to(margin).log().expand(margin.shape)
        return _DavidsonTerms(margin, log_nu, (outcome - 1).to(margin) / 2)
