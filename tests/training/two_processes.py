"""Train for a few steps in as many processes as torchrun starts; the main one writes the logs.

Usage: torchrun --nproc_per_node 2 two_processes.py POLICY FOLDER SETTINGS-AS-JSON
"""

import json
import os
import sys
from pathlib import Path

import torch
from scenarios import small_world, take
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig
from trl import DPOConfig, DPOTrainer

from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.trainer import MixDPOTrainer


def main() -> None:
    """Train as asked and write `log.json` and `state.json`."""
    policy, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    is_trl, is_sharded = settings.pop("trl", False), settings.pop("fsdp", False)
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
        train_dataset=small_world(),
        eval_dataset=take(small_world(), 16),
        processing_class=tokenizer,
    )
    kind = type(next(trainer.model.parameters())).__name__
    trainer.train()
    metrics = trainer.evaluate()
    margins = [] if is_trl else trainer.margins()["margin"].tolist()
    if trainer.accelerator.is_main_process:
        result = {
            "processes": trainer.accelerator.num_processes,
            "wrapper": type(trainer.model_wrapped).__name__,
            "parameter": kind,
            "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            "metrics": metrics,
            "margins": margins,
            "weight": None if is_sharded else size_of(trainer.model),
        }
        (folder / "result.json").write_text(json.dumps(result))


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
