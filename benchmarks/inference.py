"""How good and how fast is inference? Prints the table of its targets, measured on this machine.

    python benchmarks/inference.py                  # every row but the calibration plot
    python benchmarks/inference.py speed s-mnl      # some rows
    python benchmarks/inference.py calibration --plot calibration.png

Rows that simulate take `--datasets` (default 100 for recovery, 200 for the
homogeneous truth, 20 for panels).
Set OMP_NUM_THREADS before: two threads are often slower than one on small machines.

Last answers (2 cores, torch 2.13, one thread): 1,000,000 margins in 0.9 s (gamma) and 1.6 s
(lognormal), 10,000,000 in 2.9 s and 0.9 GiB; S-MNL to 1e-5 nats; SVI and NUTS within 0.05
posterior sd and 4% in sd; homogeneous truth called heterogeneous 0 (panels) and 8 (pairs) times
in 200; calibrated: Laplace and SVI in 100 datasets each, NUTS in 40 (p from 0.05 to 1).

Panels, 20 datasets: with ids the interval of cv is narrower by a median of 4.1, 3.5 and 1.4
(gamma) and 3.9, 3.5 and 1.6 (lognormal) at sd(m * margin) 0.5, 1 and 3; strengths correlate with
the truth by 0.69, 0.82, 0.86 and 0.68, 0.81, 0.83; their intervals cover 89 to 91%. So both hopes,
a ratio of 3 and a correlation of 0.8, hold near 1 only. The data hold no more: the ratio of
standard errors by Fisher information (without ids, the prior narrows the interval at 0.5, and its
skewness widens it at 1) is

    sd(m * margin)      0.5    1      1.5    2      3      5
    gamma               5.26   2.86   2.06   1.64   1.31   1.02
    lognormal           5.43   3.00   2.24   1.91   1.61   1.32

since single pairs with large margins tell cv as well. Strengths correlate with their posterior
means by at most 0.68, 0.82, 0.86, 0.87, 0.86, 0.83 (gamma) and 0.69, 0.81, 0.85, 0.85, 0.83, 0.80
(lognormal) on average; among 200 annotators the correlation varies by 0.02.

Recovery, 100 datasets of 10,000 pairs a cell, cover in % at cv 0.3, 0.6, 1.0 (one standard error
is 3; the methods see the same datasets; 300 others gave Laplace 87 for both in its first cell):

                            mean         cv
    Laplace, gamma          88 92 91     84 90 91
    Laplace, lognormal      86 90 86     86 92 89
    SVI, gamma              88 92 92     90 90 92
    SVI, lognormal          89 91 89     85 92 89
    NUTS, gamma             85 91 93     86 90 89
    NUTS, lognormal         87 92 88     86 88 88
"""

import argparse
import math
import os
import resource
import time

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp
from scipy.stats import gamma as gamma_distribution
from scipy.stats import norm

from mixdpo_pyro.inference import (
    Design,
    assess_heterogeneity,
    calibrate,
    fit,
    fit_joint,
    plot_calibration,
    read_choices,
    simulate_choices,
)
from mixdpo_pyro.inference.diagnosis import diagnose_choices
from mixdpo_pyro.inference.likelihood.pairs import pair_log_prob
from mixdpo_pyro.inference.likelihood.panels import tabulate
from mixdpo_pyro.progress import Engine

FAMILIES = ("gamma", "lognormal")
NUTS_OPTIONS = {"num_samples": 400, "num_chains": 2, "num_warmup": 200}


def row(name, target, value):
    print(f"| {name} | {target} | {value} |", flush=True)


def covers(draws, truth):
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    return (low <= truth) & (truth <= high)


def recovery(arguments):
    """90% intervals of mean and cv over simulated pairs; every cell has datasets of its own."""
    design = Design(10_000, 1)
    for method in arguments.methods:
        for number, family in enumerate(FAMILIES):
            for cv in (0.3, 0.6, 1.0):
                hits = []
                for seed in range(arguments.datasets or 100):
                    rng = np.random.default_rng((seed, number, round(10 * cv)))
                    margin, _, _ = simulate_choices(0.1, cv, family, design, rng)
                    options = NUTS_OPTIONS if method == "nuts" else {}
                    result = fit(margin, family=family, method=method, seed=seed, **options)
                    posterior = result.posterior
                    hits.append([covers(posterior["mean"], 0.1), covers(posterior["cv"], cv)])
                mean, spread = 100 * np.mean(hits, axis=0)
                row(
                    f"recovery, {method}, {family}, cv {cv}, {len(hits)} datasets",
                    "85-95% cover",
                    f"mean {mean:.0f}%, cv {spread:.0f}%",
                )


def panels(arguments):
    """200 annotators with 50 choices each, at several spreads of beta times margin."""
    for family in FAMILIES:
        for spread in (0.5, 1.0, 3.0):
            results = [_panel(family, spread, seed) for seed in range(arguments.datasets or 20)]
            ratio, correlation, coverage = np.transpose(results)
            name = f"panels, {family}, sd(m * margin) = {spread:g}, {len(results)} datasets"
            low, middle, high = np.quantile(ratio, [0.05, 0.5, 0.95])
            row(
                f"{name}: cv interval without ids over with",
                ">= 3",
                f"median {middle:.2f} ({low:.2f} to {high:.2f})",
            )
            row(
                f"{name}: correlation of strengths with truth",
                ">= 0.8",
                f"mean {correlation.mean():.3f} ({correlation.min():.3f} to "
                f"{correlation.max():.3f})",
            )
            row(f"{name}: intervals that cover", "85-95%", f"{100 * coverage.mean():.1f}%")


def _panel(family, spread, seed):
    rng = np.random.default_rng((seed, round(10 * spread)))
    margin, annotator, strength = simulate_choices(0.1, 0.6, family, Design(200, 50, spread), rng)
    with_ids = fit(margin, annotator=annotator, family=family, seed=seed)
    without = fit(margin, family=family, seed=seed)
    width = [np.diff(np.quantile(r.posterior.cv, [0.05, 0.95]))[0] for r in (without, with_ids)]
    draws = with_ids.posterior.strength
    correlation = np.corrcoef(draws.mean(0), strength)[0, 1]
    return width[0] / width[1], correlation, covers(draws, strength).mean()


def information(arguments):
    """What the data of the panels row can say at all: Fisher information, best correlation.

    Standard errors of cv, with the mean unknown, of 10,000 independent pairs (exact expectation
    over the choice, 200,000 margins) and of 200 annotators with 50 choices (outer products of the
    scores of 4,000 simulated annotators); and the correlation of true strengths with their
    posterior means where mean and cv are known, which nothing can exceed on average.
    """
    for family in FAMILIES:
        for spread in (0.5, 1.0, 1.5, 2.0, 3.0, 5.0):
            pairs, people, correlation = _information(family, spread)
            row(
                f"information, {family}, sd(m * margin) = {spread:g}",
                "",
                f"se(cv) {pairs:.3f} of pairs, {people:.3f} of panels: ratio "
                f"{pairs / people:.2f}; best correlation {correlation:.3f}",
            )


def _information(family, spread, num_annotators=4_000):
    design = Design(num_annotators, 50, spread)
    margin, annotator, strength = simulate_choices(
        0.1, 0.6, family, design, np.random.default_rng(1)
    )
    table = tabulate(read_choices(margin, annotator), family)
    score = _scores(lambda mean, cv: table.per_annotator(mean, cv).numpy().T)
    of_people = score @ score.T / num_annotators * 200
    score = _scores(lambda mean, cv: pair_log_prob(margin, mean.numpy(), cv.numpy(), family))
    probability = np.exp(pair_log_prob(margin, np.array([0.1]), np.array([0.6]), family))[0]
    # Both choices of a pair, weighted by their probabilities.
    of_pairs = (score * probability / (1 - probability)) @ score.T / len(margin) * 10_000
    known = torch.tensor([0.1], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    draws = np.mean(
        [table.draw_strengths(*known, np.random.default_rng(k))[0].numpy() for k in range(300)], 0
    )
    errors = (math.sqrt(np.linalg.inv(matrix)[1, 1]) for matrix in (of_pairs, of_people))
    return *errors, np.corrcoef(draws, strength)[0, 1]


def _scores(log_likelihood, step=1e-3):
    """Derivatives by log mean and cv at (0.1, 0.6), shape (2, units)."""
    mean = 0.1 * np.exp(step * np.array([1, -1, 0, 0]))
    cv = 0.6 + step * np.array([0, 0, 1, -1])
    value = log_likelihood(torch.from_numpy(mean), torch.from_numpy(cv))
    return np.stack([value[0] - value[1], value[2] - value[3]]) / (2 * step)


def homogeneous(arguments):
    """Verdicts where everybody is alike."""
    for design in (Design(200, 50), Design(10_000, 1)):
        verdicts = []
        for seed in range(arguments.datasets or 200):
            rng = np.random.default_rng(seed)
            margin, annotator, _ = simulate_choices(0.1, 0.0, "gamma", design, rng)
            ids = annotator if design.choices_each > 1 else None
            result = fit(margin, annotator=ids, num_samples=400, family="gamma")
            verdicts.append(assess_heterogeneity(result, margins_are_exact=True))
        wrong = sum(v.value == "heterogeneous" for v in verdicts)
        rejected = sum(v.p_value < 0.05 for v in verdicts)
        row(
            f"homogeneous truth, {design.num_annotators} x {design.choices_each}",
            "<= 5% heterogeneous",
            f"{wrong} of {len(verdicts)} heterogeneous ({rejected} tests reject)",
        )


def s_mnl(arguments):
    """fit_joint against the maximum of a 201-point quadrature likelihood by scipy."""
    truth = np.array([1.0, -0.8, 0.6, -0.4, 0.2, 0.1])
    for family in FAMILIES:
        rng = np.random.default_rng(1)
        person = np.repeat(np.arange(300), 12)
        sigma = math.sqrt(math.log1p(0.36))
        scale = (
            rng.gamma(0.6**-2, 0.36, 300)
            if family == "gamma"
            else rng.lognormal(-(sigma**2) / 2, sigma, 300)
        )
        x = rng.normal(size=(3600, 6))
        chosen = rng.random(3600) < expit(scale[person] * (x @ truth))
        x = np.where(chosen[:, None], x, -x)
        module = torch.nn.Linear(6, 1, bias=False)
        torch.nn.init.constant_(module.weight, 0.1)
        start = time.perf_counter()
        result = fit_joint(module, torch.from_numpy(x), annotator=person, family=family)
        seconds = time.perf_counter() - start
        best = minimize(
            lambda p, x=x, person=person, family=family: -_panel_quadrature(p, x, person, family),
            [*(truth + 0.05), math.log(0.5)],
            method="BFGS",
        )
        row(
            f"S-MNL, {family}: log-likelihood minus that of quadrature",
            "within 0.01 nats",
            f"{result.log_likelihood + best.fun:+.5f} ({seconds:.1f} s)",
        )


def _panel_quadrature(parameters, x, person, family):
    theta, cv = parameters[:-1], math.exp(parameters[-1])
    if family == "gamma":
        log_beta = np.linspace(-14, 3.5, 201)
        log_density = gamma_distribution.logpdf(np.exp(log_beta), cv**-2, scale=cv**2) + log_beta
    else:
        sigma = math.sqrt(math.log1p(cv**2))
        log_beta = np.linspace(-8, 8, 201) * sigma - sigma**2 / 2
        log_density = norm.logpdf(log_beta, -(sigma**2) / 2, sigma)
    log_choice = log_expit((x @ theta)[:, None] * np.exp(log_beta))
    order = np.searchsorted(person, np.arange(person[-1] + 1))
    by_person = np.add.reduceat(log_choice, order)
    return (logsumexp(by_person + log_density, axis=1) + math.log(log_beta[1] - log_beta[0])).sum()


def agreement(arguments):
    """SVI against NUTS on the same data, in the log of each parameter."""
    for family in FAMILIES:
        rng = np.random.default_rng(0)
        margin, annotator, _ = simulate_choices(0.1, 0.6, family, Design(200, 50), rng)
        svi, nuts = (
            {
                k: np.log(v)
                for k, v in fit(
                    margin, annotator=annotator, family=family, method=m
                ).posterior.items()
            }
            for m in ("svi", "nuts")
        )
        for name in ("mean", "cv"):
            shift = abs(svi[name].mean() - nuts[name].mean()) / nuts[name].std()
            ratio = svi[name].std() / nuts[name].std()
            row(
                f"agreement of SVI with NUTS, {family}, {name}",
                "0.2 sd, 15%",
                f"{shift:.2f} sd, sd {100 * (ratio - 1):+.0f}%",
            )


def speed(arguments):
    """Wall time and peak memory of the default method."""
    fit(np.linspace(-3, 4, 100), family="gamma")
    for num_pairs in (100_000, 1_000_000, 10_000_000):
        rng = np.random.default_rng(0)
        margin, _, _ = simulate_choices(0.1, 0.6, "gamma", Design(num_pairs, 1), rng)
        for family in FAMILIES:
            start = time.perf_counter()
            fit(margin, family=family)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            row(
                f"speed, {family}, {num_pairs:,} margins",
                "1e6: <= 10 s; 1e7: <= 8 GiB",
                f"{seconds:.1f} s, peak of the process {peak:.1f} GiB",
            )


def sizes(arguments):
    """CPU time of a diagnosis by how choices are spread over annotators."""
    spreads = {
        "301 annotators, 333 each": np.full(301, 333),
        "one with 100,000, 300 with one": np.append(100_000, np.ones(300, int)),
        "one with 1,000,000, 300 with one": np.append(1_000_000, np.ones(300, int)),
        "10,000 annotators, 100 each": np.full(10_000, 100),
    }
    for name, size in spreads.items():
        rng, annotator = np.random.default_rng(0), np.repeat(np.arange(len(size)), size)
        strength = rng.lognormal(-0.1, 0.47, len(size)) * 0.1
        difference = rng.normal(0, 20, len(annotator))
        is_first = rng.random(len(annotator)) < expit(strength[annotator] * difference)
        start = time.process_time()
        diagnose_choices(np.where(is_first, difference, -difference), annotator=annotator)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = f"{time.process_time() - start:.0f} s, peak of the process {peak:.2f} GiB"
        row(f"sizes, {name}", "follows the sum; <= 60 s", seconds)


def calibration(arguments):
    """Simulation-based calibration, with a plot."""
    results = []
    for method in arguments.methods:
        for family in FAMILIES:
            result = calibrate(
                family, method, arguments.datasets or 100, progress=True,
                engine=Engine(arguments.jobs, arguments.scheduler),
            )  # fmt: skip
            results.append(result)
            for name in ("mean", "cv"):
                row(
                    f"calibration, {result.label}, {name}",
                    "90% cover",
                    f"{100 * result.coverage(name):.0f}%, p = {result.p_value(name):.2g}",
                )
    if arguments.plot:
        plot_calibration(results).savefig(arguments.plot)


ROWS = {
    "speed": speed,
    "sizes": sizes,
    "s-mnl": s_mnl,
    "panels": panels,
    "information": information,
    "agreement": agreement,
    "homogeneous": homogeneous,
    "recovery": recovery,
    "calibration": calibration,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "rows", nargs="*", choices=[*ROWS, []], help="default: all but calibration"
    )
    parser.add_argument("--datasets", type=int, help="simulated datasets of a row")
    parser.add_argument("--methods", nargs="+", default=["laplace"])
    parser.add_argument("--plot", help="file for the calibration plot")
    parser.add_argument("--jobs", type=int, default=1, help="datasets of a calibration at a time")
    parser.add_argument("--scheduler", help="a dask scheduler whose workers calibrate")
    arguments = parser.parse_args()
    print(f"threads: {torch.get_num_threads()} of {os.cpu_count()}, torch {torch.__version__}")
    print("| | must reach | measured |\n| --- | --- | --- |")
    for name in arguments.rows or [name for name in ROWS if name != "calibration"]:
        ROWS[name](arguments)


if __name__ == "__main__":
    main()
