"""What a person waits for and sees: lines of text, and tasks with a progress bar."""

from mixdpo_pyro.progress.lines import abridged, printable, show_lines
from mixdpo_pyro.progress.tasks import Engine, run_tasks

__all__ = ["Engine", "abridged", "printable", "run_tasks", "show_lines"]
