"""AdamC, weight decay corrected for layers that are normalized: https://arxiv.org/abs/2506.02285."""

from collections.abc import Callable

import jax

from ..composition import Optimizer
from ..core import Tree
from ..labels import label_leaves
from ..pytrees import Decay, NonNegative, Positive, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale_by_learning_rate
from .adam import scale_by_adam


@pytree
class adamc(Optimizer):
    """AdamW whose weight decay falls with the square of the learning rate in layers that are followed by normalization.

    Weight decay is decoupled. Where `normalized` is true it subtracts `weight_decay * params`, multiplied by
    `learning_rate**2 / max_learning_rate`, so that the norms of gradients do not grow at the end of a schedule;
    elsewhere it is that of `adamw`. `normalized` is a mask as `mask` is, and by default all leaves that decay: give one
    that spares the output layer, after which there is no norm. `max_learning_rate` is the peak of the schedule. Typical
    learning rates are 1e-4 to 1e-2.
    """

    learning_rate: NonNegative
    max_learning_rate: Positive
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 1e-2
    mask: Mask = static(default=None)
    normalized: Mask = static(default=None)

    def links(self):
        corrected = self.weight_decay * self.learning_rate / self.max_learning_rate
        decays = (add_decayed_weights(corrected, self.mask),)
        if self.normalized is not None:
            decays = (
                add_decayed_weights(corrected, _both(self.mask, self.normalized)),
                add_decayed_weights(self.weight_decay, _but_not(self.mask, self.normalized)),
            )
        return scale_by_adam(self.b1, self.b2, self.eps), *decays, scale_by_learning_rate(self.learning_rate)


def _both(mask: Mask, normalized: Mask) -> Callable[[Tree], Tree]:
    def chosen(params: Tree) -> Tree:
        return jax.tree.map(lambda x, y: x & y, *_resolved(mask, normalized, params))

    return chosen


def _but_not(mask: Mask, normalized: Mask) -> Callable[[Tree], Tree]:
    def chosen(params: Tree) -> Tree:
        return jax.tree.map(lambda x, y: x ^ (x & y), *_resolved(mask, normalized, params))

    return chosen


def _resolved(mask: Mask, normalized: Mask, params: Tree) -> tuple[Tree, Tree]:
    """Both as trees of bools."""
    of_all = jax.tree.map(lambda p: True, params) if mask is None else mask
    unflatten = jax.tree.structure(params).unflatten
    return unflatten(label_leaves(of_all, params, "mask")), unflatten(label_leaves(normalized, params, "normalized"))
