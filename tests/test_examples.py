"""The examples run, shortened, and say what they are said to say."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from other_trainers import (
    axolotl_trainer,
    install_axolotl,
    install_llama_factory,
    llama_factory_trainer,
)
from scenarios import TRAINING, TRAINING_MARKS, small_world

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.inference import fit_joint
from mixdpo_pyro.training.learned_strength import Strength

pytestmark = TRAINING_MARKS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def load(name):
    return runpy.run_path(str(EXAMPLES / name))


def run(name, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_trls_script_trains_with_two_lines_changed(tmp_path, monkeypatch, policy_folder, capsys):
    pairs = small_world().select_columns(["prompt", "chosen", "rejected"])
    (tmp_path / "data").mkdir()
    pairs.to_json(tmp_path / "data" / "train.jsonl")
    out = tmp_path / "out"
    run(
        "dpo.py", monkeypatch, "--model_name_or_path", policy_folder, "--dataset_name",
        tmp_path / "data", "--output_dir", out, "--max_steps", 2, "--report_to", "none",
        "--use_cpu", "true", "--family", "gamma", "--per_device_train_batch_size", 4,
    )  # fmt: skip
    assert "Strength(gamma: mean 0.1" in capsys.readouterr().out
    assert Strength.from_pretrained(out).config.family == "gamma"


def test_a_chat_model_learns_with_lora(tmp_path, policy_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    example = load("lora_chat.py")
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(policy_folder).save_pretrained(tmp_path)
    pairs = small_world().map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            **{k: [{"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected")},
        },
        remove_columns=["source_row", "reward_margin"],
    )
    trained = example["train"](str(tmp_path), pairs, max_steps=2, use_cpu=True, save_strategy="no")
    assert trained.strength.summary()["mean"] == pytest.approx(0.1)
    assert trained.strength.objective.panels.margin.isfinite().any()
    assert isinstance(example["reply"](trained, tokenizer, pairs[0]["prompt"]), str)


def test_the_own_loop_learns_the_spread(capsys):
    """It ends where maximum likelihood does, which `fit_joint` finds without a loop."""
    example = load("own_loop.py")
    difference, annotator = example["simulate"]()
    best = fit_joint(
        torch.nn.Linear(5, 1, bias=False), difference, annotator=annotator.numpy(),
        family="lognormal", beta=1.0,
    )  # fmt: skip
    cv = example["train"](num_epochs=30).location()["cv"].item()
    assert cv == pytest.approx(best.cv, abs=0.05)
    assert abs(best.cv - 0.7) < 0.2
    assert "true: 0.70" in capsys.readouterr().out


def test_own_votes_are_diagnosed(tmp_path, monkeypatch, capsys):
    """Twenty people of very different strengths, pairs judged by four."""
    streams = [np.random.default_rng((5, k)) for k in range(4)]
    number = np.repeat(np.arange(300), 4)
    person = np.concatenate([streams[0].permutation(20) for _ in range(60)])
    strength = streams[1].lognormal(-0.5, 1.0, 20)
    scores = streams[2].normal(0, 2, (300, 2))[number]
    logit = strength[person] * (scores[:, 0] - scores[:, 1])
    is_first = streams[3].random(1200) < 1 / (1 + np.exp(-logit))
    pd.DataFrame(
        {"score_a": scores[:, 0], "score_b": scores[:, 1], "annotator": person, "pair": number,
         "winner": np.where(is_first, "a", "b")}
    ).to_csv(tmp_path / "votes.csv", index=False)  # fmt: skip
    run("own_votes.py", monkeypatch, tmp_path / "votes.csv")
    printed = capsys.readouterr().out
    assert printed.startswith("heterogeneous") and "shrinkage" in printed


PLAIN = {name: TRAINING[name] for name in TRAINING if name not in ("beta", "max_length")}


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def mixdpo_trainer(folder, policy):
    """What the other trainers are compared with: the same model, pairs, options and draws."""
    from mixdpo_pyro import MixDPOConfig, MixDPOTrainer

    args = MixDPOConfig(str(folder), **{**TRAINING, "max_steps": 3})
    return MixDPOTrainer(policy, args=args, train_dataset=small_world())


def train(trainer):
    torch.manual_seed(3)
    trainer.train()
    return trainer


def test_a_reward_model_learns_how_people_differ(policy_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = {**PLAIN, "max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    options.pop("report_to")
    trainer = load("reward_trainer.py")["train"](policy_folder, small_world(), **options)
    assert trainer.strength.objective.panels.margin.isfinite().sum() == 12
    assert logged(trainer, "strength/cv")[-1] != pytest.approx(0.5, rel=1e-4)
    trainer.save_model("saved")
    loaded = Strength.from_pretrained(tmp_path / "saved")
    assert loaded.summary() == trainer.strength.summary()


def test_llama_factory_takes_the_strength(policy_folder, tmp_path, monkeypatch):
    """Its class is replaced before its workflow takes it; losses are those of `MixDPOTrainer`."""
    from transformers import AutoModelForCausalLM

    ours = mixdpo_trainer(tmp_path / "ours", policy_folder)
    models = [AutoModelForCausalLM.from_pretrained(policy_folder) for _ in range(2)]
    built = []

    def run_theirs(trainer_class):
        theirs = llama_factory_trainer(
            trainer_class, tmp_path, *models, ours.train_dataset, ours.data_collator,
            **{**PLAIN, "max_steps": 3},
        )  # fmt: skip
        built.append(train(theirs))

    install_llama_factory(monkeypatch, run_theirs)
    run("llama_factory_dpo.py", monkeypatch, "dpo.yaml")
    train(ours)
    for name in ("loss", "rewards/margins", "strength/cv", "strength/kl"):
        assert logged(built[0], name) == pytest.approx(logged(ours, name), abs=1e-4), name


def test_axolotl_takes_the_strength(policy_folder, tmp_path, monkeypatch):
    """Losses are those of `MixDPOTrainer`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    install_axolotl(monkeypatch)
    theirs = axolotl_trainer(
        load("axolotl_dpo.py")["MixDPOTrainer"], tmp_path,
        AutoModelForCausalLM.from_pretrained(policy_folder), small_world(),
        AutoTokenizer.from_pretrained(policy_folder), **{**TRAINING, "max_steps": 3},
    )  # fmt: skip
    for trainer in (theirs, ours := mixdpo_trainer(tmp_path / "ours", policy_folder)):
        train(trainer)
    for name in ("loss", "rewards/margins", "strength/cv", "strength/kl"):
        assert logged(theirs, name) == pytest.approx(logged(ours, name), abs=1e-6), name


@pytest.mark.parametrize("name", ["prism_pythia.yaml", "hh_pythia.yaml"])
def test_the_sweeps_name_options_that_there_are(name, tmp_path, capsys):
    """All runs are planned; models and data are those of a hub, which is not asked."""
    config = yaml.safe_load((EXAMPLES / name).read_text())
    words = ["sweep", "--config", str(EXAMPLES / name), "-o", str(tmp_path / "out"), "--dry_run"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for arm in config["arms"]:
        for beta in config["betas"]:
            assert f"{arm}/beta-{beta}/seed-2" in printed


def test_every_example_is_listed():
    page = (EXAMPLES / "README.md").read_text()
    names = {p.name for p in EXAMPLES.iterdir()} - {"README.md", "__pycache__"}
    assert names == {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
