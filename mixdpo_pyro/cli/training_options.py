"""The options of training, read from source: to refuse a misspelt one, torch is not imported."""

import ast
import builtins
import importlib.util
import typing
from collections.abc import Iterator
from dataclasses import field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

__all__ = ["read_training_options"]

_TRL_CLASSES = (
    ("transformers.training_args", "TrainingArguments"),
    ("trl.trainer.base_config", "_BaseConfig"),
    ("trl.trainer.dpo_config", "DPOConfig"),
)
"""Where the fields of `trl.DPOConfig` are declared, later classes over earlier ones."""

_OUR_CLASS = ("mixdpo_pyro.training.config", "MixDPOConfig")

_Part = tuple[str, Any, Any]
"""Key, type and field, as `make_dataclass` takes them."""


def read_training_options() -> tuple[type, type]:
    """Two dataclasses with the fields of `MixDPOConfig`: its own, and those of `trl.DPOConfig`.

    Names, types, helps and plain defaults are those of the class; its checks are absent. An
    enumeration of words is a `Literal` of them, and any other type that is neither built in nor a
    `Literal` is text, as it is on a command line. A release of TRL that declares its fields
    elsewhere costs the seconds of importing it.
    """
    try:
        theirs = {part[0]: part for place in _TRL_CLASSES for part in _declared_in(*place)}
        ours = {part[0]: part for part in _declared_in(*_OUR_CLASS)}
    except (OSError, LookupError):
        theirs, ours = _imported()
    own = [part for key, part in ours.items() if key not in theirs]
    others = [ours.get(key, part) for key, part in theirs.items()]
    return _as_dataclass(own, "the strength"), _as_dataclass(others, "training, by TRL")


def _as_dataclass(parts: list[_Part], title: str) -> type:
    return make_dataclass("Options", parts, namespace={"_argument_group_name": title})


def _part(key: str, kind: Any, default: Any, metadata: dict[str, Any]) -> _Part:
    short = {"aliases": ["-o"]} if key == "output_dir" else {}
    return key, kind, field(default=default, metadata={**metadata, **short})


def _imported() -> tuple[dict[str, _Part], dict[str, _Part]]:
    from trl import DPOConfig

    from mixdpo_pyro.training.config import MixDPOConfig

    found = []
    for config in (DPOConfig, MixDPOConfig):
        kinds = get_type_hints(config)
        parts = (
            _part(f.name, kinds[f.name], None, dict(f.metadata)) for f in fields(config) if f.init
        )
        found.append({part[0]: part for part in parts})
    return found[0], found[1]


def _declared_in(module: str, name: str) -> Iterator[_Part]:
    """The fields that the body of a class declares.

    Raises:
        OSError: If there is no such file.
        LookupError: If it holds no such class.
    """
    tree = _parse(module)
    package = module.rpartition(".")[0]
    found = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
    for node in found[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if not node.target.id.startswith("_"):
                yield _declared(node.target.id, node, tree, package)


def _declared(key: str, node: ast.AnnAssign, tree: ast.Module, package: str) -> _Part:
    arguments = {k.arg: k.value for k in getattr(node.value, "keywords", ())}
    metadata = arguments.get("metadata")
    texts: dict[str, Any] = {}
    if isinstance(metadata, ast.Dict):
        pairs = zip(metadata.keys, metadata.values, strict=True)
        texts = {_literal(name): _literal(value) for name, value in pairs}
    known = {name: value for name, value in texts.items() if value is not None}
    kind = _evaluate(node.annotation, tree, package)
    return _part(key, kind, _literal(arguments.get("default")), known)


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


class _Names(dict[str, Any]):
    """What the names of an annotation stand for; classes of other modules stand for text.

    Attributes:
        words: Enumerations that were asked for, as `Literal`s of their words.
    """

    def __init__(self, tree: ast.Module, package: str) -> None:
        super().__init__(vars(typing))
        self.tree = tree
        self.package = package
        self.words: list[Any] = []

    def __missing__(self, name: str) -> Any:
        if words := _find_words(name, self.tree, self.package):
            self.words.append(Literal[words])
            return self.words[-1]
        return getattr(builtins, name, None) or _find_alias(name, self.tree) or str


def _evaluate(annotation: ast.expr, tree: ast.Module, package: str = "") -> Any:
    names = _Names(tree, package)
    try:
        kind = eval(ast.unparse(annotation), {}, names)
    except TypeError:  # a class that stands for text has no brackets
        return str
    is_word_or_text = len(names.words) == 1 and {*get_args(kind)} == {names.words[0], str}
    return names.words[0] if is_word_or_text else kind


def _find_words(name: str, tree: ast.Module, package: str) -> tuple[str, ...]:
    """The words of an enumeration in a module, or in one beside it that NAME comes from."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            has_words = any(ast.unparse(base).endswith("Enum") for base in node.bases)
            values = [_literal(n.value) for n in node.body if isinstance(n, ast.Assign)]
            return tuple(v for v in values if isinstance(v, str)) if has_words else ()
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            if name in (alias.name for alias in node.names):
                return _find_words(name, _parse(f"{package}.{node.module}"), package)
    return ()


def _find_alias(name: str, tree: ast.Module) -> Any:
    """The value of `NAME = ...` in a module, or in the module of ours that NAME comes from."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if [ast.unparse(target) for target in targets] == [name]:
                return _evaluate(node.value, tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mixdpo_pyro"):
            if name in (alias.name for alias in node.names):
                return _find_alias(name, _parse(str(node.module)))
    return None


@cache
def _parse(module: str) -> ast.Module:
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)  # of a package: found, not imported
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"{package} is not a package")
    path = Path(spec.submodule_search_locations[0]).joinpath(*inner)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))
