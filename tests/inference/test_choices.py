import numpy as np
import pytest
import torch

from mixdpo_pyro.inference import read_choices


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_margins_come_as_list_array_or_tensor(kind):
    choices = read_choices(kind([1.0, -2.0, 3.0]), kind([7, 7, 9]))
    np.testing.assert_array_equal(choices.margin, [1.0, -2.0, 3.0])
    np.testing.assert_array_equal(choices.annotator, [0, 0, 1])
    assert choices.labels == ("7", "9")


def test_tensor_that_requires_grad_is_read():
    assert read_choices(torch.tensor([1.0, 2.0], requires_grad=True)).num_pairs == 2


def test_labels_keep_the_natural_order_of_numbers():
    assert read_choices([1.0, 2.0, 3.0], [10, 9, 10]).labels == ("9", "10")


def test_panels_need_somebody_who_chose_twice():
    assert not read_choices([1.0, 2.0]).has_panels
    assert not read_choices([1.0, 2.0], ["a", "b"]).has_panels
    assert read_choices([1.0, 2.0, 3.0], ["a", "b", "a"]).has_panels


@pytest.mark.parametrize(
    ("margins", "annotator", "message"),
    [
        ([], None, "at least two margins, got none"),
        ([1.0, 2.0, float("nan")], None, "got nan at index 2"),
        ([1.0, float("-inf")], None, "got -inf at index 1"),
        ([0.5, 0.5], None, "margins that differ, got 2 times 0.5"),
        ([[1.0], [2.0]], None, r"shape \(pairs,\)"),
        ([1.0, 2.0], ["a"], r"one annotator id per margin \(2\)"),
        ([1.0, 2.0], ["a", "a"], "at least two annotators, got a only"),
        ([1.0, 2.0, 3.0], ["a", None, "b"], "got None at index 1"),
        ([1.0, 2.0, 3.0], [0.0, 1.0, float("nan")], "got nan at index 2"),
    ],
)
def test_unusable_data_raise(margins, annotator, message):
    with pytest.raises(ValueError, match=message):
        read_choices(margins, annotator)


def test_read_only_margins_are_taken():
    """pandas hands out views that torch warns of."""
    margins = np.array([0.3, -1.2, 2.0])
    margins.flags.writeable = False
    assert read_choices(margins).margin.flags.writeable
