"""`fit` beyond the plain run: kinds of data, executors, evaluation, watching, interruption."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gdfx
from gdfx import stopping
from gdfx.training import sources

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3)).astype(np.float32)
DATA = {"x": X, "y": X @ np.array([1.0, -2.0, 0.5], np.float32)}
HELD_OUT = {"x": X[:7] + 1, "y": (X[:7] + 1) @ np.array([1.0, -2.0, 0.5], np.float32)}
ADAM = gdfx.adam(0.1)


def start():
    return {"w": jnp.zeros(3), "b": jnp.zeros(())}


def losses_of(params, batch):
    return jnp.square(batch["x"] @ params["w"] + params["b"] - batch["y"])


def loss_fn(params, batch):
    return jnp.mean(losses_of(params, batch))


def fit(data=DATA, optimizer=ADAM, *, epochs=3, loss_fn=loss_fn, progress=False, **options):
    return gdfx.fit(loss_fn, start(), optimizer, data, epochs=epochs, progress=progress, **options)


def same(found, expected, tolerance=0):
    for name in ("params", "opt_state", "history", "evaluations", "best_params", "best_step"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
            getattr(found, name),
            getattr(expected, name),
        )
    assert (found.status, found.steps) == (expected.status, expected.steps)


def cut(size, data=DATA):
    return [jax.tree.map(lambda a, i=i: a[i : i + size], data) for i in range(0, len(data["y"]), size)]


def by_hand(batches, optimizer=ADAM):
    """The params and losses of a loop of one's own over these batches, of any sizes."""
    step = gdfx.make_step(loss_fn)
    state, losses = gdfx.TrainState.create(optimizer, start()), []
    for batch in batches:
        state, metrics = step(optimizer, state, batch)
        losses.append(metrics["loss"])
    return state.params, np.array(losses)


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


# Executors.


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"batch_size": 6, "last_batch": "pad"}, {}], ids=repr)
def test_executors_give_the_same_numbers(options):
    loss = losses_of if "last_batch" in options else loss_fn
    scan, loop = (
        fit(loss_fn=loss, executor=executor, epochs=5, stop=stopping.no_progress(50), **options)
        for executor in ("scan", "loop")
    )
    assert (scan.executor, loop.executor) == ("scan", "loop")
    # XLA fuses a step with the loop around it, which rounds differently, where it optimizes as it does for users.
    same(loop, scan, tolerance=0 if "optimization_level=0" in os.environ["XLA_FLAGS"] else 1e-6)
    assert fit(loss_fn=loss, **options).executor == "scan"


def test_an_unknown_executor():
    with pytest.raises(ValueError, match="executor is 'vmap', expected one of: auto, scan, loop"):
        fit(executor="vmap")


# Data.


@pytest.mark.parametrize("size", [1, 3, 4, 7, 20])
def test_every_example_is_seen_once_an_epoch(size):
    seen = fit(
        {"i": np.arange(20)},
        gdfx.sgd(0.0),
        loss_fn=lambda p, b: (p["b"] * b["i"].astype(float), b["i"]),
        batch_size=size,
        last_batch="pad",
        has_aux=True,
        epochs=4,
    ).history["aux"]
    steps = -(-20 // size)
    assert seen.shape == (4 * steps, size)
    for epoch in seen.reshape(4, -1):
        np.testing.assert_array_equal(np.sort(epoch[:20]), np.arange(20))


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("size", [6, 20, 3, 19])
def test_the_last_batch_filled_up_gives_the_mean_over_its_examples(size, on_host, monkeypatch):
    monkeypatch.setattr(sources, "_fits", lambda data: not on_host)
    found = fit(loss_fn=losses_of, batch_size=size, last_batch="pad", key=5)
    order = sources.Shuffled(20, size, 5, pad=True)
    chosen = [order.epoch(e).reshape(-1)[:20] for e in range(3)]
    batches = [b for c in chosen for b in cut(size, jax.tree.map(lambda a, c=c: a[c], DATA))]
    params, losses = by_hand(batches)
    close(found.history["loss"], losses)
    close(found.params, params)


def test_a_filled_up_batch_needs_a_loss_an_example():
    with pytest.raises(ValueError, match=r'shape \(\), expected \(6,\), as last_batch="pad".* without .mean\(\)'):
        fit(batch_size=6, last_batch="pad")
    with pytest.raises(ValueError, match='last_batch is \'keep\', expected "drop" or "pad"'):
        fit(batch_size=6, last_batch="keep")


def test_data_on_the_host_gives_the_same_numbers(monkeypatch):
    expected = fit(batch_size=6)
    monkeypatch.setattr(sources, "_fits", lambda data: False)
    same(fit(batch_size=6), expected)


class Loader:
    """Batches anew each epoch, whose memory is used again."""

    def __init__(self, batches):
        self.batches, self.epochs = batches, 0

    def __iter__(self):
        self.epochs += 1
        held = jax.tree.map(np.copy, self.batches[0])
        for batch in self.batches:
            if jax.tree.map(np.shape, batch) == jax.tree.map(np.shape, held):
                jax.tree.map(np.copyto, held, batch)
                yield held
            else:
                yield batch


@pytest.mark.parametrize("executor", ["scan", "loop"])
@pytest.mark.parametrize("make", [list, Loader], ids=["list", "loader"])
def test_an_iterable_of_batches(make, executor):
    result = fit(make(cut(6)), executor=executor)
    params, losses = by_hand(cut(6)[:3] * 3)  # the last is smaller
    close(result.history["loss"], losses)
    close(result.params, params)
    assert (result.status, result.steps) == ("epochs", 9)


def test_the_last_of_an_iterable_filled_up():
    params, losses = by_hand(cut(6) * 3)
    result = fit(Loader(cut(6)), loss_fn=losses_of, last_batch="pad")
    close(result.history["loss"], losses)
    close(result.params, params)


def test_a_generator_is_gone_through_once():
    same(fit((b for b in cut(5)), epochs=1), fit(cut(5), epochs=1))
    same(fit((b for b in cut(5)), epochs=None), fit(cut(5), epochs=1))
    with pytest.raises(ValueError, match="data is a generator, which can be gone through only once, but epochs is 3"):
        fit(b for b in cut(5))


def test_endless_data():
    def endless():
        while True:
            yield from cut(5)

    result = fit(endless(), epochs=None, stop=stopping.max_steps(10))
    assert (result.status, result.steps) == ("max_steps", 10)
    close(result.params, by_hand((cut(5) * 3)[:10])[0])
    result = fit(batch_size=5, epochs=None, stop=stopping.max_steps(10))
    assert (result.status, result.steps) == ("max_steps", 10)


def test_grain():
    grain = pytest.importorskip("grain.python")
    source = grain.MapDataset.source(np.arange(20)).map(lambda i: jax.tree.map(lambda a: a[i], DATA))
    loader = source.shuffle(seed=3).batch(6, drop_remainder=False).to_iter_dataset()
    batches = list(loader)
    close(fit(loader).params, by_hand(batches[:3] * 3)[0])
    close(fit(loader, loss_fn=losses_of, last_batch="pad").params, by_hand(batches * 3)[0])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_batches_that_lie_on_several_devices(axis_type):
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        put = lambda a: jax.device_put(a, NamedSharding(mesh, PartitionSpec("data")))
        batches = [jax.tree.map(put, b) for b in cut(8)[:2]]
        seen = []
        loss = lambda p, b: seen.append(jax.typeof(b["x"]).sharding) or loss_fn(p, b)
        result = fit(batches, loss_fn=loss)
    assert result.executor == "loop"
    close(result.params, by_hand(cut(8)[:2] * 3)[0])
    if axis_type is AxisType.Explicit:
        assert {s.spec for s in seen} == {PartitionSpec("data", None)}


@pytest.mark.parametrize("executor", ["scan", "loop"])
def test_batches_are_read_while_the_device_works(executor):
    events = []

    def batches():
        for i, batch in enumerate(cut(2)):
            events.append(f"read {i}")
            yield batch

    watch = lambda report: events.append(f"made {report.step}")
    fit(batches(), epochs=1, watch=watch, watch_every=1, executor=executor)
    for i in range(1, 9):
        assert events.index(f"read {i + 1}") < events.index(f"made {i}")


def replaced(**leaves):
    return [*cut(10)[:1], {**cut(10)[1], **leaves}]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "data is a list without batches"),
        (cut(6), {"batch_size": 2}, "batch_size is 2, but data is a list, which is taken for batches"),
        (replaced(x=np.zeros((10, 4), np.float32)), {}, r"\['x'\] is float32\[10, 4\], expected float32\[10, 3\]"),
        (replaced(x=np.zeros((12, 3), np.float32)), {}, r"\['x'\] is float32\[12, 3\], expected float32\[10, 3\]"),
        (replaced(y=np.zeros(10, np.int32)), {}, r"\['y'\] is int32\[10\], expected float32\[10\]"),
        (replaced(z=X), {}, "a batch of the structure"),
        ([{**DATA, "n": np.float32(1)}], {"last_batch": "pad"}, r"\['n'\] has shape \(\).*need a leading axis"),
        ([{"x": X, "y": np.array(["a"] * 20)}], {}, r"\['y'\] has dtype <U1, expected numbers"),
    ],
)
def test_batches_that_do_not_fit(data, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit(data, **options)


def test_without_an_end():
    with pytest.raises(ValueError, match="epochs is None, expected an integer of at least 1, or rules"):
        fit(epochs=None)


# Evaluation.


def evaluate(params):
    return {"val_loss": loss_fn(params, HELD_OUT), "val_worst": losses_of(params, HELD_OUT).max()}


def test_evaluation_after_each_epoch():
    result = fit(batch_size=5, evaluate=evaluate, metric="val_loss", epochs=6)
    np.testing.assert_array_equal(result.evaluations["step"], np.arange(7) * 4)
    for steps, value in zip(result.evaluations["step"], result.evaluations["val_loss"], strict=True):
        params = fit(batch_size=5, epochs=6, stop=stopping.max_steps(int(steps))).params if steps else start()
        close(value, loss_fn(params, HELD_OUT))
    best = result.evaluations["val_loss"].argmin()
    assert result.best_step == result.evaluations["step"][best]
    close(loss_fn(result.best_params, HELD_OUT), result.evaluations["val_loss"][best])
    plain = fit(batch_size=5, epochs=6)
    jax.tree.map(np.testing.assert_array_equal, result.params, plain.params)
    assert (plain.evaluations, plain.best_params, plain.best_step) == ({}, None, None)


@pytest.mark.parametrize("data", [DATA, Loader(cut(5))], ids=["arrays", "loader"])
def test_evaluation_every_so_many_steps(data):
    options = {} if isinstance(data, Loader) else {"batch_size": 5}
    result = fit(data, evaluate=evaluate, metric="val_loss", evaluate_every=5, **options)
    np.testing.assert_array_equal(result.evaluations["step"], [0, 5, 10, 12])
    result = fit(data, evaluate=evaluate, metric="val_worst", mode="max", **options)
    np.testing.assert_array_equal(result.evaluations["step"], [0, 4, 8, 12])
    assert result.best_step == result.evaluations["step"][result.evaluations["val_worst"].argmax()]


def test_the_params_that_are_evaluated_are_those_to_use():
    optimizer = gdfx.chain(gdfx.sgd(0.1), gdfx.ema_params(decay=0.5))
    result = fit(optimizer=optimizer, evaluate=evaluate, metric="val_loss")
    used = gdfx.eval_params(optimizer, result.opt_state, result.params)
    close(result.evaluations["val_loss"][-1], loss_fn(used, HELD_OUT))
    assert abs(loss_fn(result.params, HELD_OUT) - loss_fn(used, HELD_OUT)) > 1e-3


def test_rules_of_what_is_evaluated():
    values = iter([5.0, 4.0, 3.0, 3.5, 3.2, 3.1, 2.0, 9.0])
    scores = lambda params: {"score": next(values)}
    result = fit(batch_size=5, epochs=7, evaluate=scores, stop=stopping.no_progress(3, metric="score"))
    assert (result.status, result.steps, result.best_step) == ("no_progress", 20, 8)
    values = iter([0.1, 0.2, 0.9, 0.95])
    rule = stopping.target(0.9, metric="score", mode="max")
    result = fit(batch_size=5, epochs=7, evaluate=scores, stop=rule, mode="max")
    assert (result.status, result.steps, result.best_step) == ("target", 8, 8)
    # Rules of the training count each step once, whether or not it is followed by an evaluation.
    rule = stopping.no_progress(2, 1e9)
    plain = fit(batch_size=5, epochs=7, stop=rule)
    evaluated = fit(batch_size=5, epochs=7, stop=rule, evaluate=evaluate, metric="val_loss")
    assert (plain.status, plain.steps) == (evaluated.status, evaluated.steps) == ("no_progress", 12)


def test_of_several_evaluations_none_is_best():
    result = fit(evaluate=evaluate)
    assert (result.best_params, result.best_step) == (None, None)
    assert result.evaluations.keys() == {"step", "val_loss", "val_worst"}


def test_a_diverged_run_keeps_its_best():
    bad = lambda params, batch: loss_fn(params, batch) * jnp.where(jnp.abs(params["w"][0]) > 0.35, jnp.nan, 1.0)
    result = fit(batch_size=5, epochs=20, loss_fn=bad, evaluate=evaluate, metric="val_loss")
    assert result.status == "diverged"
    assert np.isfinite(loss_fn(result.best_params, HELD_OUT))
    assert result.best_step < result.steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate": lambda p: 1.0}, "evaluate returned a float, expected a dict"),
        ({"evaluate": lambda p: {}}, "evaluate returned an empty dict"),
        ({"evaluate": lambda p: {"loss": 1.0}}, "loss is the name of a number of the training"),
        ({"evaluate": lambda p: {"a": "b"}}, "a is a str, expected a scalar"),
        ({"evaluate": lambda p: {"a": np.ones(2)}}, r"a has shape \(2,\), expected a scalar"),
        ({"evaluate": evaluate, "metric": "accuracy"}, "metric is 'accuracy', expected one of .*val_loss, val_worst"),
        ({"evaluate": evaluate, "mode": "best"}, "mode is 'best'"),
        ({"metric": "val_loss"}, "metric is 'val_loss', but nothing is evaluated"),
        ({"evaluate_every": 5}, "evaluate_every is 5, but nothing is evaluated"),
        (
            {"evaluate": evaluate, "metric": "val_loss", "evaluate_every": 0},
            "evaluate_every is 0, expected a number of steps",
        ),
        ({"stop": stopping.target(1.0, metric="val_loss")}, "evaluate returns no val_loss; it returns nothing"),
        (
            {"evaluate": evaluate, "metric": "val_loss", "stop": stopping.target(1, "f1") | stopping.max_steps(3)},
            "returns no f1; it returns val_loss, val_worst",
        ),
    ],
)
def test_evaluations_that_cannot_be(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fit(**options)


@pytest.mark.parametrize("batch_size", [None, 1, 3, 7])
def test_evaluator(batch_size):
    params = {"w": jnp.ones(3), "b": jnp.ones(())}
    found = gdfx.evaluator(HELD_OUT, batch_size=batch_size, mean=loss_fn, each=losses_of)(params)
    close(found, dict.fromkeys(("mean", "each"), loss_fn(params, HELD_OUT)))
    traced = jax.jit(jax.vmap(gdfx.evaluator(HELD_OUT, batch_size=batch_size, mean=loss_fn)))
    close(traced(jax.tree.map(lambda p: p[None], params))["mean"][0], found["mean"])


def test_an_evaluator_without_metrics():
    with pytest.raises(ValueError, match="there are no metrics"):
        gdfx.evaluator(HELD_OUT)
    with pytest.raises(TypeError, match="val_loss is a float, expected a function"):
        gdfx.evaluator(HELD_OUT, val_loss=1.0)
    with pytest.raises(ValueError, match=r"each has shape \(3,\), expected a scalar, or \(7,\)"):
        gdfx.evaluator(HELD_OUT, each=lambda p, b: p["w"])(start())


# Watching.


def test_reports():
    reports = []
    result = fit(
        batch_size=5,
        epochs=5,
        watch=reports.append,
        watch_every=6,
        evaluate=evaluate,
        metric="val_loss",
        evaluate_every=9,
    )
    assert [r.step for r in reports] == [0, 6, 9, 12, 18, 20]
    assert [r.epoch for r in reports] == [0, 1, 2, 3, 4, 5]
    assert [r.evaluation is not None for r in reports] == [True, False, True, False, True, True]
    assert reports[0].history == {}
    losses = np.concatenate([r.history["loss"] for r in reports[1:]])
    np.testing.assert_array_equal(losses, result.history["loss"])
    assert [r.evaluation["val_loss"] for r in reports if r.evaluation] == list(result.evaluations["val_loss"])
    assert all(r.optimizer == ADAM for r in reports)
    assert sorted(r.seconds for r in reports) == [r.seconds for r in reports]


def test_numbers_of_the_optimizer_can_be_replaced(caplog):
    def falls(report):
        if report.step == 8:
            return report.optimizer.replace(learning_rate=0.01, b1=0.5)
        return None

    jax.clear_caches()
    with jax.log_compiles():
        result = fit(batch_size=4, watch=(falls, lambda report: None), watch_every=4)
    assert sum("Finished XLA compilation of jit(many)" in r.message for r in caplog.records) == 1
    order = sources.Shuffled(20, 4, 0)
    state, step = gdfx.TrainState.create(ADAM, start()), gdfx.make_step(loss_fn)
    for i, chosen in enumerate(order.take(15)):
        optimizer = ADAM if i < 8 else ADAM.replace(learning_rate=0.01, b1=0.5)
        state, _ = step(optimizer, state, jax.tree.map(lambda a, c=chosen: a[c], DATA))
    close(result.params, state.params)


def test_numbers_of_a_schedule_can_be_replaced():
    def halves(report):
        rate = report.optimizer.learning_rate
        return report.optimizer.replace(learning_rate=rate.replace(peak=rate.peak / 2)) if report.step == 2 else None

    optimizer = gdfx.sgd(gdfx.warmup_cosine(0.4, warmup=0, total=1000))
    result = fit(optimizer=optimizer, epochs=4, watch=halves, watch_every=2)
    first = fit(optimizer=optimizer, epochs=2)
    rest = by_hand([DATA] * 4, optimizer)[1]
    np.testing.assert_array_equal(result.history["loss"][:2], first.history["loss"])
    assert result.history["loss"][2] == pytest.approx(rest[2], rel=1e-5)
    assert result.history["loss"][3] > rest[3] + 1e-3


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (3, TypeError, "returned a int, expected None, or an optimizer"),
        (gdfx.sgd(0.1), ValueError, r"returned sgd\(.*differs from adam\(.*by more than numbers"),
    ],
)
def test_what_cannot_replace_an_optimizer(returned, error, message):
    with pytest.raises(error, match=message):
        fit(watch=lambda report: returned)
    with pytest.raises(TypeError, match="watch holds 3, expected functions"):
        fit(watch=3)
    with pytest.raises(ValueError, match=r"watch_every is 1\.5"):
        fit(watch_every=1.5)


# Interruption.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_good_order(tmp_path, number):
    pytest.importorskip("orbax.checkpoint")
    before = signal.getsignal(number)
    expected = fit(batch_size=5, epochs=10, evaluate=evaluate, metric="val_loss")
    ask = lambda report: os.kill(os.getpid(), number) if report.step == 12 else None
    options = {"batch_size": 5, "epochs": 10, "evaluate": evaluate, "metric": "val_loss", "checkpoint": tmp_path}
    result = fit(watch=ask, watch_every=4, **options)
    assert (result.status, result.steps) == ("interrupted", 12)
    assert result.message == "stopped after 12 steps: it was interrupted"
    assert signal.getsignal(number) is before
    np.testing.assert_array_equal(result.history["loss"], expected.history["loss"][:12])
    same(fit(**options), expected)


def test_a_second_time_it_raises():
    before = signal.getsignal(signal.SIGINT)

    def twice(report):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(watch=twice)
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_no_signals_are_caught():
    results = []
    thread = threading.Thread(target=lambda: results.append(fit()))
    thread.start()
    thread.join()
    assert results[0].status == "epochs"


# Resuming.


class Stateful:
    """An iterable whose iterator tells its state; it cannot be gone through again from the start."""

    def __init__(self, batches, as_bytes=False):
        self.batches, self.as_bytes, self.begun = batches, as_bytes, 0

    def __iter__(self):
        return _Stateful(self)


class _Stateful:
    def __init__(self, of):
        self.of, self.at = of, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.of.begun += 1
        if self.at == len(self.of.batches):
            raise StopIteration
        self.at += 1
        return self.of.batches[self.at - 1]

    def get_state(self):
        return bytes([self.at]) if self.of.as_bytes else {"at": self.at}

    def set_state(self, state):
        self.at = state[0] if self.of.as_bytes else state["at"]


@pytest.mark.parametrize(
    "make",
    [lambda: cut(6), lambda: Loader(cut(6)), lambda: Stateful(cut(5)), lambda: Stateful(cut(5), True)],
    ids=["list", "loader", "state", "bytes"],
)
@pytest.mark.parametrize("stops", [(4, 5, 6), (1, 3, 9)])
def test_an_iterable_goes_on_where_it_was(tmp_path, make, stops):
    pytest.importorskip("orbax.checkpoint")
    options = {"evaluate": evaluate, "metric": "val_loss", "loss_fn": losses_of, "last_batch": "pad"}
    expected = fit(make(), **options)
    for step in stops:
        ask = lambda report, step=step: os.kill(os.getpid(), signal.SIGINT) if report.step == step else None
        assert fit(make(), checkpoint=tmp_path, watch=ask, watch_every=1, **options).status == "interrupted"
    data = make()
    same(fit(data, checkpoint=tmp_path, **options), expected)
    if isinstance(data, Stateful) and stops[-1] == 9:
        assert data.begun == 5  # 3 batches that are left, its end, and the one that was read ahead
    same(fit(make(), checkpoint=tmp_path, **options), expected)


def test_a_generator_that_had_ended(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    expected = fit((b for b in cut(5)), epochs=None, checkpoint=tmp_path)
    same(fit((b for b in cut(5)), epochs=None, checkpoint=tmp_path), expected)


def test_replaced_numbers_and_aux_go_on(tmp_path):
    pytest.importorskip("orbax.checkpoint")

    def watch(report, ends=-1):
        if report.step == ends:
            os.kill(os.getpid(), signal.SIGINT)
        return report.optimizer.replace(learning_rate=0.03) if report.step == 4 else None

    loss = lambda p, b: (loss_fn(p, b), {"b": p["b"], "w": (p["w"], None)})
    options = {"loss_fn": loss, "has_aux": True, "batch_size": 5, "watch_every": 4}
    expected = fit(watch=watch, **options)
    fit(watch=lambda report: watch(report, 8), checkpoint=tmp_path, **options)
    result = fit(watch=watch, checkpoint=tmp_path, **options)
    same(result, expected)
    assert jax.tree.structure(result.history) == jax.tree.structure(expected.history)


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    fit(evaluate=evaluate, metric="val_loss").plot(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").stat().st_size > 1000
