"""A strength in any `transformers.Trainer`: here a reward model learns from choices of people.

    python examples/reward_trainer.py MODEL pairs.jsonl

The file has a line for each choice: `chosen` and `rejected`, texts, and `annotator`, an id. People
who care more choose by the reward more consistently; the strength's distribution says by how much.
"""

import sys
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

from mixdpo_pyro import StrengthConfig, StrengthMixin


class RewardTrainer(StrengthMixin, Trainer):
    """A trainer of rewards; the strength multiplies their differences."""

    def __init__(self, *args: Any, annotator: np.ndarray, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.learn_strength(StrengthConfig("lognormal", beta=1.0), annotator=annotator)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of choices, in place of -log sigmoid(margin)."""
        pair = inputs.pop("pair")
        chosen, rejected = model(**inputs).logits[:, 0].chunk(2)
        return self.strength_loss(chosen - rejected, pair=pair)


def train(model_name: str, pairs: Dataset, **options: Any) -> RewardTrainer:
    """Train rewards; `options` are those of `TrainingArguments`."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    numbered = pairs.add_column("pair", np.arange(len(pairs)))

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [row[name] for name in ("chosen", "rejected") for row in rows]
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        batch.pop("token_type_ids", None)
        return {**batch, "pair": torch.tensor([row["pair"] for row in rows])}

    args = TrainingArguments("out", remove_unused_columns=False, report_to="none", **options)
    _, annotator = np.unique(pairs["annotator"], return_inverse=True)
    trainer = RewardTrainer(
        model, args, data_collator=collate, train_dataset=numbered, annotator=annotator
    )
    trainer.train()
    return trainer


def main() -> None:
    """Train, save rewards and strength, and show how people differ."""
    model_name, path = sys.argv[1:3]
    trainer = train(model_name, load_dataset("json", data_files=path, split="train"))
    trainer.save_model("out")
    print(trainer.strength)


if __name__ == "__main__":
    main()
