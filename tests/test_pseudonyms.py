"""Pseudonyms: keyed hashes, equal in every command, and no id left in what is written."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.data.audit import examine
from mixdpo_pyro.data.config import DoctorConfig
from mixdpo_pyro.data.validation import check_preferences
from mixdpo_pyro.diagnosis.predictive_checks import CheckConfig, check_predictions
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.io.pseudonyms import Pseudonyms

SALT = b"kept by its owner"


@pytest.fixture
def salt(tmp_path):
    path = tmp_path / "salt.bin"
    path.write_bytes(SALT)
    return str(path)


def rfc_2104(key, text):
    """HMAC-SHA256 from its definition, for keys of at most a block."""
    block = key.ljust(64, b"\0")
    inner, outer = (bytes(b ^ pad for b in block) for pad in (0x36, 0x5C))
    return hashlib.sha256(outer + hashlib.sha256(inner + text).digest()).hexdigest()


def test_pseudonym_is_the_keyed_hash_of_the_id():
    names = Pseudonyms(SALT)
    for text in ("ann", "7", "07", "Zoë 🙂"):
        assert names.of(text) == f"p{rfc_2104(SALT, text.encode())[:20]}"
        assert Pseudonyms(SALT[:-1] + b"!").of(text) != names.of(text)


def test_ids_keep_apart_and_equal_ones_together():
    ids = [str(k) for k in range(50_000)]
    hashed = Pseudonyms(SALT).of_all(ids[:1000] * 2 + ids)
    assert len(set(hashed.tolist())) == 50_000
    np.testing.assert_array_equal(hashed[:1000], hashed[1000:2000])


def test_salt_is_not_shown():
    assert "owner" not in repr(Pseudonyms(SALT))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "salt file cannot be read .No such file or directory.*urandom"),
        (b"", "salt file holds 0 bytes, expected at least 16"),
        (b"x" * 15, "salt file holds 15 bytes, expected at least 16"),
    ],
)
def test_salt_file_must_be_there_and_long_enough(tmp_path, content, message):
    path = tmp_path / "salt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Pseudonyms.from_file(str(path))


def pairs(**columns):
    rows = {"chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"], "annotator": [7, 8, 7]}
    return check_preferences(Dataset.from_dict({**rows, **columns}), "d", "annotator")


def test_named_columns_are_hashed_and_no_other(salt):
    data = pairs(team=["red", None, "red"], city=["Bonn", "Kiel", "Bonn"])
    assert data.pseudonymised(None, "team") is data
    found = data.pseudonymised(salt, "team").pairs
    names = Pseudonyms(SALT)
    assert found["annotator"][:] == [names.of("7"), names.of("8"), names.of("7")]
    assert found["team"][:] == [names.of("red"), None, names.of("red")]
    assert found["city"][:] == ["Bonn", "Kiel", "Bonn"]
    assert found.column_names == data.pairs.column_names
    with pytest.raises(DataError, match="d: column 'nobody' is missing; it has chosen, "):
        data.pseudonymised(salt, "nobody")
    with pytest.raises(DataError, match="d: column 'chosen' holds no people or groups"):
        data.pseudonymised(salt, "chosen")
    with pytest.raises(DataError, match="d: column 'x': expected a label"):
        pairs(x=[[1], [2], [3]]).pseudonymised(salt, "x")


def test_no_other_column_keeps_the_ids_beside_their_pseudonyms(salt):
    """Readers keep the ids of their source under its name for them."""
    data = pairs(user_id=[7, 8, 7], worker=["7", "8", "7"], grade=[7, 8, 7], age=[7, 8, 8])
    found = data.pseudonymised(salt).pairs
    assert found["user_id"][:] == found["worker"][:] == found["annotator"][:]
    assert found["annotator"][0] == Pseudonyms(SALT).of("7")
    assert (found["grade"][:], found["age"][:]) == ([7, 8, 7], [7, 8, 8])


def test_doctor_names_pseudonyms(tmp_path, salt):
    rows = [
        {"prompt": f"p{k}", "chosen": f"yes {k}", "rejected": "no", "annotator": f"ann{k % 2}"}
        for k in range(6)
    ]
    rows.append({**rows[0], "annotator": "   "})
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = examine(str(tmp_path / "d.jsonl"), DoctorConfig(pseudonymise=salt))
    assert found.annotators.most == {Pseudonyms(SALT).of(f"ann{k}"): 3 for k in (0, 1)}
    assert found.num_usable == 6 and not found.is_ready
    assert "ann0" not in json.dumps(found.to_dict())


def world(folder, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.repeat([f"worker-{k}@home" for k in range(20)], 8)
    table = pd.DataFrame({"margin": rng.normal(1, 2, len(ids)), "annotator": ids})
    table["team"] = [f"team-of-{int(i[7:].split('@')[0]) % 3}" for i in ids]
    table.to_parquet(folder / "m.parquet")
    return table


def run(capsys, *words):
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_diagnosis_and_check_name_no_person(tmp_path, capsys, salt):
    table = world(tmp_path)
    out = tmp_path / "out"
    status, text = run(
        capsys, "diagnose", tmp_path / "m.parquet", "--group", "team", "--num_samples", 100,
        "-o", out, "--pseudonymise", salt,
    )  # fmt: skip
    assert status == 0
    ids = [*set(table["annotator"]), *set(table["team"])]
    written = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert {"annotators.csv", "groups.csv", "posterior.nc", "report.html"} <= written.keys()
    for name, content in {**written, "screen": text.encode()}.items():
        assert not any(i.encode() in content for i in ids), name
    counts = pd.read_csv(out / "annotators.csv").set_index("annotator")["pairs"]
    names = Pseudonyms(SALT)
    assert counts.to_dict() == {names.of(i): 8 for i in set(table["annotator"])}
    groups = set(pd.read_csv(out / "groups.csv")["group"])
    assert groups == {names.of(i) for i in set(table["team"])}

    def known(**options):
        config = CheckConfig(num_replications=50, **options)
        return check_predictions(tmp_path / "m.parquet", out / "posterior.nc", config).num_known

    assert (known(pseudonymise=salt), known()) == (20, 0)


@pytest.mark.parametrize(
    "words",
    [
        ["diagnose", "m.parquet", "-o", "salt.bin", "--pseudonymise", "salt.bin"],
        ["doctor", "p.csv", "--json", "salt.bin", "--overwrite", "--pseudonymise", "salt.bin"],
    ],
)
def test_salt_is_an_input_that_no_output_replaces(tmp_path, capsys, monkeypatch, salt, words):
    world(tmp_path)
    (tmp_path / "p.csv").write_text("chosen,rejected\na,b\n")
    monkeypatch.chdir(tmp_path)
    status, text = run(capsys, *words)
    assert status != 0 and "salt.bin: is an input of this command" in text
    assert (tmp_path / "salt.bin").read_bytes() == SALT
