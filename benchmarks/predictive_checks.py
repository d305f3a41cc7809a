"""How often does `mixdpo check` reject, with the errors of the margins and without them?

    python benchmarks/predictive_checks.py

One dataset per seed, 100 annotators with 40 choices, five to a pair, a spread of strength times
margin of 2, and the posterior is fitted to the choices that are checked. A dataset is rejected
where the p-value of any of seven statistics is below 0.05 / 7.

Last answers (20 datasets a world from seed 80,000): errors of 0.6 of the margins' size, cv 0.8:
taken as exact 20 rejected, all by agreement on the same pair; errors allowed for 1, by the misfit.
Exact margins, cv 0.8: 0 and 0 (with a two-sided misfit, as it was then).
"""

import argparse

import numpy as np

from mixdpo_pyro.diagnosis.check_report import failed_statistics
from mixdpo_pyro.diagnosis.check_statistics import SAME_PAIR
from mixdpo_pyro.diagnosis.pair_checks import check_pairs
from mixdpo_pyro.inference import Design, fit, read_choices, simulate
from mixdpo_pyro.inference.robustness.errors.allowed_for import allow_for_errors
from mixdpo_pyro.inference.robustness.errors.pair_errors import estimate_pair_errors

WORLDS = {
    "exact margins, cv 0": (0.0, 0.0),
    "exact margins, cv 0.8": (0.8, 0.0),
    "errors of 0.6, cv 0": (0.0, 0.6),
    "errors of 0.6, cv 0.8": (0.8, 0.6),
    "errors of 1.0, cv 0.8": (0.8, 1.0),
}


def check(cv, size, seed):
    """What is checked with a posterior that takes margins as exact, and with one that does not."""
    design = Design(100, 40, 2.0, 1.0, "pairs", 5, size)
    world = simulate(1.0, cv, "lognormal", design, np.random.default_rng(seed))
    choices = read_choices(world.margin, world.annotator, pair=world.pair)
    exact = fit(choices, beta=1.0, num_samples=500)
    allowing = allow_for_errors(exact, estimate_pair_errors(exact))
    for result in (exact, allowing):
        rng = np.random.default_rng((seed, 1))
        yield check_pairs(choices, {}, "annotator", result.posterior, 500, rng)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--datasets", type=int, default=20)
    parser.add_argument("--first_seed", type=int, default=80_000)
    arguments = parser.parse_args()
    print("| world | posterior | rejected | by agreement on the same pair | by |")
    print("| --- | --- | --- | --- | --- |")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.datasets)
    for name in arguments.worlds:
        found = zip(*(check(*WORLDS[name], seed) for seed in seeds), strict=True)
        for posterior, checks in zip(("exact margins", "errors allowed for"), found, strict=True):
            failed = [[s.name for s in failed_statistics(each)] for each in checks]
            alike = sum(SAME_PAIR in names for names in failed)
            others = sorted({n for names in failed for n in names} - {SAME_PAIR})
            print(
                f"| {name} | {posterior} | {sum(map(bool, failed))} of {len(seeds)} | {alike} | "
                f"{'; '.join(others)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
