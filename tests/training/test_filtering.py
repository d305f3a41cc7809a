"""Pairs without a signal are counted, dropped or refused; a runaway mean is named."""

import logging

import pytest
from datasets import Dataset
from scenarios import TRAINING_MARKS, small_world, take

from mixdpo_pyro.errors import DataError
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.filtering import drop_unusable
from mixdpo_pyro.training.strength.mean_drift import why_mean_drifts
from mixdpo_pyro.training.trainer import MixDPOTrainer

pytestmark = TRAINING_MARKS


def tokenized(*rows):
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows])


GOOD = ([1, 2], [3, 4, 0], [5, 6, 0])
EMPTY = ([1, 2], [0], [5, 6, 0])
SAME = ([1, 2], [3, 4, 0], [3, 4, 0])
SAME_ONCE_CUT = ([1, 2, 9], [7, 3, 0], [7, 4, 0])
GONE = ([1, 2, 3, 4, 5], [6, 7, 0], [8, 9, 0])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (EMPTY, "an empty completion"),
        (SAME, "identical completions"),
        (SAME_ONCE_CUT, "completions that are identical once truncated"),
        (GONE, "a fully truncated completion"),
    ],
)
def test_pairs_without_a_signal_are_left_out_and_counted(row, reason, caplog):
    with caplog.at_level(logging.WARNING):
        kept, dropped = drop_unusable(tokenized(GOOD, row, GOOD), "train", 4, "keep_start")
    assert len(kept) == 2 and dropped == {reason: 1}
    assert f"train dataset: dropped 1 pairs with {reason}" in caplog.text


def test_truncation_at_the_other_end_keeps_what_differs():
    rows = tokenized(GOOD, GONE, ([1], [7, 3, 5, 5, 5, 0], [8, 5, 5, 5, 0]))
    kept, dropped = drop_unusable(rows, "train", 4, "keep_end")
    assert len(kept) == 2 and dropped == {"completions that are identical once truncated": 1}


def test_good_pairs_are_left_alone():
    rows = tokenized(GOOD, GOOD)
    kept, dropped = drop_unusable(rows, "train", None, "keep_start", strict=True)
    assert kept is rows and dropped == {}


def test_strict_names_the_rows():
    with pytest.raises(DataError, match=r"1 pairs with identical .* first rows are \[1\]"):
        drop_unusable(tokenized(GOOD, SAME), "train", 8, "keep_start", strict=True)


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match="eval dataset: no usable pair is left"):
        drop_unusable(tokenized(SAME), "eval", 8, "keep_start")


def trainer_of(rows, folder, policy, **settings):
    return MixDPOTrainer(
        policy,
        args=MixDPOConfig(str(folder), max_length=128, report_to="none", **settings),
        train_dataset=Dataset.from_list(rows),
    )


def test_trainer_counts_what_it_drops(tmp_path, policy_folder):
    rows = take(small_world(), 12).to_list()
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[5]["chosen"] = ""
    rows[7]["prompt"] = rows[7]["prompt"] * 200
    trainer = trainer_of(rows, tmp_path, policy_folder)
    assert len(trainer.train_dataset) == 9
    assert trainer.dropped["train"] == {
        "identical completions": 1,
        "an empty completion": 1,
        "a prompt longer than max_length": 1,
    }
    assert 7 not in trainer.train_dataset["source_row"][:]


def test_strict_trainer_refuses_what_trl_drops(tmp_path, policy_folder):
    rows = take(small_world(), 4).to_list()
    rows[1]["prompt"] = rows[1]["prompt"] * 200
    with pytest.raises(DataError, match="train dataset: 1 pairs with a prompt longer than"):
        trainer_of(rows, tmp_path, policy_folder, strict=True)


@pytest.mark.parametrize("mean", [0.049, 0.21])
def test_a_mean_that_doubles_or_halves_is_named(mean):
    assert "trades off against the scale" in why_mean_drifts(mean, 0.1, "prior")


@pytest.mark.parametrize("mean", [0.051, 0.1, 0.19])
def test_a_mean_near_beta_is_not(mean):
    assert why_mean_drifts(mean, 0.1, "prior") is None
