"""Margins of a policy and a reference on preference pairs, written to a parquet file.

Pairs are tokenised and truncated by `trl.DPOTrainer`'s own code, so that the margins are those
that training sees. Parts of the result are written while it runs; an interrupted run can go on.
"""

import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from accelerate import PartialState
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file
from trl import DPOConfig, DPOTrainer

from mixdpo_pyro.data import (
    ROW_COLUMN,
    TEXT_COLUMNS,
    PreferenceData,
    load_preferences,
    named_columns,
)
from mixdpo_pyro.errors import ConfigError, DataError, NonFiniteLossError, OutputError
from mixdpo_pyro.files import write_json, written_whole
from mixdpo_pyro.inference.choices import agreement
from mixdpo_pyro.progress import console, show_stage

__all__ = [
    "MARGIN_COLUMNS",
    "MarginsConfig",
    "MarginsSummary",
    "count_merged_prompts",
    "load_tokenizer",
    "tokenize_pairs",
    "write_margins",
]

MARGIN_COLUMNS = (
    ROW_COLUMN,
    "margin",
    "policy_chosen_logps",
    "policy_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
    "chosen_tokens",
    "rejected_tokens",
)
"""Columns of the file: row, margin and log-probabilities in nats, tokens that were scored."""

ADAPTER_OFF = "base"
"""The name of the reference that is the policy with its adapter switched off."""

_BATCHES_A_PART = 16
_INPUTS_FILE = "inputs.json"
_METADATA_KEY = b"mixdpo_margins"
_PROMPT, _COMPLETION = 1, 2


@dataclass(frozen=True)
class MarginsConfig:
    """Write the margins of a policy and a reference on preference pairs to a parquet file.

    Args:
        batch_size: Pairs a forward pass.
        max_length: Longest sequence in tokens, prompt and response, as in training.
        dtype: Precision of the weights: float32 or bfloat16; sums are float32 or better.
        device: Device, or auto: an accelerator where there is one.
        split: Split to take where the source has several.
        config: Configuration name of a hub dataset.
        reader: Reader of a public dataset, NAME or NAME:option,option.
        annotator: Column with annotator ids that must be there.
        prompt: Column that holds the prompt, if not `prompt`.
        chosen: Column that holds the chosen response, if not `chosen`.
        rejected: Column that holds the rejected response, if not `rejected`.
        resume: Go on from what an interrupted run with the same inputs left.
        overwrite: Replace the file where it exists.
    """

    batch_size: int = 16
    max_length: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    split: str = "train"
    config: str | None = None
    reader: str | None = None
    annotator: str | None = None
    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.max_length < 2:
            raise ConfigError(f"max_length: expected at least 2, got {self.max_length}")


@dataclass(frozen=True)
class MarginsSummary:
    """What was written.

    Attributes:
        path: The file.
        num_pairs: Number of rows.
        dropped: Reason -> number of pairs left out.
        truncated: Pairs of which a response was cut at `max_length`.
        accuracy: Share of pairs with a positive margin; ties count one half.
        pairs_per_second: Rate of this call, without what an earlier one left; 0 for none.
    """

    path: Path
    num_pairs: int
    dropped: dict[str, int]
    truncated: int
    accuracy: float
    pairs_per_second: float


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
        data: Preference pairs, see :func:`~mixdpo_pyro.data.load_preferences`.
        output: The parquet file.
        config: Sizes, columns and what to do with earlier results.

    Raises:
        ConfigError: If a model cannot be loaded, or policy and reference do not fit together.
        DataError: If the pairs cannot be used.
        OutputError: If the file exists, or an interrupted run had other inputs.
        NonFiniteLossError: If a log-probability is not finite.
    """
    config = config or MarginsConfig()
    output = Path(output).expanduser()
    _check_output(output, config.overwrite)
    _note_other_length(model, config.max_length)
    show_stage("Reading the pairs")
    pairs = load_preferences(
        data, config.split, config.config, config.annotator,
        reader=config.reader, columns=named_columns(config),
    )  # fmt: skip
    models = _Models.load(_policy_of(model), _policy_of(reference), config)
    sequences = _Sequences.prepare(pairs, models, config)
    inputs = {
        "policy": models.policy_digest,
        "reference": models.reference_digest,
        "data, tokenizer or max_length": sequences.digest,
        "batch_size": config.batch_size,
        "precision": f"{config.dtype} on {models.device.type}",
    }
    parts = _Parts.open(output.with_name(f"{output.name}.partial"), inputs, config.resume)
    scores, rate = _fill(parts, sequences, models, config)
    facts = {**inputs, "source": data, "max_length": config.max_length}
    table = _assemble(scores, sequences, pairs)
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(facts)})
    with written_whole(output) as temporary:
        pq.write_table(table, temporary)
    shutil.rmtree(parts.folder)
    return _summarise(output, table, sequences, pairs, rate)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token as `trl.DPOTrainer` chooses it.

    Raises:
        ConfigError: If there is none, or it has no token that ends a text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(_policy_of(name))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: no tokenizer in '{name}' ({_first_line(error)})") from error
    if tokenizer.eos_token is None:
        raise ConfigError(f"model: the tokenizer of '{name}' has no end-of-text token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenize_pairs(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Add `prompt_ids`, `chosen_ids` and `rejected_ids`, whole, as `trl.DPOTrainer` makes them.

    TRL's method is called on a stand-in, since it needs no more of a trainer than the tokenizer;
    margins therefore follow the installed version of TRL.

    Raises:
        ConfigError: If conversational pairs meet a tokenizer without a chat template.
    """
    if isinstance(pairs[0]["chosen"], list) and tokenizer.chat_template is None:
        raise ConfigError("model: the pairs are messages, and the tokenizer has no chat template")
    PartialState()  # TRL's logger asks for it
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer, args=args)
    logger = logging.getLogger(DPOTrainer.__module__)
    logger.addFilter(_is_not_about_merged_tokens)
    try:
        return DPOTrainer._prepare_dataset(trainer, pairs, tokenizer, args, "preference")
    finally:
        logger.removeFilter(_is_not_about_merged_tokens)


def count_merged_prompts(
    pairs: Dataset, tokenized: Dataset, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Number of text pairs whose last prompt token merges with what follows.

    There TRL lets the responses begin with the tokens that differ, before the prompt ends.

    Args:
        pairs: Pairs with a `prompt` column.
        tokenized: What :func:`tokenize_pairs` made of them.
        tokenizer: The tokenizer.
    """
    texts = pairs["prompt"][:]
    if not isinstance(texts[0], str):
        return 0
    whole = tokenizer(texts)["input_ids"]
    return sum(
        len(ids) > len(kept) for ids, kept in zip(whole, tokenized["prompt_ids"], strict=True)
    )


def _is_not_about_merged_tokens(record: logging.LogRecord) -> bool:
    """TRL says it for every pair that differs; :func:`count_merged_prompts` counts them."""
    return "tokenized prompt is not a prefix" not in record.getMessage()


@dataclass(frozen=True)
class _Models:
    """Policy and reference; without a reference, the policy's adapter is switched off."""

    policy: Any
    reference: Any | None
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    policy_digest: str
    reference_digest: str

    @classmethod
    def load(cls, policy_name: str, reference_name: str, config: MarginsConfig) -> "_Models":
        show_stage("Loading policy and reference")
        device = _find_device(config.device)
        tokenizer = load_tokenizer(_tokenizer_source(policy_name))
        policy, digest = _load_model(policy_name, config.dtype, device, "model")
        if reference_name == ADAPTER_OFF:
            if not isinstance(policy, PeftModel):
                raise ConfigError(f"reference: 'base' needs an adapter, '{policy_name}' has none")
            return cls(policy, None, tokenizer, device, digest, ADAPTER_OFF)
        _check_same_tokenizer(tokenizer, reference_name)
        reference, other = _load_model(reference_name, config.dtype, device, "reference")
        return cls(policy, reference, tokenizer, device, digest, other)

    def score(self, ids: Tensor, scored: Tensor) -> np.ndarray:
        """Log-probability of every sequence, a column a model: policy, reference."""
        ids, scored = ids.to(self.device), scored.to(self.device)
        policy = _sum_logps(self.policy, ids, scored)
        if self.reference is None:
            with self.policy.disable_adapter():
                reference = _sum_logps(self.policy, ids, scored)
        else:
            reference = _sum_logps(self.reference, ids, scored)
        return np.stack([policy, reference], axis=1)

    def longest(self) -> int | None:
        """The most tokens that both models take, where they say so."""
        models = [m for m in (self.policy, self.reference) if m is not None]
        limits = [getattr(m.config, "max_position_embeddings", None) for m in models]
        return min((limit for limit in limits if limit), default=None)

    def vocabulary(self) -> int:
        """Number of tokens that both models know."""
        models = [m for m in (self.policy, self.reference) if m is not None]
        return min(m.get_input_embeddings().weight.shape[0] for m in models)


@torch.no_grad()
def _sum_logps(model: Any, ids: Tensor, scored: Tensor) -> np.ndarray:
    """Sum of the token log-probabilities of every completion: softmax in float32, sum in float64.

    One sequence at a time, so that no second copy of all logits is needed.

    Args:
        model: A causal language model.
        ids: Tokens, padded on the right.
        scored: 0 for padding, 1 for a token of the prompt, 2 for one of the completion.
    """
    logits = model(input_ids=ids, attention_mask=(scored > 0).long(), use_cache=False).logits
    logits = logits[:, -ids.shape[1] :]  # virtual tokens of a prompt adapter stand in front
    sums = []
    for row in range(len(ids)):
        positions = (scored[row, 1:] == _COMPLETION).nonzero().squeeze(1)
        log_probs = logits[row, positions].float().log_softmax(-1)
        tokens = log_probs.gather(1, ids[row, positions + 1].unsqueeze(1))
        sums.append(tokens.cpu().double().sum().item())
    return np.array(sums)


@dataclass(frozen=True)
class _Sequences:
    """The different sequences of the pairs, the longest first; each of them is scored once.

    Several people judge one pair, and one response stands in several pairs.

    Attributes:
        tokens: Tokens of prompt and completion, cut at `max_length`, as int32 bytes.
        prompts: Number of tokens of the prompt.
        of_pair: Numbers of the chosen and of the rejected sequence of every pair kept.
        kept: Positions of these pairs in the data.
        source_rows: Their rows.
        digest: Hash of everything that is fed to the models: data, tokenizer, length.
        too_long: Pairs whose prompt alone fills `max_length`.
        truncated: Pairs of which a response is cut.
    """

    tokens: list[bytes]
    prompts: list[int]
    of_pair: np.ndarray
    kept: np.ndarray
    source_rows: np.ndarray
    digest: str
    too_long: int
    truncated: int

    @classmethod
    def prepare(cls, data: PreferenceData, models: _Models, config: MarginsConfig) -> "_Sequences":
        wanted = (*TEXT_COLUMNS, ROW_COLUMN, "tools", "chat_template_kwargs")
        pairs = data.pairs.select_columns([c for c in data.pairs.column_names if c in wanted])
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        tokenized = tokenize_pairs(pairs, models.tokenizer).select_columns([*names, ROW_COLUMN])
        limit = config.max_length
        numbers: dict[tuple[int, bytes], int] = {}
        of_pair, kept, rows, truncated = [], [], [], 0
        digest = hashlib.sha256(str(limit).encode())
        for position, pair in enumerate(tokenized):
            prompt, chosen, rejected = (pair[name] for name in names)
            digest.update(json.dumps([prompt, chosen, rejected, pair[ROW_COLUMN]]).encode())
            if len(prompt) >= limit:
                continue
            keys = [_key(prompt, completion, limit) for completion in (chosen, rejected)]
            of_pair.append([numbers.setdefault(key, len(numbers)) for key in keys])
            kept.append(position)
            rows.append(pair[ROW_COLUMN])
            truncated += len(prompt) + max(len(chosen), len(rejected)) > limit
        if not kept:
            raise DataError(f"{data.source}: max_length: no prompt is shorter than the limit")
        order = sorted(numbers, key=lambda key: -len(key[1]))  # stable
        place = np.empty(len(order), dtype=np.int64)
        place[[numbers[key] for key in order]] = np.arange(len(order))
        sequences = cls(
            tokens=[key[1] for key in order],
            prompts=[key[0] for key in order],
            of_pair=place[np.array(of_pair)],
            kept=np.array(kept),
            source_rows=np.array(rows),
            digest=digest.hexdigest(),
            too_long=len(tokenized) - len(kept),
            truncated=truncated,
        )
        sequences._check_fit(models)
        return sequences

    def __len__(self) -> int:
        return len(self.tokens)

    def ids(self, number: int) -> np.ndarray:
        """Tokens of a sequence."""
        return np.frombuffer(self.tokens[number], dtype=np.int32)

    def collate(self, numbers: range, padding: int) -> tuple[Tensor, Tensor]:
        """Padded tokens, and what they are: padding, prompt or completion."""
        ids = [torch.tensor(self.ids(number), dtype=torch.long) for number in numbers]
        kinds = [torch.full_like(tokens, _COMPLETION) for tokens in ids]
        for kind, number in zip(kinds, numbers, strict=True):
            kind[: self.prompts[number]] = _PROMPT
        padded = pad_sequence(ids, batch_first=True, padding_value=padding)
        return padded, pad_sequence(kinds, batch_first=True)

    def _check_fit(self, models: _Models) -> None:
        limit = models.longest()
        if limit is not None and len(self.ids(0)) > limit:
            raise ConfigError(f"max_length: the models take at most {limit} tokens; lower it")
        largest = max(int(self.ids(number).max(initial=0)) for number in range(len(self)))
        if largest >= models.vocabulary():
            raise ConfigError(
                f"model: the tokenizer has the token {largest}, the models only "
                f"{models.vocabulary()} tokens"
            )


def _key(prompt: list[int], completion: list[int], limit: int) -> tuple[int, bytes]:
    """Length of the prompt, and all tokens, cut as TRL's collator cuts them."""
    return len(prompt), np.array([*prompt, *completion][:limit], dtype=np.int32).tobytes()


@dataclass(frozen=True)
class _Parts:
    """Finished parts of an interrupted run, a file each."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, inputs: dict[str, Any], resume: bool) -> "_Parts":
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
        return self.folder / f"part-{number:05d}.parquet"

    def read(self, number: int, sequences: range) -> pd.DataFrame | None:
        """A part, or None where it is missing, damaged, or not about these sequences."""
        try:
            part = pd.read_parquet(self.path(number))
        except (OSError, ValueError):
            return None
        return part if part["sequence"].tolist() == list(sequences) else None

    def write(self, number: int, part: pd.DataFrame) -> None:
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


def _fill(
    parts: _Parts, sequences: _Sequences, models: _Models, config: MarginsConfig
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
    sequences: _Sequences, numbers: range, models: _Models, config: MarginsConfig, bar: tqdm
) -> pd.DataFrame:
    size = 2 * config.batch_size
    scored = []
    for start in range(numbers.start, numbers.stop, size):
        batch = range(start, min(start + size, numbers.stop))
        scored.append(_score_batch(sequences, batch, models))
        bar.update(len(batch))
    return pd.concat(scored, ignore_index=True)


def _score_batch(sequences: _Sequences, numbers: range, models: _Models) -> pd.DataFrame:
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
            "tokens": (kinds[:, 1:] == _COMPLETION).sum(1).numpy(),
        }
    )


def _assemble(scores: pd.DataFrame, sequences: _Sequences, data: PreferenceData) -> pa.Table:
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
    table = pa.table({name: columns[name] for name in MARGIN_COLUMNS})
    source = data.pairs.select(sequences.kept)
    extras = [c for c in source.column_names if c not in (*TEXT_COLUMNS, ROW_COLUMN)]
    if extras:
        others = source.select_columns(extras).with_format("arrow")[:]
        for name in extras:
            free = f"{name}_source" if name in MARGIN_COLUMNS else name
            table = table.append_column(free, others[name])
    return table


def _summarise(
    path: Path, table: pa.Table, sequences: _Sequences, data: PreferenceData, rate: float
) -> MarginsSummary:
    margin = table["margin"].to_numpy()
    dropped = dict(data.dropped)
    if sequences.too_long:
        dropped["a prompt longer than max_length"] = sequences.too_long
    return MarginsSummary(
        path=path,
        num_pairs=len(margin),
        dropped=dropped,
        truncated=sequences.truncated,
        accuracy=float(agreement(margin).mean()),
        pairs_per_second=rate,
    )


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise OutputError(f"{output}: expected a file to write to, found a folder")
    if output.exists() and not overwrite:
        raise OutputError(f"{output}: exists; add --overwrite to replace it")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: there is no folder '{output.parent}'")


def _find_device(name: str) -> torch.device:
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device: '{name}' cannot be used ({_first_line(error)})") from error
    return device


def _policy_of(name: str) -> str:
    """The policy in a run folder; any other name as it is."""
    policy = Path(name).expanduser() / "policy"
    return str(policy) if (policy / "config.json").is_file() or _is_adapter(policy) else name


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


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _tokenizer_source(name: str) -> str:
    """An adapter without a tokenizer of its own takes that of its base model."""
    folder = Path(name).expanduser()
    if _is_adapter(folder) and not any(folder.glob("tokenizer*")):
        return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return name


def _load_model(name: str, dtype: str, device: torch.device, role: str) -> tuple[Any, str]:
    """A model in evaluation mode, and a digest of its weights."""
    kind = getattr(torch, dtype)
    try:
        is_adapter = find_adapter_config_file(name) is not None
        loader = AutoPeftModelForCausalLM if is_adapter else AutoModelForCausalLM
        model = loader.from_pretrained(name, dtype=kind)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{role}: '{name}' cannot be loaded ({_first_line(error)})") from error
    return model.to(device).eval(), _digest_model(name, model)


def _digest_model(name: str, model: Any) -> str:
    """Hash of the files of a local model; name and revision of one from the hub."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return f"{name}@{getattr(model.config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin") or path.name.endswith("config.json"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    if _is_adapter(folder):
        base = model.peft_config[model.active_adapter].base_model_name_or_path
        digest.update(_digest_model(base, model).encode())
    return digest.hexdigest()


def _check_same_tokenizer(tokenizer: PreTrainedTokenizerBase, reference_name: str) -> None:
    """Log-ratios of two models with different tokens mean nothing."""
    try:
        other = AutoTokenizer.from_pretrained(_tokenizer_source(reference_name))
    except (OSError, ValueError, KeyError):  # a reference without a tokenizer of its own
        return
    if other.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(f"reference: '{reference_name}' has another vocabulary than the policy")


def _first_line(error: BaseException) -> str:
    return f"{error}\n".splitlines()[0]
