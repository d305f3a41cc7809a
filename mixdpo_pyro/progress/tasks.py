"""Independent tasks, such as simulations or trainings, on one core, on several, or on a cluster.

The engines are joblib on one machine and dask's futures on several. joblib has a backend for dask,
which waits forever for a task that dask gives up after several workers died of it.
"""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mixdpo_pyro.errors import ConfigError, extra_named

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Engine", "run_tasks"]

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_Outcomes = Generator[tuple[int, Any], None, None]

_PATIENCE = 30
"""Seconds that a scheduler has to answer, and to have a worker."""


@dataclass(frozen=True)
class Engine:
    """Where tasks run.

    Attributes:
        jobs: Tasks at a time on this machine.
        scheduler: Address of a dask scheduler, whose workers take the tasks instead.
        threads: Whether threads are enough on this machine: for tasks that wait for a process.
    """

    jobs: int = 1
    scheduler: str | None = None
    threads: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ConfigError(f"jobs: expected at least 1, got {self.jobs}")


def run_tasks(
    function: Callable[[_Task], _Result],
    tasks: Sequence[_Task],
    engine: Engine | None = None,
    title: str | None = None,
    show: Callable[[int, _Result], str] | None = None,
    failed: Callable[[_Task, Exception], _Result] | None = None,
) -> list[_Result]:
    """Results of a function on tasks, in the order of the tasks.

    A task whose random numbers come from a seed of its own has one result wherever it runs. Where
    a worker of a cluster dies, its tasks start again on another one.

    Args:
        function: Takes a task; workers import it by its name.
        tasks: The tasks.
        engine: Where they run; default, one after the other in this process.
        title: Title of a progress bar; without one there is none.
        show: Takes number and result of each task as it ends; its text stands in the bar.
        failed: The result of a task that raised an error, or of which several workers died;
            without it the error ends everything.

    Raises:
        ConfigError: If the scheduler does not answer, or has no workers.
        MissingPackageError: If dask is not installed.

    Example:
        >>> run_tasks(abs, [3, -2])
        [3, 2]
    """
    from tqdm import tqdm

    tasks, engine = list(tasks), engine or Engine()
    guarded = _Guarded(function, failed)
    found: list[Any] = [None] * len(tasks)
    with (
        closing(_outcomes(guarded, tasks, engine)) as outcomes,
        tqdm(total=len(tasks), desc=title, disable=title is None, file=sys.stderr) as bar,
    ):
        for number, result in outcomes:
            found[number] = result
            if show is not None:
                bar.set_postfix_str(show(number, result), refresh=False)
            bar.update()
    return found


@dataclass(frozen=True)
class _Guarded:
    """A function whose errors may be results."""

    function: Callable[[Any], Any]
    failed: Callable[[Any, Exception], Any] | None

    def __call__(self, task: Any) -> Any:
        try:
            return self.function(task)
        except Exception as error:
            return self.lost(task, error)

    def lost(self, task: Any, error: Exception) -> Any:
        """The result of a task that failed, or its error raised."""
        if self.failed is None:
            raise error
        return self.failed(task, error)


def _outcomes(function: _Guarded, tasks: Sequence[Any], engine: Engine) -> _Outcomes:
    """Number and result of each task, as they end."""
    if engine.scheduler is not None:
        with _connect(engine.scheduler) as client:
            yield from _on_cluster(function, tasks, client)
    elif engine.jobs == 1 or len(tasks) < 2:
        yield from ((number, function(task)) for number, task in enumerate(tasks))
    else:
        yield from _on_this_machine(function, tasks, engine)


def _on_this_machine(function: _Guarded, tasks: Sequence[Any], engine: Engine) -> _Outcomes:
    from joblib import Parallel, delayed

    parallel = Parallel(
        n_jobs=min(engine.jobs, len(tasks)), backend="threading" if engine.threads else "loky",
        return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs",
    )  # fmt: skip
    numbered = delayed(partial(_numbered, function))
    yield from parallel(numbered(number, task) for number, task in enumerate(tasks))


def _numbered(function: _Guarded, number: int, task: Any) -> tuple[int, Any]:
    return number, function(task)


def _on_cluster(function: _Guarded, tasks: Sequence[Any], client: "Client") -> _Outcomes:
    from distributed import as_completed

    futures = {client.submit(function, task, pure=False): k for k, task in enumerate(tasks)}
    for future in as_completed(futures, loop=client.loop):
        number = futures[future]
        if future.status == "error":  # several workers died of it, or could not import it
            yield number, function.lost(tasks[number], future.exception())
        else:
            yield number, future.result()


def _connect(address: str) -> "Client":
    with extra_named("scheduler"):
        from distributed import Client
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"scheduler: {address} does not answer ({error})") from error
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as error:
        client.close()
        raise ConfigError(
            f"scheduler: {address} has no workers; 'dask worker {address}' starts one"
        ) from error
    return client
