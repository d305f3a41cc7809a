import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import Dataset
from scenarios import TRAINING_MARKS
from transformers import AutoModelForCausalLM

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.reporting.comparison import load_summaries
from mixdpo_pyro.reporting.health_checks import check_run
from mixdpo_pyro.reporting.run_record import FinishedRun
from mixdpo_pyro.reporting.run_report import run_lines
from mixdpo_pyro.workflows import results

pytestmark = TRAINING_MARKS


def run(values, capsys, **changes):
    """Status and the last line of standard error of `mixdpo train`."""
    path = Path(values["output_dir"]).with_name("run.yaml")
    path.write_text(yaml.safe_dump({**values, **changes}))
    status = main(["train", "--config", str(path)])
    return status, capsys.readouterr().err.strip().splitlines()[-1]


def break_part(monkeypatch, part):
    def fail(*args, **kwargs):
        raise RuntimeError(f"no {part} today")

    where = {
        "margins": (results.MixDPOTrainer, "margins"),
        "diagnosis": (results, "diagnose_choices"),
        "posterior of training": (results.MixDPOTrainer, "_nothing"),
        "report": (results, "write_report"),
        "table of margins": (pd.DataFrame, "to_parquet"),
    }[part]
    monkeypatch.setattr(*where, fail, raising=False)


@pytest.mark.parametrize("part", ["margins", "table of margins", "diagnosis", "report"])
def test_a_part_that_fails_leaves_the_policy_and_is_reported(
    tmp_path, values, capsys, monkeypatch, part
):
    break_part(monkeypatch, part)
    status, line = run(values, capsys)
    monkeypatch.undo()
    folder = tmp_path / "run"
    assert status == 1
    assert f"{folder / 'policy'}: the policy is whole. The {part} failed: no {part} today" in line
    assert not (tmp_path / "run.partial").exists()
    AutoModelForCausalLM.from_pretrained(folder / "policy")
    facts = json.loads((folder / "run.json").read_text())
    assert facts["failures"] == [f"The {part} failed: no {part} today (RuntimeError)."]
    assert (facts["verdict"] is None) == (part in ("margins", "diagnosis"))
    found = FinishedRun.load(folder)
    health = check_run(found)
    assert health.check("parts of the run").status == health.status == "FAIL"
    assert (folder / "report.html").is_file() == (part != "report")
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert f"no {part} today" in page
    (summary,) = load_summaries([folder])
    assert summary.health == "FAIL"
    assert main(["compare", str(folder), "-o", str(tmp_path / "compare.html")]) == 0
    table = capsys.readouterr().out
    assert "FAIL" in table and "Not to be trusted, see the report: run." in table


def test_ids_that_are_formulas_or_markup_end_in_a_report(tmp_path, values, capsys):
    pairs = Path(values["dataset_name"])
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    names = {name: k for k, name in enumerate(sorted({row["annotator"] for row in rows}))}
    strange = ["$\\frac$", "$x$ and $\\y$", "a b", "$$", "<b>", "ä\n"]
    for row in rows:
        row["annotator"] = strange[names[row["annotator"]]]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, line = run(values, capsys)
    assert status == 0, line
    found = FinishedRun.load(tmp_path / "run")
    assert found.record.failures == []
    known = found.posterior.columns(np.array(found.margins["annotator"], dtype=object))
    assert (known >= 0).all()
    assert (tmp_path / "run" / "figures" / "annotators.png").stat().st_size > 1000


def test_margins_that_contradict_every_choice_are_diagnosed(tmp_path, values, capsys, monkeypatch):
    """All families, the normal one too, whose likelihood vanishes where strengths are positive.

    A lone margin that is far too large is named by its row in the source.
    """
    margins = results.MixDPOTrainer.margins

    def contradicting(self, *args):
        found = margins(self, *args)
        margin = -np.abs(found["margin"]) - 1.0
        margin[3] = -1e9
        return {**found, "margin": margin}

    monkeypatch.setattr(results.MixDPOTrainer, "margins", contradicting)
    status, line = run(values, capsys)
    assert status == 0, line
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["verdict"] is not None
    row = pd.read_parquet(tmp_path / "run" / "margins.parquet")["source_row"][3]
    contradicting, lone = facts["notes"][:2]
    assert contradicting.startswith("Every choice contradicts its margin")
    assert f"row {row} has the largest, -1e+09" in lone
    assert lone in run_lines(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"row {row} has the largest, -1e+09" in page


def test_report_checks_length_with_the_tokens_that_were_scored(tmp_path, values, capsys):
    assert run(values, capsys)[0] == 0
    margins = pd.read_parquet(tmp_path / "run" / "margins.parquet")
    assert (margins[["chosen_tokens", "rejected_tokens"]] > 0).all().all()
    assert not margins["trained_on"].any()
    trained = pd.read_parquet(tmp_path / "run" / "training_responses.parquet")["response"]
    assert trained.is_unique and len(trained) > 2
    checks = {c.name: c for c in FinishedRun.load(tmp_path / "run").record.checks}
    assert "no columns chosen_tokens" not in checks["length"].sentence


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [({"learning_rate": 0.0}, 2, "learning_rate: expected a finite value > 0, got 0.0"),
     ({"max_steps": 0}, 2, "max_steps: expected at least 1, got 0"),
     ({"max_steps": -3}, 2, "max_steps: expected at least 1, got -3"),
     ({"max_steps": -1, "num_train_epochs": 0}, 2, "num_train_epochs: expected a finite value"),
     ({"strength_learning_rate": 0.0}, 2, "strength_learning_rate: expected a finite value > 0"),
     ({"annotator_column": "prompt"}, 2, "annotator_column: 'prompt' holds texts or results"),
     ({"annotator_column": "rejected"}, 2, "annotator_column: 'rejected' holds texts"),
     ({"annotator_column": "margin"}, 1, "column 'margin' is missing; it has prompt"),
     ({"test_fraction": 0.001}, 1, "test_fraction: 1 held-out pair is left to use"),
     ({"test_fraction": 0.999}, 1, "test_fraction: 1 training pair is left to use"),
     ({"max_length": 4}, 1, "max_length: no training pair is left to use")],
)  # fmt: skip
def test_what_can_be_foreseen_is_refused_before_the_first_step(
    values, capsys, monkeypatch, changes, status, message
):
    def trained(*args):
        raise AssertionError("a step was taken")

    monkeypatch.setattr("mixdpo_pyro.workflows.train.train_with_progress", trained)
    found, line = run(values, capsys, **changes)
    assert (found, message in line) == (status, True), line


def test_what_was_judged_is_hashed_alike_whoever_chose_what():
    pairs = Dataset.from_dict(
        {"prompt": ["p", "p", "q"], "chosen": ["a", "b", "a"], "rejected": ["b", "a", "b"]}
    )
    found = results._what_was_judged(pairs)
    assert found["pair"][0] == found["pair"][1] != found["pair"][2]
    assert found["response_a"].tolist() == [*found["response_b"][[1, 0]], found["response_a"][2]]
    assert len({*found["response_a"], *found["response_b"]}) == 4  # two prompts times two answers
    assert {len(each) for each in found["pair"]} == {16}
