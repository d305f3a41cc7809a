"""Where the pairs of a run come from: one dataset, a mixture of several, or a stream."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from trl import DatasetMixtureConfig, get_dataset

from mixdpo_pyro.data.choice_kinds import NO_SETS, choice_columns_of
from mixdpo_pyro.data.loading import checked_pairs, load_preferences, source_of
from mixdpo_pyro.data.splitting import answer_keys, drop_answers, drop_held_out, split_pairs
from mixdpo_pyro.data.validation import (
    ROW_COLUMN,
    PreferenceData,
    annotator_column_of,
    drop_useless,
    find_problems,
)
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.workflows.choices import asked_sets, name_choice_columns, with_same_sets
from mixdpo_pyro.workflows.run_config import RunConfig, read_part

__all__ = ["RunPairs", "load_mixture", "load_run_pairs"]

_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}

_COMPRESSED = (".gz", ".bz2", ".xz")

_AT_ONCE = 64
"""Pairs of a stream that are checked together."""


@dataclass(frozen=True)
class RunPairs:
    """Pairs to train on, and held-out pairs.

    Attributes:
        train: Pairs to train on; those of a stream are checked as they are read.
        test: Held-out pairs.
        dropped: Reason -> number of pairs dropped; of a stream, of the held-out pairs.
    """

    train: Dataset | IterableDataset
    test: Dataset
    dropped: dict[str, int]


def load_run_pairs(run: RunConfig, training: MixDPOConfig) -> RunPairs:
    """Training and held-out pairs; without a named column, `annotator` is taken where it is.

    What the training pairs say was done is named to the trainer likewise.

    Raises:
        DataError: If they cannot be read, or a row cannot be used.
    """
    if run.is_streamed:
        return _load_stream(run, training)
    sets = asked_sets(training)
    train = _load_split(run, run.dataset_train_split, run.max_pairs, training, sets)
    training.annotator_column = train.annotator_column
    name_choice_columns(training, train)
    if run.dataset_test_split is None:
        parts = split_pairs(
            train.pairs, run.test_fraction, training.seed, train.annotator_column,
            run.test_split_by,
        )  # fmt: skip
        shared = Counter(
            {"training pairs with a held-out prompt": len(train.pairs) - sum(map(len, parts))}
        )
        return RunPairs(*parts, dict(Counter(train.dropped) + shared))
    test = _load_split(run, run.dataset_test_split, None, training, sets)
    test = with_same_sets(training, test)
    kept = drop_held_out(train.pairs, test.pairs)
    dropped = Counter(train.dropped) + Counter(test.dropped)
    dropped += Counter({"training pairs that are held out too": len(train.pairs) - len(kept)})
    if not len(kept):
        raise DataError(f"{train.source}: every training pair is in the held-out split too")
    return RunPairs(kept, test.pairs, dict(dropped))


def load_mixture(
    parts: Sequence[str | dict[str, Any]], streaming: bool = False
) -> Dataset | IterableDataset:
    """The parts of a mixture one after the other, as `trl.get_dataset` loads them.

    Args:
        parts: Paths, or keys and values of TRL's `DatasetConfig`. The path of a json, jsonl or
            parquet file stands for its builder and `data_files`.
        streaming: Read rows only as they are asked for.

    Raises:
        ConfigError: If a part is a table of another kind.
        DataError: If a part cannot be loaded.
    """
    mixture = DatasetMixtureConfig([_with_builder(read_part(p)) for p in parts], streaming)
    try:
        return get_dataset(mixture)["train"]
    except Exception as error:  # the hub, the builders of datasets and TRL have many
        raise DataError(f"datasets: cannot be loaded ({' '.join(str(error).split())})") from error


def _with_builder(part: dict[str, Any]) -> dict[str, Any]:
    path = Path(part["path"]).expanduser()
    if not path.is_file():
        return part
    suffix = path.with_suffix("").suffix if path.suffix in _COMPRESSED else path.suffix
    if suffix not in _BUILDERS:
        raise ConfigError(
            f"datasets: '{path}': expected a json, jsonl or parquet file. The cells of a csv file "
            "would be guessed here; dataset_name reads them as text"
        )
    return {**part, "path": _BUILDERS[suffix], "data_files": str(path)}


def _load_split(
    run: RunConfig, split: str, max_rows: int | None, training: MixDPOConfig, sets: str | None
) -> PreferenceData:
    if run.dataset_name is None:
        pairs = load_mixture(run.datasets)
        assert isinstance(pairs, Dataset)
        source = source_of(pairs, run.source, training.annotator_column)
        data = checked_pairs(source, max_rows, training.seed, sets)
    else:
        data = load_preferences(
            run.dataset_name,
            split=split,
            config=run.dataset_config,
            annotator_column=training.annotator_column,
            max_rows=max_rows,
            seed=training.seed,
            reader=run.reader,
            choice_set=sets,
        )
    return _pseudonymised(data, run, training)


def _pseudonymised(data: PreferenceData, run: RunConfig, training: MixDPOConfig) -> PreferenceData:
    columns = list(run.pseudonymise_columns)
    if training.group_column in data.pairs.column_names:  # held-out pairs alone need it
        columns.append(str(training.group_column))
    return data.pseudonymised(run.pseudonymise, *columns)


def _load_stream(run: RunConfig, training: MixDPOConfig) -> RunPairs:
    """A stream of training pairs, and held-out pairs: another split, or its beginning."""
    parts: Sequence[Any] = run.datasets
    if run.dataset_name is not None:
        parts = [
            {
                "path": run.dataset_name,
                "name": run.dataset_config,
                "split": run.dataset_train_split,
            }
        ]
    stream = load_mixture(parts, streaming=True)
    assert isinstance(stream, IterableDataset)
    stream = stream.map(_number_row, with_indices=True)
    columns = list(next(iter(stream), {}))
    _refuse_choices(columns)
    annotator = annotator_column_of(columns, training.annotator_column)
    if run.test_pairs is None:
        assert run.dataset_name is not None and run.dataset_test_split is not None
        test = load_preferences(
            run.dataset_name, run.dataset_test_split, run.dataset_config, annotator,
            choice_set=NO_SETS,
        )  # fmt: skip
    else:
        first = Dataset.from_list(list(stream.take(run.test_pairs))).remove_columns(ROW_COLUMN)
        test = checked_pairs(source_of(first, run.source, annotator), choice_set=NO_SETS)
        stream = stream.skip(run.test_pairs)
    training.annotator_column, training.choice_set_column = annotator, None
    usable = partial(
        _usable_pairs, name=run.source, annotator=annotator, held_out=answer_keys(test.pairs)
    )
    stream = stream.map(usable, batched=True, batch_size=_AT_ONCE)
    return RunPairs(stream, _pseudonymised(test, run, training).pairs, test.dropped)


def _number_row(row: dict[str, Any], index: int) -> dict[str, Any]:
    if ROW_COLUMN in row:
        raise DataError(f"column '{ROW_COLUMN}' is kept for row numbers; rename it")
    return {**row, ROW_COLUMN: index}


def _refuse_choices(columns: list[str]) -> None:
    found = choice_columns_of(columns, has_ranks=True)
    if found:
        raise DataError(
            f"dataset_streaming: column '{found[0]}' says what was done, and takes the whole "
            "dataset to read; leave dataset_streaming out, or the column"
        )


def _usable_pairs(
    batch: dict[str, list], name: str, annotator: str | None, held_out: set[str]
) -> dict[str, list]:
    """The pairs that can be trained on; a row that cannot be read ends the training."""
    pairs = Dataset.from_dict(batch)
    problem = next(find_problems(pairs, name, annotator), None)
    if problem is not None:
        raise DataError(f"{name}: {problem}")
    return drop_answers(drop_useless(pairs)[0], held_out).to_dict()
