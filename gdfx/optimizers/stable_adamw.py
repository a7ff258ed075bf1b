"""StableAdamW: https://arxiv.org/abs/2304.13013."""

import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, missing_argument
from ..pytrees import Decay, NonNegative, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale_by_learning_rate
from ..tree import abs2, debias, leafwise, ratio, sqrt
from .adam import scale_by_adam


@pytree
class scale_by_stable_adam(GradientTransformation):
    """Adam's updates and the decayed weights, divided in each leaf by what the gradient exceeds its history by.

    That is the root mean square of the gradient over its root second moment, debiased and at least `eps`, where it is
    above 1: a gradient that is much larger than those before shortens the step that it is part of. The decay is that of
    `add_decayed_weights`, decoupled. See `clip_by_block_rms` for a limit on the root mean square of any updates.
    """

    b1: Decay = 0.9
    b2: Decay = 0.99
    eps: NonNegative = 1e-6
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)

    @property
    def needs(self):
        return frozenset({"params"})

    def init(self, params):
        return self._moments.init(params)

    def update(self, updates, state, params=None, **extra):
        if params is None:
            raise missing_argument(self, {"params"})
        now = self.at(state.count)
        new, state = now._moments.update(updates, state)
        new = add_decayed_weights(now.weight_decay, self.mask).apply(new, params)
        return leafwise(_steadied, (now, state.count), new, read=(updates, state.nu)), state

    @property
    def _moments(self):
        return scale_by_adam(self.b1, self.b2, self.eps)


def _steadied(now, t, u, g, nu):
    nu_hat = nu / debias(now.b2, t)
    rms = sqrt(jnp.sum(ratio(abs2(g), jnp.maximum(nu_hat, jnp.square(now.eps)))) / max(g.size, 1))
    return u / jnp.maximum(rms, 1)


@pytree
class stable_adamw(Optimizer):
    """AdamW with shorter steps where gradients are larger than those before; see `scale_by_stable_adam`.

    It takes the place of gradient clipping. Weight decay is decoupled, and shortened with the step. Typical learning
    rates are 1e-3 to 1e-2.
    """

    learning_rate: NonNegative
    b1: Decay = 0.9
    b2: Decay = 0.99
    eps: NonNegative = 1e-6
    weight_decay: NonNegative = 1e-2
    mask: Mask = static(default=None)

    def links(self):
        moments = scale_by_stable_adam(self.b1, self.b2, self.eps, self.weight_decay, self.mask)
        return moments, scale_by_learning_rate(self.learning_rate)
