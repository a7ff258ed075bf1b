"""From a gradient for each example to one update: averages over examples and over batches, and their variance.

The transforms here that are `per_example` take gradients with an axis for the examples, in front by default, as
`jax.vmap(jax.grad(loss), in_axes=(None, 0))` gives. `process` puts them before an optimizer.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp

from .composition import Chain, Optimizer, chain
from .core import GradientTransformation, Stateless, Tree, as_transformation, identity, increment, taken_by
from .pytrees import Decay, Interval, pytree, static
from .transforms.basic import whole
from .transforms.per_example import count_examples
from .tree import abs2, cast_like, check_like, debias, instances, leafwise, ratio, widen, zeros_like

PerElementUpdates: TypeAlias = Tree
"""Gradients with an axis for the examples."""
AggregatedUpdates: TypeAlias = Tree
MaybeAxis: TypeAlias = int | Sequence[int] | None
AggregatorUpdateFn: TypeAlias = Callable[..., tuple[AggregatedUpdates, Any]]


@pytree
class Aggregator(GradientTransformation):
    """An aggregator from a pair of functions, `init(params)` and `update(grads, state, params)`.

    `update` is given a gradient for each example and those extra arguments that its signature takes, and returns one
    update and the next state. For `process(..., aggregator_has_aux=True)` it returns a pair in the place of the update:
    that, and a dict of extra arguments for the transform after it.
    """

    per_example = True

    init_fn: Callable[[Tree], Tree] = static()
    update_fn: Callable[..., Any] = static()

    def __init__(self, init: Callable[[Tree], Tree], update: Callable[..., Any]):
        object.__setattr__(self, "init_fn", init)
        object.__setattr__(self, "update_fn", update)
        self.__post_init__()

    def replace(self, **changes: Any):
        return Aggregator(**{"init": self.init_fn, "update": self.update_fn, **changes})

    @property
    def takes(self):
        return "gradients"

    def init(self, params):
        return self.init_fn(params)

    def update(self, updates, state, params=None, **extra):
        return self.update_fn(updates, state, params, **taken_by(self.update_fn, extra))


@pytree
class ProcessState:
    """The state of `process`: that of each of its parts."""

    preprocessor: Tree
    aggregator: Tree
    postprocessor: Tree


@pytree
class process(GradientTransformation):
    """Gradients of examples through `preprocessor`, made one by `aggregator`, and on through `postprocessor`.

    The preprocessor, such as a clip, gets the leaves with the axis of the examples still on them. An aggregator that
    collects several batches has a bool `ready` in its state: while it is false the updates are 0 and the postprocessor
    is not called, so that its schedules count its own updates. With `aggregator_has_aux` the aggregator returns a pair
    for an update, and the second, a dict, is passed to the postprocessor by name. Between the parts half precision
    travels as float32.
    """

    preprocessor: Any
    aggregator: Any
    postprocessor: Any
    aggregator_has_aux: bool = static(default=False)

    def __post_init__(self):
        for name in ("preprocessor", "aggregator", "postprocessor"):
            part = getattr(self, name)
            object.__setattr__(self, name, as_transformation(part))
        super().__post_init__()

    @property
    def per_example(self):  # pyright: ignore[reportIncompatibleVariableOverride]: here it depends on the aggregator
        return _takes_examples(self.aggregator)

    @property
    def needs(self):
        # What the aggregator makes is known of those in this module only.
        made = getattr(self.aggregator, "aux", None) if self.aggregator_has_aux else frozenset()
        after = self.postprocessor.needs
        return self.preprocessor.needs | self.aggregator.needs | (after & {"params"} if made is None else after - made)

    @property
    def takes(self):
        return "gradients" if self.per_example else self.postprocessor.takes

    @property
    def makes_steps(self):
        return self.postprocessor.makes_steps

    def init(self, params):
        return ProcessState(
            self.preprocessor.init(params), self.aggregator.init(params), self.postprocessor.init(params)
        )

    def update(self, updates, state, params=None, **extra):
        # A chain with params to compare with would refuse the axis of the examples.
        compared = params if "params" in self.preprocessor.needs or not self.per_example else None
        each, pre = self.preprocessor.update(widen(updates), state.preprocessor, compared, **extra)
        one, collected = self.aggregator.update(each, state.aggregator, params, **extra)
        if self.aggregator_has_aux:
            if not (isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], dict)):
                raise TypeError(
                    f"process: {self.aggregator} made a {type(one).__name__}, expected a pair of updates and a dict, "
                    "as aggregator_has_aux=True"
                )
            one, aux = one
            extra = {**extra, **aux}
        if params is not None:
            check_like(one, params, "the aggregated updates", "params")

        def emit():
            new, after = self.postprocessor.update(one, state.postprocessor, params, **extra)
            return cast_like(new, updates), after

        def wait():
            return jax.tree.map(lambda x, u: jnp.zeros_like(x, dtype=u.dtype), one, updates), state.postprocessor

        ready = _ready(collected)
        new, after = emit() if ready is None else jax.lax.cond(ready, emit, wait)
        return new, ProcessState(pre, collected, after)

    def eval_params(self, state, params):
        return self.postprocessor.eval_params(state.postprocessor, params)


def _takes_examples(transform: GradientTransformation) -> bool:
    if isinstance(transform, Chain):
        return any(_takes_examples(link) for link in transform.transforms[:1])
    return transform.per_example


def _ready(state: Tree) -> jax.Array | None:
    """Whether all that is collected in `state` is complete; None where nothing is."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if path and "ready" in (getattr(path[-1], "name", None), getattr(path[-1], "key", None)):
            found.append(jnp.asarray(leaf))
    return functools.reduce(jnp.logical_and, found) if found else None


def _check_axes(name: str, axes: Any) -> Any:
    """`axes`, an int or several, hashable."""
    parts = tuple(axes) if isinstance(axes, list | tuple) else (axes,)
    if not parts or any(isinstance(axis, bool) or not isinstance(axis, int) for axis in parts):
        raise TypeError(f"{name}: per_elt_axis is {axes!r}, expected an int or a tuple of ints")
    return parts if isinstance(axes, list | tuple) else axes


@pytree
class average_per_element_updates(Stateless):
    """The mean over `per_elt_axis`, the axis or axes of the examples, taken in at least float32."""

    per_example = True

    per_elt_axis: int | Sequence[int] = static(default=0)

    def __post_init__(self):
        object.__setattr__(self, "per_elt_axis", _check_axes(type(self).__name__, self.per_elt_axis))
        super().__post_init__()

    @property
    def takes(self):
        return "gradients"

    def apply(self, updates, params):
        count_examples(updates, self.per_elt_axis)
        means = cast_like(_mean(widen(updates), self.per_elt_axis), updates)
        if params is not None:
            check_like(means, params, "the mean gradients", "params")
        return means


def _mean(tree: Tree, axis: Any) -> Tree:
    return jax.tree.map(lambda x: jnp.mean(x, axis=axis), tree)


@pytree
class AccumulateAvgUpdatesState:
    """The state of `accumulate_avg_updates`."""

    micro_step: jax.Array  # int32 scalar: how many batches are in the mean
    ready: jax.Array  # bool scalar: whether the last update completed it
    avg_grad: Tree  # the mean so far, shaped like params, in at least float32
    count: jax.Array  # int32 scalar: the batches seen so far


@pytree
class accumulate_avg_updates(GradientTransformation):
    """The mean of every `accumulation_steps` updates, and zeros in between; see `process`, and `accumulate`.

    It is taken in at least float32. Alone, an optimizer after it would also be called in between.
    """

    accumulation_steps: Interval

    def init(self, params):
        zeros = zeros_like(params)
        return AccumulateAvgUpdatesState(_zero(), jnp.zeros((), bool), zeros, _zero())

    def update(self, updates, state, params=None, **extra):
        n = increment(state.micro_step)
        is_due = n >= whole(self.at(state.count).accumulation_steps)
        new, averages = leafwise(_running_mean, (n, is_due), updates, state.avg_grad)
        n = jnp.where(is_due, jnp.zeros_like(n), n)
        return new, AccumulateAvgUpdatesState(n, is_due, averages, increment(state.count))


def _zero():
    return jnp.zeros((), jnp.int32)


def _running_mean(n, is_due, u, average):
    average = average + (u - average) / n
    zero = jnp.zeros_like(average)
    return jnp.where(is_due, average, zero), jnp.where(is_due, zero, average)


@pytree
class average_incrementally_updates(Optimizer):
    """The mean over the examples, and of that over every `accumulation_steps` batches, with zeros in between.

    `per_elt_axis` is the axis or axes of the examples, None for gradients that have none. It is
    `average_per_element_updates`, then `accumulate_avg_updates`.
    """

    per_elt_axis: int | Sequence[int] | None = static()
    accumulation_steps: Interval

    def __post_init__(self):
        if self.per_elt_axis is not None:
            object.__setattr__(self, "per_elt_axis", _check_axes(type(self).__name__, self.per_elt_axis))
        super().__post_init__()

    @property
    def per_example(self):  # pyright: ignore[reportIncompatibleVariableOverride]: here it depends on a field
        return self.per_elt_axis is not None

    def links(self):
        accumulated = accumulate_avg_updates(self.accumulation_steps)
        if self.per_elt_axis is None:
            return (accumulated,)
        return average_per_element_updates(self.per_elt_axis), accumulated


def get_batch_size_from_per_elt_updates(per_elt_updates: Tree, per_elt_axis: int | Sequence[int]) -> int:
    """The number of examples: the length of the axis `per_elt_axis`, or the product of those of several.

    Raises `ValueError`, with the path, for a leaf that has no such axes, or others than the first leaf.
    """
    return count_examples(per_elt_updates, _check_axes("get_batch_size_from_per_elt_updates", per_elt_axis))


@pytree
class PerElementMeanAndSumSqDiffGradsState:
    """The state of `get_per_element_mean_and_sum_sq_diff_grads`."""

    micro_step: jax.Array  # int32 scalar: how many batches are in the sums
    ready: jax.Array  # bool scalar: whether the last update completed them
    mean_grads: Tree  # the mean so far, shaped like params, in at least float32
    sum_sq_diff_grads: Tree  # the sum of squared deviations from it, real
    count: jax.Array  # int32 scalar: the batches seen so far


@pytree
class get_per_element_mean_and_sum_sq_diff_grads(GradientTransformation):
    """The mean over the examples of every `accumulation_steps` batches, and their sum of squared deviations from it.

    It goes into `process(..., aggregator_has_aux=True)`: its `update` returns a pair for the update, the mean and a
    dict with `sum_sq_diff_grads`, real and shaped like params, and `sample_size`, an int32 scalar. In between all are
    0. The batches have as many examples. Source: Chan et al., 1979,
    http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf.
    """

    per_example = True
    aux: ClassVar[frozenset[str]] = frozenset({"sum_sq_diff_grads", "sample_size"})
    """The names of what it makes beside the mean."""

    per_elt_axis: int | Sequence[int] = static(default=0)
    accumulation_steps: Interval = 1

    def __post_init__(self):
        object.__setattr__(self, "per_elt_axis", _check_axes(type(self).__name__, self.per_elt_axis))
        super().__post_init__()

    @property
    def takes(self):
        return "gradients"

    def init(self, params):
        squares = zeros_like(params, real=True)
        return PerElementMeanAndSumSqDiffGradsState(_zero(), jnp.zeros((), bool), zeros_like(params), squares, _zero())

    def update(self, updates, state, params=None, **extra):
        axis: Any = self.per_elt_axis
        examples = count_examples(updates, axis)
        n = increment(state.micro_step)
        is_due = n >= whole(self.at(state.count).accumulation_steps)
        wide = widen(updates)
        means = _mean(wide, axis)
        if params is not None:
            check_like(means, params, "the mean gradients", "params")
        squares = jax.tree.map(functools.partial(_sum_of_squared_deviations, axis), wide, means)
        mean, averages, total, totals = leafwise(
            _add_batch, (n, examples, is_due), means, state.mean_grads, squares, state.sum_sq_diff_grads
        )
        size = jnp.where(is_due, n * examples, jnp.zeros_like(n))
        n = jnp.where(is_due, jnp.zeros_like(n), n)
        new = cast_like(mean, updates), {"sum_sq_diff_grads": total, "sample_size": size}
        return new, PerElementMeanAndSumSqDiffGradsState(n, is_due, averages, totals, increment(state.count))


def _sum_of_squared_deviations(axis, x, mean):
    return jnp.sum(abs2(x - jnp.expand_dims(mean, axis)), axis=axis)


def _add_batch(n, examples, is_due, batch_mean, mean, batch_squares, squares):
    delta = batch_mean - mean
    mean = mean + delta / n
    squares = squares + batch_squares + abs2(delta) * ((n - 1) * examples / n)
    zero, none = jnp.zeros_like(mean), jnp.zeros_like(squares)
    return (
        jnp.where(is_due, mean, zero),
        jnp.where(is_due, zero, mean),
        jnp.where(is_due, squares, none),
        jnp.where(is_due, none, squares),
    )


@pytree
class PerElementMeanAndVarianceEMAState:
    """The state of `track_per_element_mean_and_variance_with_ema`."""

    count: jax.Array  # int32 scalar: the updates made so far
    ema_decay: jax.Array  # float scalar: the decay of the last update
    mean_grads_ema: Tree  # of the means, from 0 and not debiased, shaped like params, in at least float32
    variance_grads_ema: Tree  # of the variances, real


@pytree
class track_per_element_mean_and_variance_with_ema(GradientTransformation):
    """Keeps moving averages of the updates, means over examples, and of the variance among those examples.

    The updates pass as they are; the averages are in the state, see `get_unbiased_mean_and_variance_ema`. `update`
    needs `sum_sq_diff_grads` and `sample_size`, which `get_per_element_mean_and_sum_sq_diff_grads` makes within
    `process`. The variance is the unbiased one, of single examples; of a sample of one it is taken to be 0.
    """

    ema_decay: Decay = 0.9

    @property
    def needs(self):
        return frozenset({"sum_sq_diff_grads", "sample_size"})

    def init(self, params):
        count = _zero()
        variances = zeros_like(params, real=True)
        return PerElementMeanAndVarianceEMAState(count, self._decay(count), zeros_like(params), variances)

    def update(self, updates, state, params=None, *, sum_sq_diff_grads=None, sample_size=None, **extra):
        if sum_sq_diff_grads is None or sample_size is None:
            raise TypeError(
                f"{self} needs sum_sq_diff_grads, sample_size: put it into process(..., aggregator_has_aux=True) after "
                "get_per_element_mean_and_sum_sq_diff_grads"
            )
        check_like(sum_sq_diff_grads, updates, "sum_sq_diff_grads", "the updates")
        decay = self._decay(state.count)
        degrees = jnp.maximum(jnp.asarray(sample_size).astype(jnp.int32) - 1, 1)
        _, means, variances = leafwise(
            _track,
            (decay, degrees),
            updates,
            state.mean_grads_ema,
            state.variance_grads_ema,
            read=(sum_sq_diff_grads,),
        )
        return updates, PerElementMeanAndVarianceEMAState(increment(state.count), decay, means, variances)

    def _decay(self, count):
        # A buffer of its own, not the hyperparameter's.
        return jnp.array(self.at(count).ema_decay, copy=True).astype(float)


def _track(decay, degrees, u, mean, variance, squares):
    return u, decay * mean + (1 - decay) * u, decay * variance + (1 - decay) * (squares / degrees)


def get_unbiased_mean_and_variance_ema(state: Tree) -> tuple[Tree, Tree]:
    """The moving averages of mean and variance in `state`, over their total weight; before the first update 0.

    `state` is that of `track_per_element_mean_and_variance_with_ema`, or of a transform that it is part of, once; else
    raises `ValueError`.
    """
    kind = PerElementMeanAndVarianceEMAState
    found = instances(state, kind)
    if len(found) != 1:
        raise ValueError(
            f"the state has {len(found)} parts of type {kind.__name__}, expected 1. Was it made by an optimizer with "
            "track_per_element_mean_and_variance_with_ema, as add_mean_variance_to_opt makes one?"
        )
    now = found[0]
    scalars = (now.ema_decay, now.count)
    return leafwise(_unbiased, scalars, now.mean_grads_ema), leafwise(_unbiased, scalars, now.variance_grads_ema)


def _unbiased(decay, count, average):
    return ratio(average, debias(decay, count))


def add_mean_variance_to_opt(
    opt: Any, ema_decay: Any = 0.9, per_elt_axis: int | Sequence[int] = 0, accumulation_steps: Any = 1
) -> process:
    """`opt` fed with gradients of single examples, with moving averages of their mean and variance in the state.

    It updates with the mean of every `accumulation_steps` batches, and not in between. The averages are given by
    `get_unbiased_mean_and_variance_ema(state)`.
    """
    return process(
        identity(),
        get_per_element_mean_and_sum_sq_diff_grads(per_elt_axis, accumulation_steps),
        chain(track_per_element_mean_and_variance_with_ema(ema_decay), opt),
        aggregator_has_aux=True,
    )
