"""Preference pairs in TRL's formats: readers, checks, a split that keeps equal pairs together."""

import gzip
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from mixdpo_pyro.errors import DataError

__all__ = [
    "ROW_COLUMN",
    "PreferenceData",
    "check_preferences",
    "load_preferences",
    "pair_keys",
    "split_pairs",
]

logger = logging.getLogger(__name__)

ROW_COLUMN = "source_row"
"""Column that carries the row number in the source, counted from 0."""

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


class _Rule(NamedTuple):
    words: str
    holds: Callable[[object], bool]


def load_preferences(
    name: str,
    split: str = "train",
    config: str | None = None,
    annotator_column: str | None = None,
    max_rows: int | None = None,
    seed: int = 0,
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

    Raises:
        DataError: If the source cannot be read, or a row cannot be used.
    """
    dataset = _read(name, split, config)
    if ROW_COLUMN in dataset.column_names:
        raise DataError(f"{name}: column '{ROW_COLUMN}' is kept for row numbers; rename it")
    dataset = dataset.add_column(ROW_COLUMN, np.arange(len(dataset)))
    if max_rows is not None and max_rows < len(dataset):
        keep = np.random.default_rng(seed).permutation(len(dataset))[:max_rows]
        dataset = dataset.select(np.sort(keep))
    return check_preferences(dataset, source=name, annotator_column=annotator_column)


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
    columns = dataset.column_names
    required = ["chosen", "rejected", *([annotator_column] if annotator_column else [])]
    for column in required:
        if column not in columns:
            raise DataError(f"{source}: column '{column}' is missing; it has {', '.join(columns)}")
    if len(dataset) == 0:
        raise DataError(f"{source}: the dataset is empty")
    text_columns = [c for c in ("prompt", "chosen", "rejected") if c in columns]
    rows = dataset[ROW_COLUMN] if ROW_COLUMN in columns else range(len(dataset))
    for column in text_columns:
        _check_values(dataset[column], rows, f"column '{column}'", source, _TEXT)
    if annotator_column:
        where = f"column '{annotator_column}'"
        _check_values(dataset[annotator_column], rows, where, source, _ANNOTATOR)

    reasons = [
        _why_useless(c, r) for c, r in zip(dataset["chosen"], dataset["rejected"], strict=True)
    ]
    dropped = {reason: reasons.count(reason) for reason in sorted({r for r in reasons if r})}
    if dropped:
        dataset = dataset.select([i for i, reason in enumerate(reasons) if reason is None])
        logger.warning("%s: left out %s", source, _count_words(dropped))
    if len(dataset) == 0:
        raise DataError(f"{source}: no usable pair is left ({_count_words(dropped)})")
    return PreferenceData(dataset, source, dropped)


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
    keys = []
    for prompt, *answers in zip(prompts, pairs["chosen"], pairs["rejected"], strict=True):
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
        return load_dataset(builder, data_files=str(path), split="train")
    except (DatasetGenerationError, OSError, EOFError, ValueError) as error:
        raise DataError(_why_unreadable(path, builder, error)) from error


def _why_unreadable(path: Path, builder: str, error: Exception) -> str:
    cause = error.__cause__ or error
    if "corresponds to no data" in str(cause):  # a header and no rows
        return f"{path}: the dataset is empty"
    if builder == "json" and ".jsonl" in path.name:
        opener: Callable = gzip.open if path.suffix == ".gz" else open
        number = 1
        try:
            with opener(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    if line.strip():
                        json.loads(line)
                    number += 1
        except (OSError, EOFError, ValueError) as bad_line:
            return f"{path}: line {number} cannot be read ({bad_line})"
    return f"{path}: cannot be read as {builder} ({' '.join(str(cause).split())})"


def _check_values(
    values: Iterable, rows: Iterable[int], where: str, source: str, rule: _Rule
) -> None:
    for row, value in zip(rows, values, strict=True):
        if not rule.holds(value):
            raise DataError(
                f"{source}: row {row}, {where}: expected {rule.words}, got {_shorten(value)}"
            )


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
    if not _text_of(chosen).strip() or not _text_of(rejected).strip():
        return "empty response"
    return "identical responses" if chosen == rejected else None


def _text_of(value: str | list) -> str:
    return value if isinstance(value, str) else "".join(str(m["content"]) for m in value)


def _count_words(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} rows with {reason}" for reason, count in dropped.items())


def _shorten(value: object, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
