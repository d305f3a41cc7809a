"""What a result was computed with: versions of packages, and the machine."""

import importlib.metadata
import os
import platform
from contextlib import suppress

__all__ = ["environment_lines", "package_versions"]

_PACKAGES = (
    "mixdpo-pyro", "torch", "pyro-ppl", "transformers", "trl", "peft", "datasets", "accelerate",
    "arviz-base",
)  # fmt: skip

_VARIABLES = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
)
"""What changes how fast, or whether, things run; none of them is a secret."""


def package_versions() -> dict[str, str]:
    """Python, this package and those that it stands on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def environment_lines() -> list[str]:
    """Versions and machine as lines for a bug report; no names of users, hosts or folders."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    device = "none"
    if found is not None:
        device = f"{torch.accelerator.device_count()} x {found.type}"
    if torch.cuda.is_available():
        device += f" ({torch.cuda.get_device_name()})"
    facts = {
        **dict.fromkeys(_PACKAGES, "not installed"),
        **package_versions(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "accelerator": device,
        **{name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    return [f"- {name}: {value}" for name, value in facts.items()]
