"""Runs of a sweep by arm and beta."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.reporting.arms import ARM_HEADINGS, ArmResult, advise_arms, arm_notes, arm_rows
from mixdpo_pyro.reporting.sweep_record import (
    SweptRun,
    expand_sweeps,
    find_swept,
    short_names,
    unfinished_runs,
)


def result(arm, beta, seed, accuracy=0.7, log_prob=-0.5, cv=0.4, sweep="sweep", pairs=10**6):
    name = f"{arm}/beta-{beta}/seed-{seed}"
    swept = SweptRun(name, arm, beta, seed)
    return ArmResult(swept, sweep, accuracy, pairs, log_prob, cv, "inconclusive", "PASS")


def cells(results):
    return [dict(zip(ARM_HEADINGS, row, strict=True)) for row in arm_rows(results)]


def test_intervals_are_those_of_student_over_seeds():
    values = [0.6, 0.65, 0.61]
    (row,) = cells([result("dpo", 0.1, seed, value) for seed, value in enumerate(values)])
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert row["accuracy"] == f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"
    assert row["against first arm"] == "-"
    assert (row["seeds"], row["cv"]) == ("3", "0.40 [0.40, 0.40]")
    assert row["verdicts"] == "3 inconclusive"


def test_intervals_end_where_no_value_can_be():
    (row,) = cells([result("dpo", 0.1, s, a, -a, a) for s, a in enumerate((0.1, 0.9))])
    assert row["accuracy"] == "0.500 [0.000, 1.000]"
    assert row["log-probability"].endswith(", 0.000]")
    assert row["cv"].startswith("0.50 [0.00, ")


def test_seeds_that_agree_by_chance_do_not_narrow_the_interval():
    """Two accuracies of 100 pairs are equal: the interval is that of their sampling error."""
    (row,) = cells([result("dpo", 0.1, seed, 0.5, pairs=100) for seed in (0, 1)])
    half = stats.t.ppf(0.975, 1) * 0.05 / np.sqrt(2)
    assert row["accuracy"] == f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]"


def test_differences_are_taken_seed_by_seed():
    """Seeds differ by 0.2, the arms by 0.01 in each: the difference is certain."""
    results = [
        result(arm, 0.1, seed, log_prob=-0.6 + 0.2 * seed + more)
        for seed in (0, 1)
        for arm, more in (("dpo", 0.0), ("mix", 0.01))
    ]
    results.append(result("mix", 0.5, 0))  # whose control is not there
    found = [row["against first arm"] for row in cells(results)]
    assert found == ["-", "0.010 [0.010, 0.010]", "-"]


def test_one_sentence_names_arms_whose_differences_are_clear_together():
    """Differences of 0.030 and 0.032 nats, of one seed, and of 0.1 and -0.1 nats."""
    gains = {"mix": (0.03, 0.032, 0.031), "one": (9.0,), "odd": (0.1, -0.1)}
    results = [result("dpo", 0.1, seed) for seed in (0, 1, 2)] + [
        result(arm, 0.1, seed, log_prob=-0.5 + gain)
        for arm, of in gains.items()
        for seed, gain in enumerate(of)
    ]
    half = stats.t.ppf(1 - 0.025 / 2, 2) * 0.001 / np.sqrt(3)
    assert advise_arms(results) == (
        "mix at beta 0.1 predicts held-out choices better than dpo, by 0.0310 nats "
        f"[{0.031 - half:+.4f}, {0.031 + half:+.4f}] over 3 seeds; whose responses win is another "
        "question (mixdpo winrate)."
    )
    open_one = [r for r in results if r.swept.arm in ("dpo", "odd")]
    assert advise_arms(open_one).startswith("No arm is shown to predict held-out choices better")
    alone = [r for r in results if r.swept.arm in ("dpo", "one")]
    for none in ([], alone, results[:3]):
        assert advise_arms(none).startswith("Cannot tell which arm is better: train at least")


def test_one_seed_has_no_interval_and_says_so():
    results = [result("dpo", 0.1, 0), result("dpo", 0.1, 1), result("mix", 0.1, 0)]
    assert cells(results)[1]["accuracy"] == "0.700, one seed"
    notes = " ".join(arm_notes(results))
    assert "One seed has no interval" in notes
    assert "beyond that of 'dpo'" in notes
    assert "One seed" not in " ".join(arm_notes(results[:2])) and arm_notes([]) == []


def test_arms_of_several_sweeps_keep_apart():
    rows = cells([result("dpo", 0.1, 0), result("dpo", 0.1, 0, sweep="other")])
    assert [row["arm"] for row in rows] == ["sweep/dpo", "other/dpo"]
    broken = cells([result("dpo", 0.1, 0, log_prob=np.nan)])
    assert broken[0]["log-probability"] == "not finite"


def test_a_sweep_stands_for_its_finished_runs(tmp_path):
    runs = [result("dpo", 0.1, seed).swept for seed in (0, 1)]
    record = {"format": 2, "runs": [run.__dict__ for run in runs]}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(OutputError, match="none of its 2 runs is finished"):
        expand_sweeps([str(tmp_path)])
    folder = tmp_path / "runs" / runs[1].name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    assert expand_sweeps(["run", str(tmp_path)]) == ["run", str(folder)]
    assert unfinished_runs(tmp_path) == ["dpo/beta-0.1/seed-0"]
    assert find_swept(folder) == runs[1]
    assert find_swept(tmp_path) is None and find_swept(folder.with_name("seed-7")) is None
    assert short_names([folder, folder.with_name("seed-7")]) == [
        "dpo/beta-0.1/seed-1", "dpo/beta-0.1/seed-7",
    ]  # fmt: skip
    assert short_names([Path("/a/run"), Path("/b/run")]) == ["a/run", "b/run"]
