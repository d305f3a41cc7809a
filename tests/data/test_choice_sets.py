"""Choices among several responses that were cut into pairs: found, named, kept apart."""

import itertools
import json
import time

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from mixdpo_pyro.data.choice_sets import find_sets, row_codes
from mixdpo_pyro.data.loading import load_preferences
from mixdpo_pyro.errors import DataError

KEYS = ("annotator", "prompt", "chosen", "rejected")


def table(rows, form=str, **columns):
    """Pairs of rows (annotator, prompt, chosen, rejected), as text or as messages."""
    records = [dict(zip(KEYS, row, strict=True)) for row in rows]
    for record in records:
        for name in KEYS[1:]:
            record[name] = form(record[name])
    pairs = Dataset.from_list([{**r, "source_row": k} for k, r in enumerate(records)])
    for name, values in columns.items():
        pairs = pairs.add_column(name, values)
    return pairs


def messages(text):
    return [{"role": "user", "content": text}]


def best_of(size, num_people=4, num_prompts=3, seed=0):
    """Rows of people who choose the best of `size` responses to every prompt."""
    rng = np.random.default_rng(seed)
    for g, k in itertools.product(range(num_people), range(num_prompts)):
        best = int(rng.integers(size))
        for j in range(size):
            if j != best:
                yield f"p{g}", f"q{k}", f"r{k}-{best}", f"r{k}-{j}"


def parts(rows, choice):
    """The choices, each as a set of rows."""
    found = {}
    for row, each in zip(rows, choice, strict=True):
        found.setdefault(each, []).append(row)
    return sorted(sorted(part) for part in found.values())


@pytest.mark.parametrize("form", [str, messages])
@pytest.mark.parametrize("size", [3, 4, 7])
def test_the_best_of_several_is_one_choice_in_any_order_of_the_rows(size, form):
    rows = list(best_of(size))
    shuffled = [rows[k] for k in np.random.default_rng(1).permutation(len(rows))]
    for order in (rows, shuffled):
        choice, origin, num_alike = find_sets(table(order, form), "annotator")
        assert (origin, num_alike) == ("found", len(rows))
        assert parts(order, choice) == sorted(
            sorted(rows[k : k + size - 1]) for k in range(0, len(rows), size - 1)
        )
        assert all(choice <= np.arange(len(rows)))  # named by their first rows


def test_without_ids_people_who_chose_the_same_are_as_many_choices():
    """Twelve people on one prompt: their best responses differ, and some are the same."""
    rows = list(best_of(4, num_people=12, num_prompts=1))
    pairs = table(rows).remove_columns("annotator")
    choice, origin, _ = find_sets(pairs)
    assert origin == "found"
    assert sorted(len(part) for part in parts(rows, choice)) == [3] * 12
    for part in parts(rows, choice):
        assert len({row[2] for row in part}) == 1
        assert len({row[3] for row in part}) == 3


def test_without_prompts_the_chosen_text_is_the_prompt_too():
    rows = [(a, "", f"{p} {c}", f"{p} {r}") for a, p, c, r in best_of(4)]
    pairs = table(rows).remove_columns("prompt")
    choice, origin, _ = find_sets(pairs, "annotator")
    assert origin == "found"
    assert [len(part) for part in parts(rows, choice)] == [3] * 12


@pytest.mark.parametrize("missing", [set(), {(1, 2)}, {(0, 1)}])
def test_all_pairs_of_a_ranking_are_its_stages(missing):
    """Plackett-Luce: the best of all, the best of the others, and so on; ties are no pairs."""
    rows = [
        ("p", "q", f"r{i}", f"r{j}")
        for i, j in itertools.combinations(range(4), 2)
        if (i, j) not in missing
    ]
    choice, origin, _ = find_sets(table(rows), "annotator")
    assert origin == "found"
    assert parts(rows, choice) == sorted(
        part for i in range(3) if (part := [row for row in rows if row[2] == f"r{i}"])
    )


def judged_one_by_one(num_people, num_prompts, pairs_each, num_responses=6, seed=0):
    """Random pairs of the responses to a prompt, each judged by itself."""
    rng = np.random.default_rng(seed)
    for g, k in itertools.product(range(num_people), range(num_prompts)):
        for _ in range(pairs_each):
            one, other = rng.permutation(num_responses)[:2]
            yield f"p{g}", f"q{k}", f"r{one}", f"r{other}"


@pytest.mark.parametrize("pairs_each", [2, 3, 8])
@pytest.mark.parametrize("annotator", ["annotator", None])
def test_pairs_that_were_judged_one_by_one_are_kept_apart(pairs_each, annotator):
    """Two pairs of a prompt with a response in common do look like one choice, now and then."""
    rows = list(judged_one_by_one(40, 5, pairs_each))
    choice, origin, num_alike = find_sets(table(rows), annotator)
    assert origin == "unclear"
    assert num_alike > 0
    assert choice.tolist() == list(range(len(rows)))


def test_a_few_rows_that_look_like_one_choice_leave_pairs_pairs():
    """A response that won twice, by chance, makes no other kind of data of two hundred pairs."""
    rows = [("p", f"q{k}", "a", "b") for k in range(200)] + [("p", "q0", "a", "c")]
    choice, origin, num_alike = find_sets(table(rows), "annotator")
    assert (origin, num_alike) == ("pairs", 2)
    assert choice.tolist() == list(range(201))


def test_plain_pairs_are_pairs_whoever_judges_them_again():
    rows = [(f"p{g}", f"q{k}", "a", "b") for g in range(5) for k in range(5)] * 2
    for annotator in ("annotator", None):
        choice, origin, num_alike = find_sets(table(rows), annotator)
        assert (origin, num_alike) == ("pairs", 0)
        assert len(set(choice)) == len(rows)


@pytest.mark.parametrize("column", ["outcome", "grade"])
def test_judgements_of_two_responses_are_never_put_together(column):
    rows = list(best_of(4))
    pairs = table(rows, **{column: ["win" if column == "outcome" else 1] * len(rows)})
    assert find_sets(pairs, "annotator")[1] == "pairs"


def test_a_pair_without_a_preference_or_one_that_is_missing_leaves_the_choices():
    rows = [("p", "q", "a", r) for r in "abc"] + list(best_of(4))[1:]
    choice, origin, _ = find_sets(table(rows), "annotator")
    assert origin == "found"
    assert choice[1] == choice[2]
    assert len(set(choice[3:])) == 12


@pytest.mark.parametrize("form", [str, messages, lambda text: {"a": [text, None], "b": None}])
def test_codes_are_equal_where_values_are(form):
    rng = np.random.default_rng(0)
    values = [form("x" * int(n)) for n in rng.integers(0, 5, 40)]
    values += [[], [{"role": "u", "content": None}]] * 2 if form is messages else []
    array = pa.array([*values, None, None])
    for column in (pa.chunked_array([array]), pa.chunked_array([array[:7], array[7:]])):
        code, texts = row_codes(column), list(map(json.dumps, column.to_pylist()))
        assert len(set(code.tolist())) == len(set(texts))
        assert len(set(zip(code.tolist(), texts, strict=True))) == len(set(texts))


def test_a_large_table_takes_seconds():
    rows = list(best_of(4, num_people=500, num_prompts=40))
    pairs = table(rows)
    started = time.monotonic()
    assert find_sets(pairs, "annotator")[1] == "found"
    assert time.monotonic() - started < 5  # 60,000 rows; 0.15 s on one core


# From a file


@pytest.fixture
def write(tmp_path):
    def write_rows(rows, **columns):
        records = [dict(zip(KEYS, row, strict=True)) for row in rows]
        for name, values in columns.items():
            for record, value in zip(records, values, strict=True):
                record[name] = value
        path = tmp_path / "d.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write_rows


def test_loading_finds_choices_says_so_and_lets_a_name_decide(write, caplog):
    rows = list(best_of(4))
    path = write(rows, turn=[k // 9 for k in range(len(rows))])
    data = load_preferences(path)
    assert data.choice_columns == ("choice_set",)
    assert data.pairs["choice_set"][:] == [str(3 * (k // 3)) for k in range(len(rows))]
    assert "36 rows are taken for 12 choices among 4 responses" in caplog.text
    apart = load_preferences(path, choice_set="none").pairs
    assert apart["choice_set"][:] == [str(k) for k in range(len(rows))]
    with pytest.raises(DataError, match="column 'set' is missing; it has annotator, prompt"):
        load_preferences(path, choice_set="set")
    with pytest.raises(DataError, match="column 'chosen' holds no ids of choice sets"):
        load_preferences(path, choice_set="chosen")
    message = r"row 3, column 'choice_set': expected sets that have one 'prompt', as in row 0, got"
    with pytest.raises(DataError, match=message):
        load_preferences(path, choice_set="turn")


def test_named_sets_ranks_and_their_faults(write):
    rows = [("p", "q", "a", r) for r in "bcd"] + [("p", "s", "a", r) for r in ("b", "", "d")]
    task, rank = ["x"] * 3 + [7] * 3, [2, 3, None, 2, 3, 4.0]
    data = load_preferences(write(rows, task=task, rank=rank), choice_set="task")
    assert data.choice_columns == ("choice_set", "rank")
    assert data.pairs["choice_set"][:] == ["x", "x", "x", "7", "7"]
    assert data.pairs["rank"][:] == [2, 3, None, 2, 3]  # closed up behind the empty response
    with pytest.raises(DataError, match=r"row 4, column 'task': expected an id of the choice set"):
        load_preferences(write(rows, task=[*task[:4], None, 7]), choice_set="task")
    with pytest.raises(DataError, match=r"row 1, column 'rank': expected a whole number from 2"):
        load_preferences(write(rows, choice_set=task, rank=[2, "third", 4, 2, 3, 4]))
    with pytest.raises(DataError, match=r"row 1, column 'rank': expected ranks 2, 3, .* got 4"):
        load_preferences(write(rows, choice_set=task, rank=[2, 4, None, 2, 3, 4]))
    with pytest.raises(DataError, match=r"row 0, column 'rank': expected ranks 2, .* got 3"):
        load_preferences(write(rows, choice_set=task, rank=[3, 3, None, 2, 3, 3]))
    load_preferences(write(rows, choice_set=task, rank=[2, "", None, 2, 2, 2]))
    with pytest.raises(DataError, match=r"expected sets of one row beside 'outcome'"):
        load_preferences(write(rows, choice_set=task, outcome=["win"] * 6))
    assert load_preferences(write(rows, rank=["high"] * 6)).choice_columns == ("choice_set",)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("outcome", "draw", "expected win, tie or loss; a column of another meaning needs"),
        ("grade", 0.5, "expected a whole number from -50 to 50, 0 for a tie"),
        ("grade", True, "expected a whole number from -50"),
        ("grade", 1_000, "expected a whole number from -50"),
    ],
)
def test_impossible_outcomes_and_grades_name_row_and_column(write, column, value, words):
    rows = [("p", f"q{k}", "a", "b") for k in range(3)]
    good = {"outcome": "tie", "grade": "-2"}[column]
    data = load_preferences(write(rows, **{column: [good] * 3}))
    assert data.choice_columns == (column,)
    assert data.pairs[column][:] == ["tie"] * 3 if column == "outcome" else [-2] * 3
    with pytest.raises(DataError, match=rf"d\.jsonl: row 1, column '{column}': {words}"):
        load_preferences(write(rows, **{column: [good, value, good]}))


def test_a_random_subset_holds_whole_choices(write):
    rows = list(best_of(4)) + list(best_of(3, num_people=2, seed=1))
    rows = [(a if k < 36 else f"other {a}", *rest) for k, (a, *rest) in enumerate(rows)]
    path = write(rows)
    sizes = load_preferences(path).pairs["choice_set"][:]
    subsets = [load_preferences(path, max_rows=20, seed=seed).pairs for seed in range(5)]
    for subset in subsets:
        names = subset["choice_set"][:]
        assert 17 <= len(names) <= 20
        assert all(names.count(name) == sizes.count(name) for name in names)
    assert len({tuple(subset["source_row"][:]) for subset in subsets}) > 1
