"""The data of every fit: margins of the chosen over the rejected response, and who chose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

__all__ = [
    "Choices",
    "agreement",
    "orient_at_random",
    "random_subset",
    "read_choices",
    "select_annotators",
]


@dataclass(frozen=True, repr=False, eq=False)
class Choices:
    """Checked margins and annotators.

    Attributes:
        margin: Chosen minus rejected log-ratio in nats, float64, shape `(pairs,)`.
        annotator: Index of the annotator of each pair into `labels`, or None without ids.
        labels: Annotator ids as strings, in the sorted order of the ids; empty without ids.
    """

    margin: Float[np.ndarray, " pairs"]
    annotator: Int[np.ndarray, " pairs"] | None = None
    labels: tuple[str, ...] = ()

    def __repr__(self) -> str:
        annotators = f"{self.num_annotators:,} annotators" if self.labels else "no annotator ids"
        return f"Choices({self.num_pairs:,} pairs, {annotators})"

    @property
    def num_pairs(self) -> int:
        """Number of pairs."""
        return len(self.margin)

    @property
    def num_annotators(self) -> int:
        """Number of annotators; 0 without ids."""
        return len(self.labels)

    @property
    def num_units(self) -> int:
        """Independent units: people where they chose repeatedly, otherwise pairs."""
        return self.num_annotators if self.has_panels else self.num_pairs

    @property
    def has_panels(self) -> bool:
        """Whether ids are given and somebody chose more than once."""
        return 0 < self.num_annotators < self.num_pairs


def agreement(margin: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
    """Whether choices agree with their margins: 1 or 0, and one half for a margin of zero."""
    return (margin > 0) + 0.5 * (margin == 0)


def orient_at_random(
    margin: Float[np.ndarray, " pairs"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " pairs"], np.ndarray]:
    """Call either response the first, at random.

    Args:
        margin: Margins of the chosen over the rejected response.
        rng: Source of the orientation.

    Returns:
        Margins of the first over the second response, and whether the first was chosen.
    """
    is_first = rng.random(len(margin)) < 0.5
    return np.where(is_first, margin, -margin), is_first


def random_subset(size: int, limit: int, rng: np.random.Generator) -> Int[np.ndarray, " kept"]:
    """All numbers below `size`, or `limit` of them drawn at random, in ascending order."""
    if size <= limit:
        return np.arange(size)
    return np.sort(rng.choice(size, limit, replace=False))


def read_choices(margin: Any, annotator: Sequence[Any] | np.ndarray | None = None) -> Choices:
    """Check margins and annotator ids.

    Args:
        margin: Margins in nats, chosen minus rejected: list, array or tensor of shape `(pairs,)`;
            or checked choices, which are returned as they are.
        annotator: Annotator ids of any type, same length, or None.

    Returns:
        The checked data.

    Raises:
        ValueError: If there are no margins, a margin is not finite, all are equal, the lengths
            differ, or all choices are one annotator's.

    Example:
        >>> read_choices([0.3, -1.2, 2.0], ["ann", "bob", "ann"]).labels
        ('ann', 'bob')
    """
    if isinstance(margin, Choices):
        return margin
    if hasattr(margin, "detach"):
        margin = margin.detach().cpu().numpy()
    margin = np.array(margin, dtype=np.float64)  # a copy: pandas hands out read-only views
    _check_margin(margin)
    if annotator is None:
        return Choices(margin)
    ids = _read_ids(annotator, margin.size)
    people, index = np.unique(ids, return_inverse=True)
    if len(people) == 1:
        raise ValueError(
            f"Expected at least two annotators, got {people[0]} only: one person's choices say "
            "nothing about differences between people; fit without annotator ids"
        )
    return Choices(margin, index, tuple(people.astype(str).tolist()))


def _read_ids(annotator: Any, num_pairs: int) -> np.ndarray:
    """Ids as numbers or strings, whichever sorts them naturally."""
    if hasattr(annotator, "detach"):
        annotator = annotator.detach().cpu()
    ids = np.asarray(annotator)
    if ids.shape != (num_pairs,):
        raise ValueError(
            f"Expected one annotator id per margin ({num_pairs}), got shape {ids.shape}"
        )
    if ids.dtype.kind in "Of":
        for k, value in enumerate(ids):
            if value is None or value != value:
                raise ValueError(f"Expected an annotator id per pair, got {value} at index {k}")
    return ids.astype(str) if ids.dtype.kind == "O" else ids


def _check_margin(margin: np.ndarray) -> None:
    if margin.ndim != 1:
        raise ValueError(f"Expected margins of shape (pairs,), got shape {margin.shape}")
    if margin.size == 0:
        raise ValueError("Expected at least two margins, got none")
    bad = np.flatnonzero(~np.isfinite(margin))
    if bad.size:
        first = bad[0]
        raise ValueError(
            f"Expected finite margins, got {margin[first]} at index {first} "
            f"({bad.size} of {margin.size} are not finite)"
        )
    if margin.min() == margin.max():
        raise ValueError(
            f"Expected margins that differ, got {margin.size} times {margin[0]:g}: "
            "mean and spread of the strength cannot be told apart"
        )


def select_annotators(choices: Choices, person: Int[np.ndarray, " people"]) -> Choices:
    """The choices of some people only, numbered anew."""
    assert choices.annotator is not None
    new_index = np.full(choices.num_annotators, -1)
    new_index[person] = np.arange(len(person))
    index = new_index[choices.annotator]
    labels = tuple(choices.labels[k] for k in person)
    return Choices(choices.margin[index >= 0], index[index >= 0], labels)
