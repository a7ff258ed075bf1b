"""Kills a sweep at random moments, starts it again, and looks whether it ends as one that nobody disturbed.

python tests/kill_sweep.py --kills 15 --seed 0
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from kill_training import Kill, differences, kill, newest

import gdfx

STEPS_A_KILL = 100
"""Long enough that the sweep is not over before it has been killed as often as asked for: a save is a step or more."""
RUNG = 12
"""Steps between two comparisons: some are before a kill, some after, and saves are between them."""


def sweep(steps: int, directory: Path | None, seconds: float) -> dict[str, Any]:
    """Sweeps over two kinds of optimizers, some of which diverge; all that it ended with, by path."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 8)).astype(np.float32)
    data = {"x": x, "y": np.sin(x @ rng.normal(size=(8, 1)).astype(np.float32))}

    def init_fn(key):
        return {"first": jax.random.normal(key, (8, 16)) / 3, "last": jnp.zeros((16, 1))}

    def loss_fn(params, batch):
        return jnp.mean((jnp.tanh(batch["x"] @ params["first"]) @ params["last"] - batch["y"]) ** 2)

    result = gdfx.sweep(
        loss_fn,
        init_fn,
        [
            gdfx.grid(lambda rate: gdfx.adam(gdfx.schedules.cosine(rate, steps)), rate=[1e-4, 1e-3, 1e-2, 1.0]),
            gdfx.grid(gdfx.sgd, learning_rate=[1e-3, 1e-2, 1e30], momentum=0.9),
        ],
        data,
        epochs=steps // 5,
        batch_size=8,
        seeds=2,
        evaluate=lambda params: {"whole_loss": loss_fn(params, data)},
        metric="whole_loss",
        culling=gdfx.median_rule(every=RUNG, warmup=3 * RUNG),
        progress=False,
        checkpoint=directory,
        checkpoint_seconds=seconds,
    )
    ended = {
        "table": np.frombuffer(result.table(rows=None).encode(), np.uint8),
        "params": result.params,
        "runs": result.history,
        "metrics": result.metrics,
        "culled_at": result.culled_at,
        "diverged_at": result.diverged_at,
    }
    leaves = jax.tree_util.tree_leaves_with_path(ended)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def start(steps: int, directory: Path, out: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Begins `sweep`, or goes on with it, in a process of its own, which writes what it ends with to `out`."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(gdfx.__file__).parents[1]),
        "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, __file__, "--child", str(steps), str(directory), str(out), str(seconds)]
    return subprocess.Popen(command, env=environment)


def killed(steps: int, kills: int, seed: int, directory: Path, out: Path) -> Iterator[Kill]:
    """Kills the sweep so many times, every other time during a save, and then lets it end."""
    rng = random.Random(seed)
    beginning = 0.0  # how many seconds it takes until there is something to go on from
    for i in range(kills):
        process = start(steps, directory, out, 0.0)
        try:
            in_save = i % 2 == 0
            one = kill(process, directory, in_save, rng.uniform(0.0, 2.0 if in_save else 1.5 * beginning))
        finally:
            process.kill()
            process.wait()
        beginning = beginning or one.second
        yield one
    if status := start(steps, directory, out, 60.0).wait():
        raise RuntimeError(f"the sweep could not go on to its end: exit status {status}")


def main(kills: int, seed: int, work: Path) -> list[str]:
    """Prints the kills as they are made; what is wrong in the end."""
    steps, out = STEPS_A_KILL * (kills + 1), work / "end.npz"
    wrong, in_saves, last = [], 0, -1
    print(f"{steps} steps\nkill  second  saves  during a save", flush=True)
    for i, one in enumerate(killed(steps, kills, seed, work / "run", out), 1):
        if one.step < last:
            wrong.append(f"kill {i} left checkpoints up to {one.step}, those before up to {last}")
        in_saves, last = in_saves + one.saving, one.step
        print(f"{i:4}  {one.second:6.2f}  {one.step:5}  {'yes' if one.saving else 'no'}", flush=True)
    wrong += differences({**np.load(out)}, sweep(steps, None, 60.0), steps)
    if newest(work / "run") <= last:
        wrong.append("nothing was saved after the last kill")
    if left := sorted(path.name for path in (work / "run").iterdir() if path.suffix == ".part"):
        wrong.append(f"there are half-written files: {', '.join(left)}")
    if not in_saves:
        wrong.append("no save was under way at any kill: that was not tried")
    print(f"killed {kills} times, {in_saves} of them during a save: {'; '.join(wrong) or 'bit for bit the same end'}")
    return wrong


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        steps, directory, out, seconds = sys.argv[2:]
        np.savez(out, **sweep(int(steps), Path(directory), float(seconds)))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.kills < 1:
        parser.error(f"--kills is {options.kills}, expected at least 1")
    with tempfile.TemporaryDirectory() as work:
        sys.exit(bool(main(options.kills, options.seed, Path(work))))
