"""A command that ends with its starter: `python -m ...workflows.sweep.supervisor WORD...`.

Standard input is a pipe whose other end the starter holds. It closes when the starter closes it
and when the starter dies, however it dies; the command is then terminated, with its processes.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

__all__ = ["main"]

_GRACE = 60
"""Seconds that a terminated command has to tidy up; accelerate takes 30 of them."""


def main(words: Sequence[str]) -> int:
    """Run a command until it ends, or until standard input does; its status, as a shell has it."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    status = process.wait()
    return status if status >= 0 else 128 - status


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):
        pass
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
