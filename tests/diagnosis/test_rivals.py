import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from scipy.special import expit

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.diagnosis.config import RivalsConfig
from mixdpo_pyro.diagnosis.rivals import _read_embeddings, judge_rivals
from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.inference.people.rivals.harness import RIVALS
from mixdpo_pyro.margins.table import read_margins

ON_MARGINS = [rival.name for rival in RIVALS if rival.inputs == "margins"]


@pytest.fixture
def table():
    """Thirty people of whom a third want the opposite, over two topics, and embeddings."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(30), 12)
    sign = np.where(np.arange(30) % 3, 1.0, -1.0)[person]
    difference = rng.normal(size=(len(person), 2))
    is_first = rng.random(len(person)) < expit(3 * sign * difference[:, 0])
    difference = np.where(is_first[:, None], difference, -difference)
    topic = np.array(["cats", "dogs"])[np.arange(len(person)) % 2]
    return pd.DataFrame(
        {"margin": difference[:, 0], "other": difference[:, 1], "annotator": person,
         "topic": topic}
    )  # fmt: skip


def embeddings_of(table):
    # safetensors writes an array as it lies in memory, whatever its order.
    chosen = np.ascontiguousarray(table[["margin", "other"]].to_numpy(np.float32) / 2)
    return {"chosen": chosen, "rejected": -chosen, "prompt": np.ones_like(chosen)}


def run(capsys, *words):
    status = main(["rivals", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.strip().splitlines()[-1:]


def test_margins_alone_give_a_table_and_say_what_was_not_run(capsys, tmp_path, table):
    table.to_parquet(tmp_path / "m.parquet")
    out = tmp_path / "out"
    status, text, _ = run(capsys, tmp_path / "m.parquet", "--num_folds", 2, "-o", out)
    assert status == 0
    assert (
        "360 pairs, 30 annotators" in text
        and "Not run, since they need --embeddings: one reward, " in text
    )
    assert "(5% over all models): types of strength, strength per person, gamma with" in text
    scores = pd.read_csv(out / "rivals.csv")
    assert scores["model"].tolist() == ON_MARGINS
    facts = json.loads((out / "rivals.json").read_text())
    assert set(facts["not_run"]) == {r.name for r in RIVALS} - set(ON_MARGINS)
    assert facts["scored"] == 360 and facts["held_out"] == "choices"
    people = pd.read_csv(out / "types.csv")
    assert people["annotator"].tolist() == list(range(30))
    is_contrary = np.arange(30) % 3 == 0
    assert np.array_equal(people["types of strength: type"] != 1, is_contrary)
    assert (out / "figures" / "gains.png").stat().st_size > 1_000
    status, _, error = run(capsys, tmp_path / "m.parquet", "-o", out)
    assert status == 1 and "--overwrite" in error[0]


def test_embeddings_holdout_groups_and_pseudonyms(capsys, tmp_path, table, monkeypatch):
    from mixdpo_pyro.diagnosis import rivals

    quick = tuple(r for r in RIVALS if r.name in ("one strength", "one reward", "bridging"))
    monkeypatch.setattr(rivals, "RIVALS", quick)
    table["annotator"] = "user" + table["annotator"].astype(str)
    table.to_csv(tmp_path / "m.csv", index=False)
    save_file(embeddings_of(table), tmp_path / "e.safetensors")
    (tmp_path / "salt").write_bytes(b"0123456789abcdef")
    status, text, _ = run(
        capsys, tmp_path / "m.csv", "--embeddings", tmp_path / "e.safetensors", "-o",
        tmp_path / "out", "--holdout", "topic", "--group", "topic", "--pseudonymise",
        tmp_path / "salt",
    )  # fmt: skip
    assert status == 0
    assert "2 folds by topic" in text and "worst is of topic" in text
    written = [(tmp_path / "out" / n).read_text() for n in ("types.csv", "rivals.json")]
    assert all("user1" not in each for each in written) and "cats" not in written[1]
    people = pd.read_csv(tmp_path / "out" / "types.csv")
    assert people.columns[2:].tolist() == ["bridging: factor"]


def test_equal_seeds_give_equal_answers(tmp_path, table):
    table.to_csv(tmp_path / "m.csv", index=False)
    config = RivalsConfig(num_folds=2, seed=3, max_choices=200)
    (first, people), (second, _) = (judge_rivals(tmp_path / "m.csv", config) for _ in range(2))
    assert [s.nats for s in first.scores] == [s.nats for s in second.scores]
    assert first.num_drawn == first.annotators == len(people) == 16
    assert first.choices == 192


def test_embeddings_are_those_of_the_rows_that_are_read(tmp_path, table):
    config = RivalsConfig(embeddings=str(tmp_path / "e.safetensors"))
    every = embeddings_of(table)
    flags = np.arange(len(table)) % 4 == 1
    table.assign(trained_on=flags).to_csv(tmp_path / "m.csv", index=False)
    save_file(every, tmp_path / "e.safetensors")
    found = _read_embeddings(config, read_margins(tmp_path / "m.csv"))
    table[~flags].to_csv(tmp_path / "m.csv", index=False)
    save_file({k: v[~flags] for k, v in every.items()}, tmp_path / "e.safetensors")
    alone = _read_embeddings(config, read_margins(tmp_path / "m.csv"))
    for one, other in zip(vars(found).values(), vars(alone).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda t: t.drop(columns="annotator"), (), "Expected annotator ids"),
        (lambda t: t.assign(annotator=range(len(t))), (), "got one in column 'annotator'"),
        (lambda t: t.assign(topic="cats"), ("--holdout", "topic"), "several groups to hold out"),
        (lambda t: t.assign(outcome="tie"), (), "Expected plain pairs"),
        (lambda t: t.groupby("annotator").head(2)[:18], (), "at least 20 choices, got 18"),
        (lambda t: t, ("--holdout", "tpic"), "column 'tpic' is missing; it has margin"),
    ],
)
def test_margins_that_cannot_be_used_are_one_line(capsys, tmp_path, table, change, words, message):
    path = tmp_path / "m.csv"
    change(table).to_csv(path, index=False)
    status, out, (error,) = run(capsys, path, *words)
    assert (status, out) == (1, "")
    assert message in error and str(path) in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("rejected"), "tensor 'rejected' is missing; it has chosen, prompt"),
        (lambda e: e.update(chosen=e["chosen"][1:]), "has shape (359, 2), expected an embedding"),
        (lambda e: e.update(chosen=e["chosen"][:, :1].copy()), "of one size, got 1 and 2"),
        (lambda e: e["chosen"].fill(np.nan), "tensor 'chosen' has no finite numbers in row 0"),
        (lambda e: e.update(chosen=e["rejected"]), "embeddings that differ"),
    ],
)
def test_embeddings_that_cannot_be_used_are_one_line(capsys, tmp_path, table, change, message):
    table.to_csv(tmp_path / "m.csv", index=False)
    found, path = embeddings_of(table), tmp_path / "e.safetensors"
    change(found)
    save_file({name: np.ascontiguousarray(value) for name, value in found.items()}, path)
    status, out, (error,) = run(capsys, tmp_path / "m.csv", "--embeddings", path)
    assert (status, out) == (1, "")
    assert message in error and str(path) in error


def test_a_file_that_is_no_safetensors_is_named(capsys, tmp_path, table):
    table.to_csv(tmp_path / "m.csv", index=False)
    words = (tmp_path / "m.csv", "--embeddings", tmp_path / "m.csv")
    status, _, (error,) = run(capsys, *words)
    assert status == 1 and "m.csv: cannot be read as safetensors" in error


def test_options_have_bounds():
    with pytest.raises(ConfigError, match="num_folds: expected at least 2"):
        RivalsConfig(num_folds=1)
    with pytest.raises(ConfigError, match="components: expected at least 1"):
        RivalsConfig(components=0)
