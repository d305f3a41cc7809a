"""Checks of preference pairs: missing or wrong values, and pairs without a preference."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from datasets import Dataset

from mixdpo_pyro.errors import DataError

__all__ = [
    "ANNOTATOR_RULE", "ROW_COLUMN", "TEXT_COLUMNS", "TEXT_RULE", "PreferenceData", "Problem",
    "Rule", "check_preferences", "drop_useless", "find_problems", "shorten", "text_of",
]  # fmt: skip

logger = logging.getLogger(__name__)

ROW_COLUMN = "source_row"
"""Column that carries the row number in the source, counted from 0; with a reader, the number of
the pair in what the reader makes."""

TEXT_COLUMNS = ("prompt", "chosen", "rejected")
"""The columns of a preference pair; `prompt` may be absent."""


@dataclass(frozen=True)
class Problem:
    """A value that cannot be used.

    Attributes:
        row: Row of the source, counted from 0.
        field: Name of the column or field.
        expected: What has to be there, in words.
        got: What is there, shortened.
    """

    row: int
    field: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"row {self.row}, column '{self.field}': expected {self.expected}, got {self.got}"


def shorten(value: object, length: int = 60) -> str:
    """The value as Python writes it, cut to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


@dataclass(frozen=True)
class PreferenceData:
    """Checked preference pairs.

    Attributes:
        pairs: `chosen`, `rejected`, `prompt` where the source has it, `source_row`, and all other
            columns of the source.
        source: Name of the file or hub dataset, for messages.
        dropped: Reason -> number of rows left out.
    """

    pairs: Dataset
    source: str
    dropped: dict[str, int]


class Rule(NamedTuple):
    """What a value has to be: in words, and as a test."""

    words: str
    holds: Callable[[object], bool]


def check_preferences(
    dataset: Dataset, source: str = "dataset", annotator_column: str | None = None
) -> PreferenceData:
    """Check columns and rows; leave out pairs that carry no preference.

    A pair with two identical responses, or with an empty one, is counted in `dropped`. A missing
    value or one of a wrong type is an error, because it says that the columns are not what the
    user thinks they are.

    Raises:
        DataError: Naming the source, the column and the row.
    """
    problem = next(find_problems(dataset, source, annotator_column), None)
    if problem is not None:
        raise DataError(f"{source}: {problem}")
    dataset, dropped = drop_useless(dataset)
    if dropped:
        logger.warning("%s: left out %s", source, _count_words(dropped))
    if len(dataset) == 0:
        raise DataError(f"{source}: no usable pair is left ({_count_words(dropped)})")
    return PreferenceData(dataset, source, dropped)


def find_problems(
    dataset: Dataset, source: str = "dataset", annotator_column: str | None = None
) -> Iterator[Problem]:
    """Every value that is missing or of a wrong type, column by column.

    Raises:
        DataError: If a column is missing or there are no rows.
    """
    columns = dataset.column_names
    required = ["chosen", "rejected", *([annotator_column] if annotator_column else [])]
    for column in required:
        if column not in columns:
            raise DataError(f"{source}: column '{column}' is missing; it has {', '.join(columns)}")
    if len(dataset) == 0:
        raise DataError(f"{source}: the dataset is empty")
    rows = dataset[ROW_COLUMN] if ROW_COLUMN in columns else range(len(dataset))
    text_columns = [c for c in TEXT_COLUMNS if c in columns]
    for column in text_columns:
        yield from _find_values(dataset[column], rows, column, TEXT_RULE)
    yield from _find_mixtures(dataset, rows, text_columns)
    if annotator_column:
        yield from _find_values(dataset[annotator_column], rows, annotator_column, ANNOTATOR_RULE)


def drop_useless(dataset: Dataset) -> tuple[Dataset, dict[str, int]]:
    """Leave out pairs with identical or empty responses, and count them."""
    reasons = [
        _why_useless(c, r) for c, r in zip(dataset["chosen"], dataset["rejected"], strict=True)
    ]
    dropped = {reason: reasons.count(reason) for reason in sorted({r for r in reasons if r})}
    if dropped:
        dataset = dataset.select([i for i, reason in enumerate(reasons) if reason is None])
    return dataset, dropped


def _find_values(
    values: Iterable, rows: Iterable[int], column: str, rule: Rule
) -> Iterator[Problem]:
    for row, value in zip(rows, values, strict=True):
        if not rule.holds(value):
            yield Problem(row, column, rule.words, shorten(value))


def _find_mixtures(dataset: Dataset, rows: Iterable[int], columns: list[str]) -> Iterator[Problem]:
    """Rows where one column holds text and another one messages; TRL would take either for all."""
    values = zip(rows, *(dataset[column] for column in columns), strict=True)
    for row, *texts in values:
        kinds = {type(text) for text in texts if isinstance(text, str | list)}
        if len(kinds) > 1:
            words = f"text or messages as in '{columns[-1]}'"
            yield Problem(row, columns[0], words, shorten(texts[0]))


def _is_text_or_messages(value: object) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and m.get("content") is not None
        for m in value
    )


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return value != ""
    return isinstance(value, int) and not isinstance(value, bool)


TEXT_RULE = Rule("text or a list of messages with 'role' and 'content'", _is_text_or_messages)

ANNOTATOR_RULE = Rule("an annotator id (text or a whole number)", _is_id)


def _why_useless(chosen: str | list, rejected: str | list) -> str | None:
    if not text_of(chosen).strip() or not text_of(rejected).strip():
        return "empty response"
    return "identical responses" if chosen == rejected else None


def text_of(value: str | list) -> str:
    """The text of a response, messages run together."""
    return value if isinstance(value, str) else "".join(str(m["content"]) for m in value)


def _count_words(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} rows with {reason}" for reason, count in dropped.items())
