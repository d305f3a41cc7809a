"""The package list, the direction of imports, and how light the package is to import."""

import ast
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

import mixdpo_pyro

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("models", "inference", "mixdpo_pyro")
LAYERS = (
    "errors", "progress", "models", "inference", "config_fields", "io", "data", "margins",
    "winrates", "training", "reporting", "diagnosis", "workflows", "cli", "__main__",
)  # fmt: skip
"""What stands inside the package, in the order in which imports run: only to the left."""

MAX_ENTRIES = 14
"""Modules and folders that one folder may hold, about a dozen."""


def python_files(room):
    """Modules of one room; the links to the other rooms are not followed."""
    found = sorted((ROOT / room).rglob("*.py"))
    return [p for p in found if not any(parent.is_symlink() for parent in p.parents)]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "mixdpo_pyro" else ("mixdpo_pyro", *parts)
    return ".".join(parts).removesuffix(".__init__")


def imported_modules(path):
    """Every module that a file names in an import, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = {module_name(path): path for room in ROOMS for path in python_files(room)}
FACES = ("mixdpo_pyro", "mixdpo_pyro.models", "mixdpo_pyro.inference")
"""Packages whose `__init__` only hands names on."""


@cache
def arrows():
    """Pairs (module, module that it imports) within the package, except those of the faces."""
    return [
        (name, imported)
        for name, path in MODULES.items()
        for imported in set(imported_modules(path)) & set(MODULES)
        if name not in FACES and imported != "mixdpo_pyro"
    ]


def entry_arrows(folder):
    """Arrows between the entries (modules and folders) of one folder."""
    found = {}
    for name, imported in arrows():
        inside = [n.removeprefix(f"{folder}.") for n in (name, imported)]
        if inside == [name, imported] or inside[0] == name or inside[1] == imported:
            continue
        first, second = (n.split(".")[0] for n in inside)
        if first != second:
            found.setdefault(first, {}).setdefault(second, (name, imported))
    return found


def find_circle(graph):
    """Entries that import each other in a circle, or None."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return None


FOLDERS = sorted({name.rpartition(".")[0] for name in MODULES} - {""})


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_holds_a_circle(folder):
    """Neither between the files of a folder nor between its subfolders."""
    graph = entry_arrows(folder)
    assert find_circle(graph) is None, graph


def test_imports_run_one_way():
    for first, others in entry_arrows("mixdpo_pyro").items():
        for second, example in others.items():
            assert LAYERS.index(second) < LAYERS.index(first), example


def test_no_function_is_named_as_its_module():
    """`cli.main.main` apart, which is what a command's function is called."""
    for name, path in MODULES.items():
        nodes = ast.parse(path.read_text()).body
        functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        assert name.split(".")[-1] not in functions or name == "mixdpo_pyro.cli.main", name


def test_every_layer_is_named():
    entries = {n.split(".")[1] for n in MODULES if "." in n}
    assert entries == set(LAYERS)


@pytest.mark.parametrize(
    "statement",
    ["import mixdpo_pyro.training.trainer", "from mixdpo_pyro.training import trainer"],
)
def test_a_step_back_is_seen(tmp_path, statement):
    path = tmp_path / "wrong.py"
    path.write_text(statement)
    assert "mixdpo_pyro.training.trainer" in set(imported_modules(path))


def test_a_circle_is_seen():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert find_circle({"a": {"b", "c"}, "b": {"c"}}) is None


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_can_be_taken_in_at_a_glance(folder):
    inside = (n.removeprefix(f"{folder}.") for n in MODULES if n.startswith(f"{folder}."))
    assert len({name.split(".")[0] for name in inside} - {"__main__"}) <= MAX_ENTRIES


def test_models_needs_torch_and_pyro_only():
    allowed = {"torch", "pyro", "jaxtyping", "mixdpo_pyro", *sys.stdlib_module_names}
    for path in python_files("models"):
        roots = {module.split(".")[0] for module in imported_modules(path)}
        assert roots <= allowed, f"{path} imports {roots - allowed}"


def test_every_folder_with_modules_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in MODULES.values()}
    packaged = {ROOT / settings["package-dir"][name] for name in settings["packages"]}
    assert folders == packaged


def test_rooms_can_be_seen_inside_the_package():
    for name in ("models", "inference"):
        assert (ROOT / "mixdpo_pyro" / name).resolve() == ROOT / name


LIBRARIES = {"torch", "pyro", "trl", "transformers", "numpy", "pyarrow", "rich", "scipy", "pandas"}


@pytest.mark.parametrize(
    ("module", "loaded"),
    [("mixdpo_pyro", set()), ("mixdpo_pyro.cli.commands", set()),
     ("mixdpo_pyro.inference", {"torch", "pyro", "numpy", "scipy"})],
)  # fmt: skip
def test_import_is_light(module, loaded):
    code = f"import sys, {module}; print(*{LIBRARIES!r} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert set(result.stdout.split()) <= loaded


def test_lazy_names_resolve_and_unknown_ones_raise():
    for name in mixdpo_pyro.__all__:
        assert getattr(mixdpo_pyro, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mixdpo_pyro.no_such_name
    homes = mixdpo_pyro._HOMES.values()
    assert sorted(name for names in homes for name in names) == sorted(mixdpo_pyro.__all__)
    assert mixdpo_pyro.__version__ == version("mixdpo-pyro")
