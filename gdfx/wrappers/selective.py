"""A transform for the leaves that are not frozen, as a mask tells."""

from typing import Any

import jax
import jax.numpy as jnp

from ..labels import label_leaves
from ..pytrees import Frozen, pytree, static
from .partition import _Selective


@pytree
class selective_transform(_Selective):
    """Transforms the leaves where `freeze_mask` is false, and keeps the others as they are: `freeze` by a mask only.

    The mask is a tree of bools, where one at an inner node goes for all leaves below, or one bool for all; unlike
    `freeze` it may be false everywhere. Frozen leaves have no state and are in no norm.
    """

    freeze_mask: Any = static(kw_only=True)

    def __post_init__(self):
        mask = self.freeze_mask.value if isinstance(self.freeze_mask, Frozen) else self.freeze_mask
        object.__setattr__(self, "freeze_mask", jax.tree.map(bool, mask))
        super().__post_init__()

    def chosen(self, params):
        return tuple(not frozen for frozen in label_leaves(self.freeze_mask, params, "freeze_mask"))

    def others(self, update):
        return jnp.zeros_like(update)
