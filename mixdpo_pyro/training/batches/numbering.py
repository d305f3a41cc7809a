"""Numbers for the ids of annotators and the labels of groups, which a batch can hold."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from mixdpo_pyro.data.problems import shorten
from mixdpo_pyro.data.validation import ROW_COLUMN, id_rule, label_rule
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference.choices import number_ids

__all__ = [
    "ANNOTATOR_INDEX", "GROUP_INDEX", "PAIR_INDEX", "need_column", "number_stream",
    "number_values", "source_rows", "values_of",
]  # fmt: skip

ANNOTATOR_INDEX = "mixdpo_annotator_index"
"""Column with the number of the annotator, counted from 0 in the order of `number_ids`."""

GROUP_INDEX = "mixdpo_group_index"
"""Column with the number of the evaluation group, likewise."""

PAIR_INDEX = "mixdpo_pair_index"
"""Column with the number of the row in the training data, where whole panels are kept."""


def number_values(
    dataset: Dataset,
    column: str,
    index_column: str,
    option: str,
    known: Sequence[str] = (),
) -> tuple[Dataset, list[str]]:
    """Add a column with the number of each row's value in `column`.

    Args:
        dataset: The dataset.
        column: Column with ids or labels.
        index_column: Name of the new column.
        option: The option that named `column`, for messages.
        known: Values that have numbers already; new ones follow them.

    Returns:
        The dataset, and the values as text in the order of their numbers.

    Raises:
        DataError: If the dataset is streamed, has no such column, or a value is missing or no id.
    """
    need_column(dataset, column, option)
    rule = id_rule() if index_column == ANNOTATOR_INDEX else label_rule()
    labels, index = number_ids(rule.read(*values_of(dataset, column, option)))
    number = {label: k for k, label in enumerate(dict.fromkeys([*known, *labels]))}
    place = np.array([number[label] for label in labels])
    return dataset.add_column(index_column, place[index]), list(number)


def need_column(dataset: Any, column: str, option: str, where: str = "") -> None:
    """Refuse a stream, and data without a column.

    Args:
        dataset: The data.
        column: The column.
        option: The option that named it, for messages.
        where: Which data these are, in words, with a blank before them.

    Raises:
        DataError: Naming the option and the column.
    """
    if not isinstance(dataset, Dataset):
        raise DataError(f"{option}: needs a dataset, not a stream")
    if column not in dataset.column_names:
        raise DataError(
            f"{option}: column '{column}' is missing{where}; the data have "
            f"{', '.join(dataset.column_names)}"
        )


def values_of(
    dataset: Dataset, column: str, option: str
) -> tuple[list[Any], Callable[[int, str], DataError]]:
    """The values of a column, and what makes the error about one of them.

    Args:
        dataset: The dataset.
        column: The column.
        option: The option that named it, for messages.
    """
    values, rows = dataset[column][:], source_rows(dataset)

    def error(row: int, expected: str) -> DataError:
        is_missing = values[row] is None or values[row] == ""
        got = "no value" if is_missing else shorten(values[row])
        place = f"{option}: row {rows[row]} has {got} in column '{column}'"
        return DataError(f"{place}, expected {expected}")

    return values, error


def source_rows(dataset: Dataset) -> Sequence[int]:
    """Number of each row in the file it came from, where that is known; else here."""
    known = ROW_COLUMN in dataset.column_names
    return dataset[ROW_COLUMN][:] if known else range(len(dataset))


def number_stream(
    dataset: IterableDataset, column: str, index_column: str, option: str
) -> IterableDataset:
    """Add a column with a number of each row's id, as the rows come.

    The number is a hash, so that whoever reads a part of the stream gives equal ids equal numbers.

    Raises:
        DataError: While it is read, if a row has no id, or one that cannot be used.
    """
    rule = id_rule()

    def number(row: dict[str, Any]) -> dict[str, int]:
        value = row.get(column)
        if (expected := rule.fault_of(value)) is not None:
            got = "no value" if value is None else shorten(value)
            raise DataError(f"{option}: a row has {got} in column '{column}', expected {expected}")
        digest = hashlib.blake2b(rule.text_of(value).encode(), digest_size=7).digest()
        return {index_column: int.from_bytes(digest)}

    return dataset.map(number)
