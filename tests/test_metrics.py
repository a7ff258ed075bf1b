import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdfx

PARAMS = {"matrix": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "bias": jnp.array([0.0, 2.0])}
GRADS = {"matrix": jnp.array([[0.0, 3.0], [4.0, 0.0]]), "bias": jnp.array([12.0, 0.0])}
RISE = gdfx.schedules.linear(0.0, 0.4, 4)


def loss_fn(params, batch):
    return jnp.mean((batch @ params["matrix"] + params["bias"][None]) ** 2)


def run(opt, steps=1, grads=GRADS):
    updates, state = grads, opt.init(PARAMS)
    for _ in range(steps):
        updates, state = jax.jit(opt.update)(grads, state, PARAMS)
    return updates, state


def close(found, **expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_record_tells_the_norms_before_and_after_clipping():
    opt = gdfx.record(gdfx.chain(gdfx.clip_by_global_norm(6.5), gdfx.sgd(RISE, momentum=0.9)))
    _, state = run(opt, 2)
    found = gdfx.metrics(state)
    close(found, grad_norm=13.0, learning_rate=0.1, param_norm=np.sqrt(29.0))
    close(found, **{"norm_after/clip_by_global_norm": 6.5, "norm_after/trace": 6.5 * 1.9})
    close(found, update_norm=1.235, update_ratio=1.235 / np.sqrt(29.0))
    assert set(found) == {
        *("grad_norm", "update_norm", "param_norm", "update_ratio", "learning_rate"),
        *("norm_after/clip_by_global_norm", "norm_after/trace"),
    }


def test_record_changes_nothing():
    opt = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adamw(RISE, weight_decay=0.1))
    plain, recorded = run(opt, 3)[0], run(gdfx.record(opt), 3)[0]
    jax.tree.map(np.testing.assert_array_equal, plain, recorded)


def test_record_by_group():
    opt = gdfx.record(gdfx.sgd(0.5), groups=gdfx.roles(PARAMS))
    found = gdfx.metrics(run(opt)[1])
    close(found, **{"grad_norm": 13.0, "matrix/grad_norm": 5.0, "bias/grad_norm": 12.0, "bias/update_norm": 6.0})
    close(found, **{"matrix/param_norm": 5.0, "matrix/update_ratio": 0.5, "bias/update_ratio": 3.0})
    by_rules = gdfx.record(gdfx.sgd(0.5), groups=[("bias", "b"), ("", "rest")])
    close(gdfx.metrics(run(by_rules)[1]), **{"b/grad_norm": 12.0})
    with pytest.raises(ValueError, match="no rule of the groups fits the leaf bias"):
        gdfx.record(gdfx.sgd(0.5), groups=[("matrix", "m")]).init(PARAMS)


def test_groups_of_a_partition_have_their_label_in_front():
    clipped = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.sgd(0.1))
    opt = gdfx.partition({"matrix": gdfx.record(clipped), "bias": gdfx.record(gdfx.sgd(0.2))})
    found = gdfx.metrics(run(opt)[1])
    close(found, **{"matrix/grad_norm": 5.0, "matrix/norm_after/clip_by_global_norm": 1.0, "bias/grad_norm": 12.0})
    close(found, **{"matrix/learning_rate": 0.1, "bias/learning_rate": 0.2})
    whole = gdfx.metrics(run(gdfx.record(gdfx.partition({"matrix": clipped, "bias": gdfx.sgd(RISE)})), 2)[1])
    close(whole, grad_norm=13.0)
    rates = {name: rate for name, rate in whole.items() if name.endswith("learning_rate")}
    close(rates, **{"transforms['matrix'].transforms[1].learning_rate": 0.1, "transforms['bias'].learning_rate": 0.1})


def test_skipped_updates_are_told():
    opt = gdfx.record(gdfx.guard(gdfx.chain(gdfx.clip(1.0), gdfx.sgd(RISE)), max_norm=1.0))
    found = gdfx.metrics(run(opt, 3)[1])
    close(found, skipped=3, skipped_in_a_row=3, grad_norm=13.0, update_norm=0.0, update_ratio=0.0, learning_rate=0.0)


def test_two_of_one_name_have_their_paths():
    opt = gdfx.chain(gdfx.monitor("size", gdfx.tree.norm), gdfx.sgd(0.5), gdfx.monitor("size", gdfx.tree.norm))
    found = gdfx.metrics(run(opt)[1])
    close(found, **{"['monitor']/size": 13.0, "['monitor_1']/size": 6.5})


def test_what_links_know():
    plateau = gdfx.chain(gdfx.sgd(1.0), gdfx.reduce_on_plateau(0.5, patience=1))
    state = plateau.init(PARAMS)
    for _ in range(3):
        _, state = plateau.update(GRADS, state, PARAMS, value=jnp.array(1.0))
    close(gdfx.metrics(state), plateau_scale=0.25)
    assert gdfx.metrics(gdfx.prodigy().init(PARAMS))["estim_lr"] == np.float32(1e-6)
    assert gdfx.metrics(gdfx.dadapt_adamw().init(PARAMS))["estim_lr"] == np.float32(1e-6)
    assert gdfx.metrics(gdfx.adam(0.1).init(PARAMS)) == {}
    assert gdfx.metrics(optax.adam(0.1).init(PARAMS)) == {}


def test_monitor_of_a_single_name():
    assert gdfx.monitor("size", gdfx.tree.norm) == gdfx.monitor({"size": gdfx.tree.norm})
    with pytest.raises(TypeError, match="measure goes with a single name"):
        gdfx.monitor({"size": gdfx.tree.norm}, gdfx.tree.norm)
    with pytest.raises(TypeError):
        gdfx.monitor("size")


def test_params_are_needed():
    opt = gdfx.record(gdfx.sgd(0.1))
    with pytest.raises(TypeError, match="needs params"):
        opt.update(GRADS, opt.init(PARAMS))


def test_a_step_tells_and_donates():
    opt = gdfx.guard(gdfx.record(gdfx.chain(gdfx.clip_by_global_norm(0.1), gdfx.adam(RISE))))
    step = gdfx.make_step(loss_fn)
    state = gdfx.TrainState.create(opt, PARAMS)
    history = []
    for _ in range(3):
        state, metrics = step(opt, state, jnp.ones((4, 2)))
        history.append(metrics)
    close(history[1], learning_rate=0.1, skipped=0, **{"norm_after/clip_by_global_norm": 0.1})
    assert history[0]["param_norm"] == history[1]["param_norm"] != history[2]["param_norm"]
    assert {"loss", "grad_norm", "update_ratio"} <= set(history[0])


def test_fit_and_sweep_keep_what_is_told():
    data = jnp.asarray(np.random.default_rng(0).normal(size=(16, 2)), jnp.float32)
    opt = gdfx.record(gdfx.sgd(gdfx.schedules.linear(0.4, 0.0, 8)))
    found = gdfx.fit(loss_fn, PARAMS, opt, data, epochs=2, batch_size=4)
    np.testing.assert_allclose(found.history["learning_rate"], np.linspace(0.4, 0.0, 9)[:8], rtol=1e-6)
    assert found.history["update_ratio"].shape == (8,)

    opts = [gdfx.guard(gdfx.record(gdfx.sgd(rate))) for rate in (0.1, 1e30)]
    swept = gdfx.sweep(loss_fn, lambda key: PARAMS, opts, data, epochs=2, batch_size=4, seeds=2)
    assert swept.history["loss"].shape == swept.history["learning_rate"].shape == (2, 2, 8)
    np.testing.assert_allclose(swept.history["learning_rate"][0], 0.1, rtol=1e-6)
    assert np.all(swept.history["skipped"][0] == 0)
