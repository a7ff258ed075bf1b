"""APOLLO: https://arxiv.org/abs/2412.05270."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment
from ..pytrees import Decay, Interval, Key, NonNegative, pytree, static
from ..transforms.basic import whole
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.noise import key_for_step
from ..transforms.scale import scale_by_learning_rate
from ..tree import abs2, cast_like, debias, leafwise, sqrt, widen, zeros_like
from .factored_rms import check_size, check_slots
from .matrix_layout import DimensionNumbers, MatrixLayout, map_matrices, matrix_layouts

ScaleType: TypeAlias = Literal["channel", "tensor"]
"""Of APOLLO's factors: one for each entry of the longer side of a matrix, or one for all of it."""


@pytree
class ScaleByApolloState:
    """The state of `scale_by_apollo`."""

    count: jax.Array  # int32 scalar: the updates made so far
    mu: Tree  # first moment of the gradients, in which the shorter side of each matrix, now its rows, is at most `rank`
    nu: Tree  # second moment, of the same shape
    norm: Tree  # of the last update of each matrix, by which the next may grow; None for leaves left whole


@pytree
class scale_by_apollo(GradientTransformation):
    """Multiplies the gradients of matrices by how much Adam changes lengths in a random space of `rank` dimensions.

    The shorter side of a matrix is projected by a matrix of random numbers, `sampler(key, shape, dtype) / sqrt(rank)`,
    drawn anew at every `update_proj_gap`-th step from `key`; the state does not hold it. With `scale_type="channel"`
    each entry of the longer side has its factor, with `"tensor"` all share one; the root of `scale` multiplies them.
    From step to step the norm of a matrix's update grows to at most `max_growth` times its last; with None it is not
    limited. The bias correction of Adam comes after that.

    By default leaves of two axes are projected; `weight_dimension_numbers` is that of `scale_by_galore`. Other leaves
    get Adam's update.
    """

    rank: int = static(default=256)
    update_proj_gap: Interval = 200
    scale: NonNegative = 1.0
    scale_type: ScaleType = static(default="channel")
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-6
    max_growth: NonNegative | None = 1.01
    key: Key = 0
    sampler: Callable[..., Any] = static(default=jax.random.normal)
    weight_dimension_numbers: DimensionNumbers = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        _check(self)

    def _layouts(self, tree: Tree) -> list[MatrixLayout | None]:
        return matrix_layouts(self.weight_dimension_numbers, tree, wide=True)

    def init(self, params):
        count, slots, layouts = jnp.zeros((), jnp.int32), zeros_like(params), self._layouts(params)
        low = jax.eval_shape(lambda tree: self.at(count)._low_rank(count, tree)[1], slots)
        mu = jax.tree.map(jnp.zeros_like, low)
        nu = zeros_like(mu, real=True)
        leaves, structure = jax.tree.flatten(nu)
        norm = [y and jnp.zeros(y.matrix[:-2], x.dtype) for x, y in zip(leaves, layouts, strict=True)]
        return ScaleByApolloState(count, mu, nu, structure.unflatten(norm))

    def update(self, updates, state, params=None, **extra):
        now, t, layouts = self.at(state.count), increment(state.count), self._layouts(updates)
        check_slots(updates, state.mu, low_shapes(self.rank, layouts, updates))
        new, low = now._low_rank(state.count, updates)
        new, _, *slots = leafwise(_apollo, (now, t), new, other=(low, state.mu, state.nu, state.norm))
        return cast_like(map_matrices(MatrixLayout.to_leaf, layouts, new), updates), ScaleByApolloState(t, *slots)

    def _low_rank(self, count: jax.Array, tree: Tree) -> tuple[Tree, Tree]:
        """The leaves, as matrices where they are, and these projected."""
        layouts = self._layouts(tree)
        matrices, structure = jax.tree.flatten(map_matrices(MatrixLayout.to_matrix, layouts, widen(tree)))
        key = key_for_step(self, count // whole(self.update_proj_gap), {})
        draw = lambda i, rank, rows, dtype: self.sampler(jax.random.fold_in(key, i), (rank, rows), dtype) / rank**0.5
        projections = [
            y and draw(i, min(self.rank, y.matrix[-2]), y.matrix[-2], x.real.dtype)
            for i, (x, y) in enumerate(zip(matrices, layouts, strict=True))
        ]
        matrices = structure.unflatten(matrices)
        return matrices, leafwise(_project, (), matrices, other=(structure.unflatten(projections),))[0]


def low_shapes(rank: int, layouts: list[MatrixLayout | None], tree: Tree) -> list[tuple[int, ...]]:
    """The shapes of the leaves where matrices are projected to `rank` rows."""
    shape = lambda x, y: (*y.matrix[:-2], min(rank, y.matrix[-2]), y.matrix[-1]) if y else jnp.shape(x)
    return list(map(shape, jax.tree.leaves(tree), layouts))


def _project(g, projection):
    return (g, None) if projection is None else (projection @ g, projection)


def _apollo(now, t, g, low, mu, nu, norm):
    rate, n, mu, nu = low_rank_adam(now, t, low, mu, nu)
    if norm is None:
        return rate * n, low, mu, nu, None
    axes = -2 if now.scale_type == "channel" else (-2, -1)
    factors = sqrt(now.scale) * length(n, axes) / (length(low, axes) + 1e-8)
    u, norm = limit_growth(now.max_growth, factors * g, norm)
    return rate * u, low, mu, nu, norm


def low_rank_adam(now, t, g, mu, nu):
    """Adam's bias correction, its direction without that, and the moments; `eps` is added after debiasing."""
    mu = now.b1 * mu + (1 - now.b1) * g
    nu = now.b2 * nu + (1 - now.b2) * abs2(g)
    root = sqrt(debias(now.b2, t))
    return root / debias(now.b1, t), mu / (sqrt(nu) + now.eps * root), mu, nu


def length(x, axes):
    """The norm over `axes`, which stay."""
    return sqrt(jnp.sum(abs2(x), axis=axes, keepdims=True))


def limit_growth(max_growth, u, last):
    """The matrices `u`, of a norm of at most `max_growth` times the `last`, if that is not 0, and their norms."""
    norm = length(u, (-2, -1))
    if max_growth is None:
        return u, norm[..., 0, 0]
    last = last[..., None, None]
    growth = jnp.where(last > 0, norm / (last + 1e-8), max_growth)
    factor = max_growth / jnp.maximum(growth, max_growth)
    return factor * u, (factor * norm)[..., 0, 0]


def _check(transform: Any) -> None:
    check_size(transform, "rank")
    name = type(transform).__name__
    if transform.key is None:
        raise TypeError(f"{name}: key is None, expected an int or a key: the projection is the same in many steps")
    if transform.scale_type not in get_args(ScaleType):
        raise ValueError(f"{name}: scale_type is {transform.scale_type!r}, expected one of {get_args(ScaleType)}")


@pytree
class apollo(Optimizer):
    """APOLLO: SGD whose rates for the rows of a matrix are Adam's, from moments of `rank` rows; see `scale_by_apollo`.

    Weight decay is decoupled; `mask` says which leaves decay, by default all. Typical learning rates are those of Adam,
    up to 1e-2.
    """

    learning_rate: NonNegative
    rank: int = static(default=256)
    update_proj_gap: Interval = 200
    scale: NonNegative = 1.0
    scale_type: ScaleType = static(default="channel")
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-6
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)
    max_growth: NonNegative | None = 1.01
    key: Key = 0
    sampler: Callable[..., Any] = static(default=jax.random.normal)
    weight_dimension_numbers: DimensionNumbers = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        _check(self)

    def links(self):
        scaled = scale_by_apollo(
            self.rank,
            self.update_proj_gap,
            self.scale,
            self.scale_type,
            self.b1,
            self.b2,
            self.eps,
            self.max_growth,
            self.key,
            self.sampler,
            self.weight_dimension_numbers,
        )
        decay = add_decayed_weights(self.weight_decay, self.mask)
        return scaled, decay, scale_by_learning_rate(self.learning_rate)
