import shutil
from pathlib import Path

import pytest
import yaml
from scenarios import TRAINING_MARKS, small_world

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.errors import ConfigError, OutputError
from mixdpo_pyro.workflows.run_config import plan_from_values
from mixdpo_pyro.workflows.training_inputs import INPUTS_FILE, TrainingInputs, settle_inputs

pytestmark = TRAINING_MARKS


def inputs_of(values, train=slice(0, 30), test=slice(30, 48), **changes):
    plan = plan_from_values({**values, **changes})
    parts = (small_world().select(range(*part.indices(48))) for part in (train, test))
    return TrainingInputs.of(plan, *parts)


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [("learning_rate", 0.001, 0.002), ("seed", 42, 1), ("test_fraction", 0.5, 0.4),
     ("max_length", 128, 64), ("family", "lognormal", "gamma"), ("beta", 0.1, 0.2),
     ("mean_anchor", "fixed", "free"), ("learn_cv", True, False), ("max_pairs", None, 40),
     ("per_device_train_batch_size", 4, 8), ("gradient_accumulation_steps", 1, 2),
     ("strength_learning_rate", 0.05, 0.1), ("lr_scheduler_type", "linear", "cosine"),
     ("max_steps", 3, 6), ("optim", "adamw_torch_fused", "sgd"), ("use_peft", False, True),
     ("dtype", "float32", "bfloat16"), ("loss_type", ["sigmoid"], ["sigmoid", "sft"]),
     ("annotator_column", None, "annotator"), ("baseline", None, None)],
)  # fmt: skip
def test_whatever_moves_the_training_is_named_with_both_values(values, key, old, new):
    earlier, now = inputs_of(values), inputs_of(values, **{key: new})
    words = [w for w in now.differences(earlier) if w.startswith(f"{key} ")]
    assert words == ([] if old == new else [f"{key} was {old!r} and is {new!r}"])


@pytest.mark.parametrize(
    "changes",
    [{"logging_steps": 7}, {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1},
     {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2},
     {"output_dir": "elsewhere"}, {"dataloader_num_workers": 2}, {"use_cpu": True},
     {"report_to": "tensorboard"}, {"disable_tqdm": True}, {"gradient_checkpointing": True},
     {"dataset_name": "moved.jsonl"}, {"resume": True, "overwrite": True},
     {"group_column": "annotator", "bootstrap_samples": 9}],
)  # fmt: skip
def test_what_does_not_move_the_training_may_change(values, changes):
    assert inputs_of(values, **changes).differences(inputs_of(values)) == []


def test_length_may_change_where_the_rate_does_not_depend_on_it(values):
    for schedule, warmup in (("constant", 0), ("constant_with_warmup", 2)):
        rate = {"lr_scheduler_type": schedule, "warmup_steps": warmup}
        longer = inputs_of(values, **rate, max_steps=9)
        assert longer.differences(inputs_of(values, **rate)) == []
    rate = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}  # a share of them
    found = inputs_of(values, **rate, max_steps=9).differences(inputs_of(values, **rate))
    assert found == ["max_steps was 3 and is 9"]


def test_pairs_are_known_by_their_content_and_order(values):
    earlier = inputs_of(values)
    assert inputs_of(values).differences(earlier) == []
    (words,) = inputs_of(values, train=slice(1, 30)).differences(earlier)
    assert words.startswith("training pairs was ")
    (words,) = inputs_of(values, test=slice(30, 47)).differences(earlier)
    assert words.startswith("held out pairs was ")
    assert inputs_of(values, train=slice(29, None, -1)).differences(earlier)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_model_is_known_by_its_files_wherever_they_are(tmp_path, values, name):
    copy = tmp_path / "copy"
    shutil.copytree(values["model_name_or_path"], copy)
    earlier = inputs_of(values)
    assert inputs_of(values, model_name_or_path=str(copy)).differences(earlier) == []
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    (words,) = inputs_of(values, model_name_or_path=str(copy)).differences(earlier)
    assert words.startswith("model was ")


def test_a_checkpoint_without_inputs_is_refused(tmp_path, values):
    inputs = inputs_of(values)
    with pytest.raises(OutputError, match=f"checkpoints without {INPUTS_FILE}"):
        settle_inputs(inputs, tmp_path, has_checkpoint=True)
    settle_inputs(inputs, tmp_path, has_checkpoint=False)
    settle_inputs(inputs, tmp_path, has_checkpoint=True)
    with pytest.raises(ConfigError, match=r"seed was 42 and is 3; .*Logging, saving"):
        settle_inputs(inputs_of(values, seed=3, train=slice(5, 30)), tmp_path, has_checkpoint=True)


def run(values, *arguments):
    path = Path(values["output_dir"]).with_name("run.yaml")
    path.write_text(yaml.safe_dump(values))
    return main(["train", "--config", str(path), *arguments])


def test_resuming_refuses_another_run_and_takes_the_same(tmp_path, values, capsys, monkeypatch):
    values |= {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = tmp_path / "whole"
    assert run(values | {"output_dir": str(whole)}) == 0
    policy = (whole / "policy" / "model.safetensors").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mixdpo_pyro.workflows.train._save_policy", interrupt)
        assert run(values) == 130
    folder = tmp_path / "run"
    shutil.rmtree(tmp_path / "run.partial" / "checkpoint-4")
    config = (tmp_path / "run.partial" / "config.yaml").read_text()
    capsys.readouterr()
    assert run(values, "--resume", "--learning_rate", "0.1") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "learning_rate was 0.001 and is 0.1" in message
    assert (tmp_path / "run.partial" / "config.yaml").read_text() == config
    pairs = Path(values["dataset_name"])
    lines = pairs.read_text().splitlines(keepends=True)
    pairs.write_text("".join(reversed(lines)))
    assert run(values, "--resume") == 2
    assert "training pairs was " in capsys.readouterr().err
    pairs.write_text("".join(lines))
    assert run(values, "--resume", "--logging_steps", "2") == 0
    assert (folder / "policy" / "model.safetensors").read_bytes() == policy
