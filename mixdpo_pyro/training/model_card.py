"""The part of a model card that is about the strength of preference."""

from pathlib import Path

from mixdpo_pyro.io import written_whole
from mixdpo_pyro.training.learned_strength import Strength

__all__ = ["CHOICE_WORDS", "PAPER", "append_strength"]

PAPER = {
    "title": "MixDPO",
    "id": "2601.06180",
    "citation": """\
@misc{imai2026mixdpo,
    title  = {{MixDPO}},
    author = {Imai and others},
    year   = 2026,
    eprint = {2601.06180},
}""",
}
"""The method's paper, in the form that TRL's model cards take."""

_HEADING = "## Preference strength"

_LOCAL = {
    "version of [None](https://huggingface.co/None)": "version of a local model",
    'model="None"': 'model="path/to/this/folder"',
}
"""What TRL writes of a model that was read from a folder -> what is true of it."""

CHOICE_WORDS = {
    "sets": "choices from sets of responses, or rankings of them",
    "rao-kupper": "judgements of pairs with ties (Rao-Kupper)",
    "davidson": "judgements of pairs with ties (Davidson)",
    "grades": "judgements of pairs in {} grades",
}
"""Kind of choice -> what training has seen, in words."""


def append_strength(card: Path, strength: Strength) -> None:
    """Add the learned strength to a model card, in place of an earlier one.

    A base model that was a folder is called that, where TRL's card names a model "None".

    Args:
        card: The card, an existing Markdown file.
        strength: What was learned.
    """
    text = card.read_text(encoding="utf-8").partition(_HEADING)[0].rstrip()
    for wrong, right in _LOCAL.items():
        text = text.replace(wrong, right)
    with written_whole(card) as temporary:
        temporary.write_text(f"{text}\n\n{_section(strength)}", encoding="utf-8")


def _section(strength: Strength) -> str:
    config, summary = strength.config, strength.summary()
    if config.family == "fixed":
        plain = "plain DPO" if config.observation == "pairs" else "DPO"
        return (
            f"{_HEADING}\n\nFixed: `beta = {config.beta:g}`"
            + (f", loss `{config.baseline}`" if config.baseline else f" ({plain})")
            + f".\n{_choices(strength)}"
        )
    draws = strength.draw(2000)["cv"]
    low, high = (draws.quantile(q).item() for q in (0.05, 0.95))
    cv = f"{summary['cv']:.3g} [{low:.3g}, {high:.3g}]"
    spread = f"{summary['q05']:.3g} to {summary['q95']:.3g}"
    return f"""\
{_HEADING}

| family | anchor of the mean | mean | cv | 90% of strengths |
| --- | --- | --- | --- | --- |
| {config.family} | {config.mean_anchor} | {summary["mean"]:.3g} | {cv} | {spread} |

The coefficient of variation `cv` says how much strengths differ; its interval (90%, of the \
guide) is conditional on the policy. Errors of a policy's margins hide differences between \
annotators, and without ids look like differences: judge on held-out pairs. Load it with \
`mixdpo_pyro.Strength.from_pretrained(folder)`.
{_choices(strength)}"""


def _choices(strength: Strength) -> str:
    """What was trained on where it was not plain pairs, and the thresholds that were learned."""
    config = strength.config
    if config.observation not in CHOICE_WORDS:
        return ""
    what = CHOICE_WORDS[config.observation].format(config.num_outcomes)
    found = [f"`{name}` {value:.3g}" for name, value in strength.thresholds().items()]
    learned = f"; {', '.join(found)}, in units of strength times margin" if found else ""
    return f"\nTrained on {what}{learned}.\n"
