"""The parts of a state that mirror the params."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .checks import Tree
from .search import _children, _has_fields


@jax.tree_util.register_static
class _Params:
    """Stands for params in `init`: a tree without leaves, which stays where trees shaped like the params would be."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class _StateOf:
    """Stands for the state of `transform`, whose `init` was given `params`."""

    transform: Any
    params: Any


def map_params(
    initable: Any,
    f: Callable[..., Any],
    state: Tree,
    /,
    *rest: Tree,
    transform_non_params: Callable[..., Any] | None = None,
    is_leaf: Callable[[Any], bool] | None = None,
) -> Tree:
    """`state` with `f(leaf, *leaves_of_rest)` in place of each leaf of those parts that mirror the params.

    `initable` made the state: an optimizer or transform of gdfx or optax, or a function from params to state. `rest`
    are trees shaped like the params, of shardings for example. `transform_non_params` is called on the other leaves,
    which stay as they are by default. Where the state has `None` for a leaf, as `partition` and `masked` have for those
    of others, it stays. `is_leaf` is as in `jax.tree.map`.

    Raises:
        ValueError: `initable` did not make the state, or a tree in `rest` is not shaped like the params.
    """
    other = transform_non_params or (lambda x: x)
    ends = lambda x: x is None or (is_leaf is not None and is_leaf(x))

    def mirrored(part):
        leaves, structure = jax.tree.flatten(part, is_leaf=ends)
        try:
            columns = [structure.flatten_up_to(tree) for tree in rest]
        except ValueError as error:
            raise ValueError(
                f"map_params: a tree in rest is not shaped like the params, or what mirrors them: {error}"
            ) from None
        kept = lambda x: x is None and not (is_leaf is not None and is_leaf(x))
        new = [x if kept(x) else f(x, *others) for x, *others in zip(leaves, *columns, strict=True)]
        return jax.tree.unflatten(structure, new)

    def walk(made, part):
        while isinstance(made, _StateOf):
            # What a wrapper hands on may be of another shape than the params; then nothing in there mirrors them.
            made = _template(made.transform, part) if _is_params(made.params) else None
        if _is_params(made):
            return mirrored(part)
        if _has_fields(made) and type(made) is not type(part):
            raise ValueError(
                f"map_params: the state has a {type(part).__name__} where a {type(made).__name__} is expected. "
                "Was the state made by another optimizer?"
            )
        children, structure = _children(part)
        if structure is None:
            return other(part)
        made_by_key = dict(_children(made)[0])  # not all is there: what `init` makes of the leaves, for example
        return jax.tree.unflatten(structure, [walk(made_by_key.get(key), child) for key, child in children])

    return walk(_StateOf(initable, _placeholder()), state)


def _template(transform: Any, state: Tree) -> Tree:
    """A state of `transform` with placeholders for what mirrors the params, and for the states of inner transforms."""
    from ..composition import Chain, ChainState, Optimizer
    from ..wrappers.partition import PartitionState, SelectiveState, partition
    from ..wrappers.wrapper import Wrapper

    inner = lambda x: _StateOf(x, _placeholder())
    if isinstance(transform, Chain | Optimizer):
        links = Chain((transform,))._links(jnp.zeros((), jnp.int32))
        if not isinstance(state, ChainState) or len(links) != len(state):
            raise ValueError(
                f"map_params: the state is a {type(state).__name__} that does not go with {transform}. "
                "Was the state made by another optimizer?"
            )
        return ChainState(jnp.zeros((), jnp.int32), state.names, tuple(map(inner, links)))
    # Their `init` looks at the leaves, of which there are none here.
    if isinstance(transform, partition):
        return PartitionState((), {label: inner(t) for label, t in transform.transforms.items()})
    if isinstance(state, SelectiveState) and isinstance(transform, Wrapper):
        return SelectiveState(state.chosen, inner(transform.transform))
    if isinstance(transform, Wrapper):
        wrapped = transform.transform
        probe = (lambda params: _StateOf(wrapped, params)), lambda updates, state, params=None: (updates, state)
        transform = transform.replace(transform=probe)
    return getattr(transform, "init", transform)(_placeholder())


def _placeholder() -> Any:
    # optax's own, where optax is loaded: its `masked` knows that one by the type.
    optax: Any = sys.modules.get("optax.tree_utils._state_utils")
    return getattr(optax, "_ParamsPlaceholder", _Params)()


def _is_params(x: Any) -> bool:
    return isinstance(x, type(_placeholder()))
