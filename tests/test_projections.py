from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

from gdfx import projections

pytestmark = pytest.mark.numbers

P = projections
SCALED = [P.hypercube, P.linf_ball, P.l1_ball, P.l1_sphere, P.l2_ball, P.l2_sphere, P.simplex]
ALONG = [P.hyperplane, P.halfspace]


def tree(seed, dtype=jnp.float32, scale=1.0):
    draw = np.random.default_rng(seed).normal
    return {"w": jnp.asarray(scale * draw(size=(2, 3)), dtype), "b": [jnp.asarray(scale * draw(size=4), dtype)]}


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def theirs(f):
    name = "projection_" + f.__name__
    return getattr(optax.projections, name)


def value_and_slope(f, cotangent, *args):
    value, back = jax.vjp(f, *args)
    return value, back(cotangent)


run = jax.jit(value_and_slope, static_argnums=0)


def same(f, tolerance, x, *args):
    cotangent = tree(99, x["w"].dtype)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = run(theirs(f), cotangent, x, *args)
    found = run(f, cotangent, x, *args)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found, expected)
    assert jax.tree.map(jnp.result_type, found[0]) == jax.tree.map(jnp.result_type, x)


def check_against_optax(seed, dtype, tolerance):
    x, a = tree(seed, dtype), tree(seed + 1, dtype)
    scalar = partial(jnp.asarray, dtype=dtype)
    same(P.non_negative, tolerance, x)
    same(P.vector, tolerance, x, a)
    same(P.box, tolerance, x, jax.tree.map(lambda y: y - 1, a), jax.tree.map(lambda y: y + 0.5, a))
    for f in SCALED:
        for scale in (0.7, 30.0):
            full = jax.tree.map(lambda y, s=scale: jnp.full_like(y, s), x)
            if f is not P.hypercube:
                same(f, tolerance, x, scalar(scale))
            else:
                same(P.box, tolerance, x, jax.tree.map(jnp.zeros_like, x), full)
    for f in ALONG:
        for b in (-3.0, 8.0):
            same(f, tolerance, x, a, scalar(b))


@given(st.integers(0, 10**6))
def test_float32_agrees_with_optax(seed):
    check_against_optax(seed, jnp.float32, 3e-5)


@given(st.integers(0, 10**6))
def test_float64_agrees_with_optax(x64, seed):
    check_against_optax(seed, jnp.float64, 1e-12)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 2.0, 50.0]))
def test_members_of_the_set_stay_and_no_sampled_member_is_nearer(seed, scale):
    x, rng = tree(seed), np.random.default_rng(seed)
    v = flat(x)
    inside = {
        P.hypercube: lambda y: (y >= -1e-5).all() and (y <= scale + 1e-5).all(),
        P.linf_ball: lambda y: abs(y).max() <= scale + 1e-5,
        P.l1_ball: lambda y: abs(y).sum() <= scale + 1e-5 * (1 + scale),
        P.l1_sphere: lambda y: abs(abs(y).sum() - scale) <= 1e-5 * (1 + scale),
        P.l2_ball: lambda y: np.linalg.norm(y) <= scale + 1e-5 * (1 + scale),
        P.l2_sphere: lambda y: abs(np.linalg.norm(y) - scale) <= 1e-5 * (1 + scale),
        P.simplex: lambda y: (y >= 0).all() and abs(y.sum() - scale) <= 1e-5 * (1 + scale),
    }
    for f, holds in inside.items():
        once = f(x, scale)
        assert holds(flat(once)), f.__name__
        np.testing.assert_allclose(flat(f(once, scale)), flat(once), atol=1e-5 * (1 + scale))
        distance = np.linalg.norm(flat(once) - v)
        for other in (tree(int(s), scale=scale) for s in rng.integers(0, 10**6, 5)):
            assert distance <= np.linalg.norm(flat(f(other, scale)) - v) + 1e-4 * (1 + scale)


def finite(f, *args):
    value, slope = value_and_slope(f, jax.tree.map(jnp.ones_like, f(*args)), *args)
    assert all(np.isfinite(y).all() for y in jax.tree.leaves((value, slope)))
    return value, slope


@pytest.mark.parametrize("f", SCALED, ids=lambda f: f.__name__)
def test_hard_points_are_finite_in_value_and_gradient(f):
    zero, one = jnp.float32(0), jnp.float32(1)
    np.testing.assert_array_equal(flat(finite(f, tree(0), zero)[0]), 0)
    for scale in (zero, one):
        finite(f, jnp.zeros(4), scale)
        finite(f, jnp.ones(4), scale)
        finite(f, jnp.array([1.0, 1.0, 0.0, -1.0]), scale)
        finite(f, jnp.full(4, 1e-30), scale)
        finite(f, jnp.full(4, 1e30), scale)
    assert np.isnan(np.asarray(f(jnp.array([1.0, jnp.nan]), 0.5))).any()


def test_points_as_near_as_others():
    np.testing.assert_allclose(P.l2_sphere(jnp.zeros(4), 3.0), np.full(4, 1.5))
    np.testing.assert_allclose(P.l1_sphere(jnp.zeros(4), 2.0), np.full(4, 0.5))
    np.testing.assert_allclose(P.l1_sphere(jnp.array([0.5, 0.0]), 2.0), [1.25, 0.75])
    np.testing.assert_allclose(P.l1_sphere(jnp.array([-0.5, 0.0]), 2.0), [-1.25, 0.75])


def test_magnitudes_whose_squares_overflow_or_vanish():
    for size in (1e-30, 1e30):
        x = size * jnp.array([3.0, 4.0])
        np.testing.assert_allclose(P.l2_sphere(x, 5.0), [3, 4], rtol=1e-6)
        np.testing.assert_allclose(P.l2_ball(x, 0.5 * size) / size, [0.3, 0.4], rtol=1e-6)
        np.testing.assert_allclose(P.vector(size * jnp.array([1.0, 0.0]), x) / size, [0.36, 0.48], rtol=1e-6)
        np.testing.assert_allclose(P.hyperplane(jnp.zeros(2), x, size) * 5, [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(P.simplex(jnp.array([1e8, 1e8 + 8, 1e8 - 8])), [0, 1, 0])


@pytest.mark.parametrize("f", [P.vector, *ALONG], ids=lambda f: f.__name__)
def test_a_of_zero(f):
    x, a = jnp.array([1.0, -2.0]), jnp.zeros(2)
    for b in ((),) if f is P.vector else ((jnp.float32(0),), (jnp.float32(-1),)):
        value, _ = finite(f, x, a, *b)
        np.testing.assert_array_equal(value, 0 * x if f is P.vector else x)


def test_complex_leaves_of_l2_sets():
    x = {"z": jnp.array([3 + 4j, 0]), "r": jnp.array([12.0])}
    np.testing.assert_allclose(P.l2_ball(x, 6.5)["z"], [1.5 + 2j, 0], rtol=1e-6)
    np.testing.assert_allclose(P.l2_sphere(x, 26.0)["r"], [24], rtol=1e-6)
    np.testing.assert_array_equal(P.l2_ball(x, 14.0)["z"], x["z"])


def test_scalar_bounds_and_bounds_of_one_leaf():
    x = {"a": jnp.array([-2.0, 0.5]), "b": 3.0}
    np.testing.assert_array_equal(flat(P.box(x, -1, 1.0)), [-1, 0.5, 1])
    np.testing.assert_array_equal(flat(P.box(x, -np.inf, {"a": np.array([-3.0, 2.0]), "b": 1})), [-3, 0.5, 1])
    np.testing.assert_array_equal(flat(P.hypercube(x)), [0, 0.5, 1])
    np.testing.assert_array_equal(flat(P.hypercube(x, {"a": 0.25, "b": 9})), [0, 0.25, 3])


def test_no_elements():
    for empty in ({}, {"a": jnp.zeros((0, 2))}):
        for f in (P.non_negative, P.l1_ball, P.l2_ball, P.linf_ball, P.hypercube):
            assert jax.tree.structure(f(empty)) == jax.tree.structure(empty)
        for f in (P.simplex, P.l1_sphere, P.l2_sphere):
            with pytest.raises(ValueError, match="no elements"):
                f(empty)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x, a = tree(0, dtype), tree(1, dtype)
    wide = lambda t: jax.tree.map(lambda y: y.astype(jnp.float32), t)
    calls = [(f, (x,), (0.3,)) for f in SCALED] + [(f, (x, a), (0.3,)) for f in ALONG]
    for f, trees, rest in [*calls, (P.vector, (x, a), ()), (P.box, (x,), (-0.1, 0.2))]:
        found, expected = f(*trees, *rest), f(*map(wide, trees), *rest)
        jax.tree.map(lambda y, z: np.testing.assert_array_equal(y, z.astype(dtype)), found, expected)
        assert {y.dtype for y in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(P.l2_ball(jnp.full(4, 6e4, jnp.float16), 1.0), np.full(4, 0.5))


def test_leaves_of_several_dtypes(x64):
    x = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float64), "c": jnp.ones((), jnp.bfloat16)}
    for f in SCALED:
        assert jax.tree.map(jnp.result_type, f(x, 0.5)) == jax.tree.map(jnp.result_type, x)
    assert jax.tree.map(jnp.result_type, P.halfspace(x, x, 0.5)) == jax.tree.map(jnp.result_type, x)


def test_vmap_is_a_loop():
    x, a = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)
    scales = jnp.array([0.0, 0.1, 1.0, 3.0, 90.0])
    for f in (*SCALED, *(partial(f, a=a[0]) for f in ALONG)):
        call = (lambda x, s, f=f: f(x, b=s)) if isinstance(f, partial) else f
        looped = jnp.stack([call(*pair) for pair in zip(x, scales, strict=True)])
        np.testing.assert_allclose(jax.vmap(call)(x, scales), looped, rtol=1e-5, atol=1e-6)


def test_errors():
    x = {"w": jnp.ones((3, 1))}
    for f in SCALED:
        for scale in (-1.0, np.nan):
            with pytest.raises(ValueError, match=r"scale must be|lower.* must be at most"):
                f(x, scale)
        with pytest.raises(TypeError, match=r"tree\['w'\] must be floating point, got int32"):
            f({"w": jnp.arange(3)})
    with pytest.raises(TypeError, match=r"tree\['w'\] must be real"):
        P.simplex({"w": jnp.ones(3, complex)})
    with pytest.raises(TypeError, match="scale must be a real scalar"):
        P.l2_ball(x, jnp.ones(3))
    for f in (P.vector, partial(P.hyperplane, b=1.0), partial(P.halfspace, b=1.0)):
        with pytest.raises(ValueError, match=r"a\['w'\] and x\['w'\] must have the same shape .*squeeze"):
            f(x, {"w": jnp.ones(3)})
        with pytest.raises(ValueError, match="a must have the structure of x"):
            f(x, jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="b must be finite"):
        P.hyperplane(x, x, np.inf)
    with pytest.raises(ValueError, match=r"lower\['w'\] must be at most upper\['w'\], got 2 and 1"):
        P.box(x, 2, 1)
    with pytest.raises(ValueError, match=r"upper\['w'\] and the leaf of tree must have the same shape"):
        P.box(x, 0, {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="lower must be a scalar or have the structure of tree"):
        P.box(x, {"v": 0}, 1)
    with pytest.raises(TypeError, match="upper"):
        P.box(x, 0, {"w": jnp.ones((3, 1), bool)})
