"""Clipping: element by element, and by the norm of all gradients together (https://arxiv.org/abs/1211.5063)."""

import jax.numpy as jnp

from ..core import Stateless
from ..pytrees import NonNegative, pytree
from ..tree import abs2, leafwise, norm, sqrt
from .scale import _times


@pytree
class clip(Stateless):
    """Limits each element to `[-max_delta, max_delta]`, and the absolute value of a complex one to `max_delta`."""

    max_delta: NonNegative

    def apply(self, updates, params):
        return leafwise(_clip, (self.max_delta,), updates)


def _clip(limit, g):
    if jnp.iscomplexobj(g):
        return shrink_factor(sqrt(abs2(g)), limit) * g
    return jnp.clip(g, -limit, limit)


@pytree
class clip_by_global_norm(Stateless):
    """Shrinks the updates, by one factor for all leaves, so that their joint L2 norm is at most `max_norm`.

    The norm is taken in float32 or wider. Updates that contain a NaN or an infinity are not repaired.
    """

    max_norm: NonNegative

    def apply(self, updates, params):
        return leafwise(_times, (shrink_factor(norm(updates), self.max_norm),), updates)


def shrink_factor(size, limit):
    """The factor in [0, 1] that brings `size` down to `limit`; differentiable also where `size` is 0."""
    limit = jnp.asarray(limit).astype(size.dtype)
    above = size > limit
    return jnp.where(above, limit / jnp.where(above, size, jnp.ones_like(size)), jnp.ones_like(size))
