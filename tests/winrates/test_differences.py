"""Differences of arms in worlds of crossed seeds and prompts with a known difference."""

import numpy as np
import pytest
from scipy import stats

from mixdpo_pyro.winrates.differences import compare_seeds


def compare(cells, comparisons=1):
    """Two arms whose rates differ by the cells, seeds by prompts."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 100, cells.shape)
    rates = {str(seed): row for seed, row in enumerate(base + cells)}
    others = {str(seed): row for seed, row in enumerate(base)}
    return compare_seeds("mix", "dpo", rates, others, comparisons)


def draw(rng, seeds, prompts, by_seed, by_prompt, rest):
    return (
        1.0
        + by_seed * rng.normal(size=(seeds, 1))
        + by_prompt * rng.normal(size=(1, prompts))
        + rest * rng.normal(size=(seeds, prompts))
    )


@pytest.mark.parametrize("world", [(2, 50, 5, 0, 10), (3, 40, 0, 30, 30), (5, 40, 9, 20, 30)])
def test_intervals_hold_the_truth_over_seeds_and_prompts(world):
    """Of 300 worlds 95%: fewer than 89% in 1 of 10,000 tries, were it 94.5%."""
    rng = np.random.default_rng(1)
    found = [compare(draw(rng, *world)) for _ in range(300)]
    assert np.mean([each.low <= 1 <= each.high for each in found]) >= 0.89
    assert np.mean([each.is_clear for each in found]) < 0.2


def test_where_seeds_alone_differ_it_is_students_t_over_seeds():
    values = np.array([1.0, 3.0, 2.5, 4.0])
    found = compare(np.repeat(values[:, None], 5000, axis=1))
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert (found.difference, found.low, found.high) == pytest.approx((2.625, low, high))
    assert found.is_clear and (found.seeds, found.arm, found.against) == (4, "mix", "dpo")
    low, high = stats.t.interval(1 - 0.05 / 2, 3, values.mean(), stats.sem(values))
    several = compare(np.repeat(values[:, None], 5000, axis=1), comparisons=2)
    assert (several.low, several.high) == pytest.approx((low, high))


def test_cells_that_are_all_equal_claim_no_more_than_their_number():
    assert not compare(np.full((2, 5), 20.0)).is_clear  # of ten comparisons
    assert compare(np.full((3, 500), 20.0)).is_clear
    assert compare(np.zeros((3, 500))).is_small and not compare(np.zeros((2, 5))).is_small


def test_what_has_no_pairs_is_no_difference():
    row = np.zeros(4)
    assert compare_seeds("a", "b", {"0": row, "1": row}, {"0": row, "2": row}) is None
    judged = np.array([0.0, np.nan, np.nan, np.nan])
    assert compare_seeds("a", "b", {"0": judged, "1": row}, {"0": row, "1": row}) is None
    kept = np.array([50.0, 50.0, np.nan, 50.0])
    assert compare_seeds("a", "b", {"0": kept, "1": kept}, {"0": row, "1": row}).difference == 50


def test_seeds_that_are_asked_for_show_a_difference_of_a_point():
    """Of 200 worlds with so many seeds 80% are clear: fewer than 66% in 1 of 100,000 tries."""
    rng = np.random.default_rng(2)
    sizes = 400, 0.8, 2.0, 15.0
    found = [compare(draw(rng, 4, *sizes)).needed_seeds for _ in range(101)]
    asked = np.median([99 if each is None else each for each in found])
    assert 5 <= asked <= 15
    found = [compare(draw(rng, int(asked), *sizes)) for _ in range(200)]
    assert np.mean([each.is_clear and each.low > 0 for each in found]) >= 0.66
    few = compare(draw(rng, 3, 60, 0.2, 0.0, 40.0))
    assert few.needed_prompts == 16 * 60 or few.needed_seeds is None
