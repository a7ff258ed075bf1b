"""D-Adaptation of AdaGrad: https://arxiv.org/abs/2301.07733."""

import jax
import jax.numpy as jnp

from ..composition import Optimizer
from ..core import GradientTransformation, Tree, increment, missing_argument
from ..pytrees import Decay, NonNegative, Positive, pytree, static
from ..transforms.decay import Mask, add_decayed_weights
from ..transforms.scale import _times, scale_by_learning_rate
from ..tree import (
    abs2,
    check_like,
    copies,
    leafwise,
    ratio,
    real_dtype,
    sqrt,
    sum as tree_sum,
    sum_of_abs,
    zeros_like,
)
from .dadapt_sgd import limited_growth


@pytree
class ScaleByDadaptAdagradState:
    """The state of `scale_by_dadapt_adagrad`."""

    count: jax.Array  # int32 scalar: the updates made so far
    sum_of_squares: Tree  # of the gradients, real
    grad_sum: Tree  # of the gradients, each times its rate
    init_params: Tree  # copies of the params at the start
    estim_lr: jax.Array  # scalar: the distance to the solution, as estimated
    squares_weighted: jax.Array  # scalar: the sum of the squared rates times norms

    def report(self):
        """What `gdfx.metrics` tells of it."""
        return {"estim_lr": self.estim_lr}


@pytree
class scale_by_dadapt_adagrad(GradientTransformation):
    """Goes to where the sum of the gradients, each times its rate, leads from the initial params, scaled as AdaGrad.

    A rate is `learning_rate` times an estimate of the distance to the solution, one for all leaves; it starts at
    `estim_lr0`, which should be too small, and only grows, in one step at most `growth_rate` times, or without a limit
    with None. `momentum` is the weight of the present params against those that it goes to. The sum of squares starts
    at `initial_accumulator_value`; `eps` is added to its root.
    """

    learning_rate: NonNegative = 1.0
    momentum: Decay = 0.0
    eps: NonNegative = 1e-6
    estim_lr0: Positive = 1e-6
    growth_rate: NonNegative | None = None
    initial_accumulator_value: NonNegative = 1e-6

    @property
    def needs(self):
        return frozenset({"params"})

    def init(self, params):
        count, dtype = jnp.zeros((), jnp.int32), real_dtype(params)
        now = self.at(count)
        squares = zeros_like(params, real=True, fill=now.initial_accumulator_value)
        d = jnp.array(now.estim_lr0, dtype)
        return ScaleByDadaptAdagradState(count, squares, zeros_like(params), copies(params), d, jnp.zeros((), dtype))

    def update(self, updates, state, params=None, **extra):
        if params is None:
            raise missing_argument(self, {"params"})
        check_like(updates, state.init_params, "updates", "params", same_kind=False)
        now = self.at(state.count)
        rate = leafwise(_times, (now.learning_rate,), state.estim_lr)
        read = params, state.init_params
        direction, squares, total = leafwise(
            _dadapt, (now, rate), updates, state.sum_of_squares, state.grad_sum, read=read
        )
        weighted = lambda tree: tree_sum(leafwise(_weighted, (now.eps,), squares, read=(tree,)))
        scalars = now, rate, weighted(updates), weighted(total), sum_of_abs(total)
        d, spent = leafwise(_estimate, scalars, state.estim_lr, state.squares_weighted)
        t = increment(state.count)
        return direction, ScaleByDadaptAdagradState(t, squares, total, state.init_params, d, spent)


def _dadapt(now, rate, g, squares, total, x, x0):
    squares = squares + abs2(g)
    total = total + rate * g
    far = jnp.conj(x - x0) + ratio(total, sqrt(squares) + now.eps)
    return (1 - now.momentum) * far, squares, total


def _weighted(eps, squares, x):
    return ratio(abs2(x), sqrt(squares) + eps)


def _estimate(now, rate, of_gradient, of_total, size, d, spent):
    spent = spent + jnp.square(rate) * of_gradient
    return limited_growth(now.growth_rate, d, ratio(of_total - spent, size)), spent


@pytree
class dadapt_adagrad(Optimizer):
    """AdaGrad that estimates its learning rate by D-Adaptation; see `scale_by_dadapt_adagrad`.

    Leave `learning_rate` at 1, or let a schedule with the peak 1 stand for it. Weight decay is coupled: a part of the
    gradient; `mask` says which leaves decay, by default all.
    """

    learning_rate: NonNegative = 1.0
    momentum: Decay = 0.0
    eps: NonNegative = 1e-6
    estim_lr0: Positive = 1e-6
    growth_rate: NonNegative | None = None
    initial_accumulator_value: NonNegative = 1e-6
    weight_decay: NonNegative | None = None
    mask: Mask = static(default=None)

    def links(self):
        link = scale_by_dadapt_adagrad(
            self.learning_rate,
            self.momentum,
            self.eps,
            self.estim_lr0,
            self.growth_rate,
            self.initial_accumulator_value,
        )
        last = link, scale_by_learning_rate(1.0)
        if self.weight_decay is None:
            return last
        return add_decayed_weights(self.weight_decay, self.mask, mode="coupled"), *last
