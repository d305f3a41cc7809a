import gzip
import io
import json

import numpy as np
import pytest
from rich.console import Console
from scenarios import TRAINING_MARKS
from scipy.stats import binomtest

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.data.audit import DoctorConfig, examine, measure_lengths
from mixdpo_pyro.data.audit_view import show_examination
from mixdpo_pyro.errors import ConfigError, DataError

pytestmark = TRAINING_MARKS


@pytest.fixture
def write(tmp_path):
    def write_rows(rows, name="d.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
        return str(tmp_path / name)

    return write_rows


def printed(found):
    buffer = io.StringIO()
    show_examination(found, Console(file=buffer, width=200))
    return buffer.getvalue()


def pair(chosen, rejected, annotator="x", prompt="p"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "annotator": annotator}


GOOD = [pair("a", "bb"), pair("ccc", "d", "y", prompt="q")]


def test_every_bad_value_is_counted_and_the_first_are_listed(write):
    rows = [
        *GOOD,
        *[pair(None, "b") for _ in range(7)],
        pair("a", "b", annotator=None),
        {k: v for k, v in pair("a", "b").items() if k != "rejected"},
    ]
    found = examine(write(rows))
    bad = {values.field: values for values in found.bad_values}
    assert {name: values.count for name, values in bad.items()} == {
        "chosen": 7,
        "rejected": 1,
        "annotator": 1,
    }
    assert bad["chosen"].first == [f"row {row}: None" for row in range(2, 7)]
    assert bad["rejected"].first == ["row 10: None"]
    assert bad["annotator"].first == ["row 9: None"]
    assert not found.is_ready
    assert (found.num_rows, found.num_usable) == (11, 2)
    text = printed(found)
    assert "7 bad values of 'chosen'" in text
    assert "and 2 more" in text
    assert text.rstrip().endswith("ready to train: no (9 values cannot be used)")


def test_lines_that_are_no_json_and_columns_of_two_types_do_not_stop_it(write):
    """Such a file does not load as a table; its lines are read one by one."""
    rows = [GOOD[0], '{"prompt": "p", "chosen": ', pair(5, "b"), GOOD[1], "[1, 2]", "", GOOD[0]]
    found = examine(write(rows))
    listed = {values.field: values.first for values in found.bad_values}
    assert listed["chosen"] == ["row 2: 5"]
    assert [line[:6] for line in listed["(the whole line)"]] == ["row 1:", "row 4:"]
    assert found.num_usable == 3
    assert found.num_rows == 6
    assert [example.row for example in found.examples] == [0, 3, 6]


@pytest.mark.parametrize("broken_lines", [[], ["{broken"]])
def test_ids_of_two_types_are_ids_and_other_columns_survive(write, broken_lines):
    rows = [{**row, "score": 0.5, "meta": {"a": 1}} for row in GOOD * 3]
    rows[4]["annotator"] = 17
    found = examine(write([*rows, *broken_lines]))
    assert found.columns == ["prompt", "chosen", "rejected", "annotator", "score", "meta"]
    assert found.num_usable == 6
    assert found.annotators.most == {"y": 3, "x": 2, "17": 1}
    assert found.is_ready == (not broken_lines)


def test_archive_that_is_cut_is_examined_up_to_the_cut(tmp_path):
    rng = np.random.default_rng(0)
    lines = [json.dumps(pair(str(rng.random()), str(rng.random()))) + "\n" for _ in range(400)]
    whole = gzip.compress("".join(lines).encode())
    (tmp_path / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    found = examine(str(tmp_path / "d.jsonl.gz"))
    (bad,) = found.bad_values
    assert (bad.field, bad.count) == ("(the whole line)", 1)
    assert "end-of-stream" in bad.first[0]
    assert 100 < found.num_usable < 300


def test_missing_column_and_empty_file_are_one_error(write):
    with pytest.raises(DataError, match="column 'rejected' is missing; it has prompt, chosen"):
        examine(write([{"prompt": "p", "chosen": "a"}]))
    with pytest.raises(DataError, match="the file is empty"):
        examine(write([]))


def test_repeats_are_counted(write):
    rows = [
        pair("a", "b", "x"),
        pair("a", "b", "x"),  # a duplicate
        pair("b", "a", "x"),  # x against x
        pair("c", "d", "x"),
        pair("d", "c", "y"),  # y against x
        pair("e", "f", "x"),
        pair("e", "f", "y"),  # in agreement
        pair("e", "f", "x", "other prompt"),
        pair("same", "same"),
        pair("", "f"),
    ]
    found = examine(write(rows))
    repeats = found.repeats
    assert (repeats.different, repeats.judged_again, repeats.duplicates) == (4, 3, 1)
    assert repeats.contradictory == 2
    assert repeats.within_annotators == 1
    assert repeats.between_annotators == 1
    assert found.dropped == {"identical responses": 1, "empty response": 1}
    assert found.is_ready
    without_ids = examine(
        write([{k: v for k, v in row.items() if k != "annotator"} for row in rows])
    )
    assert without_ids.repeats.contradictory == 2
    assert without_ids.repeats.within_annotators is None
    assert without_ids.repeats.duplicates == 2


def test_annotators_are_counted(write):
    rows = [pair(f"a{i}", f"b{i}", annotator="busy" if i < 6 else f"u{i}") for i in range(9)]
    counts = examine(write(rows)).annotators
    assert (counts.number, counts.once, counts.most["busy"]) == (4, 3, 6)
    assert counts.quantiles == [1, 1, 1, 2.25, 6]
    rows = [{**row, "annotator": i, "user_id": "u"} for i, row in enumerate(rows)]
    path = write(rows)
    assert "every annotator judged once" in printed(examine(path))
    assert examine(path, DoctorConfig(annotator="user_id")).annotators.number == 1


def test_share_of_longer_chosen_responses_has_wilsons_interval():
    """Where every pair has one row, the interval is that of scipy."""
    chosen, rejected = [3] * 30 + [1] * 12 + [2] * 5, [2] * 42 + [2] * 5
    lengths = measure_lengths(chosen, rejected, [str(i) for i in range(47)], "tokens")
    expected = binomtest(30, 42).proportion_ci(method="wilson")
    assert lengths.share_longer == pytest.approx(30 / 42)
    assert (lengths.low, lengths.high) == pytest.approx((expected.low, expected.high))
    assert lengths.equal == 5
    assert lengths.median_log_ratio == pytest.approx(np.log(1.5))
    assert lengths.is_uneven


def test_rows_about_one_pair_do_not_narrow_the_interval():
    """Ten copies of every row say what one says."""
    chosen, rejected = [3] * 30 + [1] * 12, [2] * 42
    once = measure_lengths(chosen, rejected, [str(i) for i in range(42)], "tokens")
    keys = [str(i % 42) for i in range(420)]
    often = measure_lengths(chosen * 10, rejected * 10, keys, "tokens")
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    all_longer = measure_lengths([2] * 9, [1] * 9, [str(i) for i in range(9)], "tokens")
    expected = binomtest(9, 9).proportion_ci(method="wilson")
    assert (all_longer.low, all_longer.high) == pytest.approx((expected.low, expected.high))
    assert measure_lengths([1, 2], [1, 2], ["a", "b"], "tokens") is None


def test_truncation_follows_the_tokenizer(write, policy_folder):
    """Byte-level tokens: a text of one repeated rare byte has as many tokens as bytes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy_folder)

    def tokens(text):
        return len(tokenizer(text)["input_ids"])

    rows = [
        pair("Sure. Sure.", "Good luck.", prompt="7"),
        pair("Good luck.", "Sure.", prompt="7" * 40),  # the prompt fills 30 tokens
        pair("7" * 40, "7" * 50, prompt="7"),  # equal where they are cut
        pair("7" * 40, "Sure.", prompt="7"),
    ]
    assert tokens("7" * 40) == 40
    found = examine(write(rows), DoctorConfig(model=policy_folder, max_length=30))
    truncation = found.truncation
    assert (truncation.fully, truncation.partially, truncation.made_equal) == (1, 2, 1)
    assert truncation.longest == 1 + 50 + 1
    assert found.lengths.unit == "tokens"
    assert found.is_ready
    assert "leaves pairs that teach nothing" in printed(found)
    hopeless = examine(write(rows[1:2] * 2), DoctorConfig(model=policy_folder, max_length=30))
    assert not hopeless.is_ready


def test_tokens_that_merge_where_prompt_and_response_meet_are_counted(write, policy_folder):
    """The tokenizer has " you" as one token, so a space that ends the prompt merges with it."""
    rows = [
        pair("you can", "you may", prompt="How should "),
        pair(" you can", " you may", prompt="How should"),
    ]
    found = examine(write(rows), DoctorConfig(model=policy_folder))
    assert found.truncation.merged == 1
    assert "begin before the prompt ends" in printed(found)


def test_examples_mark_where_the_prompt_ends(write, policy_folder):
    """An implicit prompt is the shared beginning, with or without a tokenizer."""
    rows = [{"chosen": "Why? Because.", "rejected": "Why? No idea."}] * 2
    rows[1] = {"chosen": "How? So.", "rejected": "How? No."}
    for model in (None, policy_folder):
        found = examine(write(rows), DoctorConfig(model=model, examples=1))
        (example,) = found.examples
        assert example.row in (0, 1)
        assert example.prompt == ("Why?" if example.row == 0 else "How?")
        end = "" if model is None else "</s>"
        answers = (" Because.", " No idea.") if example.row == 0 else (" So.", " No.")
        assert (example.chosen, example.rejected) == tuple(answer + end for answer in answers)
        assert not found.has_prompt_column
        assert f"prompt |{example.prompt}|" in printed(found)


def test_responses_that_share_nothing_are_noted_and_trl_slip_is_an_obstacle(write):
    """TRL takes 'yes ' for the prompt where the responses differ at once and end in a space."""
    rows = [{"chosen": "yes", "rejected": "no"}, {"chosen": "good", "rejected": "bad"}]
    found = examine(write(rows))
    assert (found.without_prompt, found.is_ready) == (2, True)
    found = examine(write([*rows, {"chosen": "yes ", "rejected": "no"}]))
    assert found.ends_in_space == 1
    assert found.obstacles == ["TRL takes 1 chosen response for the prompt"]


def test_columns_are_mapped_by_name_and_extra_columns_survive(write):
    rows = [
        {"question": f"p{i}", "better": f"a{i}", "worse": f"b{i}", "who": "x", "extra": 1}
        for i in range(3)
    ]
    config = DoctorConfig(prompt="question", chosen="better", rejected="worse", annotator="who")
    found = examine(write(rows), config)
    assert found.columns == ["prompt", "chosen", "rejected", "who", "extra"]
    assert found.annotators.number == 1
    assert found.is_ready


def test_reader_problems_and_ties_are_listed(write):
    good = {
        "text": "Why?",
        "completion_a": "a",
        "completion_b": "b",
        "normal_worker_annotations": [
            {"evaluator": "w1", "overall_pref": "Tie"},
            {"evaluator": "w2", "overall_pref": "A-is-clearly-better"},
        ],
    }
    rows = [good, {**good, "text": "How?"}, {**good, "completion_b": None}]
    graded = examine(write(rows), DoctorConfig(reader="multipref"))
    assert (graded.ties, graded.choices.ties, graded.choices.grades) == (0, 2, {0: 2, 2: 2})
    found = examine(write(rows), DoctorConfig(reader="multipref:pairs"))
    (bad,) = found.bad_values
    assert (bad.field, bad.first) == ("completion_b", ["row 2: None"])
    assert found.ties == 2
    assert (found.num_usable, found.repeats.different) == (2, 2)
    assert found.is_conversational


def test_equal_scores_are_ties(write):
    rows = [
        {**p, "score_chosen": s, "score_rejected": 1} for p, s in zip(GOOD, (1, 2), strict=True)
    ]
    assert examine(write(rows)).ties == 1


def test_terminal_is_not_steered_by_the_data(write):
    rows = [pair("\x1b[2Jgone [bold]", "b"), GOOD[1]]
    text = printed(examine(write(rows)))
    assert "\x1b" not in text
    assert r"\x1b[2Jgone [bold]" in text


def test_command_prints_writes_json_and_fails_on_bad_rows(write, capsys, tmp_path):
    assert main(["doctor", write(GOOD), "--json", str(tmp_path / "d.json")]) == 0
    assert "ready to train: yes" in capsys.readouterr().out
    facts = json.loads((tmp_path / "d.json").read_text())
    assert facts["ready_to_train"] is True
    assert facts["repeats"]["different"] == 2
    bad = write([*GOOD, pair(None, "b")])
    assert main(["doctor", bad, "--json", str(tmp_path / "d.json")]) == 1
    captured = capsys.readouterr()
    assert "row 2: None" in captured.out
    assert "not ready to train: 1 value cannot be used" in captured.err
    assert json.loads((tmp_path / "d.json").read_text())["ready_to_train"] is False


def test_model_without_a_tokenizer_says_so(write):
    with pytest.raises(ConfigError, match="model: no tokenizer in 'no-one/no-model'"):
        examine(write(GOOD), DoctorConfig(model="no-one/no-model"))


def test_a_lone_surrogate_is_one_bad_row(write):
    rows = [pair(f"a{k}", f"b{k}", prompt=f"p{k}") for k in range(40)]
    rows[7]["chosen"] = "half \ud83d"
    rows[9]["annotator"] = "\ud83d"
    rows[11]["source"] = ["\ud83d"]
    found = examine(write(rows))
    assert {values.field: values.first for values in found.bad_values} == {
        "chosen": ["row 7: 'half \\ud83d'"],
        "annotator": ["row 9: '\\ud83d'"],
        "source": ["row 11: ['\\ud83d']"],
    }
    assert (found.num_rows, found.num_usable) == (40, 37)
    assert "row 7: 'half \\ud83d'" in printed(found)


def test_rows_of_a_csv_file_that_cannot_be_read_are_listed(tmp_path):
    (tmp_path / "d.csv").write_text("prompt,chosen,rejected\np,a,b\np,a\nq,a,b\nq,a,b,c\n")
    found = examine(str(tmp_path / "d.csv"))
    (bad,) = found.bad_values
    assert (bad.field, bad.expected, bad.count) == ("(the whole row)", "3 cells", 2)
    assert bad.first == ["row 1: 2 cells", "row 3: 4 cells"]
    assert (found.num_rows, found.num_usable) == (4, 2)


def test_one_prompt_cannot_be_split(write):
    """Training would hold out all rows or none."""
    found = examine(write([pair("a", "b"), pair("c", "d")]))
    assert found.obstacles == ["all rows share one prompt, so none can be held out"]
    assert examine(write(GOOD)).num_prompts == 2


@pytest.mark.parametrize("ids", [[1, 10, 1], ["1", "10", "1"], [1.0, 10.0, 1.0]])
def test_annotators_have_one_name_whatever_their_type(write, ids):
    rows = [pair(f"a{k}", "b", id_, prompt=f"p{k}") for k, id_ in enumerate(ids)]
    assert examine(write(rows)).annotators.most == {"1": 2, "10": 1}


# What was done


def test_choices_among_several_are_found_shown_and_kept_apart_as_asked(write):
    rows = [
        pair(f"best {k}", f"worse {k}-{j}", f"p{k}", prompt=f"q{k % 3}")
        for k in range(6)
        for j in range(2 + k % 2)
    ]
    path = write([*rows, pair("a", "b", "p0", prompt="another")])
    found = examine(path)
    counts = found.choices
    assert (counts.origin, counts.pairs, counts.sets) == ("found", 1, {3: 3, 4: 3})
    assert "choice_set" not in found.columns
    text = printed(found)
    assert "1 pair, 3 among 3, 3 among 4 responses (found by what their rows share)" in text
    assert "Look at: 15 rows are taken for 6 choices among 3 to 4 responses" in text
    assert found.to_dict()["choices"]["sets"] == {3: 3, 4: 3}
    apart = examine(path, DoctorConfig(choice_set="none"))
    assert (apart.choices.origin, apart.choices.pairs, apart.choices.sets) == ("apart", 16, {})
    ranked = write([{**row, "task": row["chosen"], "rank": 2 + k % 2} for k, row in
                    enumerate(rows[:2])], "ranked.jsonl")  # fmt: skip
    counts = examine(ranked, DoctorConfig(choice_set="task")).choices
    assert (counts.origin, counts.column, counts.rankings) == ("column", "task", 1)


def test_ties_and_losses_are_no_choices_of_the_first_response(write):
    """Lengths and contradictions are about what was preferred."""
    outcomes = ["win", "loss", "tie", "loss", "win", "tie"]
    rows = [
        pair("long response", "short", "x"),
        pair("short", "long response", "y"),  # the same preference
        pair("short", "long response", "z"),  # in agreement with either
        pair("b", "bb", "x", prompt="q"),
        pair("b", "bb", "x", prompt="q"),  # against the row above
        pair("b", "bb", "y", prompt="q"),
    ]
    path = write([{**row, "outcome": o} for row, o in zip(rows, outcomes, strict=True)])
    found = examine(path)
    assert (found.choices.ties, found.choices.tie_share) == (2, 1 / 3)
    assert found.lengths.share_longer == 3 / 4
    assert (found.repeats.contradictory, found.repeats.within_annotators) == (1, 1)
    assert "2, 33.3% of the pairs" in printed(found)
    grades = [2, -1, 0, -3, 2, 0]
    path = write([{**row, "grade": g} for row, g in zip(rows, grades, strict=True)])
    graded = examine(path)
    assert graded.choices.grades == {-3: 1, -1: 1, 0: 2, 2: 2}
    assert graded.lengths == found.lengths
    assert graded.repeats == found.repeats
    assert "1 of -3, 1 of -1, 2 of 0, 2 of 2" in printed(graded)


def test_values_that_say_nothing_of_what_was_done_are_listed(write):
    rows = [{**row, "outcome": value} for row, value in zip(GOOD * 2, ["win", "x", None, "tie"],
                                                            strict=True)]  # fmt: skip
    (bad,) = examine(write(rows)).bad_values
    assert (bad.field, bad.count, bad.first) == ("outcome", 2, ["row 1: 'x'", "row 2: None"])
    rows = [{**row, "choice_set": 1} for row in GOOD]
    (bad,) = examine(write(rows)).bad_values
    assert bad.expected == "sets that have one 'annotator', as in row 0"
