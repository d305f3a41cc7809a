"""MixDPO as a subclass of `trl.DPOTrainer`: the policy and the strength of preference, jointly.

TRL prepares the data, runs the policy and the reference, and logs; this class replaces the loss by
the Pyro objective of :mod:`mixdpo_pyro.inference` on the margins that TRL computed
(Imai et al. 2026, arXiv 2601.06180).
"""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from trl.trainer.utils import create_model_from_path, get_config_model_id

from mixdpo_pyro.data.validation import ROW_COLUMN
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.margins.weights import (
    TELL_ALL,
    load_quietly,
    refuse_missing,
    refuse_not_finite,
)
from mixdpo_pyro.training.batches.choices import (
    CHOICE_CODE,
    CHOICE_INDEX,
    ChoiceKind,
    ChoiceReader,
    check_one_annotator,
    check_room,
    number_shared_pairs,
)
from mixdpo_pyro.training.batches.collator import KEPT_COLUMNS, KeepColumns
from mixdpo_pyro.training.batches.distinct_rows import distinct_rows_only
from mixdpo_pyro.training.batches.numbering import (
    ANNOTATOR_INDEX,
    GROUP_INDEX,
    PAIR_INDEX,
    number_stream,
    number_values,
)
from mixdpo_pyro.training.batches.sampler import AnnotatorBlockSampler, ChoiceBatchSampler
from mixdpo_pyro.training.checkpoints import last_whole_checkpoint
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.filtering import drop_unusable
from mixdpo_pyro.training.group_metrics import decisive_rows, evaluate_groups
from mixdpo_pyro.training.losses.observed import Done, signs
from mixdpo_pyro.training.losses.trl_batch import TRLBatch
from mixdpo_pyro.training.model_card import PAPER, append_strength
from mixdpo_pyro.training.reference_cache import (
    Fingerprint,
    ReferenceCache,
    default_cache_folder,
    hash_parameters,
    hash_tokens,
)
from mixdpo_pyro.training.strength.dpo_mixin import DPOStrengthMixin

__all__ = ["MixDPOTrainer"]

logger = logging.getLogger(__name__)

_BLOCK_SIZE = 8
"""Pairs of one annotator in a block, where whole panels are not kept and no size is given."""


class MixDPOTrainer(DPOStrengthMixin):
    """`trl.DPOTrainer` whose strength of preference is a random variable.

    It takes the arguments of `trl.DPOTrainer`; `args` is a :class:`MixDPOConfig`. Metrics keep
    TRL's names; `rewards/*` use the current mean strength, and `strength/mean`, `strength/cv`,
    `strength/q05`, `strength/q95` describe the learned distribution (mean, coefficient of
    variation and quantiles of beta at the guide's median). Checkpoints hold the strength beside
    the policy.

    Evaluation adds accuracies and mean margins over pairs (`eval_micro/*`), and with a
    `group_column` over groups (`eval_macro/*`, `eval_worst_group/*`), with 90% bootstrap
    intervals. With `precompute_ref_log_probs` the reference's log-probabilities are kept on disk.

    Choices need not be plain pairs: with a `choice_set_column`, `rank_column`, `outcome_column` or
    `grade_column` the loss is the likelihood of the choice from a set, the ranking, the tie or the
    grade, and `strength/threshold`, `strength/nu` or `strength/cut_point_1`, ... are learned too.

    Attributes:
        strength: The :class:`~mixdpo_pyro.training.learned_strength.Strength` that is learned.
        dropped: Name of the dataset -> reason -> number of pairs dropped.
        group_table: Group -> pairs, accuracy and mean margin of the last evaluation.
    """

    data_collator: Any
    train_dataset: Any
    eval_dataset: Any
    _tag_names = ["trl", "dpo", "mixdpo"]  # noqa: RUF012 - the name and form are TRL's
    _name = "MixDPO"
    _paper = PAPER

    def __init__(
        self, model: Any, ref_model: Any = None, args: MixDPOConfig | None = None, **kwargs: Any
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = MixDPOConfig(f"{name.split('/')[-1]}-{self._name}")
        if not isinstance(args, MixDPOConfig):
            raise ConfigError(f"args: expected a MixDPOConfig, got {type(args).__name__}")
        _refuse_merged_adapter(model)
        if isinstance(model, str):
            _refuse_missing_weights(model, args)
        self.dropped: dict[str, dict[str, int]] = {}
        self.group_table: dict[str, dict[str, float]] = {}
        self._evaluated: list[dict[str, Tensor]] = []
        columns = args.choice_columns()
        self._reader = ChoiceReader(columns) if columns.are_given else None
        self._reference_hash: str | None = None
        super().__init__(model, ref_model, args, **kwargs)
        _refuse_merged_adapter(self.model)
        for name, part in {"model": self.model, "ref_model": self.ref_model}.items():
            if part is not None:
                refuse_not_finite(part, name)
        self._shares_strengths = args.annotator_column is not None and args.family != "fixed"
        if self._shares_strengths:
            self.train_dataset = self._with_annotators(self.train_dataset)
        self._groups: list[str] = []
        self.eval_dataset = self._with_groups(self.eval_dataset)
        self.data_collator = KeepColumns(self.data_collator)
        self._kind = self._kind_of_choices()
        self._num_sets: int | None = None
        self._order: AnnotatorBlockSampler | ChoiceBatchSampler | None = None
        self._deals_choices = args.group_by_pair or self._has_sets()
        annotator = None
        if self._has_whole_panels():
            data = self.train_dataset
            self.train_dataset = data.add_column(PAIR_INDEX, np.arange(len(data)))
            annotator = np.asarray(data[ANNOTATOR_INDEX][:])
        self.learn_strength(
            replace(args.strength_config(), **vars(self._kind)),
            args.strength_learning_rate,
            args.strength_warmup_steps,
            annotator,
        )
        self.add_callback(_OrderOfEpochs(self))

    def _send_telemetry(self) -> None:
        """TRL's report of every trainer to Hugging Face, only where the user turned it on."""
        if os.environ.get("HF_HUB_DISABLE_TELEMETRY", "1").lower() in ("0", "no", "off", "false"):
            super()._send_telemetry()

    # The data

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        """Tokenize as TRL does, then drop pairs that hold no preference."""
        columns = set(dataset.column_names or ()) if isinstance(dataset, Dataset) else set()
        if "chosen_ids" in columns and (
            self._reader is None or columns & {CHOICE_INDEX, CHOICE_CODE}
        ):
            return dataset  # was prepared before
        ties: dict[str, int] = {}
        if self._reader is not None:
            dataset, ties = self._reader.read(dataset, dataset_name)
            if "chosen_ids" in columns:
                return self._reader.settle(dataset)
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if not isinstance(prepared, Dataset) or "chosen_ids" not in prepared.column_names:
            return prepared
        kept, dropped = drop_unusable(
            prepared, dataset_name, args.max_length, args.truncation_mode, args.strict
        )
        if too_long := len(dataset) - len(prepared):
            reason = "a prompt longer than max_length"
            if args.strict:
                raise DataError(f"{dataset_name} dataset: {too_long} pairs with {reason} (strict)")
            dropped[reason] = too_long
        self.dropped[dataset_name] = dropped | ties
        return kept if self._reader is None else self._reader.settle(kept)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Reference log-probabilities from the cache, or computed and put there."""
        if isinstance(dataset, Dataset) and "ref_chosen_logps" in dataset.column_names:
            return dataset
        folder = self.args.reference_cache_dir
        if folder == "none" or self.is_deepspeed_enabled or not isinstance(dataset, Dataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)
        cache = ReferenceCache(Path(folder) if folder else default_cache_folder())
        fingerprint = self._fingerprint(dataset, name)
        box = [cache.load(fingerprint, len(dataset)) if self.is_world_process_zero() else None]
        found = broadcast_object_list(box)[0]
        if found is None:
            found = self._reference_logps(dataset, name, batch_size)
            if self.is_world_process_zero():
                cache.save(fingerprint, found)
        for column, values in found.items():
            dataset = dataset.add_column(column, values)
        return dataset

    def _fingerprint(self, dataset: Dataset, name: str) -> Fingerprint:
        if self._reference_hash is None:
            self._reference_hash = hash_parameters(self.ref_model or self.model)
        args = self.args
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
        return Fingerprint(
            part=name,
            model=self._reference_hash,
            tokens=hash_tokens(dataset),
            lengths=f"{args.max_length} {args.truncation_mode} {args.ld_alpha}",
            precision=f"{(self.ref_model or self.model).dtype}, autocast {precision}",
        )

    def _reference_logps(
        self, dataset: Dataset, name: str, batch_size: int
    ) -> dict[str, np.ndarray]:
        """One pass of the reference in evaluation mode; sums of log-softmax in float32."""
        loader = self.accelerator.prepare(
            DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator)
        )
        model = self.ref_model or self.model
        was_training = model.training
        model.eval()
        parts = []
        for batch in tqdm(
            loader,
            desc=f"Reference log-probabilities, {name}",
            disable=not self.is_world_process_zero(),
        ):
            logps = self.compute_ref_log_probs(model, batch)
            parts.append([value.float().cpu() for value in self._gather(*logps)])
        model.train(was_training)
        chosen, rejected = (torch.cat(values).numpy() for values in zip(*parts, strict=True))
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def _kind_of_choices(self) -> ChoiceKind:
        """What the training data hold, which the columns that were named say."""
        if self.args.group_by_pair and not isinstance(self.train_dataset, Dataset):
            raise DataError("group_by_pair: needs a dataset, not a stream")
        if self._is_vision_dataset and (self._reader is not None or self.args.group_by_pair):
            raise ConfigError("choice_set_column, outcome_column, grade_column: not with images")
        if self._reader is None or self._reader.kind is None:
            return ChoiceKind()
        return self._reader.kind

    def _has_sets(self) -> bool:
        """Whether choices have several rows; refuses those that cannot be trained on."""
        column = self.args.choice_set_column
        if column is None or CHOICE_INDEX not in self.train_dataset.column_names:
            return False
        check_room(self.train_dataset, column, self.args.train_batch_size)
        if self._shares_strengths:
            check_one_annotator(self.train_dataset, ANNOTATOR_INDEX, self.args.annotator_column)
        self._num_sets = int(max(self.train_dataset[CHOICE_INDEX])) + 1
        return self._num_sets < len(self.train_dataset)

    def _has_whole_panels(self) -> bool:
        """Whether each annotator's strength is inferred from all their choices."""
        args, data = self.args, self.train_dataset
        if args.annotator_block_size is not None or args.estimator == "draws":
            return False
        are_pairs = self._shares_strengths and self._kind.observation == "pairs"
        return are_pairs and isinstance(data, Dataset) and len(data) > 0

    def _with_annotators(self, dataset: Any) -> Any:
        column = self.args.annotator_column
        if isinstance(dataset, Dataset):
            return number_values(dataset, column, ANNOTATOR_INDEX, "annotator_column")[0]
        return number_stream(dataset, column, ANNOTATOR_INDEX, "annotator_column")

    def _with_groups(self, dataset: Any) -> Any:
        """Evaluation data with numbers of their groups, which several datasets share."""
        column = self.args.group_column
        if column is None or dataset is None or isinstance(dataset, str):
            return dataset
        if isinstance(dataset, dict):
            return type(dataset)({k: self._with_groups(part) for k, part in dataset.items()})
        if isinstance(dataset, Dataset) and GROUP_INDEX in dataset.column_names:
            return dataset
        numbered, self._groups = number_values(
            dataset, column, GROUP_INDEX, "group_column", self._groups
        )
        return numbered

    def _gather(self, *values: Tensor) -> Any:
        """Values of all processes, without the pairs that only fill the last batch."""
        return self.accelerator.gather_for_metrics(values)

    # The loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of a batch: TRL's forward pass and metrics, the strength's objective.

        In training its value is the misfit (and TRL's other losses), which is what is logged; its
        gradient is that of the negative evidence lower bound, the divergence included.
        """
        rows, annotator, group, pair, *what = (inputs.pop(name, None) for name in KEPT_COLUMNS)
        done = Done(*what)
        batch = self._forward(model, inputs, return_outputs, num_items_in_batch)
        margin = batch.margin
        if done.code is not None and done.choice is None:
            self._log_who_was_better(margin.detach(), done.code)
        if self.model.training:
            loss = self.strength_loss(
                margin, annotator=annotator, pair=pair, weight=batch.weight, done=done, rows=rows
            )
            loss = self._choice_weight() * loss + batch.other
            self._check_finite(loss.expand_as(margin), "loss", rows)
        else:
            self._keep_evaluated({"margin": margin, "group": group, **done._asdict()})
            if done.choice is None:
                loss = self.strength_loss(margin, done=done, rows=rows)
            else:  # a set may stand in two batches: `_judge` computes the loss where all are there
                self._check_finite(margin, "margin", rows)
                loss = margin.new_zeros(())
        return (loss, batch.outputs) if return_outputs else loss

    def _keep_evaluated(self, seen: dict[str, Tensor | None]) -> None:
        """Keep what evaluation needs of a batch until all were seen."""
        present = {name: value for name, value in seen.items() if value is not None}
        found = zip(present, self._gather(*present.values()), strict=True)
        self._evaluated.append({name: value.cpu() for name, value in found})

    def margins(self, dataset: Dataset | str | None = None) -> dict[str, np.ndarray]:
        """Margins of the current policy on an evaluation dataset, in nats.

        Args:
            dataset: Pairs, prepared or not; the name of one of several evaluation datasets;
                default, the trainer's `eval_dataset`.

        Returns:
            `margin`, chosen minus rejected, float32; `chosen_tokens` and `rejected_tokens`, the
            tokens that were scored; and `source_row` where the dataset has a column of that name;
            in the order of the dataset.
        """
        loader = self._loader_of_all(self._prepared(dataset))
        was_training = self.model.training
        self.model.eval()
        parts = []
        for batch in loader:
            batch = self._prepare_inputs(batch)
            row, *_ = (batch.pop(name, None) for name in KEPT_COLUMNS)
            with torch.no_grad(), self.compute_loss_context_manager():
                values = {"margin": self._forward(self.model, batch).margin}
            tokens = batch["completion_mask"][:, 1:].sum(1).chunk(2)
            values |= dict(zip(("chosen_tokens", "rejected_tokens"), tokens, strict=True))
            if row is not None:
                values[ROW_COLUMN] = row
            gathered = self.accelerator.gather_for_metrics(values)
            parts.append({name: value.cpu() for name, value in gathered.items()})
        self._metrics["eval"].clear()
        self.model.train(was_training)
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def _loader_of_all(self, dataset: Any) -> DataLoader:
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        loader = self.get_eval_dataloader(dataset)
        self.args.dataloader_drop_last = drop_last
        return loader

    def _prepared(self, dataset: Any) -> Any:
        """Pairs as evaluation takes them, with the reference's log-probabilities where it must."""
        if dataset is None and isinstance(self.eval_dataset, dict):
            names = ", ".join(self.eval_dataset)
            raise ConfigError(f"dataset: there are several, so expected one of {names}")
        if dataset is None or isinstance(dataset, str) or self._is_vision_dataset:
            return dataset
        dataset = self._prepare_dataset(dataset, self.processing_class, self.args, "margins")
        if not self.precompute_ref_logps or "ref_chosen_logps" in dataset.column_names:
            return dataset
        if self.ref_model is None and not is_peft_model(self.model) and self.state.global_step:
            raise ConfigError(
                "dataset: its reference log-probabilities were not computed before training, and "
                "the reference is gone; give it as eval_dataset, or give a ref_model"
            )
        size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        return self._precompute_ref_logps(dataset, "margins", size)

    def _forward(self, *args: Any, **kwargs: Any) -> TRLBatch:
        with self._each_response_once():
            return super()._forward(*args, **kwargs)

    def _each_response_once(self) -> AbstractContextManager[None]:
        """Where responses stand in several pairs of a batch, run each of them once."""
        args = self.args
        may_share = args.group_by_pair or args.choice_set_column is not None
        if not may_share or args.torch_compile:
            return nullcontext()
        return distinct_rows_only(m for m in (self.model, self.ref_model) if m is not None)

    def _log_who_was_better(self, margin: Tensor, code: Tensor) -> None:
        """Replace TRL's metrics of pairs whose first response need not be the better one."""
        sign = signs(code, self._kind.num_outcomes)
        sign = sign.masked_fill(sign == 0, math.nan)  # a tie says of neither that it is better
        better = self.accelerator.gather(sign * margin)
        metrics = self._metrics["train" if self.model.training else "eval"]
        beta = self.strength.objective.location()["mean"].item()
        right = torch.where(better.isnan(), better, (better > 0).float())
        for name, value in {"accuracies": right, "margins": beta * better}.items():
            key, mean = f"rewards/{name}", value.nanmean().item()
            metrics[key].pop()
            if not math.isnan(mean):
                metrics[key].append(mean)
            elif not metrics[key]:  # ties alone since the last log, which averages what is there
                del metrics[key]

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Reference log-probabilities of a batch; the model does not see the columns kept."""
        inputs = {name: value for name, value in inputs.items() if name not in KEPT_COLUMNS}
        with self._each_response_once():
            return super().compute_ref_log_probs(model, inputs)

    def _num_choices(self) -> int:
        return super()._num_choices() if self._num_sets is None else self._num_sets

    # Evaluation

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As TRL's, with metrics by group for data that are given here too."""
        return super().evaluate(self._with_groups(eval_dataset), *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Add accuracies and margins by group, with intervals, to TRL's metrics."""
        self._evaluated.clear()
        output = super().evaluation_loop(*args, **kwargs)
        if not self._evaluated:
            return output
        prefix = kwargs.get("metric_key_prefix", "eval")
        seen = {n: torch.cat([part[n] for part in self._evaluated]) for n in self._evaluated[0]}
        self._evaluated.clear()
        output.metrics.update({f"{prefix}_{k}": value for k, value in self._judge(seen).items()})
        return output

    def _judge(self, seen: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of all evaluated rows: by choice, and of sets the loss."""
        done = Done(seen.get("choice"), seen.get("code"))
        values: dict[str, float] = {}
        choice = sign = None
        if done.choice is not None:
            values["loss"] = self._loss_of(seen["margin"], done).item()
            choice = done.choice.numpy()
        elif done.code is not None:
            sign = signs(done.code, self._kind.num_outcomes).numpy()
        margin, rows = decisive_rows(seen["margin"].numpy(), choice, sign)
        if not len(rows):  # ties only
            return values
        groups = np.asarray(self._groups)[seen["group"].numpy()] if "group" in seen else None
        result = evaluate_groups(
            margin,
            None if groups is None else groups[rows],
            self.args.bootstrap_samples,
            self.args.seed,
        )
        self.group_table = result.groups
        return values | result.values

    # Optimisation, logging, checkpoints

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train; `resume_from_checkpoint=True` goes on from the last whole checkpoint."""
        if resume_from_checkpoint is True:
            folder, count = self.args.output_dir, self.args.world_size
            resume_from_checkpoint = last_whole_checkpoint(folder, count) or True
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's card, with the learned strength and how to read it."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            append_strength(Path(self.args.output_dir) / "README.md", self.strength)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [c for c in KEPT_COLUMNS if c not in self._signature_columns]

    def get_train_dataloader(self) -> DataLoader:
        """As TRL's, in batches of whole choices where choices have several rows."""
        if not self._deals_choices:
            return super().get_train_dataloader()
        args, dataset = self.args, self._remove_unused_columns(self.train_dataset, "Training")
        self._order = self._choice_batches()
        loader = DataLoader(
            dataset,
            batch_sampler=self._order,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def _choice_batches(self) -> ChoiceBatchSampler:
        args, data = self.args, self.train_dataset
        choice = np.arange(len(data))
        if CHOICE_INDEX in data.column_names:
            choice = np.asarray(data[CHOICE_INDEX][:])
        owner, block_size = None, args.train_batch_size
        if args.group_by_pair:
            owner = number_shared_pairs(data)
        elif self._shares_strengths:
            owner, block_size = np.asarray(data[ANNOTATOR_INDEX][:]), self._block_size()
        return ChoiceBatchSampler(
            choice,
            args.train_batch_size,
            args.data_seed if args.data_seed is not None else args.seed,
            owner,
            block_size,
            args.dataloader_drop_last,
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        data = self.train_dataset
        needs_blocks = self._shares_strengths and isinstance(data, Dataset)
        if not needs_blocks or PAIR_INDEX in data.column_names:
            return super()._get_train_sampler(train_dataset)
        self._order = AnnotatorBlockSampler(
            np.asarray((train_dataset or self.train_dataset)[ANNOTATOR_INDEX]),
            min(self._block_size(), self.args.train_batch_size),
            self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )
        return self._order

    def _block_size(self) -> int:
        return self.args.annotator_block_size or _BLOCK_SIZE

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = output_dir or self.args.output_dir
        is_checkpoint = Path(folder).name.startswith(PREFIX_CHECKPOINT_DIR)
        with _names_of_the_model(self.model) if is_checkpoint else nullcontext():
            super()._save(output_dir, state_dict)


def _refuse_missing_weights(name: str, args: MixDPOConfig) -> None:
    """Look at the names in the model's files before TRL loads it, and a random rest with it."""
    if is_deepspeed_zero3_enabled():
        return  # does not load to a device
    kwargs = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    with load_quietly():
        _, info = create_model_from_path(name, **{**kwargs, **TELL_ALL, "device_map": "meta"})
    refuse_missing(info, f"model: '{name}'")


def _refuse_merged_adapter(model: Any) -> None:
    """A model with an adapter inside hides it from TRL, whose reference would lack it."""
    is_folder = isinstance(model, str) and (Path(model) / "adapter_config.json").is_file()
    if is_folder or getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigError(
            "model: holds an adapter that was already trained, which the reference would lose; "
            "pass peft.PeftModel.from_pretrained(base, adapter, is_trainable=True), whose adapter "
            "is copied into the reference, or merge it into the base model"
        )


@contextmanager
def _names_of_the_model(model: Any) -> Iterator[None]:
    """Let a GPT-NeoX save its tensors under the names that resuming looks for.

    Saved under the names of older files, as is the default, `lm_head` is called `embed_out`, and
    the Trainer resumes with a random `lm_head` and no more than a warning.
    """
    if getattr(model.config, "model_type", "") != "gpt_neox" or hasattr(model, "peft_config"):
        yield
        return
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    try:
        yield
    finally:
        del model.save_pretrained


class _OrderOfEpochs(TrainerCallback):
    """Tell the order of the data its epoch, also where several processes resume within one.

    accelerate wraps the sampler twice there, and looks for `set_epoch` one level too high.
    """

    def __init__(self, trainer: MixDPOTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer._order is not None:
            self._trainer._order.set_epoch(int(state.epoch or 0))
