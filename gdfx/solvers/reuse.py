"""The loss and its gradient, where a line search has computed them already."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ..composition import ChainState
from ..core import Tree
from ..tree import cast_like


def value_and_grad_from_state(value_fn: Callable[..., Any]) -> Callable[..., tuple[jax.Array, Tree]]:
    """As `jax.value_and_grad(value_fn)`, but what it returns takes `state=` too, and finds there what it can.

    `fn(params, *args, state=opt_state, **kwargs)` gives value and gradient in the dtypes in which `jax.value_and_grad`
    does. They are those that the line search in `state` kept at the params that it moved to, so the other arguments
    must be the same as in that update. Before the first update, and where the value kept is not finite, they are
    computed.

    Raises `ValueError` for a state in which no line search, or more than one, keeps a value and a gradient:
    `scale_by_backtracking_linesearch` does with `store_grad=True`.
    """

    def value_and_grad(params: Tree, *args: Any, state: Tree, **kwargs: Any) -> tuple[jax.Array, Tree]:
        found = list(_found(state))
        if len(found) != 1:
            raise ValueError(
                f"{len(found)} parts of the state keep a value and a gradient, expected one line search. "
                "scale_by_backtracking_linesearch keeps the gradient with store_grad=True"
            )
        compute = lambda: jax.value_and_grad(value_fn)(params, *args, **kwargs)
        kept = cast_like(found[0], jax.eval_shape(compute))
        return jax.lax.cond(jnp.isfinite(found[0][0]), lambda: kept, compute)

    return value_and_grad


def last_part(state: Any) -> Any:
    """The state of the last link of a chain, or `state` itself, if it keeps the loss and its gradient; else None."""
    last = state.states[-1] if isinstance(state, ChainState) and state.states else state
    kept = (getattr(last, name, None) is not None for name in ("value", "grad"))
    return last if all(kept) else None


def evaluations_of(state: Any) -> Any:
    """How often the links of which this is the state evaluated the loss in their last update."""
    if (evaluations := getattr(state, "evaluations", None)) is not None:
        return evaluations
    children = [child for child in jax.tree.leaves(state, is_leaf=lambda x: x is not state) if child is not state]
    return sum(map(evaluations_of, children))


def _found(state: Any) -> Iterator[tuple[jax.Array, Tree]]:
    """All pairs of a value and a gradient in the state."""
    value, grad = getattr(state, "value", None), getattr(state, "grad", None)
    if value is not None and grad is not None:
        yield value, grad
        return
    for child in jax.tree.leaves(state, is_leaf=lambda x: x is not state):
        if child is not state:
            yield from _found(child)
