"""Checks of preference pairs: missing or wrong values, and pairs without a preference."""

import logging
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from mixdpo_pyro.data.choice_kinds import (
    CHOICE_SET,
    GRADE,
    OTHER_MEANING,
    OUTCOME,
    RANK,
    closed_ranks,
    fault_of_choice,
    read_choice_values,
)
from mixdpo_pyro.data.messages import fault_of_pair, fault_of_text, text_of
from mixdpo_pyro.data.problems import Problem, shorten
from mixdpo_pyro.data.tables import arrow_column, check_has_columns
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.io.pseudonyms import Pseudonyms

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "DEFAULT_ANNOTATOR_COLUMN",
    "ROW_COLUMN",
    "TEXT_COLUMNS",
    "PreferenceData",
    "RowRules",
    "TextRule",
    "annotator_column_of",
    "check_columns",
    "check_preferences",
    "close_ranks",
    "drop_useless",
    "find_problems",
    "id_rule",
    "label_rule",
    "replace_column",
]

logger = logging.getLogger(__name__)

ROW_COLUMN = "source_row"
"""Column that carries the row number in the source, counted from 0; with a reader, the number of
the pair in what the reader makes."""

TEXT_COLUMNS = ("prompt", "chosen", "rejected")
"""The columns of a preference pair; `prompt` may be absent."""

DEFAULT_ANNOTATOR_COLUMN = "annotator"
"""Column that is taken for annotator ids where no other one is named."""

_BATCH = 1_000
"""Rows that are made Python values at once; one by one takes ten times as long."""

_LABEL_WORDS = "a label of at most 1,000 characters (text, a number or a truth value)"


@dataclass(frozen=True)
class PreferenceData:
    """Checked preference pairs.

    Attributes:
        pairs: `chosen`, `rejected`, `prompt` where the source has it, `source_row`, and all other
            columns of the source.
        source: Name of the file or hub dataset, for messages.
        dropped: Reason -> number of rows dropped.
        annotator_column: Column with annotator ids, as text, or None.
        choice_columns: Which of `choice_set`, `rank`, `outcome` and `grade` there are and say what
            was done, see :mod:`~mixdpo_pyro.data.choice_kinds`.
    """

    pairs: "Dataset"
    source: str
    dropped: dict[str, int]
    annotator_column: str | None = None
    choice_columns: tuple[str, ...] = ()

    def pseudonymised(self, salt: str | None, *columns: str) -> "PreferenceData":
        """The pairs with pseudonyms of their annotators, see :mod:`mixdpo_pyro.io.pseudonyms`.

        Columns that repeat the annotators' ids, as readers keep those of their source, are hashed
        too: beside the pseudonyms they would say who is who.

        Args:
            salt: A salt file; None leaves all as it is.
            columns: Further columns with people or groups; their empty cells stay empty.

        Raises:
            DataError: If the salt file cannot be used, or a column is missing or holds no labels.
        """
        if salt is None:
            return self
        pseudonyms, pairs = Pseudonyms.from_file(salt), self.pairs
        repeated = _columns_like(pairs, self.annotator_column) if self.annotator_column else []
        for name in dict.fromkeys((self.annotator_column, *repeated, *columns)):
            if name is None:
                continue
            check_has_columns(pairs.column_names, [name], self.source)
            if name in (*TEXT_COLUMNS, ROW_COLUMN, RANK, OUTCOME, GRADE):
                raise DataError(f"{self.source}: column '{name}' holds no people or groups")
            values = pairs[name][:]
            rule = id_rule() if name == self.annotator_column else label_rule()
            error = partial(_error_of_cell, self.source, name)
            hashed = iter(
                pseudonyms.of_all(rule.read([v for v in values if v is not None], error))
            )
            pairs = replace_column(pairs, name, [v if v is None else next(hashed) for v in values])
        return replace(self, pairs=pairs)


class TextRule(NamedTuple):
    """What a value has to be to be read as text.

    Attributes:
        fault_of: What a value would have to be, in words; None where it is that.
        text_of: Its text.
    """

    fault_of: Callable[[Any], str | None]
    text_of: Callable[[Any], str]

    def read(self, values: list[Any], error: Callable[[int, str], Exception]) -> np.ndarray:
        """Values as text, one object a value; `error(index, expected)` is raised for a fault."""
        known: dict[str, str] = {}
        texts = np.empty(len(values), dtype=object)
        for index, value in enumerate(values):
            text = known.get(value) if isinstance(value, str) else None
            if text is None:
                if (expected := self.fault_of(value)) is not None:
                    raise error(index, expected)
                text = self.text_of(value)
                known[text] = text
            texts[index] = text
        return texts


def _error_of_cell(source: str, column: str, _: int, expected: str) -> DataError:
    return DataError(f"{source}: column '{column}': expected {expected}")


def _columns_like(pairs: "Dataset", column: str) -> list[str]:
    """Other columns that hold the same ids, as text or as numbers, in every row."""

    def as_text(name: str) -> pa.ChunkedArray | None:
        kind = table[name].type
        is_id = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        is_id |= pa.types.is_integer(kind)
        return table[name].cast(pa.large_string()) if is_id else None

    others = (*TEXT_COLUMNS, ROW_COLUMN, RANK, OUTCOME, GRADE)
    names = [name for name in pairs.column_names if name not in others]
    table = pairs.select_columns(names).with_format("arrow")[:]
    ids = as_text(column)
    if ids is None:
        return []
    found = ((name, as_text(name)) for name in names if name != column)
    return [name for name, texts in found if texts is not None and texts.equals(ids)]


def check_preferences(
    dataset: "Dataset",
    source: str = "dataset",
    annotator_column: str | None = None,
    choice_columns: tuple[str, ...] = (),
) -> PreferenceData:
    """Check columns and rows; drop pairs that carry no preference.

    A pair with two identical responses, or with an empty one, is counted in `dropped`. A missing
    value or one of a wrong type is an error, because it says that the columns are not what the
    user thinks they are. Annotator ids and the values of `choice_columns` become those of
    :func:`~mixdpo_pyro.data.choice_kinds.read_choice_values`; ranks close up where a response of a
    set was dropped.

    Raises:
        DataError: Naming the source, the column and the row.
    """
    problem = next(find_problems(dataset, source, annotator_column, choice_columns), None)
    if problem is not None:
        raise DataError(f"{source}: {problem}")
    dataset = _read_choices(dataset, choice_columns)
    dataset, dropped = drop_useless(dataset)
    if dropped:
        logger.warning("%s: dropped %s", source, _count_words(dropped))
    if len(dataset) == 0:
        raise DataError(f"{source}: no usable pair is left ({_count_words(dropped)})")
    if annotator_column is not None:
        text_of_id = id_rule().text_of
        ids = [text_of_id(value) for value in dataset[annotator_column][:]]
        dataset = replace_column(dataset, annotator_column, ids)
    if dropped and RANK in choice_columns:
        dataset = close_ranks(dataset)
    return PreferenceData(dataset, source, dropped, annotator_column, choice_columns)


def check_columns(dataset: "Dataset", source: str, annotator_column: str | None) -> None:
    """Refuse a table without rows or without a column that it takes.

    Raises:
        DataError: Naming the column.
    """
    columns = [name for name in dataset.column_names if name != ROW_COLUMN]
    required = ["chosen", "rejected", *([annotator_column] if annotator_column else [])]
    check_has_columns(columns, required, source)
    if annotator_column in TEXT_COLUMNS:
        raise DataError(f"{source}: column '{annotator_column}' holds texts, not annotator ids")
    if len(dataset) == 0:
        raise DataError(f"{source}: the dataset is empty")


def find_problems(
    dataset: "Dataset",
    source: str = "dataset",
    annotator_column: str | None = None,
    choice_columns: tuple[str, ...] = (),
) -> Iterator[Problem]:
    """Every value that is missing or of a wrong type, row by row.

    Raises:
        DataError: If a column is missing or there are no rows.
    """
    check_columns(dataset, source, annotator_column)
    columns = dataset.column_names
    texts = {name: name for name in TEXT_COLUMNS if name in columns}
    rules = RowRules(texts, annotator_column, choice_columns)
    wanted = [ROW_COLUMN] if ROW_COLUMN in columns else []
    start = 0
    for batch in dataset.select_columns([*wanted, *rules.columns]).iter(batch_size=_BATCH):
        values = [batch[column] for column in rules.columns]
        rows = batch.get(ROW_COLUMN, range(start, start + len(values[0])))
        start += len(values[0])
        for row, *record in zip(rows, *values, strict=True):
            yield from rules.problems_of(row, dict(zip(rules.columns, record, strict=True)))


@dataclass
class RowRules:
    """What the values of a row have to be, by themselves, together, and beside the first row.

    Attributes:
        texts: Role -> column, for those of prompt, chosen and rejected that there are.
        annotator: Column of annotator ids, or None.
        choices: Columns that say what was done.
    """

    texts: dict[str, str]
    annotator: str | None
    choices: tuple[str, ...] = ()
    _kind: type | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that the rules are about."""
        ids = [self.annotator] if self.annotator else []
        return [*dict.fromkeys([*self.texts.values(), *ids, *self.choices])]

    def problems_of(self, row: int, record: dict[str, Any]) -> list[Problem]:
        """The values of a row that cannot be used."""
        faults = {column: fault_of_text(record.get(column)) for column in self.texts.values()}
        if not any(faults.values()) and {"chosen", "rejected"} <= self.texts.keys():
            values = {role: record.get(column) for role, column in self.texts.items()}
            role, fault = fault_of_pair(values) or ("chosen", self._fault_of_kind(values))
            faults[self.texts[role]] = fault
        if self.annotator is not None:
            faults[self.annotator] = id_rule().fault_of(record.get(self.annotator))
        for column in self.choices:
            fault = fault_of_choice(column, record.get(column))
            faults[column] = fault and fault + OTHER_MEANING
        return [
            Problem(row, column, expected, shorten(record.get(column)))
            for column, expected in faults.items()
            if expected is not None
        ]

    def _fault_of_kind(self, values: dict[str, Any]) -> str | None:
        """TRL takes all rows for what the first one is: text or messages."""
        kind = type(values["chosen"])
        self._kind = self._kind or kind
        is_other = kind is not self._kind
        return "text or messages as in the rows before" if is_other else None


@cache
def id_rule() -> TextRule:
    """The rule for annotator ids, see :func:`mixdpo_pyro.inference.choices.read_ids`."""
    from mixdpo_pyro.inference.choices import fault_of_id, id_text  # loads torch

    return TextRule(fault_of_id, id_text)


def label_rule() -> TextRule:
    """The rule for labels of groups: ids, and other numbers and truth values."""
    fault_of_id, id_text = id_rule()

    def is_other(value: object) -> bool:
        return isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value))

    return TextRule(
        lambda value: None if is_other(value) else fault_of_id(value) and _LABEL_WORDS,
        lambda value: id_text(value) if fault_of_id(value) is None else str(value),
    )


def annotator_column_of(names: Collection[str], given: str | None) -> str | None:
    """The column of annotator ids: the one given, or `annotator` where there is one."""
    has_default = given is None and DEFAULT_ANNOTATOR_COLUMN in names
    return DEFAULT_ANNOTATOR_COLUMN if has_default else given


def drop_useless(dataset: "Dataset") -> tuple["Dataset", dict[str, int]]:
    """Drop pairs with identical or empty responses, and count them."""
    reasons = [
        _why_useless(chosen, rejected)
        for batch in dataset.select_columns(["chosen", "rejected"]).iter(batch_size=_BATCH)
        for chosen, rejected in zip(batch["chosen"], batch["rejected"], strict=True)
    ]
    dropped = {reason: reasons.count(reason) for reason in sorted({r for r in reasons if r})}
    if dropped:
        dataset = dataset.select([i for i, reason in enumerate(reasons) if reason is None])
    return dataset, dropped


def replace_column(dataset: "Dataset", name: str, values: list[Any]) -> "Dataset":
    """The dataset with other values in a column, in its place."""
    from datasets import Dataset, concatenate_datasets  # a second of imports

    column = Dataset(pa.table({name: arrow_column(values)}))
    others = dataset.remove_columns(name)
    joined = concatenate_datasets([others, column], axis=1) if others.column_names else column
    return joined.select_columns(dataset.column_names)


def _read_choices(dataset: "Dataset", columns: tuple[str, ...]) -> "Dataset":
    """The dataset with checked values in these columns, in which no fault was found."""
    for name in columns:
        found = read_choice_values(name, dataset[name][:], lambda _, words: DataError(words))
        values = [None if value != value else value for value in found.tolist()]
        dataset = replace_column(dataset, name, values)
    return dataset


def close_ranks(dataset: "Dataset") -> "Dataset":
    """Ranks 2, 3, ... again in sets that lost a response."""
    rank = closed_ranks(dataset[CHOICE_SET][:], dataset[RANK][:])
    return replace_column(dataset, RANK, [None if r != r else r for r in rank.tolist()])


def _why_useless(chosen: str | list, rejected: str | list) -> str | None:
    if not text_of(chosen).strip() or not text_of(rejected).strip():
        return "empty response"
    return "identical responses" if chosen == rejected else None


def _count_words(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} rows with {reason}" for reason, count in dropped.items())
