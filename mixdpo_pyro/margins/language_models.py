"""The policy and the reference of a table of margins: loading, digests, log-probabilities."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from mixdpo_pyro.data.tokenization import first_line, is_adapter, load_tokenizer
from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.io.integrity import find_model_fault, hash_files
from mixdpo_pyro.margins.config import MarginsConfig
from mixdpo_pyro.margins.weights import (
    TELL_ALL,
    load_quietly,
    refuse_missing,
    refuse_missing_adapter,
    refuse_not_finite,
)
from mixdpo_pyro.progress.screen import show_stage

__all__ = ["ADAPTER_OFF", "COMPLETION", "PROMPT", "LanguageModels", "load_policy"]

ADAPTER_OFF = "base"
"""The name of the reference that is the policy with its adapter switched off."""

PROMPT, COMPLETION = 1, 2


@dataclass(frozen=True)
class LanguageModels:
    """Policy and reference; without a reference, the policy's adapter is switched off."""

    policy: Any
    reference: Any | None
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    policy_digest: str
    reference_digest: str

    @classmethod
    def load(
        cls, policy_name: str, reference_name: str, config: MarginsConfig
    ) -> "LanguageModels":
        """Load policy, reference and tokenizer, and check that they fit together."""
        show_stage("Loading policy and reference")
        device = _find_device(config.device)
        for role, name in (("model", policy_name), ("reference", reference_name)):
            if fault := find_model_fault(Path(name).expanduser()):
                raise ConfigError(f"{role}: {fault}")
        tokenizer = load_tokenizer(_tokenizer_source(policy_name))
        policy, digest = _load_model(policy_name, config.dtype, device, "model")
        if reference_name == ADAPTER_OFF:
            if not isinstance(policy, PeftModel):
                raise ConfigError(f"reference: 'base' needs an adapter, '{policy_name}' has none")
            return cls(policy, None, tokenizer, device, digest, ADAPTER_OFF)
        _check_same_tokenizer(tokenizer, reference_name)
        reference, other = _load_model(reference_name, config.dtype, device, "reference")
        return cls(policy, reference, tokenizer, device, digest, other)

    def score(self, ids: Tensor, scored: Tensor) -> np.ndarray:
        """Log-probability of every sequence, a column a model: policy, reference."""
        ids, scored = ids.to(self.device), scored.to(self.device)
        policy = _sum_logps(self.policy, ids, scored)
        if self.reference is None:
            with self.policy.disable_adapter():
                reference = _sum_logps(self.policy, ids, scored)
        else:
            reference = _sum_logps(self.reference, ids, scored)
        return np.stack([policy, reference], axis=1)

    def longest(self) -> int | None:
        """The most tokens that both models take, where they say so."""
        models = [m for m in (self.policy, self.reference) if m is not None]
        limits = [getattr(m.config, "max_position_embeddings", None) for m in models]
        return min((limit for limit in limits if limit), default=None)

    def vocabulary(self) -> int:
        """Number of tokens that both models know."""
        models = [m for m in (self.policy, self.reference) if m is not None]
        return min(m.get_input_embeddings().weight.shape[0] for m in models)


def load_policy(
    name: str, dtype: str, device: torch.device
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A policy in evaluation mode, and its tokenizer or that of its base model.

    Raises:
        ConfigError: If it cannot be loaded, or weights are missing or not finite.
    """
    if fault := find_model_fault(Path(name).expanduser()):
        raise ConfigError(f"model: {fault}")
    return _load_model(name, dtype, device, "model")[0], load_tokenizer(_tokenizer_source(name))


@torch.no_grad()
def _sum_logps(model: Any, ids: Tensor, scored: Tensor) -> np.ndarray:
    """Sum of the token log-probabilities of every completion: softmax in float32, sum in float64.

    One sequence at a time, so that no second copy of all logits is needed.

    Args:
        model: A causal language model.
        ids: Tokens, padded on the right.
        scored: 0 for padding, 1 for a token of the prompt, 2 for one of the completion.
    """
    logits = model(input_ids=ids, attention_mask=(scored > 0).long(), use_cache=False).logits
    logits = logits[:, -ids.shape[1] :]  # virtual tokens of a prompt adapter stand in front
    sums = []
    for row in range(len(ids)):
        positions = (scored[row, 1:] == COMPLETION).nonzero().squeeze(1)
        log_probs = logits[row, positions].float().log_softmax(-1)
        tokens = log_probs.gather(1, ids[row, positions + 1].unsqueeze(1))
        sums.append(tokens.cpu().double().sum().item())
    return np.array(sums)


def _find_device(name: str) -> torch.device:
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device: '{name}' cannot be used ({first_line(error)})") from error
    return device


def _tokenizer_source(name: str) -> str:
    """An adapter without a tokenizer of its own takes that of its base model."""
    folder = Path(name).expanduser()
    if is_adapter(folder) and not any(folder.glob("tokenizer*")):
        return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return name


def _load_model(name: str, dtype: str, device: torch.device, role: str) -> tuple[Any, str]:
    """A model in evaluation mode, and a digest of its weights."""
    kind, what = getattr(torch, dtype), f"{role}: '{name}'"
    try:
        if find_adapter_config_file(name) is None:
            model, info = AutoModelForCausalLM.from_pretrained(name, dtype=kind, **TELL_ALL)
            refuse_missing(info, what)
        else:
            with refuse_missing_adapter(what):
                model = AutoPeftModelForCausalLM.from_pretrained(name, dtype=kind)
            _refuse_missing_base(model, role)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{role}: '{name}' cannot be loaded ({first_line(error)})") from error
    refuse_not_finite(model, what)
    return model.to(device).eval(), _digest_model(name, model)


def _refuse_missing_base(model: PeftModel, role: str) -> None:
    """The base model was loaded by peft, which does not say what was missing: look again."""
    base = model.peft_config[model.active_adapter].base_model_name_or_path
    with load_quietly():
        _, info = AutoModelForCausalLM.from_pretrained(base, device_map="meta", **TELL_ALL)
    refuse_missing(info, f"{role}: '{base}'")


def _digest_model(name: str, model: Any) -> str:
    """Hash of the files of a local model; name and revision of one from the hub."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return f"{name}@{getattr(model.config, '_commit_hash', None)}"
    weights = [
        path
        for path in folder.iterdir()
        if path.suffix in (".safetensors", ".bin") or path.name.endswith("config.json")
    ]
    if not is_adapter(folder):
        return hash_files(weights)
    base = model.peft_config[model.active_adapter].base_model_name_or_path
    return hash_files(weights, _digest_model(base, model))


def _check_same_tokenizer(tokenizer: PreTrainedTokenizerBase, reference_name: str) -> None:
    """Log-ratios of two models with different tokens mean nothing."""
    try:
        other = AutoTokenizer.from_pretrained(_tokenizer_source(reference_name))
    except (OSError, ValueError, KeyError):  # a reference without a tokenizer of its own
        return
    if other.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(f"reference: '{reference_name}' has another vocabulary than the policy")
