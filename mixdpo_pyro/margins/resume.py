"""Finished parts of an interrupted computation of margins."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io import write_json, written_whole
from mixdpo_pyro.progress import console

__all__ = ["Parts"]

_INPUTS_FILE = "inputs.json"


@dataclass(frozen=True)
class Parts:
    """Finished parts of an interrupted run, a file each."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, inputs: dict[str, Any], resume: bool) -> "Parts":
        """The folder of the parts; emptied, unless it is resumed.

        Raises:
            OutputError: If it holds something else, or was begun with other inputs.
        """
        parts = cls(folder)
        if folder.exists():
            parts._check_own()
            earlier = parts._read_inputs()
            different = [key for key in inputs if (earlier or {}).get(key) != inputs[key]]
            if resume and earlier and different:
                raise OutputError(
                    f"{folder}: was begun with another {' and another '.join(different)}; "
                    "leave out --resume to start again"
                )
            if not resume or not earlier:
                console.print(f"Starting again: removing what an interrupted run left in {folder}")
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(inputs, folder / _INPUTS_FILE)
        return parts

    def path(self, number: int) -> Path:
        """File of a part."""
        return self.folder / f"part-{number:05d}.parquet"

    def read(self, number: int, sequences: range) -> pd.DataFrame | None:
        """A part, or None where it is missing, damaged, or not about these sequences."""
        try:
            part = pd.read_parquet(self.path(number))
        except (OSError, ValueError):
            return None
        return part if part["sequence"].tolist() == list(sequences) else None

    def write(self, number: int, part: pd.DataFrame) -> None:
        """Write a part, whole or not at all."""
        with written_whole(self.path(number)) as temporary:
            part.to_parquet(temporary, index=False)

    def _check_own(self) -> None:
        known = (_INPUTS_FILE, "part-", f".{_INPUTS_FILE}", ".part-")
        for path in self.folder.iterdir():
            if not path.name.startswith(known):
                raise OutputError(f"{self.folder}: holds '{path.name}', which is no part; move it")

    def _read_inputs(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / _INPUTS_FILE).read_text())
        except (OSError, ValueError):
            return None
