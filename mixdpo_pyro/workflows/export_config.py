"""Options of `mixdpo export`."""

from dataclasses import dataclass
from typing import Literal

from mixdpo_pyro.config_fields import explained, option
from mixdpo_pyro.errors import ConfigError

__all__ = ["EXPORT_FILE", "ExportConfig"]

EXPORT_FILE = "export.json"
"""The file that makes a folder one of an export."""


@explained
@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a policy without its adapter, or everybody's strength as a weight for decoding."""

    output_dir: str = option("Folder to write.", short="-o")
    merged: bool = option(
        "Write the policy of a run as a whole model, its adapter merged into the weights.", False
    )
    weights: bool = option(
        "Write the decoding weight of every annotator: the strength over its mean.", False
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "Precision of the weights.", "float32"
    )
    overwrite: bool = option("Replace an earlier result in that folder.", False)

    def __post_init__(self) -> None:
        if not (self.merged or self.weights):
            raise ConfigError("nothing to export: expected merged, weights, or both")
