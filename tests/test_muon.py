"""Muon: its steps against optax's and against the singular value decomposition, its layouts, and its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdfx
from gdfx import newton_schulz
from gdfx.optimizers import matrix_stacks
from gdfx.testing import INVARIANTS, assert_single_trace, check_transformation, trees_close

pytestmark = pytest.mark.numbers

STEPS = 100
SHAPES = {"wide": (3, 5), "tall": (6, 4), "conv": (2, 2, 3, 4), "bias": (5,)}
DION = newton_schulz.PRESETS["dion"]


def normal(shapes, seed=0, dtype=float):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def orthogonalize(x, coefficients, **settings):
    with jax.disable_jit():  # nothing to compile for each shape
        return newton_schulz.orthogonalize(x, coefficients, **settings)


def trajectory(opt, params, promotion="strict"):
    """The params after each step; they have a part in their gradients, so that an error in them comes back."""
    grads = normal({name: (STEPS, *p.shape) for name, p in params.items()}, seed=1, dtype=params["wide"].dtype)

    def step(carry, g):
        params, state = carry
        updates, state = opt.update({name: g[name] + p / 10 for name, p in params.items()}, state, params)
        params = {name: p + updates[name] for name, p in params.items()}
        return (params, state), params

    with jax.numpy_dtype_promotion(promotion):
        return jax.jit(lambda p: jax.lax.scan(step, (p, opt.init(p)), grads)[1])(params)


def stacks(pair):
    return {"wide": pair(1, 0), "tall": pair(-2, -1), "conv": pair(-2, -1), "bias": None}


def kernels_of(pair):
    return lambda params: jax.tree.map(lambda p: pair(tuple(range(p.ndim - 1)), -1) if p.ndim > 1 else None, params)


# As optax

SETTINGS = {
    "default": {},
    "dion": {"ns_coeffs": "dion"},
    "fewer_triples": {"ns_coeffs": [DION[0], list(DION[4])]},
    "aol": {"preconditioning": "aol"},
    "schatten": {"preconditioning": "schatten", "ns_steps": 3},
    "spectral": {"preconditioning": "spectral"},
    "adaptive": {"adaptive": True, "nesterov": False},
    "mask": {"weight_decay": 0.1, "weight_decay_mask": {"wide": True, "tall": False, "conv": True, "bias": True}},
    "numbers": {
        "beta": 0.8,
        "eps": 1e-4,
        "weight_decay": 0.1,
        "weight_decay_mask": gdfx.matrices,
        "adam_b1": 0.8,
        "adam_b2": 0.9,
        "adam_eps_root": 1e-5,
        "adam_weight_decay": 0.2,
        "adam_learning_rate": 0.01,
        "consistent_rms": 0.2,
    },
    "stacks": stacks,
    "kernels": kernels_of,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_trajectory_is_optaxs(name, x64):
    setting = SETTINGS[name]
    ours = theirs = setting
    if callable(setting):
        ours = {"muon_weight_dimension_numbers": setting(gdfx.MuonDimensionNumbers)}
        theirs = {"muon_weight_dimension_numbers": setting(optax.contrib.MuonDimensionNumbers)}
    params = normal(SHAPES)
    found = trajectory(gdfx.muon(0.05, **ours), params)
    expected = trajectory(optax.contrib.muon(0.05, **theirs), params, "standard")
    trees_close(found, expected, 1e-13)


def test_link_is_optaxs(x64):
    """Also of complex matrices, which both conjugate where they should."""
    grads = {"w": jnp.asarray([[1 + 2j, -0.5j, 0.3], [0.2, 1j, -1 - 1j]]), "v": jnp.eye(3, 2)}
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.contrib.scale_by_muon(
            weight_dimension_numbers=dict.fromkeys(grads, optax.contrib.MuonDimensionNumbers())
        )
        expected, _ = theirs.update(grads, theirs.init(grads))
    opt = gdfx.scale_by_muon()
    found, state = opt.update(grads, opt.init(grads))
    trees_close(found, expected, 1e-14)
    assert state.count == 1


# Singular values


def exact(x):
    u, _, vh = np.linalg.svd(np.asarray(x), full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (2, 3, 6, 4), (1, 3), (1, 1)])
@pytest.mark.parametrize("dtype", [float, complex])
def test_iterations_converge_to_the_polar_factor(shape, dtype, x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) + (1j * rng.normal(size=shape) if dtype is complex else 0)
    slow = jnp.tile(jnp.asarray([2.0, -1.5, 0.5]), (20, 1))
    for preconditioning in ("frobenius", "spectral", "schatten"):
        found = orthogonalize(jnp.asarray(x), slow, preconditioning=preconditioning)
        np.testing.assert_allclose(found, exact(x), atol=1e-10)


@pytest.mark.parametrize(
    ("preset", "low", "high"),
    [("standard", 0.68, 1.14), ("jordan", 0.68, 1.14), ("dion", 0.97, 1.04), ("polar_express", 0.85, 1.15)],
)
@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
@pytest.mark.parametrize("shape", [(64, 32), (3, 32, 64)])
def test_singular_values_are_near_1(preset, low, high, preconditioning, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    table = newton_schulz.coefficient_table(newton_schulz.check_coefficients(preset, 5), 5)
    found = orthogonalize(x, table, preconditioning=preconditioning)
    values = np.linalg.svd(np.asarray(found), compute_uv=False)
    assert values.min() > low
    assert values.max() < high


def test_polar_express_reaches_further_down():
    x = jnp.diag(jnp.asarray([1.0, 1e-3]))
    smallest = {}
    for preset in ("jordan", "polar_express"):
        table = newton_schulz.coefficient_table(newton_schulz.PRESETS[preset], 5)
        smallest[preset] = orthogonalize(x, table, preconditioning="spectral")[1, 1]
    assert smallest["jordan"] < 0.5
    assert smallest["polar_express"] > 0.8


@pytest.mark.parametrize("size", [1e-6, 1e6])
@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
def test_the_size_of_the_gradient_does_not_count(preconditioning, size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    table = newton_schulz.coefficient_table(DION, 5)
    apply = lambda x: orthogonalize(x, table, eps=1e-12, preconditioning=preconditioning)
    trees_close(apply(size * x), apply(x), 1e-4)


def test_each_matrix_of_a_stack_is_orthogonalized_by_itself(x64):
    stack = normal({"w": (3, 4, 5)})["w"]
    table = newton_schulz.coefficient_table(DION, 5)
    for preconditioning in ("frobenius", "spectral", "aol", "schatten"):
        apply = lambda x, kind=preconditioning: orthogonalize(x, table, preconditioning=kind)
        trees_close(apply(stack), jnp.stack([apply(x) for x in stack]), 1e-13)


@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
@pytest.mark.parametrize("dtype", [float, complex])
def test_flat_matrices_take_two_products_of_the_long_side(preconditioning, dtype, monkeypatch, x64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 4, 9)) + (1j * rng.normal(size=(2, 4, 9)) if dtype is complex else 0))
    table = newton_schulz.coefficient_table(DION, 5)
    apply = lambda x: orthogonalize(x, table, preconditioning=preconditioning)

    def products(x):  # of the iterations, without those of the norm
        dots = [e for e in jax.make_jaxpr(lambda x: apply(x))(x).eqns if e.primitive.name == "dot_general"]
        return sum(any(9 in v.aval.shape for v in e.invars) for e in dots) - 2 * (preconditioning == "spectral")

    flat = apply(x)
    assert products(x) == 2
    half = orthogonalize(x.real, table, dtype=jnp.bfloat16)
    monkeypatch.setattr(newton_schulz, "_is_flat", lambda y: False)
    assert products(x) == 10
    trees_close(flat, apply(x), 1e-12)
    np.testing.assert_array_equal(half, orthogonalize(x.real, table, dtype=jnp.bfloat16))


def test_bfloat16_only_where_asked_for():
    grads = {"w": normal({"w": (8, 16)}, dtype=jnp.bfloat16)["w"]}
    for ns_dtype, expected in ((None, "float32"), ("bfloat16", "bfloat16")):
        opt = gdfx.scale_by_muon(ns_dtype=ns_dtype)
        updates, state = opt.update(grads, opt.init(grads))
        assert updates["w"].dtype == jnp.bfloat16
        assert state.mu["w"].dtype == jnp.float32
        text = str(jax.make_jaxpr(opt.update)(grads, state))
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products
        assert all({"float32": "f32", "bfloat16": "bf16"}[expected] in line.split("=")[0] for line in products)
        values = np.linalg.svd(np.asarray(updates["w"], np.float32), compute_uv=False)
        assert values.min() > 0.6
        assert values.max() < 1.25


# Which leaves


def test_who_gets_what():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "conv": jnp.ones((2, 3, 4)), "none": None}
    state = gdfx.muon(0.1).init(params)["matrices_and_others"]
    assert jax.tree.map(jnp.shape, state.matrices["scale_by_muon"].mu) == {
        "w": (2, 3),
        "b": None,
        "conv": None,
        "none": None,
    }
    assert jax.tree.map(jnp.shape, state.others["scale_by_adam"].mu) == {
        "w": None,
        "b": (3,),
        "conv": (2, 3, 4),
        "none": None,
    }


@pytest.mark.parametrize("params", [{}, {"w": jnp.ones((2, 3))}, {"b": jnp.ones(3)}, jnp.ones(()), [jnp.ones((0, 2))]])
def test_either_group_may_be_empty(params):
    opt = gdfx.muon(0.1)
    updates, _ = opt.update(params, opt.init(params), params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_numbers_of_inner_nodes():
    pair = gdfx.MuonDimensionNumbers()
    params = {"body": {"a": jnp.ones((2, 3)), "b": [jnp.ones((3, 3))]}, "head": {"w": jnp.ones((3, 2))}}
    for numbers in ({"body": pair, "head": None}, lambda params: {"body": pair, "head": None}):
        opt = gdfx.muon(0.1, muon_weight_dimension_numbers=numbers)
        state = opt.init(params)
        _, state = opt.update(params, state, params)
        mu = state["matrices_and_others"].matrices["scale_by_muon"].mu
        assert len(jax.tree.leaves(mu["body"])) == 2
        assert mu["head"] == {"w": None}


def test_kernel_of_a_convolution_is_one_matrix(x64):
    """The layout changes nothing but the shape."""
    kernel = normal({"w": (3, 3, 2, 8)})["w"]
    flat, whole = (
        gdfx.scale_by_muon(),
        gdfx.scale_by_muon(weight_dimension_numbers=gdfx.MuonDimensionNumbers((0, 1, 2), 3)),
    )
    expected, _ = flat.update(kernel.reshape(18, 8), flat.init(kernel.reshape(18, 8)))
    found, _ = whole.update(kernel, whole.init(kernel))
    trees_close(found.reshape(18, 8), expected, 1e-14)


FUSED = {"query": (4, 6), "output": (6, 4), "experts": (2, 4, 6)}
HEADS = {"query": (4, 3, 2), "output": (3, 2, 4), "experts": (2, 2, 2, 3, 2)}


@pytest.mark.parametrize(
    "make",
    [
        lambda numbers: gdfx.muon(0.05, weight_decay=0.1, muon_weight_dimension_numbers=numbers),
        lambda numbers: gdfx.normuon(0.05, muon_weight_dimension_numbers=numbers),
        lambda numbers: gdfx.adamuon(0.05, muon_weight_dimension_numbers=numbers),
        lambda numbers: gdfx.soap(0.05, precondition_frequency=2, weight_dimension_numbers=numbers),
        lambda numbers: gdfx.galore(0.05, 1, weight_dimension_numbers=numbers),
    ],
    ids=["muon", "normuon", "adamuon", "soap", "galore"],
)
def test_heads_of_a_fused_kernel_are_matrices(make, x64):
    """Cut out of rows and columns, they take the steps of those of the kernel with axes for the heads."""
    pair = gdfx.MuonDimensionNumbers
    fused = make({"query": pair(blocks=(1, 3)), "output": pair(blocks=(3, 1)), "experts": pair(1, 2, (2, 3))})
    apart = make({"query": pair(0, 2), "output": pair(1, 2), "experts": pair(2, 4)})
    params, steps = normal(FUSED), normal({name: (5, *shape) for name, shape in FUSED.items()}, seed=1)
    reshaped = lambda tree, at=(): {name: x.reshape(x.shape[: len(at)] + HEADS[name]) for name, x in tree.items()}

    def trained(opt, params, grads):
        def step(carry, g):
            updates, state = opt.update(g, carry[1], carry[0])
            return (gdfx.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, opt.init(params)), grads)[0][0]

    found = jax.jit(trained)(fused, params, steps)
    trees_close(reshaped(found), jax.jit(trained)(apart, reshaped(params), reshaped(steps, (5,))), 1e-12)


def test_consistent_rms_is_the_root_mean_square():
    params = {"w": normal({"w": (16, 64)})["w"]}
    opt = gdfx.chain(gdfx.scale_by_muon("dion"), gdfx.scale_by_shape(consistent_rms=0.2))
    updates, _ = opt.update(params, opt.init(params))
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(jnp.square(updates["w"]))), 0.2, rtol=0.03)


def test_embeddings_and_heads_to_adamw():
    params = {"embedding": jnp.ones((8, 4)), "dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    opt = gdfx.partition({"matrix": gdfx.muon(0.02), "rest": gdfx.adamw(1e-3)})
    state = opt.init(params)
    _, state = opt.update(params, state, params)
    muons = state.groups["matrix"]["matrices_and_others"].matrices["scale_by_muon"].mu
    assert jax.tree.map(jnp.shape, muons) == {"embedding": None, "dense": {"kernel": (4, 4), "bias": None}}


def test_spectral_scale():
    updates = {"wide": jnp.ones((2, 8)), "tall": jnp.ones((8, 2))}
    found, _ = gdfx.scale_by_shape(spectral=True).update(updates, gdfx.scale_by_shape(spectral=True).init(updates))
    trees_close(found, {"wide": 2 * updates["wide"], "tall": updates["tall"] / 2}, 1e-6)
    with pytest.raises(ValueError, match=r"consistent_rms is 0\.2"):
        gdfx.scale_by_shape(consistent_rms=0.2, spectral=True)


@pytest.mark.parametrize("at_once", [1, 60, 2**19])
def test_matrices_of_one_shape_are_batched(at_once, monkeypatch, x64):
    monkeypatch.setattr(matrix_stacks, "_AT_ONCE", at_once)
    jax.clear_caches()
    shapes = {f"w{i}": (6, 4) for i in range(19)} | {"wide": (4, 6), "stack": (2, 6, 4), "more": (2, 6, 4)}
    grads = normal(shapes)
    numbers = gdfx.MuonDimensionNumbers(-2, -1)
    update = lambda grads: (opt := gdfx.scale_by_muon(weight_dimension_numbers=numbers)).update(grads, opt.init(grads))
    found = jax.jit(update)(grads)[0]
    each = {name: update({name: g})[0][name] for name, g in grads.items()}
    trees_close(found, each, 1e-12)
    products = jax.jit(update).lower(grads).as_text().count("dot_general")
    assert products <= 15 * 8  # of 22 leaves; a stack that is no multiple has its rest apart
    jax.clear_caches()


# Contract


def test_contract():
    """In two steps, as the kit tries coefficients near by, of which five overflow."""
    rate = gdfx.schedules.linear(0.1, 0.2, 5)
    opt = gdfx.muon(rate, ns_steps=2, adaptive=True, nesterov=False, adam_learning_rate=0.01, consistent_rms=0.2)
    check = [name for name in INVARIANTS if name not in ("dtypes", "finite_gradients")]  # of the rows in cases.py
    check_transformation(
        opt, {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(2)}, complex=True, check=check
    )


def test_contract_of_the_link():
    params = {"a": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2), "b": jnp.linspace(-1.0, 2.0, 12).reshape(2, 2, 3)}
    numbers = {"a": gdfx.MuonDimensionNumbers(), "b": gdfx.MuonDimensionNumbers((0, 1), 2)}
    check = ["update_avals", "state_avals", "eager_is_jit", "finite_at_zero", "repr"]
    check_transformation(gdfx.scale_by_muon(weight_dimension_numbers=numbers), params, complex=True, check=check)


@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
def test_zero_gradients(preconditioning):
    opt = gdfx.scale_by_muon(preconditioning=preconditioning, eps=0.0)
    zeros = {"w": jnp.zeros((2, 3), jnp.complex64)}
    with jax.disable_jit():
        updates, _ = opt.update(zeros, opt.init(zeros))
        slope = jax.grad(lambda g: jnp.sum(opt.update(g, opt.init(g))[0]["w"].real).astype(jnp.float32))(zeros)
    assert not updates["w"].any()
    assert np.isfinite(np.asarray(slope["w"], np.complex64)).all()


def test_coefficients_are_data():
    params = {"w": normal({"w": (4, 6)}, dtype=jnp.float32)["w"]}
    update = lambda opt, grads: opt.update(grads, opt.init(grads))[0]
    with assert_single_trace(update) as once:
        found = [once(gdfx.as_arrays(gdfx.scale_by_muon(c)), params) for c in ("dion", "polar_express")]
    trees_close(found, [update(gdfx.scale_by_muon(c), params) for c in ("dion", "polar_express")], 1e-5)
    array = jnp.asarray(DION, jnp.float32)
    trees_close(update(gdfx.scale_by_muon(array), params), found[0], 1e-5)
    batched = jax.vmap(lambda c: update(gdfx.scale_by_muon(c), params))(jnp.stack([array, array]))
    trees_close(batched["w"][1], found[0]["w"], 1e-5)
    size = lambda opt: jnp.sum(jnp.square(update(opt, params)["w"]))
    assert all(np.isfinite(x) for x in jax.tree.leaves(jax.grad(size)(gdfx.as_arrays(gdfx.scale_by_muon("dion")))))


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: gdfx.muon(0.1, "fast"), ValueError, "ns_coeffs is 'fast', expected one of 'standard'"),
        (lambda: gdfx.muon(0.1, (1.0, 2.0)), ValueError, "three numbers"),
        (lambda: gdfx.muon(0.1, ((1.0, 2.0, 3.0), (1.0, 2.0))), ValueError, "three a step"),
        (lambda: gdfx.muon(0.1, "dion", 3), ValueError, "5 triples.*ns_steps=3"),
        (lambda: gdfx.muon(0.1, ns_steps=0), ValueError, "ns_steps is 0"),
        (lambda: gdfx.muon(0.1, preconditioning="none"), ValueError, "'frobenius'"),
        (lambda: gdfx.muon(0.1, ns_dtype="int8"), TypeError, "int8"),
        (lambda: gdfx.muon(0.1, beta=1.0), ValueError, "beta is 1.0"),
        (lambda: gdfx.scale_by_muon().init({"b": jnp.ones(3)}), ValueError, r"\['b'\].*\(3,\).*no matrix"),
        (
            lambda: gdfx.muon(0.1, muon_weight_dimension_numbers={"b": gdfx.MuonDimensionNumbers()}).init(
                {"b": jnp.ones(3)}
            ),
            ValueError,
            r"\['b'\].*different axes of the shape \(3,\)",
        ),
        (
            lambda: gdfx.muon(0.1, muon_weight_dimension_numbers=gdfx.MuonDimensionNumbers(blocks=(1, 2))).init(
                {"w": jnp.ones((2, 3))}
            ),
            ValueError,
            r"\['w'\].*blocks that divide its 2 rows and 3 columns",
        ),
        (
            lambda: gdfx.muon(0.1, muon_weight_dimension_numbers={"a": None}).init({"b": jnp.ones(3)}),
            ValueError,
            "for each leaf",
        ),
        (
            lambda: gdfx.muon(0.1, muon_weight_dimension_numbers=[(0, 1)]).init([jnp.ones((3, 2))]),
            ValueError,
            "MuonDimensionNumbers",
        ),
    ],
)
def test_errors(make, error, told):
    with pytest.raises(error, match=told):
        make()


def test_complex_iterations_stay_complex():
    opt, params = gdfx.scale_by_muon(ns_dtype="bfloat16"), {"w": jnp.ones((2, 3), jnp.complex64)}
    with pytest.raises(TypeError, match="complex"):
        opt.update(params, opt.init(params))
