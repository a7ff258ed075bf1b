"""The run of a sweep: stages between rungs, in which parts of the members are trained side by side."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ..core import Tree
from .culling import CullingRule
from .machine import Machine, fitting, inherited, spread
from .members import Members
from .population import population as Population  # noqa: N812 - as in run.py

PART = 32
"""The most runs that are trained together on a CPU: more of them are no faster, and take more memory."""


@dataclass
class Track:
    """The members of one group on their way."""

    members: Members
    total: int  # steps of the whole run
    how: str
    why: str
    alive: np.ndarray  # places in the group, of those that go on
    machine: Machine
    optimizer: Tree = None  # of these
    carry: Tree = None  # of these: NumPy, of shape (alive, seeds, ...)
    at: Any = None  # of these: the steps that each run has made, of shape (alive, seeds)
    since: Any = None  # of these: the step at which each was copied last, 0 if never, of shape (alive,)
    first: np.ndarray | None = None  # losses before training
    error: str | None = None
    history: dict[str, np.ndarray] = field(default_factory=dict)  # (members of the group, seeds, steps)
    ended: dict[int, Tree] = field(default_factory=dict)  # by place: the last carry of those that do not go on

    @property
    def rows(self) -> np.ndarray:
        """The places in the result of those that go on."""
        return self.members.group.rows[self.alive]

    @property
    def made(self) -> int:
        """Steps that all members that go on have made."""
        return int(self.at.min())


def cut(count: int, parts: int, most: int) -> list[np.ndarray]:
    """The places 0 to `count` in pieces of one size, of at most `most`, a multiple of `parts` of them if that may be.

    The last repeats its last place where the count does not divide, so that all are one program.
    """
    size = -(-count // (parts * -(-count // (parts * most))))
    pieces = [np.arange(begin, begin + size) for begin in range(0, count, size)]
    return [np.minimum(piece, count - 1) for piece in pieces]


def train(
    track: Track,
    end: int,
    watch: Callable[[int, int], None],
    pause: Callable[[], bool] = lambda: False,
) -> None:
    """Makes the steps of all members of `track` that go on, until `end`, or between two calls when `pause()` holds."""
    members, seeds, stepped = track.members, len(track.members.seeds), threading.Event()
    alone = track.how != "vmap"

    def need(size: int) -> int:
        piece, lane = np.arange(size), slice(0, 1) if alone else slice(None)
        return members.memory(track.how, *_part(track, piece, lane), track.machine.devices[0])

    if members.group.evaluate is not None:
        _compile_evaluation(track)
    pieces, devices = _divided(track, _most(track), need)
    jobs = []
    for piece in pieces:
        for lane in [slice(j, j + 1) for j in range(seeds)] if alone else [slice(None)]:
            if (track.carry["diverged_at"][piece, lane] >= 0).all():
                track.at[piece, lane] = end
            # They differ in a run that goes on from where it was paused with another number of devices.
            at = track.at[piece, lane][:, 0]
            for made in np.unique(at[at < end]):
                alike = piece[at == made]
                jobs.append((np.pad(alike, (0, len(piece) - len(alike)), "edge"), lane, int(made)))

    def run(job: tuple[np.ndarray, slice, int], device: Any) -> tuple[Tree, Tree] | None:
        piece, lane, made = job
        if stepped.is_set() and pause():  # not before there is progress, however often it is paused
            return None

        def told(n: int, outs: Tree) -> bool:
            stepped.set()
            watch(len(set(piece)) * len(range(seeds)[lane]), n)
            return pause()

        return members.advance(track.how, *_part(track, piece, lane), lane, made, end, told, device)

    started, compiling = time.perf_counter(), members.seconds["compile"]
    done = spread(jobs, run, devices)
    elapsed = time.perf_counter() - started
    members.seconds["run"] += max(0.0, elapsed - (members.seconds["compile"] - compiling))
    for (piece, lane, made), ended in zip(jobs, done, strict=True):
        if ended is None:
            continue
        carry, told = ended
        real = np.unique(piece, return_index=True)[1]
        for old, new in zip(jax.tree.leaves(track.carry), jax.tree.leaves(carry), strict=True):
            old[piece[real], lane] = new[real]
        for name, values in told.items():  # (steps, members, seeds)
            _record(track, name, values, track.alive[piece[real]], real, lane, made)
        halted = (carry["diverged_at"] >= 0).all()
        track.at[piece[real], lane] = end if halted else made + len(told["loss"])


def _part(track: Track, piece: np.ndarray, lane: slice = slice(None)) -> tuple[Tree, Tree]:
    """Copies of the optimizers and the carries of some of those that go on."""
    return jax.tree.map(lambda x: x[piece], track.optimizer), jax.tree.map(lambda x: x[piece][:, lane], track.carry)


def _most(track: Track) -> int:
    """The most members in a part: on other backends as many as fit."""
    if track.how != "vmap":  # one program, however many go on
        return 1
    return max(1, PART // len(track.members.seeds)) if jax.default_backend() == "cpu" else 2**20


def _compile_evaluation(track: Track) -> None:
    """Begins to compile in the background what `scores` will need, while the training is compiled and runs."""
    settings, piece = inherited(), np.arange(min(-(-len(track.alive) // track.machine.threads), _most(track)))
    arguments = (*_part(track, piece), track.machine.devices[0])

    def compile_it() -> None:
        with settings(), suppress(Exception):  # `scores` will raise it
            track.members.evaluation_memory(*arguments)

    threading.Thread(target=compile_it).start()


def _divided(track: Track, most: int, need: Callable[[int], int]) -> tuple[list[np.ndarray], list[Any]]:
    """The members that go on in pieces that fit into the memory, and the threads."""
    machine, count = track.machine, len(track.alive)
    size, devices = fitting(min(-(-count // machine.threads), most), machine, need, track.members.bytes)
    return cut(count, machine.threads, size), devices


def _record(
    track: Track, name: str, values: np.ndarray, places: np.ndarray, real: np.ndarray, lane: slice, made: int
) -> None:
    if name not in track.history:
        shape = len(track.members.group.rows), len(track.members.seeds), track.total
        dtype = np.promote_types(values.dtype, np.float32)  # NumPy adds up bfloat16 in bfloat16
        track.history[name] = np.full(shape, np.nan, dtype)
    track.history[name][places, lane, made : made + len(values)] = np.moveaxis(values, 0, -1)[real]


def begin(track: Track) -> None:
    """The members before the first step."""
    track.optimizer = jax.tree.map(np.asarray, track.members.group.optimizer)
    pieces = cut(len(track.alive), 1, PART)
    started = [track.members.start(jax.tree.map(lambda x, p=piece: x[p], track.optimizer)) for piece in pieces]
    track.first = started[0][1]
    carries = [carry for carry, _ in started]
    track.carry = jax.tree.map(lambda *xs: np.concatenate(xs)[: len(track.alive)].copy(), *carries)
    track.at = np.zeros((len(track.alive), len(track.members.seeds)), int)
    track.since = np.zeros(len(track.alive), int)
    track.how, track.why = track.members.choose() if track.how == "auto" else (track.how, "as was asked for")


def losses(track: Track) -> np.ndarray:
    """The mean loss of each run's last epoch, of shape (alive, seeds); not-a-number where it has made no step.

    Of a member that is a copy, those before it was made do not count.
    """
    found = np.full(track.at.shape, np.nan)
    for (i, seed), made in np.ndenumerate(track.at):
        if made:
            begin = made - track.members.per_epoch
            begin = max(0, begin, track.since[i] if track.since[i] < made else 0)
            found[i, seed] = track.history["loss"][track.alive[i], seed, begin:made].mean()
    return found


def scores(track: Track) -> dict[str, np.ndarray]:
    """The metrics of the members that go on, of shape (alive, seeds)."""
    found = {"train_loss": losses(track)}
    if track.members.group.evaluate is not None:

        def evaluate(piece: np.ndarray, device: Any) -> dict[str, np.ndarray]:
            return track.members.evaluate(*_part(track, piece), device)

        device = track.machine.devices[0]
        need = lambda size: track.members.evaluation_memory(*_part(track, np.arange(size)), device)
        pieces, devices = _divided(track, _most(track), need)
        for piece, told in zip(pieces, spread(pieces, evaluate, devices), strict=True):
            real = np.unique(piece, return_index=True)[1]
            for name, values in told.items():
                found.setdefault(name, np.full(track.at.shape, np.nan))[piece[real]] = values[real]
    return found


def leave(track: Track, keep: np.ndarray) -> None:
    """Goes on with those members only, of the ones that went on, for which `keep` is true."""
    for i in np.flatnonzero(~keep):
        track.ended[int(track.alive[i])] = jax.tree.map(lambda x, i=i: x[i].copy(), track.carry)
    track.alive, track.at, track.since = track.alive[keep], track.at[keep], track.since[keep]
    track.optimizer, track.carry = (jax.tree.map(lambda x: x[keep], x) for x in (track.optimizer, track.carry))


def rungs(rule: CullingRule | Population | None, tracks: list[Track]) -> list[float]:
    """The parts of the run after which members are compared."""
    if rule is None:
        return []
    most = max(track.total for track in tracks)
    members = sum(len(track.members.group.rows) for track in tracks)
    return [steps / most for steps in rule.rungs(most, members)]
