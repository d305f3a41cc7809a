"""The readers by name."""

from mixdpo_pyro.data.readers.base import FORM_OPTIONS, PAIRING_OPTIONS, Reader
from mixdpo_pyro.data.readers.hh_rlhf import read_hh_rlhf
from mixdpo_pyro.data.readers.multipref import read_multipref
from mixdpo_pyro.data.readers.prism import read_prism
from mixdpo_pyro.data.readers.ultrafeedback import read_ultrafeedback
from mixdpo_pyro.errors import ConfigError

__all__ = ["READERS", "find_reader"]


def find_reader(spec: str) -> tuple[Reader, frozenset[str]]:
    """The reader `NAME` or `NAME:option,option` and its options.

    Raises:
        ConfigError: Naming the readers or options that there are.
    """
    name, _, options = spec.partition(":")
    if name not in READERS:
        raise ConfigError(f"reader: unknown reader '{name}'; there are {', '.join(READERS)}")
    reader = READERS[name]
    return reader, reader.choose(options.split(","))


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader("hh-rlhf", "Anthropic HH-RLHF", (("text", "messages"),), read_hh_rlhf),
        Reader(
            "prism", "PRISM, utterances or conversations", (FORM_OPTIONS, PAIRING_OPTIONS),
            read_prism, hub_config="utterances",
        ),
        Reader("multipref", "MultiPref, a pair a judgement", (FORM_OPTIONS,), read_multipref),
        Reader(
            "ultrafeedback", "UltraFeedback, raw or binarized",
            (FORM_OPTIONS, PAIRING_OPTIONS, ("fine", "overall")), read_ultrafeedback,
        ),
    )
}  # fmt: skip
"""The readers, name -> reader."""
