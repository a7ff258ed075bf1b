"""Weight decay: https://arxiv.org/abs/1711.05101."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Stateless, Tree
from ..pytrees import Frozen, NonNegative, pytree, static
from ..tree import leafwise

Mask: TypeAlias = Callable[[Tree], Tree] | Any
"""A pytree of bools with the structure of the params, or a function from the params to one; None is all of them."""


def matrices(params: Tree) -> Tree:
    """The mask that is true for leaves of two or more axes: kernels and embeddings, not biases and norm scales."""
    return jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)


@pytree
class add_decayed_weights(Stateless):
    """Adds `weight_decay * params` to the updates, where `mask` is true; `mask=gdfx.matrices` spares biases.

    Before the learning rate in a chain the decay is multiplied by it, as in AdamW; before the moments it is L2
    regularisation. A mask that is a function compiles once for each function: give one with a name, not a lambda
    made anew for each call.
    """

    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)

    @property
    def needs(self):
        return frozenset({"params"})

    def apply(self, updates, params):
        mask = self.mask.value if isinstance(self.mask, Frozen) else self.mask
        if mask is None:
            return leafwise(_decay, (self.weight_decay,), updates, read=(params,))
        mask = mask(params) if callable(mask) else mask
        if jax.tree.structure(mask) != jax.tree.structure(params):
            raise ValueError(
                f"the mask of {self} has the structure {jax.tree.structure(mask)}, expected that of params, "
                f"{jax.tree.structure(params)}, with a bool for each leaf"
            )
        return jax.tree.map(self._decay_where, mask, updates, params)

    def _decay_where(self, chosen, g, p):
        if isinstance(chosen, bool | np.bool):
            return leafwise(_decay, (self.weight_decay,), g, read=(p,)) if chosen else g
        return leafwise(_decay, (jnp.where(chosen, self.weight_decay, 0.0),), g, read=(p,))


def _decay(weight_decay, g, p):
    return g + weight_decay * jnp.conj(p)  # conjugate: gradients of complex params are; see scale_by_learning_rate
