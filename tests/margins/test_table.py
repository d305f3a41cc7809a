import datetime as dt
import gzip
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from mixdpo_pyro.errors import DataError
from mixdpo_pyro.margins.table import read_margins

MARGINS = [0.5, -1.25, 2.0, 1e3]
IDS = ["001", "1", "NA", "1"]
LOGPS = ["policy_chosen_logps", "reference_chosen_logps", "policy_rejected_logps",
         "reference_rejected_logps"]  # fmt: skip


def write(folder, name, columns):
    """The same columns in any format; an index in parquet where the name says so."""
    frame, path = pd.DataFrame(columns), folder / name
    if ".csv" in name:
        text = frame.to_csv(index=False, lineterminator="\r\n" if "crlf" in name else "\n")
        content = ("\ufeff" + text if "bom" in name else text).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    elif name.endswith(".parquet"):
        frame = frame.set_index("annotator") if "index" in name else frame
        frame.to_parquet(path)
    elif name.endswith(".json"):
        frame.to_json(path, orient="records")
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize(
    "name",
    ["m.csv", "bom.csv", "bom_crlf.csv", "m.csv.gz", "m.parquet", "index.parquet", "m.jsonl",
     "m.jsonl.gz", "m.json"],
)  # fmt: skip
def test_every_format_gives_the_same_margins_and_annotators(tmp_path, name):
    data = read_margins(write(tmp_path, name, {"margin": MARGINS, "annotator": IDS}))
    assert data.margin.tolist() == MARGINS
    assert data.annotator.tolist() == IDS
    assert data.annotator_column == "annotator"


@pytest.mark.parametrize(
    ("ids", "texts"),
    [
        ([1, 10, 9, 1], ["1", "10", "9", "1"]),
        ([1.0, 10.0, 9.0, 1.0], ["1", "10", "9", "1"]),
        (pd.array([2**63 - 1, 2**63 - 2, 5, 5], dtype="Int64"), None),
        (pd.array([2**64 - 1, 2**64 - 2, 5, 5], dtype="UInt64"), None),
        (pd.Categorical(["b", "a", "b", "a"]), ["b", "a", "b", "a"]),
        ([Decimal(10**30), Decimal(10**30 + 1), Decimal(1), Decimal(1)], None),
    ],
)
def test_ids_of_every_type_are_their_text(tmp_path, ids, texts):
    pd.DataFrame({"margin": MARGINS, "annotator": ids}).to_parquet(tmp_path / "m.parquet")
    found = read_margins(tmp_path / "m.parquet").annotator.tolist()
    assert found == (texts or [str(int(value)) for value in ids])


def test_ids_of_other_lines_and_types_are_not_lost(tmp_path):
    lines = ['{"margin": 1}'] * 1_500
    lines += ['{"margin": 2, "annotator": 7}', '{"margin": 3, "annotator": "x"}']
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(lines[-2:]))
    assert read_margins(path).annotator.tolist() == ["7", "x"]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"row 0 has nothing in column 'annotator'"):
        read_margins(path)
    big = [f'{{"margin": {k}, "annotator": {2**64 + k}}}' for k in range(3)]
    path.write_text("\n\n".join(big))
    assert read_margins(path).annotator.tolist() == [str(2**64 + k) for k in range(3)]


A_DAY = dt.date(2020, 1, 1)

BAD_IDS = [
    (["a", "b", None], 2),
    ([1.0, 2.0, float("nan")], 2),
    (["a", "b", pd.NA], 2),
    (pd.array([1, 2, None], dtype="Int64"), 2),
    ([pd.NaT, pd.NaT, pd.NaT], 0),
    (["a", "", "b"], 1),
    (["a", " ", "b"], 1),
    (["a", "a\0", "b"], 1),
    (["a", "x" * 1_001, "b"], 1),
    ([1.0, 2.5, 3.0], 1),
    ([1.0, 2.0**60, 3.0], 1),
    ([["a"], ["b"], ["a"]], 0),
    ([{"id": 1}, {"id": 2}, {"id": 1}], 0),
    ([b"a", b"b", b"a"], 0),
    ([True, False, True], 0),
    ([A_DAY, A_DAY, A_DAY], 0),
    ([pd.Timestamp(A_DAY)] * 3, 0),
    ([pd.Timedelta(1, "D")] * 3, 0),
]


@pytest.mark.parametrize(("ids", "row"), BAD_IDS, ids=lambda value: repr(value)[:30])
def test_ids_that_are_none_name_file_row_and_column(tmp_path, ids, row):
    pd.DataFrame({"margin": MARGINS[:3], "annotator": ids}).to_parquet(tmp_path / "m.parquet")
    message = rf"m\.parquet: row {row} has .* in column 'annotator', expected an annotator id"
    with pytest.raises(DataError, match=message):
        read_margins(tmp_path / "m.parquet")


@pytest.mark.parametrize("value", ['""', "null", "NaN", "true", '["a"]', '{"a": 1}', "0.5"])
def test_one_id_that_is_none_among_texts_is_named_by_its_line(tmp_path, value):
    lines = [f'{{"margin": {k}, "annotator": {v}}}' for k, v in enumerate(('"a"', '"b"', value))]
    (tmp_path / "m.jsonl").write_text("\n".join([lines[0], "", *lines[1:]]))
    with pytest.raises(DataError, match=r"m\.jsonl: row 3 has .* in column 'annotator', expected"):
        read_margins(tmp_path / "m.jsonl")


BAD_MARGINS = [
    pa.array([True, False, True]),
    pa.array([1, 2, 3], pa.timestamp("ns")),
    pa.array([1, 2, 3], pa.duration("s")),
    pa.array([1, 2, 3], pa.date32()),
    pa.array([[1.0], [2.0], [3.0]]),
    pa.array([{"x": 1.0}] * 3),
    pa.array([b"1", b"2", b"3"]),
    pa.array(["high", "1", "2"]),
    pa.array(["1_000", "1", "2"]),
    pa.array(["", "1", "2"]),
    pa.array([None, 1.0, 2.0]),
    pa.array([float("nan"), 1.0, 2.0]),
    pa.array([float("inf"), 1.0, 2.0]),
]


@pytest.mark.parametrize("column", BAD_MARGINS, ids=lambda column: f"{column.type} {column[0]}")
def test_margins_that_are_no_numbers_name_file_row_and_column(tmp_path, column):
    parquet.write_table(pa.table({"margin": column}), tmp_path / "m.parquet")
    with pytest.raises(
        DataError, match=r"m\.parquet: row 0 has .* in column 'margin', expected a finite number"
    ):
        read_margins(tmp_path / "m.parquet")


def test_numbers_are_read_where_numbers_are_meant(tmp_path):
    texts = ["1e3", " 2.5 ", "-0.25", "+1", "001"]
    pd.DataFrame({"margin": texts, "annotator": texts}).to_csv(tmp_path / "m.csv", index=False)
    data = read_margins(tmp_path / "m.csv")
    assert data.margin.tolist() == [1e3, 2.5, -0.25, 1.0, 1.0]
    assert data.annotator.tolist() == texts
    decimals = pa.array([Decimal("1.5"), Decimal("-2.25")])
    parquet.write_table(pa.table({"margin": decimals}), tmp_path / "m.parquet")
    assert read_margins(tmp_path / "m.parquet").margin.tolist() == [1.5, -2.25]


@pytest.mark.parametrize(
    ("value", "words"),
    [(1e30, r"at most 1e\+20"), (-3.4e38, r"at most 1e\+20"), (-1e15, r"1e\+10 times the median")],
)
def test_a_margin_beyond_the_likelihood_is_named(tmp_path, value, words):
    path = write(tmp_path, "m.csv", {"margin": [1.0, 2.0, 3.0, value]})
    with pytest.raises(DataError, match=rf"m\.csv: row 3 has margin .*{words}"):
        read_margins(path)


def test_groups_are_texts_as_written(tmp_path):
    columns = {
        "margin": MARGINS,
        "topic": ["01", "1", "NA", "1"],
        "long": [True, False, True, True],
        "heat": [0.5, 1.0, 0.5, 1.0],
    }
    names = ("topic", "long", "heat")
    pd.DataFrame(columns).to_parquet(tmp_path / "m.parquet")
    groups = read_margins(tmp_path / "m.parquet", groups=names).groups
    assert {name: labels.tolist() for name, labels in groups.items()} == {
        "topic": ["01", "1", "NA", "1"],
        "long": ["True", "False", "True", "True"],
        "heat": ["0.5", "1", "0.5", "1"],
    }
    path = write(tmp_path, "m.csv", {**columns, "topic": ["a", "", "b", "a"]})
    with pytest.raises(
        DataError, match=r"m\.csv: row 1 has nothing in column 'topic', expected a"
    ):
        read_margins(path, groups=names)


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "m.csv").write_text("margin,annotator,margin\n1,a,2\n2,b,3\n")
    (tmp_path / "m.jsonl").write_text('{"margin": 1, "margin": 2}\n')
    for name in ("m.csv", "m.jsonl"):
        with pytest.raises(DataError, match=rf"{name}: .*'margin'"):
            read_margins(tmp_path / name)


def logps(**tokens):
    rng = np.random.default_rng(0)
    return {name: rng.normal(-50, 5, 4) for name in LOGPS} | tokens


def test_an_empty_response_has_no_margin_per_token(tmp_path):
    columns = logps(chosen_tokens=[10, 0, 5, 8], rejected_tokens=[5, 4, 0, 2])
    data = read_margins(write(tmp_path, "m.parquet", columns))
    ratios = columns[LOGPS[0]] - columns[LOGPS[1]], columns[LOGPS[2]] - columns[LOGPS[3]]
    assert data.margin == pytest.approx(ratios[0] - ratios[1])
    assert data.length.tolist() == [5, -4, 5, 6]
    assert np.isnan(data.normalised).tolist() == [False, True, True, False]
    assert data.normalised[[0, 3]] == pytest.approx(
        [ratios[0][0] / 10 - ratios[1][0] / 5, ratios[0][3] / 8 - ratios[1][3] / 2]
    )


def test_rows_of_another_width_and_broken_lines_are_named(tmp_path):
    (tmp_path / "m.csv").write_text("margin,annotator\n1,a\n2\n")
    with pytest.raises(DataError, match=r"m\.csv: cannot be read as a table: row 1 cannot be"):
        read_margins(tmp_path / "m.csv")
    (tmp_path / "m.jsonl").write_text('{"margin": 1}\n{"margin": \n')
    with pytest.raises(DataError, match=r"m\.jsonl: cannot be read as a table: line 2 cannot be"):
        read_margins(tmp_path / "m.jsonl")


ALIKE = {
    "policy_chosen_logps": [1.0, 1.0, 1.0, 2.0, 2.0, 3.0],
    "reference_chosen_logps": [0.5] * 6,
    "policy_rejected_logps": [-5.0, 6.0, -5.0, -7.0, -7.0, 8.0],
    "reference_rejected_logps": [0.5] * 6,
}


def test_texts_in_columns_of_what_was_judged_get_a_hint(tmp_path):
    texts = ["long " * 300] * len(MARGINS)
    path = write(tmp_path, "m.csv", {"margin": MARGINS, "response_a": texts, "response_b": texts})
    with pytest.raises(DataError, match=r"'response_a', expected a label .* needs another name"):
        read_margins(path)


@pytest.mark.parametrize(
    ("annotators", "num_alike"),
    [(None, 3), ("aabccc", 2), ("aabbcc", 2), ("abcabc", 0)],
)
def test_rows_that_share_annotator_and_chosen_response_are_counted(
    tmp_path, annotators, num_alike
):
    """The same pair judged again is no choice among several, and a column of sets settles it."""
    table = pd.DataFrame(ALIKE)
    if annotators:
        table["annotator"] = list(annotators)
    path = tmp_path / "margins.parquet"
    table.to_parquet(path)
    assert read_margins(path).num_alike == num_alike
    assert read_margins(path, choice_set="none").num_alike == 0
    table.assign(outcome=["win", "tie"] * 3).to_parquet(path)  # of two responses each
    assert read_margins(path).num_alike == 0


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("rank", [2, 3, None, 2, 1, 2], "row 4 has 1.* in column 'rank', expected a whole number"),
        (
            "grade",
            [1, 0, 0.5, 1, 1, 1],
            "row 2 has 0.5 in column 'grade', expected a whole number",
        ),
        ("outcome", ["win"] * 5 + ["draw"], "row 5 has .*draw.* expected win, tie or loss"),
    ],
)
def test_impossible_ranks_grades_and_outcomes_name_their_row(tmp_path, column, values, message):
    table = pd.DataFrame({**ALIKE, "choice_set": list("abcdef"), column: values})
    path = tmp_path / "margins.parquet"
    table.to_parquet(path)
    with pytest.raises(DataError, match=message):
        read_margins(path)


@pytest.mark.parametrize("name", ["m.csv", "m.parquet", "m.jsonl", "m.json"])
@pytest.mark.parametrize("flags", [[False, True, True, False], [0, 1, 1, 0]])
def test_rows_that_the_policy_was_trained_on_are_left_out(tmp_path, name, flags, caplog):
    path = write(tmp_path, name, {"margin": MARGINS, "annotator": IDS, "trained_on": flags})
    data = read_margins(path)
    assert data.margin.tolist() == [MARGINS[0], MARGINS[3]]
    assert data.annotator.tolist() == [IDS[0], IDS[3]]
    assert data.rows.tolist() == [0, 3]
    assert (data.num_trained_on, data.num_rows) == (2, 4)
    assert "2 of 4 rows are left out: the policy was trained on them" in caplog.text


def test_a_file_may_not_say_what_the_policy_was_trained_on(tmp_path):
    table = {"margin": MARGINS, "annotator": IDS}
    assert read_margins(write(tmp_path, "m.csv", table)).num_trained_on is None
    table["trained_on"] = ["False", "false", "0", "FALSE"]
    assert read_margins(write(tmp_path, "m.csv", table)).num_trained_on == 0
    table["trained_on"][2] = "maybe"
    message = "row 2 has 'maybe' in column 'trained_on', expected true or false"
    with pytest.raises(DataError, match=message):
        read_margins(write(tmp_path, "m.csv", table))
    table["trained_on"] = [True] * 4
    with pytest.raises(
        DataError, match=r"was trained on all 4 rows .* Compute margins of held-out"
    ):
        read_margins(write(tmp_path, "m.csv", table))


@pytest.mark.parametrize("name", [None, "other"])
def test_of_a_choice_set_all_rows_are_left_out(tmp_path, name):
    sets, flags = ["a", "a", "b", "b"], [True, False, False, False]
    column = name or "choice_set"
    path = write(tmp_path, "m.csv", {"margin": MARGINS, column: sets, "trained_on": flags})
    data = read_margins(path, choice_set=name)
    assert (data.rows.tolist(), data.num_trained_on) == ([2, 3], 2)
    apart = read_margins(path, choice_set="none")
    assert apart.rows.tolist() == [1, 2, 3]


def test_faults_behind_rows_that_are_left_out_have_the_number_of_their_row(tmp_path):
    table = {"margin": [1.0, 2.0, 3.0, "x"], "trained_on": [True, False, False, False]}
    with pytest.raises(DataError, match=r"row 3 has 'x' in column 'margin'"):
        read_margins(write(tmp_path, "m.csv", table))
