import dataclasses
import re
import types

import pytest
import yaml
from trl import DPOConfig, ModelConfig, TrlParser

from mixdpo_pyro.cli import training_options
from mixdpo_pyro.cli.arguments import CommandParser
from mixdpo_pyro.cli.commands import COMMANDS
from mixdpo_pyro.cli.paths import check_model, check_source
from mixdpo_pyro.cli.train_arguments import TrainParser, parse_train_arguments
from mixdpo_pyro.errors import ConfigError, DataError, OutputError
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.workflows.training_values import check_training_values

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)


@pytest.fixture
def values(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    return {
        "model_name_or_path": "some/model",
        "dataset_name": str(tmp_path / "pairs.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "family": "gamma",
        "learning_rate": "1e-5",
        "beta": 0.2,
    }


@pytest.fixture
def config_file(tmp_path, values):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def parse(words):
    return parse_train_arguments(TrainParser("train", "train a policy"), words)


def test_keys_of_all_three_parts_are_read_from_one_flat_file(config_file, values):
    plan = parse(["--config", config_file])
    assert plan.run.dataset_name == values["dataset_name"]
    assert plan.training.family == "gamma"
    assert plan.training.learning_rate == 1e-5
    assert plan.model.model_name_or_path == "some/model"
    assert plan.given == {**values, "learning_rate": 1e-5}  # as its key means it


def test_command_line_wins_over_the_file(config_file):
    plan = parse([f"--config={config_file}", "--beta", "0.5", "--mean_anchor=fixed"])
    assert plan.training.beta == 0.5
    assert plan.training.mean_anchor == "fixed"
    assert plan.given["beta"] == 0.5
    assert plan.given["mean_anchor"] == "fixed"


def test_the_written_configuration_gives_the_same_plan(config_file, tmp_path):
    plan = parse(
        ["--config", config_file, "--max-steps", "7", "--use_peft", "--save_strategy", "no"]
    )
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(plan.given))
    repeated = parse(["--config", str(again)])
    assert repeated.run == plan.run
    assert repeated.model == plan.model
    assert repeated.given == plan.given
    assert repeated.training.max_steps == 7
    assert plan.given["save_strategy"] == "no"
    assert repeated.model.use_peft is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--famly", "gamma"], "command line: unknown option '--famly'; did you mean 'family'"),
        (["--family", "cauchy"], "argument --family: invalid choice: 'cauchy'"),
        (["--mean_anchor", "median"], "argument --mean_anchor.*: invalid choice: 'median'"),
        (["--max_steps", "many"], "argument --max_steps.*: invalid int value: 'many'"),
        (["--max-steps", "0"], "max_steps: expected at least 1, got 0"),
        (["--learning_rate", "-1"], "learning_rate: expected a finite value > 0, got -1.0"),
        (["--test_fraction", "1.5"], "test_fraction: expected 0 < value < 1, got 1.5"),
        (["--max_pairs", "1"], "max_pairs: expected at least 2, got 1"),
        (["--beta", "-1"], "beta: expected a finite value > 0, got -1.0"),
        (["--model_name_or_path", ""], "model_name_or_path: the policy's name or path is missing"),
        (["--model_name_or_path", "./none"], "model_name_or_path: there is no folder './none'"),
        (["--config"], "argument --config: expected one argument"),
        (["more"], "command line: unexpected 'more'"),
    ],
)
def test_wrong_options_name_the_key(config_file, arguments, message):
    first = [] if arguments == ["--config"] else ["--config", config_file]
    with pytest.raises(ConfigError, match=message):
        parse([*first, *arguments])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("famly: gamma\n", "run.yaml: line 1: unknown key 'famly'; did you mean 'family'"),
        ("zzzz: 1\n", "run.yaml: line 1: unknown key 'zzzz'$"),
        ("beta: 1\n1: 2\n", "run.yaml: line 2: unknown key '1'$"),
        ("- a\n- b\n", "run.yaml: expected 'key: value' lines, got list"),
        ("text\n", "run.yaml: expected 'key: value' lines, got str"),
        ("a: [1\n", "run.yaml: not a YAML file"),
        ("a: 1\n---\nb: 2\n", "run.yaml: not a YAML file"),
        ("[" * 5_000, "run.yaml: not a YAML file"),
        ("", "run.yaml: expected 'key: value' lines, got NoneType"),
        ("[a, b]: 1\n", "run.yaml: line 1: expected 'key: value'"),
        ("beta: 1\nseed: 2\nbeta: 1\n", "run.yaml: line 3: key 'beta' stands in line 1 too"),
        ("overwrite: [1, 2]\n", "line 1: overwrite: expected true or false, got \\['1', '2'\\]"),
        ("resume: 2024-01-01\n", "resume: expected true or false, got '2024-01-01'"),
        ("overwrite:\n", "overwrite: expected true or false, got nothing"),
        ("learning_rate: abc\n", "learning_rate: expected a number, got 'abc'"),
        ("learning_rate: true\n", "learning_rate: expected a number, got 'true'"),
        ("max_steps: 1.5\n", "max_steps: expected a whole number, got '1.5'"),
        ("beta: {a: 1}\n", "beta: expected a number, got {'a': 1}"),
        ("family: cauchy\n", "family: expected one of lognormal, gamma, fixed, got 'cauchy'"),
        ("dataset_name: [a, b]\n", "dataset_name: expected text, got \\['a', 'b'\\]"),
        ("max_pairs: few\n", "max_pairs: expected a whole number, got 'few'"),
        ("loss_weights: [1, b]\n", "loss_weights: expected a list, got \\['1', 'b'\\]"),
        ("model_init_kwargs: 3\nbf16: maybe\n", "bf16: expected true or false, got 'maybe'"),
    ],
)
def test_wrong_files_name_file_and_key(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(["--config", str(path)])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("save_strategy: no", "no"),  # YAML's false
        ("run_name: 010", "010"),  # YAML's 8
        ("run_name: 1e3", "1e3"),
        ("run_name: 2024-01-01", "2024-01-01"),
        ("run_name: null", None),
        ("run_name: 'null'", "null"),
        ("learning_rate: 1e-5", 1e-5),  # YAML's text
        ("seed: 010", 10),
        ("overwrite: yes", True),
        ("overwrite: off", False),
        ("max_length: ~", None),
        ("max_length: 64", 64),
        ("pad_to_multiple_of: 64", 64),
        ("pad_to_multiple_of: auto", "auto"),
        ("report_to: none", "none"),
        ("report_to: [wandb, tensorboard]", ["wandb", "tensorboard"]),
        ("loss_type: sigmoid", ["sigmoid"]),
        ("model_init_kwargs: {a: [1, x]}", {"a": [1, "x"]}),
    ],
)
def test_a_value_is_what_its_key_says(tmp_path, text, value):
    from mixdpo_pyro.cli.yaml_file import read_yaml

    path = tmp_path / "run.yaml"
    path.write_text(text)
    (found,) = TrainParser("train", "").from_file(read_yaml(path)).values()
    assert found == value
    assert type(found) is type(value)


def test_missing_files_and_pairs_say_so(tmp_path, config_file):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read \(No such file"):
        parse(["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="dataset_name"):
        parse(["--model_name_or_path", "m", "--output_dir", "o"])
    for name in ("none.csv.gz", "none.csv.xz"):
        with pytest.raises(DataError, match=f"^{re.escape(name)}: no such file$"):
            parse(["--config", config_file, "--dataset_name", name])
    with pytest.raises(DataError, match=r"^\./none: no such file or folder$"):
        parse(["--config", config_file, "--dataset_name", "./none"])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("models/none", "; no hub is asked for it, since the folder 'models' is here"),
        ("./none", ""), ("~/none/at/all", ""), ("a/b/c", ""), ("weights.safetensors", ""),
    ],
)  # fmt: skip
def test_names_of_paths_are_not_looked_up_on_a_hub(tmp_path, monkeypatch, name, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "here").mkdir(parents=True)
    with pytest.raises(ConfigError, match=re.escape(f"key: there is no folder '{name}'{why}")):
        check_model(name, "key")
    is_file = name.endswith(".safetensors")
    words = f"{name}: no such file{'' if is_file else ' or folder'}{why}"
    with pytest.raises(DataError, match=f"^{re.escape(words)}$"):
        check_source(name)
    for found in ("models/here", "Qwen/Qwen2.5-0.5B-Instruct", "gpt2", "user/data.v2"):
        check_model(found, "key")
        check_source(found)


def test_a_folder_of_other_files_is_refused_at_once(tmp_path, config_file):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files than a run"):
        parse(["--config", config_file, "--overwrite"])


def actions_of(parser):
    """What each flag takes, and how it is explained."""
    return {
        flag: (action.nargs, action.const, action.help)
        for action in parser._actions
        for flag in action.option_strings
    }


def test_options_read_from_source_are_those_of_the_class():
    """The flags, switches and helps that TRL's parser makes of the imported class."""
    own, theirs = training_options.read_training_options()
    expected = actions_of(TrlParser([MixDPOConfig]))
    found = actions_of(TrlParser([own, theirs]))
    assert found.pop("-o") == found["--output_dir"]
    assert found == expected
    names = {f.name for f in dataclasses.fields(MixDPOConfig)}
    assert {f.name for f in dataclasses.fields(own)} == names - {
        f.name for f in dataclasses.fields(DPOConfig)
    }


def described(parser):
    """All that a parser knows of each flag, and how it reads words."""
    return {
        flag: (
            type(a),
            a.dest,
            a.nargs,
            a.const,
            a.default,
            a.required,
            a.choices,
            a.help,
            read(a),
        )
        for a in parser._actions
        for flag in a.option_strings
    }


def read(action):
    if not isinstance(action.type, types.FunctionType):
        return action.type
    known = {"int": ("1", "None"), "float": ("1", "null"), "dict": ("null",)}
    words = known.get(action.type.__name__, ("true", "No", "1"))
    return [action.type(word) for word in (*words, *map(str, action.choices or ()))]


PARTS = [*training_options.read_training_options(), ModelConfig]
PARTS += [command.config for command in COMMANDS.values() if command.config]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_dataclasses_become_the_options_that_trl_makes_of_them(part):
    """`--debug` apart, whose words TRL's parser cannot read."""
    found = described(CommandParser("some", "", [part]))
    expected = described(TrlParser([part]))
    assert found.pop("--debug", None) != expected.pop("--debug", ())
    assert found == expected


def test_choices_and_types_read_from_source_are_those_of_the_class():
    """Also where transformers declares words as an enumeration, if not where it computes them."""
    own, theirs = training_options.read_training_options()
    expected = {a.dest: a for a in TrlParser([MixDPOConfig])._actions}
    for action in TrlParser([own, theirs])._actions:
        real = expected[action.dest]
        if action.type in (int, float, bool):
            assert action.type is real.type, action.dest
        if real.choices and not action.dest.startswith("log_level"):
            assert list(action.choices) == list(real.choices), action.dest
    assert expected["family"].choices == ("lognormal", "gamma", "fixed")


REFUSED = [
    ({"flip_probability": 0.7}, "flip_probability: expected 0 <= value < 0.5, got 0.7"),
    ({"baseline": "robust"}, "baseline: 'robust' .* needs family 'fixed', got 'lognormal'"),
    ({"estimator": "series"}, "estimator: 'series' is for family 'gamma', got family 'lognormal'"),
    ({"strength_initial_cv": 0.0}, "initial_cv: expected a finite"),
    ({"loss_type": ["hinge"]}, "loss_type: expected 'sigmoid' once, .* got 'hinge'"),
    ({"loss_weights": [1.0, 2.0]}, "loss_weights: expected one for each loss_type, got 2 for 1"),
    ({"label_smoothing": 0.1}, "label_smoothing: expected 0, got 0.1"),
    ({"use_weighting": True, "annotator_column": "a"}, "use_weighting: not with annotator_column"),
    ({"rank_column": "place"}, "rank_column: needs a choice_set_column"),
    ({"choice_set_column": "s", "ld_alpha": 0.5}, "ld_alpha: not with choice_set_column"),
    ({"fp16": True, "bf16": True}, "fp16: not together with bf16"),
    ({"eval_steps": 1.5, "eval_strategy": "steps"}, "eval_steps: expected a whole number or a sh"),
    ({"load_best_model_at_end": True}, "load_best_model_at_end: expected save_strategy 'best' or"),
    ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type: 'greedy' needs an eval_strategy"),
    ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor: needs dataloader_num_work"),
    ({"torch_empty_cache_steps": 0}, "torch_empty_cache_steps: expected a finite value > 0"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_is_refused_before_torch_is_imported_is_refused_by_the_class_too(values, message):
    needed = dict.fromkeys(("model_name_or_path", "dataset_name", "output_dir"), "some")
    check_training_values(needed)
    with pytest.raises(ConfigError, match=message):
        check_training_values(needed | values)
    with pytest.raises((ValueError, TypeError)):
        MixDPOConfig(output_dir="some", use_cpu=True, **values)


def option_names():
    parts = training_options.read_training_options()
    return [{field.name for field in dataclasses.fields(part)} for part in parts]


@pytest.mark.parametrize(
    "place",
    [
        ("trl.trainer.no_config", "DPOConfig"),
        ("no_package.config", "DPOConfig"),
        ("trl.trainer.dpo_config", "Renamed"),
    ],
)
def test_another_layout_of_trl_costs_time_only(monkeypatch, place):
    expected = option_names()
    monkeypatch.setattr(training_options, "_TRL_CLASSES", (place,))
    assert option_names() == expected


def test_help_is_short_and_help_all_is_whole(capsys):
    texts = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            TrainParser("train", "").parse_args([flag])
        texts[flag] = capsys.readouterr().out
    keys = [f"--{f.name}" for f in dataclasses.fields(MixDPOConfig) if f.init]
    assert all(key in texts["--help-all"] for key in keys)
    assert len(texts["--help"].splitlines()) < len(texts["--help-all"].splitlines()) / 4
    for key in (
        "model_name_or_path", "dataset_name", "output_dir", "learning_rate", "num_train_epochs",
        "per_device_train_batch_size", "max_length", "beta", "use_peft", "family", "resume",
    ):  # fmt: skip
        assert f"--{key}" in texts["--help"]
    assert "--neftune_noise_alpha" not in texts["--help"]
