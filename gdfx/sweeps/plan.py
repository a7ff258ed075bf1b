"""What a sweep is made of: groups of members that differ in numbers only, each of which is one program."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import GradientTransformation, Tree, as_transformation
from .spaces import batched


@dataclass(frozen=True)
class Group:
    """Members of one structure and one choice of the settings."""

    kind: str  # the name of the optimizer
    optimizer: Tree  # batched: NumPy leaves of shape (members,), of PRNG keys their data, (members, words)
    rows: np.ndarray  # the places of its members in the result
    settings: dict[str, Any]  # what is compiled in
    batch_size: int | None
    loss_fn: Callable[..., Any]
    init_fn: Callable[..., Tree]
    evaluate: Callable[[Tree], dict[str, jax.Array]] | None

    def member(self, index: int) -> GradientTransformation:
        """One of the optimizers, with plain numbers in it."""
        return jax.tree.map(lambda x: _plain(x[index]), self.optimizer)


def plan(
    loss_fn: Callable[..., Any],
    init_fn: Callable[..., Tree],
    optimizers: Any,
    evaluate: Callable[..., Any] | None,
    batch_size: int | Sequence[int | None] | None,
    static: dict[str, Sequence[Any]] | None,
) -> tuple[list[Group], list[dict[str, Any]]]:
    """The groups, and for each member what it has that others have not, by name."""
    several = isinstance(batch_size, list | tuple | range | np.ndarray)
    sizes: list[Any] = list(batch_size) if several else [batch_size]
    if not sizes:
        raise ValueError("sweep: batch_size is an empty list, expected at least one")
    functions = {"loss_fn": (loss_fn, 2), "init_fn": (init_fn, 1), "evaluate": (evaluate, 1)}
    settings = _settings(static, functions)
    kinds = _kinds(optimizers)
    groups, points = [], []
    for chosen, size in itertools.product(settings, sizes):
        given = {name: _given(fn, taken, chosen) for name, (fn, taken) in functions.items()}
        numbers: dict[int, dict[str, Any]] = {}  # by place
        for name, optimizer, places in kinds:
            groups.append(Group(name, optimizer, len(points) + places, chosen, size, **given))
            for place, values in zip(places, _numbers(optimizer, len(places)), strict=True):
                if twice := [known for known in values if known in chosen]:
                    raise ValueError(
                        f"sweep: static has {twice[0]}, which is a hyperparameter of {name} too: rename the argument"
                    )
                numbers[int(place)] = {"optimizer": name, **values, "batch_size": size, **chosen}
        points += [numbers[place] for place in sorted(numbers)]
    return groups, _different(points)


def _settings(static: Any, functions: dict[str, tuple[Any, int]]) -> list[dict[str, Any]]:
    if static is None:
        return [{}]
    if not isinstance(static, dict):
        raise TypeError(f"sweep: static is a {type(static).__name__}, expected a dict of lists by name")
    for name, values in static.items():
        if not isinstance(values, list | tuple | range) or not len(values):
            raise TypeError(f"sweep: static[{name!r}] is {values!r}, expected a list of the values to try")
        if not any(name in _named(fn, taken) for fn, taken in functions.values()):
            raise ValueError(f"sweep: static has {name}, which none of {', '.join(functions)} takes as an argument")
    return [dict(zip(static, chosen, strict=True)) for chosen in itertools.product(*static.values())]


def _named(fn: Any, taken: int) -> frozenset[str]:
    """The names of the arguments of `fn` but for the first, which are `taken` by position."""
    try:
        known = [] if fn is None else list(inspect.signature(fn).parameters.values())
    except ValueError:  # some callables written in C
        known = []
    by_place = [p.name for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return frozenset(p.name for p in known if p.kind in kinds and p.name not in by_place[:taken])


def _given(fn: Any, taken: int, chosen: dict[str, Any]) -> Any:
    given = {name: value for name, value in chosen.items() if name in _named(fn, taken)}
    return partial(fn, **given) if given else fn


def _kinds(optimizers: Any) -> list[tuple[str, Tree, np.ndarray]]:
    """The name and batch of each structure, and the places of its members in the order given."""
    several = optimizers if isinstance(optimizers, list) else [optimizers]
    if not several:
        raise ValueError("sweep: the list of optimizers is empty, expected at least one")
    alike: dict[Any, list[tuple[Any, Tree, np.ndarray]]] = {}
    first = 0
    for optimizer in several:
        if isinstance(optimizer, list):
            raise TypeError(f"sweep: the list of optimizers holds {optimizer!r}, expected an optimizer, not a list")
        batch, members = batched(optimizer)
        batch = jax.tree.map(_in_numpy, batch)
        # An array of other dtype is another program, and would be cast.
        kind = jax.tree.structure(batch), tuple((x.dtype, x.shape[1:]) for x in jax.tree.leaves(batch))
        # Without numbers, as those of optax, there is nothing to batch.
        alike.setdefault(kind if kind[1] else first, []).append((optimizer, batch, np.arange(first, first + members)))
        first += members
    names = [_name(batches[0][0]) for batches in alike.values()]
    return [
        (
            f"{name} #{names[: i + 1].count(name)}" if names.count(name) > 1 else name,
            jax.tree.map(lambda *xs: np.concatenate(xs), *(batch for _, batch, _ in batches)),
            np.concatenate([places for _, _, places in batches]),
        )
        for i, (name, batches) in enumerate(zip(names, alike.values(), strict=True))
    ]


def _in_numpy(leaf: jax.Array) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        if (found := str(jax.random.key_impl(leaf))) != (usual := str(jax.random.key_impl(jax.random.key(0)))):
            raise TypeError(f"sweep: a key of an optimizer is of the kind {found}, expected the default, {usual}")
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _plain(value: Any) -> Any:
    """A hyperparameter of one member as an ordinary number; a PRNG key as one."""
    if np.ndim(value):
        return jax.random.wrap_key_data(jnp.asarray(value))
    if np.issubdtype(value.dtype, np.integer):
        return int(value)
    # The shortest decimal that is this number in its own dtype, so that a rate reads 0.01 and not 0.009999999776.
    return float(str(value))


def _name(optimizer: Any) -> str:
    return type(as_transformation(optimizer)).__name__


def _numbers(optimizer: Tree, members: int) -> list[dict[str, Any]]:
    """The hyperparameters of each member, by the last part of their path where that is unique."""
    leaves = {
        jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer)
    }
    short = {path: path.rsplit(".", 1)[-1] for path in leaves}
    last = list(short.values())
    named = {short[path] if last.count(short[path]) == 1 else path: leaf for path, leaf in leaves.items()}
    return [
        {name: tuple(leaf[i].tolist()) if leaf.ndim > 1 else _plain(leaf[i]) for name, leaf in named.items()}
        for i in range(members)
    ]


def _different(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each point what varies among those of one kind, and the kind where there are several."""
    values: dict[tuple[str, str], set[str]] = {}
    for point in points:
        for name, value in point.items():
            kind = "" if name == "optimizer" else point["optimizer"]
            values.setdefault((name, kind), set()).add(repr(value))
    varied = {name for (name, _), found in values.items() if len(found) > 1}
    return [{name: value for name, value in point.items() if name in varied} for point in points]
