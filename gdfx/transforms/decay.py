"""Weight decay: https://arxiv.org/abs/1711.05101."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

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


Mode: TypeAlias = Literal["coupled", "decoupled", "independent"]
"""Of weight decay: see `add_decayed_weights`."""


@pytree
class add_decayed_weights(Stateless):
    """Decays the weights: towards 0, in proportion to `weight_decay`, where `mask` is true.

    `mode` says how the decay goes with the rest of the optimizer, and with that where in a chain the link stands:

    - `"decoupled"`, the default, as in AdamW: adds `weight_decay * params` to the updates between the moments and the
      learning rate, which multiplies it.
    - `"coupled"`, L2 regularisation: the same, before the moments, so that the decay is part of the gradient.
    - `"independent"`: after the learning rate; subtracts `weight_decay * params` from the step as it is.

    The default mask is all leaves; `mask=gdfx.matrices` spares biases and norm scales. A mask that is a function
    compiles once for each function: give one with a name, not a lambda made anew for each call. A chain in which the
    link stands on the wrong side of the learning rate raises when it is initialised.
    """

    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)
    mode: Mode = static(default="decoupled", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.mode not in get_args(Mode):
            raise ValueError(f"{type(self).__name__}: mode is {self.mode!r}, expected one of {get_args(Mode)}")

    @property
    def needs(self):
        return frozenset({"params"})

    @property
    def takes(self):
        return "steps" if self.mode == "independent" else "gradients"

    def apply(self, updates, params):
        mask = self.mask.value if isinstance(self.mask, Frozen) else self.mask
        if mask is None:
            return leafwise(self._rule, (self.weight_decay,), updates, read=(params,))
        mask = mask(params) if callable(mask) else mask
        if jax.tree.structure(mask) != jax.tree.structure(params):
            raise ValueError(
                f"the mask of {self} has the structure {jax.tree.structure(mask)}, expected that of params, "
                f"{jax.tree.structure(params)}, with a bool for each leaf"
            )
        chosen, structure = jax.tree.flatten(mask)
        if not all(isinstance(x, bool | np.bool) for x in chosen):
            return jax.tree.map(self._decay_where, mask, updates, params)
        new = structure.flatten_up_to(updates)
        of_chosen = lambda leaves: {i: leaf for i, (leaf, x) in enumerate(zip(leaves, chosen, strict=True)) if x}
        read = of_chosen(structure.flatten_up_to(params))
        for i, leaf in leafwise(self._rule, (self.weight_decay,), of_chosen(new), read=(read,)).items():
            new[i] = leaf
        return jax.tree.unflatten(structure, new)

    def _decay_where(self, chosen, g, p):
        return leafwise(self._rule, (jnp.where(chosen, self.weight_decay, 0.0),), g, read=(p,))

    @property
    def _rule(self):
        return _shrink if self.mode == "independent" else _decay


def _decay(weight_decay, g, p):
    return g + weight_decay * jnp.conj(p)  # conjugate: gradients of complex params are; see scale_by_learning_rate


def _shrink(weight_decay, u, p):
    return u - weight_decay * p
