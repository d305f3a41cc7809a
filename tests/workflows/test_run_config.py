import pytest

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.workflows.run_config import DemoConfig, plan_from_values

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

VALUES = {
    "model_name_or_path": "some/model",
    "dataset_name": "pairs.jsonl",
    "output_dir": "out",
    "family": "gamma",
    "learning_rate": 1e-5,
    "beta": 0.2,
}


def test_values_are_checked_like_a_file():
    plan = plan_from_values(VALUES)
    assert plan.training.beta == 0.2
    assert plan.run.dataset_name == "pairs.jsonl"
    assert plan.model.model_name_or_path == "some/model"
    assert plan.given == VALUES
    with pytest.raises(ConfigError, match="configuration: unknown key 'bta'"):
        plan_from_values({**VALUES, "bta": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": ""}, "model_name_or_path: the policy's name or path is missing"),
        ({"dataset_name": None}, "dataset_name: the file or name of the pairs is missing"),
        ({"output_dir": ""}, "output_dir: the folder for the results is missing"),
        ({"learning_rate": 0.0}, "learning_rate: expected a finite value > 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a finite value > 0, got nan"),
        ({"num_train_epochs": -1.0}, "num_train_epochs: expected a finite value > 0, got -1"),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
        ({"max_steps": -2}, "max_steps: expected at least 1, got -2"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: expected at least 1"),
        ({"max_length": 0}, "max_length: expected at least 2, got 0"),
        ({"warmup_steps": -3}, "warmup_steps: expected at least 0, got -3"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"seed": 2**32}, r"seed: expected at most 4,294,967,295 \(32 bits\), got 4294967296"),
        ({"beta": -1.0}, "beta: expected a finite value > 0, got -1.0"),
        ({"estimator": "series", "family": "lognormal"}, "'series' is for family 'gamma'"),
        ({"test_fraction": 1.5}, "test_fraction: expected 0 < value < 1, got 1.5"),
        ({"max_pairs": 1}, "max_pairs: expected at least 2, got 1"),
    ],
)
def test_values_that_ruin_a_run_are_refused_by_their_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_from_values({**VALUES, **changes})


def test_the_default_number_of_steps_and_no_longest_length_are_taken():
    plan = plan_from_values({**VALUES, "max_steps": -1, "max_length": None})
    assert (plan.training.max_steps, plan.training.max_length) == (-1, None)


def test_a_demo_without_annotators_is_refused():
    with pytest.raises(ConfigError, match="num_annotators: expected at least 1, got 0"):
        DemoConfig(num_annotators=0)
