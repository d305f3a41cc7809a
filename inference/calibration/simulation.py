"""Simulated choices with known strengths, of every kind that a fit takes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import expit

from mixdpo_pyro.inference.predictive import sample_strengths
from mixdpo_pyro.models import Family
from mixdpo_pyro.models.observation import Graded, Observation, Pair, Ranking, RaoKupper

__all__ = ["Design", "SimulatedChoices", "as_grades", "parse_kind", "simulate", "simulate_choices"]

_THRESHOLD = 0.7
"""Simulated tie threshold: with a spread of 2 and cv 0.5, 22% of the answers are ties."""


@dataclass(frozen=True)
class Design:
    """The shape of simulated data.

    Attributes:
        num_annotators: Number of annotators.
        choices_each: Choices of each; 1 makes independent choices.
        spread: Standard deviation of beta * margin between two responses.
        beta: Median of the mean's prior.
        kind: `"pairs"`, `"ties"`, `"grades:G"` (G outcomes), `"best-of:K"` or `"ranking:K"`.
        judges_per_pair: How many annotators judge the same pair, a divisor of their number; who
            judges what is random. Plain pairs only, as the next one.
        pair_error: Standard deviation of an error of each pair's margin, over that of the margins:
            choices are made by the margin plus its error, the same for all who judge the pair.
    """

    num_annotators: int = 20
    choices_each: int = 10
    spread: float = 3.0
    beta: float = 0.1
    kind: str = "pairs"
    judges_per_pair: int = 1
    pair_error: float = 0.0

    @property
    def is_crossed(self) -> bool:
        """Whether pairs have several judges, or errors."""
        return self.judges_per_pair > 1 or self.pair_error > 0


@dataclass(frozen=True)
class SimulatedChoices:
    """Choices and the strengths behind them.

    Attributes:
        margin: Margins in nats, chosen over rejected, or first over second with ties and grades.
        annotator: Annotator of each row.
        strength: True strength of each annotator.
        done: `choice_set`, `rank` and `outcome` as `fit` takes them.
        pair: Pair of each row, where several annotators judge the same or margins have errors.
    """

    margin: Float[np.ndarray, " rows"]
    annotator: Int[np.ndarray, " rows"]
    strength: Float[np.ndarray, " annotators"]
    done: dict[str, Any] = field(default_factory=dict)
    pair: Int[np.ndarray, " rows"] | None = None


def parse_kind(kind: str) -> tuple[Observation, int]:
    """The observation model of a kind of choice, and the number of responses of each.

    Args:
        kind: `"pairs"`, `"ties"`, `"grades:G"`, `"best-of:K"` or `"ranking:K"`.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> parse_kind("best-of:4")
        (Ranking(depth=1), 4)
    """
    name, _, number = kind.partition(":")
    size = int(number) if number.isdecimal() else 0
    if kind == "pairs":
        return Pair(), 2
    if kind == "ties":
        return RaoKupper(_THRESHOLD), 2
    if name == "grades" and 3 <= size <= 11:
        num_points = (size - 1) // 2
        points = _THRESHOLD + 1.4 * torch.arange(num_points, dtype=torch.float64)
        return Graded(points, middle=size % 2 == 1), 2
    if name in ("best-of", "ranking") and 2 <= size <= 26:
        return Ranking(1 if name == "best-of" else None), size
    raise ValueError(
        "Expected 'pairs', 'ties', 'grades:G' (3 to 11 grades), 'best-of:K' or 'ranking:K' (2 to "
        f"26 responses), got {kind!r}"
    )


def simulate(
    mean: float, cv: float, family: Family, design: Design, rng: np.random.Generator
) -> SimulatedChoices:
    """Draw annotators, and choices of the design's kind; margins are exact but for `pair_error`.

    Raises:
        ValueError: If there is no such kind, pairs of another kind have several judges or errors,
            or the annotators cannot share the pairs equally.
    """
    if design.is_crossed:
        return _simulate_crossed(mean, cv, family, design, rng)
    if design.kind == "pairs":
        return SimulatedChoices(*simulate_choices(mean, cv, family, design, rng))
    observation, size = parse_kind(design.kind)
    strength = _draw_strengths(mean, cv, family, design, rng)
    person = np.repeat(np.arange(design.num_annotators), design.choices_each)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    beta = torch.from_numpy(strength[person])
    scale = design.spread / design.beta
    if not observation.takes_sets:
        margin = rng.normal(0, scale, len(person))
        code = observation.sample(torch.from_numpy(margin), beta, generator=generator).numpy()
        return SimulatedChoices(
            margin, person, strength, {"outcome": as_grades(code, observation)}
        )
    utility = rng.normal(0, scale / np.sqrt(2), (len(person), size))
    sets = torch.arange(len(person)).repeat_interleave(size)
    rank = observation.sample(torch.from_numpy(utility.ravel()), beta, sets, generator=generator)
    return _as_pairs(utility, rank.numpy().reshape(utility.shape), person, strength)


def simulate_choices(
    mean: float, cv: float, family: Family, design: Design, rng: np.random.Generator
) -> tuple[
    Float[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Float[np.ndarray, " annotators"]
]:
    """Margins of the chosen over the rejected response, annotators, and their true strengths."""
    strength = _draw_strengths(mean, cv, family, design, rng)
    annotator = np.repeat(np.arange(design.num_annotators), design.choices_each)
    difference = rng.normal(0, design.spread / design.beta, len(annotator))
    prefers_first = rng.random(len(annotator)) < expit(strength[annotator] * difference)
    return np.where(prefers_first, difference, -difference), annotator, strength


def _simulate_crossed(
    mean: float, cv: float, family: Family, design: Design, rng: np.random.Generator
) -> SimulatedChoices:
    """Plain pairs, each judged by equally many annotators, whose margins may have errors."""
    judges = design.judges_per_pair
    if design.kind != "pairs":
        raise ValueError(f"Expected plain pairs with several judges or errors, got {design.kind}")
    if design.num_annotators % judges:
        raise ValueError(
            f"Expected judges_per_pair to divide num_annotators ({design.num_annotators:,}), got "
            f"{judges}"
        )
    strength = _draw_strengths(mean, cv, family, design, rng)
    person = np.repeat(np.arange(design.num_annotators), design.choices_each)
    # Each permutation deals all pairs to its own part of the annotators.
    num_pairs = len(person) // judges
    pair = np.concatenate([rng.permutation(num_pairs) for _ in range(judges)])
    scale = design.spread / design.beta
    difference = rng.normal(0, scale, num_pairs)
    felt = difference + rng.normal(0, design.pair_error * scale, num_pairs)
    prefers_first = rng.random(len(person)) < expit(strength[person] * felt[pair])
    margin = np.where(prefers_first, 1, -1) * difference[pair]
    return SimulatedChoices(margin, person, strength, pair=pair)


def _draw_strengths(
    mean: float, cv: float, family: Family, design: Design, rng: np.random.Generator
) -> np.ndarray:
    annotators = np.full(design.num_annotators, 1.0)
    return sample_strengths(family, mean * annotators, max(cv, 1e-6) * annotators, rng)


def as_grades(code: np.ndarray, observation: Observation) -> np.ndarray:
    """Outcomes 0, 1, ... as grades around zero, or around the gap where there is no middle."""
    num_outcomes = len(observation.support())
    half, has_middle = num_outcomes // 2, num_outcomes % 2 == 1
    return code - half + (0 if has_middle else (code >= half))


def _as_pairs(
    utility: Float[np.ndarray, "choices size"],
    rank: Int[np.ndarray, "choices size"],
    person: Int[np.ndarray, " choices"],
    strength: np.ndarray,
) -> SimulatedChoices:
    """The chosen response of each set over each other one, best ranks first."""
    num_choices, size = utility.shape
    order = np.argsort(np.where(rank > 0, rank, size + 1), axis=1, kind="stable")
    sorted_utility = np.take_along_axis(utility, order, 1)
    sorted_rank = np.take_along_axis(rank, order, 1)[:, 1:].ravel().astype(float)
    done: dict[str, Any] = {"choice_set": np.repeat(np.arange(num_choices), size - 1)}
    if sorted_rank.any():
        done["rank"] = np.where(sorted_rank > 0, sorted_rank, np.nan)
    margin = (sorted_utility[:, :1] - sorted_utility[:, 1:]).ravel()
    return SimulatedChoices(margin, np.repeat(person, size - 1), strength, done)
