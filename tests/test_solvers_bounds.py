"""Params in a box: `keep_params_in_box`, and L-BFGS-B against SciPy."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from cases import shifted
from hypothesis import given

import gdfx
from gdfx.solvers.lbfgsb import lbfgsb
from gdfx.testing import check_transformation, example_params, trees_close
from gdfx.transforms.project import keep_params_in_box

pytestmark = pytest.mark.numbers

INF = np.inf
RNG = np.random.default_rng(0)
DESIGN, NOISE = RNG.normal(size=(40, 10)), RNG.normal(size=40)
LABELS = np.sign(DESIGN @ RNG.normal(size=10) + NOISE)


def rosenbrock(x, _=None):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def quadratic(x, problem):
    a, b = problem
    return 0.5 * x @ (a @ x) - b @ x


def least_squares(x, _=None):
    return 0.5 * jnp.sum((jnp.asarray(DESIGN) @ x - jnp.asarray(NOISE)) ** 2)


def logistic(x, _=None):
    return jnp.sum(jnp.logaddexp(0.0, -jnp.asarray(LABELS) * (jnp.asarray(DESIGN) @ x))) + 0.1 * jnp.sum(x**2)


def run(loss, start, bounds, tol=1e-6, steps=2000, **options):
    """The params where the projected gradient is at most `tol`, with the state, and what was evaluated in all."""
    opt = lbfgsb(bounds, **options)

    def forward(carry):
        params, state, value, grad, tried = carry
        updates, state = opt.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        kept = state[0]
        grad = gdfx.tree.cast_like(kept.grad, grad)
        return (
            gdfx.apply_updates(params, updates),
            state,
            kept.value.astype(value.dtype),
            grad,
            tried + kept.evaluations,
        )

    def goes_on(carry):
        return (carry[1].count < steps) & (carry[1][0].projected_grad_norm > tol)

    start = start, opt.init(start), *jax.value_and_grad(loss)(start), jnp.int32(1)
    params, state, _, _, tried = jax.lax.while_loop(goes_on, forward, start)
    return params, state[0], tried


@functools.partial(jax.jit, static_argnums=0)
def solve(loss, start, lower, upper, problem=None):
    return run(lambda x: loss(x, problem), start, (lower, upper))


@functools.lru_cache
def value_and_grad(loss):
    return jax.jit(jax.value_and_grad(loss))


def scipys(loss, start, lower, upper, problem=None, tol=1e-6):
    """The minimum that SciPy finds, to the same tolerance, and how often it evaluates for that."""
    tried = [0]

    def fun(x):
        tried[0] += 1
        return jax.tree.map(lambda y: np.asarray(y, float), value_and_grad(loss)(x, problem))

    def callback(x):
        grad = np.asarray(value_and_grad(loss)(x, problem)[1])
        if np.linalg.norm(np.clip(x - grad, lower, upper) - x) <= tol:
            raise StopIteration

    options = {"ftol": 0, "gtol": 0, "maxiter": 5000, "maxfun": 10000}
    bounds = list(zip(lower, upper, strict=True))
    found = scipy.optimize.minimize(
        fun, start, jac=True, method="L-BFGS-B", bounds=bounds, callback=callback, options=options
    )
    return found.x, tried[0]


def check_against_scipy(loss, start, lower, upper, factor=1.3, atol=1e-6):
    lower, upper = (np.broadcast_to(np.asarray(x, float), start.shape) for x in (lower, upper))
    params, state, tried = solve(loss, jnp.asarray(start), jnp.asarray(lower), jnp.asarray(upper))
    expected, theirs = scipys(loss, start, lower, upper)
    assert state.projected_grad_norm <= 1e-6
    assert ((lower <= params) & (params <= upper)).all()
    np.testing.assert_allclose(params, expected, atol=atol)
    np.testing.assert_array_equal(params == lower, expected == lower)
    np.testing.assert_array_equal(params == upper, expected == upper)
    value, grad = value_and_grad(loss)(params, None)
    np.testing.assert_allclose(state.value, value, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(state.grad, grad, rtol=1e-9, atol=1e-9)
    assert int(tried) <= factor * theirs
    return int(tried), theirs


# Of two variables within [-2, 0.5] SciPy's first step happens to end at the minimum.
BOXES = [(-INF, INF), (-INF, 0.8), (1.1, INF), (-10.0, 10.0)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("n", "boxes"), [(2, BOXES), (10, [*BOXES, (-2.0, 0.5)]), (100, [*BOXES[1:3], (-2.0, 0.5)])])
def test_rosenbrock(n, boxes):
    for lower, upper in boxes:
        start = np.clip(np.tile([-1.2, 1.0], n // 2), lower, upper)
        check_against_scipy(rosenbrock, start, lower, upper)


@pytest.mark.usefixtures("x64")
def test_without_bounds_the_evaluations_are_scipys():
    # SciPy takes 624.
    tried, _ = check_against_scipy(rosenbrock, np.tile([-1.2, 1.0], 50), -INF, INF, factor=1.1)
    assert tried < 690


@pytest.mark.usefixtures("x64")
def test_least_squares_of_what_is_not_negative():
    check_against_scipy(least_squares, np.ones(10), 0.0, INF)
    params, *_ = solve(least_squares, jnp.ones(10), jnp.zeros(10), jnp.full(10, INF))
    expected, _ = scipy.optimize.nnls(DESIGN, NOISE)
    np.testing.assert_allclose(params, expected, atol=1e-7)
    assert 0 < (expected == 0).sum() < 10


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("box", [(-0.5, 0.5), (-INF, 0.3), (-INF, INF)])
def test_logistic_regression(box):
    check_against_scipy(logistic, np.zeros(10), *box)


N = 20


def random_quadratic(seed, n):
    """A convex one in a box of which some ends are infinite, and what is beyond `n` fixed at 0."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(N, N)) * np.exp(rng.normal(size=(N, 1)) * rng.uniform(0, 1))
    a, b = root @ root.T + 0.1 * np.eye(N), 3 * rng.normal(size=N)
    lower = rng.normal(size=N) - 1
    upper = lower + rng.exponential(size=N) * rng.choice([0.0, 1.0, INF], size=N, p=[0.1, 0.6, 0.3])
    upper = np.where(np.isnan(upper), INF, upper)
    lower = np.where((rng.random(N) < 0.3) & (lower < upper), -INF, lower)
    lower, upper = (np.where(np.arange(N) < n, x, 0) for x in (lower, upper))
    return np.clip(rng.normal(size=N), lower, upper), lower, upper, (a, b)


@pytest.mark.usefixtures("x64")
@given(st.integers(0, 10**6), st.integers(1, N))
def test_random_quadratics(seed, n):
    start, lower, upper, problem = jax.tree.map(jnp.asarray, random_quadratic(seed, n))
    params, state, tried = solve(quadratic, start, lower, upper, problem)
    expected, theirs = scipys(quadratic, np.asarray(start), np.asarray(lower), np.asarray(upper), problem)
    assert state.projected_grad_norm <= 1e-6
    assert ((lower <= params) & (params <= upper)).all()
    np.testing.assert_allclose(params, expected, atol=1e-4)
    grad = problem[0] @ params - problem[1]
    clear = jnp.abs(grad) > 1e-4  # multipliers that tell on which side a variable is
    np.testing.assert_array_equal((params == lower)[clear], (expected == lower)[clear])
    np.testing.assert_array_equal((params == upper)[clear], (expected == upper)[clear])
    assert int(tried) <= 1.3 * theirs + 6


@pytest.mark.usefixtures("x64")
def test_evaluations_in_all_and_a_batch_of_problems_and_bounds():
    problems = [random_quadratic(seed, N) for seed in range(10)]
    start, lower, upper, problem = jax.tree.map(lambda *x: jnp.stack(x), *problems)
    params, state, tried = jax.vmap(functools.partial(solve, quadratic))(start, lower, upper, problem)
    assert int(tried.sum()) <= 1.15 * sum(scipys(quadratic, *each)[1] for each in problems)
    for i in range(2):
        alone = solve(quadratic, *jax.tree.map(lambda x, i=i: x[i], (start, lower, upper, problem)))
        trees_close(params[i], alone[0], rtol=1e-6)
        assert abs(tried[i] - alone[2]) <= 3  # rounding at the end
    assert (state.projected_grad_norm <= 1e-6).all()


@pytest.mark.usefixtures("x64")
def test_an_update_finds_the_minimum_of_a_separable_quadratic_at_once():
    # With the memory of one step the model is exact along that; from a vertex the way has many stops.
    centers = jnp.linspace(-3.0, 3.0, 11)
    loss = lambda x: 0.5 * jnp.sum((x - centers) ** 2)
    params, _, tried = jax.jit(lambda: run(loss, jnp.full(11, -1.0), (-1.0, 1.0)))()
    np.testing.assert_allclose(params, jnp.clip(centers, -1, 1), atol=1e-12)
    assert tried <= 6


def test_pytrees_of_several_dtypes():
    params = {"b": jnp.zeros((), jnp.bfloat16), "none": None, "w": jnp.full((2, 3), 0.5)}
    lower = {"b": -1.0, "none": None, "w": jnp.zeros((2, 3))}
    upper = {"b": INF, "none": None, "w": jnp.full((2, 3), jnp.array([[1.0], [2.0]]))}
    loss = lambda p: jnp.sum((p["w"] - 1.5) ** 2) + (p["b"].astype(jnp.float32) + 3) ** 2
    params, state, _ = jax.jit(lambda p: run(loss, p, (lower, upper), 1e-3, 30))(params)
    trees_close(params, {"b": jnp.bfloat16(-1), "none": None, "w": jnp.array([[1.0] * 3, [1.5] * 3])}, rtol=1e-3)
    assert state.grad["b"].dtype == state.params.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(dtype):
    loss = lambda x: jnp.sum((x.astype(jnp.float32) - jnp.array([-1.0, 0.3, 2.0])) ** 2)
    params, state, _ = jax.jit(lambda x: run(loss, x, (0.1, 1.0), 1e-3, 40))(jnp.full(3, 0.5, dtype))
    np.testing.assert_allclose(params.astype(jnp.float32), [0.1, 0.3, 1.0], rtol=4 * float(jnp.finfo(dtype).eps))
    assert (params.astype(jnp.float32) >= jnp.float32(0.1)).all()
    assert state.params.dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_float32_in_64_bits():
    loss = lambda x: jnp.sum((x - jnp.array([-1.0, 0.3, 2.0], jnp.float32)) ** 2)
    params, state, _ = jax.jit(lambda x: run(loss, x, (0.1, 1.0), 1e-4, 40))(jnp.full(3, 0.5, jnp.float32))
    assert params.dtype == state.value.dtype == jnp.float32
    assert (params >= 0.1).all()
    np.testing.assert_allclose(params, [0.1, 0.3, 1.0], rtol=1e-6)


def test_a_start_outside_is_brought_in_by_the_first_update():
    # Outside, the loss is not defined.
    loss = lambda x: jnp.sum(x - jnp.log(x)) + jnp.where((x < 0.5).any(), jnp.nan, 0.0)
    opt, start = lbfgsb((0.5, jnp.array([3.0, 3.0, 0.75]))), jnp.array([-4.0, 2.0, 9.0])
    grad = jnp.full(3, jnp.nan)
    update = jax.jit(lambda x: opt.update(grad, opt.init(x), x, value=jnp.nan, grad=grad, value_fn=loss))
    updates, state = update(start)
    params = start + updates
    assert ((params >= 0.5) & (params <= jnp.array([3.0, 3.0, 0.75]))).all()
    assert state[0].evaluations == state[0].search.info.num_linesearch_steps + 1
    np.testing.assert_allclose(state[0].value, loss(params), rtol=1e-6)
    assert state[0].value <= loss(jnp.array([0.5, 2.0, 0.75]))


ODD = {
    "flat": (lambda x: 0.0 * jnp.sum(x), 1.0),
    "minimum": (lambda x: jnp.sum((x - 1) ** 2), 1.0),
    "undefined": (lambda x: jnp.sum(x) * jnp.nan, 1.0),
    "undefined beyond": (lambda x: jnp.sum(x - jnp.log(x - 0.5)), 1.0),
    "undefined at the bound": (lambda x: jnp.sum(jnp.sqrt(x + 2) + jnp.where(x <= -2, jnp.nan, 0)), 1.0),
    "unbounded": (lambda x: -jnp.sum(x**2), 1.0),
    "linear": (jnp.sum, 1.0),
    "concave": (lambda x: -jnp.sum(jnp.sqrt(jnp.abs(x) + 1e-3)), 0.1),
    "large": (lambda x: 1e12 * jnp.sum((x - 1.2) ** 2), 1.0),
    "small": (lambda x: 1e-12 * jnp.sum((x - 1.2) ** 2), 1.0),
    "quartic": (lambda x: jnp.sum(x**4), 1.0),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_losses(name):
    loss, at = ODD[name]
    bounds = (jnp.array([-2.0, -INF, -2.0]), jnp.array([3.0, INF, 3.0]))
    params, _, tried = jax.jit(lambda x: run(loss, x, bounds, 0.0, 12))(jnp.full(3, at))
    assert jnp.isfinite(params).all()
    assert ((params >= bounds[0]) & (params <= bounds[1])).all()
    assert tried <= 1 + 12 * 20
    if name in ("flat", "minimum", "undefined"):
        np.testing.assert_array_equal(params, jnp.full(3, at))
    if name in ("unbounded", "concave", "linear"):
        np.testing.assert_array_equal(params[jnp.array([0, 2])], -2.0 if name == "linear" else 3.0)
    if name == "undefined beyond":
        np.testing.assert_allclose(params, 1.5, atol=1e-3)
    if name == "large":
        np.testing.assert_allclose(params, 1.2, rtol=1e-6)


def test_a_search_without_a_step_forgets_the_memory():
    opt, params = lbfgsb((-1.0, INF)), jnp.array([1.0, 2.0])
    good, bad = lambda x: jnp.sum(x**4), lambda x: jnp.sum(x) * jnp.nan
    step = jax.jit(
        lambda x, s, fn: opt.update(jax.grad(good)(x), s, x, value=good(x), grad=jax.grad(good)(x), value_fn=fn),
        static_argnums=2,
    )
    state = opt.init(params)
    for _ in range(3):
        updates, state = step(params, state, good)
        params = params + updates
    assert (state[0].diff_params_memory != 0).any(axis=1).sum() == 2
    updates, state = step(params, state, bad)
    for forgotten in (updates, state[0].diff_params_memory, state[0].diff_updates_memory):
        assert not forgotten.any()
    updates, state = step(params, state, good)
    assert updates.any()
    np.testing.assert_allclose(
        updates[0] / updates[1], jax.grad(good)(params)[0] / jax.grad(good)(params)[1], rtol=1e-4
    )


# The rest is in test_contract.py.
CHECKS = ["init_avals", "update_avals", "state_avals", "no_aliases", "eager_is_jit", "float32_moments", "named_errors"]
BOUNDED = lambda: lbfgsb((-0.7, 1.2), memory_size=2, max_linesearch_steps=8)


def test_contract():
    check_transformation(BOUNDED(), extra=shifted, check=CHECKS)
    check_transformation(lbfgsb(memory_size=2), extra=shifted, check=["repr", "copies", "needs", "extra_ignored"])


def test_contract_of_the_link():
    check_transformation(keep_params_in_box(-0.7, 1.2))
    check_transformation(gdfx.chain(gdfx.sgd(0.1), keep_params_in_box()), check=["repr", "copies", "named_errors"])


FLOATS = {"float16": (11, 4.0), "bfloat16": (8, 3.0), "float32": (24, 20.0), "float64": (53, 20.0)}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_sum_is_in_the_box_in_all_bits(dtype):
    n, (digits, spread) = 4000, FLOATS[dtype]
    numbers = lambda *shape: RNG.normal(size=shape) * 2 ** RNG.uniform(-spread, spread, size=shape)
    lower, width = numbers(n), np.abs(numbers(n))
    width = np.maximum(width, 2.0 ** (2 - digits) * np.abs(lower))  # with a number of that dtype in between
    upper = np.where(RNG.random(n) < 0.2, INF, lower + width)
    lower = np.where(RNG.random(n) < 0.2, -INF, lower)
    opt = gdfx.chain(gdfx.sgd(0.37), keep_params_in_box(jnp.asarray(lower), jnp.asarray(upper)))

    @jax.jit
    def step(params, grads):
        return gdfx.apply_updates(params, opt.update(grads, opt.init(params), params)[0])

    params = jnp.asarray(numbers(n)).astype(dtype)
    for k in range(6):
        grads = jnp.asarray(numbers(n) * 10.0 ** (k - 3)).astype(dtype)
        params = step(params, grads)
        if k > 1:  # the first updates may be too coarse
            exact = np.asarray(params, float)
            assert ((lower <= exact) & (exact <= upper)).all()


def test_steps_inside_are_left_as_they_are():
    params, steps = jnp.array([0.0, 0.5, 0.5, jnp.nan]), jnp.array([0.1, 0.25, -3.0, 1.0])
    transform = keep_params_in_box(jnp.array([-1.0, -INF, -1.0, 0.0]), 0.6)
    updates, _ = transform.update(steps, transform.init(params), params)
    np.testing.assert_array_equal(updates[0], steps[0])
    np.testing.assert_array_equal(params + updates, jnp.array([0.1, 0.6, -1.0, jnp.nan]))


def test_any_optimizer_in_a_box():
    opt = gdfx.chain(gdfx.adam(0.1), keep_params_in_box({"x": 0.0}, {"x": jnp.array([1.0, 5.0])}))
    loss = lambda p, _: jnp.sum((p["x"] - jnp.array([2.0, -1.0])) ** 2)
    params, state = {"x": jnp.array([0.5, 0.5])}, None
    state = opt.init(params)
    for _ in range(30):
        updates, state = opt.update(jax.grad(loss)(params, None), state, params)
        params = gdfx.apply_updates(params, updates)
    np.testing.assert_array_equal(params["x"], [1.0, 0.0])


PARAMS = {"a": jnp.zeros(2), "b": jnp.zeros(())}


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((1.0, 0.0), ValueError, r"at \['a'\], lower is 1.0 and upper 0.0, expected lower <= upper"),
        (({"a": 0.0, "b": jnp.nan}, 1.0), ValueError, r"at \['b'\], lower is nan"),
        (({"a": 0.0}, 1.0), ValueError, r"lower has no leaf at \['b'\]"),
        (({"a": 0.0, "b": 0.0}, {"a": jnp.ones(3), "b": 1.0}), ValueError, r"at \['a'\].*upper has shape \(3,\)"),
        (({"a": 0.0, "b": jnp.zeros(2)}, 1.0), ValueError, r"at \['b'\], lower has shape \(2,\), expected \(\)"),
        ((jnp.zeros(2), 1.0), ValueError, "lower and params have different structures"),
        ((0.0, 1j), TypeError, "upper has dtype complex"),
    ],
)
def test_bad_bounds(bounds, error, message):
    for make in (lambda: keep_params_in_box(*bounds), lambda: lbfgsb(bounds)):
        with pytest.raises(error, match=message):
            make().init(PARAMS)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"bounds is 1.0, expected a pair \(lower, upper\)"):
        lbfgsb(1.0)  # pyright: ignore[reportArgumentType]: that is the test
    with pytest.raises(ValueError, match="memory_size is 0, expected an int of at least 1"):
        lbfgsb(memory_size=0)
    for transform in (lbfgsb(), keep_params_in_box()):
        with pytest.raises(TypeError, match=r"at \['z'\], params have dtype complex64"):
            transform.init({"z": jnp.ones(2, jnp.complex64)})
    with pytest.raises(ValueError, match="put it after the learning rate"):
        gdfx.chain(keep_params_in_box(0.0, 1.0), gdfx.sgd(0.1)).init(PARAMS)
    with pytest.raises(TypeError, match="needs grad, params, value, value_fn"):
        lbfgsb().update(PARAMS, lbfgsb().init(PARAMS))
    assert keep_params_in_box(0.0).needs == {"params"}


def test_example_params_are_kept_in_the_box():
    params = example_params()
    loss = lambda p: sum(jnp.sum((x - 2) ** 2) for x in jax.tree.leaves(p))
    found, state, _ = jax.jit(lambda p: run(loss, p, (-0.5, 1.0), 1e-4, 20))(params)
    trees_close(found, jax.tree.map(jnp.ones_like, params), rtol=1e-6)
    assert state.report()["projected_grad_norm"] <= 1e-4
