from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from mixdpo_pyro.data.splitting import drop_held_out, prompt_groups, split_pairs
from mixdpo_pyro.errors import ConfigError, DataError


def dataset(rows, columns=("prompt", "chosen", "rejected", "annotator")):
    return Dataset.from_list([dict(zip(columns, row, strict=False)) for row in rows])


def rows_of(part):
    return {tuple(row.values()) for row in part}


def one_prompt_each(num_people, each):
    """Every pair has a prompt of its own."""
    return dataset(
        [(f"q{g}-{t}", "a", "b", f"person {g}") for g in range(num_people) for t in range(each)]
    )


def everybody_judges(num_prompts, people):
    both = ((k, g) for k in range(num_prompts) for g in range(people))
    return dataset([(f"q{k}", "a", "b", f"p{g}") for k, g in both])


@pytest.mark.parametrize("ids", [None, "annotator"])
@pytest.mark.parametrize("seed", range(5))
def test_a_prompt_is_on_one_side_whatever_its_answers_are(ids, seed):
    """The best of four, as three pairs that share prompt and chosen answer, judged twice."""
    rows = [
        (f"q{k}", f"best {k}", f"worse {k}-{j}", f"p{(k + g) % 7}")
        for k in range(40)
        for j in range(3)
        for g in range(2)
    ]
    train, test = split_pairs(dataset(rows), 0.25, seed, ids)
    assert not set(train["prompt"]) & set(test["prompt"])
    assert rows_of(train) | rows_of(test) == set(rows)
    assert len(test) == 60


def test_a_prompt_of_most_rows_is_not_held_out_beside_others():
    rows = [("large", f"a{k}", f"b{k}") for k in range(60)]
    rows += [(f"q{k}", "a", "b") for k in range(40)]
    sizes = [len(split_pairs(dataset(rows), 0.1, seed)[1]) for seed in range(30)]
    assert sizes.count(10) >= 25  # the large prompt is the first one of 41
    assert set(sizes) <= {10, 60}


def test_the_split_does_not_depend_on_the_order_of_the_rows():
    pairs = everybody_judges(30, 4)
    shuffled = pairs.select(np.random.default_rng(0).permutation(len(pairs)))
    assert rows_of(split_pairs(pairs, 0.3, 1)[1]) == rows_of(split_pairs(shuffled, 0.3, 1)[1])
    assert rows_of(split_pairs(pairs, 0.3, 1)[1]) != rows_of(split_pairs(pairs, 0.3, 2)[1])


@pytest.mark.parametrize(("each", "least"), [(40, 4), (10, 4), (6, 3), (2, 2)])
def test_annotators_keep_several_held_out_pairs(each, least):
    """A tenth of everybody's pairs would be one pair of most; all but the last have several."""
    pairs = one_prompt_each(100, each)
    _, test = split_pairs(pairs, 0.1, 0, "annotator")
    counts = sorted(Counter(test["annotator"]).values())
    assert len(test) == 10 * each
    assert all(count == least for count in counts[1:])
    assert each < 4 or all(count <= each // 2 for count in counts)


def test_more_choices_are_compared_within_annotators_than_at_random():
    pairs = one_prompt_each(100, 6)

    def compared(*arguments):
        counts = Counter(split_pairs(pairs, 0.1, 0, *arguments)[1]["annotator"]).values()
        return sum(n * (n - 1) // 2 for n in counts)

    assert compared("annotator") == 60  # 20 annotators with three pairs
    assert compared() < 40


def test_annotators_keep_their_share_where_that_is_more():
    _, test = split_pairs(one_prompt_each(20, 100), 0.3, 0, "annotator")
    assert set(Counter(test["annotator"]).values()) == {30}


def test_annotators_of_shared_prompts_keep_several_pairs():
    """Four people judge every prompt, in groups that change."""
    rng = np.random.default_rng(0)
    rows = [
        (f"q{k}", "a", "b", f"p{g}") for k in range(300) for g in rng.choice(30, 4, replace=False)
    ]
    train, test = split_pairs(dataset(rows), 0.1, 0, "annotator")
    counts = Counter(test["annotator"])
    assert not set(train["prompt"]) & set(test["prompt"])
    assert np.mean([counts[f"p{g}"] >= 2 for g in range(30)]) > 0.8


def test_whole_annotators_are_held_out_with_their_prompts():
    own = one_prompt_each(20, 10)
    train, test = split_pairs(own, 0.2, 0, "annotator", "annotator")
    assert set(Counter(test["annotator"]).values()) == {10}
    assert len(set(test["annotator"])) == 4
    assert len(train) == 160
    shared = dataset([(f"q{k % 30}", "a", "b", f"p{k // 10}") for k in range(60)])
    train, test = split_pairs(shared, 0.3, 0, "annotator", "annotator")
    assert not set(train["annotator"]) & set(test["annotator"])
    assert not set(train["prompt"]) & set(test["prompt"])
    assert len(test) == 20
    assert len(train) < 40


def test_two_annotators_are_held_out_at_least():
    """One says nothing about differences."""
    _, test = split_pairs(one_prompt_each(5, 20), 0.01, 0, "annotator", "annotator")
    assert len(set(test["annotator"])) == 2


def test_splits_that_leave_nothing_are_refused():
    with pytest.raises(DataError, match="Every prompt is held out with its annotators"):
        split_pairs(everybody_judges(4, 3), 0.3, 0, "annotator", "annotator")
    with pytest.raises(DataError, match="at least 2 different prompts to split, got 1"):
        split_pairs(everybody_judges(1, 3), 0.3)
    with pytest.raises(ConfigError, match="needs a column of annotator ids"):
        split_pairs(everybody_judges(4, 3), 0.3, split_by="annotator")
    with pytest.raises(ConfigError, match="Expected split_by 'prompt' or 'annotator', got 'row'"):
        split_pairs(everybody_judges(4, 3), 0.3, split_by="row")


def test_one_prompt_at_least_is_on_either_side():
    pairs = everybody_judges(3, 5)
    for fraction in (0.001, 0.999):
        train, test = split_pairs(pairs, fraction)
        assert len(set(train["prompt"])) >= 1 and len(set(test["prompt"])) >= 1


# Which rows share a prompt


def groups(rows, columns=("chosen", "rejected")):
    return prompt_groups(dataset(rows, columns)).tolist()


def partition(numbers):
    return {tuple(np.flatnonzero(np.array(numbers) == k).tolist()) for k in set(numbers)}


def test_implicit_prompts_are_shared_beginnings_and_shared_responses():
    """TRL's beginning ends inside "Because" for one pair; the chosen response is shared."""
    rows = [
        ("Why? Because.", "Why? No idea."),
        ("Why? Because.", "Why? Beware."),
        ("How? So.", "How? Never."),
        ("How? Thus.", "How? Yes."),
        ("Apart", "Else"),
        ("Other", "Thing"),
        ("Else", "Apart"),
    ]
    assert partition(groups(rows)) == {(0, 1), (2, 3), (4, 6), (5,)}


def test_conversations_share_their_first_messages():
    def talk(*texts):
        return [{"role": "user", "content": text} for text in texts]

    rows = [
        (talk("q", "a"), talk("q", "b")),
        (talk("q", "c"), talk("q", "d")),
        (talk("r", "a"), talk("r", "b")),
    ]
    assert partition(groups(rows)) == {(0, 1), (2,)}


def test_equal_answers_do_not_join_explicit_prompts_but_empty_ones():
    names = ("prompt", "chosen", "rejected")
    rows = [
        ("q", "yes", "no"),
        ("r", "yes", "no"),
        ("", "yes", "no"),
        ("", "no", "yes"),
        ("", "a", "b"),
    ]
    assert partition(groups(rows, names)) == {(0,), (1,), (2, 3), (4,)}


def test_answers_that_are_held_out_are_not_trained_on():
    """A split of the user's own may share prompts; the policy must not have seen the answers."""
    train = dataset([("q", "a", "b"), ("q", "c", "a"), ("q", "d", "e"), ("r", "a", "b")])
    test = dataset([("q", "a", "f")])
    assert rows_of(drop_held_out(train, test)) == {("q", "d", "e"), ("r", "a", "b")}


def best_of_four(num_people, each, ids=None):
    """Choices of people, a prompt each, as three pairs."""
    rows = [
        (f"q{g}-{t}", f"best {g}-{t}", f"worse {g}-{t}-{j}", f"person {g}", f"{g}-{t}")
        for g in range(num_people)
        for t in range(each)
        for j in range(3)
    ]
    return dataset(rows, ("prompt", "chosen", "rejected", "annotator", "choice_set"))


@pytest.mark.parametrize("split_by", ["prompt", "annotator"])
@pytest.mark.parametrize("columns", [[], ["prompt"]])
def test_choice_sets_are_on_one_side(split_by, columns):
    pairs = best_of_four(12, 5).remove_columns(columns)
    for seed in range(3):
        train, test = split_pairs(pairs, 0.2, seed, "annotator", split_by)
        assert not set(train["choice_set"]) & set(test["choice_set"])
        assert {*Counter(train["choice_set"]).values(), *Counter(test["choice_set"]).values()} == {
            3
        }


def test_several_choices_of_an_annotator_are_held_out_whatever_their_rows_are():
    """Four choices of each, not four rows, which are a choice and a third."""
    pairs = best_of_four(30, 20)
    held_out = split_pairs(pairs, 0.1, 0, "annotator")[1]
    choices = Counter(name.split("-")[0] for name in set(held_out["choice_set"]))
    assert set(choices.values()) == {4}
    assert len(held_out) == pytest.approx(0.1 * len(pairs), abs=12)


def test_a_choice_is_dropped_whole_where_one_of_its_responses_is_held_out():
    train = best_of_four(3, 2)
    test = dataset([("q1-0", "worse 1-0-2", "other")])
    kept = drop_held_out(train, test)
    assert set(train["choice_set"]) - set(kept["choice_set"]) == {"1-0"}
    assert len(kept) == 15
