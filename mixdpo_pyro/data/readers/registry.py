"""The readers by name."""

from mixdpo_pyro.data.readers.base import (
    FORM_OPTIONS,
    GRADE_OPTIONS,
    PAIRING_OPTIONS,
    TIE_OPTIONS,
    Reader,
)
from mixdpo_pyro.data.readers.chatbot_arena import read_chatbot_arena
from mixdpo_pyro.data.readers.community_alignment import read_community_alignment
from mixdpo_pyro.data.readers.coval import read_coval
from mixdpo_pyro.data.readers.helpsteer3 import read_helpsteer3
from mixdpo_pyro.data.readers.hh_rlhf import read_hh_rlhf
from mixdpo_pyro.data.readers.multipref import read_multipref
from mixdpo_pyro.data.readers.openai_feedback import read_summaries, read_webgpt
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
            "prism", "PRISM, utterances or conversations: choices among scored responses",
            (FORM_OPTIONS, PAIRING_OPTIONS), read_prism, hub_config="utterances",
        ),
        Reader(
            "multipref", "MultiPref: graded pairs", (FORM_OPTIONS, GRADE_OPTIONS), read_multipref
        ),
        Reader(
            "ultrafeedback", "UltraFeedback, raw or binarized",
            (FORM_OPTIONS, PAIRING_OPTIONS, ("fine", "overall")), read_ultrafeedback,
        ),
        Reader(
            "community-alignment", "Community Alignment: the best of four", (FORM_OPTIONS,),
            read_community_alignment,
        ),
        Reader(
            "coval", "CoVal (Collective Alignment 1): four ranked responses",
            (FORM_OPTIONS, ("ranking", "best"), ("personal", "world")), read_coval,
            hub_config="comparisons",
        ),
        Reader(
            "helpsteer3", "HelpSteer3-Preference: pairs graded -3 to 3",
            (FORM_OPTIONS, GRADE_OPTIONS, ("overall", "individual")), read_helpsteer3,
            hub_config="preference",
        ),
        Reader(
            "chatbot-arena", "Chatbot Arena: votes with ties",
            (FORM_OPTIONS, TIE_OPTIONS, ("keep-both-bad", "drop-both-bad")), read_chatbot_arena,
        ),
        Reader(
            "webgpt", "WebGPT comparisons, with ties", (FORM_OPTIONS, TIE_OPTIONS), read_webgpt
        ),
        Reader(
            "summarize-from-feedback", "OpenAI's comparisons of summaries", (FORM_OPTIONS,),
            read_summaries, hub_config="comparisons",
        ),
    )
}  # fmt: skip
"""The readers, name -> reader."""
