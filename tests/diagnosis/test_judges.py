import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.diagnosis.config import JudgesConfig
from mixdpo_pyro.errors import ConfigError


@pytest.fixture
def votes():
    """Twelve judges, four models; the first judge always says left."""
    rng = np.random.default_rng(0)
    rating = np.array([1.0, 0.3, -0.3, -1.0])
    judge = np.repeat(np.arange(12), 30)
    left = rng.integers(4, size=360)
    right = (left + rng.integers(1, 4, size=360)) % 4
    is_left = rng.random(360) < expit(rating[left] - rating[right])
    winner = np.where(is_left | (judge == 0), "model_a", "model_b").astype(object)
    winner[5:40:7] = "tie (bothbad)"
    names = np.array(["good", "fine", "$weak", "bad"])
    return pd.DataFrame(
        {"model_a": names[left], "model_b": names[right], "winner": winner, "who": judge}
    )


def run(capsys, *words):
    status = main(["judges", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.strip()


def test_everything_is_written(capsys, tmp_path, votes):
    votes.to_csv(tmp_path / "v.csv", index=False)
    out = tmp_path / "out"
    status, text, error = run(capsys, tmp_path / "v.csv", "--judge", "who", "-o", out)
    assert (status, error) == (0, "")
    assert "360 votes (5 ties), 4 items, 12 judges" in text
    assert "judge 0 says left in" in text
    ratings = pd.read_csv(out / "ratings.csv")
    assert ratings["item"].tolist() == ["good", "fine", "$weak", "bad"]
    assert ratings["elo"].mean() == pytest.approx(1000, abs=0.01)
    judges = pd.read_csv(out / "judges.csv")
    assert judges["left_of_even"].idxmax() == 0 and (judges["votes"] == 30).all()
    facts = json.loads((out / "judges.json").read_text())
    assert (facts["votes"], facts["judges"]) == (360, 12)
    assert {path.name for path in (out / "figures").glob("*.png")} == {"ratings.png", "judges.png"}
    status, _, error = run(capsys, tmp_path / "v.csv", "--judge", "who", "-o", out)
    assert status == 1 and "--overwrite" in error


def test_a_vote_may_be_said_in_several_ways(capsys, tmp_path, votes):
    item = votes["model_a"].where(votes["winner"] == "model_a", votes["model_b"])
    item = item.where(~votes["winner"].str.startswith("tie"), "tie")
    side = votes["winner"].map({"model_a": "left", "model_b": "right"}).fillna("tie")
    found = []
    for k, winner in enumerate([votes["winner"], item, side]):
        votes.assign(winner=winner).to_json(tmp_path / f"{k}.jsonl", orient="records", lines=True)
        status, text, _ = run(capsys, tmp_path / f"{k}.jsonl", "--judge", "who")
        assert status == 0
        found.append(text.splitlines()[1:])
    assert found[0] == found[1] == found[2]


def test_without_judges_all_votes_are_of_equal_ones(capsys, tmp_path, votes):
    votes.to_csv(tmp_path / "v.csv", index=False)
    out = tmp_path / "out"
    status, text, _ = run(capsys, tmp_path / "v.csv", "-o", out)
    assert status == 0 and "judges taken as equal" in text
    assert not (out / "judges.csv").exists()
    equal = run(capsys, tmp_path / "v.csv", "--judge", "who", "--equal_judges")[1]
    assert equal.splitlines()[2:] == text.splitlines()[2:-2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.drop(columns="winner"), "column 'winner' is missing"),
        (
            lambda v: v.assign(winner="draw?"),
            "row 0 has 'draw?' in column 'winner', expected left",
        ),
        (lambda v: v.assign(who=[None, *v["who"][1:]]), "row 0 has nothing in column 'who'"),
        (lambda v: v.assign(model_b=v["model_a"]), "row 0 compares '"),
        (lambda v: v.head(0), "column 'model_a' is missing"),
        (
            lambda v: pd.concat([v, v.assign(model_a="x", model_b="y", winner="left")]),
            "Votes do not connect all items: nothing says how",
        ),
    ],
)
def test_what_is_wrong_is_named(capsys, tmp_path, votes, change, message):
    change(votes).to_json(tmp_path / "v.jsonl", orient="records", lines=True)
    status, text, error = run(capsys, tmp_path / "v.jsonl", "--judge", "who")
    assert (status, text) == (1, "")
    assert message in error and "Traceback" not in error


def test_a_column_is_named_once():
    with pytest.raises(ConfigError, match="column 'model_a' is named twice"):
        JudgesConfig(judge="model_a")
