"""What people did, where choices are not plain pairs: the columns that say it, and their values.

A table of pairs or of margins may have four columns beside `chosen` and `rejected`:

==============  =============================================================================
`choice_set`    id of a choice among several responses; its rows set the chosen one against
                each other one
`rank`          place of the rejected response in a ranking of the set, the chosen one being
                1: a whole number from 2 on, or nothing where the ranking does not go so far
`outcome`       `win`, `tie` or `loss` of the response in `chosen` against that in `rejected`
`grade`         how much better the response in `chosen` is: a whole number, 0 for a tie,
                negative where it is worse; it says more than `outcome`, and goes before it
==============  =============================================================================
"""

import math
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

__all__ = [
    "CHOICE_COLUMNS", "CHOICE_SET", "GRADE", "NO_SETS", "OTHER_MEANING", "OUTCOME", "OUTCOMES",
    "RANK", "as_number", "choice_columns_of", "closed_ranks", "fault_of_choice",
    "read_choice_values", "signs_of_choices",
]  # fmt: skip

CHOICE_SET = "choice_set"

RANK = "rank"

OUTCOME = "outcome"

GRADE = "grade"

CHOICE_COLUMNS = (CHOICE_SET, RANK, OUTCOME, GRADE)
"""Columns that say what was done, where choices are not plain pairs."""

OUTCOMES = ("win", "tie", "loss")
"""Values of `outcome`."""

NO_SETS = "none"
"""In place of a column of choice sets: every row is a choice."""

_LARGEST_GRADE = 50
"""Every grade below the largest one has a cut point of its own."""

OTHER_MEANING = "; a column of another meaning needs another name"
"""What else to say of a fault in a column that was not named, but has one of these names."""


def choice_columns_of(names: Collection[str], has_ranks: bool) -> tuple[str, ...]:
    """The columns among `names` that say what was done.

    Args:
        names: Columns of a table.
        has_ranks: Whether a column `rank` is a rank within sets, not one of another meaning: a
            column says which rows are one choice.
    """
    return tuple(n for n in CHOICE_COLUMNS if n in names and (has_ranks or n != RANK))


def fault_of_choice(column: str, value: Any) -> str | None:
    """What a value of one of :data:`CHOICE_COLUMNS` would have to be, in words; None if it is."""
    if column == CHOICE_SET:
        from mixdpo_pyro.inference.choices import fault_of_id  # loads torch

        return fault_of_id(value) and "an id of the choice set (text or a whole number)"
    if column == OUTCOME:
        return None if value in OUTCOMES else "win, tie or loss"
    if column == RANK:
        is_rank = _is_missing(value) or (_is_whole(number := as_number(value)) and number >= 2)
        return None if is_rank else "a whole number from 2 on, the chosen one being 1, or nothing"
    is_grade = _is_whole(number := as_number(value)) and abs(number) <= _LARGEST_GRADE
    words = f"a whole number from -{_LARGEST_GRADE} to {_LARGEST_GRADE}, 0 for a tie"
    return None if is_grade else words


def read_choice_values(
    column: str, values: Sequence[Any], error: Callable[[int, str], Exception]
) -> np.ndarray:
    """Checked values of one of :data:`CHOICE_COLUMNS`.

    Args:
        column: Its name.
        values: Its values, of a file of any format.
        error: Makes the error about the value at an index, from what is expected there.

    Returns:
        Ids of sets and outcomes as text, objects; ranks as float64, NaN where there is none;
        grades as int64.
    """
    known: dict[Any, Any] = {}
    found = []
    for index, value in enumerate(values):
        key = (type(value), value) if isinstance(value, str | int | float) else None
        if key not in known or key is None:
            if (expected := fault_of_choice(column, value)) is not None:
                raise error(index, expected)
            known[key] = _value_of(column, value)
        found.append(known[key])
    if column in (CHOICE_SET, OUTCOME):
        return np.array([None, *found], dtype=object)[1:]
    return np.array(found, dtype=np.int64 if column == GRADE else np.float64)


def closed_ranks(
    choice: Sequence[Any] | np.ndarray, rank: Sequence[float | None] | np.ndarray
) -> np.ndarray:
    """Ranks 2, 3, ... in every set, where responses were dropped; NaN where there is none.

    Args:
        choice: Set of each row.
        rank: Rank of each row, NaN or None where there is none.
    """
    import pandas as pd

    values = pd.Series(np.array(rank, dtype=np.float64))
    return values.groupby(np.asarray(choice)).rank("dense").to_numpy() + 1


def signs_of_choices(columns: dict[str, np.ndarray]) -> np.ndarray | None:
    """1 where `chosen` was preferred, -1 where `rejected` was, 0 for ties; None for plain choices.

    Args:
        columns: Checked columns of a table, by name, see :func:`read_choice_values`.
    """
    if GRADE in columns:
        return np.sign(columns[GRADE])
    if OUTCOME in columns:
        outcome = columns[OUTCOME]
        return (outcome == "win").astype(np.int64) - (outcome == "loss")
    return None


def as_number(value: Any) -> float:
    """A number, also one that is written as text; NaN for anything else, truth values too."""
    if isinstance(value, str):
        value = math.nan if "_" in value else value  # Python reads 1_000
    elif isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def _value_of(column: str, value: Any) -> Any:
    if column == CHOICE_SET:
        from mixdpo_pyro.inference.choices import id_text  # loads torch

        return id_text(value)
    if column == OUTCOME:
        return value
    return math.nan if _is_missing(value) else as_number(value)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or value != value


def _is_whole(number: float) -> bool:
    return math.isfinite(number) and number.is_integer()
