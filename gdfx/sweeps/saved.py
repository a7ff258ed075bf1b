"""A sweep on disk: what it goes on from, and the results so far."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ..serialization import to_dict
from ..training.resume import Resumable, Store
from .engine import Track
from .export import to_csv
from .outcome import State
from .result import shown

TABLE = "results.csv"
"""The name of the file with the results so far."""
LINES = 20
"""The most differences that an error tells."""


class SavedSweep:
    """The checkpoints of one sweep, or none: `due` says when to save, `save` does."""

    def __init__(self, checkpoint: Store, every: float, what: dict[str, Any]):
        self.what = what  # this sweep is, and no other
        if checkpoint is not None and (processes := jax.process_count()) > 1:
            raise ValueError(f"checkpoint is given, but there are {processes} processes: a sweep is saved by one alone")
        self.files = Resumable(checkpoint, every, {})

    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return self.files.due()

    def restore(self, state: State) -> None:
        """Puts a sweep that is about to begin where it was when it was saved last; as it is if it never was.

        Raises:
            ValueError: that was another sweep; what differs is told.
        """
        if self.files.store is None:
            return
        directory = self.files.store.directory
        self.what |= {_label(track): _describe(track) for track in state.tracks}
        found = self.files.restore({}, None)
        if found is not None:
            lines = list(_differences(found.extra["sweep"], self.what, ""))
            if lines:
                more = [f"... and {len(lines) - LINES} more"] if len(lines) > LINES else []
                raise ValueError(
                    f"sweep: the checkpoint in {directory} is of another sweep:\n  "
                    + "\n  ".join(lines[:LINES] + more)
                    + "\nGo on with what it was begun with, or give another directory"
                )
            _unpack(state, found.extra["state"])
        for part in directory.glob(f".{TABLE}.*.part"):  # of a process that was killed
            part.unlink(missing_ok=True)

    def save(self, state: State) -> None:
        """Saves the sweep, and the table of its results so far."""
        if self.files.store is not None:
            means = state.means() * (1 if state.mode == "min" else -1)
            best = means[np.isfinite(means)]
            metrics = {state.metric: (best.min() if state.mode == "min" else best.max()) if len(best) else np.nan}
            extra = {"sweep": self.what, "state": _pack(state)}
            self.files.save(self.files.step + 1, {}, None, extra, metrics)
            to_csv(state.result(), self.files.store.directory / TABLE)

    def close(self) -> None:
        """Waits for what is being written; a store that was opened here is given back."""
        self.files.close()


def _label(track: Track) -> str:
    group = track.members.group
    chosen = {**group.settings, **({} if group.batch_size is None else {"batch_size": group.batch_size})}
    return ", ".join([group.kind, *(f"{name}={shown(value)}" for name, value in chosen.items())])


def _describe(track: Track) -> dict[str, Any]:
    group = track.members.group
    form = None
    with contextlib.suppress(TypeError):  # it holds functions of the user's
        form = to_dict(jax.tree.map(lambda _: 0.0, group.optimizer))
    numbers = jax.tree_util.tree_leaves_with_path(group.optimizer)
    leaves = jax.tree_util.tree_leaves_with_path(track.carry)
    return {
        "steps": track.total,
        **{jax.tree_util.keystr(path).lstrip("."): _numbers(leaf) for path, leaf in numbers},
        "optimizer": form,
        "state": {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves},
    }


def _differences(saved: Any, wanted: Any, path: str) -> Iterator[str]:
    """Each place at which two JSON values differ."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for name in dict.fromkeys([*saved, *wanted]):
            inner = path if name in ("fields", "tuple", "dict") else f"{path}: {name}" if path else name
            if name in saved and name in wanted:
                yield from _differences(saved[name], wanted[name], inner)
            else:
                yield f"{inner}: saved {_brief(saved, name)}, wanted {_brief(wanted, name)}"
    elif isinstance(saved, list) and isinstance(wanted, list) and len(saved) == len(wanted):
        for i, pair in enumerate(zip(saved, wanted, strict=True)):
            yield from _differences(*pair, f"{path}[{i}]")
    elif saved != wanted and (saved == saved or wanted == wanted):
        yield f"{path}: saved {json.dumps(saved)}, wanted {json.dumps(wanted)}"[:300]


def _brief(held: dict[str, Any], name: str) -> str:
    if name not in held:
        return "none"
    return "some" if isinstance(held[name], dict | list) else json.dumps(held[name])


def _numbers(leaf: Any) -> list[Any]:
    """As they are written: 0.1 of a float32, not 0.10000000149."""
    return [json.loads(str(x)) if np.isfinite(x) else float(x) for x in np.asarray(leaf)]


def _pack(state: State) -> dict[str, Any]:
    return {
        "tracks": [_pack_track(track) for track in state.tracks],
        "stage": state.stage,
        "compared": state.compared,
        "metrics": state.metrics,
        "culled_at": state.culled_at,
        "errors": {str(member): error for member, error in state.errors.items()},
        "lineage": state.lineage,
    }


def _pack_track(track: Track) -> dict[str, Any]:
    places = sorted(track.ended)
    ended = jax.tree.map(lambda *xs: np.stack(xs), *(track.ended[place] for place in places)) if places else None
    return {
        "alive": track.alive,
        "at": track.at,
        "since": track.since,
        "how": track.how,
        "why": track.why,
        "error": track.error,
        "optimizer": jax.tree.leaves(track.optimizer),
        "carry": jax.tree.leaves(track.carry),
        "history": track.history,
        "places": places,
        "ended": jax.tree.leaves(ended),
        "seconds": track.members.seconds,
    }


def _unpack(state: State, found: dict[str, Any]) -> None:
    for track, held in zip(state.tracks, found["tracks"], strict=True):
        _unpack_track(track, held)
    state.stage = found["stage"]
    state.compared = found["compared"]
    state.metrics = {name: np.array(values) for name, values in found["metrics"].items()}
    state.culled_at = np.array(found["culled_at"])
    state.errors = {int(member): error for member, error in found["errors"].items()}
    state.lineage = found["lineage"]


def _unpack_track(track: Track, held: dict[str, Any]) -> None:
    track.error, track.how, track.why = held["error"], held["how"], held["why"]
    for name, seconds in held["seconds"].items():
        track.members.seconds[name] += seconds
    if track.carry is None or not held["carry"]:  # it could not even begin
        return
    structure = jax.tree.structure(track.carry)
    track.alive, track.at, track.since = (np.array(held[name]) for name in ("alive", "at", "since"))
    track.optimizer = jax.tree.unflatten(jax.tree.structure(track.optimizer), map(np.array, held["optimizer"]))
    track.carry = jax.tree.unflatten(structure, map(np.array, held["carry"]))
    track.history = {name: np.array(values) for name, values in held["history"].items()}
    ended = jax.tree.unflatten(structure, held["ended"]) if held["places"] else None
    track.ended = {place: jax.tree.map(lambda x, i=i: np.array(x[i]), ended) for i, place in enumerate(held["places"])}
