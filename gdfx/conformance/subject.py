"""What the invariants look at: a transform, and what is computed from it once for several of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import GradientTransformation, Schedule, Tree, apply_updates
from ..pytrees import Range, Value
from ..tree import path_str
from .compare import expect_avals

ExtraArguments = Mapping[str, Any] | Callable[[Tree, Tree], Mapping[str, Any]]


class Hyperparameter(NamedTuple):
    leaf: int  # its position among the leaves of the transform
    path: str
    value: jax.Array
    others: list[jax.Array]  # nearby values in its range


class Subject:
    def __init__(
        self,
        transform: GradientTransformation,
        params: Tree,
        extra: ExtraArguments | None,
        complex: bool,
        rtol: float | None,
    ):
        self.transform, self.params, self.complex = transform, params, complex
        self.extra = extra if callable(extra) else lambda params, grads: extra or {}
        self.rtol = default_rtol(params) if rtol is None else rtol
        self.grads = [_normal(params, seed) for seed in range(3)]
        self.stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *self.grads)
        self.traces: list[Tree] = []
        self.run = jax.jit(self._counted)
        self.parts = list(parts(transform))

    @functools.cached_property
    def hyperparameters(self) -> list[Hyperparameter]:
        """All numbers in the transform, those in its schedules included."""
        found = []
        for position, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(self.transform)):
            owner, allowed = _owner(self.transform, path)
            is_number = isinstance(leaf, int) and not isinstance(leaf, bool)
            is_float = isinstance(leaf, float) or jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.floating)
            if is_float or (is_number and (allowed is not None or isinstance(owner, Schedule))):
                value = jnp.asarray(leaf).astype(float)
                others = _nearby(value, allowed or Range())
                found.append(Hyperparameter(position, path_str(path).lstrip("."), value, others))
        return found

    @functools.cached_property
    def values(self) -> list[jax.Array]:
        return [h.value for h in self.hyperparameters]

    @functools.cached_property
    def members(self) -> list[tuple[str, list[jax.Array]]]:
        """The hyperparameters as they are, and with each in turn at other values."""
        members = [("as given", self.values)]
        for i, h in enumerate(self.hyperparameters):
            for other in h.others:
                members.append((f"{h.path}={other}", [*self.values[:i], other, *self.values[i + 1 :]]))
        return members

    def with_values(self, values: list[Any]) -> GradientTransformation:
        leaves, structure = jax.tree.flatten(self.transform)
        for h, value in zip(self.hyperparameters, values, strict=True):
            leaves[h.leaf] = value
        return jax.tree.unflatten(structure, leaves)

    def step(self, transform: Any, grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree, Tree]:
        updates, state = transform.update(grads, state, params, **self.extra(params, grads))
        return apply_updates(params, updates), state, updates

    def steps(self, transform: Any, params: Tree, grads: Tree) -> tuple[Tree, Tree, Tree]:
        """From `init` through a scan over stacked grads: the last params, the last state, all updates."""

        def body(carry, grads):
            params, state, updates = self.step(transform, grads, carry[1], carry[0])
            return (params, state), updates

        (params, state), updates = jax.lax.scan(body, (params, transform.init(params)), grads)
        return params, state, updates

    def steps_with(self, i: int, value: Any) -> tuple[Tree, Tree, Tree]:
        """As `steps`, with one of the numbers changed and the others as given."""
        leaves, structure = jax.tree.flatten(self.transform)
        leaves[self.hyperparameters[i].leaf] = value
        return self.steps(jax.tree.unflatten(structure, leaves), self.params, self.stacked)

    def _counted(self, transform: Any, params: Tree, grads: Tree) -> tuple[Tree, Tree, Tree]:
        self.traces.append(jax.tree.map(jax.typeof, (transform, params, grads)))
        return self.steps(transform, params, grads)

    @functools.cached_property
    def loop(self) -> list[tuple[Tree, Tree, Tree]]:
        """The outcome for each of `members`, one after another."""
        return [self.run(self.with_values(v), self.params, self.stacked) for _, v in self.members]

    @functools.cached_property
    def eager(self) -> list[tuple[Tree, Tree, Tree]]:
        """Params, state and updates after each step, with the transform as given and no jit."""
        params, state, after = self.params, self.transform.init(self.params), []
        for grads in self.grads:
            params, state, updates = self.step(self.transform, grads, state, params)
            after.append((params, state, updates))
        return after

    @functools.cached_property
    def donating_step(self) -> Callable[..., tuple[Tree, Tree, Tree]]:
        return jax.jit(functools.partial(self.step, self.transform), donate_argnums=(1, 2))

    def expect_avals(self, params: Tree, grads: Tree, *, updates: bool = False, state: bool = False) -> None:
        """Takes a step abstractly, with the numbers of the transform as given and as arrays."""
        for transform in (self.transform, self.with_values(self.values)):
            before = jax.eval_shape(transform.init, params)
            update = lambda g, s, p, t=transform: t.update(g, s, p, **self.extra(p, g))
            new, after = jax.eval_shape(update, grads, before, params)
            told = "" if transform is self.transform else "with the numbers as arrays, "
            if updates:
                expect_avals(f"{told}updates", new, grads, weak=False)
            if state:
                expect_avals(f"{told}state", after, before)

    def update_avals(self, grads: Tree, params: Tree | None, extra: Mapping[str, Any]) -> Tree:
        """`update` without computing anything: for the errors that it raises."""
        state = jax.eval_shape(self.transform.init, self.params)
        return jax.eval_shape(lambda g, s, p: self.transform.update(g, s, p, **extra), grads, state, params)


def parts(value: Any) -> Iterator[Any]:
    """The transforms and schedules that `value` is made of."""
    if isinstance(value, Value) and dataclasses.is_dataclass(value):
        yield value
        for f in dataclasses.fields(value):
            yield from parts(getattr(value, f.name))
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from parts(part)


def static_fields(part: Any) -> dict[str, Any]:
    """The static fields of a transform or schedule, by name."""
    return {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.metadata.get("static")}


def _owner(transform: Any, path: tuple[Any, ...]) -> tuple[Any, Range | None]:
    """The innermost transform or schedule on the way to a leaf, and the range of its field on that way."""
    node, owner, allowed = transform, transform, None
    for key in path:
        name = getattr(key, "name", None)
        if isinstance(node, Value):
            owner, allowed = node, node._ranges.get(str(name))
        if name is not None:
            node = getattr(node, name)
        elif isinstance(node, tuple | list | dict):
            # The type checker cannot know that the key goes with the kind of node.
            node = node[getattr(key, "idx", getattr(key, "key", None))]  # pyright: ignore[reportArgumentType, reportCallIssue]: a key of either kind
        else:
            break
    return owner, allowed


def _nearby(value: jax.Array, allowed: Range) -> list[jax.Array]:
    candidates = [value * 0.9, value * 0.5, value + 0.01, value * 1.1, value + 0.1, value - 0.1]
    candidates += [jnp.full_like(value, x) for x in (0.5, 1.0, 2.0)]  # for infinities
    changed = [c for c in candidates if np.isfinite(c).all() and not np.array_equal(c, value)]
    return [c for c in changed if all(x in allowed for x in np.ravel(c))][:2]


def _normal(like: Tree, seed: int) -> Tree:
    rng = np.random.default_rng(seed)

    def leaf(x):
        values = rng.standard_normal(x.shape)
        if jnp.iscomplexobj(x):
            values = values + 1j * rng.standard_normal(x.shape)
        return jnp.asarray(np.asarray(values, x.dtype))

    return jax.tree.map(leaf, like)


def default_rtol(params: Tree) -> float:
    """The relative difference allowed by default for params of these dtypes."""
    eps = [float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return max((e * (16 if e < 1e-4 else 2) for e in eps), default=1e-6)
