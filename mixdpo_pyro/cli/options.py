"""Options of commands that no function takes as they are: where results go."""

from dataclasses import dataclass

from mixdpo_pyro.config_fields import SHOW_ANNOTATORS, option
from mixdpo_pyro.margins.config import MarginsConfig
from mixdpo_pyro.training.reference_config import ReferenceConfig

__all__ = ["CompareOptions", "EnvOptions", "InitOptions", "MarginsOptions", "ReportOptions"]


@dataclass(frozen=True, kw_only=True)
class MarginsOptions(MarginsConfig):
    """Options of `mixdpo margins`."""

    output: str = option("Parquet file to write.", short="-o")


@dataclass(frozen=True, kw_only=True)
class InitOptions(ReferenceConfig):
    """Options of `mixdpo init`."""

    dataset_name: str | None = option("The same as DATA.", None)
    output_dir: str = option("Folder for model and tokenizer.", short="-o")
    overwrite: bool = option("Replace what an earlier `mixdpo init` wrote.", False)


@dataclass(frozen=True)
class CompareOptions:
    """Options of `mixdpo compare`."""

    output: str | None = option("HTML file to write.", None, short="-o")
    overwrite: bool = option("Replace that file where something else wrote it.", False)


@dataclass(frozen=True)
class ReportOptions:
    """Options of `mixdpo report`."""

    show_annotators: list[str] = option(SHOW_ANNOTATORS, [])


@dataclass(frozen=True)
class EnvOptions:
    """`mixdpo env` has no options."""
