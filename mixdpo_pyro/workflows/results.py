"""What follows a finished training: margins, diagnosis, record and report, each for itself."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from mixdpo_pyro.data.simulation import Truth
from mixdpo_pyro.data.validation import ROW_COLUMN, TEXT_COLUMNS
from mixdpo_pyro.diagnosis.diagnosing import data_notes
from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.inference import save_arviz, to_datatree
from mixdpo_pyro.inference.diagnosis import Diagnosis, diagnose_choices
from mixdpo_pyro.io import RUN_FILE, write_json, written_whole
from mixdpo_pyro.io.environment import package_versions
from mixdpo_pyro.margins.sequences import judged_columns, short_hash
from mixdpo_pyro.margins.table import TRAINED_ON
from mixdpo_pyro.progress.screen import show_stage
from mixdpo_pyro.reporting.recommendation import advise
from mixdpo_pyro.reporting.records import write_record
from mixdpo_pyro.reporting.run_record import (
    HISTORY_FILE,
    MARGINS_FILE,
    POSTERIOR_FILE,
    TRAINING_POSTERIOR_FILE,
    LearnedStrength,
    RunData,
    RunRecord,
    columns_of_choices,
)
from mixdpo_pyro.reporting.run_report import write_report
from mixdpo_pyro.training.batches.choices import what_was_done
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.trainer import MixDPOTrainer
from mixdpo_pyro.workflows.run_config import TrainPlan

__all__ = ["RESULT_COLUMNS", "RunResults", "raise_failures"]

RESULT_COLUMNS = (ROW_COLUMN, "margin", "chosen_tokens", "rejected_tokens", TRAINED_ON)
"""Columns of `margins.parquet` that are the run's, whatever the data call theirs."""

logger = logging.getLogger(__name__)


@dataclass
class RunResults:
    """The results of a trained policy; a part that fails is kept, and the rest goes on.

    Attributes:
        trainer: The trainer, its policy trained.
        test: Held-out pairs, with all columns of the source.
        dropped: Reason -> number of pairs dropped before training.
        plan: What was asked for.
        folder: The run's working folder.
        margins: Held-out margins, once they are scored.
        done: Columns of `margins` that say what was done; none for plain pairs.
        diagnosis: What they say, once they are diagnosed.
        failures: Part that failed -> its error.
    """

    trainer: MixDPOTrainer
    test: Dataset
    dropped: dict[str, int]
    plan: TrainPlan
    folder: Path
    margins: pd.DataFrame = field(default_factory=pd.DataFrame)
    done: list[str] = field(default_factory=list)
    diagnosis: Diagnosis | None = None
    failures: dict[str, Exception] = field(default_factory=dict)

    def attempt(self, part: str, work: Callable[[], Any]) -> None:
        """Do a part of the work; its error is shown, and kept."""
        try:
            work()
        except Exception as error:
            self.failures[part] = error
            logger.error("%s", _sentences({part: error})[0])

    def score(self) -> None:
        """Margins of the policy with the columns of the source, but for the texts.

        What was done stands in the columns that a table of margins has for it.
        """
        given = self.plan.training.choice_columns()
        done = what_was_done(self.trainer.eval_dataset, given)
        self.done = list(done)
        scored = self.trainer.margins() | {TRAINED_ON: False}  # held out with their responses
        margins = pd.DataFrame(scored).assign(**done)
        columns = [
            name
            for name in self.test.column_names
            if name not in TEXT_COLUMNS and not (name in done and name in given.names)
        ]
        source = (
            self.test.select_columns(columns).to_pandas().assign(**_what_was_judged(self.test))
        )
        self.margins = margins.merge(source, on=ROW_COLUMN, suffixes=("", "_source"))

    def write_all(self, command: str, truth: Truth | None, started: float) -> None:
        """Write everything but the policy, of the main process."""
        history = self.trainer.state.log_history
        write_json(_finite_entries(history), self.folder / HISTORY_FILE)
        self.attempt("posterior of training", self._save_training_posterior)
        if "margins" not in self.failures:
            self.attempt("table of margins", self._save_margins)
            self.attempt("diagnosis", self._diagnose)
        self._write_record(command, truth, started)
        show_stage("Writing the report")
        self.attempt("report", lambda: write_report(self.folder))
        if "report" in self.failures:
            self._write_record(command, truth, started)

    def _save_training_posterior(self) -> None:
        learned = self.trainer.strength.posterior(seed=self.plan.training.seed)
        learned.save(self.folder / TRAINING_POSTERIOR_FILE)

    def _save_margins(self) -> None:
        with written_whole(self.folder / MARGINS_FILE) as temporary:
            self.margins.to_parquet(temporary, index=False)

    def _diagnose(self) -> None:
        diagnosis = _diagnose_margins(self.margins, self.plan.training, self.done)
        save_arviz(to_datatree(diagnosis.allowing_for_errors), self.folder / POSTERIOR_FILE)
        self.diagnosis = diagnosis

    def _write_record(self, command: str, truth: Truth | None, started: float) -> None:
        trainer, training, found = self.trainer, self.plan.training, self.diagnosis
        dropped = sum(map(Counter, trainer.dropped.values()), Counter(self.dropped))
        record = RunRecord(
            family=training.family,
            mean_anchor=training.mean_anchor,
            beta=training.beta,
            seed=training.seed,
            data=RunData(
                source=self.plan.given.get("dataset_name") or self.plan.run.source,
                train=_num_trained(trainer),
                test=len(trainer.eval_dataset),
                dropped=dict(dropped),
                annotator_column=training.annotator_column,
                has_panels=found is not None and found.choices.has_panels,
                observation=trainer.strength.config.observation,
                done=self.done,
                held_out="" if found is None else found.choices.describe(),
            ),
            learned=LearnedStrength(
                **trainer.strength.summary(), thresholds=trainer.strength.thresholds()
            ),
            verdict=found.verdict if found else None,
            error_rate=found.error_rate if found else "",
            advice=advise(found) if found else None,
            checks=found.checks if found else [],
            learn_cv=training.learn_cv,
            baseline=training.baseline,
            failures=_sentences(self.failures),
            notes=data_notes(found, self.margins[ROW_COLUMN].to_numpy()) if found else [],
            truth=truth,
            command=command,
            versions=package_versions(),
            seconds=round(time.monotonic() - started, 1),
        )
        write_record(record, self.folder / RUN_FILE)


def _num_trained(trainer: MixDPOTrainer) -> int:
    """Number of training pairs; of a stream, of those that were read."""
    if isinstance(trainer.train_dataset, Dataset):
        return len(trainer.train_dataset)
    args = trainer.args
    pairs_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return trainer.state.global_step * pairs_a_step


def raise_failures(failures: dict[str, Exception], output: Path) -> None:
    """Raise what failed after a training whose folder has its name by now.

    Raises:
        OutputError: Naming the parts, and where the policy is; from the first error.
    """
    if failures:
        raise OutputError(
            f"{output / 'policy'}: the policy is whole. {' '.join(_sentences(failures))} "
            f"'mixdpo diagnose {output / MARGINS_FILE}' or 'mixdpo report {output}' tries again"
        ) from next(iter(failures.values()))


def _sentences(failures: dict[str, Exception]) -> list[str]:
    return [
        f"The {part} failed: {' '.join(str(error).split())} ({type(error).__name__})."
        for part, error in failures.items()
    ]


def _finite_entries(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log without what is not finite, such as the gradient of a step that fp16 skipped."""
    return [{name: v for name, v in entry.items() if np.isfinite(v)} for entry in history]


def _what_was_judged(pairs: Dataset) -> dict[str, np.ndarray]:
    """Hashes of both responses with their prompt, and of the pair, as `mixdpo margins` writes."""
    prompts = pairs["prompt"] if "prompt" in pairs.column_names else [None] * len(pairs)
    hashes = [
        [
            short_hash(json.dumps([prompt, response], sort_keys=True).encode())
            for prompt, response in zip(prompts, pairs[name], strict=True)
        ]
        for name in ("chosen", "rejected")
    ]
    return judged_columns(np.array(hashes).T)


def _diagnose_margins(
    margins: pd.DataFrame, training: MixDPOConfig, done: Sequence[str] = ()
) -> Diagnosis:
    """Posterior of the strength given the margins, and what it says. Plain DPO is lognormal.

    The mean's prior stands around the one strength that fits the held-out pairs best, whatever
    the mean's anchor in training: the scale of a policy's margins is its own, and a prior that
    contradicts it would look like differences in strength.
    """
    column = training.annotator_column
    ids = None if column is None else margins[column].to_numpy()
    return diagnose_choices(
        margins["margin"].to_numpy(np.float64),
        annotator=None if ids is None or len(set(ids)) < 2 else ids,
        **columns_of_choices(margins, done),
        **{name: margins[name].to_numpy() for name in ("pair", "response_a", "response_b")},
        ties="davidson" if training.ties == "davidson" else "rao-kupper",
        family="lognormal" if training.family == "fixed" else training.family,
        length=(margins["chosen_tokens"] - margins["rejected_tokens"]).to_numpy(np.float64),
        seed=training.seed,
    )
