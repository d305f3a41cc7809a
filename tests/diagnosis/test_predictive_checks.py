import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.diagnosis import predictive_checks
from mixdpo_pyro.diagnosis.check_statistics import SPREAD, calibrate_predictions
from mixdpo_pyro.diagnosis.config import CheckConfig
from mixdpo_pyro.diagnosis.predictive_checks import check_predictions, read_posterior
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference import Posterior, fit, save_arviz, to_arviz
from mixdpo_pyro.inference.choices import orient_at_random


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Margins of 50 people, 20 choices each, and their posterior, as files."""
    folder = tmp_path_factory.mktemp("check")
    rng = np.random.default_rng(2)
    strength = rng.lognormal(-0.2, 0.6, 50)
    person, x = np.repeat(np.arange(50), 20), rng.normal(0, 3, 1_000)
    margin = np.where(rng.random(1_000) < expit(strength[person] * x), x, -x)
    table = pd.DataFrame({"margin": margin, "annotator": person, "topic": person % 3})
    table.to_parquet(folder / "m.parquet")
    result = fit(margin, annotator=person, family="lognormal", beta=1.0, num_samples=400)
    save_arviz(to_arviz(result), folder / "posterior.nc")
    equal = np.where(rng.random(1_000) < expit(x), x, -x)
    equals = fit(equal, annotator=person, family="gamma", beta=1.0, num_samples=400)
    save_arviz(to_arviz(equals), folder / "equal.nc")
    return folder


def test_summaries_in_place_of_draws_are_refused_by_their_file(world, capsys):
    data = pd.read_parquet(world / "m.parquet")
    result = fit(data["margin"], annotator=data["annotator"], draw_strengths="summary")
    save_arviz(to_arviz(result), world / "summary.nc")
    assert main(["check", str(world / "m.parquet"), str(world / "summary.nc")]) == 1
    error = capsys.readouterr().err
    assert "summary.nc: Expected draws of the annotators' strengths" in error
    assert "diagnose --draw_strengths" in error and "ValueError" not in error


def statistics(found):
    return {s.name: s for s in found.statistics}


def test_choices_of_the_posterior_pass(world):
    found = check_predictions(
        world / "m.parquet", world / "posterior.nc", CheckConfig(group=("topic",))
    )
    assert all(s.p_value > 0.01 for s in found.statistics)
    assert found.calibration.outside < 0.5
    assert found.num_known == found.num_annotators == 50
    assert len(found.groups) == 53


def test_the_posterior_of_equal_people_fails_on_their_spread(world):
    """Annotators who differ, checked against a distribution fitted to equal ones."""
    found = check_predictions(world / "m.parquet", world / "equal.nc", CheckConfig())
    spread = statistics(found)[SPREAD]
    assert spread.observed > spread.high and spread.p_value < 0.01


def test_predictive_p_values_are_uniform_where_the_distribution_is_right(
    tmp_path, world, monkeypatch, failure_rate=2e-5
):
    """P-values below 0.2 in replications of the posterior itself are binomial."""
    from scipy import stats

    posterior = read_posterior(world / "posterior.nc")
    monkeypatch.setattr(predictive_checks, "read_posterior", lambda path: posterior)
    small = []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        k = rng.integers(len(posterior.mean))
        sigma = np.sqrt(np.log1p(posterior.cv[k] ** 2))
        strength = posterior.mean[k] * rng.lognormal(-(sigma**2) / 2, sigma, 150)
        x = rng.normal(0, 3, 150)
        margin = np.where(rng.random(150) < expit(strength * x), x, -x)
        pd.DataFrame({"margin": margin}).to_parquet(tmp_path / "new.parquet")
        config = CheckConfig(num_replications=100, seed=seed)
        found = check_predictions(tmp_path / "new.parquet", world / "posterior.nc", config)
        small.append(statistics(found)["agreement with the margin"].p_value < 0.2)
    assert sum(small) <= stats.binom.isf(failure_rate, 15, 0.2)


def test_an_unoriented_check_is_vacuous_and_an_oriented_one_is_not():
    """Were the chosen always first, the isotonic fit is 1 whatever was predicted."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, 2_000)
    margin = np.where(rng.random(2_000) < expit(x), x, -x)
    always = np.ones(2_000, dtype=bool)
    for strength in (0.1, 1.0, 10.0):
        probability = expit(strength * margin)
        curve = calibrate_predictions(probability, always, always[None])
        assert np.all(curve.calibrated == 1)
    oriented, is_first = orient_at_random(margin, rng)
    outside = {}
    for strength in (0.1, 1.0, 10.0):
        probability = expit(strength * oriented)
        replicated = rng.random((200, 2_000)) < probability
        outside[strength] = calibrate_predictions(probability, is_first, replicated).outside
    assert outside[1.0] < 0.3
    assert min(outside[0.1], outside[10.0]) > 0.6


def test_isotonic_calibration_pools_adjacent_violators():
    probability = np.array([0.1, 0.2, 0.3, 0.4])
    is_first = np.array([False, True, False, True])
    curve = calibrate_predictions(probability, is_first, is_first[None])
    assert curve.calibrated.tolist() == [0, 0.5, 0.5, 1]


def test_check_command_writes_figures_and_prints_a_table(capsys, world, tmp_path):
    out = tmp_path / "out"
    arguments = ["check", world / "m.parquet", world / "posterior.nc", "-o", out]
    assert main([str(a) for a in arguments]) == 0
    text = capsys.readouterr().out
    assert text.startswith("the choices are like those")
    assert "oriented at random (seed 0)" in text
    facts = json.loads((out / "check.json").read_text())
    assert facts["kind"] == "pairs" and len(facts["statistics"]) == 5
    assert facts["choices"] == facts["choices_looked_at"] == 1_000
    names = {path.name for path in (out / "figures").iterdir()}
    assert {"reliability.png", "separation.png", "statistic_5.png"} <= names
    assert len(pd.read_csv(out / "groups.csv")) == 50


def test_other_people_get_strengths_of_the_distribution(world, tmp_path):
    table = pd.read_parquet(world / "m.parquet")
    table["annotator"] = "new-" + table["annotator"].astype(str)
    table.to_csv(tmp_path / "new.csv", index=False)
    found = check_predictions(tmp_path / "new.csv", world / "posterior.nc")
    assert found.num_known == 0 and found.num_annotators == 50
    assert all(s.p_value > 0.01 for s in found.statistics)


def test_a_bad_posterior_is_named(capsys, world, tmp_path):
    import xarray as xr

    whole = (world / "posterior.nc").read_bytes()
    half, text = tmp_path / "half.nc", tmp_path / "text.nc"
    half.write_bytes(whole[: len(whole) // 2])
    text.write_text("not a file of this kind")
    other = tmp_path / "other.nc"
    xr.DataTree.from_dict({"posterior": xr.Dataset({"mu": (("chain", "draw"), np.ones((1, 3)))})}
                          ).to_netcdf(other, engine="h5netcdf")  # fmt: skip
    for path, message in (
        (half, "cannot be read as NetCDF"),
        (text, "cannot be read as NetCDF"),
        (other, "variable 'cv' of group 'posterior' is missing"),
        (tmp_path / "none.nc", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            read_posterior(path)
        assert main(["check", str(world / "m.parquet"), str(path)]) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith(f"mixdpo: error: {path}: ") and "\n" not in error


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("cv", np.inf, "every draw of cv to be finite and >= 0, got inf (1 of "),
     ("cv", -1.0, "every draw of cv to be finite and >= 0, got -1.0 (1 of "),
     ("cv", np.nan, "every draw of cv to be finite and >= 0, got nan (1 of "),
     ("mean", 0.0, "every draw of mean to be finite and > 0, got 0.0 (1 of "),
     ("strength", np.nan, "every draw of strength to be finite, got nan (1 of ")],
)  # fmt: skip
def test_draws_that_are_none_of_a_strength_are_refused(tmp_path, name, value, words):
    rng = np.random.default_rng(0)
    draws = {"mean": rng.gamma(9, 1, 20), "cv": rng.gamma(9, 0.1, 20),
             "strength": rng.gamma(9, 1, (20, 2))}  # fmt: skip
    sound = Posterior(**draws, family="gamma", annotators=("a", "b"))
    assert read_posterior(sound.save(tmp_path / "sound.nc")).num_samples == 20
    draws[name].flat[3] = value
    bad = Posterior(**draws, family="gamma", annotators=("a", "b"))
    with pytest.raises(ValueError, match=re.escape(words)):
        bad.validate()
    path = bad.save(tmp_path / "bad.nc")
    with pytest.raises(DataError, match=re.escape(f"{path}: Expected {words}")):
        read_posterior(path)
