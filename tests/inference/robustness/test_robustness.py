from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from mixdpo_pyro.inference import Posterior, fit, read_choices
from mixdpo_pyro.inference.likelihood.marginal import build_likelihood
from mixdpo_pyro.inference.methods.log_joint import LogJoint, maximise
from mixdpo_pyro.inference.robustness import permutation
from mixdpo_pyro.inference.robustness.covariates import fit_covariate, margin_reliability
from mixdpo_pyro.inference.robustness.label_noise import profile_label_noise
from mixdpo_pyro.inference.robustness.permutation import permute_annotators
from mixdpo_pyro.inference.robustness.priors import compare_priors
from mixdpo_pyro.inference.robustness.scale import anchor_strength, margin_evidence
from mixdpo_pyro.inference.verdict import boundary_p_value


def oriented(rng, difference, probability):
    return np.where(rng.random(len(difference)) < probability, difference, -difference)


def test_anchor_is_the_best_single_strength():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 30, 3_000)
    margin = oriented(rng, x, expit(0.1 * x))
    best = minimize(lambda p: -log_expit(np.exp(p[0]) * margin).sum(), [np.log(0.1)]).x[0]
    assert anchor_strength(read_choices(margin)) == pytest.approx(np.exp(best), rel=0.03)


@pytest.mark.untyped
def test_anchor_exists_where_every_choice_agrees_with_its_margin():
    strength = anchor_strength(read_choices([1.0, 2.0, 3.0]))
    assert 0.1 < strength < 1e3


def test_margins_that_say_nothing_are_noticed():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, 500)
    assert margin_evidence(read_choices(oriented(rng, x, 0.5))) > 0.01
    assert margin_evidence(read_choices(oriented(rng, x, expit(x)))) < 1e-6


LINKS = {
    "logistic": expit,
    "flipped": lambda u: 0.15 + 0.7 * expit(u),
    "cauchit": lambda u: 0.5 + np.arctan(3 * u) / np.pi,
    "step": lambda u: np.where(np.abs(u) > 1, np.where(u > 0, 0.8, 0.2), 0.5),
}


@pytest.mark.parametrize("link", LINKS)
def test_permutation_rejects_equal_people_at_its_level_whatever_the_link(link, failure_rate):
    """A rejection at 10% is binomial over the datasets."""
    rejected = 0
    for seed in range(60):
        rng = np.random.default_rng((seed, 1))
        person, x = np.repeat(np.arange(40), 15), rng.normal(0, 2, 600)
        choices = read_choices(oriented(rng, x, LINKS[link](x)), person)
        rejected += permute_annotators(choices, num_permutations=99, seed=seed).p_value < 0.1
    assert rejected <= stats.binom.isf(failure_rate, 60, 0.1)


@pytest.mark.parametrize("link", ["logistic", "flipped"])
def test_permutation_finds_different_people(link):
    rng = np.random.default_rng(3)
    person, x = np.repeat(np.arange(100), 40), rng.normal(0, 2, 4_000)
    strength = rng.lognormal(0, 0.8, 100)[person]
    choices = read_choices(oriented(rng, x, LINKS[link](strength * x)), person)
    assert permute_annotators(choices).p_value == 0.001


def test_permutation_of_shared_pairs_looks_within_pairs(failure_rate):
    """What is particular to a pair is shared by its judges and says nothing about them."""
    rejected = 0
    for seed in range(40):
        rng = np.random.default_rng((seed, 2))
        pair = np.repeat(np.arange(200), 4)
        person = (pair // 20) * 4 + np.tile(np.arange(4), 200)  # blocks judged by the same four
        x = rng.normal(0, 1, 200)
        odd = rng.normal(0, 3, 10)[np.arange(200) // 20]  # a block's margins err together
        margin = oriented(rng, x[pair], expit((x + odd * np.sign(x))[pair]))
        choices = read_choices(margin, person)
        rejected += permute_annotators(choices, num_permutations=99, seed=seed).p_value < 0.1
    assert rejected <= stats.binom.isf(failure_rate, 40, 0.1)


def test_permutation_within_strata_does_not_blame_people_for_their_topic():
    """Each person knows one topic; margins are worthless in half of the topics."""
    rng = np.random.default_rng(0)
    person, x = np.repeat(np.arange(60), 30), rng.normal(0, 2, 1_800)
    topic = person % 2
    choices = read_choices(oriented(rng, x, np.where(topic == 0, expit(2 * x), 0.5)), person)
    assert permute_annotators(choices).p_value == 0.001
    assert permute_annotators(choices, stratum=topic).p_value > 0.01


def test_permutation_needs_ids_and_permutations():
    with pytest.raises(ValueError, match="annotator ids"):
        permute_annotators(read_choices([1.0, -2.0]))
    with pytest.raises(ValueError, match="num_permutations >= 19, got 5"):
        permute_annotators(read_choices([1.0, -2.0, 3.0], [1, 1, 2]), num_permutations=5)


def test_label_noise_is_estimated_and_not_taken_for_heterogeneity():
    rng = np.random.default_rng(0)
    person, x = np.repeat(np.arange(100), 50), rng.normal(0, 4, 5_000)
    margin = oriented(rng, x, 0.1 + 0.8 * expit(x))
    result = fit(margin, annotator=person, beta=1.0, family="gamma")
    noise = profile_label_noise(result)
    assert result.maximum.cv > 0.15  # without label noise people look different
    assert noise.flip_interval[0] < 0.1 < noise.flip_interval[1]
    assert noise.cv_interval[1] < 0.25
    assert noise.p_value > 0.01


@pytest.mark.untyped
def test_label_noise_at_zero_leaves_the_fit_as_it_is(simulate):
    margin, annotator, _ = simulate(100, 40, 0.6)
    result = fit(margin, annotator=annotator, num_samples=4000, family="gamma")
    noise = profile_label_noise(result)
    assert noise.flip_probability < 0.01
    ratio = 2 * (result.maximum.penalised - result.null.penalised)
    assert noise.likelihood_ratio <= ratio + 0.05
    low, high = np.quantile(result.posterior.cv, [0.05, 0.95])
    assert noise.cv_interval == pytest.approx((low, high), abs=0.06)


@pytest.mark.untyped
def test_label_noise_profile_is_the_maximum_over_a_fine_grid():
    rng = np.random.default_rng(1)
    x = rng.normal(0, 3, 1_500)
    margin = oriented(rng, x, 0.08 + 0.84 * expit(x))
    result = fit(margin, beta=1.0, family="gamma")
    noise = profile_label_noise(result)
    likelihoods = [
        build_likelihood(result.choices, "gamma", f) for f in np.linspace(0.02, 0.14, 9).tolist()
    ]
    maxima = [maximise(LogJoint(likelihood, "prior", 1.0)) for likelihood in likelihoods]
    best = np.max([[each.penalised for each in pair] for pair in maxima], axis=0) @ [1, -1]
    assert noise.likelihood_ratio == pytest.approx(2 * best, abs=0.2)


def test_boundary_p_value_is_the_mixture_of_chi_squares():
    assert boundary_p_value(2.71) == pytest.approx(stats.chi2.sf(2.71, 1) / 2)
    assert boundary_p_value(0.0) == boundary_p_value(-1.0) == 1.0


def test_covariate_is_that_of_logistic_regression():
    rng = np.random.default_rng(0)
    x = rng.normal(0, [[10], [5]], (2, 4_000))
    prefers = rng.random(4_000) < expit(0.1 * x[0] + 0.2 * x[1])
    x = np.where(prefers, x, -x)
    best = minimize(lambda p: -log_expit(p @ x).sum(), [0.1, 0.1], method="BFGS", tol=1e-8)
    found = fit_covariate(read_choices(x[0]), x[1])
    assert found.strength == pytest.approx(best.x[0], rel=1e-4)
    assert found.coefficient == pytest.approx(best.x[1], rel=1e-4)
    logit = best.x @ x
    covariance = np.linalg.inv((x * expit(logit) * expit(-logit)) @ x.T)
    assert found.z == pytest.approx(best.x[1] / np.sqrt(covariance[1, 1]), rel=1e-3)
    assert found.adjusted == pytest.approx(x[0] + best.x[1] / best.x[0] * x[1], rel=1e-3, abs=1e-3)


def test_covariate_that_explains_everything_is_refused():
    x = np.random.default_rng(0).normal(0, 1, 500)
    choices = read_choices(np.where(np.arange(500) % 2 == 0, x, -x))
    with pytest.raises(ValueError, match="predict choices beside"):
        fit_covariate(choices, np.ones(500) + 0.3 * choices.margin)
    with pytest.raises(ValueError, match="one finite covariate per pair"):
        fit_covariate(choices, np.full(500, np.nan))


def test_reliability_is_the_share_of_variance_that_two_policies_share():
    rng = np.random.default_rng(0)
    truth, errors = rng.normal(0, 2, 20_000), rng.normal(0, 1, (2, 20_000))
    assert margin_reliability(truth + errors[0], truth + errors[1]) == pytest.approx(0.8, abs=0.01)


@pytest.mark.untyped
def test_priors_agree_with_the_fit_and_with_each_other_where_data_are_plenty(simulate):
    margin, annotator, _ = simulate(200, 50, 0.5)
    result = fit(margin, annotator=annotator, num_samples=4000, family="gamma")
    answers = compare_priors(result)
    interval = tuple(np.quantile(result.posterior.cv, [0.05, 0.95]))
    for answer in answers:
        assert answer.cv_interval == pytest.approx(interval, abs=0.02)
        assert answer.probability_small < 1e-3


@pytest.mark.untyped
def test_priors_disagree_where_data_say_nothing():
    """Ten margins near zero: posterior is prior, whose 95% quantiles are known."""
    result = fit(1e-3 * np.array([1, 2, 3, 4, 5, -1, -2, -3, -4, -6.0]), beta=0.1, family="gamma")
    upper = {a.name: a.cv_interval[1] for a in compare_priors(result)}
    assert upper["half-normal, scale 1"] == pytest.approx(stats.halfnorm.ppf(0.95), abs=0.03)
    half = stats.halfnorm.ppf(0.95, scale=0.5)
    assert upper["half-normal, scale 0.5"] == pytest.approx(half, abs=0.03)
    assert upper["exponential, mean 0.5"] == pytest.approx(0.5 * np.log(20), abs=0.05)
    assert result.posterior.contraction()["cv"] == pytest.approx(0.0, abs=0.1)


def test_contraction_of_known_draws():
    """A half-normal of half the prior's scale has a quarter of its variance; so has the mean."""
    grid = (np.arange(20_000) + 0.5) / 20_000
    mean, cv = stats.lognorm.ppf(grid, 0.25), stats.halfnorm.ppf(grid, scale=0.5)
    draws = Posterior(mean, cv, "lognormal")
    assert draws.contraction() == pytest.approx({"cv": 0.75, "log_mean": 0.75}, abs=1e-3)
    assert list(replace(draws, mean_anchor="fixed").contraction()) == ["cv"]


def test_contraction_is_nearly_whole_where_data_are_plenty(simulate):
    margin, annotator, _ = simulate(200, 50, 0.5)
    assert fit(margin, annotator=annotator, family="gamma").posterior.contraction()["cv"] > 0.95


@pytest.mark.untyped
@pytest.mark.parametrize("people", [5, 40, None])
def test_margins_that_say_nothing_pass_at_their_level(people, failure_rate):
    """Rejections at 5% are binomial over the datasets, at most; margins have no variance.

    With people, their choices lean their own way, whatever the margins say.
    """
    datasets, rejected = 400, 0
    for seed in range(datasets):
        rng = np.random.default_rng((seed, 3))
        size = np.abs(rng.standard_cauchy(200))
        person = None if people is None else np.repeat(np.arange(people), 200 // people)
        lean = 0.5 if person is None else expit(rng.logistic(size=people))[person]
        margin = np.where(rng.random(200) < lean, size, -size)
        rejected += margin_evidence(read_choices(margin, person)) < 0.05
    assert rejected <= stats.binom.isf(failure_rate, datasets, 0.05)


@pytest.mark.parametrize("value", [1e3, 1e4, 1e10, -1e3, -1e9, -1e10])
def test_one_margin_does_not_decide_whether_margins_say_anything(value):
    """Of 500 ranks it holds one: z moves by at most 2 / sqrt(500 / 3), whatever its size."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, 500)
    for margin in (oriented(rng, x, 0.5), oriented(rng, x, expit(x))):
        with_it = np.append(margin, value)
        before, after = (
            stats.norm.isf(margin_evidence(read_choices(m))) for m in (margin, with_it)
        )
        assert abs(after - before) < 2 / np.sqrt(500 / 3)
        assert np.sign(after - before) == np.sign(value)


def test_evidence_of_margins_is_wilcoxons_test():
    rng = np.random.default_rng(0)
    margin = rng.normal(0.3, 2, 2_000)
    expected = stats.wilcoxon(margin, alternative="greater", method="asymptotic").pvalue
    assert margin_evidence(read_choices(margin)) == pytest.approx(expected, rel=0.01)
    balanced = read_choices([1.0, -1.0, 2.0, -2.0], ["a", "a", "b", "b"])
    assert margin_evidence(balanced) == 0.5


def test_rotations_of_large_bins_reject_as_permutations_do(monkeypatch, simulate):
    """Equal people: a p-value below 2% is unlikely; different ones: the least of 99."""
    monkeypatch.setattr(permutation, "_LARGE_BIN", 20)
    monkeypatch.setattr(permutation, "_shuffle", None)
    p_values = []
    for cv in (0.0, 0.8):
        margin, annotator, _ = simulate(60, 40, cv, seed=3)
        choices = read_choices(margin, annotator)
        p_values.append(permutation.permute_annotators(choices, num_permutations=99).p_value)
    assert p_values[0] > 0.02 and p_values[1] == 0.01
