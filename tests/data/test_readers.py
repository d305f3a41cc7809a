"""Readers on small files that have the shape of the public datasets."""

import json

import pytest

from mixdpo_pyro.data.config import READER_HELP
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
    assert [p["choice_set"] for p in pairs] == ["0/0", "0/0", "3/1"]
    assert "rank" not in first


def test_prism_scores_are_a_ranking_up_to_the_first_tie(read):
    """Which of two equal scores is better is not known; that they are below the others is."""
    scores = {"a": 90, "b": 10, "c": 50, "d": 50, "e": 70, "f": 90}
    rows = [utterance(0, text, score) for text, score in scores.items()]
    rows[5]["if_chosen"] = True
    pairs, dropped = read(rows, "prism:ranking")
    assert {p["chosen"][0]["content"] for p in pairs} == {"f"}
    ranks = {p["rejected"][0]["content"]: p["rank"] for p in pairs}
    assert ranks == {"e": 2, "c": None, "d": None, "b": None}
    assert dropped == {"ties": 1}  # with the best one
    assert len({p["choice_set"] for p in pairs}) == 1


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


JUDGED = multipref(
    [("w1", "A-is-clearly-better"), ("w2", "Tie")],
    [("e1", "B-is-slightly-better"), ("e2", "A-is-slightly-better")],
)


def test_multipref_gives_a_graded_pair_for_every_judgement(read):
    pairs, dropped = read([JUDGED], "multipref")
    found = [
        (p["annotator"], p["chosen"][0]["content"], p["preference"], p["grade"], p["worker"])
        for p in pairs
    ]
    assert found == [
        ("w1", "Because.", "clearly", 2, "normal"),
        ("w2", "Because.", "tie", 0, "normal"),
        ("e1", "No idea.", "slightly", 1, "expert"),
        ("e2", "Because.", "slightly", 1, "expert"),
    ]
    assert dropped == {}
    assert pairs[2]["model_chosen"] == "m2"
    assert pairs[2]["comparison_id"] == "x1"
    assert pairs[0]["prompt"] == [{"role": "user", "content": "Why?"}]


def test_multipref_as_ties_or_as_pairs(read):
    ties, dropped = read([JUDGED], "multipref:ties")
    assert [p["outcome"] for p in ties] == ["win", "tie", "win", "win"]
    assert dropped == {}
    assert "grade" not in ties[0]
    pairs, dropped = read([JUDGED] * 2, "multipref:pairs")
    assert dropped == {"ties": 2}
    assert len({p["choice_set"] for p in pairs}) == len(pairs) == 6
    assert not {"grade", "outcome"} & set(pairs[0])


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
    ranked, _ = read(rows * 2, "ultrafeedback:overall,ranking")
    assert [(p["choice_set"], p["rank"]) for p in ranked] == [
        ("0", 2), ("0", 3), ("1", 2), ("1", 3)
    ]  # fmt: skip


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


# Community Alignment


def conversation(**changes):
    """Two turns with four responses each, the third and fourth turn empty, as in a csv file."""
    row = {"conversation_id": "c1", "annotator_id": "ann", "assigned_lang": "en"}
    for turn in ("first", "second", "third", "fourth"):
        is_there = turn in ("first", "second")
        row[f"{turn}_turn_prompt"] = f"{turn} question" if is_there else ""
        row[f"{turn}_turn_preferred_response"] = "response_b" if is_there else ""
        for letter in "abcd":
            row[f"{turn}_turn_response_{letter}"] = f"{turn} {letter}" if is_there else ""
    return row | changes


def test_community_alignment_gives_the_best_of_four_of_every_turn(read):
    pairs, dropped = read(
        [conversation(first_turn_response_a="first a<|end_of_text|>")], "community-alignment"
    )
    found = [
        (p["turn"], p["choice_set"], p["chosen"][0]["content"], p["rejected"][0]["content"])
        for p in pairs
    ]
    assert found == [
        (turn, f"0/{turn}", f"{name} b", f"{name} {letter}")
        for turn, name in ((1, "first"), (2, "second"))
        for letter in "acd"
    ]
    assert pairs[3]["prompt"] == [
        {"role": "user", "content": "first question"},
        {"role": "assistant", "content": "first b"},
        {"role": "user", "content": "second question"},
    ]
    assert (pairs[0]["annotator"], pairs[0]["assigned_lang"]) == ("ann", "en")
    assert dropped == {}


def test_community_alignment_turns_without_their_past_are_dropped(read):
    rows = [
        conversation(second_turn_prompt=None, third_turn_prompt="third question"),
        conversation(conversation_id="c2", first_turn_preferred_response=""),
    ]
    pairs, dropped = read(rows, "community-alignment")
    assert len(pairs) == 3
    assert dropped == {
        "turns whose earlier turns are missing": 1,
        "turns without a preferred response": 1,
    }


@pytest.mark.parametrize("choice", ["response_e", "B!", 2])
def test_community_alignment_choice_of_no_response_is_named(read, choice):
    rows = [conversation(), conversation(second_turn_preferred_response=choice)]
    with pytest.raises(DataError, match=r"row 1, column 'second_turn_preferred_response'.*one of"):
        read(rows, "community-alignment")


# CoVal


def assessed(*rankings, world="D>C>B>A"):
    def message(role, text):
        return [{"role": role, "content": text}]

    assessments = [
        {
            "annotator_id": f"ann{k}",
            "ranking_blocks": {
                "personal": [{"ranking": ranking, "rationale": "so"}] if ranking else [],
                "world": [{"ranking": world, "rationale": "so"}],
            },
        }
        for k, ranking in enumerate(rankings)
    ]
    return {
        "prompt_id": "p1",
        "prompt": {
            "id": "p1",
            "messages": message("developer", "Be brief.") + message("user", "Why?"),
        },
        "responses": [
            {"response_index": letter, "messages": message("assistant", f"text {letter}")}
            for letter in "ABCD"
        ],
        "metadata": {"assessments": assessments},
    }


def test_coval_gives_rankings_of_each_annotator(read):
    pairs, dropped = read([assessed("B>A>C>D", "C > A=B > D", "A=D>B=C", "")], "coval")
    found = [
        (p["annotator"], p["chosen"][0]["content"][-1], p["rejected"][0]["content"][-1], p["rank"])
        for p in pairs
    ]
    assert found == [
        ("ann0", "B", "A", 2), ("ann0", "B", "C", 3), ("ann0", "B", "D", 4),
        ("ann1", "C", "A", None), ("ann1", "C", "B", None), ("ann1", "C", "D", None),
        ("ann2", "A", "B", None), ("ann2", "A", "C", None),
    ]  # fmt: skip
    assert dropped == {
        "ties with the best response": 1,
        "assessments without a personal ranking": 1,
    }
    assert len({p["choice_set"] for p in pairs}) == 3
    assert [m["role"] for m in pairs[0]["prompt"]] == ["system", "user"]


def test_coval_world_and_best(read):
    pairs, _ = read([assessed("B>A>C>D", "B>A>C>D")], "coval:world,best")
    assert {p["chosen"][0]["content"] for p in pairs} == {"text D"}
    assert "rank" not in pairs[0]
    assert len(pairs) == 6


@pytest.mark.parametrize("ranking", ["A>B>E", "A>A", "A,B", 3])
def test_coval_ranking_of_another_shape_is_named(read, ranking):
    with pytest.raises(DataError, match=r"row 1, column 'ranking': expected a ranking such as A>"):
        read([assessed("A>B>C>D"), assessed(ranking)], "coval")


# HelpSteer3


def graded(overall, *individual):
    return {
        "domain": "stem",
        "language": "english",
        "context": [{"role": "user", "content": "Why?"}],
        "response1": "one",
        "response2": "two",
        "overall_preference": overall,
        "individual_preference": [{"score": score, "reasoning": "so"} for score in individual],
    }


def test_helpsteer3_grades_stand_behind_the_better_response(read):
    """Negative: the first response is better."""
    pairs, dropped = read([graded(-2, -3, -1), graded(0), graded(3, 3)], "helpsteer3")
    assert [(p["chosen"][0]["content"], p["grade"]) for p in pairs] == [
        ("one", 2), ("one", 0), ("two", 3)
    ]  # fmt: skip
    assert (pairs[0]["domain"], dropped) == ("stem", {})
    pairs, _ = read([graded(-2, -3, 1)], "helpsteer3:individual")
    assert [(p["chosen"][0]["content"], p["grade"]) for p in pairs] == [("one", 3), ("two", 1)]
    pairs, dropped = read([graded(-2), graded(0)], "helpsteer3:pairs")
    assert len(pairs) == 1
    assert dropped == {"ties": 1}


@pytest.mark.parametrize("score", [4, -100, 0.5, None, "good"])
def test_helpsteer3_score_beyond_the_scale_is_named(read, score):
    with pytest.raises(DataError, match=r"row 1, column 'overall_preference': expected a whole"):
        read([graded(1), graded(score)], "helpsteer3")


# Chatbot Arena


def vote(winner, judge="arena_user_1", a=("Why?", "So."), b=("Why?", "No."), **changes):
    roles = ("user", "assistant")
    a, b = (
        [{"role": roles[k % 2], "content": text} for k, text in enumerate(texts)]
        for texts in (a, b)
    )
    return {
        "question_id": "q1", "model_a": "m1", "model_b": "m2", "winner": winner, "judge": judge,
        "conversation_a": a, "conversation_b": b, "turn": 1, "language": "English", **changes,
    }  # fmt: skip


def test_chatbot_arena_votes_are_outcomes_with_ties(read):
    rows = [vote("model_a"), vote("model_b", "arena_user_2"), vote("tie"), vote("tie (bothbad)")]
    pairs, dropped = read(rows, "chatbot-arena")
    assert [(p["chosen"][0]["content"], p["outcome"]) for p in pairs] == [
        ("So.", "win"), ("No.", "win"), ("So.", "tie"), ("So.", "tie")
    ]  # fmt: skip
    assert [p["annotator"] for p in pairs[:2]] == ["arena_user_1", "arena_user_2"]
    assert (pairs[1]["model_chosen"], pairs[3]["winner"], dropped) == ("m2", "tie (bothbad)", {})
    pairs, dropped = read(rows, "chatbot-arena:drop-both-bad")
    assert (len(pairs), dropped) == (3, {"votes that both are bad": 1})
    pairs, dropped = read(rows, "chatbot-arena:pairs")
    assert (len(pairs), dropped) == (2, {"ties": 2})


def test_chatbot_arena_conversations_may_be_text_and_must_share_their_prompt(read):
    long = ("Why?", "So.", "And?", "So too.")
    rows = [
        vote("model_a"),
        vote("tie", a=long, b=("Why?", "No.", "And?", "So too.")),
        vote("tie", a=long, b=(*long[:3], "Or not.")),
    ]
    for row in rows:
        row["judge_hash"] = row.pop("judge")
        row["conversation_a"] = json.dumps(row["conversation_a"])
    pairs, dropped = read(rows, "chatbot-arena")
    assert [len(p["prompt"]) for p in pairs] == [1, 3]
    assert pairs[0]["annotator"] == "arena_user_1"
    assert dropped == {"conversations that part before the last answer": 1}
    with pytest.raises(DataError, match="row 1, column 'winner': expected model_a, model_b, tie"):
        read([rows[0], {**rows[0], "winner": "both"}], "chatbot-arena")
    with pytest.raises(DataError, match="row 1, column 'conversation_a': expected a list of mess"):
        read([rows[0], {**rows[0], "conversation_a": "{"}], "chatbot-arena")


# WebGPT and summaries


def answered(score, **changes):
    return {
        "question": {"dataset": "eli5", "id": "x", "full_text": "Why?"},
        "answer_0": "So.", "score_0": score, "quotes_0": {"title": [], "extract": []},
        "answer_1": "No.", "score_1": -score, "quotes_1": {"title": [], "extract": []},
        **changes,
    }  # fmt: skip


def test_webgpt_scores_are_outcomes_with_ties(read):
    pairs, dropped = read([answered(0.5), answered(-1.0), answered(0.0)], "webgpt")
    assert [(p["chosen"][0]["content"], p["outcome"]) for p in pairs] == [
        ("So.", "win"), ("No.", "win"), ("So.", "tie")
    ]  # fmt: skip
    assert pairs[0]["prompt"] == [{"role": "user", "content": "Why?"}]
    assert dropped == {}
    with pytest.raises(DataError, match="row 1, column 'score_1': expected a number, got 'high'"):
        read([answered(0.5), answered(0.5, score_1="high")], "webgpt")


def compared(choice, worker="w1", **info):
    return {
        "info": {"id": "t3", "post": "A long story.", "title": "Story", "article": None, **info},
        "summaries": [{"text": " short", "policy": "sup1"}, {"text": " shorter", "policy": "ref"}],
        "choice": choice, "worker": worker, "batch": "batch3", "split": "train",
    }  # fmt: skip


def test_summaries_are_pairs_that_were_judged_one_by_one(read):
    """Also where one worker took the same summary for the better one twice."""
    rows = [compared(1), compared(0), compared(0, post=None, article="News.", title=None)]
    rows[1]["summaries"][1]["text"] = " shortest"
    pairs, _ = read(rows, "summarize-from-feedback:text")
    assert [p["chosen"] for p in pairs] == ["  shorter", "  short", "  short"]
    assert [p["choice_set"] for p in pairs] == ["0", "1", "2"]
    assert pairs[0]["prompt"] == "\n\nHuman: Story\n\nA long story.\n\nTL;DR:\n\nAssistant:"
    assert "News." in pairs[2]["prompt"]
    assert (pairs[0]["annotator"], pairs[0]["model_chosen"]) == ("w1", "ref")
    with pytest.raises(DataError, match="row 1, column 'choice': expected 0 or 1"):
        read([compared(0), compared(2)], "summarize-from-feedback")


# Names and options


def test_ids_of_choice_sets_tell_nothing_about_people(read):
    """They stand in tables of margins beside keyed hashes of the annotators."""
    spec = {
        "prism": PRISM,
        "community-alignment": [conversation()],
        "coval": [assessed("A>B>C>D")],
    }
    for reader, rows in spec.items():
        for pair in read(rows, reader)[0]:
            assert pair["annotator"] not in pair["choice_set"]


def test_unknown_readers_and_options_are_named():
    with pytest.raises(ConfigError, match=r"unknown reader 'prsm'; there are hh-rlhf, prism"):
        find_reader("prsm")
    with pytest.raises(ConfigError, match="reader prism: unknown option 'each'; it takes messag"):
        find_reader("prism:each")
    with pytest.raises(ConfigError, match="'best' or 'all', not both"):
        find_reader("prism:all,best")


def test_every_reader_is_named_in_the_help():
    """The help is written down, so that no command loads the readers to show it."""
    assert READER_HELP.endswith(f"NAME is one of {', '.join(READERS)}.")


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
