import numpy as np
import pytest
from scipy import stats

from mixdpo_pyro.inference.likelihood.pairs import compress
from mixdpo_pyro.inference.methods.laplace import explore
from mixdpo_pyro.inference.methods.log_joint import LogJoint, maximise


def _brute_force_marginals(log_joint, log_mean, log_cv):
    """Marginal distribution functions of log mean and log cv on a dense grid."""
    grid = np.stack(np.meshgrid(log_mean, log_cv, indexing="ij")).reshape(2, -1)
    value = log_joint(*grid).reshape(len(log_mean), len(log_cv))
    mass = np.exp(value - value.max())
    return [np.cumsum(mass.sum(axis)) / mass.sum() for axis in (1, 0)]


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("anchor", "family", "cv"),
    [("prior", "gamma", 0.0), ("prior", "lognormal", 0.6), ("free", "gamma", 0.6)],
)
def test_draws_follow_the_posterior_of_a_brute_force_grid(
    simulate, failure_rate, anchor, family, cv
):
    """With 1,000 pairs the posterior of cv is skewed and piles up at zero: plain Laplace fails.

    The grid's step is at most one standard deviation of log mean, where a trapezoid rule errs by
    exp(-2 pi^2) = 3e-9. Distribution functions between grid points are linear, off by at most 0.02
    at that step; the test of 4,000 draws fails at 0.037, so a coarse grid can only fail the test.
    """
    margin = simulate(1_000, 1, cv)[0]
    log_joint = LogJoint(compress(margin, family), anchor, 0.1)
    log_mean, log_cv = np.linspace(-3.2, -0.2, 61), np.linspace(-9, 2.3, 114)
    draws = explore(log_joint).draw(4_000, np.random.default_rng(0))
    exact = _brute_force_marginals(log_joint, log_mean, log_cv)
    for name, grid, cumulative in zip(("mean", "cv"), (log_mean, log_cv), exact, strict=True):
        middle = np.append(grid[:-1] + np.diff(grid) / 2, grid[-1])
        uniform = np.interp(np.log(draws[name]), middle, cumulative)
        assert stats.kstest(uniform, "uniform").pvalue > failure_rate, name


def test_margins_that_say_nothing_leave_the_prior(failure_rate):
    margin = np.linspace(-1e-9, 1e-9, 50)
    draws = explore(LogJoint(compress(margin, "gamma"), "prior", 0.3)).draw(
        4_000, np.random.default_rng(0)
    )
    log_mean = stats.norm(np.log(0.3), 0.5)
    assert stats.kstest(draws["cv"], stats.halfnorm.cdf).pvalue > failure_rate
    assert stats.kstest(np.log(draws["mean"]), log_mean.cdf).pvalue > failure_rate
    assert abs(np.corrcoef(np.log(draws["mean"]), draws["cv"])[0, 1]) < 0.08


def test_fixed_mean_is_fixed(simulate):
    log_joint = LogJoint(compress(simulate(2_000, 1, 0.6)[0], "gamma"), "fixed", 0.1)
    draws = explore(log_joint).draw(100, np.random.default_rng(0))
    np.testing.assert_allclose(draws["mean"], 0.1, rtol=1e-12)
    assert draws["cv"].std() > 0


@pytest.mark.untyped
@pytest.mark.parametrize("anchor", ["prior", "free", "fixed"])
def test_maximum_is_not_beaten_by_a_dense_grid(simulate, anchor):
    log_joint = LogJoint(compress(simulate(3_000, 1, 0.6)[0], "gamma"), anchor, 0.1)
    best, null = maximise(log_joint)
    log_mean = np.log([0.1]) if anchor == "fixed" else np.linspace(-3, -1.5, 61)
    cv = np.linspace(0.02, 1.5, 50)
    grid = np.stack(np.meshgrid(log_mean, cv)).reshape(2, -1)
    on_grid = log_joint.penalised(*grid).max()
    assert 0 <= best.penalised - on_grid < 0.1
    on_null = log_joint.penalised(log_mean, np.zeros(len(log_mean))).max()
    assert -1e-9 <= null.penalised - on_null < 0.1
    assert best.penalised > null.penalised


@pytest.mark.untyped
def test_maximum_lies_at_the_boundary_where_choices_are_more_consistent_than_logistic(simulate):
    margin = np.abs(simulate(3_000, 1, 0.0)[0])
    margin[np.argsort(margin)[:300]] *= -1  # only the smallest margins are contradicted
    best, null = maximise(LogJoint(compress(margin, "gamma"), "free", 0.1))
    assert best == null
    assert best.cv == 0.0


def test_narrow_posterior_of_many_pairs_is_found(simulate):
    """200,000 pairs: the posterior is a hundredth of the searched window wide."""
    draws = explore(LogJoint(compress(simulate(200_000, 1, 0.6)[0], "gamma"), "prior", 0.1)).draw(
        2_000, np.random.default_rng(0)
    )
    for name, truth in {"mean": 0.1, "cv": 0.6}.items():
        assert abs(draws[name].mean() - truth) < 4.5 * draws[name].std()  # fails once in 1e5
        assert draws[name].std() < 0.03 * truth
