"""Limits, symmetries and stability of the observation models at a given strength."""

import math

import mpmath as mp
import observation_oracle as reference
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from mixdpo_pyro.models import mixed_logit_log_prob
from mixdpo_pyro.models.observation import (
    BestOf,
    BestWorst,
    Davidson,
    Graded,
    Lapse,
    Pair,
    Ranking,
    RaoKupper,
    observed_log_prob,
)

float64 = torch.float64
EMPTY = torch.zeros(0, dtype=float64)
JUDGEMENTS = {
    "pair": Pair(),
    "rao-kupper": RaoKupper(0.7),
    "davidson": Davidson(1.3),
    "five grades": Graded(torch.tensor([0.4, 1.9], dtype=float64)),
    "six grades": Graded(torch.tensor([0.4, 1.9], dtype=float64), middle=False),
    "careless": Lapse(RaoKupper(0.7), 0.1),
}
SETS = {
    "best of": BestOf(),
    "ranking": Ranking(),
    "partial ranking": Ranking(2),
    "best-worst": BestWorst(),
    "careless": Lapse(Ranking(3), 0.1),
}
MARGINS = torch.tensor([-1e6, -30.0, -2.0, -1e-8, 0.0, 0.3, 5.0, 700.0, 1e6], dtype=float64)
BINARY = {
    "best of": lambda y: ("set", BestOf(), [1 - y, y]),
    "ranking": lambda y: ("set", Ranking(), [1 + y, 2 - y]),
    "partial ranking": lambda y: ("set", Ranking(), [1 - y, y]),
    "best-worst": lambda y: ("set", BestWorst(), [1 - 2 * y, 2 * y - 1]),
    "two grades": lambda y: ("pair", Graded(EMPTY, middle=False), y),
    "no ties, rao-kupper": lambda y: ("pair", RaoKupper(1e-14), 2 * y),
    "no ties, davidson": lambda y: ("pair", Davidson(1e-14), 2 * y),
    "no lapse": lambda y: ("pair", Lapse(Pair(), 0.0), y),
}


@pytest.mark.parametrize("chosen", [0, 1])
@pytest.mark.parametrize("name", BINARY)
def test_two_responses_without_ties_are_a_binary_choice(name, chosen):
    kind, observation, outcome = BINARY[name](chosen)
    exact = logsigmoid(MARGINS if chosen else -MARGINS)
    if kind == "pair":
        value = observation.log_prob(MARGINS, torch.full((len(MARGINS),), outcome))
    else:
        utility = torch.stack([3.0 - MARGINS, torch.full_like(MARGINS, 3.0)], 1).flatten()
        rows = torch.arange(len(MARGINS)).repeat_interleave(2)
        value = observation.log_prob(utility, torch.tensor(outcome * len(MARGINS)), 1.0, rows)
    torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["gamma", "lognormal", "fixed"])
@pytest.mark.parametrize("observation", [BestOf(), Ranking(), Pair()], ids=str)
def test_mixtures_of_two_responses_equal_those_of_pairs(observation, family):
    margin = torch.tensor([-40.0, -2.0, 0.0, 0.3, 5.0], dtype=float64)
    rows = torch.arange(5) if observation.takes_sets else None
    value = observed_log_prob(observation, margin, 0.5, 0.6, family, choice_set=rows)
    # Two rules of quadrature differ by what the binary one cuts, 1e-9.
    tolerance = 1e-12 if family == "fixed" else 2e-9
    expected = mixed_logit_log_prob(margin, 0.5, 0.6, family)
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def test_a_lapse_of_a_pair_is_a_flipped_label():
    margin = torch.tensor([-40.0, -2.0, 0.0, 0.3, 5.0], dtype=float64)
    flipped = mixed_logit_log_prob(margin, 0.5, 0.6, flip_probability=0.1)
    careless = observed_log_prob(Lapse(Pair(), 0.2), margin, 0.5, 0.6)
    torch.testing.assert_close(careless, flipped, rtol=2e-9, atol=2e-9)


@pytest.mark.untyped
@pytest.mark.parametrize("name", JUDGEMENTS)
@given(margin=st.floats(-50.0, 50.0), beta=st.floats(0.01, 3.0))
def test_swapping_the_responses_mirrors_ties_and_grades(name, margin, beta):
    observation = JUDGEMENTS[name]
    outcome = observation.support()
    forward = observation.log_prob(
        torch.full((len(outcome),), margin, dtype=float64), outcome, beta
    )
    mirrored = observation.log_prob(
        torch.full((len(outcome),), -margin, dtype=float64), outcome.flip(0), beta
    )
    torch.testing.assert_close(mirrored, forward, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", JUDGEMENTS)
def test_probabilities_of_judgements_add_up_to_one(name):
    total = JUDGEMENTS[name].probabilities(MARGINS, 0.7).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-13, atol=0)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", SETS)
def test_probabilities_of_all_outcomes_of_a_set_add_up_to_one(name, size):
    utility = torch.randn(5, size, dtype=float64) * torch.tensor([[0.0, 0.1, 1, 10, 1e6]]).T
    probability = SETS[name].probabilities(utility, torch.tensor([2.0, 1, 1, 1, 1]))
    torch.testing.assert_close(
        probability.sum(-1), torch.ones(5, dtype=float64), rtol=1e-12, atol=0
    )
    support = SETS[name].support(size)
    assert len(support.unique(dim=0)) == len(support) == probability.shape[-1]
    log_number = SETS[name].log_num_outcomes(
        utility[0], support[0], torch.zeros(size, dtype=torch.long)
    )
    assert log_number.exp().item() == pytest.approx(len(support))
    uniform = torch.full((len(support),), 1 / len(support), dtype=float64)
    torch.testing.assert_close(probability[0], uniform)


def test_permuting_the_losers_and_the_rows_changes_nothing():
    utility = torch.randn(12, dtype=float64)
    rows = torch.tensor([5, 5, 5, 5, 2, 2, 2, 9, 9, 9, 9, 9])
    for observation in (BestOf(), Ranking(2), BestWorst()):
        outcome = observation.sample(utility, 1.0, rows)
        value = observation.log_prob(utility, outcome, 0.8, rows)
        order = torch.randperm(12)
        shuffled = observation.log_prob(utility[order], outcome[order], 0.8, rows[order])
        torch.testing.assert_close(shuffled, value, rtol=1e-13, atol=1e-13)


def test_a_constant_of_a_set_cancels():
    utility, rows = torch.randn(6, dtype=float64), torch.tensor([0, 0, 0, 1, 1, 1])
    outcome = Ranking().sample(utility, 1.0, rows)
    moved = utility + torch.tensor([1e3, -1e3], dtype=float64)[rows]
    torch.testing.assert_close(
        Ranking().log_prob(moved, outcome, 0.8, rows),
        Ranking().log_prob(utility, outcome, 0.8, rows), rtol=1e-11, atol=1e-11
    )  # fmt: skip


def test_margins_over_the_others_are_the_utilities_of_the_set():
    utility = torch.randn(2, 4, dtype=float64)
    chosen = torch.tensor([2, 0])
    others = torch.ones(2, 4, dtype=torch.bool).scatter(1, chosen.unsqueeze(1), False)
    margin = (utility.gather(1, chosen.unsqueeze(1)) - utility)[others]
    by_margin = BestOf().log_prob(margin, None, 0.8, torch.tensor([3, 3, 3, 8, 8, 8]))
    expected = torch.log_softmax(0.8 * utility, 1).gather(1, chosen.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(by_margin, expected)


def test_rankings_are_stages_and_each_stage_is_a_best_of():
    utility = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=float64)
    rank = torch.tensor([2, 0, 1, 0])
    zeros = torch.zeros(4, dtype=torch.long)
    first = BestOf().log_prob(utility, (rank == 1).long(), 1.5, zeros)
    rest = rank != 1
    second = BestOf().log_prob(utility[rest], (rank[rest] == 2).long(), 1.5, zeros[rest])
    torch.testing.assert_close(Ranking().log_prob(utility, rank, 1.5, zeros), first + second)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6, 1e9])
def test_large_utilities_keep_their_digits(scale):
    utility = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=float64) * scale
    zeros = torch.zeros(4, dtype=torch.long)
    cases = (
        (BestOf(), [0, 1, 0, 0], reference.best_of),
        (Ranking(), [2, 1, 4, 3], reference.ranking),
        (BestWorst(), [0, 1, -1, 0], reference.best_worst),
    )
    for observation, outcome, exact in cases:
        value = observation.log_prob(utility, torch.tensor(outcome), 1.0, zeros)
        wanted = exact([mp.mpf(v) for v in utility.tolist()], outcome, mp.mpf(1))
        assert value.item() == pytest.approx(float(wanted), rel=1e-14)
    for observation, exact in (
        (RaoKupper(0.7), reference.graded([0.7])),
        (Davidson(1.3), reference.davidson(1.3)),
    ):
        for outcome in range(3):
            for margin in (scale, -scale, 0.0):
                inputs = torch.tensor([margin], dtype=float64, requires_grad=True)
                value = observation.log_prob(inputs, torch.tensor([outcome]))
                wanted = float(exact(mp.mpf(margin), outcome, mp.mpf(1)))
                assert value.item() == pytest.approx(wanted, rel=1e-13, abs=1e-15)
                assert torch.autograd.grad(value, inputs)[0].isfinite()


def test_the_derivative_of_davidson_at_margin_zero_is_that_of_both_sides():
    for outcome, exact in ((0, -0.5), (1, 0.0), (2, 0.5)):
        margin = torch.zeros(1, dtype=float64, requires_grad=True)
        value = Davidson(1.3).log_prob(margin, torch.tensor([outcome]))
        (slope,) = torch.autograd.grad(value, margin, create_graph=True)
        assert slope.item() == pytest.approx(exact, abs=1e-15)
        (curvature,) = torch.autograd.grad(slope, margin)
        # The variance of 0, 1/2, 1 at probabilities 1 : nu : 1, negative.
        assert curvature.item() == pytest.approx(-0.5 / (2 + 1.3), rel=1e-12)


SAMPLES = 40_000


@pytest.mark.parametrize("name", JUDGEMENTS)
def test_frequencies_of_judgements_are_their_probabilities(name):
    observation, generator = JUDGEMENTS[name], torch.Generator().manual_seed(1)
    margin = torch.full((SAMPLES,), 0.6, dtype=float64)
    drawn = observation.sample(margin, 1.5, generator=generator)
    frequency = drawn.bincount(minlength=len(observation.support())) / SAMPLES
    expect_close(frequency, observation.probabilities(margin[:1], 1.5)[0])


@pytest.mark.parametrize("name", SETS)
def test_frequencies_of_choices_are_their_probabilities(name):
    observation, generator = SETS[name], torch.Generator().manual_seed(1)
    utility = torch.tensor([0.5, -0.2, 0.9], dtype=float64)
    rows = torch.arange(SAMPLES).repeat_interleave(3)
    drawn = observation.sample(utility.repeat(SAMPLES), 1.5, rows, generator=generator)
    kinds = observation.support(3)
    same = (drawn.view(-1, 1, 3) == kinds).all(-1)
    assert same.sum(1).eq(1).all()
    expect_close(same.double().mean(0), observation.probabilities(utility, 1.5))


def expect_close(frequency, probability):
    """Within five standard errors: fails by chance less often than once in 10^5 runs."""
    error = (probability * (1 - probability) / SAMPLES).sqrt()
    assert ((frequency - probability).abs() < 5 * error + 1e-9).all()


def test_samples_stay_with_their_rows_and_their_seed():
    utility = torch.tensor([100.0, 0.0, 0.0, 100.0, 0.0], dtype=float64)
    rows = torch.tensor([1, 0, 1, 0, 1])
    assert BestOf().sample(utility, torch.tensor([1.0, 1.0]), rows).tolist() == [1, 0, 0, 1, 0]
    draws = [
        Ranking().sample(utility, 0.0, rows, generator=torch.Generator().manual_seed(s)).tolist()
        for s in (0, 0, 1, 2)
    ]
    assert draws[0] == draws[1] and draws[0] != draws[2] != draws[3]


@pytest.mark.parametrize(
    "observation",
    [
        RaoKupper(0.7), Davidson(1.3), JUDGEMENTS["five grades"], JUDGEMENTS["six grades"],
        Lapse(RaoKupper(0.7), 0.1), Lapse(BestOf(), 0.2), Pair(), Ranking(2),
    ],
    ids=str,
)  # fmt: skip
def test_parameters_return_from_the_real_line(observation):
    vector = observation.unconstrained()
    again = observation.constrained(vector)
    assert type(again) is type(observation)
    torch.testing.assert_close(again.unconstrained(), vector)
    margin, size = torch.tensor([0.4, -0.3, 0.1], dtype=float64), 3
    data = margin if observation.takes_sets else margin[:1]
    torch.testing.assert_close(again.probabilities(data), observation.probabilities(data))
    assert len(vector) == len(again.unconstrained()) <= size


def test_float32_in_float32_out():
    value = BestOf().log_prob(torch.ones(2), choice_set=torch.tensor([0, 0]))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(-math.log(1 + 2 * math.exp(-1)), rel=1e-6)


SET = torch.tensor([0, 0, 0])
WRONG = {
    "cut points descend": lambda: Graded(torch.tensor([2.0, 1.0])),
    "threshold": lambda: RaoKupper(0.0),
    "nu": lambda: Davidson(-1.0),
    "rate": lambda: Lapse(Pair(), 1.0),
    "depth": lambda: Ranking(0),
    "finite": lambda: Pair().log_prob(torch.tensor([math.nan])),
    "shape": lambda: Pair().log_prob(torch.zeros(2, 2)),
    "outcome": lambda: Pair().log_prob(torch.zeros(1), torch.tensor([2])),
    "outcomes": lambda: Pair().log_prob(torch.zeros(1), torch.tensor([1, 1])),
    "no set": lambda: Pair().log_prob(torch.zeros(1), choice_set=torch.tensor([1])),
    "a set": lambda: BestOf().log_prob(torch.zeros(3), torch.tensor([1, 0, 0])),
    "two best": lambda: BestOf().log_prob(torch.zeros(3), torch.tensor([1, 1, 0]), 1.0, SET),
    "no best": lambda: BestOf().log_prob(torch.zeros(3), torch.tensor([0, 0, 0]), 1.0, SET),
    "a rank": lambda: BestOf().log_prob(torch.zeros(3), torch.tensor([1, 2, 3]), 1.0, SET),
    "tied ranks": lambda: Ranking().log_prob(torch.zeros(3), torch.tensor([1, 2, 2]), 1.0, SET),
    "skipped": lambda: Ranking().log_prob(torch.zeros(3), torch.tensor([1, 3, 0]), 1.0, SET),
    "unranked": lambda: Ranking().log_prob(torch.zeros(3), torch.tensor([0, 0, 0]), 1.0, SET),
    "no worst": lambda: BestWorst().log_prob(torch.zeros(3), torch.tensor([1, 0, 0]), 1.0, SET),
}


@pytest.mark.wrong_types
@pytest.mark.parametrize("name", WRONG)
def test_what_is_impossible_is_refused_with_rule_and_value(name):
    with pytest.raises(ValueError, match=r"^Expected .*, got "):
        WRONG[name]()
