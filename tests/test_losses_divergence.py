from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.spatial
import scipy.special
from compiled import Compiled, array, grad, jit, value_and_grad
from hypothesis import given, settings, strategies as st

from gdfx import losses

pytestmark = pytest.mark.numbers

losses = Compiled(losses)

KL = [losses.kl_divergence, losses.kl_divergence_with_log_targets, losses.generalized_kl_divergence]
COSINE = [losses.cosine_similarity, losses.cosine_distance]
few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)
widths = st.sampled_from([np.float32, np.float64])
inf = jnp.inf


def optax_of(f):
    return getattr(optax.losses, f.__name__)


@cache
def lenient(f):
    """A function that may promote dtypes and ranks."""

    def call(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return f(*args, **kwargs)

    return call


@partial(jit, static_argnums=0, static_argnames="axis")
def value_and_vjp(f, argument, *rest, **kwargs):
    value, back = jax.vjp(lambda a: f(a, *rest, **kwargs), argument)
    # The cotangent keeps elements apart.
    cotangent = array(np.random.default_rng(9).normal(size=value.shape), value.dtype)
    return value, *back(cotangent)


def same(ours, theirs, *args, **kwargs):
    """Values and gradients with respect to the first argument agree."""
    value, slope = value_and_vjp(ours, *args, **kwargs)
    expected, expected_slope = value_and_vjp(lenient(theirs), *args, **kwargs)
    assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
    tolerance = 1e-12 if value.dtype == np.float64 else 1e-5
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(slope, expected_slope, rtol=tolerance, atol=tolerance)


@cache
def swapped(f):
    """The function of its first two arguments in the other order."""
    return lambda a, b, **kwargs: f(b, a, **kwargs)


@partial(jit, static_argnums=0)
def slopes(f, *args, **kwargs):
    """The gradients with respect to the first two arguments."""
    return grad(lambda *args: f(*args, **kwargs).sum(), (0, 1))(*args)


def probabilities(rng, shape, axis=-1):
    return scipy.special.softmax(2 * rng.normal(size=shape), axis)


@pytest.mark.parametrize("f", [*KL, *COSINE, losses.poly_loss_cross_entropy])
@pytest.mark.parametrize("axis", [-2, (0, -1), None, ()])
def test_several_axes_are_like_one(f, axis):
    rng = np.random.default_rng(0)
    a, b, keep = rng.normal(size=(2, 3, 4)), rng.random((2, 3, 4)), array(rng.random((2, 3, 4)) < 0.7)
    axes = tuple(range(3)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    rest = [n for i, n in enumerate(a.shape) if i not in {i % 3 for i in axes}]

    def last(x):
        return np.moveaxis(np.asarray(x), axes, range(-len(axes), 0)).reshape(*rest, -1)

    value, one = jit(f, static_argnames="axis"), jit(f)
    args = array(a), array(b)
    np.testing.assert_allclose(value(*args, axis=axis), one(*map(last, args)), rtol=1e-5)
    expected = one(*map(last, args), where=last(keep))
    np.testing.assert_allclose(value(*args, axis=axis, where=keep), expected, rtol=1e-5, atol=1e-6)


@few
@given(seeds, widths, st.sampled_from([0.7, 1.0]))
def test_divergences_agree_with_optax(seed, dtype, kept):
    rng = np.random.default_rng(seed)
    x, y, keep = rng.normal(size=(3, 4)), probabilities(rng, (3, 4)), rng.random((3, 4)) < kept
    with jax.enable_x64(dtype == np.float64):
        log_q, t = array(scipy.special.log_softmax(x, -1), dtype), array(y, dtype)
        axis, where = -1, array(keep)
        for f in KL:
            second = np.log(t) if f is losses.kl_divergence_with_log_targets else t
            same(f, optax_of(f), log_q, second, axis=axis, where=where)
            same(swapped(f), swapped(optax_of(f)), second, log_q, axis=axis, where=where)


def test_divergences_agree_with_scipy():
    rng = np.random.default_rng(0)
    q, t = probabilities(rng, (5, 4)), probabilities(rng, (5, 4))
    t[0, 1] = t[3, 2] = 0
    with jax.enable_x64(True):
        log_q = np.log(array(q))
        np.testing.assert_allclose(
            losses.kl_divergence(log_q, array(t)), scipy.special.rel_entr(t, q).sum(-1), rtol=1e-12
        )
        expected = scipy.special.kl_div(3 * t, q).sum(-1)
        generalized = losses.generalized_kl_divergence(log_q, array(3 * t))
        np.testing.assert_allclose(generalized, expected, rtol=1e-12)


def test_divergences_at_zero_probabilities():
    log_q = jnp.log(array([0.5, 0.5, 0.0, 0.0, 1e-30]))
    t = array([0.25, 0.0, 0.0, 0.0, 0.75])
    log_t = array([np.log(0.25), -inf, -inf, -1e30, np.log(0.75)])
    kl = 0.25 * np.log(0.5) + 0.75 * (np.log(0.75) - np.log(1e-30))
    for f, second in zip(KL, (t, log_t, t), strict=True):
        generalized = float(f is losses.generalized_kl_divergence)
        value, (slope_q, slope_t) = f(log_q, second), slopes(f, log_q, second)
        np.testing.assert_allclose(value, kl + (1e-30 if generalized else 0), rtol=1e-5)
        np.testing.assert_allclose(slope_q, jnp.exp(log_q) * generalized - t, rtol=1e-5)
        np.testing.assert_array_equal(slope_t[1:4], 0)
        assert np.isfinite(slope_t).all()
    # What is predicted to be impossible but happens costs infinity; the slope is still that of the formula.
    for f, second in zip(KL, ([1.0, 0.0], [0.0, -inf], [1.0, 0.0]), strict=True):
        value, slope = value_and_grad(f)(array([-inf, 0.0]), array(second))
        assert value == inf
        assert slope.tolist() == [-1, 1 if f is losses.generalized_kl_divergence else 0]


def test_divergence_of_subnormal_targets():
    for t in (1e-38, 1e-40, 1e-45):
        t = array([t, 1.0])
        for log_q in (np.zeros(2), array([-100.0, 0.0])):
            np.testing.assert_allclose(losses.kl_divergence(log_q, t), 0, atol=1e-35)
            assert np.isfinite(slopes(losses.kl_divergence, log_q, t)).all()


@pytest.mark.parametrize("f", KL)
def test_masks_of_divergences(f):
    rng = np.random.default_rng(0)
    log_q, t = np.log(probabilities(rng, (3, 4))), probabilities(rng, (3, 4))
    second = np.log(t) if f is losses.kl_divergence_with_log_targets else t
    keep = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
    for junk in (np.nan, inf, -inf):
        first, masked = (array(np.where(keep, x, junk), jnp.float32) for x in (log_q, second))
        value = jit(f)(first, masked, where=array(keep))
        expected = [float(f(array(log_q[i, k]), array(second[i, k]))) for i, k in enumerate(keep)]
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        for slope in slopes(f, first, masked, where=array(keep)):
            assert np.isfinite(slope).all()
            np.testing.assert_array_equal(slope[~keep], 0)
    rows = array([True, False, True])
    args = array(log_q), array(second)
    np.testing.assert_array_equal(f(*args, where=rows), np.where(rows, f(*args), 0))


@pytest.mark.parametrize("f", [*KL, *COSINE, losses.poly_loss_cross_entropy])
def test_axes_and_masks_that_do_not_fit(f):
    x = np.full((4, 3), 0.5)
    first = "predictions" if f in COSINE else "logits" if f not in KL else "log_predictions"
    second = (
        "labels" if first == "logits" else "log_targets" if f is losses.kl_divergence_with_log_targets else "targets"
    )
    for axis, kind, message in (
        (2, ValueError, rf"{first} \(4, 3\) have no axis 2"),
        ((0, -3), ValueError, rf"{first} \(4, 3\) have no axis -3"),
        ((0, -2), ValueError, rf"axis \(0, -2\) names an axis of {first} \(4, 3\) twice"),
        (1.0, TypeError, "axis must be an int, a sequence of ints or None, got 1.0"),
        (True, TypeError, "axis must be an int, a sequence of ints or None, got True"),
    ):
        with pytest.raises(kind, match=message):
            f(x, x, axis=axis)
    with pytest.raises(TypeError, match="where must be boolean, got float32"):
        f(x, x, where=x)
    with pytest.raises(ValueError, match=rf"{first} and where .* got \(4, 3\) and \(3,\)"):
        f(x, x, where=np.ones(3, bool))
    with pytest.raises(ValueError, match=rf"{first} and {second} must have .* squeeze the last axis of {second}"):
        f(x[:, 0], x[:, :1])
    with pytest.raises(TypeError, match=f"{first} must be floating point, got int32"):
        f(np.zeros((4, 3), int), x)
    with pytest.raises(TypeError, match=f"{first} must be real, got complex64"):
        f(x.astype(complex), x)
    with pytest.raises(TypeError, match=f"{second} must be .*got int32"):
        f(x, np.zeros((4, 3), int))


@few
@given(seeds, widths, st.sampled_from([0.0, 0.5, 2.0, 5.0]), st.sampled_from([None, 0.25]), st.booleans())
def test_focal_loss_agrees_with_optax(seed, dtype, gamma, alpha, hard):
    rng = np.random.default_rng(seed)
    x, y = 5 * rng.normal(size=(3, 4)), rng.random((3, 4))
    with jax.enable_x64(dtype == np.float64):
        x, y = array(x, dtype), array(y.round() if hard else y, dtype)
        kwargs = {"gamma": array(gamma, dtype)} | ({} if alpha is None else {"alpha": array(alpha, dtype)})
        same(losses.sigmoid_focal_loss, optax_of(losses.sigmoid_focal_loss), x, y, **kwargs)
        np.testing.assert_allclose(
            losses.sigmoid_focal_loss(x, y, alpha=alpha, gamma=gamma),
            losses.sigmoid_focal_loss(x, y, **kwargs),
            rtol=1e-12 if dtype == np.float64 else 1e-5,
        )


def value_and_slopes(f, *args):
    every = tuple(range(len(args)))
    return jit(lambda *args: (f(*args), grad(lambda *args: f(*args).sum(), every)(*args)))(*args)


def test_focal_loss_without_focus_is_cross_entropy():
    x, y = np.linspace(-200, 200, 41), np.linspace(0, 1, 41)
    for labels in (y, (y > 0.5), (y > 0.5).astype(int)):
        value, (slope,) = value_and_slopes(partial(losses.sigmoid_focal_loss, labels=labels, gamma=0), x)
        expected, (expected_slope,) = value_and_slopes(partial(losses.sigmoid_binary_cross_entropy, labels=labels), x)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(slope, expected_slope, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_focal_loss_at_extreme_logits(gamma):
    def loss(x, y, gamma):
        return losses.sigmoid_focal_loss(x, y, alpha=0.25, gamma=gamma)

    x = array([-1e37, -1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4, 1e37])
    ends = array([-inf, inf])
    for label in (0.0, 0.3, 1.0):
        value, all_slopes = value_and_slopes(loss, x, np.full(x.shape, label), array(gamma))
        assert np.isfinite(value).all()
        for slope in all_slopes:
            assert np.isfinite(slope).all()
        value, (slope, *_) = value_and_slopes(loss, ends, np.full(2, label), array(gamma))
        assert np.isfinite(slope).all()
        assert value.tolist() == [inf if label > 0 else 0, inf if label < 1 else 0]
        if label in (0, 1):
            np.testing.assert_allclose(slope, [-0.25 if label else 0, 0 if label else 0.75], atol=1e-6)


def test_focal_loss_arguments():
    x, y = np.zeros((4, 3)), np.ones((4, 3))
    f = losses.sigmoid_focal_loss
    for gamma in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="gamma must be at least 0 and finite, got"):
            f(x, y, gamma=gamma)
    for alpha in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got"):
            f(x, y, alpha=alpha)
    with pytest.raises(TypeError, match="gamma must be a real scalar"):
        f(x, y, gamma=x)
    with pytest.raises(ValueError, match=r"logits and labels .* squeeze the last axis of labels"):
        f(x[:, 0], y[:, :1])
    with pytest.raises(TypeError, match="labels must be real, got complex64"):
        f(x, y.astype(complex))
    with pytest.raises(TypeError, match="logits must be floating point, got int32"):
        f(y.astype(int), y)


@few
@given(seeds, widths, st.sampled_from([2.0, -1.0]), st.booleans())
def test_poly_loss_agrees_with_optax(seed, dtype, epsilon, masked):
    rng = np.random.default_rng(seed)
    x, y, keep = 3 * rng.normal(size=(3, 4)), probabilities(rng, (3, 4)), rng.random((3, 4)) < 0.7
    keep[:, 0] = True
    with jax.enable_x64(dtype == np.float64):
        x, y = array(x, dtype), array(y, dtype)
        kwargs = {"epsilon": array(epsilon, dtype), "where": array(keep) if masked else None}
        f = losses.poly_loss_cross_entropy
        same(f, optax_of(f), x, y, **kwargs)
        if not masked:  # optax's gradient is NaN there
            same(swapped(f), swapped(optax_of(f)), y, x, **kwargs)


def test_poly_loss_at_hard_points():
    f = losses.poly_loss_cross_entropy
    # Classes of probability 0 count as none.
    logits, y = array([[0.5, -1.0, -inf]]), array([[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(f(logits, y), f(logits[:, :2], y[:, :2]), rtol=1e-6)
    for slope in slopes(f, logits, y):
        assert np.isfinite(slope).all()
    # Sure predictions, right and wrong.
    logits = array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    y = array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(f(logits, y), [0, 2e4 + 2])
    np.testing.assert_allclose(slopes(f, logits, y)[0], [[0, 0, 0], [-1, 1, 0]], atol=1e-6)
    # Rows without classes, and junk where the mask is False.
    keep = array([[True, False, True], [False, False, False]])
    logits, y = array([[1.0, np.nan, 2.0], [1.0, inf, 2.0]]), array([[0.25, np.nan, 0.75], [0.5, 0.5, 0]])
    part = f(array([[1.0, 2.0]]), array([[0.25, 0.75]]))[0]
    np.testing.assert_allclose(f(logits, y, where=keep), [float(part), 0], rtol=1e-6)
    for slope in slopes(f, logits, y, where=keep):
        assert np.isfinite(slope).all()
        np.testing.assert_array_equal(slope[~keep], 0)
    rows = array([False, True])
    x = array([[1.0, 2.0], [3.0, 1.0]])
    np.testing.assert_array_equal(f(x, np.eye(2), where=rows), np.where(rows, f(x, np.eye(2)), 0))


def test_poly_loss_arguments():
    f = losses.poly_loss_cross_entropy
    logits, y = np.zeros((4, 3)), np.full((4, 3), 1 / 3)
    np.testing.assert_allclose(f(logits, y, epsilon=0), losses.softmax_cross_entropy(logits, y), rtol=1e-6)
    for epsilon in (np.inf, np.nan):
        with pytest.raises(ValueError, match="epsilon must be finite, got"):
            f(logits, y, epsilon=epsilon)
    for kind, labels in ((TypeError, np.zeros(4, int)), (TypeError, np.ones((4, 3), int)), (ValueError, np.ones(4))):
        with pytest.raises(kind, match=r"labels must be floating-point .* class indices make jax.nn.one_hot\(labels"):
            f(logits, labels)
    with pytest.raises(ValueError, match="no classes"):
        f(np.zeros((4, 0)), np.zeros((4, 0)))
    assert f(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)


@few
@given(seeds, widths, st.sampled_from([0.1, 1.0, 30.0]))
def test_l2_and_log_cosh_agree_with_optax(seed, dtype, scale):
    rng = np.random.default_rng(seed)
    a, b = scale * rng.normal(size=(2, 4, 3))
    with jax.enable_x64(dtype == np.float64):
        a, b = array(a, dtype), array(b, dtype)
        for f in (losses.l2_loss, losses.log_cosh):
            same(f, optax_of(f), a, b)
            same(f, optax_of(f), a)
            np.testing.assert_array_equal(f(a), f(a, np.zeros_like(a)))
        np.testing.assert_array_equal(losses.l2_loss(a, b), 0.5 * losses.squared_error(a, b))


@jit
def log_cosh_derivatives(x):
    return losses.log_cosh(x), jax.vmap(grad(losses.log_cosh))(x), jax.vmap(jax.hessian(losses.log_cosh))(x)


def test_log_cosh_of_small_and_large_errors():
    x = array([1e-18, 1e-6, 1e-3, 0.1, 0.5, 0.999, 1.0, 1.001, 2.0, 20.0, 1e4, 3e38])
    wide = np.asarray(x, np.float64)
    near = np.log1p(2 * np.sinh(np.minimum(wide, 1) / 2) ** 2)
    expected = np.where(wide < 0.5, near, wide - np.log(2) + np.log1p(np.exp(-2 * wide)))
    for sign in (1, -1):
        value, slope, curvature = log_cosh_derivatives(sign * x)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(slope, sign * np.tanh(wide), rtol=1e-6)
        np.testing.assert_allclose(curvature, 1 - np.tanh(wide) ** 2, atol=1e-6)
    value, slope, curvature = log_cosh_derivatives(array([0.0, inf, -inf]))
    np.testing.assert_array_equal(value, [0, inf, inf])
    np.testing.assert_array_equal(slope, [0, 1, -1])
    np.testing.assert_array_equal(curvature, [1, 0, 0])


@pytest.mark.parametrize("f", [losses.l2_loss, losses.log_cosh])
def test_arguments_of_l2_and_log_cosh(f):
    x = np.zeros((4, 1))
    with pytest.raises(ValueError, match=r"predictions and targets .* squeeze the last axis of predictions"):
        f(x, np.zeros(4))
    for rest in ((), (x,)):
        with pytest.raises(TypeError, match="predictions must be floating point, got int32"):
            f(np.zeros((4, 1), int), *rest)
    with pytest.raises(TypeError, match="targets must be real, got complex64"):
        f(x, x.astype(complex))


@few
@given(seeds, widths, st.sampled_from([0.7, 1.0]))
def test_cosine_agrees_with_optax(seed, dtype, kept):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 3, 4))
    keep = rng.random((3, 4)) < kept
    keep[:, 0] = True
    with jax.enable_x64(dtype == np.float64):
        a, b, where = array(a, dtype), array(b, dtype), array(keep)
        for f in COSINE:
            same(f, optax_of(f), a, b, where=where)
            same(swapped(f), swapped(optax_of(f)), b, a, where=where)


def test_cosine_agrees_with_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    expected = scipy.spatial.distance.cosine(a, b)
    np.testing.assert_allclose(losses.cosine_distance(array(a), array(b)), expected, rtol=1e-5)


def test_cosine_with_epsilon():
    """Epsilon is the least norm; optax compares it with the squared norm."""
    a, b = array([0.03, 0.04]), array([3.0, 4.0])
    for epsilon in (0.01, array(0.01)):
        np.testing.assert_allclose(losses.cosine_similarity(a, b, epsilon=epsilon), 1, rtol=1e-6)
    np.testing.assert_allclose(losses.cosine_similarity(a, b, epsilon=0.1), 0.5, rtol=1e-6)
    np.testing.assert_allclose(optax.cosine_similarity(a, b, epsilon=array(0.01)), 0.5, rtol=1e-6)
    slope = grad(lambda a: losses.cosine_similarity(a, b, epsilon=0.1))(a)
    np.testing.assert_allclose(slope, [6, 8], rtol=1e-6)
    for epsilon in (-1e-3, np.inf, np.nan):
        with pytest.raises(ValueError, match="epsilon must be at least 0 and finite"):
            losses.cosine_similarity(a, b, epsilon=epsilon)


def test_cosine_at_hard_points():
    zero, b = np.zeros(3), array([1.0, 2.0, 2.0])
    for f, at_zero in zip(COSINE, (0, 1), strict=True):
        sign = 1 - 2 * at_zero
        for pair in ((zero, b), (b, zero), (zero, zero)):
            assert f(*pair) == at_zero
            for vector, slope in zip(pair, slopes(f, *pair), strict=True):
                assert np.isfinite(slope).all()
                assert vector is b or not slope.any()
        np.testing.assert_allclose(slopes(f, zero, b, epsilon=0.1)[0], sign * b / 3 / 0.1, rtol=1e-6)
        traced = jit(lambda e, f=f: f(zero, b, epsilon=e))
        assert traced(0.0) == at_zero

        # Squares that overflow or vanish, and subnormal numbers.
        for scale in (1e30, 1e-30):
            a = scale * array([2.0, -1.0, 2.0])
            np.testing.assert_allclose(f(a, b), at_zero + sign * 4 / 9, rtol=1e-6)
            np.testing.assert_allclose(f(a, a), 1 - at_zero, atol=1e-6)
            np.testing.assert_allclose(slopes(f, a, b)[0] * scale, slopes(f, a / scale, b)[0], rtol=1e-5)
        subnormal = array([2e-40, 0.0, 0.0])
        assert np.isfinite(f(subnormal, b))
        for slope in slopes(f, subnormal, b):
            assert np.isfinite(slope).all()
        assert f(np.zeros((2, 0)), np.zeros((2, 0))).tolist() == [at_zero, at_zero]

        # Rows without elements, and junk where the mask is False.
        rows = array([True, False])
        a, c = np.stack([b, np.full(3, jnp.nan)]), np.ones((2, 3))
        np.testing.assert_allclose(f(a, c, where=rows), [float(f(b, c[0])), at_zero], rtol=1e-6)
        for slope in slopes(f, a, c, where=rows):
            assert np.isfinite(slope).all()
            np.testing.assert_array_equal(slope[1], 0)


ALL = [*KL, *COSINE, losses.sigmoid_focal_loss, losses.poly_loss_cross_entropy, losses.l2_loss, losses.log_cosh]


@pytest.mark.parametrize("f", ALL)
def test_vmap_and_half_precision(f):
    rng = np.random.default_rng(0)
    a, b = array(rng.normal(size=(4, 3)), jnp.bfloat16), array(rng.random((4, 3)), jnp.bfloat16)
    wide = a.astype(jnp.float32), b.astype(jnp.float32)
    one = jit(f)
    expected = one(*wide)
    np.testing.assert_allclose(jit(jax.vmap(f))(*wide), [one(*row) for row in zip(*wide, strict=True)], rtol=1e-5)
    for pair in ((a, b), (a, wide[1]), (wide[0], b)):
        assert one(*pair).dtype == jnp.float32
        np.testing.assert_array_equal(one(*pair), expected)
    assert {slope.dtype.name for slope in slopes(f, a, b)} == {"bfloat16"}
    with jax.enable_x64(True):
        assert jax.eval_shape(f, a, b.astype(jnp.float64)).dtype == jnp.float64
        np.testing.assert_allclose(jit(f)(a.astype(jnp.float64), b), expected, rtol=1e-4, atol=1e-6)
