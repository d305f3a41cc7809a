"""What to do with win rates, in one sentence; what must be mended first comes first."""

from collections.abc import Sequence

from mixdpo_pyro.winrates.differences import MOST_SEEDS, MOST_TIMES, WORTHWHILE, ArmDifference
from mixdpo_pyro.winrates.equal_kl import ways_to_reach
from mixdpo_pyro.winrates.record import RunRate, WinrateRecord

__all__ = ["FEW_SEEDS", "doubts", "join_words", "recommend_arm"]

FEW_SEEDS = "train at least three seeds of each arm, the same ones (mixdpo sweep)"

_LEFT = 0.95
"""Share in the grammar below which a policy has left the language."""

_CUT = 0.5
"""Share of completions that end by themselves below which beginnings were judged."""


def recommend_arm(record: WinrateRecord) -> str:
    """Which arm to use, or what would tell, in one sentence.

    No arm is recommended while there are `doubts`, nor where the interval of its difference from
    the first arm holds zero.

    Args:
        record: What was found.
    """
    if len(record.arms) == 1:
        more = "" if record.kl is not None else f", and {_several_weights(record)}"
        return (
            "Add runs of another arm with the same seeds, the control before the others "
            f"(mixdpo sweep){more}: one arm alone is compared with nothing but the reference."
        )
    if record.kl is None:
        return (
            f"No comparison yet, since nothing is at equal KL: {ways_to_reach(record.runs, None)}."
        )
    if record.differences:
        return _compare(record)
    if _most_shared_seeds(record) < 2:
        return f"Cannot tell: {FEW_SEEDS}, since one seed supports no claim."
    return (
        f"Cannot tell: fewer than two seeds of two arms reach a KL of {record.kl:.2f} on both "
        f"sides; {ways_to_reach(record.runs, record.kl)}."
    )


def doubts(record: WinrateRecord) -> list[str]:
    """What to mend or to look at before any win rate is read, a sentence each.

    Args:
        record: What was found.
    """
    found = []
    ended = {_name(rate): rate.finished for rate in record.runs}
    ended["the reference"] = record.reference_finished
    cut = [name for name, share in ended.items() if share < _CUT]
    if cut:
        found.append(
            f"Raise --max_new_tokens first: most completions of {_few(cut)} were cut off "
            f"({100 * (1 - min(ended.values())):.0f}% at worst), so that beginnings were judged."
        )
    kept = {_name(rate): rate.in_grammar for rate in record.runs if rate.in_grammar is not None}
    left = [name for name, share in kept.items() if share < _LEFT]
    if left:
        reference = 1 - (record.reference_in_grammar or 0.0)
        found.append(
            f"Read completions.parquet first: completions of {_few(left)} left the language of "
            f"the simulated world ({100 * (1 - min(kept.values())):.0f}% at worst; the "
            f"reference's: {100 * reference:.0f}%)."
        )
    return found


def join_words(words: Sequence[str], last: str = "and") -> str:
    """Words with commas, and a word before the last of them.

    Example:
        >>> join_words(["a", "b", "c"])
        'a, b and c'
    """
    return f" {last} ".join([part for part in (", ".join(words[:-1]), words[-1]) if part])


def _compare(record: WinrateRecord) -> str:
    """The differences from the first arm, after what follows from them."""
    found = sorted(record.differences, key=lambda each: -each.difference)
    first, seeds = record.arms[0].arm, sorted({each.seeds for each in found})
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    known = {first, *(each.arm for each in found)}
    clauses = [_clause(each) for each in found]
    others = (_quoted(arm.arm) for arm in record.arms if arm.arm not in known)
    clauses += [f"{name} cannot be compared" for name in others]
    return (
        f"{_lead(found, record)}: against the reference at equal KL, over {number} seeds and "
        f"{record.prompts:,} prompts, {'; '.join(clauses)}{_what_would_tell(record)}."
    )


def _lead(found: Sequence[ArmDifference], record: WinrateRecord) -> str:
    """What follows for who chooses an arm."""
    first = record.arms[0].arm
    better = [_quoted(each.arm) for each in found if each.low > 0]
    if doubts(record):
        return "As judged so far"
    if better:
        return f"Use {join_words(better, 'or')}"
    if any(each.is_clear for each in found):
        return f"Keep {_quoted(first)}"
    is_equal = all(each.is_small for each in found) and len(found) == len(record.arms) - 1
    return "Use whichever is simpler" if is_equal else "No difference shown"


def _clause(each: ArmDifference) -> str:
    ends = f"[{each.low:+.1f}, {each.high:+.1f}]"
    arm, against = _quoted(each.arm), _quoted(each.against)
    if each.is_clear:
        word = "more" if each.low > 0 else "fewer"
        return f"{arm} wins {abs(each.difference):.1f} points {word} than {against} {ends}"
    if each.is_small:
        return f"{arm} and {against} differ by less than a point {ends}"
    return f"{arm} is {each.difference:+.1f} points from {against} {ends}"


def _quoted(name: str) -> str:
    """A name that would be read as several words."""
    return f"'{name}'" if " " in name else name


def _what_would_tell(record: WinrateRecord) -> str:
    """Seeds and prompts that would show a difference worth having, where none was shown."""
    unclear = [each for each in record.differences if not (each.is_clear or each.is_small)]
    if not unclear or len(unclear) < len(record.differences):
        return ""
    shown = f"would show a difference of {WORTHWHILE:g} point"
    if any(each.needed_seeds is None for each in unclear):
        return f"; not even {MOST_SEEDS} seeds on {MOST_TIMES * record.prompts:,} prompts {shown}"
    seeds = max(each.needed_seeds or 0 for each in unclear)
    prompts = max(each.needed_prompts or 0 for each in unclear)
    if prompts > record.prompts:
        return f"; about {seeds} seeds on {prompts:,} prompts {shown}"
    more = seeds - min(each.seeds for each in unclear)
    return f"; about {more} more {'seed' if more == 1 else 'seeds'} of each arm {shown}"


def _several_weights(record: WinrateRecord) -> str:
    weights = sorted({0.5, 0.7, *(rate.weight for rate in record.runs)})
    return f"decode at several weights (--decoding_weights {' '.join(f'{w:g}' for w in weights)})"


def _most_shared_seeds(record: WinrateRecord) -> int:
    """Seeds that the first arm has in common with another, at most."""
    of: dict[str, set[int]] = {}
    for rate in record.runs:
        of.setdefault(rate.arm, set()).add(rate.seed)
    first, *others = of.values()
    return max(len(first & seeds) for seeds in others)


def _name(rate: RunRate) -> str:
    at = "" if rate.weight == 1 else f" at weight {rate.weight:g}"
    return f"{rate.arm} of beta {rate.beta:g} and seed {rate.seed}{at}"


def _few(names: Sequence[str]) -> str:
    """The first of them, and how many there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
