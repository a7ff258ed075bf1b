"""Stable-SPAM, Adam for gradients with spikes: https://arxiv.org/abs/2502.17055."""

from ..composition import Optimizer
from ..optimizers.adam import scale_by_adam
from ..pytrees import Decay, Interval, NonNegative, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale_by_learning_rate
from ..transforms.steady import steady_gradients
from .restart import restart


@pytree
class stable_spam(Optimizer):
    """AdamW for gradients with spikes, as in low precision: see `steady_gradients`; its moments `restart`.

    They do so before every update whose number is a multiple of `reset_every`. Weight decay is decoupled. Typical
    learning rates are 1e-4 to 1e-2.
    """

    learning_rate: NonNegative
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    gamma1: Decay = 0.7
    gamma2: Decay = 0.9
    theta: Decay = 0.999
    reset_every: Interval = 1000
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)

    def links(self):
        steady = steady_gradients(self.gamma1, self.gamma2, self.theta, self.eps)
        moments = restart(scale_by_adam(self.b1, self.b2, self.eps), self.reset_every)
        decay = add_decayed_weights(self.weight_decay, self.mask)
        return steady, moments, decay, scale_by_learning_rate(self.learning_rate)
