"""Margins of a simple text model for which of two arguments is more convincing (UKPConvArg1).

    python benchmarks/ukp_margins.py ukpconvarg1-16topics.jsonl.gz FOLDER [--ties TIES.jsonl.gz]

The utility of a response is linear in hashed word n-grams and in its length; the difference of two
utilities is the log-odds of the choice, so that the margin is in nats. Every topic is scored by a
logistic regression that saw the other topics only: no pair, and no argument, is scored by a model
that was fitted to it. Written are `margins.parquet` (fitted to all other topics), and `half_a` and
`half_b`, each fitted to half of the other topics, whose disagreement shows the margins' errors.
With a file of ties (`response_a`, `response_b`, `outcome`) the tables hold them too, in a column
`outcome`; no model is fitted to them.
The columns pair, response_a and response_b say what was judged, and trained_on that no model has
seen its choices.
"""

import argparse
import re
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import softplus

NUM_HASHES = 4096
PENALTY = 3.0
"""Half the squared norm of the n-gram weights is multiplied by this; lengths are not penalised."""


def words_of(text):
    return re.findall(r"[a-z']+|[.!?,;:\"]", text.lower())


def features(text):
    """Hashed unigrams and bigrams, of norm 1, and three measures of length."""
    words = words_of(text)
    value = np.zeros(NUM_HASHES + 3, dtype=np.float32)
    for gram in [*words, *map(" ".join, pairwise(words))]:
        code = zlib.crc32(gram.encode())
        value[code % NUM_HASHES] += 1 if code & (1 << 31) else -1
    value /= max(np.linalg.norm(value), 1e-6)
    value[-3:] = np.log1p(len(words)), np.log1p(len(text)), np.log1p(text.count("."))
    return value


def fit_utility(difference, wins, losses):
    """Weights of the penalised logistic regression of the choice on the feature difference."""
    weight = torch.zeros(difference.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        logit = difference @ weight
        loss = (wins * softplus(-logit) + losses * softplus(logit)).sum()
        loss = loss + 0.5 * PENALTY * (weight[:-3] ** 2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach()


def load(path, ties=None):
    """Judgements, and the different pairs with their wins, which ties have none of."""
    rows = pd.read_json(path, lines=True, dtype=False).assign(outcome="win")
    if ties is not None:
        names = {"response_a": "chosen", "response_b": "rejected"}
        rows = pd.concat([rows, pd.read_json(ties, lines=True, dtype=False).rename(columns=names)])
        rows = rows[rows["chosen"] != rows["rejected"]].reset_index(drop=True)
    is_win = rows["outcome"] == "win"
    order = rows["chosen"] < rows["rejected"]
    rows["first"] = np.where(order, rows["chosen"], rows["rejected"])
    rows["second"] = np.where(order, rows["rejected"], rows["chosen"])
    rows["is_first"], rows["is_win"] = order, is_win.astype(int)
    rows["first_wins"] = (order & is_win).astype(int)
    keys = ["topic", "first", "second"]
    rows["pair"] = rows.groupby(keys, sort=True).ngroup()
    pairs = rows.groupby("pair").agg(
        topic=("topic", "first"), first=("first", "first"), second=("second", "first"),
        wins=("first_wins", "sum"), count=("is_win", "sum"),
    )  # fmt: skip
    return rows, pairs


def cross_fitted(difference, pairs, part, seed=0):
    """Log-odds of the first response, every topic by a model of other topics."""
    topics = pairs["topic"].unique()
    wins = torch.tensor(pairs["wins"].to_numpy(), dtype=torch.float32)
    losses = torch.tensor((pairs["count"] - pairs["wins"]).to_numpy(), dtype=torch.float32)
    score = np.empty(len(pairs))
    for k, topic in enumerate(topics):
        others = np.random.default_rng((seed, k)).permutation(topics[topics != topic])
        half = len(others) // 2
        kept = {"all": others, "half_a": others[:half], "half_b": others[half:]}[part]
        train = torch.from_numpy(np.array(pairs["topic"].isin(kept)))
        weight = fit_utility(difference[train], wins[train], losses[train])
        test = (pairs["topic"] == topic).to_numpy()
        score[test] = (difference[torch.from_numpy(test)] @ weight).numpy()
    return score


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="jsonl file with prompt, chosen, rejected, annotator, topic")
    parser.add_argument("folder", help="where the parquet files go")
    parser.add_argument("--ties", help="jsonl file with the judgements that are ties")
    arguments = parser.parse_args()
    rows, pairs = load(arguments.data, arguments.ties)
    texts = pd.unique(pd.concat([pairs["first"], pairs["second"]]))
    table = torch.from_numpy(np.stack([features(text) for text in texts]))
    index = pd.Index(texts)
    first, second = (index.get_indexer(pairs[name]) for name in ("first", "second"))
    difference = table[first] - table[second]
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    sign = np.where(rows["is_first"], 1, -1)
    for part, name in (("all", "margins"), ("half_a", "half_a"), ("half_b", "half_b")):
        score = cross_fitted(difference, pairs, part)
        margin = sign * score[rows["pair"]]
        pd.DataFrame(
            {
                "margin": margin,
                "annotator": rows["annotator"],
                "pair": rows["pair"],
                "response_a": index.get_indexer(rows["chosen"]),
                "response_b": index.get_indexer(rows["rejected"]),
                "topic": rows["topic"],
                "trained_on": False,
                **({} if arguments.ties is None else {"outcome": rows["outcome"]}),
                "chosen_tokens": [len(words_of(text)) for text in rows["chosen"]],
                "rejected_tokens": [len(words_of(text)) for text in rows["rejected"]],
            }
        ).to_parquet(folder / f"{name}.parquet")
        agrees = (margin[rows["is_win"] == 1] > 0).mean()
        print(f"{name}: {len(margin):,} choices of {len(pairs):,} pairs, {agrees:.3f} agree, "
              f"sd of the margin {np.sqrt((margin**2).mean()):.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
