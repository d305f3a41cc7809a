"""MixDPO as a subclass of `trl.DPOTrainer`: the policy and the strength of preference, jointly.

TRL prepares the data, runs the policy and the reference, and logs; this class replaces the loss by
the Pyro objective of :mod:`mixdpo_pyro.inference` on the margins that TRL computed
(Imai et al. 2026, arXiv 2601.06180).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from mixdpo_pyro.annotators import ANNOTATOR_INDEX, AnnotatorBlockSampler, number_annotators
from mixdpo_pyro.data import ROW_COLUMN
from mixdpo_pyro.errors import ConfigError, NonFiniteLossError
from mixdpo_pyro.models.preference import MeanAnchor
from mixdpo_pyro.strength import EstimatorName, Family, Strength, StrengthConfig

__all__ = ["MixDPOConfig", "MixDPOTrainer"]

_KEPT_COLUMNS = (ROW_COLUMN, ANNOTATOR_INDEX)


@dataclass
class MixDPOConfig(DPOConfig):
    r"""Configuration of :class:`MixDPOTrainer`: everything of `trl.DPOConfig`, and the strength.

    Precision follows the device: where no accelerator is found, `bf16` and
    `gradient_checkpointing` default to off, since both only slow a CPU down.

    Args:
        family: Law of the strength: `lognormal`, `gamma`, or `fixed` (plain DPO).
        estimator: How its expectation is computed: `draws` (Monte Carlo, the paper's estimator
            for LogNormal), `quadrature`, `series` (Gamma only), or `auto`, the exact one.
        mean: What is assumed of the mean strength: `prior` (log mean ~ Normal(log beta, 0.5),
            cv ~ HalfNormal(1)), `fixed` (the mean is `beta`, only cv is learned), or `free`
            (both learned without a prior, as in the paper).
        num_draws: Number of Monte Carlo draws a pair, for `estimator="draws"`.
        strength_learning_rate: Learning rate of the strength's parameters (log scale).
        strength_initial_cv: Coefficient of variation that training starts from.
        annotator_column: Column with annotator ids. Pairs of one annotator then stand together in
            blocks, and the pairs of a block share their strength; without ids every pair has its
            own. Not for `family="fixed"`, where there is nothing to share.
        annotator_block_size: Pairs of one annotator that stand together in a batch.
    """

    family: Family = field(
        default="lognormal", metadata={"help": "Law of the preference strength."}
    )
    estimator: EstimatorName = field(
        default="auto",
        metadata={
            "help": "Estimator of the expectation over the strength; 'series' is Gamma's, and "
            "'auto' takes the exact one."
        },
    )
    mean: MeanAnchor = field(
        default="prior",
        metadata={
            "help": "Anchoring of the mean strength: a prior around `beta`, fixed at `beta`, or "
            "free (learned without a prior)."
        },
    )
    num_draws: int = field(
        default=16, metadata={"help": "Monte Carlo draws a pair, for estimator 'draws'."}
    )
    strength_learning_rate: float = field(
        default=0.05, metadata={"help": "Learning rate of the strength's parameters."}
    )
    strength_initial_cv: float = field(
        default=0.5, metadata={"help": "Coefficient of variation that training starts from."}
    )
    annotator_column: str | None = field(
        default=None, metadata={"help": "Column with annotator ids."}
    )
    annotator_block_size: int = field(
        default=8, metadata={"help": "Pairs of one annotator that stand together in a batch."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "bfloat16 mixed precision. Default: on with an accelerator, off without."
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Trade compute for memory. Default: on with an accelerator, off without."
        },
    )

    def __post_init__(self) -> None:
        has_accelerator = torch.accelerator.is_available() and not self.use_cpu
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = has_accelerator
        if self.bf16 is None:
            self.bf16 = has_accelerator and not self.fp16
        super().__post_init__()
        self._check_strength()

    def strength_config(self) -> StrengthConfig:
        """The part of the configuration that describes the strength."""
        return StrengthConfig(
            family=self.family,
            mean=self.mean,
            beta=self.beta,
            estimator=self.estimator,
            num_draws=self.num_draws,
            initial_cv=self.strength_initial_cv,
        )

    def _check_strength(self) -> None:
        self.strength_config()
        if not 0 < self.strength_learning_rate < float("inf"):
            raise ConfigError(
                "strength_learning_rate: expected a finite number > 0, "
                f"got {self.strength_learning_rate}"
            )
        if self.annotator_block_size < 1:
            raise ConfigError(
                f"annotator_block_size: expected at least 1, got {self.annotator_block_size}"
            )
        unsupported = {
            "loss_type": self.loss_type != ["sigmoid"],
            "loss_weights": self.loss_weights not in (None, [1.0]),
            "use_weighting": self.use_weighting,
            "label_smoothing": self.label_smoothing != 0,
            "f_divergence_type": self.f_divergence_type != "reverse_kl",
            "ld_alpha": self.ld_alpha is not None,
        }
        for name, is_set in unsupported.items():
            if is_set:
                raise ConfigError(
                    f"{name}: MixDPO replaces the sigmoid loss of DPO, so it takes the default "
                    f"only, got {getattr(self, name)!r}"
                )


class MixDPOTrainer(DPOTrainer):
    """`trl.DPOTrainer` whose strength of preference is a random variable.

    It takes the arguments of `trl.DPOTrainer`; `args` is a :class:`MixDPOConfig`. Metrics keep
    TRL's names; `rewards/*` use the current mean strength, and `strength/mean`, `strength/cv`,
    `strength/q05`, `strength/q95` describe the learned law (mean, coefficient of variation and
    quantiles of beta at the guide's median). Checkpoints hold the strength beside the policy.

    Attributes:
        strength: The :class:`~mixdpo_pyro.strength.Strength` that is learned.
    """

    data_collator: Any
    train_dataset: Any
    _tag_names = ["trl", "dpo", "mixdpo"]  # noqa: RUF012 - the name and form are TRL's
    _name = "MixDPO"

    def __init__(
        self, model: Any, ref_model: Any = None, args: MixDPOConfig | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(args, MixDPOConfig):
            raise ConfigError(f"args: expected a MixDPOConfig, got {type(args).__name__}")
        super().__init__(model, ref_model, args, **kwargs)
        if self.aux_loss_enabled:
            raise ConfigError(
                "model: the load-balancing loss of a mixture of experts is not supported; "
                "set router_aux_loss_coef to 0"
            )
        self._shares_strengths = False
        if args.annotator_column is not None and args.family != "fixed":
            self._shares_strengths = True
            self.train_dataset = number_annotators(self.train_dataset, args.annotator_column)
        self.data_collator = _KeepColumns(self.data_collator)
        self.strength = Strength(args.strength_config())
        self.strength.objective.to(self.accelerator.device)
        self.add_callback(_StrengthGradients(self))

    # The loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of a batch: TRL's forward pass and metrics, the strength's objective."""
        rows, annotator = inputs.pop(ROW_COLUMN, None), inputs.pop(ANNOTATOR_INDEX, None)
        margin, outputs = self._forward(model, inputs, return_outputs, num_items_in_batch)
        is_bad = ~torch.isfinite(margin)
        if is_bad.any():
            raise NonFiniteLossError(self._blame(is_bad, "margin", rows))
        if self.model.training:
            loss = self._objective(margin, annotator)
        else:
            location = self.strength.objective.location()
            loss = -self.strength.objective.model.log_prob(margin, **location).mean()
        if not torch.isfinite(loss):
            raise NonFiniteLossError(self._blame(~is_bad, "loss", rows))
        return (loss, outputs) if return_outputs else loss

    def margins(self, dataset: Dataset | None = None) -> dict[str, np.ndarray]:
        """Margins of the current policy on an evaluation dataset, in nats.

        Args:
            dataset: Prepared dataset; default, the trainer's `eval_dataset`.

        Returns:
            `margin`, chosen minus rejected, float32, and `source_row` where the dataset
            has a column of that name; in the order of the dataset.
        """
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        loader = self.get_eval_dataloader(dataset)
        self.args.dataloader_drop_last = drop_last
        was_training = self.model.training
        self.model.eval()
        margins, rows = [], []
        for batch in loader:
            batch = self._prepare_inputs(batch)
            batch.pop(ANNOTATOR_INDEX, None)
            row = batch.pop(ROW_COLUMN, None)
            with torch.no_grad(), self.compute_loss_context_manager():
                margin, _ = self._forward(self.model, batch)
            margins.append(self.accelerator.gather_for_metrics(margin).cpu())
            if row is not None:
                rows.append(self.accelerator.gather_for_metrics(row).cpu())
        self._metrics["eval"].clear()
        self.model.train(was_training)
        result = {"margin": torch.cat(margins).numpy()}
        return {**result, ROW_COLUMN: torch.cat(rows).numpy()} if rows else result

    def _forward(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> tuple[Tensor, Any]:
        """Run TRL's own loss and take the margin out of it.

        TRL has no hook for the loss. It multiplies `self.beta` with the difference of log-ratios
        first of all, so a float that remembers the first tensor it multiplies sees the margin.
        """
        tap = _MarginTap(self.strength.objective.location()["mean"].item())
        self.beta = tap
        outputs = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if tap.margin is None:
            raise RuntimeError("this version of trl does not compute beta * margin in its loss")
        return tap.margin.float(), outputs[1] if return_outputs else None

    def _objective(self, margin: Tensor, annotator: Tensor | None) -> Tensor:
        """Objective per pair, in the units of DPO's loss."""
        num_pairs = self._num_pairs()
        if annotator is None:
            return self.strength.objective(margin, num_total=num_pairs)
        blocks_per_pair = len(annotator.unique()) / len(annotator)
        num_blocks = max(round(num_pairs * blocks_per_pair), 1)
        return blocks_per_pair * self.strength.objective(margin, annotator, num_total=num_blocks)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Reference log-probabilities of a batch; the model does not see the columns kept."""
        inputs = {name: value for name, value in inputs.items() if name not in _KEPT_COLUMNS}
        return super().compute_ref_log_probs(model, inputs)

    def _num_pairs(self) -> int:
        try:
            return len(self.train_dataset)
        except TypeError:  # a streamed dataset has no length; max_steps bounds what is seen
            args = self.args
            pairs_a_step = args.train_batch_size * args.gradient_accumulation_steps
            return args.max_steps * pairs_a_step * args.world_size

    def _blame(self, is_bad: Tensor, what: str, rows: Tensor | None) -> str:
        message = f"step {self.state.global_step + 1}: the {what} is not finite"
        if rows is None:
            return f"{message} for {int(is_bad.sum())} pairs of the batch"
        return f"{message} for rows {rows[is_bad].tolist()} of the data (counted from 0)"

    # Optimisation, logging, checkpoints

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Add the strength's parameters as a group with their own rate and no weight decay."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        parameters = [p for p in self.strength.objective.parameters() if id(p) not in known]
        if parameters and not is_new:
            raise ConfigError(
                "optimizers: the strength needs the optimizer that the trainer makes"
            )
        if parameters:
            optimizer.add_param_group(
                {
                    "params": parameters,
                    "lr": self.args.strength_learning_rate,
                    "weight_decay": 0.0,
                }
            )
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics and the law of the strength."""
        prefix = "" if self.model.training else "eval_"
        for name, value in self.strength.summary().items():
            logs[f"{prefix}strength/{name}"] = value
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [c for c in _KEPT_COLUMNS if c not in self._signature_columns]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if not self._shares_strengths:
            return super()._get_train_sampler(train_dataset)
        return AnnotatorBlockSampler(
            np.asarray((train_dataset or self.train_dataset)[ANNOTATOR_INDEX]),
            min(self.args.annotator_block_size, self.args.train_batch_size),
            self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.strength.save(output_dir or self.args.output_dir)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.strength.load(self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.strength.load(checkpoint)


class _MarginTap(float):
    """A beta that keeps the first tensor it multiplies."""

    margin: Tensor | None = None

    def __mul__(self, other: Any) -> Any:
        if self.margin is None and isinstance(other, Tensor):
            self.margin = other
        return float(self) * other


@dataclass
class _KeepColumns:
    """A collator that hands on numbers of rows and annotators beside what TRL's makes."""

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        for name in _KEPT_COLUMNS:
            if isinstance(examples[0].get(name), int):
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch


class _StrengthGradients(TrainerCallback):
    """Average, clip and zero the strength's gradients, as the Trainer does for the policy."""

    def __init__(self, trainer: MixDPOTrainer) -> None:
        self._objective = trainer.strength.objective
        self._accelerator = trainer.accelerator

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        parameters = [p for p in self._objective.parameters() if p.grad is not None]
        if self._accelerator.num_processes > 1:
            for parameter in parameters:
                parameter.grad = self._accelerator.reduce(parameter.grad, reduction="mean")
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._objective.zero_grad()
