"""Train for a few steps in as many processes as torchrun starts; the main one writes the logs.

Usage: torchrun --nproc_per_node 2 two_processes.py POLICY FOLDER LIST-OF-SETTINGS-AS-JSON
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import gather_object
from scenarios import best_of_four, small_world, take
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig
from trl import DPOConfig, DPOTrainer

from mixdpo_pyro.models import mixed_logit
from mixdpo_pyro.models.monte_carlo import draw_strengths
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.trainer import MixDPOTrainer


def main() -> None:
    """Train once for each of the settings, and write the results."""
    policy, folder, all_settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    results = [train(policy, folder, settings) for settings in all_settings]
    if int(os.environ.get("RANK", 0)) == 0:
        (folder / "results.json").write_text(json.dumps(results))


def train(policy: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train as asked; what the main process logged, and what each process drew and learned."""
    settings = {**settings}
    is_trl, is_sharded = settings.pop("trl", False), settings.pop("fsdp", False)
    world = best_of_four() if "choice_set_column" in settings else small_world()
    tokenizer = AutoTokenizer.from_pretrained(policy)
    if is_sharded:
        sharding = DistributedConfig(fsdp_size=2)
        policy = AutoModelForCausalLM.from_pretrained(policy, distributed_config=sharding)
    trainer_class, config_class = (
        (DPOTrainer, DPOConfig) if is_trl else (MixDPOTrainer, MixDPOConfig)
    )
    trainer = trainer_class(
        policy,
        args=config_class(str(folder), use_cpu=True, report_to="none", **settings),
        train_dataset=world,
        eval_dataset=take(world, 16),
        processing_class=tokenizer,
    )
    kind = type(next(trainer.model.parameters())).__name__
    with recorded_draws() as draws:
        trainer.train()
    strength = None if is_trl else trainer.strength.summary()
    return {
        "processes": trainer.accelerator.num_processes,
        "wrapper": type(trainer.model_wrapped).__name__,
        "parameter": kind,
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "metrics": trainer.evaluate(),
        "margins": [] if is_trl else trainer.margins()["margin"].tolist(),
        "weight": None if is_sharded else size_of(trainer.model),
        "draws": gather_object([draws]),
        "strengths": gather_object([strength]),
    }


@contextmanager
def recorded_draws() -> Iterator[list[float]]:
    """Every strength that the paper's estimator draws in this process."""
    drawn: list[float] = []

    def draw(*arguments: Any) -> torch.Tensor:
        strengths = draw_strengths(*arguments)
        drawn.extend(strengths.flatten().tolist())
        return strengths

    with patch.object(mixed_logit, "draw_strengths", draw):
        yield drawn


def size_of(model: torch.nn.Module) -> float:
    """Sum of the absolute values of all parameters."""
    return sum(p.double().abs().sum().item() for p in model.parameters())


if __name__ == "__main__":
    main()
    # Leaving through C++ destructors aborts now and then after DDP with gloo, in plain torch too,
    # whether or not its process group is destroyed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
