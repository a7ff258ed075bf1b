"""Batches of optimizers: which values of their hyperparameters are tried."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import GradientTransformation, as_transformation
from ..inspection import replace
from ..pytrees import Value, as_arrays
from ..training.data import check_steps, seed_words
from .distributions import Distribution

Values = Mapping[str, Any]


def grid(optimizer: Callable[..., Any] | Value, values: Values | None = None, /, **named: Any) -> Any:
    """One batched optimizer with every combination of some values, the last of them changing fastest.

    `grid(gdfx.adamw, learning_rate=[1e-3, 1e-2], weight_decay=[0, 0.1], b2=0.99)` holds four optimizers, like
    `jax.vmap(gdfx.adamw)` of four numbers each. What is not a list or an array of one axis is given to all alike.
    `optimizer` is one of three:

    - a kind of optimizer, as above;
    - a function that makes one from numbers, as in `lambda peak: gdfx.adam(gdfx.warmup_cosine(peak, 10, 100))`;
    - an optimizer, of which copies are made with other values at some paths, as by `gdfx.replace`:
      `grid(gdfx.chain(gdfx.clip(1.0), gdfx.adam(0.1)), {"transforms[1].learning_rate": [0.1, 0.01]})`.

    Raises:
        TypeError: there is no such hyperparameter, or it cannot be batched.
        ValueError: there is nothing to vary, or the optimizer does not allow a value.
    """
    space = _Space("grid", optimizer, values, named)
    return space.batch(itertools.product(*space.varied.values()))


def zipped(optimizer: Callable[..., Any] | Value, values: Values | None = None, /, **named: Any) -> Any:
    """One batched optimizer whose i-th member has the i-th of each list of values; otherwise as `grid`."""
    space = _Space("zipped", optimizer, values, named)
    counts = {name: len(listed) for name, listed in space.varied.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ValueError(f"zipped: {found} values, expected as many of each; for all combinations use gdfx.grid")
    return space.batch(zip(*space.varied.values(), strict=True))


def sample(
    optimizer: Callable[..., Any] | Value, /, n: int, key: Any = 0, values: Values | None = None, **named: Any
) -> Any:
    """One batched optimizer with `n` members, whose hyperparameters are drawn from distributions; otherwise as `grid`.

    `sample(gdfx.adam, 50, learning_rate=gdfx.distributions.log_uniform(1e-4, 1), b1=0.95)` draws rates and fixes b1.
    What is drawn for a name depends on the name and on `key` (an integer or a PRNG key) alone: more members, or another
    name, change none of it. A hyperparameter that is itself called `key` goes into the dict `values`.
    """
    check_steps("sample: n", n, "members")
    words = seed_words(key)
    given = _merged("sample", values, named)
    for name, value in given.items():
        if isinstance(value, Distribution):
            # The length, as NumPy takes [5, 0] and [5] for the same seed.
            u = np.random.default_rng([len(words), *words, *name.encode()]).random(n)
            given[name] = value.quantiles(u)
        elif _is_list(value):
            raise TypeError(
                f"sample: {name} is {value!r}, expected a distribution, such as gdfx.distributions.choice({value!r}), "
                "or a number for all alike"
            )
    space = _Space("sample", optimizer, given, {})
    return space.batch(zip(*space.varied.values(), strict=True))


class _Space:
    """The values to try: those that are varied, by name or path, and how an optimizer is made of one of each."""

    def __init__(self, name: str, optimizer: Any, values: Values | None, named: Values):
        given = _merged(name, values, named)
        lists = {key: value for key, value in given.items() if _is_list(value)}
        self.fixed = {key: value for key, value in given.items() if key not in lists}
        self.name, self.optimizer = name, optimizer
        self.kind = type(optimizer).__name__ if isinstance(optimizer, Value) else getattr(optimizer, "__name__", "")
        self.kind = self.kind or str(optimizer)
        for key, value in self.fixed.items():
            if isinstance(value, Distribution):
                raise TypeError(f"{name}: {key} is {value}, expected a list of values; for draws use gdfx.sample")
        if isinstance(optimizer, Value):
            self._check_paths(lists)
        elif callable(optimizer):
            self._check_names(lists, given)
        else:
            raise TypeError(f"{name}: optimizer is {optimizer!r}, expected an optimizer of gdfx or what makes one")
        self.varied = {key: self._numbers(key, value) for key, value in lists.items()}
        if not lists:
            what = "a distribution" if name == "sample" else "a list of values"
            raise ValueError(f"{name}: nothing is varied: give a hyperparameter of {self.kind} {what}")

    def batch(self, points: Iterable[tuple[float, ...]]) -> Any:
        """One optimizer with a row for each of `points`; raises for a value that is not allowed."""
        members = [self._make(dict(zip(self.varied, point, strict=True))) for point in points]
        for other in members[1:]:
            if jax.tree.structure(other) != jax.tree.structure(members[0]):
                raise ValueError(
                    f"{self.name}: {members[0]} and {other} differ in more than numbers: give sweep a list with one "
                    "batch for each kind"
                )
        return stacked(members)

    def _make(self, point: dict[str, float]) -> Any:
        if isinstance(self.optimizer, Value):
            return as_arrays(replace(self.optimizer, {**self.fixed, **point}))
        made = self.optimizer(**point, **self.fixed)
        if not isinstance(made, Value):
            raise TypeError(
                f"{self.name}: {self.kind} made a {type(made).__name__}, expected an optimizer of gdfx; to vary the "
                "numbers of another, see gdfx.inject_hyperparams"
            )
        return as_arrays(made)

    def _check_names(self, lists: Values, given: Values) -> None:
        """Raises `TypeError` for names that a kind of optimizer, or a function that makes one, does not take."""
        fields = getattr(self.optimizer, "__dataclass_fields__", {})
        for key in lists:
            if key in fields and fields[key].metadata.get("static"):
                raise self._static(key)
        try:
            takes = inspect.signature(self.optimizer).parameters.values()
        except ValueError:  # some callables written in C
            return
        known = [p.name for p in takes if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        unknown = [key for key in given if key not in known]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in takes):
            hint = "" if unknown[0].isidentifier() else f"; for a path give an optimizer, as in {self.kind}(...)"
            raise TypeError(
                f"{self.name}: {self.kind} got an unexpected keyword argument {unknown[0]!r}, expected some of: "
                f"{', '.join(known)}{hint}"
            )

    def _check_paths(self, lists: Values) -> None:
        """Raises `TypeError` for paths at which an optimizer holds no number, and for one that is a batch already."""
        leaves = jax.tree_util.tree_leaves_with_path(self.optimizer, is_leaf=lambda x: x is None)
        known = [jax.tree_util.keystr(path).removeprefix(".") for path, _ in leaves]
        for path, (_, leaf) in zip(known, leaves, strict=True):
            if leaf is not None and jnp.ndim(leaf) and not jnp.issubdtype(leaf.dtype, jnp.unsignedinteger):
                raise TypeError(
                    f"{self.name}: {path} of {self.kind} has shape {jnp.shape(leaf)}, expected one optimizer, not a "
                    "batch of them"
                )
        for key, value in lists.items():
            written = key.replace('"', "'")
            if any(path == written or path.startswith((f"{written}.", f"{written}[")) for path in known):
                continue
            try:
                replace(self.optimizer, {key: value[0]})
            except KeyError:
                raise TypeError(
                    f"{self.name}: there is nothing at the path {key!r} of {self.kind}, expected some of: "
                    f"{', '.join(known)}"
                ) from None
            except (TypeError, ValueError, IndexError):
                pass  # there is something, and it is explained below
            raise self._static(key)

    def _static(self, key: str) -> TypeError:
        return TypeError(
            f"{self.name}: {key} of {self.kind} is compiled into the program, not batched: give sweep a list with one "
            "batch for each value of it"
        )

    def _numbers(self, key: str, listed: Any) -> list[float]:
        array = np.asarray(listed)
        if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.number) or array.dtype.kind == "c":
            raise TypeError(
                f"{self.name}: {key} has shape {array.shape} and dtype {array.dtype}, expected a list of numbers"
            )
        if not len(array):
            raise ValueError(f"{self.name}: {key} is empty, expected at least one value")
        return array.tolist()


def stacked(members: list[Any]) -> Any:
    """The batch of `members`, optimizers of one structure that `as_arrays` made."""

    def stack(*leaves: Any) -> jax.Array:
        if isinstance(leaves[0], jax.Array) and jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
            return jnp.stack(leaves)
        return jax.device_put(np.stack(leaves))  # jnp.stack would compile a program of as many arguments

    return jax.tree.map(stack, *members)


def batched(optimizers: Any) -> tuple[GradientTransformation, int]:
    """`optimizers` with one row a member in every hyperparameter, and the number of members.

    Takes a batched optimizer, as from `grid` or `jax.vmap`, also where only some hyperparameters are batched, or a
    single one.
    """
    optimizer = as_arrays(as_transformation(optimizers))
    lengths = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer):
        if jnp.ndim(leaf) > 1:
            raise ValueError(
                f"sweep: {jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, expected one axis, over the members"
            )
        if jnp.ndim(leaf):
            lengths[jax.tree_util.keystr(path)] = len(leaf)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"sweep: hyperparameters have different numbers of values: {lengths}; expected one a member")
    members = next(iter(lengths.values()), 1)
    if members == 0:
        raise ValueError("sweep: there is nothing to run: the optimizers' hyperparameters have no values")
    return jax.tree.map(
        lambda x: jnp.broadcast_to(x, (members,)) if jnp.ndim(x) == 0 else jnp.asarray(x), optimizer
    ), members


def _merged(name: str, values: Values | None, named: Values) -> dict[str, Any]:
    if values is not None and not isinstance(values, Mapping):
        raise TypeError(f"{name}: values is {values!r}, expected a dict of them by the name of the hyperparameter")
    if twice := [key for key in values or {} if key in named]:
        raise TypeError(f"{name}: {twice[0]} is given twice, in the dict and by name")
    return {**(values or {}), **named}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | range) or bool(getattr(value, "ndim", 0))
