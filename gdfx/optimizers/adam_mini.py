"""Adam-mini: https://arxiv.org/abs/2406.16793."""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment
from ..pytrees import Decay, NonNegative, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale_by_learning_rate
from ..tree import abs2, debias, leafwise, sqrt, zeros_like
from .factored_rms import check_slots, mean_slot

Axis: TypeAlias = int | tuple[int, ...] | None
"""The axes that a mean is taken over; None is all of them."""


@pytree
class ScaleByAdamMiniState:
    """The state of `scale_by_adam_mini`."""

    count: jax.Array  # int32 scalar: the updates made so far
    mu: Tree  # first moment of the gradients, shaped like params
    nu: Tree  # second moment: a real number for each block, in the shape of the leaf without the axes of a block


@pytree
class scale_by_adam_mini(GradientTransformation):
    """Rescales the updates to their mean over the root mean square of a block of parameters, both debiased.

    `axis` are the axes of a leaf that a block extends over: its second moment is one number. Leaves that do not have
    them all are one block, as by default all leaves are. For kernels `[in, out]` an axis of 0 makes a block of what
    feeds one output, for attention kernels `[in, heads, out]` axes of (0, 2) one of each head, for embeddings
    `[vocabulary, out]` an axis of 1 one of each token. `eps` is added outside the root.
    """

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    axis: Axis = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        _check_axis(self)

    def init(self, params):
        zeros = zeros_like(params, real=True)
        nu = jax.tree.map(lambda x: mean_slot(x, _axes(x.shape, self.axis)), zeros)
        return ScaleByAdamMiniState(jnp.zeros((), jnp.int32), zeros_like(params), nu)

    def update(self, updates, state, params=None, **extra):
        t = increment(state.count)
        shapes = [jnp.shape(g) for g in jax.tree.leaves(updates)]
        check_slots(updates, state.nu, [_without(shape, _axes(shape, self.axis)) for shape in shapes])
        updates, mu, nu = leafwise(_adam_mini, (self.at(state.count), t), updates, state.mu, other=(state.nu,))
        return updates, ScaleByAdamMiniState(t, mu, nu)


def _adam_mini(now, t, g, mu, nu):
    axes = _axes(g.shape, now.axis)
    n = max(g.size // max(nu.size, 1), 1)
    mu = now.b1 * mu + (1 - now.b1) * g
    nu = now.b2 * nu + (1 - now.b2) * jnp.sum(abs2(g), axis=axes) / n
    root = jnp.expand_dims(sqrt(nu / debias(now.b2, t)), axes)
    return mu / debias(now.b1, t) / (root + now.eps), mu, nu


def _axes(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The axes that a block of a leaf of this shape extends over, counted from 0."""
    ndim = len(shape)
    axes = tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return tuple(i % ndim for i in axes) if all(-ndim <= i < ndim for i in axes) else tuple(range(ndim))


def _without(shape, axes):
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def _check_axis(transform):
    axis = transform.axis
    axes = axis if isinstance(axis, tuple) else (axis,)
    if axis is not None and not all(type(i) is int for i in axes):
        raise TypeError(f"{type(transform).__name__}: axis is {axis!r}, expected an int, a tuple of ints or None")


@pytree
class adam_mini(Optimizer):
    """Adam with one second moment for a block of parameters, which halves its memory; see `scale_by_adam_mini`.

    What a block is, `axis` says for all leaves alike, by default a leaf: `partition` gives leaves of several kinds
    each their own, and biases plain `adam`, as the authors do. Weight decay is decoupled; `mask` says which leaves
    decay, by default all. Typical learning rates are Adam's, 1e-4 to 1e-3.
    """

    learning_rate: NonNegative
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-8
    axis: Axis = static(default=None)
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        _check_axis(self)

    def links(self):
        moments = scale_by_adam_mini(self.b1, self.b2, self.eps, self.axis)
        decay = add_decayed_weights(self.weight_decay, self.mask)
        return moments, decay, scale_by_learning_rate(self.learning_rate)
