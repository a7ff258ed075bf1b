"""What a minimization ended with: `MinimizeResult`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ..core import Tree
from ..pytrees import pytree
from .rules import StoppingRule


@pytree
class MinimizeResult:
    """What `minimize` and `least_squares` end with; under `vmap` each field has the members' axis.

    `x`, `fun`, `jac`, `nit` and `nfev` are SciPy's names for what they return. It prints as a summary.
    """

    params: Tree  # the last at which the loss and its gradient were finite
    value: jax.Array  # the loss there
    grad: Tree  # its gradient there, in at least float32
    grad_norm: jax.Array  # the norm of that; with bounds, of what of it does not push against them
    steps: jax.Array  # int32: the updates asked for
    evaluations: jax.Array  # int32: how often the loss was evaluated, with its gradient or without
    success: jax.Array  # bool: whether a rule ended it by which it has converged
    opt_state: Tree
    history: (
        dict[str, jax.Array] | None
    )  # `value`, `grad_norm`, `evaluations`, from step 0 on, NaN or -1 after the last
    rule: StoppingRule  # all that could have ended it
    rule_state: Tree

    x = property(lambda self: self.params)
    fun = property(lambda self: self.value)
    jac = property(lambda self: self.grad)
    nit = property(lambda self: self.steps)
    nfev = property(lambda self: self.evaluations)

    @property
    def status(self) -> Any:
        """The name of the rule that ended it; under `vmap` an array of names. Not under `jit`: ask the result outside.

        The rules are `gradient_norm`, `small_step`, `small_decrease`, `stalled`, where a line search found no decrease,
        `unbounded`, `diverged`, `max_steps`, and those in `stop`.
        """
        return self._of_each(lambda state: self.rule.status(state))

    @property
    def message(self) -> Any:
        """The status, what it means, and what to try; as `status`."""
        return self._of_each(lambda state: self.rule.message(state))

    def _of_each(self, told: Callable[[Tree], str]) -> Any:
        if isinstance(self.steps, Tracer):
            raise ValueError("status: the result is traced; ask it outside of jit and vmap. `success` may be traced")
        if not self.steps.ndim:
            return told(self.rule_state)
        state = jax.tree.map(np.asarray, self.rule_state)
        names = [told(jax.tree.map(lambda x: x[i], state)) for i in np.ndindex(self.steps.shape)]  # noqa: B023
        return np.array(names, object).reshape(self.steps.shape)

    def __str__(self) -> str:
        if isinstance(self.steps, Tracer) or self.steps.ndim:
            return repr(self)
        lines = {
            "value": f"{self.value:.6g}",
            "grad_norm": f"{self.grad_norm:.3g}",
            "steps": f"{self.steps}",
            "evaluations": f"{self.evaluations}",
            "success": f"{self.success}",
            "params": f"{self.params}",
        }
        return "\n".join([self.message, *(f"{name:>12}: {text}" for name, text in lines.items())])
