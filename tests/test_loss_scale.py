import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdfx

GRADS = {"matrix": jnp.array([[0.0, 3.0], [4.0, 0.0]]), "bias": jnp.array([12.0, 0.0])}
RISE = gdfx.schedules.linear(0.0, 0.4, 4)


def half_loss(params, batch):
    """Its backward pass is in float16, in which gradients of 1e-8 are 0."""
    x = params["w"].astype(jnp.float16) * batch[0].astype(jnp.float16)
    return jnp.sum(x).astype(jnp.float32) * 1e-8


def scaled(**kwargs):
    return gdfx.guard(gdfx.sgd(1.0), **kwargs)


def train(opt, loss_fn, batches, params, **kwargs):
    step = gdfx.make_step(loss_fn, **kwargs)
    state = gdfx.TrainState.create(opt, params)
    metrics = []
    for batch in batches:
        state, told = step(opt, state, batch)
        metrics.append(told)
    return state, metrics


@pytest.mark.parametrize("parts", [1, 2])
def test_loss_scale_keeps_small_gradients(parts):
    for opt, expected in ((scaled(), 0.0), (scaled(loss_scale=2.0**10), 2e-8)):
        _, metrics = train(opt, half_loss, [jnp.ones((4, 4))], {"w": jnp.ones(4)}, accumulate=parts)
        np.testing.assert_allclose(metrics[0]["grad_norm"], expected, rtol=1e-2)
        np.testing.assert_allclose(metrics[0]["loss"], 4e-8, rtol=1e-6)


def test_loss_scale_rises_and_falls():
    opt = scaled(loss_scale=4.0, growth_interval=2)
    loss_fn = lambda params, batch: jnp.sum(params["w"] * batch)
    batches = [jnp.full(2, x, jnp.float32) for x in (1, 1, 1, np.nan, np.inf, 1, 1)]
    state, metrics = train(opt, loss_fn, batches, {"w": jnp.ones(2)})
    assert [float(m["loss_scale"]) for m in metrics] == [4, 8, 8, 4, 2, 2, 4]
    assert [int(m["skipped"]) for m in metrics] == [0, 0, 0, 1, 2, 2, 2]
    np.testing.assert_allclose(state.params["w"], 1 - 5.0)
    assert gdfx.loss_scale(state) == 4.0


def test_loss_scale_has_bounds_and_does_not_mind_large_gradients():
    opt = scaled(loss_scale=1e9, growth_interval=1, max_norm=0.5)
    state = opt.init({"w": jnp.ones(2)})
    assert gdfx.loss_scale(state) == 2.0**24
    update = jax.jit(opt.update)
    for _ in range(2):
        _, state = update({"w": jnp.full(2, 0.1)}, state, {"w": jnp.ones(2)})
    assert gdfx.loss_scale(state) == 2.0**24
    _, state = update({"w": jnp.ones(2)}, state, {"w": jnp.ones(2)})
    assert gdfx.loss_scale(state) == 2.0**24
    assert state.skipped == 1
    for _ in range(60):
        _, state = update({"w": jnp.full(2, np.inf)}, state, {"w": jnp.ones(2)})
    assert gdfx.loss_scale(state) == 2.0**-24


def test_loss_scale_is_found_at_any_depth_and_once():
    params = {"w": jnp.ones(2)}
    inner = scaled(loss_scale=8.0)
    for opt in (gdfx.lookahead(gdfx.guard(inner)), gdfx.freeze(inner, "other"), gdfx.partition({"rest": inner})):
        assert gdfx.loss_scale(opt.init(params | {"other": jnp.ones(())})) == 8.0
    assert gdfx.loss_scale(gdfx.guard(gdfx.adam(0.1)).init(params)) is None
    with pytest.raises(ValueError, match="2 guards scale the loss"):
        gdfx.loss_scale(gdfx.guard(inner, loss_scale=2.0).init(params))
    with pytest.raises(ValueError, match="loss_scale"):
        scaled(loss_scale=0.0)


def test_loss_scale_changes_no_more_than_rounding():
    opt = gdfx.adam(0.1)
    loss_fn = lambda params, batch: jnp.mean(jnp.tanh(params["w"] * batch) ** 2)
    batches = list(jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32))
    params = {"w": jnp.ones(3)}
    plain, _ = train(gdfx.guard(opt), loss_fn, batches, params)
    other, _ = train(gdfx.guard(opt, loss_scale=2.0**12, growth_interval=2), loss_fn, batches, params)
    np.testing.assert_allclose(plain.params["w"], other.params["w"], rtol=1e-6)


def test_half_precision_params_with_a_scaled_loss():
    params = {"w": jnp.ones(2, jnp.float16)}
    loss_fn = lambda params, batch: jnp.sum((params["w"] * batch).astype(jnp.float32)) * 1e-8
    opt = gdfx.guard(gdfx.chain(gdfx.scale(1e6), gdfx.sgd(1.0)), loss_scale=2.0**10)
    state, _ = train(opt, loss_fn, [jnp.ones(2, jnp.float16)], params)
    assert state.params["w"].dtype == jnp.float16
    np.testing.assert_allclose(state.params["w"], 1 - 1e-2, rtol=1e-3)
