import datetime as dt
import math
import tracemalloc
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from mixdpo_pyro.inference import read_choices
from mixdpo_pyro.inference.choices import number_ids, read_ids, with_margins


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


class Column:
    """A column of a library that is not installed, such as polars."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype=dtype)

    def to_list(self):
        return list(self._values)


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "numpy": np.array,
    "torch": torch.tensor,
    "bfloat16": lambda values: torch.tensor(values, dtype=torch.bfloat16),
    "pandas": pd.Series,
    "pandas, masked": lambda values: pd.Series(values).convert_dtypes(),
    "pyarrow": pa.array,
    "pyarrow, in chunks": lambda values: pa.chunked_array([values[:1], values[1:]]),
    "another library": Column,
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_library_says_the_same(container):
    """Integers of an annotator come back as text; bfloat16 holds these margins exactly."""
    make = CONTAINERS[container]
    choices = read_choices(make([1.5, -2.0, 3.0]), make([7, 12, 7]))
    np.testing.assert_array_equal(choices.margin, [1.5, -2.0, 3.0])
    assert choices.labels == ("7", "12")
    np.testing.assert_array_equal(choices.annotator, [0, 1, 0])


@pytest.mark.parametrize(
    ("ids", "texts"),
    [
        (["01", "1", "1.0", "1e0"], ["01", "1", "1.0", "1e0"]),
        (["NA", "None", "null", "true"], ["NA", "None", "null", "true"]),
        ([1, 1.0, np.float32(1), Decimal(1)], ["1"] * 4),
        ([2**53, 2**53 + 1, 2**64, 2**64 + 1], [str(2**k + j) for k in (53, 64) for j in (0, 1)]),
        (np.array([2**64 - 1, 2**64 - 2], dtype=np.uint64), [str(2**64 - 1), str(2**64 - 2)]),
        ([" a", "a ", "a", "A"], [" a", "a ", "a", "A"]),
        (["1", 1, "x" * 1_000], ["1", "1", "x" * 1_000]),
    ],
)
def test_ids_are_texts_as_written_and_whole_numbers_of_any_size(ids, texts):
    assert read_ids(ids).tolist() == texts


def test_numbers_and_texts_have_one_order():
    """Else tables of the same people differ with the type of their ids."""
    person = [12, 3, 1, 10, 2, 3]
    labels, index = number_ids(read_ids(person))
    assert labels == ("1", "2", "3", "10", "12")
    for kind in (str, float):
        same = number_ids(read_ids([kind(p) for p in person]))
        assert same[0] == labels and same[1].tolist() == index.tolist()
    assert number_ids(["b", "07", "7", "-1", "B", "10"])[0] == ("-1", "07", "7", "10", "B", "b")


MISSING = [None, math.nan, np.float32("nan"), pd.NA, pd.NaT, np.ma.masked, "", " \t"]
BROKEN_IDS = ["x" * 1_001, "a\0", "\ud83d", 2.5, math.inf, 2.0**53]
NO_IDS = [
    True,
    np.True_,
    b"a",
    [1],
    {"id": 1},
    (1,),
    dt.date(2020, 1, 1),
    np.datetime64("NaT"),
    1j,
]


@pytest.mark.parametrize("value", MISSING + BROKEN_IDS)
def test_missing_and_broken_ids_are_named_by_their_index(value):
    with pytest.raises(ValueError, match=r"Expected an annotator id.* at index 1"):
        read_ids(["a", value, "a"])


@pytest.mark.parametrize("value", NO_IDS)
def test_values_that_are_no_ids_are_one_clear_error(value):
    with pytest.raises(TypeError, match=r"Expected an annotator id.* at index 1"):
        read_ids(["a", value, "a"])


@pytest.mark.parametrize(
    "ids",
    [
        pd.array([1, None, 1], dtype="Int64"),
        np.ma.array([1, 2, 1], mask=[False, True, False]),
        pd.Series([1.0, None, 1.0]),
        pa.array(["a", None, "a"]),
    ],
)
def test_holes_in_columns_are_missing_ids(ids):
    with pytest.raises(ValueError, match="at index 1"):
        read_ids(ids)


@pytest.mark.parametrize(
    "ids",
    ["aba", {"a", "b"}, {"a": 1}, iter("ab"), 5, None, np.array(["2020"], dtype="M8[ns]"),
     pd.Series(pd.to_datetime(["2020", "2021"])), np.ones((2, 1)), np.array([b"a"])],
)  # fmt: skip
def test_what_is_no_column_of_ids_is_one_clear_error(ids):
    with pytest.raises(TypeError, match="Expected a"):
        read_ids(ids)


def test_long_ids_take_memory_once():
    """As numpy's text of fixed width, 20,000 ids of 1,000 characters take 80 MB."""
    ids = ["a" * 1_000, "b" * 1_000] * 10_000
    tracemalloc.start()
    choices = read_choices(np.arange(20_000.0), ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert choices.num_annotators == 2
    assert peak < 8e6


@pytest.mark.parametrize(
    "margins",
    [[True, 1.5], np.array([True, False]), torch.tensor([True, False]), ["1", "2"], [b"1", 2],
     np.array(["2020", "2021"], dtype="M8[D]"), pd.Series(pd.to_timedelta([1, 2])), [1j, 1],
     {1.0: 2}, {1.0, 2.0}, iter([1.0]), "12", None, 5.0, [[1.0], [2.0, 3.0]], [[1.0], 2.0]],
)  # fmt: skip
def test_margins_of_a_wrong_type_are_one_clear_error(margins):
    with pytest.raises(TypeError, match=r"Expected (margins|a column of margins)"):
        read_choices(margins)


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        ([1.0, None, 2.0], "got nan at index 1"),
        (pd.array([1.0, None, 2.0], dtype="Float64"), "got nan at index 1"),
        (np.ma.array([1.0, 5.0, 2.0], mask=[False, True, False]), "got nan at index 1"),
        ([1.0, 2.0, 1e30], r"at most 1e\+20 in size, got 1e\+30 at index 2"),
        ([1.0, -np.finfo(np.float32).max], "at index 1"),
        ([1.0, 10**400], "got inf at index 1"),
        ([1.0, 2.0, -1e15], r"at most 1e\+10 times the median, 2, got -1e\+15 at index 2"),
        ([1e-25, 2e-25], "median size of at least 1e-20"),
    ],
)
def test_margins_beyond_the_likelihood_are_named_by_their_index(margins, message):
    with pytest.raises(ValueError, match=message):
        read_choices(margins)


def test_choices_with_other_margins_lose_those_without_one():
    choices = read_choices([1.0, 2.0, 3.0, 4.0], ["a", "b", "c", "a"])
    left = with_margins(choices, np.array([5.0, np.nan, 6.0, 7.0]))
    assert left.margin.tolist() == [5.0, 6.0, 7.0]
    assert left.labels == ("a", "c")
    assert left.annotator.tolist() == [0, 1, 0]
    assert with_margins(read_choices([1.0, 2.0]), np.array([np.nan, 3.0])).margin.tolist() == [3.0]


def test_an_id_of_100000_characters_is_refused_without_a_copy_per_row():
    """An array of fixed width would take 400,000 bytes for every one of 20,000 rows: 7.5 GiB."""
    ids = ["x" * 100_000, "a"] * 10_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="at most 1,000 characters") as error:
        read_choices(np.linspace(-1, 2, 20_000), ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24 and len(str(error.value)) < 200
