"""`mixdpo export`: a policy without its adapter, and everybody's strength as a decoding weight."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mixdpo_pyro.diagnosis.config import DIAGNOSIS_FILE
from mixdpo_pyro.diagnosis.predictive_checks import read_posterior
from mixdpo_pyro.diagnosis.tables import weight_table
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.inference.verdict import Verdict
from mixdpo_pyro.io import RUN_FILE, write_csv
from mixdpo_pyro.progress.screen import show_stage
from mixdpo_pyro.reporting.diagnosis_record import DiagnosisRecord
from mixdpo_pyro.reporting.records import read_record, write_record
from mixdpo_pyro.reporting.run_record import RunRecord
from mixdpo_pyro.workflows.export_config import EXPORT_FILE, ExportConfig

__all__ = ["ExportRecord", "export_lines", "export_result"]

POLICY, WEIGHTS = "policy", "weights.csv"


@dataclass(frozen=True)
class ExportRecord:
    """Content of `export.json`.

    Attributes:
        result: Folder of the run or diagnosis.
        merged: Whether the policy was written.
        annotators: Annotators with a weight; None where no weights were asked for.
        verdict: What was found of them, `heterogeneous`, `homogeneous` or `inconclusive`.
        kind: What differs, where something does.
        config: Options.
    """

    result: str
    merged: bool
    annotators: int | None
    verdict: str | None
    kind: str | None
    config: dict[str, Any]


def export_result(result: str | Path, config: ExportConfig, folder: Path) -> ExportRecord:
    r"""Write what others can load: a whole model, and weights for decoding.

    The weight of an annotator is :math:`\lambda_g = \mathbb{E}[\beta_g \mid \text{choices}] / m`,
    for :class:`~mixdpo_pyro.winrates.interpolation.InterpolatedLogits`.

    Args:
        result: Folder of a finished run or diagnosis.
        config: Options.
        folder: An existing folder.

    Raises:
        ConfigError: If the policy has no adapter.
        DataError: If there is no posterior with strengths of annotators.
    """
    result = Path(result)
    if config.merged:
        _write_merged(result / POLICY, folder / POLICY, config)
    table, verdict = None, None
    if config.weights:
        table, verdict = _weights(result), _verdict(result)
        write_csv(table, folder / WEIGHTS)
    record = ExportRecord(
        result=str(result),
        merged=config.merged,
        annotators=None if table is None else len(table),
        verdict=None if verdict is None else verdict.value,
        kind=None if verdict is None else verdict.kind,
        config=asdict(config),
    )
    write_record(record, folder / EXPORT_FILE)
    return record


def _write_merged(policy: Path, folder: Path, config: ExportConfig) -> None:
    from huggingface_hub import ModelCard  # weights are written without it

    from mixdpo_pyro.data.tokenization import is_adapter
    from mixdpo_pyro.margins.language_models import load_policy

    if not is_adapter(policy):
        raise ConfigError(f"merged: {policy} has no adapter, so that it is a whole model already")
    show_stage("Merging the adapter into its base model")
    model, tokenizer = load_policy(str(policy), config.dtype, torch.device("cpu"))
    base = model.peft_config[model.active_adapter].base_model_name_or_path
    model.merge_and_unload(safe_merge=True).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card_file = policy / "README.md"
    if card_file.is_file():
        card = ModelCard.load(card_file)
        card.data.library_name = "transformers"
        card.data.base_model = None if Path(base).exists() else base
        tags = [t for t in card.data.tags or [] if t not in ("peft", "lora")]
        card.data.tags = [t for t in tags if not t.startswith("base_model:")]
        card.text = f"{card.text.rstrip()}\n\nThe LoRA adapter is merged into the weights.\n"
        card.save(folder / "README.md")


def _weights(result: Path) -> pd.DataFrame:
    path = result / "posterior.nc"
    table = weight_table(read_posterior(path))
    if table is None:
        raise DataError(
            f"{path}: holds no strengths of annotators; they take ids and several choices of each"
        )
    return table


def _verdict(result: Path) -> Verdict | None:
    """What was found of the annotators of a run, or of a diagnosis."""
    if (result / RUN_FILE).is_file():
        return read_record(RunRecord, result / RUN_FILE).verdict
    return read_record(DiagnosisRecord, result / DIAGNOSIS_FILE).verdict


def export_lines(record: ExportRecord, folder: str) -> list[str]:
    """What was written, and what the weights are worth."""
    lines = [f"wrote {folder}/{POLICY}, the policy without an adapter"] if record.merged else []
    if record.annotators is None:
        return lines
    lines.append(f"wrote {folder}/{WEIGHTS}, decoding weights of {record.annotators:,} annotators")
    if record.verdict == "heterogeneous" and record.kind == "strength":
        lines.append("people differ in strength: a weight is how much somebody cares")
    else:
        found = record.verdict or "without a verdict"
        what = f"{found}, {record.kind}" if record.kind else found
        lines.append(
            f"caution: the verdict is {what}. Weights then need not be how much people care: "
            "where they are carelessness, decoding everybody at 1 serves people better"
        )
    return lines
