"""Values that cannot be used: where they stand, what has to be there, and what is there."""

from dataclasses import dataclass

__all__ = ["WHOLE_LINE", "WHOLE_ROW", "Problem", "shorten"]

WHOLE_LINE = "(the whole line)"
"""Field of a problem with a line of a JSON file."""

WHOLE_ROW = "(the whole row)"
"""Field of a problem with a row of a csv file."""


@dataclass(frozen=True)
class Problem:
    """A value that cannot be used.

    Attributes:
        row: Row of the source, counted from 0.
        field: Name of the column or field.
        expected: What has to be there, in words.
        got: What is there, shortened.
    """

    row: int
    field: str
    expected: str
    got: str

    def __str__(self) -> str:
        if self.field in (WHOLE_LINE, WHOLE_ROW):
            place = f"line {self.row + 1}" if self.field == WHOLE_LINE else f"row {self.row}"
            return f"{place} cannot be read ({self.got}; expected {self.expected})"
        return f"row {self.row}, column '{self.field}': expected {self.expected}, got {self.got}"


def shorten(value: object, length: int = 60) -> str:
    """The value as Python writes it, cut to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
