"""Training with annotators: each strength from the whole panel, in whatever order pairs come."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scenarios import TRAINING, TRAINING_MARKS, small_world, train_mixdpo

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.models import mixed_logit_log_prob
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.learned_strength import PANELS_FILE, Strength
from mixdpo_pyro.training.trainer import MixDPOTrainer

pytestmark = TRAINING_MARKS

FROZEN = {"learning_rate": 1e-12, "strength_learning_rate": 1e-12}


def annotated(folder, policy, **settings):
    return train_mixdpo(folder, policy, **{"annotator_column": "annotator", **settings})


def new_trainer(folder, policy, **settings):
    settings = {**TRAINING, "annotator_column": "annotator", **settings}
    args = MixDPOConfig(str(folder), **settings)
    return MixDPOTrainer(policy, args=args, train_dataset=small_world())


def panels_of(trainer):
    return trainer.strength.objective.panels


def test_an_epoch_sees_every_margin_once(tmp_path, policy_folder):
    """With a policy that does not move, the panels are those of the policy's margins."""
    trainer = annotated(tmp_path, policy_folder, max_steps=-1, num_train_epochs=1, **FROZEN)
    panels = panels_of(trainer)
    assert not panels.margin.isnan().any()
    assert sorted(panels.order.tolist()) == list(range(len(panels.margin)))
    later = panels.order[len(panels.margin) // 2 :]
    expected = panels.margin[later].double() * panels.slope
    torch.testing.assert_close(panels.first_margin[later], expected, rtol=0.2, atol=1e-3)


def test_loss_is_that_of_a_choice_given_all_others_of_its_annotator(tmp_path, policy_folder):
    """By the ratio of two panel likelihoods: with the choice, and without it."""
    trainer = new_trainer(tmp_path, policy_folder, max_steps=1)
    margin = torch.linspace(-9, 9, len(trainer.train_dataset))
    annotator = torch.tensor(trainer.train_dataset["mixdpo_annotator_index"][:])
    panels_of(trainer).update(torch.arange(len(margin)), margin)
    pair = torch.tensor([3, 17])

    def log_prob(kept):
        place = trainer.strength.objective.location()
        return mixed_logit_log_prob(
            margin[kept], place["mean"], place["cv"], "lognormal", annotator=annotator[kept]
        ).sum()

    everything = torch.ones(len(margin), dtype=torch.bool)
    expected = 0.0
    for each in pair:
        others = everything.clone()
        others[each] = False
        expected += (log_prob(others) - log_prob(everything)).item() / len(pair)
    loss, _ = trainer._terms(margin[pair], annotator[pair], pair=pair)
    assert loss.item() == pytest.approx(expected, abs=2e-5)


def test_pairs_come_in_the_order_of_trl(tmp_path, policy_folder):
    trainer = new_trainer(tmp_path, policy_folder, max_steps=1)
    plain = MixDPOTrainer(
        policy_folder, args=MixDPOConfig(str(tmp_path), **TRAINING), train_dataset=small_world()
    )
    for ours, theirs in zip(
        trainer.get_train_dataloader(), plain.get_train_dataloader(), strict=True
    ):
        assert torch.equal(ours["input_ids"], theirs["input_ids"])


@pytest.mark.parametrize("anchor", ["fixed", "prior"])
def test_resumed_panels_equal_uninterrupted_ones(tmp_path, policy_folder, anchor):
    settings = {
        "max_steps": 20, "save_strategy": "steps", "save_steps": 14, "mean_anchor": anchor,
    }  # fmt: skip
    whole = annotated(tmp_path / "whole", policy_folder, **settings)
    resumed = new_trainer(tmp_path / "resumed", policy_folder, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-14"))
    for name, value in panels_of(whole).state_dict().items():
        assert torch.equal(panels_of(resumed).state_dict()[name], value), name
    for name, value in whole.strength.objective.state_dict().items():
        assert torch.equal(resumed.strength.objective.state_dict()[name], value), name
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_policy_takes_no_panels_along(tmp_path, policy_folder):
    trainer = annotated(tmp_path, policy_folder, max_steps=4, save_strategy="steps", save_steps=4)
    trainer.save_model(str(tmp_path / "policy"))
    assert (tmp_path / "checkpoint-4" / PANELS_FILE).is_file()
    assert not (tmp_path / "policy" / PANELS_FILE).exists()
    loaded = Strength.from_pretrained(tmp_path / "policy").summary()
    assert loaded == pytest.approx(trainer.strength.summary())


@pytest.mark.parametrize("fault", ["missing", "short"])
def test_wrong_panels_are_refused(tmp_path, policy_folder, fault):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    annotated(tmp_path, policy_folder, **settings)
    path = tmp_path / "checkpoint-2" / PANELS_FILE
    tensors = load_file(path)
    path.unlink()
    if fault == "short":
        save_file({**tensors, "margin": tensors["margin"][1:].clone()}, path)
    with pytest.raises(OutputError, match=f"{PANELS_FILE}: cannot be read as saved panels"):
        new_trainer(tmp_path, policy_folder, **settings).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


@pytest.mark.parametrize(
    "settings", [{"annotator_block_size": 4}, {"estimator": "draws"}, {"family": "fixed"}]
)
def test_blocks_stay_where_they_are_asked_for_or_needed(tmp_path, policy_folder, settings):
    trainer = new_trainer(tmp_path, policy_folder, max_steps=1, **settings)
    assert not hasattr(trainer.strength.objective, "panels")


def test_cv_that_is_not_learned_stays(tmp_path, policy_folder):
    trainer = annotated(tmp_path, policy_folder, max_steps=3, learn_cv=False)
    assert trainer.strength.summary()["cv"] == pytest.approx(0.5)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses and np.isfinite(losses).all()
