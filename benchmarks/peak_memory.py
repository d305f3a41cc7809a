"""Train a policy for a few steps and print the process's peak resident memory in bytes.

    python benchmarks/peak_memory.py trl|FAMILY POLICY PAIRS SETTINGS

`training.py memory` calls it. It imports the package only where it trains with it, so that what
Pyro and the package themselves occupy counts.
"""

import json
import sys
from pathlib import Path

from datasets import load_from_disk


def main() -> None:
    """Train with the trainer, policy folder, folder of pairs and JSON settings of the command."""
    name, policy, pairs, settings = sys.argv[1:]
    values = json.loads(settings)
    if name == "trl":
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer
    else:
        from mixdpo_pyro import MixDPOConfig as Config
        from mixdpo_pyro import MixDPOTrainer as Trainer

        values["family"] = name
    Trainer(policy, args=Config(**values), train_dataset=load_from_disk(pairs)).train()
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)


if __name__ == "__main__":
    main()
