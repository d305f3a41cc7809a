"""`mixdpo demo`: a world with known truth, a policy from nothing, and what was learned of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mixdpo_pyro.data.simulation import simulate_preferences
from mixdpo_pyro.io import staged_folder
from mixdpo_pyro.progress.screen import show_stage
from mixdpo_pyro.training.tiny_llama import ReferenceConfig, build_reference
from mixdpo_pyro.workflows.results import raise_failures
from mixdpo_pyro.workflows.run_config import DemoConfig, plan_from_values
from mixdpo_pyro.workflows.train import execute_run

__all__ = ["run_demo"]


def run_demo(config: DemoConfig, command: str = "mixdpo demo") -> Path:
    """Simulate, build and fit a small policy, train it with MixDPO, write the report.

    Returns:
        The folder with the results.
    """
    output = Path(config.output_dir).expanduser()
    with staged_folder(output, config.overwrite) as folder:
        show_stage("Simulating annotators, prompts, responses and choices")
        world = simulate_preferences(
            num_annotators=config.num_annotators,
            pairs_per_annotator=config.pairs_per_annotator,
            family=config.family,
            mean=config.mean,
            cv=config.cv,
            seed=config.seed,
            judges_per_pair=config.judges_per_pair,
        )
        world.save(folder / "world")
        show_stage("Fitting a small Llama to the responses (the reference)")
        build_reference(
            world.dataset,
            ReferenceConfig(hidden_size=96, sft_steps=200, seed=config.seed),
            folder / "reference",
        )
        plan = plan_from_values(_training_values(config, folder))
        given = _training_values(config, output)  # what stays true once the folder has its name
        failures = execute_run(replace(plan, given=given), folder, command, world.truth)
    raise_failures(failures, output)
    return output


def _training_values(config: DemoConfig, folder: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": str(folder / "reference"),
        "dataset_name": str(folder / "world" / "pairs.parquet"),
        "output_dir": str(folder),
        "family": config.family,
        "beta": 1.0,
        "test_fraction": 0.2,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 128,
        "learning_rate": 2.5e-4,
        "max_length": 128,
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": 128,
        "reference_cache_dir": str(folder / "reference" / "log_probs"),
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "seed": config.seed,
    }
