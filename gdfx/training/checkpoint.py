"""Checkpoints: the state of a training run on disk, whole or not at all."""

import errno
import hashlib
import importlib.metadata
import json
import math
import operator
import os
import re
import shutil
import socket
import sys
import threading
import warnings
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core import Tree, as_transformation
from ..extras import require
from ..pytrees import as_arrays
from ..serialization import from_dict, to_dict

FORMAT = 1
"""The layout of a checkpoint on disk; a newer one is refused, not guessed at."""

# A checkpoint is the folder `step_00000010`: what orbax writes of the arrays, named by their place in the list of
# leaves in the manifest, which is written last, with a digest of each file and of itself. The folder gets its name when
# all of it is on the disk.
_MANIFEST = "manifest.json"
_ARRAYS = "arrays"
_NUMBERS = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """What a checkpoint holds."""

    step: int
    state: Tree  # in the structure it was asked for
    optimizer: Any  # with the saved hyperparameters; None if there was none, or none that `gdfx.to_dict` can write
    extra: Any  # as it was saved, with lists for tuples and NumPy arrays for arrays
    metrics: dict[str, float]
    gdfx_version: str  # that wrote it

    def __repr__(self) -> str:
        return f"Checkpoint(step={self.step}, metrics={self.metrics}, optimizer={self.optimizer!r})"


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
        self._orbax = require("orbax.checkpoint", "checkpoint")
        self.directory = Path(os.path.abspath(directory))  # orbax takes no other
        self.keep, self.metric, self.keep_best, self.mode = keep, metric, keep_best, mode
        self.asynchronous, self.read_only = asynchronous, read_only
        self._damaged: set[int] = set()
        self._metrics: dict[int, dict[str, float]] = {}
        # All of orbax runs in this thread: it starts an event loop, of which a notebook has one already.
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._held: dict[str, Any] = {"lock": None, "saving": None}
        self._abandoned = weakref.finalize(self, _abandon, self._held, self.directory)
        # Threads may start no others once the interpreter shuts down, and nothing public is called before that.
        if register := getattr(threading, "_register_atexit", None):
            register(_finish, self._held)
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
        leaves = _leaves(state, "state")
        written = None
        if optimizer is not None:
            optimizer = as_transformation(optimizer)
            leaves += _leaves(as_arrays(optimizer), "optimizer")
            written = _written(optimizer)
        extra_json = _encode(extra, "extra", leaves)
        for (part, path), leaf in leaves:
            _check_known(leaf, part + path)
        manifest = {
            "format": FORMAT,
            "gdfx": _version(),
            "step": step,
            "leaves": [_describe(path, leaf) for path, leaf in leaves],
            "optimizer": written,
            "has_optimizer": optimizer is not None,
            "extra": extra_json,
            "metrics": _encode(told, "metrics", []),
        }
        arrays = {str(i): _to_host(leaf) for i, (_, leaf) in enumerate(leaves)}
        self._held["saving"] = self._worker.submit(self._write, step, manifest, arrays, told)
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
                return self._load(step, like, optimizer)
            except _DamagedError as damage:
                raise ValueError(f"the checkpoint of step {step} is damaged: {damage}") from damage
        reasons = []
        for step in reversed(steps):
            try:
                return self._load(step, like, optimizer)
            except _DamagedError as damage:
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
        saving: Future[None] | None = self._held["saving"]
        if saving is not None:
            try:
                saving.result()
            finally:
                if saving.done():
                    self._held["saving"] = None

    def close(self) -> None:
        """Waits for the last save, and lets other processes use the directory."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            _unlock(self._held)
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
            self._held["lock"] = _lock(self.directory)
            for left in self.directory.glob(".*-[0-9]*"):  # by a process that was killed
                if left.name.startswith((".writing-", ".removing-")):
                    shutil.rmtree(left)
        except OSError as error:
            _unlock(self._held)
            raise _named(error, f"checkpoints cannot be saved in {self.directory}") from error

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
                    self._metrics[step] = _decode(_read_manifest(self._path(step))["metrics"], [])
                except (_DamagedError, OSError, ValueError):
                    self._metrics[step] = {}
            if self.metric in self._metrics[step]:
                score = self._metrics[step][self.metric] * (-1 if self.mode == "max" else 1)
                scores[step] = math.inf if math.isnan(score) else score, math.isnan(score), -step
        return sorted(scores, key=scores.__getitem__)

    def _write(self, step: int, manifest: dict[str, Any], arrays: dict[str, np.ndarray], metrics: Any) -> None:
        temporary = self.directory / f".writing-{step}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            self._write_arrays(temporary / _ARRAYS, arrays)
            manifest["files"] = {
                path.relative_to(temporary).as_posix(): {"size": path.stat().st_size, "sha256": _flushed(path)}
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            content = json.dumps(manifest, sort_keys=True)
            # The digest is of the values, whatever the white space.
            whole = json.dumps({"sha256": hashlib.sha256(content.encode()).hexdigest(), "content": manifest}, indent=1)
            (temporary / _MANIFEST).write_text(whole, encoding="utf-8")
            _flushed(temporary / _MANIFEST)
            for folder in (*(path for path in temporary.rglob("*") if path.is_dir()), temporary):
                _flush_folder(folder)
            if self._path(step).exists():  # a damaged one: `save` refuses to replace another
                self._remove(step)
            temporary.rename(self._path(step))
            _flush_folder(self.directory)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            good = self.steps()
            kept = f"the last good checkpoint is that of step {good[-1]}" if good else "there is no checkpoint yet"
            raise _named(error, f"the checkpoint of step {step} cannot be saved in {self.directory}; {kept}") from error
        self._damaged.discard(step)
        self._metrics[step] = metrics
        self._thin(step)

    def _write_arrays(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        # orbax refuses arrays without elements, of which the manifest tells everything, and trees without arrays.
        held = {name: _storable(array) for name, array in arrays.items() if array.size}
        if held:
            with self._orbax.PyTreeCheckpointer() as checkpointer:
                checkpointer.save(path, held)

    def _read_arrays(self, path: Path, names: list[str]) -> dict[str, np.ndarray]:
        as_numpy = {name: self._orbax.RestoreArgs(restore_type=np.ndarray) for name in names}
        with self._orbax.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(path, restore_args=as_numpy)

    def _thin(self, newest: int) -> None:
        """Removes what is neither among the last nor among the best."""
        good = [step for step in self.steps() if step <= newest]
        kept = {*good[-self.keep :], *self._ranked(good)[: self.keep_best]}
        try:
            for step in self._on_disk():
                if step < newest and step not in kept:
                    self._remove(step)
        except OSError as error:
            raise _named(error, f"an old checkpoint cannot be removed from {self.directory}") from error

    def _remove(self, step: int) -> None:
        # Renamed first: a process that is killed now leaves no half of a checkpoint under its name.
        removing = self.directory / f".removing-{step}"
        shutil.rmtree(removing, ignore_errors=True)
        self._path(step).rename(removing)
        shutil.rmtree(removing)

    def _load(self, step: int, like: Tree, optimizer: Any) -> Checkpoint:
        folder = self._path(step)
        manifest = _read_manifest(folder)
        described = manifest["leaves"]
        wanted, structure = jax.tree_util.tree_flatten_with_path(like)
        found = [_describe(path, leaf) for path, leaf in _named_leaves(wanted, "state")]
        differences = _differences(_part(described, "state"), found)
        numbers, of_optimizer = [], None
        if optimizer is not None:
            given = as_transformation(optimizer)
            numbers, of_optimizer = jax.tree_util.tree_flatten_with_path(as_arrays(given))
            found = [_describe(path, leaf) for path, leaf in _named_leaves(numbers, "optimizer")]
            if not manifest["has_optimizer"]:
                differences.append("optimizer: it was saved without one, and cannot be compared")
            else:
                differences += _differences(_part(described, "optimizer"), found)
                differences += _other_form(manifest["optimizer"], given)
        if differences:
            raise ValueError(
                f"the checkpoint of step {step} in {self.directory} is not like what is to be restored:\n  "
                + "\n  ".join(differences)
                + "\nRestore with the params and the optimizer that were saved; gdfx.transfer carries a state over to "
                "others"
            )
        _check_files(folder, manifest["files"])
        names = [str(i) for i, leaf in enumerate(described) if math.prod(_stored_shape(leaf))]
        try:
            held = self._worker.submit(self._read_arrays, folder / _ARRAYS, names).result() if names else {}
            arrays = [_as_saved(held.get(str(i)), leaf) for i, leaf in enumerate(described)]
        except PermissionError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _DamagedError(f"{folder / _ARRAYS} cannot be read: {error}") from error
        parts = {
            part: [a for a, leaf in zip(arrays, described, strict=True) if leaf["part"] == part]
            for part in ("state", "optimizer", "extra")
        }
        state = jax.tree.unflatten(structure, _placed(parts["state"], wanted))
        if of_optimizer is not None:
            optimizer = jax.tree.unflatten(of_optimizer, _placed(parts["optimizer"], numbers))
        elif manifest["optimizer"] is not None:
            optimizer = from_dict(manifest["optimizer"])
        extra = _decode(manifest["extra"], parts["extra"])
        return Checkpoint(step, state, optimizer, extra, _decode(manifest["metrics"], []), manifest["gdfx"])


class _DamagedError(Exception):
    """Why a checkpoint is not good: the file and the reason."""


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


def _version() -> str:
    try:
        return importlib.metadata.version("gdfx")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _written(optimizer: Any) -> Any:
    try:
        return to_dict(optimizer)
    except TypeError:  # it holds a function of the user's: its numbers are saved with the arrays all the same
        return None


# Leaves: a path, and what is there.


def _named_leaves(leaves: list[Any], part: str) -> list[tuple[tuple[str, str], Any]]:
    return [((part, jax.tree_util.keystr(path)), leaf) for path, leaf in leaves]


def _leaves(tree: Tree, part: str) -> list[tuple[tuple[str, str], Any]]:
    return _named_leaves(jax.tree_util.tree_leaves_with_path(tree), part)


def _describe(where: tuple[str, str], leaf: Any) -> dict[str, Any]:
    """The part and the path, dtype and shape of a leaf; raises for one that cannot be saved, or is to be like none."""
    part, path = where
    about: dict[str, Any] = {"part": part, "path": path}
    if type(leaf) in _NUMBERS:
        if type(leaf) is int and not -(2**63) <= leaf < 2**63:
            raise TypeError(f"{part}{path} is {leaf}, expected an integer of 64 bits")
        return about | {"dtype": f"Python {type(leaf).__name__}", "shape": []}
    if not isinstance(leaf, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct):
        raise TypeError(f"{part}{path} is a {type(leaf).__name__}, expected an array, a key or a number")
    about["shape"] = [*leaf.shape]
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        about["dtype"] = str(leaf.dtype)
        if isinstance(leaf, jax.Array) and not leaf.is_deleted():
            about |= {"impl": str(jax.random.key_impl(leaf)), "words": jax.random.key_data(leaf).shape[leaf.ndim :]}
        return about
    if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == np.bool_) or not leaf.dtype.isnative:
        raise TypeError(f"{part}{path} has dtype {leaf.dtype}, expected numbers in the byte order of this machine")
    return about | {"dtype": leaf.dtype.name}


def _check_known(leaf: Any, path: str) -> None:
    """Raises for a leaf without numbers; starts the copy of one that has them."""
    if isinstance(leaf, Tracer):
        raise TypeError(f"{path} is traced, expected known numbers: save outside of jit")
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(f"{path} is a ShapeDtypeStruct, expected an array")
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            raise ValueError(f"{path} was deleted: it was donated to a step; save the state that the step returned")
        if not leaf.is_fully_addressable:
            raise ValueError(f"{path} is on devices of other processes, expected one process with all of the state")
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf.copy_to_host_async()


def _to_host(leaf: Any) -> np.ndarray:
    """A copy in NumPy, which nothing that happens to `leaf` can reach."""
    if type(leaf) in _NUMBERS:
        return np.asarray(leaf, _NUMBERS[type(leaf)])
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(np.asarray(leaf), order="C", copy=True)


def _storable(array: np.ndarray) -> np.ndarray:
    """`array`, or its bytes if it is of a dtype that orbax does not know everywhere, such as uint4."""
    known = array.dtype.isbuiltin == 1 or array.dtype == jnp.bfloat16
    return array if known else array.view(np.uint8)


def _stored_shape(about: dict[str, Any]) -> tuple[int, ...]:
    return *about["shape"], *about.get("words", ())


def _as_saved(array: np.ndarray | None, about: dict[str, Any]) -> Any:
    """The leaf that `about` describes, in NumPy, from what orbax read; None stands for no elements."""
    name, shape = about["dtype"], _stored_shape(about)
    kind = {f"Python {kind.__name__}": dtype for kind, dtype in _NUMBERS.items()}.get(name)
    dtype = np.dtype(kind or (np.uint32 if "impl" in about else jnp.dtype(name)))
    array = np.zeros(shape, dtype) if array is None else np.asarray(array)
    array = array if array.dtype == dtype else array.view(dtype)
    if array.shape != shape:
        raise ValueError(f"{about['part']}{about['path']} has shape {array.shape}, expected {shape}")
    if kind is not None:
        return array.item()
    return jax.random.wrap_key_data(jnp.asarray(array), impl=about["impl"]) if "impl" in about else array


def _placed(leaves: list[Any], wanted: list[Any]) -> list[Any]:
    """The leaves as `wanted` has them: on its devices, or in NumPy."""
    placed = []
    for leaf, (path, like) in zip(leaves, wanted, strict=True):
        if isinstance(like, jax.Array | jax.ShapeDtypeStruct):
            # What is on no device in particular goes there again: placed, it would be compiled for anew.
            free = isinstance(like, jax.Array) and not like.committed
            new = jax.device_put(leaf, None if free else like.sharding)
            if new.dtype != leaf.dtype:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)} was saved as {leaf.dtype}, which JAX makes {new.dtype}: set "
                    "jax_enable_x64"
                )
            leaf = new
        placed.append(leaf)
    return placed


# What was saved against what is wanted.


def _part(described: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    return [leaf for leaf in described if leaf["part"] == part]


def _differences(saved: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> list[str]:
    def table(leaves: list[dict[str, Any]]) -> dict[str, str]:
        return {f"{x['part']}{x['path']}": f"{x['dtype']}{x['shape']}" for x in leaves}

    old, new = table(saved), table(wanted)
    lines = [f"{path}: saved {old[path]}, wanted {new.get(path, 'none')}" for path in old if old[path] != new.get(path)]
    return lines + [f"{path}: saved none, wanted {new[path]}" for path in new if path not in old]


def _other_form(saved: dict[str, Any] | None, optimizer: Any) -> list[str]:
    """How the optimizer that `to_dict` wrote and `optimizer` differ, but for the hyperparameters that are leaves."""
    given = _written(optimizer)
    if saved is None or given is None:
        return []
    old, new = (to_dict(jax.tree.map(lambda _: 0.0, opt)) for opt in (from_dict(saved), optimizer))
    return _unequal(old, new, "optimizer")


def _unequal(saved: Any, given: Any, path: str) -> list[str]:
    if isinstance(saved, dict) and isinstance(given, dict) and saved.keys() == given.keys():
        if saved.get("type") == given.get("type"):
            named = {name: "" if name in ("fields", "tuple", "dict") else f".{name}" for name in saved}
            return [line for name in saved for line in _unequal(saved[name], given[name], path + named[name])]
        return [f"{path}: saved {saved['type']}, wanted {given['type']}"]
    if isinstance(saved, list) and isinstance(given, list) and len(saved) == len(given):
        pairs = enumerate(zip(saved, given, strict=True))
        return [line for i, pair in pairs for line in _unequal(*pair, f"{path}[{i}]")]
    return [] if saved == given else [f"{path}: saved {json.dumps(saved)}, wanted {json.dumps(given)}"[:400]]


# JSON, with arrays beside it.


def _encode(value: Any, path: str, leaves: list[tuple[tuple[str, str], Any]]) -> Any:
    """`value` as JSON has it; its arrays are added to `leaves`."""
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"__float__": str(value)}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        number = sum(where[0] == "extra" for where, _ in leaves)
        leaves.append((("extra", path.removeprefix("extra")), value))
        return {"__array__": number}
    if isinstance(value, tuple | list):
        return [_encode(part, f"{path}[{i}]", leaves) for i, part in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key in ("__array__", "__float__"):
                raise TypeError(f"{path} has the key {key!r}, expected strings, and not __array__ or __float__")
        return {key: _encode(part, f"{path}[{key!r}]", leaves) for key, part in value.items()}
    raise TypeError(
        f"{path} is a {type(value).__name__}, expected None, numbers, strings, arrays, and lists and dicts of them"
    )


def _decode(data: Any, arrays: list[Any]) -> Any:
    if isinstance(data, list):
        return [_decode(part, arrays) for part in data]
    if isinstance(data, dict):
        if "__array__" in data:
            return arrays[data["__array__"]]
        if "__float__" in data:
            return float(data["__float__"])
        return {key: _decode(part, arrays) for key, part in data.items()}
    return data


# Files.


def _flushed(path: Path) -> str:
    """The digest of a file, of which all is on the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_folder(path: Path) -> None:
    if sys.platform != "win32":  # where folders cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        whole = json.loads(path.read_bytes())
        content, digest = whole["content"], whole["sha256"]
        found = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    except FileNotFoundError:
        raise _DamagedError(f"{path} is missing") from None
    except (ValueError, TypeError, KeyError) as error:
        raise _DamagedError(f"{path} is not what was written: {error!r}") from error
    if found != digest:
        raise _DamagedError(f"{path} is not what was written: its checksum differs")
    if content["format"] > FORMAT:
        raise ValueError(
            f"{folder} has format {content['format']}, of gdfx {content['gdfx']}, but this gdfx reads up to {FORMAT}: "
            "update gdfx"
        )
    return content


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, about in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != about["size"]:
                raise _DamagedError(f"{path} has {size} bytes, expected {about['size']}")
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                    raise _DamagedError(f"{path} is not what was written: its checksum differs")
        except FileNotFoundError:
            raise _DamagedError(f"{path} is missing") from None
        except PermissionError:
            raise
        except OSError as error:
            raise _DamagedError(f"{path} cannot be read: {error}") from error


def _named(error: Exception, message: str) -> OSError:
    """An `OSError` of the kind of `error` with `message` first; TensorStore tells the kind in words only."""
    told = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    message = f"{message}. The reason: {error}"
    return OSError(message) if number is None else OSError(number, message)


def _lock(directory: Path) -> int:
    """A file with this process's number that is locked until it is closed, which the system does for the dead."""
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


def _unlock(held: dict[str, Any]) -> None:
    descriptor, held["lock"] = held["lock"], None
    if descriptor is not None:
        os.close(descriptor)


def _finish(held: dict[str, Any]) -> None:
    """Waits for the last save of a store that nobody closed, before the interpreter shuts down."""
    if held["saving"] is not None:
        held["saving"].exception()


def _abandon(held: dict[str, Any], directory: Path) -> None:
    """For a store that nobody closed: an error that nobody has seen is told at least."""
    _unlock(held)
    saving = held["saving"]
    if saving is not None and saving.done() and (error := saving.exception()):
        warnings.warn(f"checkpoints in {directory} were not closed, and the last save failed: {error}", stacklevel=1)
