"""`fit` with checkpoints: stopped anywhere and called again, it ends bit for bit where it would have ended."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdfx
from gdfx import stopping

pytest.importorskip("orbax.checkpoint")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3)).astype(np.float32)
DATA = {"x": X, "y": X @ np.array([1.0, -2.0, 0.5], np.float32)}
PARAMS = {"w": np.zeros(3, np.float32), "b": np.zeros((), np.float32)}
ADAM = gdfx.adam(gdfx.schedules.cosine(0.1, 100))


def loss_fn(params, batch):
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def fit(epochs=12, optimizer=ADAM, data=DATA, batch_size=4, loss_fn=loss_fn, **options):
    params = jax.tree.map(jnp.asarray, PARAMS)
    options = {"checkpoint_seconds": 0.0, "progress": False} | options
    return gdfx.fit(loss_fn, params, optimizer, data, epochs=epochs, batch_size=batch_size, **options)


def same(found, expected):
    for name in ("params", "opt_state", "history"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(expected, name))
    assert (found.status, found.steps) == (expected.status, expected.steps)


@pytest.mark.parametrize("batch_size", [4, 3, None])
def test_goes_on_where_it_was(tmp_path, batch_size):
    expected = fit(batch_size=batch_size)
    for epochs in (3, 7, 12):
        found = fit(epochs, batch_size=batch_size, checkpoint=tmp_path)
    same(found, expected)
    again = fit(batch_size=batch_size, checkpoint=tmp_path)
    same(again, expected)
    assert again.seconds == {"compile": 0.0, "run": 0.0}


def test_a_store_of_ones_own(tmp_path):
    with gdfx.Checkpoints(tmp_path, keep=2, metric="loss") as store:
        fit(3, checkpoint=store)
        found = fit(6, checkpoint=store)
        assert store.steps()[-1] == 30
    same(found, fit(6))


def test_stopping_rules_go_on(tmp_path):
    rule = stopping.no_progress(patience=3, min_delta=1.0)
    expected = fit(40, stop=rule)
    assert expected.status == "no_progress"
    fit(2, stop=rule, checkpoint=tmp_path)
    same(fit(40, stop=rule, checkpoint=tmp_path), expected)
    same(fit(40, stop=rule, checkpoint=tmp_path), expected)  # it is over


def test_other_rules_let_it_go_on(tmp_path):
    first = fit(12, stop=stopping.max_steps(10), checkpoint=tmp_path)
    assert first.status == "max_steps"
    found = fit(12, stop=stopping.max_steps(25), checkpoint=tmp_path)
    assert (found.status, found.steps) == ("max_steps", 25)
    jax.tree.map(np.testing.assert_array_equal, found.params, fit(5).params)


def test_the_optimizer_given_is_the_one_used(tmp_path):
    fit(3, checkpoint=tmp_path)
    found = fit(4, optimizer=ADAM.replace(learning_rate=gdfx.schedules.cosine(0.0, 100)), checkpoint=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found.params, fit(3).params)


def test_another_run_is_refused(tmp_path):
    fit(3, checkpoint=tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(ValueError, match="batch_size 4, not 5"):
        fit(4, batch_size=5, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"key \[0, 0\], not \[0, 1\]"):
        fit(4, key=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="examples 20, not 10"):
        fit(4, data=jax.tree.map(lambda a: a[:10], DATA), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="trace"):
        fit(4, optimizer=gdfx.sgd(0.1, momentum=0.9), checkpoint=tmp_path)
    after = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file())
    assert [p for p in after if p[0].name != "lock"] == [p for p in before if p[0].name != "lock"]
    with pytest.raises(ValueError, match="checkpoint_seconds is -1"):
        fit(4, checkpoint=tmp_path, checkpoint_seconds=-1)


def test_a_run_that_diverged_is_not_saved(tmp_path):
    fit(3, checkpoint=tmp_path)
    bad = lambda params, batch: loss_fn(params, batch) * jnp.where(params["w"][0] == 0, 1.0, jnp.nan)
    found = fit(5, loss_fn=bad, checkpoint=tmp_path)
    assert found.status == "diverged"
    assert math.isnan(found.history["loss"][-1])
    with gdfx.Checkpoints(tmp_path, read_only=True) as store:
        assert store.steps()[-1] == 15
    same(fit(12, checkpoint=tmp_path), fit(12))


TRAIN = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_resume import fit
result = fit(400, checkpoint={where!r}, checkpoint_seconds=0.0)
np.savez({out!r}, *result.params.values(), loss=result.history["loss"])
"""


def test_killed_again_and_again(tmp_path):
    """SIGKILL at any moment, while it saves too: no step is lost or made twice."""
    where, out = str(tmp_path / "run"), tmp_path / "end.npz"
    code = TRAIN.format(tests=str(Path(__file__).parent), where=where, out=str(out))
    environment = os.environ | {"PYTHONPATH": str(Path(gdfx.__file__).parents[1])}
    rng, kills = np.random.default_rng(0), 0
    while not out.exists():
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
        if kills < 4:
            saved = len(list(Path(where).glob("step_*")))
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:  # until it has gone on, and a little more
                if len(list(Path(where).glob("step_*"))) != saved or kills == 0:
                    time.sleep(rng.uniform(0.0, 1.0))
                    break
                time.sleep(0.01)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
        assert process.wait(120) in (0, -signal.SIGKILL)
    expected = fit(400)
    with np.load(out) as file:
        for name, value in zip(("arr_0", "arr_1"), expected.params.values(), strict=True):
            np.testing.assert_array_equal(file[name], value)
        np.testing.assert_array_equal(file["loss"], expected.history["loss"])
