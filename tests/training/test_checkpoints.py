"""A training that was killed goes on from the last checkpoint that is whole."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scenarios import TRAINING_MARKS, small_world, take
from transformers import TrainerCallback

from mixdpo_pyro.io import write_json
from mixdpo_pyro.training.checkpoints import last_whole_checkpoint
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.learned_strength import Strength, StrengthConfig
from mixdpo_pyro.training.trainer import MixDPOTrainer

pytestmark = TRAINING_MARKS


def write_checkpoint(folder, step, state="{}", processes=1, weights="model"):
    """A checkpoint as the Trainer leaves it; weights are a model's, an adapter's, or in shards."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    tensors = {"weight": torch.ones(100)}
    if weights == "shards":
        shards = {"weight": "model-00001-of-00002.safetensors"}
        shards["bias"] = "model-00002-of-00002.safetensors"
        write_json({"weight_map": shards}, checkpoint / "model.safetensors.index.json")
        for name in shards.values():
            save_file(tensors, checkpoint / name)
    else:
        name = {"model": "model", "adapter": "adapter_model"}[weights]
        save_file(tensors, checkpoint / f"{name}.safetensors")
    if weights == "adapter":
        adapter = {"peft_type": "LORA", "base_model_name_or_path": "m"}
        write_json(adapter, checkpoint / "adapter_config.json")
    Strength(StrengthConfig()).save(checkpoint)
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save(tensors, checkpoint / name)
    if state is not None:
        (checkpoint / "trainer_state.json").write_text(state)
    for rank in range(processes):
        torch.save(tensors, checkpoint / f"rng_state_{rank}.pth")
    return checkpoint


def test_newest_whole_checkpoint_is_taken(tmp_path, caplog):
    write_checkpoint(tmp_path, 9)
    write_checkpoint(tmp_path, 10)
    write_checkpoint(tmp_path, 20, state='{"global_step": 2')
    write_checkpoint(tmp_path, 30, state=None)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-30: was not written to its end" in caplog.text


FILES = {
    "model": ["model.safetensors"],
    "adapter": ["adapter_model.safetensors", "adapter_config.json"],
    "shards": ["model.safetensors.index.json", "model-00002-of-00002.safetensors"],
}
SHARED = [
    "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state_0.pth", "strength.json",
    "strength.safetensors",
]  # fmt: skip


DAMAGES = [
    (weights, name, keep)
    for weights, own in FILES.items()
    for name in [*own, *SHARED]
    for keep in (None, 0, 0.5)
    if (name, keep) != ("adapter_config.json", None)  # the Trainer has it from its model
]


@pytest.mark.parametrize(("weights", "name", "keep"), DAMAGES)
def test_damage_of_any_file_falls_back_to_the_checkpoint_before(
    tmp_path, caplog, weights, name, keep
):
    """`keep` is the part of the file that is left; None: the file is gone."""
    write_checkpoint(tmp_path, 5, weights=weights)
    newest = write_checkpoint(tmp_path, 10, state='{"global_step": 10}', weights=weights)
    assert last_whole_checkpoint(tmp_path) == str(newest)
    assert caplog.text == ""
    path = newest / name
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert "checkpoint is passed over" in caplog.text
    if keep is not None:
        assert f"{path}: is damaged (" in caplog.text


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


@pytest.mark.parametrize("peft", [False, True])
def test_checkpoints_of_the_trainer_are_whole(tmp_path, policy_folder, peft):
    from peft import LoraConfig

    args = MixDPOConfig(
        str(tmp_path), max_steps=2, save_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
    )
    trainer = MixDPOTrainer(
        policy_folder, args=args, train_dataset=take(small_world(), 8),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if peft else None,
    )  # fmt: skip
    trainer.train()
    newest = tmp_path / "checkpoint-2"
    assert last_whole_checkpoint(tmp_path) == str(newest)
    (weights,) = newest.glob("*model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def train_command(policy_folder, output, family="lognormal"):
    return [
        "train", "--dataset_name", "pairs.jsonl", "--model_name_or_path", policy_folder,
        "--output_dir", output, "--max_steps", "12", "--max_length", "128",
        "--per_device_train_batch_size", "4", "--test_fraction", "0.2", "--report_to", "none",
        "--save_strategy", "steps", "--save_steps", "3", "--use_cpu", "true", "--family", family,
        "--annotator_column", "annotator", "--learning_rate", "1e-3",
    ]  # fmt: skip


def assert_same_policy(first, second):
    for name in ("model.safetensors", "strength.safetensors"):
        one, other = (load_file(folder / "policy" / name) for folder in (first, second))
        assert one.keys() == other.keys()
        assert all((one[key] == other[key]).all() for key in one), name


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_killed_run_ends_bitwise_where_a_whole_run_ends(tmp_path, policy_folder, family):
    small_world().remove_columns("source_row").to_json(tmp_path / "pairs.jsonl")

    def command(output):
        words = train_command(policy_folder, output, family)
        return [sys.executable, "-m", "mixdpo_pyro", *words]

    def run(words):
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    assert run(command("whole")).returncode == 0
    kill_once_there(tmp_path / "killed.partial" / "checkpoint-6", command("killed"), cwd=tmp_path)
    assert not (tmp_path / "killed").exists()
    refused = run(command("killed"))
    assert refused.returncode == 1 and "add --resume to go on" in refused.stderr
    resumed = run([*command("killed"), "--resume", "true"])
    assert resumed.returncode == 0, resumed.stderr
    assert_same_policy(tmp_path / "whole", tmp_path / "killed")


def start(words, folder, cwd):
    """A command that has begun its folder."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, cwd=cwd, **quiet)
    while not folder.exists():
        assert process.poll() is None, "the process ended before it began its folder"
        time.sleep(0.005)
    return process


@pytest.mark.slow
def test_run_that_was_killed_at_random_moments_ends_bitwise(tmp_path, policy_folder):
    """Ten moments, spread over all that a run does from its first file to its last rename."""
    small_world().remove_columns("source_row").to_json(tmp_path / "pairs.jsonl")

    def command(output):
        return [sys.executable, "-m", "mixdpo_pyro", *train_command(policy_folder, output)]

    process = start(command("whole"), tmp_path / "whole.partial", tmp_path)
    began = time.monotonic()
    assert process.wait(600) == 0
    length = time.monotonic() - began
    random = np.random.default_rng(0)
    for number in range(10):
        output = tmp_path / f"killed-{number}"
        partial = output.with_name(f"{output.name}.partial")
        while not partial.exists():  # a run that was faster than the first ends before its moment
            shutil.rmtree(output, ignore_errors=True)
            process = start(command(output.name), partial, tmp_path)
            began, moment = time.monotonic(), length * (number + random.random()) / 10
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
                length = time.monotonic() - began
            process.kill()
            process.wait()
        steps = sorted(p.name for p in partial.glob("checkpoint-*"))
        print(f"killed after {moment:.0f} of {length:.0f} s, {steps}")
        again = [*command(output.name), "--resume", "true"]
        resumed = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True)
        assert resumed.returncode == 0, resumed.stderr
        assert_same_policy(tmp_path / "whole", output)
        tables = [pd.read_parquet(f / "margins.parquet") for f in (tmp_path / "whole", output)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from mixdpo_pyro.cli.main import main

rename = os.rename

def deadly(source, target):
    if str(source).endswith("killed.partial"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

os.rename = deadly
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["resumed", "completed"])
def test_run_that_was_killed_between_its_renames_ends_bitwise(tmp_path, policy_folder, how):
    """The earlier run has been moved away, the new one has no name yet."""
    small_world().remove_columns("source_row").to_json(tmp_path / "pairs.jsonl")

    def run(*words, program=("-m", "mixdpo_pyro")):
        words = [sys.executable, *program, *words]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    assert run(*train_command(policy_folder, "whole")).returncode == 0
    earlier = train_command(policy_folder, "killed", "gamma")
    assert run(*earlier).returncode == 0
    command = [*train_command(policy_folder, "killed"), "--overwrite", "true"]
    killed = run(*command, program=("-c", KILLED_BETWEEN_RENAMES))
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists() and (tmp_path / "killed.previous").exists()
    if how == "resumed":
        ended = run(*command, "--resume", "true")
        assert ended.returncode == 0, ended.stderr
    else:
        ended = run(*earlier)
        assert ended.returncode == 1
        assert "killed: holds now what an interrupted command left whole" in ended.stderr
        assert "killed: holds an earlier run; add --overwrite to replace it" in ended.stderr
    assert_same_policy(tmp_path / "whole", tmp_path / "killed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "pairs.jsonl", "whole"]
