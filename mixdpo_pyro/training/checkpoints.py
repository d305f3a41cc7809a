"""Which checkpoint an interrupted training can go on from."""

import logging
from pathlib import Path

from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mixdpo_pyro.io.integrity import find_fault, find_model_fault
from mixdpo_pyro.training.learned_strength import STRENGTH_FILE, TENSORS_FILE

__all__ = ["last_whole_checkpoint"]

logger = logging.getLogger(__name__)

_DEEPSPEED = "global_step*"

_NEEDED = (
    ("model.safetensors*", "pytorch_model*", "**/adapter_model.*", _DEEPSPEED),
    (OPTIMIZER_NAME, "optimizer.bin", "optimizer_*", _DEEPSPEED),
    (SCHEDULER_NAME, _DEEPSPEED),
    (STRENGTH_FILE,),
    (TENSORS_FILE,),
    (TRAINER_STATE_NAME,),
)
"""What resuming reads: patterns of which one has to be there, those of one device first.

The Trainer goes on without a word where optimizer and scheduler are missing.
"""

_ARCHIVES = (".safetensors", ".pt", ".pth", ".bin")


def last_whole_checkpoint(folder: str | Path, num_processes: int = 1) -> str | None:
    """The newest checkpoint that can be gone on from, or None.

    The Trainer writes a checkpoint's files one after the other, its own state last, and resumes
    from the newest folder, whole or not. A process that was killed while writing leaves one that
    cannot be loaded, or worse, one without the state of a random generator; a disk that was full
    or lost its power leaves files that are cut. Those are passed over with a warning.

    Args:
        folder: The Trainer's output folder.
        num_processes: Processes of the launch; each has a file of its random state.

    Returns:
        Path of the checkpoint.
    """
    found = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    numbered = {int(p.name.rpartition("-")[2]): p for p in found if p.name[-1].isdigit()}
    for step in sorted(numbered, reverse=True):
        fault = _find_missing(numbered[step], num_processes) or _find_damage(numbered[step])
        if fault is None:
            return str(numbered[step])
        logger.warning("%s; this checkpoint is passed over", fault)
    return None


def _find_missing(checkpoint: Path, num_processes: int) -> str | None:
    for patterns in _NEEDED:
        if not any(any(checkpoint.glob(pattern)) for pattern in patterns):
            return f"{checkpoint}: was not written to its end, {patterns[0]} is missing"
    if len(list(checkpoint.glob("rng_state*.pth"))) < num_processes:
        return f"{checkpoint}: was not written to its end by all {num_processes} processes"
    return None


def _find_damage(checkpoint: Path) -> str | None:
    read = [checkpoint / TRAINER_STATE_NAME, checkpoint / STRENGTH_FILE]
    read += [path for path in sorted(checkpoint.rglob("*")) if path.suffix in _ARCHIVES]
    faults = (find_fault(path) for path in read)
    return find_model_fault(checkpoint) or next((fault for fault in faults if fault), None)
