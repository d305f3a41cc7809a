"""Stand-ins of LLaMA-Factory's and Axolotl's DPO trainers: what the examples need of them.

Written after LLaMA-Factory 0.9.6.dev0 (ff6d4d1) and Axolotl 0.18.0 (067b021), so that the examples
run in the tests: the names, the order of the calls, and what each passes over of TRL.
"""

import sys
import types
from collections import defaultdict
from types import SimpleNamespace

import torch
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer


class CustomDPOTrainer(Trainer):
    """LLaMA-Factory's, which calls the Trainer's `__init__` and `log` in place of TRL's."""

    def __init__(self, model, ref_model, finetuning_args, processor, **kwargs):
        self.finetuning_args = finetuning_args
        self.ref_model = ref_model.eval()
        self.beta, self.loss_type = finetuning_args.pref_beta, finetuning_args.pref_loss
        self._stored_metrics = defaultdict(lambda: defaultdict(list))
        Trainer.__init__(self, model=model, **kwargs)
        self.model_accepts_loss_kwargs = False

    def dpo_loss(self, chosen, rejected, reference_chosen, reference_rejected):
        chosen, rejected = chosen - reference_chosen, rejected - reference_rejected
        losses = -torch.nn.functional.logsigmoid(self.beta * (chosen - rejected))
        return losses, self.beta * chosen.detach(), self.beta * rejected.detach()

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        logps = self.completion_logps(model, inputs)
        with torch.no_grad():
            reference = self.completion_logps(self.ref_model, inputs)
        losses, chosen, rejected = self.dpo_loss(*logps, *reference)
        losses += self.finetuning_args.pref_ftx * -logps[0]
        self._stored_metrics["train"]["rewards/margins"].append((chosen - rejected).mean().item())
        return (losses.mean(), {}) if return_outputs else losses.mean()

    @staticmethod
    def completion_logps(model, inputs):
        logps = model(inputs["input_ids"], inputs["attention_mask"]).logits[:, :-1].log_softmax(-1)
        logps = logps.gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
        return (logps * (inputs["labels"][:, 1:] != -100)).sum(1).chunk(2)

    def log(self, logs, *args, **kwargs):
        for name, values in self._stored_metrics.pop("train", {}).items():
            logs[name] = sum(values) / len(values)
        return Trainer.log(self, logs, *args, **kwargs)


class AxolotlDPOTrainer(DPOTrainer):
    """Axolotl's, which forgets its optimizer once it is set up."""

    def __init__(self, *args, dataset_tags=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.dataset_tags = dataset_tags
        self.optimizer = None
        self.model_accepts_loss_kwargs = False


def install_llama_factory(monkeypatch, run):
    """Let `llamafactory` be imported; `run_exp` calls `run` with the class that stands there."""
    trainer = module(monkeypatch, "llamafactory.train.dpo.trainer")
    trainer.CustomDPOTrainer = CustomDPOTrainer
    tuner = module(monkeypatch, "llamafactory.train.tuner")
    tuner.run_exp = lambda: run(trainer.CustomDPOTrainer)


def install_axolotl(monkeypatch):
    """Let `axolotl` be imported."""
    trainer = module(monkeypatch, "axolotl.core.trainers.dpo.trainer")
    trainer.AxolotlDPOTrainer = AxolotlDPOTrainer


def module(monkeypatch, name):
    """An empty module of this name, within packages that are as empty."""
    parts = name.split(".")
    found = None
    for k in range(len(parts)):
        full = ".".join(parts[: k + 1])
        inner = sys.modules.get(full) or types.ModuleType(full)
        monkeypatch.setitem(sys.modules, full, inner)
        if found is not None:
            monkeypatch.setattr(found, parts[k], inner, raising=False)
        found = inner
    return found


def llama_factory_trainer(trainer_class, folder, model, reference, pairs, collator, **settings):
    """A trainer as its DPO workflow builds it; `collator` is TRL's, its labels are made here."""
    options = SimpleNamespace(pref_beta=0.3, pref_loss="sigmoid", pref_ftx=0.0)

    def collate(rows):
        batch = collator(rows)
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        return {**{k: batch[k] for k in ("input_ids", "attention_mask")}, "labels": labels}

    return trainer_class(
        model=model,
        ref_model=reference,
        args=TrainingArguments(str(folder), remove_unused_columns=False, **settings),
        finetuning_args=options,
        processor=None,
        data_collator=collate,
        train_dataset=pairs,
    )


def axolotl_trainer(trainer_class, folder, model, pairs, tokenizer, **settings):
    """A trainer as its builder for `rl: dpo` builds it from `trainer_cls`."""
    return trainer_class(
        model,
        None,
        args=DPOConfig(str(folder), remove_unused_columns=False, **settings),
        train_dataset=pairs,
        callbacks=[],
        processing_class=tokenizer,
    )
