"""Numbers that travel with a batch beside what TRL makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mixdpo_pyro.data.validation import ROW_COLUMN
from mixdpo_pyro.training.batches.choices import CHOICE_CODE, CHOICE_INDEX
from mixdpo_pyro.training.batches.numbering import ANNOTATOR_INDEX, GROUP_INDEX, PAIR_INDEX

__all__ = ["KEPT_COLUMNS", "KeepColumns"]

KEPT_COLUMNS = (
    ROW_COLUMN, ANNOTATOR_INDEX, GROUP_INDEX, PAIR_INDEX, CHOICE_INDEX, CHOICE_CODE,
)  # fmt: skip
"""What a batch keeps of a row, in whole numbers; the last two are its choice and what was done."""


@dataclass
class KeepColumns:
    """A collator that hands on the columns kept beside what TRL's makes.

    Attributes:
        collator: TRL's.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of some rows."""
        batch = self.collator(examples)
        for name in KEPT_COLUMNS:
            if isinstance(examples[0].get(name), int):
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch
