"""`mixdpo train` from rows to report on choices that are not plain pairs."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scenarios import TRAINING_MARKS, small_world

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.inference.diagnosis import diagnose_choices
from mixdpo_pyro.margins.table import read_margins
from mixdpo_pyro.reporting.comparison import load_summaries
from mixdpo_pyro.reporting.health_checks import CALIBRATION, check_run
from mixdpo_pyro.reporting.run_record import FinishedRun
from mixdpo_pyro.workflows import results
from mixdpo_pyro.workflows.run_config import plan_from_values
from mixdpo_pyro.workflows.training_inputs import TrainingInputs

pytestmark = TRAINING_MARKS


@pytest.fixture(autouse=True)
def short_diagnosis(monkeypatch):
    """The diagnosis is tested in its own room; here one family and few permutations do."""
    short = partial(diagnose_choices, families=("lognormal",), num_permutations=19, thorough=False)
    monkeypatch.setattr(results, "diagnose_choices", short)


def sets():
    """One choice among three per prompt of the small world; ranks 2 and 3, or 2 and nothing."""
    world = small_world()
    rows = []
    for k in range(len(world)):
        for j in range(2):
            row = {name: world[k][name] for name in ("prompt", "chosen", "annotator")}
            other = world[(k + 5 + 9 * j) % len(world)]["rejected"] + f" {j}"
            place = (2, 3 if k % 2 else None)[j]
            rows.append({**row, "rejected": other, "question": f"q{k}", "place": place})
    return rows


def judged(name, values):
    names = ("prompt", "chosen", "rejected", "annotator")
    rows = [{n: row[n] for n in names} for row in small_world()]
    return [{**row, name: values[k % len(values)]} for k, row in enumerate(rows)]


def train(values, rows, **changes):
    folder = Path(values["output_dir"]).parent
    Path(values["dataset_name"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    assert main(["train", "--config", str(path)]) == 0
    return FinishedRun.load(folder / "run")


def page(run):
    return (run.folder / "report.html").read_text()


def test_choices_from_sets_end_in_a_report_of_choices(tmp_path, values, capsys):
    settings = {"choice_set_column": "question", "rank_column": "place", "test_fraction": 0.4}
    run = train(values, sets(), **settings)
    assert run.record.failures == []
    table = pd.read_parquet(tmp_path / "run" / "margins.parquet")
    assert set(table["choice_set"]) == set(table["question"])
    ranks = table.groupby("choice_set")["rank"].apply(lambda r: sorted(r.dropna()))
    assert {tuple(r) for r in ranks} == {(2.0,), (2.0, 3.0)}
    assert run.held_out_choices is not None and run.held_out_choices.num_choices == len(table) // 2
    best = table.groupby("choice_set")["margin"].min() > 0
    assert run.accuracy == pytest.approx(best.mean())
    assert run.chance == pytest.approx(1 / 3)
    health = check_run(run)
    assert health.check(CALIBRATION).status == "does not apply"
    assert (
        "90% interval above 0.33, choices independent"
        in health.check("held-out accuracy").threshold
    )
    people = table.drop_duplicates("choice_set")["annotator"].value_counts()
    assert health.check("repeated choices").value == f"{(people >= 2).sum()} annotators"
    text = page(run)
    assert "trained on choices from sets of responses" in text
    assert f"{len(table) // 2} rankings among 3 responses" in text
    assert 'id="reliability"' not in text
    (summary,) = load_summaries([tmp_path / "run"])
    assert summary.num_pairs == len(table) // 2
    assert -np.log(6) - 0.3 < summary.log_prob < 0
    read = read_margins(tmp_path / "run" / "margins.parquet")
    assert list(read.done) == ["choice_set", "rank"] and read.num_alike == 0


@pytest.mark.parametrize(
    ("name", "told", "settings", "threshold"),
    [
        ("said", ["win", "loss", "tie"], {"outcome_column": "said", "ties": "davidson"}, "nu"),
        ("stars", [2, -1, 0, 1, -2], {"grade_column": "stars", "family": "fixed"}, "cut_point_2"),
    ],
    ids=["davidson", "grades"],
)
def test_thresholds_stand_in_record_report_card_and_posteriors(
    tmp_path, values, capsys, name, told, settings, threshold
):
    run = train(values, judged(name, told), **settings)
    assert run.record.failures == []
    learned = run.record.learned.thresholds
    saved = json.loads((tmp_path / "run" / "policy" / "strength.json").read_text())["learned"]
    assert learned[threshold] == saved[threshold] > 0
    assert run.posterior.observation == run.training.observation != "pairs"
    assert run.pair_margins is None
    written = "grade" if name == "stars" else "outcome"
    table = pd.read_parquet(tmp_path / "run" / "margins.parquet")
    assert set(table[written]) == set(told) and name in table
    text, card = page(run), (tmp_path / "run" / "policy" / "README.md").read_text()
    words = threshold.replace("_", " ")
    assert f'<th scope="row">{words}</th>' in text and f"{learned[threshold]:.3g}" in text
    assert f"`{threshold}` {learned[threshold]:.3g}" in card
    out = capsys.readouterr().out
    assert f"{words:22}" in out and "in training" in out
    (summary,) = load_summaries([tmp_path / "run"])
    assert np.isfinite(summary.log_prob)


def test_dropped_ties_are_counted_and_losses_turned_round(tmp_path, values):
    rows = judged("said", ["win", "tie", "loss"])
    run = train(values, rows, outcome_column="said", ties="drop")
    dropped = run.record.data.dropped
    assert set(dropped) == {"a tie", "a tie, of which the training uses none"}
    assert sum(dropped.values()) == sum(row["said"] == "tie" for row in rows)
    assert run.record.data.observation == "pairs" and run.record.learned.thresholds == {}
    sign = np.where(run.margins["outcome"] == "win", 1, -1)
    assert run.accuracy == pytest.approx((sign * run.margins["margin"] > 0).mean())
    assert 'id="reliability"' in page(run)


def test_what_was_done_belongs_to_the_inputs_of_a_training(values):
    def inputs(rows):
        from datasets import Dataset

        data = Dataset.from_list(rows)
        plan = plan_from_values({**values, "outcome_column": "said"})
        return TrainingInputs.of(plan, data, data)

    rows = judged("said", ["win", "tie"])
    changed = [dict(row) for row in rows]
    changed[3]["said"] = "loss"
    assert inputs(rows).differences(inputs(rows)) == []
    words = inputs(changed).differences(inputs(rows))
    assert [each.split(" was ")[0] for each in words] == ["held out pairs", "training pairs"]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (judged("margin", ["win"]), {"outcome_column": "margin"}, "outcome_column: 'margin' hold"),
        (sets(), {"grade_column": "quest"}, "column 'quest' is missing"),
        (judged("said", ["win", "draw"]), {"outcome_column": "said"}, "'draw' in column 'said'"),
    ],
)
def test_columns_that_cannot_be_read_stop_the_run_before_its_first_step(
    values, capsys, monkeypatch, rows, changes, message
):
    def trained(*args):
        raise AssertionError("a step was taken")

    monkeypatch.setattr("mixdpo_pyro.workflows.train.train_with_progress", trained)
    Path(values["dataset_name"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = Path(values["output_dir"]).with_name("run.yaml")
    path.write_text(yaml.safe_dump({**values, **changes}))
    assert main(["train", "--config", str(path)]) in (1, 2)
    assert message in capsys.readouterr().err
