"""MixDPO in LLaMA-Factory: its DPO trainer learns a strength too.

    python examples/llama_factory_dpo.py dpo.yaml

`dpo.yaml` is LLaMA-Factory's, with `stage: dpo` and `pref_loss: sigmoid`; `pref_beta` is the mean
strength. `torchrun` starts it in several processes.
"""

from typing import Any

import llamafactory.train.dpo.trainer as theirs
import torch
from llamafactory.train.tuner import run_exp

from mixdpo_pyro import StrengthConfig, StrengthMixin


class MixDPOTrainer(StrengthMixin, theirs.CustomDPOTrainer):
    """Their trainer, with another loss of margins."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.loss_type != "sigmoid":
            raise ValueError(f"pref_loss: expected sigmoid, got {self.loss_type}")
        self.learn_strength(StrengthConfig("lognormal", beta=self.beta))

    def dpo_loss(
        self,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        reference_chosen: torch.Tensor,
        reference_rejected: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Losses and rewards of pairs; each pair's loss is the mean of the batch."""
        chosen, rejected = chosen - reference_chosen, rejected - reference_rejected
        loss = self.strength_loss(chosen - rejected)
        mean = self.strength.summary()["mean"]
        return loss.repeat(len(chosen)), mean * chosen.detach(), mean * rejected.detach()


if __name__ == "__main__":
    theirs.CustomDPOTrainer = MixDPOTrainer
    run_exp()
