import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.special import expit, log_expit, logsumexp

from mixdpo_pyro.inference.choices import read_choices
from mixdpo_pyro.inference.likelihood import panels
from mixdpo_pyro.inference.likelihood.pairs import FewMargins, compress, pair_log_prob
from mixdpo_pyro.inference.likelihood.panels import tabulate
from mixdpo_pyro.models import mixed_logit_log_prob, strength_distribution
from mixdpo_pyro.models.quadrature import choice_log_prob

POINTS = [(0.1, 0.6), (0.02, 2.0), (0.5, 0.01), (0.1, 0.2), (0.1, 0.0)]


def _exact(margin, mean, cv, family, annotator=None, flip_probability=0.0):
    return mixed_logit_log_prob(
        torch.from_numpy(margin),
        mean,
        cv,
        family if cv else "fixed",
        annotator=None if annotator is None else torch.from_numpy(annotator),
        flip_probability=flip_probability,
    ).numpy()


@pytest.mark.untyped
@pytest.mark.parametrize("flip_probability", [0.0, 0.1])
@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_compressed_margins_give_the_sum_over_pairs_within_their_bound(
    simulate, family, flip_probability
):
    margin = simulate(20_000, 1, 0.6)[0]
    margin[:3] = [1e4, -300.0, 0.0]  # outliers
    compressed = compress(margin, family, flip_probability)
    for mean, cv in [*POINTS, (0.1, 3.0)]:
        exact = _exact(margin, mean, cv, family, flip_probability=flip_probability).sum()
        value = compressed(
            torch.tensor(mean, dtype=torch.float64), torch.tensor(cv, dtype=torch.float64)
        ).item()
        bound = compressed.error_bound(mean, cv)
        assert abs(value - exact) <= bound + 1e-13 * abs(exact)
        assert bound < 1e-5, (mean, cv)


@pytest.mark.parametrize("flip_probability", [0.0, 0.1])
@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_fewer_pairs_than_nodes_are_summed_as_they_are(simulate, family, flip_probability):
    """At 200 pairs nodes take over, which are fewer; their error is at most 1.8e-10 a pair."""
    for count, error in ((1, 1e-12), (24, 1e-12), (200, 200 * 1.8e-10)):
        margin = simulate(count, 1, 0.6)[0]
        compressed = compress(margin, family, flip_probability)
        assert isinstance(compressed, FewMargins) == (count < 200)
        for mean, cv in POINTS[:4]:
            exact = _exact(margin, mean, cv, family, flip_probability=flip_probability).sum()
            value = compressed(*(torch.tensor(x, dtype=torch.float64) for x in (mean, cv)))
            assert value.item() == pytest.approx(exact, abs=error)


def test_margins_of_zero_are_the_toss_of_a_coin():
    half = math.log(0.5)
    for count in (1, 100):
        point = np.array([0.1]), np.array([0.6])
        value = pair_log_prob(np.zeros(count), *point, "gamma")
        np.testing.assert_allclose(value, np.full((1, count), half), rtol=1e-14)
        total = compress(np.zeros(count), "gamma")(*(torch.from_numpy(x) for x in point))
        assert total.item() == pytest.approx(count * half, rel=1e-14)


def test_compression_costs_the_same_for_any_number_of_pairs(simulate):
    few, many = (compress(simulate(n, 1, 0.6)[0], "gamma") for n in (2_000, 200_000))
    assert len(many.weight) < 2 * len(few.weight) < 1000
    assert many.weight.sum() == pytest.approx(200_000, rel=1e-12)
    assert many.count.sum() == 200_000


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_many_pairs_are_interpolated_one_by_one(simulate, family):
    """Within the error of degree 7, h^8 max |f^(8)| / 8! times the product of distances to nodes.

    In t = log |beta margin| the eighth derivative of log sigma is at most 292, at a margin of
    1.1 / beta (by mpmath), the product at most (0.5 * 1.5 * 2.5 * 3.5)^2 = 43.1, and h = 0.07:
    1.8e-10 nats for a single strength; a distribution of strengths smooths.
    """
    margin = simulate(3_000, 1, 0.6)[0]
    mean, cv = (np.array(x) for x in zip(*POINTS[:3], strict=True))
    value = pair_log_prob(margin, mean, cv, family)
    for k in range(len(mean)):
        np.testing.assert_allclose(
            value[k], _exact(margin, mean[k], cv[k], family), rtol=1e-10, atol=2e-10
        )


@pytest.mark.parametrize("flip_probability", [0.0, 0.1])
@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_table_gives_every_annotators_likelihood(simulate, family, flip_probability):
    margin, annotator, _ = simulate(30, 40, 0.6)
    extra = simulate(1, 700, 0.6, seed=1)[0]  # a ragged panel: one person with 740 choices
    margin, annotator = np.append(margin, extra), np.append(annotator, np.zeros(700, int))
    table = tabulate(read_choices(margin, annotator), family, flip_probability)
    for mean, cv in [
        *[(0.1, cv) for cv in (0.0, 1e-4, 0.01, 0.05, 0.13, 0.2, 0.6, 3.0)],
        (0.02, 2.0),
        (0.3, 0.3),
    ]:
        value = table.per_annotator(
            torch.tensor(mean, dtype=torch.float64), torch.tensor(cv, dtype=torch.float64)
        )
        exact = _exact(margin, mean, cv, family, annotator, flip_probability)
        np.testing.assert_allclose(value, exact, rtol=1e-9, atol=1e-8, err_msg=f"{mean} {cv}")


@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_table_is_right_where_a_narrow_distribution_is_far_from_the_choices(simulate, family):
    """740 choices of strengths around 0.1 under a mean of 0.5 and a cv of 0.01, by brute force."""
    margin, annotator, _ = simulate(30, 40, 0.6)
    margin = np.append(margin, simulate(1, 700, 0.6, seed=1)[0])
    table = tabulate(read_choices(margin, np.append(annotator, np.zeros(700, int))), family)
    mean, cv = (torch.tensor(x, dtype=torch.float64) for x in (0.5, 0.01))
    assert not any(grid._is_wide(cv) for grid in table.grids)
    z = np.linspace(-16, 16, 8_001) * 0.01
    beta, jacobian = (0.5 + 0.5 * z, 0.5) if family == "normal" else (0.5 * np.exp(z), None)
    log_distribution = (
        strength_distribution(mean, cv, family).log_prob(torch.from_numpy(beta)).numpy()
    )
    log_mass = log_distribution + np.log((z[1] - z[0]) * (beta if jacobian is None else jacobian))
    own = np.append(margin[:40], margin[-700:])
    exact = logsumexp(log_expit(beta[:, None] * own).sum(1) + log_mass)
    assert table.per_annotator(mean, cv)[0].item() == pytest.approx(exact, abs=1e-8)


@pytest.mark.untyped
@pytest.mark.parametrize("cv", [0.02, 0.6])
@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_drawn_strengths_have_the_moments_of_the_exact_conditional(simulate, family, cv):
    margin, annotator, _ = simulate(3, 12, 0.6, seed=2)
    table = tabulate(read_choices(margin, annotator), family)
    size = 2_000
    mean, spread = (
        torch.full((size,), 0.1, dtype=torch.float64),
        torch.full((size,), cv, dtype=torch.float64),
    )
    draws = table.draw_strengths(mean, spread, np.random.default_rng(0)).numpy()
    distribution = strength_distribution(
        torch.tensor(0.1, dtype=torch.float64), torch.tensor(cv, dtype=torch.float64), family
    )
    for g in range(3):
        own = margin[annotator == g]
        low = -1.0 if family == "normal" else 1e-6
        beta = np.linspace(max(low, 0.1 - cv), 0.1 + cv, 20_001)
        log_density = distribution.log_prob(torch.from_numpy(beta)).numpy()
        log_density += log_expit(beta[:, None] * own).sum(1)
        weight = np.exp(log_density - log_density.max())
        mean = np.average(beta, weights=weight)
        sd = np.sqrt(np.average((beta - mean) ** 2, weights=weight))
        # Five standard errors; of the standard deviation's, about sd / sqrt(2 n).
        assert draws[:, g].mean() == pytest.approx(mean, abs=5 * sd / np.sqrt(size))
        assert draws[:, g].std() == pytest.approx(sd, rel=5 / np.sqrt(2 * size) + 0.01)


def _outlier(count, spread):
    """Choices of an annotator with strength 2, in a table with one whose choices are random."""
    rng = np.random.default_rng(0)
    difference = rng.normal(0, spread, count)
    own = np.where(rng.random(count) < expit(2 * difference), difference, -difference)
    margin = np.append(own, rng.normal(0, 30, 20))
    table = tabulate(read_choices(margin, np.repeat([0, 1], [count, 20])), "lognormal")
    return table, own


@pytest.mark.untyped
def test_strengths_of_an_outlier_are_drawn_where_the_distribution_has_almost_no_mass():
    """600 choices at a strength of 2, distributed around 0.1: the weights underflow by 1e-100."""
    table, own = _outlier(600, 2.0)
    size, distribution = (
        2_000,
        stats.lognorm(math.sqrt(math.log1p(0.01)), scale=0.1 / math.sqrt(1.01)),
    )
    mean, cv = (torch.full((size,), x, dtype=torch.float64) for x in (0.1, 0.1))
    assert all(grid._is_wide(cv).all() for grid in table.grids)
    draws = table.draw_strengths(mean, cv, np.random.default_rng(1))[:, 0].numpy()
    beta = np.linspace(0.05, 3, 20_001)
    log_density = distribution.logpdf(beta) + log_expit(beta[:, None] * own).sum(1)
    assert (
        log_density.max()
        < distribution.logpdf(beta).max() + log_expit(beta[:, None] * own).sum(1).max() - 60
    )
    weight = np.exp(log_density - log_density.max())
    exact = np.average(beta, weights=weight)
    sd = np.sqrt(np.average((beta - exact) ** 2, weights=weight))
    assert draws.mean() == pytest.approx(exact, abs=5 * sd / np.sqrt(size))


@pytest.mark.untyped
def test_two_choices_in_a_panel_agree_with_hand_quadrature():
    choices = read_choices([8.0, -5.0, 3.0], ["a", "a", "b"])
    point = torch.tensor(0.2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    value = tabulate(choices, "gamma").per_annotator(*point)
    # cv = 1 is the exponential distribution of mean 0.2.
    both = quad(lambda b: 5 * np.exp(-5 * b) * expit(8 * b) * expit(-5 * b), 0, 10)[0]
    one = quad(lambda b: 5 * np.exp(-5 * b) * expit(3 * b), 0, 10)[0]
    np.testing.assert_allclose(value, np.log([both, one]), atol=1e-9)


@pytest.mark.parametrize("panels", [False, True])
@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_derivatives_are_those_of_the_exact_likelihood(simulate, family, panels):
    margin, annotator, _ = simulate(60, 10, 0.6)
    if panels:
        cheap = tabulate(read_choices(margin, annotator), family)
    else:
        cheap, annotator = compress(margin, family), None
    for mean, cv in [(0.1, 0.6), (0.07, 0.05), (0.2, 1.5)]:
        point = torch.tensor([mean, cv], dtype=torch.float64, requires_grad=True)
        gradient = torch.autograd.grad(cheap(point[0], point[1]), point)[0]
        step = 1e-4
        for k in range(2):
            up, down = (
                np.array([mean, cv]) * (1 + sign * step * np.eye(2)[k]) for sign in (1, -1)
            )
            values = [_exact(margin, *p, family, annotator).sum() for p in (up, down)]
            slope = (values[0] - values[1]) / (2 * step * point[k].item())
            assert gradient[k].item() == pytest.approx(slope, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("family", ["lognormal", "normal"])
def test_weighted_nodes_give_the_likelihood_of_every_choice(simulate, family):
    """Twelve nodes 0.05 apart are off by 3e-14 nats a choice, beside rounding."""
    margin, annotator, _ = simulate(30, 40, 0.6)
    margin[:3] = [0.0, 1e-9, -4e3]
    choices = read_choices(margin, annotator)
    grid = tabulate(choices, family).grids[0]
    beta = panels.strength_grid(grid.z, grid.origin, family)
    plain = panels._plain_log_likelihood(beta, choices, 0.0)
    np.testing.assert_allclose(grid.log_likelihood, plain, rtol=1e-12)


def _odd_sizes(simulate, largest):
    """One annotator with many choices beside 30 with two."""
    margin, annotator, _ = simulate(30, 2, 0.6)
    many = simulate(1, largest, 0.6, seed=1)[0]
    return read_choices(np.append(margin, many), np.append(annotator, np.full(largest, 30)))


@pytest.mark.untyped
def test_one_diligent_annotator_costs_no_more_than_their_own_choices(simulate, monkeypatch):
    evaluated = []

    def counted(utility, flip_probability):
        evaluated.append(utility.numel())
        return choice_log_prob(utility, flip_probability)

    monkeypatch.setattr(panels, "choice_log_prob", counted)
    small, large = (tabulate(_odd_sizes(simulate, n), "lognormal") for n in (2, 100_000))
    # A grid for all would have 31 times the finest grid's cells, and 1e9 likelihoods of choices.
    finest = large.grids[0].log_likelihood.numel()
    assert large.num_cells < finest + 2 * small.num_cells
    assert sum(evaluated) < 100 * 100_000
    assert [len(member) for member in large.members] == [1, 30]


def test_grids_by_size_give_every_annotators_likelihood(simulate):
    choices = _odd_sizes(simulate, 2_000)
    table = tabulate(choices, "lognormal")
    mean, cv = (torch.tensor([x, y], dtype=torch.float64) for x, y in ((0.1, 0.1), (0.6, 0.05)))
    exact = [
        _exact(choices.margin, 0.1, value, "lognormal", choices.annotator) for value in cv.tolist()
    ]
    np.testing.assert_allclose(table.per_annotator(mean, cv).T, exact, rtol=1e-9, atol=1e-8)


@pytest.mark.untyped
@pytest.mark.parametrize("family", ["gamma", "lognormal", "normal"])
def test_summaries_are_those_of_draws(simulate, family):
    """Five standard errors of 2,000 draws; of the 5% quantile, about 2.1 sd / sqrt(n)."""
    choices = _odd_sizes(simulate, 2_000)
    table, size = tabulate(choices, family), 2_000
    rng = np.random.default_rng(0)
    mean, cv = rng.uniform(0.08, 0.12, size), rng.uniform(0.3, 0.6, size)
    found = table.summarise_strengths(mean, cv)
    point = torch.from_numpy(mean), torch.from_numpy(cv)
    draws = table.draw_strengths(*point, rng).numpy()
    error = draws.std(0) / np.sqrt(size)
    assert (np.abs(found["mean"] - draws.mean(0)) < 5 * error).all()
    np.testing.assert_allclose(found["sd"], draws.std(0), rtol=0.1)
    for name, level in {"q05": 0.05, "q50": 0.5, "q95": 0.95}.items():
        distance = np.abs(found[name] - np.quantile(draws, level, axis=0))
        assert (distance < 15 * error).all()
    positive = (draws <= 0).mean(0)
    np.testing.assert_allclose(found["p_not_positive"], positive, atol=5 * 0.5 / np.sqrt(size))


@pytest.mark.untyped
def test_summaries_of_a_narrow_distribution_and_of_an_outlier_are_finite(simulate):
    table, _ = _outlier(6_000, 20.0)
    narrow, rare = (
        table.summarise_strengths(np.full(9, 0.01), np.full(9, cv)) for cv in (1e-3, 0.1)
    )
    assert narrow["mean"] == pytest.approx(0.01, rel=0.02)
    assert np.isfinite(rare["q95"]).all() and (rare["q05"] < rare["q95"]).all()


def test_annotators_far_from_the_distribution_have_a_log_likelihood_all_the_same():
    """Where sums relative to the largest likelihood underflow, against the models' quadrature."""
    rng = np.random.default_rng(0)
    margin, person = np.abs(rng.normal(0, 1, 8_000)), np.repeat([0, 1], 4_000)
    agrees = rng.random(8_000) < 1 / (1 + np.exp(-margin))
    choices = read_choices(np.where(agrees, margin, -margin), person)
    table, mean, cv = tabulate(choices, "lognormal"), 60.0, 0.1
    point = torch.tensor([mean]).double(), torch.tensor([cv]).double()
    found = table.per_annotator(*point)[:, 0]
    expected = mixed_logit_log_prob(
        torch.from_numpy(choices.margin), mean, cv, "lognormal", annotator=torch.from_numpy(person)
    )
    assert table(*point).item() == -np.inf  # the point is out of the question
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
