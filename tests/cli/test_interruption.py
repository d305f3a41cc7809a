"""SIGINT and SIGTERM: one line, the status of the signal, and what can go on says so."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from scenarios import TRAINING_MARKS, small_world

from mixdpo_pyro.cli.commands import COMMANDS
from mixdpo_pyro.cli.main import main

pytestmark = TRAINING_MARKS

ADVICE = "; the same command with --resume goes on from what is done"
RESUMABLE = {"train", "margins", "winrate"}
SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


@pytest.fixture(autouse=True)
def _interrupts():
    """A shell starts what runs in its background with SIGINT ignored, pytest too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status", "word"), SIGNALS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_ends_a_command_in_one_line(monkeypatch, capsys, name, number, status, word):
    tidied = []

    def run(parser, words):
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            tidied.append(name)

    monkeypatch.setitem(COMMANDS, name, replace(COMMANDS[name], run=run))
    before = signal.getsignal(signal.SIGTERM)
    assert main([name]) == status
    assert tidied == [name]
    advice = ADVICE if name in RESUMABLE else ""
    assert capsys.readouterr().err == f"mixdpo: {word}{advice}\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", sorted(RESUMABLE))
def test_commands_that_are_said_to_resume_have_the_option(name):
    assert "resume" in COMMANDS[name].parser().options()
    assert {c.name for c in COMMANDS.values() if c.can_resume} == RESUMABLE


def test_a_worker_dies_of_sigterm_without_a_word():
    """A pool ends its forked workers with SIGTERM; they must not report an interruption."""
    code = (
        "import os, signal, sys, time\n"
        "from mixdpo_pyro.cli.main import _sigterm_interrupts\n"
        "with _sigterm_interrupts():\n"
        "    ready, go = os.pipe()\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.write(go, b'.')\n"  # Python forgets signals that arrive within the fork
        "        time.sleep(30)\n"
        "        os._exit(1)\n"
        "    os.read(ready, 1)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    print(os.waitpid(child, 0)[1])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(int(signal.SIGTERM))
    assert result.stderr == ""


@pytest.mark.slow
def test_terminated_training_goes_on_where_it_was(tmp_path, policy_folder):
    """SIGTERM behind a checkpoint, then --resume: the policy of a run that was left alone."""
    small_world().remove_columns(["source_row", "reward_margin"]).to_json(tmp_path / "p.jsonl")
    options = (
        f"--dataset_name {tmp_path / 'p.jsonl'} --model_name_or_path {policy_folder} "
        "--test_fraction 0.5 --max_steps 60 --save_steps 2 --save_total_limit 2 "
        "--per_device_train_batch_size 4 --learning_rate 1e-3 --max_length 128 --report_to none"
    ).split()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def command(name, *more):
        words = ["train", *options, "-o", str(tmp_path / name), *more]
        return [sys.executable, "-m", "mixdpo_pyro", *words]

    subprocess.run(command("whole"), check=True, capture_output=True, env=environment)
    with subprocess.Popen(
        command("run"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment,
    ) as process:  # fmt: skip
        while not any((tmp_path / "run.partial").glob("checkpoint-*/trainer_state.json")):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert error.splitlines()[-1] == f"mixdpo: terminated{ADVICE}"
    assert "Traceback" not in error
    subprocess.run(command("run", "--resume"), check=True, capture_output=True, env=environment)
    weights = [tmp_path / name / "policy" / "model.safetensors" for name in ("whole", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
