"""Optimizers read and changed by path, explained leaf by leaf, and written as data."""

import dataclasses
import inspect
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES

import gdfx
from gdfx.explain import Explanation, explain
from gdfx.inspection import _all, effective, hyperparameters, replace
from gdfx.pytrees import NonNegative, pytree
from gdfx.schedules import join, linear, piecewise_constant, warmup_cosine
from gdfx.serialization import from_dict, to_dict
from gdfx.testing import assert_single_trace, example_params, trees_close
from gdfx.wrappers.reshape import flatten, split_real_and_imaginary

PARAMS = {
    "embed": {"table": jnp.ones((5, 3))},
    "layers": [{"kernel": jnp.ones((3, 3), jnp.bfloat16), "bias": jnp.ones(3)}],
    "none": None,
    "scale": jnp.ones(()),
}
RISE = linear(0.0, 10.0, 10)  # its value is the count
GROUPS = gdfx.partition(
    {
        "matrix": gdfx.chain(gdfx.clip_by_global_norm(RISE), gdfx.adamw(RISE, weight_decay=0.2, mask=gdfx.matrices)),
        "embedding": gdfx.guard(gdfx.sgd(RISE), max_norm=1e9),
        "rest": gdfx.accumulate(gdfx.adam(RISE), 3),
    }
)


def updated(opt, steps, params=PARAMS):
    """The state after some updates."""
    state = opt.init(params)
    for _ in range(steps):
        _, state = opt.update(jax.tree.map(jnp.ones_like, params), state, params)
    return state


def close(found, expected):
    assert list(found) == list(expected)
    trees_close(found, {path: jnp.asarray(x, float) for path, x in expected.items()})


@pytree
class Doubled(gdfx.GradientTransformation):
    """A link of a user."""

    factor: NonNegative = 2.0

    def init(self, params):
        return ()

    def update(self, updates, state, params=None, **extra):
        return jax.tree.map(lambda u: 2 * u, updates), state


# Hyperparameters by path


def test_hyperparameters():
    opt = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adam(RISE, 0.8, mu_dtype="bfloat16"))
    assert hyperparameters(opt) == {
        "transforms[0].max_norm": 1.0,
        "transforms[1].learning_rate": RISE,
        "transforms[1].b1": 0.8,
        "transforms[1].b2": 0.999,
        "transforms[1].eps": 1e-8,
        "transforms[1].eps_root": 0.0,
    }
    paths = [
        "transforms['matrix'].transforms[0].max_norm",
        "transforms['matrix'].transforms[1].weight_decay",
        "transforms['embedding'].transform.learning_rate",
        "transforms['rest'].every",
    ]
    assert set(paths) <= set(hyperparameters(GROUPS))
    assert hyperparameters(gdfx.sgd(0.1)) == {"learning_rate": 0.1}  # no momentum, flags or dtypes
    assert hyperparameters(gdfx.add_noise(0.1, 0.5, key=0)) == {"eta": 0.1, "gamma": 0.5}
    assert hyperparameters(gdfx.prodigy(1.0))["betas[1]"] == 0.999
    assert hyperparameters(gdfx.scale_by_factors({"a": [1.0, 2]})) == {"factors['a'][0]": 1.0, "factors['a'][1]": 2}
    assert hyperparameters(RISE)["end_value"] == 10.0
    with pytest.raises(TypeError, match="expected an optimizer"):
        hyperparameters(optax.sgd(0.1))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_replacing_by_the_same_changes_nothing(case):
    opt = case.make()
    assert replace(opt, hyperparameters(opt)) == opt


def test_replace():
    opt = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adam(warmup_cosine(0.1, 2, 10)))
    new = replace(
        opt,
        {
            "transforms[0].max_norm": 2.0,
            "transforms[1].learning_rate.warmup": 20,  # valid together only
            "transforms[1].learning_rate.total": 100,
            "transforms[1].nesterov": True,
        },
    )
    assert new == gdfx.chain(gdfx.clip_by_global_norm(2.0), gdfx.adam(warmup_cosine(0.1, 20, 100), nesterov=True))
    assert opt == gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adam(warmup_cosine(0.1, 2, 10)))
    assert replace(gdfx.sgd(0.1), {"momentum": 0.9, "learning_rate": RISE}) == gdfx.sgd(RISE, 0.9)
    assert replace(gdfx.prodigy(), {"betas[0]": 0.5}).betas == (0.5, 0.999)
    assert replace(opt, {"transforms[0]": gdfx.clip(1.0)}).transforms[0] == gdfx.clip(1.0)
    new = replace(GROUPS, {'transforms["rest"].every': 4, "transforms['rest'].transform.b1": 0.5})
    assert new.transforms["rest"] == gdfx.accumulate(gdfx.adam(RISE, 0.5), 4)
    assert replace(RISE, {"end_value": 3.0}) == linear(0.0, 3.0, 10)
    assert replace(opt, {}) == opt


def test_replace_in_containers():
    opt = gdfx.masked(gdfx.scale(2.0), {"a": True, "b": [False]})
    assert replace(opt, {"mask['b'][0]": True}) == gdfx.masked(gdfx.scale(2.0), {"a": True, "b": [True]})
    opt = gdfx.galore(0.1, weight_dimension_numbers=gdfx.GaLoreDimensionNumbers(0, 1))
    new = replace(opt, {"weight_dimension_numbers.output_axis": 2})
    assert new.weight_dimension_numbers == gdfx.GaLoreDimensionNumbers(0, 2)
    opt = gdfx.sgd(join((RISE, RISE), (5,)))
    assert replace(opt, {"learning_rate.boundaries[0]": 7}).learning_rate.boundaries == (7,)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("learning_rate", r"transforms\[1\].learning_rate"),
        ("transforms[0].learning_rate", r"transforms\[1\].learning_rate"),
        ("transforms[1].learning_rat", r"transforms\[1\].learning_rate"),
        ("transforms[-1].b1", r"transforms\[1\].b1"),
        ("", r"there are: transforms, transforms\[0\]"),
        ("?", r"there are: transforms, transforms\[0\]"),
        ("transforms[1].b1()", "nothing at"),
        ("transforms[i]", "nothing at"),
    ],
)
def test_replace_at_an_unknown_path(path, named):
    opt = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adam(0.1))
    with pytest.raises(KeyError, match=named):
        replace(opt, {path: 0.5})


def test_replace_checks_values():
    opt = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adam(warmup_cosine(0.1, 2, 10)))
    for made in (opt, gdfx.as_arrays(opt)):
        with pytest.raises(ValueError, match=r"b1 is 1\.5, expected at least 0"):
            replace(made, {"transforms[1].b1": 1.5})
        with pytest.raises(ValueError, match="expected at least 0"):
            replace(made, {"transforms[0].max_norm": -1})
    with pytest.raises(ValueError, match="at least warmup"):
        replace(opt, {"transforms[1].learning_rate.total": 1})
    with pytest.raises(ValueError, match="one is in the other"):
        replace(opt, {"transforms[1].learning_rate": 0.1, "transforms[1].learning_rate.peak": 0.1})
    with pytest.raises(TypeError, match="expected an optimizer"):
        replace(optax.sgd(0.1), {"a": 1})  # pyright: ignore[reportArgumentType]


def test_replace_in_a_running_loop():
    """Without a second compilation, whether the arrays are made before or after."""
    opt = gdfx.as_arrays(gdfx.chain(gdfx.clip_by_global_norm(1e3), gdfx.adamw(warmup_cosine(0.1, 2, 10))))
    state = opt.init(PARAMS)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    with assert_single_trace(lambda opt, state: opt.update(grads, state, PARAMS)) as update:
        for i in range(4):
            changes: dict[str, Any] = {
                "transforms[1].learning_rate.peak": 0.1 / (i + 1),
                "transforms[0].max_norm": i + 1,
            }
            opt = replace(opt, changes)
            updates, state = update(gdfx.as_arrays(opt) if i % 2 else opt, state)
            opt = replace(opt, {"transforms[1].learning_rate": warmup_cosine(0.2, 2, 10 + i)})
            zero, state = update(replace(opt, {"transforms[1].learning_rate.peak": 0}), state)
            trees_close(zero, jax.tree.map(jnp.zeros_like, PARAMS))
            assert float(updates["scale"]) != 0
    assert isinstance(opt, gdfx.Chain)


# The values in force


def test_effective_where_hyperparameters_are_in_the_state():
    opt = gdfx.named_chain(("clip", gdfx.clip(1.0)), ("opt", gdfx.whole(gdfx.adam(RISE))))
    found = effective(opt, updated(opt, 3))
    assert (found["transforms[0].max_delta"], found["transforms[1].transform.learning_rate"]) == (1.0, 3.0)
    assert [row.rule for row in explain(opt, PARAMS).rows] == ["clip > scale_by_adam > scale_by_learning_rate"] * 4
    injected = gdfx.inject_hyperparams(gdfx.sgd)(0.5, momentum=0.9)
    state = injected.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25)
    found = effective(gdfx.chain(injected), gdfx.chain(injected).init(PARAMS))
    close(found, {"transforms[0].numbers['learning_rate']": 0.5, "transforms[0].numbers['momentum']": 0.9})
    close(effective(injected, state), {"numbers['learning_rate']": 0.25, "numbers['momentum']": 0.9})


def test_new_values_in_a_running_loop_compile_nothing():
    """Neither the step nor anything beside it: counted by JAX itself."""
    compiled = []
    listen = lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    opt = gdfx.chain(
        gdfx.clip_by_global_norm(1.0),
        gdfx.partition({"embedding": gdfx.sgd(0.1, momentum=0.9), "rest": gdfx.adamw(warmup_cosine(0.1, 2, 100))}),
    )
    params = {"embed": jnp.ones((4, 2)), "kernel": jnp.ones((2, 2))}
    step = gdfx.make_step(lambda params, batch: jnp.sum((params["embed"] @ params["kernel"]) ** 2))
    state = gdfx.TrainState.create(opt, params)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for i in range(100):
            if i == 2:  # the first two may compile
                assert compiled
                compiled.clear()
            changes = {
                "transforms[0].max_norm": 1.0 + i,
                "transforms[1].transforms['embedding'].momentum": 0.5 + i / 400,
                "transforms[1].transforms['rest'].learning_rate.peak": 0.1 / (1 + i),
                "transforms[1].transforms['rest'].learning_rate.total": 100 + i,
                "transforms[1].transforms['rest'].b1": np.float32(0.9),
            }
            opt = replace(opt, changes)
            effective(opt, state.opt_state)
            state, _ = step(opt, state, None)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_effective():
    opt = gdfx.chain(gdfx.clip(RISE), gdfx.chain(gdfx.trace(0.5), gdfx.adam(RISE, eps=1)))
    state = updated(opt, 3)
    expected = {
        "transforms[0].max_delta": 3.0,
        "transforms[1].transforms[0].decay": 0.5,
        "transforms[1].transforms[1].learning_rate": 3.0,
        "transforms[1].transforms[1].b1": 0.9,
        "transforms[1].transforms[1].b2": 0.999,
        "transforms[1].transforms[1].eps": 1.0,
        "transforms[1].transforms[1].eps_root": 0.0,
    }
    close(effective(opt, state), expected)
    with assert_single_trace(effective) as fn:
        close(fn(gdfx.as_arrays(opt), state), dict(sorted(expected.items())))  # as jit returns them
        fn(gdfx.as_arrays(replace(opt, {"transforms[0].max_delta": linear(0.0, 1.0, 10)})), state)
    close(effective(gdfx.sgd(RISE), updated(gdfx.sgd(RISE), 4)), {"learning_rate": 4.0})


@pytest.mark.parametrize(
    ("opt", "path"),
    [
        (gdfx.sgd(RISE), "learning_rate"),
        (gdfx.scale_by_learning_rate(RISE), "learning_rate"),
        (gdfx.chain(gdfx.clip(1e9), gdfx.guard(gdfx.sgd(RISE))), "transforms[1].transform.learning_rate"),
        (gdfx.chain(gdfx.identity(), gdfx.chain(gdfx.sgd(RISE))), "transforms[1].transforms[0].learning_rate"),
        (gdfx.accumulate(gdfx.sgd(RISE), 2), "transform.learning_rate"),
        (gdfx.lookahead(gdfx.chain(gdfx.sgd(RISE)), 100), "transform.transforms[0].learning_rate"),
        (gdfx.freeze(gdfx.sgd(RISE), "b"), "transform.learning_rate"),
        (gdfx.partition({"rest": gdfx.scale_by_learning_rate(RISE)}), "transforms['rest'].learning_rate"),
        (
            gdfx.accumulate(gdfx.partition({"rest": gdfx.chain(gdfx.sgd(RISE))}), 2),
            "transform.transforms['rest'].transforms[0].learning_rate",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_effective_is_what_the_update_uses(opt, path):
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    state = opt.init(params)
    for _ in range(5):
        rate = float(effective(opt, state)[path])
        updates, state = opt.update(params, state, params)
        if np.any(updates["a"]):  # not of a batch in between
            trees_close(updates["a"], jnp.full(3, -rate))


def test_effective_of_groups_and_wrappers():
    """The guard has skipped one update, and `accumulate` has made one in four."""
    state = updated(GROUPS, 3)
    _, state = GROUPS.update(jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS), state, PARAMS)
    found = effective(GROUPS, state)
    assert list(found) == list(hyperparameters(GROUPS))
    assert float(found["transforms['matrix'].transforms[0].max_norm"]) == 4
    assert float(found["transforms['matrix'].transforms[1].learning_rate"]) == 4
    assert float(found["transforms['embedding'].transform.learning_rate"]) == 3
    assert float(found["transforms['rest'].transform.learning_rate"]) == 1
    assert float(found["transforms['rest'].every"]) == 3
    assert all(x.dtype == jnp.float32 and not x.weak_type for x in found.values())


def test_effective_of_wrappers_in_a_chain():
    """Their own numbers go by the count of the chain, those inside by the state inside."""
    inner = gdfx.accumulate(gdfx.chain(gdfx.scale_by_adam(), gdfx.scale(RISE)), linear(2.0, 4.0, 10))
    opt = gdfx.chain(gdfx.masked(gdfx.clip(RISE), gdfx.matrices), inner, gdfx.sgd(RISE))
    found = effective(opt, updated(opt, 3))
    assert float(found["transforms[0].transform.max_delta"]) == 3
    assert float(found["transforms[1].every"]) == pytest.approx(2.6)
    assert float(found["transforms[1].transform.transforms[1].step_size"]) == 1
    assert float(found["transforms[2].learning_rate"]) == 3


def test_effective_of_links_alone():
    for opt in (gdfx.scale_by_adam(b1=linear(0.0, 0.5, 10)), gdfx.scale(linear(0.0, 0.5, 10))):
        found = effective(opt, updated(opt, 4))
        assert float(next(iter(found.values()))) == pytest.approx(0.2)
    close(effective(gdfx.clip(0.5), gdfx.clip(0.5).init(PARAMS)), {"max_delta": 0.5})
    close(effective(optax.identity(), ()), {})


def test_effective_of_transforms_in_fields():
    opt = gdfx.galore(RISE, 2, base_optimizer=gdfx.trace(linear(0.0, 0.5, 10)))
    found = effective(opt, updated(opt, 2, {"w": jnp.eye(3)}))
    assert float(found["base_optimizer.decay"]) == pytest.approx(0.1)
    assert float(found["learning_rate"]) == 2
    estimator = gdfx.chain(gdfx.hutchinson_estimator_diag_hessian(0), gdfx.scale(RISE))
    opt = gdfx.chain(gdfx.clip(RISE), gdfx.sophia(RISE, update_interval=2, hessian_diagonal_fn=estimator))
    state = opt.init(PARAMS)
    for _ in range(3):
        _, state = opt.update(PARAMS, state, PARAMS, value_fn=lambda p: gdfx.tree.norm(p) ** 2)
    found = effective(opt, state)
    assert float(found["transforms[1].hessian_diagonal_fn.transforms[1].step_size"]) == 2  # of steps 0 and 2
    assert float(found["transforms[1].learning_rate"]) == 3
    measure = gdfx.measure_with_ema(gdfx.tree.norm, linear(0.0, 0.5, 10))
    opt = gdfx.chain(gdfx.monitor({"norm": measure, "sum": gdfx.tree.sum_of_abs}), gdfx.sgd(0.1))
    assert float(effective(opt, updated(opt, 2))["transforms[0].measures['norm'].decay"]) == pytest.approx(0.1)


def test_effective_of_a_batch():
    opts = jax.vmap(gdfx.adam)(jnp.asarray([0.1, 0.2]))
    states = jax.vmap(lambda opt: opt.init(PARAMS))(opts)
    found = jax.vmap(effective)(opts, states)
    trees_close(found["learning_rate"], jnp.asarray([0.1, 0.2]))


@pytest.mark.usefixtures("x64")
def test_float64():
    opt = gdfx.chain(gdfx.adamw(linear(0.0, 1.0, 3), weight_decay=0.1))
    params = {"w": jnp.ones(2)}
    found = effective(opt, updated(opt, 1, params))
    assert found["transforms[0].learning_rate"].dtype == jnp.float64
    assert float(found["transforms[0].learning_rate"]) == pytest.approx(1 / 3, abs=1e-15)
    assert explain(opt, params).rows[0].state_bytes == 32
    assert through_json(gdfx.as_arrays(opt)) == gdfx.as_arrays(opt)
    new = replace(gdfx.as_arrays(opt), {"transforms[0].weight_decay": 1 / 3})
    assert new.transforms[0].weight_decay == np.float64(1 / 3)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_effective_has_the_paths_of_hyperparameters(case):
    with jax.numpy_dtype_promotion(case.promotion):
        opt = case.make()
        assert list(effective(opt, opt.init(example_params()))) == list(hyperparameters(opt))


def test_effective_of_the_wrong_state():
    opt = gdfx.chain(gdfx.clip(1.0), gdfx.adam(RISE))
    for state in (gdfx.sgd(0.1).init(PARAMS), (), gdfx.scale_by_adam().init(PARAMS)):
        with pytest.raises(TypeError, match="made by another optimizer"):
            effective(opt, state)
    with pytest.raises(TypeError, match="made by another optimizer"):
        effective(gdfx.guard(gdfx.adam(RISE)), opt.init(PARAMS))
    with pytest.raises(TypeError, match="made by another optimizer"):
        effective(gdfx.sgd(RISE), optax.sgd(0.1).init(PARAMS))
    with pytest.raises(TypeError, match="opt_state"):
        effective(opt, gdfx.TrainState.create(opt, PARAMS))
    with pytest.raises(TypeError, match="made by another optimizer"):
        effective(Doubled(RISE), ())


# What is done to each leaf


def test_explain():
    factors = gdfx.scale_by_factors({"embed": 0.5, "layers": 1.0, "none": None, "scale": 2.0})
    opt = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adamw(RISE, weight_decay=0.1, mask=gdfx.matrices), factors)
    found = explain(opt, PARAMS)
    assert isinstance(found, Explanation)
    assert [row.path for row in found.rows] == ["embed/table", "layers/0/bias", "layers/0/kernel", "scale"]
    spared = "clip_by_global_norm > scale_by_adam > scale_by_learning_rate > scale_by_factors"
    decayed = "clip_by_global_norm > scale_by_adam > add_decayed_weights > scale_by_learning_rate > scale_by_factors"
    assert found.rows[0] == ("embed/table", (5, 3), "float32", "embedding", decayed, 0.5, 0.1, 2 * 4 * 15)
    assert found.rows[1] == ("layers/0/bias", (3,), "float32", "bias", spared, 1.0, None, 2 * 4 * 3)
    assert found.rows[2] == ("layers/0/kernel", (3, 3), "bfloat16", "matrix", decayed, 1.0, 0.1, 2 * 4 * 9)
    assert found.rows[3] == ("scale", (), "float32", "scalar", spared, 2.0, None, 2 * 4)
    assert found.shared_bytes == 8  # two counts
    assert found.state_bytes == 8 + 8 * 28
    lines = repr(found).splitlines()
    assert lines[0].split() == ["path", "shape", "dtype", "role", "rule", "multiplier", "decay", "state", "bytes"]
    assert lines[2].split()[-3:] == ["1", "-", "24"]
    assert lines[-2].split() == ["shared", "8"]
    assert lines[-1].split() == ["total", "28", "elements", "232"]
    assert len({len(line) for line in lines}) == 1
    assert str(found) == repr(found)


def test_explain_groups():
    rows = {row.path: row for row in explain(GROUPS, PARAMS).rows}
    adamw = "clip_by_global_norm > scale_by_adam > add_decayed_weights > scale_by_learning_rate"
    assert rows["layers/0/kernel"].rule == adamw
    assert rows["layers/0/kernel"].decay == 0.2
    assert rows["embed/table"].rule == "guard(scale_by_learning_rate)"
    assert rows["embed/table"].state_bytes == 0
    assert rows["scale"].rule == "accumulate(scale_by_adam > scale_by_learning_rate)"
    assert rows["scale"].state_bytes == 12
    assert rows["scale"].decay is None


def test_explain_frozen_and_masked():
    inner = gdfx.chain(gdfx.masked(gdfx.clip(1.0), gdfx.matrices), gdfx.adamw(0.1))
    opt = gdfx.guard(gdfx.freeze(inner, "embed"))
    rows = {row.path: row for row in explain(opt, PARAMS).rows}
    assert rows["embed/table"][4:] == ("frozen", 0.0, None, 0)
    after = "scale_by_adam > add_decayed_weights > scale_by_learning_rate"
    assert rows["layers/0/kernel"].rule == f"guard(clip > {after})"
    assert rows["layers/0/bias"].rule == f"guard({after})"
    assert rows["layers/0/bias"].decay == 1e-4
    opt = gdfx.partition({"rest": gdfx.sgd(0.1)}, [("embed", "frozen"), (".*", "rest")])
    assert [row.rule for row in explain(opt, PARAMS).rows] == ["frozen", *["scale_by_learning_rate"] * 3]
    assert {row.rule for row in explain(gdfx.chain(), PARAMS).rows} == {"passed through"}


def test_explain_params_shown_in_another_form():
    params = {"w": jnp.ones((2, 3), jnp.complex64), "b": jnp.ones(3)}
    found = explain(split_real_and_imaginary(gdfx.adamw(0.1, mask=gdfx.matrices)), params)
    assert [row.state_bytes for row in found.rows] == [24, 96]
    after = "add_decayed_weights > scale_by_learning_rate"
    assert found.rows[1].rule == f"split_real_and_imaginary(scale_by_adam > {after})"
    assert [row.decay for row in found.rows] == [None, 1e-4]
    found = explain(flatten(gdfx.adam(0.1)), {"w": jnp.ones((2, 3)), "b": jnp.ones(3)})
    assert [row.rule for row in found.rows] == ["flatten(scale_by_adam > scale_by_learning_rate)"] * 2
    assert (found.shared_bytes, found.state_bytes) == (8 + 72, 80)


def test_explain_decays():
    """Those of links that decay themselves, of several links, and of schedules at the first update."""
    decay_of = lambda opt: [row.decay for row in explain(opt, PARAMS).rows]
    assert decay_of(gdfx.asgd(0.1, lambd=0.25, weight_decay=0.5)) == [0.75] * 4
    assert decay_of(gdfx.novograd(0.1, weight_decay=0.5)) == [0.5] * 4
    some = gdfx.prodigy(weight_decay=0.5, weight_decay_mask=gdfx.matrices)
    assert decay_of(some) == [0.5, None, 0.5, None]
    assert decay_of(gdfx.add_decayed_weights(linear(0.5, 1.0, 10))) == [0.5] * 4
    assert decay_of(gdfx.sgd(0.1)) == [None] * 4
    mask = {"embed": {"table": True}, "layers": [{"kernel": False, "bias": False}], "none": None, "scale": True}
    assert decay_of(gdfx.adamw(0.1, weight_decay=jnp.float32(0.1), mask=mask)) == [0.1, None, None, 0.1]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_explain_counts_the_whole_state(case):
    params = example_params()
    with jax.numpy_dtype_promotion(case.promotion):
        opt = case.make()
        found = explain(opt, jax.eval_shape(lambda: params))
        assert found.state_bytes == sum(x.nbytes for x in jax.tree.leaves(opt.init(params)))
        assert found.rows[1].path == "matrix"
        # Counts and the like; of params shown as one vector, all is shared.
        as_vector = type(opt).__name__ in ("flatten", "bfgs", "scale_by_bfgs", "lbfgsb", "scale_by_lbfgsb")
        assert found.shared_bytes <= 128 or as_vector


def test_state_bytes_of_other_shapes():
    size = lambda opt, params: {row.path: row.state_bytes for row in explain(opt, params).rows}
    params = {"w": jnp.ones((200, 300)), "a": {"w": jnp.ones(2)}}
    assert size(gdfx.adafactor(0.1), params)["w"] == 4 * 500
    assert size(gdfx.scale_by_sm3(), params) == {"a/w": 4 * 4, "w": 4 * (500 + 60000)}
    assert size(gdfx.adam(0.1), params) == {"a/w": 16, "w": 8 * 60000}
    assert size(optax.adam(0.1), params) == {"a/w": 16, "w": 8 * 60000}
    # Names of params that are those of links and groups too.
    params = {"scale_by_adam": jnp.ones(3), "rest": jnp.ones(2)}
    groups = gdfx.partition({"rest": gdfx.adam(0.1)})
    assert size(groups, params) == {"rest": 16, "scale_by_adam": 24}
    found = explain(gdfx.guard(gdfx.adam(0.1)), jnp.ones((2, 3)))
    assert (found.rows[0].path, found.rows[0].state_bytes, found.shared_bytes) == ("", 48, 20)
    assert "(root)" in repr(found)


def test_explain_allocates_nothing():
    big = {"w": jax.ShapeDtypeStruct((10**6, 10**6), jnp.bfloat16)}
    opt = gdfx.partition({"matrix": gdfx.lookahead(gdfx.adamw(0.1, mask=gdfx.matrices))})
    assert explain(opt, big).rows[0].state_bytes == 12 * 10**12
    assert "12,000,000,000,000" in repr(explain(opt, big))
    assert explain(opt, jax.eval_shape(lambda: {"w": jnp.ones((2, 2), jnp.complex64)})).rows[0].dtype == "complex64"
    assert explain(gdfx.adam(0.1), {}).rows == []
    with pytest.raises(TypeError, match="'w'"):
        explain(gdfx.adam(0.1), {"w": jnp.ones(2, int)})


# As data


def through_json(opt):
    return from_dict(json.loads(json.dumps(to_dict(opt), allow_nan=False)))


def foreign_function(opt):
    """The path of the first function in `opt` that is neither of gdfx nor the default of `apollo`."""
    functions = ((path, x) for path, x in _all(opt, "") if inspect.isfunction(x) and x is not jax.random.normal)
    return next((path.removeprefix(".") for path, x in functions if not x.__module__.startswith("gdfx")), None)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_round_trip(case):
    opt = case.make()
    if isinstance(opt, type(gdfx.inject_hyperparams(gdfx.sgd)(0.1))):
        with pytest.raises(TypeError, match=r"to_dict: the root is inject_hyperparams.*, which cannot be written"):
            to_dict(opt)  # it holds a factory
        return
    if path := foreign_function(opt):
        with pytest.raises(TypeError, match=f"to_dict: {re.escape(path)} is <function .*cannot be written"):
            to_dict(opt)
        return
    again = through_json(opt)
    assert again == opt
    assert repr(again) == repr(opt)
    assert jax.tree.structure(again) == jax.tree.structure(opt)
    assert list(map(type, hyperparameters(again).values())) == list(map(type, hyperparameters(opt).values()))


@pytest.mark.parametrize(
    "opt",
    [
        gdfx.adamw(join((RISE, warmup_cosine(0.1, 2, 10)), (5,)), weight_decay=RISE),
        gdfx.sgd(piecewise_constant(0.1, (3, 5), np.asarray([0.1, 0.3]))),
        gdfx.sgd(0.1 + 0.2),
        gdfx.guard(gdfx.sgd(1), math.inf),
        gdfx.masked(gdfx.clip(1.0), {"a": True, "b": [False, {"c": True}], "none": None}),
        gdfx.partition({"fast": gdfx.adam(1e-2), "slow": gdfx.adam(1e-3)}, [("bias|head", "fast"), (".*", "slow")]),
        gdfx.partition({"rest": gdfx.adam(1e-2)}, gdfx.roles(PARAMS, [("layers/0/kernel", "head")])),
        gdfx.galore(0.1, weight_dimension_numbers={"a": gdfx.GaLoreDimensionNumbers((0, 1), 2), "b": None}),
        gdfx.monitor({"norm": gdfx.tree.norm}),
        gdfx.scale_by_factors(
            {"a": [1.0, jnp.float32(0.1)], "b": np.asarray([[1.0, np.inf], [-0.0, 3e-40]], np.float32)}
        ),
        gdfx.add_noise(0.1, 0.5, key=jax.random.key(3)),
        gdfx.add_noise(0.1, 0.5, key=jax.random.PRNGKey(3)),
        gdfx.add_noise(0.1, 0.5, key=jax.random.key(3, impl="rbg")),
        gdfx.scale(jnp.asarray(0.1, jnp.bfloat16)),
        gdfx.scale(np.asarray(1 + 2**-50)),
        gdfx.scale(np.asarray(3)),
        gdfx.scale_by_factors({"a": np.asarray([1 + 2j, complex(0.1, math.inf)]), "b": np.asarray([True])}),
        gdfx.as_arrays(gdfx.adamw(warmup_cosine(0.1, 2, 10))),
        jax.vmap(gdfx.adam)(jnp.logspace(-4, -1, 5)),
        gdfx.chain(gdfx.clip(1.0)),
        RISE,
        join((RISE, RISE), np.asarray([4.5])),
    ],
    ids=lambda opt: type(opt).__name__,
)
def test_round_trip_of_what_fields_hold(opt):
    again = through_json(opt)
    assert again == opt
    assert jax.tree.leaves(jax.tree.map(jnp.result_type, again)) == jax.tree.leaves(jax.tree.map(jnp.result_type, opt))


def test_format():
    """The format is kept: what is written today is read tomorrow."""
    opt = gdfx.chain(gdfx.guard(gdfx.adamw(linear(0.0, 0.1, 10), mask=gdfx.matrices, mu_dtype="bfloat16")))
    schedule = {"init_value": 0.0, "end_value": 0.1, "transition_steps": 10, "transition_begin": 0}
    adamw = {
        "learning_rate": {"type": "schedules.linear", "fields": schedule},
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-08,
        "eps_root": 0.0,
        "mu_dtype": {"dtype": "bfloat16"},
        "weight_decay": 0.0001,
        "mask": {"function": "matrices"},
        "nesterov": False,
    }
    guard = {
        "transform": {"type": "adamw", "fields": adamw},
        "max_norm": {"float": "inf"},
        "loss_scale": None,
        "growth_interval": 2000,
        "max_in_a_row": {"float": "inf"},
    }
    links = {"transforms": {"tuple": [{"type": "guard", "fields": guard}]}}
    assert to_dict(opt) == {"gdfx": 1, "type": "Chain", "fields": links}
    assert to_dict(gdfx.adopt(0.1))["fields"]["clip_value_fn"] == {"function": "adopt.clip_value_fn"}
    assert to_dict(warmup_cosine(0.1, 2, 10))["type"] == "warmup_cosine"
    array = {"dtype": "float32", "shape": [2], "values": [0.5, "inf"]}
    assert to_dict(gdfx.scale(np.asarray([0.5, np.inf], np.float32)))["fields"]["step_size"] == {"array": array}
    assert set(to_dict(gdfx.add_noise(0.1, 0.5, key=jax.random.key(0)))["fields"]["key"]["key"]) == {"impl", "words"}


@pytest.mark.parametrize(
    ("opt", "path"),
    [
        (gdfx.chain(gdfx.clip(1.0), gdfx.sgd(lambda count: 0.1)), r"transforms\[1\].learning_rate.fn is <function"),
        (gdfx.adamw(0.1, mask=lambda p: p), "mask is <function"),
        (gdfx.chain(Doubled()), r"transforms\[0\] is Doubled"),
        (gdfx.scale_by_factors({1: 2.0}), "factors is 1.*keys that are strings"),
        (gdfx.freeze(gdfx.sgd(0.1), {"a": {"b": object()}}), r"where\['a'\]\['b'\] is <object"),
        (optax.sgd(0.1), "the root is"),
        (gdfx.scale_by_factors({"a": np.asarray(["x"])}), r"factors\['a'\]"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_written(opt, path):
    with pytest.raises(TypeError, match=f"to_dict: {path}"):
        to_dict(opt)


def test_traced_numbers_cannot_be_written():
    with pytest.raises(TypeError, match=r"to_dict: learning_rate .*under jit"):
        jax.jit(lambda x: to_dict(gdfx.sgd(x))["fields"]["momentum"])(0.1)


CHAIN = to_dict(gdfx.chain(gdfx.clip(1.0), gdfx.sgd(0.1)))
SGD = {"type": "sgd", "fields": {"learning_rate": 0.1, "momentum": None, "nesterov": False, "accumulator_dtype": None}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a dict that to_dict wrote"),
        ({"type": "sgd"}, "expected a dict that to_dict wrote"),
        ({"gdfx": True, **SGD}, "expected a dict that to_dict wrote"),
        ({"gdfx": 2, **SGD}, "version 2, but this gdfx reads up to 1: update"),
        ({"gdfx": 0, **SGD}, "version 0"),
        ({"gdfx": 1}, "the root has the entries"),
        ({"gdfx": 1, **SGD, "more": 1}, "the root has the entries"),
        ({"gdfx": 1, "type": "os.system", "fields": {}}, "the root has the type 'os.system', which is none of gdfx"),
        ({"gdfx": 1, "type": "Optimizer", "fields": {}}, "none of gdfx"),
        ({"gdfx": 1, "type": ["sgd"], "fields": {}}, "expected a name"),
        ({"gdfx": 1, "type": "sgd", "fields": {"learning_rate": 0.1}}, "momentum is missing"),
        ({"gdfx": 1, "type": "sgd", "fields": {**SGD["fields"], "lr": 0.1}}, "lr is no field of sgd"),
    ],
)
def test_what_cannot_be_read(data, message):
    with pytest.raises(ValueError, match=message):
        from_dict(data)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (-1.0, "at the root: sgd: learning_rate is -1.0, expected at least 0"),
        ({"type": "schedules.nothing", "fields": {}}, "learning_rate has the type 'schedules.nothing'"),
        ({"type": "schedules.constant", "fields": {}}, "learning_rate.init_value is missing"),
        ({"type": "from_function", "fields": {"fn": {"function": "eval"}}}, "learning_rate.fn is the function 'eval'"),
        ({"type": "from_function", "fields": {"fn": {"function": ["a"]}}}, "learning_rate.fn is the function"),
        ({}, "learning_rate has the entries none"),
        ({"pickle": "x"}, "learning_rate has the entries 'pickle', expected one of type, tuple"),
        ({"float": "1e5"}, "learning_rate is the float '1e5'"),
        ({"float": ["inf"]}, "learning_rate is the float"),
        ({"dtype": "nothing"}, "learning_rate is the dtype 'nothing'"),
        ({"dtype": "object"}, "learning_rate is the dtype 'object'"),
        ({"tuple": 3}, "learning_rate has 3, expected list"),
        ({"array": {"dtype": "float32", "shape": [2], "values": [1.0]}}, "learning_rate has 1 values"),
        ({"array": {"dtype": "float32", "shape": [-1], "values": [1.0]}}, "do not go with the shape"),
        ({"array": {"dtype": "float32", "values": [1.0]}}, "expected the entries dtype, shape, values"),
        ({"array": {"dtype": "float32", "shape": [1], "values": ["1"]}}, "is the float '1'"),
        ({"array": {"dtype": "int8", "shape": [1], "values": [1.5]}}, "has 1.5, expected int"),
        ({"array": {"dtype": "int8", "shape": [1], "values": [300]}}, "an array of int8"),
        ({"array": {"dtype": "complex64", "shape": [1], "values": [1.0]}}, "expected its two parts"),
        ({"key": {"impl": "none", "words": {"array": {"dtype": "uint32", "shape": [1], "values": [1]}}}}, "a key"),
        ({"key": {"impl": "rbg", "words": 1}}, "has 1, expected ndarray"),
        (object(), "learning_rate is a object, expected what json reads"),
    ],
)
def test_fields_that_cannot_be_read(rate, message):
    with pytest.raises(ValueError, match=message):
        from_dict({"gdfx": 1, "type": "sgd", "fields": {**SGD["fields"], "learning_rate": rate}})


def test_errors_of_constructors_name_the_path():
    bad = json.loads(json.dumps(CHAIN))
    bad["fields"]["transforms"]["tuple"][1]["fields"]["learning_rate"] = "fast"
    with pytest.raises(TypeError, match=r"at transforms\[1\]: sgd: learning_rate is 'fast'"):
        from_dict(bad)


def test_every_public_transform_and_schedule_can_be_read():
    """Whatever is exported, under its own name."""
    for module in (gdfx, gdfx.schedules):
        for name, cls in vars(module).items():
            if isinstance(cls, type) and issubclass(cls, gdfx.GradientTransformation | gdfx.Schedule):
                if not dataclasses.is_dataclass(cls) or not dataclasses.fields(cls):
                    continue
                where = name if module is gdfx else f"schedules.{name}"
                with pytest.raises(ValueError, match="is missing"):
                    from_dict({"gdfx": 1, "type": where, "fields": {}})
