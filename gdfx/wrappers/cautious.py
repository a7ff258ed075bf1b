"""Caution: https://arxiv.org/abs/2411.16085."""

import jax
import jax.numpy as jnp

from ..core import Tree, increment
from ..pytrees import NonNegative, pytree
from ..tree import cast_like, leafwise, widen
from .wrapper import Wrapper


@pytree
class CautiousState:
    """The state of `cautious`."""

    count: jax.Array  # int32 scalar: the updates made so far
    inner: Tree  # the state of the transform


@pytree
class cautious(Wrapper):
    """Sets to 0 each element of a transform's updates that goes against the gradient, and enlarges the others.

    Those that go with it are multiplied, in each leaf, by `size / (agreeing + xi)`: by the number of all elements over
    that of their own, plus `xi`, which is 1 in the paper; with 0 their mean is kept. Complex elements agree where the
    angle between them is acute.

    The transform is a whole optimizer, whose steps should point against the gradients, or a link that makes
    directions of them, which should point along. In a whole optimizer weight decay is part of the step, and is masked
    with it; as in the paper, it is not in
    `chain(cautious(scale_by_adam()), add_decayed_weights(0.1), scale_by_learning_rate(1e-3))`. The gradients are those
    that reach the wrapper.
    """

    xi: NonNegative = 1.0

    def init(self, params):
        return CautiousState(jnp.zeros((), jnp.int32), self.transform.init(params))

    def update(self, updates, state, params=None, **extra):
        g = widen(updates)
        new, inner = self.transform.update(g, state.inner, params, **extra)
        rule = _cautious_step if self.makes_steps else _cautious_direction
        new = leafwise(rule, (self.at(state.count).xi,), new, read=(g,))
        return cast_like(new, updates), CautiousState(increment(state.count), inner)


def _cautious_direction(xi, u, g):
    return _weights(xi, u, g) * u


def _cautious_step(xi, u, g):
    return _weights(xi, -jnp.conj(u), g) * u  # conjugate: see scale_by_learning_rate


def _weights(xi, u, g):
    agree = agrees(u, g).astype(xi.dtype)
    total = jnp.sum(agree) + xi
    return agree * u.size / jnp.where(total > 0, total, 1)


def agrees(x: jax.Array, y: jax.Array) -> jax.Array:
    """Where two arrays have one sign, neither being 0; also where their product is too small for the dtype."""
    return (jnp.sign(x) * jnp.conj(jnp.sign(y))).real > 0
