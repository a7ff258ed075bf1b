"""Functions made smooth by noise on their input, so that piecewise constant ones have gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from .checks import check_float, check_scalar
from .numerics import float_leaves
from .tree import Tree, cast_like, widen


class Noise(Protocol):
    """A distribution of independent numbers."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = (), dtype: DTypeLike = float) -> jax.Array:
        """Independent samples in an array of the given shape and dtype."""
        ...

    def log_prob(self, inputs: jax.Array) -> jax.Array:
        """The log density at each of `inputs`, up to a constant."""
        ...


@dataclass(frozen=True)
class Normal:
    """The standard normal distribution."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = (), dtype: DTypeLike = float) -> jax.Array:
        """Independent samples in an array of the given shape and dtype."""
        return jax.random.normal(key, sample_shape, dtype)

    def log_prob(self, inputs: ArrayLike) -> jax.Array:
        """The log density at each of `inputs`."""
        return -0.5 * (jnp.square(check_float("inputs", inputs)) + math.log(2 * math.pi))


@dataclass(frozen=True)
class Gumbel:
    """The standard Gumbel distribution, of mean 0.577 and variance pi**2 / 6."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = (), dtype: DTypeLike = float) -> jax.Array:
        """Independent samples in an array of the given shape and dtype."""
        return jax.random.gumbel(key, sample_shape, dtype)

    def log_prob(self, inputs: ArrayLike) -> jax.Array:
        """The log density at each of `inputs`."""
        inputs = check_float("inputs", inputs)
        return -inputs - jnp.exp(-inputs)


def make_perturbed_fun(
    fun: Callable[[Tree], Tree],
    num_samples: int = 1000,
    sigma: ArrayLike = 0.1,
    noise: Noise = Gumbel(),
    use_baseline: bool = True,
) -> Callable[[Any, Tree], Tree]:
    """A function `smooth(key, x)`: the mean of `fun(x + sigma * z)` over `num_samples` samples `z` of the noise.

    Its derivatives of any order, with respect to `x` and `sigma`, are unbiased estimates from values of `fun` alone,
    which need not be differentiable. `use_baseline` weighs the differences to `fun(x)` rather than the values, for less
    variance. The samples are evaluated at once, by `jax.vmap`.

    `x` is a pytree of real floats (`TypeError` otherwise) and reaches `fun` in its dtypes. The mean is in float32 or
    wider, of integers and booleans too. `sigma` is a positive scalar, `num_samples` a positive int.

    Sources: https://arxiv.org/abs/2002.08676, https://arxiv.org/abs/1802.05098, https://arxiv.org/abs/1703.03864.
    """
    if isinstance(num_samples, bool) or not hasattr(num_samples, "__index__"):
        raise TypeError(f"num_samples must be an int, got {num_samples!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    check_scalar("sigma", sigma, float, lambda s: bool(0 < s < np.inf), "positive and finite")

    def smooth(key: Any, x: Tree) -> Tree:
        arrays, x = float_leaves("x", x)
        leaves, structure = jax.tree.flatten(x)
        width = jnp.asarray(sigma).astype(leaves[0].dtype) if leaves else jnp.asarray(sigma)
        fixed, fixed_width = jax.lax.stop_gradient((leaves, width))

        def value(leaves: list[jax.Array]) -> Tree:
            out = fun(cast_like(jax.tree.unflatten(structure, leaves), arrays))
            return widen(jax.tree.map(lambda y: _float(y, width.dtype), out))

        def estimate(key: Any) -> tuple[jax.Array, Tree]:
            keys = jax.random.split(key, len(leaves))
            z = [noise.sample(k, y.shape, y.dtype) for k, y in zip(keys, leaves, strict=True)]
            values = value([y + fixed_width * noise_of for y, noise_of in zip(fixed, z, strict=True)])
            # The same noise, as a function of x and sigma for a perturbed point that stays where it is.
            z = [(y0 - y) / width + (fixed_width / width) * n for y0, y, n in zip(fixed, leaves, z, strict=True)]
            log_density = sum(noise.log_prob(n).sum() - n.size * jnp.log(width) for n in z)
            # 1 in value, with the derivatives of the density relative to itself.
            return jnp.exp(log_density - jax.lax.stop_gradient(log_density)), values

        weights, values = jax.vmap(estimate)(jax.random.split(key, num_samples))
        baseline = value(fixed) if use_baseline else jax.tree.map(lambda y: jnp.zeros(y.shape[1:], y.dtype), values)

        def mean(y, base):
            weight = weights.astype(y.dtype).reshape(-1, *[1] * base.ndim)
            return (jnp.broadcast_to(weight, y.shape) * (y - base[None]) + base[None]).mean(0)

        return jax.tree.map(mean, values, baseline)

    return smooth


def _float(y: Any, dtype: Any) -> jax.Array:
    y = jnp.asarray(y)
    return y if jnp.issubdtype(y.dtype, jnp.inexact) else y.astype(dtype)
