import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from mixdpo_pyro.cli.arguments import CommandParser
from mixdpo_pyro.diagnosis.config import PowerConfig
from mixdpo_pyro.inference.diagnosis import diagnose_choices
from mixdpo_pyro.inference.verdict import Verdict
from mixdpo_pyro.reporting.recommendation import Design, advise, recommend

PANELS = Design(choices=4_000, annotators=50, has_panels=True)
NO_IDS = Design(choices=4_000)
SHARED = Design(choices=4_000, annotators=50, has_panels=True, has_shared_pairs=True)


def verdict(value, kind=None):
    return Verdict(value, (0.2, 0.8), 4.0, 0.02, "", kind)


@pytest.mark.parametrize(
    ("value", "kind", "design", "lead", "names"),
    [
        ("heterogeneous", "strength", PANELS, "Use MixDPO with annotator ids", "annotator_column"),
        ("heterogeneous", "strength", NO_IDS, "Collect annotator ids", "before you use MixDPO"),
        ("heterogeneous", "taste", PANELS, "Do not train one policy", "mixdpo rivals"),
        ("heterogeneous", "care", PANELS, "Do not learn strengths", "p_careless"),
        ("heterogeneous", "undetermined", PANELS, "Do not train with", "judge the same pairs"),
        ("heterogeneous", "undetermined", SHARED, "Do not train with", "--attribute"),
        ("heterogeneous", None, PANELS, "Do not train with", "not known in what"),
        ("homogeneous", None, PANELS, "Use plain DPO: one strength", "neither MixDPO nor"),
        ("inconclusive", None, NO_IDS, "Use plain DPO for now, and collect annotator ids", "same"),
        ("inconclusive", None, PANELS, "Use plain DPO for now", "several people on the same"),
        ("inconclusive", None, SHARED, "Use plain DPO for now", "mixdpo power"),
        ("inconclusive", None, Design(9, margins_predict=False), "Get margins", "predict"),
        ("inconclusive", None, Design(9, looks_cut=True), "Name the column", "--choice_set"),
    ],
)
def test_every_verdict_has_one_sentence_that_says_what_to_do(value, kind, design, lead, names):
    sentence = recommend(verdict(value, kind), design)
    assert sentence.startswith(lead) and names in sentence
    assert ". " not in sentence


def test_shared_pairs_are_not_asked_for_where_there_are_some():
    for value, kind in (("heterogeneous", "undetermined"), ("inconclusive", None)):
        assert "the same pairs" not in recommend(verdict(value, kind), SHARED)


def test_power_is_asked_for_twice_the_choices_at_the_middle_of_the_interval():
    words = recommend(verdict("inconclusive"), PANELS).split("mixdpo power ")[1].split()
    (config,) = CommandParser("power", "", [PowerConfig]).read(words)
    assert (config.pairs, config.annotators, config.sd, config.cv) == (8_000, 50, 2.0, 0.5)


def test_gain_is_that_of_leaving_out_over_the_number_of_choices():
    rng = np.random.default_rng(3)
    person, x = np.repeat(np.arange(30), 20), rng.normal(0, 3, 600)
    strength = rng.lognormal(-0.3, 0.8, 30)[person]
    margin = np.where(rng.random(600) < expit(strength * x), x, -x)
    found = diagnose_choices(margin, annotator=person, num_samples=200, families=("lognormal",))
    advice = advise(found)
    gain = found.differences["lognormal"].elpd / 600
    error = found.differences["lognormal"].se / 600
    assert gain > 0
    assert advice.nats == (
        f"{gain:+.4f} nats (standard error {error:.4f}): what was chosen is "
        f"{100 * (math.exp(gain) - 1):.1f}% likelier"
    )
    assert advice.accuracy.startswith("no change")
    assert advice.lines[0] == f"what to do: {advice.recommendation}"
    unmeasured = advise(replace(found, checks=[]))
    assert unmeasured.nats == "not measured"


def test_margins_that_say_nothing_are_to_be_replaced_and_accuracy_of_grades_is_not_measured():
    rng = np.random.default_rng(5)
    grade = rng.choice([-2, -1, 0, 1, 2], 300)
    person = np.repeat(np.arange(30), 10)
    found = diagnose_choices(
        rng.normal(0, 1, 300), annotator=person, outcome=grade, pair=np.arange(300) % 10,
        num_samples=100, families=("lognormal",), thorough=False,
    )  # fmt: skip
    advice = advise(found)
    assert advice.recommendation.startswith("Get margins that predict the choices first")
    assert advice.accuracy == "not measured"
