"""The table of problems: against published values, finite differences and what SciPy finds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROBLEMS
from scipy.optimize import least_squares, minimize

pytestmark = pytest.mark.numbers

# Sums of squares at the start, to the six digits that papers and collections print.
AT_START = {
    "rosenbrock": 24.2,
    "freudenstein_roth": 400.5,
    "powell_badly_scaled": 1.13526,
    "brown_badly_scaled": 9.99998e11,
    "beale": 14.2031,
    "jennrich_sampson": 4171.31,
    "helical_valley": 2500,
    "bard": 41.6817,
    "gaussian": 3.88811e-6,
    "meyer": 1.69361e9,
    "gulf": 12.1107,
    "box": 1031.15,
    "powell_singular": 215,
    "wood": 19192,
    "kowalik_osborne": 5.31317e-3,
    "brown_dennis": 7.92669e6,
    "osborne_1": 0.879026,
    "biggs_exp6": 0.779070,
    "osborne_2": 2.09342,
    "watson_6": 30,
    "watson_9": 30,
    "penalty_1": 148033,
    "penalty_2": 162.653,
    "variably_dimensioned": 2.19855e6,
    "trigonometric": 7.07576e-3,
    "brown_almost_linear": 273.248,
    "chebyquad_8": 0.0386177,
}
# The sums of squares at the minima of which the paper prints as many digits.
AT_MINIMUM = {
    "freudenstein_roth": 48.9842,
    "jennrich_sampson": 124.362,
    "bard": 8.21487e-3,
    "gaussian": 1.12793e-8,
    "meyer": 87.9458,
    "kowalik_osborne": 3.07505e-4,
    "brown_dennis": 85822.2,
    "osborne_1": 5.46489e-5,
    "biggs_exp6": 5.65565e-3,
    "osborne_2": 4.01377e-2,
    "watson_6": 2.28767e-3,
    "watson_9": 1.39976e-6,
    "penalty_1": 7.08765e-5,
    "penalty_2": 2.93660e-4,
    "trigonometric": 2.79506e-5,
    "linear_rank_one": 20 * 19 / (2 * 41),
    "chebyquad_8": 3.51687e-3,
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", AT_START)
def test_values_at_the_starts_are_the_published_ones(name):
    np.testing.assert_allclose(2 * PROBLEMS[name].fn(jnp.asarray(PROBLEMS[name].start)), AT_START[name], rtol=6e-6)


@pytest.mark.parametrize("name", AT_MINIMUM)
def test_minima_are_the_published_ones(name):
    assert min(abs(2 * minimum / AT_MINIMUM[name] - 1) for minimum in PROBLEMS[name].minima) < 3e-6


@every_problem
def test_functions_compute_in_the_dtype_of_the_params(problem):
    x = jnp.asarray(problem.start, jnp.float32)
    assert jax.eval_shape(problem.fn, x) == jax.ShapeDtypeStruct((), jnp.float32)
    if problem.residual is not None:
        assert jax.eval_shape(problem.residual, x) == jax.ShapeDtypeStruct((problem.m,), jnp.float32)


@pytest.mark.usefixtures("x64")
@every_problem
def test_gradients_are_those_of_finite_differences_and_minima_those_of_scipy(problem):
    fn = jax.jit(jax.value_and_grad(problem.fn))
    for solution, minimum in zip(problem.solutions, problem.minima, strict=False):
        value, grad = fn(jnp.asarray(solution))
        np.testing.assert_allclose(value, minimum, rtol=1e-14, atol=1e-20)
        np.testing.assert_allclose(grad, 0, atol=1e-6)

    value, grad = fn(jnp.asarray(problem.start))
    along = np.random.default_rng(0).normal(size=problem.n) * np.maximum(np.abs(problem.start), 0.1)
    ahead, behind = (fn(jnp.asarray(problem.start + h * along))[0] for h in (1e-5, -1e-5))
    rounding = 1e-10 * float(value) + 1e-5 * float(jnp.linalg.norm(grad)) * float(np.linalg.norm(along))
    np.testing.assert_allclose((ahead - behind) / 2e-5, grad @ along, rtol=1e-5, atol=rounding)

    found = minimum_of_scipy(problem, fn)
    reached = [abs(found - minimum) <= 1e-8 * abs(minimum) + 1e-12 for minimum in problem.minima]
    assert any(reached), f"{found} is none of {problem.minima}"


def minimum_of_scipy(problem, fn):
    if problem.residual is None:
        return minimize(fn, problem.start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000}).fun
    both = jax.jit(lambda x: (problem.residual(x), jax.jacfwd(problem.residual)(x)))
    options: dict[str, Any] = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 2000, "x_scale": "jac"}
    options["jac"] = lambda x: both(x)[1]
    return least_squares(lambda x: both(x)[0], problem.start, method="lm", **options).cost
