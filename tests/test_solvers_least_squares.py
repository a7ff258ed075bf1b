"""Nonlinear least squares: the problems of Moré, Garbow and Hillstrom, SciPy's answers, and the edges."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from cases import shifted_residuals
from problems import PROBLEMS

import gdfx
from gdfx.solvers.dogleg import dogleg
from gdfx.solvers.gauss_newton import gauss_newton
from gdfx.solvers.levenberg_marquardt import levenberg_marquardt
from gdfx.solvers.squares import covariance, residual_vector, sum_of_squares
from gdfx.testing import trees_close

pytestmark = pytest.mark.numbers


def run(opt, params, steps, loss):
    """The params, the loss and the evaluations so far after each step, and the last state."""

    def step(carry, _):
        params, state, made = carry
        value, grads = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": grads, "value_fn": loss, "residual_fn": loss.residual_fn}
        updates, state = opt.update(grads, state, params, **extra)
        params = gdfx.apply_updates(params, updates)
        last = state[-1]
        made = made + getattr(last, "evaluations", 1)
        return (params, state, made), (params, last.value, made)

    start = params, opt.init(params), jnp.ones((), jnp.int32)
    (_, state, _), path = jax.lax.scan(step, start, length=steps)
    return path, state


def solve(opt, params, steps, loss):
    return jax.device_get(jax.jit(lambda p: run(opt, p, steps, loss))(params))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", ["rosenbrock", "powell_singular", "freudenstein_roth", "helical_valley", "kowalik_osborne", "meyer"]
)
def test_levenberg_marquardt_needs_few_evaluations(name):
    problem = PROBLEMS[name]
    start, fn = jnp.asarray(problem.start), problem.residual
    (path, values, made), state = solve(levenberg_marquardt(), start, 200, sum_of_squares(fn))
    assert np.isfinite(path).all()
    assert (np.diff(values) <= 1e-10 * values[1:]).all()  # it rises by rounding alone
    both = jax.jit(lambda x: (fn(x), jax.jacfwd(fn)(x)))
    theirs = scipy.optimize.least_squares(lambda x: both(x)[0], start, jac=lambda x: both(x)[1], method="lm")
    nearest = min(problem.minima, key=lambda minimum: abs(minimum - values[-1]))
    np.testing.assert_allclose(values[-1], nearest, rtol=1e-9, atol=1e-25)
    reached = int(np.argmax(values <= theirs.cost * (1 + 1e-8) + 1e-16))
    assert made[reached] <= 1.5 * theirs.nfev
    trees_close(state[-1].value, values[-1])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["brown_badly_scaled", "helical_valley", "meyer"])
@pytest.mark.parametrize("make", [dogleg, gauss_newton, lambda: levenberg_marquardt(method="cg")])
def test_other_methods_reach_the_minimum(make, name):
    problem = PROBLEMS[name]
    if name == "meyer" and make not in (dogleg, gauss_newton):
        return  # too badly scaled for conjugate gradients
    (_, values, made), _ = solve(make(), jnp.asarray(problem.start), 100, sum_of_squares(problem.residual))
    minimum = problem.minima[0]
    np.testing.assert_allclose(values[-1], minimum, rtol=1e-9, atol=1e-25)
    if make is dogleg:
        assert made[int(np.argmax(values <= minimum * (1 + 1e-8) + 1e-16))] <= 35


RNG = np.random.default_rng(0)
X = np.linspace(0, 4, 30)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * RNG.normal(size=30)
Y[::7] += 2.0
START = np.array([1.0, 1.0, 0.0])


def decay(p, x=X, y=Y):
    return p[0] * jnp.exp(-p[1] * x) + p[2] - y


@pytest.fixture(scope="module")
def decay_np():
    def fn(p):
        return p[0] * np.exp(-p[1] * X) + p[2] - Y

    def jac(p):
        e = np.exp(-p[1] * X)
        return np.stack([e, -p[0] * X * e, np.ones_like(X)], 1)

    return fn, jac


EXACT = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
ROBUST = ["linear", "soft_l1", "huber", "cauchy", "arctan"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("loss", ROBUST)
def test_robust_losses_are_scipys(loss, decay_np):
    fn, jac = decay_np
    theirs = scipy.optimize.least_squares(fn, START, jac, loss=loss, f_scale=0.3, max_nfev=1000, **EXACT)
    mine = sum_of_squares(decay, loss, 0.3)
    (path, values, _), _ = solve(levenberg_marquardt(), jnp.asarray(START), 100, mine)
    np.testing.assert_allclose(path[-1], theirs.x, rtol=1e-7)
    np.testing.assert_allclose(values[-1], theirs.cost, rtol=1e-12)
    np.testing.assert_allclose(mine(jnp.asarray(theirs.x)), theirs.cost, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("loss", ROBUST)
def test_corrected_residuals_have_the_gradient_and_the_curvature(loss):
    matrix, r = jnp.asarray(RNG.normal(size=(5, 3))), jnp.asarray([0.3, -0.1, 0.0, 0.4, -0.2])

    @jax.jit
    def numbers(size):
        made, zero = sum_of_squares(lambda p: matrix @ p + size * r, loss, 1.0), jnp.zeros(3)
        by_columns, by_rows = (derivative(made.residual_fn)(zero) for derivative in (jax.jacfwd, jax.jacrev))
        return made.residual_fn(zero), by_columns, by_rows, jax.grad(made)(zero), jax.hessian(made)(zero)

    for size in (1.0, 10.0):  # small residuals, for which all losses are convex, and large
        found, jacobian, by_rows, grad, hessian = numbers(size)
        np.testing.assert_allclose(jacobian.T @ found, grad, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(by_rows, jacobian, rtol=1e-12)
        assert np.isfinite(jacobian).all()
        if size == 1.0:
            np.testing.assert_allclose(jacobian.T @ jacobian, hessian, rtol=1e-10)


def test_sum_of_squares_is_a_value():
    assert sum_of_squares(decay) == sum_of_squares(decay, "linear", 1)
    assert hash(sum_of_squares(decay, "huber")) == hash(sum_of_squares(decay, "huber"))
    assert sum_of_squares(decay) != sum_of_squares(decay, "huber")
    assert sum_of_squares(decay).residual_fn is decay
    of_tree = sum_of_squares(lambda p, b: {"a": p * b, "c": jax.lax.complex(p, b), "none": None})
    assert of_tree(jnp.asarray([2.0, 0.0]), jnp.asarray([3.0, 1.0])) == 0.5 * (36 + 4 + 9 + 1)
    assert sum_of_squares(lambda p: p)(jnp.full(4, 300, jnp.float16)) == 180000
    with pytest.raises(ValueError, match="loss is 'l3', expected one of"):
        sum_of_squares(decay, "l3")
    for scale in (0.0, -1.0, float("nan"), True, "1"):
        with pytest.raises(ValueError, match="scale is"):
            sum_of_squares(decay, "huber", scale)
    with pytest.raises(TypeError, match="residual_fn is a float"):
        sum_of_squares(1.0)
    with pytest.raises(TypeError, match=r"returned dtype int32 at \['a'\]"):
        residual_vector({"a": jnp.arange(3)})


INF = float("inf")
BOUNDS = {
    "one active": ([-INF, -INF, 0.55], [INF, INF, INF]),
    "two active": ([0.0, 0.0, 0.0], [2.0, 1.1, 10.0]),
    "none active": ([-10.0, -10.0, -10.0], [10.0, 10.0, 10.0]),
    "start at one": ([1.0, -INF, 0.0], [INF, 1.0, INF]),
    "fixed": ([-INF, 1.0, -INF], [INF, 1.0, INF]),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["qr", "cg"])
def test_bounded_minima_are_scipys(method, decay_np):
    fn, jac = decay_np

    def both(lower, upper):
        opt = levenberg_marquardt(method=method, bounds=(lower, upper))
        (path, values, _), state = run(opt, jnp.asarray(START), 150, sum_of_squares(decay))
        return path, values[-1], state[-1].projected_grad_norm

    lower, upper = (np.stack(side) for side in zip(*BOUNDS.values(), strict=True))
    paths, values, stationary = jax.jit(jax.vmap(both))(lower, upper)
    assert (paths >= lower[:, None]).all()
    assert (paths <= upper[:, None]).all()
    assert (stationary < 1e-7).all()
    for i, name in enumerate(BOUNDS):
        low, high = lower[i], np.where(lower[i] == upper[i], upper[i] + 1e-14, upper[i])
        start = np.clip(START, low, high)  # as the first update does
        theirs = scipy.optimize.least_squares(fn, start, jac, bounds=(low, high), max_nfev=1000, **EXACT)
        np.testing.assert_allclose(values[i], theirs.cost, rtol=1e-8, err_msg=name)
        np.testing.assert_allclose(paths[i, -1], theirs.x, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_params_stay_within_the_bounds_after_rounding(dtype):
    targets = jnp.asarray(RNG.normal(size=50) * 10.0 ** RNG.integers(-4, 4, size=50), jnp.float32)
    start = jnp.zeros(50, dtype)
    opt = levenberg_marquardt(bounds=(-0.3, {"x": jnp.full(50, 0.7)}))
    loss = sum_of_squares(lambda p: jnp.sinh(p["x"].astype(jnp.float32)) - targets)
    (path, _, _), _ = solve(opt, {"x": start}, 20, loss)
    low, high = (jnp.asarray(x).astype(dtype) for x in (-0.3, 0.7))
    assert ((path["x"] >= low) & (path["x"] <= high)).all()
    np.testing.assert_allclose(
        path["x"][-1].astype(jnp.float32), np.clip(np.arcsinh(targets), -0.3, 0.7), rtol=2e-2, atol=2e-3
    )


def test_bounds_are_checked():
    params = {"a": jnp.ones(2), "b": jnp.zeros(())}
    with pytest.raises(ValueError, match=r"at \['a'\], params are .* outside of the bounds"):
        levenberg_marquardt(bounds=(-1.0, 0.5)).init(params)
    with pytest.raises(ValueError, match=r"at \['a'\], lower is 2.0 and upper 1.0, expected lower <= upper"):
        levenberg_marquardt(bounds=(2.0, 1.0)).init(params)
    with pytest.raises(ValueError, match=r"upper has no leaf at \['b'\]"):
        levenberg_marquardt(bounds=(0.0, {"a": jnp.ones(2)})).init(params)
    with pytest.raises(ValueError, match=r"at \['a'\], .*lower has shape \(3,\)"):
        levenberg_marquardt(bounds=({"a": jnp.ones(3), "b": jnp.ones(())}, 9.0)).init(params)
    with pytest.raises(TypeError, match=r"bounds is 1.0, expected None or a pair"):
        levenberg_marquardt(bounds=1.0)
    # One that is traced goes to the nearest point inside.
    opt = levenberg_marquardt(bounds=(-1.0, 0.5))
    (path, _, _), _ = solve(opt, jnp.asarray([3.0, -2.0]), 1, sum_of_squares(lambda p: p - 3))
    assert ((path >= -1) & (path <= 0.5)).all()


@pytest.mark.usefixtures("x64")
def test_covariance_is_that_of_curve_fit():
    model = lambda x, a, b, c: a * np.exp(-b * x) + c
    popt, pcov = scipy.optimize.curve_fit(model, X, Y, START, ftol=1e-15, xtol=1e-15, gtol=1e-15)
    np.testing.assert_allclose(covariance(decay, jnp.asarray(popt)), pcov, rtol=1e-5)
    tree = {"a": jnp.asarray(popt[0]), "rest": jnp.asarray(popt[1:])}
    of_tree = lambda p, y: decay(jnp.concatenate([p["a"][None], p["rest"]]), y=y)
    np.testing.assert_allclose(covariance(of_tree, tree, jnp.asarray(Y)), pcov, rtol=1e-5)
    # What the residuals do not tell: the pseudo-inverse.
    matrix = jnp.asarray(RNG.normal(size=(6, 2)))
    wide, y = jnp.concatenate([matrix, matrix[:, :1]], 1), jnp.arange(6.0)
    found = covariance(lambda p: wide @ p - y, jnp.ones(3))
    expected = jnp.sum((wide @ jnp.ones(3) - y) ** 2) / 3 * jnp.linalg.pinv(wide.T @ wide)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="3 residuals for 3 params, expected more"):
        covariance(lambda p: p, jnp.ones(3))
    with pytest.raises(TypeError, match="covariance: at the root, params have dtype complex128"):
        covariance(lambda p: p, jnp.ones(3, complex))


METHODS = {
    "lm": levenberg_marquardt,
    "lm-cg": lambda: levenberg_marquardt(method="cg"),
    "lm-box": lambda: levenberg_marquardt(bounds=(-50.0, 50.0)),
    "gauss_newton": gauss_newton,
    "dogleg": dogleg,
}
# Residuals, two of two params, a start, and the loss to be reached: infinity for any that is not above the first.
EDGES = {
    "at the minimum": (lambda p: p - 1, [1.0, 1.0], 0.0),
    "flat": (lambda p: 0 * p + 3, [1.0, 2.0], 9.0),
    "flat column": (lambda p: jnp.stack([p[0] - 2, p[0] ** 2 - 4]), [1.0, 2.0], 0.0),
    "flat row": (lambda p: jnp.stack([p[0] + 3 * p[1] - 2, 0 * p[0]]), [1.0, 2.0], 0.0),
    "singular": (lambda p: jnp.stack([p[0] + p[1] - 3, (p[0] + p[1]) ** 2 - 9]), [1.0, 0.0], 0.0),
    "root at which the slope is 0": (lambda p: p**2, [1.0, -2.0], 0.0),
    "log": (lambda p: jnp.log(p) + 3, [3.0, 20.0], 0.0),
    "nan near by": (lambda p: jnp.where(jnp.abs(p) < 0.02, 30 * p - 0.3, jnp.nan), [0.0, 0.0], 0.0),
    "nan all over": (lambda p: jnp.sqrt(-jnp.abs(p)), [1.0, 2.0], np.nan),
    "infinite slope": (lambda p: jnp.sqrt(jnp.abs(p)), [1.0, 4.0], np.inf),
    "no minimum": (lambda p: jnp.exp(-p / 100), [0.0, 1.0], np.inf),
}


@pytest.mark.parametrize("name", METHODS)
def test_edges(name):
    branches = [fn for fn, _, _ in EDGES.values()]

    @jax.jit
    def solved(i, start):
        return run(METHODS[name](), start, 60, sum_of_squares(lambda p: jax.lax.switch(i, branches, p)))

    for i, (edge, (fn, start, reached)) in enumerate(EDGES.items()):
        (path, values, _), state = jax.device_get(solved(i, jnp.asarray(start)))
        assert np.isfinite(path).all(), edge
        if np.isnan(reached):
            np.testing.assert_array_equal(path, np.broadcast_to(np.float32(start), path.shape))
            continue
        final, first = (0.5 * np.sum(np.square(fn(jnp.asarray(x)))) for x in (path[-1], start))
        assert final <= (first if np.isinf(reached) else reached + 1e-5), edge
        np.testing.assert_allclose(values[-1], final, rtol=1e-5, atol=1e-6, err_msg=edge)
        assert not any(np.isnan(x).any() for x in jax.tree.leaves(state)), edge


@pytest.mark.parametrize("name", ["lm", "gauss_newton", "dogleg"])
def test_more_params_than_residuals(name):
    matrix = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32)
    start = jnp.arange(5.0)
    (path, values, _), _ = solve(METHODS[name](), start, 20, sum_of_squares(lambda p: matrix @ p - 1))
    assert values[-1] < 1e-9
    if name == "gauss_newton":  # the nearest of the solutions
        np.testing.assert_allclose(path[-1] - start, jnp.linalg.pinv(matrix) @ (1 - matrix @ start), rtol=1e-3)


@pytest.mark.parametrize("name", ["lm", "lm-cg", "dogleg"])
def test_dtypes_and_trees(name):
    def residuals(p):
        p = gdfx.tree.cast(p, jnp.float32)
        return {"fit": p["a"] * jnp.exp(-p["b"][0] * jnp.asarray(X, jnp.float32)) + p["b"][1], "zero": p["b"]}

    loss = sum_of_squares(lambda p: jax.tree.map(lambda r: r - 1, residuals(p)))

    def fit(a, b):
        params = {"a": jnp.asarray(0.5, a), "b": jnp.asarray([0.5, 0.5], b), "none": None}
        (path, values, _), _ = run(METHODS[name](), params, 15, loss)
        assert path["a"].dtype == a
        assert path["b"].dtype == b
        assert values.dtype == jnp.float32
        return values[-1]

    kinds = [("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")]
    values = jax.jit(lambda: [fit(*kind) for kind in kinds])()
    np.testing.assert_allclose(values, 0.0, atol=1e-2)
    assert values[0] < 1e-9


@pytest.mark.parametrize("name", ["lm"])
def test_problems_under_vmap_are_independent(name):
    rates = jnp.asarray([0.5, 1.0, 3.0])
    x = jnp.asarray(X, jnp.float32)
    starts = jnp.asarray([[1.0, 1.0, 0.0], [0.3, 2.0, 0.5], [2.0, 0.1, jnp.nan]])

    def fit(start, rate):
        loss = sum_of_squares(lambda p: decay(p, x, jnp.exp(-rate * x) + 0.1))
        (path, values, _), _ = run(METHODS[name](), start, 12, loss)
        return path, values

    together = jax.jit(jax.vmap(fit))(starts, rates)
    alone = jax.jit(fit)
    for i in (0, 1):
        trees_close(jax.tree.map(lambda x, i=i: x[i], together), alone(starts[i], rates[i]), rtol=1e-3, atol=1e-5)
    assert (together[1][:2, -1] < 1e-6).all()


def test_named_errors():
    params = jnp.ones(2)
    good = shifted_residuals(params, params)
    for opt in (levenberg_marquardt(), dogleg(), gauss_newton()):
        state = opt.init(params)
        with pytest.raises(TypeError, match="needs residual_fn"):
            opt.update(params, state, params, **{**good, "residual_fn": None})
        with pytest.raises(TypeError, match="residual_fn is a float, expected a function"):
            opt.update(params, state, params, **{**good, "residual_fn": 1.0})
        with pytest.raises(TypeError, match=r"at \['z'\], params have dtype complex64, expected a real one"):
            opt.init({"z": jnp.ones(2, jnp.complex64)})
    with pytest.raises(ValueError, match="method is 'svd', expected one of"):
        levenberg_marquardt(method="svd")
    with pytest.raises(ValueError, match="damping is 0"):
        levenberg_marquardt(damping=0.0)
    assert levenberg_marquardt().makes_steps
    assert dogleg().makes_steps


@pytest.mark.parametrize("method", ["levenberg_marquardt", "gauss_newton", "dogleg", "lbfgsb", "bfgs"])
def test_lapack_gets_one_matrix_at_a_time(method):
    """Two stacks at once, in the threads of a sweep, may never come back on a machine of two cores."""
    fn = gdfx.sum_of_squares(lambda x, a: jnp.stack([10 * (x[1] - x[0] ** 2), a - x[0]]))
    solve = lambda a: gdfx.minimize(fn, jnp.zeros(2), a, method=method, max_steps=3).params
    derivatives = jax.vmap(jax.jacfwd(solve))  # they solve a system, if the method does not
    lowered = jax.jit(derivatives).trace(jnp.ones(4)).lower(lowering_platforms=("cpu",))
    calls = re.findall(r"custom_call @lapack_\w+\(.*: \(tensor<([\dx]+)x[fc]\d", lowered.as_text())
    assert calls
    assert {call.count("x") for call in calls} == {1}
