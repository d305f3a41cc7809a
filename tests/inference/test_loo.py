import numpy as np
import pytest
from scipy.special import expit, logsumexp

from mixdpo_pyro.inference import fit, to_datatree
from mixdpo_pyro.inference.likelihood.pairs import pair_log_prob
from mixdpo_pyro.inference.loo import compare_loo, leave_one_out


@pytest.mark.untyped
def test_leaving_out_a_pair_equals_refitting_without_it(simulate):
    """Importance sampling from 4000 draws has an error far below 0.02 nats a pair."""
    margin = simulate(40, 1, 0.8)[0]
    loo = leave_one_out(fit(margin, num_samples=4000, family="gamma"))
    for k in (0, 7, 23):
        rest = fit(np.delete(margin, k), num_samples=4000, seed=1, family="gamma").posterior
        log_prob = pair_log_prob(margin[[k]], rest.mean, rest.cv, "gamma")[:, 0]
        refitted = logsumexp(log_prob) - np.log(4000)
        assert loo.pointwise[k] == pytest.approx(refitted, abs=0.02)


def test_leave_one_out_equals_that_of_arviz(simulate):
    import arviz_stats
    import xarray as xr

    margin, annotator, _ = simulate(30, 10, 0.6)
    result = fit(margin, annotator=annotator, family="gamma")
    tree = to_datatree(result)
    tree["log_likelihood"] = xr.DataTree(tree["log_likelihood"].to_dataset()[["choices"]])
    ours, theirs = leave_one_out(result), arviz_stats.loo(tree, var_name="choices")
    assert ours.elpd == pytest.approx(float(theirs.elpd), abs=1e-6)
    assert ours.effective_parameters == pytest.approx(float(theirs.p), abs=1e-6)
    assert ours.num_units == 30 and ours.is_reliable


def test_a_subsample_estimates_the_whole_within_its_error(simulate):
    """The surrogate explains nearly everything, so that the subsample adds little."""
    result = fit(simulate(4_000, 1, 0.8)[0], num_samples=400, family="gamma")
    whole, part = leave_one_out(result, max_units=4_000), leave_one_out(result, max_units=500)
    assert len(part.unit) == 500 and len(whole.unit) == 4_000
    assert part.elpd == pytest.approx(whole.elpd, abs=1.0)
    assert part.se == pytest.approx(whole.se, rel=0.2)


def test_one_strength_has_one_effective_parameter(simulate):
    margin, annotator, _ = simulate(300, 20, 0.0)
    equal = fit(margin, annotator=annotator, family="fixed")
    assert leave_one_out(equal).effective_parameters == pytest.approx(1.0, abs=0.4)
    assert np.all(equal.posterior.cv == 0)


def test_equal_strength_has_the_posterior_of_the_fixed_model(simulate):
    """With a prior that is flat nearby, the log mean is normal with the curvature of the sum."""
    margin = simulate(2_000, 1, 0.0)[0]
    draws = np.log(fit(margin, num_samples=5_000, family="fixed").posterior.mean)
    x = np.exp(draws.mean()) * margin
    information = (x**2 * expit(x) * expit(-x)).sum() + 1 / 0.5**2
    assert draws.std() == pytest.approx(information**-0.5, rel=0.05)


def test_different_people_are_predicted_better_by_different_strengths(simulate):
    margin, annotator, _ = simulate(100, 30, 0.6)
    result, equal = (fit(margin, annotator=annotator, family=f) for f in ("gamma", "fixed"))
    difference = compare_loo(leave_one_out(result), leave_one_out(equal))
    assert difference.elpd > 3 * difference.se


def test_results_of_other_units_are_not_compared(simulate):
    result = fit(simulate(200, 1, 0.6)[0], family="gamma")
    with pytest.raises(ValueError, match="same units"):
        compare_loo(leave_one_out(result), leave_one_out(result, max_units=50))
    with pytest.raises(ValueError, match="max_units >= 2, got 1"):
        leave_one_out(result, max_units=1)
