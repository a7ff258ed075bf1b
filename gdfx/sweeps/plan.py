"""What a sweep is made of: groups of members that differ in numbers only, each of which is one program."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from ..core import GradientTransformation, Tree, as_transformation
from ..pytrees import as_arrays
from .spaces import batched


@dataclass(frozen=True)
class Group:
    """Members of one structure and one choice of the settings."""

    kind: str  # the name of the optimizer
    optimizer: Tree  # batched: NumPy leaves of shape (members,)
    rows: np.ndarray  # the places of its members in the result
    settings: dict[str, Any]  # what is compiled in
    batch_size: int | None
    loss_fn: Callable[..., Any]
    init_fn: Callable[..., Tree]
    evaluate: Callable[[Tree], dict[str, jax.Array]] | None

    def member(self, index: int) -> GradientTransformation:
        """One of the optimizers, with plain numbers in it."""
        # The shortest decimal that is this number in its own dtype, so that a rate reads 0.01 and not 0.009999999776.
        return jax.tree.map(lambda x: float(str(np.asarray(x)[index])), self.optimizer)


def plan(
    loss_fn: Callable[..., Any],
    init_fn: Callable[..., Tree],
    optimizers: Any,
    evaluate: Callable[..., Any] | None,
    batch_size: int | None | Sequence[int | None],
    static: dict[str, Sequence[Any]] | None,
) -> tuple[list[Group], list[dict[str, Any]]]:
    """The groups, and for each member what it has that others have not, by name."""
    sizes = list(batch_size) if isinstance(batch_size, list | tuple | range | np.ndarray) else [batch_size]
    if not sizes:
        raise ValueError("sweep: batch_size is an empty list, expected at least one")
    settings = _settings(static, {"loss_fn": loss_fn, "init_fn": init_fn, "evaluate": evaluate})
    kinds = _kinds(optimizers)
    groups, first, points = [], 0, []
    for chosen, size in itertools.product(settings, sizes):
        given = {
            name: _given(fn, chosen)
            for name, fn in (("loss_fn", loss_fn), ("init_fn", init_fn), ("evaluate", evaluate))
        }
        for name, optimizer, members in kinds:
            rows = np.arange(first, first + members)
            groups.append(Group(name, optimizer, rows, chosen, size, **given))
            first += members
            for values in _numbers(optimizer, members):
                points.append({"optimizer": name, **values, "batch_size": size, **chosen})
    return groups, _different(points)


def _settings(static: Any, functions: dict[str, Any]) -> list[dict[str, Any]]:
    if static is None:
        return [{}]
    if not isinstance(static, dict):
        raise TypeError(f"sweep: static is a {type(static).__name__}, expected a dict of lists by name")
    for name, values in static.items():
        if not isinstance(values, list | tuple | range) or not len(values):
            raise TypeError(f"sweep: static[{name!r}] is {values!r}, expected a list of the values to try")
        if not any(name in _named(fn) for fn in functions.values() if fn is not None):
            raise ValueError(f"sweep: static has {name}, which none of {', '.join(functions)} takes as an argument")
    return [dict(zip(static, chosen, strict=True)) for chosen in itertools.product(*static.values())]


def _named(fn: Any) -> frozenset[str]:
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return frozenset(name for name, p in inspect.signature(fn).parameters.items() if p.kind in kinds)


def _given(fn: Any, chosen: dict[str, Any]) -> Any:
    taken = {name: value for name, value in chosen.items() if fn is not None and name in _named(fn)}
    return partial(fn, **taken) if taken else fn


def _kinds(optimizers: Any) -> list[tuple[str, Tree, int]]:
    """The name, batch and number of members of each structure."""
    several = optimizers if isinstance(optimizers, list) else [optimizers]
    if not several:
        raise ValueError("sweep: the list of optimizers is empty, expected at least one")
    runs: list[tuple[Any, list[Any]]] = []  # of neighbors with one structure
    for optimizer in several:
        structure = jax.tree.structure(as_arrays(as_transformation(optimizer)))
        if runs and runs[-1][0] == structure:
            runs[-1][1].append(optimizer)
        else:
            runs.append((structure, [optimizer]))
    found = []
    for _, alike in runs:
        batches = [batched(optimizer) for optimizer in alike]
        leaves = jax.tree.map(lambda *xs: np.concatenate([np.asarray(x) for x in xs]), *(b for b, _ in batches))
        found.append((_name(alike[0]), leaves, sum(members for _, members in batches)))
    names = [name for name, _, _ in found]
    return [
        (f"{name} #{names[: i + 1].count(name)}" if names.count(name) > 1 else name, leaves, members)
        for i, (name, leaves, members) in enumerate(found)
    ]


def _name(optimizer: Any) -> str:
    return type(as_transformation(optimizer)).__name__


def _numbers(optimizer: Tree, members: int) -> list[dict[str, float]]:
    """The hyperparameters of each member, by the last part of their path where that is unique."""
    leaves = {
        jax.tree_util.keystr(path).lstrip("."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer)
    }
    short = {path: path.rsplit(".", 1)[-1] for path in leaves}
    last = list(short.values())
    named = {short[path] if last.count(short[path]) == 1 else path: leaf for path, leaf in leaves.items()}
    return [{name: float(str(leaf[i])) for name, leaf in named.items()} for i in range(members)]


def _different(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for point in points for name in point))
    different = [name for name in names if any(name in p and p[name] != points[0].get(name, p[name]) for p in points)]
    # What one kind lacks is told where it varies within the kinds that have it.
    for name in names:
        values = {repr(point[name]) for point in points if name in point}
        if len(values) > 1 and name not in different:
            different.append(name)
    return [{name: point[name] for name in names if name in different and name in point} for point in points]
