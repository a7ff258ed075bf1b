"""`gdfx.compat.optax` has each public name of optax as installed, with its arguments and the fields of its states."""

import dataclasses
import inspect
import types
import typing
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdfx
from gdfx.compat import optax as compat

NAMESPACES = """
    assignment contrib experimental.aggregating losses microbatching perturbations projections schedules transforms tree
    tree_utils
""".split()  # noqa: SIM905 - shorter than a list
DEPRECATED = {"convex_kl_divergence", "inject_stateful_hyperparams", "optimistic_adam"}
# Arguments that are other ones on purpose.
DIFFERENT = {
    "GradientTransformation": "two functions make one, as there",
    "GradientTransformationExtraArgs": "two functions make one, as there",
    "Accumulator": "a dataclass",
    "scale_by_learning_rate": "there is no default: without a learning rate optax's does not flip the sign",
    "Gumbel": "a dataclass",
    "Normal": "a dataclass",
    "hungarian_algorithm": "the argument has a name",
    "base_hungarian_algorithm": "the argument has a name",
}
# Fields of states that have no counterpart.
WITHOUT = {
    "AddNoiseState": {"rng_key"},  # the state holds no key: that of a step is derived from the count
    "DifferentiallyPrivateAggregateState": {"rng_key"},
    "HutchinsonState": {"key"},
    "MechanicState": {"x0"},  # the sum of the steps in its place
    "MuonState": {"ns_coeffs"},  # they are a field of the transform
}


def at(module, path):
    for name in filter(None, path.split(".")):
        module = getattr(module, name)
    return module


def public(module):
    leaked = {*vars(typing), "base", "functools", "math", "tree", "typing", "utils", *DEPRECATED}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [name for name in dir(module) if not name.startswith("_") and name not in leaked]
        return {n: getattr(module, n) for n in names if not isinstance(getattr(module, n), types.ModuleType)}


NAMES = [(space, name) for space in ("", *NAMESPACES) for name in public(at(optax, space))]


@pytest.mark.parametrize(("space", "name"), NAMES, ids=lambda x: x or "optax")
def test_name_and_arguments(space, name):
    theirs, ours = getattr(at(optax, space), name), getattr(at(compat, space), name)
    if hasattr(theirs, "_fields") or name in DIFFERENT or not callable(theirs):
        return
    try:
        expected = inspect.signature(theirs).parameters
    except (TypeError, ValueError):  # a type for annotations
        return
    if {p.kind for p in expected.values()} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return
    found = inspect.signature(ours).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in found.values())
    lost = [n for n, p in expected.items() if n not in found and not (takes_all and p.kind is p.KEYWORD_ONLY)]
    assert not lost
    by_position = [n for n, p in expected.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [n for n in found if n in by_position] == by_position
    for n, p in expected.items():
        assert (found[n].default is p.empty) == (p.default is p.empty), n
        if type(p.default) in (bool, int, float, str, tuple, type(None)):
            assert found[n].default == p.default, n


STATES = [(space, name) for space, name in NAMES if hasattr(getattr(at(optax, space), name), "_fields")]


@pytest.mark.parametrize(("space", "name"), STATES, ids=lambda x: x or "optax")
def test_fields_of_states(space, name):
    theirs, ours = getattr(at(optax, space), name), getattr(at(compat, space), name)
    if name in ("GradientTransformation", "GradientTransformationExtraArgs", "Accumulator", "Aggregator"):
        return
    fields = {f.name for f in dataclasses.fields(ours)} if dataclasses.is_dataclass(ours) else set()
    fields |= set(getattr(ours, "_fields", ()))
    fields |= {n for n in dir(ours) if isinstance(getattr(ours, n, None), property)}
    assert set(theirs._fields) - fields == WITHOUT.get(name, set())


def test_transforms_are_values():
    opt = compat.chain(compat.clip_by_global_norm(1.0), compat.adamw(1e-3))
    assert eval(repr(opt), dict(vars(gdfx))) == opt
    made = compat.GradientTransformation(lambda params: (), lambda updates, state, params=None: (updates, state))
    for tx in (opt, made, compat.adam(0.1), compat.MultiSteps(compat.sgd(0.1), 2)):
        assert isinstance(tx, compat.GradientTransformation)
        assert isinstance(tx, compat.GradientTransformationExtraArgs)
    assert not isinstance(optax.adam(0.1).init, compat.GradientTransformation)
    assert compat.with_extra_args_support(opt) is opt


def test_states_nest_as_the_chains_do():
    params = {"w": jnp.ones(3)}
    opt = compat.chain(compat.clip(1.0), compat.chain(compat.sgd(0.1, momentum=0.9), compat.scale(0.5)))
    _, state = opt.update(params, opt.init(params), params)
    np.testing.assert_allclose(state[1][0][0].trace["w"], 1.0)
    replaced = state[1][0][0]._replace(trace=params)
    assert isinstance(replaced, compat.TraceState)
    assert isinstance(state[0], compat.EmptyState)


SCHEDULES = [
    ("constant_schedule", (0.5,), {}),
    ("linear_schedule", (1.0, 0.0, 10, 3), {}),
    ("polynomial_schedule", (1.0, 0.1, 2, 10), {"transition_begin": 2}),
    ("cosine_decay_schedule", (0.1, 20), {"alpha": 0.2, "exponent": 2.0}),
    ("exponential_decay", (1.0, 5, 0.5), {"staircase": True, "end_value": 0.1}),
    ("piecewise_constant_schedule", (1.0,), {"boundaries_and_scales": {5: 0.5, 3: 0.1}}),
    ("piecewise_constant_schedule", (1.0,), {}),
    ("piecewise_interpolate_schedule", ("linear", 1.0, {10: 0.5, 4: 2.0}), {}),
    ("cosine_onecycle_schedule", (20, 0.1), {}),
    ("linear_onecycle_schedule", (20, 0.1), {}),
    ("warmup_constant_schedule", (0.0, 0.1, 5), {}),
    ("warmup_cosine_decay_schedule", (0.0, 0.1, 5, 20), {"end_value": 0.01, "exponent": 2.0}),
    ("warmup_exponential_decay_schedule", (0.0, 0.1, 5, 10, 0.5), {}),
    (
        "sgdr_schedule",
        ([{"init_value": 0.0, "peak_value": p, "warmup_steps": 2, "decay_steps": 8} for p in (0.1, 0.05)],),
        {},
    ),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), SCHEDULES, ids=lambda x: x if isinstance(x, str) else "")
def test_schedules_have_optaxs_values(name, args, kwargs, x64):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = getattr(optax, name)(*args, **kwargs)
        expected = [theirs(jnp.asarray(float(n))) for n in range(25)]
    ours = getattr(compat, name)(*args, **kwargs)
    np.testing.assert_allclose([ours(n) for n in range(25)], expected, rtol=1e-6, atol=1e-12)


def test_joined_schedules():
    ours = compat.join_schedules([lambda n: 0.1 * n, compat.constant_schedule(2.0)], [5])
    theirs = optax.join_schedules([lambda n: 0.1 * n, optax.constant_schedule(2.0)], [5])
    np.testing.assert_allclose([ours(n) for n in range(8)], [theirs(n) for n in range(8)], rtol=1e-6)


def test_sophia_is_given_obj_fn():
    params = {"w": jnp.asarray([1.0, -2.0])}
    loss = lambda p: jnp.sum(p["w"] ** 4)
    opt = compat.contrib.sophia(0.1)
    state = opt.init(params)
    for _ in range(3):
        updates, state = opt.update(jax.grad(loss)(params), state, params, obj_fn=loss)
        params = compat.apply_updates(params, updates)
    assert loss(params) < 17.0


def test_seeds_are_keys():
    assert compat.add_noise(0.1, 0.5, seed=3) == gdfx.add_noise(0.1, 0.5, 3)
    assert compat.noisy_sgd(0.1, seed=3) == gdfx.noisy_sgd(0.1, key=3)
    assert compat.contrib.dpsgd(0.1, 1.0, 1.0, 3) == gdfx.dpsgd(0.1, 1.0, 1.0, 3)


def test_small_functions():
    tree = {"a": jnp.asarray([3.0, 4.0])}
    assert compat.global_norm(tree) == 5.0
    assert compat.init_empty_state(tree) == compat.EmptyState()
    assert compat.tree_utils.tree_vdot(tree, tree) == 25.0
    assert compat.tree.zeros_like({"a": jnp.ones(2, jnp.bfloat16)})["a"].dtype == jnp.bfloat16
    a, b = jnp.asarray([1.0, 2.0]), jnp.asarray([2.0, 1.0])
    expected = optax.losses.cosine_similarity(a, b, epsilon=100.0)
    np.testing.assert_allclose(compat.losses.cosine_similarity(a, b, epsilon=100.0), expected, rtol=1e-6)
    np.testing.assert_allclose(compat.losses.cosine_distance(a, b, epsilon=100.0), 1 - expected, rtol=1e-6)
