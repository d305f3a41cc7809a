"""What a person sees: stages, notes and results, with nothing in them that steers a terminal."""

import os
import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

__all__ = ["Screen", "abridged", "console", "printable", "show_lines", "show_stage"]

_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and the end of a line
    "\u2028-\u202e\u2066-\u2069"  # separators of lines, and marks that reorder text
    "\ud800-\udfff]"  # halves of characters, which no encoding writes
)


def printable(text: str) -> str:
    r"""The text with control characters escaped, such as `\x1b`; every message passes here."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def abridged(text: str, length: int = 40) -> str:
    """A label in one line: of a long text its beginning and its end."""
    text = printable(text).replace("\n", r"\n")
    if len(text) <= length:
        return text
    end = length // 3
    return f"{text[: length - end - 1]}…{text[-end:]}"


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


def show_lines(lines: Iterable[str]) -> None:
    """Print the result of a command, line by line as it is, on standard output."""
    for line in lines:
        print(printable(line))


def show_stage(title: str) -> None:
    """Announce the next stage of a run, once for all processes of a launch."""
    if int(os.environ.get("RANK", 0)) == 0:
        console.print(title, style="bold")
