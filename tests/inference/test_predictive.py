import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.special import expit

from mixdpo_pyro.inference import (
    Posterior,
    choice_probabilities,
    draw_margin_errors,
    fit,
    mean_choice_probability,
    read_choices,
    replicate_choices,
    sample_new_strengths,
)
from mixdpo_pyro.models import mixed_logit_log_prob


@pytest.fixture(scope="module")
def panel(simulate):
    margin, annotator, _ = simulate(10, 40, 0.6)
    return fit(margin, annotator=annotator, num_samples=4_000, family="gamma")


def test_seen_people_choose_by_their_own_strength(panel):
    value = choice_probabilities(panel.posterior, [5.0, -5.0, 20.0], annotator=[3, 3, 7])
    strength = panel.posterior.strength
    np.testing.assert_allclose(value[:, 0], expit(5 * strength[:, 3]))
    np.testing.assert_allclose(value[:, 0] + value[:, 1], 1.0)
    np.testing.assert_allclose(value[:, 2], expit(20 * strength[:, 7]))


@pytest.mark.parametrize("annotator", [None, ["new", "unknown"]])
def test_new_people_choose_by_the_distribution(panel, annotator):
    value = choice_probabilities(panel.posterior, [5.0, -12.0], annotator=annotator)
    for k in (0, 999):
        parameters = panel.posterior.mean[k], panel.posterior.cv[k]
        margin = torch.tensor([5.0, -12.0]).double()
        exact = mixed_logit_log_prob(margin, *parameters, family="gamma").exp()
        np.testing.assert_allclose(value[k], exact, rtol=1e-9)


def test_flipped_labels_pull_probabilities_to_one_half(simulate):
    result = fit(simulate(300, 1, 0.6)[0], flip_probability=0.1, family="gamma")
    value = choice_probabilities(result.posterior, [1e6, -1e6, 0.0])
    np.testing.assert_allclose(value.mean(0), [0.9, 0.1, 0.5], atol=0.01)


def test_replications_have_the_predicted_frequencies(panel, failure_rate):
    margin, annotator = [4.0, -9.0, 15.0, 4.0], [0, 5, "new", "new"]
    choices = replicate_choices(panel.posterior, margin, annotator=annotator)
    expected = choice_probabilities(panel.posterior, margin, annotator=annotator).mean(0)
    for k in range(4):
        count = int(choices[:, k].sum())
        assert stats.binomtest(count, 4_000, expected[k]).pvalue > failure_rate


def test_choices_of_one_new_person_share_the_strength(panel):
    """Choices of one person are correlated through the strength, of two people less so."""
    same = replicate_choices(panel.posterior, [30.0, 30.0], annotator=["new", "new"])
    other = replicate_choices(panel.posterior, [30.0, 30.0], annotator=["new", "other"])
    assert np.corrcoef(same.T)[0, 1] > 0.1 > np.corrcoef(other.T)[0, 1] + 0.02


def test_mean_probability_is_the_mean_over_draws_in_any_slices(panel, monkeypatch):
    margin = np.linspace(-30, 30, 50)
    annotator = np.arange(50) % 12
    whole = choice_probabilities(panel.posterior, margin, annotator=annotator).mean(0)
    monkeypatch.setattr("mixdpo_pyro.inference.predictive._CELLS", 4_000 * 7)
    np.testing.assert_allclose(
        mean_choice_probability(panel.posterior, margin, annotator=annotator), whole
    )


def test_new_strengths_have_the_mean_and_spread_of_the_distribution(panel):
    draws = sample_new_strengths(panel.posterior)
    mean, cv = panel.posterior.mean, panel.posterior.cv
    assert draws.mean() == pytest.approx(mean.mean(), abs=5 * draws.std() / np.sqrt(len(draws)))
    expected = np.mean((mean * cv) ** 2) + mean.var()
    assert draws.var() == pytest.approx(expected, rel=0.3)


def test_replications_repeat_for_a_seed_and_leave_the_global_generator(panel):
    state = torch.get_rng_state()
    first, second, other = (
        replicate_choices(panel.posterior, np.linspace(-9, 9, 20), annotator=["new"] * 20, seed=s)
        for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert torch.equal(torch.get_rng_state(), state)


# Errors of the margins


def erring(number, parameters, cv=0.5):
    """A known person of strength 0.8 and others around 1."""
    return Posterior(
        np.full(number, 1.0), np.full(number, cv), "gamma", strength=np.full((number, 1), 0.8),
        annotators=("known",), parameters={k: np.full(number, v) for k, v in parameters.items()},
    )  # fmt: skip


def over_errors(function, error):
    """Mean over a normal error of this size."""
    return quad(lambda e: stats.norm.pdf(e, scale=error) * function(e), -8 * error, 8 * error)[0]


def test_errors_of_the_margins_are_integrated_out():
    margin = np.array([0.0, 0.3, -1.5, 4.0, -20.0])
    posterior = erring(2, {"pair_error": 1.2})
    value = choice_probabilities(posterior, margin, annotator=["known"] * 5)[0]
    exact = [over_errors(lambda e, x=x: expit(0.8 * (x + e)), 1.2) for x in margin]
    np.testing.assert_allclose(value, exact, atol=5e-6)  # errors reach 4.5 deviations
    by_law = choice_probabilities(posterior, margin)[1]

    def chosen(x):
        return mixed_logit_log_prob(torch.tensor([x]).double(), 1.0, 0.5, "gamma").exp().item()

    exact = [over_errors(lambda e, x=x: chosen(x + e), 1.2) for x in margin]
    np.testing.assert_allclose(by_law, exact, atol=1e-5)
    none = choice_probabilities(erring(2, {"pair_error": 0.0}), margin)
    np.testing.assert_allclose(none, choice_probabilities(erring(2, {}), margin), atol=1e-5)


def test_judges_of_a_pair_share_its_error_and_others_do_not(failure_rate):
    """Of three judgements, two of one pair, from either side."""
    number, x = 4_000, 0.7
    posterior = erring(number, {"pair_error": 2.0})
    ids, margin = ["known"] * 3, np.array([x, -x, x])
    choices = read_choices(margin, ["a", "b", "c"], pair=["p", "p", "q"])
    error = draw_margin_errors(posterior, choices, np.random.default_rng(0))
    done = replicate_choices(posterior, margin, annotator=ids, error=error)
    favoured = np.where(margin > 0, done, ~done)
    once = over_errors(lambda e: expit(0.8 * (x + e)), 2.0)
    twice = over_errors(lambda e: expit(0.8 * (x + e)) ** 2, 2.0)
    for both, expected in (((0, 1), twice), ((0, 2), once**2)):
        count = int(favoured[:, both].all(1).sum())
        assert stats.binomtest(count, number, expected).pvalue > failure_rate
    alone = replicate_choices(posterior, margin, annotator=ids)
    count = int((alone[:, 0] & ~alone[:, 1]).sum())
    assert stats.binomtest(count, number, once**2).pvalue > failure_rate
    assert draw_margin_errors(erring(4, {}), choices, np.random.default_rng(0)) is None


def test_errors_of_responses_are_shared_by_pairs_that_have_one_in_common():
    """Towards the favoured one: a chosen twice, chosen and rejected, and chosen unfavoured."""
    choices = read_choices(
        [1.0, 2.0, 1.5, -1.0], [1, 2, 3, 4], response_a=list("aaca"), response_b=list("bcae")
    )
    posterior = erring(20_000, {"response_error": 0.5})
    error = draw_margin_errors(posterior, choices, np.random.default_rng(1))
    expected = 0.25 * np.array([[2, 1, -1, -1], [1, 2, -2, -1], [-1, -2, 2, 1], [-1, -1, 1, 2]])
    np.testing.assert_allclose(np.cov(error.T), expected, atol=0.02)
    np.testing.assert_allclose(posterior.margin_error, np.sqrt(0.5))
