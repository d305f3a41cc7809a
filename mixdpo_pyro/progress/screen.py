"""The terminal: tables, stages and notes. It is apart, since what computes prints nothing."""

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from mixdpo_pyro.progress.lines import printable

__all__ = ["Screen", "console", "show_stage"]


class Screen(Console):
    """A console that takes text as it is: no markup, no emoji, no control characters."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
        """Segments of what is printed, nested ones too, escaped."""
        for segment in super().render(*args, **kwargs):
            text = segment.text if segment.control else printable(segment.text)
            yield segment._replace(text=text)


console = Screen(stderr=True)


def show_stage(title: str) -> None:
    """Announce the next stage of a run, once for all processes of a launch."""
    if int(os.environ.get("RANK", 0)) == 0:
        console.print(title, style="bold")
