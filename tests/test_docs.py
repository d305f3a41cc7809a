"""Every example of README and docs runs, as it is written, in a small world that has its names.

`documented_world.py` builds the files and variables that examples take for granted; a new example
finds its names there or adds them. Commands of `mixdpo` run in this process, with the options of
`SHORTER` behind their own; `OTHER_PROGRAMS` says what is checked of other programs.
"""

import contextlib
import importlib
import re
import shlex
import shutil
import tomllib
import zlib
from pathlib import Path

import documented_world
import pytest
from scenarios import TRAINING_MARKS

from mixdpo_pyro.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

SHORTER = {
    "train": (
        "--max_steps 2 --max_length 128 --test_fraction 0.3 --use_cpu true --save_strategy no "
        "--report_to none"
    ),
    "sweep": "--dry_run",
    "power": "--simulations 2 --pairs 120 --annotators 12",
    "winrate": "--max_prompts 3 --max_new_tokens 8",
}
"""Options that make a command of an example take seconds."""

MAKES_THE_WORLD = ["train", "--config", "run.yaml"]
"""README's first training, which runs once, before all examples: they find its results."""

pytestmark = TRAINING_MARKS


def blocks(*languages):
    """Every fenced example in these languages, named by its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.S | re.M):
            if block[1] in languages:
                line = text.count("\n", 0, block.start()) + 1
                found.append(pytest.param(block[2], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def commands(block):
    """The commands of a shell example, one after another, without comments and variables."""
    for line in block.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|", line):
            words = shlex.split(command, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words


@pytest.fixture(scope="session")
def world(tmp_path_factory, policy_folder):
    """The files that examples read, and the run under every name for a finished run."""
    folder = tmp_path_factory.mktemp("documented")
    documented_world.build_files(folder, policy_folder, [page.read_text() for page in PAGES])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*MAKES_THE_WORLD, *shlex.split(SHORTER["train"])]) == 0
    documented_world.copy_run(folder / "run", folder)
    return folder


@pytest.fixture
def example_folder(world, tmp_path, monkeypatch):
    """A copy of the world to work in."""
    folder = tmp_path / "world"
    shutil.copytree(world, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("block", blocks("python"))
def test_python_example_runs(block, example_folder):
    exec(compile(block, "example", "exec"), documented_world.build_names(example_folder))


@pytest.mark.parametrize("block", blocks("sh", "bash"))
def test_shell_example_runs(block, example_folder, capsys):
    for words in commands(block):
        run_command(words, capsys)


def run_command(words, capsys):
    """Run a command of this package in this process; look at the words of any other one."""
    program, *rest = words
    if program in ("torchrun", "accelerate"):  # how they launch is for test_distributed.py
        rest = rest[rest.index("mixdpo_pyro") + 1 :]
        run_mixdpo(rest, capsys)
    elif Path(program).name == "mixdpo":
        run_mixdpo(rest, capsys)
    else:
        OTHER_PROGRAMS[Path(program).name](rest)


def run_mixdpo(words, capsys):
    if words == MAKES_THE_WORLD:
        return
    command, *rest = words
    if command == "demo":  # runs in tests/workflows/test_demo.py
        check_options(command, rest, capsys)
        return
    if "-o" in rest:  # two examples may be alternatives that write one file
        output = Path(rest[rest.index("-o") + 1])
        if output.is_file():
            output.unlink()
    rest = [path for word in rest for path in expand(word)]
    assert main([command, *rest, *shlex.split(SHORTER.get(command, ""))]) == 0, words


def expand(word):
    """A pattern as the shell expands it."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def check_options(command, words, capsys):
    """Every option is in the command's help."""
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    shown = re.findall(r"--?[\w-]+", capsys.readouterr().out)
    for word in words:
        assert not word.startswith("-") or word.partition("=")[0] in shown, word


def check_pip(words):
    """What is installed is this project with extras that it has, at versions that it pins."""
    assert words[0] == "install"
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()
    for extra in re.findall(r"\.\[(.*?)\]", " ".join(words)):
        assert set(extra.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def check_files(words):
    """Files of the repository that another program reads are there."""
    for word in words:
        assert "/" not in word or (ROOT / word).exists(), word


def check_markers(words):
    """A marker that is selected is declared."""
    if "-m" in words:
        marker = words[words.index("-m") + 1].removeprefix("not ")
        declared = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
        assert marker in [line.partition(":")[0] for line in declared]


def check_dask(words):
    assert words[0] in ("scheduler", "worker")


def check_venv(words):
    assert words[:2] == ["-m", "venv"]


OTHER_PROGRAMS = {
    "python3.11": check_venv,
    "dask": check_dask,
    "pip": check_pip,
    "pytest": check_markers,
    **dict.fromkeys(("jupyter", "python", "sphinx-build", "pre-commit", "ruff"), check_files),
}
"""Programs of examples that are not run here; `.ci/run` runs the README's installation."""


def inline_code():
    """Code within sentences, by page."""
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
        for code in re.findall(r"`([^`]+)`", prose):
            yield page.name, " ".join(code.split())


@pytest.mark.parametrize(
    ("page", "code"), sorted({c for c in inline_code() if re.match(r"mixdpo \w+ .*--", c[1])})
)
def test_options_within_a_sentence_exist(page, code, capsys):
    _, command, *words = shlex.split(code)
    check_options(command, words, capsys)


@pytest.mark.parametrize(
    ("page", "code"), sorted({c for c in inline_code() if c[1].startswith("mixdpo_pyro.")})
)
def test_names_within_a_sentence_exist(page, code):
    """A dotted name, up to its arguments, is a module or something inside one."""
    parts = re.match(r"[\w.]+", code)[0].split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return
    pytest.fail(code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_page_is_in_the_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    parts = re.findall(r"```\{toctree\}\n:caption: .*?\n\n(.*?)```", index, re.S)
    listed = " ".join(parts).split()
    written = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert sorted(listed) == sorted([*written, "api/commands"])


def test_built_pages_describe_every_module():
    """After `sphinx-build docs docs/_build/html`, as `.ci/run` has it."""
    inventory = ROOT / "docs" / "_build" / "html" / "objects.inv"
    if not inventory.is_file():
        pytest.skip("the documentation is not built")
    from test_packaging import MODULES

    lines = zlib.decompress(inventory.read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    described = {line.split()[0] for line in lines if line.split()[1] == "py:module"}
    assert described == set(MODULES) - {"mixdpo_pyro.__main__"}
