"""What rival models are given, and what a fitted one hands back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_expit

__all__ = ["Embeddings", "FittedRival", "KnownChoices", "Setting", "project_embeddings"]

_PART = 10_000
"""Differences of embeddings that are held at once."""

Setting = Mapping[str, float | int]
"""Numbers that a model is fitted with and that held-out choices select, such as a ridge."""


@dataclass(frozen=True)
class Embeddings:
    """Frozen embeddings, each different response and prompt once.

    Attributes:
        response: Responses; differences of chosen and rejected have a mean squared norm of one.
        chosen: Row of the chosen response of each choice.
        rejected: Row of the rejected one.
        prompt: Prompts, or None where none are given.
        asked: Row of the prompt of each choice; zeros without prompts.
    """

    response: Float[np.ndarray, "responses features"]
    chosen: Int[np.ndarray, " choices"]
    rejected: Int[np.ndarray, " choices"]
    prompt: Float[np.ndarray, "prompts contexts"] | None
    asked: Int[np.ndarray, " choices"]

    def take(self, rows: np.ndarray) -> "Embeddings":
        """Those of some choices; tables of responses and prompts stay whole."""
        return replace(
            self,
            chosen=self.chosen[rows],
            rejected=self.rejected[rows],
            asked=self.asked[rows],
        )

    def swapped(self) -> "Embeddings":
        """The same with chosen and rejected exchanged."""
        return replace(self, chosen=self.rejected, rejected=self.chosen)


@dataclass(frozen=True)
class KnownChoices:
    """Choices by known people.

    Attributes:
        margin: Chosen minus rejected log-ratio, in units of the root mean square over all choices.
        annotator: Number of the annotator of each choice.
        num_annotators: How many there are, in all folds together.
        embeddings: Frozen embeddings, or None.
    """

    margin: Float[np.ndarray, " choices"]
    annotator: Int[np.ndarray, " choices"]
    num_annotators: int
    embeddings: Embeddings | None = None

    def __len__(self) -> int:
        return len(self.margin)

    def take(self, rows: Bool[np.ndarray, " choices"] | Int[np.ndarray, " _"]) -> "KnownChoices":
        """Some of the choices."""
        part = None if self.embeddings is None else self.embeddings.take(rows)
        return replace(
            self, margin=self.margin[rows], annotator=self.annotator[rows], embeddings=part
        )

    def swapped(self) -> "KnownChoices":
        """Every choice the other way round."""
        part = None if self.embeddings is None else self.embeddings.swapped()
        return replace(self, margin=-self.margin, embeddings=part)

    @cached_property
    def features(self) -> Float[np.ndarray, "choices features"]:
        """The margin, and after it differences of embeddings where there are any."""
        margin = self.margin[:, None]
        if self.embeddings is None:
            return margin
        return np.hstack([margin, self.difference])

    @property
    def difference(self) -> Float[np.ndarray, "choices features"]:
        """Embedding of the chosen response minus that of the rejected one."""
        assert self.embeddings is not None
        response = self.embeddings.response
        return response[self.embeddings.chosen] - response[self.embeddings.rejected]

    def sum_by_annotator(self, value: Float[np.ndarray, " choices *columns"]) -> np.ndarray:
        """Sums over the choices of each annotator."""
        total = np.zeros((self.num_annotators, *value.shape[1:]))
        np.add.at(total, self.annotator, value)
        return total

    @property
    def count(self) -> Int[np.ndarray, " annotators"]:
        """Choices of each annotator."""
        return np.bincount(self.annotator, minlength=self.num_annotators)


@dataclass(frozen=True)
class FittedRival:
    """A model fitted to choices.

    Attributes:
        num_parameters: Numbers that were estimated, those of each person included.
        log_prob: Log-probability of choices of the same people, in nats.
        people: What it says of each annotator: name -> a number each.
    """

    num_parameters: int
    log_prob: Callable[[KnownChoices], Float[np.ndarray, " choices"]]
    people: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def by_logit(
        cls,
        num_parameters: int,
        logit: Callable[[KnownChoices], Float[np.ndarray, " choices"]],
        people: dict[str, Any] | None = None,
    ) -> "FittedRival":
        """A model with one logit for each choice."""
        return cls(num_parameters, lambda choices: log_expit(logit(choices)), people or {})


def project_embeddings(
    chosen: Float[np.ndarray, "choices dimensions"],
    rejected: Float[np.ndarray, "choices dimensions"],
    prompt: Float[np.ndarray, "choices contexts"] | None = None,
    components: int = 64,
) -> Embeddings:
    """Project embeddings on the principal components of the differences of responses.

    Nothing of it looks at who chose what, since a difference and its negative count the same.

    Args:
        chosen: Embedding of each chosen response.
        rejected: Embedding of each rejected response.
        prompt: Embedding of each prompt, or None.
        components: How many components are kept at most.

    Raises:
        ValueError: If no two responses differ.
    """
    table, rows = _different_rows(np.concatenate([chosen, rejected]))
    first, second = np.split(rows, 2)
    parts = np.array_split(np.arange(len(first)), 1 + len(first) // _PART)
    squares = [_square(table[first[part]] - table[second[part]]) for part in parts]
    response = _reduced(table, np.sum(squares, axis=0), components)
    difference = response[first] - response[second]
    size = np.sqrt((difference**2).sum(1).mean())
    if not size > 0:
        raise ValueError("Expected chosen and rejected embeddings that differ, got equal ones")
    if prompt is None:
        return Embeddings(response / size, first, second, None, np.zeros(len(first), dtype=int))
    prompts, asked = _different_rows(prompt)
    context = _reduced(prompts, _square(prompts - prompts.mean(0)), components)
    norm = np.sqrt((context**2).sum(1).mean()) or 1.0
    return Embeddings(response / size, first, second, context / norm, asked)


def _square(difference: Float[np.ndarray, "rows dimensions"]) -> np.ndarray:
    return difference.T @ difference


def _reduced(table: np.ndarray, spread: np.ndarray, components: int) -> np.ndarray:
    """Centred rows on the first axes of a matrix of spread."""
    _, axes = np.linalg.eigh(spread)
    return (table - table.mean(0)) @ axes[:, ::-1][:, :components]


def _different_rows(
    table: Float[np.ndarray, "rows dimensions"],
) -> tuple[Float[np.ndarray, "_ dimensions"], Int[np.ndarray, " rows"]]:
    """Different rows of a table, as float64, and which of them each row is."""
    number: dict[bytes, int] = {}
    rows = np.array([number.setdefault(row.tobytes(), len(number)) for row in table])
    return table[np.unique(rows, return_index=True)[1]].astype(np.float64), rows
