"""One run from pairs to report: train policy and strength, ask held-out pairs, write it down."""

import importlib.metadata
import platform
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from datasets import Dataset
from trl import ModelConfig, get_peft_config, get_quantization_config

from mixdpo_pyro.data.loading import load_preferences
from mixdpo_pyro.data.simulation import Truth
from mixdpo_pyro.data.splitting import drop_held_out, split_pairs
from mixdpo_pyro.data.validation import ROW_COLUMN, PreferenceData
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.inference import save_arviz, to_arviz
from mixdpo_pyro.inference.diagnosis import Diagnosis, diagnose_choices
from mixdpo_pyro.io import RUN_FILE, write_json, written_whole
from mixdpo_pyro.io.integrity import find_model_fault
from mixdpo_pyro.progress import show_stage
from mixdpo_pyro.reporting.records import write_record
from mixdpo_pyro.reporting.run_record import (
    HISTORY_FILE,
    MARGINS_FILE,
    POSTERIOR_FILE,
    TRAINING_POSTERIOR_FILE,
    LearnedStrength,
    RunData,
    RunRecord,
)
from mixdpo_pyro.reporting.run_report import write_report
from mixdpo_pyro.training.checkpoints import last_whole_checkpoint
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.progress import train_with_progress
from mixdpo_pyro.training.trainer import MixDPOTrainer
from mixdpo_pyro.workflows.run_config import RunConfig, TrainPlan

__all__ = ["execute_run"]

_REPORTED_PACKAGES = (
    "mixdpo-pyro", "torch", "pyro-ppl", "transformers", "trl", "peft", "datasets", "accelerate",
    "arviz-base",
)  # fmt: skip


@dataclass(frozen=True)
class _SplitPairs:
    """Pairs to train on and held-out pairs, with what was left out of them."""

    train: Dataset
    test: Dataset
    dropped: dict[str, int]


def execute_run(
    plan: TrainPlan, folder: Path, command: str = "", truth: Truth | None = None
) -> None:
    """Train, fit the held-out pairs, and write every result into `folder`.

    The folder then holds `policy/` (weights, tokenizer, strength), `posterior.nc`,
    `margins.parquet`, `log_history.json`, `config.yaml`, `run.json`, `report.html` and `figures/`.

    Under `torchrun` or `accelerate launch` every process calls it; the main one writes.

    Args:
        plan: What is asked for.
        folder: An existing folder, see :func:`~mixdpo_pyro.io.staging.staged_folder`.
        command: Command line to show in the report.
        truth: Truth of a simulated world to compare with.
    """
    started = time.monotonic()
    training = plan.training
    is_main = training.process_index == 0
    training.output_dir = str(folder)
    training.push_to_hub = False  # all of the folder, with its ids: see `workflows.hub`
    training.disable_tqdm = bool(plan.given.get("disable_tqdm", False))
    if is_main:
        given = {key: value for key, value in plan.given.items() if key != "hub_token"}
        (folder / "config.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    show_stage("Reading the pairs")
    data = _load_pairs(plan.run, training)

    show_stage(f"Training on {len(data.train):,} pairs ({training.family} strength)")
    trainer = _build_trainer(training, plan.model, data)
    checkpoint = last_whole_checkpoint(folder, training.world_size) if plan.run.resume else None
    train_with_progress(trainer, checkpoint)
    _save_policy(trainer, folder / "policy")

    show_stage(f"Asking {len(trainer.eval_dataset):,} held-out pairs")
    margins = _held_out_margins(trainer, data)
    if not is_main:
        return
    write_json(_finite_entries(trainer.state.log_history), folder / HISTORY_FILE)
    with written_whole(folder / MARGINS_FILE) as temporary:
        margins.to_parquet(temporary, index=False)
    trainer.strength.posterior(seed=training.seed).save(folder / TRAINING_POSTERIOR_FILE)
    diagnosis = _diagnose_margins(margins, training)
    result = diagnosis.result
    save_arviz(to_arviz(result), folder / POSTERIOR_FILE)
    dropped = sum(map(Counter, trainer.dropped.values()), Counter(data.dropped))
    record = RunRecord(
        family=training.family,
        mean_anchor=training.mean_anchor,
        beta=training.beta,
        seed=training.seed,
        data=RunData(
            source=plan.given["dataset_name"],
            train=len(trainer.train_dataset),
            test=len(margins),
            dropped=dict(dropped),
            annotator_column=training.annotator_column,
            has_panels=result.choices.has_panels,
        ),
        learned=LearnedStrength(**trainer.strength.summary()),
        verdict=diagnosis.verdict,
        error_rate=diagnosis.error_rate,
        checks=diagnosis.checks,
        truth=truth,
        command=command,
        versions=_versions(),
        seconds=round(time.monotonic() - started, 1),
    )
    write_record(record, folder / RUN_FILE)
    show_stage("Writing the report")
    write_report(folder)


def _load_pairs(run: RunConfig, training: MixDPOConfig) -> _SplitPairs:
    """Training and held-out pairs; without a named column, `annotator` is taken where it is."""
    train = _load_split(run, run.dataset_train_split, run.max_pairs, training)
    training.annotator_column = train.annotator_column
    if run.dataset_test_split is None:
        parts = split_pairs(
            train.pairs, run.test_fraction, training.seed, train.annotator_column,
            run.test_split_by,
        )  # fmt: skip
        shared = Counter(
            {"training pairs with a held-out prompt": len(train.pairs) - sum(map(len, parts))}
        )
        return _SplitPairs(*parts, dict(Counter(train.dropped) + shared))
    test = _load_split(run, run.dataset_test_split, None, training)
    kept = drop_held_out(train.pairs, test.pairs)
    dropped = Counter(train.dropped) + Counter(test.dropped)
    dropped += Counter({"training pairs that are held out too": len(train.pairs) - len(kept)})
    if not len(kept):
        raise DataError(f"{train.source}: every training pair is in the held-out split too")
    return _SplitPairs(kept, test.pairs, dict(dropped))


def _load_split(
    run: RunConfig, split: str, max_rows: int | None, training: MixDPOConfig
) -> PreferenceData:
    return load_preferences(
        run.dataset_name,
        split=split,
        config=run.dataset_config,
        annotator_column=training.annotator_column,
        max_rows=max_rows,
        seed=training.seed,
        reader=run.reader,
    )


def _build_trainer(training: MixDPOConfig, model: ModelConfig, data: _SplitPairs) -> MixDPOTrainer:
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    if fault := find_model_fault(Path(model.model_name_or_path).expanduser()):
        raise ConfigError(f"model_name_or_path: {fault}")
    try:
        trainer = MixDPOTrainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=data.train,
            eval_dataset=data.test,
            peft_config=get_peft_config(model),
            quantization_config=get_quantization_config(model),
        )
    except OSError as error:
        if error.errno is not None:  # a disk, not a name
            raise
        first_line = f"{error}\n".splitlines()[0]
        raise ConfigError(f"model_name_or_path: {first_line}") from error
    for name, part in {
        "training": trainer.train_dataset,
        "held-out": trainer.eval_dataset,
    }.items():
        if len(part) == 0:
            raise DataError(f"max_length: no {name} pair is left whose prompt is shorter")
    return trainer


def _save_policy(trainer: MixDPOTrainer, folder: Path) -> None:
    """Weights, tokenizer, strength and card; not the Trainer's own pickle of its arguments."""
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)
        trainer.hub_model_id = trainer.args.hub_model_id  # for the card's example
        trainer.create_model_card(model_name=folder.parent.name.removesuffix(".partial"))
        (Path(trainer.args.output_dir) / "README.md").replace(folder / "README.md")


def _finite_entries(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log without what is not finite, such as the gradient of a step that fp16 skipped."""
    return [{name: v for name, v in entry.items() if np.isfinite(v)} for entry in history]


def _held_out_margins(trainer: MixDPOTrainer, data: _SplitPairs) -> pd.DataFrame:
    """Margins of the trained policy with the columns of the source, but for the texts."""
    margins = pd.DataFrame(trainer.margins())
    texts = {"prompt", "chosen", "rejected"}
    columns = [name for name in data.test.column_names if name not in texts]
    source = data.test.select_columns(columns).to_pandas()
    return margins.merge(source, on=ROW_COLUMN, suffixes=("", "_source"))


def _diagnose_margins(margins: pd.DataFrame, training: MixDPOConfig) -> Diagnosis:
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
        family="lognormal" if training.family == "fixed" else training.family,
        seed=training.seed,
    )


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _REPORTED_PACKAGES}
    return {"python": platform.python_version(), **versions}
