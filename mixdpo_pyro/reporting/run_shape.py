"""The shape of a run's JSON files, as far as reports and comparisons read them."""

import reprlib
from typing import Any

__all__ = ["FACTS", "HISTORY", "TRAINING_POSTERIOR", "check_shape"]

Shape = type | None | tuple | dict | list
"""A type, None, a choice of shapes, key -> shape, or the one shape of all items of a list."""

_NUMBER = (int, float)

_TEXT = (str, None)

FACTS: Shape = {
    "command": str, "family": str, "diagnosed_family": str, "anchor": str, "beta": _NUMBER,
    "seed": int, "seconds": _NUMBER, "error_rate": _TEXT, "versions": dict,
    "verdict": {"value": str, "reason": str},
    "checks": [{"name": str, "status": str, "sentence": str}],
    "truth": (
        {"family": str, "mean": _NUMBER, "cv": _NUMBER, "strengths": {None: _NUMBER}}, None
    ),
    "data": {
        "source": str, "train": int, "test": int, "dropped": {None: int},
        "annotator_column": _TEXT, "has_panels": bool,
    },
}  # fmt: skip
"""`run.json`."""

HISTORY: Shape = [{None: (*_NUMBER, None)}]
"""`log_history.json`; the key None stands for all."""

TRAINING_POSTERIOR: Shape = {
    "draws": {"mean": [_NUMBER], "cv": [_NUMBER]},
    "mean": _NUMBER, "cv": _NUMBER, "q05": _NUMBER, "q95": _NUMBER,
}  # fmt: skip
"""`training_posterior.json`."""


def check_shape(value: Any, shape: Shape, key: str = "") -> None:
    """Compare a value with a shape; keys that are missing or unknown are not looked at.

    Raises:
        ValueError: Naming the first key whose value has another shape.
    """
    if isinstance(shape, tuple):
        if not any(_fits(value, one) for one in shape):
            raise ValueError(_describe(value, shape, key))
        shape = next(one for one in shape if _fits(value, one))
    if not _fits(value, shape):
        raise ValueError(_describe(value, (shape,), key))
    if isinstance(shape, list):
        for index, item in enumerate(value):
            check_shape(item, shape[0], f"{key}[{index}]")
    if isinstance(shape, dict):
        for name, item in value.items():
            if (expected := shape.get(name, shape.get(None, ...))) is not ...:
                check_shape(item, expected, f"{key}.{name}" if key else name)


def _fits(value: Any, shape: Shape) -> bool:
    if shape is None:
        return value is None
    kind = shape if isinstance(shape, type) else type(shape)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _describe(value: Any, shapes: tuple, key: str) -> str:
    words = [_WORDS[s if s is None or isinstance(s, type) else type(s)] for s in shapes]
    where = f"key '{key}': " if key else ""
    return f"{where}expected {' or '.join(words)}, got {reprlib.repr(value)}"


_WORDS: dict[type | None, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false",
    dict: "keys and values", list: "a list", None: "null",
}  # fmt: skip
