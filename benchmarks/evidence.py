"""The tables of docs/evidence.md: each by its name, with the settings that the page has.

python benchmarks/evidence.py             # the names
python benchmarks/evidence.py exact
"""

import runpy
import shlex
import sys
from pathlib import Path

ROWS = {
    "exact": "exact_arms.py --seeds 12 --first_seed 600",
    "panels": "exact_policy.py --seeds 8",
    "personal": "personal_strength.py --seeds 8",
    "language_models": "language_models.py",
    "collapse": "training.py demo",
    "worlds": "differences.py --datasets 20 --first_seed 7000",
    "judges": "judges.py --datasets 40",
    "generation": "winrate.py",
    "rivals": "rivals.py worlds",
}
"""Name of a table -> script and arguments."""


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in ROWS:
        lines = [f"  {name:16} python benchmarks/{script}" for name, script in ROWS.items()]
        raise SystemExit("\n".join(["usage: python benchmarks/evidence.py ROW", *lines]))
    folder = Path(__file__).parent
    name, *words = shlex.split(ROWS[sys.argv[1]])
    sys.argv = [str(folder / name), *words]
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / name), run_name="__main__")


if __name__ == "__main__":
    main()
