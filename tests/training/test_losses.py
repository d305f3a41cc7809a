"""What is logged and what is optimised; TRL's other losses beside the mixed likelihood."""

import math

import numpy as np
import pytest
import torch
from scenarios import TRAINING_MARKS, small_world, train_dpo, train_mixdpo
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer import utils

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.learned_strength import Strength, StrengthConfig
from mixdpo_pyro.training.losses.accepted import _REFUSED
from mixdpo_pyro.training.losses.trl_batch import pair_weights
from mixdpo_pyro.training.trainer import MixDPOTrainer

pytestmark = TRAINING_MARKS


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("anchor", ["fixed", "prior", "free"])
@pytest.mark.parametrize("flip_probability", [0.0, 0.2])
@pytest.mark.parametrize("steps", [{}, {"gradient_accumulation_steps": 3}])
def test_first_loss_is_log_two_and_the_divergence_stands_beside_it(
    tmp_path, policy_folder, anchor, flip_probability, steps
):
    """Policy and reference are equal at first, so that every margin is zero."""
    trainer = train_mixdpo(
        tmp_path, policy_folder, mean_anchor=anchor, flip_probability=flip_probability,
        max_steps=1, **steps,
    )  # fmt: skip
    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    kl = logged(trainer, "strength/kl")[0]
    if anchor == "free":
        assert kl == 0.0
    else:  # -log prior of N pairs' worth, at a guide of sd 0.1: about 2 nats a latent
        assert 0.2 < kl * len(trainer.train_dataset) < 10


def test_what_is_optimised_is_the_negative_elbo(tmp_path, policy_folder):
    """Value and gradient of the two terms, against the objective at the same draws."""
    trainer = train_mixdpo(tmp_path, policy_folder, mean_anchor="prior", max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    guide = list(trainer.strength.objective.guide.parameters())
    torch.manual_seed(3)
    loss = trainer.compute_loss(trainer.model, dict(batch))
    found = torch.autograd.grad(loss, guide, retain_graph=True)
    margin = trainer._forward(trainer.model, dict(batch)).margin
    torch.manual_seed(3)
    elbo = trainer.strength.objective(margin, num_total=len(trainer.train_dataset))
    expected = torch.autograd.grad(elbo, guide)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    kl = trainer._divergences[-1]
    assert loss.item() + kl == pytest.approx(elbo.item(), rel=1e-5)


def test_divergence_is_that_of_guide_and_prior():
    """In the mean over draws, against the closed form over log mean and cv."""
    objective = Strength(StrengthConfig(mean_anchor="prior", beta=0.1)).objective
    objective.num_particles = 200_000
    torch.manual_seed(0)
    _, found = objective.terms(torch.zeros(2), num_total=50)
    normal = torch.distributions.Normal
    guide = normal(torch.tensor([0.1, 0.5]).log(), 0.1)
    mean = torch.distributions.kl_divergence(normal(guide.loc[0], 0.1), normal(guide.loc[0], 0.5))
    log_cv, variance = guide.loc[1], 0.1**2
    expected_square = torch.exp(2 * log_cv + 2 * variance)  # of a lognormal cv
    cv = -guide.entropy()[1] - log_cv + expected_square / 2 + 0.5 * math.log(math.pi / 2)
    assert found.item() == pytest.approx((mean + cv).item() / 50, rel=0.01)


@pytest.mark.parametrize(
    "settings",
    [{"loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 2.0]},
     {"loss_type": ["sft", "sigmoid"]}, {"ld_alpha": 0.3},
     pytest.param({"use_weighting": True}, marks=pytest.mark.skipif(
         not hasattr(utils, "add_fused_lm_head"), reason="this trl has no fused head"))],
    ids=["sft", "sft first", "ld", "wpo"],
)  # fmt: skip
def test_other_losses_are_those_of_trl(tmp_path, policy_folder, settings):
    """A fixed strength: every loss, and the weights it moved to, are TRL's."""
    trl = train_dpo(tmp_path, policy_folder, **settings)
    ours = train_mixdpo(tmp_path, policy_folder, family="fixed", **settings)
    np.testing.assert_allclose(logged(ours, "loss"), logged(trl, "loss"), atol=1e-5)
    for a, b in zip(ours.model.parameters(), trl.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_weighting_needs_a_trl_that_keeps_what_its_weights_are_made_of(tmp_path, monkeypatch):
    monkeypatch.setattr("mixdpo_pyro.training.losses.accepted.version", lambda _: "1.9.2")
    with pytest.raises(ConfigError, match=r"use_weighting: not with trl 1\.9\.2; .* 1\.16"):
        MixDPOConfig(str(tmp_path), use_weighting=True)


def test_sft_stands_beside_the_mixed_likelihood(tmp_path, policy_folder):
    """At margins of zero the choices cost log 2, whatever the distribution of the strength."""
    settings = {"max_steps": 1, "family": "gamma"}
    alone = train_mixdpo(tmp_path, policy_folder, **settings)
    both = train_mixdpo(
        tmp_path, policy_folder, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.1], **settings
    )
    assert logged(alone, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    chosen = logged(both, "loss")[0] - math.log(2)
    assert chosen == pytest.approx(0.1 * math.log(400), rel=0.1)  # a random model, 400 tokens


def test_pair_weights_are_the_ratio_of_likelihoods():
    """Two pairs by hand: a token of probability p, of two, has the ratio p / (p^2 + (1-p)^2)."""
    p = torch.tensor([[0.9], [0.5], [0.2], [0.5]])
    outputs = type("Outputs", (), {})()
    outputs.log_probs = torch.cat([torch.zeros(4, 1), p.log()], 1)
    outputs.log_sum_sq_probs = torch.cat([torch.ones(4, 1), (p**2 + (1 - p) ** 2).log()], 1)
    mask = torch.tensor([[0, 0, 1]] * 4)
    ratio = (p / (p**2 + (1 - p) ** 2))[:, 0]
    expected = ratio[:2] * ratio[2:]
    torch.testing.assert_close(pair_weights(outputs, mask), expected)


def test_load_balancing_loss_of_experts_is_added_and_logged(tmp_path, policy_folder):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, moe_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, router_aux_loss_coef=0.5, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    for part in (Qwen3MoeForCausalLM(config), tokenizer):
        part.save_pretrained(tmp_path / "experts")
    trainer = train_mixdpo(
        tmp_path, str(tmp_path / "experts"), max_steps=1, router_aux_loss_coef=0.5
    )
    aux = logged(trainer, "aux_loss")[0]
    assert aux > 1  # of two experts in four that are used alike it is 2, and never below 1
    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2) + 0.5 * aux, abs=1e-4)


def test_every_loss_of_trl_is_taken_or_refused_with_a_reason():
    help_text = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    named = {word.strip("`'.") for word in help_text.replace(",", " ").split() if "`'" in word}
    assert {"sigmoid", "sft", "aot"} <= named
    assert named - {"sigmoid", "sft"} == set(_REFUSED)


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
@pytest.mark.parametrize("anchor", ["fixed", "prior", "free"])
def test_cv_that_is_not_learned_stays(tmp_path, policy_folder, family, anchor):
    trainer = train_mixdpo(
        tmp_path, policy_folder, family=family, mean_anchor=anchor, learn_cv=False,
        strength_initial_cv=0.8, strength_learning_rate=0.2, max_steps=4,
    )  # fmt: skip
    assert set(np.round(logged(trainer, "strength/cv"), 6)) == {0.8}
    moves = logged(trainer, "strength/mean")[-1] != pytest.approx(0.3, rel=1e-3)
    assert moves == (anchor != "fixed")
    names = [] if anchor == "fixed" else ["mean"]
    assert list(trainer.strength.objective.guide.median()) == names
    trainer.strength.save(tmp_path)
    loaded = Strength.from_pretrained(tmp_path)
    assert loaded.summary() == trainer.strength.summary()
    assert loaded.posterior(5).cv == pytest.approx(np.full(5, 0.8))


def test_mean_is_fixed_unless_asked_otherwise(tmp_path):
    assert MixDPOConfig(str(tmp_path)).mean_anchor == StrengthConfig().mean_anchor == "fixed"


def test_default_arguments_are_those_of_trl(monkeypatch, tmp_path, policy_folder):
    monkeypatch.chdir(tmp_path)
    trainer = MixDPOTrainer(policy_folder, train_dataset=small_world())
    assert trainer.args.output_dir == f"{policy_folder.split('/')[-1]}-MixDPO"
    theirs = DPOTrainer(
        policy_folder, args=DPOConfig("x", bf16=False), train_dataset=small_world()
    ).args
    assert trainer.args.learning_rate == theirs.learning_rate
    assert trainer.args.family == "lognormal"
