"""Finished parts of an interrupted computation of margins."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.io import (
    claim_folder,
    is_claimed,
    remove_claimed,
    write_errors_named,
    write_json,
    written_whole,
)
from mixdpo_pyro.progress.screen import console

__all__ = ["Parts"]

_INPUTS_FILE = "inputs.json"

_OWN_NAME = re.compile(
    r"\.?(inputs\.json|\.mixdpo\.json|part-\d{5}\.parquet)(\.[0-9a-f]{8})?(\.partial)?"
)


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
        if os.path.lexists(folder):
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
                parts.remove()
        with write_errors_named(folder):
            claim_folder(folder)
        write_json(inputs, folder / _INPUTS_FILE)
        return parts

    def path(self, number: int) -> Path:
        """File of a part."""
        return self.folder / f"part-{number:05d}.parquet"

    def read(self, number: int, sequences: range) -> pd.DataFrame | None:
        """A part, or None where it is missing, damaged, or not about these sequences."""
        try:
            part = pd.read_parquet(self.path(number))
            numbers = part["sequence"].tolist()
        except (OSError, ValueError, KeyError):
            return None
        return part if numbers == list(sequences) else None

    def write(self, number: int, part: pd.DataFrame) -> None:
        """Write a part, whole or not at all."""
        with written_whole(self.path(number)) as temporary:
            part.to_parquet(temporary, index=False)

    def remove(self) -> None:
        """Remove the folder, once its parts are no longer needed."""
        with write_errors_named(self.folder):
            remove_claimed(self.folder)

    def _check_own(self) -> None:
        if not self.folder.is_dir():
            raise OutputError(f"{self.folder}: exists where finished parts are kept; move it")
        for path in self.folder.iterdir():
            if not _OWN_NAME.fullmatch(path.name):
                raise OutputError(f"{self.folder}: holds '{path.name}', which is no part; move it")
        if not is_claimed(self.folder):
            raise OutputError(f"{self.folder}: exists, and mixdpo did not write it; move it")

    def _read_inputs(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / _INPUTS_FILE).read_text())
        except (OSError, ValueError):
            return None
