"""Is the answer right for choices among several responses, rankings, ties and grades?

    python benchmarks/choices.py equal        # equal people who choose the best of four
    python benchmarks/choices.py coverage     # cv 0.5, 200 people with 8 choices of each kind

`--datasets` sets the number of datasets a cell (default 100), `--first_seed` the first seed. The
streams of strengths, utilities and choices are independent.

Last answers (100 datasets a cell). Equal people, best of four: heterogeneous 2 and 3 of 100 (150
people with 10 choices; exact margins, and with errors of half their size), 0 (600 with one
choice each); likelihood ratios at zero in 44, 62 and 48%, beyond the bound of 5% in 5, 3 and 4%.
Cover and width of the 90% intervals of cv, truth 0.5:

    pairs 88%, 0.473    ties 92%, 0.331    grades:5 83%, 0.218    best-of:4 95%, 0.274
    ranking:4 93%, 0.166
"""

import argparse

import numpy as np
from scipy.stats import chi2, kstest

from mixdpo_pyro.inference import Design, diagnose_choices, fit
from mixdpo_pyro.inference.calibration.simulation import simulate

KINDS = ("pairs", "ties", "grades:5", "grades:7", "best-of:4", "ranking:4")


def row(name, target, value):
    print(f"| {name} | {target} | {value} |", flush=True)


def best_of_four(seed, annotators, choices_each, noise):
    """Choices of equal people with strength 1; utilities have sd 1.5, errors `noise` of it."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    num_choices = annotators * choices_each
    utility = streams[0].normal(0, 1.5, (num_choices, 4))
    best = (utility + streams[1].gumbel(size=utility.shape)).argmax(1)
    observed = utility + streams[2].normal(0, 1.5 * noise, utility.shape)
    first = np.arange(4)[None, :] == best[:, None]
    margin = (observed[first][:, None] - observed[~first].reshape(num_choices, 3)).ravel()
    person = np.repeat(np.arange(num_choices) // choices_each, 3)
    return margin, person, np.repeat(np.arange(num_choices), 3)


def equal(arguments):
    """How often are equal people called heterogeneous, and how is the likelihood ratio spread?"""
    for annotators, choices_each in ((150, 10), (600, 1)):
        for noise in (0.0, 0.5):
            values, ratios = [], []
            for seed in _seeds(arguments):
                margin, person, choice_set = best_of_four(seed, annotators, choices_each, noise)
                found = diagnose_choices(
                    margin, annotator=person, choice_set=choice_set, seed=seed, thorough=False
                ).verdict
                values.append(found.value)
                ratios.append(found.likelihood_ratio)
            name = f"equal people, {annotators} x {choices_each}, errors {noise} sd"
            counts = ", ".join(f"{v} {values.count(v)}" for v in sorted(set(values)))
            row(name, "heterogeneous <= 5%", f"{counts} of {len(values)}")
            row(f"{name}: likelihood ratio", "half 0, half chi2(1)", _spread(np.array(ratios)))


def _spread(ratio):
    positive = ratio[ratio > 1e-3]
    level = 100 * np.mean(ratio > chi2(1).ppf(0.9))
    p_value = kstest(positive, chi2(1).cdf).pvalue if len(positive) else 1.0
    return (
        f"{100 * (1 - len(positive) / len(ratio)):.0f}% at 0, {level:.0f}% beyond the bound of "
        f"5%, rest against chi2(1) p = {p_value:.2f}"
    )


def coverage(arguments):
    """90% intervals of cv: how often they hold the truth, and how wide they are."""
    for number, kind in enumerate(arguments.kinds):
        design = Design(200, 8, spread=2.0, kind=kind)
        covered, middle, width = [], [], []
        for seed in _seeds(arguments):
            rng = np.random.default_rng((seed, number))
            data = simulate(0.1, 0.5, "lognormal", design, rng)
            posterior = fit(
                data.margin, annotator=data.annotator, seed=seed, **data.done
            ).posterior
            low, high = posterior.interval("cv")
            covered.append(low <= 0.5 <= high)
            middle.append(np.median(posterior.cv))
            width.append(high - low)
        row(
            f"cv 0.5, 200 people x 8, {kind}, {len(covered)} datasets",
            "85-95% cover",
            f"{100 * np.mean(covered):.0f}%, median {np.mean(middle):.2f}, "
            f"width {np.mean(width):.3f}",
        )


def _seeds(arguments):
    return range(arguments.first_seed, arguments.first_seed + arguments.datasets)


ROWS = {"equal": equal, "coverage": coverage}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], default=list(ROWS))
    parser.add_argument("--datasets", type=int, default=100)
    parser.add_argument("--first_seed", type=int, default=7000)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    arguments = parser.parse_args()
    for name in arguments.rows or ROWS:
        ROWS[name](arguments)


if __name__ == "__main__":
    main()
