"""Newton's method by conjugate gradients, with a line search and in a trust region: against SciPy, and at the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from problems import PROBLEMS

import gdfx
from gdfx.solvers.conjugate_gradients import gauss_newton_product, hessian_product, truncated_cg
from gdfx.solvers.newton_cg import newton_cg, scale_by_newton_cg
from gdfx.solvers.trust_region import scale_by_trust_region, trust_region
from gdfx.testing import trees_close

pytestmark = pytest.mark.numbers

RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(60, 8)), np.where(RNG.random(60) > 0.5, 1.0, -1.0)
WIDE = RNG.normal(size=(4, 10))


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def rosenbrock_residuals(x):
    return {"bends": 10.0 * (x[1:] - x[:-1] ** 2), "ends": 1 - x[:-1]}


def logistic(x):
    return jnp.sum(jnp.logaddexp(0.0, -jnp.asarray(LABELS, x.dtype) * (jnp.asarray(X, x.dtype) @ x))) + 0.05 * x @ x


def rank_deficient(x):
    return 0.5 * jnp.sum((jnp.asarray(WIDE, x.dtype) @ x - 1.0) ** 2)


def indefinite(x):
    return jnp.sum(x**4) / 4 - jnp.sum(x**2) / 2 + 0.1 * x[0] * x[1] + 0.05 * jnp.sum(x)


def saddle(x):
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4


LOSSES = {
    "rosenbrock-2": (rosenbrock, np.array([-1.2, 1.0])),
    "rosenbrock-100": (rosenbrock, np.tile([-1.2, 1.0], 50)),
    "logistic": (logistic, np.zeros(8)),
    "rank_deficient": (rank_deficient, RNG.normal(size=10)),
    "indefinite": (indefinite, 0.1 * RNG.normal(size=6)),
    "saddle": (saddle, np.array([1.0, 1e-3])),
}


def kept(state):
    """The state that keeps value and gradient at the new params."""
    return state[-1]


def solve(opt, loss, start, tol=1e-8, steps=600, **extra):
    """Params, gradient, iterations and evaluations; all reuse of what the state keeps is checked in another test."""
    value_and_grad = jax.value_and_grad(loss)

    def body(carry):
        params, state, value, grad, iterations, evaluations = carry
        updates, state = opt.update(grad, state, params, value=value, grad=grad, value_fn=loss, **extra)
        now = kept(state)
        params = gdfx.apply_updates(params, updates)
        return params, state, now.value, now.grad, iterations + 1, evaluations + now.evaluations

    def goes_on(carry):
        return (gdfx.tree.norm(carry[3]) > tol) & (carry[4] < steps)

    def run(start):
        one = jnp.ones((), jnp.int32)
        carry = start, opt.init(start), *value_and_grad(start), 0 * one, one
        params, _, _, grad, iterations, evaluations = jax.lax.while_loop(goes_on, body, carry)
        return params, grad, iterations, evaluations

    return jax.jit(run)(start)


def path(opt, loss, start, steps, **extra):
    """The params after each step, and the states."""

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = opt.update(grad, state, params, value=value, grad=grad, value_fn=loss, **extra)
        params = gdfx.apply_updates(params, updates)
        return (params, state), (params, state, updates)

    return jax.jit(lambda p: jax.lax.scan(step, (p, opt.init(p)), length=steps)[1])(start)


@functools.cache
def compiled(loss):
    return jax.jit(jax.value_and_grad(loss)), jax.jit(jax.hessian(loss))


def of_scipy(method, loss, start):
    value_and_grad, hessian = compiled(loss)
    options = {"gtol": 1e-8} if method == "trust-ncg" else {"xtol": 1e-8}
    as_numbers = lambda x: tuple(map(np.asarray, value_and_grad(x)))
    hess = lambda x: np.asarray(hessian(x))
    return scipy.optimize.minimize(as_numbers, start, jac=True, hess=hess, method=method, options=options), hess


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("make", "method"), [(trust_region, "trust-ncg"), (newton_cg, "Newton-CG")])
def test_it_takes_no_longer_than_scipy(make, method, name):
    loss, start = LOSSES[name]
    x, grad, iterations, evaluations = solve(make(), loss, jnp.asarray(start))
    theirs, hessian = of_scipy(method, loss, start)
    # In a handful of iterations a single one is more than a part of them.
    assert int(iterations) <= 1.3 * theirs.nit + 3
    assert int(evaluations) <= 1.3 * theirs.nfev + 5
    assert np.linalg.norm(grad) <= 1e-8
    assert np.linalg.eigvalsh(hessian(x)).min() > -1e-10  # no saddle


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("make", [trust_region, newton_cg])
def test_convergence_is_superlinear_at_least(make):
    xs, *_ = path(make(), logistic, jnp.zeros(8), 10)
    errors = np.linalg.norm(np.asarray(xs) - np.asarray(xs[-1]), axis=1)[:-1]
    near = np.flatnonzero((errors[:-1] < 0.1) & (errors[:-1] > 1e-9))
    # The square root of the gradient, to which the products stop, makes it of order 1.5.
    assert len(near) >= 2
    assert np.all(errors[near + 1] <= 5 * errors[near] ** 1.5 + 1e-14)


@pytest.mark.usefixtures("x64")
def test_gauss_newton():
    loss = lambda x: 0.5 * rosenbrock(x)
    opt = trust_region(curvature="gauss_newton")
    x, _, iterations, _ = solve(opt, loss, jnp.asarray([-1.2, 1.0]), residual_fn=rosenbrock_residuals)
    assert iterations < 40
    np.testing.assert_allclose(x, 1.0, rtol=1e-8)
    # A singular Jacobian.
    residual = lambda x: jnp.asarray(WIDE) @ x - 1.0
    x, _, iterations, _ = solve(opt, rank_deficient, jnp.ones(10), residual_fn=residual)
    assert iterations < 15
    np.testing.assert_allclose(residual(x), 0.0, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_products():
    to_real = lambda z: jnp.concatenate([z.real, z.imag])
    to_complex = lambda x: jax.lax.complex(x[:2], x[2:])
    loss = lambda z: jnp.sum(gdfx.tree.abs2(z) ** 2) + jnp.sum((z * z[::-1]).real)
    residual = lambda z: {"complex": z**2 * (1 + 2j), "real": gdfx.tree.abs2(z)}

    @jax.jit
    def products(x, step):
        z, of_loss = to_complex(x), jax.hessian(lambda x: loss(to_complex(x)))(x)
        parts = jax.jacobian(lambda x: (to_real(residual(to_complex(x))["complex"]), residual(to_complex(x))["real"]))(
            x
        )
        found = hessian_product(loss, z), gauss_newton_product(residual, z)
        expected = of_loss @ step, sum(part.T @ (part @ step) for part in parts)
        return [to_real(product(to_complex(step))) for product in found], expected

    for found, expected in zip(
        *products(jnp.asarray([1.0, 0.5, -1.0, 2.0]), jnp.asarray([0.3, -1.0, 0.1, 0.7])), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_truncated_cg():
    a = RNG.normal(size=(6, 6))
    spd, g = jnp.asarray(a @ a.T + np.eye(6)), jnp.asarray(RNG.normal(size=6))
    model = lambda h, p: g @ p + 0.5 * p @ h @ p
    solved = -jnp.linalg.solve(spd, g)
    run = jax.jit(lambda h, g, r, rtol: truncated_cg(lambda d: h @ d, g, radius=r, rtol=rtol, max_iterations=20))

    found = run(spd, g, jnp.inf, 1e-12)
    np.testing.assert_allclose(found.step, solved, rtol=1e-9)
    np.testing.assert_allclose(found.decrease, -model(spd, found.step), rtol=1e-10)
    assert not found.on_boundary
    assert found.products <= 8
    assert run(spd, g, jnp.inf, 0.5).products < found.products

    radius = 0.3 * float(jnp.linalg.norm(solved))
    for h in (spd, spd - 8 * jnp.eye(6), -spd, 0 * spd, spd * jnp.nan):
        found = run(h, g, radius, 1e-12)
        assert found.on_boundary
        np.testing.assert_allclose(jnp.linalg.norm(found.step), radius, rtol=1e-12)
        if not jnp.isnan(h).any():
            np.testing.assert_allclose(found.decrease, -model(h, found.step), rtol=1e-9)
        unlimited = run(h, g, jnp.inf, 1e-12)
        assert np.isfinite(unlimited.step).all()
        assert g @ unlimited.step < 0

    for g_ in (0 * g, g * jnp.nan, g * jnp.inf):
        for r in (1.0, jnp.inf, 0.0):
            found = run(spd, g_, r, 0.5)
            assert not found.step.any()
            assert found.products == 0
    assert not run(spd, g, 0.0, 0.5).step.any()
    limited = truncated_cg(lambda d: spd @ d, g, rtol=0.0, max_iterations=2)
    assert limited.products == 2


EDGES = {
    "flat": (lambda x: jnp.sum(0.0 * x) + 3.0, [1.0, 1.0]),
    "nan": (lambda x: jnp.sum(jnp.sqrt(-jnp.abs(x))), [1.0, 1.0]),
    "minimum": (lambda x: jnp.sum(x**2) + 3.0, [0.0, 0.0]),
    "saddle": (saddle, [0.0, 0.0]),  # a stationary point like others
    "line": (jnp.sum, [1.0, 1.0]),
    "hill": (lambda x: -jnp.sum(x**2), [1.0, 1.0]),
    "root": (lambda x: jnp.sum(jnp.sqrt(jnp.abs(x))), [1.0, 1.0]),
    "logarithm": (lambda x: jnp.sum(20.0 * x - jnp.log(x)), [1.0, 2.0]),
    "fourth_power": (lambda x: jnp.sum(x**4), [1.0, -2.0]),
}


@pytest.mark.parametrize("make", [trust_region, newton_cg])
def test_params_stay_finite(make):
    losses = [loss for loss, _ in EDGES.values()]

    @jax.jit
    def solved(i, start, radius):
        opt = trust_region(initial_radius=radius) if make is trust_region else newton_cg()
        return path(opt, lambda x: jax.lax.switch(i, losses, x), start, 40)

    for radius in (1.0, np.inf) if make is trust_region else (1.0,):
        ends = {}
        for i, (case, (loss, start)) in enumerate(EDGES.items()):
            xs, states, updates = solved(i, jnp.asarray(start), radius)
            assert np.isfinite(xs).all(), case
            assert np.isfinite(updates).all(), case
            ends[case] = np.asarray(xs[-1])
            if case in ("flat", "nan", "minimum", "saddle"):
                np.testing.assert_array_equal(updates, 0.0)
            if case != "nan":
                trees_close(kept(states).value[-1], loss(xs[-1]), rtol=1e-5, atol=1e-6)
        assert (ends["line"] < -30).all()
        assert (np.abs(ends["hill"]) > 1000).all()
        np.testing.assert_allclose(ends["logarithm"], 0.05, rtol=1e-3)
        np.testing.assert_allclose(ends["fourth_power"], 0.0, atol=2e-3)


@pytest.mark.parametrize("make", [trust_region, newton_cg])
def test_trees_and_dtypes(make):
    start = {"a": jnp.asarray([1.0, -2.0], jnp.float16), "none": None, "b": {"c": jnp.asarray([[3.0]])}}

    def loss(p):
        p = gdfx.tree.widen(p)
        a, c = p["a"] - 0.5, p["b"]["c"][0, 0] + 1.0
        return jnp.sum(a**2) + c**2 * (1 + 1.5 * a[0] ** 2)

    xs, states, _ = path(make(), loss, start, 12)
    assert jax.tree.map(lambda x: x.dtype, xs) == jax.tree.map(lambda x: x.dtype, start)
    assert {x.dtype for x in jax.tree.leaves(kept(states).grad)} == {np.dtype(np.float32)}
    last = jax.tree.map(lambda x: gdfx.tree.widen(x[-1]), xs)
    np.testing.assert_allclose(last["a"], 0.5, atol=1e-2)
    np.testing.assert_allclose(last["b"]["c"], -1.0, atol=1e-2)
    if make is trust_region:  # value and gradient are those at the params as they are rounded
        value, grad = jax.jit(jax.vmap(jax.value_and_grad(loss)))(xs)
        trees_close((kept(states).value, kept(states).grad), (value, gdfx.tree.widen(grad)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [trust_region, newton_cg])
def test_complex_is_as_real(make):
    m = jnp.asarray(np.array([[1, -2], [3, 4], [-4 + 2j, 5 - 3j], [-2 - 2j, 6]], np.complex64))
    of_complex = lambda z: jnp.sum(gdfx.tree.abs2(m @ z - 1)) + jnp.sum(gdfx.tree.abs2(z) ** 2)
    of_real = lambda x: of_complex(jax.lax.complex(x[0], x[1]))
    z = jnp.asarray(np.array([1 - 1j, 1j], np.complex64))
    xs, *_ = path(make(), of_complex, z, 6)
    expected, *_ = path(make(), of_real, jnp.stack([z.real, z.imag]), 6)
    trees_close(jnp.stack([xs.real, xs.imag], 1), expected, rtol=1e-3, atol=1e-5)
    assert of_complex(xs[-1]) < 0.5 * of_complex(z)


@pytest.mark.usefixtures("x64")
def test_problems_under_vmap_are_independent():
    radii, scales = jnp.asarray([0.1, 10.0, 1.0]), jnp.asarray([1.0, 30.0, 0.01])
    starts = jnp.asarray([[-0.6, 0.5, 0.25], [-1.2, 1.0, 0.5], [0.0, jnp.nan, 1.0]])

    def run(start, scale, radius):
        return path(trust_region(radius, max_radius=20.0), lambda x: scale * rosenbrock(x), start, 12)[0]

    together, alone = jax.jit(jax.vmap(run))(starts, scales, radii), jax.jit(run)
    for i in (0, 1):
        trees_close(together[i], alone(starts[i], scales[i], radii[i]), rtol=1e-8)


def test_radius():
    # At first 1; a step as long as it, which does as told, doubles it, up to the largest.
    loss = lambda x: 1e-3 * jnp.sum(x**2)
    xs, states, _ = path(trust_region(max_radius=3.0), loss, jnp.asarray([30.0]), 4)
    np.testing.assert_allclose(xs[:, 0], [29.0, 27.0, 24.0, 21.0], rtol=1e-5)
    np.testing.assert_allclose(kept(states).radius, [2.0, 3.0, 3.0, 3.0])
    np.testing.assert_allclose(kept(states).gain, 1.0, rtol=1e-2)
    # A step into NaN is not made, and the next is a quarter as long.
    xs, states, updates = path(trust_region(), lambda x: jnp.sum(20.0 * x - jnp.log(x)), jnp.asarray([0.5]), 2)
    assert kept(states).step_norm[0] == 1.0
    assert updates[0] == 0.0
    assert kept(states).radius[0] == 0.25
    np.testing.assert_allclose(updates[1], -0.25)
    assert (kept(states).evaluations == 1).all()


def test_near_machine_precision_it_goes_on():
    # The decrease that is left is rounded off in a loss of this size.
    loss = lambda x: 1e3 + logistic(x)
    xs, *_ = path(trust_region(), loss, jnp.zeros(8, jnp.float32), 15)
    grad = jax.grad(logistic)
    assert np.linalg.norm(grad(xs[-1])) < 1e-4 * np.linalg.norm(grad(jnp.zeros(8, jnp.float32)))


@pytest.mark.usefixtures("x64")
def test_steps_lost_in_the_noise_of_the_loss():
    # What its residuals subtract is far larger than what they leave: a loss near 44 is off by more than 1e-10.
    problem = PROBLEMS["meyer"]
    xs, states, _ = path(trust_region(), problem.fn, jnp.asarray([5.7636e-3, 6158.79, 344.464]), 1000)
    np.testing.assert_allclose(kept(states).value[-1], problem.minima[0], rtol=1e-3)
    assert (kept(states).radius > 1e-17 * jnp.linalg.norm(xs, axis=1)).all()
    # Nothing is gained by any step.
    loss = lambda x: jnp.sum(jnp.square(x - 3.0)) + jnp.where((x == 3.5).all(), 0.0, 1e6)
    xs, states, updates = path(trust_region(), loss, jnp.full(2, 3.5), 60)
    assert not updates.any()
    assert (kept(states).radius > 1e-17 * jnp.linalg.norm(xs, axis=1)).all()


def test_arguments_are_checked():
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="curvature is 'newton', expected one of"):
        trust_region(curvature="newton")
    for make in (trust_region, newton_cg, scale_by_newton_cg, scale_by_trust_region):
        for wrong in (0, 2.0, True):
            with pytest.raises(ValueError, match=r"max_cg_iterations is .*expected an int of at least 1"):
                make(max_cg_iterations=wrong)
    opt = trust_region(curvature="gauss_newton")
    value = lambda x: jnp.sum(x**2)
    given = {"value": value(params), "grad": 2 * params, "value_fn": value}
    with pytest.raises(TypeError, match=r"needs .*residual_fn"):
        opt.update(params, opt.init(params), params, **given)
    with pytest.raises(TypeError, match="residual_fn is a float, expected a function"):
        opt.update(params, opt.init(params), params, **given, residual_fn=1.0)
    with pytest.raises(ValueError, match="initial_radius"):
        trust_region(initial_radius=0.0)
    with pytest.raises(ValueError, match="takes gradients"):
        gdfx.chain(gdfx.sgd(1.0), trust_region()).init(params)
    gdfx.chain(gdfx.clip_by_global_norm(1.0), trust_region()).init(params)


@pytest.mark.parametrize("make", [trust_region, newton_cg])
def test_evaluations_are_counted(make):
    calls = []

    def loss(x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(x**4 - 3.0 * x)

    # Products evaluate the loss too, but are no evaluations: here they are taken of another, without a counter.
    opt, x = make(), jnp.asarray([2.0, -1.0])
    state = opt.init(x)
    update = jax.jit(functools.partial(opt.update, value_fn=loss))
    for _ in range(4):
        value, grad = jax.value_and_grad(loss)(x)
        jax.effects_barrier()
        calls.clear()
        updates, state = update(grad, state, x, value=value, grad=grad)
        jax.effects_barrier()
        assert len(calls) == kept(state).evaluations + 1
        x = x + updates
