"""Files of models that lack a weight, or hold what is no number, in `margins` and in training."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from scenarios import TRAINING, TRAINING_MARKS, small_world
from transformers import AutoModelForCausalLM

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.margins.config import MarginsConfig
from mixdpo_pyro.margins.language_models import LanguageModels
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.trainer import MixDPOTrainer

pytestmark = TRAINING_MARKS

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def broken(tmp_path, policy_folder):
    """A copy of the policy whose tensors a function changes."""

    def build(change):
        folder = tmp_path / "broken"
        shutil.copytree(policy_folder, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return str(folder)

    return build


@pytest.fixture
def adapter(tmp_path, policy_folder):
    """A LoRA adapter whose tensors a function changes."""

    def build(change):
        base = AutoModelForCausalLM.from_pretrained(policy_folder)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", {"format": "pt"})
        return str(tmp_path / "adapter")

    return build


def train(tmp_path, policy):
    return MixDPOTrainer(
        policy,
        args=MixDPOConfig(str(tmp_path / "out"), **TRAINING, max_steps=1),
        train_dataset=small_world(),
    )


def lose(tensors):
    del tensors[Q_PROJ]


def cut(tensors):
    tensors[Q_PROJ] = tensors[Q_PROJ][:-1].clone()


def spoil(tensors):
    tensors[Q_PROJ][0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])


FAULTS = {
    "missing": (lose, f"lacks '{Q_PROJ}'; random weights"),
    "cut": (cut, f"has another shape of '{Q_PROJ}'; random weights"),
    "not finite": (spoil, rf"tensor '{Q_PROJ}' holds 3 of 1,024 numbers that are not finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_training_refuses_a_faulty_model(tmp_path, broken, fault):
    change, message = FAULTS[fault]
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, broken(change))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("role", ["model", "reference"])
def test_margins_refuse_a_faulty_model(broken, policy_folder, fault, role):
    change, message = FAULTS[fault]
    names = [broken(change), policy_folder]
    with pytest.raises(ConfigError, match=f"{role}: .*{message}"):
        LanguageModels.load(*(names if role == "model" else names[::-1]), MarginsConfig())


def test_tied_head_and_unused_tensors_are_fine(tmp_path, broken, policy_folder):
    assert "lm_head.weight" not in load_file(f"{policy_folder}/model.safetensors")
    folder = broken(lambda tensors: tensors.update(unused=torch.zeros(2)))
    train(tmp_path, folder)
    LanguageModels.load(folder, policy_folder, MarginsConfig())


def test_adapter_whose_base_lacks_a_weight_is_refused(adapter, policy_folder):
    folder = adapter(lambda tensors: None)
    LanguageModels.load(folder, "base", MarginsConfig())
    tensors = load_file(f"{policy_folder}/model.safetensors")
    kept = dict(tensors)
    lose(tensors)
    save_file(tensors, f"{policy_folder}/model.safetensors", {"format": "pt"})
    try:
        with pytest.raises(ConfigError, match=f"lacks '{Q_PROJ}'"):
            LanguageModels.load(folder, "base", MarginsConfig())
    finally:
        save_file(kept, f"{policy_folder}/model.safetensors", {"format": "pt"})


def test_adapter_that_lacks_a_weight_is_refused(adapter):
    with pytest.raises(ConfigError, match=r"missing adapter keys.*lora_A"):
        LanguageModels.load(
            adapter(lambda tensors: tensors.pop(next(k for k in tensors if "lora_A" in k))),
            "base", MarginsConfig(),
        )  # fmt: skip


def test_adapter_with_a_weight_that_is_no_number_is_refused(adapter):
    def change(tensors):
        next(v for k, v in tensors.items() if "lora_A" in k)[0, 0] = float("nan")

    with pytest.raises(ConfigError, match=r"tensor '.*lora_A.*' holds 1 of 64 numbers"):
        LanguageModels.load(adapter(change), "base", MarginsConfig())


def test_given_model_and_reference_are_looked_at_too(tmp_path, policy_folder):
    sound, spoiled = (AutoModelForCausalLM.from_pretrained(policy_folder) for _ in range(2))
    with torch.no_grad():
        spoiled.model.norm.weight[0] = float("nan")
    arguments = {
        "args": MixDPOConfig(str(tmp_path), **TRAINING, max_steps=1),
        "train_dataset": small_world(),
    }
    with pytest.raises(ConfigError, match=r"^model: tensor 'model.norm.weight' holds 1 of 32"):
        MixDPOTrainer(spoiled, sound, **arguments)
    with pytest.raises(ConfigError, match=r"^ref_model: tensor 'model.norm.weight'"):
        MixDPOTrainer(sound, spoiled, **arguments)
