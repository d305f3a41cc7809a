"""What a run learns from its pairs about what was done."""

import json
from collections import Counter
from pathlib import Path

import pytest
from scenarios import TRAINING_MARKS

from mixdpo_pyro.data.loading import load_preferences
from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.workflows.choices import asked_sets, name_choice_columns, with_same_sets
from mixdpo_pyro.workflows.run_config import plan_from_values
from mixdpo_pyro.workflows.run_data import load_run_pairs

pytestmark = TRAINING_MARKS

NAMES = ("choice_set_column", "rank_column", "outcome_column", "grade_column")


def best_of_three(num_people=6, each=4, **columns):
    """Choices among three responses, as two pairs each."""
    tasks = ("boil an egg", "fix a tap", "write a letter", "plan a trip")
    return [
        {
            "prompt": f"How should I {tasks[t]}?",
            "chosen": f" Take your time, {t + g}.",
            "rejected": f" Do not, {word} {t + g}.",
            "annotator": f"p{g}",
            **{name: values[k] for name, values in columns.items()},
        }
        for g in range(num_people)
        for t in range(each)
        for k, word in enumerate(("ever", "now"))
    ]


@pytest.fixture
def named(values):
    """The columns that a run names to its trainer, for rows and keys."""

    def name(rows, **changes):
        Path(values["dataset_name"]).write_text("".join(json.dumps(r) + "\n" for r in rows))
        training = plan_from_values({**values, **changes}).training
        data = load_preferences(values["dataset_name"], choice_set=asked_sets(training))
        name_choice_columns(training, data)
        return tuple(getattr(training, each) for each in NAMES), data, training

    return name


def test_what_the_pairs_hold_is_named_to_the_trainer(named):
    sets = best_of_three()
    assert named(sets)[0] == ("choice_set", None, None, None)
    assert named(sets, choice_set_column="none")[0] == (None,) * 4
    rows = [{**row, "task": k // 2} for k, row in enumerate(best_of_three(rank=[2, 3]))]
    assert named(rows, choice_set_column="task")[0] == ("choice_set", "rank", None, None)
    pairs = best_of_three()[::2]
    assert named(pairs)[0] == (None,) * 4
    outcomes = [{**row, "outcome": "tie" if k else "win"} for k, row in enumerate(pairs)]
    assert named(outcomes)[0] == (None, None, "outcome", None)
    both = [{**row, "grade": k % 3} for k, row in enumerate(outcomes)]
    assert named(both)[0] == (None, None, None, "grade")
    assert named(both, outcome_column="outcome")[0] == (None, None, "outcome", None)
    judged = [{**row, "verdict": "win"} for row in sets]
    assert named(judged, outcome_column="verdict")[0] == (None, None, "verdict", None)


def test_a_loss_of_pairs_is_refused_where_choices_are_among_several(named):
    options = {"family": "fixed", "baseline": "robust", "flip_probability": 0.1}
    with pytest.raises(ConfigError, match="baseline: not 'robust' with choice_set_column"):
        named(best_of_three(), **options)
    assert named(best_of_three(), choice_set_column="none", **options)[0] == (None,) * 4


def test_held_out_pairs_without_sets_get_one_each(named):
    _, _, training = named(best_of_three())
    _, test, _ = named(best_of_three()[::2])
    assert with_same_sets(training, test).pairs["choice_set"] == [str(k) for k in range(24)]


def test_a_run_splits_and_names_the_choices_it_found(values, caplog):
    rows = best_of_three()
    Path(values["dataset_name"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = plan_from_values({**values, "max_pairs": 41})
    parts = load_run_pairs(plan.run, plan.training)
    assert "48 rows are taken for 24 choices among 3 responses" in caplog.text
    assert plan.training.choice_set_column == "choice_set"
    names = [part["choice_set"][:] for part in (parts.train, parts.test)]
    assert len(names[0]) + len(names[1]) == 40
    assert not set(names[0]) & set(names[1])
    for sets in names:
        assert set(Counter(sets).values()) == {2}
