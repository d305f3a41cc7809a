"""The package list, the direction of imports, and how light the package is to import."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mixdpo_pyro

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "models": ROOT / "models",
    "inference": ROOT / "inference",
    "application": ROOT / "mixdpo_pyro",
}
MAY_IMPORT = {
    "models": {"models"},
    "inference": {"models", "inference"},
    "application": {"models", "inference", "application"},
}


def python_files(folder):
    """Modules of one room; the links to the other rooms are not followed."""
    return [p for p in sorted(folder.rglob("*.py")) if not p.parent.is_symlink()]


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module):
    """Room of a module; `from mixdpo_pyro import x` names the root first, which is no room."""
    parts = module.split(".")
    if parts[0] != "mixdpo_pyro" or len(parts) == 1:
        return None
    return parts[1] if parts[1] in ("models", "inference") else "application"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    files = python_files(ROOMS[room])
    assert files
    for path in files:
        for module in imported_modules(path):
            if room_of(module) is not None:
                assert room_of(module) in MAY_IMPORT[room], f"{path} imports {module}"


@pytest.mark.parametrize(
    "statement", ["import mixdpo_pyro.trainer", "from mixdpo_pyro import trainer"]
)
def test_a_step_back_is_seen(tmp_path, statement):
    path = tmp_path / "wrong.py"
    path.write_text(statement)
    rooms = {room_of(module) for module in imported_modules(path)}
    assert "application" in rooms


def test_models_needs_torch_and_pyro_only():
    allowed = {"torch", "pyro", "jaxtyping", "mixdpo_pyro", *sys.stdlib_module_names}
    for path in python_files(ROOMS["models"]):
        roots = {module.split(".")[0] for module in imported_modules(path)}
        assert roots <= allowed, f"{path} imports {roots - allowed}"


def test_every_folder_with_modules_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        path.parent
        for folder in ROOMS.values()
        for path in folder.rglob("*.py")
        if "__pycache__" not in path.parts
    }
    folders = {f for f in folders if not f.is_symlink()}
    packaged = {ROOT / settings["package-dir"][name] for name in settings["packages"]}
    assert folders == packaged


def test_rooms_can_be_seen_inside_the_package():
    for name in ("models", "inference"):
        assert (ROOT / "mixdpo_pyro" / name).resolve() == ROOT / name


def test_import_is_light():
    code = (
        "import sys, mixdpo_pyro, mixdpo_pyro.cli;"
        "print([m for m in ('torch', 'pyro', 'trl', 'transformers', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_lazy_names_resolve_and_unknown_ones_raise():
    for name in mixdpo_pyro.__all__:
        assert getattr(mixdpo_pyro, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mixdpo_pyro.no_such_name
    assert set(mixdpo_pyro._MODULES) == set(mixdpo_pyro.__all__)
