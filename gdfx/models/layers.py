"""What the models share: their form, initial params and checks."""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

Params = dict[str, Any]
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


def init_layers(
    key: jax.Array,
    shapes: dict[str, tuple[int, ...]],
    activation: Activation,
    dtype: jnp.dtype,
    bias_scale: float,
) -> Params:
    """Draws the layers whose kernels have these shapes; the last of them is linear."""
    blocks = draw(key, [math.prod(shape) + shape[-1] for shape in shapes.values()], dtype)
    params: Params = {}
    for (name, shape), block in zip(shapes.items(), blocks, strict=True):
        kernel, bias = jnp.split(block, [math.prod(shape)])
        kernel = _scale(shape, activation, name == [*shapes][-1]) * kernel.reshape(shape)
        bias = bias_scale * bias if bias_scale else jnp.zeros_like(bias)  # 0 * -1 is -0
        params[name] = {"kernel": kernel.astype(dtype), "bias": bias.astype(dtype)}
    return params


def draw(key: jax.Array, sizes: Sequence[int], dtype: jnp.dtype) -> list[jax.Array]:
    """Vectors of these sizes from the standard normal distribution: of float32 if params are of half precision."""
    # One draw for all, since compiling each takes longer than the rest of `init`; and half precision has too few values
    # near 0 and in the tails to draw from a normal well.
    return jnp.split(jax.random.normal(key, (sum(sizes),), widened(dtype)), list(itertools.accumulate(sizes[:-1])))


def widened(dtype: jnp.dtype) -> jnp.dtype:
    """float32 in place of half precision."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _scale(shape: tuple[int, ...], activation: Activation, last: bool) -> float:
    """Returns the standard deviation of a kernel."""
    fan_in, fan_out = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
    if last or activation in _UNRECTIFIED:
        return math.sqrt(2 / (fan_in + fan_out))
    return math.sqrt(2 / fan_in)


def dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A dense layer, without an activation."""
    kernel, bias = layer["kernel"], layer["bias"]
    return x.astype(kernel.dtype) @ kernel + row(bias.astype(kernel.dtype), x.ndim)


def row(bias: jax.Array, ndim: int) -> jax.Array:
    """Adds leading axes, since rank promotion may be forbidden."""
    return jnp.expand_dims(bias, tuple(range(ndim - 1)))


def check_input(x: ArrayLike, expected: tuple[int, ...]) -> jax.Array:
    """`x`, whose last axes must be `expected`, as an array."""
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


def check_sizes(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """The values, which must be integers of at least 1, as a tuple."""
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError
        sizes = tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of ints, got {values!r}") from None
    if min(sizes, default=1) < 1:
        raise ValueError(f"{name} must be at least 1, got {values!r}")
    return sizes


def check_activation(activation: Activation) -> None:
    """Raises `TypeError` unless it can be called."""
    if not callable(activation):
        raise TypeError(f"activation must be a function such as jax.nn.relu, got {activation!r}")


def check_bias_scale(bias_scale: float) -> None:
    """Raises `ValueError` unless it is a standard deviation."""
    if not 0 <= bias_scale < math.inf:
        raise ValueError(f"bias_scale must be at least 0 and finite, got {bias_scale}")


def check_floating(dtype: DTypeLike) -> jnp.dtype:
    """`dtype`, which must be of floating point, in one form."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating-point type, got {dtype!r}")
    return jnp.dtype(dtype)
