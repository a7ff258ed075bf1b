"""Transforms made of transforms: chains, and optimizers, which are chains with a name."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .core import (
    GradientTransformation,
    Tree,
    as_transformation,
    from_functions,
    increment,
    missing_argument,
)
from .pytrees import pytree, show
from .tree import cast_like, check_like, check_params, widen


class Optimizer(GradientTransformation):
    """A complete optimizer: a named composition whose fields are its hyperparameters, under the names users know.

    Subclasses are `@pytree` classes that define `links()`; when it is called the schedules in the fields have their
    present value. The state is that of the chain of the links.
    """

    def links(self) -> tuple[GradientTransformation, ...]:
        """The transforms that it is made of, in the order in which the updates pass them."""
        raise NotImplementedError

    def init(self, params):
        return Chain((self,)).init(params)

    def update(self, updates, state, params=None, **extra):
        return Chain((self,)).update(updates, state, params, **extra)

    def eval_params(self, state, params):
        return Chain((self,)).eval_params(state, params)

    @property
    def needs(self):
        return Chain((self,)).needs

    @property
    def takes(self):
        return Chain((self,)).takes

    @property
    def makes_steps(self):
        return Chain((self,)).makes_steps

    @property
    def differentiable(self):
        return Chain((self,)).differentiable


@dataclass(frozen=True)
class ChainState:
    """The states of the links of a chain, by position and by name: `state[0].mu`, `state["scale_by_adam"].mu`.

    Leaves have the paths `.count` and `['scale_by_adam'].mu...`: links without state appear in no path.
    """

    count: jax.Array  # int32 scalar: the updates made so far
    names: tuple[str, ...]
    states: tuple[Tree, ...]

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.states[key]
        if key not in self.names:
            raise KeyError(f"no link is named {key!r}; there are: {', '.join(self.names)}")
        return self.states[self.names.index(key)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.states)

    def __len__(self) -> int:
        return len(self.states)

    def __repr__(self) -> str:
        shown = (f"{name!r}: {state!r}" for name, state in zip(self.names, self.states, strict=True))
        return f"ChainState(count={show(self.count)}, {{{', '.join(shown)}}})"


def _key(name: str) -> Any:
    return jax.tree_util.DictKey(name) if name else jax.tree_util.GetAttrKey("count")


def _rebuild(names: tuple[str, ...], children: Iterable[Any]) -> ChainState:
    count, *states = children
    return ChainState(count, names, tuple(states))


jax.tree_util.register_pytree_with_keys(
    ChainState,
    lambda s: (list(zip(map(_key, ("", *s.names)), (s.count, *s.states), strict=True)), s.names),
    _rebuild,
)


@pytree
class Chain(GradientTransformation):
    """Passes the updates through `transforms` in order; made by `chain`.

    All schedules in it share one count. Nested chains and optimizers are spliced: the state has one entry for each
    innermost link, so that putting a clip in front of an optimizer changes no path in its state. Between the links
    half-precision updates travel as float32.
    """

    transforms: tuple[GradientTransformation, ...]

    def init(self, params):
        check_params(params)
        count = jnp.zeros((), jnp.int32)
        links = self._links(count)
        _check_order(links, self._whole())
        return ChainState(count, _names(links), tuple(link.init(params) for link in links))

    def update(self, updates, state, params=None, **extra):
        return self.observed(lambda after: None, updates, state, params, **extra)

    def observed(
        self, see: Callable[[Tree], Any], updates: Tree, state: Tree, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, ChainState]:
        """As `update`, and `see` is shown the updates after each link, in float32 at least."""
        links = self._links(state.count if isinstance(state, ChainState) else jnp.zeros((), jnp.int32))
        provided = {name for name, value in {"params": params, **extra}.items() if value is not None}
        if missing := needs_of(links) - provided:
            raise missing_argument(self._whole(), missing)
        if not isinstance(state, ChainState) or state.names != _names(links):
            found = f"the links {state.names}" if isinstance(state, ChainState) else f"a {type(state).__name__}"
            raise ValueError(
                f"the state has {found}, but the optimizer has the links {_names(links)}: {self._whole()}. "
                "Was the state made by another optimizer?"
            )
        if params is not None and not any(link.per_example for link in links[:1]):
            check_like(updates, params, "grads", "params")
        new, states = widen(updates), []
        for link, link_state in zip(links, state.states, strict=True):
            new, link_state = link.update(new, link_state, params, **extra)
            see(new)
            states.append(link_state)
        return cast_like(new, updates), ChainState(increment(state.count), state.names, tuple(states))

    def eval_params(self, state, params):
        for link, link_state in zip(self._links(state.count), state.states, strict=True):
            params = link.eval_params(link_state, params)
        return params

    def _links(self, count: jax.Array) -> tuple[GradientTransformation, ...]:
        """The innermost links, with their schedules evaluated."""
        links: list[GradientTransformation] = []
        for transform in self.transforms:
            transform = transform.at(count)
            if isinstance(transform, Optimizer):
                transform = Chain(transform.links())
            links.extend(transform._links(count) if isinstance(transform, Chain) else (transform,))
        return tuple(links)

    def _whole(self) -> GradientTransformation:
        """What the user wrote: the optimizer, where this is only the chain of its links."""
        return self.transforms[0] if len(self.transforms) == 1 else self

    @property
    def needs(self):
        return needs_of(self._links(jnp.zeros((), jnp.int32)))

    @property
    def takes(self):
        # What the first link that is particular about it takes: after it, the chain has been checked.
        return next((link.takes for link in self._links(jnp.zeros((), jnp.int32)) if link.takes), None)

    @property
    def makes_steps(self):
        return any(link.makes_steps for link in self._links(jnp.zeros((), jnp.int32)))

    @property
    def differentiable(self):
        return all(link.differentiable for link in self._links(jnp.zeros((), jnp.int32)))

    def __repr__(self):
        return f"chain({', '.join(map(repr, self.transforms))})"


def needs_of(links: Iterable[GradientTransformation]) -> frozenset[str]:
    """What any of the transforms needs."""
    return frozenset[str]().union(*(link.needs for link in links))


def _check_order(links: tuple[GradientTransformation, ...], whole: GradientTransformation) -> None:
    first = next((i for i, link in enumerate(links) if link.makes_steps), None)
    if first is None:
        return
    for i, link in enumerate(links):
        if link.takes == "gradients" and i > first:
            raise ValueError(
                f"in {whole}, {link} takes gradients, but {type(links[first]).__name__} before it has turned them into "
                "steps, of the other sign: put it before the learning rate, or the whole optimizer"
            )
        if link.takes == "steps" and i < first:
            raise ValueError(
                f"in {whole}, {link} takes steps, but they are gradients until {type(links[first]).__name__} after it: "
                "put it after the learning rate, or the whole optimizer"
            )


def _names(links: tuple[GradientTransformation, ...]) -> tuple[str, ...]:
    names: list[str] = []
    for link in links:
        name = type(link).__name__
        if isinstance(link, from_functions):  # optax's are called after the function that made them
            name = getattr(link.update_fn, "__qualname__", name).split(".")[0]
        choices = (name, *(f"{name}_{k}" for k in range(1, len(links))))
        names.append(next(choice for choice in choices if choice not in names))
    return tuple(names)


def chain(*transforms: Any) -> Chain:
    """Passes the updates through `transforms` in order: `chain(clip_by_global_norm(1.0), adam(1e-3))`.

    Each is a gdfx transform, an optax transform, or an `(init, update)` pair of functions.
    """
    return Chain(tuple(map(as_transformation, transforms)))
