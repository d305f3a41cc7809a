"""What does MixDPO cost over `trl.DPOTrainer`, does `fixed` equal it, and is cv learned right?

    python benchmarks/training.py                    # every row
    python benchmarks/training.py step loss          # some rows
    python benchmarks/training.py demo --seeds 10

`step` takes steps of all trainers in turn, each round in a new order, on a Llama of 14 million
parameters, batch 8, 256 tokens, and compares CPU time, since a stopwatch sees whatever else the
machine does. The allocator keeps freed memory: which trainer pays for page faults is luck.
`choices` does so for the best of four and for pairs that five people judged, whose responses are
run once. `demo` runs the demo at three cv, a minute each.
Set OMP_NUM_THREADS before; it takes two hours of one idle core, most of it `demo` and `step`.

Last answers (2 cores, torch 2.13, one thread). `demo`, ten for each cv, of seeds 611 to 617
and 621 to 626, beside other processes, 91 to 203 s each: PASS in 29 of 30, one REVIEW at cv 0;
there never heterogeneous, 5% quantile of cv at most 0.07, cv in training 0.074 and 0.085 (medians
of 4 and 6); at 0.4 and 0.8 the held-out interval covers in 9 and 10 of 10, with margins as exact
in 9 and 9.
Loss part 1.4 ms for both families on
one day, 2.1 to 3.5 ms on another (0.35 to 0.47 ms for `fixed`). `fixed` equals TRL exactly in all
four cases. The other rows were last run before the loss was logged in two parts. Peak memory
1.007 for both families, of 1802 MiB, most of it Pyro's import.
`choices`, 10 rounds beside six other processes: TRL's step takes 1.50 [1.48, 1.53] times as long
on the best of four (5.2 s), 4.93 [4.81, 5.03] times on pairs judged by five (8.7 s); the gradient
is that of all rows to 5e-8.
Step, 200 rounds of 6.5 s under glibc's defaults: 0.969 [0.965, 0.973] (lognormal), 0.972 [0.968,
0.977] (gamma): there a step of TRL has more page faults. Where freed memory is kept, 14 rounds:
0.995 +- 0.003, 0.994 +- 0.002, and a second trainer of TRL 0.995 +- 0.003.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from tqdm.auto import tqdm
from trl import DPOConfig, DPOTrainer

from mixdpo_pyro.data.simulation import simulate_preferences
from mixdpo_pyro.models import mixed_logit_log_prob
from mixdpo_pyro.models.observation import BestOf
from mixdpo_pyro.reporting.health_checks import check_run
from mixdpo_pyro.reporting.run_record import FinishedRun
from mixdpo_pyro.training.batches.choices import CHOICE_INDEX
from mixdpo_pyro.training.config import MixDPOConfig
from mixdpo_pyro.training.learned_strength import StrengthConfig
from mixdpo_pyro.training.tiny_llama import build_llama, train_tokenizer
from mixdpo_pyro.training.trainer import MixDPOTrainer
from mixdpo_pyro.workflows.demo import DemoConfig, run_demo

TESTS = Path(__file__).parents[1] / "tests"
BATCH, LENGTH = 8, 256
FOURTEEN_MILLION = {"hidden_size": 384, "num_layers": 8, "num_heads": 6}
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}  # fmt: skip
"""Has glibc keep what is freed, so that no step pays for page faults that another one caused."""


def row(name: str, allowed: str, value: str) -> None:
    """Print a row of the table."""
    print(f"| {name} | {allowed} | {value} |", flush=True)


def long_pairs(count: int) -> Dataset:
    """Pairs of about half a `LENGTH` of prompt, and completions that fill the rest."""
    world = simulate_preferences(num_annotators=10, pairs_per_annotator=-(-count // 10)).dataset
    times = {"prompt": 8, "chosen": 40, "rejected": 40}
    return world.select(range(count)).map(
        lambda pair: {name: " ".join([pair[name]] * number) for name, number in times.items()}
    )


def build_policy(folder: Path, pairs: Dataset, **sizes: int) -> str:
    """A Llama from a configuration, and its tokenizer."""
    texts = [text for name in ("prompt", "chosen", "rejected") for text in pairs[name]]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    model = build_llama(tokenizer, **sizes)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    print(f"policy: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters")
    return str(folder)


def settings(folder: Path, **changes: object) -> dict:
    """What both trainers are given."""
    common = {
        "output_dir": str(folder), "per_device_train_batch_size": BATCH, "max_length": LENGTH,
        "learning_rate": 1e-4, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False,
        "use_cpu": True, "logging_steps": 10_000, "beta": 0.1,
    }  # fmt: skip
    return {**common, **changes}


def step(arguments: argparse.Namespace) -> None:
    """Extra CPU time of a training step."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        pairs, common = long_pairs(64), settings(Path(folder))
        policy = build_policy(Path(folder) / "policy", pairs, **FOURTEEN_MILLION)
        steps = [Stepper(DPOTrainer(policy, args=DPOConfig(**common), train_dataset=pairs))]
        for family in arguments.families:
            args = MixDPOConfig(**common, family=family)
            steps.append(Stepper(MixDPOTrainer(policy, args=args, train_dataset=pairs)))
        times = np.empty((arguments.steps, len(steps)))
        # Two rounds to warm up; their times are overwritten by the last two.
        for k in tqdm(range(-2, arguments.steps), desc="rounds of steps", mininterval=10):
            for which in rng.permutation(len(steps)):
                times[k, which] = steps[which](k)
    base = times[:, 0].mean()
    for family, own in zip(arguments.families, times[:, 1:].T, strict=True):
        extra = own - times[:, 0]
        means = extra[rng.integers(len(extra), size=(4000, len(extra)))].mean(1)
        low, high = 1 + np.quantile(means, [0.025, 0.975]) / base
        row(
            f"step time over TRL's, {family}, {len(extra)} pairs of steps of {base * 1e3:.0f} ms",
            "1.01",
            f"{1 + extra.mean() / base:.4f} [{low:.4f}, {high:.4f}]; extra ms a step: mean "
            f"{extra.mean() * 1e3:.1f}, median {np.median(extra) * 1e3:.1f}",
        )


class Stepper:
    """Takes one whole training step of a trainer at each call, outside its loop."""

    def __init__(self, trainer: DPOTrainer) -> None:
        """Let the trainer set itself up with one step of its own."""
        trainer.args.max_steps = 1
        trainer.train()
        self._trainer = trainer
        loader = trainer.get_train_dataloader()
        self._batches = [dict(batch) for batch in loader]

    def __call__(self, k: int) -> float:
        """CPU seconds of step `k`: loss, backward, callbacks and optimiser."""
        trainer = self._trainer
        batch = dict(self._batches[k % len(self._batches)])
        start = time.process_time()
        trainer.training_step(trainer.model, batch)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        handler, control = trainer.callback_handler, trainer.control
        handler.on_pre_optimizer_step(trainer.args, trainer.state, control)
        trainer.optimizer.step()
        handler.on_optimizer_step(trainer.args, trainer.state, control)
        trainer.model.zero_grad()
        return time.process_time() - start


def choices(arguments: argparse.Namespace) -> None:
    """CPU time of a step on choices as people made them, over TRL's on the same pairs."""
    worlds = {
        "best of 4": (best_of_four(24), 6, "1.35 (limit 1.5)", {"choice_set_column": "set"}),
        "pairs judged by five": (judged_by_five(12), 10, "3 (limit 5)", {"group_by_pair": True}),
    }
    for name, (pairs, rows, asked, options) in worlds.items():
        with tempfile.TemporaryDirectory() as folder:
            common = settings(Path(folder), per_device_train_batch_size=rows)
            policy = build_policy(Path(folder) / "policy", pairs, **FOURTEEN_MILLION)
            theirs = DPOTrainer(policy, args=DPOConfig(**common), train_dataset=pairs)
            args = MixDPOConfig(**common, mean_anchor="free", **options)
            ours = MixDPOTrainer(policy, args=args, train_dataset=pairs)
            steps = [Stepper(theirs), Stepper(ours)]
            rng, times = np.random.default_rng(0), np.empty((arguments.rounds, 2))
            for k in tqdm(range(-1, arguments.rounds), desc=name, mininterval=10):
                for which in rng.permutation(2):  # the first round warms up
                    times[k, which] = steps[which](k)
            worst, largest = gradient_difference(ours)
        drawn = times[rng.integers(len(times), size=(4000, len(times)))].sum(1)
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
        row(
            f"step on {name}, TRL's time over ours, {len(times)} pairs of steps of "
            f"{times[:, 0].mean():.2f} s of CPU", asked,
            f"{times[:, 0].sum() / times[:, 1].sum():.3f} [{low:.3f}, {high:.3f}]",
        )  # fmt: skip
        row(f"gradient on {name} against the likelihood from all rows", "1e-5",
            f"{worst:.1e} of at most {largest:.2g}")  # fmt: skip


def best_of_four(count: int) -> Dataset:
    """Choices of the best among four long responses, as three pairs each."""
    pairs = long_pairs(count)
    rows = [
        {"prompt": pairs[k]["prompt"], "chosen": pairs[k]["chosen"], "set": str(k),
         "rejected": pairs[(k + j) % count]["rejected"]}
        for k in range(count) for j in range(3)
    ]  # fmt: skip
    return Dataset.from_list(rows)


def judged_by_five(count: int) -> Dataset:
    """Long pairs, each judged by five people, whose judgements lie apart."""
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(count), 5))
    return long_pairs(count).select(order)


def gradient_difference(trainer: MixDPOTrainer) -> tuple[float, float]:
    """Largest difference from the gradient with all rows run, and the largest gradient."""
    batch = next(iter(trainer.get_train_dataloader()))
    model, location = trainer.model.train(), trainer.strength.objective.location()
    model.zero_grad()
    trainer.compute_loss(model, dict(batch)).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {"attention_mask": batch["attention_mask"], "labels": labels, "fused_lm_head": True}
    with torch.no_grad():
        reference = trainer.ref_model(batch["input_ids"], **inputs).log_probs.sum(1)
    policy = model(batch["input_ids"], **inputs).log_probs.sum(1)
    chosen, rejected = (policy - reference).chunk(2)
    sets = batch.get(CHOICE_INDEX)
    extra = {} if sets is None else {"observation": BestOf(), "choice_set": sets}
    (-mixed_logit_log_prob(chosen - rejected, **location, **extra).mean()).backward()
    pairs = list(zip(found, (p.grad for p in model.parameters()), strict=True))
    worst = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    return worst, max(theirs.abs().max().item() for _, theirs in pairs)


def loss(arguments: argparse.Namespace) -> None:
    """The part of a step that is the likelihood: forward and backward of 8 margins."""
    margin = (torch.randn(BATCH) * 5).requires_grad_()
    for family in ("lognormal", "gamma", "fixed"):
        objective = StrengthConfig(family=family).build()

        def once(objective: torch.nn.Module = objective) -> float:
            objective.zero_grad()
            margin.grad = None
            start = time.perf_counter()
            objective(margin, num_total=10_000).backward()
            return time.perf_counter() - start

        values = sorted(once() for _ in range(500))
        row(
            f"loss part of a step, {family}, ms",
            "1.5",
            f"median {values[250] * 1e3:.2f}, 10% {values[50] * 1e3:.2f}, "
            f"90% {values[450] * 1e3:.2f}",
        )


def memory(arguments: argparse.Namespace) -> None:
    """Peak resident memory of a training process, several processes for each trainer.

    glibc's allocator is told to hand large blocks back at once: what it happens to keep differs
    by 5% between two runs of the same program.
    """
    names = ("trl", *arguments.families)
    peaks: dict[str, list[int]] = {name: [] for name in names}
    environment = {k: v for k, v in os.environ.items() if k not in KEEP_MEMORY}
    environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    with tempfile.TemporaryDirectory() as folder:
        pairs = long_pairs(32)
        policy = build_policy(Path(folder) / "policy", pairs, **FOURTEEN_MILLION)
        pairs.save_to_disk(f"{folder}/pairs")
        values = json.dumps(settings(Path(folder), max_steps=4))
        script = Path(__file__).with_name("peak_memory.py")
        for run in range(arguments.memory_runs):
            for name in np.roll(names, run):
                command = [sys.executable, str(script), name, policy, f"{folder}/pairs", values]
                done = subprocess.run(
                    command, check=True, capture_output=True, text=True, env=environment
                )
                peaks[name].append(int(done.stdout.split()[-1]))
    base = np.median(peaks["trl"])
    low, high = np.array([min(peaks["trl"]), max(peaks["trl"])]) / base
    for family in arguments.families:
        row(
            f"peak memory over TRL's, {family}, medians of {arguments.memory_runs} processes",
            "1.01",
            f"{np.median(peaks[family]) / base:.4f} ({base / 2**20:.0f} MiB; TRL itself "
            f"{low:.4f} to {high:.4f})",
        )


def parity(arguments: argparse.Namespace) -> None:
    """Largest difference of any shared metric between `fixed` and TRL, over 50 steps."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = simulate_preferences(num_annotators=20, pairs_per_annotator=20).dataset
        policy = build_policy(
            Path(folder) / "policy", pairs, hidden_size=64, num_layers=2, num_heads=2
        )
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
        cases = {
            "one process": ({}, None),
            "accumulation of 2": ({"gradient_accumulation_steps": 2}, None),
            "LoRA": ({}, lora),
        }
        for name, (changes, peft_config) in cases.items():
            logs = []
            for trainer_class, config in (
                (DPOTrainer, DPOConfig),
                (MixDPOTrainer, lambda **values: MixDPOConfig(family="fixed", **values)),
            ):
                args = config(
                    **settings(
                        Path(folder), max_steps=50, logging_steps=1, learning_rate=1e-3, **changes
                    )
                )
                trainer = trainer_class(
                    policy, args=args, train_dataset=pairs, peft_config=peft_config
                )
                trainer.train()
                logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
            row(f"`fixed` against TRL, 50 steps, {name}", "1e-5", difference(*logs))
        row("`fixed` against TRL, 50 steps, two processes", "1e-5", two_processes(policy, folder))


def two_processes(policy: str, folder: str) -> str:
    """The same under torchrun with two gloo processes, on the tests' world."""
    logs = []
    for name, changes in {"trl": {"trl": True}, "ours": {"family": "fixed"}}.items():
        output = Path(folder) / name
        output.mkdir()
        values = settings(
            output, max_steps=50, logging_steps=1, learning_rate=1e-3,
            per_device_train_batch_size=4, **changes,
        )  # fmt: skip
        for key in ("output_dir", "report_to", "use_cpu"):
            del values[key]
        subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
                str(TESTS / "training" / "two_processes.py"), policy, str(output),
                json.dumps([values]),
            ],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )  # fmt: skip
        logs.append(json.loads((output / "results.json").read_text())[0]["log"])
    return difference(*logs)


def difference(theirs: list[dict], ours: list[dict]) -> str:
    """Largest absolute difference over steps and shared names, and where it is."""
    names = set(theirs[0]) & set(ours[0])
    worst = {
        name: max(abs(a[name] - b[name]) for a, b in zip(theirs, ours, strict=True))
        for name in names
    }
    name = max(worst, key=worst.__getitem__)
    return f"{worst[name]:.1e} ({name}); loss {worst['loss']:.1e}; {len(ours)} steps"


def demo(arguments: argparse.Namespace) -> None:
    """The demo at cv 0, 0.4 and 0.8: cover of the truth, verdicts, health, cv in training."""
    for cv in (0.0, 0.4, 0.8):
        runs = [demo_run(cv, arguments.first_seed + k) for k in range(arguments.seeds)]
        verdicts = Counter(run.record.verdict.value for run in runs)
        health = Counter(str(check_run(run).status) for run in runs)
        low, high = np.array([run.posterior.interval("cv") for run in runs]).T
        exact = [run.attenuated_cv for run in runs]
        learned = [run.record.learned.cv for run in runs]
        seconds = max(run.record.seconds for run in runs)
        held_out = f"5% quantile at most {low.max():.2f}"
        if cv:
            held_out = f"covers {((low <= cv) & (cv <= high)).sum()}"
            held_out += f", margins as exact {sum(e[0] <= cv <= e[2] for e in exact if e)}"
        row(
            f"demo, cv {cv}, {len(runs)} seeds",
            "cover 8 of 10; never heterogeneous at 0; PASS 9 of 10; training at 0: 0.12; 180 s",
            f"held-out {held_out}; {dict(verdicts)}; {dict(health)}; training median "
            f"{np.median(learned):.3f}; at most {seconds:.0f} s",
        )


def demo_run(cv: float, seed: int) -> FinishedRun:
    """A finished demo, without its folder."""
    with tempfile.TemporaryDirectory() as folder:
        output = run_demo(DemoConfig(cv=cv, seed=seed, output_dir=str(Path(folder) / "demo")))
        run = FinishedRun.load(output)
        assert run.posterior is not None and run.history  # read while they are there
        return run


ROWS = {
    "loss": loss, "step": step, "choices": choices, "memory": memory, "parity": parity,
    "demo": demo,
}  # fmt: skip


def main() -> None:
    """Print the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; default all")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of `demo`")
    parser.add_argument("--first_seed", type=int, default=301, help="first of them")
    parser.add_argument("--steps", type=int, default=200, help="pairs of steps of `step`")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of steps of `choices`")
    parser.add_argument("--families", nargs="*", default=["lognormal", "gamma"])
    parser.add_argument("--memory_runs", type=int, default=5, help="processes of `memory`")
    arguments = parser.parse_args()
    rows = arguments.rows or ROWS
    if {"step", "choices"} & set(rows) and not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    disable_progress_bars()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| row | allowed | measured |\n| --- | --- | --- |")
    for name in rows:
        ROWS[name](arguments)


if __name__ == "__main__":
    main()
