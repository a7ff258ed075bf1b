"""A training run that goes on from its last checkpoint."""

import os
import time
from typing import Any

from ..core import Tree
from .checkpoints.checkpoint import Checkpoint
from .checkpoints.store import Checkpoints

Store = Checkpoints | str | os.PathLike[str] | None


class Resumable:
    """The checkpoints of one run, or none: `due` says when to save, `save` does."""

    def __init__(self, checkpoint: Store, every: float, run: dict[str, Any]):
        if not isinstance(every, int | float) or isinstance(every, bool) or not every >= 0:
            raise ValueError(f"checkpoint_seconds is {every!r}, expected a number of seconds of at least 0")
        self.own = isinstance(checkpoint, str | os.PathLike)
        self.store = Checkpoints(checkpoint) if isinstance(checkpoint, str | os.PathLike) else checkpoint
        self.every, self.run = every, run
        self.step = 0
        self._at = time.monotonic()

    def restore(self, state: Tree, optimizer: Any) -> Checkpoint | None:
        """The newest checkpoint, whose state is like `state`; None where there is none.

        Raises:
            ValueError: it is of another run: other data, batches, optimizer or params. What differs is told.
        """
        found = self.store.restore(state, optimizer=optimizer) if self.store else None
        if found is None:
            return None
        told = {name: found.extra["run"].get(name) for name in self.run}
        different = [name for name in self.run if told[name] != self.run[name] and name != "stop"]
        if different:
            shown = ", ".join(f"{name} {told[name]}, not {self.run[name]}" for name in different)
            raise ValueError(
                f"fit: the checkpoint of step {found.step} is of a run with {shown}. Go on with what it was begun "
                "with, or give another directory"
            )
        self.step = found.step
        return found

    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return self.store is not None and time.monotonic() - self._at >= self.every

    def save(self, step: int, state: Tree, optimizer: Any, extra: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Saves the run after `step` steps, unless that is done already."""
        if self.store is None or step == self.step:
            return
        self.store.save(step, state, optimizer=optimizer, extra={"run": self.run, **extra}, metrics=metrics)
        self.step, self._at = step, time.monotonic()

    def close(self) -> None:
        """Waits for what is being written; a store that was opened here is given back."""
        if self.store is not None:
            if self.own:
                self.store.close()
            else:
                self.store.wait()
