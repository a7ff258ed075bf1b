"""Training from the first step to the last: `fit`."""

import operator
import time
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal, get_args

import jax.numpy as jnp

from ..core import Tree, as_transformation
from ..pytrees import as_arrays
from .data import check_epochs, check_steps, seed_words
from .evaluation import Evaluations
from .interrupt import Interrupts
from .loop import Executor, Loop, compile_loop, joined, run_loop
from .progress import progress_bar
from .result import FitResult, Report
from .resume import Resumable, Store
from .run import Run
from .sources import Arrays, source_of
from .step import TrainState, mean_of_real, step_function
from .stopping import StoppingRule, check_rules, diverged


def fit(
    loss_fn: Callable[..., Any],
    params: Tree,
    optimizer: Any,
    data: Any,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    last_batch: Literal["drop", "pad"] = "drop",
    key: Any = 0,
    stop: StoppingRule | tuple[StoppingRule, ...] = (),
    has_aux: bool = False,
    evaluate: Callable[[Tree], dict[str, Any]] | None = None,
    evaluate_every: int | None = None,
    metric: str | None = None,
    mode: Literal["min", "max"] = "min",
    watch: Callable[[Report], Any] | Sequence[Callable[[Report], Any]] = (),
    watch_every: int | None = None,
    executor: Executor = "auto",
    progress: bool | None = None,
    checkpoint: Store = None,
    checkpoint_seconds: float = 60.0,
) -> FitResult:
    """Trains `params` to make `loss_fn(params, batch)`, the mean loss over a batch, small on `data`.

    `data` is a pytree of arrays with one row an example; a batch is the same pytree with `batch_size` rows. With
    `batch_size=None` every step sees all of the data (gradient descent), with 1 a single example (stochastic gradient
    descent). Each epoch goes through the examples in a new order, without replacement, that `key` (a PRNG key or an
    integer) determines; the rest that does not fill a batch is left out of that epoch. The arrays are kept on the
    device, where they fit. Or `data` is a list of batches, or any iterable of them that is no pytree, such as a data
    loader: its own order counts, each time through is an epoch, and the next batches are read while the device works.

    With `last_batch="pad"` no example is left out: `loss_fn` returns the loss of each example, of shape
    `(batch_size,)`, and the step takes the mean of those which do not merely fill up the last batch.

    Training ends after `epochs`, or when `stop` holds, a rule or several of which any will do (see `gdfx.stopping`), or
    when the loss or the gradients are not finite, or after Ctrl-C or SIGTERM; `status` says which. With `epochs=None`
    it goes on until `stop` holds or a data loader ends.

    `evaluate(params)` returns scalars by name, before the training, after each epoch or `evaluate_every` steps, and at
    the end; `gdfx.evaluator` makes one. It gets the params to be used, averaged where the optimizer keeps an average;
    the best of them by `metric`, to be named where there are several, are kept. `watch`, a function or several, gets a
    `Report` at the start, and then every `watch_every` steps, by default about each second. It may return
    an optimizer with other numbers to go on with: `report.optimizer.replace(learning_rate=0.01)`. `progress` shows a
    bar: by default where tqdm is installed. `executor` is `"scan"` for many steps in one compiled call, `"loop"` for
    one, by default what the backend runs faster; the numbers are the same, but for the rounding of a step that XLA
    compiles together with the loop around it (on CPU within 1e-6 in float32).

    With `checkpoint`, a directory or a `gdfx.Checkpoints`, all that the run goes on from is saved every
    `checkpoint_seconds` and at the end. The same call made again resumes there by itself, and ends bit for bit where it
    would have ended if it had never been stopped; it goes by the optimizer and the epochs it is given, so that these
    may be changed in between. A run that has diverged is not saved.

    Raises:
        TypeError, ValueError: an argument or what a function returned is not as expected; or the checkpoint is of
            another run: what differs is told, and nothing on the disk is changed.
    """
    began = time.perf_counter()
    if epochs is not None:
        check_epochs(epochs)
    rules = check_rules(stop)
    source = source_of(data, epochs=epochs, batch_size=batch_size, key=key, last_batch=last_batch)
    if epochs is None and not rules and isinstance(source, Arrays):
        raise ValueError("epochs is None, expected an integer of at least 1, or rules in `stop` that end the run")
    if executor not in (names := get_args(Executor)):
        raise ValueError(f"executor is {executor!r}, expected one of: {', '.join(names)}")
    for name, steps in (("evaluate_every", evaluate_every), ("watch_every", watch_every)):
        if steps is not None:
            check_steps(name, steps)
    if evaluate is None and evaluate_every is not None:
        raise ValueError(f"evaluate_every is {evaluate_every}, but nothing is evaluated: pass evaluate=")
    optimizer, rule = as_transformation(optimizer), reduce(operator.or_, (*rules, diverged()))
    what = {"batch_size": batch_size, "last_batch": last_batch, "key": seed_words(key), "stop": repr(rule)}
    what = {"examples": getattr(source, "size", None)} | what
    steps = source.steps_per_epoch
    interrupts = Interrupts()
    saved = Resumable(checkpoint, checkpoint_seconds, what)
    try:
        run = Run(
            step_function(mean_of_real(loss_fn, has_aux) if source.masked else loss_fn, has_aux=has_aux),
            optimizer,
            source,
            rule,
            total=epochs * steps if epochs is not None and steps is not None else None,
            evaluations=Evaluations(evaluate, metric, mode),
            evaluate_every=evaluate_every,
            watchers=_watchers(watch),
            watch_every=watch_every,
            saved=saved,
            carry={
                "state": TrainState.create(as_arrays(optimizer), params),
                "rule": rule.init(),
                "step": jnp.zeros((), jnp.int32),
                "over": jnp.zeros((), bool),
            },
            clock=lambda: time.perf_counter() - began,
            stop=lambda: interrupts.requested,
        )
        with interrupts, progress_bar(run.total, progress, "fit") as run.bar:
            run.begin()
            run.bar.update(run.made)
            ended = Loop(run.carry, {"compile": 0.0, "run": 0.0}, "none")
            rows = None if run.carry["over"] else run.take(1)
            if rows is not None:
                run.with_aux_like(rows)
                program = compile_loop(
                    run.body, lambda carry: carry["over"], run.constants, run.carry, rows, executor=executor
                )
                ended = run_loop(program, run.constants, run.carry, rows, run.take, run.watch)
                run.finish(interrupts.requested)
    finally:
        saved.close()
    if run.carry["over"]:
        status = rule.status(run.carry["rule"])
    else:
        status = "interrupted" if interrupts.requested else "epochs"
    return FitResult(
        params=run.carry["state"].params,
        opt_state=run.carry["state"].opt_state,
        status=status,
        steps=run.made,
        history=joined(run.history),
        seconds=ended.seconds,
        evaluations=run.evaluations.arrays(),
        best_params=run.evaluations.best_params,
        best_step=run.evaluations.best_step,
        executor=ended.executor,
    )


def _watchers(watch: Any) -> tuple[Callable[[Report], Any], ...]:
    watchers = tuple(watch) if isinstance(watch, list | tuple) else (watch,)
    for watcher in watchers:
        if not callable(watcher):
            raise TypeError(f"watch holds {watcher!r}, expected functions that take a gdfx.Report")
    return watchers
