"""Population-based training: members that do badly go on from copies of those that do well, and the replay of it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from .. import curves
from ..core import GradientTransformation, Schedule, Tree
from ..inspection import _children, _parse, hyperparameters, replace
from ..pytrees import Interval, Range, Value, pytree
from ..schedules import constant, join
from ..training.data import check_steps, seed_words
from ..wrappers.accumulate import accumulate
from ..wrappers.conditional import _Conditional
from .result import SweepResult

_, COUNT = get_args(Interval)


@dataclass(frozen=True)
class population:
    """Population-based training: after each `every` steps the worst members become copies of some of the best.

    Of the members of one structure the part `quantile` (at least one, where there are two) that does worst, and every
    one that diverged, takes params, state and hyperparameters of a random one of as many that do best; then each float
    hyperparameter that is varied, or that is named in `hyperparameters`, is multiplied by a random one of `factors` and
    clipped to the values that it may have. Of one that must be less than 1, such as the decay of an average, the
    distance to 1 is multiplied: 0.99 becomes 0.992 or 0.9875. Numbers of steps are copied, not changed; 0 stays 0.

    `every` counts the steps of the run that has the most; in others the same part of the run. `hyperparameters` are
    paths as in `gdfx.hyperparameters`, also of the numbers in a schedule. See https://arxiv.org/abs/1711.09846.
    """

    every: int
    quantile: float = 0.2
    factors: Sequence[float] = (0.8, 1.25)
    hyperparameters: Sequence[str] | None = None
    key: Any = 0

    def __post_init__(self):
        check_steps("population: every", self.every)
        if not 0 < self.quantile <= 0.5:
            raise ValueError(f"population: quantile is {self.quantile}, expected more than 0 and at most 0.5")
        for name in ("factors", "hyperparameters"):
            if (given := getattr(self, name)) is not None:
                if not isinstance(given, list | tuple) or not given:
                    raise TypeError(f"population: {name} is {given!r}, expected a list of at least one")
                object.__setattr__(self, name, tuple(given))
        if not all(0 < factor < math.inf for factor in self.factors):
            raise ValueError(f"population: factors are {self.factors}, expected finite numbers of more than 0")
        seed_words(self.key)

    def rungs(self, total_steps: int, members: int) -> list[int]:
        """The numbers of steps after which `exploit` is asked: less than `total_steps`.

        Raises `ValueError` where there are none, or one member only.
        """
        steps = list(range(self.every, total_steps, self.every))
        if not steps or members < 2:
            raise ValueError(
                f"{self}: nothing would be copied in {total_steps} steps of {members} members; expected at least 2 "
                "members, and `every` less than the number of steps"
            )
        return steps

    def names(self, optimizers: Sequence[Tree]) -> list[list[str]]:
        """The paths of the numbers that will be changed in each of these batches, one for each structure.

        Raises `ValueError` for a path that none of them has, one that cannot be changed, or if there are none at all.
        """
        found = []
        for optimizer in optimizers:
            leaves, allowed = _leaves(optimizer), _ranges(optimizer)
            able = [path for path in leaves if path in allowed and jnp.issubdtype(leaves[path].dtype, jnp.floating)]
            if self.hyperparameters is None:
                found.append([path for path in able if (leaves[path] != leaves[path][0]).any()])
                continue
            if fixed := [path for path in self.hyperparameters if path in leaves and path not in able]:
                raise ValueError(
                    f"population: {fixed[0]} is not changed on the way, expected some of: {', '.join(able)}"
                )
            found.append([path for path in able if path in self.hyperparameters])
        for path in self.hyperparameters or ():
            if not any(path in names for names in found):
                known = dict.fromkeys(path for optimizer in optimizers for path in _leaves(optimizer))
                raise ValueError(f"population: there is no number at {path!r}, expected some of: {', '.join(known)}")
        if not any(found):
            raise ValueError("population: no hyperparameter differs between members, expected some: vary or name one")
        return found

    def exploit(
        self, round_index: int, scores: np.ndarray, optimizer: Tree, carry: Tree, names: Sequence[str]
    ) -> tuple[Tree, Tree, list[dict[str, Any]]]:
        """The optimizers and the carry to go on with, and the copies: {"member", "from", "values" (by path)}.

        `scores` are of shape (members,): lower is better, and what is not finite diverged. `optimizer` and `carry` have
        NumPy leaves of shape (members, ...), which are not written to; `names` are what `names` gave. Draws depend on
        the key, the round and the name alone. If no score is finite, or there is one member, nothing is copied.
        """
        members, words = len(scores), seed_words(self.key)
        finite = np.isfinite(scores)
        order = np.lexsort((np.where(finite, scores, 0), ~finite))  # stable: of equals the earlier is better
        count = min(max(1, math.floor(self.quantile * members + 1e-9)), members // 2)  # 1e-9: 0.29 * 100 < 29
        best = order[: min(count, finite.sum())]
        if not len(best):
            return optimizer, carry, []
        worst = np.union1d(order[members - count :], np.flatnonzero(~finite))

        def draw(name: str, count: int) -> np.ndarray:
            # The length, as NumPy takes [5, 0] and [5] for the same seed.
            seed = [len(words), *words, round_index, *name.encode()]
            return np.random.default_rng(seed).integers(count, size=members)[worst]

        source = np.arange(members)
        source[worst] = best[draw("", len(best))]
        optimizer, carry = jax.tree.map(lambda x: x[source], (optimizer, carry))
        leaves, allowed = _leaves(optimizer), _ranges(optimizer)
        for name in names:
            factors = np.asarray(self.factors)[draw(name, len(self.factors))]
            leaves[name][worst] = _changed(leaves[name][worst], factors, allowed[name])
        values = {name: leaves[name] for name in names}
        copies = [
            {"member": int(i), "from": int(source[i]), "values": {name: _number(x[i]) for name, x in values.items()}}
            for i in worst
        ]
        return jax.tree.unflatten(jax.tree.structure(optimizer), list(leaves.values())), carry, copies


def replayed(result: SweepResult, index: int | None = None) -> GradientTransformation:
    """The optimizer with the schedules that a member of a population went through, the best by default.

    One run with it, of the same seed and key, repeats all that became this member: its ancestors from the start, each
    until it was copied, and its own steps since then. What never changed stays a number. Within a `guard` this holds if
    no update was skipped.

    Raises:
        ValueError: the sweep was not a population's training; or a hyperparameter is within an `accumulate` whose
            updates cannot be told from the number of steps.
        RuntimeError: there is no best.
    """
    if result.lineage is None:
        raise ValueError("replay: this sweep has no lineage: it was not a population's training")
    member = result.best.index if index is None else range(len(result.points))[index]
    copies, until = [], math.inf
    for copy in sorted(result.lineage, key=lambda copy: copy["step"], reverse=True):
        if copy["member"] == member and copy["step"] < until:  # a copy is of what the other was before that step
            copies.insert(0, copy)
            member, until = copy["from"], copy["step"]
    optimizer: Any = result.optimizers[member]
    parts = [optimizer]
    for copy in copies:
        parts.append(replace(parts[-1], copy["values"]))
    steps = [copy["step"] for copy in copies]
    held = [hyperparameters(part) for part in parts]
    changes = {}
    for path, first in held[0].items():
        values = [numbers[path] for numbers in held]
        if any(value != first for value in values):
            boundaries = tuple(_updates(optimizer, path, step) for step in steps)
            if isinstance(first, Schedule):
                changes[path] = spliced(tuple(values), boundaries)
            else:
                changes[path] = join(tuple(map(constant, values)), boundaries)
    return replace(optimizer, changes)


@pytree
class spliced(Schedule):
    """Each of the `schedules` in turn, from the count of each of the `boundaries` on, as if it had always been.

    Unlike in `gdfx.schedules.join`, all go by the whole count.
    """

    schedules: tuple[Schedule, ...]
    boundaries: curves.Row

    def __post_init__(self):
        super().__post_init__()
        if curves.set_row(self, "boundaries", ordered=True) != len(self.schedules) - 1:
            curves.reject(self, "boundaries", f"{len(self.schedules) - 1} numbers, one less than there are schedules")

    def value(self, count):
        values = jnp.stack([schedule.value(count) for schedule in self.schedules])
        return values[curves.passed(jnp.asarray(self.boundaries), count)]


def _changed(values: np.ndarray, factors: np.ndarray, allowed: Range) -> np.ndarray:
    """The values multiplied, or their distances to 1 where they must be below 1, and clipped, in their dtype."""
    new = values.astype(np.float64)
    new = 1 - (1 - new) * factors if allowed.below == 1 else new * factors
    kind, info = values.dtype.type, jnp.finfo(values.dtype)
    low, high = max(allowed.low, float(info.min)), min(allowed.high, float(info.max))
    if allowed.above is not None:
        inside = float(np.nextafter(kind(allowed.above), kind(math.inf)))
        low = max(low, inside, float(info.tiny))  # next to 0 there are numbers that processors take for 0
    if allowed.below is not None:
        high = min(high, float(np.nextafter(kind(allowed.below), kind(-math.inf))))
    return np.clip(new, low, high).astype(values.dtype)


def _number(value: Any) -> float:
    return float(str(value))  # the shortest decimal that is this number in its own dtype


def _leaves(optimizer: Tree) -> dict[str, Any]:
    """The leaves by path, written as by `gdfx.hyperparameters`."""
    leaves = jax.tree_util.tree_leaves_with_path(optimizer)
    return {jax.tree_util.keystr(path).removeprefix("."): leaf for path, leaf in leaves}


def _ranges(optimizer: Tree) -> dict[str, Range]:
    """The values that each number may have, by path, but for numbers of steps and those that declare none."""

    def walk(value: Any, path: str, allowed: Range | None) -> Iterator[tuple[str, Range]]:
        children = _children(value)
        if not children and allowed is not None:
            yield path.removeprefix("."), allowed
        declared = {}
        if isinstance(value, Value) and is_dataclass(value):
            declared = {f".{f.name}": value._ranges.get(f.name) for f in fields(value) if not _counts(value, f)}
        for part, held in children.items():
            # A tuple of numbers has the range of its field.
            yield from walk(held, path + part, declared.get(part) if isinstance(value, Value) else allowed)

    return dict(walk(optimizer, "", None))


def _counts(value: Value, field: Any) -> bool:
    """Whether a field is a number of steps, or another integer."""
    allowed = value._ranges.get(field.name)
    of_steps = isinstance(allowed, curves._Updates) or allowed == COUNT or field.name.endswith("steps")
    return of_steps or type(field.default) is int


def _updates(optimizer: Any, path: str, step: int) -> int:
    """The count of the schedule at `path` of `optimizer` after `step` steps."""
    held = optimizer
    for part in _parse(path):
        if isinstance(held, accumulate | _Conditional) and part == ".transform":
            if not isinstance(held, accumulate) or callable(held.every) or held.should_skip is not None:
                raise ValueError(
                    f"replay: {path} changed within {type(held).__name__}, whose updates cannot be told from the "
                    "number of steps, expected one in which each step, or each so many, is an update"
                )
            step //= int(held.every)
        held = _children(held)[part]
    return step
