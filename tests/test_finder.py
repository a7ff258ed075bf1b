"""`find_learning_rate`: against rates known from theory, loops of `fit`, and sweeps."""

import logging
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import gdfx
from gdfx.training.finder import find_learning_rate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 3)).astype(np.float32)
DATA = {"x": X, "y": X @ np.float32([1, -2, 0.5]) + RNG.normal(size=24).astype(np.float32)}
ONE = np.ones(1, np.float32)


def loss_fn(params, batch):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


def find(optimizer=None, data=DATA, *, loss_fn=loss_fn, params=None, progress=False, **options):
    optimizer = gdfx.sgd(0.1) if optimizer is None else optimizer
    params = {"w": jnp.zeros(3)} if params is None else params
    return find_learning_rate(loss_fn, params, optimizer, data, progress=progress, **options)


def test_every_rate_trains_as_fit_does():
    result = find(gdfx.adam(1.0), low=1e-3, high=1.0, rates=4, steps=12, batch_size=6, key=3)
    np.testing.assert_allclose(result.rates, [1e-3, 1e-2, 1e-1, 1], rtol=1e-12)
    assert result.losses.shape == (4, 12)
    for rate, losses in zip(result.rates, result.losses, strict=True):
        fitted = gdfx.fit(
            loss_fn, {"w": jnp.zeros(3)}, gdfx.adam(rate), DATA, epochs=3, batch_size=6, key=3, progress=False
        )
        np.testing.assert_allclose(losses, fitted.history["loss"], rtol=1e-4)
    still = gdfx.fit(loss_fn, {"w": jnp.zeros(3)}, gdfx.sgd(0), DATA, epochs=3, batch_size=6, key=3, progress=False)
    np.testing.assert_allclose(result.start_losses, still.history["loss"], rtol=1e-5)
    np.testing.assert_allclose(result.final, result.losses[:, -2:].mean(axis=1))
    np.testing.assert_allclose(result.start, result.start_losses[-2:].mean())


@pytest.mark.parametrize("curvature", [1e-3, 1.0, 50.0])
def test_one_curvature(curvature):
    """Gradient descent on c x²/2 is there in one step at 1/c, and diverges above 2/c."""
    result = find(
        gdfx.sgd(0.1), ONE, loss_fn=lambda p, b: curvature * p**2 / 2, params=jnp.float32(1),
        low=1e-3 / curvature, high=1e3 / curvature, rates=61,
    )  # fmt: skip
    assert 0.49 < result.suggestion * curvature < 1.01
    np.testing.assert_array_equal(result.diverged, result.rates * curvature > 2)
    assert f"{result.rates[result.diverged][0]:.3g}" in result.reason
    assert "diverges" in result.reason


def test_many_curvatures():
    """With curvatures from 1 to 100 the best rate is 2/101, and larger ones than 2/100 diverge."""
    curvatures = jnp.geomspace(1, 100, 10)
    result = find(
        gdfx.sgd(0.1), ONE, loss_fn=lambda p, b: jnp.sum(curvatures * p**2) / 2, params=jnp.ones(10) / curvatures,
        low=1e-5, high=1, rates=51,
    )  # fmt: skip
    assert 0.8 < result.suggestion * 101 < 2
    assert result.final[list(result.rates).index(result.suggestion)] < 0.2 * result.start


def test_the_suggestion_for_digits_is_as_good_as_the_best_of_a_sweep():
    x, y = load_digits(return_X_y=True)
    data = np.float32(x / 16), np.int32(y)
    model = gdfx.models.mlp([64, 32, 10])

    def loss_fn(params, batch):
        logits = model.apply(params, batch[0])
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    for optimizer in (gdfx.sgd, gdfx.adam):
        found = find(optimizer, data, loss_fn=loss_fn, params=model.init(jax.random.key(0)), batch_size=32)
        rates = [found.suggestion, *np.geomspace(1e-4, 3, 10)]
        swept = gdfx.sweep(
            loss_fn, model.init, gdfx.grid(optimizer, learning_rate=rates), data, batch_size=32, epochs=2, seeds=2,
            progress=False,
        )  # fmt: skip
        losses = swept.mean("train_loss")
        assert losses[0] <= 1.1 * np.nanmin(losses), optimizer
        assert np.isfinite(found.final[~found.diverged]).all()


@pytest.mark.parametrize("options", [{}, {"batch_size": 5}])
def test_it_compiles_once(options, caplog):
    traces = []

    def counted(params, batch):
        traces.append(None)
        return loss_fn(params, batch)

    with jax.log_compiles(True), caplog.at_level(logging.WARNING, logger="jax"):
        find(loss_fn=counted, low=1e-5, rates=7, steps=300, **options)
    compiled = [r.message for r in caplog.records if r.message.startswith("Compiling")]
    assert sum("jit(many)" in message for message in compiled) == 1
    few = len(traces)
    find(loss_fn=counted, low=1e-5, rates=29, steps=30, **options)
    assert len(traces) == 2 * few  # whatever the number of rates and steps


def test_the_params_of_the_caller_are_untouched():
    params = {"w": jnp.zeros(3)}
    data = jax.tree.map(jnp.asarray, DATA)
    for _ in range(2):
        find(params=params, data=data, steps=10)
    np.testing.assert_array_equal(params["w"], np.zeros(3))
    np.testing.assert_array_equal(data["x"], X)


# What may be varied.

SAME = find(gdfx.adam(0.1), steps=20)


@pytest.mark.parametrize(
    ("optimizer", "path"),
    [
        (gdfx.adam, None),
        (lambda rate: gdfx.adam(rate), None),
        (optax.adam, None),
        (gdfx.adam(gdfx.warmup_cosine(1e-3, 10, 100)), None),
        (gdfx.as_arrays(gdfx.adam(1)), None),
        (gdfx.chain(gdfx.clip_by_global_norm(1e9), gdfx.adam(1.0)), None),
        (gdfx.chain(gdfx.scale_by_adam(), gdfx.scale_by_learning_rate(1e-2)), None),
        (gdfx.inject_hyperparams(gdfx.adam)(1e-2), None),
        (gdfx.inject_hyperparams(gdfx.adam)(1e-2), "numbers['learning_rate']"),
        (
            gdfx.partition({"a": gdfx.adam(1.0), "frozen": gdfx.sgd(1.0)}, lambda path, leaf: "a"),
            "transforms['a'].learning_rate",
        ),
        (gdfx.adam(gdfx.schedules.linear(1.0, 1.0, 10)), "learning_rate"),
    ],
)
def test_the_same_rate_by_other_ways(optimizer, path):
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        result = find(optimizer, steps=20, path=path)
    np.testing.assert_allclose(result.losses, SAME.losses, rtol=1e-4)
    assert result.suggestion == SAME.suggestion


def test_the_peak_of_a_schedule():
    warm = find(gdfx.adam(gdfx.warmup_cosine(1e-3, 10, 100)), path="learning_rate.peak", steps=20)
    assert (warm.final[8:16] > SAME.final[8:16]).all()


def test_aux_and_what_the_step_does_not_make():
    result = find(loss_fn=lambda p, b: (loss_fn(p, b), {"n": 1}), has_aux=True, steps=10)
    np.testing.assert_allclose(result.final, find(steps=10).final, rtol=1e-5)
    with pytest.raises(TypeError, match="needs key, which the step does not make"):
        find(gdfx.chain(gdfx.add_noise(0.1, 0.1, key=None), gdfx.sgd(0.1)))


def test_half_precision():
    result = find(params={"w": jnp.zeros(3, jnp.bfloat16)}, loss_fn=lambda p, b: jnp.sum((p["w"] - 1) ** 2))
    assert result.losses.dtype == np.float64
    assert 0.05 < result.suggestion < 1


def test_x64(x64):
    params, data = {"w": jnp.zeros(3)}, jax.tree.map(lambda a: a.astype(np.float64), DATA)
    result = find(data=data, params=params, high=0.5, rates=3, steps=10)
    fitted = gdfx.fit(loss_fn, params, gdfx.sgd(0.5), data, epochs=10, progress=False)
    np.testing.assert_allclose(result.losses[-1], fitted.history["loss"], rtol=1e-12)


# What is told.


def test_the_end_of_the_range_is_told():
    assert "raise `high`" in find(high=1e-3).reason
    assert "lower `low`" in find(gdfx.adam, low=2.0, high=8.0).reason
    assert "raise" not in find().reason
    assert "lower" not in find().reason.replace("lowest", "")


def test_the_repr():
    result = find()
    assert re.fullmatch(
        r"LearningRateResult\(suggestion=[\d.]+, loss [\d.]+ -> [\d.]+, \d+ of 32 rates from 1e-06 to 10 diverged\)",
        repr(result),
    )
    assert result.reason.endswith(".")
    assert result.suggestion in result.rates


@pytest.mark.parametrize("batch_size", [None, 6])
def test_the_plot(tmp_path, batch_size):
    result = find(batch_size=batch_size)
    assert result.diverged.any()
    figure = result.plot(tmp_path / "rates.png")
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    drawn = {line.get_label(): line for line in ax.lines}
    assert set(drawn) == {
        "loss at the start", "loss at the end", "diverged", f"suggestion: {result.suggestion:.3g}",
    }  # fmt: skip
    np.testing.assert_array_equal(drawn["diverged"].get_xdata(), result.rates[result.diverged])
    np.testing.assert_array_equal(drawn["loss at the end"].get_ydata(), result.final[~result.diverged])
    assert (tmp_path / "rates.png").stat().st_size > 10_000


# Where nothing is found.


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (loss_fn, {"low": 1e3, "high": 1e9}, r"all diverged: lower `low`, and check the loss"),
        (loss_fn, {"low": 1e30, "high": 1e38}, r"all diverged: lower `low`"),
        (loss_fn, {"low": 1e-20, "high": 1e-12}, r"none diverged and none got the loss below.*raise `high`"),
        (lambda p, b: 0 * jnp.sum(p["w"]), {}, r"none diverged and none.*check that the gradients are not 0"),
        (lambda p, b: jnp.sum(p["w"]) * math.nan, {}, r"none can be judged: the loss at the start is nan"),
        (loss_fn, {"low": 1e-12, "high": 1e6, "rates": 2}, r"of 2 rates .* 1 diverged and none got the loss below"),
    ],
)
def test_no_rate_is_any_good(loss, options, message):
    with pytest.raises(RuntimeError, match=message):
        find(loss_fn=loss, **options)


def test_noise_is_no_gain():
    """Losses that differ from batch to batch, but not by what is trained, are no progress; small real ones are."""
    data = np.float32(RNG.normal(size=200))

    def loss(p, batch):
        return jnp.mean(batch) + 1e-6 * jnp.sum(p["w"] * batch.mean())

    with pytest.raises(RuntimeError, match="beyond noise"):
        find(loss_fn=loss, data=data, batch_size=4, high=1.0)
    result = find(loss_fn=lambda p, b: 100 * jnp.mean(b) + jnp.sum((p["w"] - 1) ** 2), data=data, batch_size=4)
    assert 0.05 < result.suggestion < 1


# Bad input.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"low": 0}, ValueError, "low is 0, expected a positive learning rate"),
        ({"low": -1.0}, ValueError, "low is -1.0, expected a positive"),
        ({"high": math.inf}, ValueError, "high is inf, expected a positive"),
        ({"high": math.nan}, ValueError, "high is nan"),
        ({"low": 1e-60}, ValueError, "low is 1e-60, expected .* that float32 can hold"),
        ({"high": "1"}, TypeError, "high is '1', expected a number"),
        ({"low": True}, TypeError, "low is True, expected a number"),
        ({"low": 1.0, "high": 0.1}, ValueError, r"low is 1.0 and high is 0.1, expected low < high: are they exchanged"),
        ({"rates": 1}, ValueError, "rates is 1, expected an integer of at least 2"),
        ({"rates": [0.1, 1.0]}, ValueError, r"rates is \[0.1, 1.0\], expected an integer"),
        ({"steps": 9}, ValueError, "steps is 9, expected an integer of at least 10"),
        ({"steps": 100.0}, ValueError, "steps is 100.0, expected an integer"),
        ({"batch_size": 25}, ValueError, "batch_size is 25, but there are only 24 examples"),
        ({"data": {"x": X[:0], "y": X[:0]}}, ValueError, "data is empty"),
        ({"key": -1, "batch_size": 2}, TypeError, "key is -1, expected a PRNG key"),
        ({"loss_fn": lambda p, b: p["w"]}, ValueError, r"loss_fn returned shape \(3,\), expected a scalar"),
        ({"params": {"w": 1.0}}, TypeError, r"params\['w'\] has type float"),
        ({"optimizer": gdfx.clip(1.0)}, ValueError, r"clip.* has no learning_rate: name what to vary .* max_delta"),
        ({"optimizer": gdfx.identity()}, ValueError, "has no learning_rate"),
        (
            {"optimizer": gdfx.chain(gdfx.sgd(0.1), gdfx.scale_by_learning_rate(0.1))},
            ValueError,
            r"several learning rates: transforms\[0\].learning_rate, transforms\[1\].learning_rate; name one with",
        ),
        ({"path": "rate"}, KeyError, "there is nothing at the path 'rate'.*learning_rate"),
        ({"optimizer": gdfx.sgd, "path": "learning_rate"}, ValueError, "but optimizer is a function.*leave path out"),
        ({"optimizer": optax.sgd(0.1)}, TypeError, r"whose learning rate cannot be changed.*lambda rate: optax.adam"),
        ({"optimizer": 0.1}, TypeError, "0.1 is a float, expected a transform"),
        ({"optimizer": lambda rate: rate}, TypeError, "is a float, expected a transform"),
        ({"optimizer": gdfx.adam(0.1), "path": "b1"}, ValueError, "b1 is 10.0, expected at least 0 and less than 1"),
    ],
)  # fmt: skip
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        find(**options)
