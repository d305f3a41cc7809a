"""What TRL trains on is taken as TRL takes it; what it refuses, or misreads, gets a hint."""

import json

import pandas as pd
import pytest
from datasets import Dataset
from scenarios import TRAINING_MARKS
from transformers import AutoTokenizer

from mixdpo_pyro.data.audit import DoctorConfig, examine
from mixdpo_pyro.data.loading import load_preferences
from mixdpo_pyro.data.messages import text_of
from mixdpo_pyro.data.tokenization import tokenize_pairs
from mixdpo_pyro.errors import DataError

pytestmark = TRAINING_MARKS

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content %}{{ m.content + '' }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}|{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A chat template like those of text models: a content is a text, or nothing beside calls."""


@pytest.fixture
def tokenizer(policy_folder):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def call(**arguments):
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def write(folder, pairs, name="d.jsonl"):
    rows = [{"annotator": f"a{k}", **pair} for k, pair in enumerate(pairs)]
    if name.endswith(".jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pd.DataFrame(rows).to_csv(folder / name, index=False)
    return str(folder / name)


Q, A, B = [user("q")], [assistant("a")], [assistant("b")]

TAKEN = {
    "text": ({"prompt": "q", "chosen": "a", "rejected": "b"}, ("q", "a</s>", "b</s>")),
    "messages": (
        {"prompt": Q, "chosen": A, "rejected": B},
        ("<user>q|<assistant>", "a|", "b|"),
    ),
    "messages with the prompt among them": (
        {"chosen": Q + A, "rejected": Q + B},
        ("<user>q|<assistant>", "a|", "b|"),
    ),
    "an answer that only calls a tool": (
        {"prompt": Q, "chosen": [assistant(None, tool_calls=[call(x=1)])], "rejected": B},
        ("<user>q|<assistant>", '{"name": "f", "arguments": {"x": 1}}|', "b|"),
    ),
    "calls without the field content, and an answer to them": (
        {
            "prompt": Q,
            "chosen": [{"role": "assistant", "tool_calls": [call(y=2.5)]}, *A],
            "rejected": [{"role": "assistant", "tool_calls": [call(x=1)]}, *B],
        },
        (
            "<user>q|<assistant>",
            '{"name": "f", "arguments": {"y": 2.5}}|<assistant>a|',
            '{"name": "f", "arguments": {"x": 1}}|<assistant>b|',
        ),
    ),
    "calls with an empty content": (
        {
            "prompt": Q,
            "chosen": [assistant("", tool_calls=[call(x="1")])],
            "rejected": [assistant("", tool_calls=[call(x="2")])],
        },
        (
            "<user>q|<assistant>",
            '{"name": "f", "arguments": {"x": "1"}}|',
            '{"name": "f", "arguments": {"x": "2"}}|',
        ),
    ),
    "a call in the prompt": (
        {
            "prompt": [
                *Q,
                assistant(None, tool_calls=[call()]),
                {"role": "tool", "name": "f", "content": "5"},
            ],
            "chosen": A,
            "rejected": B,
        },
        ('<user>q|<assistant>{"name": "f", "arguments": {}}|<tool>5|<assistant>', "a|", "b|"),
    ),
    "contents in parts": (
        {"prompt": [user(parts("q", "?"))], "chosen": [assistant(parts("a"))], "rejected": B},
        ("<user>q?|<assistant>", "a|", "b|"),
    ),
    "tools in a column": (
        {"prompt": Q, "chosen": A, "rejected": B, "tools": [{"name": "f"}]},
        ('<user>q|[{"name": "f"}]<assistant>', "<user>q|a|", "b|"),
    ),
}
"""A pair, and prompt, chosen and rejected response as they are trained on."""


@pytest.mark.parametrize("case", sorted(TAKEN.keys() - {"tools in a column"}))
def test_pairs_are_trained_on_as_they_are_written(tmp_path, tokenizer, case):
    """A second row with other calls must not add fields to those of the first."""
    pair, expected = TAKEN[case]
    other = {**pair, "chosen": [assistant(None, tool_calls=[call(z=[1, "2"])])]}
    others = [other] if isinstance(pair.get("prompt"), list) else [{**pair, "chosen": Q + Q}]
    rows = [pair, *([] if isinstance(pair["chosen"], str) else others)]
    path = write(tmp_path, rows)
    tokens = tokenize_pairs(load_preferences(path).pairs, tokenizer)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert tuple(tokenizer.decode(tokens[0][name]) for name in names) == expected
    found = examine(path, DoctorConfig(examples=1))
    assert (found.num_usable, found.bad_values) == (len(rows), [])


def test_tools_reach_the_chat_template(tmp_path, tokenizer):
    pair, _ = TAKEN["tools in a column"]
    tokens = tokenize_pairs(load_preferences(write(tmp_path, [pair])).pairs, tokenizer)
    text = tokenizer.decode(tokens[0]["prompt_ids"] + tokens[0]["chosen_ids"])
    assert text == '<user>q|<assistant>a|[{"name": "f"}]'


REFUSED = {
    "messages as JSON text": (
        {"prompt": json.dumps(Q), "chosen": json.dumps(A), "rejected": json.dumps(B)},
        "chosen",
        "not messages as JSON text (write them as lists)",
    ),
    "a text as prompt of messages": (
        {"prompt": "q", "chosen": A, "rejected": B},
        "prompt",
        "(write it as [{'role': 'user', 'content': ...}])",
    ),
    "a text that the messages hold": (
        {"prompt": "q", "chosen": Q + A, "rejected": Q + B},
        "prompt",
        "(drop the column 'prompt': the messages hold it)",
    ),
    "messages that the responses repeat": (
        {"prompt": Q, "chosen": Q + A, "rejected": Q + B},
        "prompt",
        "messages that the responses do not repeat (drop the column 'prompt')",
    ),
    "messages as prompt of texts": (
        {"prompt": Q, "chosen": "a", "rejected": "b"},
        "prompt",
        "(write the responses as [{'role': 'assistant', 'content': ...}])",
    ),
    "a text beside messages": (
        {"prompt": Q, "chosen": A, "rejected": "b"},
        "chosen",
        "text or messages as in 'rejected'",
    ),
    "no prompt": (
        {"chosen": A, "rejected": B},
        "chosen",
        "messages that begin like those of 'rejected'",
    ),
    "an empty prompt": (
        {"prompt": [], "chosen": A, "rejected": B},
        "prompt",
        "at least one message",
    ),
    "neither content nor calls": (
        {"prompt": Q, "chosen": [assistant(None)], "rejected": B},
        "chosen",
        "or with 'tool_calls'",
    ),
    "names of another format": (
        {
            "chosen": [{"from": "human", "value": "q"}],
            "rejected": [{"from": "human", "value": "r"}],
        },
        "chosen",
        "(rename 'from' and 'value')",
    ),
    "an image": (
        {"prompt": [user([{"type": "image"}, *parts("q")])], "chosen": A, "rejected": B},
        "prompt",
        "whose parts are text (images and the like are not read)",
    ),
    "a number": ({"prompt": Q, "chosen": [assistant(5)], "rejected": B}, "chosen", "'content'"),
    "a number as text": (
        {"prompt": "q", "chosen": 5, "rejected": "b"},
        "chosen",
        "text or a list",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_trl_refuses_or_misreads_gets_a_hint(tmp_path, case):
    pair, column, hint = REFUSED[case]
    path = write(tmp_path, [pair, pair])
    with pytest.raises(
        DataError, match=rf"d\.jsonl: row 0, column '{column}': expected"
    ) as caught:
        load_preferences(path)
    assert hint in str(caught.value)
    found = examine(path)
    assert not found.is_ready
    assert {(values.field, values.expected) for values in found.bad_values} >= {
        (column, str(caught.value).partition("expected ")[2].partition(", got ")[0])
    }


TAKEN_BY_TRL = {
    "messages as JSON text",  # as text
    "messages that the responses repeat",  # twice
    "neither content nor calls",  # as the chat template likes
}


@pytest.mark.parametrize("case", sorted(REFUSED.keys() - TAKEN_BY_TRL))
def test_trl_refuses_them_too(tokenizer, case):
    with pytest.raises((TypeError, ValueError, AttributeError, LookupError)):
        tokenize_pairs(Dataset.from_list([REFUSED[case][0]] * 2), tokenizer)


def test_rows_of_another_kind_than_the_first_are_named(tmp_path):
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 2
    pairs.append({"prompt": Q, "chosen": A, "rejected": B})
    (bad,) = examine(write(tmp_path, pairs)).bad_values
    assert (bad.field, bad.expected) == ("chosen", "text or messages as in the rows before")
    assert bad.first[0].startswith("row 2: ")


def test_messages_in_a_csv_file_are_json_text(tmp_path):
    pair = REFUSED["messages as JSON text"][0]
    with pytest.raises(DataError, match="not messages as JSON text"):
        load_preferences(write(tmp_path, [pair], "d.csv"))
    quoted = {"prompt": "q", "chosen": '[{"role": 1}] is JSON', "rejected": "[1]"}
    assert len(load_preferences(write(tmp_path, [quoted], "d.csv")).pairs) == 1


def test_parts_and_repeated_prompts_are_noted(tmp_path):
    from io import StringIO

    from rich.console import Console

    from mixdpo_pyro.data.audit_view import show_examination

    def notes(pairs):
        found, buffer = examine(write(tmp_path, pairs)), StringIO()
        show_examination(found, Console(file=buffer, width=300))
        assert found.is_ready
        return [line for line in buffer.getvalue().splitlines() if line.startswith("Look at")]

    pair = TAKEN["contents in parts"][0]
    assert notes([pair, {**pair, "prompt": [user("r")]}]) == [
        "Look at: messages of 3 texts come in parts, read as one text",
        "Look at: every annotator judged once: no evidence of differences between people",
    ]
    texts = [{"prompt": f"{k}?", "chosen": f"{k}? a", "rejected": f"{k}? b"} for k in range(3)]
    assert "responses of 3 pairs begin with their prompt" in notes(texts)[0]


def test_the_text_of_a_response_holds_its_calls_and_thoughts():
    assert text_of("a") == "a"
    assert text_of([assistant("a"), assistant(parts("b", "c"))]) == "abc"
    with_call = [{"role": "assistant", "content": None, "tool_calls": [call(x=1)]}]
    assert text_of(with_call) == json.dumps([call(x=1)], sort_keys=True)
    assert text_of([assistant("a", thinking="t")]) == "ta"
    assert text_of([assistant(None, tool_calls=None)]) == ""
