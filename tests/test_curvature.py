"""Estimates of the diagonal of the Hessian are right on average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdfx

pytestmark = pytest.mark.numbers


def test_gauss_newton_bartlett_is_unbiased():
    """For softmax regression, whose Gauss-Newton matrix is the Hessian."""
    rng = np.random.default_rng(0)
    inputs, params = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((8, 3), (3, 4)))

    def loss(params, labels):
        log_probs = jax.nn.log_softmax(inputs @ params)
        return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=1))

    def sampled(params, key):
        return loss(params, jax.random.categorical(key, jax.lax.stop_gradient(inputs @ params)))

    opt = gdfx.gauss_newton_bartlett_estimator_diag_hessian(8)

    def estimate(key):
        return opt.update(params, opt.init(params), params, key=key, sampled_value_fn=sampled)[0]

    found = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 20_000)).mean(0)
    hessian = jax.hessian(loss)(params, jnp.zeros(8, jnp.int32)).reshape(12, 12)
    np.testing.assert_allclose(found.reshape(-1), jnp.diag(hessian), rtol=0.05)


def test_gauss_newton_bartlett_says_what_is_missing():
    opt = gdfx.gauss_newton_bartlett_estimator_diag_hessian(8, key=0)
    with pytest.raises(TypeError, match="sampled_value_fn"):
        opt.update(jnp.ones(2), opt.init(jnp.ones(2)), jnp.ones(2))
