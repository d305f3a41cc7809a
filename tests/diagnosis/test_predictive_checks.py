import json
import re

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape
from scipy.special import expit

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.diagnosis import predictive_checks
from mixdpo_pyro.diagnosis.check_report import write_check_report
from mixdpo_pyro.diagnosis.check_statistics import (
    OWN_STRENGTH,
    SAME_PAIR,
    SPREAD,
    agreement_on_pairs,
    calibrate_predictions,
    excess_over_own_strength,
)
from mixdpo_pyro.diagnosis.config import CheckConfig
from mixdpo_pyro.diagnosis.pair_checks import check_pairs
from mixdpo_pyro.diagnosis.predictive_checks import (
    check_lines,
    check_predictions,
    read_posterior,
)
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference import (
    Design,
    Posterior,
    fit,
    read_choices,
    save_arviz,
    simulate,
    to_arviz,
)
from mixdpo_pyro.inference.choices import orient_at_random
from mixdpo_pyro.inference.robustness.errors.allowed_for import allow_for_errors
from mixdpo_pyro.inference.robustness.errors.pair_errors import estimate_pair_errors


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


def crossed(seed, cv=0.6, pair_error=0.0, flip=0.0, people=60, each=32, judges=4):
    """People of whom some judge each pair, some labels being flipped."""
    design = Design(people, each, 2.0, 1.0, "pairs", judges, pair_error)
    world = simulate(1.0, cv, "lognormal", design, np.random.default_rng(seed))
    is_flipped = np.random.default_rng((seed, 1)).random(len(world.margin)) < flip
    margin = np.where(is_flipped, -world.margin, world.margin)
    return read_choices(margin, world.annotator, pair=world.pair)


def p_values(choices, posterior, seed, number=100):
    rng = np.random.default_rng((seed, 2))
    found = check_pairs(choices, {}, "annotator", posterior, number, rng)
    return {s.name: s.p_value for s in found.statistics}


@pytest.mark.parametrize("pair_error", [0.0, 0.6])
def test_people_on_one_pair_and_their_own_strength_give_uniform_p_values(
    pair_error, failure_rate=2e-5
):
    """Nothing is fitted: the posterior is the truth, and nobody is known to it."""
    from scipy import stats

    error = {"pair_error": np.full(5, 2.0 * pair_error)} if pair_error else {}
    truth = Posterior(np.full(5, 1.0), np.full(5, 0.6), "lognormal", parameters=error)
    worlds = [crossed(seed, pair_error=pair_error) for seed in range(25)]
    found = [p_values(world, truth, seed) for seed, world in enumerate(worlds)]
    for name in found[0]:
        values = [each[name] for each in found]
        assert stats.kstest(values, "uniform").pvalue > failure_rate
        assert max(values) > 0.3  # not all at one end


@pytest.mark.parametrize(
    ("world", "name"),
    [({"pair_error": 1.0}, SAME_PAIR), ({"flip": 0.2, "cv": 0.5, "each": 80}, OWN_STRENGTH)],
    ids=["errors", "flips"],
)
def test_shared_errors_and_random_answers_are_seen_in_most_datasets(world, name):
    """The posterior is fitted to the same choices, as a user's is."""
    count = 0
    for seed in range(4):
        choices = crossed(seed, **world)
        posterior = fit(choices, beta=1.0, num_samples=100).posterior
        count += p_values(choices, posterior, seed, 300)[name] < 0.05 / 7
    assert count >= 3


def test_choices_by_margins_that_err_pass_with_the_errors_and_fail_without(tmp_path):
    """Five people judge a pair, by margins whose errors are 0.6 of their size."""
    choices = crossed(1, 0.8, 0.6, people=80, each=40, judges=5)
    table = {"margin": choices.margin, "annotator": choices.annotator, "pair": choices.pair}
    pd.DataFrame(table).to_parquet(tmp_path / "m.parquet")
    exact = fit(choices, beta=1.0, num_samples=100)
    allowed = allow_for_errors(exact, estimate_pair_errors(exact))
    found = {}
    for name, result in (("exact", exact), ("errors", allowed)):
        result.posterior.save(tmp_path / f"{name}.nc")
        config = CheckConfig(num_replications=300)
        found[name] = check_predictions(tmp_path / "m.parquet", tmp_path / f"{name}.nc", config)
    alike = {name: statistics(each)[SAME_PAIR] for name, each in found.items()}
    assert alike["exact"].observed > alike["exact"].high and alike["exact"].p_value < 0.05 / 7
    assert min(s.p_value for s in found["errors"].statistics) > 0.05 / 7
    assert 0.1 < alike["errors"].p_value
    low, _, high = found["errors"].margin_error
    assert low < 1.2 < high and found["exact"].margin_error is None
    assert any("are drawn anew" in line for line in check_lines(found["errors"], 0))


def test_agreement_on_pairs_is_that_of_all_judgements_two_by_two():
    rng = np.random.default_rng(4)
    pair, annotator = rng.integers(20, size=150), rng.integers(9, size=150)
    margin = rng.normal(size=20)[pair] * (pair != 3)  # no orientation at zero
    agrees = rng.random((3, 150)) < 0.7
    first = {}  # of each person on each pair
    for row in range(150):
        if pair[row] != 3:
            first.setdefault((pair[row], annotator[row]), row)
    alike = [
        agrees[:, a] == agrees[:, b]
        for (p, g), a in first.items()
        for (q, h), b in first.items()
        if p == q and g < h
    ]
    found = agreement_on_pairs(pair, annotator, margin)
    np.testing.assert_allclose(found(agrees), np.mean(alike, axis=0))
    assert agreement_on_pairs(np.arange(150), annotator, margin) is None


def test_only_choices_against_large_margins_exceed_ones_own_strength():
    equal = excess_over_own_strength(np.full(8, 2.0), np.zeros(8, dtype=int))
    agrees = np.arange(8) < np.array([[4], [6], [8]])
    np.testing.assert_allclose(equal(agrees), 0, atol=2e-3)  # a strength fits any number of them
    size, person = np.array([1.0, 1.0, 1.0, 6.0, 1.0]), np.array([0, 0, 0, 0, 1])
    excess = excess_over_own_strength(size, person)
    against_large = excess(np.array([[1, 1, 1, 0, 1.0]]))  # best strength 0: two of four
    assert against_large == pytest.approx(1.0)
    assert excess(np.array([[0, 1, 1, 1, 1.0]])) < 0.2


def test_errors_that_judges_share_are_named(tmp_path, capsys):
    choices = crossed(0, pair_error=1.0)
    table = {"margin": choices.margin, "annotator": choices.annotator, "pair": choices.pair}
    pd.DataFrame(table).to_csv(tmp_path / "m.csv", index=False)
    save_arviz(to_arviz(fit(choices, beta=1.0, num_samples=200)), tmp_path / "posterior.nc")
    assert main(["check", str(tmp_path / "m.csv"), str(tmp_path / "posterior.nc")]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("the choices are not") and SAME_PAIR in first
    assert second.startswith("margins have errors that judges of a pair share")


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
    assert facts["kind"] == "pairs" and len(facts["statistics"]) == 6
    assert facts["choices"] == facts["choices_looked_at"] == 1_000
    names = {path.name for path in (out / "figures").iterdir()}
    assert {"reliability.png", "separation.png", "statistic_6.png"} <= names
    assert len(pd.read_csv(out / "groups.csv")) == 50
    page = (out / "report.html").read_text()
    top = page.split("<h2>")[0]
    assert "The choices are like those that the posterior predicts" in top
    assert "Use the posterior for these annotators" in top and top.count("<img") == 1
    assert page.count("<img") == page.count('alt="') == len(list((out / "figures").glob("*.svg")))


def test_the_page_of_a_posterior_that_fails_says_in_what(world, tmp_path):
    config = CheckConfig(num_replications=200)
    found = check_predictions(world / "m.parquet", world / "equal.nc", config)
    write_check_report(found, tmp_path, ("m.parquet", "equal.nc"))
    top = (tmp_path / "report.html").read_text().split("<h2>")[0]
    assert "The choices are not what the posterior predicts" in top
    assert str(escape(SPREAD)) in top and "Do not use this posterior" in top


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


def posterior_of(draws):
    known = {name: draws[name] for name in ("mean", "cv", "strength")}
    error = {"pair_error": draws["pair_error"]}
    return Posterior(**known, family="gamma", annotators=("a", "b"), parameters=error)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("cv", np.inf, "every draw of cv to be finite and >= 0, got inf (1 of "),
     ("cv", -1.0, "every draw of cv to be finite and >= 0, got -1.0 (1 of "),
     ("cv", np.nan, "every draw of cv to be finite and >= 0, got nan (1 of "),
     ("mean", 0.0, "every draw of mean to be finite and > 0, got 0.0 (1 of "),
     ("strength", np.nan, "every draw of strength to be finite, got nan (1 of "),
     ("pair_error", -1.0, "every draw of pair_error to be finite and >= 0, got -1.0 (1 of ")],
)  # fmt: skip
def test_draws_that_are_none_of_a_strength_are_refused(tmp_path, name, value, words):
    rng = np.random.default_rng(0)
    draws = {"mean": rng.gamma(9, 1, 20), "cv": rng.gamma(9, 0.1, 20),
             "strength": rng.gamma(9, 1, (20, 2)), "pair_error": np.zeros(20)}  # fmt: skip
    sound = posterior_of(draws)
    assert read_posterior(sound.save(tmp_path / "sound.nc")).num_samples == 20
    draws[name].flat[3] = value
    bad = posterior_of(draws)
    with pytest.raises(ValueError, match=re.escape(words)):
        bad.validate()
    path = bad.save(tmp_path / "bad.nc")
    with pytest.raises(DataError, match=re.escape(f"{path}: Expected {words}")):
        read_posterior(path)
