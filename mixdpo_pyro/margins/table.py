"""Margins from a file: parquet, csv or jsonl, checked column by column and row by row."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mixdpo_pyro.data.choice_kinds import (
    CHOICE_COLUMNS,
    CHOICE_SET,
    GRADE,
    NO_SETS,
    OTHER_MEANING,
    OUTCOME,
    RANK,
    as_number,
    read_choice_values,
)
from mixdpo_pyro.data.tables import Table, check_has_columns, read_table
from mixdpo_pyro.data.validation import (
    DEFAULT_ANNOTATOR_COLUMN,
    TextRule,
    annotator_column_of,
    id_rule,
    label_rule,
)
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.io.pseudonyms import Pseudonyms

__all__ = ["TRAINED_ON", "MarginData", "check_names", "read_margins"]

TRAINED_ON = "trained_on"
"""Column that says of each row whether the policy was trained on one of its responses."""

_LOGPS = (
    "policy_chosen_logps", "reference_chosen_logps", "policy_rejected_logps",
    "reference_rejected_logps",
)  # fmt: skip

_TOKENS = ("chosen_tokens", "rejected_tokens")

_MOSTLY = 0.5
"""Share of numbers from which on a column is one of numbers, and anything else in it a fault."""

_JUDGED = ("pair", "response_a", "response_b")
"""Columns that say what was judged, as hashes or as any other ids."""

_TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""What may stand in the column `trained_on`, in any case."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MarginData:
    """Checked margins with what belongs to each pair.

    Attributes:
        source: Name of the file, for messages.
        margin: Chosen minus rejected log-ratio in nats, float64.
        annotator: Ids as text, or None.
        annotator_column: Their column, or None.
        groups: Column -> group of each pair, as text.
        length: Tokens of the chosen minus those of the rejected response, or None.
        normalised: Margin of log-ratios per token, where log-probabilities and tokens are given;
            NaN in rows with an empty response, which has no log-ratio per token.
        done: What was done where choices are not plain pairs: `choice_set`, `rank` and `outcome`
            as `read_choices` takes them.
        judged: What was judged: `pair`, `response_a` and `response_b`, as `read_choices` takes
            them, where the table has such columns.
        attributes: Column -> difference of an attribute, chosen minus rejected.
        covariates: Column -> what strengths may go with, float64 where it holds numbers, or text.
        rows: Number of each row in the file; None for rows one after the other.
        num_trained_on: Rows of the file that are left out, since the policy was trained on them;
            None where the file does not say.
        num_alike: Rows without `choice_set`, `outcome` and `grade` that look like one choice among
            several responses: one annotator, one chosen response by its log-probabilities,
            another rejected one.
    """

    source: str
    margin: np.ndarray
    annotator: np.ndarray | None
    annotator_column: str | None
    groups: dict[str, np.ndarray]
    length: np.ndarray | None
    normalised: np.ndarray | None
    done: dict[str, Any] = field(default_factory=dict)
    judged: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    covariates: dict[str, np.ndarray] = field(default_factory=dict)
    rows: np.ndarray | None = None
    num_trained_on: int | None = None
    num_alike: int = 0

    @property
    def num_rows(self) -> int:
        """Rows of the file, with those that are left out."""
        return len(self.margin) + (self.num_trained_on or 0)

    @property
    def row_numbers(self) -> np.ndarray:
        """Number of each row in the file, counted from 0."""
        return np.arange(len(self.margin)) if self.rows is None else self.rows

    def pseudonymised(self, salt: str | None) -> "MarginData":
        """The same with pseudonyms of annotators, groups and levels, by a salt file, or as it is.

        Raises:
            DataError: If the salt file cannot be used.
        """
        if salt is None:
            return self
        hashed = Pseudonyms.from_file(salt).of_all
        return replace(
            self,
            annotator=None if self.annotator is None else hashed(self.annotator),
            groups={name: hashed(labels) for name, labels in self.groups.items()},
            covariates={
                name: values if values.dtype.kind == "f" else hashed(values)
                for name, values in self.covariates.items()
            },
        )


def read_margins(
    path: str | Path,
    annotator: str | None = None,
    groups: Sequence[str] = (),
    choice_set: str | None = None,
    attributes: Sequence[str] = (),
    covariates: Sequence[str] = (),
) -> MarginData:
    """Read a file of margins and check it.

    Without a column `margin`, it is computed from `policy_chosen_logps`, `reference_chosen_logps`
    and the two of the rejected response; with both, they must agree to 1% or 0.05 nats.

    Args:
        path: A `parquet`, `csv`, `json` or `jsonl` file, the last three also as gz, bz2 or xz.
        annotator: Column of annotator ids; default, `annotator` where there is one.
        groups: Columns of groups.
        choice_set: Column of choice sets; default, `choice_set` where there is one; `"none"` keeps
            rows apart.
        attributes: Columns of differences of attributes, chosen minus rejected.
        covariates: Columns that strengths may go with, of numbers or of labels.

    Columns `rank`, `outcome`, `grade`, `pair`, `response_a` and `response_b` are read where there
    are any. Rows in which a column `trained_on` is true are left out, with a warning: margins that
    were fitted to choices hide how people differ in them.

    Raises:
        DataError: Naming the file, and the column and row (counted from 0) that cannot be used.
    """
    asked = [*groups, *attributes, *covariates]
    columns = _Columns.read(Path(path), annotator, asked, choice_set)
    _check_covariates(columns, covariates)
    margin, column = _margin(columns), columns.annotator
    tokens = columns.numbers(_TOKENS)
    ids = None if column is None else columns.texts(column, id_rule())
    done = _what_was_done(columns, choice_set)
    is_told = choice_set is not None or bool(done)  # outcomes and grades are of two responses
    data = MarginData(
        source=columns.source,
        margin=margin,
        annotator=ids,
        annotator_column=column,
        groups={name: columns.texts(name, label_rule()) for name in groups},
        length=None if tokens is None else tokens[0] - tokens[1],
        normalised=_per_token(columns, tokens),
        done=done,
        judged=_what_was_judged(columns),
        attributes=dict(zip(attributes, columns.numbers(attributes) or (), strict=True)),
        covariates={name: columns.numbers_or_labels(name) for name in covariates},
        rows=np.asarray(columns.rows),
        num_trained_on=columns.num_trained_on,
        num_alike=0 if is_told else _count_alike(columns, ids),
    )
    _check_variety(data)
    return data


def check_names(names: Sequence[str], asked: Sequence[str], path: str | Path) -> None:
    """Refuse a table of margins that lacks a column.

    Args:
        names: Its columns.
        asked: Columns that must be there beside the margins.
        path: Its file, for the message.

    Raises:
        DataError: Naming the column, and those that there are.
    """
    check_has_columns(names, asked, path)
    if "margin" not in names and not set(_LOGPS) <= set(names):
        raise DataError(
            f"{path}: column 'margin' is missing, and so are the log-probabilities it could "
            f"be computed from; it has {', '.join(names)}"
        )


@dataclass(frozen=True)
class _Columns:
    """Columns of a file, as they were read."""

    source: str
    table: Table
    annotator: str | None
    num_trained_on: int | None

    @classmethod
    def read(
        cls, path: Path, annotator: str | None, groups: Sequence[str], choice_set: str | None
    ) -> "_Columns":
        """Read what is needed.

        Raises:
            DataError: If the file cannot be read, has no rows, or lacks a column.
        """
        sets = None if choice_set == NO_SETS else choice_set
        asked = [name for name in (annotator, sets, *groups) if name is not None]
        default = DEFAULT_ANNOTATOR_COLUMN
        table = read_table(
            path,
            ["margin", *_LOGPS, *_TOKENS, *CHOICE_COLUMNS, *_JUDGED, TRAINED_ON, default, *asked],
        )
        if table.problems:
            raise DataError(f"{path}: cannot be read as a table: {table.problems[0]}")
        check_names(table.all_names, asked, path)
        if len(table.rows) == 0:
            raise DataError(f"{path}: there are no rows")
        column = annotator_column_of(table.all_names, annotator)
        column_of_sets = sets or (CHOICE_SET if choice_set is None else None)
        kept, left_out = _leave_out_trained(table, path, column_of_sets)
        return cls(str(path), kept, column, left_out)

    @property
    def rows(self) -> Sequence[int]:
        """Number of each row in the file."""
        return self.table.rows

    def fail(self, index: int, column: str, expected: str, bad: int | None = None) -> DataError:
        """The error about the value of a row, and how many rows have such values."""
        others = f" ({bad:,} of {len(self.rows):,} rows are not)" if bad else ""
        return self.table.fault(self.source, index, column, f"{expected}{others}")

    def numbers(self, names: Sequence[str]) -> tuple[np.ndarray, ...] | None:
        """The columns as finite float64, or None where one of them is missing."""
        if not set(names) <= set(self.table.all_names):
            return None
        return tuple(self._numbers(name) for name in names)

    def _numbers(self, name: str) -> np.ndarray:
        column = self.table.column(name)
        if isinstance(column, pa.ChunkedArray) and _is_numeric(column.type):
            values = column.cast(pa.float64(), safe=False).to_numpy()
        else:
            values = np.array([as_number(value) for value in self.table.values(name)])
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise self.fail(int(bad[0]), name, "a finite number", bad.size)
        return values

    def texts(self, name: str, rule: TextRule, hint: str = "") -> np.ndarray:
        """The column as text, one object a row, by the rule for ids or that for labels."""
        values = self.table.values(name)
        return rule.read(values, lambda index, words: self.fail(index, name, words + hint))

    def numbers_or_labels(self, name: str) -> np.ndarray:
        """A column as float64 where all of it are numbers, as text where few are."""
        values = self.table.values(name)
        is_number = np.isfinite([as_number(value) for value in values])
        if is_number.all() or is_number.mean() > _MOSTLY:
            return self._numbers(name)
        return self.texts(name, label_rule())

    def choices(self, kind: str, name: str | None = None) -> np.ndarray:
        """What was done, from the column of that kind, or that of another name."""
        name = name or kind
        values = self.table.values(name)
        hint = OTHER_MEANING if name == kind else ""
        return read_choice_values(
            kind, values, lambda index, expected: self.fail(index, name, expected + hint)
        )


def _leave_out_trained(
    table: Table, path: Path, choice_set: str | None
) -> tuple[Table, int | None]:
    """The rows that the policy was not trained on, and the number of the others, where known.

    Of a choice set all rows are left out where one is.
    """
    if TRAINED_ON not in table.all_names:
        return table, None
    is_trained = [_TRUTHS.get(str(value).lower()) for value in table.values(TRAINED_ON)]
    if None in is_trained:
        raise table.fault(
            path, is_trained.index(None), TRAINED_ON, "true or false" + OTHER_MEANING
        )
    if choice_set in table.all_names:
        names = [str(value) for value in table.values(str(choice_set))]
        seen = {name for name, is_seen in zip(names, is_trained, strict=True) if is_seen}
        is_trained = [name in seen for name in names]
    kept = [k for k, is_seen in enumerate(is_trained) if not is_seen]
    number = len(is_trained) - len(kept)
    if not kept:
        raise DataError(
            f"{path}: the policy was trained on all {number:,} rows (column '{TRAINED_ON}'); "
            "margins that were fitted to choices hide how people differ in them. Compute margins "
            "of held-out pairs"
        )
    if number == 0:
        return table, 0
    logger.warning(
        "%s: %s of %s rows are left out: the policy was trained on them (column '%s')",
        path, f"{number:,}", f"{len(is_trained):,}", TRAINED_ON,
    )  # fmt: skip
    return table.take(kept), number


def _check_covariates(columns: _Columns, names: Sequence[str]) -> None:
    """Refuse columns that strengths cannot go with."""
    for name in names:
        if name in ("margin", *_LOGPS):
            raise DataError(
                f"{columns.source}: column '{name}' is no column that strengths may go with: it "
                "depends on which response was chosen"
            )
        if name == columns.annotator:
            raise DataError(
                f"{columns.source}: column '{name}' holds the annotators, whose strengths differ "
                "without columns too"
            )


def _what_was_done(columns: _Columns, choice_set: str | None) -> dict[str, Any]:
    """Sets, ranks and outcomes, where the table has any."""
    names = columns.table.all_names
    done: dict[str, Any] = {}
    column = choice_set or (CHOICE_SET if CHOICE_SET in names else NO_SETS)
    if column != NO_SETS:
        done["choice_set"] = columns.choices(CHOICE_SET, column)
        if RANK in names:
            done["rank"] = columns.choices(RANK)
    if GRADE in names:
        done["outcome"] = columns.choices(GRADE)
    elif OUTCOME in names:
        done["outcome"] = columns.choices(OUTCOME)
    return done


def _what_was_judged(columns: _Columns) -> dict[str, np.ndarray]:
    """Ids of pairs and of both responses, where the table has any."""
    names = [name for name in _JUDGED if name in columns.table.all_names]
    if len({"response_a", "response_b"} & set(names)) == 1:
        names = [name for name in names if name == "pair"]
    return {name: columns.texts(name, label_rule(), OTHER_MEANING) for name in names}


def _count_alike(columns: _Columns, annotator: np.ndarray | None) -> int:
    """Rows that share annotator and chosen response, by its log-probabilities, with another row.

    Their rejected responses differ: the same pair judged again is no choice among several.
    """
    logps = columns.numbers(_LOGPS)
    if logps is None:
        return 0
    import pandas as pd

    rows = pd.DataFrame(dict(zip(_LOGPS, logps, strict=True)))
    chosen = list(_LOGPS[:2])
    if annotator is not None:
        rows["annotator"] = annotator
        chosen.append("annotator")
    rows["choice"] = rows.groupby(chosen, sort=False).ngroup()
    different = rows.drop_duplicates(["choice", *_LOGPS[2:]])["choice"].value_counts()
    return int((rows["choice"].map(different) > 1).sum())


def _is_numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _margin(columns: _Columns) -> np.ndarray:
    from mixdpo_pyro.inference.choices import fault_of_margins

    logps = columns.numbers(_LOGPS)
    computed = None if logps is None else (logps[0] - logps[1]) - (logps[2] - logps[3])
    given = columns.numbers(("margin",))
    margin = computed if given is None else given[0]
    assert margin is not None
    fault = fault_of_margins(margin)
    if fault is not None:
        row, value = columns.rows[fault[0]], margin[fault[0]]
        raise DataError(f"{columns.source}: row {row} has margin {value:g}, expected {fault[1]}")
    if computed is not None:
        differs = np.abs(margin - computed) > 0.05 + 0.01 * np.abs(computed)
        if differs.any():
            k = int(np.argmax(differs))
            raise DataError(
                f"{columns.source}: row {columns.rows[k]} has margin {margin[k]:.4g}, but its "
                f"log-probabilities give {computed[k]:.4g} ({int(differs.sum()):,} of "
                f"{len(margin):,} rows differ)"
            )
    return margin


def _per_token(columns: _Columns, tokens: tuple[np.ndarray, ...] | None) -> np.ndarray | None:
    if tokens is None:
        return None
    for name, values in zip(_TOKENS, tokens, strict=True):
        if values.min() < 0:
            raise columns.fail(int(values.argmin()), name, "0 or more", int((values < 0).sum()))
    logps = columns.numbers(_LOGPS)
    if logps is None:
        return None
    chosen, rejected = (np.where(count > 0, count, np.nan) for count in tokens)
    return (logps[0] - logps[1]) / chosen - (logps[2] - logps[3]) / rejected


def _check_variety(data: MarginData) -> None:
    if data.annotator is not None and len(set(data.annotator)) == 1:
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
