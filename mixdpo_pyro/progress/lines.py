"""Text as a person sees it: in lines, with nothing in them that steers a terminal."""

import re
from collections.abc import Iterable

__all__ = ["abridged", "printable", "show_lines"]

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


def show_lines(lines: Iterable[str]) -> None:
    """Print the result of a command, line by line as it is, on standard output."""
    for line in lines:
        print(printable(line))
