"""MixDPO in Axolotl: its DPO trainer learns a strength too.

    axolotl train dpo.yaml

`dpo.yaml` is Axolotl's, with `rl: dpo` and the line `trainer_cls: axolotl_dpo.MixDPOTrainer`; this
file stands where Python finds it (`PYTHONPATH=examples`). `rl_beta` is the mean strength.
"""

from typing import Any

from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

from mixdpo_pyro import DPOStrengthMixin, StrengthConfig


class MixDPOTrainer(DPOStrengthMixin, AxolotlDPOTrainer):
    """Their trainer, with another loss of margins."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.learn_strength(StrengthConfig("lognormal", beta=self.beta))
