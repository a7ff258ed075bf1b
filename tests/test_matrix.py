from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, strategies as st

from gdfx import matrix, numerics

pytestmark = pytest.mark.numbers

power_iteration, root, nnls = matrix.power_iteration, matrix.matrix_inverse_pth_root, matrix.nnls
jitted_root = jax.jit(root, static_argnums=1)


def normal(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def positive(seed, n=5, dtype=jnp.float32):
    a = np.random.default_rng(seed).normal(size=(n, n))
    return jnp.asarray(a @ a.T / n + 0.1 * np.eye(n), dtype)


def as_optax_wants():
    return jax.numpy_dtype_promotion("standard")


def close(found, expected, tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found, expected)


def exact_root(a, p, ridge=0.0):
    w, v = np.linalg.eigh(np.asarray(a, np.float64))
    return (v * (w + ridge * w[-1]) ** (-1 / p)) @ v.T


# power_iteration


@given(st.integers(0, 10**6))
def test_power_iteration_agrees_with_optax_and_numpy(seed):
    vector = np.random.default_rng(seed).normal(size=5)
    a = jnp.asarray(positive(seed, dtype=np.float32) + 5 * np.outer(vector, vector), jnp.float32)
    found = power_iteration(a)
    with as_optax_wants():
        close(found, optax.power_iteration(a), 2e-5)
    w, v = np.linalg.eigh(np.asarray(a, np.float64))
    close(found, (w[-1], v[:, -1] * np.sign(v[0, -1] * found[1][0])), 1e-4)
    close(power_iteration(-a)[0], -w[-1], 1e-4)
    close(power_iteration(lambda x: a @ x, v0=jnp.ones(5))[0], w[-1], 1e-4)


def test_power_iteration_of_a_tree_and_its_derivative(x64):
    a, b = positive(0, dtype=jnp.float64), positive(1, 3, jnp.float64)
    start = {"a": jnp.ones(5), "b": jnp.ones(3)}

    def largest(a):
        product = lambda v: {"a": 9 * a @ v["a"], "b": b @ v["b"]}
        return power_iteration(product, v0=start, num_iters=2000, error_tolerance=1e-13)[0]

    value, slope = jax.jit(jax.value_and_grad(largest))(a)
    w, v = np.linalg.eigh(a)
    close((value, slope), (9 * w[-1], 9 * np.outer(v[:, -1], v[:, -1])), 1e-8)
    close(jax.grad(lambda a: power_iteration(a, num_iters=2000)[0])(a), slope / 9, 1e-5)
    close(jax.jvp(largest, (a,), (b[:1, :1] * jnp.eye(5),))[1], 9 * b[0, 0], 1e-8)


def test_power_iteration_at_hard_points():
    for a in (
        jnp.zeros((3, 3)),
        jnp.eye(3),
        jnp.array([[0.0, 1.0], [0.0, 0.0]]),
        jnp.eye(2) * 1e-30,
        jnp.eye(2) * 1e30,
    ):
        value, vector = power_iteration(a)
        np.testing.assert_allclose(value, a.max() if a[0, 1] == 0 else 0, rtol=1e-6)
        np.testing.assert_allclose(jnp.linalg.norm(vector), 1, rtol=1e-6)
        assert np.isfinite(jax.grad(lambda a: power_iteration(a)[0])(a)).all()
    assert np.isnan(power_iteration(jnp.full((2, 2), jnp.nan))[0])


def test_power_iteration_vmap_and_dtypes():
    batch = jnp.stack([positive(s) for s in range(3)])
    looped = jnp.stack([power_iteration(a)[0] for a in batch])
    np.testing.assert_allclose(jax.vmap(lambda a: power_iteration(a)[0])(batch), looped, rtol=1e-5)
    value, vector = power_iteration(batch[0].astype(jnp.bfloat16))
    assert value.dtype == vector.dtype == jnp.float32
    half = power_iteration(lambda v: v * 2, v0=jnp.ones(3, jnp.bfloat16))
    np.testing.assert_allclose(half[0], 2, rtol=1e-2)
    with jax.enable_x64(True):  # optax mixes widths here
        assert power_iteration(batch[0].astype(jnp.float32))[0].dtype == jnp.float32


def test_power_iteration_errors():
    with pytest.raises(ValueError, match=r"matrix must be square and not empty, got shape \(2, 3\)"):
        power_iteration(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"two axes, got shape \(2, 3, 3\): map over a batch"):
        power_iteration(jnp.ones((2, 3, 3)))
    with pytest.raises(TypeError, match="matrix must be floating point"):
        power_iteration(jnp.eye(3, dtype=int))
    with pytest.raises(ValueError, match="v0 and a column of matrix must have the same shape"):
        power_iteration(jnp.eye(3), v0=jnp.ones(2))
    with pytest.raises(TypeError, match="v0 is missing"):
        power_iteration(lambda v: v)
    with pytest.raises(ValueError, match=r"matrix\(v0\) and v0 must have the same shape"):
        power_iteration(lambda v: v[:2], v0=jnp.ones(3))
    with pytest.raises(ValueError, match="num_iters must be at least 1"):
        power_iteration(jnp.eye(3), num_iters=0)


# matrix_inverse_pth_root


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7, 8])
def test_root_agrees_with_numpy_and_optax(p):
    for seed in range(3):
        a = positive(seed)
        found, error = jitted_root(a, p)
        np.testing.assert_allclose(found, exact_root(a, p, 1e-6), rtol=1e-4, atol=1e-4)
        assert error < 1e-5
        if p in (1, 2, 4, 8):  # of others optax takes another power
            with as_optax_wants():
                np.testing.assert_allclose(found, optax.matrix_inverse_pth_root(a, p)[0], rtol=1e-4, atol=1e-4)


def test_root_in_float64(x64):
    a = positive(0, dtype=jnp.float64)
    found, error = root(a, 4, ridge_epsilon=0.0, error_tolerance=1e-12)
    assert found.dtype == error.dtype == jnp.float64
    np.testing.assert_allclose(found, exact_root(a, 4), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 4])
def test_root_at_hard_points(p):
    hilbert = 1 / (np.arange(8)[:, None] + np.arange(8) + 1.0)
    for a in (np.zeros((3, 3)), np.zeros((1, 1)), np.ones((3, 3)), hilbert, np.diag([1, 1e-20]), -np.eye(2)):
        for ridge in (1e-6, 0.0):
            for iterations in (100, 2000):
                found, error = jitted_root(jnp.asarray(a, jnp.float32), p, iterations, ridge)
                assert np.isfinite(found).all()
                assert np.isfinite(error)
    ones = root(jnp.ones((3, 3)), p)  # optax gives up after one step of p = 2
    assert ones[1] < 1e-5
    for scale in (1e-12, 1e12, 1e30):
        np.testing.assert_allclose(root(jnp.eye(2) * scale, p)[0], np.eye(2) * scale ** (-1 / p), rtol=1e-4)


def test_root_vmap_and_half_precision():
    batch = jnp.stack([positive(0), jnp.zeros((5, 5)), jnp.ones((5, 5))])
    looped = jnp.stack([root(a, 4)[0] for a in batch])
    np.testing.assert_allclose(jax.vmap(lambda a: root(a, 4)[0])(batch), looped, rtol=1e-3)
    assert root(batch[0].astype(jnp.float16), 2)[0].dtype == jnp.float32


def test_root_errors():
    with pytest.raises(ValueError, match=r"matrix must be square and not empty, got shape \(2, 3\)"):
        root(jnp.ones((2, 3)), 2)
    with pytest.raises(ValueError, match="p must be at least 1, got 0"):
        root(jnp.eye(2), 0)
    for p in (2.0, True):
        with pytest.raises(TypeError, match="p must be an int"):
            root(jnp.eye(2), p)
    with pytest.raises(ValueError, match="ridge_epsilon must be at least 0"):
        root(jnp.eye(2), 2, ridge_epsilon=-1.0)


# nnls


@given(st.integers(0, 10**6))
def test_nnls_agrees_with_scipy(seed):
    a, b = normal(seed, (8, 4)), normal(seed + 1, (8, 3))
    found = jax.jit(nnls, static_argnums=2)(a, b, 1000)
    for k in range(3):
        np.testing.assert_allclose(found[:, k], scipy.optimize.nnls(np.asarray(a), np.asarray(b[:, k]))[0], atol=1e-3)


def test_nnls_agrees_with_optax_in_value_and_gradient(x64):
    a, b, cotangent = (normal(s, shape, jnp.float64) for s, shape in enumerate([(9, 4), (9, 2), (4, 2)]))

    def both(f, a, b):
        value, back = jax.vjp(lambda a, b: f(a, b, 4000), a, b)
        return value, back(cotangent)

    with as_optax_wants():
        expected = jax.jit(both, static_argnums=0)(optax.nnls, a, b)
    close(jax.jit(both, static_argnums=0)(nnls, a, b), expected, 1e-11)
    close(nnls(a, b, 400, 4, jnp.linalg.norm(a, 2) ** 2), expected[0], 1e-11)
    close(nnls(a, b[:, 1], 400), expected[0][:, 1], 1e-11)


def test_nnls_at_hard_points():
    for a in (jnp.zeros((3, 2)), jnp.ones((3, 2)), jnp.ones((3, 2)) * 1e15, jnp.ones((3, 0)), jnp.ones((0, 2))):
        b = jnp.ones(a.shape[0])
        x = nnls(a, b, 20)
        assert x.shape == a.shape[1:]
        assert np.isfinite(x).all()
        for slope in jax.grad(lambda a, b: nnls(a, b, 20).sum(), (0, 1))(a, b):
            assert np.isfinite(slope).all()
    assert nnls(jnp.ones((3, 2), jnp.bfloat16), jnp.ones(3), 9).dtype == jnp.float32


def test_nnls_vmap_is_a_loop():
    a, b = normal(0, (4, 6, 3)), normal(1, (4, 6))
    looped = jnp.stack([nnls(*pair, 50) for pair in zip(a, b, strict=True)])
    np.testing.assert_allclose(jax.vmap(lambda a, b: nnls(a, b, 50))(a, b), looped, rtol=1e-4, atol=1e-5)


def test_nnls_errors():
    a = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"b must have shape \(3,\) or \(3, K\).*got \(2,\)"):
        nnls(a, jnp.ones(2), 5)
    with pytest.raises(ValueError, match="A must have two axes"):
        nnls(jnp.ones(3), jnp.ones(3), 5)
    with pytest.raises(ValueError, match="iters must be at least 0"):
        nnls(a, jnp.ones(3), -1)
    with pytest.raises(TypeError, match="iters must be an int"):
        nnls(a, jnp.ones(3), 5.0)
    with pytest.raises(ValueError, match="L must be finite"):
        nnls(a, jnp.ones(3), 5, L=-1.0)


# numerics


@pytest.mark.parametrize("ord", [None, 1, 2, 3, np.inf])
@given(st.integers(0, 10**6))
def test_safe_norm_agrees_with_optax(x64, ord, seed):
    x, cotangent = normal(seed, (4, 3), jnp.float64), normal(seed + 1, (4, 1), jnp.float64)
    for min_norm in (0.0, 1.5):

        def both(f, x, m=min_norm):
            value, back = jax.vjp(lambda x: f(x, m, ord, 1, True), x)
            return value, back(cotangent)[0]

        with as_optax_wants():
            expected = both(optax.safe_norm, x)
        close(both(numerics.safe_norm, x), expected, 1e-12)


def test_safe_norm_at_zero_and_of_other_shapes():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    for min_norm in (0.0, 1e-3):
        f = lambda x, m=min_norm: numerics.safe_norm(x, m, axis=-1)
        np.testing.assert_allclose(f(x), [min_norm, 5])
        np.testing.assert_allclose(jax.grad(lambda x, f=f: f(x).sum())(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    for ord in (None, "fro", "nuc", 2, 1, np.inf):
        value, slope = jax.value_and_grad(lambda x, o=ord: numerics.safe_norm(x, 0.1, o))(jnp.zeros((2, 2)))
        assert value == jnp.float32(0.1)
        np.testing.assert_array_equal(slope, 0)
    assert numerics.safe_norm(jnp.ones((2, 3, 4)), 0.0).shape == ()
    assert numerics.safe_norm(jnp.ones((2, 3, 4)), 0.0, axis=(0, 2)).shape == (3,)
    assert numerics.safe_norm(jnp.zeros(0), 2.0) == 2
    np.testing.assert_allclose(numerics.safe_norm(jnp.array([3 + 4j, 0]), 0.0), 5)
    np.testing.assert_allclose(numerics.safe_norm(jnp.full(4, 3e4, jnp.float16), 0.0), 6e4, rtol=1e-3)
    np.testing.assert_allclose(jax.vmap(lambda x: numerics.safe_norm(x, 0.5))(x), [0.5, 5])


@given(st.integers(0, 10**6))
def test_safe_root_mean_squares_agrees_with_optax(x64, seed):
    x = normal(seed, (4, 3), jnp.float64)
    for min_rms in (0.0, 5.0):
        with as_optax_wants():
            expected = jax.value_and_grad(optax.safe_root_mean_squares)(x, min_rms)
        close(jax.value_and_grad(numerics.safe_root_mean_squares)(x, min_rms), expected, 1e-12)


def test_safe_root_mean_squares_at_zero():
    for min_rms in (0.0, 1e-3):
        value, slope = jax.value_and_grad(numerics.safe_root_mean_squares)(jnp.zeros(3), min_rms)
        assert value == jnp.float32(min_rms)
        np.testing.assert_array_equal(slope, 0)
    assert numerics.safe_root_mean_squares(jnp.zeros(0), 1.0) == 1
    np.testing.assert_allclose(numerics.safe_root_mean_squares(jnp.full(2, 6e4, jnp.float16), 0.0), 6e4, rtol=1e-3)
    np.testing.assert_allclose(numerics.safe_root_mean_squares(jnp.array([3 + 4j]), 0.0), 5)


def test_safe_increment():
    for dtype in (jnp.int8, jnp.uint8, jnp.int32, jnp.uint32):
        largest = jnp.iinfo(dtype).max
        found = jax.jit(numerics.safe_increment)(jnp.array([0, largest - 1, largest], dtype))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, [1, largest, largest])
    found = numerics.safe_increment(jnp.array([0.5, jnp.finfo(jnp.float32).max, jnp.inf, jnp.nan]))
    np.testing.assert_array_equal(found, np.array([1.5, jnp.finfo(jnp.float32).max, np.inf, np.nan], np.float32))
    assert numerics.safe_increment(jnp.ones((), jnp.bfloat16)).dtype == jnp.bfloat16
    for count in (True, 1j):
        with pytest.raises(TypeError, match="count must be"):
            numerics.safe_increment(count)


def test_abs_sq():
    np.testing.assert_allclose(numerics.abs_sq(jnp.array([3 + 4j, -2j])), [25, 4])
    np.testing.assert_allclose(numerics.abs_sq(jnp.array([-3.0, 0.0])), [9, 0])
    z = jnp.array([3 + 4j, 0])
    square = lambda f: jax.grad(lambda z: f(z).sum())(z)
    np.testing.assert_allclose(square(numerics.abs_sq), square(optax._src.numerics.abs_sq))


def test_scale_gradient():
    x = {"a": jnp.array([1.0, jnp.inf]), "b": jnp.ones((), jnp.bfloat16), "n": jnp.arange(2)}
    jax.tree.map(np.testing.assert_array_equal, numerics.scale_gradient(x, -2.0), x)
    f = lambda y, s: (numerics.scale_gradient(y, s) ** 2).sum()
    for s in (1.0, 0.0, -2.0):
        slope = jax.jit(jax.grad(f))(jnp.array([1.0, 3.0]), s)
        np.testing.assert_array_equal(slope, s * np.array([2.0, 6.0]))
        np.testing.assert_array_equal(jax.jvp(lambda y, s=s: f(y, s), (jnp.ones(2),), (jnp.ones(2),))[1], 4 * s)
        np.testing.assert_array_equal(
            slope, jax.grad(lambda y, s=s: (optax.scale_gradient(y, s) ** 2).sum())(x["a"].at[1].set(3.0))
        )
    assert jax.grad(f, 1)(jnp.ones(2), 3.0) == 0
    assert jax.grad(lambda b: numerics.scale_gradient(b, 0.5))(x["b"]).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="scale must be finite"):
        numerics.scale_gradient(x, np.inf)


def test_multi_normal():
    loc, log_scale, x = normal(0, (2, 3)), normal(1, (2, 3)), normal(2, (5, 2, 3))
    ours = numerics.multi_normal(loc, log_scale)
    expected = scipy.stats.norm.logpdf(x, loc, np.exp(log_scale)).sum((1, 2))
    np.testing.assert_allclose(ours.log_prob(x), expected, rtol=1e-5)
    key = jax.random.key(0)
    samples = ours.sample((7,), key)
    with as_optax_wants(), jax.numpy_rank_promotion("allow"):
        theirs = optax.multi_normal(loc, log_scale)
        np.testing.assert_allclose(samples, theirs.sample((7,), key), rtol=1e-6)
        np.testing.assert_allclose(ours.log_prob(x), theirs.log_prob(x), rtol=1e-5)
    many = numerics.multi_normal(jnp.array([1.0, 2.0]), jnp.float32(-1.0)).sample((20000,), key)
    np.testing.assert_allclose(many.mean(0), [1, 2], atol=0.02)
    np.testing.assert_allclose(many.std(0), np.exp(-1.0), atol=0.01)
    assert [p.shape for p in ours.params] == [(2, 3), (2, 3)]
    with pytest.raises(ValueError, match="loc and log_scale must have the same shape"):
        numerics.multi_normal(loc, log_scale[0])
    with pytest.raises(ValueError, match="last axes of x and loc"):
        ours.log_prob(x[..., 0])


def test_errors_of_safe_functions():
    for f in (numerics.safe_norm, numerics.safe_root_mean_squares):
        with pytest.raises(ValueError, match="must be at least 0, got -1"):
            f(jnp.ones(2), -1.0)
        with pytest.raises(TypeError, match="x must be floating point"):
            f(jnp.arange(2), 0.0)
        with pytest.raises(TypeError, match="must be a real scalar"):
            f(jnp.ones(2), jnp.ones(2))
