import gzip
import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from mixdpo_pyro.cli.main import main
from mixdpo_pyro.diagnosis.diagnosing import DiagnoseConfig, diagnose_margins, diagnosis_lines
from mixdpo_pyro.diagnosis.tables import annotator_table, differences_table
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.inference import Posterior
from mixdpo_pyro.margins.table import read_margins


def choices(num_people=40, each=20, cv=0.8, seed=0):
    """Margins of lognormal people, with a topic and numbers of tokens."""
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(np.log1p(cv**2))
    strength = rng.lognormal(-(sigma**2) / 2, sigma, num_people)
    person = np.repeat(np.arange(num_people), each)
    x = rng.normal(0, 3, len(person))
    margin = np.where(rng.random(len(x)) < expit(strength[person] * x), x, -x)
    return pd.DataFrame(
        {
            "margin": margin,
            "annotator": [f"p{k}" for k in person],
            "topic": rng.choice(["cats", "dogs"], len(x)),
            "chosen_tokens": rng.integers(5, 50, len(x)),
            "rejected_tokens": rng.integers(5, 50, len(x)),
        }
    )


def run_cli(capsys, *arguments):
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.strip()


def test_what_was_judged_and_wanted_is_read_from_columns(capsys, tmp_path):
    rng = np.random.default_rng(4)
    table = choices().assign(pair=[f"q{k % 400}" for k in range(800)], lists=rng.normal(size=800))
    table.drop(columns=["chosen_tokens", "rejected_tokens"]).to_csv(tmp_path / "m.csv")
    out = tmp_path / "out"
    status, _, error = run_cli(
        capsys, "diagnose", tmp_path / "m.csv", "-o", out, "--stratum", "topic", "--attribute",
        "lists", "--num_samples", 300,
    )  # fmt: skip
    assert (status, error) == (0, "")
    facts = json.loads((out / "diagnosis.json").read_text())
    checks = {c["name"]: c["sentence"] for c in facts["checks"]}
    assert (
        "800 choices on pairs that several people judged"
        in checks["an error of each pair's margin"]
    )
    assert "100% of the choices" in checks["what each person judged"]
    posterior = Posterior.load(out / "posterior.nc")
    assert list(posterior.parameters) == ["pair_error"] and posterior.strength.shape[0] == 300
    if facts["verdict"]["value"] == "heterogeneous":
        assert "lists" in checks["care and taste"]


def test_strength_goes_with_columns(capsys, tmp_path):
    table = choices()
    age = {name: 20 + k for k, name in enumerate(table["annotator"].unique())}
    table.assign(age=table["annotator"].map(age)).to_csv(tmp_path / "m.csv", index=False)
    out = tmp_path / "out"
    status, text, error = run_cli(
        capsys, "diagnose", tmp_path / "m.csv", "-o", out, "--strength", "topic + age",
        "--num_samples", 300,
    )  # fmt: skip
    assert (status, error) == (0, "")
    rows = pd.read_csv(out / "strength_effects.csv")
    assert rows["level"].tolist() == ["cats", "dogs", "per sd"]
    assert rows["p_adjusted"].between(0, 1).all() and (rows["p_value"] <= rows["p_adjusted"]).all()
    assert "topic, of choices: sd" in text and "age, of annotators: sd" in text
    assert "of the variance of log strength: topic" in text
    facts = json.loads((out / "diagnosis.json").read_text())
    assert [c["column"] for c in facts["effects"]["columns"]] == ["topic", "age"]
    assert facts["effects"]["columns"][1]["centre"] == pytest.approx(39.5)
    page = (out / "report.html").read_text()
    assert "For whom, and on what" in page and "In what people differ" in page


def test_parts_of_the_differences_are_told_apart(tmp_path):
    choices().to_csv(tmp_path / "m.csv", index=False)
    diagnosis, _ = diagnose_margins(tmp_path / "m.csv", DiagnoseConfig(num_samples=200))
    table = differences_table(diagnosis).set_index("part")
    assert table.index.tolist() == ["strength", "taste: length", "care", "errors of the margins"]
    assert table["share"].drop("care").between(0, 1).all() and table["share"].sum() < 1
    assert table.loc["strength", "q05"] < table.loc["strength", "value"]
    assert 0 <= table.loc["care", "value"] < 0.1


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("topic*age", "strength: expected columns joined with + and nothing else"),
        ("topic +", "strength: expected columns joined with + and nothing else"),
        ("topic + topic", "strength: expected each column once, got 'topic' twice"),
        ("topik", "column 'topik' is missing; it has margin, annotator, topic"),
        ("margin", "column 'margin' is no column that strengths may go with"),
        ("annotator", "column 'annotator' holds the annotators"),
        ("age", "row 3 has 'old' in column 'age', expected a finite number (1 of 800 rows"),
        ("one", "Expected several levels in column 'one', got 'a' only"),
    ],
)
def test_columns_of_strength_that_cannot_be_used_are_named(capsys, tmp_path, formula, message):
    table = choices().assign(one="a", age=30)
    set_cell(table, 3, "age", "old").to_csv(tmp_path / "m.csv", index=False)
    status, out, error = run_cli(capsys, "diagnose", tmp_path / "m.csv", "--strength", formula)
    assert status in (1, 2) and out == ""
    assert message in error and "\n" not in error


def test_an_attribute_that_is_no_number_is_named(tmp_path):
    table = choices().assign(tone="mild")
    table.to_csv(tmp_path / "m.csv")
    with pytest.raises(DataError, match="row 0 has 'mild' in column 'tone', expected a finite"):
        diagnose_margins(tmp_path / "m.csv", DiagnoseConfig(attribute=["tone"]))


def test_diagnose_writes_everything(capsys, tmp_path):
    import xarray as xr

    table = choices()
    table.to_parquet(tmp_path / "m.parquet")
    noise = np.random.default_rng(1).normal(0, 1, len(table))
    table.assign(margin=table["margin"] + noise).to_csv(tmp_path / "second.csv", index=False)
    out = tmp_path / "out"
    status, text, error = run_cli(
        capsys, "diagnose", tmp_path / "m.parquet", "-o", out, "--group", "topic",
        "--second", tmp_path / "second.csv", "--num_samples", 300,
        "--show_annotators", "p7", "p30",
    )  # fmt: skip
    assert (status, error) == (0, "")
    assert text.startswith("heterogeneous: ")
    facts = json.loads((out / "diagnosis.json").read_text())
    assert facts["verdict"]["value"] == "heterogeneous"
    assert facts["data"]["annotators"] == 40 and facts["data"]["pairs"] == 800
    assert {c["name"] for c in facts["checks"]} >= {"length", "label noise", "the prior"}
    people = pd.read_csv(out / "annotators.csv")
    assert len(people) == 40 and people["mean"].is_monotonic_decreasing
    assert people["pairs"].sum() == 800 and people["shrinkage"].between(0, 1).all()
    assert people[["lapse_rate", "p_careless"]].stack().between(0, 1).all()
    groups = pd.read_csv(out / "groups.csv")
    assert groups["group"].tolist() in (["cats", "dogs"], ["dogs", "cats"])
    assert groups["annotators"].tolist() == [40, 40]
    with xr.open_datatree(out / "posterior.nc", engine="h5netcdf") as tree:
        assert tree["posterior"].sizes["annotator"] == 40
    page = (out / "report.html").read_text()
    assert page.index("heterogeneous") < page.index("What the answer rests on")
    assert page.count("<img") == page.count('alt="') == 5
    rows = page.split("<h2>Annotators</h2>")[1]
    named = [name for name in people["annotator"] if f">{name}</td>" in rows.split("</table>")[0]]
    assert sorted(named) == ["p30", "p7"]
    assert "2 of 40 annotators, those that were named" in page
    assert "http" not in page.replace("http-equiv", "")
    status, _, error = run_cli(capsys, "diagnose", tmp_path / "m.parquet", "-o", out)
    assert status == 1 and "--overwrite" in error


def test_annotators_of_the_table_are_those_of_the_truth(tmp_path):
    """Strong people stand above weak ones; intervals cover 90%, and 60% at the very least."""
    from mixdpo_pyro.diagnosis.tables import annotator_table

    rng = np.random.default_rng(0)
    strength = np.repeat([0.2, 1.8], 30)
    person, x = np.repeat(np.arange(60), 40), rng.normal(0, 2, 2_400)
    margin = np.where(rng.random(2_400) < expit(strength[person] * x), x, -x)
    path = tmp_path / "m.csv"
    pd.DataFrame({"margin": margin, "annotator": person}).to_csv(path, index=False)
    diagnosis, _ = diagnose_margins(path, DiagnoseConfig(num_samples=300))
    table = annotator_table(diagnosis).set_index("annotator")
    truth = strength[table.index.astype(int)]
    assert np.corrcoef(truth, table["mean"])[0, 1] > 0.85
    assert ((table["q05"] <= truth) & (truth <= table["q95"])).mean() > 0.6
    assert truth[:25].mean() > 1.6 and truth[-25:].mean() < 0.4


def test_annotators_who_answer_at_random_are_careless(tmp_path):
    table = choices(cv=0.2)
    coin = np.random.default_rng(2).choice([-1, 1], len(table))
    at_random = table["annotator"].isin(["p0", "p1", "p2"])
    table["margin"] = np.where(at_random, coin, 1) * table["margin"]
    table.to_csv(tmp_path / "m.csv", index=False)
    diagnosis, _ = diagnose_margins(tmp_path / "m.csv", DiagnoseConfig(num_samples=200))
    people = annotator_table(diagnosis).set_index("annotator")
    first = people.loc[["p0", "p1", "p2"]]
    others = people.drop(first.index)
    assert first["p_careless"].mean() > 0.6 and others["p_careless"].mean() < 0.1
    assert first["lapse_rate"].min() > 2 * others["lapse_rate"].mean()


def test_without_ids_the_summary_says_so(tmp_path):
    table = choices(num_people=100, each=1)
    table[["margin"]].to_json(tmp_path / "m.jsonl.gz", orient="records", lines=True)
    diagnosis, data = diagnose_margins(tmp_path / "m.jsonl.gz", DiagnoseConfig(num_samples=200))
    text = "\n".join(diagnosis_lines(diagnosis, data))
    assert text.startswith("inconclusive: ")
    assert "no annotator ids" in text
    assert "give annotator ids" in text


def test_choices_that_all_agree_are_fine_and_explained(tmp_path):
    table = choices()
    table["margin"] = table["margin"].abs() + 0.01
    table.to_csv(tmp_path / "m.csv", index=False)
    diagnosis, data = diagnose_margins(tmp_path / "m.csv", DiagnoseConfig(num_samples=200))
    assert diagnosis.verdict.value == "inconclusive"
    assert any("no upper bound" in line for line in diagnosis_lines(diagnosis, data))


def test_margins_are_computed_from_log_probabilities(tmp_path):
    table = choices()
    rng = np.random.default_rng(0)
    names = ["policy_chosen_logps", "reference_chosen_logps", "policy_rejected_logps",
             "reference_rejected_logps"]  # fmt: skip
    for name in names[1:]:
        table[name] = rng.normal(-50, 5, len(table))
    table[names[0]] = table["margin"] + table[names[1]] + table[names[2]] - table[names[3]]
    table.drop(columns="margin").to_parquet(tmp_path / "m.parquet")
    data = read_margins(tmp_path / "m.parquet")
    assert data.margin == pytest.approx(table["margin"].to_numpy())
    chosen = (table[names[0]] - table[names[1]]) / table["chosen_tokens"]
    rejected = (table[names[2]] - table[names[3]]) / table["rejected_tokens"]
    assert data.normalised == pytest.approx((chosen - rejected).to_numpy())
    table.assign(margin=-table["margin"]).to_parquet(tmp_path / "swapped.parquet")
    with pytest.raises(DataError, match=r"swapped.parquet: row 0 has margin .* rows differ"):
        read_margins(tmp_path / "swapped.parquet")


def broken(change):
    def write(folder):
        path = folder / "m.csv"
        change(choices()).to_csv(path, index=False)
        return path

    return write


def set_cell(table, row, column, value):
    table = table.astype({column: object})
    table.loc[row, column] = value
    return table


BROKEN = {
    "nan": (
        broken(lambda t: set_cell(t, 17, "margin", np.nan)),
        "row 17 has nothing in column 'margin'",
    ),
    "text": (broken(lambda t: set_cell(t, 3, "margin", "high")), r"row 3 has 'high' in column"),
    "missing column": (broken(lambda t: t.drop(columns="margin")), "column 'margin' is missing"),
    "missing id": (
        broken(lambda t: set_cell(t, 5, "annotator", None)),
        "row 5 has nothing in col",
    ),
    "one annotator": (broken(lambda t: t.assign(annotator="ann")), r"one annotator only \(ann\)"),
    "zeros": (broken(lambda t: t.assign(margin=0.0)), "all 800 margins are 0"),
    "no tokens": (
        broken(lambda t: set_cell(t, 9, "chosen_tokens", -3)),
        "row 9 has '-3' in column 'chosen_tokens', expected 0 or more",
    ),
    "empty": (broken(lambda t: t.head(0)), "there are no rows"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_margins_are_named_by_row_and_column(capsys, tmp_path, case):
    write, message = BROKEN[case]
    path = write(tmp_path)
    with pytest.raises(DataError, match=message):
        diagnose_margins(path)
    status, out, error = run_cli(capsys, "diagnose", path)
    assert (status, out) == (1, "")
    assert error.startswith(f"mixdpo: error: {path}: ") and error.count("\n") == 0


def cut(path, target):
    target.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return target


def test_a_file_cut_in_half_is_named(tmp_path):
    table = choices()
    table.to_parquet(tmp_path / "m.parquet")
    table.to_json(tmp_path / "m.jsonl", orient="records", lines=True)
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress((tmp_path / "m.jsonl").read_bytes()))
    for name in ("m.parquet", "m.jsonl", "m.jsonl.gz"):
        path = cut(tmp_path / name, tmp_path / f"half-{name}")
        with pytest.raises(DataError, match=f"half-{name}: cannot be read as"):
            read_margins(path)


def test_wrong_files_and_options_are_one_line(capsys, tmp_path):
    table = choices()
    path = tmp_path / "m.csv"
    table.to_csv(path, index=False)
    (tmp_path / "m.txt").write_text("margin\n1\n")
    table.head(30).to_csv(tmp_path / "short.csv", index=False)
    for arguments, message in (
        ((tmp_path / "none.csv",), "no such file"),
        ((tmp_path / "m.txt",), "ends in one of .parquet"),
        ((path, "--annotator", "worker"), "column 'worker' is missing; it has margin"),
        ((path, "--second", tmp_path / "short.csv"), "has 30 rows, but"),
        ((path, "--num_samples", 5), "num_samples: expected at least 100"),
        ((path, "--family", "weibull"), "invalid choice: 'weibull'"),
        ((path, "--show_annotators", "p1"), "show_annotators: needs --output_dir"),
        (
            (path, "--show_annotators", "p1", "ann", "-o", tmp_path / "out"),
            "show_annotators: 'ann' is no annotator of 40, such as 'p0'",
        ),
    ):
        status, _, error = run_cli(capsys, "diagnose", *arguments)
        assert status in (1, 2) and message in error and "\n" not in error
    with pytest.raises(ConfigError, match="beta: expected a finite value > 0"):
        DiagnoseConfig(beta=-1.0)


def test_a_second_file_of_other_people_is_refused(tmp_path):
    table = choices()
    table.to_csv(tmp_path / "m.csv", index=False)
    table.iloc[::-1].to_csv(tmp_path / "reversed.csv", index=False)
    config = DiagnoseConfig(second=str(tmp_path / "reversed.csv"))
    with pytest.raises(DataError, match="row 0 is by another annotator"):
        diagnose_margins(tmp_path / "m.csv", config)


@pytest.mark.parametrize(("value", "verdict"), [(-1e9, "heterogeneous"), (1e4, "heterogeneous")])
def test_one_margin_does_not_decide_and_is_named(tmp_path, value, verdict):
    table = choices()
    table.loc[7, "margin"] = value
    table.to_parquet(tmp_path / "m.parquet")
    diagnosis, data = diagnose_margins(tmp_path / "m.parquet", DiagnoseConfig(num_samples=200))
    assert diagnosis.verdict.value == verdict
    notes = "\n".join(diagnosis_lines(diagnosis, data))
    assert (
        f"1 margin is more than 100 times the median size; row 7 has the largest, {value:.3g}"
        in notes
    )


def test_an_empty_response_is_not_counted_in_the_check_of_tokens_alone(tmp_path):
    table = choices()
    rng = np.random.default_rng(0)
    for name in ("reference_chosen_logps", "policy_rejected_logps", "reference_rejected_logps"):
        table[name] = rng.normal(-50, 5, len(table))
    table["policy_chosen_logps"] = (
        table["margin"] + table["reference_chosen_logps"] + table["policy_rejected_logps"]
        - table["reference_rejected_logps"]
    )  # fmt: skip
    table.loc[[3, 9], "chosen_tokens"] = 0
    table.to_parquet(tmp_path / "m.parquet")
    diagnosis, _ = diagnose_margins(tmp_path / "m.parquet", DiagnoseConfig(num_samples=200))
    assert diagnosis.choices.num_pairs == len(table)
    (check,) = [c for c in diagnosis.checks if c.name == "length normalisation"]
    assert check.status != "not checked"
    assert "2 pairs with an empty response, which has none, are dropped here" in check.sentence


def test_numbers_and_texts_give_equal_tables(tmp_path):
    tables = []
    for kind in (int, str, float):
        table = choices(num_people=12)
        person = table["annotator"].factorize()[0] + 1
        table["annotator"] = [kind(p) for p in person]
        table.to_parquet(tmp_path / "m.parquet")
        diagnosis, _ = diagnose_margins(tmp_path / "m.parquet", DiagnoseConfig(num_samples=200))
        tables.append(annotator_table(diagnosis))
    assert set(tables[0]["annotator"]) == {str(k) for k in range(1, 13)}
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])


def best_of_three(num_people=60, each=8):
    """Equal people who choose the best of three, every choice written as two pairs."""
    rng = np.random.default_rng(0)
    utility = rng.normal(0, 2, (num_people * each, 3))
    best = (utility + rng.gumbel(size=utility.shape)).argmax(1)
    rows = np.arange(len(utility))
    others = np.stack([(best + 1) % 3, (best + 2) % 3], 1)
    return pd.DataFrame(
        {
            "policy_chosen_logps": utility[rows, best].repeat(2),
            "reference_chosen_logps": 0.0,
            "policy_rejected_logps": np.take_along_axis(utility, others, 1).ravel(),
            "reference_rejected_logps": 0.0,
            "annotator": [f"p{k // each}" for k in rows.repeat(2)],
            "choice_set": [f"choice {k}" for k in rows.repeat(2)],
        }
    )


def test_choices_cut_into_pairs_get_no_answer_until_they_are_told(capsys, tmp_path):
    table = best_of_three()
    table.to_parquet(tmp_path / "told.parquet")
    table.drop(columns="choice_set").to_parquet(tmp_path / "cut.parquet")
    _, cut, _ = run_cli(capsys, "diagnose", tmp_path / "cut.parquet", "--num_samples", 200)
    assert cut.startswith("inconclusive: 960 of 960 rows share their annotator")
    _, told, _ = run_cli(capsys, "diagnose", tmp_path / "told.parquet", "--num_samples", 200)
    assert "480 choices among 3 responses, 60 annotators" in told
    assert not told.startswith("heterogeneous")


def test_a_margin_that_is_no_margin_leaves_cv_finite(tmp_path):
    """One of -1e9 among 1,200 decides cv; the report is written, and the row is named."""
    rng = np.random.default_rng(7)
    margin = rng.normal(1.0, 1.5, 1_200)
    margin[7] = -1e9
    pd.DataFrame({"margin": margin, "annotator": np.arange(1_200) % 40}).to_parquet(
        tmp_path / "m.parquet"
    )
    assert main(["diagnose", str(tmp_path / "m.parquet"), "-o", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert np.isfinite(facts["verdict"]["cv_interval"]).all()
    assert any("row 7 has the largest" in note for note in facts["notes"])


def test_what_the_policy_was_trained_on_does_not_count_and_is_told(tmp_path):
    table, config = choices(), DiagnoseConfig(num_samples=200)
    flags = np.arange(len(table)) % 3 == 0
    table[~flags].to_parquet(tmp_path / "held_out.parquet")
    fitted = table.assign(margin=np.where(flags, 5.0, table["margin"]), trained_on=flags)
    fitted.to_parquet(tmp_path / "m.parquet")
    alone, data = diagnose_margins(tmp_path / "held_out.parquet", config)
    both, marked = diagnose_margins(tmp_path / "m.parquet", config)
    assert both.verdict == alone.verdict
    question = "Was the policy trained on these very choices?"
    assert question in "\n".join(diagnosis_lines(alone, data))
    lines = "\n".join(diagnosis_lines(both, marked))
    assert f"{flags.sum():,} of {len(table):,} rows are left out" in lines
    assert question not in lines


def test_a_second_policy_needs_the_same_rows(tmp_path):
    table = choices().assign(trained_on=lambda t: np.arange(len(t)) == 2)
    table.to_csv(tmp_path / "m.csv", index=False)
    table.drop(columns="trained_on").to_csv(tmp_path / "n.csv", index=False)
    config = DiagnoseConfig(second=str(tmp_path / "n.csv"))
    with pytest.raises(DataError, match=r"n\.csv: the rows that are left out by column"):
        diagnose_margins(tmp_path / "m.csv", config)
    set_cell(table, 7, "annotator", "somebody").to_csv(tmp_path / "n.csv", index=False)
    with pytest.raises(DataError, match="row 7 is by another annotator"):
        diagnose_margins(tmp_path / "m.csv", config)
