"""The judge of the simulated world: a reward for any text, also one that leaves the language."""

import re
from dataclasses import dataclass

from mixdpo_pyro.data.simulation import SENTENCES

__all__ = ["NUM_SLOTS", "Parse", "parse_response", "total_reward"]

NUM_SLOTS = 1 + max(slot for slot, _ in SENTENCES.values())

_FAULT = 3.0
"""What a fault costs: as much as the best sentence of a slot gains over the worst."""

_FOREIGN = 40
"""Characters of foreign text that count as one more fault."""

_SENTENCE = re.compile("|".join(re.escape(s) for s in sorted(SENTENCES, key=len, reverse=True)))


@dataclass(frozen=True)
class Parse:
    """A response in the words of the grammar.

    Attributes:
        worth: Sum of the worths of each slot's first sentence.
        missing: Slots that no sentence fills.
        repeated: Sentences of a slot that was filled before, or that stand before an earlier slot.
        foreign: Pieces of text that are no sentence, at least one for every forty characters.
    """

    worth: float
    missing: int
    repeated: int
    foreign: int

    @property
    def is_in_grammar(self) -> bool:
        """Whether the response is one that the world could have drawn."""
        return self.missing == self.repeated == self.foreign == 0

    @property
    def reward(self) -> float:
        """Worth less the costs of all faults."""
        return self.worth - _FAULT * (self.missing + self.repeated + self.foreign)


def parse_response(response: str) -> Parse:
    """Read a response from left to right; what is no sentence is foreign."""
    filled: dict[int, float] = {}
    repeated = foreign = end = 0
    for match in _SENTENCE.finditer(response):
        foreign += _count_foreign(response[end : match.start()])
        slot, worth = SENTENCES[match.group()]
        if slot in filled or any(other > slot for other in filled):
            repeated += 1
        filled.setdefault(slot, worth)
        end = match.end()
    foreign += _count_foreign(response[end:])
    return Parse(sum(filled.values()), NUM_SLOTS - len(filled), repeated, foreign)


def total_reward(response: str) -> float:
    """The reward of any text: that of `response_reward` in the grammar, less elsewhere.

    Every fault (a slot that is missing, a sentence too many or out of order, foreign text) costs
    as much as a slot can gain, so that no fault pays: for each text outside of the grammar there
    is one inside, with the same sentences where they are right, that is rewarded more.

    Example:
        >>> total_reward("Sure. Keep it simple. It does not take long. Good luck.")
        2.0
        >>> total_reward("Good luck. " * 20) < -60
        True
    """
    return parse_response(response).reward


def _count_foreign(text: str) -> int:
    """Pieces of foreign text: none where there is only white space."""
    text = text.strip()
    return 1 + len(text) // _FOREIGN if text else 0
