"""What works without the packages of the extras, and what says which one it needs."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mixdpo_pyro.errors import EXTRAS

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

LIGHT = [
    "--help",
    "env",
    "simulate -o world --num_annotators 4 --pairs_per_annotator 20",
    "simulate -o ranked --num_annotators 4 --pairs_per_annotator 10 --kind ranking:3",
    "diagnose world/margins.parquet -o diagnosis --num_samples 100",
    "check world/margins.parquet diagnosis/posterior.nc --num_replications 50",
    "reliability world/margins.parquet",
    "judges votes.csv --left a --right b --winner winner --judge judge",
    "power --pairs 40 --annotators 4 --simulations 2",
    "export diagnosis --weights -o weights",
]
"""What is for those who only diagnose, each after those whose results it reads."""

HEAVY = {
    "train --dataset_name world/pairs.parquet --model_name_or_path m -o run": "mixdpo train",
    "demo -o demo": "mixdpo demo",
    "init --dataset_name world/pairs.parquet -o model": "mixdpo init",
    "doctor world/pairs.parquet": "mixdpo doctor",
    "margins m r world/pairs.parquet -o m.parquet": "mixdpo margins",
    "sweep --config sweep.yaml -o sweep": "mixdpo sweep",
}

PREAMBLE = f"""
import json
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def find_others(name, path=None, target=None):
    refused = {sorted(sum(EXTRAS.values(), ()))!r}
    return None if name.partition(".")[0] in refused else find_spec(name, path, target)

PathFinder.find_spec = staticmethod(find_others)
"""
"""No package of an extra is found, as where it is not installed."""


def run_without_extras(code, folder):
    """Standard output of Python without the packages of the extras, and its standard error."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Command -> its exit status and what it wrote on standard error; all in one process."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "votes.csv").write_text("a,b,winner,judge\n" + "x,y,x,j\nx,y,y,k\ny,x,y,k\n" * 20)
    (folder / "sweep.yaml").write_text(
        "base: {dataset_name: world/pairs.parquet, model_name_or_path: m}\narms: [dpo]\n"
    )
    code = f"""
import contextlib, io
from mixdpo_pyro.cli.main import main
found = {{}}
for line in {[*LIGHT, *HEAVY]!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as e:
        status = main(line.split())
    found[line] = status, e.getvalue()
print(json.dumps(found))
"""
    return json.loads(run_without_extras(code, folder)[0].splitlines()[-1])


@pytest.mark.parametrize("line", LIGHT)
def test_diagnosing_needs_no_extra(outcomes, line):
    status, error = outcomes[line]
    assert status == 0, error


@pytest.mark.parametrize("line", HEAVY)
def test_training_says_what_to_install(outcomes, line):
    status, error = outcomes[line]
    assert status == 1
    (sentence,) = error.splitlines()[-1:]
    package = next(name for name in EXTRAS["train"] if f" needs {name}, " in sentence)
    assert sentence == (
        f"mixdpo: error: {HEAVY[line]} needs {package}, which is not installed: "
        "pip install 'mixdpo-pyro[train]'"
    )


def test_names_of_the_package_say_what_to_install(tmp_path):
    code = """
import mixdpo_pyro
found = {}
for name in mixdpo_pyro.__all__:
    try:
        getattr(mixdpo_pyro, name)
    except ImportError as error:
        found[name] = f"{type(error).__name__}: {error}"
import mixdpo_pyro.diagnosis.diagnosing, mixdpo_pyro.reporting.comparison
import mixdpo_pyro.reporting.run_report, mixdpo_pyro.winrates.rates
print(json.dumps(found))
"""
    found = json.loads(run_without_extras(code, tmp_path)[0])
    assert set(found) == {
        "DPOStrengthMixin", "MixDPOConfig", "MixDPOTrainer", "StrengthMixin", "load_preferences",
    }  # fmt: skip
    for name, sentence in found.items():
        assert sentence.startswith(f"MissingPackageError: mixdpo_pyro.{name} needs ")
        assert sentence.endswith(", which is not installed: pip install 'mixdpo-pyro[train]'")


def test_extras_name_what_they_install():
    """And what comes with transformers: huggingface_hub."""
    for extra, modules in EXTRAS.items():
        named = map(Requirement, PROJECT["optional-dependencies"][extra])
        packages = {r.name.replace("-", "_") for r in named} - {"matplotlib"}
        assert set(modules) - {"huggingface_hub"} == packages
    base = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert not base & set(EXTRAS["train"])


def test_all_is_what_a_user_can_run_and_tests_need_all():
    extras = PROJECT["optional-dependencies"]
    (everything,) = (Requirement(line) for line in extras["all"])
    assert everything.extras == set(EXTRAS)
    assert "mixdpo-pyro[all]" in extras["test"]
