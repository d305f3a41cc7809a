"""What holds for the parser of every command, generated from the parsers."""

import argparse
import os
import subprocess
import sys

import pytest

from mixdpo_pyro.cli.commands import COMMANDS, usage
from mixdpo_pyro.errors import ConfigError

PARSERS = {name: command.parser() for name, command in COMMANDS.items()}
WRITES_FOLDER = {
    "demo",
    "train",
    "sweep",
    "diagnose",
    "check",
    "reliability",
    "rivals",
    "judges",
    "winrate",
    "export",
    "init",
    "simulate",
}
WRITES_FILE = {"margins", "compare"}


def long_options(parser):
    """Flags of two words and more, and the action of each; a dictionary is for files only."""
    for action in parser._actions:
        for flag in action.option_strings:
            if (
                "_" in flag
                and action.nargs != 0
                and getattr(action.type, "__name__", "") != "dict"
            ):
                yield flag, action


def words_for(parser, flag, action):
    """A command line with every required argument and this option."""
    words = []
    for other in parser._actions:
        if not other.option_strings:
            words.append("word")
        elif other.required and other is not action:
            words += [other.option_strings[0], "word"]
    if action.nargs == "?":
        return [*words, flag]
    value = str(action.choices[0]) if action.choices else "1"
    return [*words, flag, value]


@pytest.mark.parametrize(
    ("command", "flag"), [(c, flag) for c, p in PARSERS.items() for flag, _ in long_options(p)]
)
def test_hyphens_are_taken_for_underscores(command, flag):
    parser = PARSERS[command]
    action = dict(long_options(parser))[flag]
    words = words_for(parser, flag, action)
    twin = [word.replace("_", "-") if word == flag else word for word in words]
    assert twin != words
    found, others = parser.parse_known_args(words)
    assert (found, others) == (parser.parse_known_args(twin)[0], [])
    value = getattr(found, action.dest)
    if action.nargs is None and not action.choices:
        assert str(value).rstrip("0").rstrip(".") in ("1", "True")


@pytest.mark.parametrize("command", sorted(WRITES_FOLDER))
def test_folders_are_named_by_output_dir(command):
    flags = PARSERS[command].options()["output_dir"].option_strings
    assert set(flags) == {"--output_dir", "--output-dir", "-o"}


@pytest.mark.parametrize("command", sorted(WRITES_FILE))
def test_files_are_named_by_output(command):
    assert set(PARSERS[command].options()["output"].option_strings) == {"--output", "-o"}


def test_no_other_command_writes_a_folder():
    assert {c for c, p in PARSERS.items() if "output_dir" in p.options()} == WRITES_FOLDER


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_once(command, capsys):
    parser = PARSERS[command]
    for action in parser._actions:
        assert action.help, action.dest
    if command != "train":
        with pytest.raises(SystemExit):
            parser.parse_args(["--help"])
        text = capsys.readouterr().out
        assert all(f"--{key}" in text for key in parser.options())
        assert not any(
            f"--{key.replace('_', '-')} " in text for key in parser.options() if "_" in key
        )
    assert f"  {command} " in usage()


def test_a_switch_before_a_file_does_not_take_it():
    config, named = PARSERS["check"].read(["--overwrite", "m.csv", "p.nc"])
    assert config.overwrite
    assert (named.margins, named.posterior) == ("m.csv", "p.nc")
    config, named = PARSERS["margins"].read(
        ["--resume", "policy", "base", "--overwrite", "d.csv", "-o", "m.parquet"]
    )
    assert config.resume and config.overwrite
    assert (named.model, named.reference, named.data) == ("policy", "base", "d.csv")


@pytest.mark.parametrize("line", ["p.csv -o x", "-o x p.csv", "-o x --overwrite p.csv"])
def test_an_argument_that_may_be_left_away_stands_anywhere(line):
    config, named = PARSERS["init"].read(line.split())
    assert (named.data, config.output_dir, config.dataset_name) == ("p.csv", "x", None)
    config, named = PARSERS["init"].read(["--dataset_name", "p.csv", "-o", "x"])
    assert (named.data, config.dataset_name) == (None, "p.csv")


def test_lists_and_several_runs_are_read():
    config, named = PARSERS["diagnose"].read(["m.csv", "--group", "topic", "policy"])
    assert (named.margins, config.group) == ("m.csv", ["topic", "policy"])
    _, named = PARSERS["compare"].read(["a", "b", "-o", "c.html"])
    assert named.runs == ["a", "b"]


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("demo", ["--sed", "3"], "unknown option '--sed'; did you mean 'seed'"),
        ("demo", ["--see", "3"], "unknown option '--see'; did you mean 'seed'"),  # nor abbreviated
        ("doctor", ["d.csv", "more"], "unexpected 'more'; see mixdpo doctor --help"),
        ("doctor", ["d.csv", "--max_length", "long"], "argument --max_length.*invalid int value"),
        ("doctor", [], "the following arguments are required: DATA; see mixdpo doctor --help"),
        ("init", ["p.csv"], "the following arguments are required: --output_dir"),
        ("init", ["p.csv", "more", "-o", "x"], "unexpected 'more'"),
        ("diagnose", ["m.csv", "--family", "weibull"], "invalid choice: 'weibull'"),
        ("diagnose", ["m.csv", "--overwrite=maybe"], "expected true or false, got 'maybe'"),
    ],
)
def test_wrong_words_are_named(command, words, message):
    with pytest.raises(ConfigError, match=message):
        PARSERS[command].read(words)


BOUNDS = [
    ("init --dataset_name d -o o --num_layers -1", "num_layers: expected at least 1, got -1"),
    ("init --dataset_name d -o o --num_heads 0", "num_heads: expected at least 1, got 0"),
    ("init --dataset_name d -o o --vocab_size 0", "vocab_size: expected at least 300, got 0"),
    ("init --dataset_name d -o o --hidden_size -8", "hidden_size: expected at least 8, got -8"),
    ("init --dataset_name d -o o --hidden_size 12", r"hidden_size: .* multiple of .* = 8, got 12"),
    ("init --dataset_name d -o o --sft_steps 0", "sft_steps: expected at least 1, got 0"),
    ("init --dataset_name d -o o --sft_batch_size 0", "sft_batch_size: expected at least 1"),
    ("init --dataset_name d -o o --sft_learning_rate 0", "sft_learning_rate: expected a finite"),
    ("init --dataset_name d -o o --num_layers 1000000", r"at most 1,000 \(this builds small"),
    ("init --dataset_name d -o o --seed -1", "seed: expected at least 0, got -1"),
    ("simulate -o o --cv -1", "cv: expected 0 to 1000 .*, got -1"),
    ("simulate -o o --cv nan", "cv: expected 0 to 1000 .*, got nan"),
    ("simulate -o o --cv 1e300", "cv: expected 0 to 1000 .*, got 1e"),
    ("simulate -o o --mean inf", "mean: expected a finite value > 0, got inf"),
    ("simulate -o o --kind quads", "kind: expected pairs, ties, grades:G"),
    ("simulate -o o --num_annotators 0", "num_annotators: expected at least 1, got 0"),
    ("simulate -o o --pairs_per_annotator -5", "pairs_per_annotator: expected at least 1"),
    ("simulate -o o --pairs_per_annotator 99999999", r"at most 50,000 \(a world of 10,000,000"),
    ("demo --seed -1", "seed: expected at least 0, got -1"),
    ("demo --cv -0.5", "cv: expected 0 to 1000 .*, got -0.5"),
    ("doctor d --examples -1", "examples: expected at least 0, got -1"),
    ("doctor d --seed -1", "seed: expected at least 0, got -1"),
    ("margins m r d -o o --batch_size 0", "batch_size: expected at least 1, got 0"),
    ("margins m r d -o o --max_length 1", "max_length: expected at least 2, got 1"),
    ("diagnose m --num_samples 0", "num_samples: expected at least 100, got 0"),
    ("diagnose m --num_samples 100000000", r"num_samples: expected at most 10,000 \(.*, got 1000"),
    ("diagnose m --beta -1", "beta: expected a finite value > 0, got -1"),
    ("check m p --num_replications 100000000", r"num_replications: .* at most 5,000 \(all are he"),
    ("check m p --num_replications 1", "num_replications: expected at least 50, got 1"),
    ("check m p --max_choices 0", "max_choices: expected at least 20, got 0"),
    ("check m p --seed 99999999999", r"seed: expected at most 4,294,967,295 \(32 bits\)"),
    ("power --simulations 100000000", r"simulations: expected at most 10,000 \(a probability"),
    ("power --pairs 100000000", r"pairs: expected at most 1,000,000 \(each simulation"),
    ("power --pairs 1000000 --more", r"pairs: expected at most 250,000 \(each simulation"),
    ("power --annotators -1", "annotators: expected 0 or at least 2, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BOUNDS)
def test_values_outside_their_bounds_are_named_by_the_key(line, message):
    command, *words = line.split()
    with pytest.raises(ConfigError, match=message):
        PARSERS[command].read(words)


def test_larger_designs_stay_within_the_bounds():
    from mixdpo_pyro.diagnosis.power import _designs

    (config,) = PARSERS["power"].read(["--pairs", "250000", "--more"])
    assert max(design.pairs for design in _designs(config)) == 1_000_000


EARLY = [
    "train --config none.yaml",
    "train --config bad.yaml",
    "train --famly gamma",
    "train --dataset_name none.jsonl --model_name_or_path m -o o",
    "train --dataset_name d.csv --model_name_or_path m -o o --learning_rate 0",
    "train --dataset_name p.csv --model_name_or_path m -o o --reader nobody",
    "train --dataset_name p.csv --model_name_or_path m -o o --annotator_column who",
    "train --dataset_name p.csv --model_name_or_path m -o o --group_column who",
    "train --dataset_name p.csv --model_name_or_path m -o o --flip_probability 0.7",
    "train --dataset_name p.csv --model_name_or_path m -o o --loss_type hinge",
    "train --dataset_name p.csv --model_name_or_path m -o o --eval_strategy never",
    "train --dataset_name p.csv --model_name_or_path m -o o --optim none",
    "train --dataset_name p.csv --model_name_or_path m -o o --load_best_model_at_end true",
    "train --dataset_name p.csv --model_name_or_path adapter -o o",
    "sweep --config none.yaml -o o",
    "sweep --config bad.yaml -o o",
    "sweep --config sweep.yaml -o o",
    "sweep --config sweep.yaml -o o --jobs 0",
    "margins ./none r d.csv -o m.parquet",
    "margins m r d.csv -o m.parquet",
    "margins m r p.csv -o m.parquet --reader prism:nothing",
    "margins m r none.csv -o m.parquet",
    "margins m r p.csv -o none/m.parquet",
    "doctor none.csv",
    "doctor p.csv --json none/d.json",
    "doctor p.csv --annotator who",
    "doctor p.csv --reader nobody",
    "diagnose none.csv",
    "diagnose notes.txt",
    "diagnose d.csv -o here",
    "diagnose d.csv --annotator who",
    "diagnose d.csv --group who",
    "diagnose d.csv --stratum who",
    "diagnose d.csv --attribute who",
    "diagnose d.csv --choice_set who",
    "diagnose d.csv --second p.csv",
    "diagnose p.jsonl",
    "rivals none.csv",
    "rivals d.csv --holdout who",
    "rivals d.csv --embeddings none.safetensors",
    "check d.csv none.nc",
    "check d.csv d.csv --group who",
    "compare here",
    "report none",
    "init --dataset_name none.csv -o o",
    "init none.csv -o o",
    "init p.csv --dataset_name p.csv -o o",
    "init -o o",
    "init here/none -o o",
    "margins here/none r p.csv -o m.parquet",
    "winrate none --prompts p.csv --judge oracle -o o",
    "demo -o here",
]


def test_wrong_arguments_and_files_fail_before_anything_heavy_is_imported(tmp_path):
    """One process tries them all; the heavy libraries are those that take seconds."""
    (tmp_path / "bad.yaml").write_text("famly: gamma\n")
    (tmp_path / "sweep.yaml").write_text("base: {dataset_name: p.csv}\narms: [dpo]\n")
    (tmp_path / "d.csv").write_text("margin\n1\n")
    (tmp_path / "p.csv").write_text("chosen,rejected\na,b\n")
    (tmp_path / "p.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    for name in ("here", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "here" / "notes.txt").write_text("mine")
    code = (
        "import sys\n"
        "from mixdpo_pyro.cli.main import main\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyro', 'matplotlib', 'scipy', 'arviz'}\n"
        f"for line in {EARLY!r}:\n"
        "    status = main(line.split())\n"
        "    print(line, status, sorted(heavy & set(sys.modules)), sep='|')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.split("|") for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == EARLY
    assert {line[1] for line in lines} == {"1", "2"}
    assert {line[2] for line in lines} == {"[]"}
    errors = result.stderr.splitlines()
    assert len(errors) == len(EARLY)
    assert all(error.startswith("mixdpo: error: ") for error in errors)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter", "bad.yaml", "d.csv", "here", "p.csv", "p.jsonl", "sweep.yaml",
    ]  # fmt: skip


def test_parsers_are_all_of_one_class():
    from mixdpo_pyro.cli.arguments import CommandParser

    assert all(isinstance(parser, CommandParser) for parser in PARSERS.values())
    assert issubclass(CommandParser, argparse.ArgumentParser)
