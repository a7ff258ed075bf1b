"""Line searches and L-BFGS: against optax, at the edges of what is finite, and in the training step."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import shifted

import gdfx
from gdfx.solvers.backtracking import scale_by_backtracking_linesearch
from gdfx.solvers.lbfgs import lbfgs, scale_by_lbfgs
from gdfx.solvers.lbfgsb import lbfgsb
from gdfx.solvers.reuse import value_and_grad_from_state
from gdfx.solvers.zoom import scale_by_zoom_linesearch
from gdfx.testing import assert_single_trace, check_transformation, example_params, trees_close

pytestmark = pytest.mark.numbers

RNG = np.random.default_rng(0)
A, X = RNG.normal(size=(8, 8)), RNG.normal(size=(40, 6))
LABELS = np.where(RNG.random(40) > 0.5, 1.0, -1.0)
START = {name: RNG.normal(size=n) for name, n in (("rosenbrock", 6), ("quadratic", 8), ("logistic", 7))}


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def quadratic(x):
    return 0.5 * x @ jnp.asarray(A @ A.T + 0.1 * np.eye(8), x.dtype) @ x - jnp.sum(x)


def logistic(x):
    margin = jnp.asarray(LABELS, x.dtype) * (jnp.asarray(X, x.dtype) @ x[:6] + x[6])
    return jnp.mean(jnp.logaddexp(0.0, -margin)) + 0.01 * jnp.sum(x[:6] ** 2)


LOSSES = {"rosenbrock": rosenbrock, "quadratic": quadratic, "logistic": logistic}


def run(opt, params, steps, loss, told=lambda state: ()):
    """The params after each step, and what is told of the states, stacked; and the last state."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = opt.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
        return (params, state), (params, told(state))

    (_, state), path = jax.jit(lambda p: jax.lax.scan(step, (p, opt.init(p)), length=steps))(params)
    return path, state


def searched(state):
    state = state[-1]
    return state.learning_rate, state.value


ZOOM = {
    "one": {"max_linesearch_steps": 20, "initial_guess_strategy": "one"},
    "keep": {"max_linesearch_steps": 15},
    "limited": {"max_linesearch_steps": 10, "max_learning_rate": 0.3},
    "armijo": {"max_linesearch_steps": 15, "approx_dec_rtol": None, "curv_rtol": 0.5},
    "numbers": {"max_linesearch_steps": 15, "tol": 1e-3, "increase_factor": 3.0, "stepsize_precision": 1e-2},
}
BACKTRACKING = {
    "default": {"max_backtracking_steps": 20},
    "numbers": {"max_backtracking_steps": 20, "slope_rtol": 0.3, "decrease_factor": 0.5, "max_learning_rate": 2.0},
    "anew": {"max_backtracking_steps": 40, "increase_factor": float("inf"), "store_grad": True},
    "tolerant": {"max_backtracking_steps": 30, "atol": 1e-6, "rtol": 1e-3},
}


# Once a search on a parabola has three points, the cubic through them is one of rounding, which compilers do in
# different ways: the pairs below do not get there.
def check_against_optax(mine, theirs, name, steps=40):
    start = jnp.asarray(START[name])
    found, _ = run(mine, start, steps, LOSSES[name], searched)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = run(theirs, start, steps, LOSSES[name], searched)
    trees_close(found[0], expected[0], rtol=1e-8)  # 40 steps along a curved valley magnify rounding
    # Where it has converged the learning rate is that of noise.
    moving = np.abs(np.diff(expected[0], axis=0)).max(axis=1) > 1e-6
    trees_close(found[1][0][1:][moving], expected[1][0][1:][moving], rtol=1e-8)
    trees_close(found[1][1][1:][moving], expected[1][1][1:][moving], rtol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("keep", "quadratic"),
        ("one", "rosenbrock"),
        ("limited", "logistic"),
        ("armijo", "rosenbrock"),
        ("numbers", "quadratic"),
    ],
)
def test_zoom_is_optaxs(setting, name):
    mine = gdfx.chain(gdfx.sgd(1.0), scale_by_zoom_linesearch(**ZOOM[setting]))
    theirs = optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(**ZOOM[setting]))
    check_against_optax(mine, theirs, name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("setting", "name"),
    [("default", "quadratic"), ("numbers", "rosenbrock"), ("anew", "rosenbrock"), ("tolerant", "logistic")],
)
def test_backtracking_is_optaxs(setting, name):
    mine = gdfx.chain(gdfx.sgd(1.0), scale_by_backtracking_linesearch(**BACKTRACKING[setting]))
    theirs = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(**BACKTRACKING[setting]))
    check_against_optax(mine, theirs, name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("size", "scaled", "name"),
    [
        (1, True, "rosenbrock"),
        (5, False, "logistic"),
        (10, True, "rosenbrock"),
        (10, True, "quadratic"),
    ],
)
def test_lbfgs_is_optaxs(size, scaled, name):
    check_against_optax(lbfgs(None, size, scaled), optax.lbfgs(None, size, scaled), name)


@pytest.mark.usefixtures("x64")
def test_lbfgs_with_another_search_is_optaxs():
    mine = lbfgs(0.5, linesearch=scale_by_backtracking_linesearch(20))
    theirs = optax.lbfgs(0.5, linesearch=optax.scale_by_backtracking_linesearch(20))
    check_against_optax(mine, theirs, "rosenbrock")
    # An optax search in gdfx's L-BFGS.
    with jax.numpy_dtype_promotion("standard"):
        path, _ = run(lbfgs(0.5, linesearch=_of_optax()), jnp.asarray(START["rosenbrock"]), 30, rosenbrock)
        expected, _ = run(theirs, jnp.asarray(START["rosenbrock"]), 30, rosenbrock)
    trees_close(path[0], expected[0], rtol=1e-10)


def _of_optax():
    search = optax.scale_by_backtracking_linesearch(20)

    def update(updates, state, params, *, value, grad, value_fn):
        return search.update(updates, state, params, value=value, grad=grad, value_fn=value_fn)

    return search.init, update


@pytest.mark.usefixtures("x64")
def test_lbfgs_with_fixed_steps_and_its_memory_are_optaxs():
    start = jnp.asarray(START["quadratic"])
    (path, _), state = run(lbfgs(0.1, 3, linesearch=None), start, 30, quadratic)
    with jax.numpy_dtype_promotion("standard"):
        (expected, _), theirs = run(optax.lbfgs(0.1, 3, linesearch=None), start, 30, quadratic)
    trees_close(path, expected, rtol=1e-11)
    for name in ("params", "updates", "diff_params_memory", "diff_updates_memory", "weights_memory"):
        trees_close(getattr(state[0], name), getattr(theirs[0], name), rtol=1e-8)


MADE = {
    "zoom": lambda: gdfx.chain(gdfx.sgd(0.1), scale_by_zoom_linesearch(15)),
    "backtracking": lambda: gdfx.chain(gdfx.sgd(1.9), scale_by_backtracking_linesearch(15, store_grad=True)),
    "lbfgs": lambda: lbfgs(memory_size=3),
    "lbfgs-0": lambda: lbfgs(memory_size=0),
}
# The rest is in test_contract.py.
CHECKS = [
    "init_avals",
    "update_avals",
    "state_avals",
    "no_aliases",
    "float32_moments",
    "needs",
    "extra_ignored",
    "repr",
]


@pytest.mark.parametrize("make", [MADE["backtracking"], MADE["lbfgs"]])
def test_contract(make):
    check_transformation(make(), extra=shifted, check=[*CHECKS, "named_errors", "copies"])


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
def test_contract_of_dtypes(dtype):
    check_transformation(
        lbfgs(memory_size=2), example_params(dtype), extra=shifted, check=["state_avals", "update_avals"]
    )


def test_no_aliases_after_an_update():
    opt, start = lbfgs(), {"x": jnp.asarray([1.0, 2.0])}
    loss = lambda p: jnp.sum(p["x"] ** 2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = opt.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return gdfx.apply_updates(params, updates), state

    params, state = start, opt.init(start)
    for _ in range(3):
        params, state = step(params, state)
    assert loss(params) < 1e-10


OPTIMIZERS = [MADE["zoom"], MADE["lbfgs"], lambda: lbfgs(linesearch=scale_by_backtracking_linesearch(15))]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_complex_is_as_real(make):
    m = jnp.asarray(np.array([[1, -2], [3, 4], [-4 + 2j, 5 - 3j], [-2 - 2j, 6]], np.complex64))
    of_complex = lambda z: jnp.sum(gdfx.tree.abs2(m @ z - 1)) + jnp.sum(gdfx.tree.abs2(z) ** 2)
    of_real = lambda x: of_complex(jax.lax.complex(x[0], x[1]))
    z = jnp.asarray(np.array([1 - 1j, 1j], np.complex64))
    (path, _), _ = run(make(), z, 12, of_complex)
    (expected, _), _ = run(make(), jnp.stack([z.real, z.imag]), 12, of_real)
    trees_close(jnp.stack([path.real, path.imag], 1), expected, rtol=1e-3)
    assert of_complex(path[-1]) < 0.5 * of_complex(z)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_at_the_minimum_nothing_moves(make):
    loss = lambda p: jnp.sum(p["x"] ** 2) + jnp.float32(3.0)
    start = {"x": jnp.zeros(3), "none": None}
    (path, _), state = run(make(), start, 5, loss)
    assert not path["x"].any()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_it_stays_where_it_has_arrived(make):
    loss = lambda x: jnp.sum((x - 1.5) ** 2)
    (path, _), state = run(make(), jnp.asarray([4.0, -3.0]), 60, loss)
    np.testing.assert_allclose(path[-1], 1.5, atol=1e-3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_search_shrinks_out_of_nan(make):
    # Steps of the learning rate 1 lead far beyond 0, where there is no logarithm.
    loss = lambda x: jnp.sum(20.0 * x - jnp.log(x))
    (path, _), state = run(make(), jnp.asarray([1.0, 2.0, 0.5]), 60, loss)
    assert np.isfinite(path).all()
    assert np.isfinite(state[-1].value)
    np.testing.assert_allclose(path[-1], 0.05, atol=5e-3)


@pytest.mark.parametrize("make", [MADE["zoom"], MADE["backtracking"], MADE["lbfgs-0"]])
def test_search_that_fails_at_first_goes_on_from_the_last_learning_rate(make):
    # Finite within 1e-6 of the start: in optax the learning rate is 0 from the first failure on.
    loss = lambda x: jnp.sum(jnp.where(jnp.abs(x) < 1e-6, 1e6 * (x - 5e-7), jnp.nan) ** 2)
    (path, _), _ = run(make(), jnp.zeros(2), 40, loss)
    assert np.isfinite(path).all()
    assert loss(path[-1]) < 0.5 * loss(jnp.zeros(2))


@pytest.mark.parametrize("make", [MADE["zoom"], MADE["backtracking"], lambda: lbfgsb(max_linesearch_steps=3)])
def test_search_that_finds_no_decrease_makes_no_step(make):
    # A valley so narrow that the tries of one search do not end in it.
    loss = lambda x: 1e9 * jnp.sum((x - 1e-3) ** 2)
    (path, seen), _ = run(make(), jnp.zeros(2), 40, loss, lambda state: state[-1].value)
    values = np.append(loss(jnp.zeros(2)), seen)
    assert (np.diff(values) <= 0).all()
    assert not path[0].any()
    np.testing.assert_allclose(path[-1], 1e-3, rtol=1e-3)
    np.testing.assert_allclose(values[-1], loss(path[-1]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_params_stay_finite_where_the_loss_is_nan_all_over(make):
    (path, _), state = run(make(), jnp.ones(2), 5, lambda x: jnp.sum(jnp.sqrt(-jnp.abs(x))))
    np.testing.assert_array_equal(path, 1.0)
    assert np.isfinite(state[-1].learning_rate)


def test_point_with_a_gradient_that_is_not_finite_is_not_taken():
    # Without the approximate condition optax steps onto 0, where the slope of the root is infinite.
    loss = lambda x: jnp.sum(jnp.sqrt(jnp.abs(x)))
    opt = gdfx.chain(gdfx.sgd(2.0), scale_by_zoom_linesearch(15, approx_dec_rtol=None))
    (path, _), _ = run(opt, jnp.ones(1), 10, loss)
    assert np.isfinite(path).all()


def test_infinite_curvature_tolerance_asks_for_decrease_alone():
    opt = gdfx.chain(gdfx.sgd(1.0), scale_by_zoom_linesearch(15, curv_rtol=float("inf")))
    _, state = run(opt, jnp.zeros(2), 3, lambda x: jnp.sum(x**2))
    assert state[-1].info.num_linesearch_steps == 1
    assert state[-1].info.curvature_error == 0


def test_pairs_without_positive_curvature_are_left_out():
    opt = scale_by_lbfgs(3)
    params, state = jnp.asarray([1.0, 2.0]), None
    state = opt.init(params)
    gradients = [[1.0, 0.0], [2.0, 1.0], [1.0, 1.0], [np.nan, 1.0], [np.inf, 1.0], [1.0, 2.0]]
    moves = [[1.0, 1.0]] * 6
    weights = []
    for g, move in zip(gradients, moves, strict=True):
        updates, state = opt.update(jnp.asarray(g, jnp.float32), state, params)
        weights.append(np.asarray(state.weights_memory))
        params = params + jnp.asarray(move)
        memory = state.weights_memory, state.diff_params_memory, state.diff_updates_memory
        assert all(np.isfinite(x).all() for x in memory)
        if np.isfinite(g).all():
            assert np.isfinite(updates).all()
            assert jnp.vdot(updates, jnp.asarray(g)) > 0  # its negative descends
    np.testing.assert_allclose(weights[1], [0.5, 0, 0])
    np.testing.assert_allclose(weights[2], [0.5, 0, 0])  # y = [-1, 0]
    np.testing.assert_allclose(weights[5], [0, 0, 0])


def test_without_memory_it_is_gradient_descent_with_the_newest_curvature():
    opt = scale_by_lbfgs(0)
    g0, g1 = jnp.asarray([3.0, 4.0]), jnp.asarray([2.0, 2.0])
    p0, p1 = jnp.asarray([1.0, 1.0]), jnp.asarray([0.5, -0.5])
    first, state = opt.update(g0, opt.init(p0), p0)
    np.testing.assert_allclose(first, g0 / 5)
    second, _ = opt.update(g1, state, p1)
    np.testing.assert_allclose(second, g1 * (3.5 / 5.0), rtol=1e-6)  # s = [-0.5, -1.5], y = [-1, -2]
    plain = scale_by_lbfgs(0, False)
    np.testing.assert_array_equal(plain.update(g0, plain.init(p0), p0)[0], g0)


@pytest.mark.parametrize("make", [MADE["backtracking"], MADE["lbfgs"]])
def test_problems_under_vmap_are_independent(make):
    scales = jnp.asarray([1.0, 30.0, 0.01])
    starts = jnp.stack([jnp.asarray(START["rosenbrock"], jnp.float32) * x for x in (0.5, 1.0, jnp.nan)])
    solve = lambda start, scale: run(make(), start, 15, lambda x: scale * rosenbrock(x))[0][0]
    together = jax.vmap(solve)(starts, scales)
    for i in (0, 1):
        alone = solve(starts[i], scales[i])
        trees_close(together[i], alone, rtol=1e-3)


def test_value_fn_gets_the_arguments_that_it_takes_by_name():
    x, y = jnp.asarray([3.0, 2.0, 1.0]), jnp.asarray(1.0)
    fits = {
        "names": lambda p, x, y: jnp.square(p @ x - y),
        "keywords": lambda p, *, x, y: jnp.square(p @ x - y),
        "all": lambda p, **kw: jnp.square(p @ kw["x"] - kw["y"]),
        "partial": functools.partial(lambda p, x, y: jnp.square(p @ x - y), y=y),
        "jit": jax.jit(lambda p, x, y: jnp.square(p @ x - y)),
        "of the params' name": lambda params, x, y: jnp.square(params @ x - y),
    }
    opt, params = lbfgs(), jnp.ones(3)
    seen = []
    for fn in fits.values():
        value, grad = jax.value_and_grad(fn)(params, x=x, y=y)
        extra = {"value": value, "grad": grad, "value_fn": fn, "x": x, "y": y, "unknown": 1}
        seen.append(opt.update(grad, opt.init(params), params, **extra)[0])
    for updates in seen[1:]:
        np.testing.assert_allclose(updates, seen[0], rtol=1e-6)
    # A name that is also that of the first argument is not given twice.
    loss = lambda x: jnp.sum(x**2)
    opt.update(params, opt.init(params), params, value=loss(params), grad=2 * params, value_fn=loss, x=x)


def test_arguments_are_checked():
    opt, params = scale_by_zoom_linesearch(10), jnp.ones(2)
    state, loss = opt.init(params), lambda p: jnp.sum(p**2)
    good = {"value": jnp.float32(2.0), "grad": params, "value_fn": loss}
    with pytest.raises(TypeError, match="needs grad, value_fn, which are missing"):
        opt.update(params, state, params, value=1.0)
    with pytest.raises(ValueError, match=r"value has shape \(2,\).*expected the loss"):
        opt.update(params, state, params, **{**good, "value": params})
    with pytest.raises(ValueError, match=r"value_fn returned a value that has shape \(2,\)"):
        opt.update(params, state, params, **{**good, "value_fn": lambda p: p})
    with pytest.raises(TypeError, match="value_fn is a float, expected a function"):
        opt.update(params, state, params, **{**good, "value_fn": 1.0})
    with pytest.raises(ValueError, match="grad have shape"):
        opt.update(params, state, params, **{**good, "grad": jnp.ones(3)})
    with pytest.raises(ValueError, match="initial_guess_strategy is 'two', expected one of"):
        scale_by_zoom_linesearch(10, initial_guess_strategy="two")
    for size in (-1, 2.0, True):
        with pytest.raises(ValueError, match=r"memory_size is .*expected an int of at least 0"):
            lbfgs(memory_size=size)
    for wrong in ({"decrease_factor": 1.0}, {"slope_rtol": -1.0}, {"max_learning_rate": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            scale_by_backtracking_linesearch(10, **wrong)


def test_order_in_a_chain_is_checked():
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="takes gradients"):
        gdfx.chain(gdfx.sgd(1.0), scale_by_lbfgs()).init(params)
    with pytest.raises(ValueError, match="takes steps"):
        gdfx.chain(scale_by_zoom_linesearch(10), gdfx.sgd(1.0)).init(params)
    gdfx.chain(gdfx.clip_by_global_norm(1.0), lbfgs()).init(params)
    gdfx.chain(gdfx.scale(-1.0), scale_by_zoom_linesearch(10)).init(params)


def counting(loss):
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return loss(x)

    return counted, calls


SAVING = {
    "zoom": lambda: gdfx.chain(gdfx.sgd(1.0), scale_by_zoom_linesearch(15)),
    "backtracking": MADE["backtracking"],
    "lbfgs": lbfgs,
}


@pytest.mark.parametrize(
    ("make", "dtype"), [(SAVING["backtracking"], "float32"), (SAVING["zoom"], "float32"), (lbfgs, "bfloat16")]
)
def test_value_and_grad_from_state(make, dtype):
    loss, calls = counting(lambda x: jnp.sum(jnp.square(x - 1.0) + 0.1 * x**4))
    opt, params = make(), jnp.asarray([3.0, -2.0], dtype)
    state = opt.init(params)
    value_and_grad = jax.jit(lambda params, state: value_and_grad_from_state(loss)(params, state=state))
    for i in range(4):
        calls.clear()
        value, grad = value_and_grad(params, state)
        jax.effects_barrier()
        assert len(calls) == (i == 0)
        expected = jax.value_and_grad(loss)(params)
        assert (value.dtype, grad.dtype) == (expected[0].dtype, expected[1].dtype)
        trees_close((value, grad), expected, rtol=1e-5 if dtype == "float32" else 0.1, atol=1e-6)
        updates, state = opt.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        params = gdfx.apply_updates(params, updates)


def test_value_and_grad_from_state_passes_arguments_and_names_what_is_missing():
    params, value_and_grad = jnp.ones(2), value_and_grad_from_state(lambda p, a, *, b: a * jnp.sum(p) + b)
    value, grad = value_and_grad(params, 3.0, b=1.0, state=lbfgs().init(params))
    assert value == 7
    np.testing.assert_array_equal(grad, 3.0)
    search = scale_by_backtracking_linesearch(10)
    with pytest.raises(ValueError, match=r"0 parts of the state .*store_grad=True"):
        value_and_grad(params, 3.0, b=1.0, state=search.init(params))
    with pytest.raises(ValueError, match="2 parts of the state"):
        value_and_grad(params, 3.0, b=1.0, state=[lbfgs().init(params)] * 2)


@pytest.mark.parametrize("make", [MADE["backtracking"], lbfgs])
def test_training_step_compiles_once(make):
    loss_fn = lambda params, batch: jnp.mean(jnp.square(batch @ params["w"] - 1.0))
    params = {"w": jnp.zeros(6)}
    batch = jnp.asarray(X, jnp.float32)
    step, state = gdfx.make_step(loss_fn), gdfx.TrainState.create(make(), params)
    losses = []
    for _ in range(8):
        state, metrics = step(make(), state, batch)
        losses.append(float(metrics["loss"]))
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(losses))
    assert metrics["linesearch_steps"] >= 1
    with assert_single_trace(lambda opt, g, s: opt.update(g, s, params, value=1.0, grad=g, value_fn=_norm2)) as update:
        for search in (scale_by_zoom_linesearch(15), scale_by_zoom_linesearch(20.0, curv_rtol=0.5)):
            opt = gdfx.as_arrays(lbfgs(linesearch=search))
            opt.update(params, opt.init(params), params, value=1.0, grad=params, value_fn=_norm2)
            update(opt, params, opt.init(params))


def _norm2(params):
    return jnp.sum(params["w"] ** 2)


def test_fit_on_all_data():
    loss_fn = lambda params, batch: jnp.mean(jnp.square(batch["x"] @ params["w"] - batch["y"]))
    w = jnp.arange(6.0)
    x = jnp.asarray(X, jnp.float32)
    result = gdfx.fit(loss_fn, {"w": jnp.zeros(6)}, lbfgs(), {"x": x, "y": x @ w}, epochs=15)
    np.testing.assert_allclose(result.params["w"], w, atol=1e-3)


def test_schedules_and_masks():
    opt = lbfgs(gdfx.schedules.linear(1.0, 0.5, 10), linesearch=scale_by_zoom_linesearch(lambda count: 10 + count))
    (path, _), _ = run(opt, jnp.asarray(START["rosenbrock"], jnp.float32), 10, rosenbrock)
    assert rosenbrock(path[-1]) < 0.1 * rosenbrock(path[0])


def test_verbose_prints_failures_only(capfd):
    loss = lambda x: jnp.sum(x**2)
    for search in (scale_by_zoom_linesearch(3, verbose=True), scale_by_backtracking_linesearch(3, verbose=True)):
        for uphill in (False, True):
            params = jnp.ones(2)
            steps = 0.1 * params if uphill else -params
            extra = {"value": loss(params), "grad": 2 * params, "value_fn": loss}
            search.update(steps, search.init(params), params, **extra)
            jax.effects_barrier()
            printed = capfd.readouterr().out
            assert ("found no learning rate" in printed) == uphill
