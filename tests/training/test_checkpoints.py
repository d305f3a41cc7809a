"""A training that was killed goes on from the last checkpoint that is whole."""

import json
import os
import signal
import subprocess
import sys
import time
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scenarios import NO_PIN, RENAMED, small_world
from transformers import TrainerCallback

from mixdpo_pyro.training.checkpoints import last_whole_checkpoint
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.trainer import MixDPOTrainer


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


class CountSteps(TrainerCallback):
    count = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.count += 1


@RENAMED
@NO_PIN
def test_killed_training_goes_on_bitwise(tmp_path, policy_folder):
    """The short sibling of the test below: the killed process trains, this one goes on."""
    settings = {
        "max_steps": 8, "save_steps": 2, "max_length": 128, "per_device_train_batch_size": 4,
        "learning_rate": 1e-3, "disable_tqdm": True, "annotator_column": "annotator",
    }  # fmt: skip

    def trainer(name):
        args = MixDPOConfig(str(tmp_path / name), use_cpu=True, **settings)
        return MixDPOTrainer(policy_folder, args=args, train_dataset=small_world())

    script = Path(__file__).with_name("two_processes.py")
    words = [sys.executable, script, policy_folder, tmp_path / "killed", json.dumps([settings])]
    path = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    kill_once_there(tmp_path / "killed" / "checkpoint-4", words, {"PYTHONPATH": path})
    assert not (tmp_path / "killed" / "checkpoint-8").exists()

    whole, resumed = trainer("whole"), trainer("killed")
    whole.train()
    steps = CountSteps()
    resumed.add_callback(steps)
    resumed.train(resume_from_checkpoint=True)
    assert steps.count in (4, 6)  # checkpoint-4 was whole, or was not
    for part in ("model", "strength.objective"):
        first, second = (attrgetter(part)(t).state_dict() for t in (whole, resumed))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), part


def kill_once_there(path, words, environment=None, **options):
    """SIGKILL as soon as the folder appears, while it is being written or later."""
    environment = {**os.environ, **(environment or {})}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, **options)
    while not path.exists():
        assert process.poll() is None, "the process ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_killed_run_ends_bitwise_where_a_whole_run_ends(tmp_path, policy_folder, family):
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
    kill_once_there(tmp_path / "killed.partial" / "checkpoint-6", command("killed"), cwd=tmp_path)
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
