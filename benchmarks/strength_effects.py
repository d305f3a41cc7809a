"""For whom is strength larger? False positives, power and cover of the effects of columns.

    python benchmarks/strength_effects.py

Strengths go with a topic (six levels, of choices), age (numbers) and country (three levels, of
annotators), all at once, beside differences between annotators of 0.4 in the log, or none. Found
is a row of the table with an adjusted p-value below 5%; cover is that of 90% intervals.

Last answers (200 datasets a world from seed 60,000):
no effects: a row found in 7, intervals hold 98%; equal annotators: 9, 98%; 30 annotators: 3, 99%;
topics of their own: 7, 99%; errors of 48 pairs: 9, 99%. effects: rows of topics of 0.44, 0.26 and
0.09 found in 100, 88 and 10%, of age in 89%, of countries in 94 and 95% (the middle one 2%);
intervals hold 90%.
"""

import argparse
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from mixdpo_pyro.inference import fit, fit_strength_effects, read_choices


class World(NamedTuple):
    """Log effects: spread of topics, of a deviation of age, of the next country; the design."""

    topic: float = 0.0
    age: float = 0.0
    country: float = 0.0
    of_own: float = 0.0
    error: float = 0.0
    spread: float = 0.4
    people: int = 100
    each: int = 50


WORLDS = {
    "no effects": World(),
    "no effects, equal annotators": World(spread=0.0),
    "no effects, 30 annotators": World(people=30, each=40),
    "no effects, each annotator has topics of their own": World(of_own=0.5),
    "no effects, errors of 48 pairs that all judge": World(error=0.6),
    "effects": World(topic=0.3, age=0.2, country=0.3),
}


def draw_choices(world, rng, topics=6):
    """Margins, annotators, columns, and the true effects."""
    person = np.repeat(np.arange(world.people), world.each)
    topic = rng.integers(0, topics, len(person))
    age, country = rng.normal(40, 12, world.people), rng.integers(0, 3, world.people)
    of_topic = world.topic * np.linspace(-1.46, 1.46, topics)
    log_strength = world.spread * rng.normal(size=world.people) + world.age * (age - 40) / 12
    log_strength = (log_strength + world.country * (country - 1))[person] + of_topic[topic]
    log_strength += world.of_own * rng.normal(size=(world.people, topics))[person, topic]
    true, pair = (x := rng.normal(0, 2, len(person))), None
    if world.error:  # eight pairs of each topic, the same for everybody
        pair = topic * 8 + rng.integers(0, 8, len(person))
        of_pair = rng.normal(0, 2, (2, 8 * topics))
        true, x = of_pair[0, pair], (of_pair[0] + world.error * of_pair[1])[pair]
    is_first = rng.random(len(person)) < expit(np.exp(log_strength) * true)
    columns = {
        "topic": np.array([f"t{k}" for k in topic]),
        "age": age[person],
        "country": np.array(["a", "b", "c"])[country[person]],
    }
    of_country = world.country * np.arange(-1, 2)
    centred = of_topic - of_topic[topic].mean(), of_country - of_country[country].mean()
    truth = np.concatenate([centred[0], [world.age * age.std() / 12], centred[1]])
    return np.where(is_first, x, -x), {"annotator": person, "pair": pair}, columns, truth


def measure(name, seeds):
    """A line: datasets with a row that is found, rows found, cover of the intervals."""
    datasets, found, held = 0, [], []
    for seed in seeds:
        margin, ids, columns, truth = draw_choices(WORLDS[name], np.random.default_rng(seed))
        choices = read_choices(margin, **ids)
        result = fit(choices, beta=1.0, draw_strengths=False, num_samples=200)
        rows = fit_strength_effects(result, columns, seed=seed).levels
        is_found = [row.p_adjusted < 0.05 for row in rows]
        datasets += any(is_found)
        found.append(is_found)
        low, high = np.log([[row.q05 for row in rows], [row.q95 for row in rows]])
        held.append((low <= truth) & (truth <= high))
    print(
        f"{name}: a row found in {datasets} of {len(seeds)} datasets; rows found "
        f"{np.round(100 * np.mean(found, axis=0)).astype(int).tolist()}%; intervals hold "
        f"{100 * np.mean(held):.0f}% (topic {100 * np.mean(np.array(held)[:, :6]):.0f}, age "
        f"{100 * np.mean(np.array(held)[:, 6]):.0f}, country "
        f"{100 * np.mean(np.array(held)[:, 7:]):.0f})",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--datasets", type=int, default=200)
    parser.add_argument("--first_seed", type=int, default=60_000)
    arguments = parser.parse_args()
    for name in arguments.worlds:
        first = arguments.first_seed
        measure(name, range(first, first + arguments.datasets))


if __name__ == "__main__":
    main()
