"""Sweeps on several devices, in several processes, and in little memory: the same numbers as on one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdfx
from gdfx.sweeps import machine
from gdfx.sweeps.machine import Machine, fitting
from gdfx.sweeps.members import Members

RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(24, 4)).astype(np.float32), "y": RNG.normal(size=24).astype(np.float32)}
RATES = np.geomspace(1e-3, 1e4, 23)  # some diverge


def init_fn(key):
    return {"w": jax.random.normal(key, (4,)), "b": jnp.zeros(())}


def loss_fn(params, batch):
    return jnp.mean((jnp.sin(batch["x"] @ params["w"]) * params["w"][0] + params["b"] - batch["y"]) ** 2)


def evaluate(params):
    return {"size": jnp.sum(params["w"] ** 2)}


def run(**options):
    settings = {"epochs": 4, "batch_size": 8, "seeds": 2, "evaluate": evaluate, "culling": gdfx.halving()} | options
    optimizers = gdfx.grid(gdfx.sgd, learning_rate=RATES, momentum=0.5)
    return gdfx.sweep(loss_fn, init_fn, optimizers, DATA, progress=False, **settings)


def numbers(result):
    """All that a result holds in numbers, by name."""
    trees = {"params": result.params, "history": result.history, "metrics": result.metrics}
    rest = {"diverged_at": result.diverged_at, "culled_at": result.culled_at}
    leaves = jax.tree_util.tree_leaves_with_path(trees | rest)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def expected():
    """The numbers of the sweep in one process, on its one device."""
    return numbers(run(executor="vmap"))


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def start(code, *arguments, flags=""):
    """A process of its own that runs `code`, in which this file is the module `here`."""
    lines = ["import sys", f"sys.path.insert(0, {str(Path(__file__).parent)!r})", "import jax", code]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()  # a blank would be taken for the name of a file
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(gdfx.__file__).parents[1]), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", "\n".join(lines), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    try:
        out, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, out
    return out


ON_DEVICES = """
import numpy as np
import test_sweep_devices as here
from gdfx.sweeps import members
used, run_loop = set(), members.run_loop
def spy(program, constants, carry, *rest):
    devices = {d for leaf in jax.tree.leaves((constants, carry)) for d in leaf.devices()}
    ended = run_loop(program, constants, carry, *rest)
    assert devices == {d for leaf in jax.tree.leaves(ended.carry) for d in leaf.devices()} and len(devices) == 1
    used.update(devices)
    return ended
members.run_loop = spy
np.savez(sys.argv[1], **here.numbers(here.run(executor="vmap")))
assert used == set(jax.devices()) and len(used) == 8, used
with jax.enable_x64(True):
    assert here.run(executor="vmap", epochs=1, culling=None).history["loss"].dtype == np.float64
"""


def test_all_devices_are_used(expected, tmp_path):
    flag = "--xla_force_host_platform_device_count=8"
    finish(start(ON_DEVICES, tmp_path / "found.npz", flags=flag))
    assert_same(np.load(tmp_path / "found.npz"), expected)


IN_PROCESSES = """
path, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, index, initialization_timeout=120)
assert jax.process_count() == 2
import numpy as np
import test_sweep_devices as here
from gdfx.sweeps.members import Members
trained, advance = [], Members.advance
def spy(self, how, optimizer, *rest):
    trained.extend(np.unique(optimizer.learning_rate))
    if broken and index == 1:
        raise RuntimeError("out of order")
    return advance(self, how, optimizer, *rest)
broken, Members.advance = False, spy
result = here.run(executor="vmap", culling=None)
assert 0 < len(set(trained)) < len(here.RATES), trained
print("trained", len(set(trained)))
np.savez(f"{path}/{index}.npz", **here.numbers(here.run(executor="vmap")))
broken = True
try:
    here.run(executor="vmap")
except RuntimeError as error:
    print("failed:", error)
"""


def test_processes_divide_the_members(expected, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start(IN_PROCESSES, tmp_path, port, index) for index in range(2)]
    told = [finish(process) for process in processes]
    trained = [int(line.split()[1]) for out in told for line in out.splitlines() if line.startswith("trained")]
    assert sum(trained) == len(RATES)
    for index, out in enumerate(told):
        assert_same(np.load(tmp_path / f"{index}.npz"), expected)
        assert "failed: out of order" in out if index else "failed: sweep: in process 1: RuntimeError: out" in out


def test_threads_have_the_settings_of_the_caller(x64):
    optimizers = gdfx.grid(gdfx.sgd, learning_rate=[0.1, 0.2, 0.3])
    data = {name: array.astype(np.float64) for name, array in DATA.items()}
    result = gdfx.sweep(loss_fn, init_fn, optimizers, data, epochs=2, evaluate=evaluate, progress=False)
    assert result.history["loss"].dtype == np.float64
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {np.dtype(np.float64)}


@pytest.fixture
def asked(monkeypatch):
    """By size, what was asked for the memory of parts, and the sizes of those trained."""
    found = {"needs": {}, "trained": []}
    memory, advance = Members.memory, Members.advance

    def spy_memory(self, how, optimizer, *rest):
        return found["needs"].setdefault(len(optimizer.learning_rate), memory(self, how, optimizer, *rest))

    def spy_advance(self, how, optimizer, *rest):
        found["trained"].append(len(optimizer.learning_rate))
        return advance(self, how, optimizer, *rest)

    monkeypatch.setattr(Members, "memory", spy_memory)
    monkeypatch.setattr(Members, "advance", spy_advance)
    return found


def test_parts_are_halved_until_they_fit(expected, asked):
    whole, shared = Machine.here(2**30), sum(array.nbytes for array in DATA.values())
    run(executor="vmap", memory=2**30, culling=None, evaluate=None)
    ((largest, need),) = asked["needs"].items()
    assert set(asked["trained"]) == {largest}
    asked["trained"].clear()
    bound = shared + (need - shared) * whole.side - 1
    found = run(executor="vmap", memory=bound)
    assert max(asked["trained"]) == largest // 2
    assert all(shared + whole.side * (asked["needs"][size] - shared) <= bound for size in asked["trained"])
    assert_same(numbers(found), expected)


def test_a_member_that_does_not_fit_is_told_with_what_it_needs():
    with pytest.raises(
        MemoryError, match=r"sweep: one member needs [\d.]+ kB of memory.* but memory is 1 kB: give more"
    ):
        run(memory=1000)


@pytest.mark.parametrize("memory", [0, -1, True, "1 GB"])
def test_memory_is_a_number_of_bytes(memory):
    with pytest.raises(ValueError, match=r"memory is .*, expected a number of bytes"):
        run(memory=memory)


@pytest.mark.parametrize(
    ("limit", "size", "threads"),
    [(None, 64, 4), (6500, 64, 4), (6499, 32, 4), (200, 1, 4), (199, 1, 3), (150, 1, 2), (125, 1, 1)],
)
def test_fewer_members_then_fewer_threads(limit, size, threads):
    devices = ["one"] * 4
    found = fitting(64, Machine(devices, 4, 4, limit), lambda size: 100 + 25 * size, 100)
    assert found == (size, devices[:threads])


def test_each_device_keeps_a_thread_where_only_one_fits():
    found = fitting(8, Machine(["one", "two"] * 2, 4, 2, 130), lambda size: 100 + 25 * size, 100)
    assert found == (1, ["one", "two"])


def test_the_default_leaves_memory_to_others():
    class Device:
        platform = "gpu"

        def __init__(self, stats):
            self.memory_stats = lambda: stats

    assert machine._default_limit([Device({"bytes_limit": 1000})]) == 800
    free = machine._free()
    found = machine._default_limit([Device(None)] * 4)
    assert (found is None) == (free is None)
    if free is not None:
        assert 0 < found <= free // 4
