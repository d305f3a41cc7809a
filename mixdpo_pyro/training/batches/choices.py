"""What was done, read from columns of a dataset: choice sets, rankings, ties and grades."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from jaxtyping import Int

from mixdpo_pyro.data.choice_kinds import (
    CHOICE_SET,
    GRADE,
    OUTCOME,
    RANK,
    closed_ranks,
    read_choice_values,
    signs_of_choices,
)
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference.outcomes import read_outcomes
from mixdpo_pyro.training.batches.columns import ChoiceColumns
from mixdpo_pyro.training.batches.numbering import need_column, source_rows, values_of

__all__ = [
    "CHOICE_CODE", "CHOICE_INDEX", "ChoiceKind", "ChoiceReader", "check_one_annotator",
    "check_room", "number_shared_pairs",
]  # fmt: skip

CHOICE_INDEX = "mixdpo_choice_index"
"""Column with the number of each row's choice, counted from 0, where rows are those of sets."""

CHOICE_CODE = "mixdpo_choice_code"
"""Column with what was done: see :class:`~mixdpo_pyro.training.losses.observed.Done`."""


@dataclass(frozen=True)
class ChoiceKind:
    """What kind of choices the training data hold.

    Attributes:
        observation: `pairs`, `sets`, `rao-kupper`, `davidson` or `grades`.
        num_outcomes: Number of outcomes of a judgement; an odd number has ties among them.
    """

    observation: str = "pairs"
    num_outcomes: int = 2


@dataclass
class ChoiceReader:
    """Reads the columns of datasets; the first one, that of training, decides the kind.

    Attributes:
        columns: What to read.
        kind: What the training data hold; None until they were read.
    """

    columns: ChoiceColumns
    kind: ChoiceKind | None = field(default=None, init=False)

    def read(self, dataset: Any, name: str) -> tuple[Dataset, dict[str, int]]:
        """Add columns with what was done, before rows are dropped for other reasons.

        Args:
            dataset: The dataset, with the columns that were named.
            name: Its name, for messages.

        Returns:
            The dataset, without ties where they are to be dropped; reason -> number of rows.

        Raises:
            DataError: Naming option, column and row of what cannot be read.
        """
        columns = self.columns
        for option, column in _named(columns).items():
            need_column(dataset, column, option, f" in the {name} dataset")
        sets = None
        if columns.choice_set is not None:
            sets = _read(CHOICE_SET, dataset, columns.choice_set, "choice_set_column")
        if columns.judgement is None:
            assert sets is not None
            return self._read_sets(dataset, sets), {}
        if sets is not None:
            _refuse_larger_sets(sets, columns, source_rows(dataset))
        return self._read_judgements(dataset, name)

    def settle(self, dataset: Dataset) -> Dataset:
        """Number choices and ranks anew in what is left of the rows, tokenized by now.

        A set that lost a response leaves the odds of the others as they were.

        Raises:
            DataError: If rows of a set have different prompts or chosen responses.
        """
        if CHOICE_INDEX not in dataset.column_names:
            return dataset
        choice = np.unique(dataset[CHOICE_INDEX], return_inverse=True)[1]
        code = np.asarray(dataset[CHOICE_CODE][:])
        ranked = np.where(code > 0, code, np.nan)
        code = np.nan_to_num(closed_ranks(choice, ranked)).astype(np.int64)
        self._check_chosen(dataset, choice)
        dataset = dataset.remove_columns([CHOICE_INDEX, CHOICE_CODE])
        return dataset.add_column(CHOICE_INDEX, choice).add_column(CHOICE_CODE, code)

    def _read_sets(self, dataset: Dataset, sets: np.ndarray) -> Dataset:
        rank = None
        if (column := self.columns.rank) is not None:
            rank = closed_ranks(sets, _read(RANK, dataset, column, "rank_column"))
        try:
            outcomes, _ = read_outcomes(np.ones(len(sets)), sets, rank, None, "rao-kupper")
        except ValueError as fault:
            raise DataError(f"rank_column: column '{self.columns.rank}': {fault}") from None
        self.kind = self.kind or ChoiceKind("sets", 0)
        single = np.arange(len(sets))
        choice = single if outcomes is None else outcomes.choice
        code = np.zeros_like(single) if outcomes is None else outcomes.code
        return dataset.add_column(CHOICE_INDEX, choice).add_column(CHOICE_CODE, code)

    def _read_judgements(self, dataset: Dataset, name: str) -> tuple[Dataset, dict[str, int]]:
        columns = self.columns
        option = "outcome_column" if columns.outcome else "grade_column"
        column, kind = str(columns.judgement), OUTCOME if columns.outcome else GRADE
        read = _read(kind, dataset, column, option)
        grade = read if kind == GRADE else signs_of_choices({kind: read})
        assert grade is not None
        is_new = self.kind is None
        kept = np.ones(len(grade), dtype=bool)
        if self.kind is None:
            self.kind = _kind_of(grade, columns, name)
        has_ties, top = bool(self.kind.num_outcomes % 2), self.kind.num_outcomes // 2
        beyond = np.flatnonzero(np.abs(grade) > top)
        if beyond.size:
            _, error = values_of(dataset, column, option)
            raise error(int(beyond[0]), f"at most {top} in size, as in the training data")
        dropped = {}
        if not has_ties and (ties := int((grade == 0).sum())):
            kept = grade != 0
            dropped["a tie" if is_new else "a tie, of which the training uses none"] = ties
            dataset, grade = dataset.select(np.flatnonzero(kept)), grade[kept]
            if not len(dataset):
                raise DataError(f"{option}: the {name} dataset has ties only")
        code = grade + top - (0 if has_ties else (grade > 0))
        return dataset.add_column(CHOICE_CODE, code), dropped

    def _check_chosen(self, dataset: Dataset, choice: Int[np.ndarray, " rows"]) -> None:
        """Rows of a set have one prompt and one chosen response, token by token."""
        seen: dict[int, tuple[int, bytes]] = {}
        pairs = zip(dataset["prompt_ids"], dataset["chosen_ids"], strict=True)
        for row, (number, (prompt, chosen)) in enumerate(zip(choice, pairs, strict=True)):
            digest = _digest(prompt, chosen)
            first, other = seen.setdefault(number, (row, digest))
            if digest == other:
                continue
            ids = [dataset[k]["prompt_ids"] for k in (first, row)]
            shared = min(map(len, ids))
            what = "chosen responses" if ids[0][:shared] == ids[1][:shared] else "prompts"
            column = str(self.columns.choice_set)
            rows = [source_rows(dataset)[k] for k in (first, row)]
            raise DataError(
                f"choice_set_column: rows {rows[0]} and {rows[1]} have different {what} in one "
                f"set, {dataset[row][column]!r} in column '{column}'; the rows of a set are its "
                "chosen response over each other one"
            )


def what_was_done(dataset: Dataset, columns: ChoiceColumns) -> dict[str, list[Any]]:
    """What was done, as a table of margins holds it: `choice_set`, `rank`, `outcome`, `grade`.

    Args:
        dataset: Data that were read and settled; ranks are those of the rows that are left.
        columns: The columns of the source.
    """
    found: dict[str, list[Any]] = {}
    if columns.choice_set is not None:
        found["choice_set"] = list(_read(CHOICE_SET, dataset, columns.choice_set, ""))
    if columns.rank is not None:
        found["rank"] = [code or None for code in dataset[CHOICE_CODE][:]]
    if columns.outcome is not None:
        found["outcome"] = dataset[columns.outcome][:]
    if columns.grade is not None:
        found["grade"] = _read(GRADE, dataset, columns.grade, "").tolist()
    return found


def check_room(dataset: Dataset, column: str, batch_size: int) -> None:
    """Refuse a set that a batch cannot hold.

    Raises:
        DataError: Naming the set and the option.
    """
    choice = np.asarray(dataset[CHOICE_INDEX][:])
    size = np.bincount(choice)
    if size.max() > batch_size:
        row = int(np.flatnonzero(choice == size.argmax())[0])
        raise DataError(
            f"per_device_train_batch_size: the set {dataset[row][column]!r} in column '{column}' "
            f"has {size.max()} rows, and a batch of {batch_size} holds whole sets only"
        )


def check_one_annotator(dataset: Dataset, annotator_index: str, column: str) -> None:
    """Refuse sets whose rows have several annotators.

    Raises:
        DataError: Naming the rows and their column.
    """
    choice = np.asarray(dataset[CHOICE_INDEX][:])
    annotator = np.asarray(dataset[annotator_index][:])
    first = np.unique(choice, return_index=True)[1][choice]
    wrong = np.flatnonzero(annotator != annotator[first])
    if wrong.size:
        row, rows = int(wrong[0]), source_rows(dataset)
        raise DataError(
            f"annotator_column: rows {rows[first[row]]} and {rows[row]} of one choice set have "
            f"different annotators in column '{column}'; a choice is one person's"
        )


def number_shared_pairs(dataset: Dataset) -> Int[np.ndarray, " rows"]:
    """Number of what each row was a choice among: rows of the same responses have the same one.

    Args:
        dataset: Tokenized pairs, with `CHOICE_INDEX` where they are rows of sets.
    """
    rows = range(len(dataset))
    choice = dataset[CHOICE_INDEX][:] if CHOICE_INDEX in dataset.column_names else rows
    responses: dict[int, set[bytes]] = {}
    for number, prompt, *pair in zip(
        choice, dataset["prompt_ids"], dataset["chosen_ids"], dataset["rejected_ids"], strict=True
    ):
        responses.setdefault(number, set()).update(_digest(prompt, each) for each in pair)
    known: dict[frozenset[bytes], int] = {}
    pair_of = {k: known.setdefault(frozenset(v), len(known)) for k, v in responses.items()}
    return np.array([pair_of[number] for number in choice], dtype=np.int64)


def _digest(prompt: list[int], response: list[int]) -> bytes:
    tokens = np.array([len(prompt), *prompt, *response], dtype=np.int64)
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()


def _named(columns: ChoiceColumns) -> dict[str, str]:
    """Option -> column."""
    names = {
        f"{n}_column": getattr(columns, n) for n in ("choice_set", "rank", "outcome", "grade")
    }
    return {option: column for option, column in names.items() if column is not None}


def _read(kind: str, dataset: Dataset, column: str, option: str) -> np.ndarray:
    return read_choice_values(kind, *values_of(dataset, column, option))


def _kind_of(grade: Int[np.ndarray, " rows"], columns: ChoiceColumns, name: str) -> ChoiceKind:
    top = int(np.abs(grade).max())
    if top == 0:
        raise DataError(
            f"{'outcome_column' if columns.outcome else 'grade_column'}: the {name} dataset has "
            "ties only, which say nothing about the strength"
        )
    has_ties = bool((grade == 0).any()) and columns.ties != "drop"
    if top == 1:
        return ChoiceKind(columns.ties, 3) if has_ties else ChoiceKind("pairs", 2)
    return ChoiceKind("grades", 2 * top + has_ties)


def _refuse_larger_sets(sets: np.ndarray, columns: ChoiceColumns, rows: Sequence[int]) -> None:
    _, first, number = np.unique(sets.astype(str), return_index=True, return_inverse=True)
    again = np.flatnonzero(first[number] != np.arange(len(sets)))
    if again.size:
        row = int(again[0])
        raise DataError(
            f"choice_set_column: rows {rows[first[number[row]]]} and {rows[row]} are one set in "
            f"column '{columns.choice_set}', but column '{columns.judgement}' judges pairs; ties "
            "and grades within larger sets have no likelihood here: give their order as "
            "rank_column"
        )
