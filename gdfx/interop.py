"""To and from other libraries: transforms of optax, and states of optax and PyTorch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .composition import ChainState
from .core import GradientTransformation, Tree, as_transformation
from .extras import require
from .labels import path_of
from .optimizers.adagrad import adagrad
from .optimizers.adam import adam
from .optimizers.adamw import adamw
from .optimizers.rmsprop import rmsprop
from .optimizers.sgd import sgd
from .tree import check_params, path_str

_COUNTS = frozenset({"count", "step_count", "count_m2", "t", "step", "gradient_step"})
"""Fields that count updates: of those that one library lacks, another of the same state tells the value."""
_NAMES = {
    # Fields of gdfx, and what optax calls them.
    "inner": ("inner_state", "base_optimizer_state", "inner_opt_state", "fast_state"),
    "groups": ("inner_states",),
    "skipped": ("total_notfinite",),
    "in_a_row": ("notfinite_count",),
    "max_learning_rate": ("max_lr",),
    "largest": ("scale",),
    "hessian_state": ("hessian_fn_state",),
}
_COUNTS_OF_VALUES = {
    "ReduceOnPlateauState": ("value_count", "count"),
    "ReduceLROnPlateauState": ("count", "value_count"),
}
"""A field that counts something else than updates, and what the other library calls it."""
_FLAGS = {"is_init_step": "count", "is_initial_step": "count", "last_finite": "in_a_row"}
"""Flags of optax that are true while a number of gdfx is 0."""
_ZEROS = {("ScaleBySM3State", "nu")}
"""Slots that gdfx leaves out where they are not used."""


def to_optax(opt: Any) -> Any:
    """`opt` as a `GradientTransformationExtraArgs` of optax: for `optax.chain` and what else asks for one.

    Wrappers of optax forward extra arguments, such as `value=`, only to transforms of that type. Needs optax.
    """
    opt = as_transformation(opt)
    return require("optax", "interop").GradientTransformationExtraArgs(opt.init, opt.update)


def from_optax(tx: Any) -> GradientTransformation:
    """The gdfx form of an optax transform: `gdfx.chain` and all else that takes a transform makes it by itself."""
    return as_transformation(tx)


def state_from_optax(opt: Any, state: Tree, params: Tree) -> Tree:
    """The state of `opt` with what is in `state`, of the same optimizer in optax: training goes on where it was.

    `params` are those that the states were made for. The links of both are matched in order, their fields by name.

    Raises:
        ValueError: something of the one has no counterpart in the other; its name is told. Then a trajectory would
            change, and nothing is converted.
    """
    opt = as_transformation(opt)
    check_params(params)
    return _converted(jax.eval_shape(opt.init, params), state, f"the state of {opt}")


def state_to_optax(tx: Any, state: Tree, params: Tree) -> Tree:
    """The state of the optax transform `tx` with what is in `state`, of the same optimizer in gdfx.

    The inverse of `state_from_optax`, with its errors.
    """
    check_params(params)
    return _converted(jax.eval_shape(tx.init, params), state, "the state of the optax transform")


def _converted(template: Any, source: Any, name: str) -> Any:
    records = _records(source)
    counting = [r for r in records if "count" in r.slots or _COUNTS & r.slots.keys()]
    schedules = [r for r in counting if isinstance(r.state, ChainState) or "Schedule" in type(r.state).__name__]
    count = _count((schedules or counting or [_Record(None, {})])[0], np.int32(0))
    sources = [r for r in records if r.slots.keys() - _COUNTS]
    targets = [r for r in _records(template) if r.slots.keys() - _COUNTS]
    if len(targets) != len(sources):
        kinds = [", ".join(type(r.state).__name__ for r in rows) or "none" for rows in (targets, sources)]
        raise ValueError(
            f"{name} has the parts {kinds[0]}, but there are {kinds[1]}: were they made by the same optimizer, with "
            "the same options?"
        )
    pairs = {id(t.state): s for t, s in zip(targets, sources, strict=True)}

    def rebuilt(value: Any) -> Any:
        if not _is_state(value):
            return value
        if isinstance(value, ChainState):
            return ChainState(_as(value.count, count, name, "count"), value.names, tuple(map(rebuilt, value.states)))
        if isinstance(value, dict):
            return type(value)((key, rebuilt(held)) for key, held in value.items())  # optax has an OrderedDict
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(map(rebuilt, value))
        found = pairs.get(id(value), _Record(None, {}))
        slots = _slots(value)
        new = {field: rebuilt(held) for field, held in _fields(value).items() if _is_state(held)}
        for field, held in slots.items():
            new[field] = _as(held, _slot(found, value, field, count, name), name, f"{type(value).__name__}.{field}")
        made: Any = value  # a dataclass of gdfx, or a NamedTuple of optax
        return made._replace(**new) if isinstance(value, tuple) else dataclasses.replace(made, **new)

    return rebuilt(template)


def _count(found: "_Record", otherwise: Any) -> Any:
    """The updates made so far, as far as a state tells."""
    if type(found.state).__name__ not in _COUNTS_OF_VALUES:
        for field, value in found.slots.items():
            if field in _COUNTS:
                return value
    flags = [value for field, value in found.slots.items() if _FLAGS.get(field) == "count"]
    return np.where(flags[0], 0, np.maximum(otherwise, 1)) if flags else otherwise


def _slot(found: "_Record", target: Any, field: str, count: Any, name: str) -> Any:
    """What the other library has in the place of a field."""
    kind = type(target).__name__
    names = (field, *_NAMES.get(field, ()), *(ours for ours, theirs in _NAMES.items() if field in theirs))
    if kind in _COUNTS_OF_VALUES and field in _COUNTS_OF_VALUES[kind]:
        names = (_COUNTS_OF_VALUES[kind][1],) if field == _COUNTS_OF_VALUES[kind][0] else ()
    elif field in _FLAGS:
        return np.asarray(found.slots.get(_FLAGS[field], count)) == 0
    elif field in _COUNTS and field not in found.slots:
        return _count(found, count)
    for other in names:
        if other in found.slots:
            return found.slots[other]
    if field in _COUNTS:
        return count
    if (kind, field) in _ZEROS:
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), getattr(target, field))
    told = f"{type(found.state).__name__} has nothing: its fields are {', '.join(found.slots)}"
    raise ValueError(f"{name} has the field {kind}.{field}, for which {told}")


@dataclasses.dataclass
class _Record:
    """One state of a nested one, and its fields that are no states themselves."""

    state: Any
    slots: dict[str, Any]


def _records(value: Any) -> list[_Record]:
    if not _is_state(value):
        return []
    if isinstance(value, ChainState):
        return [_Record(value, {"count": value.count}), *(r for s in value.states for r in _records(s))]
    if isinstance(value, dict | tuple) and not hasattr(value, "_fields"):
        parts = [value[key] for key in sorted(value)] if isinstance(value, dict) else value
        return [r for part in parts for r in _records(part)]
    return [_Record(value, _slots(value)), *(r for held in _fields(value).values() for r in _records(held))]


def _slots(state: Any) -> dict[str, Any]:
    """The fields of a state that hold arrays of its own."""
    return {
        field: held
        for field, held in _fields(state).items()
        if held is not None and not _is_state(held) and jax.tree.leaves(held, is_leaf=_is_none)
    }


def _fields(state: Any) -> dict[str, Any]:
    if isinstance(state, tuple):
        return {field: getattr(state, field) for field in state._fields}  # pyright: ignore[reportAttributeAccessIssue]: a NamedTuple
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if not f.metadata.get("static")}


def _is_none(value: Any) -> bool:
    return value is None


def _is_state(value: Any) -> bool:
    """Whether it is a state, or a tuple or dict of states; params may be dataclasses and tuples, too."""
    if isinstance(value, dict):
        return bool(value) and all(map(_is_state, value.values()))
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return all(map(_is_state, value))
    is_record = dataclasses.is_dataclass(value) or hasattr(value, "_fields")
    return is_record and type(value).__module__.split(".")[0] in ("gdfx", "optax")


def _as(like: Tree, value: Tree, name: str, field: str) -> Tree:
    """The leaves of `value` in the structure, shapes and dtypes of `like`."""
    targets = jax.tree_util.tree_leaves_with_path(like, is_leaf=_is_none)
    leaves = jax.tree.leaves(value, is_leaf=_is_none)
    if len(targets) != len(leaves):  # one of them has None for leaves of another group
        targets, leaves = jax.tree_util.tree_leaves_with_path(like), jax.tree.leaves(value)
    if len(targets) != len(leaves):
        raise ValueError(f"{name}: {field} has {len(targets)} leaves, but there are {len(leaves)} to take over")
    new = []
    for (path, target), leaf in zip(targets, leaves, strict=True):
        if target is None or leaf is None:  # optax has an array of one element where nothing is held
            new.append(None if target is None else jnp.zeros(target.shape, target.dtype))
            continue
        if jnp.shape(leaf) != jnp.shape(target):
            raise ValueError(
                f"{name}: {field} has shape {jnp.shape(target)} at {path_str(path)}, but what is to be taken over has "
                f"{jnp.shape(leaf)}. Were the states made for other params?"
            )
        new.append(jnp.array(leaf, target.dtype))
    structure = jax.tree.structure(like, is_leaf=_is_none if len(new) != len(jax.tree.leaves(like)) else None)
    return jax.tree.unflatten(structure, new)


# PyTorch

_TORCH = {
    sgd: {"trace": "momentum_buffer"},
    adam: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    adamw: {"mu": "exp_avg", "nu": "exp_avg_sq"},
    rmsprop: {"mu": "grad_avg", "nu": "square_avg", "trace": "momentum_buffer"},
    adagrad: {"sum_of_squares": "sum"},
}


def state_from_torch(
    opt: Any,
    state_dict: Mapping[str, Any],
    params: Tree,
    order: Tree | None = None,
    layout: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> Tree:
    """The state of `opt` with what is in the `state_dict()` of the same optimizer in PyTorch.

    It is for `sgd`, `adam`, `adamw`, `rmsprop` and `adagrad`, alone or in a chain with links that hold no arrays.
    PyTorch numbers the params: `order`, a tree of ints shaped like `params`, tells the number of each leaf; by default
    they are in the order of the leaves. `layout(path, array)` turns PyTorch's array for a leaf into the layout of the
    leaf, such as the transpose of a linear layer's weight; by default they are alike. The count is PyTorch's `step`;
    its SGD has none: see `gdfx.set_count` for schedules. Needs no PyTorch.

    Raises:
        ValueError: a slot is missing, or has another shape than the leaf; the path is named.
    """
    opt = as_transformation(opt)
    kind = next((o for o in getattr(opt, "transforms", (opt,)) if type(o) in _TORCH), None)
    if kind is None:
        known = ", ".join(cls.__name__ for cls in _TORCH)
        raise TypeError(f"{opt} is a {type(opt).__name__}, expected one of {known}, or a chain with one of them")
    check_params(params)
    leaves = [(path_of(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    numbers = list(range(len(leaves))) if order is None else [int(n) for n in jax.tree.leaves(order)]
    slots, rates = state_dict["state"], {n: g["lr"] for g in state_dict["param_groups"] for n in g["params"]}
    if sorted(numbers) != sorted(rates):
        raise ValueError(
            f"the order has the numbers {sorted(numbers)} for the leaves {', '.join(path for path, _ in leaves)}, "
            f"expected those of the params in the state_dict, {sorted(rates)}, each once"
        )

    def array(number: int, path: str, name: str) -> np.ndarray:
        if name not in slots.get(number, {}):
            raise ValueError(
                f"the state_dict has no {name!r} for param {number}, {path}: has its optimizer made a step, and the "
                f"options of {kind}?"
            )
        found = np.asarray(slots[number][name])
        return found if layout is None or not found.ndim else layout(path, found)

    def fill(record: Any) -> Any:
        new = {}
        for field, held in _fields(record).items():
            name = _TORCH[type(kind)].get(field)
            if name is not None:
                # PyTorch multiplies the momentum of RMSprop by the learning rate later than gdfx does.
                by = {n: -rates[n] if isinstance(kind, rmsprop) and field == "trace" else 1 for n in numbers}
                taken = [by[n] * array(n, path, name) for n, (path, _) in zip(numbers, leaves, strict=True)]
                new[field] = _as(held, taken, f"the state of {kind}", field)
        return dataclasses.replace(record, count=count, **new) if new else record

    steps = [np.asarray(slot["step"]) for slot in slots.values() if "step" in slot]
    count = jnp.array(steps[0] if steps else 0, jnp.int32)
    state = jax.tree.map(jnp.array, opt.init(params))
    links = tuple(fill(link) if jax.tree.leaves(link) else link for link in state.states)
    return ChainState(count, state.names, links)
