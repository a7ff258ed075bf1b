"""`Checkpoints`: the state of a training run on disk, whole or not at all."""

import math
import operator
import os
import re
import shutil
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ...core import Tree
from ...extras import require
from . import manifest
from .checkpoint import Checkpoint, copied, load, metrics_of, write
from .files import DamagedError, explained, flush_folder
from .locks import Held, lock


class Checkpoints:
    """The checkpoints of one training run, in a directory of their own.

    The last `keep` are kept and, with `metric`, the name of one of the metrics of each, the `keep_best` that are best
    by it (`mode` `"min"` or `"max"`; not-a-number is the worst). With `asynchronous` a save returns as soon as the
    arrays are copied, and is written while the training goes on: an error comes with the next call. Close the store,
    or use it in a `with` block, to be told of an error in the last save and to let others have the directory.

    A checkpoint counts once it is whole and on the disk, so that killing the process loses at most the one being
    written. Only one process at a time may have a directory open, unless it is `read_only`: such a store takes no
    lock, changes nothing, and may be opened while another process trains.

    Raises:
        RuntimeError: another process has the directory open.
        OSError: the directory cannot be made or written to.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        metric: str | None = None,
        keep_best: int = 1,
        mode: Literal["min", "max"] = "min",
        asynchronous: bool = True,
        read_only: bool = False,
    ):
        for name, value, least in (("keep", keep, 1), ("keep_best", keep_best, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"Checkpoints: {name} is {value!r}, expected an integer of at least {least}")
        if mode not in ("min", "max"):
            raise ValueError(f'Checkpoints: mode is {mode!r}, expected "min" or "max"')
        require("orbax.checkpoint", "checkpoint")
        self.directory = Path(os.path.abspath(directory))  # orbax takes no other
        self.keep, self.metric, self.keep_best, self.mode = keep, metric, keep_best, mode
        self.asynchronous, self.read_only = asynchronous, read_only
        self._damaged: set[int] = set()
        self._metrics: dict[int, dict[str, float]] = {}
        # All of orbax runs in this thread: it starts an event loop, of which a notebook has one already.
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._held = Held()
        self._abandoned = weakref.finalize(self, self._held.abandon, self.directory)
        # Threads may start no others once the interpreter shuts down, and nothing public is called before that.
        if register := getattr(threading, "_register_atexit", None):
            register(self._held.finish)
        if not read_only:
            self._open()

    def save(
        self,
        step: int,
        state: Tree,
        *,
        optimizer: Any = None,
        extra: Any = None,
        metrics: dict[str, Any] | None = None,
    ) -> None:
        """Saves `state` as it is after `step` steps, which are more than those of any checkpoint that is there.

        `state` is a pytree of arrays, keys and Python numbers: a `TrainState`, or what else the run goes on from.
        `optimizer` is saved with its hyperparameters. `extra` may hold what JSON does, in dicts and lists, and arrays
        of any shape: the position in the data, a history. `metrics` are real scalars by name. All is copied
        before this returns; the state may then be donated.

        Raises:
            OSError: it, or the one before it, could not be written; the checkpoints that are there stay as they are.
            TypeError: a leaf of the state or something in `extra` cannot be saved; the path is named.
            ValueError: `step` is not after the last one, the metric to keep by is missing, or arrays were donated.
        """
        if self.read_only:
            raise RuntimeError(f"{self.directory} was opened with read_only=True: nothing can be saved in it")
        self.wait()
        step = _index(step)
        if (steps := self.steps()) and step <= steps[-1]:
            raise ValueError(
                f"step is {step}, but {self.directory} has a checkpoint of step {steps[-1]}: go on from that, by "
                "restore, or save to another directory"
            )
        told = {name: _scalar(value, name) for name, value in (metrics or {}).items()}
        if self.metric is not None and self.metric not in told:
            raise ValueError(
                f"metrics has {', '.join(told) or 'no entries'}, expected {self.metric}, to keep the best by"
            )
        content, arrays = copied(step, state, optimizer, extra, told)
        self._held.saving = self._worker.submit(self._write, step, content, arrays)
        if not self.asynchronous:
            self.wait()

    def restore(self, like: Tree, *, optimizer: Any = None, step: int | None = None) -> Checkpoint | None:
        """The newest good checkpoint, or that of `step`; None where there is none yet.

        `like` is a state with the structure, shapes, dtypes and placement that are wanted, such as the one that
        training would begin with, or `jax.eval_shape` of it. Leaves that are NumPy's in `like` are NumPy's again. An
        `optimizer` has to be the one that was saved but for its numbers, and comes back with the numbers that were
        saved. A damaged checkpoint is passed over for the one before it, with a warning.

        Raises:
            ValueError: `like` or `optimizer` is not like what was saved, every difference by its path; or the
                checkpoint of `step` does not exist or is damaged; or all are damaged.
        """
        self.wait()
        steps = self._on_disk()
        if step is not None:
            step = _index(step)
            if step not in steps:
                raise ValueError(f"{self.directory} has no checkpoint of step {step}; it has {steps or 'none'}")
            try:
                return load(self._path(step), like, optimizer, self._worker)
            except DamagedError as damage:
                raise ValueError(f"the checkpoint of step {step} is damaged: {damage}") from damage
        reasons = []
        for step in reversed(steps):
            try:
                return load(self._path(step), like, optimizer, self._worker)
            except DamagedError as damage:
                self._damaged.add(step)
                reasons.append(f"the checkpoint of step {step} is damaged: {damage}")
                warnings.warn(f"{reasons[-1]}; passed over for the one before it", stacklevel=2)
        if reasons:
            raise ValueError(f"{self.directory} has no good checkpoint: {'; '.join(reasons)}")
        return None

    def steps(self) -> list[int]:
        """The steps of the checkpoints on the disk, upwards, without those that `restore` found damaged.

        That of a save which is still being written is not among them: `wait` for it.
        """
        return [step for step in self._on_disk() if step not in self._damaged]

    def best(self) -> int | None:
        """The step of the best checkpoint by `metric`; None where none has it."""
        ranked = self._ranked(self.steps())
        return ranked[0] if ranked else None

    def wait(self) -> None:
        """Waits for the save that is being written; raises `OSError` if it could not be."""
        if (saving := self._held.saving) is not None:
            try:
                saving.result()
            finally:
                if saving.done():
                    self._held.saving = None

    def close(self) -> None:
        """Waits for the last save, and lets other processes use the directory."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            self._held.unlock()
            self._abandoned.detach()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoints({str(self.directory)!r}, steps={self.steps()})"

    def _open(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._held.lock = lock(self.directory)
            for left in self.directory.glob(".*-[0-9]*"):  # by a process that was killed
                if left.name.startswith((".writing-", ".removing-")):
                    shutil.rmtree(left)
        except OSError as error:
            self._held.unlock()
            raise explained(error, f"checkpoints cannot be saved in {self.directory}") from error

    def _on_disk(self) -> list[int]:
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d+)", name)))

    def _path(self, step: int) -> Path:
        return self.directory / f"step_{step:08d}"

    def _ranked(self, steps: list[int]) -> list[int]:
        """Those of `steps` that have the metric, the best first, of equal ones the newer."""
        scores = {}
        for step in steps if self.metric is not None else ():
            if step not in self._metrics:
                try:
                    self._metrics[step] = metrics_of(manifest.read(self._path(step)))
                except DamagedError:
                    self._metrics[step] = {}
            if self.metric in self._metrics[step]:
                score = self._metrics[step][self.metric] * (-1 if self.mode == "max" else 1)
                scores[step] = math.inf if math.isnan(score) else score, math.isnan(score), -step
        return sorted(scores, key=scores.__getitem__)

    def _write(self, step: int, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        temporary = self.directory / f".writing-{step}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            write(temporary, content, arrays)
            if self._path(step).exists():  # a damaged one: `save` refuses to replace another
                self._remove(step)
            temporary.rename(self._path(step))
            flush_folder(self.directory)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            good = self.steps()
            kept = f"the last good checkpoint is that of step {good[-1]}" if good else "there is no checkpoint yet"
            if not self.directory.exists():
                kept = "the directory is gone: it was moved or removed since it was opened"
            message = f"the checkpoint of step {step} cannot be saved in {self.directory}; {kept}"
            raise explained(error, message) from error
        self._damaged.discard(step)
        self._metrics[step] = metrics_of(content)
        self._thin(step)

    def _thin(self, newest: int) -> None:
        """Removes what is neither among the last nor among the best."""
        good = [step for step in self.steps() if step <= newest]
        kept = {*good[-self.keep :], *self._ranked(good)[: self.keep_best]}
        try:
            for step in self._on_disk():
                if step < newest and step not in kept:
                    self._remove(step)
        except OSError as error:
            raise explained(error, f"an old checkpoint cannot be removed from {self.directory}") from error

    def _remove(self, step: int) -> None:
        # Renamed first: a process that is killed now leaves no half of a checkpoint under its name.
        removing = self.directory / f".removing-{step}"
        shutil.rmtree(removing, ignore_errors=True)
        self._path(step).rename(removing)
        shutil.rmtree(removing)


def _index(step: Any) -> int:
    try:
        index = -1 if isinstance(step, bool) else operator.index(step)
    except TypeError:
        index = -1
    if index < 0:
        raise ValueError(f"step is {step!r}, expected a non-negative integer")
    return index


def _scalar(value: Any, name: str) -> float:
    if not isinstance(value, int | float | np.number | np.ndarray | jax.Array):
        raise TypeError(f"metrics: {name} is a {type(value).__name__}, expected a real scalar")
    if jnp.shape(value) != () or not jnp.isrealobj(value):
        raise ValueError(f"metrics: {name} is {value!r:.200}, expected a real scalar")
    return float(value)
