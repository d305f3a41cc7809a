"""Predictive checks of ties, grades and choice sets, against posteriors known to be right.

A posterior whose draws are all the truth, without annotators' strengths, is the distribution that
the worlds are drawn from: predictive p-values are then uniform.
"""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.diagnosis.check_statistics import SPREAD
from mixdpo_pyro.diagnosis.config import CheckConfig
from mixdpo_pyro.diagnosis.outcome_checks import SPREAD_OF_TIES
from mixdpo_pyro.diagnosis.predictive_checks import check_predictions
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference import Design, Posterior, read_choices, simulate
from mixdpo_pyro.inference.outcomes import Outcomes
from mixdpo_pyro.models.observation import Lapse, Ranking, RaoKupper

PARAMETERS = {"ties": {"threshold": 0.7}, "grades:5": {"cut_points": [0.7, 2.1]},
              "best-of:4": {}, "ranking:3": {}}  # fmt: skip
KINDS = list(PARAMETERS)
NAMES = {"ties": "rao-kupper", "grades:5": "grades", "best-of:4": "sets", "ranking:3": "sets"}


def table_of(kind, annotators=40, each=15, cv=0.5, seed=0):
    design = Design(annotators, each, spread=2.0, beta=1.0, kind=kind)
    found = simulate(1.0, cv, "lognormal", design, np.random.default_rng((21, seed)))
    table = pd.DataFrame({"margin": found.margin, "annotator": found.annotator, **found.done})
    if kind == "ties":
        table["outcome"] = table["outcome"].map({-1: "loss", 0: "tie", 1: "win"})
    return table.rename(columns={"outcome": "grade"} if kind.startswith("grades") else {})


def truth(kind, cv=0.5, parameters=None):
    """The distribution that worlds are drawn from, as a posterior without uncertainty."""
    size = 60
    known = PARAMETERS[kind] if parameters is None else parameters
    return Posterior(
        mean=np.full(size, 1.0), cv=np.full(size, cv), family="lognormal", observation=NAMES[kind],
        parameters={k: np.repeat(np.array(v)[None], size, 0) for k, v in known.items()},
    )  # fmt: skip


def check(tmp_path, table, posterior, **options):
    table.to_parquet(tmp_path / "m.parquet")
    posterior.save(tmp_path / "posterior.nc")
    config = CheckConfig(num_replications=100, **options)
    return check_predictions(tmp_path / "m.parquet", tmp_path / "posterior.nc", config)


def p_values(found):
    return {s.name: s.p_value for s in found.statistics}


@pytest.mark.parametrize("kind", KINDS)
def test_choices_of_the_distribution_pass(kind, tmp_path):
    table = table_of(kind)
    table["topic"] = table["annotator"] % 3
    found = check(tmp_path, table, truth(kind), group=["topic"])
    assert min(p_values(found).values()) > 0.05 / len(found.statistics)
    assert found.num_choices == len(found.probability) == 600  # choices, not rows
    assert len(found.groups) == 3 + 40 and found.groups["choices"].sum() == 2 * 600
    shares = found.shares.groupby("margin")[["observed"]].sum()
    assert shares.to_numpy() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["ties", "best-of:4"])
def test_predictive_p_values_are_uniform(kind, tmp_path, failure_rate=2e-5):
    """P-values of 12 worlds below 0.2 are binomial."""
    small = [
        p_values(check(tmp_path, table_of(kind, 20, 5, seed=seed), truth(kind), seed=seed))
        for seed in range(12)
    ]
    for name in ("mean log-probability", SPREAD):
        count = sum(each[name] < 0.2 for each in small)
        assert count <= stats.binom.isf(failure_rate / 2, 12, 0.2)


@pytest.mark.parametrize(
    ("kind", "wrong", "failing"),
    [
        ("ties", {"parameters": {"threshold": 1.4}}, "share, tie"),
        ("grades:5", {"parameters": {"cut_points": [0.7, 1.2]}}, "share, grade +2"),
        ("best-of:4", {"cv": 3.0}, "share, best response chosen"),
        ("best-of:4", {"cv": 0.0}, SPREAD),
        ("grades:5", {"cv": 0.0}, SPREAD),
    ],
)
def test_choices_of_another_distribution_fail(kind, wrong, failing, tmp_path):
    found = check(tmp_path, table_of(kind, cv=0.8 if wrong.get("cv") == 0 else 0.5),
                  truth(kind, **wrong))  # fmt: skip
    assert p_values(found)[failing] <= 0.02


def test_annotators_with_thresholds_of_their_own_spread_in_their_ties(tmp_path):
    rng = np.random.default_rng(4)
    person, margin = np.repeat(np.arange(40), 15), rng.normal(0, 2, 600)
    threshold = torch.from_numpy(rng.lognormal(np.log(0.7), 0.7, 40)[person])
    utility = torch.from_numpy(margin)
    win, loss = (torch.sigmoid(s * utility - threshold).numpy() for s in (1, -1))
    uniform = rng.random(600)
    outcome = np.select([uniform < win, uniform > 1 - loss], ["win", "loss"], "tie")
    table = pd.DataFrame({"margin": margin, "annotator": person, "outcome": outcome})
    found = check(tmp_path, table, truth("ties", cv=0.0))
    assert p_values(found)[SPREAD_OF_TIES] <= 0.02


def test_it_does_not_matter_which_response_the_file_names_first(tmp_path):
    table = table_of("ties")
    turned = table.copy()
    rows = np.arange(len(table)) % 2 == 0
    turned.loc[rows, "margin"] *= -1
    turned.loc[rows, "outcome"] = turned["outcome"].map(
        {"win": "loss", "tie": "tie", "loss": "win"}
    )[rows]
    first, second = (check(tmp_path, t, truth("ties")) for t in (table, turned))
    assert first.statistics == second.statistics


def test_sets_need_not_be_sorted_and_may_differ_in_size(tmp_path):
    table = table_of("best-of:4")
    shorter = table[~((table["choice_set"] % 2 == 0) & (table.index % 3 == 0))]
    found = check(tmp_path, shorter.sample(frac=1, random_state=0), truth("best-of:4"))
    assert found.num_choices == 600 and found.description.endswith("among 3 to 4 responses")
    assert min(p_values(found).values()) > 0.05 / len(found.statistics)


def test_outcomes_of_a_file_of_wins_and_losses_turn_its_margins(tmp_path):
    """Half of the pairs, the chosen response second: a check that ignores it fails."""
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 600)
    wins = rng.random(600) < 1 / (1 + np.exp(-margin))
    table = pd.DataFrame({"margin": margin, "outcome": np.where(wins, "win", "loss")})
    pairs = Posterior(mean=np.ones(60), cv=np.full(60, 0.01), family="lognormal")
    found = check(tmp_path, table, pairs)
    assert found.kind == "pairs" and min(p_values(found).values()) > 0.01


def test_posteriors_of_other_observations_are_named(tmp_path):
    ties, grades = table_of("ties"), table_of("grades:5")
    davidson = Posterior(
        mean=np.ones(9), cv=np.ones(9), family="gamma", observation="davidson",
        parameters={"nu": np.ones(9)},
    )  # fmt: skip
    assert check(tmp_path, ties, davidson).kind == "davidson"
    with pytest.raises(
        DataError, match=r"holds pairs with ties .*, but the posterior is one of ch"
    ):
        check(tmp_path, ties, truth("best-of:4"))
    with pytest.raises(DataError, match="holds choice sets, but the posterior is one of grades"):
        check(tmp_path, table_of("best-of:4"), truth("grades:5"))
    with pytest.raises(DataError, match="2 cut points from the middle, but the posterior has 3"):
        check(tmp_path, grades, truth("grades:5", parameters={"cut_points": [0.5, 1.0, 2.0]}))


def test_the_command_shows_and_writes_what_was_checked(tmp_path, capsys):
    table_of("ties").to_csv(tmp_path / "m.csv", index=False)
    truth("ties").save(tmp_path / "posterior.nc")
    out = tmp_path / "out"
    words = ["check", tmp_path / "m.csv", tmp_path / "posterior.nc", "--max_choices", "300",
             "--num_replications", "50", "-o", out]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    text = capsys.readouterr().out
    assert "300 pairs judged with ties of 600 in the file, seen from the response" in text
    assert SPREAD_OF_TIES in text
    facts = json.loads((out / "check.json").read_text())
    assert facts["kind"] == "rao-kupper" and facts["choices_looked_at"] == 300
    assert (out / "figures" / "shares.png").is_file()
    assert set(pd.read_csv(out / "shares.csv")["outcome"]) == {
        "tie", "better response preferred", "worse response preferred"
    }  # fmt: skip


def test_probabilities_of_sets_are_those_of_the_observation_model():
    """Careless or not, places in the order of utility."""
    margin = np.array([1.0, -0.5, 2.0, 0.3])
    choices = read_choices(margin, choice_set=[0, 0, 0, 1])
    for model in (Ranking(1), Lapse(Ranking(1), 0.3)):
        outcomes = Outcomes(model, np.zeros(0), choices.outcomes.choice, choices.outcomes.code)
        found = outcomes.probabilities(margin, np.array([0.8, -1.5]))
        four = model.probabilities(torch.tensor([0.5, 0.0, -1.0, -2.0], dtype=torch.float64), 0.8)
        two = model.probabilities(torch.tensor([0.0, 0.3], dtype=torch.float64), 1.5)
        assert found[0] == pytest.approx(four.numpy(), abs=1e-12)
        assert found[1] == pytest.approx([*two.numpy(), 0.0, 0.0], abs=1e-12)


def test_probabilities_of_ties_take_a_strength_per_draw():
    choices = read_choices([1.0, -1.0, 0.5], outcome=["win", "tie", "loss"])
    outcomes = choices.outcomes
    strength = np.array([[0.5, 1.0, 2.0], [1.0, 1.0, 1.0]])
    found = outcomes.probabilities(choices.margin, strength)
    for draw, betas in enumerate(strength):
        each = RaoKupper(1.0).probabilities(torch.from_numpy(choices.margin * betas))
        assert found[draw] == pytest.approx(each.numpy(), abs=1e-12)
