import numpy as np
import pytest
from scipy.special import expit

from mixdpo_pyro.inference import assess_heterogeneity, fit
from mixdpo_pyro.inference.diagnosis import diagnose_choices

QUICK = {"families": ("lognormal",), "num_samples": 300, "num_permutations": 99, "thorough": False}


def checks(diagnosis):
    return {check.name: check for check in diagnosis.checks}


def test_different_people_are_heterogeneous_and_nothing_explains_it_away(simulate):
    margin, annotator, _ = simulate(80, 25, 0.7)
    diagnosis = diagnose_choices(margin, annotator=annotator, num_samples=300, num_permutations=99)
    assert diagnosis.verdict.value == "heterogeneous"
    assert diagnosis.verdict.cv_interval[0] < 0.7 < diagnosis.verdict.cv_interval[1]
    assert diagnosis.largest_p_value == 0.01  # the least that 99 permutations can give
    assert set(diagnosis.fits) == {"lognormal", "gamma", "normal", "fixed"}
    assert all(c.status in ("stands", "not checked", "information") for c in diagnosis.checks)
    assert diagnosis.verdict.kind == "strength"
    assert "at most 5 times in 100" in diagnosis.error_rate
    assert diagnosis.contraction["cv"] > 0.9
    assert diagnosis.result.posterior.strength.shape == (300, 80)


def test_equal_people_are_homogeneous(simulate):
    margin, annotator, _ = simulate(200, 30, 0.0)
    diagnosis = diagnose_choices(margin, annotator=annotator, **QUICK)
    assert diagnosis.verdict.value == "homogeneous"
    assert diagnosis.probability_not_small < 0.05


def test_few_choices_are_inconclusive(simulate):
    margin, annotator, _ = simulate(10, 3, 0.3)
    diagnosis = diagnose_choices(margin, annotator=annotator, **QUICK)
    assert diagnosis.verdict.value == "inconclusive"
    assert "Neither answer reaches its bound" in diagnosis.error_rate


@pytest.mark.untyped
def test_choices_without_ids_are_never_heterogeneous(simulate):
    margin = simulate(10_000, 1, 1.0)[0]
    diagnosis = diagnose_choices(margin, **QUICK)
    assert diagnosis.verdict.value == "inconclusive"
    assert "If the margins were exact" in diagnosis.verdict.reason


def test_label_noise_of_equal_people_is_not_called_heterogeneous():
    """The likelihood ratio alone calls it so; the checks know better, and say why."""
    rng = np.random.default_rng(0)
    person, x = np.repeat(np.arange(150), 40), rng.normal(0, 4, 6_000)
    margin = np.where(rng.random(6_000) < 0.1 + 0.8 * expit(x), x, -x)
    alone = assess_heterogeneity(fit(margin, annotator=person, family="lognormal", beta=1.0))
    diagnosis = diagnose_choices(margin, annotator=person, **QUICK)
    assert alone.value == "heterogeneous"
    assert diagnosis.verdict.value == "inconclusive"
    assert diagnosis.verdict.reason.startswith("Strengths would differ")
    assert ", but " in diagnosis.verdict.reason


@pytest.mark.untyped
def test_a_length_effect_is_measured_and_taken_into_the_margins():
    rng = np.random.default_rng(0)
    person, x = np.repeat(np.arange(60), 30), rng.normal(0, 2, 1_800)
    length = rng.normal(0, 100, 1_800)
    first = rng.random(1_800) < expit(x + 0.01 * length)
    margin, length = np.where(first, x, -x), np.where(first, length, -length)
    diagnosis = diagnose_choices(
        margin, annotator=person, families=("lognormal",), length=length, num_samples=300,
        num_permutations=99,
    )  # fmt: skip
    found = checks(diagnosis)["length"]
    assert found.numbers["coefficient"] == pytest.approx(0.01, abs=4 * 0.01 / found.numbers["z"])
    assert found.numbers["z"] > 5
    assert found.cv_interval[1] < 1


def test_a_second_policy_tells_how_large_the_errors_are():
    rng = np.random.default_rng(0)
    person, x = np.repeat(np.arange(60), 30), rng.normal(0, 2, 1_800)
    first = rng.random(1_800) < expit(x)
    margins = [np.where(first, x + e, -x - e) for e in rng.normal(0, 1, (2, 1_800))]
    diagnosis = diagnose_choices(
        margins[0], annotator=person, families=("lognormal",), second=margins[1], num_samples=300,
        num_permutations=99,
    )  # fmt: skip
    assert checks(diagnosis)["errors in the margins"].numbers["reliability"] == pytest.approx(
        4 / 5, abs=0.03
    )
    unrelated = diagnose_choices(
        margins[0], annotator=person, families=("lognormal",), second=rng.permutation(-margins[1]),
        num_samples=300, num_permutations=99,
    )  # fmt: skip
    assert "do not agree" in checks(unrelated)["errors in the margins"].sentence


def test_margins_that_say_nothing_are_inconclusive():
    rng = np.random.default_rng(1)
    x = rng.normal(0, 2, 1_000)
    margin = np.where(rng.random(1_000) < 0.5, x, -x)
    diagnosis = diagnose_choices(margin, annotator=np.repeat(np.arange(50), 20), **QUICK)
    assert diagnosis.verdict.value == "inconclusive"
    assert diagnosis.verdict.reason.startswith("The margins do not predict the choices")


@pytest.mark.untyped
def test_choices_that_all_agree_are_inconclusive():
    margin = np.abs(np.random.default_rng(0).normal(0, 2, 300)) + 0.1
    diagnosis = diagnose_choices(margin, annotator=np.repeat(np.arange(30), 10), **QUICK)
    assert diagnosis.verdict.value == "inconclusive"


def test_the_scale_of_the_margins_does_not_matter(simulate):
    margin, annotator, _ = simulate(60, 20, 0.7)
    one = diagnose_choices(margin, annotator=annotator, **QUICK)
    other = diagnose_choices(1000 * margin, annotator=annotator, **QUICK)
    assert one.verdict.cv_interval == pytest.approx(other.verdict.cv_interval, rel=1e-3)
    assert one.verdict.value == other.verdict.value


@pytest.mark.untyped
def test_negative_strengths_show_under_the_normal_distribution():
    """A fifth of the people choose against the margins."""
    rng = np.random.default_rng(0)
    strength = np.where(np.arange(100) < 20, -1.0, 1.0)
    person, x = np.repeat(np.arange(100), 30), rng.normal(0, 2, 3_000)
    margin = np.where(rng.random(3_000) < expit(strength[person] * x), x, -x)
    diagnosis = diagnose_choices(
        margin, annotator=person, families=("normal",), num_samples=300, num_permutations=99
    )
    low, middle, high = diagnosis.share_not_positive
    assert low < middle < high
    assert 0.12 < middle < 0.3
    assert diagnosis.differences["normal"].elpd > diagnosis.differences["lognormal"].elpd + 10


@pytest.mark.parametrize("has_ids", [True, False])
def test_margins_of_a_policy_that_has_hardly_moved_are_inconclusive(has_ids):
    """Every draw gives every pair the probability one half, so that weights have no tail."""
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 1e-7, 60)
    ids = np.repeat(np.arange(12), 5) if has_ids else None
    assert diagnose_choices(margin, annotator=ids, **QUICK).verdict.value == "inconclusive"


@pytest.mark.untyped
def test_panels_that_contradict_every_margin_are_diagnosed(simulate):
    """The normal family's strengths then are below zero, where its grid ends in one point."""
    margin, annotator, _ = simulate(10, 6, 0.6)
    found = diagnose_choices(-np.abs(margin) - 1, annotator=annotator, num_samples=200)
    assert np.isfinite(found.fits["normal"].posterior.cv).all()
    assert found.verdict.value == "inconclusive"
