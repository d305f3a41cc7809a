"""Worlds with known truth: plain-English preference pairs chosen by annotators of known strengths.

A response has four slots (greeting, answer, detail, closing). Each slot is filled from sixteen
options of known worth, and the reward of a response is the sum of its worths. An annotator ``g``
has a strength drawn from the family the caller asks for, and prefers response ``a`` to ``b`` with
probability ``sigmoid(strength_g * (reward_a - reward_b))``: the mixed logit that MixDPO assumes
(Imai et al. 2026, arXiv 2601.06180). Everything is drawn from one seed.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from pyarrow import parquet

from mixdpo_pyro.config_fields import check_kind
from mixdpo_pyro.data.choice_kinds import CHOICE_SET, GRADE, OUTCOME, RANK
from mixdpo_pyro.data.config import check_world
from mixdpo_pyro.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

    from mixdpo_pyro.models.observation import Observation

__all__ = ["SENTENCES", "Truth", "World", "response_reward", "simulate_preferences"]

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

_REWARD = "reward_margin"
"""Column of the true reward difference."""

SENTENCES = {
    text: (slot, worth)
    for slot, options in enumerate(_OPTIONS)
    for text, worth in zip(options, _OPTION_WORTHS.tolist(), strict=True)
}
"""Sentence of the grammar -> number of its slot, and its worth."""


@dataclass(frozen=True)
class Truth:
    """What a simulated world was drawn from.

    Attributes:
        family: Family of the strengths.
        mean: Mean strength per unit of reward.
        cv: Coefficient of variation of the strengths.
        seed: Seed of everything that was drawn.
        kind: What annotators were asked for.
        thresholds: Cut points between outcomes, in units of strength times reward; empty where
            there are no ties and no grades.
        strengths: Annotator id -> true strength.
    """

    family: str
    mean: float
    cv: float
    seed: int
    kind: str
    thresholds: list[float]
    strengths: dict[str, float]


@dataclass(frozen=True)
class World:
    """A simulated preference dataset and the truth it was drawn from.

    Attributes:
        table: Columns `prompt`, `chosen`, `rejected`, `annotator`, `reward_margin`; the last is
            the true reward difference chosen minus rejected, and no model sees it. With ties also
            `outcome` and with grades `grade`, of the response in `chosen`; with choices among
            several a row per other response, with `choice_set`, and with rankings `rank`.
        truth: What it was drawn from.
    """

    table: pa.Table
    truth: Truth

    @cached_property
    def dataset(self) -> "Dataset":
        """The same table as trainers take it."""
        from datasets import Dataset  # of the extra `train`

        return Dataset(self.table)

    def save(self, folder: str | Path) -> None:
        """Write `pairs.parquet`, `margins.parquet` and `truth.json` into a folder.

        The margins are those of a policy without errors: the true reward differences.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(self.table, folder / "pairs.parquet")
        names = ["margin" if name == _REWARD else name for name in self.table.column_names]
        margins = self.table.rename_columns(names)
        untrained = pa.array(np.zeros(len(margins), dtype=bool))
        margins = margins.append_column("trained_on", untrained)
        parquet.write_table(margins, folder / "margins.parquet")
        (folder / "truth.json").write_text(json.dumps(asdict(self.truth), indent=2) + "\n")


def simulate_preferences(
    num_annotators: int = 200,
    pairs_per_annotator: int = 40,
    family: str = "lognormal",
    mean: float = 1.0,
    cv: float = 0.6,
    seed: int = 0,
    kind: str = "pairs",
    judges_per_pair: int = 1,
) -> World:
    r"""Draw a world: prompts, responses, annotators and what they did.

    .. math:: \beta_g \sim p(\cdot \mid m, cv), \qquad
              P(a \succ b) = \sigma\big(\beta_g (\text{reward}(a) - \text{reward}(b))\big)

    Ties and grades are an ordered logit, choices of the best multinomial, and rankings those of
    Plackett and Luce, with the same strengths and rewards. The response in `chosen` is the better
    one, or either one of a tie.

    Args:
        num_annotators: Number of annotators, at least 1.
        pairs_per_annotator: Choices of each annotator, at least 1.
        family: Family of the strengths, `"lognormal"` or `"gamma"`.
        mean: Mean strength per unit of reward, 1e-100 to 1e100.
        cv: Coefficient of variation of the strengths, 0 to 1000; 0 makes all annotators alike.
        seed: Seed of everything that is drawn.
        kind: What is asked of annotators: `"pairs"`, `"ties"`, `"grades:G"` (3 to 11 grades),
            `"best-of:K"` or `"ranking:K"` (2 to 26 responses).
        judges_per_pair: How many annotators judge the same prompt and responses, a divisor of
            `num_annotators`; who judges what is random.

    Returns:
        The dataset with its truth. Reward differences have mean 0 and standard deviation 3.16.

    Raises:
        ConfigError: If an argument is outside its domain.
    """
    if family not in ("lognormal", "gamma"):
        raise ConfigError(f"family: expected lognormal or gamma, got {family!r}")
    check_world(num_annotators, pairs_per_annotator, mean, cv, seed, judges_per_pair)
    observation, size = _read_kind(kind)
    rng = np.random.default_rng(seed)
    strengths = _draw_strengths(rng, family, mean, cv, num_annotators)
    annotator = np.repeat(np.arange(num_annotators), pairs_per_annotator)
    num_judged = len(annotator) // judges_per_pair
    prompts = _draw_prompts(rng, num_judged)
    options = _draw_options(rng, num_judged, size)
    if judges_per_pair > 1:
        judged = np.concatenate([rng.permutation(num_judged) for _ in range(judges_per_pair)])
        prompts, options = [prompts[i] for i in judged], options[judged]
    reward = _OPTION_WORTHS[options].sum(2)
    if kind == "pairs":
        difference = reward[:, 0] - reward[:, 1]
        prefers_first = rng.random(len(annotator)) < _sigmoid(strengths[annotator] * difference)
        done = _Done(np.where(prefers_first[:, None], [0, 1], [1, 0]))
    else:
        done = _draw_choices(rng, observation, reward, strengths[annotator])
    ids = [f"annotator-{g:04d}" for g in range(num_annotators)]
    columns = _columns(prompts, options, reward, [ids[g] for g in annotator], done)
    shuffle = rng.permutation(len(columns["prompt"]))
    table = pa.table({k: [v[i] for i in shuffle] for k, v in columns.items()})
    truth = Truth(
        family, mean, cv, seed, kind, _thresholds(observation),
        dict(zip(ids, strengths.tolist(), strict=True)),
    )  # fmt: skip
    return World(table, truth)


def response_reward(response: str) -> float:
    """Reward of a response of the grammar: the sum of its sentences' worths.

    Raises:
        ValueError: If a sentence is not of the grammar.
    """
    remaining, total = response.strip(), 0.0
    while remaining:
        sentence = next((s for s in SENTENCES if remaining.startswith(s)), None)
        if sentence is None:
            raise ValueError(f"Expected sentences of the simulated grammar, got {remaining!r}")
        total += SENTENCES[sentence][1]
        remaining = remaining.removeprefix(sentence).lstrip()
    return total


def _read_kind(kind: str) -> tuple["Observation", int]:
    """The observation model of a kind of choice, and how many responses each is among."""
    from mixdpo_pyro.inference.calibration.simulation import parse_kind

    check_kind("kind", kind)
    return parse_kind(kind)


def _thresholds(observation: "Observation") -> list[float]:
    """Positive cut points, or the threshold of ties."""
    return observation.unconstrained().exp().cumsum(0).tolist()


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


def _draw_options(
    rng: np.random.Generator, number: int, size: int
) -> Int[np.ndarray, "number size slots"]:
    """Option indices of the slots of each response; no choice has two identical responses."""
    num_options = len(_OPTION_WORTHS)
    options = np.stack(
        [rng.integers(num_options, size=(number, len(_OPTIONS))) for _ in range(size)], axis=1
    )
    for k in range(1, size):
        same = (options[:, :k] == options[:, k : k + 1]).all(2).any(1)
        while same.any():
            options[same, k, 0] = (options[same, k, 0] + 1) % num_options
            same = (options[:, :k] == options[:, k : k + 1]).all(2).any(1)
    return options


@dataclass(frozen=True)
class _Done:
    """What was done in each choice.

    Attributes:
        order: Responses of each choice, the preferred ones first.
        rank: Ranks in this order, from 1; 0 where a response was given none.
        grade: How much better the first response is than the second, of judgements.
        are_ties: Whether these are pairs with ties, not grades.
    """

    order: Int[np.ndarray, "choices size"]
    rank: Int[np.ndarray, "choices size"] | None = None
    grade: Int[np.ndarray, " choices"] | None = None
    are_ties: bool = False


def _draw_choices(
    rng: np.random.Generator,
    observation: "Observation",
    reward: Float[np.ndarray, "choices size"],
    strength: Float[np.ndarray, " choices"],
) -> _Done:
    """What annotators do, other than to prefer one of two responses."""
    import torch

    from mixdpo_pyro.inference.calibration.simulation import as_grades
    from mixdpo_pyro.models.observation import RaoKupper

    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    beta = torch.from_numpy(strength)
    if observation.takes_sets:
        sets = torch.arange(len(reward)).repeat_interleave(reward.shape[1])
        utility = torch.from_numpy(reward.ravel())
        drawn = observation.sample(utility, beta, sets, generator=generator)
        rank = drawn.numpy().reshape(reward.shape)
        order = np.argsort(np.where(rank > 0, rank, reward.shape[1] + 1), axis=1, kind="stable")
        return _Done(order, np.take_along_axis(rank, order, 1))
    margin = torch.from_numpy(reward[:, 0] - reward[:, 1])
    code = observation.sample(margin, beta, generator=generator).numpy()
    grade = as_grades(code, observation)
    order = np.where((grade >= 0)[:, None], [0, 1], [1, 0])
    return _Done(order, None, np.abs(grade), isinstance(observation, RaoKupper))


def _columns(
    prompts: list[str],
    options: Int[np.ndarray, "choices size slots"],
    reward: Float[np.ndarray, "choices size"],
    annotator: list[str],
    done: _Done,
) -> dict[str, list]:
    """Columns of a table: the preferred response of each choice against each other one."""
    size = done.order.shape[1]
    choice = np.repeat(np.arange(len(prompts)), size - 1)
    chosen = np.repeat(done.order[:, 0], size - 1)
    rejected = done.order[:, 1:].ravel()
    columns: dict[str, list] = {
        "prompt": [prompts[i] for i in choice],
        "chosen": [_render(row) for row in options[choice, chosen]],
        "rejected": [_render(row) for row in options[choice, rejected]],
        "annotator": [annotator[i] for i in choice],
        _REWARD: (reward[choice, chosen] - reward[choice, rejected]).tolist(),
    }
    if done.rank is not None:
        columns[CHOICE_SET] = [f"choice-{i:06d}" for i in choice]
        if done.rank[:, 1:].any():
            columns[RANK] = done.rank[:, 1:].ravel().tolist()
    if done.grade is not None and done.are_ties:
        columns[OUTCOME] = np.where(done.grade > 0, "win", "tie").tolist()
    elif done.grade is not None:
        columns[GRADE] = done.grade.tolist()
    return columns


def _render(options: np.ndarray) -> str:
    """The response as text, with the leading space that separates it from its prompt."""
    return " " + " ".join(_OPTIONS[slot][option] for slot, option in enumerate(options))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))
