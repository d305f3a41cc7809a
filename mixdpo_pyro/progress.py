"""What a person sees during a run: stages, and a progress bar with the numbers that matter."""

import os
from typing import Any

from rich.console import Console
from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

__all__ = ["TidyProgress", "console", "show_stage", "train_with_progress"]

_SHOWN = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "strength/mean": "mean",
    "strength/cv": "cv",
}

console = Console(stderr=True, highlight=False)


def show_stage(title: str) -> None:
    """Announce the next stage of a run, once for all processes of a launch."""
    if int(os.environ.get("RANK", 0)) == 0:
        console.print(f"[bold]{title}[/bold]")


class TidyProgress(ProgressCallback):
    """The Trainer's progress bar; the last metrics stand in the bar, not in lines below it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the last logged values in the bar."""
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        shown = {short: logs[name] for name, short in _SHOWN.items() if name in logs}
        if shown:
            self.training_bar.set_postfix({k: f"{float(v):.3g}" for k, v in shown.items()})


def train_with_progress(
    trainer: Trainer, resume_from_checkpoint: str | None = None
) -> TrainOutput:
    """Train with this bar in place of the Trainer's, and close it whatever happens."""
    if trainer.args.disable_tqdm:
        return trainer.train(resume_from_checkpoint)
    bar = TidyProgress()
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(bar)
    try:
        return trainer.train(resume_from_checkpoint)
    finally:
        if bar.training_bar is not None:
            bar.training_bar.close()
