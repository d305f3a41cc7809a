r"""Choices from a set of responses: the best, a ranking, or the best and the worst.

Each is a sequence of stages, and a stage is a multinomial logit. Relative to the best row of the
stage, which is the same one at every positive strength, its log-probability is

.. math:: \beta (v_\text{chosen} - v_\text{top})
          - \log \Big(1 + \sum_{j \ne \text{top}} e^{-\beta (v_\text{top} - v_j)}\Big)

in which nothing overflows or cancels.

References:
    | Conditional logit analysis of qualitative choice behavior (McFadden, 1974)
    | Individual choice behavior (Luce, 1959); The analysis of permutations (Plackett, JRSS C 24,
      1975)
    | Some probabilistic models of best, worst, and best-worst choices (Marley and Louviere,
      Journal of Mathematical Psychology 49, 2005)
"""

import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mixdpo_pyro.models.observation.base import Observation, Terms, check_finite

__all__ = ["BestOf", "BestWorst", "Ranking"]


@dataclass(frozen=True)
class _StageTerms(Terms):
    """Choices as stages, ragged in all directions.

    Attributes:
        excess: Chosen less top utility, summed over the stages of each choice; at most zero.
        gap: Top utility less that of each other row, by stage; not negative.
        stage: Stage of each gap, ascending.
        choice: Choice of each stage, ascending.
    """

    excess: Float[Tensor, " choices"]
    gap: Float[Tensor, " gaps"]
    stage: Int[Tensor, " gaps"]
    choice: Int[Tensor, " stages"]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Excesses and gaps."""
        return self.excess, self.gap

    @property
    def owners(self) -> tuple[Tensor | None, ...]:
        """Choices of the gaps."""
        return None, self.choice[self.stage]

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "_StageTerms":
        """The same choices with other utilities."""
        new = type(self)(tensors[0], tensors[1], self.stage, self.choice)
        if "_layers" in self.__dict__:
            new.__dict__["_layers"] = self._layers
        return new

    def part(self, first: int, last: int) -> "_StageTerms":
        """The choices `first`, ..., `last` - 1."""
        low, high = torch.searchsorted(self.choice, self.choice.new_tensor([first, last])).tolist()
        start, end = torch.searchsorted(self.stage, self.stage.new_tensor([low, high])).tolist()
        return type(self)(
            self.excess[first:last],
            self.gap[start:end],
            self.stage[start:end] - low,
            self.choice[low:high] - first,
        )

    def sizes(self) -> Tensor:
        """Gaps per choice, and one for what every choice costs."""
        return 1 + self.choice[self.stage].bincount(minlength=len(self.excess))

    @cached_property
    def _layers(self) -> tuple[Tensor | None, list[Tensor]]:
        """Choices of the stages, the longest stage first, and their first, second, ... gaps.

        Each layer is a vector over a leading part of the stages, which costs what the rows cost
        and needs neither padding nor scattering. The choices are None where they are all of them
        in order.
        """
        size = self.stage.bincount(minlength=len(self.choice))
        start = size.cumsum(0) - size
        order = size.argsort(descending=True, stable=True)
        longer = (
            size.unsqueeze(0)
            > torch.arange(int(size.max()) if len(size) else 0, device=size.device).unsqueeze(1)
        ).sum(1)
        layers = [start[order[:count]] + j for j, count in enumerate(longer.tolist())]
        choice = self.choice[order[: len(layers[0])]] if layers else self.choice[:0]
        every = torch.arange(len(self.excess), device=choice.device)
        return None if torch.equal(choice, every) else choice, layers

    def log_prob(self, strength: Tensor) -> Tensor:
        """Sum over the stages of each choice."""
        choice, layers = self._layers
        shape = torch.broadcast_shapes(strength.shape, self.excess.shape)
        strength = strength.expand(shape)
        if not layers:
            return strength * self.excess
        beta = strength if choice is None else strength[..., choice]
        stages = -self._others(beta, layers).log1p()
        if choice is not None:
            zeros = stages.new_zeros(shape)
            stages = zeros.scatter_add(-1, choice.expand(stages.shape), stages)
        return strength * self.excess + stages

    def _others(self, beta: Tensor, layers: list[Tensor]) -> Tensor:
        """Sum of the odds of all other rows against the top one, per stage."""
        total = torch.exp(-beta * self.gap[layers[0]])
        for layer in layers[1:]:
            count = len(layer)
            longer = total[..., :count] + torch.exp(-beta[..., :count] * self.gap[layer])
            total = (
                torch.cat([longer, total[..., count:]], -1) if count < total.shape[-1] else longer
            )
        return total

    def reach(self) -> Tensor:
        """Largest gap of each choice."""
        zeros = torch.zeros_like(self.excess)
        return zeros.scatter_reduce(0, self.choice[self.stage], self.gap, "amax")

    def strip(self) -> float:
        """That of the longest stage, its other rows being alike."""
        return math.atan2(math.pi, math.log(max(len(self._layers[1]), 1)))


class _Rows(NamedTuple):
    """Responses sorted by choice."""

    value: Float[Tensor, " rows"]
    rank: Int[Tensor, " rows"]
    choice: Int[Tensor, " rows"]
    sizes: Int[Tensor, " choices"]

    def position(self) -> Int[Tensor, " rows"]:
        """Place of each row within its choice."""
        start = self.sizes.cumsum(0) - self.sizes
        return torch.arange(len(self.value), device=self.value.device) - start[self.choice]

    def number_of(self, which: Bool[Tensor, " rows"]) -> Int[Tensor, " choices"]:
        """Number of such rows of each choice."""
        return self.choice[which].bincount(minlength=len(self.sizes))

    def by_rank(self) -> "_Rows":
        """Rows of each choice in the order of their ranks, unranked ones last."""
        key = torch.where(self.rank > 0, self.rank, len(self.value) + 1)
        order = key.argsort(stable=True)
        order = order[self.choice[order].argsort(stable=True)]
        return self._replace(value=self.value[order], rank=self.rank[order])


class _Choice(Observation):
    """Ranks per row: 1, 2, ... from the best one on; 0 for rows that were given no rank."""

    takes_sets: ClassVar[bool] = True

    @abstractmethod
    def _check(self, rows: _Rows) -> None: ...

    @abstractmethod
    def _terms(self, rows: _Rows) -> _StageTerms: ...

    @abstractmethod
    def _ranks(self, rows: _Rows, generator: torch.Generator | None) -> Tensor:
        """Ranks of the rows, drawn at their values."""

    def encode(
        self, margin: Tensor, outcome: Tensor | None = None, choice_set: Tensor | None = None
    ) -> _StageTerms:
        """Check the data and make them ready.

        Without outcomes the rows are margins of the chosen response over each other one, K - 1
        rows for a set of K, as TRL's pairs give them.
        """
        check_finite("utilities", margin)
        rows, _ = _sorted_rows(margin, outcome, choice_set)
        self._check(rows)
        return self._terms(rows)

    @torch.no_grad()
    def sample(
        self,
        margin: Tensor,
        strength: Tensor | float,
        choice_set: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " rows"]:
        """Draw the ranks of all rows: one of the outcomes of each choice."""
        rows, order = _sorted_rows(margin.double(), torch.zeros_like(margin), choice_set)
        beta = torch.as_tensor(strength, dtype=torch.float64, device=margin.device)
        scaled = rows._replace(value=beta.expand(len(rows.sizes))[rows.choice] * rows.value)
        ranks = self._ranks(scaled, generator)
        return ranks if order is None else torch.empty_like(ranks).scatter(0, order, ranks)

    def sample_uniformly(
        self,
        margin: Tensor,
        choice_set: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, " rows"]:
        """Draw at strength zero, where all outcomes are equally probable."""
        return self.sample(margin, 0.0, choice_set, generator=generator)

    def unconstrained(self) -> Tensor:
        """No parameters."""
        return torch.zeros(0, dtype=torch.float64)

    def constrained(self, vector: Tensor) -> "_Choice":
        """The same model, which has no parameters."""
        return self


@dataclass(frozen=True)
class BestOf(_Choice):
    r"""The best of K responses: the multinomial logit.

    .. math:: \log P = -\log\Big(1 + \sum_j e^{-\beta \Delta_j}\Big), \quad
              \Delta_j = v_\text{chosen} - v_j

    over the K - 1 others. Outcomes are 1 for the chosen row and 0 for the others; without outcomes
    the rows are the K - 1 margins :math:`\Delta_j` of each set.

    References:
        | Conditional logit analysis of qualitative choice behavior (McFadden, 1974)

    Example:
        >>> BestOf().log_prob(torch.tensor([1.0, 2.0, -1.0]), choice_set=torch.tensor([7, 7, 3]))
        tensor([-1.3133, -0.4076])
    """

    def support(self, size: int = 2) -> Int[Tensor, "outcomes size"]:
        """Each response the chosen one."""
        return torch.eye(size, dtype=torch.long)

    def log_num_outcomes(
        self, margin: Tensor, outcome: Tensor | None = None, choice_set: Tensor | None = None
    ) -> Float[Tensor, " choices"]:
        """Log K."""
        return _sorted_rows(margin, outcome, choice_set)[0].sizes.double().log()

    def _check(self, rows: _Rows) -> None:
        _check_each_once(rows, (1,), (0, 1))

    def _terms(self, rows: _Rows) -> _StageTerms:
        choices = torch.arange(len(rows.sizes), device=rows.value.device)
        return _stages(rows.value, rows.choice, rows.rank == 1, choices, len(choices))

    def _ranks(self, rows: _Rows, generator: torch.Generator | None) -> Tensor:
        return (_gumbel_ranks(rows, generator) == 1).long()


@dataclass(frozen=True)
class Ranking(_Choice):
    """A ranking of K responses, or of the first few of them: the best, then the best of the rest.

    Outcomes are 1, 2, ... for the ranked rows, the best one first, and 0 for the others, which are
    below all ranked ones. Sets may differ in how many are ranked.

    Args:
        depth: How many are ranked in outcomes that are drawn or listed; None: all of them.

    Raises:
        ValueError: If the depth is not positive.

    References:
        | The analysis of permutations (Plackett, JRSS C 24, 1975); Luce (1959)

    Example:
        >>> Ranking().probabilities(torch.tensor([1.0, 0.0, -1.0])).sum()
        tensor(1.)
    """

    depth: int | None = None

    def __post_init__(self) -> None:
        """Check the depth."""
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"Expected 1 <= depth, got {self.depth}")

    def support(self, size: int = 2) -> Int[Tensor, "outcomes size"]:
        """Every order of the first `depth` responses."""
        depth = min(self.depth or size, size)
        orders = torch.tensor(list(itertools.permutations(range(size), depth)))
        ranks = torch.arange(1, depth + 1).expand(orders.shape)
        return torch.zeros(len(orders), size, dtype=torch.long).scatter(1, orders, ranks)

    def log_num_outcomes(
        self, margin: Tensor, outcome: Tensor | None = None, choice_set: Tensor | None = None
    ) -> Float[Tensor, " choices"]:
        """Log of K! / (K - d)!, d of K being ranked."""
        rows, _ = _sorted_rows(margin, outcome, choice_set)
        left = rows.sizes - rows.number_of(rows.rank > 0)
        return (rows.sizes + 1.0).double().lgamma() - (left + 1.0).double().lgamma()

    def _check(self, rows: _Rows) -> None:
        rows = rows.by_rank()
        wrong = (rows.rank != 0) & (rows.rank != rows.position() + 1)
        if bool(wrong.any()) or bool((rows.number_of(rows.rank > 0) == 0).any()):
            raise ValueError(
                "Expected ranks 1, 2, ... once each in every choice set and 0 for the rest, "
                f"got {_first_bad(rows, wrong)}"
            )

    def _terms(self, rows: _Rows) -> _StageTerms:
        """A row stands in the stages up to its own rank; a stage with one row says nothing."""
        rows = rows.by_rank()
        depth = torch.minimum(rows.number_of(rows.rank > 0), rows.sizes - 1)
        first = depth.cumsum(0) - depth
        place = rows.position()
        times = torch.minimum(place + 1, depth[rows.choice])
        row = torch.arange(len(place), device=place.device).repeat_interleave(times)
        start = times.cumsum(0) - times
        within = torch.arange(len(row), device=row.device) - start[row]
        stage = first[rows.choice[row]] + within
        order = stage.argsort(stable=True)
        row, within, stage = row[order], within[order], stage[order]
        owner = torch.arange(len(depth), device=row.device).repeat_interleave(depth)
        return _stages(rows.value[row], stage, place[row] == within, owner, len(depth))

    def _ranks(self, rows: _Rows, generator: torch.Generator | None) -> Tensor:
        ranks = _gumbel_ranks(rows, generator)
        return ranks if self.depth is None else torch.where(ranks <= self.depth, ranks, 0)


@dataclass(frozen=True)
class BestWorst(_Choice):
    r"""The best of K, then the worst of the rest: the sequential best-worst model.

    .. math:: P = \frac{e^{\beta v_b}}{\sum_j e^{\beta v_j}} \,
              \frac{e^{-\beta v_w}}{\sum_{j \ne b} e^{-\beta v_j}}

    Outcomes are 1 for the best row, -1 for the worst and 0 for the others.

    References:
        | Some probabilistic models of best, worst, and best-worst choices (Marley and Louviere,
          Journal of Mathematical Psychology 49, 2005)

    Example:
        >>> BestWorst().probabilities(torch.tensor([1.0, 0.0, -1.0])).sum()
        tensor(1.)
    """

    def support(self, size: int = 2) -> Int[Tensor, "outcomes size"]:
        """Every best with every other worst."""
        pairs = torch.tensor(list(itertools.permutations(range(size), 2)))
        signs = torch.tensor([1, -1]).expand(pairs.shape)
        return torch.zeros(len(pairs), size, dtype=torch.long).scatter(1, pairs, signs)

    def log_num_outcomes(
        self, margin: Tensor, outcome: Tensor | None = None, choice_set: Tensor | None = None
    ) -> Float[Tensor, " choices"]:
        """Log of K (K - 1)."""
        sizes = _sorted_rows(margin, outcome, choice_set)[0].sizes.double()
        return (sizes * (sizes - 1)).log()

    def _check(self, rows: _Rows) -> None:
        _check_each_once(rows, (1, -1), (-1, 0, 1))

    def _terms(self, rows: _Rows) -> _StageTerms:
        rest = rows.rank != 1
        value = torch.cat([rows.value, -rows.value[rest]])
        stage = torch.cat([2 * rows.choice, 2 * rows.choice[rest] + 1])
        chosen = torch.cat([rows.rank == 1, rows.rank[rest] == -1])
        order = stage.argsort(stable=True)
        owner = torch.arange(len(rows.sizes), device=stage.device).repeat_interleave(2)
        return _stages(value[order], stage[order], chosen[order], owner, len(rows.sizes))

    def _ranks(self, rows: _Rows, generator: torch.Generator | None) -> Tensor:
        best = _gumbel_ranks(rows, generator) == 1
        turned = rows._replace(value=torch.where(best, -torch.inf, -rows.value))
        return best.long() - (_gumbel_ranks(turned, generator) == 1).long()


def _sorted_rows(
    margin: Tensor, outcome: Tensor | None, choice_set: Tensor | None
) -> tuple[_Rows, Tensor | None]:
    """Rows by ascending id of their set, and their order; None where they were sorted already."""
    if choice_set is None or choice_set.shape != margin.shape:
        found = "none" if choice_set is None else tuple(choice_set.shape)
        raise ValueError(f"Expected a choice_set per row, got {found} for {tuple(margin.shape)}")
    if outcome is None:
        ids = choice_set.unique()
        margin = torch.cat([-margin, margin.new_zeros(len(ids))])
        outcome = torch.cat([torch.zeros_like(choice_set), torch.ones_like(ids)])
        choice_set = torch.cat([choice_set, ids])
    if outcome.shape != margin.shape:
        raise ValueError(f"Expected an outcome per row, got {len(outcome)} for {len(margin)}")
    order = None
    if not bool((choice_set[1:] >= choice_set[:-1]).all()):
        order = choice_set.argsort(stable=True)
        margin, outcome, choice_set = margin[order], outcome[order], choice_set[order]
    _, choice, sizes = choice_set.unique_consecutive(return_inverse=True, return_counts=True)
    return _Rows(margin, outcome.long(), choice, sizes), order


def _stages(
    value: Float[Tensor, " members"],
    stage: Int[Tensor, " members"],
    chosen: Bool[Tensor, " members"],
    choice: Int[Tensor, " stages"],
    num_choices: int,
) -> _StageTerms:
    """Compare the members of each stage, sorted by stage, with the top one; one is chosen."""
    fixed, index = value.detach(), torch.arange(len(value), device=value.device)
    highest = fixed.new_empty(len(choice)).scatter_reduce(
        0, stage, fixed, "amax", include_self=False
    )
    candidate = torch.where(fixed == highest[stage], index, len(value))
    top = index.new_empty(len(choice)).scatter_reduce(
        0, stage, candidate, "amin", include_self=False
    )
    other = torch.ones_like(chosen).index_fill(0, top, False)
    best = value[top]
    excess = value.new_zeros(num_choices).index_add(0, choice, value[chosen] - best)
    return _StageTerms(excess, best[stage[other]] - value[other], stage[other], choice)


def _check_each_once(rows: _Rows, once: tuple[int, ...], known: tuple[int, ...]) -> None:
    """Raise unless each of `once` occurs once in every set, and outcomes are among `known`."""
    unknown = ~torch.isin(rows.rank, rows.rank.new_tensor(known))
    if bool(unknown.any()) or any(bool((rows.number_of(rows.rank == r) != 1).any()) for r in once):
        raise ValueError(
            f"Expected one row of outcome {' and one of '.join(map(str, once))} in every choice "
            f"set and 0 for the rest, got {_first_bad(rows, unknown, once)}"
        )


def _first_bad(rows: _Rows, wrong: Tensor, once: tuple[int, ...] = (1,)) -> list[int]:
    """Outcomes of the first set that is not as expected."""
    bad = rows.number_of(wrong) > 0
    for rank in once:
        bad = bad | (rows.number_of(rows.rank == rank) != 1)
    return rows.rank[rows.choice == bad.nonzero()[0]].tolist()


def _gumbel_ranks(rows: _Rows, generator: torch.Generator | None) -> Int[Tensor, " rows"]:
    """Ranks of the values plus Gumbel noise, whose order is one of the Plackett-Luce model."""
    uniform = torch.rand(
        rows.value.shape, generator=generator, dtype=torch.float64, device=rows.value.device
    )
    noisy = rows.value - (-uniform.clamp(min=1e-300).log()).log()
    order = noisy.argsort(descending=True, stable=True)
    order = order[rows.choice[order].argsort(stable=True)]
    return torch.empty_like(order).scatter(0, order, rows.position() + 1)
