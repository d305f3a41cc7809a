"""What can the design tell? People who judge what nobody else judges cannot be compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from mixdpo_pyro.inference.choices import Choices, number_labels

__all__ = ["Nesting", "examine_nesting"]

_RECURRING = 0.1
"""Share of choices whose response its judge meets again, from which on its error matters."""


@dataclass(frozen=True)
class Nesting:
    """Who judged what.

    Attributes:
        share_shared: Share of choices on pairs that somebody else judged too; None without ids.
        share_recurring: Share of choices with a response, or pair, that their judge met again.
        share_met_by_others: Share of choices with a response, or pair, that somebody else met.
        groups: Names of groups in which people are nested: each person in one level only.
    """

    share_shared: float | None
    share_recurring: float
    share_met_by_others: float
    groups: tuple[str, ...]

    @property
    def is_nested(self) -> bool:
        """Whether responses recur within people, but not between them.

        An error of a response's log-ratio then makes one person look strong and another weak.
        """
        return (
            self.share_recurring > _RECURRING
            and self.share_met_by_others < self.share_recurring / 2
        )


def examine_nesting(choices: Choices, groups: Mapping[str, Any] | None = None) -> Nesting:
    """Read off the ids who judged what.

    Args:
        choices: Data with annotator ids.
        groups: Name -> label of each row's group.
    """
    assert choices.annotator is not None
    person = choices.by_choice(choices.annotator)
    shared, recurring, by_others = None, 0.0, 0.0
    if choices.pair is not None:
        item = choices.by_choice(choices.pair)
        is_again, is_shared = _met(item[:, None], person)
        shared, recurring, by_others = float(is_shared.mean()), is_again.mean(), is_shared.mean()
    are_sets = choices.outcomes is not None and choices.outcomes.are_sets
    if choices.responses is not None and not are_sets:
        is_again, is_shared = _met(choices.responses, person)
        recurring, by_others = is_again.mean(), is_shared.mean()
    nested = tuple(name for name, group in (groups or {}).items() if _holds_people(choices, group))
    return Nesting(shared, float(recurring), float(by_others), nested)


def _met(
    items: Int[np.ndarray, "choices items"], person: Int[np.ndarray, " choices"]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the judge of a choice meets one of its items again, and whether others meet one."""
    num_items = items.max() + 1
    code = person[:, None] * num_items + items
    total = np.bincount(items.ravel(), minlength=num_items)[items]
    _, number, count = np.unique(code, return_inverse=True, return_counts=True)
    own = count[number.reshape(code.shape)]
    return np.any(own > 1, axis=1), np.any(total > own, axis=1)


def _holds_people(choices: Choices, group: Any) -> bool:
    """Whether every person is in one level of a group, of at least two, with others."""
    assert choices.annotator is not None
    level = number_labels(group)
    num_levels = int(level.max()) + 1
    num_cells = len(np.unique(choices.annotator * num_levels + level))
    return 2 <= num_levels < choices.num_annotators == num_cells
