"""Which checkpoint an interrupted training can go on from."""

import json
import logging
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

__all__ = ["last_whole_checkpoint"]

logger = logging.getLogger(__name__)


def last_whole_checkpoint(folder: str | Path, num_processes: int = 1) -> str | None:
    """The newest checkpoint that was written to its end, or None.

    The Trainer writes a checkpoint's files one after the other, its own state last, and resumes
    from the newest folder, whole or not. A process that was killed while writing leaves one that
    cannot be loaded, or worse, one without the state of a random generator.

    Args:
        folder: The Trainer's output folder.
        num_processes: Processes of the launch; each has a file of its random state.

    Returns:
        Path of the checkpoint.
    """
    found = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    numbered = {int(p.name.rpartition("-")[2]): p for p in found if p.name[-1].isdigit()}
    for step in sorted(numbered, reverse=True):
        if _is_whole(numbered[step], num_processes):
            return str(numbered[step])
        logger.warning("%s: was not written to its end and is passed over", numbered[step])
    return None


def _is_whole(checkpoint: Path, num_processes: int) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    return len(list(checkpoint.glob("rng_state*.pth"))) >= num_processes
