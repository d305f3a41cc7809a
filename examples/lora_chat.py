"""LoRA on a chat model, with the ids of who chose.

    python examples/lora_chat.py Qwen/Qwen2.5-0.5B-Instruct pairs.jsonl

The file has a line for each choice: `prompt`, `chosen` and `rejected` as lists of messages, and
`annotator`, an id.
"""

import sys
from typing import Any

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from mixdpo_pyro import MixDPOConfig, MixDPOTrainer


def train(model_name: str, pairs: Dataset, **options: Any) -> MixDPOTrainer:
    """One epoch with LoRA on all linear layers; `options` are those of the configuration."""
    args = MixDPOConfig(
        output_dir="out",
        family="lognormal",
        annotator_column="annotator",
        beta=0.1,
        learning_rate=1e-4,
        report_to="none",
        **options,
    )
    peft_config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = MixDPOTrainer(model_name, args=args, train_dataset=pairs, peft_config=peft_config)
    trainer.train()
    return trainer


@torch.no_grad()
def reply(trainer: MixDPOTrainer, tokenizer: AutoTokenizer, messages: list[dict]) -> str:
    """The likeliest reply of the policy."""
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(trainer.model.device)
    prompt.pop("token_type_ids", None)
    written = trainer.model.generate(**prompt, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    """Train, and reply before and after."""
    model_name, path = sys.argv[1:3]
    pairs = load_dataset("json", data_files=path, split="train")
    trainer = train(model_name, pairs)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    with trainer.model.disable_adapter():
        print("before:", reply(trainer, tokenizer, pairs[0]["prompt"]))
    print("after: ", reply(trainer, tokenizer, pairs[0]["prompt"]))
    print(trainer.strength)
    trainer.save_model("out")


if __name__ == "__main__":
    main()
