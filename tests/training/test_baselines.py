"""Losses of other papers against TRL's own and against the paper's formula."""

import math

import pytest
import torch
from scenarios import TRAINING_MARKS, small_world
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.learned_strength import Strength, StrengthConfig
from mixdpo_pyro.training.losses.baselines import BetaDPO, build_baseline
from mixdpo_pyro.training.trainer import MixDPOTrainer

pytestmark = TRAINING_MARKS

MARGIN = torch.tensor([3.0, -2.0, 0.5, 10.0, -1.0])


@pytest.mark.parametrize("name", ["robust", "conservative"])
def test_without_noise_it_is_dpo(name):
    expected = -logsigmoid(0.2 * MARGIN).mean()
    torch.testing.assert_close(build_baseline(name, 0.2, 0.0)(MARGIN), expected)


def test_robust_loss_is_unbiased_under_flips():
    """Averaged over flips of its labels it is DPO's loss on the labels before them."""
    noise, baseline = 0.2, build_baseline("robust", 0.3, 0.2)
    flipped = (1 - noise) * baseline(MARGIN) + noise * baseline(-MARGIN)
    torch.testing.assert_close(flipped, -logsigmoid(0.3 * MARGIN).mean())


def test_conservative_loss_is_least_at_the_noise():
    """With one beta Delta = log((1 - eps) / eps) the predicted probability is 1 - eps."""
    margin = torch.tensor([math.log(0.8 / 0.2) / 0.3], requires_grad=True)
    build_baseline("conservative", 0.3, 0.2)(margin).backward()
    assert margin.grad.abs().item() < 1e-7


def test_beta_follows_the_margins_of_the_batch():
    baseline = BetaDPO(0.1, kept=1.0)
    loss = baseline(MARGIN)
    average = 0.1 * MARGIN.mean()  # the moving average after one batch, from zero
    beta = 0.1 * (1 + 0.6 * (MARGIN.mean() - average))
    torch.testing.assert_close(baseline.margin_mean, average)
    torch.testing.assert_close(baseline.margin_scale, 0.1 * MARGIN.std())
    torch.testing.assert_close(loss, -logsigmoid(beta * MARGIN).mean())


def test_beta_stays_positive_when_margins_fall():
    baseline = BetaDPO(0.1, kept=1.0)
    loss = baseline(torch.full((4,), -100.0))
    torch.testing.assert_close(loss, -logsigmoid(torch.tensor(-0.1)))


def test_beta_carries_no_gradient():
    margin = MARGIN.clone().requires_grad_()
    baseline = BetaDPO(0.1, kept=1.0)
    baseline(margin).backward()
    beta = 0.1 * (1 + 0.6 * 0.9 * MARGIN.mean())
    torch.testing.assert_close(margin.grad, -beta * torch.sigmoid(-beta * MARGIN) / 5)


def test_likelier_pairs_are_kept():
    """Weights exp(-z^2/2) at z = 0, 1, 2 (scale 1): 4000 draws of one, a failure rate of 2e-5."""
    baseline = BetaDPO(0.1, kept=0.34)
    baseline.margin_mean.fill_(0.0)
    baseline.margin_scale.fill_(1.0)
    margin = torch.tensor([0.0, 1.0, 2.0])
    counts = torch.zeros(3)
    for _ in range(4000):
        counts[baseline._draw(margin)] += 1
    weights = torch.exp(-margin.square() / 2)
    share = weights / weights.sum()
    bound = 4.5 * (share * (1 - share) / 4000).sqrt()
    assert (counts.sum() == 4000) and ((counts / 4000 - share).abs() < bound).all()


def test_training_with_the_robust_loss_equals_that_of_trl(tmp_path, policy_folder):
    settings = {
        "per_device_train_batch_size": 4, "learning_rate": 1e-3, "max_length": 128, "beta": 0.3,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "max_steps": 5, "bf16": False, "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    theirs = DPOTrainer(
        policy_folder,
        args=DPOConfig(str(tmp_path), loss_type="robust", label_smoothing=0.2, **settings),
        train_dataset=small_world(),
    )
    ours = MixDPOTrainer(
        policy_folder,
        args=MixDPOConfig(
            str(tmp_path), family="fixed", baseline="robust", flip_probability=0.2, **settings
        ),
        train_dataset=small_world(),
    )
    losses = []
    for trainer in (theirs, ours):
        trainer.train()
        losses.append([e["loss"] for e in trainer.state.log_history if "loss" in e])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_moving_averages_are_saved(tmp_path):
    strength = Strength(StrengthConfig(family="fixed", baseline="beta-dpo"))
    strength.objective(MARGIN)
    strength.save(tmp_path)
    loaded = Strength.from_pretrained(tmp_path)
    assert loaded.config.baseline == "beta-dpo"
    torch.testing.assert_close(loaded.objective.margin_mean, strength.objective.margin_mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"baseline": "robust"}, "baseline: 'robust' has a strength that is not random"),
        ({"family": "fixed", "baseline": "ipo"}, "baseline: expected one of robust, conservative"),
        ({"flip_probability": 0.5}, "flip_probability: expected 0 <= value < 0.5, got 0.5"),
        (
            {"family": "fixed", "baseline": "beta-dpo", "flip_probability": 0.1},
            "flip_probability: 'beta-dpo' has no label noise",
        ),
    ],
)
def test_wrong_choices_name_the_key(settings, message):
    with pytest.raises(ConfigError, match=message):
        StrengthConfig(**settings)
