"""Which members of a sweep are dropped before its end: rules that compare them at rungs, numbers of steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..training.data import check_steps


@dataclass(frozen=True)
class CullingRule:
    """Says at some steps, the rungs, which members of a sweep go on.

    A subclass defines both methods, as pure functions of their arguments: a sweep that is resumed asks again.
    """

    def rungs(self, total_steps: int, members: int) -> list[int]:
        """The numbers of steps after which `keep` is asked: rising, at least 1, less than `total_steps`.

        Raises `ValueError` where the rule could drop nothing.
        """
        raise NotImplementedError

    def keep(
        self, rung_index: int, steps: int, scores: np.ndarray, alive: np.ndarray, history: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Who goes on from the rung of this index, after `steps` steps: bools of shape (members,), some of `alive`.

        `scores` are what the members are compared by, of shape (members,): lower is better, and what is not finite is
        worse than all that is. `history` holds the scores at the earlier rungs. Of those that are not `alive` scores
        are NaN. At least one member is kept.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class halving(CullingRule):
    """Successive halving: at each rung the best of `factor` members go on, and the next comes `factor` times later.

    The first rung comes after `first` steps; by default there are three rungs, or as many as leave one member: before
    a twenty-seventh of the run is made, who will be best can hardly be told. After rung i there are
    floor(members / factor**(i + 1)) left, but never none. Of equals the earlier member goes on. See
    https://arxiv.org/abs/1502.07943 and, for `factor`, https://arxiv.org/abs/1603.06560.
    """

    factor: int = 3
    first: int | None = None

    def __post_init__(self):
        _check_factor(self)
        if self.first is not None:
            check_steps("halving: first", self.first)

    def rungs(self, total_steps: int, members: int) -> list[int]:
        """The numbers of steps at which there is a comparison."""
        # No float: math.log(243, 3) is less than 5.
        rounds = next(k for k in range(members + 1) if self.factor ** (k + 1) > members)
        if self.first is None:
            steps = [total_steps // self.factor**k for k in range(min(rounds, 3), 0, -1)]
        else:
            steps = [self.first * self.factor**k for k in range(rounds)]
        cause = f"expected at least factor={self.factor} members, and a first rung before the end"
        return _checked(self, [s for s in steps if 1 <= s < total_steps], total_steps, members, cause)

    def keep(
        self, rung_index: int, steps: int, scores: np.ndarray, alive: np.ndarray, history: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Who goes on."""
        return _best(scores, alive, len(scores) // self.factor ** (rung_index + 1))


@dataclass(frozen=True)
class hyperband(CullingRule):
    """Successive halving in several brackets, from a first rung after total / factor**(brackets - 1) steps to none.

    It guards against members that are best late: one bracket is not culled at all, and the others begin at different
    rungs. Members are divided at random, always alike, in proportion to the sizes in the paper, which `sizes` tells:
    `sum(rule.sizes())` members make exactly these, 49 for the defaults. See https://arxiv.org/abs/1603.06560.
    """

    factor: int = 3
    brackets: int = 4

    def __post_init__(self):
        _check_factor(self)
        if not isinstance(self.brackets, int | np.integer) or self.brackets < 2:
            raise ValueError(f"hyperband: brackets is {self.brackets!r}, expected an integer of at least 2")

    def rungs(self, total_steps: int, members: int) -> list[int]:
        """The numbers of steps at which there is a comparison, of the brackets that have begun."""
        least = self.factor ** (self.brackets - 1)
        steps = [total_steps // self.factor**k for k in range(self.brackets - 1, 0, -1)]
        if total_steps < least or members < self.factor:
            steps = []
        return _checked(self, steps, total_steps, members, f"expected at least {least} steps and {self.factor} members")

    def sizes(self, members: int | None = None) -> list[int]:
        """How many members are in each bracket, that with the earliest rungs first; by default as in the paper."""
        count = self.brackets
        shares = np.array([-(-count * self.factor**s // (s + 1)) for s in reversed(range(count))])
        if members is None:
            return shares.tolist()
        sizes, rests = np.divmod(shares * members, shares.sum())
        sizes[np.argsort(-rests, kind="stable")[: members - sizes.sum()]] += 1
        return sizes.tolist()

    def keep(
        self, rung_index: int, steps: int, scores: np.ndarray, alive: np.ndarray, history: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Who goes on."""
        sizes = self.sizes(len(scores))
        # Not in the order given: of a grid, a bracket would have the small rates.
        bracket = np.random.default_rng(len(scores)).permutation(np.repeat(np.arange(len(sizes)), sizes))
        keep = np.array(alive, bool)
        for b, size in enumerate(sizes[: rung_index + 1]):  # bracket b begins at rung b
            mine = bracket == b
            keep[mine] = _best(scores[mine], keep[mine], size // self.factor ** (rung_index - b + 1))
        return keep


@dataclass(frozen=True)
class median_rule(CullingRule):
    """Drops members whose best score so far is worse than the median of the running means of all.

    They are compared after every `every` steps (by default a tenth of all), from `warmup` steps on. The running mean of
    a member is over its scores at the rungs so far; those dropped earlier count with what they had. What is not finite
    is left out, and a member whose score is not finite is dropped. See "Google Vizier: A Service for Black-Box
    Optimization", https://doi.org/10.1145/3097983.3098043.
    """

    every: int | None = None
    warmup: int = 0

    def __post_init__(self):
        if self.every is not None:
            check_steps("median_rule: every", self.every)
        if not isinstance(self.warmup, int | np.integer) or self.warmup < 0:
            raise ValueError(f"median_rule: warmup is {self.warmup!r}, expected a number of steps of at least 0")

    def rungs(self, total_steps: int, members: int) -> list[int]:
        """The numbers of steps at which there is a comparison."""
        every = max(1, total_steps // 10) if self.every is None else self.every
        steps = [s for s in range(every, total_steps, every) if s >= self.warmup and members > 1]
        cause = "expected at least 2 members, and `every` and `warmup` less than the number of steps"
        return _checked(self, steps, total_steps, members, cause)

    def keep(
        self, rung_index: int, steps: int, scores: np.ndarray, alive: np.ndarray, history: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Who goes on."""
        now = np.where(alive, scores, np.nan)
        reported = np.array([*history, now], np.float64)
        told = np.isfinite(reported)
        count = told.sum(axis=0)
        if not count.any():
            return _best(scores, alive, 1)
        means = np.where(told, reported, 0).sum(axis=0)[count > 0] / count[count > 0]
        best = np.where(told, reported, np.inf).min(axis=0)
        keep = np.isfinite(now) & (best <= np.median(means))
        return keep if keep.any() else _best(scores, alive, 1)


def _best(scores: np.ndarray, alive: np.ndarray, count: int) -> np.ndarray:
    """The `count` best of those that are alive, at least one; of equals the earlier ones."""
    comparable = np.where(np.isfinite(scores), scores, np.inf)
    order = np.lexsort((comparable, ~np.asarray(alive, bool)))  # by the last key first; stable
    keep = np.zeros(len(scores), bool)
    keep[order[: max(1, count)]] = True
    return keep & alive


def _check_factor(rule: Any) -> None:
    if not isinstance(rule.factor, int | np.integer) or rule.factor < 2:
        raise ValueError(f"{type(rule).__name__}: factor is {rule.factor!r}, expected an integer of at least 2")


def _checked(rule: CullingRule, rungs: list[int], total_steps: int, members: int, expected: str) -> list[int]:
    if not rungs:
        raise ValueError(f"{rule}: nothing would be dropped in {total_steps} steps of {members} members; {expected}")
    return rungs
