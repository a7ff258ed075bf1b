"""`make_step`, `fit`, its data and its stopping rules, against loops written by hand."""

import importlib
import itertools
import logging
import math
import pickle
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdfx
from gdfx import stopping
from gdfx.models import cnn
from gdfx.testing import trees_close
from gdfx.training import loop, progress
from gdfx.training.data import Shuffled
from gdfx.training.step import PROVIDED

SIZE = 20
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SIZE, 3)).astype(np.float32)
DATA = {"x": X, "y": X @ np.array([1.0, -2.0, 0.5], np.float32) + 0.1 * RNG.normal(size=SIZE).astype(np.float32)}


def loss_fn(params, batch):
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def start(dtype=jnp.float32):
    return {"w": jnp.zeros(3, dtype), "b": jnp.zeros((), dtype)}


def fit(optimizer=None, data=DATA, *, loss_fn=loss_fn, params=None, epochs=3, progress=False, **options):
    optimizer = gdfx.adam(0.1) if optimizer is None else optimizer
    params = start() if params is None else params
    return gdfx.fit(loss_fn, params, optimizer, data, epochs=epochs, progress=progress, **options)


def rows(data, chosen):
    return jax.tree.map(lambda a: a[chosen], data)


def by_hand(optimizer, batches, params=None, loss_fn=loss_fn):
    """The losses of a plain loop over `batches`, and the params after it."""
    params = start() if params is None else params
    state, losses = optimizer.init(params), []
    value_and_grad = jax.jit(jax.value_and_grad(loss_fn))
    update = jax.jit(optimizer.update)
    for batch in batches:
        loss, grads = value_and_grad(params, batch)
        updates, state = update(grads, state, params)
        params = gdfx.apply_updates(params, updates)
        losses.append(loss)
    return params, np.array(losses)


def shuffled_batches(batch_size, steps, key=0, data=DATA):
    order = Shuffled(len(jax.tree.leaves(data)[0]), batch_size, key)
    return [rows(data, chosen) for chosen in order.take(steps)]


def assert_close(actual, expected, rtol=1e-6, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@gdfx.pytree
class records(gdfx.GradientTransformation):
    """Needs `required`, and keeps a summary of all extras in its state."""

    required: tuple[str, ...] = gdfx.static(default=())

    @property
    def needs(self):
        return frozenset(self.required)

    def init(self, params):
        return jnp.zeros(4)

    def update(self, updates, state, params=None, **extra):
        scale = extra.get("scale", jnp.float32(0))
        return updates, jnp.stack([extra["value"], extra["value_fn"](params), extra["grad"]["w"][0], scale])


# The step.


def test_metrics_are_the_loss_and_the_norm_of_its_gradients():
    state, metrics = gdfx.make_step(loss_fn)(gdfx.sgd(0.1), gdfx.TrainState.create(gdfx.sgd(0.1), start()), DATA)
    loss, grads = jax.value_and_grad(loss_fn)(start(), DATA)
    norm = math.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    assert set(metrics) == {"loss", "grad_norm"}
    assert_close(metrics, {"loss": loss, "grad_norm": norm})
    assert_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, start(), grads))


def test_aux_is_returned_beside_the_loss():
    def with_aux(params, batch):
        return loss_fn(params, batch), {"bias": params["b"], "n": 3}

    optimizer = gdfx.chain(records(("value_fn",)), gdfx.sgd(0.1))
    state = gdfx.TrainState.create(optimizer, start())
    state, metrics = gdfx.make_step(with_aux, has_aux=True)(optimizer, state, DATA)
    assert float(metrics["aux"]["bias"]) == 0.0
    assert int(metrics["aux"]["n"]) == 3
    assert_close(state.opt_state["records"][:2], jnp.stack([loss_fn(start(), DATA)] * 2))
    history = fit(gdfx.sgd(0.1), loss_fn=with_aux, has_aux=True).history
    assert history["aux"]["bias"].shape == (3,)
    assert history["aux"]["bias"][1] == state.params["b"]


def test_the_state_is_donated_and_the_params_of_the_caller_are_not():
    params, optimizer = start(), gdfx.adam(0.1)
    first = gdfx.TrainState.create(optimizer, params)
    gdfx.make_step(loss_fn)(optimizer, first, DATA)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))
    assert_same(params, start())


def test_an_optimizer_may_keep_params_in_its_state():
    def average(updates, state, params):
        return updates, jax.tree.map(lambda s, p: (s + p) / 2, state, params)

    optimizer = gdfx.chain(gdfx.sgd(0.1), gdfx.from_functions(lambda params: params, average))
    params = start()
    result = fit(optimizer, params=params)
    assert_same(params, start())
    assert_close(result.params, by_hand(optimizer, [DATA] * 3)[0])


def test_one_compilation_for_all_values_of_the_hyperparameters():
    traces = []

    def counted(params, batch):
        traces.append(None)
        return loss_fn(params, batch)

    step = gdfx.make_step(counted)
    state = gdfx.TrainState.create(gdfx.adam(1e-3), start())
    for rate in (0.5, 1, np.float64(0.1), np.float32(0.1), jnp.float32(1e-2), jnp.array(1), np.array(0.3)):
        expected, _ = by_hand(gdfx.adam(rate), [DATA])
        state = gdfx.TrainState.create(gdfx.adam(rate), start())
        state, _ = step(gdfx.adam(rate), state, DATA)
        assert_close(state.params, expected)
    for b1, eps in ((0, 1e-3), (0.5, 1)):
        state, _ = step(gdfx.adam(0.1, b1=b1, eps=eps), state, DATA)
    assert len(traces) == 1


def test_the_optimizer_is_offered_value_grad_and_value_fn():
    optimizer = gdfx.chain(records(tuple(PROVIDED)), gdfx.sgd(0.1))
    state, _ = gdfx.make_step(loss_fn)(optimizer, gdfx.TrainState.create(optimizer, start()), DATA)
    value, grads = jax.value_and_grad(loss_fn)(start(), DATA)
    assert_close(state.opt_state["records"], jnp.stack([value, value, grads["w"][0], jnp.float32(0)]))


def wide_loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)


@pytest.mark.parametrize("parts", [2, 5, 10])
def test_parts_of_a_batch_are_the_whole_batch(parts):
    rng = np.random.default_rng(0)
    batch = tuple(jnp.asarray(rng.normal(size=(20, n)), jnp.float32) for n in (3, 2))
    params = {
        "a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32),
    }
    after = []
    for accumulate in (1, parts):
        step = gdfx.make_step(wide_loss, accumulate=accumulate)
        state = gdfx.TrainState.create(gdfx.momo_adam(0.1), params)
        for _ in range(5):
            state, metrics = step(gdfx.momo_adam(0.1), state, batch)
        after.append((state.params, metrics))
    trees_close(after[1], after[0], rtol=1e-5)


def test_parts_of_a_batch_take_the_memory_of_one():
    params = {"a": jnp.ones((8, 256)), "b": jnp.ones((256, 2))}
    batch = jnp.ones((1024, 8)), jnp.ones((1024, 2))
    opt = gdfx.as_arrays(gdfx.sgd(0.1))
    sizes = []
    for accumulate in (1, 16):
        step = gdfx.step_function(wide_loss, accumulate=accumulate)
        compiled = jax.jit(step).lower(opt, gdfx.TrainState.create(opt, params), batch).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 8


def test_sums_over_parts_are_in_float32():
    """In bfloat16 a sum of 300 ones would stop at 256."""
    step = gdfx.make_step(lambda params, batch: jnp.sum(params * batch[0]), accumulate=300)
    params = jnp.zeros(1, jnp.bfloat16)
    state, metrics = step(
        gdfx.sgd(1.0), gdfx.TrainState.create(gdfx.sgd(1.0), params), jnp.ones((300, 1), jnp.bfloat16)
    )
    assert state.params.dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.params, [-1.0])
    assert metrics["grad_norm"] == 1


def test_aux_of_parts_is_stacked():
    step = gdfx.make_step(lambda params, x: (jnp.mean(params * x), {"most": x.max()}), has_aux=True, accumulate=3)
    state = gdfx.TrainState.create(gdfx.sgd(0.1), jnp.ones(()))
    _, metrics = step(gdfx.sgd(0.1), state, jnp.arange(6.0))
    np.testing.assert_array_equal(metrics["aux"]["most"], [1, 3, 5])
    assert metrics["loss"] == 2.5


def test_batches_that_cannot_be_cut():
    step = gdfx.make_step(wide_loss, accumulate=3)
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    for y in (jnp.ones((4, 2)), jnp.ones(())):
        with pytest.raises(ValueError, match=r"batch\[1\] has shape .* cut into accumulate=3 equal parts"):
            step(gdfx.sgd(0.1), gdfx.TrainState.create(gdfx.sgd(0.1), params), (jnp.ones((6, 3)), y))
    for accumulate in (0, 2.0):
        with pytest.raises(ValueError, match=f"accumulate is {accumulate}, expected an int of at least 1"):
            gdfx.make_step(wide_loss, accumulate=accumulate)


def test_what_the_step_does_not_make_is_passed_by_name():
    optimizer = gdfx.chain(gdfx.sgd(0.1), records(("scale", "value")))
    step, state = gdfx.make_step(loss_fn), gdfx.TrainState.create(optimizer, start())
    with pytest.raises(TypeError, match=r"records.*needs scale, which the step does not make.*scale=\.\.\."):
        step(optimizer, state, DATA)
    state, _ = step(optimizer, state, DATA, scale=jnp.float32(7))
    assert state.opt_state["records"][3] == 7
    with pytest.raises(TypeError, match="needs scale"):
        fit(optimizer)


# fit against loops.


def test_without_batch_size_it_is_gradient_descent():
    result = fit(gdfx.sgd(0.1), epochs=12)
    params, losses = start(), []
    for _ in range(12):
        loss, grads = jax.value_and_grad(loss_fn)(params, DATA)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        losses.append(loss)
    assert_close(result.params, params)
    assert_close(result.history["loss"], np.array(losses))
    assert (result.status, result.steps) == ("epochs", 12)
    assert result.message == "stopped after 12 steps: all epochs were run"
    assert repr(result) == f"FitResult(status='epochs', steps=12, loss={losses[-1]:.6g})"
    assert set(result.seconds) == {"compile", "run"}
    assert all(s > 0 for s in result.seconds.values())


@pytest.mark.parametrize(("batch_size", "per_epoch"), [(1, 20), (6, 3), (20, 1)])
def test_mini_batches_are_those_of_the_order(batch_size, per_epoch):
    optimizer = gdfx.adam(0.05)
    result = fit(optimizer, batch_size=batch_size, epochs=2, key=5)
    params, losses = by_hand(optimizer, shuffled_batches(batch_size, 2 * per_epoch, key=5))
    assert result.steps == 2 * per_epoch
    assert all(result.history[name].shape == (2 * per_epoch,) for name in ("loss", "grad_norm"))
    assert_close(result.params, params)
    assert_close(result.history["loss"], losses)


def test_fit_equals_a_loop_of_make_step():
    optimizer = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adamw(0.1, weight_decay=0.1))
    result = fit(optimizer, batch_size=6, epochs=4)
    step, state, history = gdfx.make_step(loss_fn), gdfx.TrainState.create(optimizer, start()), []
    for batch in shuffled_batches(6, 12):
        state, metrics = step(optimizer, state, batch)
        history.append(metrics)
    assert_close(result.params, state.params)
    assert_close(result.opt_state, state.opt_state)
    assert_close(result.history, jax.tree.map(lambda *rows: np.stack(rows), *history))


@pytest.mark.parametrize(("size", "batch_size"), [(12, 3), (13, 3), (5, 5), (7, 1)])
def test_an_epoch_sees_each_example_at_most_once(size, batch_size):
    data = np.eye(size, dtype=np.float32)
    result = fit(
        gdfx.sgd(0.0), data, loss_fn=lambda p, b: (jnp.sum(p) * 0, b.sum(0)), params=jnp.zeros(2), epochs=6,
        batch_size=batch_size, has_aux=True,
    )  # fmt: skip
    seen = result.history["aux"].reshape(6, size // batch_size, size).sum(1)
    assert (seen.sum(1) == size // batch_size * batch_size).all()
    assert seen.max() == 1
    if size % batch_size:
        assert len(np.unique(seen, axis=0)) > 1  # the left-out examples change
    orders = Shuffled(size, batch_size, 0)
    assert any((orders.epoch(0) != orders.epoch(e)).any() for e in range(1, 6))


def test_the_key_determines_the_trajectory():
    def losses(key):
        return fit(batch_size=4, key=key, epochs=2).history["loss"]

    assert_same(losses(3), losses(np.int64(3)))
    assert_same(losses(jax.random.key(3)), losses(jax.random.PRNGKey(3)))
    assert (losses(3) != losses(4)).any()
    assert (losses(jax.random.key(3)) != losses(jax.random.key(4))).any()


def test_params_passed_in_are_untouched():
    params = start()
    data = jax.tree.map(jnp.asarray, DATA)
    fit(params=params, data=data)
    fit(params=params, data=data, batch_size=3)
    assert_same(params, start())
    assert_same(data, DATA)
    numpy_params = jax.tree.map(np.asarray, params)
    assert_same(fit(params=numpy_params).params, fit(params=params).params)
    tied = {"w": params["w"], "b": params["b"], "unused": params["w"]}  # one array, two leaves
    assert_close(fit(params=tied).params["w"], fit(params=params).params["w"])


@pytest.mark.parametrize("data", [jax.tree.map(jnp.asarray, DATA), (DATA["x"], [DATA["y"]]), DATA["x"]])
def test_data_is_any_pytree_of_arrays(data):
    def loss(params, batch):
        x = jax.tree.leaves(batch)[0]
        return jnp.mean((x @ params["w"] + params["b"] - 1) ** 2)

    result = fit(gdfx.sgd(0.1), data, loss_fn=loss, batch_size=5)
    batches = shuffled_batches(5, 12, data=data)
    assert jax.tree.structure(batches[0]) == jax.tree.structure(data)
    assert_close(result.params, by_hand(gdfx.sgd(0.1), batches, loss_fn=loss)[0])


def test_a_convolution_is_run_one_step_at_a_time():
    model = cnn((4, 4, 1), channels=(2,), classes=2)
    data = {"x": RNG.normal(size=(8, 4, 4, 1)).astype(np.float32), "y": np.arange(8) % 2}

    def loss(params, batch):
        logits = model.apply(params, batch["x"])
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    params, optimizer = model.init(jax.random.key(0)), gdfx.adam(0.01)
    stop = (stopping.max_steps(9), stopping.no_progress(50))
    result = fit(optimizer, data, loss_fn=loss, params=params, batch_size=2, epochs=3, stop=stop)
    assert result.executor == ("loop" if jax.default_backend() == "cpu" else "scan")
    expected, losses = by_hand(optimizer, shuffled_batches(2, 9, data=data), params, loss)
    assert_close(result.params, expected, rtol=1e-5)
    assert_close(result.history["loss"], losses)
    assert (result.status, result.steps) == ("max_steps", 9)


def test_the_numbers_do_not_depend_on_the_block(monkeypatch):
    def run():
        optimizer = gdfx.adam(gdfx.from_function(decaying))  # also advances from block to block
        rules = (stopping.no_progress(40, 1e-3), stopping.max_steps(597))
        return fit(optimizer, batch_size=1, epochs=30, stop=rules)

    def decaying(count):
        return 0.1 / (1 + 0.1 * count)

    whole = run()
    assert (whole.status, whole.steps) == ("max_steps", 597)
    assert whole.history["loss"].shape == (597,)
    for block, seconds in ((7, 100.0), (256, 0.0), (1, 0.25)):  # many short calls, one step a call, blocks of one
        monkeypatch.setattr(loop, "BLOCK", block)
        monkeypatch.setattr(loop, "SECONDS", seconds)
        other = run()
        assert (other.status, other.steps) == ("max_steps", 597)
        assert_close(other.history, whole.history, rtol=1e-5)
        assert_close(other.params, whole.params)
        assert_close(other.opt_state, whole.opt_state)


def test_an_epoch_may_be_longer_than_a_block():
    data = {name: np.tile(a, (15, *[1] * (a.ndim - 1))) for name, a in DATA.items()}
    rule = stopping.no_progress(1, 1e9)  # no epoch is better than the first: over after the second
    result = fit(gdfx.sgd(0.01), data, batch_size=1, epochs=4, stop=rule)
    assert (result.status, result.steps) == ("no_progress", 600)
    params, losses = by_hand(gdfx.sgd(0.01), shuffled_batches(1, 600, data=data))
    assert_close(result.history["loss"], losses, rtol=1e-5)
    assert_close(result.params, params)


def test_schedules_advance():
    rates = [0.1, 0.2, 0.0, 0.3]
    scheduled = fit(gdfx.sgd(lambda count: jnp.array(rates)[count.astype(int)]), epochs=4)
    params = start()
    for rate in rates:
        params, _ = by_hand(gdfx.sgd(rate), [DATA], params)
    assert_close(scheduled.params, params)
    losses = scheduled.history["loss"]
    assert losses[2] == losses[3]  # the rate of 0 between them
    assert losses[1] != losses[2]


def test_x64(x64):
    data = jax.tree.map(lambda a: a.astype(np.float64), DATA)
    result = fit(gdfx.adam(0.1), data, params=start(jnp.float64), batch_size=5, stop=stopping.no_progress(5))
    params, losses = by_hand(gdfx.adam(0.1), shuffled_batches(5, 12, data=data), start(jnp.float64))
    assert result.history["loss"].dtype == result.params["w"].dtype == np.float64
    assert_close(result.history["loss"], losses, rtol=1e-13, atol=1e-13)
    assert_close(result.params, params, rtol=1e-13, atol=1e-13)


def test_half_precision_params():
    result = fit(
        gdfx.adam(0.1), loss_fn=lambda p, b: jnp.mean(p.astype(jnp.float32) ** 2), params=jnp.ones(3, "bfloat16")
    )
    assert result.params.dtype == jnp.bfloat16
    assert result.history["loss"][-1] < result.history["loss"][0]


# Stopping. With sgd(0.25) on x**2 from 1 the loss before step k is 4**-k, and the gradient 2**(1-k): exact numbers.


ONE = np.ones(1, np.float32)


def halving(**options):
    return fit(gdfx.sgd(0.25), ONE, loss_fn=lambda p, b: p**2, params=jnp.float32(1), epochs=30, **options)


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        (stopping.max_steps(1), 1),
        (stopping.max_steps(7), 7),
        (stopping.gradient_norm(2.0**-3), 5),
        (stopping.gradient_norm(2.0**-3 * 0.99), 6),
        (stopping.target(4.0**-6), 7),
        (stopping.target(1.0), 1),
        (stopping.no_progress(1, 0.04), 5),  # falls of 3/4, 3/16, 3/64; the next, 3/256, is too small
        (stopping.no_progress(3, 0.04), 7),  # 1/256 is the third loss in a row that is not below 1/64 - 0.04
        (stopping.diverged(0.5), 1),
    ],
    ids=repr,
)
def test_each_rule_stops_at_its_step(rule, steps):
    result = halving(stop=rule)
    assert (result.status, result.steps) == (type(rule).__name__, steps)
    assert len(result.history["loss"]) == len(result.history["grad_norm"]) == steps
    assert result.params == 2.0**-steps
    assert result.message.startswith(f"stopped after {steps} steps: ")
    words = {
        "max_steps": "largest number",
        "gradient_norm": "norm of the gradients fell",
        "target": "target was reached",
        "no_progress": "no more progress",
        "diverged": "smaller learning rate",
    }
    assert words[result.status] in result.message


def test_a_rule_that_never_holds_lets_all_epochs_run():
    rules = [stopping.target(-1), stopping.max_steps(31), stopping.gradient_norm(0), stopping.diverged(1.5)]
    result = halving(stop=rules)
    assert (result.status, result.steps) == ("epochs", 30)
    assert halving(stop=stopping.max_steps(30)).status == "max_steps"  # a rule comes before the end of the epochs


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_fit_stops_when_the_loss_is_not_finite(bad):
    def loss(p, batch):
        return jnp.where(p >= 3, bad, -p)  # sgd(1) takes p through 0, 1, 2, 3

    result = fit(gdfx.sgd(1.0), ONE, loss_fn=loss, params=jnp.float32(0), epochs=9, stop=stopping.max_steps(8))
    assert (result.status, result.steps) == ("diverged", 4)
    np.testing.assert_array_equal(result.history["loss"], np.float32([0, -1, -2, bad]))


def test_fit_stops_when_the_gradients_are_not_finite():
    result = fit(gdfx.sgd(0.1), ONE, loss_fn=lambda p, b: jnp.sqrt(p), params=jnp.float32(0), epochs=5)
    assert (result.status, result.steps) == ("diverged", 1)
    assert result.history["loss"][0] == 0


def test_fit_stops_above_the_limit():
    def run(limit):  # x -> -3x
        rule = stopping.diverged(limit)
        return fit(gdfx.sgd(2.0), ONE, loss_fn=lambda p, b: p**2, params=jnp.float32(1), epochs=9, stop=rule)

    assert (run(9.0**3).status, run(9.0**3).steps) == ("diverged", 5)  # 9**3 is not above the limit, 9**4 is
    assert run(9.0**8).status == "epochs"


def test_the_first_rule_that_holds_names_the_status():
    both = (stopping.target(4.0**-2), stopping.max_steps(3))
    assert halving(stop=both).status == "target"
    assert halving(stop=both[::-1]).status == "max_steps"
    assert halving(stop=(stopping.max_steps(4), *both[:1])).status == "target"  # earlier in time beats earlier in order


def test_no_progress_looks_at_the_means_of_epochs():
    rule = stopping.no_progress(2)
    result = fit(gdfx.sgd(0.0), batch_size=5, epochs=9, stop=rule)  # equal up to rounding of a mean in another order
    result_full = fit(gdfx.sgd(0.0), epochs=9, stop=rule)
    assert result.status == "no_progress"
    assert result.steps % 4 == 0
    assert (result_full.status, result_full.steps) == ("no_progress", 3)


def test_a_rule_of_ones_own():
    @gdfx.pytree
    class every_other(stopping.StoppingRule):
        at: gdfx.NonNegative

        def init(self):
            return {"checked": jnp.zeros(())}

        def check(self, state, signals):
            checked = state["checked"] + 2
            return {"checked": checked}, checked >= self.at

    result = halving(stop=every_other(7))
    assert (result.status, result.steps) == ("every_other", 4)
    assert result.message == "stopped after 4 steps: the rule every_other held"


target, max_steps, gradient_norm = stopping.target, stopping.max_steps, stopping.gradient_norm


@pytest.mark.parametrize(
    ("rule", "status", "steps"),
    [
        (max_steps(7) | target(4.0**-3), "target", 4),
        (target(4.0**-3) | max_steps(4), "target", 4),
        (max_steps(4) | target(4.0**-3), "max_steps", 4),
        (target(4.0**-3) & max_steps(9), "target and max_steps", 9),
        (max_steps(20) | (target(4.0**-3) & gradient_norm(2.0**-6)), "target and gradient_norm", 8),
        (max_steps(5) | (target(4.0**-3) & gradient_norm(2.0**-6)), "max_steps", 5),
        (max_steps(6) & (target(-1) | gradient_norm(2.0**-3)), "max_steps and gradient_norm", 6),
        (target(-1) | (max_steps(3) & (target(1) | (max_steps(2) & target(4.0**-1)))), "max_steps and target", 3),
        (stopping.no_progress(1, 0.04) & max_steps(9), "no_progress and max_steps", 9),
        ((target(-1) | target(-2), target(-1) & max_steps(1), max_steps(2) & target(1)), "max_steps and target", 2),
    ],
    ids=repr,
)
def test_rules_compose(rule, status, steps):
    result = halving(stop=rule)
    assert (result.status, result.steps) == (status, steps)


def test_messages_of_composed_rules_tell_of_each():
    message = halving(stop=target(0.1) & max_steps(3)).message
    assert message == "stopped after 3 steps: the target was reached and the largest number of steps was reached"


def test_rules_that_must_hold_together_may_each_hold_alone():
    def loss(p, batch):  # the losses are 0, -1, 0, 0, ...
        return jnp.where(p < 1.5, -p, 0 * p)

    both = target(-1) & max_steps(4)
    result = fit(gdfx.sgd(1.0), ONE, loss_fn=loss, params=jnp.float32(0), epochs=8, stop=both)
    assert (result.status, result.steps) == ("epochs", 8)


@pytest.mark.parametrize(
    "rule",
    [
        max_steps(3) | target(0.1),
        max_steps(3) & target(0.1) | gradient_norm(1e-3),
        (max_steps(3) | target(0.1)) & (gradient_norm(1e-3) | stopping.diverged()) & stopping.wall_time(60),
        target(-1) | (max_steps(3) & (target(1) | (max_steps(2) & target(0.25)))),
    ],
    ids=repr,
)
def test_the_repr_of_composed_rules_evaluates_back(rule):
    again = eval(repr(rule), vars(stopping))
    assert again == rule
    assert repr(again) == repr(rule)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert hash(again) == hash(rule)


def test_composed_rules_are_flat_and_are_pytrees():
    a, b, c = max_steps(3), target(0.1), gradient_norm(1e-3)
    assert (a | b) | c == a | (b | c) == stopping.any_of((a, b, c))
    assert (a & b) & c == a & (b & c) == stopping.all_of((a, b, c))
    assert a | b != a & b
    assert a | b != b | a
    assert jax.tree.leaves(a | (b & c)) == [3, 0.1, 1e-3]
    assert jax.tree.map(lambda x: 2 * x, a | b) == max_steps(6) | target(0.2)


def test_rules_do_not_compose_with_other_things():
    with pytest.raises(TypeError, match=r"any_of: 0.1 is no stopping rule, expected one such as gdfx.stopping.target"):
        _ = max_steps(3) | 0.1  # pyright: ignore
    with pytest.raises(TypeError, match=r"all_of: <class '.*target'> is no stopping rule"):
        _ = max_steps(3) & target  # pyright: ignore
    with pytest.raises(ValueError, match="any_of: there are 1 rules, expected at least 2"):
        stopping.any_of((max_steps(3),))
    with pytest.raises(TypeError, match=r"all_of: rules is max_steps\(steps=3\), expected a tuple"):
        stopping.all_of(max_steps(3))  # pyright: ignore
    with pytest.raises(TypeError, match=r"is neither true nor false: compose rules with \| and &"):
        _ = max_steps(3) and target(0.1)


def test_the_values_of_rules_compile_nothing_new_and_may_be_batched():
    traces = []

    @jax.jit
    def steps(rule):
        traces.append(None)

        def step(held):
            made, loss, state, _ = held
            signals = {"loss": loss, "grad_norm": 2 * loss, "step": made + 1}
            return made + 1, loss / 2, *rule.check(state, signals)

        start = jnp.zeros(()), jnp.ones(()), rule.init(), jnp.zeros((), bool)
        made, _, state, _ = jax.lax.while_loop(lambda held: ~held[-1], step, start)
        return made, state

    for limit, loss, expected, status in (
        (9, 2.0**-3, 4, "target and gradient_norm"),
        (2, 2.0**-3, 2, "max_steps"),
    ):
        rule = gdfx.as_arrays(max_steps(limit) | (target(loss) & gradient_norm(1.0)))
        made, state = steps(rule)
        assert (made, rule.status(state)) == (expected, status)
    assert len(traces) == 1
    several = jax.vmap(lambda limit: max_steps(limit) | target(2.0**-3))(jnp.array([2.0, 3.0, 8.0]))
    np.testing.assert_array_equal(jax.vmap(steps)(several)[0], [2, 3, 4])


def test_only_a_rule_that_held_has_a_status():
    for rule, said in ((max_steps(3) | target(0.1), "none of"), (max_steps(3) & target(0.1), "not all of")):
        with pytest.raises(ValueError, match=f"status: {said} max_steps"):
            rule.status(rule.init())


def test_wall_time_counts_from_the_start_of_fit(monkeypatch):
    clock = itertools.count(100.0, 0.5)  # each look at it takes half a second
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(loop, "SECONDS", 2.0)  # of which a call seems to take a half: twice as many steps
    result = fit(epochs=200, stop=stopping.wall_time(6))
    # Looks: the start 0, take 0.5, 2 to compile, 2 a call and one between them for the next rows.
    # Rows are taken at 0.5 (1 step), 2.5 (1), 4 (2), 5.5 (2), 7: one step of these.
    assert (result.status, result.steps) == ("wall_time", 7)
    assert result.message == "stopped after 7 steps: the time was up"


def test_wall_time_ends_training():
    began = time.perf_counter()
    rule = stopping.wall_time(0.5) & max_steps(2)
    result = fit(batch_size=1, epochs=10**9, stop=rule | stopping.wall_time(60))
    assert result.status == "wall_time and max_steps"
    assert result.steps >= 2
    assert time.perf_counter() - began < 30


# The bar.


def test_the_bar_counts_the_steps(monkeypatch):
    told = []

    class Bar:
        def __init__(self, total, **kw):
            told.append(total)

        def update(self, n):
            told.append(n)

        def set_postfix_str(self, text, refresh):
            told.append(text)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            told.append("closed")

    modules = {"tqdm.auto": SimpleNamespace(tqdm=Bar)}
    monkeypatch.setattr(progress, "require", lambda name, extra: modules[name])
    result = fit(epochs=5, progress=True)
    assert told[0] == 5
    assert told[-1] == "closed"
    assert sum(n for n in told[1:] if isinstance(n, int)) == 5
    assert f"loss {result.history['loss'][-1]:.4g}, rate 0.1" in told
    with pytest.raises(ZeroDivisionError):
        fit(progress=True, loss_fn=lambda p, b: 1 / 0)
    assert told[-1] == "closed"


def test_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert importlib.util.find_spec("tqdm") is None
    assert fit(progress=None).steps == 3
    with pytest.raises(ImportError, match=r'tqdm is needed.*pip install "gdfx\[examples\]"'):
        fit(progress=True)


# Bad input.


def scalar_free(params, batch):
    return (batch["x"] @ params["w"] - batch["y"]) ** 2


@pytest.mark.parametrize(
    ("loss", "has_aux", "error", "message"),
    [
        (scalar_free, False, ValueError, r"loss_fn returned shape \(20,\), expected a scalar: average.*\.mean\(\)"),
        (lambda p, b: (loss_fn(p, b), 1), False, ValueError, r"returned a tuple, expected a scalar.*has_aux=True"),
        (lambda p, b: {"loss": loss_fn(p, b)}, False, ValueError, r"returned a dict, expected a scalar"),
        (lambda p, b: None, False, ValueError, r"returned a NoneType, expected a scalar"),
        (loss_fn, True, ValueError, r"expected a pair \(loss, aux\), as has_aux=True"),
        (lambda p, b: (loss_fn(p, b), 1, 2), True, ValueError, r"expected a pair \(loss, aux\)"),
        (lambda p, b: jnp.sum(p["w"]).astype(int), False, ValueError, r"returned dtype int32, expected a real"),
        (lambda p, b: jnp.sum(p["w"]).astype(complex), False, ValueError, r"returned dtype complex64, expected a real"),
    ],
)
def test_a_loss_that_is_not_one_real_number(loss, has_aux, error, message):
    with pytest.raises(error, match=message):
        fit(loss_fn=loss, has_aux=has_aux)
    with pytest.raises(error, match=message):
        gdfx.make_step(loss, has_aux=has_aux)(gdfx.sgd(0.1), gdfx.TrainState.create(gdfx.sgd(0.1), start()), DATA)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.zeros(3), "layer": {"n": jnp.arange(3)}}, r"params\['layer'\]\['n'\] has dtype int32"),
        ({"w": 1.0}, r"params\['w'\] has type float"),
        ({"w": jax.random.key(0)}, r"params\['w'\] has dtype key<fry>"),
    ],
)
def test_params_that_have_no_gradients(params, message):
    with pytest.raises(TypeError, match=message):
        fit(params=params)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, np.float32(2), "2"])
def test_batch_size_is_a_positive_integer(batch_size):
    with pytest.raises(ValueError, match=r"batch_size is .*, expected a positive integer, or None"):
        fit(batch_size=batch_size)


def test_batch_size_is_at_most_the_data():
    with pytest.raises(ValueError, match="batch_size is 21, but there are only 20 examples; for full batches use None"):
        fit(batch_size=21)
    assert fit(batch_size=np.int64(20)).steps == 3


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"x": X, "y": X[:7]}, ValueError, r"different lengths: 20 at \['x'\], 7 at \['y'\]"),
        ({"x": X[:0], "y": X[:0]}, ValueError, "data is empty"),
        ({}, ValueError, "data is empty"),
        (None, ValueError, "data is empty"),
        ((1.0, 2.0), TypeError, r"data at \[0\] is a float, expected an array"),
        ({"x": X, "y": "labels"}, TypeError, r"data at \['y'\] is a str"),
        (1.0, TypeError, "data at the root is a float, expected an array"),
        ({"x": X, "y": jnp.float32(1)}, TypeError, r"data at \['y'\] is a scalar"),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_data_that_cannot_be_batched(data, error, message, batch_size):
    with pytest.raises(error, match=message):
        fit(data=data, batch_size=batch_size)


@pytest.mark.parametrize("epochs", [0, -3, 1.5, True, None])
def test_epochs_is_a_positive_integer(epochs):
    with pytest.raises(ValueError, match=r"epochs is .*, expected an integer of at least 1"):
        fit(epochs=epochs)


@pytest.mark.parametrize("key", [None, 0.5, -1, "seed"])
def test_key_is_a_key_or_an_integer(key):
    with pytest.raises(TypeError, match=r"key is .*, expected a PRNG key or a non-negative integer"):
        fit(batch_size=2, key=key)


@pytest.mark.parametrize("stop", [0.1, stopping.target, [stopping.target(0.1), None], "target"])
def test_stop_holds_rules(stop):
    with pytest.raises(TypeError, match=r"stop holds .*, expected stopping rules such as gdfx.stopping.target\(0.1\)"):
        fit(stop=stop)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: stopping.max_steps(-1), ValueError, "max_steps: steps is -1, expected at least 0"),
        (lambda: stopping.gradient_norm(math.nan), ValueError, "gradient_norm: tolerance is nan"),
        (lambda: stopping.target("low"), TypeError, "target: value is 'low', expected a number"),
        (lambda: stopping.target(lambda count: 0.1), TypeError, "target: value is <function .*, expected a number"),
        (
            lambda: stopping.no_progress(min_delta=gdfx.from_function(abs)),
            TypeError,
            "min_delta is .*expected a number",
        ),
    ],
)
def test_rules_take_numbers(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_step_takes_a_train_state():
    step, optimizer = gdfx.make_step(loss_fn), gdfx.adam(0.1)
    with pytest.raises(TypeError, match=r"state is a dict, expected a TrainState: TrainState.create"):
        step(optimizer, start(), DATA)
    with pytest.raises(TypeError, match="state is a tuple"):
        step(optimizer, (start(), optimizer.init(start())), DATA)
    other = gdfx.TrainState.create(gdfx.sgd(0.1), start())
    with pytest.raises(ValueError, match="Was the state made by another optimizer"):
        step(optimizer, other, DATA)
    with pytest.raises(TypeError, match="expected a transform"):
        step(0.1, other, DATA)
    with pytest.raises(TypeError, match=r"call it, as in adam\(\.\.\.\)"):
        gdfx.TrainState.create(gdfx.adam, start())


def test_a_batched_optimizer_is_for_sweeps():
    with pytest.raises(ValueError, match=r"learning_rate has shape \(2,\), expected a scalar.*gdfx.sweep"):
        fit(gdfx.adam(jnp.array([0.1, 0.2])))


def test_the_loop_compiles_once(caplog):
    with jax.log_compiles(True), caplog.at_level(logging.WARNING, logger="jax"):
        fit(batch_size=1, epochs=30)  # 600 steps: calls of several lengths
    compiled = [r.message for r in caplog.records if r.message.startswith("Compiling")]
    assert sum("jit(many)" in message for message in compiled) == 1
    assert not [message for message in compiled if "slice" in message]
