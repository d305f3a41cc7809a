import json
import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from markupsafe import escape

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.inference import assess_heterogeneity, fit, save_arviz, to_arviz
from mixdpo_pyro.reporting.comparison import load_summaries
from mixdpo_pyro.reporting.health_checks import check_run
from mixdpo_pyro.reporting.run_record import FinishedRun
from mixdpo_pyro.reporting.run_report import learned_rows, summary_lines, write_report

TRUTH = {"family": "gamma", "mean": 2.0, "cv": 0.5, "strengths": {"a": 1.0, "b": 2.0, "c": 3.0}}


@pytest.fixture
def run_folder(tmp_path, written_run):
    """A copy of the run, to be changed."""
    return shutil.copytree(written_run, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def written_run(tmp_path_factory):
    """A run folder written by hand: margins are 4 times the reward, strengths 0.5 per nat."""
    tmp_path = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    reward = rng.normal(0, 1, 300)
    annotator = np.repeat(["a", "b", "c"], 100)
    strength = np.array([TRUTH["strengths"][name] for name in annotator])
    is_right = rng.random(300) < 1 / (1 + np.exp(-strength * np.abs(reward)))
    reward = np.where(is_right, 1, -1) * np.abs(reward)
    margins = pd.DataFrame(
        {"margin": 4 * reward, "source_row": np.arange(300), "annotator": annotator,
         "reward_margin": reward}
    )  # fmt: skip
    result = fit(
        margins["margin"].to_numpy(copy=True), annotator, family="gamma", beta=0.5, num_samples=400
    )
    margins.to_parquet(tmp_path / "margins.parquet")
    save_arviz(to_arviz(result), tmp_path / "posterior.nc")
    write = {
        "log_history.json": [
            {"step": s, "loss": 0.5, "rewards/accuracies": 0.5, "strength/mean": 0.5,
             "strength/cv": 0.4, "learning_rate": 1 - s / 60} for s in range(1, 61)
        ],
        "training_posterior.json": {
            "draws": {"mean": [0.5] * 9, "cv": list(np.linspace(0.3, 0.7, 9))},
            "mean": 0.5, "cv": 0.5, "q05": 0.1, "q95": 1.0,
        },
        "run.json": {
            "command": "mixdpo train <b>", "family": "gamma", "diagnosed_family": "gamma",
            "anchor": "prior", "beta": 0.5, "seed": 0, "seconds": 1.0, "truth": TRUTH,
            "verdict": asdict(assess_heterogeneity(result)), "versions": {"python": "3"},
            "data": {"source": "d", "train": 10, "test": 300, "dropped": {"empty response": 2},
                     "annotator_column": "annotator", "has_panels": True},
        },
    }  # fmt: skip
    for name, value in write.items():
        (tmp_path / name).write_text(json.dumps(value))
    return tmp_path


def test_table_holds_both_posteriors_and_the_truth_on_the_scale_of_the_reward(run_folder):
    run = FinishedRun.load(run_folder)
    assert run.reward_slope == pytest.approx(4.0)
    held_out, training, truth = learned_rows(run)
    assert training["cv"] == "0.5 [0.32, 0.68]"
    assert training["mean"] == "0.5"
    assert training["reward_mean"] == "2"
    assert (truth["cv"], truth["reward_mean"]) == ("0.50", "2.00")
    low, middle, high = np.quantile(run.posterior["cv"], [0.05, 0.5, 0.95])
    assert held_out["cv"] == f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def test_annotators_come_with_their_labels(run_folder):
    run = FinishedRun.load(run_folder)
    assert run.annotators == ["a", "b", "c"]
    means = run.posterior["strength"].mean(0)
    assert means[0] < means[1] < means[2]


def test_disagreement_is_said_only_where_the_intervals_are_disjoint(run_folder):
    run = FinishedRun.load(run_folder)
    assert run.disagreement is None
    path = run_folder / "training_posterior.json"
    training = json.loads(path.read_text())
    training["draws"]["cv"] = [9.0, 9.1, 9.2] * 3
    path.write_text(json.dumps(training))
    assert "disagree" in FinishedRun.load(run_folder).disagreement
    assert any("disagree" in line for line in summary_lines(run_folder))
    assert "Training and the held-out pairs disagree" in write_report(run_folder).read_text()


def change(folder, name, function):
    """Read a JSON file of the run, change it in place, write it back."""
    value = json.loads((folder / name).read_text())
    function(value)
    (folder / name).write_text(json.dumps(value))


def test_every_check_is_a_row_with_its_number_and_threshold(run_folder):
    page = write_report(run_folder).read_text()
    run = FinishedRun.load(run_folder)
    assert check_run(run).status == "REVIEW"  # three annotators
    assert page.count('<span class="status">') == 1 + len(check_run(run).checks)
    for check in check_run(run).checks:
        assert str(escape(check.sentence)) in page
        assert str(escape(check.threshold)) in page
    assert "look at" in page.split("</div>")[0] and "repeated choices" in page.split("</div>")[0]
    assert "not to be trusted" not in page.split("<h2>")[0]


def test_other_explanations_of_the_verdict_are_shown_where_the_run_looked_at_them(run_folder):
    assert "something else explain" not in write_report(run_folder).read_text()
    found = {"name": "a <skew>", "status": "contradicts", "sentence": "It is 3."}
    change(
        run_folder, "run.json", lambda facts: facts.update(checks=[found], error_rate="1 in 20.")
    )
    page = write_report(run_folder).read_text()
    assert "a &lt;skew&gt;" in page and 'class="contradicts"' in page and "It is 3." in page
    assert "1 in 20." in page.split("<h2>")[0]


def test_failed_run_shows_its_verdict_struck_through(run_folder):
    change(run_folder, "log_history.json", lambda history: history.__delitem__(slice(5, None)))
    page = write_report(run_folder).read_text()
    verdict = json.loads((run_folder / "run.json").read_text())["verdict"]
    top = page.split("<h2>")[0]
    assert "<title>MixDPO report: not to be trusted</title>" in top
    assert f"<s>{verdict['value']}</s>" in top
    assert "Failed: steps of training." in top
    lines = summary_lines(run_folder)
    assert lines[0].startswith(f"not to be trusted: {verdict['value']}")
    assert lines[1].startswith("FAIL: ")


def test_run_whose_margins_and_draws_are_not_finite_still_ends_in_a_page(run_folder):
    margins = pd.read_parquet(run_folder / "margins.parquet")
    margins.loc[:2, "margin"] = np.nan
    margins.to_parquet(run_folder / "margins.parquet")
    change(run_folder, "training_posterior.json", lambda t: t["draws"].update(cv=[np.nan] * 9))
    page = write_report(run_folder).read_text()
    assert check_run(FinishedRun.load(run_folder)).status == "FAIL"
    assert "3 held-out margins" in page
    assert page.count("<img") == 2  # training and annotators


def test_plain_dpo_without_annotators_and_without_logged_losses(run_folder):
    def plain(facts):
        facts.update(family="fixed", anchor="prior", truth=None)
        facts["data"].update(annotator_column=None, has_panels=False)

    change(run_folder, "run.json", plain)
    change(run_folder, "log_history.json", lambda history: history.__delitem__(slice(None)))
    change(run_folder, "training_posterior.json", lambda t: t.update(
        draws={"mean": [0.5] * 9, "cv": [0.0] * 9}, cv=0.0))  # fmt: skip
    margins = pd.read_parquet(run_folder / "margins.parquet").drop(columns="annotator")
    margins.to_parquet(run_folder / "margins.parquet")
    result = fit(margins["margin"].to_numpy(copy=True), family="lognormal", beta=0.5)
    save_arviz(to_arviz(result), run_folder / "posterior.nc")
    page = write_report(run_folder).read_text()
    assert "plain DPO, the strength is fixed at 0.5" in page
    assert "There are no annotator ids" in page
    assert page.count("<img") == 3
    statuses = {
        check.name: check.status for check in check_run(FinishedRun.load(run_folder)).checks
    }
    assert statuses["repeated choices"] == statuses["drift of cv"] == "does not apply"
    assert statuses["drift of the loss"] == "not available"


def test_prior_is_that_of_the_posterior_file(run_folder):
    """The fit may have asked another prior than training; its attributes say which."""
    run = FinishedRun.load(run_folder)
    assert run.diagnostics["method"] == "laplace"
    assert np.isfinite(run.diagnostics["lp"]).all()
    variance = np.var(np.log(run.posterior["mean"]))
    percent = f"{1 - variance / 0.25:.0%}"
    assert f"prior variance narrowed by {percent}" in write_report(run_folder).read_text()


def test_page_prints_whole_and_needs_no_network(run_folder):
    page = write_report(run_folder).read_text()
    assert "@media print" in page and "break-inside: avoid" in page
    for forbidden in ("<script", "@import", "url(", "<link", 'src="http'):
        assert forbidden not in page


def test_missing_key_is_named(run_folder):
    change(run_folder, "run.json", lambda facts: facts.pop("seed"))
    with pytest.raises(OutputError, match="the key 'seed' is missing"):
        write_report(run_folder)


def test_accuracy_counts_ties_one_half(run_folder):
    run = FinishedRun.load(run_folder)
    run.margins["margin"] = np.resize([1.0, -1.0, 0.0], 300)
    assert run.accuracy == pytest.approx(0.5)


def test_page_has_every_figure_with_alt_text_and_escapes_what_it_is_given(run_folder):
    page = write_report(run_folder).read_text()
    names = sorted(p.stem for p in (run_folder / "figures").iterdir())
    assert names == ["annotators", "cv", "reliability", "strength_law", "training"]
    assert page.count('src="data:image/png;base64,') == page.count('alt="') == 5
    assert "mixdpo train &lt;b&gt;" in page
    assert "2 with empty response" in page
    assert "http" not in page.replace("http-equiv", "")


def test_summary_says_verdict_and_table(run_folder):
    lines = summary_lines(run_folder)
    verdict = json.loads((run_folder / "run.json").read_text())["verdict"]
    assert lines[0] == f"{verdict['value']}: {verdict['reason']}"
    assert lines[1].startswith("REVIEW: ")
    assert any(line.startswith("truth") and "2.00" in line for line in lines)


@pytest.mark.parametrize(
    "name",
    ["run.json", "log_history.json", "training_posterior.json", "margins.parquet", "posterior.nc"],
)
def test_missing_and_cut_files_are_named(run_folder, name):
    path = run_folder / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OutputError, match=f"{name}: cannot be read"):
        FinishedRun.load(run_folder)
    path.unlink()
    with pytest.raises(
        OutputError, match=f"{name}: missing; is '.*' the folder of a finished run"
    ):
        FinishedRun.load(run_folder)


WRONG_SHAPES = [
    ("run.json", (), r"expected keys and values, got \[\]", []),
    ("run.json", ("verdict",), "key 'verdict': expected keys and values, got 'no'", "no"),
    ("run.json", ("verdict", "reason"), "key 'verdict.reason': expected text, got 3", 3),
    ("run.json", ("seed",), "key 'seed': expected a whole number, got 0.5", 0.5),
    ("run.json", ("beta",), "key 'beta': expected a whole number or a number, got True", True),
    ("run.json", ("truth", "cv"), "key 'truth.cv': expected .* number, got None", None),
    ("run.json", ("truth", "strengths", "b"), "key 'truth.strengths.b': .* got 'x'", "x"),
    ("run.json", ("data", "dropped"), "key 'data.dropped': expected keys and values, got 1", 1),
    ("run.json", ("data", "annotator_column"), "key .*column': expected text or null, got {}", {}),
    ("run.json", ("checks",), r"key 'checks\[0\]': expected keys and values, got 1", [1]),
    ("log_history.json", (), "expected a list, got {}", {}),
    ("log_history.json", (4,), r"key '\[4\]': expected keys and values, got None", None),
    ("log_history.json", (4, "loss"), r"key '\[4\].loss': expected .*, got \[1\]", [1]),
    ("training_posterior.json", ("draws",), "key 'draws': expected keys and values", [1]),
    ("training_posterior.json", ("draws", "cv", 2), r"key 'draws.cv\[2\]': .* got 'x'", "x"),
]


@pytest.mark.parametrize(("name", "key", "message", "value"), WRONG_SHAPES)
def test_json_of_the_wrong_shape_is_one_line_with_file_and_key(
    run_folder, name, key, message, value
):
    content = json.loads((run_folder / name).read_text())
    place = content
    for part in key[:-1]:
        place = place[part]
    if key:
        place[key[-1]] = value
    (run_folder / name).write_text(json.dumps(content if key else value))
    for command in (write_report, summary_lines, lambda folder: load_summaries([folder])):
        with pytest.raises(OutputError, match=f"{name}: cannot be read \\({message}"):
            command(run_folder)


def test_values_that_do_not_fit_together_name_the_folder(run_folder):
    change(run_folder, "run.json", lambda facts: facts.update(diagnosed_family="cauchy"))
    with pytest.raises(OutputError, match=f"{run_folder}: its files cannot be used .*'cauchy'"):
        summary_lines(run_folder)


def test_tables_and_draws_without_their_columns_name_the_file(run_folder):
    pd.DataFrame({"margin": ["a"]}).to_parquet(run_folder / "margins.parquet")
    with pytest.raises(
        OutputError, match=r"margins\.parquet: .*column 'margin': expected numbers"
    ):
        FinishedRun.load(run_folder)
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset({"mean": (("chain", "draw"), [[1.0]])})})
    tree.to_netcdf(run_folder / "posterior.nc", engine="h5netcdf")
    with pytest.raises(OutputError, match=r"posterior\.nc: .*variable 'cv' .* is missing"):
        FinishedRun.load(run_folder)
