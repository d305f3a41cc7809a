"""Choices that are not plain pairs: reading, likelihood, inference and prediction."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixdpo_pyro.inference import (
    Design,
    Posterior,
    diagnose_choices,
    fit,
    leave_one_out,
    permute_annotators,
    read_choices,
    replicate_outcomes,
    simulate,
    to_arviz,
)
from mixdpo_pyro.inference.choices import Choices, select_annotators, with_margins
from mixdpo_pyro.inference.likelihood.panels import tabulate
from mixdpo_pyro.inference.methods.thresholds import ThresholdJoint, fit_thresholds
from mixdpo_pyro.inference.outcomes import Outcomes
from mixdpo_pyro.inference.robustness.covariates import fit_covariate
from mixdpo_pyro.inference.robustness.scale import margin_evidence
from mixdpo_pyro.models import cv_prior
from mixdpo_pyro.models.observation import (
    Davidson,
    Graded,
    Lapse,
    Ranking,
    RaoKupper,
    observed_log_prob,
)

KINDS = ["ties", "grades:5", "grades:4", "best-of:4", "ranking:3"]


def world(kind: str, annotators: int = 20, each: int = 6, cv: float = 0.5, seed: int = 0):
    design = Design(annotators, each, spread=2.0, beta=1.0, kind=kind)
    return simulate(1.0, cv, "lognormal", design, np.random.default_rng((7, seed)))


def read(found) -> Choices:
    return read_choices(found.margin, found.annotator, **found.done)


# Reading


def test_sets_of_one_row_are_pairs():
    choices = read_choices([1.0, -2.0, 0.5], choice_set=["x", "y", "z"])
    assert choices.outcomes is None and choices.num_choices == 3


def test_rows_of_a_set_are_one_choice():
    choices = read_choices([1.0, 2.0, -1.0, 0.5], ["a", "a", "b", "b"], choice_set=[5, 5, 7, 7])
    assert choices.num_choices == 2 and choices.num_pairs == 4
    assert not choices.has_panels  # each chose once
    assert choices.describe() == "2 choices among 3 responses"


def test_wins_and_losses_without_ties_are_pairs():
    choices = read_choices([1.0, 2.0, 3.0], outcome=["win", "loss", "win"])
    assert choices.outcomes is None
    np.testing.assert_array_equal(choices.margin, [1.0, -2.0, 3.0])


@pytest.mark.parametrize(
    ("ranks", "codes"),
    [
        ([2, 3, 4], [2, 3, 4]),
        ([2, 2, 2], [0, 0, 0]),
        ([3, 2, 3], [0, 2, 0]),
        ([2, None, None], [2, 0, 0]),
        ([None, None, None], [0, 0, 0]),
    ],
)
def test_only_the_last_rank_may_be_shared(ranks, codes):
    choices = read_choices([1.0, 2.0, 3.0], choice_set=["s"] * 3, rank=ranks)
    np.testing.assert_array_equal(choices.outcomes.code, codes)


@pytest.mark.parametrize("ranks", [[2, 4, 3.5], [3, 4, 5], [2, 2, 3], [1, 2, 3], [2, 2, None]])
def test_impossible_ranks_raise(ranks):
    with pytest.raises(ValueError, match=r"Expected ranks 2, 3, .* in the set 's'"):
        read_choices([1.0, 2.0, 3.0], choice_set=["s"] * 3, rank=ranks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": [2, 3, 4]}, "Expected a choice_set with rank"),
        ({"choice_set": ["s", "s", "t"], "outcome": ["win", "tie", "win"]}, "outcomes of pairs"),
        ({"outcome": ["win", "tie", "draw"]}, "got 'draw' at index 2"),
        ({"outcome": [1, 0.5, 0]}, "got 0.5 at index 1"),
        ({"outcome": [True, False, True]}, "got True at index 0"),
        ({"outcome": ["win", "tie"]}, r"one outcome per margin \(3\), got 2"),
        ({"outcome": [0, 0, 0]}, "got ties only"),
        ({"choice_set": ["s", "t"]}, r"one choice_set id per margin \(3\), got 2"),
        (
            {"annotator": ["a", "b", "b"], "choice_set": ["s", "s", "t"]},
            "one annotator per choice set, got a and b in 's'",
        ),
    ],
)
def test_unusable_outcomes_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_choices([1.0, 2.0, 3.0], **arguments)


@pytest.mark.wrong_types
def test_unknown_models_of_ties_raise():
    with pytest.raises(ValueError, match="ties to be one of rao-kupper, davidson"):
        read_choices([1.0, 2.0, 3.0], outcome=[1, 0, 0], ties="coin")


def test_sets_lose_responses_without_a_margin_and_rankings_close_ranks():
    choices = read_choices([1.0, 2.0, 3.0, 4.0], choice_set=[1, 1, 1, 2], rank=[2, 3, 4, None])
    kept = with_margins(choices, np.array([1.0, np.nan, 3.0, 4.0]))
    np.testing.assert_array_equal(kept.outcomes.code, [2, 3, 0])
    np.testing.assert_array_equal(kept.outcomes.choice, [0, 0, 1])


def test_some_annotators_keep_their_sets():
    choices = read(world("ranking:3", annotators=5, each=2))
    some = select_annotators(choices, np.array([1, 3]))
    assert some.labels == ("1", "3") and some.num_choices == 4
    np.testing.assert_array_equal(np.bincount(some.choice), [2, 2, 2, 2])


@pytest.mark.untyped
def test_agreement_of_a_set_is_that_the_best_response_was_chosen():
    choices = read_choices([1.0, 2.0, -1.0, 0.5, 0.0, 3.0], choice_set=[0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(choices.agrees, [1.0, 0.0, 0.5])


# Likelihood

MODELS = {
    "ties": RaoKupper(0.7),
    "davidson": Davidson(0.8),
    "grades:5": Graded(torch.tensor([0.7, 2.1]).double()),
    "best-of:4": Ranking(1),
    "ranking:3": Ranking(),
}


def oracle(
    choices: Choices, mean: float, cv: float, family: str, by_annotator: bool
) -> np.ndarray:
    """By the quadrature of the models, which looks for the mode of every integrand."""
    outcomes = choices.outcomes
    if outcomes.are_sets:
        margin, outcome, sets = outcomes.utilities(choices.margin)
        owner = torch.from_numpy(choices.by_choice(choices.annotator))[sets]
    else:
        margin, outcome = torch.from_numpy(choices.margin), torch.from_numpy(outcomes.code)
        sets, owner = None, torch.from_numpy(choices.annotator)
    ids = {"annotator": owner} if by_annotator else {}
    value = observed_log_prob(
        outcomes.observation, margin, mean, cv, family, outcome=outcome, choice_set=sets, **ids
    )
    return value.numpy()


@pytest.mark.parametrize("by_annotator", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_tables_hold_the_marginal_likelihood(kind, by_annotator):
    """Wide and narrow distributions; without ids every choice is another annotator's."""
    choices = read(world("ties" if kind == "davidson" else kind, 8, 5))
    choices = replace(choices, outcomes=replace(choices.outcomes, observation=MODELS[kind]))
    units = choices if by_annotator else replace(choices, annotator=None, labels=())
    for family in ("lognormal", "gamma"):
        table = tabulate(units, family)
        for mean, cv in ((1.0, 0.6), (2.5, 0.05)):
            point = torch.tensor([mean]).double(), torch.tensor([cv]).double()
            expected = oracle(choices, mean, cv, family, by_annotator)
            found = table.per_annotator(*point)[:, 0].numpy()
            tolerance = 1e-7 if by_annotator else 2e-6
            np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


def test_careless_judgements_are_those_of_the_lapse_model():
    choices = read(world("grades:5", 6, 4))
    careless = Lapse(choices.outcomes.observation, 0.2)
    point = torch.tensor([1.0]).double(), torch.tensor([0.5]).double()
    by_flip = tabulate(choices, "lognormal", flip_probability=0.1)
    lapsing = replace(choices, outcomes=replace(choices.outcomes, observation=careless))
    expected = oracle(lapsing, 1.0, 0.5, "lognormal", True)
    np.testing.assert_allclose(by_flip.per_annotator(*point)[:, 0], expected, atol=1e-7)


def test_sets_of_two_are_the_binary_likelihood():
    rng = np.random.default_rng(3)
    margin, annotator = rng.normal(0.5, 2, 60), np.repeat(np.arange(10), 6)
    pairs = read_choices(margin, annotator)
    sets = replace(pairs, outcomes=Outcomes.of(Ranking(1), np.arange(60), np.zeros(60, int)))
    point = torch.tensor([0.5, 2.0]).double(), torch.tensor([0.3, 1.0]).double()
    first, second = (tabulate(c, "gamma").per_annotator(*point) for c in (pairs, sets))
    torch.testing.assert_close(first, second, atol=1e-11, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_negative_strengths_turn_preferences_around(kind):
    """The normal family: choices under -beta are those of turned margins under beta."""
    from mixdpo_pyro.inference.likelihood.panels import log_likelihood_at

    choices = read(world(kind, 4, 3))
    beta = torch.tensor([0.3, 1.7]).double()
    turned = replace(choices, margin=-choices.margin)
    torch.testing.assert_close(log_likelihood_at(-beta, choices), log_likelihood_at(beta, turned))


# Inference


@pytest.mark.untyped
@pytest.mark.parametrize("kind", ["best-of:4", "ranking:3", "grades:5"])
def test_order_of_rows_changes_nothing(kind):
    found = world(kind, 12, 5)
    order = np.random.default_rng(1).permutation(len(found.margin))
    done = {name: value[order] for name, value in found.done.items()}
    first = fit(found.margin, annotator=found.annotator, beta=1.0, **found.done)
    second = fit(found.margin[order], annotator=found.annotator[order], beta=1.0, **done)
    np.testing.assert_allclose(first.posterior.cv, second.posterior.cv, rtol=1e-7)
    np.testing.assert_allclose(first.maximum.log_likelihood, second.maximum.log_likelihood)


@pytest.mark.untyped
@pytest.mark.parametrize("ties", ["rao-kupper", "davidson"])
def test_swapping_the_responses_mirrors_ties_and_grades(ties):
    found = world("ties" if ties == "davidson" else "grades:5", 12, 5)
    turn = np.where(np.random.default_rng(2).random(len(found.margin)) < 0.5, 1, -1)
    first, second = (
        fit(sign * found.margin, annotator=found.annotator, beta=1.0, ties=ties,
            outcome=sign * found.done["outcome"])
        for sign in (1, turn)
    )  # fmt: skip
    np.testing.assert_allclose(first.posterior.cv, second.posterior.cv, rtol=1e-6)
    for name, draws in first.posterior.parameters.items():
        np.testing.assert_allclose(draws, second.posterior.parameters[name], rtol=1e-6)


@pytest.mark.untyped
@pytest.mark.parametrize("family", ["lognormal", "fixed"])
def test_posterior_of_thresholds_is_that_of_brute_force(family):
    """A lattice over log mean, cv and log threshold, with the exact likelihood at each point."""
    choices = read(world("ties", 20, 6, seed=4))
    joint = ThresholdJoint(choices, family, "prior", 1.0)
    draws = fit_thresholds(joint, 20_000, 0)
    vector = np.log(0.7) + np.linspace(-1.0, 1.0, 25)
    log_mean, cv = np.linspace(-1.2, 1.4, 40), np.linspace(0.005, 2.2, 60)
    cvs = cv if family == "lognormal" else np.zeros(1)
    mean_axis, cv_axis = (x.ravel() for x in np.meshgrid(log_mean, cvs, indexing="ij"))
    density = np.empty((len(vector), len(log_mean), len(cvs)))
    for k, u in enumerate(vector):
        at = joint.at(np.array([u]), family)
        value = at.penalised(mean_axis, cv_axis) - 0.5 * (u - joint._location[0]) ** 2
        density[k] = value.reshape(len(log_mean), len(cvs))
    density += cv_prior().log_prob(torch.from_numpy(np.maximum(cvs, 1e-9))).numpy()
    weight = np.exp(density - density.max())
    weight /= weight.sum()
    found = {0: draws.vector[:, 0], 1: np.log(draws.mean), 2: draws.cv}
    for axis, grid in ((0, vector), (1, log_mean), (2, cvs)):
        marginal = weight.sum(tuple({0, 1, 2} - {axis}))
        centre = marginal @ grid
        deviation = np.sqrt(marginal @ (grid - centre) ** 2)
        # The worst is the log mean's skew: a tenth of a deviation, beside 0.01 of Monte Carlo.
        assert abs(found[axis].mean() - centre) <= 0.1 * deviation + 1e-9
        assert found[axis].std() == pytest.approx(deviation, rel=0.08, abs=1e-9)


@pytest.mark.untyped
def test_maximum_is_above_every_neighbour():
    choices = read(world("grades:5", 25, 8, cv=0.8, seed=1))
    joint = ThresholdJoint(choices, "lognormal", "prior", 1.0)
    draws = fit_thresholds(joint, 100, 0)
    centre = np.array([np.log(draws.maximum.mean), *np.median(draws.vector, axis=0)])
    rng = np.random.default_rng(0)
    near = centre + 0.05 * rng.standard_normal((8, 3))
    for cv in draws.maximum.cv * np.array([0.9, 1.0, 1.1]):
        assert (joint.penalised(near, cv) <= draws.maximum.penalised + 1e-2).all()


@pytest.mark.untyped
@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_found(kind):
    """Within 4 posterior deviations: fails once in 10,000 worlds of each kind."""
    found = world(kind, 80, 10, seed=5)
    posterior = fit(found.margin, annotator=found.annotator, beta=1.0, **found.done).posterior
    truth = {"mean": 1.0, "cv": 0.5}
    scalars = {"mean": posterior.mean, "cv": posterior.cv, **posterior.scalars}
    truth |= {"threshold": 0.7, "cut_points[1]": 0.7, "cut_points[2]": 2.1}
    for name, draws in scalars.items():
        assert abs(draws.mean() - truth[name]) < 4 * draws.std()


def test_best_of_four_of_equal_people_is_never_called_heterogeneous():
    """Of 3 worlds none, each at 5%: fails once in 7 draws of the seeds, which are fixed."""
    verdicts = []
    for seed in range(3):
        found = world("best-of:4", 80, 8, cv=0.0, seed=seed)
        diagnosis = diagnose_choices(
            found.margin, annotator=found.annotator, **found.done, thorough=False,
            families=("lognormal",), num_samples=300,
        )  # fmt: skip
        verdicts.append(diagnosis.verdict)
    assert [v.value for v in verdicts].count("heterogeneous") == 0


def test_thresholds_take_no_other_method():
    found = world("ties", 5, 4)
    with pytest.raises(ValueError, match="method='laplace' without further options for ties"):
        fit(found.margin, outcome=found.done["outcome"], method="nuts")


@pytest.mark.untyped
@pytest.mark.parametrize("method", ["svi", "nuts"])
def test_other_methods_take_sets(method):
    """Means of cv within four standard errors of NUTS: fails once in 10,000 seeds."""
    found = world("best-of:4", 30, 6, seed=2)
    options = {"num_warmup": 100} if method == "nuts" else {}
    first, second = (
        fit(found.margin, annotator=found.annotator, beta=1.0, num_samples=400,
            draw_strengths=False, method=m, **found.done, **(options if m == method else {}))
        for m in ("laplace", method)
    )  # fmt: skip
    difference = first.posterior.cv.mean() - second.posterior.cv.mean()
    assert abs(difference) < 0.35 * first.posterior.cv.std()


# Prediction and export


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_leave_one_out_are_choices(kind):
    found = world(kind, 30, 2, seed=3)
    choices = read_choices(found.margin, **found.done)
    result = fit(choices, beta=1.0, num_samples=200)
    loo = leave_one_out(result)
    assert loo.num_units == len(loo.pointwise) == 60
    assert loo.elpd < result.log_likelihood < 0


@pytest.mark.untyped
def test_replicated_outcomes_have_the_probabilities_of_the_model():
    """20,000 draws of each: within 4.5 standard errors, so that one seed in 10,000 fails."""
    margin = np.array([0.0, 1.5])
    choices = read_choices(np.append(margin, -4.0), outcome=["win", "tie", "loss"])
    size = 20_000
    posterior = Posterior(
        mean=np.full(size, 0.8), cv=np.zeros(size), family="fixed", observation="rao-kupper",
        parameters={"threshold": np.full(size, 0.4)},
    )  # fmt: skip
    drawn = replicate_outcomes(posterior.take(np.arange(4_000)), choices)[:, :2]
    expected = RaoKupper(0.4).probabilities(torch.from_numpy(margin), 0.8).numpy()
    for k in range(3):
        share = (drawn == k).mean(0)
        error = np.sqrt(expected[:, k] * (1 - expected[:, k]) / len(drawn))
        assert (np.abs(share - expected[:, k]) < 4.5 * error).all()


def test_replicated_sets_choose_by_utility():
    choices = read_choices([2.0, 3.0, 0.5, 1.0], choice_set=[0, 0, 1, 1])
    posterior = Posterior(mean=np.full(3_000, 50.0), cv=np.zeros(3_000), family="fixed")
    assert (replicate_outcomes(posterior, choices) == 0).all()


def test_replicated_sets_are_careless_as_often_as_was_assumed():
    """At an enormous strength only lapses choose worse responses: 2/3 of 2 * 0.1 of the sets.

    4,000 draws of 2 sets, within 4.5 standard errors.
    """
    choices = read_choices([2.0, 3.0, 0.5, 1.0], choice_set=[0, 0, 1, 1])
    posterior = Posterior(
        mean=np.full(4_000, 100.0), cv=np.zeros(4_000), family="fixed", flip_probability=0.1
    )
    share = (replicate_outcomes(posterior, choices) > 0).mean()
    expected = 0.2 * 2 / 3
    assert abs(share - expected) < 4.5 * np.sqrt(expected * (1 - expected) / 8_000)


@pytest.mark.untyped
@pytest.mark.parametrize("kind", KINDS)
def test_arviz_holds_a_choice_per_choice(kind):
    found = world(kind, 10, 4)
    result = fit(found.margin, annotator=found.annotator, beta=1.0, num_samples=50, **found.done)
    tree = to_arviz(result)
    assert tree["observed_data"]["choice"].shape == (40,)
    assert tree["posterior_predictive"]["choice"].shape == (1, 50, 40)
    assert tree["log_likelihood"]["choices"].shape == (1, 50, 10)
    for name in result.posterior.parameters:
        assert name in tree["posterior"] and name in tree["prior"]


def test_posteriors_with_thresholds_are_stored_whole(tmp_path):
    found = world("grades:5", 10, 4)
    posterior = fit(found.margin, annotator=found.annotator, **found.done).posterior
    stored = Posterior.load(posterior.save(tmp_path / "posterior.nc"))
    assert stored.observation == "grades"
    np.testing.assert_array_equal(
        stored.parameters["cut_points"], posterior.parameters["cut_points"]
    )
    assert "cut_points[2]" in stored.summary().index


# Robustness


@pytest.mark.untyped
@pytest.mark.parametrize("kind", ["best-of:4", "grades:5"])
def test_permutation_of_choices_has_its_level(kind):
    """Of 60 equal worlds at most 9 rejected at 5%: fails once in 1,000 draws of the seeds."""
    rejected = 0
    for seed in range(60):
        choices = read(world(kind, 30, 6, cv=0.0, seed=100 + seed))
        rejected += permute_annotators(choices, num_permutations=99, seed=seed).p_value <= 0.05
    assert rejected <= 9


@pytest.mark.parametrize("kind", ["best-of:4", "grades:5"])
def test_permutation_of_choices_sees_differences(kind):
    choices = read(world(kind, 60, 20, cv=1.0, seed=3))
    assert permute_annotators(choices, num_permutations=199).p_value < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_margins_that_say_nothing_have_no_evidence(kind):
    """Of 40 worlds without strength at most 7 below 5%: fails twice in 1,000."""
    found = 0
    for seed in range(40):
        design = Design(15, 4, spread=1e-6, beta=1.0, kind=kind)
        drawn = simulate(1.0, 0.1, "lognormal", design, np.random.default_rng((8, seed)))
        found += margin_evidence(read(drawn)) < 0.05
    assert found <= 7


def test_covariates_of_sets_allow_for_dependent_rows():
    """z of a covariate without effect has a deviation of one: 60 worlds, within 4 of its errors.

    Taking rows for independent would put it at 1.3.
    """
    z = []
    for seed in range(60):
        found = world("best-of:4", 100, 1, cv=0.0, seed=200 + seed)
        rng = np.random.default_rng((9, seed))
        value = rng.normal(0, 1, (100, 4))
        covariate = (value[:, :1] - value[:, 1:]).ravel()
        z.append(fit_covariate(read(found), covariate).z)
    assert np.std(z) == pytest.approx(1.0, abs=4 / np.sqrt(2 * 60))
