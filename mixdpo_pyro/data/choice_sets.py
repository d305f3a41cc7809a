"""Choices among several responses that were cut into pairs: found, or taken from a column.

Who chooses the best of K responses is often written down as K - 1 pairs, the chosen response
against each other one. Taken for independent, such pairs make equal annotators look different.
Rows with one annotator (or without ids), one prompt and one chosen response are one choice.

The same could be said of pairs that were judged one by one, where one response won twice. So all
comparisons of an annotator that hang together (one prompt, responses in common) are looked at:
choices among several are there where they form a ranking, or where every chosen response was set
against all others. Where nine in ten do, the table is one of choices, and rows are put together;
fewer than one row in fifty that look like parts of a choice are left alone.
"""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from jaxtyping import Bool, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mixdpo_pyro.data.choice_kinds import (
    CHOICE_SET,
    GRADE,
    NO_SETS,
    OUTCOME,
    RANK,
    read_choice_values,
)
from mixdpo_pyro.data.problems import Problem, shorten
from mixdpo_pyro.data.tables import arrow_column, check_has_columns
from mixdpo_pyro.data.validation import ROW_COLUMN, TEXT_COLUMNS
from mixdpo_pyro.errors import DataError

__all__ = ["ChoiceSets", "fault_of_sets", "find_sets", "row_codes", "settle_sets", "with_sets"]

_FEW = 0.02
"""Share of rows below which rows that look like one choice do so by chance, and do little harm."""

_CLEAR = 0.9
"""Share of the comparisons that hang together which must look like choices among several.

Pairs judged one by one, two of them with a response in common, look so in two of three cases: that
response won twice, or lost twice.
"""

Origin = Literal["pairs", "found", "unclear", "column", "apart"]


@dataclass(frozen=True)
class ChoiceSets:
    """Which rows are one choice, and how that is known.

    Attributes:
        origin: `pairs`: no or few rows look like parts of one choice. `found`: rows were put
            together. `unclear`: rows look like parts of one choice, but more of them do not; all
            were kept apart. `column`: a column says it. `apart`: kept apart, as asked for.
        column: The column that says it, or None.
        num_alike: Rows that share annotator, prompt and chosen response with rows of another
            rejected response, where they were looked for.
        sizes: Number of responses -> number of choices among so many.
    """

    origin: Origin
    column: str | None
    num_alike: int
    sizes: dict[int, int]

    @property
    def has_ranks(self) -> bool:
        """Whether a column `rank` is one within these sets, not one of another meaning."""
        return self.origin == "column"

    def describe(self) -> str | None:
        """What was done without being asked for, in a sentence; None where nothing was."""
        if self.origin == "found":
            several = {size: count for size, count in self.sizes.items() if size > 2}
            low, high = min(several), max(several)
            among = f"{low}" if low == high else f"{low} to {high}"
            rows = sum((size - 1) * count for size, count in several.items())
            number = sum(several.values())
            return (
                f"{rows:,} rows are taken for {number:,} choice{'s' * (number > 1)} among {among} "
                "responses, since they share annotator, prompt and chosen response; `none` for "
                "the column of choice sets keeps them apart"
            )
        if self.origin == "unclear":
            return (
                f"{self.num_alike:,} rows share annotator, prompt and chosen response with other "
                "rows, but taken together they do not look like choices among several responses; "
                "all are kept apart. Name the column of choice sets, or `none` where each pair "
                "was judged by itself"
            )
        return None


def settle_sets(
    pairs: Dataset, source: str, annotator: str | None = None, choice_set: str | None = None
) -> tuple[Dataset, ChoiceSets]:
    """Decide which rows are one choice, and say it in a column `choice_set`.

    The column is there where a column of the source says it, where rows were put together, and
    where they are to be kept apart; it is not where every row is a choice anyway, or where it is
    unclear.

    Args:
        pairs: Pairs with `source_row`.
        source: Name of the source, for messages.
        annotator: Column of annotator ids, or None.
        choice_set: Column of the source with ids of choice sets; default, `choice_set` where
            there is one, otherwise rows are looked at; `"none"` keeps rows apart.

    Raises:
        DataError: If there is no such column.
    """
    names = pairs.column_names
    if choice_set is None and CHOICE_SET in names:
        choice_set = CHOICE_SET
    if choice_set not in (None, NO_SETS):
        check_has_columns(names, [choice_set], source)
    if choice_set is not None and choice_set in (*TEXT_COLUMNS, ROW_COLUMN, annotator):
        raise DataError(f"{source}: column '{choice_set}' holds no ids of choice sets")
    if choice_set is None:
        choice, origin, num_alike = find_sets(pairs, annotator)
        if origin == "found":
            rows = np.array(pairs[ROW_COLUMN][:])
            pairs = with_sets(pairs, rows[choice].tolist())
        return pairs, _describe_sets(choice, origin, None, num_alike)
    if choice_set == NO_SETS:
        pairs = with_sets(pairs, pairs[ROW_COLUMN][:])
        return pairs, _describe_sets(np.arange(len(pairs)), "apart", None, 0)
    if choice_set != CHOICE_SET:
        pairs = with_sets(pairs, _named_sets(pairs, source, choice_set))
    choice = _first_rows(row_codes(_columns(pairs, [CHOICE_SET])[CHOICE_SET]))
    return pairs, _describe_sets(choice, "column", choice_set, 0)


def find_sets(
    pairs: Dataset, annotator: str | None = None
) -> tuple[Int[np.ndarray, " rows"], Origin, int]:
    """Look for choices among several responses, by the rule of this module.

    Without a column of prompts, rows with one chosen text have one prompt. Where a pair is there
    several times, each time belongs to another choice. Rows with `outcome` or `grade` are
    judgements of two responses, and a table that has them has no larger sets.

    Args:
        pairs: Pairs.
        annotator: Column of annotator ids, or None.

    Returns:
        Index of the first row of each row's choice; `pairs`, `found` or `unclear`; and the number
        of rows that share annotator, prompt and chosen response with rows of another rejected
        response.
    """
    rows = np.arange(len(pairs))
    if {OUTCOME, GRADE} & {*pairs.column_names} or len(pairs) < 2:
        return rows, "pairs", 0
    chosen, rejected = _number_responses(pairs, annotator)
    table = pd.DataFrame({"chosen": chosen, "rejected": rejected})
    time = table.groupby(["chosen", "rejected"], sort=False).cumcount().to_numpy()
    is_first = (time == 0) & (chosen != rejected)
    wins = np.bincount(chosen[is_first], minlength=int(max(chosen.max(), rejected.max())) + 1)
    is_alike = wins[chosen] > 1
    num_alike = int(is_alike.sum())
    if num_alike < max(_FEW * len(rows), 1):
        return rows, "pairs", num_alike
    hangs_together, looks_so = _look_at_parts(chosen, rejected, time, wins)
    if looks_so[hangs_together].mean() < _CLEAR:
        return rows, "unclear", num_alike
    choice = _first_rows(_joined(chosen, time))
    return np.where(is_alike & looks_so, choice, rows), "found", num_alike


def fault_of_sets(pairs: Dataset, annotator: str | None = None) -> Problem | None:
    """The first row that cannot belong to its `choice_set`, or None.

    The rows of a set have one annotator, one prompt and one chosen response, and ranks without
    gaps; and they are not judged by themselves, as wins, ties, losses or grades.
    """
    table = _columns(pairs, [c for c in pairs.column_names if c in _wanted(annotator)])
    first = _first_rows(row_codes(table[CHOICE_SET]))
    for name in (annotator, *TEXT_COLUMNS[:2]):
        if name in table.column_names:
            code = row_codes(table[name])
            bad = np.flatnonzero(code != code[first])
            if bad.size:
                other = pairs[int(first[bad[0]])][ROW_COLUMN]
                expected = f"sets that have one '{name}', as in row {other}"
                return _problem_at(pairs, int(bad[0]), CHOICE_SET, expected)
    judged = [name for name in (GRADE, OUTCOME) if name in table.column_names]
    several = np.flatnonzero(first != np.arange(len(first)))
    if judged and several.size:
        expected = (
            f"sets of one row beside '{judged[0]}', which judges two responses (of more, give "
            "'rank')"
        )
        return _problem_at(pairs, int(several[0]), CHOICE_SET, expected)
    return _fault_of_ranks(pairs, first) if RANK in pairs.column_names else None


def _fault_of_ranks(pairs: Dataset, choice: Int[np.ndarray, " rows"]) -> Problem | None:
    values = read_choice_values(RANK, pairs[RANK][:], lambda _, words: DataError(words))
    table = pd.DataFrame({"choice": choice, "rank": np.nan_to_num(values, nan=np.inf)})
    by_choice = table.groupby("choice")["rank"]
    is_shared = table.duplicated(keep=False) & (table["rank"] < by_choice.transform("max"))
    wrong = np.isfinite(table["rank"]) & (is_shared | (by_choice.rank("min") + 1 != table["rank"]))
    if not wrong.any():
        return None
    expected = "ranks 2, 3, ... of the rejected responses of a set, only the last one shared"
    return _problem_at(pairs, int(np.argmax(wrong)), RANK, expected)


def _problem_at(pairs: Dataset, index: int, column: str, expected: str) -> Problem:
    row = pairs[index]
    return Problem(row[ROW_COLUMN], column, expected, shorten(row[column]))


def row_codes(column: pa.ChunkedArray) -> Int[np.ndarray, " rows"]:
    """One number a row, equal for equal values: texts, lists, messages, whatever Arrow holds.

    Numbers count from 0 in no particular order; nothing of Python is made of the values.
    """
    kind = column.type
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # none, or too many bytes for one array
        wide = pa.large_string() if pa.types.is_string(kind) else kind
        array = pa.concat_arrays([chunk.cast(wide) for chunk in array.chunks])
    return _array_codes(array)


def _array_codes(array: pa.Array) -> np.ndarray:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_null(kind) or len(array) == 0:
        return np.zeros(len(array), dtype=np.int64)
    if pa.types.is_struct(kind):
        code = array.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
        for part in array.flatten():
            code = _joined(code, _array_codes(part))
        return code
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _list_codes(array)
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
    if pa.types.is_string(kind):
        array = array.cast(pa.large_string())
    encoded = array.dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _list_codes(array: pa.Array) -> np.ndarray:
    """Codes of lists: those of their lengths, joined with those of the values at each place."""
    length = array.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    inner = _array_codes(array.flatten())
    size = np.maximum(length, 0)
    start = size.cumsum() - size
    code = pd.factorize(length)[0]
    for place in range(int(size.max(initial=0))):
        value = np.zeros(len(code), dtype=np.int64)
        has = size > place
        value[has] = inner[start[has] + place] + 1
        code = _joined(code, value)
    return code


def _joined(code: np.ndarray, other: np.ndarray) -> Int[np.ndarray, " rows"]:
    """One number for two; equal where both are equal."""
    return pd.factorize(code * (int(other.max(initial=0)) + 1) + other)[0].astype(np.int64)


def _number_responses(
    pairs: Dataset, annotator: str | None
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Numbers of the chosen and rejected responses of each annotator to each prompt."""
    table = _columns(pairs, [c for c in pairs.column_names if c in _wanted(annotator)])
    _, chosen, rejected = TEXT_COLUMNS
    if table[chosen].type == table[rejected].type:
        both = pa.chunked_array([*table[chosen].chunks, *table[rejected].chunks])
        response = row_codes(both)
    else:  # messages with different fields
        texts = [json.dumps(v, sort_keys=True) for c in (chosen, rejected) for v in pairs[c]]
        response = pd.factorize(np.array(texts, dtype=object))[0].astype(np.int64)
    for name in (annotator, TEXT_COLUMNS[0]):
        if name in table.column_names:
            response = _joined(response, np.tile(row_codes(table[name]), 2))
    return response[: len(pairs)], response[len(pairs) :]


def _look_at_parts(
    chosen: np.ndarray, rejected: np.ndarray, time: np.ndarray, wins: np.ndarray
) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Which rows hang together with others, and which of them look like choices among several.

    A part (responses of one annotator to one prompt that are connected by comparisons) looks so if
    one response beats another one just where it beats more of them, which makes a ranking with
    ties between the unconnected; or if every response that beats some beats all others, which
    makes several choices among the same ones. In both cases a response beats each of the others
    equally often.
    """
    number, is_first = len(wins), (time == 0) & (chosen != rejected)
    edge = chosen[is_first], rejected[is_first]
    graph = coo_array((np.ones(len(edge[0]), dtype=np.int8), edge), shape=(number, number))
    part = connected_components(graph, directed=False)[1]
    size = np.bincount(part)
    edges = np.bincount(part[edge[0]], minlength=len(size))
    upwards = np.bincount(part[edge[0]], wins[edge[0]] <= wins[edge[1]], len(size))
    level = pd.DataFrame({"part": part, "wins": wins}).value_counts(sort=False)
    ties = (level * (level - 1) // 2).groupby("part").sum().to_numpy()
    is_ranking = (upwards == 0) & (edges == size * (size - 1) // 2 - ties)
    short = np.bincount(part, (wins > 0) & (wins < size[part] - 1), len(size))
    differs = chosen != rejected
    often = np.zeros(number, dtype=np.int64)
    np.maximum.at(often, chosen[differs], time[differs] + 1)
    rows = np.bincount(chosen[differs], minlength=number)
    uneven = np.bincount(part, rows != wins * often, len(size))
    looks_so = (is_ranking | (short == 0)) & (uneven == 0)
    return edges[part[chosen]] > 1, looks_so[part[chosen]]


def _describe_sets(
    choice: np.ndarray, origin: Origin, column: str | None, num_alike: int
) -> ChoiceSets:
    size, count = np.unique(np.unique(choice, return_counts=True)[1] + 1, return_counts=True)
    sizes = dict(zip(size.tolist(), count.tolist(), strict=True))
    return ChoiceSets(origin, column, num_alike, sizes)


def with_sets(pairs: Dataset, values: list) -> Dataset:
    """The pairs with these choice sets; another column of that name is kept beside them."""
    if CHOICE_SET in pairs.column_names:
        pairs = pairs.rename_column(CHOICE_SET, f"{CHOICE_SET}_source")
    column = Dataset(pa.table({CHOICE_SET: arrow_column(values)}))
    return concatenate_datasets([pairs, column], axis=1)


def _named_sets(pairs: Dataset, source: str, column: str) -> list[str]:
    def error(index: int, expected: str) -> DataError:
        return DataError(f"{source}: {_problem_at(pairs, index, column, expected)}")

    return read_choice_values(CHOICE_SET, pairs[column][:], error).tolist()


def _first_rows(code: np.ndarray) -> Int[np.ndarray, " rows"]:
    """Index of the first row with each row's number."""
    _, first, number = np.unique(code, return_index=True, return_inverse=True)
    return first[number]


def _wanted(annotator: str | None) -> tuple[str | None, ...]:
    return (*TEXT_COLUMNS, CHOICE_SET, OUTCOME, GRADE, annotator)


def _columns(pairs: Dataset, names: list[str]) -> pa.Table:
    return pairs.select_columns(names).with_format("arrow")[:]
