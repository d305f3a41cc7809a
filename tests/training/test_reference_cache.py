"""Reference log-probabilities are computed once and found again."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from scenarios import TRAINING_MARKS, build_policy_folder, small_world, take
from transformers import AutoModelForCausalLM

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.reference_cache import (
    Fingerprint,
    ReferenceCache,
    hash_parameters,
    hash_tokens,
)
from mixdpo_pyro.training.trainer import MixDPOTrainer

pytestmark = TRAINING_MARKS

FINGERPRINT = Fingerprint("train", "m", "t", "128 keep_start", "float32")
LOGPS = {
    "ref_chosen_logps": np.array([-1.5, -2.5], dtype=np.float32),
    "ref_rejected_logps": np.array([-3.0, -4.0], dtype=np.float32),
}


def precomputed(folder, policy, dataset=None, **settings):
    return MixDPOTrainer(
        policy,
        args=MixDPOConfig(
            str(folder / "run"),
            precompute_ref_log_probs=True,
            reference_cache_dir=str(folder / "cache"),
            report_to="none",
            disable_tqdm=True,
            **{"max_length": 128, **settings},
        ),
        train_dataset=take(small_world(), 10) if dataset is None else dataset,
        eval_dataset=take(small_world(), 6),
    )


def test_what_is_saved_is_found(tmp_path):
    cache = ReferenceCache(tmp_path / "cache")
    assert cache.load(FINGERPRINT, 2) is None
    cache.save(FINGERPRINT, LOGPS)
    found = cache.load(FINGERPRINT, 2)
    assert all(np.array_equal(found[name], LOGPS[name]) for name in LOGPS)


def test_damaged_file_is_computed_again(tmp_path, caplog):
    cache = ReferenceCache(tmp_path)
    cache.save(FINGERPRINT, LOGPS)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    assert cache.load(FINGERPRINT, 2) is None
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("shape", [(3,), (2, 2), ()])
def test_file_with_another_shape_is_computed_again(tmp_path, caplog, shape):
    cache = ReferenceCache(tmp_path)
    cache.save(FINGERPRINT, {**LOGPS, "ref_chosen_logps": np.zeros(shape, np.float32)})
    assert cache.load(FINGERPRINT, 2) is None
    assert "holds another number of pairs" in caplog.text


def test_concurrent_saves_do_not_meet(tmp_path, caplog):
    """600 saves by 12 threads; with one temporary name for all, some lose theirs to another."""
    start = threading.Barrier(12)

    def save(number):
        start.wait()
        for _ in range(50):
            ReferenceCache(tmp_path).save(FINGERPRINT, LOGPS)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(save, range(12)))
    assert caplog.text == ""
    assert len(list(tmp_path.iterdir())) == 1
    assert np.array_equal(
        ReferenceCache(tmp_path).load(FINGERPRINT, 2)["ref_chosen_logps"],
        LOGPS["ref_chosen_logps"],
    )


def test_cache_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    ReferenceCache(tmp_path / "cache").save(FINGERPRINT, LOGPS)
    assert "cannot be written" in caplog.text
    assert "the next run computes it again" in caplog.text
    assert ReferenceCache(tmp_path / "cache").load(FINGERPRINT, 2) is None


@pytest.mark.parametrize("changed", ["model", "tokens", "lengths", "precision"])
def test_what_changed_is_said(tmp_path, caplog, changed):
    cache = ReferenceCache(tmp_path)
    cache.save(FINGERPRINT, LOGPS)
    other = Fingerprint(**{**vars(FINGERPRINT), changed: "other"})
    with caplog.at_level(logging.WARNING):
        assert cache.load(other, 2) is None
    assert f"the {changed} changed" in caplog.text


def test_another_part_of_the_data_is_no_change(tmp_path, caplog):
    cache = ReferenceCache(tmp_path)
    cache.save(FINGERPRINT, LOGPS)
    assert cache.load(Fingerprint(**{**vars(FINGERPRINT), "part": "eval"}), 2) is None
    assert caplog.text == ""


def test_second_run_does_no_forward_of_the_reference(tmp_path, policy_folder, monkeypatch):
    first = precomputed(tmp_path, policy_folder)

    def forward(*args):
        raise AssertionError("a forward pass of the reference")

    monkeypatch.setattr(MixDPOTrainer, "compute_ref_log_probs", forward)
    second = precomputed(tmp_path, policy_folder)
    for name in LOGPS:
        assert first.train_dataset[name][:] == second.train_dataset[name][:]
        assert first.eval_dataset[name][:] == second.eval_dataset[name][:]


def test_changed_data_model_and_length_are_computed_again(tmp_path, policy_folder, caplog):
    first = precomputed(tmp_path, policy_folder)
    rows = take(small_world(), 10).to_list()
    rows[2]["chosen"] = rows[2]["rejected"] + " indeed"
    precomputed(tmp_path, policy_folder, dataset=Dataset.from_list(rows))
    assert "the tokens changed" in caplog.text
    build_policy_folder(tmp_path / "other", small_world(), hidden_size=16)
    other = precomputed(tmp_path, str(tmp_path / "other"))
    assert "the model changed" in caplog.text
    assert other.train_dataset["ref_chosen_logps"][:] != first.train_dataset["ref_chosen_logps"][:]
    precomputed(tmp_path, policy_folder, max_length=64)
    assert "the lengths changed" in caplog.text


def test_cached_values_are_sums_of_log_softmax_in_float32(tmp_path, policy_folder):
    trainer = precomputed(tmp_path, policy_folder)
    model = AutoModelForCausalLM.from_pretrained(policy_folder).eval()
    row = trainer.train_dataset[0]
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    with torch.no_grad():
        logps = model(ids).logits.float().log_softmax(-1)
    start = len(row["prompt_ids"])
    expected = sum(logps[0, t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))
    assert row["ref_chosen_logps"] == pytest.approx(expected, abs=1e-3)


def test_order_of_rows_and_of_tokens_count():
    rows = {"prompt_ids": [[1], [2]], "chosen_ids": [[3, 4], [5]], "rejected_ids": [[6], [7]]}
    other = {**rows, "chosen_ids": [[3], [4, 5]]}
    hashes = {hash_tokens(Dataset.from_dict(r)) for r in (rows, other)}
    assert len(hashes | {hash_tokens(Dataset.from_dict(rows).select([1, 0]))}) == 3


def trained_adapter(policy):
    """A PEFT model whose adapter changes the model."""
    base = AutoModelForCausalLM.from_pretrained(policy)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def tokenizer_of(policy):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(policy)


@pytest.mark.parametrize("precompute", [False, True])
def test_trained_adapter_stays_in_the_reference(tmp_path, policy_folder, precompute):
    """At the start policy and reference are one, so every margin is zero."""
    trained_adapter(policy_folder).save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(policy_folder),
        tmp_path / "adapter",
        is_trainable=True,
    )
    trainer = MixDPOTrainer(
        model,
        args=MixDPOConfig(
            str(tmp_path / "run"),
            precompute_ref_log_probs=precompute,
            reference_cache_dir=str(tmp_path / "cache"),
            max_length=128,
            report_to="none",
        ),
        train_dataset=take(small_world(), 6),
        eval_dataset=take(small_world(), 6),
        processing_class=tokenizer_of(policy_folder),
    )
    assert np.abs(trainer.margins()["margin"]).max() < 1e-4
    with model.disable_adapter(), torch.no_grad():
        ids = torch.tensor([trainer.train_dataset[0]["prompt_ids"]])
        base = model(ids).logits
    assert (model(ids).logits - base).abs().max() > 0.01  # the adapter does change the model


def test_adapter_folder_is_refused(tmp_path, policy_folder):
    trained_adapter(policy_folder).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="an adapter that was already trained"):
        MixDPOTrainer(
            str(tmp_path / "adapter"),
            args=MixDPOConfig(str(tmp_path / "run"), report_to="none"),
            train_dataset=take(small_world(), 6),
        )


def test_new_adapters_do_not_change_the_hash_of_their_reference(policy_folder):
    base = AutoModelForCausalLM.from_pretrained(policy_folder)
    hashes = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"]))
        hashes.add(hash_parameters(model))
        base = model.unload()
    assert len(hashes) == 1
