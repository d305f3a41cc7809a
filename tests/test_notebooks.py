"""Every notebook runs, shortened, and is kept clean."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

MAX_BYTES = 200_000
"""Of a notebook with its outputs, so that a change of a figure stays a small difference."""


def check_beta_posterior(names):
    low, high = np.quantile(names["panel"].posterior.cv, [0.001, 0.999])
    assert low < names["cv"] < high
    assert names["correlation"] > 0.5


def check_posterior_predictive_checks(names):
    spread, replications, observed = (names[k] for k in ("spread", "replications", "observed"))
    assert spread(replications["one strength for all"]).max() < observed
    low, high = np.quantile(spread(replications["lognormal"]), [0.005, 0.995])
    assert low < observed < high


def check_svi_from_scratch(names):
    """Pyro's loss and ours differ by less than five standard errors."""
    pyro_loss, our_loss = np.array(names["pyro_loss"]), np.array(names["our_loss"])
    error = np.hypot(pyro_loss.std(), our_loss.std()) / np.sqrt(len(our_loss))
    assert abs(pyro_loss.mean() - our_loss.mean()) < 5 * error


def check_is_my_data_heterogeneous(names):
    assert names["diagnosis"].verdict.value == "heterogeneous"
    assert names["shuffled"].verdict.value != "heterogeneous"
    assert names["no_ids"].verdict.value != "heterogeneous"


def check_what_do_people_differ_in(names):
    """All four parts are at work: an answer that names one alone, or none, would be wrong."""
    found, truth, nuts = names["found"], names["truth"], names["nuts"]
    assert found.verdict.value == "heterogeneous"
    assert found.verdict.kind in ("strength", "undetermined")
    errors = next(c for c in found.checks if c.name == "an error of each pair's margin").numbers
    low, high = (errors[f"error over margin, {side}"] for side in ("5%", "95%"))
    assert low < truth["error_ratio"] < high
    shares = names["table"]["share"].dropna()
    assert (shares > 0).all() and shares.sum() < 1
    assert {"annotator", "pair", "attribute"} <= set(nuts.posterior.dims)


def check_which_distribution(names):
    """No family contains two groups; what assumes none holds the truth, and methods agree."""
    low, high = names["free"].cv_interval
    assert low < names["true_cv"] < high
    assert names["fits"]["lognormal"].posterior.interval("cv")[0] > names["true_cv"]
    by_method = names["side_by_side"]
    assert by_method["cv"].max() - by_method["cv"].min() < by_method.loc["laplace", "sd"]


def check_one_annotator(names):
    """The interval of a person, and the effects of a reason and of a coin, hold the truth."""
    low, high = np.quantile(names["draws"], [0.01, 0.99])
    assert low < names["truth"] < high
    adjusted = names["levels"].set_index("level")["p_adjusted"]
    assert max(adjusted["paid"], adjusted["volunteers"]) < 0.05 < adjusted["heads"]


def check_open_a_run(names):
    """What is read from the folder is what the world was made with, and weights are relative."""
    run, weights = names["run"], names["weights"]
    low, high = np.quantile(run.posterior.cv, [0.005, 0.995])
    assert low < run.record.truth.cv < high
    assert sorted(weights["annotator"]) == sorted(run.posterior.annotators)
    assert weights["weight"].mean() == pytest.approx(1, abs=0.2)
    assert len(names["health"].checks) == 13


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text())


def code(notebook):
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive:UserWarning")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_shortened_and_tells_the_truth(path, monkeypatch):
    """Seeds are fixed; what a notebook says about the simulated truth holds."""
    import matplotlib.pyplot as plt

    monkeypatch.setenv("CI", "true")
    for name in ("MIXDPO_MARGINS", "MIXDPO_RUN"):
        monkeypatch.delenv(name, raising=False)
    namespace = {}
    try:
        for source in code(json.loads(path.read_text())):
            exec(compile(source, "cell", "exec"), namespace)
        globals()[f"check_{path.stem}"](namespace)
    finally:
        plt.close("all")


def test_notebook_is_kept_clean(notebook):
    """Outputs are there, without errors, paths of a machine, or metadata of an editor."""
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            text = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
            assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert any(cell.get("outputs") for cell in notebook["cells"])
    assert [cell["id"] for cell in notebook["cells"]] == [
        f"cell-{k:02d}" for k in range(len(notebook["cells"]))
    ]


def test_notebook_was_run_from_the_top(notebook):
    """Cells were executed once, in order, and figures show as images."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell["outputs"]:
            data = output.get("data", {})
            is_figure = "".join(data.get("text/plain", "")).startswith("<Figure")
            assert ("image/png" in data) == is_figure


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small_and_listed(path):
    assert path.stat().st_size < MAX_BYTES
    assert f"{{doc}}`notebooks/{path.stem}`" in (ROOT / "docs" / "notebooks.md").read_text()


def test_notebook_is_half_prose(notebook):
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds.count("markdown") >= 0.4 * len(kinds)
