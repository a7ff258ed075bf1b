"""`fit` with checkpoints: stopped anywhere and called again, it ends bit for bit where it would have ended."""

import errno
import math

import jax
import jax.numpy as jnp
import kill_training
import numpy as np
import pytest

import gdfx
from gdfx import stopping
from gdfx.training.checkpoints import store

pytest.importorskip("orbax.checkpoint")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3)).astype(np.float32)
DATA = {"x": X, "y": X @ np.array([1.0, -2.0, 0.5], np.float32)}
PARAMS = {"w": np.zeros(3, np.float32), "b": np.zeros((), np.float32)}
ADAM = gdfx.adam(gdfx.schedules.cosine(0.1, 100))


def loss_fn(params, batch):
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def fit(epochs=12, optimizer=ADAM, data=DATA, batch_size=4, loss_fn=loss_fn, params=PARAMS, **options):
    params = jax.tree.map(jnp.asarray, params)
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
    with gdfx.Checkpoints(tmp_path, keep=2, metric="loss") as own:
        fit(3, checkpoint=own)
        found = fit(6, checkpoint=own)
        assert own.steps()[-1] == 30
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
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def refused(*told, **options):
        with pytest.raises(ValueError, match="checkpoint of step 15") as error:
            fit(4, checkpoint=tmp_path, **options)
        for text in told:
            assert text in str(error.value)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    refused("batch_size 4, not 5", batch_size=5)
    refused("key [0, 0], not [0, 1]", key=1)
    refused("examples 20, not 10", data=jax.tree.map(lambda a: a[:10], DATA))
    refused("trace", "mu['w']: saved float32[3], wanted none", optimizer=gdfx.sgd(0.1, momentum=0.9))
    refused(
        ".params['w']: saved float32[3], wanted float32[2]",
        ".params['b']: saved float32[], wanted none",
        ".mu['w']: saved float32[3], wanted float32[2]",
        params={"w": np.zeros(2, np.float32)},
        loss_fn=lambda params, batch: jnp.mean((batch["x"][:, :2] @ params["w"] - batch["y"]) ** 2),
    )
    with pytest.raises(ValueError, match="checkpoint_seconds is -1"):
        fit(4, checkpoint=tmp_path, checkpoint_seconds=-1)


@pytest.mark.parametrize("step", [1, 60])
def test_a_failed_save_is_told_at_the_next_one_or_at_the_end(tmp_path, monkeypatch, step):
    def fail(folder, content, arrays):
        if failed or content["step"] == step:
            failed.append(content["step"])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, content, arrays)

    write, failed = store.write, []
    monkeypatch.setattr(store, "write", fail)
    kept = "there is no checkpoint yet" if step == 1 else "the last good checkpoint is that of step"
    with pytest.raises(OSError, match=f"step {step} cannot be saved in .*; {kept}.*No space left"):
        fit(checkpoint=tmp_path)
    assert failed == [step]
    monkeypatch.undo()
    same(fit(checkpoint=tmp_path), fit())


def test_a_run_that_diverged_is_not_saved(tmp_path):
    fit(3, checkpoint=tmp_path)
    bad = lambda params, batch: loss_fn(params, batch) * jnp.where(params["w"][0] == 0, 1.0, jnp.nan)
    found = fit(5, loss_fn=bad, checkpoint=tmp_path)
    assert found.status == "diverged"
    assert math.isnan(found.history["loss"][-1])
    with gdfx.Checkpoints(tmp_path, read_only=True) as own:
        assert own.steps()[-1] == 15
    same(fit(12, checkpoint=tmp_path), fit(12))


def test_killed_again_and_again(tmp_path):
    """SIGKILL at any moment, while it saves too: no step is lost or made twice."""
    assert kill_training.main(3, 0, tmp_path) == []
