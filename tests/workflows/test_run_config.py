import pytest
import yaml

from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.workflows.run_config import parse_train_arguments, plan_from_values

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

VALUES = {
    "model_name_or_path": "some/model",
    "dataset_name": "pairs.jsonl",
    "output_dir": "out",
    "family": "gamma",
    "learning_rate": "1e-5",
    "beta": 0.2,
}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return str(path)


def test_keys_of_all_three_parts_are_read_from_one_flat_file(config_file):
    plan = parse_train_arguments(["--config", config_file])
    assert plan.run.dataset_name == "pairs.jsonl"
    assert plan.training.family == "gamma"
    assert plan.training.learning_rate == 1e-5
    assert plan.model.model_name_or_path == "some/model"
    assert plan.given == VALUES


def test_command_line_wins_over_the_file(config_file):
    plan = parse_train_arguments([f"--config={config_file}", "--beta", "0.5", "--mean=fixed"])
    assert plan.training.beta == 0.5
    assert plan.training.mean == "fixed"
    assert plan.given["beta"] == 0.5
    assert plan.given["mean"] == "fixed"


def test_the_written_configuration_gives_the_same_plan(config_file, tmp_path):
    plan = parse_train_arguments(
        ["--config", config_file, "--max-steps", "7", "--use_peft", "--save_strategy", "no"]
    )
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(plan.given))
    repeated = parse_train_arguments(["--config", str(again)])
    assert repeated.run == plan.run
    assert repeated.model == plan.model
    assert repeated.training.max_steps == 7
    assert plan.given["save_strategy"] == "no"
    assert repeated.model.use_peft is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--famly", "gamma"], "command line: unknown option '--famly'; did you mean 'family'"),
        (["--family", "cauchy"], "argument --family: invalid choice: 'cauchy'"),
        (["--max_steps", "many"], "argument --max_steps.*: invalid int value: 'many'"),
        (["--test_fraction", "1.5"], "test_fraction: expected 0 < value < 1, got 1.5"),
        (["--max_pairs", "1"], "max_pairs: expected at least 2, got 1"),
        (["--beta", "-1"], "beta: expected a finite number > 0, got -1.0"),
        (["--model_name_or_path", ""], "model_name_or_path: the policy's name or path is missing"),
        (["--config"], "command line: --config needs a value"),
    ],
)
def test_wrong_options_name_the_key(config_file, arguments, message):
    first = [] if arguments == ["--config"] else ["--config", config_file]
    with pytest.raises(ConfigError, match=message):
        parse_train_arguments([*first, *arguments])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("famly: gamma\n", "run.yaml: unknown key 'famly'; did you mean 'family'"),
        ("zzzz: 1\n", "run.yaml: unknown key 'zzzz'$"),
        ("- a\n- b\n", "run.yaml: expected 'key: value' lines, got list"),
        ("a: [1\n", "run.yaml: not a YAML file"),
        ("", "run.yaml: expected 'key: value' lines, got NoneType"),
    ],
)
def test_wrong_files_name_file_and_key(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse_train_arguments(["--config", str(path)])


def test_missing_file_and_missing_dataset_say_so(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read \(No such file"):
        parse_train_arguments(["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="dataset_name"):
        parse_train_arguments(["--model_name_or_path", "m", "--output_dir", "o"])


def test_values_are_checked_like_a_file():
    assert plan_from_values(VALUES).training.beta == 0.2
    with pytest.raises(ConfigError, match="configuration: unknown key 'bta'"):
        plan_from_values({**VALUES, "bta": 1})
