import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from markupsafe import escape

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.inference import fit, save_arviz, to_arviz
from mixdpo_pyro.inference.robustness.checks import RobustnessCheck, RobustnessStatus
from mixdpo_pyro.inference.robustness.differences import PAIR_ERRORS
from mixdpo_pyro.reporting.comparison import load_summaries
from mixdpo_pyro.reporting.health_checks import check_run
from mixdpo_pyro.reporting.records import write_record
from mixdpo_pyro.reporting.run_record import FinishedRun
from mixdpo_pyro.reporting.run_report import learned_rows, run_lines, write_report


@pytest.fixture
def run_folder(tmp_path, written_run):
    """A copy of the run, to be changed."""
    return shutil.copytree(written_run, tmp_path, dirs_exist_ok=True)


def test_table_holds_both_posteriors_and_the_truth_on_the_scale_of_the_reward(run_folder):
    run = FinishedRun.load(run_folder)
    assert run.reward_slope == pytest.approx(4.0)
    held_out, training, truth = learned_rows(run)
    assert training["cv"] == "0.5 [0.32, 0.68]"
    assert training["mean"] == "0.5"
    assert training["reward_mean"] == "2"
    assert (truth["cv"], truth["reward_mean"]) == ("0.50", "2.00")
    low, middle, high = np.quantile(run.posterior.cv, [0.05, 0.5, 0.95])
    assert held_out["cv"] == f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def test_table_shows_cv_with_errors_and_the_attenuated_one_beside_it(run_folder):
    run = FinishedRun.load(run_folder)
    numbers = dict(zip(("5%", "median", "95%"), (0.21, 0.412, 0.7), strict=True))
    check = RobustnessCheck(
        PAIR_ERRORS, "", RobustnessStatus.STANDS,
        numbers={f"attenuated cv, {name}": value for name, value in numbers.items()},
    )  # fmt: skip
    record = replace(run.record, checks=[check])
    assert not any("errors" in r["source"] for r in learned_rows(replace(run, record=record)))
    allowed = replace(run.posterior, parameters={"pair_error": np.ones(run.posterior.num_samples)})
    rows = learned_rows(replace(run, record=record, posterior=allowed))
    assert [r["source"] for r in rows[:2]] == [
        "held-out pairs, errors allowed for", "held-out pairs, margins as exact",
    ]  # fmt: skip
    assert rows[1]["cv"] == "0.412 [0.21, 0.7]"


def test_annotators_come_with_their_labels(run_folder):
    run = FinishedRun.load(run_folder)
    assert run.posterior.annotators == ("a", "b", "c")
    means = run.posterior.strength.mean(0)
    assert means[0] < means[1] < means[2]


def test_disagreement_is_said_only_where_the_intervals_are_disjoint(run_folder):
    run = FinishedRun.load(run_folder)
    assert run.disagreement is None
    training = replace(run.training, cv=np.resize([9.0, 9.1, 9.2], 9))
    training.save(run_folder / "training_posterior.nc")
    assert "disagree" in FinishedRun.load(run_folder).disagreement
    assert any("disagree" in line for line in run_lines(run_folder))
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
    found = RobustnessCheck("a <skew>", "It is 3.", RobustnessStatus.CONTRADICTS)
    record = replace(FinishedRun.load(run_folder).record, checks=[found], error_rate="1 in 20.")
    write_record(record, run_folder / "run.json")
    page = write_report(run_folder).read_text()
    assert "a &lt;skew&gt;" in page and 'class="contradicts"' in page and "It is 3." in page
    assert "1 in 20." in page.split("<h2>")[0]


def test_failed_run_shows_its_verdict_struck_through(run_folder):
    change(run_folder, "log_history.json", lambda history: history.__delitem__(slice(5, None)))
    page = write_report(run_folder).read_text()
    verdict = json.loads((run_folder / "run.json").read_text())["verdict"]
    top = page.split("<h2>")[0]
    assert "Do not act on this verdict" in top and "Collect" not in top
    assert "<title>MixDPO report: not to be trusted</title>" in top
    assert f"<s>{verdict['value']}</s>" in top
    assert "Failed: steps of training." in top
    lines = run_lines(run_folder)
    assert lines[0].startswith(f"not to be trusted: {verdict['value']}")
    assert lines[1].startswith("FAIL: ")


def test_run_whose_margins_and_draws_are_not_finite_still_ends_in_a_page(run_folder):
    margins = pd.read_parquet(run_folder / "margins.parquet")
    margins.loc[:2, "margin"] = np.nan
    margins.to_parquet(run_folder / "margins.parquet")
    training = replace(FinishedRun.load(run_folder).training, cv=np.full(9, np.nan))
    training.save(run_folder / "training_posterior.nc")
    page = write_report(run_folder).read_text()
    assert check_run(FinishedRun.load(run_folder)).status == "FAIL"
    assert "3 held-out margins" in page
    assert page.count("<img") == 2  # training and annotators


def test_plain_dpo_without_annotators_and_without_logged_losses(run_folder):
    def plain(facts):
        facts.update(family="fixed", truth=None)
        facts["data"].update(annotator_column=None, has_panels=False)

    change(run_folder, "run.json", plain)
    change(run_folder, "log_history.json", lambda history: history.__delitem__(slice(None)))
    point = FinishedRun.load(run_folder).training.at(0.5, 0.0, 9)
    point.save(run_folder / "training_posterior.nc")
    margins = pd.read_parquet(run_folder / "margins.parquet").drop(columns="annotator")
    margins.to_parquet(run_folder / "margins.parquet")
    result = fit(margins["margin"].to_numpy(copy=True), family="lognormal", beta=0.5)
    save_arviz(to_arviz(result), run_folder / "posterior.nc")
    page = write_report(run_folder).read_text()
    assert "plain DPO, the strength is fixed at 0.5" in page
    assert "There are no annotator ids" in page
    assert page.count("<img") == 4
    statuses = {
        check.name: check.status for check in check_run(FinishedRun.load(run_folder)).checks
    }
    assert statuses["repeated choices"] == statuses["drift of cv"] == "does not apply"
    assert statuses["drift of the loss"] == "not available"


def test_prior_is_that_of_the_posterior_file(run_folder):
    """The fit may have asked another prior than training; its attributes say which."""
    run = FinishedRun.load(run_folder)
    assert run.posterior.method == "laplace"
    assert np.isfinite(run.posterior.sample_stats["lp"]).all()
    variance = np.var(np.log(run.posterior.mean))
    percent = f"{1 - variance / 0.25:.0%}"
    assert f"prior variance narrowed by {percent}" in write_report(run_folder).read_text()


def test_page_prints_whole_and_needs_no_network(run_folder):
    page = write_report(run_folder).read_text()
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page and "break-inside: avoid" in page
    for forbidden in ("<script", "@import", "url(", "<link", 'src="http'):
        assert forbidden not in page


def test_the_answer_stands_before_everything_technical(run_folder):
    top = write_report(run_folder).read_text().split("<h2>")[0]
    order = ["No answer yet", "What to do", "gain per held-out choice", 'id="cv"', "p = 0.13"]
    places = [top.index(words) for words in order]
    assert places == sorted(places) and top.count("<img") == 1


def test_missing_key_is_named(run_folder):
    change(run_folder, "run.json", lambda facts: facts.pop("seed"))
    with pytest.raises(OutputError, match=r"run\.json: key 'seed': Field required"):
        write_report(run_folder)


def test_accuracy_counts_ties_one_half(run_folder):
    run = FinishedRun.load(run_folder)
    run.margins["margin"] = np.resize([1.0, -1.0, 0.0], 300)
    assert run.accuracy == pytest.approx(0.5)


def test_page_has_every_figure_with_alt_text_and_escapes_what_it_is_given(run_folder):
    page = write_report(run_folder).read_text()
    names = sorted(p.stem for p in (run_folder / "figures").glob("*.png"))
    vectors = sorted(p.stem for p in (run_folder / "figures").glob("*.svg"))
    assert vectors == names
    assert names == [
        "annotators", "cv", "prior_to_posterior", "reliability", "strength_distribution",
        "training",
    ]  # fmt: skip
    assert page.count('src="data:image/png;base64,') == page.count('alt="') == 6
    assert "mixdpo train &lt;b&gt;" in page
    assert "2 with empty response" in page
    assert "http" not in page.replace("http-equiv", "")


def test_who_is_shown_can_be_named(run_folder, capsys):
    assert main(["report", str(run_folder), "--show_annotators", "c", "a"]) == 0
    assert "2 of 3 annotators, those that were named." in (run_folder / "report.html").read_text()
    assert main(["report", str(run_folder), "--show_annotators", "c", "zoe"]) == 2
    assert "show_annotators: 'zoe' is no annotator of 3, such as 'a'" in capsys.readouterr().err


def test_summary_says_verdict_and_table(run_folder):
    lines = run_lines(run_folder)
    verdict = json.loads((run_folder / "run.json").read_text())["verdict"]
    assert lines[0] == f"{verdict['value']}: {verdict['reason']}"
    assert lines[1].startswith("REVIEW: ")
    assert lines[2:4] == [
        "what to do: Collect <more>.",
        "gain per held-out choice over one strength: +0.01 nats; accuracy: no change",
    ]
    top = write_report(run_folder).read_text().split("<h2>")[0]
    assert "Collect &lt;more&gt;." in top and "+0.01 nats" in top
    assert any(line.startswith("truth") and "2.00" in line for line in lines)


@pytest.mark.parametrize(
    "name",
    ["run.json", "log_history.json", "training_posterior.nc", "margins.parquet", "posterior.nc"],
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
    ("run.json", (), "Input should be a valid dictionary", []),
    ("run.json", ("format",), "expected format 2, got 1", 1),
    ("run.json", ("verdict",), "key 'verdict': Input should be a dictionary", "no"),
    ("run.json", ("verdict", "reason"), "key 'verdict.reason': Input should be a valid string", 3),
    ("run.json", ("verdict", "value"), "key 'verdict.value': Input should be 'hetero", "maybe"),
    ("run.json", ("seed",), "key 'seed': Input should be a valid integer", 0.5),
    ("run.json", ("truth", "cv"), "key 'truth.cv': Input should be a valid number", None),
    ("run.json", ("truth", "strengths", "b"), "key 'truth.strengths.b': Input should be", "x"),
    ("run.json", ("data", "dropped"), "key 'data.dropped': Input should be a valid dict", 1),
    ("run.json", ("data", "annotator_column"), "key 'data.annotator_column': Input should", {}),
    ("run.json", ("checks",), "key 'checks.0': Input should be a dictionary", [1]),
    ("log_history.json", (), "Input should be a valid list", {}),
    ("log_history.json", (4,), "key '4': Input should be a valid dictionary", None),
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
    for command in (write_report, run_lines, lambda folder: load_summaries([folder])):
        with pytest.raises(OutputError, match=f"{name}: {message}"):
            command(run_folder)


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
