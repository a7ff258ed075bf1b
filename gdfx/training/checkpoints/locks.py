"""One store of checkpoints a directory."""

import errno
import os
import socket
import sys
import warnings
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path


def lock(directory: Path) -> int:
    """Locks a file that tells this process's number, until it is closed, which the system does for the dead.

    Raises:
        RuntimeError: another store has it; which process that is is told.
    """
    path = directory / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the text, which others are to read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            raise
        owner = path.read_text(errors="replace").strip() or "which has just begun"
        raise RuntimeError(
            f"{directory} is in use by another store of checkpoints, {owner}: close that first, use another directory, "
            "or only read it, with read_only=True"
        ) from None
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


@dataclass
class Held:
    """What a store has open, and has to give back when it is dropped without being closed."""

    lock: int | None = None
    saving: "Future[None] | None" = None

    def unlock(self) -> None:
        descriptor, self.lock = self.lock, None
        if descriptor is not None:
            os.close(descriptor)

    def finish(self) -> None:
        """Waits for the last save, before the interpreter shuts down."""
        if self.saving is not None:
            self.saving.exception()

    def abandon(self, directory: Path) -> None:
        """Unlocks the directory; an error that nobody has seen is told at least."""
        self.unlock()
        if self.saving is not None and self.saving.done() and (error := self.saving.exception()):
            warnings.warn(
                f"checkpoints in {directory} were not closed, and the last save failed: {error}", stacklevel=1
            )
