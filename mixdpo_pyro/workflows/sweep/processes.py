"""Commands as tasks: each a process with a log, which ends when the work is called off.

Whoever hands out the tasks claims a folder that all workers see. A worker ends its command when
the claim is gone or another's, and the command ends when its worker dies: nothing goes on unseen.
"""

import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io import locked_output

__all__ = ["CLAIM_FILE", "ProcessEnd", "ProcessTask", "claimed", "run_process"]

CLAIM_FILE = ".claim"
"""The file of a folder that says for whom commands run there."""

_LOOK = 0.2  # seconds between two looks at a process

_HANDOVER = 90
"""Seconds that a command of a worker that died has to end, before the next one starts anyway."""

_live: set[int] = set()
"""Numbers of this process's commands that have not ended."""


@dataclass(frozen=True)
class ProcessTask:
    """A command.

    Attributes:
        words: What stands behind the name of the Python interpreter, which is the worker's own.
        output: The path that it writes, one command at a time.
        result: A file that is there once this is done, whoever did it.
        log: File that its words go to, behind those of earlier tries.
        folder: The claimed folder.
        claim: The claim.
        directory: Directory that it starts in.
        environment: Further variables of its environment.
    """

    words: tuple[str, ...]
    output: str
    result: str
    log: str
    folder: str
    claim: str
    directory: str = field(default_factory=os.getcwd)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessEnd:
    """How a command ended.

    Attributes:
        status: Its exit status.
        seconds: Wall time.
        message: The last line of its log where it failed.
    """

    status: int
    seconds: float = 0.0
    message: str = ""


@contextmanager
def claimed(folder: Path) -> Iterator[str]:
    """Claim a folder for the block; its end ends all commands that run for the claim."""
    claim, path = secrets.token_hex(8), folder / CLAIM_FILE
    path.write_text(claim)
    try:
        yield claim
    finally:
        path.unlink(missing_ok=True)
        while _live:
            time.sleep(_LOOK)


def run_process(task: ProcessTask) -> ProcessEnd:
    """Run a command to its end, on the machine that calls this.

    Raises:
        OutputError: If the machine does not see the claimed folder or the starting directory, or
            the work was called off.
    """
    started = time.monotonic()
    _check_places(task)
    _await_predecessor(task)
    if Path(task.result).is_file():  # by a worker that died before it could say so
        return ProcessEnd(0)
    Path(task.log).parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "ab") as log:
        begin = log.tell()
        log.write(f"# {socket.gethostname()}, {time.strftime('%F %T')}: {_shown(task)}\n".encode())
        log.flush()
        status = _supervise(task, log.fileno())
    seconds = time.monotonic() - started
    return ProcessEnd(status, seconds, _last_words(Path(task.log), begin) if status else "")


def _supervise(task: ProcessTask, log: int) -> int:
    words = [sys.executable, "-m", "mixdpo_pyro.workflows.sweep.supervisor", sys.executable]
    process = subprocess.Popen(
        [*words, *task.words], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=task.directory,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **task.environment}, start_new_session=True,
    )  # fmt: skip
    _live.add(process.pid)
    try:
        while process.poll() is None:
            if not _is_claimed(task):
                break
            time.sleep(_LOOK)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # ends what has not ended
        status = process.wait()
        _live.discard(process.pid)
    return status


def _check_places(task: ProcessTask) -> None:
    for path in (task.folder, task.directory):
        if not Path(path).is_dir():
            raise OutputError(
                f"{path}: {socket.gethostname()} sees no such folder; all workers need it, on a "
                "disk that they share"
            )


def _await_predecessor(task: ProcessTask) -> None:
    """Wait until nobody writes the output: the command of a worker that died takes a moment."""
    Path(task.output).parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + _HANDOVER
    while time.monotonic() < until:
        if not _is_claimed(task):
            raise OutputError(f"{task.folder}: the work was called off")
        try:
            with locked_output(task.output):
                return
        except OutputError:
            time.sleep(_LOOK)


def _is_claimed(task: ProcessTask) -> bool:
    try:
        return Path(task.folder, CLAIM_FILE).read_text() == task.claim
    except FileNotFoundError:
        return False
    except OSError:  # a disk of the network that does not answer for now
        return True


def _shown(task: ProcessTask) -> str:
    return shlex.join(["python", *task.words])


def _last_words(log: Path, begin: int) -> str:
    """The error in a log, or its last line."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 20_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    errors = [line for line in lines if line.startswith("mixdpo: ")]
    found = [line for line in errors or lines if line and not line.startswith("# ")]
    return found[-1].removeprefix("mixdpo: ").removeprefix("error: ") if found else "no word"
