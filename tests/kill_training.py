"""Kills a training run at random moments, starts it again, and looks whether it ends as one that nobody disturbed.

python tests/kill_training.py --kills 25 --seed 0
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # whose numbers are the same in every process

import jax
import jax.numpy as jnp
import numpy as np

import gdfx

STEPS_A_KILL = 1000
"""Long enough that the run is not over before it has been killed as often as asked for."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL and what it left behind."""

    second: float  # since the process began
    step: int  # of the newest checkpoint on the disk; -1 for none
    saving: bool  # a save was under way: its temporary folder is still there


def train(steps: int, directory: Path | None) -> dict[str, Any]:
    """Trains a small network with noise in its gradients; all that it ended with, by path."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 8)).astype(np.float32)
    data = {"x": x, "y": np.sin(x @ rng.normal(size=(8, 1)).astype(np.float32))}
    params = {"first": jnp.asarray(rng.normal(size=(8, 256)), jnp.float32) / 3, "last": jnp.zeros((256, 1))}

    def loss_fn(params, batch):
        return jnp.mean((jnp.tanh(batch["x"] @ params["first"]) @ params["last"] - batch["y"]) ** 2)

    optimizer = gdfx.chain(gdfx.add_noise(1e-4, 0.1, key=0), gdfx.adam(gdfx.schedules.cosine(1e-3, steps)))
    result = gdfx.fit(
        loss_fn,
        params,
        optimizer,
        data,
        epochs=steps // 10,
        batch_size=8,
        checkpoint=directory,
        checkpoint_seconds=0.0,
        progress=False,
    )
    ended = {"params": result.params, "opt_state": result.opt_state, "history": result.history, "steps": result.steps}
    leaves = jax.tree_util.tree_leaves_with_path(ended)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def start(steps: int, directory: Path, out: Path) -> subprocess.Popen[bytes]:
    """Begins `train`, or goes on with it, in a process of its own, which writes what it ends with to `out`."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(gdfx.__file__).parents[1]),
        "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, __file__, "--child", str(steps), str(directory), str(out)]
    return subprocess.Popen(command, env=environment)


def saving(directory: Path, since: int) -> bool:
    """Whether there is a folder that is being written or removed, and not one that an earlier kill left behind."""
    try:
        return any(path.stat().st_mtime_ns >= since for path in directory.glob(".*ing-*"))
    except FileNotFoundError:  # it got its name, or is gone, as we looked
        return True


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Waits until the condition holds, or the process has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.0005)


def kill(process: subprocess.Popen[bytes], directory: Path, in_save: bool, wait: float) -> Kill:
    """Kills the process after `wait` seconds, or before if it gets far, so that the run does not come to its end.

    With `in_save` that is in the next save after a checkpoint and those seconds.
    """
    began, since, before = time.monotonic(), time.time_ns(), newest(directory)
    if in_save:
        until(lambda: newest(directory) > before, process)
    moment, limit = time.monotonic() + wait, newest(directory) + STEPS_A_KILL // 4
    until(lambda: time.monotonic() >= moment or newest(directory) >= limit, process)
    while in_save and process.poll() is None:
        until(lambda: saving(directory, since), process)
        process.send_signal(signal.SIGSTOP)  # for the save not to end between the look and the kill
        time.sleep(0.002)
        if saving(directory, since):
            break
        process.send_signal(signal.SIGCONT)
    process.kill()
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"training ended by itself, with exit status {process.returncode}, before it was killed")
    return Kill(time.monotonic() - began, newest(directory), saving(directory, since))


def newest(directory: Path) -> int:
    """The step of the newest checkpoint that has its name; -1 for none."""
    return max((int(path.name.removeprefix("step_")) for path in directory.glob("step_*")), default=-1)


def killed(steps: int, kills: int, seed: int, directory: Path, out: Path) -> Iterator[Kill]:
    """Kills the run so many times, every other time during a save, and then lets it end."""
    rng = random.Random(seed)
    beginning = 0.0  # how many seconds it takes until there is something to go on from
    for i in range(kills):
        process = start(steps, directory, out)
        try:
            in_save = i % 2 == 0
            one = kill(process, directory, in_save, rng.uniform(0.0, 0.5 if in_save else 1.5 * beginning))
        finally:
            process.kill()
            process.wait()
        beginning = beginning or one.second
        yield one
    if status := start(steps, directory, out).wait():
        raise RuntimeError(f"training could not go on to its end: exit status {status}")


def differences(found: dict[str, Any], expected: dict[str, Any], steps: int) -> list[str]:
    """What is not bit for bit as expected, and steps that were lost or made twice."""
    lines = [f"{path} is only in one" for path in found.keys() ^ expected.keys()]
    for path in found.keys() & expected.keys():
        ours, theirs = found[path], expected[path]
        if (ours.dtype, ours.shape, ours.tobytes()) != (theirs.dtype, theirs.shape, theirs.tobytes()):
            lines.append(f"{path} differs: {ours.dtype}{ours.shape}, expected {theirs.dtype}{theirs.shape}")
        if path.startswith("['history']") and len(ours) != steps:
            lines.append(f"{path} has {len(ours)} rows, expected {steps}")
    return lines


def main(kills: int, seed: int, work: Path) -> list[str]:
    """Prints the kills as they are made; what is wrong in the end."""
    steps, out = STEPS_A_KILL * (kills + 1), work / "end.npz"
    wrong, in_saves, last = [], 0, -1
    print(f"{steps} steps\nkill  second  newest step  during a save", flush=True)
    for i, one in enumerate(killed(steps, kills, seed, work / "run", out), 1):
        if one.step < last:
            wrong.append(f"kill {i} left checkpoints up to step {one.step}, those before up to {last}")
        in_saves, last = in_saves + one.saving, one.step
        print(f"{i:4}  {one.second:6.2f}  {one.step:11}  {'yes' if one.saving else 'no'}", flush=True)
    wrong += differences({**np.load(out)}, train(steps, None), steps)
    if not in_saves:
        wrong.append("no save was under way at any kill: that was not tried")
    print(f"killed {kills} times, {in_saves} of them during a save: {'; '.join(wrong) or 'bit for bit the same end'}")
    return wrong


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        steps, directory, out = sys.argv[2:]
        np.savez(out, **train(int(steps), Path(directory)))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.kills < 1:
        parser.error(f"--kills is {options.kills}, expected at least 1")
    with tempfile.TemporaryDirectory() as work:
        sys.exit(bool(main(options.kills, options.seed, Path(work))))
