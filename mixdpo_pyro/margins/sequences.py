"""The distinct token sequences of a dataset: each is scored once."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mixdpo_pyro.data.tokenization import tokenize_pairs
from mixdpo_pyro.data.validation import ROW_COLUMN, TEXT_COLUMNS, PreferenceData
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.margins.config import MarginsConfig
from mixdpo_pyro.margins.language_models import COMPLETION, PROMPT, LanguageModels

__all__ = ["Sequences"]


@dataclass(frozen=True)
class Sequences:
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
    def prepare(
        cls, data: PreferenceData, models: LanguageModels, config: MarginsConfig
    ) -> "Sequences":
        """Tokenize the pairs and number their distinct sequences, the longest first."""
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

    def hashes(self) -> dict[str, np.ndarray]:
        """Of every pair: `response_a`, `response_b` and `pair`, 16 hexadecimal digits each.

        The first two are hashes of the tokens of the chosen and rejected sequence, prompt
        included; the third is one of both in any order.
        """
        each = np.array([
            short_hash(np.int64(prompt).tobytes() + tokens)
            for prompt, tokens in zip(self.prompts, self.tokens, strict=True)
        ])  # fmt: skip
        return judged_columns(each[self.of_pair])

    def collate(self, numbers: range, padding: int) -> tuple[Tensor, Tensor]:
        """Padded tokens, and what they are: padding, prompt or completion."""
        ids = [torch.tensor(self.ids(number), dtype=torch.long) for number in numbers]
        kinds = [torch.full_like(tokens, COMPLETION) for tokens in ids]
        for kind, number in zip(kinds, numbers, strict=True):
            kind[: self.prompts[number]] = PROMPT
        padded = pad_sequence(ids, batch_first=True, padding_value=padding)
        return padded, pad_sequence(kinds, batch_first=True)

    def _check_fit(self, models: LanguageModels) -> None:
        limit = models.longest()
        if limit is not None and len(self.ids(0)) > limit:
            raise ConfigError(f"max_length: the models take at most {limit} tokens; lower it")
        largest = max(int(self.ids(number).max(initial=0)) for number in range(len(self)))
        if largest >= models.vocabulary():
            raise ConfigError(
                f"model: the tokenizer has the token {largest}, the models only "
                f"{models.vocabulary()} tokens"
            )


def judged_columns(of_pair: np.ndarray) -> dict[str, np.ndarray]:
    """Columns `pair`, `response_a` and `response_b` from hashes of both responses of each row."""
    both = ["".join(names) for names in np.sort(of_pair, axis=1)]
    pair = np.array([short_hash(names.encode()) for names in both])
    return {"pair": pair, "response_a": of_pair[:, 0], "response_b": of_pair[:, 1]}


def short_hash(content: bytes) -> str:
    """16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def _key(prompt: list[int], completion: list[int], limit: int) -> tuple[int, bytes]:
    """Length of the prompt, and all tokens, cut as TRL's collator cuts them."""
    return len(prompt), np.array([*prompt, *completion][:limit], dtype=np.int32).tobytes()
