"""The Trainer's progress bar with the numbers that matter."""

from typing import Any

from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

__all__ = ["TidyProgress", "train_with_progress"]

_SHOWN = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "strength/mean": "mean",
    "strength/cv": "cv",
}


class TidyProgress(ProgressCallback):
    """The Trainer's progress bar; the last metrics stand in the bar, not in lines below it.

    It stays on the screen when it is done, with the metrics that training ended with.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.leave = True

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
