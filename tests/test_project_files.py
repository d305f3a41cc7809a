"""Files beside the code agree with each other: CI, hooks, workflows, versions, citation."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CI = (ROOT / ".ci" / "run").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(*parts):
    return yaml.safe_load(ROOT.joinpath(*parts).read_text())


def requirements(*extras):
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    found = []
    while lines:
        each = Requirement(lines.pop())
        if each.name != PROJECT["name"]:
            found.append(each)
        for extra in each.extras if each.name == PROJECT["name"] else ():
            lines += PROJECT["optional-dependencies"][extra]
    return found


def workflow_commands():
    """Every line that a workflow runs."""
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            yield from (step["run"] for step in job.get("steps", []) if "run" in step)


def test_hooks_run_what_ci_runs():
    hooks = load(".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]
    for hook in hooks:
        assert f".venv/bin/{hook['entry']}\n" in CI


def test_workflows_lint_test_and_document_as_ci_does():
    commands = "\n".join(workflow_commands())
    for words in ("pre-commit run --all-files", "pytest -m slow", "sphinx-build -W", "--doctest"):
        assert words in commands
    assert "sphinx-build -q -W" in CI and "--doctest-modules" in CI
    jobs = load(".github", "workflows", "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert any("--cov" in job.get("pytest", "") for job in jobs)


def test_the_matrix_starts_at_the_lower_bounds():
    matrix = load(".github", "workflows", "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]
    jobs = {job["versions"]: job for job in matrix["include"]}
    assert list(jobs) == ["oldest", "pinned", "newest"]
    bounds = {r.name: r.specifier for r in requirements("train")}
    oldest = dict(word.split("==") for word in jobs["oldest"]["install"].split())
    assert set(oldest) == {"torch", "trl"}
    for name, version in oldest.items():
        (bound,) = (spec.version for spec in bounds[name] if spec.operator == ">=")
        assert Version(version) == Version(bound)
    pythons = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python ::" in line}
    assert {job["python"] for job in jobs.values()} <= pythons


def test_constraints_pin_what_ci_installs_within_the_bounds():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = dict(line.lower().split("==") for line in lines if "==" in line)
    for requirement in requirements("test", "docs"):
        version = versions.get(requirement.name.lower())
        assert version is not None and requirement.specifier.contains(version), requirement


def test_the_source_distribution_takes_all_that_is_no_package():
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    grafted = {line.split()[1] for line in lines if line.startswith("graft ")}
    assert grafted == {
        "tests", "docs", "examples", "notebooks", "benchmarks", ".ci", ".github",
    }  # fmt: skip
    assert all((ROOT / name).is_dir() for name in grafted)


def test_citation_has_the_version_and_the_paper():
    citation = load("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert paper["title"] in (ROOT / "README.md").read_text().replace("\n", " ")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_only_read(path):
    """Publishing has a permission of its own, and no workflow holds a token."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text()
    allowed = {name: job.get("permissions") for name, job in workflow["jobs"].items()}
    expected = {"id-token": "write"} if path.stem == "release" else None
    assert allowed.pop("publish", None) == expected
    assert set(allowed.values()) <= {None}


def test_release_tests_both_files_before_it_publishes():
    jobs = load(".github", "workflows", "release.yml")["jobs"]
    assert set(jobs["publish"]["needs"]) == {"checks", "test-the-files"}
    assert jobs["test-the-files"]["strategy"]["matrix"]["file"] == ["*.whl", "*.tar.gz"]
