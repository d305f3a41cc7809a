"""Reference log-probabilities on disk, under a fingerprint of everything they depend on."""

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io import write_errors_named, written_whole

__all__ = [
    "Fingerprint", "ReferenceCache", "default_cache_folder", "hash_parameters", "hash_tokens",
]  # fmt: skip

logger = logging.getLogger(__name__)

_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def default_cache_folder() -> Path:
    """`$MIXDPO_CACHE/reference`, or `~/.cache/mixdpo_pyro/reference`."""
    root = os.environ.get("MIXDPO_CACHE") or Path.home() / ".cache" / "mixdpo_pyro"
    return Path(root) / "reference"


@dataclass(frozen=True)
class Fingerprint:
    """What reference log-probabilities depend on.

    Attributes:
        part: Which dataset, `train` or a name of an evaluation dataset.
        model: Hash of the reference model's parameters.
        tokens: Hash of the tokenized pairs: of the data and of the tokenizer.
        lengths: Truncation: longest sequence and mode.
        precision: Data type of the forward pass.
    """

    part: str
    model: str
    tokens: str
    lengths: str
    precision: str

    @property
    def name(self) -> str:
        """File name without its ending."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ReferenceCache:
    """A folder of safetensors files, each with the log-probabilities of one fingerprint.

    Attributes:
        folder: The folder; made when something is written.
    """

    folder: Path

    def load(self, fingerprint: Fingerprint, num_pairs: int) -> dict[str, np.ndarray] | None:
        """Log-probabilities in nats, `ref_chosen_logps` and `ref_rejected_logps`, or None.

        A damaged file counts as absent, and says so.
        """
        path = self._path(fingerprint)
        if not path.is_file():
            self._say_what_changed(fingerprint)
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                found = {name: file.get_tensor(name) for name in _COLUMNS}
        except (SafetensorError, OSError) as error:
            logger.warning("%s: cannot be read (%s); computing again", path, error)
            return None
        if any(values.shape != (num_pairs,) for values in found.values()):
            logger.warning("%s: holds another number of pairs; computing again", path)
            return None
        return found

    def save(self, fingerprint: Fingerprint, logps: dict[str, np.ndarray]) -> None:
        """Write the log-probabilities, whole or not at all; where that fails, say so and go on."""
        path = self._path(fingerprint)
        tensors = {name: np.ascontiguousarray(logps[name]) for name in _COLUMNS}
        try:
            with write_errors_named(path):
                self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                temporary.write_bytes(save(tensors, metadata=asdict(fingerprint)))
        except OutputError as error:
            logger.warning("%s; the next run computes it again", error)

    def _path(self, fingerprint: Fingerprint) -> Path:
        return self.folder / f"{fingerprint.name}.safetensors"

    def _say_what_changed(self, fingerprint: Fingerprint) -> None:
        """Where an earlier run differs in one thing alone, name it."""
        wanted = asdict(fingerprint)
        changes = set()
        for path in self.folder.glob("*.safetensors"):
            found = _metadata(path)
            different = [name for name in wanted if found.get(name) != wanted[name]]
            if len(different) == 1 and different != ["part"]:
                changes.add(different[0])
        if changes:
            logger.warning(
                "Reference log-probabilities are computed again: since an earlier run the %s "
                "changed",
                " or the ".join(sorted(changes)),
            )


def hash_parameters(model: torch.nn.Module) -> str:
    """Hash of the parameters and buffers of the reference, with their names, shapes and types.

    Adapters that the reference switches off do not count: all of them, or all but `ref`, the copy
    that TRL makes of an adapter that was already trained.
    """
    adapters = set(getattr(model, "peft_config", {}))
    ignored = adapters - {"ref"}
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor) and not ignored & set(name.split(".")):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_tokens(dataset: Dataset) -> str:
    """Hash of tokenized pairs: of the data and of the tokenizer, in order."""
    digest = hashlib.sha256()
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        for ids in dataset[column]:
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
