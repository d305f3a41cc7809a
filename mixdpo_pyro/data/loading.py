"""Preference pairs in TRL's formats, from files, saved datasets and the hub."""

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from mixdpo_pyro.data.choice_kinds import CHOICE_SET, choice_columns_of
from mixdpo_pyro.data.choice_sets import fault_of_sets, row_codes, settle_sets
from mixdpo_pyro.data.messages import join_parts
from mixdpo_pyro.data.problems import Problem
from mixdpo_pyro.data.readers.base import Reader, ReadPairs
from mixdpo_pyro.data.readers.registry import find_reader
from mixdpo_pyro.data.tables import Table, check_has_columns, is_table, json_text, read_table
from mixdpo_pyro.data.validation import (
    ROW_COLUMN,
    TEXT_COLUMNS,
    PreferenceData,
    RowRules,
    annotator_column_of,
    check_columns,
    check_preferences,
    replace_column,
)
from mixdpo_pyro.errors import ConfigError, DataError

__all__ = [
    "Source",
    "checked_pairs",
    "load_preferences",
    "named_columns",
    "read_source",
    "source_of",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Pairs as they were read, nothing checked yet.

    Attributes:
        pairs: The columns of the source, renamed where asked for; `source_row` is added.
        name: Name of the file or hub dataset, for messages.
        annotator_column: The column of annotator ids, or None.
        dropped: What a reader dropped: reason -> number.
        problems: Lines and values that a reader, or the reading of a file, could not use.
        joined: Number of texts whose messages came in parts, see
            :func:`~mixdpo_pyro.data.messages.join_parts`.
    """

    pairs: Dataset
    name: str
    annotator_column: str | None
    dropped: dict[str, int]
    problems: list[Problem]
    joined: int = 0


def named_columns(config: Any) -> dict[str, str]:
    """Role -> column, for those of prompt, chosen and rejected that a configuration names."""
    named = {name: getattr(config, name) for name in TEXT_COLUMNS}
    return {name: column for name, column in named.items() if column is not None}


def load_preferences(
    name: str,
    split: str = "train",
    config: str | None = None,
    annotator_column: str | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    reader: str | None = None,
    columns: dict[str, str] | None = None,
    choice_set: str | None = None,
) -> PreferenceData:
    """Load preference pairs from a local file, a saved dataset folder or the hub, and check them.

    Args:
        name: Path of a `json`, `jsonl`, `csv` (each also compressed as gz, bz2 or xz) or `parquet`
            file, a folder written by `save_to_disk`, or a hub dataset name.
        split: Split to take where the source has several.
        config: Configuration name of a hub dataset.
        annotator_column: Column with annotator ids that must be there; default, `annotator` where
            there is one.
        max_rows: Take a random subset of at most this many rows, in whole choices.
        seed: Seed of that subset.
        reader: A reader of :mod:`mixdpo_pyro.data.readers`, `NAME` or `NAME:option,option`.
        columns: `prompt`, `chosen` or `rejected` -> the column of the source that holds it.
        choice_set: Column with ids of choice sets; default, `choice_set` where there is one, or
            what rows look like; `"none"` keeps rows apart. See
            :func:`~mixdpo_pyro.data.choice_sets.settle_sets`.

    Raises:
        ConfigError: If there is no such reader, or a role in `columns` is unknown.
        DataError: If the source cannot be read, or a row cannot be used.
    """
    source = read_source(name, split, config, reader, columns, annotator_column)
    return checked_pairs(source, max_rows, seed, choice_set)


def checked_pairs(
    source: Source, max_rows: int | None = None, seed: int = 0, choice_set: str | None = None
) -> PreferenceData:
    """Check pairs that were read; see :func:`load_preferences` for the arguments.

    Raises:
        DataError: If a row cannot be used.
    """
    name = source.name
    if source.problems:
        first, *others = source.problems
        more = f" (and {len(others)} more; see mixdpo doctor)" if others else ""
        raise DataError(f"{name}: {first}{more}")
    check_columns(source.pairs, name, source.annotator_column)
    pairs, sets = settle_sets(source.pairs, name, source.annotator_column, choice_set)
    if words := sets.describe():
        logger.warning("%s: %s", name, words)
    if max_rows is not None and max_rows < len(pairs):
        pairs = _take_choices(pairs, max_rows, seed)
    done = choice_columns_of(pairs.column_names, sets.has_ranks)
    data = check_preferences(pairs, name, source.annotator_column, done)
    if sets.has_ranks and (problem := fault_of_sets(pairs, data.annotator_column)):
        raise DataError(f"{name}: {problem}")
    return replace(data, dropped=dict(Counter(source.dropped) + Counter(data.dropped)))


def _take_choices(pairs: Dataset, most: int, seed: int) -> Dataset:
    """A random subset of the choices, with all their rows, that has at most so many rows."""
    rng = np.random.default_rng(seed)
    if CHOICE_SET not in pairs.column_names:
        return pairs.select(np.sort(rng.permutation(len(pairs))[:most]))
    column = pairs.select_columns([CHOICE_SET]).with_format("arrow")[:][CHOICE_SET]
    choice = row_codes(column)
    order = rng.permutation(choice.max() + 1)
    rows = np.bincount(choice)[order].cumsum()
    return pairs.select(np.flatnonzero(np.isin(choice, order[rows <= most])))


def read_source(
    name: str,
    split: str = "train",
    config: str | None = None,
    reader: str | None = None,
    columns: dict[str, str] | None = None,
    annotator_column: str | None = None,
) -> Source:
    """Read pairs without checking them; see :func:`load_preferences` for the arguments.

    Rows of a JSON file whose texts or ids are unusable are problems of the source, since a column
    of Arrow has one type.

    Args:
        name: File, saved dataset folder or hub name.
        split: Split to take where the source has several.
        config: Configuration name of a hub dataset.
        reader: A reader, `NAME` or `NAME:option,option`.
        columns: Role -> column of the source.
        annotator_column: Column with annotator ids; default, `annotator` where there is one.

    Raises:
        ConfigError: If there is no such reader, or a role in `columns` is unknown.
        DataError: If the source cannot be read, or has no rows, or lacks a column of `columns`.
    """
    columns = columns or {}
    found = None if reader is None else find_reader(reader)
    if found and config is None and not is_table(Path(name)):
        config = found[0].hub_config
    raw = _read(name, split, config)
    read = ReadPairs()
    if found:
        read = _apply_reader(*found, raw, name)
        raw = Table(read.pairs, range(len(read.pairs)))
    if isinstance(raw, Table):
        table = raw if found else _without_faults(raw, columns, annotator_column)
        raw = Dataset(table.to_arrow())
        read.problems += table.problems
        rows = np.array(table.rows, dtype=np.int64)
    else:
        rows = np.arange(len(raw))
    source = source_of(_rename(raw, columns, name), name, annotator_column, rows)
    return replace(source, dropped=dict(read.dropped), problems=read.problems)


def source_of(
    pairs: Dataset,
    name: str,
    annotator_column: str | None = None,
    rows: np.ndarray | None = None,
) -> Source:
    """Pairs that were loaded elsewhere, with the numbers of their rows.

    Args:
        pairs: The pairs.
        name: What messages call them.
        annotator_column: Column with annotator ids; default, `annotator` where there is one.
        rows: Numbers of the rows; default, counted from 0.

    Raises:
        DataError: If they have row numbers already.
    """
    if ROW_COLUMN in pairs.column_names:
        raise DataError(f"{name}: column '{ROW_COLUMN}' is kept for row numbers; rename it")
    rows = np.arange(len(pairs)) if rows is None else rows
    pairs, joined = _join_parts(pairs.add_column(ROW_COLUMN, rows))
    column = annotator_column_of(pairs.column_names, annotator_column)
    return Source(_write_out_json(pairs), name, column, {}, [], joined)


def _read(name: str, split: str, config: str | None) -> Table | Dataset:
    path = Path(name).expanduser()
    if path.is_dir() and _is_saved_dataset(path):
        return _take_split(load_from_disk(str(path)), split, name)
    if not path.is_file() and not is_table(path):
        return _load_from_hub(name, split, config)
    if split != "train":
        raise DataError(f"{name}: split '{split}' is missing; it has one part, called train")
    return read_table(path)


def _load_from_hub(name: str, split: str, config: str | None) -> Dataset:
    try:
        return load_dataset(name, config, split=split)
    except Exception as error:  # the hub, and the builders of datasets, have many
        raise DataError(
            f"{name}: neither a local file nor a dataset that loads ({error})"
        ) from error


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def _take_split(loaded: Dataset | DatasetDict, split: str, name: str) -> Dataset:
    if isinstance(loaded, Dataset):
        if split != "train":
            raise DataError(f"{name}: split '{split}' is missing; it has one part, called train")
        return loaded
    if split not in loaded:
        raise DataError(f"{name}: split '{split}' is missing; it has {', '.join(loaded)}")
    return loaded[split]


def _apply_reader(
    reader: Reader, options: frozenset[str], raw: Table | Dataset, name: str
) -> ReadPairs:
    if isinstance(raw, Table) and raw.problems:
        raise DataError(f"{name}: {raw.problems[0]}")
    read = reader.read(raw.to_records() if isinstance(raw, Table) else raw, options)
    if read.dropped:
        words = ", ".join(f"{count} {reason}" for reason, count in read.dropped.items())
        logger.warning("%s: the reader dropped %s", name, words)
    if not read.pairs and not read.problems:
        raise DataError(f"{name}: the reader {reader.name} found no pair")
    return read


def _without_faults(table: Table, columns: dict[str, str], annotator_column: str | None) -> Table:
    """The rows of a JSON file whose texts and ids can be used; faults of others are problems."""
    if not isinstance(table.content, list):
        return table
    names = dict.fromkeys(name for record in table.content for name in record)
    texts = {role: columns.get(role, role) for role in TEXT_COLUMNS}
    ids = annotator_column_of(names, annotator_column)
    rules = RowRules(
        {role: name for role, name in texts.items() if name in names},
        ids if ids in names else None,
        choice_columns_of(names, CHOICE_SET in names),
    )
    problems, kept, rows = list(table.problems), [], []
    for row, record in zip(table.rows, table.content, strict=True):
        if found := rules.problems_of(row, record):
            problems += found
        else:
            kept.append(record)
            rows.append(row)
    return Table(kept, rows, problems)


def _rename(dataset: Dataset, columns: dict[str, str], name: str) -> Dataset:
    for role, column in columns.items():
        if role not in TEXT_COLUMNS:
            raise ConfigError(f"columns: expected {', '.join(TEXT_COLUMNS)}, got '{role}'")
        check_has_columns(dataset.column_names, [column], name)
    moved = {column: role for role, column in columns.items() if column != role}
    if len(set(columns.values())) < len(columns):
        raise ConfigError("columns: one column of the source cannot have two roles")
    in_the_way = [r for r in moved.values() if r in dataset.column_names and r not in moved]
    kept = {role: f"{role}_source" for role in in_the_way}
    return dataset.rename_columns({**kept, **moved}) if moved else dataset


def _join_parts(dataset: Dataset) -> tuple[Dataset, int]:
    """Contents in parts as texts; and how many values had some."""
    joined = 0
    for name in {*TEXT_COLUMNS} & {*dataset.column_names}:
        if getattr(dataset.features[name], "dtype", None) == "string":
            continue
        values = dataset[name][:]
        plain = [join_parts(value) for value in values]
        changed = sum(value != other for value, other in zip(values, plain, strict=True))
        if changed:
            dataset = replace_column(dataset, name, plain)
            joined += changed
    return dataset, joined


def _write_out_json(dataset: Dataset) -> Dataset:
    """Make columns of several types text; datasets keeps them as encoded JSON, quotes and all."""
    for name, feature in dataset.features.items():
        if type(feature).__name__ == "Json" and name not in (
            *TEXT_COLUMNS,
            "chat_template_kwargs",
        ):
            dataset = replace_column(dataset, name, [json_text(value) for value in dataset[name]])
    return dataset
