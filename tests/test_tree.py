"""The functions of trees, against optax where it has the same and by hand where it is hard; parts of states by name."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis.extra import numpy as hnp

import gdfx
from gdfx import tree
from gdfx.testing import trees_close

pytestmark = pytest.mark.numbers

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.asarray([0.5, -0.2, 0.0]), "none": None}
EMPTY = [{}, {"none": None}, ()]


def arrays(low=-10.0, high=10.0):
    leaf = lambda shape: hnp.arrays(np.float64, shape, elements=st.floats(low, high, width=32))
    return st.fixed_dictionaries({"w": leaf((2, 3)), "list": st.tuples(leaf((3,)), leaf(())), "none": st.none()})


def in_optax(fn, *args, **kwargs):
    with jax.numpy_dtype_promotion("standard"):
        return fn(*args, **kwargs)


def paths_and_dtypes(x):
    return [(path, jnp.shape(leaf), leaf.dtype) for path, leaf in jax.tree_util.tree_leaves_with_path(x)]


def ones(dtype, like=PARAMS):
    return jax.tree.map(lambda p: jnp.ones(p.shape, dtype), like)


# Against optax: (our function, optax's), of two trees x and y

ORACLES = {
    "add": (lambda x, y: tree.add(x, y), lambda x, y: optax.tree.add(x, y)),
    "add_three": (lambda x, y: tree.add(x, y, x), lambda x, y: optax.tree.add(x, y, x)),
    "sub": (tree.sub, optax.tree.sub),
    "mul": (tree.mul, optax.tree.mul),
    "div": (lambda x, y: tree.div(x, tree.clip(y, 1.0)), lambda x, y: optax.tree.div(x, optax.tree.clip(y, 1.0))),
    "scale": (lambda x, y: tree.scale(0.3, x), lambda x, y: optax.tree.scale(0.3, x)),
    "add_scale": (lambda x, y: tree.add_scale(x, 0.3, y), lambda x, y: optax.tree.add_scale(x, 0.3, y)),
    "clip": (lambda x, y: tree.clip(x, -1.0, 2.0), lambda x, y: optax.tree.clip(x, -1.0, 2.0)),
    "conj": (lambda x, y: tree.conj(x), lambda x, y: optax.tree.conj(x)),
    "real": (lambda x, y: tree.real(x), lambda x, y: optax.tree.real(x)),
    "where": (lambda x, y: tree.where(True, x, y), lambda x, y: optax.tree.where(True, x, y)),
    "full_like": (lambda x, y: tree.full_like(x, 0.5), lambda x, y: optax.tree.full_like(x, 0.5)),
    "ones_like": (lambda x, y: tree.ones_like(x), lambda x, y: optax.tree.ones_like(x)),
    "zeros_like": (lambda x, y: tree.zeros_like(x), lambda x, y: optax.tree.zeros_like(x)),
    "batch_shape": (lambda x, y: tree.batch_shape(x, (2,)), lambda x, y: optax.tree.batch_shape(x, (2,))),
    "norm": (lambda x, y: tree.norm(x), lambda x, y: optax.tree.norm(x)),
    "norm_squared": (lambda x, y: tree.norm(x, squared=True), lambda x, y: optax.tree.norm(x, squared=True)),
    "norm_1": (lambda x, y: tree.norm(x, 1), lambda x, y: optax.tree.norm(x, 1)),
    "norm_1_squared": (lambda x, y: tree.norm(x, 1, True), lambda x, y: optax.tree.norm(x, 1, True)),
    "norm_inf": (lambda x, y: tree.norm(x, "inf"), lambda x, y: optax.tree.norm(x, "inf")),
    "vdot": (tree.vdot, optax.tree.vdot),
    "sum": (lambda x, y: tree.sum(x), lambda x, y: optax.tree.sum(x)),
    "sum_in_pairs": (lambda x, y: tree.sum(x, True), lambda x, y: optax.tree.sum(x, True)),
    "max": (lambda x, y: tree.max(x), lambda x, y: optax.tree.max(x)),
    "min": (lambda x, y: tree.min(x), lambda x, y: optax.tree.min(x)),
    "update_moment": (
        lambda x, y: tree.update_moment(x, y, 0.9, 2),
        lambda x, y: optax.tree.update_moment(x, y, 0.9, 2),
    ),
    "update_moment_per_elem_norm": (
        lambda x, y: tree.update_moment_per_elem_norm(x, y, 0.9, 3),
        lambda x, y: optax.tree.update_moment_per_elem_norm(x, y, 0.9, 3),
    ),
    "update_infinity_moment": (
        lambda x, y: tree.update_infinity_moment(x, y, 0.9, 1e-3),
        lambda x, y: optax.tree.update_infinity_moment(x, y, 0.9, 1e-3),
    ),
    "bias_correction": (
        lambda x, y: tree.bias_correction(x, 0.9, 3),
        lambda x, y: optax.tree.bias_correction(x, jnp.asarray(0.9), 3),
    ),
}


def weighted(fn, x, y):
    """A loss that tells all elements of the result apart."""
    out = jax.tree.leaves(fn(x, y))
    return sum(jnp.sum(leaf * jnp.arange(1, leaf.size + 1, dtype=leaf.dtype).reshape(leaf.shape)) for leaf in out)


@functools.cache
def values_and_grads(which, x64):
    """Of all functions: one program is compiled sooner than one for each."""
    del x64  # a program each

    def run(x, y, x_apart):
        found = {}
        for name, fns in ORACLES.items():
            at = x_apart if name in ("norm", "norm_inf", "max", "min") else x
            found[name] = fns[which](at, y), jax.grad(functools.partial(weighted, fns[which]))(at, y)
        return found

    return jax.jit(run)


@pytest.mark.parametrize("wide", [False, True])
@hypothesis.given(x=arrays(), y=arrays())
def test_value_and_gradient_as_in_optax(wide, x, y):
    with jax.enable_x64(wide):
        given = jax.tree.map(jnp.asarray, (x, y, apart(x)))
        ours, theirs = values_and_grads(0, wide)(*given), in_optax(values_and_grads(1, wide), *given)
        assert paths_and_dtypes(ours) == paths_and_dtypes(theirs)
        trees_close(ours, theirs, rtol=1e-10 if wide else 3e-5, atol=1e-10 if wide else 3e-4)


def apart(x):
    """`x` changed a little, so that it has no ties: norms and extrema have one gradient each."""
    irrational = iter(np.sqrt(np.arange(2, 5)) / 7)
    return jax.tree.map(lambda leaf: leaf + (1 + np.arange(leaf.size).reshape(leaf.shape)) * next(irrational), x)


@hypothesis.given(x=arrays(), y=arrays())
@hypothesis.settings(max_examples=5)
def test_comparison_as_in_optax(x, y):
    for b in (y, x, jax.tree.map(lambda leaf: leaf * (1 + 1e-7), x)):
        assert tree.allclose(x, b) == in_optax(optax.tree.allclose, x, b)
    assert tree.size(x) == optax.tree.size(x) == 10
    assert tree.dtype(x) == optax.tree.dtype(x)


COMPLEX_NAMES = ["add", "sub", "mul", "scale", "add_scale", "conj", "real", "norm", "norm_1", "norm_inf", "sum"]


@pytest.mark.parametrize("name", COMPLEX_NAMES)
def test_complex_as_in_optax(name, x64):
    key = jax.random.key(0)
    like = {"z": jnp.ones((2, 2), complex), "c": jnp.ones(3, complex)}
    x, y = (tree.random_like(k, like) for k in jax.random.split(key))
    ours, theirs = ORACLES[name]
    trees_close(ours(x, y), in_optax(theirs, x, y), rtol=1e-12)


def test_products_of_complex_trees(x64):
    """optax conjugates the first tree, too; the real part is what slopes are made of."""
    like = {"z": jnp.ones((2, 2), complex), "r": jnp.ones(3)}
    x, y = (tree.random_like(k, like) for k in jax.random.split(jax.random.key(0)))
    theirs = in_optax(optax.tree.vdot, x, y)
    np.testing.assert_allclose(tree.vdot(x, y, real=False), theirs, rtol=1e-12)
    np.testing.assert_allclose(tree.vdot(x, y), theirs.real, rtol=1e-12)
    assert tree.vdot(x, y).dtype == float
    assert tree.vdot(like["r"], like["r"], real=False).dtype == float


def test_complex_moments(x64):
    g = {"z": jnp.asarray([3.0 + 4.0j, 0.0])}
    real, whole = {"z": jnp.zeros(2)}, {"z": jnp.zeros(2, complex)}
    for order, expected in ((1, 0.5), (2, 2.5), (3, 12.5)):
        moment = tree.update_moment_per_elem_norm(g, real, 0.9, order)
        np.testing.assert_allclose(moment["z"], [expected, 0.0])
        theirs = in_optax(optax.tree.update_moment_per_elem_norm, g, real, 0.9, order)
        trees_close(moment, theirs, rtol=1e-12)
    trees_close(tree.update_moment(g, whole, 0.9, 2), in_optax(optax.tree.update_moment, g, whole, 0.9, 2), rtol=1e-12)
    trees_close(tree.update_infinity_moment(g, real, 0.9, 0.0), {"z": jnp.asarray([5.0, 0.0])}, rtol=1e-12)
    with pytest.raises(TypeError, match=r"at \['z'\], updates have dtype complex128, expected a real one"):
        tree.update_moment(g, real, 0.9, 2)
    slope = jax.grad(lambda g: tree.sum(tree.update_moment_per_elem_norm(g, real, 0.9, 1)))(g)
    assert jnp.all(jnp.isfinite(slope["z"].real))


# Hard points


def test_gradients_at_zero():
    zeros = {"w": jnp.zeros((2, 2)), "z": jnp.zeros(2, jnp.complex64), "none": None}
    assert tree.norm(zeros) == tree.norm(zeros, 1) == tree.norm(zeros, "inf") == 0
    trees_close(jax.grad(tree.norm)(zeros), zeros)
    for ord in (2, 1, "inf"):
        trees_close(jax.grad(lambda x, ord=ord: tree.norm(x, ord, squared=True))(zeros), zeros)
        assert jnp.isfinite(tree.norm(jax.grad(lambda x, ord=ord: tree.norm(x, ord))(zeros)))


def test_ties_share_the_gradient():
    x = {"a": jnp.asarray([1.0, 3.0]), "b": jnp.asarray([3.0])}
    trees_close(jax.grad(tree.max)(x), {"a": jnp.asarray([0.0, 0.5]), "b": jnp.asarray([0.5])})


@pytest.mark.parametrize("x", EMPTY)
def test_empty_trees(x):
    for fn in (tree.add, tree.sub, tree.mul, tree.div, tree.cast_like, lambda a, b: tree.where(True, a, b)):
        assert fn(x, x) == x
    assert tree.scale(2.0, x) == tree.conj(x) == tree.clip(x, 0.0) == tree.full_like(x, 1.0) == x
    assert tree.update_moment(x, x, 0.9, 2) == tree.bias_correction(x, 0.9, 1) == x
    assert tree.split_key_like(jax.random.key(0), x) == tree.random_like(jax.random.key(0), x) == x
    assert tree.norm(x) == tree.norm(x, "inf") == tree.norm(x, 1) == tree.vdot(x, x) == tree.sum(x) == tree.size(x) == 0
    assert tree.sum(x, True) == 0
    assert tree.max(x) == -tree.min(x) == -jnp.inf
    assert tree.allclose(x, x)
    assert tree.dtype(x) == jnp.float32
    assert tree.get(x, "count") is None


def test_leaves_without_elements_are_skipped():
    x = {"a": jnp.zeros((0, 3)), "b": jnp.asarray([-2.0, -1.0])}
    assert (tree.max(x), tree.min(x), tree.norm(x, "inf"), tree.sum(x), tree.size(x)) == (-1, -2, 2, -3, 2)


def test_nan_is_not_hidden():
    x = {"a": jnp.asarray([1.0, jnp.nan]), "b": jnp.ones(2)}
    for number in (tree.norm(x, 1), tree.norm(x, "inf"), tree.sum(x), tree.max(x), tree.min(x), tree.vdot(x, x)):
        assert jnp.isnan(number)
    assert not tree.allclose(x, x)
    assert tree.allclose(x, x, equal_nan=True)


# Dtypes


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    x = {"w": jnp.ones(3000, dtype), "b": jnp.full(2, 0.1, dtype)}
    assert tree.sum(x["w"]) == 3000
    assert tree.norm(x["w"], 1) == tree.vdot(x["w"], x["w"]) == tree.norm(x["w"], squared=True) == 3000
    assert tree.sum(x).dtype == tree.norm(x).dtype == tree.norm(x, "inf").dtype == tree.vdot(x, x).dtype == jnp.float32
    tiny = jnp.full(2, 2.0**-9, dtype)
    np.testing.assert_array_equal(tree.add(jnp.ones(2, dtype), *[tiny] * 8).astype(float), 1 + 2.0**-6)
    for same in (tree.add(x, x), tree.scale(0.5, x), tree.add_scale(x, 0.5, x), tree.div(x, x), tree.clip(x, 0.0, 0.5)):
        assert {leaf.dtype for leaf in jax.tree.leaves(same)} == {jnp.dtype(dtype)}
    assert tree.max(x).dtype == tree.full_like(x, 2.0)["w"].dtype == tree.ones_like(x)["w"].dtype == dtype
    large = jnp.full(1, 60000.0, jnp.float16)
    assert tree.add_scale(-large, 2.0, large)[0] == large[0]
    moments = tree.update_moment(x, tree.zeros_like(x), 0.999, 2)
    assert moments["b"].dtype == jnp.float32
    np.testing.assert_allclose(moments["b"], 0.001 * np.square(np.asarray(x["b"], np.float32)), rtol=1e-4)
    assert tree.bias_correction(x, 0.999, 2)["b"].dtype == dtype


def test_integers_and_scalars():
    x = {"n": jnp.asarray([1, 2]), "flag": jnp.asarray([True, True])}
    assert tree.sum(x).dtype == jnp.int32
    assert tree.sum(x) == 5
    assert tree.norm({"n": jnp.asarray([3, 4])}) == 5
    assert tree.add({"n": 1.0}, {"n": 2.0}) == {"n": 3.0}
    np.testing.assert_array_equal(tree.mul({"n": jnp.ones(2)}, {"n": 0.5})["n"], [0.5, 0.5])
    assert tree.vdot(jnp.asarray([1, 2]), jnp.asarray([3, 4])) == 11
    assert tree.max({"n": jnp.asarray([1, 2]), "x": jnp.asarray(0.5)}) == 2.0
    assert tree.full_like({"n": jnp.asarray([1, 2])}, 0)["n"].dtype == jnp.int32
    assert tree.norm(3.0) == 3.0


def test_casts():
    x = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2), "none": None}
    assert tree.cast(x, None) is x
    assert tree.cast(x, "float16")["b"].dtype == jnp.float16
    assert tree.cast_like(ones(jnp.float32, x), x)["a"].dtype == jnp.bfloat16
    assert tree.cast_like({"a": jnp.ones(2)}, {"a": 1.0})["a"].dtype == jnp.float32
    with pytest.raises(TypeError, match=r"at \['z'\] the tree has dtype complex64.*take `real` first"):
        tree.cast({"z": jnp.ones(2, jnp.complex64)}, jnp.float32)


@pytest.mark.parametrize("handler", ["promote", "highest", "lowest"])
def test_dtype_of_several(handler):
    x = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2), "c": jnp.ones(2, jnp.int8)}
    assert tree.dtype(x, handler) == in_optax(optax.tree.dtype, x, handler)
    with pytest.raises(ValueError, match=r"bfloat16 \(at \['a'\]\), float32 \(at \['b'\]\)"):
        tree.dtype(x)


def test_dtypes_that_do_not_compare():
    x = {"a": jnp.ones(1, jnp.bfloat16), "b": jnp.ones(1, jnp.float16)}
    assert tree.dtype(x, "promote") == jnp.float32
    with pytest.raises(ValueError, match=r"neither of bfloat16 \(at \['a'\]\) and float16 \(at \['b'\]\)"):
        tree.dtype(x, "highest")
    with pytest.raises(ValueError, match="mixed_dtype_handler is 'most'"):
        tree.dtype(x, "most")


# Conditions and pairs


def test_where_of_each_kind_of_condition():
    x, y = ones(jnp.float32), jax.tree.map(jnp.zeros_like, PARAMS)
    assert tree.allclose(tree.where(jnp.asarray(False), x, y), y)
    of_leaves = {"w": jnp.asarray(True), "b": jnp.asarray([True, False, True]), "none": None}
    expected = {"w": x["w"], "b": jnp.asarray([1.0, 0.0, 1.0]), "none": None}
    assert tree.allclose(tree.where(of_leaves, x, y), expected)
    assert tree.allclose(tree.where(of_leaves, x, {"w": 0.0, "b": 0.0, "none": None}), expected)
    with pytest.raises(ValueError, match=r"at \['w'\], condition has shape \(3,\), tree_x has shape \(2, 3\)"):
        tree.where(of_leaves["b"], x, y)
    with pytest.raises(ValueError, match=r"tree_x and condition have different structures.*\['b'\]"):
        tree.where({"w": True, "none": None}, x, y)


@pytest.mark.parametrize("fn", [tree.add, tree.sub, tree.mul, tree.div, tree.allclose, tree.vdot])
def test_pairs_that_do_not_go_together(fn):
    with pytest.raises(ValueError, match=r"different structures: \w+ has no leaf at \['b'\]"):
        fn(PARAMS, {"w": PARAMS["w"], "none": None})
    with pytest.raises(ValueError, match=r"at \['b'\], \w+ has shape \(3,\), \w+ has shape \(1,\)"):
        fn(PARAMS, {**PARAMS, "b": jnp.ones(1)})


def test_other_errors():
    with pytest.raises(ValueError, match=r"other_trees\[0\] has no leaf at \['b'\]"):
        tree.add(PARAMS, PARAMS, {"w": PARAMS["w"], "none": None})
    with pytest.raises(ValueError, match=r"scale: scalar has shape \(3,\)"):
        tree.scale(jnp.ones(3), PARAMS)
    with pytest.raises(ValueError, match="ord is 3"):
        tree.norm(PARAMS, 3)
    with pytest.raises(ValueError, match=r"clip: min_value has shape \(3,\), but at \['w'\]"):
        tree.clip(PARAMS, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"full_like: fill_value has shape \(3,\)"):
        tree.full_like(PARAMS, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"updates have no leaf at \['b'\]"):
        tree.update_moment({"w": PARAMS["w"], "none": None}, {"w": PARAMS["w"], "b": PARAMS["b"], "none": None}, 0.9, 1)


def test_none_in_the_updates_as_in_optax():
    updates, moments = {"a": None, "b": jnp.ones(2)}, {"a": jnp.ones(3), "b": jnp.ones(2)}
    for fn in (
        lambda t: t.update_moment(updates, moments, 0.9, 2),
        lambda t: t.update_infinity_moment(updates, moments, 0.9, 1e-3),
        lambda t: t.add_scale(updates, 0.5, moments),
    ):
        assert fn(tree)["a"] is None
        trees_close(fn(tree), in_optax(fn, optax.tree), rtol=1e-6)


# Random trees


def test_random_trees_as_in_optax():
    key = jax.random.key(3)
    trees_close(tree.random_like(key, PARAMS), optax.tree.random_like(key, PARAMS))
    half = optax.tree.random_like(key, PARAMS, jax.random.uniform, jnp.bfloat16)
    trees_close(tree.random_like(key, PARAMS, jax.random.uniform, jnp.bfloat16), half)
    signs = tree.random_like(key, PARAMS, lambda key, shape, dtype: jax.random.rademacher(key, shape, dtype))
    assert tree.allclose(tree.mul(signs, signs), tree.ones_like(PARAMS))
    keys, theirs = tree.split_key_like(key, PARAMS), optax.tree.split_key_like(key, PARAMS)
    trees_close(tree.unwrap_random_key_data(keys), optax.tree.unwrap_random_key_data(theirs))
    assert tree.unwrap_random_key_data({"key": key, "x": 1.0})["key"].dtype == jnp.uint32


# States

FLAT = {"w": PARAMS["w"], "b": PARAMS["b"]}
SPECS = {"w": "W", "b": "B"}


def linear(count):
    return 0.1 / (1 + jnp.asarray(count).astype(float))


def test_get_in_a_chain():
    opt = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adamw(linear))
    state = jax.jit(opt.update)(PARAMS, opt.init(PARAMS), PARAMS)[1]
    assert tree.get(state, "scale_by_adam") is state["scale_by_adam"]
    assert tree.get(state, "ScaleByAdamState") is state["scale_by_adam"]
    assert tree.get(state, "mu") is state["scale_by_adam"].mu
    assert tree.get(state, "count") is state.count
    assert tree.get(state, "learning_rate") is None
    assert tree.get(state, "learning_rate", 0.5) == 0.5
    paths = [jax.tree_util.keystr(path) for path, _ in tree.get_all_with_path(state, "count")]
    assert paths == ["ChainState.count", "['scale_by_adam']ScaleByAdamState.count"]
    in_adam = lambda path, value: path[-1] == tree.NamedTupleKey("ScaleByAdamState", "count")
    assert tree.get(state, "count", filtering=in_adam) is state["scale_by_adam"].count
    with pytest.raises(KeyError, match=r"2 values named 'w', at \['scale_by_adam'\].mu\['w'\], .*.nu\['w'\]"):
        tree.get(state, "w")


def test_get_in_wrappers():
    state = gdfx.accumulate(gdfx.partition({"matrix": gdfx.adam(0.1), "rest": gdfx.sgd(0.1)}), 4).init(PARAMS)
    assert tree.get(state, "mu") == {"w": tree.get(state, "mu")["w"], "b": None, "none": None}
    assert tree.get(state, "matrix") is state.inner.groups["matrix"]
    assert tree.get(state, "batches") is state.batches
    with pytest.raises(KeyError, match=r"at \.count, \.inner\.groups\['matrix'\]\.count"):
        tree.get(state, "count")
    masked = gdfx.masked(gdfx.scale_by_adam(), {"w": True, "b": False, "none": None}).init(PARAMS)
    assert tree.get(masked, "nu")["b"] is None
    assert tree.get(gdfx.adam(0.1), "learning_rate") == 0.1


OPTAX_STATES = [
    optax.adam(0.1),
    optax.chain(optax.clip(1.0), optax.adamw(linear)),
    optax.inject_hyperparams(optax.sgd)(linear),
    optax.MultiSteps(optax.adam(0.1), 2),
    optax.masked(optax.adam(0.1), {"w": True, "b": False}),
]


@pytest.mark.parametrize("key", ["count", "mu", "learning_rate", "ScaleByAdamState", "w", "nothing"])
@pytest.mark.parametrize("opt", OPTAX_STATES, ids=range(5))
def test_search_in_states_of_optax(opt, key):
    state = opt.init(FLAT)
    named = lambda found: sorted((jax.tree_util.keystr(path), id(value)) for path, value in found)
    theirs = optax.tree.get_all_with_path(state, key)
    assert named(tree.get_all_with_path(state, key)) == named(theirs)
    if len(theirs) > 1:
        with pytest.raises(KeyError, match="expected one"):
            tree.get(state, key)
    else:
        assert tree.get(state, key) is optax.tree.get(state, key)


def test_set_keeps_avals():
    opt = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adamw(linear))
    state = opt.init(PARAMS)
    new = tree.set(state, count=7.0, mu=ones(jnp.bfloat16))
    assert paths_and_dtypes(new) == paths_and_dtypes(state)
    assert (new.count, new["scale_by_adam"].count, new["scale_by_adam"].mu["b"][1]) == (7, 7, 1)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(new))
    only = tree.set(state, lambda path, value: "adam" in str(path), count=jnp.asarray(3))
    assert (only.count, only["scale_by_adam"].count) == (0, 3)
    link = tree.set(state, scale_by_adam=new["scale_by_adam"])
    assert (link.count, link["scale_by_adam"].count) == (0, 7)
    assert tree.set(state, ScaleByAdamState=new["scale_by_adam"])["scale_by_adam"].count == 7
    jitted = jax.jit(lambda state, count: tree.set(state, count=count))(state, 5)
    assert jitted.count == 5
    assert jitted.count.dtype == jnp.int32
    keyed = {"key": jax.random.key(0)}
    assert tree.set(keyed, key=jax.random.key(1))["key"] == jax.random.key(1)


def test_set_does_not_alias():
    state = gdfx.adam(0.1).init(FLAT)
    new = tree.set(state, mu=FLAT)
    pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(FLAT)}
    assert not pointers & {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(new)}


def test_set_in_a_state_of_optax():
    state = optax.inject_hyperparams(optax.adam)(0.5).init(FLAT)
    new = tree.set(state, learning_rate=0.1)
    trees_close(new, optax.tree.set(state, learning_rate=jnp.asarray(0.1)))
    assert paths_and_dtypes(new) == paths_and_dtypes(state)
    assert tree.set(gdfx.adam(0.1), learning_rate=0.2) == gdfx.adam(0.2)
    assert tree.set({"a": [{"x": None}, (1, 2)]}, x="new") == {"a": [{"x": "new"}, (1, 2)]}


def test_set_errors():
    state = gdfx.adam(0.1).init(FLAT)
    with pytest.raises(KeyError, match=r"nothing is named 'cont'; are you looking for count\?"):
        tree.set(state, cont=1)
    with pytest.raises(KeyError, match=r"filtering is false for all that is named 'mu', at \['scale_by_adam'\]\.mu"):
        tree.set(state, lambda path, value: False, mu=FLAT)
    with pytest.raises(TypeError, match=r"count is 0.5 of dtype float32, expected int32 as at \.count"):
        tree.set(state, count=0.5)
    with pytest.raises(TypeError, match=r"mu is .* of dtype complex64, expected float32 as at .*\.mu\['b'\]"):
        tree.set(state, mu=ones(jnp.complex64, FLAT))
    with pytest.raises(ValueError, match=r"mu has shape \(1,\), expected \(3,\) as at \['scale_by_adam'\]\.mu\['b'\]"):
        tree.set(state, mu={**FLAT, "b": jnp.ones(1)})
    with pytest.raises(ValueError, match="mu has the structure"):
        tree.set(state, mu=0.0)


def mapped(opt, state, **kwargs):
    """What is at each path of a state: the spec of params, and "other" elsewhere."""
    new = tree.map_params(opt, lambda x, spec: spec, state, SPECS, transform_non_params=lambda x: "other", **kwargs)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(new)}


# With how many leaves in its state mirror the params.
MIRRORS = {
    "adam": (gdfx.adam(0.1), 4),
    "adamw": (gdfx.adamw(linear), 4),
    "clipped": (gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adam(0.1)), 4),
    "partition": (gdfx.partition({"matrix": gdfx.adam(0.1), "rest": gdfx.sgd(0.1, momentum=0.9)}), 3),
    "labels": (gdfx.partition({"x": gdfx.adam(0.1), "frozen": gdfx.sgd(0.1)}, {"w": "x", "b": "frozen"}), 2),
    "masked": (gdfx.masked(gdfx.scale_by_adam(), {"w": True, "b": False}), 2),
    "freeze": (gdfx.freeze(gdfx.adam(0.1), "b"), 2),
    "accumulate": (gdfx.accumulate(gdfx.freeze(gdfx.adam(0.1), "b"), 4), 4),
    "lookahead": (gdfx.lookahead(gdfx.sgd(0.1), 5, 0.5), 2),
    "flatten": (gdfx.flatten(gdfx.adam(0.1)), 0),
    "optax_in_gdfx": (gdfx.chain(optax.adam(0.1)), 4),
    "function": (lambda params: {"count": jnp.zeros(()), "ema": (params, params)}, 4),
}


@pytest.mark.parametrize("name", MIRRORS)
def test_map_params(name):
    opt, n_params = MIRRORS[name]
    state = opt.init(FLAT) if hasattr(opt, "init") else opt(FLAT)
    found = mapped(opt, state)
    assert len(found) == len(jax.tree.leaves(state))
    mirrors = {path: leaf for path, leaf in found.items() if leaf != "other"}
    assert mirrors == {path: SPECS[path[-3]] for path in mirrors}  # ...['w'] is "W"
    assert len(mirrors) == n_params
    doubled = tree.map_params(opt, lambda x: 2 * x, state)
    assert paths_and_dtypes(doubled) == paths_and_dtypes(state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)


@pytest.mark.parametrize("opt", OPTAX_STATES, ids=range(5))
def test_map_params_in_states_of_optax(opt):
    state = opt.init(FLAT)
    is_masked = lambda x: isinstance(x, optax.MaskedNode)
    theirs = optax.tree.map_params(
        opt, lambda x, spec: spec, state, SPECS, transform_non_params=lambda x: "other", is_leaf=is_masked
    )
    ours = mapped(opt, state, is_leaf=is_masked)
    assert ours == {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(theirs)}


def test_map_params_errors():
    opt = gdfx.adam(0.1)
    with pytest.raises(ValueError, match=r"a tree in rest is not shaped like the params"):
        tree.map_params(opt, lambda x, y: x, opt.init(FLAT), {"w": 1})
    with pytest.raises(ValueError, match="the state is a ChainState that does not go with sgd"):
        tree.map_params(gdfx.sgd(0.1), lambda x: x, opt.init(FLAT))
    with pytest.raises(ValueError, match="a tuple where a ScaleByAdamState is expected"):
        tree.map_params(gdfx.scale_by_adam(), lambda x: x, (1, 2))
