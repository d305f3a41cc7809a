"""What goes to disk: files and folders that are whole or absent, and never in another's place."""

from mixdpo_pyro.io.files import write_csv, write_errors_named, write_json, written_whole
from mixdpo_pyro.io.outputs import check_output, locked_output
from mixdpo_pyro.io.staging import (
    RUN_FILE,
    added_to_result,
    check_replaceable,
    claim_folder,
    is_claimed,
    remove_claimed,
    shared_staged_folder,
    staged_folder,
)

__all__ = [
    "RUN_FILE",
    "added_to_result",
    "check_output",
    "check_replaceable",
    "claim_folder",
    "is_claimed",
    "locked_output",
    "remove_claimed",
    "shared_staged_folder",
    "staged_folder",
    "write_csv",
    "write_errors_named",
    "write_json",
    "written_whole",
]
