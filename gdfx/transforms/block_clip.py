"""Clipping by leaf (https://arxiv.org/abs/1804.04235) and by unit (https://arxiv.org/abs/2102.06171)."""

from typing import Any

import jax
import jax.numpy as jnp

from ..core import Stateless
from ..pytrees import NonNegative, pytree, static
from ..tree import abs2, leafwise, sqrt, widen
from .clip import shrink_factor
from .param_scale import leaf_rms


@pytree
class clip_by_block_rms(Stateless):
    """Shrinks the updates of each leaf so that their root mean square is at most `threshold`."""

    threshold: NonNegative

    def apply(self, updates, params):
        return leafwise(_clip_rms, (self.threshold,), updates)


def _clip_rms(threshold, u):
    return shrink_factor(leaf_rms(u), threshold) * u


@pytree
class adaptive_grad_clip(Stateless):
    """Shrinks the gradient of each unit so that its norm is at most `clipping` times that of the unit's params.

    The norm of the params counts as at least `eps`, so that units that start at 0 can leave it. A unit is what feeds
    one output. `axis` are the axes that a norm is taken over; leaves that do not have them all are one unit. By default
    they go by the number of axes, for the layouts of JAX:

    - 0 or 1, sizes of 1 not counted: biases and gains; the leaf is one unit;
    - 2: kernels `[in, out]`; a unit is a column;
    - 3: attention kernels `[in, heads, out]`; a unit is an output of one head (for convolutions `[width, in, out]` give
      `axis=(0, 1)`);
    - 4 or more: convolutions `[height, width, in, out]`; all axes but the last.

    Typical values of `clipping` are 0.01, for large batches, to 0.1. The last layer is usually left out.
    """

    clipping: NonNegative
    eps: NonNegative = 1e-3
    axis: int | tuple[int, ...] | None = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if self.axis is not None and not all(type(i) is int for i in axes):
            raise TypeError(f"adaptive_grad_clip: axis is {self.axis!r}, expected an int, a tuple of ints or None")

    @property
    def needs(self):
        return frozenset({"params"})

    def apply(self, updates, params):
        return leafwise(_clip_units, (self,), updates, read=(params,))


def _clip_units(now, g, p):
    axes = _axes_of_units(p.shape, now.axis)
    g_norm, p_norm = (_norms(x, axes) for x in (g, p))
    return shrink_factor(g_norm, now.clipping * jnp.maximum(p_norm, now.eps)) * g


def _norms(x, axes):
    return sqrt(jnp.sum(abs2(x), axis=axes, keepdims=True))


def _axes_of_units(shape, axis):
    ndim = len(shape)
    if axis is not None:
        axes = axis if isinstance(axis, tuple) else (axis,)
        return axes if all(-ndim <= i < ndim for i in axes) else None
    if sum(n != 1 for n in shape) <= 1:
        return None
    return (0,) if ndim < 4 else tuple(range(ndim - 1))


def unitwise_norm(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """The L2 norm of each unit of one array, at each of its elements: an array of the shape of `x`.

    `axis` are the axes that a norm is taken over; by default they go by the number of axes, as in `adaptive_grad_clip`.
    The norms are real, in float32 or wider; their slope at 0 is 0. Raises `ValueError` for an axis that `x` has not.
    """
    x = widen(jnp.asarray(x))
    axes = _axes_of_units(x.shape, None) if axis is None else axis
    return jnp.broadcast_to(_norms(x, axes), x.shape)


def unitwise_clip(g_norm: jax.Array, max_norm: jax.Array, grad: jax.Array, div_eps: Any = 1e-6) -> jax.Array:
    """`grad`, one array, with the elements whose `g_norm` is not below `max_norm` times `max_norm / g_norm`.

    All three have one shape; the norms are as `unitwise_norm` gives them, and divided by as at least `div_eps`. The
    result is computed in at least float32, and has the dtype of `grad`. Raises `ValueError` for other shapes.
    """
    for name, norms in (("g_norm", g_norm), ("max_norm", max_norm)):
        if jnp.shape(norms) != jnp.shape(grad):
            raise ValueError(
                f"unitwise_clip: {name} has shape {jnp.shape(norms)}, expected that of grad, {jnp.shape(grad)}; "
                "unitwise_norm gives norms of the shape of an array"
            )
    return leafwise(_clip_to, (div_eps,), jnp.asarray(grad), read=(jnp.asarray(g_norm), jnp.asarray(max_norm)))


def _clip_to(div_eps, grad, g_norm, max_norm):
    return jnp.where(g_norm < max_norm, grad, grad * (max_norm / jnp.maximum(g_norm, div_eps)))
