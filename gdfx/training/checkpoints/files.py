"""The files of a checkpoint: on the disk when they are said to be, and told from damaged ones."""

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ...extras import require


class DamagedError(Exception):
    """Why a checkpoint is not good: the file and the reason."""


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays into the folder `path`, which does not exist yet."""
    # orbax refuses arrays without elements, of which the manifest tells everything, and trees without arrays.
    if held := {name: array for name, array in arrays.items() if array.size}:
        with require("orbax.checkpoint", "checkpoint").PyTreeCheckpointer() as checkpointer:
            checkpointer.save(path, held)


def read_arrays(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """The arrays of these names, which are all that were written."""
    if not names:
        return {}
    orbax = require("orbax.checkpoint", "checkpoint")
    as_numpy = {name: orbax.RestoreArgs(restore_type=np.ndarray) for name in names}
    with orbax.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path, restore_args=as_numpy)


def flushed(path: Path) -> str:
    """The digest of a file, of which all is on the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(path: Path) -> None:
    """Sees to it that the names in a folder are on the disk."""
    if sys.platform != "win32":  # where folders cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """The size and the digest of every file in a folder, of which all is on the disk."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": flushed(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Raises `DamagedError` unless the files are those of these `digests`."""
    for name, about in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != about["size"]:
                raise DamagedError(f"{path} has {size} bytes, expected {about['size']}")
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                    raise DamagedError(f"{path} is not what was written: its checksum differs")
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing") from None
        except PermissionError:
            raise
        except OSError as error:
            raise DamagedError(f"{path} cannot be read: {error}") from error


def explained(error: Exception, message: str) -> OSError:
    """An `OSError` of the kind of `error` with `message` first; TensorStore tells the kind in words only."""
    told = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    message = f"{message}. The reason: {error}"
    return OSError(message) if number is None else OSError(number, message)
