"""Exports: whole models that say what the adapter said, and weights of known strengths."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from scenarios import TRAINING_MARKS, run_values
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.diagnosis.tables import weight_table
from mixdpo_pyro.inference.posterior import Posterior

pytestmark = TRAINING_MARKS


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, policy_folder):
    """A finished run with a LoRA adapter and annotator ids."""
    folder = tmp_path_factory.mktemp("run")
    values = run_values(folder, policy_folder) | {"use_peft": True, "lora_r": 2}
    values["learning_rate"] = 0.1
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", "--config", str(folder / "run.yaml")]) == 0
    return folder / "run"


def test_the_merged_model_says_what_policy_and_adapter_say(run_folder, tmp_path, policy_folder):
    out = tmp_path / "out"
    assert main(["export", str(run_folder), "--merged", "-o", str(out)]) == 0
    merged = AutoModelForCausalLM.from_pretrained(out / "policy")
    adapted = AutoPeftModelForCausalLM.from_pretrained(run_folder / "policy")
    base = AutoModelForCausalLM.from_pretrained(policy_folder)
    tokens = AutoTokenizer.from_pretrained(out / "policy")("How should I boil an egg?")
    ids = torch.tensor([tokens["input_ids"]])
    with torch.no_grad():
        found, expected, before = (m.eval()(ids).logits for m in (merged, adapted, base))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-3
    assert not list((out / "policy").glob("adapter*"))


def test_its_card_is_that_of_a_whole_model(run_folder, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(run_folder), "--merged", "-o", str(out)]) == 0
    card = ModelCard.load(out / "policy" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # a folder of this machine
    assert "version of a local model" in card.text and "None" not in card.text
    assert not {"lora", "peft"} & set(card.data.tags)
    assert "## Preference strength" in card.text
    assert "merged into the weights" in card.text and "PeftModel" not in card.text


def test_a_policy_without_adapter_is_whole_already(run_folder, tmp_path, policy_folder, capsys):
    whole = tmp_path / "run"
    whole.mkdir()
    (whole / "run.json").write_text((run_folder / "run.json").read_text())
    (whole / "policy").symlink_to(policy_folder)
    assert main(["export", str(whole), "--merged", "-o", str(tmp_path / "out")]) == 2
    assert "has no adapter, so that it is a whole model already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_are_strengths_over_their_mean(run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run_folder), "--weights", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "decoding weights of 6 annotators" in printed and "caution: the verdict is" in printed
    posterior = Posterior.load(run_folder / "posterior.nc")
    table = pd.read_csv(out / "weights.csv").set_index("annotator")
    for column, label in enumerate(posterior.annotators):
        ratio = posterior.strength[:, column] / posterior.mean
        assert table.loc[label, "weight"] == pytest.approx(ratio.mean(), rel=1e-4)
        assert table.loc[label, "q95"] == pytest.approx(np.quantile(ratio, 0.95), rel=1e-4)
    assert table["shrinkage"].between(0, 1).all()
    assert table["weight"].is_monotonic_decreasing


def test_weights_come_from_a_summary_too():
    posterior = Posterior(
        mean=np.array([2.0, 2.0]), cv=np.array([1.0, 1.0]), family="lognormal",
        annotators=("a", "b"),
        strength_summary={
            "mean": np.array([1.0, 4.0]), "q05": np.array([0.5, 2.0]),
            "q95": np.array([2.0, 8.0]), "log_sd": np.sqrt(np.log(2) * np.array([1.0, 0.25])),
        },
    )  # fmt: skip
    table = weight_table(posterior).set_index("annotator")
    assert list(table.index) == ["b", "a"]
    assert table.loc["b"].tolist() == pytest.approx([2.0, 1.0, 4.0, 0.25])
    assert table.loc["a", "shrinkage"] == pytest.approx(1.0)
    assert weight_table(Posterior(np.ones(2), np.ones(2), "lognormal")) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected merged, weights, or both"),
        (["--weights", "--dtype", "int8"], "dtype"),
    ],
)
def test_what_cannot_be_exported_is_refused(run_folder, tmp_path, capsys, words, message):
    assert main(["export", str(run_folder), *words, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_no_result_is_named(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--weights", "-o", str(tmp_path / "out")]) == 1
    assert "holds no run.json and no diagnosis.json" in capsys.readouterr().err
