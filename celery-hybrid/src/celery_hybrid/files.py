"""Files that must survive a failure of power."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder_of(path: Path) -> None:
    """Write to disk that a file is in its folder, which writing the file itself does not do.

    Raises:
        OSError: the folder cannot be read or written.
    """
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
