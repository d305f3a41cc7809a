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
    write_training_responses(pairs.select([0]), "some/model", tmp_path)
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
    write_training_responses(pairs.select([4]), "some/model", tmp_path)
    sets = pairs.add_column("choice_set", ["x", "x", "y", "y", "z"])
    assert marks(sets, tmp_path) == {"trained_on": [False, False, True, True, True]}


@pytest.mark.parametrize("are_messages", [False, True])
def test_a_prompt_may_stand_at_the_beginning_of_the_responses(tmp_path, are_messages):
    from datasets import Dataset

    def value(text):
        return [{"role": "user", "content": text}] if are_messages else text

    rows = [{name: value(text) for name, text in row.items()} for row in ROWS]
    implicit = [{n: row["prompt"] + row[n] for n in ("chosen", "rejected")} for row in rows]
    write_training_responses(Dataset.from_list(implicit[2:3]), "some/model", tmp_path)
    expected = {"trained_on": [False, False, True, False, False]}
    assert marks(Dataset.from_list(rows), tmp_path) == expected
    assert marks(Dataset.from_list(implicit), tmp_path) == expected


def test_what_the_run_was_trained_on_that_it_began_with_counts(tmp_path, pairs):
    for name, row, start in (("a", 2, "some/model"), ("b", 4, str(tmp_path / "a" / "policy"))):
        (tmp_path / name / "policy").mkdir(parents=True)
        write_training_responses(pairs.select([row]), start, tmp_path / name)
    assert marks(pairs, tmp_path / "a") == {"trained_on": [False, False, True, False, False]}
    assert marks(pairs, tmp_path / "b") == {"trained_on": [False, False, True, True, True]}


def test_a_name_is_no_folder_beside_the_file(tmp_path, pairs, monkeypatch):
    write_training_responses(pairs, "some/model", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert marks(pairs, "gpt2") == {} and marks(pairs, ".") == {"trained_on": [True] * 5}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / TRAINING_RESPONSES_FILE).write_bytes(b"x")
    with pytest.raises(DataError, match=f"{TRAINING_RESPONSES_FILE}: cannot be read"):
        marks(small_world(), tmp_path)
    pd.DataFrame({"response": ["x"]}).to_parquet(tmp_path / TRAINING_RESPONSES_FILE)
    with pytest.raises(DataError, match="expected hashes in column 'response', got"):
        marks(small_world(), tmp_path)


def test_named_pairs_that_cannot_be_used_are_named(tmp_path, pairs):
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl: column 'rejected' is missing"):
        marks(pairs, tmp_path, trained_on=str(path))
