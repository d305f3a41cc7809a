import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from mixdpo_pyro.data.loading import load_preferences
from mixdpo_pyro.data.simulation import response_reward, simulate_preferences
from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.inference import fit, read_choices
from mixdpo_pyro.margins.table import read_margins


def test_reward_of_the_text_is_the_reward_that_choices_were_drawn_from():
    world = simulate_preferences(5, 10)
    for pair in world.dataset:
        margin = response_reward(pair["chosen"]) - response_reward(pair["rejected"])
        assert margin == pair["reward_margin"]


def test_reward_of_foreign_text_raises():
    with pytest.raises(ValueError, match="simulated grammar, got 'Hello"):
        response_reward("Hello there.")


def test_equal_seeds_give_equal_worlds_and_other_seeds_do_not():
    first, again, other = (simulate_preferences(5, 10, seed=s) for s in (3, 3, 4))
    assert first.dataset.to_dict() == again.dataset.to_dict()
    assert first.truth == again.truth
    assert first.dataset.to_dict() != other.dataset.to_dict()


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_strengths_have_the_mean_and_cv_that_were_asked_for(family):
    """Kolmogorov-Smirnov against the distribution; fails for one seed in 50,000."""
    mean, cv = 0.7, 0.6
    truth = simulate_preferences(20_000, 1, family=family, mean=mean, cv=cv).truth
    distribution = (
        stats.gamma(cv**-2, scale=mean * cv**2)
        if family == "gamma"
        else stats.lognorm(np.sqrt(np.log1p(cv**2)), scale=mean / np.sqrt(1 + cv**2))
    )
    assert distribution.mean() == pytest.approx(mean)
    assert distribution.std() == pytest.approx(mean * cv)
    assert stats.kstest(list(truth.strengths.values()), distribution.cdf).pvalue > 2e-5


def test_choices_follow_the_logit_of_strength_times_reward():
    """Mean agreement in bins of the probability, cv = 0; binomial, fails once in 50,000."""
    world = simulate_preferences(1, 20_000, mean=0.5, cv=0.0)
    margin = np.array(world.dataset["reward_margin"])
    for size in np.unique(np.abs(margin)):
        agrees = margin[np.abs(margin) == size] > 0
        if size > 0 and len(agrees) > 50:
            expected = 1 / (1 + np.exp(-0.5 * size))
            assert stats.binomtest(int(agrees.sum()), len(agrees), expected).pvalue > 2e-6


def test_no_pair_has_identical_responses():
    world = simulate_preferences(50, 100)
    assert all(p["chosen"] != p["rejected"] for p in world.dataset)


def test_as_many_different_annotators_judge_every_pair_as_asked():
    world = simulate_preferences(12, 10, judges_per_pair=4, seed=1).dataset
    judges = {}
    for row in world:
        pair = (row["prompt"], *sorted([row["chosen"], row["rejected"]]))
        judges.setdefault(pair, []).append(row["annotator"])
    assert len(judges) == 30
    assert all(len(set(who)) == len(who) == 4 for who in judges.values())
    assert set(Counter(world["annotator"]).values()) == {10}
    partners = {frozenset(who) for who in judges.values()}
    assert len(partners) > 20  # who judges what is random


def test_saved_world_loads_as_tables_with_their_truth(tmp_path):
    world = simulate_preferences(3, 4, cv=0.0)
    world.save(tmp_path)
    pairs = load_preferences(str(tmp_path / "pairs.parquet")).pairs
    assert pairs.remove_columns("source_row").to_dict() == world.dataset.to_dict()
    data = read_margins(str(tmp_path / "margins.parquet"))
    assert data.margin.tolist() == world.dataset["reward_margin"][:]
    assert data.annotator.tolist() == world.dataset["annotator"][:]
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert truth == asdict(world.truth)
    assert set(truth["strengths"].values()) == {1.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_annotators": 0}, "num_annotators: expected at least 1, got 0"),
        ({"pairs_per_annotator": 0}, "pairs_per_annotator: expected at least 1, got 0"),
        ({"judges_per_pair": 0}, "judges_per_pair: expected at least 1, got 0"),
        ({"judges_per_pair": 3}, r"judges_per_pair: expected a divisor of num_annotators \(200\)"),
        ({"family": "normal"}, "family: expected lognormal or gamma, got 'normal'"),
        ({"mean": 0.0}, "mean: expected a finite value > 0, got 0.0"),
        ({"mean": float("nan")}, "mean: expected a finite value > 0, got nan"),
        ({"mean": 1e300}, "mean: expected 1e-100 to 1e.100 .*, got 1e.300"),
        ({"cv": -0.1}, "cv: expected 0 to 1000 .*, got -0.1"),
        ({"cv": 1e300}, "cv: expected 0 to 1000 .*, got 1e.300"),
        ({"cv": float("nan")}, "cv: expected 0 to 1000 .*, got nan"),
        ({"kind": "grades:2"}, "kind: expected pairs, ties, grades:G .* got 'grades:2'"),
    ],
)
def test_values_outside_their_domain_raise(values, message):
    with pytest.raises(ConfigError, match=message):
        simulate_preferences(**values)


KINDS = ["ties", "grades:5", "grades:4", "best-of:4", "ranking:3"]


@pytest.fixture(scope="module")
def worlds():
    return {kind: simulate_preferences(30, 20, cv=0.0, kind=kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_worlds_of_every_kind_are_read_as_what_was_done(kind, worlds):
    """Columns of the dataset, given to a fit as margins, are so many choices of that kind."""
    world = worlds[kind]
    table = world.dataset.to_pandas()
    done = {"outcome": table.get("outcome", table.get("grade")), "rank": table.get("rank"),
            "choice_set": table.get("choice_set")}  # fmt: skip
    choices = read_choices(table["reward_margin"].to_numpy(copy=True), table["annotator"], **done)
    assert choices.num_choices == 600
    words = {"ties": "with ties", "grades:5": "in 5 grades", "grades:4": "in 4 grades",
             "best-of:4": "choices among 4", "ranking:3": "rankings among 3"}  # fmt: skip
    assert words[kind] in choices.describe()
    result = fit(choices, family="fixed", beta=1.0)
    low, high = np.quantile(result.posterior.mean, [1e-3, 1 - 1e-3])
    assert low < 1.0 < high
    for k, value in enumerate(world.truth.thresholds):
        name = "threshold" if kind == "ties" else f"cut_points[{k + 1}]"
        low, high = np.quantile(result.posterior.scalars[name], [1e-3, 1 - 1e-3])
        assert low < value < high


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_every_kind_have_the_rewards_that_choices_were_drawn_from(kind, worlds):
    for row in worlds[kind].dataset.select(range(60)):
        margin = response_reward(row["chosen"]) - response_reward(row["rejected"])
        assert margin == pytest.approx(row["reward_margin"], abs=1e-12)
        assert row["chosen"] != row["rejected"]


def test_sets_have_one_annotator_one_prompt_and_one_chosen_response(worlds):
    table = worlds["best-of:4"].dataset.to_pandas()
    same = table.groupby("choice_set")[["annotator", "prompt", "chosen"]].nunique()
    assert (same == 1).all(axis=None)
    responses = table.groupby("choice_set")["rejected"]
    assert (responses.nunique() == 3).all() and (responses.size() == 3).all()
    ranks = worlds["ranking:3"].dataset.to_pandas().groupby("choice_set")["rank"]
    assert (ranks.agg(sorted).map(list).map(lambda r: r == [2, 3])).all()


def test_the_response_in_chosen_is_the_better_one_or_one_of_a_tie(worlds):
    assert set(worlds["ties"].dataset["outcome"]) == {"win", "tie"}
    assert set(worlds["grades:5"].dataset["grade"]) == {0, 1, 2}
    assert set(worlds["grades:4"].dataset["grade"]) == {1, 2}


def test_a_tiny_cv_of_gamma_strengths_makes_annotators_alike():
    world = simulate_preferences(5, 1, family="gamma", cv=1e-200, kind="ties")
    assert set(world.truth.strengths.values()) == {1.0}


def test_pairs_are_drawn_as_before_there_were_other_kinds():
    """The stream of random numbers is part of what a seed means."""
    row = simulate_preferences(2, 2, seed=5).dataset[0]
    assert (row["annotator"], row["reward_margin"]) == ("annotator-0000", 6.0)
    assert row["chosen"].startswith(" People ask this a lot. Keep it simple.")
