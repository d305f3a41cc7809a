import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scenarios import TRAINING_MARKS, build_policy_folder, small_world

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.errors import ConfigError, DataError, NonFiniteLossError, OutputError
from mixdpo_pyro.io import locked_output
from mixdpo_pyro.io.pseudonyms import Pseudonyms
from mixdpo_pyro.margins import compute
from mixdpo_pyro.margins.compute import MARGIN_COLUMNS, write_margins
from mixdpo_pyro.margins.config import MarginsConfig

pytestmark = TRAINING_MARKS

SIZES = {"batch_size": 5, "max_length": 128, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy, a reference, and 24 pairs of them with two prompts that are too long."""
    folder = tmp_path_factory.mktemp("margins")
    world = small_world().remove_columns("source_row").select(range(24))
    build_policy_folder(folder / "policy", small_world(), seed=1)
    build_policy_folder(folder / "reference", small_world(), seed=2)
    rows = world.to_list()
    rows[3]["prompt"] = rows[17]["prompt"] = "How should I boil an egg? " * 40
    rows[5]["chosen"] = "Good luck. " * 60
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text(lines)
    return folder


def run(folder, output, **changes):
    config = MarginsConfig(**{**SIZES, **changes})
    names = (str(folder / name) for name in ("policy", "reference", "pairs.jsonl"))
    return write_margins(*names, output, config)


def sum_logps(model, tokenizer, prompt, response, max_length):
    """Log-probability of a response by the chain rule, one token at a time, in float64."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + response + tokenizer.eos_token)["input_ids"][:max_length]
    total = 0.0
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for position in range(len(prompt_ids), len(ids)):
        total += logits[position - 1, ids[position]].item()
    return total, len(ids) - len(prompt_ids)


def test_margins_equal_an_independent_computation(folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary = run(folder, tmp_path / "m.parquet")
    table = pd.read_parquet(tmp_path / "m.parquet")
    assert tuple(table.columns) == (*MARGIN_COLUMNS, "annotator", "reward_margin")
    assert table["source_row"].tolist() == [i for i in range(24) if i not in (3, 17)]
    assert summary.dropped == {"a prompt longer than max_length": 2}
    assert summary.truncated == 1
    assert summary.accuracy == np.mean(table["margin"] > 0)

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder / name).double().eval()
        for name in ("policy", "reference")
    }
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    for row in table.to_dict("records")[:8]:
        pair = json.loads(lines[row["source_row"]])
        for name, model in models.items():
            for side in ("chosen", "rejected"):
                logps, tokens = sum_logps(model, tokenizer, pair["prompt"], pair[side], 128)
                assert row[f"{name}_{side}_logps"] == pytest.approx(logps, abs=1e-5)
                assert row[f"{side}_tokens"] == tokens
        assert row["reward_margin"] == pair["reward_margin"]
        assert row["annotator"] == pair["annotator"]
    margin = (table["policy_chosen_logps"] - table["reference_chosen_logps"]) - (
        table["policy_rejected_logps"] - table["reference_rejected_logps"]
    )
    np.testing.assert_allclose(table["margin"], margin, atol=1e-12)


def test_pseudonyms_take_the_place_of_ids(folder, tmp_path):
    (tmp_path / "salt").write_bytes(b"kept by its owner")
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "team": "red", "topic": "eggs"} for line in lines[:8]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = MarginsConfig(
        **SIZES, pseudonymise=str(tmp_path / "salt"), pseudonymise_columns=["team"]
    )
    models = [str(folder / name) for name in ("policy", "reference")]
    write_margins(*models, str(tmp_path / "pairs.jsonl"), tmp_path / "m.parquet", config)
    table, names = pd.read_parquet(tmp_path / "m.parquet"), Pseudonyms(b"kept by its owner")
    expected = [names.of(rows[k]["annotator"]) for k in table["source_row"]]
    assert table["annotator"].tolist() == expected
    assert set(table["team"]) == {names.of("red")} and set(table["topic"]) == {"eggs"}


_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("form", ["explicit", "implicit", "messages"])
def test_margins_equal_those_of_the_trainer(folder, tmp_path, form):
    """Float32 log-probabilities of 60 nats are 4e-6 apart; responses are short for that reason."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mixdpo_pyro.training.config import MixDPOConfig
    from mixdpo_pyro.training.trainer import MixDPOTrainer

    length = 20 if form != "messages" else 34  # the longest ones are cut
    words = ["Good luck.", "Sure.", "Skip the planning.", "Do not bother me.", "Have a nice day."]
    rows = [
        {"prompt": f"How should I {task}?", "chosen": f" {a}", "rejected": f" {b}"}
        for task in ("sleep better", "boil an egg")
        for a in words
        for b in words
        if a[0] != b[0]
    ]
    if form == "implicit":
        rows = [{k: row["prompt"] + row[k] for k in ("chosen", "rejected")} for row in rows]
    if form == "messages":
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        rows = [{k: [{"role": roles[k], "content": row[k]}] for k in roles} for row in rows]
    shutil.copytree(folder, tmp_path / "models")
    folder = tmp_path / "models"
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder / "policy")
    pairs = Dataset.from_list(rows).add_column("source_row", np.arange(len(rows)))
    pairs.remove_columns("source_row").to_json(tmp_path / "short.jsonl")
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder / name)
        for name in ("policy", "reference")
    }
    trainer = MixDPOTrainer(
        model=models["policy"],
        ref_model=models["reference"],
        args=MixDPOConfig(
            str(tmp_path), max_length=length, report_to="none", disable_tqdm=True, use_cpu=True
        ),
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=tokenizer,
    )
    expected = trainer.margins()
    names = (str(folder / "policy"), str(folder / "reference"), str(tmp_path / "short.jsonl"))
    config = MarginsConfig(**{**SIZES, "max_length": length})
    summary = write_margins(*names, tmp_path / "m.parquet", config)
    assert 0 < summary.truncated < len(rows)
    table = pd.read_parquet(tmp_path / "m.parquet")
    assert table["source_row"].tolist() == expected["source_row"].tolist()
    assert table["margin"].abs().max() > 0.1
    np.testing.assert_allclose(table["margin"], expected["margin"], atol=1e-5)


def test_run_folder_stands_for_its_policy_and_another_length_is_said(folder, tmp_path, capsys):
    shutil.copytree(folder / "policy", tmp_path / "run" / "policy")
    (tmp_path / "run" / "config.yaml").write_text("max_length: 77\n")
    names = (str(tmp_path / "run"), str(folder / "policy"), str(folder / "pairs.jsonl"))
    write_margins(*names, tmp_path / "m.parquet", MarginsConfig(**SIZES))
    assert (pd.read_parquet(tmp_path / "m.parquet")["margin"] == 0).all()
    assert "was trained with max_length 77, not 128" in " ".join(capsys.readouterr().err.split())


def test_policy_against_itself_has_no_margin(folder, tmp_path):
    names = (str(folder / "policy"), str(folder / "policy"), str(folder / "pairs.jsonl"))
    write_margins(*names, tmp_path / "m.parquet", MarginsConfig(**SIZES))
    assert (pd.read_parquet(tmp_path / "m.parquet")["margin"] == 0).all()


@pytest.fixture
def interrupt(monkeypatch):
    """Stop at the n-th forward pass, with parts of two batches."""
    monkeypatch.setattr(compute, "_BATCHES_A_PART", 2)
    score = compute._score_batch

    def stop_at(count):
        calls = []

        def counted(*arguments):
            calls.append(arguments)
            if count is not None and len(calls) == count:
                raise KeyboardInterrupt
            return score(*arguments)

        monkeypatch.setattr(compute, "_score_batch", counted)
        return calls

    return stop_at


def test_interrupted_run_goes_on_and_gives_the_same_file(folder, tmp_path, interrupt):
    interrupt(None)
    run(folder, tmp_path / "whole.parquet")
    output, partial = tmp_path / "m.parquet", tmp_path / "m.parquet.partial"
    interrupt(4)
    with pytest.raises(KeyboardInterrupt):
        run(folder, output)
    assert not output.exists()
    assert [p.name for p in sorted(partial.glob("part-*"))] == ["part-00000.parquet"]
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        run(folder, output, resume=True)
    (partial / ".part-00001.parquet.partial").write_bytes(b"half a part")  # killed while writing
    calls = interrupt(None)
    run(folder, output, resume=True)
    assert len(calls) == 3  # batches 3 to 5 of 5
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not partial.exists()


@pytest.mark.slow
def test_killed_process_goes_on_and_gives_the_same_file(folder, tmp_path):
    """SIGKILL, which no program can answer, once the first parts are there."""
    rng = np.random.default_rng(0)
    words = np.array("Good luck Sure Skip the planning Do not bother me Have a nice day".split())
    answers = [" ".join(rng.choice(words, 40)) for _ in range(3000)]
    rows = [
        {"prompt": "How?", "chosen": f" {a}", "rejected": f" {b}"}
        for a, b in zip(answers[::2], answers[1::2], strict=True)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [str(folder / "policy"), str(folder / "reference"), str(tmp_path / "p.jsonl")]

    def command(output):
        options = ["--batch_size", "4", "--max_length", "128", "--device", "cpu", "--resume"]
        return [sys.executable, "-m", "mixdpo_pyro", "margins", *names, "-o", output, *options]

    output, partial = tmp_path / "m.parquet", tmp_path / "m.parquet.partial"
    subprocess.run(command(tmp_path / "whole.parquet"), check=True, capture_output=True)
    with subprocess.Popen(
        command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while len(list(partial.glob("part-*"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert not output.exists()
    subprocess.run(command(output), check=True, capture_output=True)
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not partial.exists()


def test_every_different_sequence_is_scored_once(folder, tmp_path, interrupt):
    """Five people judge the pairs of three answers, one of them the other way round."""
    answers = ["Good luck.", "Sure.", "Skip the planning."]
    rows = [
        {"prompt": "How?", "chosen": f" {a}", "rejected": f" {b}", "annotator": person}
        for person in range(5)
        for i, a in enumerate(answers)
        for b in answers[i + 1 :]
    ]
    for row in rows[-3:]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    calls = interrupt(None)
    names = (str(folder / "policy"), str(folder / "reference"), str(tmp_path / "p.jsonl"))
    write_margins(*names, tmp_path / "m.parquet", MarginsConfig(**SIZES))
    assert [list(numbers) for _, numbers, _ in calls] == [[0, 1, 2]]
    table = pd.read_parquet(tmp_path / "m.parquet")
    margin = table["margin"].to_numpy().reshape(5, 3)
    assert (margin[:4] == margin[0]).all()
    assert (margin[4] == -margin[0]).all()
    assert margin[0, 0] + margin[0, 2] == pytest.approx(margin[0, 1])  # a chain of differences


def test_damaged_part_is_computed_again(folder, tmp_path, interrupt):
    interrupt(None)
    run(folder, tmp_path / "whole.parquet")
    interrupt(4)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "m.parquet")
    part = tmp_path / "m.parquet.partial" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:200])
    calls = interrupt(None)
    run(folder, tmp_path / "m.parquet", resume=True)
    assert len(calls) == 5
    assert (tmp_path / "m.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 64}, "begun with another data, tokenizer or max_length"),
        ({"batch_size": 3}, "begun with another batch_size; leave out --resume"),
        ({"dtype": "bfloat16"}, "begun with another precision"),
    ],
)
def test_resuming_with_other_inputs_is_refused(folder, tmp_path, interrupt, change, message):
    interrupt(4)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "m.parquet")
    interrupt(None)
    with pytest.raises(OutputError, match=message):
        run(folder, tmp_path / "m.parquet", resume=True, **change)
    run(folder, tmp_path / "m.parquet", **change)  # without --resume it starts again
    assert (tmp_path / "m.parquet").exists()


def test_resuming_with_another_policy_in_the_same_folder_is_refused(folder, tmp_path, interrupt):
    shutil.copytree(folder, tmp_path / "copy")
    interrupt(4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "copy", tmp_path / "m.parquet")
    build_policy_folder(tmp_path / "copy" / "policy", small_world(), seed=3)
    interrupt(None)
    with pytest.raises(OutputError, match="begun with another policy; leave out"):
        run(tmp_path / "copy", tmp_path / "m.parquet", resume=True)


def test_foreign_files_in_the_partial_folder_are_never_removed(folder, tmp_path):
    partial = tmp_path / "m.parquet.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds 'thesis\.tex', which is no part"):
        run(folder, tmp_path / "m.parquet")
    assert (partial / "thesis.tex").exists()


def test_folder_of_parts_that_another_program_wrote_is_never_removed(folder, tmp_path):
    """Spark calls its files `part-00000-...`."""
    partial = tmp_path / "m.parquet.partial"
    partial.mkdir()
    for name in ("part-00000-f3a1.snappy.parquet", "part-00000.parquet"):
        (partial / name).write_text("years of work")
        with pytest.raises(OutputError, match=r"no part|mixdpo did not write it"):
            run(folder, tmp_path / "m.parquet", overwrite=True)
        assert (partial / name).read_text() == "years of work"
        (partial / name).unlink()
    partial.rmdir()
    partial.write_text("a file")
    with pytest.raises(OutputError, match=r"m\.parquet\.partial: exists"):
        run(folder, tmp_path / "m.parquet", overwrite=True)
    assert partial.read_text() == "a file"


def test_output_that_is_an_input_or_part_of_one_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    data, weights = (tmp_path / "copy" / n for n in ("pairs.jsonl", "policy/model.safetensors"))
    before = data.read_bytes(), weights.read_bytes()
    for output, message in ((data, "is an input"), (weights, "is part of the input")):
        with pytest.raises(OutputError, match=message):
            run(tmp_path / "copy", output, overwrite=True)
    assert before == (data.read_bytes(), weights.read_bytes())


def test_output_that_is_no_file_is_refused(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for output in ("/dev/null", tmp_path / "pipe"):
        with pytest.raises(OutputError, match="expected a regular file"):
            run(folder, output, overwrite=True)
    assert Path("/dev/null").is_char_device()


def test_two_commands_on_one_file_do_not_mix(folder, tmp_path):
    with (
        locked_output(tmp_path / "m.parquet"),
        pytest.raises(OutputError, match=f"is being written by process {os.getpid()}"),
    ):
        run(folder, tmp_path / "m.parquet")
    assert list(tmp_path.iterdir()) == []


def test_file_that_appears_while_the_margins_are_computed_is_kept(folder, tmp_path, monkeypatch):
    assemble, output = compute._assemble, tmp_path / "m.parquet"

    def appear(*arguments):
        output.write_text("of another program")
        return assemble(*arguments)

    monkeypatch.setattr(compute, "_assemble", appear)
    with pytest.raises(OutputError, match="exists; add --overwrite"):
        run(folder, output)
    assert output.read_text() == "of another program"
    assert list((tmp_path / "m.parquet.partial").glob("part-*"))  # --resume --overwrite goes on


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", 100, r"model: .*model\.safetensors: is damaged \(.*, 100 bytes\)"),
        (
            "model.safetensors",
            -1,
            r"model: .*model\.safetensors: is damaged \(.* not fully covered",
        ),
        ("config.json", 20, r"model: .*config\.json: is damaged \(.*line 2 column"),
        ("tokenizer.json", 200, r"model: .*tokenizer\.json: is damaged"),
        (
            "adapter_config.json",
            b"[]",
            r"model: .*adapter_config\.json: is damaged \(expected keys",
        ),
        ("adapter_config.json", b"{}", r"model: .*json: key 'peft_type': expected text, got None"),
        (
            "adapter_config.json",
            b'{"peft_type": "LORA", "base_model_name_or_path": ["x"]}',
            r"model: .*json: key 'base_model_name_or_path': expected text, got \['x'\]",
        ),
    ],
)
def test_damaged_model_is_one_line_with_file_and_place(folder, tmp_path, name, content, message):
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "policy" / name
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:content])
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "copy", tmp_path / "m.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_existing_file_is_replaced_only_when_asked(folder, tmp_path):
    (tmp_path / "m.parquet").write_text("earlier")
    with pytest.raises(OutputError, match=r"m\.parquet: exists; add --overwrite"):
        run(folder, tmp_path / "m.parquet")
    run(folder, tmp_path / "m.parquet", overwrite=True)
    assert len(pd.read_parquet(tmp_path / "m.parquet")) == 22


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """A LoRA adapter on the reference whose weights are not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "reference")
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    path = tmp_path_factory.mktemp("adapter")
    get_peft_model(base, config).save_pretrained(path)
    return path


def test_reference_of_an_adapter_is_the_model_without_it(folder, adapter, tmp_path):
    data = str(folder / "pairs.jsonl")
    write_margins(str(adapter), "base", data, tmp_path / "off.parquet", MarginsConfig(**SIZES))
    write_margins(
        str(adapter), str(folder / "reference"), data, tmp_path / "two.parquet",
        MarginsConfig(**SIZES),
    )  # fmt: skip
    off, two = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("off", "two"))
    assert off["margin"].abs().max() > 0.01
    pd.testing.assert_frame_equal(off, two, atol=1e-5)


def test_models_that_do_not_fit_together_are_refused(folder, tmp_path):
    data, policy = str(folder / "pairs.jsonl"), str(folder / "policy")

    def margins(model, reference, **changes):
        config = MarginsConfig(**{**SIZES, **changes})
        write_margins(model, reference, data, tmp_path / "m.parquet", config)

    with pytest.raises(ConfigError, match="'base' needs an adapter"):
        margins(policy, "base")
    with pytest.raises(ConfigError, match="no-one/no-model"):
        margins("no-one/no-model", policy)
    from mixdpo_pyro.training.tiny_llama import build_llama, train_tokenizer

    tokenizer = train_tokenizer(["other words"], vocab_size=300)
    build_llama(tokenizer, hidden_size=32, num_layers=1, num_heads=2).save_pretrained(
        tmp_path / "x"
    )
    with pytest.raises(
        ConfigError, match=r"the tokenizer has the token \d+, the models only \d+ tokens"
    ):
        margins(policy, str(tmp_path / "x"))  # no tokenizer in its folder
    tokenizer.save_pretrained(tmp_path / "x")
    with pytest.raises(ConfigError, match="has another vocabulary than the policy"):
        margins(policy, str(tmp_path / "x"))
    with pytest.raises(ConfigError, match="device: 'gpu9' cannot be used"):
        margins(policy, policy, device="gpu9")


def test_sequences_longer_than_the_model_are_refused(folder, tmp_path):
    build_policy_folder(tmp_path / "short", small_world(), max_length=40)
    names = (str(tmp_path / "short"), str(tmp_path / "short"), str(folder / "pairs.jsonl"))
    with pytest.raises(ConfigError, match="max_length: the models take at most 40 tokens"):
        write_margins(*names, tmp_path / "m.parquet", MarginsConfig(**SIZES))


def test_limit_that_no_prompt_meets_and_messages_without_a_template_say_so(folder, tmp_path):
    with pytest.raises(DataError, match="max_length: no prompt is shorter"):
        run(folder, tmp_path / "m.parquet", max_length=2)
    message = [{"role": "user", "content": "Hi"}]
    pair = {"chosen": [*message, {"role": "assistant", "content": "a"}]}
    pair["rejected"] = [*message, {"role": "assistant", "content": "b"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps(pair) + "\n")
    names = (str(folder / "policy"), str(folder / "reference"), str(tmp_path / "chat.jsonl"))
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        write_margins(*names, tmp_path / "m.parquet", MarginsConfig(**SIZES))


def test_log_probabilities_that_are_not_finite_name_their_rows(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    shutil.copytree(folder / "policy", tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    model.get_input_embeddings().weight.data *= 1e3
    model.model.norm.weight.data[:] = 3e38  # finite, but the logits overflow
    model.save_pretrained(tmp_path / "broken")
    names = (str(tmp_path / "broken"), str(folder / "reference"), str(folder / "pairs.jsonl"))
    with pytest.raises(NonFiniteLossError, match=r"rows \[.*\b5\b.*\] are not finite"):
        write_margins(*names, tmp_path / "m.parquet", MarginsConfig(**SIZES))
    assert not (tmp_path / "m.parquet").exists()


def test_choices_and_hashes_are_in_the_file_of_margins(folder, tmp_path):
    """Two choices among three responses, one of them with a response that has no place."""
    world = small_world().select(range(2)).to_list()
    rows = [
        {"prompt": w["prompt"], "chosen": f" best {k}", "rejected": f" {text}", "annotator": "x",
         "grade_of_school": 1, "rank": rank}
        for k, w in enumerate(world)
        for text, rank in (("bad", "high"), ("worse", "low"))
    ]  # fmt: skip
    source, names = tmp_path / "d.jsonl", [str(folder / n) for n in ("policy", "reference")]

    def table(**options):
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = MarginsConfig(**SIZES, **options, overwrite=True)
        accuracy.append(
            write_margins(*names, str(source), tmp_path / "m.parquet", config).accuracy
        )
        return pd.read_parquet(tmp_path / "m.parquet")

    accuracy = []

    found = table()
    assert found["choice_set"].tolist() == ["0", "0", "2", "2"]
    assert found["rank_source"].tolist() == ["high", "low"] * 2
    assert found["response_a"].tolist() == [*found["response_a"][[0, 0, 2, 2]]]
    assert len({*found["response_a"], *found["response_b"]}) == 6
    assert table(choice_set="none")["choice_set"].tolist() == ["0", "1", "2", "3"]
    rows = [{**row, "rank": 2 + k % 2, "task": k // 2} for k, row in enumerate(rows)]
    ranked = table(choice_set="task")
    assert ranked["choice_set"].tolist() == ["0", "0", "1", "1"]
    assert ranked["rank"].tolist() == [2, 3, 2, 3]
    rows = [{**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}, rows[0]]
    rows = [{**row, "outcome": outcome} for row, outcome in zip(rows, ("tie", "win"), strict=True)]
    turned = table(choice_set="none")
    assert turned["outcome"].tolist() == ["tie", "win"]
    assert turned["pair"].nunique() == 1
    assert turned["response_a"].tolist() == turned["response_b"].tolist()[::-1]
    assert turned["margin"].sum() == pytest.approx(0, abs=1e-5)
    assert accuracy[-1] == (turned["margin"][1] > 0)  # of what is no tie


def test_columns_of_the_source_that_have_our_names_are_kept_aside(folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()[:3]]
    rows[1]["annotator"] = 17
    lines = [json.dumps({**row, "margin": 7, "prompts": ["x"]}) + "\n" for row in rows]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    names = (str(folder / "policy"), str(folder / "reference"), str(tmp_path / "p.jsonl"))
    write_margins(*names, tmp_path / "m.parquet", MarginsConfig(**SIZES))
    table = pd.read_parquet(tmp_path / "m.parquet")
    assert table["margin_source"].tolist() == [7, 7, 7]
    assert table["annotator"].tolist() == [rows[0]["annotator"], "17", rows[2]["annotator"]]
    assert table["prompts"].map(list).tolist() == [["x"]] * 3
    assert not {"prompt", "chosen", "rejected"} & set(table.columns)


def test_command_writes_the_file_and_says_what_it_left_out(folder, tmp_path, capsys):
    names = [str(folder / name) for name in ("policy", "reference", "pairs.jsonl")]
    output = tmp_path / "m.parquet"
    arguments = ["margins", *names, "-o", str(output), "--max_length", "128", "--device", "cpu"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "dropped 2 pairs: a prompt longer than max_length" in out
    assert "truncated 1 of 22 pairs" in out
    assert len(pd.read_parquet(output)) == 22
    assert main(arguments) == 1
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--annotator", "user_id", "--overwrite"]) == 1
    assert "column 'user_id' is missing" in capsys.readouterr().err
