"""Transformers for sequences of tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from .layers import Model, Params, check_floating, check_sizes, draw, widened


def transformer(
    vocabulary: int, width: int, depth: int, heads: int, length: int, *, dtype: DTypeLike = jnp.float32
) -> Model:
    """Builds a decoder-only transformer: from each token and those before it, the logits of the token that follows.

    `apply(params, tokens)` takes integers below `vocabulary`, of the shape `(..., n)` with n up to `length`, to
    `(..., n, vocabulary)` of the dtype of params; a token out of range makes those of its sequence NaN.

    Each of `depth` layers adds causal attention by `heads` heads, and then a network with `4 * width` hidden units
    (GELU), to what comes in, which both see normalized (pre-norm: https://arxiv.org/abs/2002.04745) by its root mean
    square (https://arxiv.org/abs/1910.07467). Positions are angles by which queries and keys are turned
    (https://arxiv.org/abs/2104.09864): they take no params, and what is learned at one place holds at all others.

    `params["embedding"]`, `(vocabulary, width)`, is also the output layer; `params["layers"]` holds `query`, `key`,
    `value`, `output` `(depth, width, width)`, `up` `(depth, width, 4 * width)` and `down` `(depth, 4 * width, width)`,
    stacked; and `params["norm"]["scale"]` is `(width,)`. The other norms have no scale, which the kernels after them
    contain; there are no biases. For Muon the kernels are `MuonDimensionNumbers(1, 2)`. They start normal with the
    standard deviation `1 / sqrt(inputs)`, `output` and `down` with that over `sqrt(2 * depth)`, and the embedding with
    0.02.

    Raises `ValueError` for sizes below 1 or a width that is no multiple of `2 * heads`, `TypeError` for a wrong type;
    `apply` raises them for tokens of a wrong shape or not of integers.
    """
    sizes = {"vocabulary": vocabulary, "width": width, "depth": depth, "heads": heads, "length": length}
    for name, size in sizes.items():
        check_sizes(f"({name},)", (size,))
    if width % (2 * heads):
        raise ValueError(
            f"width is {width}, expected a multiple of {2 * heads}, 2 * heads: each head has an even part of it"
        )
    dtype = check_floating(dtype)
    residual = 1 / math.sqrt(2 * depth)
    kernels = {
        "query": (width, width, 1.0),
        "key": (width, width, 1.0),
        "value": (width, width, 1.0),
        "output": (width, width, residual),
        "up": (width, 4 * width, 1.0),
        "down": (4 * width, width, residual),
    }

    def init(key: jax.Array) -> Params:
        blocks = draw(key, [vocabulary * width, *(depth * rows * cols for rows, cols, _ in kernels.values())], dtype)
        layers = {}
        for (name, (rows, cols, scale)), block in zip(kernels.items(), blocks[1:], strict=True):
            layers[name] = (scale / math.sqrt(rows) * block.reshape(depth, rows, cols)).astype(dtype)
        embedding = (0.02 * blocks[0].reshape(vocabulary, width)).astype(dtype)
        return {"embedding": embedding, "layers": layers, "norm": {"scale": jnp.ones(width, dtype)}}

    def apply(params: Params, tokens: ArrayLike) -> jax.Array:
        tokens = _check_tokens(tokens, length)
        *batch, n = tokens.shape
        embedding = params["embedding"]
        rows = embedding.at[tokens.reshape(math.prod(batch), n)]
        # Not as indexing does it by default, which takes the last row for what is out of range.
        x = rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        angles = _angles(n, width // heads)
        # On a CPU a step took 30 % less time unrolled, and compiling no more of it up to this depth.
        layers = jax.lax.scan(
            lambda x, layer: (_layer(layer, x, heads, angles), None), x, params["layers"], unroll=depth <= 12
        )
        x = _normalize(layers[0]) * params["norm"]["scale"].astype(x.dtype)[None, None]
        return (x @ embedding.T).reshape(*batch, n, vocabulary)

    return Model(init, apply)


def _layer(layer: Params, x: jax.Array, heads: int, angles: np.ndarray) -> jax.Array:
    batch, n, width = x.shape
    normed = _normalize(x)
    query, key, value = (
        (normed @ layer[name]).reshape(batch, n, heads, width // heads) for name in ("query", "key", "value")
    )
    # Not by jax.nn.dot_product_attention, which takes no float16 on a CPU and makes float32 of float64.
    scores = jnp.einsum("bqhd,bkhd->bhqk", _turn(query, angles), _turn(key, angles)) / math.sqrt(width // heads)
    weights = jax.nn.softmax(jnp.where(np.tri(n, dtype=bool)[None, None], scores, -jnp.inf))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(x.dtype), value)
    x = x + mixed.reshape(batch, n, width) @ layer["output"]
    return x + jax.nn.gelu(_normalize(x) @ layer["up"]) @ layer["down"]


def _normalize(x: jax.Array) -> jax.Array:
    """Divides by the root mean square over the last axis."""
    wide = x.astype(widened(x.dtype))
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def _angles(n: int, size: int) -> np.ndarray:
    """The angle at each of n positions for each pair among `size` features, `(n, size / 2)`."""
    return np.arange(n)[:, None] * 10_000.0 ** (-np.arange(0, size, 2) / size)


def _turn(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Turns each pair of features, one of the first half and one of the second, by its angle; x is `(b, n, h, d)`.

    Half precision, too coarse for angles, becomes float32.
    """
    wide = widened(x.dtype)
    cos, sin = (jnp.asarray(f(angles)[None, :, None], wide) for f in (np.cos, np.sin))
    a, b = jnp.split(x.astype(wide), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _check_tokens(tokens: ArrayLike, length: int) -> jax.Array:
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"tokens must be integers, got {tokens.dtype}: give the indices of the tokens, not one-hot rows"
        )
    if tokens.ndim == 0 or not 1 <= tokens.shape[-1] <= length:
        cause = "is this the length that the model was built for?"
        if tokens.ndim and tokens.shape[-1] == length + 1:
            cause = "the last of them is only to be predicted, tokens[..., :-1]"
        raise ValueError(f"tokens must have shape (..., n) with n from 1 to {length}, found {tokens.shape}: {cause}")
    return tokens
