"""A strength that is learned in subclasses of `trl.DPOTrainer`, from the margins of TRL's loss."""

from typing import Any

import numpy as np
from jaxtyping import Int
from trl import DPOTrainer

from mixdpo_pyro.training.learned_strength import Strength, StrengthConfig
from mixdpo_pyro.training.losses.accepted import check_losses
from mixdpo_pyro.training.losses.trl_batch import FirstOutputs, MarginTap, TRLBatch, pair_weights
from mixdpo_pyro.training.strength.mixin import StrengthMixin

__all__ = ["DPOStrengthMixin"]


class DPOStrengthMixin(StrengthMixin, DPOTrainer):
    """:class:`StrengthMixin` for subclasses of `trl.DPOTrainer`, whose loss it replaces.

    TRL runs policy and reference, and logs its metrics; `rewards/*` use the current mean strength.
    Name it before the trainer among the bases, and call :meth:`learn_strength`::

        class MyTrainer(DPOStrengthMixin, TheirDPOTrainer):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.learn_strength(StrengthConfig("lognormal", beta=self.beta))

    :class:`~mixdpo_pyro.training.trainer.MixDPOTrainer` is one, which reads annotators and choices
    from the data too.
    """

    def learn_strength(
        self,
        strength: Strength | StrengthConfig,
        learning_rate: float = 0.05,
        warmup_steps: int = 0,
        annotator: Int[np.ndarray, " pairs"] | None = None,
    ) -> None:
        """Begin to learn a strength; see :meth:`StrengthMixin.learn_strength`.

        Raises:
            ConfigError: If a loss of TRL was asked for that no strength can be averaged out of.
        """
        config = strength.config if isinstance(strength, Strength) else strength
        check_losses(self.args, annotator is not None, config.baseline is not None)
        super().learn_strength(strength, learning_rate, warmup_steps, annotator)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of a batch: TRL's forward pass and metrics, the strength's objective."""
        batch = self._forward(model, inputs, return_outputs, num_items_in_batch)
        loss = self.strength_loss(batch.margin, weight=batch.weight)
        if self.model.training:
            loss = self._choice_weight() * loss + batch.other
        return (loss, batch.outputs) if return_outputs else loss

    def _choice_weight(self) -> float:
        """Weight of the loss of the choices among all losses."""
        return self.loss_weights[self.loss_types.index("sigmoid")]

    def _forward(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> TRLBatch:
        """Run TRL's own loss and take out of it what this one is made of."""
        tap = MarginTap(self.strength.objective.location()["mean"].item())
        self.beta = tap
        watched = FirstOutputs(model) if self.use_weighting else model
        found = super().compute_loss(watched, inputs, return_outputs, num_items_in_batch)
        if tap.margin is None:
            raise RuntimeError("this version of trl does not compute beta * margin in its loss")
        other, outputs = found if return_outputs else (found, None)
        weight = None
        if self.use_weighting:
            weight = pair_weights(watched.outputs, inputs["completion_mask"])
        return TRLBatch(tap.margin.float(), other, weight, outputs)
