"""Full-batch minimization as a pure function, for use inside of `jit`, `vmap` and other programs: `minimize`."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core import Tree, as_transformation
from ..pytrees import as_arrays, pytree
from .data import check_steps
from .step import TrainState, step_function
from .stopping import StoppingRule, check_rules, diverged, max_steps as at_most, signals_of


@pytree
class MinimizeResult:
    """What `minimize` ended with; under `vmap` each field has the members' axis."""

    params: Tree
    opt_state: Tree
    loss: jax.Array  # before the last step
    grad_norm: jax.Array  # likewise
    steps: jax.Array  # int32: the steps made
    rule: StoppingRule  # all that could have stopped it
    rule_state: Tree

    @property
    def status(self) -> str:
        """The name of the rule that held. Not under `jit` or `vmap`: ask the result outside, or one member of it."""
        if isinstance(self.steps, Tracer) or np.ndim(self.steps):
            raise ValueError(
                "status: the result is traced, or that of several members; outside of jit, take one of them: "
                "jax.tree.map(lambda x: x[i], result).status"
            )
        return self.rule.status(self.rule_state)


def minimize(
    loss_fn: Callable[..., Any],
    params: Tree,
    optimizer: Any,
    batch: Tree = None,
    *,
    stop: StoppingRule | tuple[StoppingRule, ...] = (),
    max_steps: int = 1000,
) -> MinimizeResult:
    """Goes down `loss_fn(params, batch)` until `stop` holds, or for `max_steps`, in a `lax.while_loop`.

    Each step sees all of `batch`. It is a pure function: `jax.jit` it, and `jax.vmap` it over params, optimizers,
    batches or numbers of the rules, where each member stops by itself. It also stops when the loss or the norm of the
    gradients is not finite. The signal `seconds` is always 0: a compiled program has no clock. Reverse-mode derivatives
    do not pass through it, as its number of steps is not known before.

    Raises:
        TypeError, ValueError: as `make_step`; the optimizer needs what the step does not provide.
    """
    check_steps("max_steps", max_steps)
    optimizer = as_arrays(as_transformation(optimizer))
    rule = as_arrays(reduce(operator.or_, (*check_rules(stop), diverged(), at_most(max_steps))))
    step = step_function(loss_fn)

    def forward(carry):
        state, rule_state, made, _, _ = carry
        state, metrics = step(optimizer, state, batch)
        signals = signals_of(metrics, made + 1, 0.0, True)
        rule_state, over = rule.check(rule_state, signals)
        return (
            state,
            rule_state,
            made + 1,
            jnp.asarray(over, bool),
            {name: metrics[name] for name in ("loss", "grad_norm")},
        )

    state = TrainState.create(optimizer, params)
    shapes = jax.eval_shape(step, optimizer, state, batch)[1]
    told = {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in ("loss", "grad_norm")}
    start = state, rule.init(), jnp.zeros((), jnp.int32), jnp.zeros((), bool), told
    state, rule_state, steps, _, told = jax.lax.while_loop(lambda carry: ~carry[3], forward, start)
    return MinimizeResult(state.params, state.opt_state, told["loss"], told["grad_norm"], steps, rule, rule_state)
