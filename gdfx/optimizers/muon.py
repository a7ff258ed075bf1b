"""Muon: https://kellerjordan.github.io/posts/muon/; at scale: https://arxiv.org/abs/2502.16982."""

import functools
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment
from ..newton_schulz import PRESETS, Preconditioning
from ..pytrees import Decay, NonNegative, pytree, static
from ..transforms.decay import Mask
from ..tree import cast_like, debias, leafwise, widen, zeros_like
from .matrix_groups import beside_adam
from .matrix_layout import DimensionNumbers, only_matrices
from .matrix_stacks import in_stacks, map_matrices_together
from .orthogonal import check_muon, newton_schulz_of, orthogonal


@pytree
class MuonState:
    """The state of `scale_by_muon`."""

    count: jax.Array  # int32 scalar: the updates made so far
    mu: Tree  # first moment of the gradients, shaped like params


@pytree
class scale_by_muon(GradientTransformation):
    """Orthogonalizes the debiased momentum of each matrix, which brings its singular values near 1.

    `ns_coeffs` are the coefficients of the Newton-Schulz iterations, see `gdfx.newton_schulz`: three numbers for all
    `ns_steps` iterations, three for each, of which there may be fewer, or the name of a preset, `"standard"`,
    `"jordan"`, `"dion"` or `"polar_express"`. They are data: others compile nothing, and `grad` reaches them.
    `adaptive` multiplies a leaf by the nuclear norm of its momentum, about (https://arxiv.org/abs/2409.20325).
    `preconditioning` and `eps` are those of `gdfx.newton_schulz.orthogonalize`.

    With `sign` it is the sign of the momentum that is orthogonalized.

    `mu_dtype` is the dtype of `mu`, `ns_dtype`, such as bfloat16, that of the iterations; the default is that of the
    params, at least float32. Which leaves are matrices, or stacks of them, `weight_dimension_numbers` tells, by default
    those of two axes: see `MuonDimensionNumbers`. Other leaves raise `ValueError`: `muon` gives them to Adam.
    """

    ns_coeffs: Any = PRESETS["standard"]
    ns_steps: int = static(default=5)
    beta: Decay = 0.95
    eps: NonNegative = 1e-8
    mu_dtype: Any = static(default=None)
    nesterov: bool = static(default=True, kw_only=True)
    adaptive: bool = static(default=False, kw_only=True)
    preconditioning: Preconditioning = static(default="frobenius", kw_only=True)
    weight_dimension_numbers: DimensionNumbers = static(default=None, kw_only=True)
    ns_dtype: Any = static(default=None, kw_only=True)
    sign: bool = static(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_muon(self)

    def init(self, params):
        mu = zeros_like(params, self.mu_dtype)
        only_matrices(self, params)
        return MuonState(jnp.zeros((), jnp.int32), mu)

    def update(self, updates, state, params=None, **extra):
        now, t, layouts = self.at(state.count), increment(state.count), only_matrices(self, updates)
        g = widen(updates)
        _, mu = leafwise(_average, (now.beta,), g, widen(state.mu))
        settings, numbers = newton_schulz_of(now)
        static, scalars = (self.nesterov, self.sign, self.adaptive, settings), (jnp.asarray(now.beta), t, numbers)
        new = map_matrices_together(functools.partial(in_stacks, _direction, static, scalars), layouts, g, mu)
        return cast_like(new, updates), MuonState(t, cast_like(mu, state.mu))


def _average(beta, g, mu):
    return None, beta * mu + (1 - beta) * g


def _direction(static, scalars, row):
    # For each stack, as the same for each leaf would be as many programs more for XLA to compile.
    nesterov, sign, adaptive, settings = static
    beta, t, numbers = scalars
    g, mu = row
    real = jnp.promote_types(g.real.dtype, mu.real.dtype)
    beta, t = beta.astype(real), t.astype(real)
    m = mu / debias(beta, t)
    if nesterov:
        m = beta * mu / debias(beta, t + 1) + (1 - beta) * g / debias(beta, t)
    if sign:
        m = jnp.sign(m)
    new = orthogonal(settings, numbers, (m.astype(g.dtype),))
    return jnp.sum((jnp.conj(m) * new).real).astype(new.real.dtype) * new if adaptive else new


@pytree
class muon(Optimizer):
    """Muon for matrices, and AdamW for the other leaves; see `scale_by_muon` and `scale_by_shape`.

    By default leaves of two axes are matrices; `muon_weight_dimension_numbers` tells others, such as kernels of
    convolutions and the heads of fused kernels, and is None for those that are Adam's. **Embeddings and output layers
    have two axes too, and are better given to AdamW**: `partition({"matrix": muon(0.02), "rest": adamw(1e-3)})` does so
    by their names, see `gdfx.roles`.

    `weight_decay` is decoupled and for matrices, of which `weight_decay_mask` says which decay, by default all;
    `adam_weight_decay` for the other leaves. Typical learning rates are 0.02, and with `consistent_rms=0.2` those of
    AdamW, 1e-4 to 1e-2; for this and `spectral` see `scale_by_shape`. `adam_learning_rate` is that of the other leaves,
    by default `learning_rate`.
    """

    learning_rate: NonNegative
    ns_coeffs: Any = PRESETS["standard"]
    ns_steps: int = static(default=5)
    beta: Decay = 0.95
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0
    weight_decay_mask: Mask = static(default=None)
    mu_dtype: Any = static(default=None)
    nesterov: bool = static(default=True, kw_only=True)
    adaptive: bool = static(default=False, kw_only=True)
    preconditioning: Preconditioning = static(default="frobenius", kw_only=True)
    adam_b1: Decay = field(default=0.9, kw_only=True)
    adam_b2: Decay = field(default=0.999, kw_only=True)
    adam_eps_root: NonNegative = field(default=0.0, kw_only=True)
    adam_weight_decay: NonNegative = field(default=0.0, kw_only=True)
    adam_learning_rate: NonNegative | None = field(default=None, kw_only=True)
    muon_weight_dimension_numbers: DimensionNumbers = static(default=None, kw_only=True)
    consistent_rms: NonNegative | None = field(default=None, kw_only=True)
    ns_dtype: Any = static(default=None, kw_only=True)
    spectral: bool = static(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_muon(self)

    def links(self):
        return (beside_adam(self, orthogonal_momentum(self, adaptive=self.adaptive), spectral=self.spectral),)


def orthogonal_momentum(opt: Any, **settings: Any) -> scale_by_muon:
    """The link with the arguments of `muon` that `opt` has, and `settings`."""
    return scale_by_muon(
        opt.ns_coeffs,
        opt.ns_steps,
        opt.beta,
        opt.eps,
        opt.mu_dtype,
        nesterov=opt.nesterov,
        preconditioning=opt.preconditioning,
        weight_dimension_numbers=opt.muon_weight_dimension_numbers,
        ns_dtype=opt.ns_dtype,
        **settings,
    )
