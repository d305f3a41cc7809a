"""Which pairs a policy was trained on.

Training brings the margins of its pairs in line with their choices, and differences between
people shrink in them. Nothing in the margins tells: it has to be written down.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from mixdpo_pyro.data.choice_kinds import NO_SETS
from mixdpo_pyro.data.loading import load_preferences, named_columns
from mixdpo_pyro.data.splitting import answer_keys, has_answers
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.io import written_whole
from mixdpo_pyro.margins.config import NOT_TRAINED_ON, MarginsConfig
from mixdpo_pyro.margins.table import TRAINED_ON

__all__ = ["TRAINING_RESPONSES_FILE", "mark_trained", "write_training_responses"]

TRAINING_RESPONSES_FILE = "training_responses.parquet"
"""Hashes of the responses, with their prompts, that the policy of a run was trained on."""

_COLUMN = "response"


def write_training_responses(pairs: Dataset, model: str, folder: Path) -> None:
    """Write into a run's folder which responses its policy was trained on, as hashes.

    Args:
        pairs: The pairs that it is trained on.
        model: Name of the model that the training starts from; where that is a run's policy, what
            it was trained on counts too.
        folder: The run's folder.

    Raises:
        DataError: If the file of that run cannot be read.
    """
    keys = answer_keys(pairs) | _keys_of_run(model)
    numbers = np.array(sorted(int(key, 16) for key in keys), dtype=np.uint64)
    with written_whole(folder / TRAINING_RESPONSES_FILE) as temporary:
        pq.write_table(pa.table({_COLUMN: numbers}), temporary)


def mark_trained(pairs: Dataset, model: str, config: MarginsConfig) -> dict[str, np.ndarray]:
    """Column `trained_on`: whether the policy was trained on a response of the row; if known.

    It is known of the policy of a run, and of one whose training pairs are named. A row of a
    choice set is marked with the others. Texts are compared with their prompts, which may stand in
    a column of their own or at the beginning of the responses.

    Args:
        pairs: The pairs.
        model: Name of the policy.
        config: Options; `trained_on` names pairs, or says that there are none. Their columns of
            texts, and their reader, are those of the data.

    Raises:
        DataError: If the file of a run, or the pairs that are named, cannot be read.
    """
    keys = _keys_of_run(model)
    if config.trained_on is None and not keys:
        return {}
    if config.trained_on not in (None, NOT_TRAINED_ON):
        trained = load_preferences(
            str(config.trained_on), reader=config.reader, columns=named_columns(config),
            choice_set=NO_SETS,
        )  # fmt: skip
        keys |= answer_keys(trained.pairs)
    return {TRAINED_ON: has_answers(pairs, keys)}


def _keys_of_run(model: str) -> set[str]:
    """Keys of the responses that a run was trained on; none of any other policy."""
    folder = Path(model).expanduser().resolve()
    places = [folder, *([folder.parent] if folder.name == "policy" else [])]
    for place in places:
        path = place / TRAINING_RESPONSES_FILE
        if path.is_file():
            return _read_keys(path)
    return set()


def _read_keys(path: Path) -> set[str]:
    try:
        column = pq.read_table(path)[_COLUMN]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if column.type != pa.uint64() or column.null_count:
        raise DataError(f"{path}: expected hashes in column '{_COLUMN}', got {column.type}")
    return {f"{number:016x}" for number in column.to_pylist()}
