"""`sweep`: every member against a training of its own, whatever the executor, the parts, the culling, the neighbors."""

import functools
import logging
import math
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gdfx
from gdfx.core import as_transformation
from gdfx.sweeps import engine, members as programs, run
from gdfx.sweeps.plan import plan
from gdfx.training import loop
from gdfx.training.data import Shuffled

SIZE = 16
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SIZE, 3)).astype(np.float32)
DATA = {"x": X, "y": np.sin(X @ np.array([1.0, -2.0, 0.5], np.float32))}
EXECUTORS = ["vmap", "map", "loop"]


@pytest.fixture(autouse=True)
def two_workers(monkeypatch):
    """Parts do not depend on the machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)


def init_fn(key):
    start = jax.random.uniform(key, (4,))
    return {"w": start[:3], "scale": start[3]}


def loss_fn(params, batch):
    return jnp.mean((params["scale"] * jnp.tanh(batch["x"] @ params["w"]) - batch["y"]) ** 2)


def sweep(optimizers, *, loss_fn=loss_fn, init_fn=init_fn, data=DATA, epochs=3, progress=False, **options):
    return gdfx.sweep(loss_fn, init_fn, optimizers, data, epochs=epochs, progress=progress, **options)


@functools.cache
def compiled_step(loss_fn):
    return gdfx.make_step(loss_fn)


def alone(
    optimizer, *, epochs=3, steps=None, batch_size=None, seed=0, key=0, data=DATA, init_fn=init_fn, loss_fn=loss_fn
):
    """The state and the losses of one training, step by step."""
    base = jax.random.key(key)
    size = len(jax.tree.leaves(data)[0])
    order = Shuffled(size, batch_size or size, [*np.asarray(jax.random.key_data(base)), seed])
    state = gdfx.TrainState.create(optimizer, init_fn(jax.random.fold_in(base, seed)))
    losses = []
    for chosen in order.take(epochs * order.steps_per_epoch if steps is None else steps):
        batch = data if batch_size is None else jax.tree.map(lambda a, chosen=chosen: a[chosen], data)
        state, metrics = compiled_step(loss_fn)(optimizer, state, batch)
        losses.append(np.asarray(metrics["loss"]))
    return state, np.array(losses)


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def assert_member(result, i, optimizer, seeds=(0,), **options):
    for j, seed in enumerate(seeds):
        state, losses = alone(optimizer, seed=seed, **options)
        np.testing.assert_allclose(result.history["loss"][i, j, : len(losses)], losses, rtol=1e-5)
        assert np.isnan(result.history["loss"][i, j, len(losses) :]).all()
        close(jax.tree.map(lambda p, j=j: p[j], result.params[i]), state.params)


def assert_members(result, singles, seeds=(0,), **options):
    for i, optimizer in enumerate(singles):
        assert result.optimizers[i] == optimizer
        assert_member(result, i, optimizer, seeds, **options)
    assert result.history["loss"].shape[:2] == result.diverged.shape == (len(singles), len(seeds))


# Sweeps against single trainings.

RATES = (1e-3, 0.01, 0.1)


def clipped_adam(c, learning_rate):
    return gdfx.chain(gdfx.clip_by_global_norm(c), gdfx.adam(learning_rate))


def warmed_up(peak):
    return gdfx.adam(gdfx.warmup_cosine(peak, 2, 6))


SWEEPS = {
    "vmap": (lambda: jax.vmap(gdfx.adamw)(jnp.array(RATES)), lambda: map(gdfx.adamw, RATES)),
    "partly batched": (lambda: gdfx.adam(jnp.array(RATES), b1=0.5), lambda: (gdfx.adam(r, b1=0.5) for r in RATES)),
    "numpy": (lambda: gdfx.sgd(np.array(RATES), momentum=0.5), lambda: (gdfx.sgd(r, momentum=0.5) for r in RATES)),
    "grid of a function": (
        lambda: gdfx.grid(clipped_adam, c=range(1, 3), learning_rate=np.array([0.01, 0.1])),
        lambda: (clipped_adam(c, r) for c in (1.0, 2.0) for r in (0.01, 0.1)),
    ),
    "list": (lambda: [gdfx.adam(0.1), gdfx.adam(1e-2, b1=0)], lambda: (gdfx.adam(0.1), gdfx.adam(0.01, b1=0.0))),
    "batches in a list": (
        lambda: [gdfx.adam(jnp.array(RATES)), gdfx.adam(0.05)],
        lambda: map(gdfx.adam, (*RATES, 0.05)),
    ),
    "single": (lambda: gdfx.adam(0.1), lambda: (gdfx.adam(0.1),)),
    "grid of schedules": (lambda: gdfx.grid(warmed_up, peak=RATES), lambda: map(warmed_up, RATES)),
}


@pytest.mark.parametrize(("batch", "singles"), SWEEPS.values(), ids=SWEEPS.keys())
def test_a_sweep_is_its_single_trainings(batch, singles):
    # A whole number is a float in the result.
    assert_members(sweep(batch(), batch_size=5), [jax.tree.map(float, o) for o in singles()], batch_size=5)


@pytest.mark.parametrize(("batch_size", "seeds"), [(None, 3), (5, [7, 2])])
def test_every_optimizer_meets_every_seed(batch_size, seeds):
    result = sweep([gdfx.adam(r) for r in RATES], batch_size=batch_size, seeds=seeds, key=3)
    assert result.seeds == [0, 1, 2] if seeds == 3 else seeds
    assert_members(result, [gdfx.adam(r) for r in RATES], result.seeds, batch_size=batch_size, key=3)
    assert len({float(loss) for loss in result.history["loss"][0, :, 0]}) == len(result.seeds)


def test_a_member_can_be_run_again_with_fit():
    result = sweep(gdfx.adam(jnp.array(RATES)), batch_size=5, seeds=2, key=4)
    words = jax.random.key_data(jax.random.key(4))
    params = init_fn(jax.random.fold_in(jax.random.key(4), 1))
    single = gdfx.fit(
        loss_fn, params, gdfx.adam(0.1), DATA, epochs=3, batch_size=5, key=np.array([*words, 1]), progress=False
    )
    np.testing.assert_allclose(result.history["loss"][2, 1], single.history["loss"], rtol=1e-5)


def test_a_key_is_an_integer_or_a_prng_key():
    losses = [
        sweep(gdfx.sgd(0.1), init_fn=jax.random.uniform, loss_fn=lambda p, b: p * b["y"].mean(), batch_size=5, key=key)
        for key in (3, np.int64(3), jax.random.key(3), jax.random.PRNGKey(3), 4)
    ]
    losses = [result.history["loss"] for result in losses]
    for same in losses[1:4]:
        np.testing.assert_array_equal(same, losses[0])
    assert (losses[4] != losses[0]).all()


@pytest.mark.parametrize("key", [5, jax.random.key(5), jax.random.PRNGKey(5)], ids=["int", "key", "raw"])
def test_noise_of_any_key(key):
    rates = jnp.array([0.05, 0.1])
    keys = key if isinstance(key, int) else jnp.stack([key, key]) if key.dtype != jnp.uint32 else None
    if keys is None:
        with pytest.raises(ValueError, match="expected one axis"):
            sweep(gdfx.noisy_sgd(rates, key=jnp.stack([key, key])))
        return
    result = sweep(gdfx.noisy_sgd(rates, key=keys), batch_size=5)
    assert result.points == [{"learning_rate": 0.05}, {"learning_rate": 0.1}]
    for i, rate in enumerate((0.05, 0.1)):
        assert_member(result, i, gdfx.noisy_sgd(rate, key=key), batch_size=5)
        assert result.optimizers[i] == gdfx.noisy_sgd(rate, key=key)


@pytest.mark.parametrize("executor", ["vmap", "loop"])
def test_optimizers_of_optax(executor):
    opt = optax.adam(0.05)  # it holds functions only, and no numbers
    with jax.numpy_dtype_promotion("standard"):  # as optax needs it, in all threads
        result = sweep([opt, opt, optax.sgd(0.1)], batch_size=5, seeds=2, executor=executor)
        for i, other in enumerate((opt, opt, optax.sgd(0.1))):
            assert_member(result, i, as_transformation(other), [0, 1], batch_size=5)


# Several structures.


def test_kinds_of_optimizers_in_one_list(caplog):
    schedule = gdfx.schedules.linear(0.1, 0.0, 9)
    optimizers = [
        gdfx.sgd(0.1),
        gdfx.grid(gdfx.adam, learning_rate=[0.01, 0.1]),
        gdfx.sgd(0.2),
        gdfx.sgd(0.1, momentum=0.5, nesterov=True),
        gdfx.sgd(schedule),
    ]
    with jax.log_compiles(True), caplog.at_level(logging.WARNING, logger="jax"):
        result = sweep(optimizers, batch_size=5, seeds=2)
    assert compilations(caplog) == 4  # the first and the third are one program
    singles = [
        gdfx.sgd(0.1),
        gdfx.adam(0.01),
        gdfx.adam(0.1),
        gdfx.sgd(0.2),
        optimizers[3],
        jax.tree.map(float, optimizers[4]),
    ]
    assert_members(result, singles, [0, 1], batch_size=5)
    assert [point["optimizer"] for point in result.points] == ["sgd #1", "adam", "adam", "sgd #1", "sgd #2", "sgd #3"]
    assert [point.get("learning_rate") for point in result.points] == [0.1, 0.01, 0.1, 0.2, 0.1, None]
    assert all("momentum" not in point for point in result.points)  # of one kind only, and there it does not vary
    assert result.best.optimizer == singles[result.best.index]


def test_a_number_is_what_it_is_in_its_dtype():
    result = sweep([gdfx.sgd(jnp.bfloat16(0.1)), gdfx.sgd(0.1)], batch_size=5)
    assert result.optimizers == [gdfx.sgd(jnp.float32(jnp.bfloat16(0.1))), gdfx.sgd(0.1)]
    assert_member(result, 0, gdfx.sgd(jnp.bfloat16(0.1)), batch_size=5)
    assert_member(result, 1, gdfx.sgd(0.1), batch_size=5)


def test_batch_sizes():
    sizes = [5, None, 8]
    result = sweep(gdfx.adam(jnp.array(RATES)), batch_size=sizes, seeds=2)
    assert result.history["loss"].shape == (9, 2, 9)
    assert [(p["batch_size"], p["learning_rate"]) for p in result.points] == [(s, r) for s in sizes for r in RATES]
    for i, point in enumerate(result.points):
        assert_member(result, i, gdfx.adam(point["learning_rate"]), [0, 1], batch_size=point["batch_size"])
    assert not result.diverged.any()
    np.testing.assert_allclose(result.metrics["train_loss"][4], result.history["loss"][4, :, 2], rtol=1e-6)


def wide_init(key, width):
    up, down = jax.random.split(key)
    return {"up": jax.random.normal(up, (3, width)), "down": jax.random.normal(down, (width,))}


def wide_loss(params, batch, power=2.0):
    return jnp.mean(jnp.abs(jnp.tanh(batch["x"] @ params["up"]) @ params["down"] - batch["y"]) ** power)


def test_widths():
    result = sweep(
        gdfx.adam(jnp.array(RATES[:2])), static={"width": [2, 5]}, loss_fn=wide_loss, init_fn=wide_init, batch_size=5,
        evaluate=lambda p: {"units": jnp.float32(p["down"].size)}, seeds=2, executor="vmap",
    )  # fmt: skip
    assert result.points == [{"learning_rate": rate, "width": width} for width in (2, 5) for rate in RATES[:2]]
    for i, (rate, width) in enumerate((p["learning_rate"], p["width"]) for p in result.points):
        assert result.params[i]["up"].shape == (2, 3, width)
        assert result.metrics["units"][i].tolist() == [width] * 2
        init = functools.partial(wide_init, width=width)
        assert_member(result, i, gdfx.adam(rate), [0, 1], batch_size=5, init_fn=init, loss_fn=wide_loss)


def test_all_choices_are_crossed():
    def score(params, *, power):
        return {"power": power}

    static = {"width": [2, 5], "power": (1.5, 2.0)}
    optimizers = [gdfx.sgd(0.1), gdfx.adam(jnp.array([0.5, 0.25]))]
    groups, points = plan(wide_loss, wide_init, optimizers, score, [4, 8], static)
    assert [group.settings for group in groups[::4]] == [{"width": w, "power": p} for w in (2, 5) for p in (1.5, 2.0)]
    assert np.concatenate([group.rows for group in groups]).tolist() == list(range(24))
    assert points == [
        {"optimizer": name, "learning_rate": rate, "batch_size": size, "width": width, "power": power}
        for width in (2, 5)
        for power in (1.5, 2.0)
        for size in (4, 8)
        for name, rate in [("sgd", 0.1), ("adam", 0.5), ("adam", 0.25)]
    ]
    key, batch = jax.random.key(0), jax.tree.map(lambda a: a[:4], DATA)
    for group in groups:
        params = group.init_fn(key)
        assert params["down"].shape == (group.settings["width"],)
        assert group.loss_fn(params, batch) == wide_loss(params, batch, power=group.settings["power"])
        assert group.evaluate(params) == {"power": group.settings["power"]}
        assert {points[row]["batch_size"] for row in group.rows} == {group.batch_size}


@pytest.mark.parametrize(
    ("static", "error", "message"),
    [
        ({"depth": [1, 2]}, ValueError, "static has depth, which none of loss_fn, init_fn, evaluate takes"),
        ({"params": [1]}, ValueError, "static has params, which none of"),  # it is given by position
        ({"width": 3}, TypeError, r"static\['width'\] is 3, expected a list"),
        ({"width": []}, TypeError, r"static\['width'\] is \[\], expected a list"),
        ({"width": "35"}, TypeError, "expected a list"),
        ([3], TypeError, "static is a list, expected a dict"),
        ({"width": [2], "b1": [0.5]}, ValueError, "static has b1, which is a hyperparameter of adam too"),
    ],
)
def test_statics_that_cannot_be(static, error, message):
    with pytest.raises(error, match=message):
        sweep(gdfx.adam(0.1), loss_fn=lambda params, batch, b1=1: 0.0, init_fn=wide_init, static=static)


def compilations(caplog):
    names = [r.message.split(" ")[1] for r in caplog.records if r.message.startswith("Compiling jit(")]
    return names.count("jit(many)") + names.count("jit(one)")


def test_the_work_does_not_grow_with_the_members(caplog, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS", 0.0)  # as many calls as possible
    traces = []

    def counted(params, batch):
        traces.append(None)
        return loss_fn(params, batch)

    counts = {}
    for members in (2, 9):
        traces.clear()
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level(logging.WARNING, logger="jax"):
            sweep(gdfx.adam(jnp.linspace(0.01, 0.1, members)), loss_fn=counted, batch_size=5, seeds=2, epochs=20)
        counts[members] = len(traces)
        assert compilations(caplog) == 1
    assert counts[2] == counts[9] <= 4


def test_one_compilation_for_each_structure_and_rung(caplog):
    def init(key, shift):
        return jax.tree.map(lambda p: p + shift, init_fn(key))

    with jax.log_compiles(True), caplog.at_level(logging.WARNING, logger="jax"):
        result = sweep(
            gdfx.sgd(np.geomspace(1e-3, 0.1, 9)), init_fn=init, static={"shift": [0.0, 1e-6]}, epochs=18,
            culling=gdfx.halving(),
        )  # fmt: skip
    # Of nearly equal structures as many go on: 9, 3 and 1, in two parts of 5, 2 and 1.
    assert (
        sorted(result.culled_at.reshape(2, 9)[0])
        == sorted(result.culled_at.reshape(2, 9)[1])
        == [-1] + [2] * 6 + [6] * 2
    )
    assert compilations(caplog) == 2 * 3


# Executors and parts.


def network(executor, optimizers=None, **options):
    optimizers = gdfx.adam(jnp.array([*RATES, 1e30, 0.3])) if optimizers is None else optimizers
    return sweep(optimizers, batch_size=5, seeds=2, executor=executor, epochs=8, **options)


def test_executors_give_the_same_numbers():
    results = {executor: network(executor) for executor in [*EXECUTORS, "auto"]}
    for executor, result in results.items():
        close(result.history["loss"], results["loop"].history["loss"])
        close(result.params, results["loop"].params)
        np.testing.assert_array_equal(result.diverged_at, results["loop"].diverged_at)
        np.testing.assert_array_equal(result.diverged, results["loop"].diverged)
        assert result.executor.startswith("vmap: members batched" if executor == "auto" else f"{executor}: as was")
    assert_member(results["loop"], 2, gdfx.adam(0.1), [0, 1], batch_size=5, epochs=8)
    # One compiled the same way, they are the same bit for bit.
    np.testing.assert_array_equal(results["auto"].history["loss"], results["vmap"].history["loss"])


def test_large_models_are_trained_one_after_another(monkeypatch):
    monkeypatch.setattr(programs, "FLOPS", 10.0)
    result = sweep(gdfx.sgd(0.1), epochs=1)
    assert result.executor.startswith("map: members one after another, as a step has ")


@pytest.mark.parametrize("executor", ["auto", "vmap", "map"])
def test_a_convolution(executor):
    model = gdfx.models.cnn((4, 4, 1), channels=(2,), classes=2)
    data = {"x": np.random.default_rng(1).normal(size=(4, 4, 4, 1)).astype(np.float32), "y": np.arange(4) % 2}

    def loss(params, batch):
        logits = model.apply(params, batch["x"])
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    result = sweep(
        gdfx.sgd(jnp.array([0.01, 0.1, 0.3])), loss_fn=loss, init_fn=model.init, data=data, epochs=4, seeds=2,
        batch_size=2, executor=executor,
    )  # fmt: skip
    for i, rate in enumerate([0.01, 0.1, 0.3]):
        assert_member(
            result, i, gdfx.sgd(rate), [0, 1], data=data, loss_fn=loss, init_fn=model.init, epochs=4, batch_size=2
        )
    if executor == "auto":
        assert result.executor.startswith("loop: runs one by one, as XLA on a CPU is slow at convolutions")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_numbers_do_not_depend_on_who_runs_beside(executor, monkeypatch):
    monkeypatch.setattr(engine, "PART", 16)
    rates = np.geomspace(1e-3, 0.5, 33 if executor == "vmap" else 5)
    everyone = sweep(gdfx.sgd(rates), batch_size=5, executor=executor, epochs=2)
    for i in {0, 1, 2, len(rates) - 1}:
        assert_member(everyone, i, gdfx.sgd(float(np.float32(rates[i]))), batch_size=5, epochs=2)
    for members in (1, 2, 3, 5) if executor == "vmap" else (1, 3):
        few = sweep(gdfx.sgd(rates[:members]), batch_size=5, executor=executor, epochs=2)
        close(few.history["loss"], everyone.history["loss"][:members])
        close(few.params, everyone.params[:members])


@pytest.mark.parametrize(
    ("members", "parts", "most"),
    [(1, 2, 64), (2, 2, 64), (3, 2, 64), (5, 2, 64), (65, 2, 64), (129, 2, 64), (7, 3, 2), (64, 1, 64)],
)
def test_parts_hold_everyone_once(members, parts, most):
    pieces = engine.cut(members, parts, most)
    assert len({len(piece) for piece in pieces}) == 1
    assert len(pieces[0]) <= most
    assert np.unique(np.concatenate(pieces)).tolist() == list(range(members))
    firsts = [np.unique(piece) for piece in pieces]
    assert sum(map(len, firsts)) == members


@pytest.mark.parametrize("members", [1, 2, 3, 5, 65])
def test_any_number_of_members(members):
    rates = np.linspace(0.0, 0.4, members)
    result = parabola(rates, epochs=5, seeds=2)
    expected = (1 - 2 * rates[:, None, None]) ** np.arange(0, 10, 2) * np.ones((1, 2, 1))
    np.testing.assert_allclose(result.history["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(np.stack(result.params), (1 - 2 * rates[:, None]) ** 5 * np.ones((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_bar_counts_the_steps(executor, monkeypatch):
    class Bar:
        shown, n, total, text = True, 0, None, ""

        def update(self, n):
            self.n += n

        def set_postfix_str(self, text, refresh=True):
            self.text = text

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

    bar = Bar()

    def made(total, show, what):
        bar.total = total
        return bar

    monkeypatch.setattr(run, "progress_bar", made)
    result = sweep(gdfx.adam(jnp.array(RATES)), batch_size=5, seeds=2, executor=executor)
    assert bar.n == bar.total
    assert bar.text == f"3 members, best train_loss {result.mean('train_loss').min():.4g}"


@pytest.mark.parametrize(("progress", "shown"), [(False, False), (True, True)])
def test_the_bar_is_shown(progress, shown, capsys):
    sweep(gdfx.adam(0.1), progress=progress, seeds=2)
    assert ("sweep of 2" in capsys.readouterr().err) == shown


# Culling.

NINE = np.geomspace(1e-3, 0.9, 9).astype(np.float32)


def size_of(params):
    return {"size": jnp.abs(params["w"]).sum()}


@functools.cache
def uncut(executor="auto"):
    return sweep(gdfx.sgd(NINE), batch_size=5, epochs=12, executor=executor, evaluate=size_of, seeds=2)


RULES = {
    "halving": gdfx.halving(),
    "halving in two": gdfx.halving(2, first=5),
    "hyperband": gdfx.hyperband(brackets=3),
    "median": gdfx.median_rule(every=9, warmup=9),
}


@pytest.mark.parametrize(
    ("rule", "executor"), [*((name, "auto") for name in RULES), ("halving", "map"), ("halving", "loop")]
)
def test_culling(rule, executor):
    rule = RULES[rule]
    result = sweep(gdfx.sgd(NINE), batch_size=5, epochs=12, seeds=2, executor=executor, evaluate=size_of, culling=rule)
    full = uncut()
    # Who is dropped when, from the runs that were not culled.
    alive, expected, compared = np.ones(9, bool), np.full(9, -1), []
    for index, steps in enumerate(rule.rungs(36, 9)):
        scores = full.history["loss"][..., max(0, steps - 3) : steps].mean(-1).mean(-1)
        scores = np.where(alive, scores, np.nan)
        keep = rule.keep(index, steps, scores, alive, compared)
        expected[alive & ~keep] = steps
        alive, compared = alive & keep, [*compared, scores]
    assert result.culled_at.tolist() == expected.tolist()
    assert 0 < alive.sum() < 9
    for i in range(9):
        made = 36 if alive[i] else expected[i]
        np.testing.assert_allclose(result.history["loss"][i, :, :made], full.history["loss"][i, :, :made], rtol=1e-5)
        assert np.isnan(result.history["loss"][i, :, made:]).all()
        for j in range(2):
            state, _ = alone(gdfx.sgd(float(str(NINE[i]))), steps=made, batch_size=5, seed=j)
            close(jax.tree.map(lambda p, j=j: p[j], result.params[i]), state.params)
            assert result.metrics["size"][i, j] == pytest.approx(float(size_of(state.params)["size"]), rel=1e-5)
    assert result.status == ["finished" if a else "culled" for a in alive]
    assert not result.diverged.any()
    assert alive[result.best.index]


def test_culling_by_another_metric():
    result = sweep(
        gdfx.sgd(NINE), batch_size=5, epochs=12, seeds=2, evaluate=size_of, metric="size", mode="max",
        culling=gdfx.halving(3, first=12),
    )  # fmt: skip
    sizes = [
        float(
            np.mean(
                [
                    size_of(alone(gdfx.sgd(float(str(r))), steps=12, batch_size=5, seed=j)[0].params)["size"]
                    for j in range(2)
                ]
            )
        )
        for r in NINE
    ]
    best = np.argsort(sizes)[-3:]
    assert set(np.flatnonzero(result.culled_at < 0)) <= set(best)
    assert set(np.flatnonzero(result.culled_at == 12)) == set(range(9)) - set(best)


def test_culling_with_several_batch_sizes():
    # A run of all examples makes fewer steps than there are at the first rung of the others.
    result = sweep(
        gdfx.sgd(NINE), batch_size=[None, 1], epochs=3, culling=gdfx.halving(3, first=1), seeds=2, metric="train_loss"
    )
    alike = {None: 3, 1: 48}
    for i, point in enumerate(result.points):
        made = result.culled_at[i] if result.culled_at[i] >= 0 else alike[point["batch_size"]]
        assert 1 <= made <= alike[point["batch_size"]]
        assert np.isfinite(result.history["loss"][i, :, :made]).all()
        assert np.isnan(result.history["loss"][i, :, made:]).all()
        assert_member(result, i, gdfx.sgd(point["learning_rate"]), [0, 1], batch_size=point["batch_size"], steps=made)
    assert sum(status == "finished" for status in result.status) == 2


def test_culling_drops_what_diverged_first():
    result = parabola([5.0, 0.1, 0.2, 50.0], epochs=80, culling=gdfx.halving(2, first=30))
    assert result.status == ["diverged", "culled", "finished", "diverged"]
    assert result.culled_at.tolist() == [30, 60, -1, 30]
    assert list(result.order[:2]) == [2, 1]


@pytest.mark.parametrize("executor", ["vmap", "loop"])
def test_everyone_diverges_and_is_culled(executor):
    result = parabola([5.0, 50.0, 60.0], epochs=80, culling=gdfx.halving(2, first=30), executor=executor)
    assert result.status == ["diverged"] * 3
    with pytest.raises(RuntimeError, match=r"every member of the sweep diverged"):
        _ = result.best


# A structure that fails.


@pytest.mark.parametrize("culling", [None, gdfx.halving(2)])
def test_what_fails_is_told_and_the_others_finish(culling):
    optimizers = [gdfx.sgd(jnp.array(RATES)), gdfx.noisy_sgd(jnp.array([0.1, 0.2]), key=None), gdfx.adam(0.1)]
    result = sweep(optimizers, batch_size=5, epochs=4, culling=culling)
    assert set(result.errors) == {3, 4}
    assert all(error.startswith("TypeError: noisy_sgd(") and "needs key" in error for error in result.errors.values())
    assert [status == "failed" for status in result.status] == [False] * 3 + [True] * 2 + [False]
    assert str(result).count("failed: TypeError") == 2
    assert list(result.order[-2:]) == [3, 4]
    assert result.params[3] is result.params[4] is None
    assert np.isnan(result.history["loss"][3:5]).all()
    if culling is None:
        assert_member(result, 2, gdfx.sgd(0.1), batch_size=5, epochs=4)
        assert_member(result, 5, gdfx.adam(0.1), batch_size=5, epochs=4)
    assert result.best.index in (0, 1, 2, 5)


def test_a_loss_that_raises_for_one_setting():
    def loss(params, batch, width):
        if width == 3:
            raise ArithmeticError("three is not allowed")
        return wide_loss(params, batch)

    given = {"loss_fn": loss, "init_fn": wide_init, "batch_size": 5}
    result = sweep(gdfx.sgd(jnp.array(RATES)), static={"width": [2, 3]}, **given)
    assert result.errors == dict.fromkeys([3, 4, 5], "ArithmeticError: three is not allowed")
    assert result.best.point["width"] == 2
    for static in ({"width": [3]}, {"width": [3, 3]}):  # nothing is left to tell about
        with pytest.raises(ArithmeticError, match="three is not allowed"):
            sweep(gdfx.sgd(jnp.array(RATES)), static=static, **given)


def test_an_evaluation_that_raises_for_one_setting():
    def evaluate(params, width):
        if width == 3:
            raise ArithmeticError("three is not allowed")
        return {"size": jnp.abs(params["down"]).sum()}

    given = {"loss_fn": wide_loss, "init_fn": wide_init, "evaluate": evaluate, "metric": "size"}
    result = sweep(gdfx.sgd(0.1), static={"width": [2, 3]}, **given)
    assert result.errors == {1: "ArithmeticError: three is not allowed"}
    assert result.best.point["width"] == 2
    with pytest.raises(ArithmeticError, match="three is not allowed"):
        sweep(gdfx.sgd(0.1), static={"width": [3]}, **given)


@pytest.mark.parametrize("evaluate", [None, lambda p: {"size": jnp.abs(p["down"]).sum()}])
def test_a_model_that_cannot_be_made_for_one_setting(evaluate):
    def init(key, width):
        if width % 2:
            raise ValueError(f"{width} is odd")
        return wide_init(key, width)

    given = {"loss_fn": wide_loss, "init_fn": init, "evaluate": evaluate}
    result = sweep(gdfx.sgd(0.1), static={"width": [3, 2]}, **given)
    assert result.errors == {0: "ValueError: 3 is odd"}
    assert result.status == ["failed", "finished"]
    with pytest.raises(ValueError, match="5 is odd"):
        sweep(gdfx.sgd(0.1), static={"width": [3, 5]}, **given)


def test_an_interruption_is_no_failure():
    def loss(params, batch, width):
        if width == 3:
            raise KeyboardInterrupt
        return wide_loss(params, batch)

    with pytest.raises(KeyboardInterrupt):
        sweep(gdfx.sgd(0.1), loss_fn=loss, init_fn=wide_init, static={"width": [3, 2]})


# Models of other libraries, dtypes.


def test_flax_nnx():
    built, _ = nnx.split(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.Param)

    def init(key):
        return nnx.split(nnx.Linear(3, 1, rngs=nnx.Rngs(key)), nnx.Param)[1]

    def loss(params, batch):
        return jnp.mean((nnx.merge(built, params)(batch["x"])[:, 0] - batch["y"]) ** 2)

    result = sweep(gdfx.sgd(jnp.array([0.01, 0.1])), loss_fn=loss, init_fn=init, batch_size=5, seeds=2)
    for i, rate in enumerate([0.01, 0.1]):
        assert_member(result, i, gdfx.sgd(rate), [0, 1], batch_size=5, loss_fn=loss, init_fn=init)
    assert nnx.merge(built, result.best.params)(jnp.asarray(X)).shape == (SIZE, 1)


def test_equinox():
    def make(key):
        return eqx.nn.MLP(3, "scalar", width_size=4, depth=1, key=key)

    _, rest = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)

    def init(key):
        return eqx.filter(make(key), eqx.is_inexact_array)

    def loss(params, batch):
        return jnp.mean((jax.vmap(eqx.combine(params, rest))(batch["x"]) - batch["y"]) ** 2)

    result = sweep(gdfx.adam(jnp.array([0.01, 0.1])), loss_fn=loss, init_fn=init, batch_size=5, seeds=2)
    for i, rate in enumerate([0.01, 0.1]):
        assert_member(result, i, gdfx.adam(rate), [0, 1], batch_size=5, loss_fn=loss, init_fn=init)
    assert jax.vmap(eqx.combine(result.best.params, rest))(X).shape == (SIZE,)


@pytest.mark.parametrize("executor", ["vmap", "loop"])
def test_half_precision(executor):
    def init(key):
        return jax.tree.map(lambda p: p.astype(jnp.bfloat16), init_fn(key))

    data = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), DATA)
    result = sweep(gdfx.adam(jnp.array([0.01, 0.1])), init_fn=init, data=data, batch_size=5, seeds=2, executor=executor)
    assert {p.dtype for p in jax.tree.leaves(result.params)} == {jnp.dtype(jnp.bfloat16)}
    assert result.history["loss"].dtype == np.float32
    for i, rate in enumerate([0.01, 0.1]):
        for j in range(2):
            _, losses = alone(gdfx.adam(rate), seed=j, data=data, init_fn=init, batch_size=5)
            np.testing.assert_allclose(result.history["loss"][i, j], losses.astype(np.float32), rtol=0.05, atol=0.01)


def test_complex_params():
    def init(key):
        return jax.random.normal(key, (2,), jnp.complex64)

    def loss(params, batch):
        return jnp.mean(jnp.abs(params[0] - batch) ** 2) + jnp.abs(params[1]) ** 2

    data = (X[:, 0] + 1j * X[:, 1]).astype(np.complex64)
    result = sweep(gdfx.adam(jnp.array([0.01, 0.1])), loss_fn=loss, init_fn=init, data=data, batch_size=5)
    for i, rate in enumerate([0.01, 0.1]):
        assert_member(result, i, gdfx.adam(rate), batch_size=5, loss_fn=loss, init_fn=init, data=data)
    assert result.best.params.dtype == np.complex64


def test_averaged_params_are_those_evaluated():
    make = lambda rate: gdfx.chain(gdfx.sgd(rate), gdfx.ema_params(0.9))
    result = sweep(gdfx.grid(make, rate=RATES), batch_size=5, evaluate=lambda p: {"w0": p["w"][0]})
    for i, rate in enumerate(RATES):
        state, _ = alone(make(rate), batch_size=5)
        averaged = gdfx.eval_params(make(rate), state.opt_state, state.params)["w"][0]
        assert result.metrics["w0"][i, 0] == pytest.approx(float(averaged), rel=1e-5)
    assert abs(averaged - state.params["w"][0]) > 1e-3


def test_what_optimizers_tell_is_kept():
    result = sweep([gdfx.record(gdfx.sgd(jnp.array(RATES))), gdfx.adam(0.1)], batch_size=5, seeds=2)
    assert result.history["update_ratio"].shape == (4, 2, 9)
    np.testing.assert_allclose(result.history["learning_rate"][:3, 0, -1], RATES, rtol=1e-6)
    assert np.isnan(result.history["learning_rate"][3]).all()  # it tells nothing
    assert "grad_norm" not in result.history


def test_seconds_and_history():
    result = sweep(gdfx.adam(jnp.array(RATES)), batch_size=5, seeds=2, epochs=4)
    assert set(result.seconds) == {"compile", "run"}
    assert all(s > 0 for s in result.seconds.values())
    assert result.history["loss"].shape == (3, 2, 12)
    np.testing.assert_allclose(result.metrics["train_loss"], result.history["loss"][..., -3:].mean(-1), rtol=1e-6)
    assert not result.diverged.any()
    assert (result.diverged_at == -1).all()
    assert (result.culled_at == -1).all()
    assert len(result.params) == 3
    assert result.params[0]["w"].shape == (2, 3)
    assert result.errors == {}


def test_x64(x64):
    data = jax.tree.map(lambda a: a.astype(np.float64), DATA)
    result = sweep(gdfx.grid(gdfx.adam, learning_rate=RATES), data=data, batch_size=5)
    assert result.history["loss"].dtype == result.params[0]["w"].dtype == np.float64
    assert result.optimizers[0] == gdfx.adam(1e-3)
    params = init_fn(jax.random.fold_in(jax.random.key(0), 0))
    single = gdfx.fit(
        loss_fn, params, gdfx.adam(0.1), data, epochs=3, batch_size=5, key=np.zeros(3, int), progress=False
    )
    np.testing.assert_allclose(result.history["loss"][2, 0], single.history["loss"], rtol=1e-12)


# Divergence, on a parabola: sgd(rate) takes x to (1 - 2 * rate) * x.


def parabola(rates, *, epochs=60, **options):
    options = {"loss_fn": lambda p, b: p**2 * b.mean(), "init_fn": lambda key: jnp.float32(1)} | options
    optimizers = rates if isinstance(rates, gdfx.GradientTransformation) else gdfx.sgd(jnp.array(rates))
    return sweep(optimizers, data=np.ones(4, np.float32), epochs=epochs, **options)


def test_a_member_that_diverges_is_kept_at_its_last_finite_params():
    result = parabola([0.1, 5.0, 0.25])  # -9 at each step: 81**k overflows at k = 21
    assert result.diverged.tolist() == [[False], [True], [False]]
    losses = result.history["loss"][:, 0]
    step = int(result.diverged_at[1, 0])
    assert result.diverged_at.tolist() == [[-1], [step], [-1]]
    assert 10 <= step <= 21
    assert np.isfinite(losses[1, :step]).all()
    assert np.isnan(losses[1, step + 1 :]).all()
    assert np.isfinite(losses[[0, 2]]).all()
    assert float(result.params[1][0]) == pytest.approx((-9.0) ** step)
    assert np.isfinite(result.params).all()
    assert result.status == ["finished", "diverged", "finished"]
    without = parabola([0.1, 0.25])
    # Element-wise arithmetic: the others are the same bit for bit (products of matrices may be batched in another way).
    np.testing.assert_array_equal([result.params[0], result.params[2]], without.params)
    np.testing.assert_array_equal(losses[[0, 2]], without.history["loss"][:, 0])


def test_a_neighbour_that_diverges_does_not_disturb_a_network():
    with_it = sweep(gdfx.sgd(jnp.array([0.01, 1e30, 0.1])), batch_size=5, epochs=20)
    without = sweep(gdfx.sgd(jnp.array([0.01, 0.1])), batch_size=5, epochs=20)
    assert with_it.diverged.ravel().tolist() == [False, True, False]
    close([with_it.params[0], with_it.params[2]], without.params, rtol=1e-6)
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(with_it.params))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_step_of_the_first_loss_that_is_not_finite(bad):
    # p counts the steps; the loss is bad from the third on.
    result = parabola(
        [0.0, 1.0],
        loss_fn=lambda p, b: jnp.where(p >= 2, bad, -p),
        init_fn=lambda key: jnp.float32(0),
        epochs=6,
    )
    assert result.diverged_at.tolist() == [[-1], [2]]
    assert np.array(result.params).tolist() == [[0.0], [2.0]]
    np.testing.assert_array_equal(result.history["loss"][1, 0], np.float32([0, -1, bad, math.nan, math.nan, math.nan]))


def test_params_that_are_lost_at_a_finite_loss():
    loss = lambda p, b: jnp.sqrt(p)  # at 0 the loss is 0, and its slope infinite
    result = parabola([0.1], loss_fn=loss, init_fn=lambda key: jnp.float32(0), epochs=3)
    assert result.diverged_at.tolist() == [[0]]
    assert np.array(result.params).tolist() == [[0.0]]


def test_a_loss_that_ends_above_its_start_is_marked():
    result = parabola([0.1, 1.05, 0.0], epochs=8)  # 1.1 ** 2 at each step: finite throughout
    assert result.diverged.ravel().tolist() == [False, True, False]
    assert (result.diverged_at == -1).all()
    assert result.best.index == 0


def test_a_first_batch_that_is_easy_by_chance_marks_no_member():
    targets = (0.5 + np.random.default_rng(0).normal(size=64)).astype(np.float32)
    result = sweep(
        gdfx.sgd(jnp.array([0.0, 0.01, 0.05])),
        loss_fn=lambda p, b: jnp.mean((p - b) ** 2),
        init_fn=lambda key: jnp.float32(0),
        data=targets,
        batch_size=1,
        seeds=12,
        epochs=2,
    )
    easy = result.history["loss"][..., 0] < 0.2 * result.metrics["train_loss"]
    assert easy.any()
    assert not result.diverged.any()
    culled = sweep(  # after one step, whose loss may be high by chance
        gdfx.sgd(jnp.zeros(9)),
        loss_fn=lambda p, b: jnp.mean(p * 0 + b),
        init_fn=lambda key: jnp.float32(0),
        data=np.linspace(0, 1, 32, dtype=np.float32),
        batch_size=1,
        seeds=12,
        epochs=1,
        culling=gdfx.halving(first=1),
    )
    assert (culled.history["loss"][..., 0] > 0.9).any()
    assert sorted(culled.status) == ["culled"] * 8 + ["finished"]
    worse = parabola([-0.02], epochs=40, batch_size=1)  # uphill, and never far from 1
    assert worse.diverged.all()
    assert (worse.diverged_at == -1).all()


def test_all_diverged():
    result = parabola([5.0, 50.0], epochs=80, seeds=2)
    assert result.diverged.all()
    assert np.isnan(result.history["loss"][..., 60:]).all()  # nothing left to train
    with pytest.raises(RuntimeError, match=r"every member of the sweep diverged.*smaller learning rates"):
        _ = result.best
    assert "best" not in str(result)
    assert str(result).count("2 of 2 diverged") == 2


def test_half_precision_losses_are_averaged_in_float32():
    result = sweep(
        gdfx.sgd(0.0),
        loss_fn=lambda p, b: (0.3 + 0 * (p + b.sum())).astype(jnp.bfloat16),
        init_fn=lambda key: jnp.float32(1),
        data=np.ones(3000, np.float32),
        batch_size=1,
        epochs=1,
    )
    np.testing.assert_allclose(result.metrics["train_loss"], 0.3, rtol=1e-2)


# The best, the table, the picture.


def distance(params):
    return {"distance": jnp.abs(params - 0.3), "negated": -jnp.abs(params - 0.3)}


@pytest.mark.parametrize(
    ("metric", "mode", "index"),
    [("train_loss", "min", 2), ("train_loss", "max", 0), ("distance", "min", 1), ("negated", "max", 1)],
)
def test_best(metric, mode, index):
    # After 8 steps: 0.98**8 = 0.85, 0.86**8 = 0.30 and 0.
    result = parabola([0.01, 0.07, 0.5, 50.0], epochs=8, evaluate=distance, metric=metric, mode=mode)
    best = result.best
    assert best.index == index
    assert result.order[0] == index
    assert result.order[-1] == 3  # it diverged
    assert best.optimizer == gdfx.sgd([0.01, 0.07, 0.5][index])
    assert best.metrics["distance"] == pytest.approx(float(distance(best.params)["distance"]))
    assert best.seed == 0


@pytest.mark.parametrize("name", ["adamw", "chain", "schedule"])
def test_the_repr_of_the_best_evaluates_back(name):
    make = {"adamw": gdfx.adamw, "chain": lambda r: clipped_adam(0.3, r), "schedule": warmed_up}[name]
    best = sweep(jax.vmap(make)(jnp.array([1e-8, 0.037, 1e-7]))).best
    assert best.index == 1
    assert eval(repr(best.optimizer), vars(gdfx).copy()) == best.optimizer == jax.tree.map(float, make(0.037))
    assert "0.037" in repr(best.optimizer)


def test_the_best_over_several_seeds():
    def start(key):  # the seeds start at different places
        return 1 + jax.random.uniform(key)

    result = parabola([0.1, 0.3], init_fn=start, epochs=3, seeds=[5, 6, 9], evaluate=lambda p: {"size": jnp.abs(p)})
    sizes = np.abs(np.asarray(result.params))
    np.testing.assert_allclose(result.metrics["size"], sizes)
    np.testing.assert_allclose(result.mean("size"), sizes.mean(1), rtol=1e-6)
    np.testing.assert_allclose(result.spread("size"), sizes.std(1, ddof=1), rtol=1e-5)
    best = result.best
    assert best.index == 1
    assert best.seed == result.seeds[int(result.metrics["train_loss"][1].argmin())]
    assert best.params == result.params[1][result.seeds.index(best.seed)]


def test_some_seeds_that_diverge():
    def start(key):  # finite steps from 1e-3, none from 1e18
        return jnp.where(jax.random.bits(key) % 2 == 0, 1e-3, 1e18)

    keys = [jax.random.fold_in(jax.random.key(0), seed) for seed in range(9)]
    expected = [float(start(key)) > 1 for key in keys]
    assert len(set(expected)) == 2
    result = parabola(
        [0.1, 0.2],
        loss_fn=lambda p, b: jnp.where(p > 1, jnp.nan, p**2),
        init_fn=start,
        epochs=3,
        seeds=9,
        evaluate=lambda p: {"size": jnp.where(p > 1, jnp.inf, p)},
    )
    assert result.diverged.tolist() == [expected] * 2
    kept = result.metrics["size"][0, ~np.array(expected)]
    assert np.isfinite(kept).all()
    assert result.mean("size")[0] == pytest.approx(kept.mean())
    assert result.spread("size")[0] == pytest.approx(kept.std(ddof=1), abs=1e-9)
    assert f"{sum(expected)} of 9 diverged" in result.table()
    assert "(0.0" in result.table()  # in brackets: the mean of some seeds only
    with pytest.raises(RuntimeError, match="diverged with some seed"):
        _ = result.best


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_comes_after_those_that_are(value):
    result = parabola(
        [50.0, 0.1, 0.2],
        epochs=30,
        evaluate=lambda p: {"score": jnp.where(p < 0.01, value, p)},  # of the rate 0.2
        metric="score",
    )
    assert list(result.order) == [1, 2, 0]
    assert result.best.index == 1
    hopeless = parabola([50.0, 0.2], epochs=30, evaluate=lambda p: {"score": p * value}, metric="score")
    assert hopeless.best.index == 1  # it did not diverge, and the other did
    assert "best" in hopeless.table().splitlines()[2]


@pytest.mark.parametrize("dtype", [bool, np.int32, jnp.bfloat16])
def test_metrics_of_any_real_dtype(dtype):
    result = parabola(
        [0.01, 0.4], epochs=9, seeds=3, evaluate=lambda p: {"good": (p < 0.1).astype(dtype)}, metric="good", mode="max"
    )
    assert result.best.index == 1
    assert result.best.metrics["good"] == 1
    assert "1 ± 0" in result.table()


# Bad input.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"evaluate": lambda p: jnp.float32(1)}, TypeError, "evaluate returned a .*, expected a dict of scalars"),
        ({"evaluate": lambda p: {"size": p["w"]}}, ValueError, r"evaluate: size has shape \(3,\), expected a scalar"),
        ({"evaluate": lambda p: {"size": {"a": 1.0}}}, TypeError, "evaluate: size is a dict, expected a scalar"),
        ({"evaluate": lambda p: {"train_loss": 1.0}}, ValueError, "evaluate: train_loss is the name of"),
        ({"metric": "accuracy"}, ValueError, "metric is 'accuracy', expected one of: train_loss$"),
        (
            {"metric": "train", "evaluate": lambda p: {"size": p["w"].sum()}},
            ValueError,
            "expected one of: train_loss, size",
        ),
        ({"mode": "minimum"}, ValueError, 'mode is \'minimum\', expected "min" or "max"'),
        ({"seeds": 0}, ValueError, "there are no seeds"),
        ({"seeds": []}, ValueError, "there are no seeds"),
        ({"seeds": [0, -1]}, ValueError, "a seed is -1, expected non-negative"),
        ({"seeds": [0.5]}, TypeError, "float"),
        ({"key": None}, TypeError, "key is None, expected a PRNG key or a non-negative integer"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"batch_size": 17}, ValueError, "there are only 16 examples"),
        ({"batch_size": [4, 17]}, ValueError, "there are only 16 examples"),
        ({"batch_size": []}, ValueError, "batch_size is an empty list"),
        ({"batch_size": [0.5]}, ValueError, "batch_size is 0.5, expected a positive integer"),
        ({"executor": "scan"}, ValueError, "executor is 'scan', expected one of: auto, vmap, map, loop"),
        ({"culling": 3}, TypeError, "culling is 3, expected a rule"),
        ({"data": []}, ValueError, "data is empty"),
    ],
)
def test_errors_come_before_the_training(options, error, message):
    def untouched(params, batch):
        pytest.fail("the loss was traced")

    with pytest.raises(error, match=message):
        sweep(gdfx.adam(0.1), loss_fn=untouched, **options)


@pytest.mark.parametrize(
    ("optimizers", "error", "message"),
    [
        ([], ValueError, "the list of optimizers is empty"),
        (
            gdfx.adam(jnp.ones(2), b1=jnp.ones(3)),
            ValueError,
            r"different numbers of values: {'.learning_rate': 2, '.b1': 3}",
        ),
        (gdfx.adam(jnp.ones((2, 3))), ValueError, r"\.learning_rate has shape \(2, 3\), expected one axis"),
        (gdfx.adam(jnp.ones(0)), ValueError, "there is nothing to run"),
        (gdfx.adam, TypeError, r"call it, as in adam\(\.\.\.\)"),
        ((gdfx.adam(0.1), gdfx.adam(0.2)), TypeError, "expected a transform"),
        (0.1, TypeError, "expected a transform"),
        ([gdfx.adam(0.1), [gdfx.adam(0.2)]], TypeError, "expected an optimizer, not a list"),
        ([gdfx.adam(0.1), gdfx.adam], TypeError, r"call it, as in adam\(\.\.\.\)"),
    ],
)
def test_optimizers_that_are_no_batch(optimizers, error, message):
    with pytest.raises(error, match=message):
        sweep(optimizers)


# Populations, and the params that are to be used.


def test_a_population_revives_what_diverged_and_can_be_replayed():
    optimizers = gdfx.grid(gdfx.adam, learning_rate=[1e-3, 0.1, 0.03, math.inf])
    options = {"epochs": 6, "batch_size": 4}
    result = sweep(optimizers, population=gdfx.population(every=6, quantile=0.25), **options)
    assert result.status.count("finished") == 4
    assert next(copy["step"] for copy in result.lineage if copy["member"] == 3) == 6
    best = result.best
    state, losses = alone(best.optimizer, **options)
    since = max((copy["step"] for copy in result.lineage if copy["member"] == best.index), default=0)
    np.testing.assert_allclose(result.history["loss"][best.index, 0, since:], losses[since:], rtol=1e-4)
    close(best.params, state.params, rtol=1e-4)
    with pytest.raises(ValueError, match="no hyperparameter differs between members"):
        sweep(gdfx.adam(0.1), population=gdfx.population(every=6), **options)


def test_populations_and_culling_do_not_mix():
    with pytest.raises(ValueError, match="culling and population are both given"):
        sweep(gdfx.adam(0.1), culling=gdfx.halving(), population=gdfx.population(every=2))
    with pytest.raises(TypeError, match=r"population is 3, expected gdfx\.population"):
        sweep(gdfx.adam(0.1), population=3)


@pytest.mark.parametrize("culling", [None, gdfx.halving(2)], ids=repr)
def test_the_params_are_those_that_were_evaluated(culling):
    optimizers = [gdfx.grid(gdfx.schedule_free_adamw, learning_rate=[0.1, 0.3]), gdfx.adam(0.1)]
    evaluate = lambda params: {"score": loss_fn(params, DATA)}
    result = sweep(optimizers, evaluate=evaluate, metric="score", epochs=4, seeds=2, culling=culling)
    for member, params in enumerate(result.params):
        scores = [loss_fn(jax.tree.map(lambda p, j=j: p[j], params), DATA) for j in range(2)]
        np.testing.assert_allclose(result.metrics["score"][member], scores, rtol=1e-5)
