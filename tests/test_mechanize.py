"""Mechanic: against optax, against the paper's algorithm in NumPy, and from a rate of a millionth to the minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdfx
from gdfx.testing import check_transformation, trees_close

pytestmark = pytest.mark.numbers

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.4, -1.0]), "none": None}
CURVATURES = jnp.asarray([[1.0, 3.0], [0.3, 10.0]])


def quadratic(params):
    w, b = params["w"], params["b"]
    terms = jnp.sum(CURVATURES.astype(w.dtype) * (w - 0.3) ** 2), jnp.sum((b - 2 * w[0]) ** 2)
    return 0.5 * sum(x.astype(float) for x in terms)


def gradients(steps, params=PARAMS, mean=0.3, turn=None):
    """Stacked gradients, whatever the params are: with those of a loss the tuner's rounding errors grow to 1e-7.

    They have a mean, along which the factor grows, and from the step `turn` on another sign, 10 times as large.
    """
    rng = np.random.default_rng(0)
    draw = lambda shape: rng.standard_normal((steps, *shape)) + mean
    sign = np.where(np.arange(steps) < (turn or steps), 1.0, -10.0)
    scaled = lambda p: jnp.asarray(draw(p.shape) * sign.reshape(steps, *[1] * p.ndim))
    return jax.tree.map(scaled, params)


def follow(opt, params, grads, apply_updates=gdfx.apply_updates):
    """The params and the state of the wrapper after each step, stacked, for given gradients or those of a loss."""

    def step(carry, i):
        params, state = carry
        grad = jax.grad(grads)(params) if callable(grads) else jax.tree.map(lambda g: g[i], grads)
        updates, state = opt.update(grad, state, params)
        params = apply_updates(params, updates)
        return (params, state), (params, state)

    def all_steps(params):
        return jax.lax.scan(step, (params, opt.init(params)), jnp.arange(steps))[1]

    steps = 500 if callable(grads) else len(jax.tree.leaves(grads)[0])
    return jax.jit(all_steps)(params)


def follow_optax(*args):
    with jax.numpy_dtype_promotion("standard"):
        return follow(*args, apply_updates=optax.apply_updates)


def numbers(state):
    return state.s, state.r, state.m, state.v


def last(tree):
    return jax.tree.map(lambda x: x[-1], tree)


@pytest.mark.parametrize(
    "opt",
    [
        gdfx.mechanize(gdfx.adam(1.0)),
        gdfx.mechanize(gdfx.sgd(1.0, 0.9), 0.1, 1e-6, 1e-3, num_betas=1),
        gdfx.mechanize(gdfx.guard(gdfx.sgd(1.0))),
        gdfx.mechanize(gdfx.sgd(gdfx.schedules.linear(1.0, 0.5, 5)), s_init=gdfx.schedules.linear(1e-3, 1e-2, 5)),
        gdfx.lookahead(gdfx.mechanize(gdfx.sgd(1.0), s_init=0.01), 2),
        gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.mechanize(gdfx.adam(1.0)), gdfx.ema_params(0.9)),
    ],
    ids=repr,
)
def test_contract(opt):
    check_transformation(opt, complex=True)


def test_contract_in_float64(x64):
    check_transformation(gdfx.mechanize(gdfx.adam(1.0)), gdfx.testing.example_params(jnp.float64), complex=True)


@pytest.mark.parametrize(
    ("ours", "theirs", "given"),
    [
        (gdfx.sgd(1.0, 0.9), optax.sgd(1.0, 0.9), {}),
        (gdfx.adam(1.0), optax.adam(1.0), {}),
        (gdfx.sgd(0.01), optax.sgd(0.01), {"weight_decay": 0.2, "s_init": 1e-4, "num_betas": 3}),
        (
            gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adamw(0.1, weight_decay=0.1)),
            optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1)),
            {"weight_decay": 0.0, "s_init": 1e-3, "num_betas": 1},
        ),
    ],
    ids=lambda opt: repr(opt) if isinstance(opt, gdfx.GradientTransformation) else "",
)
def test_that_of_optax(ours, theirs, given, x64):
    """From params of 0, and with a tiny eps, optax finds the sum of the steps exactly."""
    params = jax.tree.map(lambda p: jnp.zeros(p.shape), PARAMS)
    grads = gradients(100, mean=1.0)
    found, state = follow(gdfx.mechanize(ours, eps=1e-60, **given), params, grads)
    expected, there = follow_optax(optax.contrib.mechanize(theirs, eps=1e-60, **given), params, grads)
    assert jnp.min(there.r) > -1e-60  # where a learner is in debt they differ
    assert jnp.sum(state.s[-1]) > 100 * jnp.sum(state.s[0])
    trees_close((found, numbers(state)), (expected, numbers(there)), 1e-12)


def mechanic(x, grads, step, weight_decay, eps, s_init, n):
    """Algorithm 1 of the paper, with optax's bound on the slopes; params are vectors."""
    beta = 1 - 0.1 ** np.arange(1, n + 1)
    r, m, v, s, delta, x_ref = *np.zeros((4, n)), np.zeros_like(x), x
    for t, g in enumerate(grads):
        u = step(t, g)
        h = delta @ (g + weight_decay * s.sum() * np.linalg.norm(g) * x / (np.linalg.norm(x) + eps))
        delta = delta + u
        h_bounded = np.clip(h, -m, m)
        m = np.maximum(beta * m, np.abs(h) + eps)
        v = beta**2 * v + h**2
        r = np.maximum(0, beta * r - s * h_bounded)
        s = (s_init / n * m + r) / (np.sqrt(v) + eps)
        x = x_ref + s.sum() * delta
        yield x, s, r, m, v


@pytest.mark.parametrize("given", [(0.01, 1e-8, 1e-6, 6), (0.3, 1e-3, 1e-2, 2)])
@pytest.mark.parametrize("turn", [None, 50])
def test_that_of_the_paper(turn, given, x64):
    params = jnp.linspace(-1.0, 2.0, 7)
    grads = gradients(100, params, turn=turn)
    velocity = np.zeros(7)

    def step(t, g):
        velocity[:] = 0.9 * velocity + g
        return -(0.1 + 0.004 * t) * velocity

    rates = gdfx.schedules.linear(0.1, 0.5, 100)
    path, state = follow(gdfx.mechanize(gdfx.sgd(rates, 0.9), *given), params, grads)
    expected = map(np.stack, zip(*mechanic(np.asarray(params), np.asarray(grads), step, *given), strict=True))
    trees_close((path, *numbers(state)), tuple(expected), 1e-12)
    if turn:  # a learner has lost all that it had, and begins again
        assert jnp.any((state.r[1:] == 0) & (state.r[:-1] > 0))
        assert jnp.min(follow_optax(optax.contrib.mechanize(optax.sgd(0.1, 0.9)), params, grads)[1].r) < 0


@pytest.mark.parametrize(
    ("inner", "dtype"),
    [
        (gdfx.sgd(1.0), "float32"),
        (gdfx.sgd(0.001), "float32"),
        (gdfx.adam(1.0), "float32"),
        (gdfx.sgd(1.0, 0.9), "bfloat16"),
        (gdfx.adam(1.0), "bfloat16"),
        (gdfx.sgd(1.0), "float16"),
    ],
    ids=repr,
)
def test_minimizes_a_quadratic(inner, dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    path, state = follow(gdfx.mechanize(inner), params, quadratic)
    assert float(quadratic(last(path))) < 0.02 * float(quadratic(params))
    assert {x.dtype for x in jax.tree.leaves((state.delta, numbers(state)))} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(path)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(("dtype", "learning_rate"), [("bfloat16", 1.0), ("float32", 1e-4)])
def test_optax_stays_at_the_start(dtype, learning_rate):
    params = {"w": PARAMS["w"].astype(dtype), "b": PARAMS["b"].astype(dtype)}
    path, _ = follow_optax(optax.contrib.mechanize(optax.sgd(learning_rate)), params, quadratic)
    trees_close(last(path), params, 0)
    path, _ = follow(gdfx.mechanize(gdfx.sgd(learning_rate)), params, quadratic)
    assert float(quadratic(last(path))) < 0.1 * float(quadratic(params))


@pytest.mark.parametrize("inner", [gdfx.sgd(1.0), gdfx.adam(1.0)], ids=repr)
def test_logistic_regression(inner):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((200, 5)), jnp.float32)
    y = jnp.asarray(x @ np.asarray([1.0, -2.0, 0.5, 0.0, 3.0]) + rng.standard_normal(200) > 0)

    def loss(params):
        logits = jnp.where(y, 1.0, -1.0) * (x @ params["w"] + params["b"])
        return jnp.mean(jax.nn.softplus(-logits))

    params = {"w": jnp.zeros(5), "b": jnp.zeros(())}
    best = last(follow(gdfx.sgd(1.0, 0.9), params, loss)[0])
    path, state = follow(gdfx.mechanize(inner), params, loss)
    assert loss(last(path)) < loss(best) + 1e-3
    assert jnp.sum(state.s[-1]) > 1e4 * jnp.sum(state.s[0])


def test_complex_leaves_are_pairs_of_real_ones(x64):
    params = {"c": jnp.asarray([1.0 + 2.0j, -0.5j, 0.3]), "r": jnp.asarray([0.5, -1.0])}

    def loss(params):
        return jnp.sum(jnp.abs(params["c"] - 0.3j) ** 2) + jnp.sum(params["r"] ** 2)

    opt = gdfx.mechanize(gdfx.sgd(1.0, 0.9), s_init=0.01)
    found, state = follow(opt, params, loss)
    expected, pairs = follow(gdfx.split_real_and_imaginary(opt), params, loss)
    first = lambda tree: jax.tree.map(lambda x: x[:30], tree)
    trees_close(first((found, numbers(state))), first((expected, numbers(pairs.inner))), 1e-12)
    assert loss(last(found)) < 0.01 * loss(params)


def test_state_and_parts():
    opt = gdfx.mechanize(gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adam(1.0)), num_betas=3)
    state = opt.init(PARAMS)
    assert state.s.shape == (3,)
    trees_close(jnp.sum(state.s), 1e-6)
    _, state = opt.update(PARAMS, state, PARAMS)
    trees_close(jnp.sum(state.s), 1e-6)
    assert state.count == 1
    assert state.delta["none"] is None
    inner = gdfx.lookahead(gdfx.sgd(1.0), 2)
    opt = gdfx.mechanize(inner)
    _, state = opt.update(PARAMS, opt.init(PARAMS), PARAMS)
    trees_close(gdfx.eval_params(opt, state, PARAMS), inner.eval_params(state.inner, PARAMS), 0)


def test_eps_0_and_gradients_of_0():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    opt = gdfx.mechanize(gdfx.sgd(1.0), eps=0.0)
    state = opt.init(zeros)
    for grads in (zeros, PARAMS, PARAMS, zeros, PARAMS):
        updates, state = opt.update(grads, state, zeros)
        assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((updates, state)))
    assert jnp.sum(state.s) > 0


def test_errors():
    opt = gdfx.mechanize(gdfx.sgd(1.0))
    with pytest.raises(TypeError, match="needs params, which are missing"):
        opt.update(PARAMS, opt.init(PARAMS))
    with pytest.raises(ValueError, match=r"at \['b'\], grads have shape \(3,\), expected \(2,\)"):
        opt.update({**PARAMS, "b": jnp.ones(3)}, opt.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="mechanize: num_betas is 0, expected an int of at least 1"):
        gdfx.mechanize(gdfx.sgd(1.0), num_betas=0)
    with pytest.raises(TypeError, match=r"mechanize: num_betas is 6\.0, expected an int of at least 1"):
        gdfx.mechanize(gdfx.sgd(1.0), num_betas=6.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="mechanize: s_init is 0, expected more than 0"):
        gdfx.mechanize(gdfx.sgd(1.0), s_init=0)
    with pytest.raises(ValueError, match=r"takes gradients, but .* has turned them into steps"):
        gdfx.chain(gdfx.sgd(1.0), opt).init(PARAMS)
