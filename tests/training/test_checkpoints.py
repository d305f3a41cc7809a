"""A training that was killed goes on from the last checkpoint that is whole."""

import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file
from scenarios import small_world

from mixdpo_pyro.training.checkpoints import last_whole_checkpoint


def write_checkpoint(folder, step, state="{}", processes=1):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    if state is not None:
        (checkpoint / "trainer_state.json").write_text(state)
    for rank in range(processes):
        (checkpoint / f"rng_state_{rank}.pth").touch()


def test_newest_whole_checkpoint_is_taken(tmp_path, caplog):
    write_checkpoint(tmp_path, 9)
    write_checkpoint(tmp_path, 10)
    write_checkpoint(tmp_path, 20, state='{"global_step": 2')
    write_checkpoint(tmp_path, 30, state=None)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-30: was not written to its end" in caplog.text


def test_every_process_needs_its_random_state(tmp_path):
    write_checkpoint(tmp_path, 1, processes=2)
    write_checkpoint(tmp_path, 2, processes=1)
    assert last_whole_checkpoint(tmp_path, 2) == str(tmp_path / "checkpoint-1")


def test_without_checkpoints_there_is_none(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_killed_run_ends_bitwise_where_a_whole_run_ends(tmp_path, policy_folder, family):
    """SIGKILL as soon as a second checkpoint appears, while it is being written or later."""
    small_world().remove_columns("source_row").to_json(tmp_path / "pairs.jsonl")

    def command(output):
        return [
            sys.executable, "-m", "mixdpo_pyro", "train", "--dataset_name", "pairs.jsonl",
            "--model_name_or_path", policy_folder, "--output_dir", output, "--max_steps", "12",
            "--max_length", "128", "--per_device_train_batch_size", "4", "--test_fraction", "0.2",
            "--report_to", "none", "--save_strategy", "steps", "--save_steps", "3", "--use_cpu",
            "true", "--family", family, "--annotator_column", "annotator", "--learning_rate",
            "1e-3",
        ]  # fmt: skip

    def run(words):
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert run(command("whole")).returncode == 0
    process = subprocess.Popen(command("killed"), cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed.partial" / "checkpoint-6").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    refused = run(command("killed"))
    assert refused.returncode == 1 and "add --resume to go on" in refused.stderr
    resumed = run([*command("killed"), "--resume", "true"])
    assert resumed.returncode == 0, resumed.stderr
    for name in ("model.safetensors", "strength.safetensors"):
        first, second = (
            load_file(tmp_path / folder / "policy" / name) for folder in ("whole", "killed")
        )
        assert first.keys() == second.keys()
        assert all((first[key] == second[key]).all() for key in first), name
