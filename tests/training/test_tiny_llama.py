import math

import pytest
import torch
from datasets import Dataset
from scenarios import TRAINING_MARKS, small_world
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.training.tiny_llama import (
    ReferenceConfig,
    build_llama,
    build_reference,
    train_tokenizer,
)

pytestmark = TRAINING_MARKS


def test_tokenizer_gives_every_text_back():
    tokenizer = train_tokenizer(["a small text", "another one"], vocab_size=300)
    for text in ("a small text", "Ünïcode — 漢字 \n\t x", "never seen"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "</s>")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_equal_seeds_give_equal_weights_and_leave_the_generator_alone():
    tokenizer = train_tokenizer(["text"], vocab_size=300)
    state = torch.get_rng_state()
    first, again, other = (build_llama(tokenizer, 32, 1, 2, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [m.get_input_embeddings().weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_reference_learns_its_text_and_is_saved(tmp_path):
    """A token of the responses costs less than half of what a uniform choice costs."""
    config = ReferenceConfig(
        vocab_size=320,
        hidden_size=64,
        num_layers=1,
        num_heads=2,
        sft_steps=100,
        sft_batch_size=16,
        sft_learning_rate=1e-2,
    )
    build_reference(small_world(), config, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pair = small_world()[0]
    prompt = tokenizer(pair["prompt"])["input_ids"]
    ids = torch.tensor([tokenizer(pair["prompt"] + pair["chosen"])["input_ids"]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    with torch.no_grad():
        loss = model(ids, labels=labels).loss.item()
    assert loss < 0.5 * math.log(len(tokenizer))


def test_implicit_prompts_are_taken_out(tmp_path):
    shared = "Human: hello\n\nAssistant:"
    pairs = Dataset.from_list([{"chosen": f"{shared} yes", "rejected": f"{shared} no"}] * 4)
    config = ReferenceConfig(
        vocab_size=300, hidden_size=32, num_layers=1, num_heads=2, sft_steps=1, sft_batch_size=2
    )
    build_reference(pairs, config, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


def test_wrong_sizes_and_messages_raise(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size >= 300, got 100"):
        train_tokenizer(["text"], vocab_size=100)
    with pytest.raises(ConfigError, match="multiple of 2 \\* num_heads = 8, got 30"):
        build_llama(train_tokenizer(["text"], vocab_size=300), 30)
    messages = [{"role": "user", "content": "hello"}]
    pairs = Dataset.from_list([{"prompt": messages, "chosen": messages, "rejected": messages}])
    with pytest.raises(ConfigError, match="plain-text pairs, got messages"):
        build_reference(pairs, ReferenceConfig(), tmp_path)
