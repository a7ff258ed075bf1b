"""Trajectories of 100 steps equal optax's, on pytrees of all kinds (PyTorch's: test_golden.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES, Case
from hypothesis import Phase, given, settings, strategies as st

import gdfx

pytestmark = pytest.mark.numbers

STEPS = 100
RATE = {"peak_value": 0.05, "warmup_steps": 10, "decay_steps": 80, "end_value": 1e-3}


def _rate():
    # optax's rise starts at init_value, gdfx's at the first of warmup + 1 equal parts.
    return gdfx.schedules.warmup_cosine(peak=0.05, warmup=10, total=80, floor=1e-3)


def _in_float(schedule):
    """With an int32 count optax's schedules compute in float32, also under x64."""
    return lambda count: schedule(jnp.asarray(count, float))


def _optax_rate():
    return _in_float(optax.warmup_cosine_decay_schedule(init_value=0.05 / 11, **RATE))


def _injected(make, **schedules):
    return optax.inject_hyperparams(make)(learning_rate=_optax_rate(), **schedules)


b1 = gdfx.schedules.linear(0.95, 0.8, 50)
optax_b1 = _in_float(optax.linear_schedule(0.95, 0.8, 50))
SCHEDULED = [
    Case("sgd", lambda: gdfx.sgd(_rate()), oracle=lambda: optax.sgd(_optax_rate())),
    Case("sgd-b1", lambda: gdfx.sgd(_rate(), b1), oracle=lambda: _injected(optax.sgd, momentum=optax_b1)),
    Case("rmsprop", lambda: gdfx.rmsprop(_rate()), oracle=lambda: optax.rmsprop(_optax_rate())),
    Case("adagrad", lambda: gdfx.adagrad(_rate()), oracle=lambda: optax.adagrad(_optax_rate())),
    Case("adam-b1", lambda: gdfx.adam(_rate(), b1), oracle=lambda: _injected(optax.adam, b1=optax_b1)),
    Case("adamw-b1", lambda: gdfx.adamw(_rate(), b1), oracle=lambda: _injected(optax.adamw, b1=optax_b1)),
]
ORACLES = [c for c in CASES if c.oracle is not None]

shapes = st.sampled_from([(), (1,), (5,), (0, 2), (3, 4), (2, 3, 2)])
trees = st.recursive(
    shapes,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)
        | st.tuples(inner, st.none())
    ),
    max_leaves=5,
)


def arrays(shape_tree, seed, scale):
    """Params of that structure, and gradients for all steps, in NumPy."""
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x)
    params = jax.tree.map(lambda shape: rng.normal(size=shape), shape_tree, is_leaf=is_shape)
    return params, jax.tree.map(lambda p: scale * rng.normal(size=(STEPS, *p.shape)), params)


def trajectory(opt, params, grads, dtype, extra):
    """The params after each step."""
    extra = extra if callable(extra) else lambda params, grads, given=extra: given or {}

    def step(carry, g):
        params, state = carry
        # The params have a part in their gradients, so that an error in them comes back.
        g = jax.tree.map(lambda g, p: g + 0.1 * p, g, params)
        updates, state = opt.update(g, state, params, **extra(params, g))
        params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
        return (params, state), params

    params, grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, grads))
    return jax.lax.scan(step, (params, opt.init(params)), grads)[1]


def check(case, shape_tree, seed, scale):
    params, grads = arrays(shape_tree, seed, scale)
    oracle, opt = case.oracle(), case.make()

    @jax.jit  # one program compiles faster than three
    def paths(params, grads):
        expected = trajectory(oracle, params, grads, jnp.float64, case.extra)
        wide = trajectory(opt, params, grads, jnp.float64, case.extra)
        # float32 against float64: optax's own float32 is further off for Adam, in whose 1 - b2**count it rounds b2.
        narrow = trajectory(opt, params, grads, jnp.float32, case.extra)
        return expected, wide, narrow

    with jax.numpy_dtype_promotion("standard"):  # optax's are not strict
        leaves = [[np.asarray(x, np.float64) for x in jax.tree.leaves(path)] for path in paths(params, grads)]
    for want, got64, got32 in zip(*leaves, strict=True):
        size = max(1.0, np.abs(want).max(initial=0))
        np.testing.assert_allclose(got64 / size, want / size, rtol=0, atol=case.oracle_atol)
        np.testing.assert_allclose(got32 / size, want / size, rtol=0, atol=max(case.float32_atol, case.oracle_atol))


PLAIN = [case for case in ORACLES if not case.variant]
OTHERS = [*(case for case in ORACLES if case.variant), *SCHEDULED]


@pytest.mark.parametrize("case", PLAIN, ids=repr)
@settings(max_examples=3, phases=[Phase.generate])  # shrinking would compile for minutes
@given(shape_tree=trees, seed=st.integers(0, 2**31), scale=st.sampled_from([1e-2, 1.0, 100.0]))
def test_trajectory_is_optaxs(case, shape_tree, seed, scale, x64):
    check(case, shape_tree, seed, scale)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", OTHERS, ids=[f"{'scheduled-' * (case in SCHEDULED)}{case}" for case in OTHERS])
def test_trajectory_of_setting_is_optaxs(case):
    check(case, {"a": (3, 4), "b": ((5,), None), "c": ()}, seed=0, scale=1.0)
