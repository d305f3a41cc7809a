"""What do choices other than pairs cost, and do they agree with other packages?

    python benchmarks/observation.py [--other-packages]

Speed is the time of forward and backward through margins, mean and cv of 10^6 choices over that of
10^6 binary choices under a LogNormal strength by quadrature, medians of calls that alternate in
this run, on one thread, per response: a pair has two, a best-of-4 choice four. With
`--other-packages`, the log-likelihood of the same data as the cv tends to zero, for each that is
installed: choix (Plackett-Luce), xlogit (multinomial logit, whose coefficient it fits) and
statsmodels (ordered logit). They are not requirements of this package.

Last answer (one thread of a busy machine, torch 2.13): best of 4 takes 0.88 times the pair's time
per response, five grades 1.1, Rao-Kupper ties 0.87, a ranking of 4 2.5. The others agree to 1e-12.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from mixdpo_pyro.models import (
    BestOf,
    Graded,
    Observation,
    Ranking,
    RaoKupper,
    mixed_logit_log_prob,
)

NUM_CHOICES = 1_000_000
REPETITIONS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--other-packages", action="store_true", help="compare with these only")
    torch.set_num_threads(1)
    misses = 0
    rows = compare_packages() if parser.parse_args().other_packages else speed()
    for name, measured, allowed in rows:
        passed = measured <= allowed
        misses += not passed
        verdict = "pass" if passed else "MISS"
        print(f"{name:63}{measured:>10.2g}{allowed:>10.2g}  {verdict}", flush=True)
    sys.exit(misses > 0)


def speed() -> Iterator[tuple[str, float, float]]:
    """Name, ratio of times per response, allowed ratio."""
    torch.manual_seed(0)
    kinds: dict[str, tuple[Callable[[], None], int]] = {
        "pairs": (task(torch.randn(NUM_CHOICES).double() * 2), 2),
        "best of 4": (set_task(BestOf()), 4),
        "five grades": (judgement_task(Graded(torch.tensor([0.5, 2.0]))), 2),
        "ties (no bound)": (judgement_task(RaoKupper(0.5)), 2),
        "ranking of 4 (no bound)": (set_task(Ranking()), 4),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(REPETITIONS):
        for name, (function, _) in kinds.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    per_response = {name: float(np.median(seconds[name])) / kinds[name][1] for name in kinds}
    print(f"pairs: {1e9 * per_response['pairs'] / NUM_CHOICES:.0f} ns per response")
    for name in list(kinds)[1:]:
        allowed = np.inf if "no bound" in name else 2.0
        yield (
            f"{name} over pairs, time per response",
            per_response[name] / per_response["pairs"],
            allowed,
        )


def task(margin: Tensor, **data: Tensor | Observation) -> Callable[[], None]:
    """Forward and backward through margins, mean and cv."""
    mean, cv = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.0, 0.5))
    margin = margin.requires_grad_()

    def run() -> None:
        margin.grad = None
        mixed_logit_log_prob(margin, mean, cv, **data).sum().backward()

    return run


def set_task(observation: Observation) -> Callable[[], None]:
    utility = torch.randn(4 * NUM_CHOICES).double() * 2
    choice_set = torch.arange(NUM_CHOICES).repeat_interleave(4)
    outcome = observation.sample(utility, 1.0, choice_set)
    return task(utility, observation=observation, outcome=outcome, choice_set=choice_set)


def judgement_task(observation: Observation) -> Callable[[], None]:
    margin = torch.randn(NUM_CHOICES).double() * 2
    return task(margin, observation=observation, outcome=observation.sample(margin, 1.0))


def compare_packages() -> Iterator[tuple[str, float, float]]:
    """Name, relative difference of log-likelihoods at cv = 1e-5, allowed difference."""
    rng = np.random.default_rng(0)
    for name, function in (("choix", choix), ("xlogit", xlogit), ("statsmodels", statsmodels)):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed")
            continue
        ours, theirs = function(rng)
        yield f"{name}, log-likelihood at cv 1e-5", abs(ours / theirs - 1), 1e-6


def choix(rng: np.random.Generator) -> tuple[float, float]:
    """Whole rankings of five out of twelve items."""
    import choix

    utility = rng.normal(size=12)
    items = np.array([rng.choice(12, 5, replace=False) for _ in range(500)])
    flat, sets = torch.tensor(utility[items].ravel()), torch.arange(500).repeat_interleave(5)
    rank = Ranking().sample(flat, 1.0, sets, generator=torch.Generator().manual_seed(0))
    rankings = np.take_along_axis(items, rank.view(500, 5).argsort(1).numpy(), 1)
    theirs = choix.utils.log_likelihood_rankings(rankings, utility)
    return total(Ranking(), flat, 1.0, outcome=rank, choice_set=sets), theirs


def xlogit(rng: np.random.Generator) -> tuple[float, float]:
    """Best of four; the multinomial logit's coefficient is the strength."""
    from xlogit import MultinomialLogit

    flat, sets = torch.tensor(rng.normal(size=4000)), torch.arange(1000).repeat_interleave(4)
    chosen = BestOf().sample(flat, 0.8, sets, generator=torch.Generator().manual_seed(0))
    model = MultinomialLogit()
    alternatives = np.tile(np.arange(4), 1000)
    columns = {"varnames": ["utility"], "alts": alternatives, "ids": sets.numpy(), "verbose": 0}
    model.fit(flat.numpy()[:, None], chosen.numpy().astype(bool), **columns)
    strength = float(model.coeff_[0])
    ours = total(BestOf(), flat, strength, outcome=chosen, choice_set=sets)
    return ours, float(model.loglikelihood)


def statsmodels(rng: np.random.Generator) -> tuple[float, float]:
    """Five grades at given coefficient and cut points, the first one and the logs of the steps."""
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    model = Graded(torch.tensor([0.5, 2.0], dtype=torch.float64))
    margin = torch.tensor(rng.normal(size=2000))
    grade = model.sample(margin, 0.8, generator=torch.Generator().manual_seed(0))
    ordered = OrderedModel(grade.numpy(), margin.numpy()[:, None], distr="logit")
    theirs = ordered.loglike(np.array([0.8, -2.0, *np.log([1.5, 1.0, 1.5])]))
    return total(model, margin, 0.8, outcome=grade), float(theirs)


def total(observation: Observation, margin: Tensor, mean: float, **data: Tensor) -> float:
    value = mixed_logit_log_prob(margin, mean, 1e-5, observation=observation, **data)
    return value.sum().item()


if __name__ == "__main__":
    main()
