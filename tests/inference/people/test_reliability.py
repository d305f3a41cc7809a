"""Is strength a trait? Simulated people whose answer is known.

The seeds are fixed. Of 100 others (`benchmarks/reliability.py`) at most three of a world had
another answer than the one that is asserted.
"""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit, log_expit
from scipy.stats import norm

from mixdpo_pyro.inference import estimate_reliability, fit, read_choices
from mixdpo_pyro.inference.people.reliability import _Parts, _random_halves


def world(rng, between, within, people=80, each=48, topics=4, shift=0.5):
    """Choices of people with strengths of their own, overall and by topic; topics have scales."""
    person = np.repeat(np.arange(people), each)
    topic = np.tile(np.arange(each) % topics, people)
    log_strength = between * rng.normal(size=people)[person]
    log_strength += within * rng.normal(size=(people, topics))[person, topic]
    log_strength += rng.normal(0, shift, topics)[topic]
    x = rng.normal(0, 2, len(person))
    is_first = rng.random(len(person)) < expit(np.exp(log_strength) * x)
    return np.where(is_first, x, -x), person, topic


def fitted(margin, person):
    return fit(margin, annotator=person, beta=1.0, draw_strengths=False, num_samples=50)


@pytest.fixture(scope="module")
def stable():
    margin, person, topic = world(np.random.default_rng(1), 0.7, 0.0)
    return fitted(margin, person), topic


def test_a_trait_is_the_same_in_halves_and_topics(stable):
    result, topic = stable
    halves = estimate_reliability(result, num_bootstrap=200)
    topics = estimate_reliability(result, topic, name="topic", num_bootstrap=200)
    assert (halves.value, topics.value) == ("stable", "stable")
    assert halves.correlation > 0.85 and topics.correlation > 0.85
    assert (halves.parts, halves.num_parts, topics.parts, topics.num_parts) == (
        "halves", 2, "topic", 4,
    )  # fmt: skip
    assert topics.sd_between == pytest.approx(0.7, abs=0.2)


@pytest.mark.untyped
def test_estimates_of_halves_are_attenuated_and_the_correlation_is_not(stable):
    halves = estimate_reliability(stable[0], num_bootstrap=200)
    observed, low, high = halves.observed
    assert low < observed < high < halves.correlation
    assert halves.whole[0] == pytest.approx(2 * observed / (1 + observed), abs=0.02)


def test_strengths_drawn_anew_for_each_topic_are_no_trait():
    margin, person, topic = world(np.random.default_rng(2), 0.0, 0.7)
    found = estimate_reliability(fitted(margin, person), topic, name="topic", num_bootstrap=200)
    assert found.value == "unstable"
    assert found.correlation < 0.2 and found.interval[0] < 0.05
    assert "Less than half" in found.reason and "'topic'" in found.reason


def test_equal_strengths_cannot_be_stable():
    margin, person, topic = world(np.random.default_rng(3), 0.0, 0.0)
    result = fitted(margin, person)
    for group in (None, topic):
        found = estimate_reliability(result, group, num_bootstrap=100)
        assert found.value == "cannot tell" and found.p_value > 0.05
        assert "fit equal strengths" in found.reason


def test_few_choices_and_few_people_cannot_tell():
    margin, person, _ = world(np.random.default_rng(4), 0.7, 0.0, people=9)
    found = estimate_reliability(fitted(margin, person), num_bootstrap=100)
    assert found.value == "cannot tell" and "9 annotators" in found.reason
    margin, person, _ = world(np.random.default_rng(5), 0.7, 0.0, people=40, each=6)
    assert estimate_reliability(fitted(margin, person), num_bootstrap=100).value == "cannot tell"


def test_people_who_stand_in_one_topic_each_cannot_tell():
    margin, person, _ = world(np.random.default_rng(6), 0.7, 0.0, people=40)
    found = estimate_reliability(fitted(margin, person), person % 4, name="topic")
    assert found.value == "cannot tell" and found.num_people == 0


def test_errors_of_responses_of_their_own_are_no_strength():
    """Everybody is alike; each judges twelve responses of their own, whose margins have errors."""
    rng = np.random.default_rng(7)
    person = np.repeat(np.arange(60), 50)
    first, second = (12 * person + rng.integers(0, 12, len(person)) for _ in range(2))
    kept = first != second
    person, first, second = person[kept], first[kept], second[kept]
    true, error = rng.normal(0, 2, (2, 12 * 60))
    margin = true[first] - true[second]
    is_first = rng.random(len(person)) < expit(margin)
    seen = (true + error)[first] - (true + error)[second]
    choices = read_choices(
        np.where(is_first, seen, -seen), person, response_a=first, response_b=second
    )
    found = estimate_reliability(fit(choices, beta=1.0, num_samples=50, draw_strengths=False))
    assert found.value == "cannot tell" and "responses of their own" in found.reason
    assert found.p_value < 0.05 and found.correlation > 0.5  # what it would have said


def test_labels_order_and_orientation_change_nothing(stable):
    """The name of a topic, of a person, and which response is called the first are arbitrary."""
    result, topic = stable
    choices = result.choices
    found = estimate_reliability(result, topic, num_bootstrap=100)
    names = np.array(["z", "m", "b", "a"])[topic]
    again = estimate_reliability(result, names, num_bootstrap=100)
    assert again.interval == pytest.approx(found.interval, abs=1e-9)
    order = np.random.default_rng(0).permutation(choices.num_pairs)
    other = fitted(choices.margin[order], 1_000 - choices.annotator[order])
    again = estimate_reliability(other, topic[order], num_bootstrap=100)
    assert again.interval == pytest.approx(found.interval, abs=1e-6)


def test_the_likelihood_of_a_person_is_that_of_nested_quadrature():
    """Two parts of two choices each, against adaptive quadrature over both normal variables."""
    margin = np.array([1.5, -0.4, 0.8, 2.0, 0.3, -1.0])
    person, part = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0, 1])
    centre, between, within = 0.1, 0.6, 0.4
    choices = fitted(margin, person).choices
    parts = _Parts.of(choices, part, 0.0)
    axes = (np.array([x]) for x in (centre, between, within))
    found = parts.per_person(*axes)[0, 0, 0, 0]

    def of_part(level, rows):
        def density(t):
            likelihood = np.exp(log_expit(np.exp(t) * margin[rows]).sum())
            return likelihood * norm.pdf(t, level, within)

        return quad(density, level - 8 * within, level + 8 * within)[0]

    def of_person(level):
        return of_part(level, [0, 1]) * of_part(level, [2, 3]) * norm.pdf(level, centre, between)

    exact = np.log(quad(of_person, centre - 8 * between, centre + 8 * between)[0])
    assert found == pytest.approx(exact, abs=1e-6)


def test_halves_are_halves_of_whole_choices():
    rng = np.random.default_rng(0)
    sets = np.repeat(np.arange(40), 3)
    choices = fit(
        rng.normal(1, 2, 120), annotator=sets // 5, choice_set=sets, beta=1.0, num_samples=10
    ).choices
    half = _random_halves(choices, rng)
    assert (half.reshape(-1, 3) == half[::3, None]).all()
    assert set(np.bincount(sets[::3] // 5, half[::3])) <= {2.0, 3.0}


@pytest.mark.parametrize(
    ("group", "message"),
    [([1, 2], "one value of 'group' per margin"), (np.zeros(3_840), "several groups in 'group'")],
)
def test_impossible_groups_are_refused(stable, group, message):
    with pytest.raises(ValueError, match=message):
        estimate_reliability(stable[0], group)


def test_single_choices_are_refused():
    result = fit(np.random.default_rng(0).normal(1, 2, 30), annotator=np.arange(30))
    with pytest.raises(ValueError, match="several choices each"):
        estimate_reliability(result)
