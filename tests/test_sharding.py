"""Optimizer state on a mesh of eight devices lies as the params do, with Explicit and with Auto axes."""

import os
import subprocess
import sys

import jax
import pytest

SCRIPT = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import gdfx

OPTIMIZERS = (
    gdfx.sgd(0.1, 0.9),
    gdfx.adamw(1e-3, mask=gdfx.matrices),
    gdfx.rmsprop(1e-2, centered=True, momentum=0.9),
    gdfx.adagrad(0.1),
    gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adam(gdfx.warmup_cosine(0.1, 2, 10))),
)


@jax.jit
def step(opt, grads, state, params):
    updates, state = opt.update(grads, state, params)
    return gdfx.apply_updates(params, updates), state


alone = {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
EXPECTED = [jax.device_get(step(opt, alone, opt.init(alone), alone)[0]) for opt in OPTIMIZERS]

kind = getattr(AxisType, sys.argv[1])
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
jax.set_mesh(mesh)
place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, P(*axes)))
params = {"w": place(jnp.ones((8, 4)), "data", "model"), "b": place(jnp.ones(4), "model")}
for opt, expected in zip(OPTIMIZERS, EXPECTED):
    inits = [opt.init] + ([jax.jit(opt.init)] if kind == AxisType.Explicit else [])
    for init in inits:
        state = init(params)
        new, after = step(opt, params, state, params)
        for p, q in zip(jax.tree.leaves(params), jax.tree.leaves(new)):
            assert p.sharding.is_equivalent_to(q.sharding, p.ndim), (opt, p.sharding, q.sharding)
        for s in (state, after):
            for path, leaf in jax.tree.leaves_with_path(s):
                if leaf.ndim:
                    like = params["w" if leaf.ndim == 2 else "b"].sharding
                    assert leaf.sharding.is_equivalent_to(like, leaf.ndim), (opt, path, leaf.sharding)
    updates, _ = opt.update(params, opt.init(params), params)  # outside jit too
    for name in params:
        assert jnp.allclose(jax.device_get(new[name]), expected[name], rtol=1e-6), opt
print("sharded")
"""


@pytest.mark.parametrize("axes", ["Explicit", "Auto"])
def test_state_follows_params(axes):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT, axes], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "sharded"
