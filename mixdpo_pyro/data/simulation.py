"""Worlds with known truth: plain-English preference pairs chosen by annotators of known strengths.

A response has four slots (greeting, answer, detail, closing). Each slot is filled from sixteen
options of known worth, and the reward of a response is the sum of its worths. An annotator ``g``
has a strength drawn from the family the caller asks for, and prefers response ``a`` to ``b`` with
probability ``sigmoid(strength_g * (reward_a - reward_b))``: the mixed logit that MixDPO assumes
(Imai et al. 2026, arXiv 2601.06180). Everything is drawn from one seed.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from mixdpo_pyro.data.config import check_world
from mixdpo_pyro.errors import ConfigError

__all__ = ["Truth", "World", "response_reward", "simulate_preferences"]

_TASKS = (
    "boil an egg", "clean a wooden table", "plan a short trip", "water a fern",
    "write a thank-you note", "pack a small suitcase", "fix a squeaky door", "brew green tea",
    "choose a birthday gift", "learn ten new words", "store fresh herbs", "wash a wool sweater",
    "prepare for an interview", "set up a quiet desk", "bake a simple bread", "mend a torn sleeve",
    "start a small garden", "sharpen a kitchen knife", "read a long report", "sleep better",
)  # fmt: skip

_QUESTIONS = (
    "How should I {task}?",
    "What is a good way to {task}?",
    "I want to {task}. What do you suggest?",
)


# Sixteen options a slot in four groups of equal worth. With uniform choice the worth of a slot has
# variance 1.25, so the reward difference of two responses has variance 2 * 4 * 1.25 = 10.
_WORTHS = (1.5, 0.5, -0.5, -1.5)

_SLOTS = {
    "greeting": (
        ("Happy to help with that.", "What a nice thing to do.", "Good plan, let me help.",
         "Gladly, here is what works."),
        ("Here is an answer.", "Sure.", "Let us see.", "This comes up often."),
        ("You could look this up.", "People ask this a lot.", "If you must know.",
         "It is hard to say."),
        ("Why would you ask me that?", "I have no time for this.", "That is a silly question.",
         "Do not bother me."),
    ),
    "answer": (
        ("Go step by step and check each step.", "Begin with a plan and a clear list.",
         "Take your time and use the right tools.", "Start small and test it first."),
        ("Follow the usual order.", "Use what you have at home.", "Keep it simple.",
         "Do the easy part first."),
        ("Just do something.", "Try a thing or two.", "Guess and see.", "Skip the planning."),
        ("Give up before you start.", "Do it wrong and leave it.", "Break it and buy another.",
         "Let somebody else suffer."),
    ),
    "detail": (
        ("It takes ten minutes, and a timer helps.", "Measure twice so that nothing is wasted.",
         "A cup of warm water is enough.", "Two short sessions beat a long one."),
        ("It does not take long.", "A little care is enough.", "Most people manage it.",
         "You need few things for it."),
        ("It takes some time or other.", "The details do not matter.", "Things happen.",
         "It may or may not work."),
        ("Nobody cares about the details.", "I will not explain it.", "It never works anyway.",
         "Details are for fools."),
    ),
    "closing": (
        ("Tell me how it went, and enjoy it.", "Ask me again if you get stuck.",
         "You can do this, good luck.", "I hope this makes your day easier."),
        ("Good luck.", "That should do it.", "Have a nice day.", "That is the main idea."),
        ("That is all I know.", "Whatever you like.", "So much for that.", "End of answer."),
        ("Now leave me alone.", "Do not come back.", "You will fail anyway.", "What a waste."),
    ),
}  # fmt: skip

_EQUAL = 1e-100
"""Strengths with a smaller cv are equal in floating point, and their gamma shape overflows."""

_OPTIONS = [[text for group in groups for text in group] for groups in _SLOTS.values()]

_OPTION_WORTHS = np.repeat(_WORTHS, 4)

_WORTH_OF_SENTENCE = {
    text: worth
    for options in _OPTIONS
    for text, worth in zip(options, _OPTION_WORTHS.tolist(), strict=True)
}


@dataclass(frozen=True)
class Truth:
    """What a simulated world was drawn from.

    Attributes:
        family: Family of the strengths.
        mean: Mean strength per unit of reward.
        cv: Coefficient of variation of the strengths.
        seed: Seed of everything that was drawn.
        strengths: Annotator id -> true strength.
    """

    family: str
    mean: float
    cv: float
    seed: int
    strengths: dict[str, float]


@dataclass(frozen=True)
class World:
    """A simulated preference dataset and the truth it was drawn from.

    Attributes:
        dataset: Columns `prompt`, `chosen`, `rejected`, `annotator`, `reward_margin`; the last is
            the true reward difference chosen minus rejected, and no model sees it.
        truth: What it was drawn from.
    """

    dataset: Dataset
    truth: Truth

    def save(self, folder: str | Path) -> None:
        """Write the dataset (`save_to_disk` format) and `truth.json` beside it."""
        folder = Path(folder)
        self.dataset.save_to_disk(str(folder / "dataset"))
        (folder / "truth.json").write_text(json.dumps(asdict(self.truth), indent=2) + "\n")


def simulate_preferences(
    num_annotators: int = 200,
    pairs_per_annotator: int = 40,
    family: str = "lognormal",
    mean: float = 1.0,
    cv: float = 0.6,
    seed: int = 0,
) -> World:
    r"""Draw a world: prompts, pairs of responses, annotators and their choices.

    .. math:: \beta_g \sim p(\cdot \mid m, cv), \qquad
              P(a \succ b) = \sigma\big(\beta_g (\text{reward}(a) - \text{reward}(b))\big)

    Args:
        num_annotators: Number of annotators, at least 1.
        pairs_per_annotator: Choices of each annotator, at least 1.
        family: Family of the strengths, `"lognormal"` or `"gamma"`.
        mean: Mean strength per unit of reward, 1e-100 to 1e100.
        cv: Coefficient of variation of the strengths, 0 to 1000; 0 makes all annotators alike.
        seed: Seed of everything that is drawn.

    Returns:
        The dataset with its truth. Reward differences have mean 0 and standard deviation 3.16.

    Raises:
        ConfigError: If an argument is outside its domain.
    """
    if family not in ("lognormal", "gamma"):
        raise ConfigError(f"family: expected lognormal or gamma, got {family!r}")
    check_world(num_annotators, pairs_per_annotator, mean, cv, seed)
    rng = np.random.default_rng(seed)
    strengths = _draw_strengths(rng, family, mean, cv, num_annotators)
    num_pairs = num_annotators * pairs_per_annotator
    annotator = np.repeat(np.arange(num_annotators), pairs_per_annotator)

    prompts = _draw_prompts(rng, num_pairs)
    first, second = _draw_option_pairs(rng, num_pairs)
    reward_margin = _OPTION_WORTHS[first].sum(1) - _OPTION_WORTHS[second].sum(1)
    prefers_first = rng.random(num_pairs) < _sigmoid(strengths[annotator] * reward_margin)

    chosen = np.where(prefers_first[:, None], first, second)
    rejected = np.where(prefers_first[:, None], second, first)
    ids = [f"annotator-{g:04d}" for g in range(num_annotators)]
    shuffle = rng.permutation(num_pairs)
    dataset = Dataset.from_dict(
        {
            "prompt": [prompts[i] for i in shuffle],
            "chosen": [_render(chosen[i]) for i in shuffle],
            "rejected": [_render(rejected[i]) for i in shuffle],
            "annotator": [ids[annotator[i]] for i in shuffle],
            "reward_margin": np.where(prefers_first, reward_margin, -reward_margin)[shuffle],
        }
    )
    truth = Truth(family, mean, cv, seed, dict(zip(ids, strengths.tolist(), strict=True)))
    return World(dataset, truth)


def response_reward(response: str) -> float:
    """Reward of a response of the grammar: the sum of its sentences' worths.

    Raises:
        ValueError: If a sentence is not of the grammar.
    """
    remaining, total = response.strip(), 0.0
    while remaining:
        sentence = next((s for s in _WORTH_OF_SENTENCE if remaining.startswith(s)), None)
        if sentence is None:
            raise ValueError(f"Expected sentences of the simulated grammar, got {remaining!r}")
        total += _WORTH_OF_SENTENCE[sentence]
        remaining = remaining.removeprefix(sentence).lstrip()
    return total


def _draw_strengths(
    rng: np.random.Generator, family: str, mean: float, cv: float, size: int
) -> np.ndarray:
    if cv < _EQUAL:
        return np.full(size, mean)
    if family == "gamma":
        return rng.gamma(shape=cv**-2, scale=mean * cv**2, size=size)
    scale = np.sqrt(np.log1p(cv**2))
    return rng.lognormal(mean=np.log(mean) - scale**2 / 2, sigma=scale, size=size)


def _draw_prompts(rng: np.random.Generator, size: int) -> list[str]:
    tasks = rng.integers(len(_TASKS), size=size)
    questions = rng.integers(len(_QUESTIONS), size=size)
    return [_QUESTIONS[q].format(task=_TASKS[t]) for q, t in zip(questions, tasks, strict=True)]


def _draw_option_pairs(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two option indices a slot, shape `(size, slots)` each; no pair has identical responses."""
    num_options = len(_OPTION_WORTHS)
    first = rng.integers(num_options, size=(size, len(_OPTIONS)))
    second = rng.integers(num_options, size=(size, len(_OPTIONS)))
    same = (first == second).all(1)
    second[same, 0] = (second[same, 0] + 1) % num_options
    return first, second


def _render(options: np.ndarray) -> str:
    """The response as text, with the leading space that separates it from its prompt."""
    return " " + " ".join(_OPTIONS[slot][option] for slot, option in enumerate(options))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))
