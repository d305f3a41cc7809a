"""Margins of a policy and a reference on preference pairs, written to a parquet file.

Pairs are tokenised and truncated by `trl.DPOTrainer`'s own code, so that the margins are those
that training sees. Parts of the result are written while it runs; an interrupted run can go on.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from tqdm import tqdm
from trl import DPOConfig

from mixdpo_pyro.data.choice_kinds import CHOICE_COLUMNS, RANK, signs_of_choices
from mixdpo_pyro.data.loading import load_preferences, named_columns
from mixdpo_pyro.data.tokenization import find_policy
from mixdpo_pyro.data.validation import (
    ROW_COLUMN,
    TEXT_COLUMNS,
    PreferenceData,
    close_ranks,
)
from mixdpo_pyro.errors import ConfigError, NonFiniteLossError
from mixdpo_pyro.inference.choices import agreement
from mixdpo_pyro.io import check_output, locked_output, written_whole
from mixdpo_pyro.margins.config import MarginsConfig
from mixdpo_pyro.margins.language_models import COMPLETION, LanguageModels
from mixdpo_pyro.margins.provenance import mark_trained
from mixdpo_pyro.margins.resume import Parts
from mixdpo_pyro.margins.sequences import Sequences
from mixdpo_pyro.margins.table import TRAINED_ON
from mixdpo_pyro.progress.screen import console, show_stage

__all__ = ["MARGIN_COLUMNS", "MarginsSummary", "write_margins"]

MARGIN_COLUMNS = (
    ROW_COLUMN,
    "margin",
    "policy_chosen_logps",
    "policy_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
    "chosen_tokens",
    "rejected_tokens",
    "pair",
    "response_a",
    "response_b",
)
"""Columns of the file: row, margin and log-probabilities in nats, tokens that were scored; and
hashes of the tokens of the chosen (a) and rejected (b) response with their prompt, and of both in
any order (pair)."""

_BATCHES_A_PART = 16

_METADATA_KEY = b"mixdpo_margins"


@dataclass(frozen=True)
class MarginsSummary:
    """What was written.

    Attributes:
        path: The file.
        num_pairs: Number of rows.
        dropped: Reason -> number of pairs dropped.
        truncated: Pairs of which a response was cut at `max_length`.
        accuracy: Share of pairs whose margin is that of the response that was preferred; margins
            of zero count one half, and pairs that were judged a tie do not count.
        pairs_per_second: Rate of this call, without what an earlier one left; 0 for none.
        num_trained_on: Rows that are marked as trained on; None where that is not known.
    """

    path: Path
    num_pairs: int
    dropped: dict[str, int]
    truncated: int
    accuracy: float
    pairs_per_second: float
    num_trained_on: int | None = None


def write_margins(
    model: str, reference: str, data: str, output: str | Path, config: MarginsConfig | None = None
) -> MarginsSummary:
    r"""Compute margins in nats and write them, with the other columns of the data.

    .. math:: \Delta = [\log\pi_\theta(y_w|x) - \log\pi_\mathrm{ref}(y_w|x)]
                     - [\log\pi_\theta(y_l|x) - \log\pi_\mathrm{ref}(y_l|x)]

    Token log-probabilities are float32, their sums and the margin float64. The file appears once
    it is whole; until then finished parts are kept in the folder `OUTPUT.partial`.

    Args:
        model: Policy, a hub name or a folder; also the folder of a LoRA adapter, or of a run.
        reference: Reference, likewise, or `base`: the policy with its adapter switched off.
        data: Preference pairs, see :func:`~mixdpo_pyro.data.loading.load_preferences`.
        output: The parquet file.
        config: Sizes, columns and what to do with earlier results.

    Raises:
        ConfigError: If a model cannot be loaded, or policy and reference do not fit together.
        DataError: If the pairs cannot be used.
        OutputError: If the file exists, is an input or cannot be written, if another process
            writes it, or an interrupted run had other inputs.
        NonFiniteLossError: If a log-probability is not finite.
    """
    config = config or MarginsConfig()
    inputs = (model, reference, data)
    output = check_output(output, inputs, config.overwrite)
    with locked_output(output):
        models, sequences, pairs, trained = _prepare(*inputs, config)
        facts = _facts(models, sequences, config)
        parts = Parts.open(output.with_name(f"{output.name}.partial"), facts, config.resume)
        scores, rate = _fill(parts, sequences, models, config)
        facts |= {"source": data, "max_length": config.max_length}
        table = _assemble(scores, sequences, pairs, trained)
        table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(facts)})
        check_output(output, inputs, config.overwrite)  # hours have passed
        with written_whole(output) as temporary:
            pq.write_table(table, temporary)
        parts.remove()
    return _summarise(output, table, sequences, pairs, rate, bool(trained))


def _prepare(
    model: str, reference: str, data: str, config: MarginsConfig
) -> tuple[LanguageModels, Sequences, PreferenceData, dict[str, np.ndarray]]:
    _note_other_length(model, config.max_length)
    show_stage("Reading the pairs")
    pairs = load_preferences(
        data, config.split, config.dataset_config, config.annotator,
        reader=config.reader, columns=named_columns(config), choice_set=config.choice_set,
    )  # fmt: skip
    trained = mark_trained(pairs.pairs, model, config)
    pairs = pairs.pseudonymised(config.pseudonymise, *config.pseudonymise_columns)
    models = LanguageModels.load(find_policy(model), find_policy(reference), config)
    return models, Sequences.prepare(pairs, models, config), pairs, trained


def _facts(models: LanguageModels, sequences: Sequences, config: MarginsConfig) -> dict[str, Any]:
    """What the scores depend on; parts of other facts are not gone on from."""
    return {
        "policy": models.policy_digest,
        "reference": models.reference_digest,
        "data, tokenizer or max_length": sequences.digest,
        "batch_size": config.batch_size,
        "precision": f"{config.dtype} on {models.device.type}",
    }


def _fill(
    parts: Parts, sequences: Sequences, models: LanguageModels, config: MarginsConfig
) -> tuple[pd.DataFrame, float]:
    """Scores of all sequences, those of missing parts computed; and pairs a second."""
    pairs, number = len(sequences.kept), len(sequences)
    show_stage(f"Scoring {number:,} different sequences of {pairs:,} pairs on {models.device}")
    plan = _plan_parts(number, 2 * config.batch_size * _BATCHES_A_PART)
    found = {index: parts.read(index, numbers) for index, numbers in plan.items()}
    todo = sum(len(plan[index]) for index, part in found.items() if part is None)
    started = time.monotonic()
    with tqdm(
        total=number,
        initial=number - todo,
        unit=" pairs",
        unit_scale=pairs / number,
        bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]",
    ) as bar:
        for index, numbers in plan.items():
            if found[index] is None:
                found[index] = _score_part(sequences, numbers, models, config, bar)
                parts.write(index, found[index])
    seconds = max(time.monotonic() - started, 1e-9)
    scores = pd.concat(found.values(), ignore_index=True)
    return scores, todo / number * pairs / seconds


def _plan_parts(number: int, size: int) -> dict[int, range]:
    starts = range(0, number, size)
    return {index: range(start, min(start + size, number)) for index, start in enumerate(starts)}


def _score_part(
    sequences: Sequences, numbers: range, models: LanguageModels, config: MarginsConfig, bar: tqdm
) -> pd.DataFrame:
    size = 2 * config.batch_size
    scored = []
    for start in range(numbers.start, numbers.stop, size):
        batch = range(start, min(start + size, numbers.stop))
        scored.append(_score_batch(sequences, batch, models))
        bar.update(len(batch))
    return pd.concat(scored, ignore_index=True)


def _score_batch(sequences: Sequences, numbers: range, models: LanguageModels) -> pd.DataFrame:
    ids, kinds = sequences.collate(numbers, models.tokenizer.pad_token_id)
    try:
        logps = models.score(ids, kinds)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"batch_size: {len(ids)} sequences of {ids.shape[1]} tokens do not fit into the "
            f"memory of {models.device}; lower it"
        ) from error
    bad = np.flatnonzero(~np.isfinite(logps).all(axis=1)) + numbers.start
    if len(bad):
        rows = sequences.source_rows[np.isin(sequences.of_pair, bad).any(axis=1)]
        shown = f"{rows[:10].tolist()}{' and more' if len(rows) > 10 else ''}"
        raise NonFiniteLossError(f"the log-probabilities of rows {shown} are not finite")
    return pd.DataFrame(
        {
            "sequence": list(numbers),
            "policy": logps[:, 0],
            "reference": logps[:, 1],
            "tokens": (kinds[:, 1:] == COMPLETION).sum(1).numpy(),
        }
    )


def _assemble(
    scores: pd.DataFrame,
    sequences: Sequences,
    data: PreferenceData,
    trained: dict[str, np.ndarray],
) -> pa.Table:
    """Scores of the pairs in the order of the data, and its columns but the texts."""
    columns: dict[str, np.ndarray] = {ROW_COLUMN: sequences.source_rows}
    for side, numbers in zip(("chosen", "rejected"), sequences.of_pair.T, strict=True):
        columns[f"{side}_tokens"] = scores["tokens"].to_numpy()[numbers]
        for model in ("policy", "reference"):
            columns[f"{model}_{side}_logps"] = scores[model].to_numpy()[numbers]
    chosen, rejected = (
        columns[f"policy_{side}_logps"] - columns[f"reference_{side}_logps"]
        for side in ("chosen", "rejected")
    )
    columns["margin"] = chosen - rejected
    columns |= sequences.hashes()
    columns |= {name: is_trained[sequences.kept] for name, is_trained in trained.items()}
    table = pa.table({name: columns[name] for name in (*MARGIN_COLUMNS, *trained)})
    source = data.pairs.select(sequences.kept)
    if sequences.too_long and RANK in data.choice_columns:
        source = close_ranks(source)
    extras = [c for c in source.column_names if c not in (*TEXT_COLUMNS, ROW_COLUMN)]
    if extras:
        others = source.select_columns(extras).with_format("arrow")[:]
        other_meaning = {*MARGIN_COLUMNS, *trained, *CHOICE_COLUMNS} - {*data.choice_columns}
        for name in extras:
            free = f"{name}_source" if name in other_meaning else name
            table = table.append_column(free, others[name])
    return table


def _summarise(
    path: Path,
    table: pa.Table,
    sequences: Sequences,
    data: PreferenceData,
    rate: float,
    is_marked: bool,
) -> MarginsSummary:
    margin = table["margin"].to_numpy()
    done = {
        name: table[name].to_numpy() for name in data.choice_columns if name in table.schema.names
    }
    sign = signs_of_choices(done)
    preferred = margin if sign is None else (margin * sign)[sign != 0]
    dropped = dict(data.dropped)
    if sequences.too_long:
        dropped["a prompt longer than max_length"] = sequences.too_long
    return MarginsSummary(
        path=path,
        num_pairs=len(margin),
        dropped=dropped,
        truncated=sequences.truncated,
        accuracy=float(agreement(preferred).mean()) if len(preferred) else math.nan,
        pairs_per_second=rate,
        num_trained_on=sum(table[TRAINED_ON].to_pylist()) if is_marked else None,
    )


def _note_other_length(name: str, max_length: int) -> None:
    """Say so where a run was trained with another length; its log-ratios are cut elsewhere."""
    path = Path(name).expanduser() / "config.yaml"
    try:
        given = yaml.safe_load(path.read_text())
        trained = given.get("max_length", DPOConfig.max_length)
    except (OSError, yaml.YAMLError, AttributeError):
        return
    if trained != max_length:
        console.print(f"Note: {name} was trained with max_length {trained}, not {max_length}")
