"""Readers on small files that have the shape of the public datasets."""

import json

import pytest

from mixdpo_pyro.data.loading import load_preferences
from mixdpo_pyro.data.readers.registry import READERS, find_reader
from mixdpo_pyro.errors import ConfigError, DataError


@pytest.fixture
def read(tmp_path):
    """Write rows to a file and read them: the pairs, and what was dropped."""

    def load(rows, reader, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = load_preferences(str(path), reader=reader, **options)
        return data.pairs.to_list(), data.dropped

    return load


# HH-RLHF


def hh(*turns):
    roles = ("Human", "Assistant")
    return "".join(f"\n\n{roles[i % 2]}: {text}" for i, text in enumerate(turns))


def test_hh_dialogue_is_cut_behind_the_last_shared_turn(read):
    """The responses share their first words, which stay in the responses."""
    rows = [
        {
            "chosen": hh("Hi", "Hello.", "Why?", "It is so."),
            "rejected": hh("Hi", "Hello.", "Why?", "It is not so."),
            "split": "harmless",
        }
    ]
    (pair,), dropped = read(rows, "hh-rlhf")
    assert pair == {
        "prompt": hh("Hi", "Hello.", "Why?") + "\n\nAssistant:",
        "chosen": " It is so.",
        "rejected": " It is not so.",
        "file_row": 0,
        "split": "harmless",
        "source_row": 0,
    }
    assert pair["prompt"] + pair["chosen"] == rows[0]["chosen"]
    assert dropped == {}


def test_hh_messages(read):
    rows = [{"chosen": hh("Hi", "Hello.\n\nYes."), "rejected": hh("Hi", "Go away.")}]
    (pair,), _ = read(rows, "hh-rlhf:messages")
    assert pair["prompt"] == [{"role": "user", "content": "Hi"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "Hello.\n\nYes."}]
    assert pair["rejected"] == [{"role": "assistant", "content": "Go away."}]


def test_hh_dialogues_that_do_not_answer_one_prompt_are_counted(read):
    same = hh("Hi", "Hello.")
    rows = [
        {"chosen": same, "rejected": hh("Hi", "No.")},
        {"chosen": same, "rejected": same},
        {"chosen": hh("Hi", "Hello.", "a", "b"), "rejected": hh("Hi", "Hello.", "c", "d")},
        {"chosen": same, "rejected": hh("Hi", "Hello.", "c", "d")},
        {"chosen": hh("Hi", ""), "rejected": same},
    ]
    pairs, dropped = read(rows, "hh-rlhf")
    assert [pair["file_row"] for pair in pairs] == [0]
    assert dropped == {
        "identical dialogues": 1,
        "dialogues that part at a human turn": 1,
        "a dialogue that the other one continues": 1,
        "empty response": 1,
    }


def test_rows_of_another_shape_are_errors_that_name_row_and_field(read):
    rows = [
        {"chosen": hh("Hi", "a"), "rejected": hh("Hi", "b")},
        {"chosen": "plain text", "rejected": hh("Hi", "b")},
        {"chosen": "plain text", "rejected": "more"},
    ]
    with pytest.raises(
        DataError,
        match=r"rows\.jsonl: row 1, column 'chosen': expected a dialogue .* \(and 2 more; see mix",
    ):
        read(rows, "hh-rlhf")


# PRISM


def utterance(turn, response, score, conversation="c1", user="user1", **fields):
    return {
        "utterance_id": f"ut-{conversation}-{turn}-{response}",
        "interaction_id": f"int-{conversation}-{turn}",
        "conversation_id": conversation,
        "user_id": user,
        "turn": turn,
        "conversation_type": "unguided",
        "user_prompt": f"question {turn}",
        "model_response": response,
        "model_name": f"model-{response}",
        "score": score,
        "if_chosen": False,
        **fields,
    }


PRISM = [
    utterance(0, "b", 50),
    utterance(0, "a", 90, if_chosen=True),
    utterance(0, "c", 50),
    utterance(1, "d", 10),
    utterance(1, "e", 30, if_chosen=True),
    utterance(0, "f", 5, "c2", "user2"),
    utterance(0, "g", 5, "c2", "user2", if_chosen=True),
    utterance(0, "h", None, "c2", "user2"),
]


def test_prism_pairs_the_highest_score_with_every_other_of_its_turn(read):
    pairs, dropped = read(PRISM, "prism")
    found = [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs]
    assert found == [("a", "b"), ("a", "c"), ("e", "d")]
    assert dropped == {"ties": 1, "responses without a score": 1}
    assert [p["score_difference"] for p in pairs] == [40, 40, 20]
    first = pairs[0]
    assert (first["annotator"], first["user_id"]) == ("user1", "user1")
    assert (first["conversation_id"], first["interaction_id"]) == ("c1", "int-c1-0")
    assert (first["turn"], first["file_row"], first["source_row"]) == (0, 1, 0)
    assert (first["model_chosen"], first["model_rejected"]) == ("model-a", "model-b")
    assert first["conversation_type"] == "unguided"


def test_prism_prompt_holds_the_responses_that_were_picked_before(read):
    pairs, _ = read(PRISM, "prism")
    assert pairs[2]["prompt"] == [
        {"role": "user", "content": "question 0"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "question 1"},
    ]
    texts, _ = read(PRISM, "prism:text")
    assert texts[2]["prompt"] == hh("question 0", "a", "question 1") + "\n\nAssistant:"
    assert texts[2]["chosen"] == " e"


def test_prism_all_ordered_pairs(read):
    scores = {"a": 90, "b": 50, "c": 50, "d": 10}
    rows = [utterance(0, text, score) for text, score in scores.items()]
    pairs, dropped = read(rows, "prism:all")
    found = {(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs}
    assert found == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}
    assert dropped == {"ties": 1}


def test_prism_turn_after_a_turn_without_a_pick_is_dropped(read):
    """Its prompt is not known."""
    rows = [utterance(0, "a", 9), utterance(0, "b", 1), utterance(1, "c", 9), utterance(1, "d", 1)]
    pairs, dropped = read(rows, "prism")
    assert len(pairs) == 1
    assert dropped == {"turns whose earlier turns are missing": 1}


def test_prism_conversations_give_the_pairs_of_their_utterances(read):
    histories = {}
    for row in PRISM:
        history = histories.setdefault((row["user_id"], row["conversation_id"]), [])
        user = {"turn": row["turn"], "role": "user", "content": row["user_prompt"]}
        if user not in history:
            history.append(user)
        history.append(
            {
                "turn": row["turn"],
                "role": "model",
                "content": row["model_response"],
                "model_name": row["model_name"],
                "score": row["score"],
                "if_chosen": row["if_chosen"],
            }
        )
    rows = [
        {"user_id": u, "conversation_id": c, "conversation_history": history}
        for (u, c), history in histories.items()
    ]
    kept = ("prompt", "chosen", "rejected", "annotator", "score_difference", "turn")
    pairs, dropped = read(rows, "prism")
    expected, expected_dropped = read(PRISM, "prism")
    assert [{k: p[k] for k in kept} for p in pairs] == [{k: p[k] for k in kept} for p in expected]
    assert dropped == expected_dropped


def test_prism_row_without_a_user_is_an_error(read):
    rows = [*PRISM, utterance(0, "x", 1, "c9", user=None)]
    with pytest.raises(DataError, match="row 8, column 'user_id': expected an id, got None"):
        read(rows, "prism")


# MultiPref


def multipref(normal, expert=()):
    return {
        "comparison_id": "x1",
        "prompt_id": "p1",
        "text": "Why?",
        "completion_a": "Because.",
        "model_a": "m1",
        "completion_b": "No idea.",
        "model_b": "m2",
        "source": "sharegpt",
        "normal_worker_annotations": [
            {"evaluator": who, "overall_pref": verdict} for who, verdict in normal
        ],
        "expert_worker_annotations": [
            {"evaluator": who, "overall_pref": verdict} for who, verdict in expert
        ],
    }


def test_multipref_gives_a_pair_for_every_judgement(read):
    rows = [
        multipref(
            [("w1", "A-is-clearly-better"), ("w2", "Tie")],
            [("e1", "B-is-slightly-better"), ("e2", "A-is-slightly-better")],
        )
    ]
    pairs, dropped = read(rows, "multipref")
    found = [
        (p["annotator"], p["chosen"][0]["content"], p["preference"], p["worker"]) for p in pairs
    ]
    assert found == [
        ("w1", "Because.", "clearly", "normal"),
        ("e1", "No idea.", "slightly", "expert"),
        ("e2", "Because.", "slightly", "expert"),
    ]
    assert dropped == {"ties": 1}
    assert pairs[1]["model_chosen"] == "m2"
    assert pairs[1]["comparison_id"] == "x1"
    assert pairs[0]["prompt"] == [{"role": "user", "content": "Why?"}]


def test_multipref_unknown_verdict_is_an_error(read):
    with pytest.raises(DataError, match=r"row 0, column 'overall_pref'.*got 'A'"):
        read([multipref([("w1", "A")])], "multipref")


# UltraFeedback


def completion(response, fine, overall, ratings=("N/A",)):
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    return {
        "model": f"model-{response}",
        "response": response,
        "overall_score": overall,
        "fine-grained_score": fine,
        "annotations": {
            aspect: {"Rating": rating} for aspect, rating in zip(aspects, ratings, strict=False)
        },
    }


def test_ultrafeedback_takes_the_score_that_is_asked_for(read):
    """Fine-grained is the mean rating where the field is empty, and 'N/A' is no rating."""
    completions = [
        completion("a", 4.5, 1.0),
        completion("b", None, 9.0, ("4", "N/A", "5")),
        completion("c", 2.0, 9.5),
    ]
    rows = [{"source": "evol_instruct", "instruction": "Do it.", "completions": completions}]

    def found(spec):
        pairs, dropped = read(rows, spec)
        return [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs], dropped

    assert found("ultrafeedback") == ([("a", "c")], {"ties": 1})  # 4.5 = (4 + 5) / 2
    assert found("ultrafeedback:overall") == ([("c", "b"), ("c", "a")], {})
    assert found("ultrafeedback:overall,all")[0] == [("c", "b"), ("c", "a"), ("b", "a")]


def test_ultrafeedback_binarized_prompt_becomes_messages_and_ties_are_dropped(read):
    def messages(answer):
        question = {"role": "user", "content": "Why?"}
        return [question, {"role": "assistant", "content": answer}]

    row = {"prompt": "Why?", "prompt_id": "p", "chosen": messages("a"), "rejected": messages("b")}
    rows = [
        {**row, "score_chosen": 9.0, "score_rejected": 6.0},
        {**row, "score_chosen": 7.0, "score_rejected": 7.0},
    ]
    (pair,), dropped = read(rows, "ultrafeedback")
    assert pair["prompt"] == [{"role": "user", "content": "Why?"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "a"}]
    assert pair["score_difference"] == 3.0
    assert dropped == {"ties": 1}


# Names and options


def test_unknown_readers_and_options_are_named():
    with pytest.raises(ConfigError, match=r"unknown reader 'prsm'; there are hh-rlhf, prism"):
        find_reader("prsm")
    with pytest.raises(ConfigError, match="reader prism: unknown option 'each'; it takes messag"):
        find_reader("prism:each")
    with pytest.raises(ConfigError, match="'best' or 'all', not both"):
        find_reader("prism:all,best")


def test_every_reader_refuses_rows_of_another_dataset(read):
    for name in READERS:
        with pytest.raises(DataError, match=r"rows\.jsonl: row 0, column '"):
            read([{"question": "Why?", "label": 1}], name)


def test_hub_configuration_of_a_reader_is_asked_for_where_none_is_named(monkeypatch):
    from datasets import Dataset

    from mixdpo_pyro.data import loading as data

    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return Dataset.from_list(PRISM)

    monkeypatch.setattr(data, "load_dataset", load)
    assert len(load_preferences("owner/name", reader="prism").pairs) == 3
    load_preferences("owner/name", reader="prism", config="other")
    assert asked == [("owner/name", "utterances", "train"), ("owner/name", "other", "train")]


def test_named_annotator_column_of_the_source_is_there_too(read):
    pairs, _ = read(PRISM, "prism", annotator_column="user_id")
    assert [p["user_id"] for p in pairs] == [p["annotator"] for p in pairs]


def test_numbers_of_several_types_are_numbers_and_ids_are_text(read):
    rows = [dict(row) for row in PRISM]
    expected, _ = read(rows, "prism")
    for k, row in enumerate(rows):
        row["turn"] = [row["turn"], str(row["turn"]), float(row["turn"])][k % 3]
        row["score"] = row["score"] if k % 2 else str(row["score"])
        row["if_chosen"] = str(row["if_chosen"])
    found, _ = read(rows, "prism")
    assert found == expected
    rows = [{**row, "user_id": 7 if k % 2 else "7"} for k, row in enumerate(rows)]
    assert {p["annotator"] for p in read(rows, "prism")[0]} == {"7"}


@pytest.mark.parametrize("value", [True, 1.5, "1.5", "one", None, [1]])
def test_a_field_that_is_no_number_is_named(read, value):
    rows = [dict(row) for row in PRISM]
    rows[1]["turn"] = value
    with pytest.raises(DataError, match=r"row 1, column 'turn': expected a whole number, got"):
        read(rows, "prism")


@pytest.mark.parametrize("value", [[], "none", 3, {"a": [1]}, None])
def test_ratings_of_another_shape_are_no_scores(read, value):
    completion = {"response": "a", "annotations": value}
    row = {"instruction": "Why?", "completions": [completion, {**completion, "response": "b"}]}
    with pytest.raises(DataError, match="found no pair"):
        read([row], "ultrafeedback")


def test_a_message_without_a_role_is_named(read):
    question, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "a"}
    broken = [question, {"content": "b"}]
    with pytest.raises(DataError, match="row 0, column 'rejected': expected text or a list"):
        read([{"chosen": [question, answer], "rejected": broken}], "ultrafeedback")
