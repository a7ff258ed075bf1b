"""One checkpoint: a folder with the arrays, as orbax writes them, and a manifest that tells what they are."""

import importlib.metadata
import math
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ...core import Tree, as_transformation
from ...pytrees import as_arrays
from ...serialization import from_dict
from . import compare, files, leaves, manifest

# Arrays are named by their part and their place in its list of leaves in the manifest. That is written last, with a
# digest of each file and of itself.
_ARRAYS = "arrays"


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


def copied(
    step: int, state: Tree, optimizer: Any, extra: Any, metrics: dict[str, float]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is to be written: the content of the manifest, and copies of the arrays.

    Raises:
        TypeError: something cannot be saved; its path is named.
        ValueError: an array was donated, or is on devices of other processes.
    """
    of_extra: list[leaves.Leaf] = []
    parts = {"state": leaves.flatten(state, "state")[0], "extra": of_extra}
    if optimizer is not None:
        optimizer = as_transformation(optimizer)
        parts["optimizer"] = leaves.flatten(as_arrays(optimizer), "optimizer")[0]
    content = {
        "gdfx": _version(),
        "step": step,
        "extra": manifest.encode(extra, "extra", of_extra),
        "metrics": manifest.encode(metrics, "metrics", []),
        "optimizer": None if optimizer is None else compare.written(optimizer),
    }
    for path, leaf in (leaf for part in parts.values() for leaf in part):
        leaves.check_known(path, leaf)
    content["leaves"] = {part: [leaves.describe(*leaf) for leaf in held] for part, held in parts.items()}
    arrays = {f"{part}{i}": leaves.to_host(x) for part, held in parts.items() for i, (_, x) in enumerate(held)}
    return content, arrays


def write(folder: Path, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes what was copied into `folder`, a new one; all of it is on the disk when this returns."""
    folder.mkdir()
    files.write_arrays(folder / _ARRAYS, arrays)
    manifest.write(folder, content | {"files": files.digests(folder)})
    for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        files.flush_folder(inner)


def load(folder: Path, like: Tree, optimizer: Any, worker: Executor) -> Checkpoint:
    """The checkpoint in `folder`, as `Checkpoints.restore` gives it; orbax runs in `worker`.

    Raises:
        DamagedError: it is not what was written.
        ValueError: it is not like what is wanted.
    """
    content = manifest.read(folder)
    saved: dict[str, list[dict[str, Any]]] = content["leaves"]
    wanted, structure = leaves.flatten(like, "state")
    differences = compare.differences(saved["state"], wanted)
    numbers, form = [], None
    if optimizer is not None:
        given = as_transformation(optimizer)
        numbers, form = leaves.flatten(as_arrays(given), "optimizer")
        if "optimizer" in saved:
            differences += compare.differences(saved["optimizer"], numbers)
            differences += compare.other_form(content["optimizer"], given)
        else:
            differences.append("optimizer: it was saved without one, and cannot be compared")
    if differences:
        raise ValueError(
            f"the checkpoint of step {content['step']} in {folder.parent} is not like what is to be restored:\n  "
            + "\n  ".join(differences)
            + "\nRestore with the params and optimizer that were saved; gdfx.transfer carries a state over to others"
        )
    held = _read(folder, content, worker)
    if form is not None:
        optimizer = jax.tree.unflatten(form, leaves.placed(held["optimizer"], numbers))
    elif content["optimizer"] is not None:
        optimizer = from_dict(content["optimizer"])
    return Checkpoint(
        step=content["step"],
        state=jax.tree.unflatten(structure, leaves.placed(held["state"], wanted)),
        optimizer=optimizer,
        extra=manifest.decode(content["extra"], held["extra"]),
        metrics=metrics_of(content),
        gdfx_version=content["gdfx"],
    )


def metrics_of(content: dict[str, Any]) -> dict[str, float]:
    """The metrics that a manifest tells."""
    return manifest.decode(content["metrics"], [])


def _read(folder: Path, content: dict[str, Any], worker: Executor) -> dict[str, list[Any]]:
    """The leaves of each part, in NumPy."""
    files.check(folder, content["files"])
    described = {f"{part}{i}": leaf for part, held in content["leaves"].items() for i, leaf in enumerate(held)}
    names = [name for name, leaf in described.items() if math.prod(leaves.stored_shape(leaf))]
    try:
        arrays = worker.submit(files.read_arrays, folder / _ARRAYS, names).result()
        found = {name: leaves.as_saved(arrays.get(name), leaf) for name, leaf in described.items()}
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise files.DamagedError(f"{folder / _ARRAYS} cannot be read: {error}") from error
    return {part: [found[f"{part}{i}"] for i in range(len(held))] for part, held in content["leaves"].items()}


def _version() -> str:
    try:
        return importlib.metadata.version("gdfx")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
