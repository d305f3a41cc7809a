"""One run from pairs to report: train policy and strength, score held-out pairs, write it down."""

import time
from pathlib import Path

import yaml
from datasets import Dataset, IterableDataset
from trl import ModelConfig, get_peft_config, get_quantization_config

from mixdpo_pyro.config_fields import check_positive
from mixdpo_pyro.data.simulation import Truth
from mixdpo_pyro.data.validation import TEXT_COLUMNS
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.io.integrity import find_model_fault
from mixdpo_pyro.margins.provenance import write_training_responses
from mixdpo_pyro.progress.screen import show_stage
from mixdpo_pyro.training.checkpoints import last_whole_checkpoint
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.progress import train_with_progress
from mixdpo_pyro.training.trainer import MixDPOTrainer
from mixdpo_pyro.workflows.results import RESULT_COLUMNS, RunResults
from mixdpo_pyro.workflows.run_config import TrainPlan
from mixdpo_pyro.workflows.run_data import RunPairs, load_run_pairs
from mixdpo_pyro.workflows.training_inputs import TrainingInputs, settle_inputs

__all__ = ["execute_run"]

_MIN_PAIRS = 2
"""Margins of one pair have no spread, and mean and cv of the strength cannot be told apart."""


def execute_run(
    plan: TrainPlan, folder: Path, command: str = "", truth: Truth | None = None
) -> dict[str, Exception]:
    """Train, fit the held-out pairs, and write every result into `folder`.

    The folder then holds `policy/` (weights, tokenizer, strength), `posterior.nc`,
    `margins.parquet`, `log_history.json`, `config.yaml`, `training_responses.parquet`, `run.json`,
    `report.html` and `figures/`.
    The policy comes first: whatever fails after the training leaves it whole, and is named in
    `run.json` and the report.

    Under `torchrun` or `accelerate launch` every process calls it; the main one writes.

    Args:
        plan: What is asked for.
        folder: An existing folder, see :func:`~mixdpo_pyro.io.staging.staged_folder`.
        command: Command line to show in the report.
        truth: Truth of a simulated world to compare with.

    Returns:
        Part that failed after the training -> its error, see `raise_failures`.
    """
    started = time.monotonic()
    training = plan.training
    is_main = training.process_index == 0
    _check_plan(plan)
    training.output_dir = str(folder)
    training.push_to_hub = False  # all of the folder, with its ids: see `workflows.hub`
    training.disable_tqdm = bool(plan.given.get("disable_tqdm", False))
    show_stage("Reading the pairs")
    data = load_run_pairs(plan.run, training)
    _check_enough(data.train, data.test, "test_fraction")
    checkpoint = last_whole_checkpoint(folder, training.world_size) if plan.run.resume else None
    if is_main:
        inputs = TrainingInputs.of(plan, data.train, data.test)
        settle_inputs(inputs, folder, checkpoint is not None)
        given = {key: value for key, value in plan.given.items() if key != "hub_token"}
        (folder / "config.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
        if isinstance(data.train, Dataset):  # what a stream holds is not known before
            write_training_responses(data.train, plan.model.model_name_or_path, folder)

    is_streamed = isinstance(data.train, IterableDataset)
    pairs = "a stream of pairs" if is_streamed else f"{len(data.train):,} pairs"
    show_stage(f"Training on {pairs} ({training.family} strength)")
    trainer = _build_trainer(training, plan.model, data)
    train_with_progress(trainer, checkpoint)
    _save_policy(trainer, folder / "policy")

    show_stage(f"Scoring {len(trainer.eval_dataset):,} held-out pairs")
    results = RunResults(trainer, data.test, data.dropped, plan, folder)
    results.attempt("model card", lambda: _write_card(trainer, folder / "policy"))
    results.attempt("margins", results.score)
    if is_main:
        results.write_all(command, truth, started)
    return results.failures


def _check_plan(plan: TrainPlan) -> None:
    """Refuse what would train nothing, or leave nothing to report on.

    Raises:
        ConfigError: Naming the key.
    """
    training = plan.training
    length = "num_train_epochs" if training.max_steps == -1 else "max_steps"
    for name in ("learning_rate", length):
        check_positive(name, getattr(training, name))
    taken = {*TEXT_COLUMNS, *RESULT_COLUMNS}
    if (column := training.annotator_column) in taken:
        raise ConfigError(
            f"annotator_column: '{column}' holds texts or results, not annotator ids"
        )
    for key in ("choice_set_column", "rank_column", "outcome_column", "grade_column"):
        if (column := getattr(training, key)) in taken:
            raise ConfigError(f"{key}: '{column}' holds texts or results, not what was done")


def _build_trainer(training: MixDPOConfig, model: ModelConfig, data: RunPairs) -> MixDPOTrainer:
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
    _check_enough(trainer.train_dataset, trainer.eval_dataset, "max_length")
    return trainer


def _check_enough(train: Dataset | IterableDataset, test: Dataset, key: str) -> None:
    for name, pairs in {"training": train, "held-out": test}.items():
        if isinstance(pairs, Dataset) and (count := len(pairs)) < _MIN_PAIRS:
            raise DataError(
                f"{key}: {count or 'no'} {name} pair is left to use, and it takes {_MIN_PAIRS}; "
                "change it, or give more pairs"
            )


def _save_policy(trainer: MixDPOTrainer, folder: Path) -> None:
    """Weights, tokenizer and strength; not the Trainer's own pickle of its arguments."""
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)


def _write_card(trainer: MixDPOTrainer, folder: Path) -> None:
    if trainer.is_world_process_zero():
        trainer.hub_model_id = trainer.args.hub_model_id  # for the card's example
        trainer.create_model_card(model_name=folder.parent.name.removesuffix(".partial"))
        (Path(trainer.args.output_dir) / "README.md").replace(folder / "README.md")
