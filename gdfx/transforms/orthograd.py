"""OrthoGrad: https://arxiv.org/abs/2501.04697."""

import jax.numpy as jnp

from ..core import Stateless
from ..pytrees import pytree
from ..tree import leafwise
from .trust_ratio import leaf_norm


@pytree
class orthograd(Stateless):
    """Makes the gradient of each leaf orthogonal to its params, and gives it back the norm that it had.

    So no step scales a layer as a whole, such as to make logits larger without changing a prediction. It stands in
    front of an optimizer: `chain(orthograd(), adamw(1e-3))`. **A gradient that is parallel to the params becomes 0**,
    as those of leaves of one element are: leave these out with `masked(orthograd(), gdfx.matrices)`. Params that are
    all 0 leave it as it is.
    """

    @property
    def needs(self):
        return frozenset({"params"})

    @property
    def takes(self):
        return "gradients"

    def apply(self, updates, params):
        return leafwise(_orthogonal, (), updates, read=(params,))


def _orthogonal(g, p):
    size = leaf_norm(p)
    unit = jnp.conj(p) / jnp.where(size > 0, size, 1)  # gradients of complex params are conjugates of directions
    rest = g - jnp.sum((jnp.conj(unit) * g).real) * unit
    g_norm, rest_norm = leaf_norm(g), leaf_norm(rest)
    parallel = rest_norm <= 4 * jnp.finfo(size.dtype).eps * g_norm  # what is left is rounding
    return jnp.where(parallel, 0, g_norm / jnp.where(parallel, 1, rest_norm)) * rest
