"""People who agreed with each other agree again: where tastes differ, and only there."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from mixdpo_pyro.inference import diagnose_choices, fit, read_choices
from mixdpo_pyro.inference.methods.log_joint import Maximum
from mixdpo_pyro.inference.robustness import shared_taste
from mixdpo_pyro.inference.robustness.differences import Differences
from mixdpo_pyro.inference.robustness.errors.pair_errors import (
    margin_scale,
    maximum_with_errors,
)
from mixdpo_pyro.inference.robustness.scale import anchor_strength
from mixdpo_pyro.inference.robustness.shared_taste import compare_agreement

PEOPLE, PAIRS, BLOCK = 60, 40, 5
PERSON = np.repeat(np.arange(PEOPLE), PAIRS)
PAIR = (PERSON // BLOCK) * PAIRS + np.tile(np.arange(PAIRS), PEOPLE)


def draw(seed, kind, error=0.0):
    """Blocks of five people who judge the same forty pairs."""
    rng = np.random.default_rng(seed)
    known, other = rng.normal(0, np.sqrt(2), (2, PAIR.max() + 1))
    strength, lapses = np.ones(PEOPLE), np.zeros(PEOPLE)
    sign = np.ones(PEOPLE)
    if kind == "taste":
        sign[rng.random(PEOPLE) < 0.4] = -1
    if kind == "strength":
        strength = rng.lognormal(-0.25, 0.7, PEOPLE)
    if kind == "care":
        lapses[rng.random(PEOPLE) < 0.2] = 0.6
    value = (known[PAIR] + sign[PERSON] * other[PAIR]) * strength[PERSON]
    value = np.where(rng.random(len(PAIR)) < lapses[PERSON], 0, value)
    margin = known + other + rng.normal(0, max(error, 1e-9), PAIR.max() + 1)
    is_first = rng.random(len(PAIR)) < expit(value)
    return read_choices(np.where(is_first, 1, -1) * margin[PAIR], PERSON, pair=PAIR)


def compare(choices, error=0.0):
    result = fit(choices, beta=anchor_strength(choices), num_samples=50, draw_strengths=False)
    return compare_agreement(*maximum_with_errors(result, error / margin_scale(choices)))


def test_tastes_show_without_attributes():
    found = compare(draw(0, "taste"))
    assert found.are_seen and found.z > 4 and found.gain > 10
    assert found.num_choices == len(PAIR)


@pytest.mark.untyped
@pytest.mark.parametrize("kind", ["alike", "strength", "care"])
@pytest.mark.parametrize("error", [0.0, 2.0])
def test_one_ordering_has_no_camps(kind, error):
    """In 120 such datasets z had mean 0.3, deviation 1.3 and maximum 3.7; once camps were seen."""
    found = compare(draw(1, kind, error), error)
    assert abs(found.z) < 5
    assert not found.are_seen


def test_too_few_common_pairs_say_nothing():
    choices = draw(0, "taste")
    assert (
        compare_agreement(read_choices(choices.margin, PERSON), Maximum(1.0, 0.1, 0.0, 0.0))
        is None
    )
    own = read_choices(choices.margin, PERSON, pair=np.arange(len(PERSON)))
    assert compare_agreement(own, Maximum(1.0, 0.1, 0.0, 0.0)) is None
    once = read_choices(choices.margin[:8], np.arange(8), pair=np.arange(8) // 2)
    assert compare_agreement(once, Maximum(1.0, 0.1, 0.0, 0.0)) is None


def test_two_people_on_a_pair_are_taken_together_once():
    person, pair = np.array([0, 1, 2, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    first, second = shared_taste._dyads(person, pair, np.random.default_rng(0))
    found = sorted((int(pair[a]), *sorted((a, b))) for a, b in zip(first, second, strict=True))
    # Rows 4 and 5 are one person's.
    assert found == [(0, 0, 1), (0, 0, 2), (0, 1, 2), (1, 3, 4), (1, 3, 5)]


def test_a_choice_is_predicted_by_others_on_the_pair_only_where_it_has_an_error():
    choices, best = draw(2, "alike"), Maximum(1.0, 0.5, 0.0, 0.0)
    rows = np.arange(len(PAIR))
    chosen, missing, alone = shared_taste._predictions(choices, best, rows)
    np.testing.assert_allclose(missing, alone, atol=1e-9)
    np.testing.assert_allclose(chosen + missing, 1)
    erring = read_choices(choices.margin, PERSON, pair=PAIR)
    object.__setattr__(erring, "margin_error", 2.0)
    chosen, _, alone = shared_taste._predictions(erring, best, rows)
    side = torch.from_numpy(np.sign(choices.margin))
    mean = np.bincount(PAIR, side)[PAIR] - side.numpy()  # of the other four
    agrees = side.numpy() * mean
    assert (chosen > 1 - alone)[agrees == 4].all()
    assert (chosen < 1 - alone)[agrees == -4].all()


@pytest.mark.untyped
def test_camps_are_not_called_strength():
    choices = draw(3, "taste")
    found = diagnose_choices(
        choices, families=("lognormal",), num_samples=200, num_permutations=99
    )
    assert found.verdict.value == "heterogeneous" and found.verdict.kind == "undetermined"
    assert "differ in taste" in found.verdict.reason
    (check,) = (c for c in found.checks if c.name == "care and taste")
    assert check.numbers["camps, p"] < 1e-4 and "so that tastes differ" in check.sentence


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("p_value", "words"),
    [(1e-5, "agree more than"), (1e-3, "may agree more than"), (0.5, "do not agree more than")],
)
def test_the_sentence_is_as_sure_as_the_test(p_value, words):
    camps = shared_taste.SharedTaste(p_value, 3.0, 21.5, 20_000)
    differences = Differences(None, None, 0, 0, shared_taste=camps)
    sentence = differences._sentence_of_camps()
    assert f"on other pairs {words} one ordering" in sentence
    assert ("so that tastes differ" in sentence) == (p_value < 2e-4)
    assert ("p < 0.0002 would say" in sentence) == (words[:3] == "may")
