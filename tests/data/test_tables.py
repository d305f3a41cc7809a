import bz2
import gzip
import json
import lzma
import random

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from mixdpo_pyro.data.tables import arrow_column, arrow_table, read_table
from mixdpo_pyro.errors import DataError


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def columns(path, wanted=None):
    return values(read_table(path, wanted))


def values(table):
    """The columns as Python values."""
    found = table.content
    if isinstance(found, pa.Table):
        return found.to_pydict()
    if isinstance(found, dict):
        return found
    names = dict.fromkeys(name for record in found for name in record)
    return {name: table.column(name) for name in names}


# csv

CELLS = ["1", "01", "1e3", "1000", "1.10", "true", "NA", "None", "null", "", " a ", "2020-01-01"]


def test_every_cell_of_a_csv_file_is_the_text_that_is_written(tmp_path):
    path = write(
        tmp_path, "t.csv", "id,row\n" + "".join(f"{c},{k}\n" for k, c in enumerate(CELLS))
    )
    assert columns(path) == {"id": CELLS, "row": [str(k) for k in range(len(CELLS))]}
    assert columns(path, ["row"])["row"] == [str(k) for k in range(len(CELLS))]


def test_a_long_csv_file_has_one_type(tmp_path):
    """Types that are guessed part by part call one annotator two ways."""
    ids = [f"{k % 100:03d}" for k in range(60_000)] + ["x"]
    assert columns(write(tmp_path, "t.csv", "id\n" + "\n".join(ids)))["id"] == ids


@pytest.mark.parametrize(
    "content",
    [
        "a,b\n1,x\n2,y z\n",
        "\ufeffa,b\r\n1,x\r\n2,y z\r\n",
        '\ufeff"a","b"\r\n"1","x"\r\n"2","y z"',
        "\n\na,b\n\n1,x\n\n2,y z\n\n",
    ],
)
def test_marks_and_ends_of_lines_are_no_text(tmp_path, content):
    assert columns(write(tmp_path, "t.csv", content)) == {"a": ["1", "2"], "b": ["x", "y z"]}


def test_quoted_cells_hold_lines_commas_and_quotes(tmp_path):
    long = "x" * 300_000
    path = write(tmp_path, "t.csv", f'a,b\n"1\n2, ""3""\r\n","{long}"\n')
    assert columns(path) == {"a": ['1\n2, "3"\r\n'], "b": [long]}


def test_rows_with_other_numbers_of_cells_are_named_and_do_not_hide_the_others(tmp_path):
    table = read_table(write(tmp_path, "t.csv", "a,b\n1,2\n3\n4,5,6\n7,8\n"))
    assert values(table) == {"a": ["1", "7"], "b": ["2", "8"]}
    assert list(table.rows) == [0, 3]
    assert [str(problem) for problem in table.problems] == [
        "row 1 cannot be read (1 cells; expected 2 cells)",
        "row 2 cannot be read (3 cells; expected 2 cells)",
    ]


def test_rows_are_numbered_throughout_a_long_csv_file(tmp_path):
    """Bad rows in several of the parts that it is read in."""
    rows = ["1,2"] * 120_000
    for row in (7, 60_000, 119_999):
        rows[row] = "1"
    table = read_table(write(tmp_path, "t.csv", "a,b\n" + "\n".join(rows)))
    assert [problem.row for problem in table.problems] == [7, 60_000, 119_999]
    assert sorted({*range(120_000)} - set(table.rows)) == [7, 60_000, 119_999]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('a,b\n1,2\n3,"open\n4,5\n', r"t\.csv: cannot be read as csv \(line 4: unexpected end"),
        ('a,b\n"1"x,2\n', r"t\.csv: cannot be read as csv \(line 2: ',' expected after"),
        (b"a,b\ncaf\xe9,1\n", r"t\.csv: cannot be read as csv \('utf-8' codec"),
        ("a,b\n1,2\n".encode("utf-16"), r"t\.csv: cannot be read as csv \('utf-8' codec"),
        ("a,b,a\n1,2,3\n", r"t\.csv: two columns are called 'a'; rename one"),
        ("", r"t\.csv: the file is empty"),
    ],
)
def test_damaged_csv_files_are_one_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, "t.csv", content))


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("name", ["t.csv.gz", "T.CSV.GZ", "t.csv.bz2", "t.csv.xz"])
def test_compressed_files_are_read_and_damaged_ones_named(tmp_path, name):
    pack = PACKERS[name.lower().rpartition(".")[2]]
    assert columns(write(tmp_path, name, pack(b"a\n1\n"))) == {"a": ["1"]}
    with pytest.raises(DataError, match=rf"{name}: cannot be read as csv"):
        read_table(write(tmp_path, name, pack(b"a\n1\n" * 5_000)[:-20]))


@pytest.mark.parametrize("kind", PACKERS)
def test_a_compressed_file_of_lines_is_read_up_to_where_it_is_cut(tmp_path, kind):
    texts = [random.Random(k).randbytes(500).hex() for k in range(2_000)]
    packed = PACKERS[kind]("\n".join(json.dumps({"a": text}) for text in texts).encode())
    assert columns(write(tmp_path, f"t.jsonl.{kind}", packed)) == {"a": texts}
    table = read_table(write(tmp_path, f"t.jsonl.{kind}", packed[:-20]))
    assert 0 < len(table.rows) < len(texts)
    assert values(table)["a"] == texts[: len(table.rows)]
    assert "end-of-stream" in str(table.problems[-1])


# json


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def test_a_column_may_begin_late_and_end_early(tmp_path):
    rows = [{"a": k} for k in range(2_000)] + [{"id": "x"}]
    found = columns(write(tmp_path, "t.jsonl", lines(*rows)))
    assert found["a"] == [*range(2_000), None]
    assert found["id"] == [None] * 2_000 + ["x"]


def test_wanted_columns_may_begin_late_and_lack_in_rows(tmp_path):
    content = lines({"a": 1}, {"b": "x", "c": 0}, {"a": None, "b": "x"}, {"a": 3})
    path = write(tmp_path, "t.jsonl", content)
    assert columns(path, ["a", "b", "d"]) == {"a": [1, None, None, 3], "b": [None, "x", "x", None]}
    table = read_table(path, ["b"])
    assert table.to_records() == [{"b": None}, {"b": "x"}, {"b": "x"}, {"b": None}]
    assert table.to_arrow().to_pydict() == {"b": [None, "x", "x", None]}
    assert list(table.all_names) == ["a", "b", "c"]
    first, second = table.column("b")[1:3]
    assert first is second  # a million rows of few ids keep few texts


def test_rows_are_numbered_by_their_lines(tmp_path):
    table = read_table(write(tmp_path, "t.jsonl", "\ufeff" + lines({"a": 1}, "", " ", {"a": 2})))
    assert list(table.rows) == [0, 3]
    assert values(table) == {"a": [1, 2]}


def test_an_array_of_objects_is_read_like_lines(tmp_path):
    rows = [{"a": "001", "b": None}, {"a": "1", "c": 2.5}]
    expected = {"a": ["001", "1"], "b": [None, None], "c": [None, 2.5]}
    for name, content in {
        "array.json": "\ufeff " + json.dumps(rows, indent=2),
        "lines.json": lines(*rows),
        "lines.jsonl": lines(*rows),
    }.items():
        assert columns(write(tmp_path, name, content)) == expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"a": ', "line 2 cannot be read (Expecting value"),
        ("[1, 2]", "line 2 cannot be read ([1, 2]; expected a JSON object)"),
        ('{"a": 1, "a": 2}', "line 2 cannot be read (the key 'a' stands twice"),
        ('{"a": "\\ud83d"}', "row 1, column 'a': expected text without lone surrogates"),
        ('{"a": [{"b": "\\ud83d"}]}', "row 1, column 'a': expected text without lone surrogates"),
        ('{"\\ud83d": 1}', "line 2 cannot be read ('\\ud83d'; expected names without lone"),
        ("[" * 100_000, "line 2 cannot be read (maximum recursion depth"),
        ("1" * 5_000, "line 2 cannot be read (Exceeds the limit"),
        (b'{"a": "caf\xe9"}', "line 2 cannot be read ('utf-8' codec"),
    ],
)
def test_one_bad_line_does_not_hide_the_others(tmp_path, line, problem):
    line = line if isinstance(line, bytes) else line.encode()
    content = b'{"a": "\xf0\x9f\x98\x80 \\ud83d\\ude00"}\n' + line + b'\n{"a": "y"}\n'
    table = read_table(write(tmp_path, "t.jsonl", content))
    assert values(table) == {"a": ["\U0001f600 \U0001f600", "y"]}
    assert list(table.rows) == [0, 2]
    assert [str(each)[: len(problem)] for each in table.problems] == [problem]


def test_nan_is_nothing_as_pandas_writes_it(tmp_path):
    path = write(tmp_path, "t.jsonl", '{"a": NaN}\n{"a": Infinity}\n')
    assert columns(path) == {"a": [None, float("inf")]}


# parquet


def test_the_index_of_a_pandas_table_is_a_column(tmp_path):
    frame = pd.DataFrame({"margin": [0.5, 1.5], "user": ["007", "7"], "item": [3, 4]})
    path = tmp_path / "t.parquet"
    expected = frame.to_dict("list")
    for index in ("user", ["user", "item"]):
        frame.set_index(index).to_parquet(path)
        assert columns(path) == expected
        assert columns(path, ["user"]) == {"user": ["007", "7"]}
        assert set(read_table(path, ["user"]).all_names) == set(expected)
    frame.rename_axis("annotator").to_parquet(path)  # pandas stores a range by its ends
    assert columns(path) == {**expected, "annotator": [0, 1]}
    frame.set_index(pd.Index([5, 6])).to_parquet(path)
    assert columns(path) == expected


def test_categories_are_their_values_and_the_schema_of_pandas_is_forgotten(tmp_path):
    frame = pd.DataFrame(
        {"id": pd.Categorical(["b", "a", "b"])}, index=pd.Index([1, 2, 3], name="k")
    )
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet").to_arrow()
    assert table["id"].to_pylist() == ["b", "a", "b"]
    assert not pa.types.is_dictionary(table["id"].type)
    assert set(table.to_pandas().columns) == {"id", "k"}


def test_damaged_parquet_files_are_one_line(tmp_path):
    path = tmp_path / "t.parquet"
    twins = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    parquet.write_table(twins, path)
    with pytest.raises(DataError, match=r"t\.parquet: two columns are called 'a'"):
        read_table(path)
    ends, text = pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9")
    latin = pa.StringArray.from_buffers(1, ends, text)
    parquet.write_table(pa.table({"a": latin}), path)
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as parquet .*UTF8"):
        read_table(path)
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as parquet"):
        read_table(write(tmp_path, "t.parquet", "PAR1 no"))


def test_other_names_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(
        DataError, match=r"t\.txt: unknown file type; expected a file that ends in one"
    ):
        read_table(write(tmp_path, "t.txt", "a"))


# columns of one type

CALL = {"name": "f", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    "given",
    [
        ["a", None, ""],
        [1, None, -(2**63)],
        [1.5, None, float("inf")],
        [True, None, False],
        [1, 2.5, None],
        [None, None],
        [["a"], [], None],
        [[{"role": "user", "content": "a"}], [{"role": "user", "content": None}]],
        [[{"role": "a", "calls": [CALL]}], [{"role": "a", "calls": [{**CALL, "arguments": {}}]}]],
        [{"x": 1}, {"x": 2.5}, {"y": "z"}, None],
        [{"x": "1"}, {"x": 1}],
    ],
)
def test_columns_give_back_what_they_were_made_of(given):
    """Arrow would add fields that are None to messages, and chat templates would print them."""
    from datasets import Dataset

    found = Dataset(pa.table({"a": arrow_column(given)}))["a"][:]
    assert json.dumps(found) == json.dumps(given) or found == given == [1, 2.5, None]


def test_values_of_several_types_become_text():
    assert arrow_column(["x", 17, 17.0, None, True]).to_pylist() == ["x", "17", "17", None, "true"]
    assert arrow_column([2**63, 2**63 + 1]).to_pylist() == [str(2**63), str(2**63 + 1)]
    assert arrow_column([2**53 + 1, 0.5]).to_pylist() == [str(2**53 + 1), "0.5"]
    assert arrow_column([["a"], {"b": 1}]).to_pylist() == ['["a"]', '{"b": 1}']
    assert arrow_table([]).num_rows == 0
