"""Functions of a batch computed part by part, in the memory of one part.

A batch is cut into microbatches, on which a function runs one after another, and what it returns is put together:
summed, averaged or joined, as an `AccumulationType` says.
"""

import enum
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .tree import Tree, path_str

Function: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Accumulator:
    """How the values that a function has for the microbatches become one; for what no `AccumulationType` does.

    The result is `finalize(carry)`, where `carry` is `init(aval)` at first, given the shapes and dtypes of a value as
    `jax.ShapeDtypeStruct`s, and then `update(carry, value, index)` for one after another. The functions are given the
    whole part of the result that the accumulator stands for. `micro_vmap` has values for single examples, stacked
    along axis 0, and puts those of a microbatch together by `aggregate(stacked)` first.
    """

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, jax.Array], Tree]
    finalize: Callable[[Tree], Tree]
    aggregate: Callable[[Tree], Tree]


class AccumulationType(enum.Enum):
    """How the values of microbatches become one. Sums and means are taken in at least float32."""

    MEAN = enum.auto()
    """Their sum over the number of all microbatches, also where fewer are run."""
    SUM = enum.auto()
    """Their sum."""
    RUNNING_MEAN = enum.auto()
    """The mean over the microbatches that are run."""
    CONCAT = enum.auto()
    """The values joined along axis 0, in the order of the examples; 0 for microbatches that are not run."""


Accumulators: TypeAlias = Any
"""An `AccumulationType`, an `Accumulator`, or a pytree of them that a function's result begins with."""


class IndividualOutputs(NamedTuple):
    """What `micro_grad` has of each example, stacked along axis 0."""

    values: Any  # the losses
    metrics: Any  # what `metrics_fn` returned
    aux: Any  # what the function returned beside the loss


def reshape_batch_axis(tree: Tree, microbatch_size: int, axis: int = 0) -> Tree:
    """Splits the axis `axis` of each leaf into two, (number of microbatches, `microbatch_size`).

    With `n` microbatches the one at `i` has the examples `i`, `i + n`, `i + 2 * n` and so on, so that a batch that is
    sharded over devices is cut without moving examples between them. Raises as `microbatch`.
    """
    size = _check_size(microbatch_size)
    _check_axis("axis", axis)
    _count(((path_str(path), x, axis) for path, x in jax.tree_util.tree_leaves_with_path(tree)), size, equal=False)

    def split(x):
        at = axis % x.ndim
        return jnp.moveaxis(_cut(x, size, at), at + 1, at)

    return jax.tree.map(split, tree)


def microbatch(
    fun: Function,
    argnums: int | Sequence[int],
    microbatch_size: int | None,
    accumulator: Accumulators = AccumulationType.SUM,
    *,
    argnames: str | Sequence[str] = (),
    in_axes: int | Sequence[int] = 0,
    num_real_microbatches: int | jax.Array | None = None,
) -> Function:
    """`fun` computed on `microbatch_size` examples after another, and its values put together by `accumulator`.

    The results have the dtypes that those of `fun` have. Which examples make a microbatch: see `reshape_batch_axis`.

    Args:
        fun: a function of arrays, or trees of them.
        argnums: the positions of the arguments that have an axis for the examples, on all leaves.
        microbatch_size: how many examples at a time; it divides their number. With None it is `fun` itself.
        accumulator: how values become one, for all of the result or a pytree that it begins with.
        argnames: the names of the arguments that have such an axis and are passed by name.
        in_axes: the axis of the examples, one for all or one for each of `argnums` and then `argnames`.
        num_real_microbatches: how many of the microbatches to run, the first; for a batch that is filled up to a size.
            It may be traced, and costs no compilation then; beyond the number there is, it is all.

    Raises:
        ValueError: leaves without that axis, of other lengths, or of one that `microbatch_size` does not divide, with
            the path; an accumulator that does not go with the result.
        TypeError: the mean of integers, the sum of bools, or a size that is no integer.
    """
    if microbatch_size is None:
        _check_whole(num_real_microbatches)
        return fun
    return _microbatched(
        fun, argnums, microbatch_size, accumulator, argnames, in_axes, num_real_microbatches, stacked=False
    )


def micro_vmap(
    fun: Function,
    in_axes: int | Sequence[int | None] = 0,
    out_axes: Any = 0,
    *,
    microbatch_size: int | None = None,
    vmap_fn: Callable[..., Function] = jax.vmap,
    accumulator: Accumulators = AccumulationType.CONCAT,
    num_real_microbatches: int | jax.Array | None = None,
) -> Function:
    """As `jax.vmap(fun, in_axes)`, `microbatch_size` examples at a time; the results need not be stacked.

    `CONCAT` returns them stacked, as `jax.vmap` does; the others put them together as they come, so that no more than a
    microbatch of them is in memory. The mean of integers is a float. `vmap_fn(fun, in_axes, 0)` is called in the place
    of `jax.vmap`.

    Each of `in_axes` is an int or None; one int is for all arguments that are not passed by name. Those that are have
    the examples along axis 0. `out_axes` is 0. All else, and errors, as in `microbatch`.
    """
    if type(out_axes) is not int or out_axes != 0:
        raise NotImplementedError(
            f"micro_vmap: out_axes is {out_axes!r}, only 0 is supported: jnp.moveaxis the results"
        )
    if microbatch_size is None:
        _check_whole(num_real_microbatches)

    @functools.wraps(fun)
    def mapped(*args, **kwargs):
        axes = (in_axes,) * len(args) if isinstance(in_axes, int) else tuple(in_axes)
        if len(axes) != len(args):
            raise ValueError(f"in_axes has {len(axes)} entries, but there are {len(args)} positional arguments")
        for i, axis in enumerate(axes):
            if axis is not None:
                _check_axis(f"in_axes[{i}]", axis)

        def stacked(*args, **kwargs):
            return vmap_fn(fun, axes, out_axes)(*args, **kwargs)

        argnums = tuple(i for i, axis in enumerate(axes) if axis is not None)
        named = tuple(kwargs)
        batch_axes = (*(axis for axis in axes if axis is not None), *(0 for _ in named))
        if microbatch_size is None:  # one microbatch
            leaves = _batch_leaves(args, kwargs, argnums, named, batch_axes)
            size = _count(leaves, 1)
        else:
            size = microbatch_size
        run = _microbatched(stacked, argnums, size, accumulator, named, batch_axes, num_real_microbatches, stacked=True)
        return run(*args, **kwargs)

    return mapped


def micro_grad(
    fun: Function,
    has_aux: bool = False,
    argnums: int | Sequence[int] = 0,
    *,
    batch_argnums: int | Sequence[int] = 1,
    keep_batch_dim: bool = True,
    microbatch_size: int | None = None,
    accumulator: Accumulators = AccumulationType.SUM,
    transform_fn: Callable[[Tree], Tree] = lambda grads: grads,
    metrics_fn: Callable[[Tree], Tree] = lambda grads: None,
    num_real_microbatches: int | jax.Array | None = None,
) -> Callable[..., tuple[Tree, IndividualOutputs]]:
    """The gradients of `fun`, a loss, for single examples, transformed and put together.

    The function that it makes returns what `accumulator` makes of `transform_fn(grads)`, and an `IndividualOutputs`
    with the loss, the metrics and the aux of each example, stacked. To clip gradients before they are summed let
    `transform_fn` do it.

    Args:
        fun: a function that returns a real scalar, with `has_aux` a pair of that and anything.
        has_aux: whether it does.
        argnums: the positions of the arguments to take gradients with respect to.
        batch_argnums: the positions of the arguments that have the examples along axis 0. Arguments by name have, too.
        keep_batch_dim: whether `fun` is given examples with a leading axis of length 1, rather than without.
        microbatch_size: how many examples at a time; by default all.
        accumulator: how what `transform_fn` returns becomes one.
        transform_fn: a function of the gradient of one example.
        metrics_fn: another, for what is wanted of each: numbers, rather than trees.
        num_real_microbatches: as in `microbatch`.

    Errors as in `microbatch`.
    """
    batch = (batch_argnums,) if isinstance(batch_argnums, int) else tuple(batch_argnums)
    if microbatch_size is None:
        _check_whole(num_real_microbatches)

    @functools.wraps(fun)
    def grads_of(*args, **kwargs):
        if not all(-len(args) <= i < len(args) for i in batch):
            raise ValueError(f"batch_argnums is {batch_argnums}, but there are {len(args)} positional arguments")
        mapped = {i % len(args) for i in batch}

        def of_one(*args, **kwargs):
            if keep_batch_dim:
                one = functools.partial(jnp.expand_dims, axis=0)
                args = [jax.tree.map(one, x) if i in mapped else x for i, x in enumerate(args)]
            value, grads = jax.value_and_grad(fun, argnums, has_aux=has_aux)(*args, **kwargs)
            value, aux = value if has_aux else (value, None)
            return transform_fn(grads), IndividualOutputs(value, metrics_fn(grads), aux)

        return micro_vmap(
            of_one,
            tuple(0 if i in mapped else None for i in range(len(args))),
            microbatch_size=microbatch_size,
            accumulator=(accumulator, AccumulationType.CONCAT),
            num_real_microbatches=num_real_microbatches,
        )(*args, **kwargs)

    return grads_of


def _microbatched(
    fun: Function,
    argnums: int | Sequence[int],
    microbatch_size: int,
    accumulator: Accumulators,
    argnames: str | Sequence[str],
    in_axes: int | Sequence[int],
    num_real: int | jax.Array | None,
    *,
    stacked: bool,
) -> Function:
    """As `microbatch`; `stacked` where `fun` returns values of single examples, to be aggregated first."""
    size = _check_size(microbatch_size)
    argnums = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    argnames = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    n_batch = len(argnums) + len(argnames)
    axes = (in_axes,) * n_batch if isinstance(in_axes, int) else tuple(in_axes)
    if len(axes) != n_batch:
        raise ValueError(
            f"in_axes is {in_axes}, expected one axis for each of argnums {argnums} and argnames {argnames}"
        )
    for axis in axes:
        _check_axis("in_axes", axis)
    names: tuple[Any, ...] = (*argnums, *argnames)
    _check_num_real(num_real)

    @functools.wraps(fun)
    def microbatched(*args, **kwargs):
        n = _count(_batch_leaves(args, kwargs, argnums, argnames, axes), size) // size
        values: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        axis_of = {
            (name % len(args) if isinstance(name, int) else name): a for name, a in zip(names, axes, strict=True)
        }

        def cut(tree, axis):
            return jax.tree.map(lambda x: jnp.moveaxis(_cut(x, size, axis % x.ndim), axis % x.ndim + 1, 0), tree)

        def value_of(part):
            given = {**values, **part}
            inputs = [given.pop(i) for i in range(len(args))]
            return jax.tree.map(jnp.asarray, fun(*inputs, **given))

        parts = {name: cut(values[name], axis) for name, axis in axis_of.items()}
        aval = jax.eval_shape(
            lambda: value_of({name: jax.tree.map(lambda x: x[0], part) for name, part in parts.items()})
        )
        how = _accumulator(accumulator, aval, n, stacked=stacked)
        aggregate = how.aggregate if stacked else _same

        # A scan, not a loop of so many steps: it can be differentiated in reverse for any number of them.
        is_known = num_real is None or isinstance(num_real, int | np.integer)
        length = min(n, int(num_real)) if is_known and num_real is not None else n
        order = list(parts)  # a dict of ints and strings would not be sorted
        columns = [jax.tree.map(lambda x: x[:length], parts[name]) for name in order]

        def step(carry, row):
            index, columns = row

            def run(carry):
                return how.update(carry, aggregate(value_of(dict(zip(order, columns, strict=True)))), index)

            return run(carry) if is_known else jax.lax.cond(index < num_real, run, _same, carry), None

        carry = how.init(jax.eval_shape(aggregate, aval))
        carry, _ = jax.lax.scan(step, carry, (jnp.arange(length, dtype=jnp.int32), columns))
        return how.finalize(carry)

    return microbatched


def _same(x):
    return x


def _cut(x: jax.Array, size: int, axis: int) -> jax.Array:
    """`x` with the axis split in two, (`size`, number of microbatches)."""
    return jnp.reshape(x, (*x.shape[:axis], size, x.shape[axis] // size, *x.shape[axis + 1 :]))


# Accumulators


def _accumulator(accumulators: Accumulators, aval: Tree, n: int, *, stacked: bool) -> Accumulator:
    """The accumulator of the whole result from those of its parts; `n` is the number of all microbatches."""
    parts, structure = jax.tree.flatten(accumulators)
    for path, part in jax.tree_util.tree_leaves_with_path(accumulators):
        if not isinstance(part, Accumulator | AccumulationType):
            at = f" at {path_str(path)}" if path else ""
            raise ValueError(f"accumulator{at} is {part!r}, expected an AccumulationType or an Accumulator")
    try:
        avals = structure.flatten_up_to(aval)
    except ValueError:
        avals = None  # raised below, without the traceback inside JAX
    if avals is None:
        raise ValueError(
            f"accumulator is {accumulators}, which does not go with what the function returns, "
            f"{jax.tree.structure(aval)}: expected one for all of it, or a pytree that it begins with"
        )
    hows = [
        part if isinstance(part, Accumulator) else _built_in(part, part_aval, n, stacked=stacked)
        for part, part_aval in zip(parts, avals, strict=True)
    ]

    def each(method: str) -> Callable[..., Any]:
        def together(first, *rest):
            columns = [structure.flatten_up_to(first)]
            columns += [structure.flatten_up_to(rest[0]), [rest[1]] * len(hows)] if rest else []
            rows = zip(hows, *columns, strict=True)
            return jax.tree.unflatten(structure, [getattr(how, method)(*row) for how, *row in rows])

        return together

    return Accumulator(each("init"), each("update"), each("finalize"), each("aggregate"))


def _built_in(kind: AccumulationType, aval: Tree, n: int, *, stacked: bool) -> Accumulator:
    """The accumulator of a part of the result, all leaves alike."""
    is_mean = kind in (AccumulationType.MEAN, AccumulationType.RUNNING_MEAN)
    for path, x in jax.tree_util.tree_leaves_with_path(aval):
        if is_mean and not stacked and not jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(
                f"{kind.name} of what the function returns at {path_str(path)}, of dtype {x.dtype}: expected floats, "
                "as the mean of integers is none. Return them as floats, or take another accumulator"
            )
        if kind is AccumulationType.SUM and not stacked and x.dtype == bool:
            raise TypeError(
                f"SUM of what the function returns at {path_str(path)}, of dtype bool: expected numbers; to count what "
                "is true return them as int32"
            )

    def widened(x):
        return x.astype(_wide(x.dtype))

    if kind is AccumulationType.CONCAT:
        return Accumulator(
            lambda value: jax.tree.map(lambda x: jnp.broadcast_to(jnp.zeros_like(x), (n, *x.shape)), value),
            lambda carry, value, i: jax.tree.map(lambda c, x: c.at[i].set(x), carry, value),
            lambda carry: jax.tree.map(_join, carry),
            _same,
        )

    reduce = jnp.mean if is_mean else jnp.sum
    target = jax.eval_shape(lambda tree: jax.tree.map(lambda x: reduce(x, axis=0), tree), aval) if stacked else aval
    over = n if kind is AccumulationType.MEAN else 1

    def update(carry, value, i):
        if kind is not AccumulationType.RUNNING_MEAN:
            return jax.tree.map(lambda c, x: c + x.astype(c.dtype), carry, value)

        def average(c, x):
            share = 1 / (i + 1).astype(jnp.finfo(c.dtype).dtype)
            with jax.numpy_dtype_promotion("standard"):  # a real number times a complex one
                return c * (1 - share) + x.astype(c.dtype) * share

        return jax.tree.map(average, carry, value)

    return Accumulator(
        lambda value: jax.tree.map(lambda x: jnp.zeros_like(x, dtype=_wide(x.dtype)), value),
        update,
        lambda carry: jax.tree.map(lambda c, t: (c / over if is_mean else c).astype(t.dtype), carry, target),
        lambda values: jax.tree.map(lambda x: reduce(widened(x), axis=0), values),
    )


def _wide(dtype: Any) -> Any:
    """`dtype`, float32 for half precision."""
    is_half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if is_half else dtype


def _join(x: jax.Array) -> jax.Array:
    """Undoes `_cut` for the values of microbatches, stacked."""
    return x if x.ndim == 1 else jnp.reshape(jnp.swapaxes(x, 0, 1), (x.shape[0] * x.shape[1], *x.shape[2:]))


# Checks


def _check_size(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
        raise TypeError(f"microbatch_size is {size!r}, expected an int: shapes depend on it, so it cannot be traced")
    if size < 1:
        raise ValueError(f"microbatch_size is {size}, expected at least 1")
    return int(size)


def _check_axis(name: str, axis: Any) -> None:
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"{name} is {axis!r}, expected an int, the axis of the examples on all leaves of the argument")


def _check_num_real(num_real: Any) -> None:
    if num_real is None:
        return
    if jnp.shape(num_real) or not jnp.issubdtype(jnp.result_type(num_real), jnp.integer):
        raise TypeError(f"num_real_microbatches is {num_real!r}, expected an integer, or a scalar array of one")
    if isinstance(num_real, int | np.integer) and num_real < 0:
        raise ValueError(f"num_real_microbatches is {num_real}, expected at least 0")


def _check_whole(num_real: Any) -> None:
    if num_real is not None:
        raise ValueError("num_real_microbatches is given, but no microbatch_size: the batch is not cut")


def _batch_leaves(args: Any, kwargs: Any, argnums: Any, argnames: Any, axes: Any) -> list[tuple[str, Any, int]]:
    """The path, value and axis of each leaf that has examples."""
    for i in argnums:
        if not -len(args) <= operator.index(i) < len(args):
            raise ValueError(
                f"argnums has {i}, but there are {len(args)} positional arguments; see argnames for others"
            )
    for name in argnames:
        if name not in kwargs:
            raise ValueError(f"argnames has {name!r}, but no argument is passed by that name")
    named = [(f"args[{i}]", args[i]) for i in argnums] + [(f"kwargs[{name!r}]", kwargs[name]) for name in argnames]
    return [
        (name + jax.tree_util.keystr(path), leaf, axis)
        for (name, tree), axis in zip(named, axes, strict=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _count(leaves: Any, size: int, *, equal: bool = True) -> int:
    """The number of examples, from rows of a path, a leaf and an axis."""
    first = None
    for path, leaf, axis in leaves:
        shape = jnp.shape(leaf)
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"{path} has shape {shape}, expected an axis {axis} for the examples")
        length = shape[axis]
        first = first or (path, length, axis)
        if equal and length != first[1]:
            raise ValueError(
                f"{path} has {length} examples, along axis {axis} of {shape}, but {first[0]} has {first[1]} along axis "
                f"{first[2]}: expected as many. Do they come from the same batch?"
            )
        if length == 0 or length % size:
            raise ValueError(
                f"{path} has shape {shape}: its axis {axis}, for the examples, has length {length}, expected a "
                f"positive multiple of microbatch_size={size}. Drop the last batch, or fill it up and pass "
                "num_real_microbatches"
            )
    if first is None:
        raise ValueError("no argument has an axis of examples with an array in it: nothing to cut")
    return first[1]
