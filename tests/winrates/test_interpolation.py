"""Decoding between reference and policy, against whole forward passes without a cache."""

import pytest
import torch
from scenarios import small_world
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixdpo_pyro.winrates.interpolation import InterpolatedLogits


@pytest.fixture(scope="module")
def models(policy_folder):
    """A reference, a policy with other weights, and prompts padded on the left."""
    reference, policy = (AutoModelForCausalLM.from_pretrained(policy_folder) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    tokenizer = AutoTokenizer.from_pretrained(policy_folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    prompts = [*small_world()["prompt"][:2], "How"]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    encoded.pop("token_type_ids", None)
    assert 0 in encoded["attention_mask"]
    return reference.eval(), policy.eval(), encoded


def write(model, encoded, processors=()):
    """Greedy completions, and the logits that each token was the largest of."""
    found = model.generate(
        **encoded, max_new_tokens=6, do_sample=False, logits_processor=list(processors),
        pad_token_id=0, eos_token_id=None, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    return found.sequences, torch.stack(found.scores, 1)


@torch.no_grad()
def direct(model, sequences, encoded):
    """The same logits by one pass over everything."""
    new = sequences.shape[1] - encoded["input_ids"].shape[1]
    mask = torch.cat([encoded["attention_mask"], torch.ones(len(sequences), new).long()], 1)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    found = model(input_ids=sequences, attention_mask=mask, position_ids=position, use_cache=False)
    return found.logits[:, -new - 1 : -1]


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, 2.5, [0.0, 1.0, 3.0]])
def test_logits_lie_between_those_of_both_models(models, weight):
    reference, policy, encoded = models
    weight = torch.tensor(weight)
    processor = InterpolatedLogits(reference, weight, encoded["attention_mask"])
    sequences, scores = write(policy, encoded, [processor])
    one, other = (direct(model, sequences, encoded) for model in (reference, policy))
    expected = one + weight.reshape(-1, 1, 1) * (other - one)
    torch.testing.assert_close(scores, expected, atol=2e-4, rtol=1e-4)


def test_the_ends_write_what_each_model_writes(models):
    reference, policy, encoded = models
    for weight, model in ((0.0, reference), (1.0, policy)):
        processor = InterpolatedLogits(reference, weight, encoded["attention_mask"])
        written = write(policy, encoded, [processor])[0]
        torch.testing.assert_close(written, write(model, encoded)[0])


def test_a_weight_that_is_no_number_is_refused(models):
    with pytest.raises(ValueError, match="finite weights, got nan"):
        InterpolatedLogits(models[0], float("nan"))
