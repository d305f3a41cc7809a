"""Names under which trackers get what is logged; skipped where they are not installed."""

import pytest
from scenarios import TRAINING_MARKS, train_mixdpo

pytestmark = [
    *TRAINING_MARKS,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]

TOTALS = {
    "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss",
    "total_flos",
}  # fmt: skip
"""Of the whole training: Weights & Biases keeps them in a run's summary, as they are."""


def test_wandb_and_tensorboard_get_the_same_names(tmp_path, policy_folder, monkeypatch):
    wandb = pytest.importorskip("wandb")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path),
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "tensorboard"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    train_mixdpo(
        tmp_path / "out", policy_folder, report_to=["wandb", "tensorboard"], max_steps=2,
        eval_strategy="steps", eval_steps=2, annotator_column="annotator",
        group_column="annotator",
    )  # fmt: skip
    try:
        seen = {name for name in wandb.run.summary.keys() if not name.startswith("_")}
    finally:
        wandb.finish()
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    logged = set(found.Tags()["scalars"])
    assert seen - TOTALS - {"train/global_step"} == logged - {f"train/{name}" for name in TOTALS}
    assert seen >= TOTALS and logged >= {f"train/{name}" for name in TOTALS}
    parts = ("mean", "cv", "q05", "q95")
    assert logged >= {f"{when}/strength/{part}" for when in ("train", "eval") for part in parts}
    assert {"train/strength/kl", "eval/worst_group/accuracy"} <= logged
