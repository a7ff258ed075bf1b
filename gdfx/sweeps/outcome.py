"""How far a sweep has come, and the result that makes."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ..core import Tree, eval_params
from .engine import Track, losses, scores
from .result import SweepResult


@dataclass
class State:
    """A sweep on its way; all that changes is here and in its tracks."""

    tracks: list[Track]
    points: list[dict[str, Any]]
    seeds: list[int]
    metric: str
    mode: str
    metrics: dict[str, np.ndarray] = field(default_factory=dict)  # (members, seeds)
    culled_at: Any = None  # (members,)
    errors: dict[int, str] = field(default_factory=dict)
    stage: int = 0  # the one under way
    compared: list[np.ndarray] = field(default_factory=list)  # at the rungs before
    lineage: list[dict[str, Any]] | None = None

    def __post_init__(self):
        self.culled_at = np.full(len(self.points), -1)
        for name in ("train_loss", self.metric):
            self.told(name)

    @property
    def shape(self) -> tuple[int, int]:
        """Members and seeds."""
        return len(self.points), len(self.seeds)

    @property
    def going(self) -> list[Track]:
        """The tracks that have not failed."""
        return [track for track in self.tracks if track.error is None]

    def told(self, name: str) -> np.ndarray:
        """A metric; not-a-number where it is not known."""
        return self.metrics.setdefault(name, np.full(self.shape, np.nan))

    def score(self, track: Track) -> None:
        """Takes over the metrics of the members of a track that go on."""
        for name, values in scores(track).items():
            self.told(name)[track.rows] = values

    def means(self) -> np.ndarray:
        """What members are compared by: lower is better; infinite where a seed diverged."""
        means = (1 if self.mode == "min" else -1) * self.metrics[self.metric].mean(axis=1)
        for track in self.going:
            means[track.rows[(track.carry["diverged_at"] >= 0).any(axis=1)]] = np.inf
        return means

    def alive(self) -> np.ndarray:
        """Bools: the members that go on."""
        alive = np.zeros(len(self.points), bool)
        for track in self.going:
            alive[track.rows] = True
        return alive

    def result(self) -> SweepResult:
        """What came of it, or what came of it so far."""
        steps = max(track.total for track in self.tracks)
        history: dict[str, np.ndarray] = {"loss": np.full((*self.shape, steps), np.nan, np.float32)}
        optimizers: list[Any] = [None] * len(self.points)
        params: list[Tree] = [None] * len(self.points)
        diverged_at, interrupted_at = np.full(self.shape, -1), np.full(len(self.points), -1)
        diverged = np.zeros(self.shape, bool)
        metrics = {name: values.copy() for name, values in self.metrics.items()}
        for track in self.tracks:
            group = track.members.group
            for place, row in enumerate(group.rows):
                optimizers[row] = group.member(place)
            if track.error is not None:
                continue
            for name, values in track.history.items():
                dtype = np.promote_types(values.dtype, history[name].dtype) if name in history else values.dtype
                history[name] = history.get(name, np.full((*self.shape, steps), np.nan)).astype(dtype)
                history[name][group.rows, :, : track.total] = values
            held = {int(place): jax.tree.map(lambda x, i=i: x[i], track.carry) for i, place in enumerate(track.alive)}
            for place, carry, used in _used(group.optimizer, held | track.ended):
                params[group.rows[place]] = used
                diverged_at[group.rows[place]] = carry["diverged_at"]
            metrics["train_loss"][track.rows] = losses(track)
            if (short := track.at.min(axis=1) < track.total).any():
                interrupted_at[track.rows[short]] = track.at.min(axis=1)[short]
            diverged[group.rows] = diverged_at[group.rows] >= 0
            if "loss" in track.history:
                first = track.history["loss"][..., :1] if track.first is None else track.first
                ended = metrics["train_loss"][group.rows]
                made = np.minimum((~np.isnan(track.history["loss"])).sum(axis=-1), track.members.per_epoch)
                diverged[group.rows] |= ~((ended <= _limit(first, made)) | self._waiting(track))
        seconds = {name: sum(track.members.seconds[name] for track in self.tracks) for name in ("compile", "run")}
        reasons = dict.fromkeys(f"{track.how}: {track.why}" for track in self.going)
        return SweepResult(
            points=self.points,
            optimizers=optimizers,
            seeds=self.seeds,
            params=params,
            history=history,
            metrics=metrics,
            diverged=diverged,
            diverged_at=diverged_at,
            culled_at=self.culled_at,
            errors=self.errors,
            metric=self.metric,
            mode=self.mode,
            lineage=self.lineage,
            executor="; ".join(reasons),
            seconds=seconds,
            interrupted_at=interrupted_at if (interrupted_at >= 0).any() else None,
        )

    def _waiting(self, track: Track) -> np.ndarray:
        """Bools of shape (members of the group, seeds): no step was made."""
        waiting = np.zeros((len(track.members.group.rows), len(self.seeds)), bool)
        waiting[track.alive] = track.at == 0
        return waiting


def _used(optimizer: Tree, carries: dict[int, Tree]) -> list[tuple[int, Tree, Tree]]:
    """Of the members at these places: the carry, and the params to be used, averaged where the optimizer does so."""
    places = sorted(carries)
    states = jax.tree.map(lambda *xs: np.stack(xs), *(carries[place]["state"] for place in places))
    optimizer = jax.tree.map(lambda x: x[places], optimizer)
    over_seeds = jax.vmap(eval_params, (None, 0, 0))
    axis = 0 if jax.tree.leaves(optimizer) else None  # as an optimizer of optax has none
    used = jax.vmap(over_seeds, (axis, 0, 0))(optimizer, states.opt_state, states.params)
    used = jax.tree.map(np.asarray, used)
    return [(place, carries[place], jax.tree.map(lambda x, i=i: x[i], used)) for i, place in enumerate(places)]


def _limit(first: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """What a mean loss of so many steps may be after training, given losses from before it.

    That is their mean, with room for chance and rounding.
    """
    first, count = first.astype(np.float64), first.shape[-1]
    with np.errstate(invalid="ignore"):  # losses that are not finite from the start
        mean, error = first.mean(axis=-1), first.std(axis=-1) * np.sqrt(1 / count + 1 / np.clip(steps, 1, count))
        return mean + 3 * error + 1e-5 * np.abs(mean)
