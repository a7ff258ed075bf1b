"""Programs as users of optax write them, run with optax and with `gdfx.compat.optax`: the same numbers."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax as the_original
import pytest
from flax import linen as nn
from flax.training import train_state
from sklearn.datasets import load_digits

from gdfx.compat import optax as the_drop_in


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    return jnp.asarray(x[:256] / 16, jnp.float32), jnp.asarray(y[:256])


def readme(optax):
    num_weights = 10
    xs = jax.random.normal(jax.random.PRNGKey(1), (num_weights,))
    ys = 1.0
    optimizer = optax.adam(learning_rate=1e-1)
    params = {"w": jnp.ones((num_weights,))}
    opt_state = optimizer.init(params)
    compute_loss = lambda params, x, y: optax.l2_loss(params["w"].dot(x), y)
    for _ in range(20):
        grads = jax.grad(compute_loss)(params, xs, ys)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
    return params, opt_state[0].mu, opt_state[0].nu, opt_state[0].count


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(10)(x)


def flax_mnist(optax):
    model = MLP()
    x, y = digits()
    params = model.init(jax.random.PRNGKey(0), x[:1])["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 40, 1e-4)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-2))
    state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def train_step(state, images, labels):
        def loss_fn(params):
            logits = state.apply_fn({"params": params}, images)
            one_hot = jax.nn.one_hot(labels, 10)
            return jnp.mean(optax.softmax_cross_entropy(logits=logits, labels=one_hot)), logits

        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        state = state.apply_gradients(grads=grads)
        return state, loss, jnp.mean(jnp.argmax(logits, -1) == labels)

    losses = []
    for _ in range(10):
        for start in range(0, 256, 64):
            state, loss, _ = train_step(state, x[start : start + 64], y[start : start + 64])
            losses.append(loss)
    adam_state = state.opt_state[1][0]
    assert isinstance(adam_state, optax.ScaleByAdamState)
    return losses, state.params, adam_state.nu, [schedule(i) for i in (0, 5, 10, 25, 40, 60)]


def injected_hyperparameters(optax):
    schedule = optax.exponential_decay(0.1, transition_steps=5, decay_rate=0.5)
    opt = optax.inject_hyperparams(optax.adam)(learning_rate=schedule, b1=0.8)
    params = {"w": jnp.array([1.0, -2.0, 3.0])}
    state = opt.init(params)
    seen = []

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.sum(optax.huber_loss(p["w"], jnp.zeros(3))))(params)
        updates, state = opt.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(10):
        if i == 5:
            state.hyperparams["b1"] = jnp.asarray(0.5, state.hyperparams["b1"].dtype)
        params, state = step(params, state)
        seen.append((state.hyperparams["learning_rate"], state.hyperparams["b1"]))
    other = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    state = other.init(params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25)
    updates, state = other.update(params, state)
    return params, seen, updates, state.hyperparams["learning_rate"], state.count


def groups_and_masks(optax):
    params = {"encoder": {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}, "head": {"w": jnp.full((2, 2), 0.5)}}
    labels = lambda params: {k: jax.tree.map(lambda _, k=k: k, v) for k, v in params.items()}
    mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    tx = optax.chain(
        optax.masked(optax.add_decayed_weights(1e-2), mask),
        optax.multi_transform({"encoder": optax.set_to_zero(), "head": optax.adam(1e-1)}, labels),
    )
    nested = optax.partition({"encoder": optax.sgd(0.1, momentum=0.9), "head": tx_of_head(optax)}, labels)
    loss = lambda p: jnp.sum(jnp.tanh(jnp.ones((4, 3)) @ p["encoder"]["w"] + p["encoder"]["b"]) @ p["head"]["w"]) ** 2
    found = []
    for opt in (tx, nested):
        p, state = params, opt.init(params)
        for _ in range(5):
            updates, state = opt.update(jax.grad(loss)(p), state, p)
            p = optax.apply_updates(p, updates)
        found.append(p)
    assert set(state.inner_states) == {"encoder", "head"}
    return found


def tx_of_head(optax):
    return optax.chain(optax.clip(0.1), optax.rmsprop(1e-2), optax.scale(0.5))


def multi_steps(optax):
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-1))
    opt = optax.MultiSteps(inner, every_k_schedule=3)
    params = {"w": jnp.arange(4.0)}
    state = opt.init(params)
    told = []
    for i in range(7):
        grads = {"w": jnp.sin(params["w"] + i)}
        updates, state = opt.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        told.append((opt.has_updated(state), state.mini_step, state.gradient_step))
    return params, told, state.acc_grads


def meta_learning(optax):
    x = jnp.linspace(-1.0, 1.0, 8)

    def inner_loss(params, shift):
        return jnp.mean(optax.squared_error(params["a"] * x + params["b"], jnp.sin(x + shift)))

    def outer_loss(meta, shift):
        opt = optax.chain(optax.trace(decay=0.5), optax.scale(-1.0), optax.scale(jnp.exp(meta["log_lr"])))
        params, state = meta["init"], opt.init(meta["init"])
        for _ in range(4):
            updates, state = opt.update(jax.grad(inner_loss)(params, shift), state, params)
            params = optax.apply_updates(params, updates)
        return inner_loss(params, shift)

    meta = {"init": {"a": jnp.array(0.1), "b": jnp.array(-0.2)}, "log_lr": jnp.array(-2.0)}
    opt = optax.adam(0.1)
    state = opt.init(meta)
    losses = []
    step = jax.jit(jax.value_and_grad(lambda m: jnp.mean(jax.vmap(lambda s: outer_loss(m, s))(jnp.arange(3.0)))))
    for _ in range(5):
        loss, grads = step(meta)
        updates, state = opt.update(grads, state)
        meta = optax.apply_updates(meta, updates)
        losses.append(loss)
    return losses, meta


class CountingState(NamedTuple):
    steps: jax.Array
    largest: jax.Array


def a_transform_of_ones_own(optax):
    def clip_to_largest(factor: float) -> optax.GradientTransformation:
        def init_fn(params):
            return CountingState(jnp.zeros([], jnp.int32), jnp.zeros([]))

        def update_fn(updates, state, params=None):
            del params
            size = optax.tree.norm(updates)
            largest = jnp.maximum(state.largest, size)
            updates = jax.tree.map(lambda u: factor * u / largest, updates)
            return updates, CountingState(optax.safe_increment(state.steps), largest)

        return optax.GradientTransformation(init_fn, update_fn)

    opt = optax.chain(clip_to_largest(2.0), optax.scale_by_learning_rate(0.1))
    assert isinstance(opt, optax.GradientTransformation)
    params = {"w": jnp.array([3.0, 4.0])}
    state = opt.init(params)
    for _ in range(3):
        updates, state = opt.update(params, state)
        params = optax.apply_updates(params, updates)
    assert isinstance(state[0], CountingState)
    return params, tuple(state[0])


def states_by_name(optax):
    params = {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-1))
    state = opt.init(params)
    updates, state = opt.update(params, state, params)
    mu = optax.tree.get(state, "mu")
    state = optax.tree.set(state, nu=jax.tree.map(jnp.ones_like, mu))
    doubled = optax.tree_map_params(opt, lambda v: 2 * v, state)
    return mu, optax.tree.get(doubled, "nu"), optax.tree.get(doubled, "count"), updates


def averages_and_lookahead(optax):
    params = {"w": jnp.array([1.0, 2.0])}
    average = params
    lookahead = optax.lookahead(optax.sgd(0.5), sync_period=3, slow_step_size=0.5)
    both = optax.LookaheadParams.init_synced(params)
    state = lookahead.init(both)
    for _ in range(7):
        updates, state = lookahead.update(both.fast, state, both)
        both = optax.apply_updates(both, updates)
        average = optax.incremental_update(both.fast, average, 0.1)
    return both.fast, both.slow, average


def line_search(optax):
    fn = lambda p: jnp.sum(100.0 * (p[1:] - p[:-1] ** 2) ** 2 + (1.0 - p[:-1]) ** 2)
    solver = optax.lbfgs()
    params = jnp.array([-1.2, 1.0, 0.5])
    state = solver.init(params)
    value_and_grad = optax.value_and_grad_from_state(fn)
    values = []
    for _ in range(8):
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=fn)
        params = optax.apply_updates(params, updates)
        values.append(value)
    return values, params


def safety(optax):
    opt = optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), max_consecutive_errors=2)
    params = {"w": jnp.array([1.0, 2.0])}
    state = opt.init(params)
    told = []
    for scale in (1.0, jnp.nan, 1.0, jnp.inf, 2.0):
        updates, state = opt.update({"w": params["w"] * scale}, state, params)
        params = optax.apply_updates(params, updates)
        told.append((state.notfinite_count, state.last_finite, state.total_notfinite))
    assert opt.init(params).inner_state is not None
    return params, told


PROGRAMS = [
    readme,
    flax_mnist,
    injected_hyperparameters,
    groups_and_masks,
    multi_steps,
    meta_learning,
    a_transform_of_ones_own,
    states_by_name,
    averages_and_lookahead,
    line_search,
    safety,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_same_numbers(program, x64):
    expected, found = program(the_original), program(the_drop_in)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    # In float32 are: this one; optax's schedules; optax's accumulator.
    rtol = {flax_mnist: 1e-4, injected_hyperparameters: 1e-6, multi_steps: 1e-6}.get(program, 1e-9)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)
