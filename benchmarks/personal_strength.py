"""What is a personal strength worth in decoding, if it is how much one cares, and if it is not?

    python benchmarks/personal_strength.py

People of very different strengths (world `strong` of `grammar.py`) teach one policy by MixDPO with
ids. Each then has it decoded at a weight of their own, the posterior mean of their strength over
the mean, from 40 further choices. The gain over the weight 1 for everybody is in nats of

    E[strength * reward / 2] - KL(policy, reference),

with their own strength, if strength is how much they care for the reward, and with strength 1 if
they all care alike and some were careless when they chose.

Last answer, 8 seeds from 700: +.44 +- .11 and -.27 +- .03; log strengths correlate .86 with the
truth.
"""

import argparse

import numpy as np
import torch
from exact_arms import mixed
from grammar import WORTH, distribution, divergence, draw_world
from tqdm import tqdm

from mixdpo_pyro.inference import fit

READINGS = ("how much one cares", "carelessness")


def value(weights, strength):
    """Strength times half the expected reward, less the KL."""
    reward = (distribution(weights) * WORTH).sum()
    return strength * reward / 2 - divergence(weights)


def measure(seed):
    """Mean gain over people of personal weights, by reading, and how well strengths are known."""
    world = draw_world("strong", seed)
    weights = mixed(world, "lognormal", ids=True)
    margin = (world.held_out @ torch.from_numpy(weights)).numpy()
    who = world.held_out_annotator
    posterior = fit(margin, annotator=who, mean_anchor="prior", beta=1.0, seed=seed).posterior
    personal = (posterior.strength / posterior.mean[:, None]).mean(0)
    own = np.array([int(label) for label in posterior.annotators])
    gains = []
    for strength in (world.strength[own], np.ones(len(own))):
        each = [
            value(factor * weights, s) - value(weights, s)
            for factor, s in zip(personal, strength, strict=True)
        ]
        gains.append(np.mean(each))
    return [*gains, np.corrcoef(np.log(personal), np.log(world.strength[own]))[0, 1]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first_seed", type=int, default=700)
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    found = np.array([measure(seed) for seed in tqdm(seeds)])
    half = 1.96 * found.std(0, ddof=1) / np.sqrt(len(found))
    print("| strength is | gain of personal weights, nats |\n| --- | --- |")
    for k, reading in enumerate(READINGS):
        print(f"| {reading} | {found[:, k].mean():+.2f} +- {half[k]:.2f} |")
    print(f"\ncorrelation of log strengths, known and true: {found[:, 2].mean():.2f}")


if __name__ == "__main__":
    main()
