"""Win rates of finished runs: from generation to report, on tiny policies."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from scenarios import TRAINING_MARKS, run_values, small_world

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.reporting.records import read_record, write_record
from mixdpo_pyro.reporting.run_record import RunRecord
from mixdpo_pyro.reporting.sweep_record import SweepRecord, SweptRun
from mixdpo_pyro.winrates.config import WinrateConfig
from mixdpo_pyro.winrates.judging import judge_pairs
from mixdpo_pyro.workflows import winrates as module
from mixdpo_pyro.workflows.winrates import compare_runs

pytestmark = TRAINING_MARKS


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, policy_folder):
    folder = tmp_path_factory.mktemp("run")
    values = run_values(folder, policy_folder)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["train", "--config", str(path)]) == 0
    small_world().to_json(folder / "prompts.jsonl")
    return folder / "run"


def words_for(run, out, *more):
    prompts = run.with_name("prompts.jsonl")
    short = ["--max_prompts", "5", "--max_new_tokens", "12", "--batch_size", "4"]
    return ["winrate", str(run), "--prompts", str(prompts), *short, "-o", str(out), *more]


def test_everything_is_written(tmp_path, run_folder, capsys):
    out = tmp_path / "out"
    assert main(words_for(run_folder, out, "--judge", "oracle")) == 0
    shown = capsys.readouterr().out
    assert "No win rate at equal KL: it takes runs" in shown
    advice = "Add runs of another arm with the same seeds"
    assert f"what to do: {advice}" in shown and "--decoding_weights 0.5 0.7 1" in shown
    facts = json.loads((out / "winrate.json").read_text())
    (run,) = facts["runs"]
    assert run["n_wins"] + run["n_wins_base"] + run["n_draws"] == 5
    assert run["kl"] >= 0 and 0 <= run["in_grammar"] <= 1 and run["failures"] == 0
    table = pd.read_parquet(out / "completions.parquet")
    assert set(table["run"]) == {str(run_folder), "reference"}
    assert len(table) == 10 and (table["tokens"] <= 12).all()
    assert table.loc[table["run"] == "reference", "kl"].abs().max() == 0
    assert pd.read_csv(out / "winrates.csv")["win_rate"][0] == pytest.approx(run["win_rate"])
    page = (out / "report.html").read_text()
    assert page.index("Win rates at equal KL") < page.index(advice) < page.index("<img")
    cut = "most completions of lognormal, with ids of beta 0.1 and seed 42 and 1 more were cut"
    assert shown.index(cut) < shown.index(advice) and cut in page
    assert main(words_for(run_folder, out, "--judge", "oracle")) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_equal_seeds_write_equal_completions(tmp_path, run_folder):
    tables = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        config = config_for(run_folder, tmp_path / name)
        compare_runs([str(run_folder)], config, tmp_path / name)
        tables.append(pd.read_parquet(tmp_path / name / "completions.parquet"))
    pd.testing.assert_frame_equal(*tables)


def config_for(run, out, **changes):
    return WinrateConfig(
        prompts=str(run.with_name("prompts.jsonl")), judge="oracle", output_dir=str(out),
        max_prompts=4, max_new_tokens=8, batch_size=3, **changes,
    )  # fmt: skip


def test_completions_that_are_there_are_not_written_again(tmp_path, run_folder, monkeypatch):
    config = config_for(run_folder, tmp_path)
    first = compare_runs([str(run_folder)], config, tmp_path)

    def fail(*args):
        raise AssertionError("generated again")

    monkeypatch.setattr(module, "complete_prompts", fail)
    assert compare_runs([str(run_folder)], config, tmp_path) == first
    with pytest.raises(AssertionError, match="generated again"):
        compare_runs([str(run_folder)], replace(config, seed=1), tmp_path)


def test_one_run_is_a_curve_over_weights(tmp_path, run_folder):
    """Away from the reference its KL grows; half of the way is not half of the KL."""
    config = config_for(run_folder, tmp_path, decoding_weights=[0.25, 1.0, 4.0])
    found = compare_runs([str(run_folder)], config, tmp_path)
    assert [rate.weight for rate in found.runs] == [0.25, 1.0, 4.0]
    divergence = [rate.kl for rate in found.runs]
    assert 0 < divergence[0] < divergence[1] < divergence[2]
    assert found.kl == pytest.approx(divergence[2]) and found.arms[0].seeds == 1
    plain = compare_runs([str(run_folder)], replace(config, decoding_weights=[1.0]), tmp_path)
    assert plain.runs[0] == found.runs[1]


def test_base_is_what_the_run_started_from(tmp_path, run_folder):
    """The same files are taken, so that policy and reference are those of the default."""
    default = compare_runs([str(run_folder)], config_for(run_folder, tmp_path), tmp_path)
    config = config_for(run_folder, tmp_path, reference="base")
    assert compare_runs([str(run_folder)], config, tmp_path).runs == default.runs
    assert len(list((tmp_path / "completions").iterdir())) == 2


def test_a_judge_of_ones_own_decides(tmp_path, run_folder):
    """The longer completion wins; what has no score is left out and counted."""

    def judge(prompts, completions):
        assert len(prompts) == len(completions) == 4 and isinstance(prompts[0], str)
        return [None, *map(len, completions[1:])]

    found = compare_runs([str(run_folder)], config_for(run_folder, tmp_path), tmp_path, judge)
    (run,) = found.runs
    assert run.failures == 1 and run.n_wins + run.n_wins_base + run.n_draws == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "prompts.jsonl").write_text('{"text": "a"}\n'), "column 'prompt'"),
        (lambda f: (f / "prompts.jsonl").write_text('{"prompt": 3}\n'), "row 0 has no text"),
        (
            lambda f: (f / "prompts.jsonl").write_text('{"prompt": "a"}\n' * 3),
            "at least two different prompts, got 1",
        ),
        (lambda f: (f / "run" / "run.json").unlink(), "run"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, run_folder, capsys, change, message):
    shutil.copytree(run_folder.parent, tmp_path / "copy")
    change(tmp_path / "copy")
    words = words_for(tmp_path / "copy" / "run", tmp_path / "out", "--judge", "oracle")
    assert main(words) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_two_runs_that_are_one_arm_are_refused(tmp_path, run_folder, capsys):
    words = words_for(run_folder, tmp_path / "out", "--judge", "oracle")
    words.insert(2, str(run_folder))
    assert main(words) == 2
    assert "are both 'lognormal, with ids' of seed 42 and beta 0.1" in capsys.readouterr().err


def test_baselines_are_arms_of_their_own_and_a_sweep_names_its_arms(tmp_path, run_folder):
    record = read_record(RunRecord, run_folder / "run.json")
    plain = replace(record, family="fixed")
    assert module._arm(str(run_folder), plain) == "dpo"
    assert module._arm(str(run_folder), replace(plain, baseline="robust")) == "robust"
    run = tmp_path / "runs" / "noisy" / "beta-0.1" / "seed-42"
    shutil.copytree(run_folder, run)
    swept = SweptRun("noisy/beta-0.1/seed-42", "noisy", 0.1, 42)
    write_record(SweepRecord([swept]), tmp_path / "sweep.json")
    assert module._arm(str(run), plain) == "noisy"
    module._refuse_twins([str(run_folder), str(run)], [plain, plain])


def test_both_orders_of_a_biased_judge_give_half():
    rng = np.random.default_rng(0)
    texts = [str(k) for k in rng.integers(9, size=50)], [str(k) for k in rng.integers(9, size=50)]
    found = judge_pairs(lambda prompt, first, second: 1.0, [""] * 50, *texts)
    assert (found.sign == 0).all() and found.first_wins == 1.0
    fair = judge_pairs(
        lambda prompt, first, second: float(np.sign(int(first) - int(second)) + 1) / 2,
        [""] * 50, *texts,
    )  # fmt: skip
    assert fair.first_wins == 0.5
    np.testing.assert_array_equal(
        fair.sign, np.sign([int(a) - int(b) for a, b in zip(*texts, strict=True)])
    )
