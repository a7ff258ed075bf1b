"""For those who write transforms of their own: the invariants of gdfx, checked one by one.

`check_transformation(my_transform)` raises `InvariantError` for the first invariant that does not hold: it says which,
at which leaf, and what was found. `INVARIANTS` lists them all.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from .conformance import computing, values
from .conformance.compare import retrace_cause, trees_close as trees_close
from .conformance.subject import ExtraArguments, Subject
from .core import Tree, as_transformation


class InvariantError(AssertionError):
    """A transform breaks `invariant`, one of the names in `INVARIANTS`."""

    def __init__(self, invariant: str, message: str):
        super().__init__(message)
        self.invariant = invariant

    def __reduce__(self):
        return type(self), (self.invariant, str(self))


def example_params(dtype: Any = jnp.float32) -> dict[str, Any]:
    """A small tree with a matrix, a vector, a scalar, a leaf without elements and a `None`."""
    values = jnp.linspace(-1.0, 1.5, 16).astype(dtype)
    matrix, vector, scalar = values[:12].reshape(4, 3), values[12:15], values[15]
    return {
        "empty": jnp.zeros((0, 2), dtype),
        "matrix": matrix,
        "none": None,
        "scalar": scalar,
        "vector": vector,
    }


INVARIANTS: dict[str, Callable[[Subject], None]] = {
    "init_avals": computing.init_avals,
    "update_avals": computing.update_avals,
    "state_avals": computing.state_avals,
    "no_aliases": computing.no_aliases,
    "donation": computing.donation,
    "eager_is_jit": computing.eager_is_jit,
    "one_trace": computing.one_trace,
    "vmap_is_loop": computing.vmap_is_loop,
    "finite_at_zero": computing.finite_at_zero,
    "finite_gradients": computing.finite_gradients,
    "dtypes": computing.dtypes,
    "float32_moments": computing.float32_moments,
    "edge_trees": computing.edge_trees,
    "extra_ignored": values.extra_ignored,
    "needs": values.needs,
    "named_errors": values.named_errors,
    "repr": values.repr_evaluates,
    "copies": values.copies,
}
"""What holds for every transform in gdfx, by name, in the order of checking; the docstrings say what each means."""


def check_transformation(
    transform: Any,
    params: Tree | None = None,
    *,
    extra: ExtraArguments | None = None,
    check: Iterable[str] | None = None,
    complex: bool = False,
    rtol: float | None = None,
) -> None:
    """Raises `InvariantError` for the first invariant that `transform`, one of gdfx or optax or a pair, does not hold.

    Args:
        transform: the transform, with the hyperparameters to check it at; each is also tried at nearby values.
        params: what to optimize, small; `example_params()` by default.
        extra: arguments that `update` needs beyond params, or a function `(params, grads)` to them.
        check: names of `INVARIANTS`; all of them by default.
        complex: whether it must work for complex params.
        rtol: the relative difference allowed between two ways to compute the same; by default 16 units in the last
            place of the params, for half precision 2.
    """
    transform = as_transformation(transform)
    params = example_params() if params is None else params
    names = list(INVARIANTS) if check is None else [check] if isinstance(check, str) else list(check)
    if unknown := set(names) - set(INVARIANTS):
        raise ValueError(f"no invariant is named {', '.join(sorted(unknown))}; there are: {', '.join(INVARIANTS)}")
    subject = Subject(transform, jax.tree.map(jnp.asarray, params), extra, complex, rtol)
    if missing := transform.needs - {"params", *subject.extra(subject.params, subject.grads[0])}:
        listed = ", ".join(sorted(missing))
        raise TypeError(f"{transform} needs {listed}: pass check_transformation(..., extra=...) with it")
    for name in names:
        invariant = INVARIANTS[name]
        try:
            invariant(subject)
        except Exception as error:
            told = "" if type(error) is AssertionError else f"it raised {type(error).__name__}: "
            told = f"{_show(transform)} breaks the invariant {name!r}: {told}{str(error)[:2000]}"
            raise InvariantError(name, f"{told}\n({name}: {invariant.__doc__})") from error


def _show(transform: Any) -> str:
    try:
        return repr(transform)
    except Exception:  # the invariant "repr" is to tell
        return type(transform).__name__


@contextlib.contextmanager
def assert_single_trace(fn: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yields `jax.jit(fn)`, which raises when it is traced a second time, and says which argument is to blame.

    One compilation serves all learning rates::

        with assert_single_trace(step) as step:
            for learning_rate in (0.1, 0.01):
                step(gdfx.as_arrays(gdfx.adam(learning_rate)), grads, state, params)
    """
    traced: list[Tree] = []

    @functools.wraps(fn)
    def counted(*args: Any, **kwargs: Any) -> Any:
        traced.append(jax.tree.map(jax.typeof, (args, kwargs)))
        if len(traced) > 1:
            raise AssertionError(f"it was traced again: {retrace_cause(traced[-1], traced[0])}")
        return fn(*args, **kwargs)

    yield jax.jit(counted)
    if not traced:
        raise AssertionError("it was not traced at all: the function was not called")
