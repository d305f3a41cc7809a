"""A strength of preference that is learned in any `transformers.Trainer`."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mixdpo_pyro.config_fields import check_positive, check_range
from mixdpo_pyro.errors import ConfigError, NonFiniteLossError
from mixdpo_pyro.inference.methods.running_panels import PanelObjective
from mixdpo_pyro.training.learned_strength import Strength, StrengthConfig
from mixdpo_pyro.training.losses.observed import PAIRS, Done, ObservedObjective, signs
from mixdpo_pyro.training.strength.mean_drift import why_mean_drifts
from mixdpo_pyro.training.strength.parameters import join_optimizer

__all__ = ["StrengthMixin"]

logger = logging.getLogger(__name__)

_SEED_STRIDE = 1_000_003  # far from the small seeds that people use


class StrengthMixin(Trainer):
    """What a trainer needs to learn the strength of preference beside its model.

    Name it before the trainer among the bases, call :meth:`learn_strength` at the end of
    `__init__`, and return :meth:`strength_loss` of the margins from `compute_loss`::

        class MyTrainer(StrengthMixin, Trainer):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.learn_strength(StrengthConfig("lognormal", beta=1.0))

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                margin = model(**inputs["chosen"]).logits - model(**inputs["rejected"]).logits
                return self.strength_loss(margin[:, 0])

    The strength's parameters are a group of their own in the trainer's optimizer, without weight
    decay. Their gradients are averaged over processes, clipped (by themselves, at the Trainer's
    `max_grad_norm`) and zeroed as those of the model. `strength/mean`, `strength/cv`,
    `strength/q05`, `strength/q95` and `strength/kl` are logged with whatever the trainer logs.
    `strength.safetensors` and `strength.json` stand beside every saved model and in every
    checkpoint, from which training goes on with the same numbers.
    """

    _strength: Strength | None = None
    _strength_rate: float
    _divergences: list[float]
    _has_warned_of_drift = False

    @property
    def strength(self) -> Strength:
        """The strength that is learned."""
        if self._strength is None:
            raise ConfigError("strength: call learn_strength() at the end of __init__")
        return self._strength

    def learn_strength(
        self,
        strength: Strength | StrengthConfig,
        learning_rate: float = 0.05,
        warmup_steps: int = 0,
        annotator: Int[np.ndarray, " pairs"] | None = None,
    ) -> None:
        """Begin to learn a strength; call it once, when the trainer is set up.

        Losses of this trainer are means over pairs from here on: the Trainer divides them by the
        number of batches that it accumulates.

        Args:
            strength: The strength, or what is assumed of it.
            learning_rate: Learning rate of its parameters, which the trainer's schedule scales.
            warmup_steps: Steps during which the strength stays as it starts.
            annotator: Number of each training pair's annotator, counted from 0, in the order of
                the training data. Each annotator's strength is then inferred from all their
                choices, and `strength_loss` needs to be told the number of each `pair`.

        Raises:
            ConfigError: If a number is outside its domain, or annotators cannot share a strength.
        """
        check_positive("learning_rate", learning_rate)
        check_range("warmup_steps", warmup_steps, 0)
        if isinstance(strength, StrengthConfig):
            strength = Strength(strength)
        if annotator is not None:
            _refuse_panels(strength.config)
            strength.keep_panels(annotator)
        strength.objective.to(self.accelerator.device)
        self._strength, self._strength_rate, self._divergences = strength, learning_rate, []
        self.model_accepts_loss_kwargs = False
        self.add_callback(_StrengthGradients(self, warmup_steps))

    def strength_loss(
        self,
        margin: Float[Tensor, " rows"],
        *,
        annotator: Int[Tensor, " rows"] | None = None,
        pair: Int[Tensor, " rows"] | None = None,
        weight: Float[Tensor, " rows"] | None = None,
        done: Done = PAIRS,
        rows: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, ""]:
        """Loss of a batch in nats per pair, in place of DPO's.

        While the model trains its value is the misfit, and its gradient that of the negative
        evidence lower bound, divergence included; otherwise it is the mean negative
        log-probability at the guide's median.

        Args:
            margin: Chosen minus rejected: log-ratios of a policy in nats, or scores of a reward
                model. The strength times a margin is a utility.
            annotator: Numbers of those who chose; pairs of one annotator in the batch share a
                strength.
            pair: Number of each pair in the training data, where `learn_strength` was told the
                annotators.
            weight: Weights of the pairs in the likelihood, without annotators only.
            done: What was done, where choices are not plain pairs.
            rows: Numbers by which an error names rows.

        Raises:
            NonFiniteLossError: If a margin or the loss is not finite.
        """
        margin = margin.float()
        self._check_finite(margin, "margin", rows)
        if self.model.training:
            self._check_numbers(pair)
            misfit, divergence = self._terms(margin, annotator, weight, done, pair)
            self._divergences.append(self._mean_over_processes(divergence))
            share = self._share_of_choices(done, len(margin))
            loss = share * (misfit + (divergence - divergence.detach()))
        else:
            loss = self._loss_of(margin, done)
        self._check_finite(loss.expand_as(margin), "loss", rows)
        return loss

    # The loss

    def _terms(
        self,
        margin: Tensor,
        annotator: Tensor | None,
        weight: Tensor | None = None,
        done: Done = PAIRS,
        pair: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Misfit and divergence per choice, in the units of DPO's loss."""
        num_choices, objective = self._num_choices(), self.strength.objective
        margin, extra = self._for_objective(margin, done)
        if pair is not None:
            assert isinstance(objective, PanelObjective)
            objective.panels.update(*self.accelerator.gather((pair, margin.detach())))
            return objective.panel_terms(margin, pair)
        if annotator is None:
            if weight is not None:
                extra["weight"] = weight
            return objective.terms(margin, num_total=num_choices, **extra)
        blocks_per_choice = len(annotator.unique()) / done.num_choices(len(margin))
        num_blocks = max(round(num_choices * blocks_per_choice), 1)
        misfit, divergence = objective.terms(margin, annotator, num_total=num_blocks, **extra)
        return blocks_per_choice * misfit, blocks_per_choice * divergence

    def _for_objective(self, margin: Tensor, done: Done) -> tuple[Tensor, dict[str, Any]]:
        """Margins and what was done, as the objective takes them: a loss of pairs has a winner."""
        if isinstance(self.strength.objective, ObservedObjective):
            return margin, {"done": done}
        if done.code is None:
            return margin, {}
        return margin * signs(done.code, self.strength.config.num_outcomes), {}

    def _loss_of(self, margin: Tensor, done: Done) -> Tensor:
        """Mean negative log-probability per choice at the guide's median."""
        margin, extra = self._for_objective(margin, done)
        return -self.strength.objective.log_prob(margin, **extra).mean()

    def _num_choices(self) -> int:
        """Number of choices in the training data, among which the prior counts once."""
        try:
            return len(self.train_dataset)
        except TypeError:  # a streamed dataset has no length; max_steps bounds what is seen
            args = self.args
            pairs_a_step = args.train_batch_size * args.gradient_accumulation_steps
            return args.max_steps * pairs_a_step * args.world_size

    def _share_of_choices(self, done: Done, rows: int) -> float:
        """How many choices this process has beside the others, whose gradients are averaged."""
        if done.choice is None or self.accelerator.num_processes == 1:
            return 1.0
        number = torch.tensor([float(done.num_choices(rows))], device=done.choice.device)
        return (number / self.accelerator.gather(number).mean()).item()

    def _check_numbers(self, pair: Tensor | None) -> None:
        """Refuse a batch without the numbers that panels need, and numbers without panels."""
        has_panels = isinstance(self.strength.objective, PanelObjective)
        if has_panels and pair is None:
            raise ConfigError("pair: missing, and learn_strength was told the annotators")
        if pair is not None and not has_panels:
            raise ConfigError("pair: given, and learn_strength was not told the annotators")

    def _mean_over_processes(self, value: Tensor) -> float:
        value = value.detach().to(self.accelerator.device)  # nccl gathers nothing else
        return self.accelerator.gather(value).mean().item()

    def _check_finite(self, value: Tensor, what: str, rows: Tensor | None) -> None:
        is_bad = ~torch.isfinite(value)
        if not is_bad.any():
            return
        message = f"step {self.state.global_step + 1}: the {what} is not finite"
        if rows is None:
            raise NonFiniteLossError(f"{message} for {int(is_bad.sum())} pairs of the batch")
        numbers = rows[is_bad].tolist()
        raise NonFiniteLossError(f"{message} for rows {numbers} of the data (counted from 0)")

    # Optimisation, logging, checkpoints

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The trainer's optimizer, with the strength's parameters as a group of their own.

        An optimizer that was given gets the group too, and a scheduler that was given follows it.
        """
        optimizer = super().create_optimizer(*args, **kwargs)
        join_optimizer(optimizer, self.strength, self._strength_rate, self.lr_scheduler)
        return optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the distribution of the strength with the trainer's metrics."""
        is_evaluation = not self.model.training and "train_runtime" not in logs
        prefix = "eval_" if is_evaluation else ""
        summary = self.strength.summary()
        for name, value in (summary | self.strength.thresholds()).items():
            logs[f"{prefix}strength/{name}"] = value
        if not is_evaluation and self._divergences:
            logs["strength/kl"] = sum(self._divergences) / len(self._divergences)
            self._divergences.clear()
        self._warn_of_drift(summary["mean"])
        super().log(logs, *args, **kwargs)

    def _warn_of_drift(self, mean: float) -> None:
        config = self.strength.config
        words = why_mean_drifts(mean, config.beta, config.mean_anchor)
        if words and not self._has_warned_of_drift and self.is_world_process_zero():
            logger.warning("step %d: %s", self.state.global_step, words)
            self._has_warned_of_drift = True

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        super()._save(output_dir, *args, **kwargs)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            self.strength.save(folder)
            if folder.name.startswith(PREFIX_CHECKPOINT_DIR):
                self.strength.save_panels(folder)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.strength.load(self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.strength.load(checkpoint)
            self.strength.load_panels(checkpoint)


def _refuse_panels(config: StrengthConfig) -> None:
    conflicts = {
        f"family '{config.family}', in which all strengths are equal": config.family == "fixed",
        "estimator 'draws'": config.estimator == "draws",
        f"choices that are {config.observation}": config.observation != "pairs",
    }
    for what, is_given in conflicts.items():
        if is_given:
            raise ConfigError(f"annotator: whole panels are not kept with {what}")


class _StrengthGradients(TrainerCallback):
    """Average, clip and zero the strength's gradients, as the Trainer does for the model's."""

    def __init__(self, trainer: StrengthMixin, warmup_steps: int) -> None:
        self._trainer = trainer
        self._objective = trainer.strength.objective
        self._accelerator = trainer.accelerator
        self._warmup_steps = warmup_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give each process draws of its own; a checkpoint restores them by itself."""
        is_replicated = isinstance(self._trainer.model_wrapped, DistributedDataParallel)
        if self._trainer.is_fsdp_enabled and is_replicated:
            logger.warning("FSDP was asked for, but the policy is replicated (DDP) on this device")
        if self._trainer.strength.config.estimator == "draws" and state.global_step == 0:
            torch.manual_seed(args.seed + _SEED_STRIDE * self._accelerator.process_index)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let mean and cv catch up with the last margins; a best checkpoint stays what it was."""
        has_learned = state.global_step > self._warmup_steps
        if not has_learned or args.load_best_model_at_end:
            return
        if isinstance(self._objective, PanelObjective) and list(self._objective.parameters()):
            self._objective.settle(self._trainer._strength_rate, args.seed)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step < self._warmup_steps:
            self._objective.zero_grad()  # sets them to None: the optimiser passes over them
            return
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
