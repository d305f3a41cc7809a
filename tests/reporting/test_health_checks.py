from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mixdpo_pyro.inference import Posterior, Verdict
from mixdpo_pyro.reporting.health_checks import (
    CALIBRATION,
    DRIFT_FAIL,
    DRIFT_REVIEW,
    HealthReport,
    check_run,
)
from mixdpo_pyro.reporting.run_record import FinishedRun, LearnedStrength, RunData, RunRecord
from mixdpo_pyro.reporting.training_tail import TrainingTail

FAILURE_RATE = 2e-5
MEAN, CV = 0.5, 0.6


def history_of(loss, cv=0.6, rate=1.0):
    loss = np.atleast_1d(loss)
    columns = {"loss": loss, "strength/cv": cv, "strength/mean": MEAN, "learning_rate": rate}
    table = pd.DataFrame({"step": 10 * (np.arange(len(loss)) + 1), **columns})
    return [{**row, "step": int(row["step"])} for row in table.to_dict("records")]


def choices_of(rng, num_annotators=40, num_choices=20):
    """Margins of choices by people with gamma strengths of mean 0.5 and cv 0.6."""
    person = np.repeat(np.arange(num_annotators), num_choices)
    strength = rng.gamma(CV**-2, MEAN * CV**2, num_annotators)[person]
    size = np.abs(rng.normal(0, 4, len(person)))
    agrees = rng.random(len(person)) < 1 / (1 + np.exp(-strength * size))
    return pd.DataFrame({"margin": np.where(agrees, size, -size), "annotator": person})


VERDICT = Verdict("heterogeneous", (0.4, 0.8), 9.0, 0.001, "Strengths differ.")


def passing_run(seed=0):
    """A run that passes every check; tests change one thing about it."""
    rng = np.random.default_rng(seed)
    mean, cv = MEAN * np.exp(rng.normal(0, 0.05, 500)), rng.normal(CV, 0.1, 500)
    stats = {"lp": np.zeros(500)}
    posterior = Posterior(mean, cv, "gamma", beta=MEAN, sample_stats=stats)
    return FinishedRun(
        folder=Path("run"),
        record=RunRecord(
            family="gamma", mean_anchor="prior", beta=MEAN, seed=0,
            data=RunData("d", train=3200, test=800, annotator_column="annotator"),
            learned=LearnedStrength(MEAN, 0.65, 0.1, 1.0), verdict=VERDICT,
        ),
        history=history_of(0.5 + rng.normal(0, 0.02, 60)),
        margins=choices_of(rng),
        posterior=posterior,
        training=replace(posterior, cv=cv + 0.05, method="training"),
    )  # fmt: skip


def changed(run, **values):
    return replace(run, record=replace(run.record, **values))


def with_posterior(run, **values):
    return replace(run, posterior=replace(run.posterior, **values))


def row(run, name):
    return next(check for check in check_run(run).checks if check.name == name)


def test_a_sound_run_passes():
    run = passing_run()
    assert {check.name: check.status for check in check_run(run).checks} == {
        "parts of the run": "PASS",
        "finite numbers": "PASS", "steps of training": "PASS", "drift of the loss": "PASS",
        "drift of cv": "PASS", "drift of the mean": "PASS",
        "computation of the posterior": "PASS", "information about cv": "PASS",
        "training against held-out pairs": "PASS", "held-out accuracy": "PASS",
        CALIBRATION: "PASS", "repeated choices": "PASS", "dropped pairs": "PASS",
    }  # fmt: skip
    assert check_run(run).status == "PASS"
    assert all(check.sentence and check.threshold for check in check_run(run).checks)


def test_the_worst_row_decides_and_an_unknown_one_never_passes():
    one = check_run(passing_run()).checks[0]
    statuses = ("PASS", "REVIEW", "FAIL", "not available", "does not apply")
    rows = {status: replace(one, status=status) for status in statuses}
    assert HealthReport([rows["PASS"], rows["does not apply"]]).status == "PASS"
    assert HealthReport([rows["PASS"], rows["not available"]]).status == "REVIEW"
    assert HealthReport([rows["REVIEW"], rows["FAIL"], rows["PASS"]]).status == "FAIL"


# Training


def test_last_third_counts_in_learning_rate():
    """Linear decay has spent 2/3 of the summed rate by 1 - sqrt(1/3) of the steps."""
    steps = np.arange(1, 1001)
    decaying = TrainingTail.of_history(history_of(np.zeros(1000), rate=1 - steps / 1000))
    constant = TrainingTail.of_history(history_of(np.zeros(1000)))
    assert decaying.first_step == pytest.approx(1e4 * (1 - 3**-0.5), abs=20)
    assert constant.first_step == pytest.approx(1e4 * 2 / 3, abs=20)
    unknown = [{"step": e["step"], "loss": 0.0} for e in history_of(np.zeros(1000))]
    assert TrainingTail.of_history(unknown).first_step == constant.first_step


def test_settled_loss_is_rarely_reviewed():
    """Level 5%, so at most the binomial quantile of 400 settled trainings with much noise."""
    rng = np.random.default_rng(1)
    tails = (
        TrainingTail.of_history(history_of(rng.normal(0.5, 0.1, 30), rate=1 - np.arange(30) / 30))
        for _ in range(400)
    )
    p_values = np.array([tail.change("loss")[2] for tail in tails])
    assert (p_values < 0.05).sum() <= stats.binom.ppf(1 - FAILURE_RATE, 400, 0.05)


@pytest.mark.parametrize(("sign", "word"), [(-1, "falls"), (1, "rises")])
def test_moving_loss_is_reviewed(sign, word):
    noise = np.random.default_rng(0).normal(0, 0.01, 60)
    run = replace(passing_run(), history=history_of(1 + sign * np.linspace(0, 0.6, 60) + noise))
    found = row(run, "drift of the loss")
    assert found.status == "REVIEW" and word in found.sentence
    assert float(found.value.split()[0]) == pytest.approx(sign * 0.2, abs=0.03)
    assert check_run(run).status == "REVIEW"


def test_fall_that_is_certain_but_tiny_passes():
    run = replace(passing_run(), history=history_of(0.5 - np.linspace(0, 0.02, 60)))
    assert row(run, "drift of the loss").status == "PASS"


def test_loss_that_passes_says_which_fall_its_noise_could_hide():
    """The 99% interval of the change, from the textbook formula of a slope's standard error."""
    loss = 0.5 + np.random.default_rng(3).normal(0, 0.05, 60)
    found = row(replace(passing_run(), history=history_of(loss)), "drift of the loss")
    x, y = np.arange(21), loss[39:]
    slope = ((x - 10) * (y - y.mean())).sum() / ((x - 10) ** 2).sum()
    residual = y - y.mean() - slope * (x - 10)
    error = np.sqrt((residual**2).sum() / 19 / ((x - 10) ** 2).sum())
    half = stats.t.ppf(0.995, 19) * 20 * error
    change = 20 * slope
    assert found.status == "PASS"
    assert found.value == (f"{change:+.3f} [{change - half:+.3f}, {change + half:+.3f}] nats")
    assert f"a fall of {half - change:.2g} nats could hide" in found.sentence


@pytest.mark.parametrize(
    ("drift", "status"), [(0.4, "PASS"), (0.7, "REVIEW"), (1.9, "REVIEW"), (2.2, "FAIL")]
)
def test_drift_of_cv_is_counted_in_sd_of_the_guide(drift, status):
    """A straight line: a third of it lies in the last third (20 of its 59 gaps)."""
    run = passing_run()
    scale = np.std(run.training.cv)
    total = drift * scale * 59 / 20
    run = replace(run, history=history_of(np.full(60, 0.5), cv=0.6 + np.linspace(0, total, 60)))
    found = row(run, "drift of cv")
    assert float(found.value.split()[0]) == pytest.approx(drift, abs=0.01)
    assert found.status == status


def test_narrow_guide_that_drifts_is_reviewed_but_leaves_the_verdict_standing():
    run = passing_run()
    training = replace(run.training, cv=np.random.default_rng(0).normal(CV, 0.01, 500))
    history = history_of(np.full(60, 0.5), cv=CV + np.linspace(0, 0.2, 60))
    run = replace(run, history=history, training=training)
    assert row(run, "drift of cv").status == "REVIEW"


def test_drift_of_a_small_cv_is_no_reason_to_look_again():
    """From 0.14 to 0.1, many deviations of a narrow guide; no probability moves by a point."""
    run = passing_run()
    training = replace(run.training, cv=np.random.default_rng(0).normal(0.1, 0.005, 500))
    learned = replace(run.record.learned, cv=0.1)
    history = history_of(np.full(60, 0.5), cv=np.linspace(0.22, 0.1, 60))
    run = changed(replace(run, history=history, training=training), learned=learned)
    assert row(run, "drift of cv").status == "PASS"


def test_no_probability_moves_more_than_its_bound_says():
    x = np.linspace(-30, 30, 6001)
    p = 1 / (1 + np.exp(-x))
    assert np.abs(x**2 * p * (1 - p) * (1 - 2 * p) / 2).max() == pytest.approx(0.19, abs=0.005)


def test_thresholds_of_the_drift_are_what_their_docstring_says():
    def coverage(shift):
        return stats.norm.cdf(1.6449 - shift) - stats.norm.cdf(-1.6449 - shift)

    assert coverage(DRIFT_REVIEW) == pytest.approx(0.86, abs=0.005)
    assert coverage(DRIFT_FAIL) == pytest.approx(0.36, abs=0.005)


@pytest.mark.parametrize(
    ("distance", "status"), [(0.4, "PASS"), (0.7, "REVIEW"), (1.9, "REVIEW"), (2.2, "FAIL")]
)
def test_guide_is_measured_by_the_exact_posterior_where_that_is_known(distance, status):
    """However cv moved while new pairs came in."""
    run = passing_run()
    exact = {"exact_cv_mean": float(run.training.cv.mean()) + 0.1 * distance, "exact_cv_sd": 0.1}
    moving = history_of(np.full(60, 0.5), cv=np.linspace(0.1, 0.65, 60))
    training = replace(run.training, diagnostics=exact)
    found = row(replace(run, history=moving, training=training), "learned cv")
    assert (found.status, found.value) == (status, f"{distance:.2f} sd")


def test_point_guide_is_measured_by_the_held_out_posterior():
    run = passing_run()
    run = changed(replace(run, training=run.training.at(MEAN, CV, 9)), mean_anchor="free")
    assert "the guide is a point" in row(run, "drift of cv").sentence
    assert row(run, "drift of the mean").status == "PASS"
    run = changed(run, learned=replace(run.record.learned, mean=2.1 * MEAN))
    found = row(run, "drift of the mean")
    assert (found.status, found.value) == ("REVIEW", "2.1 times beta")


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [({"mean_anchor": "prior"}, "REVIEW", "its prior counts once among all the pairs"),
     ({"mean_anchor": "free"}, "REVIEW", "nothing anchors it"),
     ({"mean_anchor": "fixed"}, "does not apply", "was fixed at beta"),
     ({"mean_anchor": "free", "family": "fixed"}, "does not apply", "was fixed at beta")],
)  # fmt: skip
def test_mean_that_left_beta_is_reviewed_unless_it_was_fixed(settings, status, words):
    learned = replace(passing_run().record.learned, mean=3 * MEAN)
    found = row(changed(passing_run(), learned=learned, **settings), "drift of the mean")
    assert found.status == status and words in found.sentence


def test_cv_that_was_not_learned_is_not_judged():
    run = passing_run()
    run = changed(replace(run, training=run.training.at(MEAN, 3.0, 9)), learn_cv=False)
    for name in ("drift of cv", "training against held-out pairs"):
        assert row(run, name).status == "does not apply"
        assert "learn_cv: false" in row(run, name).sentence
    assert run.disagreement is None


def test_a_part_that_failed_is_named():
    run = changed(passing_run(), failures=["The report failed: no ink (OSError)."])
    found = row(run, "parts of the run")
    assert (found.status, found.value) == ("FAIL", "1 failed")
    assert "The report failed: no ink" in found.sentence
    assert check_run(run).status == "FAIL"


def test_without_logged_losses_convergence_is_not_available():
    run = replace(passing_run(), history=[{"step": 500, "train_runtime": 1.0}])
    for name in ("drift of the loss", "drift of cv"):
        assert row(run, name).status == "not available"
    assert row(run, "steps of training").value == "500"
    assert check_run(run).status == "REVIEW"
    assert "not available: drift of the loss, drift of cv" in check_run(run).sentence


def test_few_steps_fail():
    run = replace(passing_run(), history=history_of(0.5 * np.ones(3)))
    assert row(run, "steps of training").status == "FAIL"
    assert row(replace(run, history=[]), "steps of training").status == "not available"


@pytest.mark.parametrize("what", ["margin", "draw", "loss", "strength"])
def test_numbers_that_are_not_finite_fail(what):
    run = passing_run()
    if what == "margin":
        run.margins.loc[3, "margin"] = np.nan
    elif what == "draw":
        run.posterior.cv[3] = np.inf
    else:
        run.history[3]["loss" if what == "loss" else "strength/cv"] = np.nan
    assert row(run, "finite numbers").status == "FAIL"
    assert check_run(run).status == "FAIL"


def test_skipped_gradient_is_reviewed():
    run = passing_run()
    for entry in run.history:
        entry["grad_norm"] = 1.0
    assert row(run, "finite numbers").status == "PASS"
    run = passing_run()
    for k, entry in enumerate(run.history):
        entry["grad_norm"] = np.inf if k == 5 else 1.0
    assert row(run, "finite numbers").status == "REVIEW"


def test_plain_dpo_has_no_strength_to_check():
    run = changed(passing_run(), family="fixed")
    for name in ("drift of cv", "training against held-out pairs"):
        assert row(run, name).status == "does not apply"


# Posterior


@pytest.mark.parametrize(
    ("diagnostics", "status"),
    [
        ({}, "not available"),
        ({"method": "laplace"}, "not available"),
        ({"method": "laplace", "lp": np.zeros(5)}, "PASS"),
        ({"method": "laplace", "lp": np.array([np.nan])}, "FAIL"),
        ({"method": "nuts", "diverging": np.zeros(5), "r_hat_cv": 1.0, "ess_cv": 900.0}, "PASS"),
        ({"method": "nuts", "diverging": np.ones(5), "r_hat_cv": 1.0, "ess_cv": 900.0}, "FAIL"),
        ({"method": "nuts", "diverging": np.zeros(5), "r_hat_cv": 1.1, "ess_cv": 900.0}, "FAIL"),
        ({"method": "nuts", "diverging": np.zeros(5), "r_hat_cv": 1.0, "ess_cv": 90.0}, "FAIL"),
        ({"method": "nuts", "diverging": np.zeros(5), "r_hat_cv": 1.0}, "not available"),
        ({"method": "svi", "converged": 1, "seed_disagreement_in_sd": 0.1}, "PASS"),
        ({"method": "svi", "converged": 1, "seed_disagreement_in_sd": 0.9}, "REVIEW"),
        ({"method": "svi", "converged": 0, "seed_disagreement_in_sd": 0.1}, "FAIL"),
        ({"method": "svi", "converged": 1}, "not available"),
    ],
)
def test_posterior_is_judged_by_the_diagnostics_of_its_method(diagnostics, status):
    stats = {name: value for name, value in diagnostics.items() if np.ndim(value)}
    numbers = {name: v for name, v in diagnostics.items() if name not in {"method", *stats}}
    run = with_posterior(
        passing_run(), method=diagnostics.get("method", "by hand"), mean_anchor="fixed",
        sample_stats=stats, diagnostics=numbers,
    )  # fmt: skip
    assert row(run, "computation of the posterior").status == status


def test_posterior_that_reaches_the_largest_cv_fails():
    run = passing_run()
    run.posterior.cv[:20] = 9.9
    found = row(run, "computation of the posterior")
    assert (found.status, found.value) == ("FAIL", "4.0% of draws")


def test_prior_that_stays_is_reviewed():
    run = with_posterior(passing_run(), cv=stats.halfnorm.ppf((np.arange(500) + 0.5) / 500))
    found = row(run, "information about cv")
    assert (found.status, found.value) == ("REVIEW", "0%")
    assert "largely the prior's" in found.sentence


def test_disjoint_intervals_are_reviewed():
    run = passing_run()
    training = replace(run.training, cv=np.random.default_rng(0).normal(2, 0.1, 500))
    found = row(replace(run, training=training), "training against held-out pairs")
    assert found.status == "REVIEW" and "disagree" in found.sentence


# Data


@pytest.mark.parametrize(
    ("wins", "status"), [(70, "PASS"), (52, "REVIEW"), (30, "FAIL"), (100, "REVIEW")]
)
def test_accuracy_has_jeffreys_interval(wins, status):
    margin = np.where(np.arange(100) < wins, 1.0, -1.0)
    run = replace(passing_run(), margins=pd.DataFrame({"margin": margin, "annotator": "a"}))
    found = row(run, "held-out accuracy")
    low, high = stats.beta.ppf([0.05, 0.95], wins + 0.5, 100 - wins + 0.5)
    assert found.value == f"{wins / 100:.3f} [{low:.3f}, {high:.3f}]"
    assert found.status == status


def test_right_predictions_are_rarely_reviewed():
    """Level 1% under the true distribution: the binomial quantile of 40 runs."""
    statuses = []
    for seed in range(40):
        run = replace(passing_run(), margins=choices_of(np.random.default_rng(seed)))
        run = replace(run, posterior=run.posterior.at(MEAN, CV, 3))
        statuses.append(row(run, CALIBRATION).status)
    assert statuses.count("PASS") >= 40 - stats.binom.ppf(1 - FAILURE_RATE, 40, 0.01)


@pytest.mark.parametrize(("mean", "status"), [(2 * MEAN, "REVIEW"), (20 * MEAN, "FAIL")])
def test_overconfident_predictions_are_caught(mean, status):
    """True strengths are 1/2 and 1/20 of what is claimed; with 4,000 pairs both are seen."""
    rng = np.random.default_rng(0)
    margins = choices_of(rng, 200, 20)
    if status == "FAIL":  # choices that are nearly coin tosses
        margins["margin"] *= np.where(rng.random(len(margins)) < 0.5, 1, -1)
    run = replace(passing_run(), margins=margins)
    run = replace(run, posterior=run.posterior.at(mean, CV, 3))
    assert row(run, CALIBRATION).status == status


def test_flipped_labels_that_the_posterior_assumed_are_predicted():
    """A fifth of 4,000 labels is flipped: known, the predictions are right; unknown, they fail."""
    rng = np.random.default_rng(0)
    margins = choices_of(rng, 200, 20)
    margins["margin"] *= np.where(rng.random(len(margins)) < 0.2, -1, 1)
    run = replace(passing_run(), margins=margins)
    run = replace(run, posterior=run.posterior.at(MEAN, CV, 3))
    assert row(run, CALIBRATION).status == "REVIEW"
    run = with_posterior(run, flip_probability=0.2)
    assert row(run, CALIBRATION).status == "PASS"


def test_shared_strengths_widen_what_right_predictions_give():
    """Ten people with eighty choices each vary more than eight hundred people with one each."""
    run = replace(passing_run(), margins=choices_of(np.random.default_rng(0), 10, 80))
    apart = changed(run, data=replace(run.record.data, annotator_column=None))
    limits = [float(row(r, CALIBRATION).threshold.split()[-1]) for r in (run, apart)]
    assert limits[0] > 1.2 * limits[1]


def test_errors_that_judges_share_are_no_wrong_predictions():
    """Twenty pairs, forty people, errors as large as the margins; level 1% in each of ten runs."""
    statuses = {"shared": [], "apart": []}
    for seed in range(10):
        rng = np.random.default_rng((seed, 7))
        person, pair = np.divmod(np.arange(800), 20)
        true, error = rng.normal(0, 3, 20)[pair], rng.normal(0, 3, 20)[pair]
        wins = rng.random(800) < 1 / (1 + np.exp(-MEAN * (true + error)))
        margin = np.where(wins, true, -true)
        table = pd.DataFrame({"margin": margin, "annotator": person, "pair": pair})
        posterior = replace(
            passing_run().posterior.at(MEAN, 1e-3, 3), parameters={"pair_error": np.full(3, 3.0)}
        )
        run = replace(passing_run(), margins=table, posterior=posterior)
        statuses["shared"].append(row(run, CALIBRATION).status)
        apart = replace(run, margins=table.drop(columns="pair"))
        statuses["apart"].append(row(apart, CALIBRATION).status)
    assert statuses["shared"].count("PASS") >= 10 - stats.binom.ppf(1 - FAILURE_RATE, 10, 0.01)
    assert statuses["apart"].count("PASS") < 5


def test_few_pairs_leave_calibration_open():
    run = passing_run()
    assert row(replace(run, margins=run.margins[:49]), CALIBRATION).status == "not available"


def test_annotators_who_chose_once_are_not_counted():
    run = passing_run()
    labels = [*np.repeat(np.arange(19), 2), *range(100, 200)]
    margins = pd.DataFrame({"margin": np.resize([1.0, 2.0, -1.0], len(labels)),
                            "annotator": labels})  # fmt: skip
    found = row(replace(run, margins=margins), "repeated choices")
    assert (found.status, found.value) == ("REVIEW", "19 annotators")
    run.margins.pop("annotator")
    assert row(run, "repeated choices").status == "not available"
    run = changed(run, data=replace(run.record.data, annotator_column=None))
    assert row(run, "repeated choices").status == "does not apply"


@pytest.mark.parametrize(
    ("dropped", "status"), [(0, "PASS"), (200, "PASS"), (1000, "REVIEW"), (5000, "FAIL")]
)
def test_share_left_out(dropped, status):
    run = passing_run()
    run = changed(run, data=replace(run.record.data, dropped={"empty": dropped}))
    found = row(run, "dropped pairs")
    assert found.status == status
    assert found.value.startswith(f"{100 * dropped / (dropped + 4000):.1f}%")
