"""gdfx against trajectories of torch.optim: oracles/torch.npz (see oracles/make_torch.py)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdfx

with np.load(Path(__file__).with_name("oracles") / "torch.npz") as file:
    GOLDEN = dict(file)
META = json.loads(str(GOLDEN["meta"]))


def case_id(case):
    values = ",".join(f"{k}={v}" for k, v in case["kwargs"].items())
    return f"{case['name']}({values})"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("index", "case"), list(enumerate(META["cases"])), ids=[case_id(c) for c in META["cases"]])
def test_trajectory_is_torchs(index, case):
    """The params after 1 to 100 steps, in float64, with the optimizer a traced argument."""
    opt = getattr(gdfx, case["name"])(**case["kwargs"])
    params = {k: jnp.asarray(GOLDEN[f"init/{k}"]) for k in ("w", "b")}
    grads = {k: jnp.asarray(GOLDEN[f"grads/{k}"]) for k in ("w", "b")}

    @jax.jit
    def trajectory(opt, params, grads):
        def step(carry, grad):
            params, state = carry
            updates, state = opt.update(grad, state, params)
            params = gdfx.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, opt.init(params)), grads)[1]

    after = trajectory(opt, params, grads)
    steps = np.array(META["steps"])
    for k, seen in after.items():
        assert seen.dtype == jnp.float64
        # Gradients do not depend on params, so rounding errors only add up: one tolerance for
        # all cases.
        np.testing.assert_allclose(seen[steps - 1], GOLDEN[f"{index}/{k}"], rtol=1e-12, atol=1e-13, err_msg=k)
