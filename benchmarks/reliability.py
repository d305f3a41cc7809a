"""Is strength a trait? Answers and cover of the correlation, world by world.

    python benchmarks/reliability.py

One dataset per seed, 100 annotators with 48 choices each over four topics of different scales, of
a spread of strength times margin of 2. Strengths have a standard deviation of their log between
annotators and one within them, drawn anew for each topic.

Last answers (100 datasets a world from seed 50,000):
a trait: stable 97 (halves) and 100 (topics); the interval held 1 in 99 and 100. half: over topics
no answer 89, stable 6, unstable 5, held 0.5 in 89; halves, which share topics, stable 70. anew:
over topics unstable 98, held 0 in 99. equal: no answer 100 and 99.
"""

import argparse
from collections import Counter

import numpy as np
from scipy.special import expit

from mixdpo_pyro.inference import estimate_reliability, fit

WORLDS = {"a trait": (0.6, 0.0), "half": (0.42, 0.42), "anew": (0.0, 0.6), "equal": (0.0, 0.0)}
"""Standard deviations of the log strength between and within annotators."""


def draw_choices(between, within, rng, people=100, each=48, topics=4):
    """Margins, annotators and topics."""
    person, topic = np.repeat(np.arange(people), each), np.tile(np.arange(each) % topics, people)
    log_strength = between * rng.normal(size=people)[person]
    log_strength += within * rng.normal(size=(people, topics))[person, topic]
    log_strength += rng.normal(0, 0.5, topics)[topic]
    x = rng.normal(0, 2, len(person))
    is_first = rng.random(len(person)) < expit(np.exp(log_strength) * x)
    return np.where(is_first, x, -x), person, topic


def measure(name, seeds):
    """A line for halves and one for topics: answers, and how often intervals hold the truth."""
    between, within = WORLDS[name]
    truth = between**2 / (between**2 + within**2) if between + within else None
    answers, held = {"halves": Counter(), "topics": Counter()}, {"halves": [], "topics": []}
    for seed in seeds:
        margin, person, topic = draw_choices(between, within, np.random.default_rng(seed))
        result = fit(margin, annotator=person, beta=1.0, draw_strengths=False, num_samples=100)
        for over, group in (("halves", None), ("topics", topic)):
            found = estimate_reliability(result, group, seed=seed)
            answers[over][found.value] += 1
            low, high = found.cautious_interval
            # A correlation of 0 or 1, which no quantile is, is held from within 0.05.
            slack = 0.05 if truth in (0, 1) else 0.0
            held[over].append(truth is not None and low - slack <= truth <= high + slack)
    for over, counts in answers.items():
        words = ", ".join(f"{key} {count}" for key, count in counts.most_common())
        # Strengths that are drawn anew for each topic mix in both halves.
        is_known = truth is not None and (over == "topics" or within == 0)
        cover = f"; held {truth:.1f} in {sum(held[over])}" if is_known else ""
        print(f"{name}, {over}: {words}{cover}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--datasets", type=int, default=100)
    parser.add_argument("--first_seed", type=int, default=50_000)
    arguments = parser.parse_args()
    for name in arguments.worlds:
        first = arguments.first_seed
        measure(name, range(first, first + arguments.datasets))


if __name__ == "__main__":
    main()
