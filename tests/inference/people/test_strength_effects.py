"""Effects of columns on the strength: simulated worlds with known effects, and exact likelihoods.

Recovery is asserted within four standard errors or intervals with a failure rate below one in a
thousand for other seeds; the rate of false positives is that of `benchmarks/strength_effects.py`.
"""

import numpy as np
import pytest
import torch
from scipy.special import expit

from mixdpo_pyro.inference import fit, fit_strength_effects, read_choices
from mixdpo_pyro.inference.likelihood.panels import tabulate
from mixdpo_pyro.inference.people import strength_effects
from mixdpo_pyro.inference.people.columns import design_matrix, read_columns
from mixdpo_pyro.inference.people.expansion import ShiftedPanels
from mixdpo_pyro.inference.people.strength_effects import _holm

PEOPLE, EACH, TOPICS = 100, 50, 4
PERSON = np.repeat(np.arange(PEOPLE), EACH)
OF_TOPIC = np.array([-0.5, -0.1, 0.1, 0.5])


def world(seed, of_topic=0.0, of_age=0.0, spread=0.4):
    """Choices of people, with a topic each, whose ages go from 20 to 60."""
    rng = np.random.default_rng((seed, 5))
    topic, age = rng.integers(0, TOPICS, len(PERSON)), rng.uniform(20, 60, PEOPLE)
    log_strength = spread * rng.normal(size=PEOPLE) + of_age * (age - age.mean()) / age.std()
    log_strength = log_strength[PERSON] + of_topic * OF_TOPIC[topic]
    x = rng.normal(0, 2, len(PERSON))
    is_first = rng.random(len(PERSON)) < expit(np.exp(log_strength) * x)
    columns = {"topic": np.array(["a", "b", "c", "d"])[topic], "age": age[PERSON]}
    return np.where(is_first, x, -x), columns


def fitted(margin, **arguments):
    arguments = {"annotator": PERSON, "beta": 1.0, "draw_strengths": False} | arguments
    return fit(margin, **arguments)  # of checked choices the annotators are their own


@pytest.fixture(scope="module")
def with_effects():
    margin, columns = world(0, 1.0, 0.25)
    return fitted(margin), columns, fit_strength_effects(fitted(margin), columns)


def test_known_effects_are_found(with_effects):
    _, columns, found = with_effects
    rows = {row.level: row for row in found.levels}
    share = np.bincount(np.unique(columns["topic"], return_inverse=True)[1]) / len(PERSON)
    truth = np.exp(OF_TOPIC - share @ OF_TOPIC)
    for level, ratio in zip("abcd", truth, strict=True):
        # Standard errors are about 0.06.
        assert np.log(rows[level].ratio / ratio) == pytest.approx(0, abs=0.25)
        assert rows[level].q05 < rows[level].ratio < rows[level].q95
    assert np.log(rows["per sd"].ratio) == pytest.approx(0.25, abs=0.2)
    assert rows["a"].p_adjusted < 1e-4 and rows["d"].p_adjusted < 1e-4
    assert rows["per sd"].p_adjusted < 0.05 and rows["per sd"].p_sign > 0.99
    assert sum(row.choices for row in found.levels[:4]) == len(PERSON)


def test_columns_take_their_part_of_the_variance(with_effects):
    result, _, found = with_effects
    topic, age = found.columns
    assert (topic.belongs_to, topic.levels, age.belongs_to, age.levels) == (
        "choices", 4, "annotators", 0,
    )  # fmt: skip
    assert topic.sd[1] < 0.36 < topic.sd[2]
    assert sum(part.share for part in found.shares) == pytest.approx(1, abs=0.05)
    assert found.shares[-1].name.startswith("unexplained")
    assert found.cv[0] < np.median(result.posterior.cv)  # age explains some of it
    assert found.cv[1] < np.sqrt(np.expm1(0.4**2)) < found.cv[2] + 0.1


def test_without_effects_nothing_stands_out():
    margin, columns = world(1)
    found = fit_strength_effects(fitted(margin), columns)
    assert min(row.p_adjusted for row in found.levels) > 0.05
    assert all(0.85 < row.ratio < 1.18 and row.q05 < 1 < row.q95 for row in found.levels)
    assert found.columns[0].sd[0] < 0.1


def test_without_columns_it_is_the_plain_fit():
    """The same likelihood and priors: cv agrees to the resolution of both lattices."""
    margin, _ = world(2)
    result = fitted(margin, num_samples=4000)
    found = fit_strength_effects(result, {}, num_samples=20_000)
    assert found.levels == [] and [part.share for part in found.shares] == [1.0]
    expected = np.quantile(result.posterior.cv, [0.5, 0.05, 0.95])
    assert found.cv == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("cv", [0.1, 0.6, 1.5])
def test_likelihood_without_effects_is_that_of_panels(cv):
    choices = fitted(world(3)[0]).choices
    panels = ShiftedPanels.of(choices, design_matrix(choices, []))
    spread = np.sqrt(np.log1p(cv**2))
    mean = torch.tensor([0.8], dtype=torch.float64)
    exact = tabulate(choices, "lognormal")(mean, torch.tensor([cv], dtype=torch.float64))
    found = panels.log_likelihood(np.array([np.log(0.8) - spread**2 / 2]), spread)
    assert found == pytest.approx(float(exact), abs=1e-4 if cv < 1 else 0.01)


def test_likelihood_with_effects_is_that_of_scaled_margins():
    """A shift of the log strength is a factor of the margin."""
    margin, columns = world(4, 1.0)
    choices = fitted(margin).choices
    parts = read_columns(choices, {"topic": columns["topic"]})
    panels = ShiftedPanels.of(choices, design_matrix(choices, parts))
    scaled = fitted(margin * np.exp(OF_TOPIC[parts[0].value])).choices
    plain = ShiftedPanels.of(scaled, design_matrix(scaled, []))
    found = panels.log_likelihood(np.concatenate([[-0.1], OF_TOPIC]), 0.5)
    assert found == pytest.approx(plain.log_likelihood(np.array([-0.1]), 0.5), abs=1e-6)


def test_derivatives_are_those_of_the_likelihood():
    margin, columns = world(5, 1.0)
    choices = fitted(margin).choices
    panels = ShiftedPanels.of(choices, design_matrix(choices, read_columns(choices, columns)))
    theta = np.array([-0.2, 0.1, 0.0, -0.1, 0.2, 0.15])
    nodes = panels._place_nodes(theta, 0.5)
    value, scores, information, slopes = panels._evaluate(theta, 0.5, *nodes)
    assert slopes @ panels.design == pytest.approx(scores.sum(0), abs=1e-9)
    for k in range(len(theta)):
        move = 1e-3 * np.eye(len(theta))[k]
        above, below = (panels._evaluate(theta + m, 0.5, *nodes) for m in (move, -move))
        slope = (above[0] - below[0]) / 2e-3
        assert scores.sum(0)[k] == pytest.approx(slope, abs=1e-2)
        bend = -(above[1].sum(0) - below[1].sum(0)) / 2e-3
        assert information[k] == pytest.approx(bend, abs=0.05)
        assert information[k, k] == pytest.approx(
            -(above[0] - 2 * value + below[0]) / 1e-6, rel=0.01, abs=0.5
        )


@pytest.mark.untyped
def test_sets_of_two_are_pairs():
    margin, columns = world(6, 1.0)
    sets = fitted(margin, choice_set=np.arange(len(margin)))
    found = fit_strength_effects(sets, columns)
    again = fit_strength_effects(fitted(margin), columns)
    for one, other in zip(found.levels, again.levels, strict=True):
        assert one.ratio == pytest.approx(other.ratio, rel=1e-6)


def test_effects_of_choice_sets_are_found():
    rng = np.random.default_rng(7)
    person, topic = np.repeat(np.arange(40), 20), rng.integers(0, 2, 800)
    utility = rng.normal(0, 1.5, (800, 3)) * np.exp(np.where(topic, 0.5, -0.5))[:, None]
    best = (utility + rng.gumbel(size=utility.shape)).argmax(1)
    seen = utility / np.exp(np.where(topic, 0.5, -0.5))[:, None]
    others = [[j for j in range(3) if j != k] for k in best]
    margin = seen[np.arange(800), best][:, None] - np.take_along_axis(seen, np.array(others), 1)
    rows = np.repeat(np.arange(800), 2)
    result = fitted(margin.ravel(), annotator=person[rows], choice_set=rows)
    found = fit_strength_effects(result, {"topic": np.array(["low", "high"])[topic][rows]})
    high, low = found.levels
    assert np.log(high.ratio / low.ratio) == pytest.approx(1.0, abs=0.4)
    with pytest.raises(ValueError, match="one value of 'topic' per choice set"):
        fit_strength_effects(result, {"topic": np.arange(1600) % 2 == 0})


def test_order_and_names_change_nothing(with_effects):
    result, columns, found = with_effects
    order = np.random.default_rng(0).permutation(len(PERSON))
    names = np.array([f"n{1000 - k}" for k in PERSON])
    other = fitted(result.choices.margin[order], annotator=names[order])
    shuffled = {name: value[order] for name, value in columns.items()}
    again = fit_strength_effects(other, shuffled)
    for one, two in zip(again.levels, found.levels, strict=True):
        assert np.log(one.p_value) == pytest.approx(np.log(two.p_value), abs=1e-3)


def test_topics_that_people_take_differently_inflate_variances():
    rng = np.random.default_rng(8)
    margin, columns = world(8)
    topic = np.unique(columns["topic"], return_inverse=True)[1]
    own = np.exp(rng.normal(0, 0.8, (PEOPLE, TOPICS))[PERSON, topic])
    x = np.abs(margin) * rng.choice([-1, 1], len(margin))
    margin = np.where(rng.random(len(x)) < expit(own * x), x, -x)
    found = fit_strength_effects(fitted(margin), {"topic": columns["topic"]})
    assert found.columns[0].inflation > 1.3


@pytest.mark.untyped
def test_errors_of_pairs_that_all_judge_are_no_effect_of_their_topic():
    """Six pairs of each topic whose margins are wrong by chance make a topic look strong."""
    rng = np.random.default_rng(9)
    topic = rng.integers(0, TOPICS, len(PERSON))
    pair = topic * 6 + rng.integers(0, 6, len(PERSON))
    true, error = rng.normal(0, 2, (2, 6 * TOPICS))
    is_first = rng.random(len(PERSON)) < expit(true[pair])
    margin = np.where(is_first, 1, -1) * (true + error)[pair]
    columns = {"topic": np.array(["a", "b", "c", "d"])[topic]}
    unknown = fit_strength_effects(fitted(margin), columns)
    known = fit_strength_effects(fitted(read_choices(margin, PERSON, pair=pair)), columns)
    assert min(row.p_adjusted for row in unknown.levels) < 0.001
    assert min(row.p_adjusted for row in known.levels) > 0.05
    assert known.columns[0].inflation > 5 * unknown.columns[0].inflation


def test_many_choices_are_those_of_random_people(monkeypatch, with_effects):
    monkeypatch.setattr(strength_effects, "_MAX_CHOICES", 1_000)
    result, columns, _ = with_effects
    found = fit_strength_effects(result, columns)
    assert found.num_drawn == 20
    assert sum(row.choices for row in found.levels[:4]) == 1_000


def test_holm_is_that_of_the_paper():
    assert _holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert _holm(np.array([0.6, 0.7])) == pytest.approx([1.0, 1.0])
    assert len(_holm(np.array([]))) == 0


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.zeros(10), "one value of 'x' per margin"),
        (np.full(len(PERSON), "a"), "several levels in column 'x', got 'a' only"),
        (np.ones(len(PERSON)), "several values in column 'x', got 1 only"),
        (np.full(len(PERSON), np.nan), "finite numbers in column 'x'"),
        (PERSON, "levels that repeat in column 'x', got one per annotator"),
        (np.arange(len(PERSON)), "levels that repeat in column 'x', got one per choice"),
        (np.arange(len(PERSON)) // 2, "at most 100 levels, got 2500, of which column 'x'"),
    ],
)
def test_columns_that_cannot_be_used_are_named(with_effects, column, message):
    with pytest.raises(ValueError, match=message):
        fit_strength_effects(with_effects[0], {"x": column})


def test_four_columns_of_levels_are_too_many(with_effects):
    columns = {name: PERSON % 2 for name in "abcd"}
    with pytest.raises(ValueError, match="at most 3 columns of levels, got a, b, c, d"):
        fit_strength_effects(with_effects[0], columns)
