"""Two processes on one CPU (gloo) against one process with twice the batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from scenarios import NO_PIN, RENAMED
from training.two_processes import train as train_here

HERE = Path(__file__).parent

SETTINGS = {
    "learning_rate": 1e-3,
    "max_length": 128,
    "beta": 0.3,
    "logging_steps": 1,
    "max_steps": 5,
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "gradient_checkpointing": False,
    "bf16": False,
}


def launch(words, num_processes, folder):
    """Run a module or script under torchrun, or plainly; return what it printed."""
    port = free_port()
    prefix = [sys.executable]
    if num_processes > 1:
        prefix += [
            "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes),
            "--master_port", str(port),
        ]  # fmt: skip
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*prefix, *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(folder, policy, num_processes, batch_size, *choices, **settings):
    """Train in processes of their own, once for each of `choices` if there are some."""
    folder.mkdir(parents=True)
    settings = {**SETTINGS, "per_device_train_batch_size": batch_size, **settings}
    all_settings = [{**settings, **choice} for choice in choices or ({},)]
    script = str(HERE / "two_processes.py")
    launch([script, policy, str(folder), json.dumps(all_settings)], num_processes, folder)
    results = json.loads((folder / "results.json").read_text())
    assert {result["processes"] for result in results} == {num_processes}
    return results if choices else results[0]


def column(result, name):
    return [entry[name] for entry in result["log"]]


SETS = {
    "choice_set_column": "set", "rank_column": "place", "per_device_train_batch_size": 6,
    "per_device_eval_batch_size": 2, "mean_anchor": "free",
}  # fmt: skip

PANELS = {"annotator_column": "annotator", "mean_anchor": "free"}

SHARED = (
    "loss", "rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen",
    "logits/rejected",
)  # fmt: skip


@pytest.fixture(scope="module")
def short_launch(tmp_path_factory, policy_folder):
    """Two steps in two processes: exact strengths, draws, whole panels, and sets of four."""
    folder = tmp_path_factory.mktemp("short") / "two"
    choices = {"family": "lognormal"}, {"estimator": "draws", "num_draws": 4}, PANELS, SETS
    return train(folder, policy_folder, 2, 4, *choices, max_steps=2)


def assert_equal_trainings(two, one, family):
    """Two processes log, weigh and evaluate what one process with the doubled batch does."""
    assert two["wrapper"] == "DistributedDataParallel"
    for name in SHARED if family == "fixed" else (*SHARED, "strength/cv"):
        assert column(two, name) == pytest.approx(column(one, name), abs=1e-4), name
    assert two["weight"] == pytest.approx(one["weight"], rel=1e-6)
    assert two["margins"] == pytest.approx(one["margins"], abs=1e-3)
    for name in ("eval_loss", "eval_micro/margin", "eval_micro/margin_q05"):
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], abs=1e-4), name


@RENAMED
@NO_PIN
def test_two_steps_in_two_processes_are_those_of_the_doubled_batch(
    tmp_path, policy_folder, short_launch
):
    """The short sibling of the test below; the one process is this one."""
    two, *_ = short_launch
    settings = {**SETTINGS, "per_device_train_batch_size": 8, "max_steps": 2}
    one = train_here(policy_folder, tmp_path, {**settings, "family": "lognormal"})
    assert len(column(two, "loss")) == 2
    assert_equal_trainings(two, one, "lognormal")


@RENAMED
@NO_PIN
def test_two_processes_keep_the_panels_of_one(tmp_path, policy_folder, short_launch):
    """Every process takes in the margins of all; a point guide takes no draws."""
    two = short_launch[2]
    settings = {**SETTINGS, **PANELS, "per_device_train_batch_size": 8, "max_steps": 2}
    one = train_here(policy_folder, tmp_path, settings)
    for name in ("loss", "strength/cv", "strength/mean"):
        assert column(two, name) == pytest.approx(column(one, name), abs=1e-4), name
    assert two["weight"] == pytest.approx(one["weight"], rel=1e-6)


@RENAMED
@NO_PIN
def test_two_processes_train_on_sets_as_one_that_accumulates(
    tmp_path, policy_folder, short_launch
):
    """A point guide takes no draws. Evaluation batches cut sets, over both processes."""
    *_, two = short_launch
    settings = {**SETTINGS, **SETS, "gradient_accumulation_steps": 2, "max_steps": 2}
    one = train_here(policy_folder, tmp_path, settings)
    for name in ("loss", "strength/cv"):
        assert column(two, name) == pytest.approx(column(one, name), abs=1e-4), name
    assert two["weight"] == pytest.approx(one["weight"], rel=1e-6)
    for name in ("eval_loss", "eval_micro/margin", "eval_micro/accuracy"):
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], abs=1e-4), name


def test_draws_differ_between_processes_and_the_strength_does_not(short_launch):
    """Each process has noise of its own: equal draws would be half of them for nothing."""
    exact, drawn, *_ = short_launch
    first, second = drawn["draws"]
    assert len(first) == len(second) == 2 * 4 * 4  # steps, pairs of a batch, draws
    assert set(first).isdisjoint(second)
    assert exact["draws"] == [[], []]
    for result in (exact, drawn):
        assert result["strengths"][0] == result["strengths"][1]
    assert all(value > 0 for value in column(drawn, "strength/cv"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"family": "fixed"},
        {"family": "lognormal"},
        {"family": "gamma", "mean_anchor": "fixed"},
        {"family": "lognormal", "mean_anchor": "free", "gradient_accumulation_steps": 2},
    ],
    ids=["fixed", "lognormal", "gamma", "accumulated"],
)
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path, policy_folder, settings):
    two = train(tmp_path / "two", policy_folder, 2, 4, **settings)
    one = train(tmp_path / "one", policy_folder, 1, 8, **settings)
    assert_equal_trainings(two, one, settings["family"])


@pytest.mark.slow
def test_a_sharded_policy_trains_as_one_process(tmp_path, policy_folder):
    """FSDP2: every parameter is a DTensor, spread over both processes."""
    two = train(tmp_path / "two", policy_folder, 2, 4, fsdp=True, family="lognormal")
    one = train(tmp_path / "one", policy_folder, 1, 8, family="lognormal")
    assert two["wrapper"].startswith("FSDP") and two["parameter"] == "DTensor"
    for name in (*SHARED, "strength/cv"):
        assert column(two, name) == pytest.approx(column(one, name), abs=1e-4), name
    assert two["margins"] == pytest.approx(one["margins"], abs=1e-3)


@pytest.mark.slow
def test_a_sharded_policy_trains_on_sets_as_one_that_accumulates(tmp_path, policy_folder):
    settings = {**SETS, "max_steps": 2}
    size = settings.pop("per_device_train_batch_size")
    two = train(tmp_path / "two", policy_folder, 2, size, fsdp=True, **settings)
    settings["gradient_accumulation_steps"] = 2
    one = train(tmp_path / "one", policy_folder, 1, size, **settings)
    assert two["wrapper"].startswith("FSDP")
    for name in ("loss", "strength/cv"):
        assert column(two, name) == pytest.approx(column(one, name), abs=1e-4), name
    assert two["metrics"]["eval_loss"] == pytest.approx(one["metrics"]["eval_loss"], abs=1e-4)


@pytest.mark.slow
def test_fixed_strength_is_trl_dpo_in_two_processes(tmp_path, policy_folder):
    ours = train(tmp_path / "ours", policy_folder, 2, 4, family="fixed")
    theirs = train(tmp_path / "theirs", policy_folder, 2, 4, trl=True)
    for name in set(theirs["log"][0]) & set(ours["log"][0]):
        assert column(ours, name) == pytest.approx(column(theirs, name), abs=1e-5), name


@pytest.mark.slow
def test_reference_is_computed_once_for_all_processes(tmp_path, policy_folder):
    settings = {
        "precompute_ref_log_probs": True,
        "reference_cache_dir": str(tmp_path / "cache"),
        "family": "fixed",
    }
    first = train(tmp_path / "first", policy_folder, 2, 4, **settings)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    plain = train(tmp_path / "plain", policy_folder, 2, 4, family="fixed")
    assert column(first, "loss") == pytest.approx(column(plain, "loss"), abs=1e-5)


@pytest.mark.slow
def test_the_command_runs_under_torchrun(tmp_path, policy_folder):
    from scenarios import small_world

    small_world().remove_columns("source_row").to_json(tmp_path / "pairs.jsonl")
    words = [
        "-m", "mixdpo_pyro", "train", "--dataset_name", "pairs.jsonl", "--model_name_or_path",
        policy_folder, "--output_dir", "run", "--max_steps", "4", "--max_length", "128",
        "--per_device_train_batch_size", "4", "--test_fraction", "0.3", "--report_to", "none",
        "--use_cpu", "true",
    ]  # fmt: skip
    done = launch(words, 2, tmp_path)
    run = tmp_path / "run"
    assert (run / "report.html").is_file() and (run / "policy" / "strength.json").is_file()
    assert "Preference strength" in (run / "policy" / "README.md").read_text()
    assert not (tmp_path / "run.partial").exists()
    assert done.stdout.count("held-out accuracy") == 1  # only the main process speaks
