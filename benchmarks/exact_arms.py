"""Does it help? Every way to train against DPO, at equal KL and at equal beta, without sampling.

    python benchmarks/exact_arms.py                     # every world and arm, 16 seeds
    python benchmarks/exact_arms.py --worlds strong --seeds 8

Policies are those of `grammar.py`, trained to the end on all choices at once. Brought to KL 2 they
are compared with DPO: win rate as all people judge it and as the group that is served worst does,
and margins of held-out choices in nats, averaged over choices (micro: people weigh as they do in
training), over people (macro), and in the group where they are smallest. At equal beta nothing is
scaled, and the difference in KL stands beside the win rate. Intervals are 95% over seeds. A sweep
of beta for DPO is one policy here: at convergence beta multiplies all weights.

Last answers, 12 seeds from 600, stand in docs/evidence.md. In short, at equal KL against DPO: with
ids 51.3 to 51.4 +- .7 where people differ, 50.3 to 50.5 +- .5 where those who hardly care answer
most, 50 where people are alike; without ids 50; with opposed tastes the minority wins 40 to 41.
"""

import argparse

import numpy as np
import torch
from grammar import (
    PEOPLE,
    WORLDS,
    World,
    at_equal_divergence,
    divergence,
    draw_world,
    fit_weights,
    win_rate,
)
from torch.nn.functional import logsigmoid
from tqdm import tqdm

from mixdpo_pyro.models import PreferenceModel

FLIP, ROUNDS = 0.2, 5

PERSONAL = "EM-DPO, two types"
"""The arm in which everybody has the policy of their type."""


def mixed(world: World, family: str, ids: bool, cv: float | None = None) -> np.ndarray:
    """MixDPO at mean one; cv is learned unless it is given."""
    model = PreferenceModel(family, mean_anchor="fixed", beta=1.0)
    who = torch.from_numpy(world.annotator) if ids else None
    log_cv = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        value = log_cv.exp().clamp(0.02, 5) if cv is None else torch.tensor(cv).double()
        margin = world.difference @ weights
        total = model.log_prob(margin, mean=1.0, cv=value, annotator=who).sum()
        return -total / len(margin)

    return fit_weights(loss, *([log_cv] if cv is None else []))


def plain(world: World, strength: np.ndarray | float = 1.0) -> np.ndarray:
    """DPO, with the strength of each choice."""
    beta = torch.as_tensor(strength)
    return fit_weights(lambda w: -logsigmoid(beta * (world.difference @ w)).mean())


def robust(world: World) -> np.ndarray:
    """rDPO, unbiased if a fifth of the labels is wrong."""

    def loss(weights: torch.Tensor) -> torch.Tensor:
        margin = world.difference @ weights
        right, wrong = logsigmoid(margin), logsigmoid(-margin)
        return -((1 - FLIP) * right - FLIP * wrong).mean() / (1 - 2 * FLIP)

    return fit_weights(loss)


def conservative(world: World) -> np.ndarray:
    """cDPO, with smoothed labels."""

    def loss(weights: torch.Tensor) -> torch.Tensor:
        margin = world.difference @ weights
        return -((1 - FLIP) * logsigmoid(margin) + FLIP * logsigmoid(-margin)).mean()

    return fit_weights(loss)


def two_types(world: World) -> np.ndarray:
    """EM-DPO from agreement clusters: the weights of each person's type, a row per person."""
    agreement = np.zeros((PEOPLE, world.difference.shape[1]))
    np.add.at(agreement, world.annotator, world.difference.numpy())
    # Slots in which people agree with each other or not: the leading direction around the mean.
    levels = agreement.reshape(PEOPLE, 4, 4, 4).sum(3) @ np.array([1.5, 0.5, -0.5, -1.5])
    centred = levels - levels.mean(0)
    leading = np.linalg.svd(centred, full_matrices=False)[0][:, 0]
    share = np.stack([leading > 0, leading <= 0], 1).astype(float)
    for _ in range(ROUNDS):
        policies = []
        for k in range(2):
            weight = torch.from_numpy(share[world.annotator, k])
            policies.append(
                fit_weights(
                    lambda w, weight=weight: -(weight * logsigmoid(world.difference @ w)).mean()
                )
            )
        each = np.stack([logsigmoid(world.difference @ torch.from_numpy(w)) for w in policies], 1)
        total = np.log(share.mean(0) + 1e-12) + np.stack(
            [np.bincount(world.annotator, column, PEOPLE) for column in each.T], 1
        )
        share = np.exp(total - total.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
    return np.stack(policies)[share.argmax(1)]


ARMS = {
    "true strengths known": lambda w: plain(w, w.strength[w.annotator]),
    "lognormal, ids": lambda w: mixed(w, "lognormal", ids=True),
    "gamma, ids": lambda w: mixed(w, "gamma", ids=True),
    "lognormal": lambda w: mixed(w, "lognormal", ids=False),
    "gamma": lambda w: mixed(w, "gamma", ids=False),
    "cv fixed at 1": lambda w: mixed(w, "lognormal", ids=False, cv=1.0),
    "rDPO, 20%": robust,
    "cDPO, 20%": conservative,
    PERSONAL: two_types,
}


def measure(world: World, weights: np.ndarray, dpo: np.ndarray) -> dict[str, float]:
    """What an arm reaches, against DPO."""
    own = np.broadcast_to(weights, (PEOPLE, weights.shape[-1]))
    policies, index = np.unique(own, axis=0, return_inverse=True)
    scaled = np.stack([at_equal_divergence(w) for w in policies])[index.reshape(-1)]
    rival = at_equal_divergence(dpo)
    wins = _per_person(lambda w, taste: win_rate(w, rival, taste), scaled, world)
    margin = (world.held_out.numpy() * scaled[world.held_out_annotator]).sum(1)
    by_person = np.bincount(world.held_out_annotator, margin) / np.bincount(
        world.held_out_annotator
    )
    groups = np.unique(world.group)
    return {
        "win rate": wins.mean(),
        "worst group wins": min(wins[world.group == g].mean() for g in groups),
        "micro margin": np.average(by_person, weights=np.bincount(world.annotator)),
        "macro margin": by_person.mean(),
        "worst group": min(by_person[world.group == g].mean() for g in groups),
        "at equal beta": _per_person(lambda w, taste: win_rate(w, dpo, taste), own, world).mean(),
        "KL less DPO's": np.mean([divergence(w) for w in own]) - divergence(dpo),
    }


def _per_person(value, weights: np.ndarray, world: World) -> np.ndarray:
    """A value of everybody's policy and taste, each distinct one computed once."""
    known: dict[bytes, float] = {}
    found = np.empty(PEOPLE)
    for person in range(PEOPLE):
        key = weights[person].tobytes() + world.taste[person].tobytes()
        if key not in known:
            known[key] = value(weights[person], world.taste[person])
        found[person] = known[key]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--first_seed", type=int, default=500)
    arguments = parser.parse_args()
    header = None
    for name in arguments.worlds:
        rows: dict[str, list[dict[str, float]]] = {}
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        for seed in tqdm(seeds, desc=name):
            world = draw_world(name, seed)
            dpo = plain(world)
            rows.setdefault("DPO", []).append(measure(world, dpo, dpo))
            for arm in arguments.arms:
                rows.setdefault(arm, []).append(measure(world, ARMS[arm](world), dpo))
        if header is None:
            header = list(rows["DPO"][0])
            print(f"| world | trained with | {' | '.join(header)} |")
            print("| --- " * (len(header) + 2) + "|")
        for arm, found in rows.items():
            cells = [_interval([each[column] for each in found]) for column in header]
            print(f"| {name} | {arm} | {' | '.join(cells)} |", flush=True)


def _interval(values: list[float]) -> str:
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.2f} +- {half:.2f}"


if __name__ == "__main__":
    main()
