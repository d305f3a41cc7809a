"""Tables as their files have them: read, never guessed.

Every cell of a csv file is text, also `NA`, `001` and `1e3`; numbers are made where numbers are
meant. Every line of a jsonl file is read, so that a column may begin late and hold values of
several types. The index of a pandas table is a column like the others.
"""

import bz2
import csv
import gzip
import json
import lzma
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from mixdpo_pyro.data.problems import WHOLE_LINE, WHOLE_ROW, Problem, shorten
from mixdpo_pyro.errors import DataError

__all__ = [
    "SURROGATE",
    "Table",
    "arrow_column",
    "arrow_table",
    "check_has_columns",
    "check_table",
    "is_table",
    "json_text",
    "peek_names",
    "read_table",
]

_OPENERS: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

_DAMAGE = (
    OSError, ValueError, EOFError, RecursionError, csv.Error, pa.ArrowException, zlib.error,
    lzma.LZMAError,
)  # fmt: skip
"""What readers and archives raise for a file that is damaged, or no such file at all."""

_CSV_CHUNK = 50_000
"""Rows of text that become one Arrow array."""

_SMALL_JSON = 5_000_000
"""Bytes of a JSON file that are read in some hundredths of a second."""

_MOST_KEPT_ONCE = 100_000
"""Different texts of a JSON file that are looked for again."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which JSON can write and UTF-8 cannot."""

_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape of half a character: of a pair of them, or a lone one."""

_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Attributes:
        content: Columns, or the rows of a JSON file, whose columns may hold several types; of a
            JSON file of which some columns were wanted, these as lists.
        rows: Number of each row in the file, counted from 0.
        problems: Lines and rows that could not be read, and are not in `content`.
        all_names: All columns of the file; `content` may have fewer.
    """

    content: pa.Table | list[dict[str, Any]] | dict[str, list[Any]]
    rows: Sequence[int]
    problems: list[Problem] = field(default_factory=list)
    all_names: Sequence[str] = ()

    def to_arrow(self) -> pa.Table:
        """The columns, each of one type."""
        return (
            self.content if isinstance(self.content, pa.Table) else arrow_table(self.to_records())
        )

    def column(self, name: str) -> pa.ChunkedArray | list[Any]:
        """A column, with the values as they were read."""
        if isinstance(self.content, list):
            return [record.get(name) for record in self.content]
        return self.content[name]

    def values(self, name: str) -> list[Any]:
        """A column as a list."""
        column = self.column(name)
        return column.to_pylist() if isinstance(column, pa.ChunkedArray) else column

    def take(self, indices: Sequence[int]) -> "Table":
        """Some of the rows, which keep their numbers."""
        content = self.content
        if isinstance(content, pa.Table):
            taken: Any = content.take(indices)
        elif isinstance(content, dict):
            taken = {name: [values[k] for k in indices] for name, values in content.items()}
        else:
            taken = [content[k] for k in indices]
        return replace(self, content=taken, rows=[self.rows[k] for k in indices])

    def fault(self, path: str | Path, index: int, name: str, expected: str) -> DataError:
        """The error about a value, by the number of its row in the file."""
        column = self.column(name)
        value = column[index].as_py() if isinstance(column, pa.ChunkedArray) else column[index]
        has = "nothing" if value is None or value == "" else shorten(value)
        return DataError(
            f"{path}: row {self.rows[index]} has {has} in column '{name}', expected {expected}"
        )

    def to_records(self) -> list[dict[str, Any]]:
        """The rows."""
        if isinstance(self.content, dict):
            values = zip(*self.content.values(), strict=True)
            return [dict(zip(self.content, row, strict=True)) for row in values]
        return self.content.to_pylist() if isinstance(self.content, pa.Table) else self.content


def is_table(path: Path) -> bool:
    """Whether the name ends as that of a table does."""
    return _reader_of(path) is not None


def check_table(path: Path) -> Callable[[Path, set[str] | None], "Table"]:
    """Refuse a file that is missing, empty, or of an unknown type; give its reader.

    Raises:
        DataError: Naming the file.
    """
    read = _reader_of(path)
    if read is None:
        endings = ", ".join(_READERS)
        raise DataError(
            f"{path}: unknown file type; expected a file that ends in one of {endings}"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    return read


def read_table(path: Path, columns: Iterable[str] | None = None) -> Table:
    """Read a `parquet`, `csv`, `json` or `jsonl` file, the last three also as gz, bz2 or xz.

    Args:
        path: The file.
        columns: Columns that are wanted; others may be missing in the result.

    Raises:
        DataError: If the file is missing, empty, or no such file at all, or two of its columns
            have one name. Lines and rows that cannot be read are problems of the table.
    """
    read = check_table(path)
    try:
        return read(path, None if columns is None else set(columns))
    except DataError:
        raise
    except _DAMAGE as error:
        message = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as {_kind(path)} ({message})") from error


def check_has_columns(names: Sequence[str], asked: Iterable[str], path: str | Path) -> None:
    """Refuse a table that lacks a column.

    Args:
        names: Its columns.
        asked: Columns that must be there.
        path: Its file, for the message.

    Raises:
        DataError: Naming the column, and those that there are.
    """
    for name in asked:
        if name not in names:
            has = ", ".join(names) or "no rows"
            hint = _hint_of_missing(name, names)
            raise DataError(f"{path}: column '{name}' is missing; it has {has}{hint}")


def _hint_of_missing(name: str, names: Sequence[str]) -> str:
    if len(names) == 1 and (found := re.search(r"[;\t|]", names[0])):
        return f" (one column: cells are parted by commas, not by {found[0]!r})"
    if name in ("chosen", "rejected"):
        return (
            "; --chosen COLUMN and --rejected COLUMN name other ones, and where a column says "
            "which of two responses won, 'Votes for A or B' in docs/data.md converts it"
        )
    return ""


def peek_names(path: Path) -> list[str] | None:
    """Columns of a file, where little reading tells them, otherwise None.

    They stand in the header of a csv or parquet file; in a jsonl file one may begin in the last
    line, so that only a small one is read.
    """
    try:
        if _kind(path) == "csv":
            with _open(path, mode="rt", encoding="utf-8-sig", newline="") as lines, _long_cells():
                return next(filter(None, csv.reader(lines, strict=True)), None)
        if _kind(path) == "parquet":
            schema = parquet.read_schema(path)
            return [*schema.names, *_range_indices(schema)]
        is_small = path.stat().st_size <= _SMALL_JSON
        return list(read_table(path, ()).all_names) if is_small else None
    except (*_DAMAGE, DataError):  # said where the file is read
        return None


def _kind(path: Path) -> str:
    """Ending of the name without that of a compression, and without its dot."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1][1:] if suffixes else ""


def _reader_of(path: Path) -> Callable[[Path, set[str] | None], Table] | None:
    return _READERS.get(f".{_kind(path)}")


def _open(path: Path, **options: Any) -> Any:
    return _OPENERS.get(path.suffix.lower(), open)(path, **options)


def _refuse_twins(names: Iterable[str], path: Path) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise DataError(f"{path}: two columns are called '{twins[0]}'; rename one")


# parquet


def _read_parquet(path: Path, wanted: set[str] | None) -> Table:
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        _refuse_twins(schema.names, path)
        ranges = _range_indices(schema)
        names = [name for name in schema.names if not _UNNAMED_INDEX.fullmatch(name)]
        table = file.read(columns=[n for n in names if wanted is None or n in wanted])
    table.validate(full=True)  # Arrow reads text that is not UTF-8
    for name, column in ranges.items():
        if name not in names and (wanted is None or name in wanted):
            table = table.append_column(name, pa.array(column, pa.int64()))
    for index, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type):
            chunks = [chunk.dictionary_decode() for chunk in column.chunks]
            plain = pa.chunked_array(chunks, column.type.value_type)
            table = table.set_column(index, table.schema.names[index], plain)
    metadata = schema.metadata or {}
    table = table.replace_schema_metadata(
        {key: value for key, value in metadata.items() if key == b"huggingface"}
    )
    return Table(table, range(len(table)), [], list(dict.fromkeys([*names, *ranges])))


def _range_indices(schema: pa.Schema) -> dict[str, range]:
    """Named indices that pandas writes as a range, not as a column."""
    indices = (schema.pandas_metadata or {}).get("index_columns", [])
    return {
        index["name"]: range(index["start"], index["stop"], index["step"])
        for index in indices
        if isinstance(index, dict) and index.get("name") is not None
    }


# csv


def _read_csv(path: Path, wanted: set[str] | None) -> Table:
    with _open(path, mode="rt", encoding="utf-8-sig", newline="") as lines, _long_cells():
        reader = csv.reader(lines, strict=True)
        try:
            return _read_cells(path, filter(None, reader), wanted)  # no blank lines
        except csv.Error as error:
            raise csv.Error(f"line {reader.line_num}: {error}") from error


def _read_cells(path: Path, rows: Iterator[list[str]], wanted: set[str] | None) -> Table:
    names = next(rows, [])
    _refuse_twins(names, path)
    kept = [k for k, name in enumerate(names) if wanted is None or name in wanted]
    schema = pa.schema([(names[k], pa.string()) for k in kept])
    numbers: list[int] = []
    problems: list[Problem] = []
    parts = []
    while chunk := list(islice(rows, _CSV_CHUNK)):
        start = len(numbers) + len(problems)
        places = list(range(start, start + len(chunk)))
        if set(map(len, chunk)) != {len(names)}:
            places, chunk, odd = _drop_odd_rows(places, chunk, len(names))
            problems += odd
        numbers += places
        arrays = [pa.array([cells[k] for cells in chunk], pa.string()) for k in kept]
        parts.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return Table(pa.Table.from_batches(parts, schema), numbers, problems, names)


def _drop_odd_rows(
    places: list[int], chunk: list[list[str]], width: int
) -> tuple[list[int], list[list[str]], list[Problem]]:
    """The rows with as many cells as the table is wide, and a problem for each of the others."""
    rows = list(zip(places, chunk, strict=True))
    good = [(row, cells) for row, cells in rows if len(cells) == width]
    odd = [(row, cells) for row, cells in rows if len(cells) != width]
    expected = f"{width} cells"
    problems = [Problem(row, WHOLE_ROW, expected, f"{len(cells)} cells") for row, cells in odd]
    return [row for row, _ in good], [cells for _, cells in good], problems


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let a cell be as long as it likes; the limit of `csv` is one for the whole process."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


# json


def _read_json(path: Path, wanted: set[str] | None) -> Table:
    """One array of objects, or lines of objects."""
    with _open(path, mode="rb") as file:
        text = file.read().decode("utf-8-sig").strip()
    if not text.startswith("["):
        return _read_json_lines(path, wanted)
    may_break = _HALF.search(text) is not None
    values = ((value, may_break) for value in _DECODER.decode(text))
    return _table_of_json(values, WHOLE_ROW, wanted)


def _read_json_lines(path: Path, wanted: set[str] | None) -> Table:
    return _table_of_json(_json_lines(path), WHOLE_LINE, wanted)


def _json_lines(path: Path) -> Iterator[tuple[Any, bool]]:
    """Value and whether it may hold half a character; `_BLANK` for no value, or the error."""
    try:
        with _open(path, mode="rb") as lines:
            for number, line in enumerate(lines):
                try:
                    text = line.decode("utf-8" if number else "utf-8-sig").strip()
                    value = _DECODER.decode(text) if text else _BLANK
                    yield value, _HALF.search(text) is not None
                except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
                    yield error, False
    except _DAMAGE as error:  # a damaged archive ends here
        yield error, False


def _table_of_json(
    values: Iterable[tuple[Any, bool]], whole: str, wanted: set[str] | None
) -> Table:
    records: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {}
    once: dict[str, str] = {}
    rows = array("q")  # a list of a million numbers takes four times as much
    problems: list[Problem] = []
    names: dict[str, None] = {}
    for row, (value, may_break) in enumerate(values):
        if value is _BLANK:
            continue
        if found := _faults_of_record(row, value, may_break, whole):
            problems += found
            continue
        names |= dict.fromkeys(value)
        rows.append(row)
        if wanted is None:
            records.append(value)
        for name in (wanted or set()) & value.keys():
            column = columns.setdefault(name, [])
            _pad(column, len(rows) - 1)
            column.append(_kept_once(value[name], once))
    for column in columns.values():
        _pad(column, len(rows))
    return Table(records if wanted is None else columns, rows, problems, list(names))


def _pad(column: list[Any], length: int) -> None:
    """Nothing in the rows that a column lacks in."""
    column += [None] * (length - len(column))


def _kept_once(value: Any, once: dict[str, str]) -> Any:
    """The value; of equal texts, such as ids, the first, so that one is kept of all."""
    if isinstance(value, str) and (value in once or len(once) < _MOST_KEPT_ONCE):
        return once.setdefault(value, value)
    return value


def _faults_of_record(row: int, value: Any, may_break: bool, whole: str) -> list[Problem]:
    if not isinstance(value, dict):
        got = str(value) if isinstance(value, Exception) else shorten(value)
        return [Problem(row, whole, "a JSON object", got)]
    if not may_break:
        return []
    names = [name for name in value if SURROGATE.search(name)]
    texts = {name: json.dumps(item, ensure_ascii=False) for name, item in value.items()}
    broken = [name for name, text in texts.items() if SURROGATE.search(text)]
    return [
        *(Problem(row, whole, "names without lone surrogates", shorten(name)) for name in names),
        *(Problem(row, n, "text without lone surrogates", shorten(value[n])) for n in broken),
    ]


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twin = next(
            name for name, count in Counter(name for name, _ in pairs).items() if count > 1
        )
        raise ValueError(f"the key '{twin}' stands twice")
    return value


def _constant(name: str) -> float | None:
    """NaN, which JSON does not know and pandas writes as null, is nothing."""
    return None if name == "NaN" else float(name)


_BLANK = object()

_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_constant)


# columns of one type


def arrow_table(records: Sequence[dict[str, Any]]) -> pa.Table:
    """Columns of rows; one that lacks in a row is null there."""
    names = dict.fromkeys(name for record in records for name in record)
    return pa.table({name: arrow_column([r.get(name) for r in records]) for name in names})


def arrow_column(values: list[Any]) -> pa.Array | pa.ChunkedArray:
    """Values as one Arrow column that gives them back unchanged.

    Values of several types, as ids may be, become text, and integers beyond 64 bits do: numbers in
    decimal form, anything else as JSON. Messages with different fields are kept as JSON.
    """
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    if len(kinds) == 1 and kinds <= _TYPES.keys():
        try:
            return pa.array(values, _TYPES[next(iter(kinds))])
        except OverflowError:
            pass
    if kinds == {int, float} and all(abs(v) <= 2**53 for v in values if isinstance(v, int)):
        return pa.array(values, pa.float64())
    if kinds in ({dict}, {list}):
        return _nested_column(values)
    return pa.array([json_text(value) for value in values], pa.string())


def _nested_column(values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values)
        if all(map(_is_same, array.to_pylist(), values)):
            return array
    except (pa.ArrowException, OverflowError):  # several types within
        pass
    texts = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _is_same(value: Any, other: Any) -> bool:
    """Also in types and missing fields: Arrow makes 1 a 1.0, and fills fields with None."""
    return json.dumps(value) == json.dumps(other)


def json_text(value: Any) -> str | None:
    """Text and None as they are, whole numbers in decimal form, any other value as JSON."""
    if value is None or isinstance(value, str):
        return value
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return json.dumps(int(value) if is_whole else value)


_TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}

_READERS: dict[str, Callable[[Path, set[str] | None], Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
}
