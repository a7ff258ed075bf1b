import itertools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import Compiled, array, jit, value_and_grad

from gdfx import losses

pytestmark = pytest.mark.numbers

losses = Compiled(losses)
ctc_loss, ctc_loss_with_forward_probs = losses.ctc_loss, losses.ctc_loss_with_forward_probs

few = hypothesis.settings(max_examples=15, deadline=None)


def normal(seed, shape, dtype=float, scale=2.0):
    return array(scale * np.random.default_rng(seed).normal(size=shape), dtype)


def paddings(lengths, size):
    """1 from each length on."""
    return (np.arange(size) >= np.asarray(lengths)[:, None]).astype(np.float32)


def batch(seed, dtype, rows=4, time=8, length=3, classes=4):
    """Logits, logit paddings, labels and label paddings, with repetitions and empty labels, all possible."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, classes, (rows, length))
    labels[0] = labels[0, 0]
    return (
        normal(seed, (rows, time, classes), dtype),
        array(paddings(rng.integers(2 * length - 1, time + 1, rows), time), dtype),
        array(labels),
        array(paddings(rng.integers(0, length + 1, rows), length), dtype),
    )


def log_softmax(x):
    x = np.float64(x)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def spelled(alignment, blank_id):
    return [k for k, _ in itertools.groupby(alignment) if k != blank_id]


def all_alignments(logits, label, blank_id):
    """Loss and its gradient for the logits of one row, from every alignment there is."""
    time, classes = logits.shape
    log_p = log_softmax(logits)
    total, occupied = 0.0, np.zeros((time, classes))
    for alignment in itertools.product(range(classes), repeat=time):
        if spelled(alignment, blank_id) == list(label):
            p = np.exp(sum(log_p[t, k] for t, k in enumerate(alignment)))
            total += p
            occupied[np.arange(time), list(alignment)] += p
    return -np.log(total), np.exp(log_p) - occupied / total


@jit
def both(logits, pads, labels, label_pads, cotangent=None, log_epsilon=-1e5):
    """The losses, and the gradient of their sum (weighted by `cotangent`)."""
    value, back = jax.vjp(lambda x: ctc_loss(x, pads, labels, label_pads, log_epsilon=log_epsilon), logits)
    return value, *back(jnp.ones_like(value) if cotangent is None else cotangent)


@jit
def both_of_optax(logits, pads, labels, label_pads, cotangent):
    value, back = jax.vjp(lambda x: optax.ctc_loss(x, pads, labels, label_pads), logits)
    return value, *back(cotangent)


def same_as_optax(seed, dtype, tolerance):
    arguments = batch(seed, dtype)
    cotangent = normal(seed + 1, (4,), dtype)
    got = both(*arguments, cotangent)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = both_of_optax(*arguments, cotangent)
    for x, y in zip(got, expected, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@few
@hypothesis.given(seed=st.integers(0, 2**31))
def test_float32_agrees_with_optax(seed):
    same_as_optax(seed, jnp.float32, 1e-5)


@few
@hypothesis.given(seed=st.integers(0, 2**31))
def test_float64_agrees_with_optax(seed):
    with jax.enable_x64(True):
        same_as_optax(seed, jnp.float64, 1e-12)


@pytest.mark.parametrize("blank_id", [0, 2])
def test_forward_probs_agree_with_optax(blank_id):
    logits, pads, _, _ = batch(0, jnp.float32)
    labels = array([[1, 1, 3], [3, 1, 1], [1, 3, 1], [3, 3, 3]])
    none = np.zeros((4, 3))
    got = ctc_loss_with_forward_probs(logits, pads, labels, none, blank_id=blank_id)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = jit(optax.losses.ctc_loss_with_forward_probs, static_argnames="blank_id")
        expected = theirs(logits, pads, labels, none, blank_id=blank_id)
    for x, y in zip(got, expected, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        possible = np.asarray(y) > -1e4
        np.testing.assert_allclose(x[possible], y[possible], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(x[~possible], -1e5)  # optax's sums of it differ by what was added to it
    np.testing.assert_array_equal(got[0], ctc_loss(logits, pads, labels, none, blank_id=blank_id))


@pytest.mark.parametrize("blank_id", [0, 1, 2])
def test_all_alignments(blank_id, x64):
    logits = normal(blank_id, (4, 3))
    a, b = (k for k in range(3) if k != blank_id)
    of_blank = jit(value_and_grad(lambda x, *rest: ctc_loss(x, *rest, blank_id=blank_id).sum()))
    for label in ([], [a], [b], [a, b], [a, a], [b, b], [a, b, a], [a, a, b], [a, b, a, b]):
        padded = np.full((1, 5), -7)
        padded[0, : len(label)] = label
        loss, slope = of_blank(
            logits[None], np.zeros((1, 4), bool), array(padded), paddings([len(label)], 5).astype(bool)
        )
        expected, expected_slope = all_alignments(logits, label, blank_id)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(slope[0], expected_slope, atol=1e-12)


def test_forward_probs_are_sums_over_alignments(x64):
    logits, label = normal(3, (4, 3)), [1, 1]
    none = np.zeros((1, 4), bool), np.zeros((1, 2), bool)
    _, blank, nonblank = ctc_loss_with_forward_probs(logits[None], none[0], array([label]), none[1])
    log_p = log_softmax(logits)
    for t in range(4):
        in_blank, in_label = np.zeros(3), np.zeros(2)
        for alignment in itertools.product(range(3), repeat=t + 1):
            found = spelled(alignment, 0)
            if found != label[: len(found)]:
                continue
            p = np.exp(sum(log_p[i, k] for i, k in enumerate(alignment)))
            if alignment[-1] == 0 or t == 3:
                in_blank[len(found)] += p
            if alignment[-1] != 0:
                in_label[len(found) - 1] += p
        for got, p in ((blank[t, 0], in_blank), (nonblank[t, 0], in_label)):
            expected = np.where(p > 0, np.log(np.where(p > 0, p, 1)), -1e5)
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


# From torch 2.13 in float64: ctc_loss(log_softmax(logits, -1), reduction="none"), the sums of squares of the gradient
# of each row, and the gradient of logits[0, 2]. fmt: off
LOGITS = [
    [
        [0.25, -0.26, 1.28, 0.21],
        [-1.07, 0.72, 2.61, 1.89],
        [-1.41, -2.53, -1.25, 0.08],
        [-4.65, -0.44, -2.49, -1.46],
        [-1.09, -0.63, 0.82, 2.09],
        [-0.26, 2.73, -1.33, 0.7],
    ],
    [
        [1.81, 0.19, -1.49, -1.84],
        [-0.92, 0.44, -2.02, -0.42],
        [-0.32, 1.08, 0.43, 0.71],
        [-1.31, -0.26, 1.57, 2.99],
        [-2.52, 3.03, 2.69, 1.56],
        [0.53, -0.63, 2.92, 3.92],
    ],
    [
        [3.6, 2.63, 0.71, -2.42],
        [-0.01, 1.31, -2.58, 0.79],
        [0.86, 1.39, -2.37, -1.32],
        [-0.87, -2.34, 3.48, -0.99],
        [0.66, -0.52, 3.17, 2.64],
        [1.27, -4.41, 0.1, 1.37],
    ],
    [
        [2.01, -1.24, 3.64, -2.64],
        [-1.32, 1.87, 0.1, 4.0],
        [0.38, -1.27, -0.76, -2.18],
        [-2.56, 1.26, 1.16, 2.59],
        [-1.51, 3.38, -0.57, 3.15],
        [-0.87, -1.47, 0.5, 2.06],
    ],
]
TORCH_LOSS = [10.250548132505838, 4.6900261388289755, 11.66074517660933, 4.30742872343145]
TORCH_SQUARES = [5.229049310953665, 2.379705058829396, 5.927744501582492, 2.7399326607350956]
TORCH_SLOPE = [-0.8340629353031518, 0.025255317493861524, 0.16916968792048107, 0.6396379298888093]
# fmt: on


def test_torch(x64):
    labels = array([[1, 1, 2], [3, 0, 0], [0, 0, 0], [2, 1, 2]])
    rest = array(paddings([6, 5, 6, 4], 6)), labels, array(paddings([3, 1, 0, 3], 3))
    loss, slope = both(array(LOGITS), *rest)
    np.testing.assert_allclose(loss, TORCH_LOSS, rtol=1e-12)
    np.testing.assert_allclose(np.square(slope).sum((1, 2)), TORCH_SQUARES, rtol=1e-12)
    np.testing.assert_allclose(slope[0, 2], TORCH_SLOPE, rtol=1e-12)


def test_what_is_padded_does_not_matter():
    logits, _, labels, _ = batch(0, jnp.float32)
    skip, absent = paddings([6, 5, 8, 7], 8), paddings([3, 2, 0, 1], 3)
    skip[0, 2] = 1  # a frame in the middle
    loss, slope = both(logits, skip, labels, absent)
    assert not np.any(slope[skip == 1])
    for row in (0, 2):
        kept = logits[row][skip[row] == 0][None]
        label = labels[row, : int((1 - absent[row]).sum())][None]
        alone = ctc_loss(kept, np.zeros(kept.shape[:2]), label, np.zeros(label.shape))
        np.testing.assert_allclose(loss[row], alone[0], rtol=1e-5)

    for fill, odd, kind in ((np.nan, -1, bool), (np.inf, 99, int), (-np.inf, 0, np.float16)):
        filled = np.where(skip[..., None] == 1, fill, logits)
        got = both(filled, skip.astype(kind), np.where(absent == 1, odd, labels), absent.astype(kind))
        np.testing.assert_array_equal(got[0], loss)
        np.testing.assert_allclose(got[1], slope, rtol=1e-5)  # of other kinds, it is another program


def test_rows_that_cannot_be_spelled():
    logits = normal(0, (5, 3, 4), jnp.float32)
    labels = array([[1, 2, 1, 2], [1, 1, 2, 0], [1, 0, 0, 0], [1, 2, 3, 0], [0, 0, 0, 0]])
    absent = paddings([4, 3, 1, 3, 0], 4)
    skip = paddings([3, 3, 0, 3, 0], 3)  # too short; a repetition too short; no frames; fine; nothing
    for log_epsilon in (-1e5, -np.inf, -7.0):
        loss, slope = both(logits, skip, labels, absent, None, log_epsilon)
        np.testing.assert_array_equal(loss[:3], -log_epsilon)
        np.testing.assert_array_equal(loss[4], 0)
        assert 0 < loss[3] < 20
        assert np.isfinite(slope).all()
        assert slope.any((1, 2)).tolist() == [False, False, False, True, False]


def test_unlikely_is_not_impossible():
    """Below `log_epsilon` there is room for probabilities that are merely small."""
    logits = np.stack([np.full(50, 1e4), np.zeros(50), np.zeros(50)], axis=1)[None]
    none, labels = np.zeros((1, 50)), np.tile(array([[1, 2]]), (1, 25))
    loss, slope = both(logits, none, labels, none)
    np.testing.assert_allclose(loss, 50 * 1e4, rtol=1e-6)
    np.testing.assert_allclose(slope[0, 0], [1, -1, 0], atol=1e-6)
    loss, _ = both(logits, none, labels, (np.arange(50) > 0)[None])
    np.testing.assert_allclose(loss, 1e4 - np.log(50), rtol=1e-6)


def test_impossible_classes():
    logits = np.where(np.arange(4) == 3, -np.inf, normal(0, (4, 8, 4), jnp.float32))
    labels = array([[1, 2, 1], [3, 1, 1], [1, 1, 3], [1, 2, 0]])
    none, absent = np.zeros((4, 8)), array(paddings([3, 3, 2, 2], 3))
    loss, slope = both(logits, none, labels, absent)
    expected, expected_slope = both(logits[..., :3], none, np.minimum(labels, 2), absent)
    for got, x in ((loss, expected), (slope[..., :3], expected_slope)):
        np.testing.assert_allclose(got[np.array([0, 2, 3])], x[np.array([0, 2, 3])], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loss[1], 1e5)
    assert np.isfinite(slope).all()
    assert slope.any((1, 2)).tolist() == [True, False, True, True]


def test_faulty_labels_give_nan_rows():
    logits, none = normal(0, (6, 5, 4), jnp.float32), np.zeros((6, 5))
    labels = array([[1, 2, 3], [1, -1, 2], [4, 1, 2], [1, 0, 2], [1, 2, 3], [1, 2, 0]])
    absent = array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]])
    loss, slope = both(logits, none, labels, absent)
    assert np.isnan(loss).tolist() == [False, True, True, True, True, False]
    assert np.isfinite(slope).all()
    assert slope.any((1, 2)).tolist() == (~np.isnan(loss)).tolist()
    with jax.debug_nans(True):  # nothing to object to without such rows
        both(logits, none, np.tile(labels[:1], (6, 1)), absent * 0)


def test_empty_axes():
    shapes = [(0, 3, 2), (2, 0, 2), (2, 3, 0), (2, 0, 0)]
    for rows, time, length in shapes:
        rest = np.zeros((rows, time)), np.ones((rows, length), int), np.zeros((rows, length))
        logits = normal(0, (rows, time, 4), jnp.float32)
        loss, slope = both(logits, *rest)
        _, blank, nonblank = jax.eval_shape(ctc_loss_with_forward_probs, logits, *rest)
        assert (blank.shape, nonblank.shape) == ((time, rows, length + 1), (time, rows, length))
        expected = 1e5 if length and not time else -log_softmax(logits)[..., 0].sum(1) if not length else []
        np.testing.assert_allclose(loss, np.broadcast_to(expected, (rows,)), rtol=1e-6)
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, *rest = batch(0, dtype)
    rest = [x if x.dtype != dtype else x.astype(jnp.float32) for x in rest]
    loss, slope = both(logits, *rest)
    assert (loss.dtype, slope.dtype) == (jnp.float32, dtype)
    wide, _ = both(logits.astype(jnp.float32), *rest)
    np.testing.assert_allclose(loss, wide, rtol=1e-6)


def test_integer_labels_of_every_width():
    logits, none = normal(0, (1, 4, 300), jnp.float32), (np.zeros((1, 4)), np.zeros((1, 3)))
    expected = ctc_loss(logits, none[0], array([[1, 1, 127]]), none[1])
    with jax.enable_x64(True):
        for dtype in ("int8", "uint16", "uint32", "uint64"):
            got = ctc_loss(logits, none[0], array([[1, 1, 127]], dtype), none[1])
            np.testing.assert_array_equal(got, expected)


def test_vmap_is_a_loop():
    batches = [batch(seed, jnp.float32) for seed in range(3)]
    mapped = jax.vmap(both)(*(np.stack(column) for column in zip(*batches, strict=True)))
    looped = [both(*arguments) for arguments in batches]
    for i in range(2):
        np.testing.assert_allclose(mapped[i], np.stack([x[i] for x in looped]), rtol=1e-5, atol=1e-6)


def test_second_derivative_is_finite():
    logits, *rest = batch(0, jnp.float32)
    curve = jit(lambda x, v: jax.jvp(lambda x: both(x, *rest)[1], (x,), (v,))[1])
    assert np.isfinite(curve(logits, normal(1, logits.shape, jnp.float32))).all()


def test_arguments():
    good: dict[str, Any] = {
        "logits": np.zeros((2, 5, 4)),
        "logit_paddings": np.zeros((2, 5)),
        "labels": np.ones((2, 3), int),
        "label_paddings": np.zeros((2, 3)),
    }
    cases = [
        (ValueError, {"logits": np.zeros((5, 4))}, r"logits must be \(batch, time, .*; add the batch axis"),
        (ValueError, {"logits": np.zeros(4)}, r"logits must be \(batch, time, classes\), got \(4,\)(\n|$)"),
        (TypeError, {"logits": np.zeros((2, 5, 4), int)}, "logits must be floating point"),
        (ValueError, {"logit_paddings": np.zeros((5, 2))}, r"and logit_paddings .* transpose one of them"),
        (ValueError, {"logit_paddings": np.zeros((2, 5, 1))}, r"squeeze the last axis of logit_paddings"),
        (ValueError, {"logit_paddings": np.zeros(2)}, r"got \(2, 5\) and \(2,\)"),
        (ValueError, {"label_paddings": np.zeros((2, 4))}, r"labels and label_paddings must have the same shape"),
        (TypeError, {"label_paddings": np.zeros((2, 3), complex)}, "label_paddings must be booleans or"),
        (TypeError, {"labels": np.ones((2, 3))}, "labels must be integer class indices, got float32: cast"),
        (ValueError, {"labels": np.ones(2, int)}, r"labels must be \(batch, length\) .* got \(2,\)"),
        (ValueError, {"labels": np.ones((3, 3), int)}, r"with the batch size 2 of logits .* got \(3, 3\)"),
        (ValueError, {"blank_id": 4}, r"blank_id must be a class of logits .* in \[0, 4\), got 4"),
        (ValueError, {"blank_id": -1}, "blank_id must be a class"),
        (TypeError, {"blank_id": 1.0}, r"blank_id must be an int, got 1\.0"),
        (ValueError, {"log_epsilon": 1.0}, r"log_epsilon must be at most 0, got 1\.0"),
        (ValueError, {"log_epsilon": np.nan}, "log_epsilon must be at most 0, got nan"),
        (TypeError, {"log_epsilon": np.zeros(2)}, "log_epsilon must be a real scalar"),
    ]
    for f in (ctc_loss, ctc_loss_with_forward_probs):
        f(**good)
        for error, change, message in cases:
            with pytest.raises(error, match=message):
                f(**good | change)
