"""Margins from a file: parquet, csv or jsonl, checked column by column and row by row."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mixdpo_pyro.errors import DataError

__all__ = ["MarginData", "margins_format", "read_margins"]

_LOGPS = (
    "policy_chosen_logps", "reference_chosen_logps", "policy_rejected_logps",
    "reference_rejected_logps",
)  # fmt: skip

_TOKENS = ("chosen_tokens", "rejected_tokens")

_ANNOTATOR = "annotator"

_READERS = {
    ".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv", ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
}  # fmt: skip


@dataclass(frozen=True)
class MarginData:
    """Checked margins with what belongs to each pair.

    Attributes:
        source: Name of the file, for messages.
        margin: Chosen minus rejected log-ratio in nats, float64.
        annotator: Ids, or None.
        annotator_column: Their column, or None.
        groups: Column -> group of each pair, as text.
        length: Tokens of the chosen minus those of the rejected response, or None.
        normalised: Margin of log-ratios per token, where log-probabilities and tokens are given.
    """

    source: str
    margin: np.ndarray
    annotator: np.ndarray | None
    annotator_column: str | None
    groups: dict[str, np.ndarray]
    length: np.ndarray | None
    normalised: np.ndarray | None


def read_margins(
    path: str | Path, annotator: str | None = None, groups: Sequence[str] = ()
) -> MarginData:
    """Read a file of margins and check it.

    Without a column `margin`, it is computed from `policy_chosen_logps`, `reference_chosen_logps`
    and the two of the rejected response; with both, they must agree to 1% or 0.05 nats.

    Args:
        path: A `parquet`, `csv` or `jsonl` file, the last two also gzipped.
        annotator: Column of annotator ids; default, `annotator` where there is one.
        groups: Columns of groups.

    Raises:
        DataError: Naming the file, and the column and row (counted from 0) that cannot be used.
    """
    frame = _read(Path(path), annotator, groups)
    source = str(path)
    if len(frame) == 0:
        raise DataError(f"{source}: there are no rows")
    column = annotator or (_ANNOTATOR if _ANNOTATOR in frame else None)
    for name in (*([column] if column else []), *groups):
        _check_labels(frame, name, source)
    margin = _margin(frame, source)
    tokens = _numbers(frame, _TOKENS, source)
    logps = _numbers(frame, _LOGPS, source)
    ids = None if column is None else frame[column].to_numpy()
    data = MarginData(
        source=source,
        margin=margin,
        annotator=ids,
        annotator_column=column,
        groups={name: frame[name].astype(str).to_numpy() for name in groups},
        length=None if tokens is None else tokens[0] - tokens[1],
        normalised=_per_token(logps, tokens, source),
    )
    _check_variety(data)
    return data


def margins_format(path: Path) -> str:
    """The format of a file of margins, by its ending.

    Raises:
        DataError: If it has another ending, or there is no such file.
    """
    kind = next((kind for end, kind in _READERS.items() if path.name.endswith(end)), None)
    if kind is None:
        known = ", ".join(end for end in _READERS)
        raise DataError(f"{path}: expected a file that ends in one of {known}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return kind


def _read(path: Path, annotator: str | None, groups: Sequence[str]) -> pd.DataFrame:
    kind = margins_format(path)
    wanted = ["margin", *_LOGPS, *_TOKENS, annotator or _ANNOTATOR, *groups]
    try:
        columns = _columns(path, kind)
        kept = [name for name in dict.fromkeys(wanted) if name in columns]
        for name in (annotator, *groups):
            if name is not None and name not in columns:
                raise DataError(f"{path}: column '{name}' is missing; it has {', '.join(columns)}")
        if "margin" not in columns and not set(_LOGPS) <= set(columns):
            raise DataError(
                f"{path}: column 'margin' is missing, and so are the log-probabilities it could "
                f"be computed from; it has {', '.join(columns)}"
            )
        return _load(path, kind, kept)
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zlib.error) as error:
        message = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as {kind} ({message})") from error


def _columns(path: Path, kind: str) -> list[str]:
    if kind == "parquet":
        from pyarrow import parquet

        return list(parquet.read_schema(path).names)
    if kind == "csv":
        return list(pd.read_csv(path, nrows=0).columns)
    with pd.read_json(path, lines=True, chunksize=1000, dtype=False) as chunks:
        return list(next(iter(chunks), pd.DataFrame()).columns)


def _load(path: Path, kind: str, columns: list[str]) -> pd.DataFrame:
    if kind == "parquet":
        return pd.read_parquet(path, columns=columns)
    if kind == "csv":
        return pd.read_csv(path, usecols=columns)
    return pd.read_json(path, lines=True, dtype=False)[columns]


def _margin(frame: pd.DataFrame, source: str) -> np.ndarray:
    logps = _numbers(frame, _LOGPS, source)
    computed = None if logps is None else (logps[0] - logps[1]) - (logps[2] - logps[3])
    if "margin" not in frame:
        assert computed is not None
        return computed
    (margin,) = _numbers(frame, ("margin",), source) or ()
    if computed is not None:
        differs = np.abs(margin - computed) > 0.05 + 0.01 * np.abs(computed)
        if differs.any():
            row = int(np.argmax(differs))
            raise DataError(
                f"{source}: row {row} has margin {margin[row]:.4g}, but its log-probabilities "
                f"give {computed[row]:.4g} ({int(differs.sum()):,} of {len(margin):,} rows differ)"
            )
    return margin


def _numbers(
    frame: pd.DataFrame, columns: Sequence[str], source: str
) -> tuple[np.ndarray, ...] | None:
    """The columns as finite float64, or None where one of them is missing."""
    if not set(columns) <= set(frame.columns):
        return None
    values = []
    for name in columns:
        numbers = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
        bad = ~np.isfinite(numbers)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{source}: row {row} has '{frame[name].iloc[row]}' in column '{name}', expected "
                f"a finite number ({int(bad.sum()):,} of {len(frame):,} rows are not)"
            )
        values.append(numbers)
    return tuple(values)


def _check_labels(frame: pd.DataFrame, column: str, source: str) -> None:
    missing = frame[column].isna().to_numpy()
    if missing.any():
        row = int(np.argmax(missing))
        raise DataError(
            f"{source}: row {row} has nothing in column '{column}' "
            f"({int(missing.sum()):,} of {len(frame):,} rows)"
        )


def _per_token(
    logps: tuple[np.ndarray, ...] | None, tokens: tuple[np.ndarray, ...] | None, source: str
) -> np.ndarray | None:
    if tokens is None:
        return None
    for name, values in zip(_TOKENS, tokens, strict=True):
        if values.min() <= 0:
            row = int(np.argmin(values))
            raise DataError(
                f"{source}: row {row} has {values[row]:g} in column '{name}', expected 1 or more"
            )
    if logps is None:
        return None
    return (logps[0] - logps[1]) / tokens[0] - (logps[2] - logps[3]) / tokens[1]


def _check_variety(data: MarginData) -> None:
    if data.annotator is not None and len(pd.unique(data.annotator)) == 1:
        raise DataError(
            f"{data.source}: column '{data.annotator_column}' names one annotator only "
            f"({data.annotator[0]}); one person's choices say nothing about differences between "
            "people"
        )
    if data.margin.min() == data.margin.max():
        raise DataError(
            f"{data.source}: all {len(data.margin):,} margins are {data.margin[0]:g}; the "
            "strength shows only where margins differ"
        )
