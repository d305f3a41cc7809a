import importlib.metadata
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import DatasetDict
from scenarios import TRAINING_MARKS, run_values, small_world

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.training.learned_strength import Strength

pytestmark = TRAINING_MARKS


def run_cli(capsys, *arguments):
    """Status, standard output, and the last line of standard error."""
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    lines = captured.err.replace("\r", "\n").strip().splitlines()
    return status, captured.out, lines[-1] if lines else ""


@pytest.fixture
def config(tmp_path, policy_folder):
    return run_file(tmp_path, policy_folder)


def run_file(tmp_path, policy_folder):
    """A run on 48 pairs of 6 annotators, as a file, a dictionary, and a way to change it."""
    values = run_values(tmp_path, policy_folder)

    def write(**changes):
        path = tmp_path / "run.yaml"
        kept = {k: v for k, v in {**values, **changes}.items() if v is not None}
        path.write_text(yaml.safe_dump(kept))
        return path

    return write


@pytest.fixture(scope="module")
def finished(policy_folder, tmp_path_factory):
    """Folder of a finished run of the configuration as it is."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["train", "--config", str(run_file(folder, policy_folder)())]) == 0
    return folder / "run"


@pytest.mark.parametrize(
    "family", ["lognormal", "fixed", pytest.param("gamma", marks=pytest.mark.slow)]
)
def test_train_writes_policy_posterior_and_report(capsys, tmp_path, config, family):
    import xarray as xr
    from transformers import AutoModelForCausalLM

    status, out, _ = run_cli(capsys, "train", "--config", config(), "--family", family)
    assert status == 0
    folder = tmp_path / "run"
    assert not (tmp_path / "run.partial").exists()
    assert str(folder / "report.html") in out

    AutoModelForCausalLM.from_pretrained(folder / "policy")
    assert Strength.from_pretrained(folder / "policy").config.family == family
    assert not list(folder.rglob("*.bin"))
    assert not list(folder.rglob("*.pkl"))
    margins = pd.read_parquet(folder / "margins.parquet")
    with xr.open_datatree(folder / "posterior.nc", engine="h5netcdf") as tree:
        draws = tree["posterior"]["cv"].to_numpy()
        people = set(tree["posterior"]["annotator"].to_numpy())
    assert np.isfinite(draws).all()
    assert people == set(margins["annotator"])
    facts = json.loads((folder / "run.json").read_text())
    assert facts["verdict"]["value"] in ("heterogeneous", "homogeneous", "inconclusive")
    assert facts["data"]["train"] + facts["data"]["test"] == len(small_world())
    assert yaml.safe_load((folder / "config.yaml").read_text())["family"] == family

    page = (folder / "report.html").read_text()
    assert facts["verdict"]["reason"].split(",")[0] in page
    assert page.count("<img") == len(list((folder / "figures").glob("*.png"))) == 6
    assert page.count("alt=") == 6
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.slow
def test_free_mean_and_a_single_annotator_end_in_a_report(capsys, tmp_path, config):
    """No prior on the mean and one annotator: the held-out pairs are fitted without ids."""
    data = tmp_path / "one.jsonl"
    rows = [{**pair, "annotator": "only"} for pair in small_world().remove_columns("source_row")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = config(dataset_name=str(data), mean_anchor="free")
    assert run_cli(capsys, "train", "--config", path)[0] == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["verdict"]["value"] != "heterogeneous"
    assert "Nothing anchored it in training" in (tmp_path / "run" / "report.html").read_text()


def test_foreign_margins_unlogged_steps_and_pairs_that_are_held_out_too(capsys, tmp_path, config):
    """They end in a report: no curve of training, and no training pair that is held out too."""
    world = small_world().remove_columns("source_row").add_column("margin", ["3"] * 48)
    splits = {"train": world, "test": world.select(range(20))}
    DatasetDict(splits).save_to_disk(tmp_path / "both")
    path = config(dataset_name=str(tmp_path / "both"), dataset_test_split="test", logging_steps=50)
    assert run_cli(capsys, "train", "--config", path)[0] == 0
    table = pd.read_parquet(tmp_path / "run" / "margins.parquet")
    assert table["margin"].dtype == np.float32
    assert set(table["margin_source"].astype(str)) == {"3"}
    assert not (tmp_path / "run" / "figures" / "training.png").exists()
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert (data["train"], data["test"]) == (28, 20)
    assert data["dropped"] == {"training pairs that are held out too": 20}


def test_report_is_written_again_from_the_files_alone(capsys, tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    first = page.read_text()
    page.unlink()
    status, _, _ = run_cli(capsys, "report", tmp_path / "run")
    assert status == 0
    assert page.read_text() == first
    (tmp_path / "run" / "posterior.nc").write_bytes(b"nothing")
    status, _, line = run_cli(capsys, "report", tmp_path / "run")
    assert status == 1
    assert f"{tmp_path / 'run' / 'posterior.nc'}: cannot be read" in line
    assert page.read_text() == first


def test_equal_seeds_give_equal_runs(capsys, tmp_path, config, finished):
    assert run_cli(capsys, "train", "--config", config())[0] == 0
    for name in ("policy/model.safetensors", "policy/strength.safetensors", "margins.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


BAD_RUNS = {
    "missing file": ({"dataset_name": "nowhere.jsonl"}, 1, "nowhere.jsonl: no such file"),
    "missing model": ({"model_name_or_path": "./nowhere"}, 2, "model_name_or_path: "),
    "unknown key": (
        {"famly": 1}, 2, "run.yaml: line 2: unknown key 'famly'; did you mean 'family'?"
    ),
    "missing column": (
        {"annotator_column": "user_id"}, 1, "pairs.jsonl: column 'user_id' is missing; it has"
    ),
    "missing split": ({"dataset_test_split": "test"}, 1, "pairs.jsonl: split 'test' is missing"),
    "long prompts": ({"max_length": 4}, 1, "max_length: no training pair is left"),
    "lognormal series": ({"estimator": "series"}, 2, "'series' is for family 'gamma'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_input_is_one_line_and_leaves_the_earlier_run(capsys, tmp_path, config, case):
    changes, status, message = BAD_RUNS[case]
    earlier = tmp_path / "run"
    earlier.mkdir()
    (earlier / "run.json").write_text("{}")
    found, out, line = run_cli(
        capsys, "train", "--config", config(**changes), "--overwrite", "true"
    )
    assert found == status
    assert line.startswith("mixdpo: error: ")
    assert message in line
    assert "Traceback" not in line + out
    assert [p.name for p in earlier.iterdir()] == ["run.json"]


CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def as_turns(pair, explicit):
    """The pair as messages, the prompt in a column of its own or at the start of both."""
    prompt = [{"role": "user", "content": pair["prompt"]}]
    chosen, rejected = (
        [{"role": "assistant", "content": pair[name]}] for name in ("chosen", "rejected")
    )
    if explicit:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {"chosen": prompt + chosen, "rejected": prompt + rejected}


def as_text(pair):
    return {name: pair["prompt"] + pair[name] for name in ("chosen", "rejected")}


@pytest.mark.parametrize(
    "form",
    [
        "explicit messages",
        *(
            pytest.param(f"implicit {kind}", marks=pytest.mark.slow)
            for kind in ("text", "messages")
        ),
    ],
)
def test_every_preference_format_trains(capsys, tmp_path, config, policy_folder, form):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = tmp_path / "model"
    shutil.copytree(policy_folder, model)
    tokenizer.save_pretrained(model)
    convert = as_text if form == "implicit text" else lambda p: as_turns(p, form[0] == "e")
    data = tmp_path / "form.jsonl"
    ids = None if form == "implicit text" else "annotator"
    kept = [{**convert(pair), **({ids: pair[ids]} if ids else {})} for pair in small_world()]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in kept))
    path = config(dataset_name=str(data), model_name_or_path=str(model))
    status, out, _ = run_cli(capsys, "train", "--config", path)
    assert status == 0
    assert "report" in out
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["data"]["annotator_column"] == ids
    assert ids or facts["verdict"]["value"] != "heterogeneous"  # no ids: cannot tell


def test_messages_without_a_chat_template_say_so(capsys, tmp_path, config):
    data = tmp_path / "form.jsonl"
    data.write_text("".join(json.dumps(as_turns(p, True)) + "\n" for p in small_world()))
    status, _, line = run_cli(capsys, "train", "--config", config(dataset_name=str(data)))
    assert status != 0
    assert "chat_template" in line or "chat template" in line


def test_empty_dataset_and_bad_row_name_file_and_row(capsys, tmp_path, config):
    data = tmp_path / "data.jsonl"
    data.write_text("")
    path = config(dataset_name=str(data))
    assert run_cli(capsys, "train", "--config", path)[::2] == (
        1, f"mixdpo: error: {data}: the file is empty"
    )  # fmt: skip
    data.write_text('{"prompt": "p", "chosen": "a"}\n')
    assert "column 'rejected' is missing" in run_cli(capsys, "train", "--config", path)[2]
    data.write_text('{"chosen": "a", "rejected": "b"}\n{"chosen": 3, "rejected": "b"}\n')
    status, _, line = run_cli(capsys, "train", "--config", path)
    assert status == 1
    assert "data.jsonl" in line


def test_non_finite_loss_names_step_and_rows(capsys, tmp_path, config):
    """A learning rate of 1e30 sends the weights to infinity in one step."""
    status, _, line = run_cli(
        capsys, "train", "--config", config(learning_rate=1e30, max_grad_norm=0.0)
    )
    assert status == 1
    assert "the margin is not finite for rows [" in line
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(config):
    with pytest.raises(ValueError, match="no such file"):
        main(["train", "--config", str(config(dataset_name="nowhere.jsonl")), "--debug"])


@pytest.mark.slow  # its short sibling: resuming in tests/workflows/test_training_inputs.py
def test_interrupted_run_resumes_from_its_checkpoint(capsys, tmp_path, config, monkeypatch):
    """The interrupted run leaves its folder; --resume ends where a whole run ends."""
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = config(output_dir=str(tmp_path / "whole"), **settings)
    assert run_cli(capsys, "train", "--config", whole)[0] == 0
    expected = (tmp_path / "whole" / "policy" / "model.safetensors").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mixdpo_pyro.workflows.train._save_policy", interrupt)
        assert run_cli(capsys, "train", "--config", config(**settings))[0] == 130
    shutil.rmtree(tmp_path / "run.partial" / "checkpoint-4")
    status, _, _ = run_cli(capsys, "train", "--config", config(**settings), "--resume", "true")
    assert status == 0
    assert (tmp_path / "run" / "policy" / "model.safetensors").read_bytes() == expected
    facts = json.loads((tmp_path / "run" / "log_history.json").read_text())
    assert [e["step"] for e in facts if "loss" in e] == [1, 2, 3, 4]


def test_init_and_simulate_feed_train(capsys, tmp_path):
    """From nothing to a report with four commands."""
    world, model = tmp_path / "world", tmp_path / "model"
    status, out, _ = run_cli(
        capsys,
        "simulate",
        "--output_dir",
        world,
        "--num_annotators",
        5,
        "--pairs_per_annotator",
        6,
    )
    assert status == 0
    status, _, _ = run_cli(
        capsys, "init", world / "pairs.parquet", "--output_dir", model,
        "--hidden_size", 32, "--num_layers", 1, "--num_heads", 2, "--vocab_size", 320,
        "--sft_steps", 2,
    )  # fmt: skip
    assert status == 0
    status, out, _ = run_cli(
        capsys, "train", "--dataset_name", world / "pairs.parquet", "--model_name_or_path", model,
        "--output_dir", tmp_path / "run", "--max_steps", 2, "--report_to", "none",
        "--save_strategy", "no", "--logging_steps", 1,
    )  # fmt: skip
    assert status == 0
    assert "report" in out


def test_init_and_simulate_replace_only_what_they_wrote_and_only_when_asked(capsys, tmp_path):
    world, model = tmp_path / "world", tmp_path / "model"
    simulate = ["simulate", "--output_dir", world, "--num_annotators", 2]
    init = [
        "init", "--dataset_name", world / "pairs.parquet", "--output_dir", model,
        "--hidden_size", 8, "--num_layers", 1, "--num_heads", 2, "--vocab_size", 300,
        "--sft_steps", 1,
    ]  # fmt: skip
    for command, marker in ((simulate, "truth.json"), (init, "init.json")):
        assert run_cli(capsys, *command)[0] == 0
        status, _, line = run_cli(capsys, *command)
        assert (status, line.endswith("an earlier result; add --overwrite to replace it")) == (
            1,
            1,
        )
        assert run_cli(capsys, *command, "--seed", 1, "--overwrite")[0] == 0
        folder = world if command is simulate else model
        assert json.loads((folder / marker).read_text())["seed"] == 1
    (world / "truth.json").unlink()
    line = run_cli(capsys, *simulate, "--overwrite")[2]
    assert "holds other files than an earlier result" in line
    assert (world / "pairs.parquet").is_file()


def test_help_and_wrong_commands(capsys):
    status, out, _ = run_cli(capsys, "--help")
    assert status == 0
    assert "mixdpo COMMAND" in out
    assert run_cli(capsys)[0] == 2
    assert run_cli(capsys, "trian")[::2] == (
        2, "mixdpo: error: unknown command 'trian'; see mixdpo --help"
    )  # fmt: skip
    assert run_cli(capsys, "demo", "--sed", 3)[::2] == (
        2, "mixdpo: error: command line: unknown option '--sed'; did you mean 'seed'?"
    )  # fmt: skip
    status, out, _ = run_cli(capsys, "power", "--help")
    assert status == 0
    assert "--simulations SIMULATIONS" in out


def test_installed_command_runs():
    result = subprocess.run(
        [sys.executable, "-m", "mixdpo_pyro", "--version"], capture_output=True, text=True
    )
    assert result.returncode == 0
    assert result.stdout.strip()


@pytest.mark.parametrize("words", [["env"], ["--help"], ["--version"]])
def test_nobody_is_told_that_nobody_reads(words):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mixdpo_pyro", *words]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.slow
def test_demo_recovers_the_truth(capsys, tmp_path):
    """The truth lies within the 98% intervals of the held-out posterior."""
    status, _, _ = run_cli(capsys, "demo", "--output_dir", tmp_path / "demo")
    assert status == 0
    import xarray as xr

    with xr.open_datatree(tmp_path / "demo" / "posterior.nc", engine="h5netcdf") as tree:
        cv = tree["posterior"]["cv"].to_numpy()
    low, high = np.quantile(cv, [0.01, 0.99])
    assert low < 0.8 < high


def test_env_tells_versions_and_machine(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"- torch: {importlib.metadata.version('torch')}" in lines
    assert "- OMP_NUM_THREADS: 3" in lines
    assert any(line.startswith("- accelerator: ") for line in lines)
    assert "secret" not in "".join(lines)
