"""The strength in a plain `transformers.Trainer`, against `MixDPOTrainer` on the same batches."""

import copy

import numpy as np
import pytest
import torch
from scenarios import TRAINING, TRAINING_MARKS, small_world, train_dpo
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer

from mixdpo_pyro import (
    DPOStrengthMixin,
    MixDPOConfig,
    MixDPOTrainer,
    Strength,
    StrengthConfig,
    StrengthMixin,
    strength_parameter_groups,
)
from mixdpo_pyro.errors import ConfigError, NonFiniteLossError
from mixdpo_pyro.inference import StrengthObjective, build_strength_guide
from mixdpo_pyro.models import PreferenceModel
from mixdpo_pyro.training.batches.numbering import ANNOTATOR_INDEX, PAIR_INDEX

pytestmark = TRAINING_MARKS

PLAIN = {
    name: value
    for name, value in TRAINING.items()
    if name not in ("max_length", "beta", "gradient_checkpointing")
} | {"remove_unused_columns": False, "max_steps": 5}

ANNOTATED = {"annotator_column": "annotator"}

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "epoch")


class PlainDPO(StrengthMixin, Trainer):
    """DPO as one writes it oneself: log-probabilities of completions, policy and reference."""

    def __init__(self, model, reference, *args, strength, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.reference = reference
        self.learn_strength(**strength)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pair = inputs.pop(PAIR_INDEX, None)
        for name in set(inputs) - {"input_ids", "attention_mask", "completion_mask"}:
            inputs.pop(name)
        mask = inputs.pop("completion_mask")
        with torch.no_grad():
            reference = self.log_prob(self.reference, inputs, mask)
        chosen, rejected = (self.log_prob(model, inputs, mask) - reference).chunk(2)
        loss = self.strength_loss(chosen - rejected, pair=pair)
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model, inputs, *args, **kwargs):
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    @staticmethod
    def log_prob(model, inputs, mask):
        logps = model(**inputs, use_cache=False).logits[:, :-1].log_softmax(-1)
        tokens = inputs["input_ids"][:, 1:, None]
        return (logps.gather(2, tokens)[..., 0] * mask[:, 1:]).sum(1)


def ours_and_data(folder, policy, **settings):
    trainer = MixDPOTrainer(
        policy,
        args=MixDPOConfig(str(folder), **{**TRAINING, "max_steps": 5, **settings}),
        train_dataset=small_world(),
    )
    return trainer, (trainer.train_dataset, trainer.data_collator)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, policy_folder):
    """Pairs as TRL prepares them, and its collator."""
    return ours_and_data(tmp_path_factory.mktemp("pairs"), policy_folder)[1]


@pytest.fixture(scope="module")
def panels(tmp_path_factory, policy_folder):
    """The same with numbers of annotators and pairs."""
    return ours_and_data(tmp_path_factory.mktemp("panels"), policy_folder, **ANNOTATED)[1]


WITH_PRIOR = StrengthConfig(mean_anchor="prior", beta=0.3)


def plain_trainer(folder, policy, prepared, config=WITH_PRIOR, warmup=0, **settings):
    """A trainer of one's own, on prepared pairs."""
    data, collator = prepared
    has_panels = PAIR_INDEX in data.column_names
    return PlainDPO(
        AutoModelForCausalLM.from_pretrained(policy),
        AutoModelForCausalLM.from_pretrained(policy).eval(),
        TrainingArguments(str(folder), **{**PLAIN, **settings}),
        data_collator=collator,
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        strength={
            "strength": config,
            "warmup_steps": warmup,
            "annotator": np.asarray(data[ANNOTATOR_INDEX][:]) if has_panels else None,
        },
    )


def train(trainer, **kwargs):
    torch.manual_seed(3)
    trainer.train(**kwargs)
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(
    ("strength", "settings"),
    [
        ({"family": "lognormal", "mean_anchor": "prior", "strength_warmup_steps": 2}, {}),
        ({"family": "gamma"}, {"weight_decay": 0.3, "gradient_accumulation_steps": 2}),
        (ANNOTATED, {}),
    ],
)
def test_a_plain_trainer_learns_what_mixdpo_trainer_learns(
    tmp_path, policy_folder, strength, settings
):
    """Losses, logs, strength and policy at equal draws; the forward passes differ by rounding."""
    ours, data = ours_and_data(tmp_path, policy_folder, **strength, **settings)
    warmup = ours.args.strength_warmup_steps
    config = ours.strength.config
    plain = plain_trainer(tmp_path, policy_folder, data, config, warmup=warmup, **settings)
    train(ours), train(plain)
    names = {n for entry in plain.state.log_history for n in entry} - set(TIMES)
    assert {"loss", "grad_norm", "strength/mean", "strength/cv", "strength/kl"} < names
    for name in names:
        np.testing.assert_allclose(
            logged(plain, name), logged(ours, name), rtol=2e-4, atol=1e-5, err_msg=name
        )
    for name, value in ours.strength.objective.state_dict().items():
        torch.testing.assert_close(plain.strength.objective.state_dict()[name], value)
    for mine, theirs in zip(plain.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["pairs", "panels"])
def test_a_plain_trainer_resumes_bitwise(tmp_path, policy_folder, kind, request):
    data = request.getfixturevalue(kind)
    settings = {"save_strategy": "steps", "save_steps": 3, "weight_decay": 0.1}
    whole, resumed = (
        plain_trainer(tmp_path / name, policy_folder, data, **settings)
        for name in ("whole", "resumed")
    )
    torch.manual_seed(3)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, value in whole.strength.objective.state_dict().items():
        assert torch.equal(resumed.strength.objective.state_dict()[name], value), name
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert logged(resumed, "loss") == logged(whole, "loss")
    whole.save_model(str(tmp_path / "saved"))  # a last checkpoint comes before cv catches up
    loaded = Strength.from_pretrained(tmp_path / "saved")
    assert loaded.summary() == whole.strength.summary()


def test_weight_decay_leaves_the_strength_alone(tmp_path, policy_folder, pairs):
    """The policy stands still at rate 0, so that nothing but a decay could move the strength."""
    settings = {"learning_rate": 0.0, "max_steps": 2}
    plain, decayed = (
        train(plain_trainer(tmp_path, policy_folder, pairs, weight_decay=decay, **settings))
        for decay in (0.0, 0.9)
    )
    assert plain.strength.summary()["cv"] != pytest.approx(0.5, rel=1e-6)
    assert plain.strength.summary() == decayed.strength.summary()


def test_evaluation_and_the_best_model_bring_the_strength(tmp_path, policy_folder, pairs):
    plain = plain_trainer(
        tmp_path, policy_folder, pairs, eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, max_steps=4, load_best_model_at_end=True,
        greater_is_better=True,
    )  # fmt: skip
    train(plain)
    best = plain.state.best_model_checkpoint
    assert plain.strength.summary() == Strength.from_pretrained(best).summary()
    evaluations = [entry for entry in plain.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 2
    for entry in evaluations:
        names = {name for name in entry if "strength" in name}
        assert names == {f"eval_strength/{name}" for name in ("mean", "cv", "q05", "q95")}
    assert "strength/cv" in plain.state.log_history[-1]  # the summary of the training


def test_a_trainer_that_never_began_to_learn_a_strength_says_so(tmp_path, policy_folder):
    class Forgetful(StrengthMixin, Trainer):
        pass

    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    with pytest.raises(ConfigError, match="call learn_strength"):
        Forgetful(model, TrainingArguments(str(tmp_path), **PLAIN)).create_optimizer()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate: expected a finite value > 0, got 0.0"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0, got -1"),
        ({"strength": StrengthConfig("fixed")}, "annotator: .*'fixed', in which all strengths"),
        ({"strength": StrengthConfig(estimator="draws")}, "annotator: .*estimator 'draws'"),
        ({"strength": StrengthConfig(observation="sets")}, "annotator: .*choices that are sets"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, policy_folder, arguments, message):
    class Theirs(StrengthMixin, Trainer):
        pass

    trainer = Theirs(
        AutoModelForCausalLM.from_pretrained(policy_folder),
        TrainingArguments(str(tmp_path), **PLAIN),
    )
    with pytest.raises(ConfigError, match=message):
        trainer.learn_strength(
            **{"strength": StrengthConfig(), "annotator": np.zeros(4, int), **arguments}
        )


def test_batches_without_what_the_loss_needs_are_refused(tmp_path, policy_folder, panels):
    plain = plain_trainer(tmp_path, policy_folder, panels)
    plain.model.train()
    with pytest.raises(ConfigError, match="pair: missing, and learn_strength was told"):
        plain.strength_loss(torch.zeros(2))
    with pytest.raises(NonFiniteLossError, match="margin is not finite for 1 pairs"):
        plain.strength_loss(torch.tensor([0.0, float("nan")]))
    plain.learn_strength(StrengthConfig())
    with pytest.raises(ConfigError, match="pair: given, and learn_strength was not told"):
        plain.strength_loss(torch.zeros(2), pair=torch.arange(2))


# Subclasses of trl.DPOTrainer


class TheirDPOTrainer(DPOTrainer):
    """Somebody's subclass."""


class Theirs(DPOStrengthMixin, TheirDPOTrainer):
    def __init__(self, *args, family="lognormal", **kwargs):
        super().__init__(*args, **kwargs)
        self.learn_strength(StrengthConfig(family, beta=self.beta))


def their_trainer(folder, policy, family, **settings):
    settings = {**TRAINING, "max_steps": 5, **settings}
    return Theirs(
        policy, args=DPOConfig(str(folder), **settings), train_dataset=small_world(), family=family
    )


@pytest.mark.parametrize("loss", [["sigmoid"], ["sigmoid", "sft"]])
def test_a_fixed_strength_in_a_subclass_is_trl_dpo(tmp_path, policy_folder, loss):
    weights = [0.7, 0.2][: len(loss)]
    settings = {"loss_type": loss, "loss_weights": weights, "max_steps": 2}
    trl = train_dpo(tmp_path, policy_folder, **settings)
    theirs = their_trainer(tmp_path, policy_folder, "fixed", **settings)
    theirs.train()
    for name in {n for entry in trl.state.log_history for n in entry} - set(TIMES):
        np.testing.assert_allclose(
            logged(theirs, name), logged(trl, name), atol=1e-5, rtol=0, err_msg=name
        )


def test_losses_without_a_likelihood_are_refused_in_subclasses(tmp_path, policy_folder):
    with pytest.raises(ConfigError, match=r"loss_type: .*got 'ipo'"):
        their_trainer(tmp_path, policy_folder, "lognormal", loss_type=["ipo"])


# Optimizers of one's own


def test_groups_have_their_own_rate_and_no_decay_in_a_loop_of_ones_own():
    """AdamW with a decay moves the strength as Adam without one does."""
    model = PreferenceModel("lognormal", mean_anchor="prior", beta=0.5)
    first = StrengthObjective(model, build_strength_guide(model, 0.5))
    second = copy.deepcopy(first)
    line = torch.nn.Linear(3, 1)
    adamw = torch.optim.AdamW(
        [{"params": line.parameters()}, *strength_parameter_groups(first, 0.1)],
        lr=1e-3, weight_decay=0.5,
    )  # fmt: skip
    adam = torch.optim.Adam(second.parameters(), lr=0.1)
    for objective, optimizer in ((first, adamw), (second, adam)):
        torch.manual_seed(0)
        for _ in range(3):
            optimizer.zero_grad()
            objective(torch.linspace(-3, 5, 20)).backward()
            optimizer.step()
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_fixed_strength_has_no_groups():
    assert strength_parameter_groups(Strength(StrengthConfig("fixed"))) == []


def test_panels_want_a_long_memory_of_adam_alone():
    strength = Strength(StrengthConfig())
    strength.keep_panels(np.array([0, 0, 1]))
    (group,) = strength_parameter_groups(strength)
    assert group["betas"] == (0.9, 0.98) and group["lr"] == 0.05


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_optimizers_of_transformers_take_the_strength(tmp_path, policy_folder, panels, optim):
    plain = train(plain_trainer(tmp_path, policy_folder, panels, optim=optim, max_steps=2))
    assert plain.strength.summary()["cv"] != pytest.approx(0.5, rel=1e-6)
    group = plain.optimizer.param_groups[-1]
    assert group["weight_decay"] == 0.0 and ("betas" in group) == (optim == "adamw_torch")


def test_an_optimizer_class_that_was_given_takes_the_strength(tmp_path, policy_folder, pairs):
    plain = plain_trainer(tmp_path, policy_folder, pairs, max_steps=2)
    plain.optimizer_cls_and_kwargs = (torch.optim.NAdam, {"lr": 1e-3, "weight_decay": 0.1})
    train(plain)
    assert plain.strength.summary()["cv"] != pytest.approx(0.5, rel=1e-6)


def test_groups_that_an_optimizer_has_are_not_added_again(tmp_path, policy_folder, pairs):
    """A trainer that makes its optimizer itself, at another rate of the strength."""
    plain = plain_trainer(tmp_path, policy_folder, pairs)
    plain.optimizer = torch.optim.AdamW(
        [{"params": plain.model.parameters()}, *strength_parameter_groups(plain.strength, 0.3)]
    )
    groups = plain.create_optimizer().param_groups
    assert len(groups) == 2 and groups[1]["lr"] == 0.3


def test_an_optimizer_that_takes_no_steps_is_refused(tmp_path, policy_folder, pairs):
    class LayerWiseDummyOptimizer(torch.optim.SGD):
        pass

    plain = plain_trainer(tmp_path, policy_folder, pairs)
    plain.optimizer = LayerWiseDummyOptimizer(plain.model.parameters())
    with pytest.raises(ConfigError, match="optim: LayerWiseDummyOptimizer updates each layer"):
        plain.create_optimizer()
