"""The record of a finished run: what its folder holds, as data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mixdpo_pyro.data.simulation import Truth
from mixdpo_pyro.data.validation import ROW_COLUMN
from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.inference.choices import Choices, agreement, read_choices
from mixdpo_pyro.inference.outcomes import Ties
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.robustness.checks import RobustnessCheck
from mixdpo_pyro.inference.verdict import Verdict
from mixdpo_pyro.io import RUN_FILE
from mixdpo_pyro.models.pyro_models import MeanAnchor
from mixdpo_pyro.reporting.recommendation import Advice
from mixdpo_pyro.reporting.records import read_json, read_record
from mixdpo_pyro.reporting.training_tail import TrainingTail

__all__ = [
    "HISTORY_FILE", "MARGINS_FILE", "POSTERIOR_FILE", "TRAINING_POSTERIOR_FILE", "FinishedRun",
    "LearnedStrength", "RunData", "RunRecord", "columns_of_choices", "finite_values",
]  # fmt: skip

POSTERIOR_FILE = "posterior.nc"

TRAINING_POSTERIOR_FILE = "training_posterior.nc"

MARGINS_FILE = "margins.parquet"

HISTORY_FILE = "log_history.json"

_DISAGREEMENT = (
    "Training and the held-out pairs disagree about cv. Trust the held-out pairs: while a policy "
    "is learning, the errors of its margins hide differences between annotators, and without ids "
    "they look like differences."
)


@dataclass(frozen=True)
class RunData:
    """What a run was trained and evaluated on.

    Attributes:
        source: Name of the dataset.
        train: Number of training pairs.
        test: Number of held-out pairs.
        dropped: Reason -> number of pairs dropped.
        annotator_column: Column of annotator ids, or None.
        has_panels: Whether annotators chose repeatedly among the held-out pairs.
        observation: What the training data hold: `pairs`, `sets`, `rao-kupper`, `davidson` or
            `grades`.
        done: Columns of the margins that say what was done; none for plain pairs.
        held_out: What the held-out choices are, in words.
    """

    source: str
    train: int
    test: int
    dropped: dict[str, int] = field(default_factory=dict)
    annotator_column: str | None = None
    has_panels: bool = False
    observation: str = "pairs"
    done: list[str] = field(default_factory=list)
    held_out: str = ""


@dataclass(frozen=True)
class LearnedStrength:
    """The strength that training learned, at its guide's median; quantiles are those of beta.

    Thresholds of ties or grades by name are in units of strength times margin.
    """

    mean: float
    cv: float
    q05: float
    q95: float
    thresholds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """Content of `run.json`.

    Attributes:
        family: Family of the strength in training; the posterior has its own.
        mean_anchor: Anchoring of the mean in training.
        beta: DPO's beta.
        seed: Seed of the run.
        data: What the run was trained and evaluated on.
        learned: What training learned.
        verdict: The verdict on the held-out pairs; None where the diagnosis failed.
        error_rate: Error rate of the verdict, in plain English.
        advice: What to do, and what different strengths gain; None without a verdict.
        checks: Other explanations of the verdict.
        learn_cv: Whether training learned cv.
        baseline: Another paper's loss that it was trained with, or None.
        failures: What failed after the training, a sentence each.
        notes: What a reader should know about the held-out margins, a sentence each.
        truth: Truth of a simulated world.
        command: The command line.
        versions: Package -> version.
        seconds: Wall time.
    """

    family: str
    mean_anchor: MeanAnchor
    beta: float
    seed: int
    data: RunData
    learned: LearnedStrength
    verdict: Verdict | None
    error_rate: str = ""
    advice: Advice | None = None
    checks: list[RobustnessCheck] = field(default_factory=list)
    learn_cv: bool = True
    baseline: str | None = None
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    truth: Truth | None = None
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def not_learned(self) -> str | None:
        """Why training learned no cv, as a sentence; None where it did."""
        if self.family == "fixed":
            return "Plain DPO learns no strength."
        return None if self.learn_cv else "Training kept cv where it started (learn_cv: false)."


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder holds.

    Attributes:
        folder: The folder.
        record: Content of `run.json`.
        history: The Trainer's log history.
        margins: Held-out margins, one row per pair.
        posterior: Posterior of the strength given the held-out pairs; its draws are not numbers
            where the diagnosis failed.
        training: Draws from the guide that training learned.
    """

    folder: Path
    record: RunRecord
    history: list[dict[str, Any]]
    margins: pd.DataFrame
    posterior: Posterior
    training: Posterior

    @classmethod
    def load(cls, folder: str | Path) -> "FinishedRun":
        """Read a run folder.

        Raises:
            OutputError: Naming the file that is missing or damaged.
        """
        folder = Path(folder)
        record = read_record(RunRecord, folder / RUN_FILE)
        point = np.full(2, np.nan)
        unknown = Posterior(point, point, "lognormal", method="none") if record.failures else None
        no_margins = pd.DataFrame({"margin": [], ROW_COLUMN: []}) if record.failures else None
        posterior = _read(folder / POSTERIOR_FILE, Posterior.load, unknown)
        return cls(
            folder=folder,
            record=record,
            history=read_json(folder / HISTORY_FILE, list[dict[str, Any]]),
            margins=_read(folder / MARGINS_FILE, _read_margins, no_margins),
            posterior=posterior,
            training=_read(folder / TRAINING_POSTERIOR_FILE, Posterior.load, unknown),
        )

    @cached_property
    def reward_slope(self) -> float | None:
        """Policy margin per unit of true reward (simulated worlds): a line through the origin."""
        if "reward_margin" not in self.margins or self.record.truth is None:
            return None
        margin, reward = self.margins["margin"], self.margins["reward_margin"]
        return float((margin * reward).sum() / (reward**2).sum())

    @cached_property
    def disagreement(self) -> str | None:
        """A warning where the 90% intervals of cv, training and held-out, are disjoint."""
        if self.record.not_learned or self.record.verdict is None:
            return None
        low, high = self.posterior.interval("cv")
        other_low, other_high = self.training.interval("cv")
        return _DISAGREEMENT if other_low > high or other_high < low else None

    @property
    def attenuated_cv(self) -> tuple[float, float, float] | None:
        """5%, 50% and 95% quantile of cv with exact margins, where the posterior has errors."""
        if self.posterior.margin_error is None:
            return None
        for check in self.record.checks:
            if "attenuated cv, median" in check.numbers:
                low, middle, high = (
                    check.numbers[f"attenuated cv, {end}"] for end in ("5%", "median", "95%")
                )
                return low, middle, high
        return None

    @cached_property
    def held_out_choices(self) -> Choices | None:
        """The held-out choices where they are not plain pairs, and their margins are usable."""
        data, margin = self.record.data, self.margins["margin"].to_numpy(np.float64)
        if not data.done or not len(margin) or not np.isfinite(margin).all():
            return None
        ties: Ties = "davidson" if data.observation == "davidson" else "rao-kupper"
        return read_choices(margin, **columns_of_choices(self.margins, data.done), ties=ties)

    @cached_property
    def pair_margins(self) -> np.ndarray | None:
        """Finite margins of the chosen over the other response; None where there are no pairs."""
        if self.held_out_choices is None:
            return finite_values(self.margins["margin"])
        return self.held_out_choices.margin if self.held_out_choices.outcomes is None else None

    @cached_property
    def agrees(self) -> np.ndarray:
        """Whether each held-out choice agrees with its margins; ties of either count one half.

        Of a set, whether the response with the largest margin was chosen. Margins of pairs that
        are not finite are dropped.
        """
        if self.pair_margins is not None:
            return agreement(self.pair_margins)
        assert self.held_out_choices is not None
        return self.held_out_choices.agrees

    @cached_property
    def chance(self) -> float:
        """Share of choices that would agree with margins that say nothing."""
        if self.held_out_choices is None or self.held_out_choices.outcomes is None:
            return 0.5
        outcomes = self.held_out_choices.outcomes
        return float((1 / outcomes.sizes).mean()) if outcomes.are_sets else 0.5

    @cached_property
    def accuracy(self) -> float:
        """Share of held-out choices that agree with their margins; not a number without any."""
        return float(self.agrees.mean()) if len(self.agrees) else math.nan

    @cached_property
    def tail(self) -> TrainingTail:
        """The logged training, and its last third."""
        return TrainingTail.of_history(self.history)

    @property
    def guide_interval(self) -> tuple[float, float] | None:
        """The 90% interval of cv under the guide of training; None where it is a point."""
        draws = self.training.cv
        if not np.isfinite(draws).all() or np.ptp(draws) == 0:
            return None
        return self.training.interval("cv")


def columns_of_choices(margins: pd.DataFrame, done: Sequence[str]) -> dict[str, Any]:
    """What was done, as `read_choices` and `diagnose_choices` take it.

    Args:
        margins: A table of margins.
        done: Its columns that say what was done: `choice_set`, `rank`, `outcome`, `grade`.
    """
    return {"outcome" if name == "grade" else name: margins[name] for name in done}


def finite_values(values: Any) -> np.ndarray:
    """The finite values, as float64."""
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _read(path: Path, reader: Any, missing: Any) -> Any:
    if not path.is_file() and missing is not None:
        return missing
    if not path.is_file():
        raise OutputError(f"{path}: missing; is '{path.parent}' the folder of a finished run?")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, RuntimeError, RecursionError) as error:
        raise OutputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _read_margins(path: Path) -> pd.DataFrame:
    table = pd.read_parquet(path)
    if "margin" not in table or not pd.api.types.is_float_dtype(table["margin"]):
        raise ValueError("column 'margin': expected numbers")
    return table
