"""Convolutional networks for images."""

import itertools
import math
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
    row,
)


def cnn(
    input_shape: Sequence[int],
    channels: Sequence[int] = (16, 32),
    classes: int = 10,
    activation: Activation = jax.nn.relu,
    *,
    dtype: DTypeLike = jnp.float32,
    bias_scale: float = 0.0,
) -> Model:
    """Builds a classifier of images: convolutions, each with `activation` and pooling, then dense.

    `input_shape` is `(height, width, channels)`. Each entry of `channels` adds a 3x3 convolution
    that keeps height and width, and a 2x2 max-pool that halves them (an odd last row or column is
    dropped). `params["conv_0"]["kernel"]` is `(3, 3, in, out)`, `params["dense"]["kernel"]`
    `(features, classes)`, each beside its `["bias"]`, of `dtype`. `apply(params, x)` casts x to the
    dtype of params, and takes its shape `(..., *input_shape)` to `(..., classes)`.

    Raises `ValueError` for sizes below 1 or an image too small to be halved for each entry of
    `channels`, `TypeError` for a wrong type; `apply` raises them for an x of the wrong shape or not
    of floating point.
    """
    input_shape = check_sizes("input_shape", input_shape)
    if len(input_shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {input_shape}")
    channels = check_sizes("channels", channels)
    (classes,) = check_sizes("(classes,)", (classes,))
    check_activation(activation)
    check_bias_scale(bias_scale)
    dtype = check_floating(dtype)
    height, width = (size >> len(channels) for size in input_shape[:2])
    if height < 1 or width < 1:
        raise ValueError(
            f"input_shape {input_shape} is too small to be halved {len(channels)} times, once for "
            f"each of channels {channels}"
        )
    depths = list(itertools.pairwise((input_shape[-1], *channels)))
    features = height * width * (input_shape[-1], *channels)[-1]

    def init(key: jax.Array) -> Params:
        named: dict[str, tuple[int, ...]] = {}
        for i, depth in enumerate(depths):
            named[f"conv_{i}"] = (3, 3, *depth)
        named["dense"] = (features, classes)
        return init_layers(key, named, activation, dtype, bias_scale)

    def apply(params: Params, x: ArrayLike) -> jax.Array:
        x = check_input(x, input_shape)
        batch = x.shape[:-3]
        x = x.reshape(math.prod(batch), *input_shape)
        for i in range(len(depths)):
            x = _max_pool(activation(_conv(params[f"conv_{i}"], x)))
        return dense(params["dense"], x.reshape(*batch, features))

    return Model(init, apply)


def _conv(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    kernel, bias = layer["kernel"], layer["bias"]
    layout = ("NHWC", "HWIO", "NHWC")
    x = x.astype(kernel.dtype)
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return x + row(bias.astype(kernel.dtype), x.ndim)


def _max_pool(x: jax.Array) -> jax.Array:
    """Takes the largest of each 2x2 square."""
    # By reshaping: forward and backward, `reduce_window` took 3 times as long on a CPU.
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
