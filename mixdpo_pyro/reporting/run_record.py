"""The record of a finished run: what its folder holds, as data."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from jinja2 import UndefinedError

from mixdpo_pyro.errors import MixDPOError, OutputError
from mixdpo_pyro.inference.choices import agreement
from mixdpo_pyro.inference.export import read_draws
from mixdpo_pyro.io import RUN_FILE
from mixdpo_pyro.reporting.run_shape import (
    FACTS,
    HISTORY,
    TRAINING_POSTERIOR,
    Shape,
    check_shape,
)
from mixdpo_pyro.reporting.training_tail import TrainingTail

__all__ = [
    "HISTORY_FILE",
    "MARGINS_FILE",
    "POSTERIOR_FILE",
    "TRAINING_POSTERIOR_FILE",
    "FinishedRun",
    "contents_named",
    "finite_values",
]

POSTERIOR_FILE = "posterior.nc"

TRAINING_POSTERIOR_FILE = "training_posterior.json"

MARGINS_FILE = "margins.parquet"

HISTORY_FILE = "log_history.json"

_DISAGREEMENT = (
    "Training and the held-out pairs disagree about cv. Trust the held-out pairs: while a policy "
    "is learning, the errors of its margins look like differences in strength."
)


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder holds.

    Attributes:
        folder: The folder.
        facts: Content of `run.json`.
        history: The Trainer's log history.
        margins: Held-out margins, a row a pair.
        posterior: Draws of `mean`, `cv` and, with annotators, `strength`, samples first.
        annotators: Labels of the columns of `strength`.
        training: Draws and summary of the guide that training learned.
        diagnostics: What `posterior.nc` says about its computation: its attributes, such as the
            `method`, and per draw `lp` and, for NUTS, `diverging`.
    """

    folder: Path
    facts: dict[str, Any]
    history: list[dict[str, Any]]
    margins: pd.DataFrame
    posterior: dict[str, np.ndarray]
    annotators: list[str]
    training: dict[str, Any]
    diagnostics: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a run folder.

        Raises:
            OutputError: Naming the file that is missing or damaged.
        """
        folder = Path(folder)
        posterior, annotators, diagnostics = _read(folder / POSTERIOR_FILE, _read_posterior)
        return cls(
            folder=folder,
            facts=_read(folder / RUN_FILE, partial(_read_json, shape=FACTS)),
            history=_read(folder / HISTORY_FILE, partial(_read_json, shape=HISTORY)),
            margins=_read(folder / MARGINS_FILE, _read_margins),
            posterior=posterior,
            annotators=annotators,
            training=_read(
                folder / TRAINING_POSTERIOR_FILE, partial(_read_json, shape=TRAINING_POSTERIOR)
            ),
            diagnostics=diagnostics,
        )

    @cached_property
    def reward_slope(self) -> float | None:
        """Policy margin per unit of true reward (simulated worlds): a line through the origin."""
        if "reward_margin" not in self.margins or self.facts["truth"] is None:
            return None
        margin, reward = self.margins["margin"], self.margins["reward_margin"]
        return float((margin * reward).sum() / (reward**2).sum())

    @cached_property
    def disagreement(self) -> str | None:
        """A warning where the 90% intervals of cv, training and held-out, are disjoint."""
        training = np.asarray(self.training["draws"]["cv"])
        if self.facts["family"] == "fixed":
            return None
        (low, high), (other_low, other_high) = (
            np.quantile(draws, [0.05, 0.95]) for draws in (self.posterior["cv"], training)
        )
        return _DISAGREEMENT if other_low > high or other_high < low else None

    @cached_property
    def accuracy(self) -> float:
        """Share of held-out pairs whose margin is positive; ties count one half.

        Margins that are not finite are left out; without any other it is not a number.
        """
        margin = finite_values(self.margins["margin"])
        return float(agreement(margin).mean()) if len(margin) else math.nan

    @cached_property
    def tail(self) -> TrainingTail:
        """The logged training, and its last third."""
        return TrainingTail.of_history(self.history)

    @property
    def guide_interval(self) -> tuple[float, float] | None:
        """The 90% interval of cv under the guide of training; None where it is a point."""
        draws = np.asarray(self.training["draws"]["cv"], dtype=float)
        if not np.isfinite(draws).all() or np.ptp(draws) == 0:
            return None
        low, high = np.quantile(draws, [0.05, 0.95])
        return float(low), float(high)


@contextmanager
def contents_named(folder: str | Path) -> Iterator[None]:
    """Turn what goes wrong with the contents of a run into one line that names its folder."""
    try:
        yield
    except MixDPOError:
        raise
    except KeyError as error:
        raise OutputError(f"{folder}: the key {error} is missing in its files") from error
    except (TypeError, ValueError, UndefinedError) as error:
        raise OutputError(f"{folder}: its files cannot be used ({error})") from error


def finite_values(values: Any) -> np.ndarray:
    """The finite values, as float64."""
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _read(path: Path, reader: Any) -> Any:
    if not path.is_file():
        raise OutputError(f"{path}: missing; is '{path.parent}' the folder of a finished run?")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, RuntimeError, RecursionError) as error:
        raise OutputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _read_json(path: Path, shape: Shape) -> Any:
    value = json.loads(path.read_text())
    check_shape(value, shape)
    return value


def _read_margins(path: Path) -> pd.DataFrame:
    table = pd.read_parquet(path)
    if "margin" not in table or not pd.api.types.is_float_dtype(table["margin"]):
        raise ValueError("column 'margin': expected numbers")
    return table


def _read_posterior(path: Path) -> tuple[dict[str, np.ndarray], list[str], dict[str, Any]]:
    posterior, annotators, diagnostics = read_draws(path)
    if missing := {"mean", "cv"} - posterior.keys():
        raise ValueError(f"variable {min(missing)!r} of group 'posterior' is missing")
    return posterior, annotators, diagnostics
