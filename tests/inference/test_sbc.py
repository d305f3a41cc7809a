import numpy as np
import pytest

from mixdpo_pyro.inference import Design, SBCResult, calibrate, fit, plot_calibration
from mixdpo_pyro.inference.calibration import sbc
from mixdpo_pyro.progress import Engine


def _prior(margin, annotator, seed):
    rng = np.random.default_rng(seed)
    mean = 0.1 * np.exp(0.5 * rng.standard_normal(99))
    return {"mean": mean, "cv": np.abs(rng.standard_normal(99))}


def test_prior_as_posterior_is_calibrated(failure_rate):
    result = calibrate(num_datasets=500, design=Design(2, 2), sampler=_prior, family="gamma")
    for name in ("mean", "cv"):
        assert result.p_value(name) > failure_rate
        assert result.coverage(name) == pytest.approx(0.9, abs=4.5 * 0.0134)


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1 / 2), (0.0, 2.0), (0.4, 1.0)])
def test_narrow_wide_and_shifted_posteriors_are_caught(failure_rate, shift, factor):
    def wrong(*data):
        log_mean = np.log(_prior(*data)["mean"])
        return {
            "mean": np.exp(log_mean.mean() + shift + factor * (log_mean - log_mean.mean())),
            "cv": _prior(*data)["cv"],
        }

    result = calibrate(num_datasets=500, design=Design(2, 2), sampler=wrong, family="gamma")
    assert result.p_value("mean") < failure_rate
    assert result.p_value("cv") > failure_rate


def test_ranks_count_the_draws_below_the_truth():
    result = SBCResult("hand", {"mean": np.array([0, 4, 9]), "cv": np.array([5, 5, 5])}, 9)
    np.testing.assert_allclose(result.uniform("mean"), [0.05, 0.45, 0.95])
    assert result.coverage("mean", 0.5) == pytest.approx(1 / 3)


def test_fit_is_calibrated_and_a_narrow_one_is_caught(failure_rate, monkeypatch):
    """30 small panels; the same posteriors, three times too narrow in log cv, are caught."""
    fits = []
    monkeypatch.setattr(sbc, "fit", lambda *a, **k: fits.append(fit(*a, **k)) or fits[-1])
    options = {"family": "gamma", "num_datasets": 30, "design": Design(12, 6)}
    right = calibrate(**options)
    earlier = iter(fits)

    def narrow(margin, annotator, seed):
        draws = next(earlier).posterior.draws
        log_cv = np.log(draws["cv"])
        return draws | {"cv": np.exp(np.median(log_cv) + (log_cv - np.median(log_cv)) / 3)}

    wrong = calibrate(**options, sampler=narrow)
    assert right.p_value("mean") > failure_rate and right.p_value("cv") > failure_rate
    assert wrong.p_value("cv") < failure_rate


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
@pytest.mark.parametrize("method", ["laplace", "svi", "nuts"])
def test_every_method_and_family_is_calibrated(failure_rate, method, family):
    num_datasets = {"laplace": 200, "svi": 50, "nuts": 30}[method]
    result = calibrate(family, method, num_datasets)
    assert result.p_value("mean") > failure_rate and result.p_value("cv") > failure_rate


def test_plot_has_a_panel_per_parameter(tmp_path):
    result = calibrate(num_datasets=20, design=Design(2, 2), sampler=_prior, family="gamma")
    figure = plot_calibration([result, result])
    assert [axis.get_title() for axis in figure.axes[:2]] == [
        "laplace, gamma: mean",
        "laplace, gamma: cv",
    ]
    figure.savefig(tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 10_000


def test_ranks_do_not_depend_on_the_engine():
    options = {"num_datasets": 12, "design": Design(2, 2), "sampler": _prior, "family": "gamma"}
    found = [calibrate(**options, engine=e).ranks for e in (None, Engine(jobs=3, threads=True))]
    for name in ("mean", "cv"):
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_no_dataset_raises():
    with pytest.raises(ValueError, match="num_datasets >= 1, got 0"):
        calibrate(num_datasets=0, family="gamma")
