"""Mixtures and streams: what is trained on is what TRL loads, and what needs all of it says so."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset
from scenarios import TRAINING_MARKS, run_values, small_world, take
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.cli.train_arguments import TrainParser
from mixdpo_pyro.cli.yaml_file import read_yaml
from mixdpo_pyro.data.validation import ROW_COLUMN
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.workflows.run_config import _PART_KEYS, plan_from_values, read_part
from mixdpo_pyro.workflows.run_data import load_mixture, load_run_pairs
from mixdpo_pyro.workflows.train import execute_run

pytestmark = TRAINING_MARKS

COLUMNS = ["prompt", "chosen", "rejected", "annotator"]


@pytest.fixture
def files(tmp_path):
    """Two files of pairs: 30 and 18 rows."""
    world = small_world().select_columns(COLUMNS)
    world.select(range(30)).to_json(tmp_path / "first.jsonl")
    world.select(range(30, 48)).to_parquet(tmp_path / "second.parquet")
    return [str(tmp_path / name) for name in ("first.jsonl", "second.parquet")]


def trl_parts(files, **keys):
    first, second = files
    return [
        {"path": "json", "data_files": first, **keys},
        {"path": "parquet", "data_files": second, **keys},
    ]


def loaded(values, **more):
    values = {key: value for key, value in values.items() if key != "dataset_name"}
    plan = plan_from_values({**values, "bf16": False, **more})
    return plan, load_run_pairs(plan.run, plan.training)


@pytest.mark.parametrize("keys", [{}, {"fraction": 0.5}, {"columns": COLUMNS[:3]}])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_is_that_of_trl(files, keys, streaming):
    """By TRL's keys and by paths, whole and streamed; its fractions cannot be streamed."""
    parts = trl_parts(files, **keys)
    ours = [{"path": path, **keys} for path in files]
    if streaming and "fraction" in keys:
        with pytest.raises(DataError, match=r"datasets: cannot be loaded .*streaming"):
            load_mixture(ours, streaming)
        return
    mixture = DatasetMixtureConfig([DatasetConfig(**part) for part in parts], streaming)
    expected = list(get_dataset(mixture)["train"])
    assert len(expected) == (36 if "fraction" in keys else 48)
    for found in (load_mixture(parts, streaming), load_mixture(ours, streaming)):
        assert isinstance(found, IterableDataset if streaming else Dataset)
        assert list(found) == expected


def test_keys_of_a_part_are_those_of_trl():
    assert set(_PART_KEYS) == {field.name for field in dataclasses.fields(DatasetConfig)}


def test_a_mixture_is_split_as_a_dataset_is(tmp_path, files, policy_folder):
    """Whole prompts are held out, annotators found, rows numbered through the mixture."""
    values = run_values(tmp_path, policy_folder)
    plan, found = loaded(values, datasets=files)
    assert plan.training.annotator_column == "annotator"
    rows = sorted([*found.train[ROW_COLUMN], *found.test[ROW_COLUMN]])
    assert len(rows) == len(set(rows)) and set(rows) <= set(range(48))
    assert not set(found.train["prompt"]) & set(found.test["prompt"])
    assert plan.run.source == " + ".join(files)


def test_mixtures_are_named_in_files_and_on_the_command_line(tmp_path):
    parser = TrainParser("train", "")
    (tmp_path / "run.yaml").write_text(
        "datasets:\n  - path: a.jsonl\n    fraction: 0.5\n  - b.jsonl\n"
        "dataset_streaming: true\ntest_pairs: 8\n"
    )
    from_file = parser.from_file(read_yaml(tmp_path / "run.yaml"))
    assert from_file["datasets"] == [{"path": "a.jsonl", "fraction": 0.5}, "b.jsonl"]
    words = ["--datasets", '{"path": "a.jsonl", "fraction": 0.5}', "b.jsonl"]
    typed = parser.given(words)
    for given in (from_file, typed):
        assert [read_part(part) for part in given["datasets"]] == [
            {"path": "a.jsonl", "fraction": 0.5}, {"path": "b.jsonl"},
        ]  # fmt: skip


STREAM = {"dataset_streaming": True, "test_pairs": 8, "max_steps": 2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"datasets": ["b.jsonl"]}, "dataset_name: not together with datasets, a mixture"),
        ({"dataset_name": None, "datasets": [{"name": "x"}]}, "datasets: expected a path"),
        (
            {"dataset_name": None, "datasets": [{"path": "x", "fractoin": 1}]},
            "datasets: unknown key 'fractoin'; did you mean 'fraction'",
        ),
        ({"dataset_name": None, "datasets": ['{"path"']}, "datasets: not a JSON object"),
        (
            {"dataset_name": None, "datasets": [{"path": "x", "fraction": 0}]},
            "datasets: fraction: expected a finite value > 0, got 0.0",
        ),
        ({"test_pairs": 5}, "test_pairs: is for dataset_streaming"),
        ({**STREAM, "max_steps": -1}, "max_steps: missing, and a stream has no length"),
        ({**STREAM, "test_pairs": None}, "cannot be held out of a stream; give either"),
        ({**STREAM, "max_pairs": 5}, "max_pairs: needs the whole dataset, so not with dataset_"),
        ({**STREAM, "reader": "prism"}, "reader: needs the whole dataset"),
        ({**STREAM, "outcome_column": "o"}, "outcome_column: needs the whole dataset"),
        ({**STREAM, "choice_set_column": "s"}, "choice_set_column: needs the whole dataset"),
        ({**STREAM, "test_split_by": "annotator"}, "test_split_by: needs the whole dataset"),
        ({**STREAM, "precompute_ref_log_probs": True}, "precompute_ref_log_probs: needs the"),
    ],
)
def test_what_does_not_go_together_is_named(changed, message):
    values = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", **changed}
    with pytest.raises(ConfigError, match=message):
        plan_from_values(values)


def test_guessed_cells_are_refused(tmp_path):
    (tmp_path / "pairs.csv").write_text("chosen,rejected\na,b\n")
    with pytest.raises(ConfigError, match=r"pairs\.csv': expected a json, jsonl or parquet file"):
        load_mixture([str(tmp_path / "pairs.csv")])


def test_a_stream_begins_behind_its_held_out_pairs(tmp_path, files, policy_folder):
    """Rows are numbered as in the files; no held-out response is trained on, and none is empty."""
    rows = [json.loads(line) for line in Path(files[0]).read_text().splitlines()]
    rows[12]["rejected"] = " "
    rows[13] = rows[2]
    (tmp_path / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan, found = loaded(run_values(tmp_path, policy_folder), datasets=files, **STREAM)
    assert isinstance(found.train, IterableDataset)
    assert found.test[ROW_COLUMN][:] == list(range(8))
    train = list(found.train)
    held_out = {(row["prompt"], row[k]) for row in found.test for k in ("chosen", "rejected")}
    expected = [
        n
        for n, row in enumerate([*rows, *take(small_world(), 48).select(range(30, 48))])
        if n >= 8
        and row["rejected"].strip()
        and held_out.isdisjoint({(row["prompt"], row[k]) for k in ("chosen", "rejected")})
    ]
    assert [row[ROW_COLUMN] for row in train] == expected
    assert not {12, 13} & set(expected)
    assert plan.training.annotator_column == "annotator"


def test_a_row_of_a_stream_that_cannot_be_read_ends_it(tmp_path, files, policy_folder):
    with open(files[0], "a") as file:
        file.write('{"prompt": "p", "chosen": null, "rejected": "b", "annotator": "a1"}\n')
    _, found = loaded(run_values(tmp_path, policy_folder), datasets=files[:1], **STREAM)
    with pytest.raises(DataError, match=r"row 30.*chosen"):
        list(found.train)


def test_choices_cannot_be_streamed(tmp_path, policy_folder):
    table = small_world().select_columns(COLUMNS).add_column("outcome", ["win"] * 48)
    table.to_json(tmp_path / "ties.jsonl")
    with pytest.raises(DataError, match="dataset_streaming: column 'outcome' says what was done"):
        loaded(
            run_values(tmp_path, policy_folder), datasets=[str(tmp_path / "ties.jsonl")], **STREAM
        )


def run_words(folder, policy, files):
    return [
        "train", "--model_name_or_path", policy, "--output_dir", str(folder / "run"),
        "--datasets", files[0], json.dumps({"path": files[1], "columns": COLUMNS}),
        "--max_steps", "2", "--use_cpu", "true", "--max_length", "128", "--report_to", "none",
        "--per_device_train_batch_size", "4", "--bootstrap_samples", "2",
    ]  # fmt: skip


def test_a_streamed_mixture_is_trained_on_from_the_command_line(tmp_path, files, policy_folder):
    """A run from pairs to report."""
    words = ["--dataset_streaming", "true", "--test_pairs", "12", "--save_strategy", "no"]
    assert main([*run_words(tmp_path, policy_folder, files), *words]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["train"] == 8 and record["data"]["test"] == 12
    assert record["data"]["source"] == " + ".join(files)
    assert record["data"]["annotator_column"] == "annotator"
    assert record["learned"]["cv"] != pytest.approx(0.5, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
def test_a_mixture_resumes_where_it_stopped(tmp_path, files, policy_folder, streaming):
    values = run_values(tmp_path, policy_folder) | {"datasets": files, "dataset_name": None}
    values |= {"use_cpu": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    values |= STREAM | {"max_steps": 3} if streaming else {}
    cvs = []
    for name in ("whole", "resumed"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "resumed":
            shutil.copytree(tmp_path / "whole" / "checkpoint-2", folder / "checkpoint-2")
            shutil.copy(tmp_path / "whole" / "training_inputs.json", folder)
        assert execute_run(plan_from_values({**values, "resume": name == "resumed"}), folder) == {}
        cvs.append(json.loads((folder / "run.json").read_text())["learned"]["cv"])
    assert cvs[0] == cvs[1]
