"""Where the batches of a training run come from: arrays, or any iterable of batches."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree
from ..tree import path_str
from .data import Shuffled, batch_of, check_data

FITS = 0.5
"""The part of the device's free memory that arrays may take and still be kept there."""

Row = dict[str, Any]


class Arrays:
    """Arrays with one row an example, in a new order each epoch; with `batch_size=None` all of them in each step."""

    def __init__(self, data: Tree, batch_size: int | None, key: Any, pad: bool):
        self.size = check_data(data, batch_size)
        self.order = Shuffled(self.size, batch_size, key, pad=pad) if batch_size is not None else None
        self.steps_per_epoch = self.order.steps_per_epoch if self.order else 1
        self.left = self.size % batch_size if batch_size is not None and pad else 0
        self.on_host = self.order is not None and not _fits(data)
        self.data = jax.tree.map(np.asarray if self.on_host else jnp.asarray, data)
        self.constants = None if self.on_host else self.data
        self.taken = 0
        self.masked = pad

    def take(self, n: int) -> Row | None:
        """The rows of the next `n` steps, stacked; `epoch_end` says at which an epoch ends."""
        ends = (self.taken + np.arange(1, n + 1)) % self.steps_per_epoch == 0
        self.taken += n
        row: Row = {"epoch_end": ends}
        if self.order is not None:
            examples = self.order.take(n)
            row |= {"batch": jax.tree.map(lambda a: a[examples], self.data)} if self.on_host else {"examples": examples}
            if self.left:
                row["real"] = ~ends[:, None] | (np.arange(self.order.batch_size) < self.left)
        return row

    def batch(self, constants: Tree, row: Row) -> Tree:
        """The batch of a step; may be traced."""
        return row["batch"] if self.on_host else batch_of(constants, row.get("examples"))

    def epoch(self, step: int) -> tuple[int, bool]:
        """The epochs that end within the first `step` steps, and whether one ends with the last of these."""
        return step // self.steps_per_epoch, step % self.steps_per_epoch == 0

    def position(self, step: int) -> Any:
        """What `go_to` needs beside the number of steps."""
        return None

    def go_to(self, step: int, position: Any) -> None:
        """Goes on as after `step` steps."""
        self.taken = step
        if self.order is not None:
            self.order.skip(step)


class _Step(NamedTuple):
    batch: Tree
    real: np.ndarray  # bools: the examples that are not there to fill it up
    epoch_end: bool
    after: dict[str, Any]  # the position after it


class Batches:
    """The batches of an iterable; to go through all of them is an epoch.

    `take` gives the rows of one epoch only, as their number is not known before.
    """

    constants = None
    steps_per_epoch = None

    def __init__(self, batches: Iterable[Tree], epochs: int | None, pad: bool):
        self.batches, self.epochs, self.masked = batches, epochs, pad
        self.first = iter(batches)
        self.once = self.first is batches
        if self.once and epochs not in (None, 1):
            raise ValueError(
                f"data is a {type(batches).__name__}, which can be gone through only once, but epochs is {epochs}: "
                "expected epochs=1, or something that begins anew for each epoch, such as a list or a data loader"
            )
        self.shapes: Tree = None  # of the first batch
        self.taken = 0
        start = {"epoch": 0, "batches": 0, "state": None}
        self.positions: dict[int, dict[str, Any]] = {0: start}  # after so many steps
        self.steps = self._steps(**start)

    def take(self, n: int) -> Row | None:
        """The rows of up to `n` steps, stacked, of one epoch; None after the last epoch."""
        taken: list[_Step] = []
        for step in islice(self.steps, n):
            taken.append(step)
            if step.epoch_end:
                break
        if not taken:
            return None
        self.positions |= {self.taken + i: step.after for i, step in enumerate(taken, 1)}
        self.taken += len(taken)
        row: Row = {"batch": _stacked([s.batch for s in taken]), "epoch_end": np.array([s.epoch_end for s in taken])}
        return row | ({"real": np.stack([s.real for s in taken])} if self.masked else {})

    def batch(self, constants: Tree, row: Row) -> Tree:
        """The batch of a step."""
        return row["batch"]

    def epoch(self, step: int) -> tuple[int, bool]:
        """The epochs that end within the first `step` steps, and whether one ends with the last of these."""
        return self.positions[step]["epoch"], self.positions[step]["batches"] == 0

    def position(self, step: int) -> Any:
        """The epoch, the batches read of it, and the iterator's own state if it tells; steps before are forgotten."""
        self.positions = {n: position for n, position in self.positions.items() if n >= step}
        return self.positions[step]

    def go_to(self, step: int, position: Any) -> None:
        """Goes on at `position`; what is before it in the epoch is read again, unless the iterator has a state."""
        self.taken, self.positions, self.steps = step, {step: position}, self._steps(**position)

    def _steps(self, epoch: int, batches: int, state: Any) -> Iterator[_Step]:
        while epoch != self.epochs and not (self.once and epoch):
            iterator, self.first = (iter(self.batches) if self.first is None else self.first), None
            if batches and (first := next(iterator, None)) is not None:
                self._checked(first)  # against which the rest of the epoch is checked
            if state is not None:
                iterator.set_state(state["bytes"].tobytes() if "bytes" in state else state["json"])  # pyright: ignore[reportAttributeAccessIssue] # it told a state
            else:
                deque(islice(iterator, max(batches - 1, 0)), 0)
            found, held = batches > 0, None
            for batch in iterator:
                batches, found = batches + 1, True
                if (checked := self._checked(batch)) is None:
                    continue
                if held:
                    yield held
                held = _Step(*checked, False, {"epoch": epoch, "batches": batches, "state": _state(iterator)})
            if not found:
                raise ValueError(f"data is a {type(self.batches).__name__} without batches, expected at least one")
            epoch, batches, state = epoch + 1, 0, None
            if held:
                yield held._replace(epoch_end=True, after={"epoch": epoch, "batches": 0, "state": None})

    def _checked(self, batch: Tree) -> tuple[Tree, np.ndarray] | None:
        """The batch, filled up if it is smaller than the first, and its real examples; None if it is to be left out."""
        # Copied, as a loader may use its memory again.
        batch = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else np.array(x), batch)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        if self.shapes is None:
            for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
                if not isinstance(leaf, jax.Array) and leaf.dtype.kind in "OSUmM":
                    raise TypeError(f"data has a batch whose {path_str(path)} has dtype {leaf.dtype}, expected numbers")
            self.shapes = shapes
            if self.masked:
                _examples(shapes)
        if shapes == self.shapes:
            return batch, np.ones(_examples(shapes) if self.masked else 0, bool)
        if (wanted := jax.tree.structure(self.shapes)) != (found := jax.tree.structure(batch)):
            raise ValueError(f"data has a batch of the structure {found}, expected that of the first, {wanted}")
        named = zip(jax.tree_util.tree_leaves_with_path(self.shapes), jax.tree.leaves(shapes), strict=True)
        for (path, first), leaf in named:
            fewer = first.shape and leaf.shape and leaf.shape[0] <= first.shape[0]
            if leaf.dtype != first.dtype or (
                leaf.shape != first.shape and not (fewer and leaf.shape[1:] == first.shape[1:])
            ):
                raise ValueError(
                    f"data has a batch whose {path_str(path)} is {leaf.dtype}{list(leaf.shape)}, expected "
                    f"{first.dtype}{list(first.shape)} as in the first, or fewer examples in the last of an epoch"
                )
        if not self.masked:
            return None
        size, n = _examples(self.shapes), _examples(shapes)
        filled = jax.tree.map(lambda x: np.asarray(x)[np.arange(size) % n], batch) if n else None
        return filled and (filled, np.arange(size) < n)


def _examples(shapes: Tree) -> int:
    """The length of the leading axis, which all leaves must share to be filled up."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for path, leaf in leaves:
        if not leaf.shape or leaf.shape[0] != leaves[0][1].shape[0]:
            raise ValueError(
                f"data has a batch whose {path_str(path)} has shape {leaf.shape}, and {path_str(leaves[0][0])} "
                f'{leaves[0][1].shape}; with last_batch="pad" all need a leading axis of the examples'
            )
    return leaves[0][1].shape[0]


def _stacked(batches: list[Tree]) -> Tree:
    if len(batches) == 1:
        return jax.tree.map(lambda x: x[None], batches[0])
    return jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *batches)


def _state(iterator: Any) -> dict[str, Any] | None:
    """The state of an iterator that can be set to it again, in a form that a checkpoint can hold."""
    if not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
        return None
    state = iterator.get_state()
    return {"bytes": np.frombuffer(state, np.uint8)} if isinstance(state, bytes) else {"json": state}


def _fits(data: Tree) -> bool:
    """Whether the data can be kept on the device; always for a backend that does not tell its memory, as the CPU."""
    leaves = jax.tree.leaves(data)
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats or all(isinstance(leaf, jax.Array) for leaf in leaves):
        return True
    return sum(leaf.nbytes for leaf in leaves) <= FITS * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def source_of(data: Any, *, epochs: int | None, batch_size: int | None, key: Any, last_batch: str) -> Arrays | Batches:
    """The source for the `data` of `fit`: a list or any iterable but a pytree gives batches, all else is arrays."""
    if last_batch not in ("drop", "pad"):
        raise ValueError(f'last_batch is {last_batch!r}, expected "drop" or "pad"')
    pad = last_batch == "pad"
    arrays = isinstance(data, np.ndarray | jax.Array) or not jax.tree_util.all_leaves([data])
    if (arrays and not isinstance(data, list)) or not isinstance(data, Iterable):
        return Arrays(data, batch_size, key, pad)
    if batch_size is not None:
        raise ValueError(
            f"batch_size is {batch_size}, but data is a {type(data).__name__}, which is taken for batches: leave "
            "batch_size out, or pass arrays, in a tuple or dict where there are several"
        )
    return Batches(data, epochs, pad)
