"""What a stopping rule is, and how rules compose."""

from typing import ClassVar, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree
from ..pytrees import Value, pytree


class StoppingRule(Value):
    """Says after each step whether training is over.

    Rules compose: `a | b` stops when either holds, `a & b` when both do at the same step, as in
    `max_steps(1000) | (target(0.1) & gradient_norm(1e-3))`.

    Subclasses are `@pytree` classes, whose name becomes the status of the result. The signals are float scalars, of the
    dtype of the rule's numbers: `loss` and `grad_norm` from before the step; `step`, the number of steps made;
    `seconds`, the time since training began, as known at the start of the compiled call that makes the step; and the
    bool `epoch_end`, true at the last step of an epoch. At steps after which the params are evaluated, also what that
    gave, by its names. A loop of one's own gives those that its rules read.

    Of `gdfx.minimize`, where `step` 0 is checked too, they are those at the params after the steps made, and also
    `step_norm`, the norm of the last step tried, `moved`, whether it was made, `decrease`, by how much it lowered the
    loss, and `params_norm`.
    """

    converged: ClassVar[bool] = True
    """Whether a minimization that ends by it has found what it was to find."""
    says: ClassVar[str] = "the rule holds"
    """What its holding means, and what to try if that is not what was wanted."""

    def __post_init__(self):
        super().__post_init__()
        for name in self._ranges:
            if callable(value := getattr(self, name)):
                raise TypeError(f"{type(self).__name__}: {name} is {value!r}, expected a number")

    def init(self) -> Tree:
        """The state before the first step."""
        return ()

    def check(self, state: Tree, signals: dict[str, jax.Array]) -> tuple[Tree, jax.Array]:
        """The next state, and whether to stop; may be traced."""
        raise NotImplementedError

    def evaluations(self) -> frozenset[str]:
        """The names of evaluations that the rule reads."""
        metric = getattr(self, "metric", None)
        return frozenset() if metric is None else frozenset({metric})

    def status(self, state: Tree) -> str:
        """The name of the rule, which held when `check` returned `state`; of a composed one, of the parts that held."""
        return type(self).__name__

    def success(self, state: Tree) -> jax.Array:
        """Whether the rule, which held when `check` returned `state`, is one by which a minimization has converged."""
        return jnp.full((), self.converged)

    def message(self, state: Tree) -> str:
        """The status, and what it means."""
        return f"{self.status(state)}: {self.says}"

    def __or__(self, other: "StoppingRule") -> "any_of":
        return any_of((self, other))

    def __and__(self, other: "StoppingRule") -> "all_of":
        return all_of((self, other))

    def __bool__(self) -> NoReturn:
        # `a and b` would be b alone.
        raise TypeError(f"{self!r} is neither true nor false: compose rules with | and &, not with `or` and `and`")


class _Composed(StoppingRule):
    """Several rules, checked together; those of its own kind among them are taken apart."""

    rules: tuple[StoppingRule, ...]

    def __post_init__(self):
        name, flat = type(self).__name__, []
        if not isinstance(self.rules, tuple | list):
            raise TypeError(f"{name}: rules is {self.rules!r}, expected a tuple of stopping rules")
        for rule in self.rules:
            if not isinstance(rule, StoppingRule):
                raise TypeError(f"{name}: {rule!r} is no stopping rule, expected one such as gdfx.stopping.target(0.1)")
            flat += rule.rules if isinstance(rule, type(self)) else [rule]
        if len(flat) < 2:
            raise ValueError(f"{name}: there are {len(flat)} rules, expected at least 2")
        object.__setattr__(self, "rules", tuple(flat))
        super().__post_init__()

    def init(self):
        return {"rules": [rule.init() for rule in self.rules], "held": jnp.zeros(len(self.rules), bool)}

    def evaluations(self):
        return frozenset().union(*(rule.evaluations() for rule in self.rules))

    def _checked(self, state: Tree, signals: dict[str, jax.Array]) -> Tree:
        checked = [rule.check(s, signals) for rule, s in zip(self.rules, state["rules"], strict=True)]
        return {"rules": [s for s, _ in checked], "held": jnp.stack([jnp.asarray(over, bool) for _, over in checked])}

    def _successes(self, state: Tree) -> jax.Array:
        found = [rule.success(s) for rule, s in zip(self.rules, state["rules"], strict=True)]
        return jnp.stack(found)

    def _held(self, state: Tree) -> list[tuple[StoppingRule, Tree]]:
        held = zip(self.rules, state["rules"], np.asarray(state["held"]), strict=True)
        return [(rule, s) for rule, s, over in held if over]


@pytree
class any_of(_Composed):
    """Stops when one of `rules` holds, `a | b`; the status is that of the first that does."""

    rules: tuple[StoppingRule, ...]

    def check(self, state, signals):
        state = self._checked(state, signals)
        return state, state["held"].any()

    def status(self, state):
        rule, state = self._first(state)
        return rule.status(state)

    def success(self, state):
        return self._successes(state)[jnp.argmax(state["held"])]

    def message(self, state):
        rule, state = self._first(state)
        return rule.message(state)

    def _first(self, state: Tree) -> tuple[StoppingRule, Tree]:
        if held := self._held(state):
            return held[0]
        raise ValueError(f"status: none of {self} holds in this state")

    def __repr__(self):
        return " | ".join(map(repr, self.rules))


@pytree
class all_of(_Composed):
    """Stops when all of `rules` hold at the same step, `a & b`; the status is theirs, as in "target and max_steps"."""

    rules: tuple[StoppingRule, ...]

    def check(self, state, signals):
        state = self._checked(state, signals)
        return state, state["held"].all()

    def status(self, state):
        return " and ".join(rule.status(s) for rule, s in self._all(state))

    def success(self, state):
        return self._successes(state).any()

    def message(self, state):
        return "; and ".join(rule.message(s) for rule, s in self._all(state))

    def _all(self, state: Tree) -> list[tuple[StoppingRule, Tree]]:
        if len(held := self._held(state)) == len(self.rules):
            return held
        raise ValueError(f"status: not all of {self} hold in this state")

    def __repr__(self):
        return " & ".join(f"({rule})" if isinstance(rule, any_of) else repr(rule) for rule in self.rules)
