"""Who answers at random? Is the posterior probability of carelessness right?

    python benchmarks/care.py

One dataset per seed, 100 annotators with 50 choices, a spread of strength times margin of 2. Every
tenth answers at random throughout, the others' strengths are lognormal.

Last answers (40 datasets a cv from seed 70,000):
of annotators above 0.9, 100, 97 and 86% were careless (cv 0, 0.4, 0.8), and 91, 78 and 32% of the
careless stood there; between 0.5 and 0.9, 96, 53 and 61% were; below 0.1 at most 1%.
"""

import argparse

import numpy as np

from mixdpo_pyro.inference import Design, fit, simulate_choices
from mixdpo_pyro.inference.robustness.differences import estimate_lapse_rates


def draw_probabilities(cv, rng, people=100, each=50):
    """Who answers at random, and each annotator's `p_careless`."""
    margin, person, _ = simulate_choices(1.0, cv, "lognormal", Design(people, each, 2.0, 1.0), rng)
    is_careless = rng.random(people) < 0.1
    coin = rng.choice([-1, 1], len(margin))
    margin = np.where(is_careless[person], coin * np.abs(margin), margin)
    result = fit(margin, annotator=person, beta=1.0, draw_strengths=False, num_samples=50)
    return is_careless, estimate_lapse_rates(result).careless


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", type=int, default=40)
    parser.add_argument("--first_seed", type=int, default=70_000)
    arguments = parser.parse_args()
    for cv in (0.0, 0.4, 0.8):
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.datasets)
        drawn = [draw_probabilities(cv, np.random.default_rng(seed)) for seed in seeds]
        is_careless, probability = (np.concatenate(x) for x in zip(*drawn, strict=True))
        bands = ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01))
        inside = [(low <= probability) & (probability < high) for low, high in bands]
        shares = ", ".join(
            f"{low:g} to {min(high, 1):g}: {100 * is_careless[rows].mean():.0f}% of {rows.sum()}"
            for (low, high), rows in zip(bands, inside, strict=True)
        )
        found = 100 * (probability[is_careless] > 0.9).mean()
        print(f"cv {cv:g}: careless of those at {shares}; above 0.9 are {found:.0f}%", flush=True)


if __name__ == "__main__":
    main()
