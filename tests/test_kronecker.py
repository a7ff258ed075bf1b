"""Optimizers with a factor for the rows and one for the columns, beyond what the oracles of cases.py check."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdfx

pytestmark = pytest.mark.numbers

STACKS = gdfx.MuonDimensionNumbers(1, 2)
RNG = np.random.default_rng(0)
PARAMS = jnp.asarray(RNG.normal(size=(3, 5, 4)), jnp.float32)
GRADS = jnp.asarray(RNG.normal(size=(6, 3, 5, 4)), jnp.float32)


def _probe(key, shape, dtype):
    return jnp.broadcast_to(jnp.sin(jnp.arange(20, dtype=dtype)).reshape(5, 4), shape)


def trained(opt, params, grads):
    def step(carry, g):
        params, state = carry
        updates, state = opt.update(g, state, params)
        return (gdfx.apply_updates(params, updates), state), None

    return jax.jit(lambda: jax.lax.scan(step, (params, opt.init(params)), grads)[0][0])()


OPTIMIZERS = {
    "soap": gdfx.soap(0.1, precondition_frequency=2),
    "shampoo": gdfx.shampoo(0.1, eps=1e-2, precondition_frequency=2),
    "newton": gdfx.shampoo(0.1, eps=1e-2, precondition_frequency=2, root="newton"),
    "kl_shampoo": gdfx.kl_shampoo(0.1),
    "kl_soap": gdfx.kl_soap(0.1),
    "psgd_kron": gdfx.psgd_kron(0.1, sampler=_probe),
    "inverse_free": gdfx.psgd_kron(0.1, sampler=_probe, inverse_free=True),
}


@pytest.mark.parametrize("opt", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_stack_is_its_matrices(opt):
    stacked = trained(opt.replace(weight_dimension_numbers=STACKS), PARAMS, GRADS)
    for i in range(len(PARAMS)):
        np.testing.assert_allclose(stacked[i], trained(opt, PARAMS[i], GRADS[:, i]), atol=1e-5)


@pytest.mark.parametrize("opt", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_blocks_are_matrices_of_their_own(opt):
    """A kernel [5, 2, 8], of which the first two axes merge, in two blocks of rows and two of columns."""
    params, grads = (jnp.concatenate([x, x[..., :1, :, :] / 2], -3) for x in (PARAMS, GRADS))
    joined = lambda x: jnp.moveaxis(x.reshape(*x.shape[:-3], 2, 2, 5, 4), -3, -2).reshape(*x.shape[:-3], 5, 2, 8)
    numbers = gdfx.merge_dims(10, block_size=5)
    assert numbers(joined(params)) == gdfx.MuonDimensionNumbers((0, 1), (2,), (2, 2))
    blocked = trained(opt.replace(weight_dimension_numbers=numbers), joined(params), joined(grads))
    stacked = trained(opt.replace(weight_dimension_numbers=STACKS), params, grads)
    np.testing.assert_allclose(blocked, joined(stacked), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "numbers"),
    [
        ((5,), None),
        ((5, 1), gdfx.MuonDimensionNumbers((0,), (1,))),
        ((0, 5), None),
        ((1, 1, 64), None),
        ((3, 3, 64, 128), gdfx.MuonDimensionNumbers((0, 1, 2), (3,))),
        ((768, 12, 64), gdfx.MuonDimensionNumbers((0,), (1, 2))),
        ((12, 768, 3072), gdfx.MuonDimensionNumbers((1,), (2,), (1, 3))),  # a stack: 12 * 768 is more than 8192
        ((11008, 50257), gdfx.MuonDimensionNumbers((0,), (1,), (16, 1))),  # 50257 is 29 * 1733
    ],
)
def test_merge_dims(shape, numbers):
    assert gdfx.merge_dims(block_size=1024)({"w": jax.ShapeDtypeStruct(shape, "float32")}) == {"w": numbers}


@pytest.mark.parametrize("name", ["max_dim", "block_size"])
def test_merge_dims_takes_sizes(name):
    with pytest.raises(ValueError, match=f"merge_dims: {name} is 0, expected an int of at least 1"):
        gdfx.merge_dims(**{name: 0})


def test_newton_takes_real_params():
    with pytest.raises(TypeError, match=r"root='newton' is for real params, but the leaf at \['w'\] is complex64"):
        gdfx.scale_by_shampoo(root="newton").init({"w": jnp.ones((2, 2), "complex64")})
    with pytest.raises(ValueError, match="root is 'svd', expected one of"):
        gdfx.scale_by_shampoo().replace(root="svd")


@pytest.mark.usefixtures("x64")
def test_newton_gives_the_roots_of_eigh():
    params, grads = (np.asarray(x, np.float64) for x in (PARAMS[0], GRADS[:, 0]))
    of_newton, of_eigh = (trained(OPTIMIZERS[name], jnp.asarray(params), grads) for name in ("newton", "shampoo"))
    np.testing.assert_allclose(of_newton, of_eigh, atol=1e-10)


def test_factors_without_inverses_are_nearly_hermitian_and_whiten():
    opt = gdfx.scale_by_kron(0.0, 1.0, inverse_free=True)
    rng, mix = np.random.default_rng(1), np.diag([1.0, 10.0, 0.1, 3.0])
    grads = jnp.asarray(rng.normal(size=(600, 4, 4)) @ mix, jnp.float32)

    def step(state, g):
        new, state = opt.update(g, state)
        return state, new

    state, new = jax.jit(lambda: jax.lax.scan(step, opt.init(grads[0]), grads))()
    for q in state.factors:
        assert jnp.linalg.norm(q - q.T) < 0.1 * jnp.linalg.norm(q)
    # The mean squares of the columns, which are 1e-2 to 1e2 before.
    assert np.all(np.abs(np.log(jnp.mean(new[300:] ** 2, (0, 1)))) < 1)


@pytest.mark.usefixtures("x64")
def test_shampoo_with_averages():
    """Both moments debiased, and the roots of the first and the third step."""
    opt = gdfx.scale_by_shampoo(0.8, 0.9, 1e-3, precondition_frequency=2)
    grads = np.asarray(GRADS[:, 0], np.float64)
    state = opt.init(jnp.zeros((5, 4)))
    left, right, mu = np.zeros((5, 5)), np.zeros((4, 4)), np.zeros((5, 4))
    roots = []
    for t, g in enumerate(grads, start=1):
        left, right = 0.9 * left + 0.1 * g @ g.T, 0.9 * right + 0.1 * g.T @ g
        mu = 0.8 * mu + 0.2 * g
        if t % 2:
            roots = []
            for side in (left, right):
                values, vectors = np.linalg.eigh(side / (1 - 0.9**t))
                roots.append((vectors * (values + 1e-3) ** -0.25) @ vectors.T)
        updates, state = opt.update(jnp.asarray(g), state)
        np.testing.assert_allclose(updates, roots[0] @ (mu / (1 - 0.8**t)) @ roots[1], rtol=1e-9, atol=1e-10)


def test_shampoo_with_one_side_takes_its_square_root():
    g = np.asarray(GRADS[0, 0])
    opt = gdfx.scale_by_shampoo(0.0, 1.0, 1e-2, max_precond_dim=4)
    values, vectors = np.linalg.eigh(g.T @ g)
    updates, _ = opt.update(jnp.asarray(g), opt.init(jnp.zeros((5, 4))))
    np.testing.assert_allclose(updates, g @ (vectors * (values + 1e-2) ** -0.5) @ vectors.T, atol=1e-4)


def test_factors_of_a_matrix_without_gradients_stay():
    """Fitted to nothing but noise, they would grow at each step."""
    opt = gdfx.psgd_kron(0.1)
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    state = opt.init(params)
    _, after = jax.jit(opt.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    for old, new in zip(*(jax.tree.leaves(s["scale_by_kron"].factors) for s in (state, after)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_kron_is_fitted_ever_less_often():
    schedule = gdfx.precond_update_prob_schedule()
    np.testing.assert_allclose(schedule(jnp.asarray([0, 500, 1500, 9000])), [1, 1, np.exp(-1), 0.03], rtol=1e-6)


@pytest.mark.parametrize(
    "opt",
    [
        gdfx.soap(0.1, weight_dimension_numbers=STACKS),
        gdfx.shampoo(0.1, weight_dimension_numbers=STACKS),
        gdfx.splus(0.1, weight_dimension_numbers=STACKS),
        gdfx.galore(0.1, 2, weight_dimension_numbers=STACKS),
        gdfx.dion(0.1, muon_weight_dimension_numbers=STACKS),
        gdfx.psgd_kron(0.1, weight_dimension_numbers=STACKS),
    ],
    ids=lambda opt: type(opt).__name__,
)
@pytest.mark.parametrize("batch", [False, True])
def test_lapack_gets_one_matrix_at_a_time(opt, batch):
    """Two stacks at once may never come back on a machine of two cores."""
    update = lambda g, state: opt.update(g, state, g)
    given = PARAMS, opt.init(PARAMS)
    if batch:
        update, given = jax.vmap(update), jax.tree.map(lambda x: jnp.stack([x, x]), given)
    text = jax.jit(update).trace(*given).lower(lowering_platforms=("cpu",)).as_text()
    calls = re.findall(r"custom_call @lapack_\w+\(.*: \(tensor<([\dx]+)x[fc]\d", text)
    assert calls
    assert {call.count("x") for call in calls} == {1}
