"""Odd inputs, drawn from seeds, over commands and Python API, each with what may come of it.

A case ends in one of five ways: `taken` (and what came out is what went in, by an oracle that
shares no code with the package), `refused` (a planned error), `unplanned` (any other error),
`changed` (taken, but something else came out) and `hang`. The last three are faults.
"""

import contextlib
import copy
import csv
import gzip
import io
import json
import math
import random
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet

from mixdpo_pyro.cli.commands import COMMANDS
from mixdpo_pyro.cli.main import main
from mixdpo_pyro.errors import MixDPOError

FAULTS = ("unplanned", "changed", "hang")

ROWS = 14


class ChangedError(AssertionError):
    """What came out is not what went in."""


class RefusedError(Exception):
    """A command ended as planned, with a line of its own."""


class HangError(BaseException):
    """Beyond the limit; no handler of the code under test takes it for one of its errors."""


@dataclass(frozen=True)
class Case:
    """An input and what is done with it.

    Attributes:
        name: Kind and seed, enough to draw it again.
        run: Takes an empty folder; raises `ChangedError` where something else came out.
    """

    name: str
    run: Callable[[Path], Any]


def check(is_same: Any, what: str) -> None:
    if not bool(is_same):
        raise ChangedError(what)


def judge(case: Case, folder: Path, limit: float = 60) -> tuple[str, str]:
    """How a case ends, and the words of its error."""
    folder.mkdir(parents=True)
    try:
        with _time_limit(limit):
            case.run(folder)
    except HangError:
        return "hang", f"no end within {limit} s"
    except ChangedError as error:
        return "changed", str(error)
    except (MixDPOError, RefusedError) as error:
        return "refused", str(error)
    except (ValueError, TypeError) as error:  # the API's words begin with the rule
        return ("refused" if str(error).startswith("Expected ") else "unplanned"), repr(error)
    except Exception as error:
        return "unplanned", repr(error)
    return "taken", ""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise HangError

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


# What is written, and what must come out


GOOD_IDS = [
    "1", "01", "001", "1e3", "1000", "1.10", "1.1", "true", "True", "NA", "None", "null", "nan",
    "NaN", "a b", " 7", "7 ", "7", "-0", "0", "+1", "Zoë", "🙂", "\u0667", "x" * 1000, "#1", "'q'",
    '"', ",", "a,b", "a\nb", "\\frac", "$x$", "[red]", "<b>", "=1+1", "1_000", "0x10", "inf",
    "p1\tp2", "\u200b7",
]  # fmt: skip
BAD_IDS = ["", "  ", "\t", "a\0b", "x" * 1001]
GOOD_TYPED = [7, -3, 2**53, 10**30, 7.0, -2.0, "7", "07"]
BAD_TYPED = [None, math.nan, math.inf, 0.5, True, [1], {"a": 1}, 2.0**53, 1e300, "", "\ud800"]
BAD_MARGINS = [
    "",
    "abc",
    "nan",
    "inf",
    "-inf",
    "1e21",
    "1_000",
    "1,5",
    "--1",
    "0x1p3",
    "1e400",
    "None",
]
GOOD_MARGINS = ["1e-3", "+2", " 3 ", "-.5", "4.", "1E1", "007", "-0.0", "1e1", "123456789e-8"]


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else str(int(value))


def base_margins(rng: random.Random) -> list[float]:
    return [rng.gauss(0.5, 2.0) for _ in range(ROWS)]


def write_csv(path: Path, columns: dict[str, list]) -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_json(path: Path, columns: dict[str, list]) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")


def write_parquet(path: Path, columns: dict[str, list]) -> None:
    parquet.write_table(
        pa.table({name: pa.array(values) for name, values in columns.items()}), path
    )


def refuses(call: Callable[[], Any], words: str) -> None:
    """The call must raise, and its error is judged like any other."""
    found = call()
    raise ChangedError(f"taken, where an error about {words} was due: {found!r:.200}")


def read_one_table(rng: random.Random, folder: Path) -> None:
    """Margins and ids, good or with one bad cell, in one of five formats."""
    from mixdpo_pyro.margins.table import read_margins

    kind = rng.choice(["csv", "csv.gz", "jsonl", "json", "parquet"])
    is_text = kind.startswith("csv")
    good, bad = (GOOD_IDS, BAD_IDS) if is_text else (GOOD_IDS + GOOD_TYPED, BAD_IDS + BAD_TYPED)
    if kind == "parquet":  # a column has one type
        good, bad = rng.choice(
            [([7, -3, 2**53, 5], [None]), ([1.0, 2.0, -4.0], [None, 0.5]), (GOOD_IDS, BAD_IDS)]
        )
    ids = [*good[:2], *(rng.choice(good) for _ in range(ROWS - 2))]
    numbers = base_margins(rng)
    are_texts = is_text or kind == "json"
    margins: list[Any] = [repr(m) for m in numbers] if are_texts else list(numbers)
    k, spoil = rng.randrange(ROWS), rng.choice(["nothing", "nothing", "id", "margin"])
    if are_texts:
        margins[k] = rng.choice(GOOD_MARGINS)
        numbers[k] = float(margins[k])
    if spoil == "id":
        ids[k] = rng.choice(bad)
    if spoil == "margin":
        margins[k] = rng.choice(BAD_MARGINS if are_texts else [math.nan, 1e21, -math.inf])
    columns = {"margin": margins, "who": ids, "note": [rng.choice(GOOD_IDS) for _ in range(ROWS)]}
    writer = {"csv": write_csv, "csv.gz": write_csv, "parquet": write_parquet}.get(
        kind, write_json
    )
    path = folder / f"m.{kind}"
    writer(path, columns)
    if spoil != "nothing":
        refuses(lambda: read_margins(path, "who", ["note"]), spoil)
    data = read_margins(path, "who", ["note"])
    check(data.annotator is not None and data.annotator.tolist() == [*map(text_of, ids)], "ids")
    check(data.margin.tolist() == numbers, "margins")
    check(data.groups["note"].tolist() == columns["note"], "groups")


def read_one_column(rng: random.Random, folder: Path) -> None:
    """Ids and margins as lists, arrays, tensors and pandas columns."""
    from mixdpo_pyro.inference import read_choices

    margins = base_margins(rng)
    number = [rng.randrange(5) for _ in range(ROWS)]
    number[:2] = [0, 1]
    ids: Any
    form = rng.choice(["text", "mixed", "int64", "float", "torch", "pandas", "categories", "bad"])
    if form == "bad":
        ids = list(number)
        ids[rng.randrange(ROWS)] = rng.choice([v for v in BAD_TYPED if v != "\ud800"])
        forms = [list, lambda v: np.array(v, dtype=object), lambda v: pd.Series(v, dtype=object)]
        refuses(lambda: read_choices(margins, rng.choice(forms)(ids)), "an id")
    pools = {"text": GOOD_IDS, "mixed": GOOD_IDS + GOOD_TYPED}
    values: list[Any] = [rng.choice(pools[form]) for _ in range(ROWS)] if form in pools else number
    values[:2] = values[:2] if form not in pools else ["ann", "bob"]
    ids = {
        "int64": lambda: np.array(number, dtype=np.int64),
        "float": lambda: np.array(number, dtype=np.float32),
        "torch": lambda: torch.tensor(number),
        "pandas": lambda: pd.Series(number, dtype="Int64"),
        "categories": lambda: pd.Series([str(n) for n in number], dtype="category"),
    }.get(form, lambda: list(values))()
    wrap = rng.choice([list, np.array, torch.tensor, pd.Series])
    exact = [float(v) for v in (wrap(margins).tolist() if wrap is not list else margins)]
    choices = read_choices(wrap(margins), ids)
    check(choices.margin.tolist() == exact, "margins")
    found = [choices.labels[k] for k in choices.annotator]
    check(found == [*map(text_of, values)], f"ids of {form}")


def read_one_set(rng: random.Random, folder: Path) -> None:
    """Columns choice_set, rank, outcome and grade: as they are written, or refused."""
    from mixdpo_pyro.margins.table import read_margins

    kind = rng.choice(["best", "ranking", "outcome", "grade"])
    size = rng.randrange(2, 5)
    sets = [f"{s:02d}" for s in range(6) for _ in range(size)]
    number = len(sets)
    columns: dict[str, list] = {
        "margin": [rng.gauss(0.5, 2) for _ in sets],
        "annotator": [f"a{int(s) % 3}" for s in sets],
    }
    expected: list[Any] = []
    if kind in ("best", "ranking"):
        columns["choice_set"] = sets
        expected = sets
    if kind == "ranking":
        columns["rank"] = [2 + k % size for k in range(number)]
    if kind == "outcome":
        columns["outcome"] = expected = [rng.choice(["win", "tie", "loss"]) for _ in sets]
    if kind == "grade":
        columns["grade"] = expected = [rng.randrange(-3, 4) for _ in sets]
    spoilt = {
        "best": ("choice_set", ["", "   ", None, "x" * 1001]),
        "ranking": ("rank", [1, 0, -2, 2.5, "two", True, math.inf, "1"]),
        "outcome": ("outcome", ["won", "", "Tie", None, "1"]),
        "grade": ("grade", [0.5, "much", None, 51, -1000, math.nan, "1e9"]),
    }[kind]
    is_bad = rng.random() < 0.5
    if is_bad:
        column, pool = spoilt
        columns[column] = list(columns[column])
        columns[column][rng.randrange(number)] = rng.choice(pool)
    path = folder / f"m.{rng.choice(['csv', 'jsonl'])}"
    (write_csv if path.suffix == ".csv" else write_json)(path, columns)
    if is_bad:
        refuses(lambda: read_margins(path), spoilt[0])
    done = read_margins(path).done
    name = "choice_set" if kind in ("best", "ranking") else "outcome"
    check(done[name].tolist() == expected, kind)
    if kind == "ranking":
        check(done["rank"].tolist() == columns["rank"], "ranks")


def read_impossible_sets(rng: random.Random, folder: Path) -> None:
    """Sets of two annotators, ranks with gaps, judgements of three: refused by the API too."""
    from mixdpo_pyro.inference import read_choices

    margin = base_margins(rng)
    sets = [k // 2 for k in range(ROWS)]
    people = [s % 3 for s in sets]
    how = rng.choice(["annotators", "gap", "first", "length", "outcome", "grade", "missing"])
    options: dict[str, Any] = {"choice_set": sets}
    if how == "annotators":
        people[1] = people[0] + 1
    elif how in ("gap", "first"):
        options["rank"] = [2 + k % 2 for k in range(ROWS)]
        options["rank"][0] = 7 if how == "gap" else 1
    elif how == "length":
        options["choice_set"] = sets[:-1]
    elif how == "outcome":
        options["outcome"] = ["win"] * ROWS
    elif how == "grade":
        options = {"outcome": [0.5, *[1] * (ROWS - 1)]}
    else:
        options = {"choice_set": [None, *sets[1:]]}
    refuses(lambda: read_choices(margin, people, **options), how)


PROMPTS = ["Why?", "  spaces  ", "a\r\nb", "🙂", "$x$", "[bold]", "\x1b[31mred", "1", "true", ""]


def read_pairs(rng: random.Random, folder: Path) -> None:
    """Texts and ids of preference pairs; every row that is not dropped is as it was written."""
    from mixdpo_pyro.data.loading import load_preferences

    rows = [
        {
            "prompt": f"{rng.choice(PROMPTS)} {k}",
            "chosen": rng.choice(["yes", "01", "1e3", "NA", "no\nway", "ü", " x "]) + f"{k}",
            "rejected": rng.choice(["no", "1", "null", "-", "\t"]) + f" {k}",
            "annotator": rng.choice(GOOD_IDS),
            "extra": rng.choice(GOOD_IDS),
        }
        for k in range(ROWS)
    ]
    form = rng.choice(["text", "messages", "both"])
    if form == "messages":
        for row in rows:
            for role, name in {
                "prompt": "user",
                "chosen": "assistant",
                "rejected": "assistant",
            }.items():
                row[role] = [{"role": name, "content": row[role]}]
    spoil = rng.choice(["nothing", "nothing", "empty", "same", "none", "number", "id", "mixed"])
    k = rng.randrange(1, ROWS)
    change = {
        "nothing": {}, "empty": {"chosen": "" if form != "messages" else []},
        "same": {"rejected": copy.deepcopy(rows[k]["chosen"])}, "none": {"rejected": None},
        "number": {"chosen": 7}, "id": {"annotator": rng.choice(BAD_IDS)},
        "mixed": {"chosen": "x" if form == "messages" else [{"role": "user", "content": "x"}]},
    }[spoil]  # fmt: skip
    rows[k] = {**rows[k], **change}
    path = folder / "p.jsonl"
    write_json(path, {name: [row[name] for row in rows] for name in rows[0]})
    if spoil in ("none", "number", "id", "mixed"):
        refuses(lambda: load_preferences(str(path)), spoil)
    data = load_preferences(str(path))
    is_dropped = spoil in ("empty", "same")
    check(sum(data.dropped.values()) == is_dropped, "number of dropped rows")
    numbers = [number for number in range(ROWS) if not (is_dropped and number == k)]
    check(data.pairs["source_row"][:] == numbers, "rows")
    for found in data.pairs:
        for name in ("prompt", "chosen", "rejected", "annotator", "extra"):
            check(found[name] == rows[found["source_row"]][name], f"{name} of {found}")


def read_judged_pairs(rng: random.Random, folder: Path) -> None:
    """Pairs with what was done: sets, rankings, outcomes and grades, as written or refused."""
    from mixdpo_pyro.data.loading import load_preferences

    kind = rng.choice(["choice_set", "rank", "outcome", "grade"])
    size = 3 if kind in ("choice_set", "rank") else 1
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"q{k}",
            "chosen": f"best {k}",
            "rejected": f"other {k} {j}",
            "annotator": f"a{k % 3}",
        }
        for k in range(6)
        for j in range(size)
    ]
    draw: dict[str, Callable[[int], Any]] = {
        "choice_set": lambda row: GOOD_IDS[row // size],
        "rank": lambda row: 2 + row % size,
        "outcome": lambda row: rng.choice(["win", "tie", "loss"]),
        "grade": lambda row: rng.randrange(-3, 4),
    }
    names = ["choice_set", "rank"] if kind == "rank" else [kind]
    for number, row in enumerate(rows):
        row.update({name: draw[name](number) for name in names})
    written = {name: [row[name] for row in rows] for name in names}
    bad = {
        "choice_set": ["", None, GOOD_IDS[0], "x" * 1001], "rank": [1, 0, 2.5, "two", 9, True],
        "outcome": ["won", "", None, 1, "WIN"], "grade": [0.5, "much", None, 51, True, math.nan],
    }[kind]  # fmt: skip
    is_bad = rng.random() < 0.5
    if is_bad:  # the last row: another set's id, or a gap in the ranks, where the value is good
        rows[-1][kind] = rng.choice(bad)
    path = folder / "p.jsonl"
    write_json(path, {name: [row[name] for row in rows] for name in rows[0]})
    if is_bad:
        refuses(lambda: load_preferences(str(path)), kind)
    data = load_preferences(str(path))
    check(data.choice_columns == tuple(names), f"columns {data.choice_columns}")
    for name in names:
        check(data.pairs[name][:] == written[name], f"{name}: {data.pairs[name][:]}")


def likelihood(rng: random.Random, folder: Path) -> None:
    """Log-probabilities of both choices at any scale: at most 0; probabilities sum to 1."""
    from mixdpo_pyro.models import mixed_logit_log_prob

    size = rng.choice([0.0, 1e-300, 1e-8, 1.0, 50.0, 1e4, 1e8, 1e20, 1e300, math.inf, math.nan])
    margin = torch.tensor(
        [size, -size, 1.0, -1.0], dtype=rng.choice([torch.float64, torch.float32])
    )
    family = rng.choice(["lognormal", "gamma", "normal", "fixed"])
    mean = rng.choice(
        [0.1, 1.0, 3.0, 1e-3, 30.0, 1e-300, rng.choice([0.0, -1.0, math.nan, 1e300])]
    )
    cv = rng.choice([0.3, 1.0, 0.03, 2.9, 1e-6, 10.0, rng.choice([0.0, -0.5, math.inf, 1e300])])
    found = mixed_logit_log_prob(margin, torch.tensor(mean), torch.tensor(cv), family=family)
    shown = f"{family} {mean} {cv} {margin.tolist()} {found.tolist()}"
    check(found.isnan().equal(margin.isnan()), f"NaN: {shown}")
    known = found[~found.isnan()].double()
    check((known <= 1e-6).all(), f"above 0: {shown}")
    both = known.exp().reshape(-1, 2).sum(1)  # of a margin, and of its negative
    check(torch.allclose(both, torch.ones_like(both), atol=1e-5), f"sum to 1: {shown}")


def simulated(rng: random.Random, folder: Path) -> None:
    """Worlds of odd sizes and strengths: finite, with as many rows as were asked for."""
    from mixdpo_pyro import simulate_preferences

    annotators, each = rng.choice([1, 2, 7]), rng.choice([1, 3])
    mean, cv = rng.choice([1.0, 1e-90, 1e90]), rng.choice([0.0, 0.5, 1e-12, 50.0, 1e-300])
    family = rng.choice(["lognormal", "gamma"])
    spoil = rng.choice(["nothing", "nothing", "annotators", "each", "mean", "cv", "family"])
    annotators = rng.choice([0, -1, 10**9]) if spoil == "annotators" else annotators
    each = rng.choice([0, -7, 10**9]) if spoil == "each" else each
    mean = rng.choice([0.0, -1.0, 1e300, 1e-300, math.nan]) if spoil == "mean" else mean
    cv = rng.choice([-1.0, 1e300, math.inf, math.nan]) if spoil == "cv" else cv
    family = "cauchy" if spoil == "family" else family
    if spoil != "nothing":
        refuses(lambda: simulate_preferences(annotators, each, family, mean, cv), spoil)
    world = simulate_preferences(annotators, each, family, mean, cv)
    strengths = np.array(list(world.truth.strengths.values()))
    check(len(world.dataset) == annotators * each, "rows")
    check(np.isfinite(strengths).all() and (strengths >= 0).all(), f"strengths {mean} {cv}")


def diagnosed(rng: random.Random, folder: Path) -> None:
    """A short diagnosis: finite numbers, and the same whatever the order of the rows."""
    from mixdpo_pyro.inference import fit

    size = rng.choice([1e-6, 1.0, 30.0, 1e5])
    margin = [size * m for m in base_margins(rng)]
    odd = rng.choice(["nothing", "zeros", "agree", "contradict", "sentinel", "large"])
    if odd == "zeros":
        margin[: ROWS // 2] = [0.0] * (ROWS // 2)
    if odd in ("agree", "contradict"):
        margin = [abs(m) if odd == "agree" else -abs(m) for m in margin]
    if odd in ("sentinel", "large"):
        margin[3] = -1e9 if odd == "sentinel" else 1e4 * size
    ids = [f"p{k % 4}" for k in range(ROWS)]
    family = rng.choice(["lognormal", "gamma", "normal", "fixed"])
    found = fit(margin, annotator=ids, family=family, num_samples=50)
    for name in ("mean", "cv"):
        check(np.isfinite(getattr(found.posterior, name)).all(), f"{name}: {odd} {family} {size}")
    order = list(range(ROWS))
    rng.shuffle(order)
    again = fit([margin[k] for k in order], annotator=[ids[k] for k in order], family=family,
                num_samples=50)  # fmt: skip
    close = np.isclose(found.log_likelihood, again.log_likelihood, rtol=1e-5, atol=1e-5)
    check(close, f"order: {found.log_likelihood} {again.log_likelihood} {odd} {family} {size}")


def broken_file(rng: random.Random, folder: Path) -> None:
    """Files that were cut, or whose bytes were changed, through their readers."""
    from mixdpo_pyro.diagnosis.predictive_checks import read_posterior
    from mixdpo_pyro.inference import Posterior
    from mixdpo_pyro.margins.table import read_margins
    from mixdpo_pyro.training.learned_strength import Strength, StrengthConfig

    kind = rng.choice(["csv", "jsonl", "parquet", "nc", "safetensors", "strength.json"])
    draws = np.abs(np.random.default_rng(0).normal(1, 0.1, 20))
    if kind == "nc":
        path = folder / "p.nc"
        Posterior(mean=draws, cv=draws, family="lognormal", mean_anchor="fixed", beta=1.0,
                  flip_probability=0.0, method="laplace", seed=0).save(path)  # fmt: skip
    elif kind in ("safetensors", "strength.json"):
        Strength(StrengthConfig()).save(folder)
        path = folder / ("strength.safetensors" if kind == "safetensors" else kind)
    else:
        path = folder / f"m.{kind}"
        numbers = {
            "margin": [0.5 * k - 2 for k in range(ROWS)],
            "annotator": [f"a{k % 3}" for k in range(ROWS)],
        }
        {"csv": write_csv, "jsonl": write_json, "parquet": write_parquet}[kind](path, numbers)
    content = bytearray(path.read_bytes())
    how = rng.choice(["cut", "empty", "zeros", "noise", "text"])
    if how == "cut":
        content = content[: rng.randrange(len(content))]
    if how == "empty":
        content = bytearray()
    if how == "zeros":
        start = rng.randrange(len(content))
        content[start:] = bytes(len(content) - start)
    if how == "noise":
        content = bytearray(rng.randbytes(len(content)))
    if how == "text":
        content = bytearray(b'{"a": [1, 2\n')
    path.write_bytes(bytes(content))
    if kind == "nc":
        found = read_posterior(path)
        check(np.isfinite(found.mean).all() and len(found.mean) == len(draws), f"posterior, {how}")
    elif kind in ("safetensors", "strength.json"):
        summary = Strength.from_pretrained(folder).summary()
        check(all(map(math.isfinite, summary.values())), f"strength, {how}")
    else:
        data = read_margins(path)
        written = {(0.5 * k - 2, f"a{k % 3}") for k in range(ROWS)}
        # A file of lines that was cut between two of them is a shorter file.
        found = set(zip(data.margin.tolist(), data.annotator.tolist(), strict=True))
        last = {(data.margin.tolist()[-1], data.annotator.tolist()[-1])}
        check(found - last <= written, f"{kind}, {how}: {found - written}")


# Commands


ODD = [
    "", " ", "-1", "0", "1e309", "nan", "inf", "-inf", "1_000", "\u0663", "true", "[1]", "{",
    "../x", "~nobody/x", "x" * 5000, "[red]x[/red]", "\x1b[31m", "\ud800", "-", "--", "None",
    "1e-400", "9" * 400, "a\0b", "0x10", "1.5", "/dev/null", "/proc/self/mem", ".", "/",
    "m.csv", "p.csv", "$(x)", "%s", "{0}", "\n", "NAME.partial", "con", "*",
]  # fmt: skip

BASES: dict[str, list[str]] = {
    "doctor": ["p.csv"],
    "train": ["--dataset_name", "p.csv", "--model_name_or_path", "./none", "-o", "out"],
    "margins": ["./none", "./none", "p.csv", "-o", "out.parquet"],
    "sweep": ["--config", "s.yaml", "-o", "out", "--dry_run"],
    "compare": ["run"],
    "diagnose": ["few.csv"],
    "check": ["m.csv", "p.nc", "--num_replications", "50"],
    "reliability": ["m.csv", "--num_splits", "1", "--num_bootstrap", "100"],
    "rivals": ["m.csv", "--num_folds", "2"],
    "winrate": ["run", "--prompts", "p.csv", "--judge", "oracle", "-o", "out"],
    "export": ["run", "--weights", "-o", "out"],
    "judges": ["v.csv", "--left", "a", "--right", "b", "--winner", "w"],
    "power": ["--pairs", "20", "--annotators", "4", "--simulations", "1"],
    "init": ["few.csv", "-o", "out"],
    "simulate": ["-o", "out", "--num_annotators", "2", "--pairs_per_annotator", "2"],
    "report": ["run"],
    "env": [],
    "demo": ["-o", "out", "--num_annotators", "0"],
}
"""Words under which a command ends soon: it is refused late, or small."""


def _option_names(command: str) -> list[str]:
    config = COMMANDS[command].config
    if config is not None:
        return [field.name for field in fields(config)]
    from mixdpo_pyro.cli.training_options import read_training_options
    from mixdpo_pyro.workflows.run_config import RunConfig

    parts = (RunConfig, *read_training_options())
    return ["config", *(field.name for part in parts for field in fields(part))]


def _inputs(folder: Path) -> dict[str, bytes]:
    """Files that commands read, and one of the user's that none may touch."""
    write_csv(
        folder / "m.csv",
        {"margin": [0.5 * k - 2 for k in range(ROWS)], "annotator": ["a", "b"] * 7},
    )
    (folder / "v.csv").write_text("a,b,w,who\nx,y,left,1\ny,x,tie,2\nx,y,right,1\n")
    write_csv(folder / "p.csv", {"chosen": ["yes", "sure"], "rejected": ["no", "never"]})
    (folder / "s.yaml").write_text("base: {dataset_name: p.csv}\narms: [dpo]\n")
    (folder / "few.csv").write_text("margin\n")
    (folder / "p.nc").write_bytes(b"no posterior")
    (folder / "notes.txt").write_text("the user's")
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text("{}")
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def call(folder: Path, words: list[str]) -> tuple[int, str]:
    """Status and lines of a command that runs in a folder."""
    screen, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(screen),
        contextlib.redirect_stderr(errors),
    ):
        status = main(words)
    return status, errors.getvalue()


def command(rng: random.Random, folder: Path, names: tuple[str, ...] = ()) -> None:
    """A command with one or two odd words: one line on failure, and no input touched."""
    name = rng.choice(names or tuple(BASES))
    words = list(BASES[name])
    options = _option_names(name)
    for _ in range(rng.choice([1, 1, 2])):
        how = rng.choice(["option", "option", "option", "word", "drop", "swap", "flag"])
        if how == "option" and options:
            words += [f"--{rng.choice(options)}", rng.choice(ODD)]
        elif how == "word":
            words.insert(rng.randrange(len(words) + 1), rng.choice(ODD))
        elif how == "drop" and words:
            words.pop(rng.randrange(len(words)))
        elif how == "swap" and words:
            words[rng.randrange(len(words))] = rng.choice(ODD)
        elif options:
            words.append(f"--{rng.choice(options)}")
    words = [w for w in words if w not in ("--debug", "--help", "-h")]
    before = _inputs(folder)
    status, errors = call(folder, [name, *words])
    judge_command(folder, before, status, errors, [name, *words])


def judge_command(
    folder: Path, before: dict[str, bytes], status: int, errors: str, words: list[str]
) -> None:
    shown = " ".join(words)[:300]
    for path, content in before.items():
        check(
            (folder / path).is_file() and (folder / path).read_bytes() == content,
            f"{path}: {shown}",
        )
    last = errors.strip().splitlines()[-1] if errors.strip() else ""
    if "Traceback" in errors or "--debug shows where" in errors or status not in (0, 1, 2):
        raise RuntimeError(f"{shown}: status {status}, {errors[-500:]}")
    check(not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", last), f"steering text: {shown}")
    if status:
        check(last.startswith("mixdpo: error: "), f"{shown}: {last}")
        raise RefusedError(last)


# Whole commands on odd data


def odd_pairs(rng: random.Random, path: Path, number: int = 20) -> list[dict[str, Any]]:
    """Pairs of the simulated world whose ids, prompts and further columns are odd."""
    from scenarios import small_world

    pool = rng.sample(GOOD_IDS, 3)
    rows = []
    for k, row in enumerate(small_world().select(range(number)).to_list()):
        row |= {"annotator": pool[k % 3], "extra": rng.choice(GOOD_IDS)}
        row["prompt"] = f"{rng.choice(PROMPTS)} {row['prompt']}"
        del row["source_row"], row["reward_margin"]
        rows.append(row)
    write_json(path, {name: [row[name] for row in rows] for name in rows[0]})
    return rows


def succeed(folder: Path, words: list[str]) -> None:
    status, errors = call(folder, words)
    if "Traceback" in errors or "--debug shows where" in errors:
        raise RuntimeError(errors[-500:])
    check(status == 0, f"{' '.join(words)[:200]}: {errors[-500:]}")


def same_columns(table: pd.DataFrame, rows: list[dict[str, Any]]) -> None:
    """Ids and further columns of a table of margins are those of its rows in the source."""
    check(len(table) > 0, "no rows")
    for found in table.to_dict("records"):
        row = rows[found["source_row"]]
        for name in ("annotator", "extra"):
            check(found[name] == row[name], f"{name}: {found[name]!r} for {row[name]!r}")


def doctored(rng: random.Random, folder: Path) -> None:
    """`doctor` counts the pairs of every annotator."""
    rows = odd_pairs(rng, folder / "p.jsonl")
    succeed(folder, ["doctor", "p.jsonl", "--json", "d.json"])
    counts = json.loads((folder / "d.json").read_text(encoding="utf-8"))["annotators"]["most"]
    ids = [row["annotator"] for row in rows]
    check(counts == {name: ids.count(name) for name in set(ids)}, f"{counts}")


def diagnosed_file(rng: random.Random, folder: Path) -> None:
    """`diagnose` writes a row for every annotator, under the id in the file."""
    pool = rng.sample(GOOD_IDS, 4)
    ids = [pool[k % 4] for k in range(24)]
    margins = [rng.gauss(0.5, 2) for _ in ids]
    kind = rng.choice(["csv", "jsonl", "parquet"])
    writer = {"csv": write_csv, "jsonl": write_json, "parquet": write_parquet}[kind]
    writer(folder / f"m.{kind}", {"margin": margins, "who": ids})
    words = ["diagnose", f"m.{kind}", "--annotator", "who", "-o", "out", "--num_samples", "100"]
    succeed(folder, words)
    table = pd.read_csv(folder / "out" / "annotators.csv", dtype=str, keep_default_na=False)
    counts = dict(zip(table["annotator"], table["pairs"], strict=True))
    check(counts == dict.fromkeys(pool, "6"), f"{counts}")


def trained_run(rng: random.Random, folder: Path) -> None:
    """`margins` and `train` hand on ids and further columns, row by row."""
    from scenarios import build_policy_folder, small_world

    rows = odd_pairs(rng, folder / "p.jsonl")
    build_policy_folder(folder / "policy", small_world())
    if rng.random() < 0.5:
        succeed(folder, ["margins", "policy", "policy", "p.jsonl", "-o", "m.parquet"])
        same_columns(pd.read_parquet(folder / "m.parquet"), rows)
        return
    succeed(folder, [
        "train", "--dataset_name", "p.jsonl", "--model_name_or_path", "policy", "-o", "run",
        "--max_steps", "2", "--report_to", "none", "--use_cpu", "true", "--test_fraction", "0.5",
        "--save_strategy", "no", "--max_length", "160",
    ])  # fmt: skip
    same_columns(pd.read_parquet(folder / "run" / "margins.parquet"), rows)


LIGHT: dict[str, Callable[[random.Random, Path], None]] = {
    "table": read_one_table,
    "column": read_one_column,
    "set": read_one_set,
    "impossible set": read_impossible_sets,
    "pairs": read_pairs,
    "judged pairs": read_judged_pairs,
    "likelihood": likelihood,
    "world": simulated,
    "broken file": broken_file,
    "command": command,
    "doctor": doctored,
}

HEAVY = {"fit": diagnosed, "diagnose": diagnosed_file, "train": trained_run}


def draw_cases(counts: dict[str, int], first_seed: int = 0) -> list[Case]:
    """Cases of each kind, of the seeds from `first_seed` on."""
    kinds = {**LIGHT, **HEAVY}

    def bind(kind: str, seed: int) -> Callable[[Path], None]:
        return lambda folder: kinds[kind](random.Random(f"{kind} {seed}"), folder)

    return [
        Case(f"{kind} {seed}", bind(kind, seed))
        for kind, count in counts.items()
        for seed in range(first_seed, first_seed + count)
    ]
