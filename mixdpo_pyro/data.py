"""Preference pairs in TRL's formats: readers, checks, a split that keeps equal pairs together."""

import gzip
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.readers import Problem, ReadPairs, find_reader, shorten

__all__ = [
    "ROW_COLUMN",
    "TEXT_COLUMNS",
    "PreferenceData",
    "Source",
    "check_preferences",
    "drop_useless",
    "find_problems",
    "keys_of_pairs",
    "load_preferences",
    "named_columns",
    "pair_keys",
    "read_source",
    "split_pairs",
    "text_of",
]

logger = logging.getLogger(__name__)

ROW_COLUMN = "source_row"
"""Column that carries the row number in the source, counted from 0; with a reader, the number of
the pair in what the reader makes."""

TEXT_COLUMNS = ("prompt", "chosen", "rejected")
"""The columns of a preference pair; `prompt` may be absent."""

_BUILDERS = {
    ".json": "json", ".jsonl": "json", ".json.gz": "json", ".jsonl.gz": "json",
    ".csv": "csv", ".csv.gz": "csv", ".parquet": "parquet",
}  # fmt: skip


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


class _Rule(NamedTuple):
    words: str
    holds: Callable[[object], bool]


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
        reader: A reader of :mod:`mixdpo_pyro.readers`, `NAME` or `NAME:option,option`.
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
        yield from _find_values(dataset[column], rows, column, _TEXT)
    yield from _find_mixtures(dataset, rows, text_columns)
    if annotator_column:
        yield from _find_values(dataset[annotator_column], rows, annotator_column, _ANNOTATOR)


def drop_useless(dataset: Dataset) -> tuple[Dataset, dict[str, int]]:
    """Leave out pairs with identical or empty responses, and count them."""
    reasons = [
        _why_useless(c, r) for c, r in zip(dataset["chosen"], dataset["rejected"], strict=True)
    ]
    dropped = {reason: reasons.count(reason) for reason in sorted({r for r in reasons if r})}
    if dropped:
        dataset = dataset.select([i for i, reason in enumerate(reasons) if reason is None])
    return dataset, dropped


def split_pairs(pairs: Dataset, test_fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split at random into train and test; rows about the same two responses stay together.

    Several annotators often judge one pair. Were its rows on both sides, the test margins would
    come from a policy that has seen the answer.

    Raises:
        DataError: If there are fewer than two different pairs.
    """
    keys = pair_keys(pairs)
    unique = sorted(set(keys))
    if len(unique) < 2:
        raise DataError(f"Expected at least 2 different pairs to split, got {len(unique)}")
    num_test = min(max(round(test_fraction * len(unique)), 1), len(unique) - 1)
    order = np.random.default_rng(seed).permutation(len(unique))
    test_keys = {unique[i] for i in order[:num_test]}
    is_test = np.array([key in test_keys for key in keys])
    return pairs.select(np.flatnonzero(~is_test)), pairs.select(np.flatnonzero(is_test))


def pair_keys(pairs: Dataset) -> list[str]:
    """One key a row; equal for rows with the same prompt and the same two answers."""
    prompts = pairs["prompt"] if "prompt" in pairs.column_names else [""] * len(pairs)
    return keys_of_pairs(prompts, pairs["chosen"], pairs["rejected"])


def keys_of_pairs(prompts: Iterable, chosen: Iterable, rejected: Iterable) -> list[str]:
    """The keys of :func:`pair_keys` for columns of texts or messages."""
    keys = []
    for prompt, *answers in zip(prompts, chosen, rejected, strict=True):
        both = sorted(json.dumps(answer, sort_keys=True) for answer in answers)
        text = "\0".join([json.dumps(prompt, sort_keys=True), *both])
        keys.append(hashlib.sha256(text.encode()).hexdigest())
    return keys


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
        bad = [name for name in TEXT_COLUMNS if name in value and not _TEXT.holds(value[name])]
        problems += [Problem(number, n, _TEXT.words, shorten(value[n])) for n in bad]
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


def _find_values(
    values: Iterable, rows: Iterable[int], column: str, rule: _Rule
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


_TEXT = _Rule("text or a list of messages with 'role' and 'content'", _is_text_or_messages)
_ANNOTATOR = _Rule("an annotator id (text or a whole number)", _is_id)


def _why_useless(chosen: str | list, rejected: str | list) -> str | None:
    if not text_of(chosen).strip() or not text_of(rejected).strip():
        return "empty response"
    return "identical responses" if chosen == rejected else None


def text_of(value: str | list) -> str:
    """The text of a response, messages run together."""
    return value if isinstance(value, str) else "".join(str(m["content"]) for m in value)


def _count_words(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} rows with {reason}" for reason, count in dropped.items())
