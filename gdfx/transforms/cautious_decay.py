"""Cautious weight decay: https://arxiv.org/abs/2510.12402."""

import jax.numpy as jnp

from ..core import Stateless
from ..pytrees import NonNegative, pytree, static
from ..tree import leafwise
from .decay import Mask, add_decayed_weights


@pytree
class add_cautious_decay(Stateless):
    """Decays those elements of the weights that the step draws towards 0 anyway, or leaves where they are.

    It adds `weight_decay * params` to the updates, as `add_decayed_weights` does when decoupled, where the two have one
    sign or one of them is 0, and stands at the same place: between the moments and the learning rate. `mask` is that of
    `add_decayed_weights`. Complex elements have one sign where the angle between them is at most a right one.
    """

    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)

    @property
    def needs(self):
        return frozenset({"params"})

    @property
    def takes(self):
        return "gradients"

    def apply(self, updates, params):
        decayed = add_decayed_weights(self.weight_decay, self.mask).apply(updates, params)
        return leafwise(_where_no_growth, (), updates, read=(decayed, params))


def _where_no_growth(u, decayed, p):
    # Gradients of complex params are conjugates of directions: their real part with p, not with its conjugate.
    return jnp.where((jnp.sign(u) * jnp.sign(p)).real >= 0, decayed, u)
