"""Running each response of a batch once gives what running all rows gives, gradients too."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer import utils

from mixdpo_pyro.training.batches.distinct_rows import distinct_rows_only

pytestmark = pytest.mark.skipif(
    not hasattr(utils, "add_fused_lm_head"), reason="this trl has no fused head"
)


@pytest.fixture
def model(policy_folder):
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model


def batch(rows):
    """Sequences of random tokens, of which the given ones stand in the batch."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (5, 9), generator=generator)[rows]
    mask = torch.ones_like(ids)
    mask[:, 7:] = ids[:, 7:] % 2
    labels = ids.masked_fill(torch.arange(9) < 4, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "fused_lm_head": True}


def count_rows(model):
    """Rows that the backbone is given, call by call."""
    seen = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return seen


def test_equal_rows_are_run_once_and_add_up_their_gradients(model):
    rows = [2, 2, 2, 0, 1, 4, 0]
    weight = torch.linspace(1, 2, 8).outer(torch.ones(8))[: len(rows)]

    def gradient():
        model.zero_grad()
        outputs = model(**batch(rows))
        (weight[: len(rows)] * outputs.log_probs).sum().backward()
        return outputs, [p.grad.clone() for p in model.parameters()]

    expected, slopes = gradient()
    seen = count_rows(model)
    with distinct_rows_only([model]):
        found, own = gradient()
    assert seen == [4]
    for name in ("log_probs", "entropy", "mean_logits", "is_top1", "label_mask"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(own, slopes, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    model(**batch(rows))
    assert seen == [4, 7]  # the hooks are gone


def test_rows_that_differ_in_labels_or_mask_only_are_kept_apart(model):
    inputs = batch([1, 1, 1])
    inputs["labels"][1, 5] = -100
    inputs["attention_mask"][2, -1] = 1 - inputs["attention_mask"][2, -1]
    expected, seen = model(**inputs).log_probs, count_rows(model)
    with distinct_rows_only([model]):
        found = model(**inputs).log_probs
    assert seen == [3]
    assert torch.equal(found, expected)


def test_logits_are_expanded_too(model):
    """As versions of TRL take them that have no fused head."""
    inputs = batch([1, 3, 1])
    del inputs["fused_lm_head"], inputs["labels"]
    expected, seen = model(**inputs).logits, count_rows(model)
    with distinct_rows_only([model]):
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
        model(inputs["input_ids"])  # positional inputs are left alone
    assert seen == [2, 3]
