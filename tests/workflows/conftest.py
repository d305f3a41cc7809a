import pytest
from scenarios import small_world


@pytest.fixture
def values(tmp_path, policy_folder):
    """Keys of a short run on 48 pairs of 6 annotators."""
    small_world().remove_columns(["source_row", "reward_margin"]).to_json(tmp_path / "pairs.jsonl")
    return {
        "model_name_or_path": policy_folder,
        "dataset_name": str(tmp_path / "pairs.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "test_fraction": 0.5,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_length": 128,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
    }
