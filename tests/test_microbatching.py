"""Functions of a batch computed in parts, and gradients of examples clipped and summed, against optax."""

import functools
import os
import subprocess
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

from gdfx import microbatching
from gdfx.microbatching import AccumulationType, Accumulator, micro_grad, micro_vmap, microbatch, reshape_batch_axis
from gdfx.transforms import per_example

pytestmark = pytest.mark.numbers

SUM, MEAN, RUNNING, CONCAT = (
    AccumulationType.SUM,
    AccumulationType.MEAN,
    AccumulationType.RUNNING_MEAN,
    AccumulationType.CONCAT,
)
THEIRS = {kind: optax.microbatching.AccumulationType[kind.name] for kind in AccumulationType}
B, D = 12, 3


def normal(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def relaxed(fn):
    """`fn` as optax needs it, where its own code mixes dtypes and ranks."""

    @functools.wraps(fn)
    def run(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return fn(*args, **kwargs)

    return run


def close(found, expected, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol)


def loss(w, x, y):
    return jnp.mean(jnp.square(jnp.tanh(x @ w) - y))


def outputs(w, x, y):
    """A mean, a sum and values of single examples, of one batch."""
    error = jnp.square(jnp.tanh(x @ w) - y)
    return {"mean": error.mean(), "sum": (error.sum(), x.sum(axis=0)), "each": error}


KINDS = {"mean": MEAN, "sum": SUM, "each": CONCAT}


def same_in_value_and_slope(dtype, rtol, seed, size):
    w, x, y = normal(seed, (D,), dtype), normal(seed + 1, (B, D), dtype), normal(seed + 2, (B,), dtype)
    ours = microbatch(outputs, (1, 2), size, KINDS)
    theirs = optax.microbatch(outputs, (1, 2), size, {k: THEIRS[v] for k, v in KINDS.items()})

    @functools.partial(jax.jit, static_argnums=0)
    def both(f, *args):
        value, back = jax.vjp(f, *args)
        cotangent = jax.tree.map(lambda v: normal(9, v.shape, v.dtype), value)
        return value, back(cotangent)

    found = both(ours, w, x, y)
    close(found, both(outputs, w, x, y), rtol, rtol)
    close(found, relaxed(both)(theirs, w, x, y), rtol, rtol)
    close(ours(w, x, y), found[0], rtol, rtol)  # without jit


@settings(max_examples=4)
@given(seed=st.integers(0, 1000), size=st.sampled_from([1, 4, 12]))
def test_microbatch_is_the_whole_and_optax(seed, size):
    same_in_value_and_slope(jnp.float32, 1e-5, seed, size)


def test_microbatch_in_float64(x64):
    same_in_value_and_slope(jnp.float64, 1e-12, 5, 3)


@pytest.mark.parametrize("kind", AccumulationType)
@pytest.mark.parametrize("real", [None, 0, 2, 4])
def test_fewer_microbatches(kind, real):
    """Known, traced, batched: all as optax's for a known number, which it needs for the order of examples too."""
    w, x, y = normal(0, (D,)), normal(1, (B, D)), normal(2, (B,))

    def value(x, real, module=microbatching, kind=kind):
        f = lambda x, y: jnp.square(x @ w - y)
        return module.microbatch(f, (0, 1), 3, kind, num_real_microbatches=real)(x, y)

    expected = relaxed(value)(x, real, optax.microbatching, THEIRS[kind])
    close(value(x, real), expected)
    if real is not None:
        close(jax.jit(value)(x, jnp.int32(real)), expected)
        several = jax.vmap(value, in_axes=(None, 0))(x, jnp.array([1, real]))
        close(several[1], expected)
        known, traced = (jax.jacrev(value)(x, r) for r in (real, jnp.int32(real)))
        close(traced, known)


def test_more_microbatches_than_there_are():
    f = lambda real: microbatch(jnp.sum, 0, 2, num_real_microbatches=real)(jnp.arange(6.0))
    assert f(100) == jax.jit(f)(100) == 15  # optax: NaN


def test_one_compilation_for_all_numbers_of_microbatches():
    traces = []

    @jax.jit
    def f(x, real):
        traces.append(0)
        return microbatch(jnp.sum, 0, 2, num_real_microbatches=real)(x)

    assert [float(f(jnp.arange(6.0), n)) for n in range(4)] == [0, 3, 8, 15]
    assert len(traces) == 1


@pytest.mark.parametrize("axis", [1, -2])
def test_axes_and_names(axis):
    a, b = normal(0, (4, 6, 5)), {"x": normal(1, (6, 2))}
    f = lambda a, *, b: {"a": a.sum(axis=axis), "b": b["x"].sum(axis=0)}
    expected = f(a, b=b)
    close(microbatch(f, 0, 2, argnames="b", in_axes=(axis, 0))(a, b=b), expected)
    close(microbatch(f, (), 3, argnames=("b", "a"), in_axes=(0, axis))(b=b, a=a), expected)
    close(microbatch(lambda b, a: f(a, b=b), (-2, -1), 3, in_axes=(0, axis))(b, a), expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_reshape_batch_axis(axis):
    tree = {"a": normal(0, (6, 6)), "b": normal(1, (6, 6, 6))}
    for name, found in reshape_batch_axis(tree, 2, axis).items():
        whole = axis % tree[name].ndim
        close(found, optax.microbatching.reshape_batch_axis(tree[name], 2, whole))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_summed_in_float32(dtype):
    x = jnp.full((4096,), 1.0, dtype)
    for f, kind, expected in ((jnp.sum, SUM, 4096.0), (jnp.mean, MEAN, 1.0), (jnp.mean, RUNNING, 1.0)):
        found = microbatch(f, 0, 1, kind)(x)
        assert (found.dtype, found) == (dtype, expected)
        found = micro_vmap(lambda x: x, microbatch_size=1, accumulator=kind)(x)
        assert (found.dtype, found) == (dtype, expected)
    assert relaxed(optax.microbatch(jnp.sum, 0, 1))(x) < 4096  # it is stuck where 1 is half a unit


def test_complex_and_integers():
    z = jax.lax.complex(normal(0, (B,)), normal(1, (B,)))
    for kind in (MEAN, RUNNING):
        np.testing.assert_allclose(microbatch(jnp.mean, 0, 4, kind)(z), z.mean(), rtol=1e-5)
    i = jnp.arange(B, dtype=jnp.int8)
    assert microbatch(lambda x: x.sum(dtype=jnp.int8), 0, 4)(i).dtype == jnp.int8
    close(micro_vmap(lambda x: x, microbatch_size=4, accumulator=SUM)(i), i.sum())
    close(micro_vmap(lambda x: x > 5, microbatch_size=4, accumulator=SUM)(i), (i > 5).sum())
    close(micro_vmap(lambda x: x, microbatch_size=4, accumulator=MEAN)(i), i.mean())
    keys = jax.random.split(jax.random.key(0), B)
    draw = lambda key: jax.random.normal(key, (2,))
    close(micro_vmap(draw, microbatch_size=3)(keys), jax.vmap(draw)(keys))


def test_accumulators_of_ones_own():
    largest = [
        module.Accumulator(
            init=lambda aval: jnp.full(aval.shape, -jnp.inf, aval.dtype),
            update=lambda carry, value, i: jnp.maximum(carry, value),
            finalize=lambda carry: 2 * carry,
            aggregate=lambda values: values.max(axis=0),
        )
        for module in (microbatching, optax.microbatching)
    ]
    x = normal(0, (B, D))
    assert isinstance(largest[0], Accumulator)
    f = lambda x: (x.max(axis=0), [x.sum()])
    ours = microbatch(f, 0, 4, (largest[0], SUM))(x)
    close(ours, (2 * x.max(axis=0), [x.sum()]))
    close(ours, relaxed(optax.microbatch(f, 0, 4, (largest[1], THEIRS[SUM])))(x))
    for size in (None, 4):  # optax does not finalize with None
        close(micro_vmap(lambda x: x, microbatch_size=size, accumulator=largest[0])(x), 2 * x.max(axis=0))


@pytest.mark.parametrize("size", [None, 1, 4])
def test_micro_vmap(size):
    x, y = normal(0, (2, B, D)), normal(1, (B, D))
    f = lambda x, s, *, y: (x * s + y[None], {"n": jnp.sum(x @ y)})
    scale = jnp.float32(2)
    expected = jax.vmap(lambda x, s, y: f(x, s, y=y), (1, None, 0))(x, scale, y)
    close(micro_vmap(f, (1, None), microbatch_size=size)(x, scale, y=y), expected)
    theirs = optax.microbatching.micro_vmap(f, (1, None), microbatch_size=size)
    close(relaxed(theirs)(x, scale, y=y), expected)
    for kind, reduce in ((SUM, jnp.sum), (MEAN, jnp.mean), (RUNNING, jnp.mean)):
        found = micro_vmap(f, [1, None], microbatch_size=size, accumulator=(CONCAT, kind))(x, scale, y=y)
        close(found, (expected[0], {"n": reduce(expected[1]["n"])}))
    # One axis for all arguments, where optax takes one argument only.
    close(micro_vmap(jnp.dot, microbatch_size=size)(y, 2 * y), jax.vmap(jnp.dot)(y, 2 * y))
    close(jax.jit(jax.vmap(micro_vmap(jnp.sum, microbatch_size=size)))(x), x.sum(axis=2))
    spmd = micro_vmap(jnp.sum, microbatch_size=size, vmap_fn=functools.partial(jax.vmap, axis_name="examples"))
    close(spmd(y), y.sum(axis=1))


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("has_aux", [True, False])
def test_micro_grad(size, keep, has_aux):
    w, x, y = normal(0, (D,)), normal(1, (B, D)), normal(2, (B,))

    def fun(w, x, y):
        assert x.ndim == 1 + keep
        return (loss(w, x, y), {"x": x}) if has_aux else loss(w, x, y)

    def clipped(grads):
        return grads / jnp.maximum(1, jnp.linalg.norm(grads)), jnp.square(grads)

    def run(module, kinds):
        make = functools.partial(module.micro_grad, fun, has_aux, batch_argnums=(1, 2), keep_batch_dim=keep)
        return make(transform_fn=clipped, metrics_fn=jnp.linalg.norm, microbatch_size=size, accumulator=kinds)(w, x, y)

    grads, each = run(microbatching, (SUM, MEAN))
    expected, theirs = relaxed(run)(optax.microbatching, (THEIRS[SUM], THEIRS[MEAN]))
    close(grads, expected)
    close(tuple(each), tuple(theirs))
    stacked = jax.vmap(jax.grad(loss), (None, 0, 0))(w, x, y)
    close(each.metrics, jnp.linalg.norm(stacked, axis=1))
    close(grads[1], jnp.square(stacked).mean(axis=0))


def test_micro_grad_more():
    w, x, y = normal(0, (D,)), normal(1, (B, D)), normal(2, (B,))
    # An argument without examples after the others, where optax raises; negative positions; fewer microbatches.
    f = lambda w, x, y, s: s * loss(w, x, y)
    expected = jax.vmap(jax.grad(f), (None, 0, 0, None))(w, x, y, jnp.float32(2)).sum(axis=0)
    close(micro_grad(f, batch_argnums=(1, 2), microbatch_size=4)(w, x, y, jnp.float32(2))[0], expected)
    close(micro_grad(f, batch_argnums=(-3, -2), microbatch_size=4)(w, x, y, jnp.float32(2))[0], expected)
    found, each = micro_grad(loss, batch_argnums=(1, 2), microbatch_size=4, num_real_microbatches=2)(w, x, y)
    first = np.arange(B) % 3 < 2
    close(found, B * 2 / 3 * jax.grad(loss)(w, x[first], y[first]))
    assert ((np.asarray(each.values) != 0) == first).all()
    # A hypergradient, through it all.
    slope = jax.grad(lambda s: micro_grad(f, batch_argnums=(1, 2), microbatch_size=4)(w, x, y, s)[0].sum())
    close(slope(jnp.float32(2)), expected.sum() / 2)


X = jnp.ones((6, 2))


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: microbatch(jnp.sum, 0, 4)(X), ValueError, r"args\[0\] has shape \(6, 2\).*microbatch_size=4"),
        (lambda: microbatch(jnp.sum, 0, 0), ValueError, "microbatch_size is 0"),
        (lambda: microbatch(jnp.sum, 0, -2), ValueError, "microbatch_size is -2"),
        (lambda: microbatch(jnp.sum, 0, 2.0), TypeError, "microbatch_size is 2.0"),
        (lambda: microbatch(jnp.sum, 0, 2)(X[:0]), ValueError, r"args\[0\] has shape \(0, 2\)"),
        (
            lambda: microbatch(jnp.sum, 0, 2)({"a": X, "b": X[:4]}),
            ValueError,
            r"args\[0\]\['b'\] has 4 .*\['a'\] has 6",
        ),
        (lambda: microbatch(jnp.sum, 0, 2)({"a": 1.0}), ValueError, r"args\[0\]\['a'\] has shape \(\)"),
        (lambda: microbatch(jnp.sum, 0, 2)({}), ValueError, "nothing to cut"),
        (lambda: microbatch(jnp.sum, 0, 2, in_axes=2)(X), ValueError, "expected an axis 2"),
        (lambda: microbatch(jnp.sum, 0, 2, in_axes=(0, 1)), ValueError, "one axis for each"),
        (lambda: microbatch(jnp.sum, 0, 2, in_axes=(None,)), TypeError, "in_axes is None"),
        (lambda: microbatch(jnp.sum, 1, 2)(X), ValueError, "argnums has 1"),
        (lambda: microbatch(jnp.sum, (), 2, argnames="a")(X), ValueError, "argnames has 'a'"),
        (lambda: microbatch(jnp.sum, 0, 2, num_real_microbatches=-1), ValueError, "is -1"),
        (lambda: microbatch(jnp.sum, 0, 2, num_real_microbatches=1.5), TypeError, "is 1.5"),
        (lambda: microbatch(jnp.sum, 0, None, num_real_microbatches=1), ValueError, "no microbatch_size"),
        (lambda: microbatch(jnp.sum, 0, 2, "sum")(X), ValueError, "accumulator is 'sum'"),
        (lambda: microbatch(jnp.sum, 0, 2, {"a": SUM})(X), ValueError, "does not go with"),
        (lambda: microbatch(lambda x: {"n": x.shape[0]}, 0, 2, MEAN)(X), TypeError, r"at \['n'\], of dtype int32"),
        (lambda: microbatch(lambda x: (x > 0).all(), 0, 2)(X), TypeError, "dtype bool"),
        (lambda: micro_vmap(jnp.sum, out_axes=1), NotImplementedError, "out_axes is 1"),
        (lambda: micro_vmap(jnp.sum, (0, 0))(X), ValueError, "in_axes has 2 entries"),
        (lambda: micro_vmap(jnp.dot, microbatch_size=2)(X, b=X[:4]), ValueError, r"kwargs\['b'\] has 4 examples"),
        (lambda: micro_grad(loss, batch_argnums=3)(X, X, X), ValueError, "batch_argnums is 3"),
        (lambda: micro_grad(loss, num_real_microbatches=3), ValueError, "no microbatch_size"),
        (lambda: reshape_batch_axis({"a": X}, 4), ValueError, r"\['a'\] has shape"),
    ],
)
def test_errors(call, error, told):
    with pytest.raises(error, match=told):
        call()


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from gdfx.microbatching import AccumulationType as A, microbatch
mesh = jax.make_mesh((4,), ("d",), axis_types=(getattr(AxisType, sys.argv[1]),))
with jax.set_mesh(mesh):
    x = jax.device_put(jnp.arange(24.0).reshape(12 * 2, 1), NamedSharding(mesh, P("d", None)))
    f = jax.jit(microbatch(lambda x: (jnp.sum(x, axis=0), 2 * x), 0, 8, (A.SUM, A.CONCAT)))
    total, doubled = f(x)
    np.testing.assert_array_equal(total, np.sum(x, axis=0))
    np.testing.assert_array_equal(doubled, 2 * np.asarray(x))
    if sys.argv[1] == "Explicit":
        assert doubled.sharding.spec == P("d", None), doubled.sharding
    text = f.lower(x).compile().as_text()
    assert "all-to-all" not in text and "collective-permute" not in text and "all-gather" not in text, text
"""


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_batches_stay_where_they_are(kind):
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", SHARDED, kind], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


# Gradients of single examples, clipped.


def example_grads(seed, dtype=jnp.float32):
    return {"a": normal(seed, (5, 3, 2), dtype), "b": [normal(seed + 1, (5,), dtype), normal(seed + 2, (5, 4), dtype)]}


CLIPS = [(per_example.per_example_global_norm_clip, optax.per_example_global_norm_clip)] + [
    (
        functools.partial(per_example.per_example_layer_norm_clip, uniform=uniform),
        functools.partial(optax.per_example_layer_norm_clip, uniform=uniform),
    )
    for uniform in (True, False)
]


@functools.partial(jax.jit, static_argnums=0)
def clipped_with_slope(clip, grads, limit):
    sums, back, counts = jax.vjp(lambda g: clip(g, limit), grads, has_aux=True)
    return sums, back(jax.tree.map(lambda x: normal(9, x.shape, x.dtype), sums)), counts


def check_clips(dtype, rtol, seed, limit):
    grads, limit = example_grads(seed, dtype), jnp.asarray(limit, dtype)
    for ours, theirs in CLIPS:
        *found, counts = clipped_with_slope(ours, grads, limit)
        *expected, expected_counts = relaxed(clipped_with_slope)(theirs, grads, limit)
        close(found, expected, rtol, rtol)
        assert jax.tree.map(int, counts) == jax.tree.map(int, expected_counts)
        close(ours(grads, limit)[0], found[0], rtol, rtol)


@settings(max_examples=4)
@given(seed=st.integers(0, 1000), limit=st.sampled_from([0.5, 2.0, 4.0]))
def test_clips_are_those_of_optax(seed, limit):
    check_clips(jnp.float32, 1e-5, seed, limit)


def test_clips_in_float64(x64):
    check_clips(jnp.float64, 1e-12, 3, 2.0)


@pytest.mark.parametrize("clip", [per_example.per_example_global_norm_clip, per_example.per_example_layer_norm_clip])
def test_clips_at_hard_points(clip):
    grads = {"a": jnp.zeros((3, 2)).at[1].set(jnp.array([3.0, 4.0])), "empty": jnp.zeros((3, 0))}
    for limit in (0, 1.0, float("inf"), jnp.float32(1)):
        slope, by_limit = jax.grad(lambda g, c: clip(g, c)[0]["a"].sum(), (0, 1))(grads, jnp.float32(limit))
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(slope))  # optax: NaN
        assert jnp.isfinite(by_limit)
        sums, counts = jax.jit(clip)(grads, limit)
        assert jax.tree.leaves(counts)[0] == int(limit < 5)
        assert {x.dtype for x in jax.tree.leaves(counts)} == {jnp.dtype(jnp.int32)}
        close(clip(grads, limit)[0], sums)
    half = {"a": jnp.full((1000, 2), 0.01, jnp.bfloat16)}
    sums, _ = clip(half, 1.0)
    assert sums["a"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(sums["a"]), 10, rtol=5e-3)
    big = {"a": jnp.full((2, 2), 3e4, jnp.float16)}  # whose squares are infinite in half precision
    np.testing.assert_allclose(np.float32(clip(big, 1.0)[0]["a"]), 2**0.5, rtol=1e-3)
    z = {"a": jnp.array([[3 + 4j], [0j]], jnp.complex64)}
    np.testing.assert_allclose(clip(z, 1.0)[0]["a"], [0.6 + 0.8j], rtol=1e-6)
    limits = jnp.array([0.5, 1.0, 10.0])
    many = jax.vmap(clip, (None, 0))(grads, limits)
    for i, limit in enumerate(limits):
        close(jax.tree.map(lambda x, i=i: x[i], many), clip(grads, limit))


@pytest.mark.parametrize("clip", [per_example.per_example_global_norm_clip, per_example.per_example_layer_norm_clip])
def test_clip_errors(clip):
    with pytest.raises(ValueError, match=r"at \['b'\], the gradients have shape \(4,\), those at \['a'\]"):
        clip({"a": jnp.ones((3, 2)), "b": jnp.ones(4)}, 1.0)
    with pytest.raises(ValueError, match=r"at \['a'\], .* shape \(\), expected a leading axis"):
        clip({"a": jnp.ones(())}, 1.0)
    with pytest.raises(ValueError, match=r"shape \(0, 2\)"):
        clip(jnp.ones((0, 2)), 1.0)
    with pytest.raises(ValueError, match="no leaves"):
        clip({}, 1.0)
    with pytest.raises(ValueError, match=r"l2_norm_clip is -1\.0, expected at least 0"):
        clip(jnp.ones((3, 2)), -1.0)
    with pytest.raises(TypeError, match=r"l2_norm_clip is .*, expected a real scalar"):
        clip(jnp.ones((3, 2)), jnp.ones(2))
    with pytest.raises(TypeError, match=r"at \['a'\], grads have dtype int32"):
        clip({"a": jnp.ones((3, 2), jnp.int32)}, 1.0)
