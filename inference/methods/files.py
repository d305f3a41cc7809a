"""Files that are written whole or not at all."""

import os
import secrets
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(content: bytes | memoryview, path: Path) -> None:
    """Write under a name of its own beside `path`, flush to the disk, then rename.

    Raises:
        OSError: Naming `path`, such as for a full disk; an earlier file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
