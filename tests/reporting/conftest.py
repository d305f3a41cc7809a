import json

import numpy as np
import pandas as pd
import pytest

from mixdpo_pyro.data.simulation import Truth
from mixdpo_pyro.inference import Posterior, assess_heterogeneity, fit, save_arviz, to_arviz
from mixdpo_pyro.reporting.recommendation import Advice
from mixdpo_pyro.reporting.records import write_record
from mixdpo_pyro.reporting.run_record import LearnedStrength, RunData, RunRecord

TRUTH = Truth("gamma", 2.0, 0.5, 0, "pairs", [], {"a": 1.0, "b": 2.0, "c": 3.0})


@pytest.fixture(scope="session")
def written_run(tmp_path_factory):
    """A run folder written by hand: margins are 4 times the reward, strengths 0.5 per nat."""
    tmp_path = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    reward = rng.normal(0, 1, 300)
    annotator = np.repeat(["a", "b", "c"], 100)
    strength = np.array([TRUTH.strengths[name] for name in annotator])
    is_right = rng.random(300) < 1 / (1 + np.exp(-strength * np.abs(reward)))
    reward = np.where(is_right, 1, -1) * np.abs(reward)
    margins = pd.DataFrame(
        {"margin": 4 * reward, "source_row": np.arange(300), "annotator": annotator,
         "reward_margin": reward}
    )  # fmt: skip
    result = fit(
        margins["margin"].to_numpy(copy=True),
        annotator=annotator,
        family="gamma",
        beta=0.5,
        num_samples=400,
    )
    margins.to_parquet(tmp_path / "margins.parquet")
    save_arviz(to_arviz(result), tmp_path / "posterior.nc")
    history = [
        {"step": s, "loss": 0.5, "rewards/accuracies": 0.5, "strength/mean": 0.5,
         "strength/cv": 0.4, "learning_rate": 1 - s / 60} for s in range(1, 61)
    ]  # fmt: skip
    (tmp_path / "log_history.json").write_text(json.dumps(history))
    training = Posterior(np.full(9, 0.5), np.linspace(0.3, 0.7, 9), "gamma", method="training")
    training.save(tmp_path / "training_posterior.nc")
    record = RunRecord(
        family="gamma", mean_anchor="prior", beta=0.5, seed=0,
        data=RunData("d", 10, 300, {"empty response": 2}, "annotator", has_panels=True),
        learned=LearnedStrength(0.5, 0.5, 0.1, 1.0), verdict=assess_heterogeneity(result),
        advice=Advice("Collect <more>.", "+0.01 nats", "no change"),
        truth=TRUTH, command="mixdpo train <b>", versions={"python": "3"}, seconds=1.0,
    )  # fmt: skip
    write_record(record, tmp_path / "run.json")
    return tmp_path
