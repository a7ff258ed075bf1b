"""Many training runs at once: `sweep`."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree
from ..training.data import check_data, check_epochs, seed_words
from ..training.interrupt import Interrupts
from ..training.progress import progress_bar
from ..training.resume import Store
from .culling import CullingRule
from .engine import Track, begin, leave, rungs, train
from .machine import Machine, together
from .members import Members
from .outcome import State
from .plan import Group, plan
from .population import population as Population  # noqa: N812 - arguments have its name
from .result import SweepResult
from .saved import SavedSweep

Executor = Literal["auto", "vmap", "map", "loop"]


def sweep(
    loss_fn: Callable[..., Any],
    init_fn: Callable[..., Tree],
    optimizers: Any,
    data: Tree,
    *,
    epochs: int,
    batch_size: int | Sequence[int | None] | None = None,
    seeds: int | Sequence[int] = 1,
    key: Any = 0,
    static: dict[str, Sequence[Any]] | None = None,
    evaluate: Callable[..., dict[str, jax.Array]] | None = None,
    metric: str = "train_loss",
    mode: Literal["min", "max"] = "min",
    culling: CullingRule | None = None,
    population: Population | None = None,
    executor: Executor = "auto",
    memory: int | None = None,
    progress: bool | None = None,
    checkpoint: Store = None,
    checkpoint_seconds: float = 60.0,
) -> SweepResult:
    """Trains one model for each of `optimizers` and each seed, those that differ in numbers only as one program.

    `optimizers` is a batch of one kind, from `gdfx.grid`, `gdfx.zipped`, `gdfx.sample` or `jax.vmap`, an optimizer, or
    a list of these, of any kinds. `init_fn(key)` makes the params (such as the `init` of a model in `gdfx.models`),
    `loss_fn`, `data`, `batch_size` and `epochs` are as for `fit`. A seed, together with `key`, determines the params at
    the start and the order of the examples; all optimizers see the same. `evaluate(params)` returns scalars by name,
    for each member after training, of the params to be used where the optimizer keeps an average.

    `batch_size` may be a list, and `static` holds lists of what is compiled in, `{"width": [16, 32]}`: each function
    that takes an argument of this name is given it. All choices are crossed; a member is an optimizer with one choice.

    A member whose loss or params stop being finite is kept at its last finite params and marked as diverged, and so is
    one whose loss ends above where it began, beyond chance; the others are not affected. `culling` drops members on the
    way, by the mean over the seeds of `metric`: `gdfx.halving`, `gdfx.hyperband`, `gdfx.median_rule`. The best is the
    one with the best mean of `metric`, `"train_loss"` or a name from `evaluate`, the `mode` being `"min"` or `"max"`.

    Members are trained in parts, one for each device, or core of a single CPU device. `executor` is `"vmap"`, all of a
    part batched, `"map"`, one run after another, or `"loop"`, the same with a call for each step; by default what the
    backend runs faster, and the result says which and why. A part has as many members as fit into `memory`, the bytes
    of each device that may be taken: by default 80 % of those that a device says it has, or half of the free memory.
    The processes of `jax.distributed`, each of which makes the same call, divide the parts and have the same result.

    With `checkpoint`, a directory or a `gdfx.Checkpoints`, all that the sweep goes on from is saved every
    `checkpoint_seconds`, whenever members are compared, and at the end. The same call made again resumes there by
    itself, and ends, bit for bit on a CPU, where it would have ended. The results so far stand in the directory as
    `results.csv`; the metrics of `evaluate` in it are of the last comparison. After Ctrl-C or SIGTERM the sweep is
    saved, and its results so far are returned: members that were on their way are marked as interrupted. A sweep of
    several processes cannot be saved.

    Raises:
        MemoryError: not one member fits into the memory.
        TypeError, ValueError: an argument or what a function returned is not as expected; or the checkpoint is of
            another sweep: what differs is told, and nothing on the disk is changed.
    """
    size = check_data(data, None)
    check_epochs(epochs)
    if mode not in ("min", "max"):
        raise ValueError(f'mode is {mode!r}, expected "min" or "max"')
    if executor not in (names := get_args(Executor)):
        raise ValueError(f"executor is {executor!r}, expected one of: {', '.join(names)}")
    if culling is not None and not isinstance(culling, CullingRule):
        raise TypeError(f"culling is {culling!r}, expected a rule such as gdfx.halving()")
    if population is not None and not isinstance(population, Population):
        raise TypeError(f"population is {population!r}, expected gdfx.population(...)")
    if culling is not None and population is not None:
        raise ValueError("sweep: culling and population are both given, expected one of them")
    seeds, machine = _seeds(seeds), Machine.here(memory)
    groups, points = plan(loss_fn, init_fn, optimizers, evaluate, batch_size, static)
    for group in groups:
        check_data(data, group.batch_size)
    _check_metrics(groups, metric)
    words = seed_words(key)
    base = jax.random.key(key) if isinstance(key, int | np.integer) else key
    data = jax.tree.map(jnp.asarray, data)
    tracks = []
    for group in groups:
        members = Members(group, seeds, data, size, words, base)
        total = epochs * members.per_epoch
        tracks.append(Track(members, total, executor, "", np.arange(len(group.rows)), machine))
    what = {"examples": size, "key": [int(word) for word in words], "seeds": seeds, "metric": metric, "mode": mode}
    saved = SavedSweep(
        checkpoint,
        checkpoint_seconds,
        what | {"culling": repr(culling), "population": repr(population), "executor": executor},
    )
    try:
        state = State(tracks, points, seeds, metric, mode, lineage=None if population is None else [])
        return _Sweep(state, culling, population, saved)(progress)
    finally:
        saved.close()


class _Sweep:
    """One call of `sweep`."""

    def __init__(self, state: State, culling: CullingRule | None, population: Population | None, saved: SavedSweep):
        self.state, self.culling, self.population, self.saved = state, culling, population, saved
        if population is not None:
            batches = population.names([track.members.group.optimizer for track in state.tracks])
            self.names = dict(zip(map(id, state.tracks), batches, strict=True))
        self.interrupts, self.stop = Interrupts(), False

    def __call__(self, progress: bool | None) -> SweepResult:
        state, tracks = self.state, self.state.tracks
        stages = [*rungs(self.culling or self.population, tracks), 1.0]
        total = sum(track.total * len(track.alive) for track in tracks) * state.shape[1]
        with self.interrupts, progress_bar(total, progress, f"sweep of {math.prod(state.shape)}") as bar:
            for track in tracks:
                self._attempt(track, begin)
            self.saved.restore(state)
            bar.update(sum(int(track.at.sum()) for track in state.going))
            while state.stage < len(stages):
                part = stages[state.stage]
                for track in state.going:
                    self._train(track, max(1, round(part * track.total)), bar)
                if self.stop:
                    self.saved.save(state)
                    for track in state.going:
                        if track.at.any():
                            self._attempt(track, state.score)
                    break
                self._show(bar)
                if part < 1 and self.culling is not None:
                    self._cull(self.culling, part)
                    bar.total = bar.n + sum((track.total - track.at).sum() for track in state.going)
                if part < 1 and self.population is not None:
                    self._exploit(self.population)
                state.stage += 1
                self.saved.save(state)
        return state.result()

    def _train(self, track: Track, end: int, bar: Any) -> None:
        """Makes the steps of a track until `end`, with saves on the way; then scores it."""
        watch = lambda runs, made: bar.update(runs * made)
        pause = lambda: self.interrupts.requested or self.saved.due()
        while track.error is None and len(track.alive) and track.made < end and not self.stop:
            self._attempt(track, lambda track: train(track, end, watch, pause))
            self.stop = any(together(self.interrupts.requested))
            if self.saved.due() and not self.stop:
                self.saved.save(self.state)
        if track.error is None and len(track.alive) and track.made >= end:
            self._attempt(track, self.state.score)

    def _attempt(self, track: Track, do: Callable[[Track], None]) -> None:
        """What goes wrong with one of several groups is told in the result, and the others go on."""
        try:
            do(track)
        except Exception as error:
            if self.state.going == [track]:
                raise
            track.error = f"{type(error).__name__}: {error}"
            self.state.errors |= dict.fromkeys(map(int, track.members.group.rows), track.error)

    def _cull(self, rule: CullingRule, part: float) -> None:
        state = self.state
        alive = state.alive()
        means = np.where(alive, state.means(), np.nan)
        most = max(track.total for track in state.tracks)
        keep = rule.keep(state.stage, round(part * most), means, alive, state.compared)
        for track in state.going:
            kept = keep[track.rows]
            state.culled_at[track.rows[~kept]] = track.at.min(axis=1)[~kept]
            leave(track, kept)
        state.compared = [*state.compared, means]

    def _exploit(self, population: Population) -> None:
        means, lineage = self.state.means(), self.state.lineage or []
        for track in self.state.going:
            track.optimizer, track.carry, copies = population.exploit(
                self.state.stage, means[track.rows], track.optimizer, track.carry, self.names[id(track)]
            )
            for copy in copies:
                track.since[copy["member"]] = track.made
                places = {name: int(track.rows[copy[name]]) for name in ("member", "from")}
                lineage.append({"step": track.made, **copy, **places})
        self.state.lineage = lineage

    def _show(self, bar: Any) -> None:
        best = np.nanmin(self.state.means(), initial=np.inf)
        text = f"{self.state.alive().sum()} members, best {self.state.metric} {abs(best):.4g}"
        bar.set_postfix_str(text, refresh=False)


def _seeds(seeds: Any) -> list[int]:
    seeds = list(range(seeds)) if isinstance(seeds, int | np.integer) else [operator.index(seed) for seed in seeds]
    if not seeds:
        raise ValueError("sweep: there are no seeds, expected at least one")
    if min(seeds) < 0:
        raise ValueError(f"sweep: a seed is {min(seeds)}, expected non-negative integers")
    return seeds


def _check_metrics(groups: list[Group], metric: str) -> None:
    """Raises before the training, not after it, for an `evaluate` or a `metric` that cannot be ranked by."""
    errors = []
    for group in groups:
        try:
            scores = jax.eval_shape(lambda g=group: g.evaluate(g.init_fn(jax.random.key(0))) if g.evaluate else {})
        except Exception as error:  # told in the result, if others go on
            errors.append(error)
        else:
            _check_scores(scores, metric)
    if len(errors) == len(groups):
        raise errors[-1]


def _check_scores(scores: Any, metric: str) -> None:
    if not isinstance(scores, dict):
        raise TypeError(f"evaluate returned a {type(scores).__name__}, expected a dict of scalars by name")
    for name, score in scores.items():
        if name == "train_loss":
            raise ValueError("evaluate: train_loss is the name of the mean loss of the last epoch: choose another")
        if not hasattr(score, "shape"):
            raise TypeError(f"evaluate: {name} is a {type(score).__name__}, expected a scalar")
        if score.shape != ():
            raise ValueError(f"evaluate: {name} has shape {score.shape}, expected a scalar")
    if metric not in (names := ["train_loss", *scores]):
        raise ValueError(f"metric is {metric!r}, expected one of: {', '.join(names)}")
