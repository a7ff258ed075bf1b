"""Many training runs at once: `sweep`."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Tree
from ..training.data import check_data, check_epochs, seed_words
from ..training.progress import progress_bar
from .culling import CullingRule
from .engine import Track, begin, leave, rungs, scores, train, workers
from .members import Members
from .plan import Group, plan
from .result import SweepResult

Executor = Literal["auto", "vmap", "map", "loop"]


def sweep(
    loss_fn: Callable[..., Any],
    init_fn: Callable[..., Tree],
    optimizers: Any,
    data: Tree,
    *,
    epochs: int,
    batch_size: int | None | Sequence[int | None] = None,
    seeds: int | Sequence[int] = 1,
    key: Any = 0,
    static: dict[str, Sequence[Any]] | None = None,
    evaluate: Callable[..., dict[str, jax.Array]] | None = None,
    metric: str = "train_loss",
    mode: Literal["min", "max"] = "min",
    culling: CullingRule | None = None,
    executor: Executor = "auto",
    progress: bool | None = None,
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
    part batched, `"map"`, one after another in the program, or `"loop"`, each run by itself; by default what the
    backend runs faster, and the result says which and why.
    """
    size = check_data(data, None)
    check_epochs(epochs)
    if mode not in ("min", "max"):
        raise ValueError(f'mode is {mode!r}, expected "min" or "max"')
    if executor not in (names := get_args(Executor)):
        raise ValueError(f"executor is {executor!r}, expected one of: {', '.join(names)}")
    if culling is not None and not isinstance(culling, CullingRule):
        raise TypeError(f"culling is {culling!r}, expected a rule such as gdfx.halving()")
    seeds = _seeds(seeds)
    groups, points = plan(loss_fn, init_fn, optimizers, evaluate, batch_size, static)
    for group in groups:
        check_data(data, group.batch_size)
        _check_metrics(group, metric)
    words = seed_words(key)
    base = jax.random.key(key) if isinstance(key, int | np.integer) else key
    data = jax.tree.map(jnp.asarray, data)
    tracks = []
    for group in groups:
        members = Members(group, seeds, data, size, words, base)
        tracks.append(Track(members, epochs * members.per_epoch, executor, "", np.arange(len(group.rows))))
    return _Sweep(tracks, points, seeds, metric, mode, culling)(progress)


class _Sweep:
    """One call of `sweep`."""

    def __init__(
        self, tracks: list[Track], points: list[dict[str, Any]], seeds: list[int], metric: str, mode: str, culling: Any
    ):
        self.tracks, self.points, self.seeds = tracks, points, seeds
        self.metric, self.mode, self.culling = metric, mode, culling
        self.shape = len(points), len(seeds)
        self.metrics: dict[str, np.ndarray] = {}
        self.culled_at = np.full(len(points), -1)
        self.errors: dict[int, str] = {}

    def __call__(self, progress: bool | None) -> SweepResult:
        devices = workers()
        total = sum(track.total * len(track.alive) for track in self.tracks)
        stages = [*rungs(self.culling, self.tracks), 1.0]
        compared: list[np.ndarray] = []  # at earlier rungs
        with progress_bar(total, progress, f"sweep of {self.shape[0] * self.shape[1]}") as bar:
            for track in self.tracks:
                self._attempt(track, lambda track: begin(track))
            for index, part in enumerate(stages):
                for track in self.tracks:
                    if track.error is None and len(track.alive):
                        end = round(part * track.total)
                        self._attempt(
                            track, lambda t, end=end: train(t, end, devices, None, lambda n, made: bar.update(n * made))
                        )
                        self._score(track)
                self._show(bar)
                if part < 1:
                    compared = self._cull(index, part, compared)
        return self._result()

    def _attempt(self, track: Track, do: Callable[[Track], None]) -> None:
        """What goes wrong with one of several groups is told in the result, and the others go on."""
        try:
            do(track)
        except Exception as error:
            if len(self.tracks) == 1:
                raise
            track.error = f"{type(error).__name__}: {error}"
            self.errors |= dict.fromkeys(map(int, track.members.group.rows), track.error)

    def _score(self, track: Track) -> None:
        if track.error is None:
            for name, values in scores(track).items():
                self.metrics.setdefault(name, np.full(self.shape, np.nan))
                self.metrics[name][track.members.group.rows[track.alive]] = values

    def _means(self) -> np.ndarray:
        """What members are compared by: lower is better; infinite where a seed diverged."""
        sign = 1 if self.mode == "min" else -1
        means = sign * self.metrics[self.metric].mean(axis=1)
        for track in self.tracks:
            if track.error is None:
                lost = (track.carry["diverged_at"] >= 0).any(axis=1)
                means[track.members.group.rows[track.alive[lost]]] = np.inf
        return means

    def _cull(self, index: int, part: float, compared: list[np.ndarray]) -> list[np.ndarray]:
        alive = np.zeros(self.shape[0], bool)
        for track in self.tracks:
            if track.error is None:
                alive[track.members.group.rows[track.alive]] = True
        means = np.where(alive, self._means(), np.nan)
        most = max(track.total for track in self.tracks)
        keep = self.culling.keep(index, round(part * most), means, alive, compared)
        for track in self.tracks:
            if track.error is None:
                rows = track.members.group.rows[track.alive]
                self.culled_at[rows[~keep[rows]]] = track.made
                leave(track, keep[rows])
        return [*compared, means]

    def _show(self, bar: Any) -> None:
        alive = sum(len(track.alive) for track in self.tracks if track.error is None)
        best = np.nanmin(self._means(), initial=np.inf) if self.metrics else np.inf
        bar.set_postfix_str(f"{alive} members, best {self.metric} {abs(best):.4g}", refresh=False)

    def _result(self) -> SweepResult:
        steps = max(track.total for track in self.tracks)
        history: dict[str, np.ndarray] = {}
        optimizers, params = [None] * self.shape[0], [None] * self.shape[0]
        diverged_at = np.full(self.shape, -1)
        diverged = np.zeros(self.shape, bool)
        for track in self.tracks:
            group = track.members.group
            for place, row in enumerate(group.rows):
                optimizers[row] = group.member(place)
            if track.error is not None:
                continue
            for name, values in track.history.items():
                history.setdefault(name, np.full((*self.shape, steps), np.nan, values.dtype))
                history[name][group.rows, :, : track.total] = values
            held = {int(place): jax.tree.map(lambda x, i=i: x[i], track.carry) for i, place in enumerate(track.alive)}
            for place, carry in (held | track.ended).items():
                params[group.rows[place]] = carry["state"].params
                diverged_at[group.rows[place]] = carry["diverged_at"]
            losses = track.history["loss"]
            first = losses[..., :1] if track.first is None else track.first
            ended = self.metrics["train_loss"][group.rows]
            diverged[group.rows] = (diverged_at[group.rows] >= 0) | ~(ended <= _limit(first))
        seconds = {name: sum(track.members.seconds[name] for track in self.tracks) for name in ("compile", "run")}
        reasons = dict.fromkeys(f"{track.how}: {track.why}" for track in self.tracks if track.error is None)
        return SweepResult(
            points=self.points,
            optimizers=optimizers,
            seeds=self.seeds,
            params=params,
            history=history,
            metrics=self.metrics,
            diverged=diverged,
            diverged_at=diverged_at,
            culled_at=self.culled_at,
            errors=self.errors,
            metric=self.metric,
            mode=self.mode,
            executor="; ".join(reasons),
            seconds=seconds,
        )


def _seeds(seeds: Any) -> list[int]:
    seeds = list(range(seeds)) if isinstance(seeds, int | np.integer) else [operator.index(seed) for seed in seeds]
    if not seeds:
        raise ValueError("sweep: there are no seeds, expected at least one")
    if min(seeds) < 0:
        raise ValueError(f"sweep: a seed is {min(seeds)}, expected non-negative integers")
    return seeds


def _limit(first: np.ndarray) -> np.ndarray:
    """What a loss may be after training, given losses from before it: their mean, with room for chance and rounding."""
    first = first.astype(np.float64)
    with np.errstate(invalid="ignore"):  # losses that are not finite from the start
        mean, error = first.mean(axis=-1), first.std(axis=-1) * np.sqrt(2 / first.shape[-1])
        return mean + 3 * error + 1e-5 * np.abs(mean)


def _check_metrics(group: Group, metric: str) -> None:
    """Raises before the training, not after it, for an `evaluate` or a `metric` that cannot be ranked by."""
    scores: Any = {}
    if group.evaluate is not None:
        scores = jax.eval_shape(lambda: group.evaluate(group.init_fn(jax.random.key(0))))
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
