"""Does inference agree with xlogit and NumPyro, and how much faster is it?

One simulated binary mixed logit, LogNormal strengths: 2,000 annotators with 50 choices each. Every
program runs in a process of its own, one after another, on as many threads; the log-likelihood is
that of one common quadrature (a 401-point trapezoid rule over log beta per annotator, in numpy).

    python -m venv others && others/bin/pip install xlogit numpyro
    OMP_NUM_THREADS=1 python benchmarks/other_packages.py --other-python others/bin/python

xlogit maximises a simulated likelihood over Halton draws, by L-BFGS-B, since its default BFGS
diverges on some cases with a maximum. NumPyro samples mean, cv and the 2,000 strengths, not
centred, by NUTS with the priors of `fit`. Neither is a dependency.

Last answers (one thread of an idle machine, 100,000 choices, sd(mean * margin) = 1; xlogit 0.2.7
with 500 draws in batches of 50; NumPyro 0.22 with 100 + 100 transitions, too few to report from):
ours 2.8 s with 1,000 draws of everybody's strength; xlogit 31.1 s, 11.2 times ours, 0.002 nats
below our maximum; NumPyro 46.7 s, 16.8 times ours, effective size of cv 61, and its posterior of
cv, 0.582 +- 0.018, is ours, 0.582 +- 0.019. Earlier runs had xlogit at 7.8 and 10.9 times.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MEAN, CV = 0.1, 0.6


def simulate(num_annotators, choices_each, spread, seed):
    """Margins of the chosen over the rejected alternative, and annotators."""
    rng = np.random.default_rng(seed)
    sigma = math.sqrt(math.log1p(CV**2))
    strength = rng.lognormal(math.log(MEAN) - sigma**2 / 2, sigma, num_annotators)
    annotator = np.repeat(np.arange(num_annotators), choices_each)
    margin = rng.normal(0, spread / MEAN, len(annotator))
    prefers_first = rng.random(len(margin)) < 1 / (1 + np.exp(-strength[annotator] * margin))
    return np.where(prefers_first, margin, -margin), annotator


def log_likelihood(margin, annotator, mean, cv, num_points=401):
    """Panel log-likelihood by a trapezoid rule over log beta, 10 standard deviations each way."""
    sigma = math.sqrt(math.log1p(cv**2))
    z = np.linspace(-10, 10, num_points)
    starts = np.flatnonzero(np.diff(annotator, prepend=-1))
    by_person = np.empty((num_points, len(starts)))
    for row, beta in zip(by_person, mean * np.exp(sigma * z - sigma**2 / 2), strict=True):
        row[:] = np.add.reduceat(-np.logaddexp(0, -beta * margin), starts)
    log_terms = by_person - z[:, None] ** 2 / 2 + math.log((z[1] - z[0]) / math.sqrt(2 * math.pi))
    top = log_terms.max(0)
    return float((top + np.log(np.exp(log_terms - top).sum(0))).sum())


def run_ours(margin, annotator, options):
    """Maximum and posterior by `fit`, flat in the mean as maximum likelihood is."""
    from mixdpo_pyro.inference import fit

    fit(
        margin[:200], annotator=annotator[:200], family="lognormal", mean_anchor="free"
    )  # imports and warm-up
    start = time.perf_counter()
    result = fit(margin, annotator=annotator, family="lognormal", mean_anchor="free")
    seconds = time.perf_counter() - start
    answer = {"seconds": seconds, "mean": result.maximum.mean, "cv": result.maximum.cv}
    start = time.perf_counter()
    posterior = fit(margin, annotator=annotator, family="lognormal").posterior
    return answer | {"posterior_seconds": time.perf_counter() - start, **_moments(posterior)}


def run_xlogit(margin, annotator, options):
    """Maximum simulated likelihood with a lognormal coefficient of the margin."""
    from xlogit import MixedLogit

    num_pairs = len(margin)
    table = np.stack([margin, np.zeros(num_pairs)], axis=1).reshape(-1, 1)
    chosen = np.tile([1, 0], num_pairs)
    start = time.perf_counter()
    model = MixedLogit()
    model.fit(
        table,
        chosen,
        ["margin"],
        alts=np.tile([1, 2], num_pairs),
        ids=np.repeat(np.arange(num_pairs), 2),
        randvars={"margin": "ln"},
        panels=np.repeat(annotator, 2),
        n_draws=options["draws"],
        batch_size=options["batch_size"],
        init_coeff=np.array([math.log(MEAN), 0.5]),
        optim_method="L-BFGS-B",
        verbose=0,
    )
    seconds = time.perf_counter() - start
    mu, sigma = model.coeff_[0], abs(model.coeff_[1])
    return {
        "seconds": seconds,
        "mean": math.exp(mu + sigma**2 / 2),
        "cv": math.sqrt(math.expm1(sigma**2)),
        "simulated_log_likelihood": float(model.loglikelihood),
        "is_converged": bool(model.convergence),
    }


def run_numpyro(margin, annotator, options):
    """NUTS over mean, cv and every strength."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    jax.config.update("jax_enable_x64", True)
    num_annotators = int(annotator.max()) + 1

    def model():
        mean = numpyro.sample("mean", dist.LogNormal(math.log(MEAN), 0.5))
        cv = numpyro.sample("cv", dist.HalfNormal(1.0))
        sigma = jax.numpy.sqrt(jax.numpy.log1p(cv**2))
        with numpyro.plate("annotators", num_annotators):
            z = numpyro.sample("z", dist.Normal(0, 1))
        beta = mean * jax.numpy.exp(sigma * z - sigma**2 / 2)
        numpyro.sample("choice", dist.Bernoulli(logits=beta[annotator] * margin), obs=1)

    sampler = MCMC(
        NUTS(model),
        num_warmup=options["warmup"],
        num_samples=options["samples"],
        num_chains=1,
        progress_bar=False,
    )
    start = time.perf_counter()
    sampler.run(jax.random.PRNGKey(0))
    draws = {name: np.asarray(value) for name, value in sampler.get_samples().items()}
    seconds = time.perf_counter() - start
    ess = numpyro.diagnostics.effective_sample_size(draws["cv"][None])
    middle = {name: float(np.median(draws[name])) for name in ("mean", "cv")}
    return {"seconds": seconds, **middle, **_moments(draws), "ess_cv": float(ess)}


def _moments(draws):
    return {
        f"{name}_{kind}": float(getattr(np, kind)(draws[name]))
        for name in ("mean", "cv")
        for kind in ("mean", "std")
    }


PROGRAMS = {"mixdpo_pyro": run_ours, "xlogit": run_xlogit, "numpyro": run_numpyro}


def run_apart(program, python, options, folder):
    """Run one program in its own process and read its answer."""
    answer = Path(folder) / f"{program}.json"
    command = [python, __file__, "--run", program, "--folder", folder, *options]
    subprocess.run(command, check=True)
    return json.loads(answer.read_text())


def report(margin, annotator, answers):
    """Print the table."""
    ours = answers["mixdpo_pyro"]
    best = log_likelihood(margin, annotator, ours["mean"], ours["cv"])
    print(f"log-likelihood of the truth {log_likelihood(margin, annotator, MEAN, CV):.3f}")
    print("| program | seconds | times ours | mean | cv | log-likelihood minus ours |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, answer in answers.items():
        value = log_likelihood(margin, annotator, answer["mean"], answer["cv"])
        print(
            f"| {name} | {answer['seconds']:.1f} | {answer['seconds'] / ours['seconds']:.1f} | "
            f"{answer['mean']:.5f} | {answer['cv']:.5f} | {value - best:+.5f} |"
        )
    for name, answer in answers.items():
        print(name, {k: v if isinstance(v, bool) else round(v, 5) for k, v in answer.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other-python", default=sys.executable, help="has xlogit and numpyro")
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--annotators", type=int, default=2_000)
    parser.add_argument("--choices-each", type=int, default=50)
    parser.add_argument("--spread", type=float, default=1.0, help="sd of mean times margin")
    parser.add_argument("--draws", type=int, default=500, help="of xlogit")
    parser.add_argument("--batch-size", type=int, default=None, help="of xlogit's draws")
    parser.add_argument("--warmup", type=int, default=300, help="of NUTS")
    parser.add_argument("--samples", type=int, default=300, help="of NUTS")
    parser.add_argument("--run", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        data = np.load(Path(arguments.folder) / "data.npz")
        answer = PROGRAMS[arguments.run](data["margin"], data["annotator"], vars(arguments))
        (Path(arguments.folder) / f"{arguments.run}.json").write_text(json.dumps(answer))
        return
    margin, annotator = simulate(arguments.annotators, arguments.choices_each, arguments.spread, 0)
    options = []
    for name in ("draws", "batch_size", "warmup", "samples"):
        value = getattr(arguments, name)
        options += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", margin=margin, annotator=annotator)
        for program in dict.fromkeys(["mixdpo_pyro", *arguments.programs]):
            python = sys.executable if program == "mixdpo_pyro" else arguments.other_python
            answers[program] = run_apart(program, python, options, folder)
    report(margin, annotator, answers)


if __name__ == "__main__":
    main()
