"""What the examples of README and docs talk about: files, folders and variables, all tiny."""

import json
import re
import shutil

import numpy as np
import pandas as pd
from scenarios import small_world

RUNS = ("RUN", "run-lognormal", "run-gamma", "run-dpo", "runs/first", "runs/second")
"""Names that examples give to finished runs."""


def build_files(folder, policy, pages):
    """Everything that a shell example reads, under the names that README and docs use."""
    for name in ("MODEL", "REFERENCE", "Qwen/Qwen2.5-0.5B-Instruct"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(policy)
    for name in ("lora-folder", "my-lora-folder", "trained-adapter"):
        write_adapter(policy, folder / name)
    pairs = example_pairs()
    pairs.save_to_disk(folder / "DATA")
    pairs.to_json(folder / "pairs.jsonl")
    pairs.to_json(folder / "pairs.jsonl.gz", compression="gzip")
    write_utterances(folder / "utterances.jsonl")
    simulate_margins().to_parquet(folder / "margins.parquet")
    simulate_outcomes("ties").to_csv(folder / "ties.csv", index=False)
    simulate_votes().to_csv(folder / "votes.csv", index=False)
    example_votes_for_a_or_b().to_csv(folder / "ab.csv", index=False)
    simulate_outcomes("best-of:4").to_parquet(folder / "best-of-4.parquet")
    for page in pages:
        for text, name in re.findall(r"^```yaml\n(# (\S+\.yaml).*?)^```", page, re.S | re.M):
            (folder / name).write_text(text)


def example_pairs():
    return small_world().remove_columns("source_row").rename_column("annotator", "user_id")


def example_votes_for_a_or_b():
    rows = [("Why?", "Because.", "No.", won, f"w{k}") for k, won in enumerate(["A", "B", "tie"])]
    names = ["Prompt Text", "Response A", "Response B", "preferred", "worker id"]
    return pd.DataFrame(rows, columns=names)


def write_adapter(policy, folder):
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(policy)
    settings = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    peft.get_peft_model(base, settings).save_pretrained(folder)


def write_utterances(path):
    """Two conversations as PRISM writes them."""
    rows = [
        {
            "utterance_id": f"ut{user}{answer}", "interaction_id": f"int{user}", "turn": 0,
            "conversation_id": f"c{user}", "conversation_type": "unguided",
            "user_id": f"user{user}", "user_prompt": f"Why {user}?",
            "model_name": f"model-{answer}", "model_response": f"Because of {answer}.",
            "score": score, "if_chosen": score == 90,
        }
        for user in range(2)
        for answer, score in (("a", 90), ("b", 20))
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def simulate_margins(num_annotators=8, choices_each=40):
    """Margins of annotators with LogNormal strengths, cv about 0.7, and their ids."""
    rng = np.random.default_rng(0)
    annotator = np.repeat(np.arange(num_annotators), choices_each)
    strength = rng.lognormal(0.0, 0.6, num_annotators)[annotator]
    difference = rng.normal(0.0, 2.0, len(annotator))
    prefers_first = rng.random(len(annotator)) < 1 / (1 + np.exp(-strength * difference))
    ids = [f"user{k}" for k in annotator]
    margin = np.where(prefers_first, difference, -difference)
    topic = np.tile(["cats", "dogs"], len(annotator) // 2)
    return pd.DataFrame(
        {"margin": margin, "annotator": ids, "user_id": ids, "topic": topic,
         "age": 20 + annotator}
    )  # fmt: skip


def simulate_outcomes(kind, num_annotators=8, choices_each=20):
    """Margins with ties or choice sets, in the columns that tables of margins have for them."""
    from mixdpo_pyro.inference import Design, simulate

    design = Design(num_annotators, choices_each, spread=2.0, beta=1.0, kind=kind)
    found = simulate(1.0, 0.6, "lognormal", design, np.random.default_rng(1))
    table = pd.DataFrame({"margin": found.margin, "annotator": found.annotator, **found.done})
    if "outcome" in table:
        table["outcome"] = table["outcome"].map({-1: "loss", 0: "tie", 1: "win"})
    return table


def simulate_votes():
    """Votes between three models by four judges, as arenas write them."""
    rng = np.random.default_rng(0)
    left = rng.integers(3, size=80)
    right = (left + rng.integers(1, 3, size=80)) % 3
    winner = rng.choice(["model_a", "model_b", "tie"], 80)
    return pd.DataFrame(
        {"model_a": left, "model_b": right, "winner": winner, "judge": np.arange(80) % 4}
    )


def copy_run(run, folder):
    for name in RUNS:
        shutil.copytree(run, folder / name)
    names = {arm: f"{arm}/beta-0.1/seed-42" for arm in ("dpo", "mixdpo")}
    for name in names.values():
        shutil.copytree(run, folder / "sweep" / "runs" / name)
    runs = [{"name": name, "arm": arm, "beta": 0.1, "seed": 42} for arm, name in names.items()]
    (folder / "sweep" / "sweep.json").write_text(json.dumps({"format": 2, "runs": runs}))
    shutil.copytree(run, folder / "run-lora", ignore=shutil.ignore_patterns("*.safetensors"))
    write_adapter(folder / "MODEL", folder / "run-lora" / "policy")


def build_names(folder):
    """The variables that Python examples take for granted."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mixdpo_pyro import MixDPOConfig

    table = pd.read_parquet(folder / "margins.parquet")
    return {
        "model": str(folder / "MODEL"),
        "base": AutoModelForCausalLM.from_pretrained(folder / "MODEL"),
        "tokenizer": AutoTokenizer.from_pretrained(folder / "MODEL"),
        "args": MixDPOConfig("out", report_to="none"),
        "pairs": small_world().rename_column("annotator", "user_id"),
        "margins": table["margin"].to_numpy(copy=True),
        "ids": table["annotator"].to_numpy(),
        "margin": torch.tensor([0.5, -1.0]),
        "mean": torch.tensor(1.0),
        "cv": torch.tensor(0.5),
    }
