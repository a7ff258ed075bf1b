"""GaLore: https://arxiv.org/abs/2403.03507."""

from typing import Any

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, as_transformation, increment
from ..pytrees import Interval, NonNegative, ScalarOrSchedule, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import scale_by_learning_rate
from ..tree import cast_like, leafwise, widen, zeros_like
from .adam import scale_by_adam
from .factored_rms import check_size, check_slots
from .matrix_layout import DimensionNumbers, MatrixLayout, map_matrices, matrix_layouts


@pytree
class ScaleByGaLoreState:
    """The state of `scale_by_galore`."""

    count: jax.Array  # int32 scalar: the updates made so far
    base_optimizer_state: Tree  # of params in which the shorter side of each matrix, now its rows, is `rank`
    projector: Tree  # for each matrix an orthonormal basis, [shorter side, rank]; None for leaves left whole


@pytree
class scale_by_galore(GradientTransformation):
    """Runs `base_optimizer` on gradients whose matrices are projected to `rank` dimensions, and projects back.

    The shorter side of a matrix is projected, to the span of the gradient's first singular vectors on that side, taken
    in the first and then every `update_proj_gap`-th step (under `vmap` they are computed in every step). The base
    optimizer's state is carried on; the signs of the vectors are chosen to go with the last ones. `scale` multiplies
    the updates of projected leaves. Derivatives take the projection for a constant.

    By default leaves of two axes are projected. `weight_dimension_numbers` tells how others are matrices: a
    `GaLoreDimensionNumbers` for all leaves of two or more axes, a pytree of them with None for leaves to be left whole,
    or a function from the params to one. `base_optimizer` is a link, by default `scale_by_adam()`, that sees neither
    the params nor the loss as a function of them: one that needs those, or makes steps, raises `ValueError`.
    """

    rank: int = static(default=128)
    update_proj_gap: Interval = 200
    scale: ScalarOrSchedule = 1.0
    base_optimizer: Any = None
    weight_dimension_numbers: DimensionNumbers = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        _check(self)

    @property
    def needs(self):
        return self._base.needs

    @property
    def _base(self) -> GradientTransformation:
        return scale_by_adam() if self.base_optimizer is None else self.base_optimizer

    def _layouts(self, tree: Tree) -> list[MatrixLayout | None]:
        return matrix_layouts(self.weight_dimension_numbers, tree, wide=True)

    def _shapes(self, layouts: list[MatrixLayout | None]) -> list[tuple[int, ...] | None]:
        return [x and (*x.matrix[:-1], min(self.rank, x.matrix[-2])) for x in layouts]

    def init(self, params):
        slots, layouts = jax.eval_shape(zeros_like, params), self._layouts(params)
        leaves, structure = jax.tree.flatten(slots)
        bases = [shape and jnp.zeros(shape, x.dtype) for x, shape in zip(leaves, self._shapes(layouts), strict=True)]
        projector = structure.unflatten(bases)
        low, _ = jax.eval_shape(self._to_low_rank, jnp.zeros((), bool), slots, projector)
        base_state = self._base.init(jax.tree.map(jnp.zeros_like, low))
        return ScaleByGaLoreState(jnp.zeros((), jnp.int32), base_state, projector)

    def update(self, updates, state, params=None, **extra):
        now, layouts = self.at(state.count), self._layouts(updates)
        check_slots(updates, state.projector, self._shapes(layouts))
        refresh = state.count % jnp.round(now.update_proj_gap).astype(jnp.int32) == 0
        new, projector = self._to_low_rank(refresh, updates, state.projector)
        new, base_state = self._base.update(new, state.base_optimizer_state, None, **extra)
        new, _ = leafwise(_project_back, (now.scale,), new, other=(projector,))
        new = map_matrices(MatrixLayout.to_leaf, layouts, new)
        return cast_like(new, updates), ScaleByGaLoreState(increment(state.count), base_state, projector)

    def _to_low_rank(self, refresh: jax.Array, updates: Tree, projector: Tree) -> tuple[Tree, Tree]:
        matrices = map_matrices(MatrixLayout.to_matrix, self._layouts(updates), widen(updates))
        return leafwise(project, (refresh,), matrices, other=(projector,))


def project(refresh, g, basis):
    """The matrices `g` in a basis, a new one of their singular vectors if `refresh`; whole ones with None."""
    if basis is None:
        return g, None
    basis = jax.lax.cond(refresh, _new_basis, lambda g, basis: basis, g, basis)
    return jnp.conj(jnp.swapaxes(basis, -1, -2)) @ g, basis


def _project_back(scale, u, basis):
    return (u, None) if basis is None else (scale * (basis @ u), basis)


def _new_basis(g, old):
    spec = jax.typeof(g).sharding.spec
    whole = jax.sharding.reshard(g, jax.P(*spec[:-2], None, None)) if any(spec[-2:]) else g  # svd takes no other
    vectors, _, _ = jnp.linalg.svd(jax.lax.stop_gradient(whole), full_matrices=False)
    new = vectors[..., : old.shape[-1]]
    sign = jnp.sign(jnp.sum(jnp.conj(new) * old, axis=-2, keepdims=True))  # of a complex number, its phase
    return new * jnp.where(sign == 0, 1, sign)


def _check(transform: Any) -> None:
    check_size(transform, "rank")
    if transform.base_optimizer is None:
        return
    base = as_transformation(transform.base_optimizer)
    object.__setattr__(transform, "base_optimizer", base)
    where = f"{type(transform).__name__}: base_optimizer is {base}"
    if full := base.needs & {"params", "grad", "value_fn"}:
        raise ValueError(f"{where}, which needs {', '.join(sorted(full))}: it gets projections of the gradient only")
    if base.makes_steps:
        raise ValueError(f"{where}, which makes steps: expected a link without a learning rate, as scale_by_adam()")


@pytree
class galore(Optimizer):
    """GaLore: Adam, or another `base_optimizer`, in a low-rank space for matrices; see `scale_by_galore`.

    Weight decay is decoupled; `mask` says which leaves decay, by default all. Typical learning rates are those of the
    base optimizer, for Adam 1e-3, divided by `scale`, which is 0.25 in the paper.
    """

    learning_rate: NonNegative
    rank: int = static(default=128)
    update_proj_gap: Interval = 200
    scale: ScalarOrSchedule = 1.0
    base_optimizer: Any = None
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)
    weight_dimension_numbers: DimensionNumbers = static(default=None)

    def __post_init__(self):
        super().__post_init__()
        _check(self)

    def links(self):
        projected = scale_by_galore(
            self.rank, self.update_proj_gap, self.scale, self.base_optimizer, self.weight_dimension_numbers
        )
        decay = add_decayed_weights(self.weight_decay, self.mask)
        return projected, decay, scale_by_learning_rate(self.learning_rate)
