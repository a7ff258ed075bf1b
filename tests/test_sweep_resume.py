"""`sweep` with checkpoints: stopped anywhere and called again, it ends bit for bit where it would have ended."""

import csv
import dataclasses
import json
import math
import signal
import threading

import jax
import jax.numpy as jnp
import kill_sweep
import numpy as np
import pytest

import gdfx
from gdfx.sweeps import run
from gdfx.sweeps.machine import Machine
from gdfx.sweeps.saved import SavedSweep

pytest.importorskip("orbax.checkpoint")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3)).astype(np.float32)
DATA = {"x": X, "y": X @ np.array([1.0, -2.0, 0.5], np.float32)}
# Some diverge: at once, and after some steps. Parts are filled up.
SGD = gdfx.grid(gdfx.sgd, learning_rate=[1e-3, 0.1, 0.01, 1.5, 1e30], momentum=0.5)
ADAM = gdfx.grid(gdfx.adam, learning_rate=[0.01, 0.1])
HALVING = gdfx.halving(factor=2, first=10)


def begin(key, start):
    return {"w": jax.random.normal(key, (3,)), "b": jnp.full((), start)}


def init_fn(key):
    return begin(key, 0.0)


def loss_fn(params, batch):
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def evaluate(params):
    return {"whole": loss_fn(params, DATA)}


def sweep(optimizers=SGD, *, loss_fn=loss_fn, init_fn=init_fn, data=DATA, **options):
    given = {"epochs": 10, "batch_size": 4, "seeds": 2, "evaluate": evaluate, "metric": "whole", "culling": HALVING}
    given |= {"checkpoint_seconds": 1e9, "progress": False, "executor": "vmap"}
    return gdfx.sweep(loss_fn, init_fn, optimizers, data, **(given | options))


def same(found, expected):
    assert found.table(rows=None) == expected.table(rows=None)
    assert found.executor == expected.executor
    for name in ("params", "history", "metrics", "diverged", "diverged_at", "culled_at", "errors"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(expected, name))


@pytest.fixture
def interrupted(monkeypatch):
    """Sweeps that are asked to stop before the call of this number; None for not at all."""

    class Interrupts:
        __enter__ = __exit__ = lambda self, *_: None
        calls = None

        def __init__(self):
            self.asked = 0

        @property
        def requested(self):
            self.asked += 1
            return self.calls is not None and self.asked >= self.calls

    def sweep_until(calls, *args, **options):
        Interrupts.calls = calls
        return sweep(*args, **options)

    monkeypatch.setattr(run, "Interrupts", Interrupts)
    return sweep_until


@pytest.mark.parametrize(
    ("calls", "options"),
    [
        ((1, 3, 6), {"optimizers": [SGD, ADAM]}),
        ((5,), {"executor": "map", "culling": gdfx.median_rule(every=13), "mode": "max"}),
        ((3, 30), {"executor": "loop", "seeds": [3, 5]}),
        ((1, 2), {"executor": "auto", "batch_size": None, "culling": None}),
        (
            (4,),
            {"batch_size": [4, 5], "static": {"start": [0.0, 0.5]}, "init_fn": lambda key, start: begin(key, start)},
        ),
    ],
    ids=["vmap", "map", "loop", "auto", "settings"],
)
def test_goes_on_where_it_was(tmp_path, interrupted, calls, options):
    expected = sweep(**options)
    assert "diverged" in expected.status
    assert ("culled" in expected.status) == (options.get("culling", HALVING) is not None)
    for number in calls:
        found = interrupted(number, checkpoint=tmp_path, **options)
        assert "interrupted" in found.status
    found = interrupted(None, checkpoint=tmp_path, **options)
    same(found, expected)
    again = interrupted(None, checkpoint=tmp_path, **options)
    same(again, expected)
    assert again.seconds["run"] == found.seconds["run"]  # nothing was left to be done
    assert sorted(path.name for path in tmp_path.glob("*.csv*")) == ["results.csv"]


def test_saves_between_any_two_calls(tmp_path):
    expected, steps = sweep(epochs=3), []

    class Store(gdfx.Checkpoints):
        def save(self, step, *args, **options):
            steps.append(step)
            super().save(step, *args, **options)

    with Store(tmp_path, keep=2, metric="whole") as store:
        same(sweep(epochs=3, checkpoint=store, checkpoint_seconds=0.0), expected)
        assert store.best() == steps[-1] == len(steps)
    assert len(steps) > 10


def test_goes_on_with_another_number_of_threads(tmp_path, interrupted, monkeypatch):
    def threads(n):
        machine = dataclasses.replace(here, devices=here.devices[:1] * n, threads=n, side=n)
        monkeypatch.setattr(run.Machine, "here", lambda memory: machine)

    here, expected = Machine.here(), sweep()
    for n, calls in ((3, 4), (1, 4), (2, None)):
        threads(n)
        found = interrupted(calls, checkpoint=tmp_path)
    assert found.status == expected.status
    np.testing.assert_array_equal(found.culled_at, expected.culled_at)
    # Parts of another size are another program.
    for name in ("history", "metrics", "params"):
        close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, getattr(found, name), getattr(expected, name))


def test_what_is_returned_after_an_interruption(tmp_path, interrupted):
    full = sweep(culling=None)
    found = interrupted(5, culling=None)
    assert "interrupted" in found.status
    assert "culled" not in found.status
    stopped = np.where(found.interrupted_at < 0, full.history["loss"].shape[-1], found.interrupted_at)
    assert stopped.max() > 0
    for i, made in enumerate(stopped):
        for j in range(2):
            np.testing.assert_array_equal(found.history["loss"][i, j, :made], full.history["loss"][i, j, :made])
            finite = made > 0 and np.isfinite(found.history["loss"][i, j, :made]).all()
            assert np.isfinite(found.metrics["train_loss"][i, j]) == finite
    assert f"interrupted at {found.interrupted_at.max()}" in repr(found)
    assert stopped[found.best_index] == stopped[np.array(found.status) != "diverged"].max()
    assert math.isfinite(found.best.metrics["whole"])
    found.plot(tmp_path / "plot.png")
    json.dumps(found.to_dict())
    assert full.interrupted_at is None


def test_interrupted_before_the_first_step(interrupted):
    found = interrupted(1, executor="loop")
    nothing = found.interrupted_at == 0
    assert nothing.any()
    assert not found.diverged[nothing].any()


def test_a_signal_stops_it(tmp_path, monkeypatch):
    def due(self):
        asked.append(self)
        if len(asked) == 3:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        return False

    asked, expected = [], sweep(epochs=400)
    monkeypatch.setattr(SavedSweep, "due", due)
    found = sweep(epochs=400, checkpoint=tmp_path)
    assert "interrupted" in found.status
    same(sweep(epochs=400, checkpoint=tmp_path), expected)


def test_results_so_far(tmp_path, interrupted):
    found = interrupted(6, checkpoint=tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == [status for status in found.status for _ in found.seeds]
    assert "interrupted" in found.status
    np.testing.assert_array_equal([float(row["train_loss"]) for row in rows], found.metrics["train_loss"].reshape(-1))
    done = interrupted(None, checkpoint=tmp_path)
    done.to_csv(tmp_path / "expected.csv")
    assert (tmp_path / "results.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()


def test_a_kind_that_failed(tmp_path, interrupted):
    def fails(key, start):
        return begin(key, start) if start else {"w": jnp.zeros(3)}

    given = {"static": {"start": [0.0, 0.5]}, "init_fn": fails, "evaluate": None, "metric": "train_loss"}
    expected = sweep(**given)
    assert expected.status.count("failed") == 5
    interrupted(4, checkpoint=tmp_path, **given)
    same(interrupted(None, checkpoint=tmp_path, **given), expected)


def test_another_sweep_is_refused(tmp_path, interrupted):
    interrupted(3, [SGD, ADAM], checkpoint=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refused(*told, optimizers, **options):
        with pytest.raises(ValueError, match=f"checkpoint in {tmp_path} is of another sweep") as error:
            sweep(optimizers, checkpoint=tmp_path, **options)
        for text in told:
            assert f"\n  {text}" in str(error.value)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    refused(
        "examples: saved 20, wanted 10",
        "key[1]: saved 0, wanted 1",
        "seeds[1]: saved 1, wanted 2",
        'metric: saved "whole", wanted "train_loss"',
        'mode: saved "min", wanted "max"',
        'culling: saved "halving(factor=2, first=10)", wanted "None"',
        'executor: saved "vmap", wanted "map"',
        "sgd, batch_size=4: steps: saved 50, wanted 22",
        "sgd, batch_size=4: learning_rate[1]: saved 0.1, wanted 0.2",
        "sgd, batch_size=4: optimizer: nesterov: saved false, wanted true",
        "adam, batch_size=4: saved some, wanted none",
        optimizers=gdfx.grid(gdfx.sgd, learning_rate=[1e-3, 0.2, 0.01, 1.5, 1e30], momentum=0.5, nesterov=True),
        data=jax.tree.map(lambda a: a[:10], DATA),
        key=1,
        seeds=[0, 2],
        metric="train_loss",
        mode="max",
        culling=None,
        executor="map",
        epochs=11,
    )
    refused(
        "adam, batch_size=4: learning_rate: saved [0.01, 0.1], wanted [0.01]",
        "adam, batch_size=4: state: ['state'].params['b']: saved \"float32[2, 2]\", wanted \"float32[1, 2, 1]\"",
        optimizers=[SGD, gdfx.grid(gdfx.adam, learning_rate=[0.01])],
        init_fn=lambda key: {"w": jnp.zeros(3), "b": jnp.zeros(1)},
        loss_fn=lambda p, batch: loss_fn(p | {"b": p["b"][0]}, batch),
        evaluate=None,
        metric="train_loss",
        culling=None,
    )
    refused("sgd, batch_size=4: saved some, wanted none", optimizers=[SGD, ADAM], batch_size=5)
    with pytest.raises(ValueError, match="checkpoint_seconds is -1"):
        sweep(checkpoint=tmp_path, checkpoint_seconds=-1)


def test_what_fit_saved_is_refused(tmp_path):
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    gdfx.fit(loss_fn, params, gdfx.sgd(0.1), DATA, epochs=1, batch_size=4, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match="is not like what is to be restored"):
        sweep(checkpoint=tmp_path)


def test_killed_again_and_again(tmp_path):
    """SIGKILL at any moment, while it saves too: the same table."""
    assert kill_sweep.main(2, 0, tmp_path) == []


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="checkpoint is given, but there are 2 processes"):
        SavedSweep(tmp_path / "run", 60.0, {})
    assert not (tmp_path / "run").exists()
