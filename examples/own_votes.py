"""One's own votes: do people differ, in what, and how sure is that?

    python examples/own_votes.py votes.csv

The file has a row for each vote: `score_a` and `score_b`, what a reward model or policy gives the
two responses in nats, `winner` (`a` or `b`), `annotator`, and `pair`, an id of what was judged.
Scores must not have been fitted to these votes.
"""

import sys

import numpy as np
import pandas as pd

from mixdpo_pyro.diagnosis.tables import annotator_table
from mixdpo_pyro.inference.diagnosis import Diagnosis, diagnose_choices


def diagnose(votes: pd.DataFrame) -> Diagnosis:
    """The verdict on a table of votes."""
    difference = votes["score_a"] - votes["score_b"]
    margin = np.where(votes["winner"] == "a", difference, -difference)
    return diagnose_choices(margin, annotator=votes["annotator"], pair=votes["pair"])


def main() -> None:
    """Print the verdict, what it rests on, and who is strongest."""
    diagnosis = diagnose(pd.read_csv(sys.argv[1]))
    verdict = diagnosis.verdict
    print(verdict.value, f"({verdict.kind})" if verdict.kind else "")
    print(verdict.reason)
    for check in diagnosis.checks:
        print(f"  {check.status:13} {check.name}")
    table = annotator_table(diagnosis)
    if table is not None:
        print(table[["annotator", "pairs", "mean", "q05", "q95", "shrinkage"]].head(10))


if __name__ == "__main__":
    main()
