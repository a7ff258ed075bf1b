"""gdfx against trajectories of other libraries: oracles/*.npz (see oracles/make_golden.py)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES

import gdfx

pytestmark = pytest.mark.numbers


def arrays_of(path):
    with np.load(path) as file:
        return dict(file)


GOLDEN = {path.stem: arrays_of(path) for path in sorted(Path(__file__).with_name("oracles").glob("*.npz"))}
META = {package: json.loads(str(arrays["meta"])) for package, arrays in GOLDEN.items()}
ROWS = {row.name: row for row in CASES}


@jax.jit
def trajectory(opt, params, grads, extra):
    """Params after each step, and those to evaluate.

    As the optimizer is an argument, settings that differ in numbers only compile once.
    """

    def step(carry, now):
        params, state = carry
        grad, extra = now
        updates, state = opt.update(grad, state, params, **extra)
        params = gdfx.apply_updates(params, updates)
        return (params, state), (params, gdfx.eval_params(opt, state, params))

    return jax.lax.scan(step, (params, opt.init(params)), (grads, extra))[1]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("package", "index", "case"),
    [
        pytest.param(package, i, case, id=f"{package}-{case['optimizer']}")
        for package, meta in META.items()
        for i, case in enumerate(meta["cases"])
    ],
)
def test_trajectory(package, index, case):
    """The params after 1 to 100 steps, in float64, with the optimizer a traced argument."""
    golden = GOLDEN[package]
    opt = eval(case["optimizer"], dict(vars(gdfx)))
    params = {k: jnp.asarray((not case["from_zeros"]) * golden[f"params/{k}"]) for k in ("w", "b")}
    grads = {k: jnp.asarray(golden[f"grads/{k}"]) for k in ("w", "b")}
    extra = {k: jnp.asarray(golden[f"extra/{k}"]) for k in case["extra"]}
    trained, averaged = trajectory(opt, params, grads, extra)
    after = averaged if case.get("averaged") else trained
    steps = np.array(META[package]["steps"])
    for k, path in after.items():
        assert path.dtype == jnp.float64
        got, want = np.asarray(path)[steps - 1], golden[f"{index}/{k}"]
        # Of each step by itself: some methods take ever longer steps where gradients have no end.
        size = np.abs(want).max(axis=tuple(range(1, want.ndim)), initial=1.0, keepdims=True)
        atol = ROWS[case["name"]].golden[package]
        np.testing.assert_allclose(got / size, want / size, rtol=0, atol=atol, err_msg=f"{k} of {case['theirs']}")


def test_the_table_names_the_oracles():
    files = {(package, case["name"]) for package, meta in META.items() for case in meta["cases"]}
    assert {(package, row.name) for row in CASES for package in row.golden} == files
