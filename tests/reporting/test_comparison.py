import io
from functools import cache

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.integrate import quad
from scipy.stats import gamma

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.errors import ConfigError, OutputError
from mixdpo_pyro.inference import Posterior, assess_heterogeneity, fit, save_arviz, to_arviz
from mixdpo_pyro.reporting.comparison import (
    _mean_log_prob,
    load_summaries,
    plot_intervals,
    show_comparison,
    write_comparison,
)
from mixdpo_pyro.reporting.records import write_record
from mixdpo_pyro.reporting.run_record import LearnedStrength, RunData, RunRecord
from mixdpo_pyro.reporting.sweep_record import SweepRecord, SweptRun


@cache
def fitted(cv):
    """600 choices of 30 annotators of mean strength 1 and the given cv."""
    rng = np.random.default_rng(0)
    annotator = np.repeat([f"p{i:02d}" for i in range(30)], 20)
    strengths = np.ones(30) if cv == 0 else rng.gamma(cv**-2, cv**2, 30)
    margin = rng.normal(0, 3, 600)
    is_right = rng.random(600) < 1 / (1 + np.exp(-np.repeat(strengths, 20) * np.abs(margin)))
    margin = np.where(is_right, 1, -1) * np.abs(margin)
    result = fit(margin.copy(), annotator=annotator, family="gamma", beta=1.0, num_samples=400)
    return margin, annotator, result


def make_run(folder, cv=0.0, first_row=0, source="pairs.jsonl"):
    folder.mkdir(parents=True)
    margin, annotator, result = fitted(cv)
    rows = np.arange(first_row, first_row + len(margin))
    table = pd.DataFrame({"margin": margin, "source_row": rows, "annotator": annotator})
    table.to_parquet(folder / "margins.parquet")
    save_arviz(to_arviz(result), folder / "posterior.nc")
    record = RunRecord(
        family="gamma", mean_anchor="prior", beta=1.0, seed=0,
        data=RunData(source, train=0, test=len(margin)),
        learned=LearnedStrength(1.0, 0.5, 0.1, 2.0), verdict=assess_heterogeneity(result),
    )  # fmt: skip
    write_record(record, folder / "run.json")
    (folder / "log_history.json").write_text("[]")
    result.posterior.at(1.0, 0.5).save(folder / "training_posterior.nc")
    return folder


def printed(runs):
    buffer = io.StringIO()
    show_comparison(runs, Console(file=buffer, width=80))
    return buffer.getvalue()


def test_runs_stand_side_by_side_with_their_verdicts(tmp_path):
    runs = load_summaries([make_run(tmp_path / "same"), make_run(tmp_path / "spread", 0.9)])
    assert [run.name for run in runs] == ["same", "spread"]
    assert runs[1].verdict == "heterogeneous"
    assert np.median(runs[0].cv) < 0.4 < np.median(runs[1].cv)
    assert runs[0].num_annotators == 30
    text = printed(runs)
    lines = [line for line in text.splitlines() if line.startswith(("same", "spread"))]
    assert [line.split()[0] for line in lines] == ["same", "spread"] * 2
    assert "heterogeneous" in lines[1]
    assert lines[3].split()[1:5] == ["gamma", "prior", "600", "30"]
    assert [run.health for run in runs] == ["REVIEW", "REVIEW"]  # no training was logged
    assert lines[0].split()[2] == lines[1].split()[2] == "REVIEW"
    assert "data: pairs.jsonl" in text
    assert "held out different pairs" not in text


def test_log_probability_is_that_of_the_median_distribution(tmp_path):
    (run,) = load_summaries([make_run(tmp_path / "run", 0.9)])
    margin, _, _ = fitted(0.9)
    mean, cv = np.median(run.mean), np.median(run.cv)
    distribution = gamma(cv**-2, scale=mean * cv**2)

    def probability(delta):
        return quad(lambda u: 1 / (1 + np.exp(-distribution.ppf(u) * delta)), 0, 1, epsabs=1e-9)[0]

    expected = np.mean([np.log(probability(delta)) for delta in margin[:40]])
    found = _mean_log_prob(margin[:40], Posterior(run.mean, run.cv, "gamma"))
    assert found == pytest.approx(expected, abs=1e-6)
    assert run.accuracy == np.mean(margin > 0)


def test_other_held_out_pairs_are_said_to_be_other(tmp_path):
    first = make_run(tmp_path / "a")
    other_rows = make_run(tmp_path / "b", first_row=7)
    other_data = make_run(tmp_path / "c", source="others.jsonl")
    for other in (other_rows, other_data):
        assert "held out different pairs" in printed(load_summaries([first, other]))


def test_equal_names_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / name / "run") for name in ("x", "y")]
    assert [run.name for run in load_summaries(runs)] == ["x/run", "y/run"]
    with pytest.raises(ConfigError, match="is given twice"):
        load_summaries([runs[0], runs[1] / ".." / ".." / "x" / "run"])


def test_page_is_self_contained_and_escapes_names(tmp_path):
    runs = load_summaries([make_run(tmp_path / "<b>bold"), make_run(tmp_path / "spread", 0.9)])
    path = write_comparison(runs, tmp_path / "compare.html")
    page = path.read_text()
    assert page.count("<img") == page.count("alt=") == 1
    assert "http://" not in page
    assert "https://" not in page
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page
    assert "heterogeneous" in page


def test_figure_draws_the_90_percent_interval(tmp_path):
    runs = load_summaries([make_run(tmp_path / "run", 0.9)])
    axis = plot_intervals(runs).axes[0]
    thin = min(axis.get_lines(), key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(thin.get_xdata(), np.quantile(runs[0].cv, [0.05, 0.95]))


def test_a_sweep_is_read_by_arm_and_names_what_is_missing(tmp_path):
    runs = [SweptRun(f"{arm}/beta-1/seed-0", arm, 1.0, 0) for arm in ("dpo", "mix", "lost")]
    write_record(SweepRecord(runs), tmp_path / "sweep.json")
    make_run(tmp_path / "runs" / runs[0].name)
    make_run(tmp_path / "runs" / runs[1].name, 0.9)
    found = load_summaries([tmp_path])
    assert [run.name for run in found] == [run.name for run in runs[:2]]
    text = printed(found)
    assert text.index("against first arm") < text.index("mean strength")
    assert unwrapped(text).startswith(
        "what to do: Cannot tell which arm is better: train at least"
    )
    name = tmp_path.name
    assert f"Not finished in {name}, and missing here: lost/beta-1/seed-0." in unwrapped(text)
    page = write_comparison(found, tmp_path / "c.html").read_text()
    assert page.index("What to do.") < page.index("By arm and beta")


def unwrapped(text):
    return " ".join(text.split())


def test_folders_that_are_no_runs_and_damaged_runs_are_named(tmp_path):
    with pytest.raises(
        OutputError, match=r"empty/.*: missing; is .* the folder of a finished run"
    ):
        load_summaries([tmp_path / "empty"])
    run = make_run(tmp_path / "run")
    (run / "margins.parquet").write_bytes(b"half")
    with pytest.raises(OutputError, match=r"margins\.parquet: cannot be read"):
        load_summaries([run])
    (run / "margins.parquet").unlink()
    with pytest.raises(OutputError, match=r"margins\.parquet: missing"):
        load_summaries([run])
    other = make_run(tmp_path / "other")
    (other / "run.json").write_text('{"family": "gamma"}')
    with pytest.raises(OutputError, match=r"other/run\.json: expected format 2, got None"):
        load_summaries([other])


def test_command_prints_and_writes(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["compare", str(run), "--output", str(tmp_path / "c.html")]) == 0
    assert "c.html" in capsys.readouterr().out
    assert main(["compare", str(run), "--output", str(tmp_path / "c.html")]) == 0  # its own page
    assert (tmp_path / "c.html").is_file()
    assert main(["compare", str(tmp_path / "nothing")]) == 1
    assert main(["compare"]) == 2
