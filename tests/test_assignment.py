import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from hypothesis import given, strategies as st

from gdfx.assignment import hungarian_algorithm

pytestmark = pytest.mark.numbers

solve = jax.jit(hungarian_algorithm)
SHAPES = [(1, 1), (1, 5), (6, 6), (4, 7), (7, 4)]


def pairs(costs, f=solve):
    """The pairs found, which are checked to be pairs."""
    i, j = map(np.asarray, f(costs))
    n, m = costs.shape
    assert i.shape == j.shape == (min(n, m),)
    assert np.issubdtype(i.dtype, np.integer)
    assert np.issubdtype(j.dtype, np.integer)
    assert (np.diff(i) > 0).all()
    assert len(set(j)) == len(j)
    assert set(i) <= set(range(n))
    assert set(j) <= set(range(m))
    return i, j


def least(costs):
    return costs[scipy.optimize.linear_sum_assignment(costs)].sum()


@pytest.mark.parametrize("shape", SHAPES)
@given(st.integers(0, 10**6))
def test_costs_are_those_of_scipy(shape, seed):
    rng = np.random.default_rng(seed)
    for costs in (
        rng.normal(size=shape),
        rng.integers(0, 3, shape).astype(float),  # many ties
        rng.exponential(size=shape) * 10.0 ** rng.integers(-20, 20),
        np.outer(np.arange(shape[0]), np.arange(shape[1])) * 1.0,
        np.full(shape, -2.5),
    ):
        costs = costs.astype(np.float32)
        np.testing.assert_allclose(costs[pairs(costs)].sum(), least(costs), rtol=1e-5, atol=1e-6)


@given(st.integers(0, 10**6))
def test_costs_are_those_of_optax(seed):
    costs = jnp.asarray(np.random.default_rng(seed).normal(size=(5, 8)), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for f in (optax.assignment.hungarian_algorithm, optax.assignment.base_hungarian_algorithm):
            np.testing.assert_allclose(costs[pairs(costs)].sum(), costs[jax.jit(f)(costs)].sum(), rtol=1e-5)


def test_large_and_double_precision(x64):
    costs = np.random.default_rng(0).normal(size=(60, 90))
    i, j = pairs(costs)
    assert (i == scipy.optimize.linear_sum_assignment(costs)[0]).all()
    assert (j == scipy.optimize.linear_sum_assignment(costs)[1]).all()
    integers = 10**15 + np.random.default_rng(0).integers(0, 9, (6, 6))
    assert integers[pairs(integers)].sum() == least(integers)


@pytest.mark.parametrize("shape", SHAPES)
@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 1.0]))
def test_forbidden_pairs(shape, seed, share):
    rng = np.random.default_rng(seed)
    allowed = rng.normal(size=shape).astype(np.float32)
    forbidden = rng.random(shape) < share
    fewest = least(forbidden.astype(float))
    for mark in (np.inf, np.nan, -np.inf):
        costs = np.where(forbidden, np.float32(mark), allowed)
        found = pairs(costs)
        if mark == -np.inf:  # wanted rather than forbidden
            assert forbidden[found].sum() == -least(-forbidden.astype(float))
            continue
        assert forbidden[found].sum() == fewest
        if fewest == 0:
            instead = np.where(forbidden, np.inf, allowed)
            np.testing.assert_allclose(costs[found].sum(), least(instead), rtol=1e-5, atol=1e-5)


def test_extreme_costs():
    for costs in (
        [[3e38, -3e38], [3e38, 3e38]],
        [[1e-30, 2e-30], [1e-30, 3e-30]],
        [[np.inf, np.nan], [np.nan, np.inf]],
    ):
        costs = np.array(costs, np.float32)
        assert (pairs(costs)[1] == [1, 0]).all() or not np.isfinite(costs).any()


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_empty(shape):
    pairs(jnp.zeros(shape))
    i, j = jax.vmap(hungarian_algorithm)(jnp.zeros((2, *shape)))
    assert i.shape == j.shape == (2, 0)


@pytest.mark.parametrize("dtype", [bool, jnp.int8, jnp.uint32, jnp.bfloat16, jnp.float16])
def test_dtypes(dtype):
    costs = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 5)), dtype)
    wide = np.asarray(costs, np.float64)
    assert wide[pairs(costs)].sum() == least(wide)


@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (6, 3)])
def test_vmap_is_a_loop(shape):
    rng = np.random.default_rng(0)
    costs = jnp.asarray(rng.integers(0, 4, (8, *shape)), jnp.float32)
    # One matrix is done at once, another needs many searches.
    costs = costs.at[0].set(1 - jnp.eye(*shape)).at[1].set(jnp.nan)
    mapped = jax.vmap(hungarian_algorithm)(costs)
    looped = [hungarian_algorithm(c) for c in costs]
    for k in range(2):
        np.testing.assert_array_equal(mapped[k], jnp.stack([pair[k] for pair in looped]))


def test_gradient_of_the_cost():
    costs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    slope = jax.grad(lambda c: c[hungarian_algorithm(c)].sum())(costs)
    np.testing.assert_array_equal(slope, np.zeros((3, 4), np.float32) + jnp.zeros((3, 4)).at[solve(costs)].set(1))


def test_errors():
    with pytest.raises(ValueError, match=r"two axes, got shape \(2, 3, 3\): map over a batch with jax.vmap"):
        hungarian_algorithm(jnp.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"two axes, got shape \(3,\)"):
        hungarian_algorithm(jnp.zeros(3))
    with pytest.raises(TypeError, match="cost_matrix must be real"):
        hungarian_algorithm(jnp.zeros((2, 2), complex))
