"""Nothing is reported to Hugging Face unless the user asks for it."""

import pytest
from scenarios import TRAINING_MARKS, small_world

from mixdpo_pyro.cli.main import main

pytestmark = TRAINING_MARKS

SWITCHES = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}


def test_the_command_line_switches_reports_off_and_keeps_the_users_word(monkeypatch):
    import os

    for name in SWITCHES:
        monkeypatch.setenv(name, "")  # what monkeypatch restores
        monkeypatch.delenv(name)
    main(["--version"])
    assert {name: os.environ[name] for name in SWITCHES} == SWITCHES
    for name in SWITCHES:
        monkeypatch.setenv(name, "the user's")
    main(["--version"])
    assert {os.environ[name] for name in SWITCHES} == {"the user's"}


@pytest.mark.parametrize(("word", "reports"), [(None, 0), ("1", 0), ("", 0), ("0", 1), ("no", 1)])
def test_the_trainer_reports_only_where_it_is_asked_to(
    monkeypatch, tmp_path, policy_folder, word, reports
):
    """With TRL's own trainer the report is sent: the stand-in is where it would go out."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import base_trainer

    from mixdpo_pyro import MixDPOConfig, MixDPOTrainer

    sent = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *a, **k: sent.append(k))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    if word is not None:
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", word)

    def build(trainer, config):
        args = config(str(tmp_path), report_to="none", bf16=False, gradient_checkpointing=False)
        trainer(
            AutoModelForCausalLM.from_pretrained(policy_folder),
            args=args,
            train_dataset=small_world(),
            processing_class=AutoTokenizer.from_pretrained(policy_folder),
        )

    build(MixDPOTrainer, MixDPOConfig)
    assert len(sent) == reports
    build(DPOTrainer, DPOConfig)
    assert len(sent) == reports + 1
