"""Does it help a language model? Win rates at equal KL, over training seeds, in simulated worlds.

    python benchmarks/language_models.py                 # both worlds, 5 seeds, about an hour
    python benchmarks/language_models.py --worlds none --seeds 2

A small Llama that speaks the grammar of the demo is trained on the choices of people who are alike
(`none`) or differ a lot (`strong`, cv 1.5), by DPO at three betas and by MixDPO. Every policy is
decoded at several weights between the reference and itself, and beyond, and is played against
the reference by the world's oracle. Its win rate is read off at one KL, seed by seed; DPO's betas
are one curve. The gain is that over DPO with the same seed.

The last answers stand in docs/evidence.md.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from datasets.utils.logging import disable_progress_bar
from tqdm import tqdm
from transformers import PrinterCallback

from mixdpo_pyro import MixDPOConfig, MixDPOTrainer
from mixdpo_pyro.data.simulation import simulate_preferences
from mixdpo_pyro.margins.config import MarginsConfig
from mixdpo_pyro.margins.language_models import LanguageModels
from mixdpo_pyro.training.reference_config import ReferenceConfig
from mixdpo_pyro.training.tiny_llama import build_reference
from mixdpo_pyro.winrates.completions import complete_prompts
from mixdpo_pyro.winrates.config import WinrateConfig
from mixdpo_pyro.winrates.oracle import parse_response, total_reward
from mixdpo_pyro.winrates.rates import compare_scores, match_divergence, over_seeds

SFT = 0.2
"""Weight of the likelihood of the chosen responses in the loss of all arms."""

CV = {"none": 0.0, "strong": 1.5}
IDS = {"annotator_column": "annotator"}
ARMS = {
    "DPO": [{"family": "fixed", "beta": beta} for beta in (0.7, 1.0, 1.4)],
    "lognormal, ids": [{"family": "lognormal", **IDS}],
    "gamma, ids": [{"family": "gamma", **IDS}],
    "lognormal": [{"family": "lognormal"}],
    "gamma": [{"family": "gamma"}],
    "cv fixed at 1": [{"family": "lognormal", "learn_cv": False, "strength_initial_cv": 1.0}],
}
"""Arm -> options of each of its trainings."""


def train(pairs, reference: str, options: dict, seed: int, folder: str):
    """A policy trained for one epoch."""
    args = MixDPOConfig(
        output_dir=folder, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True, num_train_epochs=1, loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, SFT], per_device_train_batch_size=32, learning_rate=5e-4,
        max_length=128, precompute_ref_log_probs=True, precompute_ref_batch_size=128,
        use_cpu=True, seed=seed, reference_cache_dir=f"{reference}/log_probs",
        **{"beta": 1.0, **options},
    )  # fmt: skip
    trainer = MixDPOTrainer(reference, args=args, train_dataset=pairs)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model.eval()


def complete(models, prompts, arguments, seed, weight=1.0):
    """Completions with the oracle's rewards."""
    config = WinrateConfig(
        prompts="", judge="oracle", output_dir="", num_completions=arguments.completions,
        max_new_tokens=64, batch_size=200, seed=seed,
    )  # fmt: skip
    table = complete_prompts(models, prompts, config, "", weight)
    table["score"] = table["completion"].map(total_reward)
    table["in_grammar"] = [parse_response(t).is_in_grammar for t in table["completion"]]
    return table


def measure_world(name: str, arguments: argparse.Namespace, folder: str) -> pd.DataFrame:
    """A row for each policy and decoding weight."""
    pairs = simulate_preferences(100, 24, cv=CV[name], seed=arguments.world_seed).dataset
    prompts = sorted(set(pairs["prompt"]))
    reference = f"{folder}/{name}"
    config = ReferenceConfig(hidden_size=96, sft_steps=arguments.sft_steps, seed=0)
    build_reference(pairs, config, reference)
    models = LanguageModels.load(reference, reference, MarginsConfig())
    twin = LanguageModels(
        models.reference, models.reference, models.tokenizer, models.device, "", ""
    )
    base = complete(twin, prompts, arguments, seed=99_991)
    print(f"{name}: {base['in_grammar'].mean():.3f} of the reference's completions in the grammar")
    work = [
        (arm, options, seed)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        for arm, each in ARMS.items()
        for options in each
    ]
    rows = []
    for arm, options, seed in tqdm(work, desc=name):
        policy = train(pairs, reference, options, seed, f"{folder}/out")
        other = LanguageModels(policy, models.reference, models.tokenizer, models.device, "", "")
        for weight in arguments.weights:
            table = complete(other, prompts, arguments, seed, weight)
            rate = compare_scores(
                table["score"].to_numpy(), base["score"].to_numpy(), table["prompt"].to_numpy()
            )
            rows.append(
                {"world": name, "arm": arm, "seed": seed, "beta": options.get("beta", 1.0),
                 "weight": weight, "kl": table["kl"].mean(), "rate": rate.rate,
                 "in_grammar": table["in_grammar"].mean(), "tokens": table["tokens"].mean()}
            )  # fmt: skip
        if arguments.output is not None:
            pd.DataFrame(rows).to_csv(arguments.output / f"{name}.csv", index=False)
    return pd.DataFrame(rows)


def at_equal_divergence(found: pd.DataFrame, divergence: float) -> dict[str, pd.Series]:
    """Arm -> win rate against the reference at this KL, by seed."""
    rates = {}
    for arm, members in found.groupby("arm", sort=False):
        by_seed = {}
        for seed, each in members.groupby("seed"):
            matched = match_divergence(
                each["kl"].to_numpy(), each["rate"].to_numpy(), [0] * len(each), divergence
            )
            by_seed[seed] = matched.rate
        rates[str(arm)] = pd.Series(by_seed)
    return rates


def report(found: pd.DataFrame, divergence: float) -> None:
    """The table of a world."""
    rates = at_equal_divergence(found, divergence)
    for arm, rate in rates.items():
        members = found[found["arm"] == arm]
        gain = over_seeds((rate - rates["DPO"]).dropna())
        at_one = members[(members["weight"] == 1) & (members["beta"] == 1)]
        whole = over_seeds(rate.dropna())
        print(
            f"| {members['world'].iloc[0]} | {arm} | {whole[0]:.1f} +- {whole[2] - whole[0]:.1f} "
            f"| {gain[0]:+.1f} +- {gain[2] - gain[0]:.1f} | {at_one['rate'].mean():.1f} at "
            f"{at_one['kl'].mean():.2f} | {at_one['in_grammar'].mean():.3f} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", nargs="*", choices=CV, default=list(CV))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=800)
    parser.add_argument("--world_seed", type=int, default=77)
    parser.add_argument("--sft_steps", type=int, default=1600)
    parser.add_argument("--completions", type=int, default=6, help="of each of 60 prompts")
    parser.add_argument("--weights", type=float, nargs="*", default=[0.5, 1.0, 1.5])
    parser.add_argument("--kl", type=float, default=0.5)
    parser.add_argument("--output", type=Path, help="folder for every policy's numbers")
    arguments = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)
    tables = []
    with TemporaryDirectory() as folder:
        for name in arguments.worlds:
            tables.append(measure_world(name, arguments, folder))
    print(
        "| world | trained with | win rate at equal KL | over DPO | at beta 1, KL | in grammar |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for table in tables:
        report(table, arguments.kl)


if __name__ == "__main__":
    main()
