"""Run notebooks in full and keep them clean: `python notebooks/execute.py [NAME.ipynb ...]`.

Needs the extra `notebooks`. Outputs are kept, metadata and warnings of a machine are not; cells
are numbered, so that a change shows as a small difference. A notebook is written when it is whole.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from mixdpo_pyro.io import written_whole

FOLDER = Path(__file__).resolve().parent


def execute(path: Path) -> None:
    """Run all cells from the top in a fresh kernel, and write the notebook back."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat_minor = 5
    for k, cell in enumerate(notebook.cells):
        cell.id = f"cell-{k:02d}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = {}
    with written_whole(path) as temporary:
        nbformat.write(notebook, temporary)


if __name__ == "__main__":
    os.environ.pop("CI", None)
    for name in sys.argv[1:] or sorted(p.name for p in FOLDER.glob("*.ipynb")):
        print(name, flush=True)
        execute(FOLDER / name)
