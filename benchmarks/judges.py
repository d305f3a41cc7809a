"""Ratings from votes: cover of planted truth, a one-sided judge, and other packages.

    pip install choix evalica        # for the last rows
    python benchmarks/judges.py --datasets 100

Worlds have 12 items, 40 judges of 50 votes, strengths of cv 0.6, side biases of sd 0.5, 5% of
votes at random, and in every second one ties; seeds from 7,000. Every stream has a generator of
its own.
"""

import argparse
import time

import numpy as np
from scipy.special import expit

from mixdpo_pyro.inference.people.judges import fit_judges

ITEMS, JUDGES, VOTES, CV, SIDE, LAPSE = 12, 40, 50, 0.6, 0.5, 0.05


def draw_world(seed, threshold):
    """Votes, planted ratings, strengths and biases."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    rating = streams[0].normal(size=ITEMS)
    scale = np.sqrt(np.log1p(CV**2))
    strength = np.exp(scale * streams[1].normal(size=JUDGES) - scale**2 / 2)
    bias = SIDE * streams[2].normal(size=JUDGES)
    judge = np.repeat(np.arange(JUDGES), VOTES)
    left, right = draw_items(streams[3], len(judge))
    logit = strength[judge] * (rating[left] - rating[right]) + bias[judge]
    uniform = streams[4].random(len(judge))
    won, lost = expit(logit - threshold), expit(-logit - threshold)
    code = np.where(uniform < won, 2, np.where(uniform > 1 - lost, 0, 1))
    outcomes = np.array([0, 1, 2] if threshold else [0, 2])
    at_random = streams[5].random(len(judge)) < LAPSE
    code[at_random] = outcomes[streams[5].integers(len(outcomes), size=at_random.sum())]
    winner = np.array(["right", "tie", "left"])[code]
    return (left, right, list(winner), judge), (rating - rating.mean(), strength, bias)


def draw_items(rng, number):
    """Two different items of each vote."""
    left = rng.integers(ITEMS, size=number)
    return left, (left + rng.integers(1, ITEMS, size=number)) % ITEMS


def cover(datasets):
    """Shares of planted values inside 90% intervals."""
    inside = {"ratings": [], "strengths": [], "side biases": []}
    start = time.process_time()
    for seed in range(7000, 7000 + datasets):
        votes, (rating, strength, bias) = draw_world(seed, 0.4 * (seed % 2))
        fit = fit_judges(*votes)
        items, judges = [int(k) for k in fit.items], [int(k) for k in fit.judges]
        low, high = fit.interval().T
        inside["ratings"].append(np.mean((low <= rating[items]) & (rating[items] <= high)))
        for name, found, truth in (
            ("strengths", fit.strength, strength), ("side biases", fit.side, bias)
        ):  # fmt: skip
            is_in = (found[:, 0] <= truth[judges]) & (truth[judges] <= found[:, 2])
            inside[name].append(is_in.mean())
    for name, shares in inside.items():
        half = 196 * np.std(shares, ddof=1) / np.sqrt(len(shares))
        print(
            f"| cover of {name}, {datasets} worlds | {100 * np.mean(shares):.1f}% +- {half:.1f} |"
        )
    print(f"| CPU seconds a fit of {JUDGES * VOTES:,} votes | "
          f"{(time.process_time() - start) / datasets:.1f} |")  # fmt: skip


def one_sided(datasets):
    """Largest move of a rating by one more judge, as busy as all others, who says left."""
    moved, naive = [], []
    for seed in range(7000, 7000 + datasets):
        (left, right, winner, judge), _ = draw_world(seed, 0.0)
        more = draw_items(np.random.default_rng((seed, 1)), len(judge))
        both = (
            [*left, *more[0]], [*right, *more[1]], [*winner, *["left"] * len(judge)],
            [*judge, *[JUDGES] * len(judge)],
        )  # fmt: skip
        without = fit_judges(left, right, winner, judge).rating
        moved.append(np.abs(fit_judges(*both).rating - without).max() / without.std())
        naive.append(
            np.abs(fit_judges(*both, equal_judges=True).rating - without).max() / without.std()
        )
    print(
        f"| one-sided judge, {datasets} worlds, largest move in sd of ratings, median and worst "
        f"| {np.median(moved):.3f}, {max(moved):.3f} (equal judges {np.median(naive):.2f}) |"
    )


def other_packages():
    """Bradley and Terry by this package (prior of sd 5), choix and evalica on the same votes."""
    import choix
    import evalica

    (left, right, winner, _), _ = draw_world(7000, 0.0)
    ours = fit_judges(left, right, winner, equal_judges=True)
    order = [int(k) for k in ours.items]
    won = np.array(winner) == "left"
    pairs = list(zip(np.where(won, left, right), np.where(won, right, left), strict=True))
    theirs = choix.ilsr_pairwise(ITEMS, pairs)
    side = {"left": evalica.Winner.X, "right": evalica.Winner.Y}
    scores = evalica.bradley_terry(
        [str(k) for k in left], [str(k) for k in right], [side[w] for w in winner]
    ).scores
    logs = np.log([scores[str(k)] for k in range(ITEMS)])
    for name, value in (("choix", theirs), ("evalica", logs)):
        distance = np.abs(ours.rating - (value - value.mean())[order]).max()
        print(f"| largest difference from {name} at equal judges, logits | {distance:.1e} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", type=int, default=100)
    arguments = parser.parse_args()
    print("| row | measured |\n| --- | --- |")
    other_packages()
    one_sided(max(arguments.datasets // 5, 1))
    cover(arguments.datasets)


if __name__ == "__main__":
    main()
