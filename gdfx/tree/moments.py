"""Moving averages of moments, and their bias."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .arithmetic import without_those_of
from .checks import Tree, check_like
from .dtypes import widen
from .lifting import leafwise
from .numerics import abs2, absolute, debias


def update_moment(updates: Tree, moments: Tree, decay: ArrayLike, order: int | float) -> Tree:
    """`decay * moments + (1 - decay) * updates**order`: the next average of the moment of that order.

    As in the other updates of moments, it is computed in float32 at least and comes in the dtypes of `moments`; where
    `updates` are `None` so is the result.
    """
    return _next(_average, (decay,), updates, moments, jax.tree.map(lambda g: g**order, _arrays(updates)))


def update_moment_per_elem_norm(updates: Tree, moments: Tree, decay: ArrayLike, order: int | float) -> Tree:
    """As `update_moment`, with the absolute values of complex updates in their place, so that the moments are real."""

    def power(g):
        if not jnp.iscomplexobj(g):
            return g**order
        return abs2(g) ** (int(order) // 2) if order % 2 == 0 else absolute(g) ** order

    return _next(_average, (decay,), updates, moments, jax.tree.map(power, _arrays(updates)))


def update_infinity_moment(updates: Tree, moments: Tree, decay: ArrayLike, eps: ArrayLike) -> Tree:
    """`max(abs(updates) + eps, decay * moments)`: the next of the running maxima that decay."""
    return _next(_decayed_maximum, (decay, eps), updates, moments, jax.tree.map(absolute, _arrays(updates)))


def bias_correction(moment: Tree, decay: ArrayLike, count: ArrayLike) -> Tree:
    """`moment / (1 - decay**count)`, in the dtypes of `moment`: the average without the weight of its start at 0.

    `count` is the number of terms averaged so far, at least 1.
    """
    return leafwise(_debiased, (decay, count), jax.tree.map(jnp.asarray, moment))


def _next(rule: Callable[..., Any], scalars: tuple[Any, ...], updates: Tree, moments: Tree, terms: Tree) -> Tree:
    moments = jax.tree.map(jnp.asarray, without_those_of(updates, moments))
    check_like(terms, moments, "updates", "moments")
    return leafwise(rule, scalars, moments, read=(terms,))


def _arrays(tree: Tree) -> Tree:
    return widen(jax.tree.map(jnp.asarray, tree))


def _average(decay, moment, term):
    return decay * moment + (1 - decay) * term


def _decayed_maximum(decay, eps, moment, size):
    return jnp.maximum(size + eps, decay * moment)


def _debiased(decay, count, moment):
    return moment / debias(decay, count)
