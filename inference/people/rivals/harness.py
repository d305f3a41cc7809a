"""The harness: every rival model fitted to the same folds, and judged on the same choices."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from mixdpo_pyro.inference.people.rivals.bridging import fit_bridging
from mixdpo_pyro.inference.people.rivals.pal import fit_pal_a, fit_pal_b
from mixdpo_pyro.inference.people.rivals.records import FittedRival, KnownChoices, Setting
from mixdpo_pyro.inference.people.rivals.strengths import (
    fit_mixed_rewards,
    fit_mixed_strengths,
    fit_one_weight,
    fit_person_weights,
)
from mixdpo_pyro.inference.people.rivals.types import deal_folds, fit_types
from mixdpo_pyro.models import Family

__all__ = [
    "ONE_STRENGTH", "RIVALS", "Folds", "HeldOut", "Rival", "make_folds",
    "run_rival",
]  # fmt: skip

ONE_STRENGTH, ONE_REWARD = "one strength", "one reward"

_ONE_POINT, _ONE_ANGLE = "PAL-A, one prototype", "PAL-B, one prototype"

_RIDGES = (0.1, 1.0, 10.0, 100.0)
_PERSON_RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_TYPES = (2, 3)

_INNER_FOLDS = 4
"""One of which selects settings, as held-out choices of the same kind as those that score."""


@dataclass(frozen=True)
class Rival:
    """A model.

    Attributes:
        name: Its name.
        inputs: `"margins"`, or `"embeddings"` beside them.
        fit: Fits it, from choices, a setting and a seed.
        settings: Settings of which inner held-out choices select one.
        equal_people: The same model were all people alike; of those themselves, their own name.
    """

    name: str
    inputs: Literal["margins", "embeddings"]
    fit: Callable[[KnownChoices, Setting, int], FittedRival]
    settings: tuple[Setting, ...]
    equal_people: str


def _grid(**values: Sequence[float | int]) -> tuple[Setting, ...]:
    return tuple(dict(zip(values, each, strict=True)) for each in product(*values.values()))


def _mixed(family: Family) -> Callable[[KnownChoices, Setting, int], FittedRival]:
    return lambda choices, setting, seed: fit_mixed_strengths(choices, family)


def _on_margins(
    name: str,
    fit: Callable[[KnownChoices, Setting, int], FittedRival],
    settings: tuple[Setting, ...] = ({},),
) -> Rival:
    return Rival(name, "margins", fit, settings, ONE_STRENGTH)


def _on_embeddings(
    name: str,
    fit: Callable[[KnownChoices, Setting, int], FittedRival],
    settings: tuple[Setting, ...],
    equal_people: str = ONE_REWARD,
) -> Rival:
    return Rival(name, "embeddings", fit, settings, equal_people)


RIVALS = (
    _on_margins(ONE_STRENGTH, fit_one_weight),
    _on_margins("lognormal with ids", _mixed("lognormal")),
    _on_margins("gamma with ids", _mixed("gamma")),
    _on_margins("strength per person", fit_person_weights, _grid(person=_PERSON_RIDGES)),
    _on_margins("types of strength", fit_types, _grid(types=_TYPES)),
    _on_embeddings(ONE_REWARD, fit_one_weight, _grid(ridge=(0.01, *_RIDGES))),
    _on_embeddings("lognormal on one reward", fit_mixed_rewards, _grid(ridge=(0.01, *_RIDGES))),
    _on_embeddings(
        "reward per person", fit_person_weights, _grid(ridge=_RIDGES[1:], person=(3.0, 30.0))
    ),
    _on_embeddings("EM-DPO", fit_types, _grid(types=_TYPES, ridge=_RIDGES)),
    _on_embeddings(_ONE_POINT, fit_pal_a, _grid(types=(1,), ridge=_RIDGES), _ONE_POINT),
    _on_embeddings("PAL-A", fit_pal_a, _grid(types=_TYPES, ridge=_RIDGES), _ONE_POINT),
    _on_embeddings(_ONE_ANGLE, fit_pal_b, _grid(types=(1,), ridge=_RIDGES), _ONE_ANGLE),
    _on_embeddings("PAL-B", fit_pal_b, _grid(types=_TYPES, ridge=_RIDGES), _ONE_ANGLE),
    _on_embeddings("bridging", fit_bridging, _grid(ridge=(0.5, 5.0, 50.0), factor=_RIDGES[1:])),
)
"""All models, in the order of the table, after the one that they are compared with.

The rewards of PAL are no linear functions of embeddings: what people add shows beside the same
model with one prototype.
"""


@dataclass(frozen=True)
class Folds:
    """Which choices are held out together, and which of them score.

    Attributes:
        fold: Number of the fold that holds each choice out, or -1 where none does.
        is_scored: Whether a choice scores: its person has choices in other folds.
        number: Number of folds.
    """

    fold: Int[np.ndarray, " choices"]
    is_scored: Bool[np.ndarray, " choices"]
    number: int

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows to train on, and rows that score, of each fold."""
        for k in range(self.number):
            held = self.fold == k
            yield np.flatnonzero(~held), np.flatnonzero(held & self.is_scored)


@dataclass(frozen=True)
class HeldOut:
    """Held-out choices under a model.

    Attributes:
        log_prob: Log-probability of each choice in nats; NaN where it does not score.
        num_parameters: Of the fit to all choices.
        setting: The one that most folds selected.
        seconds: Time that all of its fits took.
        people: What the fit to all choices says of each person.
    """

    log_prob: Float[np.ndarray, " choices"]
    num_parameters: int
    setting: Setting
    seconds: float
    people: dict[str, np.ndarray]


def make_folds(
    annotator: Int[np.ndarray, " choices"],
    num_folds: int,
    group: Int[np.ndarray, " choices"] | None = None,
    seed: int | tuple[int, ...] = 0,
) -> Folds:
    """Deal out the choices of each person, or whole groups of choices.

    Args:
        annotator: Number of the annotator of each choice.
        num_folds: Number of folds; groups that are fewer are a fold each.
        group: Number of the group of each choice, such as its topic, which is held out whole.
        seed: Seed of the deal.

    Raises:
        ValueError: If there is one group only, or nobody has choices in two folds.
    """
    rng = np.random.default_rng(seed)
    if group is None:
        fold = deal_folds(annotator, num_folds, rng)
        fold[np.bincount(annotator)[annotator] < 2] = -1
    else:
        fold = _deal_groups(group, num_folds, rng)
    number = int(fold.max()) + 1
    count = np.zeros((annotator.max() + 1, number + 1))
    np.add.at(count, (annotator, fold), 1)  # -1 is the last column
    elsewhere = count.sum(1)[annotator] - count[annotator, fold]
    is_scored = (fold >= 0) & (elsewhere > 0)
    if not is_scored.any():
        raise ValueError("Expected annotators with choices in two folds, got none")
    return Folds(fold, is_scored, number)


def _deal_groups(
    group: Int[np.ndarray, " choices"], num_folds: int, rng: np.random.Generator
) -> Int[np.ndarray, " choices"]:
    """Folds of whole groups, about equally large: the largest first, each to the smallest fold."""
    names, row, size = np.unique(group, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError("Expected several groups to hold out, got one")
    total = np.zeros(min(num_folds, len(names)))
    fold = np.empty(len(names), dtype=int)
    for k in np.lexsort((rng.random(len(names)), -size)):
        fold[k] = total.argmin()
        total[fold[k]] += size[k]
    return fold[row]


def run_rival(
    rival: Rival,
    choices: KnownChoices,
    folds: Folds,
    group: Int[np.ndarray, " choices"] | None = None,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
) -> HeldOut:
    """Fit a model to each fold's other choices, and to all of them.

    Settings are selected within the choices that a fold trains on, held out the same way.

    Args:
        rival: The model.
        choices: All choices.
        folds: Folds.
        group: Groups that are held out whole, if any.
        seed: Seed of inner folds and starts.
        advance: Called after each fold.
    """
    began = time.perf_counter()
    if rival.inputs == "margins":
        choices = replace(choices, embeddings=None)
    log_prob, selected = np.full(len(choices), np.nan), Counter[int]()
    for k, (train, held) in enumerate(folds):
        part = choices.take(train)
        inner = None if group is None else group[train]
        best = _select(rival, part, inner, (seed, k))
        selected[best] += 1
        log_prob[held] = rival.fit(part, rival.settings[best], seed).log_prob(choices.take(held))
        advance()
    setting = rival.settings[selected.most_common(1)[0][0]]
    whole = rival.fit(choices, setting, seed)
    advance()
    seconds = time.perf_counter() - began
    return HeldOut(log_prob, whole.num_parameters, setting, seconds, whole.people)


def _select(
    rival: Rival,
    choices: KnownChoices,
    group: Int[np.ndarray, " choices"] | None,
    seed: tuple[int, int],
) -> int:
    """Number of the setting under which inner held-out choices are most likely."""
    if len(rival.settings) == 1:
        return 0
    train, held = _inner_split(choices, group, seed)
    part, rest = choices.take(train), choices.take(held)
    quick = [{**setting, "starts": 1} for setting in rival.settings]
    values = [rival.fit(part, setting, 0).log_prob(rest).mean() for setting in quick]
    return int(np.argmax(values))


def _inner_split(
    choices: KnownChoices, group: Int[np.ndarray, " choices"] | None, seed: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to select by: groups or choices of known people, or any choices."""
    seeds = (*seed, 71)
    for groups in (None,) if group is None else (group, None):
        try:
            folds = make_folds(choices.annotator, _INNER_FOLDS, groups, seeds)
        except ValueError:  # one group is left, or one choice of each person
            continue
        return next(pair for pair in folds if len(pair[1]))
    rows = np.random.default_rng(seeds).permutation(len(choices))
    return rows[len(rows) // _INNER_FOLDS :], rows[: len(rows) // _INNER_FOLDS]
