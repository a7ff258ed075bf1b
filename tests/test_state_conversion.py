"""States of optax and of PyTorch taken over: a run that was begun there goes on here on the same path, and back."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES

import gdfx
from gdfx.interop import from_optax, state_from_optax, state_from_torch, state_to_optax, to_optax

pytestmark = pytest.mark.numbers

ORACLES = Path(__file__).with_name("oracles")
PARAMS = {"w": np.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": np.ones(3)}
GRADS = [{k: np.random.default_rng(i).normal(size=p.shape) for k, p in PARAMS.items()} for i in range(6)]
# Of these states something has no counterpart.
ALONE = {
    "accumulate": "optax holds means, gdfx sums",
    "monitor": "the oracle does nothing",
    "snapshot": "the oracle does nothing",
    "record": "optax has none",
    "guard-loss_scale": "optax scales no loss",
    "noisy_sgd-no_noise": "optax has its key in the state",
    "dpsgd-no_noise": "optax has its key in the state",
    "differentially_private_aggregate-no_noise": "optax has its key in the state",
}
SETTINGS = [
    "adafactor-factored",
    "adafactor-momentum",
    "sm3-no_momentum",
    "reduce_on_plateau-means",
    "dog-learning_rate",
]
ROWS = [
    c for c in CASES if c.oracle and c.name not in ALONE and (not c.variant or c.name in SETTINGS) and not c.part_of
]


@pytest.fixture(autouse=True)
def _as_optax_wants_it(x64):
    with jax.numpy_dtype_promotion("standard"):
        yield


def go_on(opt, case, params, state, grads):
    def step(params, state, g):
        given = case.extra if case else None
        extra = given(params, g) if callable(given) else given or {}
        updates, state = opt.update(g, state, params, **extra)
        return jax.tree.map(jnp.add, params, updates), state

    for g in grads:
        params, state = step(params, state, jax.tree.map(jnp.asarray, g))
    return params, state


def in_optax(case):
    tx = case.oracle()
    return optax.with_extra_args_support(tx.gradient_transformation() if hasattr(tx, "gradient_transformation") else tx)


def same(found, expected, atol):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


@pytest.mark.parametrize("case", ROWS, ids=repr)
def test_there_and_back(case):
    """Three steps in optax, and three more in both; from gdfx the same."""
    tx, opt, atol = in_optax(case), case.make(), max(case.oracle_atol, 1e-12)
    params = jax.tree.map(jnp.asarray, PARAMS)
    middle, state = go_on(tx, case, params, tx.init(params), GRADS[:3])
    expected, _ = go_on(tx, case, middle, state, GRADS[3:])
    converted = state_from_optax(opt, state, middle)
    like = jax.tree.map(lambda x: (x.shape, x.dtype), opt.init(params))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), converted) == like
    same(go_on(opt, case, middle, converted, GRADS[3:])[0], expected, atol)

    middle, state = go_on(opt, case, params, opt.init(params), GRADS[:3])
    expected, _ = go_on(opt, case, middle, state, GRADS[3:])
    converted = state_to_optax(tx, state, middle)
    assert jax.tree.structure(converted) == jax.tree.structure(tx.init(params))
    same(go_on(tx, case, middle, converted, GRADS[3:])[0], expected, atol)


def test_adam_with_a_schedule_in_float32():
    """200 steps with clipping and a schedule, changed over at 100."""
    rate, ours = optax.cosine_decay_schedule(0.1, 200), gdfx.schedules.cosine(0.1, 200)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    opt = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adamw(ours, weight_decay=0.01))
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
    loss = lambda p: sum(jnp.sum((x - 0.3) ** 2) for x in jax.tree.leaves(p))

    def run(tx, params, state, steps):
        @jax.jit
        def step(params, state):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(steps):
            params, state = step(params, state)
        return params, state

    whole, _ = run(tx, params, tx.init(params), 200)
    middle, state = run(tx, params, tx.init(params), 100)
    same(run(opt, middle, state_from_optax(opt, state, middle), 100)[0], whole, 1e-6)
    middle, state = run(opt, params, opt.init(params), 100)
    same(run(tx, middle, state_to_optax(tx, state, middle), 100)[0], whole, 1e-6)


def torch_cases():
    with np.load(ORACLES / "states" / "torch.npz") as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays["meta"]))["cases"]


ARRAYS, TORCH = torch_cases()


def state_dict(i, transposed=False):
    state = {}
    for name, array in ARRAYS.items():
        if name.startswith(f"{i}/state/"):
            *_, number, slot = name.split("/")
            state.setdefault(int(number), {})[slot] = array.T if transposed and array.ndim == 2 else array
    groups = [{"lr": TORCH[i]["options"]["lr"], "params": [0, 1]}]
    return {"state": state, "param_groups": groups}


@pytest.mark.parametrize("i", range(len(TORCH)), ids=[case["optimizer"] for case in TORCH])
@pytest.mark.parametrize("transposed", [False, True])
def test_from_torch(i, transposed):
    opt = eval(TORCH[i]["optimizer"], dict(vars(gdfx)))
    params = {k: jnp.asarray(ARRAYS[f"{i}/50/{k}"]) for k in ("w", "b")}
    layout = (lambda path, x: x.T if path == "w" else x) if transposed else None
    order = {"w": 0, "b": 1}
    state = state_from_torch(opt, state_dict(i, transposed), params, order, layout)
    with np.load(ORACLES / "torch.npz") as file:
        grads = {k: file[f"grads/{k}"][50:] for k in ("w", "b")}
    grads = [{k: g[n] for k, g in grads.items()} for n in range(50)]
    end, state = go_on(opt, None, params, state, grads)
    same(end, {k: ARRAYS[f"{i}/100/{k}"] for k in ("w", "b")}, 1e-12)
    assert state.count == (100 if "SGD" not in TORCH[i]["theirs"] else 50)


def test_torch_errors():
    opt, params = gdfx.adam(0.1), jax.tree.map(jnp.asarray, PARAMS)
    order = {"w": 0, "b": 1}
    with pytest.raises(ValueError, match=r"no 'exp_avg' for param 1, b"):
        state_from_torch(opt, state_dict(0), params, order)
    with pytest.raises(ValueError, match=r"has shape \(3,\) at .*'b'.*has \(4, 3\)"):
        state_from_torch(opt, state_dict(3), params)  # leaves are in the order b, w
    with pytest.raises(ValueError, match=r"the order has the numbers \[0, 0\]"):
        state_from_torch(opt, state_dict(3), params, {"w": 0, "b": 0})
    with pytest.raises(TypeError, match="expected one of sgd, adam"):
        state_from_torch(gdfx.lion(0.1), state_dict(3), params)


def test_other_optimizers_do_not_convert():
    params = jax.tree.map(jnp.asarray, PARAMS)
    with pytest.raises(ValueError, match=r"has the parts ScaleByAdamState, but there are none"):
        state_from_optax(gdfx.adam(0.1), optax.sgd(0.1).init(params), params)
    with pytest.raises(ValueError, match=r"ScaleByAdamState.mu, for which TraceState has nothing"):
        state_from_optax(gdfx.adam(0.1), optax.sgd(0.1, 0.9).init(params), params)
    others = {"w": jnp.ones((2, 2)), "b": params["b"]}
    with pytest.raises(ValueError, match=r"has shape \(4, 3\) at \['w'\].*other params"):
        state_from_optax(gdfx.adam(0.1), optax.adam(0.1).init(others), params)


def test_to_and_from_optax():
    tx = to_optax(gdfx.adam(0.1))
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    params = jax.tree.map(jnp.asarray, PARAMS)
    back = from_optax(tx)
    assert isinstance(back, gdfx.GradientTransformation)
    expected, _ = go_on(gdfx.adam(0.1), None, params, gdfx.adam(0.1).init(params), GRADS)
    same(go_on(back, None, params, back.init(params), GRADS)[0], expected, 0)
    needs = optax.chain(to_optax(gdfx.polyak_sgd()), optax.scale(0.5))
    updates, _ = needs.update(params, needs.init(params), params, value=jnp.array(1.0))
    assert jax.tree.leaves(updates)
