"""gdfx in the company of optax, flax and equinox, none of which is strict about promotion."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import gdfx
from gdfx.testing import trees_close

PARAMS = {"w": jnp.array([[1.0, -2.0, 3.0]]), "b": jnp.array([0.5, 0.25])}


@pytest.fixture(autouse=True)
def _lenient():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def loss_of(params):
    return sum(jnp.sum(jnp.sin(x - 1.0) ** 2) for x in jax.tree.leaves(params))


def run(opt, steps=20):
    init, update = opt
    params, state = PARAMS, init(PARAMS)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss_of)(params)
        updates, state = update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(steps):
        params, state, _ = step(params, state)
    return params


def labels(params):
    return {"w": "matrix", "b": "vector"}


IN_OPTAX = {
    "chain": lambda lib: optax.chain(optax.clip_by_global_norm(0.5), lib.adam(0.01), optax.scale(0.5)),
    "masked": lambda lib: optax.masked(lib.adam(0.01), {"w": True, "b": False}),
    "MultiSteps": lambda lib: optax.MultiSteps(lib.adamw(0.01), every_k_schedule=2).gradient_transformation(),
    "apply_if_finite": lambda lib: optax.apply_if_finite(lib.rmsprop(0.01), max_consecutive_errors=3),
    "partition": lambda lib: optax.partition({"matrix": lib.adam(0.01), "vector": lib.sgd(0.1, 0.9)}, labels),
    "flatten": lambda lib: optax.flatten(lib.adagrad(0.1)),
}


@pytest.mark.parametrize("name", IN_OPTAX)
def test_inside_optax(name):
    trees_close(run(IN_OPTAX[name](gdfx)), run(IN_OPTAX[name](optax)), rtol=1e-5)


@pytest.mark.parametrize(
    "scaler", [optax.trace(0.9), optax.scale_by_lion(), (lambda p: (), lambda u, s, p=None: (u, s))]
)
def test_optax_transforms_inside_gdfx(scaler):
    init, update = scaler
    ours = gdfx.chain(gdfx.clip_by_global_norm(0.5), scaler, gdfx.scale_by_learning_rate(0.01))
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.GradientTransformation(init, update),
        optax.scale_by_learning_rate(0.01),
    )
    trees_close(run(ours), run(theirs), rtol=1e-5)


def test_optax_transform_that_takes_the_loss_gets_it_from_the_step():
    data = jnp.arange(6.0)[:, None] * jnp.array([1.0, 2.0])
    step = gdfx.make_step(lambda w, x: jnp.mean((x @ w - 3.0) ** 2))
    ours = gdfx.chain(gdfx.clip(100.0), optax.polyak_sgd(max_learning_rate=0.01))
    theirs = optax.polyak_sgd(max_learning_rate=0.01)
    w = jnp.zeros(2)
    train, opt_state = gdfx.TrainState.create(ours, w), theirs.init(w)
    for _ in range(5):
        train, _ = step(ours, train, data)
        value, grads = jax.value_and_grad(lambda w: jnp.mean((data @ w - 3.0) ** 2))(w)
        updates, opt_state = theirs.update(grads, opt_state, w, value=value)
        w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(train.params, w, rtol=1e-5)


def test_reduce_on_plateau_is_told_the_loss():
    def losses_of(plateau):
        opt = gdfx.chain(gdfx.sgd(0.0), plateau)  # at a rate of 0 the loss stays
        step, state = gdfx.make_step(loss_of_batch), gdfx.TrainState.create(opt, PARAMS)
        for _ in range(7):
            state, _ = step(opt, state, jnp.float32(1))
        return float(state.opt_state[-1].scale)

    # The first step sets the mark, the other six are 3 times 2 without progress.
    assert losses_of(optax.contrib.reduce_on_plateau(factor=0.5, patience=2)) == 0.125
    assert losses_of(optax.contrib.reduce_on_plateau(factor=0.5, patience=50)) == 1.0


def loss_of_batch(params, batch):
    return loss_of(params) * batch.mean()


def test_fit_and_sweep_take_optax():
    data = np.ones(1, np.float32)
    fitted = gdfx.fit(loss_of_batch, PARAMS, optax.adam(0.01), data, epochs=20, progress=False)
    trees_close(fitted.params, run(optax.adam(0.01)), rtol=1e-5)
    swept = gdfx.sweep(loss_of_batch, lambda key: PARAMS, optax.adam(0.01), data, epochs=20, progress=False)
    trees_close(jax.tree.map(lambda p: p[0], swept.params[0]), run(optax.adam(0.01)), rtol=1e-5)


@pytest.mark.parametrize("make", [lambda: gdfx.adam(0.01), lambda: optax.apply_if_finite(gdfx.adam(0.01), 3)])
def test_apply_if_finite_keeps_the_state_of_gdfx(make):
    init, update = make()
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    updates, state = jax.jit(update)(jax.tree.map(lambda g: g * jnp.nan, grads), init(PARAMS), PARAMS)
    guarded = all(bool(jnp.all(u == 0)) for u in jax.tree.leaves(updates))
    updates, _ = jax.jit(update)(grads, state, PARAMS)
    finite = all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))
    assert guarded == finite == (not isinstance(make(), gdfx.adam))


def test_a_transform_is_compiled_once_inside_optax():
    opt, traces = optax.chain(optax.clip(1.0), gdfx.adam(gdfx.warmup_cosine(0.05, 2, 10))), []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = opt.update(jax.grad(loss_of)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(PARAMS, opt.init(PARAMS))
    for _ in range(3):
        params, state = step(params, state)
    assert len(traces) == 1


def test_flax_nnx(x64):  # in float32 the bias correction of optax is 5e-6 off, that of gdfx 1e-7
    def train(tx):
        model = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        x, y = jnp.linspace(-1, 1, 12).reshape(4, 3), jnp.ones((4, 2))

        @nnx.jit
        def step(model, optimizer):
            value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
            optimizer.update(model, grads)
            return value

        losses = [step(model, optimizer) for _ in range(30)]
        return model.kernel[...], np.array(losses)

    kernel, losses = train(gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adam(0.05)))
    expected, expected_losses = train(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    np.testing.assert_allclose(kernel, expected, rtol=1e-9)
    assert losses[-1] < 0.5 * losses[0]


def test_flax_train_state_compiles_no_more_than_with_optax():
    model = linen.Dense(2)
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    params = model.init(jax.random.key(0), x)

    def train(tx):
        @jax.jit
        def step(state):
            grads = jax.grad(lambda p: jnp.mean((state.apply_fn(p, x) - 1.0) ** 2))(state.params)
            return state.apply_gradients(grads=grads)

        state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        for _ in range(4):
            state = step(state)
        return state.params, step._cache_size()

    ours, our_compilations = train(gdfx.adamw(gdfx.warmup_cosine(0.05, 2, 10), mask=gdfx.matrices))
    theirs, their_compilations = train(
        optax.adamw(optax.warmup_cosine_decay_schedule(0.05 / 3, 0.05, 2, 10), mask=gdfx.matrices)
    )
    trees_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert our_compilations <= their_compilations


def test_equinox():
    x, y = jnp.linspace(-1, 1, 12).reshape(4, 3), jnp.ones((4, 2))
    traces = []

    @eqx.filter_jit
    def step(model, opt, state):
        traces.append(1)
        value, grads = eqx.filter_value_and_grad(lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2))(model)
        updates, state = opt.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, value

    def train(opts):
        model = eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0))
        state = opts[0].init(eqx.filter(model, eqx.is_inexact_array))
        values = []
        for opt in opts:
            model, state, value = step(model, opt, state)
            values.append(float(value))
        return eqx.filter(model, eqx.is_inexact_array), values

    ours, values = train([gdfx.adamw(0.02)] * 20)
    theirs, _ = train([optax.adamw(0.02)] * 20)
    trees_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert values[-1] < 0.5 * values[0]
    traces.clear()
    train([gdfx.adamw(jnp.float32(rate)) for rate in (0.1, 0.02, 0.03)])  # arrays: equinox compiles Python numbers in
    assert len(traces) == 1


def test_fit_trains_the_arrays_of_an_equinox_model():
    data = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "y": np.ones((4, 2), np.float32)}
    params, rest = eqx.partition(eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0)), eqx.is_inexact_array)

    def loss(params, batch):
        return jnp.mean((jax.vmap(eqx.combine(params, rest))(batch["x"]) - batch["y"]) ** 2)

    result = gdfx.fit(loss, params, gdfx.adam(0.05), data, epochs=30, progress=False)
    assert result.history["loss"][-1] < 0.2 * result.history["loss"][0]
    model = eqx.combine(result.params, rest)
    assert model(data["x"][0]).shape == (2,)
    with pytest.raises(TypeError, match=r"params\.activation has type .*keep them outside params"):
        gdfx.fit(loss, eqx.combine(params, rest), gdfx.adam(0.05), data, epochs=1, progress=False)


def test_fit_trains_a_flax_model():
    model = linen.Dense(2)
    data = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "y": np.ones((4, 2), np.float32)}
    params = model.init(jax.random.key(0), data["x"])
    result = gdfx.fit(
        lambda p, batch: jnp.mean((model.apply(p, batch["x"]) - batch["y"]) ** 2),
        params, gdfx.adam(0.05), data, epochs=30, batch_size=2, progress=False,
    )  # fmt: skip
    assert result.history["loss"][-2:].mean() < 0.2 * result.history["loss"][:2].mean()
    assert jax.tree.structure(result.params) == jax.tree.structure(params)
