"""Training on choices as people make them: sets, rankings, ties and grades."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from scenarios import TRAINING, TRAINING_MARKS, best_of_four, small_world, take, train_dpo

from mixdpo_pyro.data.validation import ROW_COLUMN
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.models import mixed_logit_log_prob
from mixdpo_pyro.models.observation import BestOf, Davidson, Lapse, Ranking, RaoKupper
from mixdpo_pyro.training.batches.choices import (
    CHOICE_CODE,
    CHOICE_INDEX,
    ChoiceKind,
    ChoiceReader,
    check_one_annotator,
    number_shared_pairs,
)
from mixdpo_pyro.training.batches.columns import ChoiceColumns
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.learned_strength import Strength
from mixdpo_pyro.training.losses.observed import Done
from mixdpo_pyro.training.trainer import MixDPOTrainer

pytestmark = TRAINING_MARKS

POINT = {"mean_anchor": "free"}
"""No priors and no divergence: the loss is the likelihood alone."""


def judged(values, name):
    return take(small_world(), len(values)).add_column(name, values)


def trainer_on(folder, policy, dataset, evaluated=None, **settings):
    return MixDPOTrainer(
        policy,
        args=MixDPOConfig(str(folder), **{**TRAINING, "max_steps": 3, **settings}),
        train_dataset=dataset,
        eval_dataset=dataset if evaluated is None else evaluated,
    )


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def loss_and_slopes(trainer, batch):
    """The loss of a batch, and its gradient in the policy's weights."""
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


def shaken(trainer):
    """A policy that left its reference, so that margins are not zero."""
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return trainer


def margins_of_pairs(trainer, batch):
    """Margins of a batch's rows, every row run by itself, with a gradient: by log-softmax."""
    ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]

    def log_prob(model):
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
        tokens = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return (tokens * mask).sum(1)

    with torch.no_grad():
        reference = log_prob(trainer.ref_model)
    chosen, rejected = (log_prob(trainer.model) - reference).chunk(2)
    return chosen - rejected


@pytest.mark.parametrize("family", ["lognormal", "gamma", "fixed"])
@pytest.mark.parametrize("ranked", [False, True])
def test_loss_of_a_set_is_its_likelihood_and_each_response_is_run_once(
    tmp_path, policy_folder, family, ranked
):
    settings = {"rank_column": "place"} if ranked else {}
    trainer = shaken(
        trainer_on(
            tmp_path, policy_folder, best_of_four(), per_device_train_batch_size=8,
            choice_set_column="set", family=family, **POINT, **settings,
        )
    )  # fmt: skip
    batch = first_batch(trainer)
    choice, code = batch[CHOICE_INDEX], batch[CHOICE_CODE]
    assert len(choice) == 6 and len(choice.unique()) == 2
    rows = []
    handle = trainer.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    loss, slopes = loss_and_slopes(trainer, batch)
    handle.remove()
    assert rows == [8]  # two sets of four, not twelve rows
    trainer.model.zero_grad()
    margin = margins_of_pairs(trainer, batch)
    _, place = choice.unique(return_inverse=True)
    value = torch.cat([-margin, torch.zeros(2)])
    rank = torch.cat([code, torch.ones(2).long()])
    if not ranked:
        assert not code.any()
    else:
        assert code.view(2, 3).tolist() == [[2, 3, 0]] * 2
    expected = -mixed_logit_log_prob(
        value, 0.3, 0.5, family, observation=Ranking(), outcome=rank,
        choice_set=torch.cat([place, torch.arange(2)]),
    ).mean()  # fmt: skip
    expected.backward()
    other = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert loss != pytest.approx(math.log(4), abs=1e-2)
    torch.testing.assert_close(slopes, other, atol=1e-5, rtol=1e-4)


def test_a_set_at_margin_zero_has_the_loss_of_a_guess(tmp_path, policy_folder):
    trainer = trainer_on(
        tmp_path, policy_folder, best_of_four(), choice_set_column="set", **POINT, max_steps=1
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(4), abs=1e-5)


def test_sets_of_two_are_pairs_to_the_digit(tmp_path, policy_folder):
    """The same batches, losses and weights as without sets, and as TRL's for a fixed strength."""
    pairs = small_world().add_column("set", [f"s{k}" for k in range(48)])
    with_sets = trainer_on(
        tmp_path, policy_folder, pairs, choice_set_column="set", family="fixed", max_steps=6
    )
    with_sets.train()
    plain = train_dpo(tmp_path, policy_folder)
    for ours, theirs in zip(with_sets.state.log_history, plain.state.log_history, strict=True):
        for name in theirs.keys() & {"loss", "rewards/margins", "logps/chosen", "grad_norm"}:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name
    objective = with_sets.strength.objective
    margin = torch.linspace(-5, 5, 7)
    assert torch.equal(
        objective.terms(margin, done=Done(torch.arange(7), torch.zeros(7).long()))[0],
        objective.terms(margin)[0],
    )


@pytest.mark.parametrize(
    ("settings", "observation"),
    [({}, RaoKupper(1.0)), ({"ties": "davidson"}, Davidson(1.0)),
     ({"flip_probability": 0.1}, Lapse(RaoKupper(1.0), 0.2))],
)  # fmt: skip
@pytest.mark.parametrize("family", ["lognormal", "fixed"])
def test_ties_have_the_likelihood_of_their_model(
    tmp_path, policy_folder, settings, observation, family
):
    outcome = ["win", "tie", "loss", "win"] * 3
    trainer = shaken(
        trainer_on(
            tmp_path, policy_folder, judged(outcome, "said"), outcome_column="said",
            family=family, **POINT, **settings,
        )
    )  # fmt: skip
    batch = first_batch(trainer)
    loss, slopes = loss_and_slopes(trainer, batch)
    assert len(batch[CHOICE_CODE].unique()) > 1
    trainer.model.zero_grad()
    expected = -mixed_logit_log_prob(
        margins_of_pairs(trainer, batch), 0.3, 0.5, family, observation=observation,
        outcome=batch[CHOICE_CODE],
    ).mean()  # fmt: skip
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    other = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    torch.testing.assert_close(slopes, other, atol=1e-5, rtol=1e-4)


def test_thresholds_are_learned_logged_saved_and_resumed(tmp_path, policy_folder):
    """Far grades pull the cut points in; a resumed run ends where a whole one does."""
    grades = [2, -2, 0, 2, -2, 1] * 4
    settings = {
        "grade_column": "grade", "max_steps": 8, "save_strategy": "steps", "save_steps": 4,
        "strength_learning_rate": 0.1,
    }  # fmt: skip
    whole = trainer_on(tmp_path / "whole", policy_folder, judged(grades, "grade"), **settings)
    whole.train()
    logs = [entry for entry in whole.state.log_history if "loss" in entry]
    first, last = ([logs[k][f"strength/cut_point_{j}"] for j in (1, 2)] for k in (0, -1))
    assert first[1] == pytest.approx(2.0, abs=0.3) and last[1] < first[1] - 0.2
    found = whole.strength.thresholds()
    assert list(found.values()) == pytest.approx(last)
    loaded = Strength.from_pretrained(tmp_path / "whole" / "checkpoint-8")
    assert loaded.thresholds() == found and "cut_point_2" in repr(loaded)
    posterior = loaded.posterior(5)
    assert posterior.observation == "grades"
    assert posterior.parameters["cut_points"].shape == (5, 2)
    resumed = trainer_on(tmp_path / "again", policy_folder, judged(grades, "grade"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.strength.thresholds() == found
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    whole.create_model_card()
    card = (tmp_path / "whole" / "README.md").read_text()
    assert f"judgements of pairs in 5 grades; `cut_point_1` {found['cut_point_1']:.3g}" in card


def test_a_step_of_ties_alone_is_logged_without_an_accuracy(tmp_path, policy_folder):
    """Batches of one row, logged each: a tie says of neither response that it is better."""
    said = ["tie", "win", "tie", "loss"]
    trainer = trainer_on(
        tmp_path, policy_folder, judged(said, "said"), outcome_column="said", max_steps=4,
        per_device_train_batch_size=1, gradient_accumulation_steps=1, logging_steps=1,
    )  # fmt: skip
    trainer.train()
    logged = ["rewards/accuracies" in entry for entry in trainer.state.log_history[:4]]
    assert sorted(logged) == [False, False, True, True]


def test_dropped_ties_leave_pairs_with_their_winner_first(tmp_path, policy_folder):
    """Plain DPO of the pairs turned round where the second response won."""
    outcome = ["win", "tie", "loss", "win", "loss", "tie", "win", "win"]
    settings = {"family": "fixed", "per_device_train_batch_size": 6, "max_steps": 1}
    trainer = shaken(
        trainer_on(
            tmp_path, policy_folder, judged(outcome, "said"), outcome_column="said", ties="drop",
            **settings,
        )
    )  # fmt: skip
    assert trainer.dropped == {
        "train": {"a tie": 2},
        "eval": {"a tie, of which the training uses none": 2},
    }
    batch = first_batch(trainer)
    loss, slopes = loss_and_slopes(trainer, batch)
    margin = margins_of_pairs(trainer, batch) * (2 * batch[CHOICE_CODE] - 1)
    trainer.model.zero_grad()
    expected = -torch.nn.functional.logsigmoid(0.3 * margin).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    other = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    torch.testing.assert_close(slopes, other, atol=1e-5, rtol=1e-4)
    right = (margin > 0).float().mean().item()
    assert trainer._metrics["train"]["rewards/accuracies"][-1] == pytest.approx(right)


def test_choices_of_an_annotator_share_their_strength(tmp_path, policy_folder):
    trainer = trainer_on(
        tmp_path, policy_folder, best_of_four(), choice_set_column="set", annotator_column="who",
        per_device_train_batch_size=12, **POINT,
    )  # fmt: skip
    batch = first_batch(trainer)
    choice, annotator = batch[CHOICE_INDEX], batch["mixdpo_annotator_index"]
    assert len(choice.unique()) == 4 and len(annotator.unique()) == 2
    margin = torch.linspace(-6, 6, 12)
    loss = trainer._terms(margin, annotator, None, Done(choice, batch[CHOICE_CODE]))[0].item()
    _, place = choice.unique(return_inverse=True)
    own = torch.stack([annotator[place == k][0] for k in range(4)])
    panel = mixed_logit_log_prob(
        torch.cat([-margin, torch.zeros(4)]), 0.3, 0.5, "lognormal", observation=BestOf(),
        outcome=torch.cat([torch.zeros(12), torch.ones(4)]).long(),
        choice_set=torch.cat([place, torch.arange(4)]), annotator=torch.cat([annotator, own]),
    )  # fmt: skip
    assert panel.shape == (2,)
    assert loss == pytest.approx(-panel.sum().item() / 4, rel=1e-5)


def test_accumulated_gradients_of_sets_are_those_of_the_whole_batch(tmp_path, policy_folder):
    settings = {
        "optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "max_grad_norm": 0.0,
        "choice_set_column": "set", "rank_column": "place", "strength_learning_rate": 0.1, **POINT,
    }  # fmt: skip
    data = best_of_four(4)

    def trained(folder, **changes):
        trainer = trainer_on(folder, policy_folder, data, **settings, **changes)
        trainer.train()
        return trainer

    whole = trained(tmp_path, per_device_train_batch_size=12)
    halves = trained(tmp_path, per_device_train_batch_size=6, gradient_accumulation_steps=2)
    for ours, theirs in zip(halves.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert halves.strength.summary() == pytest.approx(whole.strength.summary(), rel=1e-5)


def test_evaluation_is_by_choice_wherever_batches_end(tmp_path, policy_folder):
    """Batches of four rows cut sets of three: the loss and the metrics are those of whole sets."""
    trainer = shaken(
        trainer_on(
            tmp_path, policy_folder, best_of_four(), choice_set_column="set", family="gamma",
            per_device_eval_batch_size=4,
        )
    )  # fmt: skip
    metrics = trainer.evaluate()
    margin = trainer.margins()["margin"].reshape(8, 3)
    location = trainer.strength.objective.location()
    expected = -mixed_logit_log_prob(
        torch.tensor(margin).flatten(), location["mean"], location["cv"], "gamma",
        observation=BestOf(), choice_set=torch.arange(8).repeat_interleave(3),
    ).mean()  # fmt: skip
    assert metrics["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert metrics["eval_micro/margin"] == pytest.approx(margin.min(1).mean(), abs=1e-4)
    assert metrics["eval_micro/accuracy"] == pytest.approx((margin > 0).all(1).mean())


def test_ties_and_losses_are_evaluated_as_what_they_are(tmp_path, policy_folder):
    outcome = ["win", "tie", "loss", "loss", "win", "tie", "win", "loss"]
    trainer = shaken(
        trainer_on(tmp_path, policy_folder, judged(outcome, "said"), outcome_column="said")
    )
    metrics = trainer.evaluate()
    sign = np.array([1, 0, -1, -1, 1, 0, 1, -1])
    better = (trainer.margins()["margin"] * sign)[sign != 0]
    assert metrics["eval_micro/accuracy"] == pytest.approx((better > 0).mean())
    assert metrics["eval_micro/margin"] == pytest.approx(better.mean(), abs=1e-4)


def test_judgements_of_a_pair_stand_together_and_run_it_once(tmp_path, policy_folder):
    """Five people judge each of four pairs; the gradient is that of all their judgements."""
    pairs = take(small_world(), 4)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 5))
    dataset = pairs.select(order).add_column("said", (["win"] * 3 + ["loss"]) * 5)
    trainer = shaken(
        trainer_on(
            tmp_path, policy_folder, dataset, group_by_pair=True, outcome_column="said",
            per_device_train_batch_size=10, **POINT,
        )
    )  # fmt: skip
    batches = list(trainer.get_train_dataloader())
    assert [len(batch["input_ids"].unique(dim=0)) for batch in batches] == [4, 4]
    rows = []
    handle = trainer.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    loss, slopes = loss_and_slopes(trainer, batches[0])
    handle.remove()
    assert rows == [4] and batches[0]["input_ids"].shape[0] == 20
    trainer.model.zero_grad()
    sign = 2 * batches[0][CHOICE_CODE] - 1
    expected = -mixed_logit_log_prob(sign * margins_of_pairs(trainer, batches[0]), 0.3, 0.5).mean()
    expected.backward()
    other = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(slopes, other, atol=1e-5, rtol=1e-4)


def test_lora_and_a_precomputed_reference_train_on_sets(tmp_path, policy_folder):
    from peft import LoraConfig

    losses = []
    for ahead in (False, True):
        torch.manual_seed(0)  # of the adapter
        trainer = MixDPOTrainer(
            policy_folder,
            args=MixDPOConfig(
                str(tmp_path), **{**TRAINING, "learning_rate": 0.05}, max_steps=3, family="fixed",
                choice_set_column="set", precompute_ref_log_probs=ahead,
            ),
            train_dataset=best_of_four(),
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        )  # fmt: skip
        trainer.train()
        losses.append([e["loss"] for e in trainer.state.log_history if "loss" in e])
    assert losses[0][0] == pytest.approx(math.log(4), abs=1e-5)
    assert losses[0][2] != pytest.approx(math.log(4), abs=1e-4)
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_a_set_that_loses_a_response_keeps_the_others_in_order(tmp_path, policy_folder):
    data = best_of_four(2)
    texts = data["rejected"][:]
    texts[0] = data["chosen"][0]  # ranked second, and the chosen response once more
    data = data.remove_columns("rejected").add_column("rejected", texts)
    trainer = trainer_on(
        tmp_path, policy_folder, data, choice_set_column="set", rank_column="place"
    )
    assert trainer.dropped["train"] == {"identical completions": 1}
    assert trainer.train_dataset[CHOICE_INDEX][:] == [0, 0, 1, 1, 1]
    assert trainer.train_dataset[CHOICE_CODE][:] == [2, 0, 2, 3, 0]


def changed(column, row, value):
    """Best of four with another value in one cell."""
    data = best_of_four(2)
    values = data[column][:]
    values[row] = value
    return data.remove_columns(column).add_column(column, values)


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        (changed("set", 4, None), {}, "choice_set_column: row 4 has no value in column 'set'"),
        (changed("prompt", 4, "Another one:"), {}, "rows 3 and 4 have different prompts in one"),
        (changed("chosen", 5, "Another"), {}, "rows 3 and 5 have different chosen responses"),
        (changed("place", 1, 1), {}, "rank_column: row 1 has 1 in column 'place', expected a"),
        (changed("place", 1, 2), {}, "column 'place': .*got 2 at index 1 in the set"),
        (changed("who", 1, "b"), {"annotator_column": "who"}, "rows 0 and 1 of one choice set"),
        (best_of_four(2), {"per_device_train_batch_size": 2},
         "per_device_train_batch_size: the set 's0' in column 'set' has 3 rows"),
        (best_of_four(2).remove_columns("place"), {}, "rank_column: column 'place' is missing"),
        (best_of_four(2).to_iterable_dataset(), {}, "choice_set_column: needs a dataset, not a"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_sets_that_cannot_be_read_are_named(tmp_path, policy_folder, dataset, settings, message):
    with pytest.raises(DataError, match=message):
        trainer_on(
            tmp_path, policy_folder, dataset,
            choice_set_column="set", rank_column="place", **settings,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "column", "message"),
    [
        (["win", "draw"], "outcome", "outcome_column: row 1 has 'draw' in column 'outcome', expe"),
        (["win", None], "outcome", "outcome_column: row 1 has no value in column 'outcome'"),
        (["tie", "tie"], "outcome", "outcome_column: the train dataset has ties only"),
        ([1.5, 1.0], "grade", "grade_column: row 0 has 1.5 in column 'grade', expected a whole"),
        (["1_0", "1"], "grade", "grade_column: row 0 has '1_0' in column 'grade'"),
        ([1, 300], "grade", "row 1 has 300 in column 'grade', expected a whole number from -50"),
    ],
)
def test_judgements_that_cannot_be_read_are_named(values, column, message):
    reader = ChoiceReader(ChoiceColumns(**{column: column}))
    with pytest.raises(DataError, match=message):
        reader.read(Dataset.from_dict({column: values}), "train")


@pytest.mark.parametrize(
    ("grades", "kind", "codes"),
    [
        ([-2, 0, 1, 2], ChoiceKind("grades", 5), [0, 2, 3, 4]),
        (["-2", "-1", "1", "2.0"], ChoiceKind("grades", 4), [0, 1, 2, 3]),
        ([1, 0, -1], ChoiceKind("davidson", 3), [2, 1, 0]),
        ([1, -1], ChoiceKind("pairs", 2), [1, 0]),
    ],
)
def test_grades_are_counted_from_the_strongest_for_the_second(grades, kind, codes):
    reader = ChoiceReader(ChoiceColumns(grade="grade", ties="davidson"))
    found, dropped = reader.read(Dataset.from_dict({"grade": grades}), "train")
    assert reader.kind == kind and found[CHOICE_CODE][:] == codes and not dropped


def test_evaluation_data_are_graded_as_the_training_data():
    reader = ChoiceReader(ChoiceColumns(grade="grade"))
    reader.read(Dataset.from_dict({"grade": [3, -3, 1]}), "train")
    found, dropped = reader.read(Dataset.from_dict({"grade": [1, 0, -3]}), "eval")
    assert found[CHOICE_CODE][:] == [3, 0]
    assert dropped == {"a tie, of which the training uses none": 1}
    with pytest.raises(DataError, match=r"row 1 has -4 .* expected at most 3 in size"):
        reader.read(Dataset.from_dict({"grade": [1, -4]}), "eval")


def test_ties_within_a_larger_set_are_refused():
    data = Dataset.from_dict({"set": ["a", "b", "a"], "said": ["win", "tie", "tie"]})
    reader = ChoiceReader(ChoiceColumns(choice_set="set", outcome="said"))
    with pytest.raises(DataError, match="rows 0 and 2 are one set in column 'set', but column"):
        reader.read(data, "train")
    reader.read(data.select([0, 1]), "train")
    assert reader.kind == ChoiceKind("rao-kupper", 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ties": "skip"}, "ties: expected one of rao-kupper, davidson, drop, got 'skip'"),
        ({"rank_column": "r"}, "rank_column: needs a choice_set_column"),
        ({"choice_set_column": "s", "rank_column": "s"}, "rank_column: 's' is the choice_set_co"),
        ({"choice_set_column": "s", "rank_column": "r", "grade_column": "g"}, "rank_column: not"),
        ({"outcome_column": "o", "grade_column": "g"}, "grade_column: not with outcome_column"),
        ({"outcome_column": "chosen"}, "outcome_column: 'chosen' holds the texts"),
        ({"choice_set_column": "s", "family": "fixed", "baseline": "robust"},
         "baseline: not 'robust' with choice_set_column; that is a loss of pairs"),
        ({"choice_set_column": "s", "use_weighting": True}, "use_weighting: not with choice_set"),
        ({"choice_set_column": "s", "ld_alpha": 0.5}, "ld_alpha: not with choice_set_column; it"),
        ({"outcome_column": "o", "loss_type": ["sigmoid", "sft"]}, "loss_type: not 'sft' with"),
        ({"grade_column": "g", "family": "gamma", "estimator": "series"},
         "estimator: not 'series' with outcomes or grades"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_name_the_key(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        MixDPOConfig(str(tmp_path), **settings)
    if settings.get("baseline"):
        MixDPOConfig(
            str(tmp_path), outcome_column="o", ties="drop", family="fixed", baseline="robust"
        )


def test_training_on_sets_resumes_within_its_second_epoch(tmp_path, policy_folder):
    settings = {
        "choice_set_column": "set", "per_device_train_batch_size": 6, "max_steps": 7,
        "save_strategy": "steps", "save_steps": 6,
    }  # fmt: skip
    whole = trainer_on(tmp_path, policy_folder, best_of_four(), **settings)
    whole.train()
    assert len(whole.get_train_dataloader()) == 4
    again = trainer_on(tmp_path / "again", policy_folder, best_of_four(), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "settings",
    [{"choice_set_column": "set"}, {"annotator_column": "who", "annotator_block_size": 4}],
)
def test_order_of_the_data_learns_the_epoch_that_is_resumed(tmp_path, policy_folder, settings):
    """Not from the loader: where several processes resume, accelerate's does not hand it on."""
    trainer = trainer_on(tmp_path, policy_folder, best_of_four(), **settings)
    trainer.get_train_dataloader()
    epochs = []
    for epoch in (0.0, 2.25, 0.0):
        trainer.state.epoch = epoch
        trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
        epochs.append(list(trainer._order))
    assert epochs[0] == epochs[2] != epochs[1]
    trainer._order.set_epoch(2)
    assert list(trainer._order) == epochs[1]


def test_people_who_chose_among_the_same_responses_stand_together(tmp_path, policy_folder):
    """Three people choose from each of four sets, not all the same response; four rows a set."""
    sets, rows = best_of_four(4), []
    for person in range(3):
        for k in range(4):
            three = [sets[3 * k + j] for j in range(3)]
            texts = [three[0]["chosen"], *(row["rejected"] for row in three)]
            chosen = texts.pop(person % 2)
            rows += [
                {"prompt": three[0]["prompt"], "chosen": chosen, "rejected": other,
                 "set": f"{person} {k}"}
                for other in texts
            ]  # fmt: skip
    trainer = trainer_on(
        tmp_path, policy_folder, Dataset.from_list(rows), group_by_pair=True,
        choice_set_column="set", per_device_train_batch_size=9, **POINT,
    )  # fmt: skip
    for batch in trainer.get_train_dataloader():
        assert len(batch["input_ids"]) == 18 and len(batch[CHOICE_INDEX].unique()) == 3
        assert len(batch["input_ids"].unique(dim=0)) == 4
    loss, _ = loss_and_slopes(trainer, batch)
    assert loss == pytest.approx(math.log(4), abs=1e-5)


def test_where_the_prompt_ends_tells_responses_apart():
    """One sequence of tokens, cut into prompt and response at two places, is two responses."""
    data = Dataset.from_dict(
        {"prompt_ids": [[1], [1, 2], [1]], "chosen_ids": [[2, 3], [3], [4]],
         "rejected_ids": [[4], [4], [2, 3]]}
    )  # fmt: skip
    assert number_shared_pairs(data).tolist() == [0, 1, 0]


def test_rows_of_several_annotators_are_numbered_as_in_the_source():
    data = Dataset.from_dict({ROW_COLUMN: [7, 8, 11], CHOICE_INDEX: [0, 1, 1], "who": [0, 0, 1]})
    with pytest.raises(DataError, match=r"rows 8 and 11 of one choice set .* 'name'"):
        check_one_annotator(data, "who", "name")


def test_people_share_their_strength_with_what_stands_in_the_same_batch(tmp_path, policy_folder):
    """Batches by pair, annotators given: the panel likelihood of those in the batch."""
    pairs = take(small_world(), 4).remove_columns("annotator")
    dataset = pairs.select(np.tile(np.arange(4), 3)).add_column("who", list("aaaabbbbcccc"))
    trainer = trainer_on(
        tmp_path, policy_folder, dataset, group_by_pair=True, annotator_column="who",
        annotator_block_size=6, per_device_train_batch_size=6, **POINT,
    )  # fmt: skip
    batch = first_batch(shaken(trainer))
    annotator = batch["mixdpo_annotator_index"]
    assert sorted(annotator.tolist()) == [0, 0, 1, 1, 2, 2]
    loss, _ = loss_and_slopes(trainer, batch)
    margin = margins_of_pairs(trainer, batch)
    panel = mixed_logit_log_prob(margin, 0.3, 0.5, annotator=annotator)
    assert loss == pytest.approx(-panel.sum().item() / 6, abs=1e-5)
