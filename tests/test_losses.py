import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import Compiled, array, compiled, grad, jit, value_and_grad

import gdfx

losses = Compiled(gdfx.losses)

# What optax calls otherwise; None is deprecated there.
OTHERWISE = {"safe_softmax_cross_entropy": "softmax_cross_entropy", "convex_kl_divergence": None}


@pytest.mark.parametrize("name", [name for name in dir(optax.losses) if name[0] != "_" and name.islower()])
def test_signatures_hold_all_of_optax(name):
    theirs = getattr(optax.losses, name)
    ours = OTHERWISE.get(name, name)
    if inspect.ismodule(theirs) or ours is None:
        return
    expected = inspect.signature(theirs).parameters
    found = inspect.signature(getattr(gdfx.losses, ours)).parameters
    assert list(found)[: len(expected)] == list(expected)
    for key, parameter in expected.items():
        assert (found[key].kind, found[key].default) == (parameter.kind, parameter.default)
    for parameter in list(found.values())[len(expected) :]:
        assert parameter.default is not parameter.empty
        assert parameter.kind == parameter.KEYWORD_ONLY or ours != name


REGRESSION = [
    losses.squared_error,
    losses.absolute_error,
    losses.huber_loss,
    losses.mean_squared_error,
    losses.mean_absolute_error,
]


def normal(seed, shape, dtype=float, scale=3.0):
    return array(scale * np.random.default_rng(seed).normal(size=shape), dtype)


def one_hot(index, classes, dtype=float):
    return array(np.eye(classes)[index], dtype)


def softmax(x, axis=-1):
    z = np.exp(np.asarray(x) - np.max(x, axis, keepdims=True))
    return z / z.sum(axis, keepdims=True)


def same_function(ours, theirs, argument, *rest):
    """Values and gradients agree; a random cotangent keeps elements apart."""

    @partial(jit, static_argnums=0)
    def both(f, argument, *rest):
        value, back = jax.vjp(lambda a: f(a, *rest), argument)
        return value, *back(normal(9, value.shape, value.dtype))

    value, slope = both(ours, argument, *rest)
    expected, expected_slope = both(theirs, argument, *rest)
    assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
    tolerance = {"rtol": 200 * jnp.finfo(value.dtype).eps, "atol": 20 * jnp.finfo(value.dtype).eps}
    np.testing.assert_allclose(value, expected, **tolerance)
    np.testing.assert_allclose(slope, expected_slope, **tolerance)


def check_against_optax(dtype):
    a, b = normal(0, (6, 5), dtype), normal(1, (6, 5), dtype)
    index = array([0, 4, 2, 2, 1, 3])
    labels = array(softmax(b), dtype)
    same_function(losses.squared_error, optax.squared_error, a, b)
    same_function(losses.absolute_error, lambda x, y: abs(x - y), a, b)
    same_function(losses.mean_squared_error, lambda x, y: optax.squared_error(x, y).mean(), a, b)
    same_function(losses.mean_absolute_error, lambda x, y: abs(x - y).mean(), a, b)
    for delta in (0.5, 1.0, 3.0):
        same_function(
            lambda x, y, d=delta: losses.huber_loss(x, y, delta=d),
            lambda x, y, d=delta: optax.huber_loss(x, y, delta=d),
            a,
            b,
        )
    same_function(losses.softmax_cross_entropy, optax.softmax_cross_entropy, a, labels)
    same_function(
        lambda y, x: losses.softmax_cross_entropy(x, y),
        lambda y, x: optax.softmax_cross_entropy(x, y),
        labels,
        a,
    )
    same_function(
        losses.softmax_cross_entropy_with_integer_labels,
        optax.softmax_cross_entropy_with_integer_labels,
        a,
        index,
    )
    sigmoid = (losses.sigmoid_binary_cross_entropy, optax.sigmoid_binary_cross_entropy)
    same_function(*sigmoid, a, labels)


def test_float32_agrees_with_optax():
    check_against_optax(jnp.float32)


def test_float64_agrees_with_optax():
    with jax.enable_x64(True):
        check_against_optax(jnp.float64)


def test_axis_and_where_agree_with_optax():
    logits = normal(0, (4, 3, 5), jnp.float32)
    labels = array(softmax(normal(1, (4, 3, 5)), 1), jnp.float32)
    index = array(np.random.default_rng(2).integers(0, 3, (4, 5)))
    keep = array(np.random.default_rng(3).random((4, 3, 5)) < 0.7)
    keep = keep | (np.arange(3)[None, :, None] == index[:, None, :])  # labels name kept classes
    rows = array(np.random.default_rng(4).random((4, 5)) < 0.7)
    integer = losses.softmax_cross_entropy_with_integer_labels
    integer_optax = optax.softmax_cross_entropy_with_integer_labels
    for axis in (1, -2):
        for where in (None, keep):
            kwargs = {"axis": axis, "where": where}
            same_function(
                lambda x, y, k=kwargs: losses.softmax_cross_entropy(x, y, **k),
                lambda x, y, k=kwargs: optax.softmax_cross_entropy(x, y, **k),
                logits,
                labels,
            )
            same_function(
                lambda x, y, k=kwargs: integer(x, y, **k),
                lambda x, y, k=kwargs: integer_optax(x, y, **k),
                logits,
                index,
            )
    # Whole rows removed: optax's gradient is NaN there, so it is taken of the other rows.
    for ours, y in ((losses.softmax_cross_entropy, labels), (integer, index)):
        same_function(
            lambda x, y, f=ours: f(x, y, 1, rows),
            lambda x, y, f=ours: jnp.where(rows, f(x, y, 1), 0),
            logits,
            y,
        )


@pytest.mark.parametrize("axis", [(0, 2), (2, -3), None, ()])
def test_several_axes_hold_the_classes_together(axis):
    axes = (0, 1, 2) if axis is None else tuple(a % 3 for a in axis)
    rows, classes = [n for i, n in enumerate((2, 3, 4)) if i not in axes], math.prod((2, 3, 4)[i] for i in axes)
    last = lambda x: np.moveaxis(x, axes, range(-len(axes), 0)).reshape(*rows, classes)
    logits, labels = normal(0, (2, 3, 4), jnp.float32), softmax(normal(1, (2, 3, 4)), axes)
    index = np.random.default_rng(2).integers(0, classes, rows)
    keep = np.random.default_rng(3).random((2, 3, 4)) < 0.7
    soft, hard = losses.softmax_cross_entropy, losses.softmax_cross_entropy_with_integer_labels
    for f, y, flat_y in ((soft, labels, last(labels)), (hard, index, index)):
        for where, smoothing in ((None, 0.0), (keep, 0.1)):
            flat_where = None if where is None else last(where)
            expected = f(last(logits), flat_y, -1, flat_where, label_smoothing=smoothing)
            np.testing.assert_allclose(f(logits, y, axis, where, label_smoothing=smoothing), expected, rtol=1e-5)
        if axes:  # whole rows
            removed = np.arange(math.prod(rows)).reshape(rows) % 2 == 1
            expected = np.where(removed, f(logits, y, axis), 0)
            np.testing.assert_array_equal(f(logits, y, axis, removed), expected)
    if axis != ():
        theirs = compiled(optax.softmax_cross_entropy)(logits, labels, axis)
        np.testing.assert_allclose(soft(logits, labels, axis), theirs, rtol=1e-5)
    if axis:
        theirs = compiled(optax.softmax_cross_entropy_with_integer_labels)(logits, index, axis)
        np.testing.assert_allclose(hard(logits, index, axis), theirs, rtol=1e-5)
        with pytest.raises(ValueError, match=r"logits \(2, 3, 4\) without axis \(\d, \d\) and labels"):
            hard(logits, index[:2], axis)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing(smoothing):
    logits = normal(0, (6, 4), jnp.float32)
    index = np.array([0, 3, 2, 2, 1, 3])
    for keep in (np.ones((6, 4), bool), np.arange(4) != (index[:, None] + 1) % 4):
        p = np.where(keep, np.exp(logits), 0)
        log_p = np.log(p / p.sum(-1, keepdims=True), where=keep, out=np.zeros(p.shape, p.dtype))
        target = (1 - smoothing) * np.eye(4)[index] + smoothing * keep / keep.sum(-1, keepdims=True)
        expected = -(target * log_p).sum(-1)
        for s in (smoothing, jnp.float32(smoothing)):
            hard = losses.softmax_cross_entropy_with_integer_labels(logits, array(index), label_smoothing=s, where=keep)
            soft = losses.softmax_cross_entropy(logits, one_hot(index, 4), -1, keep, label_smoothing=s)
            np.testing.assert_allclose(hard, expected, rtol=1e-5)
            np.testing.assert_allclose(soft, expected, rtol=1e-5)

    y = one_hot(index, 4)
    target = np.asarray((1 - smoothing) * y + smoothing / 2)
    p = 1 / (1 + np.exp(-np.asarray(logits)))
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    binary = losses.sigmoid_binary_cross_entropy(logits, y, label_smoothing=smoothing)
    np.testing.assert_allclose(binary, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    a = normal(0, (6, 5), dtype)
    labels = one_hot(np.array([0, 4, 2, 2, 1, 3]), 5, dtype)
    calls = [(f, labels) for f in (*REGRESSION, losses.softmax_cross_entropy)]
    calls.append((losses.sigmoid_binary_cross_entropy, labels))
    calls.append((losses.softmax_cross_entropy_with_integer_labels, labels.argmax(-1)))
    for f, y in calls:
        value = f(a, y)
        wide = f(a.astype(jnp.float32), y if y.dtype != dtype else y.astype(jnp.float32))
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, wide)
        assert grad(lambda x, f=f, y=y: f(x, y).sum())(a).dtype == dtype
    # float32 targets beside half-precision predictions need no cast, also under strict promotion.
    assert losses.squared_error(a, labels.astype(jnp.float32)).dtype == jnp.float32


def test_strict_promotion_of_traced_scalars_with_float64():
    with jax.enable_x64(True):
        x, y = normal(0, (3, 2), jnp.float64), array(np.eye(3, 2), jnp.float64)
        for scalar in (0.5, jnp.float32(0.5), np.float64(0.5)):
            assert losses.huber_loss(x, y, delta=scalar).dtype == jnp.float64
            hubers = jit(lambda x, y, d: losses.huber_loss(x, y, delta=d))(x, y, scalar)
            np.testing.assert_allclose(hubers, optax.huber_loss(x, y, delta=0.5), rtol=1e-12)
            for f in (losses.softmax_cross_entropy, losses.sigmoid_binary_cross_entropy):
                smooth = jit(lambda x, y, s, f=f: f(x, y, label_smoothing=s))(x, y, scalar)
                np.testing.assert_allclose(smooth, f(x, y, label_smoothing=0.5), rtol=1e-12)


def test_vmap_is_a_loop():
    a, y = normal(0, (6, 5), jnp.float32), one_hot(np.arange(6) % 5, 5)
    calls = [(f, y) for f in (*REGRESSION, losses.softmax_cross_entropy)]
    calls.append((losses.sigmoid_binary_cross_entropy, y))
    calls.append((losses.softmax_cross_entropy_with_integer_labels, y.argmax(-1)))
    for f, labels in calls:
        mapped = jax.vmap(f)(a, labels)
        looped = np.stack([f(*pair) for pair in zip(a, labels, strict=True)])
        np.testing.assert_allclose(mapped, looped, rtol=1e-6)


def test_integer_labels_of_every_width():
    logits = normal(0, (3, 300), jnp.float32)
    f = losses.softmax_cross_entropy_with_integer_labels
    expected = f(logits, array([0, 1, 127]))
    with jax.enable_x64(True):
        for dtype in ("int8", "uint8", "int16", "uint32", "int64", "uint64"):
            np.testing.assert_array_equal(f(logits, array([0, 1, 127], dtype)), expected)
        far = f(logits, array([2**32, -(2**32), 299]))
        assert np.isnan(far).tolist() == [True, True, False]


def test_out_of_range_labels_give_nan_rows():
    logits = normal(0, (5, 4), jnp.float32)
    index = array([0, -1, 3, 4, -4])
    f = losses.softmax_cross_entropy_with_integer_labels
    for loss in (f(logits, index), jit(f)(logits, index), f(logits, index, label_smoothing=0.1)):
        assert np.isnan(loss).tolist() == [False, True, False, True, True]
    valid = (index >= 0) & (index < 4)

    # Masked afterwards or by `where`, such rows leave finite gradients.
    after = grad(lambda x: jnp.where(valid, f(x, index), 0).sum())(logits)
    before = grad(lambda x: f(x, index, where=valid).sum())(logits)
    np.testing.assert_array_equal(after, before)
    assert np.isfinite(after).all()
    assert np.abs(after).sum(-1).astype(bool).tolist() == valid.tolist()

    with jax.debug_nans(True):  # nothing to object to if all labels are known
        smooth = grad(lambda s: f(logits, index, where=valid, label_smoothing=s).sum())(0.1)
    assert np.isfinite(smooth)

    excluded = f(logits, np.zeros(5, int), where=np.arange(20).reshape(5, 4) % 4 > 0)
    assert np.isnan(excluded).all()


def test_gradients_at_hard_points_are_finite():
    def slope(f, x, *rest, **settings):
        return grad(lambda x: f(x, *rest, **settings).sum())(array(x, jnp.float32))

    zero = np.zeros(3)
    for f in REGRESSION:
        np.testing.assert_array_equal(slope(f, [0.0, 0.0, 0.0], zero), 0)
    edge = slope(losses.huber_loss, [1.0, -1.0, 1e30], zero)
    np.testing.assert_array_equal(edge, [1, -1, 1])
    np.testing.assert_array_equal(grad(grad(losses.huber_loss))(0.0, 0.0), 1)

    logits = [[1e4, -1e4, 0.0], [0.0, 1e4, 1e4], [-1e4, -1e4, -1e4], [3e38, -3e38, 0.0]]
    index = array([1, 1, 2, 0])
    for smoothing in (0.0, 0.1):
        for f, y in (
            (losses.softmax_cross_entropy, one_hot(index, 3)),
            (losses.softmax_cross_entropy_with_integer_labels, index),
        ):
            got = slope(f, logits, y, label_smoothing=smoothing)
            target = (1 - smoothing) * np.eye(3)[index] + smoothing / 3
            np.testing.assert_allclose(got, softmax(np.float64(logits)) - target, atol=1e-6)

    x = [-1e4, -100.0, 0.0, 100.0, 1e4]
    for y in (0.0, 0.3, 1.0):
        got = slope(losses.sigmoid_binary_cross_entropy, x, np.full(5, y))
        np.testing.assert_allclose(got, np.array([0, 0, 0.5, 1, 1]) - y, atol=1e-6)


def test_small_losses_do_not_cancel():
    exact = np.log1p(np.exp(-20.0))
    logits = array([20.0, -20.0])
    binary = losses.sigmoid_binary_cross_entropy(logits, array([1.0, 0.0]))
    np.testing.assert_allclose(binary, exact, rtol=1e-5)
    for shift in (0.0, 1e4):
        pair = array([[shift, shift + np.log(2.0, dtype=np.float32)]])
        exact = np.log1p(np.exp(np.diff(np.float64(pair))))[0]
        hard = losses.softmax_cross_entropy_with_integer_labels(pair, array([0]))
        soft = losses.softmax_cross_entropy(pair, array([[1.0, 0.0]]))
        np.testing.assert_allclose([hard, soft], [exact, exact], rtol=1e-6)


def test_infinite_logits_that_agree_cost_nothing():
    def costs(y, **settings):
        f = lambda x, y: losses.sigmoid_binary_cross_entropy(x, y, **settings)
        x = array([-np.inf, np.inf])
        return f(x, y), *grad(lambda x, y: f(x, y).sum(), (0, 1))(x, y)

    value, slope_x, slope_y = costs(array([0.0, 1.0]))
    np.testing.assert_array_equal([value, slope_x, slope_y], 0)
    for y in (array([1.0, 0.0]), array([0.5, 0.5])):
        value, slope_x, _ = costs(y)
        assert (value == np.inf).all()
        np.testing.assert_array_equal(slope_x, [-y[0], 1 - y[1]])
    assert (costs(array([0.0, 1.0]), label_smoothing=0.1)[0] == np.inf).all()


def test_targets_of_none_are_zeros():
    x = normal(0, (6, 5), jnp.bfloat16)
    for f in (losses.squared_error, losses.l2_loss, losses.huber_loss, losses.log_cosh):
        assert f(x).dtype == np.float32
        np.testing.assert_array_equal(f(x), f(x, np.zeros_like(x)))
    with pytest.raises(TypeError, match="predictions must be floating point, got int32"):
        losses.huber_loss(np.zeros(3, int))


def test_impossible_classes_cost_nothing():
    logits = array([[0.0, 1.0, -jnp.inf]])
    f = losses.softmax_cross_entropy
    kept = f(logits[:, :2], array([[1.0, 0.0]]))
    value, slope = value_and_grad(lambda x: f(x, array([[1.0, 0.0, 0.0]])).sum())(logits)
    np.testing.assert_allclose(value, kept[0], rtol=1e-6)
    assert np.isfinite(slope).all()
    assert f(logits, array([[0.0, 0.0, 1.0]])) == jnp.inf


def test_empty_batches_and_binary_labels():
    assert losses.squared_error(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)
    assert losses.softmax_cross_entropy(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)
    empty = losses.softmax_cross_entropy_with_integer_labels(np.zeros((0, 3)), np.zeros(0, int))
    assert empty.shape == (0,)
    x = normal(0, (4,), jnp.float32)
    expected = losses.sigmoid_binary_cross_entropy(x, array([1.0, 0.0, 0.0, 1.0]))
    for y in (array([1, 0, 0, 1]), np.array([True, False, False, True])):
        np.testing.assert_array_equal(losses.sigmoid_binary_cross_entropy(x, y), expected)


MISMATCHES = [
    ((32, 1), (32,), r"squeeze the last axis of predictions, predictions\[..., 0\]"),
    ((32,), (32, 1), "squeeze the last axis of targets"),
    ((1, 32), (32,), r"squeeze the first axis of predictions, predictions\[0\]"),
    ((4, 3), (), r"targets is a scalar; .* jnp.full\(\(4, 3\), targets\)"),
    ((4, 3), (3, 4), "transpose one of them, targets.T"),
    ((4, 3), (2, 6), "reshape one"),
    ((4, 3), (5, 3), "the batch sizes differ"),
    ((4, 3), (4, 2), "give both the same shape"),
]


@pytest.mark.parametrize(("first", "second", "cause"), MISMATCHES)
def test_shapes_that_differ_raise(first, second, cause):
    for f in REGRESSION:
        with pytest.raises(ValueError, match=cause) as error:
            f(np.zeros(first), np.zeros(second))
        assert "predictions and targets must have the same shape" in str(error.value)
        assert f"got {first} and {second}" in str(error.value)
        with pytest.raises(ValueError, match=cause):
            jax.eval_shape(f, np.zeros(first), np.zeros(second))


@pytest.mark.parametrize("f", REGRESSION)
def test_regression_dtypes(f):
    x = np.zeros(3)
    with pytest.raises(TypeError, match=r"targets must be .* got int32: cast with targets.astype"):
        f(x, np.zeros(3, int))
    with pytest.raises(TypeError, match=r"predictions must be .* got bool: cast"):
        f(np.zeros(3, bool), x)
    with pytest.raises(TypeError, match="predictions must be real, got complex64"):
        f(np.zeros(3, complex), x)


def test_regression_values():
    x = np.zeros(3)
    for delta in (0, -1.0, np.inf, np.nan, np.float32(-1)):
        with pytest.raises(ValueError, match="delta must be positive and finite, got"):
            losses.huber_loss(x, x, delta=delta)
    for delta in ("1", np.ones(3), 1j, True):
        with pytest.raises(TypeError, match="delta must be a real scalar, got"):
            losses.huber_loss(x, x, delta=delta)
    for f in (losses.mean_squared_error, losses.mean_absolute_error):
        with pytest.raises(ValueError, match=r"predictions and targets \(0, 2\) are empty"):
            f(np.zeros((0, 2)), np.zeros((0, 2)))


CROSS_ENTROPY_ERRORS = [
    (ValueError, np.zeros((4, 3)), r"labels \(4, 3\) must be logits \(4, 3\) without axis 1"),
    (ValueError, np.zeros((4, 1)), r"\(4, 3\) without axis 1 and labels .* \(4,\) and \(4, 1\)"),
    (ValueError, np.zeros((4, 1)), r"squeeze the last axis of labels, labels\[..., 0\]"),
    (ValueError, np.zeros(5), "batch sizes differ"),
]


@pytest.mark.parametrize(("error", "labels", "message"), CROSS_ENTROPY_ERRORS)
def test_integer_cross_entropy_shapes(error, labels, message):
    with pytest.raises(error, match=message):
        losses.softmax_cross_entropy_with_integer_labels(np.zeros((4, 3)), labels.astype(int))


def test_each_cross_entropy_names_the_other():
    logits = np.zeros((4, 3))
    integer = losses.softmax_cross_entropy_with_integer_labels
    for labels in (np.zeros(4), np.zeros((4, 3)), np.zeros(4, bool)):
        with pytest.raises(TypeError, match=r"one-hot labels use softmax_cross_entropy(\n|$)"):
            integer(logits, labels)
    with pytest.raises(ValueError, match="use softmax_cross_entropy, or take their argmax"):
        integer(logits, np.zeros((4, 3), int))
    for labels in (np.zeros(4, int), np.zeros((4, 3), int), np.zeros((4, 3), bool)):
        with pytest.raises(TypeError, match="use softmax_cross_entropy_with_integer_labels; cast"):
            losses.softmax_cross_entropy(logits, labels)
    with pytest.raises(ValueError, match="use softmax_cross_entropy_with_integer_labels"):
        losses.softmax_cross_entropy(logits, np.zeros(4))


def test_cross_entropy_arguments():
    logits, y = np.zeros((4, 3)), np.full((4, 3), 1 / 3)
    f = losses.softmax_cross_entropy
    with pytest.raises(ValueError, match=r"logits and labels .* got \(4, 3\) and \(5, 3\)"):
        f(logits, np.zeros((5, 3)))
    with pytest.raises(TypeError, match="logits must be floating point, got int32"):
        f(np.zeros((4, 3), int), y)
    with pytest.raises(ValueError, match=r"logits \(4, 3\) have no axis 2"):
        f(logits, y, 2)
    with pytest.raises(ValueError, match=r"logits \(\) have no axis -1"):
        f(0.0, 0.0)
    with pytest.raises(ValueError, match=r"logits \(4, 0\) have no classes along axis -1"):
        f(np.zeros((4, 0)), np.zeros((4, 0)))
    with pytest.raises(TypeError, match="axis must be an int, a sequence of ints or None, got"):
        f(logits, y, 1.0)
    with pytest.raises(ValueError, match=r"axis \(1, -1\) names an axis of logits \(4, 3\) twice"):
        f(logits, y, (1, -1))
    with pytest.raises(TypeError, match="where must be boolean, got float32"):
        f(logits, y, where=y)
    with pytest.raises(ValueError, match=r"logits and where .* got \(4, 3\) and \(3,\)"):
        f(logits, y, where=np.ones(3, bool))
    binary = losses.sigmoid_binary_cross_entropy
    with pytest.raises(ValueError, match=r"logits and labels .* squeeze the last axis of logits"):
        binary(np.zeros((4, 1)), np.zeros(4))
    with pytest.raises(TypeError, match="labels must be real, got complex64"):
        binary(logits, logits.astype(complex))
    for g in (f, binary):
        for smoothing in (-0.1, 1.5, np.nan):
            with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got"):
                g(logits, y, label_smoothing=smoothing)
        with pytest.raises(TypeError, match="label_smoothing must be a real scalar"):
            g(logits, y, label_smoothing=y)
