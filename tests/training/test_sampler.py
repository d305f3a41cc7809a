import numpy as np
import pytest
from datasets import Dataset, IterableDataset

from mixdpo_pyro.errors import DataError
from mixdpo_pyro.training.sampler import (
    ANNOTATOR_INDEX,
    GROUP_INDEX,
    AnnotatorBlockSampler,
    number_values,
)

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
