"""`mixdpo demo` from the first annotator to the report, with few annotators and a small Llama."""

import json

import numpy as np
import pandas as pd
import pytest
from scenarios import TRAINING_MARKS

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.training.tiny_llama import ReferenceConfig
from mixdpo_pyro.workflows import demo

pytestmark = TRAINING_MARKS


@pytest.fixture
def small_reference(monkeypatch):
    """A Llama of width 32 that is fitted to the answers for five steps."""

    def build(hidden_size, sft_steps, seed):
        return ReferenceConfig(hidden_size=32, sft_steps=5, seed=seed)

    monkeypatch.setattr(demo, "ReferenceConfig", build)


def test_small_demo_ends_in_a_report_beside_the_truth(capsys, tmp_path, small_reference):
    """The short sibling of the test that the demo recovers the truth."""
    output = tmp_path / "demo"
    words = ["--num_annotators", "12", "--pairs_per_annotator", "10", "--family", "gamma"]
    assert main(["demo", *words, "--output_dir", str(output)]) == 0
    assert str(output / "report.html") in capsys.readouterr().out
    assert not (tmp_path / "demo.partial").exists()

    truth = json.loads((output / "world" / "truth.json").read_text())
    assert (truth["family"], truth["mean"], truth["cv"]) == ("gamma", 1.0, 0.8)
    facts = json.loads((output / "run.json").read_text())
    assert facts["truth"] == truth
    assert facts["data"]["source"] == str(output / "world" / "pairs.parquet")
    margins = pd.read_parquet(output / "margins.parquet")
    assert facts["data"]["train"] + len(margins) == 12 * 10
    assert np.isfinite(margins["margin"]).all()
    page = (output / "report.html").read_text()
    assert "truth" in page and page.count("<img") == len(list((output / "figures").glob("*.png")))
    assert (output / "reference" / "model.safetensors").is_file()
    assert (output / "policy" / "strength.json").is_file()
