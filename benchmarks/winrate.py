"""What does `mixdpo winrate` cost beside plain generation?

    python benchmarks/winrate.py

1,000 completions of 64 tokens by a Llama of 14 million weights, over `generate` of the same model,
tokens and batches, in one process, in turn. What it does besides is the KL to the reference along
every completion, which runs the reference once over all tokens.

Last answer, CPU seconds over those of generate: 1.62, and 2.64 where every token is decoded
between reference and policy, which runs both.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tqdm import tqdm
from training import FOURTEEN_MILLION, build_policy, long_pairs

from mixdpo_pyro.margins.config import MarginsConfig
from mixdpo_pyro.margins.language_models import LanguageModels
from mixdpo_pyro.winrates.completions import _encode, complete_prompts
from mixdpo_pyro.winrates.config import WinrateConfig

TOKENS = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--completions", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--weights", type=float, nargs="*", default=[1.0, 0.5])
    arguments = parser.parse_args()
    pairs = long_pairs(arguments.batch_size)
    prompts = [text[:80] for text in pairs["prompt"]]
    with TemporaryDirectory() as folder:
        names = [build_policy(Path(folder) / n, pairs, **FOURTEEN_MILLION) for n in "ab"]
        models = LanguageModels.load(*names, MarginsConfig())
    models.tokenizer.eos_token = models.tokenizer.pad_token or models.tokenizer.eos_token
    for model in (models.policy, models.reference):
        model.generation_config.eos_token_id = None
        model.generation_config.min_new_tokens = TOKENS
    config = WinrateConfig(
        prompts="", judge="oracle", output_dir="", max_new_tokens=TOKENS,
        batch_size=arguments.batch_size,
    )  # fmt: skip
    ids, mask = _encode(models, prompts)
    times: dict[str, list[float]] = {}
    for _ in tqdm(range(arguments.completions // arguments.batch_size)):
        start = time.process_time()
        with torch.no_grad():
            models.policy.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=True,
                top_k=0, pad_token_id=0,
            )  # fmt: skip
        times.setdefault("generate", []).append(time.process_time() - start)
        for weight in arguments.weights:
            start = time.process_time()
            found = complete_prompts(models, prompts, config, "", weight)
            times.setdefault(f"winrate, weight {weight:g}", []).append(time.process_time() - start)
            assert (found["tokens"] == TOKENS).all()
    plain = np.sum(times["generate"])
    print("| | CPU seconds | over generate |\n| --- | --- | --- |")
    for name, each in times.items():
        print(f"| {name} | {np.sum(each):.1f} | {np.sum(each) / plain:.2f} |")


if __name__ == "__main__":
    main()
