"""Multi-layer perceptrons."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from .layers import (
    Activation,
    Model,
    Params,
    check_activation,
    check_bias_scale,
    check_floating,
    check_input,
    check_sizes,
    dense,
    init_layers,
)


def mlp(
    sizes: Sequence[int],
    activation: Activation = jax.nn.relu,
    *,
    dtype: DTypeLike = jnp.float32,
    bias_scale: float = 0.0,
) -> Model:
    """Builds a multi-layer perceptron with `sizes[0]` inputs, `sizes[-1]` outputs.

    `params["layer_0"]["kernel"]` is `(sizes[0], sizes[1])` and `["bias"]` is `(sizes[1],)`, and so
    on, of `dtype`. `activation` follows every layer but the last. `apply(params, x)` casts x to the
    dtype of params, and takes its shape `(..., sizes[0])` to `(..., sizes[-1])`.

    Raises `ValueError` for sizes that are fewer than two or below 1, `TypeError` for a wrong type;
    `apply` raises them for an x of the wrong shape or not of floating point.
    """
    sizes = check_sizes("sizes", sizes)
    if len(sizes) < 2:
        raise ValueError(f"sizes must hold at least the inputs and the outputs, got {sizes}")
    check_activation(activation)
    check_bias_scale(bias_scale)
    dtype = check_floating(dtype)
    shapes = list(itertools.pairwise(sizes))

    def init(key: jax.Array) -> Params:
        named = {f"layer_{i}": shape for i, shape in enumerate(shapes)}
        return init_layers(key, named, activation, dtype, bias_scale)

    def apply(params: Params, x: ArrayLike) -> jax.Array:
        x = check_input(x, sizes[:1])
        for i in range(len(shapes) - 1):
            x = activation(dense(params[f"layer_{i}"], x))
        return dense(params[f"layer_{len(shapes) - 1}"], x)

    return Model(init, apply)
