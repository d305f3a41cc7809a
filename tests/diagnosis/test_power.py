from dataclasses import replace

import pytest
from scipy import stats

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.diagnosis import power
from mixdpo_pyro.diagnosis.power import (
    PowerConfig,
    PowerRow,
    estimate_power,
    power_lines,
    simulate_power,
    suggestion,
)
from mixdpo_pyro.errors import ConfigError


def row(counts, annotators=100, each=20):
    names = ("heterogeneous", "homogeneous", "inconclusive")
    return PowerRow(annotators, each, dict(zip(names, counts, strict=True)))


def test_interval_is_that_of_jeffreys():
    low, high = row((30, 0, 20)).interval("heterogeneous")
    assert (low, high) == pytest.approx(stats.beta.ppf([0.025, 0.975], 30.5, 20.5))
    assert row((30, 0, 20)).interval("homogeneous")[0] == 0
    assert row((50, 0, 0)).interval("heterogeneous")[1] == 1


def test_plenty_of_data_settles_it_and_few_do_not():
    plenty = estimate_power(PowerConfig(pairs=2_000, annotators=100, cv=1.0, simulations=2))
    few = estimate_power(PowerConfig(pairs=60, annotators=20, cv=0.3, simulations=2))
    assert plenty.counts == {"heterogeneous": 2, "homogeneous": 0, "inconclusive": 0}
    assert few.probability("inconclusive") == 1


def test_without_ids_the_suggestion_is_to_collect_ids():
    config = PowerConfig(pairs=100, annotators=0, cv=0.6, simulations=2)
    found = estimate_power(config)
    assert found.counts["heterogeneous"] == 0
    assert "collect ids" in suggestion([found], config)


def test_suggestion_is_the_smallest_design_that_settles_it():
    config = PowerConfig(cv=0.5)
    rows = [row((20, 0, 30)), row((30, 0, 20), 200), row((48, 0, 2), each=40)]
    assert suggestion(rows, config).startswith(
        "Collect pairs of 100 annotators with 40 choices each"
    )
    assert suggestion(rows[:1], config).startswith("This design does not settle it")
    assert suggestion(rows[2:], config) == "This design settles it: heterogeneous in 96%."
    assert "[" in power_lines(rows, config)[3]


def test_datasets_do_not_depend_on_their_order():
    config = PowerConfig(pairs=60, annotators=20, cv=1.0, simulations=2)
    answers = [power._diagnose_one((config, number)) for number in (1, 0)]
    assert power._row(config, answers[::-1]) == estimate_power(config)


@pytest.mark.slow
def test_answer_is_the_same_for_any_number_of_jobs():
    config = PowerConfig(pairs=60, annotators=20, cv=1.0, simulations=2)
    alone, together = (estimate_power(replace(config, jobs=jobs)) for jobs in (1, 2))
    assert alone == together and alone.width > 0


def test_a_first_answer_comes_early_and_is_refined(monkeypatch, capsys):
    def diagnose(task):
        config, number = task
        return power._Answer("heterogeneous" if number else "inconclusive", config.pairs / 1e5)

    monkeypatch.setattr(power, "_FIRST_ANSWER", -1)
    monkeypatch.setattr(power, "_diagnose_one", diagnose)
    rows = simulate_power(PowerConfig(simulations=3, more=True))
    assert [row.counts["heterogeneous"] for row in rows] == [2] * 4
    assert [row.width for row in rows] == pytest.approx([0.1, 0.2, 0.2, 0.4])
    err = capsys.readouterr().err
    assert err.count("first answer, from 1 dataset of each design") == 1
    assert err.index("first answer") < err.index("12/12")
    assert f"heterogeneous {power._cell(rows[0], 'heterogeneous')}" in err


def test_plain_pairs_give_the_numbers_of_before_there_were_judges_and_errors():
    """Frozen: a new option must not move what is drawn without it."""
    found = estimate_power(PowerConfig(pairs=400, annotators=20, cv=1.0, simulations=2))
    assert found.counts == {"heterogeneous": 2, "homogeneous": 0, "inconclusive": 0}
    assert found.width == pytest.approx(1.229350376698198, rel=1e-6)
    assert sum(found.kinds.values()) == found.counts["heterogeneous"]


def test_errors_of_shared_pairs_are_no_heterogeneity_and_their_size_is_found():
    config = PowerConfig(
        pairs=400, annotators=20, cv=0.0, judges_per_pair=4, pair_error=1.0, simulations=2
    )
    found = simulate_power(config, progress=False)
    assert found[0].counts["heterogeneous"] == 0
    assert found[0].cv_with_errors is not None
    text = "\n".join(power_lines(found, config))
    assert "errors of the margins 1 times as large as they" in text
    assert "pairs by 4 of 20 annotators: with margins taken as exact cv is" in text
    assert "with their errors estimated" in text


def test_more_tries_pairs_with_several_judges_where_margins_have_errors():
    config = PowerConfig(pair_error=0.5, more=True)
    designs = list(power._designs(config))
    assert [d.judges_per_pair for d in designs] == [1, 4, 1, 1, 1]
    assert (designs[1].pairs, designs[1].annotators) == (config.pairs, config.annotators)
    exact = list(power._designs(replace(config, pair_error=0.0)))
    assert [d.judges_per_pair for d in exact] == [1] * 4
    alone = PowerRow(200, 50, {"heterogeneous": 1, "homogeneous": 0, "inconclusive": 9}, cv=0.3)
    shared = replace(alone, judges=4, cv_with_errors=0.5, kinds={"strength": 1})
    lines = power_lines([alone, shared], config)
    assert lines[3].endswith(" -") and lines[4].endswith(" strength 1")
    assert "nothing tells how large errors are" in lines[6] and "estimated 0.50" in lines[7]
    assert "(--judges_per_pair)" in lines[-1]


def test_power_command_prints_probabilities(capsys):
    arguments = "power --pairs 200 --annotators 20 --sd 1 --cv 0.5 --simulations 2".split()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "true cv 0.5" in out and "inconclusive" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotators": 1}, "annotators: expected 0 or at least 2, got 1"),
        ({"pairs": 100}, "pairs: expected at least 200, got 100"),
        ({"sd": 0.0}, "sd: expected a finite value > 0, got 0"),
        ({"cv": -0.1}, "cv: expected 0 <= cv <= 3, got -0.1"),
        ({"jobs": 0}, "jobs: expected at least 1, got 0"),
        ({"simulations": 1}, "simulations: expected at least 2, got 1"),
        ({"judges_per_pair": 0}, "judges_per_pair: expected at least 1, got 0"),
        ({"judges_per_pair": 3}, r"judges_per_pair: expected a divisor of annotators \(200\)"),
        ({"judges_per_pair": 2, "annotators": 0}, "expected 1 without annotator ids, got 2"),
        ({"pair_error": -1.0}, "pair_error: expected 0 <= pair_error <= 10, got -1"),
        ({"pair_error": float("nan")}, "pair_error: expected 0 <= pair_error <= 10, got nan"),
        (
            {"pair_error": 1.0, "design": ["pairs", "ties"]},
            "pair_error: expected the design pairs alone, got ties",
        ),
        (
            {"judges_per_pair": 4, "design": ["best-of:4"]},
            "judges_per_pair: expected the design pairs alone, got best-of:4",
        ),
    ],
)
def test_impossible_designs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        PowerConfig(**changes)
