"""Everything that a training depends on, so that a resumed one goes on with the same."""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import AutoConfig

from mixdpo_pyro.data.validation import ROW_COLUMN, TEXT_COLUMNS
from mixdpo_pyro.errors import ConfigError, OutputError
from mixdpo_pyro.io.integrity import hash_files
from mixdpo_pyro.reporting.records import read_record, write_record
from mixdpo_pyro.workflows.run_config import TrainPlan

__all__ = ["INPUTS_FILE", "MAY_CHANGE", "TrainingInputs", "settle_inputs"]

INPUTS_FILE = "training_inputs.json"

MAY_CHANGE = frozenset(
    {
        # Where things are: their content decides.
        "dataset_name", "datasets", "dataset_config", "reader", "model_name_or_path",
        "model_revision", "pseudonymise", "pseudonymise_columns",
        "output_dir", "overwrite", "resume", "resume_from_checkpoint", "reference_cache_dir",
        # What is shown, saved and evaluated on the way.
        "disable_tqdm", "report_to", "run_name", "project", "per_device_eval_batch_size",
        "prediction_loss_only", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval",
        "group_column", "bootstrap_samples", "push_to_hub", "skip_memory_metrics", "debug",
        "do_train", "do_eval", "do_predict", "enable_jit_checkpoint",
        # Where and how it is computed, with the same result.
        "use_cpu", "local_rank", "dataset_num_proc", "dataloader_num_workers",
        "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context", "precompute_ref_batch_size", "activation_offloading",
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
        "activation_checkpointing_kwargs", "torch_empty_cache_steps",
    }
)  # fmt: skip
"""Keys that may differ when a run is resumed, with those of `_MAY_CHANGE_TOO`."""

_MAY_CHANGE_TOO = ("logging_", "log_", "save_", "eval_", "include_", "hub_", "ddp_", "trackio_")

_LENGTH = ("num_train_epochs", "max_steps")
"""May change where the learning rate does not depend on it."""

_MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt", ".py")

_SHOWN = 12  # digits of a hash in a message


@dataclass(frozen=True)
class TrainingInputs:
    """Content of `training_inputs.json`: hashes, but no texts and no ids.

    Attributes:
        training_pairs: Hash of the training pairs, in their order, with annotators and
            what they did.
        held_out_pairs: Hash of the held-out pairs.
        model: Hash of the model's files, tokenizer included; name and commit of one from the hub.
        processes: Number of processes.
        options: Every other key that the result depends on.
    """

    training_pairs: str
    held_out_pairs: str
    model: str
    processes: int
    options: dict[str, Any]

    @classmethod
    def of(
        cls, plan: TrainPlan, train: Dataset | IterableDataset, test: Dataset
    ) -> "TrainingInputs":
        """What the plan and its data say."""
        training = plan.training
        named = (training.annotator_column, *training.choice_columns().names)
        columns = (*TEXT_COLUMNS, ROW_COLUMN, "tools", "chat_template_kwargs")
        wanted = [*columns, *(name for name in named if name is not None)]
        return cls(
            training_pairs=_hash_training_pairs(train, plan, wanted),
            held_out_pairs=_hash_rows(test, wanted),
            model=_digest_model(str(plan.model.model_name_or_path), plan.model.model_revision),
            processes=training.world_size,
            options=_options(plan),
        )

    def differences(self, earlier: "TrainingInputs") -> list[str]:
        """Each key that differs from an earlier run's, with both values."""
        names = {f.name for f in fields(self)} - {"options"}
        found = {name.replace("_", " "): (getattr(earlier, name), getattr(self, name))
                 for name in sorted(names)}  # fmt: skip
        keys = self.options | earlier.options
        found = {k: (earlier.options.get(k), self.options.get(k)) for k in keys} | found
        return [
            f"{key} was {_shown(old)} and is {_shown(new)}"
            for key, (old, new) in found.items()
            if old != new
        ]


def settle_inputs(inputs: TrainingInputs, folder: Path, has_checkpoint: bool) -> None:
    """Keep what a run depends on beside its checkpoints, or compare it with what is kept there.

    Args:
        inputs: What the run depends on.
        folder: The run's working folder.
        has_checkpoint: Whether it goes on from a checkpoint.

    Raises:
        ConfigError: If it goes on from a checkpoint of a run that depended on something else.
        OutputError: If nothing says what the checkpoint depended on.
    """
    path = folder / INPUTS_FILE
    if has_checkpoint and not path.is_file():
        raise OutputError(
            f"{folder}: holds checkpoints without {INPUTS_FILE}, which says what they belong to; "
            "add --overwrite to start again"
        )
    if has_checkpoint and (found := inputs.differences(read_record(TrainingInputs, path))):
        raise ConfigError(
            f"resume: {folder} was begun with something else: {'; '.join(found)}. Logging, "
            "saving, evaluation and devices may change; otherwise start again with --overwrite"
        )
    write_record(inputs, path)


def _options(plan: TrainPlan) -> dict[str, Any]:
    rate, warmup = plan.training.lr_scheduler_type, plan.training.warmup_steps
    is_constant = rate == "constant" or (rate == "constant_with_warmup" and not 0 < warmup < 1)
    kept = {
        field.name: getattr(part, field.name)
        for part in (plan.run, plan.training, plan.model)
        for field in fields(part)
        if field.name not in MAY_CHANGE
        and not field.name.startswith(_MAY_CHANGE_TOO)
        and not (is_constant and field.name in _LENGTH)
    }
    return json.loads(json.dumps(kept, default=str, sort_keys=True))


def _hash_training_pairs(
    pairs: Dataset | IterableDataset, plan: TrainPlan, columns: list[str]
) -> str:
    """Hash of their content; of a stream, which is read once, of the names of its sources."""
    if isinstance(pairs, Dataset):
        return _hash_rows(pairs, columns)
    run = plan.run
    names = [run.dataset_name, run.dataset_config, run.dataset_train_split, run.datasets]
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()


def _hash_rows(pairs: Dataset, columns: list[str]) -> str:
    digest = hashlib.sha256()
    present = [name for name in dict.fromkeys(columns) if name in pairs.column_names]
    for batch in pairs.select_columns(present).iter(batch_size=1000):
        digest.update(json.dumps(batch, default=str, sort_keys=True).encode())
    return digest.hexdigest()


def _digest_model(name: str, revision: str) -> str:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        try:
            config = AutoConfig.from_pretrained(name, revision=revision)
        except (OSError, ValueError):  # said where the model is loaded
            return f"{name}@{revision}"
        return f"{name}@{getattr(config, '_commit_hash', None) or revision}"
    return hash_files(path for path in folder.iterdir() if path.suffix in _MODEL_FILES)


def _shown(value: Any) -> str:
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:_SHOWN] if is_hash else repr(value)
