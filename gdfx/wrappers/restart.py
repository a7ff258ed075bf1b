"""Moments that are forgotten from time to time: https://arxiv.org/abs/2501.06842."""

import jax
import jax.numpy as jnp

from ..core import Tree, increment, missing_argument
from ..pytrees import Interval, pytree
from ..transforms.basic import whole
from .wrapper import Wrapper


@pytree
class RestartState:
    """The state of `restart`."""

    count: jax.Array  # int32 scalar: the updates made so far
    inner: Tree  # the state of the transform


@pytree
class restart(Wrapper):
    """Starts a transform anew before the update number `every`, before that of twice the number, and so on.

    What a gradient out of line has left in its moments is forgotten with the rest of its state. Its own schedules, and
    what it counts for bias corrections, start anew too; those of a chain around it do not.
    """

    every: Interval = 1000

    @property
    def needs(self):
        return self.transform.needs | {"params"}

    def init(self, params):
        return RestartState(jnp.zeros((), jnp.int32), self.transform.init(params))

    def update(self, updates, state, params=None, **extra):
        if params is None:
            raise missing_argument(self, {"params"})
        t = increment(state.count)
        is_due = t % whole(self.at(state.count).every) == 0
        inner = jax.tree.map(lambda new, old: jnp.where(is_due, new, old), self.transform.init(params), state.inner)
        updates, inner = self.transform.update(updates, inner, params, **extra)
        return updates, RestartState(t, inner)
