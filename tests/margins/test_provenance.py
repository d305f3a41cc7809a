import json

import pandas as pd
import pytest
from scenarios import small_world

from mixdpo_pyro.errors import DataError
from mixdpo_pyro.margins.config import MarginsConfig
from mixdpo_pyro.margins.provenance import (
    TRAINING_RESPONSES_FILE,
    mark_trained,
    write_training_responses,
)

ROWS = [
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "p", "chosen": "b", "rejected": "a"},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": "p", "chosen": "c", "rejected": "a"},
    {"prompt": "p", "chosen": "c", "rejected": "d"},
]


@pytest.fixture
def pairs():
    from datasets import Dataset

    return Dataset.from_list(ROWS)


def marks(pairs, model, **options):
    return {name: flags.tolist() for name, flags in
            mark_trained(pairs, str(model), MarginsConfig(**options)).items()}  # fmt: skip


def test_responses_of_a_run_are_known_whoever_chose_them(tmp_path, pairs):
    write_training_responses(pairs.select([0]), tmp_path)
    (tmp_path / "policy").mkdir()
    expected = {"trained_on": [True, True, False, True, False]}
    assert marks(pairs, tmp_path) == marks(pairs, tmp_path / "policy") == expected
    text = (tmp_path / TRAINING_RESPONSES_FILE).read_bytes()
    assert b'"p"' not in text and len(pd.read_parquet(tmp_path / TRAINING_RESPONSES_FILE)) == 2


def test_of_any_other_policy_the_pairs_are_named(tmp_path, pairs):
    assert marks(pairs, tmp_path) == {}
    assert marks(pairs, tmp_path, trained_on="none") == {"trained_on": [False] * 5}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(ROWS[4]) + "\n")
    assert marks(pairs, tmp_path, trained_on=str(path)) == {
        "trained_on": [False, False, False, True, True]
    }


def test_a_choice_set_is_marked_as_a_whole(tmp_path, pairs):
    write_training_responses(pairs.select([4]), tmp_path)
    sets = pairs.add_column("choice_set", ["x", "x", "y", "y", "z"])
    assert marks(sets, tmp_path) == {"trained_on": [False, False, True, True, True]}


def test_messages_are_known_too(tmp_path):
    from datasets import Dataset

    messages = [{name: [{"role": "user", "content": text}] for name, text in row.items()}
                for row in ROWS]  # fmt: skip
    pairs = Dataset.from_list(messages)
    write_training_responses(pairs.select([2]), tmp_path)
    assert marks(pairs, tmp_path) == {"trained_on": [False, False, True, False, False]}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / TRAINING_RESPONSES_FILE).write_bytes(b"x")
    with pytest.raises(DataError, match=f"{TRAINING_RESPONSES_FILE}: cannot be read"):
        marks(small_world(), tmp_path)
