"""Which pairs a policy was trained on.

Training brings the margins of its pairs in line with their choices, and differences between
people shrink in them. Nothing in the margins tells: it has to be written down.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

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


def write_training_responses(pairs: Dataset, folder: Path) -> None:
    """Write into a run's folder which responses its policy is trained on, as hashes."""
    numbers = np.array(sorted(int(key, 16) for key in answer_keys(pairs)), dtype=np.uint64)
    with written_whole(folder / TRAINING_RESPONSES_FILE) as temporary:
        pq.write_table(pa.table({_COLUMN: numbers}), temporary)


def mark_trained(pairs: Dataset, model: str, config: MarginsConfig) -> dict[str, np.ndarray]:
    """Column `trained_on`: whether the policy was trained on a response of the row; if known.

    It is known of the policy of a run, and of one whose training pairs are named. A row of a
    choice set is marked with the others.

    Args:
        pairs: The pairs.
        model: Name of the policy.
        config: Options; `trained_on` names pairs, or says that there are none.

    Raises:
        DataError: If the file of a run, or the pairs that are named, cannot be read.
    """
    keys = set(_keys_of_run(model))
    if config.trained_on is None and not keys:
        return {}
    if config.trained_on not in (None, NOT_TRAINED_ON):
        trained = load_preferences(
            str(config.trained_on), reader=config.reader, columns=named_columns(config),
            choice_set="none",
        )  # fmt: skip
        keys |= answer_keys(trained.pairs)
    return {TRAINED_ON: has_answers(pairs, keys)}


def _keys_of_run(model: str) -> Iterable[str]:
    """Keys of the responses that a run was trained on; none of any other policy."""
    folder = Path(model).expanduser()
    for path in (folder / TRAINING_RESPONSES_FILE, folder.parent / TRAINING_RESPONSES_FILE):
        if path.is_file():
            try:
                numbers = pq.read_table(path)[_COLUMN].to_pylist()
            except (OSError, KeyError, pa.ArrowException) as error:
                raise DataError(f"{path}: cannot be read ({error})") from error
            return (f"{number:016x}" for number in numbers)
    return ()
