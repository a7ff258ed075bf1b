from functools import partial
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import Compiled, array, grad, jit, value_and_grad
from sklearn.metrics.pairwise import cosine_similarity

from gdfx import losses

pytestmark = pytest.mark.numbers

losses = Compiled(losses)
few = hypothesis.settings(max_examples=15, deadline=None)
seeds = hypothesis.given(seed=st.integers(0, 2**31))


def normal(seed, shape, dtype=float, scale=2.0):
    return array(scale * np.random.default_rng(seed).normal(size=shape), dtype)


def replaced(x, index, value):
    x = x.copy()
    x[index] = value
    return x


def softmax(x):
    z = np.exp(np.asarray(x) - np.max(x, -1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def one_hot(seed, shape, classes, dtype=float):
    """Every class occurs."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, classes, shape)
    index.flat[:classes] = np.arange(classes)
    return array(np.eye(classes)[index], dtype)


def several(library, floats, index, keep):
    """Losses of each kind; `library` is `ours` or optax's."""
    x, y, weights, a, b, c, relevance = (floats[k] for k in ("x", "y", "weights", "a", "b", "c", "relevance"))
    dice, rank, triplet = library.dice_loss, library.ranking_softmax_loss, library.triplet_margin_loss
    return {
        "dice": dice(x, y, alpha=0.3, beta=0.8, smooth=0.5, ignore_background=True),
        "dice along axes": dice(x, y, reduction="none", axis=(0, -3)),
        "dice with weights": dice(x, y, class_weights=weights, reduction="sum"),
        "binary dice": library.binary_dice_loss(x, y, smooth=2.0),
        "ntxent": library.ntxent(x.reshape(8, 15), index, temperature=0.5),
        "triplet": triplet(a, b, c),
        "triplet of degree 4": triplet(a, b, c, axis=0, norm_degree=4, margin=0.5, eps=1e-3),
        "ranking": rank(a, relevance, weights=jnp.abs(c)),
        "ranking with where": rank(a, relevance, where=keep),
        "ranking unreduced": rank(a, relevance, where=keep, reduce_fn=None),
        "ranking summed": rank(a, relevance, where=keep, reduce_fn=jnp.sum),
        "smooth": library.smooth_labels(y, 0.2),
        "smooth along axes": library.smooth_labels(y, 0.2, axis=(0, 2)),
        "smooth along all": library.smooth_labels(y, 0.2, axis=None),
    }


@partial(jit, static_argnums=0)
def both(f, floats, *rest):
    """Values, and the gradient of all floats for cotangents that are the same in each call."""
    values, back = jax.vjp(lambda floats: f(floats, *rest), floats)
    leaves, structure = jax.tree.flatten(values)
    cotangents = [normal(i, x.shape, x.dtype) for i, x in enumerate(leaves)]
    return values, *back(jax.tree.unflatten(structure, cotangents))


def same_function(f, g, *arguments, tolerance):
    got = both(f, *arguments)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = both(g, *arguments)
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for x, (path, y) in zip(jax.tree.leaves(got), paths, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=str(path))


of_ours, of_optax = partial(several, losses), partial(several, optax.losses)


def check_against_optax(seed, dtype, tolerance):
    rng = np.random.default_rng(seed)
    floats = {name: normal(seed + i, (6, 5), dtype) for i, name in enumerate("abc")}
    floats["x"], floats["y"] = normal(seed, (2, 4, 5, 3), dtype), one_hot(seed, (2, 4, 5), 3, dtype)
    floats["weights"] = np.abs(normal(seed, (3,), dtype))
    floats["relevance"] = array(rng.integers(0, 4, (6, 5)), dtype)
    index = array([0, 0, 1, *rng.integers(0, 4, 5)])
    keep = (rng.random((6, 5)) < 0.7) | (np.arange(5) == 0)
    same_function(of_ours, of_optax, floats, index, keep, tolerance=tolerance)


@few
@seeds
def test_float32_agrees_with_optax(seed):
    check_against_optax(seed, jnp.float32, 2e-5)


@few
@seeds
def test_float64_agrees_with_optax(seed):
    with jax.enable_x64(True):
        check_against_optax(seed, jnp.float64, 1e-12)


def _generalized(xy):
    return losses.multiclass_generalized_dice_loss(*xy)


def _generalized_of_optax(xy):
    return optax.losses.multiclass_generalized_dice_loss(*xy)


@few
@seeds
def test_generalized_dice_agrees_with_optax(seed):
    with jax.enable_x64(True):
        xy = normal(seed, (2, 4, 5, 3)), one_hot(seed, (2, 4, 5), 3)
        # optax adds 1e-7 to the squares of frequencies, here at least 1.
        same_function(_generalized, _generalized_of_optax, xy, tolerance=5e-7)


def test_half_precision_is_computed_in_float32():
    dtype = jnp.bfloat16
    x, y = normal(0, (6, 5), dtype), one_hot(0, (6,), 5, dtype)
    index = array([0, 0, 1, 1, 2, 2])

    @jit
    @partial(value_and_grad, has_aux=True)
    def every(x, y):
        every = [
            losses.dice_loss(x, y),
            losses.binary_dice_loss(x, y),
            losses.multiclass_generalized_dice_loss(x, y),
            losses.ntxent(x, index),
            losses.triplet_margin_loss(x, y, x * 0.5),
            losses.ranking_softmax_loss(x, y),
        ]
        return sum(loss.sum() for loss in every), every

    (_, half), slope = every(x, y)
    (_, wide), _ = every(x.astype(jnp.float32), y.astype(jnp.float32))
    assert slope.dtype == dtype
    assert {loss.dtype for loss in half} == {jnp.dtype(jnp.float32)}
    for a, b in zip(half, wide, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    # These are labels: they stay in the dtype of the labels.
    smooth = losses.smooth_labels(y, 0.1)
    assert smooth.dtype == dtype
    np.testing.assert_array_equal(smooth, losses.smooth_labels(y.astype(jnp.float32), 0.1).astype(dtype))


def test_vmap_is_a_loop():
    x, y = normal(0, (3, 4, 5), jnp.float32), one_hot(0, (3, 4), 5, jnp.float32)
    index = array([[0, 1, 0, 1], [2, 2, 1, 1], [0, 1, 2, 3]])

    def every(x, y, index, alpha):
        return [
            losses.dice_loss(x, y),
            losses.binary_dice_loss(x, y),
            losses.multiclass_generalized_dice_loss(x, y),
            losses.ntxent(x, index),
            losses.triplet_margin_loss(x, y, -x),
            losses.ranking_softmax_loss(x, y),
            losses.smooth_labels(y, alpha),
        ]

    arguments = x, y, index, array([0.0, 0.1, 1.0])
    mapped = jit(jax.vmap(every))(*arguments)
    one = jit(every)
    looped = jax.tree.map(lambda *rows: np.stack(rows), *(one(*row) for row in zip(*arguments, strict=True)))
    for a, b in zip(mapped, looped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_traced_scalars_of_another_width(x64):
    x, y = normal(0, (6, 5)), one_hot(0, (6,), 5)
    index = array([0, 0, 1, 1, 2, 2])

    def every(s):
        return [
            losses.ntxent(x, index, s),
            losses.triplet_margin_loss(x, y, -x, margin=s, eps=s, norm_degree=4 * s),
            losses.dice_loss(x, y, smooth=s, alpha=s, beta=s),
            losses.smooth_labels(y, s),
        ]

    every = jit(every)
    expected = every(0.5)
    for scalar in (jnp.float32(0.5), np.float64(0.5)):
        for a, b in zip(every(scalar), expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12)


# Dice


def dice(p, t, smooth=1.0, alpha=0.5, beta=0.5):
    """For one class of one example."""
    both = (p * t).sum()
    return 1 - (both + smooth) / (both + alpha * (p - p * t).sum() + beta * (t - p * t).sum() + smooth)


def test_dice_by_the_formula(x64):
    x, y = normal(0, (2, 6, 3)), one_hot(1, (2, 6), 3)
    p = softmax(x)
    expected = np.array([[dice(p[b, :, k], y[b, :, k], 0.1, 0.2, 0.7) for k in range(3)] for b in range(2)])
    options: dict[str, Any] = {"smooth": 0.1, "alpha": 0.2, "beta": 0.7}
    for given, soft in ((x, True), (array(p), False)):
        got = jit(partial(losses.dice_loss, apply_softmax=soft, reduction="none", **options))(given, y)
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(losses.dice_loss(x, y, **options), expected.mean(1), rtol=1e-12)
    weights = array([1.0, 2.0, 3.0])
    got = losses.dice_loss(x, y, class_weights=weights, ignore_background=True, reduction="sum", **options)
    np.testing.assert_allclose(got, expected[:, 1:] @ weights[1:], rtol=1e-12)
    for kind in (bool, int, jnp.float32):
        np.testing.assert_array_equal(losses.dice_loss(x, y.astype(kind)), losses.dice_loss(x, y))

    p = np.array(1 / (1 + np.exp(-x)))
    expected = [dice(p[b], y[b]) for b in range(2)]
    for logits, probabilities, targets in ((x, p, y), (x[..., None], p[..., None], y[..., None])):
        np.testing.assert_allclose(losses.binary_dice_loss(logits, targets), expected, rtol=1e-12)
        got = jit(partial(losses.binary_dice_loss, apply_sigmoid=False))(probabilities, targets)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_small_dice_losses_do_not_cancel():
    x = array([[[100.0], [100.0], [-20.0]]])
    y = array([[[1.0], [1.0], [0.0]]])
    np.testing.assert_allclose(losses.dice_loss(x, y), 0.5 * np.exp(-20) / 3, rtol=1e-5)


@jax.debug_nans(True)
def test_empty_masks():
    zeros, ones = np.zeros((1, 4, 1)), np.ones((1, 4, 1))

    @partial(jit, static_argnames="soft")
    def both(x, y, smooth, soft=False):
        f = lambda x, y: losses.binary_dice_loss(x, y, smooth=smooth, apply_sigmoid=soft).sum()
        return value_and_grad(f, (0, 1))(x, y)

    for smooth in (0.0, 1.0):
        for y in (zeros, ones):  # nothing to find, nothing found; all found
            value, slopes = both(y, y, smooth)
            assert value == 0
            assert np.isfinite(slopes[0]).all()
            assert np.isfinite(slopes[1]).all()
        for logit in (-jnp.inf, -1e4, -100.0, -60.0, 60.0, 1e4, jnp.inf):
            for y in (zeros, ones):
                value, slopes = both(logit * ones, y, smooth, soft=True)
                assert np.isfinite(value)
                assert np.isfinite(slopes[0]).all()
    assert both(ones, zeros, 0.0)[0] == both(zeros, ones, 0.0)[0] == 1
    for scale in (1e-38, 1e-30, 1e-20, 1e-18, 1e-10):  # whose squares are no longer normal numbers
        assert np.isfinite(both(scale * ones, zeros, 0.0)[1][0]).all()

    # A class in neither region, and infinite logits, with several classes.
    x = np.tile(array([0.0, 1.0, -jnp.inf]), (1, 4, 1))
    y = np.tile(array([1.0, 0.0, 0.0]), (1, 4, 1))
    loss, back = jax.vjp(jit(lambda x: losses.dice_loss(x, y, smooth=0.0, reduction="none")), x)
    assert loss[0, 2] == 0
    assert np.isfinite(back(jnp.ones_like(loss))[0]).all()
    assert losses.dice_loss(np.zeros((0, 4, 3)), np.zeros((0, 4, 3))).shape == (0,)


def test_generalized_dice_weights(x64):
    x = normal(0, (2, 6, 4))
    each, generalized = partial(losses.dice_loss, reduction="none"), losses.multiclass_generalized_dice_loss
    for present in ([0, 1, 2, 3], [0, 1, 3], [2]):
        y = np.eye(4)[np.random.default_rng(1).choice(present, (2, 6))]
        count = y.sum((0, 1))
        weights = 1 / np.where(count > 0, count, count[count > 0].min()) ** 2  # the absent as the rarest
        weighted = each(x, y) * weights * 4 / weights.sum()
        np.testing.assert_allclose(generalized(x, y), weighted.mean(), rtol=1e-12)
        got = generalized(x, y, ignore_background=True)
        np.testing.assert_allclose(got, weighted[:, 1:].mean(), rtol=1e-12)
    slopes = grad(partial(losses.multiclass_generalized_dice_loss, smooth=0.0), (0, 1))
    with jax.debug_nans(True):
        for targets in (np.zeros((2, 6, 4)), np.eye(4)[np.full((2, 6), 2)]):
            for g in slopes(x, targets):
                assert np.isfinite(g).all()


def test_dice_errors():
    x = np.zeros((2, 4, 3))
    cases = [
        (ValueError, x, np.zeros((2, 4)), {}, r"class indices, pass jax.nn.one_hot\(targets, 3\)"),
        (ValueError, x, np.zeros((2, 4, 1)), {}, "predictions and targets must have the same shape"),
        (ValueError, x[..., :1], np.zeros((2, 4)), {}, "squeeze the last axis of predictions"),
        (TypeError, x, x.astype(complex), {}, "targets must be real"),
        (TypeError, x.astype(int), x, {}, "predictions must be floating point"),
        (ValueError, x[..., :0], x[..., :0], {}, r"must be \(batch, ..., classes\) with at least one class"),
        (ValueError, np.zeros(()), np.zeros(()), {}, r"must be \(batch, ..., classes\)"),
        (ValueError, x, x, {"reduction": "max"}, 'reduction must be "mean", "sum" or "none", got \'max\''),
        (ValueError, x, x, {"smooth": -1}, "smooth must be at least 0 and finite, got -1"),
        (ValueError, x, x, {"alpha": np.inf}, "alpha must be at least 0"),
        (ValueError, x, x, {"beta": np.nan}, "beta must be at least 0"),
        (TypeError, x, x, {"beta": np.ones(3)}, "beta must be a real scalar"),
        (ValueError, x, x, {"class_weights": np.ones(2)}, r"classes and class_weights .* got \(3,\) and \(2,\)"),
        (TypeError, x, x, {"class_weights": [1, 2, 3]}, "class_weights must be floating point"),
        (ValueError, x, x, {"axis": 2}, r"axis 2 names the last axis .* which holds the classes"),
        (ValueError, x, x, {"axis": (1, -1)}, "which holds the classes"),
        (ValueError, x, x, {"axis": (1, -2)}, r"names an axis of predictions \(2, 4, 3\) twice"),
        (ValueError, x, x, {"axis": 3}, r"predictions \(2, 4, 3\) have no axis 3"),
        (TypeError, x, x, {"axis": 1.0}, "axis must be an int, a sequence of ints or None"),
        (ValueError, x[..., :1], x[..., :1], {"ignore_background": True}, "there is no background to ignore"),
    ]
    for error, predictions, targets, options, message in cases:
        with pytest.raises(error, match=message):
            losses.dice_loss(predictions, targets, **options)
    for f in (losses.binary_dice_loss, losses.multiclass_generalized_dice_loss):
        with pytest.raises(ValueError, match="predictions and targets must have the same shape"):
            f(x, np.zeros((1, 4, 3)))
    with pytest.raises(ValueError, match=r"\(0, 3\) are empty: no mean to take"):
        losses.multiclass_generalized_dice_loss(np.zeros((0, 3)), np.zeros((0, 3)))


# NT-Xent


def ntxent_by_pairs(x, labels, temperature):
    similarity = cosine_similarity(x) / temperature
    costs = []
    for i, j in np.ndindex(len(x), len(x)):
        if i != j and labels[i] == labels[j]:
            others = [similarity[i, k] for k in range(len(x)) if labels[k] != labels[i]]
            costs.append(np.logaddexp.reduce([similarity[i, j], *others]) - similarity[i, j])
    return np.mean(costs)


def test_ntxent_by_pairs(x64):
    x = normal(0, (7, 3))
    for labels in ([0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 3, 4, 5, 0], [-1, 3, -1, 3, 9, 9, 3]):
        for temperature in (0.07, 2):
            got = losses.ntxent(x, array(labels), temperature)
            np.testing.assert_allclose(got, ntxent_by_pairs(x, labels, temperature), rtol=1e-12)
    booleans = array([True, True, False, False, True, False, True])
    np.testing.assert_array_equal(losses.ntxent(x, booleans), losses.ntxent(x, booleans.astype(int)))


@jax.debug_nans(True)
def test_ntxent_hard_points():
    x = normal(0, (4, 3), jnp.float32)
    both = jit(value_and_grad(losses.ntxent))
    for labels in ([0, 1, 2, 3], [0, 0, 0, 0]):  # no pair; no negatives
        value, slope = both(x, array(labels))
        np.testing.assert_array_equal(value, 0)
        np.testing.assert_array_equal(slope, 0)
    one_pair = array([0, 0, 1, 2])  # two rows without positives
    value, slope = both(x, one_pair)
    assert value > 0
    assert np.isfinite(slope).all()
    assert slope.any(1).all()  # they are negatives
    for odd in (replaced(x, 0, 0), x * 0, replaced(x, 1, x[0]), replaced(x, 2, x[0]), x * 1e-18, x * 1e18):
        for temperature in (0.07, 1e-6, 1e6):
            value, slope = both(odd, one_pair, temperature)
            assert np.isfinite(value)
            assert np.isfinite(slope).all()
    _, slope = both(replaced(x, 0, 0), one_pair)
    np.testing.assert_array_equal(slope[0], 0)
    for n in (0, 1):
        value, slope = both(x[:n], np.zeros(n, int))
        np.testing.assert_array_equal(value, 0)
        np.testing.assert_array_equal(slope, 0)


def test_ntxent_errors():
    x, labels = np.ones((4, 3)), np.zeros(4, int)
    cases = [
        (ValueError, (np.ones(4), labels), r"embeddings must be \(batch, features\), got \(4,\)"),
        (TypeError, (x.astype(int), labels), "embeddings must be floating point"),
        (ValueError, (x, labels[:3]), r"embeddings \(4, 3\) without their features and labels"),
        (ValueError, (x, labels[:, None]), "squeeze the last axis of labels"),
        (TypeError, (x, labels.astype(float)), "labels must be integers, .* got float32"),
        (ValueError, (x, labels, 0.0), r"temperature must be positive and finite, got 0\.0"),
        (ValueError, (x, labels, np.inf), "temperature must be positive and finite"),
        (TypeError, (x, labels, np.ones(4)), "temperature must be a real scalar"),
    ]
    for error, arguments, message in cases:
        with pytest.raises(error, match=message):
            losses.ntxent(*arguments)


# Triplets


def test_triplets_of_any_degree(x64):
    a, p, n = (np.asarray(normal(i, (6, 5))) for i in range(3))
    for degree in (1, 1.5, 2, 3, 4.0):
        distance = lambda x, y, d=degree: ((np.abs(x - y) ** d).sum(-1) + 1e-6) ** (1 / d)
        expected = np.maximum(distance(a, p) - distance(a, n) + 1, 0)
        np.testing.assert_allclose(losses.triplet_margin_loss(a, p, n, norm_degree=degree), expected, rtol=1e-12)
    norms = np.linalg.norm(a - p, axis=0) - np.linalg.norm(a - n, axis=0)
    got = losses.triplet_margin_loss(a, p, n, 0, margin=0.5, eps=0)
    np.testing.assert_allclose(got, np.maximum(norms + 0.5, 0), rtol=1e-12)
    assert losses.triplet_margin_loss(a[0], p[0], n[0]).shape == ()


@jax.debug_nans(True)
def test_triplets_at_distance_0():
    x, y = normal(0, (4, 3), jnp.float32), normal(1, (4, 3), jnp.float32)

    @partial(grad, argnums=(0, 1, 2, 3))
    def every_slope(anchors, positives, negatives, degree, eps):
        options = {"norm_degree": degree, "eps": eps, "margin": 20.0}
        return losses.triplet_margin_loss(anchors, positives, negatives, **options).sum()

    for degree in (1.0, 1.5, 2.0, 3.0):
        for eps in (0.0, 1e-6):
            for negatives in (x, y):
                *slopes, tuned = every_slope(x, x, negatives, degree, eps)
                np.testing.assert_array_equal(slopes[1], 0)
                assert np.isfinite(np.stack(slopes)).all()
                assert np.any(slopes[2]) == (negatives is y)
                assert np.isfinite(tuned)


def test_triplet_errors():
    x = np.ones((4, 3))
    cases = [
        (ValueError, (x, x[:1], x), {}, "anchors and positives must have the same shape"),
        (ValueError, (x, x, x[0]), {}, "anchors and negatives must have the same shape"),
        (TypeError, (x, x.astype(int), x), {}, "positives must be floating point"),
        (TypeError, (x, x, x.astype(complex)), {}, "negatives must be real"),
        (ValueError, (x, x, x), {"axis": 2}, r"anchors \(4, 3\) have no axis 2"),
        (ValueError, (x, x, x), {"norm_degree": 0.5}, r"norm_degree must be at least 1 and finite, got 0\.5"),
        (ValueError, (x, x, x), {"norm_degree": np.inf}, "norm_degree must be at least 1 and finite"),
        (ValueError, (x, x, x), {"margin": -1}, "margin must be at least 0 and finite, got -1"),
        (ValueError, (x, x, x), {"eps": np.nan}, "eps must be at least 0 and finite, got nan"),
        (TypeError, (x, x, x), {"margin": np.ones(4)}, "margin must be a real scalar"),
    ]
    for error, arguments, options, message in cases:
        with pytest.raises(error, match=message):
            losses.triplet_margin_loss(*arguments, **options)


# Ranking


def test_masked_items_and_lists():
    x, y = normal(0, (3, 4), jnp.float32), array([[0, 1, 2, 0], [1, 0, 0, 3], [0, 0, 0, 0]])
    keep = array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
    first = losses.softmax_cross_entropy(x[0, :3], array([0.0, 1.0, 2.0]))
    each = partial(losses.ranking_softmax_loss, where=keep, reduce_fn=None)
    np.testing.assert_allclose(each(x, y), [float(first), 0, 0], rtol=1e-6)
    np.testing.assert_allclose(losses.ranking_softmax_loss(x, y, where=keep), first / 2, rtol=1e-6)  # of two lists
    np.testing.assert_allclose(losses.ranking_softmax_loss(x, y, where=keep, reduce_fn=jnp.sum), first, rtol=1e-6)
    for kind in (bool, float):
        np.testing.assert_array_equal(each(x, (y > 0).astype(kind)), each(x, (y > 0).astype(int)))
    doubled = each(x, y, weights=np.full((3, 4), 2))
    np.testing.assert_allclose(doubled, 2 * each(x, y), rtol=1e-6)
    assert losses.ranking_softmax_loss(x[0], y[0]).shape == ()

    both = jit(
        value_and_grad(lambda x, y, w, keep: losses.ranking_softmax_loss(x, y, where=keep, weights=w), (0, 1, 2))
    )
    w = np.ones((3, 4))
    value, slopes = both(x, y.astype(float), w, keep)
    assert all(np.isfinite(slope).all() for slope in slopes)
    assert not any(np.any(slope[~keep]) for slope in slopes)
    for odd in (np.nan, np.inf, -np.inf):  # what is masked does not matter
        hidden = [np.where(keep, a, odd) for a in (x, y.astype(float), w)]
        got, _ = both(*hidden, keep)
        np.testing.assert_array_equal(got, value)
        assert np.isfinite(grad(lambda x, h=hidden: losses.ranking_softmax_loss(x, y, where=keep))(hidden[0])).all()
    value, slopes = both(x, y.astype(float), w, keep & False)
    np.testing.assert_array_equal(value, 0)
    assert not any(np.any(slope) for slope in slopes)
    np.testing.assert_array_equal(losses.ranking_softmax_loss(x[:0], y[:0]), 0)


def test_ranking_of_infinite_logits_and_of_nan():
    x = array([[0.0, 1.0, -jnp.inf]])
    f = lambda x: losses.ranking_softmax_loss(x, array([[1, 0, 0]]))
    value, slope = value_and_grad(f)(x)
    np.testing.assert_allclose(value, np.log1p(np.e), rtol=1e-6)
    assert np.isfinite(slope).all()
    assert losses.ranking_softmax_loss(x, array([[0, 0, 1]])) == jnp.inf
    assert np.isnan(f(replaced(x, (0, 0), np.nan)))


def test_ranking_errors():
    x = np.ones((4, 3))
    cases = [
        (ValueError, (x, np.ones((4, 1))), {}, "logits and labels must have the same shape"),
        (ValueError, (x, np.ones(4, int)), {}, "logits and labels must have the same shape"),
        (TypeError, (x, x.astype(complex)), {}, "labels must be real, got complex64"),
        (TypeError, (x.astype(int), x), {}, "logits must be floating point"),
        (ValueError, (x, x), {"weights": np.ones((4, 1))}, "logits and weights must have the same shape"),
        (ValueError, (x, x), {"where": np.ones(4, bool)}, "logits and where must have the same shape"),
        (TypeError, (x, x), {"where": x}, "where must be boolean, got float32"),
        (ValueError, (1.0, 1.0), {}, r"logits \(\) must be \(..., items\) with at least one item"),
        (ValueError, (x[:, :0], x[:, :0]), {}, "with at least one item"),
    ]
    for error, arguments, options, message in cases:
        with pytest.raises(error, match=message):
            losses.ranking_softmax_loss(*arguments, **options)


# Smoothing


def test_smooth_labels_with_classes_removed():
    y = np.eye(4)[array([0, 1, 3])]
    keep = array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
    got = losses.smooth_labels(y, 0.3, where=keep)
    np.testing.assert_allclose(got, [[0.85, 0.15, 0, 0], [0, 0.8, 0.1, 0.1], [0, 0, 0, 0]], rtol=1e-6)
    counted = np.asarray(keep.sum(0, keepdims=True))
    columns = losses.smooth_labels(y, 0.3, axis=0, where=keep)
    np.testing.assert_allclose(columns, np.where(keep, 0.7 * np.asarray(y) + 0.3 / counted, 0), rtol=1e-6)
    everything = losses.smooth_labels(y, 0.3, axis=None, where=keep)
    np.testing.assert_allclose(everything, np.where(keep, 0.7 * y + 0.3 / 5, 0), rtol=1e-6)
    for g in grad(lambda y, a: losses.smooth_labels(y, a, where=keep).sum(), (0, 1))(y, 0.3):
        assert np.isfinite(g).all()
    # They are what the losses smooth themselves.
    logits = normal(0, (3, 4), jnp.float32)
    np.testing.assert_allclose(
        losses.softmax_cross_entropy(logits, got, where=keep),
        losses.softmax_cross_entropy(logits, y, label_smoothing=0.3, where=keep),
        rtol=1e-6,
    )
    np.testing.assert_array_equal(losses.smooth_labels(y, 0.0), y)
    np.testing.assert_array_equal(losses.smooth_labels(y, 1), np.full((3, 4), 0.25))
    assert losses.smooth_labels(y[:, :0], 0.1).shape == (3, 0)


def test_smooth_labels_errors():
    y = np.eye(3)
    cases = [
        (TypeError, (y.astype(int), 0.1), {}, "labels must be floating point, got int32"),
        (ValueError, (y, 1.5), {}, r"alpha must be in \[0, 1\], got 1\.5"),
        (ValueError, (y, np.nan), {}, r"alpha must be in \[0, 1\]"),
        (TypeError, (y, np.ones(3)), {}, "alpha must be a real scalar"),
        (ValueError, (y, 0.1), {"axis": 2}, r"labels \(3, 3\) have no axis 2"),
        (ValueError, (y, 0.1), {"axis": (0, -2)}, "twice"),
        (TypeError, (y, 0.1), {"axis": True}, "axis must be an int, a sequence of ints or None, got True"),
        (ValueError, (y, 0.1), {"where": np.ones(3, bool)}, "labels and where must have the same shape"),
        (TypeError, (y, 0.1), {"where": y}, "where must be boolean"),
    ]
    for error, arguments, options, message in cases:
        with pytest.raises(error, match=message):
            losses.smooth_labels(*arguments, **options)
