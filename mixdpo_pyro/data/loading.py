"""Preference pairs in TRL's formats: readers, checks, a split that keeps equal pairs together."""

import gzip
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from mixdpo_pyro.data.readers.base import ReadPairs
from mixdpo_pyro.data.readers.registry import find_reader
from mixdpo_pyro.data.validation import (
    ROW_COLUMN,
    TEXT_COLUMNS,
    TEXT_RULE,
    PreferenceData,
    Problem,
    check_preferences,
    shorten,
)
from mixdpo_pyro.errors import ConfigError, DataError

__all__ = ["Source", "load_preferences", "named_columns", "read_source"]

logger = logging.getLogger(__name__)

_BUILDERS = {
    ".json": "json", ".jsonl": "json", ".json.gz": "json", ".jsonl.gz": "json",
    ".csv": "csv", ".csv.gz": "csv", ".parquet": "parquet",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Pairs as they were read, nothing checked yet.

    Attributes:
        pairs: The columns of the source, renamed where asked for; `source_row` is added.
        name: Name of the file or hub dataset, for messages.
        dropped: What a reader left out: reason -> number.
        problems: Values that a reader, or the reading of lines, could not use.
    """

    pairs: Dataset
    name: str
    dropped: dict[str, int]
    problems: list[Problem]


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
) -> PreferenceData:
    """Load preference pairs from a local file, a saved dataset folder or the hub, and check them.

    Args:
        name: Path of a `json`, `jsonl`, `csv` (each also gzipped) or `parquet` file, a folder
            written by `save_to_disk`, or a hub dataset name.
        split: Split to take where the source has several.
        config: Configuration name of a hub dataset.
        annotator_column: Column with annotator ids that must be there.
        max_rows: Take a random subset of at most this many rows.
        seed: Seed of that subset.
        reader: A reader of :mod:`mixdpo_pyro.data.readers`, `NAME` or `NAME:option,option`.
        columns: `prompt`, `chosen` or `rejected` -> the column of the source that holds it.

    Raises:
        ConfigError: If there is no such reader, or a role in `columns` is unknown.
        DataError: If the source cannot be read, or a row cannot be used.
    """
    source = read_source(name, split, config, reader, columns)
    if source.problems:
        first, *others = source.problems
        more = f" (and {len(others)} more; see mixdpo doctor)" if others else ""
        raise DataError(f"{name}: {first}{more}")
    pairs = source.pairs
    if max_rows is not None and max_rows < len(pairs):
        keep = np.random.default_rng(seed).permutation(len(pairs))[:max_rows]
        pairs = pairs.select(np.sort(keep))
    data = check_preferences(pairs, source=name, annotator_column=annotator_column)
    return PreferenceData(data.pairs, name, dict(Counter(source.dropped) + Counter(data.dropped)))


def read_source(
    name: str,
    split: str = "train",
    config: str | None = None,
    reader: str | None = None,
    columns: dict[str, str] | None = None,
    is_lenient: bool = False,
) -> Source:
    """Read pairs without checking them; see :func:`load_preferences` for the arguments.

    Args:
        name: File, saved dataset folder or hub name.
        split: Split to take where the source has several.
        config: Configuration name of a hub dataset.
        reader: A reader, `NAME` or `NAME:option,option`.
        columns: Role -> column of the source.
        is_lenient: Where a `jsonl` file does not load, read it line by line, and list the lines
            and values that are in the way instead of raising an error.

    Raises:
        ConfigError: If there is no such reader, or a role in `columns` is unknown.
        DataError: If the source cannot be read, or has no rows, or lacks a column of `columns`.
    """
    found = None if reader is None else find_reader(reader)
    if found and config is None and _builder_for(Path(name)) is None:
        config = found[0].hub_config
    problems: list[Problem] = []
    try:
        dataset = _read(name, split, config)
    except _UnreadableLinesError as error:
        if not is_lenient or found:
            raise DataError(str(error)) from error
        dataset, problems = _read_loosely(error.path)
    read = ReadPairs(problems=problems)
    if found:
        read = found[0].read(dataset, found[1])
        if read.dropped:
            words = ", ".join(f"{count} {reason}" for reason, count in read.dropped.items())
            logger.warning("%s: the reader left out %s", name, words)
        dataset = _dataset_of(read.pairs)
    if found and len(dataset) == 0 and not read.problems:
        raise DataError(f"{name}: the reader {found[0].name} found no pair")
    dataset = _rename(dataset, columns or {}, name)
    if ROW_COLUMN not in dataset.column_names:
        dataset = dataset.add_column(ROW_COLUMN, np.arange(len(dataset)))
    elif not problems:
        raise DataError(f"{name}: column '{ROW_COLUMN}' is kept for row numbers; rename it")
    return Source(_write_out_json(dataset), name, dict(read.dropped), read.problems)


def _read(name: str, split: str, config: str | None) -> Dataset:
    path = Path(name).expanduser()
    builder = _builder_for(path)
    if path.is_dir() and _is_saved_dataset(path):
        return _take_split(load_from_disk(str(path)), split, name)
    if builder is not None:
        if not path.is_file():
            raise DataError(f"{name}: no such file")
        return _take_split(_read_file(path, builder), split, name)
    if path.is_file():
        raise DataError(
            f"{name}: unknown file type; expected one of {', '.join(sorted(_BUILDERS))}"
        )
    try:
        return load_dataset(name, config, split=split)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{name}: neither a local file nor a dataset that loads ({error})"
        ) from error


def _builder_for(path: Path) -> str | None:
    suffixes = "".join(path.suffixes[-2:]).lower()
    return next((b for ending, b in _BUILDERS.items() if suffixes.endswith(ending)), None)


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


def _read_file(path: Path, builder: str) -> Dataset:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        dataset = load_dataset(builder, data_files=str(path), split="train")
        dataset.data.table.validate(full=True)  # Arrow reads text that is not UTF-8
        return dataset
    except (DatasetGenerationError, OSError, EOFError, ValueError) as error:
        raise _why_unreadable(path, builder, error) from error


class _UnreadableLinesError(DataError):
    """A file of JSON lines that does not load as a table."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


def _why_unreadable(path: Path, builder: str, error: Exception) -> DataError:
    cause = error.__cause__ or error
    if "corresponds to no data" in str(cause):  # a header and no rows
        return DataError(f"{path}: the dataset is empty")
    general = f"{path}: cannot be read as {builder} ({' '.join(str(cause).split())})"
    if builder != "json" or ".jsonl" not in path.name:
        return DataError(general)
    for number, line in enumerate(_json_lines(path), start=1):
        if isinstance(line, Exception):
            return _UnreadableLinesError(f"{path}: line {number} cannot be read ({line})", path)
    return _UnreadableLinesError(f"{general}; mixdpo doctor lists the rows", path)


def _json_lines(path: Path) -> Iterator[Any]:
    """The value of every line, None for an empty one, the error where it cannot be read."""
    opener: Callable = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as lines:
            for line in lines:
                try:
                    yield json.loads(line) if line.strip() else None
                except ValueError as error:  # UnicodeDecodeError too
                    yield error
    except (OSError, EOFError) as error:  # a damaged archive ends here
        yield error


def _read_loosely(path: Path) -> tuple[Dataset, list[Problem]]:
    """Rows whose texts have the right types, numbered by lines, and what is wrong elsewhere."""
    problems, rows = [], []
    for number, value in enumerate(_json_lines(path)):
        if value is None:
            continue
        if not isinstance(value, dict):
            got = str(value) if isinstance(value, Exception) else shorten(value)
            problems.append(Problem(number, "(the whole line)", "a JSON object", got))
            continue
        bad = [name for name in TEXT_COLUMNS if name in value and not TEXT_RULE.holds(value[name])]
        problems += [Problem(number, n, TEXT_RULE.words, shorten(value[n])) for n in bad]
        if not bad:
            rows.append({**value, ROW_COLUMN: number})
    _give_columns_one_type(rows)
    try:
        return _dataset_of(rows), problems
    except (TypeError, ValueError) as error:  # two types within nested values
        raise DataError(f"{path}: cannot be read as json ({error})") from error


def _give_columns_one_type(rows: list[dict[str, Any]]) -> None:
    """Make the values of a column text where they are of several types, as ids may be."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(float if isinstance(value, int) else type(value))
    mixed = {n for n, found in kinds.items() if len(found - {type(None)}) > 1} - {*TEXT_COLUMNS}
    for row in rows:
        for name in mixed & row.keys():
            row[name] = _text_of_json(row[name])


def _text_of_json(value: object) -> str | None:
    """Text as it is, None as None, any other value as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _dataset_of(rows: Sequence[dict[str, Any]], chunk: int = 20_000) -> Dataset:
    """A dataset of rows; in chunks, since one Arrow array of text holds two gigabytes."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    full = [{name: row.get(name) for name in names} for row in rows]
    parts = [Dataset.from_list(full[i : i + chunk]) for i in range(0, len(full), chunk)]
    return concatenate_datasets(parts) if parts else Dataset.from_dict({})


def _rename(dataset: Dataset, columns: dict[str, str], name: str) -> Dataset:
    for role, column in columns.items():
        if role not in TEXT_COLUMNS:
            raise ConfigError(f"columns: expected {', '.join(TEXT_COLUMNS)}, got '{role}'")
        if column not in dataset.column_names:
            has = ", ".join(dataset.column_names)
            raise DataError(f"{name}: column '{column}' is missing; it has {has}")
    moved = {column: role for role, column in columns.items() if column != role}
    if len(set(columns.values())) < len(columns):
        raise ConfigError("columns: one column of the source cannot have two roles")
    in_the_way = [r for r in moved.values() if r in dataset.column_names and r not in moved]
    kept = {role: f"{role}_source" for role in in_the_way}
    return dataset.rename_columns({**kept, **moved}) if moved else dataset


def _write_out_json(dataset: Dataset) -> Dataset:
    """Make columns of several types text; datasets keeps them as encoded JSON, quotes and all."""
    order = dataset.column_names
    for name, feature in dataset.features.items():
        if type(feature).__name__ == "Json" and name not in TEXT_COLUMNS:
            values = [_text_of_json(value) for value in dataset[name]]
            dataset = dataset.remove_columns(name).add_column(name, values)
    return dataset.select_columns(order)
