import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, IterableDataset

from mixdpo_pyro.errors import DataError
from mixdpo_pyro.training.batches.numbering import (
    ANNOTATOR_INDEX,
    GROUP_INDEX,
    number_values,
)
from mixdpo_pyro.training.batches.sampler import AnnotatorBlockSampler, ChoiceBatchSampler

ANNOTATOR = np.random.default_rng(0).integers(0, 7, 100)


def runs(annotator):
    """Lengths of the runs of equal numbers."""
    ends = np.flatnonzero(np.diff(annotator)) + 1
    return np.diff([0, *ends, len(annotator)])


@pytest.mark.parametrize("block_size", [1, 3, 8, 1000])
def test_every_pair_comes_once_in_as_many_blocks_as_annotators_need(block_size):
    """Neighbouring blocks may be of one annotator, so there are at most as many runs as blocks."""
    order = list(AnnotatorBlockSampler(ANNOTATOR, block_size, seed=0))
    assert sorted(order) == list(range(100))
    num_blocks = int(np.ceil(np.bincount(ANNOTATOR) / block_size).sum())
    assert len(runs(ANNOTATOR[order])) <= num_blocks


def test_whole_annotators_stay_together_when_blocks_are_large():
    order = list(AnnotatorBlockSampler(ANNOTATOR, 1000, seed=0))
    assert sorted(runs(ANNOTATOR[order])) == sorted(np.bincount(ANNOTATOR))


def test_epochs_differ_and_the_seed_repeats_them():
    def order(seed, epoch):
        sampler = AnnotatorBlockSampler(ANNOTATOR, 4, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_ids_are_numbered_in_sorted_order():
    data = Dataset.from_dict({"who": ["b", "a", "b"]})
    numbered, labels = number(data, "who")
    assert numbered["index"][:] == [1, 0, 1] and labels == ["a", "b"]
    with pytest.raises(DataError, match="option: column 'user' is missing; the data have who"):
        number(data, "user")
    with pytest.raises(DataError, match="option: row 1 has no value in column 'who'"):
        number(Dataset.from_dict({"who": ["b", None]}), "who")
    with pytest.raises(DataError, match="option: needs a dataset, not a stream"):
        number(IterableDataset.from_generator(lambda: iter([])), "who")


def number(data, column):
    return number_values(data, column, "index", "option")


@pytest.mark.parametrize("value", ["", True, 0.5, ["a"], float("nan")])
def test_annotators_follow_the_rule_for_ids_and_groups_may_be_more(value):
    values = [value, value]
    data = Dataset.from_dict({"who": values})
    with pytest.raises(
        DataError, match=r"option: row 0 has .* in column 'who', expected an annotat"
    ):
        number_values(data, "who", ANNOTATOR_INDEX, "option")
    if value in (True, 0.5):
        _, labels = number_values(data, "who", GROUP_INDEX, "option")
        assert labels == [str(value)]
    else:
        with pytest.raises(DataError, match="expected a label"):
            number_values(data, "who", GROUP_INDEX, "option")


def test_numbers_and_texts_are_the_same_annotators():
    for ids in ([10, 9, 10], ["10", "9", "10"], [10.0, 9.0, 10.0]):
        data = Dataset.from_dict({"who": ids})
        numbered, labels = number_values(data, "who", ANNOTATOR_INDEX, "option")
        assert labels == ["9", "10"]
        assert numbered[ANNOTATOR_INDEX][:] == [1, 0, 1]


CHOICE = np.repeat(np.arange(60), np.random.default_rng(1).integers(1, 5, 60))


def batches(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("epoch", range(4))
@pytest.mark.parametrize("owned", [False, True])
def test_batches_hold_whole_choices_and_every_row_once(epoch, owned):
    owner = (CHOICE % 7) if owned else None
    sampler = ChoiceBatchSampler(CHOICE, 8, seed=3, owner=owner, block_size=5)
    found = batches(sampler, epoch)
    assert len(found) == len(sampler)
    assert sorted(row for batch in found for row in batch) == list(range(len(CHOICE)))
    assert max(map(len, found)) <= 8
    home = {CHOICE[row]: k for k, batch in enumerate(found) for row in batch}
    assert all(home[CHOICE[row]] == k for k, batch in enumerate(found) for row in batch)
    assert len(found) <= 1.3 * len(CHOICE) / 8  # little room is wasted


def test_choices_of_an_owner_stand_in_blocks_and_meet_others_every_epoch():
    """30 owners of four pairs each: a batch of eight holds two whole owners."""
    owner = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 4))
    sampler = ChoiceBatchSampler(np.arange(120), 8, seed=0, owner=owner)
    met = []
    for epoch in (0, 1):
        found = [frozenset(owner[batch].tolist()) for batch in batches(sampler, epoch)]
        assert [len(each) for each in found] == [2] * 15
        met.append(set(found))
    assert len(met[0] & met[1]) <= 4


def test_batches_of_choices_are_repeated_by_seed_and_epoch():
    first, again, other = (ChoiceBatchSampler(CHOICE, 8, seed) for seed in (0, 0, 1))
    assert batches(first, 1) == batches(again, 1)
    assert batches(first, 1) != batches(first, 2)
    assert batches(first, 1) != batches(other, 1)
    with pytest.raises(ValueError, match="at most 3 rows in a choice, got 4"):
        ChoiceBatchSampler(CHOICE, 3, 0)


def test_several_processes_share_the_batches():
    """As accelerate cuts them, whatever their sizes; the last round is filled with first ones."""
    sampler = ChoiceBatchSampler(CHOICE, 8, seed=0)
    whole = batches(sampler)
    shards = [list(BatchSamplerShard(sampler, 2, k)) for k in range(2)]
    assert len(shards[0]) == len(shards[1]) == -(-len(whole) // 2)
    dealt = [batch for both in zip(*shards, strict=True) for batch in both]
    assert dealt[: len(whole)] == whole and all(batch in whole for batch in dealt)


def test_large_blocks_of_annotators_are_cut_between_choices():
    sampler = ChoiceBatchSampler(np.repeat(np.arange(20), 3), 12, 0, np.zeros(60, int), 7)
    assert {len(batch) for batch in batches(sampler)} == {12}
