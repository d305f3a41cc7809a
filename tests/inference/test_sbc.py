import numpy as np
import pytest
from scipy.special import expit

from mixdpo_pyro.inference import (
    Design,
    SBCResult,
    calibrate,
    fit,
    plot_calibration,
    simulate,
)
from mixdpo_pyro.inference.calibration import sbc
from mixdpo_pyro.progress import Engine


def _prior(margin, annotator, seed):
    rng = np.random.default_rng(seed)
    mean = 0.1 * np.exp(0.5 * rng.standard_normal(99))
    return {"mean": mean, "cv": np.abs(rng.standard_normal(99))}


@pytest.mark.untyped
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


@pytest.mark.untyped
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


def test_pairs_have_as_many_different_judges_as_asked_and_errors_that_these_share():
    """With equal strengths 1, errors of sd 3 flatten the link to E sigma(margin + e)."""
    design = Design(400, 100, spread=2.0, beta=1.0, judges_per_pair=4, pair_error=1.5)
    world = simulate(1.0, 0.0, "lognormal", design, np.random.default_rng(0))
    assert world.pair is not None and set(np.bincount(world.pair)) == {4}
    assert len(set(zip(world.pair, world.annotator, strict=True))) == len(world.pair) == 40_000
    assert set(np.bincount(world.annotator)) == {100}
    size = np.abs(world.margin)
    assert all(np.ptp(size[world.pair == k]) == 0 for k in range(20))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    flat = expit(size[:, None] + 3.0 * nodes) @ (weights / weights.sum())
    agrees = world.margin > 0
    error = np.sqrt((flat * (1 - flat)).mean() / 10_000)  # at least as wide as that of 4 judges
    assert agrees.mean() == pytest.approx(flat.mean(), abs=4.5 * error)
    assert agrees.mean() < expit(size).mean() - 10 * error
    # Judges of one pair agree more often than independent ones would: they share its error.
    first, second = agrees[np.argsort(world.pair, kind="stable")].reshape(-1, 4)[:, :2].T
    independent = flat**2 + (1 - flat) ** 2
    assert (first == second).mean() > independent.mean() + 10 * error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "ties", "pair_error": 0.5},
            "Expected plain pairs with several judges",
        ),
        ({"judges_per_pair": 3}, r"to divide num_annotators \(20\), got 3"),
    ],
)
def test_pairs_that_cannot_be_shared_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        simulate(1.0, 0.5, "gamma", Design(**changes), np.random.default_rng(0))
