"""Sharpness-aware minimization: https://arxiv.org/abs/2010.01412, adaptive: https://arxiv.org/abs/2102.11600."""

import jax
import jax.numpy as jnp

from ..core import Stateless
from ..pytrees import NonNegative, pytree, static
from ..tree import absolute, cast_like, leafwise, norm, ratio


@pytree
class sam(Stateless):
    """Replaces the gradient by that at the params moved uphill by `rho`: `chain(sam(), sgd(0.1, 0.9))`.

    It stands first in a chain, and needs the loss as a function of the params, `value_fn=`, which the training step
    provides: a second gradient. The way uphill has the joint norm `rho`; with `adaptive` each param counts in it by its
    size, which makes it independent of scale (ASAM). Typical values of `rho` are 0.05, and 0.5 to 2 with `adaptive`.
    """

    applies_extra = True

    rho: NonNegative = 0.05
    adaptive: bool = static(default=False)

    @property
    def needs(self):
        return frozenset({"params", "value_fn"})

    @property
    def takes(self):
        return "gradients"

    def apply(self, updates, params, **extra):
        ascent = leafwise(_weigh if self.adaptive else _as_is, (), updates, read=(params,))
        size = norm(ascent)
        factor = leafwise(_factor, (self.rho,), size)
        moved = leafwise(_move_by_size if self.adaptive else _move, (factor,), params, read=(ascent,))
        return cast_like(jax.grad(extra["value_fn"])(moved), updates)


def _as_is(g, p):
    return g


def _weigh(g, p):
    return absolute(p) * g


def _factor(rho, size):
    return ratio(rho, size)


def _move(factor, p, ascent):
    return p + factor * jnp.conj(ascent)


def _move_by_size(factor, p, ascent):
    return p + factor * absolute(p) * jnp.conj(ascent)
