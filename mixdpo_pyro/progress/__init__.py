"""What a person waits for and sees: stages, notes, results, and tasks with a progress bar."""

from mixdpo_pyro.progress.screen import (
    Screen,
    abridged,
    console,
    printable,
    show_lines,
    show_stage,
)
from mixdpo_pyro.progress.tasks import Engine, run_tasks

__all__ = [
    "Engine",
    "Screen",
    "abridged",
    "console",
    "printable",
    "run_tasks",
    "show_lines",
    "show_stage",
]
