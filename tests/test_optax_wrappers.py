"""Wrappers with the interface of optax, and what gdfx's wrappers do as optax's: against optax, step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdfx
from gdfx.compat import wrappers
from gdfx.compat.wrappers import LookaheadParams, MultiSteps
from gdfx.schedules import linear
from gdfx.testing import check_transformation, trees_close
from gdfx.transforms.block_clip import unitwise_clip, unitwise_norm
from gdfx.updates import incremental_update, periodic_update
from gdfx.wrappers.accumulate import skip_large_updates, skip_not_finite
from gdfx.wrappers.named import named_chain
from gdfx.wrappers.selective import selective_transform

pytestmark = pytest.mark.numbers

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.asarray([0.5, -0.2]), "none": None}


def loss(params):
    return sum(jnp.sum((p - 0.3 * (i + 1)) ** 2) for i, p in enumerate(jax.tree.leaves(params)))


def wide(params=PARAMS):
    return jax.tree.map(lambda p: p.astype(jnp.float64), params)


def batches(n, bad=()):
    """Gradients, stacked, with a NaN or an infinity in some of them."""
    rng = np.random.default_rng(0)
    draw = lambda p: rng.normal(size=(n, *p.shape))
    stacked = jax.tree.map(draw, wide())
    for i, value in bad:
        stacked["b"][i, 0] = value
    return jax.tree.map(jnp.asarray, stacked)


def follow(opt, grads, params=None, **extra):
    """The params and the state after each update, stacked."""
    params = wide() if params is None else params

    def step(carry, g):
        params, state = carry
        updates, state = opt.update(g, state, params, **extra)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        return (params, state), (params, state)

    with jax.numpy_dtype_promotion("standard"):
        start = params, jax.tree.map(jnp.asarray, opt.init(params))
        return jax.jit(lambda g: jax.lax.scan(step, start, g)[1])(grads)


# Accumulation

EVERY = {"four": 4, "one": 1, "schedule": lambda step: jnp.where(step < 2, 1, 3)}


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("every", EVERY)
def test_multi_steps_are_those_of_optax(every, mean, x64):
    grads = batches(14)
    ours = MultiSteps(optax.adam(0.1), EVERY[every], mean)
    theirs = optax.MultiSteps(optax.adam(0.1), EVERY[every], mean, accumulator_dtype=jnp.float64)
    assert ours.inner_opt == gdfx.as_transformation(ours.opt)
    assert ours.gradient_transformation() is ours
    found, state = follow(ours, grads)
    expected, their_state = follow(theirs, grads)
    trees_close(found, expected, 1e-12)
    for name in ("mini_step", "gradient_step"):
        np.testing.assert_array_equal(getattr(state, name), getattr(their_state, name))
    trees_close(jax.tree.leaves(state.inner_opt_state), jax.tree.leaves(their_state.inner_opt_state), 1e-12)
    trees_close(jax.vmap(lambda s: s.acc_grads)(state), their_state.acc_grads, 1e-12)
    np.testing.assert_array_equal(jax.vmap(ours.has_updated)(state), jax.vmap(theirs.has_updated)(their_state))
    assert state.skip_state == their_state.skip_state == ()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (skip_not_finite, optax.skip_not_finite),
        (
            functools.partial(skip_large_updates, max_squared_norm=8.0),
            functools.partial(optax.skip_large_updates, max_squared_norm=8.0),
        ),
    ],
)
def test_skipped_batches_do_not_count(ours, theirs, x64):
    grads = batches(16, [(1, np.nan), (4, np.inf), (5, np.nan)])
    found, state = follow(MultiSteps(gdfx.sgd(0.1), 3, should_skip_update_fn=ours), grads)
    expected, their_state = follow(
        optax.MultiSteps(optax.sgd(0.1), 3, should_skip_update_fn=theirs, accumulator_dtype=jnp.float64), grads
    )
    trees_close(found, expected, 1e-12)
    np.testing.assert_array_equal(state.mini_step, their_state.mini_step)
    assert state.skip_state.keys() == their_state.skip_state.keys()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-12), dict(state.skip_state), dict(their_state.skip_state)
    )
    assert 0 < np.sum(state.skip_state["should_skip"]) < 10


def test_accumulate_with_sums_and_without_some():
    opt = gdfx.accumulate(gdfx.polyak_sgd(), 2, mean=False, should_skip=skip_not_finite)
    state = opt.init(PARAMS)
    nan = jax.tree.map(lambda p: p * jnp.nan, PARAMS)
    for grads, value in ((PARAMS, 1.0), (nan, np.nan), (PARAMS, 2.0)):
        updates, state = opt.update(grads, state, PARAMS, value=jnp.asarray(value))
    assert (state.count, state.made, state.batches) == (3, 1, 0)
    twice = jax.tree.map(lambda p: 2 * p, PARAMS)
    expected, _ = gdfx.polyak_sgd().update(twice, gdfx.polyak_sgd().init(PARAMS), PARAMS, value=jnp.asarray(3.0))
    trees_close(updates, expected)


def test_what_should_skip_returns():
    for found, told in (
        (True, "returned a bool, expected a pair"),
        ((jnp.ones(2, bool), ()), r"returned bool\[2\] for"),
        ((1.0, ()), r"returned float32\[\] for whether to skip"),
    ):
        with pytest.raises(TypeError, match=f"accumulate: should_skip {told}"):
            gdfx.accumulate(gdfx.sgd(0.1), 2, should_skip=lambda *_, found=found: found).init(PARAMS)
    assert skip_not_finite({}, 0, None)[0] == skip_large_updates({}, 0, None, 1.0)[0] == False  # noqa: E712 - arrays


def test_accumulator_dtype():
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    for dtype, expected in ((None, jnp.float32), ("bfloat16", jnp.bfloat16)):
        state = MultiSteps(gdfx.sgd(0.1), 2, accumulator_dtype=dtype).init(half)
        assert {x.dtype for x in jax.tree.leaves(state.acc_grads)} == {jnp.dtype(expected)}


def test_contract_of_multi_steps():
    opt = MultiSteps(gdfx.sgd(linear(0.1, 0.0, 3), 0.9), linear(1, 3, 4), should_skip_update_fn=skip_not_finite)
    check_transformation(opt, complex=True)


def test_multi_steps_in_a_chain_go_by_their_own_updates(x64):
    opt = MultiSteps(gdfx.sgd(0.1), linear(1, 3, 4))
    alone, _ = follow(opt, batches(8))
    trees_close(follow(gdfx.chain(gdfx.identity(), opt), batches(8))[0], alone, 1e-12)


# Guards


@pytest.mark.parametrize("most", [0, 1, 3])
def test_giving_up_is_that_of_optax(most, x64):
    bad = [*range(1, 2), *range(3, 5), *range(6, 13), *range(14, 17), 18]
    grads = batches(20, [(i, [np.nan, np.inf, -np.inf][i % 3]) for i in bad])
    found, state = updates_of(gdfx.guard(gdfx.sgd(0.1), max_in_a_row=most), grads)
    expected, their_state = updates_of(optax.apply_if_finite(optax.sgd(0.1), most), grads)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, expected)
    np.testing.assert_array_equal(state.in_a_row, their_state.notfinite_count)
    given_up = ~np.isfinite(found["b"][:, 0])
    assert np.any(given_up)
    np.testing.assert_array_equal(np.asarray(state.skipped) + np.cumsum(given_up), their_state.total_notfinite)


def updates_of(opt, grads):
    """The updates and the states; the params stay, as a NaN in them would not go away."""

    def step(state, g):
        updates, state = opt.update(g, state, wide())
        return state, (updates, state)

    return jax.jit(lambda g: jax.lax.scan(step, opt.init(wide()), g)[1])(grads)


def test_giving_up_under_vmap():
    def member(most):
        opt = gdfx.guard(gdfx.sgd(1.0), max_in_a_row=most)
        state, made = opt.init(jnp.ones(2)), []
        for g in (1.0, np.nan, np.nan, np.nan, 1.0, np.nan):
            updates, state = opt.update(jnp.full(2, g), state, jnp.ones(2))
            made.append(updates[0] != 0)
        return jnp.stack(made), state

    made, state = jax.vmap(member)(jnp.asarray([1.0, 2.0, np.inf]))
    t, f = True, False
    np.testing.assert_array_equal(made, [[t, f, t, t, t, f], [t, f, f, t, t, f], [t, f, f, f, t, f]])
    np.testing.assert_array_equal(state.skipped, [2, 3, 4])
    np.testing.assert_array_equal(state.in_a_row, [1, 1, 1])


# Names and masks


def test_named_chain_is_that_of_optax(x64):
    grads = batches(6)
    ours = named_chain(("z", gdfx.clip_by_global_norm(1.0)), ("a", gdfx.adam(0.1)), ("ema", gdfx.ema(0.9)))
    theirs = optax.named_chain(
        ("z", optax.clip_by_global_norm(1.0)),
        ("a", optax.adam(0.1)),
        ("ema", optax.ema(0.9)),
    )
    found, state = follow(ours, grads)
    expected, their_state = follow(theirs, grads)
    trees_close(found, expected, 1e-12)
    assert state.keys() == their_state.keys()
    trees_close(state["a"]["scale_by_adam"].mu, their_state["a"][0].mu, 1e-12)
    atom = named_chain(("adam", gdfx.scale_by_adam()), ("rate", gdfx.scale_by_learning_rate(0.1)))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(atom.init(PARAMS))]
    assert paths[:2] == ["['adam'].count", "['adam'].mu['b']"]


def test_named_chain_is_a_transform():
    opt = named_chain(("clip", gdfx.clip(1.0)), ("opt", gdfx.adamw(0.1)), ("average", gdfx.ema_params(0.5)))
    assert (opt.needs, opt.takes, opt.makes_steps) == ({"params"}, "gradients", True)
    plain = gdfx.chain(*opt.transforms)
    updates, state = opt.update(PARAMS, opt.init(PARAMS), PARAMS)
    expected, plain_state = plain.update(PARAMS, plain.init(PARAMS), PARAMS)
    trees_close(updates, expected, 0)
    after = gdfx.apply_updates(PARAMS, updates)
    trees_close(gdfx.eval_params(opt, state, after), gdfx.eval_params(plain, plain_state, after), 0)
    with pytest.raises(TypeError, match=r"named_chain: .* is no pair of a name and a transform"):
        named_chain(gdfx.clip(1.0))
    with pytest.raises(ValueError, match="two transforms have the name 'a'"):
        named_chain(("a", gdfx.clip(1.0)), ("a", gdfx.adam(0.1)))
    with pytest.raises(ValueError, match=r"takes gradients, but|they are gradients until"):
        named_chain(("average", gdfx.ema_params(0.5)), ("opt", gdfx.sgd(0.1))).init(PARAMS)
    with pytest.raises(ValueError, match="the state is a dict of clip, expected a dict of clip, opt, average"):
        opt.update(PARAMS, {"clip": ()}, PARAMS)


@pytest.mark.parametrize("mask", [{"w": True, "b": False, "none": None}, False, True, jnp.asarray(True)])
def test_selective_transform_is_that_of_optax(mask, x64):
    params = {"w": wide()["w"], "b": wide()["b"]}
    grads = {name: batches(4)[name] for name in params}
    mask = {name: mask[name] for name in params} if isinstance(mask, dict) else mask
    given = mask if isinstance(mask, dict) else dict.fromkeys(params, mask)
    found, _ = follow(selective_transform(gdfx.adam(0.1), freeze_mask=mask), grads, params)
    expected, _ = follow(optax.transforms.selective_transform(optax.adam(0.1), freeze_mask=given), grads, params)
    trees_close(found, expected, 1e-12)


def test_selective_transform_checks_the_mask():
    with pytest.raises(ValueError, match="the freeze_mask have the structure"):
        selective_transform(gdfx.adam(0.1), freeze_mask={"other": True}).init(PARAMS)


# Single arrays and trees


@pytest.mark.parametrize("shape", [(), (4,), (1, 4), (3, 4), (2, 3, 4), (2, 2, 3, 4), (2, 1, 2, 3, 2)])
def test_unitwise_norm_and_clip_are_those_of_optax(shape, x64):
    rng = np.random.default_rng(0)
    g, p = (jnp.asarray(rng.normal(size=shape)) for _ in range(2))
    norms = unitwise_norm(g)
    np.testing.assert_allclose(norms, optax.transforms.unitwise_norm(g), rtol=1e-12)
    if shape:
        np.testing.assert_allclose(unitwise_norm(g, -1), optax.transforms.unitwise_norm(g, -1), rtol=1e-12)
    most = 0.8 * unitwise_norm(p)
    expected = optax.transforms.unitwise_clip(norms, most, g)
    np.testing.assert_allclose(unitwise_clip(norms, most, g), expected, rtol=1e-12)
    np.testing.assert_allclose(unitwise_clip(0 * norms, 0 * most, g), 0 * g)


def test_unitwise_norm_and_clip_of_other_dtypes():
    z = jnp.asarray([[3.0 + 4.0j, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(unitwise_norm(z), [[5.0, 1.0], [5.0, 1.0]])
    assert unitwise_clip(unitwise_norm(z), jnp.ones((2, 2)), z).dtype == z.dtype
    half = jnp.ones((400, 2), jnp.bfloat16)
    assert unitwise_norm(half).dtype == jnp.float32
    assert unitwise_clip(unitwise_norm(half), jnp.ones((400, 2)), half).dtype == jnp.bfloat16
    assert not np.any(np.isnan(jax.grad(lambda x: unitwise_norm(x).sum())(jnp.zeros((2, 2)))))
    with pytest.raises(ValueError, match=r"unitwise_clip: max_norm has shape \(2,\), expected that of grad, \(2, 2\)"):
        unitwise_clip(unitwise_norm(z), jnp.ones(2), z)
    with pytest.raises(ValueError, match="axis 2 is out of bounds"):
        unitwise_norm(z, 2)


def test_incremental_update_is_that_of_optax(x64):
    new, old = wide(), jax.tree.map(lambda p: 3 * p + 1, wide())
    for step_size in (0.0, 0.3, 1, jnp.asarray(0.7)):
        found = jax.jit(incremental_update)(new, old, step_size)
        trees_close(found, optax.incremental_update(new, old, step_size), 1e-12)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), old)
    assert incremental_update(new, half, 0.1)["w"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"step_size is 1.5, expected at least 0 and at most 1"):
        incremental_update(new, old, 1.5)
    with pytest.raises(ValueError, match="new_tensors and old_tensors have different structures"):
        incremental_update({"w": new["w"]}, old, 0.5)
    with pytest.raises(ValueError, match=r"at \['b'\], new_tensors have shape \(1,\), expected \(2,\)"):
        incremental_update({**new, "b": jnp.ones(1)}, old, 0.5)


def test_periodic_update_is_that_of_optax():
    new, old = PARAMS, jax.tree.map(lambda p: 3 * p + 1, PARAMS)
    for steps in (0, 1, 2, 3, jnp.asarray(6), np.int64(4)):
        found = jax.jit(periodic_update)(new, old, steps, 3)
        trees_close(found, optax.periodic_update(new, old, jnp.asarray(steps), 3), 0)
    with pytest.raises(ValueError, match="update_period is 0, expected at least 1"):
        periodic_update(new, old, 1, 0)
    with pytest.raises(TypeError, match=r"update_period is 0.5, expected an int or an integer scalar"):
        periodic_update(new, old, 1, 0.5)


# Lookahead


def lookahead_path(opt, params, steps=20):
    def step(carry, _):
        params, state = carry
        updates, state = opt.update(jax.grad(loss)(params.fast), state, params)
        params = type(params)(*jax.tree.map(lambda p, u: p + u, tuple(params), tuple(updates)))
        return (params, state), (params, state)

    with jax.numpy_dtype_promotion("standard"):
        start = params, opt.init(params)
        return jax.jit(lambda: jax.lax.scan(step, start, length=steps)[1])()


@pytest.mark.parametrize("reset_state", [False, True])
@pytest.mark.parametrize("period", [1, 6])
def test_lookahead_is_that_of_optax(period, reset_state, x64):
    ours = wrappers.lookahead(gdfx.adam(0.1), period, 0.4, reset_state)
    theirs = optax.lookahead(optax.adam(0.1), period, 0.4, reset_state)
    found, state = lookahead_path(ours, LookaheadParams.init_synced(wide()))
    expected, their_state = lookahead_path(theirs, optax.LookaheadParams.init_synced(wide()))
    # Adam that is reset at each step divides by gradients near 0, which magnifies rounding.
    trees_close((found.fast, found.slow), (expected.fast, expected.slow), 1e-9)
    np.testing.assert_array_equal(state.steps_since_sync, their_state.steps_since_sync)
    trees_close(state.fast_state["scale_by_adam"].nu, their_state.fast_state[0].nu, 1e-12)
    plain, _ = lookahead_path(wrappers.lookahead(gdfx.adam(0.1), 6, 0.4), LookaheadParams.init_synced(PARAMS))
    assert plain.fast["w"].dtype == jnp.float32


def test_lookahead_interface():
    opt = wrappers.lookahead(gdfx.sgd(0.1), 2, 0.5)
    params = LookaheadParams.init_synced(PARAMS)
    assert params.fast["w"].unsafe_buffer_pointer() != params.slow["w"].unsafe_buffer_pointer()
    trees_close(opt.init(PARAMS), opt.init(params), 0)
    with pytest.raises(TypeError, match=r"params is a dict, expected LookaheadParams, as LookaheadParams.init_synced"):
        opt.update(PARAMS, opt.init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match="needs params, which are missing"):
        opt.update(PARAMS, opt.init(PARAMS))
    with pytest.raises(ValueError, match="sync_period is 0, expected at least 1"):
        wrappers.lookahead(gdfx.sgd(0.1), 0, 0.5)
    half = LookaheadParams.init_synced(jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS))
    state = opt.init(half)
    updates, after = jax.jit(opt.update)(half.fast, state, half)
    assert jax.tree.map(jax.typeof, (updates, after)) == jax.tree.map(jax.typeof, (half, state))

    def final(rate, part):
        now = wrappers.lookahead(gdfx.sgd(rate), 2, part)
        state, after = now.init(params), params
        for _ in range(4):
            updates, state = now.update(jax.grad(loss)(after.fast), state, after)
            after = gdfx.apply_updates(after, updates)
        return after.slow

    together = jax.vmap(final)(jnp.asarray([0.1, 0.2]), jnp.asarray([0.5, 0.8]))
    trees_close(jax.tree.map(lambda x: x[1], together), final(0.2, 0.8))


# Sharpness-aware minimization


def sam_path(opt, params, opaque, steps=20):
    grad_fn = jax.grad(lambda params, i: loss(params) * (1 + i))

    def step(carry, _):
        params, state = carry
        extra = {"grad_fn": grad_fn} if opaque else {}
        updates, state = opt.update(jax.grad(loss)(params), state, params, **extra)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        return (params, state), (params, state)

    with jax.numpy_dtype_promotion("standard"):
        start = params, opt.init(params)
        return jax.jit(lambda: jax.lax.scan(step, start, length=steps)[1])()


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize(("period", "reset_state"), [(2, True), (3, True), (3, False)])
def test_sam_is_that_of_optax(period, reset_state, opaque, x64):
    kwargs = {"sync_period": period, "reset_state": reset_state, "opaque_mode": opaque}
    ours = wrappers.sam(gdfx.adam(0.1), gdfx.chain(gdfx.normalize(), gdfx.sgd(0.05, 0.9)), **kwargs)
    uphill = optax.chain(optax.contrib.normalize(), optax.sgd(0.05, 0.9))
    found, state = sam_path(ours, wide(), opaque)
    expected, their_state = sam_path(optax.contrib.sam(optax.adam(0.1), uphill, **kwargs), wide(), opaque)
    trees_close(found, expected, 1e-11)
    np.testing.assert_array_equal(state.steps_since_sync, their_state.steps_since_sync)
    trees_close(state.opt_state["scale_by_adam"].mu, their_state.opt_state[0].mu, 1e-11)
    if not opaque:
        trees_close(state.cache, their_state.cache, 1e-11)
    assert opaque == (state.cache is None)


def test_sam_of_one_step_is_the_optimizer():
    """optax goes on from the params before the last."""
    uphill = gdfx.chain(gdfx.normalize(), gdfx.sgd(0.05))
    found, _ = sam_path(wrappers.sam(gdfx.adam(0.1), uphill, sync_period=1), PARAMS, False)
    expected, _ = sam_path(gdfx.adam(0.1), PARAMS, False)
    trees_close(found, expected, 1e-6)


def test_contract_of_sam():
    uphill = gdfx.chain(gdfx.normalize(), gdfx.sgd(0.05))
    check_transformation(wrappers.sam(gdfx.sgd(0.1), uphill), complex=True)
    grad_fn = lambda params, i: jax.tree.map(lambda p: p + 0.1, params)
    some = ["update_avals", "state_avals", "no_aliases", "donation", "dtypes", "needs"]
    opaque = wrappers.sam(gdfx.sgd(0.1), uphill, opaque_mode=True)
    check_transformation(opaque, check=some, extra={"grad_fn": grad_fn})


def test_sam_interface():
    opt = wrappers.sam(gdfx.sgd(0.1), gdfx.sgd(0.05), opaque_mode=True, batch_axis_name="batch")
    with pytest.raises(TypeError, match="needs grad_fn, which are missing"):
        opt.update(PARAMS, opt.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="sam: sync_period is 0, expected an int of at least 1"):
        wrappers.sam(gdfx.sgd(0.1), gdfx.sgd(0.05), 0)
    offsets = jnp.asarray([0.1, 0.5])

    def update(offset):
        grad_fn = lambda params, i: jax.tree.map(lambda p: p + offset, params)
        return opt.update(PARAMS, opt.init(PARAMS), PARAMS, grad_fn=grad_fn)[0]

    updates = jax.vmap(update, axis_name="batch")(offsets)
    trees_close(updates, jax.tree.map(lambda p: jnp.stack(2 * [-0.1 * (1.05 * p + 0.3)]), PARAMS))
