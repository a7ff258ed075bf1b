"""Mechanic, a tuner of learning rates: https://arxiv.org/abs/2306.00144."""

import jax
import jax.numpy as jnp

from ..core import Tree, increment, missing_argument
from ..optimizers.factored_rms import check_size
from ..pytrees import NonNegative, Positive, pytree, static
from ..tree import (
    cast_like,
    check_like,
    check_params,
    conj,
    leafwise,
    norm,
    ratio,
    real_dtype,
    sqrt,
    vdot,
    widen,
    zeros_like,
)
from .wrapper import Wrapper


@pytree
class MechanizeState:
    """The state of `mechanize`: `r`, `m`, `v` and `s` have an element for each learner."""

    count: jax.Array  # int32 scalar: the updates made so far
    r: jax.Array  # what each learner has won, at least 0
    m: jax.Array  # decaying maximum of the slopes along `delta`
    v: jax.Array  # decaying sum of their squares
    s: jax.Array  # the part of the factor that is each learner's
    delta: Tree  # sum of the steps of the optimizer, shaped like params, in at least float32
    inner: Tree  # the state of the optimizer

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"mechanic_factor": jnp.sum(self.s, axis=-1)}


@pytree
class mechanize(Wrapper):
    """Learns a factor for all steps of an optimizer, in place of a learning rate: `mechanize(adam(1.0))`.

    Leave the learning rate of the optimizer at 1, or let a schedule with the peak 1 stand for it. The params are at
    their start plus the factor times the sum of all steps so far, earlier ones included. The factor is the sum of
    `state.s`: it starts at `s_init`, which should be too small, and has a part from each of `num_betas` learners, whose
    memories decay by 0.9, 0.99, 0.999 and so on. `weight_decay` shrinks the factor, not the params, where the steps
    have led away from 0. It is not for optimizers that normalize the step of each layer, such as `lamb`. What averages
    or projects params, such as `lookahead`, belongs around it, not inside.

    Differs from optax: it holds the sum of the steps, as the paper does, in the memory in which optax holds the initial
    params, to divide the way from there by the factor plus `eps`. That loses what is rounded off the params: where it
    is all of the first steps, as in bfloat16, or in float32 with small gradients, optax never leaves the start. And a
    learner that has lost more than it had begins again from 0, as in the paper, not from a debt. As in optax, though
    not in the paper, a slope counts for at most the largest before it.
    """

    weight_decay: NonNegative = 0.01
    eps: NonNegative = 1e-8
    s_init: Positive = 1e-6
    num_betas: int = static(default=6)

    def __post_init__(self):
        super().__post_init__()
        check_size(self, "num_betas")

    @property
    def needs(self):
        return self.transform.needs | {"params"}

    @property
    def takes(self):
        return "gradients"

    @property
    def makes_steps(self):
        return True

    def init(self, params):
        check_params(params)
        count, n, dtype = jnp.zeros((), jnp.int32), self.num_betas, real_dtype(params)
        r, m, v = (jnp.zeros(n, dtype) for _ in range(3))
        s = jnp.full(n, self.at(count).s_init / n, dtype)
        return MechanizeState(count, r, m, v, s, zeros_like(params), self.transform.init(params))

    def update(self, updates, state, params=None, **extra):
        if params is None:
            raise missing_argument(self, {"params"})
        check_like(updates, params, "grads", "params")
        now = self.at(state.count)
        step, inner = self.transform.update(widen(updates), state.inner, params, **extra)
        # The slopes of the loss, and of half the squared norm of the params, along the sum of the steps so far.
        slopes = vdot(conj(updates), state.delta), vdot(params, state.delta)
        s, r, m, v = leafwise(_tune, (now, *slopes, norm(updates), norm(params)), state.s, state.r, state.m, state.v)
        new, delta = leafwise(_rescale, (jnp.sum(state.s), jnp.sum(s)), step, state.delta)
        return cast_like(new, updates), MechanizeState(increment(state.count), r, m, v, s, delta, inner)


def _tune(now, slope, outward, size_g, size_p, s, r, m, v):
    betas = jnp.asarray([1 - 0.1**i for i in range(1, s.size + 1)], s.dtype)
    h = slope + now.weight_decay * jnp.sum(s) * size_g * ratio(outward, size_p + now.eps)
    r = jnp.maximum(betas * r - jnp.clip(h, -m, m) * s, 0)
    m = jnp.maximum(betas * m, jnp.abs(h) + now.eps)
    v = jnp.square(betas) * v + jnp.square(h)
    return ratio(now.s_init / s.size * m + r, sqrt(v) + now.eps), r, m, v


def _rescale(s_before, s, u, delta):
    # The difference of s * delta after and before.
    return s * u + (s - s_before) * delta, delta + u
