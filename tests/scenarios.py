"""Small worlds and small models, built on the spot."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

# `gradient_checkpointing` is the name that trl 1.x passes on; transformers 5 renames it.
RENAMED = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
# transformers asks for pinned memory wherever it runs; torch says so where no accelerator is.
NO_PIN = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
TRAINING_MARKS = [RENAMED, NO_PIN]


@cache
def small_world(num_annotators=6, pairs_per_annotator=8, cv=0.5):
    """A simulated world with row numbers, as the readers number them."""
    from mixdpo_pyro.data.simulation import simulate_preferences

    world = simulate_preferences(num_annotators, pairs_per_annotator, cv=cv)
    return world.dataset.add_column("source_row", np.arange(len(world.dataset)))


@cache
def best_of_four(num_sets=8, num_annotators=4):
    """Choices among four responses of the small world, three rows each, ranked 2, 3 and none."""
    world = small_world()
    rows = [
        {
            "prompt": world[k]["prompt"],
            "chosen": world[k]["chosen"],
            "rejected": world[(k + 7 * j + 9) % len(world)]["chosen"] + f" {j}",
            "set": f"s{k}",
            "place": (2, 3, None)[j],
            "who": f"a{k % num_annotators}",
        }
        for k in range(num_sets)
        for j in range(3)
    ]
    return Dataset.from_list(rows)


def build_policy_folder(folder, dataset, **sizes):
    """A random small Llama and its tokenizer, saved to `folder`."""
    from mixdpo_pyro.training.tiny_llama import build_llama, train_tokenizer

    texts = [text for name in ("prompt", "chosen", "rejected") for text in dataset[name]]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    model = build_llama(
        tokenizer, **({"hidden_size": 32, "num_layers": 1, "num_heads": 2} | sizes)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


TRAINING = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "max_length": 128,
    "beta": 0.3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "bf16": False,
    "gradient_checkpointing": False,
}
"""Options of a short, quiet training."""


def two_workers():
    """A dask cluster of two worker processes with one thread each, on ports that are free."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
    )


def take(dataset: Dataset, count: int) -> Dataset:
    return dataset.select(range(count))


def train_with(trainer_class, config_class, folder, policy, dataset=None, **settings):
    """A few steps on the small world."""
    trainer = trainer_class(
        policy,
        args=config_class(str(folder), **{**TRAINING, "max_steps": 6, **settings}),
        train_dataset=small_world() if dataset is None else dataset,
        eval_dataset=take(small_world(), 10),
    )
    trainer.train()
    return trainer


def train_mixdpo(folder, policy, **settings):
    from mixdpo_pyro.training.config import MixDPOConfig
    from mixdpo_pyro.training.trainer import MixDPOTrainer

    return train_with(MixDPOTrainer, MixDPOConfig, folder, policy, **settings)


def train_dpo(folder, policy, **settings):
    from trl import DPOConfig, DPOTrainer

    return train_with(DPOTrainer, DPOConfig, folder, policy, **settings)


def run_values(folder, policy_folder) -> dict[str, Any]:
    """Keys of a short run on 48 pairs of 6 annotators, whose file it writes."""
    small_world().remove_columns(["source_row", "reward_margin"]).to_json(folder / "pairs.jsonl")
    return {
        "model_name_or_path": policy_folder,
        "dataset_name": str(folder / "pairs.jsonl"),
        "output_dir": str(folder / "run"),
        "test_fraction": 0.5,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_length": 128,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
    }


def run_rate(arm, seed, kl, win_rate=50.0, **values):
    """A run against the reference, of beta 0.1 at weight 1 unless the values say otherwise."""
    from mixdpo_pyro.winrates.record import RunRate

    usual = {
        "run": "r", "beta": 0.1, "weight": 1.0, "reward": 0.0, "win_rate_low": 0.0,
        "win_rate_high": 100.0, "length_controlled_winrate": 50.0, "n_wins": 1, "n_wins_base": 1,
        "n_draws": 0, "avg_length": 9.0, "finished": 1.0, "in_grammar": None, "failures": 0,
    }  # fmt: skip
    return RunRate(arm=arm, seed=seed, kl=kl, win_rate=win_rate, **usual | values)
