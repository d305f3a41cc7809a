"""What annotators did where choices are not plain pairs: sets, rankings, ties and grades."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixdpo_pyro.models.observation import (
    Davidson,
    Graded,
    Lapse,
    Observation,
    Ranking,
    RaoKupper,
    Terms,
)
from mixdpo_pyro.models.observation.base import as_tensor

__all__ = [
    "Outcomes",
    "Ties",
    "describe_observation",
    "log_prior_of_parameters",
    "name_grades",
    "name_parameters",
    "prior_parameters",
    "read_outcomes",
]

Ties = Literal["rao-kupper", "davidson"]
"""Models of ties between two responses."""

_WORDS = {"loss": -1, "tie": 0, "win": 1}

_FIRST_STEP = 1.0
"""Prior median of the steps between cut points, in units of strength times margin."""


@dataclass(frozen=True, repr=False, eq=False)
class Outcomes:
    """What was done in each choice, row by row.

    Attributes:
        observation: The observation model. Parameters of its own (thresholds) stand at the medians
            of their priors, or where a fit has put them.
        prior: Prior medians of its parameters on the real line.
        choice: Number of the choice of each row; choices are numbered in the order of first rows.
        code: Per row. Sets: rank of the rejected response, 0 where it has none, the chosen one
            being first. Judgements: the outcome as the model codes it.
    """

    observation: Observation
    prior: Float[np.ndarray, " parameters"]
    choice: Int[np.ndarray, " rows"]
    code: Int[np.ndarray, " rows"]

    @classmethod
    def of(cls, observation: Observation, choice: np.ndarray, code: np.ndarray) -> "Outcomes":
        """Outcomes under a model whose parameters are their prior medians."""
        prior = observation.unconstrained().detach().double().numpy()
        return cls(observation, prior, choice, code)

    @property
    def num_choices(self) -> int:
        """Number of choices."""
        return int(self.choice.max()) + 1

    @property
    def are_sets(self) -> bool:
        """Whether rows are the responses of choice sets, not judgements of two responses."""
        return self.observation.takes_sets

    @property
    def sizes(self) -> Int[np.ndarray, " choices"]:
        """Responses of each choice."""
        return np.bincount(self.choice) + 1

    @property
    def sign(self) -> Float[np.ndarray, " rows"]:
        """What a row says of its first response: 1 better, -1 worse, 0 neither, grades between."""
        if self.are_sets:
            return np.ones(len(self.code))
        last = len(self.observation.support()) - 1
        return 2 * self.code / last - 1

    def terms(self, margin: Float[np.ndarray, " rows"]) -> Terms:
        """The choices, in the order of their numbers, made ready for many strengths."""
        values, codes = torch.from_numpy(margin), torch.from_numpy(self.code)
        if not self.are_sets:
            return self.observation.encode(values, codes)
        return self.observation.encode(*self.utilities(margin))

    def utilities(
        self, margin: Float[np.ndarray, " rows"] | Float[Tensor, " rows"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Utilities, ranks and choices of all responses of the sets, the chosen ones last."""
        first, margin = torch.arange(self.num_choices), torch.as_tensor(margin)
        value = torch.cat([-margin, margin.new_zeros(len(first))])
        rank = torch.cat([torch.from_numpy(self.code), torch.ones_like(first)])
        return value, rank, torch.cat([torch.from_numpy(self.choice), first])

    def first_place(self, margin: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " choices"]:
        """How many responses of each set have a larger utility than the chosen one."""
        return np.bincount(self.choice, margin < 0, self.num_choices).astype(np.int64)

    def probabilities(
        self, margin: Float[np.ndarray, " rows"], strength: Float[np.ndarray, "*draws choices"]
    ) -> Float[np.ndarray, "*draws choices outcomes"]:
        """Probability of everything that :meth:`sample` may draw, at given strengths.

        Sets have as many outcomes as the largest of them has responses.
        """
        beta = torch.from_numpy(strength)
        if not self.are_sets:
            return self.observation.probabilities(torch.from_numpy(margin), beta).numpy()
        value = torch.from_numpy(self.by_place(margin))
        is_none = value.isnan()
        logit = (beta.unsqueeze(-1) * value).masked_fill(is_none, -torch.inf)
        probability = logit.softmax(-1)
        if isinstance(self.observation, Lapse):
            rate, careless = as_tensor(self.observation.rate).item(), (~is_none).double()
            careless = careless / careless.sum(-1, keepdim=True)
            probability = (1 - rate) * probability + rate * careless
        return probability.numpy()

    def sample(
        self,
        margin: Float[np.ndarray, " rows"],
        strength: Float[np.ndarray, "*draws choices"],
        rng: np.random.Generator,
    ) -> Int[np.ndarray, "*draws choices"]:
        """Draw what is done in each choice: the outcome, or of a set the place of the chosen one.

        Places count from 0, the response with the largest utility.
        """
        cumulative = self.probabilities(margin, strength).cumsum(-1)[..., :-1]
        return (rng.random(strength.shape)[..., None] > cumulative).sum(-1)

    def by_place(self, margin: Float[np.ndarray, " rows"]) -> Float[np.ndarray, "choices places"]:
        """Utilities of the responses of each set, the largest first; NaN where there is none."""
        utility, _, choice = (x.numpy() for x in self.utilities(margin))
        order = np.lexsort((-utility, choice))
        start = np.cumsum(self.sizes) - self.sizes
        place = np.arange(len(order)) - start[choice[order]]
        value = np.full((self.num_choices, int(self.sizes.max())), np.nan)
        value[choice[order], place] = utility[order]
        return value

    def seen(self, margin: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " choices"]:
        """What was done, as :meth:`sample` says it."""
        return self.first_place(margin) if self.are_sets else self.code

    def at(self, parameters: dict[str, np.ndarray], draw: int) -> "Outcomes":
        """The same outcomes under the model with the parameters of one posterior draw."""
        observation = self.observation
        rate: Tensor | float | None = None
        if isinstance(observation, Lapse):
            rate = observation.rate
            observation = observation.observation
        if "lapse_rate" in parameters:
            rate = float(parameters["lapse_rate"][draw])
        values = {k: torch.from_numpy(np.atleast_1d(v[draw])) for k, v in parameters.items()}
        if "threshold" in values:
            observation = RaoKupper(values["threshold"])
        if "nu" in values:
            observation = Davidson(values["nu"].squeeze(0))
        if "cut_points" in values:
            assert isinstance(observation, Graded)
            observation = Graded(values["cut_points"], observation.middle)
        if rate is not None:
            observation = Lapse(observation, rate)
        return replace(self, observation=observation)

    def take(self, rows: np.ndarray) -> "Outcomes":
        """The choices of these rows, numbered anew; a mask, or indices in ascending order."""
        _, choice = np.unique(self.choice[rows], return_inverse=True)
        code = self.code[rows]
        if self.are_sets and code.any() and len(code) < len(self.code):
            code = _renumbered(choice, code)
        return replace(self, choice=choice, code=code)

    def count(self) -> dict[str, int]:
        """How often each outcome of the first response was seen, or sets among so many."""
        if self.are_sets:
            size, number = np.unique(self.sizes, return_counts=True)
            names = [f"among {each} responses" for each in size]
        else:
            grades = len(self.observation.support())
            number = np.bincount(self.code, minlength=grades)
            names = ["loss", "tie", "win"] if grades == 3 else name_grades(grades)
        return dict(zip(names, number.tolist(), strict=True))

    def describe(self) -> str:
        """What the choices are, such as "40 choices among 2 to 4 responses"."""
        number = f"{self.num_choices:,}"
        if not self.are_sets:
            grades = len(self.observation.support())
            kind = "with ties" if grades == 3 else f"in {grades} grades"
            return f"{number} pairs judged {kind}"
        low, high = int(self.sizes.min()), int(self.sizes.max())
        kind = "rankings" if (self.code > 0).any() else "choices"
        return f"{number} {kind} among {low if low == high else f'{low} to {high}'} responses"


def read_outcomes(
    margin: Float[np.ndarray, " rows"],
    choice_set: np.ndarray | None,
    rank: Any,
    outcome: Any,
    ties: Ties,
) -> tuple[Outcomes | None, Float[np.ndarray, " rows"]]:
    """Check what was done; None where all choices are plain pairs.

    Args:
        margin: Checked margins.
        choice_set: Ids of the sets as text, per row, or None.
        rank: Ranks of the rejected responses, the chosen one being 1; None or NaN: not ranked.
        outcome: `"win"`, `"tie"` or `"loss"` of the first response, or grades -k, ..., k.
        ties: Model of ties.

    Returns:
        The outcomes, and the margins with the winner first where choices are plain pairs.

    Raises:
        ValueError: Naming the index and what is wrong with it.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"Expected ties to be one of {', '.join(get_args(Ties))}, got {ties!r}")
    found = None if choice_set is None else _read_sets(choice_set, rank)
    if rank is not None and choice_set is None:
        raise ValueError("Expected a choice_set with rank: a rank is one within a set")
    if outcome is None:
        return found, margin
    if found is not None:
        raise ValueError(
            "Expected outcomes of pairs, got a choice_set of several rows: ties and grades within "
            "larger sets have no likelihood here; give their order as rank"
        )
    return _read_judgements(margin, outcome, ties)


def describe_observation(outcomes: Outcomes | None) -> str:
    """`"pairs"`, `"sets"`, `"rao-kupper"`, `"davidson"` or `"grades"`."""
    if outcomes is None:
        return "pairs"
    observation = outcomes.observation
    if isinstance(observation, Lapse):
        observation = observation.observation
    names = {Ranking: "sets", RaoKupper: "rao-kupper", Davidson: "davidson", Graded: "grades"}
    return names[type(observation)]


def name_parameters(
    observation: Observation, vector: Float[np.ndarray, "samples parameters"]
) -> dict[str, np.ndarray]:
    """Draws of the parameters of a model by name, from draws on the real line.

    `threshold` (Rao-Kupper) and `nu` (Davidson), shape `(samples,)`; `cut_points` (grades), shape
    `(samples, cut_points)`; `lapse_rate`, shape `(samples,)`.
    """
    values = torch.from_numpy(vector)
    if isinstance(observation, Lapse):
        inner = name_parameters(observation.observation, vector[:, :-1])
        return inner | {"lapse_rate": values[:, -1].sigmoid().numpy()}
    if isinstance(observation, RaoKupper):
        return {"threshold": values[:, 0].exp().numpy()}
    if isinstance(observation, Davidson):
        return {"nu": values[:, 0].exp().numpy()}
    if isinstance(observation, Graded) and vector.shape[1]:
        return {"cut_points": values.exp().cumsum(1).numpy()}
    return {}


def prior_parameters(
    outcomes: Outcomes | None, num_samples: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draws of the observation model's parameters from their prior, by name."""
    if outcomes is None:
        return {}
    draws = outcomes.prior + rng.standard_normal((num_samples, len(outcomes.prior)))
    return name_parameters(outcomes.observation, draws)


def log_prior_of_parameters(
    outcomes: Outcomes | None, parameters: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Log prior density of each parameter's draws, in nats, on the real line.

    Args:
        outcomes: What was done, which knows the priors' medians; their deviations are one.
        parameters: Draws by name, as :func:`name_parameters` gives them.

    Returns:
        By name, shapes as those of the draws; a cut point has that of its step from the last one.
    """
    if outcomes is None:
        return {}
    found, first = {}, 0
    for name, draws in parameters.items():
        steps = np.diff(draws.reshape(len(draws), -1), prepend=0.0)
        vector = np.log(steps) - (np.log1p(-steps) if name == "lapse_rate" else 0.0)
        centre = outcomes.prior[first : first + vector.shape[1]]
        first += vector.shape[1]
        log_density = -((vector - centre) ** 2) / 2 - np.log(2 * np.pi) / 2
        found[name] = log_density.reshape(draws.shape)
    return found


def name_grades(number: int) -> list[str]:
    """Names of so many grades, the strongest for the second response first.

    Example:
        >>> name_grades(5)
        ['grade -2', 'grade -1', 'tie', 'grade +1', 'grade +2']
        >>> name_grades(2)
        ['grade -1', 'grade +1']
    """
    half, has_middle = number // 2, number % 2 == 1
    steps = [k - half + (0 if has_middle else int(k >= half)) for k in range(number)]
    return ["tie" if step == 0 else f"grade {step:+d}" for step in steps]


# Sets


def _read_sets(ids: np.ndarray, rank: Any) -> Outcomes | None:
    _, first, choice = np.unique(ids.astype(str), return_index=True, return_inverse=True)
    choice = np.argsort(np.argsort(first))[choice]  # numbered in the order of first rows
    if len(first) == len(ids):
        return None
    code = np.zeros(len(ids), dtype=np.int64) if rank is None else _read_ranks(rank, choice, ids)
    return Outcomes.of(Ranking(None if code.any() else 1), choice, code)


def _read_ranks(
    rank: Any, choice: Int[np.ndarray, " rows"], ids: np.ndarray
) -> Int[np.ndarray, " rows"]:
    """Ranks, 0 for the responses that share the last one, or have none."""
    value = np.array([np.nan if r is None else r for r in _as_list(rank)], dtype=np.float64)
    if len(value) != len(choice):
        raise ValueError(f"Expected one rank per margin ({len(choice)}), got {len(value)}")
    value[np.isnan(value)] = np.inf
    order = np.lexsort((value, choice))
    by_rank, owner = value[order], choice[order]
    start = np.flatnonzero(np.diff(owner, prepend=-1))
    place = np.arange(len(value)) - start[owner]
    last = by_rank[np.append(start[1:], len(value)) - 1][owner]
    is_below = np.isinf(by_rank) | ((by_rank == last) & (_count_equal(owner, by_rank) > 1))
    is_later = np.append(False, is_below[:-1] & (owner[1:] == owner[:-1]))
    wrong = np.isfinite(by_rank) & (by_rank != place + 2) & ~(is_below & is_later)
    if wrong.any():
        row = int(order[np.flatnonzero(wrong)[0]])
        raise ValueError(
            "Expected ranks 2, 3, ... of the rejected responses of each set, the chosen one being "
            "1 and only the last rank shared, got "
            f"{value[row]:g} at index {row} in the set {ids[row]!r}"
        )
    code = np.empty(len(value), dtype=np.int64)
    code[order] = np.where(is_below, 0, by_rank)
    return code


def _count_equal(choice: np.ndarray, rank: np.ndarray) -> Int[np.ndarray, " rows"]:
    """How many rows of the same choice have the same rank; rows sorted by choice and rank."""
    is_new = np.ones(len(rank), dtype=bool)
    is_new[1:] = (choice[1:] != choice[:-1]) | (rank[1:] != rank[:-1])
    run = is_new.cumsum() - 1
    return np.bincount(run)[run]


def _renumbered(
    choice: Int[np.ndarray, " rows"], rank: Int[np.ndarray, " rows"]
) -> Int[np.ndarray, " rows"]:
    """Ranks 2, 3, ... again in sets that lost some; 0 stays."""
    ranked = np.flatnonzero(rank)
    order = ranked[np.lexsort((rank[ranked], choice[ranked]))]
    start = np.flatnonzero(np.diff(choice[order], prepend=-1))
    run = np.repeat(start, np.diff(np.append(start, len(order))))
    code = np.zeros_like(rank)
    code[order] = np.arange(len(order)) - run + 2
    return code


# Judgements


def _read_judgements(
    margin: Float[np.ndarray, " rows"], outcome: Any, ties: Ties
) -> tuple[Outcomes | None, Float[np.ndarray, " rows"]]:
    grade = np.array([_grade(k, value) for k, value in enumerate(_as_list(outcome))])
    if len(grade) != len(margin):
        raise ValueError(f"Expected one outcome per margin ({len(margin)}), got {len(grade)}")
    top, has_middle = int(np.abs(grade).max(initial=0)), bool((grade == 0).any())
    if top == 0:
        raise ValueError("Expected outcomes some of which are not ties, got ties only")
    if top == 1 and not has_middle:
        return None, margin * grade
    code = grade + top - (0 if has_middle else (grade > 0))
    observation: Observation = Graded(
        _FIRST_STEP * torch.arange(1, top + has_middle, dtype=torch.float64), has_middle
    )
    if top == 1:
        observation = RaoKupper(_FIRST_STEP) if ties == "rao-kupper" else Davidson(1.0)
    return Outcomes.of(observation, np.arange(len(margin)), code.astype(np.int64)), margin


def _grade(index: int, value: Any) -> int:
    if isinstance(value, str) and value in _WORDS:
        return _WORDS[value]
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if is_number and not isinstance(value, bool) and float(value).is_integer():
        return int(value)
    raise ValueError(
        f"Expected an outcome 'win', 'tie' or 'loss', or a whole number (a grade), got {value!r} "
        f"at index {index}"
    )


def _as_list(values: Any) -> Sequence[Any]:
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(values, name):
            return list(getattr(values, name)())
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"Expected a column with a value per margin, got {type(values).__name__}")
    return list(values)
