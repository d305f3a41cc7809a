"""On a device without float64 a strength is learned as on the CPU: losses and gradients."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from float32_device import float32_device

from mixdpo_pyro.training.learned_strength import Strength, StrengthConfig
from mixdpo_pyro.training.losses.observed import PAIRS, Done
from mixdpo_pyro.training.strength.mixin import StrengthMixin

MARGIN = torch.tensor([3.0, -1.0, 0.5, 8.0])
NUMBERS = torch.arange(4)
IDS = NUMBERS // 2

CASES = {
    "lognormal": ({}, {}),
    "gamma": ({"family": "gamma", "mean_anchor": "prior"}, {}),
    "free": ({"mean_anchor": "free", "flip_probability": 0.1}, {}),
    "fixed": ({"family": "fixed"}, {}),
    "draws": ({"estimator": "draws"}, {}),
    "weighted": ({}, {"weight": torch.tensor([1.0, 0.5, 1.0, 0.2])}),
    "annotators": ({}, {"annotator": IDS}),
    "panels": ({}, {"pair": NUMBERS}),
    "robust": ({"family": "fixed", "baseline": "robust", "flip_probability": 0.1}, {}),
    "beta-dpo": ({"family": "fixed", "baseline": "beta-dpo"}, {}),
    "sets": ({"observation": "sets"}, {"done": Done(choice=IDS)}),
    "ties": (
        {"observation": "rao-kupper", "num_outcomes": 3},
        {"done": Done(code=torch.tensor([2, 1, 0, 2]))},
    ),
    "grades": (
        {"observation": "grades", "num_outcomes": 5},
        {"done": Done(code=torch.tensor([4, 1, 2, 3])), "annotator": IDS},
    ),
}


def learn(config, batch, device, is_training):
    """Loss of a batch, and the gradients of its margins and of the strength's parameters."""

    def gather(value):
        values = value if isinstance(value, tuple) else (value,)
        assert {v.device for v in values} == {device}  # nccl gathers nothing else
        return value

    torch.manual_seed(0)
    trainer = StrengthMixin.__new__(StrengthMixin)  # what the loss needs of a trainer
    trainer.accelerator = SimpleNamespace(device=device, num_processes=1, gather=gather)
    trainer.model = SimpleNamespace(training=is_training)
    trainer.train_dataset = range(40)
    trainer._strength, trainer._divergences = Strength(StrengthConfig(**config)), []
    if "pair" in batch:
        trainer.strength.keep_panels(np.arange(4) // 2)
    trainer.strength.objective.to(device)
    margin = MARGIN.clone().to(device).requires_grad_()
    there = {k: v.to(device) for k, v in batch.items() if isinstance(v, torch.Tensor)}
    done = Done(*(None if v is None else v.to(device) for v in batch.get("done", PAIRS)))
    loss = trainer.strength_loss(margin, done=done, **there)
    assert loss.device == margin.device
    if loss.requires_grad:  # that of an evaluation of sets does not
        loss.backward()
    parameters = dict(trainer.strength.objective.named_parameters())
    assert {p.device for p in parameters.values()} <= {margin.device}
    gradients = {name: p.grad for name, p in parameters.items()} | {"margin": margin.grad}
    summary = trainer.strength.summary() | trainer.strength.thresholds()
    posterior = trainer.strength.posterior(num_samples=3)
    assert np.isfinite(posterior.cv).all()
    return loss.item(), {k: v if v is None else v.cpu() for k, v in gradients.items()}, summary


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CASES)
def test_a_device_without_float64_learns_what_the_cpu_learns(name, is_training):
    config, batch = CASES[name]
    expected = learn(config, batch, torch.device("cpu"), is_training)
    with float32_device() as device:
        found = learn(config, batch, device, is_training)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[2] == pytest.approx(expected[2], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for key, gradient in expected[1].items():
        if gradient is None:
            assert found[1][key] is None
        else:
            torch.testing.assert_close(found[1][key], gradient)
