import math

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from scenarios import TRAINING, TRAINING_MARKS, small_world, take, train_dpo
from scenarios import train_mixdpo as mixdpo
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

from mixdpo_pyro.errors import ConfigError, DataError, NonFiniteLossError
from mixdpo_pyro.models import mixed_logit_log_prob
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.learned_strength import Strength
from mixdpo_pyro.training.tiny_llama import train_tokenizer
from mixdpo_pyro.training.trainer import MixDPOTrainer

pytestmark = TRAINING_MARKS


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_fixed_strength_is_trl_dpo(tmp_path, policy_folder):
    """Same seed, same data, 20 steps: every loss and every metric of TRL's."""
    trl = train_dpo(tmp_path, policy_folder, max_steps=20)
    ours = mixdpo(tmp_path, policy_folder, family="fixed", max_steps=20)
    assert len(logged(trl, "loss")) == 20
    shared = {name for entry in trl.state.log_history for name in entry}
    for name in shared - {"train_runtime", "train_samples_per_second", "train_steps_per_second"}:
        np.testing.assert_allclose(
            logged(ours, name), logged(trl, name), atol=1e-5, rtol=0, err_msg=name
        )
    weights = zip(ours.model.parameters(), trl.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in weights)


def test_loss_moves_with_the_margins_of_an_independent_computation(tmp_path, policy_folder):
    """The margin that is tapped in TRL's loss, against log-softmax sums computed by hand."""
    trainer = mixdpo(tmp_path, policy_folder, family="gamma")
    reference = AutoModelForCausalLM.from_pretrained(policy_folder).eval()
    policy = AutoModelForCausalLM.from_pretrained(policy_folder).eval()
    policy.load_state_dict(trainer.model.state_dict())

    def log_prob(model, prompt, completion):
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1)
        picked = logps.gather(1, ids[0, 1:, None])[:, 0]
        return picked[-len(completion) :].sum().item()

    margins = trainer.margins()
    for row, margin, pair in zip(
        margins["source_row"], margins["margin"], trainer.eval_dataset, strict=True
    ):
        expected = sum(
            sign * (log_prob(policy, pair["prompt_ids"], pair[name])
                    - log_prob(reference, pair["prompt_ids"], pair[name]))
            for sign, name in ((1, "chosen_ids"), (-1, "rejected_ids"))
        )  # fmt: skip
        assert margin == pytest.approx(expected, abs=2e-4)
        assert row == pair["source_row"]


@pytest.mark.parametrize(
    ("family", "estimator"),
    [("lognormal", "quadrature"), ("lognormal", "draws"), ("gamma", "series"),
     ("gamma", "draws"), ("gamma", "quadrature")],
)  # fmt: skip
def test_every_family_and_estimator_learns_policy_and_strength(
    tmp_path, policy_folder, family, estimator
):
    """Without a prior the loss is the likelihood alone, and at margin 0 that is 1/2."""
    trainer = mixdpo(
        tmp_path, policy_folder, family=family, estimator=estimator, max_steps=24,
        mean_anchor="free", strength_learning_rate=0.05,
    )  # fmt: skip
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert np.mean(losses[-6:]) < math.log(2) - 0.02
    cv = logged(trainer, "strength/cv")
    assert abs(cv[-1] - 0.5) > 0.01
    assert logged(trainer, "strength/q05")[-1] < logged(trainer, "strength/mean")[-1]


@pytest.mark.parametrize("anchor", ["fixed", "prior", "free"])
def test_mean_is_anchored_as_asked(tmp_path, policy_folder, anchor):
    trainer = mixdpo(tmp_path, policy_folder, mean_anchor=anchor, strength_learning_rate=0.2)
    means = logged(trainer, "strength/mean")
    if anchor == "fixed":
        assert means == pytest.approx([0.3] * len(means))
    else:
        assert abs(means[-1] - 0.3) > 1e-3
    draws = trainer.strength.draw(100)["cv"]
    assert bool((draws == draws[0]).all()) == (anchor == "free")


def test_rewards_use_the_mean_strength(tmp_path, policy_folder):
    trainer = mixdpo(
        tmp_path, policy_folder, mean_anchor="prior", strength_learning_rate=0.1,
        per_device_eval_batch_size=10,
    )  # fmt: skip
    metrics = trainer.evaluate()
    margin = trainer.margins()["margin"].mean()
    mean = trainer.strength.summary()["mean"]
    assert metrics["eval_rewards/margins"] == pytest.approx(mean * margin, rel=1e-4)
    assert mean != pytest.approx(0.3, rel=1e-3)


def test_evaluation_loss_is_the_mixed_logit_at_the_learned_distribution(tmp_path, policy_folder):
    trainer = mixdpo(tmp_path, policy_folder, family="gamma", per_device_eval_batch_size=10)
    location = trainer.strength.objective.location()
    expected = -mixed_logit_log_prob(
        torch.tensor(trainer.margins()["margin"]), location["mean"], location["cv"], "gamma"
    ).mean()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, policy_folder):
    """Plain SGD, no clipping: two half batches move everything as one whole batch does."""
    settings = {
        "optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "max_grad_norm": 0.0,
        "mean_anchor": "free", "strength_learning_rate": 0.1,
    }  # fmt: skip
    whole = mixdpo(tmp_path, policy_folder, per_device_train_batch_size=4, **settings)
    halves = mixdpo(
        tmp_path, policy_folder, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        **settings,
    )  # fmt: skip
    for name, value in whole.strength.objective.state_dict().items():
        torch.testing.assert_close(halves.strength.objective.state_dict()[name], value)
    for ours, theirs in zip(halves.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def annotated(folder, policy, **settings):
    settings = {"annotator_column": "annotator", "mean_anchor": "free", **settings}
    return mixdpo(folder, policy, **settings)


def test_annotators_share_their_strength_as_in_the_exact_panel_likelihood(tmp_path, policy_folder):
    """All pairs of all annotators in one batch: the loss is the panel's, per pair."""
    trainer = annotated(tmp_path, policy_folder, max_steps=1)
    number = len(trainer.train_dataset)
    margin = torch.linspace(-9, 9, number)
    annotator = torch.tensor(trainer.train_dataset["mixdpo_annotator_index"][:])
    panel = mixed_logit_log_prob(
        margin, **trainer.strength.objective.location(), family="lognormal", annotator=annotator
    )
    assert panel.shape == (6,)
    loss = sum(trainer._terms(margin, annotator)).item()
    assert loss == pytest.approx(-panel.sum().item() / number, rel=1e-5)


def test_blocks_of_one_pair_are_pairs_without_ids(tmp_path, policy_folder):
    trainer = annotated(tmp_path, policy_folder, max_steps=1)
    margin = torch.linspace(-9, 9, 8)
    alone = trainer._terms(margin, torch.arange(8))[0].item()
    assert alone == pytest.approx(trainer._terms(margin, None)[0].item(), rel=1e-5)


def test_batches_hold_blocks_of_annotators(tmp_path, policy_folder):
    trainer = annotated(tmp_path, policy_folder, max_steps=1, annotator_block_size=4)
    for batch in trainer.get_train_dataloader():
        assert len(batch["mixdpo_annotator_index"].unique()) == 1


def test_training_with_annotators_resumes_where_it_stopped(tmp_path, policy_folder):
    settings = {"max_steps": 20, "save_strategy": "steps", "save_steps": 14}  # 12 steps an epoch
    whole = annotated(tmp_path / "whole", policy_folder, **settings)
    resumed = MixDPOTrainer(
        policy_folder,
        args=MixDPOConfig(
            str(tmp_path / "resumed"),
            **{**TRAINING, **settings, "annotator_column": "annotator", "mean_anchor": "free"},
        ),
        train_dataset=small_world(),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-14"))
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_resumed_training_equals_uninterrupted_training(tmp_path, policy_folder):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "family": "gamma"}
    whole = mixdpo(tmp_path / "whole", policy_folder, **settings)
    resumed = MixDPOTrainer(
        policy_folder,
        args=MixDPOConfig(str(tmp_path / "resumed"), **{**TRAINING, **settings}),
        train_dataset=small_world(),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, value in whole.strength.objective.state_dict().items():
        assert torch.equal(resumed.strength.objective.state_dict()[name], value), name
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpoint_holds_the_strength(tmp_path, policy_folder):
    trainer = mixdpo(tmp_path, policy_folder, save_strategy="steps", save_steps=6)
    loaded = Strength.from_pretrained(tmp_path / "checkpoint-6")
    assert loaded.summary() == trainer.strength.summary()
    assert loaded.config == trainer.strength.config


def test_precomputed_reference_gives_the_same_losses(tmp_path, policy_folder):
    """A point guide: reading the data twice moves the generator that a guide draws from."""
    plain = mixdpo(tmp_path, policy_folder, mean_anchor="free")
    ahead = mixdpo(tmp_path, policy_folder, mean_anchor="free", precompute_ref_log_probs=True)
    np.testing.assert_allclose(logged(plain, "loss"), logged(ahead, "loss"), atol=1e-5)
    margins = [t.margins()["margin"] for t in (plain, ahead)]
    np.testing.assert_allclose(*margins, atol=1e-3)


def test_lora_trains_adapters_and_strength(tmp_path, policy_folder):
    from peft import LoraConfig

    trainer = MixDPOTrainer(
        policy_folder,
        args=MixDPOConfig(str(tmp_path), **{**TRAINING, "max_steps": 4, "learning_rate": 0.05}),
        train_dataset=small_world(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    assert trainer.margins(trainer.train_dataset)["margin"].std() > 1e-3
    assert trainer.strength.summary()["cv"] != pytest.approx(0.5, rel=1e-3)


def test_non_finite_loss_names_step_and_rows(tmp_path, policy_folder):
    dataset = take(small_world(), 8)
    trainer = MixDPOTrainer(
        policy_folder,
        args=MixDPOConfig(str(tmp_path), **{**TRAINING, "max_steps": 2}),
        train_dataset=dataset,
    )
    with torch.no_grad():
        next(trainer.model.parameters())[5] = float("nan")
    with pytest.raises(
        NonFiniteLossError, match=r"step 1: the margin is not finite for rows \[.*\] of"
    ):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "normal"}, "family: expected one of lognormal, gamma, fixed, got 'normal'"),
        ({"family": "lognormal", "estimator": "series"}, "'series' is for family 'gamma'"),
        ({"mean_anchor": "prio"}, "mean_anchor: expected one of"),
        ({"beta": 0.0}, "beta: expected a finite number > 0, got 0.0"),
        ({"strength_learning_rate": -1.0}, "strength_learning_rate: expected"),
        ({"annotator_block_size": 0}, "annotator_block_size: expected at least 1, got 0"),
        ({"loss_type": ["hinge"]}, "loss_type: .*got .*hinge"),
        ({"loss_type": ["sigmoid", "bco_pair"]}, "got 'bco_pair'; it scores each response"),
        ({"loss_type": ["sft"]}, r"'sigmoid' once, alone or with 'sft', got \['sft'\]"),
        ({"loss_type": ["sigmoid"] * 2}, "expected 'sigmoid' once"),
        ({"loss_weights": [0.0]}, "loss_weights: expected finite numbers > 0, got 0.0"),
        ({"label_smoothing": 0.1}, "label_smoothing: "),
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type: expected 'reverse_kl'"),
        ({"use_weighting": True, "annotator_column": "a"}, "not with annotator_column; pairs"),
        ({"use_weighting": True, "loss_type": ["sigmoid", "sft"]}, "not with loss_type 'sft'"),
        ({"use_weighting": True, "family": "fixed", "baseline": "robust"}, "not with baseline"),
    ],
)
def test_wrong_settings_name_the_key(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        MixDPOConfig(str(tmp_path), **settings)


def test_best_checkpoint_brings_its_strength(tmp_path, policy_folder):
    """The loss falls, so the largest loss, called best here, is not at the last checkpoint."""
    trainer = mixdpo(
        tmp_path, policy_folder, max_steps=6, learning_rate=1.0, save_strategy="steps",
        save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        greater_is_better=True, mean_anchor="free",
    )  # fmt: skip
    best = trainer.state.best_model_checkpoint
    assert not best.endswith("checkpoint-6")
    assert trainer.strength.summary() == Strength.from_pretrained(best).summary()


def test_training_goes_on_with_a_second_call(tmp_path, policy_folder):
    trainer = mixdpo(tmp_path, policy_folder, max_steps=2)
    before = trainer.strength.summary()["cv"]
    trainer.train()
    assert trainer.strength.summary()["cv"] != before


@pytest.mark.parametrize("schedule", [None, "lambda", "cosine", "sequential"])
def test_given_optimizer_and_schedule_take_the_strength_too(tmp_path, policy_folder, schedule):
    from torch.optim import lr_scheduler as lrs

    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    builders = {
        None: lambda: None,
        "lambda": lambda: lrs.LambdaLR(optimizer, lambda step: 0.5**step),
        "cosine": lambda: lrs.CosineAnnealingLR(optimizer, T_max=4),
        "sequential": lambda: lrs.SequentialLR(
            optimizer, [lrs.ConstantLR(optimizer, 0.5, 1), lrs.StepLR(optimizer, 1, 0.5)], [1]
        ),
    }
    trainer = MixDPOTrainer(
        model,
        args=MixDPOConfig(
            str(tmp_path), **{**TRAINING, "max_steps": 2, "strength_learning_rate": 0.2}
        ),
        train_dataset=small_world(),
        processing_class=AutoTokenizer.from_pretrained(policy_folder),
        optimizers=(optimizer, builders[schedule]()),
    )
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    policy, strength = optimizer.param_groups
    assert strength["lr"] == pytest.approx(2 * policy["lr"])
    assert strength["lr"] < 0.2
    assert trainer.strength.summary()["cv"] != pytest.approx(0.5, rel=1e-6)


def test_args_of_trl_are_refused_with_a_hint(tmp_path, policy_folder):
    with pytest.raises(ConfigError, match="expected a MixDPOConfig, got DPOConfig"):
        MixDPOTrainer(
            policy_folder, args=DPOConfig(str(tmp_path), bf16=False), train_dataset=small_world()
        )


def test_strength_waits_for_its_warm_up(tmp_path, policy_folder):
    trainer = mixdpo(tmp_path, policy_folder, strength_warmup_steps=4, max_steps=6)
    cvs, policy = logged(trainer, "strength/cv"), logged(trainer, "logps/chosen")
    assert cvs[:4] == pytest.approx([0.5] * 4) and cvs[5] != pytest.approx(0.5)
    assert len(set(policy)) == 6  # while the policy learns


@pytest.mark.parametrize(
    ("anchor", "words"),
    [("free", "'free' nothing anchors it"), ("prior", "'prior' its prior counts once"),
     ("fixed", None)],
)  # fmt: skip
def test_mean_that_runs_away_is_warned_of_once(tmp_path, policy_folder, caplog, anchor, words):
    mixdpo(tmp_path, policy_folder, mean_anchor=anchor, strength_learning_rate=3.0, max_steps=4)
    assert caplog.text.count("it trades off against the scale") == (words is not None)
    assert words is None or words in caplog.text


def test_evaluation_tells_groups_apart(tmp_path, policy_folder):
    trainer = mixdpo(
        tmp_path, policy_folder, group_column="annotator", per_device_eval_batch_size=4
    )
    metrics = trainer.evaluate()
    margin = trainer.margins()["margin"]
    group = np.asarray(trainer.eval_dataset["annotator"][:]).astype(str)
    assert metrics["eval_micro/margin"] == pytest.approx(margin.mean(), abs=1e-5)
    means = [margin[group == name].mean() for name in np.unique(group)]
    assert len(means) > 1
    assert metrics["eval_macro/margin"] == pytest.approx(np.mean(means), abs=1e-5)
    assert metrics["eval_worst_group/margin"] == pytest.approx(min(means), abs=1e-5)
    assert metrics["eval_micro/margin_q05"] < metrics["eval_micro/margin"]
    assert set(trainer.group_table) == set(group)
    assert "eval_worst_group/accuracy" in trainer.state.log_history[-1]


def test_data_given_to_evaluate_are_grouped_as_those_given_at_first(tmp_path, policy_folder):
    trainer = mixdpo(tmp_path, policy_folder, group_column="annotator", max_steps=2)
    expected, table = trainer.evaluate(), trainer.group_table
    raw = take(small_world(), 10)
    found = trainer.evaluate(raw)
    for name in expected:
        if "group" in name or "macro" in name or name == "eval_loss":
            assert found[name] == pytest.approx(expected[name], abs=1e-5), name
    assert trainer.group_table == table
    assert "eval_worst_group/accuracy" in found
    margins = trainer.margins(raw)
    np.testing.assert_allclose(margins["margin"], trainer.margins()["margin"], atol=1e-5)


def test_several_evaluation_datasets_have_their_own_groups(tmp_path, policy_folder):
    world = small_world()
    parts = {"early": take(world, 20), "late": world.select(range(30, 48))}
    trainer = MixDPOTrainer(
        policy_folder,
        args=MixDPOConfig(str(tmp_path), **{**TRAINING, "group_column": "annotator"}),
        train_dataset=world,
        eval_dataset=DatasetDict(parts),
    )
    metrics = trainer.evaluate()
    assert {"eval_early_macro/accuracy", "eval_late_worst_group/margin"} <= set(metrics)
    assert set(trainer.group_table) == set(parts["late"]["annotator"])
    again = trainer.evaluate(parts)
    assert again["eval_early_macro/margin"] == metrics["eval_early_macro/margin"]
    assert len(trainer.margins("late")["margin"]) == 18
    with pytest.raises(ConfigError, match="expected one of early, late"):
        trainer.margins()


@pytest.mark.parametrize("precompute", [False, True])
def test_margins_of_new_pairs_need_a_reference(tmp_path, policy_folder, precompute):
    trainer = MixDPOTrainer(
        policy_folder,
        args=MixDPOConfig(
            str(tmp_path), **TRAINING, max_steps=1, precompute_ref_log_probs=precompute
        ),
        train_dataset=small_world(),
    )
    pairs = take(small_world(), 6)
    np.testing.assert_allclose(trainer.margins(pairs)["margin"], 0, atol=1e-5)
    trainer.train()
    if precompute:  # the reference was the policy before it was trained
        with pytest.raises(ConfigError, match="the reference is gone"):
            trainer.margins(pairs)
    else:
        assert np.abs(trainer.margins(pairs)["margin"]).max() > 1e-3


def test_margins_come_with_the_tokens_that_were_scored(tmp_path, policy_folder):
    trainer = mixdpo(tmp_path, policy_folder, max_length=24, max_steps=1)
    found = trainer.margins()
    for number, pair in enumerate(trainer.eval_dataset):
        room = 24 - len(pair["prompt_ids"])
        for side in ("chosen", "rejected"):
            assert found[f"{side}_tokens"][number] == min(len(pair[f"{side}_ids"]), room)


def test_annotators_of_a_stream_share_their_strength(tmp_path, policy_folder):
    """Sorted by annotator, eight pairs each: a batch of eight is one annotator's."""
    settings = {**TRAINING, "per_device_train_batch_size": 8, "annotator_column": "annotator"}

    def trainer(dataset):
        return MixDPOTrainer(
            policy_folder,
            args=MixDPOConfig(str(tmp_path), **settings, mean_anchor="free", max_steps=3),
            train_dataset=dataset,
        )

    world = small_world()
    stream = trainer(world.select(np.argsort(world["annotator"])).to_iterable_dataset())
    batches = list(stream.get_train_dataloader())
    assert len(batches) == 6
    assert len({int(b["mixdpo_annotator_index"].unique().item()) for b in batches}) == 6
    stream.train()
    assert logged(stream, "loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    no_ids = small_world().remove_columns("annotator").to_iterable_dataset()
    with pytest.raises(DataError, match="a row has no value in column 'annotator'"):
        trainer(no_ids).train()


@pytest.mark.parametrize("iterable_as", ["train", "eval", "eval_dict"])
def test_streams_cannot_be_precomputed_as_in_trl(tmp_path, policy_folder, iterable_as):
    world, stream = small_world(), small_world().to_iterable_dataset()
    train_set, eval_set = {
        "train": (stream, None), "eval": (world, stream), "eval_dict": (world, {"a": stream}),
    }[iterable_as]  # fmt: skip
    with pytest.raises(ValueError, match=r"precompute_ref_log_probs.*not supported with Iter"):
        MixDPOTrainer(
            policy_folder,
            args=MixDPOConfig(
                str(tmp_path), **TRAINING, max_steps=1, precompute_ref_log_probs=True
            ),
            train_dataset=train_set,
            eval_dataset=eval_set,
        )


def test_model_card_tells_the_strength(tmp_path, policy_folder):
    trainer = mixdpo(
        tmp_path, policy_folder, family="gamma", mean_anchor="prior", save_strategy="steps",
        save_steps=3,
    )  # fmt: skip
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert card.count("## Preference strength") == 1
    assert f"| gamma | prior | {trainer.strength.summary()['mean']:.3g} |" in card
    assert "2601.06180" in card


def test_gpt_neox_resumes_with_its_head(tmp_path):
    """transformers saves its `lm_head` under another name than it resumes from."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    world = small_world()
    texts = [text for name in ("prompt", "chosen", "rejected") for text in world[name]]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    for part in (GPTNeoXForCausalLM(config), tokenizer):
        part.save_pretrained(tmp_path / "policy")
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = mixdpo(tmp_path / "run", str(tmp_path / "policy"), **settings)
    resumed = MixDPOTrainer(
        str(tmp_path / "policy"),
        args=MixDPOConfig(str(tmp_path / "run"), **{**TRAINING, **settings}),
        train_dataset=world,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert torch.equal(loaded.lm_head.weight, whole.model.lm_head.weight)
