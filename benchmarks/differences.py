"""What differs between people? Wrong verdicts, wrong kinds and cover of cv, world by world.

    python benchmarks/differences.py                          # every world of worlds.py
    python benchmarks/differences.py --worlds alike "cv .6"   # some

One dataset per seed, `--datasets` of them from `--first_seed` on. Wrong is a verdict, or a kind
of difference, that is neither true in the world nor cautious; see `worlds.py`.

Last answers, 36 datasets a world from seed 70,000: wrong 3 of 792, one each in errors of shared
pairs .6 and 1, cv 0 ("heterogeneous"), and topics with people nested ("strength"). In brackets how
many intervals hold cv: printed, lognormal with exact margins, with errors, and the mean median of
the last. The printed interval was joined with that of errors after the first eight datasets.

    errors of shared pairs, cv .8: .3 (35, 23, 35, .80), .6 (36, 4, 34, .82), 1 (36, 0, 32, .83)
    cv 0: homogeneous 34, 21 and 1; medians .08, .11, .17
    errors of own pairs, cv .8: .6 (35, 1, 34, .81), 1 (33, 0, 33, .69); 1, cv 0: homogeneous 31
    exact: cv 0 homogeneous 36; .3 (36, 30, 27, .37), .6 (36, 31, 26, .69), 1 (36, 32, 30, 1.11)
    two groups (33, 0, 0, 2.00), 20% at zero (35, 0, 0, 2.60), uniform (35, 5, 0, 1.18)
    errors of own responses inconclusive 36, strata inside people homogeneous 36
    opposed tastes, on shared pairs too, undetermined 36, with respects given taste 36

20 datasets a world from seed 7,000: wrong none.

    errors of shared responses, cv .8 (20, 0, 16, .91), recurring (20, 0, 20, .88)
    cv 0: homogeneous 1 and 1, else inconclusive; medians .15, .17
    errors of own pairs .6 and a second policy (11, 1, 8, .63); Pareto (16, 3, 16, .33)

From seed 5,000, before inconclusive answers had that interval, the printed one held Pareto 16, two
groups 17, 20% at zero 18. From seed 9,000: 20% careless wrong 1 of 20 ("strength", the others
undetermined), 10% coin flippers and opposed tastes undetermined 20, with respects given taste 20.
Kinds alone (compare_differences), 30 datasets from seed 61,000, pairs shared by ten: 20% coin
flippers care 28, careless 26, lapsing 27, 10% coin flippers shared by five 25; cv .3, .6, 1, two
groups and uniform care 0, 0, 0, 0, 1.
20 full verdicts from seed 30,000, pairs shared by ten (in brackets how many printed intervals
hold cv): cv .6 strength 20 (20), two groups strength 16, undetermined 4 (20), uniform strength
19, care 1 (18), 20% lapsing with margins of 4 care 20, 20% coin flippers care 19, undetermined
1; pairs of one's own: 20% at zero undetermined 20 (19).
60 datasets from seed 30,000: Pareto wrong 1 ("homogeneous"), the printed interval holds cv in 53.
20 datasets from seed 80,000, cv .4: margins fitted to these choices wrong 1 ("homogeneous"), the
interval with errors holds cv in 11 (.28); fitted to others' choices wrong 0, 20 (.39).
100 datasets from seed 20,000: 20% careless wrong 2 ("strength"), 10% coin flippers wrong 0.
"""

import argparse
from collections import Counter

import numpy as np
from worlds import WORLDS, draw_world

from mixdpo_pyro.inference.diagnosis import diagnose_choices
from mixdpo_pyro.progress import Engine, run_tasks


def diagnose(task):
    """A world and what is diagnosed in it."""
    name, seed = task
    world = draw_world(name, seed)
    return world, diagnose_choices(**world.arguments, seed=seed)


def measure(name, seeds, engine):
    """A line of the table: answers, and how often intervals of cv hold the truth."""
    answers, wrong, middle = Counter(), 0, []
    cover = {"printed": [], "exact": [], "errors": []}
    for world, found in run_tasks(diagnose, [(name, seed) for seed in seeds], engine):
        verdict = found.verdict
        answers[verdict.value + (f" ({verdict.kind})" if verdict.kind else "")] += 1
        is_right = verdict.value in world.values and (
            verdict.value != "heterogeneous" or verdict.kind in world.kinds
        )
        wrong += not is_right
        cover["printed"].append(_covers(verdict.cv_interval, world.cv))
        cover["exact"].append(_covers(found.result.posterior.interval("cv"), world.cv))
        errors = next(c for c in found.checks if c.name == "an error of each pair's margin")
        if "cv, median" in errors.numbers:
            interval = errors.cv_interval or (errors.numbers["cv, 5%"], errors.numbers["cv, 95%"])
            cover["errors"].append(_covers(interval, world.cv))
            middle.append(errors.numbers["cv, median"])
    counts = ", ".join(f"{key} {count}" for key, count in answers.most_common())
    shares = ", ".join(f"{100 * np.mean(each):.0f}%" for each in cover.values() if each)
    median = f" (median {np.mean(middle):.2f})" if middle else ""
    return f"| {name} | {wrong} of {len(seeds)} | {counts} | {world.cv:.2f} | {shares}{median} |"


def _covers(interval, cv):
    """Whether an interval holds the truth; zero, which no draw is, from a lower end of 0.1."""
    low, high = interval
    return (low <= 0.1) if cv == 0 else (low <= cv <= high)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--datasets", type=int, default=100)
    parser.add_argument("--first_seed", type=int, default=40_000)
    parser.add_argument("--jobs", type=int, default=1, help="datasets at a time")
    parser.add_argument("--scheduler", help="a dask scheduler; its workers start in benchmarks/")
    arguments = parser.parse_args()
    engine = Engine(arguments.jobs, arguments.scheduler)
    print("| world | wrong | answers | cv | cover: printed, exact margins, with errors |")
    print("| --- | --- | --- | --- | --- |")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.datasets)
    for name in arguments.worlds:
        print(measure(name, seeds, engine), flush=True)


if __name__ == "__main__":
    main()
