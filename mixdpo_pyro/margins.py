"""Margins of a policy and a reference on preference pairs, written to a parquet file.

Pairs are tokenised and truncated by `trl.DPOTrainer`'s own code, so that the margins are those
that training sees. Parts of the result are written while it runs; an interrupted run can go on.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from mixdpo_pyro.data import ROW_COLUMN, TEXT_COLUMNS, PreferenceData, load_preferences
from mixdpo_pyro.errors import ConfigError, DataError, NonFiniteLossError, OutputError
from mixdpo_pyro.files import write_json, written_whole
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

    def columns(self) -> dict[str, str]:
        """Role -> column, for the roles that are named."""
        named = {name: getattr(self, name) for name in TEXT_COLUMNS}
        return {name: column for name, column in named.items() if column is not None}


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
    show_stage("Reading the pairs")
    pairs = load_preferences(
        data, config.split, config.config, config.annotator,
        reader=config.reader, columns=config.columns(),
    )  # fmt: skip
    models = _Models.load(_policy_of(model), _policy_of(reference), config)
    batches = _Batches.prepare(pairs, models, config)
    inputs = {
        "policy": models.policy_digest,
        "reference": models.reference_digest,
        "data, tokenizer or max_length": batches.digest,
        "batch_size": config.batch_size,
        "precision": f"{config.dtype} on {models.device.type}",
    }
    parts = _Parts.open(output.with_name(f"{output.name}.partial"), inputs, config.resume)
    rate = _fill(parts, batches, models)
    table = _assemble(parts, batches, pairs)
    with written_whole(output) as temporary:
        pq.write_table(table, temporary)
    shutil.rmtree(parts.folder)
    return _summarise(output, table, batches, pairs, rate)


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

    def score(self, batch: dict[str, Tensor]) -> np.ndarray:
        """Log-probabilities of a batch, columns 2 to 5 of the file."""
        batch = {name: value.to(self.device) for name, value in batch.items()}
        policy = _sum_logps(self.policy, batch)
        if self.reference is None:
            with self.policy.disable_adapter():
                reference = _sum_logps(self.policy, batch)
        else:
            reference = _sum_logps(self.reference, batch)
        return np.concatenate([policy.reshape(2, -1), reference.reshape(2, -1)]).T

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
def _sum_logps(model: Any, batch: dict[str, Tensor]) -> np.ndarray:
    """Sum of the token log-probabilities of every completion: softmax in float32, sum in float64.

    One sequence at a time, so that no second copy of all logits is needed.
    """
    ids, mask = batch["input_ids"], batch["completion_mask"]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits[
        :, -ids.shape[1] :
    ]  # virtual tokens of a prompt adapter stand in front
    sums = []
    for row in range(len(ids)):
        positions = mask[row, 1:].nonzero().squeeze(1)
        log_probs = logits[row, positions].float().log_softmax(-1)
        tokens = log_probs.gather(1, ids[row, positions + 1].unsqueeze(1))
        sums.append(tokens.cpu().double().sum().item())
    return np.array(sums)


@dataclass(frozen=True)
class _Batches:
    """Tokenised pairs in the order of their length, the longest first."""

    pairs: Dataset  # prompt_ids, chosen_ids, rejected_ids, source_row
    kept: np.ndarray  # their positions in the data
    order: np.ndarray
    config: MarginsConfig
    collator: DataCollatorForPreference
    too_long: int
    truncated: int

    @classmethod
    def prepare(cls, data: PreferenceData, models: _Models, config: MarginsConfig) -> "_Batches":
        columns = [c for c in data.pairs.column_names if c in (*TEXT_COLUMNS, ROW_COLUMN)]
        columns += [c for c in ("tools", "chat_template_kwargs") if c in data.pairs.column_names]
        tokenized = tokenize_pairs(data.pairs.select_columns(columns), models.tokenizer)
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        tokenized = tokenized.select_columns([*names, ROW_COLUMN])
        prompts, chosen, rejected = (np.array([len(i) for i in tokenized[n]]) for n in names)
        kept = np.flatnonzero(prompts < config.max_length)
        if len(kept) == 0:
            raise DataError(f"{data.source}: max_length: no prompt is shorter than the limit")
        lengths = (prompts + np.maximum(chosen, rejected))[kept]
        batches = cls(
            pairs=tokenized.select(kept),
            kept=kept,
            order=np.argsort(-np.minimum(lengths, config.max_length), kind="stable"),
            config=config,
            collator=DataCollatorForPreference(
                pad_token_id=models.tokenizer.pad_token_id, max_length=config.max_length
            ),
            too_long=len(data.pairs) - len(kept),
            truncated=int((lengths > config.max_length).sum()),
        )
        batches._check_fit(models, int(lengths.max()))
        return batches

    def _check_fit(self, models: _Models, longest: int) -> None:
        limit = models.longest()
        if limit is not None and min(longest, self.config.max_length) > limit:
            raise ConfigError(f"max_length: the models take at most {limit} tokens; lower it")
        columns = (self.pairs[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        largest = max(max(ids, default=0) for column in columns for ids in column)
        if largest >= models.vocabulary():
            raise ConfigError(
                f"model: the tokenizer has the token {largest}, the models only "
                f"{models.vocabulary()} tokens"
            )

    def __len__(self) -> int:
        return -(-len(self.order) // self.config.batch_size)

    def rows(self, number: int) -> np.ndarray:
        """Positions of the pairs of a batch."""
        start = number * self.config.batch_size
        return self.order[start : start + self.config.batch_size]

    def collate(self, number: int) -> dict[str, Tensor]:
        """A padded batch, first the chosen responses, then the rejected ones."""
        return self.collator([self.pairs[int(i)] for i in self.rows(number)])

    @cached_property
    def digest(self) -> str:
        """Hash of everything that is fed to the models: data, tokenizer, lengths."""
        digest = hashlib.sha256(str(self.config.max_length).encode())
        for pair in self.pairs:
            digest.update(json.dumps(list(pair.values())).encode())
        return digest.hexdigest()


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

    def read(self, number: int, rows: np.ndarray) -> pd.DataFrame | None:
        """A part, or None where it is missing, damaged, or not about these rows."""
        try:
            part = pd.read_parquet(self.path(number))
        except (OSError, ValueError):
            return None
        return part if np.array_equal(part["position"], rows) else None

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


def _fill(parts: _Parts, batches: _Batches, models: _Models) -> float:
    """Compute the parts that are missing; returns pairs a second."""
    show_stage(f"Scoring {len(batches.order):,} pairs on {models.device}")
    missing = [n for n, rows in _part_rows(batches) if parts.read(n, rows) is None]
    sizes = {n: len(rows) for n, rows in _part_rows(batches)}
    todo = sum(sizes[n] for n in missing)
    started = time.monotonic()
    with tqdm(total=len(batches.order), initial=len(batches.order) - todo, unit="pair") as bar:
        for number in missing:
            first = number * _BATCHES_A_PART
            scored = []
            for batch in range(first, min(first + _BATCHES_A_PART, len(batches))):
                scored.append(_score_batch(batches, batch, models))
                bar.update(len(scored[-1]))
            parts.write(number, pd.concat(scored, ignore_index=True))
    return todo / max(time.monotonic() - started, 1e-9) if todo else 0.0


def _part_rows(batches: _Batches) -> Iterator[tuple[int, np.ndarray]]:
    size = _BATCHES_A_PART * batches.config.batch_size
    for number, start in enumerate(range(0, len(batches.order), size)):
        yield number, batches.order[start : start + size]


def _score_batch(batches: _Batches, number: int, models: _Models) -> pd.DataFrame:
    rows, batch = batches.rows(number), batches.collate(number)
    try:
        logps = models.score(batch)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"batch_size: {batches.config.batch_size} pairs of {batch['input_ids'].shape[1]} "
            f"tokens do not fit into the memory of {models.device}; lower it"
        ) from error
    bad = ~np.isfinite(logps).all(axis=1)
    if bad.any():
        bad_rows = [batches.pairs[int(i)][ROW_COLUMN] for i in rows[bad]]
        raise NonFiniteLossError(f"the log-probabilities of rows {bad_rows} are not finite")
    tokens = batch["completion_mask"][:, 1:].sum(1).numpy().reshape(2, -1)
    part = pd.DataFrame(logps, columns=list(MARGIN_COLUMNS[2:6]))
    return part.assign(position=rows, chosen_tokens=tokens[0], rejected_tokens=tokens[1])


def _assemble(parts: _Parts, batches: _Batches, data: PreferenceData) -> pa.Table:
    """All parts in the order of the data, and the columns of the source but the texts."""
    read = [parts.read(number, rows) for number, rows in _part_rows(batches)]
    if any(part is None for part in read):
        raise OutputError(f"{parts.folder}: a part was changed while the margins were computed")
    scores = pd.concat(read).sort_values("position").reset_index(drop=True)
    scores[ROW_COLUMN] = batches.pairs[ROW_COLUMN][:]
    log_ratios = {
        side: scores[f"policy_{side}_logps"] - scores[f"reference_{side}_logps"]
        for side in ("chosen", "rejected")
    }
    scores["margin"] = log_ratios["chosen"] - log_ratios["rejected"]
    table = pa.Table.from_pandas(scores[list(MARGIN_COLUMNS)], preserve_index=False)
    source = data.pairs.select(batches.kept)
    extras = [c for c in source.column_names if c not in (*TEXT_COLUMNS, ROW_COLUMN)]
    if extras:
        columns = source.select_columns(extras).with_format("arrow")[:]
        for name in extras:
            free = f"{name}_source" if name in MARGIN_COLUMNS else name
            table = table.append_column(free, columns[name])
    facts = json.loads((parts.folder / _INPUTS_FILE).read_text())
    facts |= {"source": data.source, "max_length": batches.config.max_length}
    return table.replace_schema_metadata({_METADATA_KEY: json.dumps(facts)})


def _summarise(
    path: Path, table: pa.Table, batches: _Batches, data: PreferenceData, rate: float
) -> MarginsSummary:
    margin = table["margin"].to_numpy()
    dropped = dict(data.dropped)
    if batches.too_long:
        dropped["a prompt longer than max_length"] = batches.too_long
    return MarginsSummary(
        path=path,
        num_pairs=len(margin),
        dropped=dropped,
        truncated=batches.truncated,
        accuracy=float(np.mean((margin > 0) + 0.5 * (margin == 0))),
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
