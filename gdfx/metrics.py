"""What an optimizer does at each step, in numbers that its state carries."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from .composition import Chain, ChainState, Optimizer
from .core import Tree, increment, missing_argument
from .inspection import effective
from .labels import Labels, label_leaves
from .pytrees import pytree, static
from .tree import check_params, norm, ratio, real_dtype
from .wrappers.wrapper import Wrapper


@pytree
class RecordState:
    """The state of `record`."""

    count: jax.Array  # int32 scalar: the updates asked for so far
    labels: tuple[str, ...] | None = static()  # the group of each leaf of params, in order
    metrics: dict[str, jax.Array]  # of the newest update, scalars by name; 0 before the first
    inner: Tree  # the state of the transform

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return self.metrics


@pytree
class record(Wrapper):
    """Records what the transform does, and changes nothing: `gdfx.metrics` reads it from the state.

    Recorded are scalars, of the newest update: `grad_norm` and `update_norm`, of what comes in and of what comes out;
    `param_norm`, and `update_ratio`, the norm of the update over that of the params; `learning_rate`, the one in force
    (by its path, where there are several); and for a chain the norm after each of its links but the last, such as
    `norm_after/clip_by_global_norm`. With `groups`, which are given as the labels of `partition` are (or as
    `gdfx.roles(params)`), also the norms and the ratio of each group: `matrix/grad_norm`.
    """

    groups: Labels | None = static(default=None)

    @property
    def needs(self):
        return self.transform.needs | {"params"}

    def init(self, params):
        check_params(params)
        labels = None if self.groups is None else tuple(map(str, label_leaves(self.groups, params, "groups")))
        inner = self.transform.init(params)
        names = [*self._ends(labels), *self._links(inner), *self._rates(inner)]
        # Zeros of their own: one array for all would be donated several times.
        metrics = {name: jnp.zeros((), real_dtype(params)) for name in names}
        return RecordState(jnp.zeros((), jnp.int32), labels, metrics, inner)

    def update(self, updates, state, params=None, **extra):
        if params is None:
            raise missing_argument(self, {"params"})
        metrics = dict(self._rates(state.inner))
        if isinstance(self.transform, Chain | Optimizer):
            norms: list[jax.Array] = []
            see = lambda after: norms.append(norm(after))
            new, inner = Chain((self.transform,)).observed(see, updates, state.inner, params, **extra)
            metrics |= dict(zip(self._links(state.inner), norms, strict=False))
        else:
            new, inner = self.transform.update(updates, state.inner, params, **extra)
        metrics |= self._ends(state.labels, updates, new, params)
        dtype = real_dtype(params)
        metrics = {name: jnp.asarray(metrics[name]).astype(dtype) for name in state.metrics}
        return new, RecordState(increment(state.count), state.labels, metrics, inner)

    def _ends(self, labels: tuple[str, ...] | None, *trees: Tree) -> dict[str, Any]:
        """The norms of gradients, updates and params: of all, and of each group."""
        leaves = [jax.tree.leaves(tree) for tree in trees]
        found: dict[str, Any] = {}
        for label in (None, *dict.fromkeys(labels or ())):
            before = "" if label is None else f"{label}/"
            mine = [[x for i, x in enumerate(xs) if label is None or (labels or ())[i] == label] for xs in leaves]
            g, u, p = map(norm, mine) if trees else [jnp.zeros(())] * 3
            found[f"{before}grad_norm"], found[f"{before}update_norm"], found[f"{before}param_norm"] = g, u, p
            found[f"{before}update_ratio"] = ratio(u, p)
        return found

    def _links(self, inner: Tree) -> list[str]:
        """The names of the norms along a chain."""
        names = inner.names[:-1] if isinstance(inner, ChainState) else ()
        return [f"norm_after/{name}" for name in names]

    def _rates(self, inner: Tree) -> dict[str, Any]:
        """The learning rates in force at the next update."""
        rates = {
            path: rate
            for path, rate in effective(self.transform, inner).items()
            if path.rpartition(".")[2] == "learning_rate" and jnp.ndim(rate) == 0
        }
        return rates if len(rates) != 1 else {"learning_rate": next(iter(rates.values()))}


def metrics(state: Tree) -> dict[str, Any]:
    """What the state of an optimizer tells of the newest update: arrays by name.

    It gathers what `record` and `monitor` have measured, what `guard` has skipped, and the like, at any nesting. Within
    a group of `partition` the label stands in front: `matrix/grad_norm`. Where two would have one name, each has its
    whole path in front. Works under `jit`; the state of a batch of optimizers, as in a sweep, gives a batch of each.
    """
    found = list(_reports(state, ()))
    short = ["/".join([*_groups(path), name]) for path, name, _ in found]
    return {
        name if short.count(name) == 1 else f"{jax.tree_util.keystr(path)}/{own}": value
        for name, (path, own, value) in zip(short, found, strict=True)
    }


def _reports(state: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str, Any]]:
    """The path, the name and the value of all that is reported."""
    if hasattr(type(state), "report"):
        yield from ((path, name, value) for name, value in state.report().items())
    for keys, child in jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: x is not state):
        if child is not state:
            yield from _reports(child, (*path, *keys))


def _groups(path: tuple[Any, ...]) -> list[str]:
    """The labels of the groups on the way."""
    return [
        str(key.key)
        for before, key in itertools.pairwise(path)
        if getattr(before, "name", None) == "groups" and isinstance(key, jax.tree_util.DictKey)
    ]
