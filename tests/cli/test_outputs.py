"""No command writes over its input, or over a file that is not its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scenarios import TRAINING_MARKS, small_world

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.io import staged_folder
from mixdpo_pyro.io.pseudonyms import Pseudonyms

pytestmark = TRAINING_MARKS

PAIRS = """\
{"prompt": "p", "chosen": "a", "rejected": "b"}
{"prompt": "q", "chosen": "c", "rejected": "d"}
"""


def run_cli(capsys, *arguments):
    """Status, and the last line of standard error."""
    status = main([str(a) for a in arguments])
    lines = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    return status, lines[-1] if lines else ""


@pytest.fixture
def margins(tmp_path):
    """Margins of 60 choices of 12 annotators."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"margin": rng.normal(1, 2, 60), "annotator": np.arange(60) % 12})
    table["annotator"] = "p" + table["annotator"].astype(str)
    table.to_csv(tmp_path / "m.csv", index=False)
    return tmp_path / "m.csv"


def diagnose(margins, output):
    return ["diagnose", margins, "-o", output, "--num_samples", 100]


def test_doctor_leaves_its_data_and_other_files_alone(capsys, tmp_path):
    data, notes = tmp_path / "p.jsonl", tmp_path / "notes.json"
    data.write_text(PAIRS)
    notes.write_text('{"years": "of work"}')
    status, line = run_cli(capsys, "doctor", data, "--json", data, "--overwrite")
    assert (status, line) == (
        1, f"mixdpo: error: {data}: is an input of this command; write to another place"
    )  # fmt: skip
    assert data.read_text() == PAIRS
    status, line = run_cli(capsys, "doctor", data, "--json", notes)
    assert (status, line) == (
        1, f"mixdpo: error: {notes}: exists; add --overwrite to replace it"
    )  # fmt: skip
    status, line = run_cli(capsys, "doctor", data, "--json", "/dev/null", "--overwrite")
    assert status == 1
    assert "/dev/null: expected a regular file" in line
    assert run_cli(capsys, "doctor", data, "--json", notes, "--overwrite")[0] == 0
    assert json.loads(notes.read_text())["ready_to_train"] is True
    assert run_cli(capsys, "doctor", data, "--json", notes)[0] == 0  # its own file


def test_compare_leaves_its_runs_and_other_files_alone(capsys, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "report.html"):
        (run / name).write_text("{}")
        status, line = run_cli(capsys, "compare", run, "-o", run / name, "--overwrite")
        assert (status, (run / name).read_text()) == (1, "{}")
        assert f"{name}: is part of the input" in line
    (tmp_path / "page.html").write_text("years of work")
    status, line = run_cli(capsys, "compare", run, "-o", tmp_path / "page.html")
    assert status == 1
    assert "page.html: exists; add --overwrite" in line
    (tmp_path / "page.html").write_text("<title>MixDPO: 2 runs compared</title>")
    assert "run.json: expected format 2" in run_cli(
        capsys, "compare", run, "-o", tmp_path / "page.html"
    )[1]  # fmt: skip


def test_diagnose_replaces_its_own_folder_and_nothing_else(capsys, tmp_path, margins):
    out = tmp_path / "out"
    assert run_cli(capsys, *diagnose(margins, out))[0] == 0
    status, line = run_cli(capsys, *diagnose(margins, out))
    assert "holds an earlier result; add --overwrite" in line
    inside = out / "m.csv"
    inside.write_bytes(margins.read_bytes())
    status, line = run_cli(capsys, *diagnose(inside, out), "--overwrite")
    assert status == 1
    assert f"holds the input '{inside}'; write to another place" in line
    status, line = run_cli(capsys, *diagnose(margins, out), "--second", inside, "--overwrite")
    assert f"holds the input '{inside}'" in line
    status, line = run_cli(capsys, *diagnose(margins, out), "--overwrite")
    assert "holds 'm.csv', which mixdpo did not write; move it" in line
    assert inside.read_bytes() == margins.read_bytes()
    inside.unlink()
    assert run_cli(capsys, *diagnose(margins, out), "--overwrite")[0] == 0
    with staged_folder(out, overwrite=True, marker="diagnosis.json"):
        status, line = run_cli(capsys, *diagnose(margins, out), "--overwrite")
    assert f"is being written by process {os.getpid()}" in line


def test_check_and_init_leave_their_inputs_alone(capsys, tmp_path, margins):
    with staged_folder(tmp_path / "out") as folder:
        (folder / "check.json").write_text("{}")
        (folder / "posterior.nc").write_text("draws")
    posterior = tmp_path / "out" / "posterior.nc"
    status, line = run_cli(
        capsys, "check", margins, posterior, "-o", tmp_path / "out", "--overwrite"
    )
    assert status == 1
    assert f"holds the input '{posterior}'" in line
    world = tmp_path / "world"
    pairs = world / "dataset"
    pairs.mkdir(parents=True)
    init = ["init", "--dataset_name", pairs, "--output_dir", world, "--overwrite"]
    status, line = run_cli(capsys, *init)
    assert status == 1
    assert f"holds the input '{pairs}'" in line


def test_full_disk_ends_diagnose_with_one_line(tmp_path, margins):
    """In a process of its own: HDF5 used to take it down. A limit stands in for a small disk."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1)); "
    words = [str(a) for a in diagnose(margins, tmp_path / "out")]
    code = f"{limit}from mixdpo_pyro.cli.main import main; raise SystemExit(main({words!r}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    line = ended.stderr.strip().splitlines()[-1]
    place = tmp_path / "out.partial" / "posterior.nc"
    assert line == f"mixdpo: error: {place}: cannot be written (File too large)"
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, policy_folder):
    """A run on the hub: its folder, what was created, and what was pushed, file by file."""
    folder = tmp_path_factory.mktemp("trained")
    small_world().remove_columns("source_row").to_json(folder / "pairs.jsonl")
    words = [
        "train", "--dataset_name", folder / "pairs.jsonl", "--model_name_or_path", policy_folder,
        "--output_dir", folder / "run", "--max_steps", 2, "--save_steps", 1, "--max_length", 128,
        "--report_to", "none", "--use_cpu", "true", "--test_fraction", 0.5, "--push_to_hub",
        "true", "--hub_token", "hf_secret", "--pseudonymise", folder / "salt",
    ]  # fmt: skip
    (folder / "salt").write_bytes(b"kept by its owner")
    created, pushed = [], {}

    def create(name, **options):
        created.append((name, options))
        return type("Url", (), {"repo_id": f"me/{name}"})

    def upload(repo_id, folder_path, **options):
        files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        pushed.update({p.relative_to(folder_path).as_posix(): p.read_bytes() for p in files})
        return f"https://hub/{repo_id}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixdpo_pyro.workflows.hub.create_repo", create)
        patch.setattr("mixdpo_pyro.workflows.hub.upload_folder", upload)
        patch.setattr("transformers.trainer.hf_api", None)  # the Trainer itself pushes nothing
        assert main([str(word) for word in words]) == 0
    return folder, words, created, pushed


def test_repository_has_the_name_of_the_finished_run(trained):
    _, _, created, _ = trained
    assert created == [("run", {"token": "hf_secret", "private": None, "exist_ok": True})]


def test_only_the_policy_is_pushed_and_no_annotator_is_named(trained):
    folder, _, _, pushed = trained
    assert {"model.safetensors", "strength.json", "README.md"} <= pushed.keys()
    assert not {"margins.parquet", "run.json", "config.yaml", "training_args.bin"} & pushed.keys()
    assert not any(name.startswith("checkpoint") for name in pushed)
    ids = set(pd.read_parquet(folder / "run" / "margins.parquet")["annotator"])
    assert len(ids) > 1
    for name, content in pushed.items():
        assert not any(str(label).encode() in content for label in ids), name
        assert str(folder).encode() not in content, name
    assert "me/run" in pushed["README.md"].decode()


def test_pseudonyms_take_the_place_of_every_id_in_a_run(trained):
    folder, _, _, _ = trained
    pairs = (folder / "pairs.jsonl").read_bytes()
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    ids = {f"annotator-{k:04d}".encode() for k in range(6)}
    assert all(i in pairs for i in ids)
    assert not any(i in path.read_bytes() for path in files for i in ids)
    names = Pseudonyms(b"kept by its owner")
    known = set(pd.read_parquet(folder / "run" / "margins.parquet")["annotator"])
    assert known <= {names.of(i.decode()) for i in ids}


def test_token_of_the_hub_is_written_nowhere(trained):
    folder, _, _, _ = trained
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    holding = [p.name for p in files if b"hf_secret" in p.read_bytes()]
    assert set(holding) <= {"training_args.bin"}
    assert "--hub_token ***" in (folder / "run" / "run.json").read_text()


def test_run_is_replaced_after_its_report_was_written_again_but_not_with_notes(trained, capsys):
    folder, words, _, _ = trained
    run = folder / "run"
    (run / "report.html").unlink()
    record = run / ".mixdpo.json"
    record.write_text(record.read_text().replace('"report.html"', '"other"'))
    assert run_cli(capsys, "report", run)[0] == 0  # a file that the training had not written
    words = [*words[: words.index("--push_to_hub")], "--overwrite", "true"]
    (run / "policy" / "model.gguf").write_text("hours of work")
    status, line = run_cli(capsys, *words)
    assert status == 1
    assert "holds 'policy/model.gguf', which mixdpo did not write; move it" in line
    (run / "policy" / "model.gguf").unlink()
    status, line = run_cli(capsys, *words, "--dataset_name", run / "margins.parquet")
    assert f"holds the input '{run / 'margins.parquet'}'" in line
    status, line = run_cli(capsys, *words, "--model_name_or_path", run / "policy")
    assert f"holds the input '{run / 'policy'}'" in line
    assert run_cli(capsys, *words)[0] == 0


def test_damaged_model_stops_training_with_its_name(trained, capsys, tmp_path, policy_folder):
    _, words, _, _ = trained
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((Path(policy_folder) / name).read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    words = [*words[: words.index("--push_to_hub")], "--model_name_or_path", tmp_path]
    status, line = run_cli(capsys, *words, "--output_dir", tmp_path / "run")
    assert status == 2
    assert f"model_name_or_path: {weights}: is damaged (" in line
    assert not (tmp_path / "run.partial").exists() or not (tmp_path / "run").exists()
