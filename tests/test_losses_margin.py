from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import Compiled, array, compiled, grad, jit, value_and_grad
from hypothesis import example, given, settings, strategies as st
from jax.scipy.special import logsumexp
from sklearn.metrics import hinge_loss as sklearn_hinge

import gdfx.losses

pytestmark = pytest.mark.numbers

losses = Compiled(gdfx.losses)

BINARY = [losses.hinge_loss, losses.perceptron_loss, losses.sparsemax_loss]
MULTICLASS = [losses.multiclass_hinge_loss, losses.multiclass_perceptron_loss, losses.multiclass_sparsemax_loss]
few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)
widths = st.sampled_from([np.float32, np.float64])


def optax_of(f):
    return getattr(optax.losses, f.__name__)


@cache
def lenient(f):
    """A function that may promote dtypes and ranks."""

    def call(*args):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return f(*args)

    return call


@partial(jit, static_argnums=0)
def value_and_vjp(f, argument, *rest):
    value, back = jax.vjp(lambda a: f(a, *rest), argument)
    # The cotangent keeps elements apart.
    cotangent = array(np.random.default_rng(9).normal(size=value.shape), value.dtype)
    return value, *back(cotangent)


def same(ours, theirs, *args):
    """Values and gradients with respect to the first argument agree."""
    value, slope = value_and_vjp(ours, *args)
    expected, expected_slope = value_and_vjp(lenient(theirs), *args)
    assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
    tolerance = 1e-12 if value.dtype == np.float64 else 1e-5
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(slope, expected_slope, rtol=tolerance, atol=tolerance)


@partial(jit, static_argnums=0)
def value_and_slope(f, x, *rest):
    return f(x, *rest), grad(lambda x: f(x, *rest).sum())(x)


@few
@given(seeds, widths, st.sampled_from([0.3, 2.0, 30.0]))
def test_binary_losses_agree_with_optax(seed, dtype, scale):
    rng = np.random.default_rng(seed)
    x, label = rng.normal(size=(4, 3)) * scale, rng.integers(0, 2, (4, 3))
    with jax.enable_x64(dtype == np.float64):
        x, sign = array(x, dtype), array(2 * label - 1, dtype)
        for f in (losses.hinge_loss, losses.perceptron_loss):
            same(f, optax_of(f), x, sign)
        same(losses.sparsemax_loss, optax_of(losses.sparsemax_loss), x, array(label))


@few
@given(seeds, widths, st.sampled_from([0.3, 2.0, 30.0]))
def test_multiclass_losses_agree_with_optax(seed, dtype, scale):
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(6, 5)) * scale, rng.integers(0, 5, 6)
    with jax.enable_x64(dtype == np.float64):
        for f in MULTICLASS:
            same(f, optax_of(f), array(scores, dtype), array(labels))


@pytest.mark.parametrize("f", MULTICLASS)
def test_ties_share_the_slope(f):
    scores, labels = array([[0.0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 1]]), array([0, 2, 0])
    same(f, optax_of(f), scores, labels)
    slope = value_and_slope(f, scores, labels)[1]
    np.testing.assert_allclose(slope.sum(-1), 0, atol=1e-6)


def test_kinks_of_binary_losses():
    zero, one = np.zeros(1), np.ones(1)
    np.testing.assert_array_equal(value_and_slope(losses.hinge_loss, one, one), [[0], [-0.5]])
    np.testing.assert_array_equal(value_and_slope(losses.perceptron_loss, zero, -one), [[0], [0.5]])
    for y in (zero, one):
        for x in (-one, one):
            value, slope = value_and_slope(losses.sparsemax_loss, x, y)
            np.testing.assert_array_equal(slope, jax.nn.sparse_sigmoid(x) - y)
            np.testing.assert_array_equal(value, np.abs(jax.nn.sparse_sigmoid(x) - y))


def test_hinge_losses_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    x, sign = rng.normal(size=20), rng.choice([-1.0, 1.0], 20)
    np.testing.assert_allclose(losses.hinge_loss(array(x), array(sign)).mean(), sklearn_hinge(sign, x), rtol=1e-5)
    scores, labels = rng.normal(size=(20, 4)), rng.integers(0, 4, 20)
    ours = losses.multiclass_hinge_loss(array(scores), array(labels)).mean()
    np.testing.assert_allclose(ours, sklearn_hinge(labels, scores, labels=range(4)), rtol=1e-5)


simplex_hessian = jit(jax.hessian(losses.multiclass_sparsemax_loss))


@few
@example(55334, 1.0)  # a score at the threshold, whose place rounding decides
@given(seeds, st.sampled_from([0.0, 0.1, 1.0, 10.0]))
def test_sparsemax_is_the_projection_onto_the_simplex(seed, scale):
    """By the conditions of optimality, and by the definition of the loss as a conjugate."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        scores, labels = array(scale * rng.normal(size=(6, 5)).round(1)), array(rng.integers(0, 5, 6))
        value, slope = value_and_slope(losses.multiclass_sparsemax_loss, scores, labels)
        right = np.eye(5)[labels]
        p = np.asarray(slope) + right
        assert (p > -1e-12).all()
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)
        gap = np.asarray(scores) - p
        np.testing.assert_allclose((p * (gap.max(-1, keepdims=True) - gap)).sum(-1), 0, atol=1e-12)
        expected = ((p - right) * scores).sum(-1) - 0.5 * (p**2).sum(-1) + 0.5
        np.testing.assert_allclose(value, expected, atol=1e-12)

        # The second derivative: p moves along the support only, and sums to 1.
        support = (p[0] > 1e-12).astype(float)
        np.testing.assert_allclose(
            simplex_hessian(scores[0], labels[0]),
            np.diag(support) - np.outer(support, support) / support.sum(),
            atol=1e-12,
        )


def test_sparsemax_losses_do_not_cancel():
    d = 1e-4
    near = losses.sparsemax_loss(array([1 - d, d - 1]), array([1, 0]))
    np.testing.assert_allclose(near, d**2 / 4, rtol=2e-3)
    for shift in (0.0, 1000.0):
        scores = array([shift + 1 - 2**-9, shift, shift - 3])
        np.testing.assert_allclose(losses.multiclass_sparsemax_loss(scores, array(0)), 2**-20, rtol=1e-5)
    many = array(np.random.default_rng(0).normal(size=(3, 5000)), jnp.float32)
    slope = grad(lambda s: losses.multiclass_sparsemax_loss(s, array([0, 1, 2])).sum())(many)
    np.testing.assert_allclose(slope.sum(-1), 0, atol=1e-6)


def test_binary_sparsemax_of_probabilities():
    x = np.linspace(-3, 3, 25)
    np.testing.assert_allclose(losses.sparsemax_loss(x, jax.nn.sparse_sigmoid(x)), 0, atol=1e-6)
    y = np.linspace(0, 1, 25)
    conjugate = jax.nn.sparse_plus(x) - x * y - y * (1 - y)
    np.testing.assert_allclose(losses.sparsemax_loss(x, y), conjugate, atol=1e-6)
    for labels in (y > 0.5, (y > 0.5).astype(int), (y > 0.5).astype(jnp.float32)):
        np.testing.assert_allclose(losses.sparsemax_loss(x, labels), jax.nn.sparse_plus(jnp.where(y > 0.5, -x, x)))


def test_infinite_scores():
    inf = jnp.inf
    agree = array([inf, -inf])
    for f, labels in zip(BINARY, ([1, -1], [1, -1], [1, 0]), strict=True):
        value, slope = value_and_slope(f, agree, array(labels))
        np.testing.assert_array_equal(value, 0)
        np.testing.assert_array_equal(slope, 0)
        value, slope = value_and_slope(f, -agree, array(labels))
        np.testing.assert_array_equal(value, inf)
        np.testing.assert_array_equal(slope, [-1, 1])

    # A class of -inf is none.
    scores, labels = array([[0.5, 0.2, -inf], [-inf, -1.0, 1.0], [0.0, -inf, -inf]]), array([0, 1, 0])
    for f in MULTICLASS:
        value, slope = value_and_slope(f, scores, labels)
        assert np.isfinite(value).all()
        assert np.isfinite(slope).all()
        np.testing.assert_array_equal(slope[scores == -inf], 0)
        np.testing.assert_allclose(value[0], jit(f)(scores[0, :2], labels[0]), rtol=1e-6)
        value, slope = value_and_slope(f, scores, array([2, 0, 0]))
        assert value.tolist() == [inf, inf, 0]
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("f", MULTICLASS)
def test_labels_out_of_range_give_nan_rows(f):
    scores = array(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    value, slope = value_and_slope(f, scores, array([0, -1, 3, 2]))
    assert np.isnan(value).tolist() == [False, True, True, False]
    np.testing.assert_array_equal(slope[1:3], 0)
    expected, expected_slope = value_and_slope(f, scores, array([0, 1, 2, 2]))
    for row in (0, 3):
        assert value[row] == expected[row]
        np.testing.assert_array_equal(slope[row], expected_slope[row])
    with jax.debug_nans(True):  # nothing to object to if all labels are known
        value_and_slope(f, scores, array([0, 1, 2, 2]))
    wide = np.zeros((1, 300))
    assert np.isfinite(jit(f)(wide, array([127], jnp.int8)))
    with jax.enable_x64(True):
        assert np.isnan(jit(f)(wide, array([2**32])))


@pytest.mark.parametrize("f", BINARY)
def test_binary_arguments(f):
    x, labels = array([0.2, -0.4]), array([1, 1])
    assert f(x, labels).shape == (2,)
    name = "logits" if f is losses.sparsemax_loss else "predictor_outputs"
    second = "labels" if f is losses.sparsemax_loss else "targets"
    with pytest.raises(ValueError, match=rf"{name} and {second} .* squeeze the last axis of {second}"):
        f(x, labels[:, None])
    with pytest.raises(TypeError, match=rf"{name} must be floating point, got int32"):
        f(labels, labels)
    if f is losses.sparsemax_loss:
        with pytest.raises(TypeError, match="labels must be real, got complex64"):
            f(x, x.astype(complex))
    else:
        for wrong in (labels > 0, labels.astype(jnp.uint8), x.astype(complex)):
            with pytest.raises(TypeError, match=r"targets must be -1 or 1, .* of labels 0 and 1 make 2 \* labels"):
                f(x, wrong)


@pytest.mark.parametrize("f", MULTICLASS)
def test_multiclass_arguments(f):
    scores = np.zeros((4, 3))
    with pytest.raises(TypeError, match=r"labels must be integer class indices, got float32: of one-hot .* argmax"):
        f(scores, np.zeros(4))
    with pytest.raises(ValueError, match=r"labels \(4, 3\) must be scores \(4, 3\) without the last axis: .* argmax"):
        f(scores, np.zeros((4, 3), int))
    with pytest.raises(ValueError, match=r"without the last axis and labels .* got \(4,\) and \(5,\): the batch"):
        f(scores, np.zeros(5, int))
    with pytest.raises(TypeError, match="scores must be floating point, got int32"):
        f(np.zeros((4, 3), int), np.zeros(4, int))
    for shape in ((), (4, 0)):
        with pytest.raises(ValueError, match="must have classes along a last axis"):
            f(np.zeros(shape), np.zeros(shape[:-1], int))
    assert f(np.zeros((0, 3)), np.zeros(0, int)).shape == (0,)
    np.testing.assert_array_equal(value_and_slope(f, np.zeros((2, 1)), np.zeros(2, int))[1], 0)


@pytest.mark.parametrize("f", [*BINARY, *MULTICLASS])
def test_vmap_and_half_precision(f):
    rng = np.random.default_rng(0)
    x = array(rng.normal(size=(4, 3)), jnp.bfloat16)
    labels = array(rng.integers(0, 3, 4) if f in MULTICLASS else rng.integers(0, 2, (4, 3)))
    wide = x.astype(jnp.float32)
    mapped = jax.vmap(f)(wide, labels)
    one = jit(f)
    np.testing.assert_allclose(mapped, [one(*row) for row in zip(wide, labels, strict=True)], rtol=1e-6)
    np.testing.assert_allclose(one(wide[None], labels[None])[0], mapped, rtol=1e-6)
    value, slope = value_and_slope(f, x, labels)
    assert (value.dtype, slope.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(value, value_and_slope(f, wide, labels)[0])


def test_fenchel_young_of_logsumexp_is_cross_entropy():
    loss = compiled(gdfx.losses.make_fenchel_young_loss(logsumexp))
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            scores = array(rng.normal(size=(2, 3, 4)), dtype)
            targets = array(rng.dirichlet(np.ones(4), (2, 3)), dtype)
            theirs = optax.losses.make_fenchel_young_loss(logsumexp)  # pyright: ignore[reportArgumentType]
            same(loss, theirs, scores, targets)
            same(loss, losses.softmax_cross_entropy, scores, targets)
            np.testing.assert_allclose(jit(loss)(scores[0, 0], targets[0, 0]), loss(scores, targets)[0, 0], rtol=1e-6)


def test_fenchel_young_arguments():
    def smooth_max(scores, temperature, *, offset=0.0):
        return temperature * logsumexp(scores / temperature) + offset

    loss = compiled(gdfx.losses.make_fenchel_young_loss(smooth_max))
    scores, targets = array([[1.0, 2.0], [3.0, -1.0]]), np.eye(2)
    expected = 0.5 * np.log(np.exp(np.asarray(scores) / 0.5).sum(-1)) - np.diag(scores) + 7
    np.testing.assert_allclose(loss(scores, targets, 0.5, offset=7.0), expected, rtol=1e-6)
    mapped = jax.vmap(lambda s, t: loss(s, t, 0.5))(scores, targets)
    np.testing.assert_allclose(mapped, loss(scores, targets, 0.5), rtol=1e-6)

    half = loss(scores.astype(jnp.bfloat16), targets, 1.0)
    assert half.dtype == jnp.float32
    assert loss(np.zeros((0, 2)), np.zeros((0, 2)), 1.0).shape == (0,)
    with pytest.raises(ValueError, match=r"scores and targets must have the same shape"):
        loss(scores, targets[0], 1.0)
    with pytest.raises(TypeError, match="targets must be floating point, got int32"):
        loss(scores, targets.astype(int), 1.0)
    for shape in ((), (3, 0)):
        with pytest.raises(ValueError, match="must have classes along a last axis"):
            loss(np.zeros(shape), np.zeros(shape), 1.0)
    with pytest.raises(ValueError, match=r"max_fun must return a scalar for a vector of scores, got shape \(2,\)"):
        gdfx.losses.make_fenchel_young_loss(jax.nn.softmax)(scores, targets)


def test_fenchel_young_of_impossible_classes():
    loss = compiled(gdfx.losses.make_fenchel_young_loss(logsumexp))
    scores, targets = array([0.0, 1.0, -jnp.inf]), array([1.0, 0.0, 0.0])
    value, slopes = value_and_grad(loss, (0, 1))(scores, targets)
    np.testing.assert_allclose(value, loss(scores[:2], targets[:2]), rtol=1e-6)
    np.testing.assert_allclose(slopes[0], jax.nn.softmax(scores) - targets, atol=1e-6)
    assert np.isfinite(slopes[1]).all()


def of_labels(labels, logits):
    return losses.softmax_cross_entropy(logits, labels)


@few
@given(seeds, widths)
def test_softmax_cross_entropy_is_safe(seed, dtype):
    """It is what optax calls `safe_softmax_cross_entropy`: a class of label 0 and logit -inf adds nothing."""
    rng = np.random.default_rng(seed)
    logits, keep = rng.normal(size=(5, 4)) * 3, rng.random((5, 4)) < 0.6
    keep[np.arange(5), rng.integers(0, 4, 5)] = True
    labels = rng.random((5, 4)) * keep
    index = keep.argmax(-1)
    with jax.enable_x64(dtype == np.float64):
        logits = array(np.where(keep, logits, -np.inf), dtype)
        labels = array(labels / labels.sum(-1, keepdims=True), dtype)
        one_hot = np.eye(4, dtype=dtype)[index]
        same(losses.softmax_cross_entropy, optax.safe_softmax_cross_entropy, logits, labels)
        np.testing.assert_allclose(
            losses.softmax_cross_entropy_with_integer_labels(logits, array(index)),
            losses.softmax_cross_entropy(logits, one_hot),
            rtol=1e-5,
        )
        assert np.isfinite(value_and_slope(of_labels, labels, logits)[1]).all()
