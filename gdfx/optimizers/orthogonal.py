"""Matrices made orthogonal by Newton-Schulz iterations, those that are alike together: a link of Muon's relatives."""

import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp

from ..core import Stateless
from ..newton_schulz import PRESETS, Preconditioning, check_coefficients, coefficient_table, orthogonalize
from ..pytrees import NonNegative, pytree, static
from ..tree import cast_like, widen
from .factored_rms import check_size
from .matrix_layout import DimensionNumbers, matrix_layouts
from .matrix_stacks import in_stacks, map_matrices_together


@pytree
class orthogonalize_matrices(Stateless):
    """Brings the singular values of each matrix near 1; other leaves stay.

    So it makes of any chain what Muon makes of momentum. The arguments are those of `scale_by_muon`.
    """

    ns_coeffs: Any = PRESETS["standard"]
    ns_steps: int = static(default=5)
    eps: NonNegative = 1e-8
    preconditioning: Preconditioning = static(default="frobenius", kw_only=True)
    weight_dimension_numbers: DimensionNumbers = static(default=None, kw_only=True)
    ns_dtype: Any = static(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_muon(self)

    def apply(self, updates, params):
        layouts = matrix_layouts(self.weight_dimension_numbers, updates)
        of_matrices = functools.partial(in_stacks, orthogonal, *newton_schulz_of(self))
        return cast_like(map_matrices_together(of_matrices, layouts, widen(updates)), updates)


def newton_schulz_of(now: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What `orthogonal` takes before the matrices, of the fields that `now` shares with `orthogonalize_matrices`."""
    return (now.preconditioning, now.ns_dtype), (coefficient_table(now.ns_coeffs, now.ns_steps), jnp.asarray(now.eps))


def orthogonal(static: tuple[Any, ...], scalars: tuple[Any, ...], row: tuple[jax.Array]) -> jax.Array:
    """The matrices orthogonal, for `in_stacks`."""
    preconditioning, dtype = static
    coefficients, eps = scalars
    return orthogonalize(*row, coefficients, eps=eps, preconditioning=preconditioning, dtype=dtype)


def check_muon(transform: Any) -> None:
    """Raises unless the fields that `muon` and its relatives share are valid; replaces a preset by its numbers."""
    check_size(transform, "ns_steps")
    object.__setattr__(transform, "ns_coeffs", check_coefficients(transform.ns_coeffs, transform.ns_steps))
    name = type(transform).__name__
    if transform.preconditioning not in get_args(Preconditioning):
        expected = f"expected one of {get_args(Preconditioning)}"
        raise ValueError(f"{name}: preconditioning is {transform.preconditioning!r}, {expected}")
    if transform.ns_dtype is not None and not jnp.issubdtype(transform.ns_dtype, jnp.inexact):
        raise TypeError(f"{name}: ns_dtype is {transform.ns_dtype}, expected a floating-point dtype")
