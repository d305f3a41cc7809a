"""Columns that strengths may go with, such as topic or age, as a design matrix."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mixdpo_pyro.inference.choices import Choices

__all__ = ["Column", "design_matrix", "read_columns"]

_MAX_LEVELS = 100
"""Levels of all columns: more make no table that anybody reads, and matrices of their square."""

_MAX_GROUPED = 3
"""Columns of levels: the standard deviations of their effects are summed over a lattice."""


@dataclass(frozen=True)
class Column:
    """One column, by choice.

    Attributes:
        name: Its name.
        levels: Labels of its levels; empty where it holds numbers.
        value: Number of the level of each choice, or its number, standardised.
        weight: Share of each level among what the column belongs to, choices or annotators.
        is_of_annotator: Whether it is constant within annotators.
        centre: Mean of the numbers, 0 for levels.
        scale: Their standard deviation, 1 for levels.
    """

    name: str
    levels: tuple[str, ...]
    value: np.ndarray
    weight: Float[np.ndarray, " levels"]
    is_of_annotator: bool
    centre: float = 0.0
    scale: float = 1.0

    @property
    def size(self) -> int:
        """Number of effects: one per level, or one per standard deviation."""
        return max(1, len(self.levels))

    def matrix(self) -> Float[np.ndarray, "choices effects"]:
        """Its part of the design matrix."""
        if not self.levels:
            return self.value[:, None]
        return np.eye(len(self.levels))[self.value]

    def contrasts(self) -> Float[np.ndarray, "effects effects"]:
        """What takes effects of levels to their differences from the weighted mean."""
        return np.eye(self.size) - (self.weight if self.levels else 0.0)


def read_columns(choices: Choices, columns: Mapping[str, Any]) -> list[Column]:
    """Check columns: floats are numbers, anything else is a label of a level.

    Args:
        choices: Data with annotator ids.
        columns: Name -> one value per row, equal within a choice set.

    Raises:
        ValueError: Naming the column that cannot be used, and why.
    """
    found = [_read_column(choices, name, values) for name, values in columns.items()]
    grouped = [column.name for column in found if column.levels]
    if len(grouped) > _MAX_GROUPED:
        raise ValueError(
            f"Expected at most {_MAX_GROUPED} columns of levels, got {', '.join(grouped)}"
        )
    if (total := sum(column.size for column in found)) > _MAX_LEVELS:
        largest = max(found, key=lambda column: column.size)
        raise ValueError(
            f"Expected at most {_MAX_LEVELS} levels, got {total}, of which column "
            f"{largest.name!r} has {largest.size}"
        )
    return found


def design_matrix(
    choices: Choices, columns: list[Column]
) -> Float[np.ndarray, "choices parameters"]:
    """An intercept, then the effects of all columns."""
    ones = np.ones((choices.num_choices, 1))
    return np.concatenate([ones, *(column.matrix() for column in columns)], axis=1)


def _read_column(choices: Choices, name: str, values: Any) -> Column:
    values = np.asarray(values)
    if len(values) != choices.num_pairs:
        raise ValueError(
            f"Expected one value of {name!r} per margin ({choices.num_pairs}), got {len(values)}"
        )
    by_choice = choices.by_choice(values)
    are_numbers = values.dtype.kind == "f"
    if are_numbers and not np.isfinite(values).all():
        raise ValueError(f"Expected finite numbers in column {name!r}")
    if (by_choice[choices.choice] != values).any():
        raise ValueError(f"Expected one value of {name!r} per choice set, got several in one")
    assert choices.annotator is not None
    person = choices.by_choice(choices.annotator)
    if are_numbers:
        return _read_numbers(name, by_choice, person)
    levels, code = np.unique(by_choice.astype(str), return_inverse=True)
    code = code.reshape(-1)
    _check_levels(name, levels, code, person)
    is_constant = _is_constant(code, person)
    counted = code[np.unique(person, return_index=True)[1]] if is_constant else code
    weight = np.bincount(counted, minlength=len(levels)) / len(counted)
    return Column(name, tuple(levels.tolist()), code, weight, is_constant)


def _read_numbers(
    name: str, value: Float[np.ndarray, " choices"], person: Int[np.ndarray, " choices"]
) -> Column:
    is_constant = _is_constant(value, person)
    counted = value[np.unique(person, return_index=True)[1]] if is_constant else value
    centre, scale = float(counted.mean()), float(counted.std())
    if not 0 < scale < np.inf or not np.isfinite(value / scale).all():
        raise ValueError(f"Expected several values in column {name!r}, got {value[0]:g} only")
    standard = (value - centre) / scale
    return Column(name, (), standard, np.ones(1), is_constant, centre, scale)


def _check_levels(name: str, levels: np.ndarray, code: np.ndarray, person: np.ndarray) -> None:
    if len(levels) == 1:
        level = str(levels[0])
        raise ValueError(f"Expected several levels in column {name!r}, got {level!r} only")
    if len(levels) == len(code):
        raise ValueError(f"Expected levels that repeat in column {name!r}, got one per choice")
    if len(levels) == person.max() + 1 and _is_constant(code, person):
        raise ValueError(f"Expected levels that repeat in column {name!r}, got one per annotator")


def _is_constant(value: np.ndarray, person: np.ndarray) -> bool:
    """Whether a value is the same in all choices of a person."""
    first = value[np.unique(person, return_index=True)[1]]
    return bool((first[person] == value).all())
