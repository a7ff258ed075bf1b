"""Small models as pairs of pure functions: `init(key) -> params` and `apply(params, x)`.

Hidden layers start with He-normal kernels (https://arxiv.org/abs/1502.01852), which suit rectifiers
such as relu and gelu; the linear output layer, and hidden layers with a saturating or no
activation, start Glorot-normal (https://proceedings.mlr.press/v9/glorot10a.html). Biases start at
zero unless `bias_scale`, the standard deviation of their normal distribution, is positive.
"""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

Params = dict[str, dict[str, jax.Array]]
Activation = Callable[[jax.Array], jax.Array]

# Where these are steep they are close to linear: signals keep their scale without He's factor 2.
_UNRECTIFIED = (
    jnp.tanh,
    jax.nn.hard_sigmoid,
    jax.nn.hard_tanh,
    jax.nn.identity,
    jax.nn.sigmoid,
    jax.nn.soft_sign,
)


class Model(NamedTuple):
    """A model as two pure functions; unpacks as `init, apply = model`."""

    init: Callable[[jax.Array], Params]  # key -> params
    apply: Callable[[Params, ArrayLike], jax.Array]  # params, x -> outputs (logits)


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
    sizes = _sizes("sizes", sizes)
    if len(sizes) < 2:
        raise ValueError(f"sizes must hold at least the inputs and the outputs, got {sizes}")
    _check_activation(activation)
    _check_bias_scale(bias_scale)
    dtype = _floating(dtype)
    shapes = list(itertools.pairwise(sizes))

    def init(key: jax.Array) -> Params:
        named = {f"layer_{i}": shape for i, shape in enumerate(shapes)}
        return _init_layers(key, named, activation, dtype, bias_scale)

    def apply(params: Params, x: ArrayLike) -> jax.Array:
        x = _check_input(x, sizes[:1])
        for i in range(len(shapes) - 1):
            x = activation(_dense(params[f"layer_{i}"], x))
        return _dense(params[f"layer_{len(shapes) - 1}"], x)

    return Model(init, apply)


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
    input_shape = _sizes("input_shape", input_shape)
    if len(input_shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {input_shape}")
    channels = _sizes("channels", channels)
    (classes,) = _sizes("(classes,)", (classes,))
    _check_activation(activation)
    _check_bias_scale(bias_scale)
    dtype = _floating(dtype)
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
        return _init_layers(key, named, activation, dtype, bias_scale)

    def apply(params: Params, x: ArrayLike) -> jax.Array:
        x = _check_input(x, input_shape)
        batch = x.shape[:-3]
        x = x.reshape(math.prod(batch), *input_shape)
        for i in range(len(depths)):
            x = _max_pool(activation(_conv(params[f"conv_{i}"], x)))
        return _dense(params["dense"], x.reshape(*batch, features))

    return Model(init, apply)


def _init_layers(
    key: jax.Array,
    shapes: dict[str, tuple[int, ...]],
    activation: Activation,
    dtype: jnp.dtype,
    bias_scale: float,
) -> Params:
    """Draws the layers whose kernels have these shapes; the last of them is linear."""
    # One draw for all layers, since compiling each draw takes longer than the rest of `init`; and
    # half precision has too few values near 0 and in the tails to draw from a normal well.
    sizes = [math.prod(shape) + shape[-1] for shape in shapes.values()]
    wide = dtype if dtype == jnp.float64 else jnp.float32
    draws = jax.random.normal(key, (sum(sizes),), wide)

    params: Params = {}
    blocks = jnp.split(draws, list(itertools.accumulate(sizes[:-1])))
    for (name, shape), block in zip(shapes.items(), blocks, strict=True):
        kernel, bias = jnp.split(block, [math.prod(shape)])
        kernel = _scale(shape, activation, name == [*shapes][-1]) * kernel.reshape(shape)
        bias = bias_scale * bias if bias_scale else jnp.zeros(shape[-1], wide)  # 0 * -1 is -0
        params[name] = {"kernel": kernel.astype(dtype), "bias": bias.astype(dtype)}
    return params


def _scale(shape: tuple[int, ...], activation: Activation, last: bool) -> float:
    """Returns the standard deviation of a kernel."""
    fan_in, fan_out = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
    if last or activation in _UNRECTIFIED:
        return math.sqrt(2 / (fan_in + fan_out))
    return math.sqrt(2 / fan_in)


def _dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    kernel, bias = layer["kernel"], layer["bias"]
    return x.astype(kernel.dtype) @ kernel + _row(bias.astype(kernel.dtype), x.ndim)


def _conv(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    kernel, bias = layer["kernel"], layer["bias"]
    layout = ("NHWC", "HWIO", "NHWC")
    x = x.astype(kernel.dtype)
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return x + _row(bias.astype(kernel.dtype), x.ndim)


def _row(bias: jax.Array, ndim: int) -> jax.Array:
    """Adds leading axes, since rank promotion may be forbidden."""
    return jnp.expand_dims(bias, tuple(range(ndim - 1)))


def _max_pool(x: jax.Array) -> jax.Array:
    """Takes the largest of each 2x2 square."""
    # By reshaping: forward and backward, `reduce_window` took 3 times as long on a CPU.
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def _check_input(x: ArrayLike, expected: tuple[int, ...]) -> jax.Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating point, got {x.dtype}: cast with x.astype(jnp.float32)")
    if x.shape[-len(expected) :] != expected:
        size = math.prod(expected)
        cause = "is this the input that the model was built for?"
        if expected[-1] == 1 and x.shape[x.ndim - len(expected) + 1 :] == expected[:-1]:
            cause = "the last axis is missing, x[..., None]"
        elif any(math.prod(x.shape[i:]) == size for i in range(x.ndim)):
            cause = f"reshape each example to {expected}"
        wanted = ", ".join(map(str, ("...", *expected)))
        raise ValueError(f"x must have shape ({wanted}), found {x.shape}: {cause}")
    return x


def _sizes(name: str, values: Sequence[int]) -> tuple[int, ...]:
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError
        sizes = tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of ints, got {values!r}") from None
    if min(sizes, default=1) < 1:
        raise ValueError(f"{name} must be at least 1, got {values!r}")
    return sizes


def _check_activation(activation: Activation) -> None:
    if not callable(activation):
        raise TypeError(f"activation must be a function such as jax.nn.relu, got {activation!r}")


def _check_bias_scale(bias_scale: float) -> None:
    if not 0 <= bias_scale < math.inf:
        raise ValueError(f"bias_scale must be at least 0 and finite, got {bias_scale}")


def _floating(dtype: DTypeLike) -> jnp.dtype:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating-point type, got {dtype!r}")
    return jnp.dtype(dtype)
