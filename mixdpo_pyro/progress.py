"""What a person sees during a run: stages, and a progress bar with the numbers that matter."""

import os

from rich.console import Console

__all__ = ["console", "show_stage"]

console = Console(stderr=True, highlight=False)


def show_stage(title: str) -> None:
    """Announce the next stage of a run, once for all processes of a launch."""
    if int(os.environ.get("RANK", 0)) == 0:
        console.print(f"[bold]{title}[/bold]")
