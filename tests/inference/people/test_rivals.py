"""Rival models of how people differ, in worlds whose answer is known; the seeds are fixed.

What each model says in worlds of types was measured over more seeds (`benchmarks/rivals.py`).
"""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from scipy.stats import lognorm

from mixdpo_pyro.inference.methods.log_joint import Maximum
from mixdpo_pyro.inference.people.rivals.bridging import common_score
from mixdpo_pyro.inference.people.rivals.harness import (
    ONE_STRENGTH,
    RIVALS,
    Rival,
    make_folds,
    run_rival,
)
from mixdpo_pyro.inference.people.rivals.optimising import fit_logistic
from mixdpo_pyro.inference.people.rivals.records import (
    FittedRival,
    KnownChoices,
    project_embeddings,
)
from mixdpo_pyro.inference.people.rivals.scores import (
    _clustered,
    compare_rivals,
    find_winners,
    mark_badly_served,
)
from mixdpo_pyro.inference.people.rivals.strengths import _as_choices, _strength_masses
from mixdpo_pyro.inference.people.rivals.types import _run_em, agreement_directions, deal_folds

MODELS = {rival.name: rival for rival in RIVALS}


def streams(seed, number=5):
    return [np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(number)]


def decide(utility_of, person, responses, draws, choosing):
    """Chosen and rejected rows of responses, by each person's utilities."""
    number = len(responses)
    first = draws.integers(number, size=len(person))
    second = (first + draws.integers(1, number, size=len(person))) % number
    logit = ((responses[first] - responses[second]) * utility_of[person]).sum(1)
    is_first = choosing.random(len(person)) < expit(logit)
    return np.where(is_first, first, second), np.where(is_first, second, first)


def types_world(seed, num_types, people=40, each=40, size=3.0, features=6):
    """People of types with opposite or unrelated rewards; the margin is the mean reward."""
    people_rng, weights, texts, draws, choosing = streams(seed)
    kind = people_rng.permutation(np.arange(people) % num_types)
    reward = weights.normal(size=(num_types, features))
    reward *= size / np.linalg.norm(reward, axis=1, keepdims=True)
    response = texts.normal(size=(200, features))
    person = np.repeat(np.arange(people), each)
    chosen, rejected = decide(reward[kind], person, response, draws, choosing)
    margin = (response[chosen] - response[rejected]) @ reward.mean(0)
    embeddings = project_embeddings(response[chosen], response[rejected])
    margin /= np.sqrt((margin**2).mean())
    return KnownChoices(margin, person, people, embeddings), kind


def strengths_world(seed, spread=1.0, people=60, each=40):
    """People who want the same with lognormal strengths; margins alone."""
    people_rng, draws, choosing = streams(seed, 3)
    person = np.repeat(np.arange(people), each)
    strength = np.exp(spread * people_rng.normal(size=people) - spread**2 / 2)[person]
    margin = draws.normal(0, 2, len(person))
    is_first = choosing.random(len(person)) < expit(strength * margin)
    return KnownChoices(np.where(is_first, margin, -margin) / 2, person, people)


def share_recovered(found, truth):
    """Share of people whose type is the true one, types being numbered in the best order."""
    kinds = range(truth.max() + 1)
    return max(np.mean(np.array(order)[truth] == found - 1) for order in permutations(kinds))


@pytest.mark.untyped
@pytest.mark.parametrize("model", ["EM-DPO", "PAL-A", "PAL-B"])
@pytest.mark.parametrize("num_types", [2, 3])
def test_planted_types_are_recovered(model, num_types):
    choices, kind = types_world(num_types, num_types)
    fitted = MODELS[model].fit(choices, {"types": num_types, "ridge": 1.0}, 0)
    assert share_recovered(fitted.people["type"], kind) >= 0.9
    share = np.stack([fitted.people[f"type_{k + 1}"] for k in range(num_types)])
    np.testing.assert_allclose(share.sum(0), 1)


@pytest.mark.untyped
def test_signed_strengths_are_recovered_from_margins_alone():
    """A third of the people want the opposite."""
    choices = strengths_world(3, spread=0.0)
    contrary = np.arange(60) % 3 == 0
    margin = np.where(contrary[choices.annotator], -choices.margin, choices.margin)
    fitted = MODELS["types of strength"].fit(replace(choices, margin=margin), {"types": 2}, 0)
    assert share_recovered(fitted.people["type"], contrary.astype(int)) == 1


def test_em_moves_from_a_random_start():
    """With the E-step on the votes just trained on it does not."""
    choices, kind = types_world(0, 2)
    rng = np.random.default_rng(5)
    label = rng.integers(2, size=40)
    member = np.where(label[:, None] == np.arange(2), 0.9, 0.1)
    half = deal_folds(choices.annotator, 2, rng)
    ridge = np.ones(choices.features.shape[1])
    assert share_recovered(label + 1, kind) < 0.7
    run = _run_em(choices, member, ridge, half)
    assert share_recovered(run.member.argmax(1) + 1, kind) >= 0.9


@pytest.mark.untyped
def test_where_people_are_alike_nothing_gains_by_people():
    choices, _ = types_world(1, 1, people=20, each=20, features=2)
    rivals = [replace(rival, settings=rival.settings[-1:]) for rival in RIVALS[:-3]]
    scores, _ = compare_rivals(choices, make_folds(choices.annotator, 2), rivals=rivals)
    assert [score.model for score in scores] == [rival.name for rival in rivals]
    assert find_winners(scores, "people_gain") == []
    assert all(score.people_gain < 0.01 for score in scores)


@pytest.mark.untyped
def test_where_strengths_differ_distributions_win_and_no_accuracy_is_gained():
    choices = strengths_world(7)
    scores, _ = compare_rivals(choices, make_folds(choices.annotator, 3))
    assert set(find_winners(scores)[:2]) == {"lognormal with ids", "gamma with ids"}
    assert all(abs(score.accuracy_gain) < 1e-12 for score in scores[:3])  # strengths are positive
    types = next(score for score in scores if score.model == "types of strength")
    assert types.accuracy_gain < 2 * types.accuracy_gain_se + 1e-9


def polarised_world(seed, people=60, each=60, features=6):
    """A common score, and a factor on which four in five people are on one side."""
    weights, texts, draws, choosing = streams(seed, 4)
    common, factor = weights.normal(size=(2, features))
    side = np.where(np.arange(people) % 5, 1.0, -1.0)
    response = texts.normal(size=(200, features))
    person = np.repeat(np.arange(people), each)
    utility = common + 1.5 * side[:, None] * factor
    chosen, rejected = decide(utility, person, response, draws, choosing)
    # Margins say nothing: the score has to come from the choices.
    margin = draws.normal(size=len(person))
    embeddings = project_embeddings(response[chosen], response[rejected])
    rows = np.concatenate([chosen, rejected])
    numbers = np.concatenate([embeddings.chosen, embeddings.rejected])
    truth = np.empty(len(embeddings.response))
    truth[numbers] = response[rows] @ common
    return KnownChoices(margin, person, people, embeddings), truth, side


def test_bridging_finds_the_common_score_where_the_majority_hides_it():
    choices, truth, side = polarised_world(0)
    score = common_score(choices, {"ridge": 0.5, "factor": 0.1})
    theta = fit_logistic(choices.features, np.ones(choices.features.shape[1]))
    majority = choices.embeddings.response @ theta[1:]
    assert np.corrcoef(majority, truth)[0, 1] < 0.8
    assert np.corrcoef(score, truth)[0, 1] > 0.95
    fitted = MODELS["bridging"].fit(choices, {"ridge": 0.5, "factor": 0.1}, 0)
    assert np.array_equal(np.sign(fitted.people["factor"]), side)


@pytest.mark.untyped
def test_one_strength_is_the_maximum_of_the_likelihood():
    choices = strengths_world(2)
    fitted = MODELS[ONE_STRENGTH].fit(choices, {}, 0)
    best = minimize_scalar(lambda b: -log_expit(b * choices.margin).sum(), bounds=(0, 20))
    np.testing.assert_allclose(fitted.log_prob(choices).sum(), -best.fun, rtol=1e-8)


def test_lognormal_with_ids_predicts_as_the_integral_over_its_strength():
    choices = strengths_world(4, people=5, each=12)
    known = _as_choices(choices)

    best = Maximum(1.5, 0.8, 0.0, 0.0)
    beta, mass = _strength_masses(known, 5, best, "lognormal")
    spread = np.sqrt(np.log1p(best.cv**2))
    prior = lognorm(spread, scale=best.mean * np.exp(-(spread**2) / 2))
    mine = choices.margin[choices.annotator == 3]

    def joint(u, extra=0.0):
        likelihood = np.exp(log_expit(np.exp(u) * mine).sum())
        return (
            prior.pdf(np.exp(u))
            * np.exp(u)
            * likelihood
            * expit(np.exp(u) * extra) ** (extra != 0)
        )

    wanted = quad(joint, -8, 5, args=(0.7,))[0] / quad(joint, -8, 5)[0]
    np.testing.assert_allclose(mass[3] @ expit(0.7 * beta), wanted, rtol=1e-6)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_either_response_is_chosen_with_probability_one(rival):
    choices, _ = types_world(0, 2, people=10, each=20)
    fitted = rival.fit(choices, {**rival.settings[-1], "starts": 1}, 0)
    total = np.exp(fitted.log_prob(choices)) + np.exp(fitted.log_prob(choices.swapped()))
    np.testing.assert_allclose(total, 1, rtol=1e-9)


# The harness


def test_folds_deal_out_the_choices_of_each_person():
    annotator = np.random.default_rng(0).integers(30, size=200)
    annotator[annotator == 7] = 30
    annotator[0] = 7  # one choice only
    folds = make_folds(annotator, 4)
    count = np.stack([np.bincount(annotator[folds.fold == k], minlength=31) for k in range(4)])
    assert (np.ptp(count, axis=0) <= 1).all()
    assert np.array_equal(np.flatnonzero(folds.fold < 0), np.flatnonzero(annotator == 7))
    for train, held in folds:
        assert not set(train) & set(held)
        assert set(annotator[held]) <= set(annotator[train])
    assert np.array_equal(folds.is_scored, folds.fold >= 0)


def test_groups_are_held_out_whole_and_their_people_known():
    rng = np.random.default_rng(1)
    annotator, topic = rng.integers(12, size=300), rng.integers(7, size=300)
    topic[annotator == 3] = 2  # known from one topic only: never scores
    folds = make_folds(annotator, 3, topic)
    scored = 0
    for train, held in folds:
        assert not set(topic[train]) & set(topic[held])
        assert set(annotator[held]) <= set(annotator[train])
        scored += len(held)
    assert scored == (annotator != 3).sum() == folds.is_scored.sum()


def test_no_model_sees_what_it_is_judged_on():
    choices = strengths_world(0, people=12, each=10)
    topic = np.tile(np.arange(5), 24)
    seen = []

    def fit(part, setting, seed):
        rows = np.flatnonzero(np.isin(choices.margin, part.margin))
        seen.append((rows, setting))

        def log_prob(held):
            judged = np.flatnonzero(np.isin(choices.margin, held.margin))
            assert not set(rows) & set(judged)
            assert not set(topic[rows]) & set(topic[judged])
            return np.full(len(held), -1.0)

        return FittedRival(1, log_prob)

    rival = Rival("spy", "margins", fit, ({"ridge": 1.0}, {"ridge": 2.0}), "spy")
    folds = make_folds(choices.annotator, 5, topic)
    held = run_rival(rival, choices, folds, topic)
    assert (held.log_prob == -1).all()
    assert len(seen) == 5 * 3 + 1 and len(seen[-1][0]) == len(choices)


def test_people_with_two_choices_are_enough():
    choices = strengths_world(0, people=30, each=2)
    folds = make_folds(choices.annotator, 2)
    held = run_rival(MODELS["strength per person"], choices, folds)
    assert np.isfinite(held.log_prob).all()
    topic = np.arange(60) % 2  # one group is left to train on
    held = run_rival(MODELS["types of strength"], choices, make_folds(choices.annotator, 2, topic))
    assert np.isfinite(held.log_prob).all()


def test_there_must_be_groups_and_known_people():
    with pytest.raises(ValueError, match="several groups to hold out, got one"):
        make_folds(np.array([0, 0, 1]), 2, np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="choices in two folds, got none"):
        make_folds(np.array([0, 1, 2]), 2)


def test_standard_errors_count_people_not_choices():
    value = np.random.default_rng(0).normal(size=50)
    alone = _clustered(value, np.arange(50))
    np.testing.assert_allclose(alone, (value.mean(), value.std(ddof=1) / np.sqrt(50)))
    np.testing.assert_allclose(_clustered(np.tile(value, 9), np.tile(np.arange(50), 9)), alone)


def test_badly_served_people_are_those_who_want_the_opposite():
    choices = strengths_world(5, spread=0.0)
    contrary = choices.annotator >= 54
    margin = np.where(contrary, -choices.margin, choices.margin)
    folds = make_folds(choices.annotator, 5)
    found = mark_badly_served(replace(choices, margin=margin), folds)
    assert np.array_equal(found.label == 0, contrary & folds.is_scored)


@pytest.mark.untyped
def test_agreement_points_where_people_differ():
    choices, _, _ = polarised_world(1)
    axes, person = agreement_directions(choices, np.ones(7))
    place = person @ axes[:, 0]
    side = np.where(np.arange(60) % 5, 1.0, -1.0)
    assert abs(np.corrcoef(place, side)[0, 1]) > 0.9


def test_projected_embeddings_keep_distances_and_do_not_see_the_choice():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20, 5)).astype(np.float32)
    first, second = rng.integers(10, size=40), rng.integers(10, 20, size=40)
    found = project_embeddings(table[first], table[second], components=5)
    mirror = project_embeddings(table[second], table[first], components=5)
    assert len(found.response) == len(np.unique(np.concatenate([first, second])))
    length = [
        np.linalg.norm(e.response[e.chosen] - e.response[e.rejected], axis=1)
        for e in (found, mirror)
    ]
    truth = np.linalg.norm(table[first] - table[second], axis=1)
    np.testing.assert_allclose(length[0] / length[0][0], truth / truth[0], rtol=1e-5)
    np.testing.assert_allclose(length[0], length[1], rtol=1e-9)
    np.testing.assert_allclose((length[0] ** 2).mean(), 1)
    assert project_embeddings(table[first], table[second], components=2).response.shape[1] == 2
    with pytest.raises(ValueError, match="embeddings that differ"):
        project_embeddings(table, table)
