"""Wrappers with the interface of optax, where that of gdfx is another: `MultiSteps`, `lookahead` and `sam`."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import GradientTransformation, Tree, apply_updates, as_transformation, increment, missing_argument
from ..pytrees import Interval, Range, pytree, static
from ..transforms.basic import whole
from ..tree import check_params, copies, leafwise, where
from ..wrappers import named
from ..wrappers.accumulate import AccumulateState, accumulate


@pytree
class MultiStepsState:
    """The state of `MultiSteps`."""

    accumulated: AccumulateState  # that of `gdfx.accumulate`, which does the work
    use_grad_mean: bool = static()

    @property
    def mini_step(self) -> jax.Array:
        """int32 scalar: the batches since the last update, without those that were skipped."""
        return self.accumulated.batches

    @property
    def gradient_step(self) -> jax.Array:
        """int32 scalar: the updates made so far."""
        return self.accumulated.made

    @property
    def inner_opt_state(self) -> Tree:
        """The state of the optimizer."""
        return self.accumulated.inner

    @property
    def acc_grads(self) -> Tree:
        """The mean, or the sum, of the gradients since the last update."""
        terms = jnp.maximum(self.mini_step, 1) if self.use_grad_mean else jnp.ones_like(self.mini_step)
        return leafwise(_over, (terms,), self.accumulated.gradients)

    @property
    def skip_state(self) -> Tree:
        """What `should_skip_update_fn` told of the last batch; `()` without one."""
        return () if self.accumulated.info is None else self.accumulated.info


def _over(n, total):
    return total / n


@pytree
class MultiSteps(GradientTransformation):
    """Updates with the mean of the gradients of several batches: `gdfx.accumulate` with the interface of optax.

    `every_k_schedule` goes by the updates made. `accumulator_dtype` is by default that of the params, at least float32.
    The optimizer is given the mean, or the sum, of `value=`, as of the gradients.
    """

    opt: Any
    every_k_schedule: Interval
    use_grad_mean: bool = static(default=True)
    should_skip_update_fn: Callable[..., Any] | None = static(default=None)
    accumulator_dtype: Any = static(default=None)

    def __post_init__(self):
        object.__setattr__(self, "opt", as_transformation(self.opt))
        super().__post_init__()

    @property
    def inner_opt(self) -> GradientTransformation:
        """The optimizer."""
        return self.opt

    def gradient_transformation(self) -> GradientTransformation:
        """Itself: it is a transform."""
        return self

    def has_updated(self, state: MultiStepsState) -> jax.Array:
        """Whether the last call of `update` made an update: a scalar bool."""
        return (state.mini_step == 0) & (state.gradient_step > 0)

    @property
    def needs(self):
        return self.opt.needs

    @property
    def takes(self):
        return self.opt.takes

    @property
    def makes_steps(self):
        return self.opt.makes_steps

    def at(self, count):
        return self  # its schedule goes by a count of its own

    def init(self, params):
        return MultiStepsState(self._at(jnp.zeros((), jnp.int32)).init(params), self.use_grad_mean)

    def update(self, updates, state, params=None, **extra):
        now = self._at(state.gradient_step)
        new, accumulated = now.update(updates, state.accumulated, params, **extra)
        return new, MultiStepsState(accumulated, self.use_grad_mean)

    def eval_params(self, state, params):
        return self.opt.eval_params(state.inner_opt_state, params)

    def _at(self, gradient_step: jax.Array) -> accumulate:
        return accumulate(
            self.opt,
            super().at(gradient_step).every_k_schedule,
            mean=self.use_grad_mean,
            should_skip=self.should_skip_update_fn,
            accumulator_dtype=self.accumulator_dtype,
        )


class LookaheadParams(NamedTuple):
    """The params of `lookahead`: gradients are taken at the fast ones, and the slow ones are to be evaluated."""

    fast: Tree
    slow: Tree

    @classmethod
    def init_synced(cls, params: Tree) -> "LookaheadParams":
        """Both are `params`, the slow ones in buffers of their own."""
        return cls(params, jax.tree.map(lambda p: jnp.array(p, copy=True), params))


@pytree
class LookaheadState:
    """The state of `lookahead`."""

    fast_state: Tree  # that of the fast optimizer
    steps_since_sync: jax.Array  # int32 scalar
    count: jax.Array  # int32 scalar: the updates made so far


@pytree
class lookahead(GradientTransformation):
    """Lookahead with slow params beside the fast ones, in `LookaheadParams`; see `gdfx.lookahead` for one without.

    `update` takes gradients by the fast params, and gives updates of both. With `reset_state` the state of the
    optimizer is made anew when the two have met. `init` takes `LookaheadParams`, or the fast params alone.
    """

    fast_optimizer: Any
    sync_period: Interval
    slow_step_size: Annotated[Any, Range(0.0, 1.0)]
    reset_state: bool = static(default=False)

    def __post_init__(self):
        object.__setattr__(self, "fast_optimizer", as_transformation(self.fast_optimizer))
        super().__post_init__()

    @property
    def needs(self):
        return self.fast_optimizer.needs | {"params"}

    @property
    def takes(self):
        return self.fast_optimizer.takes

    @property
    def makes_steps(self):
        return self.fast_optimizer.makes_steps

    def init(self, params):
        fast = params.fast if isinstance(params, LookaheadParams) else params
        check_params(fast)
        return LookaheadState(self.fast_optimizer.init(fast), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(self, updates, state, params=None, **extra):
        if params is None:
            raise missing_argument(self, {"params"})
        if not isinstance(params, LookaheadParams):
            raise TypeError(
                f"lookahead: params is a {type(params).__name__}, expected LookaheadParams, as "
                "LookaheadParams.init_synced(params) makes. gdfx.lookahead takes plain params"
            )
        now = self.at(state.count)
        steps = increment(state.steps_since_sync)
        meets = steps >= whole(now.sync_period)
        new, fast_state = self.fast_optimizer.update(updates, state.fast_state, params.fast, **extra)
        fast, slow = leafwise(_look, (now.slow_step_size, meets), new, params.slow, read=(params.fast,))
        if self.reset_state:
            fast_state = where(meets, self.fast_optimizer.init(params.fast), fast_state)
        steps = jnp.where(meets, jnp.zeros_like(steps), steps)
        return LookaheadParams(fast, slow), LookaheadState(fast_state, steps, increment(state.count))


def _look(part, meets, u, slow, fast):
    back = (1 - part) * (slow - fast)
    return jnp.where(meets, back + part * u, u), jnp.where(meets, part * (fast + u - slow), jnp.zeros_like(slow))


@pytree
class SAMState:
    """The state of `sam`."""

    steps_since_sync: jax.Array  # int32 scalar: the steps uphill since the last of the optimizer
    opt_state: Tree  # that of the optimizer
    adv_state: Tree  # that of the adversarial optimizer
    cache: Tree  # the params before the steps uphill, in at least float32; None in opaque mode


@pytree
class sam(GradientTransformation):
    """Sharpness-aware minimization (https://arxiv.org/abs/2010.01412) of steps uphill; see `gdfx.sam` for a link.

    Of every `sync_period` updates all but the last go uphill, against those of `adv_optimizer`; the last goes back to
    where they began, and from there a step of `optimizer` down the gradient at the top. With `reset_state` the state of
    `adv_optimizer` is then made anew; else it stays as the last step uphill has left it.

    In `opaque_mode` each update makes all of these steps, and so none that is seen goes uphill. It needs
    `grad_fn=`, a function of the params and the number of the step uphill, from 0, to the gradients; these are averaged
    over `batch_axis_name`, an axis of `pmap`, `shard_map` or `vmap`, if given.
    """

    optimizer: Any
    adv_optimizer: Any
    sync_period: int = static(default=2)
    reset_state: bool = static(default=True)
    opaque_mode: bool = static(default=False)
    batch_axis_name: str | None = static(default=None)

    def __post_init__(self):
        for name in ("optimizer", "adv_optimizer"):
            object.__setattr__(self, name, as_transformation(getattr(self, name)))
        super().__post_init__()
        if type(self.sync_period) is not int or self.sync_period < 1:
            raise ValueError(f"sam: sync_period is {self.sync_period!r}, expected an int of at least 1")

    @property
    def needs(self):
        own = {"params", "grad_fn"} if self.opaque_mode else {"params"}
        return self.optimizer.needs | self.adv_optimizer.needs | own

    @property
    def takes(self):
        return "gradients"

    @property
    def makes_steps(self):
        return self.optimizer.makes_steps

    def init(self, params):
        check_params(params)
        states = self.optimizer.init(params), self.adv_optimizer.init(params)
        return SAMState(jnp.zeros((), jnp.int32), *states, None if self.opaque_mode else copies(params))

    def update(self, updates, state, params=None, **extra):
        provided = {name for name, value in {"params": params, **extra}.items() if value is not None}
        if missing := self.needs - provided:
            raise missing_argument(self, missing)
        return (self._opaque if self.opaque_mode else self._transparent)(updates, state, params, **extra)

    def _transparent(self, updates: Tree, state: SAMState, params: Tree, **extra: Any) -> tuple[Tree, SAMState]:
        n = state.steps_since_sync
        is_last = n == self.sync_period - 1
        cache = leafwise(_keep, (n == 0,), params, state.cache)[1]
        uphill, adv_state = self.adv_optimizer.update(updates, state.adv_state, params, **extra)
        origin = jax.tree.map(lambda c, p: c.astype(p.dtype), cache, params)
        downhill, opt_state = self.optimizer.update(updates, state.opt_state, origin, **extra)
        new = leafwise(_step, (is_last,), downhill, read=(uphill, cache, params))
        at_last = self.adv_optimizer.init(params) if self.reset_state else state.adv_state
        return new, SAMState(
            (n + 1) % self.sync_period,
            where(is_last, opt_state, state.opt_state),
            where(is_last, at_last, adv_state),
            cache,
        )

    def _opaque(self, updates: Tree, state: SAMState, params: Tree, **extra: Any) -> tuple[Tree, SAMState]:
        grads, adv_state, top = updates, state.adv_state, params
        for i in range(self.sync_period - 1):
            uphill, adv_state = self.adv_optimizer.update(grads, adv_state, top, **extra)
            top = apply_updates(top, jax.tree.map(jnp.negative, uphill))
            grads = extra["grad_fn"](top, i)
            if self.batch_axis_name is not None:
                grads = jax.lax.pmean(grads, self.batch_axis_name)
        if self.reset_state:
            adv_state = self.adv_optimizer.init(params)
        new, opt_state = self.optimizer.update(grads, state.opt_state, params, **extra)
        return new, SAMState(state.steps_since_sync, opt_state, adv_state, None)


def _keep(is_first, p, cache):
    return p, jnp.where(is_first, p, cache)


def _step(is_last, downhill, uphill, cache, p):
    return jnp.where(is_last, cache - p + downhill, -uphill)


@pytree
class TakesObjFn(named.whole):
    """A transform that is given `value_fn` by optax's name of it, `obj_fn`."""

    @property
    def needs(self):
        return frozenset("obj_fn" if name == "value_fn" else name for name in self.transform.needs)

    def update(self, updates, state, params=None, **extra):
        if "obj_fn" in extra:
            extra["value_fn"] = extra["obj_fn"]
        return super().update(updates, state, params, **extra)
