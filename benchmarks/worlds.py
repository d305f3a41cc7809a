"""Worlds in which people differ in strength, in taste, in care, or not at all.

Every world is drawn from independent streams: strengths, margins, errors and choices.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

__all__ = ["WORLDS", "World", "draw_world"]

PEOPLE, CHOICES, SPREAD = 100, 50, 2.0


@dataclass(frozen=True)
class World:
    """What is passed to `diagnose_choices`, and what may be answered.

    Attributes:
        arguments: Arguments of `diagnose_choices`.
        values: Verdicts that are right or cautious.
        kinds: Kinds that are right or cautious where the verdict is `heterogeneous`.
        cv: True coefficient of variation of the strength.
    """

    arguments: dict[str, Any]
    values: tuple[str, ...]
    kinds: tuple[str | None, ...] = ()
    cv: float = 0.0


@dataclass
class Streams:
    """Independent streams of random numbers."""

    seed: int
    names: dict[str, np.random.Generator] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.random.Generator:
        if name not in self.names:
            number = int.from_bytes(name.encode(), "little") % 2**63
            self.names[name] = np.random.default_rng((self.seed, number))
        return self.names[name]


ALIKE = ("homogeneous", "inconclusive")
DIFFER = ("heterogeneous", "inconclusive")
PERSON = np.repeat(np.arange(PEOPLE), CHOICES)


def lognormal(streams, cv):
    scale = np.sqrt(np.log1p(cv**2))
    return np.exp(scale * streams["strength"].normal(size=PEOPLE) - scale**2 / 2)


def choose(streams, logit, margin):
    """Margins of the chosen over the other response."""
    is_first = streams["choice"].random(len(logit)) < expit(logit)
    return np.where(is_first, margin, -margin), np.where(is_first, 1, -1)


def exact(streams, cv):
    """Margins without errors."""
    delta = streams["margin"].normal(0, SPREAD, len(PERSON))
    margin, _ = choose(streams, lognormal(streams, cv)[PERSON] * delta, delta)
    values = ALIKE if cv == 0 else DIFFER
    return World({"margin": margin, "annotator": PERSON}, values, ("strength", "undetermined"), cv)


def careless(streams, share=0.2, **options):
    """Equal people, of whom some answer half of the time at random."""
    rate = np.where(streams["care"].random(PEOPLE) < share, 0.5, 0.0)
    return _lapsing(streams, rate, **options)


def coin_flippers(streams, share=0.1, **options):
    """Equal people, of whom some always answer at random."""
    return _lapsing(streams, (streams["care"].random(PEOPLE) < share).astype(float), **options)


def inattentive(streams, share=0.2, **options):
    """Equal people, of whom some answer at random at a rate of their own, 0.3 on average."""
    own_rate = streams["rate"].beta(1.5, 3.5, PEOPLE)
    return _lapsing(
        streams, np.where(streams["care"].random(PEOPLE) < share, own_rate, 0.0), **options
    )


def _lapsing(streams, rate, cv=0.0, spread=SPREAD, people_a_pair=1):
    pair = _pairs(people_a_pair)
    delta = streams["margin"].normal(0, spread, pair.max() + 1)[pair]
    probability = expit(lognormal(streams, cv)[PERSON] * delta)
    lapses = streams["lapse"].random(len(PERSON)) < rate[PERSON]
    is_first = streams["choice"].random(len(PERSON)) < np.where(lapses, 0.5, probability)
    margin = np.where(is_first, delta, -delta)
    arguments = _arguments(margin, pair, people_a_pair)
    kinds = ("care", "undetermined") if cv == 0 else ("care", "strength", "undetermined")
    return World(arguments, ("heterogeneous", *ALIKE), kinds, cv)


def opposed(streams, share=0.3, known=False, people_a_pair=1):
    """Equal strengths; some people want the opposite in two of four respects."""
    pair = _pairs(people_a_pair)
    respects = streams["margin"].normal(0, SPREAD / 2, (pair.max() + 1, 4))[pair]
    sign = np.ones((PEOPLE, 4))
    sign[streams["taste"].random(PEOPLE) < share, 2:] = -1
    delta = respects.sum(1)
    margin, turn = choose(streams, (sign[PERSON] * respects).sum(1), delta)
    arguments = {"margin": margin, "annotator": PERSON}
    if known:
        arguments["attributes"] = {f"respect_{k}": turn * respects[:, k] for k in range(4)}
    if people_a_pair > 1:
        arguments["pair"] = pair
    return World(arguments, ("heterogeneous", *ALIKE), ("taste", "undetermined"))


def response_errors(streams, cv=0.0):
    """Twelve responses of each person's own, whose log-ratios have errors as large as they."""
    first, second = _two_of(streams, 12)
    owner = PERSON * 12
    utility, error = streams["margin"].normal(0, SPREAD / np.sqrt(2), (2, PEOPLE * 12))
    delta = utility[owner + first] - utility[owner + second]
    observed = delta + error[owner + first] - error[owner + second]
    margin, _ = choose(streams, lognormal(streams, cv)[PERSON] * delta, observed)
    arguments = {
        "margin": margin, "annotator": PERSON, "response_a": owner + first,
        "response_b": owner + second,
    }  # fmt: skip
    return World(arguments, ("inconclusive",) if cv == 0 else DIFFER, ("strength",), cv)


def _two_of(streams, size):
    first = streams["pairs"].integers(size, size=len(PERSON))
    return first, (first + streams["pairs"].integers(1, size, size=len(PERSON))) % size


def topics(streams):
    """Ten topics whose margins have scales of their own; everybody judges one topic."""
    topic = np.arange(PEOPLE) % 10
    scale = np.exp(0.5 * streams["topic"].normal(size=10))
    delta = streams["margin"].normal(0, SPREAD, len(PERSON))
    margin, _ = choose(streams, delta, delta * scale[topic[PERSON]])
    arguments = {"margin": margin, "annotator": PERSON, "groups": {"topic": topic[PERSON]}}
    return World(arguments, ALIKE)


def pair_errors(streams, cv=0.0, size=1.0):
    """Blocks of 50 pairs, each judged by five people; errors of the margins by pair."""
    pair = _pairs(5)
    delta = streams["margin"].normal(0, SPREAD, pair.max() + 1)
    observed = delta + streams["error"].normal(0, size * SPREAD, len(delta))
    margin, _ = choose(streams, lognormal(streams, cv)[PERSON] * delta[pair], observed[pair])
    arguments = {"margin": margin, "annotator": PERSON, "pair": pair}
    return World(arguments, ALIKE if cv == 0 else DIFFER, ("strength", "undetermined"), cv)


def own_pair_errors(streams, cv=0.0, size=1.0, common=None):
    """Errors of the margins, every pair judged by one person.

    With `common` a second policy is given, whose errors share that part of their variance.
    """
    delta = streams["margin"].normal(0, SPREAD, len(PERSON))
    error = streams["error"].normal(0, size * SPREAD, len(delta))
    margin, turn = choose(streams, lognormal(streams, cv)[PERSON] * delta, delta + error)
    arguments = {"margin": margin, "annotator": PERSON}
    if common is not None:
        own = streams["second"].normal(0, size * SPREAD, len(delta))
        other = np.sqrt(common) * error + np.sqrt(1 - common) * own
        arguments["second"] = turn * (delta + other)
    return World(arguments, ALIKE if cv == 0 else DIFFER, ("strength", "undetermined"), cv)


def shared_response_errors(streams, cv=0.0, size=1.0, recurring=False):
    """Prompts with four responses, whose log-ratios have errors.

    Five people see the same 50 prompts, each another pair of the four; or, recurring, ten people
    see the same 25 prompts, and each of them two of the six pairs, drawn at random.
    """
    people, prompts, each = (10, 25, 2) if recurring else (5, 50, 1)
    pairs = np.array([(i, j) for i in range(4) for j in range(i)])
    prompt = (PERSON // people) * prompts + np.tile(np.repeat(np.arange(prompts), each), PEOPLE)
    rank = streams["pairs"].random((PEOPLE * prompts, len(pairs))).argsort(1)
    if recurring:
        number = rank[:, :each].ravel()
    else:  # of one prompt's six pairs each person has another one
        number = rank[prompt, PERSON % people]
    utility, error = streams["margin"].normal(0, SPREAD / np.sqrt(2), (2, 4 * (prompt.max() + 1)))
    first, second = (4 * prompt + pairs[number, k] for k in range(2))
    delta = utility[first] - utility[second]
    observed = delta + size * (error[first] - error[second])
    margin, turn = choose(streams, lognormal(streams, cv)[PERSON] * delta, observed)
    arguments = {
        "margin": margin, "annotator": PERSON, "response_a": np.where(turn > 0, first, second),
        "response_b": np.where(turn > 0, second, first),
    }  # fmt: skip
    return World(arguments, ALIKE if cv == 0 else DIFFER, ("strength", "undetermined"), cv)


def fitted(streams, cv=0.4, weights=1000, elsewhere=False):
    """Margins of a reward model with many weights, fitted to these very choices, or to others."""
    features = streams["margin"].normal(size=(2 * len(PERSON), weights)) / np.sqrt(weights)
    delta = features @ streams["reward"].normal(0, SPREAD, weights)
    who = np.tile(PERSON, 2)
    chosen = features * choose(streams, lognormal(streams, cv)[who] * delta, delta)[1][:, None]
    trained, others = np.split(chosen, 2)

    def loss(weight):
        slope = trained @ weight
        gradient = 1e-3 * weight - expit(-slope) @ trained
        return np.logaddexp(0, -slope).sum() + 5e-4 * weight @ weight, gradient

    found = minimize(loss, np.zeros(weights), jac=True, method="L-BFGS-B")
    margin = (others if elsewhere else trained) @ found.x
    values = ALIKE if cv == 0 else DIFFER
    kinds = ("strength", "undetermined")
    return World({"margin": margin, "annotator": PERSON}, values, kinds, cv)


def strata(streams):
    """Equal people; conversations inside people are given as strata."""
    world = exact(streams, 0.0)
    conversation = np.arange(len(PERSON)) // 10
    return World(world.arguments | {"stratum": conversation}, ALIKE)


def exact_shared(streams, cv):
    """Lognormal strengths and margins without errors, ten people judging each pair."""
    return _with_strengths(streams, lognormal(streams, cv), cv, people_a_pair=10)


def two_groups(streams, **options):
    """Half of the people have strength 0.3, half 1.7: cv 0.70."""
    strength = np.where(streams["strength"].random(PEOPLE) < 0.5, 0.3, 1.7)
    return _with_strengths(streams, strength, 0.7, **options)


def zeros(streams):
    """20% of the people have no strength: cv 0.5."""
    strength = np.where(streams["strength"].random(PEOPLE) < 0.2, 0.0, 1.25)
    return _with_strengths(streams, strength, 0.5)


def pareto(streams):
    """Pareto strengths with index 3.5: cv 0.44."""
    strength = 2.5 / 3.5 * (1 + streams["strength"].pareto(3.5, PEOPLE))
    return _with_strengths(streams, strength, 1 / np.sqrt(3.5 * 1.5))


def uniform(streams, **options):
    """Strengths uniform on [0.1, 1.9]: cv 0.52."""
    strength = streams["strength"].uniform(0.1, 1.9, PEOPLE)
    return _with_strengths(streams, strength, 1.8 / 12**0.5, **options)


def _with_strengths(streams, strength, cv, people_a_pair=1):
    pair = _pairs(people_a_pair)
    delta = streams["margin"].normal(0, SPREAD, pair.max() + 1)[pair]
    margin, _ = choose(streams, strength[PERSON] * delta, delta)
    kinds = ("strength", "undetermined", "care") if (strength == 0).any() else (
        "strength", "undetermined"
    )  # fmt: skip
    return World(_arguments(margin, pair, people_a_pair), DIFFER, kinds, cv)


def _pairs(people_a_pair):
    """Pair of each row: blocks of people, of as many as a pair, judge the same 50 pairs."""
    return (PERSON // people_a_pair) * CHOICES + np.tile(np.arange(CHOICES), PEOPLE)


def _arguments(margin, pair, people_a_pair):
    known = {"pair": pair} if people_a_pair > 1 else {}
    return {"margin": margin, "annotator": PERSON} | known


WORLDS = {
    "alike": lambda s: exact(s, 0.0),
    "cv .3": lambda s: exact(s, 0.3),
    "cv .6": lambda s: exact(s, 0.6),
    "cv 1": lambda s: exact(s, 1.0),
    "20% careless": careless,
    "10% coin flippers": coin_flippers,
    "20% careless, shared by ten": lambda s: careless(s, people_a_pair=10),
    "20% coin flippers, shared by ten": lambda s: coin_flippers(s, 0.2, people_a_pair=10),
    "10% coin flippers, shared by five": lambda s: coin_flippers(s, people_a_pair=5),
    "20% lapsing, margins of 4": lambda s: inattentive(s, spread=4.0),
    "20% lapsing, margins of 4, shared by ten": lambda s: inattentive(
        s, spread=4.0, people_a_pair=10
    ),
    "cv .6, 10% coin flippers, shared by ten": lambda s: coin_flippers(
        s, cv=0.6, people_a_pair=10
    ),
    "opposed tastes": opposed,
    "opposed tastes, respects given": lambda s: opposed(s, known=True),
    "opposed tastes, shared pairs": lambda s: opposed(s, people_a_pair=5),
    "opposed tastes, shared by ten": lambda s: opposed(s, people_a_pair=10),
    "errors of own responses": response_errors,
    "topics with people nested": topics,
    "strata inside people": strata,
    "errors of shared pairs .3, cv 0": lambda s: pair_errors(s, 0.0, 0.3),
    "errors of shared pairs .6, cv 0": lambda s: pair_errors(s, 0.0, 0.6),
    "errors of shared pairs 1, cv 0": lambda s: pair_errors(s, 0.0, 1.0),
    "errors of shared pairs .3, cv .8": lambda s: pair_errors(s, 0.8, 0.3),
    "errors of shared pairs .6, cv .8": lambda s: pair_errors(s, 0.8, 0.6),
    "errors of shared pairs 1, cv .8": lambda s: pair_errors(s, 0.8, 1.0),
    "errors of own pairs .6, cv .8": lambda s: own_pair_errors(s, 0.8, 0.6),
    "errors of own pairs 1, cv .8": lambda s: own_pair_errors(s, 0.8, 1.0),
    "errors of own pairs 1, cv 0": lambda s: own_pair_errors(s, 0.0, 1.0),
    "errors of own pairs .6, cv .8, second policy": lambda s: own_pair_errors(s, 0.8, 0.6, 0.3),
    "errors of shared responses, cv 0": shared_response_errors,
    "errors of shared responses, cv .8": lambda s: shared_response_errors(s, 0.8),
    "errors of recurring responses, cv 0": lambda s: shared_response_errors(s, recurring=True),
    "errors of recurring responses, cv .8": lambda s: shared_response_errors(
        s, 0.8, recurring=True
    ),
    "margins fitted to these choices, cv .4": fitted,
    "margins fitted to others' choices, cv .4": lambda s: fitted(s, elsewhere=True),
    "cv .3, shared by ten": lambda s: exact_shared(s, 0.3),
    "cv .6, shared by ten": lambda s: exact_shared(s, 0.6),
    "cv 1, shared by ten": lambda s: exact_shared(s, 1.0),
    "two groups": two_groups,
    "two groups, shared by ten": lambda s: two_groups(s, people_a_pair=10),
    "20% at zero": zeros,
    "Pareto": pareto,
    "uniform": uniform,
    "uniform, shared by ten": lambda s: uniform(s, people_a_pair=10),
}


def draw_world(name: str, seed: int) -> World:
    """A world by its name."""
    return WORLDS[name](Streams(seed))
