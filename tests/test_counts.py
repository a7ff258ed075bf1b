"""What an update costs, in counts that do not vary with the machine: memory moved and held, programs, operations."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import gdfx
from gdfx.training.loop import memory_of

USUAL = gdfx.guard(
    gdfx.chain(
        gdfx.clip_by_global_norm(1.0),
        gdfx.adamw(gdfx.warmup_cosine(peak=1e-3, warmup=10, total=1000), weight_decay=0.1, mask=gdfx.matrices),
        gdfx.ema_params(0.999),
    )
)
CLIPPED = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adamw(1e-3))


def params_of(n_leaves, shape):
    return {f"{i:04}": jax.ShapeDtypeStruct(shape, jnp.float32) for i in range(n_leaves)}


def lowered(opt, params):
    def step(params, state, grads):
        updates, state = opt.update(grads, state, params)
        return gdfx.apply_updates(params, updates), state

    state = jax.eval_shape(opt.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params), (params, state, params)


def n_bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


# In arrays of the size of the params, read or written. A program of XLA:CPU has one output: the gradient is read for
# each moment, and the moments again for the params; with several outputs, adam would be at 7. The norm reads the
# gradients once more, for the clip and the guard together. The guard moves nothing, the average three.
@pytest.mark.parametrize(
    ("opt", "moved", "held"),
    [
        (gdfx.sgd(0.1), 3, 1.0),
        (gdfx.sgd(0.1, momentum=0.9), 6, 1.0),
        (gdfx.adam(1e-3), 10, 1.0),
        (gdfx.adamw(1e-3), 10, 1.0),
        (CLIPPED, 11, 1.0),
        (gdfx.guard(gdfx.adamw(1e-3)), 11, 1.0),
        (USUAL, 14, 1.0),
    ],
    ids=["sgd", "momentum", "adam", "adamw", "clip-adamw", "guard-adamw", "usual"],
)
def test_memory_moved_and_held_by_a_donated_step(opt, moved, held):
    params = params_of(4, (512, 512))
    step, arguments = lowered(opt, params)
    compiled = step.compile()
    assert compiled.cost_analysis()["bytes accessed"] / n_bytes(params) < moved + 0.1
    assert 1 <= memory_of(compiled) / n_bytes(arguments) < held + 0.01


def test_small_leaves_need_little_more_memory():
    params = params_of(64, (50, 70))
    step, arguments = lowered(CLIPPED, params)
    assert 1 <= memory_of(step.compile()) / n_bytes(arguments) < 1.05


# `guard` selects leaf by leaf.
@pytest.mark.parametrize(("opt", "limit"), [(CLIPPED, 0.3), (USUAL, 5.5)], ids=["clip-adamw", "usual"])
def test_a_thousand_leaves_alike_are_few_operations_to_trace(opt, limit):
    def equations(n_leaves):
        params = params_of(n_leaves, (50, 70))
        state = jax.eval_shape(opt.init, params)
        return len(jax.make_jaxpr(opt.update)(params, state, params).eqns)

    assert equations(1000) - equations(1) < 1000 * limit


def test_a_thousand_leaves_alike_are_little_text():
    one, thousand = (len(lowered(CLIPPED, params_of(n, (50, 70)))[0].as_text()) for n in (1, 1000))
    assert thousand < 1000 * one / 5


def test_a_rule_is_traced_once_for_leaves_alike():
    seen = []

    def rule(g):
        seen.append(g.shape)
        return 2 * g

    tree = {i: jnp.ones((2, 2 + i % 3)) for i in range(100)}
    jax.eval_shape(lambda tree: gdfx.tree.leafwise(rule, (), tree), tree)
    assert sorted(seen) == [(2, 2), (2, 3), (2, 4)]


def test_an_update_outside_jit_is_one_call_a_rule_for_leaves_alike():
    def rule(g):
        return 2 * g

    tree = {i: jnp.ones((3, 5)) for i in range(20)}
    jaxpr = jax.make_jaxpr(lambda tree: gdfx.tree.leafwise(rule, (), tree))(tree)
    calls = [eqn for eqn in jaxpr.eqns if eqn.params.get("name") == "rule"]
    assert len(calls) == len(jaxpr.eqns) == 1


def test_a_constructor_of_gdfx_is_compiled_when_it_is_asked_for():
    def make(module):
        named = {"__module__": module, "__annotations__": {"a": int, "b": int}, "b": 3, "__doc__": "Of two numbers."}
        return gdfx.pytree(type("pair", (), named))

    late, plain = make("gdfx.pairs"), make("pairs")
    is_compiled = lambda cls: inspect.isfunction(vars(cls)["__init__"])
    assert is_compiled(plain)
    assert not is_compiled(late)
    assert inspect.signature(late) == inspect.signature(plain)
    assert is_compiled(late)
    assert late(1) == late(a=1, b=3)
    for wrong in ((), (1, 2, 3)):
        with pytest.raises(TypeError, match=r"^pair.__init__\(\)"):
            late(*wrong)


def test_one_compilation_for_all_values_and_steps():
    step = jax.jit(lambda opt, grads, state, params: opt.update(grads, state, params))
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    for rate in (1e-3, 1e-2):
        opt = gdfx.as_arrays(gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adamw(rate)))
        state = opt.init(params)
        for _ in range(2):
            _, state = step(opt, params, state, params)
    assert step._cache_size() == 1
