"""`sweep` and `grid`: every member against a training of its own, then what is made of the results."""

import dataclasses
import functools
import logging
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import gdfx
from gdfx.sweeps.grid import batched
from gdfx.training import loop
from gdfx.training.data import Shuffled

SIZE = 16
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SIZE, 3)).astype(np.float32)
DATA = {"x": X, "y": np.sin(X @ np.array([1.0, -2.0, 0.5], np.float32))}


def init_fn(key):
    start = jax.random.uniform(key, (4,))
    return {"w": start[:3], "scale": start[3]}


def loss_fn(params, batch):
    return jnp.mean((params["scale"] * jnp.tanh(batch["x"] @ params["w"]) - batch["y"]) ** 2)


def sweep(optimizers, *, loss_fn=loss_fn, init_fn=init_fn, data=DATA, epochs=3, progress=False, **options):
    return gdfx.sweep(loss_fn, init_fn, optimizers, data, epochs=epochs, progress=progress, **options)


@functools.cache
def compiled_step():
    return gdfx.make_step(loss_fn)


def alone(optimizer, *, epochs=3, batch_size=None, seed=0, key=0):
    """The params and the losses of one training, step by step."""
    base = jax.random.key(key)
    order = Shuffled(SIZE, batch_size or SIZE, [*np.asarray(jax.random.key_data(base)), seed])
    state = gdfx.TrainState.create(optimizer, init_fn(jax.random.fold_in(base, seed)))
    losses = []
    for chosen in order.take(epochs * order.steps_per_epoch):
        batch = DATA if batch_size is None else jax.tree.map(lambda a, chosen=chosen: a[chosen], DATA)
        state, metrics = compiled_step()(optimizer, state, batch)
        losses.append(metrics["loss"])
    return state.params, np.array(losses)


def assert_members(result, singles, seeds=(0,), **options):
    for i, optimizer in enumerate(singles):
        assert result.optimizer(i) == optimizer
        for j, seed in enumerate(seeds):
            params, losses = alone(optimizer, seed=seed, **options)
            np.testing.assert_allclose(result.history["loss"][i, j], losses, rtol=1e-5)
            jax.tree.map(
                lambda p, q, i=i, j=j: np.testing.assert_allclose(p[i, j], q, rtol=1e-5, atol=1e-6),
                result.params,
                params,
            )
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
    "one of many": (
        lambda: gdfx.adam(0.05, b1=jnp.array([0.0, 0.5])),
        lambda: (gdfx.adam(0.05, b) for b in (0.0, 0.5)),
    ),
    "grid": (
        lambda: gdfx.grid(gdfx.adamw, learning_rate=[0.01, 0.1], weight_decay=(0, 0.5, 1), b2=0.9),
        lambda: (gdfx.adamw(r, b2=0.9, weight_decay=w) for r in (0.01, 0.1) for w in (0.0, 0.5, 1.0)),
    ),
    "grid of a function": (
        lambda: gdfx.grid(clipped_adam, c=range(1, 3), learning_rate=np.array([0.01, 0.1])),
        lambda: (clipped_adam(c, r) for c in (1.0, 2.0) for r in (0.01, 0.1)),
    ),
    "grid with an array for all": (
        lambda: gdfx.grid(gdfx.adam, learning_rate=[0.01, 0.1], b1=jnp.float32(0.5)),
        lambda: (gdfx.adam(r, b1=0.5) for r in (0.01, 0.1)),
    ),
    "list": (lambda: [gdfx.adam(0.1), gdfx.adam(1e-2, b1=0)], lambda: (gdfx.adam(0.1), gdfx.adam(0.01, b1=0.0))),
    "single": (lambda: gdfx.adam(0.1), lambda: (gdfx.adam(0.1),)),
    "schedules": (lambda: jax.vmap(warmed_up)(jnp.array(RATES)), lambda: map(warmed_up, RATES)),
    "grid of schedules": (lambda: gdfx.grid(warmed_up, peak=RATES), lambda: map(warmed_up, RATES)),
}


@pytest.mark.parametrize(("batch", "singles"), SWEEPS.values(), ids=SWEEPS.keys())
def test_the_members_are_the_optimizers(batch, singles):
    optimizers, members = batched(batch())
    expected = [jax.tree.map(float, single) for single in singles()]  # a whole number is a float in the result
    assert members == len(expected)
    for i, single in enumerate(expected):
        assert jax.tree.map(lambda x, i=i: float(str(np.asarray(x)[i])), optimizers) == single


@pytest.mark.parametrize("name", ["grid", "partly batched", "grid of a function", "list", "grid of schedules"])
def test_a_sweep_is_its_single_trainings(name):
    batch, singles = SWEEPS[name]
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
        assert sum(r.message.startswith("Compiling jit(many)") for r in caplog.records) == 1
    assert counts[2] == counts[9] <= 4


def test_seconds_and_history():
    result = sweep(gdfx.adam(jnp.array(RATES)), batch_size=5, seeds=2, epochs=4)
    assert set(result.seconds) == {"compile", "run"}
    assert all(s > 0 for s in result.seconds.values())
    assert result.history["loss"].shape == (3, 2, 12)
    np.testing.assert_allclose(result.metrics["train_loss"], result.history["loss"][..., -3:].mean(-1), rtol=1e-6)
    assert not result.diverged.any()
    assert (result.diverged_at == -1).all()
    assert result.params["w"].shape == (3, 2, 3)


def test_a_convolution():
    model = gdfx.models.cnn((4, 4, 1), channels=(2,), classes=2)
    data = {"x": RNG.normal(size=(4, 4, 4, 1)).astype(np.float32), "y": np.arange(4) % 2}

    def loss(params, batch):
        logits = model.apply(params, batch["x"])
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    result = sweep(gdfx.sgd(jnp.array([0.01, 0.1])), loss_fn=loss, init_fn=model.init, data=data, epochs=4)
    params = model.init(jax.random.fold_in(jax.random.key(0), 0))
    single = gdfx.fit(loss, params, gdfx.sgd(0.1), data, epochs=4, progress=False)
    np.testing.assert_allclose(result.history["loss"][1, 0], single.history["loss"], rtol=1e-5)


def test_x64(x64):
    data = jax.tree.map(lambda a: a.astype(np.float64), DATA)
    result = sweep(gdfx.grid(gdfx.adam, learning_rate=RATES), data=data, batch_size=5)
    assert result.history["loss"].dtype == result.params["w"].dtype == np.float64
    assert result.optimizer(0) == gdfx.adam(1e-3)
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
    assert float(result.params[1, 0]) == pytest.approx((-9.0) ** step)
    assert np.isfinite(result.params).all()
    without = parabola([0.1, 0.25])
    # Element-wise arithmetic: the others are the same bit for bit (products of matrices may be batched in another way).
    np.testing.assert_array_equal(result.params[jnp.array([0, 2])], without.params)
    np.testing.assert_array_equal(losses[[0, 2]], without.history["loss"][:, 0])


def test_a_neighbour_that_diverges_does_not_disturb_a_network():
    with_it = sweep(gdfx.sgd(jnp.array([0.01, 1e30, 0.1])), batch_size=5, epochs=20)
    without = sweep(gdfx.sgd(jnp.array([0.01, 0.1])), batch_size=5, epochs=20)
    assert with_it.diverged.ravel().tolist() == [False, True, False]
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p[jnp.array([0, 2])], q, rtol=1e-6, atol=1e-6),
        with_it.params,
        without.params,
    )
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
    assert result.params.tolist() == [[0.0], [2.0]]
    np.testing.assert_array_equal(result.history["loss"][1, 0], np.float32([0, -1, bad, math.nan, math.nan, math.nan]))


def test_params_that_are_lost_at_a_finite_loss():
    loss = lambda p, b: jnp.sqrt(p)  # at 0 the loss is 0, and its slope infinite
    result = parabola([0.1], loss_fn=loss, init_fn=lambda key: jnp.float32(0), epochs=3)
    assert result.diverged_at.tolist() == [[0]]
    assert result.params.tolist() == [[0.0]]


def test_a_loss_that_ends_above_its_start_is_marked():
    result = parabola([0.1, 1.05, 0.0], epochs=8)  # 1.1 ** 2 at each step: finite throughout
    assert result.diverged.ravel().tolist() == [False, True, False]
    assert (result.diverged_at == -1).all()
    assert result.best.index == 0


def test_a_first_batch_that_is_easy_by_chance_marks_no_member():
    targets = (0.5 + RNG.normal(size=64)).astype(np.float32)
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
    worse = parabola([-0.02], epochs=40, batch_size=1)  # uphill, and never far from 1
    assert worse.diverged.all()
    assert (worse.diverged_at == -1).all()


def test_all_diverged():
    result = parabola([5.0, 50.0], epochs=80, seeds=2)
    assert result.diverged.all()
    assert result.history["loss"].shape[-1] < 80  # nothing left to train
    with pytest.raises(RuntimeError, match=r"every optimizer of the sweep diverged.*smaller learning rates"):
        _ = result.best
    assert "*" not in str(result)
    assert str(result).count("2 of 2") == 2


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
    assert best.params == result.params[1, result.seeds.index(best.seed)]


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
    assert f"{sum(expected)} of 9" in result.table()
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
    assert "*" in hopeless.table().splitlines()[-1]


@pytest.mark.parametrize("dtype", [bool, np.int32, jnp.bfloat16])
def test_metrics_of_any_real_dtype(dtype):
    result = parabola(
        [0.01, 0.4], epochs=9, seeds=3, evaluate=lambda p: {"good": (p < 0.1).astype(dtype)}, metric="good", mode="max"
    )
    assert result.best.index == 1
    assert result.best.metrics["good"] == 1
    assert "1.0000" in result.table()


def test_the_table():
    result = parabola([0.1, 0.4, 50.0], epochs=40, evaluate=distance)
    header, rule, *rows = result.table().splitlines()
    assert header.split() == ["learning_rate", "train_loss", "distance", "negated", "diverged"]
    assert set(rule) == {"-", " "}
    assert [row.split()[0] for row in rows] == ["0.1", "0.4", "50"]
    assert [row.endswith("*") for row in rows] == [False, True, False]
    assert rows[2].split() == ["50", "-", "-", "-", "1", "of", "1"]
    assert "±" not in result.table()
    assert repr(result) == str(result) == result.table()
    assert max(map(len, result.table().splitlines())) <= 120
    several = parabola([0.1, 0.4], init_fn=jax.random.uniform, seeds=2)
    assert several.table().count("±") == 2


def test_what_was_varied():
    result = sweep(gdfx.adam(0.1), epochs=1)

    def names(optimizers):
        of_these = dataclasses.replace(result, optimizers=batched(optimizers)[0])
        return {name: values.tolist() for name, values in of_these.varied.items()}

    assert names(gdfx.adam(0.1)) == {}
    assert names([gdfx.adam(0.5), gdfx.adam(0.25)]) == {"learning_rate": [0.5, 0.25]}
    grid = gdfx.grid(gdfx.adamw, weight_decay=[0, 1], b1=[0.5, 0.25], learning_rate=0.125)
    assert names(grid) == {"b1": [0.5, 0.25, 0.5, 0.25], "weight_decay": [0, 0, 1, 1]}
    assert names(gdfx.grid(clipped_adam, c=[1, 2], learning_rate=[0.5])) == {"max_norm": [1, 2]}
    assert names(jax.vmap(warmed_up)(jnp.array([0.5, 0.25]))) == {"peak": [0.5, 0.25]}
    twice = jax.vmap(lambda c: gdfx.chain(gdfx.clip(c), gdfx.clip(2 * c), gdfx.sgd(0.5)))(jnp.array([1.0, 2.0]))
    assert names(twice) == {"transforms[0].max_delta": [1, 2], "transforms[1].max_delta": [2, 4]}


def test_a_sweep_without_variation_has_a_table():
    table = sweep(gdfx.adam(0.1), seeds=2).table()
    assert table.split()[:2] == ["optimizer", "train_loss"]
    assert table.endswith("*")


@pytest.mark.parametrize(
    "rates", [[0.01, 0.1, 0.4, 50.0], [50.0, 60.0], [0.1, 0.2]], ids=["some diverged", "all diverged", "none"]
)
def test_the_plot(rates, tmp_path):
    open_before = plt.get_fignums()
    grid = gdfx.grid(gdfx.sgd, learning_rate=rates, momentum=[0.0, 0.5])
    result = parabola(grid, init_fn=jax.random.uniform, seeds=2, evaluate=distance)
    path = tmp_path / "sweep.png"
    figure = result.plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [ax.get_ylabel() for ax in figure.axes] == ["train loss", "distance", "negated"]
    labels = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert {"momentum=0", "momentum=0.5"} <= labels
    assert ("diverged" in labels) == (50.0 in rates)
    assert any(label.startswith("best: learning_rate=") for label in labels) == (min(rates) < 1)
    assert figure.axes[0].get_xlabel() == "learning rate"
    assert figure.axes[0].get_xscale() == ("log" if len(rates) == 4 else "linear")
    assert plt.get_fignums() == open_before  # a figure that went to a file is not left open
    single = sweep(gdfx.adam(0.1)).plot()
    assert single.axes[0].get_xlabel() == "optimizer"
    plt.close(single)


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
        ([gdfx.adam(0.1), gdfx.sgd(0.1)], ValueError, r"adam\(.*sgd\(.*differ in more than numbers"),
        ([gdfx.sgd(0.1), gdfx.sgd(0.1, nesterov=True)], ValueError, "differ in more than numbers"),
        ([gdfx.adam(jnp.ones(2))], ValueError, r"\[0\].learning_rate has shape \(2,\), expected a number"),
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
    ],
)
def test_optimizers_that_are_no_batch(optimizers, error, message):
    with pytest.raises(error, match=message):
        sweep(optimizers)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gdfx.grid(gdfx.adam, learning_rate=[]), ValueError, "learning_rate is empty"),
        (lambda: gdfx.grid(gdfx.adam, learning_rate=0.1), ValueError, "nothing is varied.*hyperparameter of adam"),
        (lambda: gdfx.grid(gdfx.adam), ValueError, "nothing is varied"),
        (
            lambda: gdfx.grid(gdfx.sgd, learning_rate=0.1, nesterov=[True, False]),
            TypeError,
            "nesterov of sgd is compiled into the program",
        ),
        (
            lambda: gdfx.grid(gdfx.adam, learning_rate=[0.1, -0.1]),
            ValueError,
            "adam: learning_rate is -0.1, expected at least 0",
        ),
        (lambda: gdfx.grid(gdfx.adam, learning_rate=[0.1], b1=[0.5, 1.0]), ValueError, "adam: b1 is 1.0"),
        (lambda: gdfx.grid(gdfx.adam, learning_rate=[0.1, math.nan]), ValueError, "learning_rate is nan"),
        (lambda: gdfx.grid(gdfx.adam, learning_rate=[0.1], lr=[1]), TypeError, "unexpected keyword argument 'lr'"),
        (lambda: gdfx.grid(gdfx.adam, learning_rate=["a"]), TypeError, "learning_rate has .*, expected a list of numb"),
        (lambda: gdfx.grid(gdfx.adam, learning_rate=[[0.1]]), TypeError, r"learning_rate has shape \(1, 1\)"),
        (lambda: gdfx.grid(gdfx.adam, learning_rate=[warmed_up(0.1)]), TypeError, "dtype object, expected a list of"),
    ],
)
def test_grids_that_cannot_be(make, error, message):
    with pytest.raises(error, match=message):
        make()
