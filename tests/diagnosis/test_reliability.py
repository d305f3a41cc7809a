import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.diagnosis.config import ReliabilityConfig
from mixdpo_pyro.errors import ConfigError


@pytest.fixture
def table():
    """Forty people with strengths of their own, over three topics."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(40), 30)
    x = rng.normal(0, 2, len(person))
    strength = rng.lognormal(0, 0.8, 40)[person]
    margin = np.where(rng.random(len(x)) < expit(strength * x), x, -x)
    topic = np.array(["cats", "dogs", "$3"])[np.arange(len(x)) % 3]
    return pd.DataFrame({"margin": margin, "annotator": person, "topic": topic})


def run(capsys, *words):
    status = main(["reliability", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.strip()


def test_everything_is_written(capsys, tmp_path, table):
    table.to_parquet(tmp_path / "m.parquet")
    out = tmp_path / "out"
    status, text, error = run(capsys, tmp_path / "m.parquet", "--group", "topic", "-o", out)
    assert (status, error) == (0, "")
    assert "halves: stable. More than half" in text and "topic: " in text
    facts = json.loads((out / "reliability.json").read_text())
    halves, topic = facts["parts"]
    assert (halves["parts"], halves["value"], topic["num_parts"]) == ("halves", "stable", 3)
    assert facts["annotators"] == 40 and facts["config"]["group"] == ["topic"]
    assert (out / "figures" / "correlations.png").stat().st_size > 1_000
    status, _, error = run(capsys, tmp_path / "m.parquet", "-o", out)
    assert status == 1 and "--overwrite" in error


def test_equal_seeds_give_equal_answers(capsys, tmp_path, table):
    table.to_csv(tmp_path / "m.csv", index=False)
    words = (tmp_path / "m.csv", "--num_splits", 2, "--num_bootstrap", 100, "--seed", 3)
    assert run(capsys, *words) == run(capsys, *words)


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda t: t.drop(columns="annotator"), (), "Expected annotator ids"),
        (lambda t: t.assign(annotator=range(len(t))), (), "got one in column 'annotator'"),
        (lambda t: t.assign(topic="cats"), ("--group", "topic"), "several groups in 'topic'"),
        (lambda t: t, ("--group", "tpic"), "column 'tpic' is missing; it has margin"),
    ],
)
def test_what_cannot_be_used_is_one_line(capsys, tmp_path, table, change, words, message):
    path = tmp_path / "m.csv"
    change(table).to_csv(path, index=False)
    status, out, error = run(capsys, path, *words)
    assert (status, out) == (1, "")
    assert message in error and str(path) in error and "\n" not in error


def test_options_have_bounds():
    with pytest.raises(ConfigError, match="num_splits: expected at least 1"):
        ReliabilityConfig(num_splits=0)
    with pytest.raises(ConfigError, match="num_bootstrap: expected at least 100"):
        ReliabilityConfig(num_bootstrap=10)
