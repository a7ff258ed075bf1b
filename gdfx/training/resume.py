"""A training run that goes on from its last checkpoint."""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..core import Tree
from .checkpoint import Checkpoint, Checkpoints

Store = Checkpoints | str | os.PathLike[str] | None


class Resumable:
    """The checkpoints of one run, or none: `record` is told of each part of it, and saves from time to time."""

    def __init__(self, checkpoint: Store, every: float, optimizer: Any, run: dict[str, Any]):
        if not isinstance(every, int | float) or isinstance(every, bool) or not every >= 0:
            raise ValueError(f"checkpoint_seconds is {every!r}, expected a number of seconds of at least 0")
        self.own = isinstance(checkpoint, str | os.PathLike)
        self.store = Checkpoints(checkpoint) if isinstance(checkpoint, str | os.PathLike) else checkpoint
        self.every, self.optimizer, self.run = every, optimizer, run
        self.history: list[Tree] = []
        self.made = self._written = 0
        self._at = time.monotonic()

    def restore(self, carry: Tree, outs: Callable[[], Tree]) -> Checkpoint | None:
        """The newest checkpoint, whose state is like `carry`; `outs` gives the shapes of what a step puts out.

        Raises:
            ValueError: it is of another run: other data, batches, optimizer or params. What differs is told.
        """
        found = self.store.restore(carry, optimizer=self.optimizer) if self.store else None
        if found is None:
            return None
        told = {name: found.extra["run"].get(name) for name in self.run}
        different = [name for name in self.run if told[name] != self.run[name] and name != "stop"]
        if different:
            shown = ", ".join(f"{name} {told[name]}, not {self.run[name]}" for name in different)
            raise ValueError(
                f"fit: the checkpoint of step {found.step} is of a run with {shown}. Go on with what it was begun with, "
                "or give another directory"
            )
        structure = jax.tree.structure(outs())
        self.history = [jax.tree.unflatten(structure, found.extra["history"])] if found.step else []
        self.made = self._written = found.step
        return found

    def record(self, made: int, outs: Tree, carry: Tree, seconds: float, keep: bool) -> None:
        """Notes `made` more steps; saves them, if they are to be kept and the last save is long enough ago."""
        self.made += made
        self.history.append(outs)
        if keep and time.monotonic() - self._at >= self.every:
            self.save(carry, seconds)

    def save(self, carry: Tree, seconds: float) -> None:
        """Saves what is not saved yet."""
        if self.store is None or self.made == self._written:
            return
        history = self.joined()
        extra = {"run": self.run, "seconds": seconds, "history": jax.tree.leaves(history)}
        self.store.save(self.made, carry, optimizer=self.optimizer, extra=extra, metrics={"loss": history["loss"][-1]})
        self._written, self._at = self.made, time.monotonic()

    def joined(self) -> Tree:
        """All that the steps have put out."""
        self.history = [jax.tree.map(lambda *parts: np.concatenate(parts), *self.history)]
        return self.history[0]

    def close(self) -> None:
        """Waits for what is being written; a store that was opened here is given back."""
        if self.store is not None:
            if self.own:
                self.store.close()
            else:
                self.store.wait()
