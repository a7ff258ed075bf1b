"""Hyperparameters in the state: those of optax's `inject_hyperparams`, and the optimizers themselves."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdfx
from gdfx.schedules import linear
from gdfx.testing import assert_single_trace, check_transformation, trees_close
from gdfx.wrappers.inject import inject_hyperparams

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.asarray([0.5, -0.2]), "none": None}


def loss(params):
    return sum(jnp.sum((p - 0.3 * (i + 1)) ** 2) for i, p in enumerate(jax.tree.leaves(params)))


def run(opt, params=PARAMS, steps=10):
    def step(carry, _):
        params, state = carry
        updates, state = opt.update(jax.grad(loss)(params), state, params)
        return (gdfx.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, opt.init(params)), length=steps)[0]


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def fast_then_slow(count):
    return jnp.where(count < 4, 0.1, 0.01)


def clipped_adam(learning_rate, max_norm=1.0, *, nesterov=False, mask=None):
    links = [gdfx.clip_by_global_norm(max_norm), gdfx.adamw(learning_rate, mask=mask, nesterov=nesterov)]
    return gdfx.chain(*links)


FACTORIES = {
    "adam": (gdfx.adam, {"learning_rate": 0.1}),
    "adam-int": (gdfx.adam, {"learning_rate": 1, "b1": np.float64(0.8), "nesterov": True}),
    "adamw": (gdfx.adamw, {"learning_rate": 0.1, "mask": gdfx.matrices}),
    "schedule": (gdfx.adam, {"learning_rate": linear(0.1, 0.01, 5)}),
    "function": (gdfx.sgd, {"learning_rate": fast_then_slow, "momentum": 0.9}),
    "chain": (clipped_adam, {"learning_rate": 0.1, "nesterov": True}),
    "chain-schedule": (clipped_adam, {"learning_rate": 0.1, "max_norm": linear(1.0, 2.0, 5)}),
    "array": (gdfx.adam, {"learning_rate": jnp.asarray(0.1)}),
}


def test_contract():
    factory, given = FACTORIES["chain-schedule"]
    check_transformation(inject_hyperparams(factory)(**given), complex=True)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_to_the_optimizer_itself(name, dtype):
    factory, given = FACTORIES[name]
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    outcomes = []
    for opt in (factory(**given), inject_hyperparams(factory)(**given)):
        after, state = params, opt.init(params)
        for _ in range(3):
            updates, state = opt.update(jax.grad(loss)(after), state, after)
            after = gdfx.apply_updates(after, updates)
        outcomes.append(after)
    equal(*outcomes)


def test_equal_to_the_optimizer_itself_under_jit():
    expected, _ = jax.jit(run)(gdfx.as_arrays(gdfx.adam(linear(0.1, 0.01, 5))))
    equal(jax.jit(run)(inject_hyperparams(gdfx.adam)(linear(0.1, 0.01, 5)))[0], expected)


def by_loop(opt, params, grads, steps, set_at):
    """The updates of each step, with what a user writes into the state before some of them."""
    state, seen = opt.init(params), []
    update = jax.jit(opt.update)
    for i in range(steps):
        for name, value in set_at.get(i, {}).items():
            state.hyperparams[name] = value
        updates, state = update(grads, state, params)
        seen.append(updates)
    return jax.tree.map(lambda *x: jnp.stack(x), *seen), state


@pytest.mark.parametrize(
    ("factory", "given"),
    [
        (optax.adam, {"learning_rate": 0.1}),
        (optax.adamw, {"learning_rate": lambda count: 0.1 / (1 + count), "mask": None}),
        (optax.sgd, {"learning_rate": jnp.asarray(0.5), "momentum": 0.9, "nesterov": True}),
        (
            lambda learning_rate, k: optax.chain(optax.apply_every(k), optax.sgd(learning_rate)),
            {"learning_rate": 0.1, "k": 2},
        ),
    ],
)
def test_is_that_of_optax(factory, given, x64):
    params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
    changes = {3: {"learning_rate": 0.05}, 6: {"learning_rate": 1}}
    with jax.numpy_dtype_promotion("standard"):
        found, state = by_loop(inject_hyperparams(factory)(**given), params, params, 8, changes)
        expected, theirs = by_loop(optax.inject_hyperparams(factory)(**given), params, params, 8, changes)
    trees_close(found, expected, 1e-12)
    assert state.hyperparams.keys() == theirs.hyperparams.keys()
    trees_close(
        jax.tree.map(lambda x: jnp.asarray(x).astype(float), state.hyperparams),
        jax.tree.map(lambda x: jnp.asarray(x).astype(float), theirs.hyperparams),
        1e-7,
    )
    assert (state.count, theirs.count) == (8, 8)
    trees_close(jax.tree.leaves(state.inner_state), jax.tree.leaves(theirs.inner_state), 1e-12)


def test_what_is_in_the_state():
    opt = inject_hyperparams(gdfx.adamw)(linear(0.1, 0.0, 10), mu_dtype=jnp.bfloat16, mask=gdfx.matrices)
    state = opt.init(PARAMS)
    assert type(state.hyperparams) is dict
    assert state.hyperparams_states == {}
    expected = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0, "weight_decay": 1e-4}
    assert state.hyperparams.keys() == expected.keys()
    trees_close(state.hyperparams, expected)
    assert state.inner_state["scale_by_adam"].mu["w"].dtype == jnp.bfloat16
    for t in range(3):
        _, state = opt.update(PARAMS, state, PARAMS)
        np.testing.assert_allclose(state.hyperparams["learning_rate"], 0.1 - 0.01 * t, rtol=1e-6)
    assert state.count == 3


def test_half_precision_params_keep_the_hyperparameters_in_float32():
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    state = inject_hyperparams(gdfx.adam)(1e-3).init(half)
    assert {x.dtype for x in state.hyperparams.values()} == {jnp.dtype(jnp.float32)}
    state = inject_hyperparams(gdfx.adam, hyperparam_dtype=jnp.bfloat16)(1e-3).init(half)
    assert {x.dtype for x in state.hyperparams.values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("value", [0.3, 2, np.float64(0.3), jnp.asarray(2)])
def test_a_value_set_by_the_user(value):
    opt = inject_hyperparams(gdfx.sgd)(0.1)
    traces = []

    @jax.jit
    def update(grads, state):
        traces.append(1)
        return opt.update(grads, state)

    state = opt.init(PARAMS)
    avals = jax.tree.map(jax.typeof, state)
    for _ in range(3):
        state.hyperparams["learning_rate"] = value
        for _ in range(2):
            updates, state = update(PARAMS, state)
            assert jax.tree.map(jax.typeof, state) == avals
    assert len(traces) <= 2
    trees_close(updates, jax.tree.map(lambda g: -float(value) * g, PARAMS))


def test_a_value_set_where_the_optimizer_is_an_argument():
    """`as_arrays` makes floats of all numbers; what is set is then told apart by the state."""
    opt = gdfx.as_arrays(inject_hyperparams(gdfx.sgd)(0.1))
    state = opt.init(PARAMS)
    state.hyperparams["learning_rate"] = 2
    updates, after = opt.update(PARAMS, state)
    assert after.hyperparams["learning_rate"].dtype == jnp.float32
    trees_close(updates, jax.tree.map(lambda g: -2.0 * g, PARAMS))
    step = gdfx.make_step(lambda params, batch: loss(params))
    train_state = gdfx.TrainState.create(inject_hyperparams(gdfx.adam)(0.1), PARAMS)
    for rate in (0.1, 0.01):
        train_state.opt_state.hyperparams["learning_rate"] = rate
        train_state, _ = step(inject_hyperparams(gdfx.adam)(0.1), train_state, None)
    np.testing.assert_allclose(train_state.opt_state.hyperparams["learning_rate"], 0.01)


def test_integers_of_functions():
    def noisy(learning_rate, seed):
        return gdfx.chain(gdfx.add_noise(0.1, 0.5, key=jax.random.key(seed)), gdfx.sgd(learning_rate))

    opt = inject_hyperparams(noisy)(1, seed=3)
    state = gdfx.as_arrays(opt).init(PARAMS)
    assert {name: x.dtype for name, x in state.hyperparams.items()} == {"learning_rate": "int32", "seed": "int32"}
    state.hyperparams["learning_rate"] = 0.5
    updates, state = jax.jit(opt.update)(PARAMS, state, PARAMS)
    assert state.hyperparams["learning_rate"].dtype == jnp.float32
    trees_close(updates, noisy(0.5, 3).update(PARAMS, noisy(0.5, 3).init(PARAMS), PARAMS)[0])


def test_arrays_and_keys():
    def scaled(factors, key):
        return gdfx.chain(
            gdfx.add_noise(0.1, 0.5, key=key), gdfx.stateless(lambda u, p: jax.tree.map(lambda x: x * factors, u))
        )

    opt = inject_hyperparams(scaled)(jnp.asarray([1.0, 2.0]), jax.random.key(0))
    params = jnp.ones(2)
    state = jax.jit(opt.init)(params)
    plain = scaled(jnp.asarray([1.0, 2.0]), jax.random.key(0))
    trees_close(jax.jit(opt.update)(params, state, params)[0], plain.update(params, plain.init(params), params)[0])


def test_vmap_over_the_hyperparameters_of_a_state():
    opt = inject_hyperparams(gdfx.adam)(0.1)
    rates = jnp.asarray([0.1, 0.01, 0.3])

    def final(rate):
        state = opt.init(PARAMS)
        state.hyperparams["learning_rate"] = rate
        _, state = opt.update(PARAMS, state, PARAMS)
        return opt.update(PARAMS, state, PARAMS)[0]

    together = jax.jit(jax.vmap(final))(rates)
    for i, rate in enumerate(rates):
        trees_close(jax.tree.map(lambda x, i=i: x[i], together), final(rate))
    slopes = jax.grad(lambda rate: loss(final(rate)))(0.1)
    assert np.isfinite(slopes)
    assert slopes != 0
    with assert_single_trace(lambda opt: run(opt)[0]["b"]) as trained:
        for rate in (0.1, 0.2):
            trained(gdfx.as_arrays(inject_hyperparams(gdfx.adam)(rate)))


def test_within_other_transforms():
    opt = gdfx.chain(gdfx.clip(1.0), gdfx.accumulate(inject_hyperparams(gdfx.sgd)(linear(1.0, 0.0, 4)), 2))
    _, state = run(opt, steps=6)
    inner = state["accumulate"].inner
    assert inner.count == 3
    np.testing.assert_allclose(inner.hyperparams["learning_rate"], 0.5)
    averaged = inject_hyperparams(lambda rate, decay: gdfx.chain(gdfx.sgd(rate), gdfx.ema_params(decay)))(0.1, 0.5)
    params, state = run(averaged)
    plain = gdfx.chain(gdfx.sgd(0.1), gdfx.ema_params(0.5))
    expected, plain_state = run(plain)
    trees_close(gdfx.eval_params(averaged, state, params), gdfx.eval_params(plain, plain_state, expected))
    with pytest.raises(ValueError, match="takes gradients, but"):
        gdfx.chain(gdfx.sgd(0.1), inject_hyperparams(gdfx.sam)()).init(PARAMS)
    polyak = gdfx.chain(inject_hyperparams(gdfx.polyak_sgd)())
    with pytest.raises(TypeError, match="needs value, which are missing"):
        polyak.update(PARAMS, polyak.init(PARAMS), PARAMS)


def test_positional_and_any_keyword_arguments():
    def factory(rate, /, momentum, **flags):
        return gdfx.sgd(rate, momentum, **flags)

    opt = inject_hyperparams(factory)(0.1, momentum=0.9, nesterov=True)
    assert opt.init(PARAMS).hyperparams.keys() == {"rate", "momentum"}
    trees_close(jax.jit(run)(opt)[0], jax.jit(run)(gdfx.sgd(0.1, 0.9, nesterov=True))[0])
    with pytest.raises(TypeError, match=r"chain takes any number of arguments, \*transforms, which have no names"):
        inject_hyperparams(gdfx.chain)


def test_values_compare_print_and_copy():
    opt = inject_hyperparams(gdfx.adam)(0.1, b1=linear(0.8, 0.9, 10))
    rest = "b2=0.999, eps=1e-08, eps_root=0.0"
    b1 = "schedules.linear(init_value=0.8, end_value=0.9, transition_steps=10, transition_begin=0)"
    assert repr(opt) == f"inject_hyperparams(adam)(learning_rate=0.1, b1={b1}, {rest})"
    names = {**vars(gdfx), "inject_hyperparams": inject_hyperparams}
    assert eval(repr(opt), names) == opt
    other = inject_hyperparams(gdfx.adamw, ["mask"], "bfloat16")(0.1, mask=gdfx.matrices)
    assert eval(repr(other), names) == other
    assert opt == inject_hyperparams(gdfx.adam)(0.1, linear(0.8, 0.9, 10)) != inject_hyperparams(gdfx.adam)(0.2)
    assert pickle.loads(pickle.dumps(opt)) == opt
    factory = inject_hyperparams(gdfx.adam)
    assert factory.__name__ == "adam"
    assert not hasattr(factory, "update")


def test_errors():
    with pytest.raises(
        ValueError, match="static_args has clip, expected names of arguments of adam: learning_rate, b1"
    ):
        inject_hyperparams(gdfx.adam, "clip")
    with pytest.raises(ValueError, match=r"b1 is 1.5, expected at least 0 and less than 1"):
        inject_hyperparams(gdfx.adam)(0.1, b1=1.5)
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'lr'"):
        inject_hyperparams(gdfx.adam)(0.1, lr=0.1)
    opt = inject_hyperparams(gdfx.adam)(0.1)
    state = opt.init(PARAMS)
    state.hyperparams["lr"] = 0.1
    with pytest.raises(
        ValueError, match=r"state.hyperparams has learning_rate, .*, lr, expected those of the arguments"
    ):
        opt.update(PARAMS, state, PARAMS)
    state = opt.init(PARAMS)
    state.hyperparams["learning_rate"] = linear(0.1, 0.0, 5)
    with pytest.raises(TypeError, match=r"hyperparams\['learning_rate'\] is .*, expected a number or an array"):
        opt.update(PARAMS, state, PARAMS)
    # optax takes the mask for a schedule, and its value for the count, False, for the mask.
    mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    wrong = inject_hyperparams(optax.adamw)(0.1, mask=mask)
    hint = r"If it is no function of the count, name it: static_args='mask'"
    with pytest.raises(TypeError, match=rf"mask is a function, taken for a schedule, but .* expected a number. {hint}"):
        wrong.init(PARAMS)
    with pytest.raises(TypeError, match=rf"taken for a schedule, but it raised .*{hint}"):
        inject_hyperparams(optax.adamw)(0.1, mask=lambda params: params["w"]).init(PARAMS)
    named = inject_hyperparams(optax.adamw, "mask")(0.1, mask=mask)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = jax.jit(run)(gdfx.as_transformation(optax.adamw(0.1, mask=mask)))
        trees_close(jax.jit(run)(named)[0], expected, 1e-5)
