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


def test_flax_nnx():
    def train(tx):
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
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
    expected, _ = train(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)))
    np.testing.assert_allclose(kernel, expected, atol=1e-5)
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
