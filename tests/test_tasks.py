"""Tasks end the same wherever they run, and go on where a worker dies."""

import subprocess
import sys

import pytest
from scenarios import two_workers

from mixdpo_pyro.errors import ConfigError, MissingPackageError
from mixdpo_pyro.progress import Engine, run_tasks

ENGINES = [Engine(), Engine(jobs=2), Engine(jobs=2, threads=True)]


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes of one thread each."""
    with two_workers() as found:
        yield found


def test_results_stand_in_the_order_of_tasks():
    for engine in ENGINES:
        assert run_tasks(abs, [-3, 2, -1, 0], engine) == [3, 2, 1, 0]
        assert run_tasks(abs, [], engine) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_errors_end_everything_or_become_results(engine):
    with pytest.raises(ZeroDivisionError):
        run_tasks((1).__truediv__, [1, 0, 2], engine)
    # A text's method: other processes need not find this module.
    found = run_tasks((1).__truediv__, [1, 0, 2], engine, failed="{}: {!r}".format)
    assert found == [1.0, "0: ZeroDivisionError('division by zero')", 0.5]


def _name(task, error):
    return f"{task}: {type(error).__name__}"


def test_what_ends_is_shown_in_the_bar(capsys):
    shown = []
    run_tasks(abs, [-3, 2], title="things", show=lambda k, x: shown.append((k, x)) or f"at {x}")
    assert shown == [(0, 3), (1, 2)]
    err = capsys.readouterr().err
    assert "things" in err and "at 2" in err
    run_tasks(abs, [-3, 2])
    assert capsys.readouterr().err == ""


def test_fewer_jobs_than_one_are_refused():
    with pytest.raises(ConfigError, match="jobs: expected at least 1, got 0"):
        Engine(jobs=0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the sockets of the worker that is killed
def test_a_cluster_goes_on_where_a_worker_dies(cluster, tmp_path):
    """The first worker to take the last task is killed; every result is there."""
    code = (
        "import os, pathlib, signal, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "if path.exists(): sys.exit(7)\n"
        "path.touch(); os.kill(os.getppid(), signal.SIGKILL)\n"
    )
    fatal = [sys.executable, "-c", code, str(tmp_path / "was here")]
    tasks = [[sys.executable, "-c", f"raise SystemExit({k})"] for k in range(3)]
    found = run_tasks(
        subprocess.call, [*tasks, fatal], Engine(scheduler=cluster.scheduler_address)
    )
    assert found == [0, 1, 2, 7]


@pytest.mark.slow  # a worker that its nanny does not start again in time leaves nobody to ask
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_task_that_kills_every_worker_is_given_up(cluster):
    fatal = [sys.executable, "-c", "import os; os.kill(os.getppid(), 9)"]
    engine = Engine(scheduler=cluster.scheduler_address)
    found = run_tasks(subprocess.call, [["true"], fatal], engine, failed=_name)
    assert found == [0, f"{fatal}: KilledWorker"]


def test_a_scheduler_that_is_not_there_is_named(monkeypatch):
    from mixdpo_pyro.progress import tasks

    monkeypatch.setattr(tasks, "_PATIENCE", 0.2)
    with pytest.raises(ConfigError, match=r"scheduler: tcp://127.0.0.1:1 does not answer"):
        run_tasks(abs, [1], Engine(scheduler="tcp://127.0.0.1:1"))


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError, match="scheduler needs distributed, which is not"):
        run_tasks(abs, [1], Engine(scheduler="tcp://127.0.0.1:1"))
