"""Is a file on the disk whole, by cheap checks of headers and sizes; and is it the same?"""

import hashlib
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

__all__ = ["find_fault", "find_model_fault", "hash_files"]

_MODEL_FILES = (
    "config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json",
    "*.safetensors", "*.index.json",
)  # fmt: skip


def find_fault(path: Path) -> str | None:
    """What is wrong with a `.safetensors`, `.json` or torch file; None if nothing is.

    A file that was cut, or whose end was never written, is found without reading its tensors; a
    flipped bit in a tensor is not.
    """
    try:
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            with safe_open(path, "numpy"):
                pass
        elif path.suffix == ".json":
            _read_object(path)
        else:
            with zipfile.ZipFile(path):
                pass
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        where = f", {size:,} bytes" if path.exists() and path.suffix != ".json" else ""
        return f"{path}: is damaged ({reason}{where})"
    return None


def find_model_fault(folder: Path) -> str | None:
    """What is wrong with the configuration, tokenizer, weights or adapter in a local folder."""
    for path in sorted(path for name in _MODEL_FILES for path in folder.glob(name)):
        if fault := find_fault(path):
            return fault
        if path.name.endswith(".index.json") and (fault := _find_shard_fault(path)):
            return fault
        if path.name == "adapter_config.json" and (fault := _find_adapter_fault(path)):
            return fault
    return None


def _find_shard_fault(index: Path) -> str | None:
    shards = _read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        return f"{index}: key 'weight_map': expected the name of a file for every tensor"
    missing = sorted(name for name in {*shards.values()} if not (index.parent / name).is_file())
    return (
        f"{index.parent / missing[0]}: is missing, and {index.name} names it" if missing else None
    )


def _find_adapter_fault(path: Path) -> str | None:
    config = _read_object(path)
    for key in ("peft_type", "base_model_name_or_path"):
        if not isinstance(config.get(key), str):
            return f"{path}: key '{key}': expected text, got {config.get(key)!r}"
    return None


def _read_object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected keys and values, got {type(value).__name__}")
    return value


def hash_files(paths: Iterable[Path], more: str = "") -> str:
    """SHA-256 of files of one folder, by name and content in the order of names, and of a text."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(more.encode())
    return digest.hexdigest()
