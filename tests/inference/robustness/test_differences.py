"""Strength, taste, care and errors of the margins, in worlds whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit, ndtr
from scipy.stats import norm

from mixdpo_pyro.inference import (
    Design,
    assess_heterogeneity,
    diagnose_choices,
    diagnosis,
    fit,
    read_choices,
    simulate_choices,
)
from mixdpo_pyro.inference.likelihood.margin_errors import erring_log_prob
from mixdpo_pyro.inference.likelihood.panels import log_likelihood_at
from mixdpo_pyro.inference.loo import leave_one_out
from mixdpo_pyro.inference.robustness import checks
from mixdpo_pyro.inference.robustness.care import (
    LapseRates,
    agreement_beyond_margins,
    compare_care,
)
from mixdpo_pyro.inference.robustness.differences import (
    check_distribution,
    check_pair_errors,
    compare_differences,
    estimate_lapse_rates,
)
from mixdpo_pyro.inference.robustness.distributions.nonparametric import (
    maximise_weights,
    nonparametric_strength,
)
from mixdpo_pyro.inference.robustness.distributions.two_groups import (
    fit_two_groups,
    information_criterion,
)
from mixdpo_pyro.inference.robustness.errors.pair_errors import estimate_pair_errors
from mixdpo_pyro.inference.robustness.nesting import examine_nesting
from mixdpo_pyro.inference.robustness.permutation import permute_annotators
from mixdpo_pyro.inference.robustness.scale import anchor_strength
from mixdpo_pyro.inference.robustness.taste import compare_taste
from mixdpo_pyro.models import mixed_logit_log_prob

PEOPLE, EACH = 100, 40
PERSON = np.repeat(np.arange(PEOPLE), EACH)


def oriented(rng, logit, margin):
    is_first = rng.random(len(logit)) < expit(logit)
    return np.where(is_first, margin, -margin), np.where(is_first, 1, -1)


def strengths(rng, cv):
    scale = math.sqrt(math.log1p(cv**2))
    return np.exp(scale * rng.normal(size=PEOPLE) - scale**2 / 2)


def streams(seed):
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]


def simple_fit(margin, person=PERSON, **judged):
    choices = read_choices(margin, person, **judged)
    return fit(choices, beta=anchor_strength(choices), num_samples=300, draw_strengths=False)


# Errors of the margins


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.5, 1.6, 5.0, 11.0, 20.0, 301.0])
@pytest.mark.parametrize("logit", [-20.0, -3.0, 0.0, 0.7, 12.0])
def test_error_of_the_margin_is_integrated_out(logit, scale):
    def integrand(e):
        return norm.pdf(e) * expit(logit + scale * e)

    exact, _ = quad(integrand, -12, 12, points=[-logit / max(scale, 2)], epsabs=0, limit=500)
    found = erring_log_prob(torch.tensor([[logit]]).double(), torch.tensor([scale]).double())
    assert found.exp().item() == pytest.approx(exact, rel=1e-7)


def test_error_of_the_margin_has_its_limits():
    x = torch.linspace(-8, 8, 9).double()
    both = erring_log_prob(x[:, None], torch.tensor([2.5]).double()).exp()[:, 0]
    np.testing.assert_allclose(both + both.flip(0), 1.0, atol=1e-9)  # the other choice
    large = erring_log_prob(1e3 * x[:, None], torch.tensor([1e3]).double()).exp()[:, 0]
    np.testing.assert_allclose(large, ndtr(x.numpy()), atol=2e-6)  # a normal link


def test_table_of_a_person_holds_errors_and_flips():
    rng = np.random.default_rng(0)
    margin, person = rng.normal(0, 3, 120), np.arange(120) % 3
    choices = read_choices(margin, person)
    beta = torch.tensor([0.05, 0.4, 3.0]).double()
    erring = type(choices)(choices.margin, choices.annotator, choices.labels, margin_error=2.0)
    p = erring_log_prob(torch.from_numpy(margin)[:, None] * beta, beta * 2.0).exp().numpy()
    value = np.log(0.1 + 0.8 * p)
    expected = np.stack([value[person == k].sum(0) for k in range(3)])
    np.testing.assert_allclose(log_likelihood_at(beta, erring, 0.1), expected, atol=1e-7)


def shared_pairs(seed, cv, ratio, people_a_pair=5):
    """Blocks of pairs, each judged by five people, whose margins have errors."""
    strength, delta, error, choice = streams(seed)
    pair = (PERSON // people_a_pair) * EACH + np.tile(np.arange(EACH), PEOPLE)
    true = delta.normal(0, 2, pair.max() + 1)
    observed = true + error.normal(0, 2 * ratio, len(true))
    margin, _ = oriented(choice, strengths(strength, cv)[PERSON] * true[pair], observed[pair])
    return margin, pair


@pytest.mark.untyped
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_size_of_errors_comes_from_pairs_that_several_people_judged(ratio):
    margin, pair = shared_pairs(1, 0.8, ratio)
    result = simple_fit(margin, pair=pair)
    found = estimate_pair_errors(result)
    assert found.num_shared == len(margin)
    # Four standard errors of the ratio, about 0.05 here.
    assert np.median(found.ratio) == pytest.approx(ratio, abs=0.2)
    low, high = np.quantile(found.cv, [0.01, 0.99])
    assert low < 0.8 < high
    if ratio == 1:  # attenuated without them
        assert result.posterior.interval("cv")[1] < 0.75 < np.quantile(found.cv, 0.9)


@pytest.mark.untyped
def test_exact_margins_have_no_errors():
    margin, pair = shared_pairs(2, 0.5, 0.0)
    result = simple_fit(margin, pair=pair)
    found = estimate_pair_errors(result)
    assert np.quantile(found.ratio, 0.5) < 0.2
    assert np.median(found.cv) == pytest.approx(np.median(result.posterior.cv), abs=0.06)


@pytest.mark.untyped
def test_without_shared_pairs_the_interval_is_wider():
    margin, _ = shared_pairs(3, 0.8, 0.6)
    result = simple_fit(margin)
    found = estimate_pair_errors(result)
    assert found.num_shared == 0
    naive = np.diff(result.posterior.interval("cv"))[0]
    assert np.diff(np.quantile(found.cv, [0.05, 0.95]))[0] > 1.3 * naive


# Care


def careless(seed, share, rate, cv):
    strength, delta, who, choice = streams(seed)
    x = delta.normal(0, 2, len(PERSON))
    lapse_rate = np.where(np.arange(PEOPLE) < share * PEOPLE, rate, 0.0)[PERSON]
    logit = np.where(who.random(len(x)) < lapse_rate, 0.0, strengths(strength, cv)[PERSON] * x)
    return oriented(choice, logit, x)[0]


def test_people_who_flip_coins_are_careless_and_not_weak():
    result = simple_fit(careless(0, 0.1, 1.0, 0.0))
    found = compare_care(result.choices, "lognormal", result.maximum.mean)
    assert found.care_p_value < 1e-6 < 0.01 < found.strength_p_value
    assert found.advantage > 10
    assert found.mean_rate == pytest.approx(0.1, abs=0.06)
    assert found.careless[:10].mean() > 0.9 and found.careless[10:].mean() < 0.05
    assert found.rates.lapse_rate[:10].mean() > 0.8 and found.rates.lapse_rate[10:].mean() < 0.1


def test_people_of_different_strength_are_not_careless():
    result = simple_fit(careless(1, 0.0, 0.0, 0.8))
    found = compare_care(result.choices, "lognormal", result.maximum.mean)
    assert found.strength_p_value < 1e-6 < 0.01 < found.care_p_value
    assert found.advantage < -5


@pytest.mark.untyped
def test_careless_people_agree_by_chance_and_opposed_people_do_not():
    """Of people who always answer at random, four of five judgements two by two are alike."""
    margin = np.array([1.0, 1.0, -2.0, 2.0, 0.5, 0.5, 0.5, 0.0, 0.0, 9.0])
    who, pair = [1, 2, 1, 2, 1, 2, 3, 1, 2, 2], ["a", "a", "b", "b", "c", "c", "c", "d", "d", "a"]
    choices = read_choices(margin, who, pair=pair)  # no orientation at zero; the last one is again

    def agreement(*rate):
        rates = LapseRates(np.ones(1), 1.0, 0.0, np.array(rate), np.array(rate))
        return agreement_beyond_margins(choices, rates, "lognormal")

    everyone = agreement(1.0, 1.0, 1.0)
    assert everyone.correlation == pytest.approx((4 - 1) / 5)
    assert everyone.error == pytest.approx(5**-0.5)
    assert agreement(1.0, 0.0, 1.0).correlation == pytest.approx(1.0)
    assert agreement(1.0, 0.0, 0.0) is None
    half = agreement(0.5, 0.5, 0.0)  # of people who look every other time: a, b and c
    chance = 0.5 * expit(np.array([1.0, 2.0, 0.5])) + 0.25
    residual = np.array([[1, 1], [0, 1], [1, 1]]) - chance[:, None]
    expected = residual.prod(1).sum() / (chance * (1 - chance)).sum()
    assert half.correlation == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("odd", "kind"), [("random", "care"), ("often random", "care"), ("opposed", "undetermined")]
)
def test_shared_pairs_tell_care_from_taste(odd, kind, failure_rate):
    """Half of the people answer at random, every other time too, or oppose half of what counts."""
    _, delta, lapse, choice = streams(5)
    pair = (PERSON // 10) * EACH + np.tile(np.arange(EACH), PEOPLE)
    known, other = delta.normal(0, 1.5, (2, pair.max() + 1))
    is_odd = (np.arange(PEOPLE) % 2 == 0)[PERSON]
    if odd == "often random":
        is_odd &= lapse.random(len(PERSON)) < 0.5
    logit = (known - other)[pair] if odd == "opposed" else 0.0
    margin, _ = oriented(
        choice, np.where(is_odd, logit, (known + other)[pair]), (known + other)[pair]
    )
    found = compare_differences(simple_fit(margin, pair=pair), {})
    assert found.agreement.is_known
    z = found.agreement.correlation / found.agreement.error
    assert (z > norm.isf(failure_rate)) == (kind == "undetermined")
    assert found.kind == kind
    assert replace(found, strength_of_any_form=9.0).kind == "undetermined"


# Taste


def tastes(seed, spread, cv):
    strength, delta, who, choice = streams(seed)
    x, length = delta.normal(0, 2, len(PERSON)), delta.normal(0, 1, len(PERSON))
    taste = who.normal(0.3, spread, PEOPLE)[PERSON]
    logit = strengths(strength, cv)[PERSON] * x + taste * length
    margin, turn = oriented(choice, logit, x)
    return margin, turn * length


@pytest.mark.untyped
def test_taste_for_length_is_found_and_not_taken_for_strength():
    margin, length = tastes(0, 1.5, 0.0)
    result = simple_fit(margin)
    found = compare_taste(result.choices, {"length": 100 * length}, result.maximum.mean)
    assert found.taste_p_value < 1e-6 < 0.02 < found.strength_p_value
    assert found.sd[0] == pytest.approx(1.5, abs=0.4)
    assert compare_differences(result, {"length": length}).kind == "taste"


def test_care_of_many_people_is_that_of_a_random_part(monkeypatch):
    """A table for each of ten thousand would take more than a gigabyte."""
    monkeypatch.setattr(checks, "_MAX_ANNOTATORS", 12)
    margin, _ = tastes(1, 0.0, 0.4)
    found = compare_differences(simple_fit(margin), {})
    assert len(found.care.careless) == found.num_drawn == 12
    assert "(Care is that of 12 annotators drawn at random.)" in found.sentence()


def test_everybody_has_a_lapse_rate_where_some_were_looked_at(monkeypatch):
    result = simple_fit(careless(0, 0.1, 1.0, 0.0))
    everybody = estimate_lapse_rates(result)
    again = everybody.of_others(result.choices, "lognormal")
    assert again.careless == pytest.approx(everybody.careless, abs=1e-6)
    monkeypatch.setattr(checks, "_MAX_ANNOTATORS", 50)
    some = estimate_lapse_rates(result, compare_differences(result, {}))
    assert len(some.careless) == PEOPLE
    assert some.careless[:10].mean() > 0.8 and some.careless[10:].mean() < 0.1


def test_strength_is_found_beside_one_taste_for_all():
    margin, length = tastes(1, 0.0, 0.8)
    result = simple_fit(margin)
    found = compare_taste(result.choices, {"length": length}, result.maximum.mean)
    assert found.strength_p_value < 1e-6 < 0.01 < found.taste_p_value
    assert found.cv == pytest.approx(0.8, abs=0.3)
    assert found.mean[0] == pytest.approx(0.3, abs=0.2)


@pytest.mark.untyped
def test_simulated_likelihood_agrees_with_quadrature_where_tastes_are_equal():
    """512 draws for 100 people of 40 choices: within a nat of the exact likelihood."""
    margin, length = tastes(2, 0.0, 0.5)
    choices = read_choices(margin, PERSON)
    from mixdpo_pyro.inference.robustness.taste import _SimulatedLikelihood

    model = _SimulatedLikelihood.of(choices, length[:, None])
    scale = math.sqrt(math.log1p(0.25))
    point = torch.tensor([-(scale**2) / 2, scale, 0.3, 0.0]).double()
    exact = mixed_logit_log_prob(
        torch.from_numpy(margin + 0.0 * length), 1.0, 0.5, "lognormal",
        annotator=torch.from_numpy(PERSON),
    ).sum()  # fmt: skip
    plain = model._log_likelihood(torch.tensor([point[0], point[1], 0.0, 0.0]).double())
    assert plain.item() == pytest.approx(exact.item(), abs=1.0)


@pytest.mark.parametrize("bad", [np.zeros(len(PERSON)), np.full(len(PERSON), np.nan)])
def test_attributes_that_say_nothing_are_named(bad):
    margin, _ = tastes(0, 0.0, 0.0)
    choices = read_choices(margin, PERSON)
    with pytest.raises(ValueError, match="attribute 'tone'"):
        compare_taste(choices, {"tone": bad}, 1.0)


# Distributions


def of_strengths(seed, strength):
    _, delta, _, choice = streams(seed)
    x = delta.normal(0, 2, len(PERSON))
    return simple_fit(oriented(choice, strength[PERSON] * x, x)[0])


@pytest.mark.parametrize(
    ("weak", "strong", "share", "cv"), [(0.3, 1.7, 0.5, 0.7), (0.0, 1.25, 0.2, 0.5)]
)
def test_two_groups_are_found_where_smooth_families_miss_cv(weak, strong, share, cv):
    is_weak = np.arange(PEOPLE) < share * PEOPLE
    result = of_strengths(3, np.where(is_weak, weak, strong))
    found = fit_two_groups(result)
    low, high = found.cv_interval
    assert low < cv < high < result.posterior.interval("cv")[0] + 0.15
    assert found.share == pytest.approx(share, abs=0.1)
    assert found.means[1] == pytest.approx(strong, rel=0.25)
    assert found.elpd > information_criterion(result, found.annotators) + 5


def test_one_smooth_group_is_predicted_as_well_by_its_family():
    """Leave-one-out of the same fit is the yardstick of the information criterion."""
    result = of_strengths(4, strengths(streams(4)[0], 0.6))
    found = fit_two_groups(result)
    elpd = information_criterion(result, found.annotators)
    assert elpd == pytest.approx(leave_one_out(result).elpd, abs=0.3)
    assert found.elpd < elpd + 2
    low, high = found.cv_interval
    assert low < 0.6 < high


# Any distribution


def likelihoods(seed, num_people=60, size=40):
    """Likelihoods of people at strengths of a grid, each at most one."""
    rng = np.random.default_rng(seed)
    centre = rng.choice([0.3, 1.7], num_people)
    grid = np.linspace(0.1, 2.5, size)
    value = -0.5 * ((grid - centre[:, None] - rng.normal(0, 0.3, (num_people, 1))) / 0.3) ** 2
    return np.exp(value - value.max(1, keepdims=True)), grid


def log_likelihood(likelihood, weight):
    return np.log(likelihood @ weight).sum()


@pytest.mark.untyped
def test_weights_meet_the_conditions_of_the_maximum():
    """The gradient is n on the support and nowhere larger, and no other weights do better."""
    likelihood, _ = likelihoods(0)
    weight = maximise_weights(likelihood)
    gradient = (likelihood / (likelihood @ weight)[:, None]).sum(0) / len(likelihood)
    assert weight.sum() == pytest.approx(1) and weight.min() >= 0
    assert gradient.max() < 1 + 1e-6
    np.testing.assert_allclose(gradient[weight > 1e-4], 1, atol=1e-5)
    best, rng = log_likelihood(likelihood, weight), np.random.default_rng(1)
    for other in rng.dirichlet(np.ones(len(weight)), 20):
        # By concavity the gradient bounds what others reach.
        assert log_likelihood(likelihood, other) <= best + 1e-6
        assert log_likelihood(likelihood, 0.99 * weight + 0.01 * other) <= best + 1e-6


def test_weights_of_two_strengths_have_a_closed_form():
    """People who can have one of two strengths only are counted."""
    likelihood = np.repeat(np.eye(2), [3, 7], axis=0)
    np.testing.assert_allclose(maximise_weights(likelihood), [0.3, 0.7], atol=1e-6)
    tilted = maximise_weights(likelihood, np.array([10.0, 0.0]))
    # 3 / w + 10 = 7 / (1 - w)
    np.testing.assert_allclose(3 / tilted[0] + 10, 7 / tilted[1], rtol=1e-4)


def test_interval_of_cv_holds_what_is_nearly_as_likely():
    """No distribution within 1.35 nats that a random search finds has a cv outside."""
    result = of_strengths(5, np.where(np.arange(PEOPLE) % 2 == 0, 0.3, 1.7))
    found = nonparametric_strength(result)
    low, high = found.cv_interval
    assert low < found.cv < high and low < 0.7 < high
    assert found.largest_gradient < 1e-6 and found.num_annotators == PEOPLE
    table = log_likelihood_at(torch.from_numpy(found.strength.clip(1e-9)), result.choices).numpy()
    value = np.exp(table - table.max(1, keepdims=True))
    best, rng = log_likelihood(value, found.weight), np.random.default_rng(2)
    assert best + table.max(1).sum() == pytest.approx(found.log_likelihood, abs=1e-3)
    cvs = []
    for scale in np.repeat([30.0, 100.0, 300.0], 200):
        other = rng.dirichlet(scale * found.weight + 1e-3)
        if log_likelihood(value, other) > best - 1.35:
            mean = other @ found.strength
            cvs.append(np.sqrt(other @ found.strength**2 / mean**2 - 1))
    assert len(cvs) > 100 and low < min(cvs) and max(cvs) < high


def test_no_strength_is_found_where_some_have_none():
    result = of_strengths(6, np.where(np.arange(PEOPLE) % 5 == 0, 0.0, 1.25))
    found = nonparametric_strength(result)
    weak = found.strength < 0.2
    assert found.weight[weak].sum() == pytest.approx(0.2, abs=0.12)
    low, high = found.cv_interval
    assert low < 0.5 < high
    assert found.mean == pytest.approx(1, abs=0.25)


def test_equal_people_may_have_no_spread_at_all():
    """One strength for all is within 1.35 nats of the best, so that cv may be zero."""
    low, high = nonparametric_strength(of_strengths(7, np.ones(PEOPLE))).cv_interval
    assert low < 0.06 < 0.15 < high < 0.6  # two points of the grid have a cv of 0.05


def test_distributions_need_repeated_choices():
    once = fit(np.random.default_rng(0).normal(1, 2, 50), draw_strengths=False)
    with pytest.raises(ValueError, match="repeated choices"):
        nonparametric_strength(once)


@pytest.mark.untyped
def test_interval_over_distributions_allows_for_known_errors():
    """Pairs that five people judged, with errors as large as the margins, which attenuate cv."""
    margin, pair = shared_pairs(1, 0.8, 1.0)
    result = simple_fit(margin, pair=pair)
    main = assess_heterogeneity(result)
    exact = check_distribution(main, {"lognormal": result}, "lognormal")
    errors, _ = check_pair_errors(main, result)
    corrected = check_distribution(main, {"lognormal": result}, "lognormal", [errors])
    assert exact.cv_interval[1] < 0.8 < corrected.cv_interval[1]
    assert corrected.cv_interval[0] < 0.8
    assert "With no form assumed" in exact.sentence
    assert "errors of the margins allowed for" in corrected.sentence


# What the ids can tell


def test_nesting_is_read_off_the_ids():
    margin, person = np.arange(1.0, 9.0), [1, 1, 1, 1, 2, 2, 2, 2]
    own = read_choices(margin, person, response_a=list("aabbeeff"), response_b=list("bccdfggh"))
    assert examine_nesting(own).is_nested
    shared = read_choices(margin, person, response_a=list("aabbaabb"), response_b=list("bccdbccd"))
    found = examine_nesting(shared)
    assert not found.is_nested and found.share_shared == 1.0
    once = read_choices(margin, person, pair=np.arange(8))
    assert not examine_nesting(once).is_nested and examine_nesting(once).share_shared == 0.0
    judged = read_choices(
        margin, person, outcome=["win", "tie"] * 4,
        response_a=list("aabbeeff"), response_b=list("bccdfggh"),
    )  # fmt: skip
    assert examine_nesting(judged) == examine_nesting(own)


def test_people_are_nested_in_groups_that_hold_several_of_them():
    choices = read_choices(np.arange(1.0, 9.0), [1, 1, 2, 2, 3, 3, 4, 4])
    groups = {
        "topic": ["x", "x", "x", "x", "y", "y", "y", "y"],
        "person": [1, 1, 2, 2, 3, 3, 4, 4],
        "crossed": ["x", "y"] * 4,
        "one": ["x"] * 8,
    }
    found = examine_nesting(choices, {name: np.array(g) for name, g in groups.items()})
    assert found.groups == ("topic",)


@pytest.mark.untyped
def test_errors_of_own_responses_are_no_differences_between_people():
    """Six responses of everybody's own, with errors; the permutation test alone is fooled."""
    _, delta, pairs, choice = streams(7)
    utility, error = delta.normal(0, 1.5, (2, PEOPLE * 6))
    first = pairs.integers(6, size=len(PERSON))
    second = (first + pairs.integers(1, 6, size=len(PERSON))) % 6
    a, b = PERSON * 6 + first, PERSON * 6 + second
    margin, _ = oriented(
        choice, utility[a] - utility[b], (utility + error)[a] - (utility + error)[b]
    )
    found = diagnose_choices(
        margin, annotator=PERSON, response_a=a, response_b=b, families=("lognormal",),
        num_samples=300, num_permutations=199,
    )  # fmt: skip
    assert permute_annotators(read_choices(margin, PERSON), num_permutations=199).p_value < 0.01
    assert found.verdict.value == "inconclusive" and found.verdict.kind is None
    assert "let several people judge the same pairs" in found.verdict.reason


def test_strata_that_determine_the_person_carry_no_test():
    _, delta, _, choice = streams(8)
    x = delta.normal(0, 2, len(PERSON))
    choices = read_choices(oriented(choice, x, x)[0], PERSON)
    test = permute_annotators(choices, stratum=np.arange(len(PERSON)) // 10)
    assert test.share_compared == 0 and test.p_value == 1


def test_strata_may_have_any_labels():
    _, delta, strata, choice = streams(9)
    x = delta.normal(0, 2, len(PERSON))
    choices = read_choices(oriented(choice, x, x)[0], PERSON)
    number = strata.integers(3, size=len(PERSON))
    labels = np.array([None, "a", "b"], dtype=object)[number]
    found, expected = (
        permute_annotators(choices, stratum=each, num_permutations=19)
        for each in (labels, np.array([0, 1, 2])[number])
    )
    assert found == expected


def test_ids_of_pairs_and_responses_are_checked():
    margin = [1.0, -2.0, 3.0]
    choices = read_choices(
        margin, [1, 2, 1], response_a=["x", "y", "x"], response_b=["y", "x", "z"]
    )
    assert choices.pair.tolist() == [0, 0, 1]  # either orientation is one pair
    with pytest.raises(ValueError, match="response_a and response_b"):
        read_choices(margin, response_a=["x", "y", "x"])
    with pytest.raises(ValueError, match="one pair id per margin"):
        read_choices(margin, pair=["x"])


def test_a_set_is_the_same_whichever_response_was_chosen():
    """Three people choose A, B and C of one set; the fourth chooses A among A, B and D."""
    rows = ["AB", "AC", "BA", "BC", "CA", "CB", "AB", "AD"]
    done = {"annotator": np.arange(8) // 2, "choice_set": np.arange(8) // 2}
    a, b = zip(*rows, strict=True)
    pair = ["".join(sorted(row)) for row in rows]  # as a table of margins says it, row by row
    for judged in ({}, {"pair": pair}):
        choices = read_choices(np.arange(8.0), **done, response_a=a, response_b=b, **judged)
        assert choices.by_choice(choices.pair).tolist() == [0, 0, 0, 1]
    assert examine_nesting(choices).share_shared == 0.75
    with pytest.raises(ValueError, match="one pair id per choice set, got another one at index 1"):
        read_choices(np.arange(8.0), **done, pair=pair)
    own = read_choices(np.arange(8.0), **done, pair=np.repeat([5, 3], [6, 2]))
    assert own.by_choice(own.pair).tolist() == [1, 1, 1, 0]


# What a diagnosis does with odd columns


@pytest.fixture(scope="module")
def world():
    margin, annotator, _ = simulate_choices(
        0.1, 0.8, "gamma", Design(60, 20), np.random.default_rng(0)
    )
    return read_choices(margin, annotator)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"attributes": {"tone": np.zeros(1200)}}, "attribute 'tone'"),
        ({"attributes": {"tone": np.ones(3)}}, "one value of 'tone' per margin .1200., got 3"),
        ({"groups": {"topic": ["x"]}}, "one value of 'topic' per margin .1200., got 1"),
    ],
)
def test_columns_that_cannot_be_used_are_refused_before_any_fit(
    world, columns, message, monkeypatch
):
    monkeypatch.setattr(diagnosis, "anchor_strength", None)  # the first step
    with pytest.raises(ValueError, match=message):
        diagnose_choices(world, **columns)


@pytest.mark.untyped
def test_odd_columns_and_families_do_not_end_a_diagnosis(world):
    """Responses of equal length have no taste for length; the normal family stands alone."""
    found = diagnose_choices(
        world, length=np.zeros(1200), family="normal", families=("normal",),
        num_samples=200, num_permutations=99,
    )  # fmt: skip
    assert found.verdict.value == "heterogeneous"
    (care_and_taste,) = (c for c in found.checks if c.name == "care and taste")
    assert "tastes for attributes were not looked at" in care_and_taste.sentence
    low, high = found.verdict.cv_interval
    assert low < 0.8 < high


def test_probability_with_errors_stays_one_for_any_margin():
    """Finite, at most one, and at least half of that without errors, however wrong a margin is."""
    size = torch.logspace(-3, 30, 80, dtype=torch.float64)
    logit = torch.cat([-size, size])[:, None].expand(-1, 60).clone()
    scale = torch.cat([torch.zeros(1).double(), torch.logspace(-5, 30, 59).double()])
    value = erring_log_prob(logit, scale)
    assert value.isfinite().all() and (value <= 0).all()
    assert (value >= torch.nn.functional.logsigmoid(logit) - 0.6932).all()


@pytest.mark.untyped
def test_the_answer_is_as_wide_as_errors_of_unknown_size_make_it():
    """Pairs of one's own, whose errors attenuate cv from 0.8 and nothing but a prior tells."""
    margin, _ = shared_pairs(4, 0.8, 0.6, people_a_pair=1)
    second = margin + np.random.default_rng(0).normal(0, 0.6, len(margin))
    quick = {"families": ("lognormal",), "num_samples": 300, "num_permutations": 99}
    alone = diagnose_choices(margin, annotator=PERSON, **quick)
    naive = alone.result.posterior.interval("cv")
    assert naive[1] < 0.8 < alone.verdict.cv_interval[1]
    assert alone.verdict.cv_interval[0] <= naive[0]
    assert "whose size only the shape of the likelihood and a prior say" in alone.verdict.reason
    assert "if margins are exact" in alone.verdict.reason
    bounded = diagnose_choices(margin, annotator=PERSON, second=second, **quick)
    assert "or larger, since errors that both policies share" in bounded.verdict.reason
