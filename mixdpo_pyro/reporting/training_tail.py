"""The last third of a training, by which convergence is judged."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

if TYPE_CHECKING:
    pass

__all__ = ["MIN_POINTS", "TrainingTail"]

MIN_POINTS = 5
"""Logged points at the end of training, below which a slope has fewer than three degrees of
freedom for its noise."""


@dataclass(frozen=True)
class TrainingTail:
    """The last third of a training, counted in learning rate.

    A rate that decays to zero flattens every curve. Steps are therefore weighted by their rate:
    with linear decay the last third of the summed rate is the last 58% of the steps.

    Attributes:
        table: Logged points with a loss, and their `progress`: the share of the summed rate.
    """

    table: pd.DataFrame

    @classmethod
    def of_history(cls, history: list[dict[str, Any]]) -> "TrainingTail":
        """Take the logged training losses out of a Trainer's log history."""
        table = pd.DataFrame([entry for entry in history if "loss" in entry])
        if len(table):
            table = table.apply(pd.to_numeric, errors="coerce")
            table = table.dropna(subset="step").reset_index(drop=True)
            table["progress"] = _progress(table)
        return cls(table)

    @cached_property
    def points(self) -> pd.DataFrame:
        """The points of the last third."""
        return self.table if self.table.empty else self.table[self.table["progress"] >= 2 / 3]

    @property
    def first_step(self) -> float | None:
        """The step that the last third begins with; None where it holds too few points."""
        return float(self.points["step"].iloc[0]) if len(self.points) >= MIN_POINTS else None

    def change(self, name: str) -> tuple[float, float, float] | None:
        """Change of a logged number over the tail by a straight line, se and p-value.

        None where fewer than five points were logged or one is not finite.
        """
        if name not in self.points or len(self.points) < MIN_POINTS:
            return None
        x, y = (self.points[k].to_numpy(np.float64) for k in ("progress", name))
        if not np.isfinite(y).all() or np.ptp(x) == 0:
            return None
        line = stats.linregress(x, y)
        span = float(np.ptp(x))
        return float(line.slope) * span, float(line.stderr) * span, float(line.pvalue)


# Training


def _progress(table: pd.DataFrame) -> Float[np.ndarray, " points"]:
    """Share of the summed learning rate by each logged point; of the steps where none is known."""
    steps = np.diff(table["step"].to_numpy(np.float64), prepend=0)
    rate = table["learning_rate"].to_numpy(np.float64) if "learning_rate" in table else 0 * steps
    weight = steps * rate
    if not (np.isfinite(weight).all() and weight.min() >= 0 and weight.sum() > 0):
        weight = np.maximum(steps, 0)
    return weight.cumsum() / max(weight.sum(), 1e-300)
