"""Errors of responses: who shares them, how large they are, and what tests do about them."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from mixdpo_pyro.inference import assess_heterogeneity, fit, permute_annotators, read_choices
from mixdpo_pyro.inference.likelihood.margin_errors import ERRORS
from mixdpo_pyro.inference.methods.log_joint import Maximum
from mixdpo_pyro.inference.robustness.differences import check_pair_errors
from mixdpo_pyro.inference.robustness.errors import shared
from mixdpo_pyro.inference.robustness.errors.pair_errors import estimate_pair_errors
from mixdpo_pyro.inference.robustness.errors.responses import (
    _added_up,
    chosen_is_first,
    link_responses,
    rows_without_recurring,
    without_recurring,
)
from mixdpo_pyro.inference.robustness.errors.second_policy import implied_ratio
from mixdpo_pyro.inference.robustness.scale import anchor_strength

PAIRS = np.array([(i, j) for i in range(4) for j in range(i)])


def draw(seed, cv, ratio, people=100, prompts=40, a_prompt=1, block=5):
    """Prompts of four responses; those of a block of people judge them, each other pairs."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), prompts * a_prompt)
    prompt = (person // block) * prompts + np.tile(np.repeat(np.arange(prompts), a_prompt), people)
    turn = np.tile(np.arange(a_prompt), people * prompts)
    number = rng.random((prompt.max() + 1, 6)).argsort(1)[
        prompt, (person % block) * a_prompt + turn
    ]
    value, error = rng.normal(0, np.sqrt(2), (2, 4 * (prompt.max() + 1)))
    first, second = (4 * prompt + PAIRS[number, k] for k in range(2))
    scale = np.sqrt(np.log1p(cv**2))
    strength = np.exp(scale * rng.normal(size=people) - scale**2 / 2)
    delta = value[first] - value[second]
    observed = delta + ratio * (error[first] - error[second])
    is_first = rng.random(len(delta)) < expit(strength[person] * delta)
    return read_choices(
        np.where(is_first, observed, -observed), person,
        response_a=np.where(is_first, first, second), response_b=np.where(is_first, second, first),
    )  # fmt: skip


def turned(choices, rows):
    """The same with the responses of some rows in the other order."""
    responses = choices.responses.copy()
    responses[rows] = responses[rows, ::-1]
    return read_choices(
        choices.margin, choices.annotator, response_a=responses[:, 0], response_b=responses[:, 1]
    )


# What is shared


def test_nothing_recurs_within_a_person_in_what_is_kept():
    choices = draw(0, 0.0, 1.0, people=9, prompts=30, a_prompt=2, block=3)
    assert rows_without_recurring(choices).all()  # errors nearly cancel
    choices = turned(choices, [0])  # which was chosen is not known
    kept = rows_without_recurring(choices)
    cells = choices.annotator[:, None] * 10_000 + choices.responses
    assert len(np.unique(cells[kept])) == 2 * kept.sum()
    # Every row that was dropped shares a response with one that was kept.
    assert np.isin(cells[~kept], cells[kept]).any(1).all()
    assert without_recurring(choices).num_annotators == 9
    alone = draw(0, 0.0, 1.0, people=9, block=3)
    assert without_recurring(alone) is alone
    again = read_choices([1.0, 2.0, 3.0, -1.0], [0, 0, 1, 1], pair=["x", "x", "x", "y"])
    assert rows_without_recurring(again).sum() == 3
    assert rows_without_recurring(read_choices([1.0, 2.0, 3.0], [0, 0, 1])).all()


def test_errors_add_up_as_the_sides_of_responses_say():
    """All six pairs of four responses with log-ratios in order: sums of 3, 1, -1 and -3."""
    value = np.array([0.0, 1.0, 2.5, 4.0])
    high, low = PAIRS.T
    choices = read_choices(
        np.tile(value[high] - value[low], 2), np.repeat([0, 1], 6),
        response_a=np.tile(high, 2), response_b=np.tile(low, 2),
    )  # fmt: skip
    assert _added_up(choices, choices.responses) == pytest.approx((20 - 12) / 2 / 6)
    unknown = turned(choices, [0])
    assert _added_up(unknown, unknown.responses) == pytest.approx((36 - 12) / 2 / 6)
    repeated = read_choices([1.0, 2.0, 1.0], [0, 0, 1], pair=["x", "x", "y"])
    assert _added_up(repeated, repeated.pair[:, None]) == pytest.approx(2 / 3)


def test_margins_tell_whether_the_first_response_is_the_chosen_one():
    choices = draw(1, 0.5, 0.5, people=10, prompts=5)
    assert chosen_is_first(choices)
    assert not chosen_is_first(turned(choices, [3]))
    assert not chosen_is_first(turned(choices, np.arange(0, choices.num_pairs, 2)))
    tree = read_choices([1.0, 2.0], [0, 1], response_a=["a", "c"], response_b=["b", "b"])
    assert not chosen_is_first(tree)  # without a circle nothing is known
    assert not chosen_is_first(read_choices([1.0, 2.0, 3.0], [0, 0, 1]))


def test_errors_correlate_by_the_response_that_margins_favour():
    """Log-ratios 0, 1 and 3 of a, b and c; the third choice goes against its margin."""
    choices = read_choices(
        [3.0, 2.0, -1.0, 3.0], [0, 1, 2, 3], response_a=["c", "c", "a", "c"],
        response_b=["a", "b", "b", "a"],
    )  # fmt: skip
    links = link_responses(choices)
    found = {
        (*sorted((one, other)),): correlation
        for one, other, correlation in zip(
            links.first, links.second, links.correlation, strict=True
        )
    }
    # ca with cb: c is favoured in both. cb with ab: b in one of them. ca with ab: a in neither.
    expected = {(0, 1): 0.5, (1, 2): -0.5, (0, 2): 0.5, (0, 3): 1.0, (1, 3): 0.5, (2, 3): 0.5}
    assert found == expected
    assert set(links.cluster) == {0}


def test_errors_of_two_margins_have_their_correlation():
    for correlation in (0.5, -0.5, 1.0):
        mass, node = shared._joint_mass(correlation), ERRORS
        assert mass.sum() == pytest.approx(1)
        assert node @ mass @ node == pytest.approx(correlation, abs=1e-3)
        assert mass.sum(0) @ node**2 == pytest.approx(1, abs=1e-3)
        torch.testing.assert_close(mass, mass.T)


def test_slopes_that_share_a_response_are_counted_together():
    """The double sum over dyads with a response in common, term by term."""
    rng = np.random.default_rng(3)
    responses, slope = PAIRS[[0, 1, 2, 3, 4, 5]], rng.normal(1, 1, 6)
    expected = sum(
        slope[p] * slope[q]
        for p in range(6)
        for q in range(6)
        if {*responses[p]} & {*responses[q]}
    )
    assert shared.sandwich_variance(slope, responses) == pytest.approx(expected)
    assert shared.sandwich_variance(slope, None) == pytest.approx(slope @ slope)
    against = np.array([1.0, -1.0])  # dependence is not taken to make an estimate surer
    assert shared.sandwich_variance(against, np.array([[0, 1], [1, 2]])) == 2.0


# How large errors are


@pytest.mark.parametrize(("ratio", "cv"), [(0.0, 0.8), (1.0, 0.0)])
def test_size_of_errors_comes_from_responses_that_people_have_in_common(ratio, cv):
    choices = draw(5, cv, ratio)
    result = fit(choices, beta=anchor_strength(choices), num_samples=300, draw_strengths=False)
    found = estimate_pair_errors(result)
    assert found.source == "responses" and found.num_shared > 0.8 * choices.num_pairs
    # Estimates have a standard deviation of about 0.07 over datasets.
    assert np.median(found.ratio) == pytest.approx(ratio, abs=0.3)
    low, high = np.quantile(found.cv, [0.005, 0.995])
    assert max(low, 0.1) < high and low < max(cv, 0.1) < high


def test_pairs_come_before_responses_where_people_share_them():
    choices = draw(6, 0.0, 1.0, people=30, prompts=10, a_prompt=2, block=3)
    assert shared.find_evidence(choices).source == "responses"
    assert shared.find_evidence(turned(choices, [0])) is None  # which was chosen is not known
    doubled = read_choices(
        np.tile(choices.margin, 2), np.concatenate([choices.annotator, 30 + choices.annotator]),
        response_a=np.tile(choices.responses[:, 0], 2),
        response_b=np.tile(choices.responses[:, 1], 2),
    )  # fmt: skip
    found = shared.find_evidence(doubled)
    assert found.source == "pairs" and found.num_choices == doubled.num_pairs
    assert len(found.responses) == choices.num_pairs
    few = draw(6, 0.0, 1.0, people=3, prompts=10, block=3)  # ten blocks of responses
    assert shared.find_evidence(few) is None


def test_choices_that_no_strength_allows_have_finite_terms():
    """People who always choose as their margins say, but for one choice far against them."""
    margin = np.abs(np.random.default_rng(0).normal(0, 2, 200)) + 0.5
    margin[7] = -400.0
    choices = read_choices(margin, np.arange(200) % 10, pair=np.arange(200) // 10)
    evidence = shared.find_evidence(choices)
    assert np.isfinite(evidence.terms(choices, Maximum(50.0, 0.1, 0.0, 0.0))).all()


# A second policy


def two_policies(seed, cv, common=0.0):
    """Margins with errors as large as they, and those of a policy on another scale."""
    rng, person = np.random.default_rng(seed), np.repeat(np.arange(100), 40)
    value, error, other = rng.normal(0, 2, (3, len(person)))
    scale = np.sqrt(np.log1p(cv**2))
    strength = np.exp(scale * rng.normal(size=100) - scale**2 / 2)
    sign = np.where(rng.random(len(person)) < expit(strength[person] * value), 1, -1)
    second = value + 0.5 * (np.sqrt(common) * error + np.sqrt(1 - common) * other)
    return sign * (value + error), sign * 7 * second, person


def test_a_second_policy_shows_the_errors_that_it_does_not_share():
    """Its own errors and its scale do not matter; standard errors are those of 40 datasets."""
    found = np.array([implied_ratio(*two_policies(seed, 0.5)) for seed in range(40)])
    assert found[:, 0].mean() == pytest.approx(1, abs=4 * found[:, 0].std() / 40**0.5)
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.45)
    assert implied_ratio(*two_policies(0, 0.5, common=0.5))[0] < 0.75  # a lower bound
    first, second, person = two_policies(0, 0.5)
    np.testing.assert_allclose(implied_ratio(first, first, person), 0, atol=1e-6)
    for other in (-second, np.zeros(len(first))):
        with pytest.raises(ValueError, match="two policies that agree"):
            implied_ratio(first, other, person)


@pytest.mark.untyped
def test_cv_is_given_with_the_errors_that_a_second_policy_shows():
    first, second, person = two_policies(3, 0.8)
    result = fit(
        first, annotator=person, beta=0.5, num_samples=300, draw_strengths=False
    )  # fmt: skip
    found = estimate_pair_errors(result, second)
    assert found.source == "second policy"
    assert np.median(found.ratio) == pytest.approx(1, abs=0.15)
    low, high = np.quantile(found.cv, [0.005, 0.995])
    assert low < 0.8 < high and result.posterior.interval("cv")[1] < 0.75
    check, _ = check_pair_errors(assess_heterogeneity(result), result, second)
    assert "errors are at least" in check.sentence and "itself a lower bound" in check.sentence
    unrelated, none = check_pair_errors(assess_heterogeneity(result), result, -second)
    assert unrelated.status == "not checked" and "agree" in unrelated.sentence and none is None


# Tests


@pytest.mark.untyped
def test_errors_of_responses_that_recur_do_not_fool_the_permutation_test():
    """People are alike, and judge pairs of twelve responses of their own, with large errors.

    Of ten datasets at most four have p < 0.05, but for a probability of 3e-5.
    """
    rng, person = np.random.default_rng(0), np.repeat(np.arange(60), 40)
    p_values, naive = [], []
    for _ in range(10):
        first = rng.integers(12, size=len(person))
        second = (first + rng.integers(1, 12, size=len(person))) % 12
        first, second = (12 * person + each for each in (first, second))
        value, error = rng.normal(0, 1.5, (2, 12 * 60))
        delta, wrong = (each[first] - each[second] for each in (value, error))
        is_first = rng.random(len(person)) < expit(delta)
        margin = np.where(is_first, delta + wrong, -delta - wrong)
        known = read_choices(margin, person, response_a=first, response_b=second)
        p_values.append(permute_annotators(known, num_permutations=99).p_value)
        naive.append(permute_annotators(read_choices(margin, person), num_permutations=99).p_value)
    assert sum(p < 0.05 for p in p_values) <= 4 < 8 <= sum(p < 0.05 for p in naive)


@pytest.mark.untyped
def test_small_errors_of_shared_pairs_are_not_taken_for_large_ones():
    """With a free mean, sizes of .8 and more are hopeless here: the best cv runs to its bound."""
    margin, strength, choice, order, error = (
        np.random.default_rng((3, stream)) for stream in (1, 2, 3, 5, 6)
    )
    num_people, num_pairs, judges = 100, 1600, 4
    delta = margin.normal(0, 1.5, num_pairs)
    number = np.repeat(np.arange(num_pairs), judges)
    person = np.concatenate([order.permutation(num_people) for _ in range(64)])
    scale = np.sqrt(np.log1p(0.8**2))
    beta = 1.2 * np.exp(scale * strength.normal(size=num_people) - scale**2 / 2)
    utility = (delta + 0.15 * error.normal(0, 1.5, num_pairs))[number]
    is_positive = choice.random(len(number)) < expit(beta[person] * utility)
    observed = np.where(is_positive, delta[number], -delta[number])
    result = fit(read_choices(observed, person, pair=number), mean_anchor="free", beta=1.0)
    found = estimate_pair_errors(result)
    low, high = np.quantile(found.ratio, [0.05, 0.95])
    assert low < 0.15 < high < 0.3
    low, high = np.quantile(found.cv, [0.05, 0.95])
    assert low < 0.8 < high < 1.2
