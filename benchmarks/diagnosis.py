"""How often is the verdict on heterogeneity wrong? Simulated worlds whose truth is known.

    python benchmarks/diagnosis.py ids no-ids         # cv 0, 0.3, 0.6, 1
    python benchmarks/diagnosis.py explanations       # equal people, and something that mimics
    python benchmarks/diagnosis.py masks              # different people, and something that hides
    python benchmarks/diagnosis.py size               # 10,000,000 margins: seconds and memory
    python benchmarks/diagnosis.py rotations          # level of the permutation test, both ways

Every world has 100 annotators with 50 choices each and sd(m * margin) = 2 unless its name says
otherwise; one dataset per seed. Wrong is: `heterogeneous` where cv = 0, `homogeneous` where
cv >= 0.25. Right is the other of the two; `inconclusive` is neither.

Last answers (50 datasets a world from seed 1000; right, wrong, inconclusive). With ids: cv = 0:
48, 1, 1; 0.3, 0.6 and 1: 50, 0, 0. Without ids (5,000 pairs), cv = 0: 3, 0, 47; 0.3, 0.6, 1: 0, 0,
50. Equal people and 10% of labels flipped: 24, 0, 26; noisy margins: 48, 0, 2; length that matters
and is not given: 47, 0, 3, and given: 45, 0, 5; a Cauchy link: 19, 1, 30; rare large errors: 0, 0,
50; pairs shared by five with noisy margins: 37, 1, 12. Different people (cv = 0.6), ids and noisy
margins: 50, 0, 0. 10,000,000 margins without ids: 100 s of one core, 1.4 GiB.
Permutation test of equal people, 1,000 datasets, p <= 0.05 and p <= 0.02: sorted 4.1% [3.0, 5.5]
and 1.6%, rotated 4.2% [3.1, 5.6] and 1.8%; under a Cauchy link sorted 6.2% [4.8, 7.8] and 2.5%,
rotated 6.1% [4.7, 7.7] and 2.5%. (20 bins of 250; large data have 200, which are narrower.)
"""

import argparse
import os
import resource
import time
from unittest import mock

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import beta

from mixdpo_pyro.inference import Design, permute_annotators, read_choices, simulate_choices
from mixdpo_pyro.inference.diagnosis import diagnose_choices
from mixdpo_pyro.inference.predictive import sample_strengths
from mixdpo_pyro.inference.robustness import permutation

ANNOTATORS, CHOICES, SPREAD = 100, 50, 2.0


def people(rng, cv):
    """Annotator, difference of the two responses, and strength, a value per choice."""
    strength = sample_strengths(
        "lognormal", np.ones(ANNOTATORS), np.full(ANNOTATORS, max(cv, 1e-6)), rng
    )
    person = np.repeat(np.arange(ANNOTATORS), CHOICES)
    return person, rng.normal(0, SPREAD, len(person)), strength[person]


def orient(prefers_first, difference):
    return np.where(prefers_first, difference, -difference)


def plain(rng, cv=0.0):
    person, difference, strength = people(rng, cv)
    prefers = rng.random(len(person)) < expit(strength * difference)
    return {"margins": orient(prefers, difference), "annotator": person}


def flipped(rng, cv=0.0):
    """10% of the labels are flipped."""
    world = plain(rng, cv)
    flip = rng.random(len(world["margins"])) < 0.1
    return world | {"margins": np.where(flip, -1, 1) * world["margins"]}


def noisy(rng, cv=0.0):
    """Margins with errors of half their standard deviation."""
    person, difference, strength = people(rng, cv)
    prefers = rng.random(len(person)) < expit(strength * difference)
    observed = difference + rng.normal(0, SPREAD / 2, len(person))
    return {"margins": orient(prefers, observed), "annotator": person}


def heavy_noise(rng, cv=0.0):
    """Margins with rare large errors (a t distribution with 2 degrees of freedom)."""
    person, difference, strength = people(rng, cv)
    prefers = rng.random(len(person)) < expit(strength * difference)
    observed = difference + rng.standard_t(2, len(person))
    return {"margins": orient(prefers, observed), "annotator": person}


def lengthy(rng, cv=0.0, known=False):
    """Longer responses are preferred whatever the margin."""
    person, difference, strength = people(rng, cv)
    length = rng.normal(0, 1, len(person))
    prefers = rng.random(len(person)) < expit(strength * difference + 1.5 * length)
    world = {"margins": orient(prefers, difference), "annotator": person}
    return world | ({"length": orient(prefers, length)} if known else {})


def cauchit(rng, cv=0.0):
    """The link has heavy tails: the Cauchy distribution function."""
    person, difference, strength = people(rng, cv)
    probability = 0.5 + np.arctan(strength * difference) / np.pi
    prefers = rng.random(len(person)) < probability
    return {"margins": orient(prefers, difference), "annotator": person}


def shared(rng, cv=0.0):
    """Blocks of 50 pairs, each judged by 5 people, whose margins have errors."""
    person, _, strength = people(rng, cv)
    pair = (person // 5) * CHOICES + np.tile(np.arange(CHOICES), ANNOTATORS)
    difference = rng.normal(0, SPREAD, pair.max() + 1)
    observed = difference + rng.normal(0, SPREAD, len(difference))
    prefers = rng.random(len(person)) < expit(strength * difference[pair])
    return {"margins": orient(prefers, observed[pair]), "annotator": person}


def without_ids(world):
    return {name: value for name, value in world.items() if name != "annotator"}


def with_ids(arguments):
    for cv in arguments.cv:
        row(f"ids, cv = {cv}", plain, cv, True, arguments)


def no_ids(arguments):
    for cv in arguments.cv:
        row(f"no ids, cv = {cv}", plain, cv, False, arguments)


def explanations(arguments):
    worlds = {
        "10% of labels flipped": flipped,
        "noisy margins": noisy,
        "length matters, length not given": lengthy,
        "a Cauchy link": cauchit,
        "margins with rare large errors": heavy_noise,
        "length matters, length given": lambda rng, cv: lengthy(rng, cv, known=True),
        "pairs shared by five, noisy margins": shared,
    }
    for name, world in worlds.items():
        row(f"ids, cv = 0.0, {name}", world, 0.0, True, arguments)


def masks(arguments):
    for name, world in {"noisy margins": noisy, "10% of labels flipped": flipped}.items():
        for has_ids in (True, False):
            label = f"{'ids' if has_ids else 'no ids'}, cv = 0.6, {name}"
            row(label, world, 0.6, has_ids, arguments)


def row(name, world, cv, has_ids, arguments):
    start, values = time.perf_counter(), []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.datasets):
        data = world(np.random.default_rng((seed, int(100 * cv))), cv)
        diagnosis = diagnose_choices(
            **(data if has_ids else without_ids(data)),
            families=("lognormal",),
            num_samples=500,
            max_units=500,
            num_permutations=199,
            seed=seed,
            thorough=False,
        )
        values.append(diagnosis.verdict.value)
    heterogeneous, homogeneous, inconclusive = (
        values.count(v) for v in ("heterogeneous", "homogeneous", "inconclusive")
    )
    right, wrong = (homogeneous, heterogeneous) if cv == 0 else (heterogeneous, homogeneous)
    low, high = beta.ppf([0.025, 0.975], wrong + 0.5, len(values) - wrong + 0.5)
    seconds = (time.perf_counter() - start) / len(values)
    print(
        f"| {name} | {right} | {wrong} (95%: {100 * low * (wrong > 0):.0f} to {100 * high:.0f}%) "
        f"| {inconclusive} | {seconds:.1f} s each |",
        flush=True,
    )


def size(arguments):
    for design in (Design(10_000_000, 1, SPREAD, 1.0), Design(100_000, 100, SPREAD, 1.0)):
        rng = np.random.default_rng(0)
        margin, annotator, _ = simulate_choices(1.0, 0.6, "gamma", design, rng)
        ids = annotator if design.choices_each > 1 else None
        start = time.perf_counter()
        diagnosis = diagnose_choices(margin, annotator=ids)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"| {len(margin):,} margins, {design.num_annotators if ids is not None else 'no'} ids "
            f"| {diagnosis.verdict.value} | {seconds:.0f} s | peak {peak:.1f} GiB |",
            flush=True,
        )


def rotations(arguments):
    """Level and power of the permutation test by sorting, and by rotations, those of large bins.

    Bins of 250 pairs, in place of 1,000 and more; 20 datasets for each one of the other rows.
    """
    number = 20 * arguments.datasets
    for world, cv in ((plain, 0.0), (cauchit, 0.0), (plain, 0.15)):
        for name, limit in (("sorted", np.inf), ("rotated", 0)):
            bins = mock.patch.multiple(permutation, _MAX_BINS=20, _LARGE_BIN=limit)
            with bins:
                p = [p_value(world, cv, arguments.first_seed + k) for k in range(number)]
            shares = ", ".join(level_of(np.array(p) <= level, level) for level in (0.05, 0.02))
            print(f"| {world.__name__}, cv = {cv}, {name} | {shares} |", flush=True)


def p_value(world, cv, seed):
    drawn = world(np.random.default_rng(seed), cv)
    choices = read_choices(drawn["margins"], drawn["annotator"])
    return permute_annotators(choices, num_permutations=199, seed=seed).p_value


def level_of(rejected, level):
    low, high = beta.ppf([0.025, 0.975], rejected.sum() + 0.5, (~rejected).sum() + 0.5)
    return f"p <= {level}: {100 * rejected.mean():.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


ROWS = {
    "rotations": rotations,
    "ids": with_ids,
    "no-ids": no_ids,
    "explanations": explanations,
    "masks": masks,
    "size": size,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="default: all")
    parser.add_argument("--datasets", type=int, default=50, help="datasets per world")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--cv", type=float, nargs="+", default=[0.0, 0.3, 0.6, 1.0])
    arguments = parser.parse_args()
    print(f"threads: {torch.get_num_threads()} of {os.cpu_count()}, torch {torch.__version__}")
    print("| world | right | wrong | inconclusive | |\n| --- | --- | --- | --- | --- |")
    for name in arguments.rows or ROWS:
        ROWS[name](arguments)


if __name__ == "__main__":
    main()
