"""The command line: which command runs, and how a failure or an interruption ends."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mixdpo_pyro.cli.commands import COMMANDS, usage
from mixdpo_pyro.errors import ConfigError, MixDPOError, extra_named

__all__ = ["main"]

_LONGEST_MESSAGE = 2_000


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived, as a scheduler or `kill` sends it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 2 for a wrong command line or configuration, 1 for any other failure, 130 when
        interrupted, 143 when terminated, 141 where nobody reads the output any more, as behind
        `head`. A failure is one line on standard error, or a traceback with `--debug`. Bars and
        warnings of libraries stay on the screen with `--verbose`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug, verbose = "--debug" in arguments, "--verbose" in arguments
    arguments = [word for word in arguments if word not in ("--debug", "--verbose")]
    _keep_private()
    if not (debug or verbose):
        _quiet_libraries()
    try:
        with _sigterm_interrupts(), extra_named(" ".join(["mixdpo", *arguments[:1]])):
            status = _run(arguments)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, _Terminated)
        _complain(("terminated" if is_terminated else "interrupted") + _advice(arguments))
        return 143 if is_terminated else 130
    except SystemExit as end:  # argparse has shown a help
        return int(end.code or 0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left of it
        return 141
    except Exception as error:
        if debug:
            raise
        _complain(f"error: {_one_line(error)}")
        return 2 if isinstance(error, ConfigError) else 1


def _run(arguments: list[str]) -> int:
    match arguments:
        case []:
            print(usage(), file=sys.stderr)
            return 2
        case ["-h" | "--help", *_]:
            print(usage())
        case ["--version", *_]:
            from importlib.metadata import version

            print(version("mixdpo-pyro"))
        case [name, *words] if name in COMMANDS:
            command = COMMANDS[name]
            lines = command.run(command.parser(), words)
            from mixdpo_pyro.progress import show_lines

            show_lines(lines)
        case [name, *_]:
            raise ConfigError(f"unknown command '{name}'; see mixdpo --help")
    return 0


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that files are tidied up; as it was after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def interrupt(number: int, _: Any) -> None:
        if os.getpid() == process:
            raise _Terminated
        signal.signal(number, signal.SIG_DFL)  # a worker that was forked from this process
        os.kill(os.getpid(), number)

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _advice(arguments: list[str]) -> str:
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None or not command.can_resume:
        return ""
    return "; the same command with --resume goes on from what is done"


def _complain(message: str) -> None:
    from mixdpo_pyro.progress import printable

    print(f"mixdpo: {printable(message)}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return _shortened(f"{error.filename}: {error.strerror}")
    message = _shortened(" ".join(str(error).split()))
    if isinstance(error, MixDPOError):
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


def _shortened(message: str) -> str:
    if len(message) <= _LONGEST_MESSAGE:
        return message
    half = _LONGEST_MESSAGE // 2
    return f"{message[:half]} ... {message[-half:]}"


def _keep_private() -> None:
    """Report nothing to Hugging Face, unless the user asks for it; before the libraries load."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")


class _PrintableFormatter(logging.Formatter):
    """Log records as any other message: nothing in them steers the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        from mixdpo_pyro.progress import printable

        return printable(super().format(record))


def _quiet_libraries() -> None:
    """Leave a person's screen to stages, bars and results; set before the libraries load."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_LEAVE", "")  # "" is False: a bar that is done goes
    warnings.filterwarnings("ignore")
    logger = logging.getLogger("mixdpo_pyro")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_PrintableFormatter())
        logger.addHandler(handler)
