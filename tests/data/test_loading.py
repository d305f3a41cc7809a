import gzip
import json

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from mixdpo_pyro.data.loading import load_preferences
from mixdpo_pyro.data.splitting import pair_keys, split_pairs
from mixdpo_pyro.data.validation import check_preferences
from mixdpo_pyro.errors import ConfigError, DataError

PAIRS = [
    {"prompt": "p", "chosen": "a", "rejected": "b", "annotator": "x"},
    {"prompt": "q", "chosen": "c", "rejected": "d", "annotator": "y"},
]


def write(folder, name, rows):
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".jsonl"):
        path.write_text(lines)
    elif name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".csv"):
        pd.DataFrame(rows).to_csv(path, index=False)
    elif name.endswith(".parquet"):
        pd.DataFrame(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize(
    "name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.csv", "d.parquet", "saved_folder"]
)
def test_every_format_gives_the_same_pairs(tmp_path, name):
    data = load_preferences(write(tmp_path, name, PAIRS))
    assert data.pairs.to_list() == [{**pair, "source_row": i} for i, pair in enumerate(PAIRS)]
    assert data.dropped == {}


def test_ids_of_two_types_are_read_as_text(tmp_path):
    rows = [{**PAIRS[0], "annotator": "x"}, {**PAIRS[1], "annotator": 17}]
    pairs = load_preferences(write(tmp_path, "d.jsonl", rows), annotator_column="annotator").pairs
    assert pairs["annotator"][:] == ["x", "17"]
    assert pairs.to_pandas()["annotator"].tolist() == ["x", "17"]
    assert pairs.column_names == ["prompt", "chosen", "rejected", "annotator", "source_row"]


def test_split_of_a_saved_dataset_dict_is_taken_by_name(tmp_path):
    DatasetDict({"test": Dataset.from_list(PAIRS)}).save_to_disk(tmp_path / "d")
    assert len(load_preferences(str(tmp_path / "d"), split="test").pairs) == 2
    with pytest.raises(DataError, match="split 'train' is missing; it has test"):
        load_preferences(str(tmp_path / "d"))


def test_a_file_has_one_part_only(tmp_path):
    """Else a held-out split could silently be the training data."""
    for name in ("d.jsonl", "saved_folder"):
        path = write(tmp_path, name, PAIRS)
        with pytest.raises(DataError, match="split 'test' is missing; it has one part"):
            load_preferences(path, split="test")


def test_conversational_and_implicit_prompt_pairs_are_taken():
    def turns(*texts):
        return [{"role": "user", "content": text} for text in texts]

    pairs = Dataset.from_list([{"chosen": turns("a", "b"), "rejected": turns("a", "c")}])
    assert len(check_preferences(pairs).pairs) == 1


def test_useless_rows_are_counted_and_dropped_and_rows_keep_their_numbers(tmp_path):
    rows = [
        {"chosen": "same", "rejected": "same"},
        {"chosen": "a", "rejected": "b"},
        {"chosen": " ", "rejected": "b"},
    ]
    data = load_preferences(write(tmp_path, "d.jsonl", rows))
    assert data.dropped == {"empty response": 1, "identical responses": 1}
    assert data.pairs["source_row"][:] == [1]


def test_subset_is_random_and_reproducible(tmp_path):
    rows = [{"chosen": f"a{i}", "rejected": f"b{i}"} for i in range(50)]
    path = write(tmp_path, "d.jsonl", rows)
    first, again, other = (
        load_preferences(path, max_rows=10, seed=s).pairs["source_row"][:] for s in (0, 0, 1)
    )
    assert first == again
    assert len(set(first)) == 10
    assert first != other


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", "", "d.jsonl: the file is empty"),
        ("d.jsonl", '{"chosen": "a", "rejected": "b"}\n{"chosen": \n', "d.jsonl: line 2 cannot"),
        ("d.txt", "hello", "d.txt: unknown file type"),
        ("d.csv", "chosen,rejected\n", "d.csv: the dataset is empty"),
        ("d.csv", "chosen,other\na,b\n", "d.csv: column 'rejected' is missing; it has chosen, o"),
        ("d.csv", "A,B,won\na,b,A\n", "--chosen COLUMN and --rejected COLUMN name other"),
        ("d.csv", "chosen;rejected\na;b\n", "cells are parted by commas, not by ';'"),
        ("d.csv", "chosen\trejected\na\tb\n", r"commas, not by '\\t'"),
        ("d.jsonl", '{"chosen": "a", "rejected": "b"}\n{"chosen": null, "rejected": "b"}\n',
         "d.jsonl: row 1, column 'chosen': expected text or a list of messages.*got None"),
        ("d.jsonl", '{"chosen": "a", "rejected": "a"}\n', "no usable pair is left"),
    ],
)  # fmt: skip
def test_bad_files_name_file_row_and_column(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_preferences(str(tmp_path / name))


def test_text_that_is_not_utf8_is_an_error_that_names_the_line(tmp_path):
    lines = b'{"chosen": "a", "rejected": "b"}\n{"chosen": "caf\xe9", "rejected": "b"}\n'
    (tmp_path / "d.jsonl").write_bytes(lines)
    with pytest.raises(DataError, match=r"d\.jsonl: line 2 cannot be read \('utf-8' codec"):
        load_preferences(str(tmp_path / "d.jsonl"))
    (tmp_path / "d.csv").write_bytes(b"chosen,rejected\na,b\ncaf\xe9,b\n")
    with pytest.raises(DataError, match=r"d\.csv: cannot be read as csv"):
        load_preferences(str(tmp_path / "d.csv"))


def test_missing_file_and_unreachable_hub_name_say_so(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        load_preferences(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="no-one/no-data: neither a local file nor a dataset"):
        load_preferences("no-one/no-data")


def test_file_cut_in_half_says_so(tmp_path):
    path = write(tmp_path, "d.jsonl.gz", PAIRS * 200)
    content = (tmp_path / "d.jsonl.gz").read_bytes()
    (tmp_path / "d.jsonl.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"d\.jsonl\.gz: line \d+ cannot be read"):
        load_preferences(path)


def test_named_annotator_column_must_be_there_and_filled(tmp_path):
    path = write(tmp_path, "d.jsonl", [*PAIRS, {**PAIRS[0], "annotator": None}])
    with pytest.raises(DataError, match="column 'user_id' is missing"):
        load_preferences(path, annotator_column="user_id")
    with pytest.raises(DataError, match="row 2, column 'annotator': expected an annotator id"):
        load_preferences(path, annotator_column="annotator")


def test_split_keeps_all_judgements_of_a_pair_on_one_side():
    """Also those with the choice the other way round."""
    pairs = [{"chosen": f"a{i}", "rejected": f"b{i}"} for i in range(40)]
    swapped = [{"chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs]
    train, test = split_pairs(Dataset.from_list(pairs + swapped), 0.25, seed=1)

    def keys(part):
        return {frozenset((p["chosen"], p["rejected"])) for p in part}

    assert len(train) == 60
    assert len(test) == 20
    assert not keys(train) & keys(test)


def test_equal_answers_to_other_prompts_are_other_pairs():
    pairs = Dataset.from_list(
        [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(10)]
    )
    assert len(set(pair_keys(pairs))) == 10
    train, test = split_pairs(pairs, 0.3)
    assert (len(train), len(test)) == (7, 3)


def test_split_of_one_prompt_raises():
    with pytest.raises(DataError, match="at least 2 different prompts"):
        split_pairs(Dataset.from_list([PAIRS[0]] * 3), 0.5)


def test_columns_are_mapped_by_name_and_the_column_in_the_way_is_kept(tmp_path):
    rows = [{"prompt": "id-1", "question": "p", "better": "a", "worse": "b", "user": "x"}]
    path = write(tmp_path, "d.jsonl", rows)
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert load_preferences(path, columns=columns).pairs.to_list() == [
        {"prompt_source": "id-1", "prompt": "p", "chosen": "a", "rejected": "b", "user": "x",
         "source_row": 0},
    ]  # fmt: skip
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    path = write(tmp_path, "d.parquet", PAIRS)
    assert load_preferences(path, columns=swapped).pairs["chosen"][:] == ["b", "d"]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"chosen": "best"}, DataError, r"d\.jsonl: column 'best' is missing; it has prompt"),
        ({"annotator": "prompt"}, ConfigError, "columns: expected prompt, chosen, rejected, got"),
        ({"chosen": "chosen", "rejected": "chosen"}, ConfigError, "cannot have two roles"),
    ],
)
def test_wrong_mappings_are_refused(tmp_path, columns, error, message):
    with pytest.raises(error, match=message):
        load_preferences(write(tmp_path, "d.jsonl", PAIRS), columns=columns)


def test_text_and_messages_in_one_pair_are_an_error():
    """Such a prompt is what the binarized UltraFeedback has; TRL would look at one of the two."""
    message = [{"role": "assistant", "content": "a"}]
    other = [{"role": "assistant", "content": "b"}]
    pairs = Dataset.from_list([{"prompt": "p", "chosen": message, "rejected": other}])
    with pytest.raises(DataError, match="row 0, column 'prompt': expected text or messages as in"):
        check_preferences(pairs)


TEXTS = ["NA", "None", "null", "12", "1e3", "true", "2020-01-01", " a", ""]


@pytest.mark.parametrize("name", ["d.csv", "d.csv.gz", "d.jsonl", "d.jsonl.xz", "d.parquet"])
def test_texts_and_ids_are_read_as_they_are_written(tmp_path, name):
    rows = [
        {"prompt": f"{k}{text}", "chosen": f"yes {k}", "rejected": text or "no", "annotator": id_}
        for k, (text, id_) in enumerate(
            zip(TEXTS, ["1", "01", "001", "1.0", "1e0", "NA", "null", "true", "True"], strict=True)
        )
    ]
    frame = pd.DataFrame(rows)
    write_as = {"csv": frame.to_csv, "jsonl": frame.to_json, "parquet": frame.to_parquet}
    kind = name.split(".")[1]
    options = {"orient": "records", "lines": True} if kind == "jsonl" else {"index": False}
    write_as[kind](tmp_path / name, **options)
    data = load_preferences(str(tmp_path / name))
    assert data.pairs.remove_columns("source_row").to_list() == rows
    assert data.annotator_column == "annotator"


def test_ids_of_numbers_become_text_in_every_source(tmp_path):
    rows = [{**pair, "annotator": k} for k, pair in zip((10, 9), PAIRS, strict=True)]
    for name in ("d.jsonl", "d.parquet", "d.csv", "saved_folder"):
        pairs = load_preferences(write(tmp_path, name, rows)).pairs
        assert pairs["annotator"][:] == ["10", "9"]


def test_ids_in_the_index_of_a_parquet_file_are_a_column(tmp_path):
    frame = pd.DataFrame(PAIRS).set_index("annotator")
    frame.to_parquet(tmp_path / "d.parquet")
    data = load_preferences(str(tmp_path / "d.parquet"))
    assert data.pairs["annotator"][:] == ["x", "y"]
    assert set(data.pairs.to_pandas().columns) == {*PAIRS[0], "source_row"}  # not lost again


def test_a_column_that_begins_late_is_there(tmp_path):
    plain = {name: PAIRS[0][name] for name in ("prompt", "chosen", "rejected")}
    path = write(tmp_path, "d.jsonl", [plain] * 1_500 + [PAIRS[1]])
    with pytest.raises(DataError, match=r"row 0, column 'annotator': expected .*, got None \(and"):
        load_preferences(path)


@pytest.mark.parametrize(
    "value", [None, "", float("nan"), True, ["x"], {"id": "x"}, 0.5, "x" * 1_001]
)
@pytest.mark.parametrize("name", ["d.jsonl", "saved_folder"])
def test_an_id_that_is_none_is_named_whether_it_is_asked_for_or_not(tmp_path, name, value):
    ids = [value, value] if name == "saved_folder" else ["a", value]
    rows = [{**pair, "annotator": id_} for pair, id_ in zip(PAIRS, ids, strict=True)]
    path = write(tmp_path, name, rows)
    row = 0 if name == "saved_folder" else 1
    for column in (None, "annotator"):
        with pytest.raises(
            DataError, match=f"row {row}, column 'annotator': expected an annotator"
        ):
            load_preferences(path, annotator_column=column)


def test_a_column_of_texts_is_no_column_of_ids(tmp_path):
    with pytest.raises(DataError, match="column 'prompt' holds texts, not annotator ids"):
        load_preferences(write(tmp_path, "d.jsonl", PAIRS), annotator_column="prompt")


def test_mapped_columns_are_checked_before_they_have_one_type(tmp_path):
    """Numbers beside texts would become texts with the type of the column."""
    rows = [{"better": "a", "worse": "b"}, {"better": 5, "worse": "b"}]
    columns = {"chosen": "better", "rejected": "worse"}
    with pytest.raises(DataError, match=r"row 1, column 'better': expected text .*, got 5"):
        load_preferences(write(tmp_path, "d.jsonl", rows), columns=columns)


def test_a_csv_row_of_another_width_and_a_twin_column_are_refused(tmp_path):
    (tmp_path / "d.csv").write_text("prompt,chosen,rejected\np,a,b\np,a\n")
    with pytest.raises(DataError, match=r"d\.csv: row 1 cannot be read \(2 cells; expected 3"):
        load_preferences(str(tmp_path / "d.csv"))
    (tmp_path / "d.csv").write_text("chosen,rejected,chosen\na,b,c\n")
    with pytest.raises(DataError, match=r"d\.csv: two columns are called 'chosen'"):
        load_preferences(str(tmp_path / "d.csv"))
