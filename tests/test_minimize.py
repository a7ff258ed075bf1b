"""`minimize`: stopping rules inside of a compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdfx
from gdfx import stopping


def loss_fn(p, batch):
    return jnp.square(p - batch).sum()


def test_it_is_what_fit_does():
    data = {"x": np.array([[1.0, 2.0]], np.float32)}
    loss = lambda p, batch: jnp.mean(jnp.square(batch["x"] - p[None]))
    rule = stopping.gradient_norm(1e-3) | (stopping.target(1e-4) & stopping.no_progress(2))
    expected = gdfx.fit(loss, jnp.zeros(2), gdfx.adam(0.1), data, epochs=500, stop=rule, progress=False)
    found = jax.jit(lambda: gdfx.minimize(loss, jnp.zeros(2), gdfx.adam(0.1), data, stop=rule, max_steps=500))()
    assert (found.status, int(found.steps)) == (expected.status, expected.steps) == ("gradient_norm", found.steps)
    np.testing.assert_allclose(found.params, expected.params, rtol=1e-6)
    np.testing.assert_allclose(found.loss, expected.history["loss"][-1], rtol=1e-5)
    np.testing.assert_allclose(found.grad_norm, expected.history["grad_norm"][-1], rtol=1e-5)


def test_each_member_stops_by_itself():
    # With sgd(0.25) on the square, the distance halves in each step.
    starts, tolerances = jnp.array([1.0, 4.0, jnp.inf, 1.0]), jnp.array([2.0**-3, 2.0**-3, 1.0, 0.0])

    @jax.jit
    @jax.vmap
    def run(start, tolerance):
        stop = stopping.gradient_norm(tolerance)
        return gdfx.minimize(loss_fn, start, gdfx.sgd(0.25), jnp.float32(0), stop=stop, max_steps=12)

    result = run(starts, tolerances)
    np.testing.assert_array_equal(result.steps, [5, 7, 1, 12])
    np.testing.assert_array_equal(result.params[jnp.array([0, 1, 3])], [2.0**-5, 2.0**-5, 2.0**-12])
    members = [jax.tree.map(lambda x, i=i: x[i], result).status for i in range(4)]
    assert members == ["gradient_norm", "gradient_norm", "diverged", "max_steps"]
    with pytest.raises(ValueError, match="of several members"):
        result.status  # noqa: B018 # a property that raises


def test_lbfgs_under_a_batch_of_problems():
    hessians = jnp.array([[1.0, 100.0], [3.0, 0.5]])
    loss = lambda p, h: 0.5 * jnp.sum(h * jnp.square(p - 1))
    solve = lambda h: gdfx.minimize(loss, jnp.zeros(2), gdfx.lbfgs(), h, stop=stopping.gradient_norm(1e-4))
    result = jax.jit(jax.vmap(solve))(hessians)
    np.testing.assert_allclose(result.params, 1, atol=1e-3)
    assert (result.steps < 30).all()


def test_derivatives_in_forward_mode():
    end = lambda rate: gdfx.minimize(loss_fn, jnp.float32(1), gdfx.sgd(rate), jnp.float32(0), max_steps=3).params
    np.testing.assert_allclose(jax.jacfwd(end)(0.25), 3 * 0.5**2 * -2, rtol=1e-6)  # (1 - 2 rate)**3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_steps": 0}, ValueError, "max_steps is 0, expected a number of steps of at least 1"),
        ({"max_steps": None}, ValueError, "max_steps is None"),
        ({"stop": 0.1}, TypeError, "stop holds 0.1, expected stopping rules"),
        ({"loss_fn": lambda p, b: p}, ValueError, r"loss_fn returned shape \(2,\), expected a scalar"),
        ({"optimizer": gdfx.sophia(0.1)}, TypeError, "needs"),
    ],
)
def test_bad_input(options, error, message):
    options = {"loss_fn": loss_fn, "optimizer": gdfx.sgd(0.1)} | options
    with pytest.raises(error, match=message):
        gdfx.minimize(options.pop("loss_fn"), jnp.zeros(2), options.pop("optimizer"), jnp.float32(0), **options)
