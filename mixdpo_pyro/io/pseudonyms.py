"""Pseudonyms of annotators and groups: keyed hashes, which only the holder of the key can repeat.

Annotators are people, and tables of strengths call some of them careless or contrary. The key is
the content of a file that its owner keeps: with it, equal ids give equal pseudonyms in every
command, so that files can still be joined; without it, an id cannot be told from its pseudonym,
not even by trying all ids there are (HMAC, RFC 2104, with SHA-256).
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixdpo_pyro.errors import DataError

__all__ = ["Pseudonyms", "check_salt"]

_LEAST_BYTES = 16
"""128 bits, which nobody tries out."""

_DIGITS = 20
"""Hexadecimal digits of a pseudonym: two of a million ids share one with probability 4e-13."""


def check_salt(path: str) -> bytes:
    """Content of a salt file.

    Raises:
        DataError: If it cannot be read, or is shorter than 16 bytes.
    """
    try:
        salt = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the salt file cannot be read ({error.strerror}); "
            "'head -c 32 /dev/urandom > FILE' makes one, to be kept and not shared"
        ) from error
    if len(salt) < _LEAST_BYTES:
        raise DataError(
            f"{path}: the salt file holds {len(salt)} bytes, expected at least {_LEAST_BYTES}"
        )
    return salt


@dataclass(frozen=True, repr=False)
class Pseudonyms:
    r"""Ids to pseudonyms, :math:`\mathrm{HMAC}_\text{salt}(\text{id})`.

    Attributes:
        salt: The key, at least 16 bytes.
    """

    salt: bytes

    @classmethod
    def from_file(cls, path: str) -> "Pseudonyms":
        """Those of a salt file.

        Raises:
            DataError: If it cannot be read, or is shorter than 16 bytes.
        """
        return cls(check_salt(path))

    def of(self, text: str) -> str:
        """Pseudonym of an id: `p` and 20 hexadecimal digits.

        Example:
            >>> Pseudonyms(b"0123456789abcdef").of("ann")
            'p...'
        """
        return f"p{hmac.digest(self.salt, text.encode(), 'sha256').hex()[:_DIGITS]}"

    def of_all(self, texts: Iterable[str]) -> np.ndarray:
        """Pseudonyms of texts, one object each; equal texts are hashed once."""
        texts = list(texts)
        known = {text: self.of(text) for text in set(texts)}
        found = np.empty(len(texts), dtype=object)
        found[:] = [known[text] for text in texts]
        return found
