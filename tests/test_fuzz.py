"""A hundred of the inputs of `benchmarks/fuzz.py`: none ends in an error that nobody planned."""

import time
from pathlib import Path

import pytest
from fuzz_cases import FAULTS, Case, ChangedError, draw_cases, judge

from mixdpo_pyro.errors import DataError

COUNTS = {
    "table": 24, "column": 12, "set": 12, "impossible set": 8, "pairs": 8, "judged pairs": 10,
    "likelihood": 12, "world": 16, "broken file": 12, "command": 20, "doctor": 4,
}  # fmt: skip

ALWAYS_REFUSED = {"impossible set", "broken file", "command"}
ALWAYS_TAKEN = {"doctor"}


@pytest.mark.parametrize("kind", COUNTS)
def test_odd_inputs_are_taken_as_they_are_or_refused(tmp_path, kind):
    ends = []
    for case in draw_cases({kind: COUNTS[kind]}):
        how, words = judge(case, tmp_path / case.name, limit=20)
        assert how not in FAULTS, f"{case.name}: {how}: {words}"
        ends.append(how)
    if kind not in ALWAYS_REFUSED:
        assert "taken" in ends  # so that the oracle looked at something
    if kind not in ALWAYS_TAKEN:
        assert "refused" in ends


def sleeps(folder: Path) -> None:
    try:
        time.sleep(5)
    except Exception as error:  # as a handler of the code under test would
        raise DataError("late") from error


def fails(error: Exception):
    def run(folder: Path) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "end"),
    [
        (lambda folder: None, "taken"),
        (fails(DataError("planned")), "refused"),
        (fails(ValueError("Expected cv > 0, got -1")), "refused"),
        (fails(ValueError("math domain error")), "unplanned"),
        (fails(KeyError("x")), "unplanned"),
        (fails(ChangedError("ids")), "changed"),
        (sleeps, "hang"),
    ],
)
def test_judge_tells_faults_from_answers(tmp_path, run, end):
    assert judge(Case("made up", run), tmp_path / "case", limit=0.3)[0] == end


def test_equal_seeds_draw_equal_cases():
    names = [case.name for case in draw_cases({"table": 3}, first_seed=5)]
    assert names == ["table 5", "table 6", "table 7"]
