"""Updates that are not made: of gradients that are not finite, or that explode. And the scale of the loss."""

import math

import jax
import jax.numpy as jnp

from ..core import Tree, increment
from ..pytrees import Interval, NonNegative, Positive, pytree
from ..tree import instances, norm
from ..tree.lifting import foreseeing
from .wrapper import Wrapper

SCALES = (2.0**-24, 2.0**24)
"""The least and the largest that a loss is scaled by."""


@pytree
class GuardState:
    """The state of `guard`."""

    count: jax.Array  # int32 scalar: the updates asked for so far
    skipped: jax.Array  # int32 scalar: how many of them were not made
    in_a_row: jax.Array  # int32 scalar: how many in a row, up to now, were not fit to be made
    loss_scale: jax.Array | None  # float32 scalar: what the next loss is to be multiplied by
    since_change: jax.Array | None  # int32 scalar: the updates made since it changed
    inner: Tree  # the state of the transform

    def report(self):
        """What `gdfx.metrics` tells of it."""
        scale = {} if self.loss_scale is None else {"loss_scale": self.loss_scale}
        return {"skipped": self.skipped, "skipped_in_a_row": self.in_a_row, **scale}


@pytree
class guard(Wrapper):
    """Leaves params and state as they are where the gradients or the loss are not finite.

    It goes by what comes in: no update is made where the joint L2 norm of the gradients, taken in float32 or wider, is
    not finite or above `max_norm`, or where `value`, if it is given, is not finite. That the transform makes finite
    updates of such gradients is not checked. The state counts what was skipped; a run that has diverged stays at its
    last finite params for good. Schedules inside count the updates that were made. The choice is made by selection,
    element by element as the update is computed, so that it moves no memory of its own, and that under `vmap` members
    do not disturb each other.

    After `max_in_a_row` skipped updates in a row it gives up: the next are made whatever they are, until one is fit to
    be made, from which it counts anew. By default it never does, as one NaN in the params is there for good: the run is
    lost, and its last finite params too.

    With `loss_scale` the loss is multiplied by a number, so that its gradients do not vanish in float16: first by this
    one; twice as large after every `growth_interval` updates that were made, and half as large after each whose
    gradients were not finite, between 2**-24 and 2**24. The training step multiplies the loss by it, and divides the
    gradients, in float32, before any transform sees them. In a loop of one's own, that is to be done with what
    `gdfx.loss_scale` reads from the state.
    """

    max_norm: NonNegative = math.inf
    loss_scale: Positive | None = None
    growth_interval: Interval = 2000
    max_in_a_row: NonNegative = math.inf

    def init(self, params):
        count, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
        scale = since = None
        if self.loss_scale is not None:
            scale = jnp.clip(jnp.asarray(self.at(count).loss_scale).astype(jnp.float32), *SCALES)
            since = jnp.zeros((), jnp.int32)
        return GuardState(count, skipped, in_a_row, scale, since, self.transform.init(params))

    def update(self, updates, state, params=None, **extra):
        now = self.at(state.count)
        size = norm(updates)
        finite = jnp.isfinite(size)
        if extra.get("value") is not None:
            finite &= jnp.all(jnp.isfinite(extra["value"]))
        ok = finite & (size <= jnp.asarray(now.max_norm).astype(size.dtype))
        in_a_row = jnp.where(ok, jnp.zeros_like(state.in_a_row), increment(state.in_a_row))
        made = ok | (in_a_row.astype(float) > jnp.asarray(now.max_in_a_row).astype(float))
        with foreseeing(made):
            new, inner = self.transform.update(updates, state.inner, params, **extra)
        new = jax.tree.map(lambda u: jnp.where(made, u, jnp.zeros_like(u)), new)
        inner = jax.tree.map(lambda x, old: jnp.where(made, x, old), inner, state.inner)
        skipped = jnp.where(made, state.skipped, increment(state.skipped))
        scale, since = state.loss_scale, state.since_change
        if scale is not None and since is not None:
            scale, since = _next_scale(now, scale, since, finite, ok)
        return new, GuardState(increment(state.count), skipped, in_a_row, scale, since, inner)


def _next_scale(now, scale, since, finite, ok):
    since = jnp.where(ok, increment(since), since)
    grows = finite & (since >= jnp.asarray(now.growth_interval).astype(since.dtype))
    least, most = SCALES
    scale = jnp.where(finite, jnp.where(grows, jnp.minimum(2 * scale, most), scale), jnp.maximum(scale / 2, least))
    return scale, jnp.where(grows | ~finite, jnp.zeros_like(since), since)


def loss_scale(state: Tree) -> jax.Array | None:
    """What the next loss is to be multiplied by, and its gradients divided; None where no `guard` in it says so.

    `state` is that of any optimizer, or a `TrainState`. Raises `ValueError` where two guards scale the loss.
    """
    scales = [found.loss_scale for found in instances(state, GuardState) if found.loss_scale is not None]
    if len(scales) > 1:
        raise ValueError(f"{len(scales)} guards scale the loss, expected at most one: give loss_scale to the outermost")
    return scales[0] if scales else None
