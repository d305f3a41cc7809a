"""Sweeps: what the file asks for, what is done again, and what happens where something dies."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from scenarios import TRAINING_MARKS, two_workers

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.cli.sweep_file import read_sweep
from mixdpo_pyro.errors import ConfigError, MixDPOError, OutputError
from mixdpo_pyro.progress import Engine, run_tasks
from mixdpo_pyro.workflows.run_config import plan_from_values
from mixdpo_pyro.workflows.sweep import running
from mixdpo_pyro.workflows.sweep.folder import SweepFolder
from mixdpo_pyro.workflows.sweep.plan import CONTROLS, PlannedRun, SweepConfig, SweepPlan
from mixdpo_pyro.workflows.sweep.processes import ProcessTask, claimed, run_process

pytestmark = TRAINING_MARKS


@pytest.fixture
def sweep_file(tmp_path, values):
    """Writes a sweep's file; its base is a short training."""

    def write(**keys):
        content = {"base": values, "arms": {"dpo": None, "mix": "lognormal"}, **keys}
        path = tmp_path / "sweep.yaml"
        kept = {key: value for key, value in content.items() if value != "absent"}
        path.write_text(yaml.safe_dump(kept, sort_keys=False))
        return str(path)

    return write


# What is asked for


def test_every_arm_is_trained_at_every_beta_and_seed(sweep_file):
    arms = {"dpo": None, "noisy": {"control": "rdpo", "flip_probability": 0.2}}
    plan = read_sweep(sweep_file(arms=arms, betas=[0.1, 2], seeds=[3, 0]))
    names = [run.name for run in plan.runs]
    assert len(set(names)) == 8 and names[0] == "dpo/beta-0.1/seed-3"
    assert names[3] == "noisy/beta-2/seed-3"
    for run in plan.runs:
        assert (run.values["beta"], run.values["seed"]) == (run.beta, run.seed)
        assert "output_dir" not in run.values
    noisy = next(run.values for run in plan.runs if run.arm == "noisy")
    assert (noisy["baseline"], noisy["flip_probability"]) == ("robust", 0.2)
    assert (plan.devices, plan.accelerate) == (1, None)


def test_base_may_be_the_file_of_a_training_and_gives_beta_and_seed(tmp_path, values, sweep_file):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**values, "beta": 0.3, "seed": 7}))
    path = sweep_file(base=str(tmp_path / "run.yaml"), arms=["dpo", "gamma"])
    assert [run.name for run in read_sweep(path).runs] == [
        "dpo/beta-0.3/seed-7", "gamma/beta-0.3/seed-7",
    ]  # fmt: skip


def test_several_devices_are_launched_by_accelerate(sweep_file):
    plan = read_sweep(sweep_file(devices=2, accelerate="--mixed_precision bf16"))
    assert plan.accelerate == [
        "--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "bf16",
    ]  # fmt: skip
    folder = SweepFolder(Path("/sweep"))
    words = running._task(plan, plan.runs[0], folder, "claim").words
    assert words[:3] == ("-m", "accelerate.commands.launch", "--num_processes")
    assert words[-8:-5] == ("-m", "mixdpo_pyro", "train") and words[-1] == "--resume"


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_are_options_of_a_training(name, values):
    plan = plan_from_values({**values, **CONTROLS[name]})
    assert plan.training.family == CONTROLS[name]["family"]
    assert plan.training.baseline == CONTROLS[name].get("baseline")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"arms": "absent"}, "sweep.yaml: arms: is missing"),
        ({"base": "absent"}, "sweep.yaml: base: is missing"),
        ({"beta": [0.1]}, "sweep.yaml: line .*: unknown key 'beta'; did you mean 'betas'"),
        ({"base": "none.yaml"}, "sweep.yaml: line 1: base: none.yaml: cannot be read"),
        ({"base": [1]}, "line 1: base: expected the keys of a training"),
        ({"arms": []}, "arms: expected different names"),
        ({"arms": ["dpo", "dpo"]}, "arms: expected different names"),
        ({"arms": {"rpdo": None}}, "arms: rpdo: 'rpdo' is no control; did you mean 'rdpo'"),
        ({"arms": {"a/b": "dpo"}}, "arms: a/b: expected a name of letters"),
        ({"arms": {"a": [1]}}, "arms: a: expected options of a training"),
        ({"arms": {"a": {"famly": "gamma"}}}, "line .*: unknown key 'famly'"),
        ({"arms": {"a": {"seed": 1}}}, "arms: a: 'seed' has no place here; seeds names it"),
        ({"arms": {"a": {"baseline": "robust"}}}, "arm 'a': baseline: 'robust' has a strength"),
        ({"arms": {"a": {"push_to_hub": True}}}, "arm 'a': push_to_hub: the runs of a sweep"),
        ({"arms": {"a": {"dataset_name": "none.csv"}}}, "arm 'a': none.csv: no such file"),
        ({"betas": [0.1, 0.1]}, "line .*: betas: 0.1 stands there twice"),
        ({"betas": [-1]}, "line .*: betas: expected a finite value > 0, got -1"),
        ({"betas": "x"}, "line .*: betas: expected a list, got 'x'"),
        ({"seeds": [0.5]}, "line .*: seeds: expected a list, got"),
        ({"seeds": []}, "line .*: seeds: expected at least one, got none"),
        ({"seeds": [-1]}, "line .*: seeds: expected at least 0, got -1"),
        ({"devices": 0}, "line .*: devices: expected at least 1, got 0"),
        ({"devices": "x"}, "line .*: devices: expected a whole number, got 'x'"),
        ({"accelerate": ["x"]}, "line .*: accelerate: expected options in one line"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_by_name_and_key(sweep_file, keys, message):
    with pytest.raises(MixDPOError, match=message):
        read_sweep(sweep_file(**keys))


# What is done, with a small command in place of a training


def train_briefly(monkeypatch, body=""):
    """Let a run be a command that writes `run.json` and notes that it ran."""
    code = (
        "import pathlib, sys, time\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--output_dir') + 1])\n"
        "tries = out.parents[3] / 'tries'\n"
        "tries.open('a').write('/'.join(out.parts[-3:]) + '\\n')\n"
        f"{body}\n"
        "out.mkdir(parents=True)\n"
        "(out / 'run.json').write_text('{}')\n"
    )
    task = running._task

    def brief(*arguments):
        found = task(*arguments)
        return replace(found, words=("-c", code, *found.words[3:]))

    monkeypatch.setattr(running, "_task", brief)


def small_plan(values, arms=("a", "b"), **changes):
    runs = [PlannedRun(arm, 0.1, seed, {**values, **changes}) for seed in (0, 1) for arm in arms]
    return SweepPlan("sweep.yaml", runs)


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failed_run_leaves_the_others_and_is_tried_again(tmp_path, values, monkeypatch, jobs):
    config = SweepConfig(output_dir=str(tmp_path / "out"), jobs=jobs)
    train_briefly(monkeypatch, "if 'b/beta-0.1/seed-0' in str(out): sys.exit('no such luck')")
    found = running.run_sweep(small_plan(values), config)
    assert [run.status for run in found] == ["finished", "failed", "finished", "finished"]
    assert found[1].message == "no such luck"
    with pytest.raises(OutputError, match=r"1 of 4 runs failed, .*: b/beta-0.1/seed-0: no such l"):
        running.sweep_lines(found, config)
    log = (tmp_path / "out" / "logs" / "b" / "beta-0.1" / "seed-0.log").read_text()
    assert log.splitlines()[-1] == "no such luck"

    train_briefly(monkeypatch)
    found = running.run_sweep(small_plan(values, arms=("a", "b", "c")), config)
    assert {run.status for run in found} == {"finished"}
    assert running.sweep_lines(found, config)[0] == "6 runs are finished"
    assert all(run.seconds > 0 for run in found)
    tries = (tmp_path / "out" / "tries").read_text().split()
    assert len(tries) == 7 and tries.count("b/beta-0.1/seed-0") == 2


def test_a_run_that_was_begun_with_something_else_is_refused(tmp_path, values, monkeypatch):
    config = SweepConfig(output_dir=str(tmp_path / "out"))
    train_briefly(monkeypatch)
    running.run_sweep(small_plan(values), config)
    message = (
        r"sweep.yaml: a/beta-0.1/seed-0 was begun with something else: learning_rate was 0.001 "
        r"and is 0.01. Give the arm another name"
    )
    with pytest.raises(ConfigError, match=message):
        running.run_sweep(small_plan(values, learning_rate=0.01), config)
    with Path(values["dataset_name"]).open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match=r"pairs.jsonl: has changed since the sweep in"):
        running.run_sweep(small_plan(values), config)


def test_other_folders_are_refused(tmp_path, values):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files than a sweep"):
        running.run_sweep(small_plan(values), SweepConfig(output_dir=str(tmp_path)))
    with pytest.raises(OutputError, match="expected a folder to write to, found a file"):
        running.list_runs(small_plan(values), SweepConfig(output_dir=str(tmp_path / "notes.txt")))


def test_a_run_whose_report_failed_is_named(tmp_path, values):
    folder = SweepFolder(tmp_path)
    (folder.run("a/beta-0.1/seed-0")).mkdir(parents=True)
    (folder.run("a/beta-0.1/seed-0") / "run.json").write_text(
        '{"failures": ["The report failed"]}'
    )
    found = folder.look_at(small_plan(values).runs[0])
    assert (found.status, found.message) == ("failed", "The report failed")


def test_gpus_are_dealt_out_in_groups(values, monkeypatch):
    plan = small_plan(values)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2, 3")
    assert running._device_groups(plan) == ["0", "2", "3"]
    assert running._device_groups(SweepPlan("s", plan.runs, 2)) == ["0,2"]
    with pytest.raises(ConfigError, match="s: devices: 4 for each run, and this machine has 3"):
        running._device_groups(SweepPlan("s", plan.runs, 4))
    assert running._device_groups(small_plan(values, use_cpu=True)) == []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    places = running._Places(3, ["0", "2"])
    found = [places._free.get() for _ in range(3)]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in found] == ["0", "2", "0"]
    assert {place["OMP_NUM_THREADS"] for place in found} == {"2"}


# Processes


def process(folder, code, claim, name="out"):
    return ProcessTask(
        words=("-c", code), output=str(folder / name), result=str(folder / name / "run.json"),
        log=str(folder / f"{name}.log"), folder=str(folder), claim=claim,
    )  # fmt: skip


SLEEPS = "import pathlib, time; pathlib.Path('{0}').touch(); time.sleep(60)"


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_process_says_why_it_failed(tmp_path):
    with claimed(tmp_path) as claim:
        code = "print('mixdpo: error: beta: wrong'); print('bye'); raise SystemExit(2)"
        found = run_process(process(tmp_path, code, claim))
        assert (found.status, found.message) == (2, "beta: wrong")
        found = run_process(process(tmp_path, "print('fine')", claim))
        assert (found.status, found.message) == (0, "")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "run.json").write_text("{}")
        assert run_process(process(tmp_path, "raise SystemExit(3)", claim)).status == 0


def test_a_process_ends_when_the_work_is_called_off(tmp_path):
    """The claim is gone, or another's; a process that comes too late does not begin."""
    for number, end in enumerate((lambda path: path.unlink(), lambda path: path.write_text("x"))):
        begun = tmp_path / f"begun{number}"
        with claimed(tmp_path) as claim, ThreadPoolExecutor(1) as pool:
            task = process(tmp_path, SLEEPS.format(begun), claim)
            found = pool.submit(run_process, task)
            wait_for(begun.exists)
            end(tmp_path / ".claim")
            assert found.result(20).status == 128 + signal.SIGTERM
        with pytest.raises(OutputError, match="the work was called off"):
            run_process(task)


def test_a_process_ends_when_its_worker_is_killed(tmp_path):
    code = (
        "import sys\n"
        "from mixdpo_pyro.workflows.sweep.processes import ProcessTask, run_process\n"
        f"run_process({process(tmp_path, SLEEPS.format(tmp_path / 'begun'), 'mine')!r})\n"
    )
    (tmp_path / ".claim").write_text("mine")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as worker:
        wait_for((tmp_path / "begun").exists)
        worker.kill()
    wait_for(lambda: str(tmp_path / "begun") not in running_commands())


def running_commands():
    return "\n".join(" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the sockets of the worker that is killed
def test_a_sweep_on_a_cluster_goes_on_where_a_worker_is_killed(tmp_path, values, monkeypatch):
    """Two workers, one of which is killed in its first run: it is run again, and all are there."""
    train_briefly(
        monkeypatch,
        "first = 'a/beta-0.1/seed-0'\n"
        "if first in str(out) and tries.read_text().count(first) < 2:\n"
        "    import os, psutil\n"
        "    psutil.Process(os.getppid()).parent().kill()\n"
        "    time.sleep(60)\n",
    )
    with two_workers() as cluster:
        config = SweepConfig(output_dir=str(tmp_path / "out"), scheduler=cluster.scheduler_address)
        found = running.run_sweep(small_plan(values), config)
    assert [run.status for run in found] == ["finished"] * 4
    tries = (tmp_path / "out" / "tries").read_text().split()
    assert tries.count("a/beta-0.1/seed-0") == 2 and len(tries) == 5


def test_workers_that_do_not_see_the_folder_say_so(tmp_path):
    with pytest.raises(OutputError, match=r"/nowhere: .* sees no such folder; all workers need"):
        run_tasks(run_process, [process(Path("/nowhere"), "", "x")], Engine())


# The command


def test_dry_run_lists_runs_and_trains_nothing(tmp_path, sweep_file, capsys):
    out = tmp_path / "out"
    words = ["sweep", "--config", sweep_file(seeds=[0, 1]), "-o", str(out)]
    assert main([*words, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "mix/beta-0.3/seed-1" not in shown and "mix/beta-0.1/seed-1  new" in shown
    assert "4 runs, 4 to train" in shown and not out.exists()
    partial = out / "runs" / "mix" / "beta-0.1" / "seed-1.partial"
    (partial / "checkpoint-2").mkdir(parents=True)
    (out / "sweep.json").write_text("{}")
    assert main([*words, "--dry_run"]) == 0
    assert "mix/beta-0.1/seed-1  goes on from its last checkpoint" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_trains_and_its_results_are_read(tmp_path, sweep_file, capsys):
    out = tmp_path / "out"
    words = ["sweep", "--config", sweep_file(betas=[0.1, 0.5]), "-o", str(out), "--jobs", "2"]
    assert main(words) == 0
    assert main(["compare", str(out), "--output", str(tmp_path / "c.html")]) == 0
    shown = capsys.readouterr().out
    assert "4 runs are finished" in shown and "one seed" in shown
    assert "By arm and beta" in (tmp_path / "c.html").read_text()
    prompts = tmp_path / "pairs.jsonl"
    words = ["winrate", str(out), "--prompts", str(prompts), "--judge", "oracle"]
    short = ["--max_prompts", "4", "--max_new_tokens", "8", "-o", str(tmp_path / "w")]
    assert main([*words, *short]) == 0
    assert "mix/beta-0.5/seed-42" in capsys.readouterr().out
