"""What is special to core, composition, pytrees and tree; what all transforms share is in test_contract.py."""

import ast
import copy
import dataclasses
import functools
import itertools
import math
import pickle
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdfx
from gdfx.core import CountState, EmptyState
from gdfx.testing import assert_single_trace, check_transformation, trees_close

PACKAGE = Path(gdfx.__file__).parent


def tree(fill=1.0, dtype=jnp.float32):
    return {"w": jnp.full((2, 3), fill, dtype), "b": jnp.full((3,), fill, dtype)}


def run(opt, params, steps=5, grad=None):
    """The params after some steps on a quadratic, in a scan."""
    grad = grad or jax.grad(lambda p: sum(jnp.sum((x - 3) ** 2) for x in jax.tree.leaves(p)))

    def step(carry, _):
        params, state = carry
        updates, state = opt.update(grad(params), state, params)
        return (gdfx.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, opt.init(params)), length=steps)[0][0]


# An optimizer is a value


def test_unpacks():
    opt = gdfx.adam(0.1)
    init, update = opt
    updates, state = update(tree(), init(tree()), tree())
    expected = opt.update(tree(), opt.init(tree()), tree())
    trees_close((updates, state), expected, rtol=0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (gdfx.adam(0.1), gdfx.adam(0.1, 0.9)),
        (gdfx.adam(0.1), gdfx.adam(learning_rate=np.float64(0.1))),
        (gdfx.adam(0.1, mu_dtype="bfloat16"), gdfx.adam(0.1, mu_dtype=jnp.bfloat16)),
        (gdfx.sgd(jnp.float32(0.5)), gdfx.sgd(0.5)),
        (gdfx.sgd(np.full(3, 0.5)), gdfx.sgd(np.full(3, 0.5))),
        (gdfx.adamw(0.1, mask=gdfx.matrices), gdfx.adamw(0.1, mask=gdfx.matrices)),
        (gdfx.adamw(0.1, mask={"w": True}), gdfx.adamw(0.1, mask={"w": True})),
        (gdfx.adamw(0.1, mask={"w": np.ones(2)}), gdfx.adamw(0.1, mask={"w": np.ones(2)})),
        (gdfx.chain(gdfx.clip(1.0), gdfx.sgd(0.1)), gdfx.chain(gdfx.clip(1.0), gdfx.sgd(0.1))),
        (gdfx.sgd(math.cos), gdfx.sgd(math.cos)),
    ],
)
def test_equal(a, b):
    assert a == b
    assert hash(a) == hash(b)
    assert {a: 1}[b] == 1


def test_unequal():
    different = [
        gdfx.sgd(0.1),
        gdfx.sgd(0.2),
        gdfx.sgd(0.1, 0.9),
        gdfx.sgd(0.1, 0.9, nesterov=True),
        gdfx.sgd(np.array([0.1, 0.2])),
        gdfx.sgd(np.array([0.1, 0.3])),
        gdfx.sgd(math.cos),
        gdfx.sgd(math.sin),
        gdfx.adam(0.1),
        gdfx.adamw(0.1, mask={"w": True}),
        gdfx.adamw(0.1, mask={"w": False}),
        gdfx.chain(gdfx.sgd(0.1)),
        gdfx.chain(gdfx.clip(1.0), gdfx.sgd(0.1)),
        gdfx.chain(gdfx.sgd(0.1), gdfx.clip(1.0)),
        "sgd(learning_rate=0.1)",
    ]
    for i, j in itertools.combinations(range(len(different)), 2):
        assert different[i] != different[j]


@pytest.mark.parametrize(
    ("opt", "text"),
    [
        (gdfx.sgd(0.1), "sgd(learning_rate=0.1)"),
        (gdfx.sgd(1), "sgd(learning_rate=1)"),
        (gdfx.sgd(jnp.float32(0.1), 0.9), "sgd(learning_rate=0.1, momentum=0.9)"),
        (gdfx.sgd(math.inf), "sgd(learning_rate=float('inf'))"),
        (gdfx.sgd(0.1, 0.9, True), "sgd(learning_rate=0.1, momentum=0.9, nesterov=True)"),
        (gdfx.clip(np.float64(0.1)), "clip(max_delta=0.1)"),
        (
            gdfx.scale_by_adam(mu_dtype=jnp.bfloat16),
            "scale_by_adam(b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0, mu_dtype='bfloat16')",
        ),
        (
            gdfx.add_decayed_weights(0.1, gdfx.matrices),
            "add_decayed_weights(weight_decay=0.1, mask=matrices)",
        ),
        (
            gdfx.add_decayed_weights(0.1, {"w": True}),
            "add_decayed_weights(weight_decay=0.1, mask={'w': True})",
        ),
        (
            gdfx.chain(gdfx.clip(1.0), gdfx.chain(gdfx.sgd(0.1))),
            "chain(clip(max_delta=1.0), chain(sgd(learning_rate=0.1)))",
        ),
    ],
)
def test_repr(opt, text):
    assert repr(opt) == text
    assert eval(text, vars(gdfx).copy()) == opt


def test_repr_of_many_and_of_traced():
    assert repr(jax.vmap(gdfx.sgd)(jnp.ones(3))) == "sgd(learning_rate=<float32[3]>)"
    shown = []
    jax.eval_shape(lambda opt: shown.append(repr(opt)), gdfx.sgd(jnp.float32(0.1)))
    assert shown == ["sgd(learning_rate=<traced float32[]>)"]


def test_repr_of_a_key():
    holder = HoldsKey(jax.random.key(0))
    assert repr(holder).startswith("HoldsKey(key=<key<fry>[]")
    assert holder == HoldsKey(jax.random.key(0))
    assert holder != HoldsKey(jax.random.key(1))


@gdfx.pytree
class HoldsKey(gdfx.Stateless):
    key: Any = None

    def apply(self, updates, params):
        return updates


def test_copies():
    opt = gdfx.chain(gdfx.clip(1.0), gdfx.adamw(jnp.float32(0.1), mask={"w": True, "b": False}))
    for other in (copy.copy(opt), copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert other == opt
        assert hash(other) == hash(opt)
        assert repr(other) == repr(opt)


def test_state_copies():
    opt = gdfx.chain(gdfx.clip(1.0), gdfx.adam(0.1))
    state = opt.init(tree())
    for other in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        trees_close(other, state, rtol=0)
        trees_close(opt.update(tree(), other, tree()), opt.update(tree(), state, tree()), rtol=0)


def test_replace():
    opt = gdfx.adam(0.1)
    assert opt.replace(learning_rate=0.2, b1=0.5) == gdfx.adam(0.2, 0.5)
    assert opt == gdfx.adam(0.1)
    with pytest.raises(TypeError, match="lr"):
        opt.replace(lr=0.2)
    with pytest.raises(ValueError, match="b1 is 1"):
        opt.replace(b1=1.0)
    with pytest.raises(TypeError, match="lr"):
        gdfx.adam(lr=0.2)
    with pytest.raises(AttributeError):
        opt.learning_rate = 0.2


@gdfx.pytree
class Faster(gdfx.sgd):
    """A class of users below one of gdfx."""

    factor: float = 2.0


@pytest.mark.parametrize("value", [gdfx.sgd(0.1), Faster(0.1), CountState(jnp.zeros((), jnp.int32))], ids=repr)
def test_frozen(value):
    assert dataclasses.is_dataclass(value)
    assert dataclasses.replace(value) == value
    for name in (dataclasses.fields(value)[0].name, "other"):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{name}'"):
            setattr(value, name, 1.0)
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot delete field '{name}'"):
            delattr(value, name)
    below = dataclasses.dataclass(frozen=True)(type("Below", (type(value),), {}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        below(*vars(value).values()).other = 1.0


@pytest.mark.parametrize("rate", [1, np.float64(0.5), np.float32(0.5), np.int64(1), np.array(0.5), jnp.int32(1)])
def test_kinds_of_numbers(rate):
    opt = gdfx.adam(rate, eps=0)
    expected = run(gdfx.adam(float(rate), eps=0.0), tree())
    trees_close(run(opt, tree()), expected)
    trees_close(jax.jit(run)(opt, tree()), expected)


def test_numpy_numbers_become_pythons():
    assert type(gdfx.sgd(np.float64(0.1)).learning_rate) is float
    assert type(gdfx.sgd(np.int64(1)).learning_rate) is int


def test_as_arrays():
    opt = gdfx.as_arrays(gdfx.chain(gdfx.clip(1), gdfx.sgd(np.float64(0.1), jnp.float32(0.9))))
    assert {(x.dtype.name, x.shape) for x in jax.tree.leaves(opt)} == {("float32", ())}
    params = tree()
    with assert_single_trace(lambda opt: opt.update(params, opt.init(params), params)) as update:
        for rate in (1, 0.1, np.float32(0.1), np.float64(0.1), jnp.float32(0.1), jnp.int32(1)):
            update(gdfx.as_arrays(gdfx.sgd(rate)))


def test_as_arrays_leaves_other_things():
    key = jax.random.key(0)
    assert gdfx.as_arrays(HoldsKey(key)) == HoldsKey(key)
    assert gdfx.as_arrays(HoldsKey(True)).key is True
    assert gdfx.as_arrays(gdfx.sgd(0.1)).momentum is None


@gdfx.pytree
class Pair(gdfx.Stateless):
    """Multiplies by the product of two decays."""

    betas: tuple[gdfx.Decay, gdfx.Decay] = (0.5, 0.9)

    def apply(self, updates, params):
        return gdfx.tree.leafwise(_times_both, self.betas, updates)


def _times_both(b1, b2, u):
    return b1 * b2 * u


def test_float64_is_not_none():
    """NumPy says that it is."""
    wide = gdfx.adam(0.1, mu_dtype="float64")
    assert wide != gdfx.adam(0.1)
    assert gdfx.chain(wide) != gdfx.chain(gdfx.adam(0.1))
    assert gdfx.partition({"rest": wide}) != gdfx.partition({"rest": gdfx.adam(0.1)})
    groups = gdfx.partition({"b": wide, "a": gdfx.sgd(0.1)})
    assert groups == gdfx.partition({"a": gdfx.sgd(0.1), "b": wide})
    assert repr(wide).endswith("mu_dtype='float64')")
    assert eval(repr(wide), vars(gdfx)) == wide


def test_tuples_of_numbers():
    check_transformation(Pair())
    assert Pair([0.5, 0.9]) == Pair()  # pyright: ignore[reportArgumentType]
    assert repr(Pair()) == "Pair(betas=(0.5, 0.9))"
    scheduled = Pair((0.5, lambda count: 0.1 * count))
    state = scheduled.init(tree())
    for expected in (0.0, 0.05, 0.1):
        updates, state = scheduled.update(tree(), state)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)
    for betas, error, told in (
        ((0.5, 1.0), ValueError, r"Pair: betas\[1\] is 1.0, expected at least 0 and less than 1"),
        ((0.5, "a"), TypeError, r"Pair: betas\[1\] is 'a'"),
        ((0.5,), TypeError, r"Pair: betas is \(0.5,\), expected 2 numbers"),
        (0.5, TypeError, "Pair: betas is 0.5, expected 2 numbers"),
    ):
        with pytest.raises(error, match=told):
            Pair(betas)
    with pytest.raises(ValueError, match=r"Pair: betas\[0\] has shape \(2,\), expected a scalar"):
        Pair((jnp.ones(2), 0.9)).update(tree(), EmptyState())


@pytest.mark.parametrize(
    "key", [3, np.int64(3), jax.random.key(3), jax.random.PRNGKey(3)], ids=["int", "np", "key", "raw"]
)
def test_keys(key):
    """However a key is given, the noise is the same, under jit, and another in each step and leaf."""
    opt = gdfx.add_noise(1.0, 0.0, key)
    assert pickle.loads(pickle.dumps(opt)) == opt
    grads = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    state = opt.init(grads)
    with assert_single_trace(lambda opt, grads, state: opt.update(grads, state)) as update:
        first, state = update(gdfx.as_arrays(opt), grads, state)
        second, _ = update(gdfx.as_arrays(opt), grads, state)
    expected, _ = gdfx.add_noise(1.0, 0.0, 3).update(grads, opt.init(grads))
    trees_close(first, expected)
    columns = [first["a"], first["b"], second["a"], second["b"]]
    assert all(not np.allclose(x, y) for x, y in itertools.combinations(columns, 2))


def test_keys_that_are_none():
    for key in (-1, 2**32):
        with pytest.raises(ValueError, match=r"add_noise: key is .*, expected an int in"):
            gdfx.add_noise(1.0, 0.5, key)
    opt = gdfx.add_noise(1.0, 0.5, 0.1)
    with pytest.raises(TypeError, match=r"key has dtype float32 and shape .*, expected an int of Python or a key"):
        opt.update(tree(), opt.init(tree()))
    opt = gdfx.add_noise(1.0, 0.5)
    with pytest.raises(TypeError, match="needs key"):
        opt.update(tree(), opt.init(tree()))
    one, two = (opt.update(tree(), opt.init(tree()), key=key)[0]["w"] for key in (1, 2))
    assert not np.allclose(one, two)


# Constructor errors


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: gdfx.adam(math.nan), ValueError, "adam: learning_rate is nan, expected at least 0"),
        (lambda: gdfx.adam(-0.1), ValueError, "adam: learning_rate is -0.1, expected at least 0"),
        (lambda: gdfx.adam(np.float32(-1)), ValueError, "adam: learning_rate is -1.0"),
        (lambda: gdfx.adam(-1), ValueError, "adam: learning_rate is -1, expected at least 0"),
        (lambda: gdfx.adam(0.1, b1=1), ValueError, "adam: b1 is 1, expected at least 0 and .* 1"),
        (lambda: gdfx.adam(0.1, b1=1.0), ValueError, "adam: b1 is 1.0, expected at least 0 and .* 1"),
        (lambda: gdfx.adam(0.1, b2=math.nan), ValueError, "adam: b2 is nan"),
        (lambda: gdfx.scale(math.nan), ValueError, "scale: step_size is nan, expected a number"),
        (lambda: gdfx.adam("0.1"), TypeError, "adam: learning_rate is '0.1', expected a number"),
        (lambda: gdfx.adam(1j), TypeError, "adam: learning_rate is 1j, expected a number"),
        (lambda: gdfx.chain(gdfx.adam), TypeError, r"adam is a class, .* call it, as in adam\(...\)"),
        (lambda: gdfx.chain(0.1), TypeError, "0.1 is a float, expected a transform"),
        (lambda: gdfx.chain((0.1, 0.2)), TypeError, "is a tuple, expected a transform"),
        (lambda: gdfx.chain([gdfx.sgd(0.1)]), TypeError, "is a list, expected a transform"),
        (lambda: gdfx.as_transformation(None), TypeError, "None is a NoneType"),
        (lambda: gdfx.adam(0.1, mu_dtype="float17"), TypeError, "float17"),
    ],
)
def test_constructor_errors(make, error, told):
    with pytest.raises(error, match=told):
        make()


def test_schedule_class_not_called():
    with pytest.raises(TypeError, match=r"learning_rate is the class constant.*constant\(...\)"):
        gdfx.sgd(gdfx.schedules.constant)


def test_limits_are_allowed():
    gdfx.adam(0.0, b1=0.0, b2=0.0, eps=0.0)
    gdfx.scale(-1.0)
    gdfx.clip(math.inf)


# Errors of init and update


@pytest.mark.parametrize("make", [lambda: gdfx.sgd(0.1), lambda: gdfx.clip(1.0), gdfx.scale_by_adam])
@pytest.mark.parametrize(
    ("leaf", "told"),
    [
        (np.arange(3), "dtype int"),
        (jnp.ones(3, bool), "dtype bool"),
        (1.0, "type float"),
        ("relu", "type str"),
        (jax.random.key(0), "dtype key"),
    ],
    ids=["int", "bool", "float", "str", "key"],
)
def test_params_that_have_no_gradient(make, leaf, told):
    with pytest.raises(TypeError, match=rf"params\['layer'\]\[0\] has {told}.*expected an array of floats"):
        make().init({"layer": [leaf]})


def transposed(grads):
    return {**grads, "w": grads["w"].T}


def one_element(grads):
    return {**grads, "b": grads["b"][:1]}


def without_b(grads):
    return {"w": grads["w"]}


def with_c(grads):
    return {**grads, "c": grads["b"]}


def integers(grads):
    return {**grads, "w": grads["w"].astype(int)}


def python_number(grads):
    return {**grads, "b": 0.1}


def complex_numbers(grads):
    return {**grads, "w": grads["w"].astype(jnp.complex64)}


def in_a_list(grads):
    return [grads["b"], grads["w"]]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (transposed, ValueError, r"at \['w'\], grads have shape \(3, 2\), expected \(2, 3\) as in params"),
        (one_element, ValueError, r"at \['b'\], grads have shape \(1,\), expected \(3,\)"),
        (without_b, ValueError, r"grads have no leaf at \['b'\]"),
        (with_c, ValueError, r"grads have a leaf at \['c'\] that is not there in params"),
        (in_a_list, ValueError, r"different structures.*\['b'\]"),
        (integers, TypeError, r"at \['w'\], grads have dtype int.*expected an array of floats"),
        (complex_numbers, TypeError, r"at \['w'\], grads have dtype complex64, expected a real one"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("make", [lambda: gdfx.sgd(0.1), lambda: gdfx.chain(gdfx.adam(0.1))], ids=["sgd", "chain"])
def test_grads_unlike_params(make, change, error, told, jit):
    opt, params = make(), tree()
    update = jax.jit(opt.update) if jit else opt.update
    with pytest.raises(error, match=told):
        update(change(params), opt.init(params), params)


def test_grads_that_are_no_arrays():
    opt = gdfx.sgd(0.1)
    with pytest.raises(TypeError, match=r"at \['b'\], grads have type float, expected an array"):
        opt.update(python_number(tree()), opt.init(tree()), tree())


def test_grads_unlike_state():
    link = gdfx.scale_by_adam()
    with pytest.raises(ValueError, match=r"at \['w'\], updates have shape \(3, 2\).*state"):
        link.update(transposed(tree()), link.init(tree()))


def test_apply_updates_checks():
    with pytest.raises(ValueError, match=r"at \['b'\], updates have shape \(1,\), expected \(3,\) as in params"):
        gdfx.apply_updates(tree(), one_element(tree()))
    with pytest.raises(ValueError, match=r"updates have no leaf at \['b'\]"):
        gdfx.apply_updates(tree(), without_b(tree()))


def test_missing_params():
    expected = r"add_decayed_weights\(.*\) needs params.*update\(grads, state, params\)"
    link = gdfx.add_decayed_weights(0.1)
    with pytest.raises(TypeError, match=expected):
        link.update(tree(), link.init(tree()))
    for opt in (gdfx.adamw(0.1), gdfx.chain(gdfx.clip(1.0), gdfx.adamw(0.1))):
        assert opt.needs == {"params"}
        with pytest.raises(TypeError, match=re.escape(repr(opt)) + " needs params"):
            opt.update(tree(), opt.init(tree()))
    assert gdfx.adam(0.1).needs == set()


@gdfx.pytree
class Needy(gdfx.Stateless):
    @property
    def needs(self):
        return frozenset({"value", "key"})

    def apply(self, updates, params):
        return updates


def test_missing_extra_arguments():
    opt = gdfx.chain(Needy(), gdfx.adamw(0.1))
    assert opt.needs == {"key", "params", "value"}
    state = opt.init(tree())
    with pytest.raises(TypeError, match=r"needs key, value.*update\(grads, state, params, key=..., value=...\)"):
        opt.update(tree(), state, tree())
    with pytest.raises(TypeError, match=r"needs key, which"):
        opt.update(tree(), state, tree(), value=1.0)
    opt.update(tree(), state, tree(), value=1.0, key=1, unknown=2)


def test_state_of_another_optimizer():
    params, opt = tree(), gdfx.adam(0.1)
    with pytest.raises(ValueError, match=r"the links \('trace', .*another optimizer") as raised:
        opt.update(params, gdfx.sgd(0.1, 0.9).init(params), params)
    assert "('scale_by_adam', 'scale_by_learning_rate'): adam(" in str(raised.value)
    with pytest.raises(ValueError, match="a tuple, but the optimizer has the links"):
        opt.update(params, optax.adam(0.1).init(params), params)


@pytest.mark.parametrize("make", [gdfx.sgd, gdfx.adam, gdfx.clip, gdfx.trace, lambda x: gdfx.adam(0.1, x)])
def test_hyperparameters_that_are_no_scalars(make):
    opt = make(jnp.full(2, 0.5))
    with pytest.raises(ValueError, match=r"has shape \(2,\), expected a scalar.*jax.vmap"):
        opt.update(tree(), opt.init(tree()), tree())


def test_mask_of_another_structure():
    opt = gdfx.adamw(0.1, mask={"w": True})
    with pytest.raises(ValueError, match=r"mask.*'w'.*expected that of params"):
        opt.update(tree(), opt.init(tree()), tree())


# Chains


def test_state_by_position_and_name():
    opt = gdfx.chain(gdfx.clip(1.0), gdfx.adam(0.1))
    _, state = opt.update(tree(), opt.init(tree()), tree())
    assert state.names == ("clip", "scale_by_adam", "scale_by_learning_rate")
    assert len(state) == 3
    assert state[1] is state["scale_by_adam"]
    assert state[-1] is state["scale_by_learning_rate"]
    assert state[1:] == (state[1], state[2])
    assert [type(s).__name__ for s in state] == ["EmptyState", "ScaleByAdamState", "EmptyState"]
    assert state["scale_by_adam"].mu["w"].shape == (2, 3)
    with pytest.raises(KeyError, match="no link is named 'adam'; there are: clip, scale_by_adam,"):
        state["adam"]
    with pytest.raises(IndexError):
        state[3]
    assert repr(state).startswith("ChainState(count=1, {'clip': EmptyState(), 'scale_by_adam': ")


def paths(state):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def test_a_clip_in_front_changes_no_path():
    plain = paths(gdfx.adam(0.1).init(tree()))
    assert "['scale_by_adam'].mu['w']" in plain
    rates = gdfx.schedules.warmup_cosine(0.1, 2, 10)
    for opt in (
        gdfx.chain(gdfx.clip(1.0), gdfx.adam(0.1)),
        gdfx.chain(gdfx.chain(gdfx.clip(rates), gdfx.identity()), gdfx.chain(gdfx.adam(rates))),
        gdfx.chain(gdfx.adam(0.1), gdfx.scale(1.0)),
    ):
        assert paths(opt.init(tree())) == plain


def test_duplicate_names():
    opt = gdfx.chain(gdfx.trace(0.1), gdfx.clip(1.0), gdfx.trace(0.2), gdfx.chain(gdfx.trace(0.3)))
    state = opt.init(tree())
    assert state.names == ("trace", "clip", "trace_1", "trace_2")
    assert state["trace_2"] is state[3]
    assert len(set(paths(state))) == len(paths(state))


@gdfx.pytree
class trace_1(gdfx.Stateless):
    def apply(self, updates, params):
        return updates


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_names_are_unique(order):
    links = [trace_1(), gdfx.trace(0.1), gdfx.trace(0.2)]
    names = gdfx.chain(*(links[i] for i in order)).init(tree()).names
    assert len(set(names)) == 3


def test_chain_is_composition():
    params, grads = tree(), tree(2.0)
    a, b, c = gdfx.clip(0.5), gdfx.trace(0.9), gdfx.scale(-0.1)
    whole, nested = gdfx.chain(a, b, c), gdfx.chain(gdfx.chain(a), gdfx.chain(gdfx.chain(b, c)))
    state, nested_state = whole.init(params), nested.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(nested_state)
    states = [link.init(params) for link in (a, b, c)]
    for _ in range(2):
        expected = grads
        for i, link in enumerate((a, b, c)):
            expected, states[i] = link.update(expected, states[i], params)
        found, state = whole.update(grads, state, params)
        trees_close(found, expected)
        found, nested_state = nested.update(grads, nested_state, params)
        trees_close(found, expected)


def test_empty_chain():
    opt = gdfx.chain()
    updates, _ = opt.update(tree(), opt.init(tree()))
    trees_close(updates, tree(), rtol=0)


def halves_init(params):
    return {"steps": jnp.zeros((), jnp.int32)}


def halves_update(updates, state, params=None, *, value=None):
    factor = 0.5 if value is None else value
    return jax.tree.map(lambda u: factor * u, updates), {"steps": state["steps"] + 1}


def test_chain_of_others():
    """An optax transform and a pair of functions are links, with names of their own."""
    pair = halves_init, halves_update
    with jax.numpy_dtype_promotion("standard"):
        opt = gdfx.chain(optax.scale_by_adam(), pair, optax.clip(1.0), gdfx.scale(-1.0))
        updates, state = opt.update(tree(), opt.init(tree()), tree())
    assert state.names[:2] == ("scale_by_adam", "halves_update")
    assert state["scale_by_adam"].mu["w"].shape == (2, 3)
    assert state["halves_update"]["steps"] == 1
    trees_close(updates, tree(-0.5), rtol=1e-4)


def test_a_pair_gets_the_extra_arguments_that_it_takes():
    opt = gdfx.chain((halves_init, halves_update), gdfx.scale(1.0))
    updates, _ = opt.update(tree(), opt.init(tree()), tree(), value=3.0, unknown=4.0)
    trees_close(updates, tree(3.0))
    optax_like = gdfx.as_transformation(optax.with_extra_args_support(optax.identity()))
    optax_like.update(tree(), optax_like.init(tree()), tree(), unknown=4.0)


def test_a_pair_of_callables_without_names():
    pair = functools.partial(halves_init), functools.partial(halves_update)
    opt = gdfx.chain(pair, gdfx.scale(2.0))
    updates, state = opt.update(tree(), opt.init(tree()), tree())
    trees_close(updates, tree())
    assert len(set(state.names)) == 2


def test_optax_in_half_precision():
    """The state of a foreign link has the same avals before and after a step."""
    opt = gdfx.chain(gdfx.clip(1.0), optax.adam(0.1))
    params = tree(dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        before = opt.init(params)
        updates, after = opt.update(params, before, params)
    assert jax.tree.map(jax.typeof, before) == jax.tree.map(jax.typeof, after)
    assert updates["w"].dtype == jnp.bfloat16


def test_half_precision_between_links():
    """A product that bfloat16 cannot hold to the last digit survives until the end of the chain."""
    third = np.float32(1 / 3)
    opt = gdfx.chain(gdfx.scale(third), gdfx.scale(1.0), gdfx.scale(3.0))
    params = {"x": jnp.asarray([1.0, 257.0, 1e-3], jnp.bfloat16)}
    updates, _ = opt.update(params, opt.init(params), params)
    assert updates["x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["x"], params["x"])


# Schedules


def test_functions_are_schedules():
    def halving(count):
        return 0.5**count

    params = tree()
    for opt in (gdfx.sgd(halving), gdfx.chain(gdfx.sgd(halving)), gdfx.scale_by_learning_rate(halving)):
        state = opt.init(params)
        for i in range(4):
            updates, state = jax.jit(opt.update)(params, state, params)
            trees_close(updates, tree(-(0.5**i)))


def test_an_optax_schedule_is_a_schedule():
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    opt = gdfx.sgd(schedule)
    assert opt == gdfx.sgd(schedule)
    state = opt.init(tree())
    with jax.numpy_dtype_promotion("standard"):
        for i in range(6):
            updates, state = opt.update(tree(), state, tree())
            trees_close(updates, tree(-max(0.0, 1 - i / 4)))


def test_all_schedules_in_a_chain_share_its_count():
    ramp = gdfx.schedules.linear(0.0, 1.0, 10)
    opt = gdfx.chain(gdfx.scale(ramp), gdfx.sgd(ramp))
    state = opt.init(tree())
    assert all(isinstance(s, EmptyState) for s in state)
    for i in range(3):
        assert state.count == i
        updates, state = opt.update(tree(), state, tree())
        trees_close(updates, tree(-((i / 10) ** 2)))


def test_a_lone_link_counts_for_its_schedule():
    link = gdfx.scale(gdfx.schedules.linear(0.0, 1.0, 10))
    state = link.init(tree())
    assert isinstance(state, CountState)
    for i in range(3):
        updates, state = link.update(tree(), state)
        trees_close(updates, tree(i / 10))


def test_at():
    opt = gdfx.adam(gdfx.schedules.linear(0.0, 1.0, 10), b1=lambda count: 0.1)
    assert opt.at(jnp.int32(5)).replace(b1=0.1) == gdfx.adam(jnp.float32(0.5), b1=0.1)
    assert isinstance(opt.learning_rate, gdfx.Schedule)
    plain = gdfx.adam(0.1)
    assert plain.at(jnp.int32(5)) is plain


def test_a_schedule_of_b1_debiases_with_its_present_value():
    """With b1 constant in time, as a schedule or as a number, the steps are the same."""
    trees_close(run(gdfx.adam(0.1, b1=lambda count: 0.8), tree()), run(gdfx.adam(0.1, b1=0.8), tree()))


# stateless, identity, apply_updates


def test_identity():
    link = gdfx.identity()
    updates, state = link.update(tree(), link.init(tree()))
    trees_close(updates, tree(), rtol=0)
    assert jax.tree.leaves(state) == []


def test_stateless():
    link = gdfx.stateless(lambda updates, params: jax.tree.map(lambda u, p: u * p, updates, params))
    updates, state = link.update(tree(2.0), link.init(tree(3.0)), tree(3.0))
    trees_close(updates, tree(6.0))
    assert jax.tree.leaves(state) == []
    opt = gdfx.chain(link, gdfx.sgd(0.1))
    updates, _ = opt.update(tree(2.0), opt.init(tree(3.0)), tree(3.0))
    trees_close(updates, tree(-0.6))


@pytest.mark.parametrize("param", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("update", ["bfloat16", "float16", "float32", "float64"])
def test_apply_updates_keeps_dtypes(param, update, x64):
    params, updates = jnp.asarray([1.0, -2.0], param), jnp.asarray([0.25, 0.5], update)
    new = gdfx.apply_updates({"x": params, "none": None}, {"x": updates, "none": None})
    assert new["x"].dtype == param
    np.testing.assert_array_equal(new["x"].astype(float), [1.25, -1.5])


def test_apply_updates_adds_in_float32():
    """1 + 2**-8 + 2**-9 rounds up to the next bfloat16; the update itself rounded first would be a tie."""
    new = gdfx.apply_updates(jnp.asarray(1.0, jnp.bfloat16), jnp.float32(2**-8 + 2**-20))
    assert float(new) == 1 + 2**-7


def test_apply_updates_complex():
    new = gdfx.apply_updates(jnp.asarray([1 + 1j], jnp.complex64), jnp.asarray([1j], jnp.complex64))
    assert new.dtype == jnp.complex64
    np.testing.assert_array_equal(new, [1 + 2j])


def test_count_does_not_wrap():
    opt = gdfx.adam(0.1)
    last = jnp.iinfo(jnp.int32).max
    state = jax.tree.map(lambda x: jnp.full_like(x, last) if x.dtype == jnp.int32 else x, opt.init(tree()))
    updates, state = opt.update(tree(), state, tree())
    assert state.count == state["scale_by_adam"].count == last
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


# The engine


def _mean_and_halves(g, slot, pair):
    total, halves = pair
    return g + slot, slot + 1, (total + jnp.sum(g), [half / 2 for half in halves])


def test_leafwise_other():
    """Slots of other shapes, with more than one array a leaf."""
    grads = {"w": jnp.ones((2, 3), jnp.bfloat16), "none": None, "b": jnp.ones(3)}
    slots = gdfx.tree.zeros_like(grads)
    other = jax.tree.map(lambda g: (jnp.zeros(()), [jnp.ones(n) for n in g.shape]), grads)
    updates, slots, other = gdfx.tree.leafwise(_mean_and_halves, (), grads, slots, other=(other,))
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, grads)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(slots["w"], np.ones((2, 3)))
    assert (other["w"][0], other["b"][0], other["none"]) == (6, 3, None)
    assert [half.shape for half in other["w"][1]] == [(2,), (3,)]
    np.testing.assert_array_equal(other["w"][1][1], np.full(3, 0.5))
    with pytest.raises(ValueError, match=r"the updates, with leaves at \['w'\], do not go with the state"):
        gdfx.tree.leafwise(_mean_and_halves, (), {"w": grads["w"]}, {"w": slots["w"]}, other=(other,))


def test_sums_over_trees():
    a = {"x": jnp.asarray([1.0, -2.0]), "z": jnp.asarray([3 - 4j], jnp.complex64), "h": jnp.ones(1000, jnp.bfloat16)}
    b = {"x": jnp.asarray([0.5, 0.5]), "z": jnp.asarray([1j], jnp.complex64), "h": jnp.ones(1000, jnp.bfloat16)}
    assert gdfx.tree.vdot(a, b) == 0.5 - 1.0 - 4.0 + 1000
    assert gdfx.tree.sum_of_abs(a) == 3 + 5 + 1000
    assert gdfx.tree.norm(a) == pytest.approx(np.sqrt(5 + 25 + 1000))
    assert gdfx.tree.conj(a)["z"][0] == 3 + 4j
    assert gdfx.tree.vdot({}, {}) == gdfx.tree.sum_of_abs({}) == 0
    assert gdfx.tree.real_dtype(a) == gdfx.tree.real_dtype({}) == np.float32
    with jax.enable_x64(True):
        assert gdfx.tree.real_dtype({**a, "d": jnp.ones(1, jnp.complex128)}) == np.float64


def test_nan_is_not_hidden_by_a_root():
    x = jnp.asarray([0.0, -1.0, 4.0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(gdfx.tree.sqrt(x), [0, 0, 2, np.nan, np.inf])
    assert np.isnan(gdfx.tree.norm({"w": x}))
    np.testing.assert_array_equal(jax.grad(lambda x: gdfx.tree.sqrt(x).sum())(x[:3]), [0, 0, 0.25])


def test_vdot_is_the_slope():
    """Of a conjugated gradient and a direction in the params, for complex params."""
    z, d = jnp.asarray([1 + 2j, -0.5j], jnp.complex64), jnp.asarray([0.3 - 1j, 2 + 0.1j], jnp.complex64)
    loss = lambda z: jnp.sum(jnp.square(z - 1).real + 2 * jnp.square(jnp.abs(z)))
    slope = jax.jvp(lambda s: loss(z + s.astype(z.dtype) * d), (jnp.zeros(()),), (jnp.ones(()),))[1]
    np.testing.assert_allclose(gdfx.tree.vdot(gdfx.tree.conj(jax.grad(loss)(z)), d), slope, rtol=1e-6)


# Transformations of optimizers


def test_one_trace_for_all_values():
    params = tree()
    state = gdfx.adamw(0.1).init(params)
    with assert_single_trace(lambda opt, state: opt.update(params, state, params)) as update:
        for values in itertools.product((0.1, 1e-3), (0.0, 0.9), (0.5, 0.999), (1e-8, 1e-3)):
            update(gdfx.adamw(*values, weight_decay=values[0]), state)


def with_clip(max_norm):
    return gdfx.chain(gdfx.clip_by_global_norm(max_norm), gdfx.sgd(0.1))


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (gdfx.adam, [1e-4, 1e-2, 0.3]),
        (lambda b1: gdfx.adam(0.1, b1), [0.0, 0.4, 0.95]),
        (lambda b2: gdfx.adam(0.1, b2=b2), [0.0, 0.6, 0.9999]),
        (lambda decay: gdfx.adamw(0.1, weight_decay=decay), [0.0, 0.1, 1.0]),
        (with_clip, [0.0, 1e-3, 1.0, 1e3]),
        (lambda peak: gdfx.sgd(gdfx.schedules.warmup_cosine(peak, 2, 4)), [0.0, 0.1]),
        (lambda warmup: gdfx.sgd(gdfx.schedules.warmup_cosine(0.1, warmup, 9)), [0.0, 1.0, 4.5]),
        (lambda total: gdfx.sgd(gdfx.schedules.warmup_cosine(0.1, 2, total)), [3.0, 4.5, 9.0]),
    ],
    ids=["learning_rate", "b1", "b2", "weight_decay", "max_norm", "peak", "warmup", "total"],
)
def test_vmap_is_loop(make, values):
    params = tree()
    together = jax.vmap(lambda opt: run(opt, params))(jax.vmap(make)(jnp.asarray(values)))
    for i, value in enumerate(values):
        alone = run(make(value), params)
        trees_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=3e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "opt",
    [
        gdfx.sgd(0.1, 0.9),
        gdfx.sgd(0.1, 0.9, nesterov=True),
        gdfx.adamw(0.1, 0.8, 0.9, 1e-2, 1e-3, weight_decay=0.1),
        gdfx.adam(0.1, 0.4, 0.3),
        gdfx.adam(0.1, 0.8, 0.9, nesterov=True),
        gdfx.rmsprop(0.1, 0.8, 1e-2, 0.1, centered=True, momentum=0.5),
        gdfx.adagrad(0.5, 0.2, 1e-3),
        gdfx.chain(gdfx.clip_by_global_norm(0.7), gdfx.clip(0.5), gdfx.sgd(0.1)),
        gdfx.adam(gdfx.schedules.warmup_cosine(0.1, 3.5, 12.5)),
    ],
    ids=repr,
)
def test_hypergradients_are_finite_differences(opt):
    params = {"x": jnp.asarray([1.0, -0.5, 2.0])}
    scales = jnp.asarray([1.0, 0.3, 2.0])
    grad = lambda p: jax.tree.map(lambda x: scales * (x - 3) + 0.1 * x**3, p)
    # No sum of squares: its gradient would be almost 0 where the optimizer arrives.
    final = jax.jit(lambda opt: jnp.sum(jnp.sin(run(opt, params, 8, grad)["x"])))
    opt = gdfx.as_arrays(opt)
    leaves, structure = jax.tree.flatten(opt)
    derivatives = jax.tree.leaves(jax.jit(jax.grad(final))(opt))
    assert len(derivatives) == len(leaves)
    for i, (leaf, found) in enumerate(zip(leaves, derivatives, strict=True)):
        step = 1e-6 * max(float(leaf), 1e-2)
        moved = [jax.tree.unflatten(structure, [*leaves[:i], leaf + s, *leaves[i + 1 :]]) for s in (step, -step)]
        expected = float(final(moved[0]) - final(moved[1])) / (2 * step)
        assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_thousand_steps_in_bfloat16():
    """The hyperparameters are not rounded to bfloat16, in which 0.999 is 1."""
    opt = gdfx.adam(1e-3)
    target = 0.7

    @jax.jit
    def train(opt, params):
        def step(carry, _):
            params, state = carry
            # Constant gradients, so that the moments are known.
            grads = jax.tree.map(lambda p: jnp.full_like(p, target), params)
            updates, state = opt.update(grads, state, params)
            return (gdfx.apply_updates(params, updates), state), updates["w"][0, 0]

        return jax.lax.scan(step, (params, opt.init(params)), length=1000)

    half, wide = tree(dtype=jnp.bfloat16), tree()
    (params, state), steps = train(opt, half)
    (_, wide_state), wide_steps = train(opt, wide)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, state)))
    assert jax.tree.map(jax.typeof, opt.init(half)) == jax.tree.map(jax.typeof, state)
    g = float(jnp.bfloat16(target))
    nu = state["scale_by_adam"].nu["w"]
    assert nu.dtype == jnp.float32
    np.testing.assert_allclose(nu, (1 - 0.999**1000) * g**2, rtol=1e-4)
    np.testing.assert_allclose(nu, wide_state["scale_by_adam"].nu["w"] * (g / target) ** 2, rtol=1e-4)
    assert steps.dtype == jnp.bfloat16
    np.testing.assert_array_equal(steps, wide_steps.astype(jnp.bfloat16))
    np.testing.assert_allclose(wide_steps, -1e-3, rtol=1e-5)


def test_static_and_traced_numbers_agree():
    """A Python number has more digits than a float32; the steps must not depend on which it is."""
    for opt in (gdfx.adam(0.1, 0.9, 0.9999), gdfx.adamw(0.1), gdfx.rmsprop(0.1, 0.999)):
        eager = run(opt, tree())
        trees_close(jax.jit(run)(opt, tree()), eager, rtol=3e-7)
        trees_close(jax.jit(run)(gdfx.as_arrays(opt), tree()), eager, rtol=3e-7)


# Layers


def imports(path):
    """The modules of gdfx that a file imports anywhere, by their dotted names without `gdfx`."""
    package = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            module = [*above, *(node.module or "").split(".")]
            names = (
                [".".join(filter(None, module))] if node.module else [".".join([*above, a.name]) for a in node.names]
            )
            found |= set(names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gdfx":
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "gdfx"}
    return {name.removeprefix("gdfx.") for name in found}


FOUNDATION = {"pytrees", "tree", "core", "composition", "labels", "checks", "numerics"} | {
    "decompositions",
    "matrix",
    "newton_schulz",
}
LAYERS = {
    # what each may import; a folder stands for all files in it
    "pytrees.py": {"tree"},
    "tree": {"tree", "composition", "wrappers"},  # the last two only where `map_params` is called
    "checks.py": set(),
    "numerics.py": {"checks", "core", "tree"},
    "matrix.py": {"checks", "numerics", "tree"},
    "newton_schulz.py": {"decompositions", "tree"},
    "decompositions.py": set(),
    "core.py": {"pytrees", "tree", "schedules"},
    "composition.py": {"core", "pytrees", "tree"},
    "labels.py": {"core", "pytrees"},
    "factors.py": {"core", "labels"},
    "transforms": FOUNDATION | {"transforms"},
    "optimizers": FOUNDATION | {"transforms", "optimizers"},
    "wrappers": FOUNDATION | {"transforms", "optimizers", "wrappers", "schedules"},
    "inspection.py": FOUNDATION | {"aggregating", "transforms", "wrappers"},
    "aggregating.py": FOUNDATION | {"transforms"},
    "microbatching.py": {"core", "tree"},
    "explain.py": FOUNDATION | {"optimizers", "transforms", "wrappers"},
    "routing.py": FOUNDATION | {"explain", "wrappers"},
    "serialization.py": FOUNDATION | {"transforms", "optimizers"},
    "states.py": FOUNDATION,
    "metrics.py": FOUNDATION | {"inspection", "wrappers"},
    "solvers": FOUNDATION | {"transforms", "solvers"},
    "losses": {"checks", "losses", "tree"},
    "models": {"models"},
    "curves.py": {"core", "pytrees", "extras"},
    "schedules.py": {"core", "pytrees", "curves"},
    "training": FOUNDATION
    | {"training", "extras", "inspection", "losses", "metrics", "models", "serialization", "solvers", "transforms"}
    | {"wrappers"},
    "sweeps": FOUNDATION
    | {"sweeps", "training", "curves", "extras", "inspection", "schedules", "serialization", "wrappers"},
}


@pytest.mark.parametrize("layer", [name for name in LAYERS if (PACKAGE / name).exists()])
def test_imports_point_one_way(layer):
    path = PACKAGE / layer
    files = [path] if path.suffix else sorted(path.glob("**/*.py"))
    assert files
    for file in files:
        upwards = {name for name in imports(file) if name.split(".")[0] not in LAYERS[layer]}
        assert upwards == set(), f"{file.relative_to(PACKAGE)} imports {upwards}"


def test_tree_and_pytrees_do_not_import_each_other():
    in_tree = set().union(*(imports(file) for file in (PACKAGE / "tree").glob("*.py")))
    assert not ("tree" in imports(PACKAGE / "pytrees.py") and "pytrees" in in_tree)


def test_imports_are_seen():
    assert imports(PACKAGE / "optimizers" / "adam.py") >= {"core", "pytrees", "tree", "transforms.scale"}
    assert "optimizers.adam" in imports(PACKAGE / "__init__.py")
    assert "tree" in imports(PACKAGE / "__init__.py")
