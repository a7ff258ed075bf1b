"""Gradients that tell little about any one example: https://arxiv.org/abs/1607.00133."""

import math

import jax
import jax.numpy as jnp

from ..core import CountState, GradientTransformation, increment
from ..pytrees import Key, NonNegative, pytree
from ..tree import cast_like, check_like, check_params, leafwise
from .noise import key_for_step, random_like
from .per_example import count_examples, sum_clipped


@pytree
class differentially_private_aggregate(GradientTransformation):
    """The mean of gradients of single examples, each clipped to the joint L2 norm `l2_norm_clip`, with noise added.

    It is the first link, and takes gradients with a leading axis for the examples on every leaf, as
    `jax.vmap(jax.grad(loss), in_axes=(None, 0))` gives; for others it raises a `ValueError` with the leaf's path. The
    sum of the clipped gradients gets Gaussian noise of standard deviation `l2_norm_clip * noise_multiplier` in each
    real number (of a complex one, in both), and is divided by the number of examples.

    With `key=None` each `update` is to be given a key, as `key=`. Numbers from `jax.random` can be predicted by
    whoever knows the key: keep it secret. What privacy a run spends is for an accountant to tell.
    """

    per_example = True

    l2_norm_clip: NonNegative
    noise_multiplier: NonNegative
    key: Key = None

    @property
    def needs(self):
        return frozenset({"key"} if self.key is None else ())

    @property
    def takes(self):
        return "gradients"

    def init(self, params):
        check_params(params)
        return CountState(jnp.zeros((), jnp.int32))

    def update(self, updates, state, params=None, **extra):
        now = self.at(state.count)
        examples = count_examples(updates)
        sums, _ = sum_clipped(updates, now.l2_norm_clip)
        if params is not None:
            check_like(sums, params, "the gradients of each example", "params")
        noise = random_like(jax.random.normal, key_for_step(self, state.count, extra), sums)
        means = leafwise(_noisy_mean, (now, examples), sums, read=(noise,))
        return cast_like(means, updates), CountState(increment(state.count))


def _noisy_mean(now, examples, total, noise):
    # jax.random gives the parts of a complex number half of the variance each.
    noise = noise * math.sqrt(2) if jnp.iscomplexobj(noise) else noise
    return (total + now.l2_norm_clip * now.noise_multiplier * noise) / examples
