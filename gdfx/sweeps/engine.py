"""The run of a sweep: stages between rungs, in which parts of the members are trained side by side."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree
from .culling import CullingRule
from .members import Members

PART = 64
"""The most members that are trained together: more of them are no faster, and take more memory."""


@dataclass
class Track:
    """The members of one group on their way."""

    members: Members
    total: int  # steps of the whole run
    how: str
    why: str
    alive: np.ndarray  # places in the group, of those that go on
    optimizer: Tree = None  # of these
    carry: Tree = None  # of these: NumPy, of shape (alive, seeds, ...)
    first: np.ndarray | None = None  # losses before training
    made: int = 0
    error: str | None = None
    history: dict[str, np.ndarray] = field(default_factory=dict)  # (members of the group, seeds, steps)
    ended: dict[int, Tree] = field(default_factory=dict)  # by place: the last carry of those that do not go on


def workers() -> list[Any]:
    """The device of each thread that trains: all local devices, or on a single CPU device one for each core."""
    devices = jax.local_devices()
    if len(devices) == 1 and devices[0].platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return devices * cores
    return devices


def cut(count: int, parts: int, most: int) -> list[np.ndarray]:
    """The places 0 to `count` in pieces of one size, of at most `most`, a multiple of `parts` of them if that may be.

    The last repeats its last place where the count does not divide, so that all are one program.
    """
    size = min(-(-count // parts), most)
    pieces = [np.arange(begin, begin + size) for begin in range(0, count, size)]
    return [np.minimum(piece, count - 1) for piece in pieces]


def train(track: Track, end: int, devices: list[Any], limit: int | None, watch: Callable[[int, int], None]) -> None:
    """Makes the steps of all members of `track` that go on, until `end`."""
    members, seeds = track.members, len(track.members.seeds)
    alone = track.how == "loop"
    pieces = cut(len(track.alive), len(devices), 1 if alone else PART)
    lanes = [slice(j, j + 1) for j in range(seeds)] if alone else [slice(None)]
    jobs = [(i, piece, lane) for i, piece in enumerate(pieces) for lane in lanes]

    def run(job: tuple[int, np.ndarray, slice], device: Any) -> tuple[Tree, Tree]:
        _, piece, lane = job
        with jax.default_device(device):
            optimizer = jax.tree.map(lambda x: x[piece], track.optimizer)
            carry = jax.tree.map(lambda x: x[piece][:, lane], track.carry)
            return members.advance(
                track.how, optimizer, carry, lane, track.made, end, lambda made, outs: watch(len(set(piece)), made)
            )

    free = list(devices)

    def turn(job):
        device = free.pop()
        try:
            return run(job, device)
        finally:
            free.append(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        done = list(pool.map(turn, jobs))
    for (_, piece, lane), (carry, told) in zip(jobs, done, strict=True):
        real = np.unique(piece, return_index=True)[1]
        for old, new in zip(jax.tree.leaves(track.carry), jax.tree.leaves(carry), strict=True):
            old[piece[real], lane] = new[real]
        for name, values in told.items():  # (steps, members, seeds)
            _record(track, name, values, track.alive[piece[real]], real, lane)
    track.made = end


def _record(track: Track, name: str, values: np.ndarray, places: np.ndarray, real: np.ndarray, lane: slice) -> None:
    if name not in track.history:
        shape = len(track.members.group.rows), len(track.members.seeds), track.total
        dtype = np.promote_types(values.dtype, np.float32)  # NumPy adds up bfloat16 in bfloat16
        track.history[name] = np.full(shape, np.nan, dtype)
    steps = slice(track.made, track.made + len(values))
    track.history[name][places, lane, steps] = np.moveaxis(values, 0, -1)[real]


def begin(track: Track) -> None:
    """The members before the first step."""
    optimizer = jax.tree.map(np.asarray, track.members.group.optimizer)
    carry, track.first = track.members.start(jax.tree.map(jnp.asarray, optimizer))
    track.optimizer, track.carry = optimizer, jax.tree.map(np.array, carry)
    track.how, track.why = track.members.choose() if track.how == "auto" else (track.how, "as was asked for")


def scores(track: Track) -> dict[str, np.ndarray]:
    """The metrics of the members that go on, of shape (alive, seeds)."""
    losses = track.history["loss"][track.alive][..., max(0, track.made - track.members.per_epoch) : track.made]
    found = {"train_loss": losses.mean(axis=-1)}
    if track.members.evaluated is not None:
        for piece in cut(len(track.alive), 1, PART):
            real = np.unique(piece, return_index=True)[1]
            optimizer, carry = (jax.tree.map(lambda x, p=piece: x[p], x) for x in (track.optimizer, track.carry))
            for name, values in track.members.evaluated(optimizer, carry).items():
                found.setdefault(name, np.full(track.alive.shape + (len(track.members.seeds),), np.nan))
                found[name][piece[real]] = np.asarray(values)[real]
    return found


def leave(track: Track, keep: np.ndarray) -> None:
    """Goes on with those members only, of the ones that went on, for which `keep` is true."""
    for i in np.flatnonzero(~keep):
        track.ended[int(track.alive[i])] = jax.tree.map(lambda x, i=i: x[i].copy(), track.carry)
    track.alive = track.alive[keep]
    track.optimizer, track.carry = (jax.tree.map(lambda x: x[keep], x) for x in (track.optimizer, track.carry))


def rungs(rule: CullingRule | None, tracks: list[Track]) -> list[float]:
    """The parts of the run after which members are compared."""
    if rule is None:
        return []
    most = max(track.total for track in tracks)
    members = sum(len(track.members.group.rows) for track in tracks)
    return [steps / most for steps in rule.rungs(most, members)]
